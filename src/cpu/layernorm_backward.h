/* Backward: a batch of rows is read for its sums, then again, from cache, for dx and the parameter gradients. These are
 * added over strips and blocks of rows, and at last over all blocks. Included by layernorm_cpu.c. */

struct layernorm_backward_run {
    const struct layernorm_backward *p;
    const struct addition_run       *add; /* NULL: x was not a sum */
    wf_dtype                         dtype; /* of x in memory: x_dtype, or the sum's */
    int64_t                          segments;
    int64_t                          block_rows, blocks;
    int64_t                          padded;  /* cols, in whole LANES */
    real                            *sums;    /* [rows, segments, 2]: sum g, sum g * xhat; several segments only */
    real                            *partial; /* [blocks, 4, padded]: dgamma and dbeta of a block of rows, of a strip of
                                                 it */
    int64_t                          batch, ahead; /* rows */
    bool                             stream, plain; /* plain: x has x_dtype and is not y */
};

/* Columns of a row; the pointers are at the first one. */
struct backward_row {
    const char  *x, *dy;
    char        *dx;
    struct stats s;
    real         avg_g, avg_gx;
};

static struct backward_row backward_row_at(const struct layernorm_backward_run *r, int64_t row, int64_t column)
{
    const struct layernorm_backward *p = r->p;
    struct backward_row              b = {0};
    b.x = at_element(p->x, r->dtype, row * p->x_stride + column);
    b.dy = at_element(p->dy, p->x_dtype, row * p->dy_stride + column);
    b.dx = p->dx ? at_element(p->dx, p->x_dtype, row * p->dx_stride + column) : NULL;
    b.s.mean = p->mean ? ((const real *)p->mean)[row] : 0;
    b.s.mean_lo = p->mean_lo ? ((const real *)p->mean_lo)[row] : 0;
    b.s.rstd = ((const real *)p->rstd)[row];
    return b;
}

INLINE struct pair xhat_pair(struct pair x, struct stats s)
{
    return (struct pair){((x.a - s.mean) - s.mean_lo) * s.rstd, ((x.b - s.mean) - s.mean_lo) * s.rstd};
}

/* xhat * factor where x is y: y - beta. */
INLINE struct pair scaled_pair(wf_dtype x_dtype, wf_dtype w_dtype, const struct backward_row *r, struct parameter beta, int64_t i,
                               int64_t n)
{
    const struct pair y = pair_load_part(x_dtype, x_dtype, r->x + i * size_of(x_dtype), n);
    return beta.at ? pair_difference(y, parameter_pair(w_dtype, x_dtype, beta, i, n)) : y;
}

/* g and g * xhat at n <= PAIR columns from i; x, of dtype, in x_dtype's order, as dy. beta: NULL, or x is y. */
INLINE void products_at(wf_dtype x_dtype, wf_dtype w_dtype, wf_dtype dtype, const struct backward_row *r,
                        struct parameter gamma, const struct parameter *beta, int64_t i, int64_t n, struct pair *g,
                        struct pair *gx)
{
    const struct pair dy = pair_load_part(x_dtype, x_dtype, r->dy + i * size_of(x_dtype), n);
    *g = pair_product(factor_pair(w_dtype, x_dtype, gamma, i, n), dy);
    if (beta)
        *gx = pair_product(dy, scaled_pair(x_dtype, w_dtype, r, *beta, i, n));
    else
        *gx = pair_product(*g, xhat_pair(pair_load_part(dtype, x_dtype, r->x + i * size_of(dtype), n), r->s));
}

/* sum[0] = sum g, sum[1] = sum g * xhat over columns [begin, end). */
INLINE void row_products(wf_dtype x_dtype, wf_dtype w_dtype, wf_dtype dtype, const struct backward_row *r,
                         struct parameter gamma, const struct parameter *beta, int64_t begin, int64_t end, real sum[2])
{
    struct lanes sum_g = {0}, sum_gx = {0};
    int64_t      i = begin;
    for (; i + SWATH <= end; i += SWATH)
        for (int j = 0; j < LANES / PAIR; j++) {
            struct pair g[4], gx[4];
            for (int k = 0; k < 4; k++)
                products_at(x_dtype, w_dtype, dtype, r, gamma, beta, i + k * LANES + j * PAIR, PAIR, &g[k], &gx[k]);
            lanes_add(&sum_g, x_dtype, j, pair_tree(g));
            lanes_add(&sum_gx, x_dtype, j, pair_tree(gx));
        }
    for (; i < end; i += LANES)
        for (int j = 0; j < LANES / PAIR && i + j * PAIR < end; j++) {
            const int64_t part = min64(end - (i + j * PAIR), PAIR);
            struct pair   g, gx;
            products_at(x_dtype, w_dtype, dtype, r, gamma, beta, i + j * PAIR, part, &g, &gx);
            lanes_add(&sum_g, x_dtype, j, part < PAIR ? pair_first(x_dtype, g, part) : g);
            lanes_add(&sum_gx, x_dtype, j, part < PAIR ? pair_first(x_dtype, gx, part) : gx);
        }
    sum[0] = lanes_sum(sum_g);
    sum[1] = lanes_sum(sum_gx);
}

INLINE void typed_products(wf_dtype x_dtype, wf_dtype w_dtype, const struct backward_row *r, struct parameter gamma,
                           int64_t begin, int64_t end, real sum[2])
{
    FOR_PARAMETERS(x_dtype, w_dtype, row_products, x_dtype, r, gamma, NULL, begin, end, sum);
}

INLINE void wide_products(wf_dtype x_dtype, wf_dtype w_dtype, const struct backward_row *r, struct parameter gamma,
                          int64_t begin, int64_t end, real sum[2])
{
    FOR_PARAMETERS(x_dtype, w_dtype, row_products, REAL_DTYPE, r, gamma, NULL, begin, end, sum);
}

INLINE void output_products(wf_dtype x_dtype, wf_dtype w_dtype, const struct backward_row *r, struct row_affine of, int64_t begin,
                            int64_t end, real sum[2])
{
    FOR_PARAMETERS(x_dtype, w_dtype, row_products, x_dtype, r, of.gamma, &of.beta, begin, end, sum);
}

/* Of a float sum beside 16-bit dy, or from y. Apart, for short rows of the others pay for all that is compiled into their
 * function. */
__attribute__((noinline)) static void sum_products(const struct layernorm_backward_run *run, const struct backward_row *r,
                                                   struct row_affine of, int64_t begin, int64_t end, real sum[2])
{
    if (run->p->from_output)
        FOR_DTYPE(run->p->x_dtype, output_products, of.dtype, r, of, begin, end, sum);
    else
        FOR_DTYPE(run->p->x_dtype, wide_products, of.dtype, r, of.gamma, begin, end, sum);
}

static void tree_products(const struct layernorm_backward_run *run, const struct backward_row *r, struct row_affine of,
                          int64_t begin, int64_t end, real sum[2])
{
    if (end - begin <= TILE) {
        if (run->plain)
            FOR_DTYPE(run->p->x_dtype, typed_products, of.dtype, r, of.gamma, begin, end, sum);
        else
            sum_products(run, r, of, begin, end, sum);
        return;
    }
    const int64_t middle = begin + tree_split(end - begin, TILE);
    real          right[2];
    tree_products(run, r, of, begin, middle, sum);
    tree_products(run, r, of, middle, end, right);
    sum[0] += right[0];
    sum[1] += right[1];
}

static void backward_reduce(void *arg, int64_t begin, int64_t end)
{
    const struct layernorm_backward_run *r = arg;
    for (int64_t i = begin; i < end; i++) {
        const int64_t             row = i / r->segments, from = i % r->segments * SEGMENT;
        const struct backward_row b = backward_row_at(r, row, from);
        tree_products(r, &b, ROW_AFFINE_AT(r->p, from), 0, min64(SEGMENT, r->p->cols - from), r->sums + 2 * i);
    }
}

/* What is done to n columns of a row once its averages are known. */
struct sweep {
    struct row_affine of;
    real         *dgamma, *dbeta; /* NULL: not asked for */
    int64_t       n, ahead_x, ahead_dy; /* bytes to what is fetched meanwhile */
    bool          stream, from_output;
};

INLINE void add_pair(real *to, struct pair p)
{
    pair_store(REAL_DTYPE, (char *)to, pair_sum(pair_load(REAL_DTYPE, REAL_DTYPE, (const char *)to), p));
}

/* n <= PAIR columns from i. through: NULL, or what the gradient of the norm goes through to be dx. */
INLINE void sweep_pair(wf_dtype x_dtype, wf_dtype w_dtype, wf_dtype dtype, const struct backward_row *r, const struct sweep *s,
                       int64_t i, int64_t n, bool stream, const struct gradients *through)
{
    const int64_t     at = i * size_of(x_dtype);
    const struct pair factor = factor_pair(w_dtype, x_dtype, s->of.gamma, i, n);
    struct pair       h;
    if (through && s->from_output)
        h = pair_quotient(scaled_pair(x_dtype, w_dtype, r, s->of.beta, i, n), factor);
    else
        h = xhat_pair(pair_load_part(dtype, x_dtype, r->x + i * size_of(dtype), n), r->s);
    const struct pair dy = pair_load_part(x_dtype, x_dtype, r->dy + at, n);
    if (r->dx || (through && through->dresidual)) {
        const struct pair g = pair_product(factor, dy);
        const struct pair dx = {r->s.rstd * ((g.a - r->avg_g) - h.a * r->avg_gx),
                                r->s.rstd * ((g.b - r->avg_g) - h.b * r->avg_gx)};
        for (int64_t line = 0; stream && line < PAIR * size_of(x_dtype); line += LINE) {
            __builtin_prefetch(r->x + at + s->ahead_x + line);
            __builtin_prefetch(r->dy + at + s->ahead_dy + line);
        }
        if (through)
            put_gradients(x_dtype, dtype, through, i, n, dx);
        else if (stream)
            pair_stream(x_dtype, r->dx + at, dx);
        else
            pair_store_part(x_dtype, r->dx + at, n, dx);
    }
    if (s->dgamma)
        add_pair(s->dgamma + i, pair_product(dy, h));
    if (s->dbeta)
        add_pair(s->dbeta + i, dy);
}

INLINE void sweep_row(wf_dtype x_dtype, wf_dtype w_dtype, const struct backward_row *r, const struct sweep *s)
{
    int64_t i = 0;
    if (s->stream && (uintptr_t)r->dx % LINE == 0)
        for (; i + PAIR <= s->n; i += PAIR)
            sweep_pair(x_dtype, w_dtype, x_dtype, r, s, i, PAIR, true, NULL);
    else
        for (; i + PAIR <= s->n; i += PAIR)
            sweep_pair(x_dtype, w_dtype, x_dtype, r, s, i, PAIR, false, NULL);
    if (i < s->n)
        sweep_pair(x_dtype, w_dtype, x_dtype, r, s, i, s->n - i, false, NULL);
}

INLINE void sweep_batch(wf_dtype x_dtype, wf_dtype w_dtype, const struct backward_row *r, int64_t rows,
                        const struct sweep *s)
{
    for (int64_t k = 0; k < rows; k++)
        FOR_PARAMETERS(x_dtype, w_dtype, sweep_row, r + k, s);
}

/* Row `index` where x was a sum, a few columns after the other, through what was added. */
INLINE void sweep_added(wf_dtype x_dtype, wf_dtype w_dtype, wf_dtype dtype, const struct addition_run *add, int64_t index,
                        int64_t begin, const struct backward_row *r, const struct sweep *s)
{
    struct gradients of;
    gradients_of(add, index, begin, &of);
    of.dx = r->dx;
    of.next[0] = r->x + s->ahead_x;
    of.next[1] = r->dy + s->ahead_dy;
    of.stream = s->stream;
    for (int64_t col = 0, end; col < s->n; col = end) {
        end = r->dx ? col + factors_of(add, index, begin + col, s->n - col, &of.f) : s->n;
        of.first = col;
        int64_t i = col;
        for (; i + PAIR <= end; i += PAIR)
            sweep_pair(x_dtype, w_dtype, dtype, r, s, i, PAIR, false, &of);
        if (i < end)
            sweep_pair(x_dtype, w_dtype, dtype, r, s, i, end - i, false, &of);
    }
}

INLINE void sweep_sum(wf_dtype x_dtype, wf_dtype w_dtype, const struct addition_run *add, int64_t index, int64_t begin,
                      const struct backward_row *r, const struct sweep *s)
{
    if (add->a->dtype == x_dtype)
        sweep_added(x_dtype, w_dtype, x_dtype, add, index, begin, r, s);
    else
        sweep_added(x_dtype, w_dtype, REAL_DTYPE, add, index, begin, r, s);
}

INLINE void typed_sum(wf_dtype x_dtype, wf_dtype w_dtype, const struct addition_run *add, int64_t index, int64_t begin,
                      const struct backward_row *r, const struct sweep *s)
{
    FOR_PARAMETERS(x_dtype, w_dtype, sweep_sum, add, index, begin, r, s);
}

/* Apart, as sum_products. */
__attribute__((noinline)) static void sweep_sums(const struct layernorm_backward_run *r, const struct backward_row *row,
                                                 int64_t first, int64_t rows, int64_t begin, const struct sweep *s)
{
    for (int64_t k = 0; k < rows; k++)
        FOR_DTYPE(r->p->x_dtype, typed_sum, s->of.dtype, r->add, first + k, begin, row + k, s);
}

/* Rows [first, last) at columns [begin, begin + s->n). */
static void backward_rows(const struct layernorm_backward_run *r, int64_t first, int64_t last, int64_t begin,
                          const struct sweep *s)
{
    const struct layernorm_backward *p = r->p;
    for (; first < last; first += r->batch) {
        const int64_t       rows = min64(r->batch, last - first);
        struct backward_row row[BATCH_ROWS];
        for (int64_t k = 0; k < rows; k++) {
            real sum[2];
            row[k] = backward_row_at(r, first + k, begin);
            if (!p->dx && !(r->add && p->add.dresidual))
                continue;
            if (r->segments > 1)
                row_sum_tree(r->sums + (first + k) * r->segments * 2, r->segments, 2, 2, sum);
            else
                tree_products(r, &row[k], s->of, 0, s->n, sum);
            row[k].avg_g = p->centered ? sum[0] / (real)p->cols : 0;
            row[k].avg_gx = sum[1] / (real)p->cols;
        }
        if (r->add)
            sweep_sums(r, row, first, rows, begin, s);
        else
            FOR_DTYPE(p->x_dtype, sweep_batch, s->of.dtype, row, rows, s);
    }
}

/* COLUMNS columns from col, or as many as there are, in the order of the arithmetic type. */
static void sum_partials(const struct layernorm_backward_run *r, int k, int64_t col, real sum[COLUMNS])
{
    const int64_t n = min64(COLUMNS, r->padded - col);
    row_sum_tree(r->partial + k * r->padded + col, r->blocks, 4 * r->padded, (int)n, sum);
    for (int64_t i = 0; i < n && r->p->x_dtype == WF_BF16; i += PAIR) {
        char *at = (char *)(sum + i);
        pair_store(REAL_DTYPE, at, pair_natural(WF_BF16, pair_load(REAL_DTYPE, REAL_DTYPE, at)));
    }
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
                sum_partials(r, k, col, sum);
            if (out[k])
                store_gradient(out[k], p->w_dtype, col, n, p->accumulate, sum);
        }
    }
}

/* One segment of one block of rows. */
static void backward_block(const struct layernorm_backward_run *r, int64_t block, int64_t segment)
{
    const struct layernorm_backward *p = r->p;
    const int64_t begin = segment * SEGMENT, end = r->segments > 1 ? min64(begin + SEGMENT, p->cols) : p->cols;
    const int64_t last = min64((block + 1) * r->block_rows, p->rows), padded = ceil_div(end - begin, LANES) * LANES;
    real         *const total = r->partial + block * 4 * r->padded + begin, *const strip = total + 2 * r->padded;
    struct row_affine of = ROW_AFFINE_AT(p, begin);
    struct prepared   prepared;
    if (last - block * r->block_rows >= PREPARED_ROWS)
        prepare_affine(p->x_dtype, &of, end - begin, &prepared);
    for (int64_t first = block * r->block_rows; first < last; first += STRIP_ROWS) {
        real *const  sums = first == block * r->block_rows ? total : strip;
        struct sweep s = {.of = of, .n = end - begin, .stream = r->stream, .from_output = p->from_output};
        s.dgamma = p->dgamma ? sums : NULL;
        s.dbeta = p->dbeta ? sums + r->padded : NULL;
        s.ahead_x = r->ahead * p->x_stride * size_of(r->dtype);
        s.ahead_dy = r->ahead * p->dy_stride * size_of(p->x_dtype);
        for (int k = 0; k < 2; k++)
            fill(sums + k * r->padded, padded, 0);
        backward_rows(r, first, min64(first + STRIP_ROWS, last), begin, &s);
        for (int k = 0; k < 2 && sums == strip; k++)
            for (int64_t i = 0; i < padded; i += PAIR)
                add_pair(total + k * r->padded + i, pair_load(REAL_DTYPE, REAL_DTYPE, (char *)(strip + k * r->padded + i)));
    }
    if (r->blocks == 1) /* while they are in cache */
        backward_finish((void *)(uintptr_t)r, begin / COLUMNS, ceil_div(end, COLUMNS));
}

static void backward_blocks(void *arg, int64_t begin, int64_t end)
{
    const struct layernorm_backward_run *r = arg;
    for (int64_t i = begin; i < end; i++)
        backward_block(r, i / r->segments, i % r->segments);
    stream_fence(r->stream);
}

static size_t layernorm_backward_plan(const struct layernorm_backward *p, void *workspace,
                                      struct layernorm_backward_run *r)
{
    struct cpu_arena arena = {workspace, 0};
    const int64_t    wanted = ceil_div(p->rows, 32);
    const int64_t    row_bytes = p->cols * (size_of(p->x_dtype) + size_of(r->dtype));
    r->p = p;
    r->block_rows = wanted < BLOCK_ROWS_MIN ? BLOCK_ROWS_MIN : min64(wanted, BLOCK_ROWS_MAX);
    r->blocks = ceil_div(p->rows, r->block_rows);
    r->segments = row_bytes > CPU_FUSED_BYTES ? ceil_div(p->cols, SEGMENT) : 1;
    r->padded = ceil_div(p->cols, LANES) * LANES;
    r->partial = cpu_take(&arena, r->blocks * 4 * r->padded, sizeof(real));
    if (r->segments > 1)
        r->sums = cpu_take(&arena, p->rows * r->segments * 2, sizeof(real));
    return cpu_arena_size(&arena);
}

static size_t layernorm_backward_workspace(const struct layernorm_backward *p)
{
    struct layernorm_backward_run r = {.dtype = p->x_dtype}, sum = {.dtype = p->add.dtype};
    const size_t plain = layernorm_backward_plan(p, NULL, &r), added = layernorm_backward_plan(p, NULL, &sum);
    return plain > added ? plain : added;
}

static void layernorm_backward(const struct layernorm_backward *p, const struct cpu_run *run)
{
    struct layernorm_backward_run r = {.dtype = p->x_dtype};
    struct addition_run           add;
    if (p->add.present) {
        add = addition_of(&p->add, p->x_dtype, p->w_dtype, p->cols);
        r.add = &add;
        r.dtype = p->from_output ? p->x_dtype : p->add.dtype;
    }
    r.plain = r.dtype == p->x_dtype && !p->from_output;
    layernorm_backward_plan(p, run->workspace, &r);
    if (p->cols == 0)
        return; /* no gradient has an element */
    r.stream = run->stream;
    const int64_t segment_bytes = min64(p->cols + 1, SEGMENT) * (int64_t)sizeof(real);
    const int64_t stride = (p->x_stride + 1) * size_of(p->x_dtype), row_bytes = 2 * stride;
    r.batch = row_bytes >= BATCH_BYTES ? 1 : min64(BATCH_BYTES / row_bytes, BATCH_ROWS);
    r.ahead = r.segments > 1 ? 0 : ceil_div(AHEAD_BYTES, stride);
    if (r.segments > 1 && (p->dx || p->add.dresidual))
        cpu_parallel(run, p->rows * r.segments, CPU_GRAIN_BYTES / segment_bytes, backward_reduce, &r);
    cpu_parallel(run, r.blocks * r.segments, CPU_GRAIN_BYTES / (segment_bytes * r.block_rows), backward_blocks, &r);
    if (r.blocks != 1 && (p->dgamma || p->dbeta))
        cpu_parallel(run, ceil_div(p->cols, COLUMNS), CPU_GRAIN_BYTES / (r.blocks + 1) / (COLUMNS * (int64_t)sizeof(real)),
                     backward_finish, &r);
}
