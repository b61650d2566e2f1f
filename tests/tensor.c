#include "tensor.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "guard.h"

enum { MAP_FROM = 1 << 28, GAP_SEEN = 256 /* elements of a gap before and behind a row that are filled and checked */ };

size_t tensor_size(const Tensor *t)
{
    return t->rows && t->cols ? (size_t)((t->rows - 1) * t->stride + t->cols) * dtype_size(t->dtype) : 0;
}

static char *row_of(const Tensor *t, int64_t row) { return t->data + (size_t)(row * t->stride) * dtype_size(t->dtype); }

/* The gap behind a row as far as it is watched: its head (part 0) and, where they do not meet, its tail (part 1). */
static size_t gap(const Tensor *t, int64_t row, int part, char **at)
{
    int64_t length = row + 1 < t->rows ? t->stride - t->cols : 0, seen = length < GAP_SEEN ? length : GAP_SEEN;
    int64_t skip = part ? length - (length < 2 * GAP_SEEN ? length - seen : GAP_SEEN) : 0;
    *at = row_of(t, row) + (size_t)(t->cols + skip) * dtype_size(t->dtype);
    return (size_t)(part ? length - skip : seen) * dtype_size(t->dtype);
}

Tensor tensor_new(wf_dtype dtype, int64_t rows, int64_t cols, int64_t stride, int misalign)
{
    Tensor t = { .dtype = dtype, .rows = rows, .cols = cols, .stride = stride ? stride : cols };
    size_t size = tensor_size(&t), off = (size_t)misalign * dtype_size(dtype);
    if (size > MAP_FROM) {
        t.mapped = size + off;
        t.data = mmap(NULL, t.mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (t.data == MAP_FAILED)
            abort();
        t.data += off;
    } else {
        t.data = guard_alloc(size, off);
    }
    for (int64_t row = 0; row < rows && cols; row++) {
        char *at;
        memset(row_of(&t, row), 0xff, (size_t)cols * dtype_size(dtype));
        for (int part = 0; part < 2; part++) {
            size_t length = gap(&t, row, part, &at);
            memset(at, 0xff, length);
        }
    }
    return t;
}

unsigned char *tensor_rows(const Tensor *t)
{
    size_t row_size = (size_t)t->cols * dtype_size(t->dtype);
    unsigned char *copy = malloc((size_t)t->rows * row_size + 1);
    for (int64_t row = 0; row < t->rows && row_size; row++)
        memcpy(copy + (size_t)row * row_size, row_of(t, row), row_size);
    return copy;
}

void tensor_put(Tensor *t, const Quad *values)
{
    for (int64_t row = 0, i = 0; row < t->rows; row++)
        for (int64_t col = 0; col < t->cols; col++)
            dtype_store(t->dtype, row_of(t, row), col, values[i++]);
}

Tensor tensor_input(wf_dtype dtype, int64_t rows, int64_t cols, int64_t stride, int misalign, const Quad *values)
{
    Tensor t = tensor_new(dtype, rows, cols, stride, misalign);
    tensor_put(&t, values);
    t.input = (char *)tensor_rows(&t);
    return t;
}

const char *tensor_damage(const Tensor *t)
{
    if (t->borrowed || !t->data)
        return NULL;
    if (!t->mapped && !guard_check(t->data))
        return "bytes around it";
    for (int64_t row = 0; row < t->rows && t->cols; row++)
        for (int part = 0; part < 2; part++) {
            char *at;
            for (size_t i = gap(t, row, part, &at); i-- > 0;)
                if (at[i] != (char)0xff)
                    return "the gap between its rows";
        }
    if (!t->input)
        return NULL;
    unsigned char *now = tensor_rows(t);
    bool same = !memcmp(now, t->input, (size_t)(t->rows * t->cols) * dtype_size(t->dtype));
    free(now);
    return same ? NULL : "the input itself";
}

void tensor_free(Tensor *t)
{
    if (t->mapped)
        munmap((char *)((uintptr_t)t->data & ~(uintptr_t)4095), t->mapped);
    else if (!t->borrowed)
        guard_free(t->data);
    free(t->input);
}
