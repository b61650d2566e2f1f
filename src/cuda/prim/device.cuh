// What kernels see of the machine, twice: CUDA (nvcc) or the emulator of tests/emu (-DWF_EMU). The only file with asm(),
// __CUDA_ARCH__ and launches. Kernels keep CUDA's own spelling for what both know: threadIdx, blockIdx, blockDim, gridDim,
// __syncthreads, __syncwarp, __shfl_*_sync, __ballot_sync, __any_sync, __all_sync, fmaf, sqrtf.
//
// | primitive                             | who calls             | contract                                                  |
// |---------------------------------------|-----------------------|-----------------------------------------------------------|
// | WF_SHARED(T, name, n)                 | every thread          | dev::shared<T> name: n elements, 16-byte aligned          |
// | WF_DYN_SHARED(T, name)                | every thread          | dev::shared<T> name: LaunchCfg::smem bytes                |
// | recast<U>(s)                          | any                   | the same shared memory as U                               |
// | load(h, i), load_vec<N>(h, i)         | any                   | element i; elements i .. i + N - 1, h + i aligned for N   |
// | load_stream, load_vec_stream<N>       | any                   | the same, for data that is read once                      |
// | load_words<N, Stream>(h, i)           | any                   | as load_vec, as 32-bit words                              |
// | store, store_vec and _stream twins    | any                   | likewise                                                  |
// | narrow_e4m3(lo, hi), narrow_e5m2      | any                   | two floats as common/narrow.h has them, lo in the low byte|
// | raise(h, i, bits)                     | any                   | the int of h[i]'s 32 bits becomes bits if they are more;  |
// |                                       |                       | what it was. One thread after another, in any order       |
// | cp_async16(s, h, i)                   | any                   | 16 bytes from h + i to s, both 16-byte aligned            |
// | cp_async_commit()                     | who copied            | closes a group of the calling thread's copies             |
// | cp_async_wait<N>()                    | who copied            | all but the N latest groups have arrived, for the calling |
// |                                       |                       | thread: others need a barrier after it                    |
// | uniform(value)                        | all lanes of a warp   | value, of which every lane has the same: now the compiler |
// |                                       |                       | knows, and computes what follows from it once for all     |
// | strided_grid(blocks)                  | host                  | blocks, for a kernel that goes in strides of its grid;    |
// |                                       |                       | the emulator can be asked for fewer                       |
// | cluster_rank(), cluster_size()        | any                   | 0 and 1 in a launch without clusters                      |
// | cluster_sync()                        | all of the cluster    | barrier; orders shared memory of all its blocks           |
// | cluster_map(s, rank)                  | any, before the last  | s in the block of that rank; a cluster_sync must follow   |
// |                                       | cluster_sync          | the last access, its value used, or that block might have |
// |                                       |                       | left                                                      |
//
// Shared memory goes from function to function as dev::shared<T> (nvcc: T *), taken apart by s[i] and s + n; global memory
// as dev::global<T>, which has neither [] nor *. That is how the emulator sees every access.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <type_traits>

#include "common/narrow.h"

#if defined(__CUDACC__)

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define WF_ON_DEVICE __device__ __forceinline__
#define WF_CALLED __device__ __noinline__ // a template's function
#define WF_HOST_DEVICE __host__ __device__ __forceinline__
#define WF_AT_ARG // where the emulator's reports say something happened
#define WF_AT_PASS

#define WF_SHARED(T, name, n) __shared__ __align__(16) T name[n]
#define WF_DYN_SHARED(T, name)                                                                                         \
    extern __shared__ __align__(16) unsigned char wf_dynamic_shared[];                                                 \
    T *name = reinterpret_cast<T *>(wf_dynamic_shared)

namespace dev {

template <class T> using shared = T *;

template <class U, class T> WF_ON_DEVICE shared<U> recast(T *s)
{
    return reinterpret_cast<U *>(s);
}

// Plain accesses are the compiler's own: ld.global and st.global of the width of V.
template <class V> WF_ON_DEVICE V read(const void *p)
{
    return *static_cast<const V *>(p);
}

template <class V> WF_ON_DEVICE void write(void *p, const V &value)
{
    *static_cast<V *>(p) = value;
}

// Never .nc: y may be x. "memory": two accesses to one element keep their order.
template <class V> WF_ON_DEVICE V read_stream(const void *p)
{
    const size_t at = __cvta_generic_to_global(p);
    V value;
    if constexpr (sizeof(V) == 16) {
        uint4 u;
        asm volatile("ld.global.cs.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(u.x), "=r"(u.y), "=r"(u.z), "=r"(u.w) : "l"(at) : "memory");
        memcpy(static_cast<void *>(&value), &u, sizeof u);
    } else if constexpr (sizeof(V) == 8) {
        uint2 u;
        asm volatile("ld.global.cs.v2.u32 {%0, %1}, [%2];" : "=r"(u.x), "=r"(u.y) : "l"(at) : "memory");
        memcpy(static_cast<void *>(&value), &u, sizeof u);
    } else if constexpr (sizeof(V) == 4) {
        unsigned u;
        asm volatile("ld.global.cs.u32 %0, [%1];" : "=r"(u) : "l"(at) : "memory");
        memcpy(static_cast<void *>(&value), &u, sizeof u);
    } else if constexpr (sizeof(V) == 2) {
        unsigned short u;
        asm volatile("ld.global.cs.u16 %0, [%1];" : "=h"(u) : "l"(at) : "memory");
        memcpy(static_cast<void *>(&value), &u, sizeof u);
    } else {
        unsigned u;
        asm volatile("ld.global.cs.u8 %0, [%1];" : "=r"(u) : "l"(at) : "memory");
        const unsigned char byte = static_cast<unsigned char>(u);
        memcpy(static_cast<void *>(&value), &byte, sizeof byte);
    }
    return value;
}

template <class V> WF_ON_DEVICE void write_stream(void *p, const V &value)
{
    const size_t at = __cvta_generic_to_global(p);
    if constexpr (sizeof(V) == 16) {
        uint4 u;
        memcpy(&u, static_cast<const void *>(&value), sizeof u);
        asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};"
                     :: "l"(at), "r"(u.x), "r"(u.y), "r"(u.z), "r"(u.w) : "memory");
    } else if constexpr (sizeof(V) == 8) {
        uint2 u;
        memcpy(&u, static_cast<const void *>(&value), sizeof u);
        asm volatile("st.global.cs.v2.u32 [%0], {%1, %2};" :: "l"(at), "r"(u.x), "r"(u.y) : "memory");
    } else if constexpr (sizeof(V) == 4) {
        unsigned u;
        memcpy(&u, static_cast<const void *>(&value), sizeof u);
        asm volatile("st.global.cs.u32 [%0], %1;" :: "l"(at), "r"(u) : "memory");
    } else if constexpr (sizeof(V) == 2) {
        unsigned short u;
        memcpy(&u, static_cast<const void *>(&value), sizeof u);
        asm volatile("st.global.cs.u16 [%0], %1;" :: "l"(at), "h"(u) : "memory");
    } else {
        unsigned char byte;
        memcpy(&byte, static_cast<const void *>(&value), sizeof byte);
        asm volatile("st.global.cs.u8 [%0], %1;" :: "l"(at), "r"(static_cast<unsigned>(byte)) : "memory");
    }
}

// Below sm_89 there is no instruction for it.
WF_ON_DEVICE uint16_t narrow_e4m3(float lo, float hi)
{
#if __CUDA_ARCH__ >= 890
    uint16_t both;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(both) : "f"(hi), "f"(lo));
    return both;
#else
    return static_cast<uint16_t>(wf_f32_to_e4m3(lo) | wf_f32_to_e4m3(hi) << 8);
#endif
}

WF_ON_DEVICE uint16_t narrow_e5m2(float lo, float hi)
{
#if __CUDA_ARCH__ >= 890
    uint16_t both;
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(both) : "f"(hi), "f"(lo));
    return both;
#else
    return static_cast<uint16_t>(wf_f32_to_e5m2(lo) | wf_f32_to_e5m2(hi) << 8);
#endif
}

WF_ON_DEVICE int32_t raise(void *p, int32_t bits)
{
    return atomicMax(static_cast<int32_t *>(p), bits);
}

// .cg: past L1, as data that is read once should go.
WF_ON_DEVICE void copy_async16(void *s, const void *p)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
                 :: "r"(static_cast<unsigned>(__cvta_generic_to_shared(s))), "l"(__cvta_generic_to_global(p)) : "memory");
}

WF_ON_DEVICE void cp_async_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int N> WF_ON_DEVICE void cp_async_wait()
{
    asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory");
}

WF_ON_DEVICE unsigned uniform(unsigned value)
{
    return __reduce_or_sync(0xffffffffu, value);
}

WF_ON_DEVICE uint64_t uniform(uint64_t value)
{
    return static_cast<uint64_t>(uniform(static_cast<unsigned>(value >> 32))) << 32 | uniform(static_cast<unsigned>(value));
}

// Below sm_90 there are no clusters: a launch with some fails, and one without sees a cluster of one block.
WF_ON_DEVICE unsigned cluster_rank()
{
    unsigned rank = 0;
#if __CUDA_ARCH__ >= 900
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
    return rank;
}

WF_ON_DEVICE unsigned cluster_size()
{
    unsigned size = 1;
#if __CUDA_ARCH__ >= 900
    asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
#endif
    return size;
}

WF_ON_DEVICE void cluster_sync()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
    __syncthreads();
#endif
}

template <class T> WF_ON_DEVICE shared<T> cluster_map(T *s, unsigned rank)
{
#if __CUDA_ARCH__ >= 900
    size_t there;
    asm volatile("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(s), "r"(rank));
    return reinterpret_cast<T *>(there);
#else
    (void)rank;
    return s;
#endif
}

inline unsigned strided_grid(unsigned blocks)
{
    return blocks;
}

template <class P> const void *entry_point(void (*kernel)(P))
{
    return reinterpret_cast<const void *>(kernel);
}

} // namespace dev

#elif defined(WF_EMU)
#include "emu.hpp"
#else
#error "device.cuh: compile with nvcc, or with -DWF_EMU and tests/emu"
#endif

namespace dev {

// Threads that a multiprocessor holds: for __launch_bounds__, where more would not compile.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 870 || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1100)
constexpr int THREADS_MOST = 1536;
#else
constexpr int THREADS_MOST = 2048;
#endif

// N elements that cross memory together.
template <class T, int N> struct alignas(sizeof(T) * N) vec {
    static_assert(sizeof(T) * N <= 16 && (sizeof(T) * N & (sizeof(T) * N - 1)) == 0, "1, 2, 4, 8 or 16 bytes");
    T v[N];
};

template <class T> class global;
template <class T> WF_HOST_DEVICE T *address(global<T> h); // for the primitives below alone

// A place in global memory; the host makes it from a pointer. T is const for inputs.
template <class T> class global
{
  public:
    using element = typename std::remove_const<T>::type;
    static_assert(std::is_trivially_copyable<element>::value && alignof(T) == sizeof(T), "a scalar");

    global() = default;
    explicit WF_HOST_DEVICE global(T *p) : p_(p) {}
    template <class U, class = typename std::enable_if<std::is_same<const U, T>::value>::type>
    WF_HOST_DEVICE global(global<U> h) : p_(address(h)) {} // to const
    WF_HOST_DEVICE explicit operator bool() const { return p_ != nullptr; }
    WF_HOST_DEVICE global operator+(int64_t n) const { return global(p_ + n); }

  private:
    T *p_ = nullptr;
    template <class U> friend WF_HOST_DEVICE U *address(global<U> h);
};

template <class T> WF_HOST_DEVICE T *address(global<T> h)
{
    return h.p_;
}

template <int N, class T> WF_HOST_DEVICE bool aligned(global<T> h)
{
    return reinterpret_cast<uintptr_t>(address(h)) % (sizeof(T) * N) == 0;
}

template <int N, class T> WF_ON_DEVICE vec<typename global<T>::element, N> load_vec(global<T> h, int64_t i WF_AT_ARG)
{
    return read<vec<typename global<T>::element, N>>(address(h) + i WF_AT_PASS);
}

template <int N, class T> WF_ON_DEVICE vec<typename global<T>::element, N> load_vec_stream(global<T> h, int64_t i WF_AT_ARG)
{
    return read_stream<vec<typename global<T>::element, N>>(address(h) + i WF_AT_PASS);
}

// Elements i .. i + N - 1 as 32-bit words.
template <int N, class T> using words = vec<uint32_t, N * (int)sizeof(T) / 4>;
template <int N, bool Stream, class T> WF_ON_DEVICE words<N, T> load_words(global<T> h, int64_t i WF_AT_ARG)
{
    return Stream ? read_stream<words<N, T>>(address(h) + i WF_AT_PASS) : read<words<N, T>>(address(h) + i WF_AT_PASS);
}

template <int N, class T> WF_ON_DEVICE void store_vec(global<T> h, int64_t i, vec<T, N> value WF_AT_ARG)
{
    write(address(h) + i, value WF_AT_PASS);
}

template <int N, class T> WF_ON_DEVICE void store_vec_stream(global<T> h, int64_t i, vec<T, N> value WF_AT_ARG)
{
    write_stream(address(h) + i, value WF_AT_PASS);
}

template <class T> WF_ON_DEVICE typename global<T>::element load(global<T> h, int64_t i WF_AT_ARG)
{
    return read<typename global<T>::element>(address(h) + i WF_AT_PASS);
}

template <class T> WF_ON_DEVICE typename global<T>::element load_stream(global<T> h, int64_t i WF_AT_ARG)
{
    return read_stream<typename global<T>::element>(address(h) + i WF_AT_PASS);
}

template <class T> WF_ON_DEVICE void store(global<T> h, int64_t i, typename global<T>::element value WF_AT_ARG)
{
    write(address(h) + i, value WF_AT_PASS);
}

template <class T> WF_ON_DEVICE void store_stream(global<T> h, int64_t i, typename global<T>::element value WF_AT_ARG)
{
    write_stream(address(h) + i, value WF_AT_PASS);
}

template <class T> WF_ON_DEVICE int32_t raise(global<T> h, int64_t i, int32_t bits WF_AT_ARG)
{
    static_assert(sizeof(T) == 4, "32 bits");
    return raise(address(h) + i, bits WF_AT_PASS);
}

template <class S, class T> WF_ON_DEVICE void cp_async16(S s, global<T> h, int64_t i WF_AT_ARG)
{
    void *to = s;
    copy_async16(to, address(h) + i WF_AT_PASS);
}

struct LaunchCfg {
    dim3         grid, block;
    size_t       smem = 0; // bytes of dynamic shared memory
    cudaStream_t stream = nullptr;
    unsigned     cluster = 1; // blocks, along x
};

// Attributes belong to the current device and are set for each launch that needs them: nothing is remembered.
template <class P> cudaError_t launch(const LaunchCfg &cfg, void (*kernel)(P), const P &params)
{
    static_assert(std::is_trivially_copyable<P>::value && sizeof(P) <= 4096, "a kernel's parameters");
    const void *entry = entry_point(kernel);
    cudaError_t error = cudaSuccess;
    if (cfg.smem > 16 * 1024) { // 48 KB need no attribute, but what the kernel declares itself counts too
        // Setting it clears cudaGetLastError(): where the caller has an error there, only if it must be.
        cudaFuncAttributes now = {};
        if (cudaPeekAtLastError() != cudaSuccess)
            error = cudaFuncGetAttributes(&now, entry);
        if (error == cudaSuccess && now.maxDynamicSharedSizeBytes < static_cast<int>(cfg.smem))
            error = cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(cfg.smem));
    }
    if (error == cudaSuccess && cfg.cluster > 8) // more than every GPU with clusters can do
        error = cudaFuncSetAttribute(entry, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    if (error != cudaSuccess)
        return error;

    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = cfg.cluster;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;

    const unsigned attributes = cfg.cluster > 1 ? 1 : 0;
    const cudaLaunchConfig_t config = {cfg.grid, cfg.block, cfg.smem, cfg.stream, &cluster, attributes};
    void *args[] = {const_cast<P *>(&params)};
    return cudaLaunchKernelExC(&config, entry, args);
}

} // namespace dev
