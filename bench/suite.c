/* suite.c - files of rows:  name count case-line
 * A pair of braces stands for one row per alternative: batchnorm_{train,backward} x={f32,bf16}. '#' begins a comment. */
#include <stdlib.h>
#include <string.h>

#include "bench.h"

static char message[512];

const char *suite_add(Rows *rows, const char *suite, const char *name, int count, const char *line, const char *with)
{
    const char *open = strchr(line, '{'), *close = open ? strchr(open, '}') : NULL;
    char text[CASE_SIZE];
    if (close) {
        for (const char *word = open + 1; word <= close; word += strcspn(word, ",}") + 1) {
            snprintf(text, sizeof text, "%.*s%.*s%s", (int)(open - line), line, (int)strcspn(word, ",}"), word, close + 1);
            const char *error = suite_add(rows, suite, name, count, text, with);
            if (error)
                return error;
        }
        return NULL;
    }
    Row row = { .count = count };
    snprintf(row.suite, sizeof row.suite, "%s", suite);
    snprintf(row.name, sizeof row.name, "%s", name);
    const char *error = case_parse(&row.c, line);
    if (error) {
        snprintf(message, sizeof message, "%s: %s: %s", suite, name, error);
        return message;
    }
    /* Each field of `with` where the operation has it. */
    char base[CASE_SIZE];
    snprintf(base, sizeof base, "%s", line);
    for (const char *word = with ? with : ""; *(word += strspn(word, " ")); word += strcspn(word, " ")) {
        Case changed;
        if (snprintf(text, sizeof text, "%s %.*s", base, (int)strcspn(word, " "), word) < (int)sizeof text &&
            !case_parse(&changed, text)) {
            row.c = changed;
            memcpy(base, text, sizeof base);
        }
    }
    if (rows->count % 64 == 0)
        rows->row = realloc(rows->row, (size_t)(rows->count + 64) * sizeof row);
    rows->row[rows->count++] = row;
    return NULL;
}

const char *suite_read(Rows *rows, const char *path, const char *with)
{
    FILE *file = fopen(path, "r");
    if (!file) {
        snprintf(message, sizeof message, "cannot read %s", path);
        return message;
    }
    const char *slash = strrchr(path, '/'), *error = NULL;
    char suite[NAME_SIZE], line[CASE_SIZE + 128], name[NAME_SIZE];
    snprintf(suite, sizeof suite, "%s", slash ? slash + 1 : path);
    suite[strcspn(suite, ".")] = 0;
    for (int number = 1; !error && fgets(line, sizeof line, file); number++) {
        int count, at = 0;
        line[strcspn(line, "#\n")] = 0;
        if (!line[strspn(line, " ")])
            continue;
        if (sscanf(line, "%47s %d %n", name, &count, &at) < 2 || !at || count < 0) {
            snprintf(message, sizeof message, "%s:%d: expected: name count case", path, number);
            error = message;
        } else {
            error = suite_add(rows, suite, name, count, line + at, with);
        }
    }
    fclose(file);
    return error;
}
