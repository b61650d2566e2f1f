/* peer_naive.c - the loops that one writes first, as in Darknet: a pass for the mean, one for the variance, one to normalize,
 * one each to scale and to shift; f32, one thread. */
#include <math.h>
#include <stdlib.h>

#include "bench.h"

typedef struct Naive {
    const Plan *p;
    int64_t n, c, hw, groups;
    int64_t n_step, c_step, p_step; /* from sample to sample, channel to channel, pixel to pixel */
} Naive;

/* Elements that share statistics: samples [n0, n1), channels [c0, c1). */
typedef struct Range { int64_t n0, n1, c0, c1; } Range;

static Range range_of(const Naive *s, int64_t slot)
{
    if (s->p->by_channel)
        return (Range){ 0, s->n, slot, slot + 1 };
    const int64_t sample = slot / s->groups, group = slot % s->groups, wide = s->c / s->groups;
    return (Range){ sample, sample + 1, group * wide, (group + 1) * wide };
}

#define EACH(s, r) \
    for (int64_t n = (r).n0; n < (r).n1; n++) \
        for (int64_t c = (r).c0; c < (r).c1; c++) \
            for (int64_t i = n * (s)->n_step + c * (s)->c_step, end = i + (s)->hw * (s)->p_step; i < end; i += (s)->p_step)

static void forward(const Naive *s, char *slab)
{
    const Plan *p = s->p;
    const float *x = plan_tensor(p, slab, T_X), *gamma = plan_tensor(p, slab, T_GAMMA), *beta = plan_tensor(p, slab, T_BETA);
    float *y = plan_tensor(p, slab, T_Y);
    const bool centered = op_norm(p->c->op) != RMSNORM;
    for (int64_t slot = 0; slot < p->slots; slot++) {
        const Range r = range_of(s, slot);
        float mean = 0, var = 0;
        if (p->frozen) {
            mean = ((const float *)plan_tensor(p, slab, T_RUNNING_MEAN_IN))[slot];
            var = ((const float *)plan_tensor(p, slab, T_RUNNING_VAR_IN))[slot];
        } else {
            if (centered) {
                EACH(s, r) {
                    mean += x[i];
                }
                mean /= (float)p->per_slot;
            }
            EACH(s, r) {
                var += (x[i] - mean) * (x[i] - mean);
            }
            var /= (float)p->per_slot;
        }
        const float rstd = 1.0f / sqrtf(var + (float)p->c->eps);
        EACH(s, r) {
            y[i] = (x[i] - mean) * rstd;
        }
        if (gamma)
            EACH(s, r) {
                y[i] *= gamma[c] + (float)p->c->weight_offset;
            }
        if (beta)
            EACH(s, r) {
                y[i] += beta[c];
            }
    }
}

static void backward(const Naive *s, char *slab)
{
    const Plan *p = s->p;
    const float *x = plan_tensor(p, slab, T_X), *dy = plan_tensor(p, slab, T_DY), *gamma = plan_tensor(p, slab, T_GAMMA);
    const float *means = plan_tensor(p, slab, T_MEAN), *rstds = plan_tensor(p, slab, T_RSTD);
    float *dx = plan_tensor(p, slab, T_DX), *dgamma = plan_tensor(p, slab, T_DGAMMA), *dbeta = plan_tensor(p, slab, T_DBETA);
    const bool centered = op_norm(p->c->op) != RMSNORM;
    for (int64_t c = 0; c < s->c; c++) {
        if (dgamma)
            dgamma[c] = 0;
        if (dbeta)
            dbeta[c] = 0;
    }
    for (int64_t slot = 0; slot < p->slots; slot++) {
        const Range r = range_of(s, slot);
        const float mean = means ? means[slot] : 0, rstd = rstds[slot];
        float sum = 0, sum_xhat = 0;
        if (dgamma)
            EACH(s, r) {
                dgamma[c] += dy[i] * (x[i] - mean) * rstd;
            }
        if (dbeta)
            EACH(s, r) {
                dbeta[c] += dy[i];
            }
        if (!dx)
            continue;
        EACH(s, r) {
            dx[i] = gamma ? dy[i] * (gamma[c] + (float)p->c->weight_offset) : dy[i];
        }
        EACH(s, r) {
            sum += dx[i];
        }
        EACH(s, r) {
            sum_xhat += dx[i] * (x[i] - mean) * rstd;
        }
        const float avg = p->frozen || !centered ? 0 : sum / (float)p->per_slot;
        const float avg_xhat = p->frozen ? 0 : sum_xhat / (float)p->per_slot;
        EACH(s, r) {
            dx[i] = rstd * (dx[i] - avg - (x[i] - mean) * rstd * avg_xhat);
        }
    }
}

static void dropout(const Plan *p, char *slab)
{
    const bool back = op_is_backward(p->c->op);
    const float *x = plan_tensor(p, slab, back ? T_DY : T_X), scale = 1.0f / (1.0f - (float)p->c->p);
    float *y = plan_tensor(p, slab, back ? T_DX : T_Y);
    for (int64_t i = 0; i < p->count; i++)
        y[i] = (float)rand() / (float)RAND_MAX < (float)p->c->p ? 0 : x[i] * scale;
}

static const char *naive_open(void) { return "C, gcc -O2, one thread"; }

static void *naive_prepare(const Plan *p, double *bytes)
{
    const Case *c = p->c;
    if (c->x != WF_F32 || c->w != WF_F32 || c->kind || !plan_is_plain(p))
        return NULL;
    Naive *s = malloc(sizeof *s);
    const bool rows = p->runs == 1 && !p->channel_is_run;
    *s = (Naive){ .p = p, .n = p->samples, .c = p->channels, .hw = rows ? 1 : c->hw, .groups = p->groups };
    s->n_step = p->runs * p->length;
    s->c_step = p->channel_is_run ? s->hw : 1;
    s->p_step = p->channel_is_run ? 1 : s->c;
    *bytes = 0;
    return s;
}

static bool naive_call(void *state, char *slab, struct CUstream_st *stream)
{
    const Naive *s = state;
    (void)stream;
    if (op_norm(s->p->c->op) == DROPOUT)
        dropout(s->p, slab);
    else if (op_is_backward(s->p->c->op))
        backward(s, slab);
    else
        forward(s, slab);
    return true;
}

const Peer peer_naive = { "naive", WF_CPU, naive_open, naive_prepare, naive_call, free };
