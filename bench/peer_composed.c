/* peer_composed.c - normalization as a chain of BLAS calls, Caffe's recipe: sums are gemv with ones, broadcasts are rank-1
 * updates. f32; channels last, and GroupNorm with several channels a group, are left out.
 *
 * Everything is a matrix [rows, cols] of which a row shares a statistic, after a second sum over samples for BatchNorm. */
#include <stdlib.h>

#include "bench.h"
#include "blas.h"

typedef struct Chain {
    const Plan *p;
    const Blas *blas;
    int    rows, cols, count, samples, channels;
    bool   by_column; /* parameters stand along a row (LayerNorm, RMSNorm), else one per row, channel by channel */
    float *ones, *work, *xhat; /* [max(rows, cols)], [rows, cols] twice */
    float *a, *b, *mean, *rstd; /* [max(rows, cols)] each */
} Chain;

/* m += alpha rows 1' */
static void add_to_rows(const Chain *s, float alpha, const float *rows, float *m)
{
    s->blas->rank_1(s->rows, s->cols, alpha, rows, s->ones, m);
}

/* of[channels] to one per row. */
static void spread(const Chain *s, const float *of, float *rows)
{
    s->blas->zero(s->rows, rows);
    s->blas->rank_1(s->samples, s->channels, 1, s->ones, of, rows);
}

/* out[rows] = alpha times the sums of m over what shares a statistic. */
static void sums(const Chain *s, float alpha, const float *m, float *out)
{
    s->blas->row_sums(s->rows, s->cols, alpha, m, s->ones, out);
    if (!s->p->by_channel)
        return;
    s->blas->column_sums(s->samples, s->channels, out, s->ones, s->work);
    spread(s, s->work, out);
}

/* m times u v', by a broadcast matrix as Caffe has it. */
static void scale(const Chain *s, const float *u, const float *v, float *m)
{
    s->blas->zero(s->count, s->work);
    s->blas->rank_1(s->rows, s->cols, 1, u, v, s->work);
    s->blas->multiply(s->count, m, s->work, m);
}

static void scale_by_parameters(const Chain *s, const float *gamma, float *m)
{
    if (!s->by_column)
        spread(s, gamma, s->a);
    scale(s, s->by_column ? s->ones : s->a, s->by_column ? gamma : s->ones, m);
}

static void parameter_sums(const Chain *s, const float *m, float *out)
{
    if (s->by_column) {
        s->blas->column_sums(s->rows, s->cols, m, s->ones, out);
        return;
    }
    s->blas->row_sums(s->rows, s->cols, 1, m, s->ones, s->a);
    s->blas->column_sums(s->samples, s->channels, s->a, s->ones, out);
}

static void forward(const Chain *s, char *slab)
{
    const Plan *p = s->p;
    const Blas *blas = s->blas;
    const float *x = plan_tensor(p, slab, T_X), *gamma = plan_tensor(p, slab, T_GAMMA), *beta = plan_tensor(p, slab, T_BETA);
    float *y = plan_tensor(p, slab, T_Y);
    const float each = 1 / (float)p->per_slot;
    blas->copy(s->count, x, y);
    if (op_norm(p->c->op) != RMSNORM) {
        sums(s, each, x, s->mean);
        add_to_rows(s, -1, s->mean, y);
    }
    blas->multiply(s->count, y, y, s->xhat);
    sums(s, each, s->xhat, s->rstd);
    blas->rsqrt(s->rows, (float)p->c->eps, s->rstd);
    scale(s, s->rstd, s->ones, y);
    if (gamma)
        scale_by_parameters(s, gamma, y);
    if (beta && s->by_column) {
        blas->rank_1(s->rows, s->cols, 1, s->ones, beta, y);
    } else if (beta) {
        spread(s, beta, s->b);
        add_to_rows(s, 1, s->b, y);
    }
}

static void backward(const Chain *s, char *slab)
{
    const Plan *p = s->p;
    const Blas *blas = s->blas;
    const float *x = plan_tensor(p, slab, T_X), *dy = plan_tensor(p, slab, T_DY), *gamma = plan_tensor(p, slab, T_GAMMA);
    const float *mean = plan_tensor(p, slab, T_MEAN), *rstd = plan_tensor(p, slab, T_RSTD);
    float *dx = plan_tensor(p, slab, T_DX), *dgamma = plan_tensor(p, slab, T_DGAMMA), *dbeta = plan_tensor(p, slab, T_DBETA);
    const float each = 1 / (float)p->per_slot;
    if (p->by_channel) {
        spread(s, mean, s->mean);
        spread(s, rstd, s->rstd);
        mean = s->mean, rstd = s->rstd;
    }
    blas->copy(s->count, x, s->xhat);
    if (mean)
        add_to_rows(s, -1, mean, s->xhat);
    scale(s, rstd, s->ones, s->xhat);
    blas->multiply(s->count, dy, s->xhat, dx);
    if (dgamma)
        parameter_sums(s, dx, dgamma);
    if (dbeta)
        parameter_sums(s, dy, dbeta);
    blas->copy(s->count, dy, dx);
    if (gamma)
        scale_by_parameters(s, gamma, dx);
    blas->multiply(s->count, dx, s->xhat, s->work);
    sums(s, each, s->work, s->a); /* avg(g xhat) */
    if (mean) {
        sums(s, each, dx, s->b); /* avg(g) */
        add_to_rows(s, -1, s->b, dx);
    }
    scale(s, s->a, s->ones, s->xhat);
    blas->axpy(s->count, -1, s->xhat, dx);
    scale(s, rstd, s->ones, dx);
}

/* What the chain above reads and writes of whole matrices, in matrices. */
static double passes_of(const Chain *s)
{
    const Plan *p = s->p;
    const double copy = 2, rank_1 = 2, multiply = 3, sum = 1, axpy = 3, scale_ = 1 + rank_1 + multiply;
    const double centered = op_norm(p->c->op) == RMSNORM ? 0 : sum + rank_1, gamma = p->t[T_GAMMA].given ? scale_ : 0;
    if (!op_is_backward(p->c->op))
        return copy + centered + 2 + sum + scale_ + gamma + (p->t[T_BETA].given ? rank_1 : 0);
    return copy + (centered > 0 ? rank_1 : 0) + scale_ + multiply + p->t[T_DGAMMA].given + p->t[T_DBETA].given + copy + gamma +
           multiply + sum + centered + scale_ + axpy + scale_;
}

static void composed_done(void *state)
{
    Chain *s = state;
    float *const all[] = { s->ones, s->work, s->xhat, s->a, s->b, s->mean, s->rstd };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i])
            s->blas->free(all[i]);
    free(s);
}

static void *prepare(const Plan *p, const Blas *blas, double *bytes)
{
    const Case *c = p->c;
    const Norm norm = op_norm(c->op);
    const bool by_column = norm == LAYERNORM || norm == RMSNORM;
    if (norm == DROPOUT || c->x != WF_F32 || c->w != WF_F32 || !plan_is_plain(p) || p->frozen || c->weight_offset != 0)
        return NULL;
    if (p->count > INT32_MAX / 2 || (!by_column && (!p->channel_is_run || (!p->by_channel && p->groups != p->channels))) ||
        (op_is_backward(c->op) && !p->t[T_DX].given))
        return NULL;
    Chain *s = calloc(1, sizeof *s);
    *s = (Chain){ .p = p, .blas = blas, .count = (int)p->count, .samples = (int)p->samples, .channels = (int)p->channels,
                  .by_column = by_column };
    s->rows = (int)(by_column ? p->samples : p->samples * p->channels);
    s->cols = (int)p->length;
    const size_t most = (size_t)(s->rows > s->cols ? s->rows : s->cols);
    float **const vectors[] = { &s->ones, &s->a, &s->b, &s->mean, &s->rstd };
    bool memory = (s->work = blas->alloc((size_t)p->count)) != NULL;
    memory &= (s->xhat = blas->alloc((size_t)p->count)) != NULL;
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++)
        memory &= (*vectors[i] = blas->alloc(most)) != NULL;
    if (!memory) {
        composed_done(s);
        return NULL;
    }
    float *ones = malloc(most * sizeof *ones);
    for (size_t i = 0; i < most; i++)
        ones[i] = 1;
    blas->put(s->ones, ones, most);
    free(ones);
    *bytes = passes_of(s) * sizeof(float) * (double)p->count;
    return s;
}

static bool composed_call(void *state, char *slab, struct CUstream_st *stream)
{
    const Chain *s = state;
    s->blas->begin(s->p->c->threads, stream);
    op_is_backward(s->p->c->op) ? backward(s, slab) : forward(s, slab);
    return true;
}

static const char *open_cpu(void) { return blas_cpu.open(); }
static const char *open_gpu(void) { return blas_gpu.open(); }
static void *prepare_cpu(const Plan *p, double *bytes) { return prepare(p, &blas_cpu, bytes); }
static void *prepare_gpu(const Plan *p, double *bytes) { return prepare(p, &blas_gpu, bytes); }

const Peer peer_composed = { "composed", WF_CPU, open_cpu, prepare_cpu, composed_call, composed_done };
const Peer peer_cublas = { "cublas", WF_CUDA, open_gpu, prepare_gpu, composed_call, composed_done };
