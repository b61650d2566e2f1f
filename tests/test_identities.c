/* What holds without an oracle, and backward passes against derivatives by differences: an analytic oracle may repeat the
 * library's mistake, the forward formula differentiated by itself cannot. */
#include <math.h>
#include <quadmath.h>
#include <stdlib.h>
#include <string.h>

#include "sweep.h"

Suite *identities_suite(void);

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

static const Quad step = 0x1p-40; /* differences of second order: the error is about step^2 = 1e-24 */

/* ---- derivatives by differences ---- */

/* sum dy y, with y the forward function of x + h v, gamma + h w, beta + h z. NULL directions are 0. */
static Quad moved(const Problem *p, Quad h, const Quad *v, const Quad *w, const Quad *z)
{
    Quad *x = malloc((size_t)p->count * sizeof *x), *y = malloc((size_t)p->count * sizeof *y), sum = 0;
    Quad *gamma = malloc((size_t)p->params * sizeof *gamma), *beta = malloc((size_t)p->params * sizeof *beta);
    for (int64_t i = 0; i < p->count; i++)
        x[i] = p->x[i] + (v ? h * v[i] : 0);
    for (int64_t i = 0; i < p->params; i++) {
        gamma[i] = (p->gamma ? p->gamma[i] : 1 - (Quad)p->c->weight_offset) + (w ? h * w[i] : 0);
        beta[i] = (p->beta ? p->beta[i] : 0) + (z ? h * z[i] : 0);
    }
    oracle_forward(p, x, gamma, beta, y);
    for (int64_t i = 0; i < p->count; i++)
        sum += p->dy[i] * y[i];
    free(x), free(y), free(gamma), free(beta);
    return sum;
}

static Quad derivative(const Problem *p, const Quad *v, const Quad *w, const Quad *z)
{
    return (moved(p, step, v, w, z) - moved(p, -step, v, w, z)) / (2 * step);
}

/* The analytic oracle's values replaced by differences: the same bars, another origin. */
static void by_differences(const Problem *p, Expected expected[OUTPUT_COUNT])
{
    const int64_t most = p->count > p->params ? p->count : p->params;
    Quad *unit = calloc((size_t)most, sizeof *unit);
    for (Output out = OUT_DX; out <= OUT_DBETA; out++)
        for (int64_t i = 0; i < expected[out].count; i++) {
            unit[i] = 1;
            const Quad old = out == OUT_DX || !(p->c->flags & WF_ACCUMULATE) ? 0
                             : out == OUT_DGAMMA ? p->old_dgamma[i] : p->old_dbeta[i];
            const Quad d = old + derivative(p, out == OUT_DX ? unit : NULL, out == OUT_DGAMMA ? unit : NULL,
                                            out == OUT_DBETA ? unit : NULL);
            /* The two ways themselves must agree far below any bar. */
            if (!(fabsq(d - expected[out].value[i]) <= 1e-18Q * (1 + fabsq(d))))
                ck_abort_msg("the oracle's %s[%lld] is %g, not %g", output_name(out), (long long)i,
                             (double)expected[out].value[i], (double)d);
            expected[out].value[i] = d;
            unit[i] = 0;
        }
    free(unit);
}

/* A small backward case: the library against differences of the forward formula, and the oracle too. */
static void check_derivatives(Case c)
{
    char line[CASE_SIZE];
    c = case_of(case_print(&c, line));
    Problem *p = problem_new(&c);
    Raw out[OUTPUT_COUNT];
    Expected expected[OUTPUT_COUNT];
    Comparison result;
    check_none(run_once(&c, p, NULL, out, NULL));
    oracle_solve(p, NULL, expected);
    by_differences(p, expected);
    for (Output o = OUT_DX; o <= OUT_DBETA; o++) {
        if (!out[o].bytes)
            continue;
        Quad *got = raw_values(&out[o]);
        check_none(compare(&c, o, &expected[o], got, &result));
        free(got);
    }
    oracle_free(expected);
    raw_free(out);
    problem_free(p);
}

/* <dy, J v> = <J^T dy, v> for a random direction v of all inputs together, J v by differences, J^T dy by the library. */
static void check_adjoint(Case c)
{
    char line[CASE_SIZE];
    c = case_of(case_print(&c, line));
    Problem *p = problem_new(&c);
    Raw out[OUTPUT_COUNT];
    check_none(run_once(&c, p, NULL, out, NULL));
    uint64_t state = c.seed;
    static const Output outs[] = { OUT_DX, OUT_DGAMMA, OUT_DBETA };
    Quad *v[3] = { NULL }, right = 0;
    double size = 0;
    for (int k = 0; k < COUNT(outs); k++) {
        if (!out[outs[k]].bytes)
            continue;
        Quad *gradient = raw_values(&out[outs[k]]);
        v[k] = malloc((size_t)out[outs[k]].count * sizeof *v[k]);
        for (int64_t i = 0; i < out[outs[k]].count; i++) {
            v[k][i] = (double)random_below(&state, 2001) / 1000 - 1;
            right += gradient[i] * v[k][i];
            size += fabs((double)(gradient[i] * v[k][i]));
        }
        free(gradient);
    }
    const Quad left = derivative(p, v[0], v[1], v[2]);
    const double u = c.x == WF_F64 ? 0x1p-53 : 0x1p-24;
    ck_assert_msg(fabsq(left - right) <= 32 * u * size, "<dy, J v> = %.17g, <J^T dy, v> = %.17g\n  --case \"%s\"",
                  (double)left, (double)right, case_print(&c, line));
    free(v[0]), free(v[1]), free(v[2]);
    raw_free(out);
    problem_free(p);
}

static void each_backward(void (*check)(Case), const int64_t shape[4])
{
    Case c;
    for (Norm norm = LAYERNORM; norm <= BATCHNORM; norm++)
        for (int i = 0; operation(norm, i, &c); i++)
            for (int how = 0; how < (row_wise(norm) ? 8 : 13) && op_is_backward(c.op); how++) {
                Case d = c;
                d.x = d.w = how & 1 ? WF_F64 : WF_F32;
                d.null = how & 2 ? NULL_GAMMA | NULL_BETA : 0;
                d.layout = (wf_layout)(how >> 2 & 1);
                d.rows = d.n = shape[0];
                d.cols = d.c = shape[1];
                d.hw = shape[2];
                d.groups = shape[3];
                d.weight_offset = norm == RMSNORM && how & 4 ? 1 : 0;
                d.eps = how & 1 ? 1e-3 : 0;
                d.seed = 3 + (uint64_t)how;
                if (how >= 8) { /* every activation */
                    d.activation = (wf_activation)(how - 7);
                    d.add = ADD_RESIDUAL;
                }
                check(d);
            }
}

START_TEST(derivatives)
{
    static const int64_t shapes[][4] = { { 3, 4, 5, 2 }, { 2, 9, 3, 3 } };
    each_backward(check_derivatives, shapes[_i]);
}
END_TEST

START_TEST(adjoint)
{
    static const int64_t shapes[][4] = { { 17, 36, 3, 4 }, { 2, 6, 121, 2 } };
    each_backward(check_adjoint, shapes[_i]);
}
END_TEST

/* ---- one norm is another ---- */

/* The outputs of two cases of different operations, on the same numbers in the same order, have the same bits. */
static void check_equal(const char *a, const char *b)
{
    const Case x = case_of(a), y = case_of(b);
    check_none(run_same_bits(&x, &y, a));
}

START_TEST(groupnorm_is_instancenorm) /* groups = c */
{
    check_equal("groupnorm_forward x=f32 n=3 c=5 hw=49 groups=5", "instancenorm_train x=f32 n=3 c=5 hw=49");
    check_equal("groupnorm_forward x=f16 n=3 c=5 hw=49 groups=5 layout=nhwc",
                "instancenorm_train x=f16 n=3 c=5 hw=49 layout=nhwc");
    check_equal("groupnorm_backward x=bf16 w=f32 n=3 c=5 hw=49 groups=5",
                "instancenorm_backward x=bf16 w=f32 n=3 c=5 hw=49");
    check_equal("groupnorm_backward x=f64 n=3 c=5 hw=49 groups=5 layout=nhwc",
                "instancenorm_backward x=f64 n=3 c=5 hw=49 layout=nhwc");
}
END_TEST

/* The same within the bars of both: operations that are computed in different ways. */
static void check_close(const char *a, const char *b)
{
    const Case x = case_of(a), y = case_of(b);
    Problem *p = problem_new(&x), *q = problem_new(&y);
    Raw one[OUTPUT_COUNT], other[OUTPUT_COUNT];
    Expected expected[OUTPUT_COUNT];
    Comparison result;
    check_none(run_once(&x, p, NULL, one, NULL));
    check_none(run_once(&y, q, NULL, other, NULL));
    oracle_solve(p, NULL, expected);
    for (Output out = 0; out < OUTPUT_COUNT; out++) {
        if (!one[out].bytes || out == OUT_MEAN_PAIR)
            continue;
        free(expected[out].value);
        expected[out].value = raw_values(&one[out]);
        for (int64_t i = 0; i < expected[out].count; i++) /* half an ulp for each */
            expected[out].bar[i] = 2 * expected[out].bar[i] + 0.5 * ulp_at(x.x, (double)expected[out].value[i]);
        Quad *got = raw_values(&other[out]);
        check_none(compare(&y, out, &expected[out], got, &result));
        free(got);
    }
    oracle_free(expected);
    raw_free(one), raw_free(other);
    problem_free(p), problem_free(q);
}

START_TEST(groupnorm_is_layernorm) /* groups = 1, hw = 1 */
{
    check_close("layernorm_forward x=f32 rows=33 cols=257", "groupnorm_forward x=f32 n=33 c=257 hw=1 groups=1");
    check_close("layernorm_forward x=bf16 w=f32 rows=33 cols=257",
                "groupnorm_forward x=bf16 w=f32 n=33 c=257 hw=1 groups=1 layout=nhwc");
    check_close("layernorm_backward x=f32 rows=33 cols=257", "groupnorm_backward x=f32 n=33 c=257 hw=1 groups=1");
}
END_TEST

START_TEST(batchnorm_is_instancenorm) /* n = 1 */
{
    check_equal("batchnorm_train x=f32 n=1 c=7 hw=196 running=1", "instancenorm_train x=f32 n=1 c=7 hw=196 running=1");
    check_equal("batchnorm_train x=f16 n=1 c=7 hw=196 layout=nhwc running=1 flags=biased",
                "instancenorm_train x=f16 n=1 c=7 hw=196 layout=nhwc running=1 flags=biased");
    check_equal("batchnorm_backward x=f32 n=1 c=7 hw=196", "instancenorm_backward x=f32 n=1 c=7 hw=196");
    check_equal("batchnorm_infer x=f32 n=2 c=7 hw=9", "instancenorm_infer x=f32 n=2 c=7 hw=9");
    check_equal("batchnorm_backward x=f32 n=2 c=7 hw=9 flags=frozen", "instancenorm_backward x=f32 n=2 c=7 hw=9 flags=frozen");
}
END_TEST

/* ---- sums ---- */

/* Without gamma, per slot: sum dx = 0 (where there is a mean) and, with eps = 0, sum dx xhat = 0; dbeta = sum dy. */
START_TEST(sums)
{
    static const char *const lines[] = {
        "layernorm_backward x=f32 rows=5 cols=1000 eps=0 null=gamma",
        "layernorm_backward x=f64 rows=5 cols=1000 eps=0 null=gamma",
        "rmsnorm_backward x=f32 rows=5 cols=1000 eps=0 null=gamma",
        "groupnorm_backward x=f32 n=4 c=12 hw=50 groups=3 eps=0 null=gamma",
        "groupnorm_backward x=f64 n=4 c=12 hw=50 groups=3 eps=0 null=gamma layout=nhwc",
        "instancenorm_backward x=f32 n=4 c=12 hw=50 eps=0 null=gamma layout=nhwc",
        "batchnorm_backward x=f32 n=4 c=12 hw=50 eps=0 null=gamma",
        "batchnorm_backward x=f64 n=4 c=12 hw=50 eps=0 null=gamma layout=nhwc",
    };
    const Case c = case_of(lines[_i]);
    const double u = c.x == WF_F64 ? 0x1p-53 : 0x1p-24;
    const bool centered = op_norm(c.op) != RMSNORM;
    Problem *p = problem_new(&c);
    Raw out[OUTPUT_COUNT];
    check_none(run_once(&c, p, NULL, out, NULL));
    Quad *dx = raw_values(&out[OUT_DX]), *mean = calloc((size_t)p->slots, sizeof *mean);
    Quad *sum = calloc((size_t)p->slots, sizeof *sum), *dot = calloc((size_t)p->slots, sizeof *dot);
    double *sum_size = calloc((size_t)p->slots, sizeof *sum_size), *dot_size = calloc((size_t)p->slots, sizeof *dot_size);
    for (int64_t i = 0; i < p->count && centered; i++)
        mean[p->slot[i]] += p->x[i] / p->per_slot;
    for (int64_t i = 0; i < p->count; i++) {
        const int32_t s = p->slot[i];
        sum[s] += dx[i];
        dot[s] += dx[i] * (p->x[i] - mean[s]);
        sum_size[s] += fabs((double)dx[i]);
        dot_size[s] += fabs((double)(dx[i] * (p->x[i] - mean[s])));
    }
    for (int64_t s = 0; s < p->slots; s++) {
        ck_assert_msg(!centered || fabsq(sum[s]) <= 8 * u * sum_size[s], "sum dx = %g of %g", (double)sum[s], sum_size[s]);
        ck_assert_msg(fabsq(dot[s]) <= 8 * u * dot_size[s], "sum dx xhat = %g of %g", (double)dot[s], dot_size[s]);
    }
    if (out[OUT_DBETA].bytes) {
        double *total = calloc((size_t)p->params, sizeof *total), *size = calloc((size_t)p->params, sizeof *size);
        for (int64_t i = 0; i < p->count; i++) {
            total[p->param[i]] += (double)p->dy[i];
            size[p->param[i]] += fabs((double)p->dy[i]);
        }
        for (int64_t i = 0; i < p->params; i++)
            ck_assert_double_le(fabs(dtype_load(c.w, out[OUT_DBETA].bytes, i) - total[i]), 16 * u * size[i]);
        free(total), free(size);
    }
    free(dx), free(mean), free(sum), free(dot), free(sum_size), free(dot_size);
    raw_free(out);
    problem_free(p);
}
END_TEST

/* Backward is linear in dy: of 2 dy to the bit, of dy + ez within rounding. */
static void check_linear(Case c)
{
    char line[CASE_SIZE];
    c.x = c.w = WF_F64;
    c = case_of(case_print(&c, line));
    Problem *p = problem_new(&c);
    Quad *values[3][OUTPUT_COUNT];
    uint64_t state = 9;
    Quad *dy = malloc((size_t)p->count * sizeof *dy), *ez = malloc((size_t)p->count * sizeof *ez);
    for (int64_t i = 0; i < p->count; i++) { /* few bits, so that dy + ez is exact */
        dy[i] = (Quad)random_below(&state, 2001) / 256 - 4;
        ez[i] = (Quad)random_below(&state, 2001) / 512 - 2;
    }
    Raw once[OUTPUT_COUNT], twice[OUTPUT_COUNT], other[OUTPUT_COUNT], both[OUTPUT_COUNT];
    Raw *const outs[] = { once, twice, other, both };
    for (int k = 0; k < 4; k++) {
        for (int64_t i = 0; i < p->count; i++)
            p->dy[i] = k == 0 ? dy[i] : k == 1 ? 2 * dy[i] : k == 2 ? ez[i] : dy[i] + ez[i];
        check_none(run_once(&c, p, NULL, outs[k], NULL));
    }
    for (Output o = OUT_DX; o <= OUT_DBETA; o++) {
        if (!once[o].bytes)
            continue;
        Quad *doubled = raw_values(&twice[o]);
        values[0][o] = raw_values(&once[o]), values[1][o] = raw_values(&other[o]), values[2][o] = raw_values(&both[o]);
        for (int64_t i = 0; i < once[o].count; i++) {
            if (doubled[i] != 2 * values[0][o][i])
                ck_abort_msg("%s[%lld] of 2 dy is not twice that of dy\n  --case \"%s\"", output_name(o), (long long)i,
                             case_print(&c, line));
            if (!(fabsq(values[0][o][i] + values[1][o][i] - values[2][o][i]) <= 1e-11Q))
                ck_abort_msg("%s[%lld] is not linear in dy\n  --case \"%s\"", output_name(o), (long long)i,
                             case_print(&c, line));
        }
        free(doubled), free(values[0][o]), free(values[1][o]), free(values[2][o]);
    }
    for (int k = 0; k < 4; k++)
        raw_free(outs[k]);
    free(dy), free(ez);
    problem_free(p);
}

START_TEST(linear)
{
    static const int64_t shape[] = { 9, 40, 7, 4 };
    each_backward(check_linear, shape);
}
END_TEST

/* ---- the line of a case ---- */

/* Printing and parsing are inverses, for every field of every operation. */
START_TEST(line_round_trip)
{
    static const char *const lines[] = {
        "layernorm_backward x=bf16 w=f32 rows=33 cols=1000 x_stride=1024 y_stride=1 dx_stride=2 dy_stride=3 eps=0.001 "
        "flags=accumulate null=beta,mean_lo inplace=1 misalign=1 data=offset seed=7 threads=2 variant=avx2",
        "rmsnorm_forward x=f32 rows=-1 cols=9223372036854775807 eps=0.1 weight_offset=1 fpmode=flush",
        "groupnorm_forward x=f16 layout=nhwc n=2 c=6 hw=49 groups=3 data=infrow seed=18446744073709551615",
        "batchnorm_train x=f64 n=2 c=6 hw=49 momentum=0.3333333333333333 flags=biased running=nan pool=3 backend=cuda",
        "instancenorm_infer x=f32 n=0 c=0 hw=0 running=inplace",
        "dropout_forward x=bf16 layout=nhwc n=2 c=6 hw=49 kind=alpha p=0.1 offset=42 flags=features null=mask seed=9",
    };
    static const char *const bad[] = {
        "", "layernorm", "layernorm_forward rows", "layernorm_forward rows=", "layernorm_forward rows=1x",
        "layernorm_forward hw=3", "layernorm_forward x=f31", "layernorm_forward null=gamma,delta",
        "layernorm_forward rows=9223372036854775808", "layernorm_forward threads=2147483648", "dropout_forward rows=1",
        "layernorm_forward variant=a_name_that_is_longer_than_any_variant_has",
    };
    char line[CASE_SIZE];
    for (int i = 0; i < COUNT(lines); i++) {
        const Case c = case_of(lines[i]), again = case_of(case_print(&c, line));
        ck_assert_str_eq(line, lines[i]);
        ck_assert_mem_eq(&c, &again, sizeof c);
    }
    Case c;
    for (int i = 0; i < COUNT(bad); i++)
        ck_assert_msg(case_parse(&c, bad[i]) != NULL, "'%s' was accepted", bad[i]);
}
END_TEST

Suite *identities_suite(void)
{
    Suite *suite = suite_create("identities");
    TCase *tcase = tcase_create("identities");
    tcase_set_timeout(tcase, 120);
    tcase_add_loop_test(tcase, derivatives, 0, quick() ? 1 : 2);
    tcase_add_loop_test(tcase, adjoint, 0, 2);
    tcase_add_test(tcase, groupnorm_is_instancenorm);
    tcase_add_test(tcase, groupnorm_is_layernorm);
    tcase_add_test(tcase, batchnorm_is_instancenorm);
    tcase_add_loop_test(tcase, sums, 0, 8);
    tcase_add_test(tcase, linear);
    tcase_add_test(tcase, line_round_trip);
    suite_add_tcase(suite, tcase);
    return suite;
}
