/* peer_composed.c - normalization as a chain of BLAS calls, Caffe's recipe: sums are gemv with ones, broadcasts are rank-1
 * updates, and loops of its own do what BLAS has not. f32; channels last, and GroupNorm with several channels a group, are
 * left out. CBLAS is opened at run time.
 *
 * Everything is a matrix [rows, cols] of which a row shares a statistic, after a second sum over samples for BatchNorm. */
#include <dlfcn.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

enum { ROW_MAJOR = 101, NO_TRANS = 111, TRANS = 112 }; /* CBLAS's own */

static void (*sgemv)(int order, int trans, int m, int n, float alpha, const float *a, int lda, const float *x, int incx,
                     float beta, float *y, int incy);
static void (*sger)(int order, int m, int n, float alpha, const float *x, int incx, const float *y, int incy, float *a, int lda);
static void (*scopy)(int n, const float *x, int incx, float *y, int incy);
static void (*set_threads)(int threads); /* OpenBLAS has it */

typedef struct Chain {
    const Plan *p;
    int    rows, cols, samples, channels;
    bool   by_column; /* parameters stand along a row (LayerNorm, RMSNorm), else one per row, channel by channel */
    float *ones, *work, *xhat; /* [max(rows, cols)], [rows, cols] twice */
    float *a, *b, *mean, *rstd; /* [rows] each */
} Chain;

static const char *composed_open(void)
{
    static const char *const names[] = { "libopenblas.so.0", "libcblas.so.3", "libblas.so.3", "libmkl_rt.so" };
    static const char *found;
    for (size_t i = 0; i < sizeof names / sizeof *names && !found; i++) {
        void *library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        void *const calls[] = { library ? dlsym(library, "cblas_sgemv") : NULL, library ? dlsym(library, "cblas_sger") : NULL,
                                library ? dlsym(library, "cblas_scopy") : NULL };
        if (!calls[0] || !calls[1] || !calls[2])
            continue;
        memcpy(&sgemv, &calls[0], sizeof sgemv);
        memcpy(&sger, &calls[1], sizeof sger);
        memcpy(&scopy, &calls[2], sizeof scopy);
        void *const threads = dlsym(library, "openblas_set_num_threads");
        memcpy(&set_threads, &threads, sizeof set_threads);
        found = names[i];
    }
    return found;
}

static void row_sums(const Chain *s, float alpha, const float *m, float *sums)
{
    sgemv(ROW_MAJOR, NO_TRANS, s->rows, s->cols, alpha, m, s->cols, s->ones, 1, 0, sums, 1);
}

/* [samples, channels] to its sum over samples, and back. */
static void over_samples(const Chain *s, float *rows)
{
    float *sums = s->work;
    if (!s->p->by_channel)
        return;
    sgemv(ROW_MAJOR, TRANS, s->samples, s->channels, 1, rows, s->channels, s->ones, 1, 0, sums, 1);
    memset(rows, 0, (size_t)s->rows * sizeof *rows);
    sger(ROW_MAJOR, s->samples, s->channels, 1, s->ones, 1, sums, 1, rows, s->channels);
}

static void add_to_rows(const Chain *s, float alpha, const float *rows, float *m)
{
    sger(ROW_MAJOR, s->rows, s->cols, alpha, rows, 1, s->ones, 1, m, s->cols);
}

static void multiply(const Chain *s, const float *a, const float *b, float *out)
{
    for (int64_t i = 0; i < (int64_t)s->rows * s->cols; i++)
        out[i] = a[i] * b[i];
}

/* m times u v', by a broadcast matrix as Caffe has it. */
static void scale(const Chain *s, const float *u, const float *v, float *m)
{
    memset(s->work, 0, (size_t)s->rows * (size_t)s->cols * sizeof *m);
    sger(ROW_MAJOR, s->rows, s->cols, 1, u, 1, v, 1, s->work, s->cols);
    multiply(s, m, s->work, m);
}

static void scale_by_parameters(const Chain *s, const float *gamma, float *m)
{
    for (int i = 0; i < s->rows && !s->by_column; i++)
        s->a[i] = gamma[i % s->channels];
    scale(s, s->by_column ? s->ones : s->a, s->by_column ? gamma : s->ones, m);
}

static void forward(const Chain *s, char *slab)
{
    const Plan *p = s->p;
    const float *x = plan_tensor(p, slab, T_X), *gamma = plan_tensor(p, slab, T_GAMMA), *beta = plan_tensor(p, slab, T_BETA);
    float *y = plan_tensor(p, slab, T_Y);
    const float each = 1 / (float)p->per_slot;
    scopy(s->rows * s->cols, x, 1, y, 1);
    if (op_norm(p->c->op) != RMSNORM) {
        row_sums(s, each, x, s->mean);
        over_samples(s, s->mean);
        add_to_rows(s, -1, s->mean, y);
    }
    multiply(s, y, y, s->xhat);
    row_sums(s, each, s->xhat, s->rstd);
    over_samples(s, s->rstd);
    for (int i = 0; i < s->rows; i++)
        s->rstd[i] = 1 / sqrtf(s->rstd[i] + (float)p->c->eps);
    scale(s, s->rstd, s->ones, y);
    if (gamma)
        scale_by_parameters(s, gamma, y);
    if (!beta)
        return;
    for (int i = 0; i < s->rows && !s->by_column; i++)
        s->b[i] = beta[i % s->channels];
    sger(ROW_MAJOR, s->rows, s->cols, 1, s->by_column ? s->ones : s->b, 1, s->by_column ? beta : s->ones, 1, y, s->cols);
}

/* Sums of m per parameter. */
static void parameter_sums(const Chain *s, const float *m, float *sums)
{
    if (s->by_column) {
        sgemv(ROW_MAJOR, TRANS, s->rows, s->cols, 1, m, s->cols, s->ones, 1, 0, sums, 1);
        return;
    }
    row_sums(s, 1, m, s->a);
    sgemv(ROW_MAJOR, TRANS, s->samples, s->channels, 1, s->a, s->channels, s->ones, 1, 0, sums, 1);
}

static void backward(const Chain *s, char *slab)
{
    const Plan *p = s->p;
    const float *x = plan_tensor(p, slab, T_X), *dy = plan_tensor(p, slab, T_DY), *gamma = plan_tensor(p, slab, T_GAMMA);
    const float *mean = plan_tensor(p, slab, T_MEAN), *rstd = plan_tensor(p, slab, T_RSTD);
    float *dx = plan_tensor(p, slab, T_DX), *dgamma = plan_tensor(p, slab, T_DGAMMA), *dbeta = plan_tensor(p, slab, T_DBETA);
    const float each = 1 / (float)p->per_slot;
    for (int i = 0; i < s->rows; i++) {
        const int slot = p->by_channel ? i % s->channels : i;
        s->mean[i] = mean ? mean[slot] : 0;
        s->rstd[i] = rstd[slot];
    }
    scopy(s->rows * s->cols, x, 1, s->xhat, 1);
    if (mean)
        add_to_rows(s, -1, s->mean, s->xhat);
    scale(s, s->rstd, s->ones, s->xhat);
    multiply(s, dy, s->xhat, dx);
    if (dgamma)
        parameter_sums(s, dx, dgamma);
    if (dbeta)
        parameter_sums(s, dy, dbeta);
    scopy(s->rows * s->cols, dy, 1, dx, 1);
    if (gamma)
        scale_by_parameters(s, gamma, dx);
    row_sums(s, each, dx, s->b); /* avg(g) */
    over_samples(s, s->b);
    multiply(s, dx, s->xhat, s->work);
    row_sums(s, each, s->work, s->a); /* avg(g xhat) */
    over_samples(s, s->a);
    if (mean)
        add_to_rows(s, -1, s->b, dx);
    scale(s, s->a, s->ones, s->xhat);
    for (int64_t i = 0; i < (int64_t)s->rows * s->cols; i++)
        dx[i] -= s->xhat[i];
    scale(s, s->rstd, s->ones, dx);
}

static void composed_done(void *state)
{
    Chain *s = state;
    float *const all[] = { s->ones, s->work, s->xhat, s->a, s->b, s->mean, s->rstd };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    free(s);
}

static void *composed_prepare(const Plan *p, double *bytes)
{
    const Case *c = p->c;
    const Norm norm = op_norm(c->op);
    const bool by_column = norm == LAYERNORM || norm == RMSNORM;
    if (norm == DROPOUT || c->x != WF_F32 || c->w != WF_F32 || !plan_is_plain(p) || p->frozen || c->weight_offset != 0)
        return NULL;
    if (p->count > INT32_MAX || (!by_column && (!p->channel_is_run || (!p->by_channel && p->groups != p->channels))) ||
        (op_is_backward(c->op) && !p->t[T_DX].given))
        return NULL;
    if (set_threads)
        set_threads(c->threads);
    Chain *s = calloc(1, sizeof *s);
    *s = (Chain){ .p = p, .samples = (int)p->samples, .channels = (int)p->channels, .by_column = by_column };
    s->rows = (int)(by_column ? p->samples : p->samples * p->channels);
    s->cols = (int)p->length;
    const size_t most = (size_t)(s->rows > s->cols ? s->rows : s->cols);
    float **const vectors[] = { &s->ones, &s->a, &s->b, &s->mean, &s->rstd };
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++)
        *vectors[i] = malloc(most * sizeof(float));
    s->work = malloc((size_t)p->count * sizeof(float));
    s->xhat = malloc((size_t)p->count * sizeof(float));
    for (size_t i = 0; i < most; i++)
        s->ones[i] = 1;
    /* Passes over the matrix, as written above; a rank-1 update reads and writes, scale() makes its matrix first. */
    const double scaled = 6, gamma = p->t[T_GAMMA].given ? scaled : 0, centered = norm == RMSNORM ? 0 : 1;
    double passes = 2 + 3 * centered + 2 + 1 + scaled + gamma + (p->t[T_BETA].given ? 2 : 0);
    if (op_is_backward(c->op))
        passes = 2 + 2 * centered + scaled + 3 + p->t[T_DGAMMA].given + p->t[T_DBETA].given + 2 + gamma + 1 + 4 + 2 * centered +
                 2 * scaled + 3;
    *bytes = passes * 4 * (double)p->count;
    return s;
}

static bool composed_call(void *state, char *slab, struct CUstream_st *stream)
{
    const Chain *s = state;
    (void)stream;
    op_is_backward(s->p->c->op) ? backward(s, slab) : forward(s, slab);
    return true;
}

const Peer peer_composed = { "composed", WF_CPU, composed_open, composed_prepare, composed_call, composed_done };
