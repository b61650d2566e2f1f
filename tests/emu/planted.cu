// Kernels with one bug each.
#include "emu_check.hpp"

static constexpr unsigned kAll = 0xffffffffu;

// ---- barriers ----

__global__ void missing_sync(Args a)
{
    WF_SHARED(float, s, 64);
    const unsigned i = threadIdx.x;
    s[i] = static_cast<float>(i);
    dev::store(a.y, i, s[63 - i]);
}

template <unsigned one, unsigned other> __global__ void race_in_a_large_block(Args a)
{
    WF_SHARED(float, s, 1);
    if (threadIdx.x == one)
        s[0] = 1;
    if (threadIdx.x == other)
        dev::store(a.y, 0, s[0]);
}

__global__ void missing_sync_before_next_write(Args a)
{
    WF_SHARED(float, s, 64);
    const unsigned i = threadIdx.x;
    float sum = 0;
    for (unsigned k = 0; k < 4; k++) {
        s[i] = static_cast<float>(i + k);
        __syncthreads();
        sum += s[63 - i];
    }
    dev::store(a.y, i, sum);
}

__global__ void sync_in_a_branch(Args a)
{
    if (threadIdx.x < 32)
        __syncthreads();
    dev::store(a.y, threadIdx.x, 1.f);
}

__global__ void sync_in_both_branches(Args a)
{
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
    dev::store(a.y, threadIdx.x, 1.f);
}

__global__ void return_before_sync(Args a)
{
    if (threadIdx.x >= 40)
        return;
    dev::store(a.y, threadIdx.x, 1.f);
    __syncthreads();
}

__global__ void unequal_number_of_syncs(Args a)
{
    for (unsigned k = 0; k <= threadIdx.x / 32; k++) {
        dev::store(a.y, threadIdx.x, static_cast<float>(k));
        __syncthreads();
    }
}

// ---- warps ----

__global__ void shuffle_in_a_branch(Args a)
{
    float v = 1;
    if (threadIdx.x % 32 < 16)
        v += __shfl_xor_sync(kAll, v, 1);
    dev::store(a.y, threadIdx.x, v);
}

__global__ void shuffle_in_part_of_a_warp(Args a) // 48 threads
{
    dev::store(a.y, threadIdx.x, __shfl_xor_sync(kAll, static_cast<float>(threadIdx.x), 1));
}

__global__ void shuffle_from_outside_the_mask(Args a)
{
    float v = static_cast<float>(threadIdx.x);
    if (threadIdx.x % 32 < 16)
        v = __shfl_sync(0xffffu, v, 20);
    dev::store(a.y, threadIdx.x, v);
}

__global__ void mask_without_the_caller(Args a)
{
    dev::store(a.y, threadIdx.x, __shfl_xor_sync(0xffffu, 1.f, 1));
}

__global__ void mask_with_lanes_that_left(Args a)
{
    if (threadIdx.x % 32 >= 24)
        return;
    dev::store(a.y, threadIdx.x, __shfl_xor_sync(kAll, 1.f, 1));
}

__global__ void shuffle_of_width_24(Args a)
{
    dev::store(a.y, threadIdx.x, __shfl_xor_sync(kAll, 1.f, 1, 24));
}

__global__ void two_collectives_at_once(Args a)
{
    float v;
    if (threadIdx.x % 32 < 16)
        v = __shfl_xor_sync(kAll, 1.f, 1);
    else
        v = __shfl_xor_sync(kAll, 2.f, 1);
    dev::store(a.y, threadIdx.x, v);
}

__global__ void ballot_in_a_branch(Args a)
{
    unsigned v = 0;
    if (threadIdx.x < 40)
        v = __ballot_sync(kAll, threadIdx.x & 1);
    dev::store(a.y, threadIdx.x, static_cast<float>(v));
}

__global__ void missing_syncwarp(Args a)
{
    WF_SHARED(float, s, 64);
    s[threadIdx.x] = static_cast<float>(threadIdx.x);
    dev::store(a.y, threadIdx.x, s[threadIdx.x ^ 1]);
}

__global__ void shuffle_as_a_barrier(Args a)
{
    WF_SHARED(float, s, 64);
    s[threadIdx.x] = static_cast<float>(threadIdx.x);
    const float zero = __shfl_xor_sync(kAll, 0.f, 1);
    dev::store(a.y, threadIdx.x, s[threadIdx.x ^ 1] + zero);
}

// ---- between blocks ----

__global__ void blocks_add_to_one_place(Args a)
{
    if (threadIdx.x == 0)
        dev::store(a.y, 0, dev::load(a.y, 0) + 1);
}

__global__ void blocks_write_one_place(Args a)
{
    if (threadIdx.x == 0)
        dev::store(a.y, 0, static_cast<float>(blockIdx.x));
}

// ---- bounds, alignment, values ----

__global__ void shared_out_of_bounds(Args a)
{
    WF_DYN_SHARED(float, s);
    s[threadIdx.x + 1] = 1;
    __syncthreads();
    dev::store(a.y, threadIdx.x, s[threadIdx.x]);
}

__global__ void shared_out_of_bounds_by_pointer(Args a)
{
    WF_SHARED(float, s, 64);
    float *p = s;
    p[threadIdx.x + 1] = 1;
    __syncthreads();
    dev::store(a.y, threadIdx.x, threadIdx.x ? p[threadIdx.x] : 1.f);
}

__global__ void load_out_of_bounds(Args a)
{
    dev::store(a.y, threadIdx.x, dev::load(a.x, a.n + threadIdx.x));
}

__global__ void store_before_the_buffer(Args a)
{
    dev::store_stream(a.y, static_cast<int64_t>(threadIdx.x) - 1, 1.f);
}

__global__ void misaligned_vector(Args a)
{
    dev::store(a.y, threadIdx.x, dev::load_vec<4>(a.x, 1 + 4 * static_cast<int64_t>(threadIdx.x)).v[0]);
}

__global__ void misaligned_shared_vector(Args a)
{
    WF_SHARED(float, s, 300);
    s[4 * threadIdx.x + 1] = 1;
    const dev::shared<dev::vec<float, 4>> v = dev::recast<dev::vec<float, 4>>(s + 1);
    dev::store(a.y, threadIdx.x, v[threadIdx.x].v[0]);
}

__global__ void shared_never_written(Args a)
{
    WF_SHARED(float, s, 64);
    if (threadIdx.x < 63)
        s[threadIdx.x] = 1;
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < 64; i++)
        sum += s[i];
    dev::store(a.y, threadIdx.x, sum);
}

__global__ void too_much_shared(Args a)
{
    WF_SHARED(float, s, 60000);
    s[threadIdx.x] = 1;
    dev::store(a.y, threadIdx.x, s[threadIdx.x]);
}

__global__ void static_and_dynamic_shared(Args a)
{
    WF_SHARED(float, s, 11000);
    WF_DYN_SHARED(float, t);
    s[threadIdx.x] = t[threadIdx.x] = 1;
    dev::store(a.y, threadIdx.x, s[threadIdx.x] + t[threadIdx.x]);
}

__global__ void shift_beyond_the_width(Args a)
{
    dev::store(a.y, threadIdx.x, static_cast<float>(1 << static_cast<int>(threadIdx.x)));
}

__global__ void index_overflow(Args a)
{
    const int rows = static_cast<int>(a.n), cols = static_cast<int>(a.n);
    dev::store(a.y, threadIdx.x, dev::load(a.x, rows * cols < 0 ? 1 : 0));
}

__global__ void copy(Args a)
{
    dev::store(a.y, threadIdx.x, dev::load(a.x, threadIdx.x));
}

static void host_touches_device_memory(const Buffers &b)
{
    b.y[0] = b.x[1];
}

static void kernel_gets_host_memory(const Buffers &b)
{
    static float x[64];
    Buffers wrong = b;
    wrong.x = x;
    once<copy, 1, 64>(wrong);
}

static void buffer_used_after_free(const Buffers &b)
{
    cudaFree(b.x);
    once<copy, 1, 64>(b);
}

static void buffer_never_written(const Buffers &b)
{
    Buffers fresh = b;
    if (!cudaMalloc(reinterpret_cast<void **>(&fresh.x), 256))
        once<copy, 1, 64>(fresh);
}

// ---- cp.async ----

template <bool wait, bool sync> __global__ void copy_async(Args a)
{
    WF_SHARED(float, s, 256);
    const unsigned i = threadIdx.x;
    dev::cp_async16(s + 4 * i, a.x, 4 * static_cast<int64_t>(i));
    dev::cp_async_commit();
    if (wait)
        dev::cp_async_wait<0>();
    if (sync)
        __syncthreads();
    dev::store(a.y, i, s[4 * (sync ? 63 - i : i ^ 33)]);
    if (!wait)
        dev::cp_async_wait<0>();
}

__global__ void copy_async_never_waited(Args a)
{
    WF_SHARED(float, s, 256);
    dev::cp_async16(s + 4 * threadIdx.x, a.x, 0);
    dev::cp_async_commit();
    dev::store(a.y, threadIdx.x, 1.f);
}

__global__ void copy_async_waits_for_too_few(Args a)
{
    WF_SHARED(float, s, 512);
    const unsigned i = threadIdx.x;
    for (unsigned k = 0; k < 2; k++) {
        dev::cp_async16(s + 256 * k + 4 * i, a.x, 4 * static_cast<int64_t>(i));
        dev::cp_async_commit();
    }
    dev::cp_async_wait<1>();
    dev::store(a.y, i, s[4 * i] + s[256 + 4 * i]);
    dev::cp_async_wait<0>();
}

__global__ void copy_async_over_data_in_use(Args a)
{
    WF_SHARED(float, s, 256);
    const unsigned i = threadIdx.x;
    for (unsigned k = 0; k < 4; k++)
        s[4 * i + k] = 1;
    __syncthreads();
    const float before = s[4 * (63 - i)];
    dev::cp_async16(s + 4 * i, a.x, 4 * static_cast<int64_t>(i));
    dev::cp_async_commit();
    dev::cp_async_wait<0>();
    __syncthreads();
    dev::store(a.y, i, before + s[4 * (63 - i)]);
}

// ---- clusters ----

template <bool sync_before, bool sync_after> __global__ void read_the_other_block(Args a)
{
    WF_SHARED(float, s, 1);
    if (threadIdx.x == 0)
        s[0] = 5;
    if (sync_before)
        dev::cluster_sync();
    if (dev::cluster_rank() == 0)
        dev::store(a.y, threadIdx.x, dev::cluster_map(s, 1)[0]);
    if (sync_after)
        dev::cluster_sync();
}

__global__ void write_unordered_for_the_other_block(Args a)
{
    WF_SHARED(float, s, 64);
    s[threadIdx.x] = 1;
    dev::cluster_sync();
    s[threadIdx.x] = 2;
    if (dev::cluster_rank() == 0)
        dev::store(a.y, threadIdx.x, dev::cluster_map(s, 1)[63 - threadIdx.x]);
    dev::cluster_sync();
}

__global__ void cluster_sync_in_a_branch(Args a)
{
    if (dev::cluster_rank() == 0)
        dev::cluster_sync();
    dev::store(a.y, threadIdx.x, 1.f);
}

__global__ void rank_outside_the_cluster(Args a)
{
    WF_SHARED(float, s, 64);
    s[threadIdx.x] = 1;
    dev::cluster_sync();
    dev::store(a.y, threadIdx.x, dev::cluster_map(s, dev::cluster_rank() + 1)[threadIdx.x]);
    dev::cluster_sync();
}

static void beyond_x(const Buffers &b)
{
    launch<load_out_of_bounds>(b, {dim3(1), dim3(64)}, Buffers::kFloats - 63);
}

static void overflowing(const Buffers &b)
{
    launch<index_overflow>(b, {dim3(1), dim3(32)}, 70000);
}

// name, launch, and who notices: plain, ASan + UBSan, TSan
const Case planted_cases[] = {
    {"missing sync", once<missing_sync, 1, 64>, "results", "results", "race"},
    {"race of neighbors in a block of 512", once<race_in_a_large_block<4, 6>, 1, 512>, "results", "results", "race"},
    {"race far apart in a block of 512", once<race_in_a_large_block<5, 133>, 1, 512>, "results", "results", "race"},
    {"missing sync before next write", once<missing_sync_before_next_write, 1, 64>, "results", "results", "race"},
    {"sync in a branch", once<sync_in_a_branch, 1, 64>, "divergence", "divergence", "divergence"},
    {"sync in both branches", once<sync_in_both_branches, 1, 64>, "divergence", "divergence", "divergence"},
    {"return before sync", once<return_before_sync, 1, 64>, "divergence", "divergence", "divergence"},
    {"unequal number of syncs", once<unequal_number_of_syncs, 1, 64>, "divergence", "divergence", "divergence"},
    {"shuffle in a branch", once<shuffle_in_a_branch, 1, 64>, "divergence", "divergence", "divergence"},
    {"shuffle in part of a warp", once<shuffle_in_part_of_a_warp, 1, 48>, "warp", "warp", "warp"},
    {"shuffle from outside the mask", once<shuffle_from_outside_the_mask, 1, 64>, "warp", "warp", "warp"},
    {"mask without the caller", once<mask_without_the_caller, 1, 64>, "warp", "warp", "warp"},
    {"mask with lanes that left", once<mask_with_lanes_that_left, 1, 64>, "divergence", "divergence", "divergence"},
    {"shuffle of width 24", once<shuffle_of_width_24, 1, 64>, "warp", "warp", "warp"},
    {"two collectives at once", once<two_collectives_at_once, 1, 64>, "divergence", "divergence", "divergence"},
    {"ballot in a branch", once<ballot_in_a_branch, 1, 64>, "divergence", "divergence", "divergence"},
    {"missing syncwarp", once<missing_syncwarp, 1, 64>, "results", "results", "race"},
    {"shuffle as a barrier", once<shuffle_as_a_barrier, 1, 64>, "-", "-", "race"},
    {"blocks add to one place", once<blocks_add_to_one_place, 4, 64>, "-", "-", "race"},
    {"blocks write one place", once<blocks_write_one_place, 4, 64>, "results", "results", "race"},
    {"shared out of bounds", once<shared_out_of_bounds, 1, 64, 256>, "shared-memory", "shared-memory", "shared-memory"},
    {"shared out of bounds, by pointer", once<shared_out_of_bounds_by_pointer, 1, 64>, "-", "address", "-"},
    {"load out of bounds", beyond_x, "global-memory", "global-memory", "global-memory"},
    {"store before the buffer", once<store_before_the_buffer, 1, 64>, "global-memory", "global-memory", "global-memory"},
    {"misaligned vector", once<misaligned_vector, 1, 64>, "misaligned", "misaligned", "misaligned"},
    {"misaligned shared vector", once<misaligned_shared_vector, 1, 64>, "misaligned", "misaligned", "misaligned"},
    {"shared never written", once<shared_never_written, 1, 64>, "results", "results", "results"},
    {"too much shared", once<too_much_shared, 1, 64>, "shared-memory", "shared-memory", "shared-memory"},
    {"static and dynamic above the default", once<static_and_dynamic_shared, 1, 64, 8 << 10>, "shared-memory",
     "shared-memory", "shared-memory"},
    {"shift beyond the width", once<shift_beyond_the_width, 1, 64>, "-", "undefined", "-"},
    {"index overflow", overflowing, "-", "undefined", "-"},
    {"host touches device memory", host_touches_device_memory, "host-access", "host-access", "host-access"},
    {"kernel gets host memory", kernel_gets_host_memory, "global-memory", "global-memory", "global-memory"},
    {"buffer used after free", buffer_used_after_free, "global-memory", "global-memory", "global-memory"},
    {"buffer never written", buffer_never_written, "results", "results", "results"},
    {"cp.async without wait", once<copy_async<false, true>, 1, 64>, "cp.async", "cp.async", "cp.async"},
    {"cp.async without barrier", once<copy_async<true, false>, 1, 64>, "results", "results", "race"},
    {"cp.async never waited for", once<copy_async_never_waited, 1, 64>, "cp.async", "cp.async", "cp.async"},
    {"cp.async waits for too few", once<copy_async_waits_for_too_few, 1, 64>, "cp.async", "cp.async", "cp.async"},
    {"cp.async over data in use", once<copy_async_over_data_in_use, 1, 64>, "results", "results", "race"},
    {"cluster: block leaves early", once<read_the_other_block<true, false>, 2, 64, 0, 2>, "cluster", "cluster", "cluster"},
    {"cluster: read before sync", once<read_the_other_block<false, true>, 2, 64, 0, 2>, "cluster", "cluster", "cluster"},
    {"cluster: unordered write", once<write_unordered_for_the_other_block, 2, 64, 0, 2>, "results", "results", "race"},
    {"cluster: sync in a branch", once<cluster_sync_in_a_branch, 2, 64, 0, 2>, "divergence", "divergence", "divergence"},
    {"cluster: rank outside", once<rank_outside_the_cluster, 2, 64, 0, 2>, "cluster", "cluster", "cluster"},
    {},
};
