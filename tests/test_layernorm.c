/* LayerNorm. */
#include "sweep.h"

Suite *layernorm_suite(void);

static const char *const lines[] = {
    "layernorm_forward x=f32 rows=2 cols=140001 data=offset", /* longer than what one thread takes */
    "layernorm_backward x=bf16 w=f32 rows=2 cols=140001",
    "+layernorm_forward x=f32 rows=65537 cols=3",
    "+layernorm_forward x=bf16 w=f32 rows=131073 cols=2",
    "+layernorm_backward x=f32 rows=65537 cols=3",
    "+layernorm_backward x=bf16 w=f32 rows=131073 cols=2",
    "+layernorm_backward x=f16 rows=300000 cols=3",
    "+layernorm_forward x=f32 rows=3 cols=65537 x_stride=65540 y_stride=65539",
    "+layernorm_backward x=f32 rows=3 cols=65537 x_stride=65540 y_stride=65539",
    "+layernorm_forward x=f32 rows=1 cols=1000003",
    "+layernorm_backward x=f32 rows=1 cols=1000003",
    "+layernorm_forward x=f32 rows=2 cols=65537 data=ratio6",
    "+layernorm_backward x=f32 rows=2 cols=65537 data=ratio6",
    "+layernorm_backward x=f32 rows=2 cols=65537 data=ratio6 null=mean_lo",
    "+layernorm_forward x=f32 rows=2 cols=65537 data=outlier eps=0",
    "+layernorm_forward x=f64 rows=2 cols=65537 data=ratio6",
    /* offsets beyond 2^31 and 2^32 elements, in sparse maps */
    "layernorm_forward x=f32 rows=3 cols=1000 x_stride=1073741825 y_stride=1073741827",
    "layernorm_forward x=f16 rows=3 cols=1000 x_stride=2147483653 inplace=1 y_stride=2147483653",
    "layernorm_backward x=f32 rows=3 cols=1000 x_stride=1073741825 dy_stride=1073741827 dx_stride=1073741831",
    "layernorm_backward x=bf16 w=f32 rows=3 cols=1000 x_stride=2147483653 dy_stride=2147483659 dx_stride=2147483649",
    NULL,
};

Suite *layernorm_suite(void)
{
    static const Sweep sweep = { LAYERNORM, lines };
    return sweep_suite(&sweep);
}
