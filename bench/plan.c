/* plan.c - the tensors of a case in one slab of memory, their random contents, and the library's call on them. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "data.h"

enum { ALIGN = 256, BLOCK = 1048583 /* prime: a period that no shape shares */ };

static void give(Plan *p, Tensor which, bool input, wf_dtype dtype, int64_t rows, int64_t cols, int64_t stride)
{
    Extent *t = &p->t[which];
    *t = (Extent){ .given = true, .input = input, .dtype = dtype, .rows = rows, .cols = cols };
    t->stride = stride ? stride : cols;
    t->size = rows && cols ? (size_t)((rows - 1) * t->stride + cols) * dtype_size(dtype) : 0;
    t->at = p->slab_size + (size_t)p->c->misalign * dtype_size(dtype);
    p->slab_size = (t->at + t->size + ALIGN - 1) / ALIGN * ALIGN;
}

static void share(Plan *p, Tensor out, Tensor in) /* an output in place: what it overwrites need not stay */
{
    p->t[in].input = false;
    p->t[out] = p->t[in];
}

/* What a norm of a sum has besides; backward, the sum in place of x. */
static void give_addition(Plan *p)
{
    const Case *c = p->c;
    const bool backward = op_is_backward(c->op), in_place = c->inplace & 2;
    const wf_dtype dtype = case_sum_dtype(c);
    const uint32_t add = c->add;
    if (add & ADD_ROW_SCALE)
        give(p, T_ROW_SCALE, true, stat_dtype(c->x), 1, p->samples, 0);
    if (add & ADD_COL_SCALE)
        give(p, T_COL_SCALE, true, c->w, 1, p->channels, 0);
    if (!backward && add & ADD_RESIDUAL)
        give(p, T_RESIDUAL, true, dtype, c->rows, c->cols, c->residual_stride);
    if (!backward && add & ADD_SUM && add & ADD_RESIDUAL && in_place)
        share(p, T_SUM, T_RESIDUAL);
    else if (backward || add & ADD_SUM)
        give(p, T_SUM, backward, dtype, c->rows, c->cols, c->sum_stride);
    if (backward && add & ADD_DSUM)
        give(p, T_DSUM, true, dtype, c->rows, c->cols, c->sum_stride);
    if (backward && add & ADD_DRESIDUAL && add & ADD_DSUM && in_place)
        share(p, T_DRESIDUAL, T_DSUM);
    else if (backward && add & ADD_DRESIDUAL)
        give(p, T_DRESIDUAL, false, dtype, c->rows, c->cols, c->residual_stride);
}

/* What a channel norm's ending has besides: backward y, or what has z again. */
static void give_ending(Plan *p)
{
    const Case *c = p->c;
    const bool backward = op_is_backward(c->op);
    if (c->add & ADD_RESIDUAL && !(backward && c->add & ADD_Y))
        give(p, T_RESIDUAL, true, c->x, 1, p->count, 0);
    if (!backward)
        return;
    if (c->add & ADD_DRESIDUAL && c->inplace & 2)
        share(p, T_DRESIDUAL, T_DY);
    else if (c->add & ADD_DRESIDUAL)
        give(p, T_DRESIDUAL, false, c->x, 1, p->count, 0);
    if (c->add & ADD_Y)
        give(p, T_Y, true, c->x, 1, p->count, 0);
    else if (c->activation)
        give(p, T_Z, true, c->x, 1, p->count, 0);
    if (c->activation && !(c->add & ADD_Y) && !(c->null & NULL_BETA))
        give(p, T_BETA, true, c->w, 1, p->channels, 0);
}

/* Which elements share statistics and parameters. */
static const char *arrange(Plan *p)
{
    const Case *c = p->c;
    const Norm norm = op_norm(c->op);
    const bool moving = norm == BATCHNORM || norm == INSTANCENORM;
    if (norm == FOLD)
        return "a fold, which is not timed";
    if (c->quantize || c->add & ADD_OUTPUT || case_fuses(c) || (case_modulates(c) && op_is_backward(c->op)))
        return "y in bytes, backward from y, fused dropout, or a modulation's gradients, which are not timed";
    if (norm == LAYERNORM || norm == RMSNORM) {
        p->samples = c->rows, p->runs = 1, p->length = p->channels = c->cols, p->groups = 1;
    } else {
        p->channel_is_run = c->layout == WF_NCHW;
        p->samples = c->n, p->channels = c->c;
        p->runs = p->channel_is_run ? c->c : c->hw;
        p->length = p->channel_is_run ? c->hw : c->c;
        p->groups = norm == GROUPNORM ? c->groups : c->c;
    }
    if (p->samples <= 0 || p->runs <= 0 || p->length <= 0 || p->groups <= 0 || p->channels % p->groups)
        return "a shape without elements, or groups that do not divide c";
    p->count = p->samples * p->runs * p->length;
    p->frozen = op_is_infer(c->op) || (moving && op_is_backward(c->op) && c->flags & WF_FROZEN);
    p->by_channel = norm == BATCHNORM || (norm == INSTANCENORM && p->frozen);
    p->slots = norm == DROPOUT ? 0 : p->by_channel ? p->channels : p->samples * p->groups;
    p->per_slot = p->slots ? p->count / p->slots : 0;
    return NULL;
}

wf_dropout plan_dropout(const Case *c)
{
    return (wf_dropout){ .size = sizeof(wf_dropout), .x_dtype = c->x, .kind = (wf_dropout_kind)c->kind,
                         .layout = c->layout, .flags = c->flags, .n = c->n, .c = c->c, .hw = c->hw, .p = c->p };
}

const char *plan_make(Plan *p, const Case *c)
{
    *p = (Plan){ .c = c };
    const char *error = arrange(p);
    if (error)
        return error;
    const Norm norm = op_norm(c->op);
    const bool by_rows = norm == LAYERNORM || norm == RMSNORM, centered = norm != RMSNORM, norms = norm != DROPOUT;
    const bool backward = op_is_backward(c->op), infer = op_is_infer(c->op);
    const int64_t rows = by_rows ? c->rows : 1, cols = by_rows ? c->cols : p->count;
    const int64_t x_stride = by_rows ? c->x_stride : 0, y_stride = by_rows ? c->y_stride : 0;
    const wf_dtype stat = stat_dtype(c->x);
    if (case_adds(c))
        give_addition(p);
    if (!backward || (norms && !case_adds(c)))
        give(p, T_X, true, c->x, rows, cols, x_stride);
    if (norms && !(c->null & NULL_GAMMA))
        give(p, T_GAMMA, true, c->w, 1, p->channels, 0);
    if (backward) {
        give(p, T_DY, true, c->x, rows, cols, by_rows && c->dy_stride ? c->dy_stride : y_stride);
        if (c->inplace & 1)
            share(p, T_DX, T_DY);
        else if (!(c->null & NULL_DX))
            give(p, T_DX, false, c->x, rows, cols, by_rows && c->dx_stride ? c->dx_stride : x_stride);
    } else if (c->inplace & 1) {
        share(p, T_Y, T_X);
    } else {
        give(p, T_Y, false, c->x, rows, cols, y_stride);
    }
    if (case_ends(c))
        give_ending(p);
    if (case_modulates(c) && c->add & ADD_SCALE)
        give(p, T_SCALE, true, c->w, 1, p->samples * p->channels, 0);
    if (case_modulates(c) && c->add & ADD_SHIFT)
        give(p, T_SHIFT, true, c->w, 1, p->samples * p->channels, 0);
    if (norm == DROPOUT && (backward ? c->flags & WF_GIVEN_MASK : !(c->null & NULL_MASK)))
        give(p, T_MASK, backward, WF_F32, 1, ((c->flags & WF_FEATURES ? c->n * c->c : p->count) + 31) / 32, 0);
    if (norms && backward) {
        give(p, T_RSTD, true, stat, 1, p->slots, 0);
        if (centered)
            give(p, T_MEAN, true, stat, 1, p->slots, 0);
        if (centered && !p->frozen && !(c->null & NULL_MEAN_LO))
            give(p, T_MEAN_LO, true, stat, 1, p->slots, 0);
        if (!(c->null & NULL_DGAMMA))
            give(p, T_DGAMMA, false, c->w, 1, p->channels, 0);
        if (centered && !(c->null & NULL_DBETA))
            give(p, T_DBETA, false, c->w, 1, p->channels, 0);
    } else if (norms) {
        if (centered && !(c->null & NULL_BETA))
            give(p, T_BETA, true, c->w, 1, p->channels, 0);
        if (!(c->null & NULL_RSTD))
            give(p, T_RSTD, false, stat, 1, p->slots, 0);
        if (centered && !infer && !(c->null & NULL_MEAN))
            give(p, T_MEAN, false, stat, 1, p->slots, 0);
        if (centered && !infer && !(c->null & NULL_MEAN_LO))
            give(p, T_MEAN_LO, false, stat, 1, p->slots, 0);
    }
    if (infer || (norms && (c->running || p->frozen))) {
        give(p, T_RUNNING_MEAN_IN, true, stat, 1, p->channels, 0);
        give(p, T_RUNNING_VAR_IN, true, stat, 1, p->channels, 0);
    }
    if (!backward && !infer && c->running == RUNNING_IN_PLACE) {
        share(p, T_RUNNING_MEAN_OUT, T_RUNNING_MEAN_IN);
        share(p, T_RUNNING_VAR_OUT, T_RUNNING_VAR_IN);
    } else if (!backward && !infer && c->running) {
        give(p, T_RUNNING_MEAN_OUT, false, stat, 1, p->channels, 0);
        give(p, T_RUNNING_VAR_OUT, false, stat, 1, p->channels, 0);
    }
    if (norms) {
        p->workspace_size = run_workspace(c);
    } else {
        const wf_dropout what = plan_dropout(c);
        p->workspace_size = backward ? wf_dropout_backward_workspace(&what, c->backend)
                                     : wf_dropout_forward_workspace(&what, c->backend);
    }
    p->workspace_at = p->slab_size;
    p->slab_size += (p->workspace_size + ALIGN - 1) / ALIGN * ALIGN;
    return NULL;
}

bool plan_is_dense(const Plan *p)
{
    const Case *c = p->c;
    return !c->flags && !c->x_stride && !c->y_stride && !c->dx_stride && !c->dy_stride && !c->residual_stride &&
           !c->sum_stride && !c->inplace;
}

bool plan_is_plain(const Plan *p) { return plan_is_dense(p) && !case_adds(p->c) && !case_ends(p->c) && !case_modulates(p->c); }

int64_t plan_height(const Plan *p)
{
    const int64_t hw = p->c->hw;
    int64_t height = 1;
    for (int64_t h = 1; h * h <= hw; h++)
        height = hw % h ? height : h;
    return height;
}

void plan_free(Plan *p)
{
    free(p->sum);
    free(p->mean);
    free(p->var);
    free(p->rstd);
}

void *plan_tensor(const Plan *p, const char *slab, Tensor which)
{
    return p->t[which].given ? (char *)slab + p->t[which].at : NULL;
}

wf_status plan_call(const Plan *p, char *slab, struct CUstream_st *stream)
{
    void *at[T_COUNT];
    for (int i = 0; i < T_COUNT; i++)
        at[i] = plan_tensor(p, slab, (Tensor)i);
    return plan_call_at(p->c, at, slab + p->workspace_at, p->workspace_size, stream);
}

wf_status plan_call_at(const Case *c, void *const at[], void *workspace, size_t workspace_size, struct CUstream_st *stream)
{
    wf_exec where = { .size = sizeof where, .backend = c->backend, .stream = stream, .threads = c->threads,
                      .workspace = workspace, .workspace_size = workspace_size,
                      .variant = c->variant[0] ? c->variant : NULL };
    if (op_norm(c->op) == DROPOUT) {
        const bool backward = op_is_backward(c->op);
        const wf_dropout what = plan_dropout(c);
        const wf_dropout_args with = { .size = sizeof with, .x = backward ? at[T_DY] : at[T_X],
                                       .y = backward ? at[T_DX] : at[T_Y], .mask = at[T_MASK], .seed = c->seed,
                                       .offset = c->offset };
        return backward ? wf_dropout_backward(&what, &with, &where) : wf_dropout_forward(&what, &with, &where);
    }
    const Buffers b = { .x = at[T_X], .dy = at[T_DY], .gamma = at[T_GAMMA], .beta = at[T_BETA],
                        .running_mean_in = at[T_RUNNING_MEAN_IN], .running_var_in = at[T_RUNNING_VAR_IN], .y = at[T_Y],
                        .mean = at[T_MEAN], .rstd = at[T_RSTD], .mean_lo = at[T_MEAN_LO],
                        .running_mean_out = at[T_RUNNING_MEAN_OUT], .running_var_out = at[T_RUNNING_VAR_OUT],
                        .dx = at[T_DX], .dgamma = at[T_DGAMMA], .dbeta = at[T_DBETA], .residual = at[T_RESIDUAL],
                        .row_scale = at[T_ROW_SCALE], .col_scale = at[T_COL_SCALE], .dsum = at[T_DSUM], .sum = at[T_SUM],
                        .dresidual = at[T_DRESIDUAL], .scale = at[T_SCALE], .shift = at[T_SHIFT] };
    return run_call(c, &b, &where);
}

/* ---- contents ---- */

static double normal(uint64_t *state)
{
    const double u = ((double)(random_bits(state) >> 12) + 0.5) * 0x1p-52;
    const double v = ((double)(random_bits(state) >> 12) + 0.5) * 0x1p-52;
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

/* N(0, 1) in a dtype, made once: a large tensor repeats it. */
static const char *block_of(wf_dtype dtype)
{
    static char *block[4];
    if (!block[dtype]) {
        uint64_t state = 1;
        block[dtype] = malloc((size_t)BLOCK * dtype_size(dtype));
        for (int64_t i = 0; i < BLOCK; i++)
            dtype_store(dtype, block[dtype], i, normal(&state));
    }
    return block[dtype];
}

static void fill_activations(const Plan *p, char *slab, Tensor which, int64_t from)
{
    const Extent *t = &p->t[which];
    if (!t->given)
        return;
    char *at = slab + t->at;
    const char *block = block_of(t->dtype);
    const size_t e = dtype_size(t->dtype);
    const int64_t count = (int64_t)(t->size / e);
    for (int64_t i = 0; i < count;) {
        const int64_t start = ((int64_t)(p->c->seed % BLOCK) + from + i) % BLOCK, rest = BLOCK - start;
        const int64_t n = rest < count - i ? rest : count - i;
        memcpy(at + (size_t)i * e, block + (size_t)start * e, (size_t)n * e);
        i += n;
    }
}

/* mean + sd z; |z| where sd < 0. */
static void fill_vector(const Plan *p, char *slab, Tensor which, double mean, double sd)
{
    uint64_t state = p->c->seed * 1000 + (uint64_t)which;
    for (int64_t i = 0; p->t[which].given && i < p->t[which].cols; i++) {
        const double z = sd * normal(&state);
        dtype_store(p->t[which].dtype, slab + p->t[which].at, i, mean + (sd < 0 ? fabs(z) : z));
    }
}

static void fill_mask(const Plan *p, char *slab)
{
    uint64_t state = p->c->seed;
    for (size_t i = 0; i < p->t[T_MASK].size; i += sizeof(uint32_t)) {
        const uint32_t word = (uint32_t)random_bits(&state);
        memcpy(slab + p->t[T_MASK].at + i, &word, sizeof word);
    }
}

void plan_fill(Plan *p, char *slab)
{
    memset(slab, 0xff, p->slab_size);
    fill_activations(p, slab, T_X, 0);
    fill_activations(p, slab, T_DY, BLOCK / 2);
    fill_activations(p, slab, T_RESIDUAL, BLOCK / 3);
    if (op_is_backward(p->c->op)) {
        fill_activations(p, slab, T_SUM, 0);
        fill_activations(p, slab, T_Y, 0);
    }
    fill_activations(p, slab, T_DSUM, BLOCK / 3);
    fill_vector(p, slab, T_ROW_SCALE, 1, 0.5);
    fill_vector(p, slab, T_COL_SCALE, 0.5, 0.5);
    if (p->t[T_MASK].given && p->t[T_MASK].input)
        fill_mask(p, slab);
    fill_vector(p, slab, T_GAMMA, 1, 0.5);
    fill_vector(p, slab, T_BETA, 0, 1);
    fill_vector(p, slab, T_SCALE, 0.5, 0.5);
    fill_vector(p, slab, T_SHIFT, 0, 1);
    fill_vector(p, slab, T_RUNNING_MEAN_IN, 0.5, 1);
    fill_vector(p, slab, T_RUNNING_VAR_IN, 0.25, -1);
    if (p->c->flags & WF_ACCUMULATE) {
        fill_vector(p, slab, T_DGAMMA, 0, 3);
        fill_vector(p, slab, T_DBETA, 0, 3);
    }
    if (!p->slots)
        return;
    reference_statistics(p, slab);
    if (!op_is_backward(p->c->op))
        return;
    if (p->t[T_Z].given)
        reference_saved(p, slab);
    for (int64_t i = 0; i < p->slots; i++) {
        void *mean = plan_tensor(p, slab, T_MEAN), *mean_lo = plan_tensor(p, slab, T_MEAN_LO);
        dtype_store(p->t[T_RSTD].dtype, slab + p->t[T_RSTD].at, i, p->rstd[i]);
        if (mean)
            dtype_store(p->t[T_MEAN].dtype, mean, i, p->mean[i]);
        if (mean_lo)
            dtype_store(p->t[T_MEAN].dtype, mean_lo, i, p->mean[i] - dtype_load(p->t[T_MEAN].dtype, mean, i));
    }
}
