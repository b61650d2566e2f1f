/* GroupNorm, InstanceNorm and BatchNorm backward on CUDA, with a residual and an activation: the steps of
 * channelnorm_backward_cuda.cu. */
#define ENDINGS template
#include "channelnorm_backward_steps.cuh"
