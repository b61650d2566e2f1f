/* The sum whose norm is taken, and the gradients of what was added: see struct addition. Tile by tile, in the cache between a
 * row's sweeps. Included by layernorm_cpu.c. */
#include "keep.h"

struct addition_run {
    const struct addition *a;
    wf_dtype               x_dtype, w_dtype;
    int64_t                cols;
    bool                   drops;
    struct keep            keep;
    real                   scale;
};

static struct addition_run addition_of(const struct addition *a, wf_dtype x_dtype, wf_dtype w_dtype, int64_t cols)
{
    struct addition_run r = {.a = a, .x_dtype = x_dtype, .w_dtype = w_dtype, .cols = cols, .scale = (real)a->scale};
    r.drops = a->scale != 1; /* where p is below 2^-33 all are kept, and scaled */
    if (r.drops)
        r.keep = keep_of(a->seed, a->seed_ptr, a->offset, a->offset_ptr, a->threshold);
    return r;
}

/* What x is multiplied by, in n <= TILE columns from `col`. */
struct factors {
    vector      row;
    const real *col; /* NULL: 1 */
    int64_t     skip; /* bit of the first column's unit */
    real        buffer[TILE];
    uint8_t     units[UNITS_SIZE];
};

static void factors_of(const struct addition_run *r, int64_t row, int64_t col, int64_t n, struct factors *f)
{
    const struct addition *a = r->a;
    f->row = vector_fill(a->row_scale ? ((const real *)a->row_scale)[row] : 1);
    f->col = a->col_scale ? load(a->col_scale, r->w_dtype, col, n, f->buffer) : NULL;
    f->skip = r->drops ? decide(&r->keep, row * r->cols + col, n, f->units) : 0;
}

INLINE struct pair tile_pair(const real *tile, int64_t i, int64_t n)
{
    return pair_load_part(REAL_DTYPE, REAL_DTYPE, (const char *)(tile + i), n);
}

/* n values of a tile, which may be where they belong. */
static void put(void *data, wf_dtype dtype, int64_t index, const real *from, int64_t n, bool stream)
{
    char *to = at_element(data, dtype, index);
    if (is_real(dtype) && !stream)
        memmove(to, from, (size_t)n * sizeof(real));
    else
        FOR_DTYPE(dtype, store_run, to, from, n, stream);
}

/* Columns [begin, end) of a row: the sum goes to memory, where it has add.dtype. */
static void add_row(const struct addition_run *r, const void *x, int64_t x_stride, void *sum, int64_t sum_stride, int64_t row,
                    int64_t begin, int64_t end)
{
    const struct addition *a = r->a;
    for (int64_t col = begin, n; col < end; col += n) {
        struct factors f;
        real           x_buffer[TILE], residual_buffer[TILE], out[TILE];
        n = min64(end - col, TILE);
        factors_of(r, row, col, n, &f);
        const real *from = load(x, r->x_dtype, row * x_stride + col, n, x_buffer), *residual = NULL;
        if (a->residual)
            residual = load(a->residual, a->dtype, row * a->residual_stride + col, n, residual_buffer);
        for (int64_t i = 0; i < n; i += PAIR) {
            const int64_t part = min64(n - i, PAIR);
            struct pair   d = tile_pair(from, i, part);
            if (r->drops)
                d = keep_pair(REAL_DTYPE, pair_product(d, (struct pair){vector_fill(r->scale), vector_fill(r->scale)}), f.units,
                              f.skip + i, vector_fill(0));
            d = pair_product(d, (struct pair){f.row, f.row});
            if (f.col)
                d = pair_product(d, tile_pair(f.col, i, part));
            if (residual)
                d = pair_sum(tile_pair(residual, i, part), d);
            pair_store_part(REAL_DTYPE, (char *)(out + i), part, d);
        }
        put(sum, a->dtype, row * sum_stride + col, out, n, false);
    }
}

/* n <= TILE columns from `col`: from g, the gradient of the norm, dresidual and dx. */
static void add_gradients(const struct addition_run *r, void *dx, int64_t dx_stride, int64_t row, int64_t col, int64_t n,
                          real *g, bool stream)
{
    const struct addition *a = r->a;
    real                   buffer[TILE];
    if (a->dsum) {
        const real *dsum = load(a->dsum, a->dtype, row * a->sum_stride + col, n, buffer);
        SIMD
        for (int64_t i = 0; i < n; i++)
            g[i] += dsum[i];
    }
    if (a->dresidual)
        put(a->dresidual, a->dtype, row * a->residual_stride + col, g, n, stream);
    if (!dx)
        return;
    if (!is_real(a->dtype)) { /* as stored */
        uint16_t stored[TILE];
        put(stored, a->dtype, 0, g, n, false);
        FOR_DTYPE(a->dtype, load_run, (const char *)stored, n, g);
    }
    struct factors f;
    factors_of(r, row, col, n, &f);
    for (int64_t i = 0; i < n; i += PAIR) {
        const int64_t part = min64(n - i, PAIR);
        struct pair   d = tile_pair(g, i, part);
        if (f.col)
            d = pair_product(d, tile_pair(f.col, i, part));
        d = pair_product(d, (struct pair){f.row, f.row});
        if (r->drops)
            d = keep_pair(REAL_DTYPE, pair_product(d, (struct pair){vector_fill(r->scale), vector_fill(r->scale)}), f.units,
                          f.skip + i, vector_fill(0));
        pair_store_part(REAL_DTYPE, (char *)(g + i), part, d);
    }
    put(dx, r->x_dtype, row * dx_stride + col, g, n, stream);
}
