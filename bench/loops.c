#include "loops.h"

#include <string.h>

#define WF_REAL float
#include "../src/common/activation.h"
#ifdef __x86_64__
#include <immintrin.h>
#define EACH_ISA __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define EACH_ISA
#endif

enum { BLOCK = 512 /* floats that stay in L1 between a block's loops */ };

/* What has AVX2 converts f16. */
bool loops_take(wf_dtype dtype)
{
#ifdef __x86_64__
    return dtype == WF_F32 || dtype == WF_BF16 || (dtype == WF_F16 && __builtin_cpu_supports("avx2"));
#else
    return dtype == WF_F32 || dtype == WF_BF16;
#endif
}

/* ---- 16 bits to float and back ---- */

EACH_ISA static void widen_bf16(int n, const uint16_t *in, float *out)
{
    for (int i = 0; i < n; i++) {
        const uint32_t bits = (uint32_t)in[i] << 16;
        memcpy(&out[i], &bits, sizeof bits);
    }
}

/* To nearest, ties to even; no NaN comes here. */
EACH_ISA static void narrow_bf16(int n, const float *in, uint16_t *out)
{
    for (int i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &in[i], sizeof bits);
        out[i] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
}

#ifdef __x86_64__
__attribute__((target("avx,f16c"))) static void widen_f16(int n, const uint16_t *in, float *out)
{
    int i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(in + i))));
    for (; i < n; i++)
        out[i] = _cvtsh_ss(in[i]);
}

__attribute__((target("avx,f16c"))) static void narrow_f16(int n, const float *in, uint16_t *out)
{
    int i = 0;
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *)(void *)(out + i), _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT));
    for (; i < n; i++)
        out[i] = _cvtss_sh(in[i], _MM_FROUND_TO_NEAREST_INT);
}
#else
static void widen_f16(int n, const uint16_t *in, float *out) { (void)n, (void)in, (void)out; }
static void narrow_f16(int n, const float *in, uint16_t *out) { (void)n, (void)in, (void)out; }
#endif

/* in[at .. at + n) as floats, in room if they are none. */
static const float *floats(wf_dtype dtype, const void *in, int64_t at, int n, float *room)
{
    if (!in || dtype == WF_F32)
        return in ? (const float *)in + at : NULL;
    (dtype == WF_BF16 ? widen_bf16 : widen_f16)(n, (const uint16_t *)in + at, room);
    return room;
}

/* ---- out = a * row_scale * col_scale + b ---- */

/* out may be a. */
EACH_ISA static void add(int n, const float *a, const float *b, float *out)
{
    for (int i = 0; i < n; i++)
        out[i] = a[i] + b[i];
}

EACH_ISA static void scale(int n, const float *a, float by, const float *col_scale, float *out)
{
    for (int i = 0; i < n; i++)
        out[i] = a[i] * by * (col_scale ? col_scale[i] : 1);
}

void scaled_sum(const ScaledSum *s, int threads)
{
    (void)threads; /* without OpenMP there is one */
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < s->rows; r++) {
        float a_room[BLOCK], b_room[BLOCK], scale_room[BLOCK], out_room[BLOCK];
        for (int64_t j = 0; j < s->cols; j += BLOCK) {
            const int n = (int)(s->cols - j < BLOCK ? s->cols - j : BLOCK);
            const int64_t at = r * s->cols + j;
            const float *a = floats(s->dtype, s->a, at, n, a_room), *b = floats(s->dtype, s->b, at, n, b_room);
            const float *by = floats(s->scale_dtype, s->col_scale, j, n, scale_room);
            float *out = s->dtype == WF_F32 ? (float *)s->out + at : out_room;
            if (s->row_scale || by)
                scale(n, a, s->row_scale ? s->row_scale[r] : 1, by, out), a = out;
            if (b)
                add(n, a, b, out), a = out;
            if (s->dtype == WF_F32 && a != out)
                memcpy(out, a, (size_t)n * sizeof *out);
            else if (s->dtype != WF_F32)
                (s->dtype == WF_BF16 ? narrow_bf16 : narrow_f16)(n, a, (uint16_t *)s->out + at);
        }
    }
}

/* ---- out = activation(a + b), or dy * activation'(a) ---- */

/* kind is a constant where these stand. out may be a. */
#define ACTIVATION(name, kind)                                                                      \
    EACH_ISA static void name##_value(int n, float slope, const float *a, float *out)               \
    {                                                                                               \
        for (int i = 0; i < n; i++)                                                                 \
            out[i] = activation_value(kind, slope, a[i]);                                           \
    }                                                                                               \
    EACH_ISA static void name##_gradient(int n, float slope, const float *a, const float *dy, float *out)  \
    {                                                                                               \
        for (int i = 0; i < n; i++)                                                                 \
            out[i] = dy[i] * activation_derivative(kind, slope, a[i]);                              \
    }
ACTIVATION(none, ACTIVATION_NONE)
ACTIVATION(relu, ACTIVATION_RELU)
ACTIVATION(leaky_relu, ACTIVATION_LEAKY_RELU)
ACTIVATION(silu, ACTIVATION_SILU)
ACTIVATION(gelu, ACTIVATION_GELU)
ACTIVATION(gelu_tanh, ACTIVATION_GELU_TANH)

static const struct {
    void (*value)(int n, float slope, const float *a, float *out);
    void (*gradient)(int n, float slope, const float *a, const float *dy, float *out);
} passes[] = {
    { none_value, none_gradient }, { relu_value, relu_gradient }, { leaky_relu_value, leaky_relu_gradient },
    { silu_value, silu_gradient }, { gelu_value, gelu_gradient }, { gelu_tanh_value, gelu_tanh_gradient },
};

EACH_ISA static void modulate_row(int n, const float *a, float factor, float shift, float *out)
{
    for (int i = 0; i < n; i++)
        out[i] = a[i] * factor + shift;
}

EACH_ISA static void modulate(int n, const float *a, float offset, const float *scale, const float *shift, float *out)
{
    for (int i = 0; i < n; i++)
        out[i] = a[i] * (scale ? offset + scale[i] : 1) + (shift ? shift[i] : 0);
}

/* out = a of n elements from the at-th on, of one row, as modulated. */
static void modulated(const Activated *s, int64_t at, int n, const float *a, float *out)
{
    const int64_t row = at / s->cols, i = s->share ? row / s->share * s->cols + at % s->cols : row;
    float scale_room[BLOCK], shift_room[BLOCK];
    const float *scale = floats(s->scale_dtype, s->scale, i, s->share ? n : 1, scale_room);
    const float *shift = floats(s->scale_dtype, s->shift, i, s->share ? n : 1, shift_room);
    if (s->share)
        modulate(n, a, s->offset, scale, shift, out);
    else
        modulate_row(n, a, scale ? s->offset + *scale : 1, shift ? *shift : 0, out);
}

static void activate(const Activated *s, int64_t at, int n)
{
    float a_room[BLOCK], other_room[BLOCK], out_room[BLOCK];
    const float *a = floats(s->dtype, s->a, at, n, a_room), *b = floats(s->dtype, s->dy ? s->dy : s->b, at, n, other_room);
    float *out = s->dtype == WF_F32 ? (float *)s->out + at : out_room;
    if (s->scale || s->shift)
        modulated(s, at, n, a, out), a = out;
    if (s->b)
        add(n, a, b, out), a = out;
    if (s->dy)
        passes[s->kind].gradient(n, s->slope, a, b, out);
    else
        passes[s->kind].value(n, s->slope, a, out);
    if (s->dtype != WF_F32)
        (s->dtype == WF_BF16 ? narrow_bf16 : narrow_f16)(n, out, (uint16_t *)s->out + at);
}

void activated(const Activated *s, int threads)
{
    const int64_t cols = s->scale || s->shift ? s->cols : BLOCK;
    (void)threads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t begin = 0; begin < s->count; begin += cols) {
        const int64_t end = begin + cols < s->count ? begin + cols : s->count;
        for (int64_t at = begin; at < end; at += BLOCK)
            activate(s, at, (int)(end - at < BLOCK ? end - at : BLOCK));
    }
}

#ifndef WF_TEST_CUDA
void activated_cuda(const Activated *s, struct CUstream_st *stream) { (void)s, (void)stream; } /* as the next */
void scaled_sum_cuda(const ScaledSum *s, struct CUstream_st *stream) { (void)s, (void)stream; } /* nobody calls it */
#endif
