/* oracle.h - what every output of a case must be, in __float128 from the formulas, and how far off it may be.
 *
 * Written from the definitions of the operations alone; shares nothing with the library. The inputs are the rounded
 * ones, so the only errors the bars leave room for are the library's own. */
#ifndef WELFORD_TESTS_ORACLE_H
#define WELFORD_TESTS_ORACLE_H

#include "data.h"

typedef enum Output {
    OUT_Y, OUT_MEAN, OUT_MEAN_PAIR /* mean + mean_lo */, OUT_RSTD, OUT_RUNNING_MEAN, OUT_RUNNING_VAR,
    OUT_DX, OUT_DGAMMA, OUT_DBETA, OUT_SUM, OUT_DRESIDUAL, OUT_FOLDED_BIAS,
    OUT_AMAX, OUT_ROW_SCALE, OUT_DSCALE, OUT_DSHIFT,
    OUTPUT_COUNT
} Output;

/* NaN in value: anything not finite. Inf in bar: nothing is promised. */
typedef struct Expected {
    int64_t  count; /* 0 with value NULL: the case has no such output */
    Quad    *value;
    double  *bar; /* without the rounding to the output's dtype */
    wf_dtype dtype;
    bool     rounded; /* the bar has half an ulp of the dtype on top */
} Expected;

typedef struct Statistics { Quad *mean, *var, *rstd; } Statistics; /* [slots]; var of the data, without eps */

/* mean_given: the mean that a backward pass is handed as [slots] where it gets no mean_lo, else NULL. Whatever xhat is
 * then off is the interface's doing, not the backward pass's: its formulas hold with the mean it was given. */
void oracle_solve(const Problem *, const Quad *mean_given, Expected out[OUTPUT_COUNT]);
void oracle_free(Expected out[OUTPUT_COUNT]);
Expected oracle_expected(int64_t count, wf_dtype dtype, bool rounded); /* zeros */

/* The forward function alone, for derivatives by differences: y [count] of x, gamma, beta. */
void oracle_forward(const Problem *, const Quad *x, const Quad *gamma, const Quad *beta, Quad *y);

const char *output_name(Output);

#endif
