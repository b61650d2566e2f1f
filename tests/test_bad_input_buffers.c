/* Bad buffers, in every operation: absent, misaligned, too little workspace; and struct sizes that are not ours. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api_table.h"
#include "guard.h"

Suite *bad_input_buffers_suite(void);

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))
#define EACH_BUFFER(b, op) const Buffer *b = (op)->buffer; b < (op)->buffer + MAX_BUFFERS && b->name; b++

static int is_running(const Buffer *b)
{
    return strncmp(b->name, "running_", 8) == 0 && strlen(b->name) > strlen("running_mean"); /* _in, _out */
}

START_TEST(absent)
{
    const Operation *op = &operations[_i];
    for (EACH_BUFFER(b, op)) {
        ApiCall c;
        char mentions[64];
        const int in_place_of_sum = b->needed && strcmp(b->name, "y") == 0 && api_buffer(op, "dy"); /* so that is missed */
        snprintf(mentions, sizeof mentions, "%s = NULL", in_place_of_sum ? "sum" : b->name);
        api_begin(&c, op, 0);
        *api_with(&c, b) = NULL;
        if (is_running(b))
            api_expect(&c, WF_INVALID, "running_");
        else
            api_expect(&c, b->needed ? WF_INVALID : WF_OK, mentions);
        api_end(&c);
    }
}
END_TEST

/* Every subset of the optional buffers is legal; running statistics as all four or none, only. */
START_TEST(any_optional_absent)
{
    const Operation *op = &operations[_i];
    for (unsigned given = 0; given < 1u << MAX_BUFFERS; given++) {
        ApiCall c;
        unsigned running = 0, present = 0, choice = 0;
        for (EACH_BUFFER(b, op))
            choice |= (unsigned)!b->needed << (b - op->buffer);
        if (given & ~choice)
            continue;
        api_begin(&c, op, 0);
        for (EACH_BUFFER(b, op))
            if (!b->needed && !(given >> (b - op->buffer) & 1))
                *api_with(&c, b) = NULL;
        for (EACH_BUFFER(b, op))
            running += is_running(b), present += is_running(b) && *api_with(&c, b);
        api_expect(&c, present == 0 || present == running ? WF_OK : WF_INVALID, "running_");
        api_end(&c);
    }
}
END_TEST

/* Any buffer of an empty tensor may be NULL, all of them at once too, whichever dimension is 0. */
START_TEST(empty_tensors)
{
    static const char *const sizes[] = {"rows", "cols", "n", "c", "hw"};
    const Operation *op = &operations[_i];
    for (int s = 0; s < COUNT(sizes); s++) {
        ApiCall c;
        if (!api_field(op, sizes[s]))
            continue;
        for (int all = 0; all < 2; all++) {
            api_begin(&c, op, 0);
            api_set_integer(&c, sizes[s], 0);
            api_fit(&c);
            if (all)
                for (EACH_BUFFER(b, op))
                    *api_with(&c, b) = NULL;
            api_expect(&c, WF_OK, NULL);
            for (EACH_BUFFER(b, op))
                ck_assert_msg(guard_check(c.memory[b - op->buffer]), "%s: around %s", op->name, b->name);
            api_end(&c);
        }
    }
}
END_TEST

/* What an empty tensor still has: statistics of nothing are 0, gradients 0 (or unchanged with WF_ACCUMULATE, as y_amax
 * is), running statistics are copied. In evaluation rstd is that of the running variance, and not of x. */
START_TEST(results_of_empty_tensors)
{
    static const char *const sizes[] = {"rows", "cols", "n", "c", "hw"};
    const Operation *op = &operations[_i];
    for (int s = 0; s < COUNT(sizes); s++)
        for (int accumulate = 0; accumulate < (op->flags & WF_ACCUMULATE ? 2 : 1); accumulate++) {
            ApiCall c;
            if (!api_field(op, sizes[s]))
                continue;
            api_begin(&c, op, 0);
            api_set_integer(&c, sizes[s], 0);
            api_set_integer(&c, "flags", accumulate ? WF_ACCUMULATE : 0);
            api_fit(&c);
            for (EACH_BUFFER(b, op)) /* 3.0039 */
                if (!b->output && is_running(b))
                    memset(c.memory[b - op->buffer], 0x40, c.size[b - op->buffer]);
            api_expect(&c, WF_OK, NULL);
            for (EACH_BUFFER(b, op)) {
                const int i = (int)(b - op->buffer);
                const int of_running = (b->extent == EXTENT_CHANNELS && api_buffer(op, "running_mean")) ||
                                       b->extent == EXTENT_BIAS || b->extent == EXTENT_ROW_FLOATS; /* of its own */
                for (size_t k = 0; b->output && k < c.size[i] && !of_running; k++) {
                    int want = 0;
                    if (is_running(b))
                        want = 0x40;
                    else if ((b->extent == EXTENT_PARAMETER && accumulate) || b->extent == EXTENT_FLOAT)
                        want = c.copy[i][k];
                    if (c.memory[i][k] != want)
                        ck_abort_msg("%s, %s = 0: byte %zu of %s is 0x%02x", op->name, sizes[s], k, b->name, c.memory[i][k]);
                }
            }
            api_end(&c);
        }
}
END_TEST

/* Every shift off the natural alignment of the buffer's own dtype is refused; a whole element is fine. */
START_TEST(misaligned)
{
    static const struct {
        wf_dtype x, w;
    } dtypes[] = {{WF_F32, WF_F32}, {WF_F16, WF_F32}, {WF_BF16, WF_BF16}, {WF_F64, WF_F64}};
    const Operation *op = &operations[_i];
    for (int d = 0; d < COUNT(dtypes); d++)
        for (EACH_BUFFER(b, op)) {
            ApiCall c;
            const size_t x_size = dtypes[d].x == WF_F64 ? 8 : dtypes[d].x == WF_F32 ? 4 : 2;
            const size_t w_size = dtypes[d].w == WF_F64 ? 8 : dtypes[d].w == WF_F32 ? 4 : 2;
            size_t natural = dtypes[d].x == WF_F64 ? 8 : 4;
            if (b->extent <= EXTENT_DY || b->extent == EXTENT_BIAS)
                natural = x_size;
            else if (b->extent == EXTENT_PARAMETER || b->extent == EXTENT_PAIRS)
                natural = w_size;
            else if (b->extent == EXTENT_WORD)
                natural = 8;
            else if (b->extent == EXTENT_MASK || b->extent == EXTENT_BYTES)
                natural = 1;
            else if (b->extent >= EXTENT_FLOAT)
                natural = 4;
            api_begin(&c, op, 0);
            api_set_integer(&c, "x_dtype", dtypes[d].x);
            if (api_field(op, "w_dtype"))
                api_set_integer(&c, "w_dtype", dtypes[d].w);
            api_fit(&c);
            unsigned char *roomy = guard_alloc(api_size(&c, b) + 8, 0);
            memset(roomy, 0x3f, api_size(&c, b) + 8); /* of any dtype a number that is legal anywhere */
            for (size_t shift = 1; shift < natural; shift++) {
                *api_with(&c, b) = roomy + shift;
                api_expect(&c, WF_INVALID, b->name);
            }
            *api_with(&c, b) = roomy + natural;
            ck_assert_msg(api_call(&c) == WF_OK && guard_check(roomy), "%s: %s", b->name, wf_error_detail());
            guard_free(roomy);
            api_end(&c);
        }
}
END_TEST

/* Workspace: exactly as much as asked for, at any alignment, whatever is in it; a byte less is refused. */
START_TEST(workspace)
{
    const Operation *op = &operations[_i];
    static const int64_t rows[] = {2, 70, 700};
    static const size_t shifts[] = {0, 1, 2, 4, 8, 31, 32, 63};
    for (int r = 0; r < COUNT(rows); r++)
        for (int layout = 0; layout < (api_field(op, "layout") ? 2 : 1); layout++) {
            ApiCall c;
            api_begin(&c, op, rows[r]);
            if (api_field(op, "layout"))
                api_set_integer(&c, "layout", layout);
            api_fit(&c);
            const size_t size = c.where.workspace_size;
            if (size) {
                char mentions[64];
                c.where.workspace_size = size - 1;
                snprintf(mentions, sizeof mentions, "workspace_size = %zu", size - 1);
                api_expect(&c, WF_WORKSPACE, mentions);
                c.where.workspace_size = 0;
                api_expect(&c, WF_WORKSPACE, "workspace_size = 0");
                c.where.flags = WF_DRY_RUN;
                api_expect(&c, WF_WORKSPACE, "workspace_size = 0");
                c.where.flags = 0;
                c.where.workspace_size = size;
                c.where.workspace = NULL;
                api_expect(&c, WF_WORKSPACE, "workspace = NULL");
            }
            unsigned char *first[MAX_BUFFERS] = {0};
            for (int k = 0; k < COUNT(shifts); k++) {
                unsigned char *memory = guard_alloc(size, shifts[k]);
                memset(memory, k % 2 ? 0xff : 0, size);
                c.where.workspace = memory;
                for (EACH_BUFFER(b, op)) /* WF_ACCUMULATE is off, but running statistics could be moved in place */
                    memcpy(c.memory[b - op->buffer], c.copy[b - op->buffer], c.size[b - op->buffer]);
                ck_assert_msg(api_call(&c) == WF_OK, "%s", wf_error_detail());
                ck_assert_msg(guard_check(memory), "%s wrote past its workspace of %zu bytes", op->name, size);
                for (EACH_BUFFER(b, op)) {
                    const int i = (int)(b - op->buffer);
                    ck_assert(guard_check(c.memory[i]));
                    if (!first[i]) {
                        first[i] = malloc(c.size[i] + 1);
                        memcpy(first[i], c.memory[i], c.size[i]);
                    }
                    ck_assert_msg(memcmp(first[i], c.memory[i], c.size[i]) == 0,
                                  "%s: %s differs with the workspace's alignment or contents", op->name, b->name);
                }
                guard_free(memory);
            }
            for (int i = 0; i < MAX_BUFFERS; i++)
                free(first[i]);
            api_end(&c);
        }
}
END_TEST

/* Calls one struct with its first `size` bytes, the rest filled with rubbish, and with that rest zeroed and the full size:
 * status, text and every output must be the same. */
static void compare_with_completed(const Operation *op, int which, size_t size)
{
    ApiCall cut, full;
    char text[256];
    api_begin(&cut, op, 0);
    api_begin(&full, op, 0);
    unsigned char *const structs[2][3] = {{cut.what, cut.with, (unsigned char *)&cut.where},
                                          {full.what, full.with, (unsigned char *)&full.where}};
    const size_t sizes[3] = {op->what_size, op->with_size, sizeof(wf_exec)};
    memset(structs[0][which] + size, 0xff, sizes[which] - size);
    memset(structs[1][which] + size, 0, sizes[which] - size);
    memcpy(structs[0][which], &size, sizeof size);
    const wf_status status = api_call(&full);
    snprintf(text, sizeof text, "%s", wf_error_detail());
    const wf_status cut_status = api_call(&cut);
    ck_assert_msg(cut_status == status, "%s, struct %d cut to %zu: %s, but completed %s", op->name, which, size,
                  wf_status_string(cut_status), wf_status_string(status));
    if (status)
        ck_assert(api_untouched(&cut));
    else
        for (EACH_BUFFER(b, op)) {
            const int i = (int)(b - op->buffer);
            ck_assert_int_eq(cut.memory[i] != NULL, full.memory[i] != NULL);
            if (cut.memory[i])
                ck_assert_msg(!memcmp(cut.memory[i], full.memory[i], cut.size[i]) && guard_check(cut.memory[i]),
                              "%s, struct %d cut to %zu: %s differs", op->name, which, size, b->name);
        }
    api_end(&cut);
    api_end(&full);
}

START_TEST(shorter_structs)
{
    const Operation *op = &operations[_i];
    const size_t sizes[3] = {op->what_size, op->with_size, sizeof(wf_exec)};
    for (int which = api_quantised(op); which < 3; which++) /* a `what` cut short would have y in x's dtype */
        for (size_t size = 16; size <= sizes[which]; size += 8)
            compare_with_completed(op, which, size);
}
END_TEST

START_TEST(too_short_structs)
{
    static const size_t bad[] = {0, 1, 4, 8, 15};
    static const char *const names[] = {"what.size = ", "with.size = ", "where.size = "};
    const Operation *op = &operations[_i];
    ApiCall c;
    api_begin(&c, op, 0);
    unsigned char *const structs[3] = {c.what, c.with, (unsigned char *)&c.where};
    for (int which = 0; which < 3; which++) {
        size_t right;
        memcpy(&right, structs[which], sizeof right);
        for (int i = 0; i < COUNT(bad); i++) {
            char mentions[64];
            snprintf(mentions, sizeof mentions, "%s%zu", names[which], bad[i]);
            memcpy(structs[which], &bad[i], sizeof bad[i]);
            api_expect(&c, WF_INVALID, mentions);
            if (which == 0)
                ck_assert_uint_eq(op->workspace(c.what, WF_CPU), 0);
        }
        memcpy(structs[which], &right, sizeof right);
    }
    api_expect(&c, WF_OK, NULL);
    api_end(&c);
}
END_TEST

/* Newer structs: legal while what we do not know is zero, refused for any other byte of it. */
START_TEST(longer_structs)
{
    const Operation *op = &operations[_i];
    const size_t sizes[3] = {op->what_size, op->with_size, sizeof(wf_exec)};
    for (int which = 0; which < 3; which++)
        for (size_t tail = 8; tail <= 32; tail += 24) {
            struct {
                wf_exec where;
                unsigned char tail[40];
            } longer;
            ApiCall c;
            api_begin(&c, op, 0);
            memset(&longer, 0, sizeof longer);
            longer.where = c.where;
            unsigned char *const structs[3] = {c.what, c.with, (unsigned char *)&longer};
            const size_t size = sizes[which] + tail;
            memcpy(structs[which], &size, sizeof size);
            for (size_t at = sizes[which]; at < size; at++) {
                structs[which][at] = 1;
                ck_assert_int_eq(op->call(c.what, c.with, &longer.where), WF_INVALID);
                ck_assert_ptr_nonnull(strstr(wf_error_detail(), "size = "));
                ck_assert(api_untouched(&c));
                if (which == 0)
                    ck_assert_uint_eq(op->workspace(c.what, WF_CPU), 0);
                structs[which][at] = 0;
            }
            structs[which][size] = 1; /* past the struct: not read */
            ck_assert_msg(op->call(c.what, c.with, &longer.where) == WF_OK, "%s", wf_error_detail());
            if (which == 0)
                ck_assert_uint_eq(op->workspace(c.what, WF_CPU), c.where.workspace_size);
            api_end(&c);
        }
}
END_TEST

Suite *bad_input_buffers_suite(void)
{
    const TTest *const tests[] = {absent, any_optional_absent, empty_tensors, results_of_empty_tensors, misaligned, workspace,
                                  shorter_structs, too_short_structs, longer_structs};
    Suite *s = suite_create("bad_input_buffers");
    TCase *t = tcase_create("bad_input_buffers");
    tcase_set_timeout(t, 60);
    for (int i = 0; i < COUNT(tests); i++)
        tcase_add_loop_test(t, tests[i], 0, OPERATIONS);
    suite_add_tcase(s, t);
    return s;
}
