/* Which buffers may share memory: an output with the one input that the header names, inputs with each other, and column
 * windows of one matrix that have no element in common. Everything else is refused before a byte is written. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api_table.h"
#include "guard.h"

Suite *bad_input_overlap_suite(void);

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))
#define EACH_BUFFER(b, op) const Buffer *b = (op)->buffer; b < (op)->buffer + MAX_BUFFERS && b->name; b++

static size_t alignment_of(const Buffer *b)
{
    return b->extent == EXTENT_WORD ? 8 : b->extent == EXTENT_MASK || b->extent == EXTENT_BYTES ? 1 : 4;
}

/* A call whose inputs and the outputs that may be them have equal strides. */
static void begin_with_equal_strides(ApiCall *c, const Operation *op)
{
    api_begin(c, op, 0);
    if (api_field(op, "x_stride")) {
        api_set_integer(c, "y_stride", api_integer(c, "x_stride"));
        if (api_field(op, "dx_stride"))
            api_set_integer(c, "dx_stride", api_integer(c, "dy_stride"));
        if (api_field(op, "sum_stride"))
            api_set_integer(c, "sum_stride", api_integer(c, "residual_stride"));
        api_fit(c);
    }
}

/* Puts `other` at `distance` bytes from the output and says what must come of it. */
static void try_at(ApiCall *c, const Buffer *output, const Buffer *other, ptrdiff_t distance, int legal)
{
    unsigned char *arena = guard_alloc(4096, 0);
    char mentions[64];
    void *const output_was = *api_with(c, output), *const other_was = *api_with(c, other);
    memset(arena, 0, 4096);
    *api_with(c, output) = arena + 2048;
    *api_with(c, other) = arena + 2048 + distance;
    snprintf(mentions, sizeof mentions, "%s|%s", output->name, other->name);
    api_expect(c, legal ? WF_OK : WF_INVALID, mentions);
    for (int i = 0; !legal && i < 4096; i++)
        if (arena[i])
            ck_abort_msg("%s wrote into %s although it failed", c->op->name, output->name);
    ck_assert(guard_check(arena));
    *api_with(c, output) = output_was;
    *api_with(c, other) = other_was;
    guard_free(arena);
}

/* Every output with every other buffer: the same place, one element shared at either end, and touching. */
START_TEST(every_pair)
{
    const Operation *op = &operations[_i];
    for (EACH_BUFFER(output, op))
        for (EACH_BUFFER(other, op)) {
            if (!output->output || output == other)
                continue;
            ApiCall c;
            begin_with_equal_strides(&c, op);
            const ptrdiff_t align = (ptrdiff_t)alignment_of(other);
            const ptrdiff_t size = (ptrdiff_t)api_size(&c, output), other_size = (ptrdiff_t)api_size(&c, other);
            const int named = api_may_be(output, other) || api_may_be(other, output);
            c.where.flags = WF_DRY_RUN; /* so that one call may follow another: nothing is written */
            try_at(&c, output, other, 0, named);
            try_at(&c, output, other, (size - 1) / align * align, 0);
            try_at(&c, output, other, -((other_size - 1) / align * align), 0);
            try_at(&c, output, other, (size + align - 1) / align * align, 1);
            try_at(&c, output, other, -((other_size + align - 1) / align * align), 1);
            c.where.flags = 0;
            try_at(&c, output, other, (size - 1) / align * align, 0);
            api_end(&c);
        }
}
END_TEST

START_TEST(inputs_share)
{
    const Operation *op = &operations[_i];
    for (EACH_BUFFER(a, op))
        for (EACH_BUFFER(b, op)) {
            if (a->output || b->output || a == b || strncmp(a->name, "running_", 8) == 0)
                continue;
            ApiCall c;
            begin_with_equal_strides(&c, op);
            if (api_size(&c, a) >= api_size(&c, b)) {
                *api_with(&c, b) = *api_with(&c, a);
                api_expect(&c, WF_OK, NULL);
            }
            api_end(&c);
        }
}
END_TEST

/* x with y, and dy with dx, at the same place with unequal strides. */
START_TEST(same_place_unequal_strides)
{
    const Operation *op = &operations[_i];
    for (EACH_BUFFER(output, op))
        if (output->alias && output->extent != EXTENT_BIAS && api_field(op, "x_stride")) {
            ApiCall c;
            api_begin(&c, op, 0);
            *api_with(&c, output) = *api_with(&c, api_buffer(op, output->alias));
            api_expect(&c, WF_INVALID, output->name);
            api_end(&c);
        }
}
END_TEST

START_TEST(workspace_is_nobodys)
{
    const Operation *op = &operations[_i];
    for (EACH_BUFFER(b, op)) {
        ApiCall c;
        api_begin(&c, op, 0);
        const size_t need = c.where.workspace_size, size = c.size[b - op->buffer];
        unsigned char *arena = guard_alloc(size + need + 16, 0);
        memset(arena, 0x3f, size + need + 16); /* of any dtype a number that is legal anywhere */
        *api_with(&c, b) = arena;
        c.where.workspace = arena + size - 1;
        c.where.workspace_size = need + 16;
        api_expect(&c, WF_INVALID, "workspace");
        c.where.workspace = arena + size;
        ck_assert_msg(api_call(&c) == WF_OK, "%s", wf_error_detail());
        ck_assert(guard_check(arena));
        guard_free(arena);
        api_end(&c);
    }
}
END_TEST

/* In every operation that has one, a named alias gives the bits that separate buffers give. */
START_TEST(named_alias_works)
{
    const Operation *op = &operations[_i];
    for (EACH_BUFFER(output, op))
        for (EACH_BUFFER(input, op)) {
            if (!api_may_be(output, input))
                continue;
            ApiCall apart, shared;
            begin_with_equal_strides(&apart, op);
            begin_with_equal_strides(&shared, op);
            api_vary(&apart);
            api_vary(&shared);
            unsigned char *in = apart.memory[input - op->buffer], *same = shared.memory[input - op->buffer];
            if (strncmp(input->name, "running_", 8) == 0)
                memset(in, 0x40, api_size(&apart, input)), memset(same, 0x40, api_size(&apart, input)); /* 3.0039 */
            memcpy(apart.memory[output - op->buffer], in, api_size(&apart, input)); /* the gaps between rows alike */
            *api_with(&shared, output) = same;
            ck_assert_msg(api_call(&apart) == WF_OK && api_call(&shared) == WF_OK, "%s", wf_error_detail());
            ck_assert_mem_eq(same, apart.memory[output - op->buffer], api_size(&apart, input));
            api_end(&apart);
            api_end(&shared);
        }
}
END_TEST

/* ---- strided windows: the library's answer against a map of bytes ---- */

typedef struct Window {
    int64_t start, stride; /* elements */
} Window;

enum { ARENA = 4096 }; /* elements */

static int share_an_element(Window a, Window b, int64_t rows, int64_t cols)
{
    static char used[ARENA];
    memset(used, 0, sizeof used);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t k = 0; k < cols; k++)
            used[a.start + r * a.stride + k] = 1;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t k = 0; k < cols; k++)
            if (used[b.start + r * b.stride + k])
                return 1;
    return 0;
}

/* x and y of LayerNorm as windows of one arena; the same for dy and dx. rows = 1 has no stride to differ in. */
static void check_windows(Window in, Window out, int64_t rows, int64_t cols)
{
    static float arena[ARENA];
    static float statistics[ARENA];
    const int same = in.start == out.start && (in.stride == out.stride || rows <= 1);
    const wf_status want = same || !share_an_element(in, out, rows, cols) ? WF_OK : WF_INVALID;
    const wf_exec where = {.size = sizeof where, .flags = WF_DRY_RUN, .workspace = NULL};
    const wf_layernorm what = {.size = sizeof what, .rows = rows, .cols = cols, .x_stride = in.stride,
                               .y_stride = out.stride, .dy_stride = in.stride, .dx_stride = out.stride};
    const wf_layernorm_forward_args forward = {.size = sizeof forward, .x = arena + in.start, .y = arena + out.start};
    const wf_layernorm_backward_args backward = {.size = sizeof backward, .dy = arena + in.start, .x = arena + in.start,
                                                 .dx = arena + out.start, .mean = statistics, .rstd = statistics};
    const wf_status got = wf_layernorm_forward(&what, &forward, &where);
    if (got != want)
        ck_abort_msg("x at %d stride %d, y at %d stride %d, [%d, %d]: %s, expected %s", (int)in.start, (int)in.stride,
                     (int)out.start, (int)out.stride, (int)rows, (int)cols, wf_status_string(got), wf_status_string(want));
    /* x is dy's window here, and dx may not share with x: the alias is not enough. */
    const wf_status back = wf_layernorm_backward(&what, &backward, &where);
    const int refused = share_an_element(in, out, rows, cols);
    if ((back == WF_INVALID) != refused)
        ck_abort_msg("dy and x at %d stride %d, dx at %d stride %d, [%d, %d]: %s", (int)in.start, (int)in.stride,
                     (int)out.start, (int)out.stride, (int)rows, (int)cols, wf_status_string(back));
}

START_TEST(every_small_window)
{
    for (int64_t rows = 1; rows <= 4; rows++)
        for (int64_t cols = 1; cols <= 3; cols++)
            for (int64_t in = cols; in <= cols + 5; in++)
                for (int64_t out = cols; out <= cols + 5; out++)
                    for (int64_t at = -26; at <= 26; at++)
                        check_windows((Window){100, in}, (Window){100 + at, out}, rows, cols);
}
END_TEST

START_TEST(random_windows)
{
    uint64_t state = 5;
    int refused = 0;
    for (int i = 0; i < 20000; i++) {
        uint64_t draw[5];
        for (int k = 0; k < 5; k++) {
            state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
            draw[k] = state >> 33;
        }
        const int64_t rows = 1 + (int64_t)(draw[0] % 30), cols = 1 + (int64_t)(draw[1] % 6);
        const Window in = {1000, cols + (int64_t)(draw[2] % 60)}, out = {1000 + (int64_t)(draw[3] % 200) - 100,
                                                                         cols + (int64_t)(draw[4] % 60)};
        check_windows(in, out, rows, cols);
        refused += share_an_element(in, out, rows, cols);
    }
    ck_assert_int_gt(refused, 2000); /* both answers occur */
    ck_assert_int_lt(refused, 18000);
}
END_TEST

/* Two halves of one matrix's columns as x and y: legal, and the same bits as apart. */
START_TEST(column_windows_work)
{
    enum { ROWS = 37, COLS = 21, WIDE = 2 * COLS };
    float matrix[ROWS * WIDE], x[ROWS * COLS], y[ROWS * COLS];
    for (int i = 0; i < ROWS * WIDE; i++)
        matrix[i] = (float)(i * 37 % 101);
    for (int r = 0; r < ROWS; r++)
        memcpy(x + r * COLS, matrix + r * WIDE, COLS * sizeof *x);
    const wf_exec where = {.size = sizeof where};
    wf_layernorm what = {.size = sizeof what, .rows = ROWS, .cols = COLS, .x_stride = WIDE, .y_stride = WIDE, .eps = 1e-5};
    wf_layernorm_forward_args with = {.size = sizeof with, .x = matrix, .y = matrix + COLS};
    ck_assert_int_eq(wf_layernorm_forward(&what, &with, &where), WF_OK);
    what.x_stride = what.y_stride = COLS;
    with.x = x;
    with.y = y;
    ck_assert_int_eq(wf_layernorm_forward(&what, &with, &where), WF_OK);
    for (int r = 0; r < ROWS; r++) {
        ck_assert_mem_eq(matrix + r * WIDE, x + r * COLS, COLS * sizeof *x);
        ck_assert_mem_eq(matrix + r * WIDE + COLS, y + r * COLS, COLS * sizeof *y);
    }
}
END_TEST

Suite *bad_input_overlap_suite(void)
{
    const TTest *const tests[] = {every_pair, inputs_share, same_place_unequal_strides, workspace_is_nobodys,
                                  named_alias_works};
    Suite *s = suite_create("bad_input_overlap");
    TCase *t = tcase_create("bad_input_overlap");
    tcase_set_timeout(t, 60);
    for (int i = 0; i < COUNT(tests); i++)
        tcase_add_loop_test(t, tests[i], 0, OPERATIONS);
    tcase_add_test(t, every_small_window);
    tcase_add_test(t, random_windows);
    tcase_add_test(t, column_windows_work);
    suite_add_tcase(s, t);
    return s;
}
