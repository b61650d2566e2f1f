#include "channelnorm.h"

#include <math.h>

struct activation channelnorm_activation(struct call *call, wf_activation kind, double slope)
{
    check_activation(call, kind, slope);
    return (struct activation){.present = kind != WF_ACTIVATION_NONE, .kind = kind, .slope = slope};
}

struct modulation channelnorm_modulation(struct call *call, double scale_offset)
{
    check_that(call, isfinite(scale_offset), "scale_offset = %g, must be finite", scale_offset);
    return (struct modulation){.possible = true, .offset = scale_offset};
}

static struct buffer_shape activations(const struct channelnorm_shape *s)
{
    return vector_of(s->x_dtype, s->n * s->c * s->hw);
}

static struct buffer_shape parameters(const struct channelnorm_shape *s)
{
    return vector_of(s->w_dtype, s->c);
}

static struct buffer_shape pairs(const struct channelnorm_shape *s)
{
    return vector_of(s->w_dtype, s->n * s->c);
}

static struct buffer_shape statistics(const struct channelnorm_shape *s)
{
    return vector_of(wf_statistics_dtype(s->x_dtype), s->across_batch ? s->c : s->n * s->groups);
}

wf_status channelnorm_solve_forward(struct call *call, struct channelnorm_forward *p)
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
    check_input(call, "residual", p->act.residual, activations(s), OPTIONAL);
    check_input(call, "scale", p->mod.scale, pairs(s), OPTIONAL);
    check_input(call, "shift", p->mod.shift, pairs(s), OPTIONAL);
    p->act.present |= !!p->act.residual;
    p->mod.present = p->mod.scale || p->mod.shift;
    return call_close(call, call_ready(call) ? call->backend->channelnorm_forward(p, call) : call->status);
}

/* y has the sign of z, where the activation keeps it. What is not read need not be right. */
static void check_gradient(struct call *call, const struct channelnorm_shape *s, struct activation *act,
                           struct modulation *mod, int dy)
{
    mod->beta = mod->dscale ? act->beta : NULL;
    act->present |= !!act->dresidual;
    if (act->kind == WF_ACTIVATION_NONE || act->y)
        act->beta = act->residual = mod->shift = NULL;
    if (act->kind == WF_ACTIVATION_NONE)
        act->y = NULL;
    mod->present = mod->scale || mod->shift || mod->dscale || mod->dshift;
    check_input(call, "beta", act->beta ? act->beta : mod->beta, parameters(s), OPTIONAL);
    check_input(call, "scale", mod->scale, pairs(s), OPTIONAL);
    check_input(call, "shift", mod->shift, pairs(s), OPTIONAL);
    check_output(call, "dscale", mod->dscale, pairs(s), OPTIONAL, -1);
    check_output(call, "dshift", mod->dshift, pairs(s), OPTIONAL, -1);
    if (!act->present)
        return;
    const bool keeps_sign = act->kind == WF_RELU || (act->kind == WF_LEAKY_RELU && act->slope > 0);
    check_that(call, !act->y || keeps_sign, "y = %p, only for WF_RELU, or WF_LEAKY_RELU with slope > 0", act->y);
    check_input(call, "residual", act->residual, activations(s), OPTIONAL);
    check_input(call, "y", act->y, activations(s), OPTIONAL);
    check_output(call, "dresidual", act->dresidual, activations(s), OPTIONAL, dy);
}

wf_status channelnorm_solve_backward(struct call *call, struct channelnorm_backward *p)
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
    check_gradient(call, s, &p->act, &p->mod, dy);
    return call_close(call, call_ready(call) ? call->backend->channelnorm_backward(p, call) : call->status);
}
