/* The CUDA back-end of a build without the CUDA toolkit: every call is unsupported, and there are no variants. */
#include "call.h"

#define PROBLEM(problem)                                                                                               \
    static wf_status problem(const struct problem *p, struct call *call)                                               \
    {                                                                                                                  \
        (void)p;                                                                                                       \
        return call_fail(call, WF_UNSUPPORTED, "where.backend = WF_CUDA, but this build has no CUDA back-end");        \
    }                                                                                                                  \
    static size_t problem##_workspace(const struct problem *p)                                                         \
    {                                                                                                                  \
        (void)p;                                                                                                       \
        return 0;                                                                                                      \
    }                                                                                                                  \
    static const char *problem##_variant(int i)                                                                        \
    {                                                                                                                  \
        (void)i;                                                                                                       \
        return NULL;                                                                                                   \
    }
#include "ops.def"

static bool usable(void)
{
    return false;
}

const struct backend wf_cuda_backend = {
#define PROBLEM(problem) .problem = problem, .problem##_workspace = problem##_workspace, .problem##_variant = problem##_variant,
#include "ops.def"
    .usable = usable,
};
