/* Line plots as SVG: the mean over the seeds as a line, their range as a band. */
#include "report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Where data meets the drawing. */
typedef struct frame {
    const grid *grid;
    double left, right, top, bottom; /* of the plotting area               */
    double low, high, step;          /* of the y axis, in the shown unit   */
    double unit;                     /* shown = unit * stored: 100 for %   */
} frame;

static bool is_accuracy(metric m)
{
    return m == TEST_ACCURACY || m == TRAIN_ACCURACY;
}

static double x_value(const grid *g, int x)
{
    return g->log_x ? log(g->x[x]) : g->x[x];
}

static double place_x(const frame *f, int x)
{
    double first = x_value(f->grid, 0), last = x_value(f->grid, f->grid->xs - 1), inset = 12;
    double part = (x_value(f->grid, x) - first) / (last - first);
    return f->left + inset + part * (f->right - f->left - 2 * inset);
}

static double place_y(const frame *f, double stored)
{
    double part = (f->unit * stored - f->low) / (f->high - f->low);
    return f->bottom - fmin(fmax(part, 0), 1) * (f->bottom - f->top);
}

/* Round limits and step around all that will be drawn. */
static void choose_y_axis(frame *f, const plot *p)
{
    static const double steps[] = {.05, .1, .2, .5, 1, 2, 5, 10, 20, 50, 100, 1000, 1e4, 1e6};
    double low = INFINITY, high = -INFINITY;
    for (int i = 0; i < f->grid->series; i++)
        for (int x = 0; x < f->grid->xs; x++)
            for (int which = 0; which < 2; which++) {
                if (which && p->dashed < 0)
                    continue;
                spread s = grid_spread(f->grid, i, x, which ? (metric)p->dashed : p->solid);
                if (s.count) {
                    low = fmin(low, f->unit * s.min);
                    high = fmax(high, f->unit * s.max);
                }
            }
    if (low > high)
        low = 0, high = 1;
    size_t k = 0;
    while (k + 1 < sizeof steps / sizeof *steps && (high - low) / steps[k] > 5)
        k++;
    f->step = steps[k];
    f->low = f->step * floor(low / f->step);
    f->high = f->step * ceil(high / f->step);
    if (f->high == f->low)
        f->high += f->step;
}

static void draw_axes(FILE *o, const frame *f)
{
    for (double y = f->low; y <= f->high + f->step / 2; y += f->step) {
        double at = f->bottom - (y - f->low) / (f->high - f->low) * (f->bottom - f->top);
        fprintf(o, "<path class=\"grid\" d=\"M%.1f %.1fH%.1f\"/><text class=\"tick\" x=\"%.1f\" y=\"%.1f\" "
                   "text-anchor=\"end\">%g%s</text>\n", f->left, at, f->right, f->left - 7, at + 4,
                round(y * 1000) / 1000, f->unit == 100 ? "%" : "");
    }
    for (int x = 0; x < f->grid->xs; x++)
        fprintf(o, "<text class=\"tick\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s</text>\n", place_x(f, x),
                f->bottom + 17, f->grid->x_text[x]);
    fprintf(o, "<text class=\"tick\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s</text>\n",
            (f->left + f->right) / 2, f->bottom + 34, f->grid->x_name);
}

/* A shape of its own for each color, for eyes that do not tell them apart. */
static void draw_marker(FILE *o, norm_kind color, double x, double y)
{
    static const char *const shapes[NORM_KINDS] = {
        "M-3.4-3.4L3.4 3.4M-3.4 3.4L3.4-3.4", "M-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0-7.2 0", "M-3.3-3.3h6.6v6.6h-6.6z",
        "M0-4.4L4.4 0L0 4.4L-4.4 0z", "M0-4.2L4 3.2H-4z", "M0 4.2L4-3.2H-4z"};
    fprintf(o, "<path class=\"k%d f%d\" transform=\"translate(%.1f %.1f)\" stroke-width=\"1.5\" d=\"%s\"/>", color,
            color, x, y, shapes[color]);
}

static void draw_band(FILE *o, const frame *f, int series, metric m)
{
    const grid *g = f->grid;
    int end = g->xs - g->apart;
    bool begun = false;
    for (int side = 0; side < 2; side++)
        for (int k = 0; k < end; k++) {
            int x = side ? end - 1 - k : k;
            spread s = grid_spread(g, series, x, m);
            if (!s.count)
                continue;
            if (!begun)
                fprintf(o, "<path class=\"f%d band\" d=\"M", g->series_color[series]);
            fprintf(o, "%s%.1f %.1f", begun ? "L" : "", place_x(f, x), place_y(f, side ? s.min : s.max));
            begun = true;
        }
    if (begun)
        fputs("z\"/>\n", o);
}

static void draw_points(FILE *o, const frame *f, int series, metric m)
{
    const grid *g = f->grid;
    for (int x = 0; x < g->xs; x++) {
        spread s = grid_spread(g, series, x, m);
        if (!s.count)
            continue;
        bool percent = is_accuracy(m);
        double at_x = place_x(f, x), at_y = place_y(f, s.mean);
        fprintf(o, "<g><path class=\"k%d\" d=\"M%.1f %.1fV%.1f\"/>", g->series_color[series], at_x, place_y(f, s.min),
                place_y(f, s.max));
        draw_marker(o, g->series_color[series], at_x, at_y);
        fprintf(o, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"10\" fill=\"transparent\"><title>%s, %s %s\n%s %.*f%s, from %.*f "
                   "to %.*f in %d seeds</title></circle></g>\n", at_x, at_y, g->series_name[series], g->x_name,
                g->x_text[x], metric_name[m], percent ? 1 : 3, f->unit * s.mean, percent ? "%" : "", percent ? 1 : 3,
                f->unit * s.min, percent ? 1 : 3, f->unit * s.max, s.count);
    }
}

static void draw_line(FILE *o, const frame *f, int series, metric m, bool dashed)
{
    const grid *g = f->grid;
    char command = 'M';
    if (!dashed)
        draw_band(o, f, series, m);
    fprintf(o, "<path class=\"k%d line%s\" d=\"", g->series_color[series], dashed ? " dashed" : "");
    for (int x = 0; x < g->xs - g->apart; x++) {
        spread s = grid_spread(g, series, x, m);
        if (s.count) {
            fprintf(o, "%c%.1f %.1f", command, place_x(f, x), place_y(f, s.mean));
            command = 'L';
        }
    }
    fputs(command == 'L' ? "\"/>\n" : "M0 0\"/>\n", o);
    draw_points(o, f, series, m);
}

typedef struct label {
    double y;
    int series;
} label;

static int by_y(const void *a, const void *b)
{
    double d = ((const label *)a)->y - ((const label *)b)->y;
    return (d > 0) - (d < 0);
}

/* Names at the lines' ends, moved apart where they would overlap. */
static void draw_names(FILE *o, const frame *f, metric m)
{
    enum { APART = 15 };
    label labels[MAX_SERIES];
    int count = 0;
    for (int i = 0; i < f->grid->series; i++) {
        spread s = grid_spread(f->grid, i, f->grid->xs - 1, m);
        labels[count++] = (label){s.count ? place_y(f, s.mean) : f->bottom, i};
    }
    qsort(labels, (size_t)count, sizeof *labels, by_y);
    for (int k = 1; k < count; k++)
        labels[k].y = fmax(labels[k].y, labels[k - 1].y + APART);
    double over = labels[count - 1].y - f->bottom;
    for (int k = count - 1; k >= 0 && over > 0; k--) {
        labels[k].y -= over;
        over = k > 0 ? labels[k - 1].y + APART - labels[k].y : 0;
    }
    for (int k = 0; k < count; k++)
        fprintf(o, "<text class=\"name n%d\" x=\"%.1f\" y=\"%.1f\">%s</text>\n",
                f->grid->series_color[labels[k].series], f->right + 4, labels[k].y + 4,
                f->grid->series_name[labels[k].series]);
}

void plot_draw(FILE *o, const grid *g, const plot *p, int width, int height, bool names)
{
    frame f = {.grid = g, .left = 44, .right = width - (names ? 118 : 6), .top = 10, .bottom = height - 42,
               .unit = is_accuracy(p->solid) ? 100 : 1};
    choose_y_axis(&f, p);
    draw_axes(o, &f);
    for (int i = 0; i < g->series; i++) {
        if (p->dashed >= 0)
            draw_line(o, &f, i, (metric)p->dashed, true);
        draw_line(o, &f, i, p->solid, false);
    }
    if (names)
        draw_names(o, &f, p->solid);
}

void plot_style(FILE *o)
{
    static const char *const light[NORM_KINDS] = {"#6b7280", "#2563eb", "#15803d", "#c2690a", "#9333ea", "#d6246e"};
    static const char *const dark[NORM_KINDS] = {"#a3acb8", "#6ea8fe", "#4ade80", "#fbb24a", "#c69bfb", "#fb7eb1"};
    fputs(":root{color-scheme:light dark;--page:#f6f7f9;--card:#ffffff;--ink:#16191d;--soft:#5b6470;--rule:#e3e6ea;"
          "--good:#15803d;--other:#b45309", o);
    for (int i = 0; i < NORM_KINDS; i++)
        fprintf(o, ";--c%d:%s", i, light[i]);
    fputs("}\n@media(prefers-color-scheme:dark){:root{--page:#0f1216;--card:#171b21;--ink:#e8ebef;--soft:#9aa4b0;"
          "--rule:#2a3038;--good:#4ade80;--other:#fbb24a", o);
    for (int i = 0; i < NORM_KINDS; i++)
        fprintf(o, ";--c%d:%s", i, dark[i]);
    fputs("}}\n", o);
    for (int i = 0; i < NORM_KINDS; i++)
        fprintf(o, ".k%d{stroke:var(--c%d)}.f%d,.n%d{fill:var(--c%d)}", i, i, i, i, i);
    fputs("\n.line{fill:none;stroke-width:2;stroke-linejoin:round}.dashed{stroke-dasharray:5 4}.band{fill-opacity:.13}"
          ".grid{stroke:var(--rule);stroke-width:1}.tick{fill:var(--soft);font-size:12px}"
          ".name{font-size:13px;font-weight:600}\n"
          "svg text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif}\n", o);
}

const char *const outcome_mark[AS_EXPECTED + 1] = {"&#8800;", "&#8776;", "&#10003;"};

void text_escaped(FILE *o, const char *text)
{
    for (; *text; text++)
        switch (*text) {
        case '&': fputs("&amp;", o); break;
        case '<': fputs("&lt;", o); break;
        case '>': fputs("&gt;", o); break;
        case '"': fputs("&quot;", o); break;
        default: fputc(*text, o);
        }
}
