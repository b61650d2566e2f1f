/* x is [n, hw, c]: backward. The sums of a column over a sample's rows come first, block by block; then as in
 * channels_first_backward.h. Included by channelnorm_cpu.c. */

/* What a tile's columns are normalized with. */
struct columns_stats {
    real mean[COLUMNS], mean_lo[COLUMNS], rstd[COLUMNS];
};

static void spread_stats(const struct channelnorm_backward_run *r, const struct columns_tile *t, int64_t sample,
                         struct columns_stats *s)
{
    spread(&r->g, t, sample, r->p->mean, s->mean);
    spread(&r->g, t, sample, r->p->mean_lo, s->mean_lo);
    spread(&r->g, t, sample, r->p->rstd, s->rstd);
}

/* sum dy and sum dy * xhat of each column over n rows from `row`. */
static void columns_products(const struct channelnorm_backward_run *r, const struct columns_tile *t,
                             const struct columns_stats *s, int64_t row, int64_t n, real *dy_sum, real *dyx_sum)
{
    static const real zeros[COLUMNS];
    if (n > leaf_rows(t->fold)) {
        real          right[2][COLUMNS];
        const int64_t left = tree_split(n, leaf_rows(t->fold));
        columns_products(r, t, s, row, left, dy_sum, dyx_sum);
        columns_products(r, t, s, row + left, n - left, right[0], right[1]);
        SIMD
        for (int64_t j = 0; j < t->width; j++) {
            dy_sum[j] += right[0][j];
            dyx_sum[j] += right[1][j];
        }
        return;
    }
    const int64_t all = t->fold * t->width, wide_rows = ceil_div(n, t->fold);
    real          buffer[2 * SWEPT_ROWS][COLUMNS], sum[2][COLUMNS];
    fill(sum[0], all, 0);
    fill(sum[1], all, 0);
    for (int64_t wide = 0; wide < wide_rows; wide += SWEPT_ROWS) {
        const real *x[SWEPT_ROWS], *dy[SWEPT_ROWS];
        for (int k = 0; k < SWEPT_ROWS; k++) {
            x[k] = load_wide(t, r->p->x, row, n, wide + k, s->mean, buffer[2 * k]);
            dy[k] = load_wide(t, r->p->dy, row, n, wide + k, zeros, buffer[2 * k + 1]);
        }
        SIMD
        for (int64_t i = 0; i < all; i++) {
            real a[SWEPT_ROWS];
            for (int k = 0; k < SWEPT_ROWS; k++)
                a[k] = dy[k][i] * (((x[k][i] - s->mean[i]) - s->mean_lo[i]) * s->rstd[i]);
            sum[0][i] += (dy[0][i] + dy[1][i]) + (dy[2][i] + dy[3][i]);
            sum[1][i] += (a[0] + a[1]) + (a[2] + a[3]);
        }
    }
    add_folds(sum[0], t);
    add_folds(sum[1], t);
    memcpy(dy_sum, sum[0], (size_t)t->width * sizeof(real));
    memcpy(dyx_sum, sum[1], (size_t)t->width * sizeof(real));
}

static void channels_last_backward_reduce(const void *arg, int64_t sample, int64_t item)
{
    const struct channelnorm_backward_run *r = arg;
    const int64_t item_rows = last_item_rows(&r->g), rows = last_rows(&r->g), first = item * item_rows, c = r->g.s.c;
    real         *part = r->part + (sample * r->items + item) * 2 * c;
    for (int64_t tile = 0; tile < last_tiles(&r->g); tile++) {
        const struct columns_tile t = columns_tile_of(&r->g, tile);
        struct columns_stats      s;
        spread_stats(r, &t, sample, &s);
        columns_products(r, &t, &s, sample * rows + first, min64(item_rows, rows - first), part + t.col, part + c + t.col);
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
    for (int64_t set = sample * sets; set < (sample + 1) * sets; set++)
        combine_sums(r, set);
}

static void channels_last_backward_apply(const void *arg, int64_t sample, int64_t item)
{
    const struct channelnorm_backward_run *r = arg;
    const struct channelnorm_backward     *p = r->p;
    const int64_t item_rows = last_item_rows(&r->g), rows = last_rows(&r->g), first = item * item_rows;
    const int64_t n = min64(item_rows, rows - first);
    real          gamma[COLUMNS], k1[COLUMNS], k2[COLUMNS], x_buffer[COLUMNS], dy_buffer[COLUMNS], dx_buffer[COLUMNS];
    for (int64_t tile = 0; tile < last_tiles(&r->g); tile++) {
        const struct columns_tile t = columns_tile_of(&r->g, tile);
        struct columns_stats      s;
        spread_stats(r, &t, sample, &s);
        spread(&r->g, &t, sample, p->frozen ? NULL : r->k1, k1);
        spread(&r->g, &t, sample, p->frozen ? NULL : r->k2, k2);
        spread_parameter(&p->shape, &t, p->gamma, 1, gamma);
        for (int64_t row = 0; row < n; row += t.fold) {
            const int64_t at = (sample * rows + first + row) * t.c + t.col, count = min64(t.fold, n - row) * t.width;
            const real   *dy = load(p->dy, t.dtype, at, count, dy_buffer);
            const real   *x = p->frozen ? NULL : load(p->x, t.dtype, at, count, x_buffer);
            real         *dx = store_target(p->dx, t.dtype, at, r->stream, dx_buffer);
            if (p->frozen) {
                SIMD
                for (int64_t i = 0; i < count; i++)
                    dx[i] = s.rstd[i] * (gamma[i] * dy[i]);
            } else {
                SIMD
                for (int64_t i = 0; i < count; i++) {
                    const real xhat = ((x[i] - s.mean[i]) - s.mean_lo[i]) * s.rstd[i];
                    dx[i] = s.rstd[i] * ((gamma[i] * dy[i] - k1[i]) - xhat * k2[i]);
                }
            }
            store(p->dx, t.dtype, at, dx, count, r->stream);
        }
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
    const int64_t samples = last_samples(&r->g), row_bytes = 2 * r->g.s.c * (int64_t)sizeof(real);
    cpu_run_stages(run, &(struct cpu_stages){.sets = samples,
                                             .items = r->items,
                                             .item_bytes = row_bytes * min64(last_item_rows(&r->g), last_rows(&r->g)),
                                             .reduce = r->summed ? channels_last_backward_reduce : NULL,
                                             .combine = r->summed ? channels_last_backward_combine : NULL,
                                             .apply = r->p->dx ? channels_last_backward_apply : NULL,
                                             .arg = r,
                                             .fused = samples > 1 && row_bytes * last_rows(&r->g) <= CPU_FUSED_BYTES});
}
