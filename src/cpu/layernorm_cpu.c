/* LayerNorm, and without the centering RMSNorm, on the CPU.
 *
 *     y = ((x - mean) - mean_lo) * (rstd * gamma) + beta
 *     dx = rstd * (g - avg(g) - xhat * avg(g * xhat)),  g = gamma * dy,  dgamma = sum dy * xhat,  dbeta = sum dy
 *
 * Rows up to half of L2 are read from memory once. Longer ones are cut into segments that any thread may take, first
 * for the sums, then for the result. */
#include "tile.h"

enum {
    BATCH_ROWS = 16,       /* rows whose statistics are taken before the first of them is written, if they are */
    BATCH_BYTES = 1 << 13, /* no more than this: so the divisions of one row run while the next is added         */
    AHEAD_BYTES = 1 << 14, /* from what is normalized to what is fetched meanwhile                                */
    BLOCK_ROWS_MIN = 16,  /* rows that share a partial sum of the parameter gradients: */
    BLOCK_ROWS_MAX = 128, /* at most 32 additions of SWEPT_ROWS rows in sequence       */
};

/* gamma for columns [begin, begin + n), n <= TILE, as the factor that multiplies xhat; ones is a tile of 1. */
static const real *load_factor(const void *gamma, wf_dtype dtype, double weight_offset, int64_t begin, int64_t n,
                               const real *ones, real *buffer)
{
    if (!gamma)
        return ones;
    const real *factor = load(gamma, dtype, begin, n, buffer);
    if (weight_offset == 0)
        return factor;
    SIMD
    for (int64_t i = 0; i < n; i++)
        buffer[i] = factor[i] + (real)weight_offset;
    return buffer;
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

struct layernorm_forward_run {
    const struct layernorm_forward *p;
    int64_t                         segments;
    struct moments                 *part;  /* [rows, segments]; rows of several segments only */
    struct stats               *stats; /* [rows]; likewise */
    bool                            stream;
    int64_t                         batch; /* rows */
    int64_t                         ahead; /* bytes */
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
    return span_moments(&(struct span){x, p->x_dtype, n, n}, 0, n, true);
}

static struct stats finish_row(const struct layernorm_forward *p, int64_t row, struct moments m)
{
    const struct stats stats = {m.mean, m.mean_lo, moments_rstd(m, p->cols, (real)p->eps)};
    if (p->mean)
        ((real *)p->mean)[row] = stats.mean;
    if (p->mean_lo)
        ((real *)p->mean_lo)[row] = stats.mean_lo;
    if (p->rstd)
        ((real *)p->rstd)[row] = stats.rstd;
    return stats;
}

/* Columns of a row; x and y are at the first one. */
struct row_part {
    const char  *x, *next; /* what will be read soon */
    char        *y;
    const char  *gamma, *beta;
    int64_t      n;
    real         offset;
    struct stats s;
};

INLINE vector normalized(vector x, vector factor, struct stats s)
{
    return ((x - s.mean) - s.mean_lo) * (factor * s.rstd);
}

/* n <= PAIR values from column i. */
INLINE struct pair normalized_pair(wf_dtype x_dtype, wf_dtype w_dtype, const struct row_part *r, int64_t i, int64_t n)
{
    const struct pair x = pair_load_part(x_dtype, x_dtype, r->x + i * size_of(x_dtype), n);
    struct pair       factor = {vector_fill(1), vector_fill(1)};
    if (r->gamma) {
        factor = pair_load_part(w_dtype, x_dtype, r->gamma + i * size_of(w_dtype), n);
        factor = (struct pair){factor.a + r->offset, factor.b + r->offset};
    }
    struct pair y = {normalized(x.a, factor.a, r->s), normalized(x.b, factor.b, r->s)};
    if (r->beta) {
        const struct pair beta = pair_load_part(w_dtype, x_dtype, r->beta + i * size_of(w_dtype), n);
        y = (struct pair){y.a + beta.a, y.b + beta.b};
    }
    return y;
}

INLINE void normalize_ends(wf_dtype x_dtype, wf_dtype w_dtype, const struct row_part *r, int64_t i, int64_t end)
{
    for (; i < end; i += PAIR) {
        const int64_t n = min64(end - i, PAIR);
        pair_store_part(x_dtype, r->y + i * size_of(x_dtype), n, normalized_pair(x_dtype, w_dtype, r, i, n));
    }
}

INLINE void normalize_typed(wf_dtype x_dtype, wf_dtype w_dtype, const struct row_part *r, bool stream)
{
    const int64_t size = size_of(x_dtype);
    int64_t       i = 0, end = r->n / PAIR * PAIR;
    if (stream) {
        int64_t begin;
        whole_lines(r->y, size, r->n, &begin, &end);
        normalize_ends(x_dtype, w_dtype, r, 0, begin);
        for (i = begin; i < end; i += PAIR) {
            for (int64_t k = 0; k < PAIR * size; k += LINE)
                __builtin_prefetch(r->next + i * size + k);
            pair_stream(x_dtype, r->y + i * size, normalized_pair(x_dtype, w_dtype, r, i, PAIR));
        }
    } else {
        for (; i < end; i += PAIR)
            pair_store(x_dtype, r->y + i * size, normalized_pair(x_dtype, w_dtype, r, i, PAIR));
    }
    normalize_ends(x_dtype, w_dtype, r, end, r->n);
}

INLINE void normalize_x(wf_dtype x_dtype, wf_dtype w_dtype, const struct row_part *r, bool stream)
{
    if (w_dtype == x_dtype)
        normalize_typed(x_dtype, x_dtype, r, stream);
    else
        normalize_typed(x_dtype, REAL_DTYPE, r, stream);
}

static void normalize_row(const struct layernorm_forward_run *r, int64_t row, int64_t begin, int64_t end,
                          struct stats s)
{
    const struct layernorm_forward *p = r->p;
    const char                     *x = at_element(p->x, p->x_dtype, row * p->x_stride + begin);
    struct row_part                 part = {.x = x, .next = x + r->ahead, .n = end - begin, .s = s};
    part.y = at_element(p->y, p->x_dtype, row * p->y_stride + begin);
    part.gamma = p->gamma ? at_element(p->gamma, p->w_dtype, begin) : NULL;
    part.beta = p->beta ? at_element(p->beta, p->w_dtype, begin) : NULL;
    part.offset = (real)p->weight_offset;
    FOR_DTYPE(p->x_dtype, normalize_x, p->w_dtype, &part, r->stream);
}

static void forward_rows(void *arg, int64_t begin, int64_t end)
{
    const struct layernorm_forward_run *r = arg;
    const struct layernorm_forward     *p = r->p;
    for (int64_t first = begin; first < end; first += r->batch) {
        struct stats  stats[BATCH_ROWS];
        const int64_t rows = min64(r->batch, end - first);
        for (int64_t k = 0; k < rows; k++)
            stats[k] = finish_row(p, first + k, p->cols ? row_moments(p, first + k, 0, p->cols) : (struct moments){0});
        for (int64_t k = 0; k < rows; k++)
            normalize_row(r, first + k, 0, p->cols, stats[k]);
    }
    stream_fence(r->stream);
}

static void forward_reduce(const void *arg, int64_t row, int64_t segment)
{
    const struct layernorm_forward_run *r = arg;
    const int64_t                       begin = segment * SEGMENT, end = min64(begin + SEGMENT, r->p->cols);
    r->part[row * r->segments + segment] = row_moments(r->p, row, begin, end);
}

static void forward_combine(const void *arg, int64_t row)
{
    const struct layernorm_forward_run *r = arg;
    const struct moments                m = moments_tree(r->part + row * r->segments, SEGMENT, r->p->cols);
    r->stats[row] = finish_row(r->p, row, m);
}

static void forward_apply(const void *arg, int64_t row, int64_t segment)
{
    const struct layernorm_forward_run *r = arg;
    const int64_t                       begin = segment * SEGMENT, end = min64(begin + SEGMENT, r->p->cols);
    normalize_row(r, row, begin, end, r->stats[row]);
    stream_fence(r->stream);
}

static size_t layernorm_forward_plan(const struct layernorm_forward *p, void *workspace, struct layernorm_forward_run *r)
{
    struct cpu_arena arena = {workspace, 0};
    r->p = p;
    r->segments = p->cols * (int64_t)sizeof(real) > CPU_FUSED_BYTES ? ceil_div(p->cols, SEGMENT) : 1;
    if (r->segments > 1) {
        r->part = cpu_take(&arena, p->rows * r->segments, sizeof *r->part);
        r->stats = cpu_take(&arena, p->rows, sizeof *r->stats);
    }
    return cpu_arena_size(&arena);
}

static size_t layernorm_forward_workspace(const struct layernorm_forward *p)
{
    struct layernorm_forward_run r;
    return layernorm_forward_plan(p, NULL, &r);
}

static void layernorm_forward(const struct layernorm_forward *p, const struct cpu_run *run)
{
    struct layernorm_forward_run r;
    layernorm_forward_plan(p, run->workspace, &r);
    r.stream = run->stream;
    const int64_t row_bytes = (p->cols + 1) * size_of(p->x_dtype);
    const int64_t stride = (p->x_stride + 1) * size_of(p->x_dtype);
    r.batch = row_bytes >= BATCH_BYTES ? 1 : min64(BATCH_BYTES / row_bytes, BATCH_ROWS);
    r.ahead = r.segments > 1 ? AHEAD_BYTES : ceil_div(AHEAD_BYTES, stride) * p->x_stride * size_of(p->x_dtype);
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
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

struct layernorm_backward_run {
    const struct layernorm_backward *p;
    int64_t                          segments;
    int64_t                          block_rows, blocks;
    real                            *sums;    /* [rows, segments, 2]: sum g, sum g * xhat; several segments only */
    real                            *partial; /* [blocks, 2, cols]: dgamma and dbeta of a block of rows */
    bool                             stream;
    real                             ones[TILE];
};

static struct stats given_stats(const struct layernorm_backward *p, int64_t row)
{
    return (struct stats){p->mean ? ((const real *)p->mean)[row] : 0,
                              p->mean_lo ? ((const real *)p->mean_lo)[row] : 0, ((const real *)p->rstd)[row]};
}

/* sum[0] = sum g, sum[1] = sum g * xhat over columns [begin, end) of a row. */
static void backward_sums(const struct layernorm_backward_run *r, int64_t row, int64_t begin, int64_t end, real sum[2])
{
    const struct layernorm_backward *p = r->p;
    const int64_t                    n = end - begin;
    if (n > TILE) {
        const int64_t middle = begin + tree_split(n, TILE);
        real          right[2];
        backward_sums(r, row, begin, middle, sum);
        backward_sums(r, row, middle, end, right);
        sum[0] += right[0];
        sum[1] += right[1];
        return;
    }
    real        x_buffer[TILE], dy_buffer[TILE], gamma_buffer[TILE];
    const real *x = load(p->x, p->x_dtype, row * p->x_stride + begin, n, x_buffer);
    const real *dy = load(p->dy, p->x_dtype, row * p->dy_stride + begin, n, dy_buffer);
    const real *gamma = load_factor(p->gamma, p->w_dtype, p->weight_offset, begin, n, r->ones, gamma_buffer);
    tile_products(x, dy, gamma, n, given_stats(p, row), sum);
}

/* Up to SWEPT_ROWS rows at columns [col, col + n), n <= COLUMNS. avg holds the averages of g and of g * xhat of each
 * row. */
static void backward_tile(const struct layernorm_backward_run *r, int64_t first, int64_t rows, int64_t col, int64_t n,
                          const real (*avg)[2], real *dgamma, real *dbeta)
{
    static const real                zeros[COLUMNS];
    const struct layernorm_backward *p = r->p;
    real             buffer[2 * SWEPT_ROWS + 2][COLUMNS];
    const real      *x[SWEPT_ROWS], *dy[SWEPT_ROWS];
    struct stats s[SWEPT_ROWS] = {0};
    for (int k = 0; k < SWEPT_ROWS; k++) {
        x[k] = dy[k] = zeros;
        if (k >= rows)
            continue;
        x[k] = load(p->x, p->x_dtype, (first + k) * p->x_stride + col, n, buffer[2 * k]);
        dy[k] = load(p->dy, p->x_dtype, (first + k) * p->dy_stride + col, n, buffer[2 * k + 1]);
        s[k] = given_stats(p, first + k);
    }
    SIMD
    for (int64_t i = 0; i < n; i++) {
        real a[SWEPT_ROWS];
        for (int k = 0; k < SWEPT_ROWS; k++)
            a[k] = dy[k][i] * (((x[k][i] - s[k].mean) - s[k].mean_lo) * s[k].rstd);
        dgamma[i] += (a[0] + a[1]) + (a[2] + a[3]);
        dbeta[i] += (dy[0][i] + dy[1][i]) + (dy[2][i] + dy[3][i]);
    }
    if (!p->dx)
        return;
    const real *gamma = load_factor(p->gamma, p->w_dtype, p->weight_offset, col, n, r->ones, buffer[2 * SWEPT_ROWS]);
    for (int k = 0; k < rows; k++) {
        const int64_t          at = (first + k) * p->dx_stride + col;
        const struct stats t = s[k];
        const real            *xk = x[k], *dyk = dy[k], avg_g = avg[k][0], avg_gx = avg[k][1];
        real                  *dx = store_target(p->dx, p->x_dtype, at, r->stream, buffer[2 * SWEPT_ROWS + 1]);
        SIMD
        for (int64_t i = 0; i < n; i++) {
            const real xhat = ((xk[i] - t.mean) - t.mean_lo) * t.rstd;
            dx[i] = t.rstd * ((gamma[i] * dyk[i] - avg_g) - xhat * avg_gx);
        }
        store(p->dx, p->x_dtype, at, dx, n, r->stream);
    }
}

static void backward_reduce(void *arg, int64_t begin, int64_t end)
{
    const struct layernorm_backward_run *r = arg;
    for (int64_t i = begin; i < end; i++) {
        const int64_t row = i / r->segments, from = i % r->segments * SEGMENT;
        backward_sums(r, row, from, min64(from + SEGMENT, r->p->cols), r->sums + i * 2);
    }
}

/* One segment of one block of rows. */
static void backward_block(const struct layernorm_backward_run *r, int64_t block, int64_t segment)
{
    const struct layernorm_backward *p = r->p;
    const int64_t begin = r->segments > 1 ? segment * SEGMENT : 0;
    const int64_t end = r->segments > 1 ? min64(begin + SEGMENT, p->cols) : p->cols;
    const int64_t last = min64((block + 1) * r->block_rows, p->rows);
    real         *dgamma = r->partial + block * 2 * p->cols, *dbeta = dgamma + p->cols;
    fill(dgamma + begin, end - begin, 0);
    fill(dbeta + begin, end - begin, 0);
    for (int64_t row = block * r->block_rows; row < last; row += SWEPT_ROWS) {
        const int64_t rows = min64(SWEPT_ROWS, last - row);
        real          avg[SWEPT_ROWS][2];
        for (int64_t k = 0; p->dx && k < rows; k++) {
            if (r->segments > 1)
                row_sum_tree(r->sums + (row + k) * r->segments * 2, r->segments, 2, 2, avg[k]);
            else
                backward_sums(r, row + k, begin, end, avg[k]);
            avg[k][0] = p->centered ? avg[k][0] / (real)p->cols : 0;
            avg[k][1] /= (real)p->cols;
        }
        for (int64_t col = begin; col < end; col += COLUMNS)
            backward_tile(r, row, rows, col, min64(COLUMNS, end - col), (const real(*)[2])avg, dgamma + col, dbeta + col);
    }
}

static void backward_blocks(void *arg, int64_t begin, int64_t end)
{
    const struct layernorm_backward_run *r = arg;
    for (int64_t i = begin; i < end; i++)
        backward_block(r, i / r->segments, i % r->segments);
    stream_fence(r->stream);
}

static void backward_finish(void *arg, int64_t begin, int64_t end)
{
    const struct layernorm_backward_run *r = arg;
    const struct layernorm_backward     *p = r->p;
    void *const                          out[2] = {p->dgamma, p->dbeta};
    for (int64_t tile = begin; tile < end; tile++) {
        const int64_t col = tile * COLUMNS, n = min64(COLUMNS, p->cols - col);
        for (int k = 0; k < 2; k++) {
            real sum[COLUMNS] = {0};
            if (r->blocks && out[k])
                row_sum_tree(r->partial + k * p->cols + col, r->blocks, 2 * p->cols, (int)n, sum);
            if (out[k])
                store_gradient(out[k], p->w_dtype, col, n, p->accumulate, sum);
        }
    }
}

static size_t layernorm_backward_plan(const struct layernorm_backward *p, void *workspace,
                                      struct layernorm_backward_run *r)
{
    struct cpu_arena arena = {workspace, 0};
    const int64_t    wanted = ceil_div(ceil_div(p->rows, 32), SWEPT_ROWS) * SWEPT_ROWS;
    r->p = p;
    r->block_rows = wanted < BLOCK_ROWS_MIN ? BLOCK_ROWS_MIN : min64(wanted, BLOCK_ROWS_MAX);
    r->blocks = ceil_div(p->rows, r->block_rows);
    r->segments = p->cols > SEGMENT ? ceil_div(p->cols, SEGMENT) : 1;
    r->partial = cpu_take(&arena, r->blocks * 2 * p->cols, sizeof(real));
    if (r->segments > 1)
        r->sums = cpu_take(&arena, p->rows * r->segments * 2, sizeof(real));
    return cpu_arena_size(&arena);
}

static size_t layernorm_backward_workspace(const struct layernorm_backward *p)
{
    struct layernorm_backward_run r;
    return layernorm_backward_plan(p, NULL, &r);
}

static void layernorm_backward(const struct layernorm_backward *p, const struct cpu_run *run)
{
    struct layernorm_backward_run r;
    layernorm_backward_plan(p, run->workspace, &r);
    if (p->cols == 0)
        return; /* no gradient has an element */
    r.stream = run->stream;
    fill(r.ones, min64(p->cols, TILE), 1);
    const int64_t segment_bytes = min64(p->cols + 1, SEGMENT) * (int64_t)sizeof(real);
    if (r.segments > 1 && p->dx)
        cpu_parallel(run, p->rows * r.segments, CPU_GRAIN_BYTES / segment_bytes, backward_reduce, &r);
    cpu_parallel(run, r.blocks * r.segments, CPU_GRAIN_BYTES / (segment_bytes * r.block_rows), backward_blocks, &r);
    if (p->dgamma || p->dbeta)
        cpu_parallel(run, ceil_div(p->cols, COLUMNS), 1, backward_finish, &r);
}
