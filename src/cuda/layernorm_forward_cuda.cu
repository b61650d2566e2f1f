/* LayerNorm and RMSNorm forward on CUDA: rows of x as they are in memory, and which variant takes which rows. */
#include "layernorm_forward.cuh"

namespace
{

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
        Forward<T, T, dev::global<const W>> q = {};
        q.x = buffer<const T>(p.x), q.gamma = buffer<const W>(p.gamma), q.beta = buffer<const W>(p.beta);
        q.x_stride = p.x_stride;
        fill_params(q, p);
        if (p.rows > 0)
            f(q);
    });
}

/* f(whether x is a sum), as a constant. */
template <class F> void with_addition(const Problem &p, F f)
{
    if (p.add.present)
        f(std::true_type());
    else
        f(std::false_type());
}

size_t no_workspace(const Problem &) { return 0; }

/* Sums and bytes have the steps of the ladder that hold most: as the others, those reach down to where the step before ends. */
template <int G, int HELD> bool registers_take(const Problem &p)
{
    return registers_fit<G>(row_size(p), HELD) && (HELD == HELD_SIZE || !(p.add.present || p.quantize.kind));
}

template <int G, int HELD> void registers_launch(const Problem &p, Run &run)
{
    if constexpr (HELD == HELD_SIZE) {
        if (p.quantize.kind)
            return with_addition(p, [&](auto sum) { quantized_in_registers_launch<sum.value, G>(p, run); });
        if (p.add.present)
            return sum_in_registers_launch<G>(p, run);
    }
    with_params(p, [&](auto q) { start_in_registers<G, vec_of<typename decltype(q)::X>, HELD>(q, run); });
}

template <int MOST> bool shared_take(const Problem &p)
{
    return shared_fits<MOST>(row_size(p));
}

template <int MOST> void shared_launch(const Problem &p, Run &run)
{
    if (p.quantize.kind)
        return with_addition(p, [&](auto sum) { quantized_in_shared_launch<sum.value, MOST>(p, run); });
    if (p.add.present)
        return sum_in_shared_launch<MOST>(p, run);
    with_params(p, [&](auto q) { start_in_shared<MOST, vec_of<typename decltype(q)::X>>(q, run); });
}

bool segments_take(const Problem &p)
{
    return segments_of(row_size(p)) > 1;
}

size_t segments_workspace(const Problem &p)
{
    const size_t reals = (size_t)segments_reals(p.rows, row_size(p)) * wf_dtype_size(wf_statistics_dtype(p.x_dtype));
    return reals + (p.quantize.kind == WF_INT8 ? (size_t)p.rows * sizeof(float) : 0);
}

void segments_launch(const Problem &p, Run &run)
{
    if (p.quantize.kind)
        return with_addition(p, [&](auto sum) { quantized_in_segments_launch<sum.value>(p, run); });
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
