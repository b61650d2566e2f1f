/* BatchNorm's front door, which InstanceNorm's goes through too: its structs are the longer ones. */
#include "channelnorm.h"

#define SIZE_OF(across_batch, suffix) ((across_batch) ? sizeof(wf_batchnorm##suffix) : sizeof(wf_instancenorm##suffix))

static struct channelnorm_shape import_what(struct call *call, wf_instancenorm *w, bool across_batch, const void *what)
{
    *w = (wf_instancenorm){0};
    call_import(call, "what", w, SIZE_OF(across_batch, ), what);
    check_dtypes(call, w->x_dtype, w->w_dtype);
    check_flags(call, w->flags, WF_ACCUMULATE | WF_FROZEN | WF_BIASED, w->reserved);
    check_channels(call, w->layout, w->n, w->c, w->hw);
    check_eps(call, w->eps);
    check_fraction(call, "momentum", w->momentum);
    if (call->status)
        return (struct channelnorm_shape){0}; /* sizes whose products overflow go no further */
    return (struct channelnorm_shape){.x_dtype = w->x_dtype,
                                      .w_dtype = w->w_dtype,
                                      .layout = w->layout,
                                      .across_batch = across_batch,
                                      .n = w->n,
                                      .c = w->c,
                                      .hw = w->hw,
                                      .groups = w->c};
}

static struct modulation modulation(struct call *call, const wf_instancenorm *w, bool across_batch)
{
    const struct modulation none = {.possible = false};
    return across_batch ? none : channelnorm_modulation(call, w->scale_offset);
}

/* Where statistics are those of the values themselves, one value has no variance. */
static void check_values(struct call *call, const wf_instancenorm *w, bool across_batch)
{
    const bool one = across_batch ? w->n == 1 && w->hw == 1 : w->hw == 1;
    check_that(call, call->empty || !one, "n = %lld, hw = %lld: expected more than 1 value per channel when training",
               (long long)w->n, (long long)w->hw);
}

static struct channelnorm_forward import_train(struct call *call, wf_instancenorm *w, bool across_batch, const void *what)
{
    struct channelnorm_forward p = {.shape = import_what(call, w, across_batch, what)};
    p.act = channelnorm_activation(call, w->activation, w->slope);
    p.mod = modulation(call, w, across_batch);
    p.unbiased = !(w->flags & WF_BIASED);
    p.eps = w->eps;
    p.momentum = w->momentum;
    check_values(call, w, across_batch);
    return p;
}

/* The statistics are per channel, whatever the operation: constants know no samples. */
static struct channelnorm_forward import_infer(struct call *call, wf_instancenorm *w, bool across_batch, const void *what)
{
    struct channelnorm_forward p = {.shape = import_what(call, w, across_batch, what), .known = true};
    p.shape.across_batch = true;
    p.act = channelnorm_activation(call, w->activation, w->slope);
    p.mod = modulation(call, w, across_batch);
    p.eps = w->eps;
    return p;
}

static struct channelnorm_backward import_backward(struct call *call, wf_instancenorm *w, bool across_batch,
                                                   const void *what)
{
    struct channelnorm_backward p = {.shape = import_what(call, w, across_batch, what)};
    p.act = channelnorm_activation(call, w->activation, w->slope);
    p.mod = modulation(call, w, across_batch);
    p.accumulate = w->flags & WF_ACCUMULATE;
    p.frozen = w->flags & WF_FROZEN;
    p.shape.across_batch |= p.frozen;
    if (!p.frozen)
        check_values(call, w, across_batch);
    return p;
}

wf_status batchnorm_train(const char *operation, bool across_batch, const void *what, const void *with,
                          const wf_exec *where)
{
    struct call                call;
    wf_instancenorm            w;
    wf_instancenorm_train_args a = {0};
    call_open(&call, operation, where);
    struct channelnorm_forward p = import_train(&call, &w, across_batch, what);
    call_import_args(&call, &a, SIZE_OF(across_batch, _train_args), with);
    p.x = a.x, p.gamma = a.gamma, p.beta = a.beta;
    p.running_mean_in = a.running_mean_in, p.running_var_in = a.running_var_in;
    p.running_mean_out = a.running_mean_out, p.running_var_out = a.running_var_out;
    p.y = a.y, p.mean = a.mean, p.rstd = a.rstd, p.mean_lo = a.mean_lo;
    p.act.residual = a.residual;
    p.mod.scale = a.scale, p.mod.shift = a.shift;
    return channelnorm_solve_forward(&call, &p);
}

wf_status batchnorm_infer(const char *operation, bool across_batch, const void *what, const void *with,
                          const wf_exec *where)
{
    struct call                call;
    wf_instancenorm            w;
    wf_instancenorm_infer_args a = {0};
    call_open(&call, operation, where);
    struct channelnorm_forward p = import_infer(&call, &w, across_batch, what);
    call_import_args(&call, &a, SIZE_OF(across_batch, _infer_args), with);
    p.x = a.x, p.gamma = a.gamma, p.beta = a.beta;
    p.running_mean_in = a.running_mean, p.running_var_in = a.running_var;
    p.y = a.y, p.rstd = a.rstd;
    p.act.residual = a.residual;
    p.mod.scale = a.scale, p.mod.shift = a.shift;
    return channelnorm_solve_forward(&call, &p);
}

wf_status batchnorm_backward(const char *operation, bool across_batch, const void *what, const void *with,
                             const wf_exec *where)
{
    struct call                   call;
    wf_instancenorm               w;
    wf_instancenorm_backward_args a = {0};
    call_open(&call, operation, where);
    struct channelnorm_backward p = import_backward(&call, &w, across_batch, what);
    call_import_args(&call, &a, SIZE_OF(across_batch, _backward_args), with);
    p.dy = a.dy, p.x = a.x, p.gamma = a.gamma;
    p.mean = a.mean, p.rstd = a.rstd, p.mean_lo = a.mean_lo;
    p.dx = a.dx, p.dgamma = a.dgamma, p.dbeta = a.dbeta;
    p.act.beta = a.beta, p.act.residual = a.residual, p.act.y = a.y, p.act.dresidual = a.dresidual;
    p.mod.scale = a.scale, p.mod.shift = a.shift, p.mod.dscale = a.dscale, p.mod.dshift = a.dshift;
    return channelnorm_solve_backward(&call, &p);
}

size_t batchnorm_train_workspace(const char *operation, bool across_batch, const void *what, wf_backend backend)
{
    struct call     call;
    wf_instancenorm w;
    call_open_query(&call, operation, backend);
    const struct channelnorm_forward p = import_train(&call, &w, across_batch, what);
    return call_ready(&call) ? call.backend->channelnorm_forward_workspace(&p) : 0;
}

size_t batchnorm_infer_workspace(const char *operation, bool across_batch, const void *what, wf_backend backend)
{
    struct call     call;
    wf_instancenorm w;
    call_open_query(&call, operation, backend);
    const struct channelnorm_forward p = import_infer(&call, &w, across_batch, what);
    return call_ready(&call) ? call.backend->channelnorm_forward_workspace(&p) : 0;
}

size_t batchnorm_backward_workspace(const char *operation, bool across_batch, const void *what, wf_backend backend)
{
    struct call     call;
    wf_instancenorm w;
    call_open_query(&call, operation, backend);
    const struct channelnorm_backward p = import_backward(&call, &w, across_batch, what);
    return call_ready(&call) ? call.backend->channelnorm_backward_workspace(&p) : 0;
}

/* ---- the public names ------------------------------------------------------------------------------------------- */

wf_status wf_batchnorm_train(const wf_batchnorm *what, const wf_batchnorm_train_args *with, const wf_exec *where)
{
    return batchnorm_train("batchnorm_train", true, what, with, where);
}

wf_status wf_batchnorm_infer(const wf_batchnorm *what, const wf_batchnorm_infer_args *with, const wf_exec *where)
{
    return batchnorm_infer("batchnorm_infer", true, what, with, where);
}

wf_status wf_batchnorm_backward(const wf_batchnorm *what, const wf_batchnorm_backward_args *with, const wf_exec *where)
{
    return batchnorm_backward("batchnorm_backward", true, what, with, where);
}

size_t wf_batchnorm_train_workspace(const wf_batchnorm *what, wf_backend backend)
{
    return batchnorm_train_workspace("batchnorm_train", true, what, backend);
}

size_t wf_batchnorm_infer_workspace(const wf_batchnorm *what, wf_backend backend)
{
    return batchnorm_infer_workspace("batchnorm_infer", true, what, backend);
}

size_t wf_batchnorm_backward_workspace(const wf_batchnorm *what, wf_backend backend)
{
    return batchnorm_backward_workspace("batchnorm_backward", true, what, backend);
}
