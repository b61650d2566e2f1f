/* Forward: a batch of rows is read for its statistics, then written. Included by layernorm_cpu.c. */
#include "quantize.h"

struct layernorm_forward_run {
    const struct layernorm_forward *p;     /* of the sum, if there is one: x is where it is put, of its dtype */
    const struct layernorm_forward *given; /* as the caller gave it */
    const struct addition_run      *add;   /* NULL: x is given */
    int64_t                         segments;
    struct moments                 *part;  /* [rows, segments]; rows of several segments only */
    struct stats               *stats; /* [rows]; likewise */
    enum stores                     stores;
    int64_t                         batch; /* rows */
    int64_t                         x_ahead, y_ahead; /* bytes to what is fetched meanwhile */
    real                           *factor; /* [rows], of a quantised y; where part is */
    int32_t                        *amax;   /* the bits of the largest |y| so far */
};

/* Sums over values x of a row, with d = x - center. */
struct deviations {
    real sum, squares;
};

INLINE struct deviations leaf_deviations(wf_dtype dtype, wf_dtype order, const char *x, int64_t n, real center)
{
    const int64_t size = size_of(dtype);
    struct lanes  sum = {0}, squares = {0};
    int64_t       i = 0;
    for (; i + SWATH <= n; i += SWATH)
        for (int j = 0; j < LANES / PAIR; j++) {
            struct pair d[4];
            for (int k = 0; k < 4; k++)
                d[k] = pair_minus(pair_load(dtype, order, x + (i + k * LANES + j * PAIR) * size), center);
            lanes_add(&sum, order, j, pair_tree(d));
            for (int k = 0; k < 4; k++)
                d[k] = pair_product(d[k], d[k]);
            lanes_add(&squares, order, j, pair_tree(d));
        }
    for (; i < n; i += LANES)
        for (int j = 0; j < LANES / PAIR && i + j * PAIR < n; j++) {
            const int64_t part = min64(n - (i + j * PAIR), PAIR);
            struct pair   d = pair_minus(pair_load_part(dtype, order, x + (i + j * PAIR) * size, part), center);
            if (part < PAIR)
                d = pair_first(order, d, part);
            lanes_add(&sum, order, j, d);
            lanes_add(&squares, order, j, pair_product(d, d));
        }
    return (struct deviations){lanes_sum(sum), lanes_sum(squares)};
}

INLINE struct deviations typed_deviations(wf_dtype dtype, const char *x, int64_t n, real center)
{
    return leaf_deviations(dtype, dtype, x, n, center);
}

/* The same in units of 2^scale, for squares that left the range. */
__attribute__((noinline, cold)) static struct deviations scaled_deviations(wf_dtype dtype, const char *x, int64_t n,
                                                                           real center, int32_t scale)
{
    real        buffer[TILE], d[TILE];
    const real *from = load(x, dtype, 0, n, buffer);
    for (int64_t i = 0; i < n; i++)
        d[i] = (real)ldexp((double)(from[i] - center), -scale);
    return dtype == WF_BF16 ? leaf_deviations(REAL_DTYPE, WF_BF16, (const char *)d, n, 0)
                            : leaf_deviations(REAL_DTYPE, REAL_DTYPE, (const char *)d, n, 0);
}

static struct deviations tree_deviations(wf_dtype dtype, const char *x, int64_t n, real center, int32_t scale)
{
    if (n <= TILE && scale != 0)
        return scaled_deviations(dtype, x, n, center, scale);
    if (n <= TILE)
        return FOR_DTYPE(dtype, typed_deviations, x, n, center);
    const int64_t           left = tree_split(n, TILE);
    const struct deviations a = tree_deviations(dtype, x, left, center, scale);
    const struct deviations b = tree_deviations(dtype, at_element(x, dtype, left), n - left, center, scale);
    return (struct deviations){a.sum + b.sum, a.squares + b.squares};
}

/* A scale for which squares of deviations are in range; 0 if all are 0 or one is not finite. */
__attribute__((noinline, cold)) static int32_t deviations_scale(wf_dtype dtype, const char *x, int64_t n, real center)
{
    real largest = 0;
    for (int64_t i = 0; i < n; i += TILE) {
        real          buffer[TILE];
        const int64_t part = min64(TILE, n - i);
        const real   *from = load(x, dtype, i, part, buffer);
        for (int64_t k = 0; k < part; k++) {
            const real d = from[k] - center, size = d < 0 ? -d : d;
            largest = size <= largest ? largest : size;
        }
    }
    return largest > 0 && isfinite(largest) ? moments_exponent(largest) : 0;
}

/* About the mean of the first values: their first one and a difference cut to a few bits, so that where sums of the
 * values are exact, those of the deviations are too. */
INLINE real guess_mean(wf_dtype dtype, const char *x, int64_t n)
{
    const int64_t count = min64(n, LANES);
    const real    first = vector_load_part(dtype, x, min64(n, WIDTH))[0];
    struct lanes  sum = {0};
    for (int j = 0; j < LANES / PAIR && j * PAIR < count; j++) {
        const int64_t part = min64(count - j * PAIR, PAIR);
        struct pair   d = pair_minus(pair_load_part(dtype, dtype, x + j * PAIR * size_of(dtype), part), first);
        lanes_add(&sum, dtype, j, part < PAIR ? pair_first(dtype, d, part) : d);
    }
    real     difference = lanes_sum(sum) / (real)count;
    real_int bits;
    memcpy(&bits, &difference, sizeof bits);
    bits &= -((real_int)1 << (sizeof(real) == 8 ? 50 : 20));
    memcpy(&difference, &bits, sizeof bits);
    return first + difference;
}

/* One sweep about a guess; where that was no good, two over each tile. */
static struct moments row_moments(const struct layernorm_forward *p, int64_t row, int64_t begin, int64_t end)
{
    const char       *x = at_element(p->x, p->x_dtype, row * p->x_stride + begin);
    const int64_t     n = end - begin;
    const real        center = p->centered ? FOR_DTYPE(p->x_dtype, guess_mean, x, n) : 0;
    struct deviations d = tree_deviations(p->x_dtype, x, n, center, 0);
    int32_t           scale = 0;
    if (!moments_in_range(d.squares)) {
        scale = deviations_scale(p->x_dtype, x, n, center);
        d = tree_deviations(p->x_dtype, x, n, center, scale);
    }
    if (!p->centered)
        return (struct moments){0, 0, d.squares, scale};
    if (d.sum * (d.sum / (real)n) <= d.squares / 2)
        return moments_about(center, d.sum, d.squares, scale, n);
    return run_moments(x, p->x_dtype, 0, n);
}

static struct stats finish_row(const struct layernorm_forward *p, int64_t row, struct moments m)
{
    const struct stats stats = {m.mean, m.mean_lo, rstd_of(m, p->cols, (real)p->eps)};
    if (p->mean)
        ((real *)p->mean)[row] = stats.mean;
    if (p->mean_lo)
        ((real *)p->mean_lo)[row] = stats.mean_lo;
    if (p->rstd)
        ((real *)p->rstd)[row] = stats.rstd;
    return stats;
}

/* Statistics of the rows of a batch, side by side: what is done once for a row is done for a vector of them. */
struct batch_stats {
    _Alignas(LINE) real mean[BATCH_ROWS], mean_lo[BATCH_ROWS], rstd[BATCH_ROWS];
};

/* Sums over each row about its guess; of rows that are not there, such that nothing follows from them. */
struct batch_deviations {
    _Alignas(LINE) real center[BATCH_ROWS], sum[BATCH_ROWS], squares[BATCH_ROWS];
};

INLINE void rows_deviations(wf_dtype dtype, const struct layernorm_forward *p, const char *x, int64_t rows,
                            struct batch_deviations *d)
{
    const int64_t step = p->x_stride * size_of(dtype);
    for (int64_t k = 0; k < rows; k++)
        d->center[k] = p->centered ? guess_mean(dtype, x + k * step, p->cols) : 0;
    for (int64_t k = 0; k < rows; k++) {
        const struct deviations of = p->cols <= TILE ? leaf_deviations(dtype, dtype, x + k * step, p->cols, d->center[k])
                                                     : tree_deviations(dtype, x + k * step, p->cols, d->center[k], 0);
        d->sum[k] = p->centered ? of.sum : 0; /* then the mean will be 0, too */
        d->squares[k] = of.squares;
    }
    for (int64_t k = rows; k < BATCH_ROWS; k++) {
        d->center[k] = d->sum[k] = 0;
        d->squares[k] = 1;
    }
}

/* What row_moments and rstd_of make of rows whose guess was good. Returns whether all were; else again[k] is 1. */
static bool plain_stats(const struct layernorm_forward *p, const struct batch_deviations *d, struct batch_stats *s,
                        real again[BATCH_ROWS])
{
    const real n = (real)p->cols, eps = (real)p->eps;
    real       m2[BATCH_ROWS], count = 0;
#pragma omp simd reduction(+ : count)
    for (int k = 0; k < BATCH_ROWS; k++) {
        const real lo = d->sum[k] / n, part = d->sum[k] * lo;
        moments_shift(d->center[k], 0, lo, 1, &s->mean[k], &s->mean_lo[k]);
        m2[k] = d->squares[k] - part;
        again[k] = moments_in_range(d->squares[k]) && part <= d->squares[k] / 2 ? 0 : (real)1;
        count += again[k];
    }
    SIMD
    for (int k = 0; k < BATCH_ROWS; k++)
        s->rstd[k] = (real)inverse_root((double)m2[k] / (double)p->cols + (double)eps);
    return count == 0;
}

/* Few stores, since those of y wait in the same line. */
INLINE void keep(void *to, int64_t first, int64_t rows, const real *from)
{
    if (to)
        memcpy((real *)to + first, from, (size_t)rows * sizeof(real));
}

static void batch_stats(const struct layernorm_forward *p, int64_t first, int64_t rows, struct batch_stats *s)
{
    struct batch_deviations d;
    real                    again[BATCH_ROWS];
    FOR_DTYPE(p->x_dtype, rows_deviations, p, at_element(p->x, p->x_dtype, first * p->x_stride), rows, &d);
    const bool plain = plain_stats(p, &d, s, again);
    keep(p->mean, first, rows, s->mean);
    keep(p->mean_lo, first, rows, s->mean_lo);
    keep(p->rstd, first, rows, s->rstd);
    for (int64_t k = 0; k < rows && !plain; k++)
        if (again[k] > 0) {
            const struct stats row = finish_row(p, first + k, row_moments(p, first + k, 0, p->cols));
            s->mean[k] = row.mean;
            s->mean_lo[k] = row.mean_lo;
            s->rstd[k] = row.rstd;
        }
}

/* Columns of some rows; x and y are at the first one of the first. */
struct rows_part {
    const char      *x;
    char            *y;
    int64_t          x_step, y_step;   /* bytes to the next row */
    int64_t          x_ahead, y_ahead; /* to what is fetched meanwhile */
    struct parameter gamma, beta;
    int64_t          n, rows;
    enum stores      stores;
    const real      *mean, *mean_lo, *rstd; /* of each row */
};

/* One of them. */
struct row_part {
    const char  *x;
    char        *y;
    struct stats s;
};

INLINE vector normalized(vector x, vector factor, struct stats s)
{
    return ((x - s.mean) - s.mean_lo) * (factor * s.rstd);
}

/* n <= PAIR values from column i, with or without gamma and beta. */
INLINE struct pair normalized_pair(wf_dtype dtype, wf_dtype x_dtype, wf_dtype w_dtype, bool gamma, bool beta,
                                   const struct rows_part *p, const struct row_part *r, int64_t i, int64_t n)
{
    struct pair factor = {vector_fill(1), vector_fill(1)};
    if (gamma)
        factor = factor_pair(w_dtype, dtype, p->gamma, i, n);
    const struct pair x = pair_load_part(x_dtype, dtype, r->x + i * size_of(x_dtype), n);
    const struct pair y = {normalized(x.a, factor.a, r->s), normalized(x.b, factor.b, r->s)};
    return beta ? pair_sum(y, parameter_pair(w_dtype, dtype, p->beta, i, n)) : y;
}

/* Before and after whole pairs. */
INLINE void normalize_ends(wf_dtype dtype, wf_dtype x_dtype, wf_dtype w_dtype, const struct rows_part *p,
                           const struct row_part *r, int64_t i, int64_t end)
{
    for (; i < end; i += PAIR) {
        const int64_t     n = min64(end - i, PAIR);
        const struct pair y = normalized_pair(dtype, x_dtype, w_dtype, p->gamma.at, p->beta.at, p, r, i, n);
        pair_store_part(dtype, r->y + i * size_of(dtype), n, y);
    }
}

INLINE void normalize_pairs(wf_dtype dtype, wf_dtype x_dtype, wf_dtype w_dtype, bool gamma, bool beta, enum stores stores,
                            const struct rows_part *p, const struct row_part *r, int64_t i, int64_t end)
{
    const int64_t size = size_of(dtype), x_size = size_of(x_dtype);
    for (; i < end; i += PAIR) {
        if (stores != TO_CACHE)
            fetch_pair(x_dtype, r->x + i * x_size + p->x_ahead);
        if (stores == TO_FETCHED)
            fetch_pair(dtype, r->y + i * size + p->y_ahead);
        const struct pair y = normalized_pair(dtype, x_dtype, w_dtype, gamma, beta, p, r, i, PAIR);
        if (stores == PAST_CACHE)
            pair_stream(dtype, r->y + i * size, y);
        else
            pair_store(dtype, r->y + i * size, y);
    }
}

/* A loop for those that there are: what is asked for each pair costs. */
INLINE void normalize_with(wf_dtype dtype, wf_dtype x_dtype, wf_dtype w_dtype, enum stores stores, const struct rows_part *p,
                           const struct row_part *r, int64_t i, int64_t end)
{
    if (p->gamma.at && p->beta.at)
        normalize_pairs(dtype, x_dtype, w_dtype, true, true, stores, p, r, i, end);
    else if (p->gamma.at)
        normalize_pairs(dtype, x_dtype, w_dtype, true, false, stores, p, r, i, end);
    else
        normalize_pairs(dtype, x_dtype, w_dtype, false, p->beta.at, stores, p, r, i, end);
}

INLINE void normalize_row(wf_dtype dtype, wf_dtype x_dtype, wf_dtype w_dtype, const struct rows_part *p,
                          const struct row_part *r)
{
    int64_t begin = 0, end = p->n / PAIR * PAIR;
    if (p->stores == PAST_CACHE)
        whole_lines(r->y, size_of(dtype), p->n, &begin, &end);
    normalize_ends(dtype, x_dtype, w_dtype, p, r, 0, begin);
    if (p->stores == PAST_CACHE)
        normalize_with(dtype, x_dtype, w_dtype, PAST_CACHE, p, r, begin, end);
    else if (p->stores == TO_FETCHED)
        normalize_with(dtype, x_dtype, w_dtype, TO_FETCHED, p, r, begin, end);
    else
        normalize_with(dtype, x_dtype, w_dtype, TO_CACHE, p, r, begin, end);
    normalize_ends(dtype, x_dtype, w_dtype, p, r, end, p->n);
}

INLINE void normalize_from(wf_dtype dtype, wf_dtype w_dtype, wf_dtype x_dtype, const struct rows_part *p)
{
    for (int64_t k = 0; k < p->rows; k++) {
        const struct row_part r = {p->x + k * p->x_step, p->y + k * p->y_step, {p->mean[k], p->mean_lo[k], p->rstd[k]}};
        if (x_dtype == dtype)
            normalize_row(dtype, dtype, w_dtype, p, &r);
        else
            normalize_row(dtype, REAL_DTYPE, w_dtype, p, &r);
    }
}

INLINE void normalize_y(wf_dtype dtype, wf_dtype w_dtype, wf_dtype x_dtype, const struct rows_part *p)
{
    FOR_PARAMETERS(dtype, w_dtype, normalize_from, x_dtype, p);
}

/* Columns [begin, end) of rows from `first`. w: gamma and beta, at column `begin`. */
INLINE void normalize_rows(const struct layernorm_forward_run *r, int64_t first, int64_t rows, int64_t begin, int64_t end,
                           const struct row_affine *w, const real *mean, const real *mean_lo, const real *rstd)
{
    const struct layernorm_forward *p = r->p;
    const wf_dtype                  y_dtype = r->given->x_dtype;
    const struct rows_part          part = {.x = at_element(p->x, p->x_dtype, first * p->x_stride + begin),
                                            .y = at_element(p->y, y_dtype, first * p->y_stride + begin),
                                            .x_step = p->x_stride * size_of(p->x_dtype),
                                            .y_step = p->y_stride * size_of(y_dtype),
                                            .x_ahead = r->x_ahead,
                                            .y_ahead = r->y_ahead,
                                            .gamma = w->gamma,
                                            .beta = w->beta,
                                            .n = end - begin,
                                            .rows = rows,
                                            .stores = r->stores,
                                            .mean = mean,
                                            .mean_lo = mean_lo,
                                            .rstd = rstd};
    FOR_DTYPE(y_dtype, normalize_y, w->dtype, p->x_dtype, &part);
}

/* One row, or a part of it; all of the rows of a batch. Two functions, because a long row whose statistics do not come in
 * registers waits for the stores before it. */
__attribute__((noinline)) static void normalize_one(const struct layernorm_forward_run *r, int64_t row, int64_t begin,
                                                    int64_t end, const struct row_affine *w, struct stats s)
{
    normalize_rows(r, row, 1, begin, end, w, &s.mean, &s.mean_lo, &s.rstd);
}

__attribute__((noinline)) static void normalize_batch(const struct layernorm_forward_run *r, int64_t first, int64_t rows,
                                                      const struct row_affine *w, const struct batch_stats *s)
{
    normalize_rows(r, first, rows, 0, r->p->cols, w, s->mean, s->mean_lo, s->rstd);
}

/* The same in bytes; factor: what y is multiplied by. */
__attribute__((noinline)) static void quantize_one(const struct layernorm_forward_run *r, int64_t row, int64_t begin,
                                                   int64_t end, struct stats s, real factor)
{
    raise_amax(r->amax, quantize_columns(r->p, row, begin, end, s, factor));
}

static void quantize_row(const struct layernorm_forward_run *r, int64_t row, struct stats s)
{
    quantize_one(r, row, 0, r->p->cols, s, row_factor(r->p, row, s));
}

static void quantize_batch(const struct layernorm_forward_run *r, int64_t first, int64_t rows, const struct batch_stats *s)
{
    for (int64_t k = 0; k < rows; k++)
        quantize_row(r, first + k, (struct stats){s->mean[k], s->mean_lo[k], s->rstd[k]});
}

/* The sum of columns [begin, end), if x is one. */
static void add_columns(const struct layernorm_forward_run *r, int64_t row, int64_t begin, int64_t end)
{
    if (r->add)
        add_row(r->add, r->given->x, r->given->x_stride, (void *)(uintptr_t)r->p->x, r->p->x_stride, row, begin, end);
}

/* Apart, so that what it keeps on the stack costs long rows nothing. */
__attribute__((noinline)) static void forward_batches(const struct layernorm_forward_run *r, int64_t begin, int64_t end,
                                                      const struct row_affine *w)
{
    for (int64_t first = begin; first < end; first += r->batch) {
        struct batch_stats s;
        const int64_t      rows = min64(r->batch, end - first);
        batch_stats(r->p, first, rows, &s);
        if (r->p->quantize.kind)
            quantize_batch(r, first, rows, &s);
        else
            normalize_batch(r, first, rows, w, &s);
    }
}

/* Rows of which a batch has few, and sums. */
static void forward_singly(const struct layernorm_forward_run *r, int64_t begin, int64_t end, const struct row_affine *w)
{
    const struct layernorm_forward *p = r->p;
    for (int64_t first = begin; first < end; first += r->batch) {
        struct stats  stats[BATCH_ROWS];
        const int64_t rows = min64(r->batch, end - first);
        for (int64_t k = 0; k < rows; k++) {
            add_columns(r, first + k, 0, p->cols);
            stats[k] = finish_row(p, first + k, p->cols ? row_moments(p, first + k, 0, p->cols) : (struct moments){0});
        }
        for (int64_t k = 0; k < rows; k++)
            if (p->quantize.kind)
                quantize_row(r, first + k, stats[k]);
            else if (p->cols) /* x may be NULL where there is none */
                normalize_one(r, first + k, 0, p->cols, w, stats[k]);
    }
}

static void forward_rows(void *arg, int64_t begin, int64_t end)
{
    const struct layernorm_forward_run *r = arg;
    const int64_t                       cols = r->p->cols;
    struct row_affine                   w = ROW_AFFINE_AT(r->p, 0);
    struct prepared                     prepared;
    if (end - begin >= PREPARED_ROWS && !r->p->quantize.kind) /* bytes are made of what is in memory */
        prepare_affine(r->given->x_dtype, &w, cols, &prepared);
    if (cols > 0 && min64(r->batch, end - begin) >= BATCH_ROWS_MIN && !r->add)
        forward_batches(r, begin, end, &w);
    else
        forward_singly(r, begin, end, &w);
    stream_fence(r->stores == PAST_CACHE);
}

static void forward_reduce(const void *arg, int64_t row, int64_t segment)
{
    const struct layernorm_forward_run *r = arg;
    const int64_t                       begin = segment * SEGMENT, end = min64(begin + SEGMENT, r->p->cols);
    add_columns(r, row, begin, end);
    r->part[row * r->segments + segment] = row_moments(r->p, row, begin, end);
}

static void forward_combine(const void *arg, int64_t row)
{
    const struct layernorm_forward_run *r = arg;
    const struct moments                m = moments_tree(r->part + row * r->segments, SEGMENT, r->p->cols);
    r->stats[row] = finish_row(r->p, row, m);
    if (r->p->quantize.kind)
        r->factor[row] = row_factor(r->p, row, r->stats[row]);
}

static void forward_apply(const void *arg, int64_t row, int64_t segment)
{
    const struct layernorm_forward_run *r = arg;
    const int64_t                       begin = segment * SEGMENT, end = min64(begin + SEGMENT, r->p->cols);
    const struct row_affine             w = ROW_AFFINE_AT(r->p, begin);
    if (r->p->quantize.kind)
        quantize_one(r, row, begin, end, r->stats[row], r->factor[row]);
    else
        normalize_one(r, row, begin, end, &w, r->stats[row]);
    stream_fence(r->stores == PAST_CACHE);
}

static size_t layernorm_forward_plan(const struct layernorm_forward *p, void *workspace, struct layernorm_forward_run *r)
{
    struct cpu_arena arena = {workspace, 0};
    r->p = p;
    r->segments = p->cols * size_of(p->x_dtype) > CPU_FUSED_BYTES ? ceil_div(p->cols, SEGMENT) : 1;
    if (r->segments > 1) {
        r->part = cpu_take(&arena, p->rows * r->segments, sizeof *r->part);
        r->stats = cpu_take(&arena, p->rows, sizeof *r->stats);
        r->factor = cpu_take(&arena, p->quantize.kind ? p->rows : 0, sizeof *r->factor);
    }
    return cpu_arena_size(&arena);
}

/* Whether something is added is not known, but what dtype it would make x. */
static size_t layernorm_forward_workspace(const struct layernorm_forward *p)
{
    struct layernorm_forward_run r;
    struct layernorm_forward     sum = *p;
    sum.x_dtype = p->add.dtype;
    const size_t plain = layernorm_forward_plan(p, NULL, &r), added = layernorm_forward_plan(&sum, NULL, &r);
    return plain > added ? plain : added;
}

static void layernorm_forward(const struct layernorm_forward *given, const struct cpu_run *run)
{
    struct layernorm_forward_run    r = {0};
    struct addition_run             add;
    struct layernorm_forward        sum = *given;
    const struct layernorm_forward *p = given->add.present ? &sum : given;
    if (given->add.present) {
        add = addition_of(&given->add, given->x_dtype, given->w_dtype, given->cols);
        r.add = &add;
        sum.x = given->add.sum ? given->add.sum : given->y;
        sum.x_stride = given->add.sum ? given->add.sum_stride : given->y_stride;
        sum.x_dtype = given->add.dtype;
    }
    float  *to_amax = given->quantize.amax;
    int32_t amax = to_amax ? amax_bits(*to_amax) : 0;
    r.amax = &amax;
    r.given = given;
    layernorm_forward_plan(p, run->workspace, &r);
    r.stores = stores_of(run);
    const int64_t row_bytes = (p->cols + 1) * size_of(p->x_dtype);
    r.batch = row_bytes >= BATCH_BYTES ? 1 : min64(BATCH_BYTES / row_bytes, BATCH_ROWS);
    r.x_ahead = rows_ahead(run->stream ? AHEAD_BYTES : AHEAD_X_BYTES, r.segments, p->x_stride * size_of(p->x_dtype));
    r.y_ahead = rows_ahead(AHEAD_Y_BYTES, r.segments, p->y_stride * size_of(given->x_dtype));
    if (r.segments == 1)
        cpu_parallel(run, p->rows, CPU_GRAIN_BYTES / row_bytes, forward_rows, &r);
    else
        cpu_run_stages(run, &(struct cpu_stages){.sets = p->rows,
                                                 .items = r.segments,
                                                 .item_bytes = SEGMENT * (int64_t)sizeof(real),
                                                 .reduce = forward_reduce,
                                                 .combine = forward_combine,
                                                 .apply = forward_apply,
                                                 .arg = &r});
    if (to_amax && p->rows && p->cols)
        *to_amax = wf_float_from_bits((uint32_t)amax);
}
