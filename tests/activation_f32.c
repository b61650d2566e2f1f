#define WF_REAL float
#include "../src/common/activation.h"

#include "activation_loops.h"

void activation_f32(int kind, bool derivative, double slope, int64_t n, const float *x, float *y)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = derivative ? activation_derivative(kind, (float)slope, x[i]) : activation_value(kind, (float)slope, x[i]);
}
