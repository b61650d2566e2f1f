#include "run.h"

#include <fenv.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef __x86_64__
#include <xmmintrin.h>
#endif

#include "device.h"
#include "guard.h"
#include "oracle_fold.h"
#include "pool.h"
#include "tensor.h"

const char run_unsupported[] = "unsupported";

static _Thread_local char text[CASE_SIZE + 512];

static const char *failure(const Case *c, const char *format, ...)
{
    char line[CASE_SIZE];
    va_list args;
    va_start(args, format);
    int at = vsnprintf(text, 512, format, args);
    va_end(args);
    snprintf(text + at, sizeof text - (size_t)at, "\n  --case \"%s\"", case_print(c, line));
    return text;
}

/* ---- the call ---- */

#define ROWS_WHAT(type) (type){ .size = sizeof(type), .x_dtype = c->x, .w_dtype = c->w, .flags = c->flags, .rows = c->rows, \
    .cols = c->cols, .x_stride = c->x_stride, .y_stride = c->y_stride, .dx_stride = c->dx_stride, \
    .dy_stride = c->dy_stride, .eps = c->eps, .p = c->drop, .residual_stride = c->residual_stride, \
    .sum_stride = c->sum_stride, .quantization = (wf_quantization)c->quantize }
#define SEEDS      b->pointed ? ~c->seed : c->seed, b->pointed ? c->offset - OFFSET_POINTED : c->offset, \
                   b->pointed, b->pointed ? b->pointed + 1 : NULL
#define ADDED      b->residual, b->sum, b->row_scale, b->col_scale, SEEDS, b->y_scale, b->y_amax, b->y_row_scale
#define SUM_PASSED b->sum, b->dsum, b->dresidual, b->row_scale, b->col_scale, SEEDS, b->output
#define CHANNELS_WHAT(type) (type){ .size = sizeof(type), .x_dtype = c->x, .w_dtype = c->w, .layout = c->layout, \
    .flags = c->flags, .n = c->n, .c = c->c, .hw = c->hw, .eps = c->eps, .activation = c->activation, .slope = c->slope }
#define ENDED b->beta, b->residual, b->y, b->dresidual
#define MODULATED b->scale, b->shift
#define MODULATED_ENDED ENDED, MODULATED, b->dscale, b->dshift

/* With buffers: the call. Without: the query of its workspace's size. */
#define CALL(op, ...) do { \
        wf_##op##_args with = { sizeof with, __VA_ARGS__ }; \
        if (buffers) \
            return wf_##op(&what, &with, where); \
        *workspace = wf_##op##_workspace(&what, c->backend); \
        return WF_OK; \
    } while (0)

static wf_status call(const Case *c, const Buffers *buffers, const wf_exec *where, size_t *workspace)
{
    static const Buffers none;
    const Buffers *b = buffers ? buffers : &none;
    const bool forward = !op_is_backward(c->op);
    switch (op_norm(c->op)) {
    case LAYERNORM: {
        wf_layernorm what = ROWS_WHAT(wf_layernorm);
        if (forward)
            CALL(layernorm_forward, b->x, b->gamma, b->beta, b->y, b->mean, b->rstd, b->mean_lo, ADDED);
        CALL(layernorm_backward, b->dy, b->x, b->gamma, b->mean, b->rstd, b->mean_lo, b->dx, b->dgamma, b->dbeta,
             SUM_PASSED, b->beta);
    }
    case RMSNORM: {
        wf_rmsnorm what = ROWS_WHAT(wf_rmsnorm);
        what.weight_offset = c->weight_offset;
        if (forward)
            CALL(rmsnorm_forward, b->x, b->gamma, b->y, b->rstd, ADDED);
        CALL(rmsnorm_backward, b->dy, b->x, b->gamma, b->rstd, b->dx, b->dgamma, SUM_PASSED);
    }
    case GROUPNORM: {
        wf_groupnorm what = CHANNELS_WHAT(wf_groupnorm);
        what.groups = c->groups;
        what.scale_offset = c->scale_offset;
        if (forward)
            CALL(groupnorm_forward, b->x, b->gamma, b->beta, b->y, b->mean, b->rstd, b->mean_lo, b->residual, MODULATED);
        CALL(groupnorm_backward, b->dy, b->x, b->gamma, b->mean, b->rstd, b->mean_lo, b->dx, b->dgamma, b->dbeta,
             MODULATED_ENDED);
    }
    case INSTANCENORM: {
        wf_instancenorm what = CHANNELS_WHAT(wf_instancenorm);
        what.momentum = c->momentum;
        what.scale_offset = c->scale_offset;
        if (op_is_infer(c->op))
            CALL(instancenorm_infer, b->x, b->gamma, b->beta, b->running_mean_in, b->running_var_in, b->y, b->rstd,
                 b->residual, MODULATED);
        if (forward)
            CALL(instancenorm_train, b->x, b->gamma, b->beta, b->running_mean_in, b->running_var_in,
                 b->running_mean_out, b->running_var_out, b->y, b->mean, b->rstd, b->mean_lo, b->residual,
                 MODULATED);
        CALL(instancenorm_backward, b->dy, b->x, b->gamma, b->mean, b->rstd, b->mean_lo, b->dx, b->dgamma, b->dbeta,
             MODULATED_ENDED);
    }
    case BATCHNORM: {
        wf_batchnorm what = CHANNELS_WHAT(wf_batchnorm);
        what.momentum = c->momentum;
        if (op_is_infer(c->op))
            CALL(batchnorm_infer, b->x, b->gamma, b->beta, b->running_mean_in, b->running_var_in, b->y, b->rstd,
                 b->residual);
        if (forward)
            CALL(batchnorm_train, b->x, b->gamma, b->beta, b->running_mean_in, b->running_var_in, b->running_mean_out,
                 b->running_var_out, b->y, b->mean, b->rstd, b->mean_lo, b->residual);
        CALL(batchnorm_backward, b->dy, b->x, b->gamma, b->mean, b->rstd, b->mean_lo, b->dx, b->dgamma, b->dbeta, ENDED);
    }
    case FOLD: {
        wf_fold what = { .size = sizeof what, .x_dtype = c->x, .w_dtype = c->w, .flags = c->flags, .rows = c->rows,
                         .cols = c->cols, .x_stride = c->x_stride, .y_stride = c->y_stride, .channels = c->channels,
                         .eps = c->eps, .weight_offset = c->weight_offset };
        const wf_fold_args with = { sizeof with, b->x, b->bias, b->gamma, b->beta, b->running_mean_in, b->running_var_in,
                                    b->y, b->folded_bias };
        if (buffers)
            return (c->op == FOLD_BATCHNORM ? wf_fold_batchnorm : wf_fold_layernorm)(&what, &with, where);
        *workspace = (c->op == FOLD_BATCHNORM ? wf_fold_batchnorm_workspace : wf_fold_layernorm_workspace)(&what, c->backend);
        return WF_OK;
    }
    default: return WF_INVALID;
    }
}

wf_status run_call(const Case *c, const Buffers *buffers, const wf_exec *where) { return call(c, buffers, where, NULL); }

size_t run_workspace(const Case *c)
{
    size_t size = 0;
    call(c, NULL, NULL, &size);
    return size;
}

/* ---- buffers ---- */

typedef enum Id {
    X, DY, GAMMA, BETA, RUNNING_MEAN_IN, RUNNING_VAR_IN, Y, MEAN, RSTD, MEAN_LO, RUNNING_MEAN_OUT, RUNNING_VAR_OUT, DX,
    DGAMMA, DBETA, RESIDUAL, ROW_SCALE, COL_SCALE, DSUM, SUM, DRESIDUAL, BIAS, FOLDED_BIAS, POINTED, OUTPUT,
    Y_SCALE, Y_AMAX, Y_ROW_SCALE, SCALE, SHIFT, DSCALE, DSHIFT, ID_COUNT
} Id;

static const char *const names[ID_COUNT] = { "x", "dy", "gamma", "beta", "running_mean_in", "running_var_in", "y", "mean",
                                             "rstd", "mean_lo", "running_mean_out", "running_var_out", "dx", "dgamma",
                                             "dbeta", "residual", "row_scale", "col_scale", "dsum", "sum",
                                             "dresidual", "bias", "folded_bias", "seed_ptr", "y", "y_scale", "y_amax",
                                             "y_row_scale", "scale", "shift", "dscale", "dshift" };

/* ---- the caller's floating-point mode ---- */

#ifdef __x86_64__
enum { FLUSH = 0x8040 }; /* MXCSR: flush to zero, denormals are zero */
#endif

static void set_fpmode(FpMode mode)
{
    static const int rounding[] = { [MODE_NEAREST] = FE_TONEAREST, [MODE_UP] = FE_UPWARD, [MODE_DOWN] = FE_DOWNWARD,
                                    [MODE_ZERO] = FE_TOWARDZERO, [MODE_FLUSH] = FE_TONEAREST };
    fesetround(rounding[mode]);
#ifdef __x86_64__
    _mm_setcsr((_mm_getcsr() & ~(unsigned)FLUSH) | (mode == MODE_FLUSH ? FLUSH : 0));
#endif
}

static unsigned get_fpmode(void)
{
    unsigned mode = (unsigned)fegetround();
#ifdef __x86_64__
    mode |= (_mm_getcsr() & (FLUSH | 0x6000)) << 16;
#endif
    return mode;
}

/* ---- one run ---- */

static bool is_frozen(const Case *c)
{
    Norm norm = op_norm(c->op);
    return op_is_backward(c->op) && (norm == BATCHNORM || norm == INSTANCENORM) && c->flags & WF_FROZEN;
}

/* The forward pass whose statistics a backward pass needs. */
static Case forward_of(const Case *c)
{
    static const Op forward[OP_COUNT] = {
        [LAYERNORM_BACKWARD] = LAYERNORM_FORWARD, [RMSNORM_BACKWARD] = RMSNORM_FORWARD,
        [GROUPNORM_BACKWARD] = GROUPNORM_FORWARD, [INSTANCENORM_BACKWARD] = INSTANCENORM_TRAIN,
        [BATCHNORM_BACKWARD] = BATCHNORM_TRAIN,
    };
    Case f = *c;
    f.op = is_frozen(c) ? (c->op == BATCHNORM_BACKWARD ? BATCHNORM_INFER : INSTANCENORM_INFER) : forward[c->op];
    f.flags = c->flags & WF_SUM_F32;
    f.null = c->null & (NULL_GAMMA | NULL_BETA);
    f.running = RUNNING_NONE;
    f.inplace = f.quantize = 0;
    if (case_ends(c) || case_modulates(c))
        f.add = c->add & (ADD_RESIDUAL | ADD_SCALE | ADD_SHIFT);
    if (case_adds(c))
        f.add = (c->add & (ADD_RESIDUAL | ADD_ROW_SCALE | ADD_COL_SCALE)) | ADD_SUM;
    return f;
}

static Id tensor_of(Output out)
{
    static const Id ids[] = { [OUT_Y] = Y, [OUT_MEAN] = MEAN, [OUT_MEAN_PAIR] = MEAN_LO, [OUT_RSTD] = RSTD,
                              [OUT_RUNNING_MEAN] = RUNNING_MEAN_OUT, [OUT_RUNNING_VAR] = RUNNING_VAR_OUT, [OUT_DX] = DX,
                              [OUT_DGAMMA] = DGAMMA, [OUT_DBETA] = DBETA,
                              [OUT_SUM] = SUM, [OUT_DRESIDUAL] = DRESIDUAL, [OUT_FOLDED_BIAS] = FOLDED_BIAS,
                              [OUT_AMAX] = Y_AMAX, [OUT_ROW_SCALE] = Y_ROW_SCALE, [OUT_DSCALE] = DSCALE,
                              [OUT_DSHIFT] = DSHIFT };
    return ids[out];
}

/* Statistics for a backward pass: its inputs MEAN, RSTD and MEAN_LO. */
static const char *feed_backward(const Case *c, const Problem *p, const char *variant, Tensor t[ID_COUNT],
                                 Quad **mean_given)
{
    const wf_dtype stat = stat_dtype(c->x);
    const bool centered = op_norm(c->op) != RMSNORM && !p->output, frozen = is_frozen(c);
    const Case f = forward_of(c);
    Raw stats[OUTPUT_COUNT] = { { 0 } };
    const char *error = run_once(&f, p, variant, stats, NULL);
    if (!error) {
        static const Output outs[] = { OUT_MEAN, OUT_MEAN_PAIR, OUT_RSTD };
        Quad *values[OUTPUT_COUNT] = { NULL };
        for (int i = 0; i < 3; i++)
            values[outs[i]] = stats[outs[i]].bytes ? raw_values(&stats[outs[i]]) : NULL;
        t[RSTD] = tensor_input(stat, 1, p->slots, 0, c->misalign, values[OUT_RSTD]);
        if (frozen)
            t[MEAN] = tensor_input(stat, 1, p->slots, 0, c->misalign, p->running_mean);
        else if (centered)
            t[MEAN] = tensor_input(stat, 1, p->slots, 0, c->misalign, values[OUT_MEAN]);
        if (!frozen && centered && !(c->null & NULL_MEAN_LO)) {
            t[MEAN_LO] = tensor_input(stat, 1, p->slots, 0, c->misalign, values[OUT_MEAN_PAIR]);
        } else if (!frozen && centered && mean_given) {
            *mean_given = values[OUT_MEAN];
            values[OUT_MEAN] = NULL;
        }
        for (int i = 0; i < 3; i++)
            free(values[outs[i]]);
        if (c->add & ADD_Y) {
            Quad *y = raw_values(&stats[OUT_Y]);
            t[Y] = tensor_input(c->x, 1, p->count, 0, c->misalign, y);
            free(y);
        }
    }
    raw_free(stats);
    return error;
}

/* A vector of values, if there are any. */
static void fill_input(const Case *c, wf_dtype dtype, int64_t n, const Quad *values, Tensor *t)
{
    if (values)
        *t = tensor_input(dtype, 1, n, 0, c->misalign, values);
}

/* What a norm of a sum has besides. Backward, sum, or y, is an input and x is not given. */
static void fill_addition(const Case *c, const Problem *p, Tensor t[ID_COUNT])
{
    const bool backward = op_is_backward(c->op), in_place = c->inplace & 2;
    const wf_dtype dtype = case_sum_dtype(c);
    const int64_t rows = c->rows, cols = c->cols;
    const int off = c->misalign;
    if (c->drop > 0 && c->seed & 1) { /* two words: their size is a double's */
        t[POINTED] = tensor_new(WF_F64, 1, 2, 0, 0);
        memcpy(t[POINTED].data, (const uint64_t[]){ c->seed, OFFSET_POINTED }, 2 * sizeof(uint64_t));
        t[POINTED].input = (char *)tensor_rows(&t[POINTED]);
    }
    fill_input(c, stat_dtype(c->x), p->slots, p->row_scale, &t[ROW_SCALE]);
    fill_input(c, c->w, p->params, p->col_scale, &t[COL_SCALE]);
    if (backward) {
        if (p->output)
            t[OUTPUT] = tensor_input(c->x, rows, cols, c->y_stride, off, p->output);
        else
            t[SUM] = tensor_input(dtype, rows, cols, c->sum_stride, off, p->x);
        fill_input(c, c->w, p->params, p->output ? p->beta : NULL, &t[BETA]);
        if (p->dsum)
            t[DSUM] = tensor_input(dtype, rows, cols, c->sum_stride, off, p->dsum);
        if (c->add & ADD_DRESIDUAL)
            t[DRESIDUAL] = in_place && p->dsum ? t[DSUM] : tensor_new(dtype, rows, cols, c->residual_stride, off);
        return;
    }
    t[X] = tensor_input(c->x, rows, cols, c->x_stride, off, p->branch);
    if (p->residual)
        t[RESIDUAL] = tensor_input(dtype, rows, cols, c->residual_stride, off, p->residual);
    if (c->add & ADD_SUM)
        t[SUM] = in_place && p->residual ? t[RESIDUAL] : tensor_new(dtype, rows, cols, c->sum_stride, off);
}

/* What a fold has besides. */
static void fill_fold(const Case *c, const Problem *p, Tensor t[ID_COUNT])
{
    const wf_dtype dtype = fold_bias_dtype(c);
    fill_input(c, dtype, p->biases, p->bias, &t[BIAS]);
    t[FOLDED_BIAS] = c->inplace & 2 && p->bias ? t[BIAS] : tensor_new(dtype, 1, p->biases, 0, c->misalign);
}

/* What a quantised y has besides. */
static void fill_quantization(const Case *c, Tensor t[ID_COUNT])
{
    if (c->quantize == WF_INT8) {
        t[Y_ROW_SCALE] = tensor_new(WF_F32, 1, c->rows, 0, c->misalign);
        return;
    }
    if (c->y_scale != 0)
        t[Y_SCALE] = tensor_input(WF_F32, 1, 1, 0, c->misalign, (const Quad[]){ c->y_scale });
    if (c->null & NULL_AMAX)
        return;
    t[Y_AMAX] = tensor_new(WF_F32, 1, 1, 0, c->misalign);
    tensor_put(&t[Y_AMAX], (const Quad[]){ c->amax });
}

/* What the channel norms' ending has besides. */
static void fill_ending(const Case *c, const Problem *p, Tensor t[ID_COUNT])
{
    fill_input(c, c->x, p->count, p->residual, &t[RESIDUAL]);
    if (c->add & ADD_DRESIDUAL)
        t[DRESIDUAL] = c->inplace & 2 ? t[DY] : tensor_new(c->x, 1, p->count, 0, c->misalign);
}

/* What a modulated norm has besides. */
static void fill_modulation(const Case *c, const Problem *p, Tensor t[ID_COUNT])
{
    fill_input(c, c->w, p->pairs, p->scale, &t[SCALE]);
    fill_input(c, c->w, p->pairs, p->shift, &t[SHIFT]);
    if (c->add & ADD_DSCALE)
        t[DSCALE] = tensor_new(c->w, 1, p->pairs, 0, c->misalign);
    if (c->add & ADD_DSHIFT)
        t[DSHIFT] = tensor_new(c->w, 1, p->pairs, 0, c->misalign);
}

/* All tensors of the case; those of a backward pass's statistics are there already. */
static void fill_tensors(const Case *c, const Problem *p, Tensor t[ID_COUNT])
{
    const Norm norm = op_norm(c->op);
    const bool row_wise = norm == LAYERNORM || norm == RMSNORM || norm == FOLD, centered = norm != RMSNORM && norm != FOLD;
    const bool infer = op_is_infer(c->op) || c->op == FOLD_BATCHNORM, backward = op_is_backward(c->op);
    const int64_t rows = row_wise ? c->rows : 1, cols = row_wise ? c->cols : p->count;
    const wf_dtype stat = stat_dtype(c->x);
    const int off = c->misalign;
    const int64_t y_stride = row_wise ? c->y_stride : 0, x_stride = row_wise ? c->x_stride : 0;
    const int64_t dy_stride = row_wise && c->dy_stride ? c->dy_stride : y_stride;
    const int64_t dx_stride = row_wise && c->dx_stride ? c->dx_stride : x_stride;
    const uint32_t null = c->null;

    if (case_adds(c))
        fill_addition(c, p, t);
    else
        t[X] = tensor_input(c->x, rows, cols, x_stride, off, p->x);
    fill_input(c, c->w, p->params, p->gamma, &t[GAMMA]);
    if (!backward || case_ends(c) || case_modulates(c))
        fill_input(c, c->w, p->params, p->beta, &t[BETA]);
    if (backward) {
        t[DY] = tensor_input(c->x, rows, cols, dy_stride, off, p->dy);
        if (!(null & NULL_DX))
            t[DX] = c->inplace & 1 ? t[DY] : tensor_new(c->x, rows, cols, dx_stride, off);
        if (!(null & NULL_DGAMMA))
            t[DGAMMA] = tensor_new(c->w, 1, p->params, 0, off);
        if (!(null & NULL_DBETA) && centered)
            t[DBETA] = tensor_new(c->w, 1, p->params, 0, off);
        if (c->flags & WF_ACCUMULATE && t[DGAMMA].data)
            tensor_put(&t[DGAMMA], p->old_dgamma);
        if (c->flags & WF_ACCUMULATE && t[DBETA].data)
            tensor_put(&t[DBETA], p->old_dbeta);
    } else {
        t[Y] = c->inplace & 1 ? t[X] : tensor_new(case_y_dtype(c), rows, cols, y_stride, off);
        if (c->quantize)
            fill_quantization(c, t);
        if (norm == FOLD)
            fill_fold(c, p, t);
        if (!(null & NULL_RSTD) && norm != FOLD)
            t[RSTD] = tensor_new(stat, 1, p->slots, 0, off);
        if (!(null & NULL_MEAN) && centered && !infer)
            t[MEAN] = tensor_new(stat, 1, p->slots, 0, off);
        if (!(null & NULL_MEAN_LO) && centered && !infer)
            t[MEAN_LO] = tensor_new(stat, 1, p->slots, 0, off);
        if (infer || c->running) {
            t[RUNNING_MEAN_IN] = tensor_input(stat, 1, p->params, 0, off, p->running_mean);
            t[RUNNING_VAR_IN] = tensor_input(stat, 1, p->params, 0, off, p->running_var);
        }
        if (!infer && c->running) {
            bool in_place = c->running == RUNNING_IN_PLACE;
            t[RUNNING_MEAN_OUT] = in_place ? t[RUNNING_MEAN_IN] : tensor_new(stat, 1, p->params, 0, off);
            t[RUNNING_VAR_OUT] = in_place ? t[RUNNING_VAR_IN] : tensor_new(stat, 1, p->params, 0, off);
        }
    }
    if (case_modulates(c))
        fill_modulation(c, p, t);
    if (case_ends(c))
        fill_ending(c, p, t);
    /* An output in place borrows its input's memory; the input has nothing to keep then. */
    static const Id pairs[][2] = { { X, Y }, { DY, DX }, { RUNNING_MEAN_IN, RUNNING_MEAN_OUT },
                                   { RUNNING_VAR_IN, RUNNING_VAR_OUT }, { RESIDUAL, SUM }, { DSUM, DRESIDUAL },
                                   { DY, DRESIDUAL }, { BIAS, FOLDED_BIAS } };
    for (int i = 0; i < 8; i++) {
        Tensor *in = &t[pairs[i][0]], *out = &t[pairs[i][1]];
        if (!in->data || in->data != out->data)
            continue;
        free(in->input);
        in->input = out->input = NULL;
        out->borrowed = true;
        out->mapped = 0;
    }
}

/* ---- copies on the device ---- */

/* at[i]: where tensor i is for the call. An output in place is where its input is. */
static void to_device(const Tensor t[ID_COUNT], void *at[ID_COUNT])
{
    for (int i = 0; i < ID_COUNT; i++)
        at[i] = t[i].data && !t[i].borrowed ? device_new(t[i].data, tensor_size(&t[i])) : NULL;
    for (int i = 0; i < ID_COUNT; i++)
        for (int j = 0; t[i].borrowed && j < ID_COUNT; j++)
            if (t[j].data == t[i].data && !t[j].borrowed)
                at[i] = at[j];
}

static const char *from_device(const Case *c, const Tensor t[ID_COUNT], void *at[ID_COUNT])
{
    const char *error = NULL;
    for (int i = 0; i < ID_COUNT; i++)
        if (at[i] && !t[i].borrowed && !device_take(at[i], t[i].data, tensor_size(&t[i])))
            error = failure(c, "%s: bytes around it were written on the device", names[i]);
    return error;
}

const char *run_once(const Case *c, const Problem *p, const char *variant, Raw out[OUTPUT_COUNT], Quad **mean_given)
{
    Tensor t[ID_COUNT] = { { 0 } };
    const char *error = NULL;
    memset(out, 0, OUTPUT_COUNT * sizeof *out);
    if (op_is_backward(c->op))
        error = feed_backward(c, p, c->backend == WF_CUDA ? NULL : variant, t, mean_given);
    if (error)
        goto done;
    fill_tensors(c, p, t);

    size_t workspace_size = run_workspace(c);
    void *workspace = guard_alloc(workspace_size, 1);
    int threads = c->pool;
#ifdef __SANITIZE_THREAD__
    threads = threads ? threads : 3; /* without OpenMP only a pool has threads to watch */
#endif
    pool *workers = threads ? pool_new(threads - 1, (pool_order)(c->seed % POOL_ORDERS)) : NULL;
    wf_exec where = { .size = sizeof where, .backend = c->backend, .workspace = workspace, .workspace_size = workspace_size,
                      .threads = c->threads, .variant = variant, .parallel_for = workers ? pool_parallel_for : NULL,
                      .pool = workers };
    void *at[ID_COUNT];
    for (int i = 0; i < ID_COUNT; i++)
        at[i] = t[i].data;
    if (c->backend == WF_CUDA) {
        to_device(t, at);
        where.workspace = device_scratch(workspace, workspace_size);
    }
    Buffers b = { at[X], at[DY], at[GAMMA], at[BETA], at[RUNNING_MEAN_IN], at[RUNNING_VAR_IN], at[Y], at[MEAN], at[RSTD],
                  at[MEAN_LO], at[RUNNING_MEAN_OUT], at[RUNNING_VAR_OUT], at[DX], at[DGAMMA], at[DBETA], at[RESIDUAL],
                  at[ROW_SCALE], at[COL_SCALE], at[DSUM], at[SUM], at[DRESIDUAL], at[BIAS], at[FOLDED_BIAS],
                  at[POINTED], at[OUTPUT], at[Y_SCALE], at[Y_AMAX], at[Y_ROW_SCALE], at[SCALE],
                  at[SHIFT], at[DSCALE], at[DSHIFT] };
    set_fpmode(c->fpmode);
    unsigned mode_before = get_fpmode();
    wf_status status = run_call(c, &b, &where);
    unsigned mode_after = get_fpmode();
    set_fpmode(MODE_NEAREST);
    if (workers)
        pool_free(workers);
    if (c->backend == WF_CUDA) {
        error = from_device(c, t, at);
        if (!device_drop(where.workspace, workspace, workspace_size))
            error = failure(c, "bytes around the workspace of %zu bytes were written on the device", workspace_size);
    }

    if (error)
        ;
    else if (status == WF_UNSUPPORTED)
        error = run_unsupported;
    else if (status != WF_OK)
        error = failure(c, "%s: %s", wf_status_string(status), wf_error_detail());
    else if (mode_before != mode_after)
        error = failure(c, "the caller's floating-point mode was %#x, is %#x", mode_before, mode_after);
    else if (!guard_check(workspace))
        error = failure(c, "bytes around the workspace of %zu bytes were written", workspace_size);
    guard_free(workspace);
    for (int i = 0; i < ID_COUNT && !error; i++) {
        const char *damage = tensor_damage(&t[i]);
        if (damage)
            error = failure(c, "%s: %s was written (variant %s)", names[i], damage, variant ? variant : "of choice");
    }
    const bool backward = op_is_backward(c->op);
    for (Output i = 0; i < OUTPUT_COUNT && !error; i++) {
        const Tensor *from = &t[tensor_of(i)];
        if (from->data && !(backward && (i <= OUT_RUNNING_VAR || i == OUT_SUM)))
            out[i] = (Raw){ from->dtype, from->rows * from->cols, tensor_rows(from) };
    }
done:
    for (int i = 0; i < ID_COUNT; i++)
        tensor_free(&t[i]);
    return error;
}

void raw_free(Raw out[OUTPUT_COUNT])
{
    for (int i = 0; i < OUTPUT_COUNT; i++)
        free(out[i].bytes);
}

Quad *raw_values(const Raw *raw)
{
    Quad *values = malloc((size_t)(raw->count + 1) * sizeof *values);
    for (int64_t i = 0; i < raw->count; i++)
        values[i] = dtype_load(raw->dtype, raw->bytes, i);
    return values;
}

/* ---- judging ---- */

const char *raw_differs(const Case *c, const Raw a[OUTPUT_COUNT], const Raw b[OUTPUT_COUNT], const char *what)
{
    for (Output out = 0; out < OUTPUT_COUNT; out++) {
        if (!a[out].bytes || !b[out].bytes)
            continue;
        size_t size = dtype_size(a[out].dtype);
        if (!memcmp(a[out].bytes, b[out].bytes, (size_t)a[out].count * size))
            continue;
        for (int64_t i = 0; i < a[out].count; i++) {
            if (!memcmp(a[out].bytes + (size_t)i * size, b[out].bytes + (size_t)i * size, size))
                continue;
            double x = dtype_load(a[out].dtype, a[out].bytes, i), y = dtype_load(b[out].dtype, b[out].bytes, i);
            if (!(isnan(x) && isnan(y)))
                return failure(c, "%s[%lld] = %.17g, but %.17g %s", output_name(out), (long long)i, x, y, what);
        }
    }
    return NULL;
}

static const char *judge(const Case *c, const Raw raw[OUTPUT_COUNT], Expected expected[OUTPUT_COUNT],
                         Comparison results[OUTPUT_COUNT])
{
    const char *error = NULL;
    for (Output out = 0; out < OUTPUT_COUNT && !error; out++) {
        if (!raw[out].bytes || (out == OUT_MEAN_PAIR && !raw[OUT_MEAN].bytes))
            continue;
        if (raw[out].count != expected[out].count)
            return failure(c, "%s: the oracle has %lld values", output_name(out), (long long)expected[out].count);
        Quad *got = raw_values(&raw[out]);
        if (out == OUT_MEAN_PAIR)
            for (int64_t i = 0; i < raw[out].count; i++)
                got[i] += dtype_load(raw[OUT_MEAN].dtype, raw[OUT_MEAN].bytes, i);
        error = compare(c, out, &expected[out], got, &results[out]);
        free(got);
    }
    return error;
}

/* What fails names the variant in the case's line. */
static const char *judge_variant(const Case *c, const char *variant, const Raw raw[OUTPUT_COUNT],
                                 Expected expected[OUTPUT_COUNT])
{
    Comparison unused[OUTPUT_COUNT];
    Case named = *c;
    snprintf(named.variant, sizeof named.variant, "%s", variant);
    return judge(&named, raw, expected, unused);
}

const char *run_case(const Case *c, Comparison results[OUTPUT_COUNT])
{
    Comparison unused[OUTPUT_COUNT];
    Problem *p = op_norm(c->op) == DROPOUT ? NULL : problem_new(c);
    if (!p)
        return failure(c, "not a case of a norm");
    Raw reference[OUTPUT_COUNT];
    Expected expected[OUTPUT_COUNT];
    Quad *mean_given = NULL;
    bool solved = false;
    const bool named = c->variant[0];
    const char *error = run_once(c, p, named ? c->variant : NULL, reference, &mean_given);
    if (!error) {
        oracle_solve(p, mean_given, expected);
        error = judge(c, reference, expected, results ? results : unused);
        solved = true;
    } else if (error == run_unsupported) {
        error = failure(c, "unsupported: %s", wf_error_detail());
    }
    const char *variant;
    for (int i = 0; !error && !named && (variant = wf_variant(op_name(c->op), c->backend, i)); i++) {
        Raw other[OUTPUT_COUNT];
        error = run_once(c, p, variant, other, NULL);
        if (!error)
            error = c->backend == WF_CPU ? raw_differs(c, reference, other, variant) : judge_variant(c, variant, other, expected);
        else if (error == run_unsupported)
            error = NULL;
        raw_free(other);
    }
    if (solved)
        oracle_free(expected);
    raw_free(reference);
    free(mean_given);
    problem_free(p);
    return error;
}

const char *run_same_bits(const Case *a, const Case *b, const char *what)
{
    Problem *p = problem_new(a), *q = problem_new(b);
    Raw x[OUTPUT_COUNT], y[OUTPUT_COUNT] = { { 0 } };
    const char *error = run_once(a, p, a->variant[0] ? a->variant : NULL, x, NULL);
    if (!error)
        error = run_once(b, q, b->variant[0] ? b->variant : NULL, y, NULL);
    if (!error)
        error = raw_differs(b, x, y, what);
    raw_free(x);
    raw_free(y);
    problem_free(p);
    problem_free(q);
    return error;
}
