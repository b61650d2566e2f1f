// Device memory, shared memory, and the copies between them.
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <set>
#include <sys/mman.h>
#include <unistd.h>

#include "runtime.hpp"

namespace emu {

// Device memory is one range of addresses, in granules, that the host cannot touch outside of launches and copies. An
// allocation begins with a granule and is followed by an unused one.
static constexpr size_t kGranule = 64 << 10, kGranules = 1 << 20;

static struct Arena {
    char                              *base = nullptr;
    size_t                             used = 0; // granules
    std::vector<uint32_t>              owner;    // of a granule: index of an allocation + 1
    std::deque<Allocation>             allocations;
    std::map<size_t, std::vector<int>> freed;    // by number of granules
    std::set<int>                      live; // later ones have higher addresses
    int                                open = 0;
} &arena = *new Arena;

// Poison, in every float format NaN. Neither a library call nor anything else that a sanitizer would count as an access.
static void fill(char *p, size_t size)
{
    volatile char *byte = p;
    size_t i = 0;
    for (; i < size && reinterpret_cast<uintptr_t>(p + i) % 8; i++)
        byte[i] = static_cast<char>(0xff);
    for (; i + 8 <= size; i += 8)
        *reinterpret_cast<volatile uint64_t *>(p + i) = ~uint64_t{0};
    for (; i < size; i++)
        byte[i] = static_cast<char>(0xff);
}

static struct sigaction previous_action;

static void on_segv(int, siginfo_t *info, void *)
{
    const char *p = static_cast<const char *>(info->si_addr);
    if (p >= arena.base && p < arena.base + kGranule * kGranules) {
        static const char text[] = "EMULATOR host-access: the host touches device memory\n";
        if (write(STDERR_FILENO, text, sizeof text - 1) > 0)
            abort();
    }
    sigaction(SIGSEGV, &previous_action, nullptr); // and once more
}

static void make_arena()
{
    void *p = mmap(nullptr, kGranule * kGranules, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        perror("EMULATOR: no room for device memory");
        abort();
    }
    arena.base = static_cast<char *>(p);
    arena.owner.resize(kGranules);
    struct sigaction action = {};
    action.sa_sigaction = on_segv;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &previous_action);
}

// From the first live allocation to the last: what was in use before them grows, and takes longer than the tests themselves.
static void protect_live(int protection)
{
    if (arena.live.empty())
        return;
    const Allocation &first = device_allocation(*arena.live.begin()), &last = device_allocation(*arena.live.rbegin());
    mprotect(first.data, static_cast<size_t>(last.data + last.size - first.data), protection);
}

void device_open()
{
    if (arena.open++ == 0)
        protect_live(PROT_READ | PROT_WRITE);
}

void device_close()
{
    if (--arena.open == 0)
        protect_live(PROT_NONE);
}

void *device_allocate(size_t size)
{
    if (!arena.base)
        make_arena();
    if (size > kGranule * kGranules / 2)
        return nullptr;
    const size_t granules = (size + kGranule - 1) / kGranule + 1;
    std::vector<int> &again = arena.freed[granules];
    int index;
    if (arena.used + granules <= kGranules / 2 || (again.empty() && arena.used + granules <= kGranules)) {
        index = static_cast<int>(arena.allocations.size());
        arena.allocations.push_back({arena.base + arena.used * kGranule, size, ""});
        arena.used += granules;
    } else if (!again.empty()) { // late, so that an address in use after its end is noticed
        index = again.back();
        again.pop_back();
    } else {
        return nullptr;
    }
    Allocation &a = arena.allocations[static_cast<size_t>(index)];
    a.size = size;
    a.name = "";
    const size_t first = static_cast<size_t>(a.data - arena.base) / kGranule;
    for (size_t i = 0; i < granules; i++)
        arena.owner[first + i] = static_cast<uint32_t>(index) + 1;
    arena.live.insert(index);
    mprotect(a.data, size, PROT_READ | PROT_WRITE);
    if (size <= (size_t{64} << 20)) // larger ones stay sparse
        fill(a.data, size);
    if (!arena.open)
        mprotect(a.data, size, PROT_NONE);
    return a.data;
}

bool device_free(void *p)
{
    const int index = device_index(p);
    if (index < 0 || device_allocation(index).data != p)
        return false;
    const size_t first = static_cast<size_t>(static_cast<char *>(p) - arena.base) / kGranule;
    size_t granules = 0;
    while (arena.owner[first + granules] == static_cast<uint32_t>(index) + 1)
        arena.owner[first + granules++] = 0;
    madvise(p, granules * kGranule, MADV_DONTNEED);
    arena.live.erase(index);
    arena.freed[granules].push_back(index);
    return true;
}

int device_index(const void *p)
{
    const size_t offset = static_cast<size_t>(static_cast<const char *>(p) - arena.base);
    return offset < kGranule * kGranules && arena.base ? static_cast<int>(arena.owner[offset / kGranule]) - 1 : -1;
}

Allocation &device_allocation(int index)
{
    return arena.allocations[static_cast<size_t>(index)];
}

const Allocation *device_find(const void *p)
{
    const int index = device_index(p);
    if (index < 0)
        return nullptr;
    const Allocation &a = device_allocation(index);
    return p < a.data + a.size || p == a.data ? &a : nullptr;
}

extern "C" bool emu_is_device(const void *p)
{
    return device_find(p) != nullptr;
}

static void check_global(const void *p, size_t size, Site site)
{
    const Allocation *a = device_find(p);
    if (!a)
        fail("global-memory", site, "%p is in no buffer of the device", p);
    if (static_cast<const char *>(p) + size > a->data + a->size)
        fail("global-memory", site, "%zu bytes at offset %zu of a buffer of %zu bytes", size,
             static_cast<size_t>(static_cast<const char *>(p) - a->data), a->size);
    if (reinterpret_cast<uintptr_t>(p) % size)
        fail("misaligned", site, "%zu bytes at %p", size, p);
}

void global_access(const void *p, size_t size, Access access, Site site)
{
    check_global(p, size, site);
    if (meter_on)
        meter_global(p, size, access, __builtin_return_address(0));
}

// ---- shared memory ----

static std::vector<char *> &free_rooms = *new std::vector<char *>;
static std::mutex           free_rooms_mutex;

void SharedMemory::begin(char *room)
{
    const Untracked guard;
    own = room == nullptr;
    base = room;
    if (own) {
        std::lock_guard<std::mutex> lock(free_rooms_mutex);
        if (free_rooms.empty()) {
            void *p = mmap(nullptr, kRoom, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (p == MAP_FAILED)
                abort();
            asan_poison(p, kRoom);
            free_rooms.push_back(static_cast<char *>(p));
        }
        base = free_rooms.back();
        free_rooms.pop_back();
    }
    used = payload = 0;
    arrays.clear();
}

void SharedMemory::end()
{
    const Untracked guard;
    asan_poison(base, used);
    if (own) {
        std::lock_guard<std::mutex> lock(free_rooms_mutex);
        free_rooms.push_back(base);
    }
    base = nullptr;
}

void *SharedMemory::get(const void *key, size_t size)
{
    for (const Array &a : arrays) {
        if (a.key == key)
            return base + a.offset;
    }
    payload += (size + 15) / 16 * 16;
    if (payload > current_launch().shared_room) // on a device such a launch fails: what is static is known there
        fail("shared-memory", {}, "a block uses %zu bytes, this launch has %zu: cudaFuncSetAttribute gives more up to %d",
             payload, current_launch().shared_room, emu_device().shared_most);
    const Untracked guard;
    const size_t offset = (used + kRedZone + 127) / 128 * 128 + 16; // 16 is what is promised, so give no more
    arrays.push_back({key, offset, size});
    used = offset + size;
    in_flight.resize(kRoom / 16);
    asan_unpoison(base + offset, size);
    fill(base + offset, size);
    return base + offset;
}

const SharedMemory::Array *SharedMemory::find(const void *p, size_t size) const
{
    const size_t offset = static_cast<size_t>(static_cast<const char *>(p) - base);
    for (const Array &a : arrays) {
        if (offset >= a.offset && offset + size <= a.offset + a.size)
            return &a;
    }
    return nullptr;
}

static const char dynamic_key = 0;

void *dynamic_shared()
{
    return self().of_block->shared.get(&dynamic_key, current_launch().smem);
}

void *static_shared(const void *key, size_t size)
{
    return self().of_block->shared.get(key, size);
}

// The block of the cluster whose shared memory p is in, if it may be touched now.
static Block &block_of(const void *p, Site site)
{
    Block &mine = *self().of_block;
    if (mine.shared.contains(p))
        return mine;
    Cluster &c = *mine.cluster;
    for (Block &b : c.blocks) {
        if (!b.shared.contains(p))
            continue;
        if (b.live == 0)
            fail("cluster", site, "the block of rank %u, whose shared memory this is, has left", b.rank);
        if (c.epoch == 0)
            fail("cluster", site, "another block's shared memory, before the first cluster_sync");
        b.mapped = c.epoch;
        return b;
    }
    fail("shared-memory", site, "%p is not shared memory", p);
}

static void check_shared(const void *p, size_t size, size_t alignment, Site site, bool &remote)
{
    Block &b = block_of(p, site);
    remote = &b != self().of_block;
    if (!b.shared.find(p, size))
        fail("shared-memory", site, "%zu bytes at %p are outside of every array of the block", size, p);
    if (reinterpret_cast<uintptr_t>(p) % alignment)
        fail("misaligned", site, "%zu bytes at %p in shared memory", size, p);
    const size_t first = static_cast<size_t>(static_cast<const char *>(p) - b.shared.base);
    for (size_t i = first / 16; i <= (first + size - 1) / 16; i++) {
        if (b.shared.in_flight[i])
            fail("cp.async", site, "shared memory is touched before the copy to it was waited for");
    }
}

void shared_access(const void *p, size_t size, size_t alignment)
{
    bool remote;
    check_shared(p, size, alignment, self().site, remote); // the site of the last collective: [] has none of its own
    if (meter_on)
        meter_shared(p, size, alignment, remote, __builtin_return_address(0));
}

void *cluster_map(void *p, unsigned rank, Site site)
{
    Block &mine = *self().of_block;
    Cluster &c = *mine.cluster;
    if (rank >= c.blocks.size())
        fail("cluster", site, "rank %u of %zu", rank, c.blocks.size());
    const SharedMemory::Array *a = mine.shared.contains(p) ? mine.shared.find(p, 0) : nullptr;
    if (!a)
        fail("cluster", site, "%p is not shared memory of this block", p);
    const size_t at = static_cast<size_t>(static_cast<char *>(p) - mine.shared.base) - a->offset;
    return static_cast<char *>(c.blocks[rank].shared.get(a->key, a->size)) + at;
}

// ---- cp.async: at its weakest, what was there is gone at once, and the data comes when it is waited for ----

void async_copy16(void *s, const void *p, Site site)
{
    Thread &me = self();
    bool remote;
    check_global(p, 16, site);
    check_shared(s, 16, 16, site, remote);
    if (remote)
        fail("cp.async", site, "into another block's shared memory");
    if (meter_on) {
        meter_global(p, 16, Access::read, __builtin_return_address(0));
        meter_shared(s, 16, 16, false, __builtin_return_address(0));
    }
    char *to = static_cast<char *>(s);
    tsan_write(to, 16);
    tsan_read(p, 16);
    fill(to, 16);
    SharedMemory &shared = me.of_block->shared;
    shared.in_flight[static_cast<size_t>(to - shared.base) / 16]++;
    me.site = site;
    const Untracked guard;
    me.copies.push_back({to, static_cast<const char *>(p), me.group});
}

void async_commit()
{
    self().group++;
}

void async_wait(int left)
{
    Thread &me = self();
    SharedMemory &shared = me.of_block->shared;
    size_t kept = 0;
    for (const AsyncCopy &copy : me.copies) {
        if (copy.group >= me.group - left) {
            me.copies[kept++] = copy;
            continue;
        }
        tsan_read(copy.from, 16);
        tsan_write(copy.to, 16);
        for (int i = 0; i < 16; i++)
            static_cast<volatile char *>(copy.to)[i] = copy.from[i];
        shared.in_flight[static_cast<size_t>(copy.to - shared.base) / 16]--;
    }
    me.copies.resize(kept);
}

} // namespace emu
