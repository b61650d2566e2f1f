#include "panels.h"
#include "workers.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const metric_name[MAX_METRICS] = {"test accuracy", "test loss", "train accuracy", "train loss"};

/* Series and axis of a grid. */
static grid *add_grid(panel *p, const settings *s, const char *title, const char *x_name, bool log_x, int metrics)
{
    grid *g = &p->grid[p->grids++];
    *g = (grid){.title = title, .x_name = x_name, .log_x = log_x, .metrics = metrics, .seeds = s->seeds};
    for (int i = 0; i < MAX_SERIES; i++)
        for (int x = 0; x < MAX_X; x++)
            for (int m = 0; m < MAX_METRICS; m++)
                for (int seed = 0; seed < MAX_SEEDS; seed++)
                    g->value[i][x][m][seed] = NAN;
    return g;
}

static void add_series(grid *g, const char *name, norm_kind color)
{
    g->series_name[g->series] = name;
    g->series_color[g->series++] = color;
}

static void add_norms(grid *g, const norm_kind *kinds, int count)
{
    for (int i = 0; i < count; i++)
        add_series(g, norm_name(kinds[i]), kinds[i]);
}

static void add_axis(grid *g, const double *x, int count)
{
    g->xs = count;
    for (int i = 0; i < count; i++) {
        g->x[i] = x[i];
        snprintf(g->x_text[i], sizeof g->x_text[i], "%g", x[i]);
    }
}

static void add_plot(panel *p, int grid, const char *title, metric solid, int dashed)
{
    p->plot[p->plots++] = (plot){grid, title, solid, dashed};
}

static void add_job(panel *p, int grid, int series, int x, int seed, const recipe *r)
{
    if (p->jobs % 64 == 0) {
        p->job = realloc(p->job, sizeof *p->job * (size_t)(p->jobs + 64));
        if (!p->job)
            die("out of memory");
    }
    job *j = &p->job[p->jobs++];
    *j = (job){grid, series, x, seed, *r};
    j->recipe.seed = FIRST_SEED + (uint64_t)seed;
}

/* What a run is unless a panel says otherwise. */
static recipe usual(const settings *s, norm_kind kind)
{
    return (recipe){.architecture = MLP, .norm = kind, .norm_momentum = DEFAULT_MOMENTUM, .init_scale = 1, .lr = 0.1,
                    .batch = 64, .images = s->images, .pool = s->pool};
}

static void describe(panel *p, const settings *s, const char *network, int64_t images, int64_t pool, const char *rest)
{
    snprintf(p->setup, sizeof p->setup, "%s; %lld images seen per run, drawn from %lld; %lld test images; %d seeds; %s",
             network, (long long)images, (long long)pool, (long long)s->tests, s->seeds, rest);
}

#define MLP_TEXT "MLP 784-128-128-128-10"
#define CONVNET_TEXT "convnet 8-16 channels"

static const norm_kind five_norms[] = {NORM_NONE, NORM_BATCH, NORM_LAYER, NORM_GROUP, NORM_RMS};

static void build_learning_rate(panel *p, const settings *s)
{
    static const double rates[] = {.01, .03, .1, .3, 1, 3};
    grid *g = add_grid(p, s, "learning rate", "learning rate", true, 4);
    add_norms(g, five_norms, 5);
    add_axis(g, rates, 6);
    add_plot(p, 0, "Test accuracy by learning rate", TEST_ACCURACY, -1);
    describe(p, s, MLP_TEXT, s->images, s->pool, "plain SGD, batch 64");
    for (int i = 0; i < g->series; i++)
        for (int x = 0; x < g->xs; x++)
            for (int seed = 0; seed < s->seeds; seed++) {
                recipe r = usual(s, five_norms[i]);
                r.lr = rates[x];
                add_job(p, 0, i, x, seed, &r);
            }
}

static void build_batch_size(panel *p, const settings *s)
{
    static const double sizes[] = {2, 4, 8, 16, 32, 64};
    grid *g = add_grid(p, s, "batch size", "batch size", true, 4);
    add_norms(g, five_norms, 5);
    add_axis(g, sizes, 6);
    add_plot(p, 0, "Test accuracy by batch size", TEST_ACCURACY, -1);
    describe(p, s, MLP_TEXT, s->images, s->pool, "SGD, learning rate 0.2 * batch / 64");
    for (int i = 0; i < g->series; i++)
        for (int x = 0; x < g->xs; x++)
            for (int seed = 0; seed < s->seeds; seed++) {
                recipe r = usual(s, five_norms[i]);
                r.batch = (int64_t)sizes[x];
                r.lr = 0.2 * sizes[x] / 64;
                add_job(p, 0, i, x, seed, &r);
            }
}

static void build_initialisation(panel *p, const settings *s)
{
    static const double scales[] = {.1, .2, .5, 1, 2, 5, 10};
    static const norm_kind kinds[] = {NORM_NONE, NORM_BATCH, NORM_LAYER};
    grid *g = add_grid(p, s, "initialisation", "initial weights (times He's)", true, 4);
    add_norms(g, kinds, 3);
    add_axis(g, scales, 7);
    add_plot(p, 0, "Test accuracy by scale of the initial weights", TEST_ACCURACY, -1);
    describe(p, s, MLP_TEXT, s->images, s->pool, "SGD, learning rate 0.1, batch 64; scale 1 is He's");
    for (int i = 0; i < g->series; i++)
        for (int x = 0; x < g->xs; x++)
            for (int seed = 0; seed < s->seeds; seed++) {
                recipe r = usual(s, kinds[i]);
                r.init_scale = scales[x];
                add_job(p, 0, i, x, seed, &r);
            }
}

static void build_dropout(panel *p, const settings *s)
{
    static const double drops[] = {0, .1, .2, .3, .4, .5}, decays[] = {1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2};
    static const norm_kind kinds[] = {NORM_NONE, NORM_BATCH};
    int64_t pool = s->pool < 2000 ? s->pool : 2000, images = 4 * s->images;
    add_norms(add_grid(p, s, "dropout", "dropout p", false, 4), kinds, 2);
    add_axis(&p->grid[0], drops, 6);
    add_norms(add_grid(p, s, "weight decay", "weight decay", true, 4), kinds, 2);
    add_axis(&p->grid[1], decays, 6);
    add_plot(p, 0, "Accuracy by dropout", TEST_ACCURACY, TRAIN_ACCURACY);
    add_plot(p, 0, "Loss by dropout", TEST_LOSS, TRAIN_LOSS);
    add_plot(p, 1, "Accuracy by weight decay, no dropout", TEST_ACCURACY, TRAIN_ACCURACY);
    add_plot(p, 1, "Loss by weight decay, no dropout", TEST_LOSS, TRAIN_LOSS);
    describe(p, s, MLP_TEXT, images, pool, "SGD, learning rate 0.1, batch 64");
    for (int which = 0; which < 2; which++)
        for (int i = 0; i < 2; i++)
            for (int x = 0; x < p->grid[which].xs; x++)
                for (int seed = 0; seed < s->seeds; seed++) {
                    recipe r = usual(s, kinds[i]);
                    r.pool = pool;
                    r.images = images;
                    *(which ? &r.weight_decay : &r.dropout) = p->grid[which].x[x];
                    add_job(p, which, i, x, seed, &r);
                }
}

static void build_instancenorm(panel *p, const settings *s)
{
    static const double strengths[] = {0, .25, .5, .75, 1};
    static const norm_kind kinds[] = {NORM_NONE, NORM_BATCH, NORM_GROUP, NORM_INSTANCE};
    grid *g = add_grid(p, s, "photometric change", "strength of the change", false, 2);
    add_norms(g, kinds, 4);
    add_axis(g, strengths, 5);
    add_plot(p, 0, "Test accuracy on changed images", TEST_ACCURACY, -1);
    describe(p, s, CONVNET_TEXT, s->images, s->pool,
             "SGD, learning rate 0.1, batch 64; training images unchanged; a test image's contrast times e^(+-1.4 s), "
             "brightness +-s/2, clipped");
    for (int i = 0; i < g->series; i++)
        for (int seed = 0; seed < s->seeds; seed++) {
            recipe r = usual(s, kinds[i]);
            r.architecture = CONVNET;
            add_job(p, 0, i, 0, seed, &r);
        }
}

/* Early: so few steps that slow running statistics still remember their start, 0 and 1. */
enum { EARLY_STEPS = 40, MOMENTUM_BATCH = 16 };

static void build_running_statistics(panel *p, const settings *s)
{
    static const double momenta[] = {.01, .03, .1, .3, 1};
    static const char *const titles[] = {"after 40 steps", "at the end"};
    for (int i = 0; i < 2; i++) {
        grid *g = add_grid(p, s, titles[i], "momentum (weight of the new value)", true, 2);
        add_series(g, "running", NORM_BATCH);
        add_series(g, "of the batch", NORM_NONE);
        add_axis(g, momenta, 5);
        g->xs++; /* the cumulative average, to the right of the momenta */
        g->apart = 1;
        g->x[5] = 3;
        snprintf(g->x_text[5], sizeof g->x_text[5], "1/k");
    }
    add_plot(p, 0, "Test accuracy after 40 steps, by the statistics used", TEST_ACCURACY, -1);
    add_plot(p, 1, "Test accuracy at the end, by the statistics used", TEST_ACCURACY, -1);
    describe(p, s, MLP_TEXT " with BatchNorm", s->images, s->pool,
             "SGD, learning rate 0.1, batch 16; batch statistics of 250 test images; 1/k: cumulative average");
    for (int x = 0; x < p->grid[0].xs; x++)
        for (int seed = 0; seed < s->seeds; seed++) {
            recipe r = usual(s, NORM_BATCH);
            r.batch = MOMENTUM_BATCH;
            r.norm_momentum = x < 5 ? momenta[x] : 0;
            add_job(p, 0, 0, x, seed, &r);
        }
}

static void store(panel *p, int grid, int series, int x, int seed, metric accuracy, score s)
{
    p->grid[grid].value[series][x][accuracy][seed] = s.accuracy;
    p->grid[grid].value[series][x][accuracy + 1][seed] = s.loss;
}

/* Trains, then scores on test images and on as many of the training images. */
static void run_usual(panel *p, settings *s, const job *j)
{
    trainer *t = trainer_new(&j->recipe, s->layers, s->data, &s->counters);
    trainer_run(t, j->recipe.images, NULL);
    int64_t trained = j->recipe.pool < s->tests ? j->recipe.pool : s->tests;
    store(p, j->grid, j->series, j->x, j->seed, TEST_ACCURACY,
          trainer_score(t, &s->data->test, s->tests, 250, PASS_INFER, NULL));
    store(p, j->grid, j->series, j->x, j->seed, TRAIN_ACCURACY,
          trainer_score(t, &s->data->train, trained, 250, PASS_INFER, NULL));
    trainer_free(t);
}

void run_instancenorm(panel *p, settings *s, const job *j)
{
    trainer *t = trainer_new(&j->recipe, s->layers, s->data, &s->counters);
    trainer_run(t, j->recipe.images, NULL);
    for (int x = 0; x < p->grid[0].xs; x++) {
        photo change = {p->grid[0].x[x], j->recipe.seed};
        store(p, 0, j->series, x, j->seed, TEST_ACCURACY,
              trainer_score(t, &s->data->test, s->tests, 250, PASS_INFER, &change));
    }
    trainer_free(t);
}

/* Scores early and at the end, with running and with batch statistics. */
static void run_running_statistics(panel *p, settings *s, const job *j)
{
    trainer *t = trainer_new(&j->recipe, s->layers, s->data, &s->counters);
    for (int when = 0; when < 2; when++) {
        trainer_run(t, when ? j->recipe.images : EARLY_STEPS * MOMENTUM_BATCH, NULL);
        for (int batch = 0; batch < 2; batch++)
            store(p, when, batch, j->x, j->seed, TEST_ACCURACY,
                  trainer_score(t, &s->data->test, s->tests, 250, batch ? PASS_BATCH_INFER : PASS_INFER, NULL));
    }
    trainer_free(t);
}

panel panels[PANELS] = {
    {.number = 1, .key = "learning_rate", .title = "Learning rate", .build = build_learning_rate, .run = run_usual,
     .judge = judge_learning_rate, .question = "How large a learning rate does a network stand?",
     .expected = "Without a norm it fails at rates where BatchNorm still trains.",
     .criterion = "A rate trains if every seed reaches four fifths of the best mean accuracy of the panel."},
    {.number = 2, .key = "batch_size", .title = "Batch size", .build = build_batch_size, .run = run_usual,
     .judge = judge_batch_size, .question = "Which norms survive tiny batches?",
     .expected = "BatchNorm collapses at batch size 2; GroupNorm and LayerNorm do not.",
     .criterion = "Collapse: at batch 2, at least 5 points below batch 64 on average and below it in every seed."},
    {.number = 3, .key = "initialisation", .title = "Initialisation", .build = build_initialisation, .run = run_usual,
     .judge = judge_initialisation, .question = "How much does the scale of the initial weights matter?",
     .expected = "With a norm a network trains over a wider range of scales than without.",
     .criterion = "A scale trains if every seed reaches four fifths of the best mean accuracy of the panel."},
    {.number = 4, .key = "dropout", .title = "Dropout", .build = build_dropout, .run = run_usual,
     .judge = judge_dropout, .question = "What does dropout do to overfitting, and how much is needed?",
     .expected = "The gap between training and test closes, test loss falls; BatchNorm needs less dropout.",
     .criterion = "Gap: train minus test accuracy, p = 0 against p = 0.5, the same sign in every seed. Best p: lowest "
                  "mean test loss."},
    {.number = 5, .key = "instancenorm", .title = "InstanceNorm", .build = build_instancenorm, .run = run_instancenorm,
     .judge = judge_instancenorm, .question = "What if every test image has its own contrast and brightness?",
     .expected = "InstanceNorm keeps its accuracy where BatchNorm loses it.",
     .criterion = "Loss of accuracy from strength 0 to 1; InstanceNorm's is smaller by 5 points on average and in "
                  "every seed."},
    {.number = 6, .key = "running_statistics", .title = "Running statistics", .build = build_running_statistics,
     .run = run_running_statistics, .judge = judge_running_statistics,
     .question = "When can BatchNorm's running statistics be trusted?",
     .expected = "A small momentum lags behind early in training; by the end the usual 0.1 agrees with batch statistics.",
     .criterion = "Lags: loses 2 points or more on average and some in every seed. Agrees: within 2 points on average."},
};

typedef struct measurement {
    panel *panel;
    settings *settings;
} measurement;

static void run_job(void *context, int64_t i)
{
    measurement *m = context;
    m->panel->run(m->panel, m->settings, &m->panel->job[i]);
}

void panel_measure(panel *p, settings *s)
{
    char title[64];
    double begun = seconds();
    p->build(p, s);
    snprintf(title, sizeof title, "[%d/%d] %s", p->number, PANELS, p->title);
    workers_run(title, s->threads, p->jobs, run_job, &(measurement){p, s}, &s->counters);
    p->outcome = p->judge(p);
    p->runs = p->jobs;
    p->wall_seconds = seconds() - begun;
    free(p->job);
    p->job = NULL;
}

spread grid_spread(const grid *g, int series, int x, metric m)
{
    spread s = {.min = INFINITY, .max = -INFINITY};
    const double *v = g->value[series][x][m];
    for (int i = 0; i < g->seeds; i++)
        if (isfinite(v[i])) {
            s.count++;
            s.mean += v[i];
            s.min = v[i] < s.min ? v[i] : s.min;
            s.max = v[i] > s.max ? v[i] : s.max;
        }
    if (!s.count)
        return (spread){NAN, NAN, NAN, NAN, 0};
    s.mean /= s.count;
    for (int i = 0; i < g->seeds; i++)
        if (isfinite(v[i]))
            s.sd += (v[i] - s.mean) * (v[i] - s.mean);
    s.sd = s.count > 1 ? sqrt(s.sd / (s.count - 1)) : 0;
    return s;
}

static void print_table(const grid *g, metric m)
{
    bool named = strcmp(g->title, g->x_name) != 0;
    printf("  %s%s%s%s by %s%s\n  %-14s", ui_dim(), metric_name[m], named ? ", " : "", named ? g->title : "", g->x_name,
           ui_plain(), "");
    for (int x = 0; x < g->xs; x++)
        printf(" %11s", g->x_text[x]);
    putchar('\n');
    for (int i = 0; i < g->series; i++) {
        printf("  %-14s", g->series_name[i]);
        for (int x = 0; x < g->xs; x++) {
            spread s = grid_spread(g, i, x, m);
            bool percent = m == TEST_ACCURACY || m == TRAIN_ACCURACY;
            if (!s.count)
                printf(" %11s", "diverged");
            else
                printf(percent ? "  %5.1f ±%3.1f" : "  %5.2f ±%.2f", s.mean * (percent ? 100 : 1),
                       s.sd * (percent ? 100 : 1));
        }
        putchar('\n');
    }
}

void panel_print(const panel *p)
{
    printf("  %s%s%s\n", ui_dim(), p->setup, ui_plain());
    for (int i = 0; i < p->plots; i++) {
        print_table(&p->grid[p->plot[i].grid], p->plot[i].solid);
        if (p->plot[i].dashed == TRAIN_ACCURACY)
            print_table(&p->grid[p->plot[i].grid], (metric)p->plot[i].dashed);
    }
    printf("  %s[%s]%s %s\n", p->outcome == AS_EXPECTED ? ui_green() : ui_yellow(), outcome_text[p->outcome], ui_plain(),
           p->verdict);
    printf("  %s%s%s\n\n", ui_dim(), p->detail, ui_plain());
}
