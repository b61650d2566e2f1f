// Graphs, which the emulator has not: what tests call that run on a GPU alone.
#include <cuda_runtime_api.h>

extern "C" {

cudaError_t cudaStreamBeginCapture(cudaStream_t, enum cudaStreamCaptureMode)
{
    return cudaErrorNotSupported;
}

cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *)
{
    return cudaErrorNotSupported;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t, cudaGraphNode_t *, size_t *)
{
    return cudaErrorNotSupported;
}

cudaError_t cudaGraphNodeGetType(cudaGraphNode_t, enum cudaGraphNodeType *)
{
    return cudaErrorNotSupported;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *, cudaGraph_t, unsigned long long)
{
    return cudaErrorNotSupported;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t)
{
    return cudaErrorNotSupported;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t)
{
    return cudaErrorNotSupported;
}

cudaError_t cudaGraphDestroy(cudaGraph_t)
{
    return cudaErrorNotSupported;
}

} // extern "C"
