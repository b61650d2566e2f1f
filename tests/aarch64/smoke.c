/* Every operation, dtype and layout on a few shapes: one line per call with a digest of all that it wrote. The output is
 * the same on every processor; `make check-aarch64` compares two. Needs no test framework, so it cross-compiles alone. */
#include "welford.h"

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

/* The inputs and outputs of one case; the names are those of the header's structs. */
static struct tensors {
    void *x, *dy, *gamma, *beta, *y, *dx, *dgamma, *dbeta, *mean, *rstd, *mean_lo, *running_mean, *running_var,
        *moved_mean, *moved_var, *frozen_rstd;
    size_t outputs; /* everything in the arena from here on is output */
} t;

static void prepare(wf_dtype x_dtype, wf_dtype w_dtype, int64_t elements, int64_t parameters, int64_t statistics)
{
    const wf_dtype s_dtype = x_dtype == WF_F64 ? WF_F64 : WF_F32;

    used = 0;
    state = 1;
    t.x = take(x_dtype, elements, 1);
    t.dy = take(x_dtype, elements, 1);
    t.gamma = take(w_dtype, parameters, 1);
    t.beta = take(w_dtype, parameters, 1);
    t.running_mean = take(s_dtype, parameters, 1);
    t.running_var = take(s_dtype, parameters, 1);
    for (int64_t i = 0; i < parameters; i++) /* a variance has no sign: clear it in the highest byte */
        ((unsigned char *)t.running_var)[(size_t)(i + 1) * dtype_size[s_dtype] - 1] &= 0x7f;
    t.outputs = used;
    t.y = take(x_dtype, elements, 0);
    t.dx = take(x_dtype, elements, 0);
    t.dgamma = take(w_dtype, parameters, 0);
    t.dbeta = take(w_dtype, parameters, 0);
    t.mean = take(s_dtype, statistics, 0);
    t.rstd = take(s_dtype, statistics, 0);
    t.mean_lo = take(s_dtype, statistics, 0);
    t.moved_mean = take(s_dtype, parameters, 0);
    t.moved_var = take(s_dtype, parameters, 0);
    t.frozen_rstd = take(s_dtype, parameters, 0);
}

static const wf_exec where = {
    .size = sizeof where, .backend = WF_CPU, .workspace = workspace, .workspace_size = WORKSPACE_SIZE, .threads = 1};

static int failures;

static void print(const char *operation, wf_status status, const char *shape)
{
    uint64_t digest = 14695981039346656037u;

    for (size_t i = t.outputs; i < used; i++)
        digest = (digest ^ arena[i]) * 1099511628211u;
    printf("%-22s %-40s %016llx\n", operation, shape, (unsigned long long)digest);
    if (status != WF_OK) {
        printf("%s: %s\n", wf_status_string(status), wf_error_detail());
        failures++;
    }
}

#define CALL(operation, ...)                                                                                           \
    print(#operation,                                                                                                  \
          wf_##operation(&what, &(wf_##operation##_args){.size = sizeof(wf_##operation##_args), __VA_ARGS__}, &where), \
          shape)
#define STATISTICS .mean = t.mean, .rstd = t.rstd, .mean_lo = t.mean_lo
#define GRADIENTS .dx = t.dx, .dgamma = t.dgamma, .dbeta = t.dbeta
#define RUNNING_IN .running_mean_in = t.running_mean, .running_var_in = t.running_var
#define RUNNING_OUT .running_mean_out = t.moved_mean, .running_var_out = t.moved_var

static void rows_and_cols(wf_dtype x_dtype, wf_dtype w_dtype, int64_t rows, int64_t cols)
{
    char shape[80];

    snprintf(shape, sizeof shape, "%s %s %d x %d", dtype_name[x_dtype], dtype_name[w_dtype], (int)rows, (int)cols);
    prepare(x_dtype, w_dtype, rows * cols, cols, rows);
    {
        const wf_layernorm what = {
            .size = sizeof what, .x_dtype = x_dtype, .w_dtype = w_dtype, .rows = rows, .cols = cols, .eps = 1e-5};
        CALL(layernorm_forward, .x = t.x, .gamma = t.gamma, .beta = t.beta, .y = t.y, STATISTICS);
        CALL(layernorm_backward, .dy = t.dy, .x = t.x, .gamma = t.gamma, STATISTICS, GRADIENTS);
    }
    {
        const wf_rmsnorm what = {.size = sizeof what,
                                 .x_dtype = x_dtype,
                                 .w_dtype = w_dtype,
                                 .rows = rows,
                                 .cols = cols,
                                 .eps = 1e-5,
                                 .weight_offset = 1};
        CALL(rmsnorm_forward, .x = t.x, .gamma = t.gamma, .y = t.y, .rrms = t.rstd);
        CALL(rmsnorm_backward, .dy = t.dy, .x = t.x, .gamma = t.gamma, .rrms = t.rstd, .dx = t.dx, .dgamma = t.dgamma);
    }
}

static void channels(wf_dtype x_dtype, wf_dtype w_dtype, wf_layout layout, int64_t n, int64_t c, int64_t hw)
{
    char shape[80];

    snprintf(shape, sizeof shape, "%s %s %s %d x %d x %d", dtype_name[x_dtype], dtype_name[w_dtype],
             layout ? "nhwc" : "nchw", (int)n, (int)c, (int)hw);
    prepare(x_dtype, w_dtype, n * c * hw, c, n * c);
    {
        const wf_groupnorm what = {.size = sizeof what,
                                   .x_dtype = x_dtype,
                                   .w_dtype = w_dtype,
                                   .layout = layout,
                                   .n = n,
                                   .c = c,
                                   .hw = hw,
                                   .groups = c % 5 ? 1 : 5,
                                   .eps = 1e-5};
        CALL(groupnorm_forward, .x = t.x, .gamma = t.gamma, .beta = t.beta, .y = t.y, STATISTICS);
        CALL(groupnorm_backward, .dy = t.dy, .x = t.x, .gamma = t.gamma, STATISTICS, GRADIENTS);
    }
    {
        const wf_batchnorm what = {.size = sizeof what,
                                   .x_dtype = x_dtype,
                                   .w_dtype = w_dtype,
                                   .layout = layout,
                                   .n = n,
                                   .c = c,
                                   .hw = hw,
                                   .eps = 1e-5,
                                   .momentum = 0.1};
        CALL(batchnorm_train, .x = t.x, .gamma = t.gamma, .beta = t.beta, RUNNING_IN, RUNNING_OUT, .y = t.y,
             STATISTICS);
        CALL(batchnorm_backward, .dy = t.dy, .x = t.x, .gamma = t.gamma, STATISTICS, GRADIENTS);
        CALL(batchnorm_infer, .x = t.x, .gamma = t.gamma, .beta = t.beta, .running_mean = t.running_mean,
             .running_var = t.running_var, .y = t.y, .rstd = t.frozen_rstd);
    }
    {
        const wf_instancenorm what = {.size = sizeof what,
                                      .x_dtype = x_dtype,
                                      .w_dtype = w_dtype,
                                      .layout = layout,
                                      .n = n,
                                      .c = c,
                                      .hw = hw,
                                      .eps = 1e-5,
                                      .momentum = 0.1};
        CALL(instancenorm_train, .x = t.x, .gamma = t.gamma, .beta = t.beta, RUNNING_IN, RUNNING_OUT, .y = t.y,
             STATISTICS);
        CALL(instancenorm_backward, .dy = t.dy, .x = t.x, .gamma = t.gamma, STATISTICS, GRADIENTS);
        CALL(instancenorm_infer, .x = t.x, .gamma = t.gamma, .beta = t.beta, .running_mean = t.running_mean,
             .running_var = t.running_var, .y = t.y, .rstd = t.frozen_rstd);
    }
    for (int kind = WF_DROPOUT; kind <= WF_ALPHA_DROPOUT; kind++)
        for (uint32_t flags = 0; flags <= WF_FEATURES; flags += WF_FEATURES) {
            const wf_dropout what = {.size = sizeof what,
                                     .x_dtype = x_dtype,
                                     .kind = (wf_dropout_kind)kind,
                                     .layout = layout,
                                     .flags = flags,
                                     .n = n,
                                     .c = c,
                                     .hw = hw,
                                     .p = 0.3};
            const wf_dropout_args forward = {
                .size = sizeof forward, .x = t.x, .y = t.y, .seed = 7, .offset = 3, .mask = t.dx};
            const wf_dropout_args backward = {.size = sizeof backward, .x = t.dy, .y = t.dx, .seed = 7, .offset = 3};
            print("dropout_forward", wf_dropout_forward(&what, &forward, &where), shape);
            print("dropout_backward", wf_dropout_backward(&what, &backward, &where), shape);
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

    for (size_t d = 0; d < sizeof dtypes / sizeof dtypes[0]; d++) {
        for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
            rows_and_cols(dtypes[d].x, dtypes[d].w, rows[i][0], rows[i][1]);
        for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
            for (int layout = WF_NCHW; layout <= WF_NHWC; layout++)
                channels(dtypes[d].x, dtypes[d].w, (wf_layout)layout, shapes[i][0], shapes[i][1], shapes[i][2]);
    }
    return failures != 0;
}
