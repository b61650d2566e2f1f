/* oracle_dropout.h - what dropout must give, bit for bit, from the formulas alone: nothing of src/ is used. */
#ifndef TESTS_ORACLE_DROPOUT_H
#define TESTS_ORACLE_DROPOUT_H

#include <stdint.h>

#include "welford.h"

/* The Philox4x32-10 word of unit u. */
uint32_t oracle_random_word(uint64_t seed, uint64_t offset, uint64_t u);
/* The four words of one block, for a counter and a key given as they stand. */
void oracle_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t word[4]);

int64_t oracle_dropout_units(const wf_dropout *what);                   /* decisions: n c with WF_FEATURES, else n c hw */
int64_t oracle_dropout_unit(const wf_dropout *what, int64_t element);   /* u of the element at this place in memory */
int oracle_dropout_keep(double p, uint64_t seed, uint64_t offset, uint64_t u);

/* The bits that element x (the bits of x's dtype, in the low bits) becomes. */
uint64_t oracle_dropout_value(const wf_dropout *what, int backward, int keep, uint64_t x);
int oracle_is_nan(wf_dtype dtype, uint64_t bits);
/* The same map of a real number, not rounded but for its constants; *size: of its terms. */
__float128 oracle_dropout_real(const wf_dropout *what, int backward, int keep, __float128 x, __float128 *size);

/* 16-bit floats: bits to value, and a float rounded to the nearest, ties to even. dtype is WF_F16 or WF_BF16. */
double oracle_widen(wf_dtype dtype, uint16_t bits);
uint16_t oracle_narrow(wf_dtype dtype, double value);

#endif
