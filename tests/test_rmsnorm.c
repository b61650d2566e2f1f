/* RMSNorm. */
#include "sweep.h"

Suite *rmsnorm_suite(void);

static const char *const lines[] = {
    "+rmsnorm_forward x=f32 rows=65537 cols=3",
    "+rmsnorm_forward x=bf16 w=f32 rows=131073 cols=2",
    "+rmsnorm_backward x=f32 rows=65537 cols=3",
    "+rmsnorm_backward x=bf16 w=f32 rows=131073 cols=2",
    "+rmsnorm_backward x=f16 rows=300000 cols=3",
    "+rmsnorm_forward x=f32 rows=3 cols=65537 x_stride=65540 y_stride=65539",
    "+rmsnorm_backward x=f32 rows=3 cols=65537 x_stride=65540 y_stride=65539",
    "+rmsnorm_forward x=f32 rows=1 cols=1000003",
    "+rmsnorm_backward x=f32 rows=1 cols=1000003",
    "+rmsnorm_forward x=f32 rows=2 cols=65537 data=ratio6",
    "+rmsnorm_backward x=f32 rows=2 cols=65537 data=ratio6",
    "+rmsnorm_backward x=f32 rows=2 cols=65537 data=ratio6 weight_offset=1",
    "+rmsnorm_forward x=f32 rows=2 cols=65537 data=outlier eps=0",
    "+rmsnorm_forward x=f64 rows=2 cols=65537 data=ratio6",
    /* offsets beyond 2^31 and 2^32 elements, in sparse maps */
    "rmsnorm_forward x=f32 rows=3 cols=1000 x_stride=1073741825 y_stride=1073741827",
    "rmsnorm_forward x=f16 rows=3 cols=1000 x_stride=2147483653 inplace=1 y_stride=2147483653",
    "rmsnorm_backward x=f32 rows=3 cols=1000 x_stride=1073741825 dy_stride=1073741827 dx_stride=1073741831",
    "rmsnorm_backward x=bf16 w=f32 rows=3 cols=1000 x_stride=2147483653 dy_stride=2147483659 dx_stride=2147483649",
    NULL,
};

Suite *rmsnorm_suite(void)
{
    static const Sweep sweep = { RMSNORM, lines };
    return sweep_suite(&sweep);
}
