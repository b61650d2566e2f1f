/* The steps of the channel norms' backward pass that look at x and dy, for both layouts. */
#ifndef WELFORD_CUDA_CHANNELNORM_BACKWARD_STEPS_CUH
#define WELFORD_CUDA_CHANNELNORM_BACKWARD_STEPS_CUH

#include "channels_first_backward.cuh"
#include "channels_first_on_chip.cuh"
#include "channels_last_backward.cuh"

namespace backward
{

enum Kind { SUMS, DX, ON_CHIP };

struct Step {
    Kind    kind;
    bool    sums;        /* are in the workspace, or are to be */
    int64_t averages_at; /* where in it, in reals */
};

template <bool ENDS> void launch_step(const Problem &p, const Step &step, Run &run)
{
    if constexpr (!ENDS)
        if (ends(p))
            return launch_step<true>(p, step, run);
    const Geometry g = geometry(p);
    with_params<ENDS>(p, g, [&](auto b, auto w) {
        using B = decltype(b);
        using T = typename B::X;
        using R = typename B::R;
        b.sums = buffer<R>(step.sums ? run.workspace : nullptr);
        b.averages = b.sums + step.averages_at;
        if (step.kind == ON_CHIP) {
            OnChip<B> q = {};
            q.b = b;
            q.dgamma = weights_out<T, decltype(w)>(p.dgamma, p.accumulate);
            q.dbeta = weights_out<T, decltype(w)>(p.dbeta, p.accumulate);
            on_chip(q, g, run);
        } else if (step.kind == SUMS) {
            g.last ? last_sums(b, run) : first_sums(b, run);
        } else {
            g.last ? last_dx(b, run) : first_dx(b, run);
        }
    });
}

ENDINGS void launch_step<true>(const Problem &, const Step &, Run &);

} // namespace backward

#endif
