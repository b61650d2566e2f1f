#include "net.h"
#include "fashion.h"
#include "ui.h"

#include <assert.h>
#include <cblas.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_STEPS = 16, KERNEL = 3, HIDDEN = 128, HIDDEN_LAYERS = 3 };

typedef enum step_kind { LINEAR, CONV, NORM, RELU, SILU, MAX_POOL, AVERAGE_POOL, DROPOUT } step_kind;

typedef struct shape {
    int64_t c, side; /* side x side pixels of c channels */
} shape;

typedef struct step {
    step_kind kind;
    shape in, out;
    float *y;          /* [batch, out]                                                     */
    float *w, *b;      /* LINEAR [out, in], CONV [out.c, KERNEL * KERNEL * in.c]; [out.c]  */
    float *columns;    /* CONV: [batch * out pixels, KERNEL * KERNEL * in.c]               */
    float *dcolumns;   /* CONV but the first: their gradient                               */
    int64_t *argmax;   /* MAX_POOL: where each maximum came from                           */
    norm norm;
    dropout dropout;
} step;

struct net {
    const layers *layers;
    net_options options;
    int steps;
    step step[MAX_STEPS];
    float *gradient[2]; /* of the activation at hand; steps work in place or from one to the other */
    int64_t updates;    /* training passes so far                                                  */
    scratch scratch;
};

static int64_t pixels(shape s)
{
    return s.side * s.side;
}

static int64_t elements(shape s)
{
    return s.c * pixels(s);
}

static float *floats(const net *t, int64_t count, float value)
{
    float *v = tensor_new(t->layers, sizeof *v * (size_t)count);
    for (int64_t i = 0; i < count; i++)
        v[i] = value;
    return v;
}

static step *add_step(net *t, step_kind kind, shape in, shape out)
{
    assert(t->steps < MAX_STEPS);
    step *s = &t->step[t->steps++];
    s->kind = kind;
    s->in = in;
    s->out = out;
    s->y = floats(t, t->options.batch * elements(out), 0);
    return s;
}

static shape add_weights(net *t, step_kind kind, shape in, shape out, rng *r)
{
    step *s = add_step(t, kind, in, out);
    int64_t fan_in = kind == CONV ? KERNEL * KERNEL * in.c : elements(in);
    s->w = floats(t, out.c * fan_in, 0);
    s->b = floats(t, out.c, 0);
    double sd = t->options.init_scale * sqrt(2.0 / (double)fan_in);
    for (int64_t i = 0; i < out.c * fan_in; i++)
        s->w[i] = (float)(sd * rng_normal(r));
    if (kind == CONV)
        s->columns = floats(t, t->options.batch * pixels(out) * fan_in, 0);
    if (kind == CONV && t->steps > 1)
        s->dcolumns = floats(t, t->options.batch * pixels(out) * fan_in, 0);
    return out;
}

static void add_norm(net *t, shape in)
{
    if (t->options.norm == NORM_NONE)
        return;
    norm *l = &add_step(t, NORM, in, in)->norm;
    *l = (norm){.kind = t->options.norm, .channels_last = t->options.channels_last, .n = t->options.batch, .c = in.c,
                .hw = pixels(in), .groups = in.c == HIDDEN ? 8 : 4, .eps = 1e-5};
    l->gamma = floats(t, in.c, 1);
    l->dgamma = floats(t, in.c, 0);
    if (l->kind != NORM_RMS) {
        l->beta = floats(t, in.c, 0);
        l->dbeta = floats(t, in.c, 0);
    }
    if (l->kind == NORM_BATCH || (l->kind == NORM_INSTANCE && t->options.track)) {
        l->running_mean = floats(t, in.c, 0);
        l->running_var = floats(t, in.c, 1);
    }
    int64_t statistics = norm_statistics(l, t->options.batch);
    l->mean = floats(t, statistics, 0);
    l->rstd = floats(t, statistics, 0);
    l->mean_lo = floats(t, statistics, 0);
}

static void add_dropout(net *t, shape in)
{
    if (t->options.dropout == 0)
        return;
    add_step(t, DROPOUT, in, in)->dropout =
        (dropout){.kind = t->options.dropout_kind, .channels_last = t->options.channels_last, .n = t->options.batch,
                  .c = in.c, .hw = pixels(in), .p = t->options.dropout, .seed = t->options.seed};
}

static void add_activation(net *t, shape in)
{
    add_step(t, t->options.activation == SMOOTH ? SILU : RELU, in, in);
}

static shape add_pool(net *t, shape in)
{
    shape out = {in.c, in.side / 2};
    if (t->options.activation == SMOOTH) {
        add_step(t, AVERAGE_POOL, in, out);
        return out;
    }
    int64_t *argmax = malloc(sizeof *argmax * (size_t)(t->options.batch * elements(out)));
    if (!argmax)
        die("out of memory");
    add_step(t, MAX_POOL, in, out)->argmax = argmax;
    return out;
}

net *net_new(const net_options *options, const layers *layers)
{
    net *t = calloc(1, sizeof *t);
    if (!t)
        die("out of memory");
    t->layers = layers;
    t->options = *options;
    t->scratch.gpu = layers->gpu ? gpu_take() : NULL;
    rng r = {options->seed};
    shape at = {IMAGE_PIXELS, 1};
    if (options->kind == MLP) {
        for (int i = 0; i < HIDDEN_LAYERS; i++) {
            at = add_weights(t, LINEAR, at, (shape){HIDDEN, 1}, &r);
            add_norm(t, at);
            add_activation(t, at);
            add_dropout(t, at);
        }
    } else {
        at = (shape){1, IMAGE_SIDE};
        for (int64_t c = 8; c <= 16; c *= 2) {
            at = add_weights(t, CONV, at, (shape){c, at.side - KERNEL + 1}, &r);
            add_norm(t, at);
            add_activation(t, at);
            at = add_pool(t, at);
            add_dropout(t, at);
        }
    }
    add_weights(t, LINEAR, at, (shape){CLASSES, 1}, &r);
    int64_t largest = 0;
    for (int i = 0; i < t->steps; i++)
        largest = elements(t->step[i].in) > largest ? elements(t->step[i].in) : largest;
    for (int i = 0; i < 2; i++)
        t->gradient[i] = floats(t, options->batch * largest, 0);
    return t;
}

void net_free(net *t)
{
    for (int i = 0; i < t->steps; i++) {
        step *s = &t->step[i];
        norm *l = &s->norm;
        float *owned[] = {s->y, s->w, s->b, s->columns, s->dcolumns, l->gamma, l->beta, l->dgamma, l->dbeta, l->running_mean,
                          l->running_var, l->mean, l->rstd, l->mean_lo};
        for (size_t k = 0; k < sizeof owned / sizeof *owned; k++)
            tensor_free(t->layers, owned[k]);
        free(s->argmax);
    }
    tensor_free(t->layers, t->gradient[0]);
    tensor_free(t->layers, t->gradient[1]);
    tensor_free(t->layers, t->scratch.memory);
    if (t->scratch.gpu)
        gpu_give(t->scratch.gpu);
    free(t);
}

/* Row-major c [m, n] = alpha op(a) op(b) + beta c, every matrix packed; done after wait(). */
static void multiply(const net *t, bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, double alpha,
                     const float *a, const float *b, double beta, float *c)
{
    if (t->scratch.gpu) {
        gpu_multiply(t->scratch.gpu, transpose_a, transpose_b, m, n, k, alpha, a, b, beta, c);
        return;
    }
    cblas_sgemm(CblasRowMajor, transpose_a ? CblasTrans : CblasNoTrans, transpose_b ? CblasTrans : CblasNoTrans, (int)m,
                (int)n, (int)k, (float)alpha, a, (int)(transpose_a ? m : k), b, (int)(transpose_b ? k : n), (float)beta,
                c, (int)n);
}

static void wait(const net *t)
{
    if (t->scratch.gpu)
        gpu_wait(t->scratch.gpu);
}

/* Strides of a [c, side, side] activation in either layout. */
typedef struct strides {
    int64_t channel, pixel;
} strides;

static strides strides_of(const net *t, shape s)
{
    return t->options.channels_last ? (strides){1, s.c} : (strides){pixels(s), 1};
}

/* The matrix of patches: row (i, oy, ox), column (ky, kx, channel). Channels last, a patch's row of KERNEL pixels is
 * one contiguous run. */
static void gather_patches(const net *t, const step *s, const float *image, int64_t n)
{
    strides st = strides_of(t, s->in);
    int64_t runs = st.channel == 1 ? 1 : KERNEL, run = KERNEL * s->in.c / runs;
    float *patch = s->columns;
    for (int64_t i = 0; i < n; i++, image += elements(s->in))
        for (int64_t oy = 0; oy < s->out.side; oy++)
            for (int64_t ox = 0; ox < s->out.side; ox++)
                for (int64_t ky = 0; ky < KERNEL; ky++)
                    for (int64_t kx = 0; kx < runs; kx++, patch += run) {
                        const float *from = image + ((oy + ky) * s->in.side + ox + kx) * st.pixel;
                        for (int64_t k = 0; k < run; k++)
                            patch[k] = from[k * st.channel];
                    }
}

/* Its transpose: every patch is added back to where it came from. */
static void scatter_patches(const net *t, const step *s, const float *patch, float *image, int64_t n)
{
    strides st = strides_of(t, s->in);
    int64_t runs = st.channel == 1 ? 1 : KERNEL, run = KERNEL * s->in.c / runs;
    for (int64_t i = 0; i < n; i++, image += elements(s->in))
        for (int64_t oy = 0; oy < s->out.side; oy++)
            for (int64_t ox = 0; ox < s->out.side; ox++)
                for (int64_t ky = 0; ky < KERNEL; ky++)
                    for (int64_t kx = 0; kx < runs; kx++, patch += run) {
                        float *to = image + ((oy + ky) * s->in.side + ox + kx) * st.pixel;
                        for (int64_t k = 0; k < run; k++)
                            to[k * st.channel] += patch[k];
                    }
}

/* y[.., ch] += b[ch]: rows of c where channels are last, else planes of hw. */
static void add_bias(float *y, const float *b, int64_t n, int64_t c, int64_t hw, bool channels_last)
{
    if (channels_last)
        for (int64_t i = 0; i < n * hw; i++, y += c)
            for (int64_t ch = 0; ch < c; ch++)
                y[ch] += b[ch];
    else
        for (int64_t i = 0; i < n * c; i++, y += hw)
            for (int64_t p = 0; p < hw; p++)
                y[p] += b[i % c];
}

/* NaN stays NaN: divergence must show. */
static void relu_forward(const float *x, float *y, int64_t count)
{
    for (int64_t k = 0; k < count; k++)
        y[k] = x[k] < 0 ? 0 : x[k];
}

static void relu_backward(const float *y, float *dy, int64_t count)
{
    for (int64_t k = 0; k < count; k++)
        dy[k] = y[k] > 0 ? dy[k] : 0;
}

static void silu_forward(const float *x, float *y, int64_t count)
{
    for (int64_t k = 0; k < count; k++)
        y[k] = x[k] / (1 + expf(-x[k]));
}

static void silu_backward(const float *x, float *dy, int64_t count)
{
    for (int64_t k = 0; k < count; k++) {
        float sigma = 1 / (1 + expf(-x[k]));
        dy[k] *= sigma * (1 + x[k] * (1 - sigma));
    }
}

static void linear_forward(const net *t, const step *s, const float *x, int64_t n)
{
    multiply(t, false, true, n, s->out.c, elements(s->in), 1, x, s->w, 0, s->y);
    wait(t);
    add_bias(s->y, s->b, n, s->out.c, 1, true);
}

/* Channels last, all images are one product; channels first takes one per image, with the roles swapped. */
static void conv_forward(const net *t, const step *s, const float *x, int64_t n)
{
    int64_t fan_in = KERNEL * KERNEL * s->in.c, hw = pixels(s->out);
    gather_patches(t, s, x, n);
    if (t->options.channels_last)
        multiply(t, false, true, n * hw, s->out.c, fan_in, 1, s->columns, s->w, 0, s->y);
    else
        for (int64_t i = 0; i < n; i++)
            multiply(t, false, true, s->out.c, hw, fan_in, 1, s->w, s->columns + i * hw * fan_in, 0,
                     s->y + i * s->out.c * hw);
    wait(t);
    add_bias(s->y, s->b, n, s->out.c, hw, t->options.channels_last);
}

/* Where the window of output (i, oy, ox, ch) begins, and how to reach its other three pixels. */
typedef struct window {
    int64_t from, to, offset[4];
} window;

static window window_at(const net *t, const step *s, int64_t i, int64_t oy, int64_t ox, int64_t ch)
{
    strides in = strides_of(t, s->in), out = strides_of(t, s->out);
    return (window){i * elements(s->in) + (2 * oy * s->in.side + 2 * ox) * in.pixel + ch * in.channel,
                    i * elements(s->out) + (oy * s->out.side + ox) * out.pixel + ch * out.channel,
                    {0, in.pixel, s->in.side * in.pixel, (s->in.side + 1) * in.pixel}};
}

#define FOR_EACH_WINDOW(s, n)                                                                                          \
    for (int64_t i = 0; i < (n); i++)                                                                                  \
        for (int64_t oy = 0; oy < (s)->out.side; oy++)                                                                 \
            for (int64_t ox = 0; ox < (s)->out.side; ox++)                                                             \
                for (int64_t ch = 0; ch < (s)->out.c; ch++)

static void max_pool_forward(const net *t, const step *s, const float *x, int64_t n)
{
    FOR_EACH_WINDOW(s, n)
    {
        window w = window_at(t, s, i, oy, ox, ch);
        int64_t best = w.from;
        for (int k = 1; k < 4; k++)
            if (x[w.from + w.offset[k]] > x[best])
                best = w.from + w.offset[k];
        s->y[w.to] = x[best];
        s->argmax[w.to] = best;
    }
}

static void average_pool_forward(const net *t, const step *s, const float *x, int64_t n)
{
    FOR_EACH_WINDOW(s, n)
    {
        window w = window_at(t, s, i, oy, ox, ch);
        s->y[w.to] = 0;
        for (int k = 0; k < 4; k++)
            s->y[w.to] += x[w.from + w.offset[k]] / 4;
    }
}

static void average_pool_backward(const net *t, const step *s, const float *dy, float *dx, int64_t n)
{
    memset(dx, 0, sizeof *dx * (size_t)(n * elements(s->in)));
    FOR_EACH_WINDOW(s, n)
    {
        window w = window_at(t, s, i, oy, ox, ch);
        for (int k = 0; k < 4; k++)
            dx[w.from + w.offset[k]] = dy[w.to] / 4;
    }
}

const float *net_forward(net *t, pass mode, const float *x, int64_t n)
{
    assert(n <= t->options.batch);
    bool training = mode == PASS_TRAIN || mode == PASS_FROZEN;
    t->updates += training;
    for (int i = 0; i < t->steps; i++) {
        step *s = &t->step[i];
        switch (s->kind) {
        case LINEAR: linear_forward(t, s, x, n); break;
        case CONV: conv_forward(t, s, x, n); break;
        case MAX_POOL: max_pool_forward(t, s, x, n); break;
        case AVERAGE_POOL: average_pool_forward(t, s, x, n); break;
        case NORM:
            s->norm.n = n;
            s->norm.momentum =
                t->options.norm_momentum > 0 ? t->options.norm_momentum : 1.0 / (double)(t->updates + !t->updates);
            t->layers->norm_forward(&s->norm, mode, x, s->y, &t->scratch);
            break;
        case RELU: relu_forward(x, s->y, n * elements(s->out)); break;
        case SILU: silu_forward(x, s->y, n * elements(s->out)); break;
        case DROPOUT:
            if (!training)
                continue; /* x passes on as it is */
            s->dropout.n = n;
            s->dropout.offset = (uint64_t)(t->updates * MAX_STEPS + i); /* every call draws from an offset of its own */
            t->layers->dropout_forward(&s->dropout, x, s->y, &t->scratch);
            break;
        }
        x = s->y;
    }
    return x;
}

/* v -= lr * gradient */
static void descend(float *v, const float *gradient, int64_t count, double lr)
{
    if (v)
        cblas_saxpy((int)count, (float)-lr, gradient, 1, v, 1);
}

static void descend_bias(float *b, const float *dy, int64_t n, int64_t c, int64_t hw, bool channels_last, double lr)
{
    for (int64_t i = 0; i < n; i++)
        for (int64_t ch = 0; ch < c; ch++) {
            float sum = 0;
            for (int64_t p = 0; p < hw; p++)
                sum += dy[channels_last ? (i * hw + p) * c + ch : (i * c + ch) * hw + p];
            b[ch] -= (float)lr * sum;
        }
}

/* dx (NULL: not wanted) by the old weights, then w = (1 - lr weight_decay) w - lr dy^T x in one product. */
static void linear_backward(const net *t, const step *s, const float *x, const float *dy, float *dx, int64_t n,
                            double lr, double weight_decay)
{
    int64_t in = elements(s->in);
    if (dx)
        multiply(t, false, false, n, in, s->out.c, 1, dy, s->w, 0, dx);
    multiply(t, true, false, s->out.c, in, n, -lr, dy, x, 1 - lr * weight_decay, s->w);
    descend_bias(s->b, dy, n, s->out.c, 1, true, lr);
    wait(t);
}

static void conv_backward(const net *t, const step *s, const float *dy, float *dx, int64_t n, double lr,
                          double weight_decay)
{
    int64_t fan_in = KERNEL * KERNEL * s->in.c, hw = pixels(s->out);
    bool last = t->options.channels_last;
    if (dx) { /* dcolumns = dy w, then added back into dx */
        for (int64_t i = 0; i < (last ? 1 : n); i++)
            multiply(t, !last, false, last ? n * hw : hw, fan_in, s->out.c, 1, dy + i * s->out.c * hw, s->w, 0,
                     s->dcolumns + i * hw * fan_in);
        memset(dx, 0, sizeof *dx * (size_t)(n * elements(s->in)));
        wait(t);
        scatter_patches(t, s, s->dcolumns, dx, n);
    }
    for (int64_t i = 0; i < (last ? 1 : n); i++)
        multiply(t, last, false, s->out.c, fan_in, last ? n * hw : hw, -lr, dy + i * s->out.c * hw,
                 s->columns + i * hw * fan_in, i ? 1 : 1 - lr * weight_decay, s->w);
    descend_bias(s->b, dy, n, s->out.c, hw, last, lr);
    wait(t);
}

void net_backward(net *t, pass mode, const float *x, const float *dlogits, int64_t n, double lr, double weight_decay)
{
    float *dy = t->gradient[0], *other = t->gradient[1];
    memcpy(dy, dlogits, sizeof *dy * (size_t)(n * CLASSES));
    for (int i = t->steps - 1; i >= 0; i--) {
        step *s = &t->step[i];
        const float *input = i ? t->step[i - 1].y : x;
        switch (s->kind) {
        case LINEAR: linear_backward(t, s, input, dy, i ? other : NULL, n, lr, weight_decay); break;
        case CONV: conv_backward(t, s, dy, i ? other : NULL, n, lr, weight_decay); break;
        case MAX_POOL:
            memset(other, 0, sizeof *other * (size_t)(n * elements(s->in)));
            for (int64_t k = 0; k < n * elements(s->out); k++)
                other[s->argmax[k]] += dy[k];
            break;
        case AVERAGE_POOL: average_pool_backward(t, s, dy, other, n); break;
        case NORM:
            t->layers->norm_backward(&s->norm, mode, input, dy, &t->scratch);
            descend(s->norm.gamma, s->norm.dgamma, s->norm.c, lr);
            descend(s->norm.beta, s->norm.dbeta, s->norm.c, lr);
            continue;
        case RELU: relu_backward(s->y, dy, n * elements(s->out)); continue;
        case SILU: silu_backward(input, dy, n * elements(s->out)); continue;
        case DROPOUT:
            t->layers->dropout_backward(&s->dropout, dy, &t->scratch);
            continue;
        }
        float *swap = dy;
        dy = other;
        other = swap;
    }
}
