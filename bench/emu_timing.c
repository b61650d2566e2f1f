/* emu_timing.c - events and graphs for the emulated device, so that the tool's CUDA half runs without a GPU. What is
 * captured is executed at once, a replay does nothing, and events read the host's clock: no time here means anything. */
#include <cuda_runtime_api.h>
#include <stdlib.h>

#include "bench.h"
#include "composed_kernels.h"
#include "data.h"
#include "loops.h"

/* No cuBLAS works on an emulated device, so these are never called. */
void composed_multiply(int n, const float *a, const float *b, float *out, struct CUstream_st *stream)
{
    (void)n, (void)a, (void)b, (void)out, (void)stream;
}

void composed_rsqrt(int n, float eps, float *v, struct CUstream_st *stream) { (void)n, (void)eps, (void)v, (void)stream; }

static void *taken(const void *device, int64_t count, wf_dtype dtype)
{
    const size_t size = (size_t)count * dtype_size(dtype);
    void *host = device ? malloc(size) : NULL;
    if (host)
        gpu_take(host, device, size);
    return host;
}

/* The loops' own kernels are not for the emulator: the same on the host. */
void scaled_sum_cuda(const ScaledSum *s, struct CUstream_st *stream)
{
    const int64_t count = s->rows * s->cols;
    void *const a = taken(s->a, count, s->dtype), *const b = taken(s->b, count, s->dtype);
    void *const by_row = taken(s->row_scale, s->rows, WF_F32), *const by_col = taken(s->col_scale, s->cols, s->scale_dtype);
    ScaledSum host = *s;
    (void)stream;
    host.a = host.out = a, host.b = b, host.row_scale = by_row, host.col_scale = by_col;
    scaled_sum(&host, 1);
    gpu_put(s->out, a, (size_t)count * dtype_size(s->dtype));
    free(a), free(b), free(by_row), free(by_col);
}

void activated_cuda(const Activated *s, struct CUstream_st *stream)
{
    void *const a = taken(s->a, s->count, s->dtype), *const b = taken(s->b, s->count, s->dtype);
    void *const dy = taken(s->dy, s->count, s->dtype);
    const int64_t rows = s->cols ? s->count / s->cols : 0, pairs = s->share ? rows / s->share * s->cols : rows;
    void *const scale = taken(s->scale, pairs, s->scale_dtype), *const shift = taken(s->shift, pairs, s->scale_dtype);
    Activated host = *s;
    (void)stream;
    host.a = host.out = a, host.b = b, host.dy = dy, host.scale = scale, host.shift = shift;
    activated(&host, 1);
    gpu_put(s->out, a, (size_t)s->count * dtype_size(s->dtype));
    free(a), free(b), free(dy), free(scale), free(shift);
}

static double time_of[2];
static int    events;

cudaError_t cudaEventCreate(cudaEvent_t *event)
{
    *event = (cudaEvent_t)(void *)&time_of[events++ % 2];
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    (void)stream;
    *(double *)(void *)event = now();
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) { return (void)event, cudaSuccess; }

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin, cudaEvent_t end)
{
    *milliseconds = 1e3f * (float)(*(double *)(void *)end - *(double *)(void *)begin) + 1e-3f;
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
    return (void)stream, (void)mode, cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    (void)stream;
    *graph = (cudaGraph_t)(void *)time_of;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags)
{
    (void)flags;
    *exec = (cudaGraphExec_t)(void *)graph;
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) { return (void)exec, (void)stream, cudaSuccess; }
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return (void)graph, cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { return (void)exec, cudaSuccess; }
