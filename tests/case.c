#include "case.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

static const struct { const char *name; Norm norm; } ops[OP_COUNT] = {
    [LAYERNORM_FORWARD]     = { "layernorm_forward", LAYERNORM },
    [LAYERNORM_BACKWARD]    = { "layernorm_backward", LAYERNORM },
    [RMSNORM_FORWARD]       = { "rmsnorm_forward", RMSNORM },
    [RMSNORM_BACKWARD]      = { "rmsnorm_backward", RMSNORM },
    [GROUPNORM_FORWARD]     = { "groupnorm_forward", GROUPNORM },
    [GROUPNORM_BACKWARD]    = { "groupnorm_backward", GROUPNORM },
    [INSTANCENORM_TRAIN]    = { "instancenorm_train", INSTANCENORM },
    [INSTANCENORM_INFER]    = { "instancenorm_infer", INSTANCENORM },
    [INSTANCENORM_BACKWARD] = { "instancenorm_backward", INSTANCENORM },
    [BATCHNORM_TRAIN]       = { "batchnorm_train", BATCHNORM },
    [BATCHNORM_INFER]       = { "batchnorm_infer", BATCHNORM },
    [BATCHNORM_BACKWARD]    = { "batchnorm_backward", BATCHNORM },
    [DROPOUT_FORWARD]       = { "dropout_forward", DROPOUT },
    [DROPOUT_BACKWARD]      = { "dropout_backward", DROPOUT },
    [FOLD_BATCHNORM]        = { "fold_batchnorm", FOLD },
    [FOLD_LAYERNORM]        = { "fold_layernorm", FOLD },
};

/* Words of a field by value, NULL at the end; of a set of bits by bit. */
static const char *const dtypes[]   = { "f32", "f16", "bf16", "f64", "e4m3", "e5m2", "int8", NULL };
static const char *const layouts[]  = { "nchw", "nhwc", NULL };
static const char *const backends[] = { "cpu", "cuda", NULL };
static const char *const flags[]    = { "accumulate", "frozen", "features", "biased", "sum_f32", "given_mask", "bias_f32", NULL };
static const char *const adds[]     = { "residual", "sum", "row_scale", "col_scale", "dsum", "dresidual", "bias", "output",
                                        "y", "scale", "shift", "dscale", "dshift", NULL };
static const char *const quantizations[] = { "none", "e4m3", "e5m2", "int8", NULL };
static const char *const kinds[]    = { "dropout", "alpha", NULL };
static const char *const activations[] = { "none", "relu", "leaky_relu", "silu", "gelu", "gelu_tanh", NULL };
static const char *const fpmodes[]  = { "nearest", "up", "down", "zero", "flush", NULL };
static const char *const runnings[] = { "0", "1", "inplace", "nan", NULL };
static const char *const nulls[]    = { "x", "y", "dy", "dx", "gamma", "beta", "dgamma", "dbeta", "mean", "rstd",
                                        "mean_lo", "mask", "bias", "amax", NULL };
static const char *const datas[]    = { "normal", "offset", "ratio6", "constant", "subnormal", "huge18", "huge30",
                                        "nanrow", "infrow", "outlier", "exactsum", "ones", "tiny", "big",
                                        "opposite", NULL };

typedef enum Kind { INT32, INT64, UINT64, DOUBLE, WORD, BITS, NAME } Kind;

enum { ROWS = 1 << LAYERNORM | 1 << RMSNORM, CHANNELS = 1 << GROUPNORM | 1 << INSTANCENORM | 1 << BATCHNORM,
       FOLDS = 1 << FOLD, MATRICES = ROWS | FOLDS, NORMS = ROWS | CHANNELS | FOLDS,
       MODULATED = 1 << GROUPNORM | 1 << INSTANCENORM,
       MOVING = 1 << INSTANCENORM | 1 << BATCHNORM, DROP = 1 << DROPOUT, ALL = NORMS | DROP };

static const struct Field {
    const char        *name;
    unsigned           norms; /* that have it: bits 1 << Norm */
    size_t             at;
    Kind               kind;
    bool               always; /* printed even where it has its default value */
    const char *const *words;
} fields[] = {
    { "x", ALL, offsetof(Case, x), WORD, true, dtypes },
    { "w", ALL, offsetof(Case, w), WORD, false, dtypes }, /* default: x; so it stands behind x */
    { "layout", CHANNELS | DROP, offsetof(Case, layout), WORD, false, layouts },
    { "rows", MATRICES, offsetof(Case, rows), INT64, true, NULL },
    { "cols", MATRICES, offsetof(Case, cols), INT64, true, NULL },
    { "x_stride", MATRICES, offsetof(Case, x_stride), INT64, false, NULL },
    { "y_stride", MATRICES, offsetof(Case, y_stride), INT64, false, NULL },
    { "dx_stride", ROWS, offsetof(Case, dx_stride), INT64, false, NULL },
    { "dy_stride", ROWS, offsetof(Case, dy_stride), INT64, false, NULL },
    { "add", ROWS | CHANNELS | DROP, offsetof(Case, add), BITS, false, adds },
    { "drop", ROWS, offsetof(Case, drop), DOUBLE, false, NULL },
    { "quantize", ROWS, offsetof(Case, quantize), WORD, false, quantizations },
    { "y_scale", ROWS, offsetof(Case, y_scale), DOUBLE, false, NULL },
    { "amax", ROWS, offsetof(Case, amax), DOUBLE, false, NULL },
    { "residual_stride", ROWS, offsetof(Case, residual_stride), INT64, false, NULL },
    { "sum_stride", ROWS, offsetof(Case, sum_stride), INT64, false, NULL },
    { "channels", FOLDS, offsetof(Case, channels), INT64, false, NULL },
    { "n", CHANNELS | DROP, offsetof(Case, n), INT64, true, NULL },
    { "c", CHANNELS | DROP, offsetof(Case, c), INT64, true, NULL },
    { "hw", CHANNELS | DROP, offsetof(Case, hw), INT64, true, NULL },
    { "groups", 1 << GROUPNORM, offsetof(Case, groups), INT64, true, NULL },
    { "eps", NORMS, offsetof(Case, eps), DOUBLE, false, NULL },
    { "momentum", MOVING, offsetof(Case, momentum), DOUBLE, false, NULL },
    { "weight_offset", 1 << RMSNORM | FOLDS, offsetof(Case, weight_offset), DOUBLE, false, NULL },
    { "scale_offset", MODULATED, offsetof(Case, scale_offset), DOUBLE, false, NULL },
    { "kind", DROP, offsetof(Case, kind), WORD, false, kinds },
    { "p", DROP, offsetof(Case, p), DOUBLE, false, NULL },
    { "activation", CHANNELS | DROP, offsetof(Case, activation), WORD, false, activations },
    { "slope", CHANNELS | DROP, offsetof(Case, slope), DOUBLE, false, NULL },
    { "offset", DROP | ROWS, offsetof(Case, offset), UINT64, false, NULL },
    { "flags", ALL, offsetof(Case, flags), BITS, false, flags },
    { "running", MOVING, offsetof(Case, running), WORD, false, runnings },
    { "null", ALL, offsetof(Case, null), BITS, false, nulls },
    { "inplace", ALL, offsetof(Case, inplace), INT32, false, NULL },
    { "misalign", ALL, offsetof(Case, misalign), INT32, false, NULL },
    { "data", ALL, offsetof(Case, data), WORD, false, datas },
    { "seed", ALL, offsetof(Case, seed), UINT64, false, NULL },
    { "threads", ALL, offsetof(Case, threads), INT32, false, NULL },
    { "pool", ALL, offsetof(Case, pool), INT32, false, NULL },
    { "fpmode", ALL, offsetof(Case, fpmode), WORD, false, fpmodes },
    { "backend", ALL, offsetof(Case, backend), WORD, false, backends },
    { "variant", ALL, offsetof(Case, variant), NAME, false, NULL },
};

static const size_t sizes[] = { [INT32] = 4, [INT64] = 8, [UINT64] = 8, [DOUBLE] = 8, [WORD] = sizeof(int), [BITS] = 4,
                                [NAME] = sizeof((Case *)0)->variant };

const char *op_name(Op op) { return ops[op].name; }
Norm op_norm(Op op) { return ops[op].norm; }
bool op_is_backward(Op op) { return strstr(ops[op].name, "_backward") != NULL; }
bool op_is_infer(Op op) { return strstr(ops[op].name, "_infer") != NULL; }
static bool has_rows(const Case *c) { return ROWS >> ops[c->op].norm & 1; }
bool op_is_fold(Op op) { return op_norm(op) == FOLD; }
bool case_adds(const Case *c) { return has_rows(c) && (c->add || c->drop > 0); }
bool case_ends(const Case *c) { return CHANNELS >> ops[c->op].norm & 1 && (c->add & ~(uint32_t)ADD_MODULATION || c->activation); }
bool case_modulates(const Case *c) { return MODULATED >> ops[c->op].norm & 1 && c->add & ADD_MODULATION; }
bool case_fuses(const Case *c) { return ops[c->op].norm == DROPOUT && (c->add || c->activation); }
wf_dtype case_sum_dtype(const Case *c) { return c->flags & WF_SUM_F32 ? WF_F32 : c->x; }
wf_dtype case_y_dtype(const Case *c) { return c->quantize ? (wf_dtype)(WF_F64 + c->quantize) : c->x; }
const char *dtype_name(wf_dtype dtype) { return dtypes[dtype]; }
const char *data_name(Data data) { return datas[data]; }

Case case_default(Op op)
{
    Case c;
    memset(&c, 0, sizeof c); /* the padding too: cases may be compared and hashed as bytes */
    c.op = op;
    c.rows = c.cols = c.n = c.c = c.hw = c.groups = 1;
    c.eps = 1e-5;
    c.momentum = 0.1;
    c.slope = 0.2;
    c.p = 0.5;
    c.seed = 1;
    return c;
}

static int find_word(const char *const *words, const char *word, size_t length)
{
    for (int i = 0; words[i]; i++)
        if (strlen(words[i]) == length && !memcmp(words[i], word, length))
            return i;
    return -1;
}

/* Stores what stands at text[0..length) in a field; false if it is none of its values. */
static bool set_field(const struct Field *f, Case *c, const char *text, size_t length)
{
    void *at = (char *)c + f->at;
    char copy[64], *end;
    if (length == 0 || length >= sizeof copy)
        return false;
    memcpy(copy, text, length);
    copy[length] = 0;
    errno = 0;
    switch (f->kind) {
    case INT32:
    case INT64: {
        long long v = strtoll(copy, &end, 10);
        if (f->kind == INT64)
            *(int64_t *)at = v;
        else if (v == (int32_t)v)
            *(int32_t *)at = (int32_t)v;
        else
            return false;
        return !*end && !errno;
    }
    case UINT64:
        *(uint64_t *)at = strtoull(copy, &end, 10);
        return !*end && !errno && copy[0] != '-';
    case DOUBLE:
        *(double *)at = strtod(copy, &end);
        return !*end;
    case WORD: {
        int v = find_word(f->words, text, length);
        *(int *)at = v;
        return v >= 0;
    }
    case BITS:
        *(uint32_t *)at = 0;
        for (char *word = strtok(copy, ","); word; word = strtok(NULL, ",")) {
            int bit = find_word(f->words, word, strlen(word));
            if (bit < 0)
                return false;
            *(uint32_t *)at |= 1u << bit;
        }
        return true;
    case NAME:
        if (length >= sizeof c->variant)
            return false;
        memset(at, 0, sizeof c->variant);
        memcpy(at, text, length);
        return true;
    }
    return false;
}

const char *case_parse(Case *c, const char *line)
{
    static _Thread_local char error[160];
    size_t length = strcspn(line += strspn(line, " \t\n"), " \t\n");
    int op = 0;
    while (op < OP_COUNT && (strlen(ops[op].name) != length || memcmp(ops[op].name, line, length)))
        op++;
    if (op == OP_COUNT) {
        snprintf(error, sizeof error, "no operation '%.*s'", (int)length, line);
        return error;
    }
    *c = case_default((Op)op);
    bool w_given = false;
    while (*(line += length, line += strspn(line, " \t\n"))) {
        length = strcspn(line, " \t\n");
        const char *equals = memchr(line, '=', length);
        int i = 0;
        while (i < COUNT(fields) && !(equals && fields[i].norms >> ops[op].norm & 1 &&
                                      strlen(fields[i].name) == (size_t)(equals - line) &&
                                      !memcmp(fields[i].name, line, (size_t)(equals - line))))
            i++;
        if (i == COUNT(fields) || !set_field(&fields[i], c, equals + 1, (size_t)(line + length - equals - 1))) {
            snprintf(error, sizeof error, "%s: %s '%.*s'", ops[op].name, i == COUNT(fields) ? "no field" : "bad value",
                     (int)length, line);
            return error;
        }
        w_given |= fields[i].at == offsetof(Case, w);
    }
    if (!w_given)
        c->w = c->x;
    return NULL;
}

/* The shortest decimal text that reads back as v. */
static void print_double(char text[32], double v)
{
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, 32, "%.*g", digits, v);
        if (strtod(text, NULL) == v)
            return;
    }
}

char *case_print(const Case *c, char line[CASE_SIZE])
{
    Case plain = case_default(c->op);
    plain.w = c->x;
    int at = snprintf(line, CASE_SIZE, "%s", ops[c->op].name);
    for (const struct Field *f = fields; f < fields + COUNT(fields); f++) {
        const void *v = (const char *)c + f->at;
        if (!(f->norms >> ops[c->op].norm & 1) ||
            (!f->always && !memcmp(v, (const char *)&plain + f->at, sizes[f->kind])))
            continue;
        char text[160] = "";
        switch (f->kind) {
        case INT32: snprintf(text, sizeof text, "%" PRId32, *(const int32_t *)v); break;
        case INT64: snprintf(text, sizeof text, "%" PRId64, *(const int64_t *)v); break;
        case UINT64: snprintf(text, sizeof text, "%" PRIu64, *(const uint64_t *)v); break;
        case DOUBLE: print_double(text, *(const double *)v); break;
        case WORD: snprintf(text, sizeof text, "%s", f->words[*(const int *)v]); break;
        case NAME: snprintf(text, sizeof text, "%s", (const char *)v); break;
        case BITS:
            for (int bit = 0; f->words[bit]; bit++)
                if (*(const uint32_t *)v >> bit & 1)
                    snprintf(text + strlen(text), sizeof text - strlen(text), "%s%s", *text ? "," : "", f->words[bit]);
            break;
        }
        at += snprintf(line + at, (size_t)(CASE_SIZE - at), " %s=%s", f->name, text);
    }
    return line;
}
