#define _GNU_SOURCE /* sched_getaffinity */
#include "workers.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>

typedef struct crew {
    _Atomic int64_t next;
    int64_t jobs;
    void (*run)(void *, int64_t);
    void *context;
    ui_counters *counters;
} crew;

static void *work(void *argument)
{
    crew *c = argument;
    for (int64_t job; (job = c->next++) < c->jobs;) {
        c->run(c->context, job);
        c->counters->jobs++;
    }
    return NULL;
}

void workers_run(const char *title, int threads, int64_t jobs, void (*run)(void *, int64_t), void *context,
                 ui_counters *counters)
{
    enum { MOST = 64 };
    pthread_t thread[MOST];
    crew c = {.jobs = jobs, .run = run, .context = context, .counters = counters};
    ui_begin(title, jobs, counters);
    threads = threads < 1 ? 1 : threads > MOST ? MOST : threads;
    for (int i = 0; i < threads; i++)
        if (pthread_create(&thread[i], NULL, work, &c))
            die("cannot start a thread");
    while (counters->jobs < jobs) {
        nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
        ui_draw();
    }
    for (int i = 0; i < threads; i++)
        pthread_join(thread[i], NULL);
    ui_end();
}

int workers_default(void)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}
