/* Version, statuses, the error text, and the table of back-ends. */
#include <stdio.h>
#include <string.h>

#include "call.h"

uint32_t wf_version(void)
{
    return WF_VERSION;
}

const char *wf_status_string(wf_status status)
{
    switch (status) {
    case WF_OK: return "ok";
    case WF_INVALID: return "invalid";
    case WF_UNSUPPORTED: return "unsupported";
    case WF_WORKSPACE: return "workspace";
    case WF_DEVICE: return "device";
    }
    return "unknown status";
}

/* A default that refuses some operations would be none. */
static bool cuda_has_every_problem(void)
{
#define PROBLEM(problem)                                                                                               \
    if (!wf_cuda_backend.problem##_variant(0))                                                                         \
        return false;
#include "ops.def"
    return true;
}

wf_backend wf_default_backend(void)
{
    return cuda_has_every_problem() && wf_cuda_backend.usable() ? WF_CUDA : WF_CPU;
}

const char *wf_variant(const char *operation, wf_backend backend, int i)
{
    if (!operation || i < 0 || (backend != WF_CPU && backend != WF_CUDA))
        return NULL;
    const struct backend *b = backend == WF_CPU ? &wf_cpu_backend : &wf_cuda_backend;
#define OPERATION(name, problem)                                                                                       \
    if (strcmp(operation, #name) == 0)                                                                                 \
        return b->problem##_variant(i);
#include "ops.def"
    return NULL;
}
