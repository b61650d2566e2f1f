/* svg.c - pictures of a run: for each network the rate of every row as a bar, beside its peers' and that of a copy of as many
 * bytes; and all rates over size. */
#include <math.h>
#include <string.h>

#include "bench.h"

enum { WIDTH = 860, LEFT = 290, RIGHT = 80, BAR = 18, HEIGHT = 440 };

static const char *color_of(Op op)
{
    static const char *const colors[NORM_COUNT] = { "#2563ae", "#7a3fa0", "#1f8a70", "#c2571a", "#b0324b", "#6b6f76" };
    return colors[op_norm(op)];
}

static void print_escaped(FILE *file, const char *text)
{
    for (; *text; text++)
        fprintf(file, *text == '<' ? "&lt;" : *text == '&' ? "&amp;" : "%c", *text);
}

static void text(FILE *file, double x, double y, const char *anchor, const char *fill, const char *what)
{
    fprintf(file, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" fill=\"%s\">", x, y, anchor, fill);
    print_escaped(file, what);
    fprintf(file, "</text>\n");
}

/* With the environment: in short at the lower edge, all of it as the picture's description. */
static void begin(FILE *file, const Run *run, int height, const char *title)
{
    fprintf(file, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" "
            "font-family=\"system-ui, sans-serif\" font-size=\"11\">\n<desc>", WIDTH, height, WIDTH, height);
    print_escaped(file, run->environment);
    fprintf(file, "</desc>\n<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n"
            "<text x=\"16\" y=\"24\" font-size=\"15\" font-weight=\"600\" fill=\"#222\">%s</text>\n", title);
    text(file, WIDTH - 16, height - 8, "end", "#888", run->caption);
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

/* Peers' dots; welford is the bar. */
static const char *peer_color(const char *name)
{
    static const char *const colors[] = { "#e3a008", "#0e9f9a", "#d6409f", "#4d7c0f", "#7c2d12" };
    int i = 0;
    while (all_peers[i] && strcmp(all_peers[i]->name, name))
        i++;
    return colors[i % 5];
}

static void write_peers(FILE *file, const Result *r, double scale, int y)
{
    for (int k = 1; k < r->contestants; k++)
        fprintf(file, "<circle cx=\"%.1f\" cy=\"%d\" r=\"4.5\" fill=\"%s\" stroke=\"#fff\"><title>%s</title></circle>\n",
                LEFT + r->traffic.bytes / (r->who[0].timing.median * r->who[k].ratio) * 1e-9 * scale, y + BAR / 2,
                peer_color(r->who[k].name), r->who[k].name);
}

static void write_legend(FILE *file, const Run *run, const char *network)
{
    int x = LEFT;
    for (int p = 0; all_peers[p]; p++) {
        bool there = false;
        for (int i = 0; i < run->results; i++)
            for (int k = 1; k < run->result[i].contestants && !strcmp(run->result[i].row->suite, network); k++)
                there |= !strcmp(run->result[i].who[k].name, all_peers[p]->name);
        if (!there)
            continue;
        fprintf(file, "<circle cx=\"%d\" cy=\"40\" r=\"4.5\" fill=\"%s\"/>\n", x, peer_color(all_peers[p]->name));
        text(file, x + 8, 44, "start", "#333", all_peers[p]->name);
        x += 90;
    }
}

static void write_bars(FILE *file, const Run *run, const char *network)
{
    int rows = 0;
    for (int i = 0; i < run->results; i++)
        rows += run->result[i].verdict == TIMED && !strcmp(run->result[i].row->suite, network);
    const int bottom = 60 + rows * (BAR + 4);
    const double most = largest_rate(run), scale = (WIDTH - LEFT - RIGHT) / most, tick = tick_of(most, 6);
    char title[160];
    snprintf(title, sizeof title, "%s: GB/s per row; the line on a bar is a copy of as many bytes", network);
    begin(file, run, bottom + 44, title);
    write_legend(file, run, network);
    for (double v = 0; v <= most; v += tick) {
        char label[32];
        snprintf(label, sizeof label, "%g", v);
        fprintf(file, "<path d=\"M%.1f 52V%d\" stroke=\"#e3e5e8\"/>\n", LEFT + v * scale, bottom);
        text(file, LEFT + v * scale, bottom + 16, "middle", "#666", label);
    }
    for (int i = 0, y = 56; i < run->results; i++) {
        const Result *r = &run->result[i];
        if (r->verdict != TIMED || strcmp(r->row->suite, network))
            continue;
        char label[128];
        const double rate = result_rate(r, 0) * 1e-9, roof = r->roof * 1e-9;
        snprintf(label, sizeof label, "%s  %s %s%s", r->row->name, op_name(r->row->c.op), dtype_name(r->row->c.x),
                 r->row->c.layout == WF_NHWC ? " nhwc" : "");
        text(file, LEFT - 8, y + 13, "end", "#222", label);
        fprintf(file, "<rect x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\" rx=\"2\" fill=\"%s\"/>\n", LEFT, y, rate * scale, BAR,
                color_of(r->row->c.op));
        fprintf(file, "<path d=\"M%.1f %dv%d\" stroke=\"#111\" stroke-width=\"2\"/>\n", LEFT + roof * scale, y - 1, BAR + 2);
        write_peers(file, r, scale, y);
        snprintf(label, sizeof label, "%.0f %%", 100 * rate / roof);
        text(file, LEFT + (rate > roof ? rate : roof) * scale + 6, y + 13, "start", "#444", label);
        y += BAR + 4;
    }
    fprintf(file, "</svg>\n");
}

typedef struct Axes { double low, high, most; } Axes; /* log2 of bytes; GB/s */

static double x_of(const Axes *a, double bytes) { return 60 + (log2(bytes) - a->low) / (a->high - a->low) * (WIDTH - 90); }
static double y_of(const Axes *a, double gbs) { return HEIGHT - 60 - gbs / a->most * (HEIGHT - 120); }

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
    begin(file, run, HEIGHT, "GB/s over the bytes that a call must move; the line is a copy");
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
        text(file, x_of(&a, exp2(k)), HEIGHT - 40, "middle", "#666", label);
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

static FILE *open_picture(const char *folder, const char *name)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s.svg", folder, name);
    return fopen(path, "w");
}

bool svg_write(const Run *run, const char *folder)
{
    FILE *file = open_picture(folder, "sizes");
    if (!file)
        return false;
    write_sizes(file, run);
    fclose(file);
    for (int i = 0; i < run->results; i++) {
        const char *network = run->result[i].row->suite;
        int first = 0;
        while (strcmp(run->result[first].row->suite, network))
            first++;
        if (first < i)
            continue;
        if (!(file = open_picture(folder, network)))
            return false;
        write_bars(file, run, network);
        fclose(file);
    }
    return true;
}
