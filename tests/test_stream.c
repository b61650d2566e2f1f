/* Outputs larger than the cache are written past it. The same tensors computed in parts small enough to be written as usual
 * give the same bits; nothing around an output is touched. */
#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "guard.h"
#include "welford.h"

Suite *stream_suite(void);

enum { C = 7, HW = 143, EACH = C * HW, PART = 512 }; /* odd, so that rows and samples begin anywhere in a cache line */

/* A workspace that lives until the next call. */
static wf_exec cpu(size_t workspace_size)
{
    static void *workspace;
    free(workspace);
    workspace = malloc(workspace_size + 1);
    return (wf_exec){.size = sizeof(wf_exec), .backend = WF_CPU, .workspace = workspace, .workspace_size = workspace_size};
}

/* Statistics that do not depend on the values, so that parts of a backward pass do not depend on each other. */
static const float *constants(int64_t n)
{
    static float *array;
    free(array);
    array = malloc((size_t)n * sizeof *array);
    for (int64_t i = 0; i < n; i++)
        array[i] = 1.25f;
    return array;
}

/* n rows or samples. */
typedef wf_status Compute(wf_dtype dtype, wf_layout layout, int64_t n, const void *x, const void *dy, void *out);

static wf_status layernorm_forward(wf_dtype dtype, wf_layout layout, int64_t n, const void *x, const void *dy, void *out)
{
    (void)layout, (void)dy;
    const wf_layernorm what = {.size = sizeof what, .x_dtype = dtype, .rows = n, .cols = EACH, .eps = 1e-5};
    const wf_layernorm_forward_args with = {.size = sizeof with, .x = x, .y = out};
    const wf_exec where = cpu(wf_layernorm_forward_workspace(&what, WF_CPU));
    return wf_layernorm_forward(&what, &with, &where);
}

static wf_status layernorm_backward(wf_dtype dtype, wf_layout layout, int64_t n, const void *x, const void *dy, void *out)
{
    (void)layout;
    const float *s = constants(n);
    const wf_layernorm what = {.size = sizeof what, .x_dtype = dtype, .rows = n, .cols = EACH};
    const wf_layernorm_backward_args with = {.size = sizeof with, .x = x, .dy = dy, .mean = s, .rstd = s, .dx = out};
    const wf_exec where = cpu(wf_layernorm_backward_workspace(&what, WF_CPU));
    return wf_layernorm_backward(&what, &with, &where);
}

static wf_status groupnorm_forward(wf_dtype dtype, wf_layout layout, int64_t n, const void *x, const void *dy, void *out)
{
    (void)dy;
    const wf_groupnorm what = {
        .size = sizeof what, .x_dtype = dtype, .layout = layout, .n = n, .c = C, .hw = HW, .groups = 1, .eps = 1e-5};
    const wf_groupnorm_forward_args with = {.size = sizeof with, .x = x, .y = out};
    const wf_exec where = cpu(wf_groupnorm_forward_workspace(&what, WF_CPU));
    return wf_groupnorm_forward(&what, &with, &where);
}

static wf_status groupnorm_backward(wf_dtype dtype, wf_layout layout, int64_t n, const void *x, const void *dy, void *out)
{
    const float *s = constants(n * C);
    const wf_groupnorm what = {
        .size = sizeof what, .x_dtype = dtype, .layout = layout, .n = n, .c = C, .hw = HW, .groups = C};
    const wf_groupnorm_backward_args with = {.size = sizeof with, .x = x, .dy = dy, .mean = s, .rstd = s, .dx = out};
    const wf_exec where = cpu(wf_groupnorm_backward_workspace(&what, WF_CPU));
    return wf_groupnorm_backward(&what, &with, &where);
}

static wf_status batchnorm_infer(wf_dtype dtype, wf_layout layout, int64_t n, const void *x, const void *dy, void *out)
{
    (void)dy;
    const float *s = constants(C);
    const wf_batchnorm what = {
        .size = sizeof what, .x_dtype = dtype, .layout = layout, .n = n, .c = C, .hw = HW, .eps = 1e-5};
    const wf_batchnorm_infer_args with = {.size = sizeof with, .x = x, .running_mean = s, .running_var = s, .y = out};
    const wf_exec where = cpu(wf_batchnorm_infer_workspace(&what, WF_CPU));
    return wf_batchnorm_infer(&what, &with, &where);
}

static wf_status batchnorm_backward(wf_dtype dtype, wf_layout layout, int64_t n, const void *x, const void *dy, void *out)
{
    const float *s = constants(C);
    const wf_batchnorm what = {
        .size = sizeof what, .x_dtype = dtype, .layout = layout, .flags = WF_FROZEN, .n = n, .c = C, .hw = HW};
    const wf_batchnorm_backward_args with = {.size = sizeof with, .x = x, .dy = dy, .mean = s, .rstd = s, .dx = out};
    const wf_exec where = cpu(wf_batchnorm_backward_workspace(&what, WF_CPU));
    return wf_batchnorm_backward(&what, &with, &where);
}

static Compute *const computes[] = {layernorm_forward, layernorm_backward, groupnorm_forward,
                                    groupnorm_backward, batchnorm_infer, batchnorm_backward};
enum { COMPUTES = sizeof computes / sizeof *computes };

/* Twice what a cache that reports no size is taken for, or the size reported: x and y together are surely past half. */
static int64_t large_bytes(void)
{
    const long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    return cache > (1 << 24) ? cache : 1 << 24;
}

static void fill(uint16_t *x, int64_t n, unsigned seed)
{
    for (int64_t i = 0; i < n; i++) { /* as bf16: 0.5 to 4 in magnitude; as a float's upper half likewise */
        seed = seed * 1664525u + 1013904223u;
        x[i] = (uint16_t)(0x3f00 + (seed >> 23) % 0x180 + (seed >> 31 << 15));
    }
}

static void compare(int which, wf_dtype dtype, wf_layout layout, size_t misalign)
{
    const size_t  element = dtype == WF_F32 ? 4 : 2, each = EACH * element;
    const int64_t n = large_bytes() / 2 / (int64_t)each + PART, size = n * (int64_t)each;
    char         *x = guard_alloc((size_t)size, 0), *dy = guard_alloc((size_t)size, 0);
    char         *whole = guard_alloc((size_t)size, misalign), *part = guard_alloc(PART * each, misalign);
    fill((uint16_t *)x, size / 2, 1);
    fill((uint16_t *)dy, size / 2, 2);
    ck_assert_int_eq(computes[which](dtype, layout, n, x, dy, whole), WF_OK);
    ck_assert_msg(guard_check(whole), "bytes around the output were written");
    for (int64_t i = 0; i < n; i += PART) {
        const int64_t m = n - i < PART ? n - i : PART;
        ck_assert_int_eq(computes[which](dtype, layout, m, x + (size_t)i * each, dy + (size_t)i * each, part), WF_OK);
        if (memcmp(part, whole + (size_t)i * each, (size_t)m * each) != 0)
            ck_abort_msg("rows or samples from %lld of %lld differ when written past the cache", (long long)i, (long long)n);
    }
    guard_free(x);
    guard_free(dy);
    guard_free(whole);
    guard_free(part);
}

START_TEST(same_bits_as_in_parts)
{
    for (int layout = 0; layout < 2; layout++)
        for (int i = 0; i < 2; i++)
            compare(_i, i ? WF_BF16 : WF_F32, (wf_layout)layout, i ? 2 : 4);
}
END_TEST

/* The mask is tested elsewhere; here that y follows it. */
START_TEST(dropout_follows_its_mask)
{
    const int64_t n = large_bytes() / 8 + 12345;
    float        *x = malloc((size_t)n * sizeof *x), *y = guard_alloc((size_t)n * sizeof *y, 4);
    uint8_t      *mask = malloc((size_t)(n + 7) / 8);
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)(i % 1000 + 1);
    const wf_dropout      what = {.size = sizeof what, .n = 1, .c = 1, .hw = n, .p = 0.5};
    const wf_dropout_args with = {.size = sizeof with, .x = x, .y = y, .mask = mask, .seed = 5};
    const wf_exec         where = cpu(0);
    ck_assert_int_eq(wf_dropout_forward(&what, &with, &where), WF_OK);
    ck_assert(guard_check(y));
    for (int64_t i = 0; i < n; i++)
        if (y[i] != (mask[i / 8] >> i % 8 & 1 ? 2 * x[i] : 0))
            ck_abort_msg("element %lld is %g", (long long)i, (double)y[i]);
    free(x);
    free(mask);
    guard_free(y);
}
END_TEST

Suite *stream_suite(void)
{
    Suite *s = suite_create("stream");
    TCase *t = tcase_create("stream");
    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, same_bits_as_in_parts, 0, COMPUTES);
    tcase_add_test(t, dropout_follows_its_mask);
    suite_add_tcase(s, t);
    return s;
}
