#include "oracle_dropout.h"

#include <math.h>
#include <string.h>

#define TWO32 UINT64_C(4294967296)

void oracle_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t word[4])
{
    /* The paper's multipliers; the golden ratio and sqrt(3) - 1, times 2^32, step the key between rounds. */
    const uint64_t m0 = 3528531795, m1 = 3449720151, w0 = 2654435769, w1 = 3144134277;
    uint64_t r[4] = {counter[0], counter[1], counter[2], counter[3]};
    for (uint64_t round = 0; round < 10; round++) {
        const uint64_t k0 = (key[0] + round * w0) % TWO32, k1 = (key[1] + round * w1) % TWO32;
        const uint64_t product0 = m0 * r[0], product1 = m1 * r[2];
        const uint64_t next[4] = {(product1 / TWO32) ^ r[1] ^ k0, product1 % TWO32, (product0 / TWO32) ^ r[3] ^ k1,
                                  product0 % TWO32};
        memcpy(r, next, sizeof r);
    }
    for (int i = 0; i < 4; i++)
        word[i] = (uint32_t)r[i];
}

uint32_t oracle_random_word(uint64_t seed, uint64_t offset, uint64_t u)
{
    const uint64_t block = u / 4;
    const uint32_t key[2] = {(uint32_t)(seed % TWO32), (uint32_t)(seed / TWO32)};
    const uint32_t counter[4] = {(uint32_t)(offset % TWO32), (uint32_t)(offset / TWO32), (uint32_t)(block % TWO32),
                                 (uint32_t)(block / TWO32)};
    uint32_t word[4];
    oracle_philox(counter, key, word);
    return word[u % 4];
}

int64_t oracle_dropout_units(const wf_dropout *what)
{
    return what->flags & WF_FEATURES ? what->n * what->c : what->n * what->c * what->hw;
}

int64_t oracle_dropout_unit(const wf_dropout *what, int64_t element)
{
    if (!(what->flags & WF_FEATURES))
        return element;
    const int64_t sample = element / (what->c * what->hw), within = element % (what->c * what->hw);
    const int64_t channel = what->layout == WF_NCHW ? within / what->hw : within % what->c;
    return sample * what->c + channel;
}

int oracle_dropout_keep(double p, uint64_t seed, uint64_t offset, uint64_t u)
{
    return (double)oracle_random_word(seed, offset, u) < floor((1 - p) * 4294967296.0 + 0.5);
}

/* Digits of the significand, the exponent of the smallest subnormal, and the bits of the fraction. */
typedef struct half_format {
    int digits, least;
    int fraction, bias;
    double greatest;
} half_format;

static half_format format_of(wf_dtype dtype)
{
    const half_format f16 = {11, -24, 10, 15, 65504}, bf16 = {8, -133, 7, 127, ldexp(255, 120)};
    return dtype == WF_F16 ? f16 : bf16;
}

double oracle_widen(wf_dtype dtype, uint16_t bits)
{
    const half_format f = format_of(dtype);
    const int fraction = bits % (1 << f.fraction), exponent = bits % 0x8000 / (1 << f.fraction);
    double value;
    if (exponent == 2 * f.bias + 1)
        value = fraction ? (double)NAN : (double)INFINITY;
    else if (exponent == 0)
        value = ldexp(fraction, f.least);
    else
        value = ldexp(fraction + (1 << f.fraction), f.least + exponent - 1);
    return bits / 0x8000 ? -value : value;
}

uint16_t oracle_narrow(wf_dtype dtype, double value)
{
    const half_format f = format_of(dtype);
    const int sign = signbit(value) ? 0x8000 : 0, infinity = (2 * f.bias + 1) << f.fraction;
    double magnitude = fabs(value);
    if (isnan(value))
        return (uint16_t)(sign + infinity + 1);
    if (isinf(value))
        return (uint16_t)(sign + infinity);
    int exponent;
    frexp(magnitude, &exponent); /* magnitude in [2^(exponent - 1), 2^exponent) */
    const int quantum = exponent - f.digits > f.least ? exponent - f.digits : f.least;
    magnitude = ldexp(rint(ldexp(magnitude, -quantum)), quantum);
    if (magnitude > f.greatest)
        return (uint16_t)(sign + infinity);
    frexp(magnitude, &exponent);
    const int biased = exponent - 1 + f.bias; /* of the rounded value; at most 0: subnormal */
    if (magnitude == 0 || biased <= 0)
        return (uint16_t)(sign + (int)ldexp(magnitude, -f.least));
    const int fraction = (int)ldexp(magnitude, f.digits - exponent) - (1 << f.fraction);
    return (uint16_t)(sign + (biased << f.fraction) + fraction);
}

int oracle_is_nan(wf_dtype dtype, uint64_t bits)
{
    switch (dtype) {
    case WF_F64:
        return (bits & INT64_MAX) > UINT64_C(0x7ff0000000000000);
    case WF_F32:
        return (bits & INT32_MAX) > 0x7f800000;
    default:
        return isnan(oracle_widen(dtype, (uint16_t)bits));
    }
}

/* kept: scale * x + shift, each rounded; dropped: dropped. All in double; the caller rounds to the arithmetic type. */
typedef struct dropout_map {
    double scale, shift, dropped;
    int add;
} dropout_map;

static dropout_map map_of(const wf_dropout *what, int backward)
{
    const double p = what->p, alpha = 1.7580993408473766;
    dropout_map map = {0};
    if (what->kind == WF_DROPOUT) {
        map.scale = 1 / (1 - p);
    } else if (p < 1) {
        map.scale = 1 / sqrt((alpha * alpha * p + 1) * (1 - p));
        if (!backward) {
            map.add = 1;
            map.shift = map.scale * alpha * p;
            map.dropped = map.shift - map.scale * alpha;
        }
    }
    return map;
}

static double value_f64(dropout_map map, int keep, double x)
{
    if (!keep)
        return map.dropped;
    const double product = map.scale * x;
    return map.add ? product + map.shift : product;
}

/* Products and sums of two floats are taken in double, where a product is exact and a sum rounds as it would have,
 * twice: double has more than 2 * 24 + 2 digits. */
static float value_f32(dropout_map map, int keep, float x)
{
    if (!keep)
        return (float)map.dropped;
    const float product = (float)((double)(float)map.scale * x);
    return map.add ? (float)((double)product + (float)map.shift) : product;
}

uint64_t oracle_dropout_value(const wf_dropout *what, int backward, int keep, uint64_t x)
{
    const dropout_map map = map_of(what, backward);
    if (what->x_dtype == WF_F64) {
        double value;
        memcpy(&value, &x, sizeof value);
        value = value_f64(map, keep, value);
        memcpy(&x, &value, sizeof x);
        return x;
    }
    if (what->x_dtype == WF_F32) {
        const uint32_t in = (uint32_t)x;
        float value;
        memcpy(&value, &in, sizeof value);
        value = value_f32(map, keep, value);
        uint32_t out;
        memcpy(&out, &value, sizeof out);
        return out;
    }
    return oracle_narrow(what->x_dtype, value_f32(map, keep, (float)oracle_widen(what->x_dtype, (uint16_t)x)));
}

__float128 oracle_dropout_real(const wf_dropout *what, int backward, int keep, __float128 x, __float128 *size)
{
    dropout_map map = map_of(what, backward);
    if (what->x_dtype != WF_F64)
        map = (dropout_map){(float)map.scale, (float)map.shift, (float)map.dropped, map.add};
    const __float128 product = map.scale * x, shift = map.add ? map.shift : 0;
    *size = keep ? (product < 0 ? -product : product) + (shift < 0 ? -shift : shift) : 0;
    return keep ? product + shift : map.dropped;
}
