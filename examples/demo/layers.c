#include "layers.h"
#include "ui.h"

#include <stdlib.h>

const char *norm_name(norm_kind kind)
{
    static const char *const names[NORM_KINDS] = {"no norm", "BatchNorm", "LayerNorm", "GroupNorm", "RMSNorm", "InstanceNorm"};
    return names[kind];
}

int64_t norm_statistics(const norm *l, int64_t n)
{
    switch (l->kind) {
    case NORM_BATCH: return l->c;
    case NORM_LAYER:
    case NORM_RMS: return n * l->hw;
    case NORM_GROUP: return n * l->groups;
    case NORM_INSTANCE: return n * l->c > l->c ? n * l->c : l->c;
    default: return 0;
    }
}

void *tensor_new(const layers *l, size_t size)
{
    void *memory = l->gpu ? gpu_memory(size) : malloc(size);
    if (!memory)
        die("out of memory");
    return memory;
}

void tensor_free(const layers *l, void *memory)
{
    if (l->gpu)
        gpu_free(memory);
    else
        free(memory);
}
