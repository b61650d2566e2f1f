// From a problem to a launch: variant lists, and kernels for the dtypes of a call.
//
// | primitive                | contract                                                                                    |
// |--------------------------|---------------------------------------------------------------------------------------------|
// | Variant<Problem>         | a line of a list, most special first; the list ends with a NULL name                        |
// | Run                      | where a variant's launches go                                                               |
// | start(run, cfg, kernel,  | enqueues; where run.load_only, only loads the kernel. The first failure of a run sticks: no |
// |       params)            | later launch is tried                                                                       |
// | grid_for(work)           | blocks for `work` blocks' work, which the kernel takes in strides of the grid               |
// | with_dtypes(x, w, f)     | f(T(), W()) for the element types                                                           |
// | with_sum_dtypes(x, a, f) | f(T(), A()) for those of x and of its sum with a residual                                   |
//
// takes() and workspace() look at the problem alone, never at buffers or the device.
#pragma once
#include "vec.cuh"

struct Run {
    cudaStream_t stream;
    char        *workspace; // of at least the size asked for, aligned to 64 bytes
    bool         load_only;
    cudaError_t  error;
};

template <class Problem> struct Variant {
    const char *name;
    int         arch; // major * 10 + minor of the least device that has what it needs
    bool (*takes)(const Problem &);
    size_t (*workspace)(const Problem &);
    void (*launch)(const Problem &, Run &);
};

template <class P> void start(Run &run, dev::LaunchCfg cfg, void (*kernel)(P), const P &params)
{
    if (run.error != cudaSuccess)
        return;
    cudaFuncAttributes ignored;
    cfg.stream = run.stream;
    run.error = run.load_only ? cudaFuncGetAttributes(&ignored, dev::entry_point(kernel)) : dev::launch(cfg, kernel, params);
}

// Enough for eight rounds of blocks on the largest device.
inline unsigned grid_for(int64_t work)
{
    return dev::strided_grid((unsigned)smallest<int64_t>(work, 1 << 14));
}

enum class Element { F32, F16, BF16, F64 }; // as wf_dtype

// WF_FEW_DTYPES: a build under a sanitizer, in which an instance of a kernel takes seconds to compile, has two of them.
template <class F> void with_dtypes(Element x, Element w, F f)
{
#ifdef WF_FEW_DTYPES
    (void)w;
    return x == Element::F32 ? f(float(), float()) : f(__nv_bfloat16(), float());
#else
    switch (x) {
    case Element::F32: return f(float(), float());
    case Element::F64: return f(double(), double());
    case Element::F16: return w == Element::F32 ? f(__half(), float()) : f(__half(), __half());
    case Element::BF16: return w == Element::F32 ? f(__nv_bfloat16(), float()) : f(__nv_bfloat16(), __nv_bfloat16());
    }
#endif
}

template <class F> void with_sum_dtypes(Element x, Element sum, F f)
{
    with_dtypes(x, Element::F32, [&](auto of_x, auto) {
        if constexpr (sizeof(of_x) == 2)
            if (sum == Element::F32)
                return f(of_x, float());
        f(of_x, of_x);
    });
}
