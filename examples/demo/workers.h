/* Runs independent jobs on a few threads while the calling thread draws the progress. Each run computes with one thread
 * of its own: two small networks side by side use two cores better than one small network split in two. */
#ifndef DEMO_WORKERS_H
#define DEMO_WORKERS_H

#include "ui.h"

/* Calls run(context, i) once for each i in 0 .. jobs - 1, in that order of beginning; returns when all are done. */
void workers_run(const char *title, int threads, int64_t jobs, void (*run)(void *context, int64_t job), void *context,
                 ui_counters *);
int workers_default(void); /* processors this process may use */

#endif
