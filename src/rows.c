#include "rows.h"

#include <inttypes.h>
#include <math.h>

#include "common/dtype.h"
#include "common/invertible.h"
#include "common/philox.h"

void rows_check(struct call *call, wf_rmsnorm *w)
{
    check_dtypes(call, w->x_dtype, w->w_dtype);
    check_flags(call, w->flags, WF_ACCUMULATE | WF_SUM_F32, w->reserved);
    check_that(call, !(w->flags & WF_SUM_F32 && w->x_dtype == WF_F64), "flags = 0x%x: WF_SUM_F32 with x_dtype = f64",
               w->flags);
    check_matrix(call, w->rows, w->cols);
    check_stride(call, "x_stride", &w->x_stride, w->cols, w->rows, w->cols);
    check_stride(call, "y_stride", &w->y_stride, w->cols, w->rows, w->cols);
    check_stride(call, "dx_stride", &w->dx_stride, w->x_stride, w->rows, w->cols);
    check_stride(call, "dy_stride", &w->dy_stride, w->y_stride, w->rows, w->cols);
    check_stride(call, "residual_stride", &w->residual_stride, w->cols, w->rows, w->cols);
    check_stride(call, "sum_stride", &w->sum_stride, w->cols, w->rows, w->cols);
    check_that(call, (unsigned)w->quantization <= WF_INT8, "quantization = %d", (int)w->quantization);
    check_that(call, w->reserved_2 == 0, "reserved_2 = %u, must be 0", w->reserved_2);
    check_eps(call, w->eps);
    check_that(call, isfinite(w->weight_offset), "weight_offset = %g, must be finite", w->weight_offset);
    check_fraction(call, "p", w->p);
    if (call->status)
        w->p = 0; /* what no keep threshold is made of */
}

struct keep {
    double           p;
    struct addition *add;
};

/* Part of the contract, as dropout's. */
static void compute_keep(void *arg)
{
    const struct keep *k = arg;
    k->add->threshold = wf_keep_threshold(k->p);
    k->add->scale = k->p < 1 ? 1 / (1 - k->p) : 0;
}

static struct addition addition(const wf_rmsnorm *w)
{
    struct addition add = {.present = w->p > 0,
                           .dtype = w->flags & WF_SUM_F32 ? WF_F32 : w->x_dtype,
                           .residual_stride = w->residual_stride,
                           .sum_stride = w->sum_stride};
    in_our_fpmode(compute_keep, &(struct keep){w->p, &add});
    return add;
}

struct layernorm_forward rows_forward(const wf_rmsnorm *w, bool centered)
{
    return (struct layernorm_forward){.x_dtype = w->x_dtype,
                                      .w_dtype = w->w_dtype,
                                      .centered = centered,
                                      .rows = w->rows,
                                      .cols = w->cols,
                                      .x_stride = w->x_stride,
                                      .y_stride = w->y_stride,
                                      .eps = w->eps,
                                      .weight_offset = w->weight_offset,
                                      .add = addition(w),
                                      .quantize.kind = w->quantization};
}

struct layernorm_backward rows_backward(const wf_rmsnorm *w, bool centered, bool from_output)
{
    return (struct layernorm_backward){.x_dtype = w->x_dtype,
                                       .w_dtype = w->w_dtype,
                                       .centered = centered,
                                       .accumulate = w->flags & WF_ACCUMULATE,
                                       .from_output = from_output,
                                       .rows = w->rows,
                                       .cols = w->cols,
                                       .x_stride = from_output ? w->y_stride : w->x_stride,
                                       .dy_stride = w->dy_stride,
                                       .dx_stride = w->dx_stride,
                                       .weight_offset = w->weight_offset,
                                       .add = addition(w)};
}

static void check_scales(struct call *call, const struct addition *add, struct buffer_shape of_rows,
                         struct buffer_shape of_cols)
{
    const struct buffer_shape word = vector_of(WF_F64, 1);
    check_input(call, "row_scale", add->row_scale, of_rows, OPTIONAL);
    check_input(call, "col_scale", add->col_scale, of_cols, OPTIONAL);
    check_input(call, "seed_ptr", add->seed_ptr, word, OPTIONAL);
    check_input(call, "offset_ptr", add->offset_ptr, word, OPTIONAL);
}

/* What the kind does not have is left out. */
static void check_quantization(struct call *call, struct layernorm_forward *p)
{
    struct quantization      *q = &p->quantize;
    const bool                by_row = q->kind == WF_INT8, scaled = q->kind && !by_row;
    const struct buffer_shape one = vector_of(WF_F32, 1), of_rows = vector_of(WF_F32, p->rows);
    if (scaled) {
        check_input(call, "y_scale", q->scale, one, OPTIONAL);
        check_output(call, "y_amax", q->amax, one, OPTIONAL, -1);
    } else {
        q->scale = NULL, q->amax = NULL;
    }
    if (by_row)
        check_output(call, "y_row_scale", q->row_scale, of_rows, NEEDED, -1);
    else
        q->row_scale = NULL;
}

wf_status rows_solve_forward(struct call *call, struct layernorm_forward *p)
{
    struct addition    *add = &p->add;
    const bool          bytes = p->quantize.kind;
    struct buffer_shape of_x = {p->x_dtype, p->rows, p->cols, p->x_stride};
    struct buffer_shape of_y = {p->x_dtype, p->rows, p->cols, p->y_stride};
    struct buffer_shape of_residual = {add->dtype, p->rows, p->cols, add->residual_stride};
    struct buffer_shape of_sum = {add->dtype, p->rows, p->cols, add->sum_stride};
    struct buffer_shape of_rows = vector_of(wf_statistics_dtype(p->x_dtype), p->rows);
    struct buffer_shape of_cols = vector_of(p->w_dtype, p->cols);

    add->present |= add->residual || add->sum || add->row_scale || add->col_scale;
    int x = check_input(call, "x", p->x, of_x, NEEDED);
    check_input(call, "gamma", p->gamma, of_cols, OPTIONAL);
    check_input(call, "beta", p->beta, of_cols, OPTIONAL);
    int residual = check_input(call, "residual", add->residual, of_residual, OPTIONAL);
    check_scales(call, add, of_rows, of_cols);
    if (bytes)
        check_byte_rows(call, "y", p->y, p->rows, p->cols, p->y_stride);
    else
        check_output(call, "y", p->y, of_y, NEEDED, x);
    const bool of_its_own = bytes || add->dtype != p->x_dtype; /* y has no room for it */
    check_output(call, "sum", add->sum, of_sum, add->present && of_its_own ? NEEDED : OPTIONAL, residual);
    check_quantization(call, p);
    check_output(call, "mean", p->mean, of_rows, OPTIONAL, -1);
    check_output(call, p->centered ? "rstd" : "rrms", p->rstd, of_rows, OPTIONAL, -1);
    check_output(call, "mean_lo", p->mean_lo, of_rows, OPTIONAL, -1);
    return call_close(call, call_ready(call) ? call->backend->layernorm_forward(p, call) : call->status);
}

static double value_of(const void *data, wf_dtype dtype, int64_t i)
{
    switch (dtype) {
    case WF_F16:
        return wf_f16_to_f32(((const uint16_t *)data)[i]);
    case WF_BF16:
        return wf_bf16_to_f32(((const uint16_t *)data)[i]);
    case WF_F32:
        return ((const float *)data)[i];
    default:
        return ((const double *)data)[i];
    }
}

struct inversion {
    const struct layernorm_backward *p;
    int64_t                          column; /* the first without, or cols */
    double                           factor, beta; /* there */
};

static void find_too_small(void *arg)
{
    static const struct wf_rounding roundings[] = {
        [WF_F32] = {WF_F32_ROUNDING}, [WF_F16] = {WF_F16_ROUNDING}, [WF_BF16] = {WF_BF16_ROUNDING}, [WF_F64] = {WF_F64_ROUNDING}};
    struct inversion                *v = arg;
    const struct layernorm_backward *p = v->p;
    for (v->column = 0; v->column < p->cols; v->column++) {
        v->factor = p->gamma ? p->weight_offset + value_of(p->gamma, p->w_dtype, v->column) : 1;
        v->factor = p->x_dtype == WF_F64 ? v->factor : (float)v->factor;
        v->beta = p->beta ? value_of(p->beta, p->w_dtype, v->column) : 0;
        if (!wf_invertible(v->factor, v->beta, roundings[p->x_dtype]))
            return;
    }
}

/* Looks at gamma and beta where they are the host's. */
static void check_invertible(struct call *call, const struct layernorm_backward *p)
{
    struct inversion v = {.p = p};
    if (call->exec.backend != WF_CPU || call->dry_run || call->empty)
        return;
    in_our_fpmode(find_too_small, &v);
    check_that(call, v.column == p->cols, "column %" PRId64 ": a factor of %g beside beta = %g is too small to have xhat from y",
               v.column, v.factor, v.beta);
}

wf_status rows_solve_backward(struct call *call, struct layernorm_backward *p, const void *sum)
{
    struct addition    *add = &p->add;
    struct buffer_shape of_x = {p->x_dtype, p->rows, p->cols, p->x_stride};
    struct buffer_shape of_dy = {p->x_dtype, p->rows, p->cols, p->dy_stride};
    struct buffer_shape of_dx = {p->x_dtype, p->rows, p->cols, p->dx_stride};
    struct buffer_shape of_residual = {add->dtype, p->rows, p->cols, add->residual_stride};
    struct buffer_shape of_sum = {add->dtype, p->rows, p->cols, add->sum_stride};
    struct buffer_shape of_rows = vector_of(wf_statistics_dtype(p->x_dtype), p->rows);
    struct buffer_shape of_cols = vector_of(p->w_dtype, p->cols);

    add->present |= p->from_output || sum || add->dsum || add->dresidual || add->row_scale || add->col_scale;
    int dy = check_input(call, "dy", p->dy, of_dy, NEEDED);
    if (p->from_output)
        check_input(call, "y", p->x, of_x, NEEDED);
    else if (add->present)
        check_input(call, "sum", sum, of_sum, NEEDED);
    else
        check_input(call, "x", p->x, of_x, NEEDED);
    check_input(call, "gamma", p->gamma, of_cols, OPTIONAL);
    check_input(call, p->centered ? "rstd" : "rrms", p->rstd, of_rows, NEEDED);
    if (p->from_output) {
        check_input(call, "beta", p->beta, of_cols, OPTIONAL);
    } else {
        check_input(call, "mean", p->mean, of_rows, p->centered ? NEEDED : OPTIONAL);
        check_input(call, "mean_lo", p->mean_lo, of_rows, OPTIONAL);
    }
    int dsum = check_input(call, "dsum", add->dsum, of_sum, OPTIONAL);
    check_scales(call, add, of_rows, of_cols);
    check_output(call, "dx", p->dx, of_dx, OPTIONAL, dy);
    check_output(call, "dresidual", add->dresidual, of_residual, OPTIONAL, dsum);
    check_output(call, "dgamma", p->dgamma, of_cols, OPTIONAL, -1);
    check_output(call, "dbeta", p->dbeta, of_cols, OPTIONAL, -1);
    if (p->from_output)
        p->mean = p->mean_lo = NULL;
    else
        p->beta = NULL; /* nobody reads it */
    if (!p->from_output && add->present)
        p->x = sum, p->x_stride = add->sum_stride;
    if (call_ready(call) && p->from_output)
        check_invertible(call, p);
    return call_close(call, call->status ? call->status : call->backend->layernorm_backward(p, call));
}

size_t rows_forward_workspace(struct call *call, wf_rmsnorm *w)
{
    struct layernorm_forward p = rows_forward(w, true);
    return call_ready(call) ? call->backend->layernorm_forward_workspace(&p) : 0;
}

size_t rows_backward_workspace(struct call *call, wf_rmsnorm *w)
{
    struct layernorm_backward p = rows_backward(w, true, false);
    return call_ready(call) ? call->backend->layernorm_backward_workspace(&p) : 0;
}
