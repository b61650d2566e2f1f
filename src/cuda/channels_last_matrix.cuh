/* The channel norms' forward pass where x is [n, hw, c]: how a sample, across the batch all of them, is a matrix, and which
 * of its columns and rows a block has.
 *
 * Rows that are no whole number of vectors, or would not fill a tile, are folded: `fold` consecutive rows are taken for one,
 * fold * c wide, in which a channel has that many columns. */
#ifndef WELFORD_CUDA_CHANNELS_LAST_MATRIX_CUH
#define WELFORD_CUDA_CHANNELS_LAST_MATRIX_CUH

#include "channelnorm_forward.cuh"

namespace channels_last
{

enum {
    THREADS = 256,
    WARPS = THREADS / 32,
};

/* A tile's shape: LANES threads side by side, each with a vector of V columns, and ROWS of them; each of them with HELD of
 * the CHUNK rows, MOST bytes: unpacked they are to fit in registers. */
template <class T, int V, int SIZE, int MOST = 128> struct Tile {
    static constexpr int fit(int size) { return size / (V * (int)sizeof(T)) < 32 ? size / (V * (int)sizeof(T)) : 32; }
    static constexpr int LANES = fit(SIZE), COLS = LANES * V, ROWS = THREADS / LANES, HELD = fit(MOST),
                         CHUNK = ROWS * HELD;

    /* The column that thread t < COLS of the block reports on: neighbors' results lie next to each other in shared memory. */
    static WF_ON_DEVICE int column(int t) { return t % LANES * V + t / LANES; }
};

/* Sample s begins at element s * size. The last of its folded rows, `width` long, may be short. A tile holds `tile_cols` columns:
 * where it is for moments, all columns of its sets, or, of a set too wide for it, one of `split` parts. */
struct Matrix {
    int64_t samples, size, rows, c, fold, width, folded_rows, chunk, chunks, tiles, tile_cols, split;
    int64_t pitch; /* columns from a set to the next where it is split, else from tile to tile */
    Divisor by_chunks, by_tiles, by_c, by_split;

    WF_ON_DEVICE int64_t rows_before(int64_t number) const { return smallest(rows, number * chunk * fold); }

    struct Columns {
        int64_t begin, end;
    };

    WF_ON_DEVICE Columns columns(int64_t tile) const
    {
        const int64_t group = by_split.quotient(tile), begin = group * pitch + (tile - group * split) * tile_cols;
        return {begin, smallest(smallest(width, (group + 1) * pitch), begin + tile_cols)};
    }
};

/* For tiles of the shape S; whole_sets: for moments. tile_cols = 0: these vectors do not suit. */
template <class S> Matrix matrix_of(const Geometry &g, int vector, bool whole_sets)
{
    Matrix m = {};
    m.samples = g.across_batch ? 1 : g.n;
    m.rows = g.across_batch ? g.n * g.hw : g.hw;
    m.c = g.c;
    m.size = m.rows * g.c;
    m.fold = 1;
    while (m.fold * g.c % vector)
        m.fold *= 2;
    const int64_t more = smallest(S::COLS / (m.fold * g.c), m.rows / m.fold);
    m.fold *= more > 1 ? more : 1;
    m.width = m.fold * g.c;
    m.folded_rows = ceil_div(m.rows, m.fold);
    m.chunk = S::CHUNK;
    m.chunks = ceil_div(m.folded_rows, m.chunk);
    m.split = 1;
    m.tile_cols = S::COLS;
    if (whole_sets && m.width > S::COLS) {
        int64_t sets = g.group_channels;
        while (sets % vector)
            sets *= 2; /* vectors are of 2^k elements */
        if (sets <= S::COLS)
            m.tile_cols = S::COLS / sets * sets;
        else if (sets == g.group_channels)
            m.split = ceil_div(g.group_channels, S::COLS);
        else
            m.tile_cols = 0;
        if (m.fold > 1)
            m.tile_cols = 0;
    }
    m.tiles = m.split > 1 ? g.c / g.group_channels * m.split : ceil_div(m.width, m.tile_cols ? m.tile_cols : 1);
    m.pitch = m.split > 1 ? g.group_channels : m.tile_cols;
    m.by_chunks = Divisor(m.chunks), m.by_tiles = Divisor(m.tiles), m.by_c = Divisor(m.c), m.by_split = Divisor(m.split);
    return m;
}

} // namespace channels_last

#endif
