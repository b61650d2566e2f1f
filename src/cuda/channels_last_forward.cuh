/* The channel norms' forward pass where x is [n, hw, c]. A sample, across the batch all of them, is a matrix. A block takes a
 * chunk of rows of a tile of columns into registers. If that is all of the rows, or what the blocks of a cluster have is, it is
 * read once. Else a block leaves its columns' moments, from which the sets' are merged; then the matrix is read again. */
#ifndef WELFORD_CUDA_CHANNELS_LAST_FORWARD_CUH
#define WELFORD_CUDA_CHANNELS_LAST_FORWARD_CUH

#include "channels_last_matrix.cuh"

namespace channels_last
{

enum {
    TILE_SIZE = 128, /* bytes of a row in a tile that is read twice */
    WIDE_SIZE = 128, /* of one that is read once, by one block if it has few rows, */
    NARROW_SIZE = 32, /* or by a cluster */
    APPLIED = 4,     /* vectors that a thread has on their way when it applies */
    APPLIED_MOST = 1024,
    APPLYING_BLOCKS = 1024, /* wanted */
    MERGED_BY_WARP = 256,   /* parts of a set, at most */
};

template <class R> struct Coefficients {
    R mean, mean_lo, factor, shift;
};

template <class T> struct Forward : Sets<T> {
    using typename Sets<T>::R;
    Matrix  m, applied;
    int64_t groups, group_channels;
    Divisor by_groups, by_group_channels;
    bool    across_batch, known;
    int64_t run, runs; /* folded rows of a block that applies */

    /* The parts of a set, for the kernel that merges them: chunk by chunk, in a chunk tile by tile. */
    WF_ON_DEVICE int64_t part_at(int64_t set, int64_t i) const
    {
        const int64_t sample = across_batch ? 0 : by_groups.quotient(set), group = set - sample * groups;
        const int64_t chunk = m.by_split.quotient(i), part = i - chunk * m.split;
        return (sample * m.chunks + chunk) * m.width + group * group_channels + part * m.tile_cols;
    }

    WF_ON_DEVICE int64_t before(int64_t i) const
    {
        const int64_t chunk = m.by_split.quotient(i), part = i - chunk * m.split;
        const int64_t first = m.rows_before(chunk), rows = m.rows_before(chunk + 1) - first;
        return first * group_channels + part * m.tile_cols * rows;
    }

    WF_ON_DEVICE R known_rstd(int64_t channel) const
    {
        const moments_of<R> of = {0, 0, dev::load(this->running_var_in, channel), 0};
        return moments_rstd(of, 1, this->eps);
    }
};

template <class T, bool ENDS> struct Ended : Forward<T> {
    using typename Forward<T>::R;
    Ending<T, ENDS> ending;

    WF_ON_DEVICE Coefficients<R> coefficients(const Stats<R> &s, int64_t sample, int64_t channel) const
    {
        const auto pair = ending.pair(sample * this->m.c + channel);
        return {s.mean, s.mean_lo, s.rstd * ending.factor(this->gamma, channel, pair), ending.shifted(this->beta, channel, pair)};
    }

    WF_ON_DEVICE Coefficients<R> coefficients(int64_t sample, int64_t column) const
    {
        const int64_t channel = this->applied.by_c.remainder(column);
        Stats<R>      s;
        if (this->known)
            s = {dev::load(this->running_mean_in, channel), 0, this->known_rstd(channel)};
        else
            s = load_stats(this->stats, sample * this->groups + this->by_group_channels.quotient(channel));
        return coefficients(s, sample, channel);
    }
};

/* ---- moments of columns ------------------------------------------------------------------------------------------ */

/* For N values of each of a thread's V columns: together(a, b) over the threads of the block that have the column. Thread
 * t < COLS has the results of column(t). One barrier; another must come before the next call. */
template <int N, class S, class R, int V, class F>
WF_ON_DEVICE void columns_together(R (&values)[N][V], R (&result)[N], dev::shared<R> scratch, F together)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int j = 0; j < V; j++) {
            for (int step = S::LANES; step < 32; step *= 2)
                values[n][j] = together(values[n][j], __shfl_xor_sync(ALL_LANES, values[n][j], step));
            if (lane < S::LANES)
                scratch[(n * WARPS + warp) * S::COLS + j * S::LANES + lane] = values[n][j];
        }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < N && threadIdx.x < S::COLS; n++) {
        R part[WARPS];
#pragma unroll
        for (int w = 0; w < WARPS; w++)
            part[w] = scratch[(n * WARPS + w) * S::COLS + threadIdx.x];
#pragma unroll
        for (int width = WARPS / 2; width > 0; width /= 2)
#pragma unroll
            for (int w = 0; w < width; w++)
                part[w] = together(part[w], part[w + width]);
        result[n] = part[0];
    }
}

/* A block's chunk of a tile, packed in registers: vector k of a thread is in row k * ROWS + its own. */
template <class T, class S, int V> struct Chunk {
    using R = real_of<T>;
    dev::vec<T, V> packed[S::HELD];
    int64_t        at, stride; /* the first vector's place, and how far it is to the next */
    int            whole, rest; /* whole vectors, and what is valid of the one behind them */

    WF_ON_DEVICE int valid(int k) const { return k < whole ? V : k == whole ? rest : 0; }

    template <bool Stream, class P>
    WF_ON_DEVICE void load(const P &p, int64_t sample, int64_t chunk, const Matrix::Columns &columns)
    {
        const int64_t column = columns.begin + threadIdx.x % S::LANES * V;
        const int64_t first = (chunk * S::CHUNK + threadIdx.x / S::LANES) * p.m.width + column;
        const int64_t left = column < columns.end ? p.m.size - first : 0;
        at = sample * p.m.size + first;
        stride = S::ROWS * p.m.width;
        whole = S::HELD;
        while (whole > 0 && left < (whole - 1) * stride + V)
            whole--;
        rest = (int)smallest<int64_t>(V, left - whole * stride);
        rest = rest < 0 ? 0 : rest;
#pragma unroll
        for (int k = 0; k < S::HELD; k++)
            packed[k] = load_packed<Stream, V>(p.x, at + k * stride, valid(k), p.x_wide);
    }

    /* sums[0]: of d = (x - center) * factor^2; sums[1]: of its squares. Four rows at a time, as trees. */
    template <bool Whole> WF_ON_DEVICE void squares(const R (&center)[V], const R (&factor)[V], R (&sums)[2][V]) const
    {
#pragma unroll
        for (int j = 0; j < V; j++)
            sums[0][j] = sums[1][j] = 0;
#pragma unroll
        for (int k = 0; k < S::HELD; k += 4)
#pragma unroll
            for (int j = 0; j < V; j++) {
                R d[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const R x = up(packed[k + i].v[j]) - center[j];
                    d[i] = Whole ? x : j < valid(k + i) ? x * factor[j] * factor[j] : R(0);
                }
                sums[0][j] += (d[0] + d[1]) + (d[2] + d[3]);
                sums[1][j] += (d[0] * d[0] + d[1] * d[1]) + (d[2] * d[2] + d[3] * d[3]);
            }
    }

    /* Of the set of column(t), which has `count` values, in thread t < COLS: two sweeps, as row_moments. across(results,
     * together) makes results of the columns into those of their sets. scratch: 2 * WARPS * COLS reals; columns: COLS. */
    template <class Across>
    WF_ON_DEVICE moments_of<R> moments(int count, dev::shared<R> scratch, dev::shared<R> columns, dev::shared<int> flags,
                                       Across across) const
    {
        const int  t = threadIdx.x, lane = t % S::LANES;
        R          of_column[1] = {0}, of_squares[2] = {0, 0}, center[V], one[V];
        R          sum[1][V], sums[2][V];
#pragma unroll
        for (int j = 0; j < V; j++) {
            sum[0][j] = 0;
            one[j] = 1;
        }
#pragma unroll
        for (int k = 0; k < S::HELD; k += 4) /* what is not valid is 0 */
#pragma unroll
            for (int j = 0; j < V; j++)
                sum[0][j] += (up(packed[k].v[j]) + up(packed[k + 1].v[j])) + (up(packed[k + 2].v[j]) + up(packed[k + 3].v[j]));
        columns_together<1, S>(sum, of_column, scratch, Sum());
        across(of_column, Sum());
        const R rough = t < S::COLS && count ? of_column[0] / (R)count : R(0);
        if (t < S::COLS)
            columns[t] = rough;
        __syncthreads();
#pragma unroll
        for (int j = 0; j < V; j++)
            center[j] = columns[j * S::LANES + lane];

        if (whole == S::HELD)
            squares<true>(center, one, sums);
        else
            squares<false>(center, one, sums);
        columns_together<2, S>(sums, of_squares, scratch, Sum());
        across(of_squares, Sum());
        const bool rescue = t < S::COLS && count && !in_range(of_squares[1]);
        if (t < (S::COLS > 32 ? S::COLS : 32)) {
            const bool any = __any_sync(ALL_LANES, rescue);
            if (t % 32 == 0)
                flags[t / 32] = any;
        }
        __syncthreads();
        int scale = 0;
        if (flags[0] || (S::COLS > 32 && flags[1])) {
            R factor[V];
#pragma unroll
            for (int j = 0; j < V; j++) {
                sum[0][j] = 0;
#pragma unroll
                for (int k = 0; k < S::HELD; k++)
                    sum[0][j] = j < valid(k) ? Largest()(sum[0][j], absolute(up(packed[k].v[j]) - center[j])) : sum[0][j];
            }
            columns_together<1, S>(sum, of_column, scratch, Largest());
            across(of_column, Largest());
            const bool usable = rescue && of_column[0] > 0 && isfinite(of_column[0]);
            scale = usable ? exponent_of(of_column[0]) / 2 * 2 : 0;
            if (t < S::COLS)
                columns[t] = (R)(-scale / 2);
            __syncthreads();
#pragma unroll
            for (int j = 0; j < V; j++)
                factor[j] = power_of_two<R>((int)columns[j * S::LANES + lane]);
            R again[2] = {0, 0};
            squares<false>(center, factor, sums);
            columns_together<2, S>(sums, again, scratch, Sum());
            across(again, Sum());
            of_squares[0] = usable ? again[0] : of_squares[0];
            of_squares[1] = usable ? again[1] : of_squares[1];
            __syncthreads();
        }
        moments_of<R> m = {0, 0, 0, scale};
        if (t < S::COLS && count) {
            const R lo = of_squares[0] / (R)count, m2 = of_squares[1] - of_squares[0] * lo;
            m.m2 = m2 < 0 ? R(0) : m2;
            shift_mean(rough, scale ? (R)ldexp((double)lo, scale) : lo, m);
        }
        return m;
    }
};

/* Results of sets from those of a block's columns: `channels` of them next to each other from `first` on in each fold, and what
 * other blocks of the cluster have of them. Every thread calls; each call has its own part of `slots`, 6 * COLS reals. */
template <class S, class R> struct AcrossSet {
    int            first, channels, folds, stride; /* from fold to fold */
    bool           clustered;
    dev::shared<R> own, slots; /* 2 * COLS reals, and those; slots only where clustered */
    int           *used;

    template <int N, class F> WF_ON_DEVICE void operator()(R (&results)[N], F together) const
    {
        const int t = threadIdx.x, slot = *used * S::COLS;
        *used += N;
        if (channels * folds > 1) {
            for (int n = 0; n < N && t < S::COLS; n++)
                own[n * S::COLS + S::column(t)] = results[n];
            __syncthreads();
            for (int n = 0; n < N && t < S::COLS; n++) {
                R all = own[n * S::COLS + first];
                for (int fold = 0; fold < folds; fold++)
#pragma unroll 4
                    for (int i = fold ? 0 : 1; i < channels; i++)
                        all = together(all, R(own[n * S::COLS + first + fold * stride + i]));
                results[n] = all;
            }
        }
        if (!clustered)
            return;
        for (int n = 0; n < N && t < S::COLS; n++)
            slots[slot + n * S::COLS + t] = results[n];
        dev::cluster_sync();
        for (int n = 0; n < N && t < S::COLS; n++) {
            const int at = slot + n * S::COLS + t;
            results[n] = dev::cluster_map(slots, 0)[at];
            for (unsigned rank = 1; rank < dev::cluster_size(); rank++)
                results[n] = together(results[n], R(dev::cluster_map(slots, rank)[at]));
        }
    }
};

/* A block per chunk of a tile: moments of its columns, or of its parts of sets. */
template <class T, int V>
__global__ void __launch_bounds__(THREADS, 2) channels_last_forward_moments__tiles(Forward<T> p)
{
    using R = real_of<T>;
    using S = Tile<T, V, TILE_SIZE>;
    WF_SHARED(R, scratch, 2 * WARPS * S::COLS);
    WF_SHARED(R, columns, S::COLS);
    WF_SHARED(R, own, 2 * S::COLS);
    WF_SHARED(int, flags, 2);
    for (int64_t i = blockIdx.x; i < p.m.samples * p.m.chunks * p.m.tiles; i += gridDim.x) {
        const int64_t  of_tiles = p.m.by_tiles.quotient(i), tile = i - of_tiles * p.m.tiles;
        const int64_t  sample = p.m.by_chunks.quotient(of_tiles), chunk = of_tiles - sample * p.m.chunks;
        const auto     of_tile = p.m.columns(tile);
        const int64_t  column = of_tile.begin + S::column(threadIdx.x);
        const bool     present = threadIdx.x < S::COLS && column < of_tile.end;
        Chunk<T, S, V> x;
        x.template load<false>(p, sample, chunk, of_tile);
        int       used = 0;
        const int unit = (int)smallest(p.group_channels, of_tile.end - of_tile.begin); /* channels of a set */
        const int in_fold = (int)(p.m.fold > 1 && present ? p.m.by_c.remainder(column) : S::column(threadIdx.x));
        const int first = present ? in_fold / unit * unit : 0;
        const int count = (int)((p.m.rows_before(chunk + 1) - p.m.rows_before(chunk)) * unit);
        const AcrossSet<S, R> across = {first, unit, (int)p.m.fold, (int)p.m.c, false, own, own, &used};
        const auto m = x.moments(present ? count : 0, scratch, columns, flags, across);
        if (present && S::column(threadIdx.x) == first)
            store_moments(p.part, (sample * p.m.chunks + chunk) * p.m.width + column, m);
    }
}

/* ---- apply ------------------------------------------------------------------------------------------------------- */

/* What y of a thread's columns is made with: y = ((x - a[0]) - a[1]) * a[2] + a[3]. Shared memory has it of column(t)
 * in element t of each of four rows. */
template <class S, class R, int V> struct Applied {
    R a[4][V];

    static WF_ON_DEVICE void keep(dev::shared<R> columns, const Coefficients<R> &c)
    {
        const R of_column[4] = {c.mean, c.mean_lo, c.factor, c.shift};
        for (int k = 0; k < 4; k++)
            columns[k * S::COLS + threadIdx.x] = of_column[k];
    }

    WF_ON_DEVICE void load(dev::shared<R> columns)
    {
#pragma unroll
        for (int k = 0; k < 4; k++)
#pragma unroll
            for (int j = 0; j < V; j++)
                a[k][j] = columns[k * S::COLS + j * S::LANES + threadIdx.x % S::LANES];
    }

    template <class P, class T, class Fetched>
    WF_ON_DEVICE void write(const P &p, int64_t at, int valid, const dev::vec<T, V> &packed, const Fetched &fetched) const
    {
        R x[V], y[V];
        unpack(packed, x);
#pragma unroll
        for (int j = 0; j < V; j++)
            y[j] = multiply_add((x[j] - a[0][j]) - a[1][j], a[2][j], a[3][j]);
        p.ending.apply(fetched, y);
        store_reals<true>(p.y, at, valid, p.y_wide, y);
    }
};

/* A block per run of rows of a tile, the last first: L2 has the latest. The first rows are on their way while a thread for
 * each column finds out what y is made with. */
template <class T, int V, bool ENDS>
__global__ void __launch_bounds__(THREADS, 2) channels_last_forward_apply__tiles(Ended<T, ENDS> p)
{
    using R = real_of<T>;
    using S = Tile<T, V, TILE_SIZE>;
    WF_SHARED(R, columns, 4 * S::COLS);
    for (int64_t left = p.applied.samples * p.runs * p.applied.tiles - blockIdx.x; left > 0; left -= gridDim.x) {
        const int64_t of_tiles = p.applied.by_tiles.quotient(left - 1), tile = left - 1 - of_tiles * p.applied.tiles;
        const int64_t sample = of_tiles / p.runs, begin = of_tiles % p.runs * p.run;
        const int64_t end = smallest(p.applied.folded_rows, begin + p.run);
        const int64_t column = tile * S::COLS + threadIdx.x % S::LANES * V, below = threadIdx.x / S::LANES;
        const int64_t stride = S::ROWS * p.applied.width, base = sample * p.applied.size;
        const int64_t own = tile * S::COLS + S::column(threadIdx.x);
        Applied<S, R, V> applied;
        for (int64_t row = begin; row < end; row += APPLIED * S::ROWS) {
            const int64_t  at = (row + below) * p.applied.width + column;
            dev::vec<T, V> packed[APPLIED];
            int            valid[APPLIED];
            typename Ending<T, ENDS>::template Fetched<V> fetched[APPLIED];
#pragma unroll
            for (int k = 0; k < APPLIED; k++) {
                const bool    present = column < p.applied.width && row + below + k * S::ROWS < end;
                const int64_t n = present ? p.applied.size - at - k * stride : 0;
                valid[k] = n >= V ? V : n > 0 ? (int)n : 0;
                packed[k] = load_packed<true, V>(p.x, base + at + k * stride, valid[k], p.x_wide);
                fetched[k] = p.ending.template fetch<V>(base + at + k * stride, valid[k]);
            }
            if (row == begin) {
                if (threadIdx.x < S::COLS && own < p.applied.width)
                    applied.keep(columns, p.coefficients(sample, own));
                __syncthreads();
                applied.load(columns);
            }
#pragma unroll
            for (int k = 0; k < APPLIED; k++)
                applied.write(p, base + at + k * stride, valid[k], packed[k], fetched[k]);
        }
        if (p.known && p.rstd && sample == 0 && begin == 0 && threadIdx.x < S::COLS && own < p.applied.c)
            dev::store(p.rstd, own, p.known_rstd(own));
        __syncthreads(); /* the columns have been read */
    }
}

/* ---- on chip ----------------------------------------------------------------------------------------------------- */

/* 16-bit elements: half of what is held to be read twice, as what y is made with is held too. */
template <class T, int SIZE> using OnChip = Tile<T, vec_of<T>, SIZE, sizeof(T) == 2 ? 64 : 128>;

/* A block, or a cluster, for all rows of a tile of whole sets. */
template <class T, int SIZE, bool ENDS>
__global__ void __launch_bounds__(THREADS, sizeof(T) == 8 ? 1 : 2) channels_last_forward__on_chip(Ended<T, ENDS> p)
{
    using R = real_of<T>;
    constexpr int V = vec_of<T>;
    using S = OnChip<T, SIZE>;
    WF_SHARED(R, scratch, 2 * WARPS * S::COLS);
    WF_SHARED(R, columns, S::COLS);
    WF_SHARED(R, own, 2 * S::COLS);
    WF_SHARED(R, slots, 6 * S::COLS);
    WF_SHARED(R, coefficients, 4 * S::COLS);
    WF_SHARED(int, flags, 2);
    const unsigned size = dev::cluster_size(), rank = dev::cluster_rank();
    for (int64_t i = blockIdx.x / size; i < p.m.samples * p.m.tiles; i += gridDim.x / size) {
        const int64_t  sample = p.m.by_tiles.quotient(i), tile = i - sample * p.m.tiles;
        const int64_t  channel = tile * S::COLS + S::column(threadIdx.x);
        const bool     present = threadIdx.x < S::COLS && channel < p.m.c;
        Chunk<T, S, V> x;
        x.template load<true>(p, sample, rank, p.m.columns(tile));
        int                   used = 0;
        const int             channels = (int)p.group_channels, first = S::column(threadIdx.x) / channels * channels;
        const AcrossSet<S, R> across = {first, channels, 1, 0, size > 1, own, slots, &used};
        const auto m = x.moments(present ? (int)p.cols : 0, scratch, columns, flags, across);
        if (present) {
            const auto    s = p.finish(m);
            const int64_t group = p.by_group_channels.quotient(channel);
            if (rank == 0 && channel == group * p.group_channels)
                p.keep(sample * p.groups + group, m, s);
            Applied<S, R, V>::keep(coefficients, p.coefficients(s, sample, channel));
        }
        __syncthreads();
        Applied<S, R, V> applied;
        applied.load(coefficients);
#pragma unroll
        for (int k = 0; k < S::HELD; k++)
            applied.write(p, x.at + k * x.stride, x.valid(k), x.packed[k],
                          p.ending.template fetch<V>(x.at + k * x.stride, x.valid(k)));
    }
    if (size > 1)
        dev::cluster_sync(); /* nobody leaves while its slots may still be read */
}

/* ---- the variants ------------------------------------------------------------------------------------------------ */

/* f(V(), matrix) for the widest vectors that are aligned where the tensor is, as every sample begins with one, and that suit. */
template <class T, class F> void with_width(const Geometry &g, bool whole_sets, F f)
{
    const auto fits = [&](auto width) {
        const Matrix m = matrix_of<Tile<T, width(), TILE_SIZE>>(g, width(), whole_sets);
        const bool   suits = m.tile_cols > 0 && (g.across_batch || g.hw * g.c % width() == 0);
        if (suits)
            f(width, m);
        return suits;
    };
    if (fits(std::integral_constant<int, vec_of<T>>()))
        return;
    if constexpr (vec_of<T> > 4)
        if (fits(std::integral_constant<int, 4>()))
            return;
    fits(std::integral_constant<int, 1>());
}

template <class T> Forward<T> params_of(const Problem &p, const Geometry &g, const Matrix &m, int64_t used, Run &run)
{
    auto q = sets_of<Forward<T>>(p, g, run, used);
    q.x_wide = dev::aligned<vec_of<T>>(q.x), q.y_wide = dev::aligned<vec_of<T>>(q.y);
    q.m = q.applied = m;
    q.groups = g.groups, q.group_channels = g.group_channels;
    q.by_groups = Divisor(g.groups), q.by_group_channels = Divisor(g.group_channels);
    q.across_batch = g.across_batch, q.known = p.known;
    return q;
}

/* Tiles of whole vectors and sets, by at most MOST blocks each. */
template <int SIZE, int MOST> bool on_chip_takes(const Problem &p)
{
    const Geometry g = geometry_of(p);
    const int      element = (int)wf_dtype_size(p.shape.x_dtype), cols = SIZE / element, held = element == 2 ? 4 : 8;
    const int64_t  rows = g.across_batch ? g.n * g.hw : g.hw;
    return g.last && !p.known && g.c >= cols && g.c % (16 / element) == 0 && cols % g.group_channels == 0 && rows > 0 &&
           rows <= THREADS * 16 / SIZE * held * MOST;
}

inline size_t on_chip_workspace(const Problem &p)
{
    return reals(p, average_reals(geometry_of(p), p));
}

template <bool ENDS, int V, class T> Ended<T, ENDS> ended(const Problem &p, const Forward<T> &q)
{
    return {q, ending_of<ENDS, T, V>(p)};
}

template <int SIZE, bool ENDS = false> void on_chip_launch(const Problem &p, Run &run)
{
    if constexpr (!ENDS)
        if (ends(p))
            return on_chip_launch<SIZE, true>(p, run);
    const Geometry g = geometry_of(p);
    with_dtypes((Element)p.shape.x_dtype, (Element)p.shape.x_dtype, [&](auto x, auto) {
        using T = decltype(x);
        using S = OnChip<T, SIZE>;
        const Matrix   m = matrix_of<S>(g, vec_of<T>, true);
        const auto     q = params_of<T>(p, g, m, 0, run);
        unsigned       cluster = 1;
        while (cluster * S::CHUNK < m.rows)
            cluster *= 2;
        if (q.rows > 0)
            start(run, {dim3(grid_for(m.samples * m.tiles) * cluster), dim3(THREADS), 0, nullptr, cluster},
                  channels_last_forward__on_chip<T, SIZE, ENDS>, ended<ENDS, vec_of<T>>(p, q));
        start_average<T>(p, g, q, run);
    });
}

inline int64_t part_reals(const Matrix &m)
{
    return m.samples * m.chunks * m.width * 4;
}

inline bool takes(const Problem &p)
{
    return geometry_of(p).last && !p.known;
}

inline bool known_takes(const Problem &p)
{
    return geometry_of(p).last && p.known;
}

/* f(T(), geometry) */
template <class F> void with_type(const Problem &p, F f)
{
    with_dtypes((Element)p.shape.x_dtype, (Element)p.shape.x_dtype, [&](auto x, auto) { f(x, geometry_of(p)); });
}

inline size_t workspace(const Problem &p)
{
    size_t size = 0;
    with_type(p, [&](auto x, const Geometry &g) {
        with_width<decltype(x)>(g, true, [&](auto, const Matrix &m) {
            size = reals(p, part_reals(m) + 3 * g.sets + average_reals(g, p));
        });
    });
    return size;
}

/* Returns where in the workspace, in reals, what sets are normalized with is. */
template <class T> int64_t start_moments(Forward<T> &q, const Problem &p, const Geometry &g, Run &run)
{
    int64_t stats_at = 0;
    with_width<T>(g, true, [&](auto width, const Matrix &m) {
        const int64_t part = part_reals(m), blocks = m.samples * m.chunks * m.tiles;
        q = params_of<T>(p, g, m, part + 3 * g.sets, run);
        q.parts = m.chunks * m.split;
        q.part = buffer<real_of<T>>(run.workspace);
        q.stats = q.part + part;
        stats_at = part;
        if (blocks > 0)
            start(run, {dim3(grid_for(blocks)), dim3(THREADS)}, channels_last_forward_moments__tiles<T, width()>, q);
    });
    if (q.rows > 0 && q.parts <= MERGED_BY_WARP)
        start_merge<32>(q, run);
    else if (q.rows > 0)
        start_merge<WIDE>(q, run);
    return stats_at;
}

template <bool ENDS> void apply_launch(const Problem &p, int64_t stats_at, Run &run)
{
    if constexpr (!ENDS)
        if (ends(p))
            return apply_launch<true>(p, stats_at, run);
    with_type(p, [&](auto x, const Geometry &g) {
        using T = decltype(x);
        with_width<T>(g, false, [&](auto width, const Matrix &m) {
            auto q = params_of<T>(p, g, m, 0, run);
            q.stats = buffer<real_of<T>>(run.workspace) + stats_at;
            q.run = Tile<T, width(), TILE_SIZE>::ROWS * APPLIED;
            while (q.run < APPLIED_MOST && m.samples * m.tiles * ceil_div(m.folded_rows, 2 * q.run) >= APPLYING_BLOCKS)
                q.run *= 2;
            q.runs = m.folded_rows ? ceil_div(m.folded_rows, q.run) : 1; /* what is known has results though there is no x */
            const int64_t blocks = m.samples * q.runs * m.tiles;
            if (blocks > 0)
                start(run, {dim3(grid_for(blocks)), dim3(THREADS)}, channels_last_forward_apply__tiles<T, width(), ENDS>,
                      ended<ENDS, width()>(p, q));
        });
    });
}

inline void launch(const Problem &p, Run &run)
{
    with_type(p, [&](auto x, const Geometry &g) {
        using T = decltype(x);
        Forward<T> q = {};
        apply_launch<false>(p, p.known ? 0 : start_moments<T>(q, p, g, run), run);
        start_average<T>(p, g, q, run);
    });
}

ENDINGS void on_chip_launch<WIDE_SIZE, true>(const Problem &, Run &);
ENDINGS void on_chip_launch<NARROW_SIZE, true>(const Problem &, Run &);
ENDINGS void apply_launch<true>(const Problem &, int64_t, Run &);

} // namespace channels_last

#endif
