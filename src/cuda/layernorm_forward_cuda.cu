/* LayerNorm forward, and without the centring RMSNorm, on CUDA:
 *
 *     y = ((x - mean) - mean_lo) * (rstd * gamma) + beta
 *
 * A row is read once if it fits on chip: in the registers of 8, 32, 128 or 512 threads, then in the shared memory of a block
 * or of a cluster of blocks. Longer rows are cut into segments and read twice. */
#include "cuda.h"
#include "prim/reduce.cuh"

namespace
{

enum {
    WIDE = 512, /* threads of a block that has a long row, or a slice or segment of it */
    VECTORS = 4, /* of a row that a thread holds in registers */
    SHARED_SIZE_MAX = 96 * 1024, /* bytes of a row in one block: two blocks a multiprocessor on sm_90, one on sm_120 */
    CLUSTER_SLICE = 32 * 1024,   /* bytes of a row for which another block joins the cluster, */
    CLUSTER_MAX = 8,             /* up to so many, as every device with clusters has them */
};

template <class T, class W> struct Forward {
    using X = T;
    using Weight = W;
    using R = real_of<T>;
    dev::global<const T> x;
    dev::global<const W> gamma, beta;
    dev::global<T>       y;
    dev::global<R>       mean, mean_lo, rstd;
    int64_t              rows, cols, x_stride, y_stride;
    R                    eps, weight_offset;
    bool                 centered, x_wide, y_wide, w_wide;
    int64_t              slice;    /* elements that a block of a cluster holds */
    int64_t              segments; /* of a row */
    dev::global<R>       part;     /* [rows, segments, 4]: moments */
    dev::global<R>       stats;    /* [rows, 3]: what a row is normalized with */
};

template <class R> struct Stats {
    R mean, mean_lo, rstd;
};

template <class P, class M> WF_ON_DEVICE auto stats_of(const P &p, const M &m)
{
    return Stats<typename P::R>{m.mean, m.mean_lo, moments_rstd(m, p.cols, p.eps)};
}

template <class P> WF_ON_DEVICE void write_stats(const P &p, int64_t row, const Stats<typename P::R> &s)
{
    if (p.mean)
        dev::store(p.mean, row, s.mean);
    if (p.mean_lo)
        dev::store(p.mean_lo, row, s.mean_lo);
    if (p.rstd)
        dev::store(p.rstd, row, s.rstd);
}

/* Columns [col, col + valid) of a row, from x. */
template <int V, class P, class R>
WF_ON_DEVICE void write_vector(const P &p, int64_t row, int64_t col, int valid, const R (&x)[V], const Stats<R> &s)
{
    R factor[V], shift[V], y[V];
    if (p.gamma)
        load_reals(p.gamma, col, valid, p.w_wide, factor);
    if (p.beta)
        load_reals(p.beta, col, valid, p.w_wide, shift);
#pragma unroll
    for (int j = 0; j < V; j++) {
        const R f = p.gamma ? s.rstd * (factor[j] + p.weight_offset) : s.rstd;
        y[j] = multiply_add((x[j] - s.mean) - s.mean_lo, f, p.beta ? shift[j] : R(0));
    }
    store_reals<true>(p.y, row * p.y_stride + col, valid, p.y_wide, y);
}

/* ---- rows in registers ------------------------------------------------------------------------------------------- */

/* n columns of a row from `begin`, packed in the registers of G threads: vector k of member t begins at (k * G + t) * V. */
template <class T, int G> struct InRegisters {
    static constexpr int V = vec_of<T>;
    dev::vec<T, V>       packed[VECTORS];
    int64_t              begin;
    int                  n, member;

    WF_ON_DEVICE int offset(int k) const { return (k * G + member) * V; }
    WF_ON_DEVICE int valid(int k) const { return valid_in(offset(k), n, V); }

    template <class P> WF_ON_DEVICE void load(const P &p, int64_t row)
    {
#pragma unroll
        for (int k = 0; k < VECTORS; k++)
            packed[k] = load_packed<true, V>(p.x, row * p.x_stride + begin + offset(k), valid(k), p.x_wide);
    }

    WF_ON_DEVICE real_of<T> first() const { return up(packed[0].v[0]); }

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

    /* Of all columns; every thread of the group has the result. Two barriers where the group is a block. */
    WF_ON_DEVICE auto moments(bool centered, dev::shared<moments_of<real_of<T>>> scratch) const
    {
        using R = real_of<T>;
        if constexpr (G <= 32)
            return lanes_moments<G, V, R>(*this, n, centered);
        const auto count_of = [&](int warp) { return part_of(n, G * V, warp * 32 * V, 32 * V); };
        return block_merge<(G > 32 ? G / 32 : 1)>(lanes_moments<32, V, R>(*this, count_of(member / 32), centered), count_of,
                                                  scratch);
    }
};

template <int G> constexpr int block_of = G > 128 ? G : 128;

/* G threads per row: 8 or 32 lanes of a warp, or all of a block. */
template <class T, class W, int G>
__global__ void __launch_bounds__(block_of<G>, 512 / block_of<G>) layernorm_forward__row_in_registers(Forward<T, W> p)
{
    constexpr int GROUPS = block_of<G> / G;
    WF_SHARED(moments_of<real_of<T>>, scratch, block_of<G> / 32);
    InRegisters<T, G> x;
    x.begin = 0;
    x.member = threadIdx.x % G;
    for (int64_t first = (int64_t)blockIdx.x * GROUPS; first < p.rows; first += (int64_t)gridDim.x * GROUPS) {
        const int64_t row = first + threadIdx.x / G;
        const bool    present = row < p.rows;
        x.n = present ? (int)p.cols : 0;
        x.load(p, row);
        const auto s = stats_of(p, x.moments(p.centered, scratch));
        if (present && x.member == 0)
            write_stats(p, row, s);
        x.sweep([&](const auto &values, int at, int valid) { write_vector(p, row, at, valid, values, s); });
    }
}

/* ---- rows in shared memory --------------------------------------------------------------------------------------- */

/* n columns of a row from `begin`; thread t has the vectors t, t + WIDE and so on, and touches no others. */
template <class T> struct InShared {
    static constexpr int        V = vec_of<T>;
    dev::shared<dev::vec<T, V>> packed;
    int64_t                     begin;
    int                         n;

    template <class P> WF_ON_DEVICE void load(const P &p, int64_t row) const
    {
        for (int i = threadIdx.x; i * V < n; i += WIDE) {
            const int64_t at = row * p.x_stride + begin + i * V;
            if (p.x_wide && i * V + V <= n)
                dev::cp_async16(packed + i, p.x, at);
            else
                packed[i] = load_packed<true, V>(p.x, at, valid_in(i * V, n, V), false);
        }
        dev::cp_async_commit();
        dev::cp_async_wait<0>();
    }

    WF_ON_DEVICE real_of<T> first() const
    {
        return (int)threadIdx.x * V < n ? up(dev::vec<T, V>(packed[threadIdx.x]).v[0]) : real_of<T>(0);
    }

    template <class F> WF_ON_DEVICE void sweep(F f) const
    {
        for (int i = threadIdx.x; i * V < n; i += WIDE) {
            const dev::vec<T, V> v = packed[i];
            real_of<T>           x[V];
            unpack(v, x);
            f(x, i * V, valid_in(i * V, n, V));
        }
    }
};

/* A cluster of blocks per row, or one block: each holds a slice of p.slice columns. */
template <class T, class W>
__global__ void __launch_bounds__(WIDE) layernorm_forward__row_in_shared(Forward<T, W> p)
{
    using R = real_of<T>;
    constexpr int V = vec_of<T>, WARPS = WIDE / 32;
    WF_SHARED(moments_of<R>, scratch, WARPS);
    WF_SHARED(moments_of<R>, slot, 1);
    using Packed = dev::vec<T, V>;
    WF_DYN_SHARED(Packed, packed);
    const int64_t size = dev::cluster_size(), rank = dev::cluster_rank();
    const auto    slice_of = [&](int64_t r) {
        const int64_t left = p.cols - r * p.slice;
        return left < 0 ? int64_t(0) : smallest(left, p.slice);
    };
    const InShared<T> x = {packed, rank * p.slice, (int)slice_of(rank)};
    const auto count_of = [&](int warp) { return part_of(x.n, WIDE * V, warp * 32 * V, 32 * V); };
    for (int64_t row = blockIdx.x / size; row < p.rows; row += gridDim.x / size) {
        x.load(p, row);
        auto m = lanes_moments<32, V, R>(x, count_of(threadIdx.x / 32), p.centered);
        m = block_merge<WARPS>(m, count_of, scratch);
        m = cluster_merge(m, slice_of, slot);
        const auto s = stats_of(p, m);
        if (rank == 0 && threadIdx.x == 0)
            write_stats(p, row, s);
        x.sweep([&](const R(&values)[V], int at, int valid) { write_vector(p, row, x.begin + at, valid, values, s); });
    }
}

/* ---- rows in segments -------------------------------------------------------------------------------------------- */

template <class T> constexpr int64_t segment_of = WIDE * VECTORS * vec_of<T>;

template <class T> using Segment = InRegisters<T, WIDE>;

template <class T, class W> WF_ON_DEVICE Segment<T> segment_at(const Forward<T, W> &p, int64_t segment)
{
    Segment<T> x;
    x.begin = segment * segment_of<T>;
    x.n = (int)smallest(p.cols - x.begin, segment_of<T>);
    x.member = threadIdx.x;
    return x;
}

/* One block per segment: its moments. */
template <class T, class W>
__global__ void __launch_bounds__(WIDE) layernorm_forward_moments__segments(Forward<T, W> p)
{
    using R = real_of<T>;
    WF_SHARED(moments_of<R>, scratch, WIDE / 32);
    for (int64_t i = blockIdx.x; i < p.rows * p.segments; i += gridDim.x) {
        Segment<T> x = segment_at(p, i % p.segments);
        x.load(p, i / p.segments);
        const auto m = x.moments(p.centered, scratch);
        if (threadIdx.x == 0) {
            dev::store(p.part, i * 4, m.mean);
            dev::store(p.part, i * 4 + 1, m.mean_lo);
            dev::store(p.part, i * 4 + 2, m.m2);
            dev::store(p.part, i * 4 + 3, (R)m.scale);
        }
    }
}

/* One block per row: each thread merges a run of segments, then all merge theirs. */
template <class T, class W>
__global__ void __launch_bounds__(WIDE) layernorm_forward_stats__segments(Forward<T, W> p)
{
    using R = real_of<T>;
    using M = moments_of<R>;
    constexpr int WARPS = WIDE / 32;
    WF_SHARED(M, scratch, WARPS);
    const int64_t run = ceil_div(p.segments, WIDE);
    const auto    columns_before = [&](int64_t thread) { return smallest(p.cols, thread * run * segment_of<T>); };
    for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
        const int64_t begin = threadIdx.x * run, end = smallest(p.segments, begin + run);
        M             m = {0, 0, 0, 0};
        int64_t       count = 0;
        for (int64_t i = begin; i < end; i++) {
            const int64_t at = (row * p.segments + i) * 4, n = smallest(segment_of<T>, p.cols - i * segment_of<T>);
            const M       next = {dev::load(p.part, at), dev::load(p.part, at + 1), dev::load(p.part, at + 2),
                                  (int32_t)dev::load(p.part, at + 3)};
            m = merge(m, count, next, n);
            count += n;
        }
        m = lanes_merge<32>(m, count);
        m = block_merge<WARPS>(m, [&](int warp) { return columns_before(warp * 32 + 32) - columns_before(warp * 32); },
                               scratch);
        const auto s = stats_of(p, m);
        if (threadIdx.x == 0) {
            write_stats(p, row, s);
            dev::store(p.stats, row * 3, s.mean);
            dev::store(p.stats, row * 3 + 1, s.mean_lo);
            dev::store(p.stats, row * 3 + 2, s.rstd);
        }
    }
}

/* One block per segment, which it reads a second time. */
template <class T, class W>
__global__ void __launch_bounds__(WIDE) layernorm_forward_apply__segments(Forward<T, W> p)
{
    using R = real_of<T>;
    for (int64_t i = blockIdx.x; i < p.rows * p.segments; i += gridDim.x) {
        const int64_t  row = i / p.segments;
        Segment<T>     x = segment_at(p, i % p.segments);
        const Stats<R> s = {dev::load(p.stats, row * 3), dev::load(p.stats, row * 3 + 1), dev::load(p.stats, row * 3 + 2)};
        x.load(p, row);
        x.sweep([&](const R(&values)[vec_of<T>], int at, int valid) { write_vector(p, row, x.begin + at, valid, values, s); });
    }
}

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

/* Not rows so short that most threads would be idle. */
template <int G> bool registers_take(const Problem &p)
{
    return row_size(p) <= G * VECTORS * 16 && (G <= 32 || row_size(p) > G * 8);
}

template <int G> void registers_launch(const Problem &p, Run &run)
{
    with_params(p, [&](auto q) {
        using T = typename decltype(q)::X;
        using W = typename decltype(q)::Weight;
        const unsigned grid = grid_for(ceil_div(q.rows, block_of<G> / G));
        start(run, {dim3(grid), dim3(block_of<G>)}, layernorm_forward__row_in_registers<T, W, G>, q);
    });
}

/* Blocks of a cluster that share a row. */
int cluster_for(const Problem &p)
{
    int size = 1;
    while (size < CLUSTER_MAX && row_size(p) > (int64_t)size * CLUSTER_SLICE)
        size *= 2;
    return size;
}

template <int MOST> bool shared_take(const Problem &p)
{
    return row_size(p) <= (int64_t)SHARED_SIZE_MAX * MOST && (MOST == 1 ? row_size(p) > WIDE * 8 : cluster_for(p) > 1);
}

template <int MOST> void shared_launch(const Problem &p, Run &run)
{
    with_params(p, [&](auto q) {
        using T = typename decltype(q)::X;
        using W = typename decltype(q)::Weight;
        const unsigned cluster = MOST == 1 ? 1 : cluster_for(p);
        const int64_t  vectors = ceil_div(ceil_div(q.cols, vec_of<T>), cluster);
        q.slice = vectors * vec_of<T>;
        start(run, {dim3(grid_for(q.rows) * cluster), dim3(WIDE), (size_t)vectors * 16, nullptr, cluster},
              layernorm_forward__row_in_shared<T, W>, q);
    });
}

int64_t segments_of(const Problem &p)
{
    return ceil_div(row_size(p), WIDE * VECTORS * 16);
}

bool segments_take(const Problem &p)
{
    return segments_of(p) > 1;
}

size_t segments_workspace(const Problem &p)
{
    return (size_t)(p.rows * (segments_of(p) * 4 + 3)) * wf_dtype_size(wf_statistics_dtype(p.x_dtype));
}

void segments_launch(const Problem &p, Run &run)
{
    with_params(p, [&](auto q) {
        using T = typename decltype(q)::X;
        using W = typename decltype(q)::Weight;
        q.segments = segments_of(p);
        q.part = buffer<real_of<T>>(run.workspace);
        q.stats = q.part + q.rows * q.segments * 4;
        const dev::LaunchCfg each_segment = {dim3(grid_for(q.rows * q.segments)), dim3(WIDE)};
        start(run, each_segment, layernorm_forward_moments__segments<T, W>, q);
        start(run, {dim3(grid_for(q.rows)), dim3(WIDE)}, layernorm_forward_stats__segments<T, W>, q);
        start(run, each_segment, layernorm_forward_apply__segments<T, W>, q);
    });
}

} // namespace

/* How wide a row is decides alone, so that a row has the same bits in every batch. */
const Variant<layernorm_forward> layernorm_forward_variants[] = {
    {"sub_warp_per_row", 0, registers_take<8>, no_workspace, registers_launch<8>},
    {"warp_per_row", 0, registers_take<32>, no_workspace, registers_launch<32>},
    {"block_of_128_per_row", 0, registers_take<128>, no_workspace, registers_launch<128>},
    {"block_of_512_per_row", 0, registers_take<WIDE>, no_workspace, registers_launch<WIDE>},
    {"cluster_per_row", 90, shared_take<CLUSTER_MAX>, no_workspace, shared_launch<CLUSTER_MAX>},
    {"row_in_shared", 0, shared_take<1>, no_workspace, shared_launch<1>},
    {"segments", 0, segments_take, segments_workspace, segments_launch},
    {},
};
