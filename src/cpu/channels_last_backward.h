/* x is [n, hw, c]: backward. The sums of a column over a sample's rows come first, block by block; then as in
 * channels_first_backward.h. Included by channelnorm_cpu.c. */

/* No guess is made: longer items, tile by tile, were 5 % slower. */
static int64_t backward_item_rows(const struct geometry *g)
{
    return item_rows_of(g, CPU_GRAIN_BYTES);
}

/* SWEPT_ROWS wide rows at once: n <= PAIR columns from the i-th. */
INLINE void sweep_row_products(wf_dtype dtype, const char *x, const char *dy, int64_t step, const struct fetch *f,
                               int64_t i, int64_t n, const real *mean, const real *rstd, real *dy_sum, real *dyx_sum)
{
    struct pair   g[SWEPT_ROWS], gx[SWEPT_ROWS];
    const int64_t at = i * size_of(dtype);
    for (int k = 0; k < SWEPT_ROWS; k++) {
        fetch_pair(dtype, x + f->ahead + k * f->row + i * f->column);
        fetch_pair(dtype, dy + f->ahead + k * f->row + i * f->column);
        const struct pair d = deviation(pair_load_part(dtype, dtype, x + k * step + at, n), mean, NULL, i);
        g[k] = pair_load_part(dtype, dtype, dy + k * step + at, n);
        gx[k] = pair_product(g[k], pair_product(d, sums_load(rstd + i)));
    }
    sums_add(dy_sum + i, pair_tree(g));
    sums_add(dyx_sum + i, pair_tree(gx));
}

/* One of the rows that are left: n columns. */
INLINE void add_row_products(wf_dtype dtype, const char *x, const char *dy, int64_t n, const real *mean, const real *rstd,
                             real *dy_sum, real *dyx_sum)
{
    for (int64_t i = 0; i < n; i += PAIR) {
        const int64_t     part = min64(n - i, PAIR), at = i * size_of(dtype);
        const struct pair g = pair_load_part(dtype, dtype, dy + at, part);
        const struct pair d = deviation(pair_load_part(dtype, dtype, x + at, part), mean, NULL, i);
        sums_add(dy_sum + i, g);
        sums_add(dyx_sum + i, pair_first(dtype, pair_product(g, pair_product(d, sums_load(rstd + i))), part));
    }
}

/* sum dy and sum dy * (x - mean) * rstd of each column over n rows from `row`; mean and rstd in the order of pairs. */
INLINE void sweep_products(wf_dtype dtype, const struct channelnorm_backward *p, const struct columns_tile *t,
                           const real *mean, const real *rstd, int64_t row, int64_t n, real *dy_sum, real *dyx_sum)
{
    const int64_t size = size_of(dtype), all = t->fold * t->width, step = t->fold * t->c * size, whole = all / PAIR * PAIR;
    const char   *x = at_element(p->x, dtype, row * t->c + t->col), *dy = at_element(p->dy, dtype, row * t->c + t->col);
    const struct fetch f = fetch_of(t, FETCHED / 2);
    fill(dy_sum, all + PAIR, 0);
    fill(dyx_sum, all + PAIR, 0);
    for (; n >= SWEPT_ROWS * t->fold; n -= SWEPT_ROWS * t->fold, x += SWEPT_ROWS * step, dy += SWEPT_ROWS * step) {
        for (int64_t i = 0; i < whole; i += PAIR)
            sweep_row_products(dtype, x, dy, step, &f, i, PAIR, mean, rstd, dy_sum, dyx_sum);
        if (whole < all)
            sweep_row_products(dtype, x, dy, step, &f, whole, all - whole, mean, rstd, dy_sum, dyx_sum);
    }
    for (; n > 0; n -= t->fold, x += step, dy += step)
        add_row_products(dtype, x, dy, min64(n, t->fold) * t->width, mean, rstd, dy_sum, dyx_sum);
    pairs_order(dtype, dy_sum, all, true);
    pairs_order(dtype, dyx_sum, all, true);
    add_folds(dy_sum, t);
    add_folds(dyx_sum, t);
}

/* What is swept with every row. */
struct product_sweep {
    ALIGNED real mean[WIDEST + PAIR], rstd[WIDEST + PAIR];
    ALIGNED real dy_sum[WIDEST + PAIR], dyx_sum[WIDEST + PAIR];
};

/* The same with an ending, of dz, as reals and in the order of memory. */
__attribute__((noinline)) static void sweep_arrivals(const struct channelnorm_backward *p, const struct columns_tile *t,
                                                     struct product_sweep *w, const struct arrival_map *m, int64_t row,
                                                     int64_t n)
{
    const int64_t      all = t->fold * t->width, step = t->fold * t->c;
    const int64_t      ahead = ceil_div(END_AHEAD, SWEPT_ROWS * all) * SWEPT_ROWS * step;
    const struct fetch none = {0, 0, 0};
    real               x[SWEPT_ROWS][ARRIVED + PAIR], dz[SWEPT_ROWS][ARRIVED + PAIR];
    fill(w->dy_sum, all + PAIR, 0);
    fill(w->dyx_sum, all + PAIR, 0);
    for (int64_t at = row * t->c + t->col, rows; n > 0; n -= rows * t->fold, at += rows * step) {
        rows = n >= SWEPT_ROWS * t->fold ? SWEPT_ROWS : 1;
        const int64_t columns = min64(n, t->fold) * t->width;
        for (int64_t i = 0, part; i < columns; i += part) {
            const real *mean = w->mean + i, *rstd = w->rstd + i;
            real       *dy_sum = w->dy_sum + i, *dyx_sum = w->dyx_sum + i;
            part = min64(ARRIVED, columns - i);
            for (int64_t k = 0; k < rows; k++)
                arrive_columns(p, mean, m, i, at + k * step + i, part, ahead, x[k], dz[k]);
            if (rows == 1) {
                add_row_products(REAL_DTYPE, (char *)x, (char *)dz, part, mean, rstd, dy_sum, dyx_sum);
                continue;
            }
            int64_t j = 0;
            for (; j + PAIR <= part; j += PAIR)
                sweep_row_products(REAL_DTYPE, (char *)x, (char *)dz, sizeof x[0], &none, j, PAIR, mean, rstd, dy_sum, dyx_sum);
            if (j < part)
                sweep_row_products(REAL_DTYPE, (char *)x, (char *)dz, sizeof x[0], &none, j, part - j, mean, rstd, dy_sum,
                                   dyx_sum);
        }
    }
    add_folds(w->dy_sum, t);
    add_folds(w->dyx_sum, t);
}

static void columns_products(const struct channelnorm_backward *p, const struct columns_tile *t, struct product_sweep *w,
                             const struct arrival_map *m, int64_t row, int64_t n, real *dy_sum, real *dyx_sum)
{
    if (n <= leaf_rows(t->fold)) {
        if (p->act.present)
            sweep_arrivals(p, t, w, m, row, n);
        else
            FOR_DTYPE(t->dtype, sweep_products, p, t, w->mean, w->rstd, row, n, w->dy_sum, w->dyx_sum);
        memcpy(dy_sum, w->dy_sum, (size_t)t->width * sizeof(real));
        memcpy(dyx_sum, w->dyx_sum, (size_t)t->width * sizeof(real));
        return;
    }
    real          right[2][WIDEST];
    const int64_t left = tree_split(n, leaf_rows(t->fold));
    columns_products(p, t, w, m, row, left, dy_sum, dyx_sum);
    columns_products(p, t, w, m, row + left, n - left, right[0], right[1]);
    SIMD
    for (int64_t j = 0; j < t->width; j++) {
        dy_sum[j] += right[0][j];
        dyx_sum[j] += right[1][j];
    }
}

/* What mean_lo adds to xhat is the same for all of a column. */
static void channels_last_backward_reduce(const void *arg, int64_t sample, int64_t item)
{
    const struct channelnorm_backward_run *r = arg;
    const int64_t item_rows = backward_item_rows(&r->g), rows = last_rows(&r->g), first = item * item_rows, c = r->g.s.c;
    real         *part = r->part + (sample * r->items + item) * 2 * c;
    const int64_t step = even_step(c, WIDEST);
    for (int64_t col = 0; col < c; col += step) {
        const struct columns_tile t = plain_tile_of(&r->g, col, step, SWEPT_WIDE);
        struct product_sweep      w;
        struct arrival_map        m;
        real                      mean_lo[WIDEST], *dy_sum = part + t.col, *dyx_sum = part + c + t.col;
        spread(&r->g, &t, sample, r->p->mean, w.mean);
        spread(&r->g, &t, sample, r->p->mean_lo, mean_lo);
        spread(&r->g, &t, sample, r->p->rstd, w.rstd);
        if (r->p->act.present)
            map_arrivals(&r->z, &t, sample, w.rstd, mean_lo, &m);
        SIMD
        for (int64_t j = 0; j < t.width; j++)
            mean_lo[j] *= w.rstd[j];
        repeat(w.mean, &t);
        repeat(w.rstd, &t);
        if (!r->p->act.present) { /* else reals are swept */
            FOR_DTYPE(t.dtype, pairs_order, w.mean, t.fold * t.width, false);
            FOR_DTYPE(t.dtype, pairs_order, w.rstd, t.fold * t.width, false);
        }
        columns_products(&r->reduce, &t, &w, &m, sample * rows + first, min64(item_rows, rows - first), dy_sum, dyx_sum);
        SIMD
        for (int64_t j = 0; j < t.width; j++)
            dyx_sum[j] -= mean_lo[j] * dy_sum[j];
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
    if (r->p->mod.present)
        modulate_sums(r, sample * c, c);
    for (int64_t set = 0; set < sets; set += COLUMNS)
        combine_sums(r, sample * sets + set, min64(COLUMNS, sets - set));
}

static void channels_last_backward_apply(const void *arg, int64_t sample, int64_t item)
{
    const struct channelnorm_backward_run *r = arg;
    const struct channelnorm_backward     *p = &r->apply;
    const int64_t item_rows = backward_item_rows(&r->g), rows = last_rows(&r->g), first = item * item_rows;
    if (p->act.present) {
        strips_backward_apply(r, sample, sample * rows + first, sample * rows + min64(first + item_rows, rows));
        stream_fence(r->stream);
        return;
    }
    const int64_t step = even_step(r->g.s.c, WIDE);
    for (int64_t col = 0; col < r->g.s.c; col += step) {
        const struct columns_tile t = plain_tile_of(&r->g, col, step, WIDE);
        struct column_map         m;
        real                      buffer[WIDE], mean[WIDE], mean_lo[WIDE], rstd[WIDE], k1[WIDE], k2[WIDE];
        const real               *gamma = load_factors(&r->z, col, sample * r->g.s.c + col, t.width, buffer);
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
        m.pitch = WIDE + PAIR;
        real *const center = m.param, *const factor = center + m.pitch, *const scale = factor + m.pitch;
        real *const addend = scale + m.pitch, *const slope = addend + m.pitch;
        SIMD
        for (int64_t j = 0; j < t.width; j++) {
            center[j] = p->frozen ? rstd[j] * gamma[j] : mean[j];
            factor[j] = rstd[j];
            scale[j] = rstd[j] * gamma[j];
            slope[j] = rstd[j] * k2[j];
            addend[j] = rstd[j] * k1[j] - mean_lo[j] * rstd[j] * slope[j];
        }
        map_rows(&m, &t, sample * rows + first, min64(item_rows, rows - first));
    }
    stream_fence(r->stream);
}

static void channels_last_backward_plan(struct channelnorm_backward_run *r, struct cpu_arena *arena)
{
    r->items = ceil_div(last_rows(&r->g), backward_item_rows(&r->g));
    r->part = cpu_take(arena, last_samples(&r->g) * r->items * 2 * r->g.s.c, sizeof(real));
}

static void channels_last_backward(struct channelnorm_backward_run *r, const struct cpu_run *run)
{
    const int64_t samples = last_samples(&r->g), row_bytes = 2 * r->g.s.c * size_of(r->g.s.x_dtype);
    cpu_run_stages(run, &(struct cpu_stages){.sets = samples,
                                             .items = r->items,
                                             .item_bytes = row_bytes * min64(backward_item_rows(&r->g), last_rows(&r->g)),
                                             .reduce = r->summed ? channels_last_backward_reduce : NULL,
                                             .combine = r->summed ? channels_last_backward_combine : NULL,
                                             .apply = r->applied ? channels_last_backward_apply : NULL,
                                             .arg = r,
                                             .fused = whole_samples(&r->g, row_bytes)});
}
