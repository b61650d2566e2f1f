/* case.h - one call of the library as one line of text, for tests, the benchmark tool and the fuzzer:
 *
 *     layernorm_backward x=bf16 w=f32 rows=33 cols=1000 x_stride=1024 eps=1e-5 data=offset seed=7 null=beta,mean_lo
 *
 * The first word is the API's name of the operation; the rest are fields in any order, absent ones have the values of
 * case_default(). case_print() and case_parse() are exact inverses. Values are not judged here: bad ones reach the library. */
#ifndef WELFORD_TESTS_CASE_H
#define WELFORD_TESTS_CASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "welford.h"

typedef enum Norm { LAYERNORM, RMSNORM, GROUPNORM, INSTANCENORM, BATCHNORM, DROPOUT, NORM_COUNT, FOLD = NORM_COUNT } Norm;

typedef enum Op {
    LAYERNORM_FORWARD, LAYERNORM_BACKWARD,
    RMSNORM_FORWARD, RMSNORM_BACKWARD,
    GROUPNORM_FORWARD, GROUPNORM_BACKWARD,
    INSTANCENORM_TRAIN, INSTANCENORM_INFER, INSTANCENORM_BACKWARD,
    BATCHNORM_TRAIN, BATCHNORM_INFER, BATCHNORM_BACKWARD,
    DROPOUT_FORWARD, DROPOUT_BACKWARD,
    FOLD_BATCHNORM, FOLD_LAYERNORM,
    OP_COUNT
} Op;

typedef enum Data { /* see data.h */
    NORMAL, OFFSET, RATIO6, CONSTANT, SUBNORMAL, HUGE18, HUGE30, NANROW, INFROW, OUTLIER, EXACTSUM, ONES, TINY, BIG,
    OPPOSITE, DATA_COUNT
} Data;

enum { /* Case.null: the buffers given as NULL */
    NULL_X = 1, NULL_Y = 2, NULL_DY = 4, NULL_DX = 8, NULL_GAMMA = 16, NULL_BETA = 32, NULL_DGAMMA = 64,
    NULL_DBETA = 128, NULL_MEAN = 256, NULL_RSTD = 512 /* RMSNorm: rrms */, NULL_MEAN_LO = 1024, NULL_MASK = 2048,
    NULL_BIAS = 4096, NULL_AMAX = 8192
};

enum { /* Case.add: what LayerNorm and RMSNorm are given, or asked for, beside x and y; of the channel norms' ending a
          residual, its gradient, and y in place of it in the backward pass */
    ADD_RESIDUAL = 1, ADD_SUM = 2, ADD_ROW_SCALE = 4, ADD_COL_SCALE = 8, ADD_DSUM = 16, ADD_DRESIDUAL = 32,
    ADD_BIAS = 64, /* dropout has this one, and forward a residual */
    ADD_OUTPUT = 128, /* backward: y in place of the sum, of which the norm still was */
    ADD_Y = 256,
    ADD_SCALE = 512, ADD_SHIFT = 1024, ADD_DSCALE = 2048, ADD_DSHIFT = 4096, /* of GroupNorm and InstanceNorm modulated */
    ADD_MODULATION = ADD_SCALE | ADD_SHIFT | ADD_DSCALE | ADD_DSHIFT
};

typedef enum Running { /* BatchNorm and InstanceNorm training: where the running statistics are */
    RUNNING_NONE, RUNNING_SEPARATE, RUNNING_IN_PLACE, RUNNING_NAN /* separate, every old value a NaN */
} Running;

typedef enum FpMode { MODE_NEAREST, MODE_UP, MODE_DOWN, MODE_ZERO, MODE_FLUSH /* to zero, and denormals are zero */ } FpMode;

typedef struct Case {
    Op         op;
    wf_dtype   x, w;
    wf_layout  layout;
    wf_backend backend;
    uint32_t   flags; /* WF_ACCUMULATE ... WF_BIASED */
    uint32_t   null;
    int64_t    rows, cols, x_stride, y_stride, dx_stride, dy_stride; /* strides as in the API: 0 = cols and so on */
    int64_t    n, c, hw, groups;
    int64_t    residual_stride, sum_stride;
    int64_t    channels; /* of a fold; 0 = all */
    double     eps, momentum, weight_offset, p;
    double     scale_offset; /* of a modulation */
    double     drop; /* the p of a sum's dropout */
    int32_t    quantize; /* wf_quantization of y, forward */
    double     y_scale; /* 0: NULL */
    double     amax; /* what y_amax holds before */
    uint32_t   add;
    int32_t    kind; /* dropout: wf_dropout_kind */
    int32_t    activation;
    double     slope;
    uint64_t   offset; /* of dropout; its seed is `seed` */
    Data       data;
    uint64_t   seed;
    Running    running;
    int32_t    inplace;  /* 1: y is x, dx is dy; 2: sum is residual, dresidual is dsum (channels: dy), folded_bias is bias, y of
                            dropout is residual or x_in; 3: both */
    int32_t    misalign; /* elements by which every buffer is off its alignment */
    int32_t    threads;
    int32_t    pool; /* threads of a pool given as parallel_for; 0 = none */
    FpMode     fpmode; /* of the calling thread */
    char       variant[32]; /* "" = the library's choice */
} Case;

enum { CASE_SIZE = 1024 }; /* bytes that hold any printed case */

Case        case_default(Op op);
const char *case_parse(Case *, const char *line); /* NULL, or what is wrong, in a static buffer */
char       *case_print(const Case *, char line[CASE_SIZE]); /* line */

const char *op_name(Op);
Norm        op_norm(Op);
bool        op_is_backward(Op);
bool        op_is_infer(Op);
bool        op_is_fold(Op);
bool        case_adds(const Case *); /* a norm of a sum, not of x */
bool        case_ends(const Case *); /* a channel norm with a residual or an activation */
bool        case_modulates(const Case *); /* a GroupNorm or InstanceNorm with scale or shift, or a gradient of theirs */
bool        case_fuses(const Case *); /* a dropout with something around it */
wf_dtype    case_sum_dtype(const Case *);
wf_dtype    case_y_dtype(const Case *); /* as forward stores it: E4M3, E5M2 and INT8 (data.h) too */
const char *dtype_name(wf_dtype);
const char *data_name(Data);

#endif
