/* LayerNorm and RMSNorm forward of a sum with y in bytes, on CUDA. */
#include "layernorm_forward_quantized.cuh"

QUANTIZED_LAUNCHES(true)
