/* Bad values in `what` and `where`, in every operation: the status, a text that names operation, field and value, and
 * no byte of any buffer changed. Buffers: test_bad_input_buffers.c and test_bad_input_overlap.c. */
#include <check.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "api_table.h"

Suite *bad_input_suite(void);

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

/* A call with one field set; the text must say "field = value". */
static void expect_integer(const Operation *op, const char *field, int64_t value, wf_status status)
{
    ApiCall c;
    char mentions[64];
    api_begin(&c, op, 0);
    api_set_integer(&c, field, value);
    snprintf(mentions, sizeof mentions, "%s = %" PRId64, field, value);
    api_expect(&c, status, mentions);
    ck_assert_uint_eq(status == WF_INVALID ? op->workspace(c.what, WF_CPU) : 0, 0);
    api_end(&c);
}

static void expect_double(const Operation *op, const char *field, double value, wf_status status)
{
    ApiCall c;
    char mentions[64];
    api_begin(&c, op, 0);
    api_set_double(&c, field, value);
    snprintf(mentions, sizeof mentions, "%s = %g", field, value);
    api_expect(&c, status, mentions);
    ck_assert_uint_eq(status == WF_INVALID ? op->workspace(c.what, WF_CPU) : 0, 0);
    api_end(&c);
}

START_TEST(legal_calls_are_legal)
{
    ApiCall c;
    api_begin(&c, &operations[_i], 0);
    api_expect(&c, WF_OK, NULL);
    ck_assert_msg(!api_untouched(&c), "%s wrote nothing", operations[_i].name);
    api_end(&c);
}
END_TEST

START_TEST(enumerators)
{
    static const struct {
        FieldKind kind;
        int known;
    } enums[] = {{FIELD_X_DTYPE, 4}, {FIELD_W_DTYPE, 4}, {FIELD_LAYOUT, 2}, {FIELD_DROPOUT_KIND, 2}, {FIELD_ACTIVATION, 6},
                 {FIELD_QUANTIZATION, 4}};
    const Operation *op = &operations[_i];
    for (int e = 0; e < COUNT(enums); e++)
        for (const Field *f = op->field; f < op->field + MAX_FIELDS && f->name; f++)
            if (f->kind == enums[e].kind) {
                expect_integer(op, f->name, enums[e].known, WF_INVALID);
                expect_integer(op, f->name, -1, WF_INVALID);
                expect_integer(op, f->name, INT32_MAX, WF_INVALID);
                expect_integer(op, f->name, INT32_MIN, WF_INVALID);
            }
}
END_TEST

/* Each of the 32 flags alone: legal in every direction if some direction knows it. */
START_TEST(flags)
{
    const Operation *op = &operations[_i];
    for (int bit = 0; bit < 32; bit++) {
        const uint32_t flag = UINT32_C(1) << bit;
        ApiCall c;
        char mentions[64];
        if (flag == WF_GIVEN_MASK && op->flags & flag && !api_buffer(op, "mask"))
            continue; /* that makes it the next operation */
        snprintf(mentions, sizeof mentions, "flags = 0x%" PRIx32, flag);
        api_begin(&c, op, 0);
        api_set_integer(&c, "flags", flag);
        if (op->flags & flag)
            api_fit(&c); /* WF_FROZEN and WF_FEATURES change what a buffer is */
        api_expect(&c, op->flags & flag ? WF_OK : WF_INVALID, mentions);
        api_end(&c);
    }
}
END_TEST

START_TEST(reserved)
{
    if (api_field(&operations[_i], "reserved"))
        expect_integer(&operations[_i], "reserved", 1, WF_INVALID);
    if (api_field(&operations[_i], "reserved_2"))
        expect_integer(&operations[_i], "reserved_2", 1, WF_INVALID);
}
END_TEST

/* All sizes 1, strides and groups to match. */
static void make_single(ApiCall *c)
{
    for (const Field *f = c->op->field; f < c->op->field + MAX_FIELDS && f->name; f++)
        if (f->kind == FIELD_SIZE || f->kind == FIELD_GROUPS)
            api_set_integer(c, f->name, 1);
        else if (f->kind == FIELD_STRIDE)
            api_set_integer(c, f->name, 0);
}

/* Negative sizes, and sizes of which the bytes alone, or the product with others, do not fit in 63 bits. */
START_TEST(sizes)
{
    static const int64_t negative[] = {-1, -2, INT64_MIN, INT32_MIN};
    static const int64_t huge[] = {INT64_MAX, INT64_MAX / 2, INT64_C(1) << 62, INT64_C(1) << 61};
    const Operation *op = &operations[_i];
    for (const Field *f = op->field; f < op->field + MAX_FIELDS && f->name; f++) {
        if (f->kind != FIELD_SIZE)
            continue;
        for (int i = 0; i < COUNT(negative); i++)
            expect_integer(op, f->name, negative[i], WF_INVALID);
        for (int i = 0; i < COUNT(huge); i++)
            for (int alone = 0; alone < 2; alone++) {
                ApiCall c;
                api_begin(&c, op, 0);
                make_single(&c);
                if (!alone)
                    api_set_integer(&c, api_field(op, "cols") ? "cols" : "hw", 3);
                api_set_integer(&c, f->name, huge[i]);
                api_expect(&c, WF_INVALID, f->name);
                ck_assert_uint_eq(op->workspace(c.what, WF_CPU), 0);
                api_end(&c);
            }
    }
}
END_TEST

/* Products that come round to something small. */
START_TEST(wrapping_products)
{
    static const int64_t factors[][3] = {{INT64_C(1) << 32, 1, INT64_C(1) << 32},
                                         {INT64_C(1) << 22, INT64_C(1) << 21, INT64_C(1) << 21},
                                         {INT64_C(3074457345618258603), 1, 6},
                                         {INT64_C(4294967297), 1, INT64_C(4294967297)},
                                         {INT64_C(1) << 32, INT64_C(1) << 32, 1}};
    const Operation *op = &operations[_i];
    const int is_rows = api_field(op, "rows") != NULL;
    for (int i = 0; i < COUNT(factors); i++) {
        ApiCall c;
        api_begin(&c, op, 0);
        make_single(&c);
        api_set_integer(&c, is_rows ? "rows" : "n", factors[i][0]);
        if (is_rows)
            api_set_integer(&c, "cols", factors[i][1] > 1 ? factors[i][1] << 21 : factors[i][2]);
        else
            api_set_integer(&c, "c", factors[i][1]), api_set_integer(&c, "hw", factors[i][2]);
        api_expect(&c, WF_INVALID, " = |too large");
        api_end(&c);
    }
}
END_TEST

START_TEST(strides)
{
    static const char *const names[] = {"x_stride", "y_stride", "dx_stride", "dy_stride", "residual_stride", "sum_stride"};
    const Operation *op = &operations[_i];
    const int backward = strstr(op->name, "backward") != NULL;
    if (!api_field(op, "x_stride"))
        return;
    for (int i = 0; i < COUNT(names); i++) {
        if (!backward && (i == 2 || i == 3)) /* a forward pass has no dx and dy */
            continue;
        if (backward && i == 1) /* nor a backward pass y */
            continue;
        if (!api_field(op, names[i]))
            continue;
        expect_integer(op, names[i], 4, WF_INVALID); /* cols = 5 */
        expect_integer(op, names[i], 1, WF_INVALID);
        expect_integer(op, names[i], -7, WF_INVALID);
        expect_integer(op, names[i], INT64_MIN, WF_INVALID);
        expect_integer(op, names[i], INT64_MAX, WF_INVALID); /* rows = 3: the product overflows */
        expect_integer(op, names[i], INT64_C(1) << 61, WF_INVALID);
    }
}
END_TEST

START_TEST(constants)
{
    static const struct {
        FieldKind kind;
        double value;
    } bad[] = {{FIELD_EPS, -1},         {FIELD_EPS, -1e-300},      {FIELD_EPS, INFINITY},  {FIELD_EPS, -INFINITY},
               {FIELD_EPS, NAN},        {FIELD_FRACTION, -.1},     {FIELD_FRACTION, 1.1},  {FIELD_FRACTION, -1e-300},
               {FIELD_FRACTION, NAN},   {FIELD_FRACTION, INFINITY}, {FIELD_FRACTION, -INFINITY},
               {FIELD_FINITE, INFINITY}, {FIELD_FINITE, NAN}};
    static const struct {
        FieldKind kind;
        double value;
    } good[] = {{FIELD_EPS, 0}, {FIELD_EPS, -0.}, {FIELD_EPS, 1e30}, {FIELD_FRACTION, 0}, {FIELD_FRACTION, -0.},
                {FIELD_FRACTION, 1}, {FIELD_FINITE, -1}};
    const Operation *op = &operations[_i];
    for (const Field *f = op->field; f < op->field + MAX_FIELDS && f->name; f++) {
        for (int i = 0; i < COUNT(bad); i++)
            if (bad[i].kind == f->kind)
                expect_double(op, f->name, bad[i].value, WF_INVALID);
        for (int i = 0; i < COUNT(good); i++)
            if (good[i].kind == f->kind)
                expect_double(op, f->name, good[i].value, WF_OK);
    }
    /* Just outside: %g cannot show the difference, but it must be seen. */
    ApiCall c;
    api_begin(&c, op, 0);
    for (const Field *f = op->field; f < op->field + MAX_FIELDS && f->name; f++)
        if (f->kind == FIELD_FRACTION) {
            api_set_double(&c, f->name, 1 + 0x1p-52);
            api_expect(&c, WF_INVALID, f->name);
        }
    api_end(&c);
}
END_TEST

START_TEST(groups)
{
    static const int64_t bad[] = {0, -1, -3, INT64_MIN, 4, 5, 7, 12}; /* c = 6 */
    static const int64_t good[] = {1, 2, 3, 6};
    const Operation *op = &operations[_i];
    if (!api_field(op, "groups"))
        return;
    for (int i = 0; i < COUNT(bad); i++)
        expect_integer(op, "groups", bad[i], WF_INVALID);
    for (int i = 0; i < COUNT(good); i++) {
        ApiCall c;
        api_begin(&c, op, 0);
        api_set_integer(&c, "groups", good[i]);
        api_fit(&c);
        api_expect(&c, WF_OK, NULL);
        api_end(&c);
    }
}
END_TEST

/* Statistics of one value: PyTorch's text. Frozen statistics and evaluation have no such limit, and an empty tensor is
 * first of all empty. */
START_TEST(one_value_per_channel)
{
    const Operation *op = &operations[_i];
    const int batch = strncmp(op->name, "batchnorm", 9) == 0, instance = strncmp(op->name, "instancenorm", 12) == 0;
    const int training = strstr(op->name, "train") || strstr(op->name, "backward");
    if (!batch && !instance)
        return;
    for (int n = 0; n < 3; n++)
        for (int frozen = 0; frozen < 2; frozen++) {
            ApiCall c;
            const int single = batch ? n == 1 : n != 0;
            const int excused = !training || (frozen && strstr(op->name, "backward"));
            api_begin(&c, op, 0);
            api_set_integer(&c, "n", n);
            api_set_integer(&c, "hw", 1);
            api_set_integer(&c, "flags", frozen ? WF_FROZEN : 0);
            api_fit(&c);
            api_expect(&c, single && !excused ? WF_INVALID : WF_OK,
                       "expected more than 1 value per channel when training");
            api_end(&c);
        }
}
END_TEST

START_TEST(where_fields)
{
    const Operation *op = &operations[_i];
    ApiCall c;
    api_begin(&c, op, 0);
    c.where.threads = -1;
    api_expect(&c, WF_INVALID, "threads = -1");
    c.where.threads = INT32_MIN;
    api_expect(&c, WF_INVALID, "threads = -2147483648");
    c.where.threads = INT32_MAX;
    api_expect(&c, WF_OK, NULL);
    api_end(&c);

    api_begin(&c, op, 0);
    for (int bit = 0; bit < 32; bit++) {
        char mentions[64];
        c.where.flags = UINT32_C(1) << bit;
        snprintf(mentions, sizeof mentions, "flags = 0x%" PRIx32, c.where.flags);
        api_expect(&c, c.where.flags == WF_DRY_RUN ? WF_OK : WF_INVALID, mentions);
        ck_assert(api_untouched(&c));
    }
    c.where.flags = 0;
    c.where.reserved = 1;
    api_expect(&c, WF_INVALID, "reserved = 1");
    c.where.reserved = 0;
    c.where.backend = (wf_backend)2;
    api_expect(&c, WF_INVALID, "backend = 2");
    c.where.backend = (wf_backend)-1;
    api_expect(&c, WF_INVALID, "backend = -1");
    ck_assert_uint_eq(op->workspace(c.what, (wf_backend)2), 0);
    ck_assert_uint_eq(op->workspace(c.what, (wf_backend)-1), 0);
    c.where.backend = WF_CPU;
    c.where.variant = "no such variant";
    api_expect(&c, WF_INVALID, "variant = \"no such variant\"");
    c.where.variant = "";
    api_expect(&c, WF_INVALID, "variant = \"\"");
    api_end(&c);
}
END_TEST

START_TEST(null_structs)
{
    const Operation *op = &operations[_i];
    ApiCall c;
    api_begin(&c, op, 0);
    ck_assert_int_eq(op->call(NULL, c.with, &c.where), WF_INVALID);
    ck_assert_ptr_nonnull(strstr(wf_error_detail(), "what = NULL"));
    ck_assert_int_eq(op->call(c.what, NULL, &c.where), WF_INVALID);
    ck_assert_ptr_nonnull(strstr(wf_error_detail(), "with = NULL"));
    ck_assert_int_eq(op->call(c.what, c.with, NULL), WF_INVALID);
    ck_assert_ptr_nonnull(strstr(wf_error_detail(), "where = NULL"));
    ck_assert_int_eq(strncmp(wf_error_detail(), op->name, strlen(op->name)), 0);
    ck_assert_uint_eq(op->workspace(NULL, WF_CPU), 0);
    ck_assert(api_untouched(&c));
    /* A dry run needs no buffers, but everything else. */
    c.where.flags = WF_DRY_RUN;
    ck_assert_int_eq(op->call(c.what, NULL, &c.where), WF_OK);
    ck_assert_int_eq(op->call(NULL, NULL, &c.where), WF_INVALID);
    ck_assert(api_untouched(&c));
    api_end(&c);
}
END_TEST

/* A call that is wrong in every way is INVALID first, then UNSUPPORTED, then short of WORKSPACE: mended in this order. */
START_TEST(order_of_statuses)
{
    const Operation *op = &operations[_i];
    const int pair = api_field(op, "w_dtype") != NULL;
    ApiCall c;
    api_begin(&c, op, 700);
    const size_t workspace_size = c.where.workspace_size;
    void *const workspace = c.where.workspace;
    c.where.workspace = NULL;
    c.where.workspace_size = 0;
    if (pair)
        api_set_integer(&c, "w_dtype", WF_F16); /* with x f32 */
    else
        c.where.backend = WF_CUDA;
    /* of dropout: built without it, or a variant for whole features */
    const char *const unfit = pair ? NULL : wf_variant(op->name, WF_CUDA, 1);
    void **const y = api_with(&c, &op->buffer[0]);
    void *const given = *y;
    *y = NULL;
    api_expect(&c, WF_INVALID, "= NULL");
    *y = given;
    c.where.variant = "no such variant";
    api_expect(&c, WF_INVALID, "variant");
    c.where.variant = unfit;
    api_expect(&c, WF_UNSUPPORTED, pair ? "w_dtype" : unfit ? "variant" : "CUDA");
    c.where.variant = NULL;
    if (pair)
        api_set_integer(&c, "w_dtype", WF_F32);
    c.where.backend = WF_CPU;
    if (workspace_size)
        api_expect(&c, WF_WORKSPACE, "workspace = NULL");
    c.where.workspace = workspace;
    c.where.workspace_size = workspace_size;
    api_expect(&c, WF_OK, NULL);
    api_end(&c);
}
END_TEST

Suite *bad_input_suite(void)
{
    const TTest *const tests[] = {legal_calls_are_legal, enumerators, flags, reserved, sizes, wrapping_products, strides,
                                  constants, groups, one_value_per_channel, where_fields, null_structs, order_of_statuses};
    Suite *s = suite_create("bad_input");
    TCase *t = tcase_create("bad_input");
    tcase_set_timeout(t, 60);
    for (int i = 0; i < COUNT(tests); i++)
        tcase_add_loop_test(t, tests[i], 0, OPERATIONS);
    suite_add_tcase(s, t);
    return s;
}
