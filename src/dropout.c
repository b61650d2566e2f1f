/* Dropout's front door: the two kinds and the two directions are constants of one problem, with or without what is around it. */
#include <math.h>

#include "call.h"
#include "common/philox.h"

struct constants {
    const wf_dropout *w;
    bool              forward;
    struct dropout   *p;
};

/* They are part of the contract: the same bits in any rounding mode of the caller, so this runs in ours. */
static void compute_constants(void *arg)
{
    const struct constants *k = arg;
    const double            drop = k->w->p;
    struct dropout         *p = k->p;
    p->threshold = wf_keep_threshold(drop);
    if (k->w->kind == WF_DROPOUT) {
        p->scale = drop < 1 ? 1 / (1 - drop) : 0;
    } else if (drop < 1) {
        const double alpha = 1.7580993408473766; /* SELU's scale * alpha: what a unit saturates at, negated */
        const double a = 1 / sqrt((alpha * alpha * drop + 1) * (1 - drop)), b = a * alpha * drop;
        p->scale = a;
        p->shifted = k->forward;
        p->shift = b;
        p->dropped = k->forward ? b - a * alpha : 0;
    }
}

static struct dropout import_what(struct call *call, const wf_dropout *what, bool forward)
{
    wf_dropout w;
    CALL_IMPORT(call, w, what);
    check_dtypes(call, w.x_dtype, w.w_dtype);
    check_that(call, w.kind == WF_DROPOUT || w.kind == WF_ALPHA_DROPOUT, "kind = %d", (int)w.kind);
    check_flags(call, w.flags, WF_FEATURES | WF_GIVEN_MASK, 0);
    check_channels(call, w.layout, w.n, w.c, w.hw);
    check_fraction(call, "p", w.p);
    check_activation(call, w.activation, w.slope);
    if (call->status)
        return (struct dropout){0}; /* sizes whose products overflow go no further */

    struct dropout p = {.x_dtype = w.x_dtype,
                        .layout = w.layout,
                        .features = w.flags & WF_FEATURES,
                        .given = !forward && w.flags & WF_GIVEN_MASK,
                        .n = w.n,
                        .c = w.c,
                        .hw = w.hw,
                        .backward = !forward,
                        .w_dtype = w.w_dtype,
                        .activation = w.activation,
                        .slope = w.slope};
    in_our_fpmode(compute_constants, &(struct constants){&w, forward, &p});
    return p;
}

/* Returns the index of the buffer that is as x. */
static int check_around(struct call *call, const struct dropout *p, struct buffer_shape elements)
{
    check_input(call, "bias", p->bias, vector_of(p->w_dtype, p->c), OPTIONAL);
    return p->backward ? check_input(call, "x_in", p->x_in, elements, NEEDED)
                       : check_input(call, "residual", p->residual, elements, OPTIONAL);
}

static wf_status solve(const char *operation, const wf_dropout *what, const wf_dropout_args *with, const wf_exec *where,
                       bool forward)
{
    struct call     call;
    wf_dropout_args a;
    call_open(&call, operation, where);
    struct dropout p = import_what(&call, what, forward);
    call_import_args(&call, &a, sizeof a, with);
    p.x = a.x, p.y = a.y, p.mask = forward || p.given ? a.mask : NULL;
    if (!p.given)
        p.seed = a.seed, p.offset = a.offset, p.seed_ptr = a.seed_ptr, p.offset_ptr = a.offset_ptr;

    p.bias = forward || p.activation ? a.bias : NULL;
    p.residual = forward ? a.residual : NULL;
    p.x_in = !forward && p.activation ? a.x_in : NULL;
    p.fused = p.bias || p.residual || p.activation;
    if (!p.bias)
        call.w_dtype = p.x_dtype; /* nothing has the other */

    const struct buffer_shape elements = vector_of(p.x_dtype, p.n * p.c * p.hw), word = vector_of(WF_F64, 1);
    const int64_t             units = p.features ? p.n * p.c : p.n * p.c * p.hw;
    const int                 x = check_input(&call, "x", p.x, elements, NEEDED);
    check_input(&call, "seed_ptr", p.seed_ptr, word, OPTIONAL);
    check_input(&call, "offset_ptr", p.offset_ptr, word, OPTIONAL);
    const int around = p.fused ? check_around(&call, &p, elements) : -1;
    const int y = check_output(&call, "y", p.y, elements, NEEDED, x);
    check_may_be(&call, y, around);
    check_bytes(&call, "mask", p.mask, (units + 7) / 8, p.given ? NEEDED : OPTIONAL, !p.given);
    if (p.given && p.scale == 0) /* p = 1: nothing is kept, whatever the mask says */
        p.given = false, p.mask = NULL;
    return call_close(&call, call_ready(&call) ? call.backend->dropout(&p, &call) : call.status);
}

static size_t workspace(const char *operation, const wf_dropout *what, wf_backend backend, bool forward)
{
    struct call call;
    call_open_query(&call, operation, backend);
    const struct dropout p = import_what(&call, what, forward);
    call.w_dtype = p.x_dtype;
    return call_ready(&call) ? call.backend->dropout_workspace(&p) : 0;
}

wf_status wf_dropout_forward(const wf_dropout *what, const wf_dropout_args *with, const wf_exec *where)
{
    return solve("dropout_forward", what, with, where, true);
}

wf_status wf_dropout_backward(const wf_dropout *what, const wf_dropout_args *with, const wf_exec *where)
{
    return solve("dropout_backward", what, with, where, false);
}

size_t wf_dropout_forward_workspace(const wf_dropout *what, wf_backend backend)
{
    return workspace("dropout_forward", what, backend, true);
}

size_t wf_dropout_backward_workspace(const wf_dropout *what, wf_backend backend)
{
    return workspace("dropout_backward", what, backend, false);
}
