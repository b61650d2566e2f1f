#include "oracle_activation.h"

#include <quadmath.h>

static const Quad CUBE = 0.044715Q, SQRT_2_OVER_PI = 0.797884560802865355879892119868763737Q;

/* The share S of x that an activation keeps: x S(x). */
static Quad share(wf_activation kind, Quad slope, Quad x)
{
    switch (kind) {
    case WF_RELU:
        return x > 0;
    case WF_LEAKY_RELU:
        return x > 0 ? 1 : slope;
    case WF_SILU:
        return 1 / (1 + expq(-x));
    case WF_GELU:
        return erfcq(-x * M_SQRT1_2q) / 2;
    case WF_GELU_TANH: /* 1 + tanh z, which cancels far below 0 */
        return 1 / (1 + expq(-2 * SQRT_2_OVER_PI * (x + CUBE * x * x * x)));
    default:
        return 1;
    }
}

/* S' */
static Quad share_slope(wf_activation kind, Quad x)
{
    switch (kind) {
    case WF_SILU:
        return 1 / ((1 + expq(-x)) * (1 + expq(x)));
    case WF_GELU:
        return expq(-x * x / 2) * M_2_SQRTPIq * M_SQRT1_2q / 2;
    case WF_GELU_TANH: {
        const Quad v = 2 * SQRT_2_OVER_PI * (x + CUBE * x * x * x);
        return 2 * SQRT_2_OVER_PI * (1 + 3 * CUBE * x * x) / ((1 + expq(-v)) * (1 + expq(v)));
    }
    default:
        return 0;
    }
}

static Quad times(Quad x, Quad factor) /* at Inf the limit */
{
    return factor == 0 && !isnanq(x) ? 0 : x * factor;
}

Quad oracle_activation(wf_activation kind, Quad slope, Quad x)
{
    return times(x, share(kind, slope, x));
}

Quad oracle_activation_derivative(wf_activation kind, Quad slope, Quad x, Quad *size)
{
    const Quad s = share(kind, slope, x), change = times(x, isinfq(x) ? 0 : share_slope(kind, x));
    *size = fabsq(s) + fabsq(change);
    return s + change;
}
