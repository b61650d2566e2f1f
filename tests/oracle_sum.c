#include "oracle_sum.h"

#include <math.h>
#include <quadmath.h>
#include <stdlib.h>
#include <string.h>

#include "oracle_dropout.h"

static wf_dtype arithmetic(const Case *c) { return stat_dtype(c->x); }

/* What x is multiplied by where it is kept; 0 where it is not: *kept tells. */
static Quad kept_scale(const Case *c, int64_t unit, bool *kept)
{
    *kept = c->drop == 0 || (c->drop < 1 && oracle_dropout_keep(c->drop, c->seed, c->offset, (uint64_t)unit));
    return *kept && c->drop > 0 ? round_to(arithmetic(c), 1 / (1 - c->drop)) : *kept;
}

/* A gamma that is no reason to refuse, and y of it. */
static void output_new(Problem *p)
{
    const Case *c = p->c;
    for (int64_t i = 0; i < p->params && p->gamma; i++)
        while (fabs((double)p->gamma[i] + c->weight_offset) < 0.25)
            p->gamma[i] = round_to(c->w, p->gamma[i] + 0.375Q);
    p->output = malloc((size_t)(p->count + 1) * sizeof *p->output);
    oracle_forward(p, p->x, p->gamma, p->beta, p->output);
    for (int64_t i = 0; i < p->count; i++)
        p->output[i] = round_to(c->x, p->output[i]);
}

void addition_new(Problem *p)
{
    const Case *c = p->c;
    const wf_dtype real = arithmetic(c), dtype = case_sum_dtype(c);
    p->branch = p->x;
    p->x = malloc((size_t)(p->count + 1) * sizeof *p->x);
    p->factor = malloc((size_t)(p->count + 1) * sizeof *p->factor);
    p->residual = c->add & ADD_RESIDUAL ? normals(dtype, p->count, 0, 1, c->seed + 8) : NULL;
    p->row_scale = c->add & ADD_ROW_SCALE ? normals(real, p->slots, 1, 0.5, c->seed + 9) : NULL;
    p->col_scale = c->add & ADD_COL_SCALE ? normals(c->w, p->params, 0.5, 0.5, c->seed + 10) : NULL;
    p->dsum = c->add & ADD_DSUM ? normals(dtype, p->count, 0, 1, c->seed + 11) : NULL;
    addition_make(p);
    if (c->add & ADD_OUTPUT)
        output_new(p);
}

void addition_make(Problem *p)
{
    const Case *c = p->c;
    const wf_dtype real = arithmetic(c), dtype = case_sum_dtype(c);
    for (int64_t i = 0; i < p->count; i++) {
        bool kept;
        const Quad scale = kept_scale(c, i, &kept);
        const Quad row = p->row_scale ? p->row_scale[p->slot[i]] : 1, col = p->col_scale ? p->col_scale[p->param[i]] : 1;
        Quad d = kept ? round_to(real, p->branch[i] * scale) : 0;
        d = round_to(real, round_to(real, d * row) * col);
        p->x[i] = round_to(dtype, p->residual ? round_to(real, p->residual[i] + d) : d);
        p->factor[i] = scale * row * col;
    }
}

void addition_forward(const Problem *p, Expected out[OUTPUT_COUNT])
{
    out[OUT_SUM] = oracle_expected(p->count, case_sum_dtype(p->c), false);
    memcpy(out[OUT_SUM].value, p->x, (size_t)p->count * sizeof *p->x);
}

void addition_backward(const Problem *p, Expected out[OUTPUT_COUNT])
{
    const double u = p->c->x == WF_F64 ? 0x1p-53 : 0x1p-24, tiny = least(arithmetic(p->c));
    const wf_dtype dtype = case_sum_dtype(p->c);
    Expected *dx = &out[OUT_DX], *dresidual = &out[OUT_DRESIDUAL];
    *dresidual = oracle_expected(p->count, dtype, true);
    for (int64_t i = 0; i < p->count; i++) {
        const Quad sum = dx->value[i] + (p->dsum ? p->dsum[i] : 0), factor = p->factor[i];
        dresidual->value[i] = sum;
        dresidual->bar[i] = dx->bar[i] + (p->dsum ? u * fabs((double)sum) : 0);
        dx->value[i] = sum * factor;
        dx->bar[i] = (dresidual->bar[i] + ulp_at(dtype, (double)sum) / 2) * fabs((double)factor) +
                     3 * (u * fabs((double)dx->value[i]) + tiny);
        if (!finiteq(round_to(dtype, fabsq(sum) + dresidual->bar[i]))) /* Inf as stored, or on the verge of it */
            dx->bar[i] = INFINITY;
        if (factor == 0)
            dx->value[i] = 0, dx->bar[i] = 0;
    }
}
