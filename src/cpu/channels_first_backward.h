/* x is [n, c, hw]: backward. The sums of a line (one channel of one sample) come first; a set's averages and the
 * parameter gradients are sums of those. Included by channelnorm_cpu.c. */

static struct stats stats_of(const struct channelnorm_backward_run *r, int64_t set)
{
    return (struct stats){given(r->p->mean, set), given(r->p->mean_lo, set), given(r->p->rstd, set)};
}

/* ---- reduce ----------------------------------------------------------------------------------------------------- */

/* Adds sums of dy to s1, and of dy * (x - mean) * rstd to s2, over n elements; all calls but a leaf's last take whole swaths. */
INLINE void add_products(wf_dtype dtype, const char *x, const char *dy, int64_t n, vector mean, vector rstd, struct lanes *s1,
                         struct lanes *s2)
{
    const int64_t size = size_of(dtype);
    for (; n >= SWATH; n -= SWATH, x += SWATH * size, dy += SWATH * size)
        for (int k = 0; k < VECTORS; k++) {
            vector g[4], gx[4];
            for (int j = 0; j < 4; j++) {
                const int64_t i = (j * LANES + k * WIDTH) * size;
                g[j] = vector_load(dtype, dy + i);
                gx[j] = g[j] * ((vector_load(dtype, x + i) - mean) * rstd);
            }
            s1->v[k] += (g[0] + g[1]) + (g[2] + g[3]);
            s2->v[k] += (gx[0] + gx[1]) + (gx[2] + gx[3]);
        }
    for (; n > 0; n -= LANES, x += LANES * size, dy += LANES * size)
        for (int k = 0; k < VECTORS; k++) {
            const int64_t left = n - k * WIDTH, i = k * WIDTH * size;
            vector        g, d;
            if (left >= WIDTH) {
                g = vector_load(dtype, dy + i);
                d = vector_load(dtype, x + i) - mean;
            } else if (left > 0) {
                g = vector_load_part(dtype, dy + i, left);
                d = vector_first(vector_load_part(dtype, x + i, left) - mean, left);
            } else {
                break;
            }
            s1->v[k] += g;
            s2->v[k] += g * (d * rstd);
        }
}

/* sum[0] = sum dy, sum[1] = sum dy * (x - mean) * rstd over n <= LEAF elements. */
INLINE void leaf_products(wf_dtype dtype, const char *x, const char *dy, int64_t n, vector mean, vector rstd, real sum[2])
{
    struct lanes s1 = lanes_fill(0), s2 = lanes_fill(0);
    add_products(dtype, x, dy, n, mean, rstd, &s1, &s2);
    sum[0] = lanes_sum(s1);
    sum[1] = lanes_sum(s2);
}

/* The same of what arrives before the ending, for n <= LEAF elements from `at`, all of one line. Apart, for line_sums calls
 * itself: its frame stays small. */
__attribute__((noinline)) static void leaf_arrivals(const struct channelnorm_backward *p, const struct stats *s, int64_t at,
                                                    int64_t n, real sum[2])
{
    const wf_dtype dtype = p->shape.x_dtype;
    const int64_t  line = at / p->shape.hw, channel = line % p->shape.c;
    real           gamma_buffer[1], beta_buffer[1];
    const struct affine a = {.gamma = p->gamma, .beta = p->act.beta, .w_dtype = p->shape.w_dtype, .mod = &p->mod};
    const real     factor = s->rstd * *load_factors(&a, channel, line, 1, gamma_buffer);
    const real     shift = *load_shifts(&a, channel, line, 1, beta_buffer) - s->mean_lo * factor;
    struct lanes   s1 = lanes_fill(0), s2 = lanes_fill(0);
    for (int64_t part; n > 0; n -= part, at += part) {
        real z[ENDED], dz[ENDED], buffer[ENDED];
        part = min64(ENDED, n);
        const real *x = load(p->x, dtype, at, part, buffer);
        fetch(p->x, dtype, at + END_AHEAD, part);
        SIMD
        for (int64_t j = 0; j < part; j++)
            z[j] = (x[j] - s->mean) * factor + shift;
        arrive_tile(&p->act, dtype, at, part, END_AHEAD, z, p->dy, dz);
        add_products(REAL_DTYPE, (const char *)x, (char *)dz, part, vector_fill(s->mean), vector_fill(s->rstd), &s1, &s2);
    }
    sum[0] = lanes_sum(s1);
    sum[1] = lanes_sum(s2);
}

/* sum[0] = sum dy, sum[1] = sum dy * xhat over n elements from `at`, all of one line. What mean_lo adds to xhat is the
 * same for all. */
static void line_sums(const struct channelnorm_backward *p, const struct stats *s, int64_t at, int64_t n, real sum[2])
{
    if (n > LEAF) {
        const int64_t left = tree_split(n, LEAF);
        real          right[2];
        line_sums(p, s, at, left, sum);
        line_sums(p, s, at + left, n - left, right);
        sum[0] += right[0];
        sum[1] += right[1];
        return;
    }
    const wf_dtype dtype = p->shape.x_dtype;
    if (p->act.present)
        leaf_arrivals(p, s, at, n, sum);
    else
        FOR_DTYPE(dtype, leaf_products, at_element(p->x, dtype, at), at_element(p->dy, dtype, at), n, vector_fill(s->mean),
                  vector_fill(s->rstd), sum);
    sum[1] -= s->mean_lo * s->rstd * sum[0];
}

/* The sums of the lines of whole sets, in the order of memory. */
static void bundle_sums(const struct channelnorm_backward_run *r, const struct channelnorm_backward *p, const struct bundle *b)
{
    const struct lines lines = lines_of(&r->g, b->set);
    const int64_t      neighbors = lines.step > 1 ? b->sets : b->sets * lines.count;
    for (int64_t far = 0; far < (lines.step > 1 ? lines.count : 1); far++) {
        for (int64_t near = 0; near < neighbors; near++) {
            const int64_t      line = lines.first + far * lines.step + near;
            const struct stats s = stats_of(r, b->set + (lines.step > 1 ? near : near / lines.count));
            real               sum[2];
            line_sums(p, &s, line * r->g.s.hw, r->g.s.hw, sum);
            r->dy_sum[line] = sum[0];
            r->dyx_sum[line] = sum[1];
        }
        if (p->mod.present)
            modulate_sums(r, lines.first + far * lines.step, neighbors);
    }
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
    const struct stats                     s = stats_of(r, set);
    int64_t                                number, begin, n;
    item_line(r, set, item, &number, &begin, &n);
    line_sums(&r->reduce, &s, number * r->g.s.hw + begin, n, r->part + (set * r->items + item) * 2);
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
    for (int64_t line = 0; r->p->mod.present && line < lines.count; line++)
        modulate_sums(r, lines.first + line * lines.step, 1);
    combine_sums(r, set, 1);
}

/* ---- apply ------------------------------------------------------------------------------------------------------ */

static void backward_lines(const void *arg, int64_t line, int64_t n, struct line_map *m)
{
    const struct channelnorm_backward_run *r = arg;
    const struct channelnorm_backward     *p = &r->apply;
    const real *mean = p->mean, *mean_lo = p->mean_lo, *rstd = p->rstd;
    if (m->act)
        normalize_lines(&r->g, &r->z, line, n, m->z);
    for (int64_t done = 0, part; done < n; done += part) {
        const struct line_sets l = line_sets_of(&r->g, line + done, n - done);
        real                   buffer[MAP_LINES];
        const real            *gamma = load_factors(&r->z, l.channel, line + done, l.lines, buffer);
        part = l.lines;
        SIMD
        for (int64_t j = 0; j < part; j++) {
            const int64_t set = l.set + (l.one_set ? 0 : j);
            const real    factor = rstd[set] * gamma[j];
            if (p->frozen) {
                m->param[0][done + j] = factor;
            } else {
                const real slope = rstd[set] * r->k2[set], lo = mean_lo ? mean_lo[set] : 0;
                m->param[0][done + j] = mean[set];
                m->param[1][done + j] = rstd[set];
                m->param[2][done + j] = factor;
                m->param[3][done + j] = rstd[set] * r->k1[set] - lo * rstd[set] * slope;
                m->param[4][done + j] = slope;
            }
        }
    }
}

static void arriving_lines(const void *arg, int64_t line, int64_t n, struct line_map *m)
{
    const struct channelnorm_backward_run *r = arg;
    normalize_lines(&r->g, &r->z, line, n, m->z);
}

/* Keeps dz of a bundle, of lines that may be short. */
static void arrive_bundle(const struct channelnorm_backward_run *r, const struct bundle *b)
{
    struct line_map m, z;
    m.formula = SCALE;
    m.act = &r->reduce.act;
    m.z = &z;
    m.in[0] = r->p->x;
    m.in[1] = r->p->dy;
    m.out = NULL;
    map_bundle(&r->g, b, &m, arriving_lines, r, false);
}

static void backward_apply_bundle(const struct channelnorm_backward_run *r, const struct bundle *b, bool next)
{
    const struct channelnorm_backward *p = &r->apply;
    struct line_map m, z;
    m.formula = p->frozen ? SCALE : GRADIENT;
    m.act = p->act.present ? &p->act : NULL;
    m.z = &z;
    m.in[0] = p->frozen && !m.act ? p->dy : p->x;
    m.in[1] = p->dy;
    m.out = p->dx;
    m.stream = r->stream;
    map_bundle(&r->g, b, &m, backward_lines, r, next);
}

static void channels_first_backward_apply(const void *arg, int64_t set, int64_t segment)
{
    const struct channelnorm_backward_run *r = arg;
    const struct bundle                    b = segment_of(&r->g, set, segment);
    backward_apply_bundle(r, &b, false);
    stream_fence(r->stream);
}

/* ---- the plan --------------------------------------------------------------------------------------------------- */

/* Sets from reduce to apply, a bundle at a time. */
static void channels_first_backward_bundles(void *arg, int64_t begin, int64_t end)
{
    const struct channelnorm_backward_run *r = arg;
    const int64_t                          most = bundle_sets(&r->g, 2 * size_of(r->g.s.x_dtype));
    for (int64_t set = begin, sets; set < end; set += sets) {
        sets = min64(most, end - set);
        const struct bundle b = {set, sets, 0, r->g.count};
        if (r->summed) {
            if (r->reduce.act.dresidual)
                arrive_bundle(r, &b);
            bundle_sums(r, r->reduce.act.dresidual ? &r->apply : &r->reduce, &b);
            combine_sums(r, set, sets);
        }
        if (r->applied)
            backward_apply_bundle(r, &b, end - set >= 2 * sets);
    }
    stream_fence(r->stream);
}

static void channels_first_backward_plan(struct channelnorm_backward_run *r, struct cpu_arena *arena)
{
    const int64_t lines = r->g.s.across_batch ? r->g.s.n : r->g.group_channels;
    r->items = lines * ceil_div(r->g.s.hw, SEGMENT);
    if (!whole_sets(&r->g, 2 * size_of(r->g.s.x_dtype)))
        r->part = cpu_take(arena, r->g.sets * r->items * 2, sizeof(real));
}

static void channels_first_backward(struct channelnorm_backward_run *r, const struct cpu_run *run)
{
    const int64_t value_bytes = 2 * size_of(r->g.s.x_dtype);
    struct cpu_stages stages = {.sets = r->g.sets, .arg = r};
    if (whole_sets(&r->g, value_bytes)) {
        cpu_parallel(run, r->g.sets, bundles_sets(&r->g, value_bytes), channels_first_backward_bundles, r);
        return;
    }
    stages.items = r->items;
    stages.item_bytes = min64(r->g.s.hw, SEGMENT) * value_bytes;
    stages.reduce = channels_first_backward_reduce;
    stages.combine = channels_first_backward_combine;
    if (r->summed)
        cpu_run_stages(run, &stages);
    stages.items = ceil_div(r->g.count, SEGMENT);
    stages.item_bytes = SEGMENT * value_bytes;
    stages.reduce = NULL;
    stages.combine = NULL;
    stages.apply = channels_first_backward_apply;
    if (r->applied)
        cpu_run_stages(run, &stages);
}
