/* What the channel norms may end in, y = activation(z + residual), and the gradient that arrives before it: see struct
 * activation. Tile by tile, between the map that gives z and the store. Included by channelnorm_cpu.c. */
#include "common/activation.h"

/* f(kind, ...), compiled for each activation: f is INLINE. */
#define FOR_ACTIVATION(kind, f, ...)                                                                                   \
    ((kind) == WF_RELU         ? f(WF_RELU, __VA_ARGS__)                                                               \
     : (kind) == WF_LEAKY_RELU ? f(WF_LEAKY_RELU, __VA_ARGS__)                                                         \
     : (kind) == WF_SILU       ? f(WF_SILU, __VA_ARGS__)                                                               \
     : (kind) == WF_GELU       ? f(WF_GELU, __VA_ARGS__)                                                               \
     : (kind) == WF_GELU_TANH  ? f(WF_GELU_TANH, __VA_ARGS__)                                                          \
                               : f(WF_ACTIVATION_NONE, __VA_ARGS__))

enum {
    ENDED = 512,           /* elements at once, which L1 holds several times */
    END_AHEAD = 4 * ENDED, /* from what is read to what is fetched, where that is in the order of memory */
};

INLINE void end_values(wf_activation kind, real slope, const real *residual, real *z, int64_t n)
{
    SIMD
    for (int64_t i = 0; i < n; i++)
        z[i] = activation_value((int)kind, slope, z[i] + residual[i]);
}

/* dz = dy * activation'(z + residual); a select where that is 0. */
INLINE void arrive_values(wf_activation kind, real slope, const real *z, const real *residual, const real *dy, real *dz,
                          int64_t n)
{
    SIMD
    for (int64_t i = 0; i < n; i++) {
        const real at = z[i] + residual[i];
        dz[i] = kind == WF_RELU ? (at <= 0 ? 0 : dy[i]) : dy[i] * activation_derivative((int)kind, slope, at);
    }
}

/* INLINE: gcc drops calls of a function that does nothing but fetch. */
INLINE void fetch(const void *data, wf_dtype dtype, int64_t at, int64_t n)
{
    const char *end = at_element(data, dtype, at + n);
    for (const char *line = at_element(data, dtype, at); line < end; line += LINE)
        __builtin_prefetch(line);
}

static const real zeros[ENDED];

static const real *load_residual(const struct activation *act, wf_dtype dtype, int64_t at, int64_t n, real *buffer)
{
    return act->residual ? load(act->residual, dtype, at, n, buffer) : zeros;
}

/* n <= ENDED elements from `at`: z, that of the norm alone, becomes y. ahead: from these to those that are fetched. */
static void end_tile(const struct activation *act, wf_dtype dtype, int64_t at, int64_t n, int64_t ahead, real *z)
{
    real buffer[ENDED];
    if (act->residual)
        fetch(act->residual, dtype, at + ahead, n);
    FOR_ACTIVATION(act->kind, end_values, (real)act->slope, load_residual(act, dtype, at, n, buffer), z, n);
}

/* What arrives before it, kept in dresidual too if there is one; z is not read where there is y. ahead: elements from these to
 * those that are fetched meanwhile. */
static void arrive_tile(const struct activation *act, wf_dtype dtype, int64_t at, int64_t n, int64_t ahead, const real *z,
                        const void *dy, real *dz)
{
    real        buffer[2][ENDED];
    const void *other = act->y ? act->y : act->residual;
    const real *of = act->y ? load(act->y, dtype, at, n, buffer[0]) : z;
    const real *residual = act->y ? zeros : load_residual(act, dtype, at, n, buffer[0]);
    if (other)
        fetch(other, dtype, at + ahead, n);
    fetch(dy, dtype, at + ahead, n);
    FOR_ACTIVATION(act->kind, arrive_values, (real)act->slope, of, residual, load(dy, dtype, at, n, buffer[1]), dz, n);
    if (act->dresidual)
        FOR_DTYPE(dtype, store_values, at_element(act->dresidual, dtype, at), dz, n);
}

/* What z is made with: z = (x - mean) * factor + (beta - mean_lo * factor), factor = rstd * gamma. */
struct affine {
    const real *mean, *mean_lo, *rstd; /* [sets]; mean_lo NULL = 0 */
    const void *gamma, *beta;
    wf_dtype    w_dtype;
    const struct modulation *mod; /* of gamma and beta */
};
