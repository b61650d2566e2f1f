/* common/activation.h in both arithmetic types, for the elements that a thread holds. */
#ifndef WELFORD_CUDA_ACTIVATIONS_CUH
#define WELFORD_CUDA_ACTIVATIONS_CUH

#include "cuda.h"

/* Everything that activation.h includes, so that its text can stand in two namespaces. */
#include "common/dtype.h"
#include "common/hd.h"
#define WF_REAL float
namespace single
{
#include "common/activation.h"
}
#undef WF_REAL
#undef WF_COMMON_ACTIVATION_H
#define WF_REAL double
namespace twice
{
#include "common/activation.h"
}
#undef WF_REAL

template <int KIND, int V> WF_ON_DEVICE void activate_as(bool derivative, float slope, float (&x)[V])
{
#pragma unroll
    for (int j = 0; j < V; j++)
        x[j] = derivative ? single::activation_derivative(KIND, slope, x[j]) : single::activation_value(KIND, slope, x[j]);
}

template <int KIND, int V> WF_ON_DEVICE void activate_as(bool derivative, double slope, double (&x)[V])
{
#pragma unroll
    for (int j = 0; j < V; j++)
        x[j] = derivative ? twice::activation_derivative(KIND, slope, x[j]) : twice::activation_value(KIND, slope, x[j]);
}

/* Each x becomes its activation, or that one's derivative. kind and derivative are the same for all threads. */
template <class R, int V> WF_ON_DEVICE void activate(int kind, bool derivative, R slope, R (&x)[V])
{
    switch (kind) {
    case WF_ACTIVATION_NONE: return;
    case WF_RELU: return activate_as<WF_RELU>(derivative, slope, x);
    case WF_LEAKY_RELU: return activate_as<WF_LEAKY_RELU>(derivative, slope, x);
    case WF_SILU: return activate_as<WF_SILU>(derivative, slope, x);
    case WF_GELU: return activate_as<WF_GELU>(derivative, slope, x);
    case WF_GELU_TANH: return activate_as<WF_GELU_TANH>(derivative, slope, x);
    }
}

#endif
