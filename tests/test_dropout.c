/* Dropout, feature dropout and alpha dropout, forward and backward: every bit of y and of the mask against the oracle. */
#define _GNU_SOURCE /* memfd_create */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "oracle_dropout.h"
#include "run_dropout.h"
#include "sweep.h"

Suite *dropout_suite(void);

static const wf_dtype x_dtypes[] = {WF_F32, WF_F16, WF_BF16, WF_F64};
/* The edges of the threshold: 2^-34 and less keep everything with T = 2^32, 1 - 2^-34 drops everything with T = 0. */
static const double probabilities[] = {0,         0x1p-34,      0x1p-32, .1, .5, .9, 1 - 1e-6, 1 - 0x1p-32,
                                       1 - 0x1p-34, 1 - 0x1p-53, 1};
#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

/* With the variant that the case names, if that takes it. */
static bool takes(const Case *c)
{
    const wf_dropout what = {.size = sizeof what, .x_dtype = c->x, .kind = (wf_dropout_kind)c->kind, .layout = c->layout,
                             .flags = c->flags, .n = c->n, .c = c->c, .hw = c->hw, .p = c->p};
    const wf_exec where = {.size = sizeof where, .backend = c->backend, .flags = WF_DRY_RUN, .variant = c->variant};
    const wf_status status = wf_dropout_forward(&what, NULL, &where);
    ck_assert_msg(status == WF_OK || status == WF_UNSUPPORTED, "%s: %s", c->variant, wf_error_detail());
    return status == WF_OK;
}

static void check_both_directions(Case c)
{
    c.backend = tested_backend();
    c.op = DROPOUT_FORWARD;
    if (!left_out(&c))
        check_dropout(&c);
    c.op = DROPOUT_BACKWARD;
    if (!left_out(&c))
        check_dropout(&c);
    c.flags |= WF_GIVEN_MASK;
    if (!left_out(&c) && !(c.null & NULL_MASK))
        check_dropout(&c);
}

static void check_variants(Case c)
{
    const char *variant;
    int taken = 0;
    c.backend = tested_backend();
    for (int i = 0; (variant = wf_variant("dropout_forward", c.backend, i)); i++) {
        snprintf(c.variant, sizeof c.variant, "%s", variant);
        if (!takes(&c))
            continue;
        check_both_directions(c);
        taken++;
    }
    ck_assert_msg(taken > 0, "no variant of dropout_forward takes the case");
}

/* In every variant, with every dtype, as both kinds; with one decision an element or (in both layouts) a feature. */
static void check_everyhow(Case c)
{
    for (int d = 0; d < COUNT(x_dtypes); d++)
        for (int how = 0; how < 6; how++) {
            c.x = c.w = x_dtypes[d];
            c.kind = how % 2;
            c.flags = how < 2 ? 0 : WF_FEATURES;
            c.layout = how < 4 ? WF_NCHW : WF_NHWC;
            check_variants(c);
        }
}

static Case shaped(int64_t n, int64_t c, int64_t hw)
{
    Case a = case_default(DROPOUT_FORWARD);
    a.n = n, a.c = c, a.hw = hw;
    a.p = .3;
    a.seed = UINT64_C(0x243f6a8885a308d2) + (uint64_t)(n * 1000003 + c * 1009 + hw);
    a.offset = UINT64_C(0x13198a2e03707344) + (uint64_t)hw;
    return a;
}

START_TEST(every_probability)
{
    Case c = shaped(3, 35, 49);
    c.p = probabilities[_i];
    check_everyhow(c);
}
END_TEST

START_TEST(every_size)
{
    static const int64_t larger[] = {127, 128, 129, 255, 257, 1023, 1025, 4095, 1000, 2047, 4096, 12345, 65537};
    for (int64_t size = 0; size <= (quick() ? 17 : 70); size++)
        check_everyhow(shaped(1, 1, size));
    for (int i = 0; i < (quick() ? 8 : COUNT(larger)); i++)
        check_everyhow(shaped(1, larger[i] % 5 ? 1 : 5, larger[i] % 5 ? larger[i] : larger[i] / 5));
}
END_TEST

START_TEST(every_feature_shape)
{
    static const int64_t shapes[][3] = {{1, 1, 1},  {1, 3, 49},  {7, 1, 5},  {5, 64, 1},   {2, 65, 196}, {3, 320, 7}, {0, 3, 4},
                                        {3, 0, 4},  {9, 35, 49}, {33, 7, 1}, {1, 1, 5329}, {257, 3, 3},  {1, 33, 31}};
    for (int i = 0; i < COUNT(shapes); i++)
        check_everyhow(shaped(shapes[i][0], shapes[i][1], shapes[i][2]));
}
END_TEST

START_TEST(misaligned_and_in_place)
{
    for (int32_t misalign = 0; misalign <= 8; misalign++)
        for (int32_t inplace = 0; inplace < 2; inplace++) {
            Case c = shaped(2, 17, 41);
            c.misalign = misalign;
            c.inplace = inplace;
            c.null = misalign % 2 ? NULL_MASK : 0;
            check_everyhow(c);
        }
}
END_TEST

/* A mask byte and a random block belong to one piece of work only, however threads share the pieces. */
START_TEST(any_threads)
{
    static const struct {
        int32_t threads, pool;
    } runs[] = {{1, 0}, {2, 0}, {7, 0}, {0, 1}, {0, 3}, {0, 6}};
    for (int i = 0; i < COUNT(runs); i++)
        for (uint64_t order = 0; order < (runs[i].pool ? 5 : 1); order++) {
            Case c = shaped(11, 37, 509);
            c.seed += order;
            c.threads = runs[i].threads;
            c.pool = runs[i].pool;
            c.x = x_dtypes[(i + (int)order) % COUNT(x_dtypes)];
            check_both_directions(c);
            c.flags = WF_FEATURES;
            c.layout = order % 2 ? WF_NHWC : WF_NCHW;
            check_both_directions(c);
        }
}
END_TEST

/* One `what` for both directions: forward writes the mask, and backward gives the same bits from it as from the seed. */
START_TEST(mask_of_forward)
{
    static const uint32_t flags[] = {0, WF_FEATURES};
    enum { N = 3, C = 37, HW = 29, COUNT_X = N * C * HW };
    float dy[COUNT_X], dx[2][COUNT_X];
    uint8_t mask[(COUNT_X + 7) / 8] = {0};
    wf_dropout what = {.size = sizeof what, .kind = (wf_dropout_kind)(_i / 2), .layout = WF_NHWC, .flags = flags[_i % 2],
                       .n = N, .c = C, .hw = HW, .p = .3};
    wf_dropout_args with = {.size = sizeof with, .x = dy, .y = dx[0], .mask = mask, .seed = 7};
    const wf_exec where = {.size = sizeof where};
    for (int i = 0; i < COUNT_X; i++)
        dy[i] = (float)i - 1000;
    ck_assert(wf_dropout_backward(&what, &with, &where) == WF_OK);
    what.flags |= WF_GIVEN_MASK;
    with.y = dx[1];
    ck_assert(wf_dropout_forward(&what, &with, &where) == WF_OK);
    with.seed = 8;
    ck_assert(wf_dropout_backward(&what, &with, &where) == WF_OK);
    ck_assert_mem_eq(dx[0], dx[1], sizeof dx[0]);
    with.mask = NULL;
    ck_assert(wf_dropout_backward(&what, &with, &where) == WF_INVALID);
}
END_TEST

/* The caller's rounding and flush-to-zero modes change no bit and are left as found. */
START_TEST(any_fpmode)
{
    for (int mode = MODE_NEAREST; mode <= MODE_FLUSH; mode++) {
        Case c = shaped(5, 13, 77);
        c.fpmode = (FpMode)mode;
        c.p = .1;
        check_everyhow(c);
    }
}
END_TEST

/* offset + *offset_ptr wraps; the high halves of seed and offset count. run_dropout splits an offset with bit 1 set. */
START_TEST(seeds_and_offsets)
{
    static const uint64_t words[] = {0, 1, 2, UINT32_MAX, UINT64_C(1) << 32, UINT64_C(3) << 62, UINT64_MAX - 1, UINT64_MAX};
    for (int i = 0; i < COUNT(words); i++)
        for (int j = 0; j < COUNT(words); j++) {
            Case c = shaped(1, 3, 67);
            c.seed = words[i];
            c.offset = words[j];
            check_both_directions(c);
        }
}
END_TEST

static uint64_t draw(uint64_t *state, uint64_t below)
{
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (*state >> 33) % below;
}

START_TEST(random_cases)
{
    uint64_t state = 20260101;
    for (int i = 0; i < (quick() ? 300 : 3000); i++) {
        Case c = shaped((int64_t)draw(&state, 9), (int64_t)draw(&state, 70), (int64_t)draw(&state, 130));
        c.x = c.w = x_dtypes[draw(&state, 4)];
        c.kind = (int32_t)draw(&state, 2);
        c.flags = draw(&state, 2) ? WF_FEATURES : 0;
        c.layout = (wf_layout)draw(&state, 2);
        c.p = draw(&state, 4) ? (double)draw(&state, 1001) / 1000 : probabilities[draw(&state, COUNT(probabilities))];
        c.seed = draw(&state, UINT32_MAX) << 32 | draw(&state, UINT32_MAX);
        c.offset = draw(&state, UINT32_MAX) << 32 | draw(&state, UINT32_MAX);
        c.null = draw(&state, 3) ? 0 : NULL_MASK;
        c.inplace = (int32_t)draw(&state, 2);
        c.misalign = (int32_t)draw(&state, 8);
        c.fpmode = (FpMode)draw(&state, 5);
        if (draw(&state, 2))
            check_variants(c);
        else
            check_both_directions(c);
    }
}
END_TEST

/* Units from 2^32 on: y = x is one mapping of 2^32 halves, whose pages are all the same small file, and 2^21 more with
 * memory of their own, which are looked at. Units from 2^34 on have a block number above 2^32; they take a minute, so
 * WELFORD_TEST_LONG=1 asks for them (known answers for them are in test_random.c in any case). */
START_TEST(units_beyond_32_bits)
{
    const size_t body = (size_t)1 << (_i ? 35 : 33), ring = (size_t)64 << 20, tail = (size_t)4 << 20, total = body + tail;
    const int64_t count = (int64_t)(total / 2), tail_begin = (int64_t)(body / 2);
    const int file = memfd_create("dropout", 0);
    ck_assert(file >= 0 && ftruncate(file, (off_t)ring) == 0);
    char *x = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    ck_assert(x != MAP_FAILED);
    for (size_t at = 0; at < body; at += ring)
        ck_assert(mmap(x + at, ring, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) != MAP_FAILED);
    uint16_t *end = (uint16_t *)(x + body);
    const uint16_t one = oracle_narrow(WF_BF16, 1), two = oracle_narrow(WF_BF16, 2);
    for (size_t i = 0; i < tail / 2; i++)
        end[i] = one;

    const wf_dropout what = {.size = sizeof what, .x_dtype = WF_BF16, .n = 1, .c = 1, .hw = count, .p = .5};
    const wf_dropout_args with = {.size = sizeof with, .x = x, .y = x, .seed = UINT64_C(0x0123456789abcdef), .offset = 42};
    const wf_exec where = {.size = sizeof where};
    ck_assert_msg(wf_dropout_forward(&what, &with, &where) == WF_OK, "%s", wf_error_detail());
    for (int64_t i = 0; i < (int64_t)(tail / 2); i++) {
        const uint64_t u = (uint64_t)(tail_begin + i);
        const uint16_t want = oracle_dropout_keep(.5, with.seed, with.offset, u) ? two : 0;
        if (end[i] != want)
            ck_abort_msg("y[%lld] = 0x%04x, expected 0x%04x", (long long)u, end[i], want);
    }
    munmap(x, total);
    close(file);
}
END_TEST

Suite *dropout_suite(void)
{
    Suite *s = suite_create("dropout");
    TCase *t = tcase_create("dropout");
    tcase_set_timeout(t, 300);
    tcase_add_loop_test(t, every_probability, 0, COUNT(probabilities));
    tcase_add_test(t, every_size);
    tcase_add_test(t, every_feature_shape);
    tcase_add_test(t, misaligned_and_in_place);
    tcase_add_test(t, any_threads);
    tcase_add_test(t, any_fpmode);
    tcase_add_test(t, seeds_and_offsets);
    tcase_add_loop_test(t, mask_of_forward, 0, 4);
    tcase_add_test(t, random_cases);
#ifndef __SANITIZE_THREAD__ /* which needs 32 GB to watch 8 */
    if (!quick() && tested_backend() == WF_CPU)
        tcase_add_loop_test(t, units_beyond_32_bits, 0, getenv("WELFORD_TEST_LONG") ? 2 : 1);
#else
    (void)units_beyond_32_bits;
#endif
    suite_add_tcase(s, t);
    return s;
}
