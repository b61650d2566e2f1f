/* LayerNorm and RMSNorm forward with y in bytes, on CUDA: the launches. */
#ifndef WELFORD_CUDA_LAYERNORM_FORWARD_QUANTIZED_CUH
#define WELFORD_CUDA_LAYERNORM_FORWARD_QUANTIZED_CUH

#include "layernorm_forward_sum.cuh"
#include "quantize.cuh"

namespace
{

using Problem = struct layernorm_forward;

/* f(params) with everything but what a variant adds. */
template <bool SUM, class F> void with_params(const Problem &p, F f)
{
    const auto finish = [&](auto &q) {
        fill_quantization(q, p);
        if (p.rows > 0)
            f(q);
    };
    if constexpr (SUM)
        with_sum_dtypes((Element)p.x_dtype, (Element)p.add.dtype, [&](auto x, auto sum) {
            Quantized<ForwardSum<decltype(x), decltype(sum), uint8_t>> q = {};
            fill_sum_params(q, p);
            finish(q);
        });
    else
        with_dtypes((Element)p.x_dtype, Element::F32, [&](auto x, auto) {
            using T = decltype(x);
            Quantized<Forward<T, uint8_t, Parameter<T>>> q = {};
            q.x = buffer<const T>(p.x), q.x_stride = p.x_stride;
            q.gamma = parameter<T>(p.gamma, p.w_dtype), q.beta = parameter<T>(p.beta, p.w_dtype);
            fill_params(q, p);
            finish(q);
        });
}

} // namespace

template <bool SUM, int G> void quantized_in_registers_launch(const Problem &p, Run &run)
{
    with_params<SUM>(p, [&](auto q) { start_in_registers<G, vec_of<typename decltype(q)::X>>(q, run); });
}

template <bool SUM, int MOST> void quantized_in_shared_launch(const Problem &p, Run &run)
{
    with_params<SUM>(p, [&](auto q) { start_in_shared<MOST, vec_of<typename decltype(q)::X>>(q, run); });
}

template <bool SUM> void quantized_in_segments_launch(const Problem &p, Run &run)
{
    with_params<SUM>(p, [&](auto q) {
        using P = decltype(q);
        using X = typename P::X;
        if (q.kind == WF_INT8) {
            const int64_t reals = segments_reals(p.rows, p.cols * (int64_t)sizeof(X));
            q.largest = buffer<float>(run.workspace + reals * (int64_t)sizeof(typename P::R));
        }
        start_segments(q, run, [&](const P &cut) {
            if (q.kind == WF_INT8)
                start_each_segment(cut, run, rows_forward_largest__segments<P, vec_of<X>>);
        });
    });
}

#define QUANTIZED_LAUNCHES(sum)                                                                                        \
    template void quantized_in_registers_launch<sum, 8>(const Problem &, Run &);                                       \
    template void quantized_in_registers_launch<sum, 32>(const Problem &, Run &);                                      \
    template void quantized_in_registers_launch<sum, 128>(const Problem &, Run &);                                     \
    template void quantized_in_registers_launch<sum, 256>(const Problem &, Run &);                                     \
    template void quantized_in_shared_launch<sum, 1>(const Problem &, Run &);                                          \
    template void quantized_in_shared_launch<sum, CLUSTER_MAX>(const Problem &, Run &);                                \
    template void quantized_in_segments_launch<sum>(const Problem &, Run &);

#endif
