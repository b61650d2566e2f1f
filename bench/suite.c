/* suite.c - the rows of a run: from files of lines  name count case,  from cases and from shapes.
 * A pair of braces stands for one row per alternative: batchnorm_{train,backward} x={f32,bf16}. '#' begins a comment; a line
 * "NAME:" begins a network, of which the following rows are part (else the file's name is the network's). */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

static char message[512];

/* text with the i-th alternative in place of its first pair of braces; false: there is no such. */
static bool alternative(const char *text, int i, char out[CASE_SIZE])
{
    const char *open = strchr(text, '{'), *close = open ? strchr(open, '}') : NULL, *word = close ? open + 1 : NULL;
    for (; word && i > 0; i--) {
        word += strcspn(word, ",}");
        word = word < close ? word + 1 : NULL;
    }
    if (word)
        snprintf(out, CASE_SIZE, "%.*s%.*s%s", (int)(open - text), text, (int)strcspn(word, ",}"), word, close + 1);
    return word;
}

/* line with the first word of `with` behind it; false: its operation has no such field. Moves `with` on. */
static bool put_over(Case *c, const char *line, const char **with, char out[CASE_SIZE])
{
    const int length = (int)strcspn(*with, " ");
    const bool fits = snprintf(out, CASE_SIZE, "%s %.*s", line, length, *with) < CASE_SIZE && !case_parse(c, out);
    *with += length;
    *with += strspn(*with, " ");
    return fits;
}

const char *suite_with_error(const char *with)
{
    char text[CASE_SIZE];
    int i = 0;
    for (; alternative(with, i, text); i++)
        if (suite_with_error(text))
            return message;
    for (const char *rest = with + strspn(with, " "); *rest && i == 0;) {
        const char *word = rest, *next = rest;
        bool known = false;
        for (Op op = 0; op < OP_COUNT && !known; op++) {
            Case c;
            next = word;
            known = put_over(&c, op_name(op), &next, text);
        }
        snprintf(message, sizeof message, "no operation has '%.*s'", (int)strcspn(word, " "), word);
        if (!known)
            return message;
        rest = next;
    }
    return NULL;
}

/* Not twice: where `with` makes two rows of a line the same, one is enough. */
static void append(Rows *rows, const Row *row)
{
    for (int i = 0; i < rows->count; i++)
        if (!memcmp(&rows->row[i].c, &row->c, sizeof row->c) && !strcmp(rows->row[i].suite, row->suite) &&
            !strcmp(rows->row[i].name, row->name))
            return;
    if (rows->count % 64 == 0)
        rows->row = realloc(rows->row, (size_t)(rows->count + 64) * sizeof *row);
    rows->row[rows->count++] = *row;
}

const char *suite_add(Rows *rows, const char *suite, const char *name, int count, const char *line, const char *with)
{
    char base[CASE_SIZE], text[CASE_SIZE];
    const char *error = NULL;
    int i = 0;
    for (; !error && alternative(line, i, text); i++)
        error = suite_add(rows, suite, name, count, text, with);
    for (; !error && !strchr(line, '{') && alternative(with, i, text); i++)
        error = suite_add(rows, suite, name, count, line, text);
    if (i > 0)
        return error;
    Row row = { .count = count };
    snprintf(row.suite, sizeof row.suite, "%s", suite);
    snprintf(row.name, sizeof row.name, "%s", name);
    error = case_parse(&row.c, line);
    if (error) {
        snprintf(message, sizeof message, "%s: %s: %s", suite, name, error);
        return message;
    }
    snprintf(base, sizeof base, "%s", line);
    for (const char *rest = with + strspn(with, " "); *rest;) {
        Case changed;
        if (put_over(&changed, base, &rest, text)) {
            row.c = changed;
            memcpy(base, text, sizeof base);
        }
    }
    append(rows, &row);
    return NULL;
}

const char *suite_add_shape(Rows *rows, const char *shape, const char *with)
{
    int64_t size[3], groups = 1;
    int end = 0;
    const int sizes = sscanf(shape, "%" SCNd64 "x%" SCNd64 "%nx%" SCNd64 "%n/%" SCNd64 "%n", &size[0], &size[1], &end, &size[2],
                             &end, &groups, &end);
    if (sizes < 2 || shape[end]) {
        snprintf(message, sizeof message, "--shape %s: ROWSxCOLS, or NxCxHW, or NxCxHW/GROUPS", shape);
        return message;
    }
    const char *error = NULL;
    for (Op op = 0; op < OP_COUNT && !error; op++) {
        const bool by_rows = op_norm(op) == LAYERNORM || op_norm(op) == RMSNORM;
        char line[CASE_SIZE];
        if (op_is_fold(op) || by_rows != (sizes == 2) || (sizes == 4 && op_norm(op) != GROUPNORM))
            continue;
        int at = snprintf(line, sizeof line, "%s ", op_name(op));
        at += by_rows ? snprintf(line + at, 99, "rows=%" PRId64 " cols=%" PRId64, size[0], size[1])
                      : snprintf(line + at, 99, "n=%" PRId64 " c=%" PRId64 " hw=%" PRId64, size[0], size[1], size[2]);
        if (op_norm(op) == GROUPNORM)
            snprintf(line + at, 99, " groups=%" PRId64, groups);
        error = suite_add(rows, "shape", shape, 1, line, with);
    }
    return error;
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
        if (sscanf(line, "%47[^: ]:%n", name, &at) == 1 && at && !line[at]) {
            snprintf(suite, sizeof suite, "%s", name);
            continue;
        }
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
