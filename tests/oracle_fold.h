/* oracle_fold.h - a weight and a bias with a norm folded into them: whose channel an element is, and what must come of it. */
#ifndef WELFORD_TESTS_ORACLE_FOLD_H
#define WELFORD_TESTS_ORACLE_FOLD_H

#include "oracle.h"

wf_dtype fold_bias_dtype(const Case *);
bool     fold_shape(Problem *); /* params, param, biases; false: the channels divide nothing */
void     fold_solve(const Problem *, Expected out[OUTPUT_COUNT]);

#endif
