#include "channelnorm.h"

static struct buffer_shape activations(const struct channelnorm_shape *s)
{
    return vector_of(s->x_dtype, s->n * s->c * s->hw);
}

static struct buffer_shape parameters(const struct channelnorm_shape *s)
{
    return vector_of(s->w_dtype, s->c);
}

static struct buffer_shape statistics(const struct channelnorm_shape *s)
{
    return vector_of(wf_statistics_dtype(s->x_dtype), s->across_batch ? s->c : s->n * s->groups);
}

wf_status channelnorm_solve_forward(struct call *call, const struct channelnorm_forward *p)
{
    const struct channelnorm_shape *s = &p->shape;
    const struct buffer_shape       running = vector_of(wf_statistics_dtype(s->x_dtype), s->c);
    const int given = !!p->running_mean_in + !!p->running_var_in + !!p->running_mean_out + !!p->running_var_out;
    check_that(call, p->known || given == 0 || given == 4,
               "running_mean_in = %p, running_var_in = %p, running_mean_out = %p, running_var_out = %p: all or none",
               p->running_mean_in, p->running_var_in, p->running_mean_out, p->running_var_out);

    const enum need need = p->known ? NEEDED : OPTIONAL;
    const int       x = check_input(call, "x", p->x, activations(s), NEEDED);
    check_input(call, "gamma", p->gamma, parameters(s), OPTIONAL);
    check_input(call, "beta", p->beta, parameters(s), OPTIONAL);
    const int mean_in = check_input(call, p->known ? "running_mean" : "running_mean_in", p->running_mean_in, running, need);
    const int var_in = check_input(call, p->known ? "running_var" : "running_var_in", p->running_var_in, running, need);
    check_output(call, "running_mean_out", p->running_mean_out, running, OPTIONAL, mean_in);
    check_output(call, "running_var_out", p->running_var_out, running, OPTIONAL, var_in);
    check_output(call, "y", p->y, activations(s), NEEDED, x);
    check_output(call, "mean", p->mean, statistics(s), OPTIONAL, -1);
    check_output(call, "rstd", p->rstd, statistics(s), OPTIONAL, -1);
    check_output(call, "mean_lo", p->mean_lo, statistics(s), OPTIONAL, -1);
    return call_close(call, call_ready(call) ? call->backend->channelnorm_forward(p, call) : call->status);
}

wf_status channelnorm_solve_backward(struct call *call, const struct channelnorm_backward *p)
{
    const struct channelnorm_shape *s = &p->shape;
    const int                       dy = check_input(call, "dy", p->dy, activations(s), NEEDED);
    check_input(call, "x", p->x, activations(s), NEEDED);
    check_input(call, "gamma", p->gamma, parameters(s), OPTIONAL);
    check_input(call, "mean", p->mean, statistics(s), NEEDED);
    check_input(call, "rstd", p->rstd, statistics(s), NEEDED);
    check_input(call, "mean_lo", p->mean_lo, statistics(s), OPTIONAL);
    check_output(call, "dx", p->dx, activations(s), OPTIONAL, dy);
    check_output(call, "dgamma", p->dgamma, parameters(s), OPTIONAL, -1);
    check_output(call, "dbeta", p->dbeta, parameters(s), OPTIONAL, -1);
    return call_close(call, call_ready(call) ? call->backend->channelnorm_backward(p, call) : call->status);
}
