/* What the front doors of LayerNorm and RMSNorm share: one problem, with the centring and without. */
#ifndef WELFORD_ROWS_H
#define WELFORD_ROWS_H

#include "call.h"

/* RMSNorm's struct is LayerNorm's and weight_offset, so it serves both. */
_Static_assert(offsetof(wf_rmsnorm, weight_offset) == sizeof(wf_layernorm) &&
                   offsetof(wf_rmsnorm, eps) == offsetof(wf_layernorm, eps) &&
                   offsetof(wf_rmsnorm, rows) == offsetof(wf_layernorm, rows),
               "wf_rmsnorm begins as wf_layernorm");

/* Imports and checks `what`, a struct whose size the library knows as known_size; strides are filled in. */
void rows_import(struct call *call, wf_rmsnorm *w, const void *what, size_t known_size);

/* The problem without its buffers. */
struct layernorm_forward  rows_forward(const wf_rmsnorm *w, bool centered);
struct layernorm_backward rows_backward(const wf_rmsnorm *w, bool centered);

/* Checks the buffers and solves. */
wf_status rows_solve_forward(struct call *call, const struct layernorm_forward *p);
wf_status rows_solve_backward(struct call *call, const struct layernorm_backward *p);

/* The workspace queries. */
size_t rows_forward_workspace(const char *operation, const void *what, size_t known_size, wf_backend backend);
size_t rows_backward_workspace(const char *operation, const void *what, size_t known_size, wf_backend backend);

#endif
