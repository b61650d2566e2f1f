/* What is added to a residual before LayerNorm or RMSNorm, x * keep * row_scale * col_scale, and the gradient of x from that of
 * the sum: see struct addition. Each product is rounded, in the order in which they stand here or back to front. */
#ifndef WELFORD_CUDA_ADDITION_CUH
#define WELFORD_CUDA_ADDITION_CUH

#include "decisions.cuh"
#include "parameter.cuh"

template <class T> struct Addition {
    using R = real_of<T>;
    dev::global<const R> row_scale;
    Parameter<T>         col_scale;
    int64_t              cols;
    R                    scale; /* of what is kept */
    bool                 drops, col_wide;
    Decision             decision;

    /* Bit j: element col + j is kept. */
    template <int V> WF_ON_DEVICE unsigned kept(const Random &random, int64_t row, int64_t col, int valid) const
    {
        return drops && valid > 0 ? decide_run<V>(decision, random, row * cols + col) : ~0u;
    }

    template <int V> WF_ON_DEVICE void times_keep(unsigned kept, R (&d)[V]) const
    {
#pragma unroll
        for (int j = 0; j < V; j++)
            d[j] = kept >> j & 1 ? d[j] * scale : R(0);
    }

    template <int V> WF_ON_DEVICE void times_row(int64_t row, R (&d)[V]) const
    {
        if (!row_scale)
            return;
        const R factor = dev::load(row_scale, row);
#pragma unroll
        for (int j = 0; j < V; j++)
            d[j] *= factor;
    }

    template <int V> WF_ON_DEVICE void times_col(int64_t col, int valid, R (&d)[V]) const
    {
        if (!col_scale)
            return;
        R factor[V];
        load_reals(col_scale, col, valid, col_wide, factor);
#pragma unroll
        for (int j = 0; j < V; j++)
            d[j] *= factor[j];
    }
};

/* V: elements of a vector. */
template <class T, int V, class Problem> Addition<T> addition_of(const Problem &p)
{
    Addition<T> q = {};
    q.row_scale = buffer<const real_of<T>>(p.add.row_scale);
    q.col_scale = parameter<T>(p.add.col_scale, p.w_dtype);
    q.col_wide = row_is_wide<V>(q.col_scale, 1, 0);
    q.cols = p.cols;
    q.drops = p.add.scale != 1; /* where p is below 2^-33 all are kept, and scaled */
    q.scale = (real_of<T>)p.add.scale;
    q.decision = decision_of(p.add);
    return q;
}

#endif
