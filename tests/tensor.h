/* tensor.h - what a case's call reads and writes: matrices in watched memory. */
#ifndef WELFORD_TESTS_TENSOR_H
#define WELFORD_TESTS_TENSOR_H

#include "data.h"

/* A matrix in memory, its gaps filled with 0xff (a NaN in every dtype): whole, or near the rows where it is mapped. */
typedef struct Tensor {
    wf_dtype dtype;
    int64_t  rows, cols, stride;
    char    *data; /* NULL: not given */
    size_t   mapped; /* bytes of a sparse map; 0: a guarded buffer */
    bool     borrowed; /* the memory of another tensor: an output in place */
    char    *input; /* the rows as they must stay, without gaps; NULL for outputs */
} Tensor;

Tensor      tensor_new(wf_dtype, int64_t rows, int64_t cols, int64_t stride, int misalign); /* stride 0 = cols; an output */
Tensor      tensor_input(wf_dtype, int64_t rows, int64_t cols, int64_t stride, int misalign, const Quad *values);
void        tensor_put(Tensor *, const Quad *values);
size_t      tensor_size(const Tensor *);
unsigned char *tensor_rows(const Tensor *); /* without gaps; to be freed */
const char *tensor_damage(const Tensor *); /* NULL, or what was written that should not have been */
void        tensor_free(Tensor *);

#endif
