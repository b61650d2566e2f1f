/* LayerNorm backward, and without the centring RMSNorm, on CUDA. With xhat = ((x - mean) - mean_lo) * rstd, g = gamma * dy:
 *
 *     dx = rstd * (g - avg(g) - xhat * avg(g * xhat)),  dgamma = sum dy * xhat,  dbeta = sum dy
 *
 * A block takes a run of rows. While it writes their dx, it adds up what they give to dgamma and dbeta, in registers, and
 * leaves one partial row of each; a second kernel adds the partial rows in a fixed order. How many rows make a run depends on
 * the shape alone. Rows that fit neither a block nor a cluster are cut into segments, and x and dy read twice.
 *
 * P, a kernel's parameters, is Backward and says what becomes of a dx:
 *
 *     Source(p)                                     what a thread makes once
 *     Beside<V>, beside(source, row, col, valid)    what dx needs beside x and dy, which can be had before it
 *     put_dx(row, col, valid, dx[V], beside)        stores
 *     LAST                                          Beside is had when it is stored, for registers are shortest
 *
 * and of what x is, which has xhat from it:
 *
 *     Addend<V>, addend(col, valid)                 what a thread needs for that beside gamma
 *     prepare(addend, valid, gamma[V])              of columns that nothing is to be had from, NaN
 *     normalized(x, stats, gamma, addend, j)        xhat in the j-th of them
 *     product(g, dy, x, stats, addend, j)           g * xhat */
#ifndef WELFORD_CUDA_LAYERNORM_BACKWARD_CUH
#define WELFORD_CUDA_LAYERNORM_BACKWARD_CUH

#include "parameters.cuh"

/* How the rows are shared out: `groups` rows at once in a block, `beside` blocks on other columns of the same rows. */
struct Runs {
    int64_t run, count;
};

/* The same where x was a sum, or y is given in its place: layernorm_backward_sum_cuda.cu, .._output_cuda.cu. G, VECTORS: 8, 1;
 * 32, 1; 128, 1; 256, 1; 512, 2. */
enum class Given { SUM, OUTPUT };
template <Given GIVEN, int G, int VECTORS>
void sum_in_registers_launch(const struct layernorm_backward &p, const Runs &runs, Run &run);
template <Given GIVEN>
void sum_in_cluster_launch(const struct layernorm_backward &p, unsigned cluster, const Runs &runs, Run &run);
template <Given GIVEN> void sum_in_segments_launch(const struct layernorm_backward &p, const Runs &runs, Run &run);

namespace
{

enum {
    WIDE = 512, /* threads of a block that shares a row, or a segment of it */
    CLUSTER_MAX = 8,
    CLUSTER_BLOCK = 256, /* threads: two blocks on a multiprocessor, so that one works while the other's cluster meets */
    PARTIAL_ROWS = 512, /* wanted, at most: enough blocks for every device */
    RUN_MAX = 32,       /* rows that a thread adds up in sequence: the roundings of more would show */
};

template <class R> struct Stats {
    R mean, mean_lo, rstd;
};

/* dy and dx are of T, x of A. */
template <class T, class A, class Gamma> struct Backward {
    using X = A;
    using Y = T;
    using R = real_of<T>;
    dev::global<const T> dy;
    dev::global<const A> x;
    Gamma gamma;
    dev::global<const R> mean, mean_lo, rstd;
    dev::global<T> dx;
    int64_t rows, cols, x_stride, dy_stride, dx_stride;
    R weight_offset, share; /* 1 / cols */
    bool centered, needs_dx, x_wide, dy_wide, dx_wide, w_wide;
    int64_t run;            /* rows of a block */
    int64_t slice;          /* columns of a block, where several share a row */
    int64_t segments;       /* of a row */
    dev::global<R> partial; /* [runs, 2, cols]: dgamma, dbeta; none where neither is wanted */
    dev::global<R> sums;    /* [rows, segments, 2]: sum g, sum g * xhat */
    dev::global<R> avg;     /* [rows, 2] */

    template <int V> struct Addend {
    };

    template <int V> WF_ON_DEVICE Addend<V> addend(int64_t, int) const { return {}; }
    template <int V> static WF_ON_DEVICE void prepare(const Addend<V> &, int, R (&)[V]) {}
    template <int V> static WF_ON_DEVICE R normalized(R x, const Stats<R> &s, R, const Addend<V> &, int)
    {
        return ((x - s.mean) - s.mean_lo) * s.rstd;
    }
    template <int V> static WF_ON_DEVICE R product(R g, R, R x, const Stats<R> &s, const Addend<V> &addend, int j)
    {
        return g * normalized(x, s, R(1), addend, j);
    }
};

template <class P> WF_ON_DEVICE Stats<typename P::R> stats_at(const P &p, int64_t row)
{
    using R = typename P::R;
    return {p.mean ? dev::load(p.mean, row) : R(0), p.mean_lo ? dev::load(p.mean_lo, row) : R(0),
            dev::load(p.rstd, row)};
}

/* The columns of a row, n from `begin`, that a member of its G threads has: vector k begins at (k * G + member) * V. A row is
 * held packed, zeros where there are no columns: they add nothing to a sum. */
template <class P, int G, int VECTORS> struct Columns {
    using R = typename P::R;
    using A = typename P::X;
    using T = typename P::Y;
    static constexpr int V = vec_of<T>, PIECE = vec_of<A>, PIECES = V / PIECE; /* in which V elements of x cross memory */
    struct Held {
        dev::vec<A, PIECE> x[VECTORS][PIECES];
        dev::vec<T, V> dy[VECTORS];

        WF_ON_DEVICE R x_at(int k, int j) const { return up(x[k][j / PIECE].v[j % PIECE]); }
    };
    using Beside = typename P::template Beside<V>;
    using Addend = typename P::template Addend<V>;
    struct Factors {
        R gamma[VECTORS][V];
        Addend early;
    };
    int64_t begin;
    int n, member;

    /* Beside and Addend are had early, while x and dy are on their way, unless there are two vectors: then registers are
     * short. */
    static constexpr bool EARLY = VECTORS == 1;

    WF_ON_DEVICE int offset(int k) const { return (k * G + member) * V; }
    WF_ON_DEVICE int64_t at(int k) const { return begin + offset(k); }
    WF_ON_DEVICE int valid(int k) const { return valid_in(offset(k), n, V); }

    WF_ON_DEVICE Factors factors(const P &p) const
    {
        Factors of;
#pragma unroll
        for (int k = 0; k < VECTORS; k++) {
            if (p.gamma)
                load_reals(p.gamma, at(k), valid(k), p.w_wide, of.gamma[k]);
#pragma unroll
            for (int j = 0; j < V; j++)
                of.gamma[k][j] = p.gamma ? of.gamma[k][j] + p.weight_offset : R(1);
            of.early = p.template addend<V>(at(k), valid(k));
            P::prepare(of.early, valid(k), of.gamma[k]);
        }
        return of;
    }

    WF_ON_DEVICE Addend addend_of(const P &p, const Factors &of, int k) const
    {
        return EARLY ? of.early : p.template addend<V>(at(k), valid(k));
    }

    /* Of the k-th vector, xhat. */
    WF_ON_DEVICE void normalize(const P &p, const Held &held, const Stats<R> &s, const Factors &of, int k, R (&xhat)[V]) const
    {
        const Addend addend = addend_of(p, of, k);
#pragma unroll
        for (int j = 0; j < V; j++)
            xhat[j] = P::normalized(held.x_at(k, j), s, of.gamma[k][j], addend, j);
    }

    /* The calling thread's part of sum g and sum g * xhat. */
    WF_ON_DEVICE pair<R> sums(const P &p, const Held &held, const Stats<R> &s, const Factors &of) const
    {
        pair<R> sum = {0, 0};
#pragma unroll
        for (int k = 0; k < VECTORS; k++) {
            R g[V], gx[V];
            const Addend addend = addend_of(p, of, k);
#pragma unroll
            for (int j = 0; j < V; j++) {
                const R dy = up(held.dy[k].v[j]);
                g[j] = of.gamma[k][j] * dy;
                gx[j] = P::product(g[j], dy, held.x_at(k, j), s, addend, j);
            }
            sum.g += tree_sum(g);
            sum.gx += tree_sum(gx);
        }
        return sum;
    }

    /* Of the k-th vector. */
    WF_ON_DEVICE Beside beside(const P &p, const typename P::Source &source, int64_t row, bool present, int k) const
    {
        return p.template beside<V>(source, row, at(k), present ? valid(k) : 0);
    }

    WF_ON_DEVICE void write(const P &p, const typename P::Source &source, int64_t row, const Held &held, const Stats<R> &s,
                            const Factors &factors, pair<R> avg, const Beside &early) const
    {
#pragma unroll
        for (int k = 0; k < VECTORS; k++) {
            const Beside of = EARLY || P::LAST ? early : beside(p, source, row, true, k);
            R dx[V], xhat[V];
            normalize(p, held, s, factors, k, xhat);
#pragma unroll
            for (int j = 0; j < V; j++) {
                const R g = factors.gamma[k][j] * up(held.dy[k].v[j]);
                dx[j] = s.rstd * multiply_add(-xhat[j], avg.gx, g - avg.g);
            }
            p.put_dx(row, at(k), valid(k), dx, !EARLY && P::LAST ? beside(p, source, row, true, k) : of);
        }
    }
};

/* What the rows of one thread give to its columns of dgamma and dbeta. */
template <class P, int G, int VECTORS> struct Gradients {
    using R = typename P::R;
    using Mine = Columns<P, G, VECTORS>;
    static constexpr int V = Mine::V;
    R dgamma[VECTORS][V], dbeta[VECTORS][V];

    WF_ON_DEVICE Gradients()
    {
#pragma unroll
        for (int k = 0; k < VECTORS; k++)
#pragma unroll
            for (int j = 0; j < V; j++)
                dgamma[k][j] = dbeta[k][j] = 0;
    }

    WF_ON_DEVICE void add(const P &p, const Mine &columns, const typename Mine::Held &held, const Stats<R> &s,
                          const typename Mine::Factors &of)
    {
#pragma unroll
        for (int k = 0; k < VECTORS; k++) {
            R xhat[V];
            columns.normalize(p, held, s, of, k, xhat);
#pragma unroll
            for (int j = 0; j < V; j++) {
                const R dy = up(held.dy[k].v[j]);
                dgamma[k][j] = multiply_add(dy, xhat[j], dgamma[k][j]);
                dbeta[k][j] += dy;
            }
        }
    }

    WF_ON_DEVICE void write(const P &p, int64_t part, const Mine &columns) const
    {
#pragma unroll
        for (int k = 0; k < VECTORS; k++) {
            const bool wide = dev::aligned<vec_of<R>>(p.partial) && p.cols % vec_of<R> == 0;
            store_reals<false>(p.partial, part * 2 * p.cols + columns.at(k), columns.valid(k), wide, dgamma[k]);
            store_reals<false>(p.partial, (part * 2 + 1) * p.cols + columns.at(k), columns.valid(k), wide, dbeta[k]);
        }
    }
};

template <int G> constexpr int block_of = G > 32 ? G : 256;

/* Vectors whose elements fill the banks once. */
template <class T> constexpr int unit_of = 128 / (int)sizeof(real_of<T>) / vec_of<T>;

/* From the j-th elements of the vectors of G threads to their next ones: other banks when columns are read in order. */
template <class T, int G> constexpr int apart_of = (G / unit_of<T> | 1) * unit_of<T>;

/* The partial row of a block whose groups of G lanes took different rows: the groups of a warp, then the warps in turn. */
template <class P, int G>
WF_ON_DEVICE void merge_groups(const P &p, int64_t part, Gradients<P, G, 1> &gradients, int member,
                               dev::shared<typename P::R> sums)
{
    using R = typename P::R;
    constexpr int V = vec_of<typename P::Y>, APART = apart_of<typename P::Y, G>, SPAN = V * APART;
    for (int warp = 0; warp < (int)blockDim.x / 32; warp++) {
#pragma unroll
        for (int j = 0; j < V; j++) {
            const int at = j * APART + member;
            if (warp == 0) {
#pragma unroll
                for (int step = G; step < 32; step *= 2) {
                    gradients.dgamma[0][j] += __shfl_xor_sync(ALL_LANES, gradients.dgamma[0][j], step);
                    gradients.dbeta[0][j] += __shfl_xor_sync(ALL_LANES, gradients.dbeta[0][j], step);
                }
            }
            if ((int)threadIdx.x / 32 == warp && threadIdx.x % 32 < G) {
                sums[at] = (warp ? sums[at] : R(0)) + gradients.dgamma[0][j];
                sums[SPAN + at] = (warp ? sums[SPAN + at] : R(0)) + gradients.dbeta[0][j];
            }
        }
        __syncthreads();
    }
    for (int64_t i = threadIdx.x; i < 2 * p.cols; i += blockDim.x) {
        const int out = i >= p.cols, col = (int)(i - out * p.cols), vector = col / V;
        dev::store(p.partial, part * 2 * p.cols + i, R(sums[out * SPAN + col % V * APART + vector]));
    }
}

/* Rows in the order in which a thread works on them: it copies its own columns of the next ones to shared memory while one is
 * in work. No other thread looks at them, so no barrier is needed. */
template <class P, int G, int VECTORS> struct Ring {
    using Mine = Columns<P, G, VECTORS>;
    using Packed = dev::vec<typename P::Y, Mine::V>;
    static constexpr int BLOCK = block_of<G>, PIECES = Mine::PIECES;
    static constexpr int SLOT = (PIECES + 1) * VECTORS * BLOCK; /* vectors: of x, of dy */
    static constexpr int SLOTS = PIECES == 1 ? 3 : 2;           /* rows of a group that are on their way or in work */
    dev::shared<Packed> slots;

    static constexpr size_t size() { return (size_t)SLOTS * SLOT * 16; }

    /* One group of copies, whether the row is present or not. */
    WF_ON_DEVICE void fetch(const P &p, const Mine &columns, int slot, int64_t row, bool present) const
    {
#pragma unroll
        for (int k = 0; k < VECTORS; k++) {
            const int n = present ? columns.valid(k) : 0;
            const int64_t col = columns.at(k);
#pragma unroll
            for (int i = 0; i < PIECES; i++)
                copy(p.x, row * p.x_stride + col + i * Mine::PIECE, valid_in(i * Mine::PIECE, n, Mine::PIECE), p.x_wide,
                     of_x(slot, k, i));
            copy(p.dy, row * p.dy_stride + col, n, p.dy_wide, of_dy(slot, k));
        }
        dev::cp_async_commit();
    }

    /* The oldest row fetched, from its slot. */
    WF_ON_DEVICE void take(int slot, typename Mine::Held &held) const
    {
        dev::cp_async_wait<SLOTS - 1>();
#pragma unroll
        for (int k = 0; k < VECTORS; k++) {
#pragma unroll
            for (int i = 0; i < PIECES; i++)
                held.x[k][i] = of_x(slot, k, i)[0];
            held.dy[k] = of_dy(slot, k)[0];
        }
    }

  private:
    WF_ON_DEVICE dev::shared<dev::vec<typename P::X, Mine::PIECE>> of_x(int slot, int k, int i) const
    {
        return dev::recast<dev::vec<typename P::X, Mine::PIECE>>(slots + slot * SLOT + (k * PIECES + i) * BLOCK + threadIdx.x);
    }
    WF_ON_DEVICE dev::shared<Packed> of_dy(int slot, int k) const
    {
        return slots + slot * SLOT + (PIECES * VECTORS + k) * BLOCK + threadIdx.x;
    }
    template <class E, int N>
    static WF_ON_DEVICE void copy(dev::global<const E> from, int64_t at, int n, bool wide, dev::shared<dev::vec<E, N>> to)
    {
        if (wide && n == N)
            dev::cp_async16(to, from, at);
        else
            to[0] = load_packed<true, N>(from, at, n, false);
    }
};

/* Of a multiprocessor, as registers allow. */
template <class P, int VECTORS>
constexpr int threads_at_once = P::PLAIN && VECTORS == 1 && sizeof(typename P::R) < 8 ? 768 : 512;

/* G threads per row: 8 or 32 lanes of a warp, all of a block, or all of a cluster with p.slice columns in each block. */
template <class P, int G, int VECTORS>
__global__ void __launch_bounds__(block_of<G>, threads_at_once<P, VECTORS> / block_of<G>)
    layernorm_backward_dx__row_in_registers(P p)
{
    using R = typename P::R;
    using Mine = Columns<P, G, VECTORS>;
    using Rows = Ring<P, G, VECTORS>;
    using Packed = typename Rows::Packed;
    constexpr int V = Mine::V, GROUPS = block_of<G> / G, WARPS = block_of<G> / 32, SLOTS = Rows::SLOTS;
    constexpr int SUMS = G <= 32 ? 2 * V * apart_of<typename P::Y, G> : 1;
    WF_SHARED(pair<R>, scratch, 2 * WARPS);
    WF_SHARED(R, sums, SUMS);
    WF_SHARED(R, stats, 3 * GROUPS * RUN_MAX);
    WF_DYN_SHARED(Packed, slots);
    const Rows ring = {slots};
    const typename P::Source source(p);
    const bool clustered = dev::cluster_size() > 1;
    const int64_t part = blockIdx.x / dev::cluster_size();
    const int64_t begin = part * p.run, end = smallest(p.rows, begin + p.run), offset = threadIdx.x / G;
    Mine columns;
    columns.begin = dev::cluster_rank() * p.slice;
    columns.n = (int)smallest(p.cols - columns.begin, p.slice); /* none where it is not positive */
    columns.member = threadIdx.x % G;
    for (int i = 0; i < SLOTS - 1; i++)
        ring.fetch(p, columns, i, begin + i * GROUPS + offset, begin + i * GROUPS + offset < end);
    for (int i = threadIdx.x; i < end - begin; i += block_of<G>) {
        const auto s = stats_at(p, begin + i);
        stats[3 * i] = s.mean, stats[3 * i + 1] = s.mean_lo, stats[3 * i + 2] = s.rstd;
    }
    const typename Mine::Factors factors = columns.factors(p);
    Gradients<P, G, VECTORS> gradients;
    __syncthreads();

    int slot = 0, last = SLOTS - 1, turn = 0;
    for (int64_t first = begin; first < end; first += GROUPS) {
        const int64_t row = first + offset, ahead = row + (SLOTS - 1) * GROUPS;
        const bool present = row < end;
        ring.fetch(p, columns, last, ahead, ahead < end);
        typename Mine::Beside beside = {};
        if (Mine::EARLY)
            beside = columns.beside(p, source, row, present, 0);
        typename Mine::Held held;
        ring.take(slot, held);
        last = slot;
        slot = slot == SLOTS - 1 ? 0 : slot + 1;
        const int at = 3 * (int)(row - begin);
        const Stats<R> s = present ? Stats<R>{stats[at], stats[at + 1], stats[at + 2]} : Stats<R>{0, 0, 0};
        gradients.add(p, columns, held, s, factors);
        if (!p.needs_dx)
            continue;
        pair<R> sum = columns.sums(p, held, s, factors);
        if constexpr (G <= 32)
            sum = lanes_sums<G>(sum);
        else
            sum = row_sums<WARPS>(sum, scratch + turn * WARPS, clustered);
        turn ^= 1;
        if (present)
            columns.write(p, source, row, held, s, factors, {p.centered ? sum.g * p.share : R(0), sum.gx * p.share}, beside);
    }
    if (p.partial) {
        if constexpr (G <= 32)
            merge_groups(p, part, gradients, columns.member, sums);
        else
            gradients.write(p, part, columns);
    }
    if (clustered)
        dev::cluster_sync(); /* nobody leaves while its sums may still be read */
}

/* ---- rows in segments -------------------------------------------------------------------------------------------- */

template <class P> using Segment = Columns<P, WIDE, 1>;

template <class P> constexpr int64_t segment_of = WIDE *vec_of<typename P::Y>;

template <class P> WF_ON_DEVICE Segment<P> segment_at(int64_t cols, int64_t segment)
{
    const int64_t begin = segment * segment_of<P>;
    return {begin, (int)smallest(cols - begin, segment_of<P>), (int)threadIdx.x};
}

template <class P> WF_ON_DEVICE typename Segment<P>::Held load_segment(const P &p, const Segment<P> &columns, int64_t row)
{
    constexpr int PIECE = Segment<P>::PIECE;
    const int64_t col = columns.at(0);
    const int valid = columns.valid(0);
    typename Segment<P>::Held held;
#pragma unroll
    for (int i = 0; i < Segment<P>::PIECES; i++)
        held.x[0][i] = load_packed<true, PIECE>(p.x, row * p.x_stride + col + i * PIECE, valid_in(i * PIECE, valid, PIECE),
                                                p.x_wide);
    held.dy[0] = load_packed<true, Segment<P>::V>(p.dy, row * p.dy_stride + col, valid, p.dy_wide);
    return held;
}

/* One block per segment: its sums of g and of g * xhat. */
template <class P> __global__ void __launch_bounds__(WIDE, 2) layernorm_backward_sums__segments(P p)
{
    using R = typename P::R;
    constexpr int WARPS = WIDE / 32;
    WF_SHARED(pair<R>, scratch, 2 * WARPS);
    int turn = 0;
    for (int64_t i = blockIdx.x; i < p.rows * p.segments; i += gridDim.x, turn ^= 1) {
        const auto columns = segment_at<P>(p.cols, i % p.segments);
        const int64_t row = i / p.segments;
        const auto held = load_segment(p, columns, row);
        const pair<R> mine = columns.sums(p, held, stats_at(p, row), columns.factors(p));
        const pair<R> sum = row_sums<WARPS>(mine, scratch + turn * WARPS, false);
        if (threadIdx.x == 0) {
            dev::store(p.sums, i * 2, sum.g);
            dev::store(p.sums, i * 2 + 1, sum.gx);
        }
    }
}

/* One block per row: its averages. */
template <class P> __global__ void __launch_bounds__(WIDE) layernorm_backward_averages__segments(P p)
{
    using R = typename P::R;
    constexpr int WARPS = WIDE / 32;
    WF_SHARED(pair<R>, scratch, 2 * WARPS);
    int turn = 0;
    for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x, turn ^= 1) {
        LongSum<R> g, gx;
        for (int64_t i = threadIdx.x; i < p.segments; i += WIDE) {
            g.add(dev::load(p.sums, (row * p.segments + i) * 2));
            gx.add(dev::load(p.sums, (row * p.segments + i) * 2 + 1));
        }
        const pair<R> sum = row_sums<WARPS>(pair<R>{g.value(), gx.value()}, scratch + turn * WARPS, false);
        if (threadIdx.x == 0) {
            dev::store(p.avg, row * 2, p.centered ? sum.g * p.share : R(0));
            dev::store(p.avg, row * 2 + 1, sum.gx * p.share);
        }
    }
}

/* One block per segment of a run of rows, which it reads a second time: first what was read last, it may still be near. */
template <class P> __global__ void __launch_bounds__(WIDE, P::PLAIN ? 2 : 1) layernorm_backward_dx__segments(P p)
{
    const typename P::Source source(p);
    const int64_t item = gridDim.x - 1 - blockIdx.x, part = item / p.segments;
    const auto columns = segment_at<P>(p.cols, item % p.segments);
    const auto factors = columns.factors(p);
    Gradients<P, WIDE, 1> gradients;
    for (int64_t row = part * p.run; row < smallest(p.rows, (part + 1) * p.run); row++) {
        const auto held = load_segment(p, columns, row);
        const auto s = stats_at(p, row);
        if (p.needs_dx)
            columns.write(p, source, row, held, s, factors, {dev::load(p.avg, row * 2), dev::load(p.avg, row * 2 + 1)},
                          columns.beside(p, source, row, true, 0));
        gradients.add(p, columns, held, s, factors);
    }
    if (p.partial)
        gradients.write(p, part, columns);
}

/* ---- launches ---------------------------------------------------------------------------------------------------- */

inline Runs runs_for(const struct layernorm_backward &p, int groups, int64_t beside)
{
    const int64_t wanted = ceil_div(PARTIAL_ROWS, beside), each = ceil_div(ceil_div(p.rows, wanted), groups);
    const int64_t run = groups * (each < 1 ? 1 : smallest<int64_t>(each, RUN_MAX));
    return {run, ceil_div(p.rows, run)};
}

/* Everything but x, gamma and what becomes of dx, and what a variant adds. Partial rows begin on 64 bytes where the workspace
 * does. */
template <class Q> void fill_params(Q &q, const struct layernorm_backward &p, const Run &run, const Runs &runs)
{
    using R = typename Q::R;
    constexpr int V = vec_of<typename Q::Y>;
    q.dy = buffer<const typename Q::Y>(p.dy), q.x = buffer<const typename Q::X>(p.x), q.dx = buffer<typename Q::Y>(p.dx);
    q.mean = buffer<const R>(p.mean), q.mean_lo = buffer<const R>(p.mean_lo), q.rstd = buffer<const R>(p.rstd);
    q.rows = p.rows, q.cols = q.slice = p.cols, q.share = (R)(1.0 / (double)p.cols);
    q.x_stride = p.x_stride, q.dy_stride = p.dy_stride, q.dx_stride = p.dx_stride;
    q.weight_offset = (R)p.weight_offset, q.centered = p.centered, q.needs_dx = p.dx || p.add.dresidual;
    q.x_wide = row_is_wide<V>(q.x, p.rows, p.x_stride), q.dy_wide = row_is_wide<V>(q.dy, p.rows, p.dy_stride);
    q.dx_wide = row_is_wide<V>(q.dx, p.rows, p.dx_stride), q.w_wide = row_is_wide<V>(q.gamma, 1, 0);
    q.run = runs.run;
    q.partial = buffer<R>(p.dgamma || p.dbeta || run.load_only ? run.workspace : nullptr);
}

template <int G, int VECTORS, class P> void start_in_registers(const P &p, const Runs &runs, Run &run)
{
    start(run, {dim3((unsigned)runs.count), dim3(block_of<G>), Ring<P, G, VECTORS>::size()},
          layernorm_backward_dx__row_in_registers<P, G, VECTORS>, p);
}

template <class P> void start_in_cluster(P p, unsigned cluster, const Runs &runs, Run &run)
{
    p.slice = ceil_div(ceil_div(p.cols, vec_of<typename P::Y>), cluster) * vec_of<typename P::Y>;
    start(run,
          {dim3((unsigned)runs.count * cluster), dim3(CLUSTER_BLOCK), Ring<P, CLUSTER_BLOCK, 2>::size(), nullptr, cluster},
          layernorm_backward_dx__row_in_registers<P, CLUSTER_BLOCK, 2>, p);
}

template <class P> void start_in_segments(P p, const Runs &runs, Run &run)
{
    p.segments = ceil_div(p.cols, segment_of<P>);
    p.sums = buffer<typename P::R>(run.workspace) + runs.count * 2 * p.cols;
    p.avg = p.sums + p.rows * p.segments * 2;
    if (p.needs_dx || run.load_only) {
        start(run, {dim3(grid_for(p.rows * p.segments)), dim3(WIDE)}, layernorm_backward_sums__segments<P>, p);
        start(run, {dim3(grid_for(p.rows)), dim3(WIDE)}, layernorm_backward_averages__segments<P>, p);
    }
    start(run, {dim3((unsigned)(runs.count * p.segments)), dim3(WIDE)}, layernorm_backward_dx__segments<P>, p);
}

} // namespace

#endif
