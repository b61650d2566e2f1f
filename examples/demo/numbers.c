/* Every number of a run, for other programs: demo.csv (one row per run and metric) and demo.json. */
#include "report.h"
#include "selfcheck.h"

#include <errno.h>
#include <math.h>
#include <string.h>

FILE *file_create(const char *folder, const char *name)
{
    char path[1024];
    snprintf(path, sizeof path, "%s%s%s", folder ? folder : "", folder ? "/" : "", name);
    FILE *f = fopen(path, "w");
    if (!f)
        die("cannot write %s: %s", path, strerror(errno));
    return f;
}

void file_finish(FILE *f, const char *name)
{
    bool failed = ferror(f);
    if (fclose(f) || failed)
        die("cannot write %s: %s", name, strerror(errno));
}

static void write_csv(const char *folder)
{
    FILE *f = file_create(folder, "demo.csv");
    fputs("panel,part,series,x_name,x,seed,metric,value\n", f);
    for (int n = 0; n < PANELS; n++)
        for (int k = 0; k < panels[n].grids; k++) {
            const grid *g = &panels[n].grid[k];
            for (int i = 0; i < g->series; i++)
                for (int x = 0; x < g->xs; x++)
                    for (int seed = 0; seed < g->seeds; seed++)
                        for (int m = 0; m < g->metrics; m++)
                            fprintf(f, "%s,%s,%s,%s,%s,%d,%s,%.6g\n", panels[n].key, g->title, g->series_name[i],
                                    g->x_name, g->x_text[x], seed, metric_name[m], g->value[i][x][m][seed]);
        }
    file_finish(f, "demo.csv");
}

static void json_text(FILE *f, const char *text)
{
    fputc('"', f);
    for (; *text; text++) {
        if (*text == '"' || *text == '\\')
            fputc('\\', f);
        fputc((unsigned char)*text < ' ' ? ' ' : *text, f);
    }
    fputc('"', f);
}

static void json_field(FILE *f, const char *name, const char *text)
{
    fprintf(f, "\"%s\": ", name);
    json_text(f, text);
    fputs(", ", f);
}

static void json_number(FILE *f, double v)
{
    if (isfinite(v))
        fprintf(f, "%.6g", v);
    else
        fputs("null", f);
}

/* {"series": {"BatchNorm": {"test accuracy": [[per seed] per x]}}} */
static void json_grid(FILE *f, const grid *g)
{
    fputs("{", f);
    json_field(f, "part", g->title);
    json_field(f, "x_name", g->x_name);
    fputs("\"x\": [", f);
    for (int x = 0; x < g->xs; x++) {
        fputs(x ? ", " : "", f);
        json_text(f, g->x_text[x]);
    }
    fputs("], \"series\": {", f);
    for (int i = 0; i < g->series; i++) {
        fprintf(f, "%s\n      ", i ? "," : "");
        json_text(f, g->series_name[i]);
        fputs(": {", f);
        for (int m = 0; m < g->metrics; m++) {
            fprintf(f, "%s\"%s\": [", m ? ", " : "", metric_name[m]);
            for (int x = 0; x < g->xs; x++) {
                fputs(x ? ", [" : "[", f);
                for (int seed = 0; seed < g->seeds; seed++) {
                    fputs(seed ? ", " : "", f);
                    json_number(f, g->value[i][x][m][seed]);
                }
                fputs("]", f);
            }
            fputs("]", f);
        }
        fputs("}", f);
    }
    fputs("}}", f);
}

static void write_json(const char *folder, const settings *s, const run_facts *facts)
{
    FILE *f = file_create(folder, "demo.json");
    fputs("{\n  ", f);
    json_field(f, "version", facts->version);
    json_field(f, "layers", facts->layers);
    json_field(f, "backend", facts->backend);
    json_field(f, "blas", facts->blas);
    json_field(f, "machine", facts->machine);
    json_field(f, "data", s->data->source);
    fprintf(f, "\"vendored_subset\": %s, \"seeds\": %d, \"images\": %lld, \"tests\": %lld,\n  ",
            s->data->vendored ? "true" : "false", s->seeds, (long long)s->images, (long long)s->tests);
    fprintf(f, "\"seconds\": %.1f, \"processor_seconds\": %.1f,\n  ", facts->wall_seconds, facts->processor_seconds);
    fputs("\"check\": [", f);
    for (int i = 0; facts->checked && i < CHECKS; i++) {
        fputs(i ? ",\n    {" : "\n    {", f);
        json_field(f, "case", checks[i].name);
        fputs("\"worst_relative_difference\": ", f);
        json_number(f, checks[i].worst);
        fputs("}", f);
    }
    fputs("],\n  \"panels\": [", f);
    bool first = true;
    for (int n = 0; n < PANELS; n++) {
        const panel *p = &panels[n];
        if (!p->grids)
            continue;
        fputs(first ? "\n    {" : ",\n    {", f);
        first = false;
        json_field(f, "panel", p->key);
        json_field(f, "setup", p->setup);
        json_field(f, "expected", p->expected);
        json_field(f, "criterion", p->criterion);
        json_field(f, "outcome", outcome_text[p->outcome]);
        json_field(f, "verdict", p->verdict);
        json_field(f, "detail", p->detail);
        fputs("\"grids\": [", f);
        for (int k = 0; k < p->grids; k++) {
            fputs(k ? ",\n     " : "\n     ", f);
            json_grid(f, &p->grid[k]);
        }
        fputs("]}", f);
    }
    fputs("]\n}\n", f);
    file_finish(f, "demo.json");
}

void numbers_write(const char *folder, const settings *s, const run_facts *facts)
{
    write_csv(folder);
    write_json(folder, s, facts);
}
