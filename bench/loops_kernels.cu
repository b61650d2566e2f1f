// loops_kernels.cu - the same loops on the device, as a caller writes them: 16 bytes a thread, grid-stride.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include "loops.h"

#define WF_REAL float
#include "../src/common/activation.h"

namespace {

constexpr int kThreads = 256, kBlocks = 8192;

template <class T> struct alignas(16) Vector { T v[16 / sizeof(T)]; };

__device__ float scale_at(const void *scale, wf_dtype dtype, int64_t i)
{
    if (dtype == WF_F32)
        return static_cast<const float *>(scale)[i];
    return dtype == WF_BF16 ? float(static_cast<const __nv_bfloat16 *>(scale)[i]) : float(static_cast<const __half *>(scale)[i]);
}

template <class T> __device__ T one(const ScaledSum &s, int64_t i, T a, T b)
{
    float v = float(a);
    if (s.row_scale)
        v *= s.row_scale[i / s.cols];
    if (s.col_scale)
        v *= scale_at(s.col_scale, s.scale_dtype, i % s.cols);
    return T(s.b ? v + float(b) : v);
}

__device__ float modulated(const Activated &s, int64_t at, float a)
{
    if (!s.scale && !s.shift)
        return a;
    const int64_t row = at / s.cols, i = s.share ? row / s.share * s.cols + at % s.cols : row;
    const float factor = s.scale ? s.offset + scale_at(s.scale, s.scale_dtype, i) : 1;
    return a * factor + (s.shift ? scale_at(s.shift, s.scale_dtype, i) : 0);
}

template <class T> __device__ T one(const Activated &s, int64_t i, T a, T b)
{
    if (s.dy)
        return T(float(b) * activation_derivative(s.kind, s.slope, float(a)));
    const float z = modulated(s, i, float(a));
    return T(activation_value(s.kind, s.slope, s.b ? z + float(b) : z));
}

__device__ int64_t count_of(const ScaledSum &s) { return s.rows * s.cols; }
__device__ int64_t count_of(const Activated &s) { return s.count; }
__device__ const void *second(const ScaledSum &s) { return s.b; }
__device__ const void *second(const Activated &s) { return s.dy ? s.dy : s.b; }

template <class T, class Loop> __global__ void run(const Loop s)
{
    constexpr int64_t kWide = 16 / sizeof(T);
    const int64_t count = count_of(s), step = int64_t(gridDim.x) * blockDim.x;
    const int64_t first = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const T *a = static_cast<const T *>(s.a), *b = static_cast<const T *>(second(s) ? second(s) : s.a);
    T *out = static_cast<T *>(s.out);
    for (int64_t i = first; i < count / kWide; i += step) {
        const Vector<T> p = reinterpret_cast<const Vector<T> *>(a)[i];
        const Vector<T> q = b != a ? reinterpret_cast<const Vector<T> *>(b)[i] : p;
        Vector<T> sum;
        for (int k = 0; k < kWide; k++)
            sum.v[k] = one(s, i * kWide + k, p.v[k], q.v[k]);
        reinterpret_cast<Vector<T> *>(out)[i] = sum;
    }
    for (int64_t i = count / kWide * kWide + first; i < count; i += step)
        out[i] = one(s, i, a[i], b[i]);
}

template <class Loop> void start(const Loop &s, int64_t count, struct CUstream_st *stream)
{
    const int64_t vectors = count / (s.dtype == WF_F32 ? 4 : 8), wanted = vectors / kThreads + 1;
    const int blocks = int(wanted < kBlocks ? wanted : kBlocks);
    if (s.dtype == WF_F32)
        run<float><<<blocks, kThreads, 0, stream>>>(s);
    else if (s.dtype == WF_BF16)
        run<__nv_bfloat16><<<blocks, kThreads, 0, stream>>>(s);
    else
        run<__half><<<blocks, kThreads, 0, stream>>>(s);
}

} // namespace

void scaled_sum_cuda(const ScaledSum *s, struct CUstream_st *stream) { start(*s, s->rows * s->cols, stream); }
void activated_cuda(const Activated *s, struct CUstream_st *stream) { start(*s, s->count, stream); }
