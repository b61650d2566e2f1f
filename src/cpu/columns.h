/* Moments of several sets side by side: sets of equal counts, reduced in step, so that what is done once for each set is
 * done for a vector of them. */
#ifndef WELFORD_COLUMNS_H
#define WELFORD_COLUMNS_H

#include "tile.h"

struct columns {
    real    mean[COLUMNS], mean_lo[COLUMNS], m2[COLUMNS];
    int32_t scale[COLUMNS];
};

static inline struct moments column_get(const struct columns *s, int64_t j)
{
    return (struct moments){s->mean[j], s->mean_lo[j], s->m2[j], s->scale[j]};
}

static inline void column_set(struct columns *s, int64_t j, struct moments m)
{
    s->mean[j] = m.mean;
    s->mean_lo[j] = m.mean_lo;
    s->m2[j] = m.m2;
    s->scale[j] = m.scale;
}

static void columns_copy(struct columns *to, const struct columns *from, int64_t n)
{
    SIMD
    for (int64_t j = 0; j < n; j++)
        column_set(to, j, column_get(from, j));
}

/* a becomes the moments of a and b, for n columns. */
static void columns_merge(struct columns *a, int64_t a_count, const struct columns *b, int64_t b_count, int64_t n)
{
    struct columns out;
    real           b_share, weight;
    int32_t        special = 0;
    moments_weights(a_count, b_count, &b_share, &weight);
    _Pragma("omp simd reduction(| : special)")
    for (int64_t j = 0; j < n; j++) {
        bool plain;
        column_set(&out, j, moments_merge_plain(column_get(a, j), column_get(b, j), b_share, weight, &plain));
        special |= !plain;
    }
    for (int64_t j = 0; special && j < n; j++)
        column_set(&out, j, moments_merge(column_get(a, j), a_count, column_get(b, j), b_count));
    columns_copy(a, &out, n);
}

/* What one sweep about a guess found, for n columns of `count` values: sum d and sum d^2 with d = x - guess. far[j]: the
 * guess was too far from the mean for the squares to be told from it, or the squares left the range; sweep again. */
static bool columns_about(const real *guess, const real *sum, const real *squares, int64_t count, int64_t n,
                          struct columns *out, int32_t *far)
{
    int32_t any = 0;
    _Pragma("omp simd reduction(| : any)")
    for (int64_t j = 0; j < n; j++) {
        const real lo = sum[j] / (real)count, m2 = squares[j] - sum[j] * lo;
        moments_shift(guess[j], 0, lo, 1, &out->mean[j], &out->mean_lo[j]);
        out->m2[j] = m2;
        out->scale[j] = 0;
        far[j] = !((m2 >= squares[j] / 2) & moments_in_range(squares[j]));
        any |= far[j];
    }
    return any;
}

#endif
