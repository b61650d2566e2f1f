/* LayerNorm and RMSNorm forward with y in bytes, on CUDA. */
#include "layernorm_forward_quantized.cuh"

QUANTIZED_LAUNCHES(false)
