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

/* a where the mask has ones, else b. */
INLINE int_vector select_bits(int_vector mask, int_vector a, int_vector b)
{
    return (mask & a) | (~mask & b);
}

/* Lane by lane: v without its sign; b where it is larger than a, else a. */
INLINE vector vector_abs(vector v)
{
    return (vector)((int_vector)v & ~(int_vector)-vector_fill(0));
}

INLINE vector vector_max(vector a, vector b)
{
    return (vector)select_bits(b > a, (int_vector)b, (int_vector)a);
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

INLINE half_vector lower_half(vector v)
{
#if defined(__AVX512F__)
    return (half_vector)_mm512_castsi512_si256((__m512i)v);
#else
    half_vector h;
    memcpy(&h, &v, sizeof h);
    return h;
#endif
}

INLINE vector from_lower_half(half_vector h)
{
#if defined(__AVX512F__)
    return (vector)_mm512_castsi256_si512((__m256i)h);
#else
    vector v = {0};
    memcpy(&v, &h, sizeof h);
    return v;
#endif
}

#if !defined(__F16C__)
/* wf_f16_to_f32() and wf_f32_to_f16() of dtype.h, for all lanes at once: lane by lane they are the most of the kernels' text. */
INLINE vector vector_from_f16(half_vector h)
{
    const word_vector w = widen(h);
    const int_vector  sign = (int_vector)((w & 0x8000) << 16), a = (int_vector)(w & 0x7fff);
    const int_vector  normal = (a << 13) + (112 << 23);
    const int_vector  special = a << 13 | 0x7f800000 | ((a > 0x7c00) & 0x400000);
    const int_vector  small = (int_vector)(__builtin_convertvector(a, vector) * 5.9604644775390625e-8f);
    const int_vector  finite = select_bits(a < 0x400, small, normal);
    return (vector)(sign | select_bits(a < 0x7c00, finite, special));
}

INLINE half_vector f16_from_vector(vector v)
{
    const int_vector bits = (int_vector)v, a = bits & 0x7fffffff;
    const int_vector small = (int_vector)((vector)a + 0.5f) - 0x3f000000;
    const int_vector rounded = (a - (112 << 23) + 0xfff + (a >> 13 & 1)) >> 13;
    const int_vector normal = select_bits(rounded < 0x7c00, rounded, 0 * a + 0x7c00);
    const int_vector number = select_bits(a < 0x38800000, small, normal);
    const int_vector code = select_bits(a <= 0x7f800000, number, 0x7e00 | (a >> 13 & 0x3ff));
    return __builtin_convertvector((word_vector)((bits >> 16 & 0x8000) | code), half_vector);
}
#endif

INLINE vector vector_from_half(wf_dtype dtype, half_vector h)
{
    if (dtype == WF_BF16)
        return (vector)(widen(h) << 16);
#if defined(__AVX512F__)
    return (vector)_mm512_cvtph_ps((__m256i)h);
#elif defined(__F16C__)
    return (vector)_mm256_cvtph_ps((__m128i)h);
#else
    return vector_from_f16(h);
#endif
}

/* Rounds to bf16, left in the upper half of each word. v is the result of an operation: a NaN is quiet, and cutting it
 * leaves one. */
INLINE word_vector round_to_bf16(vector v)
{
    const word_vector bits = (word_vector)v;
#if defined(__AVX512F__)
    const __mmask16 number = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_ORD_Q);
    const __mmask16 odd = _mm512_mask_test_epi32_mask(number, (__m512i)bits, _mm512_set1_epi32(0x10000));
    const __m512i   up = _mm512_mask_add_epi32((__m512i)bits, number, (__m512i)bits, _mm512_set1_epi32(0x7fff));
    return (word_vector)_mm512_mask_add_epi32(up, odd, up, _mm512_set1_epi32(1));
#else
    return bits + ((0x7fff + (bits >> 16 & 1)) & (word_vector)(v == v));
#endif
}

INLINE half_vector half_from_vector(wf_dtype dtype, vector v)
{
    if (dtype == WF_BF16)
        return upper_halves(round_to_bf16(v));
#if defined(__AVX512F__)
    return (half_vector)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__)
    return (half_vector)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
#else
    return f16_from_vector(v);
#endif
}

#endif

/* ---- loads and stores ------------------------------------------------------------------------------------------- */

INLINE vector vector_load(wf_dtype dtype, const void *from)
{
#if REAL_SIZE == 4
    if (dtype != WF_F32) {
        half_vector h;
        memcpy(&h, from, sizeof h);
        return vector_from_half(dtype, h);
    }
#else
    (void)dtype;
#endif
    vector v;
    memcpy(&v, from, sizeof v);
    return v;
}

INLINE void vector_store(wf_dtype dtype, void *to, vector v)
{
#if REAL_SIZE == 4
    if (dtype != WF_F32) {
        const half_vector h = half_from_vector(dtype, v);
        memcpy(to, &h, sizeof h);
        return;
    }
#else
    (void)dtype;
#endif
    memcpy(to, &v, sizeof v);
}

/* The first `size` bytes of a register, then zeros; no byte past them is touched. */
INLINE vector vector_load_bytes(const char *from, int64_t size)
{
#if defined(__AVX512BW__)
    return (vector)_mm512_maskz_loadu_epi8(size < 64 ? ((__mmask64)1 << size) - 1 : ~(__mmask64)0, from);
#else
    vector v = {0};
    memcpy(&v, from, (size_t)size);
    return v;
#endif
}

INLINE void vector_store_bytes(char *to, int64_t size, vector v)
{
#if defined(__AVX512BW__)
    _mm512_mask_storeu_epi8(to, size < 64 ? ((__mmask64)1 << size) - 1 : ~(__mmask64)0, (__m512i)v);
#else
    memcpy(to, &v, (size_t)size);
#endif
}

/* The first n <= WIDTH values, then zeros. */
INLINE vector vector_load_part(wf_dtype dtype, const void *from, int64_t n)
{
    if (n == WIDTH)
        return vector_load(dtype, from);
    const vector raw = vector_load_bytes(from, n * size_of(dtype));
#if REAL_SIZE == 4
    if (dtype != WF_F32)
        return vector_from_half(dtype, lower_half(raw));
#endif
    return raw;
}

INLINE void vector_store_part(wf_dtype dtype, void *to, int64_t n, vector v)
{
    if (n == WIDTH) {
        vector_store(dtype, to, v);
        return;
    }
#if REAL_SIZE == 4
    if (dtype != WF_F32)
        v = from_lower_half(half_from_vector(dtype, v));
#endif
    vector_store_bytes(to, n * size_of(dtype), v);
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
#if REAL_SIZE == 4
    if (dtype != WF_F32) {
        const half_vector h = half_from_vector(dtype, v);
#if VECTOR_SIZE == 64
        _mm256_stream_si256(to, (__m256i)h);
#elif VECTOR_SIZE == 32
        _mm_stream_si128(to, (__m128i)h);
#else
        _mm_stream_si64(to, (long long)h);
#endif
        return;
    }
#else
    (void)dtype;
#endif
#if VECTOR_SIZE == 64
    _mm512_stream_si512(to, (__m512i)v);
#elif VECTOR_SIZE == 32
    _mm256_stream_si256(to, (__m256i)v);
#else
    _mm_stream_si128(to, (__m128i)v);
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

/* ---- pairs ------------------------------------------------------------------------------------------------------ */

/* PAIR consecutive values in two vectors. As bf16 has them, those with even and those with odd index, which costs one
 * operation each way; else the first and the second half. `order` is the dtype whose way it is. */
struct pair {
    vector a, b;
};
enum { PAIR = 2 * WIDTH };

/* Element k of two vectors, taken by turns, and back. */
#if VECTOR_SIZE == 64
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODD  1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define LOW  0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif VECTOR_SIZE == 32
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define ODD  1, 3, 5, 7, 9, 11, 13, 15
#define LOW  0, 8, 1, 9, 2, 10, 3, 11
#define HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define EVEN 0, 2, 4, 6
#define ODD  1, 3, 5, 7
#define LOW  0, 4, 1, 5
#define HIGH 2, 6, 3, 7
#endif

INLINE struct pair pair_reorder(wf_dtype dtype, wf_dtype order, struct pair p)
{
#if REAL_SIZE == 4
    if (order == WF_BF16 && dtype != WF_BF16)
        return (struct pair){__builtin_shufflevector(p.a, p.b, EVEN), __builtin_shufflevector(p.a, p.b, ODD)};
#else
    (void)dtype, (void)order;
#endif
    return p;
}

#if REAL_SIZE == 4
INLINE struct pair pair_of_bf16(word_vector w)
{
    return (struct pair){(vector)(w << 16), (vector)(w & 0xffff0000)};
}

/* Rounds both to bf16, one operation for all 32 lower halves where the other way takes two of 16 words: added to them is
 * 0x7fff and the upper half's last bit, and the carry goes up. A NaN's stays: all ones with the sign bit saturate, all ones
 * without would become the least. */
INLINE word_vector words_of_bf16(struct pair p)
{
#if defined(__AVX512F__)
    static const uint16_t lower_halves[] = {0,  32, 2,  34, 4,  36, 6,  38, 8,  40, 10, 42, 12, 44, 14, 46,
                                            16, 48, 18, 50, 20, 52, 22, 54, 24, 56, 26, 58, 28, 60, 30, 62};
    const __m512i a = (__m512i)p.a, b = (__m512i)p.b, at = _mm512_loadu_si512(lower_halves), one = _mm512_set1_epi16(1);
    const __m512i lower = _mm512_permutex2var_epi16(a, at, b), upper = _mm512_permutex2var_epi16(a, at | one, b);
    const __m512i half = _mm512_avg_epu16(lower, (upper & one) | _mm512_set1_epi16(0x7ffe)); /* of the sum: avg adds 1 */
    const __m512i up = _mm512_adds_epu16(upper, _mm512_srli_epi16(half, 15));
    return (word_vector)_mm512_max_epi16(upper, up);
#else
    return (round_to_bf16(p.a) >> 16) | (round_to_bf16(p.b) & 0xffff0000);
#endif
}
#endif

INLINE struct pair pair_load(wf_dtype dtype, wf_dtype order, const char *from)
{
#if REAL_SIZE == 4
    if (dtype == WF_BF16) { /* and so is order */
        word_vector w;
        memcpy(&w, from, sizeof w);
        return pair_of_bf16(w);
    }
#endif
    const struct pair p = {vector_load(dtype, from), vector_load(dtype, from + WIDTH * size_of(dtype))};
    return pair_reorder(dtype, order, p);
}

INLINE void pair_store(wf_dtype dtype, char *to, struct pair p)
{
#if REAL_SIZE == 4
    if (dtype == WF_BF16) {
        const word_vector w = words_of_bf16(p);
        memcpy(to, &w, sizeof w);
        return;
    }
#endif
    vector_store(dtype, to, p.a);
    vector_store(dtype, to + WIDTH * size_of(dtype), p.b);
}

INLINE void pair_stream(wf_dtype dtype, char *to, struct pair p)
{
#if REAL_SIZE == 4
    if (dtype == WF_BF16) {
        vector_stream(WF_F32, to, (vector)words_of_bf16(p));
        return;
    }
#endif
    vector_stream(dtype, to, p.a);
    vector_stream(dtype, to + WIDTH * size_of(dtype), p.b);
}

/* From order to the order of the arithmetic type. */
INLINE struct pair pair_natural(wf_dtype order, struct pair p)
{
#if REAL_SIZE == 4
    if (order == WF_BF16)
        return (struct pair){__builtin_shufflevector(p.a, p.b, LOW), __builtin_shufflevector(p.a, p.b, HIGH)};
#else
    (void)order;
#endif
    return p;
}

/* The first n <= PAIR values, then zeros. */
INLINE struct pair pair_load_part(wf_dtype dtype, wf_dtype order, const char *from, int64_t n)
{
    if (n == PAIR)
        return pair_load(dtype, order, from);
#if REAL_SIZE == 4
    if (dtype == WF_BF16)
        return pair_of_bf16((word_vector)vector_load_bytes(from, n * 2));
#endif
    struct pair p = {vector_load_part(dtype, from, n < WIDTH ? n : WIDTH), {0}};
    if (n > WIDTH)
        p.b = vector_load_part(dtype, from + WIDTH * size_of(dtype), n - WIDTH);
    return pair_reorder(dtype, order, p);
}

INLINE void pair_store_part(wf_dtype dtype, char *to, int64_t n, struct pair p)
{
    if (n == PAIR) {
        pair_store(dtype, to, p);
        return;
    }
#if REAL_SIZE == 4
    if (dtype == WF_BF16) {
        vector_store_bytes(to, n * 2, (vector)words_of_bf16(p));
        return;
    }
#endif
    vector_store_part(dtype, to, n < WIDTH ? n : WIDTH, p.a);
    if (n > WIDTH)
        vector_store_part(dtype, to + WIDTH * size_of(dtype), n - WIDTH, p.b);
}

/* p with zeros for all but its first n values. */
INLINE struct pair pair_first(wf_dtype order, struct pair p, int64_t n)
{
    if (order == WF_BF16)
        return (struct pair){vector_first(p.a, (n + 1) / 2), vector_first(p.b, n / 2)};
    return (struct pair){vector_first(p.a, n), vector_first(p.b, n - WIDTH)};
}

INLINE struct pair pair_minus(struct pair p, real value)
{
    return (struct pair){p.a - value, p.b - value};
}

INLINE struct pair pair_difference(struct pair p, struct pair q)
{
    return (struct pair){p.a - q.a, p.b - q.b};
}

INLINE struct pair pair_quotient(struct pair p, struct pair q)
{
    return (struct pair){p.a / q.a, p.b / q.b};
}

INLINE struct pair pair_product(struct pair p, struct pair q)
{
    return (struct pair){p.a * q.a, p.b * q.b};
}

INLINE struct pair pair_sum(struct pair p, struct pair q)
{
    return (struct pair){p.a + q.a, p.b + q.b};
}

INLINE struct pair pair_tree(const struct pair p[4])
{
    return (struct pair){(p[0].a + p[1].a) + (p[2].a + p[3].a), (p[0].b + p[1].b) + (p[2].b + p[3].b)};
}

/* Pair j of LANES consecutive values belongs to the same lanes on every ISA. */
INLINE void lanes_add(struct lanes *l, wf_dtype order, int j, struct pair p)
{
    l->v[order == WF_BF16 ? j : 2 * j] += p.a;
    l->v[order == WF_BF16 ? VECTORS / 2 + j : 2 * j + 1] += p.b;
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
