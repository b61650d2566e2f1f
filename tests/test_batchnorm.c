/* BatchNorm. */
#include "sweep.h"

Suite *batchnorm_suite(void);

static const char *const lines[] = {
    "+batchnorm_train x=f32 n=65537 c=3 hw=1",
    "+batchnorm_train x=bf16 w=f32 n=131073 c=1 hw=2",
    "+batchnorm_backward x=f32 n=65537 c=3 hw=1",
    "+batchnorm_backward x=bf16 w=f32 n=131073 c=1 hw=2 layout=nhwc",
    "+batchnorm_train x=f32 n=2 c=1 hw=500001",
    "+batchnorm_backward x=f32 n=2 c=1 hw=500001",
    "+batchnorm_train x=f32 n=2 c=131073 hw=2",
    "+batchnorm_backward x=f32 n=2 c=131073 hw=2 layout=nhwc",
    "+batchnorm_train x=f32 n=2 c=2 hw=65537 data=ratio6",
    "+batchnorm_backward x=f32 n=2 c=2 hw=65537 data=ratio6",
    "batchnorm_train x=f32 n=4000 c=16 hw=2 eps=0 seed=3",
    "batchnorm_train x=f64 n=4000 c=16 hw=3 eps=0 seed=2",
    "+batchnorm_backward x=f32 n=2 c=2 hw=65537 data=ratio6 null=mean_lo layout=nhwc",
    "+batchnorm_train x=f32 n=2 c=2 hw=65537 data=outlier eps=0 layout=nhwc",
    "batchnorm_train x=f32 n=3 c=3 hw=2049 data=outlier seed=48197",
    "batchnorm_train x=f32 n=1 c=512 hw=128 layout=nhwc data=outlier seed=1",
    "+batchnorm_infer x=f32 n=65537 c=3 hw=1",
    "+batchnorm_infer x=bf16 w=f32 n=2 c=131073 hw=1 layout=nhwc",
    "+batchnorm_backward x=f32 n=65537 c=3 hw=1 flags=frozen,accumulate",
    "+batchnorm_backward x=f16 n=3 c=131073 hw=1 flags=frozen layout=nhwc",
    "batchnorm_backward x=f32 n=3 c=2049 hw=60 layout=nhwc",
    "batchnorm_backward x=f16 n=3 c=2049 hw=120 layout=nhwc flags=frozen",
    "batchnorm_train x=f32 n=3 c=7 hw=40 running=nan momentum=1",
    NULL,
};

Suite *batchnorm_suite(void)
{
    static const Sweep sweep = { BATCHNORM, lines };
    return sweep_suite(&sweep);
}
