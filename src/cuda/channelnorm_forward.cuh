/* The forward pass of the channel norms: what both layouts share. */
#ifndef WELFORD_CUDA_CHANNELNORM_FORWARD_CUH
#define WELFORD_CUDA_CHANNELNORM_FORWARD_CUH

#include "channelnorm.cuh"
#include "ending.cuh"
#include "rows_forward.cuh"

/* Sets as the rows of rows_forward.cuh: what becomes of their statistics. */
template <class T> struct Sets : Rows<T> {
    using typename Rows<T>::R;
    Parameter<T>         gamma, beta;
    dev::global<const R> running_mean_in, running_var_in;
    dev::global<R>       running_mean_out, running_var_out; /* none: not here */
    dev::global<R>       batch;                             /* [3, sets]: mean, mean_lo, variance to average over samples */
    R                    momentum, keep_old;                /* the running statistic's weights: new value, old value */
    bool                 unbiased;

    WF_ON_DEVICE void move(dev::global<const R> in, dev::global<R> out, int64_t channel, R batch) const
    {
        const R old = dev::load(in, channel);
        dev::store(out, channel, this->cols == 0 ? old : momentum == 1 ? batch : keep_old * old + momentum * batch);
    }

    template <class M> WF_ON_DEVICE void keep(int64_t set, const M &m, const Stats<R> &s) const
    {
        this->keep_stats(set, s);
        if (!running_mean_out)
            return;
        const R variance = this->cols > 1 ? moments_variance(m, unbiased ? this->cols - 1 : this->cols) : R(0);
        if (batch) {
            dev::store(batch, set, s.mean);
            dev::store(batch, this->rows + set, s.mean_lo);
            dev::store(batch, 2 * this->rows + set, variance);
        } else {
            move(running_mean_in, running_mean_out, set, s.mean);
            move(running_var_in, running_var_out, set, variance);
        }
    }
};

using Problem = struct channelnorm_forward;

inline Geometry geometry_of(const Problem &p)
{
    const channelnorm_shape shape = shape_of(p);
    Geometry                g = geometry_of(shape, shape.across_batch ? WF_NHWC : WF_NCHW);
    if (p.shape.c == 0 && !p.shape.across_batch) { /* groups without channels have statistics, of nothing */
        g.group_channels = 0;
        g.sets = p.shape.n * p.shape.groups;
    }
    return g;
}

inline int64_t set_size(const Geometry &g, const Problem &p)
{
    return g.count * (int64_t)wf_dtype_size(p.shape.x_dtype);
}

inline size_t reals(const Problem &p, int64_t n)
{
    return (size_t)n * wf_dtype_size(wf_statistics_dtype(p.shape.x_dtype));
}

/* Running statistics that average over samples have a place for each of them at the end of the workspace. */
inline int64_t average_reals(const Geometry &g, const Problem &p)
{
    return p.known || p.shape.across_batch ? 0 : 3 * g.sets;
}

/* Average of the samples' statistics, then the running statistics: a block for AVERAGE_COLS channels, AVERAGE_ROWS threads
 * for each. */
enum { AVERAGE_COLS = 32, AVERAGE_ROWS = 8 };

template <class T> struct Average {
    Sets<T> sets;
    int64_t c;
};

template <class T>
__global__ void __launch_bounds__(AVERAGE_COLS *AVERAGE_ROWS) channelnorm_forward_running__average(Average<T> p)
{
    using R = real_of<T>;
    constexpr int THREADS = AVERAGE_COLS * AVERAGE_ROWS;
    WF_SHARED(R, sums, 4 * THREADS);
    const int     row = threadIdx.x / AVERAGE_COLS, col = threadIdx.x % AVERAGE_COLS;
    const int64_t channel = (int64_t)blockIdx.x * AVERAGE_COLS + col, sets = p.sets.rows;
    const auto    batch = p.sets.batch;
    LongSum<R>    mean, variance; /* means that cancel keep their digits */
    for (int64_t i = row * p.c + channel; i < sets && channel < p.c; i += AVERAGE_ROWS * p.c) {
        mean.add(dev::load(batch, i));
        mean.lost += dev::load(batch, sets + i);
        variance.add(dev::load(batch, 2 * sets + i));
    }
    const R of_thread[4] = {mean.sum, mean.lost, variance.sum, variance.lost};
    for (int k = 0; k < 4; k++)
        sums[k * THREADS + threadIdx.x] = of_thread[k];
    __syncthreads();
    if (row > 0 || channel >= p.c)
        return;
    for (int i = col + AVERAGE_COLS; i < THREADS; i += AVERAGE_COLS) {
        mean.add(sums[i]);
        mean.lost += sums[THREADS + i];
        variance.add(sums[2 * THREADS + i]);
        variance.lost += sums[3 * THREADS + i];
    }
    const R samples = (R)(sets / p.c);
    p.sets.move(p.sets.running_mean_in, p.sets.running_mean_out, channel, mean.value() / samples);
    p.sets.move(p.sets.running_var_in, p.sets.running_var_out, channel, variance.value() / samples);
}

/* What the kernels of either layout are told, Q being a Sets<T>. The workspace holds `used` reals of theirs. */
template <class Q> Q sets_of(const Problem &p, const Geometry &g, const Run &run, int64_t used)
{
    using T = typename Q::X;
    using R = typename Q::R;
    Q q = {};
    q.x = buffer<const T>(p.x), q.y = buffer<T>(p.y);
    q.mean = buffer<R>(p.mean), q.mean_lo = buffer<R>(p.mean_lo), q.rstd = buffer<R>(p.rstd);
    q.rows = g.sets, q.cols = g.count, q.eps = (R)p.eps, q.centered = true;
    q.gamma = parameter<T>(p.gamma, p.shape.w_dtype), q.beta = parameter<T>(p.beta, p.shape.w_dtype);
    q.running_mean_in = buffer<const R>(p.running_mean_in), q.running_var_in = buffer<const R>(p.running_var_in);
    q.running_mean_out = buffer<R>(p.running_mean_out), q.running_var_out = buffer<R>(p.running_var_out);
    q.momentum = (R)p.momentum, q.keep_old = (R)(1 - p.momentum), q.unbiased = p.unbiased;
    if (average_reals(g, p))
        q.batch = buffer<R>(run.workspace) + used;
    return q;
}

/* The last launch, where running statistics average over samples. */
template <class T> void start_average(const Problem &p, const Geometry &g, const Sets<T> &sets, Run &run)
{
    if (p.known || p.shape.across_batch || g.c == 0 || (!p.running_mean_out && !run.load_only))
        return;
    Average<T> q = {sets, g.c};
    if (g.sets == 0)
        q.sets.cols = 0; /* nothing to average, as where samples are empty */
    start(run, {dim3((unsigned)ceil_div(g.c, AVERAGE_COLS)), dim3(AVERAGE_COLS * AVERAGE_ROWS)},
          channelnorm_forward_running__average<T>, q);
}

#endif
