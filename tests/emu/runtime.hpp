// What the files of the emulator share: CUDA threads, warps, blocks, clusters, and who runs them.
#pragma once
#include <mutex>
#include <vector>

#include "context.hpp"
#include "emu.hpp"
#include "emu_control.h"
#include "sanitizers.hpp"

#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

namespace emu {

struct Block;
struct Cluster;
struct Warp;

enum class State : uint8_t { fresh, ready, running, at_block_barrier, at_warp_collective, at_cluster_barrier, gone };

struct AsyncCopy {
    char       *to;
    const char *from;
    int         group;
};

struct Thread : View {
    Block  *of_block = nullptr;
    Warp   *of_warp = nullptr;
    int     lane = 0;
    State   state = State::fresh;
    Context context;

    // what it brought to a meeting, and what it takes away
    Site     site{};
    unsigned mask = 0;
    int      argument = 0, width = 0;
    uint64_t value = 0, result = 0;

    std::vector<AsyncCopy> copies; // that have not arrived
    int                    group = 0;
};

struct WarpMeeting {
    WarpOp   op{};
    unsigned mask = 0, arrived = 0;
};

struct MeteredWarp; // meter.cpp

struct Warp {
    Thread                  *lane = nullptr; // [32]
    unsigned                 present = 0, gone = 0;
    std::vector<WarpMeeting> meetings; // that are under way
    MeteredWarp             *metered = nullptr;
};

// A block's shared memory: arrays in the order in which its threads first ask for them, red zones between.
struct SharedMemory {
    static constexpr size_t kRoom = 256 << 10, kRedZone = 128;
    struct Array {
        const void *key;
        size_t      offset, size;
    };
    char                 *base = nullptr;
    bool                  own = false;
    size_t                used = 0, payload = 0;
    std::vector<Array>    arrays;
    std::vector<uint8_t>  in_flight; // per 16 bytes: cp.async's on their way
    bool contains(const void *p) const { return p >= base && p < base + kRoom; }
    const Array *find(const void *p, size_t size) const;
    void        *get(const void *key, size_t size); // makes it at the first call
    void         begin(char *room); // NULL: its own
    void         end();
};

struct Block {
    Cluster            *cluster = nullptr;
    unsigned            rank = 0;
    int                 live = 0;    // threads that have not left
    int                 arrived = 0; // at the block's barrier
    Site                barrier{};
    long                mapped = -1; // the cluster's epoch when another block last had access to the shared memory
    std::vector<Thread> threads;
    std::vector<Warp>   warps;
    SharedMemory        shared;
    char               *slab = nullptr; // TSan: shared memory, stacks and tokens at addresses with no past
};

struct Cluster {
    std::vector<Block> blocks;
    bool               busy = false;
    int                live = 0; // blocks
    int                arrived = 0;
    long               epoch = 0; // barriers so far
};

struct Launch {
    dim3        grid, block;
    size_t      smem = 0, shared_room = 48 << 10; // static and dynamic together
    unsigned    cluster = 1;
    void       *stream = nullptr;
    const void *kernel = nullptr, *params = nullptr;
    Invoke      invoke = nullptr;
};
void run(const Launch &launch); // to its end
const Launch &current_launch();

// ---- scheduler.cpp: for the thread that runs now ----
inline Thread &self()
{
    return *const_cast<Thread *>(static_cast<const Thread *>(current));
}
void wait_as(State state);                  // until woken
void wake_last(Thread &t);                  // to the end of the queue
void wake_next(Thread &t);                  // to its head
void wake_all(std::vector<Thread *> &meeting); // in the schedule's order; self() goes to the queue as well
void give_way();                            // to all who are ready
bool random_order();

[[noreturn]] void fail(const char *kind, Site site, const char *format, ...) __attribute__((format(printf, 3, 4)));
bool same_site(Site a, Site b);

// ---- happens-before, for TSan (races.cpp) ----
// Tokens lie in the block's slab: at an address that outlived its block, one would order blocks that nothing orders.
enum Token { kBlockToken, kClusterToken, kWarpToken = 32, kTokens = 2048 };
void races_block_begins(Block &b), races_block_ends(Block &b), races_thread_ends();
void races_launch_begins(Context &scheduler), races_launch_ends();
void races_meet(Thread *const *threads, size_t count, Block &owner, int token); // all before all after

// ---- memory.cpp ----
void *device_allocate(size_t size); // NULL: none left
bool  device_free(void *p);
void  device_open(), device_close(); // closed, device memory cannot be touched; nests
struct Allocation {
    char       *data = nullptr;
    size_t      size = 0;
    const char *name = "";
};
const Allocation *device_find(const void *p); // that p is in, or NULL; any p
int               device_index(const void *p); // of the allocation among all that ever were, or -1
Allocation       &device_allocation(int index);

// ---- meter.cpp ----
extern bool meter_on;
void meter_launch_begins(const Launch &launch), meter_launch_ends(), meter_block_ends(Block &b);
void meter_global(const void *p, size_t size, Access access, const void *place);
void meter_shared(const void *p, size_t size, size_t alignment, bool remote, const void *place);
void meter_warp_met(Warp &w);
enum class Meeting { block, cluster, warp };
void meter_meeting(Meeting kind);

} // namespace emu
