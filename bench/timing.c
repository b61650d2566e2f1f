/* timing.c - contestants in turn, A B A B: machines drift, so only neighbors in time are compared.
 *
 * CPU: the clock around a call, cold with the slab flushed from the caches beforehand. CUDA: a graph of calls that goes
 * round the sets, timed by events; cold, the sets are more than twice L2, so that a call finds nothing of its own there. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench.h"
#include "quiet.h"

enum { LEAST_SAMPLES = 7, MOST_SAMPLES = 400, MOST_CALLS = 2048, PATIENCE = 5 /* times min_time, with the waiting */ };
static const double GRAPH_TIME = 300e-6, BURST_TIME = 20e-6; /* of a sample, at least */
static const double MOST_SPIN = 0.1; /* seconds */

double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double median_of(double *values, int count)
{
    qsort(values, (size_t)count, sizeof *values, ascending);
    return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

Timing timing_of(double *seconds, int samples, int calls)
{
    Timing t = { .median = median_of(seconds, samples), .samples = samples, .calls = calls };
    t.min = seconds[0];
    t.q1 = seconds[samples / 4];
    t.q3 = seconds[samples - 1 - samples / 4];
    t.p95 = seconds[(samples - 1) * 95 / 100];
    return t;
}

int sets_wanted(wf_backend backend, bool cold, size_t slab_size)
{
    if (backend == WF_CPU || !cold)
        return 1;
    const size_t sets = 5 * gpu_l2_size() / 2 / (slab_size + 1) + 2;
    return sets < MOST_CALLS ? (int)sets : MOST_CALLS;
}

/* ---- the CPU ---- */

/* others: their threads would be in the way. */
static bool burst(const Timer *timer, const Contestant *who, bool others, int calls, double *seconds)
{
    bool ok = true;
    for (const double until = now() + MOST_SPIN; others && now() < until && bench_others_run();)
        continue;
    if (timer->cold)
        bench_flush(timer->slab[0], timer->slab_size);
    else
        ok = who->call(who->state, timer->slab[0], NULL);
    const double start = now();
    for (int i = 0; i < calls; i++)
        ok &= who->call(who->state, timer->slab[0], NULL);
    *seconds = (now() - start) / calls;
    return ok;
}

/* ---- CUDA ---- */

typedef struct Cycle { const Timer *timer; const Contestant *who; int calls; } Cycle;

static bool cycle(void *arg)
{
    const Cycle *c = arg;
    bool ok = true;
    for (int i = 0; i < c->calls && ok; i++)
        ok = c->who->call(c->who->state, c->timer->slab[i % c->timer->sets], gpu_stream());
    return ok;
}

/* Runs once for the loading of kernels, once for an estimate; then the graph. */
static const char *prepare(const Timer *timer, const Contestant *who, int *calls, GpuGraph **graph)
{
    const char *error;
    Cycle c = { timer, who, timer->sets };
    double start = 0;
    for (int i = 0; i < 2; i++) {
        start = now();
        if (!cycle(&c))
            return "the call failed";
        if (!gpu_sync(&error))
            return error;
    }
    const double each = (now() - start) / timer->sets;
    while (c.calls * each < GRAPH_TIME && c.calls + timer->sets <= MOST_CALLS)
        c.calls += timer->sets;
    *calls = c.calls;
    *graph = gpu_capture(cycle, &c);
    return *graph ? NULL : "the call cannot be captured in a graph";
}

/* ---- both ---- */

const char *time_all(const Timer *timer, Contestant *who, int count)
{
    static double seconds[1 + MAX_PEERS][MOST_SAMPLES], ratio[MOST_SAMPLES];
    GpuGraph *graph[1 + MAX_PEERS] = { NULL };
    int calls[1 + MAX_PEERS], samples = 0;
    double spent = 0;
    const bool others = count > 1 && timer->threads > 1;
    const char *error = NULL;
    for (int i = 0; i < count && !error; i++) {
        calls[i] = 1;
        if (timer->backend == WF_CUDA) {
            error = prepare(timer, &who[i], &calls[i], &graph[i]);
            continue;
        }
        double each = 0;
        for (int k = 0; k < 2 && !error; k++) /* the first call is the threads' and the pages' */
            error = burst(timer, &who[i], others, 1, &each) ? NULL : "the call failed";
        while (!timer->cold && calls[i] * each < BURST_TIME && calls[i] < MOST_CALLS)
            calls[i] *= 2;
    }
    const double enough = timer->min_time * count, late = now() + PATIENCE * enough;
    for (int round = -2; !error && samples < MOST_SAMPLES; round++) {
        if (samples >= LEAST_SAMPLES && (spent >= enough || now() > late))
            break;
        for (int i = 0; i < count && !error; i++) {
            double s;
            if (graph[i])
                s = gpu_replay(graph[i]) / calls[i];
            else if (!burst(timer, &who[i], others, calls[i], &s))
                error = "the call failed";
            seconds[i][samples] = s;
            spent += round < 0 ? 0 : s * calls[i];
        }
        samples += round >= 0; /* the first rounds warm up */
    }
    for (int i = 0; i < count; i++) {
        for (int k = 0; k < samples; k++)
            ratio[k] = seconds[i][k] / seconds[0][k];
        if (!error)
            who[i].ratio = median_of(ratio, samples);
        if (graph[i])
            gpu_graph_free(graph[i]);
    }
    for (int i = 0; i < count && !error; i++)
        who[i].timing = timing_of(seconds[i], samples, calls[i]);
    return error;
}
