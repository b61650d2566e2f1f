/* x is [n, hw, c], with an ending: what channels_last_backward.h does to an item, strip by strip. Included by
 * channelnorm_cpu.c. */

/* ---- reduce ----------------------------------------------------------------------------------------------------- */

enum { ARRIVED = 256 }; /* columns at once, of SWEPT_ROWS rows */

/* z = (x - mean) * factor + shift, for each column of a wide row. */
struct arrival_map {
    ALIGNED real factor[WIDEST + PAIR], shift[WIDEST + PAIR];
};

static void map_arrivals(const struct affine *a, const struct columns_tile *t, int64_t sample, const real *rstd,
                         const real *mean_lo, struct arrival_map *m)
{
    real        gamma_buffer[WIDEST], beta_buffer[WIDEST];
    const real *gamma = load_factors(a, t->col, sample * t->c + t->col, t->width, gamma_buffer);
    const real *beta = load_shifts(a, t->col, sample * t->c + t->col, t->width, beta_buffer);
    SIMD
    for (int64_t j = 0; j < t->width; j++) {
        m->factor[j] = rstd[j] * gamma[j];
        m->shift[j] = beta[j] - mean_lo[j] * m->factor[j];
    }
    repeat(m->factor, t);
    repeat(m->shift, t);
}

/* x, and dz, of n <= ARRIVED columns from the i-th, which are those from `at` in memory; mean is that of the first. */
static void arrive_columns(const struct channelnorm_backward *p, const real *mean, const struct arrival_map *m, int64_t i,
                           int64_t at, int64_t n, int64_t ahead, real *x, real *dz)
{
    const wf_dtype dtype = p->shape.x_dtype;
    real           z[ARRIVED];
    fetch(p->x, dtype, at + ahead, n);
    FOR_DTYPE(dtype, load_run, at_element(p->x, dtype, at), n, x);
    SIMD
    for (int64_t j = 0; j < n; j++)
        z[j] = (x[j] - mean[j]) * m->factor[i + j] + m->shift[i + j];
    arrive_tile(&p->act, dtype, at, n, ahead, z, p->dy, dz);
}

/* ---- apply ------------------------------------------------------------------------------------------------------ */

/* Where dz was not kept. */
static void strips_backward_apply(const struct channelnorm_backward_run *r, int64_t sample, int64_t row, int64_t end)
{
    const struct channelnorm_backward *p = &r->apply;
    const wf_dtype                     dtype = p->shape.x_dtype;
    for (int64_t col = 0; col < r->g.s.c; col += ENDED) {
        const struct strip s = strip_of(&r->g, col);
        struct strip_map   m;
        real               k1[ENDED], slope[ENDED];
        map_strip(&r->g, &r->z, &s, sample, &m);
        spread_strip(&r->g, &s, sample, p->frozen ? NULL : r->k1, k1);
        spread_strip(&r->g, &s, sample, p->frozen ? NULL : r->k2, slope);
        SIMD
        for (int64_t j = 0; j < s.width * s.fold; j++) {
            slope[j] *= m.rstd[j];
            k1[j] = m.rstd[j] * k1[j] - m.mean_lo[j] * m.rstd[j] * slope[j];
        }
        for (int64_t i = row; i < end; i += s.fold) {
            int64_t       at;
            const int64_t n = strip_at(&r->g, &s, i, end, &at);
            real          buffer[ENDED], z[ENDED], dz[ENDED], dx[ENDED];
            const real   *x = load(p->x, dtype, at, n, buffer);
            if (!p->act.y)
                normalize_strip(&m, x, n, z);
            arrive_tile(&p->act, dtype, at, n, strip_ahead(&r->g, &s), z, p->dy, dz);
            SIMD
            for (int64_t j = 0; j < n; j++)
                dx[j] = p->frozen ? dz[j] * m.factor[j]
                                  : (dz[j] * m.factor[j] - k1[j]) - (x[j] - m.mean[j]) * m.rstd[j] * slope[j];
            if (p->dx)
                FOR_DTYPE(dtype, store_run, at_element(p->dx, dtype, at), dx, n, r->stream);
        }
    }
}
