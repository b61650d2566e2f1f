/* Dropout on the CPU: y = keep(u) ? x * scale [+ shift] : dropped, with keep(u) from Philox or a given mask. What is fused
 * with it is done to tiles in the cache: see struct dropout. */
#include "common/activation.h"
#include "keep.h"

struct dropout_run {
    const struct dropout *p;
    struct keep           keep;
    real                  scale, shift, dropped, slope;
    bool                  stream;
};

/* As decide(), or the bits that are given. */
static int64_t units_of(const struct dropout_run *r, int64_t first, int64_t n, uint8_t *units)
{
    if (!r->p->given)
        return decide(&r->keep, first, n, units);
    const int64_t skip = first % 8;
    memcpy(units, r->p->mask + first / 8, (size_t)(skip + n + 7) / 8);
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
            decide(&r->keep, d->following + unit, STEP, d->next + unit / 8);
            continue;
        }
        struct philox s;
        philox_begin(&s, &r->keep, (uint64_t)(d->following + unit) / PHILOX_WORDS);
#pragma GCC unroll 8
        for (int round = 2; round < ROUNDS; round++) {
            philox_round(&s, r->keep.key[round][0], r->keep.key[round][1]);
            for (int k = 0; round - 2 < GROUPS && k < CHUNK; k += PAIR, i += PAIR)
                drop_whole(dtype, r, d, i, stream);
        }
        philox_end(&s, &r->keep, d->next + unit / 8);
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

/* ---- fused ------------------------------------------------------------------------------------------------------ */

/* z = x + bias, n elements from `at`. */
static void add_bias(const struct dropout *p, int64_t at, int64_t n, const real *x, real *z)
{
    const bool last = p->layout == WF_NHWC || p->hw == 1;
    for (int64_t i = 0, run; i < n; i += run) {
        real          buffer[TILE];
        const int64_t line = last ? 0 : (at + i) / p->hw, place = last ? (at + i) % p->c : (at + i) % p->hw;
        const real   *bias = load(p->bias, p->w_dtype, last ? place : line % p->c, last ? min64(p->c - place, n - i) : 1, buffer);
        run = min64((last ? p->c : p->hw) - place, n - i);
        if (last) {
            SIMD
            for (int64_t j = 0; j < run; j++)
                z[i + j] = x[i + j] + bias[j];
        } else {
            SIMD
            for (int64_t j = 0; j < run; j++)
                z[i + j] = x[i + j] + bias[0];
        }
    }
}

INLINE void activate(int kind, bool derivative, real slope, int64_t n, const real *x, real *z)
{
    SIMD
    for (int64_t i = 0; i < n; i++)
        z[i] = derivative ? activation_derivative(kind, slope, x[i]) : activation_value(kind, slope, x[i]);
}

INLINE void activate_tile(bool derivative, wf_activation kind, real slope, int64_t n, const real *x, real *z)
{
    switch (kind) {
    case WF_RELU:
        return activate(ACTIVATION_RELU, derivative, slope, n, x, z);
    case WF_LEAKY_RELU:
        return activate(ACTIVATION_LEAKY_RELU, derivative, slope, n, x, z);
    case WF_SILU:
        return activate(ACTIVATION_SILU, derivative, slope, n, x, z);
    case WF_GELU:
        return activate(ACTIVATION_GELU, derivative, slope, n, x, z);
    case WF_GELU_TANH:
        return activate(ACTIVATION_GELU_TANH, derivative, slope, n, x, z);
    default:
        return activate(ACTIVATION_NONE, derivative, slope, n, x, z);
    }
}

/* What comes before the dropout, or is to be multiplied with its gradient. */
static const real *inner_tile(const struct dropout_run *r, int64_t at, int64_t n, real *buffer, real *z)
{
    const struct dropout *p = r->p;
    const real           *x = load(p->backward ? p->x_in : p->x, p->x_dtype, at, n, buffer);
    if (p->bias) {
        add_bias(p, at, n, x, z);
        x = z;
    }
    if (!p->activation)
        return x;
    if (p->backward)
        activate_tile(true, p->activation, r->slope, n, x, z);
    else
        activate_tile(false, p->activation, r->slope, n, x, z);
    return z;
}

static void fuse_tile(const struct dropout_run *r, int64_t at, int64_t n, const uint8_t *units, int64_t skip)
{
    const struct dropout *p = r->p;
    real                  buffer[TILE], z[TILE], other_buffer[TILE], out[TILE];
    const real           *inner = inner_tile(r, at, n, buffer, z), *x = inner, *other = NULL;
    if (p->backward)
        x = load(p->x, p->x_dtype, at, n, other_buffer);
    else if (p->residual)
        other = load(p->residual, p->x_dtype, at, n, other_buffer);
    for (int64_t i = 0; i < n; i += PAIR) {
        const int64_t     part = min64(n - i, PAIR);
        const struct pair from = tile_pair(x, i, part);
        struct pair       d = {scaled(r, from.a), scaled(r, from.b)};
        if (p->backward)
            d = pair_product(d, tile_pair(inner, i, part));
        d = keep_pair(REAL_DTYPE, d, units, skip + i, vector_fill(r->dropped));
        if (other)
            d = pair_sum(tile_pair(other, i, part), d);
        pair_store_part(REAL_DTYPE, (char *)(out + i), part, d);
    }
    put(p->y, p->x_dtype, at, out, n, r->stream);
}

/* n <= TILE elements from `at`, whose units' bits begin at bit `skip`. */
static void drop_tile(const struct dropout_run *r, int64_t at, int64_t n, const uint8_t *units, int64_t skip,
                      uint8_t *next)
{
    if (r->p->fused) {
        fuse_tile(r, at, n, units, skip);
        return;
    }
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
    const bool                ahead = AHEAD && drawn(&r->keep) && !r->p->given && !r->p->fused;
    uint8_t                   units[2][UNITS_SIZE]; /* this tile's and the next one's */
    for (int64_t tile = begin; tile < end; tile++) {
        const int64_t  at = tile * TILE, n = min64(TILE, total - at);
        uint8_t *const now = units[tile % 2], *const next = units[(tile + 1) % 2];
        if (!ahead || tile == begin)
            units_of(r, at, n, now);
        if (r->p->mask && !r->p->given)
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
        const int64_t lines = min64(TILE, end - first), skip = units_of(r, first, lines, units);
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
            const int64_t n = min64(TILE, c - col), skip = units_of(r, sample * c + col, n, units);
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
        decide(&r->keep, first, n, kept);
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
    struct dropout_run r = {.p = p,
                            .keep = keep_of(p->seed, p->seed_ptr, p->offset, p->offset_ptr, p->threshold),
                            .scale = (real)p->scale,
                            .shift = (real)p->shift,
                            .dropped = (real)p->dropped,
                            .slope = (real)p->slope,
                            .stream = run->stream};
    const int64_t units = p->n * p->c, total = units * p->hw;
    const int64_t tile_grain = CPU_GRAIN_BYTES / (TILE * (int64_t)sizeof(real));
    if (!p->features || p->hw == 1) {
        cpu_parallel(run, ceil_div(total, TILE), tile_grain, drop_elements, &r);
        return;
    }
    if (p->mask && !p->given)
        cpu_parallel(run, ceil_div(units, TILE), tile_grain, mask_units, &r);
    if (total == 0)
        return;
    if (p->layout == WF_NCHW)
        cpu_parallel(run, units, CPU_GRAIN_BYTES / (p->hw * (int64_t)sizeof(real)), drop_lines, &r);
    else
        cpu_parallel(run, p->n * p->hw, CPU_GRAIN_BYTES / (p->c * (int64_t)sizeof(real)), drop_rows, &r);
}
