/* x is [n, c, hw]: backward in two reads, and what the variants on chip share with it. Sums are those of lines (a channel of
 * a sample); which thread adds which elements of a line up, and in what order, does not depend on where the line begins. dx
 * has no such bounds: it is written in spans that begin on whole vectors, whatever hw is. */
#ifndef WELFORD_CUDA_CHANNELS_FIRST_BACKWARD_CUH
#define WELFORD_CUDA_CHANNELS_FIRST_BACKWARD_CUH

#include "channelnorm_backward.cuh"

namespace backward
{

enum {
    LINES = 256, /* of a run, at most */
    ITEMS = 512, /* of a block, at most */
};

/* ---- what a block holds in shared memory ------------------------------------------------------------------------- */

/* Runs of n elements, each part of neighboring lines: `rest` elements of the first come before the run. */
struct Held {
    int64_t begin, stride; /* elements: the first run, from run to run */
    int     runs, n, lines, rest;
};

/* How, as the host decides it. An item is what up to 32 lanes add up: a line, or a part of a long one. */
struct Form {
    int     pitch;       /* vectors of a run */
    int     items, item; /* of a line; elements of one */
    int     lanes;       /* of an item */
    bool    whole;       /* items are whole vectors */
    Divisor by_items;
};

/* Of lines or parts of them with so many elements, in runs of so many. */
template <class T> Form form_of(int64_t length, int64_t run, bool whole)
{
    constexpr int V = vec_of<T>, MOST = 32 * 4 * V; /* a lane adds up 4 vectors, at most */
    Form          f = {};
    f.pitch = (int)ceil_div(run + (whole ? 0 : V - 1), V);
    f.items = (int)ceil_div(length, MOST);
    f.item = (int)ceil_div(ceil_div(length, f.items), V) * V;
    f.lanes = 1;
    while (f.lanes < 32 && f.lanes * (whole ? V : 4) < f.item)
        f.lanes *= 2;
    f.whole = whole;
    f.by_items = Divisor(f.items);
    return f;
}

/* f(at, from, i) for every vector that is held: where in shared memory, in memory, and from which element of its run on,
 * which may be before the run (from is a whole vector). A warp takes a run or, where there are few, all threads do. */
template <class T, class F> WF_ON_DEVICE void held_vectors(const Form &form, const Held &h, F f)
{
    constexpr int V = vec_of<T>;
    const bool    few = h.runs < (int)blockDim.x / 32;
    const int     first = few ? 0 : threadIdx.x / 32, step = few ? 1 : blockDim.x / 32;
    const int     member = few ? threadIdx.x : threadIdx.x % 32, members = few ? blockDim.x : 32;
    for (int run = first; run < h.runs; run += step) {
        const int64_t begin = h.begin + run * h.stride;
        const int     shift = form.whole ? 0 : (int)(begin % V);
        for (int i = member * V; i < shift + h.n; i += members * V)
            f(run * form.pitch * V + i, begin + (i - shift), i - shift);
    }
}

/* Arrived after cp_async_wait and a barrier. */
template <class T>
WF_ON_DEVICE void hold(dev::global<const T> from, bool wide, const Form &form, const Held &h, dev::shared<T> to)
{
    constexpr int V = vec_of<T>;
    held_vectors<T>(form, h, [&](int at, int64_t begin, int i) {
        if (wide && i >= 0 && i + V <= h.n)
            dev::cp_async16(to + at, from, begin);
        else
#pragma unroll
            for (int j = 0; j < V; j++)
                if (i + j >= 0 && i + j < h.n)
                    to[at + j] = dev::load(from, begin + j);
    });
}

/* total(i, sum over part(i, lane) of so many lanes) for i < count. Every thread calls. */
template <class R, class Part, class Total> WF_ON_DEVICE void in_groups(int count, int lanes, Part part, Total total)
{
    const int lane = threadIdx.x % lanes, group = threadIdx.x / lanes, groups = blockDim.x / lanes;
    for (int base = 0; base < count; base += groups) {
        const int     i = base + group;
        const pair<R> sum = lanes_sums(i < count ? part(i, lane) : pair<R>{0, 0}, lanes);
        if (i < count && lane == 0)
            total(i, sum);
    }
}

WF_HOST_DEVICE int lanes_for(int64_t parts)
{
    int lanes = 1;
    while (lanes < 32 && lanes < parts)
        lanes *= 2;
    return lanes;
}

/* The part of sum dy and sum dy * xhat of n held elements that is for one lane; they are from `from` on in memory. */
template <class B, class T>
WF_ON_DEVICE pair<typename B::R> item_sums(const B &b, dev::shared<T> dy, dev::shared<T> x, int at, int64_t from, int n,
                                           const Form &form, int lane, const typename B::Known &s)
{
    using R = typename B::R;
    const bool    has_x = (bool)b.x;
    constexpr int V = vec_of<T>, STEP = 4;
    pair<R>       sum = {0, 0};
    if (form.whole) {
        for (int i = lane; i < n / V; i += form.lanes) {
            const dev::vec<T, V> packed_dy = dev::recast<dev::vec<T, V>>(dy)[at / V + i];
            const dev::vec<T, V> packed_x = dev::recast<dev::vec<T, V>>(x)[at / V + i];
            const auto           fetched = b.ending.template fetch<false, V>(from + i * V, V);
            R                    g[V], gx[V];
#pragma unroll
            for (int j = 0; j < V; j++) {
                g[j] = b.ending.arriving(s, up(packed_x.v[j]), up(packed_dy.v[j]), b.ending.template element<V>(fetched, j));
                gx[j] = has_x ? g[j] * s.normalized(up(packed_x.v[j])) : R(0);
            }
            sum.g += tree_sum(g);
            sum.gx += tree_sum(gx);
        }
        return sum;
    }
    for (int i = lane; i < n; i += STEP * form.lanes) {
        R g[STEP], gx[STEP];
#pragma unroll
        for (int j = 0; j < STEP; j++) {
            const int k = i + j * form.lanes;
            const R   of_x = k < n && has_x ? up(x[at + k]) : R(0);
            g[j] = k < n ? b.ending.arriving(s, of_x, up(dy[at + k]), b.ending.load(from + k)) : R(0);
            gx[j] = k < n && has_x ? g[j] * s.normalized(of_x) : R(0);
        }
        sum.g += tree_sum(g);
        sum.gx += tree_sum(gx);
    }
    return sum;
}

/* The sums of the held part of line `line` of run `run`, to items[(line * h.runs + run) * form.items]. known(line) is of its
 * channel. */
template <class B, class T, class KnownOf>
WF_ON_DEVICE void line_sums(const B &b, int hw, const Form &form, const Held &h, dev::shared<T> dy, dev::shared<T> x,
                            KnownOf known, dev::shared<pair<real_of<T>>> items)
{
    using R = real_of<T>;
    constexpr int V = vec_of<T>;
    const auto    part = [&](int i, int lane) {
        const int     number = form.by_items.quotient(i);
        const int     line = h.runs > 1 ? number / h.runs : number, run = number - line * h.runs;
        const int     begin = line * hw - h.rest, from = (begin < 0 ? 0 : begin) + (i - number * form.items) * form.item;
        const int     n = smallest(smallest(h.n, begin + hw) - from, form.item);
        const int64_t first = h.begin + run * h.stride;
        const int     at = run * form.pitch * V + (form.whole ? 0 : (int)(first % V)) + from;
        return item_sums(b, dy, x, at, first + from, n, form, lane, known(line));
    };
    const int lines = h.runs * h.lines;
    in_groups<R>(lines * form.items, form.lanes, part, [&](int i, pair<R> sum) { items[i] = sum; });
    __syncthreads();
    if (form.items == 1)
        return;
    const int  lanes = lanes_for(form.items);
    const auto item = [&](int i, int lane) {
        pair<R> sum = {0, 0};
        for (int k = lane; k < form.items; k += lanes)
            sum = Sum()(sum, pair<R>(items[i * form.items + k]));
        return sum;
    };
    in_groups<R>(lines, lanes, item, [&](int i, pair<R> sum) { items[i * form.items] = sum; });
    __syncthreads();
}

/* dy becomes dx, and what was fetched dresidual: the vector's first element is on line `line`, its element `until` begins the
 * next, and it has n. */
template <class B, class T, class Fetched>
WF_ON_DEVICE void vector_gradient(const B &b, dev::vec<T, vec_of<T>> &dy, const dev::vec<T, vec_of<T>> &x, Fetched &fetched,
                                  dev::shared<Channel<B>> channels, int line, int64_t until, int n)
{
    constexpr int V = vec_of<T>;
    Channel<B>    channel = channels[line];
    const auto    element = [&](int j, bool frozen) {
        const auto of_x = up(x.v[j]);
        const auto dz = b.ending.arriving(channel.s, of_x, up(dy.v[j]), b.ending.template element<V>(fetched, j));
        b.ending.template keep<V>(fetched, j, dz);
        dy.v[j] = down<T>(channel.gradient(of_x, dz, frozen));
    };
    if (until >= V && !b.frozen) { /* most vectors */
#pragma unroll
        for (int j = 0; j < V; j++)
            element(j, false);
        return;
    }
    int next = (int)smallest<int64_t>(until, V);
#pragma unroll
    for (int j = 0; j < V; j++) {
        if (j == next && j < n) {
            channel = channels[++line];
            next += (int)smallest<int64_t>(b.hw, V);
        }
        element(j, b.frozen);
    }
}

/* ---- sums -------------------------------------------------------------------------------------------------------- */

template <class T> constexpr int staged_of = THREADS *VECTORS *vec_of<T>; /* elements of a block */

/* A piece is some lines or, of lines that are long, a segment of one. */
template <class B> struct FirstSums {
    B       b;
    Form    form;
    int64_t lines, pieces;
    int     piece_lines;
    int64_t segments, segment; /* of a line; elements of one: hw where there is one */
    Divisor by_segments;
};

template <class B>
__global__ void __launch_bounds__(THREADS, B::HAS_ENDING ? 2 : 5) channelnorm_backward_sums__channels_first(FirstSums<B> p)
{
    using T = typename B::X;
    using R = typename B::R;
    using Known = typename B::Known;
    WF_SHARED(T, dy, staged_of<T>);
    WF_SHARED(T, x, staged_of<T>);
    WF_SHARED(Known, known, LINES);
    WF_SHARED(pair<R>, items, LINES);
    for (int64_t piece = blockIdx.x; piece < p.pieces; piece += gridDim.x) {
        const int64_t block = p.by_segments.quotient(piece), segment = piece - block * p.segments;
        const int64_t first = block * p.piece_lines;
        const int     lines = (int)smallest<int64_t>(p.piece_lines, p.lines - first);
        const int     length = (int)smallest(p.segment, p.b.hw - segment * p.segment);
        const Held    h = {first * p.b.hw + segment * p.segment, 0, 1, lines * length, lines, 0};
        hold(p.b.dy, p.b.dy_wide, p.form, h, dy);
        if (p.b.x)
            hold(p.b.x, p.b.x_wide, p.form, h, x);
        dev::cp_async_commit();
        for (int i = threadIdx.x; i < lines; i += THREADS) {
            const int64_t sample = p.b.by_c.quotient(first + i);
            known[i] = known_of(p.b, sample, first + i - sample * p.b.c);
        }
        dev::cp_async_wait<0>();
        __syncthreads();
        line_sums(
            p.b, length, p.form, h, dev::shared<T>(dy), dev::shared<T>(x), [&](int line) { return Known(known[line]); }, items);
        for (int i = threadIdx.x; i < lines; i += THREADS) {
            const int64_t sample = p.b.by_c.quotient(first + i), row = sample * p.segments + segment;
            const int64_t at = row * 2 * p.b.c + (first + i - sample * p.b.c);
            const pair<R> sum = items[i * p.form.items];
            dev::store(p.b.sums, at, sum.gx);
            dev::store(p.b.sums, at + p.b.c, sum.g);
        }
    }
}

/* ---- dx ---------------------------------------------------------------------------------------------------------- */

template <class B> struct FirstApply {
    B       b;
    int64_t elements, spans, span; /* of the tensor; of elements: whole vectors on at most LINES lines */
    Divisor by_hw;
};

/* The latest span first: what the sums read last may still be in cache. */
template <class B>
__global__ void __launch_bounds__(THREADS, 2) channelnorm_backward_dx__channels_first(FirstApply<B> p)
{
    using T = typename B::X;
    constexpr int V = vec_of<T>;
    WF_SHARED(Channel<B>, channels, LINES);
    for (int64_t i = blockIdx.x; i < p.spans; i += gridDim.x) {
        const int64_t begin = (p.spans - 1 - i) * p.span, first = p.by_hw.quotient(begin), rest = begin - first * p.b.hw;
        const int     n = (int)smallest(p.span, p.elements - begin);
        dev::vec<T, V> dy[VECTORS], x[VECTORS];
        typename B::Ending::template Fetched<V> fetched[VECTORS];
#pragma unroll
        for (int k = 0; k < VECTORS; k++) {
            const int at = (k * THREADS + (int)threadIdx.x) * V, valid = valid_in(at, n, V);
            dy[k] = load_packed<true, V>(p.b.dy, begin + at, valid, p.b.dy_wide);
            x[k] = load_packed<true, V>(p.b.x, begin + at, p.b.applies_x ? valid : 0, p.b.x_wide);
            fetched[k] = p.b.ending.template fetch<true, V>(begin + at, valid);
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
            const int64_t line = p.by_hw.quotient(rest + at), until = (line + 1) * p.b.hw - (rest + at);
            vector_gradient(p.b, dy[k], x[k], fetched[k], channels, (int)line, until, valid);
            if (!B::HAS_ENDING || p.b.dx)
                store_packed<true>(p.b.dx, begin + at, valid, p.b.dx_wide, dy[k]);
            p.b.ending.store([&](const auto &to, bool wide) { store_packed<true>(to, begin + at, valid, wide, fetched[k]); });
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

template <class B> void first_sums(const B &b, Run &run)
{
    using T = typename B::X;
    FirstSums<B> q = {};
    q.b = b;
    q.lines = b.n * b.c;
    q.segment = segment_for<T>(b.hw);
    q.segments = ceil_div(b.hw, q.segment);
    q.by_segments = Divisor(q.segments);
    q.form = form_of<T>(q.segment, staged_most<T>(b.hw), b.hw % vec_of<T> == 0);
    q.piece_lines = (int)(q.segments > 1 ? 1 : smallest<int64_t>(staged_most<T>(b.hw) / b.hw, LINES / q.form.items));
    if (q.piece_lines > vec_of<T>)
        q.piece_lines -= q.piece_lines % vec_of<T>; /* pieces begin on whole vectors */
    q.pieces = ceil_div(q.lines, q.piece_lines) * q.segments;
    start(run, {dim3(grid_for(q.pieces)), dim3(THREADS)}, channelnorm_backward_sums__channels_first<B>, q);
}

template <class B> void first_dx(const B &b, Run &run)
{
    using T = typename B::X;
    constexpr int V = vec_of<T>;
    FirstApply<B> q = {};
    q.b = b;
    q.elements = b.n * b.c * b.hw;
    q.span = smallest<int64_t>(staged_of<T>, (LINES - 1) * b.hw / V * V);
    q.spans = ceil_div(q.elements, q.span);
    q.by_hw = Divisor(b.hw);
    start(run, {dim3(grid_for(q.spans)), dim3(THREADS)}, channelnorm_backward_dx__channels_first<B>, q);
}

} // namespace backward

#endif
