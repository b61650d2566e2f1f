/* philox.h - the random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
 *
 * The random word of unit u in a call with (seed, offset) is word u & 3 of block u >> 2, so any unit is reached in any
 * order by any thread. key = { seed lo, seed hi }, counter = { offset lo, offset hi, block lo, block hi }: the same as
 * curand_init(seed, u >> 2, 4 * offset) and at::philox_engine(seed, u >> 2, offset). */
#ifndef WF_COMMON_PHILOX_H
#define WF_COMMON_PHILOX_H

#include <stdint.h>

#include "hd.h"

/* The four words of one block. A loop over block vectorizes: no branch, and 32 x 32 -> 64 bit products only. */
WF_HD void wf_philox4x32(uint64_t seed, uint64_t offset, uint64_t block, uint32_t word[4])
{
    uint32_t c0 = (uint32_t)offset, c1 = (uint32_t)(offset >> 32);
    uint32_t c2 = (uint32_t)block, c3 = (uint32_t)(block >> 32);
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        const uint64_t a = (uint64_t)0xd2511f53u * c0, b = (uint64_t)0xcd9e8d57u * c2;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)b;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)a;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    word[0] = c0;
    word[1] = c1;
    word[2] = c2;
    word[3] = c3;
}

/* Keep a unit iff its word < T, compared in 64 bits: T is 2^32 for p = 0 and 0 for p = 1. p in [0, 1]; call it where
 * rounding is to nearest. */
WF_HD uint64_t wf_keep_threshold(double p)
{
    return (uint64_t)((1 - p) * 4294967296.0 + 0.5);
}

#endif
