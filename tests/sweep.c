#include "sweep.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"

const Dtypes dtypes[DTYPES] = { { WF_F32, WF_F32 }, { WF_BF16, WF_F32 }, { WF_F16, WF_F16 }, { WF_F64, WF_F64 },
                                { WF_BF16, WF_BF16 }, { WF_F16, WF_F32 } };

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

/* One set of tests serves every norm; a loop test's index says which, times EACH. */
enum { EACH = 1000 };
static const Sweep *sweeps[NORM_COUNT];
static const Sweep *sweep; /* of the running test */

static int begin(int i)
{
    sweep = sweeps[i / EACH];
    return i % EACH;
}

bool quick(void) { return getenv("WELFORD_TEST_QUICK") != NULL; }

bool in_turn(int turn, int64_t elements) { return elements < 60000 || turn % 3 == 0; }

wf_backend tested_backend(void)
{
    const char *name = getenv("WELFORD_TEST_BACKEND");
    return name && !strcmp(name, "cuda") ? WF_CUDA : WF_CPU;
}

bool in_build(const Case *c)
{
    const char *ops = getenv("WELFORD_TEST_OPS");
    return (!ops || strstr(ops, op_name(c->op))) &&
           (!getenv("WELFORD_TEST_FEW_DTYPES") || c->x == WF_F32 ||
            (c->x == WF_BF16 && (c->w == WF_F32 || op_norm(c->op) == DROPOUT)));
}

/* Every assertion, if it holds too, costs a message to the parent process: so none is made that holds. */
void check_none(const char *error)
{
    if (error)
        ck_abort_msg("%s", error);
}

Case case_of(const char *line)
{
    Case c;
    const char *error = case_parse(&c, line);
    check_none(error);
    return c;
}

bool run_named(const Case *c, const Problem *p, Raw out[OUTPUT_COUNT])
{
    const char *error = run_once(c, p, c->variant[0] ? c->variant : NULL, out, NULL);
    if (error == run_unsupported && c->variant[0])
        return false;
    check_none(error);
    return true;
}

/* WELFORD_TEST_PART=i/n: of n parts the i-th. A quick run on the emulator is a part of what one on a GPU is. None has what the
 * build lacks, or takes a sparse map to the device. */
bool left_out(const Case *c)
{
    static int turn, part, parts; /* parts: no divisor of what the tests count through */
    if (c->backend == WF_CPU)
        return false;
    if (!parts) {
        const char *given = getenv("WELFORD_TEST_PART");
        parts = !quick() || !device_emulated() ? 1 : op_norm(c->op) >= DROPOUT ? 5 : case_adds(c) ? 3 : 23;
        if (given && (sscanf(given, "%d/%d", &part, &parts) != 2 || part < 0 || part >= parts))
            ck_abort_msg("WELFORD_TEST_PART=%s", given);
    }
    return turn++ % parts != part || !in_build(c) ||
           c->rows * (c->x_stride + c->y_stride + c->dx_stride + c->dy_stride) > 1 << 24;
}

/* By way of its line: what a failure prints is what was run, and fields that the norm does not have are dropped. */
void check_case(const Case *c)
{
    char line[CASE_SIZE];
    Case parsed = case_of(case_print(c, line));
    parsed.backend = tested_backend();
    if (!left_out(&parsed))
        check_none(run_case(&parsed, NULL));
}

bool operation(Norm norm, int i, Case *c)
{
    static const struct { Op op[4]; int count; bool frozen; } table[] = {
        [LAYERNORM] = { { LAYERNORM_FORWARD, LAYERNORM_BACKWARD }, 2, false },
        [RMSNORM] = { { RMSNORM_FORWARD, RMSNORM_BACKWARD }, 2, false },
        [GROUPNORM] = { { GROUPNORM_FORWARD, GROUPNORM_BACKWARD }, 2, false },
        [INSTANCENORM] = { { INSTANCENORM_TRAIN, INSTANCENORM_BACKWARD, INSTANCENORM_INFER, INSTANCENORM_BACKWARD }, 4, true },
        [BATCHNORM] = { { BATCHNORM_TRAIN, BATCHNORM_BACKWARD, BATCHNORM_INFER, BATCHNORM_BACKWARD }, 4, true },
    };
    if (i >= table[norm].count)
        return false;
    *c = case_default(table[norm].op[i]);
    c->flags = table[norm].frozen && i == 3 ? WF_FROZEN : 0;
    return true;
}

bool legal(const Case *c)
{
    const bool fixed = op_is_infer(c->op) || (op_is_backward(c->op) && c->flags & WF_FROZEN);
    const bool empty = c->n == 0 || c->c == 0 || c->hw == 0;
    const Norm norm = op_norm(c->op);
    if (norm == BATCHNORM)
        return fixed || empty || c->n * c->hw > 1;
    return norm != INSTANCENORM || fixed || empty || c->hw > 1;
}

bool row_wise(Norm norm) { return norm == LAYERNORM || norm == RMSNORM || norm == FOLD; }

/* ---- a part alone ---- */

/* Elements [first, first + count) of every output that has `each` of them per row or sample. */
static void check_part(const Case *c, const Raw whole[OUTPUT_COUNT], const Raw part[OUTPUT_COUNT], int64_t index, int64_t n)
{
    static const Output outs[] = { OUT_Y, OUT_MEAN, OUT_MEAN_PAIR, OUT_RSTD, OUT_DX, OUT_DSCALE, OUT_DSHIFT };
    Raw cut[OUTPUT_COUNT] = { { 0 } };
    for (int i = 0; i < COUNT(outs); i++) {
        const Raw *w = &whole[outs[i]];
        if (!w->bytes)
            continue;
        cut[outs[i]] = *w;
        cut[outs[i]].count = w->count / n;
        cut[outs[i]].bytes = w->bytes + (size_t)(index * (w->count / n)) * dtype_size(w->dtype);
        ck_assert_int_eq(part[outs[i]].count, w->count / n);
    }
    check_none(raw_differs(c, cut, part, "alone"));
}

void check_alone(const Case *c)
{
    const bool fixed = op_is_infer(c->op) || c->flags & WF_FROZEN;
    if (op_norm(c->op) == BATCHNORM || op_is_fold(c->op) || (op_norm(c->op) == INSTANCENORM && fixed))
        return;
    Raw whole[OUTPUT_COUNT], part[OUTPUT_COUNT];
    Problem *p = problem_new(c);
    const bool taken = run_named(c, p, whole);
    const int64_t n = !taken ? 0 : row_wise(op_norm(c->op)) ? c->rows : c->n, each = taken ? p->count / n : 0;
    for (int64_t i = 0; i < n; i += i + 1 < n && n > 20 ? n / 7 : 1) {
        Case one = *c;
        one.rows = one.n = 1;
        one.running = RUNNING_NONE;
        Problem sub = *p;
        sub.c = &one;
        sub.count = each;
        sub.slots = p->slots / n;
        sub.per_param = p->per_param / n;
        sub.x = p->x + i * each;
        Quad **const others[] = { &sub.dy, &sub.branch, &sub.residual, &sub.dsum, &sub.output };
        for (int k = 0; k < COUNT(others); k++)
            *others[k] = *others[k] ? *others[k] + i * each : NULL;
        sub.pairs = p->pairs / n;
        sub.scale = p->scale ? p->scale + i * sub.pairs : NULL;
        sub.shift = p->shift ? p->shift + i * sub.pairs : NULL;
        if (run_named(&one, &sub, part))
            check_part(c, whole, part, i, n);
        raw_free(part);
    }
    raw_free(whole);
    problem_free(p);
}

/* A shape for either kind of norm: [a, b, hw], rows x cols where there is no hw. */
static void set_shape(Case *c, int64_t a, int64_t b, int64_t hw, int64_t groups)
{
    c->rows = c->n = a;
    c->cols = c->c = b;
    c->hw = row_wise(op_norm(c->op)) ? 1 : hw;
    c->groups = groups;
}

void set_dtypes(Case *c, int i)
{
    c->x = dtypes[i % DTYPES].x;
    c->w = dtypes[i % DTYPES].w;
}

/* Half of b, or the nearest divisor below, as groups of b channels. */
static int64_t some_groups(int64_t b)
{
    for (int64_t g = b / 2; g > 1; g--)
        if (b % g == 0)
            return g;
    return 1;
}

/* ---- shapes ---- */

enum { SMALL = 2000, LARGE = 20000 }; /* elements */

/* Every dtype on a small shape, both layouts on one that is not large, one operation on a large one: in turn. */
static void check_shape(int64_t a, int64_t b, int64_t hw, int64_t groups, int turn)
{
    const int64_t count = a * b * hw;
    const int layouts = row_wise(sweep->norm) || count > LARGE ? 1 : 2;
    Case c;
    for (int i = 0; operation(sweep->norm, i, &c); i++)
        for (int layout = 0; layout < layouts; layout++)
            for (int d = 0; d < (count <= SMALL ? DTYPES : 1); d++) {
                if (count > LARGE && i % 2 != turn / 2 % 2)
                    continue;
                set_shape(&c, a, b, hw, groups);
                set_dtypes(&c, d + turn + layout);
                c.layout = (wf_layout)((layout + turn) % 2);
                c.seed = (uint64_t)(turn + 1);
                c.running = turn % 2 ? RUNNING_SEPARATE : RUNNING_NONE;
                c.threads = (turn + i) % 3 ? 1 : 0;
                c.null = turn % 5 == 4 && op_is_backward(c.op) ? NULL_MEAN_LO : 0;
                if (legal(&c))
                    check_case(&c);
            }
}

static const int64_t row_counts[] = { 0, 1, 2, 3, 33, 129 };
static const int64_t col_counts[] = { 0, 1, 2, 3, 31, 32, 33, 127, 128, 129, 255, 257, 1000, 1023, 1025, 4096, 12345,
                                      65537 };

START_TEST(row_shapes)
{
    const int at = begin(_i);
    const int64_t cols = col_counts[at];
    for (int r = 0; r < COUNT(row_counts); r++)
        if (row_counts[r] * cols <= (quick() ? 700 : 66000))
            check_shape(row_counts[r], cols, 1, 1, at + r);
}
END_TEST

static const int64_t sample_counts[] = { 0, 1, 2, 3, 33 };
static const int64_t channel_counts[] = { 0, 1, 3, 35, 64, 65, 320 };
static const int64_t hw_counts[] = { 0, 1, 49, 196, 3136, 73 * 73 };

START_TEST(channel_shapes)
{
    const int at = begin(_i);
    const int64_t channels = channel_counts[at / COUNT(hw_counts)], hw = hw_counts[at % COUNT(hw_counts)];
    for (int s = 0; s < COUNT(sample_counts); s++) {
        const int64_t n = sample_counts[s];
        if (n * channels * hw > (quick() ? 500 : 60000) && !(n == 1 && !quick() && channels <= 65))
            continue;
        const int64_t groups[] = { 1, some_groups(channels), channels };
        const int kinds = sweep->norm == GROUPNORM ? 3 : 1;
        for (int g = 0; g < kinds; g++)
            if (groups[g] > 0 && (g == 0 || groups[g] != groups[g - 1]) &&
                (n * channels * hw <= LARGE || g == (at + s) % kinds))
                check_shape(n, channels, hw, groups[g], at + s + g);
    }
}
END_TEST

START_TEST(lines)
{
    const int at = begin(_i);
    const char *line = sweep->lines[at];
    if (*line == '+' && quick())
        return;
    const Case c = case_of(line + (*line == '+'));
    check_case(&c);
}
END_TEST

/* ---- options ---- */

/* Every set of absent buffers, with flags, in place, misaligned, strided. */
START_TEST(options)
{
    const int at = begin(_i);
    static const uint32_t forward[] = { NULL_GAMMA, NULL_BETA, NULL_MEAN, NULL_RSTD, NULL_MEAN_LO };
    static const uint32_t backward[] = { NULL_GAMMA, NULL_MEAN_LO, NULL_DX, NULL_DGAMMA, NULL_DBETA };
    Case c;
    for (int i = 0; operation(sweep->norm, i, &c); i++) {
        const uint32_t flags = c.flags;
        set_shape(&c, 5, 12, 11, 4);
        c.weight_offset = sweep->norm == RMSNORM && at % 2 ? 1 : 0;
        for (int bit = 0; bit < 5; bit++)
            c.null |= at >> bit & 1 ? (op_is_backward(c.op) ? backward : forward)[bit] : 0;
        for (int how = quick() ? at % 4 : 0; how < 32; how += quick() ? 4 : 1) {
            c.flags = flags | (how & 1 ? WF_ACCUMULATE : 0);
            c.inplace = how >> 1 & 1 && !(c.null & NULL_DX);
            c.misalign = how >> 2 & 1;
            c.layout = row_wise(sweep->norm) ? WF_NCHW : (wf_layout)(how >> 3 & 1);
            c.running = how & 16 ? RUNNING_IN_PLACE : RUNNING_NONE;
            c.x_stride = c.y_stride = c.dx_stride = c.dy_stride = 0;
            if (row_wise(sweep->norm) && how & 8) {
                c.x_stride = 13;
                c.y_stride = c.inplace && !op_is_backward(c.op) ? 13 : 700;
                c.dy_stride = how & 16 ? 15 : 0;
                c.dx_stride = c.inplace ? (c.dy_stride ? c.dy_stride : c.y_stride) : how & 16 ? 19 : 0;
            }
            if (!op_is_backward(c.op) && how & 1)
                continue; /* WF_ACCUMULATE means nothing there */
            set_dtypes(&c, at + how + i);
            check_case(&c);
        }
    }
}
END_TEST

/* ---- data ---- */

/* Every kind of data, with and without eps and mean_lo, on a short and a longer slot. */
START_TEST(data)
{
    const int at = begin(_i);
    static const int64_t shapes[][4] = { { 3, 16, 5, 4 }, { 2, 4, 700, 2 }, { 5, 2, 2, 1 } };
    static const int64_t row_shapes[][2] = { { 9, 96 }, { 2, 2100 }, { 6, 2 } };
    Case c;
    for (int i = 0; operation(sweep->norm, i, &c); i++)
        for (int how = 0; how < 3 * 2 * 2 * 2 * DTYPES; how++) {
            const int shape = how % 3, d = how / 24;
            if (quick() ? shape != 0 || (how / 3 + d) % 4 : shape == 1 && (how / 3 + d) % 4)
                continue;
            if (row_wise(sweep->norm))
                set_shape(&c, row_shapes[shape][0], row_shapes[shape][1], 1, 1);
            else
                set_shape(&c, shapes[shape][0], shapes[shape][1], shapes[shape][2], shapes[shape][3]);
            set_dtypes(&c, d);
            c.data = (Data)at;
            c.eps = how / 3 & 1 ? 0 : 1e-5;
            c.layout = row_wise(sweep->norm) ? WF_NCHW : (wf_layout)(how / 6 & 1);
            c.null = how / 12 & 1 ? (op_is_backward(c.op) ? NULL_MEAN_LO : NULL_GAMMA | NULL_BETA) : 0;
            c.running = how & 1 ? RUNNING_SEPARATE : RUNNING_NONE;
            c.threads = 1;
            if (row_wise(sweep->norm) && how / 6 & 1) {
                c.x_stride = c.cols + 3;
                c.dy_stride = c.cols + 1;
            } else {
                c.x_stride = c.dy_stride = 0;
            }
            check_case(&c);
        }
}
END_TEST

/* ---- running statistics ---- */

START_TEST(running)
{
    const int at = begin(_i);
    static const double momenta[] = { 0, 0.1, 1.0 / 3, 1 };
    static const int64_t shapes[][3] = { { 4, 6, 25 }, { 2, 35, 2 }, { 0, 4, 5 }, { 3, 4, 0 } };
    const Case base = case_default(sweep->norm == BATCHNORM ? BATCHNORM_TRAIN : INSTANCENORM_TRAIN);
    for (int how = 0; how < 4 * 2 * 2 * 4 * DTYPES; how++) {
        Case c = base;
        const int64_t *shape = shapes[how / 16 % 4];
        set_shape(&c, shape[0], shape[1], shape[2], 1);
        c.momentum = momenta[at];
        c.running = (Running)(how % 4);
        c.flags = how / 4 & 1 ? WF_BIASED : 0;
        c.layout = (wf_layout)(how / 8 & 1);
        set_dtypes(&c, how / 64);
        c.data = (Data[]){ OFFSET, NORMAL, OPPOSITE }[how % 3];
        check_case(&c);
    }
}
END_TEST

/* n hw = 1 (BatchNorm) and hw = 1 (InstanceNorm) are refused in training and without WF_FROZEN, but not when empty. */
START_TEST(one_value_per_channel)
{
    begin(_i);
    Case c;
    for (int i = 0; operation(sweep->norm, i, &c); i++)
        for (int n = 0; n < 3; n++) {
            static float a[15][8];
            static char workspace[1 << 16];
            const Buffers b = { .x = a[0], .dy = a[1], .gamma = a[2], .beta = a[3], .running_mean_in = a[4],
                                .running_var_in = a[5], .y = a[6], .mean = a[7], .rstd = a[8], .mean_lo = a[9],
                                .running_mean_out = a[10], .running_var_out = a[11], .dx = a[12], .dgamma = a[13],
                                .dbeta = a[14] };
            set_shape(&c, n, 3, 1, 1);
            const wf_exec where = { .size = sizeof where, .workspace = workspace, .workspace_size = run_workspace(&c) };
            ck_assert_uint_le(where.workspace_size, sizeof workspace);
            const wf_status status = run_call(&c, &b, &where);
            ck_assert_int_eq(status, legal(&c) ? WF_OK : WF_INVALID);
            if (status)
                ck_assert_ptr_nonnull(strstr(wf_error_detail(), "expected more than 1 value per channel when training"));
        }
}
END_TEST

/* ---- chance ---- */

static int64_t random_size(uint64_t *state, int64_t most)
{
    static const int64_t edges[] = { 1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257 };
    int64_t size = random_below(state, 3) ? edges[random_below(state, COUNT(edges))] : 1 + random_below(state, 1500);
    return size < most ? size : 1 + random_below(state, most);
}

static Case random_case(uint64_t *state, const Case *base)
{
    Case c = *base;
    const bool rows = row_wise(sweep->norm), backward = op_is_backward(c.op);
    int64_t b = random_size(state, 2000), a = random_size(state, 1 + 6000 / b);
    int64_t hw = rows ? 1 : random_size(state, 1 + 6000 / (a * b));
    const int64_t groups[] = { 1, some_groups(b), b };
    set_shape(&c, a, b, hw, groups[random_below(state, 3)]);
    set_dtypes(&c, (int)random_below(state, DTYPES));
    c.seed = random_bits(state) >> 40;
    c.data = random_below(state, 3) ? NORMAL : (Data)random_below(state, DATA_COUNT);
    c.eps = (double[]){ 1e-5, 0, 1e-12, 0.1 }[random_below(state, 4)];
    c.momentum = (double[]){ 0.1, 0, 1, 0.25 }[random_below(state, 4)];
    c.weight_offset = sweep->norm == RMSNORM ? (double)random_below(state, 2) : 0;
    c.layout = rows ? WF_NCHW : (wf_layout)random_below(state, 2);
    c.running = (Running)random_below(state, 4);
    c.inplace = (int32_t)random_below(state, 2);
    c.misalign = random_below(state, 3) ? 0 : 1 + (int32_t)random_below(state, 7);
    c.threads = 1 + (int32_t)random_below(state, 3);
    c.pool = random_below(state, 8) ? 0 : 1 + (int32_t)random_below(state, 4);
    c.flags |= (random_below(state, 2) ? WF_ACCUMULATE : 0);
    if (sweep->norm == BATCHNORM || sweep->norm == INSTANCENORM)
        c.flags |= random_below(state, 2) ? WF_BIASED : 0;
    for (uint32_t bit = NULL_DX; bit <= NULL_MEAN_LO; bit *= 2)
        if (random_below(state, 6) == 0 && !(backward && bit & (NULL_MEAN | NULL_RSTD)))
            c.null |= bit;
    if (rows && random_below(state, 2)) {
        c.x_stride = c.cols + random_below(state, 9);
        c.y_stride = backward || !c.inplace ? c.cols + random_below(state, 9) : c.x_stride;
        c.dx_stride = backward && c.inplace ? c.y_stride : c.cols + random_below(state, 9);
    } else if (rows && backward && c.inplace) {
        c.dx_stride = c.cols;
    }
    return c;
}

START_TEST(chance)
{
    const int at = begin(_i);
    uint64_t state = 20 + (uint64_t)at;
    Case c;
    for (int round = 0; round < (quick() ? 1 : 30); round++)
        for (int i = 0; operation(sweep->norm, i, &c); i++) {
            Case r = random_case(&state, &c);
            if (legal(&r))
                check_case(&r);
        }
}
END_TEST

/* ---- rounding ---- */

/* 16-bit y and dx of 10^5 and more values of N(0, 1): 99.9 % are the correctly rounded ones. */
START_TEST(rounding)
{
    const int at = begin(_i);
    static const Dtypes narrow[] = { { WF_F16, WF_F32 }, { WF_BF16, WF_F32 }, { WF_F16, WF_F16 }, { WF_BF16, WF_BF16 } };
    Case c;
    if (quick() && at != (int)sweep->norm % 4)
        return;
    for (int i = 0; operation(sweep->norm, i, &c); i++) {
        if (row_wise(sweep->norm))
            set_shape(&c, 131, 768, 1, 1);
        else
            set_shape(&c, 8, 64, 196, 8);
        c.x = narrow[at].x;
        c.w = narrow[at].w;
        c.layout = row_wise(sweep->norm) ? WF_NCHW : (wf_layout)(at % 2);
        c.backend = tested_backend();
        if (!in_build(&c))
            continue;
        Comparison results[OUTPUT_COUNT];
        check_none(run_case(&c, results));
        const Comparison *r = &results[op_is_backward(c.op) ? OUT_DX : OUT_Y];
        char line[CASE_SIZE];
        ck_assert_int_ge(r->elements, 100000);
        ck_assert_msg((double)r->rounded >= 0.999 * (double)r->elements, "%lld of %lld correctly rounded\n  --case \"%s\"",
                      (long long)r->rounded, (long long)r->elements, case_print(&c, line));
    }
}
END_TEST

Suite *sweep_suite(const Sweep *s)
{
    static const char *const names[] = { "layernorm", "rmsnorm", "groupnorm", "instancenorm", "batchnorm" };
    const bool moving = s->norm == BATCHNORM || s->norm == INSTANCENORM;
    const int first = s->norm * EACH;
    sweeps[s->norm] = s;
    int line_count = 0;
    while (s->lines[line_count])
        line_count++;
    Suite *suite = suite_create(names[s->norm]);
    TCase *tcase = tcase_create(names[s->norm]);
    tcase_set_timeout(tcase, 120);
    if (row_wise(s->norm))
        tcase_add_loop_test(tcase, row_shapes, first, first + COUNT(col_counts));
    else
        tcase_add_loop_test(tcase, channel_shapes, first, first + COUNT(channel_counts) * COUNT(hw_counts));
    tcase_add_loop_test(tcase, lines, first, first + line_count);
    tcase_add_loop_test(tcase, options, first, first + 32);
    tcase_add_loop_test(tcase, data, first, first + DATA_COUNT);
    tcase_add_loop_test(tcase, running, first, first + (moving ? 4 : 0));
    tcase_add_loop_test(tcase, one_value_per_channel, first, first + moving);
    tcase_add_loop_test(tcase, chance, first, first + 8);
    tcase_add_loop_test(tcase, rounding, first, first + 4);
    suite_add_tcase(suite, tcase);
    return suite;
}
