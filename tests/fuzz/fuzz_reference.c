/* fuzz_reference.c - what an accepted call must have computed: the oracles of the test suite, given the numbers that
 * lie in the call's buffers. */
#include "fuzz.h"

#include "compare.h"
#include "oracle_dropout.h"
#include "oracle_sum.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct Reference {
    const Call *call;
    Case        c;
    Problem    *problem; /* NULL for dropout */
    bool        settled; /* the inputs are what the statistics were taken from: no input lies in another */
    bool        extreme; /* eps is Inf to the arithmetic type: so rstd is 0, but y must still be right */
};

static int find(const Operation *op, const char *name)
{
    for (int i = 0; i < op->fields; i++)
        if (strcmp(op->field[i].name, name) == 0)
            return i;
    return -1;
}

static const Buffer *present(const Call *call, const char *name)
{
    const int i = find(call->op, name);
    return i >= 0 && call->buffer[i].at != NULL ? &call->buffer[i] : NULL;
}

static const Buffer *rstd_of(const Call *call)
{
    return present(call, call->op->norm == RMSNORM ? "rrms" : "rstd");
}

/* Element k, counted without the gaps between rows. */
static int64_t place(const Buffer *b, int64_t k)
{
    return b->rows == 1 ? k : k / b->cols * b->stride + k % b->cols;
}

static void store(const Buffer *b, const Quad *values)
{
    for (int64_t k = 0; b != NULL && values != NULL && k < b->rows * b->cols; k++)
        dtype_store((wf_dtype)b->dtype, b->at, place(b, k), values[k]);
}

static void load(const Buffer *b, Quad *values)
{
    for (int64_t k = 0; b != NULL && values != NULL && k < b->rows * b->cols; k++)
        values[k] = dtype_load((wf_dtype)b->dtype, b->at, place(b, k));
}

static bool still_holds(const Buffer *b, const Quad *values)
{
    for (int64_t k = 0; b != NULL && k < b->rows * b->cols; k++) {
        const double wanted = (double)round_to((wf_dtype)b->dtype, values[k]), got = dtype_load((wf_dtype)b->dtype, b->at, k);
        if (got != wanted && !(isnan(got) && isnan(wanted)))
            return false;
    }
    return true;
}

static Case case_of(const Call *call, Data data, uint64_t seed)
{
    const What *w = &call->what;
    int         op = 0;
    while (strcmp(op_name((Op)op), call->op->name) != 0)
        op++;
    Case c = case_default((Op)op);
    c.x = (wf_dtype)w->x_dtype;
    c.w = (wf_dtype)w->w_dtype;
    c.layout = (wf_layout)w->layout;
    c.flags = w->flags;
    c.rows = c.n = w->n;
    c.cols = c.c = w->c;
    c.hw = w->hw;
    c.groups = w->groups;
    c.x_stride = w->x_stride;
    c.y_stride = w->y_stride;
    c.dx_stride = w->dx_stride;
    c.dy_stride = w->dy_stride;
    c.eps = w->eps;
    c.kind = w->kind;
    c.weight_offset = call->op->norm != RMSNORM && call->op->norm != FOLD ? 0 : c.x == WF_F64 ? w->extra : (float)w->extra;
    c.momentum = c.p = w->extra;
    c.null = (present(call, "gamma") ? 0 : NULL_GAMMA) | (present(call, "beta") ? 0 : NULL_BETA) |
             (present(call, "bias") ? 0 : NULL_BIAS);
    c.channels = w->groups;
    c.running = present(call, "running_mean_in") ? RUNNING_SEPARATE : RUNNING_NONE;
    c.offset = call->offset;
    if (call->op->sums) {
        static const char *const parts[] = { "residual", "sum", "row_scale", "col_scale", "dsum", "dresidual" };
        for (int i = call->op->direction == BACKWARD ? 2 : 0; i < 6; i++) /* in the order of ADD_RESIDUAL ... */
            c.add |= present(call, parts[i]) ? 1u << i : 0;
        c.residual_stride = w->residual_stride;
        c.sum_stride = w->sum_stride;
        c.drop = w->drop;
    }
    c.data = data;
    c.seed = seed;
    return c;
}

/* The statistics a backward pass is given: those of the forward pass on the same x, or any constants where frozen. False if
 * one of them lies in another, so that they cannot all be what they should. */
static bool store_statistics(const Reference *r)
{
    const Call *call = r->call;
    Problem    *p = r->problem;
    const bool  frozen = (call->op->norm == BATCHNORM || call->op->norm == INSTANCENORM) && r->c.flags & WF_FROZEN;
    Case        forward = r->c;
    Expected    out[OUTPUT_COUNT];
    forward.op = (Op)(frozen ? (call->op->norm == BATCHNORM ? BATCHNORM_INFER : INSTANCENORM_INFER)
                             : call->op->norm == BATCHNORM      ? BATCHNORM_TRAIN
                               : call->op->norm == INSTANCENORM ? INSTANCENORM_TRAIN
                               : call->op->norm == GROUPNORM    ? GROUPNORM_FORWARD
                               : call->op->norm == RMSNORM      ? RMSNORM_FORWARD
                                                                : LAYERNORM_FORWARD);
    forward.running = RUNNING_NONE;
    p->c = &forward;
    oracle_solve(p, NULL, out);
    p->c = &r->c;
    store(rstd_of(call), out[OUT_RSTD].value);
    bool apart = true;
    if (call->op->norm != RMSNORM) {
        Quad         *mean = frozen ? p->running_mean : out[OUT_MEAN].value;
        const Buffer *hi = present(call, "mean"), *lo = present(call, "mean_lo");
        store(hi, mean);
        for (int64_t i = 0; lo != NULL && i < lo->cols; i++) {
            const double rounded = (double)round_to((wf_dtype)lo->dtype, mean[i]);
            dtype_store((wf_dtype)lo->dtype, lo->at, i, isfinite(rounded) ? mean[i] - rounded : mean[i]);
        }
        apart = still_holds(hi, mean) && still_holds(rstd_of(call), out[OUT_RSTD].value);
    }
    oracle_free(out);
    return apart;
}

static uint64_t bits_at(const Buffer *b, const uint8_t *at, int64_t i)
{
    uint64_t bits = 0; /* little-endian, as every machine this runs on */
    memcpy(&bits, at + i * (int64_t)b->element, b->element);
    return bits;
}

/* The pointers as they were before the call; NULL: not given. */
static uint64_t seed_of(const Call *call, const Buffer *seed_ptr)
{
    return seed_ptr != NULL ? bits_at(seed_ptr, seed_ptr->at, 0) : call->seed;
}

static uint64_t offset_of(const Call *call, const Buffer *offset_ptr)
{
    return call->offset + (offset_ptr != NULL ? bits_at(offset_ptr, offset_ptr->at, 0) : 0);
}

static void store_addition(const Call *call, const Problem *p)
{
    store(present(call, "residual"), p->residual);
    store(present(call, "row_scale"), p->row_scale);
    store(present(call, "col_scale"), p->col_scale);
    store(present(call, "dsum"), p->dsum);
}

static void load_addition(const Call *call, Problem *p, Case *c)
{
    c->seed = seed_of(call, present(call, "seed_ptr"));
    c->offset = offset_of(call, present(call, "offset_ptr"));
    load(present(call, "residual"), p->residual);
    load(present(call, "row_scale"), p->row_scale);
    load(present(call, "col_scale"), p->col_scale);
    load(present(call, "dsum"), p->dsum);
    load(present(call, "x"), p->branch);
    addition_make(p);
}

static const Buffer *mean_of(const Call *call)
{
    return present(call, call->op->norm == FOLD ? "mean" : call->op->direction == INFER ? "running_mean" : "running_mean_in");
}

static const Buffer *var_of(const Call *call)
{
    return present(call, call->op->norm == FOLD ? "var" : call->op->direction == INFER ? "running_var" : "running_var_in");
}

/* What is normalized, or folded, where the caller gives it. */
static const Buffer *normalized(const Call *call)
{
    if (call->op->norm == FOLD)
        return present(call, "weight");
    return present(call, call->op->sums && call->op->direction == BACKWARD ? "sum" : "x");
}

static void load_inputs(const Call *call, Problem *p, Case *c)
{
    if (p->branch != NULL)
        load_addition(call, p, c);
    if (p->branch == NULL || call->op->direction == BACKWARD)
        load(normalized(call), p->x);
    load(present(call, "dy"), p->dy);
    load(present(call, "gamma"), p->gamma);
    load(present(call, "beta"), p->beta);
    load(present(call, "bias"), p->bias);
    load(mean_of(call), p->running_mean);
    load(var_of(call), p->running_var);
    load(present(call, "dgamma"), p->old_dgamma);
    load(present(call, "dbeta"), p->old_dbeta);
}

static double fingerprint(const Problem *p)
{
    double sum = 0;
    for (int64_t i = 0; i < p->count; i++)
        sum += (double)p->x[i] * (double)(i + 1) + (p->dy != NULL ? (double)p->dy[i] / (double)(i + 2) : 0);
    for (int64_t i = 0; i < p->params; i++)
        sum += (p->gamma != NULL ? (double)p->gamma[i] : 0) / (double)(i + 3);
    return sum;
}

static void fill_dropout(const Call *call, uint64_t seed)
{
    const Buffer *x = present(call, "x");
    for (int64_t i = 0; x != NULL && i < x->cols; i++) {
        const uint64_t bits = random_bits(&seed);
        dtype_store((wf_dtype)x->dtype, x->at, i, bits % 64 == 0 ? (Quad)NAN : (Quad)((double)(int32_t)bits * 0x1p-29));
    }
}

Reference *reference_new(const Call *call, Data data, uint64_t seed)
{
    Reference *r = calloc(1, sizeof *r);
    r->call = call;
    r->c = case_of(call, data, seed);
    r->settled = true;
    r->extreme = r->c.x != WF_F64 && r->c.eps > 1e30;
    if (r->extreme && (data == INFROW || data == NANROW || isinf(r->c.weight_offset))) /* Inf * 0 */
        r->settled = false;
    if (r->c.x != WF_F64 && (float)r->c.eps == 0)
        r->c.eps = 0;
    if (call->op->norm == DROPOUT) {
        fill_dropout(call, seed);
        return r;
    }
    Problem *p = r->problem = problem_new(&r->c);
    if (p == NULL) {
        free(r);
        return NULL;
    }
    store(normalized(call), p->branch != NULL && call->op->direction != BACKWARD ? p->branch : p->x);
    if (p->branch != NULL)
        store_addition(call, p);
    store(present(call, "dy"), p->dy);
    store(present(call, "gamma"), p->gamma);
    store(present(call, "beta"), p->beta);
    store(present(call, "bias"), p->bias);
    store(mean_of(call), p->running_mean);
    store(var_of(call), p->running_var);
    if (call->op->direction == BACKWARD) {
        store(present(call, "dgamma"), p->old_dgamma);
        store(present(call, "dbeta"), p->old_dbeta);
        load_inputs(call, p, &r->c);
        const double wanted = fingerprint(p);
        const bool apart = store_statistics(r);
        load_inputs(call, p, &r->c);
        const double got = fingerprint(p);
        r->settled = apart && memcmp(&wanted, &got, sizeof got) == 0;
    } else {
        load_inputs(call, p, &r->c);
    }
    return r;
}

void reference_free(Reference *r)
{
    if (r != NULL)
        problem_free(r->problem);
    free(r);
}

const char *reference_line(const Reference *r)
{
    static char line[CASE_SIZE];
    return case_print(&r->c, line);
}

/* ---- comparing ---- */

static const char *check_output(const Reference *r, Output output, const Buffer *b, Expected *expected)
{
    if (b == NULL || expected->value == NULL)
        return NULL;
    static char message[128];
    const int64_t count = b->rows * b->cols;
    if (count != expected->count) {
        snprintf(message, sizeof message, "%s has %lld elements, the oracle %lld", output_name(output),
                 (long long)count, (long long)expected->count);
        return message;
    }
    Quad *got = malloc((size_t)(count + 1) * sizeof *got);
    load(b, got);
    if (output == OUT_MEAN_PAIR) {
        const Buffer *lo = present(r->call, "mean_lo");
        for (int64_t i = 0; i < count; i++)
            got[i] += dtype_load((wf_dtype)lo->dtype, lo->at, i);
    }
    /* Every merge of partial sums of subnormals rounds to a multiple of the least number: a few units of it. */
    for (int64_t i = 0; r->c.data == SUBNORMAL && i < count; i++)
        expected->bar[i] += 16 * least((wf_dtype)b->dtype);
    Comparison  comparison;
    const char *wrong = compare(&r->c, output, expected, got, &comparison);
    free(got);
    return wrong;
}

static const char *check_norm(const Reference *r)
{
    const Call    *call = r->call;
    const Problem *p = r->problem;
    const Buffer  *mean = present(call, "mean"), *lo = present(call, "mean_lo");
    const bool     backward = call->op->direction == BACKWARD;
    Expected       out[OUTPUT_COUNT];
    Quad          *mean_given = NULL;
    if (backward && call->op->norm != RMSNORM && lo == NULL && mean != NULL) {
        mean_given = malloc((size_t)(mean->cols + 1) * sizeof *mean_given);
        load(mean, mean_given);
    }
    oracle_solve(p, mean_given, out);
    free(mean_given);
    const Buffer *const got[OUTPUT_COUNT] = {
        [OUT_Y] = present(call, call->op->norm == FOLD ? "folded_weight" : "y"),
        [OUT_MEAN] = backward ? NULL : mean,
        [OUT_MEAN_PAIR] = backward || lo == NULL ? NULL : mean,
        [OUT_RSTD] = backward || r->extreme ? NULL : rstd_of(call),
        [OUT_RUNNING_MEAN] = present(call, "running_mean_out"),
        [OUT_RUNNING_VAR] = present(call, "running_var_out"),
        [OUT_DX] = present(call, "dx"),
        [OUT_DGAMMA] = present(call, "dgamma"),
        [OUT_DBETA] = present(call, "dbeta"),
        [OUT_SUM] = backward ? NULL : present(call, "sum"),
        [OUT_DRESIDUAL] = present(call, "dresidual"),
        [OUT_FOLDED_BIAS] = present(call, "folded_bias"),
    };
    const char *wrong = NULL;
    for (int i = 0; i < OUTPUT_COUNT && wrong == NULL; i++)
        wrong = check_output(r, (Output)i, got[i], &out[i]);
    oracle_free(out);
    return wrong;
}

static const char *check_dropout(const Reference *r, const Buffer before[MAX_FIELDS])
{
    static char       message[160];
    const Call       *call = r->call;
    const What       *w = &call->what;
    const int         backward = call->op->direction == BACKWARD;
    const Buffer     *x = &before[find(call->op, "x")], *y = present(call, "y"), *mask = present(call, "mask");
    const Buffer     *seed_ptr = &before[find(call->op, "seed_ptr")];
    const Buffer     *offset_ptr = &before[find(call->op, "offset_ptr")];
    const uint64_t    seed = seed_of(call, seed_ptr->at != NULL ? seed_ptr : NULL);
    const uint64_t    offset = offset_of(call, offset_ptr->at != NULL ? offset_ptr : NULL);
    const wf_dropout  what = { .size = sizeof what, .x_dtype = (wf_dtype)w->x_dtype, .kind = (wf_dropout_kind)w->kind,
                               .layout = (wf_layout)w->layout, .flags = w->flags, .n = w->n, .c = w->c, .hw = w->hw,
                               .p = w->extra };
    const uint8_t    *given = backward && w->flags & WF_GIVEN_MASK ? before[find(call->op, "mask")].at : NULL;
    for (int64_t i = 0; y != NULL && i < y->cols; i++) {
        const int64_t  u = oracle_dropout_unit(&what, i);
        const int      keep = given ? what.p < 1 && given[u / 8] >> u % 8 & 1
                                    : oracle_dropout_keep(what.p, seed, offset, (uint64_t)u);
        const uint64_t want = oracle_dropout_value(&what, backward, keep, bits_at(x, x->at, i));
        const uint64_t got = bits_at(y, y->at, i);
        if (got != want && !(oracle_is_nan(what.x_dtype, got) && oracle_is_nan(what.x_dtype, want))) {
            snprintf(message, sizeof message, "y[%lld] is 0x%llx, expected 0x%llx", (long long)i,
                     (unsigned long long)got, (unsigned long long)want);
            return message;
        }
    }
    for (int64_t u = 0; mask != NULL && !backward && u < 8 * mask->cols; u++) {
        const int want = u < oracle_dropout_units(&what) && oracle_dropout_keep(what.p, seed, offset, (uint64_t)u);
        if ((mask->at[u / 8] >> u % 8 & 1) != want) {
            snprintf(message, sizeof message, "mask bit %lld is not %d", (long long)u, want);
            return message;
        }
    }
    return NULL;
}

const char *reference_check(const Reference *r, const Buffer before[MAX_FIELDS])
{
    if (r->call->op->norm == DROPOUT)
        return check_dropout(r, before);
    return r->settled && !(r->extreme && r->call->op->direction == BACKWARD) ? check_norm(r) : NULL;
}
