/* --check: the same trainings with the library's layers and with the naive ones, loss by loss; --backend=both: with the
 * library's on the CPU and on the GPU, too. */
#ifndef DEMO_SELFCHECK_H
#define DEMO_SELFCHECK_H

#include "panels.h"

enum { CHECKS = 14 };

/* Curves must agree at every step, and the networks' test losses at the end, relative to the naive ones' values.
 * The two differ by float roundings only: a few 1e-7, which training lets grow to 1e-5 at most. A missing term, a wrong
 * count or a wrong mask gives 1e-3 and more. */
#define CHECK_TOLERANCE 1e-4

typedef enum curve { CHECKED, NAIVE, BESIDE, CURVES } curve; /* settings.checked, the naive layers, settings.beside */

typedef struct check {
    const char *name;
    recipe recipe;
    int64_t steps;
    double *loss[CURVES]; /* [steps] */
    score end[CURVES];    /* on test images */
    double worst;         /* largest relative difference from NAIVE; INFINITY where one is not a number */
    curve worst_curve;
    int64_t worst_step; /* steps: in the test loss at the end */
} check;

extern check checks[CHECKS];

/* Runs and prints all of them, so many steps each. True: all agree. */
bool selfcheck(settings *, int64_t steps);

#endif
