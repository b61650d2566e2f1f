/* y in bytes: see struct quantization. A row is normalized a tile at a time, by the operations of any other y, and rounded
 * from there; for int8 twice, first for the row's largest. Included by layernorm_forward.h. */
#include "common/narrow.h"

#if REAL_SIZE == 8
#define NARROWED(x) wf_f64_to_odd(x)
#else
#define NARROWED(x) (x)
#endif

/* Some columns of a row: n from `begin`, of y as it is before it is rounded. p is of the sum, if there is one. */
static void y_tile(const struct layernorm_forward *p, int64_t row, int64_t begin, int64_t n, struct stats s, real y[TILE])
{
    real        of_x[TILE], of_gamma[TILE], of_beta[TILE];
    const real *x = load(p->x, p->x_dtype, row * p->x_stride + begin, n, of_x);
    const real *gamma = p->gamma ? load(p->gamma, p->w_dtype, begin, n, of_gamma) : NULL;
    const real *beta = p->beta ? load(p->beta, p->w_dtype, begin, n, of_beta) : NULL;
    const real  offset = (real)p->weight_offset;
    if (gamma)
        SIMD
        for (int64_t i = 0; i < n; i++)
            y[i] = ((x[i] - s.mean) - s.mean_lo) * ((gamma[i] + offset) * s.rstd);
    else
        SIMD
        for (int64_t i = 0; i < n; i++)
            y[i] = ((x[i] - s.mean) - s.mean_lo) * s.rstd;
    if (beta)
        SIMD
        for (int64_t i = 0; i < n; i++)
            y[i] += beta[i];
}

static int32_t largest_bits(int64_t n, const real y[TILE])
{
    int32_t largest = 0;
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < n; i++) {
        const int32_t bits = wf_magnitude((float)y[i]);
        largest = bits > largest ? bits : largest;
    }
    return largest;
}

static void narrow_tile(wf_quantization kind, int64_t n, const real y[TILE], real factor, uint8_t *to)
{
    if (kind == WF_E4M3)
        SIMD
        for (int64_t i = 0; i < n; i++)
            to[i] = wf_f32_to_e4m3(NARROWED(y[i] * factor));
    else if (kind == WF_E5M2)
        SIMD
        for (int64_t i = 0; i < n; i++)
            to[i] = wf_f32_to_e5m2(NARROWED(y[i] * factor));
    else
        SIMD
        for (int64_t i = 0; i < n; i++)
            to[i] = (uint8_t)wf_f32_to_int8(NARROWED(y[i] * factor));
}

/* What a row's y is multiplied by: of int8, such that its largest becomes 127. */
static real row_factor(const struct layernorm_forward *p, int64_t row, struct stats s)
{
    const struct quantization *q = &p->quantize;
    int32_t                    bits = 0;
    if (q->kind != WF_INT8)
        return q->scale ? (real)*q->scale : 1;
    for (int64_t i = 0; i < p->cols; i += TILE) {
        real          y[TILE];
        const int64_t n = min64(TILE, p->cols - i);
        y_tile(p, row, i, n, s, y);
        const int32_t of_tile = largest_bits(n, y);
        bits = of_tile > bits ? of_tile : bits;
    }
    const float largest = wf_int8_largest(wf_float_from_bits((uint32_t)bits));
    if (q->row_scale)
        q->row_scale[row] = largest / 127;
    return (real)127 / (real)largest;
}

/* Columns [begin, end) of a row; factor: what y is multiplied by. Returns the bits of the largest |y|, where they are wanted. */
static int32_t quantize_columns(const struct layernorm_forward *p, int64_t row, int64_t begin, int64_t end, struct stats s,
                                real factor)
{
    uint8_t *to = (uint8_t *)p->y + row * p->y_stride;
    int32_t  largest = 0;
    for (int64_t i = begin; i < end; i += TILE) {
        real          y[TILE];
        const int64_t n = min64(TILE, end - i);
        y_tile(p, row, i, n, s, y);
        if (p->quantize.amax) {
            const int32_t of_tile = largest_bits(n, y);
            largest = of_tile > largest ? of_tile : largest;
        }
        narrow_tile(p->quantize.kind, n, y, factor, to + i);
    }
    return largest;
}

/* The running maximum while threads raise it. */
static int32_t amax_bits(float amax)
{
    return (int32_t)wf_bits_from_float(isnan(amax) ? fabsf(amax) : amax);
}

static void raise_amax(int32_t *amax, int32_t bits)
{
    int32_t old = __atomic_load_n(amax, __ATOMIC_RELAXED);
    while (bits > old && !__atomic_compare_exchange_n(amax, &old, bits, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        ;
}
