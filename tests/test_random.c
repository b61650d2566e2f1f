/* The random numbers: known answers, through philox.h and through the public API's mask, and the statistics of masks.
 *
 * Every statistic below is, for true random bits, close to a standard normal variable z. Seeds are fixed, so a run that
 * passes passes for ever; the bound |z| < LIMIT fails a right generator once in 150,000 statistics. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../src/common/philox.h"
#include "device.h"
#include "oracle_dropout.h"
#include "sweep.h"

Suite *random_suite(void);

#define LIMIT 4.5
enum { UNITS = 1 << 20, ROW = 1000 };
static const uint64_t SEED = UINT64_C(0x0123456789abcdef);

static const struct {
    uint32_t counter[4], key[2], word[4];
} philox_answers[] = {
    {{0}, {0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
    {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
     {0xffffffff, 0xffffffff},
     {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
    {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
     {0xa4093822, 0x299f31d0},
     {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
};

/* With SEED and offset 42. */
static const struct {
    uint64_t u;
    uint32_t word;
} unit_answers[] = {{0, 0x36e4badc},       {1, 0x619585ba},
                    {2, 0xf6cc84e9},       {3, 0x85a34dee},
                    {4, 0xe655819f},       {5, 0xc232d497},
                    {1000003, 0xe8074a74}, {(UINT64_C(1) << 32) + 5, 0x7148f8ac},
                    {(UINT64_C(1) << 34) + 1, 0x90b98808}};
#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

START_TEST(known_blocks)
{
    for (int i = 0; i < COUNT(philox_answers); i++) {
        const uint32_t *c = philox_answers[i].counter, *k = philox_answers[i].key;
        uint32_t word[4];
        oracle_philox(c, k, word);
        ck_assert_mem_eq(word, philox_answers[i].word, sizeof word);
        wf_philox4x32((uint64_t)k[1] << 32 | k[0], (uint64_t)c[1] << 32 | c[0], (uint64_t)c[3] << 32 | c[2], word);
        ck_assert_mem_eq(word, philox_answers[i].word, sizeof word);
    }
}
END_TEST

START_TEST(known_units)
{
    for (int i = 0; i < COUNT(unit_answers); i++) {
        const uint64_t u = unit_answers[i].u;
        uint32_t word[4];
        wf_philox4x32(SEED, 42, u >> 2, word);
        ck_assert_uint_eq(word[u & 3], unit_answers[i].word);
        ck_assert_uint_eq(oracle_random_word(SEED, 42, u), unit_answers[i].word);
    }
}
END_TEST

/* T for the edges of p: held in 64 bits, 0 and 2^32 are reached. */
START_TEST(known_thresholds)
{
    ck_assert_uint_eq(wf_keep_threshold(0), UINT64_C(1) << 32);
    ck_assert_uint_eq(wf_keep_threshold(1), 0);
    ck_assert_uint_eq(wf_keep_threshold(.5), UINT64_C(1) << 31);
    ck_assert_uint_eq(wf_keep_threshold(0x1p-32), UINT32_MAX);
    ck_assert_uint_eq(wf_keep_threshold(1 - 0x1p-32), 1);
    ck_assert_uint_eq(wf_keep_threshold(0x1p-33), (UINT64_C(1) << 32));      /* 2^32 - .5 + .5 */
    ck_assert_uint_eq(wf_keep_threshold(0x1.8p-33), UINT32_MAX);             /* 2^32 - .75 + .5 */
    ck_assert_uint_eq(wf_keep_threshold(.1), 3865470566);                    /* 3865470566.4 */
    ck_assert_uint_eq(wf_keep_threshold(.9), 429496730);                     /* 429496729.6 */
    ck_assert_uint_eq(wf_keep_threshold(1 - 1e-6), 4295);                    /* 4294.97 */
}
END_TEST

/* The library's mask of `units` units, by the public API; x and y are bf16. */
static void mask_of(double p, uint64_t seed, uint64_t offset, int64_t units, uint8_t *mask)
{
    const bool cuda = tested_backend() == WF_CUDA;
    const size_t x_size = (size_t)units * sizeof(uint16_t), mask_size = (size_t)(units + 7) / 8;
    void *host = calloc(1, x_size), *x = cuda ? device_new(host, x_size) : host;
    const wf_dropout what = {.size = sizeof what, .x_dtype = WF_BF16, .n = units, .c = 1, .hw = 1, .p = p};
    const wf_dropout_args with = {.size = sizeof with, .x = x, .y = x, .seed = seed, .offset = offset,
                                  .mask = cuda ? device_new(mask, mask_size) : mask};
    const wf_exec where = {.size = sizeof where, .backend = tested_backend()};
    ck_assert_msg(wf_dropout_forward(&what, &with, &where) == WF_OK, "%s", wf_error_detail());
    ck_assert(!cuda || (device_take(with.mask, mask, mask_size) && device_take(x, host, x_size)));
    free(host);
}

static int kept(const uint8_t *mask, int64_t u)
{
    return mask[u / 8] >> u % 8 & 1;
}

/* p = 1 - T / 2^32 is exact, so the unit's word is below T + 1 and not below T: the mask shows all of its 32 bits. */
START_TEST(known_words_through_the_mask)
{
    static uint8_t mask[(1000003 + 8) / 8];
    for (int i = 0; unit_answers[i].u <= 1000003; i++)
        for (int above = 0; above < 2; above++) {
            const double threshold = (double)unit_answers[i].word + above;
            mask_of(1 - threshold * 0x1p-32, SEED, 42, 1000004, mask);
            ck_assert_int_eq(kept(mask, (int64_t)unit_answers[i].u), above);
        }
}
END_TEST

static int64_t count_kept(const uint8_t *mask, int64_t units)
{
    int64_t count = 0;
    for (int64_t u = 0; u < units; u++)
        count += kept(mask, u);
    return count;
}

/* Seed 161152 draws 0xffffffff for unit 56974 and seed 36508 draws 0 for unit 8036: the one dropped by p = 2^-32 and the
 * one kept by p = 1 - 2^-32, out of 2^20. A threshold of fewer bits, or held in 32, drops all, many or none. */
START_TEST(least_probability)
{
    static uint8_t mask[UNITS / 8];
    ck_assert_uint_eq(oracle_random_word(161152, 0, 56974), UINT32_MAX);
    mask_of(0x1p-32, 161152, 0, UNITS, mask);
    ck_assert_int_eq(kept(mask, 56974), 0);
    ck_assert_int_eq(count_kept(mask, UNITS), UNITS - 1);

    ck_assert_uint_eq(oracle_random_word(36508, 0, 8036), 0);
    mask_of(1 - 0x1p-32, 36508, 0, UNITS, mask);
    ck_assert_int_eq(kept(mask, 8036), 1);
    ck_assert_int_eq(count_kept(mask, UNITS), 1);

    mask_of(0, 36508, 0, UNITS, mask);
    ck_assert_int_eq(count_kept(mask, UNITS), UNITS);
    mask_of(1, 161152, 0, UNITS, mask);
    ck_assert_int_eq(count_kept(mask, UNITS), 0);
}
END_TEST

static void check_z(double z, const char *what, double p, int64_t detail)
{
    if (!(fabs(z) < LIMIT))
        ck_abort_msg("%s, p = %g, %lld: z = %.2f", what, p, (long long)detail, z);
}

/* A binomial count, as the signed root of its deviance: normal also where few are expected, which
 * (count - mean) / sd is not. */
static double binomial_z(double count, double total, double q)
{
    const double kept_part = count > 0 ? count * log(count / (total * q)) : 0;
    const double dropped = total - count, dropped_part = dropped > 0 ? dropped * log(dropped / (total * (1 - q))) : 0;
    const double deviance = 2 * (kept_part + dropped_part);
    return copysign(sqrt(deviance > 0 ? deviance : 0), count - total * q);
}

START_TEST(keep_count)
{
    static const double probabilities[] = {0x1p-32, 1e-3, .1, .5, .9, 1 - 1e-6};
    static uint8_t mask[UNITS / 8];
    const double p = probabilities[_i];
    for (uint64_t seed = 0; seed < 8; seed++) {
        mask_of(p, SEED * seed, seed << 31, UNITS, mask);
        check_z(binomial_z((double)count_kept(mask, UNITS), UNITS, 1 - p), "keep count", p, (int64_t)seed);
    }
}
END_TEST

static const double middle[] = {.1, .5, .9}; /* where normal approximations of class counts hold */

/* Kept units by u mod m: chi^2 with m degrees of freedom (q is known), made normal by Wilson and Hilferty's cube root.
 * Both tails count: classes that are too equal are not random either. */
START_TEST(chi_squared_of_residues)
{
    static const int moduli[] = {4, 32, 128, 256, ROW};
    static uint8_t mask[UNITS / 8];
    const double p = middle[_i], q = 1 - p;
    mask_of(p, SEED, 7, UNITS, mask);
    for (int k = 0; k < COUNT(moduli); k++) {
        const int m = moduli[k];
        double count[ROW] = {0}, chi2 = 0;
        const int64_t each = UNITS / m;
        for (int64_t u = 0; u < each * m; u++)
            count[u % m] += kept(mask, u);
        for (int r = 0; r < m; r++)
            chi2 += pow(count[r] - (double)each * q, 2) / ((double)each * q * p);
        const double spread = 2 / (9. * m);
        check_z((cbrt(chi2 / m) - (1 - spread)) / sqrt(spread), "chi^2 of u mod m", p, m);
    }
}
END_TEST

/* sum of (a[u] - q)(b[u + lag] - q), over its standard deviation sqrt(N) q p. */
static double correlation_z(const uint8_t *a, const uint8_t *b, int64_t lag, double p)
{
    double sum = 0;
    for (int64_t u = 0; u < UNITS - lag; u++)
        sum += (kept(a, u) - (1 - p)) * (kept(b, u + lag) - (1 - p));
    return sum / (sqrt((double)(UNITS - lag)) * (1 - p) * p);
}

START_TEST(lag_correlation)
{
    static const int lags[] = {1, 2, 3, 4, 32, 128, 256, ROW};
    static uint8_t mask[UNITS / 8];
    const double p = middle[_i];
    mask_of(p, SEED + 1, 9, UNITS, mask);
    for (int k = 0; k < COUNT(lags); k++)
        check_z(correlation_z(mask, mask, lags[k], p), "correlation with lag", p, lags[k]);
}
END_TEST

/* Neighbours in seed and offset, in either half of each, and (seed, offset) swapped: masks that share nothing. A mask that
 * moves by a few units between neighbours would show at a lag. */
START_TEST(neighbouring_seeds_and_offsets)
{
    const uint64_t high = UINT64_C(1) << 32;
    const struct {
        uint64_t seed, offset;
    } near[] = {{11, 5}, {12, 5},        {11, 6},        {11, 7}, {11, 9}, {10, 5}, {11 ^ high, 5},
                {11, 5 ^ high}, {11, 5 ^ high << 31}, {5, 11}};
    static uint8_t mask[COUNT(near)][UNITS / 8];
    const double p = middle[_i];
    for (int i = 0; i < COUNT(near); i++)
        mask_of(p, near[i].seed, near[i].offset, UNITS, mask[i]);
    for (int i = 1; i < COUNT(near); i++)
        for (int64_t lag = 0; lag < 5; lag++) {
            check_z(correlation_z(mask[0], mask[i], lag, p), "correlation with a neighbour", p, i);
            check_z(correlation_z(mask[i], mask[0], lag, p), "correlation with a neighbour", p, i);
        }
}
END_TEST

Suite *random_suite(void)
{
    Suite *s = suite_create("random");
    TCase *t = tcase_create("random");
    tcase_set_timeout(t, 120);
    tcase_add_test(t, known_blocks);
    tcase_add_test(t, known_units);
    tcase_add_test(t, known_thresholds);
    tcase_add_test(t, known_words_through_the_mask);
    tcase_add_test(t, least_probability);
    tcase_add_loop_test(t, keep_count, 0, 6);
    tcase_add_loop_test(t, chi_squared_of_residues, 0, COUNT(middle));
    tcase_add_loop_test(t, lag_correlation, 0, COUNT(middle));
    tcase_add_loop_test(t, neighbouring_seeds_and_offsets, 0, COUNT(middle));
    suite_add_tcase(s, t);
    return s;
}
