/* The seam between the front doors and the back-ends: one struct per problem, and the table of functions that a
 * back-end is. A front door has checked everything before a back-end sees it; back-ends only assert.
 *
 * Statistics (mean, mean_lo, rstd, running) are float, or double where x_dtype is WF_F64. NULL buffers are absent.
 * Every problem begins with its x_dtype. */
#ifndef WELFORD_BACKEND_H
#define WELFORD_BACKEND_H

#include <stdbool.h>

#include "welford.h"

struct call; /* call.h: who calls, where to run, and what to report */

/* What the norm of a row is taken of, where that is not x itself: sum = residual + kept(x) * row_scale * col_scale, of
 * dtype, and kept(x) = keep(row * cols + col) ? x * scale : 0. Backward: dresidual = gradient of the norm + dsum, and dx
 * from dresidual as stored. sum NULL (forward): dtype is x's. */
struct addition {
    bool     present; /* else only dtype counts, for the workspace */
    wf_dtype dtype;
    int64_t  residual_stride, sum_stride; /* also of dresidual; of dsum */
    uint64_t threshold;                   /* keep where the random word is less; 2^32: all */
    double   scale;                       /* to be rounded to the arithmetic type */
    uint64_t seed, offset;
    const uint64_t *seed_ptr, *offset_ptr; /* read when the kernel runs; NULL = absent */
    const void     *residual, *dsum, *row_scale, *col_scale;
    void           *sum, *dresidual;
};

/* What y is rounded to, if not to x's dtype: see wf_quantization in welford.h. */
struct quantization {
    wf_quantization kind;
    const float    *scale; /* NULL: 1 */
    float          *amax, *row_scale;
};

/* Each row of cols elements has its own statistics; gamma and beta are [cols]. */
struct layernorm_forward {
    wf_dtype x_dtype, w_dtype;
    bool     centered; /* false: RMSNorm; the mean is taken as 0 and mean, mean_lo are NULL */
    int64_t  rows, cols, x_stride, y_stride;
    double   eps, weight_offset; /* the factor is weight_offset + gamma; 1 where gamma is NULL */
    const void *x, *gamma, *beta;
    void       *y, *mean, *mean_lo, *rstd;
    struct addition     add;
    struct quantization quantize; /* y is bytes, y_stride of them, and no place for a sum */
};
struct layernorm_backward { /* with an addition x is the sum, of its dtype and stride */
    wf_dtype x_dtype, w_dtype;
    bool     centered, accumulate;
    bool     from_output; /* x is y, of x_dtype, and xhat = (y - beta) / factor; implies an addition, if of nothing */
    int64_t  rows, cols, x_stride, dy_stride, dx_stride;
    double   weight_offset;
    const void *dy, *x, *gamma, *beta, *mean, *mean_lo, *rstd; /* beta: from_output only */
    void       *dx, *dgamma, *dbeta;
    struct addition add;
};

/* x is [n, c, hw] or [n, hw, c]; gamma and beta are [c]. Which elements share a statistic:
 *   across_batch: those of a channel, over n and hw (BatchNorm); statistics are [c] and groups = c;
 *   else:         those of c / groups channels of a sample (GroupNorm, InstanceNorm); statistics are [n, groups]. */
struct channelnorm_shape {
    wf_dtype  x_dtype, w_dtype;
    wf_layout layout;
    bool      across_batch;
    int64_t   n, c, hw, groups;
};

/* y = activation(z), z = norm + residual. Backward: z again, from x, beta and residual, or y, whose sign it has; and
 * dresidual = dy * activation'(z), which is for the norm what dy is without. */
struct activation {
    bool          present; /* else nothing below counts */
    wf_activation kind;
    double        slope; /* to be rounded to the arithmetic type */
    const void   *residual;
    const void   *beta, *y; /* backward; with y neither beta nor residual */
    void         *dresidual;
};
/* y's z = norm * f + shift, f = offset + scale, of each sample and channel. */
struct modulation {
    bool        possible;       /* of this operation: its workspace is enough for it too */
    bool        present;        /* else nothing below counts */
    double      offset;         /* to be rounded to the arithmetic type */
    const void *scale, *shift;  /* [n, c], of w_dtype; NULL: f = 1; 0 */
    const void *beta;           /* backward, for dscale */
    void       *dscale, *dshift; /* likewise [n, c]; NULL = not wanted */
};
struct channelnorm_forward {
    struct channelnorm_shape shape;
    bool                     known;    /* statistics are not taken from x but from running_*_in, [c]; implies across_batch */
    bool                     unbiased; /* the running variance is */
    double                   eps, momentum;
    const void              *x, *gamma, *beta;
    const void              *running_mean_in, *running_var_in;
    void                    *running_mean_out, *running_var_out; /* moved by the average over samples of their statistics */
    void                    *y, *mean, *mean_lo, *rstd;
    struct activation        act;
    struct modulation        mod;
};
struct channelnorm_backward {
    struct channelnorm_shape shape;
    bool                     frozen; /* the statistics are constants; implies across_batch */
    bool                     accumulate;
    const void              *dy, *x, *gamma, *mean, *mean_lo, *rstd;
    void                    *dx, *dgamma, *dbeta;
    struct activation        act;
    struct modulation        mod;
};

/* y = keep(u) ? x * scale [+ shift] : dropped. Fused: y = residual + that of act(x + bias); backward, x being dy, y is that
 * times act'(x_in + bias). */
struct dropout {
    wf_dtype  x_dtype;
    wf_layout layout;
    bool      features; /* u counts (n, c) pairs, not elements */
    bool      shifted;  /* alpha dropout's forward pass: add shift, a rounding of its own */
    bool      given;    /* keep(u) is read from mask, not drawn; else mask is written, or NULL */
    int64_t   n, c, hw;
    uint64_t  threshold;              /* keep where the random word is less; 0 to 2^32 */
    double    scale, shift, dropped;  /* to be rounded once to the arithmetic type */
    uint64_t  seed, offset;
    const uint64_t *seed_ptr, *offset_ptr; /* read when the kernel runs; NULL = absent */
    const void *x;
    void       *y;
    uint8_t    *mask;
    bool          fused, backward;
    wf_dtype      w_dtype;
    wf_activation activation;
    double        slope;
    const void   *bias, *residual, *x_in; /* [c], of w_dtype; as x; NULL = absent */
};

/* The constants of a norm, folded into weight [rows, cols] and bias of a layer:
 *   of_output: the layer's output is normalized. Rows belong to channels, r to r % channels;
 *   else:      its input is. Columns belong to channels, j to j / (cols / channels). */
struct fold {
    wf_dtype x_dtype, w_dtype, bias_dtype;
    bool     of_output;
    int64_t  rows, cols, x_stride, y_stride, channels;
    double   eps, weight_offset; /* of_output: no weight_offset; else no eps, mean, var */
    const void *weight, *bias, *gamma, *beta, *mean, *var;
    void       *folded_weight, *folded_bias;
};

/* problem(p, call): picks a variant (UNSUPPORTED), asks for its workspace (call_workspace), stops there if
 * call->dry_run, then runs or enqueues. problem_workspace(p) looks at the shape only. */
struct backend {
#define PROBLEM(problem)                                                                                               \
    wf_status (*problem)(const struct problem *p, struct call *call);                                                  \
    size_t (*problem##_workspace)(const struct problem *p);                                                            \
    const char *(*problem##_variant)(int i);
#include "ops.def"
    bool (*usable)(void); /* a call could succeed on this machine */
};
extern const struct backend wf_cpu_backend, wf_cuda_backend;

#endif
