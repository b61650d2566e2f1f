/* peer_cudnn.c - cuDNN 9 (or 8), opened at run time; what is used of its interface is declared here. BatchNorm by the calls
 * and in the mode that PyTorch uses, InstanceNorm channels first without parameters as BatchNorm of n c channels, dropout.
 * fake_cudnn.c stands in for it where there is no GPU. */
#include <stdlib.h>

#include "bench.h"
#include "data.h"
#include "library.h"

enum { SPATIAL = 1, SPATIAL_PERSISTENT = 2, BATCHNORM_ALONE = 0 };

typedef void *Handle; /* of the library, of a descriptor */
typedef const void *In;
typedef void *Out;

static Handle handle;
static struct CUstream_st *current;
static size_t (*version)(void);
static int (*create)(Handle *);
static int (*set_stream)(Handle, struct CUstream_st *);
static int (*tensor_create)(Handle *);
static int (*tensor_destroy)(Handle);
static int (*tensor_set)(Handle, int dtype, int n, int c, int h, int w, int n_step, int c_step, int h_step, int w_step);
static int (*norm_forward_size)(Handle, int mode, int ops, Handle x, Handle z, Handle y, Handle vector, Handle activation,
                                size_t *);
static int (*norm_backward_size)(Handle, int mode, int ops, Handle x, Handle y, Handle dy, Handle dz, Handle dx,
                                 Handle vector, Handle activation, size_t *);
static int (*norm_reserve_size)(Handle, int mode, int ops, Handle activation, Handle x, size_t *);
static int (*norm_train)(Handle, int mode, int ops, In alpha, In beta, Handle, In x, Handle, In z, Handle, Out y, Handle,
                         In scale, In bias, double factor, Out running_mean, Out running_var, double eps, Out mean,
                         Out rstd, Handle activation, Out work, size_t, Out reserve, size_t);
static int (*norm_infer)(Handle, int mode, In alpha, In beta, Handle, In x, Handle, Out y, Handle, In scale, In bias,
                         In mean, In var, double eps);
static int (*norm_backward)(Handle, int mode, int ops, In alpha, In beta, In alpha_vector, In beta_vector, Handle, In x,
                            Handle, In y, Handle, In dy, Handle, Out dz, Handle, Out dx, Handle, In scale, In bias,
                            Out dscale, Out dbias, double eps, In mean, In rstd, Handle activation, Out work, size_t,
                            Out reserve, size_t);
static int (*dropout_create)(Handle *);
static int (*dropout_destroy)(Handle);
static int (*dropout_states_size)(Handle, size_t *);
static int (*dropout_reserve_size)(Handle tensor, size_t *);
static int (*dropout_set)(Handle, Handle library, float p, Out states, size_t, unsigned long long seed);
static int (*dropout_forward)(Handle, Handle dropout, Handle, In x, Handle, Out y, Out reserve, size_t);
static int (*dropout_backward)(Handle, Handle dropout, Handle, In dy, Handle, Out dx, Out reserve, size_t);

static const char *cudnn_open(void)
{
    static const char *const names[] = { "libcudnn.so.9", "libcudnn.so.8", NULL };
    static const LibraryCall calls[] = {
        { "cudnnGetVersion", &version },
        { "cudnnCreate", &create },
        { "cudnnSetStream", &set_stream },
        { "cudnnCreateTensorDescriptor", &tensor_create },
        { "cudnnDestroyTensorDescriptor", &tensor_destroy },
        { "cudnnSetTensor4dDescriptorEx", &tensor_set },
        { "cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize", &norm_forward_size },
        { "cudnnGetBatchNormalizationBackwardExWorkspaceSize", &norm_backward_size },
        { "cudnnGetBatchNormalizationTrainingExReserveSpaceSize", &norm_reserve_size },
        { "cudnnBatchNormalizationForwardTrainingEx", &norm_train },
        { "cudnnBatchNormalizationForwardInference", &norm_infer },
        { "cudnnBatchNormalizationBackwardEx", &norm_backward },
        { "cudnnCreateDropoutDescriptor", &dropout_create },
        { "cudnnDestroyDropoutDescriptor", &dropout_destroy },
        { "cudnnDropoutGetStatesSize", &dropout_states_size },
        { "cudnnDropoutGetReserveSpaceSize", &dropout_reserve_size },
        { "cudnnSetDropoutDescriptor", &dropout_set },
        { "cudnnDropoutForward", &dropout_forward },
        { "cudnnDropoutBackward", &dropout_backward },
    };
    static char text[32];
    const char *found;
    if (!handle && (!library_open(names, calls, sizeof calls / sizeof *calls, &found) || create(&handle)))
        return NULL;
    const unsigned v = (unsigned)version(), unit = v >= 90000 ? 10000 : 1000; /* 91900 is 9.19.0, 8907 is 8.9.7 */
    snprintf(text, sizeof text, "%u.%u.%u", v / unit, v % unit / 100, v % 100);
    return text;
}

typedef struct State {
    const Plan *p;
    Handle tensor, vector, dropout;
    int    mode;
    void  *work, *reserve, *states, *y; /* y: of the forward pass whose reserve a backward one needs */
    float *own[4]; /* InstanceNorm: ones, zeros, and where the gradients of these go */
    size_t work_size, reserve_size;
    bool   recorded; /* that forward pass has been */
} State;

static bool describe(Handle *tensor, wf_dtype dtype, int64_t n, int64_t c, int64_t h, int64_t w, bool last)
{
    static const int dtypes[] = { [WF_F32] = 0, [WF_F64] = 1, [WF_F16] = 2, [WF_BF16] = 9 };
    return !tensor_create(tensor) && !tensor_set(*tensor, dtypes[dtype], (int)n, (int)c, (int)h, (int)w, (int)(c * h * w),
                                                 last ? 1 : (int)(h * w), (int)(last ? w * c : w), last ? (int)c : 1);
}

static bool get(void **memory, size_t size) { return size == 0 || (*memory = gpu_alloc(size)) != NULL; }

static bool prepare_dropout(State *s, const Case *c)
{
    size_t states = 0;
    return describe(&s->tensor, c->x, 1, 1, 1, s->p->count, false) && !dropout_create(&s->dropout) &&
           !dropout_states_size(handle, &states) && get(&s->states, states) &&
           !dropout_set(s->dropout, handle, (float)c->p, s->states, states, 1) &&
           !dropout_reserve_size(s->tensor, &s->reserve_size) && get(&s->reserve, s->reserve_size);
}

static bool prepare_norm(State *s, const Case *c)
{
    const Plan *p = s->p;
    const bool instances = op_norm(c->op) == INSTANCENORM, backward = op_is_backward(c->op);
    const int64_t n = instances ? 1 : p->samples, channels = instances ? p->slots : p->channels, h = plan_height(p);
    s->mode = op_is_infer(c->op) ? SPATIAL : SPATIAL_PERSISTENT;
    if (!describe(&s->tensor, c->x, n, channels, h, c->hw / h, !p->channel_is_run) ||
        !describe(&s->vector, stat_dtype(c->x), 1, channels, 1, 1, false))
        return false;
    if (op_is_infer(c->op))
        return true;
    const Handle x = s->tensor;
    if (norm_reserve_size(handle, s->mode, BATCHNORM_ALONE, NULL, x, &s->reserve_size) ||
        norm_forward_size(handle, s->mode, BATCHNORM_ALONE, x, NULL, x, s->vector, NULL, &s->work_size))
        return false;
    size_t size = 0;
    if (backward && norm_backward_size(handle, s->mode, BATCHNORM_ALONE, x, NULL, x, NULL, x, s->vector, NULL, &size))
        return false;
    s->work_size = size > s->work_size ? size : s->work_size;
    const bool forward_first = backward && s->reserve_size > 0;
    bool memory = get(&s->work, s->work_size) && get(&s->reserve, s->reserve_size) &&
                  get(&s->y, forward_first ? p->t[T_X].size : 0);
    float *vectors = instances ? calloc((size_t)channels, 2 * sizeof *vectors) : NULL;
    for (int64_t i = 0; vectors && i < channels; i++)
        vectors[i] = 1;
    for (int i = 0; vectors && i < 4 && memory; i++) {
        memory = (s->own[i] = gpu_alloc((size_t)channels * sizeof *vectors)) != NULL;
        if (memory)
            gpu_put(s->own[i], vectors + (i % 2) * channels, (size_t)channels * sizeof *vectors);
    }
    free(vectors);
    return memory;
}

static void cudnn_done(void *state)
{
    State *s = state;
    void *const all[] = { s->work, s->reserve, s->states, s->y, s->own[0], s->own[1], s->own[2], s->own[3] };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i])
            gpu_free(all[i]);
    if (s->tensor)
        tensor_destroy(s->tensor);
    if (s->vector)
        tensor_destroy(s->vector);
    if (s->dropout)
        dropout_destroy(s->dropout);
    free(s);
}

/* What cuDNN has of it. */
static bool takes(const Plan *p)
{
    const Case *c = p->c;
    const Norm norm = op_norm(c->op);
    const bool backward = op_is_backward(c->op), gamma = p->t[T_GAMMA].given;
    if (!plan_is_plain(p) || p->count > INT32_MAX || (backward && !p->t[T_DX].given))
        return false;
    if (norm == DROPOUT)
        return c->kind == WF_DROPOUT;
    if (norm == INSTANCENORM)
        return p->channel_is_run && !p->frozen && c->x != WF_F64 && !gamma && !p->t[backward ? T_DGAMMA : T_BETA].given &&
               !p->t[backward ? T_DBETA : T_BETA].given;
    return norm == BATCHNORM && c->w == stat_dtype(c->x) && gamma &&
           (backward ? p->t[T_DGAMMA].given && p->t[T_DBETA].given : p->t[T_BETA].given);
}

static void *cudnn_prepare(const Plan *p, double *bytes)
{
    *bytes = 0;
    if (!takes(p))
        return NULL;
    State *s = calloc(1, sizeof *s);
    s->p = p;
    if (op_norm(p->c->op) == DROPOUT ? prepare_dropout(s, p->c) : prepare_norm(s, p->c))
        return s;
    cudnn_done(s);
    return NULL;
}

static const float  one_f = 1, zero_f = 0;
static const double one_d = 1, zero_d = 0;

static bool train(const State *s, void *const at[T_COUNT], void *y)
{
    const Case *c = s->p->c;
    const bool wide = c->x == WF_F64;
    /* A forward pass ahead of a backward one has no beta, and must not write the statistics. */
    const bool backward = op_is_backward(c->op);
    const void *beta = s->own[1] ? s->own[1] : backward ? at[T_GAMMA] : at[T_BETA];
    return !norm_train(handle, s->mode, BATCHNORM_ALONE, wide ? (In)&one_d : &one_f, wide ? (In)&zero_d : &zero_f,
                       s->tensor, at[T_X], NULL, NULL, s->tensor, y, s->vector, s->own[0] ? s->own[0] : at[T_GAMMA], beta,
                       c->momentum, at[T_RUNNING_MEAN_OUT], at[T_RUNNING_VAR_OUT], c->eps, backward ? NULL : at[T_MEAN],
                       backward ? NULL : at[T_RSTD], NULL, s->work, s->work_size, s->reserve, s->reserve_size);
}

static bool norm_call(State *s, void *const at[T_COUNT])
{
    const Case *c = s->p->c;
    const bool wide = c->x == WF_F64;
    const void *one = wide ? (In)&one_d : &one_f, *zero = wide ? (In)&zero_d : &zero_f;
    if (op_is_infer(c->op))
        return !norm_infer(handle, s->mode, one, zero, s->tensor, at[T_X], s->tensor, at[T_Y], s->vector, at[T_GAMMA],
                           at[T_BETA], at[T_RUNNING_MEAN_IN], at[T_RUNNING_VAR_IN], c->eps);
    if (!op_is_backward(c->op))
        return train(s, at, at[T_Y]);
    if (!s->recorded && s->y && !train(s, at, s->y))
        return false;
    s->recorded = true;
    return !norm_backward(handle, s->mode, BATCHNORM_ALONE, one, zero, one, zero, s->tensor, at[T_X], NULL, NULL, s->tensor,
                          at[T_DY], NULL, NULL, s->tensor, at[T_DX], s->vector, s->own[0] ? s->own[0] : at[T_GAMMA], NULL,
                          s->own[2] ? s->own[2] : at[T_DGAMMA], s->own[3] ? s->own[3] : at[T_DBETA], c->eps, at[T_MEAN],
                          at[T_RSTD], NULL, s->work, s->work_size, s->reserve, s->reserve_size);
}

static bool dropout_call(State *s, void *const at[T_COUNT])
{
    const bool backward = op_is_backward(s->p->c->op);
    const Handle x = s->tensor;
    if (!backward)
        return !dropout_forward(handle, s->dropout, x, at[T_X], x, at[T_Y], s->reserve, s->reserve_size);
    if (!s->recorded && dropout_forward(handle, s->dropout, x, at[T_DY], x, at[T_DX], s->reserve, s->reserve_size))
        return false;
    s->recorded = true;
    return !dropout_backward(handle, s->dropout, x, at[T_DY], x, at[T_DX], s->reserve, s->reserve_size);
}

static bool cudnn_call(void *state, char *slab, struct CUstream_st *stream)
{
    State *s = state;
    void *at[T_COUNT];
    for (int i = 0; i < T_COUNT; i++)
        at[i] = plan_tensor(s->p, slab, (Tensor)i);
    if (stream != current && set_stream(handle, stream))
        return false;
    current = stream;
    return op_norm(s->p->c->op) == DROPOUT ? dropout_call(s, at) : norm_call(s, at);
}

const Peer peer_cudnn = { "cudnn", WF_CUDA, cudnn_open, cudnn_prepare, cudnn_call, cudnn_done };
