/* Dropout on the CPU: y = keep(u) ? x * scale [+ shift] : dropped, with keep(u) from Philox. */
#include "common/philox.h"
#include "tile.h"

enum { PHILOX_WORDS = 4, ROOM = TILE + 2 * PHILOX_WORDS };

struct dropout_run {
    const struct dropout *p;
    uint64_t              seed, offset;
    real                  scale, shift, dropped;
    bool                  stream;
};

/* keep[i] = ~0 where unit first + i is kept, else 0, for n <= TILE units; keep has room for ROOM. Returns where unit
 * `first` is. Words go through an array for each place in a block, because no compiler vectorizes the store of a whole
 * block. */
static const uint32_t *decide(const struct dropout_run *r, int64_t first, int64_t n, uint32_t *keep)
{
    uint32_t       plane[PHILOX_WORDS][ROOM / PHILOX_WORDS];
    const int64_t  skip = first % PHILOX_WORDS, blocks = ceil_div(skip + n, PHILOX_WORDS);
    const uint64_t seed = r->seed, offset = r->offset, block = (uint64_t)first / PHILOX_WORDS;
    const uint64_t threshold = r->p->threshold;
    if (threshold == 0) {
        memset(keep, 0, (size_t)blocks * PHILOX_WORDS * sizeof *keep);
        return keep + skip;
    }
    for (int64_t i = 0; i < blocks; i++) { /* not SIMD, which would make an array of word for each lane */
        uint32_t word[PHILOX_WORDS];
        wf_philox4x32(seed, offset, block + (uint64_t)i, word);
        plane[0][i] = word[0];
        plane[1][i] = word[1];
        plane[2][i] = word[2];
        plane[3][i] = word[3];
    }
    const uint32_t last = (uint32_t)(threshold - 1); /* word < threshold, in 32 bits */
    SIMD
    for (int64_t i = 0; i < blocks; i++) {
        keep[PHILOX_WORDS * i + 0] = plane[0][i] <= last ? ~UINT32_C(0) : 0;
        keep[PHILOX_WORDS * i + 1] = plane[1][i] <= last ? ~UINT32_C(0) : 0;
        keep[PHILOX_WORDS * i + 2] = plane[2][i] <= last ? ~UINT32_C(0) : 0;
        keep[PHILOX_WORDS * i + 3] = plane[3][i] <= last ? ~UINT32_C(0) : 0;
    }
    return keep + skip;
}

/* Bit u % 8 of byte u / 8; first is a multiple of 8, bits past n are 0. */
static void write_mask(uint8_t *mask, int64_t first, int64_t n, const uint32_t *keep)
{
    for (int64_t i = 0; i < n; i += 8) {
        unsigned byte = 0;
        for (int64_t k = 0; k < min64(8, n - i); k++)
            byte |= (keep[i + k] & 1) << k;
        mask[(first + i) / 8] = (uint8_t)byte;
    }
}

/* n <= TILE elements from `at`; a decision for each. */
static void drop_tile(const struct dropout_run *r, int64_t at, int64_t n, const uint32_t *keep)
{
    const struct dropout *p = r->p;
    const real            scale = r->scale, shift = r->shift, dropped = r->dropped;
    real                  x_buffer[TILE], y_buffer[TILE];
    const real           *x = load(p->x, p->x_dtype, at, n, x_buffer);
    real                 *y = store_target(p->y, p->x_dtype, at, r->stream, y_buffer);
    if (p->shifted) {
        SIMD
        for (int64_t i = 0; i < n; i++)
            y[i] = keep[i] ? x[i] * scale + shift : dropped;
    } else {
        SIMD
        for (int64_t i = 0; i < n; i++)
            y[i] = keep[i] ? x[i] * scale : dropped;
    }
    store(p->y, p->x_dtype, at, y, n, r->stream);
}

/* Tiles of elements, which are the units. */
static void drop_elements(void *arg, int64_t begin, int64_t end)
{
    const struct dropout_run *r = arg;
    const int64_t             total = r->p->n * r->p->c * r->p->hw;
    for (int64_t tile = begin; tile < end; tile++) {
        uint32_t        room[ROOM];
        const int64_t   at = tile * TILE, n = min64(TILE, total - at);
        const uint32_t *keep = decide(r, at, n, room);
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
    for (int64_t first = begin; first < end; first += TILE) {
        uint32_t        room[ROOM], keep[TILE];
        const int64_t   lines = min64(TILE, end - first);
        const uint32_t *kept = decide(r, first, lines, room);
        for (int64_t i = 0; i < lines; i++) {
            memset(keep, kept[i] ? 0xff : 0, (size_t)min64(TILE, hw) * sizeof *keep);
            for (int64_t done = 0; done < hw; done += TILE)
                drop_tile(r, (first + i) * hw + done, min64(TILE, hw - done), keep);
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
            uint32_t        room[ROOM];
            const int64_t   n = min64(TILE, c - col);
            const uint32_t *keep = decide(r, sample * c + col, n, room);
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
        uint32_t      room[ROOM];
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
