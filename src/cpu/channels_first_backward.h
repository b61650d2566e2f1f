/* x is [n, c, hw]: backward. The sums of a line (one channel of one sample) come first; a set's averages and the
 * parameter gradients are sums of those. Included by channelnorm_cpu.c. */

/* sum[0] = sum dy, sum[1] = sum dy * xhat over n elements from `at`, all of one set. */
static void line_sums(const struct channelnorm_backward_run *r, int64_t set, int64_t at, int64_t n, real sum[2])
{
    const struct channelnorm_backward *p = r->p;
    if (n > TILE) {
        const int64_t left = tree_split(n, TILE);
        real          right[2];
        line_sums(r, set, at, left, sum);
        line_sums(r, set, at + left, n - left, right);
        sum[0] += right[0];
        sum[1] += right[1];
        return;
    }
    real         x_buffer[TILE], dy_buffer[TILE];
    const real  *x = load(p->x, p->shape.x_dtype, at, n, x_buffer), *dy = load(p->dy, p->shape.x_dtype, at, n, dy_buffer);
    tile_products(x, dy, NULL, n, (struct stats){given(p->mean, set), given(p->mean_lo, set), given(p->rstd, set)}, sum);
}

/* Item of a set -> one segment of one line. */
static void item_line(const struct channelnorm_backward_run *r, int64_t set, int64_t item, int64_t *number, int64_t *begin,
                      int64_t *n)
{
    const struct lines lines = lines_of(&r->g, set);
    const int64_t      segments = r->items / lines.count, segment = item % segments;
    *number = lines.first + item / segments * lines.step;
    *begin = segment * SEGMENT;
    *n = min64(SEGMENT, r->g.s.hw - *begin);
}

static void channels_first_backward_reduce(const void *arg, int64_t set, int64_t item)
{
    const struct channelnorm_backward_run *r = arg;
    int64_t                                number, begin, n;
    item_line(r, set, item, &number, &begin, &n);
    line_sums(r, set, number * r->g.s.hw + begin, n, r->part + (set * r->items + item) * 2);
}

static void channels_first_backward_combine(const void *arg, int64_t set)
{
    const struct channelnorm_backward_run *r = arg;
    const struct lines                     lines = lines_of(&r->g, set);
    const int64_t                          segments = r->items / lines.count;
    for (int64_t line = 0; line < lines.count; line++) {
        real sum[2];
        row_sum_tree(r->part + (set * r->items + line * segments) * 2, segments, 2, 2, sum);
        r->dy_sum[lines.first + line * lines.step] = sum[0];
        r->dyx_sum[lines.first + line * lines.step] = sum[1];
    }
    combine_sums(r, set);
}

static void channels_first_backward_apply(const void *arg, int64_t set, int64_t item)
{
    const struct channelnorm_backward_run *r = arg;
    const struct channelnorm_backward     *p = r->p;
    const wf_dtype                         dtype = p->shape.x_dtype;
    int64_t                                number, begin, n;
    item_line(r, set, item, &number, &begin, &n);
    const real mean = given(p->mean, set), mean_lo = given(p->mean_lo, set), rstd = given(p->rstd, set);
    const real gamma = load_one(p->gamma, p->shape.w_dtype, number % r->g.s.c, 1);
    const real k1 = p->frozen ? 0 : r->k1[set], k2 = p->frozen ? 0 : r->k2[set];
    for (int64_t done = 0; done < n; done += TILE) {
        const int64_t at = number * r->g.s.hw + begin + done, part = min64(TILE, n - done);
        real          x_buffer[TILE], dy_buffer[TILE], dx_buffer[TILE];
        const real   *dy = load(p->dy, dtype, at, part, dy_buffer);
        const real   *x = p->frozen ? NULL : load(p->x, dtype, at, part, x_buffer);
        real         *dx = store_target(p->dx, dtype, at, r->stream, dx_buffer);
        if (p->frozen) {
            SIMD
            for (int64_t i = 0; i < part; i++)
                dx[i] = rstd * (gamma * dy[i]);
        } else {
            SIMD
            for (int64_t i = 0; i < part; i++) {
                const real xhat = ((x[i] - mean) - mean_lo) * rstd;
                dx[i] = rstd * ((gamma * dy[i] - k1) - xhat * k2);
            }
        }
        store(p->dx, dtype, at, dx, part, r->stream);
    }
    stream_fence(r->stream);
}

static void channels_first_backward_plan(struct channelnorm_backward_run *r, struct cpu_arena *arena)
{
    const int64_t lines = r->g.s.across_batch ? r->g.s.n : r->g.group_channels;
    r->items = lines * ceil_div(r->g.s.hw, SEGMENT);
    r->part = cpu_take(arena, r->g.sets * r->items * 2, sizeof(real));
}

static void channels_first_backward(struct channelnorm_backward_run *r, const struct cpu_run *run)
{
    const int64_t value_bytes = 2 * (int64_t)sizeof(real);
    cpu_run_stages(run, &(struct cpu_stages){.sets = r->g.sets,
                                             .items = r->items,
                                             .item_bytes = min64(r->g.s.hw, SEGMENT) * value_bytes,
                                             .reduce = r->summed ? channels_first_backward_reduce : NULL,
                                             .combine = r->summed ? channels_first_backward_combine : NULL,
                                             .apply = r->p->dx ? channels_first_backward_apply : NULL,
                                             .arg = r,
                                             .fused = r->g.count * value_bytes <= CPU_FUSED_BYTES});
}
