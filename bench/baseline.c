/* baseline.c - an earlier run's JSON beside this one. A row is FASTER or SLOWER where the middle halves of its samples do
 * not overlap, else SAME. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

typedef struct Old { char text[CASE_SIZE]; double q1, median, q3; } Old;

/* The number behind the first `"key": ` in line; NaN where there is none. */
static double number(const char *line, const char *key)
{
    const char *at = strstr(line, key);
    return at ? strtod(at + strlen(key), NULL) : (double)NAN;
}

static Old *read_rows(const char *path, int *count)
{
    FILE *file = fopen(path, "r");
    static char line[1 << 16];
    Old *rows = NULL;
    *count = file ? 0 : -1;
    while (file && fgets(line, sizeof line, file)) {
        static const char key[] = "\"case\": \"";
        const char *at = strstr(line, key), *times = strstr(line, "\"times\": [");
        if (!at || !times)
            continue;
        at += sizeof key - 1;
        rows = realloc(rows, (size_t)(*count + 1) * sizeof *rows);
        Old *row = &rows[(*count)++];
        snprintf(row->text, sizeof row->text, "%.*s", (int)strcspn(at, "\""), at);
        row->q1 = number(times, "\"q1_us\": ") * 1e-6; /* the library's times stand first */
        row->median = number(times, "\"median_us\": ") * 1e-6;
        row->q3 = number(times, "\"q3_us\": ") * 1e-6;
    }
    if (file)
        fclose(file);
    return rows;
}

bool baseline_compare(Run *run, const char *path, int *slower)
{
    int olds, faster = 0, same = 0;
    double sum = 0;
    Old *old = read_rows(path, &olds);
    *slower = 0;
    for (int i = 0; i < run->results && olds > 0; i++) {
        Result *r = &run->result[i];
        const Timing *t = &r->who[0].timing;
        char text[CASE_SIZE];
        int k = 0;
        case_print(&r->row->c, text);
        while (k < olds && strcmp(old[k].text, text))
            k++;
        if (k == olds || r->verdict != TIMED)
            continue;
        const bool worse = t->q1 > old[k].q3, better = t->q3 < old[k].q1;
        snprintf(r->compared, sizeof r->compared, "%s", worse ? "SLOWER" : better ? "FASTER" : "SAME");
        *slower += worse;
        faster += better;
        same += !worse && !better;
        sum += log(t->median / old[k].median);
        if (worse || better)
            printf("%-6s %.3f of %.2f us  %s\n", r->compared, t->median / old[k].median, old[k].median * 1e6, text);
    }
    const int matched = *slower + faster + same;
    printf("against %s: %d slower, %d faster, %d the same; %.3f times as long, geometric mean\n", path, *slower, faster, same,
           matched ? exp(sum / matched) : 1.0);
    free(old);
    return matched > 0;
}
