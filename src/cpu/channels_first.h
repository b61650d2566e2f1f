/* x is [n, c, hw]: forward. Included by channelnorm_cpu.c.
 *
 * A set is read in one sweep, about a guess of its mean: two sweeps of each tile would let memory stand still during the
 * second (13 GB/s instead of 40 on one core, cold). */

/* ---- reduce ----------------------------------------------------------------------------------------------------- */

/* Values 0, 1, ... lie in runs of `run` consecutive elements, `stride` elements from run to run. */
struct span {
    const void *data;
    wf_dtype    dtype;
    int64_t     run, stride;
};

static struct span span_of(const struct channelnorm_forward_run *r, int64_t set)
{
    const struct channelnorm_shape *s = &r->g.s;
    const struct lines              lines = lines_of(&r->g, set);
    return (struct span){at_element(r->p->x, s->x_dtype, lines.first * s->hw), s->x_dtype,
                         lines.step == 1 ? r->g.count : s->hw, lines.step * s->hw};
}

enum { SPREAD = 8 }; /* values that a guess is the mean of */

INLINE real value_at(wf_dtype dtype, const struct span *s, int64_t i)
{
    const int64_t run = i < s->run ? 0 : i / s->run;
    const char   *at = at_element(s->data, dtype, run * s->stride + (i - run * s->run));
    uint16_t      half;
    real          value;
    if (is_real(dtype)) {
        memcpy(&value, at, sizeof value);
        return value;
    }
    memcpy(&half, at, sizeof half);
    return dtype == WF_F16 ? (real)wf_f16_to_f32(half) : (real)wf_bf16_to_f32(half);
}

/* The mean of some values from all over a set, about. */
INLINE real span_guess(wf_dtype dtype, const struct span *s, int64_t begin, int64_t end)
{
    const int64_t n = end - begin, step = n / SPREAD;
    real          value[SPREAD] = {0}, spread = 0;
    for (int64_t k = 0; k < SPREAD; k++)
        if (step > 0 || k < n) {
            value[k] = value_at(dtype, s, begin + k * (step > 0 ? step : 1)) / SPREAD;
            const real d = value[k] - value[0];
            spread = d > spread ? d : -d > spread ? -d : spread;
        }
    const real sum = ((value[0] + value[1]) + (value[2] + value[3])) + ((value[4] + value[5]) + (value[6] + value[7]));
    return coarse_guess(step > 0 ? sum : sum * SPREAD / (real)n, spread * SPREAD);
}

/* Sums of d and of d^2, d = x - center: [ALL] of trees of 32, two of 16 in [SOME]. So a large square is rounded some ten
 * times, not with each of the small ones after it: these may be alike, and then all roundings go one way. What is left of a
 * line waits in [REST] until it is worth a swath: a sum of four terms has no preferred last bits, while a square of few bits
 * has (it is 0 or 1 modulo 4), and adding many such to a large sum would round down more often than up. */
enum { ALL, SOME, REST, SUMS, SWATHS = 4 };
struct squares {
    struct lanes sum[SUMS], squares[SUMS];
    int          some, rest; /* of what SOME ever got; LANES values each in REST */
};

INLINE void squares_move(struct squares *q, int to, int from)
{
    for (int k = 0; k < VECTORS; k++) {
        q->sum[to].v[k] += q->sum[from].v[k];
        q->squares[to].v[k] += q->squares[from].v[k];
        q->sum[from].v[k] = q->squares[from].v[k] = vector_fill(0);
    }
}

/* SOME has got more. */
INLINE void squares_count(struct squares *q)
{
    if (++q->some % 2 == 0)
        squares_move(q, ALL, SOME);
}

/* The tree of `swaths` of them, 1 or SWATHS, to SOME. up: factors of d, powers of two; NULL = 1. */
INLINE void squares_swaths(wf_dtype dtype, const char *x, int swaths, vector center, const real *up, struct squares *q)
{
    for (int k = 0; k < VECTORS; k++) {
        vector sum[SWATHS], squares[SWATHS];
        for (int i = 0; i < swaths; i++) {
            vector d[4];
            for (int j = 0; j < 4; j++) {
                d[j] = vector_load(dtype, x + (i * SWATH + j * LANES + k * WIDTH) * size_of(dtype)) - center;
                d[j] = up ? d[j] * up[0] * up[1] : d[j];
            }
            sum[i] = (d[0] + d[1]) + (d[2] + d[3]);
            squares[i] = (d[0] * d[0] + d[1] * d[1]) + (d[2] * d[2] + d[3] * d[3]);
        }
        q->sum[SOME].v[k] += swaths == 1 ? sum[0] : (sum[0] + sum[1]) + (sum[2] + sum[3]);
        q->squares[SOME].v[k] += swaths == 1 ? squares[0] : (squares[0] + squares[1]) + (squares[2] + squares[3]);
    }
}

/* n consecutive values more. */
INLINE void squares_add(wf_dtype dtype, const char *x, int64_t n, vector center, const real *up, struct squares *q)
{
    const int64_t size = size_of(dtype);
    for (; n >= SWATHS * SWATH; n -= SWATHS * SWATH, x += SWATHS * SWATH * size) {
        squares_swaths(dtype, x, SWATHS, center, up, q);
        squares_count(q);
    }
    if (n >= SWATH) {
        for (; n >= SWATH; n -= SWATH, x += SWATH * size)
            squares_swaths(dtype, x, 1, center, up, q);
        squares_count(q);
    }
    for (; n > 0; n -= LANES, x += LANES * size) {
        for (int k = 0; k < VECTORS; k++) {
            const int64_t left = n - k * WIDTH;
            vector        d;
            if (left >= WIDTH)
                d = vector_load(dtype, x + k * WIDTH * size) - center;
            else if (left > 0)
                d = vector_first(vector_load_part(dtype, x + k * WIDTH * size, left) - center, left);
            else
                break;
            d = up ? d * up[0] * up[1] : d;
            q->sum[REST].v[k] += d;
            q->squares[REST].v[k] += d * d;
        }
        q->rest++;
    }
    if (q->rest >= SWATH / LANES) {
        squares_move(q, SOME, REST);
        squares_count(q);
        q->rest = 0;
    }
}

INLINE void span_squares(wf_dtype dtype, const struct span *s, int64_t begin, int64_t end, real center, const real *up,
                         real *sum, real *squares)
{
    const struct lanes zero = lanes_fill(0);
    struct squares     q = {{zero, zero, zero}, {zero, zero, zero}, 0, 0};
    int64_t            run = begin / s->run, in_run = begin - run * s->run;
    for (; begin < end; run++, in_run = 0) {
        const int64_t n = min64(s->run - in_run, end - begin);
        squares_add(dtype, at_element(s->data, dtype, run * s->stride + in_run), n, vector_fill(center), up, &q);
        begin += n;
    }
    if (q.some > 0)
        squares_move(&q, REST, SOME);
    squares_move(&q, ALL, REST);
    *sum = lanes_sum(q.sum[ALL]);
    *squares = lanes_sum(q.squares[ALL]);
}

/* Where the plain sums left the range: the same of d * 2^-scale. */
static int32_t span_squares_scaled(const struct span *s, int64_t begin, int64_t end, real center, real *sum, real *squares)
{
    real largest = 0;
    for (int64_t i = begin; i < end; i++) {
        const real    d = FOR_DTYPE(s->dtype, value_at, s, i) - center, size = d < 0 ? -d : d;
        if (!isfinite(d))
            return 0; /* the plain sum says so already */
        largest = size > largest ? size : largest;
    }
    if (largest == 0)
        return 0;
    const int32_t scale = moments_exponent(largest), half = scale / 2;
    const real    up[2] = {(real)ldexp(1, -half), (real)ldexp(1, half - scale)}; /* each is in range */
    FOR_DTYPE(s->dtype, span_squares, s, begin, end, center, up, sum, squares);
    return scale;
}

/* The mean is far from where it was guessed: sweep again, nearer. Or the squares left the range: scaled, about the same
 * guess, which stays what it would have been. */
__attribute__((noinline, cold)) static struct moments span_moments_near(const struct span *s, int64_t begin, int64_t end,
                                                                        real *guess)
{
    for (int sweep = 0;; sweep++) {
        real    sum, squares;
        int32_t scale = 0;
        FOR_DTYPE(s->dtype, span_squares, s, begin, end, *guess, NULL, &sum, &squares);
        if (!moments_in_range(squares))
            scale = span_squares_scaled(s, begin, end, *guess, &sum, &squares);
        const struct moments m = moments_about(*guess, sum, squares, scale, end - begin);
        if (sweep == 3 || !(m.m2 < squares / 2))
            return m;
        *guess = m.mean;
    }
}

/* Values of a set that are swept at once: a power of two, so that SEGMENT is one of its tree's parts. The first lanes get a
 * value more of each run, or all of short ones; they get no more than those of LEAF values do. */
static int64_t leaf_of(const struct span *s)
{
    int64_t run = 1;
    while (run < 2 * LANES && run * 2 <= s->run)
        run *= 2;
    return LEAF / (2 * LANES) * run;
}

/* Values [begin, end) of each set. A guess that was wrong is corrected for the values that follow. */
static void bundle_moments(const struct span *s, int64_t sets, int64_t begin, int64_t end, real *guess, struct columns *out)
{
    const int64_t leaf = leaf_of(s);
    if (end - begin > leaf) {
        struct columns right;
        const int64_t  left = tree_split(end - begin, leaf);
        bundle_moments(s, sets, begin, begin + left, guess, out);
        bundle_moments(s, sets, begin + left, end, guess, &right);
        columns_merge(out, left, &right, end - begin - left, sets);
        return;
    }
    real    sum[BUNDLE_SETS], squares[BUNDLE_SETS];
    int32_t far[BUNDLE_SETS];
    for (int64_t j = 0; j < sets; j++)
        FOR_DTYPE(s->dtype, span_squares, &s[j], begin, end, guess[j], NULL, &sum[j], &squares[j]);
    if (columns_about(guess, sum, squares, end - begin, sets, out, far))
        for (int64_t j = 0; j < sets; j++)
            if (far[j])
                column_set(out, j, span_moments_near(&s[j], begin, end, &guess[j]));
}

static void reduce_bundle(const struct channelnorm_forward_run *r, const struct bundle *b, struct columns *out)
{
    struct span span[BUNDLE_SETS];
    real        guess[BUNDLE_SETS];
    for (int64_t j = 0; j < b->sets; j++) {
        span[j] = span_of(r, b->set + j);
        guess[j] = FOR_DTYPE(span[j].dtype, span_guess, &span[j], b->begin, b->end);
    }
    bundle_moments(span, b->sets, b->begin, b->end, guess, out);
}

static void channels_first_reduce(const void *arg, int64_t set, int64_t segment)
{
    const struct channelnorm_forward_run *r = arg;
    const struct bundle                   b = segment_of(&r->g, set, segment);
    struct columns                        all;
    reduce_bundle(r, &b, &all);
    ((struct moments *)r->part)[set * r->items + segment] = column_get(&all, 0);
}

static void channels_first_combine(const void *arg, int64_t set)
{
    const struct channelnorm_forward_run *r = arg;
    struct columns                        all;
    if (r->p->known) {
        known_sets(r, set, 1);
        return;
    }
    column_set(&all, 0, moments_tree((const struct moments *)r->part + set * r->items, SEGMENT, r->g.count));
    finish_sets(r, set, 1, &all);
}

/* ---- apply ------------------------------------------------------------------------------------------------------ */

/* Lines [line, line + n) of the tensor: y = (x - mean) * factor + shift, where mean_lo is a part of the shift. */
static void normalize_lines(const struct geometry *g, const struct affine *a, int64_t line, int64_t n, struct line_map *m)
{
    for (int64_t done = 0, part; done < n; done += part) {
        const struct line_sets l = line_sets_of(g, line + done, n - done);
        real                   gamma_buffer[MAP_LINES], beta_buffer[MAP_LINES];
        part = l.lines;
        const real *gamma = load_factors(a, l.channel, line + done, part, gamma_buffer);
        const real *beta = load_shifts(a, l.channel, line + done, part, beta_buffer);
        SIMD
        for (int64_t j = 0; j < part; j++) {
            const int64_t set = l.set + (l.one_set ? 0 : j);
            const real    factor = a->rstd[set] * gamma[j];
            m->param[0][done + j] = a->mean[set];
            m->param[1][done + j] = factor;
            m->param[2][done + j] = beta[j] - (a->mean_lo ? a->mean_lo[set] : 0) * factor;
        }
    }
}

static void forward_lines(const void *arg, int64_t line, int64_t n, struct line_map *m)
{
    const struct channelnorm_forward_run *r = arg;
    normalize_lines(&r->g, &r->z, line, n, m);
}

static void apply_bundle(const struct channelnorm_forward_run *r, const struct bundle *b, bool next)
{
    struct line_map m;
    m.formula = NORMALIZE;
    m.in[0] = r->p->x;
    m.out = r->p->y;
    m.stream = r->stream;
    m.act = r->p->act.present ? &r->p->act : NULL;
    m.z = NULL;
    map_bundle(&r->g, b, &m, forward_lines, r, next);
}

static void channels_first_apply(const void *arg, int64_t set, int64_t segment)
{
    const struct channelnorm_forward_run *r = arg;
    const struct bundle                   b = segment_of(&r->g, set, segment);
    apply_bundle(r, &b, false);
    stream_fence(r->stream);
}

/* ---- the plan --------------------------------------------------------------------------------------------------- */

/* Sets from reduce to apply, a bundle at a time. */
static void channels_first_bundles(void *arg, int64_t begin, int64_t end)
{
    const struct channelnorm_forward_run *r = arg;
    const int64_t                         most = bundle_sets(&r->g, size_of(r->g.s.x_dtype));
    for (int64_t set = begin, sets; set < end; set += sets) {
        struct columns all = {0};
        sets = min64(most, end - set);
        const struct bundle b = {set, sets, 0, r->g.count};
        if (!r->p->known && r->g.count)
            reduce_bundle(r, &b, &all);
        if (r->p->known)
            known_sets(r, set, sets);
        else
            finish_sets(r, set, sets, &all);
        if (r->g.count)
            apply_bundle(r, &b, end - set >= 2 * sets);
    }
    stream_fence(r->stream);
}

static void channels_first_forward_plan(struct channelnorm_forward_run *r, struct cpu_arena *arena)
{
    r->items = ceil_div(r->g.count, SEGMENT);
    if (!r->p->known && !whole_sets(&r->g, size_of(r->g.s.x_dtype)))
        r->part = cpu_take(arena, r->g.sets * r->items, sizeof(struct moments));
}

static void channels_first_forward(struct channelnorm_forward_run *r, const struct cpu_run *run)
{
    if (whole_sets(&r->g, size_of(r->g.s.x_dtype))) {
        cpu_parallel(run, r->g.sets, bundles_sets(&r->g, size_of(r->g.s.x_dtype)), channels_first_bundles, r);
    } else {
        cpu_run_stages(run, &(struct cpu_stages){.sets = r->g.sets,
                                                 .items = r->items,
                                                 .item_bytes = SEGMENT * size_of(r->g.s.x_dtype),
                                                 .reduce = r->p->known ? NULL : channels_first_reduce,
                                                 .combine = channels_first_combine,
                                                 .apply = channels_first_apply,
                                                 .arg = r});
    }
}
