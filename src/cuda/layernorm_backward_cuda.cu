/* LayerNorm backward, and without the centring RMSNorm, on CUDA. With xhat = ((x - mean) - mean_lo) * rstd, g = gamma * dy:
 *
 *     dx = rstd * (g - avg(g) - xhat * avg(g * xhat)),  dgamma = sum dy * xhat,  dbeta = sum dy
 *
 * A block takes a run of rows. While it writes their dx, it adds up what they give to dgamma and dbeta, in registers, and
 * leaves one partial row of each; a second kernel adds the partial rows in a fixed order. How many rows make a run depends on
 * the shape alone. Rows that fit neither a block nor a cluster are cut into segments, and x and dy read twice. */
#include "parameters.cuh"

namespace
{

enum {
    WIDE = 512, /* threads of a block that shares a row, or a segment of it */
    CLUSTER_MAX = 8,
    CLUSTER_BLOCK = 256, /* threads: two blocks on a multiprocessor, so that one works while the other's cluster meets */
    SLOTS = 3,          /* rows of a group that are on their way or in work */
    PARTIAL_ROWS = 512, /* wanted, at most: enough blocks for every device */
    RUN_MAX = 32,       /* rows that a thread adds up in sequence: the roundings of more would show */
};

template <class T, class W> struct Backward {
    using X = T;
    using Weight = W;
    using R = real_of<T>;
    dev::global<const T> dy, x;
    dev::global<const W> gamma;
    dev::global<const R> mean, mean_lo, rstd;
    dev::global<T> dx;
    int64_t rows, cols, x_stride, dy_stride, dx_stride;
    R weight_offset, share; /* 1 / cols */
    bool centered, x_wide, dy_wide, dx_wide, w_wide;
    int64_t run;            /* rows of a block */
    int64_t slice;          /* columns of a block, where several share a row */
    int64_t segments;       /* of a row */
    dev::global<R> partial; /* [runs, 2, cols]: dgamma, dbeta; none where neither is wanted */
    dev::global<R> sums;    /* [rows, segments, 2]: sum g, sum g * xhat */
    dev::global<R> avg;     /* [rows, 2] */
};

template <class R> struct Stats {
    R mean, mean_lo, rstd;
};

template <class P> WF_ON_DEVICE Stats<typename P::R> stats_at(const P &p, int64_t row)
{
    using R = typename P::R;
    return {p.mean ? dev::load(p.mean, row) : R(0), p.mean_lo ? dev::load(p.mean_lo, row) : R(0),
            dev::load(p.rstd, row)};
}

template <class R> WF_ON_DEVICE R normalized(R x, const Stats<R> &s) { return ((x - s.mean) - s.mean_lo) * s.rstd; }

/* The columns of a row, n from `begin`, that a member of its G threads has: vector k begins at (k * G + member) * V. A row is
 * held packed, zeros where there are no columns: they add nothing to a sum. */
template <class T, int G, int VECTORS> struct Columns {
    using R = real_of<T>;
    static constexpr int V = vec_of<T>;
    using Packed = dev::vec<T, V>;
    struct Held {
        Packed x[VECTORS], dy[VECTORS];
    };
    int64_t begin;
    int n, member;

    WF_ON_DEVICE int offset(int k) const { return (k * G + member) * V; }
    WF_ON_DEVICE int64_t at(int k) const { return begin + offset(k); }
    WF_ON_DEVICE int valid(int k) const { return valid_in(offset(k), n, V); }

    template <class P> WF_ON_DEVICE void load_gamma(const P &p, R (&gamma)[VECTORS][V]) const
    {
#pragma unroll
        for (int k = 0; k < VECTORS; k++) {
            if (p.gamma)
                load_reals(p.gamma, at(k), valid(k), p.w_wide, gamma[k]);
#pragma unroll
            for (int j = 0; j < V; j++)
                gamma[k][j] = p.gamma ? gamma[k][j] + p.weight_offset : R(1);
        }
    }

    /* The calling thread's part of sum g and sum g * xhat. */
    WF_ON_DEVICE pair<R> sums(const Held &held, const Stats<R> &s, const R (&gamma)[VECTORS][V]) const
    {
        pair<R> sum = {0, 0};
#pragma unroll
        for (int k = 0; k < VECTORS; k++) {
            R g[V], gx[V];
#pragma unroll
            for (int j = 0; j < V; j++) {
                g[j] = gamma[k][j] * up(held.dy[k].v[j]);
                gx[j] = g[j] * normalized(up(held.x[k].v[j]), s);
            }
            sum.g += tree_sum(g);
            sum.gx += tree_sum(gx);
        }
        return sum;
    }

    template <class P>
    WF_ON_DEVICE void write(const P &p, int64_t row, const Held &held, const Stats<R> &s, const R (&gamma)[VECTORS][V],
                            pair<R> avg) const
    {
#pragma unroll
        for (int k = 0; k < VECTORS; k++) {
            R dx[V];
#pragma unroll
            for (int j = 0; j < V; j++) {
                const R g = gamma[k][j] * up(held.dy[k].v[j]), xhat = normalized(up(held.x[k].v[j]), s);
                dx[j] = s.rstd * multiply_add(-xhat, avg.gx, g - avg.g);
            }
            store_reals<true>(p.dx, row * p.dx_stride + at(k), valid(k), p.dx_wide, dx);
        }
    }
};

/* What the rows of one thread give to its columns of dgamma and dbeta. */
template <class T, int G, int VECTORS> struct Gradients {
    using R = real_of<T>;
    using Mine = Columns<T, G, VECTORS>;
    static constexpr int V = vec_of<T>;
    R dgamma[VECTORS][V], dbeta[VECTORS][V];

    WF_ON_DEVICE Gradients()
    {
#pragma unroll
        for (int k = 0; k < VECTORS; k++)
#pragma unroll
            for (int j = 0; j < V; j++)
                dgamma[k][j] = dbeta[k][j] = 0;
    }

    WF_ON_DEVICE void add(const typename Mine::Held &held, const Stats<R> &s)
    {
#pragma unroll
        for (int k = 0; k < VECTORS; k++)
#pragma unroll
            for (int j = 0; j < V; j++) {
                const R dy = up(held.dy[k].v[j]);
                dgamma[k][j] = multiply_add(dy, normalized(up(held.x[k].v[j]), s), dgamma[k][j]);
                dbeta[k][j] += dy;
            }
    }

    template <class P> WF_ON_DEVICE void write(const P &p, int64_t part, const Mine &columns) const
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
template <class T, class P, int G>
WF_ON_DEVICE void merge_groups(const P &p, int64_t part, Gradients<T, G, 1> &gradients, int member,
                               dev::shared<real_of<T>> sums)
{
    constexpr int V = vec_of<T>, APART = apart_of<T, G>, SPAN = V * APART;
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
                sums[at] = (warp ? sums[at] : real_of<T>(0)) + gradients.dgamma[0][j];
                sums[SPAN + at] = (warp ? sums[SPAN + at] : real_of<T>(0)) + gradients.dbeta[0][j];
            }
        }
        __syncthreads();
    }
    for (int64_t i = threadIdx.x; i < 2 * p.cols; i += blockDim.x) {
        const int out = i >= p.cols, col = (int)(i - out * p.cols), vector = col / V;
        dev::store(p.partial, part * 2 * p.cols + i, real_of<T>(sums[out * SPAN + col % V * APART + vector]));
    }
}

/* Rows in the order in which a thread works on them: it copies its own columns of the next ones to shared memory while one is
 * in work. No other thread looks at them, so no barrier is needed. */
template <class T, class W, int G, int VECTORS> struct Ring {
    using Mine = Columns<T, G, VECTORS>;
    using Packed = typename Mine::Packed;
    static constexpr int V = vec_of<T>, BLOCK = block_of<G>, SLOT = 2 * VECTORS * BLOCK; /* vectors */
    dev::shared<Packed> slots;

    static constexpr size_t size() { return (size_t)SLOTS * SLOT * 16; }

    /* One group of copies, whether the row is present or not. */
    WF_ON_DEVICE void fetch(const Backward<T, W> &p, const Mine &columns, int slot, int64_t row, bool present) const
    {
#pragma unroll
        for (int k = 0; k < VECTORS; k++) {
            const int n = present ? columns.valid(k) : 0;
            const int64_t col = columns.at(k);
            copy(p.x, row * p.x_stride + col, n, p.x_wide, slots + slot * SLOT + k * BLOCK + threadIdx.x);
            copy(p.dy, row * p.dy_stride + col, n, p.dy_wide,
                 slots + slot * SLOT + (VECTORS + k) * BLOCK + threadIdx.x);
        }
        dev::cp_async_commit();
    }

    /* The oldest row fetched, from its slot. */
    WF_ON_DEVICE void take(int slot, typename Mine::Held &held) const
    {
        dev::cp_async_wait<SLOTS - 1>();
#pragma unroll
        for (int k = 0; k < VECTORS; k++) {
            held.x[k] = slots[slot * SLOT + k * BLOCK + threadIdx.x];
            held.dy[k] = slots[slot * SLOT + (VECTORS + k) * BLOCK + threadIdx.x];
        }
    }

  private:
    static WF_ON_DEVICE void copy(dev::global<const T> from, int64_t at, int n, bool wide, dev::shared<Packed> to)
    {
        if (wide && n == V)
            dev::cp_async16(to, from, at);
        else
            to[0] = load_packed<true, V>(from, at, n, false);
    }
};

/* G threads per row: 8 or 32 lanes of a warp, all of a block, or all of a cluster with p.slice columns in each block. */
template <class T, class W, int G, int VECTORS>
__global__ void __launch_bounds__(block_of<G>, (VECTORS == 1 && sizeof(T) < 8 ? 768 : 512) / block_of<G>)
    layernorm_backward_dx__row_in_registers(Backward<T, W> p)
{
    using R = real_of<T>;
    using Mine = Columns<T, G, VECTORS>;
    using Packed = typename Mine::Packed;
    constexpr int V = vec_of<T>, GROUPS = block_of<G> / G, WARPS = block_of<G> / 32;
    constexpr int SUMS = G <= 32 ? 2 * V * apart_of<T, G> : 1;
    WF_SHARED(pair<R>, scratch, 2 * WARPS);
    WF_SHARED(R, sums, SUMS);
    WF_SHARED(R, stats, 3 * GROUPS * RUN_MAX);
    WF_DYN_SHARED(Packed, slots);
    const Ring<T, W, G, VECTORS> ring = {slots};
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
    R gamma[VECTORS][V];
    columns.load_gamma(p, gamma);
    Gradients<T, G, VECTORS> gradients;
    __syncthreads();

    int slot = 0, last = SLOTS - 1, turn = 0;
    for (int64_t first = begin; first < end; first += GROUPS) {
        const int64_t row = first + offset, ahead = row + (SLOTS - 1) * GROUPS;
        const bool present = row < end;
        ring.fetch(p, columns, last, ahead, ahead < end);
        typename Mine::Held held;
        ring.take(slot, held);
        last = slot;
        slot = slot == SLOTS - 1 ? 0 : slot + 1;
        const int at = 3 * (int)(row - begin);
        const Stats<R> s = present ? Stats<R>{stats[at], stats[at + 1], stats[at + 2]} : Stats<R>{0, 0, 0};
        gradients.add(held, s);
        if (!p.dx)
            continue;
        pair<R> sum = columns.sums(held, s, gamma);
        if constexpr (G <= 32)
            sum = lanes_sums<G>(sum);
        else
            sum = row_sums<WARPS>(sum, scratch + turn * WARPS, clustered);
        turn ^= 1;
        if (present)
            columns.write(p, row, held, s, gamma, {p.centered ? sum.g * p.share : R(0), sum.gx * p.share});
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

template <class T> using Segment = Columns<T, WIDE, 1>;

template <class T> constexpr int64_t segment_of = WIDE *vec_of<T>;

template <class T> WF_ON_DEVICE Segment<T> segment_at(int64_t cols, int64_t segment)
{
    const int64_t begin = segment * segment_of<T>;
    return {begin, (int)smallest(cols - begin, segment_of<T>), (int)threadIdx.x};
}

template <class T, class W>
WF_ON_DEVICE typename Segment<T>::Held load_segment(const Backward<T, W> &p, const Segment<T> &columns, int64_t row)
{
    return {{load_packed<true, vec_of<T>>(p.x, row * p.x_stride + columns.at(0), columns.valid(0), p.x_wide)},
            {load_packed<true, vec_of<T>>(p.dy, row * p.dy_stride + columns.at(0), columns.valid(0), p.dy_wide)}};
}

/* One block per segment: its sums of g and of g * xhat. */
template <class T, class W>
__global__ void __launch_bounds__(WIDE, 2) layernorm_backward_sums__segments(Backward<T, W> p)
{
    using R = real_of<T>;
    constexpr int V = vec_of<T>, WARPS = WIDE / 32;
    WF_SHARED(pair<R>, scratch, 2 * WARPS);
    int turn = 0;
    for (int64_t i = blockIdx.x; i < p.rows * p.segments; i += gridDim.x, turn ^= 1) {
        const auto columns = segment_at<T>(p.cols, i % p.segments);
        const int64_t row = i / p.segments;
        const auto held = load_segment(p, columns, row);
        R gamma[1][V];
        columns.load_gamma(p, gamma);
        const pair<R> sum = row_sums<WARPS>(columns.sums(held, stats_at(p, row), gamma), scratch + turn * WARPS, false);
        if (threadIdx.x == 0) {
            dev::store(p.sums, i * 2, sum.g);
            dev::store(p.sums, i * 2 + 1, sum.gx);
        }
    }
}

/* One block per row: its averages. */
template <class T, class W>
__global__ void __launch_bounds__(WIDE) layernorm_backward_averages__segments(Backward<T, W> p)
{
    using R = real_of<T>;
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
template <class T, class W> __global__ void __launch_bounds__(WIDE, 2) layernorm_backward_dx__segments(Backward<T, W> p)
{
    using R = real_of<T>;
    constexpr int V = vec_of<T>;
    const int64_t item = gridDim.x - 1 - blockIdx.x, part = item / p.segments;
    const auto columns = segment_at<T>(p.cols, item % p.segments);
    R gamma[1][V];
    columns.load_gamma(p, gamma);
    Gradients<T, WIDE, 1> gradients;
    for (int64_t row = part * p.run; row < smallest(p.rows, (part + 1) * p.run); row++) {
        const auto held = load_segment(p, columns, row);
        const auto s = stats_at(p, row);
        if (p.dx)
            columns.write(p, row, held, s, gamma, {dev::load(p.avg, row * 2), dev::load(p.avg, row * 2 + 1)});
        gradients.add(held, s);
    }
    if (p.partial)
        gradients.write(p, part, columns);
}

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

/* How the rows are shared out: `groups` rows at once in a block, `beside` blocks on other columns of the same rows. */
struct Runs {
    int64_t run, count;
};

Runs runs_for(const Problem &p, int groups, int64_t beside)
{
    const int64_t wanted = ceil_div(PARTIAL_ROWS, beside), each = ceil_div(ceil_div(p.rows, wanted), groups);
    const int64_t run = groups * (each < 1 ? 1 : smallest<int64_t>(each, RUN_MAX));
    return {run, ceil_div(p.rows, run)};
}

/* Partial rows begin on 64 bytes where the workspace does. */
size_t partial_workspace(const Problem &p, const Runs &runs)
{
    return (size_t)(runs.count * 2 * p.cols) * wf_dtype_size(wf_statistics_dtype(p.x_dtype));
}

/* Everything but what a variant adds; f(params) launches, then the partial rows are finished. */
template <class F> void with_params(const Problem &p, Run &run, const Runs &runs, F f)
{
    with_dtypes((Element)p.x_dtype, (Element)p.w_dtype, [&](auto x, auto w) {
        using T = decltype(x);
        using W = decltype(w);
        using R = real_of<T>;
        constexpr int V = vec_of<T>;
        const bool parameters = p.dgamma || p.dbeta || run.load_only;
        Backward<T, W> q = {};
        q.dy = buffer<const T>(p.dy), q.x = buffer<const T>(p.x), q.gamma = buffer<const W>(p.gamma);
        q.mean = buffer<const R>(p.mean), q.mean_lo = buffer<const R>(p.mean_lo), q.rstd = buffer<const R>(p.rstd);
        q.dx = buffer<T>(p.dx);
        q.rows = p.rows, q.cols = q.slice = p.cols, q.share = (R)(1.0 / (double)p.cols);
        q.x_stride = p.x_stride, q.dy_stride = p.dy_stride, q.dx_stride = p.dx_stride;
        q.weight_offset = (R)p.weight_offset, q.centered = p.centered;
        q.x_wide = row_is_wide<V>(q.x, p.rows, p.x_stride), q.dy_wide = row_is_wide<V>(q.dy, p.rows, p.dy_stride);
        q.dx_wide = row_is_wide<V>(q.dx, p.rows, p.dx_stride), q.w_wide = row_is_wide<V>(q.gamma, 1, 0);
        q.run = runs.run;
        q.partial = buffer<R>(parameters ? run.workspace : nullptr);
        if (p.cols == 0)
            return;
        if (p.rows > 0)
            f(q);
        const auto finish = finish_of(buffer<const R>(run.workspace), buffer<W>(p.dgamma), buffer<W>(p.dbeta), runs.count,
                                      p.cols, p.accumulate);
        if (parameters)
            start(run, {dim3((unsigned)finish.blocks), dim3(FINISH_THREADS)}, layernorm_backward_parameters__finish<R, W>,
                  finish);
    });
}

/* Not for rows so short that most threads would be idle: their partial rows would be many. */
template <int G, int VECTORS> bool registers_take(const Problem &p)
{
    return row_size(p) <= G * VECTORS * 16 && (G <= 32 || row_size(p) > G * VECTORS * 4);
}

template <int G> Runs registers_runs(const Problem &p) { return runs_for(p, block_of<G> / G, 1); }

template <int G> size_t registers_workspace(const Problem &p) { return partial_workspace(p, registers_runs<G>(p)); }

template <int G, int VECTORS> void registers_launch(const Problem &p, Run &run)
{
    const Runs runs = registers_runs<G>(p);
    with_params(p, run, runs, [&](auto q) {
        using T = typename decltype(q)::X;
        using W = typename decltype(q)::Weight;
        start(run, {dim3((unsigned)runs.count), dim3(block_of<G>), Ring<T, W, G, VECTORS>::size()},
              layernorm_backward_dx__row_in_registers<T, W, G, VECTORS>, q);
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
    with_params(p, run, runs, [&](auto q) {
        using T = typename decltype(q)::X;
        using W = typename decltype(q)::Weight;
        q.slice = ceil_div(ceil_div(p.cols, vec_of<T>), cluster) * vec_of<T>;
        start(run,
              {dim3((unsigned)runs.count * cluster), dim3(CLUSTER_BLOCK), Ring<T, W, CLUSTER_BLOCK, 2>::size(), nullptr, cluster},
              layernorm_backward_dx__row_in_registers<T, W, CLUSTER_BLOCK, 2>, q);
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
    with_params(p, run, runs, [&](auto q) {
        using T = typename decltype(q)::X;
        using W = typename decltype(q)::Weight;
        q.segments = segments_of(p);
        q.sums = buffer<real_of<T>>(run.workspace) + runs.count * 2 * p.cols;
        q.avg = q.sums + p.rows * q.segments * 2;
        if (p.dx || run.load_only) {
            start(run, {dim3(grid_for(p.rows * q.segments)), dim3(WIDE)}, layernorm_backward_sums__segments<T, W>, q);
            start(run, {dim3(grid_for(p.rows)), dim3(WIDE)}, layernorm_backward_averages__segments<T, W>, q);
        }
        start(run, {dim3((unsigned)(runs.count * q.segments)), dim3(WIDE)}, layernorm_backward_dx__segments<T, W>, q);
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
