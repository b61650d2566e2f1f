/* dtype.h - 16-bit floats: bits to float and back.
 *
 * Down rounds to nearest even; subnormals, infinities and the sign of zero are exact both ways; NaN stays NaN. f16
 * gives the bits of F16C's instructions, NaN included. No table, no libm, no branch: a loop over them vectorizes on any
 * ISA. No subnormal float meets an operation it matters to, so flush-to-zero modes change nothing; the rounding mode
 * must be to nearest. */
#ifndef WF_COMMON_DTYPE_H
#define WF_COMMON_DTYPE_H

#include <stdint.h>
#include <string.h>

#include "hd.h"

WF_HD float wf_float_from_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

WF_HD uint32_t wf_bits_from_float(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

WF_HD double wf_double_from_bits(uint64_t bits)
{
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

WF_HD uint64_t wf_bits_from_double(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* Magnitudes are compared as int32_t: they are not negative, and SSE2 and AVX2 have no unsigned comparison. */

WF_HD float wf_f16_to_f32(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    const int32_t a = h & 0x7fff;
    const uint32_t normal = ((uint32_t)a << 13) + (112u << 23);       /* the exponent's bias: 15 -> 127 */
    const uint32_t special = ((uint32_t)a << 13) | 0x7f800000u | (a > 0x7c00 ? 0x400000u : 0u);
    const uint32_t small = wf_bits_from_float((float)a * 5.9604644775390625e-8f); /* * 2^-24: exact */
    return wf_float_from_bits(sign | (a < 0x400 ? small : a < 0x7c00 ? normal : special));
}

WF_HD uint16_t wf_f32_to_f16(float x)
{
    const uint32_t bits = wf_bits_from_float(x), sign = bits >> 16 & 0x8000;
    const int32_t a = (int32_t)(bits & 0x7fffffff);
    /* Below 2^-14 the spacing is 2^-24, which is also that of floats from 0.5 to 1: the addition rounds. */
    const int32_t small = (int32_t)wf_bits_from_float(wf_float_from_bits((uint32_t)a) + 0.5f) - 0x3f000000;
    const int32_t rounded = (a - (112 << 23) + 0xfff + (a >> 13 & 1)) >> 13;
    const int32_t normal = rounded < 0x7c00 ? rounded : 0x7c00;
    const int32_t nan = 0x7e00 | (a >> 13 & 0x3ff);
    return (uint16_t)(sign | (uint32_t)(a < 0x38800000 ? small : a <= 0x7f800000 ? normal : nan));
}

/* A signalling NaN stays one here; the first operation on it makes it quiet. */
WF_HD float wf_bf16_to_f32(uint16_t h)
{
    return wf_float_from_bits((uint32_t)h << 16);
}

WF_HD uint16_t wf_f32_to_bf16(float x)
{
    const uint32_t bits = wf_bits_from_float(x);
    const uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1); /* the carry makes 0x7f7f.... infinite where it should */
    const uint32_t nan = bits | 0x400000;
    return (uint16_t)(((int32_t)(bits & 0x7fffffff) > 0x7f800000 ? nan : rounded) >> 16);
}

#endif
