/* oracle_quantize.h - numbers of 8 bits, from their definitions, by search in a table of all 256; and a quantised y. */
#ifndef WELFORD_TESTS_ORACLE_QUANTIZE_H
#define WELFORD_TESTS_ORACLE_QUANTIZE_H

#include "oracle.h"

/* dtype: E4M3, E5M2 or INT8. */
double  quantized_value(wf_dtype, uint8_t code); /* NaN, Inf where the code is one */
uint8_t quantized_code(wf_dtype, Quad value); /* as welford.h says: nearest, ties to even, NaN is 0x7f or 0 */
double  quantized_nearest(wf_dtype, Quad value); /* the value of that */

/* out[OUT_Y] is that of the norm; it becomes the quantised one, and out[OUT_AMAX] or out[OUT_ROW_SCALE] is made. */
void quantize_forward(const Problem *, Expected out[OUTPUT_COUNT]);

#endif
