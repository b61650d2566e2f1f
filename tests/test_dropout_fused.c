/* residual + dropout(act(x + bias)) and its gradient: every set of parts, against the oracle, and the same bits in every variant,
 * on both back-ends, for any threads and alignment, in place or not. */
#include <check.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "run_dropout.h"
#include "sweep.h"

Suite *dropout_fused_suite(void);

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))
enum { ACTIVATIONS = 6 };

static bool takes(const Case *c)
{
    const wf_dropout what = {.size = sizeof what, .x_dtype = c->x, .layout = c->layout, .flags = c->flags, .n = c->n, .c = c->c,
                             .hw = c->hw, .p = c->p, .activation = (wf_activation)c->activation, .w_dtype = c->w};
    const wf_exec where = {.size = sizeof where, .backend = c->backend, .flags = WF_DRY_RUN, .variant = c->variant};
    return wf_dropout_forward(&what, NULL, &where) == WF_OK;
}

static void same(const Case *c, uint64_t hash)
{
    char line[CASE_SIZE];
    check_dropout(c);
    if (run_dropout_hash != hash)
        ck_abort_msg("other bits\n  build/tests/check --case \"%s\"", case_print(c, line));
}

/* The case in every variant, on the tested back-end and the CPU, and by other ways. */
static void check_ways(Case c)
{
    const char *variant;
    c.backend = tested_backend();
    if (left_out(&c))
        return;
    check_dropout(&c);
    const uint64_t hash = run_dropout_hash;
    for (int i = 0; (variant = wf_variant("dropout_forward", c.backend, i)); i++) {
        Case other = c;
        snprintf(other.variant, sizeof other.variant, "%s", variant);
        if (takes(&other))
            same(&other, hash);
    }
    Case other = c;
    other.inplace = !c.inplace;
    other.misalign = 3 - c.misalign;
    other.threads = 1;
    other.pool = c.backend == WF_CPU ? 3 : 0;
    same(&other, hash);
    other.inplace = 2; /* y is the residual, or x_in */
    same(&other, hash);
    if (c.backend == WF_CUDA) {
        other.backend = WF_CPU;
        same(&other, hash);
    }
}

/* Both directions, the latter with the mask drawn and given. */
static void check_directions(Case c)
{
    const uint32_t add = c.add;
    c.op = DROPOUT_FORWARD;
    check_ways(c);
    c.op = DROPOUT_BACKWARD;
    c.add = add & ADD_BIAS;
    check_ways(c);
    c.flags |= WF_GIVEN_MASK;
    if (!(c.null & NULL_MASK))
        check_ways(c);
}

/* Every set of parts in every dtype and kind, over shapes and probabilities in turn. */
START_TEST(parts)
{
    static const int64_t shapes[][3] = {{3, 35, 49}, {2, 64, 7}, {5, 768, 1}, {1, 3, 1000}, {2, 1030, 2}, {1, 1, 1}, {0, 3, 4}};
    static const double  drops[] = {0, .3, 0x1p-34, .9, 1};
    for (int d = 0, turn = _i; d < DTYPES; d++)
        for (int add = 0; add < 4; add++)
            for (int k = 0; k < (quick() ? 1 : 2); k++, turn++) {
                Case c = case_default(DROPOUT_FORWARD);
                set_dtypes(&c, d);
                const int64_t *shape = shapes[turn % COUNT(shapes)];
                c.n = shape[0], c.c = shape[1], c.hw = shape[2];
                c.activation = _i;
                c.slope = .125;
                c.add = (add & 1 ? ADD_BIAS : 0) | (add & 2 ? ADD_RESIDUAL : 0);
                c.p = drops[turn % COUNT(drops)];
                c.kind = turn / 3 % 2;
                c.layout = (wf_layout)(turn / 2 % 2);
                c.flags = turn % 5 == 1 ? WF_FEATURES : 0;
                c.null = turn % 4 == 2 ? NULL_MASK : 0;
                c.misalign = turn % 3;
                c.seed = (uint64_t)turn * 77 + 1;
                c.offset = (uint64_t)turn << 31;
                check_directions(c);
            }
}
END_TEST

/* Shapes in which vectors, tiles and blocks end anywhere. */
START_TEST(shapes)
{
    static const int64_t sizes[][3] = {{1, 1025, 1}, {7, 9, 113},  {1, 4097, 3}, {33, 5, 31},
                                       {1, 8, 2048}, {300, 24, 1}, {1, 2, 9999}};
    for (int d = 0; d < DTYPES; d += quick() ? 3 : 1)
        for (int layout = 0; layout < 2; layout++) {
            Case c = case_default(DROPOUT_FORWARD);
            set_dtypes(&c, d);
            c.n = sizes[_i][0], c.c = sizes[_i][1], c.hw = sizes[_i][2];
            c.layout = (wf_layout)layout;
            c.activation = (_i + d) % ACTIVATIONS;
            c.add = ADD_BIAS | ADD_RESIDUAL;
            c.p = .25;
            c.seed = (uint64_t)(_i + 2 * d);
            check_directions(c);
        }
}
END_TEST

/* Without dropout and activation the sum is exact to its rounding, so it must have one right answer. */
START_TEST(sum_alone)
{
    enum { N = 1000 };
    float x[N], residual[N], bias[10], y[N];
    for (int i = 0; i < N; i++)
        x[i] = (float)(i * 37 % 101) / 7, residual[i] = 1e-3f * (float)(i - 500), bias[i % 10] = (float)(i % 10) / 3;
    const wf_dropout      what = {.size = sizeof what, .layout = WF_NHWC, .n = 100, .c = 10, .hw = 1};
    const wf_dropout_args with = {.size = sizeof with, .x = x, .y = y, .bias = bias, .residual = residual};
    const wf_exec         where = {.size = sizeof where};
    ck_assert(wf_dropout_forward(&what, &with, &where) == WF_OK);
    for (int i = 0; i < N; i++) {
        const float inner = x[i] + bias[i % 10], sum = residual[i] + inner;
        ck_assert_msg(y[i] == sum, "y[%d] = %.9g, expected %.9g", i, (double)y[i], (double)sum);
    }
}
END_TEST

Suite *dropout_fused_suite(void)
{
    Suite *s = suite_create("dropout_fused");
    TCase *t = tcase_create("dropout_fused");
    tcase_set_timeout(t, 300);
    tcase_add_loop_test(t, parts, 0, ACTIVATIONS);
    tcase_add_loop_test(t, shapes, 0, 7);
    tcase_add_test(t, sum_alone);
    suite_add_tcase(s, t);
    return s;
}
