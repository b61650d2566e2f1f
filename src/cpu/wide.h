/* x is [n, hw, c]: what forward and backward share. Columns are reduced over blocks of rows, and mapped, in tiles. Included
 * by channelnorm_cpu.c.
 *
 * Few channels are folded: a "wide row" is `fold` consecutive rows, so that loops are long for any c; a column then has
 * fold partial sums, which are added at the end of a block. */

enum {
    WIDE = TILE,          /* at most, of a wide row */
    WIDEST = 2 * WIDE,    /* where it is worth more to read whole rows, in the order of memory */
    SWEPT_WIDE = 512,     /* of folded rows that are reduced */
    LEAF_WIDE_ROWS = 128, /* of a block */
    FETCHED = 8192,       /* bytes from what is read to what is fetched meanwhile */
    FEW = 4,              /* sweeps, and times as many, whose sums are one before they meet others */
    SAMPLE = 16,          /* rows that a guess is the mean of */
};
#define ALIGNED _Alignas(LINE) /* what is swept with every row: half as many lines */

/* Columns [col, col + width) of every row, in units of `unit` columns. */
struct columns_tile {
    wf_dtype dtype;
    int64_t  c, col, width, unit, fold;
};

/* The width of tiles that divide c columns about equally, each at most `wide`. */
static int64_t even_step(int64_t c, int64_t wide)
{
    return ceil_div(ceil_div(c, ceil_div(c, wide)), LINE) * LINE;
}

/* Tiles that one group needs, if it needs several. */
static int64_t tiles_of_group(const struct geometry *g)
{
    return ceil_div(g->group_channels, COLUMNS);
}

/* Whole groups that one tile holds, if it holds several. Tiles are whole rows where these fit, which are read in the order
 * of memory, and else about equally wide. */
static int64_t groups_of_tile(const struct geometry *g)
{
    const int64_t groups = g->s.c / g->group_channels;
    if (g->group_channels == 1)
        return even_step(groups, WIDE);
    return g->group_channels > COLUMNS ? 1 : ceil_div(groups, ceil_div(groups, WIDE / g->group_channels));
}

static int64_t last_tiles(const struct geometry *g)
{
    return ceil_div(g->s.c / g->group_channels, groups_of_tile(g)) * tiles_of_group(g);
}

static int64_t last_samples(const struct geometry *g)
{
    return g->s.across_batch && !g->apart ? 1 : g->s.n;
}

static int64_t last_rows(const struct geometry *g)
{
    return g->s.across_batch && !g->apart ? g->s.n * g->s.hw : g->s.hw;
}

/* Rows side by side: whole lines of the cache if so many fit, and few enough for a sample to have some wide rows. */
static int64_t fold_of(const struct geometry *g, int64_t wide)
{
    const int64_t most = g->s.c <= wide / 2 ? min64(wide / g->s.c, last_rows(g) / (2 * SWEPT_ROWS)) : 1;
    int64_t       fold = 1;
    while (fold * 2 <= most && fold < LINE / 4)
        fold *= 2;
    return most > fold ? most / fold * fold : fold;
}

static struct columns_tile columns_tile_of(const struct geometry *g, int64_t tile)
{
    const int64_t channels = g->group_channels, parts = tiles_of_group(g), groups = groups_of_tile(g);
    const int64_t part = tile % parts * COLUMNS, col = tile / parts * groups * channels + part;
    const int64_t width = parts > 1 ? min64(COLUMNS, channels - part) : min64(groups * channels, g->s.c - col);
    return (struct columns_tile){g->s.x_dtype, g->s.c, col, width, min64(channels, width), fold_of(g, SWEPT_WIDE)};
}

/* `wide` columns from col, or as many as there are, without regard to groups; folded to at most `folded` columns. */
static struct columns_tile plain_tile_of(const struct geometry *g, int64_t col, int64_t wide, int64_t folded)
{
    return (struct columns_tile){g->s.x_dtype, g->s.c, col, min64(wide, g->s.c - col), 1, fold_of(g, folded)};
}

/* Units of a tile that one record of moments holds: COLUMNS of them, or the rest. */
static int64_t last_records(const struct geometry *g)
{
    return ceil_div(groups_of_tile(g), COLUMNS);
}

static int64_t records_of(const struct columns_tile *t)
{
    return ceil_div(t->width / t->unit, COLUMNS);
}

static struct columns_tile record_of(const struct columns_tile *t, int64_t record)
{
    const int64_t       first = record * COLUMNS * t->unit;
    struct columns_tile part = *t;
    part.col += first;
    part.width = min64(COLUMNS * t->unit, t->width - first);
    return part;
}

/* Rows of a block, at most TILE. */
static int64_t leaf_rows(int64_t fold)
{
    return LEAF_WIDE_ROWS * min64(fold, TILE / LEAF_WIDE_ROWS);
}

/* Rows of an item: blocks, a power of two of them, worth a thread's while. */
static int64_t item_rows_of(const struct geometry *g, int64_t bytes)
{
    int64_t rows = leaf_rows(fold_of(g, SWEPT_WIDE));
    while (rows * g->s.c * (int64_t)sizeof(real) < bytes)
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

/* ---- reduce ----------------------------------------------------------------------------------------------------- */

/* What is fetched while SWEPT_ROWS wide rows are swept: as many of this tile later. Where the tile's rows are consecutive
 * it is fetched in the order of memory, 36 GB/s on one core, cold, and not in that of the sweep, 30 GB/s: with columns
 * from i of row k, those `ahead + k * row + i * column` bytes after the first of the rows. */
struct fetch {
    int64_t ahead, row, column;
};

static struct fetch fetch_of(const struct columns_tile *t, int64_t fetched)
{
    const int64_t size = size_of(t->dtype), step = t->fold * t->c * size, swept = SWEPT_ROWS * t->fold * t->width * size;
    if (t->width == t->c)
        return (struct fetch){ceil_div(fetched, swept) * SWEPT_ROWS * step, PAIR * size, SWEPT_ROWS * size};
    return (struct fetch){ceil_div(2 * fetched, swept) * SWEPT_ROWS * step, step, size};
}

/* PAIR sums or parameters, as the elements have them that they go with. */
INLINE struct pair sums_load(const real *from)
{
    return (struct pair){vector_load(REAL_DTYPE, from), vector_load(REAL_DTYPE, from + WIDTH)};
}

INLINE void sums_add(real *to, struct pair p)
{
    vector_store(REAL_DTYPE, to, vector_load(REAL_DTYPE, to) + p.a);
    vector_store(REAL_DTYPE, to + WIDTH, vector_load(REAL_DTYPE, to + WIDTH) + p.b);
}

/* v[0, n) from the order of memory to that of dtype's pairs, or back. */
INLINE void pairs_order(wf_dtype dtype, real *v, int64_t n, bool back)
{
    for (int64_t i = 0; i < n; i += PAIR) {
        struct pair p = sums_load(v + i);
        p = back ? pair_natural(dtype, p) : pair_reorder(REAL_DTYPE, dtype, p);
        vector_store(REAL_DTYPE, v + i, p.a);
        vector_store(REAL_DTYPE, v + i + WIDTH, p.b);
    }
}

/* d = x - center. up: two factors of d, powers of two; NULL = 1. */
INLINE struct pair deviation(struct pair x, const real *center, const real (*up)[WIDE + PAIR], int64_t i)
{
    const struct pair c = sums_load(center + i), d = {x.a - c.a, x.b - c.b};
    return up ? pair_product(pair_product(d, sums_load(up[0] + i)), sums_load(up[1] + i)) : d;
}

/* ---- maps ------------------------------------------------------------------------------------------------------- */

/* A formula's parameters for each column of a wide row: 3 of WIDEST columns, or 5 of WIDE. */
enum { MAPPED = 3 * (WIDEST + PAIR) };
struct column_map {
    enum formula formula;
    const void  *in[2];
    void        *out;
    bool         stream;
    ALIGNED real param[MAPPED];
    int64_t      pitch; /* from one parameter to the next */
    int64_t      columns, ordered_from; /* -1: not yet */
    ALIGNED real ordered[MAPPED]; /* bf16: of the columns from ordered_from on, in the order of pairs */
};

INLINE int map_params(enum formula formula)
{
    return formula == NORMALIZE ? 3 : formula == GRADIENT ? PARAMS : 1;
}

/* The parameters in the order of the pairs that begin with column `begin`. */
static void order_params(struct column_map *m, int64_t begin)
{
    if (m->ordered_from == begin)
        return;
    for (int k = 0; k < map_params(m->formula); k++) {
        real *ordered = m->ordered + k * m->pitch;
        memcpy(ordered, m->param + k * m->pitch + begin, (size_t)(m->columns - begin) * sizeof(real));
        pairs_order(WF_BF16, ordered, m->columns - begin, false);
    }
    m->ordered_from = begin;
}

/* One value of each set, for the columns of a tile. */
static void spread(const struct geometry *g, const struct columns_tile *t, int64_t sample, const real *from, real *to)
{
    const int64_t channels = g->group_channels, first = g->apart ? 0 : sample * g->s.c / channels;
    if (!from)
        fill(to, t->width, 0);
    else if (channels == 1)
        memcpy(to, from + first + t->col, (size_t)t->width * sizeof(real));
    for (int64_t j = 0, part; from && channels > 1 && j < t->width; j += part) {
        part = min64(channels - (t->col + j) % channels, t->width - j);
        fill(to + j, part, from[first + (t->col + j) / channels]);
    }
}

/* The map of n <= PAIR columns from the i-th; params: as the elements have them, or in the order of memory. */
INLINE struct pair map_part(wf_dtype dtype, enum formula formula, const real *params, int64_t pitch, bool ordered,
                            const char *a, const char *b, int64_t n)
{
    const struct pair x = pair_load_part(dtype, dtype, a, n), y = pair_load_part(dtype, dtype, b, n);
    vector            p[PARAMS], q[PARAMS];
    for (int k = 0; k < map_params(formula); k++) {
        const struct pair both = sums_load(params + k * pitch);
        const struct pair own = ordered ? both : pair_reorder(REAL_DTYPE, dtype, both);
        p[k] = own.a;
        q[k] = own.b;
    }
    return (struct pair){evaluate(formula, x.a, y.a, p), evaluate(formula, x.b, y.b, q)};
}

/* n consecutive elements from `at`, in columns from the first on. */
INLINE void map_columns(wf_dtype dtype, enum formula formula, struct column_map *m, int64_t at, int64_t n, int64_t ahead)
{
    const int64_t size = size_of(dtype);
    const char   *a = at_element(m->in[0], dtype, at);
    const char   *b = formula == GRADIENT ? at_element(m->in[1], dtype, at) : a;
    char         *out = at_element(m->out, dtype, at);
    int64_t       i = 0, begin = 0, end = 0;
    if (m->stream)
        whole_lines(out, size, n, &begin, &end);
    for (int64_t part; i < begin; i += part) { /* where vectors are short a line is more than a pair */
        part = min64(PAIR, begin - i);
        pair_store_part(dtype, out + i * size, part,
                        map_part(dtype, formula, m->param + i, m->pitch, false, a + i * size, b + i * size, part));
    }
    const bool reordered = dtype == WF_BF16;
    const real   *params = reordered ? m->ordered : m->param;
    const int64_t from = reordered ? begin : 0, pitch = m->pitch;
    if (reordered)
        order_params(m, begin);
    for (i = begin; i < end; i += PAIR) {
        fetch_pair(dtype, a + i * size + ahead);
        if (formula == GRADIENT)
            fetch_pair(dtype, b + i * size + ahead);
        pair_stream(dtype, out + i * size,
                    map_part(dtype, formula, params + i - from, pitch, true, a + i * size, b + i * size, PAIR));
    }
    for (; i + PAIR <= n; i += PAIR)
        pair_store(dtype, out + i * size,
                   map_part(dtype, formula, params + i - from, pitch, true, a + i * size, b + i * size, PAIR));
    if (i < n)
        pair_store_part(dtype, out + i * size, n - i,
                        map_part(dtype, formula, params + i - from, pitch, true, a + i * size, b + i * size, n - i));
}

INLINE void map_each_row(wf_dtype dtype, enum formula formula, struct column_map *m, const struct columns_tile *t,
                         int64_t row, int64_t n)
{
    const int64_t step = t->fold * t->c * size_of(dtype);
    const int64_t ahead = ceil_div(FETCHED, t->fold * t->width * size_of(dtype)) * step;
    for (int64_t i = 0; i < n; i += t->fold)
        map_columns(dtype, formula, m, (row + i) * t->c + t->col, min64(t->fold, n - i) * t->width, ahead);
}

/* The tile's columns of n rows from `row`. */
static void map_rows(struct column_map *m, const struct columns_tile *t, int64_t row, int64_t n)
{
    for (int k = 0; k < map_params(m->formula); k++)
        repeat(m->param + k * m->pitch, t);
    m->columns = t->fold * t->width;
    m->ordered_from = -1;
    if (t->dtype == WF_BF16 && t->fold * t->c % (LINE / 2) != 0) /* parameters would be ordered for each row */
        m->stream = false;
    if (m->formula == NORMALIZE)
        FOR_DTYPE(t->dtype, map_each_row, NORMALIZE, m, t, row, n);
    else if (m->formula == GRADIENT)
        FOR_DTYPE(t->dtype, map_each_row, GRADIENT, m, t, row, n);
    else
        FOR_DTYPE(t->dtype, map_each_row, SCALE, m, t, row, n);
}
