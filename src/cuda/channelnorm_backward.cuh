/* GroupNorm, InstanceNorm and BatchNorm backward on CUDA: what both layouts share. With xhat = ((x - mean) - mean_lo) * rstd
 * and averages over the set,
 *
 *     dx = rstd * (gamma * dy - avg(gamma * dy) - xhat * avg(gamma * dy * xhat)),  dgamma = sum dy * xhat,  dbeta = sum dy
 *
 * and dx = rstd * gamma * dy where the statistics are constants. With an ending dz, which arrives before it, takes the place of
 * dy. Modulated, gamma * f takes that of gamma and, in dgamma and dbeta, f * dy that of dy; and of each sample and channel
 *
 *     dscale = gamma * sum dy * xhat + beta * sum dy,  dshift = sum dy */
#ifndef WELFORD_CUDA_CHANNELNORM_BACKWARD_CUH
#define WELFORD_CUDA_CHANNELNORM_BACKWARD_CUH

#include "channelnorm.cuh"
#include "ending.cuh"
#include "parameters.cuh"

namespace backward
{

/* A parameter's gradient, of either dtype; nothing where there is none. */
template <class T> struct WeightsOut {
    dev::global<T>          same;
    dev::global<real_of<T>> real;
    bool                    accumulate;

    WF_ON_DEVICE void store(int64_t i, real_of<T> value) const
    {
        if (same)
            dev::store(same, i, down<T>(accumulate ? up(dev::load(same, i)) + value : value));
        else if (real)
            dev::store(real, i, accumulate ? dev::load(real, i) + value : value);
    }
};

/* W: the parameter's dtype, T or real_of<T>. */
template <class T, class W> WeightsOut<T> weights_out(void *data, bool accumulate)
{
    WeightsOut<T> out = {};
    if constexpr (std::is_same<T, W>::value)
        out.same = buffer<T>(data);
    else
        out.real = buffer<W>(data);
    out.accumulate = accumulate;
    return out;
}

template <class R> struct Stats {
    R mean, mean_lo, rstd;

    WF_ON_DEVICE R normalized(R x) const { return ((x - mean) - mean_lo) * rstd; }
};

/* What is known of a channel of a sample before there are sums. */
template <class R, bool ENDS> struct Known : Stats<R> {
};

template <class R> struct Known<R, true> : Stats<R> {
    R factor, shift;

    /* As the forward pass has it: the same bits. */
    WF_ON_DEVICE R z(R x) const { return multiply_add((x - this->mean) - this->mean_lo, factor, shift); }
};

template <class T, bool ENDS> struct Backward {
    using X = T;
    using R = real_of<T>;
    using Known = backward::Known<R, ENDS>;
    using Ending = EndingGradient<T, ENDS>;
    static constexpr bool HAS_ENDING = ENDS;
    dev::global<const T> dy, x; /* x: none where nothing that is wanted needs it */
    dev::global<T>       dx;
    Parameter<T>         gamma;
    dev::global<const R> mean, mean_lo, rstd;
    dev::global<R>       sums;     /* [samples, rows, 2, c]: parts of sum dy * xhat, of sum dy */
    dev::global<const R> averages; /* [2, sets]: of gamma * dy * xhat, of gamma * dy */
    int64_t              n, c, hw, groups, sets; /* groups: 0 where samples share statistics */
    Divisor              by_c, by_group_channels;
    bool                 across_batch, frozen, dy_wide, x_wide, dx_wide;
    bool                 applies_x; /* what is wanted besides sums needs x */
    Ending               ending;

    WF_ON_DEVICE int64_t set(int64_t sample, int64_t channel) const
    {
        return across_batch ? channel : sample * groups + by_group_channels.quotient(channel);
    }
};

/* gamma, as modulated, is set too. */
template <class B>
WF_ON_DEVICE typename B::Known known_of(const B &p, int64_t sample, int64_t channel, typename B::R &gamma)
{
    using R = typename B::R;
    const int64_t  set = p.set(sample, channel);
    const Stats<R> s = {dev::load(p.mean, set), p.mean_lo ? dev::load(p.mean_lo, set) : R(0), dev::load(p.rstd, set)};
    const auto       pair = p.ending.pair(sample * p.c + channel);
    gamma = p.ending.factor(p.gamma, channel, pair);
    if constexpr (B::HAS_ENDING)
        return {s, s.rstd * gamma, p.ending.shifted(p.ending.beta, channel, pair)};
    else
        return {s};
}

template <class B> WF_ON_DEVICE typename B::Known known_of(const B &p, int64_t sample, int64_t channel)
{
    typename B::R gamma;
    return known_of(p, sample, channel, gamma);
}

/* Neighbors in shared memory are 10 reals apart with an ending, for 8 would meet in the same banks; 6 without. */
template <class Known> struct Apart {
};
template <class R> struct Apart<Known<R, true>> {
    R apart[2];
};

/* What dx of a channel of a sample is made with. */
template <class Known, class R> struct alignas(2 * sizeof(R)) Gradient : Apart<Known> {
    Known s;
    R     gamma, gx, g;

    WF_ON_DEVICE R gradient(R x, R dy, bool frozen) const
    {
        return s.rstd * (frozen ? gamma * dy : (gamma * dy - g) - s.normalized(x) * gx);
    }
};

template <class B> using Channel = Gradient<typename B::Known, typename B::R>;

template <class B> WF_ON_DEVICE Channel<B> channel_of(const B &p, int64_t sample, int64_t channel)
{
    using R = typename B::R;
    const int64_t set = p.set(sample, channel);
    R             gamma;
    const auto    known = known_of(p, sample, channel, gamma);
    return {{}, known, gamma, p.frozen ? R(0) : dev::load(p.averages, set),
            p.frozen ? R(0) : dev::load(p.averages, p.sets + set)};
}

enum {
    THREADS = 256,
    WARPS = THREADS / 32,
    VECTORS = 4, /* of each of x and dy that a thread has on their way at once */
};

using Problem = struct channelnorm_backward;

/* With one value per channel and sample a channel is a column. */
inline Geometry geometry(const Problem &p)
{
    return geometry_of(shape_of(p), WF_NHWC);
}

/* f(b, w): what every kernel is given, for these dtypes; the workspace is not in it yet. */
template <bool ENDS, class F> void with_params(const Problem &p, const Geometry &g, F f)
{
    with_dtypes((Element)p.shape.x_dtype, (Element)p.shape.w_dtype, [&](auto x, auto w) {
        using T = decltype(x);
        using R = real_of<T>;
        constexpr int     V = vec_of<T>;
        const int64_t     samples = g.last && !g.across_batch ? g.n : 1, sample = g.c * g.hw;
        Backward<T, ENDS> b = {};
        b.applies_x = (p.dx && !p.frozen) || (p.act.present && !p.act.y);
        b.dy = buffer<const T>(p.dy), b.dx = buffer<T>(p.dx);
        b.x = buffer<const T>(p.dgamma || p.mod.dscale || b.applies_x ? p.x : nullptr);
        b.gamma = parameter<T>(p.gamma, p.shape.w_dtype);
        b.mean = buffer<const R>(p.mean), b.mean_lo = buffer<const R>(p.mean_lo), b.rstd = buffer<const R>(p.rstd);
        b.n = g.n, b.c = g.c, b.hw = g.hw, b.groups = p.shape.across_batch ? 0 : g.groups, b.sets = g.sets;
        b.by_c = Divisor(g.c), b.by_group_channels = Divisor(g.group_channels);
        b.across_batch = g.across_batch, b.frozen = p.frozen;
        b.dy_wide = row_is_wide<V>(b.dy, samples, sample), b.x_wide = row_is_wide<V>(b.x, samples, sample);
        b.dx_wide = row_is_wide<V>(b.dx, samples, sample);
        b.ending = ending_gradient_of<ENDS, T>(p, samples, sample);
        f(b, w);
    });
}

} // namespace backward

#endif
