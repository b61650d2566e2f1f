/* What the user sees on the terminal: a bar that redraws itself on a tty, plain lines elsewhere. */
#ifndef DEMO_UI_H
#define DEMO_UI_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>

/* Prints "demo: ..." to stderr and ends the program with status 1. */
_Noreturn void die(const char *format, ...) __attribute__((format(printf, 1, 2)));

double seconds(void); /* of a monotonic clock */

/* Counters that workers move while the main thread draws. */
typedef struct ui_counters {
    _Atomic int64_t images; /* trained on or tested so far                    */
    _Atomic double loss;    /* of the latest training step that was reported  */
    _Atomic int64_t jobs;   /* finished                                       */
} ui_counters;

void ui_set_backend(const char *); /* what the progress line calls the back-end; kept, not copied */
void ui_begin(const char *title, int64_t jobs, ui_counters *);
void ui_draw(void); /* call often; draws at most ten times a second */
void ui_end(void);

/* ANSI sequences, empty strings where stdout is no terminal or NO_COLOR is set. */
const char *ui_bold(void);
const char *ui_dim(void);
const char *ui_green(void);
const char *ui_yellow(void);
const char *ui_plain(void);

#endif
