/* LayerNorm's front door. */
#include "rows.h"

wf_status wf_layernorm_forward(const wf_layernorm *what, const wf_layernorm_forward_args *with, const wf_exec *where)
{
    struct call               call;
    wf_rmsnorm                w;
    wf_layernorm_forward_args a;
    call_open(&call, "layernorm_forward", where);
    rows_import(&call, &w, what, sizeof *what);
    call_import_args(&call, &a, sizeof a, with);

    struct layernorm_forward p = rows_forward(&w, true);
    p.x = a.x, p.gamma = a.gamma, p.beta = a.beta;
    p.y = a.y, p.mean = a.mean, p.rstd = a.rstd, p.mean_lo = a.mean_lo;
    return rows_solve_forward(&call, &p);
}

wf_status wf_layernorm_backward(const wf_layernorm *what, const wf_layernorm_backward_args *with, const wf_exec *where)
{
    struct call                call;
    wf_rmsnorm                 w;
    wf_layernorm_backward_args a;
    call_open(&call, "layernorm_backward", where);
    rows_import(&call, &w, what, sizeof *what);
    call_import_args(&call, &a, sizeof a, with);

    struct layernorm_backward p = rows_backward(&w, true);
    p.dy = a.dy, p.x = a.x, p.gamma = a.gamma;
    p.mean = a.mean, p.rstd = a.rstd, p.mean_lo = a.mean_lo;
    p.dx = a.dx, p.dgamma = a.dgamma, p.dbeta = a.dbeta;
    return rows_solve_backward(&call, &p);
}

size_t wf_layernorm_forward_workspace(const wf_layernorm *what, wf_backend backend)
{
    return rows_forward_workspace("layernorm_forward", what, sizeof *what, backend);
}

size_t wf_layernorm_backward_workspace(const wf_layernorm *what, wf_backend backend)
{
    return rows_backward_workspace("layernorm_backward", what, sizeof *what, backend);
}
