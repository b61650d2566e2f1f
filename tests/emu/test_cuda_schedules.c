/* What the oracle says, and the same bits in whatever order threads and blocks run, however many at a time, however much of
 * the work a block does, on a device of any size, wherever the buffers begin, in place or not, alone or in a batch. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device_call.h"
#include "emu_control.h"
#include "run.h"
#include "run_dropout.h"
#include "sweep.h"
#include "test_cuda.h"

static const struct {
    const char         *name;
    struct emu_schedule schedule;
    int                 multiprocessors; /* 0: as they are */
    int                 misalign;        /* elements */
    bool                in_place;
} ways[] = {
    {"in a random order, on two threads, in place", {EMU_RANDOM, 9, 3, 2, 0}, 0, 0, true}, /* first where a case is large */
    {"in reverse order, all in one block, not aligned", {EMU_REVERSE, 1, 1, 1, 1}, 0, 1, false},
    {"in a random order, in two blocks, not aligned, in place", {EMU_RANDOM, 7, 2, 1, 2}, 0, 3, true},
    {"in reverse order, two clusters at a time on two threads", {EMU_REVERSE, 1, 2, 2, 0}, 0, 0, false},
    {"on a device of 7 multiprocessors, all in one block", {EMU_LINEAR, 1, 1, 1, 1}, 7, 4, false},
};
enum { WAYS = sizeof ways / sizeof *ways, LARGE = 12000, JUDGED = 4000 /* elements */ };

static void go(int way)
{
    static struct emu_device device;
    if (!device.count)
        device = emu_device();
    struct emu_device other = device;
    if (way >= 0 && ways[way].multiprocessors)
        other.multiprocessors = ways[way].multiprocessors;
    emu_set_device(other);
    emu_set_schedule(way < 0 ? (struct emu_schedule){EMU_LINEAR, 1, 1, 1, 0} : ways[way].schedule);
}

static void same_bits(const Case *c)
{
    Problem    *p = problem_new(c);
    Raw         linear[OUTPUT_COUNT], other[OUTPUT_COUNT];
    const char *error = p->count < JUDGED ? run_case(c, NULL) : NULL;
    memset(linear, 0, sizeof linear);
    error = error ? error : run_once(c, p, c->variant, linear, NULL);
    for (int way = 0; way < WAYS && !error; way++) {
        Case changed = *c;
        changed.misalign = ways[way].misalign;
        changed.inplace = ways[way].in_place * (c->quantize ? 2 : 1); /* bytes are never in x, but a sum in the residual */
        go(way);
        error = run_once(&changed, p, c->variant, other, NULL);
        if (!error)
            error = raw_differs(c, linear, other, ways[way].name);
        raw_free(other);
    }
    go(-1);
    if (p->count < LARGE && !error && c->drop == 0) /* dropout knows which row it is */
        check_alone(c);
    raw_free(linear);
    problem_free(p);
    if (error)
        ck_abort_msg("%s", error);
}

static void same_dropout(const Case *c)
{
    for (int way = -1; way < WAYS; way++) {
        go(way);
        check_dropout(c); /* bit for bit what it must be */
    }
    go(-1);
}

START_TEST(schedules)
{
    const char *name;
    Case        c = case_of(cuda_cases[_i]);
    c.backend = WF_CUDA;
    for (int v = 0; in_build(&c) && (name = wf_variant(op_name(c.op), WF_CUDA, v)); v++) {
        snprintf(c.variant, sizeof c.variant, "%s", name);
        if (device_call_takes(&c))
            (op_norm(c.op) == DROPOUT ? same_dropout : same_bits)(&c);
    }
}
END_TEST

Suite *cuda_schedules_suite(void)
{
    Suite *suite = suite_create("cuda_schedules");
    TCase *tcase = tcase_create("cuda_schedules");
    tcase_set_timeout(tcase, 300);
    tcase_add_loop_test(tcase, schedules, 0, cuda_case_count);
    suite_add_tcase(suite, tcase);
    return suite;
}
