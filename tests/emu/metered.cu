// The meter and the runtime, held to what can be counted by hand.
#include <cstdio>
#include <cstring>

#include "emu_check.hpp"
#include "emu_control.h"
#include "meter.h"

static int failures;

static void expect(const char *file, int line, const char *what, long long is, long long should)
{
    if (is != should) {
        printf("%s:%d: %s is %lld, not %lld\n", file, line, what, is, should);
        failures++;
    }
}
#define EXPECT(value, should) expect(__FILE__, __LINE__, #value, static_cast<long long>(value), static_cast<long long>(should))

// ---- the meter ----

__global__ void copy_vectors(Args a)
{
    const int64_t i = 4 * (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x);
    dev::store_vec<4>(a.y, i, dev::load_vec<4>(a.x, i));
}

__global__ void copy_with_stride(Args a) // n elements from lane to lane
{
    const int64_t i = a.n * threadIdx.x;
    dev::store(a.y, threadIdx.x, dev::load(a.x, i));
}

__global__ void read_again_and_again(Args a) // a loop whose last round only some lanes go
{
    float sum = 0;
    for (int64_t i = threadIdx.x; i < a.n; i += blockDim.x)
        sum += dev::load(a.x, i) + dev::load(a.x, i / 64);
    __syncthreads();
    dev::store(a.y, threadIdx.x, __shfl_xor_sync(0xffffffffu, sum, 1));
}

__global__ void shared_with_stride(Args a)
{
    WF_SHARED(float, s, 33 * 32);
    dev::store(a.y, threadIdx.x, s[static_cast<int64_t>(threadIdx.x) * a.n]);
}

__global__ void shared_vectors(Args)
{
    WF_SHARED(float, s, 32 * 8);
    const dev::shared<dev::vec<float, 4>> v = dev::recast<dev::vec<float, 4>>(s);
    v[threadIdx.x] = {{1, 2, 3, 4}};
    __syncthreads();
    v[2 * threadIdx.x] = {{1, 2, 3, 4}};
}

__global__ void shared_by_async_copy(Args a)
{
    WF_SHARED(float, s, 128);
    dev::cp_async16(s + 4 * threadIdx.x, a.x, 4 * static_cast<int64_t>(threadIdx.x));
    dev::cp_async_commit();
    dev::cp_async_wait<0>();
    dev::cluster_sync();
    const dev::shared<float> other = dev::cluster_map(s, 1 - dev::cluster_rank());
    dev::store(a.y, 32 * static_cast<int64_t>(blockIdx.x) + threadIdx.x, other[threadIdx.x]);
    dev::cluster_sync();
}

static uint64_t ways_of_stride(const Buffers &b, int64_t stride)
{
    meter_start();
    launch<shared_with_stride>(b, {dim3(1), dim3(32)}, stride);
    meter_stop();
    EXPECT(meter_total()->shared_instructions, 1);
    return meter_total()->shared_ways;
}

static void meter_of(const Buffers &b)
{
    meter_name(b.x, "x");
    meter_start();
    once<copy_vectors, 4, 128>(b); // 512 threads of 16 bytes
    launch<copy_with_stride>(b, {dim3(1), dim3(32)}, 8);
    launch<copy_with_stride>(b, {dim3(1), dim3(32)}, 1);
    launch<read_again_and_again>(b, {dim3(1), dim3(64)}, 200);
    meter_stop();
    EXPECT(meter_launches(), 4);

    const struct meter_record *r = meter_launch(0);
    const struct meter_buffer *x = meter_find(r, b.x), *y = meter_find(r, b.y + 1);
    EXPECT(r->blocks, 4);
    EXPECT(r->threads, 512);
    EXPECT(r->buffers, 2);
    EXPECT(strcmp(x->name, "x"), 0);
    EXPECT(x->read.bytes, 8192);
    EXPECT(x->read.sectors, 256);
    EXPECT(x->read.distinct, 256);
    EXPECT(x->read.width[4], 512);
    EXPECT(x->write.bytes, 0);
    EXPECT(y->write.bytes, 8192);
    EXPECT(y->write.sectors, 256);
    EXPECT(y->read.bytes, 0);

    r = meter_launch(1); // a sector for each lane, and four for the store
    EXPECT(meter_find(r, b.x)->read.bytes, 128);
    EXPECT(meter_find(r, b.x)->read.sectors, 32);
    EXPECT(meter_find(r, b.y)->write.sectors, 4);
    EXPECT(meter_find(r, b.y)->write.width[2], 32);

    r = meter_launch(2);
    EXPECT(meter_find(r, b.x)->read.sectors, 4);

    r = meter_launch(3); // 200 floats are 25 sectors; x[i / 64] is one sector for each of the 7 instructions
    EXPECT(meter_find(r, b.x)->read.bytes, 1600);
    EXPECT(meter_find(r, b.x)->read.sectors, 32);
    EXPECT(meter_find(r, b.x)->read.distinct, 25);
    EXPECT(r->block_barriers, 1);
    EXPECT(r->warp_collectives, 2);

    r = meter_total();
    EXPECT(r->launches, 4);
    EXPECT(meter_find(r, b.x)->read.bytes, 8192 + 128 + 128 + 1600);
    EXPECT(meter_find(r, b.x)->read.distinct, 256);
    EXPECT(meter_find(r, &b) == nullptr, true);

    EXPECT(ways_of_stride(b, 0), 1); // a broadcast
    EXPECT(ways_of_stride(b, 1), 1);
    EXPECT(ways_of_stride(b, 2), 2);
    EXPECT(ways_of_stride(b, 32), 32);
    EXPECT(ways_of_stride(b, 33), 1);

    meter_start();
    once<shared_vectors, 1, 32>(b);
    meter_stop();
    EXPECT(meter_total()->shared_instructions, 2);
    EXPECT(meter_total()->shared_wavefronts, 4 + 8);
    EXPECT(meter_total()->shared_ways, 2);

    meter_start();
    once<shared_by_async_copy, 2, 32, 0, 2>(b);
    meter_stop();
    EXPECT(meter_find(meter_total(), b.x)->read.width[4], 64);
    EXPECT(meter_total()->shared_wavefronts, 8);
    EXPECT(meter_total()->remote_bytes, 256);
    EXPECT(meter_total()->cluster_barriers, 2);
    EXPECT(meter_total()->shared_size, 512);
}

int check_meter()
{
    static const struct emu_schedule schedules[] = {
        {EMU_LINEAR, 1, 1, 1, 0}, {EMU_REVERSE, 1, 2, 1, 0}, {EMU_RANDOM, 5, 2, 2, 0}};
    failures = 0;
    Buffers b;
    const size_t size = Buffers::kFloats * sizeof(float);
    cudaMalloc(reinterpret_cast<void **>(&b.x), size);
    cudaMalloc(reinterpret_cast<void **>(&b.y), size);
    for (const struct emu_schedule &s : schedules) {
        emu_set_schedule(s);
        meter_of(b);
    }
    emu_set_schedule({EMU_LINEAR, 1, 1, 1, 0});
    cudaFree(b.x);
    cudaFree(b.y);
    return failures;
}

// ---- the runtime ----

#ifdef EMU_TSAN
static constexpr unsigned kManyBlocks = 300; // it takes its time
#else
static constexpr unsigned kManyBlocks = 70000;
#endif

__global__ void count_block(Args a)
{
    if (threadIdx.x == 0)
        dev::store(a.y, blockIdx.x, dev::load(a.y, blockIdx.x) + 1);
}

static cudaError_t launch_of(const Buffers &b, dev::LaunchCfg cfg)
{
    const Args args = {dev::global<const float>(b.x), dev::global<float>(b.y), 0};
    return dev::launch(cfg, count_block, args);
}

static unsigned counted(const Buffers &b)
{
    static float of_block[kManyBlocks];
    float        count = 0;
    cudaMemcpy(of_block, b.y, sizeof of_block, cudaMemcpyDeviceToHost);
    for (const float n : of_block)
        count += n;
    return static_cast<unsigned>(count);
}

int check_runtime()
{
    failures = 0;
    const struct emu_device h100 = emu_device();
    Buffers b = {};
    float host[4] = {1, 2, 3, 4};
    const size_t size = kManyBlocks * sizeof(float);
    EXPECT(cudaMalloc(reinterpret_cast<void **>(&b.y), size), cudaSuccess);
    EXPECT(cudaMemset(b.y, 0, size), cudaSuccess);
    EXPECT(emu_is_device(b.y + kManyBlocks - 1), true);
    EXPECT(emu_is_device(b.y + kManyBlocks), false);
    EXPECT(emu_is_device(host), false);

    // what a launch may ask for
    EXPECT(launch_of(b, {dim3(kManyBlocks), dim3(32)}), cudaSuccess);
    EXPECT(counted(b), kManyBlocks);
    EXPECT(launch_of(b, {dim3(0), dim3(32)}), cudaErrorInvalidConfiguration);
    EXPECT(launch_of(b, {dim3(1, 65536), dim3(32)}), cudaErrorInvalidConfiguration);
    EXPECT(launch_of(b, {dim3(1), dim3(1025)}), cudaErrorInvalidConfiguration);
    EXPECT(launch_of(b, {dim3(1), dim3(32), 227 * 1024 + 1}), cudaErrorInvalidValue);
    EXPECT(launch_of(b, {dim3(3), dim3(32), 0, nullptr, 2}), cudaErrorInvalidClusterSize);
    EXPECT(launch_of(b, {dim3(32), dim3(32), 0, nullptr, 32}), cudaErrorInvalidClusterSize);
    EXPECT(launch_of(b, {dim3(1), dim3(32), 0, reinterpret_cast<cudaStream_t>(host)}), cudaErrorInvalidResourceHandle);
    emu_set_device({1, 8, 0, 108, 48 << 10, 163 << 10});
    EXPECT(launch_of(b, {dim3(2), dim3(32), 0, nullptr, 2}), cudaErrorNotSupported);
    EXPECT(launch_of(b, {dim3(1), dim3(32), 164 << 10}), cudaErrorInvalidValue);
    emu_set_device(h100);
    EXPECT(cudaPeekAtLastError(), cudaErrorInvalidValue);
    EXPECT(cudaGetLastError(), cudaErrorInvalidValue);
    EXPECT(cudaGetLastError(), cudaSuccess);
    EXPECT(counted(b), kManyBlocks);

    // memory
    EXPECT(cudaMemcpy(host, b.y, size + 1, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
    EXPECT(cudaMemcpy(host, b.y, 16, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    EXPECT(cudaMemset(host, 0, 4), cudaErrorInvalidValue);
    EXPECT(cudaFree(b.y + 1), cudaErrorInvalidValue);
    cudaGetLastError();
    void *large = nullptr; // sparse
    EXPECT(cudaMalloc(&large, size_t{17} << 30), cudaSuccess);
    EXPECT(cudaMemcpy(static_cast<char *>(large) + (size_t{17} << 30) - 16, host, 16, cudaMemcpyHostToDevice), cudaSuccess);
    EXPECT(cudaFree(large), cudaSuccess);
    EXPECT(cudaMalloc(&large, size_t{1} << 40), cudaErrorMemoryAllocation);
    EXPECT(cudaGetLastError(), cudaErrorMemoryAllocation);

    // streams, and the one that a launch was given
    cudaStream_t stream;
    EXPECT(cudaStreamCreate(&stream), cudaSuccess);
    meter_start();
    EXPECT(launch_of(b, {dim3(1), dim3(32), 0, stream}), cudaSuccess);
    meter_stop();
    EXPECT(meter_launch(0)->stream == stream, true);
    EXPECT(cudaStreamDestroy(stream), cudaSuccess);
    EXPECT(cudaStreamSynchronize(stream), cudaErrorInvalidResourceHandle);
    cudaGetLastError();

    // injected faults: a launch with much shared memory is two calls
    for (long k = 1; k <= 3; k++) {
        const unsigned before = counted(b);
        emu_fail_call(k, cudaErrorUnknown);
        EXPECT(launch_of(b, {dim3(1), dim3(32), 100 << 10}), k <= 2 ? cudaErrorUnknown : cudaSuccess);
        emu_fail_call(0, 0);
        EXPECT(cudaGetLastError(), k <= 2 ? cudaErrorUnknown : cudaSuccess);
        EXPECT(counted(b), before + (k > 2));
    }

    // devices
    int value = 0;
    EXPECT(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, 0), cudaSuccess);
    EXPECT(value, 132);
    EXPECT(cudaSetDevice(1), cudaErrorInvalidDevice);
    emu_set_device({0, 0, 0, 0, 0, 0});
    EXPECT(cudaGetDeviceCount(&value), cudaErrorInsufficientDriver);
    emu_set_device(h100);
    EXPECT(cudaFree(b.y), cudaSuccess);
    EXPECT(cudaGetLastError(), cudaErrorInsufficientDriver);
    return failures;
}
