/* Dropout's decisions on the CPU: a bit for each unit, from Philox (common/philox.h), and vectors of what is kept. */
#ifndef WELFORD_KEEP_H
#define WELFORD_KEEP_H

#include "common/philox.h"
#include "tile.h"

typedef uint64_t block_vector __attribute__((vector_size(VECTOR_SIZE)));
typedef uint32_t unit_vector __attribute__((vector_size(VECTOR_SIZE)));
enum {
    PHILOX_WORDS = 4,
    ROUNDS = 10,
    BLOCKS = VECTOR_SIZE / sizeof(uint64_t),
    GROUPS = VECTOR_SIZE == 64 ? 4 : 2, /* vectors of blocks at once: a round waits for the one before it */
    CHUNK = PHILOX_WORDS * BLOCKS,      /* units of a group */
    STEP = CHUNK * GROUPS,
    AHEAD = VECTOR_SIZE == 64,          /* a tile's decisions are made while the one before it is written */
    UNITS_SIZE = (TILE + STEP) / 8 + 8, /* of a bit for each unit, whole steps, and what is read past them */
};

/* What decides: keep a unit iff its random word is less than threshold. */
struct keep {
    uint64_t key[ROUNDS][2], offset, threshold;
};

/* seed_ptr and offset_ptr may be NULL. */
static struct keep keep_of(uint64_t seed, const uint64_t *seed_ptr, uint64_t offset, const uint64_t *offset_ptr,
                           uint64_t threshold)
{
    struct keep k = {.offset = offset + (offset_ptr ? *offset_ptr : 0), .threshold = threshold};
    seed = seed_ptr ? *seed_ptr : seed;
    for (uint32_t round = 0; round < ROUNDS; round++) {
        k.key[round][0] = (uint32_t)seed + round * 0x9e3779b9u;
        k.key[round][1] = (uint32_t)(seed >> 32) + round * 0xbb67ae85u;
    }
    return k;
}

/* The product of the lower halves of each lane. */
INLINE block_vector multiply(block_vector a, uint32_t b)
{
#if VECTOR_SIZE == 64
    return (block_vector)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(b));
#elif VECTOR_SIZE == 32
    return (block_vector)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#elif defined(__x86_64__)
    return (block_vector)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(b));
#else
    return (a & 0xffffffff) * b;
#endif
}

/* The lower halves of two lanes in one. */
INLINE block_vector join(block_vector low, block_vector high)
{
#if VECTOR_SIZE == 64
    return (block_vector)_mm512_mask_shuffle_epi32((__m512i)low, 0xaaaa, (__m512i)high, _MM_PERM_CCAA);
#else
    return (low & 0xffffffff) | high << 32;
#endif
}

/* STEP / 4 consecutive blocks of Philox, one to a lane. A counter's word is the lower half of its lane: what the upper
 * one holds meets no product and no word. */
struct philox {
    block_vector c0[GROUPS], c1[GROUPS], c2[GROUPS], c3[GROUPS];
};

INLINE void philox_round(struct philox *s, uint64_t k0, uint64_t k1)
{
#pragma GCC unroll 8
    for (int g = 0; g < GROUPS; g++) {
        const block_vector a = multiply(s->c0[g], 0xd2511f53u), b = multiply(s->c2[g], 0xcd9e8d57u);
        s->c0[g] = (b >> 32) ^ s->c1[g] ^ k0;
        s->c1[g] = b;
        s->c2[g] = (a >> 32) ^ s->c3[g] ^ k1;
        s->c3[g] = a;
    }
}

/* Two rounds of the blocks from a multiple of STEP / 4. They share all of the counter but the lower half of the block,
 * so half of the products are the same for all. */
INLINE void philox_begin(struct philox *s, const struct keep *k, uint64_t block)
{
    static const uint64_t index[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    const uint64_t        a = (uint64_t)0xd2511f53u * (uint32_t)k->offset;
    const uint64_t        c2 = a >> 32 ^ block >> 32 ^ k->key[0][1];
    const uint64_t        b = (uint64_t)0xcd9e8d57u * c2;
    block_vector          lane;
    memcpy(&lane, index, sizeof lane);
#pragma GCC unroll 8
    for (int g = 0; g < GROUPS; g++) {
        const block_vector first = multiply(lane + (block + (uint64_t)g * BLOCKS), 0xcd9e8d57u);
        const block_vector second = multiply(first >> 32 ^ (k->offset >> 32 ^ k->key[0][0]), 0xd2511f53u);
        s->c0[g] = first ^ (b >> 32 ^ k->key[1][0]);
        s->c1[g] = (block_vector){0} + b;
        s->c2[g] = second >> 32 ^ (a ^ k->key[1][1]);
        s->c3[g] = second;
    }
}

/* Lanes of two vectors by turns. */
#if VECTOR_SIZE == 64
#define FIRST_BLOCKS 0, 8, 1, 9, 2, 10, 3, 11
#define LAST_BLOCKS  4, 12, 5, 13, 6, 14, 7, 15
#elif VECTOR_SIZE == 32
#define FIRST_BLOCKS 0, 4, 1, 5
#define LAST_BLOCKS  2, 6, 3, 7
#else
#define FIRST_BLOCKS 0, 2
#define LAST_BLOCKS  1, 3
#endif

/* A bit for each word: it is at most `last`. */
INLINE uint32_t at_most(unit_vector word, uint32_t last)
{
#if VECTOR_SIZE == 64
    return _mm512_cmple_epu32_mask((__m512i)word, _mm512_set1_epi32((int)last));
#else
    const unit_vector below = (unit_vector)(word <= last);
#if VECTOR_SIZE == 32
    return (uint32_t)_mm256_movemask_ps((__m256)below);
#elif defined(__x86_64__)
    return (uint32_t)_mm_movemask_ps((__m128)below);
#else
    return (below[0] & 1) | (below[1] & 2) | (below[2] & 4) | (below[3] & 8);
#endif
#endif
}

/* Bit u % 8 of units[u / 8] for the STEP units of these blocks. */
INLINE void philox_end(const struct philox *s, const struct keep *k, uint8_t *units)
{
    const uint32_t last = (uint32_t)(k->threshold - 1); /* word < threshold, in 32 bits */
#pragma GCC unroll 8
    for (int g = 0; g < GROUPS; g++) {
        const block_vector w01 = join(s->c0[g], s->c1[g]), w23 = join(s->c2[g], s->c3[g]);
        const unit_vector  low = (unit_vector)__builtin_shufflevector(w01, w23, FIRST_BLOCKS);
        const unit_vector  high = (unit_vector)__builtin_shufflevector(w01, w23, LAST_BLOCKS);
        const uint32_t     bits = at_most(low, last) | at_most(high, last) << (CHUNK / 2);
        memcpy(units + g * CHUNK / 8, &bits, CHUNK / 8);
    }
}

/* Else all units are kept, or none, and no word is looked at. */
static bool drawn(const struct keep *k)
{
    return k->threshold > 0 && k->threshold <= UINT32_MAX;
}

/* Bits of n <= TILE units from `first`, and of those before it from a multiple of STEP. Returns which bit is its. */
static int64_t decide(const struct keep *k, int64_t first, int64_t n, uint8_t *units)
{
    const int64_t skip = first % STEP;
    if (!drawn(k))
        memset(units, k->threshold ? 0xff : 0, UNITS_SIZE);
    for (int64_t i = 0; i < skip + n && drawn(k); i += STEP) {
        struct philox s;
        philox_begin(&s, k, (uint64_t)(first - skip + i) / PHILOX_WORDS);
        for (int round = 2; round < ROUNDS; round++)
            philox_round(&s, k->key[round][0], k->key[round][1]);
        philox_end(&s, k, units + i / 8);
    }
    return skip;
}

INLINE vector keep_vector(vector y, uint32_t units, vector unit, vector dropped)
{
#if VECTOR_SIZE == 64 && REAL_SIZE == 4
    return _mm512_mask_blend_ps(_mm512_test_epi32_mask(_mm512_set1_epi32((int)units), (__m512i)unit), dropped, y);
#else
    const int_vector kept = (((int_vector){0} + (real_int)units) & (int_vector)unit) != 0;
    return (vector)(((int_vector)y & kept) | ((int_vector)dropped & ~kept));
#endif
}

/* y where a unit is kept, of PAIR units from the i-th, else dropped. */
INLINE struct pair keep_pair(wf_dtype dtype, struct pair y, const uint8_t *units, int64_t i, vector dropped)
{
#define BIT(k)  (real_int)(1u << (k))
#define FOUR(k) BIT(k), BIT((k) + 1), BIT((k) + 2), BIT((k) + 3)
    static const real_int bits[] = {FOUR(0), FOUR(4), FOUR(8), FOUR(12), FOUR(16), FOUR(20), FOUR(24), FOUR(28)};
#undef FOUR
#undef BIT
    const struct pair unit = pair_load(REAL_DTYPE, dtype, (const char *)bits);
    uint64_t          word;
    memcpy(&word, units + i / 8, sizeof word);
    const uint32_t kept = (uint32_t)(word >> i % 8);
    return (struct pair){keep_vector(y.a, kept, unit.a, dropped), keep_vector(y.b, kept, unit.b, dropped)};
}

#endif
