/* LayerNorm, and without the centering RMSNorm, on the CPU.
 *
 *     y = ((x - mean) - mean_lo) * (rstd * gamma) + beta
 *     dx = rstd * (g - avg(g) - xhat * avg(g * xhat)),  g = gamma * dy,  dgamma = sum dy * xhat,  dbeta = sum dy
 *
 * Rows up to half of L2 are read from memory once. Longer ones are cut into segments that any thread may take, first
 * for the sums, then for the result. */
#include "tile.h"

enum {
    BATCH_ROWS = 16,       /* rows whose statistics are taken before the first of them is written, if they are */
    BATCH_BYTES = 1 << 13, /* no more than this: so the divisions of one row run while the next is added         */
    AHEAD_BYTES = 1 << 14, /* from what is normalized to what is fetched meanwhile                                */
    STRIP_ROWS = 32,       /* rows that are added to the parameter gradients in sequence */
    BLOCK_ROWS_MIN = 16,   /* rows that share a partial sum of them                      */
    BLOCK_ROWS_MAX = 4 * STRIP_ROWS,
};

/* gamma or beta, at a row's first column; NULL: absent. */
struct parameter {
    const char *at;
    real        offset;
};

static struct parameter parameter_at(const void *data, wf_dtype dtype, int64_t column, double offset)
{
    return (struct parameter){data ? at_element(data, dtype, column) : NULL, (real)offset};
}

/* n <= PAIR factors of xhat from column i. */
INLINE struct pair factor_pair(wf_dtype w_dtype, wf_dtype order, struct parameter gamma, int64_t i, int64_t n)
{
    if (!gamma.at)
        return (struct pair){vector_fill(1), vector_fill(1)};
    return pair_minus(pair_load_part(w_dtype, order, gamma.at + i * size_of(w_dtype), n), -gamma.offset);
}

#include "layernorm_forward.h"

#include "layernorm_backward.h"
