/* run.h - executes a case through the public API, in buffers whose surroundings are watched, and judges the result.
 *
 * Every output is filled with NaN beforehand (with the old value where the call adds to it), gaps between strided rows and
 * the bytes around each buffer must stay as they were, inputs too; the workspace has exactly the size asked for and no
 * alignment. A backward pass is fed by the library's own forward pass. Texts returned are in static buffers. */
#ifndef WELFORD_TESTS_RUN_H
#define WELFORD_TESTS_RUN_H

#include "compare.h"

/* One output as the library wrote it, without gaps; OUT_MEAN_PAIR is mean_lo alone. bytes NULL: not asked for. */
typedef struct Raw { wf_dtype dtype; int64_t count; unsigned char *bytes; } Raw;

extern const char run_unsupported[]; /* returned by run_once where the library says WF_UNSUPPORTED */

/* One call of one variant (NULL: the library's choice). mean_given as oracle_solve() wants it, to be freed; may be NULL. */
const char *run_once(const Case *, const Problem *, const char *variant, Raw out[OUTPUT_COUNT], Quad **mean_given);
void        raw_free(Raw out[OUTPUT_COUNT]);
Quad       *raw_values(const Raw *); /* to be freed */
const char *raw_differs(const Case *, const Raw a[OUTPUT_COUNT], const Raw b[OUTPUT_COUNT], const char *what);

/* The library's choice against the oracle, then every variant that accepts the case (or the one it names) against the bits
 * of the library's choice on the CPU, against the oracle on CUDA. NULL or what failed. results may be NULL. */
const char *run_case(const Case *, Comparison results[OUTPUT_COUNT]);

/* Two cases whose outputs must have the same bits. */
const char *run_same_bits(const Case *, const Case *, const char *what);

enum { OFFSET_POINTED = 0x7fedcba9 };

/* The bare call: status of case c on buffers of any kind; workspace = where it is not enough is the library's to say. */
typedef struct Buffers {
    const void *x, *dy, *gamma, *beta, *running_mean_in, *running_var_in;
    void       *y, *mean, *rstd, *mean_lo, *running_mean_out, *running_var_out, *dx, *dgamma, *dbeta;
    const void *residual, *row_scale, *col_scale, *dsum;
    void       *sum, *dresidual; /* sum: backward an input */
    const void *bias; /* of a fold: x is the weight, y the folded one, mean and var are running_..._in */
    void       *folded_bias;
    const uint64_t *pointed; /* the sum's seed, and OFFSET_POINTED to add to its offset; NULL: given as they are */
    const void     *output;  /* y, where a backward pass has it in place of x */
    const float    *y_scale;
    float          *y_amax, *y_row_scale;
    const void     *scale, *shift; /* of a modulation */
    void           *dscale, *dshift;
} Buffers;
wf_status run_call(const Case *, const Buffers *, const wf_exec *);
size_t    run_workspace(const Case *);

#endif
