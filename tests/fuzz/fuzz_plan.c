/* fuzz_plan.c - bytes into calls: every byte is a choice, and a missing one the harmless choice 0. Sizes, constants and
 * flags are legal ones, but for up to three things that are wrong. */
#include "fuzz.h"

typedef struct Bytes { const uint8_t *at, *end; } Bytes;

static unsigned next(Bytes *bytes) /* 0 past the end, and every choice 0 is a harmless one */
{
    return bytes->at < bytes->end ? *bytes->at++ : 0;
}

static const int64_t plain_sizes[] = {
    3, 1, 2, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 255, 256, 257, 0, 35, 49, 320,
    1000, 1023, 1024, 1025, 2049, 3136, 4096, 5000, 8193, 12345, 16385, 30000, 65536,
};
static const int64_t odd_sizes[] = {
    -1, 0, 1, 2147483647, 2147483648, 4294967297, INT64_C(1) << 40, INT64_C(1) << 56, INT64_C(1) << 58,
    INT64_C(1) << 62, INT64_MAX, INT64_MIN, -2147483648, 65537, 131071, INT64_MAX / 2 + 1,
};
static const double plain_eps[] = { 1e-5, 0, 1e-12, 1, 1e-3, 1e-300, 1e300 };
static const double plain_extra[] = { 0.5, 0, 1, 0.1, 0.25, 0x1p-33, 0x1.fffffep-1 }; /* exact in float, but for 0.1 */
static const double plain_drops[] = { 0, 0.5, 0.1, 1, 0x1p-33 };
static const double odd_numbers[] = { -1e-9, -1, 1.0000001, 1e-300, 1e300, 5e-324 };

static double odd_number(unsigned byte)
{
    return byte % 4 == 0 ? (double)__builtin_nanf("") : byte % 4 == 1 ? (byte & 4 ? -1 : 1) * __builtin_inf()
                                                                      : PICK(odd_numbers, byte / 4);
}

static int64_t plan_stride(Bytes *bytes, int64_t cols)
{
    const unsigned extra = next(bytes);
    return extra % 4 == 0 ? 0 : extra % 4 == 1 ? cols + extra / 4 : (extra % 4) * cols;
}

static void plan_shape(Bytes *bytes, Plan *plan)
{
    What *w = &plan->what;
    w->n = PICK(plain_sizes, next(bytes));
    w->c = PICK(plain_sizes, next(bytes));
    w->hw = is_rows(plan->op->norm) ? 1 : PICK(plain_sizes, next(bytes));
    const unsigned groups = next(bytes);
    const int64_t all = divided(plan->op, w);
    w->groups = 1 + groups % (all > 0 ? all : 1);
    while (all % w->groups != 0)
        w->groups--;
    if (plan->op->norm == FOLD && (all == 0 || groups % 4 == 0))
        w->groups = 0; /* as many as there are */
    int64_t *const strides[] = { &w->x_stride, &w->y_stride, &w->dx_stride, &w->dy_stride };
    for (int i = 0; i < 4; i++)
        *strides[i] = plan_stride(bytes, w->c);
}

static void plan_all(Bytes *bytes, Plan *plan)
{
    *plan = (Plan){ .op = &operations[next(bytes) % (unsigned)operation_count] };
    What          *w = &plan->what;
    const unsigned dtypes = next(bytes);
    w->x_dtype = (int32_t)(dtypes % 4);
    w->w_dtype = dtypes / 4 % 2 == 1 && (w->x_dtype == WF_F16 || w->x_dtype == WF_BF16) ? WF_F32 : w->x_dtype;
    w->layout = (int32_t)(dtypes / 8 % 2);
    w->kind = (int32_t)(dtypes / 16 % 2);
    const unsigned flags = next(bytes);
    w->flags = plan->op->norm == DROPOUT ? (flags & WF_FEATURES) | (flags & 8 ? WF_GIVEN_MASK : 0)
               : plan->op->norm == FOLD ? (flags & 1 && w->x_dtype != WF_F64 ? WF_BIAS_F32 : 0)
               : plan->op->norm == BATCHNORM || plan->op->norm == INSTANCENORM
                   ? flags & (WF_ACCUMULATE | WF_FROZEN | WF_BIASED)
                   : flags & WF_ACCUMULATE;
    plan->where_flags = flags / 16 == 7 ? WF_DRY_RUN : 0;
    plan->wrongs = flags / 16 < 4 ? (int)(flags / 16) : 0;
    for (int i = 0; i < plan->wrongs; i++) {
        plan->wrong[i].what = (Wrong)(next(bytes) % WRONGS);
        plan->wrong[i].how = next(bytes);
        if (plan->wrong[i].what == OVERLAP) {
            plan->wrong[i].more[0] = next(bytes);
            plan->wrong[i].more[1] = next(bytes);
        }
    }
    plan_shape(bytes, plan);
    w->eps = PICK(plain_eps, next(bytes));
    w->extra = PICK(plain_extra, next(bytes));
    plan->absent = next(bytes) | next(bytes) << 8;
    plan->in_place = next(bytes);
    plan->in_place |= plan->in_place << 8;
    plan->front = next(bytes);
    plan->front |= plan->front << 8;
    plan->data = (Data)(next(bytes) % DATA_COUNT);
    plan->seed = next(bytes) | (uint64_t)next(bytes) << 8;
    plan->pieces = next(bytes);
    plan->variant = next(bytes);
    plan->other_variant = next(bytes);
    if (plan->op->sums) {
        w->drop = PICK(plain_drops, next(bytes));
        w->residual_stride = plan_stride(bytes, w->c);
        w->sum_stride = plan_stride(bytes, w->c);
        w->flags |= next(bytes) % 2 && w->x_dtype != WF_F64 ? WF_SUM_F32 : 0;
    }
}

bool is_wrong(const Plan *plan, Wrong what, unsigned *how)
{
    for (int i = 0; i < plan->wrongs; i++)
        if (plan->wrong[i].what == what) {
            *how = plan->wrong[i].how;
            return true;
        }
    return false;
}

static void spoil_what(const Plan *plan, What *w)
{
    unsigned how;
    if (is_wrong(plan, X_DTYPE, &how))
        w->x_dtype = how % 4 == 0 ? -1 : (int32_t)how;
    if (is_wrong(plan, W_DTYPE, &how))
        w->w_dtype = how % 8 == 7 ? INT32_MIN : (int32_t)(how % 8);
    if (is_wrong(plan, LAYOUT, &how))
        w->layout = (int32_t)how - 1;
    if (is_wrong(plan, KIND, &how))
        w->kind = (int32_t)how - 1;
    if (is_wrong(plan, FLAGS, &how))
        w->flags |= 1u << how % 32;
    if (is_wrong(plan, RESERVED, &how))
        w->reserved = 1u << how % 32;
    if (is_wrong(plan, SIZE, &how)) {
        int64_t *const sizes[] = { &w->n, &w->c, &w->hw, &w->groups };
        *sizes[how % 4] = PICK(odd_sizes, how / 4);
    }
    if (is_wrong(plan, STRIDE, &how)) {
        int64_t *const strides[] = {
            &w->x_stride, &w->y_stride, &w->dx_stride, &w->dy_stride, &w->residual_stride, &w->sum_stride,
        };
        const unsigned count = plan->op->sums ? 6 : 4;
        *strides[how % count] = how / count == 0 ? w->c - 1 : PICK(odd_sizes, how / count);
    }
    if (is_wrong(plan, EPS, &how))
        w->eps = odd_number(how);
    if (is_wrong(plan, EXTRA, &how))
        *(plan->op->sums && how / 8 % 2 ? &w->drop : &w->extra) = odd_number(how);
}

Plan plan_call(const uint8_t *data, size_t size)
{
    Bytes bytes = { data, data + size };
    Plan  plan;
    plan_all(&bytes, &plan);
    spoil_what(&plan, &plan.what);
    return plan;
}
