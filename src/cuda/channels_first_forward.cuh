/* The channel norms' forward pass where x is [n, c, hw]. Sets are rows of rows_forward.cuh. Where they are read twice the second
 * time is one sweep through the tensor, whatever the sets: so is all of inference. */
#ifndef WELFORD_CUDA_CHANNELS_FIRST_FORWARD_CUH
#define WELFORD_CUDA_CHANNELS_FIRST_FORWARD_CUH

#include "channelnorm_forward.cuh"

namespace channels_first
{

template <class R> struct Affine {
    R factor, shift;
};

template <class T, bool ENDS = false> struct Forward : Sets<T> {
    using typename Sets<T>::R;
    static constexpr int SHARED_BLOCKS = sizeof(T) == 4 ? 2 : 1;
    Lines           lines;
    bool            one_channel; /* a set has but one */
    Ending<T, ENDS> ending;

    struct Place : Lines::Place {
        R gamma, beta; /* where a set has one channel */
    };

    WF_ON_DEVICE Place place(int64_t set, int64_t begin) const
    {
        Place place = {lines.place(set, begin), 1, 0};
        if (one_channel) {
            const auto pair = ending.pair(lines.pair(place, 0));
            place.gamma = ending.factor(this->gamma, place.channel, pair);
            place.beta = ending.shifted(this->beta, place.channel, pair);
        }
        return place;
    }

    WF_ON_DEVICE int64_t address(const Place &place, int i) const { return lines.at(place, i); }

    template <int V> WF_ON_DEVICE void write(const Place &place, int i, int valid, const R (&x)[V], const Stats<R> &s) const
    {
        const auto fetched = ending.template fetch<V>(address(place, i), valid);
        R          y[V];
        const auto apply = [&](int j, const Affine<R> &a) {
            y[j] = multiply_add((x[j] - s.mean) - s.mean_lo, a.factor, a.shift);
        };
        if (one_channel) {
            const Affine<R> a = {s.rstd * place.gamma, place.beta};
#pragma unroll
            for (int j = 0; j < V; j++)
                apply(j, a);
        } else {
            const int64_t channel = lines.channel(place, i), pair = lines.pair(place, i);
            const auto    of = [&](int k) {
                const auto of_pair = ending.pair(pair + k);
                return Affine<R>{s.rstd * ending.factor(this->gamma, channel + k, of_pair),
                                 ending.shifted(this->beta, channel + k, of_pair)};
            };
            along_lines<V>(lines.hw, lines.left(place, i, V), valid, of, apply);
        }
        ending.apply(fetched, y);
        store_reals<true>(this->y, address(place, i), valid, this->y_wide, y);
    }
};

/* ---- one sweep through the tensor ------------------------------------------------------------------------------- */

enum { SWEEP_THREADS = 256, SWEEP_VECTORS = 4 };

template <class T> constexpr int64_t chunk_of = SWEEP_THREADS * SWEEP_VECTORS * vec_of<T>;

template <class T, bool ENDS> struct Sweep {
    using R = real_of<T>;
    Sets<T>         sets;
    int64_t         count, c;
    Lines           lines; /* all of them, as one set */
    Divisor         by_c, by_group_channels;
    bool            across_batch, known, wide;
    Ending<T, ENDS> ending;

    struct Coefficients {
        R mean, mean_lo, factor, shift;
    };

    WF_ON_DEVICE R known_rstd(int64_t channel) const
    {
        const moments_of<R> m = {0, 0, dev::load(sets.running_var_in, channel), 0};
        return moments_rstd(m, 1, sets.eps);
    }

    WF_ON_DEVICE Coefficients coefficients(int64_t line) const
    {
        const int64_t channel = by_c.remainder(line);
        Stats<R>      s;
        if (known)
            s = {dev::load(sets.running_mean_in, channel), 0, known_rstd(channel)};
        else
            s = load_stats(sets.stats, across_batch ? channel : by_group_channels.quotient(line));
        const auto pair = ending.pair(line);
        return {s.mean, s.mean_lo, s.rstd * ending.factor(sets.gamma, channel, pair), ending.shifted(sets.beta, channel, pair)};
    }
};

/* A block per chunk, the last first: L2 has the latest. */
template <class T, bool ENDS>
__global__ void __launch_bounds__(SWEEP_THREADS, 2) channels_first_forward_apply__sweep(Sweep<T, ENDS> p)
{
    using R = real_of<T>;
    constexpr int V = vec_of<T>;
    const int64_t chunks = ceil_div(p.count, chunk_of<T>);
    for (int64_t left = chunks - blockIdx.x; left > 0; left -= gridDim.x) {
        const int64_t  begin = (left - 1) * chunk_of<T>;
        const int      n = (int)smallest(p.count - begin, chunk_of<T>);
        const auto     place = p.lines.place(0, begin);
        dev::vec<T, V> packed[SWEEP_VECTORS];
        typename Ending<T, ENDS>::template Fetched<V> fetched[SWEEP_VECTORS];
#pragma unroll
        for (int k = 0; k < SWEEP_VECTORS; k++) {
            const int i = (k * SWEEP_THREADS + threadIdx.x) * V, valid = valid_in(i, n, V);
            packed[k] = load_packed<true, V>(p.sets.x, begin + i, valid, p.wide);
            fetched[k] = p.ending.template fetch<V>(begin + i, valid);
        }
#pragma unroll
        for (int k = 0; k < SWEEP_VECTORS; k++) {
            const int i = (k * SWEEP_THREADS + threadIdx.x) * V, valid = valid_in(i, n, V);
            if (valid == 0)
                continue;
            const int64_t line = p.lines.channel(place, i);
            R             x[V], y[V];
            unpack(packed[k], x);
            along_lines<V>(
                p.lines.hw, p.lines.left(place, i, V), valid, [&](int below) { return p.coefficients(line + below); },
                [&](int j, const auto &a) { y[j] = multiply_add((x[j] - a.mean) - a.mean_lo, a.factor, a.shift); });
            p.ending.apply(fetched[k], y);
            store_reals<true>(p.sets.y, begin + i, valid, p.wide, y);
        }
    }
    if (p.known && p.sets.rstd)
        for (int64_t i = (int64_t)blockIdx.x * SWEEP_THREADS + threadIdx.x; i < p.c; i += (int64_t)gridDim.x * SWEEP_THREADS)
            dev::store(p.sets.rstd, i, p.known_rstd(i));
}

template <bool ENDS, class T> void start_sweep(const Problem &p, const Geometry &g, const Sets<T> &sets, Run &run)
{
    constexpr int V = vec_of<T>;
    const int64_t lines = g.n * g.c, count = lines * g.hw;
    const Sweep<T, ENDS> q = {sets,
                        count,
                        g.c,
                        {count, g.hw, g.hw, lines, Divisor(g.hw), Divisor(1), false, false},
                        Divisor(g.c),
                        Divisor(g.group_channels),
                        g.across_batch,
                        p.known,
                        dev::aligned<V>(sets.x) && dev::aligned<V>(sets.y),
                        ending_of<ENDS, T, V>(p)};
    const int64_t work = ceil_div(count, chunk_of<T>);
    start(run, {dim3(grid_for(work ? work : 1)), dim3(SWEEP_THREADS)}, channels_first_forward_apply__sweep<T, ENDS>, q);
}

/* stats_at: where in the workspace, in reals, what sets are normalized with is, unless it is known. */
template <bool ENDS> void sweep_launch(const Problem &p, int64_t stats_at, Run &run)
{
    if constexpr (!ENDS)
        if (ends(p))
            return sweep_launch<true>(p, stats_at, run);
    with_dtypes((Element)p.shape.x_dtype, (Element)p.shape.x_dtype, [&](auto x, auto) {
        using T = decltype(x);
        const Geometry g = geometry_of(p);
        auto           sets = sets_of<Sets<T>>(p, g, run, 0);
        sets.stats = buffer<real_of<T>>(run.workspace) + stats_at;
        if (g.c > 0)
            start_sweep<ENDS>(p, g, sets, run);
    });
}

/* ---- the variants ------------------------------------------------------------------------------------------------ */

/* Elements of a vector: as many as fit in the sets, for then vectors are aligned where the tensor is. */
inline int width_of(const Geometry &g, int element_size)
{
    const int most = 16 / element_size;
    return lines_divide(g, most) ? most : element_size == 2 && lines_divide(g, 4) ? 4 : 1;
}

template <class T, class F> void with_width(const Geometry &g, F f)
{
    switch (width_of(g, sizeof(T))) {
    case vec_of<T>: return f(std::integral_constant<int, vec_of<T>>());
    case 1: return f(std::integral_constant<int, 1>());
    default: return f(std::integral_constant<int, (vec_of<T> > 4 ? 4 : 1)>());
    }
}

/* f(params, V()) with everything but what a variant adds, then the running statistics. */
template <bool ENDS, class F> void with_params(const Problem &p, Run &run, int64_t used, F f)
{
    with_dtypes((Element)p.shape.x_dtype, (Element)p.shape.x_dtype, [&](auto x, auto) {
        using T = decltype(x);
        const Geometry g = geometry_of(p);
        auto           q = sets_of<Forward<T, ENDS>>(p, g, run, used);
        q.lines = lines_of(g);
        q.one_channel = g.group_channels == 1;
        if (q.rows > 0)
            with_width<T>(g, [&](auto width) {
                q.x_wide = dev::aligned<width()>(q.x), q.y_wide = dev::aligned<width()>(q.y);
                q.ending = ending_of<ENDS, T, width()>(p);
                f(q, width);
            });
        start_average<T>(p, g, q, run);
    });
}

inline bool takes(const Problem &p, bool known)
{
    return !geometry_of(p).last && p.known == known;
}

template <int G> bool registers_take(const Problem &p)
{
    const Geometry g = geometry_of(p);
    const int      element = (int)wf_dtype_size(p.shape.x_dtype);
    return takes(p, false) && registers_fit<G>(set_size(g, p), held_size(width_of(g, element), element));
}

inline size_t on_chip_workspace(const Problem &p)
{
    return reals(p, average_reals(geometry_of(p), p));
}

template <int G, bool ENDS = false> void registers_launch(const Problem &p, Run &run)
{
    if constexpr (!ENDS)
        if (ends(p))
            return registers_launch<G, true>(p, run);
    with_params<ENDS>(p, run, 0, [&](const auto &q, auto width) { start_in_registers<G, width()>(q, run); });
}

template <int MOST> bool shared_takes(const Problem &p)
{
    return takes(p, false) && shared_fits<MOST>(set_size(geometry_of(p), p));
}

template <int MOST, bool ENDS = false> void shared_launch(const Problem &p, Run &run)
{
    if constexpr (!ENDS)
        if (ends(p))
            return shared_launch<MOST, true>(p, run);
    with_params<ENDS>(p, run, 0, [&](const auto &q, auto width) { start_in_shared<MOST, width()>(q, run); });
}

inline bool segments_take(const Problem &p)
{
    return takes(p, false) && segments_of(set_size(geometry_of(p), p)) > 1;
}

inline int64_t segments_used(const Problem &p)
{
    const Geometry g = geometry_of(p);
    return segments_reals(g.sets, set_size(g, p));
}

inline size_t segments_workspace(const Problem &p)
{
    return reals(p, segments_used(p)) + on_chip_workspace(p);
}

inline void segments_launch(const Problem &p, Run &run)
{
    with_params<false>(p, run, segments_used(p), [&](const auto &q, auto width) {
        start_in_segments<width()>(q, run, [&](const auto &) {
            sweep_launch<false>(p, segments_used(p) - 3 * geometry_of(p).sets, run);
        });
    });
}

inline bool known_takes(const Problem &p)
{
    return takes(p, true);
}

inline void known_launch(const Problem &p, Run &run)
{
    sweep_launch<false>(p, 0, run);
}

ENDINGS void registers_launch<8, true>(const Problem &, Run &);
ENDINGS void registers_launch<32, true>(const Problem &, Run &);
ENDINGS void registers_launch<128, true>(const Problem &, Run &);
ENDINGS void registers_launch<WIDE, true>(const Problem &, Run &);
ENDINGS void shared_launch<1, true>(const Problem &, Run &);
ENDINGS void shared_launch<CLUSTER_MAX, true>(const Problem &, Run &);
ENDINGS void sweep_launch<true>(const Problem &, int64_t, Run &);

} // namespace channels_first

#endif
