/* Every norm and dropout of the demo, through the library's public calls. This is the file to read for how they are
 * used: fill `what` and `with`, ask for workspace, call. */
#include "layers.h"
#include "ui.h"

#include <welford.h>

static wf_backend backend(const scratch *s)
{
    return s->gpu ? WF_CUDA : WF_CPU;
}

/* Where a call runs. One thread per call on the CPU: the demo trains several networks at once instead. */
static wf_exec where(scratch *s, size_t workspace_size)
{
    if (workspace_size > s->size) {
        const layers *owner = s->gpu ? &layers_welford_gpu : &layers_welford;
        tensor_free(owner, s->memory);
        s->memory = tensor_new(owner, workspace_size);
        s->size = workspace_size;
    }
    return (wf_exec){.size = sizeof(wf_exec), .backend = backend(s), .stream = s->gpu ? gpu_stream(s->gpu) : NULL,
                     .workspace = s->memory, .workspace_size = s->size, .threads = s->gpu ? 0 : 1};
}

/* The loops of the demo come next, so the GPU is waited for. */
static void finish(scratch *s, wf_status status)
{
    if (status != WF_OK)
        die("welford: %s: %s", wf_status_string(status), wf_error_detail());
    if (s->gpu)
        gpu_wait(s->gpu);
}

static wf_layernorm as_layernorm(const norm *l)
{
    return (wf_layernorm){.size = sizeof(wf_layernorm), .rows = l->n * l->hw, .cols = l->c, .eps = l->eps};
}

static wf_rmsnorm as_rmsnorm(const norm *l)
{
    return (wf_rmsnorm){.size = sizeof(wf_rmsnorm), .rows = l->n * l->hw, .cols = l->c, .eps = l->eps};
}

static wf_layout layout(bool channels_last)
{
    return channels_last ? WF_NHWC : WF_NCHW;
}

static wf_groupnorm as_groupnorm(const norm *l)
{
    return (wf_groupnorm){.size = sizeof(wf_groupnorm), .layout = layout(l->channels_last), .n = l->n, .c = l->c,
                          .hw = l->hw, .groups = l->groups, .eps = l->eps};
}

static wf_batchnorm as_batchnorm(const norm *l)
{
    return (wf_batchnorm){.size = sizeof(wf_batchnorm), .layout = layout(l->channels_last), .n = l->n, .c = l->c,
                          .hw = l->hw, .eps = l->eps, .momentum = l->momentum};
}

static wf_instancenorm as_instancenorm(const norm *l)
{
    return (wf_instancenorm){.size = sizeof(wf_instancenorm), .layout = layout(l->channels_last), .n = l->n, .c = l->c,
                             .hw = l->hw, .eps = l->eps, .momentum = l->momentum};
}

static void layernorm_forward(const norm *l, pass mode, const float *x, float *y, scratch *s)
{
    (void)mode;
    wf_layernorm what = as_layernorm(l);
    wf_layernorm_forward_args with = {.size = sizeof with, .x = x, .gamma = l->gamma, .beta = l->beta, .y = y,
                                      .mean = l->mean, .rstd = l->rstd, .mean_lo = l->mean_lo};
    wf_exec exec = where(s, wf_layernorm_forward_workspace(&what, backend(s)));
    finish(s, wf_layernorm_forward(&what, &with, &exec));
}

static void layernorm_backward(const norm *l, pass mode, const float *x, float *dy_dx, scratch *s)
{
    (void)mode;
    wf_layernorm what = as_layernorm(l);
    wf_layernorm_backward_args with = {.size = sizeof with, .dy = dy_dx, .x = x, .gamma = l->gamma, .mean = l->mean,
                                       .rstd = l->rstd, .mean_lo = l->mean_lo, .dx = dy_dx, .dgamma = l->dgamma,
                                       .dbeta = l->dbeta};
    wf_exec exec = where(s, wf_layernorm_backward_workspace(&what, backend(s)));
    finish(s, wf_layernorm_backward(&what, &with, &exec));
}

static void rmsnorm_forward(const norm *l, pass mode, const float *x, float *y, scratch *s)
{
    (void)mode;
    wf_rmsnorm what = as_rmsnorm(l);
    wf_rmsnorm_forward_args with = {.size = sizeof with, .x = x, .gamma = l->gamma, .y = y, .rrms = l->rstd};
    wf_exec exec = where(s, wf_rmsnorm_forward_workspace(&what, backend(s)));
    finish(s, wf_rmsnorm_forward(&what, &with, &exec));
}

static void rmsnorm_backward(const norm *l, pass mode, const float *x, float *dy_dx, scratch *s)
{
    (void)mode;
    wf_rmsnorm what = as_rmsnorm(l);
    wf_rmsnorm_backward_args with = {.size = sizeof with, .dy = dy_dx, .x = x, .gamma = l->gamma, .rrms = l->rstd,
                                     .dx = dy_dx, .dgamma = l->dgamma};
    wf_exec exec = where(s, wf_rmsnorm_backward_workspace(&what, backend(s)));
    finish(s, wf_rmsnorm_backward(&what, &with, &exec));
}

static void groupnorm_forward(const norm *l, pass mode, const float *x, float *y, scratch *s)
{
    (void)mode;
    wf_groupnorm what = as_groupnorm(l);
    wf_groupnorm_forward_args with = {.size = sizeof with, .x = x, .gamma = l->gamma, .beta = l->beta, .y = y,
                                      .mean = l->mean, .rstd = l->rstd, .mean_lo = l->mean_lo};
    wf_exec exec = where(s, wf_groupnorm_forward_workspace(&what, backend(s)));
    finish(s, wf_groupnorm_forward(&what, &with, &exec));
}

static void groupnorm_backward(const norm *l, pass mode, const float *x, float *dy_dx, scratch *s)
{
    (void)mode;
    wf_groupnorm what = as_groupnorm(l);
    wf_groupnorm_backward_args with = {.size = sizeof with, .dy = dy_dx, .x = x, .gamma = l->gamma, .mean = l->mean,
                                       .rstd = l->rstd, .mean_lo = l->mean_lo, .dx = dy_dx, .dgamma = l->dgamma,
                                       .dbeta = l->dbeta};
    wf_exec exec = where(s, wf_groupnorm_backward_workspace(&what, backend(s)));
    finish(s, wf_groupnorm_backward(&what, &with, &exec));
}

/* Running statistics are used where there are some and the pass asks for them. */
static bool uses_running(const norm *l, pass mode)
{
    return l->running_mean && (mode == PASS_INFER || mode == PASS_FROZEN);
}

static void batchnorm_forward(const norm *l, pass mode, const float *x, float *y, scratch *s)
{
    wf_batchnorm what = as_batchnorm(l);
    if (uses_running(l, mode)) {
        wf_batchnorm_infer_args with = {.size = sizeof with, .x = x, .gamma = l->gamma, .beta = l->beta,
                                        .running_mean = l->running_mean, .running_var = l->running_var, .y = y,
                                        .rstd = l->rstd};
        wf_exec exec = where(s, wf_batchnorm_infer_workspace(&what, backend(s)));
        finish(s, wf_batchnorm_infer(&what, &with, &exec));
        return;
    }
    bool moves = l->running_mean && mode == PASS_TRAIN;
    float *running_mean = moves ? l->running_mean : NULL, *running_var = moves ? l->running_var : NULL;
    wf_batchnorm_train_args with = {.size = sizeof with, .x = x, .gamma = l->gamma, .beta = l->beta,
                                    .running_mean_in = running_mean, .running_var_in = running_var,
                                    .running_mean_out = running_mean, .running_var_out = running_var, .y = y,
                                    .mean = l->mean, .rstd = l->rstd, .mean_lo = l->mean_lo};
    wf_exec exec = where(s, wf_batchnorm_train_workspace(&what, backend(s)));
    finish(s, wf_batchnorm_train(&what, &with, &exec));
}

static void batchnorm_backward(const norm *l, pass mode, const float *x, float *dy_dx, scratch *s)
{
    bool frozen = uses_running(l, mode);
    wf_batchnorm what = as_batchnorm(l);
    what.flags = frozen ? WF_FROZEN : 0;
    wf_batchnorm_backward_args with = {.size = sizeof with, .dy = dy_dx, .x = x, .gamma = l->gamma,
                                       .mean = frozen ? l->running_mean : l->mean, .rstd = l->rstd,
                                       .mean_lo = frozen ? NULL : l->mean_lo, .dx = dy_dx, .dgamma = l->dgamma,
                                       .dbeta = l->dbeta};
    wf_exec exec = where(s, wf_batchnorm_backward_workspace(&what, backend(s)));
    finish(s, wf_batchnorm_backward(&what, &with, &exec));
}

static void instancenorm_forward(const norm *l, pass mode, const float *x, float *y, scratch *s)
{
    wf_instancenorm what = as_instancenorm(l);
    if (uses_running(l, mode)) {
        wf_instancenorm_infer_args with = {.size = sizeof with, .x = x, .gamma = l->gamma, .beta = l->beta,
                                           .running_mean = l->running_mean, .running_var = l->running_var, .y = y,
                                           .rstd = l->rstd};
        wf_exec exec = where(s, wf_instancenorm_infer_workspace(&what, backend(s)));
        finish(s, wf_instancenorm_infer(&what, &with, &exec));
        return;
    }
    bool moves = l->running_mean && mode == PASS_TRAIN;
    float *running_mean = moves ? l->running_mean : NULL, *running_var = moves ? l->running_var : NULL;
    wf_instancenorm_train_args with = {.size = sizeof with, .x = x, .gamma = l->gamma, .beta = l->beta,
                                       .running_mean_in = running_mean, .running_var_in = running_var,
                                       .running_mean_out = running_mean, .running_var_out = running_var, .y = y,
                                       .mean = l->mean, .rstd = l->rstd, .mean_lo = l->mean_lo};
    wf_exec exec = where(s, wf_instancenorm_train_workspace(&what, backend(s)));
    finish(s, wf_instancenorm_train(&what, &with, &exec));
}

static void instancenorm_backward(const norm *l, pass mode, const float *x, float *dy_dx, scratch *s)
{
    bool frozen = uses_running(l, mode);
    wf_instancenorm what = as_instancenorm(l);
    what.flags = frozen ? WF_FROZEN : 0;
    wf_instancenorm_backward_args with = {.size = sizeof with, .dy = dy_dx, .x = x, .gamma = l->gamma,
                                          .mean = frozen ? l->running_mean : l->mean, .rstd = l->rstd,
                                          .mean_lo = frozen ? NULL : l->mean_lo, .dx = dy_dx, .dgamma = l->dgamma,
                                          .dbeta = l->dbeta};
    wf_exec exec = where(s, wf_instancenorm_backward_workspace(&what, backend(s)));
    finish(s, wf_instancenorm_backward(&what, &with, &exec));
}

static wf_dropout as_dropout(const dropout *d)
{
    return (wf_dropout){.size = sizeof(wf_dropout), .kind = d->kind == DROPOUT_ALPHA ? WF_ALPHA_DROPOUT : WF_DROPOUT,
                        .layout = layout(d->channels_last), .flags = d->kind == DROPOUT_FEATURES ? WF_FEATURES : 0,
                        .n = d->n, .c = d->c, .hw = d->hw, .p = d->p};
}

/* No mask is kept: the backward pass draws the same one again from (seed, offset). */
static void dropout_forward(const dropout *d, const float *x, float *y, scratch *s)
{
    wf_dropout what = as_dropout(d);
    wf_dropout_args with = {.size = sizeof with, .x = x, .y = y, .seed = d->seed, .offset = d->offset};
    wf_exec exec = where(s, wf_dropout_forward_workspace(&what, backend(s)));
    finish(s, wf_dropout_forward(&what, &with, &exec));
}

static void dropout_backward(const dropout *d, float *dy_dx, scratch *s)
{
    wf_dropout what = as_dropout(d);
    wf_dropout_args with = {.size = sizeof with, .x = dy_dx, .y = dy_dx, .seed = d->seed, .offset = d->offset};
    wf_exec exec = where(s, wf_dropout_backward_workspace(&what, backend(s)));
    finish(s, wf_dropout_backward(&what, &with, &exec));
}

static const struct {
    void (*forward)(const norm *, pass, const float *, float *, scratch *);
    void (*backward)(const norm *, pass, const float *, float *, scratch *);
} norm_calls[NORM_KINDS] = {
    [NORM_BATCH] = {batchnorm_forward, batchnorm_backward},
    [NORM_LAYER] = {layernorm_forward, layernorm_backward},
    [NORM_GROUP] = {groupnorm_forward, groupnorm_backward},
    [NORM_RMS] = {rmsnorm_forward, rmsnorm_backward},
    [NORM_INSTANCE] = {instancenorm_forward, instancenorm_backward},
};

static void norm_forward(const norm *l, pass mode, const float *x, float *y, scratch *s)
{
    norm_calls[l->kind].forward(l, mode, x, y, s);
}

static void norm_backward(const norm *l, pass mode, const float *x, float *dy_dx, scratch *s)
{
    norm_calls[l->kind].backward(l, mode, x, dy_dx, s);
}

const layers layers_welford = {"welford", false, norm_forward, norm_backward, dropout_forward, dropout_backward};
const layers layers_welford_gpu = {"welford", true, norm_forward, norm_backward, dropout_forward, dropout_backward};
