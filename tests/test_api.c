/* What every operation shares: version, status texts, the error text's rules, variants, back-ends, dry runs. */
#include <check.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api_table.h"
#include "device.h"
#include "guard.h"

Suite *api_suite(void);

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

START_TEST(version)
{
    ck_assert_uint_eq(wf_version(), WF_VERSION);
    ck_assert_uint_eq(WF_VERSION, 0x000100);
}
END_TEST

START_TEST(status_strings)
{
    static const char *const names[] = {"ok", "invalid", "unsupported", "workspace", "device"};
    for (int s = 0; s < COUNT(names); s++)
        ck_assert_str_eq(wf_status_string((wf_status)s), names[s]);
    ck_assert_str_eq(wf_status_string((wf_status)COUNT(names)), "unknown status");
    ck_assert_str_eq(wf_status_string((wf_status)-1), "unknown status");
    ck_assert_str_eq(wf_status_string((wf_status)INT32_MAX), "unknown status");
}
END_TEST

/* Enumerators are part of the ABI. */
START_TEST(enumerators_are_never_renumbered)
{
    ck_assert(WF_F32 == 0 && WF_F16 == 1 && WF_BF16 == 2 && WF_F64 == 3);
    ck_assert(WF_OK == 0 && WF_INVALID == 1 && WF_UNSUPPORTED == 2 && WF_WORKSPACE == 3 && WF_DEVICE == 4);
    ck_assert(WF_NCHW == 0 && WF_NHWC == 1 && WF_CPU == 0 && WF_CUDA == 1);
    ck_assert(WF_ACCUMULATE == 1 && WF_FROZEN == 2 && WF_FEATURES == 4 && WF_BIASED == 8 && WF_SUM_F32 == 16);
    ck_assert(WF_GIVEN_MASK == 32 && WF_BIAS_F32 == 64);
    ck_assert(WF_DRY_RUN == 65536);
    ck_assert(WF_NOT_QUANTIZED == 0 && WF_E4M3 == 1 && WF_E5M2 == 2 && WF_INT8 == 3);
    ck_assert(WF_DROPOUT == 0 && WF_ALPHA_DROPOUT == 1);
}
END_TEST

/* `what` holds no padding, so that it can be hashed; structs are made of 8-byte units. The table has every field of it. */
START_TEST(structs_have_no_padding)
{
    for (int o = 0; o < OPERATIONS; o++) {
        const Operation *op = &operations[o];
        const int plain = (api_field(op, "cols") && !api_field(op, "p")) || /* norms of a sum have more, */
                          (api_field(op, "kind") && !api_field(op, "w_dtype")); /* and dropouts with a bias */
        unsigned char covered[192] = {0};
        memset(covered, 1, sizeof(size_t));
        for (const Field *f = op->field; f < op->field + MAX_FIELDS && f->name; f++)
            memset(covered + f->offset, 1, f->kind <= FIELD_RESERVED ? 4 : 8);
        for (size_t i = 0; i < op->what_size; i++)
            ck_assert_msg(covered[i] || strstr(op->name, "norm_infer") || strstr(op->name, "norm_backward") || plain,
                          "%s: byte %zu of what belongs to no field", op->name, i); /* momentum: training's only */
        ck_assert_uint_eq(op->what_size % 8, 0);
        ck_assert_uint_eq(op->with_size % 8, 0);
    }
    ck_assert_uint_eq(sizeof(wf_exec) % 8, 0);
}
END_TEST

static void fail_once(void)
{
    ck_assert_int_eq(wf_layernorm_forward(NULL, NULL, NULL), WF_INVALID);
}

/* "" at first; the last failure's; unchanged by success, by a workspace query and by another thread. */
static void *error_detail_elsewhere(void *result)
{
    snprintf(result, 256, "%s", wf_error_detail());
    const wf_layernorm what = {.size = sizeof what, .eps = -2};
    const wf_exec where = {.size = sizeof where, .flags = WF_DRY_RUN};
    wf_layernorm_forward(&what, NULL, &where);
    snprintf((char *)result + 256, 256, "%s", wf_error_detail());
    return NULL;
}

START_TEST(error_detail)
{
    char elsewhere[2][256], here[256];
    pthread_t thread;
    ck_assert_ptr_nonnull(wf_error_detail());
    const char *fork_mode = getenv("CK_FORK"); /* "no": one process for all tests, so there may have been a failure */
    if (!fork_mode || strcmp(fork_mode, "no"))
        ck_assert_str_eq(wf_error_detail(), "");
    fail_once();
    ck_assert_int_ne(wf_error_detail()[0], '\0');
    snprintf(here, sizeof here, "%s", wf_error_detail());

    const wf_layernorm what = {.size = sizeof what, .rows = 1, .cols = 1}, bad = {.size = sizeof bad, .rows = -1};
    const wf_exec where = {.size = sizeof where, .flags = WF_DRY_RUN};
    ck_assert_int_eq(wf_layernorm_forward(&what, NULL, &where), WF_OK);
    ck_assert_str_eq(wf_error_detail(), here);
    ck_assert_uint_eq(wf_layernorm_backward_workspace(&bad, WF_CPU), 0);
    ck_assert_str_eq(wf_error_detail(), here);

    ck_assert_int_eq(pthread_create(&thread, NULL, error_detail_elsewhere, elsewhere), 0);
    pthread_join(thread, NULL);
    ck_assert_str_eq(elsewhere[0], "");
    ck_assert_ptr_nonnull(strstr(elsewhere[1], "eps = -2"));
    ck_assert_str_eq(wf_error_detail(), here);

    ck_assert_int_eq(wf_layernorm_forward(&bad, NULL, &where), WF_INVALID);
    ck_assert_ptr_nonnull(strstr(wf_error_detail(), "layernorm_forward: rows = -1"));
}
END_TEST

/* Whether this processor has what the variant is made of. */
static int processor_has(const char *variant)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (strcmp(variant, "avx2") == 0)
        return __builtin_cpu_supports("avx2");
    if (strcmp(variant, "avx512") == 0)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
    return strcmp(variant, "baseline") == 0;
}

/* Each operation has variants, the general one among them; they are listed without gaps and end with NULL. Each is
 * accepted, or known but not for this processor; a dry run says so, too. */
START_TEST(variants)
{
    const Operation *op = &operations[_i];
    int count = 0, general = 0;
    const char *name;
    for (; (name = wf_variant(op->name, WF_CPU, count)); count++) {
        ApiCall c;
        api_begin(&c, op, 0);
        c.where.variant = name;
        c.where.flags = WF_DRY_RUN;
        const wf_status dry = api_call(&c);
        ck_assert(api_untouched(&c));
        c.where.flags = 0;
        api_expect(&c, processor_has(name) ? WF_OK : WF_UNSUPPORTED, "variant");
        ck_assert_int_eq(dry, processor_has(name) ? WF_OK : WF_UNSUPPORTED);
        general += strcmp(name, "baseline") == 0;
        api_end(&c);
        for (int j = 0; j < count; j++)
            ck_assert_str_ne(wf_variant(op->name, WF_CPU, j), name);
    }
    ck_assert_int_eq(general, 1);
    for (int i = count; i < count + 3; i++)
        ck_assert_ptr_null(wf_variant(op->name, WF_CPU, i));
    ck_assert_ptr_null(wf_variant(op->name, WF_CPU, -1));
    ck_assert_ptr_null(wf_variant(op->name, (wf_backend)2, 0));
    ck_assert_ptr_null(wf_variant(op->name, (wf_backend)-1, 0));
}
END_TEST

START_TEST(variants_of_nothing)
{
    ck_assert_ptr_null(wf_variant("layernorm", WF_CPU, 0));
    ck_assert_ptr_null(wf_variant("wf_layernorm_forward", WF_CPU, 0));
    ck_assert_ptr_null(wf_variant("", WF_CPU, 0));
    ck_assert_ptr_null(wf_variant(NULL, WF_CPU, 0));
}
END_TEST

/* Kernels without a device: the runtime's message, nothing written, and the CPU is the default. */
START_TEST(cuda_without_device)
{
    const Operation *op = &operations[_i];
    ApiCall c;
    if (!wf_variant(op->name, WF_CUDA, 0) || device_present())
        return;
    ck_assert_int_eq(wf_default_backend(), WF_CPU);
    api_begin(&c, op, 0);
    c.where.backend = WF_CUDA;
    const size_t size = op->workspace(c.what, WF_CUDA);
    void *const before = c.where.workspace, *const workspace = size ? guard_alloc(size, 1) : NULL;
    c.where.workspace = workspace;
    c.where.workspace_size = size;
    api_expect(&c, WF_DEVICE, "cudaError");
    c.where.flags = WF_DRY_RUN;
    api_expect(&c, WF_DEVICE, "cudaError");
    c.where.threads = -1;
    api_expect(&c, WF_INVALID, "threads = -1");
    c.where.workspace = before;
    guard_free(workspace);
    api_end(&c);
}
END_TEST

/* A build without CUDA knows the back-end, refuses it, and does not choose it. */
START_TEST(cuda_without_cuda)
{
    const Operation *op = &operations[_i];
    ApiCall c;
    if (wf_variant(op->name, WF_CUDA, 0))
        return; /* this build has kernels */
    if (!device_present())
        ck_assert_int_eq(wf_default_backend(), WF_CPU);
    api_begin(&c, op, 0);
    c.where.backend = WF_CUDA;
    api_expect(&c, WF_UNSUPPORTED, "where.backend|CUDA");
    c.where.flags = WF_DRY_RUN;
    api_expect(&c, WF_UNSUPPORTED, "where.backend|CUDA");
    ck_assert_int_eq(op->call(c.what, NULL, &c.where), WF_UNSUPPORTED);
    op->workspace(c.what, WF_CUDA); /* needs no device */
    c.where.threads = -1;
    api_expect(&c, WF_INVALID, "threads = -1");
    api_end(&c);
}
END_TEST

/* A dry run answers as the call would and writes nothing; without buffers it answers for the shape. */
START_TEST(dry_run)
{
    const Operation *op = &operations[_i];
    ApiCall c;
    api_begin(&c, op, 0);
    c.where.flags = WF_DRY_RUN;
    api_expect(&c, WF_OK, NULL);
    ck_assert(api_untouched(&c));
    ck_assert_int_eq(op->call(c.what, NULL, &c.where), WF_OK);
    c.where.workspace = NULL;
    c.where.workspace_size = 0;
    ck_assert_int_eq(op->call(c.what, NULL, &c.where), WF_OK);
    *api_with(&c, &op->buffer[0]) = NULL;
    api_expect(&c, WF_INVALID, "= NULL");
    api_set_integer(&c, "x_dtype", 9);
    ck_assert_int_eq(op->call(c.what, NULL, &c.where), WF_INVALID);
    ck_assert_ptr_nonnull(strstr(wf_error_detail(), "x_dtype = 9"));
    api_end(&c);
}
END_TEST

/* x's dtype, or f32 with 16-bit x; the others are UNSUPPORTED, even where no parameter is given. */
START_TEST(dtype_pairs)
{
    const Operation *op = &operations[_i];
    for (int x = WF_F32; x <= WF_F64; x++)
        for (int w = WF_F32; w <= WF_F64; w++)
            for (int given = 0; given < 2; given++) {
                ApiCall c;
                if (!api_field(op, "w_dtype") && w != x)
                    continue;
                api_begin(&c, op, 0);
                api_set_integer(&c, "x_dtype", x);
                if (api_field(op, "w_dtype"))
                    api_set_integer(&c, "w_dtype", w);
                api_fit(&c);
                for (const Buffer *b = op->buffer; !given && b < op->buffer + MAX_BUFFERS && b->name; b++)
                    if (b->extent == EXTENT_PARAMETER)
                        *api_with(&c, b) = NULL;
                const int nothing = !given && api_field(op, "kind"); /* of dropout has w_dtype, without a bias */
                const int legal = nothing || w == x || (w == WF_F32 && (x == WF_F16 || x == WF_BF16));
                api_expect(&c, legal ? WF_OK : WF_UNSUPPORTED, "w_dtype");
                for (int i = 0; i <= MAX_BUFFERS; i++)
                    ck_assert(guard_check(c.memory[i]));
                api_end(&c);
            }
}
END_TEST

/* A call that succeeds reads its structs and its inputs, and writes its outputs and nothing around them. */
START_TEST(only_outputs_are_written)
{
    const Operation *op = &operations[_i];
    ApiCall c, before;
    api_begin(&c, op, 0);
    api_vary(&c);
    before = c;
    ck_assert_int_eq(api_call(&c), WF_OK);
    ck_assert_mem_eq(c.what, before.what, sizeof c.what);
    ck_assert_mem_eq(c.with, before.with, sizeof c.with);
    ck_assert_mem_eq(&c.where, &before.where, sizeof c.where);
    for (const Buffer *b = op->buffer; b < op->buffer + MAX_BUFFERS && b->name; b++) {
        const int i = (int)(b - op->buffer);
        ck_assert_msg(guard_check(c.memory[i]), "%s: around %s", op->name, b->name);
        ck_assert_msg(b->output || !memcmp(c.memory[i], c.copy[i], c.size[i]), "%s: %s", op->name, b->name);
        ck_assert_msg(!b->output || memcmp(c.memory[i], c.copy[i], c.size[i]), "%s: %s is as before", op->name, b->name);
    }
    api_end(&c);
}
END_TEST

Suite *api_suite(void)
{
    const TTest *const each[] = {variants,    cuda_without_device, cuda_without_cuda, dry_run,
                                 dtype_pairs, only_outputs_are_written};
    Suite *s = suite_create("api");
    TCase *t = tcase_create("api");
    tcase_set_timeout(t, 60);
    tcase_add_test(t, error_detail);
    tcase_add_test(t, version);
    tcase_add_test(t, status_strings);
    tcase_add_test(t, enumerators_are_never_renumbered);
    tcase_add_test(t, structs_have_no_padding);
    tcase_add_test(t, variants_of_nothing);
    for (int i = 0; i < COUNT(each); i++)
        tcase_add_loop_test(t, each[i], 0, OPERATIONS);
    suite_add_tcase(s, t);
    return s;
}
