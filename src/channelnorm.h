/* What the front doors of GroupNorm, InstanceNorm and BatchNorm share. */
#ifndef WELFORD_CHANNELNORM_H
#define WELFORD_CHANNELNORM_H

#include "call.h"

/* What `what` says of it, checked. */
struct activation channelnorm_activation(struct call *call, wf_activation kind, double slope);

/* Likewise; that of an operation that may be modulated. */
struct modulation channelnorm_modulation(struct call *call, double scale_offset);

/* Checks the buffers and solves. */
wf_status channelnorm_solve_forward(struct call *call, struct channelnorm_forward *p);
wf_status channelnorm_solve_backward(struct call *call, struct channelnorm_backward *p);

/* BatchNorm's three directions, and InstanceNorm's, whose structs begin with the same fields: across_batch tells them apart.
 * what is a wf_batchnorm, with a wf_batchnorm_..._args, or InstanceNorm's, of whatever size the caller states. */
wf_status batchnorm_train(const char *operation, bool across_batch, const void *what, const void *with,
                          const wf_exec *where);
wf_status batchnorm_infer(const char *operation, bool across_batch, const void *what, const void *with,
                          const wf_exec *where);
wf_status batchnorm_backward(const char *operation, bool across_batch, const void *what, const void *with,
                             const wf_exec *where);
size_t batchnorm_train_workspace(const char *operation, bool across_batch, const void *what, wf_backend backend);
size_t batchnorm_infer_workspace(const char *operation, bool across_batch, const void *what, wf_backend backend);
size_t batchnorm_backward_workspace(const char *operation, bool across_batch, const void *what, wf_backend backend);

#endif
