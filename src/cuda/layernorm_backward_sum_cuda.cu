/* LayerNorm and RMSNorm backward where x was a sum, on CUDA. With g the gradient of the norm:
 *
 *     dresidual = g + dsum,   dx = dresidual * col_scale * row_scale * keep
 */
#include "addition.cuh"
#include "layernorm_backward.cuh"

namespace
{

template <class T, class A> struct BackwardSum : Backward<T, A, Parameter<T>> {
    using typename Backward<T, A, Parameter<T>>::R;
    static constexpr bool PLAIN = false;
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

/* ---- launches ---------------------------------------------------------------------------------------------------- */

using Problem = struct layernorm_backward;

/* f(params) with everything but what a variant adds. */
template <class F> void with_params(const Problem &p, const Run &run, const Runs &runs, F f)
{
    with_sum_dtypes((Element)p.x_dtype, (Element)p.add.dtype, [&](auto x, auto sum) {
        using T = decltype(x);
        using A = decltype(sum);
        constexpr int V = vec_of<T>;
        BackwardSum<T, A> q = {};
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

template <int G, int VECTORS> void sum_in_registers_launch(const Problem &p, const Runs &runs, Run &run)
{
    with_params(p, run, runs, [&](auto q) { start_in_registers<G, VECTORS>(q, runs, run); });
}

void sum_in_cluster_launch(const Problem &p, unsigned cluster, const Runs &runs, Run &run)
{
    with_params(p, run, runs, [&](auto q) { start_in_cluster(q, cluster, runs, run); });
}

void sum_in_segments_launch(const Problem &p, const Runs &runs, Run &run)
{
    with_params(p, run, runs, [&](auto q) { start_in_segments(q, runs, run); });
}

template void sum_in_registers_launch<8, 1>(const Problem &, const Runs &, Run &);
template void sum_in_registers_launch<32, 1>(const Problem &, const Runs &, Run &);
template void sum_in_registers_launch<128, 1>(const Problem &, const Runs &, Run &);
template void sum_in_registers_launch<256, 1>(const Problem &, const Runs &, Run &);
template void sum_in_registers_launch<WIDE, 2>(const Problem &, const Runs &, Run &);
