/* gamma, beta and their like, whose dtype is known when the kernel runs: x's or, beside 16-bit x, float. Half as many kernels. */
#ifndef WELFORD_CUDA_PARAMETER_CUH
#define WELFORD_CUDA_PARAMETER_CUH

#include "cuda.h"

/* None is 1, or 0. */
template <class T> struct Parameter {
    dev::global<const T>     same;
    dev::global<const float> single;

    explicit WF_ON_DEVICE operator bool() const { return same || single; }
    WF_ON_DEVICE real_of<T> load(int64_t i, int fallback) const
    {
        return same ? up(dev::load(same, i)) : single ? dev::load(single, i) : real_of<T>(fallback);
    }
};

/* Of one that is there, as load_reals() of a buffer. */
template <int N, class T>
WF_ON_DEVICE void load_reals(const Parameter<T> &p, int64_t at, int valid, bool wide, real_of<T> (&reals)[N])
{
    if constexpr (sizeof(T) == 2)
        if (p.single)
            return load_reals(p.single, at, valid, wide, reals);
    load_reals(p.same, at, valid, wide, reals);
}

template <class T> Parameter<T> parameter(const void *data, wf_dtype dtype)
{
    constexpr bool half = sizeof(T) == 2;
    Parameter<T>   p = {};
    if (half && dtype == WF_F32)
        p.single = buffer<const float>(data);
    else
        p.same = buffer<const T>(data);
    return p;
}

template <int N, class T> bool row_is_wide(const Parameter<T> &p, int64_t rows, int64_t stride)
{
    return row_is_wide<N>(p.same, rows, stride) && row_is_wide<N>(p.single, rows, stride);
}

#endif
