#include "compare.h"

#include <math.h>
#include <quadmath.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "oracle_quantize.h"

#define WORST_VARIABLE "WELFORD_TEST_WORST"

static void record(const Case *c, Output out, wf_dtype dtype, double worst)
{
    static double seen[OP_COUNT][OUTPUT_COUNT][DTYPE_COUNT];
    const char *path = getenv(WORST_VARIABLE);
    double *known = &seen[c->op][out][dtype];
    if (!path || worst <= *known)
        return;
    *known = worst;
    FILE *file = fopen(path, "a");
    if (!file)
        return;
    char line[CASE_SIZE];
    fprintf(file, "%s %s %s %.4g %s\n", op_name(c->op), output_name(out), dtype_name(dtype), worst, case_print(c, line));
    fclose(file);
}

/* The error in units of the bar; Inf where a NaN or an infinity differs; negative where nothing is promised. */
static double error_in_bars(const Expected *e, int64_t i, Quad got)
{
    const double value = (double)e->value[i], bar = e->bar[i], have = (double)got;
    if (isinfq(e->value[i]))
        return have == value ? 0 : HUGE_VAL;
    if (bar == HUGE_VAL)
        return -1;
    if (isnan(value))
        return isfinite(have) ? HUGE_VAL : 0;
    if (isnan(have))
        return HUGE_VAL;
    if (dtype_size(e->dtype) == 1) /* between what both ends of the bar become */
        return got >= quantized_nearest(e->dtype, e->value[i] - bar) && got <= quantized_nearest(e->dtype, e->value[i] + bar)
                   ? 0
                   : HUGE_VAL;
    /* Around the largest value of the dtype both it and Inf may be right. */
    if (isinf(have))
        return (have > 0) == (value > 0) && isinfq(round_to(e->dtype, fabs(value) + bar)) ? 0 : HUGE_VAL;
    if (fabs(value) > bar && isinfq(round_to(e->dtype, fabs(value) - bar)))
        return HUGE_VAL;
    const double allowed = bar + (e->rounded ? 0.5 * ulp_at(e->dtype, fabs(value) + bar) : 0);
    const double error = fabs((double)(got - e->value[i]));
    return error == 0 ? 0 : allowed > 0 ? error / allowed : HUGE_VAL;
}

const char *compare(const Case *c, Output out, const Expected *e, const Quad *got, Comparison *result)
{
    static _Thread_local char message[CASE_SIZE + 256];
    const bool count_rounded = (e->dtype == WF_F16 || e->dtype == WF_BF16) && (out == OUT_Y || out == OUT_DX);
    *result = (Comparison){ .elements = e->count, .worst = 0 };
    for (int64_t i = 0; i < e->count; i++) {
        double error = error_in_bars(e, i, got[i]);
        if (error < 0)
            continue;
        result->promised++;
        if (count_rounded)
            result->rounded += got[i] == round_to(e->dtype, e->value[i]);
        if (!(error <= result->worst)) {
            result->worst = error;
            result->worst_at = i;
        }
    }
    record(c, out, e->dtype, result->worst);
    if (result->worst <= 1)
        return NULL;
    char line[CASE_SIZE];
    int64_t i = result->worst_at;
    snprintf(message, sizeof message, "%s[%lld] = %.17g, expected %.17g with bar %.3g: off by %.4g bars\n  --case \"%s\"",
             output_name(out), (long long)i, (double)got[i], (double)e->value[i], e->bar[i], result->worst,
             case_print(c, line));
    return message;
}

struct entry { char op[32], output[16], dtype[8], line[CASE_SIZE]; double worst; };

static int by_name(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    int order = strcmp(x->op, y->op);
    order = order ? order : strcmp(x->output, y->output);
    return order ? order : strcmp(x->dtype, y->dtype);
}

void worst_print(const char *path)
{
    enum { MOST = OP_COUNT * OUTPUT_COUNT * DTYPE_COUNT };
    struct entry *table = calloc(MOST, sizeof *table), next;
    int count = 0;
    FILE *file = fopen(path, "r");
    while (file && fscanf(file, "%31s %15s %7s %lf %1023[^\n]", next.op, next.output, next.dtype, &next.worst, next.line) == 5) {
        int i = 0;
        while (i < count && by_name(&table[i], &next))
            i++;
        if (i == count && count < MOST)
            count++;
        if (i < MOST && next.worst > table[i].worst)
            table[i] = next;
    }
    if (file)
        fclose(file);
    qsort(table, (size_t)count, sizeof *table, by_name);
    printf("worst error in units of the bar:\n");
    for (int i = 0; i < count; i++)
        printf("  %-22s %-13s %-5s %8.4f  %s\n", table[i].op, table[i].output, table[i].dtype, table[i].worst,
               table[i].line);
    free(table);
}
