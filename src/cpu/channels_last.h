/* x is [n, hw, c]: forward. Columns are reduced over blocks of rows that stay in cache for two sweeps; blocks merge as
 * a tree. Across the batch the whole tensor is one sample of n * hw rows. Included by channelnorm_cpu.c.
 *
 * Few channels are folded: a "wide row" is `fold` consecutive rows, so that loops are long for any c; a column then has
 * fold partial sums, which are added at the end of a block. So are the columns of a group: a block gives one record for
 * each "unit" of a tile, a group or as much of it as the tile holds. */

enum { LEAF_WIDE_ROWS = 64 }; /* of a block: at most 16 additions of SWEPT_ROWS rows in sequence */

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

/* Whole groups that one tile holds, if it holds several. */
static int64_t groups_of_tile(const struct geometry *g)
{
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

/* No more than a sample has rows: short samples are not to pay for a whole tile. */
static int64_t fold_of(const struct geometry *g)
{
    const int64_t fold = g->s.c <= COLUMNS / 2 ? COLUMNS / g->s.c : 1, rows = last_rows(g);
    return rows > 0 ? min64(fold, rows) : 1;
}

static struct columns_tile columns_tile_of(const struct geometry *g, int64_t tile)
{
    const int64_t channels = g->group_channels, parts = tiles_of_group(g);
    const int64_t part = tile % parts * COLUMNS, col = tile / parts * groups_of_tile(g) * channels + part;
    const int64_t end = parts > 1 ? channels - part : min64(groups_of_tile(g) * channels, g->s.c - col);
    const int64_t width = min64(COLUMNS, end);
    return (struct columns_tile){g->s.x_dtype, g->s.c, col, width, min64(channels, width), fold_of(g)};
}

/* Rows of a block, at most TILE. */
static int64_t leaf_rows(int64_t fold)
{
    return LEAF_WIDE_ROWS * min64(fold, TILE / LEAF_WIDE_ROWS);
}

/* Rows of an item: blocks, a power of two of them, worth a thread's while. */
static int64_t last_item_rows(const struct geometry *g)
{
    int64_t rows = leaf_rows(fold_of(g));
    while (rows * g->s.c * (int64_t)sizeof(real) < CPU_GRAIN_BYTES)
        rows *= 2;
    return rows;
}

/* The first `width` values again and again. */
static void repeat(real *v, const struct columns_tile *t)
{
    for (int64_t i = t->width; i < t->width * t->fold; i++)
        v[i] = v[i - t->width];
}

/* v[i] becomes the sum of v[i], v[i + stride], ... of `count` values, as a tree, for i < stride. */
static void add_strided(real *v, int64_t count, int64_t stride)
{
    while (count > 1) {
        const int64_t half = (count + 1) / 2;
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

/* Wide row `wide` of the n rows from `row`: its elements, then those of pad. */
static const real *load_wide(const struct columns_tile *t, const void *data, int64_t row, int64_t n, int64_t wide,
                             const real *pad, real *buffer)
{
    const int64_t first = wide * t->fold;
    if (first >= n)
        return pad;
    const int64_t count = min64(t->fold, n - first) * t->width, all = t->fold * t->width;
    const real   *from = load(data, t->dtype, (row + first) * t->c + t->col, count, buffer);
    if (count == all)
        return from;
    if (from != buffer)
        memcpy(buffer, from, (size_t)count * sizeof(real));
    memcpy(buffer + count, pad + count, (size_t)(all - count) * sizeof(real));
    return buffer;
}

/* ---- reduce ----------------------------------------------------------------------------------------------------- */

/* The moments of a tile's units. */
struct columns {
    real    mean[COLUMNS], mean_lo[COLUMNS], m2[COLUMNS];
    int32_t scale[COLUMNS];
};

static struct moments column_get(const struct columns *s, int64_t j)
{
    return (struct moments){s->mean[j], s->mean_lo[j], s->m2[j], s->scale[j]};
}

static void column_set(struct columns *s, int64_t j, struct moments m)
{
    s->mean[j] = m.mean;
    s->mean_lo[j] = m.mean_lo;
    s->m2[j] = m.m2;
    s->scale[j] = m.scale;
}

/* a becomes the moments of a and b, for n columns. */
static void columns_merge(struct columns *a, int64_t a_count, const struct columns *b, int64_t b_count, int64_t n)
{
    struct columns out;
    real           b_share, weight;
    int32_t        special = 0;
    moments_weights(a_count, b_count, &b_share, &weight);
    _Pragma("omp simd reduction(| : special)")
    for (int64_t j = 0; j < n; j++) {
        bool plain;
        column_set(&out, j, moments_merge_plain(column_get(a, j), column_get(b, j), b_share, weight, &plain));
        special |= !plain;
    }
    for (int64_t j = 0; special && j < n; j++)
        column_set(&out, j, moments_merge(column_get(a, j), a_count, column_get(b, j), b_count));
    *a = out;
}

/* sum d and sum d^2, d = (x - center) / 2^scale, of each unit over n rows from `row`; scale NULL = 0. */
__attribute__((always_inline)) static inline void columns_squares(const struct columns_tile *t, const void *data,
                                                                  int64_t row, int64_t n, const real *center,
                                                                  const int32_t *scale, real *sum, real *squares)
{
    const int64_t all = t->fold * t->width, wide_rows = ceil_div(n, t->fold);
    real          buffer[SWEPT_ROWS][COLUMNS];
    fill(sum, all, 0);
    fill(squares, all, 0);
    for (int64_t wide = 0; wide < wide_rows; wide += SWEPT_ROWS) {
        const real *x[SWEPT_ROWS];
        for (int k = 0; k < SWEPT_ROWS; k++)
            x[k] = load_wide(t, data, row, n, wide + k, center, buffer[k]);
        SIMD
        for (int64_t i = 0; i < all; i++) {
            real d[SWEPT_ROWS];
            for (int k = 0; k < SWEPT_ROWS; k++)
                d[k] = scale ? (real)ldexp((double)(x[k][i] - center[i]), -scale[i]) : x[k][i] - center[i];
            sum[i] += (d[0] + d[1]) + (d[2] + d[3]);
            squares[i] += (d[0] * d[0] + d[1] * d[1]) + (d[2] * d[2] + d[3] * d[3]);
        }
    }
    add_folds(sum, t);
    add_folds(squares, t);
    add_units(sum, t);
    add_units(squares, t);
}

/* The exponent of the largest deviation in unit j; 0 if one is not finite, for the plain sums say so already. */
static int32_t unit_scale(const struct columns_tile *t, const void *data, int64_t row, int64_t n, int64_t j, real center)
{
    real largest = 0, buffer[1];
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = j * t->unit; k < (j + 1) * t->unit; k++) {
            const real d = *load(data, t->dtype, (row + i) * t->c + t->col + k, 1, buffer) - center, size = d < 0 ? -d : d;
            if (!isfinite(d))
                return 0;
            largest = size > largest ? size : largest;
        }
    return largest == 0 ? 0 : moments_exponent(largest);
}

/* Again where squares left the range: those units' d brought near 1 by powers of two, scale[j] for unit j. The sums have the
 * same order, so that data scaled by a power of two has the same bits. */
__attribute__((noinline, cold)) static void columns_squares_scaled(const struct columns_tile *t, const void *data,
                                                                   int64_t row, int64_t n, const real *center, real *sum,
                                                                   real *squares, int32_t *scale)
{
    int32_t column_scale[COLUMNS];
    bool    any = false;
    for (int64_t j = 0; j < t->width / t->unit; j++) {
        scale[j] = moments_in_range(squares[j]) ? 0 : unit_scale(t, data, row, n, j, center[j * t->unit]);
        any |= scale[j] != 0;
    }
    if (!any) /* constant units only, or not finite ones */
        return;
    for (int64_t i = 0; i < t->fold * t->width; i++)
        column_scale[i] = scale[i % t->width / t->unit];
    columns_squares(t, data, row, n, center, column_scale, sum, squares);
}

/* n <= leaf_rows rows, two sweeps: as tile_moments. */
static void columns_leaf(const struct columns_tile *t, const void *data, int64_t row, int64_t n, struct columns *out)
{
    const int64_t units = t->width / t->unit, count = n * t->unit;
    real          center[COLUMNS], unit_center[COLUMNS], sum[COLUMNS], squares[COLUMNS], buffer[COLUMNS];
    int32_t       scale[COLUMNS] = {0};
    bool          in_range = true;
    const real   *first = load(data, t->dtype, row * t->c + t->col, t->width, buffer);
    for (int64_t j = 0; j < units; j++)
        unit_center[j] = first[j * t->unit];
    for (int sweep = 0; sweep < 2; sweep++) {
        for (int64_t j = 0; j < t->width; j++)
            center[j] = unit_center[j / t->unit];
        repeat(center, t);
        columns_squares(t, data, row, n, center, NULL, sum, squares);
        for (int64_t j = 0; sweep == 0 && j < units; j++)
            unit_center[j] += sum[j] / (real)count;
    }
    for (int64_t j = 0; j < units; j++)
        in_range &= moments_in_range(squares[j]);
    if (!in_range)
        columns_squares_scaled(t, data, row, n, center, sum, squares, scale);
    for (int64_t j = 0; j < units; j++)
        column_set(out, j, moments_about(unit_center[j], sum[j], squares[j], scale[j], count));
}

static void columns_moments(const struct columns_tile *t, const void *data, int64_t row, int64_t n, struct columns *out)
{
    if (n <= leaf_rows(t->fold)) {
        columns_leaf(t, data, row, n, out);
        return;
    }
    struct columns right;
    const int64_t  left = tree_split(n, leaf_rows(t->fold));
    columns_moments(t, data, row, left, out);
    columns_moments(t, data, row + left, n - left, &right);
    columns_merge(out, left * t->unit, &right, (n - left) * t->unit, t->width / t->unit);
}

/* Records of consecutive items, `stride` apart: all of item_rows rows but the last, of rows in total. */
static void columns_tree(const struct columns_tile *t, const struct columns *item, int64_t stride, int64_t item_rows,
                         int64_t rows, struct columns *out)
{
    if (rows <= item_rows) {
        *out = *item;
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
    const int64_t tiles = last_tiles(&r->g);
    struct columns *part = (struct columns *)r->part + (sample * r->items + item) * tiles;
    for (int64_t tile = 0; tile < tiles; tile++) {
        const struct columns_tile t = columns_tile_of(&r->g, tile);
        columns_moments(&t, r->p->x, sample * rows + first, min64(item_rows, rows - first), part + tile);
    }
}

/* All sets of a sample. */
static void channels_last_combine(const void *arg, int64_t sample)
{
    const struct channelnorm_forward_run *r = arg;
    const int64_t rows = last_rows(&r->g), tiles = last_tiles(&r->g), parts = tiles_of_group(&r->g);
    const int64_t channels = r->g.group_channels, sets = r->g.s.c / channels, first_set = sample * sets;
    for (int64_t set = first_set; r->p->known && set < first_set + sets; set++)
        known_set(r, set);
    for (int64_t tile = 0; !r->p->known && tile < tiles; tile++) {
        const struct columns_tile t = columns_tile_of(&r->g, tile);
        struct columns            all = {0};
        if (rows)
            columns_tree(&t, (struct columns *)r->part + sample * r->items * tiles + tile, tiles, last_item_rows(&r->g),
                         rows, &all);
        for (int64_t j = 0; parts == 1 && j < t.width / t.unit; j++)
            finish_set(r, first_set + t.col / t.unit + j, column_get(&all, j));
        if (parts > 1)
            r->tile[sample * tiles + tile] = column_get(&all, 0);
        if (parts > 1 && (tile + 1) % parts == 0)
            finish_set(r, first_set + tile / parts,
                       moments_tree(r->tile + sample * tiles + tile + 1 - parts, COLUMNS * rows, channels * rows));
    }
}

/* ---- apply ------------------------------------------------------------------------------------------------------ */

/* The statistics of the sets that a tile's columns belong to, `from` being [sets] or NULL for zeros. */
static void spread(const struct geometry *g, const struct columns_tile *t, int64_t sample, const real *from, real *to)
{
    for (int64_t j = 0; j < t->width; j++)
        to[j] = from ? from[(sample * g->s.c + t->col + j) / g->group_channels] : 0;
    repeat(to, t);
}

/* A parameter of a tile's columns. */
static void spread_parameter(const struct channelnorm_shape *s, const struct columns_tile *t, const void *parameter,
                             real fallback, real *to)
{
    if (parameter) {
        const real *from = load(parameter, s->w_dtype, t->col, t->width, to);
        if (from != to)
            memcpy(to, from, (size_t)t->width * sizeof(real));
    } else {
        fill(to, t->width, fallback);
    }
    repeat(to, t);
}

static void channels_last_apply(const void *arg, int64_t sample, int64_t item)
{
    const struct channelnorm_forward_run *r = arg;
    const struct channelnorm_forward     *p = r->p;
    const int64_t item_rows = last_item_rows(&r->g), rows = last_rows(&r->g), tiles = last_tiles(&r->g);
    const int64_t first = item * item_rows, n = min64(item_rows, rows - first);
    real mean[COLUMNS], mean_lo[COLUMNS], rstd[COLUMNS], gamma[COLUMNS], beta[COLUMNS], x_buffer[COLUMNS], y_buffer[COLUMNS];
    for (int64_t tile = 0; tile < tiles; tile++) {
        const struct columns_tile t = columns_tile_of(&r->g, tile);
        spread(&r->g, &t, sample, r->mean, mean);
        spread(&r->g, &t, sample, r->mean_lo, mean_lo);
        spread(&r->g, &t, sample, r->rstd, rstd);
        spread_parameter(&p->shape, &t, p->gamma, 1, gamma);
        spread_parameter(&p->shape, &t, p->beta, 0, beta);
        for (int64_t row = 0; row < n; row += t.fold) {
            const int64_t at = (sample * rows + first + row) * t.c + t.col, count = min64(t.fold, n - row) * t.width;
            const real   *x = load(p->x, t.dtype, at, count, x_buffer);
            real         *y = store_target(p->y, t.dtype, at, r->stream, y_buffer);
            SIMD
            for (int64_t i = 0; i < count; i++)
                y[i] = ((x[i] - mean[i]) - mean_lo[i]) * (rstd[i] * gamma[i]) + beta[i];
            store(p->y, t.dtype, at, y, count, r->stream);
        }
    }
    stream_fence(r->stream);
}

/* ---- the plan --------------------------------------------------------------------------------------------------- */

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
    const int64_t samples = last_samples(&r->g), row_bytes = r->g.s.c * (int64_t)sizeof(real);
    cpu_run_stages(run, &(struct cpu_stages){.sets = samples,
                                             .items = r->items,
                                             .item_bytes = row_bytes * min64(last_item_rows(&r->g), last_rows(&r->g)),
                                             .reduce = r->p->known ? NULL : channels_last_reduce,
                                             .combine = channels_last_combine,
                                             .apply = channels_last_apply,
                                             .arg = r,
                                             .fused = samples > 1 && row_bytes * last_rows(&r->g) <= CPU_FUSED_BYTES});
}
