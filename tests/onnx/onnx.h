/* onnx.h - reads what the ONNX node tests store: one tensor per .pb file, one small graph per model.onnx. Only the
 * fields these tests need are understood; everything else is stepped over. No input, however damaged, is read past its
 * end. */
#ifndef WELFORD_TESTS_ONNX_H
#define WELFORD_TESTS_ONNX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { ONNX_FLOAT = 1, ONNX_BOOL = 9 }; /* TensorProto.DataType */
enum { ONNX_MAX_RANK = 8, ONNX_MAX_NAMES = 8, ONNX_MAX_INITIALIZERS = 8, ONNX_NAME_SIZE = 64 };

typedef struct OnnxTensor {
    char    name[ONNX_NAME_SIZE]; /* cut where longer */
    int     type;                 /* ONNX_FLOAT or ONNX_BOOL; any other type is refused */
    int     rank;                 /* 0 = scalar */
    int64_t dims[ONNX_MAX_RANK];
    int64_t count;                /* product of dims */
    void   *data;                 /* count floats, or count bytes for ONNX_BOOL; exactly sized; NULL = no tensor */
} OnnxTensor;

typedef struct OnnxNode { /* the first node of the graph; attributes it does not have are the operator's defaults */
    char    op_type[ONNX_NAME_SIZE];
    int     inputs, outputs;
    char    input[ONNX_MAX_NAMES][ONNX_NAME_SIZE]; /* "" = an optional one left out */
    char    output[ONNX_MAX_NAMES][ONNX_NAME_SIZE];
    float   epsilon, momentum;
    int64_t axis, training_mode;
} OnnxNode;

typedef struct OnnxModel {
    int        nodes; /* in the graph; `node` describes the first */
    OnnxNode   node;
    int        initializers;
    OnnxTensor initializer[ONNX_MAX_INITIALIZERS];
} OnnxModel;

/* Both fill *out and return true, or return false with nothing left to free. onnx_parse_model reads no initializers
 * beyond the first ONNX_MAX_INITIALIZERS and none of a type it does not know. */
bool onnx_parse_tensor(const void *data, size_t size, OnnxTensor *out);
bool onnx_parse_model(const void *data, size_t size, OnnxModel *out);
bool onnx_load_tensor(const char *path, OnnxTensor *out);
bool onnx_load_model(const char *path, OnnxModel *out);
void onnx_free_tensor(OnnxTensor *tensor);
void onnx_free_model(OnnxModel *model);

/* The whole file in a buffer of its exact size, to be freed; NULL if it cannot be read. */
void *onnx_load_file(const char *path, size_t *size);

#endif
