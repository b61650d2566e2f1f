/* x is [n, hw, c]: backward. The sums of a column over a sample's rows come first, block by block; then as in
 * channels_first_backward.h. Included by channelnorm_cpu.c. */

/* SWEPT_ROWS wide rows at once: WIDTH columns from the i-th of n. */
INLINE void sweep_row_products(wf_dtype dtype, const char *x, const char *dy, int64_t step, int64_t ahead, int64_t i,
                               int64_t n, const real *mean, const real *rstd, real *dy_sum, real *dyx_sum)
{
    vector g[SWEPT_ROWS], gx[SWEPT_ROWS];
    for (int k = 0; k < SWEPT_ROWS; k++) {
        __builtin_prefetch(x + k * step + ahead + i * size_of(dtype));
        __builtin_prefetch(dy + k * step + ahead + i * size_of(dtype));
        g[k] = load_wide(dtype, dy + k * step, i, n);
        gx[k] = g[k] * (deviation(load_wide(dtype, x + k * step, i, n), mean, NULL, i) * vector_load(REAL_DTYPE, rstd + i));
    }
    add_to(dy_sum + i, (g[0] + g[1]) + (g[2] + g[3]));
    add_to(dyx_sum + i, (gx[0] + gx[1]) + (gx[2] + gx[3]));
}

/* sum dy and sum dy * (x - mean) * rstd of each column over n rows from `row`. */
INLINE void sweep_products(wf_dtype dtype, const struct channelnorm_backward *p, const struct columns_tile *t,
                           const real *mean, const real *rstd, int64_t row, int64_t n, real *dy_sum, real *dyx_sum)
{
    const int64_t all = t->fold * t->width, step = t->fold * t->c * size_of(dtype), whole = all / WIDTH * WIDTH;
    const char   *x = at_element(p->x, dtype, row * t->c + t->col), *dy = at_element(p->dy, dtype, row * t->c + t->col);
    const int64_t ahead = fetched_ahead(t, step);
    fill(dy_sum, all, 0);
    fill(dyx_sum, all, 0);
    for (; n >= SWEPT_ROWS * t->fold; n -= SWEPT_ROWS * t->fold, x += SWEPT_ROWS * step, dy += SWEPT_ROWS * step) {
        for (int64_t i = 0; i < whole; i += WIDTH)
            sweep_row_products(dtype, x, dy, step, ahead, i, whole, mean, rstd, dy_sum, dyx_sum);
        if (whole < all)
            sweep_row_products(dtype, x, dy, step, ahead, whole, all, mean, rstd, dy_sum, dyx_sum);
    }
    for (; n > 0; n -= t->fold, x += step, dy += step) {
        const int64_t part = min64(n, t->fold) * t->width;
        for (int64_t i = 0; i < part; i += WIDTH) {
            const vector d = deviation(load_wide(dtype, x, i, part), mean, NULL, i), g = load_wide(dtype, dy, i, part);
            add_to(dy_sum + i, g);
            add_to(dyx_sum + i,
                   vector_first(g * (d * vector_load(REAL_DTYPE, rstd + i)), min64(part - i, WIDTH)));
        }
    }
    add_folds(dy_sum, t);
    add_folds(dyx_sum, t);
}

static void columns_products(const struct channelnorm_backward *p, const struct columns_tile *t, const real *mean,
                             const real *rstd, int64_t row, int64_t n, real *dy_sum, real *dyx_sum)
{
    ALIGNED real sum[2][WIDE + WIDTH];
    if (n <= leaf_rows(t->fold)) {
        FOR_DTYPE(t->dtype, sweep_products, p, t, mean, rstd, row, n, sum[0], sum[1]);
        memcpy(dy_sum, sum[0], (size_t)t->width * sizeof(real));
        memcpy(dyx_sum, sum[1], (size_t)t->width * sizeof(real));
        return;
    }
    const int64_t left = tree_split(n, leaf_rows(t->fold));
    columns_products(p, t, mean, rstd, row, left, dy_sum, dyx_sum);
    columns_products(p, t, mean, rstd, row + left, n - left, sum[0], sum[1]);
    SIMD
    for (int64_t j = 0; j < t->width; j++) {
        dy_sum[j] += sum[0][j];
        dyx_sum[j] += sum[1][j];
    }
}

/* What mean_lo adds to xhat is the same for all of a column. */
static void channels_last_backward_reduce(const void *arg, int64_t sample, int64_t item)
{
    const struct channelnorm_backward_run *r = arg;
    const int64_t item_rows = last_item_rows(&r->g), rows = last_rows(&r->g), first = item * item_rows, c = r->g.s.c;
    real         *part = r->part + (sample * r->items + item) * 2 * c;
    for (int64_t tile = 0; tile < last_tiles(&r->g); tile++) {
        const struct columns_tile t = columns_tile_of(&r->g, tile);
        ALIGNED real              mean[WIDE + WIDTH], mean_lo[COLUMNS], rstd[WIDE + WIDTH];
        real                     *dy_sum = part + t.col, *dyx_sum = part + c + t.col;
        spread(&r->g, &t, sample, r->p->mean, mean);
        spread(&r->g, &t, sample, r->p->mean_lo, mean_lo);
        spread(&r->g, &t, sample, r->p->rstd, rstd);
        repeat(mean, &t);
        repeat(rstd, &t);
        columns_products(r->p, &t, mean, rstd, sample * rows + first, min64(item_rows, rows - first), dy_sum, dyx_sum);
        SIMD
        for (int64_t j = 0; j < t.width; j++)
            dyx_sum[j] -= mean_lo[j] * rstd[j] * dy_sum[j];
    }
}

static void channels_last_backward_combine(const void *arg, int64_t sample)
{
    const struct channelnorm_backward_run *r = arg;
    const int64_t                          c = r->g.s.c, sets = c / r->g.group_channels;
    const real                            *part = r->part + sample * r->items * 2 * c;
    for (int64_t col = 0; col < c; col += COLUMNS) {
        const int n = (int)min64(COLUMNS, c - col);
        row_sum_tree(part + col, r->items, 2 * c, n, r->dy_sum + sample * c + col);
        row_sum_tree(part + c + col, r->items, 2 * c, n, r->dyx_sum + sample * c + col);
    }
    for (int64_t set = 0; set < sets; set += COLUMNS)
        combine_sums(r, sample * sets + set, min64(COLUMNS, sets - set));
}

static void channels_last_backward_apply(const void *arg, int64_t sample, int64_t item)
{
    const struct channelnorm_backward_run *r = arg;
    const struct channelnorm_backward     *p = r->p;
    const int64_t item_rows = last_item_rows(&r->g), rows = last_rows(&r->g), first = item * item_rows;
    for (int64_t col = 0; col < r->g.s.c; col += WIDE) {
        const struct columns_tile t = wide_tile_of(&r->g, col);
        struct column_map         m;
        real                      buffer[WIDE], mean[WIDE], mean_lo[WIDE], rstd[WIDE], k1[WIDE], k2[WIDE];
        const real               *gamma = load_parameter(p->gamma, p->shape.w_dtype, col, t.width, 1, buffer);
        spread(&r->g, &t, sample, p->mean, mean);
        spread(&r->g, &t, sample, p->mean_lo, mean_lo);
        spread(&r->g, &t, sample, p->rstd, rstd);
        spread(&r->g, &t, sample, p->frozen ? NULL : r->k1, k1);
        spread(&r->g, &t, sample, p->frozen ? NULL : r->k2, k2);
        m.formula = p->frozen ? SCALE : GRADIENT;
        m.in[0] = p->frozen ? p->dy : p->x;
        m.in[1] = p->dy;
        m.out = p->dx;
        m.stream = r->stream;
        SIMD
        for (int64_t j = 0; j < t.width; j++) {
            const real slope = rstd[j] * k2[j];
            m.param[0][j] = p->frozen ? rstd[j] * gamma[j] : mean[j];
            m.param[1][j] = rstd[j];
            m.param[2][j] = rstd[j] * gamma[j];
            m.param[3][j] = rstd[j] * k1[j] - mean_lo[j] * rstd[j] * slope;
            m.param[4][j] = slope;
        }
        map_rows(&m, &t, sample * rows + first, min64(item_rows, rows - first));
    }
    stream_fence(r->stream);
}

static void channels_last_backward_plan(struct channelnorm_backward_run *r, struct cpu_arena *arena)
{
    r->items = ceil_div(last_rows(&r->g), last_item_rows(&r->g));
    r->part = cpu_take(arena, last_samples(&r->g) * r->items * 2 * r->g.s.c, sizeof(real));
}

static void channels_last_backward(struct channelnorm_backward_run *r, const struct cpu_run *run)
{
    const int64_t samples = last_samples(&r->g), row_bytes = 2 * r->g.s.c * size_of(r->g.s.x_dtype);
    cpu_run_stages(run, &(struct cpu_stages){.sets = samples,
                                             .items = r->items,
                                             .item_bytes = row_bytes * min64(last_item_rows(&r->g), last_rows(&r->g)),
                                             .reduce = r->summed ? channels_last_backward_reduce : NULL,
                                             .combine = r->summed ? channels_last_backward_combine : NULL,
                                             .apply = r->p->dx ? channels_last_backward_apply : NULL,
                                             .arg = r,
                                             .fused = whole_samples(&r->g, row_bytes)});
}
