/* The front door of folding: the constants of a norm into the weight and bias of the layer before or behind it. */
#include <math.h>

#include "call.h"

static struct fold import_what(struct call *call, const wf_fold *what, bool of_output)
{
    wf_fold w;
    CALL_IMPORT(call, w, what);
    check_dtypes(call, w.x_dtype, w.w_dtype);
    check_flags(call, w.flags, WF_BIAS_F32, w.reserved);
    check_that(call, !(w.flags & WF_BIAS_F32 && w.x_dtype == WF_F64), "flags = 0x%x: WF_BIAS_F32 with x_dtype = f64", w.flags);
    check_matrix(call, w.rows, w.cols);
    check_stride(call, "x_stride", &w.x_stride, w.cols, w.rows, w.cols);
    check_stride(call, "y_stride", &w.y_stride, w.cols, w.rows, w.cols);
    check_eps(call, w.eps);
    check_that(call, isfinite(w.weight_offset), "weight_offset = %g, must be finite", w.weight_offset);

    const int64_t all = of_output ? w.rows : w.cols;
    if (w.channels == 0)
        w.channels = all;
    check_that(call, w.channels == all || (w.channels > 0 && all > 0 && all % w.channels == 0),
               "channels = %lld, must divide %s = %lld", (long long)w.channels, of_output ? "rows" : "cols", (long long)all);
    return (struct fold){.x_dtype = w.x_dtype,
                         .w_dtype = w.w_dtype,
                         .bias_dtype = w.flags & WF_BIAS_F32 ? WF_F32 : w.x_dtype,
                         .of_output = of_output,
                         .rows = w.rows,
                         .cols = w.cols,
                         .x_stride = w.x_stride,
                         .y_stride = w.y_stride,
                         .channels = w.channels,
                         .eps = w.eps,
                         .weight_offset = w.weight_offset};
}

static wf_status solve(const char *operation, const wf_fold *what, const wf_fold_args *with, const wf_exec *where,
                       bool of_output)
{
    struct call  call;
    wf_fold_args a;
    call_open(&call, operation, where);
    struct fold p = import_what(&call, what, of_output);
    call_import_args(&call, &a, sizeof a, with);
    p.weight = a.weight, p.bias = a.bias, p.gamma = a.gamma, p.beta = a.beta;
    p.folded_weight = a.folded_weight, p.folded_bias = a.folded_bias;

    const struct buffer_shape of_weight = {p.x_dtype, p.rows, p.cols, p.x_stride};
    const struct buffer_shape of_folded = {p.x_dtype, p.rows, p.cols, p.y_stride};
    const struct buffer_shape of_bias = vector_of(p.bias_dtype, of_output ? p.channels : p.rows);
    const struct buffer_shape of_norm = vector_of(p.w_dtype, p.channels);
    const int                 weight = check_input(&call, "weight", p.weight, of_weight, NEEDED);
    const int                 bias = check_input(&call, "bias", p.bias, of_bias, OPTIONAL);
    check_input(&call, "gamma", p.gamma, of_norm, OPTIONAL);
    check_input(&call, "beta", p.beta, of_norm, OPTIONAL);
    if (of_output) {
        const struct buffer_shape of_statistics = vector_of(wf_statistics_dtype(p.x_dtype), p.channels);
        p.mean = a.mean, p.var = a.var;
        check_input(&call, "mean", p.mean, of_statistics, NEEDED);
        check_input(&call, "var", p.var, of_statistics, NEEDED);
    }
    check_output(&call, "folded_weight", p.folded_weight, of_folded, NEEDED, weight);
    check_output(&call, "folded_bias", p.folded_bias, of_bias, of_output || p.beta ? NEEDED : OPTIONAL, bias);
    return call_close(&call, call_ready(&call) ? call.backend->fold(&p, &call) : call.status);
}

static size_t workspace(const char *operation, const wf_fold *what, wf_backend backend, bool of_output)
{
    struct call call;
    call_open_query(&call, operation, backend);
    const struct fold p = import_what(&call, what, of_output);
    return call_ready(&call) ? call.backend->fold_workspace(&p) : 0;
}

wf_status wf_fold_batchnorm(const wf_fold *what, const wf_fold_args *with, const wf_exec *where)
{
    return solve("fold_batchnorm", what, with, where, true);
}

wf_status wf_fold_layernorm(const wf_fold *what, const wf_fold_args *with, const wf_exec *where)
{
    return solve("fold_layernorm", what, with, where, false);
}

size_t wf_fold_batchnorm_workspace(const wf_fold *what, wf_backend backend)
{
    return workspace("fold_batchnorm", what, backend, true);
}

size_t wf_fold_layernorm_workspace(const wf_fold *what, wf_backend backend)
{
    return workspace("fold_layernorm", what, backend, false);
}
