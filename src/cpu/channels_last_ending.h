/* x is [n, hw, c], with an ending: what channels_last.h does to an item, on reals and strip by strip, for that is how activations
 * are computed. Included by channelnorm_cpu.c. */

/* Columns [col, col + width) of `fold` rows that lie one behind the other in memory: at most ENDED elements. */
struct strip {
    int64_t col, width, fold;
};

static struct strip strip_of(const struct geometry *g, int64_t col)
{
    const int64_t width = min64(ENDED, g->s.c - col);
    return (struct strip){col, width, width < g->s.c ? 1 : ENDED / width};
}

static void repeat_strip(real *v, const struct strip *s)
{
    for (int64_t i = s->width; i < s->width * s->fold; i += s->width)
        memcpy(v + i, v, (size_t)s->width * sizeof(real));
}

/* One value of each set for every element of a strip; NULL = 0. */
static void spread_strip(const struct geometry *g, const struct strip *s, int64_t sample, const real *from, real *to)
{
    const int64_t first = g->apart ? 0 : sample * g->s.c / g->group_channels;
    for (int64_t j = 0; j < s->width; j++)
        to[j] = from ? from[first + (s->col + j) / g->group_channels] : 0;
    repeat_strip(to, s);
}

/* And of each channel: what load_factors() or load_shifts() found. */
static void fill_strip(const struct strip *s, const real *from, real *to)
{
    if (from != to)
        memcpy(to, from, (size_t)s->width * sizeof(real));
    repeat_strip(to, s);
}

/* What z of every element is made with, by the operations of channels_last_apply. */
struct strip_map {
    real mean[ENDED], mean_lo[ENDED], rstd[ENDED], factor[ENDED], shift[ENDED];
};

static void map_strip(const struct geometry *g, const struct affine *a, const struct strip *s, int64_t sample,
                      struct strip_map *m)
{
    spread_strip(g, s, sample, a->mean, m->mean);
    spread_strip(g, s, sample, a->mean_lo, m->mean_lo);
    spread_strip(g, s, sample, a->rstd, m->rstd);
    fill_strip(s, load_factors(a, s->col, sample * g->s.c + s->col, s->width, m->factor), m->factor);
    fill_strip(s, load_shifts(a, s->col, sample * g->s.c + s->col, s->width, m->shift), m->shift);
    SIMD
    for (int64_t j = 0; j < s->width * s->fold; j++) {
        m->factor[j] *= m->rstd[j];
        m->shift[j] -= m->mean_lo[j] * m->factor[j];
    }
}

static void normalize_strip(const struct strip_map *m, const real *x, int64_t n, real *z)
{
    SIMD
    for (int64_t j = 0; j < n; j++)
        z[j] = (x[j] - m->mean[j]) * m->factor[j] + m->shift[j];
}

/* Elements of the strip in the row-th of `rows` rows and those that follow; *at: where they begin. */
static int64_t strip_at(const struct geometry *g, const struct strip *s, int64_t row, int64_t rows, int64_t *at)
{
    *at = row * g->s.c + s->col;
    return min64(s->fold, rows - row) * s->width;
}

/* From a strip to one that is fetched meanwhile. */
static int64_t strip_ahead(const struct geometry *g, const struct strip *s)
{
    return ceil_div(END_AHEAD, s->fold * s->width) * s->fold * g->s.c;
}

static void strips_apply(const struct channelnorm_forward_run *r, int64_t sample, int64_t row, int64_t end)
{
    const struct channelnorm_forward *p = r->p;
    const wf_dtype                    dtype = p->shape.x_dtype;
    for (int64_t col = 0; col < r->g.s.c; col += ENDED) {
        const struct strip s = strip_of(&r->g, col);
        const int64_t      ahead = strip_ahead(&r->g, &s);
        struct strip_map   m;
        map_strip(&r->g, &r->z, &s, sample, &m);
        for (int64_t i = row; i < end; i += s.fold) {
            int64_t       at;
            const int64_t n = strip_at(&r->g, &s, i, end, &at);
            real          buffer[ENDED], y[ENDED];
            fetch(p->x, dtype, at + ahead, n);
            normalize_strip(&m, load(p->x, dtype, at, n, buffer), n, y);
            end_tile(&p->act, dtype, at, n, ahead, y);
            FOR_DTYPE(dtype, store_run, at_element(p->y, dtype, at), y, n, r->stream);
        }
    }
}
