/* onnx.c - the protobuf wire format: a message is a run of (field number << 3 | wire type), value. */
#include "onnx.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5 };

typedef struct Cursor {
    const uint8_t *at, *end;
    bool           broken; /* sticky: a value ran past the end or was malformed */
} Cursor;

typedef struct Field {
    uint64_t number;
    int      wire;
    uint64_t value; /* VARINT, FIXED64, FIXED32: the bits */
    Cursor   bytes; /* BYTES: what is inside */
} Field;

static uint64_t read_varint(Cursor *c)
{
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
        if (c->at == c->end)
            break;
        const uint8_t byte = *c->at++;
        value |= (uint64_t)(byte & 127) << shift;
        if (byte < 128)
            return value;
    }
    c->broken = true;
    return 0;
}

static uint64_t read_fixed(Cursor *c, int size)
{
    uint64_t value = 0;
    if (c->end - c->at < size) {
        c->broken = true;
        return 0;
    }
    for (int i = 0; i < size; i++)
        value |= (uint64_t)*c->at++ << 8 * i;
    return value;
}

/* The next field, or false at the end or where the message is broken: the caller tells them apart by c->broken. */
static bool next_field(Cursor *c, Field *field)
{
    if (c->broken || c->at == c->end)
        return false;
    const uint64_t key = read_varint(c);
    *field = (Field){ .number = key >> 3, .wire = (int)(key & 7) };
    if (c->broken)
        return false;
    if (field->wire == VARINT) {
        field->value = read_varint(c);
    } else if (field->wire == FIXED64 || field->wire == FIXED32) {
        field->value = read_fixed(c, field->wire == FIXED64 ? 8 : 4);
    } else if (field->wire == BYTES) {
        const uint64_t size = read_varint(c);
        if (c->broken || size > (uint64_t)(c->end - c->at)) {
            c->broken = true;
            return false;
        }
        field->bytes = (Cursor){ c->at, c->at + size, false };
        c->at += size;
    } else {
        c->broken = true;
    }
    return !c->broken;
}

static bool is_field(const Field *field, uint64_t number, int wire)
{
    return field->number == number && field->wire == wire;
}

static void copy_name(char to[ONNX_NAME_SIZE], Cursor from)
{
    size_t size = (size_t)(from.end - from.at);
    if (size > ONNX_NAME_SIZE - 1)
        size = ONNX_NAME_SIZE - 1;
    memcpy(to, from.at, size);
    to[size] = '\0';
}

static float float_of(uint64_t bits)
{
    const uint32_t word = (uint32_t)bits;
    float          value;
    memcpy(&value, &word, sizeof value);
    return value;
}

static bool append_dim(OnnxTensor *t, uint64_t dim)
{
    if (t->rank == ONNX_MAX_RANK || dim > INT32_MAX)
        return false;
    t->dims[t->rank++] = (int64_t)dim;
    t->count *= (int64_t)dim;
    return t->count <= INT32_MAX;
}

/* dims is a repeated int64: one field each, or packed into one. */
static bool read_dims(OnnxTensor *t, const Field *field)
{
    if (field->wire == VARINT)
        return append_dim(t, field->value);
    Cursor packed = field->bytes;
    while (field->wire == BYTES && packed.at < packed.end) {
        const uint64_t dim = read_varint(&packed);
        if (packed.broken || !append_dim(t, dim))
            return false;
    }
    return field->wire == BYTES;
}

static bool parse_tensor(Cursor c, OnnxTensor *out)
{
    OnnxTensor t = { .count = 1 };
    Cursor     raw = { NULL, NULL, false };
    Field      field;
    bool       good = true;
    while (good && next_field(&c, &field)) {
        if (field.number == 1)
            good = read_dims(&t, &field);
        else if (is_field(&field, 2, VARINT))
            t.type = (int)(field.value & INT32_MAX);
        else if (is_field(&field, 8, BYTES))
            copy_name(t.name, field.bytes);
        else if (is_field(&field, 4, BYTES) || is_field(&field, 9, BYTES))
            raw = field.bytes; /* float_data, packed, has the bytes of raw_data */
    }
    const size_t element = t.type == ONNX_FLOAT ? sizeof(float) : t.type == ONNX_BOOL ? 1 : 0;
    if (!good || c.broken || element == 0 || (size_t)(raw.end - raw.at) != (size_t)t.count * element)
        return false;
    t.data = malloc((size_t)t.count * element + (t.count == 0));
    if (t.data == NULL)
        return false;
    for (int64_t i = 0; i < t.count; i++) {
        if (t.type == ONNX_FLOAT)
            ((float *)t.data)[i] = float_of(read_fixed(&raw, 4));
        else
            ((uint8_t *)t.data)[i] = *raw.at++;
    }
    *out = t;
    return true;
}

static void parse_attribute(Cursor *c, OnnxNode *node)
{
    char    name[ONNX_NAME_SIZE] = "";
    float   f = 0;
    int64_t i = 0;
    Field   field;
    while (next_field(c, &field)) {
        if (is_field(&field, 1, BYTES))
            copy_name(name, field.bytes);
        else if (is_field(&field, 2, FIXED32))
            f = float_of(field.value);
        else if (is_field(&field, 3, VARINT))
            i = (int64_t)field.value;
    }
    if (strcmp(name, "epsilon") == 0)
        node->epsilon = f;
    else if (strcmp(name, "momentum") == 0)
        node->momentum = f;
    else if (strcmp(name, "axis") == 0)
        node->axis = i;
    else if (strcmp(name, "training_mode") == 0)
        node->training_mode = i;
}

static bool parse_node(Cursor c, OnnxNode *node)
{
    Field field;
    bool  good = true;
    *node = (OnnxNode){ .epsilon = 1e-5f, .momentum = 0.9f, .axis = -1 };
    while (good && next_field(&c, &field)) {
        if (is_field(&field, 1, BYTES) && (good = node->inputs < ONNX_MAX_NAMES)) {
            copy_name(node->input[node->inputs++], field.bytes);
        } else if (is_field(&field, 2, BYTES) && (good = node->outputs < ONNX_MAX_NAMES)) {
            copy_name(node->output[node->outputs++], field.bytes);
        } else if (is_field(&field, 4, BYTES)) {
            copy_name(node->op_type, field.bytes);
        } else if (is_field(&field, 5, BYTES)) {
            parse_attribute(&field.bytes, node);
            good = !field.bytes.broken;
        }
    }
    return good && !c.broken;
}

static bool parse_graph(Cursor c, OnnxModel *out)
{
    Field field;
    while (next_field(&c, &field)) {
        if (is_field(&field, 1, BYTES)) {
            if (out->nodes++ == 0 && !parse_node(field.bytes, &out->node))
                return false;
        } else if (is_field(&field, 5, BYTES) && out->initializers < ONNX_MAX_INITIALIZERS) {
            if (parse_tensor(field.bytes, &out->initializer[out->initializers]))
                out->initializers++;
        }
    }
    return !c.broken;
}

bool onnx_parse_tensor(const void *data, size_t size, OnnxTensor *out)
{
    return parse_tensor((Cursor){ data, (const uint8_t *)data + size, false }, out);
}

bool onnx_parse_model(const void *data, size_t size, OnnxModel *out)
{
    Cursor c = { data, (const uint8_t *)data + size, false };
    Field  field;
    bool   good = true;
    *out = (OnnxModel){ .nodes = 0 };
    while (good && next_field(&c, &field))
        if (is_field(&field, 7, BYTES))
            good = parse_graph(field.bytes, out);
    good = good && !c.broken && out->nodes > 0;
    if (!good)
        onnx_free_model(out);
    return good;
}

void *onnx_load_file(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        return NULL;
    void *data = NULL;
    long  length = -1;
    if (fseek(file, 0, SEEK_END) == 0 && (length = ftell(file)) >= 0 && fseek(file, 0, SEEK_SET) == 0)
        data = malloc((size_t)length + (length == 0));
    if (data != NULL && fread(data, 1, (size_t)length, file) != (size_t)length) {
        free(data);
        data = NULL;
    }
    fclose(file);
    *size = (size_t)length;
    return data;
}

bool onnx_load_tensor(const char *path, OnnxTensor *out)
{
    size_t     size;
    void      *data = onnx_load_file(path, &size);
    const bool good = data != NULL && onnx_parse_tensor(data, size, out);
    free(data);
    return good;
}

bool onnx_load_model(const char *path, OnnxModel *out)
{
    size_t     size;
    void      *data = onnx_load_file(path, &size);
    const bool good = data != NULL && onnx_parse_model(data, size, out);
    free(data);
    return good;
}

void onnx_free_tensor(OnnxTensor *tensor)
{
    free(tensor->data);
    *tensor = (OnnxTensor){ .data = NULL };
}

void onnx_free_model(OnnxModel *model)
{
    for (int i = 0; i < model->initializers; i++)
        onnx_free_tensor(&model->initializer[i]);
    model->initializers = 0;
}
