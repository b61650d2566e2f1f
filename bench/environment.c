/* environment.c - on what and with what a run was made, as fields of a JSON object. */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "bench.h"

#ifndef BENCH_COMMIT
#define BENCH_COMMIT "unknown"
#endif

static void add(Run *run, const char *format, ...)
{
    const size_t at = strlen(run->environment);
    va_list args;
    va_start(args, format);
    vsnprintf(run->environment + at, sizeof run->environment - at, format, args);
    va_end(args);
}

/* What follows `key` and a colon in a file of lines; "" where there is none. */
static void look_up(char *text, size_t size, const char *path, const char *key)
{
    FILE *file = fopen(path, "r");
    char line[256];
    *text = 0;
    while (file && !*text && fgets(line, sizeof line, file)) {
        const char *value = strncmp(line, key, strlen(key)) ? NULL : strchr(line, ':');
        if (value)
            snprintf(text, size, "%s", value + 1 + strspn(value + 1, " "));
    }
    if (file)
        fclose(file);
    text[strcspn(text, "\"\n\\")] = 0;
}

static const char *isa(void)
{
#ifdef __x86_64__
    return __builtin_cpu_supports("avx512f") ? "avx512" : __builtin_cpu_supports("avx2") ? "avx2" : "x86-64";
#else
    return "";
#endif
}

void environment(Run *run, const Peer *const peers[])
{
    const Options *o = run->options;
    char text[256], date[32], name[128], threads[32] = "";
    const time_t t = time(NULL);
    strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", gmtime(&t));
    *run->environment = 0;
    look_up(text, sizeof text, "/proc/cpuinfo", "model name");
    snprintf(name, sizeof name, "%.*s", (int)sizeof name - 1, text);
    if (o->backend == WF_CPU)
        snprintf(threads, sizeof threads, ", %d thread%s", o->threads, o->threads > 1 ? "s" : "");
    add(run, "\"date\": \"%s\", \"library\": \"%u.%u.%u\", \"commit\": \"%s\", ", date, wf_version() >> 16,
        wf_version() >> 8 & 255, wf_version() & 255, BENCH_COMMIT);
    add(run, "\"processor\": \"%s\", \"isa\": \"%s\", \"processors\": %ld, \"threads\": %d, \"l3_bytes\": %ld, ", text, isa(),
        sysconf(_SC_NPROCESSORS_ONLN), o->threads, sysconf(_SC_LEVEL3_CACHE_SIZE));
    if (o->backend == WF_CUDA) {
        add(run, "%s, ", gpu_describe(text, sizeof text));
        snprintf(name, sizeof name, "%.*s", (int)strcspn(text + 8, "\""), text + 8); /* behind "gpu": " */
        look_up(text, sizeof text, "/proc/driver/nvidia/version", "NVRM version");
        add(run, "\"driver\": \"%s\", ", text);
    }
    add(run, "\"backend\": \"%s\", \"cold\": %s, \"min_time\": %g, \"peers\": {", o->backend == WF_CUDA ? "cuda" : "cpu",
        o->cold ? "true" : "false", o->min_time);
    for (int i = 0, n = 0; peers[i]; i++)
        add(run, "%s\"%s\": \"%s\"", n++ ? ", " : "", peers[i]->name, peers[i]->open());
    add(run, "}, \"roofline\": [");
    for (int k = -1; k < run->other_roofs; k++) {
        const Roofline *roof = k < 0 ? &run->roof : &run->other_roof[k];
        for (int i = 0; i < roof->points; i++)
            add(run, "%s{\"threads\": %d, \"bytes\": %.0f, \"copy_gbs\": %.5g, \"plain_copy_gbs\": %.5g, \"read_gbs\": %.5g}",
                i || k >= 0 ? ", " : "", roof->threads, roof->bytes[i], roof->rate[i] * 1e-9, roof->plain_rate[i] * 1e-9,
                roof->read_rate[i] * 1e-9);
    }
    add(run, "]");
    snprintf(run->caption, sizeof run->caption, "%s%s, welford %u.%u.%u (%s), %s, %.10s", name, threads, wf_version() >> 16,
             wf_version() >> 8 & 255, wf_version() & 255, BENCH_COMMIT, o->cold ? "cold" : "warm", date);
}
