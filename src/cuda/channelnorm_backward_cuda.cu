/* GroupNorm, InstanceNorm and BatchNorm backward on CUDA: sums, what becomes of them, and the variants. Where x and dy are read
 * twice, the sums of parts of every channel of every sample come first, then in one launch the averages of the sets and the
 * parameters' gradients, which are sums of those, then dx. */
#include "channelnorm_backward_steps.cuh"

namespace backward
{

/* ---- sums to averages, dgamma and dbeta -------------------------------------------------------------------------- */

template <class R, class W> struct Combine {
    Finish<R, W>         finish;
    dev::global<const W> gamma;
    dev::global<R>       averages; /* [2, sets]; none where statistics are constants */
    int64_t              sets, groups, group_channels, rows; /* of sums of a sample */
    R                    count;
    bool                 across_batch;
    int64_t              finish_blocks;      /* the first of them; then those for sets of a sample */
    int                  lanes;              /* that share a set: a power of two up to 32, or all threads */
    int64_t              lanes_down;         /* whole rows in so many sums, */
    int64_t              lanes_across;       /* and what is left of them */
    Divisor              by_group_channels, by_groups;
};

/* Which of a set's sums go to which thread depends on the set's shape alone. */
template <class R, class W>
WF_ON_DEVICE void average_sets(const Combine<R, W> &p, int64_t block, int64_t blocks, dev::shared<pair<R>> scratch)
{
    constexpr int SET_WARPS = FINISH_THREADS / 32;
    const int     lane = threadIdx.x % p.lanes, at_once = FINISH_THREADS / p.lanes;
    int64_t       round = 0;
    for (int64_t base = block * at_once; base < p.sets; base += blocks * at_once, round++) {
        const int64_t set = base + threadIdx.x / p.lanes, sample = p.by_groups.quotient(set);
        const int64_t first = (set - sample * p.groups) * p.group_channels;
        LongSum<R>    gx, g;
        if (set < p.sets) {
            int64_t row = p.by_group_channels.quotient((int64_t)lane), channel = lane - row * p.group_channels;
#pragma unroll 4
            for (; row < p.rows; row += p.lanes_down) {
                const int64_t at = (sample * p.rows + row) * 2 * p.finish.cols + first + channel;
                const R       gamma = p.gamma ? up(dev::load(p.gamma, first + channel)) : R(1);
                gx.add(gamma * dev::load(p.finish.partial, at));
                g.add(gamma * dev::load(p.finish.partial, at + p.finish.cols));
                channel += p.lanes_across;
                if (channel >= p.group_channels) {
                    channel -= p.group_channels;
                    row++;
                }
            }
        }
        pair<R> sum = {g.value(), gx.value()};
        sum = p.lanes <= 32 ? lanes_sums(sum, p.lanes) : row_sums<SET_WARPS>(sum, scratch + round % 2 * SET_WARPS, false);
        if (set < p.sets && lane == 0) {
            dev::store(p.averages, set, sum.gx / p.count);
            dev::store(p.averages, p.sets + set, sum.g / p.count);
        }
    }
}

template <class R, class W>
__global__ void __launch_bounds__(FINISH_THREADS) channelnorm_backward__combine(Combine<R, W> p)
{
    using Sums = dev::vec<R, vec_of<R>>;
    WF_SHARED(Sums, sums, FINISH_THREADS);
    WF_SHARED(pair<R>, scratch, 2 * FINISH_THREADS / 32);
    if (blockIdx.x >= p.finish_blocks) {
        average_sets(p, blockIdx.x - p.finish_blocks, gridDim.x - p.finish_blocks, scratch);
        return;
    }
    finish_columns(p.finish, blockIdx.x, sums, [&](int64_t i, R sum) {
        if (!p.averages || !p.across_batch)
            return;
        const int64_t channel = i < p.finish.cols ? i : i - p.finish.cols;
        const R       gamma = p.gamma ? up(dev::load(p.gamma, channel)) : R(1);
        dev::store(p.averages, i, gamma * sum / p.count);
    });
}

/* ---- dscale and dshift ------------------------------------------------------------------------------------------- */

template <class T> struct Modulated {
    Modulation<T, true>     by;
    Parameter<T>            gamma, beta;
    WeightsOut<T>           dscale, dshift;
    dev::global<real_of<T>> sums; /* [samples, rows, 2, c] */
    int64_t                 pairs, c, rows;
    int                     lanes; /* of a warp, that share a pair */
    Divisor                 by_c;
};

/* A thread, or lanes of a warp, for each pair of sample and channel. Its sums, that of dscale and dshift are made, are multiplied
 * by f for all that they are made of besides. */
template <class T> __global__ void __launch_bounds__(THREADS) channelnorm_backward__modulated(Modulated<T> p)
{
    using R = real_of<T>;
    const int lane = threadIdx.x % 32, across = 32 / p.lanes;
    for (int64_t base = ((int64_t)blockIdx.x * WARPS + threadIdx.x / 32) * across; base < p.pairs;
         base += (int64_t)gridDim.x * WARPS * across) {
        const int64_t at = base + lane % across, sample = p.by_c.quotient(at), channel = at - sample * p.c;
        const bool    present = at < p.pairs;
        const R       f = present ? p.by.pair(at).f : R(1);
        LongSum<R>    gx, g;
        for (int64_t row = lane / across; present && row < p.rows; row += p.lanes) {
            const int64_t from = (sample * p.rows + row) * 2 * p.c + channel;
            const R       of_gx = dev::load(p.sums, from), of_g = dev::load(p.sums, from + p.c);
            gx.add(of_gx);
            g.add(of_g);
            if (p.by.scale) {
                dev::store(p.sums, from, of_gx * f);
                dev::store(p.sums, from + p.c, of_g * f);
            }
        }
        pair<R> sum = {g.value(), gx.value()};
        for (int step = across; step < 32; step *= 2)
            sum = Sum()(sum, of_lane_across(sum, step));
        if (present && lane < across) {
            p.dshift.store(at, sum.g);
            p.dscale.store(at, p.rows ? p.gamma.load(channel, 1) * sum.gx + p.beta.load(channel, 0) * sum.g : R(0));
        }
    }
}

/* ---- the variants ------------------------------------------------------------------------------------------------ */

bool wants_parameters(const Problem &p)
{
    return p.dgamma || p.dbeta;
}

/* Rows of the sums of a sample, or across the batch of all. */
template <class B> int64_t sums_rows(const B &b, bool last)
{
    if (!last)
        return ceil_div(b.hw, segment_for<typename B::X>(b.hw));
    const Last<B> q = last_sums_of(b);
    return q.chunks * q.fold;
}

template <class B> int64_t sums_samples(const B &b, bool last)
{
    return last && b.across_batch ? 1 : b.n;
}

template <class R, class W>
void combine(const Problem &p, const Geometry &g, dev::global<R> sums, dev::global<R> averages, int64_t samples, int64_t rows,
             Run &run)
{
    const bool    average_apart = averages && !g.across_batch;
    Combine<R, W> q = {};
    q.finish = finish_of(dev::global<const R>(sums), buffer<W>(p.dgamma), buffer<W>(p.dbeta), samples * rows, g.c, p.accumulate);
    q.gamma = buffer<const W>(p.gamma);
    q.averages = averages;
    q.sets = g.sets, q.groups = g.groups, q.group_channels = g.group_channels, q.rows = rows;
    q.count = (R)g.count;
    q.across_batch = g.across_batch;
    q.finish_blocks = wants_parameters(p) || !average_apart ? q.finish.blocks : 0;
    q.lanes = 1;
    while (q.lanes < 32 && q.lanes * 4 < rows * g.group_channels)
        q.lanes *= 2;
    if (rows * g.group_channels > 32 * 16)
        q.lanes = FINISH_THREADS;
    q.lanes_down = q.lanes / g.group_channels, q.lanes_across = q.lanes % g.group_channels;
    q.by_group_channels = Divisor(g.group_channels), q.by_groups = Divisor(g.groups);
    const unsigned set_blocks = average_apart ? grid_for(ceil_div(g.sets, FINISH_THREADS / q.lanes)) : 0;
    start(run, {dim3((unsigned)q.finish_blocks + set_blocks), dim3(FINISH_THREADS)}, channelnorm_backward__combine<R, W>, q);
}

bool wants_modulation(const Problem &p)
{
    return p.mod.dscale || p.mod.dshift;
}

/* Between the sums and all that is made of them; used: what is made of them besides dscale and dshift. */
template <class B, class W>
void modulate(const Problem &p, const B &b, W, dev::global<typename B::R> sums, int64_t rows, bool used, Run &run)
{
    using T = typename B::X;
    Modulated<T> q = {};
    q.by = modulation_of<T>(p.mod, p.shape.w_dtype);
    q.gamma = b.gamma, q.beta = parameter<T>(p.mod.beta, p.shape.w_dtype);
    q.dscale = weights_out<T, W>(p.mod.dscale, false), q.dshift = weights_out<T, W>(p.mod.dshift, false);
    q.sums = sums;
    q.pairs = b.n * b.c, q.c = b.c, q.rows = rows;
    q.lanes = 1;
    while (q.lanes < 32 && q.lanes * 4 < rows)
        q.lanes *= 2;
    q.by_c = Divisor(b.c);
    if (p.mod.present && q.pairs > 0 && (wants_modulation(p) || (p.mod.scale && used) || run.load_only))
        start(run, {dim3(grid_for(ceil_div(q.pairs * q.lanes, THREADS))), dim3(THREADS)}, channelnorm_backward__modulated<T>, q);
}

/* dx and the sums in one launch; then the parameters' gradients, unless a block has all that they are made of. */
template <bool CLUSTERED> bool on_chip_takes(const Problem &p)
{
    const Geometry g = geometry(p);
    bool           takes = false;
    with_params<false>(p, g, [&](auto b, auto) {
        const int cluster = on_chip_plan<typename decltype(b)::X>(g).cluster;
        takes = CLUSTERED ? cluster > 1 : cluster == 1;
    });
    return takes;
}

/* Rows of sums of a sample: one for each block of its clusters. */
int64_t on_chip_rows(const Problem &p, const Geometry &g)
{
    int64_t rows = 0;
    with_params<false>(p, g, [&](auto b, auto) { rows = g.across_batch ? 0 : on_chip_plan<typename decltype(b)::X>(g).cluster; });
    return rows;
}

size_t on_chip_workspace(const Problem &p)
{
    const Geometry g = geometry(p);
    return (size_t)(on_chip_rows(p, g) * g.n * 2 * g.c) * wf_dtype_size(wf_statistics_dtype(p.shape.x_dtype));
}

void on_chip_launch(const Problem &p, Run &run)
{
    const Geometry g = geometry(p);
    const int64_t  rows = on_chip_rows(p, g);
    const bool     parameters = wants_parameters(p) || run.load_only, sums = rows && (parameters || wants_modulation(p));
    launch_step<false>(p, {ON_CHIP, sums, 0}, run);
    if (sums)
        with_params<false>(p, g, [&](auto b, auto w) {
            using R = typename decltype(b)::R;
            modulate(p, b, w, buffer<R>(run.workspace), rows, parameters, run);
            if (parameters)
                combine<R, decltype(w)>(p, g, buffer<R>(run.workspace), dev::global<R>(), g.n, rows, run);
        });
}

template <bool LAST> bool takes(const Problem &p)
{
    return geometry(p).last == LAST;
}

template <bool LAST> size_t workspace(const Problem &p)
{
    const Geometry g = geometry(p);
    int64_t        reals = 0;
    if (g.count > 0 && g.sets > 0)
        with_params<false>(p, g, [&](auto b, auto) { reals = 2 * (sums_samples(b, LAST) * sums_rows(b, LAST) * g.c + g.sets); });
    return (size_t)reals * wf_dtype_size(wf_statistics_dtype(p.shape.x_dtype));
}

/* Three launches; one for dx alone where statistics are constants, and one for the parameters' gradients of no elements. */
template <bool LAST> void launch(const Problem &p, Run &run)
{
    const Geometry g = geometry(p);
    with_params<false>(p, g, [&](auto b, auto w) {
        using R = typename decltype(b)::R;
        const bool    empty = g.count == 0 || g.sets == 0, dx = p.dx || p.act.dresidual || run.load_only;
        const bool    averaged = dx && !p.frozen, parameters = wants_parameters(p) || run.load_only;
        const int64_t rows = empty ? 0 : sums_rows(b, LAST), samples = sums_samples(b, LAST);
        const int64_t averages_at = samples * rows * 2 * g.c;
        const auto    sums = buffer<R>(run.workspace);
        if (!empty && (averaged || parameters || wants_modulation(p)))
            launch_step<false>(p, {SUMS, true, averages_at}, run);
        modulate(p, b, w, sums, rows, !empty && (averaged || parameters), run);
        if (g.c > 0 && ((averaged && !empty) || parameters))
            combine<R, decltype(w)>(p, g, sums, averaged && !empty ? sums + averages_at : dev::global<R>(), samples, rows, run);
        if (!empty && dx)
            launch_step<false>(p, {DX, true, averages_at}, run);
    });
}

} // namespace backward

/* What a sample's dx is made of depends on its shape alone: the same bits in every batch. */
using namespace backward;
const Variant<channelnorm_backward> channelnorm_backward_variants[] = {
    {"channels_first_in_block", 0, on_chip_takes<false>, on_chip_workspace, on_chip_launch},
    {"channels_first_in_cluster", 90, on_chip_takes<true>, on_chip_workspace, on_chip_launch},
    {"channels_first_two_reads", 0, takes<false>, workspace<false>, launch<false>},
    {"channels_last_two_reads", 0, takes<true>, workspace<true>, launch<true>},
    {},
};
