/* LayerNorm and RMSNorm backward on CUDA: dx as it is, the partial rows, and which variant takes which rows. */
#include "layernorm_backward.cuh"

namespace
{

template <class T, class W> struct Plain : Backward<T, T, dev::global<const W>> {
    using typename Backward<T, T, dev::global<const W>>::R;
    static constexpr bool PLAIN = true, LAST = false;
    struct Source {
        explicit WF_ON_DEVICE Source(const Plain &) {}
    };
    template <int V> struct Beside {
    };

    template <int V> WF_ON_DEVICE Beside<V> beside(const Source &, int64_t, int64_t, int) const { return {}; }

    template <int V>
    WF_ON_DEVICE void put_dx(int64_t row, int64_t col, int valid, const R (&dx)[V], const Beside<V> &) const
    {
        store_reals<true>(this->dx, row * this->dx_stride + col, valid, this->dx_wide, dx);
    }
};

/* ---- partial rows to dgamma and dbeta ---------------------------------------------------------------------------- */

template <class R, class W>
__global__ void __launch_bounds__(FINISH_THREADS) layernorm_backward_parameters__finish(Finish<R, W> p)
{
    using Sums = dev::vec<R, vec_of<R>>;
    WF_SHARED(Sums, sums, FINISH_THREADS);
    finish_columns(p, blockIdx.x, sums, [](int64_t, R) {});
}

/* ---- the variants ------------------------------------------------------------------------------------------------ */

using Problem = struct layernorm_backward;

enum { VECTORS_SIZE = 16 * WIDE }; /* bytes of x that WIDE threads hold in a vector each */

int64_t row_size(const Problem &p) { return p.cols * (int64_t)wf_dtype_size(p.x_dtype); }

size_t partial_workspace(const Problem &p, const Runs &runs)
{
    return (size_t)(runs.count * 2 * p.cols) * wf_dtype_size(wf_statistics_dtype(p.x_dtype));
}

/* f(params) with everything but what a variant adds. */
template <class F> void with_params(const Problem &p, const Run &run, const Runs &runs, F f)
{
    with_dtypes((Element)p.x_dtype, (Element)p.w_dtype, [&](auto x, auto w) {
        Plain<decltype(x), decltype(w)> q = {};
        q.gamma = buffer<const decltype(w)>(p.gamma);
        fill_params(q, p, run, runs);
        f(q);
    });
}

/* launch(), where there are rows, and what it leaves in partial rows. */
template <class F> void run_and_finish(const Problem &p, Run &run, const Runs &runs, F launch)
{
    if (p.cols == 0)
        return;
    if (p.rows > 0)
        launch();
    with_dtypes((Element)p.x_dtype, (Element)p.w_dtype, [&](auto x, auto w) {
        using R = real_of<decltype(x)>;
        using W = decltype(w);
        const auto finish = finish_of(buffer<const R>(run.workspace), buffer<W>(p.dgamma), buffer<W>(p.dbeta), runs.count,
                                      p.cols, p.accumulate);
        if (p.dgamma || p.dbeta || run.load_only)
            start(run, {dim3((unsigned)finish.blocks), dim3(FINISH_THREADS)}, layernorm_backward_parameters__finish<R, W>,
                  finish);
    });
}

/* f(what a sum's backward pass is given), as a constant. */
template <class F> void with_given(const Problem &p, F f)
{
    if (p.from_output)
        f(std::integral_constant<Given, Given::OUTPUT>());
    else
        f(std::integral_constant<Given, Given::SUM>());
}

/* What the next step of the ladder does with the same bits is not compiled for sums. */
template <int G, int VECTORS> constexpr bool for_sums = G < WIDE || VECTORS == 2;

/* Not for rows so short that most threads would be idle: their partial rows would be many. */
template <int G, int VECTORS> bool registers_take(const Problem &p)
{
    return row_size(p) <= G * VECTORS * 16 && (G <= 32 || row_size(p) > G * VECTORS * 4) &&
           (for_sums<G, VECTORS> || !p.add.present);
}

template <int G> Runs registers_runs(const Problem &p) { return runs_for(p, block_of<G> / G, 1); }

template <int G> size_t registers_workspace(const Problem &p) { return partial_workspace(p, registers_runs<G>(p)); }

template <int G, int VECTORS> void registers_launch(const Problem &p, Run &run)
{
    const Runs runs = registers_runs<G>(p);
    run_and_finish(p, run, runs, [&] {
        if constexpr (for_sums<G, VECTORS>)
            if (p.add.present)
                return with_given(p, [&](auto given) { sum_in_registers_launch<given.value, G, VECTORS>(p, runs, run); });
        with_params(p, run, runs, [&](auto q) { start_in_registers<G, VECTORS>(q, runs, run); });
    });
}

enum { CLUSTER_SLICE = 2 * 16 * CLUSTER_BLOCK }; /* bytes of x in a block */

/* Blocks that share a row. */
int64_t cluster_for(const Problem &p)
{
    int64_t size = 1;
    while (size < CLUSTER_MAX && row_size(p) > size * CLUSTER_SLICE)
        size *= 2;
    return size;
}

bool cluster_takes(const Problem &p)
{
    return row_size(p) > CLUSTER_SLICE && row_size(p) <= CLUSTER_SLICE * CLUSTER_MAX;
}

size_t cluster_workspace(const Problem &p) { return partial_workspace(p, runs_for(p, 1, cluster_for(p))); }

void cluster_launch(const Problem &p, Run &run)
{
    const unsigned cluster = (unsigned)cluster_for(p);
    const Runs runs = runs_for(p, 1, cluster);
    run_and_finish(p, run, runs, [&] {
        if (p.add.present)
            return with_given(p, [&](auto given) { sum_in_cluster_launch<given.value>(p, cluster, runs, run); });
        with_params(p, run, runs, [&](auto q) { start_in_cluster(q, cluster, runs, run); });
    });
}

int64_t segments_of(const Problem &p) { return ceil_div(row_size(p), VECTORS_SIZE); }

bool segments_take(const Problem &p) { return segments_of(p) > 1; }

Runs segments_runs(const Problem &p) { return runs_for(p, 1, segments_of(p)); }

size_t segments_workspace(const Problem &p)
{
    return partial_workspace(p, segments_runs(p)) +
           (size_t)(p.rows * (segments_of(p) + 1) * 2) * wf_dtype_size(wf_statistics_dtype(p.x_dtype));
}

void segments_launch(const Problem &p, Run &run)
{
    const Runs runs = segments_runs(p);
    run_and_finish(p, run, runs, [&] {
        if (p.add.present)
            return with_given(p, [&](auto given) { sum_in_segments_launch<given.value>(p, runs, run); });
        with_params(p, run, runs, [&](auto q) { start_in_segments(q, runs, run); });
    });
}

} // namespace

/* How wide a row is decides alone, so that a row of dx has the same bits in every batch. */
const Variant<layernorm_backward> layernorm_backward_variants[] = {
    {"sub_warp_per_row", 0, registers_take<8, 1>, registers_workspace<8>, registers_launch<8, 1>},
    {"warp_per_row", 0, registers_take<32, 1>, registers_workspace<32>, registers_launch<32, 1>},
    {"block_of_128_per_row", 0, registers_take<128, 1>, registers_workspace<128>, registers_launch<128, 1>},
    {"block_of_256_per_row", 0, registers_take<256, 1>, registers_workspace<256>, registers_launch<256, 1>},
    {"block_of_512_per_row", 0, registers_take<WIDE, 1>, registers_workspace<WIDE>, registers_launch<WIDE, 1>},
    {"block_of_512_two_vectors", 0, registers_take<WIDE, 2>, registers_workspace<WIDE>, registers_launch<WIDE, 2>},
    {"cluster_per_row", 90, cluster_takes, cluster_workspace, cluster_launch},
    {"segments", 0, segments_take, segments_workspace, segments_launch},
    {},
};
