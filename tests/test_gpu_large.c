/* Tensors of more than 2^32 elements on a GPU with the memory for them: those of a small call again and again, so that what
 * must come out is known from the small call. Every element is looked at. */
#include <check.h>

#include "device.h"
#include "sweep.h"

Suite *gpu_large_suite(void);

#ifdef WF_TEST_CUDA

#include <cuda_runtime_api.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data.h"
#include "oracle_dropout.h"

enum along { ROWS, COLS, SAMPLES, PIXELS }; /* which size is multiplied */

/* exact: rows or samples, which have the same bits alone and in a batch. Else a set is longer than in the small call. */
static const struct Large { const char *line; enum along along; bool exact; } large[] = {
    { "layernorm_forward x=bf16 w=f32 rows=37 cols=1000", ROWS, true },
    { "layernorm_backward x=bf16 w=f32 rows=37 cols=1000", ROWS, true },
    { "layernorm_forward x=bf16 w=f32 rows=131 cols=40", ROWS, true },
    { "layernorm_backward x=bf16 w=f32 rows=131 cols=40", ROWS, true },
    { "layernorm_forward x=bf16 w=f32 rows=1 cols=20000 null=gamma,beta", COLS, false },
    { "layernorm_backward x=bf16 w=f32 rows=1 cols=20000 null=gamma,dgamma,dbeta", COLS, false },
    { "rmsnorm_forward x=bf16 w=f32 rows=37 cols=1000", ROWS, true },
    { "rmsnorm_backward x=bf16 w=f32 rows=37 cols=1000", ROWS, true },
    { "groupnorm_forward x=bf16 w=f32 n=3 c=6 hw=1225 groups=2", SAMPLES, true },
    { "groupnorm_backward x=bf16 w=f32 n=3 c=6 hw=1225 groups=2", SAMPLES, true },
    { "groupnorm_forward x=bf16 w=f32 n=3 c=40 hw=49 groups=8 layout=nhwc", SAMPLES, true },
    { "groupnorm_backward x=bf16 w=f32 n=3 c=40 hw=49 groups=8 layout=nhwc", SAMPLES, true },
    { "groupnorm_forward x=bf16 w=f32 n=1 c=1 hw=20000 groups=1", PIXELS, false },
    { "instancenorm_train x=bf16 w=f32 n=3 c=7 hw=49", SAMPLES, true },
    { "instancenorm_backward x=bf16 w=f32 n=3 c=7 hw=49", SAMPLES, true },
    { "instancenorm_train x=bf16 w=f32 n=1 c=35 hw=500 layout=nhwc", PIXELS, false },
    { "batchnorm_train x=bf16 w=f32 n=3 c=35 hw=196", SAMPLES, false },
    { "batchnorm_backward x=bf16 w=f32 n=3 c=35 hw=196", SAMPLES, false },
    { "batchnorm_infer x=bf16 w=f32 n=3 c=35 hw=196", SAMPLES, true },
    { "batchnorm_train x=bf16 w=f32 n=3 c=35 hw=196 layout=nhwc", SAMPLES, false },
    { "batchnorm_backward x=bf16 w=f32 n=3 c=35 hw=196 layout=nhwc", SAMPLES, false },
    { "batchnorm_backward x=bf16 w=f32 n=3 c=64 hw=196 layout=nhwc flags=frozen", SAMPLES, false },
};
enum { LINES = sizeof large / sizeof *large };

static void must(cudaError_t error)
{
    if (error != cudaSuccess)
        ck_abort_msg("CUDA: %s", cudaGetErrorString(error));
}

static bool on_gpu(void) { return device_present() && !device_emulated() && !getenv("WELFORD_TEST_PART"); }

static int64_t *size_of(Case *c, enum along along)
{
    return along == ROWS ? &c->rows : along == COLS ? &c->cols : along == SAMPLES ? &c->n : &c->hw;
}

static bool by_rows(const Case *c) { return op_norm(c->op) == LAYERNORM || op_norm(c->op) == RMSNORM; }
static int64_t elements_of(const Case *c) { return by_rows(c) ? c->rows * c->cols : c->n * c->c * c->hw; }
static int64_t params_of(const Case *c) { return by_rows(c) ? c->cols : c->c; }

static int64_t slots_of(const Case *c)
{
    const Norm norm = op_norm(c->op);
    return by_rows(c) ? c->rows : norm == BATCHNORM ? c->c : c->n * (norm == GROUPNORM ? c->groups : c->c);
}

/* ---- buffers ---- */

static void *device_bytes(size_t size)
{
    void *p;
    return cudaMalloc(&p, size + 1) == cudaSuccess ? p : NULL;
}

/* `count` elements of `size` bytes, the first `period` of them from the host, again and again. NULL: no memory. */
static void *repeated(const void *host, int64_t period, int64_t count, size_t size)
{
    char *p = device_bytes((size_t)count * size);
    if (!p)
        return NULL;
    must(cudaMemcpy(p, host, (size_t)period * size, cudaMemcpyHostToDevice));
    for (int64_t done = period; done < count; done *= 2)
        must(cudaMemcpy(p + (size_t)done * size, p, (size_t)(done < count - done ? done : count - done) * size,
                        cudaMemcpyDeviceToDevice));
    return p;
}

/* What a call has on the device. y is x and dx is dy: so there is room for larger ones. */
typedef struct Tensors {
    Case  c;
    void *x, *dy, *gamma, *beta, *running_mean, *running_var, *mean, *rstd, *dgamma, *dbeta, *workspace;
} Tensors;

enum { MOST_SMALL = 50000 };
typedef struct Values { /* of the small call: the inputs, then what came out */
    uint16_t x[MOST_SMALL], dy[MOST_SMALL];
    float    parameter[MOST_SMALL], statistic[MOST_SMALL];
    float    mean[MOST_SMALL], rstd[MOST_SMALL], dgamma[MOST_SMALL], dbeta[MOST_SMALL];
} Values;

static void draw(Values *v)
{
    uint64_t state = 7;
    for (int i = 0; i < MOST_SMALL; i++) {
        double normal = -6;
        for (int k = 0; k < 12; k++)
            normal += (double)random_below(&state, 1 << 20) / (1 << 20);
        dtype_store(WF_BF16, v->x, i, normal);
        dtype_store(WF_BF16, v->dy, i, .5 + (double)random_below(&state, 1000) / 1000); /* its sums do not cancel */
        v->parameter[i] = .5f + (float)random_below(&state, 1000) / 1000;
        v->statistic[i] = .5f + (float)random_below(&state, 100) / 1000;
    }
}

static void release(Tensors *t)
{
    void *all[] = { t->x, t->dy, t->gamma, t->beta, t->running_mean, t->running_var, t->mean, t->rstd, t->dgamma, t->dbeta,
                    t->workspace };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        must(cudaFree(all[i]));
}

/* False: no memory for it. */
static bool prepare(Tensors *t, const Case *c, const Case *small, const Values *v)
{
    const int64_t count = elements_of(c), period = elements_of(small), params = params_of(c), slots = slots_of(c);
    const int64_t stats = slots_of(small);
    const bool backward = op_is_backward(c->op), infer = op_is_infer(c->op), centered = op_norm(c->op) != RMSNORM;
    *t = (Tensors){ .c = *c };
    t->x = repeated(v->x, period, count, 2);
    t->dy = backward ? repeated(v->dy, period, count, 2) : NULL;
    if (!(c->null & NULL_GAMMA))
        t->gamma = repeated(v->parameter, params, params, 4);
    if (!(c->null & NULL_BETA) && centered && !backward)
        t->beta = repeated(v->parameter + 1, params, params, 4);
    if (infer)
        t->running_mean = repeated(v->statistic, params, params, 4), t->running_var = repeated(v->parameter, params, params, 4);
    t->mean = centered && !infer ? repeated(v->statistic, stats, slots, 4) : NULL;
    t->rstd = repeated(v->parameter + 2, infer ? params : stats, infer ? params : slots, 4);
    if (backward && !(c->null & NULL_DGAMMA))
        t->dgamma = device_bytes((size_t)params * 4);
    if (backward && !(c->null & NULL_DBETA) && centered)
        t->dbeta = device_bytes((size_t)params * 4);
    t->workspace = device_bytes(run_workspace(c));
    (void)cudaGetLastError();
    return t->x && (t->dy || !backward) && t->workspace;
}

static wf_status run(const Tensors *t)
{
    const bool backward = op_is_backward(t->c.op);
    const Buffers b = { .x = t->x, .dy = t->dy, .gamma = t->gamma, .beta = t->beta, .running_mean_in = t->running_mean,
                        .running_var_in = t->running_var, .y = backward ? NULL : t->x, .mean = t->mean, .rstd = t->rstd,
                        .dx = t->dy, .dgamma = t->dgamma, .dbeta = t->dbeta };
    const wf_exec where = { .size = sizeof where, .backend = WF_CUDA, .workspace = t->workspace,
                            .workspace_size = run_workspace(&t->c) };
    const wf_status status = run_call(&t->c, &b, &where);
    must(cudaDeviceSynchronize());
    return status;
}

/* ---- comparing ---- */

static void take(const void *device, void *host, size_t size)
{
    if (device)
        must(cudaMemcpy(host, device, size, cudaMemcpyDeviceToHost));
}

static float bf16(uint16_t bits)
{
    const uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* Every element of y against the small call's, of which `period` are there. */
static void compare_all(const char *line, const uint16_t *device, int64_t count, const uint16_t *wanted, int64_t period,
                        bool exact)
{
    const int64_t step = ((64 << 20) / period + 1) * period;
    uint16_t *host;
    must(cudaMallocHost((void **)&host, (size_t)step * sizeof *host));
    for (int64_t begin = 0; begin < count; begin += step) {
        const int64_t n = count - begin < step ? count - begin : step;
        take(device + begin, host, (size_t)n * sizeof *host);
        for (int64_t at = 0; at < n; at += period) {
            if (!memcmp(host + at, wanted, (size_t)period * sizeof *host))
                continue;
            for (int64_t i = 0; i < period; i++) {
                const float a = bf16(host[at + i]), b = bf16(wanted[i]);
                if (exact ? host[at + i] != wanted[i] : !(fabsf(a - b) <= fabsf(b) / 128 + 2e-5f))
                    ck_abort_msg("%s, repeated: element %lld is %g, in the small call %g", line, (long long)(begin + at + i),
                                 (double)a, (double)b);
            }
        }
    }
    must(cudaFreeHost(host));
}

static void compare_stats(const char *line, const char *name, const void *device, int64_t count, const float *wanted,
                          int64_t period, bool exact)
{
    float *host = malloc((size_t)count * sizeof *host);
    take(device, host, (size_t)count * sizeof *host);
    for (int64_t i = 0; i < count && device; i++) {
        const float a = host[i], b = wanted[i % period];
        if (exact ? a != b : !(fabsf(a - b) <= 1e-6f + 1e-5f * fabsf(b)))
            ck_abort_msg("%s, repeated: %s[%lld] = %.9g, in the small call %.9g", line, name, (long long)i, (double)a, (double)b);
    }
    free(host);
}

/* Sums of as many times as many terms, each at most 8 in magnitude: within the bars of both. */
static void compare_sums(const char *line, const char *name, const void *device, int64_t params, const float *wanted,
                         int64_t terms, int64_t times)
{
    static float host[MOST_SMALL];
    take(device, host, (size_t)params * sizeof *host);
    for (int64_t i = 0; i < params && device; i++) {
        const double a = host[i], b = (double)wanted[i] * (double)times;
        if (!(fabs(a - b) <= 40 * 0x1p-24 * 8 * (double)(terms * times)))
            ck_abort_msg("%s, repeated: %s[%lld] = %.9g, expected %.9g", line, name, (long long)i, a, b);
    }
}

START_TEST(repeated_beyond_32_bits)
{
    static Values v;
    const char *line = large[_i].line;
    const bool exact = large[_i].exact;
    Case small = case_of(line), big;
    if (!on_gpu())
        return;
    small.backend = WF_CUDA;
    big = small;
    const int64_t period = elements_of(&small), times = (INT64_C(1) << 32) / period + 3, count = times * period;
    *size_of(&big, large[_i].along) *= times;
    ck_assert_int_le(period, MOST_SMALL);
    draw(&v);

    Tensors t;
    ck_assert(prepare(&t, &small, &small, &v));
    const wf_status status = run(&t);
    const bool backward = op_is_backward(small.op);
    static uint16_t wanted[MOST_SMALL];
    take(backward ? t.dy : t.x, wanted, (size_t)period * 2);
    take(t.mean, v.mean, (size_t)slots_of(&small) * 4);
    take(t.rstd, v.rstd, (size_t)slots_of(&small) * 4);
    take(t.dgamma, v.dgamma, (size_t)params_of(&small) * 4);
    take(t.dbeta, v.dbeta, (size_t)params_of(&small) * 4);
    release(&t);
    if (status == WF_UNSUPPORTED) {
        printf("SKIP %s: %s\n", line, wf_error_detail());
        return;
    }
    ck_assert_msg(status == WF_OK, "%s: %s", line, wf_error_detail());

    if (!prepare(&t, &big, &small, &v)) {
        printf("SKIP %s: no memory for %lld elements\n", line, (long long)count);
        release(&t);
        return;
    }
    ck_assert_msg(run(&t) == WF_OK, "%s: %s", line, wf_error_detail());
    compare_all(line, backward ? t.dy : t.x, count, wanted, period, exact);
    if (!backward && !op_is_infer(small.op)) {
        compare_stats(line, "mean", t.mean, slots_of(&big), v.mean, slots_of(&small), exact);
        compare_stats(line, "rstd", t.rstd, slots_of(&big), v.rstd, slots_of(&small), exact);
    }
    const int64_t terms = period / params_of(&small);
    compare_sums(line, "dgamma", t.dgamma, params_of(&small), v.dgamma, terms, times);
    compare_sums(line, "dbeta", t.dbeta, params_of(&small), v.dbeta, terms, times);
    release(&t);
}
END_TEST

/* ---- dropout ---- */

/* Ones, in place, with the mask; looked at in windows around 2^31 and 2^32 and at both ends. */
START_TEST(dropout_beyond_32_bits)
{
    enum { WINDOW = 1 << 18 };
    static const struct { int64_t c, hw; wf_layout layout; uint32_t flags; } shapes[] = {
        { 1, 1, WF_NCHW, 0 }, { 35, 3, WF_NCHW, WF_FEATURES }, { 3, 35, WF_NHWC, WF_FEATURES } };
    static uint16_t got[WINDOW], ones[WINDOW];
    if (!on_gpu())
        return;
    const int64_t each = shapes[_i].c * shapes[_i].hw, count = ((INT64_C(1) << 32) / each + WINDOW) * each;
    const wf_dropout what = { .size = sizeof what, .x_dtype = WF_BF16, .layout = shapes[_i].layout, .flags = shapes[_i].flags,
                              .n = count / each, .c = shapes[_i].c, .hw = shapes[_i].hw, .p = .5 };
    const int64_t units = oracle_dropout_units(&what);
    for (int i = 0; i < WINDOW; i++)
        ones[i] = oracle_narrow(WF_BF16, 1);
    uint16_t *x = repeated(ones, WINDOW, count, 2);
    uint8_t *mask = device_bytes((size_t)(units + 7) / 8), bits[WINDOW / 8];
    if (!x || !mask) {
        (void)cudaGetLastError();
        printf("SKIP dropout: no memory for %lld elements\n", (long long)count);
    } else {
        const wf_dropout_args with = { .size = sizeof with, .x = x, .y = x, .mask = mask, .seed = 99, .offset = 3 };
        const wf_exec where = { .size = sizeof where, .backend = WF_CUDA };
        ck_assert_msg(wf_dropout_forward(&what, &with, &where) == WF_OK, "%s", wf_error_detail());
        const int64_t begins[] = { 0, (INT64_C(1) << 31) - WINDOW / 2, (INT64_C(1) << 32) - WINDOW / 2, count - WINDOW };
        for (int w = 0; w < 4; w++) {
            take(x + begins[w], got, sizeof got);
            for (int64_t i = 0; i < WINDOW; i++) {
                const uint64_t u = (uint64_t)oracle_dropout_unit(&what, begins[w] + i);
                const uint16_t two = oracle_dropout_keep(.5, with.seed, with.offset, u) ? oracle_narrow(WF_BF16, 2) : 0;
                if (got[i] != two)
                    ck_abort_msg("y[%lld] = %#x", (long long)(begins[w] + i), got[i]);
            }
            const int64_t byte = begins[w] / each * shapes[_i].c / 8; /* the mask near there */
            const int64_t n = (units + 7) / 8 - byte < WINDOW / 8 ? (units + 7) / 8 - byte : WINDOW / 8;
            take(mask + byte, bits, (size_t)n);
            for (int64_t i = 0; i < n * 8 && byte * 8 + i < units; i++)
                if ((bits[i / 8] >> i % 8 & 1) != oracle_dropout_keep(.5, with.seed, with.offset, (uint64_t)(byte * 8 + i)))
                    ck_abort_msg("mask, unit %lld", (long long)(byte * 8 + i));
        }
    }
    must(cudaFree(x));
    must(cudaFree(mask));
}
END_TEST

#endif

Suite *gpu_large_suite(void)
{
    Suite *s = suite_create("gpu_large");
    TCase *t = tcase_create("gpu_large");
    tcase_set_timeout(t, 300);
#ifdef WF_TEST_CUDA
    if (tested_backend() == WF_CUDA) {
        tcase_add_loop_test(t, repeated_beyond_32_bits, 0, LINES);
        tcase_add_loop_test(t, dropout_beyond_32_bits, 0, 3);
    }
#endif
    suite_add_tcase(s, t);
    return s;
}
