#include "data.h"

#include <math.h>
#include <quadmath.h>
#include <stdlib.h>
#include <string.h>

#include "oracle_fold.h"
#include "oracle_quantize.h"
#include "oracle_sum.h"

static const struct { int size, precision, least_exponent, greatest_exponent; } formats[] = {
    [WF_F32] = { 4, 24, -126, 127 }, [WF_F16] = { 2, 11, -14, 15 }, [WF_BF16] = { 2, 8, -126, 127 },
    [WF_F64] = { 8, 53, -1022, 1023 }, [E4M3] = { 1, 4, -6, 8 }, [E5M2] = { 1, 3, -14, 15 }, [INT8] = { 1, 8, 7, 7 },
};

size_t dtype_size(wf_dtype dtype) { return (size_t)formats[dtype].size; }
wf_dtype stat_dtype(wf_dtype x) { return x == WF_F64 ? WF_F64 : WF_F32; }

static int ulp_exponent(wf_dtype dtype, int exponent)
{
    int least_exponent = formats[dtype].least_exponent;
    return (exponent > least_exponent ? exponent : least_exponent) - (formats[dtype].precision - 1);
}

double least(wf_dtype dtype) { return ldexp(1, ulp_exponent(dtype, -2000)); }

double ulp_at(wf_dtype dtype, double value)
{
    int exponent;
    if (!isfinite(value) || value == 0)
        return least(dtype);
    frexp(value, &exponent);
    return ldexp(1, ulp_exponent(dtype, exponent - 1));
}

Quad round_to(wf_dtype dtype, Quad value)
{
    int exponent;
    const double v = (double)value;
    if (dtype == WF_F64)
        return v;
    if (dtype == WF_F32)
        return (float)value;
    if (!finiteq(value) || value == 0)
        return value;
    frexpq(value, &exponent);
    const int q = ulp_exponent(dtype, exponent - 1);
    /* In double where that holds the value: the same, but much faster. */
    const Quad rounded = v == value ? ldexp(rint(ldexp(v, -q)), q) : scalbnq(rintq(scalbnq(value, -q)), q);
    const double beyond = ldexp(1, formats[dtype].greatest_exponent + 1);
    return fabsq(rounded) < beyond ? rounded : value < 0 ? -(Quad)HUGE_VAL : (Quad)HUGE_VAL;
}

/* A value of the format as sign, exponent and fraction bits, straight from the format's definition. */
static uint32_t encode16(wf_dtype dtype, double v)
{
    int fraction_bits = formats[dtype].precision - 1, bias = formats[dtype].greatest_exponent, exponent;
    uint32_t sign = signbit(v) ? 0x8000u : 0, infinity = (uint32_t)(2 * bias + 1) << fraction_bits;
    if (isnan(v))
        return sign | infinity | 1u << (fraction_bits - 1);
    if (isinf(v))
        return sign | infinity;
    double units = fabs(v) / ulp_at(dtype, v); /* an integer below 2^precision */
    frexp(v, &exponent);
    int field = exponent - 1 + bias;
    if (v == 0 || field < 1)
        return sign | (uint32_t)units; /* subnormal: no hidden bit, exponent field 0 */
    return sign | (((uint32_t)field << fraction_bits) + (uint32_t)units - (1u << fraction_bits));
}

static double decode16(wf_dtype dtype, uint32_t bits)
{
    int fraction_bits = formats[dtype].precision - 1, bias = formats[dtype].greatest_exponent;
    uint32_t fraction = bits & ((1u << fraction_bits) - 1);
    int field = (int)(bits >> fraction_bits & (uint32_t)(2 * bias + 1));
    double sign = bits & 0x8000u ? -1 : 1;
    if (field == 2 * bias + 1)
        return fraction ? (double)NAN : sign * HUGE_VAL;
    if (field == 0)
        return sign * ldexp(fraction, 1 - bias - fraction_bits);
    return sign * ldexp(fraction + (1u << fraction_bits), field - bias - fraction_bits);
}

void dtype_store(wf_dtype dtype, void *array, int64_t i, Quad value)
{
    if (dtype == WF_F64) {
        ((double *)array)[i] = (double)value;
        return;
    }
    const float f = (float)value;
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    if (dtype == WF_F32)
        ((float *)array)[i] = f;
    else if (dtype == WF_BF16 && f == value && !(bits & 0xffff)) /* a bf16 already, as most are here: for speed */
        ((uint16_t *)array)[i] = (uint16_t)(bits >> 16);
    else
        ((uint16_t *)array)[i] = (uint16_t)encode16(dtype, (double)round_to(dtype, value));
}

double dtype_load(wf_dtype dtype, const void *array, int64_t i)
{
    if (dtype == WF_F64)
        return ((const double *)array)[i];
    if (dtype == WF_F32)
        return ((const float *)array)[i];
    if (dtype_size(dtype) == 1)
        return quantized_value(dtype, ((const uint8_t *)array)[i]);
    return decode16(dtype, ((const uint16_t *)array)[i]);
}

/* splitmix64 */
uint64_t random_bits(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

int64_t random_below(uint64_t *state, int64_t n) { return (int64_t)(random_bits(state) % (uint64_t)n); }

static double uniform(uint64_t *state) { return ((double)(random_bits(state) >> 12) + 0.5) * 0x1p-52; }

static double normal(uint64_t *state)
{
    double radius = sqrt(-2 * log(uniform(state)));
    return radius * cos(6.283185307179586 * uniform(state));
}

/* x of element k of slot s. */
static double value(const Problem *p, uint64_t *state, int64_t s, int64_t k)
{
    const wf_dtype dtype = p->c->x;
    const bool half = dtype == WF_F16, narrow = half || dtype == WF_BF16;
    uint64_t slot_state = p->c->seed * 1000003 + (uint64_t)s; /* for what a slot's elements have in common */
    double m = (double)random_below(&slot_state, 5) - 2, z = normal(state);
    switch (p->c->data) {
    case OFFSET: return narrow ? 16 + z : 1e4 + 1e-2 * z;
    case OPPOSITE: return (s / p->params < p->slots / p->params / 2 ? 1 : -1) * (narrow ? 16 + z : 1e4 + 1e-2 * z);
    case RATIO6: return half ? 6e4 : 1e6 + 1.25 * z;
    case CONSTANT: return normal(&slot_state);
    case SUBNORMAL: return z * 1e3 * least(dtype);
    case HUGE18: return (half ? 6e4 : 1e18) * (2 * uniform(state) - 1);
    case HUGE30: return s % 2 ? z : (half ? 6e4 : 1e30) * (2 * uniform(state) - 1);
    case NANROW: return s == p->slots / 2 && k == p->per_slot / 2 ? (double)NAN : z;
    case INFROW: return s == p->slots / 2 && k == p->per_slot / 2 ? -HUGE_VAL : z;
    case OUTLIER: return k ? z : half ? 6e4 : 1e6;
    case EXACTSUM: { /* element k pairs with element k - 1, k odd; an odd one left over is m */
        slot_state += (uint64_t)(k / 2) << 32;
        double d = k + 1 == p->per_slot && k % 2 == 0 ? 0 : ((double)random_below(&slot_state, 15) + 1) / 8;
        return k % 2 ? m - d : m + d;
    }
    case ONES: return 1;
    case TINY: return z * (half ? (s % 2 ? 0x1p-12 : 0x1p-10) : s % 2 ? 1e-30 : 1e-20);
    case BIG: return copysign((half ? 0x1p15 : 0x1p59) * (0.5 + 0.5 * uniform(state)), z);
    case NORMAL:
    case DATA_COUNT: break;
    }
    return z;
}

static Quad *array(int64_t count) { return malloc((size_t)(count ? count : 1) * sizeof(Quad)); }

Quad *normals(wf_dtype dtype, int64_t n, double mean, double sd, uint64_t seed)
{
    Quad *a = array(n);
    for (int64_t i = 0; i < n; i++) {
        double z = sd * normal(&seed);
        a[i] = round_to(dtype, mean + (sd < 0 ? fabs(z) : z));
    }
    return a;
}

/* Who belongs together. */
static bool shape(Problem *p)
{
    const Case *c = p->c;
    Norm norm = op_norm(c->op);
    bool rows = norm == LAYERNORM || norm == RMSNORM || norm == FOLD, moving = norm == INSTANCENORM || norm == BATCHNORM;
    bool running = op_is_infer(c->op) || (op_is_backward(c->op) && moving && c->flags & WF_FROZEN);
    int64_t n = rows ? c->rows : c->n, channels = rows ? c->cols : c->c, hw = rows ? 1 : c->hw;
    if (n < 0 || channels < 0 || hw < 0 || (norm == GROUPNORM && (c->groups <= 0 || channels % c->groups)))
        return false;
    p->count = n * channels * hw;
    p->params = channels;
    p->per_param = n * hw;
    bool by_channel = norm == BATCHNORM || (norm == INSTANCENORM && running);
    int64_t groups = rows ? 1 : norm == GROUPNORM ? c->groups : channels; /* slots of a sample */
    p->slots = by_channel ? channels : n * groups;
    p->per_slot = by_channel ? n * hw : groups ? channels / groups * hw : 0;
    p->slot = malloc((size_t)(p->count + 1) * sizeof *p->slot);
    p->param = malloc((size_t)(p->count + 1) * sizeof *p->param);
    p->pair = malloc((size_t)(p->count + 1) * sizeof *p->pair);
    p->pairs = case_modulates(c) ? n * channels : 0;
    for (int64_t i = 0; i < p->count; i++) {
        int64_t sample = i / (channels * hw);
        int64_t channel = rows || c->layout == WF_NHWC ? i % channels : i / hw % channels;
        p->param[i] = (int32_t)channel;
        p->pair[i] = (int32_t)(sample * channels + channel);
        p->slot[i] = (int32_t)(by_channel ? channel : sample * groups + channel / (channels / groups));
    }
    return norm != FOLD || fold_shape(p);
}

Problem *problem_new(const Case *c)
{
    Problem *p = calloc(1, sizeof *p);
    p->c = c;
    if (!shape(p)) {
        problem_free(p);
        return NULL;
    }
    uint64_t state = c->seed;
    int64_t *seen = calloc((size_t)p->slots + 1, sizeof *seen); /* elements of each slot so far */
    p->x = array(p->count);
    for (int64_t i = 0; i < p->count; i++)
        p->x[i] = round_to(c->x, value(p, &state, p->slot[i], seen[p->slot[i]]++));
    free(seen);
    const wf_dtype w = c->w, stat = stat_dtype(c->x);
    p->dy = op_is_backward(c->op) ? normals(c->x, p->count, 0, 1, c->seed + 1) : NULL;
    p->gamma = c->null & NULL_GAMMA ? NULL : normals(w, p->params, 1, 0.5, c->seed + 2);
    p->beta = c->null & NULL_BETA || op_norm(c->op) == RMSNORM ? NULL : normals(w, p->params, 0, 1, c->seed + 3);
    p->old_dgamma = normals(w, p->params, 0, 3, c->seed + 4);
    p->old_dbeta = normals(w, p->params, 0, 3, c->seed + 5);
    p->running_mean = normals(stat, p->params, 0.5, 1, c->seed + 6);
    p->running_var = normals(stat, p->params, 0.25, -1, c->seed + 7);
    if (case_adds(c))
        addition_new(p);
    else if (c->add & ADD_RESIDUAL)
        p->residual = normals(c->x, p->count, 0, 1, c->seed + 8);
    p->scale = case_modulates(c) && c->add & ADD_SCALE ? normals(w, p->pairs, 1 - c->scale_offset, 0.5, c->seed + 13) : NULL;
    p->shift = case_modulates(c) && c->add & ADD_SHIFT ? normals(w, p->pairs, 0, 1, c->seed + 14) : NULL;
    if (op_is_fold(c->op) && !(c->null & NULL_BIAS))
        p->bias = normals(fold_bias_dtype(c), p->biases, 0, 1, c->seed + 12);
    if (c->running == RUNNING_NAN)
        for (int64_t i = 0; i < p->params; i++)
            p->running_mean[i] = p->running_var[i] = nanq("");
    return p;
}

void problem_free(Problem *p)
{
    if (!p)
        return;
    void *const all[] = { p->slot, p->param, p->pair, p->scale, p->shift, p->x, p->dy, p->gamma, p->beta,
                          p->old_dgamma, p->old_dbeta,
                          p->running_mean, p->running_var, p->branch, p->residual, p->factor, p->row_scale, p->col_scale,
                          p->dsum, p->bias, p->output, p };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}
