/* y in bytes, see struct quantization: what the rows of LayerNorm and RMSNorm are without it, and how they are written. For int8
 * the largest of a row has to be known before: y is made twice, and of a row in segments x is read once more. */
#ifndef WELFORD_CUDA_QUANTIZE_CUH
#define WELFORD_CUDA_QUANTIZE_CUH

#include "layernorm_forward.cuh"

WF_ON_DEVICE float before_narrowed(float x) { return x; }
WF_ON_DEVICE float before_narrowed(double x) { return wf_f64_to_odd(x); }

/* Base: rows whose y is of uint8_t. */
template <class Base> struct Quantized : Base {
    using typename Base::Place;
    using typename Base::R;
    wf_quantization          kind;
    dev::global<const float> scale;
    dev::global<float>       amax, row_scale;
    dev::global<float>       largest; /* [rows]: of |y|, int8 in segments */

    template <class M> WF_ON_DEVICE void keep(int64_t row, const M &m, const Stats<R> &s) const
    {
        Base::keep(row, m, s);
        if (largest)
            dev::store(largest, row, 0.0f);
    }

    /* y, and 0 behind the valid ones. */
    template <int V>
    WF_ON_DEVICE void whole_y_of(const Place &place, int i, int valid, const R (&x)[V], const Stats<R> &s, R (&y)[V]) const
    {
        this->y_of(this->col(place, i), valid, x, s, y);
        clear_beyond(valid, y);
    }

    /* The bits of the largest |y| of what a thread holds. */
    template <class Part> WF_ON_DEVICE int32_t largest_of(const Place &place, const Part &part, const Stats<R> &s) const
    {
        int32_t bits = 0;
        part.sweep([&](const auto &x, int i, int valid) {
            R y[sizeof x / sizeof *x];
            whole_y_of(place, i, valid, x, s, y);
            bits = raised(bits, y);
        });
        return bits;
    }

    template <int V> static WF_ON_DEVICE int32_t raised(int32_t bits, const R (&y)[V])
    {
#pragma unroll
        for (int j = 0; j < V; j++)
            bits = Largest()(bits, wf_magnitude((float)y[j]));
        return bits;
    }

    class Writer
    {
        R       factor; /* what y is multiplied by */
        int32_t bits;   /* of the largest |y| so far, where it is wanted */

        WF_ON_DEVICE void begin_int8(const Quantized &p, int64_t row, bool first, float of_row)
        {
            const float at_127 = wf_int8_largest(of_row);
            if (first)
                dev::store(p.row_scale, row, at_127 / 127);
            factor = R(127) / R(at_127);
        }

        WF_ON_DEVICE uint16_t narrowed(wf_quantization kind, R y0, R y1) const
        {
            const float lo = before_narrowed(y0 * factor), hi = before_narrowed(y1 * factor);
            return kind == WF_INT8   ? (uint16_t)((uint8_t)wf_f32_to_int8(lo) | (uint8_t)wf_f32_to_int8(hi) << 8)
                   : kind == WF_E4M3 ? dev::narrow_e4m3(lo, hi)
                                     : dev::narrow_e5m2(lo, hi);
        }

      public:
        explicit WF_ON_DEVICE Writer(const Quantized &p) : factor(p.scale ? (R)dev::load(p.scale, 0) : R(1)), bits(0) {}

        template <class Part, class Group>
        WF_ON_DEVICE void begin(const Quantized &p, const Place &place, int64_t row, bool first, const Part &part,
                                const Stats<R> &s, Group &group)
        {
            if (p.kind == WF_INT8)
                begin_int8(p, row, first, (float)group.largest((R)wf_float_from_bits((uint32_t)p.largest_of(place, part, s))));
        }

        WF_ON_DEVICE void begin(const Quantized &p, int64_t row, bool first)
        {
            if (p.kind == WF_INT8)
                begin_int8(p, row, first, dev::load(p.largest, row));
        }

        template <int V>
        WF_ON_DEVICE void write(const Quantized &p, const Place &place, int i, int valid, const R (&x)[V], const Stats<R> &s)
        {
            R                    y[V];
            dev::vec<uint8_t, V> narrow;
            p.template put_x<true>(place, i, valid, x);
            p.whole_y_of(place, i, valid, x, s, y);
            if (p.amax)
                bits = raised(bits, y);
#pragma unroll
            for (int j = 0; j < V; j += 2) {
                const uint16_t two = narrowed(p.kind, y[j], y[j + 1]);
                narrow.v[j] = (uint8_t)two, narrow.v[j + 1] = (uint8_t)(two >> 8);
            }
            store_packed<true>(p.y, p.y_address(place, i), valid, p.y_wide, narrow);
        }

        /* A block's by one thread. NaN that has a sign would be below all: it becomes one that is above. */
        template <int WARPS> WF_ON_DEVICE void end(const Quantized &p)
        {
            WF_SHARED(int32_t, scratch, WARPS);
            if (!p.amax || p.cols == 0)
                return;
            const int32_t of_block = row_reduce<WARPS>(bits, scratch, false, Largest());
            if (threadIdx.x > 0)
                return;
            const int32_t old = dev::raise(p.amax, 0, of_block), size = old & 0x7fffffff;
            if (old < 0 && size > 0x7f800000)
                dev::raise(p.amax, 0, size);
        }
    };
};

/* Of int8: the largest of each row. */
template <class P, int V> __global__ void __launch_bounds__(WIDE) rows_forward_largest__segments(P p)
{
    using R = typename P::R;
    each_segment<V>(p, [&](const auto &x, const auto &place, int64_t row, bool, const Stats<R> &s) {
        const int32_t bits = lanes_reduce<32>(p.largest_of(place, x, s), Largest());
        if (threadIdx.x % 32 == 0)
            dev::raise(p.largest, row, bits);
    });
}

/* After the other parameters. */
template <class Base> void fill_quantization(Quantized<Base> &q, const struct layernorm_forward &p)
{
    q.kind = p.quantize.kind;
    q.scale = buffer<const float>(p.quantize.scale);
    q.amax = buffer<float>(p.quantize.amax), q.row_scale = buffer<float>(p.quantize.row_scale);
}

#endif
