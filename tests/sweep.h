/* sweep.h - what the suites of the five norms share: the same sweeps over shapes, dtypes, options, data and chance. */
#ifndef WELFORD_TESTS_SWEEP_H
#define WELFORD_TESTS_SWEEP_H

#include <check.h>

#include "run.h"

typedef struct Sweep {
    Norm norm;
    /* Cases of their own, NULL behind the last; a '+' in front: not in a quick run. */
    const char *const *lines;
} Sweep;

Suite *sweep_suite(const Sweep *); /* the sweep stays in use */

/* ---- for other suites too ---- */
typedef struct Dtypes { wf_dtype x, w; } Dtypes;
enum { DTYPES = 6 };
extern const Dtypes dtypes[DTYPES];

bool quick(void);
/* Of long cases one in three, for the oracle takes seconds for each; turn: what nothing else goes by. */
bool in_turn(int turn, int64_t elements);
bool left_out(const Case *); /* of this run, where not every case is in it; to be asked once per case */
/* WELFORD_TEST_FEW_DTYPES: the kernels under test have two pairs of dtypes (WF_FEW_DTYPES). False: not this case's.
 * WELFORD_TEST_OPS: nor what is not of the operations named. */
bool in_build(const Case *);
wf_backend tested_backend(void); /* WELFORD_TEST_BACKEND=cuda: of the sweeps' cases; else the CPU */
/* The operations of a norm in turn; a backward pass with frozen statistics counts as one more. False past the last. */
bool operation(Norm, int i, Case *);
bool legal(const Case *); /* false: the contract refuses it (one value per channel in training) */
bool row_wise(Norm);
/* One call of the variant that the case names, or of the library's choice. False: the variant does not take it. */
bool run_named(const Case *, const Problem *, Raw out[OUTPUT_COUNT]);
/* Rows or samples alone have the bits they have in the whole; nothing where statistics are over samples. */
void check_alone(const Case *);
void check_case(const Case *); /* run_case() of the case's line, within a Check test */
void check_none(const char *error); /* fails with the text */
Case case_of(const char *line); /* fails where the line is none */
void set_dtypes(Case *, int i); /* pair i, modulo their number */

#endif
