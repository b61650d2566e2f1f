/* activation_loops.h - src/common/activation.h in loops, as kernels have it, in both arithmetic types. */
#ifndef WELFORD_TESTS_ACTIVATION_LOOPS_H
#define WELFORD_TESTS_ACTIVATION_LOOPS_H

#include <stdbool.h>
#include <stdint.h>

void activation_f32(int kind, bool derivative, double slope, int64_t n, const float *x, float *y);
void activation_f64(int kind, bool derivative, double slope, int64_t n, const double *x, double *y);

#endif
