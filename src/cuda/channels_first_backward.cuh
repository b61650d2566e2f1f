/* x is [n, c, hw]: backward in two reads. Sums are those of lines (a channel of a sample); which thread adds which elements of a
 * line up, and in what order, does not depend on where the line begins. dx has no such bounds: it is written in spans that
 * begin on whole vectors, whatever hw is. */
#ifndef WELFORD_CUDA_CHANNELS_FIRST_BACKWARD_CUH
#define WELFORD_CUDA_CHANNELS_FIRST_BACKWARD_CUH

#include "channelnorm_backward.cuh"

namespace
{

enum { LINES = 256 }; /* at most, of a block */

template <class T> constexpr int staged_of = THREADS *VECTORS *vec_of<T>; /* elements of a block */

/* ---- sums -------------------------------------------------------------------------------------------------------- */

/* A piece is some lines or, of lines that are long, a segment of one. */
template <class T> struct FirstSums {
    Backward<T> b;
    int64_t     lines, pieces;
    int         piece_lines;
    int         lanes;             /* that share a line: a power of two up to 32, or all threads */
    int64_t     segments, segment; /* of a line; elements of one: hw where there is one */
    Divisor     by_segments;
    bool        whole; /* lines and segments are whole vectors */
};

/* Elements [begin, begin + n) into shared memory: element begin + i to shift + i, shift = begin % V. Arrived after
 * cp_async_wait and a barrier. */
template <class T> WF_ON_DEVICE void stage(dev::global<const T> h, int64_t begin, int n, bool wide, dev::shared<T> to)
{
    constexpr int V = vec_of<T>;
    const int     shift = (int)(begin % V);
    for (int at = threadIdx.x * V; at < shift + n; at += blockDim.x * V) {
        const int i = at - shift;
        if (wide && i >= 0 && i + V <= n)
            dev::cp_async16(to + at, h, begin + i);
        else
#pragma unroll
            for (int j = 0; j < V; j++)
                if (i + j >= 0 && i + j < n)
                    to[at + j] = dev::load(h, begin + i + j);
    }
}

/* The part of sum dy and sum dy * xhat of n elements, staged at `at`, that is for one of so many lanes. */
template <class T>
WF_ON_DEVICE pair<real_of<T>> line_sums(dev::shared<T> dy, dev::shared<T> x, int at, int n, bool whole, bool has_x,
                                     const Stats<real_of<T>> &s, int lane, int lanes)
{
    using R = real_of<T>;
    constexpr int V = vec_of<T>, STEP = 4;
    pair<R>       sum = {0, 0};
    if (whole) {
        for (int i = lane; i < n / V; i += lanes) {
            const auto packed_dy = dev::recast<dev::vec<T, V>>(dy)[at / V + i];
            const auto packed_x = dev::recast<dev::vec<T, V>>(x)[at / V + i];
            R          g[V], gx[V];
#pragma unroll
            for (int j = 0; j < V; j++) {
                g[j] = up(packed_dy.v[j]);
                gx[j] = has_x ? g[j] * s.normalized(up(packed_x.v[j])) : R(0);
            }
            sum.g += tree_sum(g);
            sum.gx += tree_sum(gx);
        }
        return sum;
    }
    for (int i = lane; i < n; i += STEP * lanes) {
        R g[STEP], gx[STEP];
#pragma unroll
        for (int j = 0; j < STEP; j++) {
            const int k = i + j * lanes;
            g[j] = k < n ? up(dy[at + k]) : R(0);
            gx[j] = k < n && has_x ? g[j] * s.normalized(up(x[at + k])) : R(0);
        }
        sum.g += tree_sum(g);
        sum.gx += tree_sum(gx);
    }
    return sum;
}

template <class T>
__global__ void __launch_bounds__(THREADS) channelnorm_backward_sums__channels_first(FirstSums<T> p)
{
    using R = real_of<T>;
    WF_SHARED(T, dy, staged_of<T>);
    WF_SHARED(T, x, staged_of<T>);
    WF_SHARED(Stats<R>, stats, LINES);
    WF_SHARED(pair<R>, scratch, 2 * WARPS);
    const int member = threadIdx.x % p.lanes, group = threadIdx.x / p.lanes, groups = THREADS / p.lanes;
    for (int64_t piece = blockIdx.x; piece < p.pieces; piece += gridDim.x) {
        const int64_t block = p.by_segments.quotient(piece), segment = piece - block * p.segments;
        const int64_t first = block * p.piece_lines, begin = first * p.b.hw + segment * p.segment;
        const int     lines = (int)smallest<int64_t>(p.piece_lines, p.lines - first);
        const int     length = (int)smallest(p.segment, p.b.hw - segment * p.segment);
        const int     shift = (int)(begin % vec_of<T>);
        stage(p.b.dy, begin, lines * length, p.b.dy_wide, dy);
        if (p.b.x)
            stage(p.b.x, begin, lines * length, p.b.x_wide, x);
        dev::cp_async_commit();
        for (int i = threadIdx.x; i < lines; i += THREADS) {
            const int64_t sample = p.b.by_c.quotient(first + i);
            stats[i] = stats_of(p.b, p.b.set(sample, first + i - sample * p.b.c));
        }
        dev::cp_async_wait<0>();
        __syncthreads();
        for (int base = 0, round = 0; base < lines; base += groups, round++) {
            const int  line = base + group;
            const bool present = line < lines;
            pair<R>    sum = {0, 0};
            if (present)
                sum = line_sums<T>(dy, x, shift + line * length, length, p.whole, (bool)p.b.x, stats[line], member, p.lanes);
            sum = p.lanes <= 32 ? lanes_sums(sum, p.lanes) : row_sums<WARPS>(sum, scratch + round % 2 * WARPS, false);
            if (present && member == 0) {
                const int64_t sample = p.b.by_c.quotient(first + line), row = sample * p.segments + segment;
                const int64_t at = row * 2 * p.b.c + (first + line - sample * p.b.c);
                dev::store(p.b.sums, at, sum.gx);
                dev::store(p.b.sums, at + p.b.c, sum.g);
            }
        }
        __syncthreads();
    }
}

/* ---- dx ---------------------------------------------------------------------------------------------------------- */

template <class T> struct FirstApply {
    Backward<T> b;
    int64_t     elements, spans, span; /* of the tensor; of elements: whole vectors on at most LINES lines */
    Divisor     by_hw;
};

/* The latest span first: what the sums read last may still be in cache. */
template <class T>
__global__ void __launch_bounds__(THREADS, 2) channelnorm_backward_dx__channels_first(FirstApply<T> p)
{
    using R = real_of<T>;
    constexpr int V = vec_of<T>;
    WF_SHARED(Channel<R>, channels, LINES);
    for (int64_t i = blockIdx.x; i < p.spans; i += gridDim.x) {
        const int64_t begin = (p.spans - 1 - i) * p.span, first = p.by_hw.quotient(begin), rest = begin - first * p.b.hw;
        const int     n = (int)smallest(p.span, p.elements - begin);
        dev::vec<T, V> dy[VECTORS], x[VECTORS];
#pragma unroll
        for (int k = 0; k < VECTORS; k++) {
            const int at = (k * THREADS + (int)threadIdx.x) * V, valid = valid_in(at, n, V);
            dy[k] = load_packed<true, V>(p.b.dy, begin + at, valid, p.b.dy_wide);
            x[k] = load_packed<true, V>(p.b.x, begin + at, p.b.frozen ? 0 : valid, p.b.x_wide);
        }
        for (int64_t line = threadIdx.x; line * p.b.hw < rest + n; line += THREADS) {
            const int64_t sample = p.b.by_c.quotient(first + line);
            channels[line] = channel_of(p.b, sample, first + line - sample * p.b.c);
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < VECTORS; k++) {
            const int at = (k * THREADS + (int)threadIdx.x) * V, valid = valid_in(at, n, V);
            if (valid == 0)
                break;
            const int64_t line = p.by_hw.quotient(rest + at), left = (line + 1) * p.b.hw - (rest + at);
            int           row = (int)line, until = (int)smallest<int64_t>(left, V);
            Channel<R>    channel = channels[row];
            R             dx[V];
#pragma unroll
            for (int j = 0; j < V; j++) {
                if (j == until && j < valid) {
                    channel = channels[++row];
                    until += (int)smallest<int64_t>(p.b.hw, V);
                }
                dx[j] = channel.gradient(up(x[k].v[j]), up(dy[k].v[j]), p.b.frozen);
            }
            store_reals<true>(p.b.dx, begin + at, valid, p.b.dx_wide, dx);
        }
        __syncthreads();
    }
}

/* ---- launches ---------------------------------------------------------------------------------------------------- */

/* Elements that fit where they are staged, wherever they begin. */
template <class T> int64_t staged_most(int64_t hw)
{
    return hw % vec_of<T> ? staged_of<T> - vec_of<T> : staged_of<T>;
}

/* Segments of a line: by its length alone, so that a sample has the same sums in every batch. */
template <class T> int64_t segment_for(int64_t hw)
{
    constexpr int64_t V = vec_of<T>;
    const int64_t     segments = ceil_div(hw, staged_most<T>(hw));
    return segments == 1 ? hw : ceil_div(ceil_div(hw, segments), V) * V;
}

/* A lane has a vector or four elements of a line before another is taken, unless the line is for all threads. */
template <class T> int lanes_for(int64_t length, bool whole)
{
    const int64_t parts = ceil_div(length, whole ? vec_of<T> : 4);
    int           lanes = 1;
    while (lanes < 32 && lanes < parts)
        lanes *= 2;
    return parts > 4 * 32 ? THREADS : lanes;
}

template <class T> void first_sums(const Backward<T> &b, Run &run)
{
    FirstSums<T> q = {};
    q.b = b;
    q.lines = b.n * b.c;
    q.segment = segment_for<T>(b.hw);
    q.segments = ceil_div(b.hw, q.segment);
    q.by_segments = Divisor(q.segments);
    q.piece_lines = (int)(q.segments > 1 ? 1 : smallest<int64_t>(staged_most<T>(b.hw) / b.hw, LINES));
    if (q.piece_lines > vec_of<T>)
        q.piece_lines -= q.piece_lines % vec_of<T>; /* pieces begin on whole vectors */
    q.pieces = ceil_div(q.lines, q.piece_lines) * q.segments;
    q.whole = b.hw % vec_of<T> == 0;
    q.lanes = lanes_for<T>(q.segment, q.whole);
    start(run, {dim3(grid_for(q.pieces)), dim3(THREADS)}, channelnorm_backward_sums__channels_first<T>, q);
}

template <class T> void first_dx(const Backward<T> &b, Run &run)
{
    constexpr int V = vec_of<T>;
    FirstApply<T> q = {};
    q.b = b;
    q.elements = b.n * b.c * b.hw;
    q.span = smallest<int64_t>(staged_of<T>, (LINES - 1) * b.hw / V * V);
    q.spans = ceil_div(q.elements, q.span);
    q.by_hw = Divisor(b.hw);
    start(run, {dim3(grid_for(q.spans)), dim3(THREADS)}, channelnorm_backward_dx__channels_first<T>, q);
}

} // namespace

#endif
