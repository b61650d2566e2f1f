/* The channel norms' ending: y = activation(norm + residual), and the gradients of it. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "sweep.h"

Suite *ending_suite(void);

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))
enum { NORMS_END = 3, KINDS = 6 };
static const Norm norms[NORMS_END] = { GROUPNORM, BATCHNORM, INSTANCENORM };

/* An activation whose backward pass may take y. */
static bool keeps_sign(const Case *c) { return c->activation == WF_RELU || c->activation == WF_LEAKY_RELU; }

static void set_shape(Case *c, const int64_t shape[4])
{
    c->n = shape[0], c->c = shape[1], c->hw = shape[2], c->groups = shape[3];
}

/* What of the ending is given, and where, by turns. */
static void set_parts(Case *c, int turn)
{
    static const uint32_t backward[] = { 0, ADD_RESIDUAL, ADD_DRESIDUAL, ADD_RESIDUAL | ADD_DRESIDUAL };
    static const uint32_t nulls[] = { 0, NULL_DX, NULL_DGAMMA | NULL_DBETA, NULL_BETA, NULL_GAMMA, NULL_DGAMMA, NULL_MEAN_LO };
    if (op_is_backward(c->op)) {
        c->add = backward[turn % 4] | (keeps_sign(c) && turn / 4 % 2 ? ADD_Y : 0);
        c->null = nulls[turn % 7];
        c->inplace = c->null & NULL_DX ? turn / 3 % 2 * 2 : turn / 3 % 3;
        c->flags |= turn % 5 == 0 ? WF_ACCUMULATE : 0;
    } else {
        c->add = turn % 2 ? ADD_RESIDUAL : 0;
        c->null = turn % 5 == 1 ? NULL_BETA : turn % 5 == 2 ? NULL_GAMMA : 0;
        c->inplace = turn / 3 % 2;
        c->running = turn % 3 == 0 && c->op != GROUPNORM_FORWARD ? RUNNING_SEPARATE : RUNNING_NONE;
    }
    c->misalign = turn / 5 % 3 == 1;
    c->layout = turn / 2 % 2 ? WF_NHWC : WF_NCHW;
}

/* Every activation in every dtype, over operations, layouts, parts, places and shapes in turn. */
START_TEST(parts)
{
    static const int64_t shapes[][4] = { { 2, 6, 5, 3 },    { 3, 4, 49, 2 }, { 2, 8, 64, 4 }, { 1, 3, 1000, 1 },
                                         { 4, 32, 16, 8 },  { 2, 35, 9, 5 }, { 3, 1, 37, 1 }, { 2, 64, 33, 64 },
                                         { 5, 12, 2, 12 },  { 2, 5, 300, 1 } };
    int turn = _i * 7;
    for (int n = 0; n < NORMS_END; n++)
        for (int d = 0; d < DTYPES; d++, turn += 5) {
            Case c;
            for (int i = 0; operation(norms[n], i, &c); i++)
                for (int k = 0; k < (quick() ? 3 : 12); k++, turn++) {
                    Case one = c;
                    set_dtypes(&one, d);
                    set_shape(&one, shapes[turn % COUNT(shapes)]);
                    one.activation = (wf_activation)_i;
                    one.slope = turn % 4 == 3 ? 1.5 : 0.2;
                    one.seed = (uint64_t)turn + 1;
                    set_parts(&one, turn);
                    if (legal(&one))
                        check_case(&one);
                }
        }
}
END_TEST

/* Sets that are long, or many, or cut in parts; no elements. */
START_TEST(shapes)
{
    static const int64_t shapes[][4] = { { 2, 4, 20011, 2 }, { 1, 3, 70001, 1 },
                                         { 130, 33, 4, 11 }, { 2, 130, 2003, 13 }, { 3, 300, 1, 30 },
                                         { 2, 520, 49, 2 }, { 64, 2, 3136, 1 }, { 0, 5, 3, 1 }, { 2, 6, 0, 3 } };
    for (int n = 0, turn = _i; n < NORMS_END; n++) {
        Case c;
        for (int i = 0; operation(norms[n], i, &c); i++)
            for (int d = 0; d < DTYPES; d += quick() ? 4 : 1, turn++) {
                Case one = c;
                set_dtypes(&one, d);
                set_shape(&one, shapes[_i]);
                one.activation = (wf_activation)(turn % KINDS);
                one.seed = 5 + (uint64_t)d;
                set_parts(&one, turn);
                if (legal(&one) && in_turn(d + n + i + _i / 3, one.n * one.c * one.hw))
                    check_case(&one);
            }
    }
}
END_TEST

/* Data out of range, NaN and Inf. */
START_TEST(data)
{
    for (int n = 0, turn = 0; n < NORMS_END; n++) {
        Case c;
        for (int i = 0; operation(norms[n], i, &c); i++)
            for (int d = 0; d < DTYPES; d++, turn++) {
                Case one = c;
                set_dtypes(&one, d);
                set_shape(&one, (int64_t[]){ 4, 6, 24, 3 });
                one.activation = (wf_activation)(turn % KINDS);
                one.data = (Data)_i;
                set_parts(&one, turn);
                check_case(&one);
            }
    }
}
END_TEST

static void same(const Case *c, const Raw *a, const Raw *b)
{
    ck_assert_int_eq(a->count, b->count);
    if (memcmp(a->bytes, b->bytes, (size_t)a->count * dtype_size(a->dtype)))
        ck_abort_msg("--case \"%s\"", case_print(c, (char[CASE_SIZE]){ 0 }));
}

/* Of the arithmetic type nothing is lost in y: the gradients with y are those without, so that z <= 0 was decided as forward
 * did. Constant sets, and as many values of z around 0. */
START_TEST(decisions)
{
    static const Output outs[] = { OUT_DX, OUT_DGAMMA, OUT_DBETA, OUT_DRESIDUAL };
    for (int turn = 0; turn < 12; turn++) {
        Case c = case_default(turn % 3 == 0 ? GROUPNORM_BACKWARD : turn % 3 == 1 ? BATCHNORM_BACKWARD : INSTANCENORM_BACKWARD);
        c.backend = tested_backend();
        c.x = c.w = _i ? WF_F64 : WF_F32;
        set_shape(&c, (int64_t[][4]){ { 3, 8, 50, 4 }, { 2, 6, 3001, 3 }, { 40, 16, 49, 4 } }[turn % 3]);
        c.layout = turn / 3 % 2 ? WF_NHWC : WF_NCHW;
        c.activation = turn / 2 % 2 ? WF_RELU : WF_LEAKY_RELU;
        c.add = ADD_DRESIDUAL | (turn / 4 % 2 ? ADD_RESIDUAL : 0);
        c.data = turn / 3 % 2 ? EXACTSUM : OFFSET;
        c.null = turn % 4 == 0 ? NULL_BETA : 0;
        if (left_out(&c))
            continue;
        Case with_y = c;
        with_y.add |= ADD_Y;
        Problem *p = problem_new(&c), other = *p;
        other.c = &with_y;
        Raw a[OUTPUT_COUNT], b[OUTPUT_COUNT];
        check_none(run_once(&c, p, NULL, a, NULL));
        check_none(run_once(&with_y, &other, NULL, b, NULL));
        for (int i = 0; i < COUNT(outs); i++)
            same(&c, &a[outs[i]], &b[outs[i]]);
        raw_free(a);
        raw_free(b);
        problem_free(p);
    }
}
END_TEST

/* ReLU of the norm is the larger of 0 and what the norm alone gives; and a leaky slope of 1 changes no bit of any gradient. */
START_TEST(unfused)
{
    for (int d = 0; d < DTYPES; d++)
        for (int turn = 0; turn < 6; turn++) {
            Case c = case_default(_i ? BATCHNORM_BACKWARD : BATCHNORM_TRAIN), plain;
            c.backend = tested_backend();
            set_dtypes(&c, d);
            set_shape(&c, (int64_t[][4]){ { 3, 8, 50, 4 }, { 2, 6, 3001, 3 }, { 40, 16, 49, 4 } }[turn % 3]);
            c.layout = turn / 3 ? WF_NHWC : WF_NCHW;
            plain = c;
            c.activation = _i ? WF_LEAKY_RELU : WF_RELU;
            c.slope = 1;
            if (left_out(&c))
                continue;
            Problem *p = problem_new(&c), other = *p;
            other.c = &plain;
            Raw a[OUTPUT_COUNT], b[OUTPUT_COUNT];
            check_none(run_once(&c, p, NULL, a, NULL));
            check_none(run_once(&plain, &other, NULL, b, NULL));
            const size_t size = b[OUT_Y].bytes ? dtype_size(c.x) : 0;
            for (int64_t k = 0; k < b[OUT_Y].count; k++)
                if (dtype_load(c.x, b[OUT_Y].bytes, k) <= 0)
                    memset(b[OUT_Y].bytes + (size_t)k * size, 0, size);
            check_none(raw_differs(&c, a, b, "unfused"));
            raw_free(a);
            raw_free(b);
            problem_free(p);
        }
}
END_TEST

/* y in place of beta and residual: only where it has the sign of z. */
START_TEST(refused)
{
    static const struct { wf_activation kind; double slope; wf_status status; } rules[] = {
        { WF_RELU, 0, WF_OK },          { WF_LEAKY_RELU, 0.1, WF_OK },      { WF_LEAKY_RELU, 0, WF_INVALID },
        { WF_LEAKY_RELU, -1, WF_INVALID }, { WF_SILU, 0, WF_INVALID },      { WF_GELU, 0, WF_INVALID },
        { WF_GELU_TANH, 0, WF_INVALID }, { WF_ACTIVATION_NONE, 0, WF_OK },
    };
    float dy[8] = { 1 }, x[8] = { 1, 2 }, y[8] = { 1 }, mean[2] = { 0 }, rstd[2] = { 1, 1 }, dx[8];
    char scratch[4096];
    const wf_exec where = { .size = sizeof where, .workspace = scratch, .workspace_size = sizeof scratch };
    for (int i = 0; i < COUNT(rules); i++) {
        const wf_batchnorm what = { .size = sizeof what, .n = 2, .c = 2, .hw = 2, .flags = WF_FROZEN,
                                    .activation = rules[i].kind, .slope = rules[i].slope };
        wf_batchnorm_backward_args with = { .size = sizeof with, .dy = dy, .x = x, .mean = mean, .rstd = rstd, .dx = dx, .y = y };
        ck_assert_int_eq(wf_batchnorm_backward(&what, &with, &where), rules[i].status);
        if (rules[i].status)
            ck_assert_ptr_nonnull(strstr(wf_error_detail(), "y = "));
        with.y = (char *)y + 1;
        ck_assert_int_eq(wf_batchnorm_backward(&what, &with, &where),
                         rules[i].kind == WF_ACTIVATION_NONE ? WF_OK : WF_INVALID);
    }
}
END_TEST

Suite *ending_suite(void)
{
    Suite *s = suite_create("ending");
    TCase *t = tcase_create("ending");
    tcase_set_timeout(t, 300);
    tcase_add_loop_test(t, parts, 0, KINDS);
    tcase_add_loop_test(t, shapes, 0, 9);
    tcase_add_loop_test(t, data, 0, DATA_COUNT);
    tcase_add_loop_test(t, decisions, 0, 2);
    tcase_add_loop_test(t, unfused, 0, 2);
    tcase_add_test(t, refused);
    suite_add_tcase(s, t);
    return s;
}
