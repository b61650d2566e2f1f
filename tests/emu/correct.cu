// Correct kernels, which nobody may complain about, and what they give: the contract of device.cuh, which the emulator and a
// GPU (tests/test_primitives.c) are held to by this one source.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "emu_check.hpp"

static constexpr unsigned kAll = 0xffffffffu;

__global__ void sum_of_a_block(Args a)
{
    WF_SHARED(float, s, 4);
    float sum = dev::load(a.x, threadIdx.x);
    for (int lanes = 16; lanes; lanes /= 2)
        sum += __shfl_xor_sync(kAll, sum, lanes);
    if (threadIdx.x % 32 == 0)
        s[threadIdx.x / 32] = sum;
    __syncthreads();
    dev::store(a.y, 128 * static_cast<int64_t>(blockIdx.x) + threadIdx.x, s[0] + s[1] + s[2] + s[3]);
}

__global__ void sums_of_eight_lanes(Args a)
{
    const unsigned lane = threadIdx.x % 32, mask = 0xffu << (lane & ~7u);
    float sum = dev::load(a.x, threadIdx.x);
    for (unsigned rows = 0; rows <= lane / 8; rows++) { // groups go round as often as they like
        sum = dev::load(a.x, threadIdx.x);
        for (int lanes = 4; lanes; lanes /= 2)
            sum += __shfl_xor_sync(mask, sum, lanes, 8);
    }
    dev::store(a.y, threadIdx.x, sum);
}

__global__ void half_warps_part_and_meet(Args a)
{
    float v = static_cast<float>(threadIdx.x);
    if (threadIdx.x % 32 < 16)
        v = __shfl_sync(0xffffu, v, 3);
    __syncwarp();
    const unsigned low = __ballot_sync(kAll, threadIdx.x % 32 < 16);
    dev::store(a.y, threadIdx.x, low == 0xffff ? v : -1.f);
}

__global__ void shuffles_and_votes(Args a)
{
    const int lane = static_cast<int>(threadIdx.x % 32);
    const double up = __shfl_up_sync(kAll, static_cast<double>(lane), 1), down = __shfl_down_sync(kAll, 1.0 * lane, 2);
    const int16_t wide = __shfl_sync(kAll, static_cast<int16_t>(lane), 37); // modulo 32
    const int across = __shfl_xor_sync(kAll, lane, 5), of_eight = __shfl_sync(kAll, lane, 3, 8);
    const bool right = up == (lane ? lane - 1 : 0) && down == (lane < 30 ? lane + 2 : lane) && wide == 5 &&
                       across == (lane ^ 5) && of_eight == lane / 8 * 8 + 3;
    const bool any = __any_sync(kAll, lane == 7) && !__any_sync(kAll, lane > 31);
    dev::store(a.y, threadIdx.x, __all_sync(kAll, right) && !__all_sync(kAll, lane != 7) && any ? 1.f : 0.f);
}

__global__ void neighbours_by_syncwarp(Args a)
{
    WF_SHARED(float, s, 64);
    for (int k = 0; k < 3; k++) {
        s[threadIdx.x] = static_cast<float>(threadIdx.x);
        __syncwarp();
        dev::store(a.y, threadIdx.x, s[threadIdx.x ^ 1]);
        __syncwarp();
    }
}

__global__ void copies_in_two_stages(Args a) // 4 chunks of 256
{
    WF_DYN_SHARED(float, s);
    const int64_t at = 4 * static_cast<int64_t>(threadIdx.x);
    float sum = 0;
    dev::cp_async16(s + at, a.x, at);
    dev::cp_async_commit();
    for (int k = 0; k < 4; k++) {
        if (k < 3)
            dev::cp_async16(s + 256 * ((k + 1) % 2) + at, a.x, 256 * (k + 1) + at);
        dev::cp_async_commit();
        dev::cp_async_wait<1>();
        __syncthreads();
        sum += s[256 * (k % 2) + (at + 4) % 256];
        __syncthreads();
    }
    dev::store(a.y, threadIdx.x, sum);
}

__global__ void sum_of_a_cluster(Args a)
{
    WF_SHARED(float, s, 64);
    s[threadIdx.x] = static_cast<float>(dev::cluster_rank() + 1);
    dev::cluster_sync();
    float sum = 0;
    for (unsigned r = 0; r < dev::cluster_size(); r++)
        sum += dev::cluster_map(s, r)[63 - threadIdx.x];
    dev::cluster_sync();
    dev::store(a.y, 64 * static_cast<int64_t>(blockIdx.x) + threadIdx.x, sum);
}

__global__ void partial_sums(Args a)
{
    dev::store_stream(a.y, 64 + 64 * static_cast<int64_t>(blockIdx.x) + threadIdx.x, 2.f);
}

__global__ void finish(Args a)
{
    float sum = 0;
    for (int64_t b = 0; b < a.n; b++)
        sum += dev::load_stream(a.y, 64 + 64 * b + threadIdx.x);
    dev::store(a.y, threadIdx.x, sum);
}

static void two_kernels(const Buffers &b)
{
    once<partial_sums, 4, 64>(b);
    launch<finish>(b, {dim3(1), dim3(64)}, 4);
}

__global__ void vectors_in_place(Args a) // grid-stride
{
    const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < a.n / 4; i += stride) {
        dev::vec<float, 4> v = dev::load_vec_stream<4>(a.x, 4 * i);
        for (float &e : v.v)
            e += 1;
        dev::store_vec_stream<4>(a.y, 4 * i, v);
    }
}

static void vectors_of_one_buffer(const Buffers &b)
{
    Buffers same = b;
    same.x = b.y;
    launch<vectors_in_place>(same, {dim3(3), dim3(64)}, 1024);
}

__global__ void much_shared_in_parts(Args a) // 200 KiB
{
    WF_DYN_SHARED(unsigned char, all);
    const dev::shared<float> f = dev::recast<float>(all);
    const dev::shared<dev::vec<float, 4>> v = dev::recast<dev::vec<float, 4>>(all + 100 * 1024);
    f[threadIdx.x] = static_cast<float>(threadIdx.x);
    v[threadIdx.x] = {{1, 2, 3, 4}};
    __syncthreads();
    const unsigned other = 63 - threadIdx.x;
    dev::store(a.y, threadIdx.x, f[other] + f[25 * 1024 + 4 * other + 3]); // what v[other].v[3] is
}

// ---- global memory: 256 floats for each of a grid's blocks of 64 threads, copied as T, N at a time ----

template <class T, class F> WF_ON_DEVICE dev::global<T> as(dev::global<F> h)
{
    return dev::global<T>(reinterpret_cast<T *>(dev::address(h)));
}

template <class T, int N> WF_ON_DEVICE void copy16(Args a, unsigned block, int way)
{
    constexpr int each = 16 / static_cast<int>(sizeof(T));
    const dev::global<const T> from = as<const T>(a.x);
    const dev::global<T> to = as<T>(a.y);
    const int64_t begin = (64 * static_cast<int64_t>(block) + threadIdx.x) * each;
    for (int64_t i = begin; i < begin + each; i += N) {
        if (way == 0)
            dev::store_vec(to, i, dev::load_vec<N>(from, i));
        else if (way == 1)
            dev::store_vec_stream(to, i, dev::load_vec_stream<N>(from, i));
        else
            for (int j = 0; j < N; j++)
                way == 2 ? dev::store(to, i + j, dev::load(from, i + j))
                         : dev::store_stream(to, i + j, dev::load_stream(from, i + j));
    }
}

__global__ void every_width(Args a) // 16 blocks
{
    const int way = static_cast<int>(blockIdx.x % 4);
    switch (blockIdx.x / 4) {
    case 0: return copy16<unsigned char, 4>(a, blockIdx.x, way);
    case 1: return copy16<unsigned short, 8>(a, blockIdx.x, way);
    case 2: return copy16<float, 2>(a, blockIdx.x, way);
    default: return copy16<double, 1>(a, blockIdx.x, way);
    }
}

__global__ void words(Args a) // 2 blocks
{
    const int64_t i = 64 * static_cast<int64_t>(blockIdx.x) + threadIdx.x;
    const dev::global<const unsigned short> from = as<const unsigned short>(a.x);
    const auto w = blockIdx.x ? dev::load_words<8, true>(from, 8 * i) : dev::load_words<8, false>(from, 8 * i);
    for (int k = 0; k < 4; k++)
        dev::store(as<uint32_t>(a.y), 4 * i + k, w.v[k]);
}

// In place, by either kind of access: what a thread wrote it reads.
__global__ void a_thread_sees_its_writes(Args a)
{
    const int64_t i = threadIdx.x;
    dev::store_stream(a.y, i, dev::load(a.x, i));
    dev::store(a.y, i, dev::load_stream(a.y, i) + 1);
    dev::store_stream(a.y, i, dev::load(a.y, i) + 1);
    dev::store(a.y, i, dev::load(a.y, i) + 1);
}

WF_ON_DEVICE int32_t bits_of_float(float x)
{
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

// By all threads at once; what is less changes nothing, and what was there comes back.
__global__ void largest_of_all(Args a) // 4 blocks
{
    const int i = static_cast<int>(64 * blockIdx.x + threadIdx.x), mine = bits_of_float(static_cast<float>(i));
    dev::raise(a.y, i % 4, mine);
    if (dev::raise(a.y, i % 4, -1) < mine)
        dev::store(a.y, i % 4, -1.f);
}

// ---- 8 bits ----

// What is, or is in the middle between, numbers of 8 bits; then floats from all over, the last NaN; and Inf.
WF_HOST_DEVICE float spread(int i)
{
    const uint32_t k = static_cast<uint32_t>(i % 1024), sign = i / 3 % 2 ? 0x80000000u : 0u;
    return wf_float_from_bits(sign | (k < 512 ? 0x37000000u + 0x80000u * k : k < 1022 ? 0x3fffffu * (k - 511) : 0x7f800000u));
}

// Two of them.
WF_HOST_DEVICE float narrowed(int i)
{
    const float lo = spread(i), hi = spread(i * 7 + 5);
    return static_cast<float>(i / 1024 ? wf_f32_to_e4m3(lo) | wf_f32_to_e4m3(hi) << 8
                                       : wf_f32_to_e5m2(lo) | wf_f32_to_e5m2(hi) << 8);
}

__global__ void narrowing(Args a) // 32 blocks
{
    const int i = static_cast<int>(64 * blockIdx.x + threadIdx.x);
    const float lo = spread(i), hi = spread(i * 7 + 5);
    dev::store(a.y, i, static_cast<float>(i / 1024 ? dev::narrow_e4m3(lo, hi) : dev::narrow_e5m2(lo, hi)));
}

// ---- shared memory ----

__global__ void arrays_are_aligned_and_apart(Args a)
{
    WF_SHARED(unsigned char, bytes, 3);
    WF_SHARED(float, floats, 5);
    WF_DYN_SHARED(double, doubles);
    const auto of16 = [](const void *p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
    const unsigned char *b = bytes;
    const float *f = floats;
    const double *d = doubles;
    if (threadIdx.x < 3)
        bytes[threadIdx.x] = 3;
    if (threadIdx.x < 5)
        floats[threadIdx.x] = 5;
    if (threadIdx.x < 8)
        doubles[threadIdx.x] = 8;
    __syncthreads();
    const bool apart = bytes[threadIdx.x % 3] == 3 && floats[threadIdx.x % 5] == 5 && doubles[threadIdx.x % 8] == 8;
    dev::store(a.y, threadIdx.x, of16(b) && of16(f) && of16(d) && apart ? 1.f : 0.f);
}

__global__ void copies_into_two_slots(Args a) // a ring, the latest copy still on its way; 4 floats a thread and slot
{
    WF_SHARED(float, ring, 3 * 256);
    const int mine = 4 * static_cast<int>(threadIdx.x);
    for (int k = 0; k < 2; k++) {
        dev::cp_async16(ring + 256 * k + mine, a.x, 256 * k + mine);
        dev::cp_async_commit();
    }
    float sum = 0;
    for (int k = 0; k < 4; k++) {
        if (k + 2 < 4)
            dev::cp_async16(ring + 256 * ((k + 2) % 3) + mine, a.x, 256 * (k + 2) + mine);
        dev::cp_async_commit();
        dev::cp_async_wait<2>(); // no barrier: a thread reads its own
        for (int j = 0; j < 4; j++)
            sum += ring[256 * (k % 3) + mine + j];
    }
    dev::store(a.y, threadIdx.x, sum);
}

// ---- warps, blocks, clusters ----

__global__ void uniform_values(Args a)
{
    const unsigned warp = dev::uniform(threadIdx.x / 32 + 5);
    const uint64_t large = dev::uniform((static_cast<uint64_t>(threadIdx.x / 32) << 40) + 7);
    dev::store(a.y, threadIdx.x, static_cast<float>(warp) + static_cast<float>(large >> 40) + static_cast<float>(large & 7));
}

// The barrier, rank, size and map are a block's own where there are no clusters.
__global__ void cluster_of_one(Args a)
{
    WF_SHARED(float, s, 256);
    s[threadIdx.x] = static_cast<float>(threadIdx.x + dev::cluster_rank());
    dev::cluster_sync();
    const float other = dev::cluster_map(s, 0)[255 - threadIdx.x];
    dev::cluster_sync();
    dev::store(a.y, 256 * static_cast<int64_t>(blockIdx.x) + threadIdx.x, other * static_cast<float>(dev::cluster_size()));
}

__global__ void ranks_of_a_cluster(Args a)
{
    dev::store(a.y, 64 * static_cast<int64_t>(blockIdx.x) + threadIdx.x,
               static_cast<float>(10 * dev::cluster_size() + dev::cluster_rank()));
}

// ---- arithmetic: the host's bits, with subnormal numbers and without contraction ----

WF_HOST_DEVICE float computed(float x, int i)
{
    const float third = x / 3, small = x * 1e-42f;
    const double precise = static_cast<double>(x) / 3;
    switch (i % 8) {
    case 0: return sqrtf(x) / (third + 1);
    case 1: return third * third - third;
    case 2: return fmaf(third, third, -third);
    case 3: return small * 1e38f;
    case 4: return __half2float(__float2half_rn(third));
    case 5: return __bfloat162float(__float2bfloat16_rn(third));
    case 6: return static_cast<float>(1 / sqrt(precise + 1) - precise * precise);
    default: return static_cast<float>(fma(precise, precise, -precise) * ldexp(1.0, -i % 40));
    }
}

__global__ void arithmetic(Args a)
{
    const int i = static_cast<int>(blockIdx.x * 64 + threadIdx.x);
    dev::store(a.y, i, computed(dev::load(a.x, i), i));
}

static float at(int i)
{
    return static_cast<float>(i);
}

const Case correct_cases[] = {
    {"sum of a block", once<sum_of_a_block, 3, 128>, 0, 0, 0, [](int) { return 8128.f; }, 384},
    {"sums of eight lanes", once<sums_of_eight_lanes, 1, 64>, 0, 0, 0, [](int i) { return at(64 * (i / 8) + 28); }, 64},
    {"half warps part and meet", once<half_warps_part_and_meet, 1, 32>, 0, 0, 0,
     [](int i) { return i < 16 ? 3.f : at(i); }, 32},
    {"shuffles and votes", once<shuffles_and_votes, 1, 64>, 0, 0, 0, [](int) { return 1.f; }, 64},
    {"neighbours by syncwarp", once<neighbours_by_syncwarp, 1, 64>, 0, 0, 0, [](int i) { return at(i ^ 1); }, 64},
    {"copies in two stages", once<copies_in_two_stages, 1, 64, 2048>, 0, 0, 0,
     [](int i) { return at(1536 + 4 * ((4 * i + 4) % 256)); }, 64},
    {"sum of a cluster", once<sum_of_a_cluster, 8, 64, 0, 4>, 0, 0, 0, [](int) { return 10.f; }, 512},
    {"sum of a cluster of 16", once<sum_of_a_cluster, 16, 64, 0, 16>, 0, 0, 0, [](int) { return 136.f; }, 1024},
    {"two kernels", two_kernels, 0, 0, 0, [](int i) { return i < 64 ? 8.f : 2.f; }, 320},
    {"vectors in place", vectors_of_one_buffer, 0, 0, 0, [](int) { return 1.f; }, 1024},
    {"much shared in parts", once<much_shared_in_parts, 1, 64, 200 * 1024>, 0, 0, 0, [](int i) { return at(67 - i); }, 64},
    {"every width", once<every_width, 16, 64>, 0, 0, 0, at, 4096},
    {"words", once<words, 2, 64>, 0, 0, 0, at, 512},
    {"a thread sees its writes", once<a_thread_sees_its_writes, 1, 64>, 0, 0, 0, [](int i) { return at(i + 3); }, 64},
    {"largest of all", once<largest_of_all, 4, 64>, 0, 0, 0, [](int i) { return at(252 + i); }, 4},
    {"narrowing", once<narrowing, 32, 64>, 0, 0, 0, narrowed, 2048},
    {"arrays are aligned and apart", once<arrays_are_aligned_and_apart, 1, 64, 64>, 0, 0, 0, [](int) { return 1.f; }, 64},
    {"copies into two slots", once<copies_into_two_slots, 1, 64>, 0, 0, 0, [](int i) { return at(64 * i + 6168); }, 64},
    {"uniform values", once<uniform_values, 1, 128>, 0, 0, 0, [](int i) { return at(12 + 2 * (i / 32)); }, 128},
    {"cluster of one", once<cluster_of_one, 2, 256>, 0, 0, 0, [](int i) { return at(255 - i % 256); }, 512},
    {"ranks of a cluster", once<ranks_of_a_cluster, 16, 64, 0, 8>, 0, 0, 0, [](int i) { return at(80 + i / 64 % 8); }, 1024},
    {"arithmetic", once<arithmetic, 16, 64>, 0, 0, 0, [](int i) { return computed(at(i), i); }, 1024},
    {},
};
