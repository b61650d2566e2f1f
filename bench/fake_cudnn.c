/* fake_cudnn.c - a libcudnn.so.9 for the emulated device, computing with plain loops on the host: holds peer_cudnn.c to the
 * documented meaning of every argument. Where NVIDIA's header is installed the compiler compares these definitions with it.
 * f32 and f64 alone. */
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if __has_include(<cudnn.h>)
#include <cudnn.h>
_Static_assert(CUDNN_DATA_HALF == 2 && CUDNN_DATA_BFLOAT16 == 9, "as in peer_cudnn.c");
#else
typedef enum { CUDNN_STATUS_SUCCESS = 0, CUDNN_STATUS_BAD_PARAM = 2000 } cudnnStatus_t;
typedef enum { CUDNN_DATA_FLOAT = 0, CUDNN_DATA_DOUBLE = 1 } cudnnDataType_t;
typedef enum { CUDNN_BATCHNORM_SPATIAL = 1, CUDNN_BATCHNORM_SPATIAL_PERSISTENT = 2 } cudnnBatchNormMode_t;
typedef enum { CUDNN_BATCHNORM_OPS_BN = 0 } cudnnBatchNormOps_t;
typedef struct cudnnContext *cudnnHandle_t;
typedef struct cudnnTensorStruct *cudnnTensorDescriptor_t;
typedef struct cudnnActivationStruct *cudnnActivationDescriptor_t;
typedef struct cudnnDropoutStruct *cudnnDropoutDescriptor_t;
#endif

typedef cudnnHandle_t Handle;
typedef cudnnTensorDescriptor_t Desc;
typedef cudnnActivationDescriptor_t Activation;
typedef cudnnBatchNormMode_t Mode;
typedef cudnnBatchNormOps_t Ops;
typedef cudnnDropoutDescriptor_t Dropout;

enum { WORK = 1000, RESERVE = 64, STATES = 48, MARK = 0x5a };
struct cudnnTensorStruct { int dtype, size[4], step[4]; };
struct cudnnDropoutStruct { float p; void *states; };
static int context;

/* Of a real one, too, a mistake is a status and not a crash. */
#define MUST(condition) do { if (!(condition)) return CUDNN_STATUS_BAD_PARAM; } while (0)

size_t cudnnGetVersion(void) { return 90001; }
cudnnStatus_t cudnnCreate(Handle *handle) { return *handle = (Handle)(void *)&context, CUDNN_STATUS_SUCCESS; }

cudnnStatus_t cudnnSetStream(Handle handle, cudaStream_t stream)
{
    MUST((void *)handle == &context && stream);
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnCreateTensorDescriptor(Desc *t) { return *t = calloc(1, sizeof **t), CUDNN_STATUS_SUCCESS; }
cudnnStatus_t cudnnDestroyTensorDescriptor(Desc t) { return free(t), CUDNN_STATUS_SUCCESS; }

cudnnStatus_t cudnnSetTensor4dDescriptorEx(Desc t, cudnnDataType_t dtype, int n, int c, int h, int w, int n_step, int
                                           c_step, int h_step, int w_step)
{
    *t = (struct cudnnTensorStruct){ (int)dtype, { n, c, h, w }, { n_step, c_step, h_step, w_step } };
    MUST(dtype == CUDNN_DATA_FLOAT || dtype == CUDNN_DATA_DOUBLE);
    return CUDNN_STATUS_SUCCESS;
}

/* ---- the device's memory, as the program's own runtime reads and writes it ---- */

enum { MOST = 1 << 12 };

static void get(const void *from, int dtype, int64_t count, double to[MOST])
{
    float narrow[MOST];
    if (count > MOST || cudaMemcpy(dtype == CUDNN_DATA_DOUBLE ? (void *)to : narrow, from,
                                   (size_t)count * (dtype == CUDNN_DATA_DOUBLE ? 8 : 4), cudaMemcpyDeviceToHost))
        abort();
    for (int64_t i = 0; i < count && dtype == CUDNN_DATA_FLOAT; i++)
        to[i] = narrow[i];
}

/* Nowhere, if an optional output is not wanted. */
static void put(void *to, int dtype, int64_t count, const double from[MOST])
{
    float narrow[MOST];
    for (int64_t i = 0; i < count; i++)
        narrow[i] = (float)from[i];
    if (to && cudaMemcpy(to, dtype == CUDNN_DATA_DOUBLE ? (const void *)from : narrow,
                         (size_t)count * (dtype == CUDNN_DATA_DOUBLE ? 8 : 4), cudaMemcpyHostToDevice))
        abort();
}

/* ---- BatchNorm ---- */

/* Element k of channel c. */
static int64_t index_of(Desc t, int c, int64_t k)
{
    const int64_t w = k % t->size[3], h = k / t->size[3] % t->size[2], n = k / t->size[3] / t->size[2];
    return n * t->step[0] + c * (int64_t)t->step[1] + h * t->step[2] + w * t->step[3];
}

static int64_t per_channel(Desc t) { return (int64_t)t->size[0] * t->size[2] * t->size[3]; }

static int is_vector(Desc v, Desc x)
{
    return v->size[0] == 1 && v->size[1] == x->size[1] && v->size[2] == 1 && v->size[3] == 1 && v->step[1] == 1;
}

/* On the host. */
static double scalar(const void *at, int dtype)
{
    return dtype == CUDNN_DATA_DOUBLE ? *(const double *)at : *(const float *)at;
}

/* As PyTorch calls it. */
static int is_training(Handle handle, Mode mode, Ops ops)
{
    return handle && mode == CUDNN_BATCHNORM_SPATIAL_PERSISTENT && ops == CUDNN_BATCHNORM_OPS_BN;
}

cudnnStatus_t cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(
    Handle handle, Mode mode, Ops ops, Desc x, Desc z, Desc y, Desc vector, Activation activation, size_t *size)
{
    MUST(is_training(handle, mode, ops) && x && !z && y && vector && !activation);
    *size = WORK;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnGetBatchNormalizationBackwardExWorkspaceSize(
    Handle handle, Mode mode, Ops ops, Desc x, Desc y, Desc dy, Desc dz, Desc dx, Desc vector, Activation activation,
    size_t *size)
{
    MUST(is_training(handle, mode, ops) && x && !y && dy && !dz && dx && vector && !activation);
    *size = WORK + 1;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnGetBatchNormalizationTrainingExReserveSpaceSize(
    Handle handle, Mode mode, Ops ops, Activation activation, Desc x, size_t *size)
{
    MUST(is_training(handle, mode, ops) && !activation && x);
    *size = RESERVE;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBatchNormalizationForwardTrainingEx(
    Handle handle, Mode mode, Ops ops, const void *alpha, const void *beta, Desc x_desc, const void *x, Desc z_desc,
    const void *z, Desc y_desc, void *y, Desc vector, const void *scale, const void *bias, double factor, void
    *running_mean, void *running_var, double eps, void *mean, void *rstd, Activation activation, void *work, size_t
    work_size, void *reserve, size_t reserve_size)
{
    const int type = x_desc->dtype;
    const int64_t count = per_channel(x_desc);
    MUST(is_training(handle, mode, ops) && !z_desc && !z && !activation);
    MUST(scalar(alpha, type) == 1 && scalar(beta, type) == 0 && is_vector(vector, x_desc) && y_desc == x_desc);
    MUST(scale && bias && !running_mean == !running_var && !mean == !rstd);
    MUST(work && work_size >= WORK && reserve && reserve_size >= RESERVE);
    char marks[RESERVE];
    memset(marks, MARK, sizeof marks);
    cudaMemcpy(reserve, marks, sizeof marks, cudaMemcpyHostToDevice);
    const int channels = x_desc->size[1];
    double v[MOST], g[MOST], b[MOST], m[MOST], r[MOST], old_mean[MOST], old_var[MOST];
    get(x, type, count * channels, v);
    get(scale, type, channels, g);
    get(bias, type, channels, b);
    if (running_mean) {
        get(running_mean, type, channels, old_mean);
        get(running_var, type, channels, old_var);
    }
    for (int c = 0; c < channels; c++) {
        double sum = 0, square = 0;
        for (int64_t k = 0; k < count; k++)
            sum += v[index_of(x_desc, c, k)];
        m[c] = sum / (double)count;
        for (int64_t k = 0; k < count; k++)
            square += pow(v[index_of(x_desc, c, k)] - m[c], 2);
        r[c] = 1 / sqrt(square / (double)count + eps);
        for (int64_t k = 0; k < count; k++) {
            double *at = &v[index_of(x_desc, c, k)];
            *at = (*at - m[c]) * r[c] * g[c] + b[c];
        }
        old_mean[c] = factor * m[c] + (1 - factor) * old_mean[c];
        old_var[c] = factor * square / (double)(count - 1) + (1 - factor) * old_var[c];
    }
    put(y, type, count * channels, v);
    put(mean, type, channels, m);
    put(rstd, type, channels, r);
    put(running_mean, type, channels, old_mean);
    put(running_var, type, channels, old_var);
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBatchNormalizationForwardInference(
    Handle handle, Mode mode, const void *alpha, const void *beta, Desc x_desc, const void *x, Desc y_desc, void *y,
    Desc vector, const void *scale, const void *bias, const void *mean, const void *var, double eps)
{
    const int type = x_desc->dtype;
    MUST(handle && mode == CUDNN_BATCHNORM_SPATIAL && scalar(alpha, type) == 1 && scalar(beta, type) == 0);
    MUST(y_desc == x_desc && is_vector(vector, x_desc));
    const int channels = x_desc->size[1];
    double v[MOST], g[MOST], b[MOST], m[MOST], s[MOST];
    get(x, type, per_channel(x_desc) * channels, v);
    get(scale, type, channels, g);
    get(bias, type, channels, b);
    get(mean, type, channels, m);
    get(var, type, channels, s);
    for (int c = 0; c < channels; c++)
        for (int64_t k = 0; k < per_channel(x_desc); k++) {
            double *at = &v[index_of(x_desc, c, k)];
            *at = (*at - m[c]) / sqrt(s[c] + eps) * g[c] + b[c];
        }
    put(y, type, per_channel(x_desc) * channels, v);
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBatchNormalizationBackwardEx(Handle handle, Mode mode, Ops ops, const void *alpha, const void *beta,
                                                const void *alpha_vector, const void *beta_vector, Desc x_desc, const
                                                void *x, Desc y_desc, const void *y, Desc dy_desc, const void *dy, Desc
                                                dz_desc, void *dz, Desc dx_desc, void *dx, Desc vector, const void
                                                *scale, const void *bias, void *dscale, void *dbias, double eps, const
                                                void *mean, const void *rstd, Activation activation, void *work, size_t
                                                work_size, void *reserve, size_t reserve_size)
{
    const int type = x_desc->dtype;
    const int64_t count = per_channel(x_desc);
    MUST(is_training(handle, mode, ops) && !y_desc && !y && !dz_desc && !dz);
    MUST(scalar(alpha, type) == 1 && scalar(beta, type) == 0);
    MUST(scalar(alpha_vector, type) == 1 && scalar(beta_vector, type) == 0);
    MUST(is_vector(vector, x_desc) && dy_desc == x_desc && dx_desc == x_desc && !bias && !activation && eps > 0);
    char marks[RESERVE];
    MUST(work && work_size >= WORK + 1 && reserve && reserve_size >= RESERVE);
    cudaMemcpy(marks, reserve, sizeof marks, cudaMemcpyDeviceToHost);
    MUST(marks[0] == MARK && marks[RESERVE - 1] == MARK);
    const int channels = x_desc->size[1];
    double v[MOST], d[MOST], g[MOST], m[MOST], r[MOST], sum[MOST], product[MOST];
    get(x, type, count * channels, v);
    get(dy, type, count * channels, d);
    get(scale, type, channels, g);
    get(mean, type, channels, m);
    get(rstd, type, channels, r);
    for (int c = 0; c < channels; c++) {
        sum[c] = product[c] = 0;
        for (int64_t k = 0; k < count; k++) {
            const int64_t i = index_of(x_desc, c, k);
            v[i] = (v[i] - m[c]) * r[c];
            sum[c] += d[i];
            product[c] += d[i] * v[i];
        }
        for (int64_t k = 0; k < count; k++) {
            const int64_t i = index_of(x_desc, c, k);
            d[i] = g[c] * r[c] * (d[i] - (sum[c] + v[i] * product[c]) / (double)count);
        }
    }
    put(dx, type, count * channels, d);
    put(dscale, type, channels, product);
    put(dbias, type, channels, sum);
    return CUDNN_STATUS_SUCCESS;
}

/* ---- dropout ---- */

cudnnStatus_t cudnnCreateDropoutDescriptor(Dropout *d)
{
    return *d = calloc(1, sizeof **d), CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnDestroyDropoutDescriptor(Dropout d) { return free(d), CUDNN_STATUS_SUCCESS; }

cudnnStatus_t cudnnDropoutGetStatesSize(Handle handle, size_t *size)
{
    MUST(handle);
    return *size = STATES, CUDNN_STATUS_SUCCESS;
}

static size_t mask_size(Desc x) { return (size_t)(per_channel(x) * x->size[1]); }

cudnnStatus_t cudnnDropoutGetReserveSpaceSize(Desc x, size_t *size)
{
    *size = mask_size(x);
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnSetDropoutDescriptor(Dropout d, Handle handle, float p, void *states, size_t size, unsigned long long
                                        seed)
{
    MUST(handle && states && size >= STATES && seed);
    *d = (struct cudnnDropoutStruct){ p, states };
    return CUDNN_STATUS_SUCCESS;
}

static void drop(float p, int type, const void *x, void *y, const char *kept, size_t count)
{
    double v[MOST];
    get(x, type, (int64_t)count, v);
    for (size_t i = 0; i < count; i++)
        v[i] = kept[i] ? v[i] / (1 - (double)p) : 0;
    put(y, type, (int64_t)count, v);
}

cudnnStatus_t cudnnDropoutForward(Handle handle, Dropout d, Desc x_desc, const void *x, Desc y_desc, void *y, void
                                  *reserve, size_t size)
{
    MUST(handle && d->states && y_desc == x_desc && size >= mask_size(x_desc) && d->p > 0 && d->p < 1);
    char kept[MOST];
    for (size_t i = 0; i < mask_size(x_desc) && i < MOST; i++)
        kept[i] = rand() > d->p * (double)RAND_MAX;
    cudaMemcpy(reserve, kept, mask_size(x_desc), cudaMemcpyHostToDevice);
    drop(d->p, x_desc->dtype, x, y, kept, mask_size(x_desc));
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnDropoutBackward(Handle handle, Dropout d, Desc dy_desc, const void *dy, Desc dx_desc, void *dx, void
                                   *reserve, size_t size)
{
    MUST(handle && dx_desc == dy_desc && size >= mask_size(dy_desc));
    char kept[MOST];
    cudaMemcpy(kept, reserve, mask_size(dy_desc), cudaMemcpyDeviceToHost);
    drop(d->p, dy_desc->dtype, dy, dx, kept, mask_size(dy_desc));
    return CUDNN_STATUS_SUCCESS;
}
