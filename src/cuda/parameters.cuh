/* Partial rows to dgamma and dbeta, for every backward pass: a fixed order, and the roundings of many rows kept. */
#ifndef WELFORD_CUDA_PARAMETERS_CUH
#define WELFORD_CUDA_PARAMETERS_CUH

#include "cuda.h"
#include "prim/reduce.cuh"

enum {
    FINISH_COLS = 8, /* of a block: 32 bytes of a row */
    FINISH_ROWS = 64,
    FINISH_THREADS = FINISH_COLS * FINISH_ROWS,
    FINISH_SHARED = FINISH_ROWS * (FINISH_COLS + 1), /* sums that a block keeps: a column apart, for the banks */
};

template <class R, class W> struct Finish {
    dev::global<const R> partial; /* [rows, 2, cols]: of dgamma, of dbeta */
    dev::global<W>       dgamma, dbeta;
    int64_t              rows, cols;
    bool                 accumulate;
};

inline int64_t finish_blocks(int64_t cols)
{
    return ceil_div(2 * cols, FINISH_COLS);
}

/* Thread (r, c) adds up rows r, r + FINISH_ROWS, ..., then a warp per column the results. After that one thread calls
 * total(i, sum) for each column i of the 2 * cols. Every thread of the block calls. */
template <class R, class W, class F>
WF_ON_DEVICE void finish_columns(const Finish<R, W> &p, int64_t block, dev::shared<R> sums, F total)
{
    const int     r = threadIdx.x / FINISH_COLS, c = threadIdx.x % FINISH_COLS;
    const int64_t at = block * FINISH_COLS + c;
    LongSum<R>    sum;
    if (at < 2 * p.cols)
#pragma unroll 8
        for (int64_t i = r; i < p.rows; i += FINISH_ROWS)
            sum.add(dev::load_stream(p.partial, i * 2 * p.cols + at));
    sums[r * (FINISH_COLS + 1) + c] = sum.value();
    __syncthreads();
    const int     warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int64_t column = block * FINISH_COLS + warp;
    if (warp >= FINISH_COLS || column >= 2 * p.cols)
        return;
    R all = 0;
#pragma unroll
    for (int i = 0; i < FINISH_ROWS; i += 32)
        all += sums[(i + lane) * (FINISH_COLS + 1) + warp];
    all = lanes_sum<32>(all);
    const auto out = column < p.cols ? p.dgamma : p.dbeta;
    if (lane > 0)
        return;
    if (out) {
        const int64_t col = column < p.cols ? column : column - p.cols;
        dev::store(out, col, down<W>(p.accumulate ? up(dev::load(out, col)) + all : all));
    }
    total(column, all);
}

#endif
