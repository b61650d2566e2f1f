// Elements in memory and in arithmetic, and the vectors in which rows cross memory.
//
// A row of cols elements is cut into vectors of vec_of<T> elements, 16 bytes, from its first element on. Which thread has
// which vector, and so every sum, does not depend on alignment: `wide` says only whether a vector may be accessed at once.
//
// | primitive                       | who calls | contract                                                                |
// |---------------------------------|-----------|-------------------------------------------------------------------------|
// | up(element), down<T>(real)      | any       | the element as a real; the real rounded to nearest even                 |
// | valid_in(begin, end, n)         | any       | how many of the n elements from begin lie before end: 0 to n            |
// | load_packed<Stream>(h, at, ...) | any       | the vector's elements at, at + 1, ...; 0 in place of those not valid    |
// | unpack(packed, reals)           | any       | up() of every element                                                   |
// | load_reals(h, at, ...)          | any       | both, for N elements of any dtype: N real values                        |
// | store_packed<Stream>(h, at, ...)| any       | the valid elements of the vector                                        |
// | store_reals<Stream>(h, at, ...) | any       | down() of the valid ones, at, at + 1, ...                               |
// | ceil_div, smallest              | host too  | integers                                                                |
//
// wide: every vector of the buffer is aligned for its access (prove it with row_is_wide() on the host).
#pragma once
#include "device.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

template <class T> struct arithmetic {
    using real = float;
};
template <> struct arithmetic<double> {
    using real = double;
};
template <class T> using real_of = typename arithmetic<T>::real;

template <class T> constexpr int vec_of = 16 / (int)sizeof(T);

WF_ON_DEVICE float up(float x) { return x; }
WF_ON_DEVICE double up(double x) { return x; }
WF_ON_DEVICE float up(__half x) { return __half2float(x); }
WF_ON_DEVICE float up(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T> WF_ON_DEVICE T down(real_of<T> x)
{
    if constexpr (std::is_same<T, __half>::value)
        return __float2half_rn(x);
    else if constexpr (std::is_same<T, __nv_bfloat16>::value)
        return __float2bfloat16_rn(x);
    else
        return x;
}

WF_HOST_DEVICE int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

template <class I> WF_HOST_DEVICE I smallest(I a, I b)
{
    return a < b ? a : b;
}

WF_ON_DEVICE int valid_in(int begin, int end, int n)
{
    const int left = end - begin;
    return left >= n ? n : left > 0 ? left : 0;
}

template <class T> WF_ON_DEVICE uint32_t bits_of(T x)
{
    uint16_t bits;
    memcpy(&bits, static_cast<const void *>(&x), sizeof bits);
    return bits;
}

template <class T> WF_ON_DEVICE T of_bits(uint16_t bits)
{
    T x;
    memcpy(static_cast<void *>(&x), &bits, sizeof bits);
    return x;
}

template <bool Stream, class T> WF_ON_DEVICE typename dev::global<T>::element load_one(dev::global<T> h, int64_t at)
{
    return Stream ? dev::load_stream(h, at) : dev::load(h, at);
}

// For rows of any dtype whose row begins `stride` elements after the last; N elements are accessed together.
template <int N, class T> bool row_is_wide(dev::global<T> h, int64_t rows, int64_t stride)
{
    constexpr int n = N < vec_of<T> ? N : vec_of<T>;
    return dev::aligned<n>(h) && (rows <= 1 || stride % n == 0);
}

template <bool Stream, int N, class T>
WF_ON_DEVICE dev::vec<typename dev::global<T>::element, N> load_packed(dev::global<T> h, int64_t at, int valid, bool wide)
{
    using element = typename dev::global<T>::element;
    const bool           whole = wide && valid == N;
    dev::vec<element, N> packed;
    if constexpr (sizeof(element) == 2 && N % 2 == 0) {
        // The branches meet in words: single elements would be taken out of them here, and each load be waited for.
        dev::words<N, element> words;
        if (whole) {
            words = dev::load_words<N, Stream>(h, at);
        } else {
#pragma unroll
            for (int j = 0; j < N; j += 2)
                words.v[j / 2] = (j < valid ? bits_of(load_one<Stream>(h, at + j)) : 0u) |
                                 (j + 1 < valid ? bits_of(load_one<Stream>(h, at + j + 1)) : 0u) << 16;
        }
#pragma unroll
        for (int j = 0; j < N; j++)
            packed.v[j] = of_bits<element>((uint16_t)(words.v[j / 2] >> j % 2 * 16));
        return packed;
    } else {
        if (whole)
            return Stream ? dev::load_vec_stream<N>(h, at) : dev::load_vec<N>(h, at);
#pragma unroll
        for (int j = 0; j < N; j++)
            packed.v[j] = j < valid ? load_one<Stream>(h, at + j) : down<element>(0);
        return packed;
    }
}

template <int N, class T> WF_ON_DEVICE void unpack(const dev::vec<T, N> &packed, real_of<T> (&reals)[N])
{
#pragma unroll
    for (int j = 0; j < N; j++)
        reals[j] = up(packed.v[j]);
}

template <int N, class T>
WF_ON_DEVICE void load_reals(dev::global<T> h, int64_t at, int valid, bool wide,
                          real_of<typename dev::global<T>::element> (&reals)[N])
{
    using element = typename dev::global<T>::element;
    constexpr int n = N < vec_of<element> ? N : vec_of<element>;
#pragma unroll
    for (int i = 0; i < N; i += n) {
        const auto packed = load_packed<false, n>(h, at + i, valid_in(i, valid, n), wide);
#pragma unroll
        for (int j = 0; j < n; j++)
            reals[i + j] = up(packed.v[j]);
    }
}

template <bool Stream, int N, class T>
WF_ON_DEVICE void store_packed(dev::global<T> h, int64_t at, int valid, bool wide, const dev::vec<T, N> &packed)
{
    if (wide && valid == N) {
        if (Stream)
            dev::store_vec_stream<N>(h, at, packed);
        else
            dev::store_vec<N>(h, at, packed);
        return;
    }
#pragma unroll
    for (int j = 0; j < N; j++)
        if (j < valid) {
            if (Stream)
                dev::store_stream(h, at + j, packed.v[j]);
            else
                dev::store(h, at + j, packed.v[j]);
        }
}

template <bool Stream, int N, class T>
WF_ON_DEVICE void store_reals(dev::global<T> h, int64_t at, int valid, bool wide, const real_of<T> (&reals)[N])
{
    constexpr int n = N < vec_of<T> ? N : vec_of<T>;
#pragma unroll
    for (int i = 0; i < N; i += n) {
        dev::vec<T, n> packed;
#pragma unroll
        for (int j = 0; j < n; j++)
            packed.v[j] = down<T>(reals[i + j]);
        store_packed<Stream>(h, at + i, valid_in(i, valid, n), wide, packed);
    }
}
