/* composed_kernels.h - elementwise on the device, for the composed peer alone: what Caffe adds to cuBLAS. */
#ifndef WELFORD_BENCH_COMPOSED_KERNELS_H
#define WELFORD_BENCH_COMPOSED_KERNELS_H

struct CUstream_st;

#ifdef __cplusplus
extern "C" {
#endif
void composed_multiply(int n, const float *a, const float *b, float *out, struct CUstream_st *stream); /* a NULL: zeros */
void composed_rsqrt(int n, float eps, float *v, struct CUstream_st *stream); /* v = 1 / sqrt(v + eps) */
#ifdef __cplusplus
}
#endif

#endif
