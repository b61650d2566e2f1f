/* WELFORD_VERBOSE=1: one line of key=value a call on stderr. Each test calls the library in a child of its own, for the
 * variable is read once. */
#include <check.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "api_table.h"

Suite *verbose_suite(void);

void __gcov_dump(void) __attribute__((weak)); /* there in a coverage build */

/* With CK_FORK=no the library may have run in this process already, and has then read the variable. */
static int can_fork(void)
{
    const char *mode = getenv("CK_FORK");
    return !mode || strcmp(mode, "no");
}

/* What `call` writes to stderr in a child with the variable set to `value` (NULL: unset). */
static char *stderr_of(void (*call)(void), const char *value)
{
    static char text[8192];
    int ends[2], status;
    size_t length = 0;
    ssize_t got;
    ck_assert_int_eq(pipe(ends), 0);
    const pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        if (value)
            setenv("WELFORD_VERBOSE", value, 1);
        else
            unsetenv("WELFORD_VERBOSE");
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        close(ends[1]);
        call();
        if (__gcov_dump)
            __gcov_dump();
        _exit(0);
    }
    close(ends[1]);
    while ((got = read(ends[0], text + length, sizeof text - 1 - length)) > 0)
        length += (size_t)got;
    close(ends[0]);
    text[length] = '\0';
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child failed: %s", text);
    return text;
}

static void call_layernorm_on(int64_t rows, int threads)
{
    static float x[1 << 20], gamma[3], y[1 << 20];
    const wf_layernorm what = {.size = sizeof what, .rows = rows, .cols = 3, .eps = 1e-5};
    const wf_layernorm_forward_args with = {.size = sizeof with, .x = x, .gamma = gamma, .y = y};
    const wf_exec where = {.size = sizeof where, .threads = threads};
    if (wf_layernorm_forward(&what, &with, &where))
        _exit(1);
}

static void call_layernorm(void) { call_layernorm_on(4096, 1); }

/* Enough for many threads; OpenMP's stay, so they can be counted afterwards. */
static void call_on_two_threads(void)
{
    int tasks = 0;
    call_layernorm_on(1 << 18, 2);
    DIR *folder = opendir("/proc/self/task");
    for (struct dirent *entry; folder && (entry = readdir(folder));)
        tasks += entry->d_name[0] != '.';
    if (tasks > 2)
        _exit(1);
}

static void call_every_operation(void)
{
    for (int o = 0; o < OPERATIONS; o++) {
        ApiCall c;
        api_begin(&c, &operations[o], 0);
        if (api_call(&c))
            _exit(1);
        api_end(&c);
    }
}

static void call_before_and_after_setting(void)
{
    call_layernorm();
    setenv("WELFORD_VERBOSE", "1", 1);
    call_layernorm();
}

static void call_before_and_after_unsetting(void)
{
    call_layernorm();
    unsetenv("WELFORD_VERBOSE");
    call_layernorm();
}

static void call_baseline(void)
{
    static uint16_t x[2 * 3 * 5];
    const wf_groupnorm what = {.size = sizeof what, .x_dtype = WF_BF16, .w_dtype = WF_F32, .layout = WF_NHWC,
                               .n = 2, .c = 3, .hw = 5, .groups = 1, .eps = 1e-5};
    const wf_groupnorm_forward_args with = {.size = sizeof with, .x = x, .y = x};
    const size_t size = wf_groupnorm_forward_workspace(&what, WF_CPU);
    const wf_exec where = {.size = sizeof where, .variant = "baseline", .workspace = malloc(size), .workspace_size = size};
    if (wf_groupnorm_forward(&what, &with, &where))
        _exit(1);
}

/* The value of a key in a line, in a static buffer; fails if it is not there or empty. */
static const char *value_of(const char *line, const char *key)
{
    static char value[128];
    char wanted[64];
    snprintf(wanted, sizeof wanted, " %s=", key);
    const char *at = strstr(line, wanted);
    ck_assert_msg(at != NULL, "no %s in \"%s\"", key, line);
    at += strlen(wanted);
    snprintf(value, sizeof value, "%.*s", (int)strcspn(at, " \n"), at);
    ck_assert_msg(value[0] != '\0', "no value of %s in \"%s\"", key, line);
    return value;
}

/* Every word after the first is key=value, each key once. */
static void check_words(const char *line)
{
    char copy[1024], seen[1024] = " ";
    snprintf(copy, sizeof copy, "%s", line);
    char *word = strtok(copy, " ");
    ck_assert_str_eq(word, "welford");
    while ((word = strtok(NULL, " "))) {
        char *equals = strchr(word, '=');
        ck_assert_msg(equals && equals > word && equals[1], "\"%s\" in \"%s\" is not key=value", word, line);
        char key[128];
        snprintf(key, sizeof key, " %.*s ", (int)(equals - word), word);
        ck_assert_msg(!strstr(seen, key), "%s twice in \"%s\"", key, line);
        snprintf(seen + strlen(seen), sizeof seen - strlen(seen), "%s", key + 1);
    }
}

static int count_lines(const char *text)
{
    int lines = 0;
    for (; *text; text++)
        lines += *text == '\n';
    return lines;
}

START_TEST(one_line_a_call)
{
    if (!can_fork())
        return;
    char *text = stderr_of(call_layernorm, "1");
    ck_assert_msg(count_lines(text) == 1 && text[strlen(text) - 1] == '\n', "\"%s\"", text);
    text[strlen(text) - 1] = '\0';
    check_words(text);
    ck_assert_str_eq(value_of(text, "op"), "layernorm_forward");
    ck_assert_str_eq(value_of(text, "rows"), "4096");
    ck_assert_str_eq(value_of(text, "cols"), "3");
    ck_assert_str_eq(value_of(text, "x"), "f32");
    ck_assert_str_eq(value_of(text, "w"), "f32");
    ck_assert_str_eq(value_of(text, "backend"), "cpu");
    ck_assert_str_eq(value_of(text, "threads"), "1");
    value_of(text, "why");
    const double us = atof(value_of(text, "us")), rate = atof(value_of(text, "GB/s"));
    const double bytes = atof(value_of(text, "bytes"));
    ck_assert(us > 0 && us < 1e7);
    ck_assert_double_eq(bytes, 4 * (2 * 4096 * 3 + 3)); /* x, y, gamma */
    ck_assert_double_eq_tol(rate, bytes / us * 1e-3, .01 * rate + .002);
    int known = 0;
    const char *name;
    for (int i = 0; (name = wf_variant("layernorm_forward", WF_CPU, i)); i++)
        known |= strcmp(value_of(text, "variant"), name) == 0;
    ck_assert(known);
}
END_TEST

START_TEST(every_operation_says_its_name)
{
    if (!can_fork())
        return;
    char *text = stderr_of(call_every_operation, "1"), *line = text;
    ck_assert_int_eq(count_lines(text), OPERATIONS);
    for (int o = 0; o < OPERATIONS; o++) {
        char *end = strchr(line, '\n');
        *end = '\0';
        check_words(line);
        ck_assert_str_eq(value_of(line, "op"), operations[o].name);
        for (const Field *f = operations[o].field; f < operations[o].field + MAX_FIELDS && f->name; f++)
            if (f->kind == FIELD_SIZE)
                value_of(line, f->name);
        line = end + 1;
    }
}
END_TEST

START_TEST(dtypes_and_named_variant)
{
    if (!can_fork())
        return;
    char *text = stderr_of(call_baseline, "1");
    ck_assert_int_eq(count_lines(text), 1);
    ck_assert_str_eq(value_of(text, "op"), "groupnorm_forward");
    ck_assert_str_eq(value_of(text, "x"), "bf16");
    ck_assert_str_eq(value_of(text, "w"), "f32");
    ck_assert_str_eq(value_of(text, "variant"), "baseline");
}
END_TEST

/* where.threads is what a call takes at most; it says how many it took. */
START_TEST(as_many_threads_as_allowed)
{
    if (!can_fork())
        return;
    const int threads = atoi(value_of(stderr_of(call_on_two_threads, "1"), "threads"));
    ck_assert(threads == 1 || threads == 2);
}
END_TEST

START_TEST(silent_unless_asked)
{
    if (!can_fork())
        return;
    ck_assert_str_eq(stderr_of(call_every_operation, NULL), "");
    ck_assert_str_eq(stderr_of(call_every_operation, "0"), "");
    ck_assert_str_eq(stderr_of(call_every_operation, ""), "");
}
END_TEST

START_TEST(read_at_the_first_call)
{
    if (!can_fork())
        return;
    ck_assert_str_eq(stderr_of(call_before_and_after_setting, NULL), "");
    ck_assert_int_eq(count_lines(stderr_of(call_before_and_after_unsetting, "1")), 2);
}
END_TEST

Suite *verbose_suite(void)
{
    Suite *s = suite_create("verbose");
    TCase *t = tcase_create("verbose");
    tcase_set_timeout(t, 60);
    tcase_add_test(t, one_line_a_call);
    tcase_add_test(t, every_operation_says_its_name);
    tcase_add_test(t, dtypes_and_named_variant);
    tcase_add_test(t, as_many_threads_as_allowed);
    tcase_add_test(t, silent_unless_asked);
    tcase_add_test(t, read_at_the_first_call);
    suite_add_tcase(s, t);
    return s;
}
