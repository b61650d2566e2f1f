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

    /* Columns from col on. */
    template <int V> WF_ON_DEVICE void y_of(int64_t col, int valid, const R (&x)[V], const Stats<R> &s, R (&y)[V]) const
    {
        R factor[V], shift[V];
        if (gamma)
            load_reals(gamma, col, valid, w_wide, factor);
        if (beta)
            load_reals(beta, col, valid, w_wide, shift);
#pragma unroll
        for (int j = 0; j < V; j++) {
            const R f = gamma ? s.rstd * (factor[j] + weight_offset) : s.rstd;
            y[j] = multiply_add((x[j] - s.mean) - s.mean_lo, f, beta ? shift[j] : R(0));
        }
    }

    /* They stand in y from y_at on. */
    template <int V>
    WF_ON_DEVICE void write_y(int64_t y_at, int64_t col, int valid, const R (&x)[V], const Stats<R> &s) const
    {
        R y[V];
        y_of(col, valid, x, s, y);
        store_reals<true>(this->y, y_at, valid, this->y_wide, y);
    }
};

/* Rows of x as they are in memory; y of Stored. */
template <class T, class Stored, class Gamma> struct Forward : Normalized<T, Stored, Gamma> {
    using Y = Stored;
    using typename Rows<T, Y>::R;

    struct Place {
        int64_t x, y, col;
    };

    WF_ON_DEVICE Place place(int64_t row, int64_t col) const
    {
        return {row * this->x_stride + col, row * this->y_stride + col, col};
    }

    WF_ON_DEVICE int64_t address(const Place &place, int i) const { return place.x + i; }
    WF_ON_DEVICE int64_t y_address(const Place &place, int i) const { return place.y + i; }
    WF_ON_DEVICE int64_t col(const Place &place, int i) const { return place.col + i; }

    template <bool Stream, int V> WF_ON_DEVICE void put_x(const Place &, int, int, const R (&)[V]) const {}

    template <int V> WF_ON_DEVICE void write(const Place &place, int i, int valid, const R (&x)[V], const Stats<R> &s) const
    {
        this->write_y(y_address(place, i), col(place, i), valid, x, s);
    }

    void made() {}
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

template <class P> void start_each_segment(const P &p, Run &run, void (*kernel)(P))
{
    start(run, {dim3(grid_for(p.rows * p.parts)), dim3(WIDE)}, kernel, p);
}

/* between(params) may launch what needs the statistics before y is made. */
template <class P, class F> void start_segments(const P &p, Run &run, F between)
{
    constexpr int V = vec_of<typename P::X>;
    start_in_segments<V>(p, run, [&](P cut) {
        cut.made();
        between(cut);
        start_each_segment(cut, run, rows_forward_apply__segments<P, V>);
    });
}

template <class P> void start_segments(const P &p, Run &run)
{
    start_segments(p, run, [](const P &) {});
}

/* The same where x is a sum: layernorm_forward_sum_cuda.cu. G: 8, 32, 128, 256; MOST: 1, CLUSTER_MAX. */
template <int G> void sum_in_registers_launch(const struct layernorm_forward &p, Run &run);
template <int MOST> void sum_in_shared_launch(const struct layernorm_forward &p, Run &run);
void sum_in_segments_launch(const struct layernorm_forward &p, Run &run);

/* And where y is in bytes, of a sum or not: layernorm_forward_quantized_cuda.cu, layernorm_forward_sum_quantized_cuda.cu. */
template <bool SUM, int G> void quantized_in_registers_launch(const struct layernorm_forward &p, Run &run);
template <bool SUM, int MOST> void quantized_in_shared_launch(const struct layernorm_forward &p, Run &run);
template <bool SUM> void quantized_in_segments_launch(const struct layernorm_forward &p, Run &run);

#endif
