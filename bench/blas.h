/* blas.h - the little of BLAS that peer_composed.c uses, on the CPU (CBLAS) and on a GPU (cuBLAS), both opened at run time.
 * Matrices are row-major without gaps; vectors have no stride. What BLAS has not (multiply, rsqrt, zero) is beside it. */
#ifndef WELFORD_BENCH_BLAS_H
#define WELFORD_BENCH_BLAS_H

#include <stdbool.h>
#include <stddef.h>

struct CUstream_st;

typedef struct Blas {
    const char *(*open)(void); /* the library's name; NULL: not here */
    void (*begin)(int threads, struct CUstream_st *stream); /* before a chain of calls */
    void (*row_sums)(int m, int n, float alpha, const float *a, const float *ones, float *y); /* y[m] = alpha a ones */
    void (*column_sums)(int m, int n, const float *a, const float *ones, float *y); /* y[n] = a' ones */
    void (*rank_1)(int m, int n, float alpha, const float *x, const float *y, float *a); /* a += alpha x y' */
    void (*copy)(int n, const float *x, float *y);
    void (*axpy)(int n, float alpha, const float *x, float *y);
    void (*multiply)(int n, const float *a, const float *b, float *out);
    void (*rsqrt)(int n, float eps, float *v); /* v = 1 / sqrt(v + eps) */
    void (*zero)(int n, float *x);
    float *(*alloc)(size_t count);
    void (*put)(float *to, const float *from, size_t count); /* from the host */
    void (*free)(void *);
} Blas;

extern const Blas blas_cpu, blas_gpu;

#endif
