// Sums and moments over the threads that share a row: 4 or 8 lanes, a warp, a block, a cluster of blocks.
//
// | primitive                     | who calls               | result valid in      | scratch              | barriers         |
// |-------------------------------|-------------------------|----------------------|----------------------|------------------|
// | lanes_reduce<LANES>           | all 32 lanes            | each group's lanes   | none                 | 0                |
// | lanes_sum<LANES>, lanes_sums  | all 32 lanes            | each group's lanes   | none                 | 0                |
// | lanes_merge<LANES>            | all 32 lanes            | each group's lanes   | none                 | 0                |
// | block_merge<WARPS>            | every thread            | every thread         | moments[WARPS]       | 2                |
// | row_reduce<WARPS>, row_sums   | every thread of block   | every thread         | value[WARPS], another| 1, the block's   |
// |                               | or cluster              |                      | than in the last call| or the cluster's |
// | row_moments                   | who shares a row        | the same             | the group's          | 2, 4 rarely      |
//
// LANES consecutive lanes form a group; groups of a warp may hold rows of their own, or none, but all call. Merges and
// reductions follow a fixed tree: a group of lanes (or warps, or blocks) with its right neighbour, then pairs of pairs.
#pragma once
#include "vec.cuh"

// Everything that moments.h includes, so that its text can stand in two namespaces: float's moments and double's.
#include <math.h>
#include <stdbool.h>
#include "common/hd.h"
#define WF_REAL float
namespace single
{
#include "common/moments.h"
}
#undef WF_REAL
#undef WF_COMMON_MOMENTS_H
#define WF_REAL double
namespace twice
{
#include "common/moments.h"
}
#undef WF_REAL

template <class R> struct moments_for {
    using type = single::moments;
};
template <> struct moments_for<double> {
    using type = twice::moments;
};
template <class R> using moments_of = typename moments_for<R>::type;

WF_ON_DEVICE bool in_range(float m2) { return single::moments_in_range(m2); }
WF_ON_DEVICE bool in_range(double m2) { return twice::moments_in_range(m2); }
WF_ON_DEVICE int exponent_of(float x) { return single::moments_exponent(x); }
WF_ON_DEVICE int exponent_of(double x) { return twice::moments_exponent(x); }
WF_ON_DEVICE float absolute(float x) { return fabsf(x); }
WF_ON_DEVICE double absolute(double x) { return fabs(x); }
WF_ON_DEVICE float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
WF_ON_DEVICE double multiply_add(double a, double b, double c) { return fma(a, b, c); }

// 2^e, for e that a factor of its own can have: normal in R.
template <class R> WF_ON_DEVICE R power_of_two(int e) { return (R)ldexp(1.0, e); }

template <class R, class M> WF_ON_DEVICE void shift_mean(R center, R lo, M &m)
{
    if constexpr (sizeof(R) == 4)
        single::moments_shift(center, 0, lo, 1, &m.mean, &m.mean_lo);
    else
        twice::moments_shift(center, 0, lo, 1, &m.mean, &m.mean_lo);
}

// Either may be empty.
template <class M> WF_ON_DEVICE M merge(const M &a, int64_t a_count, const M &b, int64_t b_count)
{
    return b_count == 0 ? a : a_count == 0 ? b : moments_merge(a, a_count, b, b_count);
}

constexpr unsigned ALL_LANES = 0xffffffffu;

template <class R> struct pair {
    R g, gx;
};

struct Sum {
    template <class R> WF_ON_DEVICE R operator()(R a, R b) const { return a + b; }
    template <class R> WF_ON_DEVICE pair<R> operator()(pair<R> a, pair<R> b) const { return {a.g + b.g, a.gx + b.gx}; }
};
struct Largest { // NaN if any value is
    template <class R> WF_ON_DEVICE R operator()(R a, R b) const { return b > a || b != b ? b : a; }
};

template <class R> WF_ON_DEVICE R of_lane_across(R value, int step) { return __shfl_xor_sync(ALL_LANES, value, step); }
template <class R> WF_ON_DEVICE pair<R> of_lane_across(pair<R> value, int step)
{
    return {of_lane_across(value.g, step), of_lane_across(value.gx, step)};
}

template <int LANES, class S, class Op> WF_ON_DEVICE S lanes_reduce(S value, Op op)
{
#pragma unroll
    for (int step = 1; step < LANES; step *= 2)
        value = op(value, of_lane_across(value, step));
    return value;
}
template <int LANES, class R> WF_ON_DEVICE R lanes_sum(R value) { return lanes_reduce<LANES>(value, Sum()); }
template <int LANES, class R> WF_ON_DEVICE pair<R> lanes_sums(pair<R> s) { return lanes_reduce<LANES>(s, Sum()); }
// lanes: a power of two up to 32, known when the kernel runs.
template <class R> WF_ON_DEVICE pair<R> lanes_sums(pair<R> s, int lanes)
{
    for (int step = 1; step < lanes; step *= 2)
        s = Sum()(s, of_lane_across(s, step));
    return s;
}

// x[0] + ... + x[N - 1], pairs first. N is a power of two.
template <int N, class R> WF_ON_DEVICE R tree_sum(R (&x)[N])
{
#pragma unroll
    for (int width = N / 2; width > 0; width /= 2)
#pragma unroll
        for (int j = 0; j < width; j++)
            x[j] += x[j + width];
    return x[0];
}

// Nothing of a value that is not there; most vectors are whole.
template <int N, class R> WF_ON_DEVICE void clear_beyond(int valid, R (&x)[N])
{
    if (__builtin_expect(valid < N, 0))
#pragma unroll
        for (int j = 0; j < N; j++)
            x[j] = j < valid ? x[j] : R(0);
}

// For a known count: of(sum) is sum / count, without a division each time. One step of Newton's, of which fma keeps every bit,
// makes an exact quotient exact: 1 / count is rounded.
template <class R> struct Share {
    R count = 0, inverse = 0;

    Share() = default;
    explicit WF_ON_DEVICE Share(int64_t n) : count((R)n), inverse(n ? R(1) / (R)n : R(0)) {}
    WF_ON_DEVICE R of(R sum) const
    {
        const R q = sum * inverse;
        return multiply_add(multiply_add(-q, count, sum), inverse, q);
    }
};

// The moments of the values that a group of threads holds (Lanes, or Threads, below). part.sweep(f) calls f(values, offset,
// valid) for each of the calling thread's vectors; shift is one of the values, share is of their number. Two sweeps: the first
// mean is rough (its sum, from shift, is exact only for constant data); the second sweep's sum of deviations corrects it.
// Squares that leave the range are summed once more, brought near 1 by a power of two.
template <int N, class R, class Part, class Group>
WF_ON_DEVICE moments_of<R> row_moments(const Part &part, R shift, Share<R> share, bool centered, Group &group)
{
    R center = 0;
    if (centered) {
        R sum = 0;
        part.sweep([&](const R(&x)[N], int, int valid) {
            R d[N];
#pragma unroll
            for (int j = 0; j < N; j++)
                d[j] = x[j] - shift;
            clear_beyond(valid, d);
            sum += tree_sum(d);
        });
        center = shift + share.of(group.sum(sum));
    }
    const auto sums_of = [&](R up, R further) {
        pair<R> sum = {0, 0};
        part.sweep([&](const R(&x)[N], int, int valid) {
            R d[N], s[N];
#pragma unroll
            for (int j = 0; j < N; j++)
                d[j] = (x[j] - center) * up * further;
            clear_beyond(valid, d);
#pragma unroll
            for (int j = 0; j < N; j++)
                s[j] = d[j] * d[j];
            sum.g += tree_sum(d);
            sum.gx += tree_sum(s);
        });
        return group.sum(sum);
    };
    pair<R>    sums = sums_of(R(1), R(1));
    int        scale = 0;
    const bool rescale = share.count > 0 && !in_range(sums.gx);
    if (group.any(rescale)) {
        R largest = 0;
        part.sweep([&](const R(&x)[N], int, int valid) {
#pragma unroll
            for (int j = 0; j < N; j++)
                largest = Largest()(largest, j < valid ? absolute(x[j] - center) : R(0));
        });
        largest = group.largest(largest);
        const bool usable = rescale && largest > 0 && isfinite(largest);
        scale = usable ? exponent_of(largest) : 0;
        const pair<R> scaled = sums_of(power_of_two<R>(-scale / 2), power_of_two<R>(-scale - -scale / 2));
        sums = usable ? scaled : sums;
    }
    moments_of<R> m = {0, 0, sums.gx, scale};
    if (centered && share.count > 0) {
        const R lo = share.of(sums.g), m2 = sums.gx - sums.g * lo;
        m.m2 = m2 < 0 ? R(0) : m2;
        shift_mean(center, scale ? (R)ldexp((double)lo, scale) : lo, m);
    }
    return m;
}

// One set of moments per lane, count values each; empty ones stand at the end.
template <int LANES, class M> WF_ON_DEVICE M lanes_merge(M m, int64_t count)
{
#pragma unroll 1
    for (int step = 1; step < LANES; step *= 2) {
        const bool    is_right = threadIdx.x & step;
        const int64_t other_count = __shfl_xor_sync(ALL_LANES, count, step);
        M             other;
        other.mean = __shfl_xor_sync(ALL_LANES, m.mean, step);
        other.mean_lo = __shfl_xor_sync(ALL_LANES, m.mean_lo, step);
        other.m2 = __shfl_xor_sync(ALL_LANES, m.m2, step);
        other.scale = __shfl_xor_sync(ALL_LANES, m.scale, step);
        m = is_right ? merge(other, other_count, m, count) : merge(m, count, other, other_count);
        count += other_count;
    }
    return m;
}

// count_of(w): how many values warp w has.
template <int WARPS, class M, class CountOf>
WF_ON_DEVICE M block_merge(M m, CountOf count_of, dev::shared<M> scratch)
{
    const int lane = threadIdx.x % 32, warp = lane % WARPS;
    if (lane == 0)
        scratch[threadIdx.x / 32] = m;
    __syncthreads();
    m = scratch[warp];
    __syncthreads();
    return lanes_merge<WARPS>(m, count_of(warp));
}

// A sum whose roundings are kept and added at the end: as good for thousands of values as for two.
template <class R> struct LongSum {
    R sum = 0, lost = 0;

    WF_ON_DEVICE void add(R value)
    {
        const R total = sum + value, added = total - sum;
        lost += (sum - (total - added)) + (value - added);
        sum = total;
    }
    WF_ON_DEVICE R value() const { return isfinite(lost) ? sum + lost : sum; }
};

// Over all threads that share the row: WARPS warps of a block and, with clustered, of each of 2, 4 or 8 blocks of 8 warps at
// least (what a cluster's warps leave is then 16 values, or fills a warp).
template <int WARPS, class S, class Op> WF_ON_DEVICE S row_reduce(S value, dev::shared<S> scratch, bool clustered, Op op)
{
    const int lane = threadIdx.x % 32;
    value = lanes_reduce<32>(value, op);
    if (lane == 0)
        scratch[threadIdx.x / 32] = value;
    if (!clustered) {
        __syncthreads();
        return lanes_reduce<WARPS>(S(scratch[lane % WARPS]), op);
    }
    dev::cluster_sync();
    const int parts = (int)dev::cluster_size() * WARPS;
    value = dev::cluster_map(scratch, lane % parts / WARPS)[lane % WARPS];
    for (int i = lane + 32; i < parts; i += 32)
        value = op(value, S(dev::cluster_map(scratch, i / WARPS)[i % WARPS]));
    return parts < 32 ? lanes_reduce<2 * WARPS>(value, op) : lanes_reduce<32>(value, op);
}
template <int WARPS, class R> WF_ON_DEVICE pair<R> row_sums(pair<R> s, dev::shared<pair<R>> scratch, bool clustered)
{
    return row_reduce<WARPS>(s, scratch, clustered, Sum());
}

// Who shares a row: LANES lanes of a warp, whose other groups have rows of their own.
template <int LANES> struct Lanes {
    template <class S> WF_ON_DEVICE S sum(S s) const { return lanes_reduce<LANES>(s, Sum()); }
    template <class R> WF_ON_DEVICE R largest(R value) const { return lanes_reduce<LANES>(value, Largest()); }
    WF_ON_DEVICE bool any(bool b) const { return __ballot_sync(ALL_LANES, b); }
};

// Or a block or cluster. Each reduction writes to one half of the scratch: who is late may still read the other.
template <int WARPS, class R> struct Threads {
    dev::shared<pair<R>> scratch; // [2 * WARPS]
    bool                 clustered;
    int                  turn = 0;

    WF_ON_DEVICE pair<R> sum(pair<R> s) { return row_sums<WARPS>(s, next(), clustered); }
    WF_ON_DEVICE R sum(R s) { return row_reduce<WARPS>(s, dev::recast<R>(next()), clustered, Sum()); }
    WF_ON_DEVICE R largest(R value) { return row_reduce<WARPS>(value, dev::recast<R>(next()), clustered, Largest()); }
    WF_ON_DEVICE bool any(bool b) const { return b; } // all have the same

  private:
    WF_ON_DEVICE dev::shared<pair<R>> next()
    {
        turn ^= 1;
        return scratch + turn * WARPS;
    }
};
