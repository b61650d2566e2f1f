/* GroupNorm, InstanceNorm and BatchNorm on the CPU: what both layouts share. channels_first.h and channels_last.h
 * reduce and apply; here a set's partial results become its statistics, or the two averages that its gradient needs.
 *
 *     y = (x - mean) * factor + (beta - mean_lo * factor),  factor = rstd * gamma
 *     dx = rstd * (gamma * dy - k1 - xhat * k2),  k1 = avg(gamma * dy),  k2 = avg(gamma * dy * xhat) over the set
 *
 * xhat = (x - mean) * rstd - mean_lo * rstd: what mean_lo adds is the same for all of a set, and goes into constants.
 *
 * With an ending y is the activation of that, and dz, which arrives before it, takes the place of dy: ending.h.
 *
 * Modulated, gamma and beta are gamma * f and beta * f + shift of each sample and channel: modulation.h.
 *
 * A set is what shares a statistic: a channel (across the batch), or a group of a sample. */
#include "columns.h"

struct geometry {
    struct channelnorm_shape s;
    int64_t                  sets, count;    /* of values in a set */
    int64_t                  group_channels; /* of a set: 1 across the batch */
    bool                     apart;          /* across the batch, but samples have parameters of their own */
};

/* Where there is one value per channel and sample both layouts are the same memory: if_flat is the one to call it. */
static struct geometry geometry_of(const struct channelnorm_shape *shape, const struct modulation *mod, wf_layout if_flat)
{
    struct geometry g = {.s = *shape, .apart = shape->across_batch && mod->present};
    if (g.s.hw == 1)
        g.s.layout = if_flat;
    if (g.s.c == 0)
        g.s.layout = WF_NCHW;
    g.group_channels = g.s.across_batch || g.s.c == 0 ? 1 : g.s.c / g.s.groups;
    g.sets = g.s.across_batch ? g.s.c : g.s.n * g.s.groups;
    g.count = g.s.c == 0 ? 0 : g.s.across_batch ? g.s.n * g.s.hw : g.group_channels * g.s.hw;
    return g;
}

/* A statistic from the caller; mean_lo is optional, and any of an empty tensor. */
static inline real given(const void *statistic, int64_t set)
{
    return statistic ? ((const real *)statistic)[set] : 0;
}

#include "ending.h"
#include "modulation.h"

/* ---- forward ---------------------------------------------------------------------------------------------------- */

struct channelnorm_forward_run {
    const struct channelnorm_forward *p;
    struct geometry                   g;
    int64_t                           items;                          /* of a set or, channels last, of a sample */
    real                             *mean, *mean_lo, *rstd, *variance; /* [sets]; variance as the running one wants it */
    struct affine                     z;
    void                             *part;                           /* what reduce found */
    struct moments                   *tile; /* [samples, tiles]; channels last, groups wider than a tile only */
    bool                              stream;
};

/* Sets [set, set + n), n <= COLUMNS. */
static void finish_sets(const struct channelnorm_forward_run *r, int64_t set, int64_t n, const struct columns *s)
{
    const struct channelnorm_forward *p = r->p;
    const int64_t                     count = r->g.count, degrees = p->unbiased ? count - 1 : count;
    int32_t                           scaled = 0;
    _Pragma("omp simd reduction(| : scaled)")
    for (int64_t j = 0; j < n; j++) {
        r->mean[set + j] = s->mean[j];
        r->mean_lo[set + j] = s->mean_lo[j];
        r->rstd[set + j] = (real)inverse_root((double)s->m2[j] / (double)count + (double)(real)p->eps); /* rstd_of, unscaled */
        r->variance[set + j] = s->m2[j] / (real)degrees;
        scaled |= s->scale[j];
    }
    for (int64_t j = 0; (scaled || count < 2) && j < n; j++) {
        r->rstd[set + j] = rstd_of(column_get(s, j), count, (real)p->eps);
        r->variance[set + j] = count > 1 ? moments_variance(column_get(s, j), degrees) : 0;
    }
}

/* Evaluation: the statistics are the running ones. */
static void known_sets(const struct channelnorm_forward_run *r, int64_t set, int64_t n)
{
    for (int64_t j = set; j < set + n; j++) {
        const struct moments m = {0, 0, given(r->p->running_var_in, j), 0};
        r->mean[j] = given(r->p->running_mean_in, j);
        r->mean_lo[j] = 0;
        r->rstd[j] = rstd_of(m, 1, (real)r->p->eps);
    }
}

#include "lines.h"
#include "wide.h"

#include "channels_first.h"
#include "channels_last_ending.h"
#include "channels_last.h"

/* out + out_lo = the sum of `count` rows of pairs, over the tree of row_sum_tree: means that cancel keep their digits. */
static void row_sum_tree_pairs(const real *row, const real *row_lo, int64_t count, int64_t stride, int n, real *out,
                               real *out_lo)
{
    if (count == 1) {
        memcpy(out, row, (size_t)n * sizeof(real));
        memcpy(out_lo, row_lo, (size_t)n * sizeof(real));
        return;
    }
    real          right[COLUMNS], right_lo[COLUMNS];
    const int64_t left = tree_split(count, 1);
    row_sum_tree_pairs(row, row_lo, left, stride, n, out, out_lo);
    row_sum_tree_pairs(row + left * stride, row_lo + left * stride, count - left, stride, n, right, right_lo);
    SIMD
    for (int j = 0; j < n; j++) {
        real lo;
        moments_two_sum(out[j], right[j], &out[j], &lo);
        out_lo[j] = (out_lo[j] + right_lo[j]) + lo;
    }
}

/* out = (1 - momentum) * in + momentum * sum / samples; in where there was nothing to average. */
static void move_running(const struct channelnorm_forward *p, int64_t samples, const real *sum, const real *in, real *out,
                         int64_t n)
{
    const real keep = (real)(1 - p->momentum);
    if (samples == 0) {
        memmove(out, in, (size_t)n * sizeof(real));
        return;
    }
    SIMD
    for (int64_t i = 0; i < n; i++) {
        const real batch = sum[i] / (real)samples;
        out[i] = p->momentum == 1 ? batch : keep * in[i] + (real)p->momentum * batch;
    }
}

static void forward_finish(void *arg, int64_t begin, int64_t end)
{
    const struct channelnorm_forward_run *r = arg;
    const struct channelnorm_forward     *p = r->p;
    const int64_t                         channels = r->g.s.c, samples = r->g.count ? r->g.sets / channels : 0;
    for (int64_t c = begin; c < end; c += COLUMNS) {
        const int64_t n = min64(COLUMNS, end - c);
        real          mean[COLUMNS], lo[COLUMNS], variance[COLUMNS];
        if (samples) {
            row_sum_tree_pairs(r->mean + c, r->mean_lo + c, samples, channels, (int)n, mean, lo);
            row_sum_tree(r->variance + c, samples, channels, (int)n, variance);
            for (int64_t i = 0; i < n; i++)
                mean[i] += lo[i];
        }
        move_running(p, samples, mean, (const real *)p->running_mean_in + c, (real *)p->running_mean_out + c, n);
        move_running(p, samples, variance, (const real *)p->running_var_in + c, (real *)p->running_var_out + c, n);
    }
}

__attribute__((noinline)) static size_t channelnorm_forward_plan(const struct channelnorm_forward *p, void *workspace,
                                                                 struct channelnorm_forward_run *r)
{
    struct cpu_arena arena = {workspace, 0};
    *r = (struct channelnorm_forward_run){.p = p};
    r->g = geometry_of(&p->shape, &p->mod, p->shape.across_batch ? WF_NHWC : WF_NCHW);
    r->mean = cpu_take(&arena, r->g.sets, sizeof(real));
    r->mean_lo = cpu_take(&arena, r->g.sets, sizeof(real));
    r->rstd = cpu_take(&arena, r->g.sets, sizeof(real));
    r->variance = cpu_take(&arena, r->g.sets, sizeof(real));
    r->z = (struct affine){r->mean, r->mean_lo, r->rstd, p->gamma, p->beta, p->shape.w_dtype, &p->mod};
    if (r->g.s.layout == WF_NCHW)
        channels_first_forward_plan(r, &arena);
    else
        channels_last_forward_plan(r, &arena);
    return cpu_arena_size(&arena);
}

static size_t channelnorm_forward_workspace(const struct channelnorm_forward *p)
{
    struct channelnorm_forward     other = *p;
    struct channelnorm_forward_run r;
    size_t most = 0;
    for (int present = 0; present < (p->mod.possible ? 2 : 1); present++) {
        other.mod.present = present;
        const size_t size = channelnorm_forward_plan(&other, NULL, &r);
        most = size > most ? size : most;
    }
    return most;
}

static void copy_out(void *to, const real *from, int64_t n)
{
    if (to && n)
        memcpy(to, from, (size_t)n * sizeof(real));
}

static void channelnorm_forward(const struct channelnorm_forward *p, const struct cpu_run *run)
{
    struct channelnorm_forward_run r;
    channelnorm_forward_plan(p, run->workspace, &r);
    r.stream = p->known ? run->stream : run->stream_training;
    if (r.g.s.layout == WF_NCHW)
        channels_first_forward(&r, run);
    else
        channels_last_forward(&r, run);
    copy_out(p->mean, r.mean, r.g.sets);
    copy_out(p->mean_lo, r.mean_lo, r.g.sets);
    copy_out(p->rstd, r.rstd, r.g.sets);
    if (p->running_mean_out && r.g.s.c > 0)
        cpu_parallel(run, r.g.s.c, 16 * COLUMNS, forward_finish, &r);
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

struct channelnorm_backward_run {
    const struct channelnorm_backward *p;
    struct channelnorm_backward        reduce, apply; /* the same to who takes sums, and to who maps: see share_ending */
    struct geometry                    g;
    int64_t                            items;
    struct affine                      z;             /* what z is made with, where there is an ending */
    int64_t                            samples;       /* of the sums below: n, or 1 where reduce summed over them */
    real                              *dy_sum, *dyx_sum; /* [samples, c]: sum dy and sum dy * xhat of a channel */
    real                              *k1, *k2;       /* [sets]; not of a frozen pass */
    real                              *part;          /* what reduce found, where that is less than a channel */
    bool                               summed;        /* the sums are needed: not for dx alone of a frozen pass */
    bool                               applied;       /* dx is wanted, or dresidual */
    bool                               stream;
};

/* sum of weight[i] * value[i], gamma's dtype for the weights; NULL = 1. */
static real weighted_sum(const void *gamma, wf_dtype dtype, const real *value, int64_t first, int64_t n)
{
    if (n > TILE) {
        const int64_t left = tree_split(n, TILE);
        return weighted_sum(gamma, dtype, value, first, left) +
               weighted_sum(gamma, dtype, value + left, first + left, n - left);
    }
    real        buffer[TILE], product[TILE];
    const real *weight = gamma ? load(gamma, dtype, first, n, buffer) : NULL;
    for (int64_t i = 0; i < n; i++)
        product[i] = weight ? weight[i] * value[i] : value[i];
    return tile_sum(product, n, 0);
}

/* The averages of n <= COLUMNS sets from their channels' sums. */
static void combine_sums(const struct channelnorm_backward_run *r, int64_t set, int64_t n)
{
    const struct channelnorm_backward *p = r->p;
    const int64_t                      channels = r->g.group_channels, c = r->g.s.c;
    const real                         count = (real)r->g.count;
    if (p->frozen)
        return;
    if (r->g.s.across_batch) {
        real        buffer[COLUMNS];
        const real *gamma = load_parameter(p->gamma, p->shape.w_dtype, set, n, 1, buffer);
        row_sum_tree(r->dy_sum + set, r->samples, c, (int)n, r->k1 + set);
        row_sum_tree(r->dyx_sum + set, r->samples, c, (int)n, r->k2 + set);
        SIMD
        for (int64_t j = 0; j < n; j++) {
            r->k1[set + j] = r->k1[set + j] * gamma[j] / count;
            r->k2[set + j] = r->k2[set + j] * gamma[j] / count;
        }
        return;
    }
    if (channels == 1) { /* a set is a channel of a sample */
        for (int64_t done = 0, part; done < n; done += part) {
            const int64_t first = (set + done) % c;
            real          buffer[COLUMNS];
            part = min64(n - done, c - first);
            const real *gamma = load_parameter(p->gamma, p->shape.w_dtype, first, part, 1, buffer);
            SIMD
            for (int64_t j = 0; j < part; j++) {
                r->k1[set + done + j] = gamma[j] * r->dy_sum[set + done + j] / count;
                r->k2[set + done + j] = gamma[j] * r->dyx_sum[set + done + j] / count;
            }
        }
        return;
    }
    for (; n > 0; n--, set++) {
        const int64_t first = set % r->g.s.groups * channels, at = set * channels;
        r->k1[set] = weighted_sum(p->gamma, p->shape.w_dtype, r->dy_sum + at, first, channels) / count;
        r->k2[set] = weighted_sum(p->gamma, p->shape.w_dtype, r->dyx_sum + at, first, channels) / count;
    }
}

__attribute__((noinline)) static void store_pairs(void *out, wf_dtype dtype, int64_t pair, int64_t n, const real *value)
{
    if (out)
        store_gradient(out, dtype, pair, n, false, value);
}

/* Sums of pairs [pair, pair + n) of sample and channel are there: what dscale and dshift are made of, and times f what all else
 * is. */
__attribute__((noinline)) static void modulate_sums(const struct channelnorm_backward_run *r, int64_t pair, int64_t n)
{
    const struct channelnorm_backward *p = r->p;
    const wf_dtype                     dtype = p->shape.w_dtype;
    for (int64_t end = pair + n, part; pair < end; pair += part) {
        const int64_t channel = pair % r->g.s.c;
        real          gamma_buffer[COLUMNS], beta_buffer[COLUMNS], f[COLUMNS], dscale[COLUMNS];
        real *const   dy_sum = r->dy_sum + pair, *const dyx_sum = r->dyx_sum + pair;
        part = min64(min64(end - pair, COLUMNS), r->g.s.c - channel);
        const real *gamma = load_parameters(p->gamma, dtype, channel, part, 1, gamma_buffer);
        const real *beta = load_parameters(p->mod.beta, dtype, channel, part, 0, beta_buffer);
        load_modulation(&p->mod, dtype, pair, part, f);
        store_pairs(p->mod.dshift, dtype, pair, part, dy_sum);
        SIMD
        for (int64_t j = 0; j < part; j++) {
            dscale[j] = gamma[j] * dyx_sum[j] + beta[j] * dy_sum[j];
            dy_sum[j] *= f[j];
            dyx_sum[j] *= f[j];
        }
        store_pairs(p->mod.dscale, dtype, pair, part, dscale);
    }
}

/* Of no elements. */
static void no_modulation(const struct channelnorm_backward_run *r)
{
    const int64_t pairs = r->g.s.n * r->g.s.c;
    const real    none[COLUMNS] = {0};
    for (int64_t i = 0; i < pairs; i += COLUMNS) {
        store_pairs(r->p->mod.dscale, r->p->shape.w_dtype, i, min64(COLUMNS, pairs - i), none);
        store_pairs(r->p->mod.dshift, r->p->shape.w_dtype, i, min64(COLUMNS, pairs - i), none);
    }
}

#include "channels_first_backward.h"
#include "channels_last_ending_backward.h"
#include "channels_last_backward.h"

static void channelnorm_backward_finish(void *arg, int64_t begin, int64_t end)
{
    const struct channelnorm_backward_run *r = arg;
    const struct channelnorm_backward     *p = r->p;
    void *const                            out[2] = {p->dbeta, p->dgamma};
    const real *const                      from[2] = {r->dy_sum, r->dyx_sum};
    for (int64_t c = begin; c < end; c += COLUMNS) {
        const int64_t n = min64(COLUMNS, end - c);
        for (int k = 0; k < 2; k++) {
            real sum[COLUMNS] = {0};
            if (!out[k])
                continue;
            if (r->samples && r->g.count)
                row_sum_tree(from[k] + c, r->samples, r->g.s.c, (int)n, sum);
            store_gradient(out[k], p->shape.w_dtype, c, n, p->accumulate, sum);
        }
    }
}

__attribute__((noinline)) static size_t channelnorm_backward_plan(const struct channelnorm_backward *p, void *workspace,
                                                                  struct channelnorm_backward_run *r)
{
    struct cpu_arena arena = {workspace, 0};
    *r = (struct channelnorm_backward_run){.p = p, .g = geometry_of(&p->shape, &p->mod, WF_NHWC)};
    r->z = (struct affine){p->mean, p->mean_lo, p->rstd, p->gamma, p->act.beta, p->shape.w_dtype, &p->mod};
    r->samples = r->g.s.layout == WF_NHWC ? last_samples(&r->g) : r->g.s.n;
    r->dy_sum = cpu_take(&arena, r->samples * r->g.s.c, sizeof(real));
    r->dyx_sum = cpu_take(&arena, r->samples * r->g.s.c, sizeof(real));
    r->k1 = cpu_take(&arena, r->g.sets, sizeof(real));
    r->k2 = cpu_take(&arena, r->g.sets, sizeof(real));
    if (r->g.s.layout == WF_NCHW)
        channels_first_backward_plan(r, &arena);
    else
        channels_last_backward_plan(r, &arena);
    return cpu_arena_size(&arena);
}

static size_t channelnorm_backward_workspace(const struct channelnorm_backward *p)
{
    struct channelnorm_backward     other = *p;
    struct channelnorm_backward_run r;
    size_t most = 0;
    for (int present = 0; present < (p->mod.possible ? 2 : 1); present++) {
        other.mod.present = present;
        const size_t size = channelnorm_backward_plan(&other, NULL, &r);
        most = size > most ? size : most;
    }
    return most;
}

/* With an ending, where there are sums: these are of dz. If its dtype holds it exactly it is kept meanwhile, in dresidual or,
 * where that is not wanted, in dx, which is then made of it as of dy without an ending. Else dz is made again; also channels
 * last where that is a matter of a sign, for all of dx would go to memory twice. */
static void share_ending(struct channelnorm_backward_run *r)
{
    const struct channelnorm_backward *p = r->p;
    const bool exact = is_real(p->shape.x_dtype) || p->act.kind <= WF_RELU;
    const bool in_dx = r->g.s.layout == WF_NCHW || p->act.kind >= WF_SILU;
    r->reduce = r->apply = *p;
    if (!p->act.present || !r->summed)
        return;
    r->reduce.act.dresidual = !exact ? NULL : p->act.dresidual ? p->act.dresidual : in_dx ? p->dx : NULL;
    if (!r->reduce.act.dresidual)
        return;
    r->apply.dy = r->reduce.act.dresidual;
    r->apply.act = (struct activation){.present = false};
}

static void channelnorm_backward(const struct channelnorm_backward *p, const struct cpu_run *run)
{
    struct channelnorm_backward_run r;
    channelnorm_backward_plan(p, run->workspace, &r);
    r.stream = run->stream_training;
    r.summed = p->dgamma || p->dbeta || p->mod.dscale || p->mod.dshift || (p->dx && !p->frozen);
    share_ending(&r);
    r.applied = p->dx || r.apply.act.dresidual;
    if (r.g.count && r.g.sets) {
        if (r.g.s.layout == WF_NCHW)
            channels_first_backward(&r, run);
        else
            channels_last_backward(&r, run);
    } else if (p->mod.present) {
        no_modulation(&r);
    }
    if (p->dgamma || p->dbeta)
        cpu_parallel(run, r.g.s.c, 16 * COLUMNS, channelnorm_backward_finish, &r);
}
