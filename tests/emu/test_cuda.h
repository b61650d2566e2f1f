/* test_cuda.h - the suites that need the emulator: what they look at, no GPU shows. */
#ifndef TESTS_EMU_TEST_CUDA_H
#define TESTS_EMU_TEST_CUDA_H

#include <check.h>

Suite *cuda_meter_suite(void), *cuda_faults_suite(void), *cuda_schedules_suite(void);
Suite *cuda_sanitized_suite(void); /* for builds under a sanitizer */

void meter_print(void); /* docs/meter.md, to stdout */

#endif
