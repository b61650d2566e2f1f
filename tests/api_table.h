/* api_table.h - every operation of the API as data, its fields and its buffers: one loop tries a rule on all of them.
 * An ApiCall is one legal call in guarded buffers; a test breaks a field of it and says what must come of it. */
#ifndef TESTS_API_TABLE_H
#define TESTS_API_TABLE_H

#include <stddef.h>
#include <stdint.h>

#include "welford.h"

typedef enum FieldKind {
    FIELD_X_DTYPE, FIELD_W_DTYPE, FIELD_LAYOUT, FIELD_DROPOUT_KIND, FIELD_ACTIVATION, FIELD_QUANTIZATION, /* int-sized enums */
    FIELD_FLAGS, FIELD_RESERVED,                                    /* uint32_t        */
    FIELD_SIZE, FIELD_STRIDE, FIELD_GROUPS, FIELD_CHANNELS,         /* int64_t         */
    FIELD_EPS, FIELD_FRACTION, FIELD_FINITE                         /* double          */
} FieldKind;
typedef struct Field {
    const char *name;
    size_t offset;
    FieldKind kind;
} Field;

typedef enum Extent { /* elements and dtype of a buffer */
    EXTENT_X, EXTENT_Y, EXTENT_DX, EXTENT_RESIDUAL, EXTENT_SUM, EXTENT_DY, /* activations; the name tells the stride */
    EXTENT_PARAMETER,                                              /* [cols] or [c] of w_dtype               */
    EXTENT_PAIRS,                                                  /* [n, c] of w_dtype                      */
    EXTENT_BIAS,                                                   /* of a fold                              */
    EXTENT_ROWS, EXTENT_GROUPS, EXTENT_CHANNELS, EXTENT_INSTANCES, /* statistics                             */
    EXTENT_MASK, EXTENT_WORD,
    EXTENT_BYTES, EXTENT_FLOAT, EXTENT_ROW_FLOATS                  /* a quantised y, and its scales          */
} Extent;
typedef struct Buffer {
    const char *name;
    size_t offset;
    Extent extent;
    int output, needed;
    const char *alias; /* of an output: the input that it may be; "a|b": either */
} Buffer;

enum { MAX_FIELDS = 17, MAX_BUFFERS = 16 };
typedef struct Operation {
    const char *name;
    wf_status (*call)(const void *what, const void *with, const wf_exec *where);
    size_t (*workspace)(const void *what, wf_backend backend);
    size_t what_size, with_size;
    uint32_t flags; /* that some direction knows */
    Field field[MAX_FIELDS];
    Buffer buffer[MAX_BUFFERS];
} Operation;

/* Norms of a sum, those with a quantised y, modulated ones, the backward passes from y, and dropout with a given mask or
 * an activation, count as operations of their own. */
enum { OPERATIONS = 31 };
extern const Operation operations[OPERATIONS];

typedef struct ApiCall {
    const Operation *op;
    _Alignas(16) unsigned char what[256], with[256]; /* longer than any struct; zero past it */
    wf_exec where;
    unsigned char *memory[MAX_BUFFERS + 1]; /* the buffers and the workspace, as allocated */
    unsigned char *copy[MAX_BUFFERS + 1];   /* what was in them */
    size_t size[MAX_BUFFERS + 1];
} ApiCall;

/* A legal call on small tensors: [3, 5] with unequal strides, or [2, 6, 5]; f32; all buffers given; exactly the
 * workspace asked for. rows is that many rows (or samples) instead, if not 0. */
void api_begin(ApiCall *c, const Operation *op, int64_t rows);
void api_end(ApiCall *c);
wf_status api_call(const ApiCall *c);
void api_vary(ApiCall *c); /* f32 calls only: varied values in x, dy and bias instead of one, which api_begin wrote */
void api_fit(ApiCall *c); /* buffers and workspace anew, after a change of sizes or dtypes; NULL for an empty one */

/* The call must return status; failing ones with a text of the operation's name and all of `mentions` (NULL = nothing
 * more, else words separated by |), and with no byte of any buffer changed. */
void api_expect(const ApiCall *c, wf_status status, const char *mentions);
/* 1 if no buffer, nor what is around it, has changed since api_begin or api_fit; else 0. */
int api_untouched(const ApiCall *c);

const Field *api_field(const Operation *op, const char *name);   /* NULL if the operation has none of that name */
const Buffer *api_buffer(const Operation *op, const char *name); /* likewise */
int api_quantised(const Operation *op);                          /* whether y is bytes */
int api_may_be(const Buffer *output, const Buffer *input);        /* by output's alias */
void *api_what(ApiCall *c, const Field *f);                      /* where the field is */
void **api_with(ApiCall *c, const Buffer *b);
void api_set_integer(ApiCall *c, const char *field, int64_t value); /* fails if there is no such field */
void api_set_double(ApiCall *c, const char *field, double value);
int64_t api_integer(const ApiCall *c, const char *field); /* 0 if there is no such field */
size_t api_size(const ApiCall *c, const Buffer *b);       /* bytes of the buffer, gaps between rows included */

#endif
