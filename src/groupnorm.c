/* GroupNorm's front door. */
#include "channelnorm.h"

static struct channelnorm_shape import_what(struct call *call, wf_groupnorm *w, const wf_groupnorm *what)
{
    CALL_IMPORT(call, *w, what);
    check_dtypes(call, w->x_dtype, w->w_dtype);
    check_flags(call, w->flags, WF_ACCUMULATE, w->reserved);
    check_channels(call, w->layout, w->n, w->c, w->hw);
    check_that(call, w->groups > 0 && w->c % w->groups == 0, "groups = %lld, must be > 0 and divide c = %lld",
               (long long)w->groups, (long long)w->c);
    check_eps(call, w->eps);
    if (call->status)
        return (struct channelnorm_shape){0}; /* sizes whose products overflow go no further */
    return (struct channelnorm_shape){.x_dtype = w->x_dtype,
                                      .w_dtype = w->w_dtype,
                                      .layout = w->layout,
                                      .n = w->n,
                                      .c = w->c,
                                      .hw = w->hw,
                                      .groups = w->groups};
}

wf_status wf_groupnorm_forward(const wf_groupnorm *what, const wf_groupnorm_forward_args *with, const wf_exec *where)
{
    struct call               call;
    wf_groupnorm              w;
    wf_groupnorm_forward_args a;
    call_open(&call, "groupnorm_forward", where);
    struct channelnorm_forward p = {.shape = import_what(&call, &w, what), .eps = w.eps};
    p.act = channelnorm_activation(&call, w.activation, w.slope);
    p.mod = channelnorm_modulation(&call, w.scale_offset);
    call_import_args(&call, &a, sizeof a, with);
    p.x = a.x, p.gamma = a.gamma, p.beta = a.beta;
    p.y = a.y, p.mean = a.mean, p.rstd = a.rstd, p.mean_lo = a.mean_lo;
    p.act.residual = a.residual;
    p.mod.scale = a.scale, p.mod.shift = a.shift;
    return channelnorm_solve_forward(&call, &p);
}

wf_status wf_groupnorm_backward(const wf_groupnorm *what, const wf_groupnorm_backward_args *with, const wf_exec *where)
{
    struct call                call;
    wf_groupnorm               w;
    wf_groupnorm_backward_args a;
    call_open(&call, "groupnorm_backward", where);
    struct channelnorm_backward p = {.shape = import_what(&call, &w, what), .accumulate = w.flags & WF_ACCUMULATE};
    p.act = channelnorm_activation(&call, w.activation, w.slope);
    p.mod = channelnorm_modulation(&call, w.scale_offset);
    call_import_args(&call, &a, sizeof a, with);
    p.dy = a.dy, p.x = a.x, p.gamma = a.gamma;
    p.mean = a.mean, p.rstd = a.rstd, p.mean_lo = a.mean_lo;
    p.dx = a.dx, p.dgamma = a.dgamma, p.dbeta = a.dbeta;
    p.act.beta = a.beta, p.act.residual = a.residual, p.act.y = a.y, p.act.dresidual = a.dresidual;
    p.mod.scale = a.scale, p.mod.shift = a.shift, p.mod.dscale = a.dscale, p.mod.dshift = a.dshift;
    return channelnorm_solve_backward(&call, &p);
}

size_t wf_groupnorm_forward_workspace(const wf_groupnorm *what, wf_backend backend)
{
    struct call  call;
    wf_groupnorm w;
    call_open_query(&call, "groupnorm_forward", backend);
    struct channelnorm_forward p = {.shape = import_what(&call, &w, what)};
    p.act = channelnorm_activation(&call, w.activation, w.slope);
    p.mod = channelnorm_modulation(&call, w.scale_offset);
    return call_ready(&call) ? call.backend->channelnorm_forward_workspace(&p) : 0;
}

size_t wf_groupnorm_backward_workspace(const wf_groupnorm *what, wf_backend backend)
{
    struct call  call;
    wf_groupnorm w;
    call_open_query(&call, "groupnorm_backward", backend);
    struct channelnorm_backward p = {.shape = import_what(&call, &w, what)};
    p.act = channelnorm_activation(&call, w.activation, w.slope);
    p.mod = channelnorm_modulation(&call, w.scale_offset);
    return call_ready(&call) ? call.backend->channelnorm_backward_workspace(&p) : 0;
}
