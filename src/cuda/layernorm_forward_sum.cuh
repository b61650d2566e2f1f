/* LayerNorm and RMSNorm forward of a sum, on CUDA: the kernels are those of any rows, which are made as they are read.
 *
 *     sum = residual + x * keep * row_scale * col_scale
 *
 * On chip the sum is stored with y, when nobody reads the residual any more: it may be in its place. */
#ifndef WELFORD_CUDA_LAYERNORM_FORWARD_SUM_CUH
#define WELFORD_CUDA_LAYERNORM_FORWARD_SUM_CUH

#include "addition.cuh"
#include "layernorm_forward.cuh"

/* T: what is added; A: the sum; Stored: y. x, here, is where the sum is or will be. */
template <class T, class A, class Stored> struct ForwardSum : Normalized<A, Stored, Parameter<T>> {
    using Y = Stored;
    using Added = T;
    using typename Rows<A, Y>::R;
    static constexpr bool COPIED = false;
    static constexpr int  SHARED_BLOCKS = 1;
    dev::global<const T>  branch; /* what is added */
    dev::global<const A>  residual;
    dev::global<A>        sum; /* to be stored */
    int64_t               branch_stride, residual_stride;
    bool                  branch_wide, residual_wide;
    Addition<T>           add;

    struct Place {
        int64_t row, col;
    };
    struct Source : Random {
        explicit WF_ON_DEVICE Source(const ForwardSum &p) : Random(p.add.decision) {}
    };
    template <int V> struct Fetched {
        dev::vec<T, V> branch;
        dev::vec<A, V> residual;

        WF_ON_DEVICE Fetched<1> first() const { return {{{branch.v[0]}}, {{residual.v[0]}}}; }
    };

    WF_ON_DEVICE Place place(int64_t row, int64_t col) const { return {row, col}; }

    WF_ON_DEVICE int64_t address(const Place &at, int i) const { return at.row * this->x_stride + at.col + i; }
    WF_ON_DEVICE int64_t y_address(const Place &at, int i) const { return at.row * this->y_stride + at.col + i; }
    WF_ON_DEVICE int64_t col(const Place &at, int i) const { return at.col + i; }

    template <bool Stream, int V> WF_ON_DEVICE Fetched<V> fetch(const Place &at, int i, int valid) const
    {
        const int64_t col = at.col + i;
        return {load_packed<Stream, V>(branch, at.row * branch_stride + col, valid, branch_wide),
                load_packed<Stream, V>(residual, at.row * residual_stride + col, residual ? valid : 0, residual_wide)};
    }

    template <int V>
    WF_ON_DEVICE dev::vec<A, V> make(const Random &random, const Place &at, int i, int valid, const Fetched<V> &of) const
    {
        R d[V];
        unpack(of.branch, d);
        add.times_keep(add.template kept<V>(random, at.row, at.col + i, valid), d);
        add.times_row(at.row, d);
        add.times_col(at.col + i, valid, d);
        dev::vec<A, V> made;
#pragma unroll
        for (int j = 0; j < V; j++)
            made.v[j] = down<A>(residual ? up(of.residual.v[j]) + d[j] : d[j]);
        return made;
    }

    template <bool Stream, int V> WF_ON_DEVICE void put_x(const Place &at, int i, int valid, const R (&x)[V]) const
    {
        if (sum)
            store_reals<Stream>(sum, address(at, i), valid, this->x_wide, x);
    }

    template <int V> WF_ON_DEVICE void write(const Place &at, int i, int valid, const R (&x)[V], const Stats<R> &s) const
    {
        put_x<true>(at, i, valid, x);
        this->write_y(y_address(at, i), col(at, i), valid, x, s);
    }

    void made() { sum = {}; }
};

/* Everything but what a variant adds. Where the sum is not asked for, it would be in y: what needs it in memory stores it
 * there. */
template <class Q> void fill_sum_params(Q &q, const struct layernorm_forward &p)
{
    using T = typename Q::Added;
    using A = typename Q::X;
    constexpr int V = vec_of<A>;
    q.sum = buffer<A>(p.add.sum);
    q.x = buffer<const A>(p.add.sum ? p.add.sum : p.y), q.x_stride = p.add.sum ? p.add.sum_stride : p.y_stride;
    q.branch = buffer<const T>(p.x), q.branch_stride = p.x_stride;
    q.residual = buffer<const A>(p.add.residual), q.residual_stride = p.add.residual_stride;
    q.branch_wide = row_is_wide<V>(q.branch, p.rows, p.x_stride);
    q.residual_wide = row_is_wide<V>(q.residual, p.rows, q.residual_stride);
    q.gamma = parameter<T>(p.gamma, p.w_dtype), q.beta = parameter<T>(p.beta, p.w_dtype);
    q.add = addition_of<T, V>(p);
    fill_params(q, p);
}

#endif
