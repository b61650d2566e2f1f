/* Dropout on the CPU: y = keep(u) ? x * scale [+ shift] : dropped, with keep(u) from Philox. */
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

struct dropout_run {
    const struct dropout *p;
    uint64_t              key[ROUNDS][2], offset;
    real                  scale, shift, dropped;
    bool                  stream;
};

/* ---- random words ----------------------------------------------------------------------------------------------- */

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
INLINE void philox_begin(struct philox *s, const struct dropout_run *r, uint64_t block)
{
    static const uint64_t index[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    const uint64_t        a = (uint64_t)0xd2511f53u * (uint32_t)r->offset;
    const uint64_t        c2 = a >> 32 ^ block >> 32 ^ r->key[0][1];
    const uint64_t        b = (uint64_t)0xcd9e8d57u * c2;
    block_vector          lane;
    memcpy(&lane, index, sizeof lane);
#pragma GCC unroll 8
    for (int g = 0; g < GROUPS; g++) {
        const block_vector first = multiply(lane + (block + (uint64_t)g * BLOCKS), 0xcd9e8d57u);
        const block_vector second = multiply(first >> 32 ^ (r->offset >> 32 ^ r->key[0][0]), 0xd2511f53u);
        s->c0[g] = first ^ (b >> 32 ^ r->key[1][0]);
        s->c1[g] = (block_vector){0} + b;
        s->c2[g] = second >> 32 ^ (a ^ r->key[1][1]);
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
INLINE void philox_end(const struct philox *s, const struct dropout_run *r, uint8_t *units)
{
    const uint32_t last = (uint32_t)(r->p->threshold - 1); /* word < threshold, in 32 bits */
#pragma GCC unroll 8
    for (int g = 0; g < GROUPS; g++) {
        const block_vector w01 = join(s->c0[g], s->c1[g]), w23 = join(s->c2[g], s->c3[g]);
        const unit_vector  low = (unit_vector)__builtin_shufflevector(w01, w23, FIRST_BLOCKS);
        const unit_vector  high = (unit_vector)__builtin_shufflevector(w01, w23, LAST_BLOCKS);
        const uint32_t     bits = at_most(low, last) | at_most(high, last) << (CHUNK / 2);
        memcpy(units + g * CHUNK / 8, &bits, CHUNK / 8);
    }
}

/* Bits of n <= TILE units from `first`, and of those before it from a multiple of STEP. Returns which bit is its. */
static int64_t decide(const struct dropout_run *r, int64_t first, int64_t n, uint8_t *units)
{
    const int64_t skip = first % STEP;
    if (r->p->threshold == 0)
        memset(units, 0, UNITS_SIZE);
    for (int64_t i = 0; i < skip + n && r->p->threshold; i += STEP) {
        struct philox s;
        philox_begin(&s, r, (uint64_t)(first - skip + i) / PHILOX_WORDS);
        for (int round = 2; round < ROUNDS; round++)
            philox_round(&s, r->key[round][0], r->key[round][1]);
        philox_end(&s, r, units + i / 8);
    }
    return skip;
}

/* Bit u % 8 of byte u / 8; first is a multiple of STEP, bits past n are 0. */
static void write_mask(uint8_t *mask, int64_t first, int64_t n, const uint8_t *units)
{
    memcpy(mask + first / 8, units, (size_t)(n / 8));
    if (n % 8)
        mask[(first + n) / 8] = units[n / 8] & (uint8_t)((1 << n % 8) - 1);
}

/* ---- elements --------------------------------------------------------------------------------------------------- */

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

INLINE vector scaled(const struct dropout_run *r, vector x)
{
    return r->p->shifted ? x * r->scale + r->shift : x * r->scale;
}

/* What is done to a run of elements: x to y, each by its unit's bit. */
struct drop {
    const char    *x;
    char          *y;
    const uint8_t *units;
    int64_t        skip;      /* bit of the first element's unit                                           */
    uint8_t       *next;      /* where bits of the TILE units that follow are put meanwhile; NULL: nowhere */
    int64_t        following; /* the first of these                                                        */
};

/* n <= PAIR elements from i. */
INLINE struct pair dropped_pair(wf_dtype dtype, const struct dropout_run *r, const struct drop *d, int64_t i, int64_t n)
{
    const struct pair x = pair_load_part(dtype, dtype, d->x + i * size_of(dtype), n);
    const struct pair y = {scaled(r, x.a), scaled(r, x.b)};
    return keep_pair(dtype, y, d->units, d->skip + i, vector_fill(r->dropped));
}

INLINE void drop_whole(wf_dtype dtype, const struct dropout_run *r, const struct drop *d, int64_t i, bool stream)
{
    const struct pair y = dropped_pair(dtype, r, d, i, PAIR);
    if (stream)
        pair_stream(dtype, d->y + i * size_of(dtype), y);
    else
        pair_store(dtype, d->y + i * size_of(dtype), y);
}

INLINE void drop_ends(wf_dtype dtype, const struct dropout_run *r, const struct drop *d, int64_t i, int64_t end)
{
    for (; i < end; i += PAIR) {
        const int64_t n = min64(end - i, PAIR);
        pair_store_part(dtype, d->y + i * size_of(dtype), n, dropped_pair(dtype, r, d, i, n));
    }
}

/* Elements [i, end), whole pairs. A round of Philox waits for the one before it: what is done to the elements fills the
 * time. */
INLINE void drop_middle(wf_dtype dtype, const struct dropout_run *r, const struct drop *d, int64_t i, int64_t end,
                        bool stream)
{
    for (int64_t unit = 0; AHEAD && d->next && unit < TILE; unit += STEP) {
        if (i + STEP > end) {
            decide(r, d->following + unit, STEP, d->next + unit / 8);
            continue;
        }
        struct philox s;
        philox_begin(&s, r, (uint64_t)(d->following + unit) / PHILOX_WORDS);
#pragma GCC unroll 8
        for (int round = 2; round < ROUNDS; round++) {
            philox_round(&s, r->key[round][0], r->key[round][1]);
            for (int k = 0; round - 2 < GROUPS && k < CHUNK; k += PAIR, i += PAIR)
                drop_whole(dtype, r, d, i, stream);
        }
        philox_end(&s, r, d->next + unit / 8);
    }
    for (; i < end; i += PAIR)
        drop_whole(dtype, r, d, i, stream);
}

INLINE void drop_values(wf_dtype dtype, const struct dropout_run *r, const struct drop *d, int64_t n)
{
    int64_t begin = 0, end = n / PAIR * PAIR;
    if (r->stream)
        whole_lines(d->y, size_of(dtype), n, &begin, &end);
    drop_ends(dtype, r, d, 0, begin);
    if (r->stream)
        drop_middle(dtype, r, d, begin, end, true);
    else
        drop_middle(dtype, r, d, begin, end, false);
    drop_ends(dtype, r, d, end, n);
}

/* n <= TILE elements from `at`, whose units' bits begin at bit `skip`. */
static void drop_tile(const struct dropout_run *r, int64_t at, int64_t n, const uint8_t *units, int64_t skip,
                      uint8_t *next)
{
    const struct drop d = {.x = at_element(r->p->x, r->p->x_dtype, at),
                           .y = at_element(r->p->y, r->p->x_dtype, at),
                           .units = units,
                           .skip = skip,
                           .next = next,
                           .following = at + TILE};
    FOR_DTYPE(r->p->x_dtype, drop_values, r, &d, n);
}

/* Tiles of elements, which are the units. */
static void drop_elements(void *arg, int64_t begin, int64_t end)
{
    const struct dropout_run *r = arg;
    const int64_t             total = r->p->n * r->p->c * r->p->hw;
    const bool                ahead = AHEAD && r->p->threshold != 0;
    uint8_t                   units[2][UNITS_SIZE]; /* this tile's and the next one's */
    for (int64_t tile = begin; tile < end; tile++) {
        const int64_t  at = tile * TILE, n = min64(TILE, total - at);
        uint8_t *const now = units[tile % 2], *const next = units[(tile + 1) % 2];
        if (!ahead || tile == begin)
            decide(r, at, n, now);
        if (r->p->mask)
            write_mask(r->p->mask, at, n, now);
        drop_tile(r, at, n, now, 0, ahead && tile + 1 < end ? next : NULL);
    }
    stream_fence(r->stream);
}

/* Channels first: lines of hw elements, one unit each. */
static void drop_lines(void *arg, int64_t begin, int64_t end)
{
    const struct dropout_run *r = arg;
    const int64_t             hw = r->p->hw;
    static const uint8_t      none[UNITS_SIZE];
    uint8_t                   all[UNITS_SIZE], units[UNITS_SIZE];
    memset(all, 0xff, sizeof all);
    for (int64_t first = begin; first < end; first += TILE) {
        const int64_t lines = min64(TILE, end - first), skip = decide(r, first, lines, units);
        for (int64_t i = 0; i < lines; i++) {
            const bool kept = units[(skip + i) / 8] >> (skip + i) % 8 & 1;
            for (int64_t done = 0; done < hw; done += TILE)
                drop_tile(r, (first + i) * hw + done, min64(TILE, hw - done), kept ? all : none, 0, NULL);
        }
    }
    stream_fence(r->stream);
}

/* Channels last: rows of c elements; all hw rows of a sample share c units. */
static void drop_rows(void *arg, int64_t begin, int64_t end)
{
    const struct dropout_run *r = arg;
    const int64_t             c = r->p->c, hw = r->p->hw;
    for (int64_t first = begin; first < end;) {
        const int64_t sample = first / hw, last = min64(end, (sample + 1) * hw);
        for (int64_t col = 0; col < c; col += TILE) {
            uint8_t       units[UNITS_SIZE];
            const int64_t n = min64(TILE, c - col), skip = decide(r, sample * c + col, n, units);
            for (int64_t row = first; row < last; row++)
                drop_tile(r, row * c + col, n, units, skip, NULL);
        }
        first = last;
    }
    stream_fence(r->stream);
}

static void mask_units(void *arg, int64_t begin, int64_t end)
{
    const struct dropout_run *r = arg;
    const int64_t             units = r->p->n * r->p->c;
    for (int64_t tile = begin; tile < end; tile++) {
        uint8_t       kept[UNITS_SIZE];
        const int64_t first = tile * TILE, n = min64(TILE, units - first);
        decide(r, first, n, kept);
        write_mask(r->p->mask, first, n, kept);
    }
}

static size_t dropout_workspace(const struct dropout *p)
{
    (void)p;
    return 0;
}

static void dropout(const struct dropout *p, const struct cpu_run *run)
{
    const uint64_t     seed = p->seed_ptr ? *p->seed_ptr : p->seed;
    struct dropout_run r = {.p = p,
                            .offset = p->offset + (p->offset_ptr ? *p->offset_ptr : 0),
                            .scale = (real)p->scale,
                            .shift = (real)p->shift,
                            .dropped = (real)p->dropped,
                            .stream = run->stream};
    for (uint32_t round = 0; round < ROUNDS; round++) {
        r.key[round][0] = (uint32_t)seed + round * 0x9e3779b9u;
        r.key[round][1] = (uint32_t)(seed >> 32) + round * 0xbb67ae85u;
    }
    const int64_t units = p->n * p->c, total = units * p->hw;
    const int64_t tile_grain = CPU_GRAIN_BYTES / (TILE * (int64_t)sizeof(real));
    if (!p->features || p->hw == 1) {
        cpu_parallel(run, ceil_div(total, TILE), tile_grain, drop_elements, &r);
        return;
    }
    if (p->mask)
        cpu_parallel(run, ceil_div(units, TILE), tile_grain, mask_units, &r);
    if (total == 0)
        return;
    if (p->layout == WF_NCHW)
        cpu_parallel(run, units, CPU_GRAIN_BYTES / (p->hw * (int64_t)sizeof(real)), drop_lines, &r);
    else
        cpu_parallel(run, p->n * p->hw, CPU_GRAIN_BYTES / (p->c * (int64_t)sizeof(real)), drop_rows, &r);
}
