#include "device_call.h"

#include <check.h>
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data.h"
#include "device.h"
#include "oracle_fold.h"
#include "sweep.h"

enum { MARGIN = 256, FILL = 0xff };

static void must(cudaError_t error)
{
    if (error != cudaSuccess)
        ck_abort_msg("CUDA: %s", cudaGetErrorString(error));
}

static void set_fields(DeviceCall *d)
{
    const Case *c = &d->c;
    const struct { const char *name; int64_t value; } integers[] = {
        {"x_dtype", c->x}, {"w_dtype", c->w}, {"layout", c->layout}, {"kind", c->kind}, {"flags", c->flags},
        {"activation", c->activation},
        {"rows", c->rows}, {"cols", c->cols}, {"x_stride", c->x_stride}, {"y_stride", c->y_stride},
        {"dx_stride", c->dx_stride}, {"dy_stride", c->dy_stride}, {"n", c->n}, {"c", c->c}, {"hw", c->hw},
        {"groups", c->groups}, {"residual_stride", c->residual_stride}, {"sum_stride", c->sum_stride},
        {"channels", c->channels}, {"quantization", c->quantize},
    };
    const struct { const char *name; double value; } reals[] = {
        {"eps", c->eps}, {"momentum", c->momentum}, {"weight_offset", c->weight_offset},
        {"p", op_norm(c->op) == DROPOUT ? c->p : c->drop}, {"slope", c->slope},
        {"scale_offset", c->scale_offset},
    };
    for (size_t i = 0; i < sizeof integers / sizeof *integers; i++)
        if (api_field(d->api.op, integers[i].name))
            api_set_integer(&d->api, integers[i].name, integers[i].value);
    for (size_t i = 0; i < sizeof reals / sizeof *reals; i++)
        if (api_field(d->api.op, reals[i].name))
            api_set_double(&d->api, reals[i].name, reals[i].value);
}

/* What the case does not give. */
static bool is_absent(const Case *c, const Buffer *b)
{
    static const struct { const char *name; uint32_t null; } bits[] = {
        {"dx", NULL_DX}, {"gamma", NULL_GAMMA}, {"beta", NULL_BETA}, {"dgamma", NULL_DGAMMA}, {"dbeta", NULL_DBETA},
        {"mean_lo", NULL_MEAN_LO}, {"mask", NULL_MASK}, {"bias", NULL_BIAS},
        {"mean", NULL_MEAN}, {"rstd", NULL_RSTD}, {"rrms", NULL_RSTD}, {"y_amax", NULL_AMAX},
    };
    static const struct { const char *name; uint32_t add; } parts[] = {
        {"residual", ADD_RESIDUAL}, {"sum", ADD_SUM}, {"row_scale", ADD_ROW_SCALE}, {"col_scale", ADD_COL_SCALE},
        {"dsum", ADD_DSUM}, {"dresidual", ADD_DRESIDUAL}, {"bias", ADD_BIAS},
        {"scale", ADD_SCALE}, {"shift", ADD_SHIFT}, {"dscale", ADD_DSCALE}, {"dshift", ADD_DSHIFT},
    };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (strcmp(b->name, parts[i].name) == 0 && op_norm(c->op) != FOLD)
            return !(b->needed && case_adds(c)) && !(c->add & parts[i].add);
    if (b->extent == EXTENT_WORD)
        return c->seed % 2 == 0;
    if (strcmp(b->name, "y_scale") == 0)
        return c->y_scale == 0;
    if (strncmp(b->name, "running", 7) == 0)
        return !b->needed && c->running == RUNNING_NONE;
    for (size_t i = 0; i < sizeof bits / sizeof *bits; i++)
        if (strcmp(b->name, bits[i].name) == 0)
            return !b->needed && c->null & bits[i].null;
    return false;
}

static const Operation *operation_of(const Case *c)
{
    const Operation *op = operations;
    const bool        activated = op_norm(c->op) == DROPOUT && op_is_backward(c->op) && c->activation;
    const char *const part = c->add & ADD_OUTPUT        ? "y"
                             : case_adds(c)             ? "sum"
                             : case_modulates(c)        ? "scale"
                             : activated                ? "x_in"
                             : c->flags & WF_GIVEN_MASK ? "mask"
                                                        : NULL; /* only the wanted one has it */
    while (strcmp(op->name, op_name(c->op)) || (part && !api_buffer(op, part)) || api_quantised(op) != (c->quantize != 0))
        op++;
    return op;
}

/* Of the kinds of data the one whose squares leave the range: it is what some statements are for. */
static wf_dtype dtype_of(const Case *c, const Buffer *b)
{
    if (b->extent == EXTENT_RESIDUAL || b->extent == EXTENT_SUM)
        return case_sum_dtype(c);
    if (b->extent == EXTENT_BIAS)
        return fold_bias_dtype(c);
    return b->extent <= EXTENT_DY ? c->x : b->extent <= EXTENT_PAIRS ? c->w : stat_dtype(c->x);
}

static void vary(DeviceCall *d, int i)
{
    const wf_dtype dtype = dtype_of(&d->c, &d->api.op->buffer[i]);
    const int64_t  count = (int64_t)(d->api.size[i] / dtype_size(dtype));
    const double   unit = d->c.data == HUGE30 ? 1e30 : 1;
    for (int64_t k = 0; k < count; k++)
        dtype_store(dtype, d->api.memory[i], k, unit * ((double)(k * (k + 37 + i) % 101) / 8 - 5));
    memcpy(d->api.copy[i], d->api.memory[i], d->api.size[i]);
}

/* Bytes behind a buffer: none on the emulator, which sees reads past the end, too. */
static size_t margin_behind(void) { return device_emulated() ? 0 : MARGIN; }

/* A copy of the host's bytes on the device, `off` bytes past a multiple of 256. */
static void *place(const void *from, size_t size, size_t off)
{
    char *base;
    const size_t whole = MARGIN + off + size + margin_behind();
    must(cudaMalloc((void **)&base, whole));
    must(cudaMemset(base, FILL, whole));
    must(cudaMemcpy(base + MARGIN + off, from, size, cudaMemcpyHostToDevice));
    return base + MARGIN + off;
}

static size_t offset_of(const DeviceCall *d, int i)
{
    const Buffer *b = &d->api.op->buffer[i];
    if (i == WORKSPACE)
        return 1; /* all that is for its alignment lies in front: the last byte is used */
    if (b->extent >= EXTENT_MASK)
        return 0;
    return (size_t)d->c.misalign * dtype_size(dtype_of(&d->c, b));
}

bool device_call_takes(const Case *c)
{
    DeviceCall d = {.c = *c};
    api_begin(&d.api, operation_of(c), 0);
    set_fields(&d);
    d.api.where = (wf_exec){.size = sizeof(wf_exec), .backend = WF_CUDA, .flags = WF_DRY_RUN, .variant = c->variant,
                            .workspace_size = d.api.op->workspace(d.api.what, WF_CUDA)};
    d.api.where.workspace = &d; /* nothing is written to it */
    const wf_status status = d.api.op->call(d.api.what, NULL, &d.api.where);
    if (status != WF_OK && status != WF_UNSUPPORTED)
        ck_abort_msg("%s", wf_error_detail());
    api_end(&d.api);
    return status == WF_OK;
}

/* The list's first variant that takes the case. */
static void find_variant(DeviceCall *d)
{
    Case        c = d->c;
    const char *name;
    for (int i = 0; (name = wf_variant(op_name(c.op), WF_CUDA, i)); i++) {
        snprintf(c.variant, sizeof c.variant, "%s", name);
        if (device_call_takes(&c))
            break;
    }
    snprintf(d->variant, sizeof d->variant, "%s", name ? name : "none");
}

void device_call_begin(DeviceCall *d, const Case *c)
{
    const Operation *op = operation_of(c);
    memset(d, 0, sizeof *d);
    d->c = *c;
    case_print(c, d->line);
    api_begin(&d->api, op, 0);
    set_fields(d);
    api_fit(&d->api);
    for (int i = 0; i < MAX_BUFFERS && op->buffer[i].name; i++) {
        const Buffer *b = &op->buffer[i];
        void        **given = api_with(&d->api, b);
        if (b->extent <= EXTENT_DY && !b->output)
            vary(d, i);
        if (*given && !is_absent(&d->c, b))
            d->at[i] = place(d->api.memory[i], d->api.size[i], offset_of(d, i));
        *given = d->at[i];
    }
    wf_exec *where = &d->api.where;
    where->backend = WF_CUDA;
    where->workspace_size = d->api.size[WORKSPACE] = op->workspace(d->api.what, WF_CUDA);
    where->variant = d->c.variant[0] ? d->c.variant : NULL;
    if (where->workspace_size) {
        free(d->api.copy[WORKSPACE]);
        d->api.copy[WORKSPACE] = calloc(1, where->workspace_size);
        where->workspace = d->at[WORKSPACE] = place(d->api.copy[WORKSPACE], where->workspace_size, offset_of(d, WORKSPACE));
    }
    if (d->c.variant[0])
        memcpy(d->variant, d->c.variant, sizeof d->variant);
    else
        find_variant(d);
}

wf_status device_call(DeviceCall *d)
{
    return api_call(&d->api);
}

static char *base_of(const DeviceCall *d, int i)
{
    return (char *)d->at[i] - offset_of(d, i) - MARGIN;
}

void device_call_end(DeviceCall *d)
{
    for (int i = 0; i <= WORKSPACE; i++)
        if (d->at[i])
            must(cudaFree(base_of(d, i)));
    api_end(&d->api);
}

const char *device_call_name(const DeviceCall *d, int i)
{
    return i == WORKSPACE ? "workspace" : d->api.op->buffer[i].name;
}

bool device_call_output(const DeviceCall *d, int i)
{
    return i == WORKSPACE || d->api.op->buffer[i].output;
}

size_t device_call_size(const DeviceCall *d, int i)
{
    return d->at[i] ? d->api.size[i] : 0;
}

void device_call_fetch(const DeviceCall *d, int i, void *to)
{
    must(cudaMemcpy(to, d->at[i], d->api.size[i], cudaMemcpyDeviceToHost));
}

const char *device_call_damage(const DeviceCall *d)
{
    const char *damaged = NULL;
    for (int i = 0; i <= WORKSPACE && !damaged; i++) {
        if (!d->at[i])
            continue;
        const size_t   size = d->api.size[i], front = MARGIN + offset_of(d, i), whole = front + size + margin_behind();
        unsigned char *copy = malloc(whole);
        must(cudaMemcpy(copy, base_of(d, i), whole, cudaMemcpyDeviceToHost));
        bool intact = device_call_output(d, i) || !memcmp(copy + front, d->api.copy[i], size);
        for (size_t k = 0; k < whole; k++)
            intact &= (k >= front && k < front + size) || copy[k] == FILL;
        if (!intact)
            damaged = device_call_name(d, i);
        free(copy);
    }
    return damaged;
}

void device_call_spoil(const DeviceCall *d)
{
    for (int i = 0; i <= WORKSPACE; i++)
        if (d->at[i] && strcmp(device_call_name(d, i), "y_amax") == 0) /* it is read, too */
            must(cudaMemcpy(d->at[i], d->api.copy[i], d->api.size[i], cudaMemcpyHostToDevice));
        else if (d->at[i] && device_call_output(d, i))
            must(cudaMemset(d->at[i], FILL, d->api.size[i]));
}

/* ---- the cases ---- */

const char *const cuda_cases[] = {
#define CUDA_CASE(line) line,
#include "cases.def"
};
const int cuda_case_count = sizeof cuda_cases / sizeof *cuda_cases;

bool variant_has_case(Op op, const char *variant)
{
    for (int i = 0; i < cuda_case_count; i++) {
        Case c = case_of(cuda_cases[i]);
        snprintf(c.variant, sizeof c.variant, "%s", variant);
        if (c.op == op && device_call_takes(&c))
            return true;
    }
    return false;
}

/* The operations of a problem share its variants, some of which are for one of them alone. */
static bool has_case_elsewhere(Op op, const char *variant)
{
    for (Op other = 0; other < OP_COUNT; other++)
        if (wf_variant(op_name(op), WF_CUDA, 0) == wf_variant(op_name(other), WF_CUDA, 0) && variant_has_case(other, variant))
            return true;
    return false;
}

void each_variant(int op, void (*f)(DeviceCall *d))
{
    const char *name;
    for (int v = 0; (name = wf_variant(op_name((Op)op), WF_CUDA, v)); v++) {
        bool taken = false;
        for (int i = 0; i < cuda_case_count && !taken; i++) {
            Case c = case_of(cuda_cases[i]);
            snprintf(c.variant, sizeof c.variant, "%s", name);
            if (c.op != (Op)op || !in_build(&c) || !device_call_takes(&c))
                continue;
            DeviceCall d;
            taken = true;
            device_call_begin(&d, &c);
            f(&d);
            device_call_end(&d);
        }
        if (!taken && !getenv("WELFORD_TEST_FEW_DTYPES") && !has_case_elsewhere((Op)op, name))
            ck_abort_msg("no line of cases.def is for %s variant=%s", op_name((Op)op), name);
    }
}
