#include "rows.h"

#include <math.h>
#include <string.h>

void rows_import(struct call *call, wf_rmsnorm *w, const void *what, size_t known_size)
{
    memset(w, 0, sizeof *w);
    call_import(call, "what", w, known_size, what);
    check_dtypes(call, w->x_dtype, w->w_dtype);
    check_flags(call, w->flags, WF_ACCUMULATE, w->reserved);
    check_rows(call, w->rows, w->cols, &w->x_stride, &w->y_stride, &w->dx_stride, &w->dy_stride);
    check_eps(call, w->eps);
    check_that(call, isfinite(w->weight_offset), "weight_offset = %g, must be finite", w->weight_offset);
}

struct layernorm_forward rows_forward(const wf_rmsnorm *w, bool centered)
{
    return (struct layernorm_forward){.x_dtype = w->x_dtype,
                                      .w_dtype = w->w_dtype,
                                      .centered = centered,
                                      .rows = w->rows,
                                      .cols = w->cols,
                                      .x_stride = w->x_stride,
                                      .y_stride = w->y_stride,
                                      .eps = w->eps,
                                      .weight_offset = w->weight_offset};
}

struct layernorm_backward rows_backward(const wf_rmsnorm *w, bool centered)
{
    return (struct layernorm_backward){.x_dtype = w->x_dtype,
                                       .w_dtype = w->w_dtype,
                                       .centered = centered,
                                       .accumulate = w->flags & WF_ACCUMULATE,
                                       .rows = w->rows,
                                       .cols = w->cols,
                                       .x_stride = w->x_stride,
                                       .dy_stride = w->dy_stride,
                                       .dx_stride = w->dx_stride,
                                       .weight_offset = w->weight_offset};
}

wf_status rows_solve_forward(struct call *call, const struct layernorm_forward *p)
{
    struct buffer_shape of_x = {p->x_dtype, p->rows, p->cols, p->x_stride};
    struct buffer_shape of_y = {p->x_dtype, p->rows, p->cols, p->y_stride};
    struct buffer_shape of_rows = vector_of(wf_statistics_dtype(p->x_dtype), p->rows);
    struct buffer_shape of_cols = vector_of(p->w_dtype, p->cols);

    int x = check_input(call, "x", p->x, of_x, NEEDED);
    check_input(call, "gamma", p->gamma, of_cols, OPTIONAL);
    check_input(call, "beta", p->beta, of_cols, OPTIONAL);
    check_output(call, "y", p->y, of_y, NEEDED, x);
    check_output(call, "mean", p->mean, of_rows, OPTIONAL, -1);
    check_output(call, p->centered ? "rstd" : "rrms", p->rstd, of_rows, OPTIONAL, -1);
    check_output(call, "mean_lo", p->mean_lo, of_rows, OPTIONAL, -1);
    return call_close(call, call_ready(call) ? call->backend->layernorm_forward(p, call) : call->status);
}

wf_status rows_solve_backward(struct call *call, const struct layernorm_backward *p)
{
    struct buffer_shape of_x = {p->x_dtype, p->rows, p->cols, p->x_stride};
    struct buffer_shape of_dy = {p->x_dtype, p->rows, p->cols, p->dy_stride};
    struct buffer_shape of_dx = {p->x_dtype, p->rows, p->cols, p->dx_stride};
    struct buffer_shape of_rows = vector_of(wf_statistics_dtype(p->x_dtype), p->rows);
    struct buffer_shape of_cols = vector_of(p->w_dtype, p->cols);

    int dy = check_input(call, "dy", p->dy, of_dy, NEEDED);
    check_input(call, "x", p->x, of_x, NEEDED);
    check_input(call, "gamma", p->gamma, of_cols, OPTIONAL);
    check_input(call, "mean", p->mean, of_rows, p->centered ? NEEDED : OPTIONAL);
    check_input(call, p->centered ? "rstd" : "rrms", p->rstd, of_rows, NEEDED);
    check_input(call, "mean_lo", p->mean_lo, of_rows, OPTIONAL);
    check_output(call, "dx", p->dx, of_dx, OPTIONAL, dy);
    check_output(call, "dgamma", p->dgamma, of_cols, OPTIONAL, -1);
    check_output(call, "dbeta", p->dbeta, of_cols, OPTIONAL, -1);
    return call_close(call, call_ready(call) ? call->backend->layernorm_backward(p, call) : call->status);
}

size_t rows_forward_workspace(const char *operation, const void *what, size_t known_size, wf_backend backend)
{
    struct call call;
    wf_rmsnorm  w;
    call_open_query(&call, operation, backend);
    rows_import(&call, &w, what, known_size);
    struct layernorm_forward p = rows_forward(&w, true);
    return call_ready(&call) ? call.backend->layernorm_forward_workspace(&p) : 0;
}

size_t rows_backward_workspace(const char *operation, const void *what, size_t known_size, wf_backend backend)
{
    struct call call;
    wf_rmsnorm  w;
    call_open_query(&call, operation, backend);
    rows_import(&call, &w, what, known_size);
    struct layernorm_backward p = rows_backward(&w, true);
    return call_ready(&call) ? call.backend->layernorm_backward_workspace(&p) : 0;
}
