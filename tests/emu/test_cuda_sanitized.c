/* Every variant's cases twice, for builds in which a sanitizer looks on: TSan reports two accesses that nothing orders, ASan and
 * UBSan what lies outside of arrays and of the language. In both orders, as TSan needs it for large blocks (races.cpp); the
 * second time in one block, which so does all rows or tiles. */
#include <check.h>
#include <stdio.h>

#include "device_call.h"
#include "emu_control.h"
#include "sweep.h"
#include "test_cuda.h"

enum { MOST = 170000 }; /* elements */

static bool is_small(const Case *c)
{
    return (row_wise(op_norm(c->op)) ? c->rows * c->cols : c->n * c->c * c->hw) <= MOST;
}

START_TEST(sanitized)
{
    const char *name;
    Case        c = case_of(cuda_cases[_i / 2]);
    if (!is_small(&c) || !in_build(&c))
        return;
    emu_set_schedule(_i % 2 ? (struct emu_schedule){EMU_REVERSE, 1, 1, 1, 1} : (struct emu_schedule){EMU_LINEAR, 1, 1, 1, 0});
    for (int v = 0; (name = wf_variant(op_name(c.op), WF_CUDA, v)); v++) {
        DeviceCall d;
        snprintf(c.variant, sizeof c.variant, "%s", name);
        if (!device_call_takes(&c))
            continue;
        device_call_begin(&d, &c);
        const wf_status status = device_call(&d);
        device_call_end(&d);
        if (status != WF_OK)
            ck_abort_msg("%s: %s", d.line, wf_error_detail());
        printf("%s\n", d.line); /* so that the line behind the last is that of a report */
        fflush(stdout);
    }
}
END_TEST

Suite *cuda_sanitized_suite(void)
{
    Suite *suite = suite_create("cuda_sanitized");
    TCase *tcase = tcase_create("cuda_sanitized");
    tcase_set_timeout(tcase, 300);
    tcase_add_loop_test(tcase, sanitized, 0, 2 * cuda_case_count);
    suite_add_tcase(suite, tcase);
    return suite;
}
