/* x is [n, c, hw]: forward. A set is `lines` of hw consecutive values, one per channel of a group or per sample. A set
 * that fits in half of L2 is read from memory once, by one thread; larger ones are cut into segments. Included by
 * channelnorm_cpu.c. */

/* The lines of a set; line l begins at element (first + l * step) * hw, and (first + l * step) % c is its channel. */
struct lines {
    int64_t first, step, count;
};

static struct lines lines_of(const struct geometry *g, int64_t set)
{
    if (g->s.across_batch)
        return (struct lines){set, g->s.c, g->s.n};
    return (struct lines){set * g->group_channels, 1, g->group_channels};
}

/* Values [begin, end) of a set: its segment of this number. */
static void segment_range(const struct geometry *g, int64_t segment, int64_t *begin, int64_t *end)
{
    *begin = segment * SEGMENT;
    *end = min64(*begin + SEGMENT, g->count);
}

static void channels_first_reduce(const void *arg, int64_t set, int64_t segment)
{
    const struct channelnorm_forward_run *r = arg;
    const struct channelnorm_shape       *s = &r->g.s;
    const struct lines                    lines = lines_of(&r->g, set);
    int64_t                               begin, end;
    segment_range(&r->g, segment, &begin, &end);
    const struct span span = {at_element(r->p->x, s->x_dtype, lines.first * s->hw), s->x_dtype,
                              lines.step == 1 ? r->g.count : s->hw, lines.step * s->hw};
    ((struct moments *)r->part)[set * r->items + segment] = span_moments(&span, begin, end, true);
}

static void channels_first_combine(const void *arg, int64_t set)
{
    const struct channelnorm_forward_run *r = arg;
    if (r->p->known)
        known_set(r, set);
    else
        finish_set(r, set, r->g.count ? moments_tree((const struct moments *)r->part + set * r->items, SEGMENT, r->g.count)
                                      : (struct moments){0});
}

/* n elements from `at`, all of one channel. */
static void normalize_line(const struct channelnorm_forward_run *r, int64_t set, int64_t channel, int64_t at, int64_t n)
{
    const struct channelnorm_forward *p = r->p;
    const wf_dtype dtype = p->shape.x_dtype;
    const real     mean = r->mean[set], mean_lo = r->mean_lo[set];
    const real     factor = r->rstd[set] * load_one(p->gamma, p->shape.w_dtype, channel, 1);
    const real     beta = load_one(p->beta, p->shape.w_dtype, channel, 0);
    for (int64_t done = 0; done < n; done += TILE) {
        const int64_t part = min64(TILE, n - done);
        real          x_buffer[TILE], y_buffer[TILE];
        const real   *x = load(p->x, dtype, at + done, part, x_buffer);
        real         *y = store_target(p->y, dtype, at + done, r->stream, y_buffer);
        SIMD
        for (int64_t i = 0; i < part; i++)
            y[i] = ((x[i] - mean) - mean_lo) * factor + beta;
        store(p->y, dtype, at + done, y, part, r->stream);
    }
}

/* hw = 1: n elements from `at`, each of a channel of its own. */
static void normalize_flat(const struct channelnorm_forward_run *r, int64_t set, int64_t channel, int64_t at, int64_t n)
{
    const struct channelnorm_forward *p = r->p;
    const wf_dtype dtype = p->shape.x_dtype, w_dtype = p->shape.w_dtype;
    const real     mean = r->mean[set], mean_lo = r->mean_lo[set], rstd = r->rstd[set];
    for (int64_t done = 0; done < n; done += TILE) {
        const int64_t part = min64(TILE, n - done);
        real          x_buffer[TILE], y_buffer[TILE], gamma_buffer[TILE], beta_buffer[TILE];
        const real   *x = load(p->x, dtype, at + done, part, x_buffer);
        const real   *gamma = load_parameter(p->gamma, w_dtype, channel + done, part, 1, gamma_buffer);
        const real   *beta = load_parameter(p->beta, w_dtype, channel + done, part, 0, beta_buffer);
        real         *y = store_target(p->y, dtype, at + done, r->stream, y_buffer);
        SIMD
        for (int64_t i = 0; i < part; i++)
            y[i] = ((x[i] - mean) - mean_lo) * (rstd * gamma[i]) + beta[i];
        store(p->y, dtype, at + done, y, part, r->stream);
    }
}

static void channels_first_apply(const void *arg, int64_t set, int64_t segment)
{
    const struct channelnorm_forward_run *r = arg;
    const int64_t                         hw = r->g.s.hw;
    const struct lines                    lines = lines_of(&r->g, set);
    int64_t                               begin, end;
    segment_range(&r->g, segment, &begin, &end);
    if (hw == 1)
        normalize_flat(r, set, (lines.first + begin) % r->g.s.c, lines.first + begin, end - begin);
    for (int64_t line = begin / hw; hw > 1 && line * hw < end; line++) {
        const int64_t number = lines.first + line * lines.step;
        const int64_t from = line * hw > begin ? 0 : begin - line * hw, to = min64(hw, end - line * hw);
        normalize_line(r, set, number % r->g.s.c, number * hw + from, to - from);
    }
    stream_fence(r->stream);
}

static void channels_first_forward_plan(struct channelnorm_forward_run *r, struct cpu_arena *arena)
{
    r->items = ceil_div(r->g.count, SEGMENT);
    r->part = r->p->known ? NULL : cpu_take(arena, r->g.sets * r->items, sizeof(struct moments));
}

static void channels_first_forward(struct channelnorm_forward_run *r, const struct cpu_run *run)
{
    const int64_t set_bytes = r->g.count * (int64_t)sizeof(real);
    cpu_run_stages(run, &(struct cpu_stages){.sets = r->g.sets,
                                             .items = r->items,
                                             .item_bytes = min64(set_bytes, SEGMENT * (int64_t)sizeof(real)),
                                             .reduce = r->p->known ? NULL : channels_first_reduce,
                                             .combine = channels_first_combine,
                                             .apply = channels_first_apply,
                                             .arg = r,
                                             .fused = set_bytes <= CPU_FUSED_BYTES});
}
