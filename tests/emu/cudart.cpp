// A libcudart: the calls that the library and its tests make, on emulated devices. Everything is done when a call returns,
// so streams are handles and no more.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <string>

#include "runtime.hpp"

namespace emu {

struct Kernel {
    Invoke invoke;
    size_t params_size;
    int    most_dynamic_shared = -1; // as cudaFuncSetAttribute said; else what the default leaves
    bool   large_clusters = false;
};

static struct Runtime {
    std::recursive_mutex          lock; // a call at a time, launches included
    std::map<const void *, Kernel> kernels;
    std::set<void *>              streams;
    struct emu_device             device = {1, 9, 0, 132, 48 << 10, 227 << 10};
    long                          calls = 0, failing_call = 0;
    cudaError_t                   injected = cudaSuccess;
} &rt = *new Runtime;

static thread_local cudaError_t pending;
static thread_local int         device_in_use;

const void *register_kernel(const void *kernel, Invoke invoke, size_t params_size)
{
    std::lock_guard<std::recursive_mutex> lock(rt.lock);
    rt.kernels.insert({kernel, Kernel{invoke, params_size}});
    return kernel;
}

// Every call begins and ends so: counted, perhaps made to fail, its failure left pending for cudaGetLastError.
template <class F> static cudaError_t call(F body)
{
    std::lock_guard<std::recursive_mutex> lock(rt.lock);
    cudaError_t error;
    if (++rt.calls == rt.failing_call)
        error = rt.injected;
    else if (rt.device.count == 0)
        error = cudaErrorInsufficientDriver;
    else
        error = body();
    if (error != cudaSuccess)
        pending = error;
    return error;
}

static bool known_stream(cudaStream_t stream)
{
    return stream == nullptr || stream == cudaStreamLegacy || stream == cudaStreamPerThread || rt.streams.count(stream);
}

static cudaError_t check_range(const void *p, size_t size, bool on_device)
{
    const Allocation *a = device_find(p);
    if ((a != nullptr) != on_device)
        return cudaErrorInvalidValue;
    if (a && static_cast<const char *>(p) + size > a->data + a->size)
        return cudaErrorInvalidValue;
    return cudaSuccess;
}

static cudaError_t copy(void *to, const void *from, size_t size, cudaMemcpyKind kind)
{
    if (size == 0)
        return cudaSuccess;
    if (kind == cudaMemcpyDefault)
        kind = device_find(to) ? device_find(from) ? cudaMemcpyDeviceToDevice : cudaMemcpyHostToDevice
                               : device_find(from) ? cudaMemcpyDeviceToHost : cudaMemcpyHostToHost;
    const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (check_range(to, size, to_device) || check_range(from, size, from_device))
        return cudaErrorInvalidValue;
    device_open();
    memmove(to, from, size);
    device_close();
    return cudaSuccess;
}

static cudaError_t launch(const cudaLaunchConfig_t &config, const void *function, void **args)
{
    const auto found = rt.kernels.find(function);
    if (found == rt.kernels.end())
        return cudaErrorInvalidDeviceFunction;
    const Kernel &kernel = found->second;
    Launch l;
    l.grid = config.gridDim;
    l.block = config.blockDim;
    l.smem = config.dynamicSmemBytes;
    l.stream = config.stream;
    for (unsigned i = 0; i < config.numAttrs; i++) {
        const cudaLaunchAttribute &a = config.attrs[i];
        if (a.id != cudaLaunchAttributeClusterDimension || a.val.clusterDim.y != 1 || a.val.clusterDim.z != 1)
            return cudaErrorNotSupported;
        l.cluster = a.val.clusterDim.x;
        if (rt.device.major < 9)
            return cudaErrorNotSupported;
    }
    const dim3 g = l.grid, b = l.block;
    if (!known_stream(config.stream))
        return cudaErrorInvalidResourceHandle;
    if (g.x == 0 || g.y == 0 || g.z == 0 || g.x > 0x7fffffffu || g.y > 65535 || g.z > 65535 || b.x == 0 || b.y == 0 ||
        b.z == 0 || b.z > 64 || static_cast<uint64_t>(b.x) * b.y * b.z > 1024)
        return cudaErrorInvalidConfiguration;
    if (l.cluster == 0 || g.x % l.cluster || l.cluster > (kernel.large_clusters ? 16u : 8u))
        return cudaErrorInvalidClusterSize;
    const bool default_room = kernel.most_dynamic_shared < 0;
    l.shared_room = static_cast<size_t>(default_room ? rt.device.shared_default : rt.device.shared_most);
    if (l.smem > (default_room ? l.shared_room : static_cast<size_t>(kernel.most_dynamic_shared)))
        return cudaErrorInvalidValue;
    const std::vector<char> params(static_cast<char *>(args[0]), static_cast<char *>(args[0]) + kernel.params_size);
    l.kernel = function;
    l.params = params.data();
    l.invoke = kernel.invoke;
    run(l);
    return cudaSuccess;
}

} // namespace emu

using namespace emu;

extern "C" {

void emu_set_device(struct emu_device device)
{
    rt.device = device;
}

struct emu_device emu_device(void)
{
    return rt.device;
}

void emu_fail_call(long k, int error)
{
    rt.failing_call = k > 0 ? rt.calls + k : 0;
    rt.injected = static_cast<cudaError_t>(error);
}

long emu_calls(void)
{
    return rt.calls;
}

// ---- errors ----

cudaError_t cudaGetLastError(void)
{
    const cudaError_t error = pending;
    pending = cudaSuccess;
    return error;
}

cudaError_t cudaPeekAtLastError(void)
{
    return pending;
}

const char *cudaGetErrorString(cudaError_t error)
{
    switch (error) {
    case cudaSuccess:                    return "no error";
    case cudaErrorInvalidValue:          return "invalid argument";
    case cudaErrorMemoryAllocation:      return "out of memory";
    case cudaErrorInvalidConfiguration:  return "invalid configuration argument";
    case cudaErrorInsufficientDriver:    return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorInvalidDevice:         return "invalid device ordinal";
    case cudaErrorNoDevice:              return "no CUDA-capable device is detected";
    case cudaErrorInvalidDeviceFunction: return "invalid device function";
    case cudaErrorInvalidResourceHandle: return "invalid resource handle";
    case cudaErrorNotSupported:          return "operation not supported";
    case cudaErrorInvalidClusterSize:    return "cluster size invalid";
    case cudaErrorLaunchFailure:         return "unspecified launch failure";
    case cudaErrorLaunchOutOfResources:  return "too many resources requested for launch";
    case cudaErrorUnknown:               return "unknown error";
    default:                             return "unrecognized error code";
    }
}

const char *cudaGetErrorName(cudaError_t error)
{
    return cudaGetErrorString(error);
}

// ---- devices ----

cudaError_t cudaGetDeviceCount(int *count)
{
    return call([=] { return *count = rt.device.count, cudaSuccess; });
}

cudaError_t cudaGetDevice(int *device)
{
    return call([=] { return *device = device_in_use, cudaSuccess; });
}

cudaError_t cudaSetDevice(int device)
{
    return call([=] {
        if (device < 0 || device >= rt.device.count)
            return cudaErrorInvalidDevice;
        device_in_use = device;
        return cudaSuccess;
    });
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device)
{
    return call([=] {
        if (device < 0 || device >= rt.device.count)
            return cudaErrorInvalidDevice;
        switch (attribute) {
        case cudaDevAttrMultiProcessorCount:              *value = rt.device.multiprocessors; break;
        case cudaDevAttrComputeCapabilityMajor:           *value = rt.device.major; break;
        case cudaDevAttrComputeCapabilityMinor:           *value = rt.device.minor; break;
        case cudaDevAttrMaxSharedMemoryPerBlock:          *value = rt.device.shared_default; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin:     *value = rt.device.shared_most; break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = rt.device.shared_most + 1024; break;
        case cudaDevAttrClusterLaunch:                    *value = rt.device.major >= 9; break;
        case cudaDevAttrWarpSize:                         *value = 32; break;
        case cudaDevAttrMaxThreadsPerBlock:               *value = 1024; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor:      *value = 2048; break;
        case cudaDevAttrMaxRegistersPerBlock:             *value = 65536; break;
        case cudaDevAttrL2CacheSize:                      *value = 50 << 20; break;
        default:                                          return cudaErrorNotSupported; // say so, rather than a wrong 0
        }
        return cudaSuccess;
    });
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device)
{
    return call([=] {
        if (device < 0 || device >= rt.device.count)
            return cudaErrorInvalidDevice;
        *properties = {};
        snprintf(properties->name, sizeof properties->name, "emulated sm_%d%d", rt.device.major, rt.device.minor);
        properties->major = rt.device.major;
        properties->minor = rt.device.minor;
        properties->multiProcessorCount = rt.device.multiprocessors;
        properties->sharedMemPerBlock = static_cast<size_t>(rt.device.shared_default);
        properties->sharedMemPerBlockOptin = static_cast<size_t>(rt.device.shared_most);
        properties->warpSize = 32;
        properties->maxThreadsPerBlock = 1024;
        properties->maxThreadsPerMultiProcessor = 2048;
        properties->totalGlobalMem = size_t{64} << 30;
        properties->l2CacheSize = 50 << 20;
        return cudaSuccess;
    });
}

cudaError_t cudaDriverGetVersion(int *version)
{
    return call([=] { return *version = CUDART_VERSION, cudaSuccess; });
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    return call([=] { return *version = CUDART_VERSION, cudaSuccess; });
}

cudaError_t cudaDeviceSynchronize(void)
{
    return call([] { return cudaSuccess; });
}

// ---- memory ----

cudaError_t cudaMalloc(void **p, size_t size)
{
    return call([=] { return (*p = size ? device_allocate(size) : nullptr) || !size ? cudaSuccess : cudaErrorMemoryAllocation; });
}

cudaError_t cudaFree(void *p)
{
    return call([=] { return !p || device_free(p) ? cudaSuccess : cudaErrorInvalidValue; });
}

cudaError_t cudaMallocHost(void **p, size_t size)
{
    return call([=] { return (*p = malloc(size)) ? cudaSuccess : cudaErrorMemoryAllocation; });
}

cudaError_t cudaFreeHost(void *p)
{
    return call([=] { return free(p), cudaSuccess; });
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    return call([=] { return known_stream(stream) ? copy(to, from, size, kind) : cudaErrorInvalidResourceHandle; });
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind)
{
    return cudaMemcpyAsync(to, from, size, kind, nullptr);
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t size, cudaStream_t stream)
{
    return call([=] {
        if (!known_stream(stream))
            return cudaErrorInvalidResourceHandle;
        if (size && check_range(p, size, true))
            return cudaErrorInvalidValue;
        device_open();
        memset(p, value, size);
        device_close();
        return cudaSuccess;
    });
}

cudaError_t cudaMemset(void *p, int value, size_t size)
{
    return cudaMemsetAsync(p, value, size, nullptr);
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *p)
{
    return call([=] {
        *attributes = {};
        attributes->type = device_find(p) ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
        attributes->devicePointer = device_find(p) ? const_cast<void *>(p) : nullptr;
        return cudaSuccess;
    });
}

// ---- streams ----

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned)
{
    return call([=] {
        *stream = static_cast<cudaStream_t>(malloc(1));
        rt.streams.insert(*stream);
        return cudaSuccess;
    });
}

cudaError_t cudaStreamCreate(cudaStream_t *stream)
{
    return cudaStreamCreateWithFlags(stream, 0);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    return call([=] {
        if (!rt.streams.erase(stream))
            return cudaErrorInvalidResourceHandle;
        free(stream);
        return cudaSuccess;
    });
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    return call([=] { return known_stream(stream) ? cudaSuccess : cudaErrorInvalidResourceHandle; });
}

// ---- kernels ----

cudaError_t cudaFuncSetAttribute(const void *function, enum cudaFuncAttribute attribute, int value)
{
    return call([=] {
        const auto found = rt.kernels.find(function);
        if (found == rt.kernels.end())
            return cudaErrorInvalidDeviceFunction;
        switch (attribute) {
        case cudaFuncAttributeMaxDynamicSharedMemorySize:
            if (value < 0 || value > rt.device.shared_most)
                return cudaErrorInvalidValue;
            found->second.most_dynamic_shared = value;
            pending = cudaSuccess; // as CUDA 13.0 does
            return cudaSuccess;
        case cudaFuncAttributeNonPortableClusterSizeAllowed:
            found->second.large_clusters = value != 0;
            return cudaSuccess;
        default:
            return cudaErrorInvalidValue;
        }
    });
}

// Loads the kernel, on a real device; nothing is known about it here.
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *function)
{
    return call([=] {
        const auto found = rt.kernels.find(function);
        if (found == rt.kernels.end())
            return cudaErrorInvalidDeviceFunction;
        *attributes = cudaFuncAttributes();
        attributes->maxDynamicSharedSizeBytes =
            found->second.most_dynamic_shared < 0 ? rt.device.shared_default : found->second.most_dynamic_shared;
        return cudaSuccess;
    });
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *function, void **args)
{
    return call([=] { return launch(*config, function, args); });
}

} // extern "C"
