/* LayerNorm and RMSNorm forward of a sum, on CUDA. */
#include "layernorm_forward_sum.cuh"

namespace
{

using Problem = struct layernorm_forward;

/* f(params) with everything but what a variant adds. */
template <class F> void with_params(const Problem &p, F f)
{
    with_sum_dtypes((Element)p.x_dtype, (Element)p.add.dtype, [&](auto x, auto sum) {
        ForwardSum<decltype(x), decltype(sum), decltype(x)> q = {};
        fill_sum_params(q, p);
        if (p.rows > 0)
            f(q);
    });
}

} // namespace

template <int G> void sum_in_registers_launch(const Problem &p, Run &run)
{
    with_params(p, [&](auto q) { start_in_registers<G, vec_of<typename decltype(q)::X>>(q, run); });
}

template <int MOST> void sum_in_shared_launch(const Problem &p, Run &run)
{
    with_params(p, [&](auto q) { start_in_shared<MOST, vec_of<typename decltype(q)::X>>(q, run); });
}

void sum_in_segments_launch(const Problem &p, Run &run)
{
    with_params(p, [&](auto q) {
        q.sum = buffer<typename decltype(q)::X>(p.add.sum ? p.add.sum : p.y);
        start_segments(q, run);
    });
}

template void sum_in_registers_launch<8>(const Problem &, Run &);
template void sum_in_registers_launch<32>(const Problem &, Run &);
template void sum_in_registers_launch<128>(const Problem &, Run &);
template void sum_in_registers_launch<256>(const Problem &, Run &);
template void sum_in_shared_launch<1>(const Problem &, Run &);
template void sum_in_shared_launch<CLUSTER_MAX>(const Problem &, Run &);
