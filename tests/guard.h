/* guard.h - buffers with canaries around them, so that a write past either end is seen (and under ASan a read, too). */
#ifndef TESTS_GUARD_H
#define TESTS_GUARD_H

#include <stddef.h>

/* size bytes, misalign_bytes past a multiple of 64, filled with 0xa5 (as a float about -3e-16, as a half about -0.02:
 * not what any test expects). size 0 is legal. Never NULL: out of memory aborts. */
void *guard_alloc(size_t size, size_t misalign_bytes);
int guard_check(const void *p); /* 1 = nothing around the buffer was written; NULL: 1 */
void guard_free(void *p);       /* NULL: nothing */

#endif
