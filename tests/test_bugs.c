/* Bugs that other libraries shipped, one test each, named after where it was found. Those that need more than 2^31 elements
 * are in test_bugs_large.c. What does not apply to a CPU: a backward pass on the default stream (Liger#1450), allocation
 * or synchronisation while a graph is captured (pytorch#78549), and the capture itself in pytorch#84614. Bugs of others'
 * tests (an oracle with the library's own mistake, NaN that compares equal, one bad row in a mean error, a buffer compared
 * with itself) are tests of compare.c at the end.
 *
 * Values are chosen so that every result is exact: xhat is +1 or -1, and sums are small integers. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "guard.h"
#include "oracle_dropout.h"
#include "welford.h"

Suite *bugs_suite(void);

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))
static const wf_exec on_cpu = {.size = sizeof on_cpu};

/* ---- helpers: arrays of floats in guarded memory, a workspace of the size asked for ---- */

static float *floats(int64_t count, float value)
{
    float *data = guard_alloc((size_t)count * sizeof *data, 0);
    for (int64_t i = 0; i < count; i++)
        data[i] = value;
    return data;
}

static void free_floats(float *data)
{
    ck_assert_msg(guard_check(data), "bytes around a buffer were written");
    guard_free(data);
}

static wf_exec with_workspace(size_t size)
{
    wf_exec where = on_cpu;
    where.workspace = guard_alloc(size, 0);
    where.workspace_size = size;
    return where;
}

static void done(wf_status status, wf_exec *where)
{
    ck_assert_msg(status == WF_OK, "%s", wf_error_detail());
    if (where->workspace)
        ck_assert_msg(guard_check(where->workspace), "bytes around the workspace were written");
    guard_free(where->workspace);
}

static void layernorm(wf_layernorm what, wf_layernorm_forward_args with)
{
    what.size = sizeof what;
    with.size = sizeof with;
    wf_exec where = with_workspace(wf_layernorm_forward_workspace(&what, WF_CPU));
    done(wf_layernorm_forward(&what, &with, &where), &where);
}

static void layernorm_back(wf_layernorm what, wf_layernorm_backward_args with)
{
    what.size = sizeof what;
    with.size = sizeof with;
    wf_exec where = with_workspace(wf_layernorm_backward_workspace(&what, WF_CPU));
    done(wf_layernorm_backward(&what, &with, &where), &where);
}

static void groupnorm(wf_groupnorm what, wf_groupnorm_forward_args with)
{
    what.size = sizeof what;
    with.size = sizeof with;
    wf_exec where = with_workspace(wf_groupnorm_forward_workspace(&what, WF_CPU));
    done(wf_groupnorm_forward(&what, &with, &where), &where);
}

static void batchnorm(wf_batchnorm what, wf_batchnorm_train_args with)
{
    what.size = sizeof what;
    with.size = sizeof with;
    wf_exec where = with_workspace(wf_batchnorm_train_workspace(&what, WF_CPU));
    done(wf_batchnorm_train(&what, &with, &where), &where);
}

static void batchnorm_back(wf_batchnorm what, wf_batchnorm_backward_args with)
{
    what.size = sizeof what;
    with.size = sizeof with;
    wf_exec where = with_workspace(wf_batchnorm_backward_workspace(&what, WF_CPU));
    done(wf_batchnorm_backward(&what, &with, &where), &where);
}

static float sign_of(int64_t i)
{
    return i % 2 ? -1 : 1;
}

/* ---- sizes ---- */

/* pytorch#16998, #2917, apex#411: a batch above 65535, and above 131070. Row r is centre r % 7, spread 1. */
START_TEST(batch_above_65535)
{
    static const int64_t batches[] = {65535, 65536, 65537, 131070, 131073};
    const int64_t rows = batches[_i], cols = 2;
    float *x = floats(rows * cols, 0), *y = floats(rows * cols, 9), *mean = floats(rows, 9), *rstd = floats(rows, 9);
    for (int64_t i = 0; i < rows * cols; i++)
        x[i] = (float)(i / cols % 7) + sign_of(i);
    layernorm((wf_layernorm){.rows = rows, .cols = cols},
              (wf_layernorm_forward_args){.x = x, .y = y, .mean = mean, .rstd = rstd});
    for (int64_t i = 0; i < rows * cols; i++)
        if (y[i] != sign_of(i) || mean[i / cols] != (float)(i / cols % 7) || rstd[i / cols] != 1)
            ck_abort_msg("layernorm, %lld rows: row %lld", (long long)rows, (long long)(i / cols));
    memset(y, 0, (size_t)(rows * cols) * sizeof *y);
    groupnorm((wf_groupnorm){.n = rows, .c = 1, .hw = cols, .groups = 1},
              (wf_groupnorm_forward_args){.x = x, .y = y, .mean = mean});
    for (int64_t i = 0; i < rows * cols; i++)
        if (y[i] != sign_of(i) || mean[i / cols] != (float)(i / cols % 7))
            ck_abort_msg("groupnorm, n = %lld: sample %lld", (long long)rows, (long long)(i / cols));
    for (int64_t i = 0; i < rows * cols; i++)
        x[i] = 5 + sign_of(i);
    float channel_mean = 9;
    batchnorm((wf_batchnorm){.n = rows, .c = 1, .hw = cols}, (wf_batchnorm_train_args){.x = x, .y = y, .mean = &channel_mean});
    ck_assert_float_eq(channel_mean, 5);
    for (int64_t i = 0; i < rows * cols; i++)
        if (y[i] != sign_of(i))
            ck_abort_msg("batchnorm, n = %lld: sample %lld", (long long)rows, (long long)(i / cols));
    free_floats(x), free_floats(y), free_floats(mean), free_floats(rstd);
}
END_TEST

/* llm.c, TransformerEngine#34: the guard of the last row off by one. Every number of rows; the memory around is guarded. */
START_TEST(row_guard_off_by_one)
{
    for (int64_t rows = 0; rows <= 70; rows++)
        for (int64_t cols = 2; cols <= 34; cols += 16) {
            float *x = floats(rows * cols, 0), *y = floats(rows * cols, 9), *mean = floats(rows, 9);
            for (int64_t i = 0; i < rows * cols; i++)
                x[i] = (float)(i / cols) + sign_of(i);
            layernorm((wf_layernorm){.rows = rows, .cols = cols}, (wf_layernorm_forward_args){.x = x, .y = y, .mean = mean});
            for (int64_t i = 0; i < rows * cols; i++)
                if (y[i] != sign_of(i) || mean[i / cols] != (float)(i / cols))
                    ck_abort_msg("%lld rows of %lld: row %lld", (long long)rows, (long long)cols, (long long)(i / cols));
            free_floats(x), free_floats(y), free_floats(mean);
        }
}
END_TEST

/* apex#1984: a division by zero where blocks = 256 / n is 0. */
START_TEST(more_than_256_of_anything)
{
    static const int64_t shapes[][3] = {{257, 3, 2}, {1000, 1, 2}, {2, 257, 2}, {2, 1025, 2}, {3, 2, 514}, {300, 300, 2}};
    const int64_t n = shapes[_i][0], c = shapes[_i][1], hw = shapes[_i][2], count = n * c * hw;
    float *x = floats(count, 0), *y = floats(count, 9);
    for (int layout = WF_NCHW; layout <= WF_NHWC; layout++) {
        for (int64_t i = 0; i < count; i++)
            x[i] = 3 + sign_of(layout == WF_NCHW ? i : i / c);
        batchnorm((wf_batchnorm){.layout = (wf_layout)layout, .n = n, .c = c, .hw = hw},
                  (wf_batchnorm_train_args){.x = x, .y = y});
        for (int64_t i = 0; i < count; i++)
            if (y[i] != x[i] - 3)
                ck_abort_msg("batchnorm, layout %d: %lld", layout, (long long)i);
        memset(y, 0, (size_t)count * sizeof *y);
        groupnorm((wf_groupnorm){.layout = (wf_layout)layout, .n = n, .c = c, .hw = hw, .groups = c},
                  (wf_groupnorm_forward_args){.x = x, .y = y});
        for (int64_t i = 0; i < count; i++)
            if (y[i] != x[i] - 3)
                ck_abort_msg("groupnorm, layout %d: %lld", layout, (long long)i);
    }
    free_floats(x), free_floats(y);
}
END_TEST

/* pytorch#29578, #120803, #80893, tensorflow#46366: empty tensors crash. Gradients and running statistics have values. */
START_TEST(empty_tensors)
{
    float dgamma[3] = {9, 9, 9}, dbeta[3] = {9, 9, 9}, mean[3] = {1, 2, 3}, var[3] = {4, 5, 6}, out[6];
    layernorm_back((wf_layernorm){.rows = 0, .cols = 3}, (wf_layernorm_backward_args){.dgamma = dgamma, .dbeta = dbeta});
    for (int i = 0; i < 3; i++)
        ck_assert(dgamma[i] == 0 && dbeta[i] == 0);
    dgamma[1] = dbeta[1] = 7;
    layernorm_back((wf_layernorm){.rows = 0, .cols = 3, .flags = WF_ACCUMULATE},
                   (wf_layernorm_backward_args){.dgamma = dgamma, .dbeta = dbeta});
    ck_assert(dgamma[1] == 7 && dbeta[1] == 7);
    for (int by = 0; by < 2; by++) {
        const wf_batchnorm what = {.n = by ? 0 : 2, .c = 3, .hw = by ? 4 : 0, .momentum = .1};
        batchnorm(what, (wf_batchnorm_train_args){.running_mean_in = mean, .running_var_in = var, .running_mean_out = out,
                                                  .running_var_out = out + 3});
        ck_assert_mem_eq(out, mean, sizeof mean);
        ck_assert_mem_eq(out + 3, var, sizeof var);
        batchnorm(what, (wf_batchnorm_train_args){.running_mean_in = mean, .running_var_in = var, .running_mean_out = mean,
                                                  .running_var_out = var});
        ck_assert_mem_eq(out, mean, sizeof mean);
        dgamma[0] = dbeta[2] = 9;
        batchnorm_back(what, (wf_batchnorm_backward_args){.dgamma = dgamma, .dbeta = dbeta});
        for (int i = 0; i < 3; i++)
            ck_assert(dgamma[i] == 0 && dbeta[i] == 0);
    }
    float row_mean[4] = {9, 9, 9, 9}, row_rstd[4] = {9, 9, 9, 9}; /* of nothing: 0 */
    layernorm((wf_layernorm){.rows = 4, .cols = 0, .eps = 1}, (wf_layernorm_forward_args){.mean = row_mean, .rstd = row_rstd});
    for (int i = 0; i < 4; i++)
        ck_assert_float_eq(row_mean[i], 0);
}
END_TEST

/* pytorch#1381: n = 1 gave a NaN running variance. One value per channel is refused; two have a finite one. */
START_TEST(running_variance_of_one)
{
    float x[2] = {1, 3}, y[2], mean = 0, var = 1;
    wf_batchnorm what = {.size = sizeof what, .n = 1, .c = 1, .hw = 1, .momentum = 1};
    const wf_batchnorm_train_args with = {.size = sizeof with, .x = x, .y = y, .running_mean_in = &mean,
                                          .running_var_in = &var, .running_mean_out = &mean, .running_var_out = &var};
    ck_assert_int_eq(wf_batchnorm_train(&what, &with, &on_cpu), WF_INVALID);
    ck_assert(mean == 0 && var == 1);
    what.hw = 2;
    batchnorm(what, with);
    ck_assert(mean == 2 && var == 2); /* unbiased: ((1 - 2)^2 + (3 - 2)^2) / (2 - 1) */
}
END_TEST

/* pytorch#73188: groups = 0 divides by it. */
START_TEST(groups_of_zero)
{
    float x[4] = {0}, y[4];
    const wf_groupnorm what = {.size = sizeof what, .n = 1, .c = 4, .hw = 1, .groups = 0};
    const wf_groupnorm_forward_args with = {.size = sizeof with, .x = x, .y = y};
    ck_assert_int_eq(wf_groupnorm_forward(&what, &with, &on_cpu), WF_INVALID);
    ck_assert_uint_eq(wf_groupnorm_forward_workspace(&what, WF_CPU), 0);
    ck_assert_uint_eq(wf_groupnorm_backward_workspace(&what, WF_CPU), 0);
}
END_TEST

/* ---- numbers ---- */

/* caffe#3963, pytorch#5410: a constant channel is not 0 after the norm. It is exactly beta, for any constant and eps. */
START_TEST(constant_channel)
{
    static const float constants[] = {.1f, -3.7f, 1e4f, 16777217.f, 1e-30f, 3e18f, 0};
    static const int64_t lengths[] = {1, 2, 3, 49, 1000, 1023, 4099, 70001};
    for (int k = 0; k < COUNT(constants); k++)
        for (int l = 0; l < COUNT(lengths); l++)
            for (int eps = 0; eps < 2; eps++) {
                const int64_t length = lengths[l], rows = 3;
                const float beta = .3f;
                float *x = floats(rows * length, constants[k]), *y = floats(rows * length, 9);
                float *betas = floats(length, beta), channel_betas[3] = {beta, beta, beta};
                layernorm((wf_layernorm){.rows = rows, .cols = length, .eps = eps * 1e-5},
                          (wf_layernorm_forward_args){.x = x, .beta = betas, .y = y});
                for (int64_t i = 0; i < rows * length; i++)
                    if (y[i] != beta)
                        ck_abort_msg("layernorm of %g x %lld: %a", (double)constants[k], (long long)length, (double)y[i]);
                for (int layout = WF_NCHW; layout <= WF_NHWC && length > 1; layout++) {
                    memset(y, 0, (size_t)(rows * length) * sizeof *y);
                    batchnorm((wf_batchnorm){.layout = (wf_layout)layout, .n = 1, .c = 3, .hw = length, .eps = eps * 1e-5},
                              (wf_batchnorm_train_args){.x = x, .beta = channel_betas, .y = y});
                    for (int64_t i = 0; i < rows * length; i++)
                        if (y[i] != beta)
                            ck_abort_msg("batchnorm of %g x %lld: %a", (double)constants[k], (long long)length, (double)y[i]);
                }
                free_floats(x), free_floats(y), free_floats(betas);
            }
}
END_TEST

/* pytorch#162489: a variance of 1e30 overflowed. */
START_TEST(large_variance)
{
    static const float spreads[] = {0x1p15f, 0x1p50f, 0x1p60f};
    enum { COLS = 1000 };
    for (int k = 0; k < COUNT(spreads); k++) {
        float x[COLS], y[COLS], rstd = 0;
        for (int i = 0; i < COLS; i++)
            x[i] = sign_of(i) * spreads[k];
        layernorm((wf_layernorm){.rows = 1, .cols = COLS, .eps = 1e-5},
                  (wf_layernorm_forward_args){.x = x, .y = y, .rstd = &rstd});
        ck_assert_float_eq(rstd, 1 / spreads[k]);
        for (int i = 0; i < COLS; i++)
            ck_assert_msg(y[i] == sign_of(i), "%g: %g", (double)x[i], (double)y[i]);
    }
}
END_TEST

/* pytorch#140259: mean or rstd stored in bf16. 1 and 1 + 2^-7 are neighbours there; their mean is between them. */
START_TEST(statistics_of_bf16_are_floats)
{
    const uint16_t x[2] = {oracle_narrow(WF_BF16, 1), oracle_narrow(WF_BF16, 1 + 0x1p-7)};
    uint16_t y[2];
    float mean = 0, rstd = 0;
    layernorm((wf_layernorm){.x_dtype = WF_BF16, .w_dtype = WF_F32, .rows = 1, .cols = 2, .eps = 3 * 0x1p-16},
              (wf_layernorm_forward_args){.x = x, .y = y, .mean = &mean, .rstd = &rstd});
    ck_assert_float_eq(mean, 1 + 0x1p-8f);
    ck_assert_float_eq(rstd, 128); /* var = 2^-16, + eps = 2^-14 */
}
END_TEST

/* Liger#950, llm.c#476: dgamma reduced in bf16, where 256 + 1 is 256, or by atomics, where runs differ. pytorch#193016:
 * scratch sized wrong only above 65536 rows. torch-xpu-ops#4790: dgamma aliased as dbeta above a size. pytorch#183861: half
 * of dgamma dropped by a hard-coded warp size. xhat = 1 in even columns, -1 in odd ones; dy = 1 or 2 by column. */
static void check_parameter_gradients(wf_dtype x_dtype, wf_dtype w_dtype, int64_t rows, int64_t cols)
{
    const size_t x_size = x_dtype == WF_F32 ? 4 : 2, w_size = w_dtype == WF_F32 ? 4 : 2;
    char *x = guard_alloc((size_t)(rows * cols) * x_size, 0), *dy = guard_alloc((size_t)(rows * cols) * x_size, 0);
    char *dgamma = guard_alloc((size_t)cols * w_size, 0), *dbeta = guard_alloc((size_t)cols * w_size, 0);
    float *mean = floats(rows, 3), *rstd = floats(rows, 1);
    for (int64_t i = 0; i < rows * cols; i++) {
        const float value = 3 + sign_of(i % cols), slope = (float)(1 + i % cols % 3);
        const uint16_t value16 = oracle_narrow(WF_BF16, value), slope16 = oracle_narrow(WF_BF16, slope);
        memcpy(x + (size_t)i * x_size, x_size == 4 ? (const void *)&value : &value16, x_size);
        memcpy(dy + (size_t)i * x_size, x_size == 4 ? (const void *)&slope : &slope16, x_size);
    }
    layernorm_back((wf_layernorm){.x_dtype = x_dtype, .w_dtype = w_dtype, .rows = rows, .cols = cols},
                   (wf_layernorm_backward_args){.dy = dy, .x = x, .mean = mean, .rstd = rstd, .dgamma = dgamma, .dbeta = dbeta});
    for (int64_t k = 0; k < cols; k++) {
        const float sum = (float)(rows * (1 + k % 3)), got[2] = {((float *)dgamma)[w_size == 4 ? k : 0],
                                                                 ((float *)dbeta)[w_size == 4 ? k : 0]};
        const int good = w_size == 4 ? got[0] == sum * sign_of(k) && got[1] == sum
                                     : ((uint16_t *)dgamma)[k] == oracle_narrow(WF_BF16, sum * sign_of(k)) &&
                                           ((uint16_t *)dbeta)[k] == oracle_narrow(WF_BF16, sum);
        if (!good)
            ck_abort_msg("[%lld, %lld], w %d: column %lld", (long long)rows, (long long)cols, w_dtype, (long long)k);
    }
    ck_assert(guard_check(dgamma) && guard_check(dbeta));
    guard_free(x), guard_free(dy), guard_free(dgamma), guard_free(dbeta);
    free_floats(mean), free_floats(rstd);
}

START_TEST(dgamma_sums_are_wide)
{
    check_parameter_gradients(WF_BF16, WF_BF16, 4099, 6);
    check_parameter_gradients(WF_BF16, WF_F32, 4099, 6);
    check_parameter_gradients(WF_BF16, WF_F32, 70001, 33);
}
END_TEST

START_TEST(scratch_above_65536_rows)
{
    static const int64_t rows[] = {65535, 65536, 65537, 131073};
    check_parameter_gradients(WF_F32, WF_F32, rows[_i], 5);
}
END_TEST

START_TEST(every_column_of_dgamma)
{
    static const int64_t sizes[] = {1, 2, 31, 32, 33, 63, 64, 65, 127, 129, 255, 256, 257, 1023, 1024, 1025, 4097, 16385};
    for (int i = 0; i < COUNT(sizes); i++)
        for (int64_t rows = 1; rows <= 65; rows += 16)
            check_parameter_gradients(WF_F32, WF_F32, rows, sizes[i]);
}
END_TEST

/* ---- layouts ---- */

/* pytorch#57077, apex#1768: channels-last statistics wrong where c is not a power of two. Channel k has mean k - 2 and
 * spread 2^(k % 3), exactly. */
START_TEST(channels_last_any_c)
{
    static const int64_t channels[] = {1, 2, 3, 5, 7, 12, 31, 33, 35, 65, 100, 320, 1000};
    const int64_t c = channels[_i], n = 3, hw = 34, count = n * c * hw;
    float *x = floats(count, 0), *y = floats(count, 9), *mean = floats(n * c, 9), *rstd = floats(n * c, 9);
    for (int64_t i = 0; i < count; i++)
        x[i] = (float)(i % c - 2) + sign_of(i / c) * (float)(1 << i % c % 3);
    batchnorm((wf_batchnorm){.layout = WF_NHWC, .n = n, .c = c, .hw = hw},
              (wf_batchnorm_train_args){.x = x, .y = y, .mean = mean, .rstd = rstd});
    for (int64_t i = 0; i < count; i++)
        if (y[i] != sign_of(i / c) || mean[i % c] != (float)(i % c - 2) || rstd[i % c] != 1 / (float)(1 << i % c % 3))
            ck_abort_msg("batchnorm, c = %lld: element %lld", (long long)c, (long long)i);
    memset(y, 0, (size_t)count * sizeof *y);
    groupnorm((wf_groupnorm){.layout = WF_NHWC, .n = n, .c = c, .hw = hw, .groups = c},
              (wf_groupnorm_forward_args){.x = x, .y = y, .mean = mean, .rstd = rstd});
    for (int64_t i = 0; i < count; i++) {
        const int64_t at = i / (c * hw) * c + i % c;
        if (y[i] != sign_of(i / c) || mean[at] != (float)(i % c - 2) || rstd[at] != 1 / (float)(1 << i % c % 3))
            ck_abort_msg("groupnorm, c = %lld: element %lld", (long long)c, (long long)i);
    }
    free_floats(x), free_floats(y), free_floats(mean), free_floats(rstd);
}
END_TEST

/* TransformerEngine#490, #886: unaligned pointers into vector kernels. Also: an odd row length misaligns the next row. */
START_TEST(unaligned_pointers_and_odd_rows)
{
    for (int64_t cols = 1; cols <= 67; cols += 2)
        for (size_t shift = 2; shift <= 14; shift += 4) {
            const int64_t rows = 5;
            const size_t size = (size_t)(rows * cols) * 2;
            uint16_t *x[2] = {guard_alloc(size, 0), guard_alloc(size, shift)};
            uint16_t *y[2] = {guard_alloc(size, 0), guard_alloc(size, (shift + 6) % 16)};
            for (int64_t i = 0; i < rows * cols; i++)
                x[0][i] = x[1][i] = oracle_narrow(WF_F16, (double)(i * i % 61) / 4);
            for (int k = 0; k < 2; k++)
                layernorm((wf_layernorm){.x_dtype = WF_F16, .w_dtype = WF_F16, .rows = rows, .cols = cols, .eps = 1e-5},
                          (wf_layernorm_forward_args){.x = x[k], .y = y[k]});
            ck_assert_mem_eq(y[0], y[1], size);
            for (int64_t r = 0; r < rows; r++) { /* each row alone, aligned */
                uint16_t alone[67], row[67];
                memcpy(row, x[0] + r * cols, (size_t)cols * 2);
                layernorm((wf_layernorm){.x_dtype = WF_F16, .w_dtype = WF_F16, .rows = 1, .cols = cols, .eps = 1e-5},
                          (wf_layernorm_forward_args){.x = row, .y = alone});
                ck_assert_mem_eq(alone, y[0] + r * cols, (size_t)cols * 2);
            }
            for (int k = 0; k < 2; k++) {
                ck_assert(guard_check(x[k]) && guard_check(y[k]));
                guard_free(x[k]), guard_free(y[k]);
            }
        }
}
END_TEST

/* unsloth#10617: a non-contiguous dy read as if it were contiguous. */
START_TEST(strided_dy)
{
    enum { ROWS = 9, COLS = 13, WIDE = 20 };
    float x[ROWS * COLS], dy[ROWS * COLS], wide[ROWS * WIDE], dx[2][ROWS * COLS], dgamma[2][COLS], dbeta[2][COLS];
    float mean[ROWS], rstd[ROWS], y[ROWS * COLS];
    for (int i = 0; i < ROWS * WIDE; i++)
        wide[i] = NAN; /* the gaps */
    for (int i = 0; i < ROWS * COLS; i++) {
        x[i] = (float)(i * i % 17);
        wide[i / COLS * WIDE + i % COLS] = dy[i] = (float)(i * 5 % 11) - 4;
    }
    wf_layernorm what = {.rows = ROWS, .cols = COLS, .eps = 1e-5};
    layernorm(what, (wf_layernorm_forward_args){.x = x, .y = y, .mean = mean, .rstd = rstd});
    for (int k = 0; k < 2; k++) {
        what.dy_stride = k ? WIDE : 0;
        layernorm_back(what, (wf_layernorm_backward_args){.dy = k ? wide : dy, .x = x, .mean = mean, .rstd = rstd,
                                                          .dx = dx[k], .dgamma = dgamma[k], .dbeta = dbeta[k]});
    }
    ck_assert_mem_eq(dx[0], dx[1], sizeof dx[0]);
    ck_assert_mem_eq(dgamma[0], dgamma[1], sizeof dgamma[0]);
    ck_assert_mem_eq(dbeta[0], dbeta[1], sizeof dbeta[0]);
}
END_TEST

/* ---- dropout ---- */

enum { DROPOUT_COUNT = 4096 };

static void dropout(double p, wf_dropout_args with)
{
    const wf_dropout what = {.size = sizeof what, .n = 1, .c = 1, .hw = DROPOUT_COUNT, .p = p};
    with.size = sizeof with;
    ck_assert_msg(wf_dropout_forward(&what, &with, &on_cpu) == WF_OK, "%s", wf_error_detail());
}

/* pytorch#84614: the seed frozen in a captured graph: it is read at every call. xformers#173: the seed's address used as
 * the seed: the same seed at another address is the same. */
START_TEST(seed_pointer)
{
    static float x[DROPOUT_COUNT], y[3][DROPOUT_COUNT];
    uint64_t seeds[2] = {7, 7}, offset = 3;
    for (int i = 0; i < DROPOUT_COUNT; i++)
        x[i] = 1;
    dropout(.5, (wf_dropout_args){.x = x, .y = y[0], .seed_ptr = &seeds[0], .offset_ptr = &offset});
    dropout(.5, (wf_dropout_args){.x = x, .y = y[1], .seed_ptr = &seeds[1], .offset = 3});
    dropout(.5, (wf_dropout_args){.x = x, .y = y[2], .seed = 7, .offset = 1, .offset_ptr = (uint64_t[]){2}});
    ck_assert_mem_eq(y[0], y[1], sizeof y[0]);
    ck_assert_mem_eq(y[0], y[2], sizeof y[0]);
    seeds[0] = 8;
    dropout(.5, (wf_dropout_args){.x = x, .y = y[1], .seed_ptr = &seeds[0], .offset_ptr = &offset});
    ck_assert_mem_ne(y[0], y[1], sizeof y[0]);
    offset = 4;
    dropout(.5, (wf_dropout_args){.x = x, .y = y[2], .seed_ptr = &seeds[1], .offset_ptr = &offset});
    ck_assert_mem_ne(y[0], y[2], sizeof y[0]);
}
END_TEST

/* nvfuser#1799: p = 0 still drops. */
START_TEST(nothing_dropped_at_zero)
{
    static float x[DROPOUT_COUNT], y[DROPOUT_COUNT];
    for (int i = 0; i < DROPOUT_COUNT; i++)
        x[i] = (float)i + .5f;
    for (uint64_t seed = 0; seed < 300; seed++) {
        dropout(0, (wf_dropout_args){.x = x, .y = y, .seed = seed});
        ck_assert_mem_eq(x, y, sizeof x);
    }
}
END_TEST

/* apex#1614: an 8-bit keep threshold, which cannot tell p = .001 from 0. */
START_TEST(threshold_of_32_bits)
{
    static float x[DROPOUT_COUNT], y[DROPOUT_COUNT];
    int dropped = 0, expected = 0;
    for (int i = 0; i < DROPOUT_COUNT; i++)
        x[i] = 1;
    for (uint64_t seed = 0; seed < 8; seed++) {
        dropout(.001, (wf_dropout_args){.x = x, .y = y, .seed = seed});
        for (int i = 0; i < DROPOUT_COUNT; i++) {
            dropped += y[i] == 0;
            expected += !oracle_dropout_keep(.001, seed, 0, (uint64_t)i);
        }
    }
    ck_assert_int_eq(dropped, expected);
    ck_assert_int_gt(expected, 10);
}
END_TEST

/* apex#816: scaled by p instead of 1 / (1 - p). */
START_TEST(scaled_by_what_is_kept)
{
    static float x[DROPOUT_COUNT], y[DROPOUT_COUNT];
    int kept = 0;
    for (int i = 0; i < DROPOUT_COUNT; i++)
        x[i] = 3;
    dropout(.25, (wf_dropout_args){.x = x, .y = y, .seed = 1});
    for (int i = 0; i < DROPOUT_COUNT; i++) {
        ck_assert(y[i] == 0 || y[i] == 4);
        kept += y[i] == 4;
    }
    ck_assert(kept > DROPOUT_COUNT / 2 && kept < DROPOUT_COUNT);
}
END_TEST

Suite *bugs_suite(void)
{
    Suite *s = suite_create("bugs");
    TCase *t = tcase_create("bugs");
    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, batch_above_65535, 0, 5);
    tcase_add_test(t, row_guard_off_by_one);
    tcase_add_loop_test(t, more_than_256_of_anything, 0, 6);
    tcase_add_test(t, empty_tensors);
    tcase_add_test(t, running_variance_of_one);
    tcase_add_test(t, groups_of_zero);
    tcase_add_test(t, constant_channel);
    tcase_add_test(t, large_variance);
    tcase_add_test(t, statistics_of_bf16_are_floats);
    tcase_add_test(t, dgamma_sums_are_wide);
    tcase_add_loop_test(t, scratch_above_65536_rows, 0, 4);
    tcase_add_test(t, every_column_of_dgamma);
    tcase_add_loop_test(t, channels_last_any_c, 0, 13);
    tcase_add_test(t, unaligned_pointers_and_odd_rows);
    tcase_add_test(t, strided_dy);
    tcase_add_test(t, seed_pointer);
    tcase_add_test(t, nothing_dropped_at_zero);
    tcase_add_test(t, threshold_of_32_bits);
    tcase_add_test(t, scaled_by_what_is_kept);
    suite_add_tcase(s, t);
    return s;
}
