/* reference_ending.c - what the channel norms end in, as tests/oracle_ending.c has it, in long double. z is no Inf here. */
#include <math.h>

#include "bench.h"
#include "data.h"

static bool is_smooth(const Case *c) { return c->activation >= WF_SILU; }

/* What is left of values where z <= 0, of an activation with a corner. */
static Real slope(const Case *c)
{
    const Real given = c->x == WF_F64 ? (Real)c->slope : (Real)(float)c->slope;
    return c->activation == WF_LEAKY_RELU ? given : c->activation == WF_RELU ? 0 : 1;
}

/* activation(z) = z S(z) of a smooth one. */
typedef struct Share { Real s, derivative; } Share;
static Share share_of(const Case *c, Real z)
{
    if (c->activation == WF_GELU)
        return (Share){ 0.5L * erfcl(-z * 0.70710678118654752440L), 0.39894228040143267794L * expl(-z * z / 2) };
    const Real k = 1.59576912160573071176L; /* sqrt(8 / pi): tanh is a sigmoid of twice as much */
    const bool by_tanh = c->activation == WF_GELU_TANH;
    const Real v = by_tanh ? k * (z + 0.044715L * z * z * z) : z, s = 1 / (1 + expl(-v));
    return (Share){ s, s / (1 + expl(v)) * (by_tanh ? k * (1 + 3 * 0.044715L * z * z) : 1) };
}

About ending_value_about(const Case *c, About z)
{
    const double u = c->x == WF_F64 ? 0x1p-53 : 0x1p-24;
    const Real value = is_smooth(c) ? z.value * share_of(c, z.value).s : z.value > 0 ? z.value : z.value * slope(c);
    const double rounding = c->activation <= WF_RELU ? 0 : (is_smooth(c) ? 5 : 1) * u * fabs((double)value);
    return (About){ value, (is_smooth(c) ? 1.13 : fmax(1, fabs((double)slope(c)))) * z.bar + rounding };
}

About ending_gradient_about(const Case *c, About z, double dy)
{
    const double u = c->x == WF_F64 ? 0x1p-53 : 0x1p-24, size = fabs(dy);
    if (is_smooth(c)) {
        const Share s = share_of(c, z.value);
        const Real of_slope = z.value * s.derivative;
        const double parts = (double)(s.s + fabsl(of_slope)), sum = fabs((double)(s.s + of_slope));
        return (About){ dy * (s.s + of_slope), size * (0.8 * z.bar + 6 * u * parts + u * sum) };
    }
    const double left = fabs((double)slope(c)), jump = fabsl(z.value) <= z.bar ? fabs(1 - (double)slope(c)) * size : 0;
    return (About){ z.value > 0 ? dy : dy * slope(c), jump + (c->activation == WF_LEAKY_RELU ? u * size * left : 0) };
}
