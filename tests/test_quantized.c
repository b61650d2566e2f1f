/* LayerNorm and RMSNorm whose y is rounded to 8 bits: the conversions, and the forward passes. */
#include <check.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../src/common/narrow.h"
#include "device.h"
#include "oracle_quantize.h"
#include "sweep.h"

Suite *quantized_suite(void);

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

static const wf_dtype formats[] = { E4M3, E5M2, INT8 };
enum { FORMATS = 3 };

/* ---- conversions ---- */

/* In loops, as in the kernels, so that they are vectorised. */
static __attribute__((noinline)) void narrow(wf_dtype dtype, int count, const float *in, uint8_t *out)
{
    if (dtype == E4M3)
        for (int i = 0; i < count; i++)
            out[i] = wf_f32_to_e4m3(in[i]);
    else if (dtype == E5M2)
        for (int i = 0; i < count; i++)
            out[i] = wf_f32_to_e5m2(in[i]);
    else
        for (int i = 0; i < count; i++)
            out[i] = (uint8_t)wf_f32_to_int8(in[i]);
}

/* A float, and doubles that are it or lie beside it, become want; -in becomes that with the other sign. */
static void expect_code(wf_dtype dtype, double in, uint8_t want)
{
    for (int negative = 0; negative < 2; negative++) {
        const double value = negative ? -in : in;
        const uint8_t code = !negative || isnan(in) ? want : dtype == INT8 ? (uint8_t)-want : want ^ 0x80;
        const float value_f32 = (float)value, odd = wf_f64_to_odd(value);
        uint8_t out[2];
        narrow(dtype, 1, &odd, &out[1]);
        narrow(dtype, 1, &value_f32, &out[0]);
        if (out[1] != code || (value_f32 == value && out[0] != code))
            ck_abort_msg("%s: %.17g became %02x as a float and %02x as a double, not %02x", dtype_name(dtype), value, out[0],
                         out[1], code);
        ck_assert_int_eq(quantized_code(dtype, value), code); /* the oracle's own */
    }
}

/* Every number stays what it is; between two neighbours the middle goes to the even one, and what is next to it, as a float
 * and as a double, to the nearer. */
START_TEST(every_code)
{
    const wf_dtype dtype = formats[_i];
    const int largest = dtype == E4M3 ? 0x7e : dtype == E5M2 ? 0x7b : 127;
    for (int code = 0; code <= largest; code++) {
        const double here = quantized_value(dtype, (uint8_t)code);
        expect_code(dtype, here, (uint8_t)code);
        if (code == largest)
            break;
        const double middle = (here + quantized_value(dtype, (uint8_t)(code + 1))) / 2;
        ck_assert(middle > here && (float)middle == middle);
        expect_code(dtype, middle, (uint8_t)(code + code % 2));
        expect_code(dtype, nextafterf((float)middle, 0), (uint8_t)code);
        expect_code(dtype, nextafter(middle, 0), (uint8_t)code);
        expect_code(dtype, nextafterf((float)middle, INFINITY), (uint8_t)(code + 1));
        expect_code(dtype, nextafter(middle, INFINITY), (uint8_t)(code + 1));
    }
}
END_TEST

START_TEST(beyond)
{
    const wf_dtype dtype = formats[_i];
    const uint8_t largest = dtype == E4M3 ? 0x7e : dtype == E5M2 ? 0x7b : 127;
    const double at = quantized_value(dtype, largest);
    const double larger[] = { nextafterf((float)at, INFINITY), nextafter(at, INFINITY), at * 1.0625, at * 1.125, at * 2, 3e38,
                              FLT_MAX, 1e39, DBL_MAX, INFINITY };
    ck_assert(at == (dtype == E4M3 ? 448 : dtype == E5M2 ? 57344 : 127));
    for (int i = 0; i < COUNT(larger); i++)
        expect_code(dtype, larger[i], largest);
    const double smaller[] = { 0, FLT_TRUE_MIN, FLT_MIN, DBL_TRUE_MIN, 1e-50, 1e-7 };
    for (int i = 0; i < COUNT(smaller); i++)
        expect_code(dtype, smaller[i], 0);
    expect_code(dtype, NAN, dtype == INT8 ? 0 : 0x7f);
}
END_TEST

/* Floats of any bits, and where they are dense. */
START_TEST(everywhere)
{
    enum { MANY = 1 << 16 };
    static float in[MANY];
    static uint8_t out[MANY];
    const wf_dtype dtype = formats[_i];
    uint64_t state = 1;
    for (int i = 0; i < MANY; i++) {
        const uint32_t bits = (uint32_t)random_bits(&state);
        memcpy(&in[i], &bits, sizeof bits);
        if (i % 2)
            in[i] = (float)ldexp((double)(int32_t)bits, -13 - i % 48);
    }
    narrow(dtype, MANY, in, out);
    for (int i = 0; i < MANY; i++)
        if (out[i] != quantized_code(dtype, in[i]))
            ck_abort_msg("%s: %.9g became %02x", dtype_name(dtype), in[i], out[i]);
}
END_TEST

/* ---- the forward passes ---- */

static const Op ops[] = { LAYERNORM_FORWARD, RMSNORM_FORWARD };
enum { OPS = 2, FLOAT_SUMS = 3 };

/* The d-th dtypes, those with a float sum last. */
static void set_sum_dtypes(Case *c, int d)
{
    static const int narrow_ones[] = { 1, 2, 4, 5 };
    set_dtypes(c, d < DTYPES ? d : narrow_ones[(d - DTYPES) % 4]);
    c->flags = d < DTYPES ? 0 : WF_SUM_F32;
}

/* Parts of a sum, by the bits of a number. */
static void set_sum(Case *c, int parts)
{
    static const uint32_t bits[] = { ADD_RESIDUAL, ADD_ROW_SCALE, ADD_COL_SCALE };
    for (int i = 0; i < 3; i++)
        c->add |= parts >> i & 1 ? bits[i] : 0;
    c->drop = parts >> 3 & 1 ? 0.25 : 0;
    if (case_adds(c))
        c->add |= ADD_SUM; /* it is needed */
}

/* Every format in every dtype, over lengths, strides, scales and what there is besides in turn. */
START_TEST(options)
{
    static const int64_t lengths[] = { 1, 3, 33, 64, 257, 1500, 31, 1025, 2 };
    static const double scales[] = { 0, 0.125, 3, 100, -2, 1e-3, 1e6 };
    static const double maxima[] = { 0, 1e-3, 1e3, 2.5, -1 };
    static const uint32_t nulls[] = { 0, NULL_AMAX, NULL_GAMMA, NULL_BETA | NULL_MEAN, NULL_GAMMA | NULL_BETA | NULL_RSTD };
    for (int op = 0, turn = 0; op < OPS; op++)
        for (int d = 0; d < DTYPES + FLOAT_SUMS; d++, turn += 5)
            for (int k = 0; k < (quick() ? 4 : 16); k++, turn++) {
                Case c = case_default(ops[op]);
                set_sum_dtypes(&c, d);
                c.quantize = 1 + _i;
                c.rows = 1 + turn % 7;
                c.cols = lengths[turn % COUNT(lengths)];
                c.y_scale = scales[turn / 2 % COUNT(scales)];
                c.amax = maxima[turn / 3 % COUNT(maxima)];
                c.null = nulls[turn % COUNT(nulls)];
                c.misalign = turn / 2 % 3;
                c.seed = (uint64_t)turn + 1;
                c.weight_offset = turn % 2;
                c.x_stride = turn & 1 ? c.cols + 3 : 0;
                c.y_stride = turn & 2 ? c.cols + 1 + turn % 8 : 0;
                set_sum(&c, turn % 3 ? 0 : turn / 3 % 16);
                c.inplace = turn / 5 % 2 ? 2 : 0;
                check_case(&c);
            }
}
END_TEST

/* Rows in batches, longer than a tile, cut into segments; none, and none of anything. */
START_TEST(shapes)
{
    static const int64_t shapes[][2] = { { 2, 140001 }, { 300, 40 }, { 3, 70000 }, { 40, 1 }, { 0, 5 }, { 3, 0 },
                                         { 7, 20000 }, { 200, 2049 }, { 3, 262144 } };
    for (int op = 0; op < OPS; op++)
        for (int d = 0; d < DTYPES; d++) {
            Case c = case_default(ops[op]);
            set_dtypes(&c, d);
            c.quantize = 1 + (d + op + _i) % FORMATS;
            c.rows = shapes[_i][0], c.cols = shapes[_i][1];
            if (quick() && tested_backend() == WF_CUDA && c.cols > 2000)
                c.rows = 2;
            c.seed = 5 + (uint64_t)d;
            c.y_scale = 20;
            c.amax = 1;
            set_sum(&c, d % 3 == 2 ? 9 : 0);
            if (c.rows * c.cols < 60000 || d / FORMATS == (op + _i) % 2) /* each kind of each operation */
                check_case(&c);
        }
}
END_TEST

/* Data out of range, NaN and Inf. */
START_TEST(data)
{
    for (int op = 0; op < OPS; op++)
        for (int kind = 1; kind <= FORMATS; kind++)
            for (int d = kind % 2; d < DTYPES; d += 2) {
                Case c = case_default(ops[op]);
                set_dtypes(&c, d);
                c.quantize = kind;
                c.rows = 4, c.cols = 96;
                c.data = (Data)_i;
                set_sum(&c, d % 3 == 1 ? 2 : 0);
                check_case(&c);
            }
}
END_TEST

/* The maximum that runs: not below what it was, NaN if that or a value was, whatever its sign; and untouched by nothing. */
START_TEST(running_amax)
{
    static const double before[] = { 0, -0.0, -7, 1e-30, 1e30, INFINITY, NAN, -NAN };
    for (int i = 0; i < COUNT(before); i++)
        for (int rows = 0; rows < 6; rows += 5)
            for (Data data_ = NORMAL; data_ <= NANROW; data_ += NANROW) {
                Case c = case_default(ops[i % OPS]);
                c.quantize = WF_E4M3;
                c.rows = rows, c.cols = 70;
                c.amax = before[i];
                c.data = data_;
                check_case(&c);
            }
}
END_TEST

/* ---- bits ---- */

static const int64_t bits_shapes[][2] = { { 7, 33 }, { 40, 1024 }, { 3, 12345 }, { 2, 140001 }, { 4099, 5 } };

static Case bits_case(int shape, int kind)
{
    Case c = case_default(ops[shape % OPS]);
    set_dtypes(&c, shape + kind);
    c.backend = tested_backend();
    c.quantize = kind;
    c.rows = bits_shapes[shape][0], c.cols = bits_shapes[shape][1];
    c.y_scale = 7;
    return c;
}

/* By the library's choice, or on CUDA by each variant that takes the case. */
static void check_bits(const Case *c)
{
    Problem *p = problem_new(c);
    Raw reference[OUTPUT_COUNT], again[OUTPUT_COUNT];
    if (run_named(c, p, reference)) {
        for (int how = 0; how < 7; how++) {
            Case other = *c;
            other.threads = how == 0 ? 1 : how == 1 ? 3 : 0;
            other.pool = how == 2 ? 3 : 0;
            other.misalign = how == 3 ? 1 : how == 4 ? 5 : 0;
            other.x_stride = how == 5 ? c->cols + 3 : how == 6 ? c->cols + 8 : 0;
            other.y_stride = how == 5 ? c->cols + 1 : how == 6 ? c->cols + 8 : 0;
            other.fpmode = how == 1 ? MODE_UP : how == 2 ? MODE_FLUSH : MODE_NEAREST;
            ck_assert(run_named(&other, p, again));
            check_none(raw_differs(&other, reference, again, "otherwise"));
            raw_free(again);
        }
        check_alone(c);
    }
    raw_free(reference);
    problem_free(p);
}

START_TEST(bits)
{
    for (int kind = 1; kind <= FORMATS; kind++) {
        Case c = bits_case(_i, kind);
        const char *variant;
        if (!in_build(&c) || (quick() && c.backend == WF_CUDA && kind != 1 + _i % FORMATS))
            continue;
        if (c.backend == WF_CPU)
            check_bits(&c);
        else
            for (int i = 0; (variant = wf_variant(op_name(c.op), WF_CUDA, i)); i++) {
                strcpy(c.variant, variant);
                check_bits(&c);
            }
    }
}
END_TEST

/* y is what the plain pass stores, of the arithmetic type, times the scale, rounded once more, to the last bit; so are the row's
 * scale and amax. */
static void check_of_plain(const Case *c)
{
    const wf_dtype format = formats[c->quantize - 1];
    Case plain = *c;
    Problem *p = problem_new(c);
    Raw bytes[OUTPUT_COUNT], reals[OUTPUT_COUNT];
    plain.quantize = 0;
    if (run_named(c, p, bytes)) {
        ck_assert(run_named(&plain, p, reals));
        double factor = c->y_scale;
        float a = 0, of_all = 0;
        for (int64_t i = 0; i < p->count; i++) {
            const int64_t row = i / c->cols;
            const double y = dtype_load(c->x, reals[OUT_Y].bytes, i);
            if (i % c->cols == 0) {
                a = 0;
                for (int64_t k = 0; k < c->cols; k++)
                    a = fmaxf(a, fabsf((float)dtype_load(c->x, reals[OUT_Y].bytes, i + k)));
                of_all = fmaxf(of_all, a);
            }
            if (c->quantize == WF_INT8 && i % c->cols == 0) {
                ck_assert(((float *)bytes[OUT_ROW_SCALE].bytes)[row] == a / 127);
                factor = c->x == WF_F32 ? 127 / a : 127 / (double)a;
            }
            const double product = c->x == WF_F32 ? (float)y * (float)factor : y * factor;
            if (quantized_code(format, product) != bytes[OUT_Y].bytes[i])
                ck_abort_msg("y[%lld] = %.17g became %02x\n  --case \"%s\"", (long long)i, y, bytes[OUT_Y].bytes[i],
                             case_print(c, (char[CASE_SIZE]){ 0 }));
        }
        ck_assert(c->quantize == WF_INT8 || *(float *)bytes[OUT_AMAX].bytes == of_all);
        raw_free(reals);
    }
    raw_free(bytes);
    problem_free(p);
}

START_TEST(of_plain_y)
{
    const char *variant;
    for (int kind = 1; kind <= FORMATS; kind++)
        for (int d = 0; d < DTYPES; d += 3) {
            Case c = bits_case(_i, kind);
            set_dtypes(&c, d);
            if (!in_build(&c) || stat_dtype(c.x) != c.x || (quick() && c.backend == WF_CUDA && kind != 1 + (_i + d) % FORMATS))
                continue;
            c.null = _i / 2 % 2 ? NULL_GAMMA : 0; /* of either norm */
            c.data = OFFSET; /* so that mean_lo counts */
            if (c.backend == WF_CPU)
                check_of_plain(&c);
            else
                for (int i = 0; (variant = wf_variant(op_name(c.op), WF_CUDA, i)); i++) {
                    strcpy(c.variant, variant);
                    check_of_plain(&c);
                }
        }
}
END_TEST

/* ---- calls of LayerNorm as they are: rows of one format, in a workspace of the same bytes ---- */

typedef struct Call {
    wf_layernorm what;
    const void *x, *beta;
    int fill; /* of the workspace */
    uint8_t *y;
    float *row_scale;
} Call;

static void call_layernorm(const Call *c)
{
    const bool cuda = tested_backend() == WF_CUDA;
    const size_t of_x = dtype_size(c->what.x_dtype), rows = (size_t)c->what.rows, cols = (size_t)c->what.cols;
    const size_t workspace_size = wf_layernorm_forward_workspace(&c->what, tested_backend());
    void *workspace = memset(malloc(workspace_size + 1), c->fill, workspace_size + 1);
    const struct { const void *host; size_t size; } buffers[] = {
        { c->x, rows * cols * of_x }, { c->beta, c->beta ? cols * of_x : 0 }, { c->y, rows * cols },
        { c->row_scale, rows * sizeof(float) }, { workspace, workspace_size } };
    void *at[COUNT(buffers)];
    for (int i = 0; i < COUNT(buffers); i++)
        at[i] = cuda && buffers[i].host ? device_new(buffers[i].host, buffers[i].size) : (void *)(uintptr_t)buffers[i].host;
    const wf_layernorm_forward_args with = { .size = sizeof with, .x = at[0], .beta = at[1], .y = at[2], .y_row_scale = at[3] };
    const wf_exec where = { .size = sizeof where, .backend = tested_backend(), .workspace = at[4],
                            .workspace_size = workspace_size };
    ck_assert_msg(wf_layernorm_forward(&c->what, &with, &where) == WF_OK, "%s", wf_error_detail());
    for (int i = 0; cuda && i < COUNT(buffers); i++)
        if (at[i])
            ck_assert(i == 2 || i == 3 ? device_take(at[i], (void *)(uintptr_t)buffers[i].host, buffers[i].size)
                                       : device_drop(at[i], buffers[i].host, buffers[i].size));
    free(workspace);
}

/* y of a constant row is beta. Doubles that lie beside the middle of two numbers, too near for a float, go to the nearer. */
START_TEST(doubles)
{
    const wf_dtype format = formats[_i];
    const double apart = format == E4M3 ? 2 : format == E5M2 ? 4 : 1, middle = 16 + apart / 2, next = middle + apart;
    const double x[8] = { 1, 1, 1, 1, 1, 1, 1, 1 };
    const double beta[8] = { 127, middle, nextafter(middle, 0), nextafter(middle, 99),
                             next, nextafter(next, 0), nextafter(next, 99), -nextafter(middle, 99) };
    uint8_t y[8];
    float row_scale;
    if (tested_backend() == WF_CUDA && !in_build(&(Case){ .op = LAYERNORM_FORWARD, .x = WF_F64 }))
        return;
    call_layernorm(&(Call){ { .size = sizeof(wf_layernorm), .x_dtype = WF_F64, .w_dtype = WF_F64, .rows = 1, .cols = 8,
                              .quantization = (wf_quantization)(1 + _i) }, x, beta, 0, y, &row_scale });
    for (int i = 0; i < 8; i++)
        ck_assert_int_eq(y[i], quantized_code(format, beta[i]));
}
END_TEST

/* What was in the workspace before does not matter, where rows are in segments. */
START_TEST(workspace)
{
    enum { ROW = 200001 };
    float *x = malloc(sizeof(float[2 * ROW])), row_scale[2][2];
    uint8_t *y[2] = { malloc(2 * ROW), malloc(2 * ROW) };
    for (int i = 0; i < 2 * ROW; i++)
        x[i] = (float)(i % 251 - 125);
    for (int k = 0; k < 2; k++)
        call_layernorm(&(Call){ { .size = sizeof(wf_layernorm), .rows = 2, .cols = ROW, .quantization = WF_INT8 }, x, NULL,
                                k ? 0x7e : 0, y[k], row_scale[k] });
    ck_assert(!memcmp(row_scale[0], row_scale[1], sizeof row_scale[0]) && !memcmp(y[0], y[1], 2 * ROW));
    free(x), free(y[0]), free(y[1]);
}
END_TEST

/* What another kind has is not looked at. */
START_TEST(of_other_kinds)
{
    const wf_quantization kind = (wf_quantization)_i; /* none, too */
    const bool scaled = kind == WF_E4M3 || kind == WF_E5M2;
    const float x[8] = { 3, -4, 1, 2, 0, 1, -1, 2 }, scale = 2;
    float y[8], amax = 0, row_scale[2] = { 7, 7 };
    float *const nowhere = (float *)8;
    const wf_layernorm what = { .size = sizeof what, .rows = 2, .cols = 4, .quantization = kind };
    const wf_layernorm_forward_args with = { .size = sizeof with, .x = x, .y = y,
                                             .y_scale = scaled ? &scale : nowhere, .y_amax = scaled ? &amax : nowhere,
                                             .y_row_scale = kind == WF_INT8 ? row_scale : nowhere };
    const wf_exec where = { .size = sizeof where };
    ck_assert_msg(wf_layernorm_forward(&what, &with, &where) == WF_OK, "%s", wf_error_detail());
    ck_assert((amax > 0) == scaled && (row_scale[1] < 7) == (kind == WF_INT8));
}
END_TEST

Suite *quantized_suite(void)
{
    Suite *s = suite_create("quantized");
    TCase *t = tcase_create("quantized");
    tcase_set_timeout(t, 300);
    tcase_add_loop_test(t, every_code, 0, FORMATS);
    tcase_add_loop_test(t, beyond, 0, FORMATS);
    tcase_add_loop_test(t, everywhere, 0, FORMATS);
    tcase_add_loop_test(t, options, 0, FORMATS);
    tcase_add_loop_test(t, shapes, 0, 9);
    tcase_add_loop_test(t, data, 0, DATA_COUNT);
    tcase_add_test(t, running_amax);
    tcase_add_loop_test(t, bits, 0, COUNT(bits_shapes));
    tcase_add_loop_test(t, of_plain_y, 0, COUNT(bits_shapes) - 1);
    tcase_add_loop_test(t, doubles, 0, FORMATS);
    tcase_add_test(t, workspace);
    tcase_add_loop_test(t, of_other_kinds, 0, FORMATS + 1);
    suite_add_tcase(s, t);
    return s;
}
