/* The emulator's own test program:  check_cuda [suite...]   runs all suites but sanitized, or those named
 *                                  check_cuda --meter     prints the meter's table */
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "test_cuda.h"

static const struct { const char *name; Suite *(*make)(void); } suites[] = {
    {"cuda_meter", cuda_meter_suite}, {"cuda_faults", cuda_faults_suite},
    {"cuda_schedules", cuda_schedules_suite}, {"cuda_sanitized", cuda_sanitized_suite},
};
enum { SUITES = sizeof suites / sizeof *suites, SANITIZED = SUITES - 1 };

int main(int argc, char **argv)
{
    if (argc == 2 && !strcmp(argv[1], "--meter")) {
        meter_print();
        return 0;
    }
    SRunner *runner = srunner_create(NULL);
    for (int i = 0; i < SUITES; i++) {
        bool wanted = argc == 1 && i != SANITIZED;
        for (int arg = 1; arg < argc; arg++)
            wanted |= !strcmp(argv[arg], suites[i].name);
        if (wanted)
            srunner_add_suite(runner, suites[i].make());
    }
    srunner_run_all(runner, CK_ENV);
    const int run = srunner_ntests_run(runner), failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    if (run == 0)
        fprintf(stderr, "no test was run\n");
    return run == 0 || failed != 0;
}
