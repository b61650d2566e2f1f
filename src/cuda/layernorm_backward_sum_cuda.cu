/* LayerNorm and RMSNorm backward from a sum, on CUDA. */
#include "layernorm_backward_sum.cuh"

SUM_LAUNCHES(Given::SUM)
