// What TSan is told. One TSan fiber per CUDA thread, and switches between them order nothing: two accesses are ordered by
// collectives and by the begin and the end of a launch alone. Without TSan all of this is empty.
//
// clang's TSan tells 255 fibers apart; with more it forgets what it has seen. So threads of a large block share fibers, which
// hides races between those that share one and invents none: in reverse order neighbors do, else threads that are far apart, so
// that both orders together see what any two threads of a block do (nearly so in clusters of 8).
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "runtime.hpp"

namespace emu {

#ifdef EMU_TSAN

// The parent of all CUDA threads of this OS thread. It learns nothing during a launch, so it orders no two of them.
static __thread void               *root;
static __thread Context            *scheduler;
static __thread std::vector<void *> *ended; // TSan gives a destroyed fiber's identity to the next one, which hides races
static char                         end_of_launch;

constexpr size_t kTokenRoom = 8 * kTokens;

static size_t slab_size(const Block &b)
{
    return SharedMemory::kRoom + kStackSize * b.threads.size() + kTokenRoom;
}

static char *token_address(const Block &b, int token)
{
    return b.slab + slab_size(b) - kTokenRoom + 8 * token;
}

constexpr size_t kFibers = 128; // of a cluster; the emulator's own need some, too

// The thread whose fiber thread i of the block has.
static size_t fiber_of(const Block &b, size_t i)
{
    const size_t n = b.threads.size(), most = kFibers / b.cluster->blocks.size(), each = (n + most - 1) / most;
    return emu_schedule().order == EMU_REVERSE ? i / each * each : i % ((n + each - 1) / each);
}

void races_launch_begins(Context &of_scheduler)
{
    scheduler = &of_scheduler;
    scheduler->race_fiber = tsan_current();
    root = tsan_create();
    ended = new std::vector<void *>;
}

void races_launch_ends()
{
    tsan_acquire(&end_of_launch);
    for (void *fiber : *ended)
        tsan_destroy(fiber);
    delete ended;
    tsan_destroy(root);
}

void races_block_begins(Block &b)
{
    // A raw system call: the intercepted one would count as a write by the caller.
    b.slab = reinterpret_cast<char *>(syscall(SYS_mmap, nullptr, slab_size(b), PROT_READ | PROT_WRITE,
                                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    tsan_switch(root);
    for (size_t i = 0; i < b.threads.size(); i++) {
        Thread &t = b.threads[i];
        t.context.stack = {b.slab + SharedMemory::kRoom + kStackSize * i, kStackSize};
        const size_t whose = fiber_of(b, i);
        t.context.race_fiber = whose == i ? tsan_create() : b.threads[whose].context.race_fiber;
    }
    tsan_switch(scheduler->race_fiber);
}

void races_block_ends(Block &b)
{
    for (size_t i = 0; i < b.threads.size(); i++)
        if (fiber_of(b, i) == i)
            ended->push_back(b.threads[i].context.race_fiber);
    munmap(b.slab, slab_size(b)); // intercepted: the addresses lose their history
    if (ended->size() > 4000) {   // TSan has room for about 8000
        for (void *fiber : *ended)
            tsan_destroy(fiber);
        ended->clear();
    }
}

void races_thread_ends()
{
    tsan_release(&end_of_launch);
}

void races_meet(Thread *const *threads, size_t count, Block &owner, int token)
{
    const char *at = token_address(owner, token);
    for (size_t i = 0; i < count; i++) {
        tsan_switch(threads[i]->context.race_fiber);
        tsan_release(at);
    }
    for (size_t i = 0; i < count; i++) {
        tsan_switch(threads[i]->context.race_fiber);
        tsan_acquire(at);
    }
    tsan_switch(self().context.race_fiber);
}

#else

void races_launch_begins(Context &) {}
void races_launch_ends() {}
void races_block_begins(Block &) {}
void races_block_ends(Block &) {}
void races_thread_ends() {}
void races_meet(Thread *const *, size_t, Block &, int) {}

#endif

} // namespace emu
