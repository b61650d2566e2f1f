/* GroupNorm, InstanceNorm and BatchNorm on CUDA: what both directions share. A set is what shares a statistic: a channel
 * (across the batch), or a group of channels of a sample. */
#ifndef WELFORD_CUDA_CHANNELNORM_CUH
#define WELFORD_CUDA_CHANNELNORM_CUH

#include "parameter.cuh"
#include "prim/divisor.cuh"

struct Geometry {
    int64_t n, c, hw;
    int64_t groups;         /* of a sample, or channels across the batch */
    int64_t group_channels; /* of a set: 1 across the batch */
    int64_t sets, count;    /* of values in a set */
    bool    across_batch;
    bool    last; /* x is [n, hw, c]; else [n, c, hw] */
};

/* Where there is one value per channel and sample both layouts are the same memory: if_flat is the one to call it. */
inline Geometry geometry_of(const channelnorm_shape &s, wf_layout if_flat)
{
    Geometry   g = {s.n, s.c, s.hw, s.groups, 1, s.c, s.n * s.hw, s.across_batch, false};
    const auto layout = s.hw == 1 ? if_flat : s.layout;
    g.last = layout == WF_NHWC && s.c > 0;
    if (s.c == 0) {
        g.sets = g.count = 0;
        g.groups = 1;
    } else if (!s.across_batch) {
        g.group_channels = s.c / s.groups;
        g.sets = s.n * s.groups;
        g.count = g.group_channels * s.hw;
    }
    return g;
}

/* Modulated, samples have parameters of their own: they go one by one, also where statistics are constants. */
template <class Problem> channelnorm_shape shape_of(const Problem &p)
{
    channelnorm_shape s = p.shape;
    s.across_batch = s.across_batch && !(p.mod.present && s.n > 0);
    return s;
}

/* ---- channels first --------------------------------------------------------------------------------------------- */

/* A set is lines of hw values: one per channel of a group, next to each other, or one per sample, c lines apart. */
struct Lines {
    int64_t set_stride, line_stride, hw, group_channels;
    Divisor by_hw, by_groups;
    bool    apart; /* elements of a set are not one run in memory */
    bool    across_batch;

    /* Values of a set from one of them on: its place in memory and its channel, and how many follow on its line, with it. */
    struct Place {
        int64_t at, channel;
        int     near; /* if more than INT32_MAX, that */
    };

    WF_ON_DEVICE Place place(int64_t set, int64_t begin) const
    {
        const int64_t line = by_hw.quotient(begin), rest = begin - line * hw;
        const int64_t channel = across_batch ? set : by_groups.remainder(set) * group_channels + line;
        return {set * set_stride + line * line_stride + rest, channel, (int)smallest<int64_t>(hw - rest, INT32_MAX)};
    }

    /* For the i-th value from there: how many lines below. */
    WF_ON_DEVICE int line(const Place &p, int i) const { return i < p.near ? 0 : 1 + by_hw.quotient(i - p.near); }

    /* And how many follow on that line, with it; no more than `most`. */
    WF_ON_DEVICE int left(const Place &p, int i, int most) const
    {
        return i < p.near ? smallest(p.near - i, most) : (int)smallest<int64_t>(line(p, i) * hw - (i - p.near), most);
    }

    WF_ON_DEVICE int64_t at(const Place &p, int i) const
    {
        return p.at + i + (apart ? line(p, i) * (line_stride - hw) : 0);
    }

    WF_ON_DEVICE int64_t channel(const Place &p, int i) const { return p.channel + (across_batch ? 0 : line(p, i)); }

    /* Where a sample has sets of its own: of sample and channel. */
    WF_ON_DEVICE int64_t pair(const Place &p, int i) const { return by_hw.quotient(p.at + i); }
};

inline Lines lines_of(const Geometry &g)
{
    const bool apart = g.across_batch && g.n > 1;
    return {g.across_batch ? g.hw : g.count,
            apart ? g.c * g.hw : g.hw,
            g.hw,
            g.group_channels,
            Divisor(g.hw),
            Divisor(g.groups),
            apart,
            g.across_batch};
}

/* For V elements, `left` of them on the first line: f(j, what of(k) says of the line that element j is on), k lines below the
 * first. Nothing is asked about lines of elements that are not valid. */
template <int V, class Of, class F> WF_ON_DEVICE void along_lines(int64_t hw, int left, int valid, Of of, F f)
{
    auto line = of(0);
    if (V == 1 || left >= valid) {
#pragma unroll
        for (int j = 0; j < V; j++)
            f(j, line);
    } else if (hw >= V) {
        const auto next = of(1);
#pragma unroll
        for (int j = 0; j < V; j++)
            f(j, j < left ? line : next);
    } else {
#pragma unroll
        for (int j = 0, k = 0, end = left; j < V; j++) {
            if (j == end && j < valid) {
                line = of(++k);
                end += (int)hw;
            }
            f(j, line);
        }
    }
}

/* Vectors of so many elements do not reach over a gap in a set: a divisor of what lies together. */
inline bool lines_divide(const Geometry &g, int vector)
{
    return (g.across_batch && g.n > 1 ? g.hw : g.count) % vector == 0;
}

#endif
