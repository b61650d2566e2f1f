/* The CPU back-end's table: which ISA runs, on which threads, in which floating-point mode. */
#include "cpu.h"

#include <assert.h>
#include <string.h>
#include <unistd.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "common/fpmode.h"

/* ---- ISAs, best first ------------------------------------------------------------------------------------------- */

#ifdef WF_HAVE_AVX512
static bool has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif
#ifdef WF_HAVE_AVX2
static bool has_avx2(void) /* every processor with AVX2 has F16C */
{
    return __builtin_cpu_supports("avx2");
}
#endif
static bool has_baseline(void)
{
    return true;
}

static const struct isa {
    const char *name;
    bool (*present)(void);
    const struct cpu_kernels *f32, *f64;
} isas[] = {
#ifdef WF_HAVE_AVX512
    {"avx512", has_avx512, &wf_kernels_avx512_f32, &wf_kernels_avx512_f64},
#endif
#ifdef WF_HAVE_AVX2
    {"avx2", has_avx2, &wf_kernels_avx2_f32, &wf_kernels_avx2_f64},
#endif
    {"baseline", has_baseline, &wf_kernels_baseline_f32, &wf_kernels_baseline_f64},
};
enum { ISAS = sizeof isas / sizeof *isas };

static const char *variant(int i)
{
    return i < ISAS ? isas[i].name : NULL;
}

/* The kernels that run a call, NULL if this processor has not the ISA asked for. */
static const struct cpu_kernels *pick(struct call *call)
{
    const char *wanted = call->exec.variant;
    for (int i = 0; i < ISAS; i++) {
        if (wanted ? strcmp(wanted, isas[i].name) != 0 : !isas[i].present())
            continue;
        if (!isas[i].present()) {
            call_fail(call, WF_UNSUPPORTED, "where.variant = \"%s\", this processor lacks it", wanted);
            return NULL;
        }
        call->variant = isas[i].name;
        call->why = wanted ? "asked" : "best";
        return call->x_dtype == WF_F64 ? isas[i].f64 : isas[i].f32;
    }
    assert(!"call_ready has checked the name");
    return NULL;
}

/* ---- threads ---------------------------------------------------------------------------------------------------- */

struct pieces {
    void (*body)(void *, int64_t, int64_t);
    void   *arg;
    int64_t n, grain;
};

static void run_pieces(void *arg, int64_t begin, int64_t end)
{
    const struct pieces *p = arg;
    const uint64_t       caller = wf_fpmode_enter();
    int64_t              last = end * p->grain;
    p->body(p->arg, begin * p->grain, last < p->n ? last : p->n);
    wf_fpmode_leave(caller);
}

#ifdef _OPENMP
static void openmp_for(struct call *call, int64_t n, struct pieces *p)
{
    int threads = call->exec.threads ? call->exec.threads : omp_get_max_threads();
    if (threads > n)
        threads = (int)n;
    if (threads > call->threads)
        call->threads = threads;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t i = 0; i < n; i++)
        run_pieces(p, i, i + 1);
}
#endif

void cpu_parallel(const struct cpu_run *run, int64_t n, int64_t grain, void (*body)(void *, int64_t, int64_t), void *arg)
{
    struct call   *call = run->call;
    struct pieces  p = {body, arg, n, grain > 1 ? grain : 1};
    const int64_t  count = (n + p.grain - 1) / p.grain;
    const wf_exec *e = &call->exec;
    if (call->threads == 0)
        call->threads = 1;
    if (count == 0)
        return;
    if (run->bytes >= CPU_GRAIN_BYTES && count > 1 && e->parallel_for) {
        e->parallel_for(e->pool, count, run_pieces, &p);
        return;
    }
#ifdef _OPENMP
    if (run->bytes >= CPU_GRAIN_BYTES && count > 1 && e->threads != 1) {
        openmp_for(call, count, &p);
        return;
    }
#endif
    run_pieces(&p, 0, count);
}

static void fused_sets(void *arg, int64_t begin, int64_t end)
{
    const struct cpu_stages *s = arg;
    for (int64_t set = begin; set < end; set++) {
        for (int64_t item = 0; s->reduce && item < s->items; item++)
            s->reduce(s->arg, set, item);
        if (s->combine)
            s->combine(s->arg, set);
        for (int64_t item = 0; s->apply && item < s->items; item++)
            s->apply(s->arg, set, item);
    }
}

static void reduce_items(void *arg, int64_t begin, int64_t end)
{
    const struct cpu_stages *s = arg;
    for (int64_t i = begin; i < end; i++)
        s->reduce(s->arg, i / s->items, i % s->items);
}

static void combine_sets(void *arg, int64_t begin, int64_t end)
{
    const struct cpu_stages *s = arg;
    for (int64_t set = begin; set < end; set++)
        s->combine(s->arg, set);
}

static void apply_items(void *arg, int64_t begin, int64_t end)
{
    const struct cpu_stages *s = arg;
    for (int64_t i = begin; i < end; i++)
        s->apply(s->arg, i / s->items, i % s->items);
}

void cpu_run_stages(const struct cpu_run *run, const struct cpu_stages *s)
{
    struct cpu_stages stages = *s;
    const int64_t     item_bytes = s->item_bytes > 0 ? s->item_bytes : 1;
    const int64_t     item_grain = CPU_GRAIN_BYTES / item_bytes;
    if (s->fused || s->items == 0) {
        cpu_parallel(run, s->sets, s->items ? item_grain / s->items : item_grain, fused_sets, &stages);
        return;
    }
    if (s->reduce)
        cpu_parallel(run, s->sets * s->items, item_grain, reduce_items, &stages);
    if (s->combine)
        cpu_parallel(run, s->sets, 64, combine_sets, &stages);
    if (s->apply)
        cpu_parallel(run, s->sets * s->items, item_grain, apply_items, &stages);
}

/* ---- workspace -------------------------------------------------------------------------------------------------- */

void *cpu_take(struct cpu_arena *arena, int64_t count, size_t size)
{
    char *at = arena->base ? arena->base + arena->used : NULL;
    arena->used += ((size_t)count * size + 63) & ~(size_t)63;
    return at;
}

size_t cpu_arena_size(const struct cpu_arena *arena)
{
    return arena->used ? arena->used + CALL_WORKSPACE_SLACK : 0;
}

/* ---- the table -------------------------------------------------------------------------------------------------- */

/* The last-level cache that this core can fill. sysconf is asked second: on AMD some versions of glibc answer with what
 * all of the package's caches hold together, which no core can use. */
static int64_t cache_size(void)
{
#if defined(__x86_64__)
    static const unsigned leaves[] = {4, 0x8000001d}; /* Intel's and AMD's; the other's is empty or absent */
    for (int k = 0; k < 2; k++) {
        unsigned a, b, c, d;
        for (unsigned i = 0; __get_cpuid_count(leaves[k], i, &a, &b, &c, &d) && (a & 31); i++)
            if ((a >> 5 & 7) == 3)
                return (int64_t)((b >> 22) + 1) * ((b >> 12 & 1023) + 1) * ((b & 4095) + 1) * ((int64_t)c + 1);
    }
#endif
#ifdef _SC_LEVEL3_CACHE_SIZE
    long size = sysconf(_SC_LEVEL3_CACHE_SIZE);
    if (size > 0)
        return size;
#endif
    return 1 << 24;
}

static struct cpu_run start(struct call *call, void *workspace)
{
    static int64_t once; /* every thread would store the same value */
    int64_t        cache = __atomic_load_n(&once, __ATOMIC_RELAXED);
    if (cache == 0) {
        cache = cache_size();
        __atomic_store_n(&once, cache, __ATOMIC_RELAXED);
    }
    struct cpu_run run = {.call = call, .workspace = workspace};
    for (int i = 0; i < call->buffers; i++)
        run.bytes += call->buffer[i].rows * call->buffer[i].row_size;
    run.stream = run.bytes > cache / 2;
    run.stream_training = run.bytes > cache / 16;
    return run;
}

/* Workspace sizes depend on the arithmetic type, not on the ISA. */
static const struct cpu_kernels *sizes_for(wf_dtype x_dtype)
{
    return x_dtype == WF_F64 ? &wf_kernels_baseline_f64 : &wf_kernels_baseline_f32;
}

#define PROBLEM(problem)                                                                                               \
    static size_t problem##_workspace(const struct problem *p)                                                         \
    {                                                                                                                  \
        return sizes_for(*(const wf_dtype *)p)->problem##_workspace(p);                                                \
    }                                                                                                                  \
    static wf_status problem(const struct problem *p, struct call *call)                                               \
    {                                                                                                                  \
        void                     *workspace;                                                                           \
        const struct cpu_kernels *kernels = pick(call);                                                                \
        if (kernels && !call_workspace(call, kernels->problem##_workspace(p), &workspace) && !call->dry_run) {         \
            struct cpu_run run = start(call, workspace);                                                               \
            const uint64_t caller = wf_fpmode_enter();                                                                 \
            kernels->problem(p, &run);                                                                                 \
            wf_fpmode_leave(caller);                                                                                   \
        }                                                                                                              \
        return call->status;                                                                                           \
    }
#include "ops.def"

static bool usable(void)
{
    return true;
}

const struct backend wf_cpu_backend = {
#define PROBLEM(problem) .problem = problem, .problem##_workspace = problem##_workspace, .problem##_variant = variant,
#include "ops.def"
    .usable = usable,
};
