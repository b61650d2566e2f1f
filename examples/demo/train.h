/* One training run: a recipe in, numbers out. Runs share nothing but the data, so many may go on at once, and a run's
 * result depends on its recipe alone. */
#ifndef DEMO_TRAIN_H
#define DEMO_TRAIN_H

#include "fashion.h"
#include "net.h"
#include "ui.h"

typedef struct recipe {
    architecture architecture;
    activation activation;
    norm_kind norm;
    bool track, channels_first;
    double norm_momentum; /* 0: cumulative average; see DEFAULT_MOMENTUM */
    double init_scale;
    dropout_kind dropout_kind;
    double dropout, weight_decay;
    double lr;
    int64_t batch, images; /* per step; seen in all, over as many epochs as it takes */
    int64_t pool;          /* train on the first so many images                      */
    int64_t frozen_from;   /* from this step on with frozen statistics; 0: never     */
    uint64_t seed;
} recipe;

#define DEFAULT_MOMENTUM 0.1

/* A test image as the network sees it, changed one by one: contrast, then brightness, then clipped to what a camera can
 * store. strength 0 changes nothing; seed picks every image's change. */
typedef struct photo {
    double strength;
    uint64_t seed;
} photo;
void photo_change(const photo *, int64_t index, const uint8_t *pixels, float *changed); /* 0 .. 1 */

typedef struct score {
    double accuracy, loss; /* accuracy in [0, 1]; loss NaN once the network diverged */
} score;

typedef struct trainer trainer;

trainer *trainer_new(const recipe *, const layers *, const fashion *, ui_counters *);
void trainer_free(trainer *);
/* Trains until `images` have been seen in all (or what the recipe says, if less). losses, unless NULL, gets the loss of
 * every step. False: the loss is no longer finite, and the run stopped there. */
bool trainer_run(trainer *, int64_t images, double *losses);
/* Over the first `count` images, `batch` at a time; mode PASS_INFER or PASS_BATCH_INFER. photo NULL: as they are. */
score trainer_score(trainer *, const images *, int64_t count, int64_t batch, pass mode, const photo *);

#endif
