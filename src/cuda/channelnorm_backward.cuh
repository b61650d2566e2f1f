/* GroupNorm, InstanceNorm and BatchNorm backward on CUDA: what both layouts share. With xhat = ((x - mean) - mean_lo) * rstd
 * and averages over the set,
 *
 *     dx = rstd * (gamma * dy - avg(gamma * dy) - xhat * avg(gamma * dy * xhat)),  dgamma = sum dy * xhat,  dbeta = sum dy
 *
 * and dx = rstd * gamma * dy where the statistics are constants. */
#ifndef WELFORD_CUDA_CHANNELNORM_BACKWARD_CUH
#define WELFORD_CUDA_CHANNELNORM_BACKWARD_CUH

#include "channelnorm.cuh"
#include "parameters.cuh"

namespace
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

template <class T> struct Backward {
    using X = T;
    using R = real_of<T>;
    dev::global<const T> dy, x; /* x: none where nothing that is wanted needs it */
    dev::global<T>       dx;
    Parameter<T>         gamma;
    dev::global<const R> mean, mean_lo, rstd;
    dev::global<R>       sums;     /* [samples, rows, 2, c]: parts of sum dy * xhat, of sum dy */
    dev::global<const R> averages; /* [2, sets]: of gamma * dy * xhat, of gamma * dy */
    int64_t              n, c, hw, groups, sets;
    Divisor              by_c, by_group_channels;
    bool                 across_batch, frozen, dy_wide, x_wide, dx_wide;

    WF_ON_DEVICE int64_t set(int64_t sample, int64_t channel) const
    {
        return across_batch ? channel : sample * groups + by_group_channels.quotient(channel);
    }
};

template <class R> struct Stats {
    R mean, mean_lo, rstd;

    WF_ON_DEVICE R normalized(R x) const { return ((x - mean) - mean_lo) * rstd; }
};

template <class T> WF_ON_DEVICE Stats<real_of<T>> stats_of(const Backward<T> &p, int64_t set)
{
    using R = real_of<T>;
    return {dev::load(p.mean, set), p.mean_lo ? dev::load(p.mean_lo, set) : R(0), dev::load(p.rstd, set)};
}

/* What dx of a channel of a sample is made with. */
template <class R> struct alignas(2 * sizeof(R)) Channel {
    Stats<R> s;
    R        gamma, gx, g;

    WF_ON_DEVICE R gradient(R x, R dy, bool frozen) const
    {
        return s.rstd * (frozen ? gamma * dy : (gamma * dy - g) - s.normalized(x) * gx);
    }
};

template <class T> WF_ON_DEVICE Channel<real_of<T>> channel_of(const Backward<T> &p, int64_t sample, int64_t channel)
{
    using R = real_of<T>;
    const int64_t set = p.set(sample, channel);
    return {stats_of(p, set), p.gamma.load(channel, 1), p.frozen ? R(0) : dev::load(p.averages, set),
            p.frozen ? R(0) : dev::load(p.averages, p.sets + set)};
}

enum {
    THREADS = 256,
    WARPS = THREADS / 32,
    VECTORS = 4, /* of each of x and dy that a thread has on their way at once */
};

} // namespace

#endif
