/* demo.html: everything of a run on one page that needs nothing beside it. */
#include "report.h"
#include "selfcheck.h"

#include <math.h>
#include <string.h>

static const char page_style[] =
    "*{box-sizing:border-box}html{scroll-behavior:smooth}\n"
    "body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,'Segoe UI',Roboto,"
    "'Helvetica Neue',Arial,sans-serif}\n"
    "main{max-width:1080px;margin:0 auto;padding:40px 20px 60px}\n"
    "h1{font-size:34px;line-height:1.15;letter-spacing:-.02em;margin:0 0 10px}h2{font-size:23px;letter-spacing:-.01em;"
    "margin:0}h3{font-size:15px;margin:0 0 6px}p{margin:0 0 10px}a{color:inherit}\n"
    ".lead{font-size:18px;color:var(--soft);max-width:46em}.soft{color:var(--soft)}.small{font-size:13.5px}\n"
    ".strip{display:flex;flex-wrap:wrap;gap:6px;margin:22px 0}.strip figure{margin:0;text-align:center;font-size:12px;"
    "color:var(--soft)}.strip img{width:64px;height:64px;border-radius:6px;display:block;image-rendering:pixelated}\n"
    ".cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:14px;margin:26px 0 34px}\n"
    ".card,section{background:var(--card);border:1px solid var(--rule);border-radius:14px}\n"
    ".card{padding:16px 18px;text-decoration:none;display:block}.card:hover{border-color:var(--soft)}"
    ".card b{display:block;font-size:16px;margin-bottom:4px}.card span{display:block;font-size:14px;line-height:1.45}\n"
    ".badge{font-size:12.5px!important;font-weight:600;margin-top:8px}.good{color:var(--good)}.other{color:var(--other)}\n"
    "section{padding:26px 28px;margin:0 0 22px}.verdict{font-size:18px;font-weight:600;line-height:1.4;margin:14px 0 4px;"
    "padding-left:14px;border-left:4px solid var(--good)}.verdict.other{border-color:var(--other);color:inherit}\n"
    ".plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(440px,100%),1fr));gap:18px 26px;margin:18px 0}"
    ".plots.one{grid-template-columns:1fr}svg{width:100%;height:auto;display:block}\n"
    "details{margin-top:10px}summary{cursor:pointer;color:var(--soft);font-size:14px}\n"
    ".wide{overflow-x:auto}table{border-collapse:collapse;font-size:13.5px;margin:12px 0;font-variant-numeric:tabular-nums;"
    "width:100%}th,td{padding:5px 10px;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap}"
    "th:first-child,td:first-child{text-align:left}th{font-weight:600;color:var(--soft)}caption{text-align:left;"
    "font-weight:600;padding:4px 0}td small{color:var(--soft)}\n"
    "dl{display:grid;grid-template-columns:max-content 1fr;gap:3px 14px;margin:12px 0 0;font-size:14px}dt{color:var(--soft)}"
    "dd{margin:0}\n"
    "@media(max-width:560px){section{padding:20px 16px}h1{font-size:27px}dl{grid-template-columns:1fr}dt{margin-top:6px}}\n";

static void write_image(FILE *o, const uint8_t *pixels, const char *caption)
{
    fputs("<figure><img alt=\"\" src=\"", o);
    png_data_uri(o, pixels, IMAGE_SIDE, IMAGE_SIDE);
    fprintf(o, "\">%s</figure>", caption);
}

static void write_head(FILE *o, const settings *s, const run_facts *facts)
{
    fputs("<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
          "content=\"width=device-width,initial-scale=1\"><title>welford: what each layer is for</title><style>\n", o);
    plot_style(o);
    fputs(page_style, o);
    fprintf(o, "</style></head><body><main><h1>What each layer is for</h1><p class=\"lead\">Normalization and dropout at "
               "work on Fashion-MNIST: %lld small networks trained in %.0f seconds (%.0f of processor time)%s%s by welford "
               "%s, every norm and dropout through its public calls%s.</p>", (long long)facts->runs, facts->wall_seconds,
            facts->processor_seconds, *facts->machine ? " on " : "", facts->machine, facts->version,
            strcmp(facts->layers, "welford") ? ", but this run used the NAIVE layers instead" : "");
    if (facts->quick)
        fputs("<p class=\"other\"><b>A quick run:</b> few images per network, so the numbers are rough.</p>", o);
    if (s->data->vendored)
        fputs("<p class=\"other\"><b>A small subset of the data:</b> the Debian package dataset-fashion-mnist has all of "
              "it.</p>", o);
    fputs("<div class=\"strip\">", o);
    for (int class = 0; class < CLASSES; class++)
        for (int64_t i = 0; i < s->data->train.count; i++)
            if (s->data->train.labels[i] == class) {
                write_image(o, s->data->train.pixels + i * IMAGE_PIXELS, fashion_class[class]);
                break;
            }
    fputs("</div><div class=\"cards\">\n", o);
    for (int n = 0; n < PANELS; n++) {
        const panel *p = &panels[n];
        if (!p->grids)
            continue;
        fprintf(o, "<a class=\"card\" href=\"#%s\"><b>%d. %s</b><span>", p->key, p->number, p->title);
        text_escaped(o, p->verdict);
        fputs("</span>", o);
        fprintf(o, "<span class=\"badge %s\">%s %s</span></a>\n", p->outcome == AS_EXPECTED ? "good" : "other",
                outcome_mark[p->outcome], outcome_text[p->outcome]);
    }
    fputs("</div>\n", o);
}

static void write_table(FILE *o, const grid *g, metric m)
{
    bool percent = m == TEST_ACCURACY || m == TRAIN_ACCURACY;
    fprintf(o, "<div class=\"wide\"><table><caption>%s, %s: mean <small>&plusmn; standard deviation</small></caption>"
               "<tr><th>%s</th>", g->title, metric_name[m], g->x_name);
    for (int x = 0; x < g->xs; x++)
        fprintf(o, "<th>%s</th>", g->x_text[x]);
    fputs("</tr>", o);
    for (int i = 0; i < g->series; i++) {
        fprintf(o, "<tr><td>%s</td>", g->series_name[i]);
        for (int x = 0; x < g->xs; x++) {
            spread v = grid_spread(g, i, x, m);
            if (!v.count)
                fputs("<td>diverged</td>", o);
            else if (percent)
                fprintf(o, "<td>%.1f <small>&plusmn;%.1f</small></td>", 100 * v.mean, 100 * v.sd);
            else
                fprintf(o, "<td>%.3f <small>&plusmn;%.3f%s</small></td>", v.mean, v.sd,
                        v.count < g->seeds ? ", some diverged" : "");
        }
        fputs("</tr>", o);
    }
    fputs("</table></div>\n", o);
}

/* The first test images as the InstanceNorm panel changes them, weakest to strongest. */
static void write_changed_images(FILE *o, const settings *s, const grid *g)
{
    enum { SHOWN = 8 };
    fputs("<h3>The same eight test images, unchanged and at full strength</h3>", o);
    for (int x = 0; x < g->xs; x += g->xs - 1) {
        fputs("<div class=\"strip\" style=\"margin:6px 0\">", o);
        for (int64_t i = 0; i < SHOWN && i < s->data->test.count; i++) {
            float changed[IMAGE_PIXELS];
            uint8_t pixels[IMAGE_PIXELS];
            photo_change(&(photo){g->x[x], FIRST_SEED}, i, s->data->test.pixels + i * IMAGE_PIXELS, changed);
            for (int k = 0; k < IMAGE_PIXELS; k++)
                pixels[k] = (uint8_t)lrintf(255 * changed[k]);
            write_image(o, pixels, "");
        }
        fputs("</div>", o);
    }
}

static void write_panel(FILE *o, const settings *s, const panel *p)
{
    fprintf(o, "<section id=\"%s\"><p class=\"soft small\" style=\"margin:0\">%d &middot; %s</p><h2>", p->key, p->number,
            p->title);
    text_escaped(o, p->question);
    fprintf(o, "</h2><p class=\"verdict%s\">", p->outcome == AS_EXPECTED ? "" : " other");
    text_escaped(o, p->verdict);
    fprintf(o, "</p><div class=\"plots%s\">", p->plots == 1 ? " one" : "");
    for (int i = 0; i < p->plots; i++) {
        int width = p->plots == 1 ? 960 : 500, height = p->plots == 1 ? 360 : 310;
        fprintf(o, "<div><h3>%s%s</h3><svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"%s\">\n", p->plot[i].title,
                p->plot[i].dashed >= 0 ? " <span class=\"soft\">(dashed: training images)</span>" : "", width, height,
                p->plot[i].title);
        plot_draw(o, &p->grid[p->plot[i].grid], &p->plot[i], width, height, true);
        fputs("</svg></div>\n", o);
    }
    fputs("</div>", o);
    if (p->run == run_instancenorm)
        write_changed_images(o, s, &p->grid[0]);
    const struct {
        const char *term, *text;
    } facts[] = {{"Expected", p->expected}, {"Criterion", p->criterion}, {"Numbers", p->detail}, {"Setup", p->setup}};
    fputs("<dl>", o);
    for (size_t i = 0; i < sizeof facts / sizeof *facts; i++) {
        fprintf(o, "<dt>%s</dt><dd>", facts[i].term);
        text_escaped(o, facts[i].text);
        fputs("</dd>", o);
    }
    fprintf(o, "</dl><details><summary>Tables (%lld runs, %.0f s)</summary>", (long long)p->runs, p->wall_seconds);
    for (int k = 0; k < p->grids; k++)
        for (int m = 0; m < p->grid[k].metrics; m++)
            write_table(o, &p->grid[k], (metric)m);
    fputs("</details></section>\n", o);
}

static void write_check(FILE *o, const run_facts *facts)
{
    fprintf(o, "<section id=\"check\"><h2>Do the backward passes hold?</h2><p class=\"verdict%s\">%s</p><p class=\"soft\">"
               "Each network is trained twice for %lld steps, with the library's layers and with plain loops in double "
               "that share nothing with it. The largest relative difference between the two loss curves may be %g; "
               "float rounding alone gives what is listed.</p><details><summary>%d trainings</summary><div class=\"wide\">"
               "<table><tr><th>network</th><th>first loss</th><th>last loss</th><th>naive</th><th>largest difference"
               "</th></tr>", facts->check_ok ? "" : " other",
            facts->check_ok ? "Every loss curve agrees with an independent naive implementation."
                            : "The library's layers do not train like the naive ones.",
            (long long)checks[0].steps, CHECK_TOLERANCE, CHECKS);
    for (int i = 0; i < CHECKS; i++) {
        const check *c = &checks[i];
        fprintf(o, "<tr><td>%s</td><td>%.4f</td><td>%.6f</td><td>%.6f</td><td class=\"%s\">%.1e</td></tr>", c->name,
                c->loss[CHECKED][0], c->loss[CHECKED][c->steps - 1], c->loss[NAIVE][c->steps - 1],
                c->worst <= CHECK_TOLERANCE ? "good" : "other", c->worst);
    }
    fputs("</table></div></details></section>\n", o);
}

/* The losses of a training step by step: the CPU's a broad pale line, the GPU's a thin one upon it. */
static void draw_curves(FILE *o, const check *c)
{
    enum { WIDTH = 300, HEIGHT = 150 };
    static const struct {
        curve which;
        const char *style;
    } lines[] = {{CHECKED, "stroke-width:6;stroke-opacity:.35"}, {BESIDE, "stroke-width:1.5"}};
    double high = 0;
    for (int64_t k = 0; k < c->steps; k++)
        high = fmax(high, fmax(c->loss[CHECKED][k], c->loss[BESIDE][k]));
    fprintf(o, "<div><h3>%s</h3><svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"%s\">", c->name, WIDTH, HEIGHT, c->name);
    fprintf(o, "<path class=\"grid\" d=\"M0 %dH%d\"/><text class=\"tick\" x=\"2\" y=\"12\">%.1f</text>", HEIGHT - 1, WIDTH, high);
    for (int i = 0; i < 2; i++) {
        fprintf(o, "<path class=\"line k%d\" style=\"%s\" d=\"", i ? NORM_INSTANCE : NORM_BATCH, lines[i].style);
        char command = 'M';
        for (int64_t k = 0; k < c->steps; k++)
            if (isfinite(c->loss[lines[i].which][k])) {
                fprintf(o, "%c%.1f %.1f", command, (double)k * WIDTH / (double)(c->steps - 1),
                        HEIGHT - 2 - c->loss[lines[i].which][k] / high * (HEIGHT - 20));
                command = 'L';
            }
        fputs(command == 'L' ? "\"/>" : "M0 0\"/>", o);
    }
    fputs("</svg></div>\n", o);
}

static void write_both(FILE *o)
{
    fputs("<section id=\"both\"><h2>The same trainings on the CPU and on the GPU</h2><p class=\"soft\">Training loss by step: "
          "the CPU's curve broad and pale, the GPU's thin upon it. Norms, dropout and matrix products are computed there by "
          "other code, in another order; the masks are the same bit for bit.</p><div class=\"plots\">", o);
    for (int i = 0; i < CHECKS; i++)
        draw_curves(o, &checks[i]);
    fputs("</div></section>\n", o);
}

void report_write(const char *folder, const settings *s, const run_facts *facts)
{
    FILE *o = file_create(folder, "demo.html");
    write_head(o, s, facts);
    for (int n = 0; n < PANELS; n++)
        if (panels[n].grids)
            write_panel(o, s, &panels[n]);
    if (facts->checked)
        write_check(o, facts);
    if (facts->checked && s->beside)
        write_both(o);
    fprintf(o, "<p class=\"soft small\">Bands and bars: the range over %d seeds; lines: their mean. Point at a mark for its "
               "numbers. welford %s, %s, %s; %lld training and %lld test images from ", s->seeds, facts->version,
            facts->backend, facts->blas, (long long)s->data->train.count, (long long)s->data->test.count);
    text_escaped(o, s->data->source);
    fputs(". Fashion-MNIST: &copy; 2017 Zalando SE, MIT licence.</p></main></body></html>\n", o);
    file_finish(o, "demo.html");
}
