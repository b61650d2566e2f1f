/* fuzz.h - a call of the library as data: what the bytes of the fuzzer are turned into (fuzz_plan.c), whether the
 * header says that it must be accepted (fuzz_model.c), and what an accepted one must compute (fuzz_reference.c). */
#ifndef WELFORD_TESTS_FUZZ_H
#define WELFORD_TESTS_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "data.h"
#include "welford.h"

enum {
    MAX_ELEMENTS = 1 << 15, /* of one buffer, gaps between rows included; a larger shape is only tried in a dry run */
    MAX_FIELDS   = 15
};

typedef enum Direction { FORWARD, INFER, BACKWARD } Direction;

typedef enum Role {
    NO_FIELD,
    X, Y, DY, DX,  /* activations */
    RESIDUAL, SUM, /* of the norm of a sum, their gradients too */
    WEIGHT,        /* [c], w_dtype; of a fold [channels] */
    BIAS,          /* of a fold */
    STATISTIC,     /* one per row, group, channel or instance */
    CHANNEL,       /* [c], the dtype of statistics: running mean and variance; of a fold [channels] */
    MASK, WORD     /* dropout's bit mask; seed_ptr and offset_ptr */
} Role;

typedef struct Field {
    const char *name;
    Role        role;
    bool        output, needed;
    int         alias; /* the field that this output may be; -1 = none */
    int         word;  /* its place in the args struct, in 8-byte words */
} Field;

typedef struct Operation {
    const char *name;
    Norm      norm;
    Direction   direction;
    size_t      what_size, with_size;
    wf_status (*call)(const void *what, const void *with, const wf_exec *where);
    size_t (*workspace)(const void *what, wf_backend backend);
    int         seed_word; /* where seed and offset are, in 8-byte words of the args struct; 0 = nowhere */
    bool        sums;      /* the norm of a sum */
    int         fields;
    Field       field[MAX_FIELDS];
} Operation;
extern const Operation operations[];
extern const int       operation_count;

/* The fields of every what struct; rows and cols are n and c, a fold's channels are groups. */
typedef struct What {
    int32_t  x_dtype, w_dtype, layout, kind;
    uint32_t flags, reserved;
    int64_t  n, c, hw, groups;
    int64_t  x_stride, y_stride, dx_stride, dy_stride;
    double   eps, extra; /* extra: weight_offset, momentum or dropout's p */
    double   drop;       /* the p of a sum */
    int64_t  residual_stride, sum_stride;
} What;
void what_encode(const Operation *op, const What *what, void *image);       /* image: op->what_size bytes */
void what_decode(const Operation *op, const void *image, What *what);       /* likewise, completed by zeros */

typedef struct Buffer {
    uint8_t *at; /* NULL = absent */
    int      dtype;
    size_t   element; /* bytes */
    int64_t  rows, cols, stride;
} Buffer;

/* One call, as the library will see it. */
typedef struct Call {
    const Operation *op;
    const void      *what_at, *with_at; /* NULL, or structs of the size they state */
    const wf_exec   *where_at;
    What             what;              /* what the library must understand, if its size is right */
    Buffer           buffer[MAX_FIELDS];
    uint64_t         seed, offset; /* without what seed_ptr and offset_ptr point to */
    bool             real; /* the buffers are memory; false: a dry run with made-up addresses or none */
} Call;

/* ---- fuzz_calls.c ---- */
typedef struct Counts { int64_t refused, dry, compared, repeated; } Counts;
extern Counts counts; /* refused; accepted in a dry run; accepted and compared; of these, compared with a second run */
int           LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* ---- fuzz_plan.c ---- */
/* What is wrong with a call. Each takes one more byte, `how`. */
typedef enum Wrong {
    WHAT_SIZE, WITH_SIZE, WHERE_SIZE, NO_STRUCT,
    X_DTYPE, W_DTYPE, LAYOUT, KIND, FLAGS, RESERVED, SIZE, STRIDE, EPS, EXTRA,
    NO_BUFFER, MISALIGNED, OVERLAP,
    EXEC_FLAGS, BACKEND, THREADS, VARIANT, SMALL_WORKSPACE, SHARED_WORKSPACE, WRONGS
} Wrong;

enum { MOST_WRONGS = 3 };

/* A call before it is laid out in memory. */
typedef struct Plan {
    const Operation *op;
    What             what;
    unsigned         absent;  /* fields, by bit, left NULL if they may be */
    unsigned         in_place; /* fields, by bit, that are their alias */
    unsigned         front;   /* fields, by bit, that begin behind a guard page instead of ending before one */
    Data             data;
    uint64_t         seed;
    uint32_t         where_flags;
    unsigned         pieces, variant, other_variant;
    int              wrongs;
    struct {
        Wrong    what;
        unsigned how, more[2];
    } wrong[MOST_WRONGS];
} Plan;

Plan plan_call(const uint8_t *data, size_t size); /* mostly legal, and what is wrong with `what` is in it */
bool is_wrong(const Plan *plan, Wrong what, unsigned *how);

#define PICK(table, byte) (table)[(byte) % (sizeof(table) / sizeof *(table))]

/* ---- fuzz_model.c ---- */
bool    is_rows(Norm norm);
size_t  element_size(int dtype); /* 0 if there is no such dtype */
int     statistics_dtype(int x_dtype);
/* What a field must hold for this call, `at` left NULL. Sizes must be sane. */
Buffer  buffer_of(const Call *call, int field);
/* A sane `what`: enumerators exist, no size is negative, and no buffer has more than MAX_ELEMENTS elements. */
bool    is_small(const Operation *op, const What *what);
int64_t statistics_count(const Operation *op, const What *what);
bool    is_output(const Call *call, int field);         /* the call may write it */
int64_t divided(const Operation *op, const What *what); /* what groups must divide */
int64_t span_of(const Buffer *buffer);                  /* bytes from its first to its last element */
bool    holds(const Buffer *buffer, const uint8_t *at); /* this byte belongs to one of its elements */
bool    what_is_bad(const Call *call);                  /* WF_INVALID whatever the rest of the call is */
/* The set of statuses the header allows for this call, as 1 << status. */
unsigned allowed_statuses(const Call *call);

/* ---- fuzz_reference.c: the tests' own oracles, fed from memory ---- */
typedef struct Reference Reference;
/* Fills the inputs (and outputs that are added to) with numbers: `data` for x, N(0, 1) and the like for the others, the
 * true statistics for a backward pass. NULL if the shape makes no tensor. call must outlive the result. */
Reference *reference_new(const Call *call, Data data, uint64_t seed);
void       reference_free(Reference *reference);
/* NULL, or what is wrong with the outputs. before[i] holds what buffer[i] held before the call. */
const char *reference_check(const Reference *reference, const Buffer before[MAX_FIELDS]);
/* The case as tests/case.h prints it. */
const char *reference_line(const Reference *reference);

#endif
