/* reference.c - every output of a call against the formulas, in long double, at any size.
 *
 * The tests' oracle (oracle.h) takes a microsecond and a hundred bytes per element; this takes ten nanoseconds and no
 * memory, for what a benchmark runs. The bars are the oracle's, and reference_self_test() holds the one to the other.
 * Inputs are N(0, 1) or nearly so (plan.c): nothing here is about extreme values. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench.h"
#include "oracle.h"
#include "oracle_dropout.h"
#include "pool.h"

/* ---- elements ---- */

/* The values of the 16-bit dtypes by their bits, made before there are threads. */
static float values16[2][65536];

static void make_tables(void)
{
    static bool made;
    for (int bits = 0; !made && bits < 65536; bits++) {
        const uint16_t word = (uint16_t)bits;
        values16[0][bits] = (float)dtype_load(WF_F16, &word, 0);
        values16[1][bits] = (float)dtype_load(WF_BF16, &word, 0);
    }
    made = true;
}

static const float *table_of(wf_dtype dtype) { return values16[dtype == WF_BF16]; }

static inline double load(wf_dtype dtype, const float *table, const char *at, int64_t i)
{
    if (dtype == WF_F32)
        return ((const float *)at)[i];
    if (dtype == WF_F64)
        return ((const double *)at)[i];
    return (double)table[((const uint16_t *)at)[i]];
}

/* Half a unit in the last place of a normal number of the dtype near v. */
static double half_ulp(wf_dtype dtype, double v)
{
    static const int precision[] = { [WF_F32] = 24, [WF_F16] = 11, [WF_BF16] = 8, [WF_F64] = 53 };
    static const int least_exponent[] = { [WF_F32] = -126, [WF_F16] = -14, [WF_BF16] = -126, [WF_F64] = -900 };
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    int64_t exponent = (int64_t)(bits >> 52 & 0x7ff) - 1023;
    if (exponent < least_exponent[dtype])
        exponent = least_exponent[dtype];
    bits = (uint64_t)(exponent - precision[dtype] + 1023) << 52;
    memcpy(&v, &bits, sizeof v);
    return v;
}

/* ---- samples in parallel ---- */

enum { PEER_SLACK = 1000, PEER_ROUNDINGS = 32 /* of values about 1 */ };
enum { MOST_PARTS = 64, MOST_SUMS = 1 << 24 /* channels of all parts */ };

/* What a thread adds up for itself: two sums and two scales per channel, and what it finds wrong. */
typedef struct Part {
    Real   *sum[2]; /* [channels] */
    double *scale[2];
    double  slack, worst; /* in units of the bar */
    char    message[160];
} Part;
typedef struct Job {
    const Plan *p;
    const char *before, *after;
    bool        peer, sums; /* sums: over channels there are any */
    const char *x; /* what is normalized: x, or a sum */
    wf_dtype    x_dtype;
    int64_t     x_stride; /* 0: without gaps */
    int         parts;
    Part       *part;
    void      (*sample)(struct Job *, Part *, int64_t sample);
    char       *saved; /* z */
    /* Per slot. */
    Real       *mean, *var, *rstd, *mean_g, *mean_gx;
    double     *abs_g, *abs_gx;
} Job;

static void work(void *arg, int64_t begin, int64_t end)
{
    Job *job = arg;
    for (int64_t part = begin; part < end; part++)
        for (int64_t s = part * job->p->samples / job->parts; s < (part + 1) * job->p->samples / job->parts; s++)
            job->sample(job, &job->part[part], s);
}

/* sample(job, part, s) for every sample; then the parts' sums over channels are in part 0. */
static void each_sample(Job *job, void (*sample)(Job *, Part *, int64_t))
{
    static pool *workers;
    if (!workers)
        workers = pool_new((int)sysconf(_SC_NPROCESSORS_ONLN) - 1, POOL_FORWARD);
    job->sample = sample;
    pool_parallel_for(workers, job->parts, work, job);
    for (int i = 1; i < job->parts; i++)
        for (int k = 0; k < 2 && job->sums; k++)
            for (int64_t c = 0; c < job->p->channels; c++) {
                job->part[0].sum[k][c] += job->part[i].sum[k][c];
                job->part[0].scale[k][c] += job->part[i].scale[k][c];
            }
}

static Job job_new(const Plan *p, const char *before, const char *after, bool peer)
{
    Job job = { .p = p, .before = before, .after = after, .peer = peer,
                .sums = p->by_channel || op_is_backward(p->c->op), .mean = p->mean, .var = p->var, .rstd = p->rstd };
    const Extent *x = &p->t[p->t[T_X].given ? T_X : T_SUM];
    job.x = p->sum ? p->sum : before + x->at;
    job.x_dtype = p->sum ? case_sum_dtype(p->c) : x->dtype;
    job.x_stride = p->sum || x->rows == 1 ? 0 : x->stride;
    make_tables();
    const int64_t fit = MOST_SUMS / p->channels + 1, most = fit < MOST_PARTS ? fit : MOST_PARTS;
    job.parts = (int)(p->samples < most ? p->samples : most);
    job.part = calloc((size_t)job.parts, sizeof *job.part);
    for (int i = 0; i < job.parts; i++)
        job.part[i].slack = peer ? PEER_SLACK : 1;
    for (int i = 0; i < job.parts; i++)
        for (int k = 0; k < 2 && job.sums; k++) {
            job.part[i].sum[k] = calloc((size_t)p->channels, sizeof(Real));
            job.part[i].scale[k] = calloc((size_t)p->channels, sizeof(double));
        }
    return job;
}

static void job_clear(Job *job)
{
    for (int i = 0; i < job->parts; i++)
        for (int k = 0; k < 2 && job->sums; k++) {
            memset(job->part[i].sum[k], 0, (size_t)job->p->channels * sizeof(Real));
            memset(job->part[i].scale[k], 0, (size_t)job->p->channels * sizeof(double));
        }
}

static void job_free(Job *job)
{
    for (int i = 0; i < job->parts; i++)
        for (int k = 0; k < 2; k++) {
            free(job->part[i].sum[k]);
            free(job->part[i].scale[k]);
        }
    free(job->part);
}

/* Element j of a run: its channel and slot; i: its number without strides; at(t): in a strided tensor. */
#define EACH_ELEMENT(p, s) \
    for (int64_t run = 0; run < (p)->runs; run++) \
        for (int64_t j = 0, channel = (p)->channel_is_run ? run : 0, i = ((s) * (p)->runs + run) * (p)->length, \
                     slot = slot_of((p), (s), channel); \
             j < (p)->length; j++, i++, (p)->channel_is_run ? 0 : (channel++, slot = slot_of((p), (s), channel)))

static inline int64_t slot_of(const Plan *p, int64_t s, int64_t channel)
{
    if (p->by_channel)
        return channel;
    return s * p->groups + (p->groups == 1 ? 0 : p->groups == p->channels ? channel : channel / (p->channels / p->groups));
}

static inline int64_t place(const Plan *p, Tensor t, int64_t s, int64_t i, int64_t j)
{
    return p->t[t].rows > 1 ? s * p->t[t].stride + j : i;
}

static inline double load_x(const Job *job, const float *table, int64_t s, int64_t i, int64_t j)
{
    return load(job->x_dtype, table, job->x, job->x_stride ? s * job->x_stride + j : i);
}

static void add_x(Job *job, Part *part, int64_t s)
{
    const Plan *p = job->p;
    const float *table = table_of(job->x_dtype);
    EACH_ELEMENT(p, s) {
        const double v = load_x(job, table, s, i, j);
        *(p->by_channel ? &part->sum[0][channel] : &job->mean[slot]) += v;
    }
}

static void add_squares(Job *job, Part *part, int64_t s)
{
    const Plan *p = job->p;
    const float *table = table_of(job->x_dtype);
    EACH_ELEMENT(p, s) {
        const Real d = load_x(job, table, s, i, j) - job->mean[slot];
        *(p->by_channel ? &part->sum[0][channel] : &job->var[slot]) += d * d;
    }
}

static void average(Job *job, Real *of)
{
    for (int64_t i = 0; i < job->p->slots; i++)
        of[i] = (job->p->by_channel ? job->part[0].sum[0][i] : of[i]) / (Real)job->p->per_slot;
}

static void make_sum(Job *job, Part *part, int64_t s)
{
    const Plan *p = job->p;
    (void)part;
    addition_row(p, job->before, s, p->sum + (size_t)(s * p->length) * dtype_size(job->x_dtype));
}

void reference_statistics(Plan *p, const char *slab)
{
    const size_t size = (size_t)p->slots * sizeof(Real);
    p->mean = memset(malloc(size), 0, size);
    p->var = memset(malloc(size), 0, size);
    p->rstd = memset(malloc(size), 0, size);
    if (case_adds(p->c) && !op_is_backward(p->c->op))
        p->sum = malloc((size_t)p->count * dtype_size(case_sum_dtype(p->c)));
    Job job = job_new(p, slab, slab, false);
    if (p->sum)
        each_sample(&job, make_sum);
    if (p->frozen) {
        const Extent *t = &p->t[T_RUNNING_MEAN_IN];
        for (int64_t i = 0; i < p->slots; i++) {
            p->mean[i] = dtype_load(t->dtype, plan_tensor(p, slab, T_RUNNING_MEAN_IN), i);
            p->var[i] = dtype_load(t->dtype, plan_tensor(p, slab, T_RUNNING_VAR_IN), i);
        }
    } else {
        if (op_norm(p->c->op) != RMSNORM) {
            each_sample(&job, add_x);
            average(&job, p->mean);
        }
        job_clear(&job);
        each_sample(&job, add_squares);
        average(&job, p->var);
    }
    for (int64_t i = 0; i < p->slots; i++)
        p->rstd[i] = p->var[i] + (Real)p->c->eps > 0 ? 1 / sqrtl(p->var[i] + (Real)p->c->eps) : 0;
    job_free(&job);
}

/* To the dtype of a result. Between its steps a peer may round values about 1, whatever they come to in the end. */
static double rounding_of(const Job *job, wf_dtype dtype, Real want)
{
    const double size = fabs((double)want);
    return job->peer ? PEER_ROUNDINGS * half_ulp(dtype, size > 1 ? size : 1) : half_ulp(dtype, size);
}

static inline double gamma_of(const Job *job, const float *w_table, int64_t channel)
{
    const char *gamma = plan_tensor(job->p, job->before, T_GAMMA);
    return gamma ? job->p->c->weight_offset + load(job->p->c->w, w_table, gamma, channel) : 1;
}

/* What a channel norm's activation is taken of, or y, which has its sign; a peer may round it as often as anything. xhat is
 * within 8 u, and `widened`. */
static About z_of(const Job *job, const float *table, const float *w_table, int64_t i, int64_t channel, Real xhat,
                  double widened)
{
    const Plan *p = job->p;
    const char *beta = plan_tensor(p, job->before, T_BETA), *residual = plan_tensor(p, job->before, T_RESIDUAL);
    const double u = p->c->x == WF_F64 ? 0x1p-53 : 0x1p-24, size = fabs((double)xhat);
    if (p->t[T_Y].given && p->t[T_Y].input)
        return (About){ load(p->c->x, table, plan_tensor(p, job->before, T_Y), i), 0 };
    const int64_t pair = i / (p->runs * p->length) * p->channels + channel;
    const char *scale = plan_tensor(p, job->before, T_SCALE), *shift = plan_tensor(p, job->before, T_SHIFT);
    const double offset = p->c->x == WF_F64 ? p->c->scale_offset : (double)(float)p->c->scale_offset;
    const double f = scale ? offset + load(p->c->w, w_table, scale, pair) : 1, units = case_modulates(p->c) ? 10 : 8;
    const double g = gamma_of(job, w_table, channel) * f, b = beta ? load(p->c->w, w_table, beta, channel) * f : 0;
    const double more = shift ? load(p->c->w, w_table, shift, pair) : 0;
    const Real z = xhat * g + b + more + (residual ? load(p->c->x, table, residual, i) : 0);
    const double bar = fabs(g) * (units * u * (size > 1 ? size : 1) + widened) + units * u * (fabs(b) + fabs(more));
    return (About){ z, bar + (residual ? u * fabs((double)z) : 0) + (job->peer ? rounding_of(job, p->c->x, z) : 0) };
}

static void save_z(Job *job, Part *part, int64_t s)
{
    const Plan *p = job->p;
    const float *table = table_of(p->c->x), *w_table = table_of(p->c->w);
    (void)part;
    EACH_ELEMENT(p, s) {
        const Real xhat = (load_x(job, table_of(job->x_dtype), s, i, j) - job->mean[slot]) * job->rstd[slot];
        dtype_store(p->c->x, job->saved, i, z_of(job, table, w_table, i, channel, xhat, 0).value);
    }
}

void reference_saved(const Plan *p, char *slab)
{
    Job job = job_new(p, slab, slab, false);
    job.saved = plan_tensor(p, slab, T_Z);
    each_sample(&job, save_z);
    job_free(&job);
}

/* ---- judging ---- */

static void judge(Part *part, const char *what, int64_t at, double got, Real want, double bar, double rounding)
{
    const double error = (double)fabsl(got - want) / (bar * part->slack + rounding);
    if (error <= part->worst)
        return;
    part->worst = isnan(error) ? HUGE_VAL : error;
    if (!(error <= 1))
        snprintf(part->message, sizeof part->message, "%s[%lld] = %.9g, expected %.9g: %.3g bars", what, (long long)at, got,
                 (double)want, part->worst);
}

static void judge_y(Job *job, Part *part, int64_t s)
{
    const Plan *p = job->p;
    const Case *c = p->c;
    const bool centered = op_norm(c->op) != RMSNORM;
    const float *x_table = table_of(job->x_dtype), *table = table_of(c->x), *w_table = table_of(c->w);
    const char *y = plan_tensor(p, job->after, T_Y);
    const char *beta = plan_tensor(p, job->before, T_BETA);
    const double u = c->x == WF_F64 ? 0x1p-53 : 0x1p-24;
    EACH_ELEMENT(p, s) {
        const Real xhat = (load_x(job, x_table, s, i, j) - job->mean[slot]) * job->rstd[slot];
        if (case_ends(c) || case_modulates(c)) {
            const About want = ending_value_about(c, z_of(job, table, w_table, i, channel, xhat, 0));
            judge(part, "y", i, load(c->x, table, y, i), want.value, want.bar, rounding_of(job, c->x, want.value));
            continue;
        }
        const double g = gamma_of(job, w_table, channel), b = beta ? load(c->w, w_table, beta, channel) : 0;
        const Real want = xhat * g + b;
        const double size = fabs((double)xhat);
        const double bar = centered ? 8 * u * (fabs(g) * (size > 1 ? size : 1) + fabs(b)) : 6 * u * fabs((double)want);
        judge(part, "y", i, load(c->x, table, y, place(p, T_Y, s, i, j)), want, bar, rounding_of(job, c->x, want));
    }
}

/* A sum that is asked for has one right value, to the bit; a peer may round more often. */
static void judge_sum(Job *job, Part *part, int64_t s)
{
    const Plan *p = job->p;
    const float *table = table_of(job->x_dtype);
    const char *sum = plan_tensor(p, job->after, T_SUM);
    EACH_ELEMENT(p, s) {
        const double want = load_x(job, table, s, i, j);
        (void)slot;
        judge(part, "sum", i, load(job->x_dtype, table, sum, place(p, T_SUM, s, i, j)), want, 0,
              rounding_of(job, job->x_dtype, want));
    }
}

/* With xhat from the mean that the pass was given, as oracle.h says. */
static Real given_mean(const Job *job, int64_t slot, double *widened)
{
    const Plan *p = job->p;
    *widened = 0;
    if (p->frozen || op_norm(p->c->op) == RMSNORM || p->t[T_MEAN_LO].given)
        return job->mean[slot];
    const double u = p->c->x == WF_F64 ? 0x1p-53 : 0x1p-24;
    *widened = u * fabs((double)(job->mean[slot] * job->rstd[slot]));
    return dtype_load(p->t[T_MEAN].dtype, plan_tensor(p, job->before, T_MEAN), slot);
}

typedef struct Back { Real dy, g; double off, widened; Real xhat; } Back; /* off: how far dy may be, which is dz */

static inline Back back_of(const Job *job, const float *table, const float *w_table, int64_t s, int64_t i, int64_t j,
                           int64_t channel, int64_t slot)
{
    const Plan *p = job->p;
    const Case *c = p->c;
    const double dy = load(c->x, table, plan_tensor(p, job->before, T_DY), place(p, T_DY, s, i, j));
    Back b = { .dy = dy };
    const Real mean = given_mean(job, slot, &b.widened);
    b.xhat = (load_x(job, table_of(job->x_dtype), s, i, j) - mean) * job->rstd[slot];
    if (case_ends(c)) {
        const About dz = ending_gradient_about(c, z_of(job, table, w_table, i, channel, b.xhat, b.widened), dy);
        b.dy = dz.value, b.off = dz.bar;
    }
    b.g = b.dy * gamma_of(job, w_table, channel);
    return b;
}

/* Sums over channels: dgamma and dbeta. Sums over slots: of g and g xhat; with by_channel they follow from the former. */
static void add_backward(Job *job, Part *part, int64_t s)
{
    const Plan *p = job->p;
    const float *table = table_of(p->c->x), *w_table = table_of(p->c->w);
    const bool centered = op_norm(p->c->op) != RMSNORM;
    const double u = p->c->x == WF_F64 ? 0x1p-53 : 0x1p-24, roundings = fmin(16, 8 + log2((double)(p->count / p->channels)));
    EACH_ELEMENT(p, s) {
        const Back b = back_of(job, table, w_table, s, i, j, channel, slot);
        const double size = fabs((double)b.xhat) + b.widened, off = b.off / (roundings * u); /* as part of a scale */
        const double abs_dy = fabs((double)b.dy), abs_g = fabs((double)b.g);
        part->sum[0][channel] += b.dy * b.xhat;
        part->sum[1][channel] += b.dy;
        part->scale[0][channel] += abs_dy * (centered && size < 1 ? 1 : size) + off * size;
        part->scale[1][channel] += abs_dy + off;
        if (p->by_channel)
            continue;
        job->mean_g[slot] += b.g;
        job->mean_gx[slot] += b.g * b.xhat;
        const double off_g = off * fabs(gamma_of(job, w_table, channel));
        job->abs_g[slot] += abs_g + off_g;
        job->abs_gx[slot] += (abs_g + off_g) * size;
    }
}

/* want and bar are those of the norm's gradient: judges dresidual and makes them those of x's. */
static void judge_dresidual(const Job *job, Part *part, int64_t s, int64_t i, int64_t j, Real *want, double *bar,
                            double *rounding)
{
    const Plan *p = job->p;
    const wf_dtype dtype = case_sum_dtype(p->c);
    const float *table = table_of(dtype);
    const char *dsum = plan_tensor(p, job->before, T_DSUM), *dresidual = plan_tensor(p, job->after, T_DRESIDUAL);
    const double u = p->c->x == WF_F64 ? 0x1p-53 : 0x1p-24;
    if (dsum) {
        *want += load(dtype, table, dsum, place(p, T_DSUM, s, i, j));
        *bar += u * fabs((double)*want);
    }
    *rounding = rounding_of(job, dtype, *want);
    if (dresidual)
        judge(part, "dresidual", i, load(dtype, table, dresidual, place(p, T_DRESIDUAL, s, i, j)), *want, *bar, *rounding);
    const double factor = addition_factor(p, job->before, s, j);
    *want *= factor;
    *rounding *= fabs(factor);
    *bar = *bar * fabs(factor) + 3 * u * fabs((double)*want);
}

static void judge_dx(Job *job, Part *part, int64_t s)
{
    const Plan *p = job->p;
    const Case *c = p->c;
    const bool centered = op_norm(c->op) != RMSNORM;
    const float *table = table_of(c->x), *w_table = table_of(c->w);
    const char *dx = plan_tensor(p, job->after, T_DX);
    const double u = c->x == WF_F64 ? 0x1p-53 : 0x1p-24;
    EACH_ELEMENT(p, s) {
        const Back b = back_of(job, table, w_table, s, i, j, channel, slot);
        Real want = b.g;
        double scale = fabs((double)b.g) + b.off * fabs(gamma_of(job, w_table, channel)) / (16 * u);
        if (!p->frozen) {
            want -= (centered ? job->mean_g[slot] : 0) + b.xhat * job->mean_gx[slot];
            scale += (centered ? job->abs_g[slot] : 0) + (fabs((double)b.xhat) + b.widened) * job->abs_gx[slot];
        }
        want *= job->rstd[slot];
        double bar = 16 * u * (double)job->rstd[slot] * scale, rounding = 0;
        if (case_ends(c) && p->t[T_DRESIDUAL].given)
            judge(part, "dresidual", i, load(c->x, table, plan_tensor(p, job->after, T_DRESIDUAL), i), b.dy, b.off,
                  rounding_of(job, c->x, b.dy));
        if (case_adds(c))
            judge_dresidual(job, part, s, i, j, &want, &bar, &rounding);
        if (dx)
            judge(part, "dx", i, load(c->x, table, dx, place(p, T_DX, s, i, j)), want, bar,
                  rounding + rounding_of(job, c->x, want));
    }
}

static void judge_parameters(Job *job, Tensor which, const char *name, int k)
{
    const Plan *p = job->p;
    const void *after = plan_tensor(p, job->after, which), *before = plan_tensor(p, job->before, which);
    const double u = p->c->x == WF_F64 ? 0x1p-53 : 0x1p-24, m = (double)(p->count / p->channels);
    for (int64_t i = 0; after && i < p->channels; i++) {
        Real want = job->part[0].sum[k][i];
        double bar = (8 + log2(m)) * u * job->part[0].scale[k][i];
        if (p->c->flags & WF_ACCUMULATE) {
            want += dtype_load(p->c->w, before, i);
            bar += u * fabs((double)want);
        }
        judge(&job->part[0], name, i, dtype_load(p->c->w, after, i), want, bar,
              rounding_of(job, p->c->w, want));
    }
}

static void judge_backward(Job *job)
{
    const Plan *p = job->p;
    const size_t slots = (size_t)p->slots;
    job->mean_g = calloc(slots, sizeof(Real)), job->mean_gx = calloc(slots, sizeof(Real));
    job->abs_g = calloc(slots, sizeof(double)), job->abs_gx = calloc(slots, sizeof(double));
    each_sample(job, add_backward);
    const float *w_table = table_of(p->c->w);
    const char *gamma = plan_tensor(p, job->before, T_GAMMA);
    for (int64_t i = 0; i < p->slots; i++) {
        if (p->by_channel) {
            const double g = gamma ? load(p->c->w, w_table, gamma, i) : 1;
            job->mean_g[i] = g * job->part[0].sum[1][i], job->mean_gx[i] = g * job->part[0].sum[0][i];
            job->abs_g[i] = fabs(g) * job->part[0].scale[1][i], job->abs_gx[i] = fabs(g) * job->part[0].scale[0][i];
        }
        job->mean_g[i] /= (Real)p->per_slot, job->mean_gx[i] /= (Real)p->per_slot;
        job->abs_g[i] /= (double)p->per_slot, job->abs_gx[i] /= (double)p->per_slot;
    }
    if (!job->peer || p->c->w == WF_F32) { /* oneDNN has no others */
        judge_parameters(job, T_DGAMMA, "dgamma", 0);
        judge_parameters(job, T_DBETA, "dbeta", 1);
    }
    if (p->t[T_DX].given || p->t[T_DRESIDUAL].given)
        each_sample(job, judge_dx);
    free(job->mean_g), free(job->mean_gx), free(job->abs_g), free(job->abs_gx);
}

static void judge_statistics(Job *job)
{
    const Plan *p = job->p;
    const wf_dtype stat = stat_dtype(p->c->x);
    const double u = p->c->x == WF_F64 ? 0x1p-53 : 0x1p-24;
    const void *mean = plan_tensor(p, job->after, T_MEAN), *mean_lo = plan_tensor(p, job->after, T_MEAN_LO);
    const void *rstd = plan_tensor(p, job->after, T_RSTD);
    for (int64_t i = 0; i < p->slots; i++) {
        const double sd = sqrt((double)p->var[i]);
        if (rstd)
            judge(&job->part[0], "rstd", i, dtype_load(stat, rstd, i), p->rstd[i], 4 * u * (double)p->rstd[i], 0);
        if (mean)
            judge(&job->part[0], "mean", i, dtype_load(stat, mean, i), p->mean[i], u * fabs((double)p->mean[i]) + 4 * u * sd, 0);
        if (mean && mean_lo)
            judge(&job->part[0], "mean + mean_lo", i, dtype_load(stat, mean, i) + dtype_load(stat, mean_lo, i), p->mean[i],
                  4 * u * sd, 0);
    }
}

static void judge_running(Job *job)
{
    const Plan *p = job->p;
    const wf_dtype stat = stat_dtype(p->c->x);
    const double u = p->c->x == WF_F64 ? 0x1p-53 : 0x1p-24;
    const int64_t instances = p->slots / p->channels;
    const Real m = p->c->momentum, correction = p->c->flags & WF_BIASED ? 1 : (Real)p->per_slot / (Real)(p->per_slot - 1);
    for (int64_t i = 0; i < p->channels; i++) {
        const Real old_mean = dtype_load(stat, plan_tensor(p, job->before, T_RUNNING_MEAN_IN), i);
        const Real old_var = dtype_load(stat, plan_tensor(p, job->before, T_RUNNING_VAR_IN), i);
        Real mean = 0, var = 0;
        double size = 0;
        for (int64_t k = 0; k < instances; k++) {
            mean += p->mean[k * p->channels + i] / (Real)instances;
            var += p->var[k * p->channels + i] * correction / (Real)instances;
            size += fabs((double)p->mean[k * p->channels + i]) / (double)instances;
        }
        judge(&job->part[0], "running_mean", i, dtype_load(stat, plan_tensor(p, job->after, T_RUNNING_MEAN_OUT), i),
              (1 - m) * old_mean + m * mean, 4 * u * (fabs((double)old_mean) + size + p->c->momentum * sqrt((double)var)), 0);
        judge(&job->part[0], "running_var", i, dtype_load(stat, plan_tensor(p, job->after, T_RUNNING_VAR_OUT), i),
              (1 - m) * old_var + m * var, 8 * u * (double)(old_var + var), 0);
    }
}

/* Dropout's results are specified to the bit. */
static void judge_dropout(Job *job, Part *part, int64_t s)
{
    const Plan *p = job->p;
    const Case *c = p->c;
    const bool backward = op_is_backward(c->op), given = backward && p->t[T_MASK].given;
    const wf_dropout what = plan_dropout(c);
    const size_t e = dtype_size(c->x);
    const char *x = plan_tensor(p, job->before, backward ? T_DY : T_X);
    const char *y = plan_tensor(p, job->after, backward ? T_DX : T_Y);
    const uint8_t *mask = plan_tensor(p, job->after, T_MASK);
    for (int64_t i = s * p->runs * p->length; i < (s + 1) * p->runs * p->length; i++) {
        const int64_t unit = oracle_dropout_unit(&what, i);
        const int keep = given ? mask[unit / 8] >> unit % 8 & 1
                               : oracle_dropout_keep(c->p, c->seed, c->offset, (uint64_t)unit);
        uint64_t in = 0, got = 0;
        memcpy(&in, x + (size_t)i * e, e);
        memcpy(&got, y + (size_t)i * e, e);
        const uint64_t want = oracle_dropout_value(&what, backward, keep, in);
        if (got == want && (!mask || (mask[unit / 8] >> unit % 8 & 1) == keep))
            continue;
        part->worst = HUGE_VAL;
        snprintf(part->message, sizeof part->message, "y[%lld] has the bits %llx, expected %llx, or its mask is wrong",
                 (long long)i, (unsigned long long)got, (unsigned long long)want);
        return;
    }
}

static const char *check(const Plan *p, const char *before, const char *after, bool peer)
{
    static char message[200];
    Job job = job_new(p, before, after, peer);
    *message = 0;
    if (!p->slots) {
        each_sample(&job, judge_dropout);
    } else if (op_is_backward(p->c->op)) {
        judge_backward(&job);
    } else {
        each_sample(&job, judge_y);
        if (p->t[T_SUM].given)
            each_sample(&job, judge_sum);
        if (!peer)
            judge_statistics(&job);
        if (!peer && p->t[T_RUNNING_MEAN_OUT].given)
            judge_running(&job);
    }
    double worst = 0;
    for (int i = 0; i < job.parts; i++)
        if (job.part[i].worst > 1 && job.part[i].worst > worst) {
            worst = job.part[i].worst;
            snprintf(message, sizeof message, "%s", job.part[i].message);
        }
    for (int t = 0; t < T_COUNT && !*message; t++)
        if (p->t[t].given && p->t[t].input &&
            memcmp(plan_tensor(p, before, (Tensor)t), plan_tensor(p, after, (Tensor)t), p->t[t].size))
            snprintf(message, sizeof message, "an input was written");
    job_free(&job);
    return *message ? message : NULL;
}

const char *reference_check(const Plan *p, const char *before, const char *after) { return check(p, before, after, false); }
const char *reference_check_peer(const Plan *p, const char *before, const char *after) { return check(p, before, after, true); }
