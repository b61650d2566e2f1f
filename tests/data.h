/* data.h - the numbers of a case: shape, groups of elements that share statistics, inputs rounded to their dtypes.
 *
 * Everything here is logical: elements are counted without strides, in the order in which the API lays them out
 * (row by row; for channels as `layout` says). Conversions are this folder's own, independent of the library's. */
#ifndef WELFORD_TESTS_DATA_H
#define WELFORD_TESTS_DATA_H

#include "case.h"

typedef __float128 Quad;

/* Dtypes that only a quantised y has. */
#define E4M3 ((wf_dtype)(WF_F64 + WF_E4M3))
#define E5M2 ((wf_dtype)(WF_F64 + WF_E5M2))
#define INT8 ((wf_dtype)(WF_F64 + WF_INT8))
enum { DTYPE_COUNT = WF_F64 + WF_INT8 + 1 };

/* Floating-point formats by dtype: precision in bits (hidden one included) and least normal exponent. */
size_t   dtype_size(wf_dtype);
wf_dtype stat_dtype(wf_dtype x); /* of statistics: f32, f64 for f64 */
Quad     round_to(wf_dtype, Quad); /* to nearest, ties to even; Inf beyond the largest */
double   ulp_at(wf_dtype, double); /* distance of neighbours in the binade of a value */
double   least(wf_dtype); /* the smallest positive value */
void     dtype_store(wf_dtype, void *array, int64_t i, Quad value); /* rounds */
double   dtype_load(wf_dtype, const void *array, int64_t i);

/* Element i belongs to statistics slot[i] (row, group, instance or channel) and parameter param[i] (column or channel). */
typedef struct Problem {
    const Case *c;
    int64_t  count, slots, params;
    int64_t  per_slot, per_param; /* elements of each */
    int32_t *slot, *param;
    Quad    *x, *dy; /* [count]; x: what is normalized */
    Quad    *branch, *residual, *factor; /* [count], where x is a sum (oracle_sum.h), or else y; NULL */
    Quad    *row_scale, *col_scale, *dsum;
    Quad    *output; /* [count], y as forward stored it, where a backward pass has it in place of x; else NULL */
    Quad    *bias; /* of a fold (oracle_fold.h): x is the weight; NULL where the case has none */
    int64_t  biases;
    int64_t  pairs; /* of sample and channel, where norms are modulated; else 0 */
    int32_t *pair; /* that element i belongs to */
    Quad    *scale, *shift; /* [pairs]; NULL */
    Quad    *gamma, *beta; /* [params]; NULL where the case has none */
    Quad    *old_dgamma, *old_dbeta; /* [params], what dgamma and dbeta hold before the call */
    Quad    *running_mean, *running_var; /* [params] */
} Problem;

/* Slots are channels for BatchNorm and wherever running statistics are used; else rows, groups, instances.
 *
 * data=     x
 * normal    N(0, 1), as dy always is
 * offset    mean 1e4, sd 1e-2 (16-bit: 16, 1)
 * ratio6    mean / sd just below 1e6
 * constant  one value per slot
 * subnormal below the least normal value of the dtype
 * huge18    up to 1e18 in magnitude (f16: 6e4)
 * huge30    up to 1e30 (f16: 6e4) in every second slot, N(0, 1) in the others
 * nanrow    a NaN somewhere in the middle slot; infrow an infinity
 * outlier   N(0, 1), but 1e6 (f16: 6e4) first in every slot
 * exactsum  pairs x, 2m - x of few bits: the mean of a slot is m exactly
 * ones      1
 * tiny      sd 1e-20 and 1e-30 in turns (f16: 2^-10, 2^-12)
 * big       magnitudes 2^58 to 2^59 (f16: 2^14 to 2^15)
 * opposite  offset, of the other sign in half of the samples: instances' means cancel
 */
Problem *problem_new(const Case *); /* NULL: the case's sizes make none (negative, groups do not divide c) */
void     problem_free(Problem *);

/* n values of N(mean, sd) rounded to a dtype; every value positive where mean > 0 and sd < 0. To be freed. */
Quad *normals(wf_dtype, int64_t n, double mean, double sd, uint64_t seed);

/* A small generator for tests' own choices. */
uint64_t random_bits(uint64_t *state);
int64_t  random_below(uint64_t *state, int64_t n);

#endif
