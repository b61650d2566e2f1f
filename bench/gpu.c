/* gpu.c - the device: memory, a stream, graphs of calls timed by events. */
#include "bench.h"

#ifdef WF_TEST_CUDA

#include <cuda_runtime_api.h>
#include <stdlib.h>

static cudaStream_t stream;
static cudaEvent_t  begin, end;

static void must(cudaError_t error, const char *what)
{
    if (error == cudaSuccess)
        return;
    fprintf(stderr, "bench: %s: %s\n", what, cudaGetErrorString(error));
    exit(3);
}

#define MUST(call) must(call, #call)

bool gpu_open(void)
{
    int count = 0;
    if (stream)
        return true;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0)
        return false;
    MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    MUST(cudaEventCreate(&begin));
    MUST(cudaEventCreate(&end));
    return true;
}

size_t gpu_l2_size(void)
{
    int size = 0;
    return cudaDeviceGetAttribute(&size, cudaDevAttrL2CacheSize, 0) == cudaSuccess ? (size_t)size : 0;
}

const char *gpu_describe(char *text, size_t size)
{
    struct cudaDeviceProp d;
    int driver = 0, runtime = 0;
    MUST(cudaGetDeviceProperties(&d, 0));
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    snprintf(text, size, "\"gpu\": \"%s\", \"sm\": \"%d.%d\", \"multiprocessors\": %d, \"l2_bytes\": %zu, "
             "\"driver_cuda\": \"%d.%d\", \"toolkit\": \"%d.%d\"", d.name, d.major, d.minor, d.multiProcessorCount,
             gpu_l2_size(), driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    return text;
}

void *gpu_alloc(size_t size)
{
    void *p = NULL;
    if (cudaMalloc(&p, size) == cudaSuccess)
        return p;
    cudaGetLastError(); /* or the next call would be blamed */
    return NULL;
}

void gpu_free(void *p) { MUST(cudaFree(p)); }
void gpu_put(void *to, const void *host, size_t size) { MUST(cudaMemcpy(to, host, size, cudaMemcpyHostToDevice)); }
struct CUstream_st *gpu_stream(void) { return stream; }

void gpu_take(void *host, const void *from, size_t size)
{
    MUST(cudaStreamSynchronize(stream));
    MUST(cudaMemcpy(host, from, size, cudaMemcpyDeviceToHost));
}

void gpu_copy(void *to, const void *from, size_t size, struct CUstream_st *on)
{
    MUST(cudaMemcpyAsync(to, from, size, cudaMemcpyDeviceToDevice, on));
}

bool gpu_sync(const char **error)
{
    const cudaError_t status = cudaStreamSynchronize(stream);
    *error = cudaGetErrorString(status);
    return status == cudaSuccess;
}

struct GpuGraph { cudaGraphExec_t exec; };

GpuGraph *gpu_capture(bool (*body)(void *), void *arg)
{
    cudaGraph_t graph = NULL;
    GpuGraph *g = malloc(sizeof *g);
    MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    const bool ok = body(arg);
    const cudaError_t error = cudaStreamEndCapture(stream, &graph);
    if (!ok || error != cudaSuccess || cudaGraphInstantiate(&g->exec, graph, 0) != cudaSuccess) {
        cudaGetLastError();
        free(g);
        g = NULL;
    }
    if (graph)
        cudaGraphDestroy(graph);
    return g;
}

double gpu_replay(GpuGraph *g)
{
    float milliseconds;
    MUST(cudaEventRecord(begin, stream));
    MUST(cudaGraphLaunch(g->exec, stream));
    MUST(cudaEventRecord(end, stream));
    MUST(cudaEventSynchronize(end));
    MUST(cudaEventElapsedTime(&milliseconds, begin, end));
    return (double)milliseconds * 1e-3;
}

void gpu_graph_free(GpuGraph *g)
{
    MUST(cudaGraphExecDestroy(g->exec));
    free(g);
}

#else

bool gpu_open(void) { return false; }
size_t gpu_l2_size(void) { return 0; }
const char *gpu_describe(char *text, size_t size) { return size ? (*text = 0, text) : text; }
void *gpu_alloc(size_t size) { return (void)size, NULL; }
void gpu_free(void *p) { (void)p; }
void gpu_put(void *to, const void *host, size_t size) { (void)to, (void)host, (void)size; }
void gpu_take(void *host, const void *from, size_t size) { (void)host, (void)from, (void)size; }
void gpu_copy(void *to, const void *from, size_t size, struct CUstream_st *on) { (void)to, (void)from, (void)size, (void)on; }
struct CUstream_st *gpu_stream(void) { return NULL; }
bool gpu_sync(const char **error) { return *error = "no CUDA in this build", false; }
GpuGraph *gpu_capture(bool (*body)(void *), void *arg) { return (void)body, (void)arg, NULL; }
double gpu_replay(GpuGraph *g) { return (void)g, 0; }
void gpu_graph_free(GpuGraph *g) { (void)g; }

#endif
