/* InstanceNorm's front door: BatchNorm's, with statistics per sample. */
#include "channelnorm.h"

/* The structs begin as BatchNorm's, field for field, so one import serves both. */
#define SAME_BEGINNING(suffix, last, next)                                                                             \
    _Static_assert(offsetof(wf_instancenorm##suffix, next) == sizeof(wf_batchnorm##suffix) &&                          \
                       offsetof(wf_instancenorm##suffix, last) == offsetof(wf_batchnorm##suffix, last),                \
                   "wf_instancenorm" #suffix " begins as wf_batchnorm" #suffix)
SAME_BEGINNING(, slope, scale_offset);
SAME_BEGINNING(_train_args, residual, scale);
SAME_BEGINNING(_infer_args, residual, scale);
SAME_BEGINNING(_backward_args, dresidual, scale);

wf_status wf_instancenorm_train(const wf_instancenorm *what, const wf_instancenorm_train_args *with,
                                const wf_exec *where)
{
    return batchnorm_train("instancenorm_train", false, what, with, where);
}

wf_status wf_instancenorm_infer(const wf_instancenorm *what, const wf_instancenorm_infer_args *with,
                                const wf_exec *where)
{
    return batchnorm_infer("instancenorm_infer", false, what, with, where);
}

wf_status wf_instancenorm_backward(const wf_instancenorm *what, const wf_instancenorm_backward_args *with,
                                   const wf_exec *where)
{
    return batchnorm_backward("instancenorm_backward", false, what, with, where);
}

size_t wf_instancenorm_train_workspace(const wf_instancenorm *what, wf_backend backend)
{
    return batchnorm_train_workspace("instancenorm_train", false, what, backend);
}

size_t wf_instancenorm_infer_workspace(const wf_instancenorm *what, wf_backend backend)
{
    return batchnorm_infer_workspace("instancenorm_infer", false, what, backend);
}

size_t wf_instancenorm_backward_workspace(const wf_instancenorm *what, wf_backend backend)
{
    return batchnorm_backward_workspace("instancenorm_backward", false, what, backend);
}
