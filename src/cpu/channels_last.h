/* x is [n, hw, c]: forward. Columns are reduced over blocks of rows in one sweep about a guess of their means, as in
 * channels_first.h; blocks merge as a tree. Across the batch the whole tensor is one sample of n * hw rows. Included by
 * channelnorm_cpu.c.
 *
 * A group's columns are added as a fold's are: a block gives one record for each "unit" of a tile, a group or as much of
 * it as the tile holds. */

/* Rows of an item, worth a guess too. */
static int64_t forward_item_rows(const struct geometry *g)
{
    const int64_t share = last_rows(g) * g->s.c * (int64_t)sizeof(real) / 64;
    return item_rows_of(g, share < CPU_GRAIN_BYTES ? CPU_GRAIN_BYTES : min64(share, 1 << 20));
}

/* ---- reduce ----------------------------------------------------------------------------------------------------- */

/* The sums of a unit's columns: v[j] for unit j. */
static void add_units(real *v, const struct columns_tile *t)
{
    for (int64_t j = 0; t->unit > 1 && j < t->width / t->unit; j++) {
        add_strided(v + j * t->unit, t->unit, 1);
        v[j] = v[j * t->unit];
    }
}

/* SWEPT_ROWS wide rows at once: n <= PAIR columns from the i-th. */
INLINE void sweep_rows(wf_dtype dtype, const char *x, int64_t step, const struct fetch *f, int64_t i, int64_t n,
                       const real *center, const real (*up)[WIDE + PAIR], real *sum, real *squares)
{
    struct pair d[SWEPT_ROWS], d2[SWEPT_ROWS];
    for (int k = 0; k < SWEPT_ROWS; k++) {
        fetch_pair(dtype, x + f->ahead + k * f->row + i * f->column);
        d[k] = deviation(pair_load_part(dtype, dtype, x + k * step + i * size_of(dtype), n), center, up, i);
        d2[k] = pair_product(d[k], d[k]);
    }
    sums_add(sum + i, pair_tree(d));
    sums_add(squares + i, pair_tree(d2));
}

/* from goes to `to` and begins again. */
static void sums_move(real *to, real *from, int64_t n)
{
    SIMD
    for (int64_t i = 0; i < n; i++) {
        to[i] += from[i];
        from[i] = 0;
    }
}

/* sum d and sum d^2 of each unit over n rows from `row`, in levels: where one value is far from all others, many
 * additions in sequence of like small terms to its square would all round the same way. */
INLINE void sweep_columns(wf_dtype dtype, const struct columns_tile *t, const void *data, int64_t row, int64_t n,
                          const real *center, const real (*up)[WIDE + PAIR], real *sum, real *squares)
{
    const int64_t size = size_of(dtype), all = t->fold * t->width, step = t->fold * t->c * size, whole = all / PAIR * PAIR;
    const struct fetch f = fetch_of(t, FETCHED);
    const char        *x = at_element(data, dtype, row * t->c + t->col);
    ALIGNED real       few[2][WIDE + PAIR], more[2][WIDE + PAIR];
    real *const        total[2] = {sum, squares};
    for (int k = 0; k < 2; k++) {
        fill(total[k], all + PAIR, 0);
        fill(few[k], all + PAIR, 0);
        fill(more[k], all + PAIR, 0);
    }
    for (int sweep = 1; n >= SWEPT_ROWS * t->fold; n -= SWEPT_ROWS * t->fold, x += SWEPT_ROWS * step, sweep++) {
        for (int64_t i = 0; i < whole; i += PAIR)
            sweep_rows(dtype, x, step, &f, i, PAIR, center, up, few[0], few[1]);
        if (whole < all)
            sweep_rows(dtype, x, step, &f, whole, all - whole, center, up, few[0], few[1]);
        for (int k = 0; k < 2 && sweep % FEW == 0; k++)
            sums_move(more[k], few[k], all + PAIR);
        for (int k = 0; k < 2 && sweep % (FEW * FEW) == 0; k++)
            sums_move(total[k], more[k], all + PAIR);
    }
    for (int k = 0; k < 2; k++) {
        sums_move(more[k], few[k], all + PAIR);
        sums_move(total[k], more[k], all + PAIR);
    }
    for (; n > 0; n -= t->fold, x += step) {
        const int64_t columns = min64(n, t->fold) * t->width;
        for (int64_t i = 0; i < columns; i += PAIR) {
            const int64_t     part = min64(columns - i, PAIR);
            const struct pair v = pair_load_part(dtype, dtype, x + i * size, part);
            const struct pair d = pair_first(dtype, deviation(v, center, up, i), part);
            sums_add(sum + i, d);
            sums_add(squares + i, pair_product(d, d));
        }
    }
    pairs_order(dtype, sum, all, true);
    pairs_order(dtype, squares, all, true);
    add_folds(sum, t);
    add_folds(squares, t);
    add_units(sum, t);
    add_units(squares, t);
}

/* guess[j] of unit j for each of its columns, again and again, in the order of pairs. */
static void spread_units(const struct columns_tile *t, const real *guess, real *center)
{
    if (t->unit == 1)
        memcpy(center, guess, (size_t)t->width * sizeof(real));
    for (int64_t j = 0; t->unit > 1 && j < t->width / t->unit; j++)
        fill(center + j * t->unit, t->unit, guess[j]);
    repeat(center, t);
    FOR_DTYPE(t->dtype, pairs_order, center, t->fold * t->width, false);
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
    ALIGNED real  center[WIDE + PAIR], sum[WIDE + PAIR], squares[WIDE + PAIR], up[2][WIDE + PAIR];
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

/* guess: of the units' means; corrected for the rows that follow where it was wrong. out: the tile's records. */
static void columns_moments(const struct columns_tile *t, const void *data, int64_t row, int64_t n, real *guess,
                            struct columns *out)
{
    const int64_t records = records_of(t);
    if (n > leaf_rows(t->fold)) {
        struct columns right[WIDE / COLUMNS];
        const int64_t  left = tree_split(n, leaf_rows(t->fold));
        columns_moments(t, data, row, left, guess, out);
        columns_moments(t, data, row + left, n - left, guess, right);
        for (int64_t k = 0; k < records; k++) {
            const struct columns_tile part = record_of(t, k);
            columns_merge(&out[k], left * t->unit, &right[k], (n - left) * t->unit, part.width / t->unit);
        }
        return;
    }
    ALIGNED real center[WIDE + PAIR], sum[WIDE + PAIR], squares[WIDE + PAIR];
    int32_t      far[COLUMNS];
    spread_units(t, guess, center);
    FOR_DTYPE(t->dtype, sweep_columns, t, data, row, n, center, NULL, sum, squares);
    for (int64_t k = 0; k < records; k++) {
        const struct columns_tile part = record_of(t, k);
        const int64_t             at = k * COLUMNS;
        if (columns_about(guess + at, sum + at, squares + at, n * t->unit, part.width / t->unit, &out[k], far))
            columns_near(&part, data, row, n, guess + at, far, &out[k]);
    }
}

/* The mean of `few` rows, and in `spread` how far one of them is from the first, at most. */
INLINE void guess_columns(wf_dtype dtype, const struct columns_tile *t, const char *x, int64_t few, real *spread, real *guess)
{
    const int64_t size = size_of(dtype), step = t->c * size;
    const vector  share = vector_fill(1 / (real)few);
    for (int64_t i = 0; i < t->width; i += PAIR) {
        const int64_t     n = min64(PAIR, t->width - i);
        const struct pair first = pair_load_part(dtype, dtype, x + i * size, n);
        struct pair       most = {vector_fill(0), vector_fill(0)};
        struct pair       sum = {first.a * share + vector_fill(0), first.b * share + vector_fill(0)};
        for (int64_t k = 1; k < few; k++) {
            const struct pair v = pair_load_part(dtype, dtype, x + k * step + i * size, n);
            most.a = vector_max(most.a, vector_abs(v.a - first.a));
            most.b = vector_max(most.b, vector_abs(v.b - first.b));
            sum.a += v.a * share;
            sum.b += v.b * share;
        }
        pair_store_part(REAL_DTYPE, (char *)(guess + i), n, pair_natural(dtype, sum));
        pair_store_part(REAL_DTYPE, (char *)(spread + i), n, pair_natural(dtype, most));
    }
}

/* The same for units of several columns: of `each` columns of a unit. */
static void guess_groups(const struct columns_tile *t, const void *data, int64_t row, int64_t few, int64_t each,
                         real *spread, real *guess)
{
    const int64_t units = t->width / t->unit, count = few * each;
    const real    share = 1 / (real)count;
    real          buffer[WIDE], first[WIDE];
    fill(guess, units, 0);
    fill(spread, units, 0);
    for (int64_t k = 0; k < count; k++) {
        const real *x = load(data, t->dtype, (row + k / each) * t->c + t->col, t->width, buffer) + k % t->unit;
        for (int64_t j = 0; k == 0 && j < units; j++)
            first[j] = x[j * t->unit];
        SIMD
        for (int64_t j = 0; j < units; j++) {
            const real d = x[j * t->unit] - first[j], size = d < 0 ? -d : d;
            spread[j] = size > spread[j] ? size : spread[j];
            guess[j] += x[j * t->unit] * share;
        }
    }
}

/* The mean of a power of two of values from the first of n rows, about, for each unit: rows from all over would be waited
 * for one by one. With fewer than SAMPLE, or a coarser guess, one of 256 columns would often be far, and all be swept
 * again. */
static void guess_units(const struct columns_tile *t, const void *data, int64_t row, int64_t n, real *guess)
{
    real    spread[WIDE];
    int64_t few = 1;
    while (few < SAMPLE && few * 2 <= n)
        few *= 2;
    for (int64_t k = 0; k < few; k++)
        fetch(data, t->dtype, (row + k) * t->c + t->col, t->width);
    if (t->unit == 1)
        FOR_DTYPE(t->dtype, guess_columns, t, at_element(data, t->dtype, row * t->c + t->col), few, spread, guess);
    else
        guess_groups(t, data, row, few, min64(t->unit, SAMPLE / few), spread, guess);
    SIMD
    for (int64_t j = 0; j < t->width / t->unit; j++)
        guess[j] = coarse_guess(guess[j], spread[j] / 8);
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
    const int64_t item_rows = forward_item_rows(&r->g), rows = last_rows(&r->g), first = item * item_rows;
    const int64_t tiles = last_tiles(&r->g), records = last_records(&r->g), n = min64(item_rows, rows - first);
    struct columns *part = (struct columns *)r->part + (sample * r->items + item) * tiles * records;
    for (int64_t tile = 0; tile < tiles; tile++) {
        const struct columns_tile t = columns_tile_of(&r->g, tile);
        real                      guess[WIDE];
        guess_units(&t, r->p->x, sample * rows + first, n, guess);
        columns_moments(&t, r->p->x, sample * rows + first, n, guess, part + tile * records);
    }
}

/* All sets of a sample. */
static void channels_last_combine(const void *arg, int64_t sample)
{
    const struct channelnorm_forward_run *r = arg;
    const int64_t rows = last_rows(&r->g), tiles = last_tiles(&r->g), parts = tiles_of_group(&r->g);
    const int64_t channels = r->g.group_channels, sets = r->g.s.c / channels, first_set = sample * sets;
    const int64_t records = last_records(&r->g), stride = tiles * records;
    for (int64_t i = 0; i < stride; i++) {
        const int64_t             tile = i / records;
        const struct columns_tile whole = columns_tile_of(&r->g, tile);
        if (i % records >= records_of(&whole))
            continue;
        const struct columns_tile t = record_of(&whole, i % records);
        struct columns            all = {0};
        if (rows)
            columns_tree(&t, (struct columns *)r->part + sample * r->items * stride + i, stride, forward_item_rows(&r->g),
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

static void channels_last_apply(const void *arg, int64_t sample, int64_t item)
{
    const struct channelnorm_forward_run *r = arg;
    const struct channelnorm_forward     *p = r->p;
    const int64_t item_rows = forward_item_rows(&r->g), rows = last_rows(&r->g), first = item * item_rows;
    if (p->act.present) {
        strips_apply(r, sample, sample * rows + first, sample * rows + min64(first + item_rows, rows));
        stream_fence(r->stream);
        return;
    }
    const int64_t step = even_step(r->g.s.c, WIDEST);
    for (int64_t col = 0; col < r->g.s.c; col += step) {
        const struct columns_tile t = plain_tile_of(&r->g, col, step, WIDE);
        struct column_map         m;
        real                      gamma_buffer[WIDEST], beta_buffer[WIDEST], mean_lo[WIDEST];
        const real               *gamma = load_factors(&r->z, col, sample * r->g.s.c + col, t.width, gamma_buffer);
        const real               *beta = load_shifts(&r->z, col, sample * r->g.s.c + col, t.width, beta_buffer);
        m.formula = NORMALIZE;
        m.in[0] = p->x;
        m.out = p->y;
        m.stream = r->stream;
        m.pitch = (step > WIDE ? WIDEST : WIDE) + PAIR;
        real *const mean = m.param, *const factor = mean + m.pitch, *const shift = factor + m.pitch;
        spread(&r->g, &t, sample, r->mean, mean);
        spread(&r->g, &t, sample, r->rstd, factor);
        spread(&r->g, &t, sample, r->mean_lo, mean_lo);
        SIMD
        for (int64_t j = 0; j < t.width; j++) {
            factor[j] *= gamma[j];
            shift[j] = beta[j] - mean_lo[j] * factor[j];
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
    r->items = ceil_div(last_rows(&r->g), forward_item_rows(&r->g));
    if (r->p->known)
        return;
    r->part = cpu_take(arena, samples * r->items * last_tiles(&r->g) * last_records(&r->g), sizeof(struct columns));
    if (tiles_of_group(&r->g) > 1)
        r->tile = cpu_take(arena, samples * last_tiles(&r->g), sizeof(struct moments));
}

static void channels_last_forward(struct channelnorm_forward_run *r, const struct cpu_run *run)
{
    const int64_t samples = last_samples(&r->g), row_bytes = r->g.s.c * size_of(r->g.s.x_dtype);
    if (r->p->known)
        known_sets(r, 0, r->g.sets);
    cpu_run_stages(run, &(struct cpu_stages){.sets = samples,
                                             .items = r->items,
                                             .item_bytes = row_bytes * min64(forward_item_rows(&r->g), last_rows(&r->g)),
                                             .reduce = r->p->known ? NULL : channels_last_reduce,
                                             .combine = r->p->known ? NULL : channels_last_combine,
                                             .apply = channels_last_apply,
                                             .arg = r,
                                             .fused = whole_samples(&r->g, row_bytes)});
}
