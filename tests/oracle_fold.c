#include "oracle_fold.h"

#include <math.h>
#include <quadmath.h>
#include <stdlib.h>

wf_dtype fold_bias_dtype(const Case *c) { return c->flags & WF_BIAS_F32 ? WF_F32 : c->x; }

static bool of_output(const Case *c) { return c->op == FOLD_BATCHNORM; }

bool fold_shape(Problem *p)
{
    const Case *c = p->c;
    const int64_t all = of_output(c) ? c->rows : c->cols, channels = c->channels ? c->channels : all;
    if (channels < 0 || channels > all || (all && all % channels))
        return false;
    p->params = channels;
    p->biases = of_output(c) ? channels : c->rows;
    for (int64_t i = 0; i < p->count; i++) {
        const int64_t row = i / c->cols, col = i % c->cols;
        p->param[i] = (int32_t)(of_output(c) ? row % channels : col / (c->cols / channels));
    }
    return true;
}

/* What a channel's weights are multiplied by. */
static Quad scale_of(const Problem *p, int64_t k)
{
    const Quad gamma = p->gamma ? p->gamma[k] : 1, var = p->running_var[k] + (Quad)p->c->eps;
    if (!of_output(p->c))
        return p->gamma ? (Quad)p->c->weight_offset + gamma : 1;
    return var == 0 ? 0 : gamma / sqrtq(var);
}

static bool too_large(const Case *c, Quad value)
{
    return finiteq(value) && fabsq(value) > (c->x == WF_F64 ? 0x1.fp1023 : 0x1.fp127);
}

/* s is a number that the arithmetic does not hold with all its digits. */
static bool out_of_range(const Problem *p, Quad s)
{
    const Quad least_normal = p->c->x == WF_F64 ? 0x1p-1022 : 0x1p-126;
    return of_output(p->c) && s != 0 && (too_large(p->c, s) || fabsq(s) < least_normal);
}

static void promise_nothing(Expected *e, int64_t i)
{
    e->value[i] = 0, e->bar[i] = HUGE_VAL;
}

void fold_solve(const Problem *p, Expected out[OUTPUT_COUNT])
{
    const Case *c = p->c;
    const double u = c->x == WF_F64 ? 0x1p-53 : 0x1p-24, tiny = least(stat_dtype(c->x));
    const double dot_bar = (8 + (c->cols > 1 ? log2((double)c->cols) : 0)) * u;
    Expected *weight = &out[OUT_Y], *bias = &out[OUT_FOLDED_BIAS];
    *weight = oracle_expected(p->count, c->x, true);
    *bias = oracle_expected(p->biases, fold_bias_dtype(c), true);
    for (int64_t i = 0; i < p->biases; i++) {
        const Quad b = p->bias ? p->bias[i] : 0;
        const Quad shift = of_output(c) ? (b - p->running_mean[i]) * scale_of(p, i) : b;
        const Quad beta = of_output(c) && p->beta ? p->beta[i] : 0;
        bias->value[i] = shift + beta;
        bias->bar[i] = (of_output(c) ? 7 * u : dot_bar) * (double)(fabsq(shift) + fabsq(beta)) + tiny;
    }
    for (int64_t i = 0; i < p->count; i++) {
        const Quad scale = scale_of(p, p->param[i]);
        weight->value[i] = p->x[i] * scale;
        weight->bar[i] = 5 * u * fabs((double)weight->value[i]) + tiny;
        if (out_of_range(p, scale))
            promise_nothing(weight, i);
        if (of_output(c) || !p->beta)
            continue;
        const Quad product = p->x[i] * p->beta[p->param[i]];
        bias->value[i / c->cols] += product;
        bias->bar[i / c->cols] += dot_bar * fabs((double)product) + tiny;
    }
    for (int64_t i = 0; i < p->biases; i++)
        if (of_output(c) ? out_of_range(p, scale_of(p, i)) : finiteq(bias->value[i]) && too_large(c, bias->bar[i] / dot_bar))
            promise_nothing(bias, i);
}
