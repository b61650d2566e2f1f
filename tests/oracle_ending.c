#include "oracle_ending.h"

#include <math.h>
#include <quadmath.h>

#include "oracle_activation.h"

static double unit_roundoff(const Case *c) { return c->x == WF_F64 ? 0x1p-53 : 0x1p-24; }
static double tiny(const Case *c) { return least(stat_dtype(c->x)); }
static bool is_smooth(const Case *c) { return c->activation >= WF_SILU; }

/* What is left of values where z <= 0, of an activation with a corner. */
static Quad slope(const Case *c)
{
    return c->activation == WF_LEAKY_RELU ? round_to(stat_dtype(c->x), c->slope) : c->activation == WF_RELU ? 0 : 1;
}

static Quad cornered(const Case *c, Quad z, Quad value)
{
    return !(z <= 0) ? value : c->activation == WF_RELU ? 0 : value * slope(c);
}

Quad ending_value(const Case *c, Quad z)
{
    if (is_smooth(c) && !isinfq(z))
        return oracle_activation(c->activation, 0, z);
    return is_smooth(c) ? (z > 0 ? z : 0) : cornered(c, z, z); /* at Inf it has its limit */
}

static Quad derivative(const Case *c, Quad z, Quad *parts)
{
    *parts = z > 0;
    return isinfq(z) ? *parts : oracle_activation_derivative(c->activation, 0, z, parts);
}

/* The steepest of the smooth ones is GELU: 1.129. */
double ending_value_bar(const Case *c, Quad value, double z_bar)
{
    const double u = unit_roundoff(c), size = fabs((double)value);
    if (is_smooth(c))
        return 1.13 * z_bar + 5 * u * size + 2 * tiny(c);
    return fmax(1, fabs((double)slope(c))) * z_bar + (c->activation == WF_LEAKY_RELU ? u * size + tiny(c) : 0);
}

/* No second derivative is more than 0.8; where there is a corner, z may be on either side of it. */
Quad ending_gradient(const Case *c, Quad z, double z_bar, Quad dy, double *bar)
{
    const double u = unit_roundoff(c), size = fabs((double)dy);
    if (is_smooth(c)) {
        Quad parts;
        const Quad there = derivative(c, z, &parts);
        *bar = size * (0.8 * z_bar + 6 * u * (double)parts + u * fabs((double)there) + 2 * tiny(c)) + tiny(c);
        return dy * there;
    }
    *bar = (fabsq(z) <= z_bar ? fabs(1 - (double)slope(c)) * size : 0) +
           (c->activation == WF_LEAKY_RELU ? u * size * fabs((double)slope(c)) + tiny(c) : 0);
    return cornered(c, z, dy);
}
