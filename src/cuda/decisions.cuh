/* Which units dropout keeps: word u % 4 of Philox block u / 4, compared with the threshold. Regenerated from the index wherever
 * it is asked, never read: so it does not matter which thread has which units. */
#ifndef WELFORD_CUDA_DECISIONS_CUH
#define WELFORD_CUDA_DECISIONS_CUH

#include "common/philox.h"
#include "cuda.h"

enum { BLOCK_UNITS = 4 }; /* words of a Philox block */

/* What decides. */
struct Decision {
    uint64_t                    seed, offset;
    dev::global<const uint64_t> seed_ptr, offset_ptr;
    uint32_t                    last; /* the greatest word that keeps its unit, */
    bool                        any;  /* if one does */
};

/* Of struct dropout, or struct addition. */
template <class Problem> Decision decision_of(const Problem &p)
{
    return {p.seed, p.offset, buffer<const uint64_t>(p.seed_ptr), buffer<const uint64_t>(p.offset_ptr),
            (uint32_t)(p.threshold - 1), p.threshold > 0};
}

/* The seed and offset of this launch: a replayed graph finds new ones where the pointers point. All lanes of a warp make one. */
struct Random {
    uint64_t seed, offset;

    explicit WF_ON_DEVICE Random(const Decision &d)
        : seed(dev::uniform(d.seed_ptr ? dev::load(d.seed_ptr, 0) : d.seed)),
          offset(dev::uniform(d.offset + (d.offset_ptr ? dev::load(d.offset_ptr, 0) : 0)))
    {
    }
    WF_ON_DEVICE void words(int64_t block, uint32_t (&word)[BLOCK_UNITS]) const
    {
        wf_philox4x32(seed, offset, (uint64_t)block, word);
    }
};

WF_ON_DEVICE bool keeps(const Decision &d, uint32_t word)
{
    return word <= d.last && d.any;
}

/* Bit i: unit 4 block + i is kept. */
WF_ON_DEVICE unsigned decide_block(const Decision &d, const Random &random, int64_t block)
{
    uint32_t word[BLOCK_UNITS];
    unsigned bits = 0;
    random.words(block, word);
#pragma unroll
    for (int i = 0; i < BLOCK_UNITS; i++)
        bits |= (unsigned)keeps(d, word[i]) << i;
    return bits;
}

/* Bit j < N: unit + j is kept, wherever it is in its block. One block at a time: registers are short where this is called. */
template <int N> WF_ON_DEVICE unsigned decide_run(const Decision &d, const Random &random, int64_t unit)
{
    const int skip = (int)(unit % BLOCK_UNITS);
    unsigned  bits = 0;
#pragma unroll 1
    for (int i = 0; i < skip + N; i += BLOCK_UNITS)
        bits |= decide_block(d, random, (unit - skip + i) / BLOCK_UNITS) << i;
    return bits >> skip;
}

#endif
