/* oracle_ending.h - the activation that the channel norms may end in, and how far off results may be where what it is taken of
 * may be: from the formulas alone, as oracle.h. */
#ifndef WELFORD_TESTS_ORACLE_ENDING_H
#define WELFORD_TESTS_ORACLE_ENDING_H

#include "data.h"

/* y = activation(z), and how far off it is where z is by z_bar, without the rounding at the store. */
Quad ending_value(const Case *, Quad z);
double ending_value_bar(const Case *, Quad value, double z_bar);

/* dz = dy activation'(z), *bar likewise; with corners a select, so that a NaN or Inf in dy is dropped with it. */
Quad ending_gradient(const Case *, Quad z, double z_bar, Quad dy, double *bar);

#endif
