/* What the channel norms may end in, y = activation(z + residual), the gradient that arrives before it, and what a modulation
 * makes of gamma and beta: see struct activation and struct modulation. A kernel is for endings or for none, which costs nothing;
 * which activation it is, and whether it is modulated, it learns when it runs. */
#ifndef WELFORD_CUDA_ENDING_CUH
#define WELFORD_CUDA_ENDING_CUH

#include "activations.cuh"
#include "parameter.cuh"
#include "prim/reduce.cuh"

/* Launches with an ending are compiled in a file of their own, which says that they are to be: half of the time, twice. */
#ifndef ENDINGS
#define ENDINGS extern template
#endif

/* By a call, not for every element of every vector again: kernels stay as small, and compile as fast, as without. */
template <class R> WF_CALLED R smooth_activation(int kind, R z)
{
    if constexpr (sizeof(R) == 4)
        return single::activation_value(kind, 0, z);
    else
        return twice::activation_value(kind, 0, z);
}

template <class R> WF_CALLED R smooth_derivative(int kind, R z)
{
    if constexpr (sizeof(R) == 4)
        return single::activation_derivative(kind, 0, z);
    else
        return twice::activation_derivative(kind, 0, z);
}

template <class R> struct Activation {
    int  kind;
    bool smooth, zero; /* else it has a corner at 0, or none; below it, 0 or slope times as much */
    R    slope;

    WF_ON_DEVICE R value(R z) const
    {
        if (smooth)
            return smooth_activation(kind, z);
        return z <= 0 ? (zero ? R(0) : z * slope) : z;
    }

    /* dy * activation'(z); a select where that is 0. */
    WF_ON_DEVICE R gradient(R z, R dy) const
    {
        if (smooth)
            return dy * smooth_derivative(kind, z);
        return z <= 0 ? (zero ? R(0) : dy * slope) : dy;
    }
};

template <class R> Activation<R> activation_of(const struct activation &act)
{
    return {act.kind, act.kind >= WF_SILU, act.kind == WF_RELU, act.kind == WF_LEAKY_RELU ? (R)act.slope : R(1)};
}

/* Whether a call has what kernels for endings are for. */
template <class Problem> bool ends(const Problem &p)
{
    return p.act.present || p.mod.present;
}

/* Likewise: registers are short where gamma and beta are loaded. */
template <class T> WF_CALLED real_of<T> loaded(Parameter<T> parameter, int64_t i)
{
    return parameter.load(i, 0);
}

/* What stands for gamma and beta in a pair of sample and channel: sample * c + channel. */
template <class T, bool PRESENT> struct Modulation {
    using R = real_of<T>;
    struct Pair {
    };

    WF_ON_DEVICE Pair pair(int64_t) const { return {}; }
    WF_ON_DEVICE R factor(const Parameter<T> &gamma, int64_t channel, const Pair &) const { return gamma.load(channel, 1); }
    WF_ON_DEVICE R shifted(const Parameter<T> &beta, int64_t channel, const Pair &) const { return beta.load(channel, 0); }
};

template <class T> struct Modulation<T, true> {
    using R = real_of<T>;
    struct Pair {
        R f, shift;
    };
    Parameter<T> scale, shift; /* none: f = 1; 0 */
    R            offset;

    WF_ON_DEVICE Pair pair(int64_t i) const
    {
        return {scale ? offset + loaded(scale, i) : R(1), shift ? loaded(shift, i) : R(0)};
    }

    WF_ON_DEVICE R factor(const Parameter<T> &gamma, int64_t channel, const Pair &p) const
    {
        return gamma.load(channel, 1) * p.f;
    }

    /* Without beta shift alone, also where f is not finite; a shift that is not there is not added, for -0. */
    WF_ON_DEVICE R shifted(const Parameter<T> &beta, int64_t channel, const Pair &p) const
    {
        const R z = beta ? beta.load(channel, 0) * p.f : R(0);
        return shift ? z + p.shift : z;
    }
};

/* Forward. PRESENT: false where y is z. */
template <class T, bool PRESENT> struct Ending : Modulation<T, PRESENT> {
    template <int V> struct Fetched {
    };

    template <int V> WF_ON_DEVICE Fetched<V> fetch(int64_t, int) const { return {}; }
    template <int V> WF_ON_DEVICE void apply(const Fetched<V> &, real_of<T> (&)[V]) const {}
};

template <class T> struct Ending<T, true> : Modulation<T, true> {
    using R = real_of<T>;
    template <int V> using Fetched = dev::vec<T, V>;
    dev::global<const T> residual;
    bool                 wide;
    Activation<R>        activation;

    /* What is added to V elements from `at` on, to be loaded before it is wanted. */
    template <int V> WF_ON_DEVICE Fetched<V> fetch(int64_t at, int valid) const
    {
        return load_packed<true, V>(residual, at, residual ? valid : 0, wide);
    }

    /* z becomes y. */
    template <int V> WF_ON_DEVICE void apply(const Fetched<V> &fetched, R (&z)[V]) const
    {
#pragma unroll
        for (int j = 0; j < V; j++)
            z[j] = activation.value(z[j] + up(fetched.v[j]));
    }
};

/* Backward: dz = dy * activation'(z), z of x, or y, which has its sign. */
template <class T, bool PRESENT> struct EndingGradient : Modulation<T, PRESENT> {
    using R = real_of<T>;
    template <int V> struct Fetched {
    };

    template <bool Stream, int V> WF_ON_DEVICE Fetched<V> fetch(int64_t, int) const { return {}; }
    template <int V> WF_ON_DEVICE R element(const Fetched<V> &, int) const { return 0; }
    WF_ON_DEVICE R load(int64_t) const { return 0; }
    template <class Known> WF_ON_DEVICE R arriving(const Known &, R, R dy, R) const { return dy; }
    template <int V> WF_ON_DEVICE void keep(Fetched<V> &, int, R) const {}
    template <class F> WF_ON_DEVICE void store(F) const {}
};

template <class T> struct EndingGradient<T, true> : Modulation<T, true> {
    using R = real_of<T>;
    template <int V> using Fetched = dev::vec<T, V>;
    dev::global<const T> other; /* residual, or y; none: 0 */
    dev::global<T>       dresidual;
    Parameter<T>         beta;
    Activation<R>        activation;
    bool                 is_y, wide, dresidual_wide;

    template <bool Stream, int V> WF_ON_DEVICE Fetched<V> fetch(int64_t at, int valid) const
    {
        return load_packed<Stream, V>(other, at, other ? valid : 0, wide);
    }

    template <int V> WF_ON_DEVICE R element(const Fetched<V> &of, int j) const { return up(of.v[j]); }
    WF_ON_DEVICE R load(int64_t at) const { return other ? up(dev::load(other, at)) : R(0); }

    /* other: of the same element as x and dy. */
    template <class Known> WF_ON_DEVICE R arriving(const Known &known, R x, R dy, R other) const
    {
        return activation.gradient(is_y ? other : known.z(x) + other, dy);
    }

    /* What was fetched becomes dresidual, to be stored by f(buffer, wide). */
    template <int V> WF_ON_DEVICE void keep(Fetched<V> &of, int j, R dz) const { of.v[j] = down<T>(dz); }
    template <class F> WF_ON_DEVICE void store(F f) const
    {
        if (dresidual)
            f(dresidual, dresidual_wide);
    }
};

template <class T> Modulation<T, true> modulation_of(const struct modulation &m, wf_dtype w_dtype)
{
    return {parameter<T>(m.scale, w_dtype), parameter<T>(m.shift, w_dtype), (real_of<T>)m.offset};
}

/* V: elements of the widest vector. */
template <bool PRESENT, class T, int V, class Problem> Ending<T, PRESENT> ending_of(const Problem &p)
{
    Ending<T, PRESENT> e = {};
    if constexpr (PRESENT) {
        static_cast<Modulation<T, true> &>(e) = modulation_of<T>(p.mod, p.shape.w_dtype);
        e.residual = buffer<const T>(p.act.residual);
        e.wide = dev::aligned<V>(e.residual);
        e.activation = activation_of<real_of<T>>(p.act);
    }
    return e;
}

/* Of samples with so many elements. */
template <bool PRESENT, class T, class Problem>
EndingGradient<T, PRESENT> ending_gradient_of(const Problem &p, int64_t samples, int64_t sample)
{
    EndingGradient<T, PRESENT> e = {};
    if constexpr (PRESENT) {
        const struct activation &act = p.act;
        static_cast<Modulation<T, true> &>(e) = modulation_of<T>(p.mod, p.shape.w_dtype);
        e.other = buffer<const T>(act.y ? act.y : act.residual), e.is_y = act.y;
        e.dresidual = buffer<T>(act.dresidual);
        e.beta = parameter<T>(act.beta, p.shape.w_dtype);
        e.activation = activation_of<real_of<T>>(act);
        e.wide = row_is_wide<vec_of<T>>(e.other, samples, sample);
        e.dresidual_wide = row_is_wide<vec_of<T>>(e.dresidual, samples, sample);
    }
    return e;
}

#endif
