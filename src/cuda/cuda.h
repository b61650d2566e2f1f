/* What the files of the CUDA back-end share: the seam, seen from C++, and each problem's variants. */
#ifndef WELFORD_CUDA_H
#define WELFORD_CUDA_H

extern "C" {
#include "call.h"
}
#include "prim/dispatch.cuh"

/* "This problem's list is that one"; a problem without kernels has an empty list. */
#define PROBLEM(problem) extern const Variant<struct problem> problem##_variants[];
#include "ops.def"

/* A buffer of the problem, or none, as kernels take it. */
template <class T> dev::global<T> buffer(const void *data)
{
    return dev::global<T>(static_cast<T *>(const_cast<void *>(data)));
}

#endif
