/* Folding a norm into a layer: against the oracle, against the network that is not folded, to the bit. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sweep.h"

Suite *fold_suite(void);

static const Op ops[] = { FOLD_BATCHNORM, FOLD_LAYERNORM };
enum { OPS = 2 };
#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

/* rows x cols of a Linear, then channels that are several rows, or columns, each. */
static const int64_t shapes[][2] = { { 0, 5 },    { 3, 0 },    { 1, 1 },      { 2, 3 },    { 33, 31 },  { 12, 64 },   { 64, 27 },
                                     { 30, 9 },   { 5, 129 },  { 9, 257 },    { 7, 1000 }, { 4, 1025 }, { 6, 2048 }, { 4, 4098 },
                                     { 700, 2 },  { 300, 40 }, { 3, 12345 }, { 2, 40001 } };

static Case fold_of(Op op, int shape, int each)
{
    Case c = case_default(op);
    c.rows = shapes[shape][0], c.cols = shapes[shape][1];
    const int64_t all = op == FOLD_BATCHNORM ? c.rows : c.cols;
    c.channels = all % each == 0 ? all / each : 0;
    c.seed = (uint64_t)(shape * 7 + each);
    return c;
}

START_TEST(every_shape)
{
    for (int op = 0; op < OPS; op++)
        for (int d = 0; d < DTYPES; d++)
            for (int each = 1; each <= 3; each++) {
                Case c = fold_of(ops[op], _i, each);
                set_dtypes(&c, d);
                c.flags = c.x != WF_F64 && (d + each) % 2 ? WF_BIAS_F32 : 0;
                check_case(&c);
            }
}
END_TEST

/* Every set of absent parameters; in place, with strides, off their alignment, on threads, zero-centred. */
START_TEST(options)
{
    static const uint32_t nulls[] = { NULL_GAMMA, NULL_BETA, NULL_BIAS };
    for (int op = 0; op < OPS; op++)
        for (int how = 0; how < 32; how++) {
            Case c = fold_of(ops[op], 3 + (how + _i) % 11, 1 + how % 3);
            for (int bit = 0; bit < 3; bit++)
                c.null |= _i >> bit & 1 ? nulls[bit] : 0;
            c.inplace = how % 4;
            c.x_stride = how & 4 ? c.cols + 3 : 0;
            c.y_stride = c.inplace & 1 ? c.x_stride : how & 8 ? c.cols + 5 : 0;
            c.misalign = how / 4 % 3;
            c.threads = how % 3;
            c.eps = how % 5 ? 1e-5 : 0;
            c.weight_offset = how % 2;
            set_dtypes(&c, how + _i);
            c.flags = how & 16 && c.x != WF_F64 ? WF_BIAS_F32 : 0;
            check_case(&c);
        }
}
END_TEST

START_TEST(data)
{
    for (int op = 0; op < OPS; op++)
        for (int d = 0; d < DTYPES; d++)
            for (int shape = 8; shape < 13; shape += 2) {
                Case c = fold_of(ops[op], shape, 1);
                set_dtypes(&c, d);
                c.data = (Data)_i;
                check_case(&c);
            }
}
END_TEST

/* ---- to the bit ---- */

static void same_bits(const Case *c, const Problem *p, const Raw expected[OUTPUT_COUNT], const char *what)
{
    Raw out[OUTPUT_COUNT];
    check_none(run_once(c, p, NULL, out, NULL));
    check_none(raw_differs(c, expected, out, what));
    raw_free(out);
}

/* However it is called; a row alone. */
START_TEST(bits)
{
    for (int d = 0; d < DTYPES; d++)
        for (int shape = 5; shape < COUNT(shapes); shape += 3) {
            Case c = fold_of(ops[_i], shape, 1), other;
            set_dtypes(&c, d);
            c.backend = tested_backend();
            if (left_out(&c))
                continue;
            Problem *p = problem_new(&c);
            Raw expected[OUTPUT_COUNT];
            check_none(run_once(&c, p, NULL, expected, NULL));
            for (int threads = 1; threads < 8; threads += 3) {
                other = c;
                other.threads = threads;
                same_bits(&other, p, expected, "without a limit of threads");
                other.pool = threads;
                same_bits(&other, p, expected, "without a pool");
            }
            for (FpMode mode = MODE_UP; mode <= MODE_FLUSH; mode++) {
                other = c;
                other.fpmode = mode;
                same_bits(&other, p, expected, "when the caller rounds to nearest");
            }
            for (int how = 1; how < 4; how++) {
                other = c;
                other.inplace = how;
                other.misalign = how;
                other.x_stride = how == 1 ? c.cols + 1 : 0;
                other.y_stride = how == 1 ? c.cols + 1 : how == 2 ? c.cols + 8 : 0;
                same_bits(&other, p, expected, "when not in place, contiguous and aligned");
            }
            other = c;
            other.rows = 1;
            other.channels = c.op == FOLD_BATCHNORM ? 1 : c.channels;
            Problem first = *p;
            Raw cut[OUTPUT_COUNT] = { [OUT_Y] = expected[OUT_Y], [OUT_FOLDED_BIAS] = expected[OUT_FOLDED_BIAS] };
            first.c = &other, first.count = cut[OUT_Y].count = c.cols, first.biases = cut[OUT_FOLDED_BIAS].count = 1;
            first.params = c.op == FOLD_BATCHNORM ? 1 : p->params;
            same_bits(&other, &first, cut, "in the whole");
            raw_free(expected);
            problem_free(p);
        }
}
END_TEST

/* What is no sum has the bits that it has on the CPU. */
START_TEST(back_ends)
{
    if (tested_backend() == WF_CPU)
        return;
    for (int d = 0; d < DTYPES; d++)
        for (int shape = 3; shape < COUNT(shapes); shape += 2) {
            Case c = fold_of(ops[_i], shape, 1), other;
            set_dtypes(&c, d);
            other = c;
            other.backend = WF_CUDA;
            other.weight_offset = c.weight_offset = d % 2;
            if (left_out(&other))
                continue;
            Problem *p = problem_new(&c);
            Raw on_cpu[OUTPUT_COUNT];
            check_none(run_once(&c, p, NULL, on_cpu, NULL));
            if (c.op == FOLD_LAYERNORM)
                free(on_cpu[OUT_FOLDED_BIAS].bytes), on_cpu[OUT_FOLDED_BIAS].bytes = NULL;
            same_bits(&other, p, on_cpu, "on the CPU");
            raw_free(on_cpu);
            problem_free(p);
        }
}
END_TEST

/* ---- the network that is not folded ---- */

enum { IN = 300, OUT = 20, BATCH = 6 };
static const double U = 0x1p-24;

typedef struct Layer {
    float x[BATCH * IN], weight[OUT * IN], bias[OUT], gamma[IN], beta[IN], mean[OUT], var[OUT];
} Layer;

static void layer_fill(Layer *l)
{
    const struct { float *to; int count; double mean, sd; } parts[] = {
        { l->x, BATCH * IN, 3, 2 }, { l->weight, OUT * IN, 0, 0.1 }, { l->bias, OUT, 0, 1 }, { l->gamma, IN, 1, 0.5 },
        { l->beta, IN, 0, 1 },      { l->mean, OUT, 1, 2 },          { l->var, OUT, 0.25, -1 },
    };
    for (int i = 0; i < COUNT(parts); i++) {
        Quad *values = normals(WF_F32, parts[i].count, parts[i].mean, parts[i].sd, 40 + (uint64_t)i);
        for (int k = 0; k < parts[i].count; k++)
            parts[i].to[k] = (float)values[k];
        free(values);
    }
}

static void must(wf_status status) { check_none(status ? wf_error_detail() : NULL); }

/* y[b, o] = bias[o] + sum x[b, i] weight[o, i] and, for a bound, the same of magnitudes. */
static void linear(const float *x, const float *weight, const float *bias, double *y, double *size)
{
    for (int b = 0; b < BATCH; b++)
        for (int o = 0; o < OUT; o++) {
            double sum = bias[o], magnitude = fabs(bias[o]);
            for (int i = 0; i < IN; i++) {
                const double product = (double)x[b * IN + i] * weight[o * IN + i];
                sum += product, magnitude += fabs(product);
            }
            y[b * OUT + o] = sum, size[b * OUT + o] = magnitude;
        }
}

static void near(int i, double folded, double unfolded, double bound)
{
    if (!(fabs(folded - unfolded) <= bound))
        ck_abort_msg("output %d is %.9g folded, %.9g not: %.3g apart, the bound is %.3g", i, folded, unfolded,
                     fabs(folded - unfolded), bound);
}

/* linear, batchnorm_infer. What is rounded on the way: the linear's result, y, the folded weight and bias; each within the
 * bar that the header states for it. */
START_TEST(linear_then_batchnorm)
{
    static Layer l;
    static float folded[OUT * IN], folded_bias[OUT], z[BATCH * OUT], y[BATCH * OUT];
    static double sum[BATCH * OUT], size[BATCH * OUT], got[BATCH * OUT], got_size[BATCH * OUT];
    static char workspace[4096];
    const wf_exec where = { .size = sizeof where, .workspace = workspace, .workspace_size = sizeof workspace };
    const wf_fold fold = { .size = sizeof fold, .rows = OUT, .cols = IN, .eps = 1e-3 };
    const wf_batchnorm norm = { .size = sizeof norm, .n = BATCH, .c = OUT, .hw = 1, .eps = 1e-3 };
    layer_fill(&l);
    linear(l.x, l.weight, l.bias, sum, size);
    for (int i = 0; i < BATCH * OUT; i++)
        z[i] = (float)sum[i];
    must(wf_batchnorm_infer(&norm, &(wf_batchnorm_infer_args){ sizeof(wf_batchnorm_infer_args), z, l.gamma, l.beta, l.mean,
                                                               l.var, y, NULL, NULL }, &where));
    must(wf_fold_batchnorm(&fold, &(wf_fold_args){ sizeof(wf_fold_args), l.weight, l.bias, l.gamma, l.beta, l.mean, l.var,
                                                   folded, folded_bias }, &where));
    linear(l.x, folded, folded_bias, got, got_size);
    for (int i = 0; i < BATCH * OUT; i++) {
        const int o = i % OUT;
        const double s = l.gamma[o] / sqrt(l.var[o] + 1e-3), xhat = fabs((z[i] - l.mean[o]) / sqrt(l.var[o] + 1e-3));
        const double bound = U * fabs(z[i] * s) + 9 * U * (fabs(l.gamma[o]) * fmax(1, xhat) + fabs(l.beta[o])) +
                             6 * U * got_size[i] + 8 * U * (fabs((l.bias[o] - l.mean[o]) * s) + fabs(l.beta[o]));
        near(i, got[i], y[i], bound);
    }
}
END_TEST

/* layernorm_forward, or rmsnorm_forward of a zero-centred gamma, then linear. */
START_TEST(norm_then_linear)
{
    static Layer l;
    static float folded[OUT * IN], folded_bias[OUT], y[BATCH * IN], xhat[BATCH * IN];
    static double sum[BATCH * OUT], size[BATCH * OUT], got[BATCH * OUT], got_size[BATCH * OUT];
    const bool rms = _i;
    const wf_exec where = { .size = sizeof where };
    const wf_fold fold = { .size = sizeof fold, .rows = OUT, .cols = IN, .weight_offset = rms };
    const float *const beta = rms ? NULL : l.beta;
    layer_fill(&l);
    for (int plain = 0; plain < 2; plain++) {
        const float *const gamma = plain ? NULL : l.gamma;
        float *const to = plain ? xhat : y;
        const wf_layernorm layer = { .size = sizeof layer, .rows = BATCH, .cols = IN, .eps = 1e-5 };
        const wf_rmsnorm root = { .size = sizeof root, .rows = BATCH, .cols = IN, .eps = 1e-5, .weight_offset = 1 };
        if (rms)
            must(wf_rmsnorm_forward(&root, &(wf_rmsnorm_forward_args){ .size = sizeof(wf_rmsnorm_forward_args), .x = l.x,
                                                                       .gamma = gamma, .y = to }, &where));
        else
            must(wf_layernorm_forward(&layer, &(wf_layernorm_forward_args){ .size = sizeof(wf_layernorm_forward_args),
                                                                            .x = l.x, .gamma = gamma,
                                                                            .beta = plain ? NULL : beta, .y = to }, &where));
    }
    must(wf_fold_layernorm(&fold, &(wf_fold_args){ .size = sizeof(wf_fold_args), .weight = l.weight, .bias = l.bias,
                                                   .gamma = l.gamma, .beta = beta, .folded_weight = folded,
                                                   .folded_bias = folded_bias }, &where));
    linear(y, l.weight, l.bias, sum, size);
    linear(xhat, folded, folded_bias, got, got_size);
    for (int i = 0; i < BATCH * OUT; i++) {
        double bound = 6 * U * got_size[i];
        for (int k = 0; k < IN; k++) {
            const int at = i / OUT * IN + k;
            const double gamma = fabs(rms + l.gamma[k]), shift = rms ? 0 : fabs(l.beta[k]);
            const double weight = fabs(l.weight[i % OUT * IN + k]), one = fmax(1, fabs(xhat[at]));
            bound += weight * U * (9 * (gamma * one + shift) + 9 * gamma * one + (9 + log2(IN)) * shift);
        }
        near(i, got[i], sum[i], bound + (9 + log2(IN)) * U * fabs(l.bias[i % OUT]));
    }
}
END_TEST

/* ---- what a channel's constants reach ---- */

enum { CHANNELS = 4, EACH = 3 };

static void fold_ones(Op op, const float *gamma, const float *beta, const float *mean, const float *var, double eps,
                      float weight[CHANNELS * CHANNELS * EACH], float bias[CHANNELS])
{
    const bool rows = op == FOLD_BATCHNORM;
    const wf_exec where = { .size = sizeof where };
    const wf_fold what = { .size = sizeof what, .rows = rows ? CHANNELS * EACH : CHANNELS,
                           .cols = rows ? CHANNELS : CHANNELS * EACH, .channels = CHANNELS, .eps = eps };
    const wf_fold_args with = { sizeof with, weight, bias, gamma, beta, mean, var, weight, bias };
    for (int i = 0; i < CHANNELS * CHANNELS * EACH; i++)
        weight[i] = 1;
    for (int i = 0; i < CHANNELS; i++)
        bias[i] = 5;
    must(rows ? wf_fold_batchnorm(&what, &with, &where) : wf_fold_layernorm(&what, &with, &where));
}

START_TEST(constants_of_a_channel)
{
    static const float one[CHANNELS] = { 1, 1, 1, 1 }, beta[CHANNELS] = { 2, 3, 4, 6 }, scale[CHANNELS] = { 0, 1, 1, 2 };
    float weight[CHANNELS * CHANNELS * EACH], bias[CHANNELS], odd[CHANNELS] = { 1, 1, 1, 1 };
    fold_ones(FOLD_BATCHNORM, one, beta, one, (float[]){ 0, 1, 1, 0.25f }, 0, weight, bias); /* bias - mean = 4 */
    for (int r = 0; r < CHANNELS * EACH; r++) /* transposed convolution: channels in turn */
        for (int i = 0; i < CHANNELS; i++)
            ck_assert(weight[r * CHANNELS + i] == scale[r % CHANNELS]);
    for (int k = 0; k < CHANNELS; k++)
        ck_assert(bias[k] == 4 * scale[k] + beta[k]);

    for (int what = 0; what < 5; what++) {
        static const float bad[] = { NAN, INFINITY, NAN, -1, NAN }; /* of gamma, gamma, mean, var, var */
        odd[2] = bad[what];
        fold_ones(FOLD_BATCHNORM, what < 2 ? odd : one, beta, what == 2 ? odd : one, what > 2 ? odd : one, 1e-5, weight, bias);
        for (int r = 0; r < CHANNELS * EACH; r++)
            for (int i = 0; i < CHANNELS; i++)
                ck_assert(!isfinite(weight[r * CHANNELS + i]) == (r % CHANNELS == 2 && what != 2));
        for (int k = 0; k < CHANNELS; k++)
            ck_assert(!isfinite(bias[k]) == (k == 2));
    }
    for (int what = 0; what < 2; what++) {
        odd[2] = NAN;
        fold_ones(FOLD_LAYERNORM, what ? one : odd, what ? odd : beta, NULL, NULL, 0, weight, bias);
        for (int r = 0; r < CHANNELS; r++)
            for (int j = 0; j < CHANNELS * EACH; j++)
                ck_assert(isnan(weight[r * CHANNELS * EACH + j]) == (j / EACH == 2 && !what));
        for (int r = 0; r < CHANNELS; r++)
            ck_assert(what ? isnan(bias[r]) : bias[r] == 5 + EACH * 15);
    }
}
END_TEST

/* ---- bad input that is a fold's own; the rest is in test_bad_input*.c ---- */

START_TEST(refused)
{
    static float a[6][64];
    const wf_exec where = { .size = sizeof where };
    const wf_fold_args with = { sizeof with, a[0], NULL, a[1], NULL, a[2], a[3], a[4], NULL };
    wf_fold what = { .size = sizeof what, .rows = 4, .cols = 6 };
    ck_assert_int_eq(wf_fold_layernorm(&what, &with, &where), WF_OK); /* no beta: no bias is wanted */
    ck_assert_int_eq(wf_fold_batchnorm(&what, &with, &where), WF_INVALID);
    ck_assert_ptr_nonnull(strstr(wf_error_detail(), "fold_batchnorm: folded_bias = NULL"));
    static const struct { int64_t channels; const char *batch, *layer; } bad[] = {
        { 3, "channels = 3, must divide rows = 4", NULL }, { 4, NULL, "channels = 4, must divide cols = 6" },
        { -1, "channels = -1", "channels = -1" },          { 12, "channels = 12", "channels = 12" },
    };
    for (int i = 0; i < COUNT(bad); i++) {
        wf_fold_args full = with;
        full.folded_bias = a[5];
        what.channels = bad[i].channels;
        ck_assert_int_eq(wf_fold_batchnorm(&what, &full, &where), bad[i].batch ? WF_INVALID : WF_OK);
        ck_assert(!bad[i].batch || strstr(wf_error_detail(), bad[i].batch));
        ck_assert_int_eq(wf_fold_layernorm(&what, &full, &where), bad[i].layer ? WF_INVALID : WF_OK);
        ck_assert(!bad[i].layer || strstr(wf_error_detail(), bad[i].layer));
    }
    what.rows = 0, what.channels = 5;
    ck_assert_int_eq(wf_fold_batchnorm(&what, &with, &where), WF_INVALID);
    what = (wf_fold){ .size = sizeof what, .x_dtype = WF_F64, .w_dtype = WF_F64, .flags = WF_BIAS_F32 };
    ck_assert_int_eq(wf_fold_layernorm(&what, &with, &where), WF_INVALID);
    ck_assert_ptr_nonnull(strstr(wf_error_detail(), "WF_BIAS_F32 with x_dtype = f64"));
}
END_TEST

Suite *fold_suite(void)
{
    Suite *s = suite_create("fold");
    TCase *t = tcase_create("fold");
    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, every_shape, 0, COUNT(shapes));
    tcase_add_loop_test(t, options, 0, 8);
    tcase_add_loop_test(t, data, 0, DATA_COUNT);
    tcase_add_loop_test(t, bits, 0, OPS);
    tcase_add_loop_test(t, back_ends, 0, OPS);
    tcase_add_test(t, linear_then_batchnorm);
    tcase_add_loop_test(t, norm_then_linear, 0, 2);
    tcase_add_test(t, constants_of_a_channel);
    tcase_add_test(t, refused);
    suite_add_tcase(s, t);
    return s;
}
