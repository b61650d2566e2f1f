/* The 16-bit conversions of src/common/dtype.h against arithmetic on values, in both flush-to-zero modes. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#ifdef __SSE2__
#include <immintrin.h>
#endif

#include "../src/common/dtype.h"
#include "oracle_dropout.h"

Suite *dtype_suite(void);

/* Mode 1 flushes subnormals to zero where the processor can. */
static void set_flush(int mode)
{
#ifdef __SSE2__
    _mm_setcsr(mode ? _mm_getcsr() | 0x8040 : _mm_getcsr() & ~0x8040u);
#else
    (void)mode;
#endif
}

/* The loops are functions of their own, so that no conversion moves past a change of the mode, and in loops, as in the
 * kernels, so that they are vectorised. */
static __attribute__((noinline)) void widen_f16(int count, const uint16_t *in, uint32_t *out)
{
    for (int i = 0; i < count; i++)
        out[i] = wf_bits_from_float(wf_f16_to_f32(in[i]));
}

static __attribute__((noinline)) void widen_bf16(int count, const uint16_t *in, uint32_t *out)
{
    for (int i = 0; i < count; i++)
        out[i] = wf_bits_from_float(wf_bf16_to_f32(in[i]));
}

static __attribute__((noinline)) void narrow_f16(int count, const uint32_t *in, uint16_t *out)
{
    for (int i = 0; i < count; i++)
        out[i] = wf_f32_to_f16(wf_float_from_bits(in[i]));
}

static __attribute__((noinline)) void narrow_bf16(int count, const uint32_t *in, uint16_t *out)
{
    for (int i = 0; i < count; i++)
        out[i] = wf_f32_to_bf16(wf_float_from_bits(in[i]));
}

/* Converts all of in[], in both modes, and judges every result. */
static void check_narrow(wf_dtype dtype, int count, const uint32_t *in)
{
    uint16_t *out = malloc((size_t)count * sizeof *out);
    for (int mode = 0; mode < 2; mode++) {
        set_flush(mode);
        (dtype == WF_F16 ? narrow_f16 : narrow_bf16)(count, in, out);
        set_flush(0);
        for (int i = 0; i < count; i++) {
            const uint16_t quiet = dtype == WF_F16 ? 0x7e00 : 0x7fc0;
            const int good = oracle_is_nan(WF_F32, in[i])
                                 ? (out[i] & quiet) == quiet && out[i] >> 15 == in[i] >> 31
                                 : out[i] == oracle_narrow(dtype, wf_float_from_bits(in[i]));
            if (!good)
                ck_abort_msg("dtype %d, mode %d: float %08x became %04x", dtype, mode, in[i], out[i]);
        }
    }
    free(out);
}

START_TEST(every_half_up)
{
    static const wf_dtype dtypes[] = {WF_F16, WF_BF16};
    static uint16_t in[65536];
    static uint32_t out[65536];
    for (int i = 0; i < 65536; i++)
        in[i] = (uint16_t)i;
    for (int d = 0; d < 2; d++)
        for (int mode = 0; mode < 2; mode++) {
            set_flush(mode);
            (d ? widen_bf16 : widen_f16)(65536, in, out);
            set_flush(0);
            for (int i = 0; i < 65536; i++) {
                const float want = (float)oracle_widen(dtypes[d], in[i]);
                const uint32_t quiet = d ? 0x7f800000 : 0x7fc00000; /* f16 NaNs become quiet, as F16C has it */
                if (isnan(want) ? !oracle_is_nan(WF_F32, out[i]) || (out[i] & quiet) != quiet
                                : out[i] != wf_bits_from_float(want))
                    ck_abort_msg("dtype %d, mode %d: %04x became %08x", dtypes[d], mode, i, out[i]);
            }
        }
}
END_TEST

/* Around every 16-bit value and every midpoint between two: where rounding changes its mind. */
START_TEST(down_around_every_half)
{
    static const wf_dtype dtypes[] = {WF_F16, WF_BF16};
    static uint32_t in[65536 * 6];
    for (int d = 0; d < 2; d++) {
        int count = 0;
        for (int h = 0; h < 65536; h++) {
            const float here = (float)oracle_widen(dtypes[d], (uint16_t)h);
            const float next = (float)oracle_widen(dtypes[d], (uint16_t)(h + 1));
            const float middle = isfinite(here) && isfinite(next) ? here / 2 + next / 2 : here;
            for (uint32_t step = 0; step < 3; step++) {
                in[count++] = wf_bits_from_float(here) + step - 1;
                in[count++] = wf_bits_from_float(middle) + step - 1;
            }
        }
        check_narrow(dtypes[d], count, in);
    }
}
END_TEST

START_TEST(down_everywhere)
{
    static uint32_t in[1 << 19];
    uint32_t state = 1;
    for (int i = 0; i < 1 << 19; i++) {
        state = state * 1664525 + 1013904223;
        in[i] = state ^ state >> 15;
    }
    check_narrow(WF_F16, 1 << 19, in);
    check_narrow(WF_BF16, 1 << 19, in);
}
END_TEST

/* Where a range ends: the last finite value, the first infinite one, and half of the least subnormal. */
START_TEST(down_edges)
{
    ck_assert_uint_eq(wf_f32_to_f16(65519.996f), 0x7bff);
    ck_assert_uint_eq(wf_f32_to_f16(65520.0f), 0x7c00);
    ck_assert_uint_eq(wf_f32_to_f16(0x1p-25f), 0);
    ck_assert_uint_eq(wf_f32_to_f16(-0x1p-25f), 0x8000);
    ck_assert_uint_eq(wf_f32_to_f16(0x1.000002p-25f), 1);
    ck_assert_uint_eq(wf_f32_to_f16(0x1.ff8p-15f), 0x3ff);
    ck_assert_uint_eq(wf_f32_to_f16(0x1.ffcp-15f), 0x400);
    ck_assert_uint_eq(wf_f32_to_bf16(0x1.fefffep127f), 0x7f7f);
    ck_assert_uint_eq(wf_f32_to_bf16(0x1.ffp127f), 0x7f80);
    ck_assert_uint_eq(wf_f32_to_bf16(0x1p-134f), 0);
    ck_assert_uint_eq(wf_f32_to_bf16(0x1.8p-134f), 1);
}
END_TEST

Suite *dtype_suite(void)
{
    Suite *s = suite_create("dtype");
    TCase *t = tcase_create("dtype");
    tcase_set_timeout(t, 120);
    tcase_add_test(t, every_half_up);
    tcase_add_test(t, down_around_every_half);
    tcase_add_test(t, down_everywhere);
    tcase_add_test(t, down_edges);
    suite_add_tcase(s, t);
    return s;
}
