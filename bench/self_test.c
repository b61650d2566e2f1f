/* self_test.c - holds reference.c to the tests' oracle: what the oracle expects must pass, half a bar off must pass, and
 * one element three bars off must not. */
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "oracle_sum.h"

static const char *const lines[] = {
    "layernorm_forward x=f32 rows=17 cols=100",
    "layernorm_forward x=f64 rows=5 cols=33 x_stride=40 y_stride=50 null=gamma",
    "layernorm_backward x=bf16 w=f32 rows=17 cols=100",
    "layernorm_backward x=f16 rows=9 cols=65 null=mean_lo,gamma dx_stride=70 flags=accumulate",
    "rmsnorm_forward x=f16 rows=17 cols=100 weight_offset=1",
    "rmsnorm_backward x=f32 rows=70 cols=37",
    "layernorm_forward x=f32 rows=17 cols=100 add=residual,sum drop=0.1",
    "layernorm_forward x=bf16 w=f32 rows=9 cols=65 x_stride=70 add=residual,sum,row_scale,col_scale drop=0.5 flags=sum_f32",
    "layernorm_backward x=f32 rows=17 cols=100 add=dsum,dresidual drop=0.1",
    "rmsnorm_forward x=f16 rows=9 cols=65 add=residual",
    "rmsnorm_backward x=bf16 w=f32 rows=9 cols=65 add=dresidual,row_scale,col_scale drop=0.5 sum_stride=80",
    "groupnorm_forward x=f32 n=3 c=12 hw=35 groups=4",
    "groupnorm_backward x=f32 layout=nhwc n=3 c=12 hw=35 groups=4",
    "batchnorm_train x=f32 n=5 c=7 hw=30 running=1",
    "batchnorm_train x=bf16 w=f32 layout=nhwc n=5 c=7 hw=30 running=1 flags=biased",
    "batchnorm_infer x=f32 n=5 c=7 hw=30",
    "batchnorm_backward x=f32 n=5 c=7 hw=30",
    "batchnorm_backward x=f32 layout=nhwc n=5 c=7 hw=30 flags=frozen",
    "instancenorm_train x=f32 n=5 c=7 hw=30 running=1",
    "instancenorm_infer x=f32 layout=nhwc n=5 c=7 hw=30",
    "instancenorm_backward x=f16 n=5 c=7 hw=30 null=beta",
    "batchnorm_train x=f32 n=5 c=7 hw=30 activation=relu add=residual",
    "groupnorm_forward x=f32 n=3 c=12 hw=35 groups=4 add=scale,shift scale_offset=-0.3",
    "groupnorm_forward x=bf16 w=f32 layout=nhwc n=3 c=12 hw=35 groups=4 add=scale,shift,residual scale_offset=1 activation=silu",
    "instancenorm_infer x=f64 n=5 c=7 hw=30 add=shift null=beta",
    "groupnorm_forward x=bf16 w=f32 layout=nhwc n=3 c=12 hw=35 groups=4 activation=gelu null=beta",
    "instancenorm_infer x=f32 n=5 c=7 hw=30 activation=leaky_relu",
    "batchnorm_backward x=f32 n=5 c=7 hw=30 activation=relu add=residual,dresidual",
    "batchnorm_backward x=f32 layout=nhwc n=5 c=7 hw=30 flags=frozen activation=leaky_relu slope=1.5 add=dresidual null=dx",
    "groupnorm_backward x=f32 n=3 c=12 hw=35 groups=4 activation=silu",
    "groupnorm_backward x=f64 n=3 c=12 hw=35 groups=4 activation=gelu_tanh add=residual null=mean_lo",
    "instancenorm_backward x=f16 layout=nhwc n=5 c=7 hw=30 activation=gelu",
};

static const Tensor tensor_of[OUTPUT_COUNT] = {
    [OUT_Y] = T_Y, [OUT_MEAN] = T_MEAN, [OUT_MEAN_PAIR] = T_MEAN_LO, [OUT_RSTD] = T_RSTD,
    [OUT_RUNNING_MEAN] = T_RUNNING_MEAN_OUT, [OUT_RUNNING_VAR] = T_RUNNING_VAR_OUT, [OUT_DX] = T_DX,
    [OUT_DGAMMA] = T_DGAMMA, [OUT_DBETA] = T_DBETA, [OUT_SUM] = T_SUM, [OUT_DRESIDUAL] = T_DRESIDUAL,
};

/* Element i, counted without strides, of a tensor in a slab. */
static void *element(const Plan *p, const char *slab, Tensor which, int64_t i, int64_t *at)
{
    const Extent *t = &p->t[which];
    *at = i / t->cols * t->stride + i % t->cols;
    return plan_tensor(p, slab, which);
}

static double get(const Plan *p, const char *slab, Tensor which, int64_t i)
{
    int64_t at;
    const void *data = element(p, slab, which, i, &at);
    return dtype_load(p->t[which].dtype, data, at);
}

static void put(const Plan *p, const char *slab, Tensor which, int64_t i, Quad value)
{
    int64_t at;
    void *data = element(p, slab, which, i, &at);
    dtype_store(p->t[which].dtype, data, at, value);
}

/* The problem's random numbers give way to those of the slab. */
static void copy_inputs(const Plan *p, const char *slab, Problem *problem)
{
    const struct { Tensor which; Quad *to; int64_t count; } inputs[] = {
        { T_X, problem->branch ? problem->branch : problem->x, problem->count }, { T_DY, problem->dy, problem->count },
        { T_GAMMA, problem->gamma, problem->params }, { T_BETA, problem->beta, problem->params },
        { T_RUNNING_MEAN_IN, problem->running_mean, problem->params },
        { T_RUNNING_VAR_IN, problem->running_var, problem->params },
        { T_DGAMMA, problem->old_dgamma, problem->params }, { T_DBETA, problem->old_dbeta, problem->params },
        { T_RESIDUAL, problem->residual, problem->count }, { T_DSUM, problem->dsum, problem->count },
        { T_ROW_SCALE, problem->row_scale, problem->slots }, { T_COL_SCALE, problem->col_scale, problem->params },
        { T_SCALE, problem->scale, problem->pairs }, { T_SHIFT, problem->shift, problem->pairs },
    };
    for (size_t k = 0; k < sizeof inputs / sizeof *inputs; k++)
        for (int64_t i = 0; p->t[inputs[k].which].given && inputs[k].to && i < inputs[k].count; i++)
            inputs[k].to[i] = get(p, slab, inputs[k].which, i);
    if (case_adds(p->c))
        addition_make(problem);
    for (int64_t i = 0; p->t[T_SUM].given && p->t[T_SUM].input && i < problem->count; i++)
        problem->x[i] = get(p, slab, T_SUM, i);
}

static const char *disagree(const char *line, const char *what, const char *error)
{
    static char message[512];
    snprintf(message, sizeof message, "self-test: %s: %s%s%s", line, what, error ? ": " : "", error ? error : "");
    return message;
}

/* One output: all as the oracle has it passes already; now with one element moved. */
static const char *move_one(const Plan *p, const char *before, char *after, Output out, const Expected *e, const char *line)
{
    const Tensor which = tensor_of[out];
    const int64_t i = e->count / 2;
    const double old = get(p, after, which, i), step = ulp_at(p->t[which].dtype, (double)e->value[i]);
    const char *error = NULL;
    put(p, after, which, i, (Quad)old + (Quad)(e->bar[i] / 2 - step / 2));
    if (e->bar[i] > 2 * step && out != OUT_MEAN_PAIR && (error = reference_check(p, before, after)) != NULL)
        return disagree(line, "half a bar off is refused", error);
    put(p, after, which, i, (Quad)old + (Quad)(3 * e->bar[i] + 3 * step));
    if (!reference_check(p, before, after))
        return disagree(line, output_name(out), "three bars off pass");
    put(p, after, which, i, (Quad)old);
    return NULL;
}

static const char *test(const char *line)
{
    Case c;
    Plan p;
    const char *error = case_parse(&c, line);
    if (error || (error = plan_make(&p, &c)) != NULL)
        return disagree(line, error, NULL);
    char *before = calloc(1, p.slab_size), *after = calloc(1, p.slab_size);
    Problem *problem = problem_new(&c);
    Expected expected[OUTPUT_COUNT];
    plan_fill(&p, before);
    copy_inputs(&p, before, problem);
    Quad *mean = NULL;
    if (op_is_backward(c.op) && p.t[T_MEAN].given && !p.frozen && !p.t[T_MEAN_LO].given) {
        mean = malloc((size_t)p.slots * sizeof *mean);
        for (int64_t i = 0; i < p.slots; i++)
            mean[i] = get(&p, before, T_MEAN, i);
    }
    oracle_solve(problem, mean, expected);
    memcpy(after, before, p.slab_size);
    for (Output out = 0; out < OUTPUT_COUNT; out++)
        for (int64_t i = 0; i < expected[out].count && p.t[tensor_of[out]].given; i++)
            put(&p, after, tensor_of[out], i,
                expected[out].value[i] - (out == OUT_MEAN_PAIR ? (Quad)get(&p, after, T_MEAN, i) : 0));
    error = reference_check(&p, before, after);
    if (error)
        error = disagree(line, "what the oracle expects is refused", error);
    for (Output out = 0; out < OUTPUT_COUNT && !error; out++)
        if (expected[out].value && p.t[tensor_of[out]].given && !p.t[tensor_of[out]].input)
            error = move_one(&p, before, after, out, &expected[out], line);
    oracle_free(expected);
    problem_free(problem);
    plan_free(&p);
    free(mean), free(before), free(after);
    return error;
}

const char *reference_self_test(void)
{
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        const char *error = test(lines[i]);
        if (error)
            return error;
    }
    return NULL;
}
