/* loops.h - elementwise loops between calls, as a caller writes them: one pass over memory, threads by OpenMP, vectors by the
 * compiler. */
#ifndef WELFORD_BENCH_LOOPS_H
#define WELFORD_BENCH_LOOPS_H

#include <stdbool.h>

#include "welford.h"

/* out[r][j] = a[r][j] * row_scale[r] * col_scale[j] + b[r][j]; those that are NULL take no part. */
typedef struct ScaledSum {
    wf_dtype     dtype, scale_dtype; /* of a, b, out; of col_scale */
    int64_t      rows, cols;
    const void  *a, *b, *col_scale;
    const float *row_scale;
    void        *out;
} ScaledSum;

/* out = activation(a + b); with dy, dy * activation'(a). Modulated, a * (offset + scale[i]) + shift[i] stands for a: a is rows of
 * cols elements, and i is the row or, in samples of `share` rows, sample * cols + column. */
typedef struct Activated {
    wf_dtype      dtype; /* of all */
    wf_activation kind;
    float         slope;
    int64_t       count;
    const void   *a, *b, *dy; /* b NULL = 0 */
    void         *out;
    wf_dtype      scale_dtype; /* of scale and shift */
    float         offset;
    int64_t       cols, share; /* share 0: i is the row; where neither scale nor shift is given cols does not count */
    const void   *scale, *shift; /* NULL: times 1, plus 0 */
} Activated;

#ifdef __cplusplus
extern "C" {
#endif
bool loops_take(wf_dtype); /* f64 is not for them, nor f16 where the processor does not convert it */
void scaled_sum(const ScaledSum *, int threads);
void scaled_sum_cuda(const ScaledSum *, struct CUstream_st *); /* tensors on the device, aligned to 16 bytes */
void activated(const Activated *, int threads);
void activated_cuda(const Activated *, struct CUstream_st *);
#ifdef __cplusplus
}
#endif

#endif
