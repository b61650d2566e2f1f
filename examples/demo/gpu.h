/* A GPU to train on: memory that the host and the GPU both use, cuBLAS, and streams. The small loops between the layers
 * stay on the host, so tensors are in pinned host memory, which the GPU reads and writes over the bus: it shows that the
 * library computes the same there, not how fast. */
#ifndef DEMO_GPU_H
#define DEMO_GPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct CUstream_st;

/* A stream and a cuBLAS handle on it: one network's at a time. */
typedef struct gpu_lane gpu_lane;

/* To be called once, before all others. NULL, or why there is no GPU to train on: no device, no cuBLAS, no kernels. */
const char *gpu_open(void);
const char *gpu_name(void); /* "NVIDIA H100 80GB HBM3, libcublas.so.13" */

void *gpu_memory(size_t size); /* or the end of the program */
void gpu_free(void *);         /* NULL: nothing */

gpu_lane *gpu_take(void); /* a lane that nobody has */
void gpu_give(gpu_lane *);
struct CUstream_st *gpu_stream(const gpu_lane *);
/* Row-major c [m, n] = alpha op(a) op(b) + beta c, every matrix packed; done after gpu_wait(). */
void gpu_multiply(gpu_lane *, bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, double alpha,
                  const float *a, const float *b, double beta, float *c);
void gpu_wait(gpu_lane *); /* until the lane has done what it was given; ends the program where that failed */

#endif
