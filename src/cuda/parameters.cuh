/* Partial rows to dgamma and dbeta, for every backward pass: a fixed order, and the roundings of many rows kept. */
#ifndef WELFORD_CUDA_PARAMETERS_CUH
#define WELFORD_CUDA_PARAMETERS_CUH

#include "cuda.h"
#include "prim/reduce.cuh"

enum {
    FINISH_SIDE = 9,
    FINISH_THREADS = 1 << FINISH_SIDE,
    FINISH_SIDE_MIN = 1, /* 32 bytes of a row */
    FINISH_BLOCKS = 512, /* wanted */
    FINISH_BATCH = 4,    /* rows that a thread has on their way at once */
};

template <class R, class W> struct Finish {
    dev::global<const R> partial; /* [rows, 2, cols]: of dgamma, of dbeta */
    dev::global<W>       dgamma, dbeta;
    int64_t              rows, cols;
    bool                 accumulate, wide;
    int                  side; /* 2^side threads of a block are side by side, on a row; others below, on other rows */
    int64_t              blocks;
};

/* Threads have a column together only where there are rows for all of them, and too few columns for the blocks
 * wanted. */
template <class R, class W>
Finish<R, W> finish_of(dev::global<const R> partial, dev::global<W> dgamma, dev::global<W> dbeta, int64_t rows,
                       int64_t cols, bool accumulate)
{
    const bool wide = row_is_wide<vec_of<R>>(partial, rows, 2 * cols);
    const auto blocks = [&](int side) { return ceil_div(2 * cols, vec_of<R> << side); };
    int        side = FINISH_SIDE;
    while (side > FINISH_SIDE_MIN && rows >> (FINISH_SIDE - side) >= 4 && blocks(side) < FINISH_BLOCKS)
        side--;
    return {partial, dgamma, dbeta, rows, cols, accumulate, wide, side, blocks(side)};
}

/* A thread adds up a vector of the 2 * cols columns in its rows; what lanes of a warp have of the same columns is added,
 * and what warps have then by a thread for each column i, which calls total(i, sum). Every thread of the block calls. */
template <class R, class W, class F>
WF_ON_DEVICE void finish_columns(const Finish<R, W> &p, int64_t block, dev::shared<dev::vec<R, vec_of<R>>> sums,
                                 F total)
{
    constexpr int V = vec_of<R>;
    const int     across = 1 << p.side, step = FINISH_THREADS >> p.side, lane = threadIdx.x & (across - 1);
    const int64_t begin = block * across * V, end = smallest(2 * p.cols, begin + across * V), at = begin + lane * V;
    const int     valid = (int)smallest<int64_t>(V, at < end ? end - at : 0);
    LongSum<R>    of[V];
    for (int64_t i = threadIdx.x >> p.side; i < p.rows; i += FINISH_BATCH * step) {
        dev::vec<R, V> rows[FINISH_BATCH];
#pragma unroll
        for (int k = 0; k < FINISH_BATCH; k++) {
            const int64_t row = i + k * step;
            rows[k] = load_packed<true, V>(p.partial, row * 2 * p.cols + at, row < p.rows ? valid : 0, p.wide);
        }
#pragma unroll
        for (int k = 0; k < FINISH_BATCH; k++)
            if (i + k * step < p.rows)
#pragma unroll
                for (int j = 0; j < V; j++)
                    of[j].add(rows[k].v[j]);
    }
    dev::vec<R, V> sum;
#pragma unroll
    for (int j = 0; j < V; j++) {
        sum.v[j] = of[j].value();
        for (int lanes = across; lanes < 32; lanes *= 2)
            sum.v[j] += of_lane_across(sum.v[j], lanes);
    }
    const int unit = p.side < 5 ? 5 : p.side; /* 2^unit threads have a sum of each column of the block */
    if (((int)threadIdx.x & ((1 << unit) - 1)) < across)
        sums[(threadIdx.x >> unit) * across + lane] = sum;
    __syncthreads();
    const auto of_units = dev::recast<R>(sums);
    for (int i = threadIdx.x; i < (int)(end - begin); i += FINISH_THREADS) {
        LongSum<R> all;
#pragma unroll 4
        for (int k = 0; k < FINISH_THREADS >> unit; k++)
            all.add(of_units[k * across * V + i]);
        const int64_t column = begin + i;
        const auto    out = column < p.cols ? p.dgamma : p.dbeta;
        if (out) {
            const int64_t col = column < p.cols ? column : column - p.cols;
            dev::store(out, col, down<W>(p.accumulate ? up(dev::load(out, col)) + all.value() : all.value()));
        }
        total(column, all.value());
    }
}

#endif
