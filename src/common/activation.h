/* activation.h - ReLU, leaky ReLU, SiLU and GELU, and their derivatives.
 *
 * Of correctly rounded operations alone (+ - * / and bits): no libm, no table, no branch, no fused product. So a loop
 * over them vectorizes, and C, CUDA and every ISA give the same bits. NaN stays NaN, but in the
 * slopes of ReLU; at Inf a function has its limit.
 * Errors, in units of u = 2^-24 (2^-53 in double), tails included: 4 u of the result, GELU's 5; of a derivative, S + x S'
 * where the function is x S, 5 u (|S| + |x S'|), for one part may cancel the other (6 in GELU by tanh); two units in the
 * last place where a result is below the normal range.
 *
 * WF_REAL is the arithmetic type. The negative tails are products with an exponential, e^v = (1 + more) 2^k: 2^k comes
 * last, in two factors, so that nothing is lost to underflow before the result is. */
#ifndef WF_COMMON_ACTIVATION_H
#define WF_COMMON_ACTIVATION_H

#include <stdint.h>

#include "dtype.h"
#include "hd.h"

#ifndef WF_REAL
#error "define WF_REAL, the arithmetic type"
#endif

#define ACTIVATION_F32 (sizeof(WF_REAL) == 4)

WF_HD_INLINE WF_REAL activation_abs(WF_REAL x)
{
    return ACTIVATION_F32 ? (WF_REAL)wf_float_from_bits(wf_bits_from_float((float)x) & 0x7fffffffu)
                          : (WF_REAL)wf_double_from_bits(wf_bits_from_double((double)x) & ~((uint64_t)1 << 63));
}

/* Is x's sign bit set, then a, else b: by bits, for of a comparison the compiler would make two paths. */
WF_HD_INLINE WF_REAL activation_if_negative(WF_REAL x, WF_REAL a, WF_REAL b)
{
    if (ACTIVATION_F32) {
        const uint32_t mask = 0u - (wf_bits_from_float((float)x) >> 31);
        const uint32_t set = wf_bits_from_float((float)a), clear = wf_bits_from_float((float)b);
        return (WF_REAL)wf_float_from_bits((set & mask) | (clear & ~mask));
    }
    const uint64_t mask = (uint64_t)0 - (wf_bits_from_double((double)x) >> 63);
    const uint64_t set = wf_bits_from_double((double)a), clear = wf_bits_from_double((double)b);
    return (WF_REAL)wf_double_from_bits((set & mask) | (clear & ~mask));
}

/* x's upper half: a product of two such is exact. */
WF_HD_INLINE WF_REAL activation_upper(WF_REAL x)
{
    return ACTIVATION_F32 ? (WF_REAL)wf_float_from_bits(wf_bits_from_float((float)x) & 0xfffff000u)
                          : (WF_REAL)wf_double_from_bits(wf_bits_from_double((double)x) & ~(uint64_t)0x7ffffff);
}

/* c[0] + c[1] x + ... c[degree] x^degree. */
WF_HD_INLINE WF_REAL activation_polynomial(WF_REAL x, const double *c, int degree)
{
    WF_REAL sum = (WF_REAL)c[degree];
    WF_UNROLL
    for (int i = degree - 1; i >= 0; i--)
        sum = sum * x + (WF_REAL)c[i];
    return sum;
}

/* ---- e^v -------------------------------------------------------------------------------------------------------- */

/* (1 + more) * first * second, more in [-0.3, 0.42]: x + x * more is within 1.3 u of x (1 + more). */
struct activation_power {
    WF_REAL more, first, second;
};

/* 2^k in two factors, each a normal number: k = shifted - 1.5 * 2^23 (2^52), from -2 to 0 times 126 (1022). */
WF_HD_INLINE void activation_scale(WF_REAL shifted, struct activation_power *p)
{
    if (ACTIVATION_F32) {
        const uint32_t k = wf_bits_from_float((float)shifted) - wf_bits_from_float(0x1.8p23f) + 256, half = k >> 1;
        p->first = (WF_REAL)wf_float_from_bits((half - 1) << 23);
        p->second = (WF_REAL)wf_float_from_bits((k - half - 1) << 23);
    } else {
        const uint64_t k = wf_bits_from_double((double)shifted) - wf_bits_from_double(0x1.8p52) + 2048, half = k >> 1;
        p->first = (WF_REAL)wf_double_from_bits((half - 1) << 52);
        p->second = (WF_REAL)wf_double_from_bits((k - half - 1) << 52);
    }
}

/* e^(v + v_lo), v from -128 (-800) to 0: v = k ln 2 + r, and e^r = 1 + r + r^2 q(r). */
WF_HD_INLINE struct activation_power activation_exp(WF_REAL v, WF_REAL v_lo)
{
    const double q32[] = {0x1.fffffcp-2, 0x1.55549p-3, 0x1.5558fcp-5, 0x1.123b9ap-7, 0x1.6a218ep-10};
    const double q64[] = {0x1.000000000000ap-1,  0x1.55555555554f6p-3,  0x1.55555555506d9p-5,  0x1.111111112884fp-7,
                          0x1.6c16c1848f5cap-10, 0x1.a01a012701c17p-13, 0x1.a01998e5267ffp-16, 0x1.71df2ab916027p-19,
                          0x1.28ae935aae590p-22, 0x1.ad7a2fcd10dc4p-26};
    struct activation_power p;
    const WF_REAL magic = (WF_REAL)(ACTIVATION_F32 ? 0x1.8p23 : 0x1.8p52);
    const WF_REAL shifted = v * (WF_REAL)0x1.71547652b82fep0 + magic, k = shifted - magic;
    /* k ln 2 in two parts, of which the product with the first is exact. */
    const WF_REAL high = v - k * (WF_REAL)(ACTIVATION_F32 ? 0x1.62e4p-1 : 0x1.62e42feep-1);
    const WF_REAL low = v_lo - k * (WF_REAL)(ACTIVATION_F32 ? 0x1.7f7d1cp-20 : 0x1.a39ef35793c76p-33);
    const WF_REAL r = high + low, r_lo = low - (r - high);
    const WF_REAL q = ACTIVATION_F32 ? activation_polynomial(r, q32, 4) : activation_polynomial(r, q64, 9);
    p.more = r + (r * r * q + r_lo);
    activation_scale(shifted, &p);
    return p;
}

/* ---- x sigmoid(v) ----------------------------------------------------------------------------------------------- */

/* What is beyond a limit has the same result: e^v is 0 beside 1, and x e^v is 0. */
WF_HD_INLINE WF_REAL activation_at_least(WF_REAL x, WF_REAL limit) { return x < limit ? limit : x; }
WF_HD_INLINE WF_REAL activation_at_most(WF_REAL x, WF_REAL limit) { return x > limit ? limit : x; }

/* x / (1 + e^-v): v has x's sign, |v| <= 128 (800), and x >= -that. */
WF_HD_INLINE WF_REAL activation_times_sigmoid(WF_REAL x, WF_REAL v, WF_REAL v_lo)
{
    const struct activation_power p = activation_exp(-activation_abs(v), activation_if_negative(v, v_lo, -v_lo));
    const WF_REAL sum = 1 + (1 + p.more) * p.first * p.second;
    return activation_if_negative(v, x + x * p.more, x) / sum * activation_if_negative(v, p.first, 1) *
           activation_if_negative(v, p.second, 1);
}

/* Its derivative, slope being v's. */
WF_HD_INLINE WF_REAL activation_sigmoid_slope(WF_REAL x, WF_REAL v, WF_REAL v_lo, WF_REAL slope)
{
    const struct activation_power p = activation_exp(-activation_abs(v), activation_if_negative(v, v_lo, -v_lo));
    const WF_REAL t = (1 + p.more) * p.first * p.second, sum = 1 + t;
    const WF_REAL other = activation_if_negative(v, 1, t) / sum; /* 1 - sigmoid(v) */
    return activation_if_negative(v, 1 + p.more, 1) / sum * (1 + x * slope * other) *
           activation_if_negative(v, p.first, 1) * activation_if_negative(v, p.second, 1);
}

#define ACTIVATION_SILU_MOST ((WF_REAL)(ACTIVATION_F32 ? 128 : 800)) /* such a limit */

/* x / (1 + e^-x) */
WF_HD_INLINE WF_REAL activation_silu(WF_REAL x)
{
    const WF_REAL most = ACTIVATION_SILU_MOST, bounded = activation_at_least(x, -most);
    return activation_times_sigmoid(bounded, activation_at_most(bounded, most), 0);
}

WF_HD_INLINE WF_REAL activation_silu_derivative(WF_REAL x)
{
    const WF_REAL most = ACTIVATION_SILU_MOST;
    const WF_REAL bounded = activation_at_most(activation_at_least(x, -most), most);
    return activation_sigmoid_slope(bounded, bounded, 0, 1);
}

/* ---- GELU by tanh: 0.5 x (1 + tanh(v / 2)) = x sigmoid(v), v = sqrt(8 / pi) (x + 0.044715 x^3) ------------------- */

/* a b = product + *lo, but for an error in the last place of *lo. */
WF_HD_INLINE WF_REAL activation_product(WF_REAL a, WF_REAL b, WF_REAL *lo)
{
    const WF_REAL a1 = activation_upper(a), a2 = a - a1, b1 = activation_upper(b), b2 = b - b1, product = a * b;
    *lo = ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2;
    return product;
}

#define ACTIVATION_TANH_MOST ((WF_REAL)(ACTIVATION_F32 ? 11.5 : 22))

/* v, and in *lo what its rounding left: of v's digits only those behind the point are e^v's. */
WF_HD_INLINE WF_REAL activation_tanh_argument(WF_REAL x, WF_REAL *lo)
{
    /* sqrt(8 / pi), and that times 0.044715; what their rounding left. */
    const WF_REAL c1 = (WF_REAL)0x1.9884533d43651p0, c3 = (WF_REAL)0x1.2444f2a4d8b4bp-4;
    const WF_REAL c1_lo = (WF_REAL)(ACTIVATION_F32 ? 0x1.9884533d43651p0 - (double)c1 : -0x1.cbc0d30ebfd15p-54);
    const WF_REAL c3_lo = (WF_REAL)(ACTIVATION_F32 ? 0x1.2444f2a4d8b4bp-4 - (double)c3 : -0x1.6c843a29d1c70p-61);
    WF_REAL       square_lo, cube_lo, product_lo;
    const WF_REAL square = activation_product(x, x, &square_lo), cube = activation_product(c3, square, &cube_lo);
    const WF_REAL sum = c1 + cube, from_cube = sum - c1, sum_lo = (c1 - (sum - from_cube)) + (cube - from_cube);
    const WF_REAL product = activation_product(x, sum, &product_lo);
    *lo = product_lo + x * (sum_lo + ((cube_lo + c3 * square_lo) + (c3_lo * square + c1_lo)));
    return product;
}

WF_HD_INLINE WF_REAL activation_gelu_tanh(WF_REAL x)
{
    const WF_REAL most = ACTIVATION_TANH_MOST;
    const WF_REAL bounded = activation_at_least(x, -most);
    WF_REAL       lo;
    const WF_REAL v = activation_tanh_argument(activation_at_most(bounded, most), &lo);
    return activation_times_sigmoid(bounded, v, lo);
}

WF_HD_INLINE WF_REAL activation_gelu_tanh_derivative(WF_REAL x)
{
    const WF_REAL most = ACTIVATION_TANH_MOST;
    const WF_REAL bounded = activation_at_most(activation_at_least(x, -most), most);
    WF_REAL       lo;
    const WF_REAL v = activation_tanh_argument(bounded, &lo);
    const WF_REAL slope = (WF_REAL)0x1.9884533d43651p0 + (WF_REAL)(3 * 0x1.2444f2a4d8b4bp-4) * (bounded * bounded);
    return activation_sigmoid_slope(bounded, v, lo, slope);
}

/* ---- GELU: x Phi(x), with Phi(-a) = e^(-a^2 / 2) R(a), which no 1 - erf cancels in -------------------------------- */

#define ACTIVATION_GELU_MOST ((WF_REAL)(ACTIVATION_F32 ? 16 : 40))

/* (1 + a) R(a), a from 0 to 16 (40): a polynomial in (a - 4) / (a + 4), for it changes little: from .5 to .42. */
WF_HD_INLINE WF_REAL activation_tail(WF_REAL a)
{
    const double r32[] = {0x1.e361eap-2,  -0x1.8c18eep-4,   0x1.cabd38p-7,  0x1.d494e6p-6,
                          -0x1.07c3p-5,   0x1.25eed0p-6,    -0x1.47e50ep-8, -0x1.3d971cp-12,
                          0x1.6a714ap-11, -0x1.0860bap-14,  -0x1.304f4cp-14};
    const double r64[] = {0x1.e361ea6fba141p-2,   -0x1.8c18f2086e34dp-4,  0x1.cabd72a60fabdp-7,   0x1.d4969f10e04d4p-6,
                          -0x1.07c3c2582d91cp-5,  0x1.25dd7205f70f7p-6,   -0x1.47d5fc73535e0p-8,  -0x1.2b7f5dddf589ap-12,
                          0x1.6c5382ad8ec4ap-11,  -0x1.8c11b5a4083f8p-14, -0x1.707ba18dcc9ccp-14, 0x1.648434eef417ap-16,
                          0x1.c93dacb34f149p-17,  -0x1.cca83a120335fp-19, -0x1.5eb018ba4a142p-19, 0x1.b2412d380912bp-22,
                          0x1.2847b37a12ad9p-21,  0x1.9d340b8071e69p-30,  -0x1.dc271a05ac87cp-24, -0x1.55ed4700e2bedp-26,
                          0x1.2dcd3a13fd92ep-26,  0x1.ab60b589da35fp-28,  -0x1.a232a4056aa63p-30, -0x1.ac27692801488p-31};
    const WF_REAL q = (a - 4) / (a + 4);
    return ACTIVATION_F32 ? activation_polynomial(q, r32, 10) : activation_polynomial(q, r64, 23);
}

/* e^(-a^2 / 2) */
WF_HD_INLINE struct activation_power activation_gauss(WF_REAL a)
{
    const WF_REAL upper = activation_upper(a);
    return activation_exp(-upper * upper * (WF_REAL)0.5, -(a - upper) * (a + upper) * (WF_REAL)0.5);
}

WF_HD_INLINE WF_REAL activation_gelu(WF_REAL x)
{
    const WF_REAL most = ACTIVATION_GELU_MOST;
    const WF_REAL a = activation_at_most(activation_abs(x), most);
    const struct activation_power p = activation_gauss(a);
    const WF_REAL above = 1 + a, above_lo = a - (above - 1), part = a / above, share = part * activation_tail(a);
    const WF_REAL tail = share + share * (p.more - above_lo * (1 - part)); /* a Phi(-a); 1 + a's rounding undone */
    return activation_if_negative(x, 0, x) - tail * p.first * p.second;
}

WF_HD_INLINE WF_REAL activation_gelu_derivative(WF_REAL x)
{
    const WF_REAL most = ACTIVATION_GELU_MOST;
    const WF_REAL a = activation_at_most(activation_abs(x), most);
    const struct activation_power p = activation_gauss(a);
    const WF_REAL density = (WF_REAL)0x1.9884533d43651p-2; /* 1 / sqrt(2 pi) */
    const WF_REAL share = density * a - activation_tail(a) / (1 + a);
    const WF_REAL beyond = (share + share * p.more) * p.first * p.second; /* a phi(a) - Phi(-a) */
    return activation_if_negative(x, -beyond, 1 + beyond);
}

/* ---- by kind ---------------------------------------------------------------------------------------------------- */

/* wf_activation's numbers. */
enum activation_kind {
    ACTIVATION_NONE,
    ACTIVATION_RELU,
    ACTIVATION_LEAKY_RELU,
    ACTIVATION_SILU,
    ACTIVATION_GELU,
    ACTIVATION_GELU_TANH
};

/* kind is a constant where this stands in a loop. */
WF_HD_INLINE WF_REAL activation_value(int kind, WF_REAL slope, WF_REAL x)
{
    return kind == ACTIVATION_RELU         ? x <= 0 ? 0 : x
           : kind == ACTIVATION_LEAKY_RELU ? x <= 0 ? x * slope : x
           : kind == ACTIVATION_SILU       ? activation_silu(x)
           : kind == ACTIVATION_GELU       ? activation_gelu(x)
           : kind == ACTIVATION_GELU_TANH  ? activation_gelu_tanh(x)
                                           : x;
}

WF_HD_INLINE WF_REAL activation_derivative(int kind, WF_REAL slope, WF_REAL x)
{
    return kind == ACTIVATION_RELU         ? x <= 0 ? 0 : 1
           : kind == ACTIVATION_LEAKY_RELU ? x <= 0 ? slope : 1
           : kind == ACTIVATION_SILU       ? activation_silu_derivative(x)
           : kind == ACTIVATION_GELU       ? activation_gelu_derivative(x)
           : kind == ACTIVATION_GELU_TANH  ? activation_gelu_tanh_derivative(x)
                                           : 1;
}

#endif
