/* Folding on CUDA. Of the layer's output (BatchNorm), k = r % channels:
 *
 *     folded[r, j] = weight[r, j] * s[k],  s = gamma / sqrt(var + eps)     folded_bias[k] = (bias[k] - mean[k]) * s[k] + beta[k]
 *
 * Of its input (LayerNorm, RMSNorm), k = j / (cols / channels):
 *
 *     folded[r, j] = weight[r, j] * (weight_offset + gamma[k])     folded_bias[r] = bias[r] + sum_j weight[r, j] * beta[k]
 *
 * One kernel writes weight and bias, for every dtype: the weight is read once and written once. A diagonal product of cuBLAS
 * has no 16-bit form, and would leave the bias to more passes. */
#include "parameter.cuh"
#include "prim/divisor.cuh"
#include "prim/reduce.cuh"

namespace
{

enum {
    THREADS = 256,
    BLOCKS = 4,      /* on a multiprocessor, at least */
    VECTORS = 4,     /* that a thread loads before it needs one */
    WARP_SIZE = 4096, /* bytes of a row that a warp takes alone */
};

template <class T> struct Fold {
    using X = T;
    using R = real_of<T>;
    dev::global<const T>     weight;
    dev::global<T>           folded, bias_same; /* bias_same or bias_single: folded_bias */
    dev::global<float>       bias_single;
    Parameter<T>             gamma, beta, bias;
    dev::global<const R>     mean, var;
    int64_t                  rows, cols, x_stride, y_stride, channels;
    R                        eps, weight_offset;
    bool                     x_wide, y_wide, w_wide;
    bool                     column_each; /* channels are columns, not several each */
    Divisor                  by_channels, by_channel_cols;

    WF_ON_DEVICE void store_bias(int64_t i, R value) const
    {
        if (bias_same)
            dev::store(bias_same, i, down<T>(value));
        if (bias_single)
            dev::store(bias_single, i, (float)value);
    }
};

/* A parameter of the columns col, col + 1, ...; 0 where there is none. */
template <class T, int V>
WF_ON_DEVICE void load_columns(const Fold<T> &p, const Parameter<T> &parameter, int64_t col, int valid, real_of<T> (&values)[V])
{
    if (parameter && p.column_each)
        return load_reals(parameter, col, valid, p.w_wide, values);
#pragma unroll
    for (int j = 0; j < V; j++)
        values[j] = parameter && j < valid ? parameter.load(p.by_channel_cols.quotient(col + j), 0) : real_of<T>(0);
}

/* fold(col, valid, weight) turns each vector of a row into what it becomes. G threads have the row. */
template <int G, class T, class F> WF_ON_DEVICE void sweep(const Fold<T> &p, int64_t row, F fold)
{
    constexpr int V = vec_of<T>, STEP = G * V;
    for (int64_t first = threadIdx.x % G * V; first < p.cols; first += VECTORS * STEP) {
        dev::vec<T, V> packed[VECTORS];
        const auto     valid = [&](int k) {
            const int64_t left = p.cols - first - k * STEP;
            return left > 0 ? (int)smallest<int64_t>(left, V) : 0;
        };
#pragma unroll
        for (int k = 0; k < VECTORS; k++)
            packed[k] = load_packed<true, V>(p.weight, row * p.x_stride + first + k * STEP, valid(k), p.x_wide);
#pragma unroll
        for (int k = 0; k < VECTORS; k++) {
            real_of<T> weight[V];
            unpack(packed[k], weight);
            fold(first + k * STEP, valid(k), weight);
            store_reals<true>(p.folded, row * p.y_stride + first + k * STEP, valid(k), p.y_wide, weight);
        }
    }
}

/* f(row) for the rows of the calling thread's group of G. */
template <int G, class T, class F> WF_ON_DEVICE void each_row(const Fold<T> &p, F f)
{
    constexpr int ROWS = THREADS / G;
    for (int64_t row = (int64_t)blockIdx.x * ROWS + threadIdx.x / G; row < p.rows; row += (int64_t)gridDim.x * ROWS)
        f(row);
}

template <int G, class T> WF_ON_DEVICE void fold_output(const Fold<T> &p)
{
    using R = real_of<T>;
    each_row<G>(p, [&](int64_t row) {
        const int64_t       k = p.by_channels.remainder(row);
        const moments_of<R> known = {0, 0, p.var ? dev::load(p.var, k) : R(0), 0};
        const R             s = p.gamma.load(k, 1) * moments_rstd(known, 1, p.eps);
        if (row == k && threadIdx.x % G == 0)
            p.store_bias(k, (p.bias.load(k, 0) - (p.mean ? dev::load(p.mean, k) : R(0))) * s + p.beta.load(k, 0));
        sweep<G>(p, row, [&](int64_t, int, auto &weight) {
            for (R &w : weight)
                w *= s;
        });
    });
}

/* group: who has the row. */
template <int G, class T, class Group> WF_ON_DEVICE void fold_input(const Fold<T> &p, Group group)
{
    using R = real_of<T>;
    constexpr int V = vec_of<T>;
    const R       offset = p.gamma ? p.weight_offset : R(1);
    each_row<G>(p, [&](int64_t row) {
        LongSum<R> sum;
        sweep<G>(p, row, [&](int64_t col, int valid, R(&weight)[V]) {
            R beta[V], factor[V];
            load_columns(p, p.beta, col, valid, beta);
            load_columns(p, p.gamma, col, valid, factor);
#pragma unroll
            for (int j = 0; j < V; j++) {
                beta[j] *= weight[j];
                weight[j] *= factor[j] + offset;
            }
            if (p.beta)
                sum.add(tree_sum(beta));
        });
        const R total = p.beta ? group.sum(sum.value()) : R(0);
        if (threadIdx.x % G == 0)
            p.store_bias(row, p.bias.load(row, 0) + total);
    });
}

template <class T> __global__ void __launch_bounds__(THREADS, BLOCKS) fold_output__row_per_warp(Fold<T> p)
{
    fold_output<32>(p);
}

template <class T> __global__ void __launch_bounds__(THREADS, BLOCKS) fold_output__row_per_block(Fold<T> p)
{
    fold_output<THREADS>(p);
}

template <class T> __global__ void __launch_bounds__(THREADS, BLOCKS) fold_input__row_per_warp(Fold<T> p)
{
    fold_input<32>(p, Lanes<32>());
}

template <class T> __global__ void __launch_bounds__(THREADS, BLOCKS) fold_input__row_per_block(Fold<T> p)
{
    using R = real_of<T>;
    constexpr int WARPS = THREADS / 32;
    WF_SHARED(pair<R>, scratch, 2 * WARPS);
    fold_input<THREADS>(p, Threads<WARPS, R>{scratch, false});
}

/* ---- the variants ------------------------------------------------------------------------------------------------ */

using Problem = struct fold;

template <int G> bool takes(const Problem &p)
{
    return G > 32 || p.cols * (int64_t)wf_dtype_size(p.x_dtype) <= WARP_SIZE;
}

size_t no_workspace(const Problem &) { return 0; }

template <int G> void launch(const Problem &p, Run &run)
{
    if (p.rows == 0)
        return;
    with_dtypes((Element)p.x_dtype, (Element)p.x_dtype, [&](auto x, auto) {
        using T = decltype(x);
        using R = real_of<T>;
        constexpr int V = vec_of<T>;
        Fold<T> q = {};
        q.weight = buffer<const T>(p.weight), q.folded = buffer<T>(p.folded_weight);
        q.gamma = parameter<T>(p.gamma, p.w_dtype), q.beta = parameter<T>(p.beta, p.w_dtype);
        q.bias = parameter<T>(p.bias, p.bias_dtype);
        q.mean = buffer<const R>(p.mean), q.var = buffer<const R>(p.var);
        if (p.bias_dtype == p.x_dtype)
            q.bias_same = buffer<T>(p.folded_bias);
        else
            q.bias_single = buffer<float>(p.folded_bias);
        q.rows = p.rows, q.cols = p.cols, q.x_stride = p.x_stride, q.y_stride = p.y_stride, q.channels = p.channels;
        q.eps = (R)p.eps, q.weight_offset = (R)p.weight_offset;
        q.x_wide = row_is_wide<V>(q.weight, p.rows, p.x_stride), q.y_wide = row_is_wide<V>(q.folded, p.rows, p.y_stride);
        q.w_wide = row_is_wide<V>(q.gamma, 1, 0) && row_is_wide<V>(q.beta, 1, 0);
        q.column_each = p.channels == p.cols;
        q.by_channels = Divisor(p.channels), q.by_channel_cols = Divisor(p.channels ? p.cols / p.channels : 1);
        const auto kernel = G > 32 ? p.of_output ? fold_output__row_per_block<T> : fold_input__row_per_block<T>
                                   : p.of_output ? fold_output__row_per_warp<T> : fold_input__row_per_warp<T>;
        start(run, {dim3(grid_for(ceil_div(p.rows, THREADS / G))), dim3(THREADS)}, kernel, q);
    });
}

} // namespace

const Variant<fold> fold_variants[] = {
    {"row_per_warp", 0, takes<32>, no_workspace, launch<32>},
    {"row_per_block", 0, takes<THREADS>, no_workspace, launch<THREADS>},
    {},
};
