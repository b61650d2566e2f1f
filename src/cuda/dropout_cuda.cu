/* Dropout on CUDA, forward and backward:
 *
 *     y = keep(u) ? x * scale + shift : dropped
 *
 * keep(u) compares word u % 4 of Philox block u / 4 with the threshold: regenerated from the index, so it does not matter
 * which thread has which elements. Or it is bit u of a mask that is given. At 16 bits the integer pipes are the next limit
 * behind memory: of the 320 instructions for 16 elements (sm_90), 76 are Philox's products and 80 its exclusive ors; the round
 * keys take none, for the seed is made uniform. */
#include "activations.cuh"
#include "decisions.cuh"
#include "parameter.cuh"
#include "prim/divisor.cuh"

namespace
{

enum {
    THREADS = 256,
    VECTORS = 2, /* that a thread loads before it needs one */
    ELEMENTS_BLOCKS = dev::THREADS_MOST / THREADS, /* on a multiprocessor: 8 of them leave a thread 32 registers; */
    MASK_BLOCKS = 6,                               /* 40 where there is a mask, */
    FEATURES_BLOCKS = 4,                           /* and 64 for features, and what is fused, */
    FUSED_F64_BLOCKS = 3,                          /* but in double: 80 */
    MASK_UNITS = 8,                                /* bits of a byte of the mask */
};

template <class T> struct Dropout {
    using X = T;
    static constexpr int V = vec_of<T>;
    static constexpr int STEP = THREADS * V, TILE = VECTORS * STEP; /* what a block of threads takes at a time */
    dev::global<const T> x;
    dev::global<T>       y;
    dev::global<uint8_t> mask;
    int64_t              count; /* elements */
    real_of<T>           scale, shift, dropped; /* shift: -0 where there is none, which changes no number */
    bool                 wide, given;
    Decision             decision;
    int64_t              line_size; /* features: elements of a channel of a sample (channels first), else channels */
    Divisor              by_line, by_sample; /* a sample has hw lines, channels last */
};

/* The elements at, at + 1, ... of which `valid` are there. */
template <class T>
WF_ON_DEVICE void write_vector(const Dropout<T> &p, int64_t at, int valid, const dev::vec<T, vec_of<T>> &packed,
                               const bool (&keep)[vec_of<T>])
{
    constexpr int V = vec_of<T>;
    real_of<T>    x[V], y[V];
    unpack(packed, x);
#pragma unroll
    for (int j = 0; j < V; j++) {
        const real_of<T> shifted = x[j] * p.scale + p.shift;
        y[j] = keep[j] ? shifted : p.dropped;
    }
    store_reals<true>(p.y, at, valid, p.wide, y);
}

/* Bit j: element at + j is kept. */
template <class T>
WF_ON_DEVICE void write_vector(const Dropout<T> &p, int64_t at, int valid, const dev::vec<T, vec_of<T>> &packed, unsigned bits)
{
    bool keep[vec_of<T>];
#pragma unroll
    for (int j = 0; j < vec_of<T>; j++)
        keep[j] = bits >> j & 1;
    write_vector(p, at, valid, packed, keep);
}

/* drop(at, valid, packed, more) for every vector of x, `more` being what fetch(at, valid) loaded along with it. All threads of
 * a block call it equally often, with valid = 0 past the end. */
template <class T, class L, class F> WF_ON_DEVICE void sweep(const Dropout<T> &p, L fetch, F drop)
{
    using P = Dropout<T>;
    constexpr int V = P::V;
    for (int64_t tile = (int64_t)blockIdx.x * P::TILE; tile < p.count; tile += (int64_t)gridDim.x * P::TILE) {
        const int64_t first = tile + threadIdx.x * V;
        if (p.wide && p.count - tile >= P::TILE) {
            dev::vec<T, V>            packed[VECTORS];
            decltype(fetch(first, V)) more[VECTORS];
#pragma unroll
            for (int k = 0; k < VECTORS; k++)
                packed[k] = dev::load_vec_stream<V>(p.x, first + k * P::STEP);
#pragma unroll
            for (int k = 0; k < VECTORS; k++)
                more[k] = fetch(first + k * P::STEP, V);
#pragma unroll
            for (int k = 0; k < VECTORS; k++)
                drop(first + k * P::STEP, V, packed[k], more[k]);
        } else {
#pragma unroll 1
            for (int k = 0; k < VECTORS; k++) {
                const int64_t at = first + k * P::STEP, left = p.count - at;
                const int     valid = left > 0 ? (int)smallest<int64_t>(left, V) : 0;
                drop(at, valid, load_packed<true, V>(p.x, at, valid, p.wide), fetch(at, valid));
            }
        }
    }
}

struct Nothing {};

WF_ON_DEVICE Nothing fetch_nothing(int64_t, int) { return {}; }

/* ---- a decision for each element --------------------------------------------------------------------------------- */

/* Of V elements, `at` a multiple of V: V / 4 Philox blocks, or the half of one. */
template <int V> WF_ON_DEVICE void decide(const Decision &d, const Random &random, int64_t at, bool (&keep)[V])
{
    uint32_t word[BLOCK_UNITS];
    if constexpr (V < BLOCK_UNITS) {
        random.words(at / BLOCK_UNITS, word);
        const bool upper = at % BLOCK_UNITS != 0;
        keep[0] = keeps(d, upper ? word[2] : word[0]);
        keep[1] = keeps(d, upper ? word[3] : word[1]);
    } else {
#pragma unroll
        for (int j = 0; j < V; j++) {
            if (j % BLOCK_UNITS == 0)
                random.words((at + j) / BLOCK_UNITS, word);
            keep[j] = keeps(d, word[j % BLOCK_UNITS]);
        }
    }
}

/* A byte of the mask has the bits of 8 / V neighboring lanes, the first of which writes it. All lanes of a warp call. */
template <int V>
WF_ON_DEVICE void write_mask(dev::global<uint8_t> mask, int64_t at, int valid, const bool (&keep)[V])
{
    unsigned bits = 0;
#pragma unroll
    for (int j = 0; j < V; j++)
        bits |= (unsigned)(keep[j] && j < valid) << j;
#pragma unroll
    for (int n = V; n < MASK_UNITS; n *= 2)
        bits |= __shfl_down_sync(0xffffffffu, bits, n / V) << n;
    if (valid > 0 && at % MASK_UNITS == 0)
        dev::store(mask, at / MASK_UNITS, (uint8_t)bits);
}

template <class T, bool MASK>
__global__ void __launch_bounds__(THREADS, MASK ? MASK_BLOCKS : ELEMENTS_BLOCKS) dropout__elements(Dropout<T> p)
{
    const Random random(p.decision);
    sweep(p, fetch_nothing, [&](int64_t at, int valid, const auto &packed, Nothing) {
        bool keep[vec_of<T>];
        decide(p.decision, random, at, keep);
        write_vector(p, at, valid, packed, keep);
        if (MASK)
            write_mask(p.mask, at, valid, keep);
    });
}

/* The elements of a vector have their bits in one byte. */
template <class T> __global__ void __launch_bounds__(THREADS, ELEMENTS_BLOCKS) dropout__elements_of_mask(Dropout<T> p)
{
    const auto bits_of_vector = [&](int64_t at, int valid) {
        return valid > 0 ? (unsigned)dev::load_stream(p.mask, at / MASK_UNITS) >> at % MASK_UNITS : 0u;
    };
    sweep(p, bits_of_vector, [&](int64_t at, int valid, const auto &packed, unsigned bits) {
        write_vector(p, at, valid, packed, bits);
    });
}

/* ---- a decision for each (sample, channel) ----------------------------------------------------------------------- */

/* Bit i: unit 4 block + i is kept. */
template <class T> WF_ON_DEVICE unsigned keep_block(const Dropout<T> &p, const Random &random, int64_t block)
{
    constexpr int BLOCKS = MASK_UNITS / BLOCK_UNITS; /* with bits in a byte */
    return p.given ? (unsigned)dev::load(p.mask, block / BLOCKS) >> block % BLOCKS * BLOCK_UNITS
                   : decide_block(p.decision, random, block);
}

/* Bit j: element at + j is kept, if that is there. The vector is walked in runs: elements of one unit (channels first), or of
 * consecutive units of one Philox block and one line (channels last). */
template <class T, bool LAST>
WF_ON_DEVICE unsigned decide_features(const Dropout<T> &p, const Random &random, int64_t at, int valid)
{
    constexpr int V = vec_of<T>;
    unsigned      bits = 0;
    int64_t       line = p.by_line.quotient(at), place = at - line * p.line_size; /* place: of the element in its line */
#pragma unroll 1
    for (int j = 0; j < valid;) {
        const int64_t  unit = LAST ? p.by_sample.quotient(line) * p.line_size + place : line;
        const unsigned kept = keep_block(p, random, unit / BLOCK_UNITS) >> unit % BLOCK_UNITS;
        const int      most = LAST ? smallest(V - j, BLOCK_UNITS - (int)(unit % BLOCK_UNITS)) : V - j;
        const int      run = (int)smallest<int64_t>(most, p.line_size - place);
        const unsigned ones = (1u << run) - 1;
        bits |= (LAST ? kept & ones : kept & 1 ? ones : 0) << j;
        j += run;
        place += run;
        if (place == p.line_size)
            line++, place = 0;
    }
    return bits;
}

template <class T, bool LAST> WF_ON_DEVICE void drop_features(const Dropout<T> &p)
{
    const Random random(p.decision);
    sweep(p, fetch_nothing, [&](int64_t at, int valid, const auto &packed, Nothing) {
        write_vector(p, at, valid, packed, decide_features<T, LAST>(p, random, at, valid));
    });
}

template <class T> __global__ void __launch_bounds__(THREADS, FEATURES_BLOCKS) dropout__features_first(Dropout<T> p)
{
    drop_features<T, false>(p);
}

template <class T> __global__ void __launch_bounds__(THREADS, FEATURES_BLOCKS) dropout__features_last(Dropout<T> p)
{
    drop_features<T, true>(p);
}

/* ---- fused ------------------------------------------------------------------------------------------------------- */

enum class Units { ELEMENTS, FEATURES_FIRST, FEATURES_LAST };

template <class T> struct Fused : Dropout<T> {
    dev::global<const T> other; /* forward the residual, backward the x that was activated; absent: 0 */
    Parameter<T>         bias;
    int                  activation;
    bool                 backward, residual, other_wide, bias_wide, channels_last, drawn;
    real_of<T>           slope;
    int64_t              run; /* consecutive elements that have a channel each, or (channels first) the same */
    Divisor              by_run, by_channels;
};

/* z += bias, of the elements from `at`. */
template <class T> WF_ON_DEVICE void add_bias(const Fused<T> &p, int64_t at, int valid, real_of<T> (&z)[vec_of<T>])
{
    constexpr int V = vec_of<T>;
    int64_t       run = p.by_run.quotient(at), place = at - run * p.run;
    real_of<T>    bias[V];
    if (p.channels_last && place + V <= p.run) {
        load_reals(p.bias, place, valid, p.bias_wide, bias);
    } else {
        for (int j = 0; j < V; j++) {
            const int64_t channel = p.channels_last ? place : p.by_channels.remainder(run);
            bias[j] = j < valid ? p.bias.load(channel, 0) : real_of<T>(0);
            if (++place == p.run)
                run++, place = 0;
        }
    }
#pragma unroll
    for (int j = 0; j < V; j++)
        z[j] += bias[j];
}

template <class T, Units UNITS>
WF_ON_DEVICE unsigned keep_bits(const Fused<T> &p, const Random &random, int64_t at, int valid)
{
    constexpr int V = vec_of<T>;
    if (!p.drawn)
        return ~0u;
    if constexpr (UNITS != Units::ELEMENTS)
        return decide_features<T, UNITS == Units::FEATURES_LAST>(p, random, at, valid);
    if (p.given)
        return valid > 0 ? (unsigned)dev::load(p.mask, at / MASK_UNITS) >> at % MASK_UNITS : 0;
    bool     keep[V];
    unsigned bits = 0;
    decide(p.decision, random, at, keep);
#pragma unroll
    for (int j = 0; j < V; j++)
        bits |= (unsigned)keep[j] << j;
    return bits;
}

template <class T, Units UNITS>
__global__ void __launch_bounds__(THREADS, sizeof(T) == 8 ? FUSED_F64_BLOCKS : FEATURES_BLOCKS) dropout__fused(Fused<T> p)
{
    using R = real_of<T>;
    constexpr int V = vec_of<T>;
    const Random  random(p.decision);
    const auto    fetch = [&](int64_t at, int valid) {
        return load_packed<true, V>(p.other, at, p.other ? valid : 0, p.other_wide);
    };
    sweep(p, fetch, [&](int64_t at, int valid, const auto &packed, const auto &more) {
        R x[V], other[V], inner[V], y[V];
        unpack(packed, x);
        unpack(more, other);
#pragma unroll
        for (int j = 0; j < V; j++)
            inner[j] = p.backward ? other[j] : x[j];
        if (p.bias)
            add_bias(p, at, valid, inner);
        activate(p.activation, p.backward, p.slope, inner);
        const unsigned bits = keep_bits<T, UNITS>(p, random, at, valid);
#pragma unroll
        for (int j = 0; j < V; j++) {
            const R scaled = (p.backward ? x[j] : inner[j]) * p.scale + p.shift;
            const R d = bits >> j & 1 ? p.backward ? scaled * inner[j] : scaled : p.dropped;
            y[j] = p.residual ? other[j] + d : d;
        }
        store_reals<true>(p.y, at, valid, p.wide, y);
        if (UNITS == Units::ELEMENTS && p.mask && !p.given) {
            bool keep[V];
#pragma unroll
            for (int j = 0; j < V; j++)
                keep[j] = bits >> j & 1;
            write_mask(p.mask, at, valid, keep);
        }
    });
}

struct Mask {
    dev::global<uint8_t> mask;
    int64_t              units;
    Decision             decision;
};

/* A thread for each byte. */
__global__ void __launch_bounds__(THREADS) dropout_mask__features(Mask p)
{
    const Random random(p.decision);
    for (int64_t unit = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * MASK_UNITS; unit < p.units;
         unit += (int64_t)gridDim.x * THREADS * MASK_UNITS) {
        const int64_t  block = unit / BLOCK_UNITS, valid = smallest<int64_t>(p.units - unit, MASK_UNITS);
        const unsigned low = decide_block(p.decision, random, block), high = decide_block(p.decision, random, block + 1);
        dev::store(p.mask, unit / MASK_UNITS, (uint8_t)((low | high << BLOCK_UNITS) & ((1u << valid) - 1)));
    }
}

/* ---- the variants ------------------------------------------------------------------------------------------------ */

using Problem = struct dropout;

/* f(params, grid) with everything but what a variant adds; not for an empty tensor. */
template <class F> void with_params(const Problem &p, F f)
{
    with_dtypes((Element)p.x_dtype, (Element)p.x_dtype, [&](auto x, auto) {
        using T = decltype(x);
        using R = real_of<T>;
        Dropout<T> q = {};
        q.x = buffer<const T>(p.x), q.y = buffer<T>(p.y);
        q.count = p.n * p.c * p.hw;
        q.scale = (R)p.scale, q.shift = p.shifted ? (R)p.shift : (R)-0.0, q.dropped = (R)p.dropped;
        q.wide = row_is_wide<vec_of<T>>(q.x, 1, 0) && row_is_wide<vec_of<T>>(q.y, 1, 0);
        q.mask = buffer<uint8_t>(p.mask), q.given = p.given;
        q.line_size = p.layout == WF_NCHW ? p.hw : p.c;
        q.by_line = Divisor(q.line_size);
        q.by_sample = Divisor(p.hw);
        q.decision = decision_of(p);
        if (q.count > 0)
            f(q, dim3(grid_for(ceil_div(q.count, Dropout<T>::TILE))));
    });
}

template <class T> Fused<T> fused(const Problem &p, const Dropout<T> &plain)
{
    Fused<T> q;
    static_cast<Dropout<T> &>(q) = plain;
    q.residual = p.residual != nullptr;
    q.other = buffer<const T>(p.backward ? p.x_in : p.residual);
    q.bias = parameter<T>(p.bias, p.w_dtype);
    q.activation = p.activation, q.backward = p.backward, q.slope = (real_of<T>)p.slope;
    q.other_wide = row_is_wide<vec_of<T>>(q.other, 1, 0), q.bias_wide = row_is_wide<vec_of<T>>(q.bias, 2, p.c);
    q.channels_last = p.layout == WF_NHWC || p.hw == 1;
    q.drawn = p.given || p.threshold <= UINT32_MAX;
    q.run = q.channels_last ? p.c : p.hw;
    q.by_run = Divisor(q.run), q.by_channels = Divisor(p.c);
    return q;
}

size_t no_workspace(const Problem &) { return 0; }

/* Elements are units, whatever the layout, where there is one to a feature. */
bool elements_take(const Problem &p)
{
    return !p.features || p.hw == 1;
}

void elements_launch(const Problem &p, Run &run)
{
    with_params(p, [&](auto q, dim3 grid) {
        using T = typename decltype(q)::X;
        if (p.fused || run.load_only)
            start(run, {grid, dim3(THREADS)}, dropout__fused<T, Units::ELEMENTS>, fused(p, q));
        if (p.fused)
            return;
        if (p.given || run.load_only)
            start(run, {grid, dim3(THREADS)}, dropout__elements_of_mask<T>, q);
        if ((p.mask && !p.given) || run.load_only)
            start(run, {grid, dim3(THREADS)}, dropout__elements<T, true>, q);
        if (!p.mask || run.load_only)
            start(run, {grid, dim3(THREADS)}, dropout__elements<T, false>, q);
    });
}

template <wf_layout LAYOUT> bool features_take(const Problem &p)
{
    return p.features && p.layout == LAYOUT;
}

template <wf_layout LAYOUT> void features_launch(const Problem &p, Run &run)
{
    const int64_t units = p.n * p.c;
    if (units > 0 && ((p.mask && !p.given) || run.load_only)) {
        const unsigned grid = grid_for(ceil_div(units, THREADS * MASK_UNITS));
        start(run, {dim3(grid), dim3(THREADS)}, dropout_mask__features, Mask{buffer<uint8_t>(p.mask), units, decision_of(p)});
    }
    with_params(p, [&](auto q, dim3 grid) {
        using T = typename decltype(q)::X;
        constexpr bool  first = LAYOUT == WF_NCHW;
        constexpr Units UNITS = first ? Units::FEATURES_FIRST : Units::FEATURES_LAST;
        if (p.fused || run.load_only)
            start(run, {grid, dim3(THREADS)}, dropout__fused<T, UNITS>, fused(p, q));
        if (!p.fused || run.load_only)
            start(run, {grid, dim3(THREADS)}, first ? dropout__features_first<T> : dropout__features_last<T>, q);
    });
}

} // namespace

const Variant<dropout> dropout_variants[] = {
    {"elements", 0, elements_take, no_workspace, elements_launch},
    {"features_channels_first", 0, features_take<WF_NCHW>, no_workspace, features_launch<WF_NCHW>},
    {"features_channels_last", 0, features_take<WF_NHWC>, no_workspace, features_launch<WF_NHWC>},
    {},
};
