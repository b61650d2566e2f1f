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
    ROOM = TILE + 2 * PHILOX_WORDS * BLOCKS * GROUPS,
};

struct dropout_run {
    const struct dropout *p;
    uint64_t              seed, offset;
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

/* wf_philox4x32 of GROUPS * BLOCKS consecutive blocks, a block to a lane. A word is the lower half of its lane: what the
 * upper one holds meets no product and no word. */
INLINE void philox_blocks(const uint64_t key[ROUNDS][2], uint64_t offset, block_vector block,
                          block_vector word[PHILOX_WORDS][GROUPS])
{
    block_vector c0[GROUPS], c1[GROUPS], c2[GROUPS], c3[GROUPS];
    for (int g = 0; g < GROUPS; g++) {
        c0[g] = (block_vector){0} + offset;
        c1[g] = c0[g] >> 32;
        c2[g] = block + (uint64_t)(g * BLOCKS);
        c3[g] = c2[g] >> 32;
    }
#pragma GCC unroll 10
    for (int round = 0; round < ROUNDS; round++)
#pragma GCC unroll 4
        for (int g = 0; g < GROUPS; g++) {
            const block_vector a = multiply(c0[g], 0xd2511f53u), b = multiply(c2[g], 0xcd9e8d57u);
            c0[g] = (b >> 32) ^ c1[g] ^ key[round][0];
            c1[g] = b;
            c2[g] = (a >> 32) ^ c3[g] ^ key[round][1];
            c3[g] = a;
        }
    memcpy(word[0], c0, sizeof c0);
    memcpy(word[1], c1, sizeof c1);
    memcpy(word[2], c2, sizeof c2);
    memcpy(word[3], c3, sizeof c3);
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

INLINE void store_decisions(real_int *keep, unit_vector word, uint32_t last)
{
    const unit_vector below = (unit_vector)(word <= last);
    int32_t           kept[VECTOR_SIZE / 4];
    memcpy(kept, &below, sizeof kept);
    for (int k = 0; k < VECTOR_SIZE / 4; k++)
        keep[k] = kept[k];
}

/* keep[i] = ~0 where unit first + i is kept, else 0, for n <= TILE units; keep has room for ROOM. Returns where unit
 * `first` is. */
static const real_int *decide(const struct dropout_run *r, int64_t first, int64_t n, real_int *keep)
{
    const int64_t  skip = first % PHILOX_WORDS, blocks = ceil_div(skip + n, PHILOX_WORDS);
    const uint64_t threshold = r->p->threshold;
    if (threshold == 0) {
        memset(keep, 0, (size_t)(skip + n) * sizeof *keep);
        return keep + skip;
    }
    uint64_t key[ROUNDS][2];
    for (uint32_t round = 0; round < ROUNDS; round++) {
        key[round][0] = (uint32_t)r->seed + round * 0x9e3779b9u;
        key[round][1] = (uint32_t)(r->seed >> 32) + round * 0xbb67ae85u;
    }
    static const uint64_t index[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    const uint32_t        last = (uint32_t)(threshold - 1); /* word < threshold, in 32 bits */
    block_vector          block;
    memcpy(&block, index, sizeof block);
    block += (uint64_t)first / PHILOX_WORDS;
    for (int64_t i = 0; i < blocks; i += GROUPS * BLOCKS, block += GROUPS * BLOCKS) {
        block_vector word[PHILOX_WORDS][GROUPS];
        philox_blocks(key, r->offset, block, word);
        real_int *to = keep + PHILOX_WORDS * i;
        for (int g = 0; g < GROUPS; g++, to += PHILOX_WORDS * BLOCKS) {
            const block_vector w01 = (word[0][g] & 0xffffffff) | word[1][g] << 32;
            const block_vector w23 = (word[2][g] & 0xffffffff) | word[3][g] << 32;
            store_decisions(to, (unit_vector)__builtin_shufflevector(w01, w23, FIRST_BLOCKS), last);
            store_decisions(to + VECTOR_SIZE / 4, (unit_vector)__builtin_shufflevector(w01, w23, LAST_BLOCKS), last);
        }
    }
    return keep + skip;
}

/* Bit u % 8 of byte u / 8; first is a multiple of 8, bits past n are 0. */
static void write_mask(uint8_t *mask, int64_t first, int64_t n, const real_int *keep)
{
    for (int64_t i = 0; i < n; i += 8) {
        unsigned byte = 0;
#if VECTOR_SIZE >= 32 && REAL_SIZE == 4
        if (i + 8 <= n)
            byte = (unsigned)_mm256_movemask_ps(_mm256_loadu_ps((const float *)(keep + i)));
        else
#endif
            for (int64_t k = 0; k < min64(8, n - i); k++)
                byte |= (unsigned)(keep[i + k] & 1) << k;
        mask[(first + i) / 8] = (uint8_t)byte;
    }
}

/* ---- elements --------------------------------------------------------------------------------------------------- */

INLINE vector dropped_vector(const struct dropout_run *r, vector x, vector keep, bool shifted)
{
    vector y = x * r->scale;
    if (shifted)
        y = y + r->shift;
    const int_vector m = (int_vector)keep;
    return (vector)(((int_vector)y & m) | ((int_vector)vector_fill(r->dropped) & ~m));
}

/* n <= PAIR elements. */
INLINE struct pair dropped_pair(wf_dtype dtype, const struct dropout_run *r, const char *x, int64_t n, const real_int *keep)
{
    const struct pair from = pair_load_part(dtype, dtype, x, n);
    const struct pair kept = pair_load_part(REAL_DTYPE, dtype, (const char *)keep, n);
    const bool        shifted = r->p->shifted;
    return (struct pair){dropped_vector(r, from.a, kept.a, shifted), dropped_vector(r, from.b, kept.b, shifted)};
}

INLINE void drop_values(wf_dtype dtype, const struct dropout_run *r, int64_t at, int64_t n, const real_int *keep)
{
    const int64_t size = size_of(dtype);
    const char   *x = at_element(r->p->x, dtype, at);
    char         *y = at_element(r->p->y, dtype, at);
    int64_t       i = 0, begin = 0, end = n / PAIR * PAIR;
    if (r->stream)
        whole_lines(y, size, n, &begin, &end);
    for (; i < begin; i += PAIR) {
        const int64_t part = min64(begin - i, PAIR);
        pair_store_part(dtype, y + i * size, part, dropped_pair(dtype, r, x + i * size, part, keep + i));
    }
    if (r->stream)
        for (i = begin; i < end; i += PAIR)
            pair_stream(dtype, y + i * size, dropped_pair(dtype, r, x + i * size, PAIR, keep + i));
    else
        for (i = begin; i < end; i += PAIR)
            pair_store(dtype, y + i * size, dropped_pair(dtype, r, x + i * size, PAIR, keep + i));
    for (; i < n; i += PAIR) {
        const int64_t part = min64(n - i, PAIR);
        pair_store_part(dtype, y + i * size, part, dropped_pair(dtype, r, x + i * size, part, keep + i));
    }
}

/* n <= TILE elements from `at`; a decision for each. */
static void drop_tile(const struct dropout_run *r, int64_t at, int64_t n, const real_int *keep)
{
    FOR_DTYPE(r->p->x_dtype, drop_values, r, at, n, keep);
}

/* Tiles of elements, which are the units. */
static void drop_elements(void *arg, int64_t begin, int64_t end)
{
    const struct dropout_run *r = arg;
    const int64_t             total = r->p->n * r->p->c * r->p->hw;
    for (int64_t tile = begin; tile < end; tile++) {
        real_int        room[ROOM];
        const int64_t   at = tile * TILE, n = min64(TILE, total - at);
        const real_int *keep = decide(r, at, n, room);
        if (r->p->mask)
            write_mask(r->p->mask, at, n, keep);
        drop_tile(r, at, n, keep);
    }
    stream_fence(r->stream);
}

/* Channels first: lines of hw elements, one unit each. */
static void drop_lines(void *arg, int64_t begin, int64_t end)
{
    const struct dropout_run *r = arg;
    const int64_t             hw = r->p->hw;
    static const real_int     none[TILE];
    real_int                  all[TILE];
    memset(all, 0xff, (size_t)min64(TILE, hw) * sizeof *all);
    for (int64_t first = begin; first < end; first += TILE) {
        real_int        room[ROOM];
        const int64_t   lines = min64(TILE, end - first);
        const real_int *kept = decide(r, first, lines, room);
        for (int64_t i = 0; i < lines; i++) {
            for (int64_t done = 0; done < hw; done += TILE)
                drop_tile(r, (first + i) * hw + done, min64(TILE, hw - done), kept[i] ? all : none);
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
            real_int        room[ROOM];
            const int64_t   n = min64(TILE, c - col);
            const real_int *keep = decide(r, sample * c + col, n, room);
            for (int64_t row = first; row < last; row++)
                drop_tile(r, row * c + col, n, keep);
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
        real_int      room[ROOM];
        const int64_t first = tile * TILE, n = min64(TILE, units - first);
        write_mask(r->p->mask, first, n, decide(r, first, n, room));
    }
}

static size_t dropout_workspace(const struct dropout *p)
{
    (void)p;
    return 0;
}

static void dropout(const struct dropout *p, const struct cpu_run *run)
{
    struct dropout_run r = {.p = p,
                            .seed = p->seed_ptr ? *p->seed_ptr : p->seed,
                            .offset = p->offset + (p->offset_ptr ? *p->offset_ptr : 0),
                            .scale = (real)p->scale,
                            .shift = (real)p->shift,
                            .dropped = (real)p->dropped,
                            .stream = run->stream};
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
