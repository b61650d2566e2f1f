/* RMSNorm's front door: LayerNorm without the centering. */
#include "rows.h"

wf_status wf_rmsnorm_forward(const wf_rmsnorm *what, const wf_rmsnorm_forward_args *with, const wf_exec *where)
{
    struct call             call;
    wf_rmsnorm              w;
    wf_rmsnorm_forward_args a;
    call_open(&call, "rmsnorm_forward", where);
    rows_import(&call, &w, what, sizeof *what);
    call_import_args(&call, &a, sizeof a, with);

    struct layernorm_forward p = rows_forward(&w, false);
    p.x = a.x, p.gamma = a.gamma, p.y = a.y, p.rstd = a.rrms;
    return rows_solve_forward(&call, &p);
}

wf_status wf_rmsnorm_backward(const wf_rmsnorm *what, const wf_rmsnorm_backward_args *with, const wf_exec *where)
{
    struct call              call;
    wf_rmsnorm               w;
    wf_rmsnorm_backward_args a;
    call_open(&call, "rmsnorm_backward", where);
    rows_import(&call, &w, what, sizeof *what);
    call_import_args(&call, &a, sizeof a, with);

    struct layernorm_backward p = rows_backward(&w, false);
    p.dy = a.dy, p.x = a.x, p.gamma = a.gamma, p.rstd = a.rrms;
    p.dx = a.dx, p.dgamma = a.dgamma;
    return rows_solve_backward(&call, &p);
}

size_t wf_rmsnorm_forward_workspace(const wf_rmsnorm *what, wf_backend backend)
{
    return rows_forward_workspace("rmsnorm_forward", what, sizeof *what, backend);
}

size_t wf_rmsnorm_backward_workspace(const wf_rmsnorm *what, wf_backend backend)
{
    return rows_backward_workspace("rmsnorm_backward", what, sizeof *what, backend);
}
