/* quiet.h - what a call is timed after: its tensors out of the CPU's caches, no other thread of the process at work.
 * Also a shared library of its own, for torch_peer.py. */
#ifndef WELFORD_BENCH_QUIET_H
#define WELFORD_BENCH_QUIET_H

#include <stdbool.h>
#include <stddef.h>

void bench_flush(const void *at, size_t size);
bool bench_others_run(void); /* does any thread but the caller? libgomp's spin for 7 ms after a call */

#endif
