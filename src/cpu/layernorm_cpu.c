/* LayerNorm, and without the centering RMSNorm, on the CPU.
 *
 *     y = ((x - mean) - mean_lo) * (rstd * gamma) + beta
 *     dx = rstd * (g - avg(g) - xhat * avg(g * xhat)),  g = gamma * dy,  dgamma = sum dy * xhat,  dbeta = sum dy
 *
 * Rows up to half of L2 are read from memory once. Longer ones are cut into segments that any thread may take, first
 * for the sums, then for the result. */
#include "addition.h"

enum {
    BATCH_ROWS = 16,         /* rows whose statistics are taken before the first of them is written, if they are */
    BATCH_BYTES = 1 << 13,   /* no more than this: so the divisions of one row run while the next is added       */
    BATCH_ROWS_MIN = 3,      /* for their statistics to be vectors                                               */
    AHEAD_BYTES = 1 << 14,   /* from what is written to what is fetched meanwhile; where stores go through the   */
    AHEAD_X_BYTES = 1 << 13, /* cache it is this far,                                                            */
    AHEAD_Y_BYTES = 1 << 12, /* and so far to the lines that will be written                                     */
    STRIP_ROWS = 32,         /* rows that are added to the parameter gradients in sequence */
    BLOCK_ROWS_MIN = 16,     /* rows that share a partial sum of them                      */
    BLOCK_ROWS_MAX = 4 * STRIP_ROWS,
    PREPARED_COLUMNS = 4096, /* of parameters that are brought to x's order, on the stack */
    PREPARED_ROWS = 4,       /* for as many rows at least                                 */
};

/* How results are stored: what fits the second level of cache with what is read is expected there, so that nothing is fetched;
 * what does not fit the last one goes past it. */
enum stores { TO_CACHE, TO_FETCHED, PAST_CACHE };

static enum stores stores_of(const struct cpu_run *run)
{
    return run->stream ? PAST_CACHE : run->bytes > CPU_FUSED_BYTES ? TO_FETCHED : TO_CACHE;
}

/* gamma or beta, at a row's first column; NULL: absent. dtype is PREPARED where `at` holds what prepare_parameter made. */
struct parameter {
    const char *at;
    real        offset;
    wf_dtype    dtype;
};
#define PREPARED ((wf_dtype)-1)

/* f(x_dtype, w_dtype, ...) with the parameters' dtype a constant too. */
#define FOR_PARAMETERS(x_dtype, w_dtype, f, ...)                                                                       \
    (!is_real(x_dtype) && (w_dtype) == PREPARED ? f(x_dtype, PREPARED, __VA_ARGS__)                                    \
     : (w_dtype) == (x_dtype)                   ? f(x_dtype, x_dtype, __VA_ARGS__)                                     \
                                                : f(x_dtype, REAL_DTYPE, __VA_ARGS__))

static struct parameter parameter_at(const void *data, wf_dtype dtype, int64_t column, double offset)
{
    return (struct parameter){data ? at_element(data, dtype, column) : NULL, (real)offset, dtype};
}

/* n <= PAIR values from column i. */
INLINE struct pair parameter_pair(wf_dtype w_dtype, wf_dtype order, struct parameter p, int64_t i, int64_t n)
{
    if (w_dtype == PREPARED)
        return pair_load(REAL_DTYPE, REAL_DTYPE, p.at + i * (int64_t)sizeof(real));
    return pair_load_part(w_dtype, order, p.at + i * size_of(w_dtype), n);
}

/* n <= PAIR factors of xhat from column i. */
INLINE struct pair factor_pair(wf_dtype w_dtype, wf_dtype order, struct parameter gamma, int64_t i, int64_t n)
{
    if (!gamma.at)
        return (struct pair){vector_fill(1), vector_fill(1)};
    const struct pair p = parameter_pair(w_dtype, order, gamma, i, n);
    return w_dtype == PREPARED ? p : pair_minus(p, -gamma.offset);
}

INLINE void prepare_columns(wf_dtype order, wf_dtype w_dtype, struct parameter p, bool is_factor, int64_t cols, real *to)
{
    for (int64_t i = 0; i < cols; i += PAIR) {
        const int64_t n = min64(cols - i, PAIR);
        pair_store(REAL_DTYPE, (char *)(to + i),
                   is_factor ? factor_pair(w_dtype, order, p, i, n) : parameter_pair(w_dtype, order, p, i, n));
    }
}

INLINE void prepare_typed(wf_dtype order, struct parameter p, bool is_factor, int64_t cols, real *to)
{
    FOR_PARAMETERS(order, p.dtype, prepare_columns, p, is_factor, cols, to);
}

/* What many 16-bit rows read, made once: columns in the arithmetic type, in x's order, the offset added. `to` has room
 * for PREPARED_COLUMNS; more of them, absent ones and those of other rows stay as they are. */
static struct parameter prepare_parameter(wf_dtype x_dtype, struct parameter p, bool is_factor, int64_t cols, real *to)
{
    if (!p.at || is_real(x_dtype) || cols > PREPARED_COLUMNS)
        return p;
    FOR_DTYPE(x_dtype, prepare_typed, p, is_factor, cols, to);
    return (struct parameter){(const char *)to, 0, PREPARED};
}

/* So many bytes ahead, in whole rows `stride` bytes apart where they are not cut. */
static int64_t rows_ahead(int64_t bytes, int64_t segments, int64_t stride)
{
    return segments > 1 ? bytes : ceil_div(bytes, stride + 1) * stride;
}

/* What xhat is multiplied by, and what is then added to it, at a row's first column; dtype: of those that are there. */
struct row_affine {
    struct parameter gamma, beta;
    wf_dtype         dtype;
};

/* Those of a pass, from `column` on. */
#define ROW_AFFINE_AT(p, column)                                                                                       \
    ((struct row_affine){parameter_at((p)->gamma, (p)->w_dtype, column, (p)->weight_offset),                           \
                         parameter_at((p)->beta, (p)->w_dtype, column, 0), (p)->w_dtype})

struct prepared {
    _Alignas(LINE) real gamma[PREPARED_COLUMNS], beta[PREPARED_COLUMNS];
};

/* Both, for many rows. */
static void prepare_affine(wf_dtype x_dtype, struct row_affine *a, int64_t cols, struct prepared *to)
{
    a->gamma = prepare_parameter(x_dtype, a->gamma, true, cols, to->gamma);
    a->beta = prepare_parameter(x_dtype, a->beta, false, cols, to->beta);
    a->dtype = a->gamma.at ? a->gamma.dtype : a->beta.dtype;
}

#include "layernorm_forward.h"

#include "layernorm_backward.h"
