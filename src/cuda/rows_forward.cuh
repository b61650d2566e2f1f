/* The forward pass of a norm over rows that have statistics of their own, whatever they are in memory: rows of a matrix, or
 * the sets of a tensor with channels first. A row is read once if it fits on chip: in the registers of 4 to 512 threads,
 * then in the shared memory of a block or of a cluster of blocks. Longer rows are cut into segments, whose moments
 * are merged before the rows are read again.
 *
 * P, a kernel's parameters, knows the rows:
 *
 *     P::X, P::R                           an element in memory, and in arithmetic
 *     rows, cols, centered                 rows of cols elements; not centered: the mean is taken as 0
 *     x_wide                               vectors of x may be accessed at once
 *     slice, parts, part, stats            as below, each of them where a variant has it
 *     place(row, col)                      P::Place: where elements from col on are
 *     address(place, i)                    of the i-th element from there, in x; elements of a vector lie together
 *     COPIED                               the rows are in memory, at x. Else they have to be made, by
 *     fetch<Stream>(place, i, valid)       Fetched<V>: what the vector at the i-th element is made of, loaded;
 *                                          first(): of the first element alone; and
 *     make(source, place, i, valid, f)     the vector, of Source(p), which a thread makes once; and then
 *     put_x<Stream>(place, i, valid, x[V]) stores them where the second read of long rows finds them, which is x
 *     finish(moments)                      Stats<R>: what the row is normalized with
 *     keep(row, moments, stats)            by one thread of the row: results that are statistics
 *     write(place, i, valid, x[V], stats)  the valid first of V elements from the i-th on, from x
 *     Writer                               what a thread needs for write() beside P, and more of what to do: see below */
#ifndef WELFORD_CUDA_ROWS_FORWARD_CUH
#define WELFORD_CUDA_ROWS_FORWARD_CUH

#include "cuda.h"
#include "prim/reduce.cuh"

enum {
    WIDE = 512,                  /* threads of a block that has a long row, or a slice or segment of it */
    HELD_SIZE = 64,              /* bytes of a row that a thread holds in registers, */
    HELD_MOST = 8,               /* in so many of them; segments only are read where more are needed */
    SHARED_SIZE_MAX = 96 * 1024, /* bytes of a row in one block: two blocks a multiprocessor on sm_90, one on sm_120 */
    CLUSTER_SLICE = 32 * 1024,   /* bytes of a row for which another block joins the cluster, */
    CLUSTER_MAX = 8,             /* up to so many, as every device with clusters has them */
};

template <class T> constexpr int64_t segment_of = WIDE *HELD_SIZE / (int)sizeof(T);

template <class R> struct Stats {
    R mean, mean_lo, rstd;
};

/* What every P has, and what most have. */
template <class T, class Y = T> struct Rows {
    using X = T;
    using R = real_of<T>;
    static constexpr bool COPIED = true;
    static constexpr int SHARED_BLOCKS = sizeof(R) == 8 ? 1 : 2; /* of WIDE threads on a multiprocessor, without spills */
    template <int V> using Fetched = dev::vec<T, V>;
    struct Source {
        explicit WF_ON_DEVICE Source(const Rows &) {}
    };
    dev::global<const T> x;
    dev::global<Y> y;
    dev::global<R> mean, mean_lo, rstd;
    int64_t rows, cols;
    R eps;
    bool centered, x_wide, y_wide;
    int64_t slice;        /* elements that a block of a cluster holds */
    int64_t parts;        /* of a row: segments, where it is cut into some */
    dev::global<R> part;  /* [rows, parts]: moments */
    dev::global<R> stats; /* [rows]: what a row is normalized with */

    WF_ON_DEVICE int64_t part_at(int64_t row, int64_t i) const { return row * parts + i; }
    WF_ON_DEVICE int64_t before(int64_t i) const { return smallest(cols, i * segment_of<T>); }

    template <class M> WF_ON_DEVICE Stats<R> finish(const M &m) const
    {
        return {m.mean, m.mean_lo, moments_rstd(m, cols, eps)};
    }

    WF_ON_DEVICE void keep_stats(int64_t row, const Stats<R> &s) const
    {
        if (mean)
            dev::store(mean, row, s.mean);
        if (mean_lo)
            dev::store(mean_lo, row, s.mean_lo);
        if (rstd)
            dev::store(rstd, row, s.rstd);
    }

    /* Of a thread. Before it writes of a row, all who share the row begin it: with (p, place, row, first, part, stats, group),
     * first in one of them, or in a segment with (p, row, first), first in one segment's. All threads end. */
    struct Writer {
        explicit WF_ON_DEVICE Writer(const Rows &) {}
        template <class... Row> WF_ON_DEVICE void begin(const Row &...) {}
        template <class P, int V>
        WF_ON_DEVICE void write(const P &p, const typename P::Place &place, int i, int valid, const R (&x)[V], const Stats<R> &s)
        {
            p.write(place, i, valid, x, s);
        }
        template <int WARPS> WF_ON_DEVICE void end(const Rows &) {}
    };
};

template <class R> WF_ON_DEVICE Stats<R> load_stats(dev::global<R> stats, int64_t i)
{
    return {dev::load(stats, i * 3), dev::load(stats, i * 3 + 1), dev::load(stats, i * 3 + 2)};
}

template <class R> WF_ON_DEVICE void store_stats(dev::global<R> stats, int64_t i, const Stats<R> &s)
{
    dev::store(stats, i * 3, s.mean);
    dev::store(stats, i * 3 + 1, s.mean_lo);
    dev::store(stats, i * 3 + 2, s.rstd);
}

/* A record is of four reals; the first is aligned for vectors. */
template <class R> WF_ON_DEVICE moments_of<R> load_moments(dev::global<R> part, int64_t i)
{
    R record[4];
    load_reals(part, i * 4, 4, true, record);
    return {record[0], record[1], record[2], (int32_t)record[3]};
}

template <class R, class M> WF_ON_DEVICE void store_moments(dev::global<R> part, int64_t i, const M &m)
{
    const R record[4] = {m.mean, m.mean_lo, m.m2, (R)m.scale};
    store_reals<false>(part, i * 4, 4, true, record);
}

/* A vector in two steps, so that the loads of several are on their way before one of them is made. */
template <bool Stream, int V, class P>
WF_ON_DEVICE auto fetch(const P &p, const typename P::Place &place, int i, int valid)
{
    if constexpr (P::COPIED)
        return load_packed<Stream, V>(p.x, p.address(place, i), valid, p.x_wide);
    else
        return p.template fetch<Stream, V>(place, i, valid);
}

template <class P, class Fetched>
WF_ON_DEVICE auto make(const P &p, const typename P::Source &source, const typename P::Place &place, int i, int valid,
                       const Fetched &fetched)
{
    if constexpr (P::COPIED)
        return fetched;
    else
        return p.make(source, place, i, valid, fetched);
}

/* The vector at a place that n elements begin at, or no more than the first of them, in one lane of each warp: a load to
 * issue before others; then its first element in every lane. */
template <int V, class P>
WF_ON_DEVICE auto load_leading(const P &p, const typename P::Source &source, const typename P::Place &place, int n)
{
    const int valid = threadIdx.x % 32 ? 0 : smallest(n, p.x_wide ? V : 1);
    const auto fetched = fetch<false, V>(p, place, 0, valid);
    if constexpr (P::COPIED)
        return fetched;
    else
        return make(p, source, place, 0, smallest(valid, 1), fetched.first());
}

template <class T, int V> WF_ON_DEVICE real_of<T> leading(const dev::vec<T, V> &of_lane)
{
    return __shfl_sync(ALL_LANES, up(of_lane.v[0]), 0);
}

/* ---- rows in registers ------------------------------------------------------------------------------------------- */

/* n elements of a row from a place on, packed in the registers of G threads: vector k of member t begins at
 * (k * G + t) * V. */
template <class T, int G, int V, int SIZE> struct InRegisters {
    static constexpr int VECTORS = SIZE / (V * (int)sizeof(T));
    dev::vec<T, V> packed[VECTORS];
    int n, member;

    WF_ON_DEVICE int offset(int k) const { return (k * G + member) * V; }
    WF_ON_DEVICE int valid(int k) const { return valid_in(offset(k), n, V); }

    template <bool Stream, class P>
    WF_ON_DEVICE void load(const P &p, const typename P::Source &source, const typename P::Place &place)
    {
        typename P::template Fetched<V> fetched[VECTORS];
#pragma unroll
        for (int k = 0; k < VECTORS; k++)
            fetched[k] = fetch<Stream, V>(p, place, offset(k), valid(k));
#pragma unroll
        for (int k = 0; k < VECTORS; k++)
            packed[k] = make(p, source, place, offset(k), valid(k), fetched[k]);
    }

    /* What was made before, if it was. */
    template <class P> WF_ON_DEVICE void load_again(const P &p, const typename P::Place &place)
    {
#pragma unroll
        for (int k = 0; k < VECTORS; k++)
            packed[k] = load_packed<true, V>(p.x, p.address(place, offset(k)), valid(k), p.x_wide);
    }

    template <class F> WF_ON_DEVICE void sweep(F f) const
    {
#pragma unroll
        for (int k = 0; k < VECTORS; k++) {
            if (valid(k) > 0) {
                real_of<T> x[V];
                unpack(packed[k], x);
                f(x, offset(k), valid(k));
            }
        }
    }

    /* Of all n, every thread of the group has the result; share is of n. */
    template <class P, class Group>
    WF_ON_DEVICE auto moments(const P &p, const typename P::Source &source, const typename P::Place &place,
                              Share<real_of<T>> share, Group &group) const
    {
        using R = real_of<T>;
        R shift;
        if constexpr (G <= 32)
            shift = __shfl_sync(ALL_LANES, up(packed[0].v[0]), 0, G);
        else
            shift = leading(load_leading<V>(p, source, place, n));
        return row_moments<V, R>(*this, shift, share, p.centered, group);
    }
};

/* G threads share a row: lanes of a warp, or all of a block with scratch for its warps. */
template <int G, class R> WF_ON_DEVICE auto group_of(dev::shared<pair<R>> scratch)
{
    if constexpr (G <= 32)
        return Lanes<G>();
    else
        return Threads<G / 32, R>{scratch, false};
}

template <int G> constexpr int block_of = G > 128 ? G : 128;

/* Bytes that a thread holds of a whole row, in vectors of so many elements of that size. */
WF_HOST_DEVICE constexpr int held_size(int vector, int element, int most = HELD_SIZE)
{
    return vector * element * HELD_MOST < most ? vector * element * HELD_MOST : most;
}

/* Of a multiprocessor, as registers allow: fewer of a row in each are more threads. */
template <class P, int V, int HELD>
constexpr int threads_at_once = V < vec_of<typename P::X> || sizeof(typename P::R) == 8 || !P::COPIED ? 512
                                : HELD < HELD_SIZE                                                    ? 1024
                                                                                                      : 640;

/* G threads per row: 4, 8 or 32 lanes of a warp, or all of a block. */
template <class P, int G, int V, int HELD>
__global__ void __launch_bounds__(block_of<G>, threads_at_once<P, V, HELD> / block_of<G>) rows_forward__in_registers(P p)
{
    using T = typename P::X;
    using R = typename P::R;
    constexpr int GROUPS = block_of<G> / G;
    WF_SHARED(pair<R>, scratch, 2 * block_of<G> / 32);
    InRegisters<T, G, V, held_size(V, sizeof(T), HELD)> x;
    x.member = threadIdx.x % G;
    auto group = group_of<G, R>(scratch);
    const Share<R> share(p.cols);
    const typename P::Source source(p);
    typename P::Writer writer(p);
    for (int64_t first = (int64_t)blockIdx.x * GROUPS; first < p.rows; first += (int64_t)gridDim.x * GROUPS) {
        const int64_t row = first + threadIdx.x / G;
        const bool present = row < p.rows;
        const auto place = p.place(present ? row : 0, 0);
        x.n = present ? (int)p.cols : 0;
        x.template load<true>(p, source, place);
        const auto m = x.moments(p, source, place, present ? share : Share<R>(), group);
        const auto s = p.finish(m);
        if (present && x.member == 0)
            p.keep(row, m, s);
        writer.begin(p, place, row, present && x.member == 0, x, s, group);
        x.sweep([&](const auto &values, int at, int valid) { writer.write(p, place, at, valid, values, s); });
    }
    writer.template end<block_of<G> / 32>(p);
}

/* ---- rows in shared memory --------------------------------------------------------------------------------------- */

/* n elements of a row from a place on; thread t has the vectors t, t + WIDE and so on, and touches no others. */
template <class T, int V> struct InShared {
    dev::shared<dev::vec<T, V>> packed;
    int n;

    template <class P>
    WF_ON_DEVICE void load(const P &p, const typename P::Source &source, const typename P::Place &place) const
    {
        constexpr int BATCH = HELD_SIZE / 2 / (V * (int)sizeof(T)); /* on their way at once */
        if (V == vec_of<T> && P::COPIED && p.x_wide) {
            for (int i = threadIdx.x; i * V + V <= n; i += WIDE)
                dev::cp_async16(packed + i, p.x, p.address(place, i * V));
            dev::cp_async_commit();
            if (n % V && n / V % WIDE == (int)threadIdx.x)
                packed[n / V] = load_packed<true, V>(p.x, p.address(place, n / V * V), n % V, false);
            dev::cp_async_wait<0>();
            return;
        }
        for (int first = threadIdx.x; first * V < n; first += BATCH * WIDE) {
            typename P::template Fetched<V> batch[BATCH];
#pragma unroll
            for (int k = 0; k < BATCH; k++) {
                const int at = (first + k * WIDE) * V;
                batch[k] = fetch<true, V>(p, place, at, valid_in(at, n, V));
            }
#pragma unroll
            for (int k = 0; k < BATCH; k++) {
                const int at = (first + k * WIDE) * V;
                if (at < n)
                    packed[first + k * WIDE] = make(p, source, place, at, valid_in(at, n, V), batch[k]);
            }
        }
    }

    template <class F> WF_ON_DEVICE void sweep(F f) const
    {
        for (int i = threadIdx.x; i * V < n; i += WIDE) {
            const dev::vec<T, V> v = packed[i];
            real_of<T> x[V];
            unpack(v, x);
            f(x, i * V, valid_in(i * V, n, V));
        }
    }
};

/* A cluster of blocks per row, or one block: each holds a slice of p.slice elements. */
template <class P, int V>
__global__ void __launch_bounds__(WIDE, P::SHARED_BLOCKS) rows_forward__in_shared(P p)
{
    using T = typename P::X;
    using R = typename P::R;
    constexpr int WARPS = WIDE / 32;
    WF_SHARED(pair<R>, scratch, 2 * WARPS);
    using Packed = dev::vec<T, V>;
    WF_DYN_SHARED(Packed, packed);
    const int64_t size = dev::cluster_size(), rank = dev::cluster_rank();
    const int64_t left = p.cols - rank * p.slice;
    const InShared<T, V> x = {packed, left < 0 ? 0 : (int)smallest(left, p.slice)};
    Threads<WARPS, R> group = {scratch, size > 1};
    const Share<R> share(p.cols);
    const typename P::Source source(p);
    typename P::Writer writer(p);
    for (int64_t row = blockIdx.x / size; row < p.rows; row += gridDim.x / size) {
        const auto place = p.place(row, rank * p.slice);
        const auto first = load_leading<V>(p, source, p.place(row, 0), (int)smallest<int64_t>(p.cols, V));
        x.load(p, source, place);
        const auto m = row_moments<V, R>(x, leading(first), share, p.centered, group);
        const auto s = p.finish(m);
        if (rank == 0 && threadIdx.x == 0)
            p.keep(row, m, s);
        writer.begin(p, place, row, rank == 0 && threadIdx.x == 0, x, s, group);
        x.sweep([&](const R(&values)[V], int at, int valid) { writer.write(p, place, at, valid, values, s); });
    }
    writer.template end<WARPS>(p);
    if (size > 1)
        dev::cluster_sync(); /* nobody leaves while its sums may still be read */
}

/* ---- rows in segments -------------------------------------------------------------------------------------------- */

template <class T, int V> using Segment = InRegisters<T, WIDE, V, HELD_SIZE>;

/* One block per segment: its moments. The second kernel to read a segment had better find it in L2. */
template <class P, int V>
__global__ void __launch_bounds__(WIDE, V < vec_of<typename P::X> || !P::COPIED ? 1 : 2) rows_forward_moments__segments(P p)
{
    using R = typename P::R;
    constexpr int64_t SIZE = segment_of<typename P::X>;
    WF_SHARED(pair<R>, scratch, 2 * WIDE / 32);
    Segment<typename P::X, V> x;
    x.member = threadIdx.x;
    auto group = group_of<WIDE, R>(scratch);
    const typename P::Source source(p);
    for (int64_t i = blockIdx.x; i < p.rows * p.parts; i += gridDim.x) {
        const int64_t row = i / p.parts, begin = i % p.parts * SIZE;
        x.n = (int)smallest(p.cols - begin, SIZE);
        const auto place = p.place(row, begin);
        x.template load<false>(p, source, place);
        const auto m = x.moments(p, source, place, Share<R>(x.n), group);
        if constexpr (!P::COPIED)
            x.sweep([&](const R(&values)[V], int at, int valid) { p.template put_x<false>(place, at, valid, values); });
        if (threadIdx.x == 0)
            store_moments(p.part, i, m);
    }
}

/* G threads per row: each merges a run of its parts, then all merge theirs. Q, which is P or knows as much, says what the
 * parts are: q.parts of a row; q.part_at(row, i): which of q.part the i-th is; q.before(i): how many elements are in those
 * before it. */
template <class Q, int G> __global__ void __launch_bounds__(block_of<G>, 1) rows_forward_stats__merge(Q q)
{
    using M = moments_of<typename Q::R>;
    constexpr int GROUPS = block_of<G> / G, WARPS = G > 32 ? G / 32 : 1;
    WF_SHARED(M, scratch, WARPS);
    const int member = threadIdx.x % G;
    const int64_t run = ceil_div(q.parts, G);
    const auto first_of = [&](int64_t thread) { return smallest(q.parts, thread * run); };
    for (int64_t first = (int64_t)blockIdx.x * GROUPS; first < q.rows; first += (int64_t)gridDim.x * GROUPS) {
        const int64_t row = first + threadIdx.x / G;
        const bool present = row < q.rows;
        const int64_t begin = first_of(member), end = present ? first_of(member + 1) : begin;
        M m = {0, 0, 0, 0};
        int64_t before = q.before(begin), count = 0;
        for (int64_t i = begin; i < end; i++) {
            const int64_t n = q.before(i + 1) - before;
            m = merge(m, count, load_moments(q.part, q.part_at(row, i)), n);
            count += n;
            before += n;
        }
        m = lanes_merge<(G > 32 ? 32 : G)>(m, count);
        if constexpr (G > 32)
            m = block_merge<WARPS>(
                m, [&](int warp) { return q.before(first_of(warp * 32 + 32)) - q.before(first_of(warp * 32)); },
                scratch);
        const auto s = q.finish(m);
        if (present && member == 0) {
            q.keep(row, m, s);
            store_stats(q.stats, row, s);
        }
    }
}

/* f(x, place, row, whether it is the row's first, stats) for segments that were made before. One block per segment, the last
 * first: L2 has the latest. */
template <int V, class P, class F> WF_ON_DEVICE void each_segment(const P &p, F f)
{
    constexpr int64_t SIZE = segment_of<typename P::X>;
    Segment<typename P::X, V> x;
    x.member = threadIdx.x;
    for (int64_t left = p.rows * p.parts - blockIdx.x; left > 0; left -= gridDim.x) {
        const int64_t row = (left - 1) / p.parts, begin = (left - 1) % p.parts * SIZE;
        const auto place = p.place(row, begin);
        x.n = (int)smallest(p.cols - begin, SIZE);
        x.load_again(p, place);
        f(x, place, row, begin == 0, load_stats(p.stats, row));
    }
}

template <class P, int V> __global__ void __launch_bounds__(WIDE) rows_forward_apply__segments(P p)
{
    using R = typename P::R;
    typename P::Writer writer(p);
    each_segment<V>(p, [&](const auto &x, const auto &place, int64_t row, bool first, const Stats<R> &s) {
        writer.begin(p, row, first && threadIdx.x == 0);
        x.sweep([&](const R(&values)[V], int at, int valid) { writer.write(p, place, at, valid, values, s); });
    });
    writer.template end<WIDE / 32>(p);
}

/* ---- which and how ----------------------------------------------------------------------------------------------- */

/* How long a row is decides alone, so that a row has the same bits in every batch. Not rows so short that most threads would
 * be idle. */
template <int G> bool registers_fit(int64_t row_size, int held = HELD_SIZE)
{
    return row_size <= G * held && (G <= 32 || row_size > G * held / 8);
}

template <int G, int V, int HELD = HELD_SIZE, class P> void start_in_registers(const P &p, Run &run)
{
    start(run, {dim3(grid_for(ceil_div(p.rows, block_of<G> / G))), dim3(block_of<G>)},
          rows_forward__in_registers<P, G, V, HELD>, p);
}

/* Blocks of a cluster that share a row. */
inline int cluster_for(int64_t row_size)
{
    int size = 1;
    while (size < CLUSTER_MAX && row_size > (int64_t)size * CLUSTER_SLICE)
        size *= 2;
    return size;
}

template <int MOST> bool shared_fits(int64_t row_size)
{
    return row_size <= (int64_t)SHARED_SIZE_MAX * MOST && (MOST == 1 ? row_size > WIDE * 8 : cluster_for(row_size) > 1);
}

template <int MOST, int V, class P> void start_in_shared(P p, Run &run)
{
    using T = typename P::X;
    const unsigned cluster = MOST == 1 ? 1 : cluster_for(p.cols * (int64_t)sizeof(T));
    const int64_t vectors = ceil_div(ceil_div(p.cols, vec_of<T>), cluster);
    p.slice = vectors * vec_of<T>;
    start(run, {dim3(grid_for(p.rows) * cluster), dim3(WIDE), (size_t)vectors * 16, nullptr, cluster},
          rows_forward__in_shared<P, V>, p);
}

inline int64_t segments_of(int64_t row_size) { return ceil_div(row_size, WIDE * HELD_SIZE); }

/* Reals of the workspace for part and stats. */
inline int64_t segments_reals(int64_t rows, int64_t row_size) { return rows * (segments_of(row_size) * 4 + 3); }

/* The kernel that merges parts, for many of them or few. */
template <int G, class Q> void start_merge(const Q &q, Run &run)
{
    start(run, {dim3(grid_for(ceil_div(q.rows, block_of<G> / G))), dim3(block_of<G>)}, rows_forward_stats__merge<Q, G>,
          q);
}

/* f(p) launches what applies the statistics. */
template <int V, class P, class F> void start_in_segments(P p, Run &run, F f)
{
    p.parts = segments_of(p.cols * (int64_t)sizeof(typename P::X));
    p.part = buffer<typename P::R>(run.workspace);
    p.stats = p.part + p.rows * p.parts * 4;
    start(run, {dim3(grid_for(p.rows * p.parts)), dim3(WIDE)}, rows_forward_moments__segments<P, V>, p);
    start_merge<WIDE>(p, run);
    f(p);
}

#endif
