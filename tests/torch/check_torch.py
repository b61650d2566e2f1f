#!/usr/bin/env python3
"""Compares libwelford.so with PyTorch, every operation and autograd, and dropout's masks with a Philox in NumPy.

    tests/torch/check_torch.py build/libwelford.so [--only WORD]

PyTorch runs in float64 on the same rounded inputs, so what is measured is the library's error; the bars are those of
the header (units of u = 2^-24; for float64 of 2^-50, since there PyTorch's own error counts too). Exits with 1 on a
mismatch, with 2 where PyTorch is missing."""

import argparse
import itertools
import math
import sys

sys.dont_write_bytecode = True

try:
    import numpy
    import torch
    import torch.nn.functional as F
    from torch.nn.utils import fusion
    from library import ACCUMULATE, BIASED, DRY_RUN, FEATURES, FROZEN, GIVEN_MASK, NCHW, NHWC, call, load
except ImportError as missing:
    print(f"check-torch: {missing}. Install Debian's python3-torch and python3-numpy, or name an interpreter that has "
          "both: make check-torch PYTHON=...", file=sys.stderr)
    sys.exit(2)

DTYPES = {"f32": (0, torch.float32), "f16": (1, torch.float16), "bf16": (2, torch.bfloat16), "f64": (3, torch.float64)}
PAIRS = [("f32", "f32"), ("f64", "f64"), ("f16", "f16"), ("f16", "f32"), ("bf16", "bf16"), ("bf16", "f32")]
STEP = {"f32": -24, "f16": -11, "bf16": -8, "f64": -53}  # half an ulp of 1
LEAST = {"f32": -149, "f16": -24, "bf16": -133, "f64": -1074}


# ---- comparing ----

class Table:
    def __init__(self):
        self.rows, self.failures, self.refused = {}, [], 0

    def add(self, name, quantity, dtype, case, ratio, elements):
        """ratio: the worst error over its bar; anything but <= 1, NaN too, is a failure."""
        row = self.rows.setdefault((name, quantity, dtype), [0, 0, 0.0, 0])
        row[0] += 1
        row[1] += elements
        row[2] = max(row[2], ratio) if ratio == ratio else math.inf
        if not ratio <= 1:
            row[3] += 1
            self.failures.append(f"{name} {quantity} {dtype}: {ratio:.3g} bars; {case}")

    def print(self):
        print(f"{'operation':<22} {'output':<13} {'dtype':<9} {'cases':>6} {'elements':>9} {'worst/bar':>9}")
        for (name, quantity, dtype), (cases, elements, worst, failed) in self.rows.items():
            mark = "  FAILED" if failed else ""
            print(f"{name:<22} {quantity:<13} {dtype:<9} {cases:>6} {elements:>9} {worst:>9.3f}{mark}")
        for failure in self.failures[:40]:
            print("FAILED:", failure)
        cases = sum(row[0] for row in self.rows.values())
        if self.refused:
            print(f"{self.refused} calls that PyTorch {torch.__version__} refuses (empty tensors, eps = 0) were run without "
                  "comparison")
        print(f"{cases - len(self.failures)} passed, {len(self.failures)} failed")


table = Table()


def label(pair):
    return pair[0] if pair[0] == pair[1] else "/".join(pair)


def rounding(values, dtype):
    """Half an ulp of the dtype at |values|."""
    exponent = torch.floor(torch.log2(values.abs().clamp(min=2.0 ** -1000)))
    return torch.exp2(exponent + STEP[dtype]).clamp(min=2.0 ** (LEAST[dtype] - 1))


def compare(name, quantity, pair, case, got, want, bar):
    """bar without the rounding to the output's dtype, which is its tensor's own."""
    got, want = got.double(), want.double().reshape(got.shape)
    bar = bar.reshape(got.shape) if isinstance(bar, torch.Tensor) else torch.full_like(got, bar)
    error = (got - want).abs()
    ratio = torch.where(error == 0, torch.zeros_like(error), error / bar)
    ratio = torch.where(torch.isnan(want) & torch.isnan(got), torch.zeros_like(ratio), ratio)
    if ratio.isnan().any():
        worst = math.nan
    else:
        worst = float(ratio.max()) if ratio.numel() else 0.0
    table.add(name, quantity, label(pair), case, worst, got.numel())


def exactly(name, quantity, pair, case, got, want):
    same = torch.equal(torch.nan_to_num(got.double()), torch.nan_to_num(want.double())) and \
        torch.equal(torch.isnan(got), torch.isnan(want))
    table.add(name, quantity, label(pair), case, 0.0 if same else math.inf, got.numel())


def unit(dtype):
    return 2.0 ** -50 if dtype == "f64" else 2.0 ** -24


# ---- norms, in one form for all of them ----
# Logical tensors are [n, c, hw] (rows: [rows, cols, 1]). A norm is which dimensions share a statistic.

def grouped(norm, x, groups):
    """x as [statistics, elements], and back."""
    n, c, hw = x.shape
    if norm in ("layernorm", "rmsnorm"):
        return x.reshape(n, c * hw), lambda g: g.reshape(n, c, hw)
    if norm == "groupnorm":
        return x.reshape(n * groups, -1) if n * c * hw else x.reshape(n * groups, c // groups * hw), \
            lambda g: g.reshape(n, c, hw)
    if norm == "instancenorm":
        return x.reshape(n * c, hw), lambda g: g.reshape(n, c, hw)
    return x.transpose(0, 1).reshape(c, n * hw), lambda g: g.reshape(c, n, hw).transpose(0, 1)


def broadcast(norm, statistic, shape, groups):
    """[statistics] spread over [n, c, hw]."""
    x = torch.empty(shape, dtype=torch.float64)
    flat, back = grouped(norm, x, groups)
    return back(statistic.double().reshape(-1, 1).expand(flat.shape))


def by_channel(statistic, shape):
    return statistic.double().reshape(1, -1, 1).expand(shape)


def peer(norm, x, gamma, beta, k):
    """PyTorch's own function in float64."""
    n, c, hw = x.shape
    if norm == "layernorm":
        return F.layer_norm(x, (c, hw), None if gamma is None else gamma.reshape(c, hw),
                            None if beta is None else beta.reshape(c, hw), k["eps"])
    if norm == "rmsnorm":
        weight = None if gamma is None else (gamma + k["weight_offset"]).reshape(c, hw)
        if hasattr(F, "rms_norm"):
            return F.rms_norm(x, (c, hw), weight, k["eps"])
        y = x * torch.rsqrt((x * x).mean((1, 2), keepdim=True) + k["eps"])
        return y if weight is None else y * weight
    if norm == "groupnorm":
        if gamma is None and beta is not None:  # the backward pass of PyTorch 1.13 fails without a weight
            gamma = torch.ones_like(beta)
        return F.group_norm(x, k["groups"], gamma, beta, k["eps"])
    running = [None, None] if k["running"] is None else k["running"]
    training = k["training"]
    function = F.instance_norm if norm == "instancenorm" else F.batch_norm
    keyword = {"use_input_stats" if norm == "instancenorm" else "training": training}
    return function(x, *running, weight=gamma, bias=beta, momentum=k["momentum"], eps=k["eps"], **keyword)


def to_layout(x, layout):
    return (x.transpose(1, 2) if layout == NHWC else x).clone(memory_format=torch.contiguous_format)


def from_layout(x, layout, shape):
    n, c, hw = shape
    return x.reshape(n, hw, c).transpose(1, 2) if layout == NHWC else x.reshape(n, c, hw)


class PeerRefuses(Exception):
    """PyTorch raises where the library has an answer: some of its functions take no empty tensor, and since 2.15 its BatchNorm
    no eps of 0 in training."""


class Norm:
    """One case: made from its parameters, run forward and backward by both sides, compared."""

    def __init__(self, norm, pair, shape, groups=1, layout=NCHW, affine="gb", eps=1e-5, momentum=0.1, flags=0,
                 training=True, running=False, mean=0.0, in_place=False, with_lo=True, weight_offset=0.0, padding=0):
        self.__dict__.update(locals())
        self.case = " ".join(f"{key}={value}" for key, value in locals().items() if key != "self")
        generator = torch.Generator().manual_seed(sum(shape) * 1000 + len(self.case))
        (self.x_code, self.x_type), (self.w_code, self.w_type) = DTYPES[pair[0]], DTYPES[pair[1]]
        self.s_type = torch.float64 if pair[0] == "f64" else torch.float32

        def normal(size, center, scale, dtype):
            return (torch.randn(size, generator=generator, dtype=torch.float64) * scale + center).to(dtype)
        self.x = normal(shape, mean, 1, self.x_type)
        self.dy = normal(shape, 0, 1, self.x_type)
        self.gamma = normal(shape[1], 1, 0.5, self.w_type) if "g" in affine else None
        self.beta = normal(shape[1], 0, 1, self.w_type) if "b" in affine and norm != "rmsnorm" else None
        self.old = [normal(shape[1], 0, 3, self.w_type) for _ in range(2)]
        self.moving = [normal(shape[1], 0.5, 1, self.s_type), normal(shape[1], 0, 1, self.s_type).abs() + 0.25]
        self.empty = 0 in shape
        self.by_rows = norm in ("layernorm", "rmsnorm")
        self.constant = norm in ("batchnorm", "instancenorm") and not training

    def what(self):
        n, c, hw = self.shape
        common = {"x_dtype": self.x_code, "w_dtype": self.w_code, "flags": self.flags, "eps": self.eps}
        if self.by_rows:
            stride = c + self.padding if self.padding else 0
            extra = {"weight_offset": self.weight_offset} if self.norm == "rmsnorm" else {}
            return {**common, **extra, "rows": n, "cols": c, "x_stride": stride, "y_stride": stride}
        shape = {**common, "n": n, "c": c, "hw": hw, "layout": self.layout}
        return {**shape, "groups": self.groups} if self.norm == "groupnorm" else {**shape, "momentum": self.momentum}

    def lay_out(self, x):
        if self.padding:
            padded = torch.full((self.shape[0], self.shape[1] + self.padding), math.nan, dtype=x.dtype)
            padded[:, :self.shape[1]] = x[:, :, 0]
            return padded
        return to_layout(x, self.layout)

    def logical(self, x):
        if self.padding:
            assert x[:, self.shape[1]:].isnan().all(), "the gap between rows was written"
            return x[:, :self.shape[1]].reshape(self.shape)
        return from_layout(x, self.layout, self.shape)

    def statistics_count(self):
        n, c, _ = self.shape
        counts = {"groupnorm": n * self.groups, "batchnorm": c, "instancenorm": c if self.constant else n * c}
        return counts.get(self.norm, n)

    def report(self, direction, quantity, got, want, bar):
        compare(f"{self.norm}_{direction}", quantity, self.pair, self.case, got, want, bar)

    def run_peer(self):
        """y, its gradients for dy and the running statistics afterwards, by PyTorch in float64."""
        leaves = [self.x.double()] + [None if t is None else t.double() for t in (self.gamma, self.beta)]
        leaves = [None if t is None else t.requires_grad_() for t in leaves]
        moving = [t.double().clone() for t in self.moving] if self.running or self.constant else None
        k = {"eps": self.eps, "groups": self.groups, "momentum": self.momentum, "training": self.training,
             "running": moving, "weight_offset": self.weight_offset}
        try:
            y = peer(self.norm, *leaves, k)
        except (IndexError, RuntimeError, ValueError) as error:
            if not self.empty and not (self.norm == "batchnorm" and self.eps == 0 and "eps" in str(error)):
                raise
            raise PeerRefuses from None
        wanted = [t for t in leaves if t is not None]
        gradients = dict(zip(map(id, wanted), torch.autograd.grad(y, wanted, self.dy.double())))
        return y.detach(), [None if t is None else gradients[id(t)] for t in leaves], moving

    def true_statistics(self):
        """mean, sd and rstd as [statistics], and spread over x, in float64."""
        if self.constant:
            mean, var = (t.double() for t in self.moving)
            spread = lambda s: by_channel(s, self.shape)
        else:
            flat, _ = grouped(self.norm, self.x.double(), self.groups)
            mean = flat.mean(1) if self.norm != "rmsnorm" else torch.zeros(flat.shape[0], dtype=torch.float64)
            var = ((flat - mean[:, None]) ** 2).mean(1)
            if flat.shape[1] == 0:
                mean, var = torch.zeros(flat.shape[0]).double(), torch.zeros(flat.shape[0]).double()
            spread = lambda s: broadcast(self.norm, s, self.shape, self.groups)
        rstd = torch.where(var + self.eps > 0, 1 / torch.sqrt(var + self.eps), torch.zeros_like(var))
        if not self.constant and self.empty:
            rstd = torch.zeros_like(rstd)
        return mean, torch.sqrt(var), rstd, spread

    def factor(self):
        if self.gamma is None:
            return torch.ones(self.shape, dtype=torch.float64)
        return by_channel(self.gamma.double() + self.weight_offset, self.shape)

    def check_forward(self):
        direction = "infer" if self.constant else "train" if self.norm in ("batchnorm", "instancenorm") else "forward"
        x = self.lay_out(self.x)
        y = x if self.in_place else torch.full_like(x, math.nan)
        saved = {key: torch.full((self.statistics_count(),), math.nan, dtype=self.s_type)
                 for key in ("mean", "rstd", "mean_lo")}
        args = {"x": x, "y": y, "gamma": self.gamma, "beta": self.beta}
        if self.norm == "rmsnorm":
            args = {"x": x, "y": y, "gamma": self.gamma, "rrms": saved["rstd"]}
        elif self.constant:
            args.update(running_mean=self.moving[0], running_var=self.moving[1], rstd=saved["rstd"])
        else:
            args.update(saved)
        after = [torch.full_like(t, math.nan) for t in self.moving]
        if self.running and not self.constant:
            args.update(running_mean_in=self.moving[0], running_var_in=self.moving[1], running_mean_out=after[0],
                        running_var_out=after[1])
        call(f"{self.norm}_{direction}", self.what(), **args)

        want_y, self.gradients, moved = self.run_peer()
        u = unit(self.pair[0])
        mean, sd, rstd, spread = self.true_statistics()
        self.xhat = (self.x.double() - spread(mean)) * spread(rstd)
        beta = 0 if self.beta is None else by_channel(self.beta.double().abs(), self.shape)
        bar = 6 * u * want_y.abs() if self.norm == "rmsnorm" else \
            8 * u * (self.factor().abs() * self.xhat.abs().clamp(min=1) + beta)
        if self.pair[0] == "f64":  # PyTorch's own mean is rounded
            bar = bar + u * spread(mean).abs() * spread(rstd) * self.factor().abs()
        self.report(direction, "y", self.logical(y), want_y, bar + rounding(want_y, self.pair[0]))
        self.report(direction, "rstd", saved["rstd"], rstd, 4 * u * rstd)
        if self.norm != "rmsnorm" and not self.constant:
            self.report(direction, "mean", saved["mean"], mean, u * mean.abs() + 4 * u * sd)
            self.report(direction, "mean+mean_lo", saved["mean"].double() + saved["mean_lo"].double(), mean,
                        4 * u * sd + min(u, 2.0 ** -50) * mean.abs())
        if self.running and not self.constant:
            self.check_running(direction, after, moved, mean, sd, u)
        self.mean = self.moving[0] if self.constant else saved["mean"]
        self.mean_lo, self.rstd, self.true_rstd = saved["mean_lo"], saved["rstd"], spread(rstd)

    def check_running(self, direction, after, moved, mean, sd, u):
        if self.flags & BIASED and not self.empty:  # PyTorch has no such flag: its formula with the biased variance
            per_channel = (sd ** 2).reshape(-1, self.shape[1]).mean(0)
            moved[1] = (1 - self.momentum) * self.moving[1].double() + self.momentum * per_channel
        new = [t.reshape(-1, self.shape[1]).mean(0) if t.numel() else torch.zeros(self.shape[1]).double()
               for t in (mean.abs(), sd, sd ** 2)]
        old = [t.double().abs() for t in self.moving]
        self.report(direction, "running_mean", after[0], moved[0], 4 * u * (old[0] + new[0] + self.momentum * new[1]))
        self.report(direction, "running_var", after[1], moved[1], 8 * u * (old[1] + 2 * new[2]))

    def check_backward(self):
        u, x, dy = unit(self.pair[0]), self.lay_out(self.x), self.lay_out(self.dy)
        dx = dy if self.in_place else torch.full_like(dy, math.nan)
        grads = [t.clone() if self.flags & ACCUMULATE else torch.full_like(t, math.nan) for t in self.old]
        args = {"x": x, "dy": dy, "dx": dx, "gamma": self.gamma, "dgamma": grads[0]}
        if self.norm == "rmsnorm":
            args.update(rrms=self.rstd)
        else:
            args.update(mean=self.mean, rstd=self.rstd, dbeta=grads[1])
            if self.with_lo and not self.constant:
                args.update(mean_lo=self.mean_lo)
        what = self.what()
        if self.by_rows and self.padding:
            what.update(dx_stride=dx.shape[1], dy_stride=dy.shape[1])
        what["flags"] |= FROZEN if self.constant else 0
        call(f"{self.norm}_backward", what, **args)

        # Without mean_lo, or where PyTorch's own mean counts, xhat is off by the rounding of the mean.
        g, xhat, lost = self.dy.double() * self.factor(), self.xhat.abs(), torch.zeros(self.shape, dtype=torch.float64)
        if self.norm != "rmsnorm" and not self.empty and (not self.with_lo or self.pair[0] == "f64"):
            lost = u * ((self.x.double() - self.xhat / self.true_rstd) * self.true_rstd).abs()
        scale, shift = g.abs(), 0
        if not self.constant and not self.empty:
            averages = [broadcast(self.norm, grouped(self.norm, t, self.groups)[0].mean(1), self.shape, self.groups)
                        for t in (g.abs(), g.abs() * xhat)]
            scale = scale + (averages[0] if self.norm != "rmsnorm" else 0) + xhat * averages[1]
            shift = lost * averages[1] + xhat * lost * averages[0]
        want = self.gradients[0]
        bar = self.true_rstd * (16 * u * scale + shift) + rounding(want, self.pair[0])
        self.report("backward", "dx", self.logical(dx), want, bar)

        m = max(2, self.shape[0] * self.shape[2])
        size = xhat if self.norm == "rmsnorm" else xhat.clamp(min=1)
        formulas = [(self.dy.double() * self.xhat).sum((0, 2)), self.dy.double().sum((0, 2))]
        bars = [(8 + math.log2(m)) * u * (self.dy.double().abs() * t).sum((0, 2))
                for t in (size, torch.ones_like(size))]
        bars[0] = bars[0] + (self.dy.double().abs() * lost).sum((0, 2))
        for i, name in enumerate(["dgamma", "dbeta"][:1 if self.norm == "rmsnorm" else 2]):
            # The formula where PyTorch has no gradient: without the parameter; its GroupNorm 1.13 makes NaN of nothing.
            by_formula = self.gradients[1 + i] is None or (self.empty and self.norm == "groupnorm")
            want = formulas[i] if by_formula else self.gradients[1 + i].reshape(-1)
            if self.flags & ACCUMULATE:
                want = want + self.old[i].double()
            bar = bars[i] + rounding(want, self.pair[1]) + (u * want.abs() if self.flags & ACCUMULATE else 0)
            self.report("backward", name, grads[i], want, bar)

    def check(self):
        try:
            self.check_forward()
            self.check_backward()
        except PeerRefuses:
            table.refused += 1
        except (RuntimeError, AssertionError, ValueError) as error:
            table.add(self.norm, "raised", "/".join(self.pair), f"{error}; {self.case}", math.inf, 0)


AFFINE = ("", "g", "b", "gb")


def norm_cases():
    for norm, pair in itertools.product(("layernorm", "rmsnorm"), PAIRS):
        for rows, cols in ((1, 1), (3, 1), (4, 7), (33, 128), (5, 1025), (2, 12345), (130, 3), (0, 5), (3, 0)):
            yield Norm(norm, pair, (rows, cols, 1))
        for affine, flags, in_place, padding in itertools.product(AFFINE, (0, ACCUMULATE), (False, True), (0, 3)):
            yield Norm(norm, pair, (6, 65, 1), affine=affine, flags=flags, in_place=in_place, padding=padding)
        for mean, with_lo, eps in itertools.product((0.0, 1.0, 100.0), (True, False), (0.0, 1e-5, 0.1)):
            yield Norm(norm, pair, (7, 100, 1), mean=mean, with_lo=with_lo, eps=eps)
        if norm == "rmsnorm":
            yield Norm(norm, pair, (9, 64, 1), weight_offset=1.0)
    for pair, layout in itertools.product(PAIRS, (NCHW, NHWC)):
        shapes = ((2, 6, 5), (3, 12, 49), (1, 64, 1), (2, 36, 196), (0, 6, 4), (2, 6, 0))
        for (n, c, hw), groups in itertools.product(shapes, (1, 2, 3, 6)):
            if c % groups == 0:
                yield Norm("groupnorm", pair, (n, c, hw), groups=groups, layout=layout)
        for affine, flags, in_place in itertools.product(AFFINE, (0, ACCUMULATE), (False, True)):
            yield Norm("groupnorm", pair, (3, 8, 17), groups=4, layout=layout, affine=affine, flags=flags,
                       in_place=in_place)
        yield Norm("groupnorm", pair, (3, 35, 33), groups=35, layout=layout, mean=50.0)
    for norm, pair, layout in itertools.product(("batchnorm", "instancenorm"), PAIRS, (NCHW, NHWC)):
        options = {"layout": layout}
        shapes = ((2, 3, 5), (4, 35, 49), (16, 65, 1), (1, 4, 33), (3, 64, 196), (0, 4, 9), (2, 4, 0), (5, 1, 1023))
        for shape, training in itertools.product(shapes, (True, False)):
            if norm == "instancenorm" and shape[2] == 1 and training:
                continue  # one value per statistic: both refuse
            yield Norm(norm, pair, shape, training=training, running=training, **options)
        for momentum, flags in itertools.product((0.0, 0.1, 0.5, 1.0), (0, BIASED)):
            yield Norm(norm, pair, (4, 6, 10), momentum=momentum, flags=flags, running=True, mean=3.0, **options)
        yes_no = (False, True)
        for affine, flags, in_place, training in itertools.product(AFFINE, (0, ACCUMULATE), yes_no, yes_no):
            yield Norm(norm, pair, (3, 8, 17), affine=affine, flags=flags, in_place=in_place, training=training,
                       **options)
        for mean, with_lo, eps in itertools.product((0.0, 100.0), (True, False), (0.0, 1e-3)):
            yield Norm(norm, pair, (6, 5, 40), mean=mean, with_lo=with_lo, eps=eps, **options)


def check_modules():
    """Several steps of torch.nn.BatchNorm*d and InstanceNorm*d, modules and their buffers, momentum=None included."""
    for (kind, size), momentum in itertools.product(
            (("BatchNorm1d", (8, 5)), ("BatchNorm1d", (6, 5, 7)), ("BatchNorm2d", (4, 5, 3, 4)),
             ("BatchNorm3d", (2, 5, 2, 3, 4)), ("InstanceNorm1d", (6, 5, 7)), ("InstanceNorm2d", (4, 5, 3, 4)),
             ("InstanceNorm3d", (2, 5, 2, 3, 4))),
            (0.1, 0.9, 1.0, None)):
        norm = kind[:-2].lower()
        if momentum is None and norm == "instancenorm":
            continue  # PyTorch's instance norms take a number only
        module = getattr(torch.nn, kind)(5, affine=True, track_running_stats=True, momentum=momentum).double()
        moving = [torch.zeros(5), torch.ones(5)]
        case = f"{kind} momentum={momentum} size={size}"
        for step in range(1, 6):
            generator = torch.Generator().manual_seed(step)
            x = (torch.randn(size, generator=generator, dtype=torch.float64) * step + 2).float()
            y = torch.full_like(x, math.nan)
            what = {"x_dtype": 0, "w_dtype": 0, "n": size[0], "c": 5, "hw": math.prod(size[2:]), "eps": module.eps,
                    "momentum": 1 / step if momentum is None else momentum}
            call(f"{norm}_train", what, x=x, y=y, running_mean_in=moving[0], running_var_in=moving[1],
                 running_mean_out=moving[0], running_var_out=moving[1])
            want = module(x.double()).detach()
            compare(f"{norm}_train", "steps", ("f32", "f32"), case, y, want, 32 * 2.0 ** -24 * want.abs().clamp(min=1))
        for i, buffer in enumerate((module.running_mean, module.running_var)):
            compare(f"{norm}_train", "steps", ("f32", "f32"), case, moving[i], buffer,
                    5 * 32 * 2.0 ** -24 * buffer.abs().clamp(min=1))
        module.eval()
        call(f"{norm}_infer", what, x=x, y=y, running_mean=moving[0], running_var=moving[1])
        want = module(x.double()).detach()
        compare(f"{norm}_infer", "module", ("f32", "f32"), case, y, want, 64 * 2.0 ** -24 * want.abs().clamp(min=1))


def check_folds():
    """BatchNorm as torch.nn.utils.fusion folds it into Linear, Conv2d and ConvTranspose2d."""
    for pair, (size, transpose) in itertools.product(
            PAIRS, (((6, 35), False), ((6, 5, 3, 3), False), ((5, 6, 3, 3), True))):
        (x_code, x), (w_code, w) = DTYPES[pair[0]], DTYPES[pair[1]]
        statistic, rows = torch.float64 if pair[0] == "f64" else torch.float32, size[0] * (size[1] if transpose else 1)
        parts = {"weight": (size, x), "bias": (6, x), "mean": (6, statistic), "var": (6, statistic), "gamma": (6, w),
                 "beta": (6, w)}
        generator = torch.Generator().manual_seed(size[1])
        parts = {name: torch.rand(of, generator=generator, dtype=torch.float64).add(0.1).to(dtype)
                 for name, (of, dtype) in parts.items()}
        got = {f"folded_{name}": torch.full_like(parts[name], math.nan) for name in ("weight", "bias")}
        call("fold_batchnorm", {"x_dtype": x_code, "w_dtype": w_code, "rows": rows, "cols": parts["weight"].numel() // rows,
                                "channels": 6, "eps": 1e-5}, **parts, **got)
        weight, bias, mean, var, gamma, beta = (part.double() for part in parts.values())
        wants = fusion.fuse_conv_bn_weights(weight, bias, mean, var, 1e-5, gamma, beta, transpose)
        sizes = wants[0].abs(), ((bias - mean) * gamma).abs() / (var + 1e-5).sqrt() + beta.abs()
        for (name, folded), want, of, bar in zip(got.items(), wants, sizes, (5, 7)):
            compare("fold_batchnorm", name, pair, f"size={size}", folded, want.detach(),
                    bar * unit(pair[0]) * of.detach() + rounding(want.detach(), pair[0]))


# ---- dropout ----

def philox(seed, offset, count):
    """The words of units 0 to count - 1: Philox4x32-10, vectorised over blocks."""
    blocks = numpy.arange((count + 3) // 4, dtype=numpy.uint64)
    low, thirty_two = numpy.uint64(0xffffffff), numpy.uint64(32)
    c = [numpy.full_like(blocks, offset & 0xffffffff), numpy.full_like(blocks, offset >> 32), blocks & low,
         blocks >> thirty_two]
    k = [seed & 0xffffffff, seed >> 32]
    for _ in range(10):
        a, b = numpy.uint64(0xD2511F53) * c[0], numpy.uint64(0xCD9E8D57) * c[2]
        c = [(b >> thirty_two) ^ c[1] ^ numpy.uint64(k[0]), b & low, (a >> thirty_two) ^ c[3] ^ numpy.uint64(k[1]),
             a & low]
        k = [(k[0] + 0x9E3779B9) & 0xffffffff, (k[1] + 0xBB67AE85) & 0xffffffff]
    return numpy.stack(c, 1).reshape(-1)[:count]


ALPHA = 1.7580993408473766


def dropout_case(pair, shape, p, kind, features, layout, seed, offset):
    name, code, dtype = pair[0], *DTYPES[pair[0]]
    n, c, hw = shape
    case = f"shape={shape} p={p} kind={kind} features={features} layout={layout} seed={seed} offset={offset}"
    operation = ("alpha_" if kind else "") + "dropout" + ("_features" if features else "")
    units = n * c if features else n * c * hw
    keep = torch.from_numpy(philox(seed, offset, units) < numpy.uint64(math.floor((1 - p) * 2 ** 32 + 0.5)))
    generator = torch.Generator().manual_seed(seed % 1000)
    x, dy = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    kept = keep.reshape(n, c, 1).expand(shape) if features else from_layout(keep, layout, shape)
    laid_x, laid_dy = to_layout(x, layout), to_layout(dy, layout)
    mask = torch.full(((units + 7) // 8,), 0xa5, dtype=torch.uint8)
    y, dx = torch.full_like(laid_x, math.nan), torch.full_like(laid_dy, math.nan)
    what = {"x_dtype": code, "kind": kind, "layout": layout, "flags": FEATURES if features else 0, "n": n, "c": c,
            "hw": hw, "p": p}
    call("dropout_forward", what, x=laid_x, y=y, mask=mask, seed=seed, offset=offset)
    call("dropout_backward", what, x=laid_dy, y=dx, seed=seed, offset=offset)
    from_mask = torch.full_like(laid_dy, math.nan)
    call("dropout_backward", {**what, "flags": what["flags"] | GIVEN_MASK}, x=laid_dy, y=from_mask, mask=mask)
    exactly(operation, "dx of the mask", (name, name), case, from_mask, dx)
    bits = numpy.packbits(keep.numpy(), bitorder="little")
    exactly(operation, "mask", (name, name), case, mask, torch.from_numpy(bits))

    arithmetic = torch.float64 if name == "f64" else torch.float32
    constant = lambda value: torch.tensor(value, dtype=torch.float64).to(arithmetic)
    if kind == 0:
        scale, shift, dropped = (1 / (1 - p) if p < 1 else 0.0), 0.0, 0.0
    elif p < 1:
        scale = 1 / math.sqrt((ALPHA * ALPHA * p + 1) * (1 - p))
        shift = scale * ALPHA * p
        dropped = shift - scale * ALPHA
    else:
        scale = shift = dropped = 0.0
    product = x.to(arithmetic) * constant(scale)
    want = (product + constant(shift) if kind else product).to(dtype)
    want = torch.where(kept, want, constant(dropped).to(dtype))
    exactly(operation, "y", (name, name), case, from_layout(y, layout, shape), want)

    # PyTorch's autograd through the same decisions.
    leaf = x.double().requires_grad_()
    through = torch.where(kept, leaf * scale + shift, torch.full_like(leaf, dropped))
    gradient, = torch.autograd.grad(through, leaf, dy.double())
    got = from_layout(dx, layout, shape)
    compare(operation, "dx", (name, name), case, got, gradient,
            2 * unit(name) * gradient.abs() + rounding(gradient, name))
    if not kept.all():
        exactly(operation, "dropped dx", (name, name), case, got[~kept], torch.zeros_like(got[~kept]))


def check_dropout():
    inputs = (((3, 5, 49), 0x0123456789abcdef, 42), ((2, 4, 1), 7, 2 ** 64 - 1), ((1, 1, 10007), 0, 0),
              ((0, 3, 4), 1, 1))
    choices = (DTYPES, (0.0, 0.1, 0.5, 0.9, 1.0, 2.0 ** -32), (0, 1), (False, True), (NCHW, NHWC), inputs)
    for name, p, kind, features, layout, (shape, seed, offset) in itertools.product(*choices):
        dropout_case((name, name), shape, p, kind, features, layout, seed, offset)


def most_frequent(t):
    """Of a dropout's output: what dropped elements become."""
    values, counts = t.unique(return_counts=True)
    return values[counts.argmax()]


def check_dropout_statistics():
    """What PyTorch's own dropouts do with other random numbers: the share kept, and the values of kept and dropped."""
    n, c, hw = 64, 256, 64
    torch.manual_seed(1)
    x = torch.randn(n, c, hw) + 3.0  # nothing is near 0
    functions = ((0, False, F.dropout), (0, True, F.dropout2d), (1, False, F.alpha_dropout),
                 (1, True, F.feature_alpha_dropout))
    for (kind, features, function), p in itertools.product(functions, (0.1, 0.25, 0.5, 0.8)):
        y = torch.full_like(x, math.nan)
        what = {"x_dtype": 0, "kind": kind, "flags": FEATURES if features else 0, "n": n, "c": c, "hw": hw, "p": p}
        mask = torch.zeros((n * c * (1 if features else hw) + 7) // 8, dtype=torch.uint8)
        call("dropout_forward", what, x=x, y=y, mask=mask, seed=99, offset=3)
        theirs = function(x.reshape(n, c, 8, 8), p, training=True).reshape(x.shape)
        name, case = f"{function.__name__}", f"p={p}"
        decided = [t != most_frequent(t) for t in (theirs, y)]
        units = n * c * (1 if features else hw)
        sigma = math.sqrt(p * (1 - p) / units)
        for who, kept in zip(("theirs", "ours"), decided):
            share = float(kept.double().mean())
            table.add(name, f"share {who}", "f32", case, abs(share - (1 - p)) / (5 * sigma), x.numel())
        if features:
            for who, kept in zip(("theirs", "ours"), decided):
                whole = kept.reshape(n * c, hw)
                good = bool((whole.all(1) | ~whole.any(1)).all())
                table.add(name, f"whole {who}", "f32", case, 0.0 if good else math.inf, n * c)
        both = decided[0] & decided[1]
        neither = ~decided[0] & ~decided[1]
        bar = 4 * 2.0 ** -24 * theirs.double().abs()
        compare(name, "kept", ("f32", "f32"), case, y[both], theirs[both], bar[both] + 2.0 ** -22)
        compare(name, "dropped", ("f32", "f32"), case, y[neither], theirs[neither], bar[neither])


def check_refusals():
    """Where PyTorch raises, so does the library; and a dry run writes nothing."""
    x = torch.zeros(1, 4)
    what = {"x_dtype": 0, "w_dtype": 0, "n": 1, "c": 4, "hw": 1, "eps": 1e-5, "momentum": 0.1}
    refusals = {
        "one value per channel": (lambda: F.batch_norm(x, None, None, training=True),
                                  lambda: call("batchnorm_train", what, x=x, y=x.clone())),
        "one value per instance": (lambda: F.instance_norm(x.reshape(1, 4, 1)),
                                   lambda: call("instancenorm_train", what, x=x, y=x.clone())),
        "groups": (lambda: F.group_norm(x, 3),
                   lambda: call("groupnorm_forward", {"n": 1, "c": 4, "hw": 1, "groups": 3}, x=x, y=x.clone())),
        "p > 1": (lambda: F.dropout(x, 1.5),
                  lambda: call("dropout_forward", {"n": 1, "c": 4, "hw": 1, "p": 1.5}, x=x, y=x.clone())),
    }
    for name, pair in refusals.items():
        for who, function in zip(("PyTorch", "welford"), pair):
            try:
                function()
                refused = False
            except (RuntimeError, ValueError):
                refused = True
            table.add("refusals", name, who, name, 0.0 if refused else math.inf, 0)
    y = torch.full((1, 4), 5.0)
    call("layernorm_forward", {"rows": 1, "cols": 4, "eps": 1e-5}, flags=DRY_RUN, x=x, y=y)
    exactly("layernorm_forward", "dry run", ("f32", "f32"), "", y, torch.full((1, 4), 5.0))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    parser.add_argument("--only", metavar="WORD", help="what contains this: layernorm, ..., modules, folds, dropout, refusals")
    options = parser.parse_args()
    load(options.library)
    print(f"PyTorch {torch.__version__}, NumPy {numpy.__version__}; RMSNorm: "
          f"{'torch.nn.functional.rms_norm' if hasattr(F, 'rms_norm') else 'the formula, by autograd'}")
    for case in norm_cases():
        if not options.only or options.only in case.norm:
            case.check()
    for check in (check_modules, check_folds, check_dropout, check_dropout_statistics, check_refusals):
        if not options.only or options.only in check.__name__:
            try:
                check()
            except RuntimeError as error:
                table.add(check.__name__, "raised", "-", str(error), math.inf, 0)
    table.print()
    return 1 if table.failures or not table.rows else 0


if __name__ == "__main__":
    sys.exit(main())
