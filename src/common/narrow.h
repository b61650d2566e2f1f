/* narrow.h - floats to 8 bits: e4m3 (finite but for NaN, largest 448), e5m2 (largest 57344) and int8.
 *
 * To nearest, ties to even, subnormals included. Beyond the largest finite value lies the largest, also for infinities, as
 * CUDA's conversions with saturation; NaN is 0x7f in both. No table, no libm, no branch: a loop over them vectorizes. The
 * rounding mode must be to nearest. */
#ifndef WF_COMMON_NARROW_H
#define WF_COMMON_NARROW_H

#include "dtype.h"

/* mantissa: bits of it in memory; bias: of the exponent; largest: the bits of the largest finite value as a float;
 * spacing: a float between whose neighbours is the distance of subnormals, so that adding it rounds. */
WF_HD uint8_t wf_narrow(float x, int mantissa, int bias, int32_t largest, float spacing)
{
    const int      cut = 23 - mantissa;
    const uint32_t bits = wf_bits_from_float(x), sign = bits >> 24 & 0x80;
    const int32_t  size = (int32_t)(bits & 0x7fffffff), a = size < largest ? size : largest;
    const int32_t  small = (int32_t)(wf_bits_from_float(wf_float_from_bits((uint32_t)a) + spacing) - wf_bits_from_float(spacing));
    const int32_t  normal = (a - ((127 - bias) << 23) + (1 << (cut - 1)) - 1 + (a >> cut & 1)) >> cut;
    const int32_t  code = a < ((128 - bias) << 23) ? small : normal;
    return (uint8_t)(size > 0x7f800000 ? 0x7fu : sign | (uint32_t)code);
}

WF_HD uint8_t wf_f32_to_e4m3(float x) { return wf_narrow(x, 3, 7, 0x43e00000, 16384.0f); }

WF_HD uint8_t wf_f32_to_e5m2(float x) { return wf_narrow(x, 2, 15, 0x47600000, 128.0f); }

/* NaN is 0. */
WF_HD int8_t wf_f32_to_int8(float x)
{
    const float in = x > 127.0f ? 127.0f : x > -127.0f ? x : x <= -127.0f ? -127.0f : 0.0f;
    return (int8_t)((int32_t)wf_bits_from_float(in + 12582912.0f) - 0x4b400000); /* 1.5 * 2^23: the addition rounds */
}

/* Bits of |x|: those of numbers have their order, and those of NaN are above all. */
WF_HD int32_t wf_magnitude(float x) { return (int32_t)(wf_bits_from_float(x) & 0x7fffffff); }

/* What becomes 127, of a row whose largest magnitude is that: so large that 127 / it is a number. */
WF_HD float wf_int8_largest(float largest) { return largest < 0x1p-100f ? 0x1p-100f : largest; }

/* To a float whose last bit is 1 where it is not exact: rounding that to fewer bits is rounding the double. */
WF_HD float wf_f64_to_odd(double x)
{
    const float    near = (float)x;
    const uint32_t bits = wf_bits_from_float(near);
    const int      exact = (double)near == x || x != x, even = !(bits & 1);
    /* An even neighbour is one off: towards x. Past the largest float x is huge, and stays it. */
    const int      away = (x < 0 ? -(double)near : (double)near) > (x < 0 ? -x : x);
    return exact || !even ? near : wf_float_from_bits(away ? bits - 1 : bits + 1);
}

#endif
