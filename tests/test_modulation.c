/* GroupNorm and InstanceNorm with a scale and a shift of each channel of each sample, and the gradients of them. */
#include <check.h>

#include "sweep.h"

Suite *modulation_suite(void);

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))
enum { KINDS = 6 };
static const Norm norms[] = { GROUPNORM, INSTANCENORM };

static void set_shape(Case *c, const int64_t shape[4])
{
    c->n = shape[0], c->c = shape[1], c->hw = shape[2], c->groups = shape[3];
}

/* What is given and wanted, and where, by turns; at least one thing of a modulation. */
static void set_parts(Case *c, int turn)
{
    static const uint32_t forward[] = { ADD_SCALE | ADD_SHIFT, ADD_SCALE, ADD_SHIFT };
    static const uint32_t backward[] = { ADD_MODULATION, ADD_SCALE, ADD_SCALE | ADD_DSCALE, ADD_DSHIFT, ADD_DSCALE,
                                         ADD_SHIFT | ADD_DSHIFT, ADD_SCALE | ADD_SHIFT };
    static const uint32_t nulls[] = { 0, NULL_DX, NULL_DGAMMA | NULL_DBETA, NULL_BETA, NULL_GAMMA,
                                      NULL_DX | NULL_DGAMMA | NULL_DBETA, NULL_MEAN_LO, NULL_GAMMA | NULL_BETA };
    const bool keeps_sign = c->activation == WF_RELU || c->activation == WF_LEAKY_RELU;
    c->scale_offset = turn % 3 == 0 ? 0 : turn % 3 == 1 ? 1 : -0.3;
    if (op_is_backward(c->op)) {
        c->add = backward[turn % COUNT(backward)] | (turn / 2 % 4 == 1 ? ADD_RESIDUAL : 0) |
                 (turn / 3 % 4 == 1 ? ADD_DRESIDUAL : 0) | (keeps_sign && turn / 5 % 3 == 1 ? ADD_Y : 0);
        c->null = nulls[turn / 2 % COUNT(nulls)];
        c->inplace = !(c->null & NULL_DX) && turn / 3 % 3 == 1;
        c->flags |= turn % 5 == 0 ? WF_ACCUMULATE : 0;
    } else {
        c->add = forward[turn % COUNT(forward)] | (turn / 2 % 3 == 1 ? ADD_RESIDUAL : 0);
        c->null = turn % 5 == 1 ? NULL_BETA : turn % 5 == 2 ? NULL_GAMMA : 0;
        c->inplace = turn / 3 % 2;
        c->running = turn % 4 == 0 && c->op != GROUPNORM_FORWARD ? RUNNING_SEPARATE : RUNNING_NONE;
    }
    c->misalign = turn / 5 % 3 == 1;
    c->layout = turn / 2 % 2 ? WF_NHWC : WF_NCHW;
}

/* Every activation in every dtype, over operations, layouts, parts, places and shapes in turn. */
START_TEST(parts)
{
    static const int64_t shapes[][4] = { { 2, 6, 5, 3 },   { 3, 4, 49, 2 }, { 2, 8, 64, 4 }, { 1, 3, 1000, 1 },
                                         { 4, 32, 16, 8 }, { 2, 35, 9, 5 }, { 3, 1, 37, 1 }, { 2, 64, 33, 64 },
                                         { 5, 12, 2, 12 }, { 2, 5, 300, 1 } };
    int turn = _i * 11;
    for (int n = 0; n < COUNT(norms); n++)
        for (int d = 0; d < DTYPES; d++, turn += 5) {
            Case c;
            for (int i = 0; operation(norms[n], i, &c); i++)
                for (int k = 0; k < (quick() ? 5 : 28); k++, turn++) {
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

/* Sets that are long, or many, or cut in parts; more channels than a tile has; no elements. */
START_TEST(shapes)
{
    static const int64_t shapes[][4] = {
        { 2, 4, 20011, 2 }, { 1, 3, 70001, 1 }, { 130, 33, 4, 11 }, { 2, 130, 803, 13 }, { 3, 300, 1, 30 }, { 2, 520, 49, 2 },
        { 20, 2, 3136, 1 }, { 3, 2500, 6, 5 }, { 16, 1, 16411, 1 }, { 0, 5, 3, 1 }, { 2, 6, 0, 3 }, { 3, 0, 4, 1 }
    };
    for (int n = 0, turn = _i; n < COUNT(norms); n++) {
        Case c;
        for (int i = 0; operation(norms[n], i, &c); i++)
            for (int d = 0; d < DTYPES; d += quick() ? 2 : 1, turn++) {
                Case one = c;
                set_dtypes(&one, d);
                set_shape(&one, shapes[_i]);
                one.activation = (wf_activation)(turn % 2 ? turn % KINDS : WF_ACTIVATION_NONE);
                one.seed = 5 + (uint64_t)d;
                set_parts(&one, turn);
                if (legal(&one) && (one.c || n == 1) && in_turn(d + n + i + _i / 3, one.n * one.c * one.hw))
                    check_case(&one);
            }
    }
}
END_TEST

/* Data out of range, NaN and Inf. */
START_TEST(data)
{
    for (int n = 0, turn = 0; n < COUNT(norms); n++) {
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

/* dscale, or dshift, and nothing else; in every run, however few cases it has. */
START_TEST(nothing_else)
{
    for (int turn = 0; turn < 8; turn++) {
        Case c = case_default(turn % 2 ? GROUPNORM_BACKWARD : INSTANCENORM_BACKWARD);
        set_shape(&c, (int64_t[]){ 2, 6, 5, 3 });
        c.add = turn / 2 % 2 ? ADD_DSCALE : ADD_DSHIFT;
        c.layout = turn / 4 ? WF_NHWC : WF_NCHW;
        c.null = NULL_DX | NULL_DGAMMA | NULL_DBETA;
        c.backend = tested_backend();
        check_none(run_case(&c, NULL));
    }
}
END_TEST

/* A sample alone has the bits that it has in the batch, and any number of threads gives the same. */
START_TEST(alone)
{
    static const int64_t shapes[][4] = { { 3, 6, 50, 3 }, { 5, 64, 49, 8 }, { 4, 4, 9001, 2 } };
    for (int n = 0, turn = 0; n < COUNT(norms); n++) {
        Case c;
        for (int i = 0; operation(norms[n], i, &c); i++)
            for (int k = 0; k < 12; k++, turn++) {
                Case one = c;
                set_dtypes(&one, turn);
                set_shape(&one, shapes[turn % COUNT(shapes)]);
                one.activation = (wf_activation)(turn / 2 % KINDS);
                set_parts(&one, turn);
                one.flags &= ~(uint32_t)WF_ACCUMULATE;
                one.backend = tested_backend();
                if (left_out(&one))
                    continue;
                check_alone(&one);
                Case threads = one;
                threads.pool = 3;
                check_none(run_same_bits(&one, &threads, "with threads"));
            }
    }
}
END_TEST

/* f = 1 and a shift of 0 change no bit of what the norm alone gives; -0 may become +0, which is let pass. Nor does asking for
 * dscale and dshift, with neither scale nor shift. */
START_TEST(neutral)
{
    for (int n = 0, turn = 0; n < COUNT(norms); n++) {
        Case c;
        for (int i = 0; operation(norms[n], i, &c); i++)
            for (int k = 0; k < 12; k++, turn++) {
                Case plain = c, one;
                plain.backend = tested_backend();
                set_dtypes(&plain, turn);
                set_shape(&plain, (int64_t[][4]){ { 3, 8, 50, 4 }, { 2, 6, 9001, 3 }, { 40, 16, 49, 4 } }[turn % 3]);
                plain.layout = turn / 3 % 2 ? WF_NHWC : WF_NCHW;
                plain.activation = turn % 4 == 3 ? WF_GELU : WF_ACTIVATION_NONE;
                /* The frozen sums channels last are of a sample each. */
                if (plain.flags & WF_FROZEN && plain.layout == WF_NHWC)
                    plain.null = NULL_DGAMMA | NULL_DBETA;
                one = plain;
                one.add = op_is_backward(one.op) && k % 2 ? ADD_DSCALE | ADD_DSHIFT : ADD_SCALE;
                one.scale_offset = 1;
                if (left_out(&one))
                    continue;
                Problem *p = problem_new(&one), other = *p;
                for (int64_t j = 0; p->scale && j < p->pairs; j++)
                    p->scale[j] = 0;
                other.c = &plain;
                Raw a[OUTPUT_COUNT], b[OUTPUT_COUNT];
                check_none(run_once(&one, p, NULL, a, NULL));
                check_none(run_once(&plain, &other, NULL, b, NULL));
                check_none(raw_differs(&one, a, b, "of the norm alone"));
                raw_free(a);
                raw_free(b);
                problem_free(p);
            }
    }
}
END_TEST

Suite *modulation_suite(void)
{
    Suite *s = suite_create("modulation");
    TCase *t = tcase_create("modulation");
    tcase_set_timeout(t, 300);
    tcase_add_loop_test(t, parts, 0, KINDS);
    tcase_add_loop_test(t, shapes, 0, 12);
    tcase_add_loop_test(t, data, 0, DATA_COUNT);
    tcase_add_test(t, nothing_else);
    tcase_add_test(t, alone);
    tcase_add_test(t, neutral);
    suite_add_tcase(s, t);
    return s;
}
