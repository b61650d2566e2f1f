/* Any number of threads may call at once, each with its own buffers and pool; each gets the bits that one thread alone
 * gets. Run under TSan by `make check TSAN=1`, where the threads are these, not OpenMP's. */
#include <check.h>
#include <fenv.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "api_table.h"
#include "guard.h"
#include "pool.h"

Suite *threads_suite(void);

enum { CALLERS = 6, ROUNDS = 3 };

/* A call of some size: many rows, or channels with enough positions to be shared out. */
static void begin(ApiCall *c, const Operation *op)
{
    api_begin(c, op, 61);
    const char *const sizes[] = {"cols",      "x_stride",        "y_stride",   "dx_stride",
                                 "dy_stride", "residual_stride", "sum_stride", "hw"};
    for (int i = 0; i < 8; i++)
        if (api_field(op, sizes[i]))
            api_set_integer(c, sizes[i], 401 + i);
    api_fit(c);
    api_vary(c);
}

static void restore(ApiCall *c)
{
    for (int i = 0; i < MAX_BUFFERS; i++)
        if (c->memory[i])
            memcpy(c->memory[i], c->copy[i], c->size[i]);
}

static int same_outputs(const ApiCall *a, const ApiCall *b)
{
    for (int i = 0; i < MAX_BUFFERS; i++)
        if (a->memory[i] && (memcmp(a->memory[i], b->memory[i], a->size[i]) || !guard_check(a->memory[i])))
            return 0;
    return 1;
}

typedef struct Caller {
    int index;
    pool *shared;
    ApiCall *references;
    char wrong[256]; /* "" if all was well; asserts are for the main thread */
} Caller;

/* A caller runs every operation, starting with one of its own so that different operations meet, and between two of them a
 * failing call, whose text must be its own. */
static void *caller_main(void *arg)
{
    Caller *caller = arg;
    pool *own = pool_new(2, (pool_order)(caller->index % POOL_ORDERS));
    for (int i = 0; i < OPERATIONS && !caller->wrong[0]; i++) {
        const Operation *op = &operations[(i + caller->index * 5) % OPERATIONS];
        ApiCall c;
        begin(&c, op);
        for (int round = 0; round < ROUNDS; round++) {
            restore(&c);
            c.where.parallel_for = round == 0 ? pool_parallel_for : round == 1 ? serial_parallel_for : NULL;
            c.where.pool = own;
            if (round == 0 && caller->index % 3 == 0)
                c.where.pool = caller->shared;
            if (api_call(&c) || !same_outputs(&c, &caller->references[op - operations]))
                snprintf(caller->wrong, sizeof caller->wrong, "%s, round %d: %s", op->name, round, wf_error_detail());
        }
        char mine[32];
        c.where.threads = -1 - caller->index;
        snprintf(mine, sizeof mine, "threads = %d", c.where.threads);
        if (api_call(&c) != WF_INVALID || !strstr(wf_error_detail(), mine) || !strstr(wf_error_detail(), op->name))
            snprintf(caller->wrong, sizeof caller->wrong, "%s: not my text: %.200s", op->name, wf_error_detail());
        api_end(&c);
    }
    pool_free(own);
    return NULL;
}

START_TEST(many_callers)
{
    static ApiCall references[OPERATIONS];
    static Caller callers[CALLERS];
    pthread_t threads[CALLERS];
    pool *shared = pool_new(2, POOL_REVERSED);
    for (int o = 0; o < OPERATIONS; o++) {
        begin(&references[o], &operations[o]);
        references[o].where.parallel_for = serial_parallel_for;
        ck_assert_msg(api_call(&references[o]) == WF_OK, "%s", wf_error_detail());
    }
    memset(callers, 0, sizeof callers);
    for (int i = 0; i < CALLERS; i++) {
        callers[i].index = i;
        callers[i].shared = shared;
        callers[i].references = references;
        ck_assert_int_eq(pthread_create(&threads[i], NULL, caller_main, &callers[i]), 0);
    }
    for (int i = 0; i < CALLERS; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < CALLERS; i++)
        ck_assert_msg(!callers[i].wrong[0], "caller %d: %s", i, callers[i].wrong);
    for (int o = 0; o < OPERATIONS; o++)
        api_end(&references[o]);
    pool_free(shared);
}
END_TEST

/* parallel_for is given every piece of [0, n) exactly once, on whatever thread, and its pool argument. */
typedef struct Recorder {
    int64_t calls, pieces;
    int wrong;
} Recorder;

static void recording_parallel_for(void *pool_arg, int64_t n, void (*body)(void *, int64_t, int64_t), void *arg)
{
    Recorder *recorder = pool_arg;
    recorder->calls++;
    recorder->pieces += n;
    recorder->wrong |= n < 0 || !body;
    for (int64_t i = n; i-- > 0;)
        body(arg, i, i + 1);
    body(arg, 0, 0); /* an empty piece does nothing */
    body(arg, n, n);
}

START_TEST(parallel_for_is_used)
{
    for (int o = 0; o < OPERATIONS; o++) {
        ApiCall c, reference;
        Recorder recorder = {0};
        begin(&c, &operations[o]);
        begin(&reference, &operations[o]);
        c.where.parallel_for = recording_parallel_for;
        c.where.pool = &recorder;
        c.where.threads = 1; /* ignored with parallel_for */
        reference.where.parallel_for = serial_parallel_for;
        ck_assert_msg(api_call(&c) == WF_OK && api_call(&reference) == WF_OK, "%s", wf_error_detail());
        ck_assert_msg(recorder.calls > 0 && recorder.pieces > recorder.calls, "%s: not shared out", operations[o].name);
        ck_assert(!recorder.wrong);
        ck_assert_msg(same_outputs(&c, &reference), "%s", operations[o].name);
        api_end(&c);
        api_end(&reference);
    }
}
END_TEST

/* The number of threads, of OpenMP or of a pool, and the order of the pieces change no bit. */
START_TEST(any_number_of_threads)
{
    const Operation *op = &operations[_i];
    ApiCall c, reference;
    begin(&c, op);
    begin(&reference, op);
    reference.where.parallel_for = serial_parallel_for;
    ck_assert_msg(api_call(&reference) == WF_OK, "%s", wf_error_detail());
    for (int32_t threads = 0; threads <= 5; threads++) {
        restore(&c);
        c.where.parallel_for = NULL;
        c.where.threads = threads;
        ck_assert_msg(api_call(&c) == WF_OK && same_outputs(&c, &reference), "%s, %d threads", op->name, threads);
    }
    for (int order = 0; order < POOL_ORDERS; order++)
        for (int threads = 0; threads <= 3; threads += 3) {
            pool *p = pool_new(threads, (pool_order)order);
            restore(&c);
            c.where.parallel_for = pool_parallel_for;
            c.where.pool = p;
            ck_assert_msg(api_call(&c) == WF_OK && same_outputs(&c, &reference), "%s, order %d", op->name, order);
            pool_free(p);
        }
    api_end(&c);
    api_end(&reference);
}
END_TEST

/* Threads of a pool may be in any rounding mode (they inherit it from whoever made them): it changes no bit and is left as
 * found. */
static pthread_t caller_thread;

static int rounds_up(void) /* by its work: fegetround() looks at the x87 unit on x86 */
{
    const volatile float one = 1, little = 0x1p-30f;
    const volatile float sum = one + little;
    return sum > one;
}

static void check_worker_mode(void *wrong, int64_t begin, int64_t end)
{
    usleep(300); /* so that no thread takes all pieces */
    for (int64_t i = begin; i < end; i++)
        if (!pthread_equal(pthread_self(), caller_thread) && !rounds_up())
            __atomic_store_n((int *)wrong, 1, __ATOMIC_RELAXED);
}

START_TEST(workers_in_another_mode)
{
    const Operation *op = &operations[_i];
    ApiCall c, reference;
    int wrong = 0;
    begin(&c, op);
    begin(&reference, op);
    reference.where.parallel_for = serial_parallel_for;
    ck_assert_msg(api_call(&reference) == WF_OK, "%s", wf_error_detail());
    caller_thread = pthread_self();
    fesetround(FE_UPWARD);
    pool *p = pool_new(3, POOL_REVERSED);
    fesetround(FE_TONEAREST);
    for (int round = 0; round < 5; round++) { /* which thread gets which piece is chance */
        restore(&c);
        c.where.parallel_for = pool_parallel_for;
        c.where.pool = p;
        ck_assert_msg(api_call(&c) == WF_OK && same_outputs(&c, &reference), "%s: other bits", op->name);
        pool_parallel_for(p, 12, check_worker_mode, &wrong);
    }
    ck_assert_msg(!wrong, "%s changed the mode of a pool's thread", op->name);
    pool_free(p);
    api_end(&c);
    api_end(&reference);
}
END_TEST

Suite *threads_suite(void)
{
    Suite *s = suite_create("threads");
    TCase *t = tcase_create("threads");
    tcase_set_timeout(t, 120);
    tcase_add_test(t, many_callers);
    tcase_add_test(t, parallel_for_is_used);
    tcase_add_loop_test(t, any_number_of_threads, 0, OPERATIONS);
    tcase_add_loop_test(t, workers_in_another_mode, 0, OPERATIONS);
    suite_add_tcase(s, t);
    return s;
}
