#include "train.h"

#include <math.h>
#include <stdlib.h>

enum { SCORE_BATCH = 250 };

struct trainer {
    recipe recipe;
    const fashion *data;
    ui_counters *counters;
    const layers *layers;
    net *net;
    rng rng;
    int64_t *order; /* of the pool's images in this epoch */
    int64_t next;   /* place in it                        */
    int64_t steps, seen;
    bool diverged;
    float *x, *dlogits;
    uint8_t *labels;
};

trainer *trainer_new(const recipe *r, const layers *layers, const fashion *data, ui_counters *counters)
{
    trainer *t = calloc(1, sizeof *t);
    int64_t batch = r->batch > SCORE_BATCH ? r->batch : SCORE_BATCH;
    if (!t || !(t->order = malloc(sizeof *t->order * (size_t)r->pool)) ||
        !(t->dlogits = malloc(sizeof *t->dlogits * (size_t)(batch * CLASSES))) || !(t->labels = malloc((size_t)batch)))
        die("out of memory");
    t->layers = layers;
    t->x = tensor_new(layers, sizeof *t->x * (size_t)(batch * IMAGE_PIXELS));
    t->recipe = *r;
    t->data = data;
    t->counters = counters;
    t->rng = (rng){r->seed + 0x5eed};
    t->net = net_new(&(net_options){.kind = r->architecture, .activation = r->activation, .norm = r->norm, .track = r->track,
                                    .channels_last = !r->channels_first, .norm_momentum = r->norm_momentum,
                                    .init_scale = r->init_scale, .dropout_kind = r->dropout_kind, .dropout = r->dropout,
                                    .batch = batch, .seed = r->seed}, layers);
    for (int64_t i = 0; i < r->pool; i++)
        t->order[i] = i;
    t->next = r->pool;
    return t;
}

void trainer_free(trainer *t)
{
    net_free(t->net);
    free(t->order);
    tensor_free(t->layers, t->x);
    free(t->dlogits);
    free(t->labels);
    free(t);
}

/* The next image in an order shuffled anew every epoch. */
static int64_t draw_image(trainer *t)
{
    if (t->next == t->recipe.pool) {
        for (int64_t i = t->recipe.pool - 1; i > 0; i--) {
            int64_t j = rng_below(&t->rng, i + 1), swap = t->order[i];
            t->order[i] = t->order[j];
            t->order[j] = swap;
        }
        t->next = 0;
    }
    return t->order[t->next++];
}

static void load_image(trainer *t, const images *from, int64_t index, int64_t to)
{
    float *x = t->x + to * IMAGE_PIXELS, scale = (float)(1 / (255 * t->data->sd));
    float shift = (float)(t->data->mean / t->data->sd);
    const uint8_t *pixels = from->pixels + index * IMAGE_PIXELS;
    for (int i = 0; i < IMAGE_PIXELS; i++)
        x[i] = (float)pixels[i] * scale - shift;
    t->labels[to] = from->labels[index];
}

void photo_change(const photo *p, int64_t index, const uint8_t *pixels, float *changed)
{
    rng r = {p->seed * 1000003 + (uint64_t)index};
    rng_next(&r);
    double contrast = exp(p->strength * 1.4 * (2 * rng_uniform(&r) - 1)); /* a quarter to four times at strength 1 */
    double brightness = p->strength * 0.5 * (2 * rng_uniform(&r) - 1);
    double mean = 0;
    for (int i = 0; i < IMAGE_PIXELS; i++)
        mean += pixels[i] / (255.0 * IMAGE_PIXELS);
    for (int i = 0; i < IMAGE_PIXELS; i++) {
        double v = (pixels[i] / 255.0 - mean) * contrast + mean + brightness;
        changed[i] = (float)(v < 0 ? 0 : v > 1 ? 1 : v);
    }
}

/* Mean cross entropy of softmax(logits) over n images and its gradient; counts the correct ones. Non-finite logits give
 * a non-finite loss, and class 0 as the answer. */
static double cross_entropy(trainer *t, const float *logits, int64_t n, int64_t *correct)
{
    double loss = 0;
    for (int64_t i = 0; i < n; i++) {
        const float *z = logits + i * CLASSES;
        float *dz = t->dlogits + i * CLASSES;
        int best = 0, label = t->labels[i];
        for (int j = 1; j < CLASSES; j++)
            if (z[j] > z[best])
                best = j;
        double e[CLASSES], sum = 0;
        for (int j = 0; j < CLASSES; j++)
            sum += e[j] = exp((double)z[j] - z[best]);
        for (int j = 0; j < CLASSES; j++)
            dz[j] = (float)((e[j] / sum - (j == label)) / (double)n);
        loss += log(sum) + z[best] - z[label];
        *correct += best == label;
    }
    return loss / (double)n;
}

bool trainer_run(trainer *t, int64_t images, double *losses)
{
    const recipe *r = &t->recipe;
    if (images > r->images)
        images = r->images;
    while (!t->diverged && t->seen + r->batch <= images) {
        for (int64_t i = 0; i < r->batch; i++)
            load_image(t, &t->data->train, draw_image(t), i);
        pass mode = r->frozen_from && t->steps >= r->frozen_from ? PASS_FROZEN : PASS_TRAIN;
        int64_t correct = 0;
        const float *logits = net_forward(t->net, mode, t->x, r->batch);
        double loss = cross_entropy(t, logits, r->batch, &correct);
        t->counters->loss = loss;
        t->counters->images += r->batch;
        t->seen += r->batch;
        if (losses)
            losses[t->steps] = loss;
        t->steps++;
        if (isfinite(loss))
            net_backward(t->net, mode, t->x, t->dlogits, r->batch, r->lr, r->weight_decay);
        else
            t->diverged = true;
    }
    return !t->diverged;
}

score trainer_score(trainer *t, const images *set, int64_t count, int64_t batch, pass mode, const photo *change)
{
    double loss = 0;
    int64_t correct = 0;
    if (batch > SCORE_BATCH)
        batch = SCORE_BATCH;
    for (int64_t begin = 0; begin < count; begin += batch) {
        int64_t n = count - begin < batch ? count - begin : batch;
        for (int64_t i = 0; i < n; i++) {
            load_image(t, set, begin + i, i);
            if (change && change->strength > 0) {
                float *x = t->x + i * IMAGE_PIXELS;
                photo_change(change, begin + i, set->pixels + (begin + i) * IMAGE_PIXELS, x);
                for (int k = 0; k < IMAGE_PIXELS; k++)
                    x[k] = (float)((x[k] - t->data->mean) / t->data->sd);
            }
        }
        loss += (double)n * cross_entropy(t, net_forward(t->net, mode, t->x, n), n, &correct);
        t->counters->images += n;
    }
    return (score){(double)correct / (double)count, t->diverged ? NAN : loss / (double)count};
}
