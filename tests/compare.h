/* compare.h - every element of an output against the oracle. */
#ifndef WELFORD_TESTS_COMPARE_H
#define WELFORD_TESTS_COMPARE_H

#include "oracle.h"

typedef struct Comparison {
    int64_t elements, promised; /* promised: those with a bar */
    int64_t rounded; /* correctly rounded ones; counted for 16-bit y and dx */
    int64_t worst_at;
    double  worst; /* error in units of the bar */
} Comparison;

/* NULL, or a text in a static buffer: the worst element, its error in units of the bar, the line that repeats the case. */
const char *compare(const Case *, Output, const Expected *, const Quad *got, Comparison *result);

/* The worst error in units of the bar of every operation, output and dtype. A process appends what it finds to the file
 * that the environment variable WELFORD_TEST_WORST names, so that children of the test runner can hand it over. */
void worst_print(const char *path); /* the table of such a file */

#endif
