/* What is left after a run: CSV, JSON, a self-contained HTML report, and a one-picture overview as SVG. */
#ifndef DEMO_REPORT_H
#define DEMO_REPORT_H

#include "panels.h"

#include <stdio.h>

typedef struct run_facts {
    const char *backend; /* "cpu (avx2)"        */
    const char *blas;    /* "OpenBLAS 0.3.21"   */
    const char *version; /* of the library      */
    const char *layers;  /* whose               */
    char machine[160];   /* processor           */
    double wall_seconds, processor_seconds;
    bool checked, check_ok, quick;
    int64_t runs; /* training runs of all panels */
} run_facts;

/* Writes demo.csv, demo.json and demo.html into `folder`, which exists. Panels that were not run are left out. */
void numbers_write(const char *folder, const settings *, const run_facts *);
void report_write(const char *folder, const settings *, const run_facts *);
void overview_write(const char *path, const settings *, const run_facts *);

/* One plot, its upper left corner at the origin, for any <svg> whose page has plot_style(): colors k0 .. (lines) and f0
 * .. (areas) by norm_kind. With names, each line's name stands at its end. */
void plot_draw(FILE *, const grid *, const plot *, int width, int height, bool names);
void plot_style(FILE *); /* CSS: the colors and text of plots and pages, light and dark */

extern const char *const outcome_mark[AS_EXPECTED + 1]; /* an HTML entity */
void text_escaped(FILE *, const char *);
FILE *file_create(const char *folder, const char *name); /* folder NULL: name is the whole path */
void file_finish(FILE *, const char *name);              /* closes; dies where anything could not be written */

/* A grey picture as "data:image/png;base64,...". */
void png_data_uri(FILE *, const uint8_t *pixels, int width, int height);

#endif
