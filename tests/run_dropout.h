/* run_dropout.h - one dropout case, forward or backward, run and compared with the oracle: bit for bit, or within the header's
 * bars where something is around the dropout. */
#ifndef TESTS_RUN_DROPOUT_H
#define TESTS_RUN_DROPOUT_H

#include "case.h"

/* 0, or 1 with what was wrong in message. Checked: y (a NaN only for being one), the mask with its spare bits, that x, the
 * pointed-to seed and offset and everything around each buffer are untouched, and that a backward call ignores mask.
 * Beyond the fields' plain meaning: an odd seed is given by seed_ptr (with another one in seed), and an offset with
 * bit 1 set in two parts, offset and *offset_ptr; pool threads take pieces in the order seed % POOL_ORDERS; y, if it is not
 * an input, is misalign ^ misalign / 4 elements off; a residual, or with an activation backward's x_in, has values of its own. */
int run_dropout(const Case *c, char *message, size_t message_size);
extern uint64_t run_dropout_hash; /* of the y of the last run */

/* The same within a Check test: fails with the message and the line that repeats the case. */
void check_dropout(const Case *c);

#endif
