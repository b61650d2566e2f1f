/* Forward: a batch of rows is read for its statistics, then written. Included by layernorm_cpu.c. */

struct layernorm_forward_run {
    const struct layernorm_forward *p;     /* of the sum, if there is one: x is where it is put, of its dtype */
    const struct layernorm_forward *given; /* as the caller gave it */
    const struct addition_run      *add;   /* NULL: x is given */
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

/* Columns of a row; x and y are at the first one. */
struct row_part {
    const char      *x, *next; /* what will be read soon */
    char            *y;
    struct parameter gamma, beta;
    int64_t          n;
    struct stats     s;
};

INLINE vector normalized(vector x, vector factor, struct stats s)
{
    return ((x - s.mean) - s.mean_lo) * (factor * s.rstd);
}

/* n <= PAIR values of dtype from column i, x of the same or of the arithmetic type. */
INLINE struct pair normalized_pair(wf_dtype dtype, wf_dtype x_dtype, wf_dtype w_dtype, const struct row_part *r, int64_t i,
                                   int64_t n)
{
    const struct pair x = pair_load_part(x_dtype, dtype, r->x + i * size_of(x_dtype), n);
    const struct pair factor = factor_pair(w_dtype, dtype, r->gamma, i, n);
    const struct pair y = {normalized(x.a, factor.a, r->s), normalized(x.b, factor.b, r->s)};
    return r->beta.at ? pair_sum(y, parameter_pair(w_dtype, dtype, r->beta, i, n)) : y;
}

INLINE void normalize_ends(wf_dtype dtype, wf_dtype x_dtype, wf_dtype w_dtype, const struct row_part *r, int64_t i,
                           int64_t end)
{
    for (; i < end; i += PAIR) {
        const int64_t n = min64(end - i, PAIR);
        pair_store_part(dtype, r->y + i * size_of(dtype), n, normalized_pair(dtype, x_dtype, w_dtype, r, i, n));
    }
}

INLINE void normalize_typed(wf_dtype dtype, wf_dtype x_dtype, wf_dtype w_dtype, const struct row_part *r, bool stream)
{
    const int64_t size = size_of(dtype), x_size = size_of(x_dtype);
    int64_t       i = 0, end = r->n / PAIR * PAIR;
    if (stream) {
        int64_t begin;
        whole_lines(r->y, size, r->n, &begin, &end);
        normalize_ends(dtype, x_dtype, w_dtype, r, 0, begin);
        for (i = begin; i < end; i += PAIR) {
            for (int64_t k = 0; k < PAIR * x_size; k += LINE)
                __builtin_prefetch(r->next + i * x_size + k);
            pair_stream(dtype, r->y + i * size, normalized_pair(dtype, x_dtype, w_dtype, r, i, PAIR));
        }
    } else {
        for (; i < end; i += PAIR)
            pair_store(dtype, r->y + i * size, normalized_pair(dtype, x_dtype, w_dtype, r, i, PAIR));
    }
    normalize_ends(dtype, x_dtype, w_dtype, r, end, r->n);
}

INLINE void normalize_from(wf_dtype dtype, wf_dtype w_dtype, wf_dtype x_dtype, const struct row_part *r, bool stream)
{
    if (x_dtype == dtype)
        normalize_typed(dtype, dtype, w_dtype, r, stream);
    else
        normalize_typed(dtype, REAL_DTYPE, w_dtype, r, stream);
}

INLINE void normalize_y(wf_dtype dtype, wf_dtype w_dtype, wf_dtype x_dtype, const struct row_part *r, bool stream)
{
    FOR_PARAMETERS(dtype, w_dtype, normalize_from, x_dtype, r, stream);
}

/* w: gamma and beta, at column `begin`. */
static void normalize_row(const struct layernorm_forward_run *r, int64_t row, int64_t begin, int64_t end,
                          const struct parameter w[2], struct stats s)
{
    const struct layernorm_forward *p = r->p;
    const char                     *x = at_element(p->x, p->x_dtype, row * p->x_stride + begin);
    struct row_part                 part = {.x = x, .next = x + r->ahead, .n = end - begin, .s = s};
    part.y = at_element(p->y, r->given->x_dtype, row * p->y_stride + begin);
    part.gamma = w[0];
    part.beta = w[1];
    const wf_dtype w_dtype = w[0].at ? w[0].dtype : w[1].dtype; /* both have it, where both are there */
    FOR_DTYPE(r->given->x_dtype, normalize_y, w_dtype, p->x_dtype, &part, r->stream);
}

static void parameters_at(const struct layernorm_forward *p, int64_t column, struct parameter w[2])
{
    w[0] = parameter_at(p->gamma, p->w_dtype, column, p->weight_offset);
    w[1] = parameter_at(p->beta, p->w_dtype, column, 0);
}

/* The sum of columns [begin, end), if x is one. */
static void add_columns(const struct layernorm_forward_run *r, int64_t row, int64_t begin, int64_t end)
{
    if (r->add)
        add_row(r->add, r->given->x, r->given->x_stride, (void *)(uintptr_t)r->p->x, r->p->x_stride, row, begin, end);
}

static void forward_rows(void *arg, int64_t begin, int64_t end)
{
    const struct layernorm_forward_run *r = arg;
    const struct layernorm_forward     *p = r->p;
    struct parameter                    w[2];
    _Alignas(LINE) real                 factors[PREPARED_COLUMNS], addends[PREPARED_COLUMNS];
    parameters_at(p, 0, w);
    if (end - begin >= PREPARED_ROWS) {
        w[0] = prepare_parameter(r->given->x_dtype, w[0], true, p->cols, factors);
        w[1] = prepare_parameter(r->given->x_dtype, w[1], false, p->cols, addends);
    }
    for (int64_t first = begin; first < end; first += r->batch) {
        struct stats  stats[BATCH_ROWS];
        const int64_t rows = min64(r->batch, end - first);
        for (int64_t k = 0; k < rows; k++) {
            add_columns(r, first + k, 0, p->cols);
            stats[k] = finish_row(p, first + k, p->cols ? row_moments(p, first + k, 0, p->cols) : (struct moments){0});
        }
        for (int64_t k = 0; k < rows && p->cols; k++) /* x may be NULL where there is none */
            normalize_row(r, first + k, 0, p->cols, w, stats[k]);
    }
    stream_fence(r->stream);
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
}

static void forward_apply(const void *arg, int64_t row, int64_t segment)
{
    const struct layernorm_forward_run *r = arg;
    const int64_t                       begin = segment * SEGMENT, end = min64(begin + SEGMENT, r->p->cols);
    struct parameter                    w[2];
    parameters_at(r->p, begin, w);
    normalize_row(r, row, begin, end, w, r->stats[row]);
    stream_fence(r->stream);
}

static size_t layernorm_forward_plan(const struct layernorm_forward *p, void *workspace, struct layernorm_forward_run *r)
{
    struct cpu_arena arena = {workspace, 0};
    r->p = p;
    r->segments = p->cols * size_of(p->x_dtype) > CPU_FUSED_BYTES ? ceil_div(p->cols, SEGMENT) : 1;
    if (r->segments > 1) {
        r->part = cpu_take(&arena, p->rows * r->segments, sizeof *r->part);
        r->stats = cpu_take(&arena, p->rows, sizeof *r->stats);
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
    r.given = given;
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
