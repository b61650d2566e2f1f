// Sums and moments over the threads that share a row: a sub-warp of 8 lanes, a warp, a block, a cluster of blocks.
//
// | primitive                     | who calls               | result valid in      | scratch              | barriers         |
// |-------------------------------|-------------------------|----------------------|----------------------|------------------|
// | lanes_sum<LANES>              | all 32 lanes            | each group's lanes   | none                 | 0                |
// | lanes_max<LANES>              | all 32 lanes            | each group's lanes   | none                 | 0                |
// | lanes_moments<LANES>          | all 32 lanes            | each group's lanes   | none                 | 0                |
// | lanes_merge<LANES>            | all 32 lanes            | each group's lanes   | none                 | 0                |
// | lanes_sums<LANES>             | all 32 lanes            | each group's lanes   | none                 | 0                |
// | block_merge<WARPS>            | every thread            | every thread         | moments[WARPS]       | 2                |
// | cluster_merge                 | every thread of cluster | every thread         | moments[1] per block | 2, the cluster's |
// | row_sums<WARPS>               | every thread of block   | every thread         | pair[WARPS], another | 1, the block's   |
// |                               | or cluster              |                      | than in the last call| or the cluster's |
//
// LANES consecutive lanes form a group; groups of a warp may hold rows of their own, or none (count = 0), but all call.
// Merges follow a fixed tree: a group of lanes (or warps, or blocks) with its right neighbour, then pairs of pairs.
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

template <int LANES, class R> WF_ON_DEVICE R lanes_sum(R value)
{
#pragma unroll
    for (int step = 1; step < LANES; step *= 2)
        value += __shfl_xor_sync(ALL_LANES, value, step);
    return value;
}

// NaN if any value is.
template <int LANES, class R> WF_ON_DEVICE R lanes_max(R value)
{
#pragma unroll
    for (int step = 1; step < LANES; step *= 2) {
        const R other = __shfl_xor_sync(ALL_LANES, value, step);
        value = other > value || other != other ? other : value;
    }
    return value;
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

// How many of n elements belong to a part that takes `size` of every `round` elements, from the first-th on.
WF_ON_DEVICE int part_of(int n, int round, int first, int size)
{
    const int rest = n % round - first;
    return n / round * size + (rest < 0 ? 0 : smallest(rest, size));
}

// The moments of the values that a group of lanes holds. part.sweep(f) calls f(values, offset, valid) for each of the
// calling thread's vectors; part.first() is its first value; count is that of the whole group. Two sweeps: the first mean
// is rough (its sum, from the first value, is exact only for constant data); the second sweep's sum of deviations corrects
// it. Squares that leave the range are summed once more, brought near 1 by a power of two.
template <int LANES, int N, class R, class Part>
WF_ON_DEVICE moments_of<R> lanes_moments(const Part &part, int count, bool centered)
{
    R center = 0;
    if (centered) {
        const R shift = __shfl_sync(ALL_LANES, part.first(), 0, LANES);
        R       sum = 0;
        part.sweep([&](const R(&x)[N], int, int valid) {
            R d[N];
#pragma unroll
            for (int j = 0; j < N; j++)
                d[j] = j < valid ? x[j] - shift : R(0);
            sum += tree_sum(d);
        });
        sum = lanes_sum<LANES>(sum);
        center = count ? shift + sum / R(count) : R(0);
    }
    const auto squares_of = [&](R up, R further, R &sum, R &squares) {
        sum = squares = 0;
        part.sweep([&](const R(&x)[N], int, int valid) {
            R d[N], s[N];
#pragma unroll
            for (int j = 0; j < N; j++) {
                d[j] = j < valid ? (x[j] - center) * up * further : R(0);
                s[j] = d[j] * d[j];
            }
            sum += tree_sum(d);
            squares += tree_sum(s);
        });
        sum = lanes_sum<LANES>(sum);
        squares = lanes_sum<LANES>(squares);
    };
    R sum, squares;
    squares_of(R(1), R(1), sum, squares);
    int        scale = 0;
    const bool rescale = count && !in_range(squares);
    if (__ballot_sync(ALL_LANES, rescale)) {
        R largest = 0, scaled_sum, scaled_squares;
        part.sweep([&](const R(&x)[N], int, int valid) {
#pragma unroll
            for (int j = 0; j < N; j++) {
                const R size = j < valid ? absolute(x[j] - center) : R(0);
                largest = size > largest || size != size ? size : largest;
            }
        });
        largest = lanes_max<LANES>(largest);
        const bool usable = rescale && largest > 0 && isfinite(largest);
        scale = usable ? exponent_of(largest) : 0;
        squares_of(power_of_two<R>(-scale / 2), power_of_two<R>(-scale - -scale / 2), scaled_sum, scaled_squares);
        sum = usable ? scaled_sum : sum;
        squares = usable ? scaled_squares : squares;
    }
    moments_of<R> m = {0, 0, squares, scale};
    if (centered && count) {
        const R lo = sum / R(count), m2 = squares - sum * lo;
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

// count_of(r): how many values the block of rank r has. At most 8 blocks.
template <class M, class CountOf> WF_ON_DEVICE M cluster_merge(M m, CountOf count_of, dev::shared<M> slot)
{
    const unsigned rank = threadIdx.x % 8;
    const bool     present = rank < dev::cluster_size();
    if (threadIdx.x == 0)
        slot[0] = m;
    dev::cluster_sync();
    if (present)
        m = dev::cluster_map(slot, rank)[0];
    dev::cluster_sync();
    return lanes_merge<8>(m, present ? count_of(rank) : 0);
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

template <class R> struct pair {
    R g, gx;
};

// The sum over all threads that share the row: LANES lanes of a warp, or WARPS warps of a block and, with clustered, of each
// of at most 8 blocks.
template <int LANES, class R> WF_ON_DEVICE pair<R> lanes_sums(pair<R> s)
{
    return {lanes_sum<LANES>(s.g), lanes_sum<LANES>(s.gx)};
}
template <int WARPS, class R> WF_ON_DEVICE pair<R> row_sums(pair<R> s, dev::shared<pair<R>> scratch, bool clustered)
{
    const int lane = threadIdx.x % 32;
    s = lanes_sums<32>(s);
    if (lane == 0)
        scratch[threadIdx.x / 32] = s;
    if (!clustered) {
        __syncthreads();
        const pair<R> part = scratch[lane % WARPS];
        return lanes_sums<WARPS>(part);
    }
    dev::cluster_sync();
    pair<R> sum = {0, 0};
    for (int i = lane; i < (int)dev::cluster_size() * WARPS; i += 32) {
        const pair<R> part = dev::cluster_map(scratch, i / WARPS)[i % WARPS];
        sum.g += part.g;
        sum.gx += part.gx;
    }
    return lanes_sums<32>(sum);
}
