/* reference_sum.c - norms of a sum: the sum, and what its gradient is multiplied by on its way to x, in double.
 * A product or a sum of two floats in double, rounded to float, is the one that float arithmetic has: double has more than
 * twice the digits. So sums are right to the bit, as the oracle's (oracle_sum.h). */
#include "bench.h"
#include "data.h"
#include "oracle_dropout.h"

static double to_real(wf_dtype x, double v) { return x == WF_F64 ? v : (double)(float)v; }

/* What x is multiplied by where it is kept; 0 where it is not. */
static double kept_scale(const Case *c, int64_t unit)
{
    if (c->drop == 0)
        return 1;
    const bool kept = c->drop < 1 && oracle_dropout_keep(c->drop, c->seed, c->offset, (uint64_t)unit);
    return kept ? to_real(c->x, 1 / (1 - c->drop)) : 0;
}

/* 1 where it is not given. */
static double scale_of(const Plan *p, const char *slab, Tensor which, int64_t i)
{
    return p->t[which].given ? dtype_load(p->t[which].dtype, plan_tensor(p, slab, which), i) : 1;
}

void addition_row(const Plan *p, const char *slab, int64_t row, char *sum)
{
    const Case *c = p->c;
    const Extent *x = &p->t[T_X], *residual = &p->t[T_RESIDUAL];
    const double row_scale = scale_of(p, slab, T_ROW_SCALE, row);
    for (int64_t j = 0; j < c->cols; j++) {
        const double scale = kept_scale(c, row * c->cols + j);
        const double v = dtype_load(x->dtype, plan_tensor(p, slab, T_X), row * x->stride + j);
        double d = scale == 0 ? 0 : to_real(c->x, v * scale);
        d = to_real(c->x, to_real(c->x, d * row_scale) * scale_of(p, slab, T_COL_SCALE, j));
        if (residual->given)
            d = to_real(c->x, dtype_load(residual->dtype, plan_tensor(p, slab, T_RESIDUAL), row * residual->stride + j) + d);
        dtype_store(case_sum_dtype(c), sum, j, d);
    }
}

double addition_factor(const Plan *p, const char *slab, int64_t row, int64_t col)
{
    return kept_scale(p->c, row * p->c->cols + col) * scale_of(p, slab, T_ROW_SCALE, row) * scale_of(p, slab, T_COL_SCALE, col);
}
