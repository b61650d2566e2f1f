/* peer_unfused.c - what a fused call stands for: the library's own unfused calls one after the other, and plain loops for what
 * lies between them (loops.h), each over all of its tensors. GB/s are by the bytes that the chain moves.
 *
 * A chain is a list of steps, made by one function for each kind of fusion; make_chain() knows them all. Tensors are the
 * row's own, or scratch of the chain, which the caches may still hold when the next call begins. */
#include <stdlib.h>

#include "bench.h"
#include "data.h"
#include "loops.h"

enum { MOST_STEPS = 8, SCRATCH = T_COUNT, SCRATCHES = 2, PLACES = SCRATCH + SCRATCHES, NOWHERE = -1 };

/* A call has a plan: of its own tensors, at from[]. A loop has none. */
typedef enum Kind { CALL, SCALED_SUM, SUM, ACTIVATION, GRADIENT } Kind;
typedef struct Step {
    Kind kind;
    Case c;
    Plan p;
    int  from[T_COUNT]; /* which of the chain's tensors each of the call's is */
    int  a, b, out; /* the loop's */
} Step;
typedef struct Chain {
    const Plan *p;
    Step   step[MOST_STEPS];
    int    steps;
    char  *scratch[SCRATCHES], *workspace;
    double bytes;
} Chain;

/* ---- the steps ---- */

/* Case c on the row's tensors, but for what its `in` and `out` are; in, out as a norm or dropout has them. */
static void add_call(Chain *s, Case c, int in, int out)
{
    Step *step = &s->step[s->steps++];
    const bool backward = op_is_backward(c.op);
    step->c = c;
    plan_make(&step->p, &step->c);
    for (int t = 0; t < T_COUNT; t++)
        step->from[t] = step->p.t[t].given ? t : NOWHERE;
    const Tensor read = !backward || op_norm(c.op) != DROPOUT ? T_X : T_DY;
    step->from[read] = in;
    step->from[backward ? T_DX : T_Y] = out;
    s->bytes += traffic_of(&step->p).bytes;
}

/* out = a (times the row's scales) + b, activation(a, if modulated, + b), b * activation'(a) */
static void add_loop(Chain *s, Kind kind, int a, int b, int out)
{
    s->step[s->steps++] = (Step){ .kind = kind, .a = a, .b = b, .out = out };
    s->bytes += (double)s->p->count * (double)dtype_size(s->p->c->x) * (b == NOWHERE ? 2 : 3);
}

static Case norm_alone(const Case *c)
{
    Case norm = *c;
    norm.add = 0;
    norm.drop = 0;
    norm.activation = WF_ACTIVATION_NONE;
    norm.null &= ~(uint32_t)NULL_DX;
    return norm;
}

static Case dropout_alone(const Case *c, Op op)
{
    Case drop = case_default(op);
    drop.x = c->x;
    drop.backend = c->backend;
    drop.threads = c->threads;
    drop.p = c->drop;
    drop.seed = c->seed;
    drop.offset = c->offset;
    drop.hw = c->rows * c->cols;
    drop.null = NULL_MASK;
    return drop;
}

/* ---- chains ---- */

static void sum_forward(Chain *s)
{
    const Case *c = s->p->c;
    const bool scaled = c->add & (ADD_ROW_SCALE | ADD_COL_SCALE), loop = scaled || c->add & ADD_RESIDUAL;
    const int sum = c->add & ADD_SUM ? (int)T_SUM : SCRATCH;
    int x = T_X;
    if (c->drop > 0)
        add_call(s, dropout_alone(c, DROPOUT_FORWARD), x, loop ? SCRATCH + 1 : sum), x = loop ? SCRATCH + 1 : sum;
    if (loop || x == T_X)
        add_loop(s, scaled ? SCALED_SUM : SUM, x, c->add & ADD_RESIDUAL ? (int)T_RESIDUAL : NOWHERE, sum);
    add_call(s, norm_alone(c), sum, T_Y);
}

static void sum_backward(Chain *s)
{
    const Case *c = s->p->c;
    const bool scaled = c->add & (ADD_ROW_SCALE | ADD_COL_SCALE), apart = scaled || c->drop > 0;
    const bool dx = s->p->t[T_DX].given, dsum = c->add & ADD_DSUM;
    const int dresidual = c->add & ADD_DRESIDUAL ? (int)T_DRESIDUAL : apart || !dx ? SCRATCH : (int)T_DX;
    add_call(s, norm_alone(c), T_SUM, dsum ? SCRATCH + 1 : dresidual);
    if (dsum)
        add_loop(s, SUM, SCRATCH + 1, T_DSUM, dresidual);
    if (!dx || dresidual == (int)T_DX)
        return;
    int from = dresidual;
    if (!apart || scaled)
        add_loop(s, scaled ? SCALED_SUM : SUM, from, NOWHERE, c->drop > 0 ? SCRATCH + 1 : (int)T_DX), from = SCRATCH + 1;
    if (c->drop > 0)
        add_call(s, dropout_alone(c, DROPOUT_BACKWARD), from, T_DX);
}

/* A modulation, a residual and the activation are one loop. */
static void ending_forward(Chain *s)
{
    const Case *c = s->p->c;
    add_call(s, norm_alone(c), T_X, T_Y);
    const Kind kind = c->activation || case_modulates(c) ? ACTIVATION : SUM;
    add_loop(s, kind, T_Y, c->add & ADD_RESIDUAL ? (int)T_RESIDUAL : NOWHERE, T_Y);
}

/* What the activation was taken of was saved, or y, of which the sign is the same. */
static void ending_backward(Chain *s)
{
    const Case *c = s->p->c;
    const int dz = c->add & ADD_DRESIDUAL ? (int)T_DRESIDUAL : SCRATCH;
    if (c->activation)
        add_loop(s, GRADIENT, c->add & ADD_Y ? T_Y : T_Z, T_DY, dz);
    else
        add_loop(s, SUM, T_DY, NOWHERE, dz);
    add_call(s, norm_alone(c), T_X, T_DX);
    s->step[s->steps - 1].from[T_DY] = dz;
}

/* No steps: nothing here is fused. */
static void make_chain(Chain *s)
{
    if (case_adds(s->p->c))
        op_is_backward(s->p->c->op) ? sum_backward(s) : sum_forward(s);
    if (case_ends(s->p->c) || case_modulates(s->p->c))
        op_is_backward(s->p->c->op) ? ending_backward(s) : ending_forward(s);
}

/* ---- the peer ---- */

static const char *unfused_open(void) { return "this library's calls, C loops between them"; }

#ifdef WF_TEST_CUDA
static const char *unfused_open_cuda(void) { return "this library's calls, plain kernels between them"; }
#else
static const char *unfused_open_cuda(void) { return NULL; }
#endif

static void *take(const Chain *s, size_t size) { return s->p->c->backend == WF_CUDA ? gpu_alloc(size) : host_alloc(size); }

static void give_back(const Chain *s, void *memory)
{
    if (memory)
        s->p->c->backend == WF_CUDA ? gpu_free(memory) : free(memory);
}

static void unfused_done(void *state)
{
    Chain *s = state;
    for (int i = 0; i < s->steps; i++)
        plan_free(&s->step[i].p);
    for (int i = 0; i < SCRATCHES; i++)
        give_back(s, s->scratch[i]);
    give_back(s, s->workspace);
    free(s);
}

static void *unfused_prepare(const Plan *p, double *bytes)
{
    if (!plan_is_dense(p) || p->c->misalign || !loops_take(p->c->x) || !loops_take(p->c->w))
        return NULL;
    Chain *s = calloc(1, sizeof *s);
    s->p = p;
    make_chain(s);
    size_t workspace = 1;
    for (int i = 0; i < s->steps; i++)
        workspace = s->step[i].p.workspace_size > workspace ? s->step[i].p.workspace_size : workspace;
    s->workspace = take(s, workspace);
    bool memory = s->workspace && s->steps;
    for (int i = 0; i < SCRATCHES && memory; i++)
        memory = (s->scratch[i] = take(s, (size_t)p->count * dtype_size(p->c->x))) != NULL;
    *bytes = s->bytes;
    if (memory)
        return s;
    unfused_done(s);
    return NULL;
}

static void run_loop(const Chain *s, const Step *step, char *const place[PLACES], struct CUstream_st *stream)
{
    const Case *c = s->p->c;
    const void *b = step->b == NOWHERE ? NULL : place[step->b];
    if (step->kind == ACTIVATION || step->kind == GRADIENT) {
        const bool gradient = step->kind == GRADIENT;
        const Activated loop = { .dtype = c->x, .kind = c->activation, .slope = (float)c->slope, .count = s->p->count,
                                 .a = place[step->a], .b = gradient ? NULL : b, .dy = gradient ? b : NULL,
                                 .out = place[step->out], .scale_dtype = c->w, .offset = (float)c->scale_offset,
                                 .cols = s->p->length, .share = s->p->channel_is_run ? 0 : s->p->runs,
                                 .scale = gradient ? NULL : place[T_SCALE], .shift = gradient ? NULL : place[T_SHIFT] };
        c->backend == WF_CUDA ? activated_cuda(&loop, stream) : activated(&loop, c->threads);
        return;
    }
    const bool scaled = step->kind == SCALED_SUM;
    const ScaledSum loop = { .dtype = c->x, .scale_dtype = c->w, .rows = s->p->samples * s->p->runs, .cols = s->p->length,
                             .a = place[step->a], .b = b, .out = place[step->out],
                             .row_scale = scaled ? (const void *)place[T_ROW_SCALE] : NULL,
                             .col_scale = scaled ? place[T_COL_SCALE] : NULL };
    c->backend == WF_CUDA ? scaled_sum_cuda(&loop, stream) : scaled_sum(&loop, c->threads);
}

static bool unfused_call(void *state, char *slab, struct CUstream_st *stream)
{
    const Chain *s = state;
    char *place[PLACES];
    for (int t = 0; t < PLACES; t++)
        place[t] = t < SCRATCH ? plan_tensor(s->p, slab, (Tensor)t) : s->scratch[t - SCRATCH];
    for (const Step *step = s->step; step < s->step + s->steps; step++) {
        if (step->kind != CALL) {
            run_loop(s, step, place, stream);
            continue;
        }
        void *at[T_COUNT];
        for (int t = 0; t < T_COUNT; t++)
            at[t] = step->from[t] == NOWHERE ? NULL : place[step->from[t]];
        if (plan_call_at(&step->c, at, s->workspace, step->p.workspace_size, stream) != WF_OK)
            return false;
    }
    return true;
}

const Peer peer_unfused = { "unfused", WF_CPU, unfused_open, unfused_prepare, unfused_call, unfused_done };
const Peer peer_unfused_cuda = { "unfused_cuda", WF_CUDA, unfused_open_cuda, unfused_prepare, unfused_call, unfused_done };
