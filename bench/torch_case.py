"""A case of torch_peer.py: what its line says, the tensors, the calls of both sides, and whether the library's is right."""

import math

import torch

import library
from torch_contestants import eager, several

DTYPES = {"f32": (0, torch.float32), "f16": (1, torch.float16), "bf16": (2, torch.bfloat16), "f64": (3, torch.float64)}
KNOWN = set("x w null eps p running layout groups rows cols n c hw seed momentum threads backend add drop flags".split())
ROW_WISE = ("layernorm", "rmsnorm")


class NotForPyTorch(Exception):
    pass


def pass_of(line):
    """What the passes of a layer have in common, so that they share a compiled function."""
    op, *words = line.split()
    norm, direction = op.split("_")
    field = dict(word.split("=", 1) for word in words)
    field["add"] = sorted(part.removeprefix("d") for part in field.get("add", "").split(","))
    field["null"] = [name for name in field.get("null", "").split(",") if name != "dx"]
    return f"{norm} {direction == 'infer'} {field}"


class Shape:
    """What a line says, as both sides need it."""

    def __init__(self, line):
        self.op, *words = line.split()
        field = dict(word.split("=", 1) for word in words)
        self.norm, self.direction = self.op.split("_")
        self.x, self.w = field["x"], field.get("w", field["x"])
        (self.x_code, self.x_type), (self.w_code, self.w_type) = DTYPES[self.x], DTYPES[self.w]
        self.null = field.get("null", "").split(",")
        self.eps, self.p = float(field.get("eps", 1e-5)), float(field.get("p", 0.5))
        self.running = field.get("running", "0") != "0"
        self.nhwc = field.get("layout") == "nhwc"
        self.groups = int(field.get("groups", 1))
        if self.norm in ROW_WISE:
            self.rows, self.channels = int(field["rows"]), int(field["cols"])
            self.dims = (self.rows, self.channels)
        else:
            self.n, self.channels, hw = (int(field[k]) for k in ("n", "c", "hw"))
            height = max(h for h in range(1, math.isqrt(hw) + 1) if hw % h == 0)
            self.dims, self.hw = (self.n, self.channels, height, hw // height), hw
        self.count = math.prod(self.dims)
        self.add, self.drop = set(field["add"].split(",")) if "add" in field else set(), float(field.get("drop", 0))
        self.adds = bool(self.add) or self.drop > 0
        if self.add and self.norm not in ROW_WISE:
            raise NotForPyTorch(f"PyTorch has no {self.norm} with {', '.join(self.add)}")
        unknown = set(field) - KNOWN
        if unknown:
            raise NotForPyTorch(f"PyTorch has no {', '.join(unknown)}")
        self.backward = self.direction == "backward"
        self.given = field.get("flags") == "given_mask"  # which is what PyTorch does
        if "flags" in field and not self.given:
            raise NotForPyTorch(f"PyTorch has no {field['flags']}")
        self.masked = self.norm == "dropout" and (self.given if self.backward else "mask" not in self.null)
        self.sum_wanted = ("dsum" if self.backward else "sum") in self.add
        self.residual = ("dresidual" if self.backward else "residual") in self.add
        self.key = pass_of(line)

    def group(self):
        return self.norm, self.x, self.w, self.nhwc, self.adds

    def bytes(self):
        mask = self.count / 8 if self.masked else 0
        passes = 3 if self.backward and self.norm != "dropout" else 2
        passes += self.residual + self.sum_wanted - (self.backward and "dx" in self.null)
        return passes * torch.empty(0, dtype=self.x_type).element_size() * self.count + mask

    def what(self):
        common = {"x_dtype": self.x_code}
        if self.norm != "dropout":
            common.update(w_dtype=self.w_code, eps=self.eps)
        if self.norm in ROW_WISE:
            return {**common, "rows": self.rows, "cols": self.channels, "p": self.drop}
        common.update(n=self.n, c=self.channels, hw=self.hw, layout=int(self.nhwc))
        if self.norm == "dropout":
            return {**common, "p": self.p, "flags": library.GIVEN_MASK * self.given}
        return {**common, "groups": self.groups} if self.norm == "groupnorm" else {**common, "momentum": 0.1}

    def slots(self):
        if self.norm in ROW_WISE:
            return self.rows
        return {"groupnorm": self.n * self.groups, "batchnorm": self.channels,
                "instancenorm": self.n * self.channels}.get(self.norm, 0)


class Set:
    """The tensors of one call; inputs the same for both sides, the library's outputs its own."""

    def __init__(self, s, device):
        self.s = s

        def random(dims, dtype, scale=1.0, center=0.0):
            return (torch.randn(dims, device=device) * scale + center).to(dtype)

        def activation():
            t = random(s.dims, s.x_type)
            return t.contiguous(memory_format=torch.channels_last) if s.nhwc and t.dim() == 4 else t
        self.x = activation().requires_grad_("dx" not in s.null)
        self.dy = activation() if s.backward else None
        self.residual = activation().requires_grad_() if s.residual else None
        self.dsum = activation() if s.backward and s.sum_wanted else None
        self.sum = torch.empty_like(self.x) if (s.backward and s.adds) or s.sum_wanted else None
        self.dresidual = torch.empty_like(self.x) if s.backward and s.residual else None
        # In values of x's dtype, PyTorch's, and as the library wants them.
        self.row_scale = random(s.rows, s.x_type, 0.5, 1) if "row_scale" in s.add else None
        self.col_scale = random(s.channels, s.x_type, 0.5, 0.5) if "col_scale" in s.add else None
        affine = s.norm != "dropout"
        self.w = random(s.channels, s.w_type, 0.5, 1).requires_grad_() if affine and "gamma" not in s.null else None
        self.b = random(s.channels, s.w_type).requires_grad_() \
            if affine and s.norm != "rmsnorm" and "beta" not in s.null else None
        stat = torch.float64 if s.x == "f64" else torch.float32
        wanted = s.running or s.direction == "infer"
        self.moving = [random(s.channels, stat), random(s.channels, stat).abs() + 0.25] if wanted else [None, None]
        self.moved = [t.clone() if t is not None else None for t in self.moving]  # PyTorch moves its own
        self.our_row_scale = None if self.row_scale is None else self.row_scale.to(stat)
        self.our_col_scale = None if self.col_scale is None else self.col_scale.to(s.w_type)
        self.out = torch.empty_like(self.x)
        self.mean, self.rstd = (torch.empty(s.slots(), dtype=stat, device=device) for _ in range(2))
        self.mean_lo = None if "mean_lo" in s.null else torch.empty_like(self.mean)
        self.dw = torch.empty_like(self.w) if self.w is not None and s.backward else None
        self.db = torch.empty_like(self.b) if self.b is not None and s.backward else None
        self.mask = torch.empty((s.count + 7) // 8, dtype=torch.uint8, device=device) if s.masked else None

    def tensors(self):
        return [t for t in [*vars(self).values(), *self.moving, *self.moved] if isinstance(t, torch.Tensor)]

    def inputs(self, moved=None):
        """Of PyTorch's functions."""
        added = [self.residual, self.row_scale, self.col_scale] if self.s.adds else []
        return [self.x, self.w, self.b, *(moved or self.moved), *added]

    def arriving(self):
        """The gradients that come back to what PyTorch's functions return."""
        return [self.dy] if self.dsum is None else [self.dy, self.dsum]

    def ours(self, backend, device, threads):
        """The library's call, and for a backward pass the forward call before it."""
        s = self.s

        def make(direction, **args):
            return library.Call(f"{s.norm}_{direction}", s.what(), backend, device, threads=threads, **args)
        if s.norm == "dropout":
            source = self.dy if s.backward else self.x
            first = make("forward", x=self.x, y=self.out, mask=self.mask, seed=1) if s.backward and s.given else None
            return first, make(s.direction, x=source, y=self.out, mask=self.mask, seed=1)
        if s.norm == "rmsnorm":
            forward = {"x": self.x, "gamma": self.w, "y": self.out, "rrms": self.rstd}
            backward = {"dy": self.dy, "x": self.x, "gamma": self.w, "rrms": self.rstd, "dx": self.out, "dgamma": self.dw}
        else:
            statistics_ = {"mean": self.mean, "rstd": self.rstd, "mean_lo": self.mean_lo}
            forward = {"x": self.x, "gamma": self.w, "beta": self.b, "y": self.out}
            backward = {"dy": self.dy, "x": self.x, "gamma": self.w, "dx": self.out, "dgamma": self.dw, "dbeta": self.db,
                        **statistics_}
            if s.direction == "infer":
                forward.update(running_mean=self.moving[0], running_var=self.moving[1])
            else:
                forward.update(statistics_)
                if s.running:
                    forward.update(running_mean_in=self.moving[0], running_var_in=self.moving[1],
                                   running_mean_out=self.moving[0], running_var_out=self.moving[1])
        if s.adds:
            same = {"row_scale": self.our_row_scale, "col_scale": self.our_col_scale, "seed": 1}
            forward.update(same, residual=self.residual, sum=self.sum)
            backward.update(same, x=None, sum=self.sum, dsum=self.dsum, dresidual=self.dresidual)
        if s.backward and "dx" in s.null:
            backward["dx"] = None
        train = "train" if s.norm in ("batchnorm", "instancenorm") else "forward"
        if s.backward:
            return make(train, **forward), make("backward", **backward)
        return None, make(s.direction, **forward)


# ---- right before fast ----

def kept_by_us(s, device):
    """What the library's dropout multiplies by: PyTorch's draws other numbers."""
    code, real = DTYPES["f64" if s.x == "f64" else "f32"]
    kept = torch.ones(s.dims, device=device, dtype=real)
    what = {"x_dtype": code, "n": 1, "c": 1, "hw": s.count, "p": s.drop}
    backend = library.CUDA if device == "cuda" else library.CPU
    call = library.Call("dropout_forward", what, backend, device, x=kept, y=kept, seed=1)
    call.run(torch.cuda.current_stream().cuda_stream if device == "cuda" else None)
    return kept.double()


def in_double(s, one):
    """What outputs() should be, by PyTorch in double; channels first: instance_norm's gradients of a single sample with a dy
    channels last are wrong in PyTorch 1.13 to 2.15. What is normalized is the sum as the library stores it, to the bit."""
    def exact(t):
        return None if t is None else t.detach().double().contiguous().requires_grad_(t.requires_grad)
    x, w, b, m, v, *added = (exact(t) for t in one.inputs())
    kept = kept_by_us(s, one.x.device.type) if s.drop else None

    def rounded(t, dtype=None):  # its gradient is not
        real = t if s.x == "f64" else t.float()
        return t + (real.to(dtype or real.dtype).double() - t).detach()
    function = eager(s, lambda t, p: t * kept, rounded)
    made = several(function(x, w, b, m, v, *added))
    if not s.backward:
        return [t.detach() for t in made]
    leaves = [t for t in (x, *added[:1], w, b) if t is not None and t.requires_grad]
    return torch.autograd.grad(made, leaves, [exact(t).detach() for t in one.arriving()])


def outputs(s, one):
    """The library's by name, activations first."""
    if not s.backward:
        return {"y": one.out, **({"sum": one.sum} if s.sum_wanted else {})}
    wanted = {"dx": one.out if one.x.requires_grad else None, "dresidual": one.dresidual, "dgamma": one.dw, "dbeta": one.db}
    return {name: t for name, t in wanted.items() if t is not None}


def units_off(got, want):
    """The largest error in units of the last place of the largest value; rounding alone makes up to half a unit."""
    scale = want.abs().max().clamp(min=1e-30)
    step = torch.finfo(got.dtype).eps * torch.exp2(torch.floor(torch.log2(scale)))
    return float((got.double() - want).abs().max() / step)


def check(s, one):
    """None or what is wrong with the library's outputs."""
    if s.norm == "dropout":
        source = (one.dy if s.backward else one.x).detach().double()
        kept = one.out.detach().double() != 0
        share = float(kept.double().mean())
        error = float((one.out.double() - source / (1 - s.p))[kept].abs().max())
        bound = 2 * torch.finfo(s.x_type).eps * float(source.abs().max()) / (1 - s.p)
        good = abs(share - (1 - s.p)) < 6 / math.sqrt(s.count) + 1e-6 and error <= bound
        return None if good else f"kept {share}, error {error}"
    # Of gradients, what the header promises of sums of products of normal numbers, and the rounding to their dtype.
    terms = s.count / s.channels
    for (name, got), want in zip(outputs(s, one).items(), in_double(s, one)):
        if name not in ("dgamma", "dbeta"):
            error, bound = units_off(got, want), 2 if got.element_size() == 2 else 64
            if not error <= bound:
                return f"{name} is off by {error:.3g} units in the last place"
            continue
        error = float((got.double() - want).abs().max())
        bound = (8 + math.log2(terms)) * 2 ** -24 * terms + torch.finfo(got.dtype).eps * float(want.abs().max())
        if not error <= bound:
            return f"{name} is off by {error:.3g}, allowed {bound:.3g}"
    return None
