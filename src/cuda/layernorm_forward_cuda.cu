/* LayerNorm forward, and without the centring RMSNorm, on CUDA:
 *
 *     y = ((x - mean) - mean_lo) * (rstd * gamma) + beta
 */
#include "rows_forward.cuh"

namespace
{

template <class T, class W> struct Forward : Rows<T> {
    using Weight = W;
    using typename Rows<T>::R;
    dev::global<const W> gamma, beta;
    int64_t              x_stride, y_stride;
    R                    weight_offset;
    bool                 w_wide;

    struct Place {
        int64_t x, y, col;
    };

    WF_ON_DEVICE Place place(int64_t row, int64_t col) const { return {row * x_stride + col, row * y_stride + col, col}; }

    WF_ON_DEVICE int64_t address(const Place &place, int i) const { return place.x + i; }

    template <class M> WF_ON_DEVICE void keep(int64_t row, const M &, const Stats<R> &s) const { this->keep_stats(row, s); }

    template <int V> WF_ON_DEVICE void write(const Place &place, int i, int valid, const R (&x)[V], const Stats<R> &s) const
    {
        R factor[V], shift[V], y[V];
        if (gamma)
            load_reals(gamma, place.col + i, valid, w_wide, factor);
        if (beta)
            load_reals(beta, place.col + i, valid, w_wide, shift);
#pragma unroll
        for (int j = 0; j < V; j++) {
            const R f = gamma ? s.rstd * (factor[j] + weight_offset) : s.rstd;
            y[j] = multiply_add((x[j] - s.mean) - s.mean_lo, f, beta ? shift[j] : R(0));
        }
        store_reals<true>(this->y, place.y + i, valid, this->y_wide, y);
    }
};

/* ---- the variants ------------------------------------------------------------------------------------------------ */

using Problem = struct layernorm_forward;

int64_t row_size(const Problem &p)
{
    return p.cols * (int64_t)wf_dtype_size(p.x_dtype);
}

/* f(params) with everything but what a variant adds. */
template <class F> void with_params(const Problem &p, F f)
{
    with_dtypes((Element)p.x_dtype, (Element)p.w_dtype, [&](auto x, auto w) {
        using T = decltype(x);
        using W = decltype(w);
        using R = real_of<T>;
        constexpr int V = vec_of<T>;
        Forward<T, W> q = {};
        q.x = buffer<const T>(p.x), q.gamma = buffer<const W>(p.gamma), q.beta = buffer<const W>(p.beta);
        q.y = buffer<T>(p.y), q.mean = buffer<R>(p.mean), q.mean_lo = buffer<R>(p.mean_lo), q.rstd = buffer<R>(p.rstd);
        q.rows = p.rows, q.cols = p.cols, q.x_stride = p.x_stride, q.y_stride = p.y_stride;
        q.eps = (R)p.eps, q.weight_offset = (R)p.weight_offset, q.centered = p.centered;
        q.x_wide = row_is_wide<V>(q.x, p.rows, p.x_stride), q.y_wide = row_is_wide<V>(q.y, p.rows, p.y_stride);
        q.w_wide = row_is_wide<V>(q.gamma, 1, 0) && row_is_wide<V>(q.beta, 1, 0);
        if (p.rows > 0)
            f(q);
    });
}

size_t no_workspace(const Problem &) { return 0; }

template <int G, int HELD> bool registers_take(const Problem &p)
{
    return registers_fit<G>(row_size(p), HELD);
}

template <int G, int HELD> void registers_launch(const Problem &p, Run &run)
{
    with_params(p, [&](auto q) { start_in_registers<G, vec_of<typename decltype(q)::X>, HELD>(q, run); });
}

template <int MOST> bool shared_take(const Problem &p)
{
    return shared_fits<MOST>(row_size(p));
}

template <int MOST> void shared_launch(const Problem &p, Run &run)
{
    with_params(p, [&](auto q) { start_in_shared<MOST, vec_of<typename decltype(q)::X>>(q, run); });
}

bool segments_take(const Problem &p)
{
    return segments_of(row_size(p)) > 1;
}

size_t segments_workspace(const Problem &p)
{
    return (size_t)segments_reals(p.rows, row_size(p)) * wf_dtype_size(wf_statistics_dtype(p.x_dtype));
}

void segments_launch(const Problem &p, Run &run)
{
    with_params(p, [&](auto q) {
        using P = decltype(q);
        constexpr int V = vec_of<typename P::X>;
        start_in_segments<V>(q, run, [&](const P &cut) {
            start(run, {dim3(grid_for(cut.rows * cut.parts)), dim3(WIDE)}, rows_forward_apply__segments<P, V>, cut);
        });
    });
}

} // namespace

const Variant<layernorm_forward> layernorm_forward_variants[] = {
    {"four_lanes_one_vector", 0, registers_take<4, 16>, no_workspace, registers_launch<4, 16>},
    {"sub_warp_one_vector", 0, registers_take<8, 16>, no_workspace, registers_launch<8, 16>},
    {"sub_warp_two_vectors", 0, registers_take<8, 32>, no_workspace, registers_launch<8, 32>},
    {"sub_warp_four_vectors", 0, registers_take<8, 64>, no_workspace, registers_launch<8, 64>},
    {"warp_two_vectors", 0, registers_take<32, 32>, no_workspace, registers_launch<32, 32>},
    {"warp_four_vectors", 0, registers_take<32, 64>, no_workspace, registers_launch<32, 64>},
    {"block_of_128_two_vectors", 0, registers_take<128, 32>, no_workspace, registers_launch<128, 32>},
    {"block_of_128_four_vectors", 0, registers_take<128, 64>, no_workspace, registers_launch<128, 64>},
    {"block_of_256_four_vectors", 0, registers_take<256, 64>, no_workspace, registers_launch<256, 64>},
    {"row_in_shared", 0, shared_take<1>, no_workspace, shared_launch<1>},
    {"cluster_per_row", 90, shared_take<CLUSTER_MAX>, no_workspace, shared_launch<CLUSTER_MAX>},
    {"segments", 0, segments_take, segments_workspace, segments_launch},
    {},
};
