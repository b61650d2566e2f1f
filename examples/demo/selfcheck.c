#include "selfcheck.h"
#include "workers.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { BATCH = 16, SCORED = 250 };

/* Every operation the demo can reach, in both layouts where there are two; the last steps of the frozen cases train
 * with running statistics held constant. */
check checks[CHECKS] = {
    {.name = "no norm", .recipe = {.architecture = MLP}},
    {.name = "LayerNorm", .recipe = {.architecture = MLP, .norm = NORM_LAYER}},
    {.name = "RMSNorm", .recipe = {.architecture = MLP, .norm = NORM_RMS}},
    {.name = "GroupNorm", .recipe = {.architecture = MLP, .norm = NORM_GROUP}},
    {.name = "BatchNorm, then frozen", .recipe = {.architecture = MLP, .norm = NORM_BATCH, .frozen_from = 1}},
    {.name = "BatchNorm, cumulative average",
     .recipe = {.architecture = MLP, .norm = NORM_BATCH, .norm_momentum = -1}},
    {.name = "dropout", .recipe = {.architecture = MLP, .dropout = 0.3}},
    {.name = "alpha dropout, LayerNorm",
     .recipe = {.architecture = MLP, .norm = NORM_LAYER, .dropout = 0.1, .dropout_kind = DROPOUT_ALPHA}},
    {.name = "BatchNorm, feature dropout, channels last",
     .recipe = {.architecture = CONVNET, .norm = NORM_BATCH, .dropout = 0.2, .dropout_kind = DROPOUT_FEATURES}},
    {.name = "BatchNorm, feature dropout, channels first",
     .recipe = {.architecture = CONVNET, .norm = NORM_BATCH, .dropout = 0.2, .dropout_kind = DROPOUT_FEATURES,
                .channels_first = true}},
    {.name = "GroupNorm, channels last", .recipe = {.architecture = CONVNET, .norm = NORM_GROUP}},
    {.name = "GroupNorm, channels first",
     .recipe = {.architecture = CONVNET, .norm = NORM_GROUP, .channels_first = true}},
    {.name = "InstanceNorm, channels last", .recipe = {.architecture = CONVNET, .norm = NORM_INSTANCE}},
    {.name = "InstanceNorm, tracked, then frozen, channels first",
     .recipe = {.architecture = CONVNET, .norm = NORM_INSTANCE, .track = true, .channels_first = true,
                .frozen_from = 1}},
};

static const layers *layers_of(const settings *s, curve which)
{
    return which == CHECKED ? s->checked : which == NAIVE ? &layers_naive : s->beside;
}

static int curves_of(const settings *s)
{
    return s->beside ? CURVES : BESIDE;
}

static void train_one(void *context, int64_t job)
{
    settings *s = context;
    curve which = (curve)(job % curves_of(s));
    check *c = &checks[job / curves_of(s)];
    trainer *t = trainer_new(&c->recipe, layers_of(s, which), s->data, &s->counters);
    trainer_run(t, c->recipe.images, c->loss[which]);
    int64_t count = s->tests < SCORED ? s->tests : SCORED;
    c->end[which] = trainer_score(t, &s->data->test, count, count, PASS_INFER, NULL);
    trainer_free(t);
}

static double loss_at(const check *c, curve which, int64_t step)
{
    return step < c->steps ? c->loss[which][step] : c->end[which].loss;
}

static void compare(check *c, curve which)
{
    for (int64_t step = 0; step <= c->steps; step++) {
        double naive = loss_at(c, NAIVE, step), difference = fabs(loss_at(c, which, step) - naive) / fabs(naive);
        if (!isfinite(difference))
            difference = INFINITY;
        if (difference >= c->worst) {
            c->worst = difference;
            c->worst_curve = which;
            c->worst_step = step;
        }
    }
}

bool selfcheck(settings *s, int64_t steps)
{
    bool ok = true;
    for (int i = 0; i < CHECKS; i++) {
        check *c = &checks[i];
        recipe *r = &c->recipe;
        r->norm_momentum = r->norm_momentum < 0 ? 0 : DEFAULT_MOMENTUM;
        r->frozen_from = r->frozen_from ? 2 * steps / 3 : 0;
        r->activation = SMOOTH;
        r->init_scale = 1;
        r->lr = 0.05;
        r->batch = BATCH;
        r->images = steps * BATCH;
        r->pool = s->pool;
        r->seed = 77;
        c->steps = steps;
        for (int which = 0; which < curves_of(s); which++) {
            c->loss[which] = malloc(sizeof(double) * (size_t)steps);
            if (!c->loss[which])
                die("out of memory");
            for (int64_t k = 0; k < steps; k++)
                c->loss[which][k] = NAN;
        }
    }
    workers_run("Check against naive layers", s->threads, curves_of(s) * CHECKS, train_one, s, &s->counters);
    printf("  %slargest relative difference between the loss curves, %lld steps (at most %g)%s\n", ui_dim(),
           (long long)steps, CHECK_TOLERANCE, ui_plain());
    for (int i = 0; i < CHECKS; i++) {
        check *c = &checks[i];
        compare(c, CHECKED);
        if (s->beside)
            compare(c, BESIDE);
        bool agrees = c->worst <= CHECK_TOLERANCE;
        ok &= agrees;
        printf("  %-52s %8.1e  %s%s%s", c->name, c->worst, agrees ? ui_green() : ui_yellow(),
               agrees ? "agrees" : "DIFFERS", ui_plain());
        if (!agrees)
            printf("%s, step %lld%s: %.6f, naive %.6f", layers_of(s, c->worst_curve)->gpu ? " on the GPU" : "",
                   (long long)c->worst_step, c->worst_step < steps ? "" : " (test loss)",
                   loss_at(c, c->worst_curve, c->worst_step), loss_at(c, NAIVE, c->worst_step));
        putchar('\n');
    }
    printf("  %s%s%s\n\n", ok ? ui_green() : ui_yellow(),
           ok ? "Every curve agrees: the library's forward and backward passes train the same networks."
              : "The library's layers do not train like the naive ones.",
           ui_plain());
    return ok;
}
