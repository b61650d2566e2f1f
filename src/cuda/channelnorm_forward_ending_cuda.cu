/* GroupNorm, InstanceNorm and BatchNorm forward on CUDA, with a residual and an activation: the launches of
 * channelnorm_forward_cuda.cu. */
#define ENDINGS template
#include "channels_first_forward.cuh"
#include "channels_last_forward.cuh"
