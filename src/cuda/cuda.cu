/* The CUDA back-end's table: which variant runs on the current device, and what CUDA says where it refuses. */
#include "cuda.h"

#include <string.h>

extern "C" {
#include "common/fpmode.h"
}

#ifndef WF_CUDA_ARCH_MIN /* of the architectures that are built, major * 10 + minor */
#define WF_CUDA_ARCH_MIN 80
#endif

template <class Problem, class = void> struct has_addition : std::false_type {
};
template <class Problem> struct has_addition<Problem, std::void_t<decltype(Problem::add)>> : std::true_type {
};
template <class Problem, class = void> struct has_modulation : std::false_type {
};
template <class Problem> struct has_modulation<Problem, std::void_t<decltype(Problem::mod)>> : std::true_type {
};

/* A failure of ours is reported by its return code. The runtime remembers it too, for cudaGetLastError(): taken back, unless
 * the caller has an error of its own pending there. */
struct PendingError {
    const bool callers;
    PendingError() : callers(cudaPeekAtLastError() != cudaSuccess) {}
    ~PendingError()
    {
        if (!callers)
            (void)cudaGetLastError();
    }
};

/* major * 10 + minor of the current device. */
static cudaError_t current_arch(int *arch)
{
    int         device, major = 0, minor = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess)
        error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (error == cudaSuccess)
        error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    *arch = major * 10 + minor;
    return error;
}

static bool usable(void)
{
    const PendingError pending;
    int                arch;
    return current_arch(&arch) == cudaSuccess && arch >= WF_CUDA_ARCH_MIN;
}

static wf_status device_failed(struct call *call, cudaError_t error)
{
    return call_fail(call, WF_DEVICE, "%s: %s", cudaGetErrorName(error), cudaGetErrorString(error));
}

/* Enough for whichever variant runs: that is for the device to decide, which may not be there yet. */
template <class Problem> static size_t most_workspace(const Variant<Problem> *variants, const Problem &p)
{
    size_t most = 0;
    for (const Variant<Problem> *v = variants; v->name; v++) {
        const size_t size = v->takes(p) ? v->workspace(p) : 0;
        most = size > most ? size : most;
    }
    return most ? most + CALL_WORKSPACE_SLACK : 0;
}

/* Nor does a caller who asks for the size say whether something will be added, or modulated. */
template <class Problem> static size_t workspace_size(const Variant<Problem> *variants, const Problem &p)
{
    size_t most = most_workspace(variants, p);
    if constexpr (has_addition<Problem>::value) {
        Problem other = p;
        other.add.present = !p.add.present;
        const size_t size = most_workspace(variants, other);
        most = size > most ? size : most;
    }
    if constexpr (has_modulation<Problem>::value) {
        Problem other = p;
        other.mod.present = p.mod.possible && !p.mod.present;
        const size_t size = most_workspace(variants, other);
        most = size > most ? size : most;
    }
    return most;
}

template <class Problem> static wf_status solve(const Variant<Problem> *variants, const Problem &p, struct call *call)
{
    const char *wanted = call->exec.variant;
    void       *workspace;
    const Variant<Problem> *v = variants;
    while (v->name && !(wanted ? strcmp(v->name, wanted) == 0 : v->takes(p)))
        v++;
    if (!wanted && !v->name)
        return call_fail(call, WF_UNSUPPORTED, "no kernel of the CUDA back-end takes this case");
    if (!v->name || !v->takes(p))
        return call_fail(call, WF_UNSUPPORTED, "where.variant = \"%s\" does not take this case", wanted);
    if (call_workspace(call, workspace_size(variants, p), &workspace))
        return call->status;

    const PendingError pending;
    int                arch;
    cudaError_t        error = current_arch(&arch);
    if (error != cudaSuccess)
        return device_failed(call, error);
    if (wanted && v->arch > arch)
        return call_fail(call, WF_UNSUPPORTED, "where.variant = \"%s\" needs sm_%d, the device is sm_%d", wanted, v->arch, arch);
    while (v->name && !(v->takes(p) && v->arch <= arch))
        v++;
    if (!v->name || arch < WF_CUDA_ARCH_MIN)
        return call_fail(call, WF_UNSUPPORTED, "the device is sm_%d, this build begins at sm_%d", arch, WF_CUDA_ARCH_MIN);
    call->variant = v->name;
    call->why = wanted ? "asked" : "best";

    Run run = {call->exec.stream, static_cast<char *>(workspace), call->dry_run, cudaSuccess};
    const uint64_t caller = wf_fpmode_enter(); /* constants are rounded on the host */
    v->launch(p, run);
    if constexpr (has_modulation<Problem>::value)
        if (run.load_only && p.mod.possible && !p.mod.present) { /* of a dry run without buffers nobody knows */
            Problem other = p;
            other.mod.present = true;
            for (v = variants; v->name && !(v->takes(other) && v->arch <= arch);)
                v++;
            if (v->name)
                v->launch(other, run);
        }
    wf_fpmode_leave(caller);
    return run.error == cudaSuccess ? WF_OK : device_failed(call, run.error);
}

template <class Problem> static const char *variant_name(const Variant<Problem> *variants, int i)
{
    for (int k = 0; k < i && variants->name; k++)
        variants++;
    return variants->name;
}

#define PROBLEM(problem)                                                                                               \
    static wf_status problem##_solve(const struct problem *p, struct call *call)                                       \
    {                                                                                                                  \
        return solve(problem##_variants, *p, call);                                                                    \
    }                                                                                                                  \
    static size_t problem##_workspace(const struct problem *p)                                                         \
    {                                                                                                                  \
        return workspace_size(problem##_variants, *p);                                                                 \
    }                                                                                                                  \
    static const char *problem##_variant(int i)                                                                        \
    {                                                                                                                  \
        return variant_name(problem##_variants, i);                                                                    \
    }
#include "ops.def"

extern "C" const struct backend wf_cuda_backend = {
#define PROBLEM(problem) problem##_solve, problem##_workspace, problem##_variant,
#include "ops.def"
    usable,
};
