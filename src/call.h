/* What the front doors share: a call is opened, its structs are imported, its sizes and buffers checked one by one, and
 * closed. The first check that fails decides the status and the text; later checks then do nothing, so a front door
 * reads as a list. */
#ifndef WELFORD_CALL_H
#define WELFORD_CALL_H

#include "backend.h"

enum { CALL_SIZES = 4, CALL_BUFFERS = 19 };

/* A buffer as a matrix of bytes: rows of row_size, stride apart. */
struct buffer {
    const char *name;
    const char *data;
    int64_t     rows, row_size, stride;
    uint32_t    aliases; /* of an output: bit i, it may be the i-th buffer */
    bool        output;
};

struct call {
    const char           *operation;
    const struct backend *backend;
    wf_exec               exec;
    wf_status             status;
    bool                  quiet;   /* a workspace query: no text is kept */
    bool                  dry_run; /* WF_DRY_RUN */
    bool                  absent;  /* a dry run without `with`: buffers are not checked */
    bool                  empty;   /* x has no elements: any buffer may be NULL */
    wf_dtype              x_dtype, w_dtype;
    int                   sizes, buffers;
    struct {
        const char *name;
        int64_t     value;
    } size[CALL_SIZES];
    struct buffer buffer[CALL_BUFFERS];
    double        start; /* seconds; WELFORD_VERBOSE only */
    /* filled by the back-end for WELFORD_VERBOSE */
    const char *variant, *why;
    int         threads;
};

/* ---- opening: import the structs (each `into` is the library's copy, completed by zeros) ---- */
#define CALL_IMPORT(call, into, from) call_import(call, #from, &(into), sizeof(into), from)
void call_open(struct call *call, const char *operation, const wf_exec *where);
void call_open_query(struct call *call, const char *operation, wf_backend backend); /* for wf_..._workspace */
void call_import(struct call *call, const char *name, void *into, size_t into_size, const void *from);
void call_import_args(struct call *call, void *into, size_t into_size, const void *with); /* may be NULL in a dry run */

/* ---- checks ---- */
void check_that(struct call *call, bool holds, const char *format, ...) __attribute__((format(printf, 3, 4)));
void check_flags(struct call *call, uint32_t flags, uint32_t known, uint32_t reserved);
void check_dtypes(struct call *call, wf_dtype x_dtype, wf_dtype w_dtype); /* enumerators here, the pair in call_ready */
void check_eps(struct call *call, double eps);
void check_fraction(struct call *call, const char *name, double value); /* in [0, 1] */
void check_activation(struct call *call, wf_activation activation, double slope);
/* Rows of a matrix. A zero stride becomes its default. */
void check_matrix(struct call *call, int64_t rows, int64_t cols);
void check_stride(struct call *call, const char *name, int64_t *stride, int64_t fallback, int64_t rows, int64_t cols);
/* What all others have. */
void check_channels(struct call *call, wf_layout layout, int64_t n, int64_t c, int64_t hw);

/* ---- buffers: inputs may share memory, an output shares none but with the input it may alias ---- */
enum need { OPTIONAL, NEEDED };
struct buffer_shape {
    wf_dtype dtype;
    int64_t  rows, cols, stride; /* elements */
};
struct buffer_shape vector_of(wf_dtype dtype, int64_t count);
/* Both return the index of the buffer, for use as an alias, or -1 if there is none. */
int check_input(struct call *call, const char *name, const void *data, struct buffer_shape shape, enum need need);
int check_output(struct call *call, const char *name, void *data, struct buffer_shape shape, enum need need, int alias);
void check_may_be(struct call *call, int output, int alias); /* another that it may alias; either may be -1 */

/* An output of rows of bytes, `stride` apart, which may alias nothing. */
void check_byte_rows(struct call *call, const char *name, const uint8_t *data, int64_t rows, int64_t cols, int64_t stride);

/* An input or output of bytes, which may alias nothing. */
void check_bytes(struct call *call, const char *name, const uint8_t *data, int64_t size, enum need need, bool output);

/* Runs f(arg) rounding to nearest with subnormals, whatever the caller's thread has set. The compiler must not see f
 * and the mode together, for it knows no order between them: call it through this pointer only. */
void in_our_fpmode(void (*f)(void *arg), void *arg);

wf_dtype wf_statistics_dtype(wf_dtype x_dtype);
size_t   wf_dtype_size(wf_dtype dtype);

/* ---- closing ---- */
bool      call_ready(struct call *call); /* the overlaps, the variant's name, the dtype pair; true: go to the back-end */
wf_status call_close(struct call *call, wf_status from_backend); /* the last thing a front door does */

/* ---- for back-ends ---- */
wf_status call_fail(struct call *call, wf_status status, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* The workspace aligned to 64 bytes, or WF_WORKSPACE if it holds less than size. */
wf_status call_workspace(struct call *call, size_t size, void **workspace);
#define CALL_WORKSPACE_SLACK 63 /* part of every non-zero wf_..._workspace */

#endif
