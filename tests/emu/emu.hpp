// What kernels see of the emulator: the other half of device.cuh. One fiber stands for one CUDA thread; warp, block and
// cluster collectives are meeting points. NVIDIA's own host headers give vector types, half, bf16 and the runtime's
// prototypes. A violated contract prints one line, "EMULATOR kind at file:line, block, thread: text", and aborts.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include <cuda_runtime_api.h>
#include <vector_functions.h>
#include <vector_types.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/narrow.h"

#undef __shared__
#define __shared__ use_WF_SHARED_or_WF_DYN_SHARED // raw shared memory must not compile: nobody would see it
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __global__
#define __global__ __attribute__((noinline))

#define WF_ON_DEVICE inline __attribute__((always_inline))
#define WF_CALLED __attribute__((noinline))
#define WF_HOST_DEVICE inline __attribute__((always_inline))
#define WF_AT_ARG , emu::Site site = emu::Site::here()
#define WF_AT_PASS , site

namespace emu {

struct Site {
    const char *file;
    int         line;
    static Site here(const char *file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

struct View { // a CUDA thread's idea of itself
    uint3 thread, block;
    dim3  block_size, grid_size;
};
extern __thread const View *current; // a fiber never moves to another OS thread

enum class WarpOp { sync, shuffle, shuffle_up, shuffle_down, shuffle_xor, ballot, any, all };
enum class Access { read, write };

void     block_sync(Site site);
void     cluster_sync(Site site);
uint64_t warp(WarpOp op, unsigned mask, uint64_t value, int argument, int width, Site site);

unsigned strided_grid(unsigned blocks);
unsigned cluster_rank(), cluster_size();
void    *cluster_map(void *p, unsigned rank, Site site);
void    *dynamic_shared();
void    *static_shared(const void *key, size_t size);
void     shared_access(const void *p, size_t size, size_t alignment); // the caller's return address tells accesses apart
void     global_access(const void *p, size_t size, Access access, Site site);
void     async_copy16(void *s, const void *p, Site site);
void     async_commit();
void     async_wait(int left);

using Invoke = void (*)(const void *kernel, const void *params);
const void *register_kernel(const void *kernel, Invoke invoke, size_t params_size);

template <class T> inline T shuffle(WarpOp op, unsigned mask, T value, int argument, int width, Site site)
{
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value, "what a shuffle can move");
    uint64_t bits = 0;
    memcpy(&bits, static_cast<const void *>(&value), sizeof value);
    bits = warp(op, mask, bits, argument, width, site);
    memcpy(static_cast<void *>(&value), &bits, sizeof value);
    return value;
}

} // namespace emu

#define threadIdx (emu::current->thread)
#define blockIdx  (emu::current->block)
#define blockDim  (emu::current->block_size)
#define gridDim   (emu::current->grid_size)
static constexpr int warpSize = 32;

inline void __syncthreads(emu::Site site = emu::Site::here())
{
    emu::block_sync(site);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, emu::Site site = emu::Site::here())
{
    emu::warp(emu::WarpOp::sync, mask, 0, 0, 32, site);
}
inline unsigned __ballot_sync(unsigned mask, int p, emu::Site site = emu::Site::here())
{
    return static_cast<unsigned>(emu::warp(emu::WarpOp::ballot, mask, p != 0, 0, 32, site));
}
inline int __any_sync(unsigned mask, int p, emu::Site site = emu::Site::here())
{
    return static_cast<int>(emu::warp(emu::WarpOp::any, mask, p != 0, 0, 32, site));
}
inline int __all_sync(unsigned mask, int p, emu::Site site = emu::Site::here())
{
    return static_cast<int>(emu::warp(emu::WarpOp::all, mask, p != 0, 0, 32, site));
}
template <class T>
inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32, emu::Site site = emu::Site::here())
{
    return emu::shuffle(emu::WarpOp::shuffle, mask, value, lane, width, site);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, emu::Site site = emu::Site::here())
{
    return emu::shuffle(emu::WarpOp::shuffle_up, mask, value, static_cast<int>(delta), width, site);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, emu::Site site = emu::Site::here())
{
    return emu::shuffle(emu::WarpOp::shuffle_down, mask, value, static_cast<int>(delta), width, site);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, emu::Site site = emu::Site::here())
{
    return emu::shuffle(emu::WarpOp::shuffle_xor, mask, value, lanes, width, site);
}
template <class T> WF_ON_DEVICE T min(T a, T b)
{
    return b < a ? b : a;
}
template <class T> WF_ON_DEVICE T max(T a, T b)
{
    return a < b ? b : a;
}

#define WF_SHARED(T, name, n)                                                                                          \
    static const char name##_key = 0;                                                                                  \
    const dev::shared<T> name(static_cast<T *>(emu::static_shared(&name##_key, sizeof(T) * (n))))
#define WF_DYN_SHARED(T, name) const dev::shared<T> name(static_cast<T *>(emu::dynamic_shared()))

namespace dev {

// A pointer to shared memory whose every s[i] is checked and metered. As a T * it is a plain pointer: then only the
// sanitizers look.
template <class T> class shared
{
  public:
    explicit shared(T *p) : p_(p) {}
    template <class U, class = typename std::enable_if<std::is_same<const U, T>::value>::type>
    shared(shared<U> s) : p_(s) {}
    operator T *() const { return p_; }
    template <class I> WF_ON_DEVICE T &operator[](I i) const
    {
        emu::shared_access(p_ + i, sizeof(T), alignof(T));
        return p_[i];
    }
    template <class I> WF_ON_DEVICE shared operator+(I n) const { return shared(p_ + n); }
    WF_ON_DEVICE T *operator->() const { return &(*this)[0]; }
    WF_ON_DEVICE T &operator*() const { return (*this)[0]; }

  private:
    T *p_;
};

template <class U, class T> WF_ON_DEVICE shared<U> recast(shared<T> s)
{
    return shared<U>(reinterpret_cast<U *>(static_cast<T *>(s)));
}

template <class V> WF_ON_DEVICE V read(const void *p, emu::Site site)
{
    emu::global_access(p, sizeof(V), emu::Access::read, site);
    return *static_cast<const V *>(p);
}
template <class V> WF_ON_DEVICE void write(void *p, const V &value, emu::Site site)
{
    emu::global_access(p, sizeof(V), emu::Access::write, site);
    *static_cast<V *>(p) = value;
}
template <class V> WF_ON_DEVICE V read_stream(const void *p, emu::Site site)
{
    return read<V>(p, site);
}
template <class V> WF_ON_DEVICE void write_stream(void *p, const V &value, emu::Site site)
{
    write(p, value, site);
}

WF_ON_DEVICE uint16_t narrow_e4m3(float lo, float hi)
{
    return static_cast<uint16_t>(wf_f32_to_e4m3(lo) | wf_f32_to_e4m3(hi) << 8);
}
WF_ON_DEVICE uint16_t narrow_e5m2(float lo, float hi)
{
    return static_cast<uint16_t>(wf_f32_to_e5m2(lo) | wf_f32_to_e5m2(hi) << 8);
}

// Metered as a read: it is L2 that writes.
WF_ON_DEVICE int32_t raise(void *p, int32_t bits, emu::Site site)
{
    emu::global_access(p, sizeof bits, emu::Access::read, site);
    int32_t *at = static_cast<int32_t *>(p), old = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (old < bits && !__atomic_compare_exchange_n(at, &old, bits, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return old;
}

WF_ON_DEVICE void copy_async16(void *s, const void *p, emu::Site site)
{
    emu::async_copy16(s, p, site);
}
inline void cp_async_commit()
{
    emu::async_commit();
}
template <int N> inline void cp_async_wait()
{
    emu::async_wait(N);
}

template <class T> inline T uniform(T value, emu::Site site = emu::Site::here())
{
    return emu::shuffle(emu::WarpOp::shuffle, 0xffffffffu, value, 0, 32, site);
}

inline unsigned strided_grid(unsigned blocks)
{
    return emu::strided_grid(blocks);
}
inline unsigned cluster_rank()
{
    return emu::cluster_rank();
}
inline unsigned cluster_size()
{
    return emu::cluster_size();
}
inline void cluster_sync(emu::Site site = emu::Site::here())
{
    emu::cluster_sync(site);
}
template <class T> inline shared<T> cluster_map(shared<T> s, unsigned rank, emu::Site site = emu::Site::here())
{
    return shared<T>(static_cast<T *>(emu::cluster_map(static_cast<T *>(s), rank, site)));
}

template <class P> const void *entry_point(void (*kernel)(P))
{
    const auto invoke = [](const void *k, const void *params) {
        reinterpret_cast<void (*)(P)>(const_cast<void *>(k))(*static_cast<const P *>(params));
    };
    return emu::register_kernel(reinterpret_cast<const void *>(kernel), invoke, sizeof(P));
}

} // namespace dev
