/* x is [n, c, hw]: backward where a block's shared memory, or a cluster's, holds whole sets. x and dy are read once, by
 * asynchronous copies; the sums of lines, the sets' averages and dx follow on chip.
 *   sets of neighboring lines (GroupNorm, InstanceNorm): a block holds some sets, or a cluster one, cut anywhere. Lines' sums
 *     are left for the parameters' gradients.
 *   across the batch: a block holds some neighboring channels. Their sums are the parameters' gradients. No cluster shares a
 *     channel: 128 x 256 x 14^2 f16 took 53 us so, in two reads 39 us (H100). */
#ifndef WELFORD_CUDA_CHANNELS_FIRST_ON_CHIP_CUH
#define WELFORD_CUDA_CHANNELS_FIRST_ON_CHIP_CUH

#include "channels_first_backward.cuh"

namespace backward
{

enum {
    ON_CHIP_MUCH = 48 * 1024,      /* bytes, for 2 * THREADS threads */
    ON_CHIP_AIM = 40 * 1024,       /* so that four blocks share a multiprocessor */
    ON_CHIP_SOME = 32 * 1024,      /* of several sets */
    ON_CHIP_MOST = 200 * 1024,
    ON_CHIP_CLUSTER = 8,
    ON_CHIP_RUN = 512,             /* bytes of a run, at least, so that few sectors are cut */
    ON_CHIP_CLUSTER_LINE = 256,    /* elements of a line, where a cluster leaves a row of sums for each of its blocks */
};

template <class B> struct OnChip {
    B                          b;
    Form                       form;
    WeightsOut<typename B::X>  dgamma, dbeta; /* across the batch */
    int64_t                    all;           /* lines or, across the batch, channels */
    int                        lines;         /* of them: of a cluster */
    int                        part;          /* elements of the lines: of a block */
    int                        group_channels;
    Divisor                    by_hw;
    typename B::R              count;
};

template <class B>
__global__ void __launch_bounds__(2 * THREADS, B::HAS_ENDING ? 1 : 2) channelnorm_backward_dx__channels_first_on_chip(OnChip<B> p)
{
    using T = typename B::X;
    using R = typename B::R;
    using Known = typename B::Known;
    constexpr int V = vec_of<T>;
    WF_DYN_SHARED(T, dy);
    WF_SHARED(Channel<B>, channels, LINES);
    WF_SHARED(pair<R>, items, ITEMS);
    WF_SHARED(pair<R>, sets, LINES);
    const bool    across = p.b.across_batch;
    const int     rank = dev::cluster_rank(), size = dev::cluster_size(), hw = (int)p.b.hw;
    int64_t       first = (int64_t)(blockIdx.x / size) * p.lines; /* line; from here on, the block's first */
    const int     lines = (int)smallest<int64_t>(p.lines, p.all - first);
    int           skipped = 0;
    Held          h = {0, p.b.c * p.b.hw, 1, lines * hw, lines, 0};
    if (across) {
        h.begin = first * hw;
        h.runs = (int)p.b.n;
    } else {
        const int skip = rank * p.part;
        h.n = valid_in(skip, lines * hw, p.part);
        skipped = p.by_hw.quotient(skip);
        first += skipped;
        h.rest = skip - skipped * hw;
        h.begin = first * hw + h.rest;
        h.lines = h.n ? p.by_hw.quotient(h.rest + h.n - 1) + 1 : 0;
    }
    const dev::shared<T> x = dy + h.runs * p.form.pitch * V;
    hold(p.b.dy, p.b.dy_wide, p.form, h, dy);
    if (p.b.x)
        hold(p.b.x, p.b.x_wide, p.form, h, x);
    dev::cp_async_commit();
    for (int i = threadIdx.x; i < h.lines; i += blockDim.x) {
        const int64_t sample = p.b.by_c.quotient(first + i), channel = first + i - sample * p.b.c;
        R             gamma;
        const Known   known = known_of(p.b, sample, channel, gamma);
        channels[i] = {{}, known, gamma, 0, 0};
    }
    dev::cp_async_wait<0>();
    __syncthreads();
    line_sums(p.b, hw, p.form, h, dev::shared<T>(dy), x, [&](int line) { return Known(channels[line].s); }, items);
    if (!across && p.b.sums)
        for (int i = threadIdx.x; i < lines; i += blockDim.x) {
            const int     line = i - skipped;
            const int64_t number = first + line, sample = p.b.by_c.quotient(number), row = sample * size + rank;
            const int64_t at = row * 2 * p.b.c + (number - sample * p.b.c);
            const bool    mine = line >= 0 && line < h.lines;
            const pair<R> sum = mine ? pair<R>(items[line * p.form.items]) : pair<R>{0, 0};
            dev::store(p.b.sums, at, sum.gx);
            dev::store(p.b.sums, at + p.b.c, sum.g);
        }

    const int set_lines = across ? h.runs : size > 1 ? h.lines : p.group_channels, lanes = lanes_for(set_lines);
    const int count = across ? lines : size > 1 ? 1 : lines / p.group_channels;
    const auto set_sums = [&](int set, int lane) {
        LongSum<R> gx, g;
        for (int i = lane; i < set_lines; i += lanes) {
            const pair<R> sum = items[(set * set_lines + i) * p.form.items];
            const R       gamma = across ? R(1) : channels[set * set_lines + i].gamma;
            gx.add(gamma * sum.gx);
            g.add(gamma * sum.g);
        }
        return pair<R>{g.value(), gx.value()};
    };
    in_groups<R>(count, lanes, set_sums, [&](int set, pair<R> sum) { sets[set] = sum; });
    dev::cluster_sync();
    for (int i = threadIdx.x; i < h.lines; i += blockDim.x) {
        const int set = across ? i : size > 1 ? 0 : p.b.by_group_channels.quotient(i);
        pair<R>   sum = {0, 0};
        for (int k = 0; k < size; k++)
            sum = Sum()(sum, pair<R>(dev::cluster_map(sets, k)[set]));
        if (across) {
            p.dgamma.store(first + i, sum.gx);
            p.dbeta.store(first + i, sum.g);
        }
        const R gamma = across ? channels[i].gamma : R(1);
        channels[i].gx = gamma * sum.gx / p.count;
        channels[i].g = gamma * sum.g / p.count;
    }
    __syncthreads();
    if (B::HAS_ENDING || p.b.dx)
        held_vectors<T>(p.form, h, [&](int at, int64_t to, int i) {
            dev::vec<T, V> dx = dev::recast<dev::vec<T, V>>(dy)[at / V];
            dev::vec<T, V> packed_x = {};
            if (p.b.applies_x)
                packed_x = dev::recast<dev::vec<T, V>>(x)[at / V];
            const int  line = i < 0 ? 0 : p.by_hw.quotient(h.rest + i);
            auto       fetched = p.b.ending.template fetch<true, V>(to, valid_in(i, h.n, V));
            const auto store = [&](const auto &buffer, bool wide, const dev::vec<T, V> &packed) {
                if (i >= 0)
                    store_packed<true>(buffer, to, valid_in(i, h.n, V), wide, packed);
                else
#pragma unroll
                    for (int j = 0; j < V; j++)
                        if (i + j >= 0 && i + j < h.n)
                            dev::store(buffer, to + j, packed.v[j]);
            };
            vector_gradient(p.b, dx, packed_x, fetched, channels, line, (line + 1) * hw - (h.rest + i), h.n - i);
            if (!B::HAS_ENDING || p.b.dx)
                store(p.b.dx, p.b.dx_wide, dx);
            p.b.ending.store([&](const auto &buffer, bool wide) { store(buffer, wide, fetched); });
        });
    dev::cluster_sync(); /* nobody leaves while its sums may still be read */
}

/* ---- the launch -------------------------------------------------------------------------------------------------- */

/* What fits how; cluster = 0: nothing does. Of GroupNorm's and InstanceNorm's by a sample's shape alone. */
struct OnChipPlan {
    int     cluster, lines, part;
    int64_t run, runs; /* elements of a run in shared memory, runs */
    size_t  held;      /* bytes */
};

template <class T> int64_t held_size(const Geometry &g, int64_t run, int64_t runs)
{
    constexpr int64_t V = vec_of<T>;
    return 2 * runs * ceil_div(run + (g.hw % V ? V - 1 : 0), V) * 16;
}

template <class T> OnChipPlan on_chip_sets(const Geometry &g)
{
    constexpr int64_t V = vec_of<T>;
    const OnChipPlan  none = {};
    int               cluster = 1;
    while (cluster < ON_CHIP_CLUSTER && held_size<T>(g, ceil_div(g.count, cluster), 1) > ON_CHIP_AIM)
        cluster *= 2;
    int64_t sets = 1, part = g.count;
    if (cluster > 1) {
        part = ceil_div(ceil_div(part, cluster), 2 * V) * 2 * V;
        if (g.hw < ON_CHIP_CLUSTER_LINE || part / g.hw + 2 > LINES)
            return none;
    } else {
        sets = smallest(ON_CHIP_SOME / held_size<T>(g, g.count, 1), LINES / g.group_channels);
        if (sets > V)
            sets -= sets % V; /* blocks begin on whole vectors */
        sets = sets < 1 ? 1 : sets;
        part *= sets;
    }
    const int64_t lines = sets * g.group_channels, size = held_size<T>(g, part, 1);
    if (size > ON_CHIP_MOST || (cluster == 1 && lines > LINES))
        return none;
    return {cluster, (int)lines, (int)part, part, 1, (size_t)size};
}

template <class T> OnChipPlan on_chip_channels(const Geometry &g)
{
    constexpr int64_t V = vec_of<T>;
    int64_t           lines = ceil_div(ON_CHIP_RUN, g.hw * (int64_t)sizeof(T));
    if (g.hw % V && lines > 1)
        lines = ceil_div(lines, V) * V;
    lines = smallest(lines, g.c);
    if (held_size<T>(g, lines * g.hw, g.n) > ON_CHIP_AIM)
        return {};
    while (2 * lines <= smallest<int64_t>(g.c, LINES) && held_size<T>(g, 2 * lines * g.hw, g.n) <= ON_CHIP_SOME &&
           2 * lines * g.n <= ITEMS)
        lines *= 2;
    if (lines > LINES)
        return {};
    return {1, (int)lines, 0, lines * g.hw, g.n, (size_t)held_size<T>(g, lines * g.hw, g.n)};
}

template <class T> OnChipPlan on_chip_plan(const Geometry &g)
{
    const OnChipPlan none = {};
    if (g.last || g.count == 0 || g.sets == 0 || g.hw > ON_CHIP_CLUSTER * ON_CHIP_MOST)
        return none;
    const OnChipPlan plan = g.across_batch ? on_chip_channels<T>(g) : on_chip_sets<T>(g);
    if (plan.cluster == 0)
        return none;
    const int64_t length = smallest<int64_t>(g.hw, plan.run);
    const int64_t items = form_of<T>(length, plan.run, g.hw % vec_of<T> == 0).items;
    const int64_t lines = plan.cluster > 1 ? plan.part / g.hw + 2 : plan.lines;
    return plan.runs * lines * items <= ITEMS ? plan : none;
}

template <class B> void on_chip(OnChip<B> &q, const Geometry &g, Run &run)
{
    using T = typename B::X;
    const OnChipPlan plan = on_chip_plan<T>(g);
    q.form = form_of<T>(smallest<int64_t>(g.hw, plan.run), plan.run, g.hw % vec_of<T> == 0);
    q.all = g.across_batch ? g.c : g.n * g.c;
    q.lines = plan.lines;
    q.part = plan.part;
    q.group_channels = (int)g.group_channels;
    q.by_hw = Divisor(g.hw);
    q.count = (real_of<T>)g.count;
    const int64_t clusters = ceil_div(q.all, q.lines);
    const unsigned cluster = (unsigned)plan.cluster, threads = (unsigned)(plan.held > ON_CHIP_MUCH ? 2 * THREADS : THREADS);
    start(run, {dim3((unsigned)clusters * cluster), dim3(threads), plan.held, nullptr, cluster},
          channelnorm_backward_dx__channels_first_on_chip<B>, q);
}

} // namespace backward

#endif
