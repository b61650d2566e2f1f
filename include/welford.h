/* welford.h - normalization and dropout kernels: one C API over a CPU and a CUDA back-end.
 *
 * Every operation is one stateless call of the same form:  wf_<op>_<direction>(&what, &with, &where)
 *
 *   what   shape, dtypes, constants. Holds no pointers and no padding: build it once, copy it, hash it, and use the
 *          same one for forward and backward.
 *   with   your buffers. The library never keeps them. NULL means absent.
 *   where  back-end, stream, threads, scratch memory.
 *
 * The library itself never allocates (the OpenMP runtime may, and the loader for a thread's error text), never waits for
 * the device and never prints, unless WELFORD_VERBOSE=1 was set at the first call: then each call writes one line to
 * stderr. A call may be captured in a CUDA graph. Any number of threads may call at once; libgomp does not survive a
 * fork, so do not call in a child forked after the parent called without parallel_for.
 *
 * The same call gives the same bits, run after run, for any number of threads, alignment, stride, in place or not, and
 * on the CPU on every processor, in any rounding or flush-to-zero mode of the caller; a row or sample has the same bits
 * alone and in a batch. The payload of a NaN is excepted.
 *
 * WF_INVALID, WF_UNSUPPORTED, WF_WORKSPACE (found in this order): nothing was enqueued or written. WF_DEVICE: the call
 * may have been enqueued in part; outputs and workspace are undefined, everything else is untouched. */
#ifndef WELFORD_H
#define WELFORD_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define WF_API __attribute__((visibility("default")))
#else
#define WF_API
#endif

#define WF_VERSION 0x000100u /* 0.1.0: major << 16 | minor << 8 | patch, of this header */

struct CUstream_st; /* cudaStream_t points to this: no CUDA header needed here */

typedef enum wf_status {
    WF_OK          = 0,
    WF_INVALID     = 1, /* the call breaks this header's contract: fix the caller             */
    WF_UNSUPPORTED = 2, /* legal, but this build or this device has no kernel for it          */
    WF_WORKSPACE   = 3, /* workspace missing or smaller than asked for                        */
    WF_DEVICE      = 4  /* CUDA refused (no driver, no device, launch failed): its own message is in wf_error_detail() */
} wf_status;
WF_API const char *wf_status_string(wf_status s); /* "ok", "invalid", "unsupported", "workspace", "device"; else "unknown
                                                     status"; never NULL */
WF_API const char *wf_error_detail(void); /* why this thread's last failing call failed: "layernorm_forward: rows = -1";
                                             never NULL, "" before the first failure, unchanged by success */
WF_API uint32_t wf_version(void);         /* WF_VERSION of the loaded library */

/* Activations (x, y, dy, dx) may have any dtype. Parameters (gamma, beta and their gradients) have x's dtype, or WF_F32
 * with 16-bit x; another pair is WF_UNSUPPORTED. Statistics (mean, mean_lo, rstd, rrms, running mean and variance) are
 * float, or double where x is WF_F64. Arithmetic is float or wider (double for WF_F64), rounded once, to nearest even,
 * at the store. */
typedef enum wf_dtype { WF_F32 = 0, WF_F16 = 1, WF_BF16 = 2, WF_F64 = 3 } wf_dtype;

/* Channels first [n, c, hw] or last [n, hw, c]; hw = the product of all spatial dimensions, 1 if there are none. */
typedef enum wf_layout { WF_NCHW = 0, WF_NHWC = 1 } wf_layout;

/* x S(x), S = the step; the step, but slope below 0; 1 / (1 + e^-x); Phi(x), the normal distribution's; and PyTorch's
 * approximation of it, (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2. At Inf each has its limit; NaN stays NaN. */
typedef enum wf_activation {
    WF_ACTIVATION_NONE = 0, /* x */
    WF_RELU            = 1,
    WF_LEAKY_RELU      = 2,
    WF_SILU            = 3,
    WF_GELU            = 4,
    WF_GELU_TANH       = 5
} wf_activation;

/* What y is rounded to instead of x's dtype: see LayerNorm. */
typedef enum wf_quantization { WF_NOT_QUANTIZED = 0, WF_E4M3 = 1, WF_E5M2 = 2, WF_INT8 = 3 } wf_quantization;

typedef enum wf_backend { WF_CPU = 0, WF_CUDA = 1 } wf_backend;
WF_API wf_backend wf_default_backend(void); /* WF_CUDA where the build has it for every operation and a usable device is
                                               there, else WF_CPU */

enum { /* what.flags. A flag that concerns another direction of the same operation is ignored; one that no direction of
          the operation knows is WF_INVALID */
    WF_ACCUMULATE = 1, /* backward: add into dgamma and dbeta instead of overwriting them          */
    WF_FROZEN     = 2, /* batchnorm, instancenorm backward: the statistics are constants (evaluation) */
    WF_FEATURES   = 4, /* dropout: one decision per (n, c), as PyTorch's Dropout1d, 2d, 3d         */
    WF_BIASED     = 8, /* batchnorm, instancenorm: the running variance is the biased one (ONNX, Flax) */
    WF_SUM_F32    = 16, /* layernorm, rmsnorm: residual, sum and their gradients are float where x has 16 bits */
    WF_GIVEN_MASK = 32, /* dropout backward: the decisions are those of mask, and none is drawn     */
    WF_BIAS_F32   = 64 /* folding: bias and folded_bias are float where the weight has 16 bits     */
};
enum { /* where.flags */
    WF_DRY_RUN = 1 << 16 /* check everything, enqueue nothing; `with` may be NULL: "is this supported?". On CUDA it also
                            loads the kernels: do it once before a capture */
};

/* Runs body(arg, begin, end) over [0, n) on your threads, in any pieces and order; returns when all of it is done. */
typedef void wf_parallel_for(void *pool, int64_t n, void (*body)(void *arg, int64_t begin, int64_t end), void *arg);

/* Zero every struct and set its size: { .size = sizeof what, ... }. Fields are only ever added at the end, in multiples
 * of 8 bytes, and zero there means what the library did before. size must be at least 16; fields past it count as zero;
 * a struct longer than the library's is accepted while the bytes that the library does not know are zero.
 * reserved = 0. */
typedef struct wf_exec {
    size_t     size;
    wf_backend backend; /* stated, never guessed from pointers */
    uint32_t   flags;
    struct CUstream_st *stream;  /* WF_CUDA: where to enqueue; NULL = the legacy default stream; the current device must
                                    be the stream's. Ignored by WF_CPU */
    void  *workspace;            /* at least wf_..._workspace(what, backend) bytes, any alignment, shared with no buffer;
                                    contents matter neither before */
    size_t workspace_size;       /* nor after the call; in use until the stream's work is done: one per stream */
    wf_parallel_for *parallel_for; /* WF_CPU: your thread pool; NULL = the library's (OpenMP) */
    void       *pool;              /* handed to parallel_for */
    int32_t     threads;  /* WF_CPU without parallel_for: at most so many; 0 = the OpenMP default. Changes no bits */
    uint32_t    reserved; /* 0 */
    const char *variant;  /* NULL = the library's choice; else a name from wf_variant(), for tests and benchmarks */
} wf_exec;

/* The i-th variant of an operation ("layernorm_forward", the function's name without wf_) on a back-end, NULL past the
 * last or where there is none; names are not part of the ABI. In where.variant an unknown name is WF_INVALID, one that
 * does not take the case or this processor WF_UNSUPPORTED. */
WF_API const char *wf_variant(const char *operation, wf_backend backend, int i);

/* ---- LayerNorm ---------------------------------------------------------------------------------------------------
 * y = (x - mean) * rstd * gamma + beta,  rstd = 1 / sqrt(var + eps), mean and biased variance over each row. With
 * g = gamma * dy:  dx = rstd * (g - avg(g) - xhat * avg(g * xhat)),  dgamma = sum dy * xhat,  dbeta = sum dy.
 *
 * For every norm here: mean is held as a pair, mean + mean_lo, so that rows far from zero keep their digits; give
 * mean_lo to the backward pass where |mean| / sd is large. var = 0 with eps = 0 gives rstd = 0, so y = beta; statistics
 * of nothing (cols = 0) are 0. NaN and Inf stay in their own row, group or channel. Any buffer of an empty tensor may be
 * NULL. Errors, in units of u = 2^-24 (2^-53 for WF_F64), for |x| up to 2^60 and |mean| / sd up to 1e6:
 *     y    8 u (|gamma| max(1, |xhat|) + |beta|)   and half a unit in the last place of its dtype
 *     dx   16 u rstd (|g| + avg|g| + |xhat| avg|g xhat|)   and likewise
 *     mean u |mean| + 4 u sd; mean + mean_lo 4 u sd; rstd 4 u relative
 * and a few units in the last place where a result is below the normal range of its dtype.
 *
 * Other libraries: cuDNN and ONNX (InvStdDev) save the same rstd; PyTorch's normalized_shape is the trailing dimensions
 * whose product is cols.
 *
 * Residual. LayerNorm and RMSNorm may be of a sum that is taken in the same pass, as the blocks of a transformer do it:
 *     sum = residual + x * keep / (1 - p) * row_scale * col_scale,   y = norm(sum)
 * with any of its parts absent. keep is wf_dropout's (see Dropout), of unit row * cols + col; nothing of it is saved.
 * Each product and the sum is rounded in the arithmetic type, then sum to its dtype; statistics and y are those of sum
 * as stored, whether it is asked for or not. Backward takes sum instead of x, and the gradient that arrives at sum by
 * other ways:
 *     dresidual = (gradient of the norm) + dsum,   dx = dresidual * col_scale * row_scale * keep / (1 - p)
 * dx from dresidual as stored. residual, sum, dsum and dresidual have x's dtype, or WF_SUM_F32. Without dropout and
 * scales dx is dresidual: ask for one of them. dresidual is within dx's bar above and u |dresidual|.
 *
 * From y. A block that keeps y, for the layer behind it, need not keep x or sum: the backward passes of LayerNorm and
 * RMSNorm take y in place of both, and beta, and have xhat = (y - beta) / gamma again; mean and mean_lo are not read. dx and
 * dgamma are within the bars above of what that y gives. Its own rounding, v |y| (v = 2^-24, 2^-11, 2^-8, 2^-53 for WF_F32,
 * WF_F16, WF_BF16, WF_F64), has moved xhat by v (|xhat| + |beta / gamma|). Where that may be an eighth of a standard
 * deviation, |gamma| < 8 v |beta| or below 16 times the least number of y's dtype, the call refuses: WF_CPU with
 * WF_INVALID, which names the column; WF_CUDA, which cannot look, makes that column of dgamma and all of dx NaN.
 *
 * Quantised y. The forward passes of LayerNorm and RMSNorm can round y, as it is in the arithmetic type, to a byte; y_stride
 * is in bytes then, and y is not x. WF_E4M3 (largest 448) and WF_E5M2 (57344) hold y * *y_scale, to nearest even, the largest
 * where that or Inf is beyond it, 0x7f for NaN; *y_amax becomes the largest of *y_amax and all |y|, NaN above all. WF_INT8
 * holds y * (127 / a) likewise, 0 for NaN, where a = max(2^-100, max |y| of the row), and y_row_scale[row] = a / 127. Where
 * any part of a sum is given, sum is needed. y is within the bars above before it is rounded. The backward passes
 * ignore it. */
typedef struct wf_layernorm {
    size_t   size;
    wf_dtype x_dtype;            /* x, y, dy, dx                                                    */
    wf_dtype w_dtype;            /* gamma, beta, dgamma, dbeta: x_dtype, or WF_F32 with 16-bit x; stated even if all NULL */
    uint32_t flags;              /* WF_ACCUMULATE, WF_SUM_F32                                       */
    uint32_t reserved;           /* 0                                                               */
    int64_t  rows, cols;         /* x is [rows, cols]; 0 is valid                                   */
    int64_t  x_stride, y_stride; /* elements from row to row, at least cols; 0 = cols               */
    int64_t  dx_stride, dy_stride; /* 0 = x_stride, y_stride                                        */
    double   eps;                /* >= 0, finite; inside the root                                   */
    double   p;                  /* dropout of x before the sum: probability to DROP, 0 <= p <= 1; 0 = none */
    int64_t  residual_stride;    /* residual and dresidual; 0 = cols                                */
    int64_t  sum_stride;         /* sum and dsum; 0 = cols                                          */
    wf_quantization quantization; /* forward                                                        */
    uint32_t reserved_2;         /* 0                                                               */
} wf_layernorm;
typedef struct wf_layernorm_forward_args {
    size_t      size;
    const void *x, *gamma, *beta; /* [rows, cols], [cols], [cols]; gamma NULL = 1, beta NULL = 0    */
    void       *y;                /* [rows, cols]; may be x (equal strides)                         */
    void       *mean, *rstd;      /* [rows], for the backward pass; NULL = not wanted               */
    void       *mean_lo;          /* [rows], what rounding took from mean; NULL = not wanted        */
    const void *residual;         /* [rows, cols]; NULL = 0                                         */
    void       *sum;              /* [rows, cols]; may be residual (equal strides); NULL = not wanted, but with
                                     WF_SUM_F32 and 16-bit x any part of the sum needs it           */
    const void *row_scale;        /* [rows], a statistic's dtype; NULL = 1 (stochastic depth)       */
    const void *col_scale;        /* [cols], gamma's dtype; NULL = 1 (layer scale)                  */
    uint64_t    seed, offset;     /* of the dropout, and pointers to them, as wf_dropout_args       */
    const uint64_t *seed_ptr, *offset_ptr;
    const float *y_scale;         /* WF_E4M3, WF_E5M2: one, in back-end memory; NULL = 1            */
    float       *y_amax;          /* likewise, moved; NULL = not wanted                             */
    float       *y_row_scale;     /* [rows], WF_INT8: needed                                        */
} wf_layernorm_forward_args;
typedef struct wf_layernorm_backward_args {
    size_t      size;
    const void *dy, *x, *gamma;        /* as in the forward pass; dy, x, mean, rstd always needed   */
    const void *mean, *rstd, *mean_lo; /* [rows], as the forward pass wrote them; mean_lo may be NULL */
    void       *dx, *dgamma, *dbeta;   /* [rows, cols], [cols], [cols]; NULL = not wanted; dx may be dy (equal strides) */
    const void *sum;                   /* [rows, cols], as forward wrote it, in place of x: x is not read */
    const void *dsum;                  /* [rows, cols]; NULL = 0                                    */
    void       *dresidual;             /* [rows, cols]; may be dsum (equal strides); NULL = not wanted */
    const void *row_scale, *col_scale; /* as in the forward pass, seed and offset too               */
    uint64_t    seed, offset;
    const uint64_t *seed_ptr, *offset_ptr;
    const void *y, *beta;              /* [rows, cols], stride y_stride, as forward wrote it, in place of x and sum; [cols] */
} wf_layernorm_backward_args;
WF_API wf_status wf_layernorm_forward(const wf_layernorm *what, const wf_layernorm_forward_args *with,
                                      const wf_exec *where);
WF_API wf_status wf_layernorm_backward(const wf_layernorm *what, const wf_layernorm_backward_args *with,
                                       const wf_exec *where);
/* Every wf_..._workspace: the bytes that where.workspace must hold for this `what`, whatever buffers are given; slack
 * for alignment included; needs no device; 0 if none is needed or `what` is invalid. */
WF_API size_t wf_layernorm_forward_workspace(const wf_layernorm *what, wf_backend backend);
WF_API size_t wf_layernorm_backward_workspace(const wf_layernorm *what, wf_backend backend);

/* ---- RMSNorm -----------------------------------------------------------------------------------------------------
 * y = x * rrms * (weight_offset + gamma),  rrms = 1 / sqrt(mean of x^2 + eps), over each row; gamma NULL: factor 1.
 * With g = (weight_offset + gamma) * dy and xhat = x * rrms:  dx = rrms * (g - xhat * avg(g * xhat)). The product is
 * taken in float and rounded once; LLaMA's reference rounds x * rrms to x's dtype first. */
typedef struct wf_rmsnorm {
    size_t   size;
    wf_dtype x_dtype, w_dtype;     /* as wf_layernorm                                               */
    uint32_t flags;                /* WF_ACCUMULATE, WF_SUM_F32                                     */
    uint32_t reserved;             /* 0                                                             */
    int64_t  rows, cols;
    int64_t  x_stride, y_stride, dx_stride, dy_stride; /* as wf_layernorm                           */
    double   eps;
    double   weight_offset;        /* finite; 0; 1 for a zero-centred gamma (Gemma)                 */
    double   p;                    /* and the rest of the sum: as wf_layernorm                      */
    int64_t  residual_stride, sum_stride;
    wf_quantization quantization;
    uint32_t reserved_2;           /* 0                                                             */
} wf_rmsnorm;
typedef struct wf_rmsnorm_forward_args {
    size_t      size;
    const void *x, *gamma; /* [rows, cols], [cols] or NULL                                          */
    void       *y;         /* [rows, cols]; may be x (equal strides)                                */
    void       *rrms;      /* [rows], for the backward pass; NULL = not wanted                      */
    const void *residual;  /* from here on: the sum, as wf_layernorm_forward_args                   */
    void       *sum;
    const void *row_scale, *col_scale;
    uint64_t    seed, offset;
    const uint64_t *seed_ptr, *offset_ptr;
    const float *y_scale;  /* from here on: a quantised y, as wf_layernorm_forward_args             */
    float       *y_amax, *y_row_scale;
} wf_rmsnorm_forward_args;
typedef struct wf_rmsnorm_backward_args {
    size_t      size;
    const void *dy, *x, *gamma, *rrms; /* dy, x, rrms always needed                                 */
    void       *dx, *dgamma;           /* NULL = not wanted; dx may be dy (equal strides)           */
    const void *sum, *dsum;            /* from here on: the sum, as wf_layernorm_backward_args      */
    void       *dresidual;
    const void *row_scale, *col_scale;
    uint64_t    seed, offset;
    const uint64_t *seed_ptr, *offset_ptr;
    const void *y;                     /* as wf_layernorm_backward_args                             */
} wf_rmsnorm_backward_args;
WF_API wf_status wf_rmsnorm_forward(const wf_rmsnorm *what, const wf_rmsnorm_forward_args *with, const wf_exec *where);
WF_API wf_status wf_rmsnorm_backward(const wf_rmsnorm *what, const wf_rmsnorm_backward_args *with,
                                     const wf_exec *where);
WF_API size_t wf_rmsnorm_forward_workspace(const wf_rmsnorm *what, wf_backend backend);
WF_API size_t wf_rmsnorm_backward_workspace(const wf_rmsnorm *what, wf_backend backend);

/* ---- GroupNorm ---------------------------------------------------------------------------------------------------
 * As LayerNorm, but over the c / groups channels of each group and hw, gamma and beta per channel. groups = 1 is
 * LayerNorm over [c, hw] with an affine map per channel; groups = c is InstanceNorm.
 *
 * Activation. GroupNorm, BatchNorm and InstanceNorm may end in a residual and an activation, in the same pass:
 *     z = (x - mean) * rstd * gamma + beta + residual,   y = activation(z)
 * z is not rounded to y's dtype, nor saved. The backward pass has it again from x and forward's other inputs, by the same
 * operations: with forward's mean_lo, if that is not 0, whether z <= 0 is decided as there. Or, for WF_RELU and for
 * WF_LEAKY_RELU with slope > 0, it takes y, of which the sign is that of z (0 if it was rounded to 0), and neither beta nor
 * residual is read. With
 *     dz = dy * activation'(z)
 * all gradients are those of the norm with dz for dy, and dresidual = dz; what is summed is dz before it is rounded to
 * dresidual's dtype. y is within activation's error of what any z within the bar above gives, and dz of what that z gives:
 * a z within its bar of 0 may be on either side of it.
 *
 * Modulation. GroupNorm and InstanceNorm may scale and shift each channel of each sample besides, as FiLM, AdaGN and AdaIN do:
 *     z = ((x - mean) * rstd * gamma + beta) * f + shift + residual,   f = scale_offset + scale
 * f = 1 where scale is NULL. gamma * f and beta * f + shift take the places of gamma and beta; scale_offset and each operation
 * are rounded in the arithmetic type. With dz, the gradient that arrives at z, and sums over hw,
 *     dscale = sum dz * (xhat * gamma + beta),   dshift = sum dz
 * which WF_ACCUMULATE does not concern; dgamma, dbeta and dx are those of the norm with f * dz for dz. Errors: as above with
 * g = gamma * f * dz, but 10 u (|gamma f| max(1, |xhat|) + |beta f| + |shift|) for z and 18 u for dx;
 *     dshift (8 + log2 hw) u sum |dz|,   dscale (10 + log2 hw) u sum |dz| (|gamma| max(1, |xhat|) + |beta|)
 * and half a unit in the last place of their dtype. */
typedef struct wf_groupnorm {
    size_t    size;
    wf_dtype  x_dtype, w_dtype;  /* as wf_layernorm                                                 */
    wf_layout layout;
    uint32_t  flags;             /* WF_ACCUMULATE                                                   */
    int64_t   n, c, hw, groups;  /* groups > 0 divides c                                            */
    double    eps;
    wf_activation activation;    /* of y                                                            */
    uint32_t  reserved;          /* 0                                                               */
    double    slope;             /* finite; WF_LEAKY_RELU's                                         */
    double    scale_offset;      /* finite; 0; 1 for a scale about 0                                */
} wf_groupnorm;
typedef struct wf_groupnorm_forward_args {
    size_t      size;
    const void *x, *gamma, *beta;      /* x as layout says; gamma, beta [c]; gamma NULL = 1, beta NULL = 0 */
    void       *y;                     /* as x; may be x                                            */
    void       *mean, *rstd, *mean_lo; /* [n, groups], for the backward pass; NULL = not wanted     */
    const void *residual;              /* as x; NULL = 0                                            */
    const void *scale, *shift;         /* [n, c], gamma's dtype; NULL = f is 1; 0                       */
} wf_groupnorm_forward_args;
typedef struct wf_groupnorm_backward_args {
    size_t      size;
    const void *dy, *x, *gamma, *mean, *rstd, *mean_lo; /* dy, x, mean, rstd always needed          */
    void       *dx, *dgamma, *dbeta;                    /* as x, [c], [c]; NULL = not wanted; dx may be dy */
    const void *beta, *residual;       /* as in the forward pass; read for an activation only       */
    const void *y;                     /* as x, in place of both, for WF_RELU and WF_LEAKY_RELU, slope > 0; NULL = not given */
    void       *dresidual;             /* as x; may be dy, if dx is not; NULL = not wanted          */
    const void *scale, *shift;         /* as in the forward pass; shift read as beta, beta for dscale too */
    void       *dscale, *dshift;       /* [n, c]; NULL = not wanted                                 */
} wf_groupnorm_backward_args;
WF_API wf_status wf_groupnorm_forward(const wf_groupnorm *what, const wf_groupnorm_forward_args *with,
                                      const wf_exec *where);
WF_API wf_status wf_groupnorm_backward(const wf_groupnorm *what, const wf_groupnorm_backward_args *with,
                                       const wf_exec *where);
WF_API size_t wf_groupnorm_forward_workspace(const wf_groupnorm *what, wf_backend backend);
WF_API size_t wf_groupnorm_backward_workspace(const wf_groupnorm *what, wf_backend backend);

/* ---- BatchNorm ---------------------------------------------------------------------------------------------------
 * y = (x - mean) * rstd * gamma + beta, mean and biased variance per channel over n and hw. Training also moves the
 * running statistics, if they are given:  out = (1 - momentum) * in + momentum * batch,  the variance unbiased, times
 * n hw / (n hw - 1), unless WF_BIASED. momentum is the weight of the NEW value, as in PyTorch (0.1) and cuDNN
 * (exponentialAverageFactor); ONNX and Darknet state the weight of the old one (0.9 means momentum = 0.1 here) and ONNX
 * stores the biased variance. momentum = 1 / k at step k is the cumulative average (PyTorch's momentum=None); 1 copies,
 * so a NaN in the old value goes away.
 *
 * One value per channel (n hw = 1) is WF_INVALID in training and in a backward pass without WF_FROZEN. An empty tensor
 * is WF_OK: running statistics are copied from in to out, dgamma and dbeta are 0 (or unchanged with WF_ACCUMULATE). */
typedef struct wf_batchnorm {
    size_t    size;
    wf_dtype  x_dtype, w_dtype;  /* as wf_layernorm                                                 */
    wf_layout layout;
    uint32_t  flags;             /* WF_ACCUMULATE, WF_FROZEN, WF_BIASED                             */
    int64_t   n, c, hw;
    double    eps;
    double    momentum;          /* weight of the NEW value, 0 to 1; train only                     */
    wf_activation activation;    /* from here on: as wf_groupnorm                                   */
    uint32_t  reserved;
    double    slope;
} wf_batchnorm;
typedef struct wf_batchnorm_train_args {
    size_t      size;
    const void *x, *gamma, *beta;                  /* x as layout says; gamma, beta [c]; gamma NULL = 1, beta NULL = 0 */
    const void *running_mean_in, *running_var_in;  /* [c] float (double for WF_F64); all four or none */
    void       *running_mean_out, *running_var_out; /* [c]; may be the same buffers                 */
    void       *y;                                 /* as x; may be x                                */
    void       *mean, *rstd, *mean_lo;             /* [c], of this batch, for the backward pass; NULL = not wanted */
    const void *residual;                          /* as x; NULL = 0                                */
} wf_batchnorm_train_args;
typedef struct wf_batchnorm_infer_args {
    size_t      size;
    const void *x, *gamma, *beta, *running_mean, *running_var; /* the running statistics [c] are needed; without them
                                                                  evaluation is a training call     */
    void       *y;                                 /* as x; may be x                                */
    void       *rstd;                              /* [c], for a WF_FROZEN backward, with running_mean as its mean; NULL =
                                                      not wanted                                    */
    const void *residual;                          /* as x; NULL = 0                                */
} wf_batchnorm_infer_args;
typedef struct wf_batchnorm_backward_args {
    size_t      size;
    const void *dy, *x, *gamma, *mean, *rstd, *mean_lo; /* dy, x, mean, rstd [c] always needed      */
    void       *dx, *dgamma, *dbeta;                    /* as x, [c], [c]; NULL = not wanted; dx may be dy */
    const void *beta, *residual, *y;                    /* as wf_groupnorm_backward_args            */
    void       *dresidual;
} wf_batchnorm_backward_args;
WF_API wf_status wf_batchnorm_train(const wf_batchnorm *what, const wf_batchnorm_train_args *with,
                                    const wf_exec *where);
WF_API wf_status wf_batchnorm_infer(const wf_batchnorm *what, const wf_batchnorm_infer_args *with,
                                    const wf_exec *where);
WF_API wf_status wf_batchnorm_backward(const wf_batchnorm *what, const wf_batchnorm_backward_args *with,
                                       const wf_exec *where);
WF_API size_t wf_batchnorm_train_workspace(const wf_batchnorm *what, wf_backend backend);
WF_API size_t wf_batchnorm_infer_workspace(const wf_batchnorm *what, wf_backend backend);
WF_API size_t wf_batchnorm_backward_workspace(const wf_batchnorm *what, wf_backend backend);

/* ---- InstanceNorm ------------------------------------------------------------------------------------------------
 * Per (n, channel), over hw; BatchNorm's fields, and GroupNorm's modulation. PyTorch's affine is off by default:
 * gamma = beta = NULL. Running statistics, if kept, move once per call by the average over n of the instances' own mean
 * and unbiased variance, times hw / (hw - 1), biased with WF_BIASED. hw = 1 is WF_INVALID in training and in a backward
 * pass without WF_FROZEN, unless the tensor is empty. A WF_FROZEN backward takes mean, rstd and mean_lo as [c]. */
typedef struct wf_instancenorm {
    size_t    size;
    wf_dtype  x_dtype, w_dtype;
    wf_layout layout;
    uint32_t  flags;             /* WF_ACCUMULATE, WF_FROZEN, WF_BIASED                             */
    int64_t   n, c, hw;
    double    eps;
    double    momentum;          /* weight of the NEW value, 0 to 1; train only                     */
    wf_activation activation;    /* from here on: as wf_groupnorm                                   */
    uint32_t  reserved;
    double    slope;
    double    scale_offset;      /* finite; 0; 1 for a scale about 0                                */
} wf_instancenorm;
typedef struct wf_instancenorm_train_args {
    size_t      size;
    const void *x, *gamma, *beta;
    const void *running_mean_in, *running_var_in;   /* [c] float (double for WF_F64); all four or none */
    void       *running_mean_out, *running_var_out; /* [c]; may be the same buffers                 */
    void       *y;                                  /* as x; may be x                               */
    void       *mean, *rstd, *mean_lo;              /* [n, c], for the backward pass; NULL = not wanted */
    const void *residual;                           /* as x; NULL = 0                               */
    const void *scale, *shift;                      /* [n, c], gamma's dtype; NULL = f is 1; 0          */
} wf_instancenorm_train_args;
typedef struct wf_instancenorm_infer_args {
    size_t      size;
    const void *x, *gamma, *beta, *running_mean, *running_var;
    void       *y;                                  /* as x; may be x                               */
    void       *rstd;                               /* [c], for a WF_FROZEN backward, with running_mean as its mean; NULL =
                                                       not wanted                                   */
    const void *residual;                           /* as x; NULL = 0                               */
    const void *scale, *shift;                      /* [n, c], gamma's dtype; NULL = f is 1; 0          */
} wf_instancenorm_infer_args;
typedef struct wf_instancenorm_backward_args {
    size_t      size;
    const void *dy, *x, *gamma, *mean, *rstd, *mean_lo; /* mean, rstd [n, c], needed; [c] with WF_FROZEN */
    void       *dx, *dgamma, *dbeta;                    /* as x, [c], [c]; NULL = not wanted; dx may be dy */
    const void *beta, *residual, *y;                    /* as wf_groupnorm_backward_args            */
    void       *dresidual;
    const void *scale, *shift;                          /* as wf_groupnorm_backward_args            */
    void       *dscale, *dshift;
} wf_instancenorm_backward_args;
WF_API wf_status wf_instancenorm_train(const wf_instancenorm *what, const wf_instancenorm_train_args *with,
                                       const wf_exec *where);
WF_API wf_status wf_instancenorm_infer(const wf_instancenorm *what, const wf_instancenorm_infer_args *with,
                                       const wf_exec *where);
WF_API wf_status wf_instancenorm_backward(const wf_instancenorm *what, const wf_instancenorm_backward_args *with,
                                          const wf_exec *where);
WF_API size_t wf_instancenorm_train_workspace(const wf_instancenorm *what, wf_backend backend);
WF_API size_t wf_instancenorm_infer_workspace(const wf_instancenorm *what, wf_backend backend);
WF_API size_t wf_instancenorm_backward_workspace(const wf_instancenorm *what, wf_backend backend);

/* ---- Dropout -----------------------------------------------------------------------------------------------------
 * y[i] = keep(u) ? x[i] * s : +0,  s = 1 / (1 - p), a select: a dropped NaN or Inf is +0. p = 0 copies, p = 1 gives
 * zeros. Evaluation is not calling it. Nothing need be saved for the backward pass: keep is a specified function of
 * (seed, offset, u), so every back-end, launch shape and pass agrees bit for bit. With WF_GIVEN_MASK backward reads it
 * from the mask that forward wrote, or from any other, which is faster on a CPU.
 *
 * u = the element's index in memory; with WF_FEATURES u = i * what.c + j for sample i and channel j, in both layouts.
 * keep(u): word u % 4 of Philox4x32-10 with key = {seed lo, seed hi} and counter = {offset lo, offset hi, block lo,
 * block hi}, block = u / 4, is less than T = floor((1 - p) 2^32 + 0.5), compared in 64 bits. That is
 * curand_init(seed, u / 4, 4 * offset) and at::philox_engine(seed, u / 4, offset); PyTorch's own mapping of elements to
 * threads, and so its masks, differ.
 *
 * Around it, each part optional, what a feed-forward block has there:
 *     y = residual + dropout(act(x + bias)),   dx = dropout'(dy) * act'(x + bias)
 * x + bias, act, dropout and the sum are rounded in the arithmetic type, then y to its dtype. Backward recomputes x + bias
 * from forward's x. The gradient of residual is dy itself; that of bias is dx summed over all but the channels, and is
 * left to the caller. y is within 6 u |dropout(act)| + u |y| and dx within 8 u |dropout'(dy)| (|S| + |x S'|), where act
 * is x S and u = 2^-24 (2^-53 for WF_F64), each with half a unit in the last place of its dtype.
 *
 * Alpha dropout (for SELU, mean and variance kept): with alpha' = 1.7580993408473766,
 * a = 1 / sqrt((alpha'^2 p + 1)(1 - p)) and b = a alpha' p: kept a x + b (two roundings), dropped b - a alpha'; backward
 * a dy or 0; p = 1 gives 0. Constants are computed in double and rounded once. */
typedef enum wf_dropout_kind { WF_DROPOUT = 0, WF_ALPHA_DROPOUT = 1 } wf_dropout_kind;
typedef struct wf_dropout {
    size_t          size;
    wf_dtype        x_dtype;
    wf_dropout_kind kind;
    wf_layout       layout;  /* matters with WF_FEATURES or a bias only                             */
    uint32_t        flags;   /* WF_FEATURES, WF_GIVEN_MASK                                          */
    int64_t         n, c, hw; /* n * c * hw elements                                                */
    double          p;       /* probability to DROP, 0 <= p <= 1                                    */
    wf_dtype        w_dtype; /* bias: x_dtype, or WF_F32 with 16-bit x; of no matter without one    */
    wf_activation   activation;
    double          slope;   /* WF_LEAKY_RELU's; finite                                             */
} wf_dropout;
typedef struct wf_dropout_args {
    size_t          size;
    const void     *x;            /* backward: dy                                                   */
    void           *y;            /* backward: dx; may be x, or residual, or x_in                   */
    uint8_t        *mask;         /* forward writes bit u % 8 of byte u / 8: 1 = kept; ceil(units / 8) bytes, spare bits 0;
                                     NULL = not wanted. Backward ignores it, but with WF_GIVEN_MASK reads it (needed
                                     then; spare bits are ignored) and ignores seed, offset and pointers to them */
    uint64_t        seed, offset; /* a call uses up ONE offset, whatever its size                   */
    const uint64_t *seed_ptr;     /* NULL, or in back-end memory, read when the kernel runs: replaces seed */
    const uint64_t *offset_ptr;   /* NULL, or likewise: added to offset. A replayed CUDA graph then draws anew; neither is
                                     ever written                                                   */
    const void     *bias;         /* [c]; NULL = 0                                                  */
    const void     *residual;     /* as x; NULL = 0; backward ignores it                            */
    const void     *x_in;         /* backward: forward's x, needed with an activation, else ignored */
} wf_dropout_args;
WF_API wf_status wf_dropout_forward(const wf_dropout *what, const wf_dropout_args *with, const wf_exec *where);
WF_API wf_status wf_dropout_backward(const wf_dropout *what, const wf_dropout_args *with, const wf_exec *where);
WF_API size_t wf_dropout_forward_workspace(const wf_dropout *what, wf_backend backend);
WF_API size_t wf_dropout_backward_workspace(const wf_dropout *what, wf_backend backend);

/* ---- Folding -----------------------------------------------------------------------------------------------------
 * For inference: the constants of a norm go into the weight and the bias of the layer beside it, and cost nothing more.
 *
 * fold_batchnorm: the norm follows the layer. With s = gamma / sqrt(var + eps), of the running statistics,
 *     folded_weight = weight * s,   folded_bias = (bias - mean) * s + beta
 * Row r of the weight belongs to channel r % channels. A Linear's weight and a convolution's [out, in, kh, kw] have out
 * rows and as many channels; a transposed convolution's [in, out, kh, kw] has in * out rows, channels = out.
 *
 * fold_layernorm: the norm, LayerNorm or RMSNorm, comes before the layer, and no longer has gamma and beta.
 *     folded_weight = weight * (weight_offset + gamma),   folded_bias = bias + sum of weight * beta over the row
 * Column j of the weight belongs to channel j / (cols / channels): each to its own for a Linear. A convolution's
 * [out, in, kh, kw] has channels = in; where it pads with zeros, beta cannot be folded.
 *
 * var = 0 with eps = 0 gives s = 0, as in the norms. NaN and Inf stay in their row or, those of gamma and beta of
 * fold_layernorm, reach the columns and the sums that they are part of. The same bits on every back-end, but for that
 * sum: its order is each back-end's own. Errors, where s is within the normal range of the arithmetic:
 *     folded_weight   5 u |folded_weight|   and half a unit in the last place of its dtype; likewise
 *     folded_bias     7 u (|bias - mean| |s| + |beta|),   or (8 + log2 cols) u (|bias| + sum |weight * beta|) */
typedef struct wf_fold {
    size_t   size;
    wf_dtype x_dtype;            /* weight, folded_weight; bias, folded_bias but for WF_BIAS_F32    */
    wf_dtype w_dtype;            /* gamma, beta: x_dtype, or WF_F32 with 16-bit x_dtype; stated even if both NULL */
    uint32_t flags;              /* WF_BIAS_F32                                                     */
    uint32_t reserved;           /* 0                                                               */
    int64_t  rows, cols;         /* weight is [rows, cols]; 0 is valid                              */
    int64_t  x_stride, y_stride; /* of weight and of folded_weight, as wf_layernorm; 0 = cols       */
    int64_t  channels;           /* divides rows, or cols of fold_layernorm; 0 = as many            */
    double   eps;                /* fold_batchnorm; >= 0, finite                                    */
    double   weight_offset;      /* fold_layernorm; finite; 0; 1 for a zero-centred gamma           */
} wf_fold;
typedef struct wf_fold_args {
    size_t      size;
    const void *weight;        /* [rows, cols]                                                      */
    const void *bias;          /* [channels], or [rows] of fold_layernorm; NULL = 0                 */
    const void *gamma, *beta;  /* [channels]; gamma NULL = 1 (weight_offset or not), beta NULL = 0  */
    const void *mean, *var;    /* [channels] float (double for WF_F64): needed by fold_batchnorm, ignored by the other */
    void       *folded_weight; /* [rows, cols]; may be weight (equal strides)                       */
    void       *folded_bias;   /* as bias; may be bias; fold_layernorm without beta: NULL = not wanted */
} wf_fold_args;
WF_API wf_status wf_fold_batchnorm(const wf_fold *what, const wf_fold_args *with, const wf_exec *where);
WF_API wf_status wf_fold_layernorm(const wf_fold *what, const wf_fold_args *with, const wf_exec *where);
WF_API size_t wf_fold_batchnorm_workspace(const wf_fold *what, wf_backend backend);
WF_API size_t wf_fold_layernorm_workspace(const wf_fold *what, wf_backend backend);

#ifdef __cplusplus
}
#endif
#endif
