/* Tiles: the layer that CPU kernels are written on. A tile is up to TILE values of the arithmetic type in a core's
 * first-level cache; dtypes exist only in load and store. Elementwise work is plain loops, which the compiler
 * vectorizes for each ISA; sums go through 32 virtual lanes, merged as a tree, so that their order is the same on all.
 *
 * | primitive                      | what it does                                                                      |
 * | load, store                    | a run of any dtype from and to memory; load gives memory itself where it can      |
 * | tile_sum, tile_moments         | reduce one tile                                                                   |
 * | run_moments                    | reduce a run of any length: tiles, merged as a tree                               |
 * | tree_split                     | where every tree here divides                                                     |
 * | row_sum_tree                   | sum of partial rows, element by element, as a tree                                |
 */
#ifndef WELFORD_TILE_H
#define WELFORD_TILE_H

#include "vector.h"

enum {
    TILE = 1024,
    LINE = 64,           /* bytes of the cache's lines */
    SWATH = 4 * LANES,   /* what a sweep adds as a tree before it meets a running sum, so that a large value among many
                            small ones costs few roundings */
    COLUMNS = 256,       /* of a tile of several rows */
    SEGMENT = 16 * TILE, /* of a long run: what one thread takes; TILE * 2^k, so that cutting changes no bits */
    SWEPT_ROWS = 4,      /* rows that are added as a tree before they meet a running sum */
};

/* What will be loaded soon. */
INLINE void fetch_pair(wf_dtype dtype, const char *at)
{
    for (int64_t i = 0; i < PAIR * size_of(dtype); i += LINE)
        __builtin_prefetch(at + i);
}

static inline int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static inline int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* ---- lanes ------------------------------------------------------------------------------------------------------ */

static inline struct lanes lanes_fill(real value)
{
    struct lanes l;
    for (int k = 0; k < VECTORS; k++)
        l.v[k] = (vector){0} + value;
    return l;
}

/* SWATH values of x from i: memory itself, or at the end of its n values a copy completed by fill. */
static inline const real *swath(const real *x, int64_t i, int64_t n, real fill, real *buffer)
{
    if (i + SWATH <= n)
        return x + i;
    for (int k = 0; k < SWATH; k++)
        buffer[k] = fill;
    memcpy(buffer, x + i, (size_t)(n - i) * sizeof(real));
    return buffer;
}

/* Vector k of the g-th LANES values of a swath. */
static inline vector swath_vector(const real *x, int g, int k)
{
    vector v;
    memcpy(&v, x + g * LANES + k * (int)(VECTOR_SIZE / sizeof(real)), sizeof v);
    return v;
}

/* ---- guesses ---------------------------------------------------------------------------------------------------- */

/* mean, cut to a multiple of an eighth of the spread or less, so that the deviations from it have as few bits as the values:
 * low bits that all of them shared would be rounded the same way again and again (16-bit values missed the bar by that). */
INLINE real coarse_guess(real mean, real spread)
{
    const real whole = REAL_SIZE == 8 ? 0x1.8p52 : 0x1.8p23f; /* added to less, it leaves the nearest integer */
    real_int   bits;
    real       power;
    memcpy(&bits, &spread, sizeof bits);
    bits &= REAL_SIZE == 8 ? (real_int)0x7ff0000000000000 : (real_int)0x7f800000;
    memcpy(&power, &bits, sizeof power);
    const real quantum = power / 8, count = mean / quantum;
    return count > -whole / 4 && count < whole / 4 ? ((count + whole) - whole) * quantum : mean;
}

/* ---- trees ------------------------------------------------------------------------------------------------------ */

/* The left part of n > leaf values: the largest leaf * 2^k below n. Cutting at any multiple of leaf * 2^k beforehand
 * leaves the tree, and so the bits, as they are. */
static inline int64_t tree_split(int64_t n, int64_t leaf)
{
    int64_t left = leaf;
    while (left * 2 < n)
        left *= 2;
    return left;
}

/* out[j] = sum of row[i * stride + j] over count >= 1 rows, n <= COLUMNS. */
static void row_sum_tree(const real *row, int64_t count, int64_t stride, int n, real *out)
{
    if (count == 1) {
        memcpy(out, row, (size_t)n * sizeof(real));
        return;
    }
    real          right[COLUMNS];
    const int64_t left = tree_split(count, 1);
    row_sum_tree(row, left, stride, n, out);
    row_sum_tree(row + left * stride, count - left, stride, n, right);
    SIMD
    for (int j = 0; j < n; j++)
        out[j] += right[j];
}

/* ---- load and store --------------------------------------------------------------------------------------------- */

INLINE void load_run(wf_dtype dtype, const char *from, int64_t n, real *to)
{
    int64_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH)
        vector_store(REAL_DTYPE, to + i, vector_load(dtype, from + i * size_of(dtype)));
    if (i < n)
        vector_store_part(REAL_DTYPE, to + i, n - i, vector_load_part(dtype, from + i * size_of(dtype), n - i));
}

/* data[index .. index + n) as reals: memory itself where it holds reals, else converted into buffer. */
static inline const real *load(const void *data, wf_dtype dtype, int64_t index, int64_t n, real *buffer)
{
    const void *from = at_element(data, dtype, index);
    if (is_real(dtype))
        return from;
    FOR_DTYPE(dtype, load_run, from, n, buffer);
    return buffer;
}

INLINE void store_values(wf_dtype dtype, char *to, const real *from, int64_t n)
{
    int64_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH)
        vector_store(dtype, to + i * size_of(dtype), vector_load(REAL_DTYPE, from + i));
    if (i < n)
        vector_store_part(dtype, to + i * size_of(dtype), n - i, vector_load_part(REAL_DTYPE, from + i, n - i));
}

/* [begin, end) of n values at `to` begins with a line and is a multiple of PAIR. */
static inline void whole_lines(const void *to, int64_t size, int64_t n, int64_t *begin, int64_t *end)
{
    *begin = min64((int64_t)(-(uintptr_t)to & (LINE - 1)) / size, n);
    *end = *begin + (n - *begin) / PAIR * PAIR;
}

/* With stream, whole lines go past the cache. */
INLINE void store_run(wf_dtype dtype, char *to, const real *from, int64_t n, bool stream)
{
    int64_t begin = 0, end = 0;
    if (stream)
        whole_lines(to, size_of(dtype), n, &begin, &end);
    store_values(dtype, to, from, begin);
    for (int64_t i = begin; i < end; i += WIDTH)
        vector_stream(dtype, to + i * size_of(dtype), vector_load(REAL_DTYPE, from + i));
    store_values(dtype, to + end * size_of(dtype), from + end, n - end);
}

/* n values of a tile, which may be where they belong. */
static void put(void *data, wf_dtype dtype, int64_t index, const real *from, int64_t n, bool stream)
{
    char *to = at_element(data, dtype, index);
    if (is_real(dtype) && !stream)
        memmove(to, from, (size_t)n * sizeof(real));
    else
        FOR_DTYPE(dtype, store_run, to, from, n, stream);
}

INLINE struct pair tile_pair(const real *tile, int64_t i, int64_t n)
{
    return pair_load_part(REAL_DTYPE, REAL_DTYPE, (const char *)(tile + i), n);
}

static inline void store(void *data, wf_dtype dtype, int64_t index, const real *from, int64_t n, bool stream)
{
    if (!is_real(dtype) || stream) /* else it is there already */
        FOR_DTYPE(dtype, store_run, at_element(data, dtype, index), from, n, stream);
}

static inline void fill(real *to, int64_t n, real value)
{
    for (int64_t i = 0; i < n; i++)
        to[i] = value;
}

/* n <= TILE values of an optional parameter. */
static inline const real *load_parameter(const void *data, wf_dtype dtype, int64_t index, int64_t n, real fallback,
                                         real *buffer)
{
    if (data)
        return load(data, dtype, index, n, buffer);
    fill(buffer, n, fallback);
    return buffer;
}

/* One value of an optional parameter or statistic. */
static inline real load_one(const void *data, wf_dtype dtype, int64_t index, real fallback)
{
    real buffer[1];
    return data ? *load(data, dtype, index, 1, buffer) : fallback;
}

/* A parameter's gradient, rounded once: old value (or 0) + sum. */
static inline void store_gradient(void *data, wf_dtype dtype, int64_t index, int64_t n, bool accumulate, const real *sum)
{
    real        old_buffer[TILE], out[TILE];
    const real *old = accumulate ? load(data, dtype, index, n, old_buffer) : NULL;
    SIMD
    for (int64_t i = 0; i < n; i++)
        out[i] = old ? old[i] + sum[i] : sum[i];
    if (is_real(dtype))
        memcpy((char *)(uintptr_t)at_element(data, dtype, index), out, (size_t)n * sizeof(real));
    else
        store(data, dtype, index, out, n, false);
}

/* ---- reductions ------------------------------------------------------------------------------------------------- */

/* sum x - shift; exactly 0 if all are shift. */
static real tile_sum(const real *x, int64_t n, real shift)
{
    struct lanes sum = lanes_fill(0);
    real         buffer[SWATH];
    for (int64_t i = 0; i < n; i += SWATH) {
        const real *part = swath(x, i, n, shift, buffer);
        for (int k = 0; k < VECTORS; k++)
            sum.v[k] += ((swath_vector(part, 0, k) - shift) + (swath_vector(part, 1, k) - shift)) +
                        ((swath_vector(part, 2, k) - shift) + (swath_vector(part, 3, k) - shift));
    }
    return lanes_sum(sum);
}

/* sum d and sum d^2 with d = x - center. */
static void tile_squares(const real *x, int64_t n, real center, real *sum, real *squares)
{
    struct lanes s1 = lanes_fill(0), s2 = lanes_fill(0);
    real         buffer[SWATH];
    for (int64_t i = 0; i < n; i += SWATH) {
        const real *part = swath(x, i, n, center, buffer);
        for (int k = 0; k < VECTORS; k++) {
            const vector a = swath_vector(part, 0, k) - center, b = swath_vector(part, 1, k) - center;
            const vector c = swath_vector(part, 2, k) - center, d = swath_vector(part, 3, k) - center;
            s1.v[k] += (a + b) + (c + d);
            s2.v[k] += (a * a + b * b) + (c * c + d * d);
        }
    }
    *sum = lanes_sum(s1);
    *squares = lanes_sum(s2);
}

/* What a set is normalized with. */
struct stats {
    real mean, mean_lo, rstd;
};

/* Squares that left the range: the same with d brought near 1 by a power of two. */
__attribute__((noinline, cold)) static void tile_squares_scaled(const real *x, int64_t n, real center, real *sum,
                                                                real *squares, int32_t *scale)
{
    real largest = 0, scaled[TILE];
    for (int64_t i = 0; i < n; i++) {
        const real d = x[i] - center, size = d < 0 ? -d : d;
        if (!isfinite(d))
            return; /* the plain sum says so already */
        largest = size > largest ? size : largest;
    }
    if (largest == 0)
        return;
    *scale = moments_exponent(largest);
    for (int64_t i = 0; i < n; i++)
        scaled[i] = (real)ldexp((double)(x[i] - center), -*scale);
    tile_squares(scaled, n, 0, sum, squares);
}

/* 1 / sqrt(variance with its eps), 0 where that would divide by zero. */
static inline double inverse_root(double variance)
{
    return variance == 0 ? 0 : 1 / sqrt(variance);
}

/* As moments_rstd, but rounded once: what is lost before has the rest of the bar. eps is a real, so that the result is one. */
static inline real rstd_of(struct moments m, int64_t count, real eps)
{
    const double scaled_eps = m.scale == 0 ? (double)eps : ldexp((double)eps, -2 * m.scale);
    if (count == 0)
        return 0;
    if (!isfinite(scaled_eps)) /* it is all there is */
        return (real)inverse_root((double)eps);
    const double rstd = inverse_root((double)m.m2 / (double)count + scaled_eps);
    return (real)(m.scale == 0 ? rstd : ldexp(rstd, -m.scale));
}

/* The moments of n values whose deviations from `center` sum to `sum`, their squares to `squares`, both scaled. */
static inline struct moments moments_about(real center, real sum, real squares, int32_t scale, int64_t n)
{
    const real     lo = sum / (real)n, m2 = squares - sum * lo;
    struct moments m = {0, 0, m2 < 0 ? 0 : m2, scale};
    moments_shift(center, 0, scale ? (real)ldexp((double)lo, scale) : lo, 1, &m.mean, &m.mean_lo);
    return m;
}

/* Two sweeps. The first mean is rough (its sum, from the first value, is exact only for constant data); the second
 * sweep's sum of deviations corrects it. */
static struct moments tile_moments(const real *x, int64_t n)
{
    const real center = x[0] + tile_sum(x, n, x[0]) / (real)n;
    real       sum, squares;
    int32_t    scale = 0;
    tile_squares(x, n, center, &sum, &squares);
    if (!moments_in_range(squares))
        tile_squares_scaled(x, n, center, &sum, &squares, &scale);
    return moments_about(center, sum, squares, scale, n);
}

/* n > 0 values from data[index]: tiles, merged as a tree. */
static struct moments run_moments(const void *data, wf_dtype dtype, int64_t index, int64_t n)
{
    if (n <= TILE) {
        real buffer[TILE];
        return tile_moments(load(data, dtype, index, n, buffer), n);
    }
    const int64_t        left = tree_split(n, TILE);
    const struct moments a = run_moments(data, dtype, index, left);
    const struct moments b = run_moments(data, dtype, index + left, n - left);
    return moments_merge(a, left, b, n - left);
}

/* Records of consecutive parts of a set: all of part_count values but the last, of count in total. */
static struct moments moments_tree(const struct moments *part, int64_t part_count, int64_t count)
{
    if (count <= part_count)
        return *part;
    const int64_t left = tree_split(count, part_count);
    return moments_merge(moments_tree(part, part_count, left), left,
                         moments_tree(part + left / part_count, part_count, count - left), count - left);
}

#endif
