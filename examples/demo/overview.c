/* The whole run as one picture: six plots with their verdicts, an SVG that follows the viewer's light or dark. */
#include "report.h"

#include <string.h>

enum { COLUMNS = 3, CELL_WIDTH = 400, CELL_HEIGHT = 396, MARGIN = 24, HEAD = 96, PLOT_HEIGHT = 250, FOOT = 40 };

/* Breaks the text into lines of at most `most` characters, which the SVG itself cannot do. */
static void write_wrapped(FILE *o, const char *text, int x, int y, int most)
{
    while (*text) {
        size_t take = strlen(text);
        if (take > (size_t)most) {
            take = (size_t)most;
            while (take > 1 && text[take] != ' ')
                take--;
        }
        char line[128];
        snprintf(line, sizeof line, "%.*s", (int)take, text);
        fprintf(o, "<text class=\"say\" x=\"%d\" y=\"%d\">", x, y);
        text_escaped(o, line);
        fputs("</text>\n", o);
        text += take;
        text += *text == ' ';
        y += 17;
    }
}

static void write_cell(FILE *o, const panel *p, int column, int row)
{
    int left = MARGIN + column * (CELL_WIDTH + MARGIN), top = HEAD + row * (CELL_HEIGHT + MARGIN);
    fprintf(o, "<g transform=\"translate(%d %d)\"><rect width=\"%d\" height=\"%d\" rx=\"14\" class=\"card\"/>"
               "<text class=\"head\" x=\"18\" y=\"31\">%s</text><text class=\"%s\" x=\"%d\" y=\"31\" text-anchor=\"end\">%s "
               "%s</text>\n", left, top, CELL_WIDTH, CELL_HEIGHT, p->title, p->outcome == AS_EXPECTED ? "good" : "other",
            CELL_WIDTH - 18, outcome_mark[p->outcome], outcome_text[p->outcome]);
    fprintf(o, "<text class=\"tick\" x=\"18\" y=\"51\">%s%s</text><g transform=\"translate(10 62)\">", p->plot[0].title,
            p->plot[0].dashed >= 0 ? " (dashed: training images)" : "");
    plot_draw(o, &p->grid[p->plot[0].grid], &p->plot[0], CELL_WIDTH - 16, PLOT_HEIGHT, true);
    fputs("</g>\n", o);
    write_wrapped(o, p->verdict, 18, 62 + PLOT_HEIGHT + 24, 52);
    fputs("</g>\n", o);
}

void overview_write(const char *path, const settings *s, const run_facts *facts)
{
    int shown = 0;
    for (int n = 0; n < PANELS; n++)
        shown += panels[n].grids > 0;
    int rows = (shown + COLUMNS - 1) / COLUMNS;
    int width = MARGIN + COLUMNS * (CELL_WIDTH + MARGIN), height = HEAD + rows * (CELL_HEIGHT + MARGIN) + FOOT;
    FILE *o = file_create(NULL, path);
    fprintf(o, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\"><title>What each "
               "layer is for: %lld trainings on Fashion-MNIST</title><style>\n", width, height, width, height,
            (long long)facts->runs);
    plot_style(o);
    fputs(".page{fill:var(--page)}.card{fill:var(--card);stroke:var(--rule)}.head{font-size:19px;font-weight:700;"
          "fill:var(--ink)}.title{font-size:27px;font-weight:700;fill:var(--ink)}.say{font-size:13.5px;fill:var(--ink)}"
          ".sub{font-size:15px;fill:var(--soft)}.good,.other{font-size:13px;font-weight:600}.good{fill:var(--good)}"
          ".other{fill:var(--other)}\n</style>", o);
    fprintf(o, "<rect class=\"page\" width=\"%d\" height=\"%d\" rx=\"18\"/><text class=\"title\" x=\"%d\" y=\"48\">What each "
               "layer is for</text><text class=\"sub\" x=\"%d\" y=\"75\">%lld small networks trained on Fashion-MNIST in "
               "%.0f s of processor time; lines are means, bands the range over %d seeds</text>\n", width, height, MARGIN + 4,
            MARGIN + 4, (long long)facts->runs, facts->processor_seconds, s->seeds);
    for (int n = 0, at = 0; n < PANELS; n++)
        if (panels[n].grids) {
            write_cell(o, &panels[n], at % COLUMNS, at / COLUMNS);
            at++;
        }
    fprintf(o, "<text class=\"sub\" x=\"%d\" y=\"%d\" style=\"font-size:13px\">welford %s, %s, ", MARGIN + 4, height - 22,
            facts->version, facts->backend);
    text_escaped(o, facts->machine);
    fputs("</text></svg>\n", o);
    file_finish(o, path);
}
