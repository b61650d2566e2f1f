/* The test program:  check [suite...]     runs all suites, or those named
 *                    check --list         prints their names
 *                    check --case "line"  runs one case (case.h), as failing tests print it
 *                    check --gpu suite... runs suites on a GPU, all at once, in new processes; prints SKIP where there is none
 *
 * WELFORD_TEST_QUICK=1 runs a subset. WELFORD_TEST_BACKEND=cuda runs the cases of norms and dropout on a GPU or the
 * emulator, WELFORD_TEST_PART=i/n the i-th of n parts of them. WELFORD_TEST_WORST=1 prints the worst error in units of the
 * bar of every operation, output and dtype; a file's name instead of 1 keeps what the table is made of. Tests run in forked
 * children (CK_FORK=no: in this process), so nothing here may call the library before: libgomp does not survive a fork. */
#define _GNU_SOURCE /* environ */
#include <check.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "compare.h"
#include "device.h"
#include "run.h"
#include "run_dropout.h"

#define SUITE(name) Suite *name##_suite(void);
#include "suites.def"
#undef SUITE

enum { PARTS = 4, MOST_PROCESSES = 128 };
static const struct { const char *name; Suite *(*make)(void); int parts; /* processes on a GPU */ } suites[] = {
#define SUITE(name) { #name, name##_suite, 1 },
#define SWEEP(name) { #name, name##_suite, PARTS },
#include "suites.def"
#undef SUITE
};
enum { SUITES = sizeof suites / sizeof *suites };

static int parts_of(const char *name)
{
    for (int i = 0; i < SUITES; i++)
        if (!strcmp(suites[i].name, name))
            return suites[i].parts;
    return 1;
}

static int repeat(const char *line)
{
    Case c;
    const char *error = case_parse(&c, line);
    static char message[4096];
    if (error) {
        fprintf(stderr, "%s\n", error);
        return 2;
    }
    if (op_norm(c.op) == DROPOUT) {
        error = run_dropout(&c, message, sizeof message) ? message : NULL;
        printf("%s\n", error ? error : "passes");
        return error != NULL;
    }
    Comparison results[OUTPUT_COUNT] = { { 0 } };
    error = run_case(&c, results);
    for (Output out = 0; out < OUTPUT_COUNT; out++)
        if (results[out].elements)
            printf("%-12s %9lld values, worst %.4f bars at %lld\n", output_name(out), (long long)results[out].elements,
                   results[out].worst, (long long)results[out].worst_at);
    printf("%s\n", error ? error : "passes");
    return error != NULL;
}

/* A process that has started CUDA does not fork: each suite is a new one, or several, which start CUDA for themselves. */
static int run_on_gpu(int count, char **names)
{
    const char *missing = device_missing(), *given = getenv("WELFORD_TEST_PART");
    pid_t pid[MOST_PROCESSES];
    int processes = 0, failed = 0, status;
    if (missing) {
        printf("SKIP: %s\n", missing);
        return 0;
    }
    setenv("WELFORD_TEST_BACKEND", "cuda", 1);
    setenv("CK_FORK", "no", 1);
    for (int i = 0; i < count; i++)
        for (int part = 0, parts = given ? 1 : parts_of(names[i]); part < parts && processes < MOST_PROCESSES; part++) {
            char text[32];
            snprintf(text, sizeof text, "%d/%d", part, parts);
            if (parts > 1)
                setenv("WELFORD_TEST_PART", text, 1);
            else if (!given)
                unsetenv("WELFORD_TEST_PART");
            char *const args[] = { "check", names[i], NULL };
            failed |= posix_spawn(&pid[processes++], "/proc/self/exe", NULL, NULL, args, environ);
        }
    for (int i = 0; i < processes; i++)
        failed |= wait(&status) < 0 || status;
    printf("%s on the GPU\n", failed ? "FAILED" : "passed");
    return failed != 0;
}

int main(int argc, char **argv)
{
    static char worst[] = "/tmp/welford-worst-XXXXXX";
    if (argc == 2 && !strcmp(argv[1], "--list")) {
        for (int i = 0; i < SUITES; i++)
            puts(suites[i].name);
        return 0;
    }
    if (argc == 3 && !strcmp(argv[1], "--case"))
        return repeat(argv[2]);

    if (argc > 1 && !strcmp(argv[1], "--gpu"))
        return run_on_gpu(argc - 2, argv + 2);

    SRunner *runner = srunner_create(NULL);
    for (int i = 0; i < SUITES && argc == 1; i++)
        srunner_add_suite(runner, suites[i].make());
    for (int arg = 1; arg < argc; arg++) {
        int i = 0;
        while (i < SUITES && strcmp(suites[i].name, argv[arg]))
            i++;
        if (i == SUITES) {
            fprintf(stderr, "no suite '%s'; usage: check [suite...] | --gpu suite... | --list | --case \"line\"\n", argv[arg]);
            return 2;
        }
        srunner_add_suite(runner, suites[i].make());
    }
    const char *table = getenv("WELFORD_TEST_WORST");
    const bool temporary = table && !strcmp(table, "1");
    if (temporary) {
        int file = mkstemp(worst);
        if (file >= 0)
            close(file);
        setenv("WELFORD_TEST_WORST", table = worst, 1);
    }
    srunner_run_all(runner, CK_SILENT);
    if (table)
        worst_print(table);
    if (temporary)
        unlink(worst);
    const int run = srunner_ntests_run(runner), failed = srunner_ntests_failed(runner);
    if (argc == 2)
        printf("%s %s: ", argv[1], getenv("WELFORD_TEST_PART") ? getenv("WELFORD_TEST_PART") : "all");
    srunner_print(runner, CK_ENV);
    srunner_free(runner);
    if (run == 0)
        fprintf(stderr, "no test was run\n");
    return run == 0 || failed != 0;
}
