/* x is [n, c, hw]: what forward and backward share. A set is `lines` of hw consecutive values, one per channel of a group
 * or per sample. Included by channelnorm_cpu.c.
 *
 * Sets that fit a core's cache go in bundles of neighbors, which one thread reduces and then maps to y or dx; meanwhile
 * the next bundle is fetched. Larger sets are cut into segments. */

enum {
    LEAF = 4 * TILE,         /* values of a long line that are swept at once; 128 for each lane */
    BUNDLE_SETS = 64,        /* at most COLUMNS */
    BUNDLE_BYTES = 1 << 17,  /* of several sets, so that the next bundle fits the cache too */
    WHOLE_BYTES = 1 << 22,   /* of a set that one thread takes, where there are enough: from memory once, then from L3 */
    BUNDLES_BYTES = 1 << 20, /* what a thread takes: the first of these bundles is not fetched before */
    MAP_LINES = 256,
    LONG = 256,              /* elements of a line that is worth loops of its own */
    SHORTEST = 16,           /* and of one that is worth a vector */
};

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

/* ---- bundles ---------------------------------------------------------------------------------------------------- */

/* Sets that one thread takes together: values [begin, end) of each; all of them if there is more than one. */
struct bundle {
    int64_t set, sets, begin, end;
};

static struct bundle segment_of(const struct geometry *g, int64_t set, int64_t segment)
{
    const int64_t begin = segment * SEGMENT;
    return (struct bundle){set, 1, begin, min64(begin + SEGMENT, g->count)};
}

/* value_bytes: of all that is read. */
static bool whole_sets(const struct geometry *g, int64_t value_bytes)
{
    return g->count * value_bytes <= (g->sets < 16 ? CPU_FUSED_BYTES : WHOLE_BYTES);
}

static int64_t bundle_sets(const struct geometry *g, int64_t value_bytes)
{
    const int64_t fit = g->count > 0 ? BUNDLE_BYTES / (g->count * value_bytes) : BUNDLE_SETS;
    return fit < 1 ? 1 : min64(fit, BUNDLE_SETS);
}

/* Sets that a thread takes at once. */
static int64_t bundles_sets(const struct geometry *g, int64_t value_bytes)
{
    const int64_t set_bytes = g->count > 0 ? g->count * value_bytes : 1, share = g->sets * set_bytes / 32;
    const int64_t bytes = share < CPU_GRAIN_BYTES ? CPU_GRAIN_BYTES : min64(share, BUNDLES_BYTES);
    return bytes / set_bytes;
}

/* ---- maps ------------------------------------------------------------------------------------------------------- */

/* What becomes of an element, with the parameters of its line. */
enum formula {
    NORMALIZE, /* y  = (in0 - p0) * p1 + p2 */
    GRADIENT,  /* dx = (in1 * p2 - p3) - (in0 - p0) * p1 * p4 */
    SCALE,     /* dx = in0 * p0 */
};
enum { PARAMS = 5 };

struct line_map {
    enum formula formula;
    const void  *in[2];
    void        *out;
    bool         stream;
    wf_dtype     dtype;
    int64_t      hw;
    int64_t      ahead; /* elements from what is read now to what is to be fetched; 0 = nothing */
    real         param[PARAMS][MAP_LINES];
    const struct activation *act; /* NULL: no ending. Else in is x, dy whatever the formula; out may be NULL, */
    struct line_map         *z;   /* and in a backward pass this is the map that gives z */
};

INLINE vector evaluate(enum formula formula, vector a, vector b, const vector *p)
{
    switch (formula) {
    case NORMALIZE:
        return (a - p[0]) * p[1] + p[2];
    case GRADIENT:
        return (b * p[2] - p[3]) - (a - p[0]) * p[1] * p[4];
    default:
        return a * p[0];
    }
}

INLINE void line_params(const struct line_map *m, int64_t line, vector p[PARAMS])
{
    for (int k = 0; k < PARAMS; k++)
        p[k] = vector_fill(m->param[k][line]);
}

/* Elements [i, n) of a line. */
INLINE void map_plain(wf_dtype dtype, enum formula formula, const char *a, const char *b, char *out, int64_t i, int64_t n,
                      const vector *p)
{
    const int64_t size = size_of(dtype);
    for (; i + WIDTH <= n; i += WIDTH)
        vector_store(dtype, out + i * size,
                     evaluate(formula, vector_load(dtype, a + i * size), vector_load(dtype, b + i * size), p));
    if (i < n)
        vector_store_part(dtype, out + i * size, n - i,
                          evaluate(formula, vector_load_part(dtype, a + i * size, n - i),
                                   vector_load_part(dtype, b + i * size, n - i), p));
}

/* n consecutive elements from `at`, all of one line. */
INLINE void map_long(wf_dtype dtype, enum formula formula, const struct line_map *m, int64_t line, int64_t at, int64_t n)
{
    const int64_t size = size_of(dtype), ahead = m->ahead * size;
    const char   *a = at_element(m->in[0], dtype, at);
    const char   *b = formula == GRADIENT ? at_element(m->in[1], dtype, at) : a;
    char         *out = at_element(m->out, dtype, at);
    int64_t       i = 0, begin = 0, end = n / WIDTH * WIDTH;
    vector        p[PARAMS];
    line_params(m, line, p);
    if (m->stream) {
        whole_lines(out, size, n, &begin, &end);
        map_plain(dtype, formula, a, b, out, 0, begin, p);
    }
    for (i = begin; i < end; i += WIDTH) {
        const vector v =
            evaluate(formula, vector_load(dtype, a + i * size), vector_load(dtype, b + i * size), p);
        __builtin_prefetch(a + i * size + ahead);
        if (formula == GRADIENT && size < REAL_SIZE) /* for f32 one in three lines is as much as helps: 43 GB/s, with both 34 */
            __builtin_prefetch(b + i * size + ahead);
        if (m->stream)
            vector_stream(dtype, out + i * size, v);
        else
            vector_store(dtype, out + i * size, v);
    }
    map_plain(dtype, formula, a, b, out, i, n, p);
}

/* n elements of consecutive lines, in and out of buffers. A line's last vector may reach into the next line, which then
 * overwrites it; out has room for that. */
INLINE void map_short(enum formula formula, const struct line_map *m, int64_t line, int64_t in_line, int64_t n,
                      const real *a, const real *b, real *out)
{
    for (int64_t i = 0; i < n; line++, in_line = 0) {
        const int64_t end = min64(i + m->hw - in_line, n);
        vector        p[PARAMS];
        line_params(m, line, p);
        for (; i + WIDTH <= n && i < end; i += WIDTH)
            vector_store(REAL_DTYPE, out + i,
                         evaluate(formula, vector_load(REAL_DTYPE, a + i), vector_load(REAL_DTYPE, b + i), p));
        if (i < end)
            vector_store(REAL_DTYPE, out + i,
                         evaluate(formula, vector_load_part(REAL_DTYPE, a + i, n - i),
                                  vector_load_part(REAL_DTYPE, b + i, n - i), p));
        i = end;
    }
}

/* The same where lines are shorter than a vector: parameters for each element. */
INLINE void map_shortest(enum formula formula, const struct line_map *m, int64_t line, int64_t in_line, int64_t n,
                         const real *a, const real *b, real *out)
{
    real each[PARAMS][TILE];
    for (int64_t i = 0; i < n; line++, in_line = 0)
        for (const int64_t end = min64(i + m->hw - in_line, n); i < end; i++)
            for (int k = 0; k < PARAMS; k++)
                each[k][i] = m->param[k][line];
    for (int64_t i = 0; i < n; i += WIDTH) {
        const int64_t part = min64(WIDTH, n - i);
        vector        p[PARAMS];
        for (int k = 0; k < PARAMS; k++)
            p[k] = vector_load_part(REAL_DTYPE, &each[k][i], part);
        vector_store(REAL_DTYPE, out + i,
                     evaluate(formula, vector_load_part(REAL_DTYPE, a + i, part),
                              vector_load_part(REAL_DTYPE, b + i, part), p));
    }
}

/* Elements [at, at + n), `at` in line 0 of m. */
INLINE void map_lines(enum formula formula, const struct line_map *m, int64_t at, int64_t n)
{
    const int64_t at_once = min64(m->hw < LONG ? TILE / m->hw : 1, MAP_LINES);
    const int     inputs = formula == GRADIENT ? 2 : 1;
    int64_t       in_line = at % m->hw;
    for (int64_t line = 0, part; n > 0; n -= part, at += part, line += at_once, in_line = 0) {
        part = min64(at_once * m->hw - in_line, n);
        if (m->hw >= LONG) {
            FOR_DTYPE(m->dtype, map_long, formula, m, line, at, part);
            continue;
        }
        real        buffer[2][TILE], out[TILE + WIDTH];
        const real *a = load(m->in[0], m->dtype, at, part, buffer[0]);
        const real *b = inputs > 1 ? load(m->in[1], m->dtype, at, part, buffer[1]) : a;
        for (int k = 0; m->ahead && k < inputs; k++)
            fetch(m->in[k], m->dtype, at + m->ahead, part);
        if (m->hw < SHORTEST)
            map_shortest(formula, m, line, in_line, part, a, b, out);
        else
            map_short(formula, m, line, in_line, part, a, b, out);
        FOR_DTYPE(m->dtype, store_run, at_element(m->out, m->dtype, at), out, part, m->stream);
    }
}

static void map_tile(enum formula formula, const struct line_map *m, int64_t line, int64_t in_line, int64_t n, const real *a,
                     const real *b, real *out)
{
    if (formula == NORMALIZE)
        m->hw < SHORTEST ? map_shortest(NORMALIZE, m, line, in_line, n, a, a, out)
                         : map_short(NORMALIZE, m, line, in_line, n, a, a, out);
    else if (formula == GRADIENT)
        m->hw < SHORTEST ? map_shortest(GRADIENT, m, line, in_line, n, a, b, out)
                         : map_short(GRADIENT, m, line, in_line, n, a, b, out);
    else
        m->hw < SHORTEST ? map_shortest(SCALE, m, line, in_line, n, b, b, out)
                         : map_short(SCALE, m, line, in_line, n, b, b, out);
}

/* The same with an ending. */
__attribute__((noinline)) static void map_ending(const struct line_map *m, int64_t at, int64_t n)
{
    const struct activation *act = m->act;
    const int64_t            at_once = min64(ENDED / min64(m->hw, ENDED), MAP_LINES);
    const bool               forward = m->formula == NORMALIZE, needs_x = forward || !act->y || m->formula == GRADIENT;
    const int64_t            ahead = m->ahead ? m->ahead : END_AHEAD;
    int64_t                  line = 0, in_line = at % m->hw;
    for (int64_t part; n > 0; n -= part, at += part) {
        real        buffer[ENDED], z[ENDED + WIDTH], dz[ENDED], out[ENDED + WIDTH];
        part = min64(min64(at_once * m->hw - in_line, ENDED), n);
        const real *x = needs_x ? load(m->in[0], m->dtype, at, part, buffer) : NULL;
        if (needs_x)
            fetch(m->in[0], m->dtype, at + ahead, part);
        if (forward) {
            map_tile(NORMALIZE, m, line, in_line, part, x, x, out);
            end_tile(act, m->dtype, at, part, ahead, out);
        } else {
            if (!act->y)
                map_tile(NORMALIZE, m->z, line, in_line, part, x, x, z);
            arrive_tile(act, m->dtype, at, part, ahead, z, m->in[1], dz);
            if (m->out)
                map_tile(m->formula, m, line, in_line, part, x, dz, out);
        }
        if (m->out)
            FOR_DTYPE(m->dtype, store_run, at_element(m->out, m->dtype, at), out, part, m->stream);
        line += (in_line + part) / m->hw;
        in_line = (in_line + part) % m->hw;
    }
}

static void map_elements(const struct line_map *m, int64_t at, int64_t n)
{
    if (m->act)
        map_ending(m, at, n);
    else if (m->formula == NORMALIZE)
        map_lines(NORMALIZE, m, at, n);
    else if (m->formula == GRADIENT)
        map_lines(GRADIENT, m, at, n);
    else
        map_lines(SCALE, m, at, n);
}

/* Consecutive lines of consecutive channels, whose sets are one or consecutive too. */
struct line_sets {
    int64_t lines, channel, set;
    bool    one_set;
};

/* From `line`, at most n lines. */
static struct line_sets line_sets_of(const struct geometry *g, int64_t line, int64_t n)
{
    const int64_t channel = line % g->s.c, channels = g->group_channels;
    if (channels == 1)
        return (struct line_sets){min64(n, g->s.c - channel), channel, g->s.across_batch ? channel : line, false};
    return (struct line_sets){min64(n, channels - line % channels), channel, line / channels, true};
}

/* params: of n <= MAP_LINES lines from `line`; across the batch of sample 0, where all have the same. next: a bundle of as many
 * sets follows, which is to be fetched. */
static void map_bundle(const struct geometry *g, const struct bundle *b, struct line_map *m,
                       void (*params)(const void *arg, int64_t line, int64_t n, struct line_map *m), const void *arg,
                       bool next)
{
    const int64_t hw = g->s.hw;
    m->dtype = g->s.x_dtype;
    m->hw = hw;
    if (m->act && m->z)
        m->z->hw = hw;
    if (g->s.across_batch) {
        m->ahead = next ? b->sets * hw : 0;
        for (int64_t sample = b->begin / hw; sample * hw < b->end; sample++) {
            if (g->apart || sample == b->begin / hw)
                params(arg, (g->apart ? sample * g->s.c : 0) + b->set, b->sets, m);
            const int64_t from = sample * hw > b->begin ? 0 : b->begin - sample * hw, to = min64(hw, b->end - sample * hw);
            map_elements(m, (sample * g->s.c + b->set) * hw + from, (b->sets - 1) * hw + to - from);
        }
        return;
    }
    const int64_t first = b->set * g->count + b->begin, end = (b->set + b->sets - 1) * g->count + b->end;
    m->ahead = next ? end - first : 0;
    for (int64_t at = first, n; at < end; at += n) {
        const int64_t line = at / hw;
        n = min64((line + MAP_LINES) * hw, end) - at;
        params(arg, line, ceil_div(at + n, hw) - line, m);
        map_elements(m, at, n);
    }
}
