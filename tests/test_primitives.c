/* What kernels rely on (src/cuda/prim/device.cuh) holds on this GPU: the kernels by which `make check-emu` holds the emulator
 * to the same contract. Run by WELFORD_TEST_BACKEND=cuda. */
#include <check.h>
#include <string.h>

#include "device.h"
#include "sweep.h"

Suite *primitives_suite(void);

#ifdef WF_TEST_CUDA

#include <cuda_runtime_api.h>

#include "emu/primitives.h"

static bool has_clusters(void)
{
    int major = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
    return major >= 9;
}

START_TEST(primitive)
{
    const char *name = primitive_name(_i);
    if (!device_present() || (strstr(name, "of a cluster") && !has_clusters()))
        return;
    const char *failure = primitive_failure(_i);
    if (failure)
        ck_abort_msg("%s: %s", name, failure);
}
END_TEST

#endif

Suite *primitives_suite(void)
{
    Suite *s = suite_create("primitives");
    TCase *t = tcase_create("primitives");
#ifdef WF_TEST_CUDA
    int count = 0;
    while (primitive_name(count))
        count++;
    if (tested_backend() == WF_CUDA)
        tcase_add_loop_test(t, primitive, 0, count);
#endif
    suite_add_tcase(s, t);
    return s;
}
