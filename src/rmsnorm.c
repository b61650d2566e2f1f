/* RMSNorm's front door: LayerNorm without the centering. */
#include "rows.h"

static wf_rmsnorm import_what(struct call *call, const wf_rmsnorm *what)
{
    wf_rmsnorm w;
    CALL_IMPORT(call, w, what);
    rows_check(call, &w);
    return w;
}

wf_status wf_rmsnorm_forward(const wf_rmsnorm *what, const wf_rmsnorm_forward_args *with, const wf_exec *where)
{
    struct call             call;
    wf_rmsnorm_forward_args a;
    call_open(&call, "rmsnorm_forward", where);
    const wf_rmsnorm w = import_what(&call, what);
    call_import_args(&call, &a, sizeof a, with);

    struct layernorm_forward p = rows_forward(&w, false);
    p.x = a.x, p.gamma = a.gamma, p.y = a.y, p.rstd = a.rrms;
    ROWS_ADDITION(p.add, a);
    ROWS_QUANTIZATION(p.quantize, a);
    return rows_solve_forward(&call, &p);
}

wf_status wf_rmsnorm_backward(const wf_rmsnorm *what, const wf_rmsnorm_backward_args *with, const wf_exec *where)
{
    struct call              call;
    wf_rmsnorm_backward_args a;
    call_open(&call, "rmsnorm_backward", where);
    const wf_rmsnorm w = import_what(&call, what);
    call_import_args(&call, &a, sizeof a, with);

    struct layernorm_backward p = rows_backward(&w, false, a.y);
    p.dy = a.dy, p.x = a.y ? a.y : a.x, p.gamma = a.gamma, p.rstd = a.rrms;
    p.dx = a.dx, p.dgamma = a.dgamma;
    ROWS_GRADIENTS(p.add, a);
    return rows_solve_backward(&call, &p, a.sum);
}

size_t wf_rmsnorm_forward_workspace(const wf_rmsnorm *what, wf_backend backend)
{
    struct call call;
    call_open_query(&call, "rmsnorm_forward", backend);
    wf_rmsnorm w = import_what(&call, what);
    return rows_forward_workspace(&call, &w);
}

size_t wf_rmsnorm_backward_workspace(const wf_rmsnorm *what, wf_backend backend)
{
    struct call call;
    call_open_query(&call, "rmsnorm_backward", backend);
    wf_rmsnorm w = import_what(&call, what);
    return rows_backward_workspace(&call, &w);
}
