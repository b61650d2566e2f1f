/* Indices of 32 bits, above 2^31 or 2^32 elements (pytorch#181555, flashinfer#3391, vllm#42862), with little memory: rows
 * far apart in a mapping that is never touched between them, or one small file mapped again and again as a long tensor. */
#define _GNU_SOURCE /* memfd_create */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "oracle_dropout.h"
#include "welford.h"

Suite *bugs_large_suite(void);

static const wf_exec on_cpu = {.size = sizeof on_cpu};

static wf_exec with_workspace(size_t size)
{
    wf_exec where = on_cpu;
    where.workspace = malloc(size + 1);
    where.workspace_size = size;
    return where;
}

/* ---- rows far apart ---- */

enum { ROWS = 5, COLS = 37 };
#define APART (INT64_C(1) << 30) /* elements from row to row: the last row begins at element 2^32 */

/* Checking builds shadow every byte that is touched, at a price: they run the first of these tests only. */
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
enum { SHADOWED = 1 };
#else
enum { SHADOWED = 0 };
#endif

static void *reserve(size_t size)
{
    void *data = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    ck_assert_msg(data != MAP_FAILED, "%zu bytes of address space", size);
    return data;
}

/* Five far rows of f16 and the same rows together: every output has the same bits, forward and backward. */
START_TEST(rows_beyond_two_to_the_32)
{
    const size_t size = (size_t)(ROWS * APART) * 2;
    uint16_t *far_x = reserve(size), *far_dy = reserve(size), *far_y = reserve(size), *far_dx = reserve(size);
    uint16_t x[ROWS * COLS], dy[ROWS * COLS], y[ROWS * COLS], dx[ROWS * COLS];
    float mean[2][ROWS], rstd[2][ROWS], dgamma[2][COLS], dbeta[2][COLS];
    for (int i = 0; i < ROWS * COLS; i++) {
        const int64_t at = i / COLS * APART + i % COLS;
        far_x[at] = x[i] = oracle_narrow(WF_F16, (double)(i * i % 101) / 8);
        far_dy[at] = dy[i] = oracle_narrow(WF_F16, (double)(i * 7 % 13) - 6);
    }
    for (int far_apart = 0; far_apart < 2; far_apart++) {
        const wf_layernorm what = {.size = sizeof what, .x_dtype = WF_F16, .w_dtype = WF_F32, .rows = ROWS, .cols = COLS,
                                   .x_stride = far_apart ? APART : 0, .y_stride = far_apart ? APART : 0, .eps = 1e-5};
        const wf_layernorm_forward_args forward = {.size = sizeof forward, .x = far_apart ? far_x : x,
                                                   .y = far_apart ? far_y : y, .mean = mean[far_apart],
                                                   .rstd = rstd[far_apart]};
        ck_assert_msg(wf_layernorm_forward(&what, &forward, &on_cpu) == WF_OK, "%s", wf_error_detail());
        const wf_layernorm_backward_args backward = {.size = sizeof backward, .x = forward.x,
                                                     .dy = far_apart ? far_dy : dy, .mean = mean[far_apart],
                                                     .rstd = rstd[far_apart], .dx = far_apart ? far_dx : dx,
                                                     .dgamma = dgamma[far_apart], .dbeta = dbeta[far_apart]};
        wf_exec where = with_workspace(wf_layernorm_backward_workspace(&what, WF_CPU));
        ck_assert_msg(wf_layernorm_backward(&what, &backward, &where) == WF_OK, "%s", wf_error_detail());
        free(where.workspace);
    }
    for (int r = 0; r < ROWS; r++) {
        ck_assert_mem_eq(far_y + r * APART, y + r * COLS, COLS * sizeof *y);
        ck_assert_mem_eq(far_dx + r * APART, dx + r * COLS, COLS * sizeof *dx);
    }
    ck_assert_mem_eq(mean[0], mean[1], sizeof mean[0]);
    ck_assert_mem_eq(rstd[0], rstd[1], sizeof rstd[0]);
    ck_assert_mem_eq(dgamma[0], dgamma[1], sizeof dgamma[0]);
    ck_assert_mem_eq(dbeta[0], dbeta[1], sizeof dbeta[0]);

    const wf_rmsnorm what = {.size = sizeof what, .x_dtype = WF_F16, .w_dtype = WF_F32, .rows = ROWS, .cols = COLS,
                             .x_stride = APART, .y_stride = APART, .eps = 1e-5};
    wf_rmsnorm near_what = what;
    near_what.x_stride = near_what.y_stride = 0;
    const wf_rmsnorm_forward_args with = {.size = sizeof with, .x = far_x, .y = far_y};
    const wf_rmsnorm_forward_args near_with = {.size = sizeof with, .x = x, .y = y};
    ck_assert_int_eq(wf_rmsnorm_forward(&what, &with, &on_cpu), WF_OK);
    ck_assert_int_eq(wf_rmsnorm_forward(&near_what, &near_with, &on_cpu), WF_OK);
    for (int r = 0; r < ROWS; r++)
        ck_assert_mem_eq(far_y + r * APART, y + r * COLS, COLS * sizeof *y);
    munmap(far_x, size), munmap(far_dy, size), munmap(far_y, size), munmap(far_dx, size);
}
END_TEST

/* ---- long tensors ---- */

/* RING bytes of memory, mapped one after the other, TURNS times, then TAIL bytes of other memory. In f16 that is 2^31
 * elements before the tail. What is written to the turns lands in the same place: it has to be the same for all. */
#define RING ((size_t)1 << 26)
#define TURNS ((size_t)64)
#define TAIL RING
#define LONG_SIZE (RING * TURNS + TAIL)

static uint16_t *map_long(void)
{
    const int file = memfd_create("ring", 0);
    ck_assert(file >= 0 && ftruncate(file, (off_t)RING) == 0);
    char *data = reserve(LONG_SIZE);
    for (size_t turn = 0; turn < TURNS; turn++)
        ck_assert(mmap(data + turn * RING, RING, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) != MAP_FAILED);
    close(file);
    return (uint16_t *)data;
}

static uint16_t *tail_of(uint16_t *data)
{
    return data + RING * TURNS / 2;
}

static void fill(uint16_t *data, double even, double odd, size_t run)
{
    const uint16_t bits[2] = {oracle_narrow(WF_F16, even), oracle_narrow(WF_F16, odd)};
    for (size_t i = 0; i < RING / 2; i++)
        data[i] = bits[i / run % 2];
}

static void expect(const uint16_t *data, double even, double odd, size_t run, const char *what)
{
    const uint16_t bits[2] = {oracle_narrow(WF_F16, even), oracle_narrow(WF_F16, odd)};
    for (size_t i = 0; i < RING / 2; i++)
        if (data[i] != bits[i / run % 2])
            ck_abort_msg("%s: element %zu is 0x%04x, expected 0x%04x", what, i, data[i], bits[i / run % 2]);
}

/* 65 samples of 2^25 elements; the last one, beyond 2^31 elements, has another centre and spread. Channels-last runs of
 * c = 32 equal values, channels-first ones of 1. */
START_TEST(samples_beyond_two_to_the_31)
{
    const wf_layout layout = _i ? WF_NHWC : WF_NCHW;
    const int64_t n = (int64_t)TURNS + 1, c = 32, groups = 4;
    const size_t run = layout == WF_NHWC ? (size_t)c : 1;
    uint16_t *x = map_long(), *y = map_long();
    float *mean = malloc((size_t)(n * groups) * sizeof *mean), *rstd = malloc((size_t)(n * groups) * sizeof *rstd);
    fill(x, 4, 2, run);
    fill(tail_of(x), 12, 4, run);
    const wf_groupnorm what = {.size = sizeof what, .x_dtype = WF_F16, .w_dtype = WF_F32, .layout = layout, .n = n, .c = c,
                               .hw = (int64_t)(RING / 2) / c, .groups = groups};
    const wf_groupnorm_forward_args with = {.size = sizeof with, .x = x, .y = y, .mean = mean, .rstd = rstd};
    wf_exec where = with_workspace(wf_groupnorm_forward_workspace(&what, WF_CPU));
    ck_assert_msg(wf_groupnorm_forward(&what, &with, &where) == WF_OK, "%s", wf_error_detail());
    expect(y, 1, -1, run, "y of the first samples");
    expect(tail_of(y), 1, -1, run, "y of the last sample");
    for (int64_t g = 0; g < n * groups; g++)
        ck_assert(mean[g] == (g / groups == n - 1 ? 8 : 3) && rstd[g] == (g / groups == n - 1 ? .25f : 1));
    free(where.workspace), free(mean), free(rstd);
    munmap(x, LONG_SIZE), munmap(y, LONG_SIZE);
}
END_TEST

/* BatchNorm over all 65 samples: the mean of every channel is 3, with spread 1, in the tail too; its gradients, with dy
 * = 1 where xhat = 1 and 0 elsewhere, are 65 * 2^25 / 32 / 2 each. */
START_TEST(batch_beyond_two_to_the_31)
{
    const wf_layout layout = _i ? WF_NHWC : WF_NCHW;
    enum { CHANNELS = 32 };
    const size_t run = layout == WF_NHWC ? CHANNELS : 1;
    uint16_t *x = map_long(), *y = map_long();
    float mean[CHANNELS], rstd[CHANNELS], dgamma[CHANNELS], dbeta[CHANNELS];
    fill(x, 4, 2, run);
    fill(tail_of(x), 4, 2, run);
    const wf_batchnorm what = {.size = sizeof what, .x_dtype = WF_F16, .w_dtype = WF_F32, .layout = layout,
                               .n = (int64_t)TURNS + 1, .c = CHANNELS, .hw = (int64_t)(RING / 2) / CHANNELS};
    const wf_batchnorm_train_args with = {.size = sizeof with, .x = x, .y = y, .mean = mean, .rstd = rstd};
    wf_exec where = with_workspace(wf_batchnorm_train_workspace(&what, WF_CPU));
    ck_assert_msg(wf_batchnorm_train(&what, &with, &where) == WF_OK, "%s", wf_error_detail());
    free(where.workspace);
    expect(y, 1, -1, run, "y of the first samples");
    expect(tail_of(y), 1, -1, run, "y of the last sample");
    for (int k = 0; k < CHANNELS; k++)
        ck_assert(mean[k] == 3 && rstd[k] == 1);

    fill(y, 1, 0, run); /* dy */
    fill(tail_of(y), 1, 0, run);
    const wf_batchnorm_backward_args backward = {.size = sizeof backward, .dy = y, .x = x, .mean = mean, .rstd = rstd,
                                                 .dgamma = dgamma, .dbeta = dbeta};
    where = with_workspace(wf_batchnorm_backward_workspace(&what, WF_CPU));
    ck_assert_msg(wf_batchnorm_backward(&what, &backward, &where) == WF_OK, "%s", wf_error_detail());
    free(where.workspace);
    for (int k = 0; k < CHANNELS; k++)
        ck_assert_msg(dgamma[k] == 65 * 0x1p19f && dbeta[k] == 65 * 0x1p19f, "channel %d: dgamma %a, dbeta %a", k,
                      (double)dgamma[k], (double)dbeta[k]);
    munmap(x, LONG_SIZE), munmap(y, LONG_SIZE);
}
END_TEST

/* One row of more than 2^31 elements. */
START_TEST(row_beyond_two_to_the_31)
{
    uint16_t *x = map_long(), *y = map_long();
    float mean = 0, rstd = 0;
    fill(x, 4, 2, 1);
    fill(tail_of(x), 4, 2, 1);
    const wf_layernorm what = {.size = sizeof what, .x_dtype = WF_F16, .w_dtype = WF_F32, .rows = 1,
                               .cols = (int64_t)(LONG_SIZE / 2)};
    const wf_layernorm_forward_args with = {.size = sizeof with, .x = x, .y = y, .mean = &mean, .rstd = &rstd};
    wf_exec where = with_workspace(wf_layernorm_forward_workspace(&what, WF_CPU));
    ck_assert_msg(wf_layernorm_forward(&what, &with, &where) == WF_OK, "%s", wf_error_detail());
    free(where.workspace);
    ck_assert(mean == 3 && rstd == 1);
    expect(y, 1, -1, 1, "the row's beginning");
    expect(tail_of(y), 1, -1, 1, "the row's end");
    munmap(x, LONG_SIZE), munmap(y, LONG_SIZE);
}
END_TEST

Suite *bugs_large_suite(void)
{
    Suite *s = suite_create("bugs_large");
    TCase *t = tcase_create("bugs_large");
    tcase_set_timeout(t, 300);
    tcase_add_test(t, rows_beyond_two_to_the_32);
    if (!getenv("WELFORD_TEST_QUICK") && !SHADOWED) {
        tcase_add_loop_test(t, samples_beyond_two_to_the_31, 0, 2);
        tcase_add_loop_test(t, batch_beyond_two_to_the_31, 0, 2);
        tcase_add_test(t, row_beyond_two_to_the_31);
    }
    suite_add_tcase(s, t);
    return s;
}
