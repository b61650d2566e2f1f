/* fuzz_model.c - the operations as tables, and the header's rules on which calls must be refused, written from the
 * header and independent of the library's own checks: overlaps, for instance, are found byte by byte. */
#include "fuzz.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "untyped.h"

/* ---- the operations ---- */

#define DRAWING(operation, args, what, norm, direction, seed_word, sums, fields)                                     \
    #operation, norm, direction, sizeof(what), sizeof(args), call_##operation, workspace_##operation, seed_word, sums, fields
#define OPERATION(operation, args, what, norm, direction, fields) \
    DRAWING(operation, args, what, norm, direction, 0, false, fields)

/* clang-format off */
#define NORM_FORWARD { "x", X, false, true, -1, 1 }, { "gamma", WEIGHT, false, false, -1, 2 }, \
                     { "beta", WEIGHT, false, false, -1, 3 }
#define NORM_BACKWARD { { "dy", DY, false, true, -1, 1 }, { "x", X, false, true, -1, 2 }, \
                        { "gamma", WEIGHT, false, false, -1, 3 }, { "mean", STATISTIC, false, true, -1, 4 }, \
                        { "rstd", STATISTIC, false, true, -1, 5 }, { "mean_lo", STATISTIC, false, false, -1, 6 }, \
                        { "dx", DX, true, false, 0, 7 }, { "dgamma", WEIGHT, true, false, -1, 8 }, \
                        { "dbeta", WEIGHT, true, false, -1, 9 } }
#define STATISTICS_OUT { "y", Y, true, true, 0, 4 }, { "mean", STATISTIC, true, false, -1, 5 }, \
                       { "rstd", STATISTIC, true, false, -1, 6 }, { "mean_lo", STATISTIC, true, false, -1, 7 }
#define TRAIN { NORM_FORWARD, { "running_mean_in", CHANNEL, false, false, -1, 4 }, \
                { "running_var_in", CHANNEL, false, false, -1, 5 }, \
                { "running_mean_out", CHANNEL, true, false, 3, 6 }, \
                { "running_var_out", CHANNEL, true, false, 4, 7 }, { "y", Y, true, true, 0, 8 }, \
                { "mean", STATISTIC, true, false, -1, 9 }, { "rstd", STATISTIC, true, false, -1, 10 }, \
                { "mean_lo", STATISTIC, true, false, -1, 11 } }
#define INFERENCE { NORM_FORWARD, { "running_mean", CHANNEL, false, true, -1, 4 }, \
                    { "running_var", CHANNEL, false, true, -1, 5 }, { "y", Y, true, true, 0, 6 }, \
                    { "rstd", CHANNEL, true, false, -1, 7 } }
#define DROPOUT_FIELDS { { "x", X, false, true, -1, 1 }, { "y", Y, true, true, 0, 2 }, \
                         { "mask", MASK, true, false, -1, 3 }, { "seed_ptr", WORD, false, false, -1, 6 }, \
                         { "offset_ptr", WORD, false, false, -1, 7 } }
#define FOLD_INPUTS { "weight", X, false, true, -1, 1 }, { "bias", BIAS, false, false, -1, 2 }, \
                    { "gamma", WEIGHT, false, false, -1, 3 }, { "beta", WEIGHT, false, false, -1, 4 }
/* Of the norm of a sum; word: where row_scale is. */
#define SCALES(word) { "row_scale", STATISTIC, false, false, -1, word }, { "col_scale", WEIGHT, false, false, -1, word + 1 }, \
                     { "seed_ptr", WORD, false, false, -1, word + 4 }, { "offset_ptr", WORD, false, false, -1, word + 5 }
#define ADDITION(field, word) { "residual", RESIDUAL, false, false, -1, word }, \
                              { "sum", SUM, true, false, field, word + 1 }, SCALES(word + 2)
#define GRADIENTS(field, word) { "dsum", SUM, false, false, -1, word }, \
                               { "dresidual", RESIDUAL, true, false, field, word + 1 }, SCALES(word + 2)

const Operation operations[] = {
    { OPERATION(layernorm_forward, wf_layernorm_forward_args, wf_layernorm, LAYERNORM, FORWARD, 7),
      { NORM_FORWARD, STATISTICS_OUT } },
    { OPERATION(layernorm_backward, wf_layernorm_backward_args, wf_layernorm, LAYERNORM, BACKWARD, 9), NORM_BACKWARD },
    { OPERATION(rmsnorm_forward, wf_rmsnorm_forward_args, wf_rmsnorm, RMSNORM, FORWARD, 4),
      { { "x", X, false, true, -1, 1 }, { "gamma", WEIGHT, false, false, -1, 2 }, { "y", Y, true, true, 0, 3 },
        { "rrms", STATISTIC, true, false, -1, 4 } } },
    { OPERATION(rmsnorm_backward, wf_rmsnorm_backward_args, wf_rmsnorm, RMSNORM, BACKWARD, 6),
      { { "dy", DY, false, true, -1, 1 }, { "x", X, false, true, -1, 2 }, { "gamma", WEIGHT, false, false, -1, 3 },
        { "rrms", STATISTIC, false, true, -1, 4 }, { "dx", DX, true, false, 0, 5 },
        { "dgamma", WEIGHT, true, false, -1, 6 } } },
    { OPERATION(groupnorm_forward, wf_groupnorm_forward_args, wf_groupnorm, GROUPNORM, FORWARD, 7),
      { NORM_FORWARD, STATISTICS_OUT } },
    { OPERATION(groupnorm_backward, wf_groupnorm_backward_args, wf_groupnorm, GROUPNORM, BACKWARD, 9), NORM_BACKWARD },
    { OPERATION(batchnorm_train, wf_batchnorm_train_args, wf_batchnorm, BATCHNORM, FORWARD, 11), TRAIN },
    { OPERATION(batchnorm_infer, wf_batchnorm_infer_args, wf_batchnorm, BATCHNORM, INFER, 7), INFERENCE },
    { OPERATION(batchnorm_backward, wf_batchnorm_backward_args, wf_batchnorm, BATCHNORM, BACKWARD, 9), NORM_BACKWARD },
    { OPERATION(instancenorm_train, wf_instancenorm_train_args, wf_instancenorm, INSTANCENORM, FORWARD, 11), TRAIN },
    { OPERATION(instancenorm_infer, wf_instancenorm_infer_args, wf_instancenorm, INSTANCENORM, INFER, 7), INFERENCE },
    { OPERATION(instancenorm_backward, wf_instancenorm_backward_args, wf_instancenorm, INSTANCENORM, BACKWARD, 9),
      NORM_BACKWARD },
    { DRAWING(dropout_forward, wf_dropout_args, wf_dropout, DROPOUT, FORWARD, 4, false, 5), DROPOUT_FIELDS },
    { DRAWING(dropout_backward, wf_dropout_args, wf_dropout, DROPOUT, BACKWARD, 4, false, 5), DROPOUT_FIELDS },
    { DRAWING(layernorm_forward, wf_layernorm_forward_args, wf_layernorm, LAYERNORM, FORWARD, 12, true, 13),
      { NORM_FORWARD, STATISTICS_OUT, ADDITION(7, 8) } },
    { DRAWING(layernorm_backward, wf_layernorm_backward_args, wf_layernorm, LAYERNORM, BACKWARD, 15, true, 15),
      { { "dy", DY, false, true, -1, 1 }, { "sum", SUM, false, true, -1, 10 }, { "gamma", WEIGHT, false, false, -1, 3 },
        { "mean", STATISTIC, false, true, -1, 4 }, { "rstd", STATISTIC, false, true, -1, 5 },
        { "mean_lo", STATISTIC, false, false, -1, 6 }, { "dx", DX, true, false, 0, 7 },
        { "dgamma", WEIGHT, true, false, -1, 8 }, { "dbeta", WEIGHT, true, false, -1, 9 }, GRADIENTS(9, 11) } },
    { DRAWING(rmsnorm_forward, wf_rmsnorm_forward_args, wf_rmsnorm, RMSNORM, FORWARD, 9, true, 10),
      { { "x", X, false, true, -1, 1 }, { "gamma", WEIGHT, false, false, -1, 2 }, { "y", Y, true, true, 0, 3 },
        { "rrms", STATISTIC, true, false, -1, 4 }, ADDITION(4, 5) } },
    { DRAWING(rmsnorm_backward, wf_rmsnorm_backward_args, wf_rmsnorm, RMSNORM, BACKWARD, 12, true, 12),
      { { "dy", DY, false, true, -1, 1 }, { "sum", SUM, false, true, -1, 7 }, { "gamma", WEIGHT, false, false, -1, 3 },
        { "rrms", STATISTIC, false, true, -1, 4 }, { "dx", DX, true, false, 0, 5 },
        { "dgamma", WEIGHT, true, false, -1, 6 }, GRADIENTS(6, 8) } },
    { OPERATION(fold_batchnorm, wf_fold_args, wf_fold, FOLD, INFER, 8),
      { FOLD_INPUTS, { "mean", CHANNEL, false, true, -1, 5 }, { "var", CHANNEL, false, true, -1, 6 },
        { "folded_weight", Y, true, true, 0, 7 }, { "folded_bias", BIAS, true, true, 1, 8 } } },
    { OPERATION(fold_layernorm, wf_fold_args, wf_fold, FOLD, INFER, 6),
      { FOLD_INPUTS, { "folded_weight", Y, true, true, 0, 7 }, { "folded_bias", BIAS, true, false, 1, 8 } } },
};
const int operation_count = sizeof operations / sizeof *operations;

/* ---- what structs ---- */

typedef struct Member { size_t from, to, size; } Member;
#define MEMBER(type, member, of_what) \
    { offsetof(type, member), offsetof(What, of_what), sizeof ((type *)NULL)->member }
#define ROW_MEMBERS(type) \
    MEMBER(type, x_dtype, x_dtype), MEMBER(type, w_dtype, w_dtype), MEMBER(type, flags, flags), \
    MEMBER(type, reserved, reserved), MEMBER(type, rows, n), MEMBER(type, cols, c), MEMBER(type, x_stride, x_stride), \
    MEMBER(type, y_stride, y_stride), MEMBER(type, dx_stride, dx_stride), MEMBER(type, dy_stride, dy_stride), \
    MEMBER(type, eps, eps), MEMBER(type, p, drop), MEMBER(type, residual_stride, residual_stride), \
    MEMBER(type, sum_stride, sum_stride)
#define CHANNEL_MEMBERS(type) \
    MEMBER(type, x_dtype, x_dtype), MEMBER(type, layout, layout), MEMBER(type, flags, flags), \
    MEMBER(type, n, n), MEMBER(type, c, c), MEMBER(type, hw, hw)
enum { MOST_MEMBERS = 15 };
static const Member members[][MOST_MEMBERS] = {
    [LAYERNORM] = { ROW_MEMBERS(wf_layernorm) },
    [RMSNORM] = { ROW_MEMBERS(wf_rmsnorm), MEMBER(wf_rmsnorm, weight_offset, extra) },
    [GROUPNORM] = { CHANNEL_MEMBERS(wf_groupnorm), MEMBER(wf_groupnorm, w_dtype, w_dtype),
                         MEMBER(wf_groupnorm, groups, groups), MEMBER(wf_groupnorm, eps, eps) },
    [BATCHNORM] = { CHANNEL_MEMBERS(wf_batchnorm), MEMBER(wf_batchnorm, w_dtype, w_dtype),
                         MEMBER(wf_batchnorm, eps, eps), MEMBER(wf_batchnorm, momentum, extra) },
    [INSTANCENORM] = { CHANNEL_MEMBERS(wf_instancenorm), MEMBER(wf_instancenorm, w_dtype, w_dtype),
                            MEMBER(wf_instancenorm, eps, eps), MEMBER(wf_instancenorm, momentum, extra) },
    [DROPOUT] = { CHANNEL_MEMBERS(wf_dropout), MEMBER(wf_dropout, kind, kind), MEMBER(wf_dropout, p, extra) },
    [FOLD] = { MEMBER(wf_fold, x_dtype, x_dtype), MEMBER(wf_fold, w_dtype, w_dtype), MEMBER(wf_fold, flags, flags),
               MEMBER(wf_fold, reserved, reserved), MEMBER(wf_fold, rows, n), MEMBER(wf_fold, cols, c),
               MEMBER(wf_fold, x_stride, x_stride), MEMBER(wf_fold, y_stride, y_stride), MEMBER(wf_fold, channels, groups),
               MEMBER(wf_fold, eps, eps), MEMBER(wf_fold, weight_offset, extra) },
};
/* clang-format on */

void what_encode(const Operation *op, const What *what, void *image)
{
    memset(image, 0, op->what_size);
    memcpy(image, &op->what_size, sizeof op->what_size);
    for (const Member *m = members[op->norm]; m < members[op->norm] + MOST_MEMBERS && m->size > 0; m++)
        memcpy((char *)image + m->from, (const char *)what + m->to, m->size);
}

void what_decode(const Operation *op, const void *image, What *what)
{
    *what = (What){ .n = 0 };
    for (const Member *m = members[op->norm]; m < members[op->norm] + MOST_MEMBERS && m->size > 0; m++)
        memcpy((char *)what + m->to, (const char *)image + m->from, m->size);
}

/* ---- shapes ---- */

bool is_rows(Norm norm)
{
    return norm == LAYERNORM || norm == RMSNORM || norm == FOLD;
}

size_t element_size(int dtype)
{
    static const size_t sizes[] = { [WF_F32] = 4, [WF_F16] = 2, [WF_BF16] = 2, [WF_F64] = 8 };
    return dtype >= 0 && dtype <= WF_F64 ? sizes[dtype] : 0;
}

int statistics_dtype(int x_dtype)
{
    return x_dtype == WF_F64 ? WF_F64 : WF_F32;
}

int64_t statistics_count(const Operation *op, const What *w)
{
    switch (op->norm) {
    case GROUPNORM:
        return w->n * w->groups;
    case BATCHNORM:
        return w->c;
    case INSTANCENORM:
        return op->direction == INFER || (op->direction == BACKWARD && w->flags & WF_FROZEN) ? w->c : w->n * w->c;
    default:
        return w->n;
    }
}

static bool folds_output(const Operation *op)
{
    return strcmp(op->name, "fold_batchnorm") == 0;
}

int64_t divided(const Operation *op, const What *w)
{
    return folds_output(op) ? w->n : w->c;
}

/* Of gamma and beta. */
static int64_t parameters(const Operation *op, const What *w)
{
    return op->norm != FOLD ? w->c : w->groups ? w->groups : divided(op, w);
}

static int64_t stride_of(const What *w, Role role)
{
    if (role == RESIDUAL || role == SUM)
        return role == SUM && w->sum_stride ? w->sum_stride : role == RESIDUAL && w->residual_stride ? w->residual_stride : w->c;
    const int64_t x = w->x_stride ? w->x_stride : w->c, y = w->y_stride ? w->y_stride : w->c;
    const int64_t dx = w->dx_stride ? w->dx_stride : x, dy = w->dy_stride ? w->dy_stride : y;
    return role == X ? x : role == Y ? y : role == DX ? dx : dy;
}

Buffer buffer_of(const Call *call, int field)
{
    const What *w = &call->what;
    const int   statistic = statistics_dtype(w->x_dtype);
    Buffer      b = { .dtype = w->x_dtype, .rows = 1 };
    switch (call->op->field[field].role) {
    case WEIGHT:
        b.dtype = w->w_dtype;
        b.cols = parameters(call->op, w);
        break;
    case BIAS:
        b.dtype = w->flags & WF_BIAS_F32 ? WF_F32 : w->x_dtype;
        b.cols = folds_output(call->op) ? parameters(call->op, w) : w->n;
        break;
    case STATISTIC:
        b.dtype = statistic;
        b.cols = statistics_count(call->op, w);
        break;
    case CHANNEL:
        b.dtype = statistic;
        b.cols = parameters(call->op, w);
        break;
    case MASK:
        b.dtype = -1;
        b.cols = ((w->flags & WF_FEATURES ? w->n * w->c : w->n * w->c * w->hw) + 7) / 8;
        break;
    case WORD:
        b.dtype = -1;
        b.cols = 1;
        break;
    default:
        if (is_rows(call->op->norm)) {
            b.rows = w->n;
            b.cols = w->c;
            b.stride = stride_of(w, call->op->field[field].role);
        } else {
            b.cols = w->n * w->c * w->hw;
        }
    }
    const Role role = call->op->field[field].role;
    if ((role == RESIDUAL || role == SUM) && w->flags & WF_SUM_F32)
        b.dtype = WF_F32;
    b.element = role == MASK ? 1 : role == WORD ? 8 : element_size(b.dtype);
    if (b.rows == 1 || b.cols == 0)
        b.stride = b.stride ? b.stride : b.cols;
    return b;
}

/* ---- what ---- */

typedef enum Verdict { GOOD, UNCLEAR, BAD } Verdict; /* UNCLEAR: the header leaves it open */

static Verdict worse(Verdict a, Verdict b)
{
    return a > b ? a : b;
}

static Verdict bad_if(bool condition)
{
    return condition ? BAD : GOOD;
}

/* The product of sizes, zeros left out: [c] buffers exist where n = 0. 2^63 bytes cannot be had; 2^58 elements can be
 * described, and between the two a refusal is as good as an acceptance. */
static Verdict too_large(double product)
{
    return product >= 0x1p63 ? BAD : product >= 0x1p57 ? UNCLEAR : GOOD;
}

static double nonzero(int64_t size)
{
    return size > 0 ? (double)size : 1;
}

static bool is_training(const Operation *op, const What *w)
{
    return op->direction == FORWARD || (op->direction == BACKWARD && !(w->flags & WF_FROZEN));
}

static bool is_empty(const Operation *op, const What *w)
{
    return w->n == 0 || w->c == 0 || (!is_rows(op->norm) && w->hw == 0);
}

#define STRIDES(w) { w->x_stride, w->y_stride, w->dx_stride, w->dy_stride, w->residual_stride, w->sum_stride }
enum { STRIDE_COUNT = 6 };

static Verdict judge_rows(const What *w)
{
    const int64_t strides[STRIDE_COUNT] = STRIDES(w);
    Verdict       v = too_large(nonzero(w->n) * nonzero(w->c));
    for (int i = 0; i < STRIDE_COUNT; i++)
        v = worse(v, worse(bad_if(strides[i] != 0 && strides[i] < w->c),
                           too_large(nonzero(w->n) * nonzero(strides[i]))));
    v = worse(v, bad_if(!(w->drop >= 0 && w->drop <= 1)));
    return worse(v, bad_if(w->reserved != 0 || (w->flags & WF_SUM_F32 && w->x_dtype == WF_F64)));
}

static Verdict judge_fold(const Operation *op, const What *w)
{
    const int64_t all = divided(op, w);
    const bool    divides = w->groups == 0 || (w->groups > 0 && w->groups <= all && all % w->groups == 0);
    return bad_if(!divides || !isfinite(w->extra) || (w->flags & WF_BIAS_F32 && w->x_dtype == WF_F64));
}

static Verdict judge_channels(const Operation *op, const What *w)
{
    /* A product that is too large only with its zeros left out: n = 0 of something enormous. */
    const double product = nonzero(w->n) * nonzero(w->c) * nonzero(w->hw);
    Verdict      v = worse(bad_if(w->layout != WF_NCHW && w->layout != WF_NHWC), too_large(product));
    if (is_empty(op, w) && v == BAD && product >= 0x1p63 && (w->layout == WF_NCHW || w->layout == WF_NHWC))
        v = UNCLEAR;
    if (op->norm == GROUPNORM)
        v = worse(v, worse(bad_if(w->groups <= 0 || w->c % w->groups != 0),
                           too_large(nonzero(w->n) * nonzero(w->groups))));
    if (op->norm == BATCHNORM || op->norm == INSTANCENORM) {
        const bool one = w->hw == 1 && (op->norm == INSTANCENORM || w->n == 1);
        v = worse(v, bad_if(one && is_training(op, w) && !is_empty(op, w)));
    }
    return v;
}

static Verdict judge_what(const Operation *op, const What *w)
{
    static const uint32_t flags[] = {
        [LAYERNORM] = WF_ACCUMULATE | WF_SUM_F32,
        [RMSNORM] = WF_ACCUMULATE | WF_SUM_F32,
        [GROUPNORM] = WF_ACCUMULATE,
        [BATCHNORM] = WF_ACCUMULATE | WF_FROZEN | WF_BIASED,
        [INSTANCENORM] = WF_ACCUMULATE | WF_FROZEN | WF_BIASED,
        [DROPOUT] = WF_FEATURES | WF_GIVEN_MASK,
        [FOLD] = WF_BIAS_F32,
    };
    Verdict v = bad_if(element_size(w->x_dtype) == 0 || (op->norm != DROPOUT && element_size(w->w_dtype) == 0));
    v = worse(v, bad_if(w->flags & ~flags[op->norm]));
    v = worse(v, bad_if(w->n < 0 || w->c < 0 || w->hw < 0));
    if (v == BAD)
        return BAD;
    v = worse(v, is_rows(op->norm) ? judge_rows(w) : judge_channels(op, w));
    if (op->norm != DROPOUT)
        v = worse(v, bad_if(!(w->eps >= 0) || isinf(w->eps)));
    if (op->norm == RMSNORM)
        v = worse(v, bad_if(!isfinite(w->extra)));
    if (op->norm == FOLD)
        v = worse(v, judge_fold(op, w));
    if (op->norm == DROPOUT)
        v = worse(v, bad_if(!(w->extra >= 0 && w->extra <= 1) ||
                            (w->kind != WF_DROPOUT && w->kind != WF_ALPHA_DROPOUT)));
    if ((op->norm == BATCHNORM || op->norm == INSTANCENORM) && !(w->extra >= 0 && w->extra <= 1))
        v = worse(v, op->direction == FORWARD ? BAD : UNCLEAR); /* the other directions have no use for a momentum */
    return v;
}

bool is_small(const Operation *op, const What *w)
{
    const double limit = MAX_ELEMENTS;
    if (element_size(w->x_dtype) == 0 || (op->norm != DROPOUT && element_size(w->w_dtype) == 0) || w->n < 0 || w->c < 0)
        return false;
    if (nonzero(w->n) * nonzero(w->c) > limit)
        return false;
    if (op->norm == FOLD && (w->groups < 0 || (double)w->groups > limit))
        return false;
    if (is_rows(op->norm)) {
        const int64_t strides[STRIDE_COUNT] = STRIDES(w);
        for (int i = 0; i < STRIDE_COUNT; i++)
            if (strides[i] < 0 || nonzero(w->n) * nonzero(strides[i]) > limit)
                return false;
        return true;
    }
    if (op->norm == GROUPNORM && (w->groups <= 0 || nonzero(w->n) * nonzero(w->groups) > limit))
        return false;
    return w->hw >= 0 && nonzero(w->n) * nonzero(w->c) * nonzero(w->hw) <= limit;
}

/* ---- structs and where ---- */

static bool bad_struct(const void *at, size_t known)
{
    size_t size;
    if (at == NULL)
        return true;
    memcpy(&size, at, sizeof size);
    if (size < 16)
        return true;
    for (size_t i = known; i < size; i++)
        if (((const char *)at)[i] != 0)
            return true;
    return false;
}

static wf_exec where_of(const Call *call)
{
    wf_exec where = { .size = 0 };
    memcpy(&where, call->where_at, call->where_at->size < sizeof where ? call->where_at->size : sizeof where);
    return where;
}

static Verdict judge_where(const Call *call)
{
    const wf_exec where = where_of(call);
    Verdict       v = bad_if(where.backend != WF_CPU && where.backend != WF_CUDA);
    v = worse(v, bad_if((where.flags & ~(uint32_t)WF_DRY_RUN) != 0 || where.threads < 0 || where.reserved != 0));
    if (v != BAD && where.variant != NULL) {
        bool        known = false;
        const char *name;
        for (int i = 0; (name = wf_variant(call->op->name, where.backend, i)) != NULL; i++)
            known = known || strcmp(name, where.variant) == 0;
        v = worse(v, bad_if(!known));
    }
    return v;
}

/* ---- buffers ---- */

int64_t span_of(const Buffer *b)
{
    return b->rows == 0 || b->cols == 0 ? 0 : ((b->rows - 1) * b->stride + b->cols) * (int64_t)b->element;
}

bool holds(const Buffer *b, const uint8_t *at)
{
    const int64_t offset = (int64_t)((uintptr_t)at - (uintptr_t)b->at);
    return offset >= 0 && offset < span_of(b) && (b->rows == 1 || offset / (int64_t)b->element % b->stride < b->cols);
}

static bool share(const Buffer *a, const Buffer *b)
{
    const uintptr_t a_begin = (uintptr_t)a->at, b_begin = (uintptr_t)b->at;
    if (a_begin + (uintptr_t)span_of(a) <= b_begin || b_begin + (uintptr_t)span_of(b) <= a_begin)
        return false;
    for (int64_t i = 0; i < span_of(a); i++)
        if (holds(a, a->at + i) && holds(b, a->at + i))
            return true;
    return false;
}

static bool same_place(const Buffer *a, const Buffer *b)
{
    return a->at == b->at && a->rows == b->rows && a->cols == b->cols && (a->stride == b->stride || a->rows == 1);
}

static bool takes_mask(const Call *call)
{
    return call->op->direction == BACKWARD && call->op->norm == DROPOUT && call->what.flags & WF_GIVEN_MASK;
}

/* Dropout's backward pass reads the mask or draws anew: the other's buffers may be anything. */
static bool is_ignored(const Call *call, int field)
{
    const Role role = call->op->field[field].role;
    return call->op->direction == BACKWARD && call->op->norm == DROPOUT && role == (takes_mask(call) ? WORD : MASK);
}

bool is_output(const Call *call, int field)
{
    return call->op->field[field].output && !(call->op->direction == BACKWARD && call->op->field[field].role == MASK);
}

static Verdict judge_overlaps(const Call *call)
{
    const Operation *op = call->op;
    const wf_exec    where = where_of(call);
    const int64_t    size = (int64_t)where.workspace_size;
    const Buffer     workspace = { where.workspace, -1, 1, 1, size, size };
    for (int i = 0; i < op->fields; i++) {
        const Buffer *out = &call->buffer[i];
        if (out->at == NULL || is_ignored(call, i))
            continue;
        if (workspace.at != NULL && share(out, &workspace))
            return BAD;
        for (int k = 0; is_output(call, i) && k < op->fields; k++) {
            const Buffer *other = &call->buffer[k];
            if (k == i || other->at == NULL || is_ignored(call, k) || (k == op->field[i].alias && same_place(out, other)))
                continue;
            if (share(out, other))
                return BAD;
        }
    }
    return GOOD;
}

/* A sum of another dtype than x's has to be kept somewhere. */
static bool needs_sum(const Call *call)
{
    const What *w = &call->what;
    bool        adds = w->drop > 0;
    if (!call->op->sums || !(w->flags & WF_SUM_F32) || w->x_dtype == WF_F32)
        return false;
    for (int i = 0; i < call->op->fields; i++) {
        const char *name = call->op->field[i].name;
        adds |= call->buffer[i].at != NULL && (strcmp(name, "residual") == 0 || strcmp(name + 3, "_scale") == 0);
    }
    return adds;
}

/* A beta has to go somewhere. */
static bool needs_bias(const Call *call)
{
    return call->op->norm == FOLD && call->buffer[3].at != NULL;
}

static Verdict judge_buffers(const Call *call)
{
    const Operation *op = call->op;
    const bool       empty = is_empty(op, &call->what);
    Verdict          v = GOOD;
    int              running = 0;
    for (int i = 0; i < op->fields; i++) {
        const Buffer *b = &call->buffer[i];
        const Role    role = op->field[i].role;
        const bool    needed = op->field[i].needed || (role == MASK && takes_mask(call)) ||
                            (role == SUM && op->field[i].output && needs_sum(call)) ||
                            (role == BIAS && op->field[i].output && needs_bias(call));
        if (needed && b->at == NULL && !empty)
            v = BAD;
        if (b->at != NULL && b->element > 0 && (uintptr_t)b->at % b->element != 0 && !is_ignored(call, i))
            v = worse(v, span_of(b) > 0 ? BAD : UNCLEAR);
        running += op->direction == FORWARD && op->field[i].role == CHANNEL && b->at != NULL;
    }
    if (running != 0 && running != 4)
        v = worse(v, empty ? UNCLEAR : BAD);
    return v == BAD ? BAD : worse(v, judge_overlaps(call));
}

/* ---- the whole call ---- */

static bool pair_exists(const Operation *op, const What *w)
{
    return op->norm == DROPOUT || w->w_dtype == w->x_dtype ||
           (w->w_dtype == WF_F32 && (w->x_dtype == WF_F16 || w->x_dtype == WF_BF16));
}

bool what_is_bad(const Call *call)
{
    return bad_struct(call->what_at, call->op->what_size) || judge_what(call->op, &call->what) == BAD;
}

unsigned allowed_statuses(const Call *call)
{
    const Operation *op = call->op;
    const unsigned   invalid = 1u << WF_INVALID;
    if (bad_struct(call->where_at, sizeof(wf_exec)) || judge_where(call) == BAD || what_is_bad(call))
        return invalid;
    const wf_exec where = where_of(call);
    const bool    absent = call->with_at == NULL && (where.flags & WF_DRY_RUN);
    if (!absent && bad_struct(call->with_at, op->with_size))
        return invalid;
    Verdict verdict = judge_what(op, &call->what);
    if (!absent)
        verdict = worse(verdict, call->real ? judge_buffers(call) : UNCLEAR);
    if (verdict == BAD)
        return invalid;

    unsigned allowed = verdict == UNCLEAR ? invalid : 0;
    if (!pair_exists(op, &call->what) || where.backend == WF_CUDA)
        return allowed | 1u << WF_UNSUPPORTED;
    if (where.variant != NULL)
        allowed |= 1u << WF_UNSUPPORTED; /* another processor's */
    const size_t need = op->workspace(call->what_at, WF_CPU);
    if (absent && where.workspace == NULL)
        return allowed | 1u << WF_OK;
    const bool too_small = need > 0 && (where.workspace == NULL || where.workspace_size < need);
    return allowed | 1u << (too_small ? WF_WORKSPACE : WF_OK);
}
