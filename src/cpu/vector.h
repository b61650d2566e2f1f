/* Vectors: WIDTH values of the arithmetic type in the widest register of the ISA that a file is compiled for, and how
 * they come from memory of any dtype and go there. GCC's vector extensions, so one text for every ISA; intrinsics only
 * for instructions that these have no words for. dtype is a constant where a vector is loaded or stored: see FOR_DTYPE.
 *
 * | primitive                        | what it does                                                                    |
 * | vector_load, vector_load_part    | WIDTH values, or the first n completed by a fill; no byte past them is read     |
 * | vector_store, vector_store_part  | the same way back, rounded once                                                 |
 * | vector_stream                    | past the cache, to memory aligned to WIDTH values                               |
 * | lanes_sum                        | LANES values, added as a tree that is the same on all ISAs                      |
 */
#ifndef WELFORD_VECTOR_H
#define WELFORD_VECTOR_H

#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "common/dtype.h"
#include "common/moments.h"
#include "cpu.h"

#define SIMD   _Pragma("omp simd") /* iterations are independent, in place (y = x) too */
#define INLINE static inline __attribute__((always_inline))

/* sizeof(real), for the preprocessor. */
#define SIZE_OF_float        4
#define SIZE_OF_double       8
#define SIZE_OF(type)        SIZE_OF_(type)
#define SIZE_OF_(type)       SIZE_OF_##type
#define REAL_SIZE            SIZE_OF(WF_REAL)
#if REAL_SIZE == 8
typedef int64_t real_int;
#else
typedef int32_t real_int;
#endif

#if defined(__AVX512F__)
#define VECTOR_SIZE 64
#elif defined(__AVX__)
#define VECTOR_SIZE 32
#else
#define VECTOR_SIZE 16
#endif
enum { LANES = 32, WIDTH = VECTOR_SIZE / sizeof(real), VECTORS = LANES / WIDTH };
typedef real     vector __attribute__((vector_size(VECTOR_SIZE)));
typedef real_int int_vector __attribute__((vector_size(VECTOR_SIZE)));
struct lanes {
    vector v[VECTORS];
};

/* The dtype whose memory holds values of the arithmetic type. */
#define REAL_DTYPE           (REAL_SIZE == 8 ? WF_F64 : WF_F32)

/* f(dtype, ...), compiled for each dtype that meets this arithmetic: f is INLINE. */
#if REAL_SIZE == 8
#define FOR_DTYPE(dtype, f, ...) f(WF_F64, __VA_ARGS__)
#else
#define FOR_DTYPE(dtype, f, ...)                                                                                       \
    ((dtype) == WF_F32   ? f(WF_F32, __VA_ARGS__)                                                                      \
     : (dtype) == WF_F16 ? f(WF_F16, __VA_ARGS__)                                                                      \
                         : f(WF_BF16, __VA_ARGS__))
#endif

static inline bool is_real(wf_dtype dtype)
{
    return dtype == REAL_DTYPE;
}

static inline int64_t size_of(wf_dtype dtype)
{
    return dtype == WF_F64 ? 8 : dtype == WF_F32 ? 4 : 2;
}

static inline char *at_element(const void *data, wf_dtype dtype, int64_t index)
{
    return (char *)(uintptr_t)data + index * size_of(dtype);
}

INLINE vector vector_fill(real value)
{
    return (vector){0} + value;
}

/* ---- 16 bits ---------------------------------------------------------------------------------------------------- */

#if REAL_SIZE == 4

typedef uint32_t word_vector __attribute__((vector_size(WIDTH * 4)));
typedef uint16_t half_vector __attribute__((vector_size(WIDTH * 2)));

INLINE word_vector widen(half_vector h)
{
#if defined(__AVX512F__)
    return (word_vector)_mm512_cvtepu16_epi32((__m256i)h);
#elif defined(__AVX2__)
    return (word_vector)_mm256_cvtepu16_epi32((__m128i)h);
#else
    return __builtin_convertvector(h, word_vector);
#endif
}

/* The upper half of each word. */
INLINE half_vector upper_halves(word_vector w)
{
#if defined(__AVX512F__)
    return (half_vector)_mm512_cvtepi32_epi16((__m512i)(w >> 16));
#else
    return __builtin_convertvector(w >> 16, half_vector);
#endif
}

INLINE vector vector_from_half(wf_dtype dtype, half_vector h)
{
    if (dtype == WF_BF16)
        return (vector)(widen(h) << 16);
#if defined(__AVX512F__)
    return (vector)_mm512_cvtph_ps((__m256i)h);
#elif defined(__F16C__)
    return (vector)_mm256_cvtph_ps((__m128i)h);
#else
    vector v;
    for (int k = 0; k < WIDTH; k++)
        v[k] = wf_f16_to_f32(h[k]);
    return v;
#endif
}

/* v is the result of an operation: a NaN is quiet, so that cutting it leaves one. */
INLINE half_vector half_from_vector(wf_dtype dtype, vector v)
{
    if (dtype == WF_BF16) {
        const word_vector bits = (word_vector)v, up = 0x7fff + (bits >> 16 & 1);
        return upper_halves(bits + (up & (word_vector)(v == v)));
    }
#if defined(__AVX512F__)
    return (half_vector)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__)
    return (half_vector)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
#else
    half_vector h;
    for (int k = 0; k < WIDTH; k++)
        h[k] = wf_f32_to_f16(v[k]);
    return h;
#endif
}

#endif

/* ---- loads and stores ------------------------------------------------------------------------------------------- */

/* A register that holds, in its lower part, WIDTH values as the dtype has them in memory. */
INLINE vector vector_from_raw(wf_dtype dtype, vector raw)
{
#if REAL_SIZE == 4
    half_vector h;
    memcpy(&h, &raw, sizeof h);
    return dtype == WF_F32 ? raw : vector_from_half(dtype, h);
#else
    (void)dtype;
    return raw;
#endif
}

INLINE vector raw_from_vector(wf_dtype dtype, vector v)
{
#if REAL_SIZE == 4
    if (dtype != WF_F32) {
        const half_vector h = half_from_vector(dtype, v);
        memcpy(&v, &h, sizeof h);
    }
#else
    (void)dtype;
#endif
    return v;
}

INLINE vector vector_load(wf_dtype dtype, const void *from)
{
    vector raw = {0};
    memcpy(&raw, from, (size_t)(WIDTH * size_of(dtype)));
    return vector_from_raw(dtype, raw);
}

INLINE void vector_store(wf_dtype dtype, void *to, vector v)
{
    const vector raw = raw_from_vector(dtype, v);
    memcpy(to, &raw, (size_t)(WIDTH * size_of(dtype)));
}

/* The first n <= WIDTH values, then zeros. */
INLINE vector vector_load_part(wf_dtype dtype, const void *from, int64_t n)
{
    const int64_t size = n * size_of(dtype);
    vector        raw = {0};
#if defined(__AVX512BW__)
    raw = (vector)_mm512_maskz_loadu_epi8(size < 64 ? ((__mmask64)1 << size) - 1 : ~(__mmask64)0, from);
#else
    memcpy(&raw, from, (size_t)size);
#endif
    return vector_from_raw(dtype, raw);
}

INLINE void vector_store_part(wf_dtype dtype, void *to, int64_t n, vector v)
{
    const int64_t size = n * size_of(dtype);
    const vector  raw = raw_from_vector(dtype, v);
#if defined(__AVX512BW__)
    _mm512_mask_storeu_epi8(to, size < 64 ? ((__mmask64)1 << size) - 1 : ~(__mmask64)0, (__m512i)raw);
#else
    memcpy(to, &raw, (size_t)size);
#endif
}

/* v with zeros for all but its first n values. */
INLINE vector vector_first(vector v, int64_t n)
{
    static const real_int index[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    int_vector        k;
    memcpy(&k, index, sizeof k);
    return (vector)((int_vector)v & (k < (real_int)n));
}

/* Past the cache: `to` is aligned to WIDTH values. stream_fence before another thread, or the caller, may look. */
INLINE void vector_stream(wf_dtype dtype, void *to, vector v)
{
#if defined(__x86_64__)
    const vector raw = raw_from_vector(dtype, v);
    const bool   half = size_of(dtype) < REAL_SIZE;
#if VECTOR_SIZE == 64
    if (half)
        _mm256_stream_si256(to, _mm512_castsi512_si256((__m512i)raw));
    else
        _mm512_stream_si512(to, (__m512i)raw);
#elif VECTOR_SIZE == 32
    if (half)
        _mm_stream_si128(to, _mm256_castsi256_si128((__m256i)raw));
    else
        _mm256_stream_si256(to, (__m256i)raw);
#else
    if (half)
        _mm_stream_si64(to, _mm_cvtsi128_si64((__m128i)raw));
    else
        _mm_stream_si128(to, (__m128i)raw);
#endif
#else
    vector_store(dtype, to, v);
#endif
}

static inline void stream_fence(bool stream)
{
#if defined(__x86_64__)
    if (stream)
        _mm_sfence();
#else
    (void)stream;
#endif
}

/* ---- lanes ------------------------------------------------------------------------------------------------------ */

/* v[k] + v[k ^ distance]: distance is in units of 4 bytes, whatever real is. */
#if VECTOR_SIZE == 64
#define ACROSS_8 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7
#define ACROSS_4 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11
#define ACROSS_2 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13
#define ACROSS_1 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14
#elif VECTOR_SIZE == 32
#define ACROSS_4 4, 5, 6, 7, 0, 1, 2, 3
#define ACROSS_2 2, 3, 0, 1, 6, 7, 4, 5
#define ACROSS_1 1, 0, 3, 2, 5, 4, 7, 6
#else
#define ACROSS_2 2, 3, 0, 1
#define ACROSS_1 1, 0, 3, 2
#endif
#define ACROSS(v, distance) (vector) __builtin_shufflevector((quarters)(v), (quarters)(v), ACROSS_##distance)

/* t[k] += t[k + width] for width = LANES / 2, LANES / 4, ... 1; t[0] is the sum. */
INLINE real lanes_sum(struct lanes l)
{
    typedef int32_t quarters __attribute__((vector_size(VECTOR_SIZE)));
    for (int width = VECTORS / 2; width > 0; width /= 2)
        for (int k = 0; k < width; k++)
            l.v[k] += l.v[k + width];
    vector v = l.v[0];
#if VECTOR_SIZE >= 64
    v += ACROSS(v, 8);
#endif
#if VECTOR_SIZE >= 32
    v += ACROSS(v, 4);
#endif
    v += ACROSS(v, 2);
#if REAL_SIZE == 4
    v += ACROSS(v, 1);
#endif
    return v[0];
}

#endif
