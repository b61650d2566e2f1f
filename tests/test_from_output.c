/* LayerNorm and RMSNorm backward from y, x not kept. */
#include <check.h>
#include <math.h>
#include <string.h>

#include "sweep.h"

Suite *from_output_suite(void);

static const Op ops[] = { LAYERNORM_BACKWARD, RMSNORM_BACKWARD };
enum { OPS = 2, FLOAT_SUMS = 2 };

static Case output_case(int op, int d)
{
    static const int narrow[] = { 2, 5 };
    Case c = case_default(ops[op]);
    set_dtypes(&c, d < DTYPES ? d : narrow[d - DTYPES]);
    c.flags = d < DTYPES ? 0 : WF_SUM_F32;
    c.add = ADD_OUTPUT;
    return c;
}

/* Every set of parts, in every dtype, over lengths, strides, places and absent buffers in turn. */
START_TEST(parts)
{
    static const int64_t lengths[] = { 1, 3, 33, 64, 257, 1500, 31, 1025 };
    static const uint32_t parts[] = { ADD_DSUM, ADD_DRESIDUAL, ADD_ROW_SCALE, ADD_COL_SCALE };
    static const uint32_t nulls[] = { 0, NULL_DX, NULL_DGAMMA | NULL_DBETA, 0, NULL_GAMMA, NULL_BETA, NULL_GAMMA | NULL_BETA };
    for (int op = 0, turn = _i; op < OPS; op++)
        for (int d = 0; d < DTYPES + FLOAT_SUMS; d++, turn += 3)
            for (int k = 0; k < (quick() ? 2 : 8); k++, turn++) {
                Case c = output_case(op, d);
                for (int bit = 0; bit < 4; bit++)
                    c.add |= _i >> bit & 1 ? parts[bit] : 0;
                c.rows = 1 + turn % 5;
                c.cols = lengths[turn % 8];
                c.drop = turn / 2 % 3 ? 0 : 0.3;
                c.inplace = turn / 3 % 4;
                c.misalign = turn / 5 % 2;
                c.seed = (uint64_t)turn + 1;
                c.null = nulls[turn % 7];
                c.weight_offset = turn % 2;
                c.flags |= turn % 11 == 0 ? WF_ACCUMULATE : 0;
                c.y_stride = c.dy_stride = c.dx_stride = turn & 2 ? c.cols + 5 : 0;
                check_case(&c);
            }
}
END_TEST

/* Rows that are cut into segments, many rows, none. */
START_TEST(shapes)
{
    static const int64_t shapes[][2] = { { 2, 140001 }, { 1, 70000 }, { 300, 40 }, { 0, 5 }, { 3, 0 }, { 40, 1 }, { 40, 5000 } };
    for (int op = 0; op < OPS; op++)
        for (int d = 0; d < DTYPES; d += quick() ? 4 : 1) {
            Case c = output_case(op, d);
            c.rows = shapes[_i][0], c.cols = shapes[_i][1];
            c.seed = 5 + (uint64_t)d;
            if (in_turn(d + op + _i, c.rows * c.cols))
                check_case(&c);
        }
}
END_TEST

START_TEST(data)
{
    for (int op = 0; op < OPS; op++)
        for (int d = 0; d < DTYPES; d++) {
            Case c = output_case(op, d);
            c.rows = 4, c.cols = 96;
            c.data = (Data)_i;
            check_case(&c);
        }
}
END_TEST

/* dtypes, and the least factor with beta = 1 and with beta = 0 */
static const struct { wf_dtype x, w; double with_beta, alone; } limits[] = {
    { WF_F32, WF_F32, 0x1p-21, 0x1p-145 }, { WF_F16, WF_F16, 0x1p-8, 0x1p-20 }, { WF_BF16, WF_BF16, 0x1p-5, 0x1p-129 },
    { WF_BF16, WF_F32, 0x1p-5, 0x1p-129 }, { WF_F64, WF_F64, 0x1p-50, 0x1p-1070 },
};

/* What becomes of column 3 of 7 with this gamma and beta. */
static const char *outcome(int i, double gamma, double beta, Raw out[OUTPUT_COUNT])
{
    Case c = case_default(LAYERNORM_BACKWARD);
    c.x = limits[i].x, c.w = limits[i].w, c.rows = 2, c.cols = 7, c.add = ADD_OUTPUT, c.backend = tested_backend();
    Problem *p = problem_new(&c);
    p->gamma[3] = round_to(c.w, gamma);
    p->beta[3] = beta;
    const char *error = run_once(&c, p, NULL, out, NULL);
    problem_free(p);
    return error;
}

/* A gamma just too small for its beta, or for its dtype, is refused by name, or what hangs on it is NaN; the next one is not. */
START_TEST(refusal)
{
    for (int beta = 0; beta < 2; beta++)
        for (int sign = -1; sign <= 1; sign += 2) {
            const double least = beta ? limits[_i].with_beta : limits[_i].alone;
            const double below = beta || limits[_i].w == WF_F32 ? least * 0.75 : least / 2;
            Raw out[OUTPUT_COUNT];
            check_none(outcome(_i, sign * least, beta, out));
            raw_free(out);
            const char *error = outcome(_i, sign * below, beta, out);
            if (tested_backend() == WF_CPU) {
                ck_assert_ptr_nonnull(error);
                ck_assert_ptr_nonnull(strstr(error, "invalid: layernorm_backward: column 3: a factor of "));
            } else {
                check_none(error);
                for (int64_t k = 0; k < 14; k++)
                    ck_assert(isnan(dtype_load(out[OUT_DX].dtype, out[OUT_DX].bytes, k)));
                for (int64_t k = 0; k < 7; k++)
                    ck_assert_int_eq(k == 3, isnan(dtype_load(out[OUT_DGAMMA].dtype, out[OUT_DGAMMA].bytes, k)) != 0);
            }
            raw_free(out);
        }
}
END_TEST

Suite *from_output_suite(void)
{
    Suite *s = suite_create("from_output");
    TCase *t = tcase_create("from_output");
    tcase_set_timeout(t, 300);
    tcase_add_loop_test(t, parts, 0, 16);
    tcase_add_loop_test(t, shapes, 0, 7);
    tcase_add_loop_test(t, data, 0, DATA_COUNT);
    tcase_add_loop_test(t, refusal, 0, 5);
    suite_add_tcase(s, t);
    return s;
}
