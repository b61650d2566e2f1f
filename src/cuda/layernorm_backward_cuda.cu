/* LayerNorm backward, and without the centring RMSNorm, on CUDA. With xhat = ((x - mean) - mean_lo) * rstd, g = gamma * dy:
 *
 *     dx = rstd * (g - avg(g) - xhat * avg(g * xhat)),  dgamma = sum dy * xhat,  dbeta = sum dy
 *
 * A block takes a run of rows. While it writes their dx from registers, it adds up what they give to dgamma and dbeta, also in
 * registers, and leaves one partial row of each; a second kernel adds the partial rows in a fixed order. How many rows make a
 * run depends on the shape alone. Rows that fit neither a block nor a cluster are cut into segments, and x and dy read twice. */
#include "cuda.h"
#include "prim/reduce.cuh"

namespace
{

enum {
    VECTORS = 1,        /* of a row that a thread holds: with V elements each, 2 * V * VECTORS sums in registers */
    WIDE = 512,         /* threads of a block that shares a row, or a slice or segment of it */
    CLUSTER_MAX = 8,
    PARTIAL_ROWS = 256, /* wanted: enough blocks for every device */
    RUN_MAX = 32,       /* rows that a thread adds up in sequence: the roundings of more would show */
    FINISH_COLS = 32,
    FINISH_ROWS = 16,
};

template <class T, class W> struct Backward {
    using X = T;
    using Weight = W;
    using R = real_of<T>;
    dev::global<const T> dy, x;
    dev::global<const W> gamma;
    dev::global<const R> mean, mean_lo, rstd;
    dev::global<T>       dx;
    int64_t              rows, cols, x_stride, dy_stride, dx_stride;
    R                    weight_offset;
    bool                 centered, x_wide, dy_wide, dx_wide, w_wide;
    int64_t              run;      /* rows of a block */
    int64_t              slice;    /* columns of a block, where several share a row */
    int64_t              segments; /* of a row */
    dev::global<R>       partial;  /* [runs, 2, cols]: dgamma, dbeta; none where neither is wanted */
    dev::global<R>       sums;     /* [rows, segments, 2]: sum g, sum g * xhat */
    dev::global<R>       avg;      /* [rows, 2] */
};

template <class R> struct Stats {
    R mean, mean_lo, rstd;
};

template <class P> WF_ON_DEVICE Stats<typename P::R> stats_at(const P &p, int64_t row)
{
    using R = typename P::R;
    return {p.mean ? dev::load(p.mean, row) : R(0), p.mean_lo ? dev::load(p.mean_lo, row) : R(0), dev::load(p.rstd, row)};
}

template <class R> WF_ON_DEVICE R normalized(R x, const Stats<R> &s)
{
    return ((x - s.mean) - s.mean_lo) * s.rstd;
}

/* x and dy of one row in the registers of G threads, n columns from `begin`: vector k of member t begins at
 * (k * G + t) * V. */
template <class T, int G> struct Held {
    static constexpr int V = vec_of<T>;
    dev::vec<T, V>       x[VECTORS], dy[VECTORS];
    Stats<real_of<T>>    s;
};

template <class T, int G> struct Columns {
    static constexpr int V = vec_of<T>;
    int64_t              begin;
    int                  n, member;

    WF_ON_DEVICE int     offset(int k) const { return (k * G + member) * V; }
    WF_ON_DEVICE int64_t at(int k) const { return begin + offset(k); }
    WF_ON_DEVICE int     valid(int k) const { return valid_in(offset(k), n, V); }

    /* Nothing is read where the row is not present. */
    template <class P> WF_ON_DEVICE void load(const P &p, int64_t row, bool present, Held<T, G> &held) const
    {
#pragma unroll
        for (int k = 0; k < VECTORS; k++) {
            const int n = present ? valid(k) : 0;
            held.x[k] = load_packed<true, V>(p.x, row * p.x_stride + at(k), n, p.x_wide);
            held.dy[k] = load_packed<true, V>(p.dy, row * p.dy_stride + at(k), n, p.dy_wide);
        }
        held.s = present ? stats_at(p, row) : Stats<real_of<T>>{0, 0, 0};
    }

    template <class P> WF_ON_DEVICE void load_gamma(const P &p, real_of<T> (&gamma)[VECTORS][V]) const
    {
#pragma unroll
        for (int k = 0; k < VECTORS; k++) {
            if (p.gamma)
                load_reals(p.gamma, at(k), valid(k), p.w_wide, gamma[k]);
#pragma unroll
            for (int j = 0; j < V; j++)
                gamma[k][j] = p.gamma ? gamma[k][j] + p.weight_offset : real_of<T>(1);
        }
    }

    /* The calling thread's part of sum g and sum g * xhat. */
    WF_ON_DEVICE pair<real_of<T>> sums(const Held<T, G> &held, const real_of<T> (&gamma)[VECTORS][V], bool present) const
    {
        using R = real_of<T>;
        pair<R> sum = {0, 0};
#pragma unroll
        for (int k = 0; k < VECTORS; k++) {
            R         g[V], gx[V];
            const int n = present ? valid(k) : 0;
#pragma unroll
            for (int j = 0; j < V; j++) {
                g[j] = j < n ? gamma[k][j] * up(held.dy[k].v[j]) : R(0);
                gx[j] = j < n ? g[j] * normalized(up(held.x[k].v[j]), held.s) : R(0);
            }
            sum.g += tree_sum(g);
            sum.gx += tree_sum(gx);
        }
        return sum;
    }

    template <class P>
    WF_ON_DEVICE void write(const P &p, int64_t row, const Held<T, G> &held, const real_of<T> (&gamma)[VECTORS][V],
                         pair<real_of<T>> avg) const
    {
        using R = real_of<T>;
#pragma unroll
        for (int k = 0; k < VECTORS; k++) {
            R dx[V];
#pragma unroll
            for (int j = 0; j < V; j++) {
                const R g = gamma[k][j] * up(held.dy[k].v[j]), xhat = normalized(up(held.x[k].v[j]), held.s);
                dx[j] = held.s.rstd * ((g - avg.g) - xhat * avg.gx);
            }
            store_reals<true>(p.dx, row * p.dx_stride + at(k), valid(k), p.dx_wide, dx);
        }
    }
};

/* What the rows of one thread give to its columns of dgamma and dbeta. */
template <class T, int G> struct Gradients {
    static constexpr int V = vec_of<T>;
    real_of<T>           dgamma[VECTORS][V], dbeta[VECTORS][V];

    WF_ON_DEVICE Gradients()
    {
#pragma unroll
        for (int k = 0; k < VECTORS; k++)
#pragma unroll
            for (int j = 0; j < V; j++)
                dgamma[k][j] = dbeta[k][j] = 0;
    }

    WF_ON_DEVICE void add(const Held<T, G> &held, bool present)
    {
#pragma unroll
        for (int k = 0; k < VECTORS; k++)
#pragma unroll
            for (int j = 0; j < V; j++) {
                const real_of<T> dy = up(held.dy[k].v[j]);
                dgamma[k][j] += present ? dy * normalized(up(held.x[k].v[j]), held.s) : real_of<T>(0);
                dbeta[k][j] += dy;
            }
    }

    template <class P> WF_ON_DEVICE void write(const P &p, int64_t at, const Columns<T, G> &columns) const
    {
#pragma unroll
        for (int k = 0; k < VECTORS; k++) {
            const bool wide = dev::aligned<vec_of<real_of<T>>>(p.partial) && p.cols % vec_of<real_of<T>> == 0;
            store_reals<false>(p.partial, at * 2 * p.cols + columns.at(k), columns.valid(k), wide, dgamma[k]);
            store_reals<false>(p.partial, (at * 2 + 1) * p.cols + columns.at(k), columns.valid(k), wide, dbeta[k]);
        }
    }
};

template <int G> constexpr int block_of = G > 32 ? G : 256;

/* The partial row of a block whose groups of G lanes took different rows: the groups of a warp, then the warps in turn. */
template <class T, class P, int G>
WF_ON_DEVICE void merge_groups(const P &p, int64_t part, Gradients<T, G> &gradients, int member,
                            dev::shared<real_of<T>> sums)
{
    constexpr int V = vec_of<T>, SPAN = VECTORS * V * G;
    for (int warp = 0; warp < (int)blockDim.x / 32; warp++) {
#pragma unroll
        for (int k = 0; k < VECTORS; k++)
#pragma unroll
            for (int j = 0; j < V; j++) {
                const int at = (k * V + j) * G + member;
                if (warp == 0) {
#pragma unroll
                    for (int step = G; step < 32; step *= 2) {
                        gradients.dgamma[k][j] += __shfl_xor_sync(ALL_LANES, gradients.dgamma[k][j], step);
                        gradients.dbeta[k][j] += __shfl_xor_sync(ALL_LANES, gradients.dbeta[k][j], step);
                    }
                }
                if ((int)threadIdx.x / 32 == warp && threadIdx.x % 32 < G) {
                    sums[at] = (warp ? sums[at] : real_of<T>(0)) + gradients.dgamma[k][j];
                    sums[SPAN + at] = (warp ? sums[SPAN + at] : real_of<T>(0)) + gradients.dbeta[k][j];
                }
            }
        __syncthreads();
    }
    for (int64_t i = threadIdx.x; i < 2 * p.cols; i += blockDim.x) {
        const int out = i >= p.cols, col = (int)(i - out * p.cols), vector = col / V;
        const int at = (vector / G * V + col % V) * G + vector % G;
        dev::store(p.partial, part * 2 * p.cols + i, real_of<T>(sums[out * SPAN + at]));
    }
}

/* G threads per row: 8 or 32 lanes of a warp, all of a block, or all of a cluster with p.slice columns in each block. The next
 * row is on its way while one is worked on. */
template <class T, class W, int G>
__global__ void __launch_bounds__(block_of<G>, 512 / block_of<G>) layernorm_backward_dx__row_in_registers(Backward<T, W> p)
{
    using R = real_of<T>;
    constexpr int V = vec_of<T>, GROUPS = block_of<G> / G, WARPS = block_of<G> / 32;
    WF_SHARED(pair<R>, scratch, 2 * WARPS);
    WF_SHARED(R, sums, G <= 32 ? 2 * VECTORS * V * G : 1);
    const bool    clustered = dev::cluster_size() > 1;
    const int64_t size = dev::cluster_size(), part = blockIdx.x / size;
    Columns<T, G> columns;
    columns.begin = dev::cluster_rank() * p.slice;
    columns.n = (int)smallest(p.cols - columns.begin, p.slice); /* none where it is not positive */
    columns.member = threadIdx.x % G;
    R gamma[VECTORS][V];
    columns.load_gamma(p, gamma);

    Gradients<T, G> gradients;
    Held<T, G>      held, next;
    const int64_t   begin = part * p.run, end = smallest(p.rows, begin + p.run);
    const int64_t   offset = threadIdx.x / G;
    columns.load(p, begin + offset, begin + offset < end, next);
    for (int64_t first = begin, round = 0; first < end; first += GROUPS, round++) {
        const int64_t row = first + offset;
        const bool    present = row < end;
        held = next;
        columns.load(p, row + GROUPS, row + GROUPS < end, next);
        if (p.dx) {
            pair<R> sum = columns.sums(held, gamma, present);
            if constexpr (G <= 32)
                sum = lanes_sums<G>(sum);
            else
                sum = row_sums<WARPS>(sum, scratch + round % 2 * WARPS, clustered);
            sum.g = p.centered ? sum.g / (R)p.cols : R(0);
            sum.gx /= (R)p.cols;
            if (present)
                columns.write(p, row, held, gamma, sum);
        }
        gradients.add(held, present);
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

template <class T> constexpr int64_t segment_of = WIDE * VECTORS * vec_of<T>;

template <class T> WF_ON_DEVICE Columns<T, WIDE> segment_at(int64_t cols, int64_t segment)
{
    const int64_t begin = segment * segment_of<T>;
    return {begin, (int)smallest(cols - begin, segment_of<T>), (int)threadIdx.x};
}

/* One block per segment: its sums of g and of g * xhat. */
template <class T, class W>
__global__ void __launch_bounds__(WIDE) layernorm_backward_sums__segments(Backward<T, W> p)
{
    using R = real_of<T>;
    constexpr int V = vec_of<T>, WARPS = WIDE / 32;
    WF_SHARED(pair<R>, scratch, 2 * WARPS);
    int64_t round = 0;
    for (int64_t i = blockIdx.x; i < p.rows * p.segments; i += gridDim.x, round++) {
        const auto    columns = segment_at<T>(p.cols, i % p.segments);
        Held<T, WIDE> held;
        R             gamma[VECTORS][V];
        columns.load_gamma(p, gamma);
        columns.load(p, i / p.segments, true, held);
        const pair<R> sum = row_sums<WARPS>(columns.sums(held, gamma, true), scratch + round % 2 * WARPS, false);
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
    int64_t round = 0;
    for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x, round++) {
        LongSum<R> g, gx;
        for (int64_t i = threadIdx.x; i < p.segments; i += WIDE) {
            g.add(dev::load(p.sums, (row * p.segments + i) * 2));
            gx.add(dev::load(p.sums, (row * p.segments + i) * 2 + 1));
        }
        const pair<R> sum = row_sums<WARPS>(pair<R>{g.value(), gx.value()}, scratch + round % 2 * WARPS, false);
        if (threadIdx.x == 0) {
            dev::store(p.avg, row * 2, p.centered ? sum.g / (R)p.cols : R(0));
            dev::store(p.avg, row * 2 + 1, sum.gx / (R)p.cols);
        }
    }
}

/* One block per segment of a run of rows, which it reads a second time. */
template <class T, class W>
__global__ void __launch_bounds__(WIDE) layernorm_backward_dx__segments(Backward<T, W> p)
{
    using R = real_of<T>;
    constexpr int V = vec_of<T>;
    const int64_t part = blockIdx.x / p.segments;
    const auto    columns = segment_at<T>(p.cols, blockIdx.x % p.segments);
    R             gamma[VECTORS][V];
    columns.load_gamma(p, gamma);
    Gradients<T, WIDE> gradients;
    for (int64_t row = part * p.run; row < smallest(p.rows, (part + 1) * p.run); row++) {
        Held<T, WIDE> held;
        columns.load(p, row, true, held);
        if (p.dx)
            columns.write(p, row, held, gamma, {dev::load(p.avg, row * 2), dev::load(p.avg, row * 2 + 1)});
        gradients.add(held, true);
    }
    if (p.partial)
        gradients.write(p, part, columns);
}

/* ---- partial rows to dgamma and dbeta ---------------------------------------------------------------------------- */

template <class R, class W> struct Finish {
    dev::global<const R> partial; /* [runs, 2, cols] */
    dev::global<W>       dgamma, dbeta;
    int64_t              runs, cols;
    bool                 accumulate;
};

/* FINISH_COLS columns a block: thread (r, c) adds up rows r, r + FINISH_ROWS, ..., then one thread a column the results. */
template <class R, class W>
__global__ void __launch_bounds__(FINISH_COLS *FINISH_ROWS) layernorm_backward_parameters__finish(Finish<R, W> p)
{
    WF_SHARED(R, sums, FINISH_COLS * FINISH_ROWS);
    const int     r = threadIdx.x / FINISH_COLS, c = threadIdx.x % FINISH_COLS;
    const int64_t at = (int64_t)blockIdx.x * FINISH_COLS + c;
    LongSum<R>    sum;
    if (at < 2 * p.cols)
#pragma unroll 4
        for (int64_t i = r; i < p.runs; i += FINISH_ROWS)
            sum.add(dev::load_stream(p.partial, i * 2 * p.cols + at));
    sums[threadIdx.x] = sum.value();
    __syncthreads();
    const auto out = at < p.cols ? p.dgamma : p.dbeta;
    if (r > 0 || at >= 2 * p.cols || !out)
        return;
    R all[FINISH_ROWS];
#pragma unroll
    for (int i = 0; i < FINISH_ROWS; i++)
        all[i] = sums[i * FINISH_COLS + c];
    const int64_t col = at < p.cols ? at : at - p.cols;
    const R       total = tree_sum(all);
    dev::store(out, col, down<W>(p.accumulate ? up(dev::load(out, col)) + total : total));
}

/* ---- the variants ------------------------------------------------------------------------------------------------ */

using Problem = struct layernorm_backward;

enum { WIDE_SIZE = WIDE * VECTORS * 16 }; /* bytes of x that WIDE threads hold */

int64_t row_size(const Problem &p)
{
    return p.cols * (int64_t)wf_dtype_size(p.x_dtype);
}

/* Rows of a block that works on `groups` of them at once. */
int64_t run_for(const Problem &p, int groups)
{
    const int64_t each = ceil_div(ceil_div(p.rows, PARTIAL_ROWS), groups);
    return groups * (each < 1 ? 1 : smallest<int64_t>(each, RUN_MAX));
}

size_t real_size(const Problem &p)
{
    return wf_dtype_size(wf_statistics_dtype(p.x_dtype));
}

/* Partial rows begin on 64 bytes where the workspace does. */
template <int G> size_t partial_workspace(const Problem &p)
{
    return (size_t)(ceil_div(p.rows, run_for(p, block_of<G> / G)) * 2 * p.cols) * real_size(p);
}

/* Everything but what a variant adds; f(params) launches, then the partial rows are finished. */
template <int GROUPS, class F> void with_params(const Problem &p, Run &run, F f)
{
    with_dtypes((Element)p.x_dtype, (Element)p.w_dtype, [&](auto x, auto w) {
        using T = decltype(x);
        using W = decltype(w);
        using R = real_of<T>;
        constexpr int V = vec_of<T>;
        const bool parameters = p.dgamma || p.dbeta || run.load_only;
        const int64_t runs = ceil_div(p.rows, run_for(p, GROUPS));
        Backward<T, W> q = {};
        q.dy = buffer<const T>(p.dy), q.x = buffer<const T>(p.x), q.gamma = buffer<const W>(p.gamma);
        q.mean = buffer<const R>(p.mean), q.mean_lo = buffer<const R>(p.mean_lo), q.rstd = buffer<const R>(p.rstd);
        q.dx = buffer<T>(p.dx);
        q.rows = p.rows, q.cols = q.slice = p.cols;
        q.x_stride = p.x_stride, q.dy_stride = p.dy_stride, q.dx_stride = p.dx_stride;
        q.weight_offset = (R)p.weight_offset, q.centered = p.centered;
        q.x_wide = row_is_wide<V>(q.x, p.rows, p.x_stride), q.dy_wide = row_is_wide<V>(q.dy, p.rows, p.dy_stride);
        q.dx_wide = row_is_wide<V>(q.dx, p.rows, p.dx_stride), q.w_wide = row_is_wide<V>(q.gamma, 1, 0);
        q.run = run_for(p, GROUPS);
        q.partial = buffer<R>(parameters ? run.workspace : nullptr);
        if (p.cols == 0)
            return;
        if (p.rows > 0)
            f(q, runs);
        const Finish<R, W> finish = {buffer<const R>(run.workspace), buffer<W>(p.dgamma), buffer<W>(p.dbeta), runs, p.cols,
                                     p.accumulate};
        if (parameters)
            start(run, {dim3((unsigned)ceil_div(2 * p.cols, FINISH_COLS)), dim3(FINISH_COLS * FINISH_ROWS)},
                  layernorm_backward_parameters__finish<R, W>, finish);
    });
}

/* Not for rows so short that most threads would be idle: their partial rows would be many. */
template <int G> bool registers_take(const Problem &p)
{
    return row_size(p) <= G * VECTORS * 16 && (G <= 32 || row_size(p) > G * VECTORS * 4);
}

template <int G> void registers_launch(const Problem &p, Run &run)
{
    with_params<block_of<G> / G>(p, run, [&](auto q, int64_t runs) {
        using T = typename decltype(q)::X;
        using W = typename decltype(q)::Weight;
        start(run, {dim3((unsigned)runs), dim3(block_of<G>)}, layernorm_backward_dx__row_in_registers<T, W, G>, q);
    });
}

bool cluster_takes(const Problem &p)
{
    return row_size(p) > WIDE_SIZE && row_size(p) <= WIDE_SIZE * CLUSTER_MAX;
}

void cluster_launch(const Problem &p, Run &run)
{
    unsigned cluster = 2;
    while (row_size(p) > (int64_t)cluster * WIDE_SIZE)
        cluster *= 2;
    with_params<1>(p, run, [&](auto q, int64_t runs) {
        using T = typename decltype(q)::X;
        using W = typename decltype(q)::Weight;
        q.slice = ceil_div(ceil_div(p.cols, vec_of<T>), cluster) * vec_of<T>;
        start(run, {dim3((unsigned)runs * cluster), dim3(WIDE), 0, nullptr, cluster},
              layernorm_backward_dx__row_in_registers<T, W, WIDE>, q);
    });
}

int64_t segments_of(const Problem &p)
{
    return ceil_div(row_size(p), WIDE_SIZE);
}

bool segments_take(const Problem &p)
{
    return segments_of(p) > 1;
}

size_t segments_workspace(const Problem &p)
{
    return partial_workspace<WIDE>(p) + (size_t)(p.rows * (segments_of(p) + 1) * 2) * real_size(p);
}

void segments_launch(const Problem &p, Run &run)
{
    with_params<1>(p, run, [&](auto q, int64_t runs) {
        using T = typename decltype(q)::X;
        using W = typename decltype(q)::Weight;
        q.segments = segments_of(p);
        q.sums = buffer<real_of<T>>(run.workspace) + runs * 2 * p.cols;
        q.avg = q.sums + p.rows * q.segments * 2;
        if (p.dx || run.load_only) {
            start(run, {dim3(grid_for(p.rows * q.segments)), dim3(WIDE)}, layernorm_backward_sums__segments<T, W>, q);
            start(run, {dim3(grid_for(p.rows)), dim3(WIDE)}, layernorm_backward_averages__segments<T, W>, q);
        }
        start(run, {dim3((unsigned)(runs * q.segments)), dim3(WIDE)}, layernorm_backward_dx__segments<T, W>, q);
    });
}

} // namespace

/* How wide a row is decides alone, so that a row of dx has the same bits in every batch. */
const Variant<layernorm_backward> layernorm_backward_variants[] = {
    {"sub_warp_per_row", 0, registers_take<8>, partial_workspace<8>, registers_launch<8>},
    {"warp_per_row", 0, registers_take<32>, partial_workspace<32>, registers_launch<32>},
    {"block_of_128_per_row", 0, registers_take<128>, partial_workspace<128>, registers_launch<128>},
    {"block_of_256_per_row", 0, registers_take<256>, partial_workspace<256>, registers_launch<256>},
    {"block_of_512_per_row", 0, registers_take<WIDE>, partial_workspace<WIDE>, registers_launch<WIDE>},
    {"cluster_per_row", 90, cluster_takes, partial_workspace<WIDE>, cluster_launch},
    {"segments", 0, segments_take, segments_workspace, segments_launch},
    {},
};
