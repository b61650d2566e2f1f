/* The comparison itself: what let bugs through in other projects' tests must fail here. A NaN that passes
 * (TransformerEngine), one garbage row hidden in a root-mean-square error (MIOpen), a buffer compared with itself
 * (Liger#1305: outputs are filled beforehand, see run.c), an oracle with the library's own mistake (oneDNN 4e81502c98: the
 * oracle's gradients are held to differences of its own forward function in test_identities.c). */
#include <check.h>
#include <math.h>
#include <stdlib.h>

#include "compare.h"

Suite *compare_suite(void);

enum { COUNT = 10000 };

/* COUNT right values of 1 with a bar of 2^-20; `at` is then replaced by `value`. 1 if the comparison complains. */
static int complains(int at, double value, double expected)
{
    static Quad want[COUNT], got[COUNT];
    static double bar[COUNT];
    Case c = case_default(LAYERNORM_FORWARD);
    Comparison result;
    for (int i = 0; i < COUNT; i++) {
        want[i] = got[i] = 1;
        bar[i] = 0x1p-20;
    }
    want[at] = expected;
    got[at] = value;
    const Expected e = {.count = COUNT, .value = want, .bar = bar, .dtype = WF_F32};
    const char *text = compare(&c, OUT_Y, &e, got, &result);
    ck_assert_int_eq(result.elements, COUNT);
    if (text) {
        ck_assert_int_eq(result.worst_at, at);
        ck_assert_ptr_nonnull(strstr(text, "layernorm_forward")); /* the line that repeats the case */
    }
    return text != NULL;
}

START_TEST(nan_never_passes)
{
    ck_assert(complains(5, NAN, 1));
    ck_assert(complains(COUNT - 1, NAN, 1));
    ck_assert(complains(5, INFINITY, 1));
    ck_assert(complains(5, 1, NAN));
    ck_assert(complains(5, 0, NAN));
    ck_assert(!complains(5, NAN, NAN));
    ck_assert(!complains(5, INFINITY, NAN)); /* NaN there stands for anything not finite */
}
END_TEST

START_TEST(one_wrong_element_is_seen)
{
    for (int at = 0; at < COUNT; at += 1111) {
        ck_assert(complains(at, 1 + 0x1.1p-20, 1));
        ck_assert(complains(at, 1 - 0x1.1p-20, 1));
        ck_assert(!complains(at, 1 + 0x1p-20, 1));
        ck_assert(complains(at, -1, 1));
        ck_assert(complains(at, 0, 1));
    }
}
END_TEST

Suite *compare_suite(void)
{
    Suite *s = suite_create("compare");
    TCase *t = tcase_create("compare");
    tcase_set_timeout(t, 60);
    tcase_add_test(t, nan_never_passes);
    tcase_add_test(t, one_wrong_element_is_seen);
    suite_add_tcase(s, t);
    return s;
}
