/* svg.c - two pictures of a run: the rate of every row as a bar beside a copy of as many bytes, and rates over size. */
#include <math.h>
#include <string.h>

#include "bench.h"

enum { WIDTH = 860, LEFT = 300, RIGHT = 70, BAR = 18, HEIGHT = 420 };

static const char *color_of(Op op)
{
    static const char *const colors[NORM_COUNT] = { "#2563ae", "#7a3fa0", "#1f8a70", "#c2571a", "#b0324b", "#6b6f76" };
    return colors[op_norm(op)];
}

static void begin(FILE *file, int width, int height, const char *title)
{
    fprintf(file, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" "
            "font-family=\"system-ui, sans-serif\" font-size=\"11\">\n"
            "<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n"
            "<text x=\"16\" y=\"24\" font-size=\"15\" font-weight=\"600\" fill=\"#222\">%s</text>\n", width, height,
            width, height, title);
}

static void text(FILE *file, double x, double y, const char *anchor, const char *fill, const char *what)
{
    fprintf(file, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" fill=\"%s\">%s</text>\n", x, y, anchor, fill, what);
}

/* 1, 2 or 5 times a power of ten, so that about `ticks` of them make up the range. */
static double tick_of(double range, int ticks)
{
    const double rough = range / ticks, power = pow(10, floor(log10(rough)));
    return power * (rough / power < 2 ? 2 : rough / power < 5 ? 5 : 10);
}

static double largest_rate(const Run *run)
{
    double most = roofline_peak(&run->roof);
    for (int i = 0; i < run->results; i++)
        if (run->result[i].verdict == TIMED && result_rate(&run->result[i], 0) > most)
            most = result_rate(&run->result[i], 0);
    return most * 1e-9;
}

static const char *title_of(const Run *run, const char *what)
{
    static char title[256];
    snprintf(title, sizeof title, "%s, %s, %s", what, run->options->backend == WF_CUDA ? "CUDA" : "CPU",
             run->options->cold ? "cold" : "warm");
    return title;
}

static void write_bars(FILE *file, const Run *run)
{
    int rows = 0;
    for (int i = 0; i < run->results; i++)
        rows += run->result[i].verdict == TIMED;
    const int bottom = 50 + rows * (BAR + 4);
    const double most = largest_rate(run), scale = (WIDTH - LEFT - RIGHT) / most, tick = tick_of(most, 6);
    begin(file, WIDTH, bottom + 34, title_of(run, "GB/s per row; the line on a bar is a copy of as many bytes"));
    for (double v = 0; v <= most; v += tick) {
        char label[32];
        snprintf(label, sizeof label, "%g", v);
        fprintf(file, "<path d=\"M%.1f 40V%d\" stroke=\"#e3e5e8\"/>\n", LEFT + v * scale, bottom);
        text(file, LEFT + v * scale, bottom + 16, "middle", "#666", label);
    }
    for (int i = 0, y = 46; i < run->results; i++) {
        const Result *r = &run->result[i];
        if (r->verdict != TIMED)
            continue;
        char label[128];
        const double rate = result_rate(r, 0) * 1e-9, roof = r->roof * 1e-9;
        snprintf(label, sizeof label, "%s  %s %s%s", r->row->name, op_name(r->row->c.op), dtype_name(r->row->c.x),
                 r->row->c.layout == WF_NHWC ? " nhwc" : "");
        text(file, LEFT - 8, y + 13, "end", "#222", label);
        fprintf(file, "<rect x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\" rx=\"2\" fill=\"%s\"/>\n", LEFT, y, rate * scale, BAR,
                color_of(r->row->c.op));
        fprintf(file, "<path d=\"M%.1f %dv%d\" stroke=\"#111\" stroke-width=\"2\"/>\n", LEFT + roof * scale, y - 1, BAR + 2);
        snprintf(label, sizeof label, "%.0f %%", 100 * rate / roof);
        text(file, LEFT + (rate > roof ? rate : roof) * scale + 6, y + 13, "start", "#444", label);
        y += BAR + 4;
    }
    fprintf(file, "</svg>\n");
}

typedef struct Axes { double low, high, most; } Axes; /* log2 of bytes; GB/s */

static double x_of(const Axes *a, double bytes) { return 60 + (log2(bytes) - a->low) / (a->high - a->low) * (WIDTH - 90); }
static double y_of(const Axes *a, double gbs) { return HEIGHT - 40 - gbs / a->most * (HEIGHT - 90); }

static void write_sizes(FILE *file, const Run *run)
{
    Axes a = { 60, 0, largest_rate(run) * 1.05 };
    for (int i = 0; i < run->roof.points; i++) {
        a.low = fmin(a.low, log2(run->roof.bytes[i]));
        a.high = fmax(a.high, log2(run->roof.bytes[i]));
    }
    for (int i = 0; i < run->results; i++) {
        a.low = fmin(a.low, floor(log2(run->result[i].traffic.bytes)));
        a.high = fmax(a.high, ceil(log2(run->result[i].traffic.bytes)));
    }
    begin(file, WIDTH, HEIGHT, title_of(run, "GB/s over the bytes that a call must move; the line is a copy"));
    for (double v = 0, tick = tick_of(a.most, 6); v <= a.most; v += tick) {
        char label[32];
        snprintf(label, sizeof label, "%g", v);
        fprintf(file, "<path d=\"M60 %.1fH%d\" stroke=\"#e3e5e8\"/>\n", y_of(&a, v), WIDTH - 30);
        text(file, 54, y_of(&a, v) + 4, "end", "#666", label);
    }
    for (double k = ceil(a.low); k <= a.high; k += 2) {
        char label[32];
        const char *const units[] = { "B", "KB", "MB", "GB" };
        snprintf(label, sizeof label, "%g %s", exp2(fmod(k, 10)), units[(int)k / 10 < 3 ? (int)k / 10 : 3]);
        text(file, x_of(&a, exp2(k)), HEIGHT - 22, "middle", "#666", label);
    }
    fprintf(file, "<path fill=\"none\" stroke=\"#111\" stroke-width=\"1.5\" d=\"");
    for (double k = a.low; k <= a.high; k += 0.125)
        fprintf(file, "%c%.1f %.1f", k > a.low ? 'L' : 'M', x_of(&a, exp2(k)), y_of(&a, roofline_at(&run->roof, exp2(k)) * 1e-9));
    fprintf(file, "\"/>\n");
    for (int i = 0; i < run->results; i++) {
        const Result *r = &run->result[i];
        char line[CASE_SIZE];
        if (r->verdict == TIMED)
            fprintf(file, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\" fill=\"%s\" fill-opacity=\"%s\"><title>%s</title></circle>\n",
                    x_of(&a, r->traffic.bytes), y_of(&a, result_rate(r, 0) * 1e-9), color_of(r->row->c.op),
                    op_is_backward(r->row->c.op) ? ".45" : ".95", case_print(&r->row->c, line));
    }
    static const char *const names[NORM_COUNT] = { "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm", "BatchNorm", "dropout" };
    static const Op of[NORM_COUNT] = { LAYERNORM_FORWARD, RMSNORM_FORWARD, GROUPNORM_FORWARD, INSTANCENORM_TRAIN,
                                       BATCHNORM_TRAIN, DROPOUT_FORWARD };
    for (int i = 0; i < NORM_COUNT; i++) {
        fprintf(file, "<circle cx=\"%d\" cy=\"38\" r=\"4\" fill=\"%s\"/>\n", 20 + i * 105, color_of(of[i]));
        text(file, 28 + i * 105, 42, "start", "#333", names[i]);
    }
    text(file, 28 + NORM_COUNT * 105, 42, "start", "#333", "paler: backward");
    fprintf(file, "</svg>\n");
}

bool svg_write(const Run *run, const char *folder)
{
    static const struct { const char *name; void (*write)(FILE *, const Run *); } pictures[] = {
        { "bars.svg", write_bars }, { "sizes.svg", write_sizes }
    };
    for (int i = 0; i < 2; i++) {
        char path[512];
        snprintf(path, sizeof path, "%s/%s", folder, pictures[i].name);
        FILE *file = fopen(path, "w");
        if (!file)
            return false;
        pictures[i].write(file, run);
        fclose(file);
    }
    return true;
}
