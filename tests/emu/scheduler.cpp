// Who runs when: a queue of ready CUDA threads per OS thread, over a few resident clusters of blocks.
#include <algorithm>
#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

#include "runtime.hpp"

namespace emu {

__thread const View *current;

// ---- schedule ----

static struct emu_schedule schedule_from_environment()
{
    struct emu_schedule s = {EMU_LINEAR, 1, 1, 1, 0};
    if (const char *text = getenv("WELFORD_EMU")) {
        const auto number = [text](const char *name, uint64_t otherwise) {
            const char *found = strstr(text, name);
            return found ? strtoull(found + strlen(name), nullptr, 10) : otherwise;
        };
        s.order = strstr(text, "random") ? EMU_RANDOM : strstr(text, "reverse") ? EMU_REVERSE : EMU_LINEAR;
        s.seed = number("seed=", 1);
        s.resident = static_cast<int>(number("resident=", 1));
        s.os_threads = static_cast<int>(number("threads=", 1));
        s.grid = static_cast<unsigned>(number("grid=", 0));
    }
    return s;
}

static struct emu_schedule &schedule()
{
    static struct emu_schedule s = schedule_from_environment();
    return s;
}

extern "C" void emu_set_schedule(struct emu_schedule s)
{
    schedule() = s;
}

extern "C" struct emu_schedule emu_schedule(void)
{
    return schedule();
}

bool random_order()
{
    return schedule().order == EMU_RANDOM;
}

unsigned strided_grid(unsigned blocks)
{
    return schedule().grid ? std::min(blocks, schedule().grid) : blocks;
}

// ---- workers ----

struct Random {
    uint64_t state;
    uint64_t below(uint64_t n)
    {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        return state % n;
    }
};

// A double-ended queue without allocation: the room is for every thread that is resident.
class Queue
{
  public:
    void reserve(size_t threads)
    {
        size_t room = 64;
        while (room <= threads)
            room *= 2;
        if (slots_.size() < room)
            slots_.resize(room);
        first_ = last_ = 0;
    }
    size_t   size() const { return last_ - first_; }
    void     push_last(Thread *t) { at(last_++) = t; }
    void     push_first(Thread *t) { at(--first_) = t; }
    Thread  *pop() { return at(first_++); }
    Thread *&at(size_t i) { return slots_[i & (slots_.size() - 1)]; }
    Thread *&nth(size_t i) { return at(first_ + i); }

  private:
    std::vector<Thread *> slots_;
    size_t                first_ = 0, last_ = 0;
};

struct Worker {
    Queue                ready;
    Context              scheduler;
    std::vector<Cluster> slots;
    std::vector<Stack>   stacks;
    Random               random{1};
};
static __thread Worker *worker;

static struct Running { // the launch; one at a time
    const Launch         *launch;
    std::atomic<uint64_t> next;
    uint64_t              clusters;
    std::vector<uint64_t> permutation;
} running;

const Launch &current_launch()
{
    return *running.launch;
}

static void thread_main();

static Thread *next_ready()
{
    Queue &ready = worker->ready;
    if (ready.size() == 0)
        return nullptr;
    if (random_order())
        std::swap(ready.nth(0), ready.nth(worker->random.below(ready.size())));
    return ready.pop();
}

// From a thread or (NULL) the scheduler to another.
static void switch_to(Thread *from, Thread *to, bool from_is_over = false)
{
    if (to) {
        if (to->state == State::fresh) {
            Stack stack = to->context.stack; // TSan's are made with the block
            if (!kTsan) {
                if (worker->stacks.empty())
                    worker->stacks.push_back(new_stack());
                stack = worker->stacks.back();
                worker->stacks.pop_back();
            }
            context_prepare(to->context, stack, thread_main);
        }
        to->state = State::running;
    }
    if (from == to)
        return;
    if (from_is_over && !kTsan)
        worker->stacks.push_back(from->context.stack);
    current = to;
    context_switch(from ? from->context : worker->scheduler, to ? to->context : worker->scheduler, from_is_over);
    current = from;
}

void wait_as(State state)
{
    Thread &me = self();
    me.state = state;
    switch_to(&me, next_ready());
}

void wake_last(Thread &t)
{
    t.state = State::ready;
    worker->ready.push_last(&t);
}

void wake_next(Thread &t)
{
    t.state = State::ready;
    worker->ready.push_first(&t);
}

void wake_all(std::vector<Thread *> &meeting)
{
    const size_t n = meeting.size();
    for (size_t i = 0; i < n; i++)
        wake_last(*meeting[schedule().order == EMU_REVERSE ? n - 1 - i : i]);
    switch_to(&self(), next_ready());
}

void give_way()
{
    wake_last(self());
    switch_to(&self(), next_ready());
}

// ---- blocks come and go ----

static void begin_block(Block &b, Cluster &c, unsigned rank, uint64_t index)
{
    const Untracked guard;
    const Launch &l = current_launch();
    const unsigned size = l.block.x * l.block.y * l.block.z;
    const uint64_t in_grid = index * l.cluster + rank;
    if (b.threads.size() != size) {
        b.threads = std::vector<Thread>(size);
        b.warps = std::vector<Warp>((size + 31) / 32);
    }
    b.cluster = &c;
    b.rank = rank;
    b.live = static_cast<int>(size);
    b.arrived = 0;
    b.mapped = -1;
    for (size_t w = 0; w < b.warps.size(); w++) {
        b.warps[w].lane = &b.threads[32 * w];
        b.warps[w].present = b.warps[w].gone = 0;
        b.warps[w].meetings.clear();
    }
    const unsigned x = static_cast<unsigned>(in_grid % l.grid.x), y = static_cast<unsigned>(in_grid / l.grid.x % l.grid.y),
                   z = static_cast<unsigned>(in_grid / l.grid.x / l.grid.y);
    for (unsigned i = 0; i < size; i++) {
        Thread &t = b.threads[i];
        static_cast<View &>(t) = {{i % l.block.x, i / l.block.x % l.block.y, i / l.block.x / l.block.y}, {x, y, z}, l.block, l.grid};
        t.of_block = &b;
        t.of_warp = &b.warps[i / 32];
        t.lane = static_cast<int>(i % 32);
        t.of_warp->present |= 1u << t.lane;
        t.state = State::fresh;
        t.site = {};
        t.group = 0;
    }
}

static void begin_cluster(Cluster &c)
{
    uint64_t index = running.next.fetch_add(1);
    if (index >= running.clusters)
        return;
    if (schedule().order == EMU_REVERSE)
        index = running.clusters - 1 - index;
    else if (!running.permutation.empty())
        index = running.permutation[index];
    {
        const Untracked guard;
        c.blocks.resize(current_launch().cluster);
    }
    c.busy = true;
    c.live = static_cast<int>(c.blocks.size());
    c.arrived = 0;
    c.epoch = 0;
    for (unsigned rank = 0; rank < c.blocks.size(); rank++) {
        begin_block(c.blocks[rank], c, rank, index);
        races_block_begins(c.blocks[rank]);
        c.blocks[rank].shared.begin(c.blocks[rank].slab);
    }
    for (Block &b : c.blocks) {
        const size_t n = b.threads.size();
        for (size_t i = 0; i < n; i++)
            worker->ready.push_last(&b.threads[schedule().order == EMU_REVERSE ? n - 1 - i : i]);
    }
}

static void end_cluster(Cluster &c)
{
    for (Block &b : c.blocks) {
        if (meter_on)
            meter_block_ends(b);
        b.shared.end();
        races_block_ends(b);
    }
    c.busy = false;
}

static void leave()
{
    Thread &me = self();
    Block &b = *me.of_block;
    if (!me.copies.empty())
        fail("cp.async", me.site, "the thread leaves with %zu copies that it did not wait for", me.copies.size());
    races_thread_ends();
    me.state = State::gone;
    me.of_warp->gone |= 1u << me.lane;
    if (--b.live > 0)
        return;
    if (b.mapped == b.cluster->epoch && b.cluster->live > 1)
        fail("cluster", me.site, "the block of rank %u leaves, but another had access to its shared memory after the last "
             "cluster_sync", b.rank);
    b.cluster->live--;
    asan_poison(b.shared.base, b.shared.used);
}

static void thread_main()
{
    context_arrived();
    for (;;) {
        const Launch &l = current_launch();
        Thread *me = &self();
        l.invoke(l.kernel, l.params);
        leave();
        Thread *next = me->of_block->cluster->live ? next_ready() : nullptr;
        if (kTsan || !next || next->state != State::fresh)
            switch_to(me, next, true);
        next->context.stack = me->context.stack; // no switch: the next one begins here
        next->context.fake_stack = nullptr;
        next->state = State::running;
        current = next;
    }
}

// ---- reports ----

static const char *base_name(const char *file)
{
    const char *slash = strrchr(file, '/');
    return slash ? slash + 1 : file;
}

static std::mutex report_mutex; // never released: one report, then the end

void fail(const char *kind, Site site, const char *format, ...)
{
    char text[1000];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    report_mutex.lock();
    fprintf(stderr, "EMULATOR %s", kind);
    if (site.file)
        fprintf(stderr, " at %s:%d", base_name(site.file), site.line);
    if (current)
        fprintf(stderr, ", block %u %u %u, thread %u %u %u", current->block.x, current->block.y, current->block.z,
                current->thread.x, current->thread.y, current->thread.z);
    fprintf(stderr, ": %s\n", text);
    abort();
}

bool same_site(Site a, Site b)
{
    return a.line == b.line && (a.file == b.file || !strcmp(a.file, b.file));
}

// Nobody is ready, but blocks have not ended: says where their threads stand.
[[noreturn]] static void report_deadlock()
{
    static const char *const where[] = {"not started", "ready", "running", "at __syncthreads", "at a warp collective",
                                        "at cluster_sync", "gone"};
    std::string text;
    Site first{};
    int groups = 0;
    for (Cluster &c : worker->slots) {
        for (size_t b = 0; c.busy && b < c.blocks.size(); b++) {
            std::vector<Thread> &threads = c.blocks[b].threads;
            for (size_t begin = 0, end; begin < threads.size(); begin = end) {
                const Thread &t = threads[begin];
                const auto stands_there = [&t](const Thread &o) {
                    return o.state == t.state && (t.state == State::gone || o.site.line == t.site.line);
                };
                for (end = begin + 1; end < threads.size() && stands_there(threads[end]); end++)
                    ;
                if (++groups > 8)
                    continue;
                char line[200];
                snprintf(line, sizeof line, "%sthreads %zu-%zu of block %u %s", groups > 1 ? "; " : "", begin, end - 1,
                         t.View::block.x, where[static_cast<int>(t.state)]);
                text += line;
                if (t.state != State::gone && t.site.file) {
                    snprintf(line, sizeof line, " (%s:%d)", base_name(t.site.file), t.site.line);
                    text += line;
                    first = first.file ? first : t.site;
                }
            }
        }
    }
    fail("divergence", first, "nobody can go on: %s", text.c_str());
}

// ---- a launch ----

static void work(Worker *w)
{
    worker = w;
    races_launch_begins(w->scheduler);
    for (Cluster &c : w->slots)
        begin_cluster(c);
    for (;;) {
        bool busy = false;
        for (Cluster &c : w->slots) {
            if (c.busy && c.live == 0) {
                end_cluster(c);
                begin_cluster(c);
            }
            busy |= c.busy;
        }
        if (!busy)
            break;
        Thread *next = next_ready();
        if (!next)
            report_deadlock();
        switch_to(nullptr, next);
    }
    races_launch_ends();
    worker = nullptr;
}

void run(const Launch &launch)
{
    static std::vector<Worker> &workers = *new std::vector<Worker>; // with their stacks, to the end of the process
    const struct emu_schedule &s = schedule();
    const uint64_t blocks = static_cast<uint64_t>(launch.grid.x) * launch.grid.y * launch.grid.z;
    const size_t block_size = static_cast<size_t>(launch.block.x) * launch.block.y * launch.block.z;
    running.launch = &launch;
    running.next = 0;
    running.clusters = blocks / launch.cluster;
    running.permutation.clear();
    Random random{s.seed * 0x9e3779b97f4a7c15u | 1};
    if (random_order()) {
        for (uint64_t i = 0; i < running.clusters; i++) {
            running.permutation.push_back(i);
            std::swap(running.permutation[i], running.permutation[random.below(i + 1)]);
        }
    }
    const size_t os_threads = static_cast<size_t>(std::max(s.os_threads, 1));
    if (workers.size() < os_threads)
        workers.resize(os_threads);
    for (size_t i = 0; i < os_threads; i++) {
        Worker &w = workers[i];
        w.random = {random.state + 2 * i};
        w.random.below(1);
        w.slots.resize(static_cast<size_t>(std::max(s.resident, 1)));
        w.ready.reserve(block_size * launch.cluster * w.slots.size());
    }
    device_open();
    if (meter_on)
        meter_launch_begins(launch);
    if (os_threads == 1) {
        work(&workers[0]);
    } else {
        std::vector<std::thread> threads;
        for (size_t i = 0; i < os_threads; i++)
            threads.emplace_back(work, &workers[i]);
        for (std::thread &t : threads)
            t.join();
    }
    if (meter_on)
        meter_launch_ends();
    device_close();
}

} // namespace emu
