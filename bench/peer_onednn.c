/* peer_onednn.c - oneDNN 2 or 3, opened at run time; what is used of its C interface is declared here.
 * LayerNorm, BatchNorm, InstanceNorm channels first (as BatchNorm of n c channels), and GroupNorm from 3.4 on. */
#include <dlfcn.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "data.h"

enum { CPU_ENGINE = 1, IN_ORDER = 1, TRAINING = 64, INFERENCE = 96, BACKWARD = 128, BACKWARD_DATA = 160, GLOBAL_STATS = 1 };
enum { SRC = 1, DST = 17, MEAN = 49, VARIANCE = 50, SCALE = 51, SHIFT = 52, DIFF_SRC = 129, DIFF_DST = 145, DIFF_SCALE = 255,
       DIFF_SHIFT = 256, MOST_ARGS = 10 };

typedef void *Handle;
typedef int64_t Dims[12];
typedef struct Arg { int arg; Handle memory; } Arg;
/* Version 2 keeps descriptors in structs of the caller (700 bytes each), version 3 behind handles. */
typedef union Desc { Handle handle; char bytes[4096]; max_align_t align; } Desc;
typedef union OpDesc { char bytes[16384]; max_align_t align; } OpDesc;
typedef struct Version { int major, minor, patch; } Version;

static struct {
    int version; /* 2 or 3 */
    Handle library, engine, stream;
    int (*primitive_create)(Handle *, Handle pd);
    int (*primitive_destroy)(Handle);
    int (*primitive_desc_destroy)(Handle);
    int (*primitive_execute)(Handle, Handle stream, int, const Arg *);
    int (*memory_create)(Handle *, const void *md, Handle engine, void *data);
    int (*memory_destroy)(Handle);
    int (*set_handle)(Handle, void *);
    int (*stream_wait)(Handle);
} dnnl;

static void *symbol(const char *name)
{
    char full[128];
    snprintf(full, sizeof full, "dnnl_%s", name);
    return dlsym(dnnl.library, full);
}

/* A function pointer from dlsym, which C does not convert. */
#define LOAD(pointer, name) do { void *const at = symbol(name); memcpy(&(pointer), &at, sizeof at); } while (0)

static const char *onednn_open(void)
{
    static const char *const names[] = { "libdnnl.so.3", "libdnnl.so.2", "libdnnl.so" };
    static char text[64];
    if (*text)
        return text;
    for (int i = 0; i < 3 && !dnnl.library; i++)
        dnnl.library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    const Version *(*version)(void);
    int (*engine_create)(Handle *, int, size_t), (*stream_create)(Handle *, Handle, unsigned);
    if (!dnnl.library)
        return NULL;
    LOAD(version, "version");
    LOAD(engine_create, "engine_create");
    LOAD(stream_create, "stream_create");
    LOAD(dnnl.primitive_create, "primitive_create");
    LOAD(dnnl.primitive_destroy, "primitive_destroy");
    LOAD(dnnl.primitive_desc_destroy, "primitive_desc_destroy");
    LOAD(dnnl.primitive_execute, "primitive_execute");
    LOAD(dnnl.memory_create, "memory_create");
    LOAD(dnnl.memory_destroy, "memory_destroy");
    LOAD(dnnl.set_handle, "memory_set_data_handle");
    LOAD(dnnl.stream_wait, "stream_wait");
    if (!version || version()->major < 2 || version()->major > 3 || !engine_create || !stream_create || !dnnl.stream_wait ||
        engine_create(&dnnl.engine, CPU_ENGINE, 0) || stream_create(&dnnl.stream, dnnl.engine, IN_ORDER))
        return NULL;
    dnnl.version = version()->major;
    snprintf(text, sizeof text, "%d.%d.%d", version()->major, version()->minor, version()->patch);
    return text;
}

typedef struct Net {
    const Plan *p;
    Handle primitive;
    int    args;
    Arg    arg[MOST_ARGS];
    Tensor tensor[MOST_ARGS]; /* where the argument lies in the slab; T_COUNT: a buffer of its own */
    float *own[MOST_ARGS];
} Net;

static bool describe(Desc *md, int dims_count, const int64_t *dims, const int64_t *strides, int dtype)
{
    int (*by_strides)(void *, int, const int64_t *, int, const int64_t *);
    Dims sizes = { 0 }, steps = { 0 };
    memcpy(sizes, dims, (size_t)dims_count * sizeof *dims);
    memcpy(steps, strides, (size_t)dims_count * sizeof *strides);
    LOAD(by_strides, dnnl.version == 2 ? "memory_desc_init_by_strides" : "memory_desc_create_with_strides");
    return by_strides && !by_strides(md, dims_count, sizes, dtype, steps);
}

static const void *use(const Desc *md) { return dnnl.version == 2 ? (const void *)md : md->handle; }

/* The primitive's descriptor; hint: the forward pass's, for a backward one. NULL: not this. */
static Handle primitive_desc(const Plan *p, int prop, unsigned flags, const Desc *data, const Desc *stat, Handle hint)
{
    const Norm norm = op_norm(p->c->op);
    const float eps = (float)p->c->eps;
    const char *const kind = norm == LAYERNORM ? "layer" : norm == GROUPNORM ? "group" : "batch";
    const void *d = use(data), *s = use(stat);
    char name[96];
    Handle pd = NULL;
    typedef const void *V;
    void *at;
    int bad;
    if (dnnl.version == 2) {
        static OpDesc op;
        int (*create)(Handle *, V, Handle, V, Handle);
        snprintf(name, sizeof name, "%s_normalization_%s_desc_init", kind, hint ? "backward" : "forward");
        if (!(at = symbol(name)))
            return NULL;
        if (norm == LAYERNORM && hint)
            bad = ((int (*)(void *, int, V, V, V, float, unsigned))at)(&op, prop, d, d, s, eps, flags);
        else if (norm == LAYERNORM)
            bad = ((int (*)(void *, int, V, V, float, unsigned))at)(&op, prop, d, s, eps, flags);
        else if (hint)
            bad = ((int (*)(void *, int, V, V, float, unsigned))at)(&op, prop, d, d, eps, flags);
        else
            bad = ((int (*)(void *, int, V, float, unsigned))at)(&op, prop, d, eps, flags);
        LOAD(create, "primitive_desc_create");
        return bad || create(&pd, &op, NULL, dnnl.engine, hint) ? NULL : pd;
    }
    snprintf(name, sizeof name, "%s_normalization_%s_primitive_desc_create", kind, hint ? "backward" : "forward");
    if (!(at = symbol(name)))
        return NULL;
    const int64_t groups = p->groups;
    Handle e = dnnl.engine;
    if (norm == LAYERNORM && hint)
        bad = ((int (*)(Handle *, Handle, int, V, V, V, V, float, unsigned, Handle, V))at)
              (&pd, e, prop, d, d, d, s, eps, flags, hint, NULL);
    else if (norm == LAYERNORM)
        bad = ((int (*)(Handle *, Handle, int, V, V, V, float, unsigned, V))at)(&pd, e, prop, d, d, s, eps, flags, NULL);
    else if (norm == GROUPNORM && hint)
        bad = ((int (*)(Handle *, Handle, int, V, V, V, int64_t, float, unsigned, Handle, V))at)
              (&pd, e, prop, d, d, d, groups, eps, flags, hint, NULL);
    else if (norm == GROUPNORM)
        bad = ((int (*)(Handle *, Handle, int, V, V, int64_t, float, unsigned, V))at)
              (&pd, e, prop, d, d, groups, eps, flags, NULL);
    else if (hint)
        bad = ((int (*)(Handle *, Handle, int, V, V, V, float, unsigned, Handle, V))at)
              (&pd, e, prop, d, d, d, eps, flags, hint, NULL);
    else
        bad = ((int (*)(Handle *, Handle, int, V, V, float, unsigned, V))at)(&pd, e, prop, d, d, eps, flags, NULL);
    return bad ? NULL : pd;
}

static void onednn_done(void *state)
{
    Net *net = state;
    for (int i = 0; i < net->args; i++) {
        if (net->arg[i].memory)
            dnnl.memory_destroy(net->arg[i].memory);
        free(net->own[i]);
    }
    if (net->primitive)
        dnnl.primitive_destroy(net->primitive);
    free(net);
}

/* An argument in the slab, or of its own: [count] floats that value(p, i) gives. */
static void add(Net *net, int arg, const Desc *md, Tensor where, int64_t count, double (*value)(const Plan *, int64_t))
{
    const int i = net->args++;
    net->arg[i].arg = arg;
    net->tensor[i] = where;
    net->own[i] = where == T_COUNT ? malloc((size_t)count * sizeof(float)) : NULL;
    for (int64_t k = 0; net->own[i] && k < count; k++)
        net->own[i][k] = value ? (float)value(net->p, k) : 0;
    if (dnnl.memory_create(&net->arg[i].memory, use(md), dnnl.engine, net->own[i]))
        net->arg[i].memory = NULL;
}

static double mean_of(const Plan *p, int64_t slot) { return (double)p->mean[slot]; }
static double var_of(const Plan *p, int64_t slot) { return (double)p->var[slot]; }

static void *onednn_prepare(const Plan *p, double *bytes)
{
    int (*set_threads)(int); /* of the OpenMP that it was built with */
    void *const omp = dlsym(dnnl.library, "omp_set_num_threads");
    memcpy(&set_threads, &omp, sizeof set_threads);
    if (set_threads && p->c->threads)
        set_threads(p->c->threads);
    static const int dtypes[] = { [WF_F32] = 3, [WF_F16] = 1, [WF_BF16] = 2, [WF_F64] = 0 };
    const Case *c = p->c;
    const Norm norm = op_norm(c->op);
    const bool backward = op_is_backward(c->op), instances = norm == INSTANCENORM;
    *bytes = 0;
    const bool affine = p->t[T_GAMMA].given;
    if (norm == DROPOUT || norm == RMSNORM || !dtypes[c->x] || c->w != WF_F32 || !plan_is_plain(p))
        return NULL;
    if (instances && (!p->channel_is_run || p->frozen || affine))
        return NULL;
    if ((backward && !p->t[T_DX].given) || affine != (backward ? p->t[T_DGAMMA].given : p->t[T_BETA].given))
        return NULL;
    const int64_t hw = c->hw, height = plan_height(p), width = hw / height; /* rows have hw = 1 */
    const int64_t n = instances ? 1 : p->samples, channels = instances ? p->slots : p->channels;
    const int64_t shape[] = { n, channels, height, width };
    const int64_t first[] = { channels * hw, hw, width, 1 }, last[] = { channels * hw, 1, width * channels, channels };
    const int64_t rows[] = { p->samples, p->channels }, row_step[] = { p->channels, 1 }, one[] = { 1 };
    const int64_t stats[] = { p->slots / p->groups, p->groups }, stats_step[] = { p->groups, 1 };
    Desc data, stat, vector;
    const bool described = norm == LAYERNORM ? describe(&data, 2, rows, row_step, dtypes[c->x])
                                             : describe(&data, 4, shape, p->channel_is_run ? first : last, dtypes[c->x]);
    if (!described || !describe(&vector, 1, &channels, one, dtypes[WF_F32]) ||
        !(norm == GROUPNORM ? describe(&stat, 2, stats, stats_step, 3) : describe(&stat, 1, &p->slots, one, 3)))
        return NULL;
    unsigned flags = p->frozen ? GLOBAL_STATS : 0;
    flags |= affine ? (dnnl.version == 2 ? 8 | 16 : 2 | 4) : 0;
    Handle pd = primitive_desc(p, p->frozen ? INFERENCE : TRAINING, flags, &data, &stat, NULL);
    if (pd && backward) {
        Handle forward = pd;
        pd = primitive_desc(p, affine ? BACKWARD : BACKWARD_DATA, flags, &data, &stat, forward);
        dnnl.primitive_desc_destroy(forward);
    }
    if (!pd)
        return NULL;
    Net *net = calloc(1, sizeof *net);
    net->p = p;
    const bool made = !dnnl.primitive_create(&net->primitive, pd);
    dnnl.primitive_desc_destroy(pd);
    add(net, SRC, &data, T_X, 0, NULL);
    add(net, MEAN, &stat, T_COUNT, p->slots, mean_of);
    add(net, VARIANCE, &stat, T_COUNT, p->slots, var_of);
    add(net, backward ? DIFF_DST : DST, &data, backward ? T_DY : T_Y, 0, NULL);
    if (backward)
        add(net, DIFF_SRC, &data, T_DX, 0, NULL);
    if (affine)
        add(net, SCALE, &vector, T_GAMMA, 0, NULL);
    if (affine)
        add(net, backward ? DIFF_SHIFT : SHIFT, &vector, backward ? T_DBETA : T_BETA, 0, NULL);
    if (affine && backward)
        add(net, DIFF_SCALE, &vector, T_DGAMMA, 0, NULL);
    if (affine && backward && (dnnl.version == 2 || norm == LAYERNORM)) /* asked for, not used */
        add(net, SHIFT, &vector, T_GAMMA, 0, NULL);
    bool whole = made;
    for (int i = 0; i < net->args; i++)
        whole &= net->arg[i].memory != NULL;
    if (whole)
        return net;
    onednn_done(net);
    return NULL;
}

static bool onednn_call(void *state, char *slab, struct CUstream_st *stream)
{
    const Net *net = state;
    (void)stream;
    bool ok = true;
    for (int i = 0; i < net->args; i++)
        if (!net->own[i])
            ok &= !dnnl.set_handle(net->arg[i].memory, plan_tensor(net->p, slab, net->tensor[i]));
    return ok && !dnnl.primitive_execute(net->primitive, dnnl.stream, net->args, net->arg) && !dnnl.stream_wait(dnnl.stream);
}

const Peer peer_onednn = { "onednn", WF_CPU, onednn_open, onednn_prepare, onednn_call, onednn_done };
