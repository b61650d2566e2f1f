/* Inside the CPU back-end: what cpu.c gives the kernels, and the table of kernels for each ISA and arithmetic type. */
#ifndef WELFORD_CPU_H
#define WELFORD_CPU_H

#include "call.h"

struct cpu_run {
    struct call *call;
    void        *workspace; /* aligned to 64 bytes */
    int64_t      bytes;     /* that the call touches: decides threads and non-temporal stores, never bits */
    bool         stream;    /* more than the cache keeps: store past it */
    bool         stream_training; /* the same for what a training step writes, which is kept until the backward pass: its
                                     memory was last touched many layers ago and is not in the cache to be overwritten */
};

/* Kernels of one ISA and one arithmetic type. */
struct cpu_kernels {
#define PROBLEM(problem)                                                                                               \
    void (*problem)(const struct problem *p, const struct cpu_run *run);                                               \
    size_t (*problem##_workspace)(const struct problem *p);
#include "ops.def"
};
extern const struct cpu_kernels wf_kernels_baseline_f32, wf_kernels_baseline_f64;
extern const struct cpu_kernels wf_kernels_avx2_f32, wf_kernels_avx2_f64;
extern const struct cpu_kernels wf_kernels_avx512_f32, wf_kernels_avx512_f64;

/* body(arg, begin, end) over [0, n) in pieces of `grain`, on the caller's threads or the library's, in our
 * floating-point mode. Which pieces run together changes no bits: a body must not carry anything from one index to the
 * next. */
void cpu_parallel(const struct cpu_run *run, int64_t n, int64_t grain, void (*body)(void *, int64_t, int64_t), void *arg);

/* Most reductions: `sets` of values that share a statistic, each cut into `items`. reduce() looks at one item,
 * combine() turns a set's partial results into what apply() needs for each item. fused: a set is small enough to stay
 * in a core's cache between reduce and apply, so one thread does all three; else all sets do one step, then the next.
 * Steps may be NULL. Both orders do the same arithmetic. */
struct cpu_stages {
    int64_t sets, items;
    int64_t item_bytes;
    void (*reduce)(const void *arg, int64_t set, int64_t item);
    void (*combine)(const void *arg, int64_t set);
    void (*apply)(const void *arg, int64_t set, int64_t item);
    const void *arg;
    bool        fused;
};
void cpu_run_stages(const struct cpu_run *run, const struct cpu_stages *stages);

enum {
    CPU_GRAIN_BYTES = 1 << 16, /* what a piece of work is at least worth */
    CPU_FUSED_BYTES = 1 << 19, /* half of a usual L2 */
};

/* Cuts a workspace into arrays; with base NULL it only counts. */
struct cpu_arena {
    char  *base;
    size_t used;
};
void  *cpu_take(struct cpu_arena *arena, int64_t count, size_t size);
size_t cpu_arena_size(const struct cpu_arena *arena); /* with the slack for alignment; 0 if nothing was taken */

#endif
