/* LayerNorm forward, and without the centring RMSNorm, on CUDA:
 *
 *     y = ((x - mean) - mean_lo) * (rstd * gamma) + beta
 */
#ifndef WELFORD_CUDA_LAYERNORM_FORWARD_CUH
#define WELFORD_CUDA_LAYERNORM_FORWARD_CUH

#include "rows_forward.cuh"

/* Rows of T, which become y of Y. */
template <class T, class Y, class Gamma> struct Normalized : Rows<T, Y> {
    using typename Rows<T, Y>::R;
    Gamma   gamma, beta;
    int64_t x_stride, y_stride;
    R       weight_offset;
    bool    w_wide;

    template <class M> WF_ON_DEVICE void keep(int64_t row, const M &, const Stats<R> &s) const { this->keep_stats(row, s); }

    /* Columns from col on, which stand in y from y_at on. */
    template <int V>
    WF_ON_DEVICE void write_y(int64_t y_at, int64_t col, int valid, const R (&x)[V], const Stats<R> &s) const
    {
        R factor[V], shift[V], y[V];
        if (gamma)
            load_reals(gamma, col, valid, w_wide, factor);
        if (beta)
            load_reals(beta, col, valid, w_wide, shift);
#pragma unroll
        for (int j = 0; j < V; j++) {
            const R f = gamma ? s.rstd * (factor[j] + weight_offset) : s.rstd;
            y[j] = multiply_add((x[j] - s.mean) - s.mean_lo, f, beta ? shift[j] : R(0));
        }
        store_reals<true>(this->y, y_at, valid, this->y_wide, y);
    }
};

/* Everything but x, gamma and beta, and what a variant adds. */
template <class Q> void fill_params(Q &q, const struct layernorm_forward &p)
{
    using R = typename Q::R;
    constexpr int V = vec_of<typename Q::X>;
    q.y = buffer<typename Q::Y>(p.y);
    q.mean = buffer<R>(p.mean), q.mean_lo = buffer<R>(p.mean_lo), q.rstd = buffer<R>(p.rstd);
    q.rows = p.rows, q.cols = p.cols, q.y_stride = p.y_stride;
    q.eps = (R)p.eps, q.weight_offset = (R)p.weight_offset, q.centered = p.centered;
    q.x_wide = row_is_wide<V>(q.x, p.rows, q.x_stride), q.y_wide = row_is_wide<V>(q.y, p.rows, p.y_stride);
    q.w_wide = row_is_wide<V>(q.gamma, 1, 0) && row_is_wide<V>(q.beta, 1, 0);
}

template <class P> void start_segments(const P &p, Run &run)
{
    constexpr int V = vec_of<typename P::X>;
    start_in_segments<V>(p, run, [&](P cut) {
        cut.made();
        start(run, {dim3(grid_for(cut.rows * cut.parts)), dim3(WIDE)}, rows_forward_apply__segments<P, V>, cut);
    });
}

/* The same where x is a sum: layernorm_forward_sum_cuda.cu. G: 8, 32, 128, 256; MOST: 1, CLUSTER_MAX. */
template <int G> void sum_in_registers_launch(const struct layernorm_forward &p, Run &run);
template <int MOST> void sum_in_shared_launch(const struct layernorm_forward &p, Run &run);
void sum_in_segments_launch(const struct layernorm_forward &p, Run &run);

#endif
