#include "quiet.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#ifdef __SSE2__
#include <emmintrin.h>

void bench_flush(const void *at, size_t size)
{
    for (size_t i = 0; i < size; i += 64)
        _mm_clflush((const char *)at + i);
    if (size > 0)
        _mm_clflush((const char *)at + size - 1);
    _mm_mfence();
}

#else

/* By other data, more than the last level holds. */
void bench_flush(const void *at, size_t size)
{
    static volatile char other[128 << 20];
    (void)at, (void)size;
    for (size_t i = 0; i < sizeof other; i += 64)
        other[i]++;
}

#endif

bool bench_others_run(void)
{
    DIR *tasks = opendir("/proc/self/task");
    bool run = false;
    for (struct dirent *task; tasks && !run && (task = readdir(tasks)) != NULL;) {
        char path[300], text[256] = "";
        snprintf(path, sizeof path, "/proc/self/task/%s/stat", task->d_name);
        FILE *stat = atol(task->d_name) > 0 && atol(task->d_name) != syscall(SYS_gettid) ? fopen(path, "r") : NULL;
        if (stat && fgets(text, sizeof text, stat)) {
            const char *state = strrchr(text, ')'); /* behind the name */
            run = state && state[1] == ' ' && state[2] == 'R';
        }
        if (stat)
            fclose(stat);
    }
    if (tasks)
        closedir(tasks);
    return run;
}
