/* GroupNorm. */
#include "sweep.h"

Suite *groupnorm_suite(void);

static const char *const lines[] = {
    "groupnorm_forward x=f32 n=2 c=2500 hw=3 groups=2 layout=nhwc", /* a group wider than a tile of any kernel */
    "groupnorm_backward x=f32 n=2 c=2500 hw=3 groups=2",
    "groupnorm_backward x=bf16 w=f32 n=1 c=2500 hw=3 groups=1 layout=nhwc",
    "groupnorm_forward x=f32 n=1 c=40000 hw=1 groups=2",
    "groupnorm_forward x=f32 n=1 c=4 hw=10007 groups=2 layout=nhwc data=offset", /* and longer than what one thread takes */
    "groupnorm_backward x=f32 n=1 c=4 hw=10007 groups=2 layout=nhwc",
    "groupnorm_backward x=f32 n=1 c=2 hw=20011 groups=1",
    "groupnorm_forward x=f64 layout=nhwc n=4096 c=3 hw=2 groups=1 eps=0 seed=0", /* few values, guessed from all of them */
    "+groupnorm_forward x=f32 n=65537 c=3 hw=1 groups=3",
    "+groupnorm_forward x=bf16 w=f32 n=131073 c=1 hw=2 groups=1",
    "+groupnorm_backward x=f32 n=65537 c=3 hw=1 groups=3",
    "+groupnorm_backward x=bf16 w=f32 n=131073 c=1 hw=2 groups=1 layout=nhwc",
    "+groupnorm_forward x=f32 n=2 c=1 hw=500001 groups=1",
    "+groupnorm_backward x=f32 n=2 c=1 hw=500001 groups=1",
    "+groupnorm_forward x=f32 n=2 c=131073 hw=2 groups=43691",
    "+groupnorm_backward x=f32 n=2 c=131073 hw=2 groups=43691 layout=nhwc",
    "+groupnorm_forward x=f32 n=2 c=2 hw=65537 groups=1 data=ratio6",
    "+groupnorm_backward x=f32 n=2 c=2 hw=65537 groups=1 data=ratio6",
    "+groupnorm_backward x=f32 n=2 c=2 hw=65537 groups=1 data=ratio6 null=mean_lo layout=nhwc",
    "+groupnorm_forward x=f32 n=2 c=2 hw=65537 groups=1 data=outlier eps=0 layout=nhwc",
    "+groupnorm_forward x=f16 w=f32 n=2 c=64 hw=1024 groups=2 seed=35",
    NULL,
};

Suite *groupnorm_suite(void)
{
    static const Sweep sweep = { GROUPNORM, lines };
    return sweep_suite(&sweep);
}
