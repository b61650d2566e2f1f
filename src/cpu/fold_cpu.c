/* Folding on the CPU. Of the layer's output (BatchNorm), k = r % channels:
 *
 *     folded[r, j] = weight[r, j] * s[k],  s = gamma / sqrt(var + eps)     folded_bias[k] = (bias[k] - mean[k]) * s[k] + beta[k]
 *
 * Of its input (LayerNorm, RMSNorm), k = j / (cols / channels):
 *
 *     folded[r, j] = weight[r, j] * (weight_offset + gamma[k])     folded_bias[r] = bias[r] + sum_j weight[r, j] * beta[k] */
#include "tile.h"

struct fold_run {
    const struct fold *p;
    int64_t            channel_cols; /* of the input: columns of a channel, at least 1 */
    bool               stream;
};

/* n <= TILE columns of a row, times factor + offset. */
static void fold_tile(const struct fold_run *r, int64_t row, int64_t col, int64_t n, const real *weight, const real *factor,
                      real offset)
{
    const struct fold *p = r->p;
    real               folded[TILE];
    SIMD
    for (int64_t i = 0; i < n; i++)
        folded[i] = weight[i] * (factor[i] + offset);
    FOR_DTYPE(p->x_dtype, store_run, at_element(p->folded_weight, p->x_dtype, row * p->y_stride + col), folded, n, r->stream);
}

static void fold_store_bias(const struct fold *p, int64_t i, real value)
{
    FOR_DTYPE(p->bias_dtype, store_run, at_element(p->folded_bias, p->bias_dtype, i), &value, 1, false);
}

/* ---- of the layer's output -------------------------------------------------------------------------------------- */

static void fold_output(void *arg, int64_t begin, int64_t end)
{
    const struct fold_run *r = arg;
    const struct fold     *p = r->p;
    for (int64_t row = begin; row < end; row++) {
        const int64_t        k = row % p->channels;
        const struct moments known = {0, 0, load_one(p->var, REAL_DTYPE, k, 0), 0};
        const real           s = load_one(p->gamma, p->w_dtype, k, 1) * moments_rstd(known, 1, (real)p->eps);
        if (row == k && p->folded_bias)
            fold_store_bias(p, k,
                            (load_one(p->bias, p->bias_dtype, k, 0) - load_one(p->mean, REAL_DTYPE, k, 0)) * s +
                                load_one(p->beta, p->w_dtype, k, 0));
        real buffer[TILE], factor[TILE];
        fill(factor, min64(p->cols, TILE), s);
        for (int64_t col = 0; col < p->cols; col += TILE) {
            const int64_t n = min64(p->cols - col, TILE);
            fold_tile(r, row, col, n, load(p->weight, p->x_dtype, row * p->x_stride + col, n, buffer), factor,
                      (real)-0.0); /* which changes no number */
        }
    }
    stream_fence(r->stream);
}

/* ---- of its input ----------------------------------------------------------------------------------------------- */

/* A parameter of n <= TILE columns; 0 where there is none. */
static const real *fold_parameter(const struct fold_run *r, const void *data, int64_t col, int64_t n, real *buffer)
{
    const int64_t each = r->channel_cols;
    if (each == 1 || !data)
        return load_parameter(data, r->p->w_dtype, col, n, 0, buffer);
    int64_t k = col / each, next = (k + 1) * each - col;
    for (int64_t i = 0; i < n; k++, next += each) {
        const real value = load_one(data, r->p->w_dtype, k, 0);
        for (const int64_t end = min64(next, n); i < end; i++)
            buffer[i] = value;
    }
    return buffer;
}

/* sum a * b over n <= TILE values, added as tile_sum adds. */
static real tile_dot(const real *a, const real *b, int64_t n)
{
    struct lanes sum = lanes_fill(0);
    real         a_buffer[SWATH], b_buffer[SWATH];
    for (int64_t i = 0; i < n; i += SWATH) {
        const real *p = swath(a, i, n, 0, a_buffer), *q = swath(b, i, n, 0, b_buffer);
        for (int k = 0; k < VECTORS; k++)
            sum.v[k] += (swath_vector(p, 0, k) * swath_vector(q, 0, k) + swath_vector(p, 1, k) * swath_vector(q, 1, k)) +
                        (swath_vector(p, 2, k) * swath_vector(q, 2, k) + swath_vector(p, 3, k) * swath_vector(q, 3, k));
    }
    return lanes_sum(sum);
}

/* n columns of a row: folds them, and returns the sum of weight * beta. Tiles, added as a tree. */
static real fold_columns(const struct fold_run *r, int64_t row, int64_t col, int64_t n)
{
    const struct fold *p = r->p;
    if (n > TILE) {
        const int64_t left = tree_split(n, TILE);
        const real    sum = fold_columns(r, row, col, left);
        return sum + fold_columns(r, row, col + left, n - left);
    }
    real        buffer[TILE], parameter[TILE];
    const real *weight = load(p->weight, p->x_dtype, row * p->x_stride + col, n, buffer);
    const real  sum = p->beta ? tile_dot(weight, fold_parameter(r, p->beta, col, n, parameter), n) : 0;
    fold_tile(r, row, col, n, weight, fold_parameter(r, p->gamma, col, n, parameter), p->gamma ? (real)p->weight_offset : 1);
    return sum;
}

/* Row by row: a tile of gamma and beta for several rows is slower, for memory then reads a tile here, a tile there. */
static void fold_input(void *arg, int64_t begin, int64_t end)
{
    const struct fold_run *r = arg;
    const struct fold     *p = r->p;
    for (int64_t row = begin; row < end; row++) {
        const real sum = fold_columns(r, row, 0, p->cols);
        if (p->folded_bias)
            fold_store_bias(p, row, load_one(p->bias, p->bias_dtype, row, 0) + sum);
    }
    stream_fence(r->stream);
}

static size_t fold_workspace(const struct fold *p)
{
    (void)p;
    return 0;
}

static void fold(const struct fold *p, const struct cpu_run *run)
{
    struct fold_run r = {p, p->channels ? p->cols / p->channels : 1, run->stream};
    const int64_t   row_bytes = (p->cols + 1) * (int64_t)sizeof(real);
    cpu_parallel(run, p->rows, CPU_GRAIN_BYTES / row_bytes, p->of_output ? fold_output : fold_input, &r);
}
