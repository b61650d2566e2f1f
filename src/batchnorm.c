/* BatchNorm's front door, which InstanceNorm's goes through too. */
#include "channelnorm.h"

static struct channelnorm_shape import_what(struct call *call, wf_batchnorm *w, bool across_batch, const void *what)
{
    call_import(call, "what", w, sizeof *w, what);
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

/* Where statistics are those of the values themselves, one value has no variance. */
static void check_values(struct call *call, const wf_batchnorm *w, bool across_batch)
{
    const bool one = across_batch ? w->n == 1 && w->hw == 1 : w->hw == 1;
    check_that(call, call->empty || !one, "n = %lld, hw = %lld: expected more than 1 value per channel when training",
               (long long)w->n, (long long)w->hw);
}

static struct channelnorm_forward import_train(struct call *call, wf_batchnorm *w, bool across_batch, const void *what)
{
    struct channelnorm_forward p = {.shape = import_what(call, w, across_batch, what)};
    p.act = channelnorm_activation(call, w->activation, w->slope);
    p.unbiased = !(w->flags & WF_BIASED);
    p.eps = w->eps;
    p.momentum = w->momentum;
    check_values(call, w, across_batch);
    return p;
}

/* The statistics are per channel, whatever the operation: constants know no samples. */
static struct channelnorm_forward import_infer(struct call *call, wf_batchnorm *w, const void *what)
{
    struct channelnorm_forward p = {.shape = import_what(call, w, true, what), .known = true};
    p.act = channelnorm_activation(call, w->activation, w->slope);
    p.eps = w->eps;
    return p;
}

static struct channelnorm_backward import_backward(struct call *call, wf_batchnorm *w, bool across_batch,
                                                   const void *what)
{
    struct channelnorm_backward p = {.shape = import_what(call, w, across_batch, what)};
    p.act = channelnorm_activation(call, w->activation, w->slope);
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
    struct call             call;
    wf_batchnorm            w;
    wf_batchnorm_train_args a;
    call_open(&call, operation, where);
    struct channelnorm_forward p = import_train(&call, &w, across_batch, what);
    call_import_args(&call, &a, sizeof a, with);
    p.x = a.x, p.gamma = a.gamma, p.beta = a.beta;
    p.running_mean_in = a.running_mean_in, p.running_var_in = a.running_var_in;
    p.running_mean_out = a.running_mean_out, p.running_var_out = a.running_var_out;
    p.y = a.y, p.mean = a.mean, p.rstd = a.rstd, p.mean_lo = a.mean_lo;
    p.act.residual = a.residual;
    return channelnorm_solve_forward(&call, &p);
}

wf_status batchnorm_infer(const char *operation, const void *what, const void *with, const wf_exec *where)
{
    struct call             call;
    wf_batchnorm            w;
    wf_batchnorm_infer_args a;
    call_open(&call, operation, where);
    struct channelnorm_forward p = import_infer(&call, &w, what);
    call_import_args(&call, &a, sizeof a, with);
    p.x = a.x, p.gamma = a.gamma, p.beta = a.beta;
    p.running_mean_in = a.running_mean, p.running_var_in = a.running_var;
    p.y = a.y, p.rstd = a.rstd;
    p.act.residual = a.residual;
    return channelnorm_solve_forward(&call, &p);
}

wf_status batchnorm_backward(const char *operation, bool across_batch, const void *what, const void *with,
                             const wf_exec *where)
{
    struct call                call;
    wf_batchnorm               w;
    wf_batchnorm_backward_args a;
    call_open(&call, operation, where);
    struct channelnorm_backward p = import_backward(&call, &w, across_batch, what);
    call_import_args(&call, &a, sizeof a, with);
    p.dy = a.dy, p.x = a.x, p.gamma = a.gamma;
    p.mean = a.mean, p.rstd = a.rstd, p.mean_lo = a.mean_lo;
    p.dx = a.dx, p.dgamma = a.dgamma, p.dbeta = a.dbeta;
    p.act.beta = a.beta, p.act.residual = a.residual, p.act.y = a.y, p.act.dresidual = a.dresidual;
    return channelnorm_solve_backward(&call, &p);
}

size_t batchnorm_train_workspace(const char *operation, bool across_batch, const void *what, wf_backend backend)
{
    struct call  call;
    wf_batchnorm w;
    call_open_query(&call, operation, backend);
    const struct channelnorm_forward p = import_train(&call, &w, across_batch, what);
    return call_ready(&call) ? call.backend->channelnorm_forward_workspace(&p) : 0;
}

size_t batchnorm_infer_workspace(const char *operation, const void *what, wf_backend backend)
{
    struct call  call;
    wf_batchnorm w;
    call_open_query(&call, operation, backend);
    const struct channelnorm_forward p = import_infer(&call, &w, what);
    return call_ready(&call) ? call.backend->channelnorm_forward_workspace(&p) : 0;
}

size_t batchnorm_backward_workspace(const char *operation, bool across_batch, const void *what, wf_backend backend)
{
    struct call  call;
    wf_batchnorm w;
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
    return batchnorm_infer("batchnorm_infer", what, with, where);
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
    return batchnorm_infer_workspace("batchnorm_infer", what, backend);
}

size_t wf_batchnorm_backward_workspace(const wf_batchnorm *what, wf_backend backend)
{
    return batchnorm_backward_workspace("batchnorm_backward", true, what, backend);
}
