// Fibers: a context of execution with its own stack, and the switch between two. Sanitizers are told of both.
// The run-time of the emulator is compiled without instrumentation, but with EMU_ASAN or EMU_TSAN.
#pragma once
#include <cstddef>
#if !defined(__x86_64__) || defined(EMU_UCONTEXT)
#define EMU_PORTABLE 1
#include <ucontext.h>
#endif

namespace emu {

struct Stack {
    char  *base = nullptr;
    size_t size = 0;
};

struct Context {
    Stack stack; // of an OS thread: found out by ASan when it is left
#ifdef EMU_PORTABLE
    ucontext_t machine;
#else
    void *sp = nullptr;
#endif
    void *fake_stack = nullptr; // ASan's
    void *race_fiber = nullptr; // TSan's; the caller makes it
};

#if defined(EMU_TSAN)
constexpr size_t kStackSize = 128 << 10;
#elif defined(EMU_ASAN)
constexpr size_t kStackSize = 256 << 10;
#else
constexpr size_t kStackSize = 64 << 10;
#endif

Stack new_stack(); // with a guard page; lives to the end of the process

// entry begins with context_arrived() and never returns.
void context_prepare(Context &c, Stack stack, void (*entry)());
void context_switch(Context &from, Context &to, bool from_is_over = false);
void context_arrived();

} // namespace emu
