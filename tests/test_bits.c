/* What must hold to the last bit: exact sums, constant rows, powers of two, a row alone and in a batch, and the same result
 * whatever the threads, the pool, the variant, the alignment, the strides, the aliasing and the caller's rounding mode. */
#include <math.h>
#include <quadmath.h>
#include <stdlib.h>
#include <string.h>

#include "sweep.h"

Suite *bits_suite(void);

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

/* Shapes for rows and for channels: small, cut unevenly, wide, enough for every thread, narrow, longer than a cache. */
static const int64_t row_shapes[][2] = { { 7, 33 }, { 65, 129 }, { 3, 12345 }, { 40, 1024 }, { 4099, 5 }, { 1, 140001 } };
static const int64_t channel_shapes[][4] = { { 3, 6, 5, 3 }, { 9, 35, 49, 7 }, { 2, 3, 5329, 3 }, { 16, 64, 49, 32 },
                                             { 500, 12, 2, 1 }, { 1, 2, 70001, 1 } };
enum { SHAPES = 6, LARGE = 3 /* shapes from here on: the layouts in turn */ };

static void set_shape(Case *c, int i)
{
    const int64_t *s = channel_shapes[i];
    c->rows = row_shapes[i][0];
    c->cols = row_shapes[i][1];
    c->n = s[0], c->c = s[1], c->hw = s[2], c->groups = s[3];
}

/* On CUDA a variant's bits are its own: everything holds for each of them. Cases are run by the variant that they name. */
static void each_variant(const Case *c, void (*body)(const Case *))
{
    Case named = *c;
    named.backend = tested_backend();
    const char *variant;
    if (!in_build(c))
        return;
    if (named.backend == WF_CPU)
        body(&named);
    else
        for (int i = 0; (variant = wf_variant(op_name(c->op), WF_CUDA, i)); i++) {
            strcpy(named.variant, variant);
            body(&named);
        }
}

/* Calls body with every operation of every norm on shape i, dtypes and layout in turn. */
static void each_operation(int shape, void (*body)(const Case *))
{
    Case c;
    for (Norm norm = LAYERNORM; norm <= BATCHNORM; norm++)
        for (int i = 0; operation(norm, i, &c); i++)
            for (int layout = 0; layout < (norm <= RMSNORM || shape >= LARGE ? 1 : 2); layout++) {
                set_shape(&c, shape);
                set_dtypes(&c, shape + (int)norm + 2 * i + layout);
                c.layout = (wf_layout)((shape + (int)norm + i + layout) % 2);
                c.seed = 5 + (uint64_t)shape;
                c.running = norm >= INSTANCENORM ? RUNNING_SEPARATE : RUNNING_NONE;
                if (legal(&c))
                    each_variant(&c, body);
            }
}

/* ---- one call, however it is made ---- */

/* A case, its numbers and its outputs, for others to be compared with. */
typedef struct Reference {
    Case     c;
    Problem *p;
    Raw      out[OUTPUT_COUNT];
} Reference;

/* False: there is none, for the variant does not take the case. */
static bool reference_new(Reference *r, const Case *c)
{
    r->c = *c;
    r->p = problem_new(c);
    if (run_named(c, r->p, r->out))
        return true;
    problem_free(r->p);
    return false;
}

static void reference_free(Reference *r)
{
    raw_free(r->out);
    problem_free(r->p);
}

/* Another way of calling the same gives the same bits; true unless the variant that it names does not take the case. */
static bool check_same(const Reference *r, const Case *other, const char *what)
{
    Raw out[OUTPUT_COUNT];
    const bool accepted = run_named(other, r->p, out);
    if (accepted)
        check_none(raw_differs(other, r->out, out, what));
    raw_free(out);
    return accepted;
}

static void check_threads(const Case *c)
{
    static const int threads[] = { 1, 2, 3, 7 };
    Reference r;
    if (!reference_new(&r, c))
        return;
    for (int i = 0; i < COUNT(threads); i++) {
        Case other = *c;
        other.threads = threads[i];
        ck_assert(check_same(&r, &other, "without a limit of threads"));
        other.pool = threads[i];
        ck_assert(check_same(&r, &other, "without a pool"));
    }
    ck_assert(check_same(&r, c, "in the run before"));
    reference_free(&r);
}

static void check_memory(const Case *c)
{
    Reference r;
    if (!reference_new(&r, c))
        return;
    for (int misalign = 1; misalign <= 7; misalign += 3) {
        Case other = *c;
        other.misalign = misalign;
        ck_assert(check_same(&r, &other, "when aligned"));
    }
    Case other = *c;
    other.inplace = 1;
    other.running = c->running ? RUNNING_IN_PLACE : RUNNING_NONE;
    ck_assert(check_same(&r, &other, "when not in place"));
    if (row_wise(op_norm(c->op))) {
        other.x_stride = other.y_stride = other.dx_stride = other.dy_stride = c->cols + 3;
        ck_assert(check_same(&r, &other, "when contiguous"));
        other = *c;
        other.x_stride = c->cols + 1;
        other.y_stride = c->cols + 8;
        other.dx_stride = 2 * c->cols;
        ck_assert(check_same(&r, &other, "when contiguous"));
    }
    reference_free(&r);
}

static void check_fpmode(const Case *c)
{
    Case subnormal = *c;
    subnormal.data = SUBNORMAL;
    subnormal.eps = 0;
    for (int i = 0; i < 2; i++) {
        Reference r;
        if (!reference_new(&r, i ? &subnormal : c))
            continue;
        for (FpMode mode = MODE_UP; mode <= MODE_FLUSH; mode++) {
            Case other = r.c;
            other.fpmode = mode;
            ck_assert(check_same(&r, &other, "when the caller rounds to nearest"));
            other.pool = 3; /* its threads have their own modes */
            if (mode == MODE_UP || mode == MODE_FLUSH)
                ck_assert(check_same(&r, &other, "when the caller rounds to nearest"));
        }
        reference_free(&r);
    }
}

static void check_variants(const Case *c)
{
    const char *variant;
    int accepted = 0;
    Reference r;
    if (!reference_new(&r, c))
        return;
    for (int i = 0; (variant = wf_variant(op_name(c->op), WF_CPU, i)); i++) {
        Case other = *c;
        strcpy(other.variant, variant);
        accepted += check_same(&r, &other, "by the library's choice of variant");
    }
    ck_assert_int_ge(accepted, 1);
    reference_free(&r);
}

START_TEST(threads) { each_operation(_i, check_threads); }
END_TEST
START_TEST(memory) { each_operation(_i, check_memory); }
END_TEST
START_TEST(fpmode) { each_operation(_i, check_fpmode); }
END_TEST
START_TEST(variants) { each_operation(_i, check_variants); }
END_TEST

/* ---- a part alone has the bits it has in the whole ---- */

START_TEST(alone) { each_operation(_i, check_alone); }
END_TEST

/* ---- exact values ---- */

static Quad beta_of(const Problem *p, int64_t i) { return p->beta ? p->beta[p->param[i]] : 0; }

static void check_exactly(const Case *c, const Raw *raw, int64_t i, Quad value)
{
    char line[CASE_SIZE];
    const double got = dtype_load(raw->dtype, raw->bytes, i), expected = (double)round_to(raw->dtype, value);
    if (got != expected)
        ck_abort_msg("element %lld is %.17g, not %.17g\n  --case \"%s\"", (long long)i, got, expected,
                     case_print(c, line));
}

/* A constant slot: y is beta, to the bit; mean + mean_lo is the constant. */
static void check_constant(const Case *base)
{
    if (op_norm(base->op) == RMSNORM || op_is_backward(base->op) || op_is_infer(base->op))
        return;
    for (int how = 0; how < 6; how++) {
        Case c = *base;
        c.data = how & 1 ? ONES : CONSTANT;
        c.eps = (double[]){ 1e-5, 0, 1e-30 }[how / 2];
        c.null = how == 4 ? NULL_GAMMA | NULL_BETA : 0;
        Reference r;
        if (!reference_new(&r, &c))
            return;
        for (int64_t i = 0; i < r.p->count; i++) {
            check_exactly(&c, &r.out[OUT_Y], i, beta_of(r.p, i));
            check_exactly(&c, &r.out[OUT_MEAN], r.p->slot[i], r.p->x[i]);
            check_exactly(&c, &r.out[OUT_MEAN_PAIR], r.p->slot[i], 0);
        }
        for (int64_t s = 0; s < r.p->slots && c.eps == 0; s++)
            check_exactly(&c, &r.out[OUT_RSTD], s, 0);
        reference_free(&r);
    }
}

/* Pairs x, 2m - x of few bits: the mean is m and nothing is left over. With x = m +- 1/2 throughout and eps = 0 the
 * variance is 1/4 and rstd 2, to the bit. */
static void check_exact_sums(const Case *base)
{
    if (op_norm(base->op) == RMSNORM || op_is_backward(base->op) || op_is_infer(base->op))
        return;
    Case c = *base;
    c.data = EXACTSUM;
    c.eps = 0;
    Raw out[OUTPUT_COUNT];
    Problem *p = problem_new(&c);
    Quad *mean = calloc((size_t)p->slots, sizeof *mean);
    for (int64_t i = 0; i < p->count; i++)
        mean[p->slot[i]] += p->x[i];
    for (int how = 0; how < 2 && run_named(&c, p, out); how++) {
        for (int64_t s = 0; s < p->slots; s++) {
            check_exactly(&c, &out[OUT_MEAN], s, mean[s] / p->per_slot);
            check_exactly(&c, &out[OUT_MEAN_PAIR], s, 0);
            if (how && p->per_slot % 2 == 0)
                check_exactly(&c, &out[OUT_RSTD], s, 2);
        }
        raw_free(out);
        int64_t *seen = calloc((size_t)p->slots, sizeof *seen);
        for (int64_t i = 0; i < p->count; i++) {
            const int64_t s = p->slot[i], k = seen[s]++;
            const Quad m = mean[s] / p->per_slot;
            p->x[i] = k + 1 == p->per_slot && k % 2 == 0 ? m : k % 2 ? m - 0.5Q : m + 0.5Q;
        }
        free(seen);
    }
    free(mean);
    problem_free(p);
}

/* With eps = 0, x * 2^k gives the same y; mean moves by 2^k, rstd by 2^-k. The outer powers take the squares out of the
 * range of the arithmetic. */
static void check_scaling(const Case *base, Data data)
{
    if (op_is_backward(base->op) || op_is_infer(base->op))
        return;
    const bool wide = base->x == WF_F64;
    const int powers[] = { wide ? -500 : -60, -40, 1, 40, wide ? 498 : 58 };
    const int count = data == RATIO6 ? COUNT(powers) - 1 : COUNT(powers); /* x is 2^20 there */
    Case c = *base;
    c.data = data;
    c.eps = 0;
    c.running = RUNNING_NONE;
    if (c.x == WF_F16)
        c.x = WF_BF16, c.w = WF_F32; /* f16 has no room for powers of two */
    Raw one[OUTPUT_COUNT], other[OUTPUT_COUNT];
    Problem *p = problem_new(&c);
    const bool taken = run_named(&c, p, one);
    for (int k = 0; k < count && taken; k++) {
        const Quad factor = scalbnq(1, powers[k]);
        for (int64_t i = 0; i < p->count; i++)
            p->x[i] *= factor;
        ck_assert(run_named(&c, p, other));
        for (int64_t i = 0; i < p->count; i++)
            check_exactly(&c, &other[OUT_Y], i, dtype_load(one[OUT_Y].dtype, one[OUT_Y].bytes, i));
        for (int64_t s = 0; s < p->slots; s++) {
            check_exactly(&c, &other[OUT_RSTD], s, dtype_load(one[OUT_RSTD].dtype, one[OUT_RSTD].bytes, s) / factor);
            if (one[OUT_MEAN].bytes)
                check_exactly(&c, &other[OUT_MEAN], s, dtype_load(one[OUT_MEAN].dtype, one[OUT_MEAN].bytes, s) * factor);
        }
        raw_free(other);
        for (int64_t i = 0; i < p->count; i++)
            p->x[i] /= factor;
    }
    raw_free(one);
    problem_free(p);
}

START_TEST(constant) { each_operation(_i, check_constant); }
END_TEST
START_TEST(exact_sums) { each_operation(_i, check_exact_sums); }
END_TEST
static void scaling_near(const Case *base) { check_scaling(base, NORMAL); }
static void scaling_far(const Case *base) { check_scaling(base, RATIO6); }
START_TEST(scaling) { each_operation(_i, scaling_near), each_operation(_i, scaling_far); }
END_TEST

Suite *bits_suite(void)
{
    Suite *suite = suite_create("bits");
    TCase *tcase = tcase_create("bits");
    const bool cuda = tested_backend() == WF_CUDA;
    const int all = quick() ? 2 : SHAPES, some = quick() && !cuda ? 1 : LARGE;
    tcase_set_timeout(tcase, 120);
    if (!cuda) { /* which the fields of the CPU's threads do not concern, and whose variants have bits of their own */
        tcase_add_loop_test(tcase, threads, 0, all);
        tcase_add_loop_test(tcase, variants, 0, all);
    }
    tcase_add_loop_test(tcase, memory, 0, quick() ? some : SHAPES - 1);
    tcase_add_loop_test(tcase, alone, 0, quick() ? some : SHAPES);
    tcase_add_loop_test(tcase, fpmode, 0, quick() ? 1 : LARGE);
    tcase_add_loop_test(tcase, constant, 0, quick() ? some : SHAPES);
    tcase_add_loop_test(tcase, exact_sums, 0, quick() ? some : SHAPES);
    tcase_add_loop_test(tcase, scaling, 0, some);
    suite_add_tcase(suite, tcase);
    return suite;
}
