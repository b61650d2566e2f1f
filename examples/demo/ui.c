#include "ui.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fflush(stdout);
    fputs("\ndemo: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}

double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static struct {
    const char *title, *backend;
    int64_t jobs;
    ui_counters *counters;
    double begun, drawn;
    int quarter; /* of the jobs, last reported as a plain line */
} ui;

static bool on_terminal(void)
{
    const char *term = getenv("TERM");
    return isatty(STDOUT_FILENO) && term && strcmp(term, "dumb") != 0;
}

static const char *ansi(const char *sequence)
{
    return on_terminal() && !getenv("NO_COLOR") ? sequence : "";
}

const char *ui_bold(void)
{
    return ansi("\033[1m");
}

const char *ui_dim(void)
{
    return ansi("\033[2m");
}

const char *ui_green(void)
{
    return ansi("\033[32m");
}

const char *ui_yellow(void)
{
    return ansi("\033[33m");
}

const char *ui_plain(void)
{
    return ansi("\033[0m");
}

void ui_set_backend(const char *name)
{
    ui.backend = name;
}

void ui_begin(const char *title, int64_t jobs, ui_counters *counters)
{
    counters->images = 0;
    counters->loss = 0;
    counters->jobs = 0;
    ui.title = title;
    ui.jobs = jobs;
    ui.counters = counters;
    ui.begun = seconds();
    ui.drawn = 0;
    ui.quarter = 0;
    if (!on_terminal())
        printf("%s: %lld runs\n", title, (long long)jobs);
    ui_draw();
}

static void draw_bar(double now)
{
    enum { WIDTH = 24 };
    int64_t done = ui.counters->jobs;
    int filled = (int)(done * WIDTH / (ui.jobs ? ui.jobs : 1));
    double spent = now - ui.begun, left = done ? spent / (double)done * (double)(ui.jobs - done) : 0;
    printf("\r\033[K%s%-34s%s ", ui_bold(), ui.title, ui_plain());
    for (int i = 0; i < WIDTH; i++)
        fputs(i < filled ? "█" : "░", stdout);
    printf(" %3lld/%lld  loss %-7.3g %s%6.0f images/s  %s  %.0f s left%s", (long long)done, (long long)ui.jobs,
           ui.counters->loss, ui_dim(), (double)ui.counters->images / (spent > 0 ? spent : 1), ui.backend, left,
           ui_plain());
    fflush(stdout);
}

void ui_draw(void)
{
    double now = seconds();
    if (on_terminal()) {
        if (now - ui.drawn >= 0.1) {
            ui.drawn = now;
            draw_bar(now);
        }
        return;
    }
    int quarter = (int)(4 * ui.counters->jobs / (ui.jobs ? ui.jobs : 1));
    if (quarter > ui.quarter && quarter < 4)
        printf("  %d %%  loss %.3g  %.0f images/s  %s\n", 25 * quarter, ui.counters->loss,
               (double)ui.counters->images / (now - ui.begun), ui.backend);
    ui.quarter = quarter;
    fflush(stdout);
}

void ui_end(void)
{
    double spent = seconds() - ui.begun;
    if (on_terminal())
        printf("\r\033[K%s%s%s", ui_bold(), ui.title, ui_plain());
    else
        printf("  done");
    printf(" %s%lld runs, %.1f s, %.0f images/s%s\n", ui_dim(), (long long)ui.counters->jobs, spent,
           (double)ui.counters->images / (spent > 0 ? spent : 1), ui_plain());
    fflush(stdout);
}
