/* oracle_sum.h - norms of a sum: sum = residual + x * keep / (1 - p) * row_scale * col_scale, rounded step by step as welford.h
 * says, so that there is one right answer; and the gradients of it. From the formulas alone, as oracle.h. */
#ifndef WELFORD_TESTS_ORACLE_SUM_H
#define WELFORD_TESTS_ORACLE_SUM_H

#include "oracle.h"

/* Makes p->x, which was the branch's x, the sum. */
void addition_new(Problem *);
/* The sum again, of parts that have changed. */
void addition_make(Problem *);

/* out[OUT_SUM] */
void addition_forward(const Problem *, Expected out[OUTPUT_COUNT]);

/* out[OUT_DX] is that of the norm; it becomes that of x, and out[OUT_DRESIDUAL] is made. */
void addition_backward(const Problem *, Expected out[OUTPUT_COUNT]);

#endif
