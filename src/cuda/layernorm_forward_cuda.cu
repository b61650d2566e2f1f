/* LayerNorm and RMSNorm forward on CUDA: rows of x as they are in memory, and which variant takes which rows. */
#include "layernorm_forward.cuh"

namespace
{

template <class T, class W> struct Forward : Normalized<T, T, dev::global<const W>> {
    using Y = T;
    using typename Rows<T>::R;

    struct Place {
        int64_t x, y, col;
    };

    WF_ON_DEVICE Place place(int64_t row, int64_t col) const
    {
        return {row * this->x_stride + col, row * this->y_stride + col, col};
    }

    WF_ON_DEVICE int64_t address(const Place &place, int i) const { return place.x + i; }

    template <int V> WF_ON_DEVICE void write(const Place &place, int i, int valid, const R (&x)[V], const Stats<R> &s) const
    {
        this->write_y(place.y + i, place.col + i, valid, x, s);
    }

    void made() {}
};

/* ---- the variants ------------------------------------------------------------------------------------------------ */

using Problem = struct layernorm_forward;

/* Of what is held on chip. */
int64_t row_size(const Problem &p)
{
    return p.cols * (int64_t)wf_dtype_size(p.add.present ? p.add.dtype : p.x_dtype);
}

/* f(params) with everything but what a variant adds. */
template <class F> void with_params(const Problem &p, F f)
{
    with_dtypes((Element)p.x_dtype, (Element)p.w_dtype, [&](auto x, auto w) {
        using T = decltype(x);
        using W = decltype(w);
        Forward<T, W> q = {};
        q.x = buffer<const T>(p.x), q.gamma = buffer<const W>(p.gamma), q.beta = buffer<const W>(p.beta);
        q.x_stride = p.x_stride;
        fill_params(q, p);
        if (p.rows > 0)
            f(q);
    });
}

size_t no_workspace(const Problem &) { return 0; }

/* Sums have the steps of the ladder that hold most: as the others, those reach down to where the step before ends. */
template <int G, int HELD> bool registers_take(const Problem &p)
{
    return !p.quantize.kind && registers_fit<G>(row_size(p), HELD) && (HELD == HELD_SIZE || !p.add.present);
}

template <int G, int HELD> void registers_launch(const Problem &p, Run &run)
{
    if constexpr (HELD == HELD_SIZE)
        if (p.add.present)
            return sum_in_registers_launch<G>(p, run);
    with_params(p, [&](auto q) { start_in_registers<G, vec_of<typename decltype(q)::X>, HELD>(q, run); });
}

template <int MOST> bool shared_take(const Problem &p)
{
    return !p.quantize.kind && shared_fits<MOST>(row_size(p));
}

template <int MOST> void shared_launch(const Problem &p, Run &run)
{
    if (p.add.present)
        return sum_in_shared_launch<MOST>(p, run);
    with_params(p, [&](auto q) { start_in_shared<MOST, vec_of<typename decltype(q)::X>>(q, run); });
}

bool segments_take(const Problem &p)
{
    return !p.quantize.kind && segments_of(row_size(p)) > 1;
}

size_t segments_workspace(const Problem &p)
{
    return (size_t)segments_reals(p.rows, row_size(p)) * wf_dtype_size(wf_statistics_dtype(p.x_dtype));
}

void segments_launch(const Problem &p, Run &run)
{
    if (p.add.present)
        return sum_in_segments_launch(p, run);
    with_params(p, [&](auto q) { start_segments(q, run); });
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
