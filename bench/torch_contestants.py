"""What torch_peer.py compares with: PyTorch's functions, compiled ones, cuDNN's, and the kernels of Liger and quack where
those are installed. Each is a function of (x, w, b, running mean, running variance) that autograd knows; for a norm of a sum of
(residual, row_scale, col_scale) too, and what it returns is y and, where that is wanted, the sum."""

import importlib

import torch
import torch.nn.functional as F


def optional(name):
    """A module, or None where it is not installed or does not run here."""
    try:
        return importlib.import_module(name)
    except Exception:  # whatever a kernel library raises on a machine it is not for
        return None


def version_of(name):
    try:
        return importlib.import_module("importlib.metadata").version(name)
    except ImportError:  # PackageNotFoundError is one
        return None


def several(made):
    return made if isinstance(made, tuple) else (made,)


def rms_norm(x, w, eps):
    if hasattr(F, "rms_norm"):
        return F.rms_norm(x, x.shape[-1:], w, eps)
    y = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps)
    return y if w is None else y * w


def of_sum(s, norm, dropped, rounded):
    def function(x, w, b, m, v, residual, row_scale, col_scale):
        branch = rounded(dropped(x, s.drop)) if s.drop else x
        if row_scale is not None:
            branch = rounded(branch * row_scale[:, None])
        if col_scale is not None:
            branch = rounded(branch * col_scale)
        total = rounded(branch if residual is None else residual + branch, s.x_type)
        y = norm(total, w, b, m, v)
        return (y, total) if s.sum_wanted else y
    return function


def eager(s, dropped=F.dropout, rounded=lambda t, dtype=None: t):
    """dropped, rounded: dropout, and what becomes of each step on the way to a sum, of the sum to its dtype."""
    training = s.direction != "infer"
    norm = {
        "layernorm": lambda x, w, b, m, v: F.layer_norm(x, (s.channels,), w, b, s.eps),
        "rmsnorm": lambda x, w, b, m, v: rms_norm(x, w, s.eps),
        "groupnorm": lambda x, w, b, m, v: F.group_norm(x, s.groups, w, b, s.eps),
        "batchnorm": lambda x, w, b, m, v: F.batch_norm(x, m, v, w, b, training, 0.1, s.eps),
        "instancenorm": lambda x, w, b, m, v: F.instance_norm(x, m, v, w, b, training, 0.1, s.eps),
        "dropout": lambda x, w, b, m, v: F.dropout(x, s.p),
    }[s.norm]
    return of_sum(s, norm, dropped, rounded) if s.adds else norm


def without_cudnn(function):
    def run(*args):
        with torch.backends.cudnn.flags(enabled=False):
            return function(*args)
    return run


def cudnn(s):
    if s.norm == "batchnorm" and s.direction != "infer":
        yield "native", without_cudnn(eager(s))
        yield "torch.cudnn", lambda x, w, b, m, v: torch.cudnn_batch_norm(x, w, b, m, v, True, 0.1, s.eps)[0]


def liger(s):
    if s.norm == "layernorm" and (module := optional("liger_kernel.ops.layer_norm")):
        yield "liger", lambda x, w, b, m, v: module.LigerLayerNormFunction.apply(x, w, b, s.eps)
    if s.norm == "rmsnorm" and (module := optional("liger_kernel.ops.rms_norm")):
        # Not in place: a recorded backward pass is run many times.
        yield "liger", lambda x, w, b, m, v: module.LigerRMSNormFunction.apply(x, w, s.eps, 0.0, "llama", False)
    if s.norm == "groupnorm" and not s.nhwc and (module := optional("liger_kernel.ops.group_norm")):
        yield "liger", lambda x, w, b, m, v: module.LigerGroupNormFunction.apply(x, w, b, s.channels, s.groups, s.eps)


class QuackLayerNorm(torch.autograd.Function):
    """quack has both passes of LayerNorm, but joins them for RMSNorm only."""

    @staticmethod
    def forward(ctx, x, w, b, eps, module):
        y, rstd, mean = module.layernorm_fwd(x, w, b, eps, return_rstd=True, return_mean=True)
        ctx.module, ctx.biased = module, b is not None
        ctx.save_for_backward(x, w, rstd, mean)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, w, rstd, mean = ctx.saved_tensors
        return *ctx.module.layernorm_bwd(x, w, dy, rstd, mean, ctx.biased), None, None


def quack(s):
    module = optional("quack.rmsnorm")
    if module and s.norm == "rmsnorm":
        yield "quack", lambda x, w, b, m, v: module.rmsnorm(x, w, eps=s.eps)
    if module and s.norm == "layernorm" and s.w == "f32" and hasattr(module, "layernorm_bwd"):
        yield "quack", lambda x, w, b, m, v: QuackLayerNorm.apply(x, w, b, s.eps, module)


def contestants(s, device, compiled):
    """Name and function of every peer. compiled: functions by shape, for both passes share one; None: compile nothing."""
    yield "eager", eager(s)
    if device == "cuda" and not s.adds:
        yield from cudnn(s)
        yield from liger(s)
        yield from quack(s)
    if compiled is not None:
        if s.key not in compiled:
            torch._dynamo.reset()
            compiled.clear()
            compiled[s.key] = torch.compile(eager(s), dynamic=False)
        yield "compile", compiled[s.key]
