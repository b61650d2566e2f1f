/* Every operation, dtype and layout on a few shapes: one line per call with a digest of all that it wrote. The output is
 * the same on every processor; `make check-aarch64` compares two. Needs no test framework, so it cross-compiles alone. */
#include "untyped.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ARENA_SIZE = 1 << 25, WORKSPACE_SIZE = 1 << 24 };

static _Alignas(64) unsigned char arena[ARENA_SIZE], workspace[WORKSPACE_SIZE];
static size_t used;
static uint32_t state;

static const char *const dtype_name[] = {"f32", "f16", "bf16", "f64"};
static const size_t dtype_size[] = {4, 2, 2, 8};

static uint32_t draw(void)
{
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}

/* count elements from a fixed sequence, normal numbers of mixed sign and magnitude; 0 for outputs. */
static void *take(wf_dtype dtype, int64_t count, int fill)
{
    unsigned char *at = arena + used;
    const size_t size = (size_t)count * dtype_size[dtype];

    used += (size + 63) / 64 * 64;
    if (used > ARENA_SIZE)
        abort();
    memset(at, 0, size);
    for (int64_t i = 0; fill && i < count; i++) {
        const double value = ((double)(draw() & 0xffffff) - 0x7f0000) / 0x200000;
        const float narrow = (float)value;
        uint32_t bits;
        uint16_t half;

        memcpy(&bits, &narrow, sizeof bits);
        half = (uint16_t)(dtype == WF_BF16 ? bits >> 16 : (bits >> 16 & 0x8000) | (0x2c00 + (bits >> 9 & 0x1fff)));
        if (dtype == WF_F64)
            memcpy(at + 8 * i, &value, 8);
        else if (dtype == WF_F32)
            memcpy(at + 4 * i, &narrow, 4);
        else
            memcpy(at + 2 * i, &half, 2);
    }
    return at;
}

/* The tensors of a case; what comes from FIRST_OUTPUT on is written by the calls. END ends a list. */
enum tensor {
    END, X, DY, GAMMA, BETA, RUNNING_MEAN, RUNNING_VAR,
    Y, DX, DGAMMA, DBETA, MEAN, RSTD, MEAN_LO, MOVED_MEAN, MOVED_VAR, FROZEN_RSTD, TENSORS,
    FIRST_OUTPUT = Y
};
static void *tensors[TENSORS];
static size_t outputs; /* where they begin in the arena */

static void prepare(wf_dtype x_dtype, wf_dtype w_dtype, int64_t elements, int64_t parameters, int64_t statistics)
{
    const wf_dtype s_dtype = x_dtype == WF_F64 ? WF_F64 : WF_F32;
    const struct {
        enum tensor tensor;
        wf_dtype dtype;
        int64_t count;
    } wanted[] = {{X, x_dtype, elements},
                  {DY, x_dtype, elements},
                  {GAMMA, w_dtype, parameters},
                  {BETA, w_dtype, parameters},
                  {RUNNING_MEAN, s_dtype, parameters},
                  {RUNNING_VAR, s_dtype, parameters},
                  {Y, x_dtype, elements},
                  {DX, x_dtype, elements},
                  {DGAMMA, w_dtype, parameters},
                  {DBETA, w_dtype, parameters},
                  {MEAN, s_dtype, statistics},
                  {RSTD, s_dtype, statistics},
                  {MEAN_LO, s_dtype, statistics},
                  {MOVED_MEAN, s_dtype, parameters},
                  {MOVED_VAR, s_dtype, parameters},
                  {FROZEN_RSTD, s_dtype, parameters}};

    used = 0;
    state = 1;
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        if (wanted[i].tensor == FIRST_OUTPUT)
            outputs = used;
        tensors[wanted[i].tensor] = take(wanted[i].dtype, wanted[i].count, wanted[i].tensor < FIRST_OUTPUT);
    }
    for (int64_t i = 0; i < parameters; i++) /* a variance has no sign: clear it in the highest byte */
        ((unsigned char *)tensors[RUNNING_VAR])[(size_t)(i + 1) * dtype_size[s_dtype] - 1] &= 0x7f;
}

/* Of each norm, what is asked of it; n and c are also the rows and cols. */
union what {
    size_t size;
    wf_layernorm layernorm;
    wf_rmsnorm rmsnorm;
    wf_groupnorm groupnorm;
    wf_batchnorm batchnorm;
    wf_instancenorm instancenorm;
    wf_dropout dropout;
    wf_fold fold;
};

struct shape {
    wf_dtype x_dtype, w_dtype;
    wf_layout layout;
    int64_t n, c, hw;
};

#define DTYPES .x_dtype = s->x_dtype, .w_dtype = s->w_dtype
#define ROWS .rows = s->n, .cols = s->c
#define CHANNELS .layout = s->layout, .n = s->n, .c = s->c, .hw = s->hw
#define DESCRIBE(norm, ...)                                                                                            \
    static void describe_##norm(union what *what, const struct shape *s)                                               \
    {                                                                                                                  \
        what->norm = (wf_##norm){.size = sizeof what->norm, __VA_ARGS__};                                              \
    }
DESCRIBE(layernorm, DTYPES, ROWS, .eps = 1e-5)
DESCRIBE(rmsnorm, DTYPES, ROWS, .eps = 1e-5, .weight_offset = 1)
DESCRIBE(groupnorm, DTYPES, CHANNELS, .eps = 1e-5, .groups = s->c % 5 ? 1 : 5)
DESCRIBE(batchnorm, DTYPES, CHANNELS, .eps = 1e-5, .momentum = 0.1)
DESCRIBE(instancenorm, DTYPES, CHANNELS, .eps = 1e-5, .momentum = 0.1)
DESCRIBE(fold, DTYPES, ROWS, .eps = 1e-5, .weight_offset = 1)
DESCRIBE(dropout, .x_dtype = s->x_dtype, CHANNELS, .p = 0.3)

/* As many channels as there are parameters. */
static void describe_fold_rows(union what *what, const struct shape *s)
{
    describe_fold(what, s);
    what->fold.rows = s->c;
    what->fold.cols = s->n;
}

/* The calls, in this order: a backward pass takes the statistics that the forward one left. The arguments are the pointers
 * of the args struct in its order, but for dropout's seed and offset, which are numbers. */
static const struct operation {
    const char *name;
    void (*describe)(union what *, const struct shape *);
    wf_status (*call)(const void *what, const void *with, const wf_exec *where);
    size_t args_size;
    enum tensor args[12];
} operations[] = {
#define OPERATION(operation, norm, args) #operation, describe_##norm, call_##operation, sizeof(args)
#define FORWARD(norm) OPERATION(norm##_forward, norm, wf_##norm##_forward_args)
#define TRAIN(norm) OPERATION(norm##_train, norm, wf_##norm##_train_args)
#define INFER(norm) OPERATION(norm##_infer, norm, wf_##norm##_infer_args)
#define BACKWARD(norm) OPERATION(norm##_backward, norm, wf_##norm##_backward_args)
#define STATISTICS MEAN, RSTD, MEAN_LO
#define RUNNING RUNNING_MEAN, RUNNING_VAR
#define GRADIENTS DX, DGAMMA, DBETA
    {FORWARD(layernorm), {X, GAMMA, BETA, Y, STATISTICS}},
    {BACKWARD(layernorm), {DY, X, GAMMA, STATISTICS, GRADIENTS}},
    {FORWARD(rmsnorm), {X, GAMMA, Y, RSTD}},
    {BACKWARD(rmsnorm), {DY, X, GAMMA, RSTD, DX, DGAMMA}},
    {FORWARD(groupnorm), {X, GAMMA, BETA, Y, STATISTICS}},
    {BACKWARD(groupnorm), {DY, X, GAMMA, STATISTICS, GRADIENTS}},
    {TRAIN(batchnorm), {X, GAMMA, BETA, RUNNING, MOVED_MEAN, MOVED_VAR, Y, STATISTICS}},
    {BACKWARD(batchnorm), {DY, X, GAMMA, STATISTICS, GRADIENTS}},
    {INFER(batchnorm), {X, GAMMA, BETA, RUNNING, Y, FROZEN_RSTD}},
    {TRAIN(instancenorm), {X, GAMMA, BETA, RUNNING, MOVED_MEAN, MOVED_VAR, Y, STATISTICS}},
    {BACKWARD(instancenorm), {DY, X, GAMMA, STATISTICS, GRADIENTS}},
    {INFER(instancenorm), {X, GAMMA, BETA, RUNNING, Y, FROZEN_RSTD}},
    {OPERATION(dropout_forward, dropout, wf_dropout_args), {X, Y, DX}}, /* DX holds the mask */
    {OPERATION(dropout_backward, dropout, wf_dropout_args), {DY, DX}},
    {OPERATION(fold_batchnorm, fold_rows, wf_fold_args), {X, DY, GAMMA, BETA, RUNNING, Y, DX}}, /* biases in DY and DX */
    {OPERATION(fold_layernorm, fold, wf_fold_args), {X, DY, GAMMA, BETA, RUNNING, Y, DX}},
};

static int failures;

static void call(const struct operation *op, const union what *what, const char *shape)
{
    static const wf_exec where = {
        .size = sizeof where, .backend = WF_CPU, .workspace = workspace, .workspace_size = WORKSPACE_SIZE, .threads = 1};
    union {
        size_t size;
        wf_dropout_args dropout;
        void *word[24]; /* as many as the longest has */
    } with = {.word = {NULL}};
    uint64_t digest = 14695981039346656037u;
    wf_status status;

    if (op->describe == describe_dropout)
        with.dropout = (wf_dropout_args){.seed = 7, .offset = 3};
    with.size = op->args_size;
    for (int i = 0; op->args[i] != END; i++)
        with.word[1 + i] = tensors[op->args[i]];
    status = op->call(what, &with, &where);
    for (size_t i = outputs; i < used; i++)
        digest = (digest ^ arena[i]) * 1099511628211u;
    printf("%-22s %-40s %016llx\n", op->name, shape, (unsigned long long)digest);
    if (status != WF_OK) {
        printf("%s: %s\n", wf_status_string(status), wf_error_detail());
        failures++;
    }
}

/* Every call of one sort of operation: those on rows, or those on channels; dropout in its four kinds. */
static void calls(const struct shape *s, int on_rows, const char *text)
{
    prepare(s->x_dtype, s->w_dtype, s->n * s->c * s->hw, s->c, on_rows ? s->n : s->n * s->c);
    for (const struct operation *op = operations; op < operations + sizeof operations / sizeof *operations; op++) {
        const int folds = op->describe == describe_fold || op->describe == describe_fold_rows;
        const int rows = folds || op->describe == describe_layernorm || op->describe == describe_rmsnorm;
        const int kinds = op->describe == describe_dropout ? 4 : 1;
        union what what;

        op->describe(&what, s);
        for (int kind = 0; kind < kinds && rows == on_rows; kind++) {
            if (kinds > 1) {
                what.dropout.kind = (wf_dropout_kind)(kind / 2);
                what.dropout.flags = kind % 2 ? WF_FEATURES : 0;
            }
            call(op, &what, text);
        }
    }
}

int main(void)
{
    static const struct {
        wf_dtype x, w;
    } dtypes[] = {{WF_F32, WF_F32},   {WF_F16, WF_F16},  {WF_F16, WF_F32},
                  {WF_BF16, WF_BF16}, {WF_BF16, WF_F32}, {WF_F64, WF_F64}};
    static const int64_t rows[][2] = {{1, 1}, {3, 7}, {5, 128}, {33, 129}, {2, 4099}, {200, 17}};
    static const int64_t shapes[][3] = {{2, 5, 3}, {1, 10, 196}, {3, 35, 49}, {2, 16, 5329}, {70, 3, 2}};
    char text[80];

    for (size_t d = 0; d < sizeof dtypes / sizeof dtypes[0]; d++) {
        const wf_dtype x = dtypes[d].x, w = dtypes[d].w;

        for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
            const struct shape s = {x, w, WF_NCHW, rows[i][0], rows[i][1], 1};
            snprintf(text, sizeof text, "%s %s %d x %d", dtype_name[x], dtype_name[w], (int)s.n, (int)s.c);
            calls(&s, 1, text);
        }
        for (size_t i = 0; i < 2 * sizeof shapes / sizeof shapes[0]; i++) {
            const int64_t *size = shapes[i / 2];
            const struct shape s = {x, w, i % 2 ? WF_NHWC : WF_NCHW, size[0], size[1], size[2]};
            snprintf(text, sizeof text, "%s %s %s %d x %d x %d", dtype_name[x], dtype_name[w],
                     s.layout ? "nhwc" : "nchw", (int)s.n, (int)s.c, (int)s.hw);
            calls(&s, 0, text);
        }
    }
    return failures != 0;
}
