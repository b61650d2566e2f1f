#include "run_dropout.h"

#include <check.h>
#include <fenv.h>
#include <inttypes.h>
#include <math.h>
#include <quadmath.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef __SSE2__
#include <immintrin.h>
#endif

#include "data.h"
#include "device.h"
#include "guard.h"
#include "oracle_activation.h"
#include "oracle_dropout.h"
#include "pool.h"

enum { FLUSH = 0x8040, ROUNDING = 0x6000 }; /* MXCSR: flush to zero with denormals are zero; the rounding */

/* The mode of this thread as one number: fegetround() alone looks at the x87 unit on x86. */
static unsigned current_mode(void)
{
    unsigned mode = (unsigned)fegetround();
#ifdef __SSE2__
    mode |= (_mm_getcsr() & (FLUSH | ROUNDING)) << 16;
#endif
    return mode;
}

static void set_mode(FpMode mode)
{
    static const int rounding[] = {FE_TONEAREST, FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO, FE_TONEAREST};
    fesetround(rounding[mode]);
#ifdef __SSE2__
    _mm_setcsr((_mm_getcsr() & ~(unsigned)FLUSH) | (mode == MODE_FLUSH ? FLUSH : 0));
#endif
}

static uint64_t next_random(uint64_t *state) /* splitmix64 */
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static uint64_t bits_of(wf_dtype dtype, double value)
{
    uint64_t bits = 0;
    if (dtype == WF_F64) {
        memcpy(&bits, &value, sizeof value);
    } else if (dtype == WF_F32) {
        const float single = (float)value;
        memcpy(&bits, &single, sizeof single);
    } else {
        bits = oracle_narrow(dtype, value);
    }
    return bits;
}

/* One in eight is a value that a multiplication would show: NaN, Inf, zeros, the largest and the smallest. */
static uint64_t element(wf_dtype dtype, uint64_t *state)
{
    static const double largest[] = {0x1.fffffep127, 65504, 0x1.fep127, 0x1.fffffffffffffp1023};
    static const double smallest[] = {0x1p-149, 0x1p-24, 0x1p-133, 0x1p-1074};
    const uint64_t r = next_random(state);
    const double sign = r >> 8 & 1 ? -1 : 1;
    switch (r % 64) {
    case 0:
        return bits_of(dtype, NAN);
    case 1:
        return bits_of(dtype, sign * INFINITY);
    case 2:
        return bits_of(dtype, sign * 0.0);
    case 3:
        return bits_of(dtype, sign * largest[dtype]);
    case 4:
        return bits_of(dtype, sign * smallest[dtype] * (double)(r >> 60));
    case 5: /* where products become subnormal and are rounded there */
        return bits_of(dtype, sign * smallest[dtype] * (double)(r >> 50));
    default:
        return bits_of(dtype, sign * ldexp((double)(r >> 11), -51));
    }
}

static uint64_t load(const void *data, int64_t i, size_t size)
{
    uint64_t bits = 0;
    memcpy(&bits, (const char *)data + (size_t)i * size, size); /* little-endian, as all our targets are */
    return bits;
}

static int compare(const wf_dropout *what, int backward, const uint8_t *keep, const void *x, const void *y, size_t size,
                   char *message, size_t message_size)
{
    const int64_t count = what->n * what->c * what->hw;
    for (int64_t i = 0; i < count; i++) {
        const int64_t u = oracle_dropout_unit(what, i);
        const uint64_t in = load(x, i, size), got = load(y, i, size);
        const uint64_t want = oracle_dropout_value(what, backward, keep[u], in);
        if (got == want || (oracle_is_nan(what->x_dtype, want) && oracle_is_nan(what->x_dtype, got)))
            continue;
        snprintf(message, message_size,
                 "y[%" PRId64 "] = %#" PRIx64 ", expected %#" PRIx64 " (x = %#" PRIx64 ", unit %" PRId64 " %s)", i, got,
                 want, in, u, keep[u] ? "kept" : "dropped");
        return 1;
    }
    return 0;
}

/* What is around the dropout of one element, as the arithmetic has it. */
typedef struct Inner {
    wf_dtype x, real; /* x's dtype, and the one that its arithmetic is of */
    wf_activation activation;
    double slope;
    Quad z, other; /* x + bias, which is rounded; the residual, or dy */
} Inner;

/* Is `got` what the formulas give, within the header's bars? Where a term leaves the range, anything may come of it. */
static int is_right(const wf_dropout *what, const Inner *in, int backward, int keep, Quad got)
{
    const Quad u = in->real == WF_F64 ? 0x1p-53Q : 0x1p-24Q, least = in->real == WF_F64 ? 0x1p-1074Q : 0x1p-149Q;
    const Quad most = in->real == WF_F64 ? 0x1p1023Q : 0x1p127Q;
    Quad       want, bar, size;
    if (backward) {
        const Quad slope = oracle_activation_derivative(in->activation, in->slope, in->z, &size);
        Quad       dy_size;
        if (!keep)
            return got == 0 && !signbitq(got);
        const Quad dy = oracle_dropout_real(what, 1, keep, in->other, &dy_size);
        want = in->activation ? dy * slope : dy;
        bar = (8 * u * size + 2 * least) * dy_size + 2 * least;
        size = dy_size * (1 + size);
    } else {
        const Quad value = oracle_activation(in->activation, in->slope, in->z);
        const Quad kept = oracle_dropout_real(what, 0, keep, value, &size);
        want = in->other + kept;
        bar = 6 * u * size + 4 * least * (1 + (keep ? 1 / (1 - (Quad)what->p) : 0)) + u * fabsq(want);
    }
    if (isnanq(want))
        return isnanq(got) || fabsq(size) >= most || (backward && isnanq(in->z) && in->activation <= WF_LEAKY_RELU);
    if (isinfq(want))
        return got == want || isnanq(got);
    if (size >= most || fabsq(in->z) >= most || fabsq(want) >= most)
        return 1;
    bar += ulp_at(in->x, (double)(fabsq(want) + bar)) / 2;
    if (isinfq(got)) /* beyond the largest of x's dtype */
        return in->x == WF_F16 && fabsq(want) + bar >= 65520;
    return fabsq(got - want) <= bar;
}

static Quad number(wf_dtype dtype, const void *data, int64_t i) { return data ? dtype_load(dtype, data, i) : 0; }

/* x: of a backward pass dy; other: its forward x, or the residual. */
static int compare_fused(const Case *c, const wf_dropout *what, const uint8_t *keep, const void *x, const void *bias,
                         const void *other, const void *y, char *message, size_t message_size)
{
    const int backward = c->op == DROPOUT_BACKWARD;
    for (int64_t i = 0; i < what->n * what->c * what->hw; i++) {
        const int64_t channel = what->layout == WF_NCHW ? i / what->hw % what->c : i % what->c;
        const Quad    outer = number(c->x, backward ? other : x, i), add = number(c->w, bias, channel);
        Inner in = {c->x, c->x == WF_F64 ? WF_F64 : WF_F32, (wf_activation)c->activation, c->slope, outer,
                    number(c->x, backward ? x : other, i)};
        if (bias)
            in.z = c->x == WF_F64 ? (double)outer + (double)add : (float)((double)outer + (double)add);
        const Quad got = number(c->x, y, i);
        if (is_right(what, &in, backward, keep[oracle_dropout_unit(what, i)], got))
            continue;
        snprintf(message, message_size, "y[%" PRId64 "] = %.9g of x + bias = %.9g, %s %.9g, unit %s", i, (double)got,
                 (double)in.z, backward ? "dy" : "residual", (double)in.other,
                 keep[oracle_dropout_unit(what, i)] ? "kept" : "dropped");
        return 1;
    }
    return 0;
}

/* Of the bits of y, all NaNs alike. */
static uint64_t hash_of(wf_dtype dtype, const void *y, int64_t count, size_t size)
{
    uint64_t hash = 0;
    for (int64_t i = 0; i < count; i++) {
        const uint64_t bits = load(y, i, size);
        hash = (hash ^ (oracle_is_nan(dtype, bits) ? 1 : bits)) * UINT64_C(0x9e3779b97f4a7c15);
        hash ^= hash >> 29;
    }
    return hash;
}

/* before: the mask of a backward pass, which must stay as it was. */
static int compare_mask(const uint8_t *before, const uint8_t *keep, int64_t units, const uint8_t *mask, char *message,
                        size_t message_size)
{
    for (int64_t byte = 0; byte < (units + 7) / 8; byte++) {
        int want = before ? before[byte] : 0;
        for (int bit = 0; !before && bit < 8 && 8 * byte + bit < units; bit++)
            want |= keep[8 * byte + bit] << bit;
        if (mask[byte] == want)
            continue;
        snprintf(message, message_size, "mask[%" PRId64 "] = 0x%02x, expected 0x%02x", byte, mask[byte], want);
        return 1;
    }
    return 0;
}

/* A guarded buffer of the host, and where the call finds it; host NULL: none. */
typedef struct Memory {
    void *host;
    size_t size;
    void *at;
} Memory;
enum { X, Y, MASK, POINTED, WORKSPACE, BIAS, OTHER, MEMORIES };

static Memory memory_new(size_t size, size_t misalign)
{
    return (Memory){guard_alloc(size, misalign), size, NULL};
}

static void give(Memory memory[MEMORIES], wf_backend backend)
{
    for (Memory *m = memory; m < memory + MEMORIES; m++)
        m->at = m->host && backend == WF_CUDA ? device_new(m->host, m->size) : m->host;
}

/* 0: bytes around one were written. */
static int take_back(Memory memory[MEMORIES], wf_backend backend)
{
    int intact = 1;
    for (Memory *m = memory; m < memory + MEMORIES; m++) {
        intact &= !m->host || backend != WF_CUDA || device_take(m->at, m->host, m->size);
        intact &= guard_check(m->host);
    }
    return intact;
}

uint64_t run_dropout_hash;

static void *copy_of(const Memory *m)
{
    return m->host ? memcpy(malloc(m->size + 1), m->host, m->size) : NULL;
}

static int is_as_before(const Memory *m, const void *copy)
{
    return !m->host || memcmp(m->host, copy, m->size) == 0;
}

int run_dropout(const Case *c, char *message, size_t message_size)
{
    const int backward = c->op == DROPOUT_BACKWARD, given = backward && c->flags & WF_GIVEN_MASK;
    const size_t size = c->x == WF_F64 ? 8 : c->x == WF_F32 ? 4 : 2, shift = (size_t)c->misalign * size % 64;
    const wf_dropout what = {.size = sizeof what, .x_dtype = c->x, .kind = (wf_dropout_kind)c->kind, .layout = c->layout,
                             .flags = c->flags, .n = c->n, .c = c->c, .hw = c->hw, .p = c->p, .w_dtype = c->w,
                             .activation = (wf_activation)c->activation, .slope = c->slope};
    const int has_other = backward ? c->activation != WF_ACTIVATION_NONE : (c->add & ADD_RESIDUAL) != 0;
    const int place = c->inplace & 2 && has_other ? OTHER : c->inplace & 1 ? X : Y;
    const int64_t count = what.n * what.c * what.hw, units = oracle_dropout_units(&what);
    const size_t x_size = (size_t)count * size, mask_size = (size_t)(units + 7) / 8;
    const size_t workspace_size =
        backward ? wf_dropout_backward_workspace(&what, c->backend) : wf_dropout_forward_workspace(&what, c->backend);

    Memory m[MEMORIES] = {[X] = memory_new(x_size, shift),
                          [POINTED] = memory_new(2 * sizeof(uint64_t), 0),
                          [WORKSPACE] = memory_new(workspace_size, 1)};
    if (place == Y)
        m[Y] = memory_new(x_size, (size_t)(c->misalign ^ c->misalign / 4) * size % 64);
    if (!(c->null & NULL_MASK))
        m[MASK] = memory_new(mask_size, (size_t)c->misalign);
    if (c->add & ADD_BIAS)
        m[BIAS] = memory_new((size_t)c->c * dtype_size(c->w), (size_t)c->misalign * dtype_size(c->w) % 64);
    if (has_other)
        m[OTHER] = memory_new(x_size, (size_t)(c->misalign * 3) * size % 64);
    char *const x = m[X].host, *const y = m[place].host;
    uint64_t *const pointed = m[POINTED].host;
    uint8_t *keep = malloc((size_t)units + 1), *mask_before = malloc(mask_size + 1);
    uint64_t state = c->seed ^ (uint64_t)count;
    for (int64_t i = 0; i < count; i++) {
        const uint64_t bits = element(c->x, &state);
        memcpy(x + (size_t)i * size, &bits, size);
    }
    for (int64_t i = 0; m[OTHER].host && i < count; i++) {
        const uint64_t bits = element(c->x, &state);
        memcpy((char *)m[OTHER].host + (size_t)i * size, &bits, size);
    }
    for (int64_t i = 0; m[BIAS].host && i < c->c; i++)
        dtype_store(c->w, m[BIAS].host, i, ldexpq((Quad)(next_random(&state) >> 11), -52) - 0.5Q);
    for (size_t i = 0; m[MASK].host && i < mask_size; i++) /* given, or to be written, or ignored */
        ((uint8_t *)m[MASK].host)[i] = mask_before[i] = (uint8_t)(next_random(&state) >> 56);
    for (int64_t u = 0; u < units; u++)
        keep[u] = given ? c->p < 1 && mask_before[u / 8] >> u % 8 & 1
                        : (uint8_t)oracle_dropout_keep(c->p, c->seed, c->offset, (uint64_t)u);
    const uint64_t seed = c->seed, added = c->offset ^ UINT64_C(0xfedcba9876543210);
    pointed[0] = seed, pointed[1] = added;

    void *const before = copy_of(&m[X]), *const bias = copy_of(&m[BIAS]), *const other = copy_of(&m[OTHER]);
    give(m, c->backend);
    wf_dropout_args with = {.size = sizeof with, .x = m[X].at, .y = m[place].at, .mask = m[MASK].at,
                            .seed = c->seed, .offset = c->offset, .bias = m[BIAS].at};
    *(backward ? &with.x_in : &with.residual) = m[OTHER].at;
    if (c->seed & 1)
        with.seed_ptr = (uint64_t *)m[POINTED].at, with.seed = ~seed;
    if (c->offset & 2)
        with.offset_ptr = (uint64_t *)m[POINTED].at + 1, with.offset = c->offset - added;

    pool *p = c->pool ? pool_new(c->pool, (pool_order)(c->seed % POOL_ORDERS)) : NULL;
    wf_exec where = {.size = sizeof where, .backend = c->backend, .threads = c->threads};
    where.variant = c->variant[0] ? c->variant : NULL;
    where.parallel_for = p ? pool_parallel_for : NULL;
    where.pool = p;
    where.workspace_size = workspace_size;
    where.workspace = m[WORKSPACE].at;

    set_mode(c->fpmode);
    const unsigned mode = current_mode();
    const wf_status status =
        backward ? wf_dropout_backward(&what, &with, &where) : wf_dropout_forward(&what, &with, &where);
    const int mode_kept = current_mode() == mode;
    set_mode(MODE_NEAREST);
    const int intact = take_back(m, c->backend);

    int bad = 1;
    if (status)
        snprintf(message, message_size, "status %s: %s", wf_status_string(status), wf_error_detail());
    else if (!mode_kept)
        snprintf(message, message_size, "the rounding or flush-to-zero mode was changed");
    else if (!intact)
        snprintf(message, message_size, "bytes around a buffer were written");
    else if (pointed[0] != seed || pointed[1] != added)
        snprintf(message, message_size, "the pointed-to seed or offset was written");
    else if ((place != X && !is_as_before(&m[X], before)) || (place != OTHER && !is_as_before(&m[OTHER], other)) ||
             !is_as_before(&m[BIAS], bias))
        snprintf(message, message_size, "an input was written");
    else if (case_fuses(c))
        bad = compare_fused(c, &what, keep, before, bias, other, y, message, message_size) ||
              (m[MASK].host &&
               compare_mask(backward ? mask_before : NULL, keep, units, m[MASK].host, message, message_size));
    else
        bad = compare(&what, backward, keep, before, y, size, message, message_size) ||
              (m[MASK].host &&
               compare_mask(backward ? mask_before : NULL, keep, units, m[MASK].host, message, message_size));

    run_dropout_hash = hash_of(c->x, y, count, size);
    if (p)
        pool_free(p);
    for (int i = 0; i < MEMORIES; i++)
        guard_free(m[i].host);
    free(before);
    free(bias);
    free(other);
    free(keep);
    free(mask_before);
    return bad;
}

void check_dropout(const Case *c)
{
    char message[256], line[CASE_SIZE];
    if (run_dropout(c, message, sizeof message))
        ck_abort_msg("%s\n  build/tests/check --case \"%s\"", message, case_print(c, line));
}
