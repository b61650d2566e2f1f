#include "oracle.h"

#include <math.h>
#include <quadmath.h>
#include <stdlib.h>

#include "oracle_ending.h"
#include "oracle_fold.h"
#include "oracle_quantize.h"
#include "oracle_sum.h"

const char *output_name(Output out)
{
    static const char *const names[] = { "y", "mean", "mean+mean_lo", "rstd", "running_mean", "running_var", "dx",
                                         "dgamma", "dbeta", "sum", "dresidual", "folded_bias", "y_amax",
                                         "y_row_scale", "dscale", "dshift" };
    return names[out];
}

static double unit_roundoff(const Problem *p) { return p->c->x == WF_F64 ? 0x1p-53 : 0x1p-24; }
static bool centered(const Problem *p) { return op_norm(p->c->op) != RMSNORM; }

/* Statistics that are constants of the call: evaluation, and the backward pass of it. */
static bool frozen(const Problem *p)
{
    Norm norm = op_norm(p->c->op);
    return op_is_infer(p->c->op) ||
           (op_is_backward(p->c->op) && p->c->flags & WF_FROZEN && (norm == BATCHNORM || norm == INSTANCENORM));
}

static Quad gamma_of(const Problem *p, const Quad *gamma, int64_t i)
{
    return gamma ? (Quad)p->c->weight_offset + gamma[p->param[i]] : 1;
}

/* What a modulation multiplies by, and what it adds. */
static Quad scale_of(const Problem *p, int64_t i)
{
    return p->scale ? round_to(stat_dtype(p->c->x), p->c->scale_offset) + p->scale[p->pair[i]] : 1;
}

static Quad shift_of(const Problem *p, int64_t i) { return p->shift ? p->shift[p->pair[i]] : 0; }

/* The norm with gamma and beta alone. */
static Quad norm_of(const Problem *p, const Quad *gamma, const Quad *beta, Quad xhat, int64_t i)
{
    return xhat * gamma_of(p, gamma, i) + (beta ? beta[p->param[i]] : 0);
}

/* What y is before the activation, if there is one. */
static Quad z_of(const Problem *p, const Quad *gamma, const Quad *beta, Quad xhat, int64_t i)
{
    return norm_of(p, gamma, beta, xhat, i) * scale_of(p, i) + shift_of(p, i) +
           (case_ends(p->c) && p->residual ? p->residual[i] : 0);
}

/* How far off z may be, where |xhat| is no more than that. */
static double z_bar(const Problem *p, double xhat, Quad z, int64_t i)
{
    const double u = unit_roundoff(p), gamma = fabs((double)gamma_of(p, p->gamma, i));
    const double beta = p->beta ? fabs((double)p->beta[p->param[i]]) : 0, f = fabs((double)scale_of(p, i));
    const double shift = fabs((double)shift_of(p, i)), units = case_modulates(p->c) ? 10 : 8;
    return units * u * (gamma * f * fmax(1, xhat) + beta * f + shift) +
           (case_ends(p->c) && p->residual ? u * fabs((double)z) : 0);
}

static Quad *zeros(int64_t n) { return calloc((size_t)n + 1, sizeof(Quad)); }

/* rstd = 1 / sqrt(var + eps); 0 where that divides by zero. */
static Quad rstd_of(const Problem *p, Quad var)
{
    Quad v = var + (Quad)p->c->eps;
    return v == 0 ? 0 : 1 / sqrtq(v);
}

/* mean = sum x / M, var = sum (x - mean)^2 / M over each slot; RMSNorm has no mean. Statistics of nothing are 0. */
static Statistics statistics(const Problem *p, const Quad *x)
{
    Statistics s = { zeros(p->slots), zeros(p->slots), zeros(p->slots) };
    if (frozen(p)) {
        for (int64_t i = 0; i < p->slots; i++) {
            s.mean[i] = p->running_mean[i];
            s.var[i] = p->running_var[i];
            s.rstd[i] = rstd_of(p, s.var[i]);
        }
        return s;
    }
    if (centered(p)) {
        for (int64_t i = 0; i < p->count; i++)
            s.mean[p->slot[i]] += x[i];
        for (int64_t i = 0; i < p->slots && p->per_slot; i++)
            s.mean[i] /= p->per_slot;
    }
    for (int64_t i = 0; i < p->count; i++) {
        Quad d = x[i] - s.mean[p->slot[i]];
        s.var[p->slot[i]] += d * d;
    }
    for (int64_t i = 0; i < p->slots && p->per_slot; i++) {
        s.var[i] /= p->per_slot;
        s.rstd[i] = rstd_of(p, s.var[i]);
        if (!finiteq(s.var[i]) && centered(p)) /* a NaN or an infinity in x: not told apart */
            s.mean[i] = s.var[i] = s.rstd[i] = nanq("");
    }
    return s;
}

static void free_statistics(Statistics s) { free(s.mean), free(s.var), free(s.rstd); }

void oracle_forward(const Problem *p, const Quad *x, const Quad *gamma, const Quad *beta, Quad *y)
{
    Statistics s = statistics(p, x);
    for (int64_t i = 0; i < p->count; i++) {
        Quad xhat = (x[i] - s.mean[p->slot[i]]) * s.rstd[p->slot[i]];
        y[i] = z_of(p, gamma, beta, xhat, i);
        if (case_ends(p->c))
            y[i] = ending_value(p->c, y[i]);
    }
    free_statistics(s);
}

Expected oracle_expected(int64_t count, wf_dtype dtype, bool rounded)
{
    return (Expected){ count, zeros(count), calloc((size_t)count + 1, sizeof(double)), dtype, rounded };
}

/* A slot of which only containment is promised: magnitudes beyond 2^60 (f64: where squares overflow), a standard
 * deviation below the normal numbers with eps = 0, mean / sd above 1e6. */
static bool *unpromised(const Problem *p, const Statistics *s)
{
    bool *loose = calloc((size_t)p->slots + 1, sizeof *loose);
    double largest = p->c->x == WF_F64 ? 0x1p480 : 0x1p60, least_sd = p->c->x == WF_F64 ? 0x1p-1022 : 0x1p-126;
    for (int64_t i = 0; i < p->count; i++)
        loose[p->slot[i]] |= finiteq(p->x[i]) && fabsq(p->x[i]) > largest;
    for (int64_t i = 0; i < p->slots && !frozen(p); i++) {
        Quad sd = sqrtq(s->var[i]);
        loose[i] |= sd > 0 && ((p->c->eps == 0 && sd < least_sd) || fabsq(s->mean[i]) > 1e6 * sd);
    }
    return loose;
}

static void solve_forward(const Problem *p, const Statistics *s, const bool *loose, Expected out[OUTPUT_COUNT])
{
    const double u = unit_roundoff(p);
    out[OUT_Y] = oracle_expected(p->count, p->c->x, true);
    Expected *y = &out[OUT_Y];
    oracle_forward(p, p->x, p->gamma, p->beta, y->value);
    for (int64_t i = 0; i < p->count; i++) {
        const int32_t slot = p->slot[i];
        const Quad xhat = (p->x[i] - s->mean[slot]) * s->rstd[slot], z = z_of(p, p->gamma, p->beta, xhat, i);
        y->bar[i] = centered(p) ? z_bar(p, fabs((double)xhat), z, i) : 6 * u * fabs((double)y->value[i]);
        if (case_ends(p->c))
            y->bar[i] = ending_value_bar(p->c, y->value[i], y->bar[i]);
        if (loose[slot])
            y->bar[i] = HUGE_VAL;
    }
}

static void solve_statistics(const Problem *p, const Statistics *s, const bool *loose, Expected out[OUTPUT_COUNT])
{
    const wf_dtype stat = stat_dtype(p->c->x);
    const double u = unit_roundoff(p), tiny = least(stat); /* means, also of parts, are rounded to multiples of it */
    Expected *mean = &out[OUT_MEAN], *pair = &out[OUT_MEAN_PAIR], *rstd = &out[OUT_RSTD];
    *rstd = oracle_expected(p->slots, stat, false);
    if (centered(p) && !frozen(p)) {
        *mean = oracle_expected(p->slots, stat, false);
        *pair = oracle_expected(p->slots, stat, false);
    }
    for (int64_t i = 0; i < p->slots; i++) {
        double sd = (double)sqrtq(s->var[i]);
        rstd->value[i] = s->rstd[i];
        rstd->bar[i] = loose[i] ? HUGE_VAL : 4 * u * (double)s->rstd[i];
        if (!mean->value)
            continue;
        mean->value[i] = pair->value[i] = s->mean[i];
        mean->bar[i] = loose[i] ? HUGE_VAL : fmax(u * fabs((double)s->mean[i]), 2 * tiny) + 4 * u * sd;
        pair->bar[i] = loose[i] ? HUGE_VAL : 4 * u * sd + (sd > 0 ? 2 * tiny : 0);
    }
}

/* out = (1 - momentum) in + momentum * batch; momentum = 1 copies. BatchNorm's batch statistics are the channel's own,
 * InstanceNorm's the average over its n instances. Nothing to average: in is copied. */
static void solve_running(const Problem *p, const Statistics *s, const bool *loose, Expected out[OUTPUT_COUNT])
{
    const Case *c = p->c;
    const double u = unit_roundoff(p), tiny = least(stat_dtype(c->x)); /* results are rounded to multiples of it */
    const Quad m = c->momentum;
    const int64_t instances = op_norm(c->op) == INSTANCENORM ? c->n : 1;
    const Quad correction = c->flags & WF_BIASED ? 1 : (Quad)p->per_slot / (p->per_slot - 1);
    Expected *mean = &out[OUT_RUNNING_MEAN], *var = &out[OUT_RUNNING_VAR];
    *mean = oracle_expected(p->params, stat_dtype(c->x), false);
    *var = oracle_expected(p->params, stat_dtype(c->x), false);
    for (int64_t i = 0; i < p->params; i++) {
        Quad old_mean = p->running_mean[i], old_var = p->running_var[i], new_mean = 0, new_var = 0;
        double sd = 0;
        bool unknown = false;
        for (int64_t k = 0; k < instances && p->count; k++) {
            const int64_t slot = k * p->params + i;
            new_mean += s->mean[slot] / instances;
            new_var += s->var[slot] * correction / instances;
            sd += (double)(sqrtq(s->var[slot]) / instances);
            unknown |= loose[slot];
        }
        if (!p->count) {
            mean->value[i] = old_mean;
            var->value[i] = old_var;
            continue;
        }
        if (m == 1)
            old_mean = old_var = 0;
        mean->value[i] = (1 - m) * old_mean + m * new_mean;
        var->value[i] = (1 - m) * old_var + m * new_var;
        mean->bar[i] = 4 * u * ((double)(fabsq(old_mean) + fabsq(new_mean)) + c->momentum * sd) + tiny;
        var->bar[i] = 8 * u * (double)(old_var + new_var) + tiny;
        if (unknown)
            mean->bar[i] = var->bar[i] = HUGE_VAL;
    }
}

/* xhat of y as it was stored. */
static Quad normalized_of(const Problem *p, int64_t i)
{
    return (p->output[i] - (p->beta ? p->beta[p->param[i]] : 0)) / gamma_of(p, p->gamma, i);
}

/* What arrives at the norm, dz = dy activation'(z), z being had from y where that is given; off[i]: how far off it may be.
 * dresidual is dz. */
static void solve_ending(const Problem *p, const Quad *xhat, const double *widened, const bool *loose, Quad *dz, double *off,
                         Expected *dresidual)
{
    const Case *c = p->c;
    *dresidual = oracle_expected(p->count, c->x, true);
    for (int64_t i = 0; i < p->count; i++) {
        const Quad z = z_of(p, p->gamma, p->beta, xhat[i], i);
        double bar = z_bar(p, fabs((double)xhat[i]), z, i);
        bar += widened[p->slot[i]] * fabs((double)(gamma_of(p, p->gamma, i) * scale_of(p, i)));
        bar += c->add & ADD_Y ? least(c->x) : 0;
        dz[i] = dresidual->value[i] = ending_gradient(c, z, bar, p->dy[i], &off[i]);
        dresidual->bar[i] = loose[p->slot[i]] ? HUGE_VAL : off[i];
        off[i] = loose[p->slot[i]] ? 0 : off[i];
    }
}

/* dscale = sum dz (xhat gamma + beta), dshift = sum dz of a channel of a sample; off: how far dz may be. */
static void solve_modulation(const Problem *p, const Quad *xhat, const double *widened, const bool *loose, const Quad *dz,
                             const double *off, Expected *dscale, Expected *dshift)
{
    const Case *c = p->c;
    const double u = unit_roundoff(p), log2_hw = c->hw > 1 ? log2((double)c->hw) : 0, tiny = least(stat_dtype(c->x));
    *dscale = oracle_expected(p->pairs, c->w, true);
    *dshift = oracle_expected(p->pairs, c->w, true);
    for (int64_t i = 0; i < p->count; i++) {
        const int32_t pair = p->pair[i], slot = p->slot[i];
        const double size = fabs((double)dz[i]), gamma = fabs((double)gamma_of(p, p->gamma, i));
        const double beta = p->beta ? fabs((double)p->beta[p->param[i]]) : 0, abs_xhat = fabs((double)xhat[i]) + widened[slot];
        dscale->value[pair] += dz[i] * norm_of(p, p->gamma, p->beta, xhat[i], i);
        dscale->bar[pair] += (10 + log2_hw) * u * size * (gamma * fmax(1, abs_xhat) + beta) + tiny * (1 + gamma + beta) +
                             off[i] * (gamma * abs_xhat + beta) + (loose[slot] ? HUGE_VAL : 0);
        dshift->value[pair] += dz[i];
        dshift->bar[pair] += (8 + log2_hw) * u * size + off[i] + (loose[slot] && case_ends(c) ? HUGE_VAL : 0);
    }
}

/* With g = gamma f dy, f = 1 but where modulated:  dx = rstd (g - mean(g) - xhat mean(g xhat)), without the terms of a mean for
 * RMSNorm, without both terms for frozen statistics.  dgamma = sum f dy xhat, dbeta = sum f dy. */
static void solve_backward(const Problem *p, const Statistics *s, const bool *loose, const Quad *mean_given,
                           Expected out[OUTPUT_COUNT])
{
    const Case *c = p->c;
    const double u = unit_roundoff(p), log2_m = p->per_param > 1 ? log2((double)p->per_param) : 0;
    const double units = case_modulates(c) ? 10 : 8;
    const bool flows = !frozen(p); /* through the statistics too */
    const double normal = least(stat_dtype(c->x)) / u; /* a smaller xhat is rounded as if it were this large */
    Quad *mean_g = zeros(p->slots), *mean_gx = zeros(p->slots), *xhat = zeros(p->count);
    double *abs_g = calloc((size_t)p->slots + 1, sizeof *abs_g), *abs_gx = calloc((size_t)p->slots + 1, sizeof *abs_gx);
    double *widened = calloc((size_t)p->slots + 1, sizeof *widened); /* what rounding the mean adds to |xhat| */
    double *abs_off = calloc((size_t)p->slots + 1, sizeof *abs_off), *abs_offx = calloc((size_t)p->slots + 1, sizeof *abs_offx);
    double *off = calloc((size_t)p->count + 1, sizeof *off); /* what is not known of dy */
    double *off_dgamma = calloc((size_t)p->params + 1, sizeof *off_dgamma);
    double *off_dbeta = calloc((size_t)p->params + 1, sizeof *off_dbeta);
    Quad *dy = zeros(p->count);
    Expected *dx = &out[OUT_DX], *dgamma = &out[OUT_DGAMMA], *dbeta = &out[OUT_DBETA];
    *dx = oracle_expected(p->count, c->x, true);
    *dgamma = oracle_expected(p->params, c->w, true);
    if (centered(p))
        *dbeta = oracle_expected(p->params, c->w, true);

    for (int64_t i = 0; i < p->slots && mean_given && !p->output; i++)
        widened[i] = u * fabs((double)(s->mean[i] * s->rstd[i]));
    for (int64_t i = 0; i < p->count; i++) {
        const Quad mean = mean_given ? mean_given[p->slot[i]] : s->mean[p->slot[i]];
        xhat[i] = p->output ? normalized_of(p, i) : (p->x[i] - mean) * s->rstd[p->slot[i]];
        dy[i] = p->dy[i];
    }
    if (case_ends(c))
        solve_ending(p, xhat, widened, loose, dy, off, &out[OUT_DRESIDUAL]);
    if (case_modulates(c))
        solve_modulation(p, xhat, widened, loose, dy, off, &out[OUT_DSCALE], &out[OUT_DSHIFT]);
    for (int64_t i = 0; case_modulates(c) && i < p->count; i++) {
        dy[i] *= scale_of(p, i);
        off[i] *= fabs((double)scale_of(p, i));
    }
    for (int64_t i = 0; i < p->count; i++) {
        const int32_t slot = p->slot[i], param = p->param[i];
        const Quad g = dy[i] * gamma_of(p, p->gamma, i);
        mean_g[slot] += g;
        mean_gx[slot] += g * xhat[i];
        dgamma->value[param] += dy[i] * xhat[i];
        const double abs_dy = fabs((double)dy[i]), abs_xhat = fabs((double)xhat[i]) + widened[slot];
        const double off_g = off[i] * fabs((double)gamma_of(p, p->gamma, i));
        abs_off[slot] += off_g;
        abs_offx[slot] += off_g * abs_xhat;
        off_dgamma[param] += off[i] * abs_xhat;
        off_dbeta[param] += loose[slot] && case_ends(c) ? HUGE_VAL : off[i];
        abs_g[slot] += fabs((double)g);
        abs_gx[slot] += fabs((double)g) * abs_xhat;
        dgamma->bar[param] += loose[slot] ? HUGE_VAL : abs_dy * fmax(centered(p) ? 1 : normal, abs_xhat);
        if (!centered(p))
            continue;
        dbeta->value[param] += dy[i];
        dbeta->bar[param] += abs_dy;
    }
    for (int64_t i = 0; i < p->slots; i++) {
        mean_g[i] /= p->per_slot;
        mean_gx[i] /= p->per_slot;
        abs_g[i] /= (double)p->per_slot;
        abs_gx[i] /= (double)p->per_slot;
        abs_off[i] /= (double)p->per_slot;
        abs_offx[i] /= (double)p->per_slot;
    }
    for (int64_t i = 0; i < p->count; i++) {
        const int32_t slot = p->slot[i];
        Quad sum = dy[i] * gamma_of(p, p->gamma, i);
        double scale = fabs((double)sum), unknown = off[i] * fabs((double)gamma_of(p, p->gamma, i));
        if (flows && centered(p)) {
            sum -= mean_g[slot];
            scale += abs_g[slot];
            unknown += abs_off[slot];
        }
        if (flows) {
            sum -= xhat[i] * mean_gx[slot];
            scale += (fabs((double)xhat[i]) + widened[slot]) * abs_gx[slot];
            unknown += (fabs((double)xhat[i]) + widened[slot]) * abs_offx[slot];
        }
        dx->value[i] = s->rstd[slot] * sum;
        dx->bar[i] = loose[slot] ? HUGE_VAL : (double)s->rstd[slot] * ((case_modulates(c) ? 18 : 16) * u * scale + unknown);
    }
    for (int64_t i = 0; i < p->params; i++) {
        dgamma->bar[i] *= (units + log2_m) * u;
        dgamma->bar[i] += (double)p->per_param * least(stat_dtype(c->x)); /* what underflow may take from each product */
        dgamma->bar[i] += off_dgamma[i];
        if (dbeta->value)
            dbeta->bar[i] = dbeta->bar[i] * (units + log2_m) * u + off_dbeta[i];
        if (!(c->flags & WF_ACCUMULATE))
            continue;
        dgamma->value[i] += p->old_dgamma[i];
        dgamma->bar[i] += u * fabs((double)dgamma->value[i]); /* the addition, in float */
        if (dbeta->value) {
            dbeta->value[i] += p->old_dbeta[i];
            dbeta->bar[i] += u * fabs((double)dbeta->value[i]);
        }
    }
    free(mean_g), free(mean_gx), free(xhat), free(abs_g), free(abs_gx), free(widened);
    free(abs_off), free(abs_offx), free(off), free(off_dgamma), free(off_dbeta), free(dy);
}

void oracle_solve(const Problem *p, const Quad *mean_given, Expected out[OUTPUT_COUNT])
{
    for (int i = 0; i < OUTPUT_COUNT; i++)
        out[i] = (Expected){ 0 };
    if (op_is_fold(p->c->op)) {
        fold_solve(p, out);
        return;
    }
    Statistics s = statistics(p, p->x);
    bool *loose = unpromised(p, &s);
    if (op_is_backward(p->c->op)) {
        solve_backward(p, &s, loose, mean_given, out);
        if (case_adds(p->c))
            addition_backward(p, out);
    } else {
        solve_forward(p, &s, loose, out);
        solve_statistics(p, &s, loose, out);
        if (p->c->running && !op_is_infer(p->c->op))
            solve_running(p, &s, loose, out);
        if (case_adds(p->c))
            addition_forward(p, out);
        if (p->c->quantize)
            quantize_forward(p, out);
    }
    free(loose);
    free_statistics(s);
}

void oracle_free(Expected out[OUTPUT_COUNT])
{
    for (int i = 0; i < OUTPUT_COUNT; i++)
        free(out[i].value), free(out[i].bar);
}
