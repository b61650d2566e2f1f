/* The layers as plain loops in double, written from the formulas: nothing here is shared with the library, not even
 * what the forward pass saves. Slow and meant to be: `--check` holds the library's training against it. */
#include "layers.h"
#include "ui.h"

#include <math.h>
#include <stdlib.h>

/* Which statistics element (i, ch, p) belongs to. */
static int64_t cell_of(const norm *l, int64_t i, int64_t ch, int64_t p)
{
    switch (l->kind) {
    case NORM_BATCH: return ch;
    case NORM_LAYER:
    case NORM_RMS: return i * l->hw + p;
    case NORM_GROUP: return i * l->groups + ch / (l->c / l->groups);
    default: return i * l->c + ch;
    }
}

static int64_t at(bool channels_last, int64_t c, int64_t hw, int64_t i, int64_t ch, int64_t p)
{
    return i * c * hw + (channels_last ? p * c + ch : ch * hw + p);
}

#define FOR_EACH_ELEMENT(l)                                                                                            \
    for (int64_t i = 0; i < (l)->n; i++)                                                                               \
        for (int64_t ch = 0; ch < (l)->c; ch++)                                                                        \
            for (int64_t p = 0; p < (l)->hw; p++)

static double *zeros(int64_t count)
{
    double *v = calloc((size_t)count + 1, sizeof *v);
    if (!v)
        die("out of memory");
    return v;
}

static bool frozen(const norm *l, pass mode)
{
    return l->running_mean && (mode == PASS_INFER || mode == PASS_FROZEN);
}

/* mean and (biased) variance of every cell; RMSNorm's mean is 0. Returns how many elements a cell has. */
static double moments(const norm *l, const float *x, double *mean, double *var)
{
    int64_t cells = norm_statistics(l, l->n);
    double count = (double)(l->n * l->c * l->hw) / (double)cells;
    if (l->kind != NORM_RMS) {
        FOR_EACH_ELEMENT(l)
            mean[cell_of(l, i, ch, p)] += x[at(l->channels_last, l->c, l->hw, i, ch, p)];
        for (int64_t k = 0; k < cells; k++)
            mean[k] /= count;
    }
    FOR_EACH_ELEMENT(l)
    {
        int64_t k = cell_of(l, i, ch, p);
        double d = x[at(l->channels_last, l->c, l->hw, i, ch, p)] - mean[k];
        var[k] += d * d;
    }
    for (int64_t k = 0; k < cells; k++)
        var[k] /= count;
    return count;
}

/* mean and rstd per cell for this pass: of the batch, or the running ones of the cell's channel. */
static void statistics(const norm *l, pass mode, const float *x, double *mean, double *rstd)
{
    if (frozen(l, mode)) {
        FOR_EACH_ELEMENT(l)
        {
            mean[cell_of(l, i, ch, p)] = l->running_mean[ch];
            rstd[cell_of(l, i, ch, p)] = 1 / sqrt(l->running_var[ch] + l->eps);
        }
        return;
    }
    moments(l, x, mean, rstd);
    for (int64_t k = 0; k < norm_statistics(l, l->n); k++)
        rstd[k] = 1 / sqrt(rstd[k] + l->eps);
}

/* Moves the running statistics by the batch's; InstanceNorm by the average over its samples. */
static void move_running(const norm *l, const float *x)
{
    int64_t cells = norm_statistics(l, l->n), per_channel = cells / l->c;
    double *mean = zeros(cells), *var = zeros(cells);
    double count = moments(l, x, mean, var);
    for (int64_t ch = 0; ch < l->c; ch++) {
        double m = 0, v = 0;
        for (int64_t i = 0; i < per_channel; i++) {
            m += mean[i * l->c + ch] / (double)per_channel;
            v += var[i * l->c + ch] * count / (count - 1) / (double)per_channel;
        }
        l->running_mean[ch] = (float)((1 - l->momentum) * l->running_mean[ch] + l->momentum * m);
        l->running_var[ch] = (float)((1 - l->momentum) * l->running_var[ch] + l->momentum * v);
    }
    free(mean);
    free(var);
}

static void norm_forward(const norm *l, pass mode, const float *x, float *y, scratch *s)
{
    (void)s;
    int64_t cells = norm_statistics(l, l->n);
    double *mean = zeros(cells), *rstd = zeros(cells);
    statistics(l, mode, x, mean, rstd);
    FOR_EACH_ELEMENT(l)
    {
        int64_t e = at(l->channels_last, l->c, l->hw, i, ch, p), k = cell_of(l, i, ch, p);
        y[e] = (float)((x[e] - mean[k]) * rstd[k] * l->gamma[ch] + (l->beta ? l->beta[ch] : 0));
    }
    if (l->running_mean && mode == PASS_TRAIN)
        move_running(l, x);
    free(mean);
    free(rstd);
}

/* dx = rstd (g - avg g - xhat avg(g xhat)) over each cell, g = gamma dy; RMSNorm has no avg g, frozen neither. */
static void norm_backward(const norm *l, pass mode, const float *x, float *dy_dx, scratch *s)
{
    (void)s;
    int64_t cells = norm_statistics(l, l->n);
    double *mean = zeros(cells), *rstd = zeros(cells), *sum_g = zeros(cells), *sum_gx = zeros(cells);
    double *dgamma = zeros(l->c), *dbeta = zeros(l->c), count = (double)(l->n * l->c * l->hw) / (double)cells;
    statistics(l, mode, x, mean, rstd);
    FOR_EACH_ELEMENT(l)
    {
        int64_t e = at(l->channels_last, l->c, l->hw, i, ch, p), k = cell_of(l, i, ch, p);
        double xhat = (x[e] - mean[k]) * rstd[k], g = (double)l->gamma[ch] * dy_dx[e];
        sum_g[k] += g;
        sum_gx[k] += g * xhat;
        dgamma[ch] += dy_dx[e] * xhat;
        dbeta[ch] += dy_dx[e];
    }
    FOR_EACH_ELEMENT(l)
    {
        int64_t e = at(l->channels_last, l->c, l->hw, i, ch, p), k = cell_of(l, i, ch, p);
        double xhat = (x[e] - mean[k]) * rstd[k], dx = (double)l->gamma[ch] * dy_dx[e];
        if (!frozen(l, mode)) {
            dx -= xhat * sum_gx[k] / count;
            if (l->kind != NORM_RMS)
                dx -= sum_g[k] / count;
        }
        dy_dx[e] = (float)(dx * rstd[k]);
    }
    for (int64_t ch = 0; ch < l->c; ch++) {
        l->dgamma[ch] = (float)dgamma[ch];
        if (l->dbeta)
            l->dbeta[ch] = (float)dbeta[ch];
    }
    free(mean);
    free(rstd);
    free(sum_g);
    free(sum_gx);
    free(dgamma);
    free(dbeta);
}

/* Word u & 3 of the Philox4x32-10 block u >> 2, counter {offset, block}, key = seed. */
static uint32_t philox_word(uint64_t seed, uint64_t offset, uint64_t u)
{
    uint32_t c[4] = {(uint32_t)offset, (uint32_t)(offset >> 32), (uint32_t)(u >> 2), (uint32_t)(u >> 34)};
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)c[0] * 0xd2511f53u, b = (uint64_t)c[2] * 0xcd9e8d57u;
        uint32_t next[4] = {(uint32_t)(b >> 32) ^ c[1] ^ key[0], (uint32_t)b, (uint32_t)(a >> 32) ^ c[3] ^ key[1],
                            (uint32_t)a};
        for (int i = 0; i < 4; i++)
            c[i] = next[i];
        key[0] += 0x9e3779b9u;
        key[1] += 0xbb67ae85u;
    }
    return c[u & 3];
}

/* out = a in + b where kept, else dropped. */
static void select_kept(const dropout *d, const float *in, float *out, double a, double b, double dropped)
{
    uint64_t threshold = (uint64_t)((1 - d->p) * 4294967296.0 + 0.5);
    FOR_EACH_ELEMENT(d)
    {
        int64_t e = at(d->channels_last, d->c, d->hw, i, ch, p);
        uint64_t unit = (uint64_t)(d->kind == DROPOUT_FEATURES ? i * d->c + ch : e);
        out[e] = (float)(philox_word(d->seed, d->offset, unit) < threshold ? a * in[e] + b : dropped);
    }
}

static double alpha_scale(double p)
{
    return 1 / sqrt((1.7580993408473766 * 1.7580993408473766 * p + 1) * (1 - p));
}

static void dropout_forward(const dropout *d, const float *x, float *y, scratch *s)
{
    (void)s;
    if (d->kind == DROPOUT_ALPHA) {
        double a = alpha_scale(d->p), b = a * 1.7580993408473766 * d->p;
        select_kept(d, x, y, a, b, b - a * 1.7580993408473766);
    } else {
        select_kept(d, x, y, 1 / (1 - d->p), 0, 0);
    }
}

static void dropout_backward(const dropout *d, float *dy_dx, scratch *s)
{
    (void)s;
    select_kept(d, dy_dx, dy_dx, d->kind == DROPOUT_ALPHA ? alpha_scale(d->p) : 1 / (1 - d->p), 0, 0);
}

const layers layers_naive = {"naive", false, norm_forward, norm_backward, dropout_forward, dropout_backward};
