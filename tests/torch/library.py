"""libwelford.so through ctypes: the structs of welford.h and its calls: Call made once and run often, call() for one."""

import ctypes

import torch

OK = 0
ACCUMULATE, FROZEN, FEATURES, BIASED, GIVEN_MASK, DRY_RUN = 1, 2, 4, 8, 32, 1 << 16
NCHW, NHWC = 0, 1
CPU, CUDA = 0, 1


def struct(name, *fields):
    """A C struct that begins with its size. A field is 'name' (a pointer) or ('name', type)."""
    full = [("size", ctypes.c_size_t)] + [(f, ctypes.c_void_p) if isinstance(f, str) else f for f in fields]
    return type(name, (ctypes.Structure,), {"_fields_": full})


def fields(kind, names):
    return [(name, kind) for name in names.split()]


INT, UINT, LONG, REAL, WORD = ctypes.c_int, ctypes.c_uint32, ctypes.c_int64, ctypes.c_double, ctypes.c_uint64
ROWS = fields(INT, "x_dtype w_dtype") + fields(UINT, "flags reserved") + \
    fields(LONG, "rows cols x_stride y_stride dx_stride dy_stride") + fields(REAL, "eps")
CHANNELS = fields(INT, "x_dtype w_dtype layout") + fields(UINT, "flags") + fields(LONG, "n c hw")
SUM_OF = [("p", REAL), *fields(LONG, "residual_stride sum_stride")]
MOVING = CHANNELS + fields(REAL, "eps momentum")
WHAT = {
    "layernorm": struct("layernorm", *ROWS, *SUM_OF),
    "rmsnorm": struct("rmsnorm", *ROWS, ("weight_offset", REAL), *SUM_OF),
    "groupnorm": struct("groupnorm", *CHANNELS, ("groups", LONG), ("eps", REAL)),
    "batchnorm": struct("batchnorm", *MOVING),
    "instancenorm": struct("instancenorm", *MOVING),
    "dropout": struct("dropout", *fields(INT, "x_dtype kind layout"), ("flags", UINT), *fields(LONG, "n c hw"),
                      ("p", REAL)),
    "fold": struct("fold", *fields(INT, "x_dtype w_dtype"), *fields(UINT, "flags reserved"),
                   *fields(LONG, "rows cols x_stride y_stride channels"), *fields(REAL, "eps weight_offset")),
}
NORM_BACKWARD = "dy x gamma mean rstd mean_lo dx dgamma dbeta".split()
NORM_FORWARD = "x gamma beta y mean rstd mean_lo".split()
TRAIN = "x gamma beta running_mean_in running_var_in running_mean_out running_var_out y mean rstd mean_lo".split()
INFER = "x gamma beta running_mean running_var y rstd".split()
FOLD = "weight bias gamma beta mean var folded_weight folded_bias".split()
SEED = [("seed", WORD), ("offset", WORD), "seed_ptr", "offset_ptr"]
DROPOUT = ["x", "y", "mask", *SEED]
SUM_FORWARD = ["residual", "sum", "row_scale", "col_scale", *SEED]
SUM_BACKWARD = ["sum", "dsum", "dresidual", "row_scale", "col_scale", *SEED]
WITH = {
    "layernorm_forward": NORM_FORWARD + SUM_FORWARD, "layernorm_backward": NORM_BACKWARD + SUM_BACKWARD,
    "rmsnorm_forward": "x gamma y rrms".split() + SUM_FORWARD,
    "rmsnorm_backward": "dy x gamma rrms dx dgamma".split() + SUM_BACKWARD,
    "groupnorm_forward": NORM_FORWARD, "groupnorm_backward": NORM_BACKWARD,
    "batchnorm_train": TRAIN, "batchnorm_infer": INFER, "batchnorm_backward": NORM_BACKWARD,
    "instancenorm_train": TRAIN, "instancenorm_infer": INFER, "instancenorm_backward": NORM_BACKWARD,
    "dropout_forward": DROPOUT, "dropout_backward": DROPOUT, "fold_batchnorm": FOLD, "fold_layernorm": FOLD,
}
WITH = {name: struct(name, *of) for name, of in WITH.items()}
EXEC = struct("exec", ("backend", INT), ("flags", UINT), "stream", "workspace", ("workspace_size", ctypes.c_size_t),
              "parallel_for", "pool", ("threads", ctypes.c_int32), ("reserved", UINT), ("variant", ctypes.c_char_p))
library = None


def load(path):
    global library
    library = ctypes.CDLL(path)
    library.wf_error_detail.restype = ctypes.c_char_p
    for name in WITH:
        getattr(library, f"wf_{name}_workspace").restype = ctypes.c_size_t


def sized(cls, **values):
    return cls(size=ctypes.sizeof(cls), **values)


def pointer(value):
    """Tensors by their address; None = NULL. Empty tensors may have no address."""
    return (value.data_ptr() or None) if isinstance(value, torch.Tensor) else value


class Call:
    """wf_<name>, made ready: run() only calls, and raises with the library's text unless the status is WF_OK. The tensors
    must outlive it."""

    def __init__(self, name, what, backend=CPU, device="cpu", flags=0, threads=0, **args):
        self.name, self.function = name, getattr(library, f"wf_{name}")
        self.what = sized(WHAT[name.split("_")[0]], **what)
        need = getattr(library, f"wf_{name}_workspace")(ctypes.byref(self.what), backend)
        self.workspace = torch.empty(need, dtype=torch.uint8, device=device)
        self.where = sized(EXEC, backend=backend, flags=flags, threads=threads, workspace=pointer(self.workspace),
                           workspace_size=need)
        self.args = sized(WITH[name], **{key: pointer(value) for key, value in args.items()})

    def run(self, stream=None):
        self.where.stream = stream
        status = self.function(ctypes.byref(self.what), ctypes.byref(self.args), ctypes.byref(self.where))
        if status != OK:
            raise RuntimeError(f"{self.name}: status {status}, {library.wf_error_detail().decode()}")


def call(name, what, flags=0, **args):
    Call(name, what, flags=flags, **args).run()
