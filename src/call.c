#include "call.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/fpmode.h"

/* The default TLS model, for which the loader may allocate at a thread's first failure: initial-exec would not, but then a
 * program cannot dlopen the library once a static CUDA runtime is in it, which has a page of TLS of its own. */
static _Thread_local char error_detail[256];

const char *wf_error_detail(void)
{
    return error_detail;
}

static const struct {
    const char *name;
    size_t      size;
} dtypes[] = {
#define DTYPE(enumerator, name, bytes) [enumerator] = {name, bytes},
#include "dtypes.def"
};
enum { DTYPES = sizeof dtypes / sizeof *dtypes };

size_t wf_dtype_size(wf_dtype dtype)
{
    return dtypes[dtype].size;
}

wf_dtype wf_statistics_dtype(wf_dtype x_dtype)
{
    return x_dtype == WF_F64 ? WF_F64 : WF_F32;
}

void in_our_fpmode(void (*f)(void *arg), void *arg)
{
    const uint64_t caller = wf_fpmode_enter();
    f(arg);
    wf_fpmode_leave(caller);
}

static void fail(struct call *call, wf_status status, const char *format, va_list args)
{
    call->status = status;
    if (call->quiet)
        return;
    int at = snprintf(error_detail, sizeof error_detail, "%s: ", call->operation);
    vsnprintf(error_detail + at, sizeof error_detail - (size_t)at, format, args);
}

wf_status call_fail(struct call *call, wf_status status, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fail(call, status, format, args);
    va_end(args);
    return status;
}

void check_that(struct call *call, bool holds, const char *format, ...)
{
    if (holds || call->status)
        return;
    va_list args;
    va_start(args, format);
    fail(call, WF_INVALID, format, args);
    va_end(args);
}

/* ---- opening --------------------------------------------------------------------------------------------------- */

static bool verbose(void)
{
    static int on = -1; /* every thread would store the same value */
    int        known = __atomic_load_n(&on, __ATOMIC_RELAXED);
    if (known < 0) {
        const char *value = getenv("WELFORD_VERBOSE");
        known = value && strcmp(value, "1") == 0;
        __atomic_store_n(&on, known, __ATOMIC_RELAXED);
    }
    return known;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void call_import(struct call *call, const char *name, void *into, size_t into_size, const void *from)
{
    memset(into, 0, into_size);
    check_that(call, from, "%s = NULL", name);
    if (call->status)
        return;
    size_t size;
    memcpy(&size, from, sizeof size);
    check_that(call, size >= 16, "%s.size = %zu, must be the size of the struct", name, size);
    if (call->status)
        return;
    memcpy(into, from, size < into_size ? size : into_size);
    for (size_t i = into_size; i < size && !call->status; i++)
        check_that(call, ((const char *)from)[i] == 0,
                   "%s.size = %zu with a non-zero byte at %zu: this library knows %zu bytes", name, size, i, into_size);
}

void call_import_args(struct call *call, void *into, size_t into_size, const void *with)
{
    call->absent = call->dry_run && !with;
    if (call->absent)
        memset(into, 0, into_size);
    else
        call_import(call, "with", into, into_size, with);
}

static void call_clear(struct call *call, const char *operation)
{
    call->operation = operation;
    call->backend = NULL;
    call->status = WF_OK;
    call->quiet = call->dry_run = call->absent = call->empty = false;
    call->sizes = call->buffers = 0;
    call->variant = call->why = "-";
    call->threads = 0;
    if (verbose())
        call->start = now();
}

static void set_backend(struct call *call, wf_backend backend)
{
    check_that(call, backend == WF_CPU || backend == WF_CUDA, "where.backend = %d", (int)backend);
    call->backend = backend == WF_CUDA ? &wf_cuda_backend : &wf_cpu_backend;
}

void call_open(struct call *call, const char *operation, const wf_exec *where)
{
    call_clear(call, operation);
    call_import(call, "where", &call->exec, sizeof call->exec, where);
    const wf_exec *e = &call->exec;
    set_backend(call, e->backend);
    check_that(call, !(e->flags & ~(uint32_t)WF_DRY_RUN), "where.flags = 0x%x, known is 0x%x", e->flags, WF_DRY_RUN);
    check_that(call, e->threads >= 0, "where.threads = %d", e->threads);
    check_that(call, e->reserved == 0, "where.reserved = %u, must be 0", e->reserved);
    call->dry_run = e->flags & WF_DRY_RUN;
}

void call_open_query(struct call *call, const char *operation, wf_backend backend)
{
    call_clear(call, operation);
    call->quiet = true;
    set_backend(call, backend);
}

/* ---- constants and sizes --------------------------------------------------------------------------------------- */

void check_flags(struct call *call, uint32_t flags, uint32_t known, uint32_t reserved)
{
    check_that(call, !(flags & ~known), "flags = 0x%x, known are 0x%x", flags, known);
    check_that(call, reserved == 0, "reserved = %u, must be 0", reserved);
}

void check_dtypes(struct call *call, wf_dtype x_dtype, wf_dtype w_dtype)
{
    check_that(call, (unsigned)x_dtype < DTYPES, "x_dtype = %d", (int)x_dtype);
    check_that(call, (unsigned)w_dtype < DTYPES, "w_dtype = %d", (int)w_dtype);
    call->x_dtype = x_dtype;
    call->w_dtype = w_dtype;
}

void check_eps(struct call *call, double eps)
{
    check_that(call, eps >= 0 && isfinite(eps), "eps = %g, must be finite and not negative", eps);
}

void check_fraction(struct call *call, const char *name, double value)
{
    check_that(call, value >= 0 && value <= 1, "%s = %g, must be in [0, 1]", name, value);
}

static void check_size(struct call *call, const char *name, int64_t value)
{
    check_that(call, value >= 0, "%s = %" PRId64, name, value);
    call->size[call->sizes].name = name;
    call->size[call->sizes++].value = value;
    call->empty |= value == 0;
}

/* Products stay below 2^58, so that bytes of any dtype, and sums of a few of them, fit in 64 bits. */
static bool fits(int64_t a, int64_t b)
{
    int64_t product;
    return !__builtin_mul_overflow(a, b, &product) && product < INT64_C(1) << 58;
}

/* The product without its zeros: [c] buffers exist where n = 0. */
static void check_volume(struct call *call)
{
    int64_t volume = 1;
    for (int i = 0; i < call->sizes && !call->status; i++) {
        int64_t value = call->size[i].value ? call->size[i].value : 1;
        check_that(call, fits(volume, value), "%s = %" PRId64 ": the product of the sizes is too large",
                   call->size[i].name, value);
        volume = call->status ? volume : volume * value;
    }
}

void check_stride(struct call *call, const char *name, int64_t *stride, int64_t fallback, int64_t rows,
                         int64_t cols)
{
    if (*stride == 0)
        *stride = fallback;
    check_that(call, *stride >= cols, "%s = %" PRId64 ", less than cols = %" PRId64, name, *stride, cols);
    check_that(call, fits(rows ? rows : 1, *stride), "%s = %" PRId64 " with rows = %" PRId64 " is too large", name,
               *stride, rows);
}

void check_activation(struct call *call, wf_activation activation, double slope)
{
    check_that(call, (unsigned)activation <= WF_GELU_TANH, "activation = %d", (int)activation);
    check_that(call, isfinite(slope), "slope = %g, must be finite", slope);
}

void check_matrix(struct call *call, int64_t rows, int64_t cols)
{
    check_size(call, "rows", rows);
    check_size(call, "cols", cols);
    check_volume(call);
}

void check_channels(struct call *call, wf_layout layout, int64_t n, int64_t c, int64_t hw)
{
    check_that(call, layout == WF_NCHW || layout == WF_NHWC, "layout = %d", (int)layout);
    check_size(call, "n", n);
    check_size(call, "c", c);
    check_size(call, "hw", hw);
    check_volume(call);
}

/* ---- buffers --------------------------------------------------------------------------------------------------- */

struct buffer_shape vector_of(wf_dtype dtype, int64_t count)
{
    return (struct buffer_shape){dtype, 1, count, count};
}

static int add_buffer(struct call *call, struct buffer b)
{
    if (b.stride == b.row_size) {
        b.row_size *= b.rows;
        b.rows = 1;
    }
    if (b.row_size == 0 || b.rows == 0)
        b.rows = b.row_size = 0;
    call->buffer[call->buffers] = b;
    return call->buffers++;
}

static int check_buffer(struct call *call, const char *name, const void *data, struct buffer_shape shape, enum need need)
{
    if (call->status || call->absent)
        return -1;
    check_that(call, data || need == OPTIONAL || call->empty, "%s = NULL", name);
    if (!data)
        return -1;
    const int64_t size = (int64_t)wf_dtype_size(shape.dtype);
    check_that(call, (uintptr_t)data % (uintptr_t)size == 0, "%s = %p, must be a multiple of %d bytes", name, data,
               (int)size);
    return add_buffer(call, (struct buffer){name, data, shape.rows, shape.cols * size, shape.stride * size, 0, false});
}

int check_input(struct call *call, const char *name, const void *data, struct buffer_shape shape, enum need need)
{
    return check_buffer(call, name, data, shape, need);
}

int check_output(struct call *call, const char *name, void *data, struct buffer_shape shape, enum need need, int alias)
{
    int i = check_buffer(call, name, data, shape, need);
    if (i >= 0) {
        call->buffer[i].output = true;
        check_may_be(call, i, alias);
    }
    return i;
}

void check_may_be(struct call *call, int output, int alias)
{
    if (output >= 0 && alias >= 0)
        call->buffer[output].aliases |= (uint32_t)1 << alias;
}

void check_byte_rows(struct call *call, const char *name, const uint8_t *data, int64_t rows, int64_t cols, int64_t stride)
{
    if (call->status || call->absent)
        return;
    check_that(call, data || call->empty, "%s = NULL", name);
    if (data)
        add_buffer(call, (struct buffer){name, (const char *)data, rows, cols, stride, 0, true});
}

void check_bytes(struct call *call, const char *name, const uint8_t *data, int64_t size, enum need need, bool output)
{
    if (call->status || call->absent)
        return;
    check_that(call, data || need == OPTIONAL || call->empty, "%s = NULL", name);
    if (data)
        add_buffer(call, (struct buffer){name, (const char *)data, 1, size, size, 0, output});
}

/* The least i >= 0 with low <= a i mod m <= high (0 <= low <= high < m, 0 <= a < m), or -1: Euclid's algorithm on the
 * first time the multiples of a step over low. */
static int64_t first_in_range(int64_t a, int64_t m, int64_t low, int64_t high)
{
    if (low == 0)
        return 0;
    if (a == 0)
        return -1;
    int64_t steps = (low - 1) / a + 1; /* the least i with a i >= low */
    if (a * steps <= high)
        return steps;
    /* a i - m j in [low, high] for some j >= 1: so m j mod a lies in [-high, -low] mod a */
    int64_t j = first_in_range(m % a, a, (a - high % a) % a, (a - low % a) % a);
    if (j < 0)
        return -1;
    __int128 least = (__int128)m * j + low;
    return (int64_t)((least + a - 1) / a);
}

/* Some row of p and some row of q share a byte. Rows of one buffer never overlap. */
static bool share_bytes(const struct buffer *p, const struct buffer *q)
{
    if (p->rows == 0 || q->rows == 0)
        return false;
    int64_t p_size = (p->rows - 1) * p->stride + p->row_size, q_size = (q->rows - 1) * q->stride + q->row_size;
    if ((uintptr_t)p->data >= (uintptr_t)q->data + (uint64_t)q_size ||
        (uintptr_t)q->data >= (uintptr_t)p->data + (uint64_t)p_size)
        return false;
    if (q->rows == 1 && p->rows == 1)
        return true;
    if (q->rows == 1) {
        const struct buffer *swap = p;
        p = q, q = swap;
    }
    /* Row i of p starts at s(i) = start + i p->stride, counted from q. It meets a row of q iff s(i) mod q->stride is in
     * (-p->row_size, q->row_size) mod q->stride, as long as s(i) lies in q's extent. */
    int64_t start = (int64_t)((uintptr_t)p->data - (uintptr_t)q->data), step = p->stride, m = q->stride;
    int64_t first = 0, last = p->rows - 1, q_end = (q->rows - 1) * m + q->row_size;
    if (start <= -p->row_size) /* rows of p that end before q begins */
        first = p->rows == 1 ? 0 : (-p->row_size - start) / step + 1;
    if (start + last * step >= q_end) /* rows of p that start after q ends */
        last = p->rows == 1 ? last : (q_end - 1 - start) / step;
    if (first > last)
        return false;
    if (p->row_size + q->row_size > m)
        return true;
    int64_t low = p->row_size - 1; /* shifted by row_size - 1, the wanted residues are [0, low + q->row_size - 1] */
    int64_t residue = (start + first * step + low) % m;
    if (residue < 0)
        residue += m;
    int64_t high = low + q->row_size - 1;
    if (residue <= high)
        return true;
    /* residue + i step mod m in [0, high]  <=>  i step mod m in [m - residue, m - residue + high] */
    int64_t i = first_in_range(step % m, m, m - residue, m - residue + high);
    return i >= 0 && i <= last - first;
}

static void check_overlaps(struct call *call)
{
    for (int i = 0; i < call->buffers; i++) {
        const struct buffer *out = &call->buffer[i];
        for (int j = 0; out->output && j < call->buffers; j++) {
            const struct buffer *other = &call->buffer[j];
            if (i == j || (other->output && j > i))
                continue;
            bool same = out->data == other->data && out->rows == other->rows && out->row_size == other->row_size &&
                        (out->stride == other->stride || out->rows == 1);
            if (out->aliases >> j & 1 && same)
                continue;
            check_that(call, !share_bytes(out, other), "%s = %p shares memory with %s = %p", out->name,
                       (const void *)out->data, other->name, (const void *)other->data);
        }
    }
    struct buffer workspace = {"where.workspace", call->exec.workspace, 1, (int64_t)call->exec.workspace_size, 0, 0, 0};
    for (int i = 0; workspace.data && workspace.row_size > 0 && i < call->buffers; i++)
        check_that(call, !share_bytes(&workspace, &call->buffer[i]), "where.workspace = %p shares memory with %s = %p",
                   (const void *)workspace.data, call->buffer[i].name, (const void *)call->buffer[i].data);
}

/* ---- closing --------------------------------------------------------------------------------------------------- */

bool call_ready(struct call *call)
{
    if (!call->status && call->buffers)
        check_overlaps(call);
    const char *wanted = call->status || call->quiet ? NULL : call->exec.variant;
    if (wanted) {
        const char *name;
        for (int i = 0; (name = wf_variant(call->operation, call->exec.backend, i)) && strcmp(name, wanted) != 0;)
            i++;
        check_that(call, name, "where.variant = \"%s\", no such variant", wanted);
    }
    bool pair = call->w_dtype == call->x_dtype ||
                (call->w_dtype == WF_F32 && (call->x_dtype == WF_F16 || call->x_dtype == WF_BF16));
    if (!call->status && !pair)
        call_fail(call, WF_UNSUPPORTED, "w_dtype = %s with x_dtype = %s", dtypes[call->w_dtype].name,
                  dtypes[call->x_dtype].name);
    return !call->status;
}

wf_status call_workspace(struct call *call, size_t size, void **workspace)
{
    const wf_exec *e = &call->exec;
    *workspace = (void *)(((uintptr_t)e->workspace + CALL_WORKSPACE_SLACK) & ~(uintptr_t)CALL_WORKSPACE_SLACK);
    if (size == 0 || (call->absent && !e->workspace))
        return WF_OK;
    if (!e->workspace)
        return call_fail(call, WF_WORKSPACE, "where.workspace = NULL, needs %zu bytes", size);
    if (e->workspace_size < size)
        return call_fail(call, WF_WORKSPACE, "where.workspace_size = %zu, needs %zu", e->workspace_size, size);
    return WF_OK;
}

/* One line of key=value; bytes are those of every buffer given, counted once. */
static void report(const struct call *call)
{
    char   line[512];
    int    at = 0, room = (int)sizeof line;
    double seconds = now() - call->start, bytes = 0;
    for (int i = 0; i < call->buffers; i++)
        bytes += (double)call->buffer[i].rows * (double)call->buffer[i].row_size;
    at += snprintf(line + at, (size_t)(room - at), "welford op=%s", call->operation);
    for (int i = 0; i < call->sizes; i++)
        at += snprintf(line + at, (size_t)(room - at), " %s=%" PRId64, call->size[i].name, call->size[i].value);
    at += snprintf(line + at, (size_t)(room - at), " x=%s w=%s backend=%s variant=%s why=%s threads=%d status=%s",
                   dtypes[call->x_dtype].name, dtypes[call->w_dtype].name,
                   call->exec.backend == WF_CUDA ? "cuda" : "cpu", call->variant, call->why, call->threads,
                   wf_status_string(call->status));
    if (call->exec.backend == WF_CUDA)
        snprintf(line + at, (size_t)(room - at), " us=- bytes=%.0f GB/s=-\n", bytes);
    else
        snprintf(line + at, (size_t)(room - at), " us=%.3f bytes=%.0f GB/s=%.3f\n", seconds * 1e6, bytes,
                 bytes / seconds * 1e-9);
    fputs(line, stderr);
}

wf_status call_close(struct call *call, wf_status from_backend)
{
    call->status = from_backend;
    if (verbose() && call->status != WF_INVALID)
        report(call);
    return call->status;
}
