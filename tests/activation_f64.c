#define WF_REAL double
#include "../src/common/activation.h"

#include "activation_loops.h"

void activation_f64(int kind, bool derivative, double slope, int64_t n, const double *x, double *y)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = derivative ? activation_derivative(kind, (double)slope, x[i]) : activation_value(kind, (double)slope, x[i]);
}
