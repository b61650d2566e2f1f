/* The sum whose norm is taken, and the gradients of what was added: see struct addition. A row at a time, in the cache between
 * a row's sweeps. Included by layernorm_cpu.c. */
#include "keep.h"

enum {
    DECIDED = 128,         /* columns decided at once: few, so that Philox runs beside the loads and stores of those before;
                              and whole pairs, so that columns of pairs stay together */
    ADDED_AHEAD = 1 << 14, /* bytes from what is read to what is fetched meanwhile */
};

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

/* What x is multiplied by in some columns of a row. */
struct factors {
    bool        drops;
    vector      scale, row;
    const real *row_given, *col; /* NULL: 1; col: of the first column */
    int64_t     skip;            /* bit of the first column's unit */
    int64_t     last;            /* byte of the last STEP units; -1: none yet in this row */
    real        buffer[TILE];
    uint8_t     units[STEP / 8 + UNITS_SIZE];
};

static void factors_of_row(const struct addition_run *r, int64_t row, struct factors *f)
{
    f->drops = r->drops;
    f->scale = vector_fill(r->scale);
    f->row_given = r->a->row_scale ? (const real *)r->a->row_scale + row : NULL;
    f->row = vector_fill(f->row_given ? *f->row_given : 1);
    f->last = -1;
}

/* Of n <= DECIDED units. Where a row does not begin at a multiple of STEP, some were drawn with those before. */
static void decide_next(const struct keep *k, int64_t unit, int64_t n, struct factors *f)
{
    int64_t have = 0;
    f->skip = unit % STEP;
    if (f->last >= 0 && f->skip) {
        memmove(f->units, f->units + f->last, STEP / 8);
        have = STEP - f->skip;
    }
    if (n > have)
        decide(k, unit + have, n - have, f->units + (have ? STEP / 8 : 0));
    f->last = (f->skip + n - 1) / STEP * (STEP / 8);
}

/* Returns of how many columns from `col` on, at most n. */
static int64_t factors_of(const struct addition_run *r, int64_t row, int64_t col, int64_t n, struct factors *f)
{
    n = min64(n, r->drops ? DECIDED : TILE);
    f->col = r->a->col_scale ? load(r->a->col_scale, r->w_dtype, col, n, f->buffer) : NULL;
    if (r->drops)
        decide_next(&r->keep, row * r->cols + col, n, f);
    return n;
}

/* d times each of them, at n <= PAIR columns from the i-th. */
INLINE struct pair times_kept(wf_dtype order, const struct factors *f, int64_t i, struct pair d)
{
    return f->drops ? keep_pair(order, (struct pair){d.a * f->scale, d.b * f->scale}, f->units, f->skip + i, vector_fill(0)) : d;
}

INLINE struct pair times_row(const struct factors *f, struct pair d)
{
    return f->row_given ? (struct pair){d.a * f->row, d.b * f->row} : d;
}

INLINE struct pair times_col(wf_dtype order, const struct factors *f, int64_t i, int64_t n, struct pair d)
{
    return f->col ? pair_product(d, pair_load_part(REAL_DTYPE, order, (const char *)(f->col + i), n)) : d;
}

/* In memory there are values of x's dtype, or of the arithmetic type; in registers they have the order of x's. */
INLINE void put_pair(wf_dtype order, wf_dtype dtype, char *to, int64_t n, struct pair d, bool stream)
{
    if (dtype != order)
        d = pair_natural(order, d);
    if (stream && n == PAIR && (uintptr_t)to % LINE == 0)
        pair_stream(dtype, to, d);
    else
        pair_store_part(dtype, to, n, d);
}

/* What lies so many bytes ahead is read next: of rows to come, or of this one. */
static int64_t ahead_of(int64_t stride, wf_dtype dtype, int64_t cols)
{
    const int64_t bytes = stride * size_of(dtype);
    return cols * size_of(dtype) >= ADDED_AHEAD ? ADDED_AHEAD : ceil_div(ADDED_AHEAD, bytes + 1) * bytes;
}

/* ---- forward ---- */

/* Some columns of a row; the pointers are at the first. */
struct added {
    const char *x, *residual; /* residual NULL: 0 */
    char       *sum;
    int64_t     x_ahead, residual_ahead; /* bytes to what is fetched meanwhile */
};

/* n <= PAIR columns from the i-th; f is of those from the first-th. */
INLINE void add_pair_at(wf_dtype x_dtype, wf_dtype dtype, const struct factors *f, int64_t first, const struct added *of,
                        int64_t i, int64_t n)
{
    const int64_t at = i * size_of(dtype);
    struct pair   d = pair_load_part(x_dtype, x_dtype, of->x + i * size_of(x_dtype), n);
    d = times_col(x_dtype, f, i - first, n, times_row(f, times_kept(x_dtype, f, i - first, d)));
    if (of->residual)
        d = pair_sum(pair_load_part(dtype, x_dtype, of->residual + at, n), d);
    put_pair(x_dtype, dtype, of->sum + at, n, d, false);
    if (n < PAIR)
        return;
    fetch_pair(x_dtype, of->x + i * size_of(x_dtype) + of->x_ahead);
    if (of->residual)
        fetch_pair(dtype, of->residual + at + of->residual_ahead);
}

/* n columns of a row from `begin`. */
INLINE void add_columns_of(wf_dtype x_dtype, wf_dtype dtype, const struct addition_run *r, int64_t row, int64_t begin, int64_t n,
                           const struct added *of)
{
    struct factors f;
    factors_of_row(r, row, &f);
    for (int64_t col = 0, end; col < n; col = end) {
        end = col + factors_of(r, row, begin + col, n - col, &f);
        int64_t i = col;
        for (; i + PAIR <= end; i += PAIR)
            add_pair_at(x_dtype, dtype, &f, col, of, i, PAIR);
        if (i < end)
            add_pair_at(x_dtype, dtype, &f, col, of, i, end - i);
    }
}

INLINE void typed_add(wf_dtype x_dtype, const struct addition_run *r, int64_t row, int64_t begin, int64_t n,
                      const struct added *of)
{
    if (r->a->dtype == x_dtype)
        add_columns_of(x_dtype, x_dtype, r, row, begin, n, of);
    else
        add_columns_of(x_dtype, REAL_DTYPE, r, row, begin, n, of);
}

/* Columns [begin, end) of a row: the sum goes to memory, where it has add.dtype. */
static void add_row(const struct addition_run *r, const void *x, int64_t x_stride, void *sum, int64_t sum_stride, int64_t row,
                    int64_t begin, int64_t end)
{
    const struct addition *a = r->a;
    const int64_t          of_residual = row * a->residual_stride + begin;
    const struct added     of = {.x = at_element(x, r->x_dtype, row * x_stride + begin),
                                 .residual = a->residual ? at_element(a->residual, a->dtype, of_residual) : NULL,
                                 .sum = at_element(sum, a->dtype, row * sum_stride + begin),
                                 .x_ahead = ahead_of(x_stride, r->x_dtype, r->cols),
                                 .residual_ahead = ahead_of(a->residual_stride, a->dtype, r->cols)};
    FOR_DTYPE(r->x_dtype, typed_add, r, row, begin, end - begin, &of);
}

/* ---- backward ---- */

/* What the gradient of the norm goes through in some columns of a row; the pointers are at the first. */
struct gradients {
    const char    *dsum;           /* NULL: 0 */
    char          *dresidual, *dx; /* NULL: not wanted */
    const char    *next[3];        /* of sum, dy and dsum, to be fetched */
    bool           stream;
    int64_t        first; /* column of the factors' first */
    struct factors f;
};

static void gradients_of(const struct addition_run *r, int64_t row, int64_t begin, struct gradients *of)
{
    const struct addition *a = r->a;
    const int64_t          of_sum = row * a->sum_stride + begin, of_residual = row * a->residual_stride + begin;
    of->dsum = a->dsum ? at_element(a->dsum, a->dtype, of_sum) : NULL;
    of->dresidual = a->dresidual ? at_element(a->dresidual, a->dtype, of_residual) : NULL;
    of->next[2] = a->dsum ? of->dsum + ahead_of(a->sum_stride, a->dtype, r->cols) : NULL;
    factors_of_row(r, row, &of->f);
}

/* d as it is stored: for dx is of that. */
INLINE struct pair as_stored(wf_dtype order, wf_dtype dtype, struct pair d)
{
    _Alignas(LINE) char stored[PAIR * sizeof(real)];
    if (is_real(dtype))
        return d;
#if REAL_SIZE == 4
    if (order == WF_BF16)
        return pair_of_bf16(words_of_bf16(d));
#endif
    pair_store(order, stored, d);
    return pair_load(order, order, stored);
}

/* d: of the norm, at n <= PAIR columns from the i-th. */
INLINE void put_gradients(wf_dtype x_dtype, wf_dtype dtype, const struct gradients *of, int64_t i, int64_t n, struct pair d)
{
    const int64_t at = i * size_of(dtype);
    if (of->dsum)
        d = pair_sum(d, pair_load_part(dtype, x_dtype, of->dsum + at, n));
    if (of->dresidual)
        put_pair(x_dtype, dtype, of->dresidual + at, n, d, of->stream);
    if (of->dx) {
        d = times_row(&of->f, times_col(x_dtype, &of->f, i - of->first, n, as_stored(x_dtype, dtype, d)));
        put_pair(x_dtype, x_dtype, of->dx + i * size_of(x_dtype), n, times_kept(x_dtype, &of->f, i - of->first, d), of->stream);
    }
    if (n < PAIR)
        return;
    fetch_pair(dtype, of->next[0] + at);
    fetch_pair(x_dtype, of->next[1] + i * size_of(x_dtype));
    if (of->dsum)
        fetch_pair(dtype, of->next[2] + at);
}
