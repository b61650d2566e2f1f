/* What the front doors of LayerNorm and RMSNorm share: one problem, with the centring and without. */
#ifndef WELFORD_ROWS_H
#define WELFORD_ROWS_H

#include <string.h>

#include "call.h"

/* RMSNorm's struct has all fields of LayerNorm's, so the library keeps that one. Both begin alike. */
#define ROWS_HEAD offsetof(wf_layernorm, p)
_Static_assert(offsetof(wf_rmsnorm, weight_offset) == ROWS_HEAD && offsetof(wf_rmsnorm, eps) == offsetof(wf_layernorm, eps) &&
                   offsetof(wf_rmsnorm, rows) == offsetof(wf_layernorm, rows),
               "wf_rmsnorm begins as wf_layernorm");

/* Checks `what`; strides are filled in. */
void rows_check(struct call *call, wf_rmsnorm *w);

/* The problem without its buffers. */
struct layernorm_forward  rows_forward(const wf_rmsnorm *w, bool centered);
struct layernorm_backward rows_backward(const wf_rmsnorm *w, bool centered, bool from_output);

/* What is added, of either operation's args. */
#define ROWS_DROPOUT(add, a)                                                                                           \
    ((add).row_scale = (a).row_scale, (add).col_scale = (a).col_scale, (add).seed = (a).seed, (add).offset = (a).offset, \
     (add).seed_ptr = (a).seed_ptr, (add).offset_ptr = (a).offset_ptr)
#define ROWS_ADDITION(add, a)  (ROWS_DROPOUT(add, a), (add).residual = (a).residual, (add).sum = (a).sum)
#define ROWS_GRADIENTS(add, a) (ROWS_DROPOUT(add, a), (add).dsum = (a).dsum, (add).dresidual = (a).dresidual)

#define ROWS_QUANTIZATION(q, a) ((q).scale = (a).y_scale, (q).amax = (a).y_amax, (q).row_scale = (a).y_row_scale)

/* Checks the buffers and solves. sum: of the backward pass, in place of x unless that is y. */
wf_status rows_solve_forward(struct call *call, struct layernorm_forward *p);
wf_status rows_solve_backward(struct call *call, struct layernorm_backward *p, const void *sum);

/* The workspace queries; the call is open and w imported. */
size_t rows_forward_workspace(struct call *call, wf_rmsnorm *w);
size_t rows_backward_workspace(struct call *call, wf_rmsnorm *w);

#endif
