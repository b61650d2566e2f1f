/* blas_cpu.c - CBLAS. */
#include <dlfcn.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "blas.h"
#include "library.h"

enum { ROW_MAJOR = 101, NO_TRANS = 111, TRANS = 112 }; /* CBLAS's own */

static void (*sgemv)(int order, int trans, int m, int n, float alpha, const float *a, int lda, const float *x, int incx,
                     float beta, float *y, int incy);
static void (*sger)(int order, int m, int n, float alpha, const float *x, int incx, const float *y, int incy, float *a, int lda);
static void (*scopy)(int n, const float *x, int incx, float *y, int incy);
static void (*saxpy)(int n, float alpha, const float *x, int incx, float *y, int incy);
static void (*set_threads)(int threads); /* OpenBLAS has it */

static const char *cpu_open(void)
{
    static const char *const names[] = { "libopenblas.so.0", "libcblas.so.3", "libblas.so.3", "libmkl_rt.so", NULL };
    static const LibraryCall calls[] = {
        { "cblas_sgemv", &sgemv }, { "cblas_sger", &sger }, { "cblas_scopy", &scopy }, { "cblas_saxpy", &saxpy }
    };
    static const char *found;
    static void *library;
    if (library)
        return found;
    library = library_open(names, calls, sizeof calls / sizeof *calls, &found);
    void *const threads = library ? dlsym(library, "openblas_set_num_threads") : NULL;
    memcpy(&set_threads, &threads, sizeof threads);
    return library ? found : NULL;
}

static void cpu_begin(int threads, struct CUstream_st *stream)
{
    static int set;
    (void)stream;
    if (set_threads && threads != set)
        set_threads(set = threads);
}

static void cpu_row_sums(int m, int n, float alpha, const float *a, const float *ones, float *y)
{
    sgemv(ROW_MAJOR, NO_TRANS, m, n, alpha, a, n, ones, 1, 0, y, 1);
}

static void cpu_column_sums(int m, int n, const float *a, const float *ones, float *y)
{
    sgemv(ROW_MAJOR, TRANS, m, n, 1, a, n, ones, 1, 0, y, 1);
}

static void cpu_rank_1(int m, int n, float alpha, const float *x, const float *y, float *a)
{
    sger(ROW_MAJOR, m, n, alpha, x, 1, y, 1, a, n);
}

static void cpu_copy(int n, const float *x, float *y) { scopy(n, x, 1, y, 1); }
static void cpu_axpy(int n, float alpha, const float *x, float *y) { saxpy(n, alpha, x, 1, y, 1); }

static void cpu_multiply(int n, const float *a, const float *b, float *out)
{
    for (int i = 0; i < n; i++)
        out[i] = a[i] * b[i];
}

static void cpu_rsqrt(int n, float eps, float *v)
{
    for (int i = 0; i < n; i++)
        v[i] = 1 / sqrtf(v[i] + eps);
}

static void  cpu_zero(int n, float *x) { memset(x, 0, (size_t)n * sizeof *x); }
static float *cpu_alloc(size_t count) { return malloc(count * sizeof(float)); }
static void  cpu_put(float *to, const float *from, size_t count) { memcpy(to, from, count * sizeof *to); }

const Blas blas_cpu = { cpu_open, cpu_begin, cpu_row_sums, cpu_column_sums, cpu_rank_1, cpu_copy, cpu_axpy, cpu_multiply,
                        cpu_rsqrt, cpu_zero, cpu_alloc, cpu_put, free };
