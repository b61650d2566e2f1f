/* Calls of CUDA's runtime that fail: the operation says WF_DEVICE with CUDA's own words, touches nothing but its outputs and
 * workspace, leaves the caller's pending error alone, and works the next time. */
#include <check.h>
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device_call.h"
#include "emu_control.h"
#include "test_cuda.h"

enum { NO_CALL = 0 };

static const cudaError_t errors[] = {cudaErrorLaunchFailure, cudaErrorMemoryAllocation, cudaErrorLaunchOutOfResources};

/* The call's outputs, one behind the other. */
static unsigned char *outputs_of(const DeviceCall *d, size_t *size)
{
    unsigned char *all = NULL;
    *size = 0;
    for (int i = 0; i < WORKSPACE; i++)
        if (device_call_size(d, i) && device_call_output(d, i)) {
            all = realloc(all, *size + device_call_size(d, i));
            device_call_fetch(d, i, all + *size);
            *size += device_call_size(d, i);
        }
    return all;
}

static void expect_success(DeviceCall *d, const unsigned char *expected, size_t expected_size, const char *when)
{
    device_call_spoil(d);
    if (device_call(d) != WF_OK)
        ck_abort_msg("%s %s: %s", d->line, when, wf_error_detail());
    size_t         size;
    unsigned char *outputs = outputs_of(d, &size);
    if (size != expected_size || memcmp(outputs, expected, size))
        ck_abort_msg("%s: other results %s", d->line, when);
    free(outputs);
}

static void expect_device(const DeviceCall *d, wf_status status, long k, cudaError_t error, const char *when)
{
    const char *text = wf_error_detail(), *damaged = device_call_damage(d);
    if (status != WF_DEVICE)
        ck_abort_msg("%s%s: %s although call %ld of the runtime fails", d->line, when,
                     wf_status_string(status), k);
    if (strncmp(text, d->api.op->name, strlen(d->api.op->name)) || !strstr(text, cudaGetErrorString(error)))
        ck_abort_msg("%s%s: the text is \"%s\" where call %ld fails with \"%s\"", d->line, when, text, k,
                     cudaGetErrorString(error));
    if (damaged)
        ck_abort_msg("%s%s: %s was written to although call %ld fails", d->line, when, damaged, k);
}

static void expect_failure(DeviceCall *d, long k, cudaError_t error, const char *when)
{
    emu_fail_call(k, error);
    const wf_status status = device_call(d);
    emu_fail_call(NO_CALL, cudaSuccess);
    expect_device(d, status, k, error, when);
}

static void every_call_fails(DeviceCall *d)
{
    size_t         size;
    const long     before = emu_calls();
    const wf_status status = device_call(d);
    const long     calls = emu_calls() - before;
    unsigned char *expected = outputs_of(d, &size);
    if (status != WF_OK || calls < 2)
        ck_abort_msg("%s: %s after %ld calls of the runtime", d->line, wf_error_detail(), calls);
    for (long k = 1; k <= calls; k++) {
        expect_failure(d, k, errors[k % 3], "");
        ck_assert_int_eq(cudaPeekAtLastError(), cudaSuccess);
        expect_success(d, expected, size, "after a failure");
    }

    /* what the caller has not asked for yet is his, and no failure of ours */
    ck_assert_int_eq(cudaSetDevice(1000), cudaErrorInvalidDevice);
    expect_success(d, expected, size, "with the caller's error pending");
    ck_assert_int_eq(cudaPeekAtLastError(), cudaErrorInvalidDevice);
    expect_failure(d, calls, cudaErrorLaunchFailure, ", with the caller's error pending");
    ck_assert_int_ne(cudaGetLastError(), cudaSuccess);

    /* a dry run loads the kernels, which may fail, too */
    device_call_spoil(d);
    free(expected);
    expected = outputs_of(d, &size);
    d->api.where.flags = WF_DRY_RUN;
    const long first = emu_calls();
    ck_assert_int_eq(device_call(d), WF_OK);
    const long dry_calls = emu_calls() - first;
    for (long k = 1; k <= dry_calls; k++) {
        size_t now_size;
        expect_failure(d, k, errors[k % 3], ", dry run");
        unsigned char *now = outputs_of(d, &now_size);
        if (memcmp(now, expected, size))
            ck_abort_msg("%s: a dry run wrote to the outputs", d->line);
        free(now);
    }
    ck_assert_int_eq(cudaPeekAtLastError(), cudaSuccess);
    d->api.where.flags = 0;
    free(expected);
}

START_TEST(kth_call_fails) { each_variant(_i, every_call_fails); }
END_TEST

/* ---- devices ---- */

static struct emu_device h100;

static void without_a_driver(DeviceCall *d)
{
    for (int flags = 0; flags <= WF_DRY_RUN; flags += WF_DRY_RUN) {
        d->api.where.flags = (uint32_t)flags;
        emu_set_device((struct emu_device){.count = 0});
        const size_t    size = d->api.op->workspace(d->api.what, WF_CUDA);
        const wf_status status = device_call(d);
        emu_set_device(h100);
        expect_device(d, status, 1, cudaErrorInsufficientDriver, ", no driver");
        ck_assert_uint_eq(size, d->api.where.workspace_size);
    }
    d->api.where.flags = 0;
    ck_assert_int_eq(cudaPeekAtLastError(), cudaSuccess);
    ck_assert_int_eq(device_call(d), WF_OK);
}

START_TEST(no_driver) { each_variant(_i, without_a_driver); }
END_TEST

/* The build has CUDA for every operation, so a device makes it the default. */
START_TEST(default_backend)
{
    bool complete = true;
    for (Op op = 0; op < OP_COUNT; op++)
        complete &= wf_variant(op_name(op), WF_CUDA, 0) != NULL;
    ck_assert_int_eq(wf_default_backend(), complete ? WF_CUDA : WF_CPU);
    const struct emu_device others[] = {{.count = 0}, {1, 7, 5, 40, 48 << 10, 64 << 10}};
    for (int i = 0; i < 2; i++) {
        emu_set_device(others[i]);
        ck_assert_int_eq(wf_default_backend(), WF_CPU);
    }
    emu_set_device(h100);
    for (long k = 1; k <= 3; k++) {
        emu_fail_call(k, cudaErrorUnknown);
        ck_assert_int_eq(wf_default_backend(), WF_CPU);
        emu_fail_call(NO_CALL, cudaSuccess);
        ck_assert_int_eq(cudaPeekAtLastError(), cudaSuccess);
    }
}
END_TEST

/* The caller's device is used, and left current. */
static void on_the_second_device(DeviceCall *d)
{
    int device = -1;
    ck_assert_int_eq(device_call(d), WF_OK);
    cudaGetDevice(&device);
    ck_assert_int_eq(device, 1);
}

START_TEST(second_device)
{
    struct emu_device two = h100;
    two.count = 2;
    emu_set_device(two);
    cudaSetDevice(1);
    each_variant(_i, on_the_second_device);
    cudaSetDevice(0);
    emu_set_device(h100);
}
END_TEST

/* Older devices: no clusters on sm_80, and below the least architecture of the build nothing. */
static void on_older_devices(DeviceCall *d)
{
    emu_set_device((struct emu_device){1, 7, 5, 40, 48 << 10, 64 << 10});
    ck_assert_int_eq(device_call(d), WF_UNSUPPORTED);
    ck_assert_msg(strstr(wf_error_detail(), "sm_75") != NULL, "%s", wf_error_detail());
    emu_set_device((struct emu_device){1, 8, 0, 108, 48 << 10, 163 << 10});
    const wf_status status = device_call(d);
    if (status != WF_OK && status != WF_UNSUPPORTED)
        ck_abort_msg("%s, sm_80: %s", d->line, wf_error_detail());
    d->api.where.variant = NULL;
    if (device_call(d) != WF_OK)
        ck_abort_msg("%s, sm_80: %s", d->line, wf_error_detail());
    emu_set_device(h100);
}

START_TEST(older_devices) { each_variant(_i, on_older_devices); }
END_TEST

Suite *cuda_faults_suite(void)
{
    Suite *suite = suite_create("cuda_faults");
    TCase *tcase = tcase_create("cuda_faults");
    h100 = emu_device();
    tcase_set_timeout(tcase, 300);
    tcase_add_loop_test(tcase, kth_call_fails, 0, OP_COUNT);
    tcase_add_loop_test(tcase, no_driver, 0, OP_COUNT);
    tcase_add_loop_test(tcase, second_device, 0, OP_COUNT);
    tcase_add_loop_test(tcase, older_devices, 0, OP_COUNT);
    tcase_add_test(tcase, default_backend);
    suite_add_tcase(suite, tcase);
    return suite;
}
