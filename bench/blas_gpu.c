/* blas_gpu.c - cuBLAS. It is column-major, so that our a[m, n] is its a'[n, m]. */
#include "blas.h"

#include "bench.h"
#include "composed_kernels.h"
#include "library.h"

#ifdef WF_TEST_CUDA

enum { NO_TRANS = 0, TRANS = 1 }; /* CUBLAS_OP_N, CUBLAS_OP_T */

static void *handle;
static struct CUstream_st *current;
static int (*create)(void **);
static int (*set_stream)(void *, struct CUstream_st *);
static int (*sgemv)(void *, int trans, int m, int n, const float *alpha, const float *a, int lda, const float *x, int incx,
                    const float *beta, float *y, int incy);
static int (*sger)(void *, int m, int n, const float *alpha, const float *x, int incx, const float *y, int incy, float *a,
                   int lda);
static int (*scopy)(void *, int n, const float *x, int incx, float *y, int incy);
static int (*saxpy)(void *, int n, const float *alpha, const float *x, int incx, float *y, int incy);

static const char *gpu_blas_open(void)
{
    static const char *const names[] = { "libcublas.so.13", "libcublas.so.12", "libcublas.so.11", NULL };
    static const LibraryCall calls[] = {
        { "cublasCreate_v2", &create }, { "cublasSetStream_v2", &set_stream }, { "cublasSgemv_v2", &sgemv },
        { "cublasSger_v2", &sger },     { "cublasScopy_v2", &scopy },          { "cublasSaxpy_v2", &saxpy }
    };
    static const char *found;
    if (!handle && (!library_open(names, calls, sizeof calls / sizeof *calls, &found) || create(&handle)))
        return NULL;
    return found;
}

static void gpu_begin(int threads, struct CUstream_st *stream)
{
    (void)threads;
    if (stream != current)
        set_stream(handle, stream);
    current = stream;
}

static void gpu_row_sums(int m, int n, float alpha, const float *a, const float *ones, float *y)
{
    const float zero = 0;
    sgemv(handle, TRANS, n, m, &alpha, a, n, ones, 1, &zero, y, 1);
}

static void gpu_column_sums(int m, int n, const float *a, const float *ones, float *y)
{
    const float zero = 0, one = 1;
    sgemv(handle, NO_TRANS, n, m, &one, a, n, ones, 1, &zero, y, 1);
}

static void gpu_rank_1(int m, int n, float alpha, const float *x, const float *y, float *a)
{
    sger(handle, n, m, &alpha, y, 1, x, 1, a, n);
}

static void gpu_blas_copy(int n, const float *x, float *y) { scopy(handle, n, x, 1, y, 1); }
static void gpu_axpy(int n, float alpha, const float *x, float *y) { saxpy(handle, n, &alpha, x, 1, y, 1); }
static void gpu_multiply(int n, const float *a, const float *b, float *out) { composed_multiply(n, a, b, out, current); }
static void gpu_rsqrt(int n, float eps, float *v) { composed_rsqrt(n, eps, v, current); }
static void gpu_zero(int n, float *x) { composed_multiply(n, NULL, NULL, x, current); }
static float *gpu_floats(size_t count) { return gpu_alloc(count * sizeof(float)); }
static void gpu_put_floats(float *to, const float *from, size_t count) { gpu_put(to, from, count * sizeof *to); }

const Blas blas_gpu = { gpu_blas_open, gpu_begin, gpu_row_sums, gpu_column_sums, gpu_rank_1, gpu_blas_copy, gpu_axpy,
                        gpu_multiply, gpu_rsqrt, gpu_zero, gpu_floats, gpu_put_floats, gpu_free };

#else

static const char *no_open(void) { return NULL; }

const Blas blas_gpu = { .open = no_open };

#endif
