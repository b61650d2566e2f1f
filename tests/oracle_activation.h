/* oracle_activation.h - activations and their derivatives in __float128, by libquadmath's functions; nothing of src/ is used. */
#ifndef WELFORD_TESTS_ORACLE_ACTIVATION_H
#define WELFORD_TESTS_ORACLE_ACTIVATION_H

#include "data.h"

Quad oracle_activation(wf_activation kind, Quad slope, Quad x);

/* *size: what an error in it is measured by, |S| + |x S'| where the activation is x S(x): the two may cancel. */
Quad oracle_activation_derivative(wf_activation kind, Quad slope, Quad x, Quad *size);

#endif
