/* InstanceNorm. */
#include "sweep.h"

Suite *instancenorm_suite(void);

static const char *const lines[] = {
    "+instancenorm_train x=f32 n=65537 c=3 hw=2",
    "+instancenorm_train x=bf16 w=f32 n=131073 c=1 hw=2",
    "+instancenorm_backward x=f32 n=65537 c=3 hw=2",
    "+instancenorm_backward x=bf16 w=f32 n=131073 c=1 hw=2 layout=nhwc",
    "+instancenorm_train x=f32 n=2 c=1 hw=500001",
    "+instancenorm_backward x=f32 n=2 c=1 hw=500001",
    "+instancenorm_train x=f32 n=2 c=131073 hw=2",
    "+instancenorm_backward x=f32 n=2 c=131073 hw=2 layout=nhwc",
    "+instancenorm_train x=f32 n=2 c=2 hw=65537 data=ratio6",
    "+instancenorm_backward x=f32 n=2 c=2 hw=65537 data=ratio6",
    "+instancenorm_backward x=f32 n=2 c=2 hw=65537 data=ratio6 null=mean_lo layout=nhwc",
    "+instancenorm_train x=f32 n=2 c=2 hw=65537 data=outlier eps=0 layout=nhwc",
    "+instancenorm_infer x=f32 n=65537 c=3 hw=1",
    "+instancenorm_infer x=bf16 w=f32 n=2 c=131073 hw=1 layout=nhwc",
    "+instancenorm_backward x=f32 n=65537 c=3 hw=1 flags=frozen,accumulate",
    "+instancenorm_backward x=f16 n=3 c=131073 hw=1 flags=frozen layout=nhwc",
    "instancenorm_train x=f32 n=3 c=7 hw=40 running=nan momentum=1",
    NULL,
};

Suite *instancenorm_suite(void)
{
    static const Sweep sweep = { INSTANCENORM, lines };
    return sweep_suite(&sweep);
}
