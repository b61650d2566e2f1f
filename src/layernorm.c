/* LayerNorm's front door. */
#include "rows.h"

static wf_rmsnorm import_what(struct call *call, const wf_layernorm *what)
{
    wf_layernorm l;
    wf_rmsnorm   w = {0};
    CALL_IMPORT(call, l, what);
    memcpy(&w, &l, ROWS_HEAD);
    w.p = l.p, w.residual_stride = l.residual_stride, w.sum_stride = l.sum_stride;
    w.quantization = l.quantization, w.reserved_2 = l.reserved_2;
    rows_check(call, &w);
    return w;
}

wf_status wf_layernorm_forward(const wf_layernorm *what, const wf_layernorm_forward_args *with, const wf_exec *where)
{
    struct call               call;
    wf_layernorm_forward_args a;
    call_open(&call, "layernorm_forward", where);
    const wf_rmsnorm w = import_what(&call, what);
    call_import_args(&call, &a, sizeof a, with);

    struct layernorm_forward p = rows_forward(&w, true);
    p.x = a.x, p.gamma = a.gamma, p.beta = a.beta;
    p.y = a.y, p.mean = a.mean, p.rstd = a.rstd, p.mean_lo = a.mean_lo;
    ROWS_ADDITION(p.add, a);
    ROWS_QUANTIZATION(p.quantize, a);
    return rows_solve_forward(&call, &p);
}

wf_status wf_layernorm_backward(const wf_layernorm *what, const wf_layernorm_backward_args *with, const wf_exec *where)
{
    struct call                call;
    wf_layernorm_backward_args a;
    call_open(&call, "layernorm_backward", where);
    const wf_rmsnorm w = import_what(&call, what);
    call_import_args(&call, &a, sizeof a, with);

    struct layernorm_backward p = rows_backward(&w, true, a.y);
    p.dy = a.dy, p.x = a.y ? a.y : a.x, p.gamma = a.gamma;
    p.mean = a.mean, p.rstd = a.rstd, p.mean_lo = a.mean_lo;
    p.beta = a.beta, p.dx = a.dx, p.dgamma = a.dgamma, p.dbeta = a.dbeta;
    ROWS_GRADIENTS(p.add, a);
    return rows_solve_backward(&call, &p, a.sum);
}

size_t wf_layernorm_forward_workspace(const wf_layernorm *what, wf_backend backend)
{
    struct call call;
    call_open_query(&call, "layernorm_forward", backend);
    wf_rmsnorm w = import_what(&call, what);
    return rows_forward_workspace(&call, &w);
}

size_t wf_layernorm_backward_workspace(const wf_layernorm *what, wf_backend backend)
{
    struct call call;
    call_open_query(&call, "layernorm_backward", backend);
    wf_rmsnorm w = import_what(&call, what);
    return rows_backward_workspace(&call, &w);
}
