/* The six questions: what is trained, what is measured, what is drawn, and what the numbers say. */
#ifndef DEMO_PANELS_H
#define DEMO_PANELS_H

#include "train.h"

enum { MAX_SERIES = 6, MAX_X = 10, MAX_METRICS = 4, MAX_SEEDS = 16, MAX_GRIDS = 2, MAX_PLOTS = 4, PANELS = 6 };

typedef enum metric { TEST_ACCURACY, TEST_LOSS, TRAIN_ACCURACY, TRAIN_LOSS } metric;
extern const char *const metric_name[MAX_METRICS];

/* Numbers of every seed, by series (a line in the plot), place on the x axis and metric. NaN: the run diverged. */
typedef struct grid {
    const char *title, *x_name;
    int series, xs, metrics, seeds;
    const char *series_name[MAX_SERIES];
    norm_kind series_color[MAX_SERIES]; /* the same norm has the same color in every plot */
    double x[MAX_X];
    char x_text[MAX_X][16];
    bool log_x;
    int apart; /* 1: the last place on the axis is a case of its own, not to be joined to the others */
    double value[MAX_SERIES][MAX_X][MAX_METRICS][MAX_SEEDS];
} grid;

typedef struct plot {
    int grid;
    const char *title;
    metric solid;
    int dashed; /* a second metric, or -1 */
} plot;

/* One training run and the cell its numbers belong to. */
typedef struct job {
    int grid, series, x, seed;
    recipe recipe;
} job;

typedef struct settings {
    const layers *layers;  /* the panels'                              */
    const layers *checked; /* the library's, on the CPU or on a GPU     */
    const layers *beside;  /* the library's on the other one, or NULL   */
    const fashion *data;
    int64_t images; /* seen by a run                                      */
    int64_t pool;   /* different training images, at most what there is   */
    int64_t tests;  /* test images                                        */
    int seeds, threads;
    ui_counters counters;
} settings;

/* What became of what was expected. */
typedef enum outcome { NOT_AS_EXPECTED, PARTLY_AS_EXPECTED, AS_EXPECTED } outcome;
extern const char *const outcome_text[AS_EXPECTED + 1]; /* "as expected" */

typedef struct panel panel;
struct panel {
    int number;
    const char *key, *title, *question, *expected, *criterion;
    void (*build)(panel *, const settings *);
    void (*run)(panel *, settings *, const job *);
    outcome (*judge)(panel *); /* writes verdict and detail */
    char setup[256];
    int grids, plots;
    grid grid[MAX_GRIDS];
    plot plot[MAX_PLOTS];
    int jobs;
    job *job;
    outcome outcome;
    char verdict[200], detail[400]; /* one line; the numbers behind it */
    int64_t runs;
    double wall_seconds;
};

extern panel panels[PANELS];

#define FIRST_SEED 1000

/* The run of panel 5: trains once, scores at every strength of the change. */
void run_instancenorm(panel *, settings *, const job *);

void panel_measure(panel *, settings *); /* builds, runs, judges */
void panel_print(const panel *);         /* the main tables and the verdict, to the terminal */

typedef struct spread {
    double mean, sd, min, max;
    int count; /* of finite values */
} spread;

/* Of the finite values over the seeds. */
spread grid_spread(const grid *, int series, int x, metric);

/* The judges, in verdicts.c. */
outcome judge_learning_rate(panel *);
outcome judge_batch_size(panel *);
outcome judge_initialisation(panel *);
outcome judge_dropout(panel *);
outcome judge_instancenorm(panel *);
outcome judge_running_statistics(panel *);

#endif
