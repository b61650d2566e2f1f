// The meter: finds the instructions of a warp again in the accesses of its threads, and counts what each moves.
#include <algorithm>
#include <unordered_map>

#include "meter.h"
#include "runtime.hpp"

namespace emu {

bool meter_on;

// One place of the program, as a warp's lanes come by. The n-th visit of every lane is the same instruction.
struct Place {
    enum Kind : uint8_t { global_read, global_write, shared_access };
    struct Instruction {
        uint32_t    lanes = 0;
        const void *address[32];
    };
    const void              *program;
    Kind                     kind;
    uint8_t                  width;
    uint32_t                 visits[32] = {};
    std::vector<Instruction> instructions;
};

struct MeteredWarp {
    std::vector<Place> places; // since the warp last met
};

struct Counted {
    meter_buffer         buffer{};
    std::vector<uint8_t> sectors; // per sector of 32 bytes: 1 read, 2 written
};

struct Record {
    meter_record                     sum{};
    std::unordered_map<int, Counted> counted; // by index of the allocation
    std::vector<meter_buffer>        buffers;

    void begin(const Launch &l);
    void touch(const void *p, size_t width, Place::Kind kind, bool new_sector);
    const meter_record *finished();
};

static struct Meter {
    std::mutex                lock;
    std::vector<Record>       launches;
    Record                    total;
    std::vector<MeteredWarp *> spare;
} &meter = *new Meter;

void Record::begin(const Launch &l)
{
    const unsigned grid[] = {l.grid.x, l.grid.y, l.grid.z}, block[] = {l.block.x, l.block.y, l.block.z};
    std::copy(grid, grid + 3, sum.grid);
    std::copy(block, block + 3, sum.block);
    const uint64_t blocks = static_cast<uint64_t>(grid[0]) * grid[1] * grid[2];
    sum.cluster = l.cluster;
    sum.stream = l.stream;
    sum.launches++;
    sum.blocks += blocks;
    sum.threads += blocks * block[0] * block[1] * block[2];
}

void Record::touch(const void *p, size_t width, Place::Kind kind, bool new_sector)
{
    const int index = device_index(p);
    Counted &c = counted[index];
    if (!c.buffer.data) {
        const Allocation &a = device_allocation(index);
        c.buffer.data = a.data;
        c.buffer.size = a.size;
        c.buffer.name = a.name;
        c.sectors.resize((a.size + 31) / 32);
    }
    meter_traffic &t = kind == Place::global_read ? c.buffer.read : c.buffer.write;
    t.bytes += width;
    t.width[__builtin_ctzll(width)]++;
    t.sectors += new_sector;
    uint8_t &seen = c.sectors[static_cast<size_t>(static_cast<const char *>(p) - static_cast<const char *>(c.buffer.data)) / 32];
    const uint8_t bit = kind == Place::global_read ? 1 : 2;
    t.distinct += !(seen & bit);
    seen |= bit;
}

const meter_record *Record::finished()
{
    buffers.clear();
    for (const auto &c : counted)
        buffers.push_back(c.second.buffer);
    std::sort(buffers.begin(), buffers.end(), [](const meter_buffer &a, const meter_buffer &b) { return a.data < b.data; });
    sum.buffers = static_cast<int>(buffers.size());
    sum.buffer = buffers.data();
    return &sum;
}

// ---- accesses, as they come ----

static void visit(const void *p, size_t width, Place::Kind kind, const void *program)
{
    const Untracked guard;
    Thread &me = self();
    Warp &w = *me.of_warp;
    if (!w.metered) {
        std::lock_guard<std::mutex> lock(meter.lock);
        if (meter.spare.empty())
            meter.spare.push_back(new MeteredWarp);
        w.metered = meter.spare.back();
        meter.spare.pop_back();
    }
    std::vector<Place> &places = w.metered->places;
    auto place = std::find_if(places.begin(), places.end(), [=](const Place &o) {
        return o.program == program && o.kind == kind && o.width == width;
    });
    if (place == places.end()) {
        places.push_back({});
        place = places.end() - 1;
        place->program = program;
        place->kind = kind;
        place->width = static_cast<uint8_t>(width);
    }
    const uint32_t n = place->visits[me.lane]++;
    if (n >= place->instructions.size())
        place->instructions.push_back({});
    Place::Instruction &i = place->instructions[n];
    i.lanes |= 1u << me.lane;
    i.address[me.lane] = p;
}

void meter_global(const void *p, size_t size, Access access, const void *place)
{
    visit(p, size, access == Access::read ? Place::global_read : Place::global_write, place);
}

// What a compiler makes of an element that is not aligned to its size: several accesses, all with the same pattern. The
// first stands for all.
void meter_shared(const void *p, size_t size, size_t alignment, bool remote, const void *place)
{
    if (remote) {
        const Untracked guard;
        std::lock_guard<std::mutex> lock(meter.lock);
        meter.launches.back().sum.remote_bytes += size;
        meter.total.sum.remote_bytes += size;
        return;
    }
    const size_t width = std::min<size_t>(std::min(size, alignment), 16);
    visit(p, size % width ? 1 : width, Place::shared_access, place);
}

// ---- instructions, when the warp has met ----

static void count_global(const Place &place, const Place::Instruction &instruction)
{
    uintptr_t sector[32];
    int sectors = 0;
    for (unsigned left = instruction.lanes; left; left &= left - 1) {
        const void *p = instruction.address[__builtin_ctz(left)];
        const uintptr_t s = reinterpret_cast<uintptr_t>(p) / 32;
        const bool is_new = std::find(sector, sector + sectors, s) == sector + sectors;
        if (is_new)
            sector[sectors++] = s;
        meter.launches.back().touch(p, place.width, place.kind, is_new);
        meter.total.touch(p, place.width, place.kind, is_new);
    }
}

static void count_shared(const Place &place, const Place::Instruction &instruction)
{
    const int lanes = place.width <= 4 ? 32 : place.width == 8 ? 16 : 8; // that are served together
    uint64_t wavefronts = 0, groups = 0;
    for (int first = 0; first < 32; first += lanes) {
        uintptr_t word[32][32];
        int depth[32] = {}, most = 0;
        for (int lane = first; lane < first + lanes; lane++) {
            if (!(instruction.lanes >> lane & 1))
                continue;
            const uintptr_t begin = reinterpret_cast<uintptr_t>(instruction.address[lane]) / 4;
            for (uintptr_t w = begin; w < begin + std::max(place.width / 4, 1); w++) {
                const size_t bank = w % 32;
                if (std::find(word[bank], word[bank] + depth[bank], w) == word[bank] + depth[bank])
                    word[bank][depth[bank]++] = w;
                most = std::max(most, depth[bank]);
            }
        }
        wavefronts += static_cast<uint64_t>(most);
        groups += most > 0;
    }
    for (meter_record *r : {&meter.launches.back().sum, &meter.total.sum}) {
        r->shared_instructions++;
        r->shared_wavefronts += wavefronts;
        r->shared_ways = std::max(r->shared_ways, (wavefronts + groups - 1) / groups);
    }
}

void meter_warp_met(Warp &w)
{
    if (!w.metered)
        return;
    const Untracked guard;
    std::lock_guard<std::mutex> lock(meter.lock);
    for (Place &place : w.metered->places) {
        for (const Place::Instruction &i : place.instructions) {
            if (place.kind == Place::shared_access)
                count_shared(place, i);
            else
                count_global(place, i);
        }
        place.instructions.clear();
        std::fill(place.visits, place.visits + 32, 0);
    }
}

void meter_meeting(Meeting kind)
{
    const Untracked guard;
    std::lock_guard<std::mutex> lock(meter.lock);
    for (meter_record *r : {&meter.launches.back().sum, &meter.total.sum})
        (kind == Meeting::block ? r->block_barriers : kind == Meeting::cluster ? r->cluster_barriers : r->warp_collectives)++;
}

void meter_block_ends(Block &b)
{
    const Untracked guard;
    for (Warp &w : b.warps) {
        meter_warp_met(w);
        std::lock_guard<std::mutex> lock(meter.lock);
        if (w.metered) {
            w.metered->places.clear();
            meter.spare.push_back(w.metered);
            w.metered = nullptr;
        }
    }
    std::lock_guard<std::mutex> lock(meter.lock);
    for (meter_record *r : {&meter.launches.back().sum, &meter.total.sum})
        r->shared_size = std::max(r->shared_size, b.shared.payload);
}

void meter_launch_begins(const Launch &launch)
{
    meter.launches.push_back({});
    meter.launches.back().begin(launch);
    meter.total.begin(launch);
}

void meter_launch_ends()
{
    for (auto &c : meter.launches.back().counted)
        std::vector<uint8_t>().swap(c.second.sectors);
}

} // namespace emu

using namespace emu;

extern "C" {

void meter_start(void)
{
    meter.launches.clear();
    meter.total = {};
    meter_on = true;
}

void meter_stop(void)
{
    meter_on = false;
}

void meter_name(const void *data, const char *name)
{
    const int index = device_index(data);
    if (index >= 0)
        device_allocation(index).name = name;
}

int meter_launches(void)
{
    return static_cast<int>(meter.launches.size());
}

const struct meter_record *meter_launch(int i)
{
    return meter.launches[static_cast<size_t>(i)].finished();
}

const struct meter_record *meter_total(void)
{
    return meter.total.finished();
}

const struct meter_buffer *meter_find(const struct meter_record *record, const void *data)
{
    const int index = device_index(data);
    for (int i = 0; i < record->buffers && index >= 0; i++) {
        if (record->buffer[i].data == device_allocation(index).data)
            return &record->buffer[i];
    }
    return nullptr;
}

} // extern "C"
