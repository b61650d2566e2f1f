/* fpmode.h - the floating-point mode of a thread: rounding to nearest and subnormals honored while we compute, the
 * caller's mode again afterwards, so that neither changes the other's bits. */
#ifndef WF_COMMON_FPMODE_H
#define WF_COMMON_FPMODE_H

#include <stdint.h>

#if defined(__x86_64__)
#include <xmmintrin.h>

static inline uint64_t wf_fpmode_enter(void)
{
    const uint32_t caller = _mm_getcsr();
    _mm_setcsr(0x1f80); /* the default: all exceptions masked, to nearest, no FTZ, no DAZ */
    return caller;
}

/* The caller's mode, and its exception flags as they were. */
static inline void wf_fpmode_leave(uint64_t caller)
{
    _mm_setcsr((uint32_t)caller);
}

#elif defined(__aarch64__)

static inline uint64_t wf_fpmode_enter(void)
{
    uint64_t caller;
    __asm__ volatile("mrs %0, fpcr" : "=r"(caller));
    __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0));
    return caller;
}

static inline void wf_fpmode_leave(uint64_t caller)
{
    __asm__ volatile("msr fpcr, %0" : : "r"(caller));
}

#else
#error "add this processor's floating-point control register"
#endif

#endif
