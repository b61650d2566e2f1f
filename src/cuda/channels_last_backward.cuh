/* x is [n, hw, c]: backward in two reads. A sample (across the batch: the whole tensor) is a matrix of vectors: as many rows are
 * folded into one as make it whole vectors, so that any c will do. A thread keeps to one column of vectors, whose elements are
 * always of the same channels; a block has some columns, a tile, and a chunk of rows. */
#ifndef WELFORD_CUDA_CHANNELS_LAST_BACKWARD_CUH
#define WELFORD_CUDA_CHANNELS_LAST_BACKWARD_CUH

#include "channelnorm_backward.cuh"

namespace backward
{

enum {
    TILE = 16,           /* vectors, at most: 256 bytes of a row */
    PITCH = TILE + 2,    /* of what shared memory keeps per element of a vector: apart, for the banks */
    SUMS_BLOCKS = 1024,  /* wanted across the batch, where that leaves each thread enough to do */
    SAMPLE_BLOCKS = 128, /* wanted of the sums of one sample */
    SUMS_STEPS = 64,     /* rows that a thread adds up in sequence, at most: the roundings of more would show */
    DX_BLOCKS = 2048,
    DX_STEPS = 32,
};

template <class B> struct Last {
    B       b;
    int64_t elements;    /* of a sample */
    int64_t rows, width; /* of a sample: folded rows, vectors in one */
    int64_t tiles, chunks, items;
    int     fold;        /* rows in a folded one */
    int     tile, down;  /* vectors of a tile; rows that a block works on at once */
    int     steps;       /* rows of a thread: a chunk has down * steps */
    Divisor by_tiles, by_chunks;
};

/* What a block works on, and its thread. */
template <class B> struct Tile {
    static constexpr int V = vec_of<typename B::X>;
    int64_t sample, chunk, first; /* vector of a row */
    int     width, column, row;
    bool    active;

    WF_ON_DEVICE Tile(const Last<B> &p, int64_t item)
    {
        const int64_t above = p.by_tiles.quotient(item);
        sample = p.by_chunks.quotient(above);
        chunk = above - sample * p.chunks;
        first = (item - above * p.tiles) * p.tile;
        width = (int)smallest<int64_t>(p.tile, p.width - first);
        row = (int)threadIdx.x / p.tile;
        column = (int)threadIdx.x % p.tile;
        active = row < p.down && column < width;
    }

    /* f(i, row of the fold, channel) for each element i of the tile's rows, by all threads. */
    template <class F> WF_ON_DEVICE void elements(const Last<B> &p, F f) const
    {
        for (int i = threadIdx.x; i < width * V; i += THREADS) {
            const int64_t at = first * V + i, fold = p.b.by_c.quotient(at);
            f(i, (int)fold, at - fold * p.b.c);
        }
    }

    /* In shared memory neighboring threads find the j-th element of their vectors side by side. */
    static WF_ON_DEVICE int slot(int i) { return i % V * PITCH + i / V; }

    /* The thread's vector of row `step` of its rows: where it begins in the sample. */
    WF_ON_DEVICE int64_t at(const Last<B> &p, int step) const
    {
        return ((chunk * p.steps + step) * p.down + row) * p.width * V + (first + column) * V;
    }

    WF_ON_DEVICE int valid(const Last<B> &p, int64_t at) const
    {
        return active ? valid_in(0, (int)smallest<int64_t>(p.elements - at > 0 ? p.elements - at : 0, V), V) : 0;
    }
};

template <class B>
__global__ void __launch_bounds__(THREADS, B::HAS_ENDING ? 1 : 2) channelnorm_backward_sums__channels_last(Last<B> p)
{
    using T = typename B::X;
    using R = typename B::R;
    using Known = typename B::Known;
    constexpr int V = vec_of<T>;
    WF_SHARED(Known, known, PITCH *V);
    constexpr int SUMS_PITCH = THREADS + 32 / V;
    WF_SHARED(R, gx, SUMS_PITCH *V);
    WF_SHARED(R, g, SUMS_PITCH *V);
    for (int64_t item = blockIdx.x; item < p.items; item += gridDim.x) {
        const Tile<B> t(p, item);
        t.elements(p, [&](int i, int, int64_t channel) { known[t.slot(i)] = known_of(p.b, t.sample, channel); });
        __syncthreads();
        R sum_gx[V] = {}, sum_g[V] = {};
#pragma unroll 1
        for (int step = 0; step < p.steps; step += VECTORS) {
            dev::vec<T, V> dy[VECTORS], x[VECTORS];
            int            valid[VECTORS];
            typename B::Ending::template Fetched<V> fetched[VECTORS];
#pragma unroll
            for (int k = 0; k < VECTORS; k++) {
                const int64_t at = t.at(p, step + k), from = t.sample * p.elements + at;
                valid[k] = t.valid(p, at);
                dy[k] = load_packed<false, V>(p.b.dy, from, valid[k], p.b.dy_wide);
                x[k] = load_packed<false, V>(p.b.x, from, p.b.x ? valid[k] : 0, p.b.x_wide);
                fetched[k] = p.b.ending.template fetch<false, V>(from, valid[k]);
            }
#pragma unroll
            for (int j = 0; j < V; j++) {
                const Known s = known[j * PITCH + t.column];
                R           a[VECTORS], b[VECTORS];
#pragma unroll
                for (int k = 0; k < VECTORS; k++) {
                    const R of_x = up(x[k].v[j]);
                    a[k] = p.b.ending.arriving(s, of_x, up(dy[k].v[j]), p.b.ending.template element<V>(fetched[k], j));
                    b[k] = j < valid[k] && p.b.x ? a[k] * s.normalized(of_x) : R(0);
                }
                sum_g[j] += tree_sum(a);
                sum_gx[j] += tree_sum(b);
            }
        }
#pragma unroll
        for (int j = 0; j < V; j++) {
            gx[j * SUMS_PITCH + threadIdx.x] = sum_gx[j];
            g[j * SUMS_PITCH + threadIdx.x] = sum_g[j];
        }
        __syncthreads();
        for (int left = p.down; left > 1;) {
            const int half = (left + 1) / 2;
            if (t.active && t.row + half < left)
#pragma unroll
                for (int j = 0; j < V; j++) {
                    gx[j * SUMS_PITCH + threadIdx.x] += gx[j * SUMS_PITCH + threadIdx.x + half * p.tile];
                    g[j * SUMS_PITCH + threadIdx.x] += g[j * SUMS_PITCH + threadIdx.x + half * p.tile];
                }
            left = half;
            __syncthreads();
        }
        t.elements(p, [&](int i, int fold, int64_t channel) {
            const int64_t row = (t.sample * p.chunks + t.chunk) * p.fold + fold, at = row * 2 * p.b.c + channel;
            dev::store(p.b.sums, at, R(gx[i % V * SUMS_PITCH + i / V]));
            dev::store(p.b.sums, at + p.b.c, R(g[i % V * SUMS_PITCH + i / V]));
        });
    }
}

/* The latest chunk first: what the sums read last may still be in cache. */
template <class B>
__global__ void __launch_bounds__(THREADS, B::HAS_ENDING && sizeof(typename B::R) == 8 ? 1 : 2)
    channelnorm_backward_dx__channels_last(Last<B> p)
{
    using T = typename B::X;
    constexpr int V = vec_of<T>;
    WF_SHARED(Channel<B>, channels, PITCH *V);
    for (int64_t i = blockIdx.x; i < p.items; i += gridDim.x) {
        const Tile<B> t(p, p.items - 1 - i);
        t.elements(p, [&](int k, int, int64_t channel) { channels[t.slot(k)] = channel_of(p.b, t.sample, channel); });
        __syncthreads();
#pragma unroll 1
        for (int step = 0; step < p.steps; step += VECTORS) {
            dev::vec<T, V> dy[VECTORS], x[VECTORS];
            typename B::Ending::template Fetched<V> fetched[VECTORS];
#pragma unroll
            for (int k = 0; k < VECTORS; k++) {
                const int64_t at = t.at(p, step + k), from = t.sample * p.elements + at;
                const int     valid = t.valid(p, at);
                dy[k] = load_packed<true, V>(p.b.dy, from, valid, p.b.dy_wide);
                x[k] = load_packed<true, V>(p.b.x, from, p.b.applies_x ? valid : 0, p.b.x_wide);
                fetched[k] = p.b.ending.template fetch<true, V>(from, valid);
            }
#pragma unroll
            for (int j = 0; j < V; j++) {
                const Channel<B> channel = channels[j * PITCH + t.column];
#pragma unroll
                for (int k = 0; k < VECTORS; k++) {
                    const auto of_x = up(x[k].v[j]), other = p.b.ending.template element<V>(fetched[k], j);
                    const auto dz = p.b.ending.arriving(channel.s, of_x, up(dy[k].v[j]), other);
                    p.b.ending.template keep<V>(fetched[k], j, dz);
                    dy[k].v[j] = down<T>(channel.gradient(of_x, dz, p.b.frozen));
                }
            }
#pragma unroll
            for (int k = 0; k < VECTORS; k++) {
                const int64_t at = t.at(p, step + k), to = t.sample * p.elements + at;
                if (!B::HAS_ENDING || p.b.dx)
                    store_packed<true>(p.b.dx, to, t.valid(p, at), p.b.dx_wide, dy[k]);
                p.b.ending.store(
                    [&](const auto &out, bool wide) { store_packed<true>(out, to, t.valid(p, at), wide, fetched[k]); });
            }
        }
        __syncthreads();
    }
}

/* ---- launches ---------------------------------------------------------------------------------------------------- */

/* As one sample of n * hw rows across the batch. */
template <class B> Last<B> last_tiles(const B &b)
{
    constexpr int64_t V = vec_of<typename B::X>;
    Last<B>           q = {};
    q.b = b;
    q.fold = 1;
    while (q.fold * b.c % (2 * V)) /* tiles are whole sectors, of 32 bytes */
        q.fold *= 2;
    q.elements = (b.across_batch ? b.n : 1) * b.hw * b.c;
    q.width = q.fold * b.c / V;
    q.rows = ceil_div(q.elements, q.width * V);
    q.tiles = ceil_div(q.width, TILE);
    q.tile = (int)ceil_div(q.width, 2 * q.tiles) * 2;
    q.tiles = ceil_div(q.width, q.tile);
    q.down = THREADS / q.tile;
    q.by_tiles = Divisor(q.tiles);
    return q;
}

template <class B> void last_chunks(Last<B> &q, int64_t samples, int64_t steps, int64_t most)
{
    q.steps = (int)smallest<int64_t>(most, ceil_div(steps < 1 ? 1 : steps, VECTORS) * VECTORS);
    q.chunks = ceil_div(q.rows, q.down * q.steps);
    q.by_chunks = Divisor(q.chunks);
    q.items = samples * q.tiles * q.chunks;
}

/* Chunks of a sample: by its shape alone, so that it has the same sums in every batch. */
template <class B> Last<B> last_sums_of(const B &b)
{
    Last<B> q = last_tiles(b);
    last_chunks(q, b.across_batch ? 1 : b.n, ceil_div(q.rows, q.down) * q.tiles / (b.across_batch ? SUMS_BLOCKS : SAMPLE_BLOCKS),
                SUMS_STEPS);
    return q;
}

template <class B> void last_sums(const B &b, Run &run)
{
    const Last<B> q = last_sums_of(b);
    start(run, {dim3(grid_for(q.items)), dim3(THREADS)}, channelnorm_backward_sums__channels_last<B>, q);
}

template <class B> void last_dx(const B &b, Run &run)
{
    Last<B>       q = last_tiles(b);
    const int64_t samples = b.across_batch ? 1 : b.n;
    last_chunks(q, samples, ceil_div(q.rows, q.down) * q.tiles * samples / DX_BLOCKS, DX_STEPS);
    start(run, {dim3(grid_for(q.items)), dim3(THREADS)}, channelnorm_backward_dx__channels_last<B>, q);
}

} // namespace backward

#endif
