#include "oracle_quantize.h"

#include <math.h>
#include <quadmath.h>
#include <stdlib.h>

/* Sign, exponent and fraction from the top. e5m2 is as IEEE 754 has it; of e4m3 the largest exponent is one like others, but
 * that all ones are NaN. */
double quantized_value(wf_dtype dtype, uint8_t code)
{
    if (dtype == INT8)
        return (int8_t)code;
    const int fraction_bits = dtype == E4M3 ? 3 : 2, bias = dtype == E4M3 ? 7 : 15;
    const int field = code >> fraction_bits & ((1 << (7 - fraction_bits)) - 1), fraction = code & ((1 << fraction_bits) - 1);
    const double sign = code & 0x80 ? -1 : 1;
    if (dtype == E4M3 && (code & 0x7f) == 0x7f)
        return NAN;
    if (dtype == E5M2 && field == 31)
        return fraction ? (double)NAN : sign * HUGE_VAL;
    const double significand = field ? 1 + ldexp(fraction, -fraction_bits) : ldexp(fraction, -fraction_bits);
    return sign * ldexp(significand, (field ? field : 1) - bias);
}

/* The numbers that a value may become, in order: 0 to the largest; of int8 127. */
static int magnitudes(wf_dtype dtype) { return dtype == E4M3 ? 0x7e : dtype == E5M2 ? 0x7b : 127; }

uint8_t quantized_code(wf_dtype dtype, Quad value)
{
    if (isnanq(value))
        return dtype == INT8 ? 0 : 0x7f;
    const Quad size = fabsq(value);
    int low = 0, high = magnitudes(dtype);
    while (low < high) { /* the first code of no less */
        const int middle = (low + high) / 2;
        if (quantized_value(dtype, (uint8_t)middle) < size)
            low = middle + 1;
        else
            high = middle;
    }
    if (low > 0) {
        const Quad above = quantized_value(dtype, (uint8_t)low) - size, below = size - quantized_value(dtype, (uint8_t)(low - 1));
        if (below < above || (below == above && low % 2))
            low--;
    }
    return (uint8_t)(dtype == INT8 ? (signbitq(value) ? -low : low) : low | (signbitq(value) ? 0x80 : 0));
}

double quantized_nearest(wf_dtype dtype, Quad value) { return quantized_value(dtype, quantized_code(dtype, value)); }

/* The largest of magnitudes and how far off each may be: where it lies at least, and at most. */
typedef struct Largest {
    Quad value, low, high;
} Largest;

static void include(Largest *l, Quad y, double bar)
{
    const Quad size = fabsq(y);
    if (isnanq(l->value))
        return;
    if (!finiteq(size))
        l->value = nanq("");
    l->value = size > l->value ? size : l->value;
    l->low = size - bar > l->low ? size - bar : l->low;
    l->high = size + bar > l->high ? size + bar : l->high;
}

static double bar_of(const Largest *l)
{
    const Quad over = l->high - l->value, under = l->value - l->low;
    return (double)(over > under ? over : under);
}

/* y becomes y * scale, and its bar: the product is rounded, of y and a scale that are off. */
static void scale_value(const Problem *p, Expected *y, int64_t i, Quad scale, double scale_off)
{
    const double u = p->c->x == WF_F64 ? 0x1p-53 : 0x1p-24;
    const Quad v = y->value[i] * scale;
    y->bar[i] = y->bar[i] * fabs((double)scale) + (u + scale_off) * fabs((double)v) + least(stat_dtype(p->c->x));
    y->value[i] = v;
}

static void to_int8(const Problem *p, Expected *y, Expected *row_scale)
{
    const double u = 0x1p-24; /* the scale is a float */
    *row_scale = oracle_expected(p->slots, WF_F32, false);
    for (int64_t row = 0, i = 0; row < p->slots; row++) {
        Largest l = { 0x1p-100Q, 0x1p-100Q, 0x1p-100Q };
        for (int64_t k = 0; k < p->per_slot; k++)
            include(&l, y->value[i + k], y->bar[i + k]);
        row_scale->value[row] = l.value / 127;
        row_scale->bar[row] = bar_of(&l) / 127 + 2 * u * (double)row_scale->value[row];
        for (int64_t k = 0; k < p->per_slot; k++, i++) {
            scale_value(p, y, i, 127 / l.value, bar_of(&l) / (double)l.value + 2 * u);
            if (isnanq(y->value[i]))
                y->value[i] = 0, y->bar[i] = 0;
        }
    }
}

void quantize_forward(const Problem *p, Expected out[OUTPUT_COUNT])
{
    const Case *c = p->c;
    Expected *y = &out[OUT_Y];
    y->dtype = case_y_dtype(c);
    for (int64_t i = 0; i < p->count; i++)
        y->bar[i] += least(stat_dtype(c->x));
    if (c->quantize == WF_INT8) {
        to_int8(p, y, &out[OUT_ROW_SCALE]);
        return;
    }
    Expected *amax = &out[OUT_AMAX];
    *amax = oracle_expected(1, WF_F32, c->x == WF_F64);
    const float before = (float)c->amax;
    Largest l = { before, before, before };
    for (int64_t i = 0; i < p->count; i++) {
        include(&l, y->value[i], y->bar[i]);
        scale_value(p, y, i, c->y_scale != 0 ? (float)c->y_scale : 1, 0);
    }
    amax->value[0] = l.value;
    amax->bar[0] = bar_of(&l);
}
