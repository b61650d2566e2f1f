/* The activations of src/common/activation.h against __float128, over floats of every exponent and doubles of all sizes. */
#include <check.h>
#include <math.h>
#include <quadmath.h>
#include <stdio.h>
#include <string.h>

#include "activation_loops.h"
#include "oracle_activation.h"
#include "sweep.h"

Suite *activation_suite(void);

enum { KINDS = 6, BLOCK = 4096 };
static const double SLOPE = 0.25;
/* Units of u: of the result, and of oracle_activation_derivative's size. Below the normal range units of the last place. */
static const double bars[KINDS][2] = {{0, 0}, {0, 0}, {1, 0}, {4, 5}, {5, 5}, {4, 6}};
static const double SUBNORMAL_BAR = 2;

typedef struct Worst {
    double off; /* of what is allowed */
    Quad   x, got, want;
} Worst;

static void judge(Worst *worst, int kind, bool derivative, wf_dtype dtype, Quad x, Quad got)
{
    Quad       size, want;
    const Quad u = dtype == WF_F64 ? 0x1p-53 : 0x1p-24, least = dtype == WF_F64 ? 0x1p-1074 : 0x1p-149;
    if (derivative) {
        want = oracle_activation_derivative((wf_activation)kind, SLOPE, x, &size);
    } else {
        want = oracle_activation((wf_activation)kind, SLOPE, x);
        size = fabsq(want);
    }
    const double off = (double)(fabsq(got - want) / (bars[kind][derivative] * u * size + SUBNORMAL_BAR * least));
    if (!(off <= worst->off)) /* a NaN is worse than anything */
        *worst = (Worst){isnan(off) ? HUGE_VAL : off, x, got, want};
}

static void report(const Worst *worst, const char *what, int kind, bool derivative)
{
    if (worst->off > 1)
        ck_abort_msg("%s, kind %d%s: %.3f of what is allowed at %.17g: %.17g, expected %.17g", what, kind,
                     derivative ? ", derivative" : "", worst->off, (double)worst->x, (double)worst->got,
                     (double)worst->want);
}

/* Floats at equal distances among all bit patterns: as many of each exponent. */
START_TEST(floats)
{
    const int      kind = _i / 2;
    const bool     derivative = _i % 2;
    const uint64_t step = quick() ? 1000003 : 30011;
    float          x[BLOCK], y[BLOCK];
    Worst          worst = {0};
    for (uint64_t bits = (uint64_t)_i * 1009; bits < UINT64_C(1) << 32;) {
        int64_t n = 0;
        for (; n < BLOCK && bits < UINT64_C(1) << 32; bits += step) {
            const uint32_t word = (uint32_t)bits;
            memcpy(&x[n], &word, sizeof word);
            n += isfinite(x[n]) != 0;
        }
        activation_f32(kind, derivative, SLOPE, n, x, y);
        for (int64_t i = 0; i < n; i++)
            judge(&worst, kind, derivative, WF_F32, x[i], y[i]);
    }
    report(&worst, "float", kind, derivative);
}
END_TEST

/* Where there is something to be wrong: to beyond the end of the tails, and near 0. */
START_TEST(dense)
{
    const int  kind = _i / 2;
    const bool derivative = _i % 2;
    Worst      single = {0}, twice = {0};
    for (int part = 0; part < (quick() ? 4 : 40); part++) {
        static const double ranges[] = {900, 130, 40, 10, 3, 0.5, 0x1p-10, 0x1p-30};
        double              x[BLOCK], y[BLOCK];
        float               narrow[BLOCK], narrow_y[BLOCK];
        uint64_t            state = (uint64_t)(_i * 100 + part);
        for (int i = 0; i < BLOCK; i++) {
            x[i] = ranges[i % 8] * ((double)(random_bits(&state) >> 11) * 0x1p-52 - 1);
            narrow[i] = (float)x[i];
        }
        activation_f64(kind, derivative, SLOPE, BLOCK, x, y);
        activation_f32(kind, derivative, SLOPE, BLOCK, narrow, narrow_y);
        for (int i = 0; i < BLOCK; i++) {
            judge(&twice, kind, derivative, WF_F64, x[i], y[i]);
            judge(&single, kind, derivative, WF_F32, narrow[i], narrow_y[i]);
        }
    }
    report(&twice, "double", kind, derivative);
    report(&single, "float", kind, derivative);
}
END_TEST

/* The oracle's derivative is that of its function. */
START_TEST(differences)
{
    const wf_activation kind = (wf_activation)_i;
    for (int i = -400; i <= 400; i++) {
        const Quad x = ((Quad)i + 0.5Q) / 20, h = 1e-9Q;
        Quad       size;
        const Quad got = oracle_activation_derivative(kind, SLOPE, x, &size);
        const Quad want = (oracle_activation(kind, SLOPE, x + h) - oracle_activation(kind, SLOPE, x - h)) / (2 * h);
        if (fabsq(got - want) > 1e-13Q * size)
            ck_abort_msg("kind %d at %g: %.17g, differences give %.17g", _i, (double)x, (double)got, (double)want);
    }
}
END_TEST

START_TEST(limits)
{
    const float  x[] = {NAN, -NAN, INFINITY, -INFINITY, 0, 3e38f, -3e38f, 1e-45f, -1e-45f};
    const double wide[] = {NAN, -NAN, INFINITY, -INFINITY, 0, 1e308, -1e308, 5e-324, -5e-324};
    enum { N = sizeof x / sizeof *x };
    float  y[N], slope[N];
    double wide_y[N], wide_slope[N];
    activation_f32(_i, false, SLOPE, N, x, y);
    activation_f32(_i, true, SLOPE, N, x, slope);
    activation_f64(_i, false, SLOPE, N, wide, wide_y);
    activation_f64(_i, true, SLOPE, N, wide, wide_slope);
    const bool bounded = _i != WF_ACTIVATION_NONE && _i != WF_LEAKY_RELU;
    for (int i = 0; i < N; i++)
        ck_assert_msg(isnan(x[i]) ? isnan(y[i]) && isnan(wide_y[i]) : !isnan(y[i]) && !isnan(slope[i]), "kind %d at %g", _i,
                      (double)x[i]);
    ck_assert(isinf(y[2]) && isinf(wide_y[2]) && y[5] == x[5] && wide_y[5] == wide[5]);
    ck_assert(slope[2] == 1 && wide_slope[2] == 1);
    for (int i = 3; i < 7; i += 3) /* -Inf, and far below 0 */
        ck_assert(bounded ? y[i] == 0 && wide_y[i] == 0 && slope[i] == 0 && wide_slope[i] == 0 : y[i] < -1e37f);
}
END_TEST

Suite *activation_suite(void)
{
    Suite *s = suite_create("activation");
    TCase *t = tcase_create("activation");
    tcase_set_timeout(t, 300);
    tcase_add_loop_test(t, floats, 0, 2 * KINDS);
    tcase_add_loop_test(t, dense, 0, 2 * KINDS);
    tcase_add_loop_test(t, differences, 0, KINDS);
    tcase_add_loop_test(t, limits, 0, KINDS);
    suite_add_tcase(s, t);
    return s;
}
