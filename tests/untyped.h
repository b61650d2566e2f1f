/* untyped.h - every operation behind one signature, for tables of them: call_layernorm_forward() and the like. */
#ifndef WELFORD_TESTS_UNTYPED_H
#define WELFORD_TESTS_UNTYPED_H

#include "welford.h"

#define FOR_EACH_OPERATION(F)                                                                                          \
    F(layernorm_forward)                                                                                               \
    F(layernorm_backward)                                                                                              \
    F(rmsnorm_forward)                                                                                                 \
    F(rmsnorm_backward)                                                                                                \
    F(groupnorm_forward)                                                                                               \
    F(groupnorm_backward)                                                                                              \
    F(batchnorm_train)                                                                                                 \
    F(batchnorm_infer)                                                                                                 \
    F(batchnorm_backward)                                                                                              \
    F(instancenorm_train)                                                                                              \
    F(instancenorm_infer)                                                                                              \
    F(instancenorm_backward)                                                                                           \
    F(dropout_forward)                                                                                                 \
    F(dropout_backward)                                                                                                \
    F(fold_batchnorm)                                                                                                  \
    F(fold_layernorm)

#define UNTYPED(operation)                                                                                             \
    wf_status call_##operation(const void *what, const void *with, const wf_exec *where);                              \
    size_t workspace_##operation(const void *what, wf_backend backend);
FOR_EACH_OPERATION(UNTYPED)
#undef UNTYPED

#endif
