/* The layers under demonstration, behind one small interface: the library's, on the CPU or on a GPU, and plain loops in
 * double that share nothing with it and serve `--check` as the second opinion. */
#ifndef DEMO_LAYERS_H
#define DEMO_LAYERS_H

#include "gpu.h"

typedef enum norm_kind { NORM_NONE, NORM_BATCH, NORM_LAYER, NORM_GROUP, NORM_RMS, NORM_INSTANCE, NORM_KINDS } norm_kind;
typedef enum dropout_kind { DROPOUT_ELEMENTS, DROPOUT_FEATURES, DROPOUT_ALPHA } dropout_kind;

typedef enum pass {
    PASS_TRAIN,     /* batch statistics; running statistics move                                  */
    PASS_FROZEN,    /* training with running statistics held constant (fine-tuning)               */
    PASS_INFER,     /* running statistics where the layer keeps them; no backward pass follows    */
    PASS_BATCH_INFER /* batch statistics, running statistics left alone; no backward pass follows */
} pass;

/* Tensors are [n, c, hw], or [n, hw, c] with channels_last. */
typedef struct norm {
    norm_kind kind;
    bool channels_last;
    int64_t n, c, hw, groups;
    double eps, momentum;              /* momentum: weight of the new value                        */
    float *gamma, *beta;               /* [c]; beta NULL for RMSNorm                               */
    float *dgamma, *dbeta;             /* [c], overwritten by every backward pass                  */
    float *running_mean, *running_var; /* [c]; NULL: this layer keeps none                         */
    float *mean, *rstd, *mean_lo;      /* what the forward pass saves: norm_statistics() values    */
} norm;

typedef struct dropout {
    dropout_kind kind;
    bool channels_last;
    int64_t n, c, hw;
    double p; /* probability to drop */
    uint64_t seed, offset;
} dropout;

/* Where a network computes, with memory for it that grows on demand. */
typedef struct scratch {
    gpu_lane *gpu; /* NULL: the CPU */
    void *memory;
    size_t size;
} scratch;

typedef struct layers {
    const char *name;
    bool gpu; /* its tensors are gpu_memory() */
    void (*norm_forward)(const norm *, pass, const float *x, float *y, scratch *);
    void (*norm_backward)(const norm *, pass, const float *x, float *dy_dx, scratch *); /* in place */
    void (*dropout_forward)(const dropout *, const float *x, float *y, scratch *);
    void (*dropout_backward)(const dropout *, float *dy_dx, scratch *); /* in place */
} layers;

extern const layers layers_welford, layers_welford_gpu, layers_naive;

const char *norm_name(norm_kind);
/* How many means (and rstds) a pass over n samples saves. */
int64_t norm_statistics(const norm *, int64_t n);

/* Memory for tensors of these layers, or the end of the program. */
void *tensor_new(const layers *, size_t size);
void tensor_free(const layers *, void *);

#endif
