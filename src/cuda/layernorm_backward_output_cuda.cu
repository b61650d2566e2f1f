/* LayerNorm and RMSNorm backward from y, on CUDA. */
#include "layernorm_backward_sum.cuh"

SUM_LAUNCHES(Given::OUTPUT)
