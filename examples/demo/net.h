/* Small networks as a list of steps, trained by plain SGD. Matrix products are CBLAS calls; norms and dropout go
 * through a `layers` table. */
#ifndef DEMO_NET_H
#define DEMO_NET_H

#include "layers.h"
#include "rng.h"

typedef enum architecture {
    MLP,    /* 784 - [linear, norm, ReLU, dropout] x 3 of 128 - linear 10                                     */
    CONVNET /* [conv 3x3 without padding, norm, ReLU, max pool 2, feature dropout] with 8, 16 - linear 10     */
} architecture;

/* ReLU and max pool have kinks: two trainings one rounding apart part for good where they land on either side of one.
 * SMOOTH puts SiLU and average pools in their place, so that trainings to be compared stay together. */
typedef enum activation { KINKED, SMOOTH } activation;

typedef struct net_options {
    architecture kind;
    activation activation;
    norm_kind norm;
    bool track;           /* InstanceNorm keeps running statistics too (BatchNorm always does)                 */
    bool channels_last;   /* CONVNET                                                                           */
    double norm_momentum; /* of running statistics; 0: cumulative average, 1 / k at step k                     */
    double init_scale;    /* times He's standard deviation                                                     */
    dropout_kind dropout_kind;
    double dropout; /* p; 0: no dropout layer                                                                  */
    int64_t batch;  /* the largest n                                                                           */
    uint64_t seed;
} net_options;

typedef struct net net;

net *net_new(const net_options *, const layers *);
void net_free(net *);
/* x [n, 784] to logits [n, 10], which stay valid until the next call. */
const float *net_forward(net *, pass, const float *x, int64_t n);
/* After a forward pass over the same x: from dlogits [n, 10] back through all steps, moving every parameter by -lr
 * times its gradient (weights by -lr * weight_decay * w as well). */
void net_backward(net *, pass, const float *x, const float *dlogits, int64_t n, double lr, double weight_decay);

#endif
