/* One-line verdicts and the numbers behind them, computed by the criteria the panels state. */
#include "panels.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static void say(char *text, size_t size, const char *format, ...) __attribute__((format(printf, 3, 4)));

static void say(char *text, size_t size, const char *format, ...)
{
    size_t used = strlen(text);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text + used, size - used, format, arguments);
    va_end(arguments);
}

#define VERDICT(p, ...) say((p)->verdict, sizeof (p)->verdict, __VA_ARGS__)
#define DETAIL(p, ...) say((p)->detail, sizeof (p)->detail, __VA_ARGS__)

const char *const outcome_text[AS_EXPECTED + 1] = {"not as expected", "partly as expected", "as expected"};

/* Of an expectation with so many parts, so many showed. */
static outcome all_parts(int shown, int parts)
{
    return shown == parts ? AS_EXPECTED : shown ? PARTLY_AS_EXPECTED : NOT_AS_EXPECTED;
}

static int find_series(const grid *g, norm_kind kind)
{
    for (int i = 0; i < g->series; i++)
        if (g->series_color[i] == kind)
            return i;
    die("no series of %s", norm_name(kind));
}

static double mean_of(const grid *g, int series, int x, metric m)
{
    return grid_spread(g, series, x, m).mean;
}

/* Every seed reaches four fifths of the best mean accuracy anywhere in the grid. */
static bool trains(const grid *g, int series, int x)
{
    double best = 0;
    for (int i = 0; i < g->series; i++)
        for (int k = 0; k < g->xs; k++)
            best = fmax(best, mean_of(g, i, k, TEST_ACCURACY));
    return grid_spread(g, series, x, TEST_ACCURACY).min >= 0.8 * best;
}

/* The places on the x axis that train: how many, the first and the last (-1: none). */
typedef struct range {
    int count, first, last;
} range;

static range training_range(const grid *g, int series)
{
    range r = {0, -1, -1};
    for (int x = 0; x < g->xs; x++)
        if (trains(g, series, x)) {
            r.count++;
            r.first = r.first < 0 ? x : r.first;
            r.last = x;
        }
    return r;
}

static const char *text_at(const grid *g, int x)
{
    return x < 0 ? "none" : g->x_text[x];
}

static const char *range_text(const grid *g, range r, char text[40])
{
    if (r.count == 0)
        return "nowhere";
    snprintf(text, 40, r.first == r.last ? "at %s only" : "at %s to %s", text_at(g, r.first), text_at(g, r.last));
    return text;
}

/* a - b, seed by seed, in points (of percent). */
typedef struct difference {
    double mean;
    bool always_positive, always_negative; /* in every seed */
} difference;

static difference subtract(const double *a, const double *b, int seeds)
{
    difference d = {0, true, true};
    for (int i = 0; i < seeds; i++) {
        double points = 100 * (a[i] - b[i]);
        d.mean += points / seeds;
        d.always_positive &= points > 0;
        d.always_negative &= points < 0;
    }
    return d;
}

outcome judge_learning_rate(panel *p)
{
    const grid *g = &p->grid[0];
    DETAIL(p, "Largest learning rate that trains: ");
    for (int i = 0; i < g->series; i++)
        DETAIL(p, "%s%s %s", i ? ", " : "", g->series_name[i], text_at(g, training_range(g, i).last));
    DETAIL(p, ".");
    int batch = training_range(g, find_series(g, NORM_BATCH)).last;
    int plain = training_range(g, find_series(g, NORM_NONE)).last;
    VERDICT(p, batch > plain ? "BatchNorm trains up to a learning rate of %s, the network without a norm up to %s."
                             : "BatchNorm trains up to a learning rate of %s, no further than without a norm (%s).",
            text_at(g, batch), text_at(g, plain));
    return batch > plain ? AS_EXPECTED : NOT_AS_EXPECTED;
}

outcome judge_batch_size(panel *p)
{
    const grid *g = &p->grid[0];
    bool collapses[NORM_KINDS] = {false};
    DETAIL(p, "Test accuracy at batch 2 against batch 64, in points: ");
    for (int i = 0; i < g->series; i++) {
        difference d = subtract(g->value[i][0][TEST_ACCURACY], g->value[i][g->xs - 1][TEST_ACCURACY], g->seeds);
        norm_kind kind = g->series_color[i];
        collapses[kind] = d.mean <= -5 && d.always_negative;
        DETAIL(p, "%s%s %+.1f", i ? ", " : "", g->series_name[i], d.mean);
        if (kind == NORM_BATCH || kind == NORM_LAYER || kind == NORM_GROUP)
            VERDICT(p, "%s%s %s (%+.1f points)", kind == NORM_BATCH ? "At batch size 2 " : ", ", norm_name(kind),
                    collapses[kind] ? "collapses" : "holds", d.mean);
    }
    DETAIL(p, ".");
    VERDICT(p, ".");
    if (!collapses[NORM_BATCH])
        return NOT_AS_EXPECTED;
    return collapses[NORM_LAYER] || collapses[NORM_GROUP] ? PARTLY_AS_EXPECTED : AS_EXPECTED;
}

outcome judge_initialisation(panel *p)
{
    const grid *g = &p->grid[0];
    range plain = training_range(g, find_series(g, NORM_NONE)), batch = training_range(g, find_series(g, NORM_BATCH));
    range layer = training_range(g, find_series(g, NORM_LAYER));
    DETAIL(p, "Scales that train, of %d: no norm %d, BatchNorm %d, LayerNorm %d.", g->xs, plain.count, batch.count,
           layer.count);
    char text[3][40];
    VERDICT(p, "Trains %s times He's scale with BatchNorm, %s with LayerNorm, %s without a norm.",
            range_text(g, batch, text[0]), range_text(g, layer, text[1]), range_text(g, plain, text[2]));
    return all_parts((batch.count > plain.count) + (layer.count > plain.count), 2);
}

static int lowest_loss(const grid *g, int series)
{
    int best = 0;
    for (int x = 1; x < g->xs; x++)
        if (mean_of(g, series, x, TEST_LOSS) < mean_of(g, series, best, TEST_LOSS))
            best = x;
    return best;
}

/* Train minus test accuracy of one seed, in points. */
static double gap(const grid *g, int series, int x, int seed)
{
    return 100 * (g->value[series][x][TRAIN_ACCURACY][seed] - g->value[series][x][TEST_ACCURACY][seed]);
}

outcome judge_dropout(panel *p)
{
    const grid *drop = &p->grid[0], *decay = &p->grid[1];
    bool closes = true, falls = true;
    double before[2] = {0}, after[2] = {0};
    int best[2], most = drop->xs - 1;
    for (int i = 0; i < 2; i++) {
        best[i] = lowest_loss(drop, i);
        for (int seed = 0; seed < drop->seeds; seed++) {
            double without = gap(drop, i, 0, seed), with = gap(drop, i, most, seed);
            before[i] += without / drop->seeds;
            after[i] += with / drop->seeds;
            closes &= with < without;
            falls &= drop->value[i][best[i]][TEST_LOSS][seed] < drop->value[i][0][TEST_LOSS][seed];
        }
        int decayed = lowest_loss(decay, i);
        DETAIL(p, "%s: test loss %.2f without dropout, lowest %.2f at p = %s; weight decay's lowest %.2f at %s. ",
               drop->series_name[i], mean_of(drop, i, 0, TEST_LOSS), mean_of(drop, i, best[i], TEST_LOSS),
               text_at(drop, best[i]), mean_of(decay, i, decayed, TEST_LOSS), text_at(decay, decayed));
    }
    VERDICT(p, "p = 0.5 %s the train-test gap (%.0f to %.0f points, with BatchNorm %.0f to %.0f); test loss is lowest at "
            "p = %s, with BatchNorm at %s.", closes ? "closes" : "does not always close", before[0], after[0], before[1],
            after[1], text_at(drop, best[0]), text_at(drop, best[1]));
    DETAIL(p, "Test loss %s; BatchNorm needs %s dropout.", falls ? "falls" : "does not fall in every seed",
           best[1] < best[0] ? "less" : best[1] == best[0] ? "as much" : "more");
    return all_parts(closes + falls + (best[1] < best[0]), 3);
}

outcome judge_instancenorm(panel *p)
{
    const grid *g = &p->grid[0];
    double lost[MAX_SERIES][MAX_SEEDS], mean[MAX_SERIES] = {0};
    int last = g->xs - 1, instance = find_series(g, NORM_INSTANCE), batch = find_series(g, NORM_BATCH);
    DETAIL(p, "Points of accuracy lost from strength 0 to 1: ");
    for (int i = 0; i < g->series; i++) {
        for (int seed = 0; seed < g->seeds; seed++)
            lost[i][seed] = g->value[i][0][TEST_ACCURACY][seed] - g->value[i][last][TEST_ACCURACY][seed];
        mean[i] = 100 * (mean_of(g, i, 0, TEST_ACCURACY) - mean_of(g, i, last, TEST_ACCURACY));
        DETAIL(p, "%s%s %.1f", i ? ", " : "", g->series_name[i], mean[i]);
    }
    DETAIL(p, ".");
    difference d = subtract(lost[batch], lost[instance], g->seeds);
    VERDICT(p, "With contrast and brightness changed one by one InstanceNorm loses %.1f points, BatchNorm %.1f.",
            mean[instance], mean[batch]);
    return d.mean >= 5 && d.always_positive ? AS_EXPECTED : NOT_AS_EXPECTED;
}

outcome judge_running_statistics(panel *p)
{
    enum { RUNNING, BATCH, EARLY = 0, END = 1 };
    difference d[2][MAX_X] = {{{0}}};
    const grid *g = &p->grid[END];
    int usual = 0, worst = 0;
    for (int when = EARLY; when <= END; when++)
        for (int x = 0; x < g->xs; x++)
            d[when][x] = subtract(p->grid[when].value[RUNNING][x][TEST_ACCURACY],
                                  p->grid[when].value[BATCH][x][TEST_ACCURACY], g->seeds);
    for (int x = 0; x < g->xs; x++) {
        usual = g->x[x] == DEFAULT_MOMENTUM ? x : usual;
        worst = d[END][x].mean < d[END][worst].mean ? x : worst;
    }
    bool lags = d[EARLY][0].mean <= -2 && d[EARLY][0].always_negative, agrees = fabs(d[END][usual].mean) <= 2;
    VERDICT(p, "Momentum %s %s after 40 steps (%+.1f points against batch statistics); %s %s at the end (%+.1f).",
            text_at(g, 0), lags ? "lags" : "does not lag", d[EARLY][0].mean, text_at(g, usual),
            agrees ? "agrees" : "does not agree", d[END][usual].mean);
    for (int when = EARLY; when <= END; when++) {
        DETAIL(p, "%s", when ? "; at the end: " : "Running minus batch statistics in points, after 40 steps: ");
        for (int x = 0; x < g->xs; x++)
            DETAIL(p, "%s%+.1f at %s", x ? ", " : "", d[when][x].mean, text_at(g, x));
    }
    DETAIL(p, ". Worst at the end: %s.", text_at(g, worst));
    return all_parts(lags + agrees, 2);
}
