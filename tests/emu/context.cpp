#include "context.hpp"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>

#include "sanitizers.hpp"

#ifndef EMU_PORTABLE
extern "C" void emu_switch(void **save_sp, void *sp);
// Saves what the ABI says a callee keeps, on the stack; the floating-point modes are the same for all fibers.
asm(R"(
.text
.type emu_switch, @function
emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emu_switch, . - emu_switch
)");
#endif

namespace emu {

static __thread Context *leaving, *arriving;

Stack new_stack()
{
    constexpr size_t guard = 4096;
    void *p = mmap(nullptr, guard + kStackSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED || mprotect(p, guard, PROT_NONE)) {
        perror("EMULATOR: no memory for stacks");
        abort();
    }
    return {static_cast<char *>(p) + guard, kStackSize};
}

void context_prepare(Context &c, Stack stack, void (*entry)())
{
    c.stack = stack;
    c.fake_stack = nullptr;
    asan_unpoison(stack.base, stack.size); // who had it before may have left without returning
#ifdef EMU_PORTABLE
    getcontext(&c.machine);
    c.machine.uc_stack.ss_sp = stack.base;
    c.machine.uc_stack.ss_size = stack.size;
    c.machine.uc_link = nullptr;
    makecontext(&c.machine, entry, 0);
#else
    static __thread unsigned colour; // equal offsets in all stacks would fall into the same cache sets
    const size_t top = stack.size - 64 * (colour++ % 61) - 16;
    void **sp = reinterpret_cast<void **>(stack.base + top);
    *--sp = nullptr; // entry's return address: it has none
    *--sp = reinterpret_cast<void *>(entry);
    for (int i = 0; i < 6; i++)
        *--sp = nullptr;
    c.sp = sp;
#endif
}

void context_switch(Context &from, Context &to, bool from_is_over)
{
    leaving = &from;
    arriving = &to;
    tsan_switch(to.race_fiber);
    asan_start_switch(from_is_over ? nullptr : &from.fake_stack, to.stack.base, to.stack.size);
#ifdef EMU_PORTABLE
    swapcontext(&from.machine, &to.machine);
#else
    emu_switch(&from.sp, to.sp);
#endif
    context_arrived();
}

void context_arrived()
{
    asan_finish_switch(arriving->fake_stack, &leaving->stack.base, &leaving->stack.size);
}

} // namespace emu
