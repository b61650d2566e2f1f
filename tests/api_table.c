#include "api_table.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "guard.h"
#include "untyped.h"

#define OPERATION(operation, what) #operation, call_##operation, workspace_##operation, sizeof(what)
#define FIELD(what, name, kind) {#name, offsetof(what, name), kind}
#define ROW_FIELDS(what)                                                                                               \
    FIELD(what, x_dtype, FIELD_X_DTYPE), FIELD(what, w_dtype, FIELD_W_DTYPE), FIELD(what, flags, FIELD_FLAGS),         \
        FIELD(what, reserved, FIELD_RESERVED), FIELD(what, rows, FIELD_SIZE), FIELD(what, cols, FIELD_SIZE),           \
        FIELD(what, x_stride, FIELD_STRIDE), FIELD(what, y_stride, FIELD_STRIDE),                                      \
        FIELD(what, dx_stride, FIELD_STRIDE), FIELD(what, dy_stride, FIELD_STRIDE), FIELD(what, eps, FIELD_EPS)
#define CHANNEL_FIELDS(what)                                                                                           \
    FIELD(what, x_dtype, FIELD_X_DTYPE), FIELD(what, layout, FIELD_LAYOUT), FIELD(what, flags, FIELD_FLAGS),           \
        FIELD(what, n, FIELD_SIZE), FIELD(what, c, FIELD_SIZE), FIELD(what, hw, FIELD_SIZE)
#define NORM_FIELDS(what)                                                                                              \
    CHANNEL_FIELDS(what), FIELD(what, w_dtype, FIELD_W_DTYPE), FIELD(what, eps, FIELD_EPS),                            \
        FIELD(what, activation, FIELD_ACTIVATION), FIELD(what, reserved, FIELD_RESERVED),                              \
        FIELD(what, slope, FIELD_FINITE)

#define NEEDED(with, name, extent) {#name, offsetof(with, name), extent, 0, 1, NULL}
#define OPTIONAL(with, name, extent) {#name, offsetof(with, name), extent, 0, 0, NULL}
#define RESULT(with, name, extent, alias) {#name, offsetof(with, name), extent, 1, 1, alias}
#define WANTED(with, name, extent, alias) {#name, offsetof(with, name), extent, 1, 0, alias}

/* The buffers of the norms, which differ in which statistics belong together. */
#define FORWARD_BUFFERS(with, statistics)                                                                              \
    NEEDED(with, x, EXTENT_X), OPTIONAL(with, gamma, EXTENT_PARAMETER), OPTIONAL(with, beta, EXTENT_PARAMETER),        \
        RESULT(with, y, EXTENT_Y, "x"), WANTED(with, mean, statistics, NULL), WANTED(with, rstd, statistics, NULL),    \
        WANTED(with, mean_lo, statistics, NULL)
/* All four or none: a table of one missing each is test_bad_input_buffers.c's. */
#define RUNNING_BUFFERS(with)                                                                                          \
    OPTIONAL(with, running_mean_in, EXTENT_CHANNELS), OPTIONAL(with, running_var_in, EXTENT_CHANNELS),                 \
        WANTED(with, running_mean_out, EXTENT_CHANNELS, "running_mean_in"),                                            \
        WANTED(with, running_var_out, EXTENT_CHANNELS, "running_var_in")
#define INFER_BUFFERS(with)                                                                                            \
    NEEDED(with, x, EXTENT_X), OPTIONAL(with, gamma, EXTENT_PARAMETER), OPTIONAL(with, beta, EXTENT_PARAMETER),        \
        NEEDED(with, running_mean, EXTENT_CHANNELS), NEEDED(with, running_var, EXTENT_CHANNELS),                       \
        RESULT(with, y, EXTENT_Y, "x"), WANTED(with, rstd, EXTENT_CHANNELS, NULL)
#define BACKWARD_BUFFERS(with, statistics)                                                                             \
    NEEDED(with, dy, EXTENT_DY), NEEDED(with, x, EXTENT_X), OPTIONAL(with, gamma, EXTENT_PARAMETER),                   \
        NEEDED(with, mean, statistics), NEEDED(with, rstd, statistics), OPTIONAL(with, mean_lo, statistics),           \
        WANTED(with, dx, EXTENT_DX, "dy"), WANTED(with, dgamma, EXTENT_PARAMETER, NULL),                               \
        WANTED(with, dbeta, EXTENT_PARAMETER, NULL)
/* The channel norms' activation; y, which the backward pass may take in place of beta and residual, is test_activation.c's. */
#define ENDING(with) OPTIONAL(with, residual, EXTENT_X)
#define ENDING_BACKWARD(with)                                                                                          \
    OPTIONAL(with, beta, EXTENT_PARAMETER), OPTIONAL(with, residual, EXTENT_X), WANTED(with, dresidual, EXTENT_DX, "dy")
/* Modulated norms, with the ending or without. */
#define MODULATED_FIELDS(what) NORM_FIELDS(what), FIELD(what, scale_offset, FIELD_FINITE)
#define MODULATION(with) OPTIONAL(with, scale, EXTENT_PAIRS), OPTIONAL(with, shift, EXTENT_PAIRS)
#define MODULATION_BACKWARD(with)                                                                                      \
    MODULATION(with), WANTED(with, dscale, EXTENT_PAIRS, NULL), WANTED(with, dshift, EXTENT_PAIRS, NULL)
/* Norms of a sum. */
#define SUM_FIELDS(what)                                                                                               \
    ROW_FIELDS(what), FIELD(what, p, FIELD_FRACTION), FIELD(what, residual_stride, FIELD_STRIDE),                      \
        FIELD(what, sum_stride, FIELD_STRIDE), FIELD(what, quantization, FIELD_QUANTIZATION),                          \
        FIELD(what, reserved_2, FIELD_RESERVED)
#define SCALES(with)                                                                                                   \
    OPTIONAL(with, row_scale, EXTENT_ROWS), OPTIONAL(with, col_scale, EXTENT_PARAMETER),                               \
        OPTIONAL(with, seed_ptr, EXTENT_WORD), OPTIONAL(with, offset_ptr, EXTENT_WORD)
#define ADDITION(with)                                                                                                 \
    SCALES(with), OPTIONAL(with, residual, EXTENT_RESIDUAL), WANTED(with, sum, EXTENT_SUM, "residual")
/* With what dropout, which all of these have, makes needed. */
#define QUANTIZED_BUFFERS(with)                                                                                        \
    NEEDED(with, x, EXTENT_X), OPTIONAL(with, gamma, EXTENT_PARAMETER), RESULT(with, y, EXTENT_BYTES, NULL),           \
        OPTIONAL(with, residual, EXTENT_RESIDUAL), RESULT(with, sum, EXTENT_SUM, "residual")
#define GRADIENTS(with)                                                                                                \
    SCALES(with), OPTIONAL(with, dsum, EXTENT_SUM), WANTED(with, dresidual, EXTENT_RESIDUAL, "dsum"),                  \
        WANTED(with, dx, EXTENT_DX, "dy"), WANTED(with, dgamma, EXTENT_PARAMETER, NULL)
#define DROPOUT_FIELDS                                                                                                 \
    CHANNEL_FIELDS(wf_dropout), FIELD(wf_dropout, kind, FIELD_DROPOUT_KIND), FIELD(wf_dropout, p, FIELD_FRACTION),      \
        FIELD(wf_dropout, activation, FIELD_ACTIVATION), FIELD(wf_dropout, slope, FIELD_FINITE)
#define FUSED_FIELDS DROPOUT_FIELDS, FIELD(wf_dropout, w_dtype, FIELD_W_DTYPE)
#define DROPOUT_ACTIVATIONS(aliases) NEEDED(wf_dropout_args, x, EXTENT_X), RESULT(wf_dropout_args, y, EXTENT_Y, aliases)
#define DROPOUT_BUFFERS(aliases)                                                                                       \
    DROPOUT_ACTIVATIONS(aliases), OPTIONAL(wf_dropout_args, seed_ptr, EXTENT_WORD),                                    \
        OPTIONAL(wf_dropout_args, offset_ptr, EXTENT_WORD)

/* channels is 0 throughout: as many as rows, or cols. */
#define FOLD_FIELDS                                                                                                    \
    FIELD(wf_fold, x_dtype, FIELD_X_DTYPE), FIELD(wf_fold, w_dtype, FIELD_W_DTYPE), FIELD(wf_fold, flags, FIELD_FLAGS), \
        FIELD(wf_fold, reserved, FIELD_RESERVED), FIELD(wf_fold, rows, FIELD_SIZE), FIELD(wf_fold, cols, FIELD_SIZE),  \
        FIELD(wf_fold, x_stride, FIELD_STRIDE), FIELD(wf_fold, y_stride, FIELD_STRIDE),                                \
        FIELD(wf_fold, channels, FIELD_CHANNELS), FIELD(wf_fold, eps, FIELD_EPS), FIELD(wf_fold, weight_offset, FIELD_FINITE)
#define FOLD_BUFFERS                                                                                                   \
    NEEDED(wf_fold_args, weight, EXTENT_X), OPTIONAL(wf_fold_args, bias, EXTENT_BIAS),                                 \
        OPTIONAL(wf_fold_args, gamma, EXTENT_PARAMETER), OPTIONAL(wf_fold_args, beta, EXTENT_PARAMETER),               \
        RESULT(wf_fold_args, folded_weight, EXTENT_Y, "weight"), RESULT(wf_fold_args, folded_bias, EXTENT_BIAS, "bias")

enum {
    ROW_FLAGS = WF_ACCUMULATE | WF_SUM_F32,
    CHANNEL_FLAGS = WF_ACCUMULATE | WF_FROZEN | WF_BIASED,
    DROPOUT_FLAGS = WF_FEATURES | WF_GIVEN_MASK
};

const Operation operations[OPERATIONS] = {
    {OPERATION(layernorm_forward, wf_layernorm), sizeof(wf_layernorm_forward_args), ROW_FLAGS,
     {ROW_FIELDS(wf_layernorm)}, {FORWARD_BUFFERS(wf_layernorm_forward_args, EXTENT_ROWS)}},
    {OPERATION(layernorm_backward, wf_layernorm), sizeof(wf_layernorm_backward_args), ROW_FLAGS,
     {ROW_FIELDS(wf_layernorm)}, {BACKWARD_BUFFERS(wf_layernorm_backward_args, EXTENT_ROWS)}},
    {OPERATION(rmsnorm_forward, wf_rmsnorm), sizeof(wf_rmsnorm_forward_args), ROW_FLAGS,
     {ROW_FIELDS(wf_rmsnorm), FIELD(wf_rmsnorm, weight_offset, FIELD_FINITE)},
     {NEEDED(wf_rmsnorm_forward_args, x, EXTENT_X), OPTIONAL(wf_rmsnorm_forward_args, gamma, EXTENT_PARAMETER),
      RESULT(wf_rmsnorm_forward_args, y, EXTENT_Y, "x"), WANTED(wf_rmsnorm_forward_args, rrms, EXTENT_ROWS, NULL)}},
    {OPERATION(rmsnorm_backward, wf_rmsnorm), sizeof(wf_rmsnorm_backward_args), ROW_FLAGS,
     {ROW_FIELDS(wf_rmsnorm), FIELD(wf_rmsnorm, weight_offset, FIELD_FINITE)},
     {NEEDED(wf_rmsnorm_backward_args, dy, EXTENT_DY), NEEDED(wf_rmsnorm_backward_args, x, EXTENT_X),
      OPTIONAL(wf_rmsnorm_backward_args, gamma, EXTENT_PARAMETER), NEEDED(wf_rmsnorm_backward_args, rrms, EXTENT_ROWS),
      WANTED(wf_rmsnorm_backward_args, dx, EXTENT_DX, "dy"),
      WANTED(wf_rmsnorm_backward_args, dgamma, EXTENT_PARAMETER, NULL)}},
    {OPERATION(layernorm_forward, wf_layernorm), sizeof(wf_layernorm_forward_args), ROW_FLAGS,
     {SUM_FIELDS(wf_layernorm)},
     {FORWARD_BUFFERS(wf_layernorm_forward_args, EXTENT_ROWS), ADDITION(wf_layernorm_forward_args)}},
    {OPERATION(layernorm_forward, wf_layernorm), sizeof(wf_layernorm_forward_args), ROW_FLAGS,
     {SUM_FIELDS(wf_layernorm)},
     {QUANTIZED_BUFFERS(wf_layernorm_forward_args), OPTIONAL(wf_layernorm_forward_args, beta, EXTENT_PARAMETER),
      OPTIONAL(wf_layernorm_forward_args, y_scale, EXTENT_FLOAT), WANTED(wf_layernorm_forward_args, y_amax, EXTENT_FLOAT, NULL)}},
    {OPERATION(rmsnorm_forward, wf_rmsnorm), sizeof(wf_rmsnorm_forward_args), ROW_FLAGS,
     {SUM_FIELDS(wf_rmsnorm), FIELD(wf_rmsnorm, weight_offset, FIELD_FINITE)},
     {QUANTIZED_BUFFERS(wf_rmsnorm_forward_args), RESULT(wf_rmsnorm_forward_args, y_row_scale, EXTENT_ROW_FLOATS, NULL)}},
    {OPERATION(layernorm_backward, wf_layernorm), sizeof(wf_layernorm_backward_args), ROW_FLAGS,
     {SUM_FIELDS(wf_layernorm)},
     {NEEDED(wf_layernorm_backward_args, dy, EXTENT_DY), NEEDED(wf_layernorm_backward_args, sum, EXTENT_SUM),
      OPTIONAL(wf_layernorm_backward_args, gamma, EXTENT_PARAMETER), NEEDED(wf_layernorm_backward_args, mean, EXTENT_ROWS),
      NEEDED(wf_layernorm_backward_args, rstd, EXTENT_ROWS), OPTIONAL(wf_layernorm_backward_args, mean_lo, EXTENT_ROWS),
      GRADIENTS(wf_layernorm_backward_args), WANTED(wf_layernorm_backward_args, dbeta, EXTENT_PARAMETER, NULL)}},
    {OPERATION(rmsnorm_forward, wf_rmsnorm), sizeof(wf_rmsnorm_forward_args), ROW_FLAGS,
     {SUM_FIELDS(wf_rmsnorm), FIELD(wf_rmsnorm, weight_offset, FIELD_FINITE)},
     {NEEDED(wf_rmsnorm_forward_args, x, EXTENT_X), OPTIONAL(wf_rmsnorm_forward_args, gamma, EXTENT_PARAMETER),
      RESULT(wf_rmsnorm_forward_args, y, EXTENT_Y, "x"), WANTED(wf_rmsnorm_forward_args, rrms, EXTENT_ROWS, NULL),
      ADDITION(wf_rmsnorm_forward_args)}},
    {OPERATION(rmsnorm_backward, wf_rmsnorm), sizeof(wf_rmsnorm_backward_args), ROW_FLAGS,
     {SUM_FIELDS(wf_rmsnorm), FIELD(wf_rmsnorm, weight_offset, FIELD_FINITE)},
     {NEEDED(wf_rmsnorm_backward_args, dy, EXTENT_DY), NEEDED(wf_rmsnorm_backward_args, sum, EXTENT_SUM),
      OPTIONAL(wf_rmsnorm_backward_args, gamma, EXTENT_PARAMETER), NEEDED(wf_rmsnorm_backward_args, rrms, EXTENT_ROWS),
      GRADIENTS(wf_rmsnorm_backward_args)}},
    {OPERATION(layernorm_backward, wf_layernorm), sizeof(wf_layernorm_backward_args), ROW_FLAGS,
     {SUM_FIELDS(wf_layernorm)},
     {NEEDED(wf_layernorm_backward_args, dy, EXTENT_DY), NEEDED(wf_layernorm_backward_args, y, EXTENT_Y),
      OPTIONAL(wf_layernorm_backward_args, gamma, EXTENT_PARAMETER), OPTIONAL(wf_layernorm_backward_args, beta, EXTENT_PARAMETER),
      NEEDED(wf_layernorm_backward_args, rstd, EXTENT_ROWS), GRADIENTS(wf_layernorm_backward_args),
      WANTED(wf_layernorm_backward_args, dbeta, EXTENT_PARAMETER, NULL)}},
    {OPERATION(rmsnorm_backward, wf_rmsnorm), sizeof(wf_rmsnorm_backward_args), ROW_FLAGS,
     {SUM_FIELDS(wf_rmsnorm), FIELD(wf_rmsnorm, weight_offset, FIELD_FINITE)},
     {NEEDED(wf_rmsnorm_backward_args, dy, EXTENT_DY), NEEDED(wf_rmsnorm_backward_args, y, EXTENT_Y),
      OPTIONAL(wf_rmsnorm_backward_args, gamma, EXTENT_PARAMETER), NEEDED(wf_rmsnorm_backward_args, rrms, EXTENT_ROWS),
      GRADIENTS(wf_rmsnorm_backward_args)}},
    {OPERATION(groupnorm_forward, wf_groupnorm), sizeof(wf_groupnorm_forward_args), WF_ACCUMULATE,
     {MODULATED_FIELDS(wf_groupnorm), FIELD(wf_groupnorm, groups, FIELD_GROUPS)},
     {FORWARD_BUFFERS(wf_groupnorm_forward_args, EXTENT_GROUPS), ENDING(wf_groupnorm_forward_args)}},
    {OPERATION(groupnorm_backward, wf_groupnorm), sizeof(wf_groupnorm_backward_args), WF_ACCUMULATE,
     {MODULATED_FIELDS(wf_groupnorm), FIELD(wf_groupnorm, groups, FIELD_GROUPS)},
     {BACKWARD_BUFFERS(wf_groupnorm_backward_args, EXTENT_GROUPS), ENDING_BACKWARD(wf_groupnorm_backward_args)}},
    {OPERATION(batchnorm_train, wf_batchnorm), sizeof(wf_batchnorm_train_args), CHANNEL_FLAGS,
     {NORM_FIELDS(wf_batchnorm), FIELD(wf_batchnorm, momentum, FIELD_FRACTION)},
     {FORWARD_BUFFERS(wf_batchnorm_train_args, EXTENT_CHANNELS), RUNNING_BUFFERS(wf_batchnorm_train_args),
      ENDING(wf_batchnorm_train_args)}},
    {OPERATION(batchnorm_infer, wf_batchnorm), sizeof(wf_batchnorm_infer_args), CHANNEL_FLAGS,
     {NORM_FIELDS(wf_batchnorm)}, {INFER_BUFFERS(wf_batchnorm_infer_args), ENDING(wf_batchnorm_infer_args)}},
    {OPERATION(batchnorm_backward, wf_batchnorm), sizeof(wf_batchnorm_backward_args), CHANNEL_FLAGS,
     {NORM_FIELDS(wf_batchnorm)},
     {BACKWARD_BUFFERS(wf_batchnorm_backward_args, EXTENT_CHANNELS), ENDING_BACKWARD(wf_batchnorm_backward_args)}},
    {OPERATION(instancenorm_train, wf_instancenorm), sizeof(wf_instancenorm_train_args), CHANNEL_FLAGS,
     {MODULATED_FIELDS(wf_instancenorm), FIELD(wf_instancenorm, momentum, FIELD_FRACTION)},
     {FORWARD_BUFFERS(wf_instancenorm_train_args, EXTENT_INSTANCES), RUNNING_BUFFERS(wf_instancenorm_train_args),
      ENDING(wf_instancenorm_train_args)}},
    {OPERATION(instancenorm_infer, wf_instancenorm), sizeof(wf_instancenorm_infer_args), CHANNEL_FLAGS,
     {MODULATED_FIELDS(wf_instancenorm)}, {INFER_BUFFERS(wf_instancenorm_infer_args), ENDING(wf_instancenorm_infer_args)}},
    {OPERATION(instancenorm_backward, wf_instancenorm), sizeof(wf_instancenorm_backward_args), CHANNEL_FLAGS,
     {MODULATED_FIELDS(wf_instancenorm)}, {BACKWARD_BUFFERS(wf_instancenorm_backward_args, EXTENT_INSTANCES),
      ENDING_BACKWARD(wf_instancenorm_backward_args)}},
    {OPERATION(groupnorm_forward, wf_groupnorm), sizeof(wf_groupnorm_forward_args), WF_ACCUMULATE,
     {MODULATED_FIELDS(wf_groupnorm), FIELD(wf_groupnorm, groups, FIELD_GROUPS)},
     {FORWARD_BUFFERS(wf_groupnorm_forward_args, EXTENT_GROUPS), MODULATION(wf_groupnorm_forward_args)}},
    {OPERATION(groupnorm_backward, wf_groupnorm), sizeof(wf_groupnorm_backward_args), WF_ACCUMULATE,
     {MODULATED_FIELDS(wf_groupnorm), FIELD(wf_groupnorm, groups, FIELD_GROUPS)},
     {BACKWARD_BUFFERS(wf_groupnorm_backward_args, EXTENT_GROUPS), ENDING_BACKWARD(wf_groupnorm_backward_args),
      MODULATION_BACKWARD(wf_groupnorm_backward_args)}},
    {OPERATION(instancenorm_train, wf_instancenorm), sizeof(wf_instancenorm_train_args), CHANNEL_FLAGS,
     {MODULATED_FIELDS(wf_instancenorm), FIELD(wf_instancenorm, momentum, FIELD_FRACTION)},
     {FORWARD_BUFFERS(wf_instancenorm_train_args, EXTENT_INSTANCES), RUNNING_BUFFERS(wf_instancenorm_train_args),
      ENDING(wf_instancenorm_train_args), MODULATION(wf_instancenorm_train_args)}},
    {OPERATION(instancenorm_infer, wf_instancenorm), sizeof(wf_instancenorm_infer_args), CHANNEL_FLAGS,
     {MODULATED_FIELDS(wf_instancenorm)}, {INFER_BUFFERS(wf_instancenorm_infer_args), ENDING(wf_instancenorm_infer_args),
      MODULATION(wf_instancenorm_infer_args)}},
    {OPERATION(instancenorm_backward, wf_instancenorm), sizeof(wf_instancenorm_backward_args), CHANNEL_FLAGS,
     {MODULATED_FIELDS(wf_instancenorm)}, {BACKWARD_BUFFERS(wf_instancenorm_backward_args, EXTENT_INSTANCES),
      ENDING_BACKWARD(wf_instancenorm_backward_args), MODULATION_BACKWARD(wf_instancenorm_backward_args)}},
    {OPERATION(dropout_forward, wf_dropout), sizeof(wf_dropout_args), DROPOUT_FLAGS,
     {FUSED_FIELDS},
     {DROPOUT_BUFFERS("x|residual"), WANTED(wf_dropout_args, mask, EXTENT_MASK, NULL),
      OPTIONAL(wf_dropout_args, bias, EXTENT_PARAMETER), OPTIONAL(wf_dropout_args, residual, EXTENT_X)}},
    {OPERATION(dropout_backward, wf_dropout), sizeof(wf_dropout_args), DROPOUT_FLAGS,
     {DROPOUT_FIELDS}, {DROPOUT_BUFFERS("x")}},
    {OPERATION(dropout_backward, wf_dropout), sizeof(wf_dropout_args), DROPOUT_FLAGS,
     {DROPOUT_FIELDS}, {DROPOUT_ACTIVATIONS("x"), NEEDED(wf_dropout_args, mask, EXTENT_MASK)}},
    {OPERATION(dropout_backward, wf_dropout), sizeof(wf_dropout_args), DROPOUT_FLAGS,
     {FUSED_FIELDS},
     {DROPOUT_BUFFERS("x|x_in"), NEEDED(wf_dropout_args, x_in, EXTENT_X),
      OPTIONAL(wf_dropout_args, bias, EXTENT_PARAMETER)}},
    {OPERATION(fold_batchnorm, wf_fold), sizeof(wf_fold_args), WF_BIAS_F32,
     {FOLD_FIELDS},
     {FOLD_BUFFERS, NEEDED(wf_fold_args, mean, EXTENT_CHANNELS), NEEDED(wf_fold_args, var, EXTENT_CHANNELS)}},
    {OPERATION(fold_layernorm, wf_fold), sizeof(wf_fold_args), WF_BIAS_F32,
     {FOLD_FIELDS}, {FOLD_BUFFERS}},
};

const Field *api_field(const Operation *op, const char *name)
{
    for (const Field *f = op->field; f < op->field + MAX_FIELDS && f->name; f++)
        if (strcmp(f->name, name) == 0)
            return f;
    return NULL;
}

int api_may_be(const Buffer *output, const Buffer *input)
{
    const size_t length = strlen(input->name);
    for (const char *name = output->alias; name; name = strchr(name, '|') ? strchr(name, '|') + 1 : NULL)
        if (strncmp(name, input->name, length) == 0 && (name[length] == '|' || !name[length]))
            return 1;
    return 0;
}

const Buffer *api_buffer(const Operation *op, const char *name)
{
    for (const Buffer *b = op->buffer; b < op->buffer + MAX_BUFFERS && b->name; b++)
        if (strcmp(b->name, name) == 0)
            return b;
    return NULL;
}

int api_quantised(const Operation *op)
{
    const Buffer *y = api_buffer(op, "y");
    return y && y->extent == EXTENT_BYTES;
}

void *api_what(ApiCall *c, const Field *f)
{
    return c->what + f->offset;
}

void **api_with(ApiCall *c, const Buffer *b)
{
    return (void **)(c->with + b->offset);
}

static int is_int64(FieldKind kind)
{
    return kind >= FIELD_SIZE && kind <= FIELD_CHANNELS;
}

void api_set_integer(ApiCall *c, const char *field, int64_t value)
{
    const Field *f = api_field(c->op, field);
    if (!f)
        ck_abort_msg("%s has no %s", c->op->name, field);
    const int32_t narrow = (int32_t)value;
    if (is_int64(f->kind))
        memcpy(api_what(c, f), &value, sizeof value);
    else
        memcpy(api_what(c, f), &narrow, sizeof narrow);
}

void api_set_double(ApiCall *c, const char *field, double value)
{
    const Field *f = api_field(c->op, field);
    if (!f)
        ck_abort_msg("%s has no %s", c->op->name, field);
    memcpy(api_what(c, f), &value, sizeof value);
}

int64_t api_integer(const ApiCall *c, const char *field)
{
    const Field *f = api_field(c->op, field);
    int64_t wide = 0;
    int32_t narrow = 0;
    if (f && is_int64(f->kind))
        memcpy(&wide, c->what + f->offset, sizeof wide);
    else if (f)
        memcpy(&narrow, c->what + f->offset, sizeof narrow);
    return wide + narrow;
}

static int64_t dtype_size(int64_t dtype)
{
    return dtype == WF_F64 ? 8 : dtype == WF_F32 ? 4 : 2;
}

static int64_t activation_count(const ApiCall *c, const char *stride, const char *stride_default)
{
    if (!api_field(c->op, "rows"))
        return api_integer(c, "n") * api_integer(c, "c") * api_integer(c, "hw");
    const int64_t rows = api_integer(c, "rows"), cols = api_integer(c, "cols");
    int64_t step = api_integer(c, stride);
    step = step ? step : api_integer(c, stride_default);
    step = step ? step : cols;
    return rows && cols ? (rows - 1) * step + cols : 0;
}

/* Those of gamma and beta. */
static int64_t channels_of(const ApiCall *c)
{
    return api_integer(c, strcmp(c->op->name, "fold_batchnorm") == 0 ? "rows" : api_field(c->op, "cols") ? "cols" : "c");
}

size_t api_size(const ApiCall *c, const Buffer *b)
{
    const int64_t x_size = dtype_size(api_integer(c, "x_dtype")), w_size = dtype_size(api_integer(c, "w_dtype"));
    const int64_t sum_size = api_integer(c, "flags") & WF_SUM_F32 ? 4 : x_size;
    const int64_t statistic = x_size == 8 ? 8 : 4, n = api_integer(c, "n"), channels = channels_of(c);
    const int per_channel = (api_integer(c, "flags") & WF_FROZEN) && api_buffer(c->op, "dy");
    switch (b->extent) {
    case EXTENT_X:
        return (size_t)(activation_count(c, "x_stride", "cols") * x_size);
    case EXTENT_Y:
        return (size_t)(activation_count(c, "y_stride", "cols") * x_size);
    case EXTENT_DX:
        return (size_t)(activation_count(c, "dx_stride", "x_stride") * x_size);
    case EXTENT_DY:
        return (size_t)(activation_count(c, "dy_stride", "y_stride") * x_size);
    case EXTENT_RESIDUAL:
        return (size_t)(activation_count(c, "residual_stride", "cols") * sum_size);
    case EXTENT_SUM:
        return (size_t)(activation_count(c, "sum_stride", "cols") * sum_size);
    case EXTENT_PARAMETER:
        return (size_t)(channels * w_size);
    case EXTENT_PAIRS:
        return (size_t)(n * channels * w_size);
    case EXTENT_BIAS:
        return (size_t)(api_integer(c, "rows") * (api_integer(c, "flags") & WF_BIAS_F32 ? 4 : x_size));
    case EXTENT_ROWS:
        return (size_t)(api_integer(c, "rows") * statistic);
    case EXTENT_GROUPS:
        return (size_t)(n * api_integer(c, "groups") * statistic);
    case EXTENT_CHANNELS:
        return (size_t)(channels * statistic);
    case EXTENT_INSTANCES:
        return (size_t)((per_channel ? 1 : n) * channels * statistic);
    case EXTENT_BYTES:
        return (size_t)activation_count(c, "y_stride", "cols");
    case EXTENT_ROW_FLOATS:
        return (size_t)api_integer(c, "rows") * sizeof(float);
    case EXTENT_FLOAT:
        return sizeof(float);
    case EXTENT_MASK:
        return (size_t)(n * channels * (api_integer(c, "flags") & WF_FEATURES ? 1 : api_integer(c, "hw")) + 7) / 8;
    default:
        return sizeof(uint64_t);
    }
}

static void release(ApiCall *c)
{
    for (int i = 0; i <= MAX_BUFFERS; i++) {
        guard_free(c->memory[i]);
        free(c->copy[i]);
        c->memory[i] = c->copy[i] = NULL;
    }
}

/* Small positive values that are legal for any statistic; as bytes for whatever is not a float. */
static void fill(unsigned char *memory, size_t size, int64_t dtype)
{
    const float single = 0.75f;
    const double wide = 0.75;
    const uint16_t half = dtype == WF_F16 ? 0x3a00 : 0x3f40;
    for (size_t i = 0; i < size; i++) {
        const unsigned char *from = (const unsigned char *)&half;
        if (dtype == WF_F32)
            from = (const unsigned char *)&single;
        else if (dtype == WF_F64)
            from = (const unsigned char *)&wide;
        memory[i] = from[i % (size_t)dtype_size(dtype)];
    }
}

static void take(ApiCall *c, int i, size_t size, int64_t dtype)
{
    c->size[i] = size;
    c->memory[i] = guard_alloc(size, 0);
    c->copy[i] = malloc(size + 1);
    fill(c->memory[i], size, dtype);
    memcpy(c->copy[i], c->memory[i], size);
}

void api_fit(ApiCall *c)
{
    const int64_t x_dtype = api_integer(c, "x_dtype"), w_dtype = api_integer(c, "w_dtype");
    release(c);
    for (int i = 0; i < MAX_BUFFERS && c->op->buffer[i].name; i++) {
        const Buffer *b = &c->op->buffer[i];
        const int64_t statistic = x_dtype == WF_F64 ? WF_F64 : WF_F32;
        const int64_t dtype = b->extent <= EXTENT_DY || b->extent == EXTENT_BIAS ? x_dtype
                              : b->extent == EXTENT_PARAMETER || b->extent == EXTENT_PAIRS ? w_dtype
                              : b->extent >= EXTENT_FLOAT                          ? WF_F32
                                                                                   : statistic;
        take(c, i, api_size(c, b), dtype);
        *api_with(c, b) = c->size[i] ? c->memory[i] : NULL;
    }
    c->where.workspace_size = c->op->workspace(c->what, WF_CPU);
    take(c, MAX_BUFFERS, c->where.workspace_size, WF_F32);
    c->where.workspace = c->where.workspace_size ? c->memory[MAX_BUFFERS] : NULL;
}

void api_begin(ApiCall *c, const Operation *op, int64_t rows)
{
    static const struct {
        const char *name;
        int64_t value;
    } sizes[] = {{"rows", 3},       {"cols", 5},       {"x_stride", 7},         {"y_stride", 8},
                 {"dx_stride", 9},  {"dy_stride", 10}, {"residual_stride", 11}, {"sum_stride", 12},
                 {"n", 2},          {"c", 6},          {"hw", 5},               {"groups", 3}};
    memset(c, 0, sizeof *c);
    c->op = op;
    memcpy(c->what, &op->what_size, sizeof op->what_size);
    memcpy(c->with, &op->with_size, sizeof op->with_size);
    c->where.size = sizeof c->where;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (api_field(op, sizes[i].name))
            api_set_integer(c, sizes[i].name, sizes[i].value);
    if (rows)
        api_set_integer(c, api_field(op, "rows") ? "rows" : "n", rows);
    if (api_field(op, "eps"))
        api_set_double(c, "eps", 1e-5);
    if (api_field(op, "momentum"))
        api_set_double(c, "momentum", .1);
    if (api_field(op, "p"))
        api_set_double(c, "p", .5);
    const Buffer *mask = api_buffer(op, "mask");
    if (mask && !mask->output)
        api_set_integer(c, "flags", WF_GIVEN_MASK);
    if (api_buffer(op, "x_in"))
        api_set_integer(c, "activation", WF_GELU);
    if (api_quantised(op))
        api_set_integer(c, "quantization", api_buffer(op, "y_amax") ? WF_E4M3 : WF_INT8);
    if (api_field(op, "activation") && api_field(op, "eps"))
        api_set_integer(c, "activation", WF_RELU);
    api_fit(c);
}

void api_vary(ApiCall *c)
{
    for (int i = 0; i < MAX_BUFFERS && c->op->buffer[i].name; i++) {
        const Buffer *b = &c->op->buffer[i];
        const int varied = !b->output && (b->extent <= EXTENT_DY || b->extent == EXTENT_BIAS);
        for (size_t k = 0; varied && k < c->size[i] / sizeof(float); k++) {
            const float value = (float)(k * (k + 37 + (size_t)i) % 101) / 8 - 5;
            memcpy(c->memory[i] + k * sizeof value, &value, sizeof value);
        }
        memcpy(c->copy[i], c->memory[i], c->size[i]);
    }
}

void api_end(ApiCall *c)
{
    release(c);
}

wf_status api_call(const ApiCall *c)
{
    return c->op->call(c->what, c->with, &c->where);
}

int api_untouched(const ApiCall *c)
{
    for (int i = 0; i <= MAX_BUFFERS; i++)
        if (c->memory[i] && (!guard_check(c->memory[i]) || memcmp(c->memory[i], c->copy[i], c->size[i])))
            return 0;
    return 1;
}

void api_expect(const ApiCall *c, wf_status status, const char *mentions)
{
    const wf_status got = api_call(c);
    const char *text = wf_error_detail();
    if (got != status)
        ck_abort_msg("%s, where a text with \"%s\" is expected: %s, not %s; the text is \"%s\"", c->op->name,
                     mentions ? mentions : "", wf_status_string(got), wf_status_string(status), text);
    if (status == WF_OK)
        return;
    if (strncmp(text, c->op->name, strlen(c->op->name)) || text[strlen(c->op->name)] != ':')
        ck_abort_msg("the text \"%s\" does not begin with \"%s:\"", text, c->op->name);
    char words[256];
    snprintf(words, sizeof words, "%s", mentions ? mentions : "");
    for (char *word = strtok(words, "|"); word; word = strtok(NULL, "|"))
        if (!strstr(text, word))
            ck_abort_msg("the text \"%s\" does not mention \"%s\"", text, word);
    if (!api_untouched(c))
        ck_abort_msg("%s wrote although it failed: \"%s\"", c->op->name, text);
}
