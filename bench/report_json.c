/* report_json.c - JSON and CSV. A row of the results is a line of the file, also in JSON: baseline.c reads them back. */
#include <string.h>

#include "bench.h"

static void print_contestant(FILE *file, const Result *r, int i)
{
    const Contestant *w = &r->who[i];
    const Timing *t = &w->timing;
    fprintf(file, "{\"name\": \"%s\", \"min_us\": %.6g, \"q1_us\": %.6g, \"median_us\": %.6g, \"q3_us\": %.6g, \"p95_us\": %.6g, "
            "\"samples\": %d, \"calls\": %d, \"ratio\": %.5g, \"gbs\": %.5g}", w->name, t->min * 1e6, t->q1 * 1e6,
            t->median * 1e6, t->q3 * 1e6, t->p95 * 1e6, t->samples, t->calls, w->ratio, result_rate(r, i) * 1e-9);
}

bool report_json(const Run *run, const char *path)
{
    static const char *const words[] = { "timed", "wrong", "unsupported", "failed" };
    FILE *file = fopen(path, "w");
    if (!file)
        return false;
    fprintf(file, "{\n\"environment\": {%s},\n\"rows\": [\n", run->environment);
    for (int i = 0; i < run->results; i++) {
        const Result *r = &run->result[i];
        char line[CASE_SIZE];
        fprintf(file, "{\"suite\": \"%s\", \"layer\": \"%s\", \"count\": %d, \"case\": \"%s\", \"verdict\": \"%s\"",
                r->row->suite, r->row->name, r->row->count, case_print(&r->row->c, line), words[r->verdict]);
        if (r->verdict != TIMED) {
            fprintf(file, ", \"message\": \"");
            for (const char *m = r->message; *m; m++)
                fprintf(file, *m == '"' || *m == '\\' ? "\\%c" : "%c", *m);
            fprintf(file, "\"");
        } else {
            fprintf(file, ", \"check\": \"%s\", \"bytes\": %.0f, \"bytes_two_reads\": %.0f, \"percent_copy\": %.4g, "
                    "\"percent_peak\": %.4g, \"attainable_us\": %.6g, \"attainable_twice_us\": %.6g, \"times\": [", r->check,
                    r->traffic.bytes, r->traffic.bytes + r->traffic.again, 100 * result_rate(r, 0) / r->roof,
                    100 * result_rate(r, 0) / r->peak, r->bound.once * 1e6, r->bound.twice * 1e6);
            for (int k = 0; k < r->contestants; k++) {
                fprintf(file, "%s", k ? ", " : "");
                print_contestant(file, r, k);
            }
            fprintf(file, "]");
        }
        fprintf(file, "}%s\n", i + 1 < run->results ? "," : "");
    }
    fprintf(file, "]\n}\n");
    return !fclose(file);
}

bool report_csv(const Run *run, const char *path)
{
    FILE *file = fopen(path, "w");
    if (!file)
        return false;
    fprintf(file, "# {%s}\n", run->environment);
    fprintf(file, "suite,layer,count,case,who,min_us,median_us,p95_us,gbs,percent_copy,ratio\n");
    for (int i = 0; i < run->results; i++) {
        const Result *r = &run->result[i];
        char line[CASE_SIZE];
        case_print(&r->row->c, line);
        for (int k = 0; r->verdict == TIMED && k < r->contestants; k++) {
            const Timing *t = &r->who[k].timing;
            fprintf(file, "%s,%s,%d,\"%s\",%s,%.6g,%.6g,%.6g,%.5g,%.4g,%.5g\n", r->row->suite, r->row->name, r->row->count, line,
                    r->who[k].name, t->min * 1e6, t->median * 1e6, t->p95 * 1e6, result_rate(r, k) * 1e-9,
                    100 * result_rate(r, k) / r->roof, r->who[k].ratio);
        }
    }
    return !fclose(file);
}
