#include "gpu.h"
#include "ui.h"

#ifdef DEMO_CUDA

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <welford.h>

struct gpu_lane {
    cudaStream_t stream;
    void *blas;
    gpu_lane *next; /* nobody has this one and those behind it */
};

/* cuBLAS, which is opened and never linked. Its functions return 0 where they succeed. */
enum { NORMAL, TRANSPOSED };
static int (*blas_create)(void **handle);
static int (*blas_set_stream)(void *handle, cudaStream_t);
static int (*blas_sgemm)(void *handle, int transpose_a, int transpose_b, int m, int n, int k, const float *alpha,
                         const float *a, int lda, const float *b, int ldb, const float *beta, float *c, int ldc);

static char name[320];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of `idle` */
static gpu_lane *idle;

static void must(cudaError_t error, const char *what)
{
    if (error != cudaSuccess)
        die("%s: %s", what, cudaGetErrorString(error));
}

static const char *open_blas(void)
{
    static const char *const names[] = {"libcublas.so.13", "libcublas.so.12", "libcublas.so"};
    static const struct {
        const char *name;
        void *to;
    } calls[] = {{"cublasCreate_v2", &blas_create}, {"cublasSetStream_v2", &blas_set_stream}, {"cublasSgemm_v2", &blas_sgemm}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        void *library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        bool all = library;
        for (size_t k = 0; k < sizeof calls / sizeof *calls && all; k++) {
            void *const at = dlsym(library, calls[k].name);
            memcpy(calls[k].to, &at, sizeof at);
            all = at;
        }
        if (all)
            return names[i];
    }
    return NULL;
}

const char *gpu_open(void)
{
    struct cudaDeviceProp device;
    cudaError_t error = cudaGetDeviceProperties(&device, 0);
    if (error != cudaSuccess)
        return cudaGetErrorString(error);
    if (wf_default_backend() != WF_CUDA)
        return "the library has not every operation for this device";
    const char *blas = open_blas();
    if (!blas)
        return "cuBLAS (libcublas.so) cannot be opened: LD_LIBRARY_PATH may name its folder";
    snprintf(name, sizeof name, "%s, %s", device.name, blas);
    return NULL;
}

const char *gpu_name(void)
{
    return name;
}

void *gpu_memory(size_t size)
{
    void *memory;
    must(cudaMallocHost(&memory, size), "pinned memory");
    return memory;
}

void gpu_free(void *memory)
{
    must(cudaFreeHost(memory), "pinned memory");
}

static gpu_lane *lane_new(void)
{
    gpu_lane *lane = calloc(1, sizeof *lane);
    if (!lane)
        die("out of memory");
    must(cudaStreamCreateWithFlags(&lane->stream, cudaStreamNonBlocking), "a stream");
    if (blas_create(&lane->blas) || blas_set_stream(lane->blas, lane->stream))
        die("cuBLAS does not start");
    return lane;
}

gpu_lane *gpu_take(void)
{
    pthread_mutex_lock(&lock);
    gpu_lane *lane = idle;
    if (lane)
        idle = lane->next;
    pthread_mutex_unlock(&lock);
    return lane ? lane : lane_new();
}

void gpu_give(gpu_lane *lane)
{
    pthread_mutex_lock(&lock);
    lane->next = idle;
    idle = lane;
    pthread_mutex_unlock(&lock);
}

struct CUstream_st *gpu_stream(const gpu_lane *lane)
{
    return lane->stream;
}

/* cuBLAS is column-major: to it a row-major matrix is its transpose, so this is c' = op(b)' op(a)'. */
void gpu_multiply(gpu_lane *lane, bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, double alpha,
                  const float *a, const float *b, double beta, float *c)
{
    const float scale = (float)alpha, kept = (float)beta;
    if (blas_sgemm(lane->blas, transpose_b ? TRANSPOSED : NORMAL, transpose_a ? TRANSPOSED : NORMAL, (int)n, (int)m, (int)k,
                   &scale, b, (int)(transpose_b ? k : n), a, (int)(transpose_a ? m : k), &kept, c, (int)n))
        die("cuBLAS: a product [%lld, %lld, %lld] failed", (long long)m, (long long)n, (long long)k);
}

void gpu_wait(gpu_lane *lane)
{
    must(cudaStreamSynchronize(lane->stream), "the GPU");
}

#else

const char *gpu_open(void)
{
    return "this build of the library has no CUDA back-end";
}

const char *gpu_name(void)
{
    return "";
}

void *gpu_memory(size_t size)
{
    die("no GPU for %zu bytes", size);
}

void gpu_free(void *memory)
{
    (void)memory;
}

gpu_lane *gpu_take(void)
{
    die("no GPU");
}

void gpu_give(gpu_lane *lane)
{
    (void)lane;
}

struct CUstream_st *gpu_stream(const gpu_lane *lane)
{
    (void)lane;
    return NULL;
}

void gpu_multiply(gpu_lane *lane, bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, double alpha,
                  const float *a, const float *b, double beta, float *c)
{
    (void)lane, (void)transpose_a, (void)transpose_b, (void)m, (void)n, (void)k, (void)alpha, (void)a, (void)b, (void)beta,
        (void)c;
}

void gpu_wait(gpu_lane *lane)
{
    (void)lane;
}

#endif
