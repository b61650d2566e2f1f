/* gamma and beta as a modulated norm has them, for each pair of sample and channel; see struct modulation. Pair i is that of
 * channel i % c. Included by channelnorm_cpu.c. */

/* load_parameter(), once for all that is modulated. */
__attribute__((noinline)) static const real *load_parameters(const void *data, wf_dtype dtype, int64_t index, int64_t n,
                                                             real fallback, real *buffer)
{
    return load_parameter(data, dtype, index, n, fallback, buffer);
}

/* f of n <= COLUMNS pairs. */
static void load_modulation(const struct modulation *m, wf_dtype dtype, int64_t pair, int64_t n, real *f)
{
    const real *scale = load_parameters(m->scale, dtype, pair, n, 0, f), offset = m->scale ? (real)m->offset : 1;
    SIMD
    for (int64_t j = 0; j < n; j++)
        f[j] = offset + scale[j];
}

/* buffer = parameter * f + shift; a shift that is not there is not added, for -0. */
__attribute__((noinline)) static void modulate(const struct affine *a, const real *parameter, const void *shift, int64_t pair,
                                               int64_t n, real *buffer)
{
    for (int64_t at = 0, part; at < n; at += part) {
        real f[COLUMNS];
        part = min64(COLUMNS, n - at);
        load_modulation(a->mod, a->w_dtype, pair + at, part, f);
        SIMD
        for (int64_t j = 0; j < part; j++)
            buffer[at + j] = parameter[at + j] * f[j];
        const real *add = shift ? load_parameters(shift, a->w_dtype, pair + at, part, 0, f) : NULL;
        SIMD
        for (int64_t j = 0; j < (add ? part : 0); j++)
            buffer[at + j] += add[j];
    }
}

/* Functions of their own, so that plain norms have no more than a question here. */
__attribute__((noinline)) static const real *modulated_factors(const struct affine *a, int64_t channel, int64_t pair, int64_t n,
                                                               real *buffer)
{
    modulate(a, load_parameters(a->gamma, a->w_dtype, channel, n, 1, buffer), NULL, pair, n, buffer);
    return buffer;
}

/* Without beta shift alone, also where f is not finite. */
__attribute__((noinline)) static const real *modulated_shifts(const struct affine *a, int64_t channel, int64_t pair, int64_t n,
                                                              real *buffer)
{
    if (!a->beta)
        return load_parameters(a->mod->shift, a->w_dtype, pair, n, 0, buffer);
    modulate(a, load_parameters(a->beta, a->w_dtype, channel, n, 0, buffer), a->mod->shift, pair, n, buffer);
    return buffer;
}

/* What xhat is multiplied by in n consecutive channels; pair: the first of them. */
static const real *load_factors(const struct affine *a, int64_t channel, int64_t pair, int64_t n, real *buffer)
{
    return a->mod->present ? modulated_factors(a, channel, pair, n, buffer)
                           : load_parameter(a->gamma, a->w_dtype, channel, n, 1, buffer);
}

/* And what is then added. */
static const real *load_shifts(const struct affine *a, int64_t channel, int64_t pair, int64_t n, real *buffer)
{
    return a->mod->present ? modulated_shifts(a, channel, pair, n, buffer)
                           : load_parameter(a->beta, a->w_dtype, channel, n, 0, buffer);
}
