// Meeting points: who comes early waits, who comes last does the work for all and wakes them.
#include "runtime.hpp"

namespace emu {

// ---- __syncthreads ----

void block_sync(Site site)
{
    Thread &me = self();
    Block &b = *me.of_block;
    me.site = site;
    if (b.arrived == 0)
        b.barrier = site;
    else if (!same_site(b.barrier, site))
        fail("divergence", site, "others of the block wait at the __syncthreads of line %d", b.barrier.line);
    if (++b.arrived < static_cast<int>(b.threads.size())) {
        wait_as(State::at_block_barrier);
        return;
    }
    b.arrived = 0;
    if (meter_on) {
        meter_meeting(Meeting::block);
        for (Warp &w : b.warps)
            meter_warp_met(w);
    }
    static thread_local std::vector<Thread *> all;
    all.clear();
    for (Thread &t : b.threads) {
        const Untracked guard;
        all.push_back(&t);
    }
    races_meet(all.data(), all.size(), b, kBlockToken);
    wake_all(all);
}

// ---- cluster_sync ----

void cluster_sync(Site site)
{
    Thread &me = self();
    Cluster &c = *me.of_block->cluster;
    me.site = site;
    if (++c.arrived < static_cast<int>(c.blocks.size() * me.of_block->threads.size())) {
        wait_as(State::at_cluster_barrier);
        return;
    }
    c.arrived = 0;
    c.epoch++;
    static thread_local std::vector<Thread *> all;
    all.clear();
    for (Block &b : c.blocks) {
        for (Thread &t : b.threads) {
            if (!same_site(t.site, site))
                fail("divergence", site, "others of the cluster wait at the cluster_sync of line %d", t.site.line);
            const Untracked guard;
            all.push_back(&t);
        }
        if (meter_on) {
            for (Warp &w : b.warps)
                meter_warp_met(w);
        }
    }
    if (meter_on)
        meter_meeting(Meeting::cluster);
    races_meet(all.data(), all.size(), c.blocks[0], kClusterToken);
    wake_all(all);
}

unsigned cluster_rank()
{
    return self().of_block->rank;
}

unsigned cluster_size()
{
    return static_cast<unsigned>(self().of_block->cluster->blocks.size());
}

// ---- warps ----

// The lane that this lane's shuffle reads, as the instruction finds it; its own where the other is outside the segment.
static int source_lane(const Thread &t, WarpOp op)
{
    const int base = t.lane & ~(t.width - 1), in = t.lane - base;
    int from = in;
    switch (op) {
    case WarpOp::shuffle:      from = t.argument & (t.width - 1); break;
    case WarpOp::shuffle_up:   from = in - t.argument; break;
    case WarpOp::shuffle_down: from = in + t.argument; break;
    default:                   from = in ^ t.argument; break;
    }
    return base + (from >= 0 && from < t.width ? from : in);
}

static void complete(Warp &w, WarpOp op, unsigned mask, Site site)
{
    unsigned ballot = 0;
    for (unsigned left = mask; left; left &= left - 1) {
        const int lane = __builtin_ctz(left);
        const Thread &t = w.lane[lane];
        if (op != WarpOp::sync && !same_site(t.site, site))
            fail("divergence", site, "lane %d of mask 0x%08x is at the collective of line %d", lane, mask, t.site.line);
        ballot |= t.value ? 1u << lane : 0;
    }
    for (unsigned left = mask; left; left &= left - 1) {
        Thread &t = w.lane[__builtin_ctz(left)];
        switch (op) {
        case WarpOp::sync:   break;
        case WarpOp::ballot: t.result = ballot; break;
        case WarpOp::any:    t.result = ballot != 0; break;
        case WarpOp::all:    t.result = ballot == mask; break;
        default: {
            const int from = source_lane(t, op);
            if (!(mask >> from & 1))
                fail("warp", site, "lane %d reads lane %d, which is not in mask 0x%08x", t.lane, from, mask);
            t.result = w.lane[from].value;
        }
        }
    }
}

uint64_t warp(WarpOp op, unsigned mask, uint64_t value, int argument, int width, Site site)
{
    Thread &me = self();
    Warp &w = *me.of_warp;
    const unsigned my_bit = 1u << me.lane;
    me.site = site;
    me.mask = mask;
    me.value = value;
    me.argument = argument;
    me.width = width;
    if (!(mask & my_bit))
        fail("warp", site, "lane %d calls with mask 0x%08x, which is without it", me.lane, mask);
    if (mask & ~w.present)
        fail("warp", site, "mask 0x%08x has lanes that the block does not have", mask);
    if (mask & w.gone)
        fail("warp", site, "lanes 0x%08x of mask 0x%08x have left", mask & w.gone, mask);
    if (width < 1 || width > 32 || (width & (width - 1)))
        fail("warp", site, "width %d", width);

    size_t i = 0;
    while (i < w.meetings.size() && w.meetings[i].mask != mask)
        i++;
    if (i == w.meetings.size()) {
        const Untracked guard;
        w.meetings.push_back({op, mask, 0});
    }
    WarpMeeting &meeting = w.meetings[i];
    if (meeting.op != op)
        fail("divergence", site, "other lanes of mask 0x%08x are in another kind of collective", mask);
    meeting.arrived |= my_bit;
    if (meeting.arrived != mask) {
        wait_as(State::at_warp_collective);
        return me.result;
    }
    w.meetings[i] = w.meetings.back(); // no memmove, which TSan would count
    w.meetings.pop_back();
    complete(w, op, mask, site);
    if (meter_on) {
        meter_meeting(Meeting::warp);
        if (mask == (w.present & ~w.gone))
            meter_warp_met(w);
    }

    Thread *others[32];
    size_t count = 0;
    for (unsigned left = mask; left; left &= left - 1)
        others[count++] = &w.lane[__builtin_ctz(left)];
    if (op == WarpOp::sync) // alone orders memory: shuffles and votes do not
        races_meet(others, count, *me.of_block, kWarpToken + static_cast<int>(&w - me.of_block->warps.data()) * 32 +
                   __builtin_ctz(mask));
    const bool reverse = emu_schedule().order == EMU_REVERSE;
    for (size_t k = 0; k < count; k++) { // the last one put there is the first to run: a warp goes on together
        Thread *t = others[reverse ? k : count - 1 - k];
        if (t != &me)
            wake_next(*t);
    }
    if (random_order())
        give_way();
    return me.result;
}

} // namespace emu
