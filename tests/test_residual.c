/* LayerNorm and RMSNorm of a sum: residual, dropout, scales. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "sweep.h"

Suite *residual_suite(void);

static const Op ops[] = { LAYERNORM_FORWARD, LAYERNORM_BACKWARD, RMSNORM_FORWARD, RMSNORM_BACKWARD };
enum { OPS = 4, FLOAT_SUMS = 3 }; /* 16-bit dtypes, of all, whose sum may be float */

/* The d-th dtypes, those with a float sum last. */
static void set_sum_dtypes(Case *c, int d)
{
    static const int narrow[] = { 1, 2, 4, 5 };
    set_dtypes(c, d < DTYPES ? d : narrow[(d - DTYPES) % 4]);
    c->flags = d < DTYPES ? 0 : WF_SUM_F32;
}

static void set_strides(Case *c, int how)
{
    const bool wide = how & 1;
    c->x_stride = c->dx_stride = wide ? c->cols + 3 : 0;
    c->y_stride = c->dy_stride = wide ? c->cols + (c->inplace & 1 ? 3 : 5) : 0;
    c->residual_stride = wide ? c->cols + 2 : 0;
    c->sum_stride = wide ? c->cols + (c->inplace & 2 ? 2 : 7) : 0;
}

/* Every set of parts, in every dtype, over lengths, strides, places and probabilities in turn. */
START_TEST(parts)
{
    static const int64_t lengths[] = { 1, 3, 33, 64, 257, 1500, 31, 1025 };
    static const double drops[] = { 0, 0.3, 0.9, 1, 0x1p-33 /* keeps all, scaled */ };
    static const uint32_t forward[] = { ADD_RESIDUAL, ADD_SUM, ADD_ROW_SCALE, ADD_COL_SCALE };
    static const uint32_t backward[] = { ADD_DSUM, ADD_DRESIDUAL, ADD_ROW_SCALE, ADD_COL_SCALE };
    for (int op = 0, turn = 0; op < OPS; op++)
        for (int d = 0; d < DTYPES + FLOAT_SUMS; d++, turn += 3) {
            Case c = case_default(ops[op]);
            const bool back = op_is_backward(c.op);
            set_sum_dtypes(&c, d);
            for (int bit = 0; bit < 4; bit++)
                c.add |= _i >> bit & 1 ? (back ? backward : forward)[bit] : 0;
            for (int k = 0; k < (quick() ? 2 : 8); k++, turn++) {
                c.rows = 1 + turn % 5;
                c.cols = lengths[turn % 8];
                c.drop = drops[turn / 2 % 5];
                c.inplace = turn / 3 % 4;
                c.misalign = turn / 5 % 2;
                c.seed = (uint64_t)turn + 1;
                c.offset = (uint64_t)turn << 30;
                c.null = back && turn % 7 == 0 ? NULL_DX : back && turn % 7 == 1 ? NULL_DGAMMA | NULL_DBETA : 0;
                c.weight_offset = turn % 2;
                if (c.flags & WF_SUM_F32 && !back && case_adds(&c))
                    c.add |= ADD_SUM; /* it is needed */
                set_strides(&c, turn / 2);
                check_case(&c);
            }
        }
}
END_TEST

/* Rows that are cut into segments, many rows, one element. */
START_TEST(shapes)
{
    static const int64_t shapes[][2] = { { 2, 140001 }, { 1, 70000 }, { 300, 40 }, { 0, 5 }, { 3, 0 }, { 40, 1 } };
    for (int op = 0; op < OPS; op++)
        for (int d = 0; d < DTYPES + FLOAT_SUMS; d += quick() ? 4 : 1) {
            Case c = case_default(ops[op]);
            set_sum_dtypes(&c, d);
            c.rows = shapes[_i][0], c.cols = shapes[_i][1];
            c.drop = 0.25;
            c.add = op_is_backward(c.op) ? ADD_DSUM | ADD_DRESIDUAL | ADD_COL_SCALE : ADD_RESIDUAL | ADD_SUM | ADD_ROW_SCALE;
            c.seed = 5 + (uint64_t)d;
            if (in_turn(d + op + _i, c.rows * c.cols))
                check_case(&c);
        }
}
END_TEST

/* Data out of range, NaN and Inf go through the sum as through x. */
START_TEST(data)
{
    for (int op = 0; op < OPS; op++)
        for (int d = 0; d < DTYPES; d++) {
            Case c = case_default(ops[op]);
            set_dtypes(&c, d);
            c.rows = 4, c.cols = 96;
            c.drop = d % 2 ? 0.5 : 0;
            c.add = op_is_backward(c.op) ? ADD_DRESIDUAL | ADD_ROW_SCALE : ADD_SUM | ADD_ROW_SCALE;
            c.data = (Data)_i;
            check_case(&c);
        }
}
END_TEST

static void same(const Case *c, const Raw *a, const Raw *b)
{
    ck_assert_int_eq(a->count, b->count);
    if (memcmp(a->bytes, b->bytes, (size_t)a->count * dtype_size(a->dtype)))
        ck_abort_msg("--case \"%s\"", case_print(c, (char[CASE_SIZE]){ 0 }));
}

/* The dx that follows from dresidual as stored; to be freed. */
static unsigned char *dx_of(const Case *c, const Problem *p, const Raw *dresidual)
{
    const wf_dtype real = stat_dtype(c->x);
    unsigned char *dx = calloc((size_t)p->count + 1, dtype_size(c->x));
    for (int64_t i = 0; i < p->count; i++) {
        const Quad d = round_to(real, dtype_load(dresidual->dtype, dresidual->bytes, i) * p->col_scale[p->param[i]]);
        const Quad kept = p->factor[i] == 0 ? 0 : round_to(real, d * round_to(real, 1 / (1 - c->drop)));
        dtype_store(c->x, dx, i, kept);
    }
    return dx;
}

/* Fused and unfused: y and statistics are those of the norm alone of the sum as stored; without dsum dresidual is its dx,
 * and dx follows from dresidual as stored. */
START_TEST(unfused)
{
    static const Output outs[] = { OUT_Y, OUT_MEAN, OUT_MEAN_PAIR, OUT_RSTD, OUT_DGAMMA, OUT_DBETA };
    for (int d = 0; d < DTYPES; d++)
        for (int how = 0; how < 6; how++) {
            Case c = case_default(ops[_i]), alone;
            set_dtypes(&c, d);
            c.backend = tested_backend();
            c.rows = 3, c.cols = (int64_t[]){ 65, 770, 2050, 33, 8, 40000 }[how];
            c.drop = how % 2 ? 0.1 : 0;
            c.add = op_is_backward(c.op) ? ADD_DRESIDUAL | ADD_COL_SCALE : ADD_RESIDUAL | ADD_SUM | ADD_COL_SCALE;
            if (left_out(&c))
                continue;
            Problem *p = problem_new(&c), sub = *p;
            alone = c;
            alone.drop = alone.add = 0;
            sub.c = &alone;
            Raw fused[OUTPUT_COUNT], plain[OUTPUT_COUNT];
            check_none(run_once(&c, p, NULL, fused, NULL));
            check_none(run_once(&alone, &sub, NULL, plain, NULL));
            for (int i = 0; i < 4; i++)
                if (fused[outs[i]].bytes)
                    same(&c, &fused[outs[i]], &plain[outs[i]]);
            if (op_is_backward(c.op)) {
                same(&c, &fused[OUT_DRESIDUAL], &plain[OUT_DX]);
                const Raw dx = { c.x, p->count, dx_of(&c, p, &fused[OUT_DRESIDUAL]) };
                same(&c, &fused[OUT_DX], &dx);
                free(dx.bytes);
            }
            raw_free(fused);
            raw_free(plain);
            problem_free(p);
        }
}
END_TEST

Suite *residual_suite(void)
{
    Suite *s = suite_create("residual");
    TCase *t = tcase_create("residual");
    tcase_set_timeout(t, 300);
    tcase_add_loop_test(t, parts, 0, 16);
    tcase_add_loop_test(t, shapes, 0, 6);
    tcase_add_loop_test(t, data, 0, DATA_COUNT);
    tcase_add_loop_test(t, unfused, 0, OPS);
    suite_add_tcase(s, t);
    return s;
}
