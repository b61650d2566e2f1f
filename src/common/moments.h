/* moments.h - mean and sum of squared deviations of a set of values, merged by Chan, Golub and LeVeque's formula
 * ("Algorithms for computing the sample variance", 1983).
 *
 * The mean is a pair, mean + mean_lo, rounded so that |mean_lo| is at most half a unit in the last place of mean: rounding
 * the mean to one float is the largest error of a normalization whose input lies far from zero. The sum of squares is
 * m2 * 4^scale: scale is 0 unless the squares would overflow or lose digits below the normal range.
 *
 * real is the arithmetic type. A set is merged with its right neighbor, over a tree that depends on the count alone. */
#ifndef WF_COMMON_MOMENTS_H
#define WF_COMMON_MOMENTS_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>

#include "hd.h"

#ifndef WF_REAL
#error "define WF_REAL, the arithmetic type"
#endif
typedef WF_REAL real;

struct moments {
    real    mean, mean_lo, m2;
    int32_t scale;
};

/* A plain sum of squares in this range is finite, and what underflowed in it is below its rounding error. */
WF_HD bool moments_in_range(real m2)
{
    return sizeof(real) == 4 ? m2 >= (real)0x1p-90 && m2 <= (real)0x1p120 : m2 >= (real)0x1p-900 && m2 <= (real)0x1p1000;
}

/* The power of two at or below |x|; x finite, not 0. */
WF_HD int32_t moments_exponent(real x)
{
    int e;
    (void)frexp((double)x, &e);
    return e - 1;
}

/* a + b = sum + lo, |lo| at most half a unit in the last place of sum: exact whichever addend is larger (Knuth). */
WF_HD void moments_two_sum(real a, real b, real *sum, real *lo)
{
    const real s = a + b, from_b = s - a;
    *sum = s;
    *lo = (a - (s - from_b)) + (b - from_b);
}

/* a + delta * share as a pair. */
WF_HD void moments_shift(real a, real a_lo, real delta, real share, real *mean, real *mean_lo)
{
    moments_two_sum(a, a_lo + delta * share, mean, mean_lo);
}

/* The merge where nothing is scaled; straight-line code, so that a loop over columns vectorizes. *plain: the result
 * holds; else call moments_merge. */
WF_HD struct moments moments_merge_plain(struct moments a, struct moments b, real b_share, real weight, bool *plain)
{
    struct moments m;
    const real     delta = (b.mean - a.mean) + (b.mean_lo - a.mean_lo);
    moments_shift(a.mean, a.mean_lo, delta, b_share, &m.mean, &m.mean_lo);
    m.m2 = (a.m2 + b.m2) + delta * delta * weight;
    m.scale = 0;
    *plain = ((a.scale | b.scale) == 0) & (moments_in_range(m.m2) | ((m.m2 == 0) & (delta == 0)));
    return m;
}

/* What b weighs in a merge: its share of the values, and the factor of delta^2. */
WF_HD void moments_weights(int64_t a_count, int64_t b_count, real *b_share, real *weight)
{
    *b_share = (real)b_count / (real)(a_count + b_count);
    *weight = (real)a_count * *b_share;
}

WF_HD struct moments moments_merge(struct moments a, int64_t a_count, struct moments b, int64_t b_count)
{
    real b_share, weight;
    bool plain;
    moments_weights(a_count, b_count, &b_share, &weight);
    struct moments m = moments_merge_plain(a, b, b_share, weight, &plain);
    const real     delta = (b.mean - a.mean) + (b.mean_lo - a.mean_lo);
    if (plain || !isfinite(a.m2) || !isfinite(b.m2) || !isfinite(delta))
        return m;
    /* Bring the three terms to the largest one's scale. */
    const real    part[3] = {a.m2, b.m2, delta};
    const int32_t part_scale[3] = {a.scale, b.scale, 0};
    bool          any = false;
    for (int i = 0; i < 3; i++) {
        if (part[i] == 0)
            continue;
        const int32_t e = moments_exponent(part[i]);
        const int32_t scale = i < 2 ? part_scale[i] + e / 2 : e + moments_exponent(weight) / 2;
        m.scale = any && m.scale > scale ? m.scale : scale;
        any = true;
    }
    const real d = (real)ldexp((double)delta, -m.scale);
    m.m2 = ((real)ldexp((double)a.m2, 2 * (a.scale - m.scale)) + (real)ldexp((double)b.m2, 2 * (b.scale - m.scale))) +
           d * d * weight;
    return m;
}

/* The variance of count values, or of count - 1 degrees of freedom. */
WF_HD real moments_variance(struct moments m, int64_t count)
{
    return (real)ldexp((double)(m.m2 / (real)count), 2 * m.scale);
}

/* 1 / sqrt(m2 / count + eps); 0 where that would divide by zero or count = 0. */
WF_HD real moments_rstd(struct moments m, int64_t count, real eps)
{
    if (count == 0)
        return 0;
    real variance = m.m2 / (real)count;
    if (m.scale != 0) {
        const real scaled_eps = (real)ldexp((double)eps, -2 * m.scale);
        if (isfinite(scaled_eps))
            return (real)ldexp((double)(1 / (real)sqrt((double)(variance + scaled_eps))), -m.scale);
        variance = 0; /* eps is all there is */
    }
    variance += eps;
    return variance == 0 ? 0 : 1 / (sizeof(real) == 4 ? (real)sqrtf((float)variance) : (real)sqrt((double)variance));
}

#endif
