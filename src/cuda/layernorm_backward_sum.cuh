/* LayerNorm and RMSNorm backward where x was a sum, on CUDA. With g the gradient of the norm:
 *
 *     dresidual = g + dsum,   dx = dresidual * col_scale * row_scale * keep
 *
 * Given is the sum, or y, of which xhat = (y - beta) / gamma. */
#ifndef WELFORD_CUDA_LAYERNORM_BACKWARD_SUM_CUH
#define WELFORD_CUDA_LAYERNORM_BACKWARD_SUM_CUH

#include "addition.cuh"
#include "common/invertible.h"
#include "layernorm_backward.cuh"

namespace
{

/* X: what is given; T: dy, dx; A: dsum, dresidual. */
template <class T, class A, class X> struct BackwardSum : Backward<T, X, Parameter<T>> {
    using typename Backward<T, X, Parameter<T>>::R;
    static constexpr bool PLAIN = false, LAST = false;
    static constexpr int  PIECE = vec_of<A>;
    dev::global<const A>  dsum;
    dev::global<A>        dresidual;
    int64_t               dsum_stride, dresidual_stride;
    bool                  dsum_wide, dresidual_wide;
    Addition<T>           add;

    struct Source : Random {
        explicit WF_ON_DEVICE Source(const BackwardSum &p) : Random(p.add.decision) {}
    };
    template <int V> struct Beside {
        dev::vec<A, PIECE> dsum[V / PIECE];
        unsigned           kept;
    };

    template <int V> WF_ON_DEVICE Beside<V> beside(const Random &random, int64_t row, int64_t col, int valid) const
    {
        Beside<V> b;
        b.kept = this->dx ? add.template kept<V>(random, row, col, valid) : 0;
#pragma unroll
        for (int i = 0; i < V / PIECE; i++)
            b.dsum[i] = load_packed<true, PIECE>(dsum, row * dsum_stride + col + i * PIECE,
                                                 dsum ? valid_in(i * PIECE, valid, PIECE) : 0, dsum_wide);
        return b;
    }

    /* dx is of dresidual as stored, whether it is or not. */
    template <int V>
    WF_ON_DEVICE void put_dx(int64_t row, int64_t col, int valid, const R (&g)[V], const Beside<V> &b) const
    {
        R d[V];
#pragma unroll
        for (int j = 0; j < V; j++)
            d[j] = up(down<A>(dsum ? g[j] + up(b.dsum[j / PIECE].v[j % PIECE]) : g[j]));
        if (dresidual)
            store_reals<true>(dresidual, row * dresidual_stride + col, valid, dresidual_wide, d);
        if (!this->dx)
            return;
        add.times_col(col, valid, d);
        add.times_row(row, d);
        add.times_keep(b.kept, d);
        store_reals<true>(this->dx, row * this->dx_stride + col, valid, this->dx_wide, d);
    }
};

template <class T> WF_ON_DEVICE wf_rounding rounding_of()
{
    return std::is_same_v<T, double>          ? wf_rounding{WF_F64_ROUNDING}
           : std::is_same_v<T, float>         ? wf_rounding{WF_F32_ROUNDING}
           : std::is_same_v<T, __nv_bfloat16> ? wf_rounding{WF_BF16_ROUNDING}
                                              : wf_rounding{WF_F16_ROUNDING};
}

template <class T, class A> struct BackwardOutput : BackwardSum<T, A, T> {
    using typename BackwardSum<T, A, T>::R;
    static constexpr bool LAST = true;
    Parameter<T> beta;
    bool         beta_wide;

    template <int V> struct Addend {
        R beta[V];
    };

    template <int V> WF_ON_DEVICE Addend<V> addend(int64_t col, int valid) const
    {
        Addend<V> of = {};
        if (beta)
            load_reals(beta, col, valid, beta_wide, of.beta);
        return of;
    }

    /* Where there are no columns y is 0, and is to stay that. */
    template <int V> static WF_ON_DEVICE void prepare(const Addend<V> &of, int valid, R (&gamma)[V])
    {
#pragma unroll
        for (int j = 0; j < V; j++)
            gamma[j] = j >= valid ? R(1) : wf_invertible(gamma[j], of.beta[j], rounding_of<T>()) ? gamma[j] : R(NAN);
    }

    template <int V> static WF_ON_DEVICE R normalized(R y, const Stats<R> &, R gamma, const Addend<V> &of, int j)
    {
        return (y - of.beta[j]) / gamma;
    }
    template <int V> static WF_ON_DEVICE R product(R, R dy, R y, const Stats<R> &, const Addend<V> &of, int j)
    {
        return dy * (y - of.beta[j]);
    }
};

/* ---- launches ---------------------------------------------------------------------------------------------------- */

using Problem = struct layernorm_backward;

template <class T, class A> BackwardSum<T, A, A> params_of(std::integral_constant<Given, Given::SUM>, const Problem &)
{
    return {};
}

template <class T, class A> BackwardOutput<T, A> params_of(std::integral_constant<Given, Given::OUTPUT>, const Problem &p)
{
    BackwardOutput<T, A> q = {};
    q.beta = parameter<T>(p.beta, p.w_dtype);
    q.beta_wide = row_is_wide<vec_of<T>>(q.beta, 1, 0);
    return q;
}

/* f(params) with everything but what a variant adds. */
template <Given GIVEN, class F> void with_params(const Problem &p, const Run &run, const Runs &runs, F f)
{
    with_sum_dtypes((Element)p.x_dtype, (Element)p.add.dtype, [&](auto x, auto sum) {
        using T = decltype(x);
        using A = decltype(sum);
        constexpr int V = vec_of<T>;
        auto q = params_of<T, A>(std::integral_constant<Given, GIVEN>(), p);
        q.gamma = parameter<T>(p.gamma, p.w_dtype);
        q.dsum = buffer<const A>(p.add.dsum), q.dsum_stride = p.add.sum_stride;
        q.dresidual = buffer<A>(p.add.dresidual), q.dresidual_stride = p.add.residual_stride;
        q.dsum_wide = row_is_wide<V>(q.dsum, p.rows, q.dsum_stride);
        q.dresidual_wide = row_is_wide<V>(q.dresidual, p.rows, q.dresidual_stride);
        q.add = addition_of<T, V>(p);
        fill_params(q, p, run, runs);
        f(q);
    });
}

} // namespace

template <Given GIVEN, int G, int VECTORS>
void sum_in_registers_launch(const Problem &p, const Runs &runs, Run &run)
{
    with_params<GIVEN>(p, run, runs, [&](auto q) { start_in_registers<G, VECTORS>(q, runs, run); });
}

template <Given GIVEN> void sum_in_cluster_launch(const Problem &p, unsigned cluster, const Runs &runs, Run &run)
{
    with_params<GIVEN>(p, run, runs, [&](auto q) { start_in_cluster(q, cluster, runs, run); });
}

template <Given GIVEN> void sum_in_segments_launch(const Problem &p, const Runs &runs, Run &run)
{
    with_params<GIVEN>(p, run, runs, [&](auto q) { start_in_segments(q, runs, run); });
}

#define SUM_LAUNCHES(given)                                                                                            \
    template void sum_in_registers_launch<given, 8, 1>(const Problem &, const Runs &, Run &);                          \
    template void sum_in_registers_launch<given, 32, 1>(const Problem &, const Runs &, Run &);                         \
    template void sum_in_registers_launch<given, 128, 1>(const Problem &, const Runs &, Run &);                        \
    template void sum_in_registers_launch<given, 256, 1>(const Problem &, const Runs &, Run &);                        \
    template void sum_in_registers_launch<given, WIDE, 2>(const Problem &, const Runs &, Run &);                       \
    template void sum_in_cluster_launch<given>(const Problem &, unsigned, const Runs &, Run &);                        \
    template void sum_in_segments_launch<given>(const Problem &, const Runs &, Run &);

#endif
