/* x is [n, hw, c]: forward. Columns are reduced over blocks of rows in one sweep about a guess of their means, as in
 * channels_first.h; blocks merge as a tree. Across the batch the whole tensor is one sample of n * hw rows. Included by
 * channelnorm_cpu.c.
 *
 * Few channels are folded: a "wide row" is `fold` consecutive rows, so that loops are long for any c; a column then has
 * fold partial sums, which are added at the end of a block. So are the columns of a group: a block gives one record for
 * each "unit" of a tile, a group or as much of it as the tile holds. */

enum {
    WIDE = TILE,          /* at most, of a wide row */
    SWEPT_WIDE = 512,     /* of one that is reduced: rows 4 KB apart would all be in one set of the cache */
    LEAF_WIDE_ROWS = 128, /* of a block: at most 32 additions of SWEPT_ROWS rows in sequence */
};
#define ALIGNED _Alignas(LINE) /* what is swept with every row: half as many lines */

/* Columns [col, col + width) of every row, in units of `unit` columns. */
struct columns_tile {
    wf_dtype dtype;
    int64_t  c, col, width, unit, fold;
};

/* Tiles that one group needs, if it needs several. */
static int64_t tiles_of_group(const struct geometry *g)
{
    return ceil_div(g->group_channels, COLUMNS);
}

/* Whole groups that one tile holds, if it holds several: tiles of single channels are about equally wide. */
static int64_t groups_of_tile(const struct geometry *g)
{
    if (g->group_channels == 1)
        return ceil_div(ceil_div(g->s.c, ceil_div(g->s.c, COLUMNS)), LINE) * LINE;
    return g->group_channels < COLUMNS ? COLUMNS / g->group_channels : 1;
}

static int64_t last_tiles(const struct geometry *g)
{
    return ceil_div(g->s.c / g->group_channels, groups_of_tile(g)) * tiles_of_group(g);
}

static int64_t last_samples(const struct geometry *g)
{
    return g->s.across_batch ? 1 : g->s.n;
}

static int64_t last_rows(const struct geometry *g)
{
    return g->s.across_batch ? g->s.n * g->s.hw : g->s.hw;
}

/* Rows side by side: whole lines of the cache if so many fit, and few enough for a sample to have some wide rows. */
static int64_t fold_of(const struct geometry *g, int64_t wide)
{
    const int64_t most = g->s.c <= COLUMNS / 2 ? min64(wide / g->s.c, last_rows(g) / (2 * SWEPT_ROWS)) : 1;
    int64_t       fold = 1;
    while (fold * 2 <= most && fold < LINE / 4)
        fold *= 2;
    return most > fold ? most / fold * fold : fold;
}

static struct columns_tile columns_tile_of(const struct geometry *g, int64_t tile)
{
    const int64_t channels = g->group_channels, parts = tiles_of_group(g);
    const int64_t part = tile % parts * COLUMNS, col = tile / parts * groups_of_tile(g) * channels + part;
    const int64_t end = parts > 1 ? channels - part : min64(groups_of_tile(g) * channels, g->s.c - col);
    const int64_t width = min64(COLUMNS, end);
    return (struct columns_tile){g->s.x_dtype, g->s.c, col, width, min64(channels, width), fold_of(g, SWEPT_WIDE)};
}

/* Rows of a block, at most TILE. */
static int64_t leaf_rows(int64_t fold)
{
    return LEAF_WIDE_ROWS * min64(fold, TILE / LEAF_WIDE_ROWS);
}

/* Rows of an item: blocks, a power of two of them, worth a thread's while. */
static int64_t last_item_rows(const struct geometry *g)
{
    int64_t rows = leaf_rows(fold_of(g, SWEPT_WIDE));
    while (rows * g->s.c * (int64_t)sizeof(real) < CPU_GRAIN_BYTES)
        rows *= 2;
    return rows;
}

/* The first `width` values again and again. */
static void repeat(real *v, const struct columns_tile *t)
{
    for (int64_t done = t->width, all = t->width * t->fold; done < all; done *= 2)
        memcpy(v + done, v, (size_t)min64(done, all - done) * sizeof(real));
}

/* v[i] becomes the sum of v[i], v[i + stride], ... of `count` values, as a tree, for i < stride. */
static void add_strided(real *v, int64_t count, int64_t stride)
{
    while (count > 1) {
        const int64_t half = (count + 1) / 2;
        SIMD
        for (int64_t i = 0; i < (count - half) * stride; i++)
            v[i] += v[i + half * stride];
        count = half;
    }
}

/* The partial sums of a column. */
static void add_folds(real *v, const struct columns_tile *t)
{
    add_strided(v, t->fold, t->width);
}

/* The sums of a unit's columns: v[j] for unit j. */
static void add_units(real *v, const struct columns_tile *t)
{
    for (int64_t j = 0; t->unit > 1 && j < t->width / t->unit; j++) {
        add_strided(v + j * t->unit, t->unit, 1);
        v[j] = v[j * t->unit];
    }
}

/* ---- reduce ----------------------------------------------------------------------------------------------------- */

/* WIDTH values of a wide row from its i-th, zeros after the last of n. */
INLINE vector load_wide(wf_dtype dtype, const char *row, int64_t i, int64_t n)
{
    return i + WIDTH <= n ? vector_load(dtype, row + i * size_of(dtype))
                          : vector_load_part(dtype, row + i * size_of(dtype), n - i);
}

/* Bytes from the wide rows that are swept to those that are fetched: 8 KB of this tile later. */
static int64_t fetched_ahead(const struct columns_tile *t, int64_t step)
{
    return ceil_div(8192, t->fold * t->width * size_of(t->dtype) * SWEPT_ROWS) * SWEPT_ROWS * step;
}

INLINE void add_to(real *sum, vector v)
{
    vector_store(REAL_DTYPE, sum, vector_load(REAL_DTYPE, sum) + v);
}

/* d = x - center for WIDTH columns from the i-th. up: two factors of d, powers of two; NULL = 1. */
INLINE vector deviation(vector x, const real *center, const real (*up)[WIDE + WIDTH], int64_t i)
{
    const vector d = x - vector_load(REAL_DTYPE, center + i);
    return up ? d * vector_load(REAL_DTYPE, up[0] + i) * vector_load(REAL_DTYPE, up[1] + i) : d;
}

/* SWEPT_ROWS wide rows at once: WIDTH columns from the i-th of n. */
INLINE void sweep_rows(wf_dtype dtype, const char *x, int64_t step, int64_t ahead, int64_t i, int64_t n,
                       const real *center, const real (*up)[WIDE + WIDTH], real *sum, real *squares)
{
    vector d[SWEPT_ROWS];
    for (int k = 0; k < SWEPT_ROWS; k++) {
        __builtin_prefetch(x + k * step + ahead + i * size_of(dtype));
        d[k] = deviation(load_wide(dtype, x + k * step, i, n), center, up, i);
    }
    add_to(sum + i, (d[0] + d[1]) + (d[2] + d[3]));
    add_to(squares + i, (d[0] * d[0] + d[1] * d[1]) + (d[2] * d[2] + d[3] * d[3]));
}

/* sum d and sum d^2 of each unit over n rows from `row`. */
INLINE void sweep_columns(wf_dtype dtype, const struct columns_tile *t, const void *data, int64_t row, int64_t n,
                          const real *center, const real (*up)[WIDE + WIDTH], real *sum, real *squares)
{
    const int64_t all = t->fold * t->width, step = t->fold * t->c * size_of(dtype), whole = all / WIDTH * WIDTH;
    const int64_t ahead = fetched_ahead(t, step);
    const char   *x = at_element(data, dtype, row * t->c + t->col);
    fill(sum, all, 0);
    fill(squares, all, 0);
    for (; n >= SWEPT_ROWS * t->fold; n -= SWEPT_ROWS * t->fold, x += SWEPT_ROWS * step) {
        for (int64_t i = 0; i < whole; i += WIDTH)
            sweep_rows(dtype, x, step, ahead, i, whole, center, up, sum, squares);
        if (whole < all)
            sweep_rows(dtype, x, step, ahead, whole, all, center, up, sum, squares);
    }
    for (; n > 0; n -= t->fold, x += step) {
        const int64_t part = min64(n, t->fold) * t->width;
        for (int64_t i = 0; i < part; i += WIDTH) {
            const vector d = vector_first(deviation(load_wide(dtype, x, i, part), center, up, i), min64(part - i, WIDTH));
            add_to(sum + i, d);
            add_to(squares + i, d * d);
        }
    }
    add_folds(sum, t);
    add_folds(squares, t);
    add_units(sum, t);
    add_units(squares, t);
}

/* guess[j] of unit j for each of its columns, again and again. */
static void spread_units(const struct columns_tile *t, const real *guess, real *center)
{
    for (int64_t j = 0; j < t->width / t->unit; j++)
        for (int64_t k = 0; k < t->unit; k++)
            center[j * t->unit + k] = guess[j];
    repeat(center, t);
}

static real element(const struct columns_tile *t, const void *data, int64_t row, int64_t column)
{
    return load_one(data, t->dtype, row * t->c + t->col + column, 0);
}

/* The exponent of the largest deviation in unit j; 0 if one is not finite, for the plain sums say so already. */
static int32_t unit_scale(const struct columns_tile *t, const void *data, int64_t row, int64_t n, int64_t j, real center)
{
    real largest = 0;
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = j * t->unit; k < (j + 1) * t->unit; k++) {
            const real d = element(t, data, row + i, k) - center, size = d < 0 ? -d : d;
            if (!isfinite(d))
                return 0;
            largest = size > largest ? size : largest;
        }
    return largest == 0 ? 0 : moments_exponent(largest);
}

/* Units whose mean is far from the guess, or whose squares left the range: sweep again, nearer, and with d brought near 1
 * by powers of two. The sums have the same order, so that data scaled by a power of two has the same bits. */
__attribute__((noinline, cold)) static void columns_near(const struct columns_tile *t, const void *data, int64_t row,
                                                         int64_t n, real *guess, int32_t *far, struct columns *out)
{
    const int64_t units = t->width / t->unit, count = n * t->unit;
    ALIGNED real  center[WIDE + WIDTH], sum[WIDE + WIDTH], squares[WIDE + WIDTH], up[2][WIDE + WIDTH];
    real          unit_up[2][COLUMNS];
    int32_t       scale[COLUMNS] = {0};
    bool          any = true;
    for (int sweep = 0; any; sweep++) {
        spread_units(t, guess, center);
        FOR_DTYPE(t->dtype, sweep_columns, t, data, row, n, center, NULL, sum, squares);
        for (int64_t j = 0; j < units; j++) {
            scale[j] = far[j] && !moments_in_range(squares[j]) ? unit_scale(t, data, row, n, j, guess[j]) : 0;
            unit_up[0][j] = (real)ldexp(1, -(scale[j] / 2));
            unit_up[1][j] = (real)ldexp(1, scale[j] / 2 - scale[j]);
        }
        spread_units(t, unit_up[0], up[0]);
        spread_units(t, unit_up[1], up[1]);
        FOR_DTYPE(t->dtype, sweep_columns, t, data, row, n, center, up, sum, squares);
        any = false;
        for (int64_t j = 0; j < units; j++) {
            if (!far[j])
                continue;
            const struct moments m = moments_about(guess[j], sum[j], squares[j], scale[j], count);
            column_set(out, j, m);
            far[j] = sweep < 3 && m.m2 < squares[j] / 2;
            any |= far[j];
            if (far[j])
                guess[j] = m.mean;
        }
    }
}

/* guess: of the units' means; corrected for the rows that follow where it was wrong. */
static void columns_moments(const struct columns_tile *t, const void *data, int64_t row, int64_t n, real *guess,
                            struct columns *out)
{
    const int64_t units = t->width / t->unit;
    if (n > leaf_rows(t->fold)) {
        struct columns right;
        const int64_t  left = tree_split(n, leaf_rows(t->fold));
        columns_moments(t, data, row, left, guess, out);
        columns_moments(t, data, row + left, n - left, guess, &right);
        columns_merge(out, left * t->unit, &right, (n - left) * t->unit, units);
        return;
    }
    ALIGNED real center[WIDE + WIDTH], sum[WIDE + WIDTH], squares[WIDE + WIDTH];
    int32_t      far[COLUMNS];
    spread_units(t, guess, center);
    FOR_DTYPE(t->dtype, sweep_columns, t, data, row, n, center, NULL, sum, squares);
    if (columns_about(guess, sum, squares, n * t->unit, units, out, far))
        columns_near(t, data, row, n, guess, far, out);
}

/* The mean of a power of two of values from all over n rows, for each unit. With fewer than 32 one of a tile's columns would
 * often be far, and the tile be swept again. */
static void guess_units(const struct columns_tile *t, const void *data, int64_t row, int64_t n, real *guess)
{
    const int64_t units = t->width / t->unit;
    real          buffer[COLUMNS];
    int64_t       few = 1;
    while (few < 32 && few * 2 <= n)
        few *= 2;
    const real share = 1 / (real)few;
    fill(guess, units, 0);
    for (int64_t k = 0; k < few; k++) {
        const real *x = load(data, t->dtype, (row + n / few * k) * t->c + t->col, t->width, buffer) + k % t->unit;
        SIMD
        for (int64_t j = 0; j < units; j++)
            guess[j] += x[j * t->unit] * share;
    }
}

/* Records of consecutive items, `stride` apart: all of item_rows rows but the last, of rows in total. */
static void columns_tree(const struct columns_tile *t, const struct columns *item, int64_t stride, int64_t item_rows,
                         int64_t rows, struct columns *out)
{
    if (rows <= item_rows) {
        columns_copy(out, item, t->width / t->unit);
        return;
    }
    struct columns right;
    const int64_t  left = tree_split(rows, item_rows);
    columns_tree(t, item, stride, item_rows, left, out);
    columns_tree(t, item + left / item_rows * stride, stride, item_rows, rows - left, &right);
    columns_merge(out, left * t->unit, &right, (rows - left) * t->unit, t->width / t->unit);
}

static void channels_last_reduce(const void *arg, int64_t sample, int64_t item)
{
    const struct channelnorm_forward_run *r = arg;
    const int64_t item_rows = last_item_rows(&r->g), rows = last_rows(&r->g), first = item * item_rows;
    const int64_t tiles = last_tiles(&r->g), n = min64(item_rows, rows - first);
    struct columns *part = (struct columns *)r->part + (sample * r->items + item) * tiles;
    for (int64_t tile = 0; tile < tiles; tile++) {
        const struct columns_tile t = columns_tile_of(&r->g, tile);
        real                      guess[COLUMNS];
        guess_units(&t, r->p->x, sample * rows + first, n, guess);
        columns_moments(&t, r->p->x, sample * rows + first, n, guess, part + tile);
    }
}

/* All sets of a sample. */
static void channels_last_combine(const void *arg, int64_t sample)
{
    const struct channelnorm_forward_run *r = arg;
    const int64_t rows = last_rows(&r->g), tiles = last_tiles(&r->g), parts = tiles_of_group(&r->g);
    const int64_t channels = r->g.group_channels, sets = r->g.s.c / channels, first_set = sample * sets;
    if (r->p->known)
        known_sets(r, first_set, sets);
    for (int64_t tile = 0; !r->p->known && tile < tiles; tile++) {
        const struct columns_tile t = columns_tile_of(&r->g, tile);
        struct columns            all = {0};
        if (rows)
            columns_tree(&t, (struct columns *)r->part + sample * r->items * tiles + tile, tiles, last_item_rows(&r->g),
                         rows, &all);
        if (parts == 1) {
            finish_sets(r, first_set + t.col / t.unit, t.width / t.unit, &all);
            continue;
        }
        r->tile[sample * tiles + tile] = column_get(&all, 0);
        if ((tile + 1) % parts == 0) {
            column_set(&all, 0,
                       moments_tree(r->tile + sample * tiles + tile + 1 - parts, COLUMNS * rows, channels * rows));
            finish_sets(r, first_set + tile / parts, 1, &all);
        }
    }
}

/* ---- apply ------------------------------------------------------------------------------------------------------ */

/* A formula's parameters for each column of a wide row. */
struct column_map {
    enum formula formula;
    const void  *in[2];
    void        *out;
    bool         stream;
    ALIGNED real param[PARAMS][WIDE + WIDTH];
};

/* The columns that are mapped together: [col, col + width), as they lie in memory. */
static struct columns_tile wide_tile_of(const struct geometry *g, int64_t col)
{
    return (struct columns_tile){g->s.x_dtype, g->s.c, col, min64(WIDE, g->s.c - col), 1, fold_of(g, WIDE)};
}

/* One value of each set, for the columns of a tile. */
static void spread(const struct geometry *g, const struct columns_tile *t, int64_t sample, const real *from, real *to)
{
    const int64_t channels = g->group_channels, first = sample * g->s.c / channels;
    if (!from)
        fill(to, t->width, 0);
    else if (channels == 1)
        memcpy(to, from + first + t->col, (size_t)t->width * sizeof(real));
    for (int64_t j = 0, part; from && channels > 1 && j < t->width; j += part) {
        part = min64(channels - (t->col + j) % channels, t->width - j);
        fill(to + j, part, from[first + (t->col + j) / channels]);
    }
}

/* The map of WIDTH columns from the i-th, or of the first n. */
INLINE vector map_part(wf_dtype dtype, enum formula formula, const struct column_map *m, const char *a, const char *b,
                       int64_t i, int64_t n)
{
    vector p[PARAMS];
    for (int k = 0; k < PARAMS; k++)
        p[k] = vector_load(REAL_DTYPE, m->param[k] + i);
    a += i * size_of(dtype);
    b += i * size_of(dtype);
    return n < WIDTH ? evaluate(formula, vector_load_part(dtype, a, n), vector_load_part(dtype, b, n), p)
                     : evaluate(formula, vector_load(dtype, a), vector_load(dtype, b), p);
}

/* n consecutive elements from `at`, in columns from the first on. */
INLINE void map_columns(wf_dtype dtype, enum formula formula, const struct column_map *m, int64_t at, int64_t n)
{
    const int64_t size = size_of(dtype);
    const char   *a = at_element(m->in[0], dtype, at);
    const char   *b = formula == GRADIENT ? at_element(m->in[1], dtype, at) : a;
    char         *out = at_element(m->out, dtype, at);
    int64_t       i = 0, begin = 0, end = 0;
    if (m->stream)
        whole_lines(out, size, n, &begin, &end);
    for (int64_t part; i < begin; i += part) {
        part = min64(begin - i, WIDTH);
        vector_store_part(dtype, out + i * size, part, map_part(dtype, formula, m, a, b, i, part));
    }
    for (; i < end; i += WIDTH)
        vector_stream(dtype, out + i * size, map_part(dtype, formula, m, a, b, i, WIDTH));
    for (; i + WIDTH <= n; i += WIDTH)
        vector_store(dtype, out + i * size, map_part(dtype, formula, m, a, b, i, WIDTH));
    if (i < n)
        vector_store_part(dtype, out + i * size, n - i, map_part(dtype, formula, m, a, b, i, n - i));
}

INLINE void map_each_row(wf_dtype dtype, enum formula formula, const struct column_map *m, const struct columns_tile *t,
                         int64_t row, int64_t n)
{
    for (int64_t i = 0; i < n; i += t->fold)
        map_columns(dtype, formula, m, (row + i) * t->c + t->col, min64(t->fold, n - i) * t->width);
}

/* The tile's columns of n rows from `row`. */
static void map_rows(struct column_map *m, const struct columns_tile *t, int64_t row, int64_t n)
{
    for (int k = 0; k < PARAMS; k++)
        repeat(m->param[k], t);
    if (m->formula == NORMALIZE)
        FOR_DTYPE(t->dtype, map_each_row, NORMALIZE, m, t, row, n);
    else if (m->formula == GRADIENT)
        FOR_DTYPE(t->dtype, map_each_row, GRADIENT, m, t, row, n);
    else
        FOR_DTYPE(t->dtype, map_each_row, SCALE, m, t, row, n);
}

static void channels_last_apply(const void *arg, int64_t sample, int64_t item)
{
    const struct channelnorm_forward_run *r = arg;
    const struct channelnorm_forward     *p = r->p;
    const int64_t item_rows = last_item_rows(&r->g), rows = last_rows(&r->g), first = item * item_rows;
    for (int64_t col = 0; col < r->g.s.c; col += WIDE) {
        const struct columns_tile t = wide_tile_of(&r->g, col);
        struct column_map         m;
        real                      gamma_buffer[WIDE], beta_buffer[WIDE], mean_lo[WIDE];
        const real               *gamma = load_parameter(p->gamma, p->shape.w_dtype, col, t.width, 1, gamma_buffer);
        const real               *beta = load_parameter(p->beta, p->shape.w_dtype, col, t.width, 0, beta_buffer);
        m.formula = NORMALIZE;
        m.in[0] = p->x;
        m.out = p->y;
        m.stream = r->stream;
        spread(&r->g, &t, sample, r->mean, m.param[0]);
        spread(&r->g, &t, sample, r->rstd, m.param[1]);
        spread(&r->g, &t, sample, r->mean_lo, mean_lo);
        SIMD
        for (int64_t j = 0; j < t.width; j++) {
            m.param[1][j] *= gamma[j];
            m.param[2][j] = beta[j] - mean_lo[j] * m.param[1][j];
        }
        map_rows(&m, &t, sample * rows + first, min64(item_rows, rows - first));
    }
    stream_fence(r->stream);
}

/* ---- the plan --------------------------------------------------------------------------------------------------- */

/* Does one thread take a whole sample? */
static bool whole_samples(const struct geometry *g, int64_t row_bytes)
{
    const int64_t samples = last_samples(g), bytes = row_bytes * last_rows(g);
    return samples > 1 && bytes <= (samples < 16 ? CPU_FUSED_BYTES : WHOLE_BYTES);
}

static void channels_last_forward_plan(struct channelnorm_forward_run *r, struct cpu_arena *arena)
{
    const int64_t samples = last_samples(&r->g);
    r->items = ceil_div(last_rows(&r->g), last_item_rows(&r->g));
    if (r->p->known)
        return;
    r->part = cpu_take(arena, samples * r->items * last_tiles(&r->g), sizeof(struct columns));
    if (tiles_of_group(&r->g) > 1)
        r->tile = cpu_take(arena, samples * last_tiles(&r->g), sizeof(struct moments));
}

static void channels_last_forward(struct channelnorm_forward_run *r, const struct cpu_run *run)
{
    const int64_t samples = last_samples(&r->g), row_bytes = r->g.s.c * size_of(r->g.s.x_dtype);
    cpu_run_stages(run, &(struct cpu_stages){.sets = samples,
                                             .items = r->items,
                                             .item_bytes = row_bytes * min64(last_item_rows(&r->g), last_rows(&r->g)),
                                             .reduce = r->p->known ? NULL : channels_last_reduce,
                                             .combine = channels_last_combine,
                                             .apply = channels_last_apply,
                                             .arg = r,
                                             .fused = whole_samples(&r->g, row_bytes)});
}
