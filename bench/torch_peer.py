#!/usr/bin/env python3
"""Times libwelford.so beside PyTorch - eager, torch.compile; on a GPU also cuDNN's and the native BatchNorm, Liger's and
quack's kernels where those are installed - on the same tensors.

    bench/torch_peer.py --library build/libwelford.so --json out.json [bench's options: --suite, --case, --dtype, ...]

Rows are what `bench/bench --list`, found beside the library, makes of the options that are not named here; the JSON is
that tool's too. All contestants of a row take turns, A B C A B C, so ratios are of neighbors in time. On a GPU each sample
replays a CUDA graph of calls that go round sets of tensors larger than twice L2. On the CPU it is a call whose tensors
were flushed from the caches. Exits with 1 if the library was wrong, with 2 where PyTorch is missing."""

import argparse
import ctypes
import importlib
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../tests/torch"))

try:
    import torch
    import library
    from torch_case import NotForPyTorch, Set, Shape, check, pass_of
    from torch_contestants import contestants, several, version_of
except ImportError as missing:
    print(f"torch_peer: {missing}", file=sys.stderr)
    sys.exit(2)

CASE_SECONDS = 100  # after which a contestant is given up
started = time.monotonic()


class TooSlow(Exception):
    pass


def on_alarm(*_):
    raise TooSlow("took too long")


# ---- samples ----

class GpuSample:
    """A CUDA graph of one call per step; what the calls return lives as long, so each has memory of its own."""

    def __init__(self, steps, stream):
        self.graph, self.stream = torch.cuda.CUDAGraph(), stream
        self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        self.calls = len(steps)
        torch.cuda.synchronize()
        self.graph.capture_begin()
        try:
            self.keep = [step() for step in steps]
        finally:
            self.graph.capture_end()

    def time(self):
        self.events[0].record(self.stream)
        self.graph.replay()
        self.events[1].record(self.stream)
        self.events[1].synchronize()
        return self.events[0].elapsed_time(self.events[1]) * 1e-3 / self.calls


class ColdSample:
    """One call; its tensors were flushed, and what it returned last time, whose memory the allocator gives it again."""
    calls = 1
    quiet = None  # libquiet.so

    def __init__(self, step, one):
        self.step, self.one, self.several = step, one, torch.get_num_threads() > 1

    def time(self):
        until = time.perf_counter() + 0.1
        while self.several and time.perf_counter() < until and self.quiet.bench_others_run():
            pass
        self.flush(self.one.tensors())
        start = time.perf_counter()
        made = self.step()
        took = time.perf_counter() - start
        self.flush([t for t in several(made) if t is not None])
        return took

    def flush(self, tensors):
        for t in tensors:
            self.quiet.bench_flush(ctypes.c_void_p(t.data_ptr()), ctypes.c_size_t(t.numel() * t.element_size()))


class WarmSample:
    def __init__(self, steps):
        self.steps, self.calls = steps, len(steps)

    def time(self):
        start = time.perf_counter()
        for step in self.steps:
            step()
        return (time.perf_counter() - start) / self.calls


def sample_of(steps, sets, options, stream):
    if options.device == "cuda":
        return GpuSample(repeated(steps, 2e-4), stream)
    return WarmSample(repeated(steps, 2e-3)) if options.warm else ColdSample(steps[0], sets[0])


def keep_freed_memory():
    """glibc gives large tensors back to the system and asks for new pages, each call, in PyTorch's time. Do not."""
    mallopt, m_trim_threshold, m_mmap_max = ctypes.CDLL(None).mallopt, -1, -4
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, -1)


def peer_steps(s, sets, function):
    """A call per set; a backward pass on a graph of autograd that was recorded beforehand."""
    def leaves(one):
        return [t for t in (one.x, one.residual, one.w, one.b) if t is not None and t.requires_grad]

    def forward(one):
        return function(*one.inputs())
    if not s.backward:
        return [lambda one=one: forward(one) for one in sets]
    # Running statistics of its own: autograd refuses to go back to those that another forward call has moved.
    recorded = [(several(function(*one.inputs([t if t is None else t.clone() for t in one.moved]))), one) for one in sets]
    return [lambda made=made, one=one: torch.autograd.grad(made, leaves(one), one.arriving(), retain_graph=True)
            for made, one in recorded]


def repeated(steps, least):
    """Warmed up, then as often as makes a sample of that many seconds."""
    for step in steps:
        step()
    synchronize()
    start = time.perf_counter()
    for step in steps:
        step()
    synchronize()
    took = time.perf_counter() - start
    return steps * max(1, min(20, math.ceil(least / took)))


def synchronize():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def summary(name, seconds, ratio, calls, size):
    ordered = sorted(seconds)
    n = len(ordered)
    micro = [1e6 * t for t in (ordered[0], ordered[n // 4], statistics.median(ordered), ordered[n - 1 - n // 4],
                               ordered[(n - 1) * 95 // 100])]
    named = {f"{key}_us": round(t, 4) for key, t in zip("min q1 median q3 p95".split(), micro)}
    return {"name": name, **named, "samples": n, "calls": calls, "ratio": round(ratio, 4),
            "gbs": round(size / micro[2] * 1e-3, 2)}


def time_case(s, options, stream, compiled):
    device = options.device
    per_set, count = s.bytes(), 1
    if device == "cuda" and not options.warm:
        cache = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 50 << 20)
        count = max(2, min(128, math.ceil(2.5 * cache / per_set) + 1))
    sets = [Set(s, device) for _ in range(count)]
    backend = library.CUDA if device == "cuda" else library.CPU
    calls = [one.ours(backend, device, torch.get_num_threads()) for one in sets]
    handle = stream.cuda_stream if stream else None
    for before, call in calls:
        if before:
            before.run(handle)
        call.run(handle)
    synchronize()
    wrong = check(s, sets[0])
    if wrong:
        return {"verdict": "wrong", "message": wrong}

    samples, failed = {}, {}
    ours = [lambda call=call: call.run(handle) for _, call in calls]
    samples["welford"] = sample_of(ours, sets, options, stream)
    for name, function in contestants(s, device, compiled):
        signal.alarm(CASE_SECONDS)
        try:
            samples[name] = sample_of(peer_steps(s, sets, function), sets, options, stream)
            samples[name].time()  # what cannot run is to fail here
        except Exception as error:  # the compiler has kinds of its own; a peer that fails is left out
            failed[name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
            print(f"    {name}: {failed[name]}", file=sys.stderr)
        finally:
            signal.alarm(0)
    times = {name: [] for name in samples}
    for _ in range(3):
        for sample in samples.values():
            sample.time()
    spent, enough = 0.0, options.min_time * len(samples)
    late = time.perf_counter() + 5 * enough
    while len(times["welford"]) < 7 or (spent < enough and time.perf_counter() < late and len(times["welford"]) < 200):
        for name, sample in samples.items():
            times[name].append(sample.time())
            spent += times[name][-1] * sample.calls
    ratio = {name: statistics.median(b / a for a, b in zip(times["welford"], of)) for name, of in times.items()}
    return {"verdict": "timed", "check": "double", "bytes": per_set, "failed": failed,
            "times": [summary(name, times[name], ratio[name], samples[name].calls, per_set) for name in samples]}


# ---- the run ----

def copy_rate(device):
    """Bytes per second, read and written, of a large copy."""
    size = 1 << (30 if device == "cuda" else 27)
    a, b = (torch.randint(0, 255, (size,), dtype=torch.uint8, device=device) for _ in range(2))
    best = 0.0
    for _ in range(12):
        synchronize()
        start = time.perf_counter()
        for _ in range(4):
            b.copy_(a)
        synchronize()
        best = max(best, 4 * 2 * size / (time.perf_counter() - start))
    return best


def text_of(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=HERE).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def processor():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as text:
            return next((line.split(":")[1].strip() for line in text if line.startswith("model name")), "")
    except OSError:
        return ""


def environment(options, rate):
    gpu = ("triton", "liger-kernel", "quack-kernels")
    peers = {name: version_of(name) for name in gpu if options.device == "cuda"}
    facts = {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "torch": torch.__version__,
             "library": "%d.%d.%d" % tuple(library.library.wf_version() >> shift & 255 for shift in (16, 8, 0)),
             "commit": options.commit or text_of("git", "rev-parse", "--short", "HEAD"), "device": options.device,
             "cold": not options.warm, "processor": processor(), "threads": torch.get_num_threads(),
             "copy_gbs": round(rate * 1e-9, 1), "peers": {name: version for name, version in peers.items() if version}}
    if options.device == "cuda":
        facts.update(gpu=torch.cuda.get_device_name(0), cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version(),
                     driver=text_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"))
    return facts


def print_row(row, rate):
    head = f"{row['layer']:<16} {row['case']:<78}"
    if row["verdict"] != "timed":
        print(f"{head} {row['verdict']}: {row['message']}", flush=True)
        return
    ours = row["times"][0]
    peers = "  ".join(f"{t['name']} {t['ratio']:.2f}x" for t in row["times"][1:])
    print(f"{head} {ours['median_us']:>9.2f} us {ours['gbs']:>7.1f} GB/s {100e9 * ours['gbs'] / rate:>4.0f} %  {peers}",
          flush=True)


def fields_of(line):
    return {word.split("=")[0] for word in line.split()}


def print_footer(rows):
    ratios = {}
    for row in rows:
        for t in row.get("times", [])[1:]:
            kind = row["case"].split()[0] + (" of a sum" if {"add", "drop"} & fields_of(row["case"]) else "")
            for group in (kind, "all"):
                ratios.setdefault((group, t["name"]), []).append((t["ratio"], row))
    print("\ntimes as long as welford: geometric mean, least")
    for (group, name), found in sorted(ratios.items()):
        mean = math.exp(statistics.fmean(math.log(r) for r, _ in found))
        least, row = min(found, key=lambda pair: pair[0])
        print(f"{group:<28} {name:<8} {mean:>6.2f}x of {len(found):>3}   {least:>5.2f}x {row['layer']}: {row['case']}")


def listed(options, choice):
    """(network, layer, count, case) of every row, those that share a compiled function together."""
    command = [os.path.join(os.path.dirname(options.library), "bench/bench"), "--list", "--backend", options.device,
               "--threads", str(torch.get_num_threads()), *choice]
    if not any(word.startswith(("--suite", "--case", "--shape")) for word in choice):
        command += ["--suite", os.path.join(HERE, "suites/peers.txt")]
    rows, first = [], {}
    for line in subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines():
        suite, layer, count, case = line.split(None, 3)
        rows.append((first.setdefault((suite, pass_of(case)), len(first)), (suite, layer, int(count), case)))
    return [row for _, row in sorted(rows, key=lambda pair: pair[0])]


def heaviest(lines):
    """The shape of each network, dtype and layout that most bytes go through."""
    weight, best = {}, {}
    for suite, _, count, case in lines:
        try:
            s = Shape(case)
        except NotForPyTorch:
            continue
        weight[suite, s.key] = weight.get((suite, s.key), 0) + count * s.bytes()
        group = (suite, *s.group())
        best[group] = max(best.get(group, s.key), s.key, key=lambda key, suite=suite: weight[suite, key])
    return set(best.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--library", required=True, help="with bench/bench and bench/libquiet.so beside it")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="of the CPU (PyTorch's default)")
    parser.add_argument("--quick", action="store_true", help="every third row")
    parser.add_argument("--warm", action="store_true", help="tensors may stay in the cache")
    parser.add_argument("--compile", choices=("all", "some", "none"), default="all",
                        help="rows that torch.compile takes part in; some: the heaviest of each network, dtype and layout")
    parser.add_argument("--budget", type=float, default=330, help="seconds after which nothing more is compiled")
    parser.add_argument("--min-time", type=float, default=0.05, help="seconds of measuring per row and contestant")
    parser.add_argument("--commit", help="of the library, where git is not at hand")
    parser.add_argument("--json", metavar="FILE")
    options, choice = parser.parse_known_args()
    options.library = os.path.abspath(options.library)
    options.compile = options.compile if hasattr(torch, "compile") else "none"
    library.load(options.library)
    if options.device == "cpu":
        ColdSample.quiet = ctypes.CDLL(os.path.join(os.path.dirname(options.library), "bench/libquiet.so"))
        ColdSample.quiet.bench_others_run.restype = ctypes.c_bool
        keep_freed_memory()
    if options.threads:
        torch.set_num_threads(options.threads)
    signal.signal(signal.SIGALRM, on_alarm)
    torch.manual_seed(1)
    if options.compile != "none":
        importlib.import_module("torch._dynamo")
        functorch = importlib.import_module("torch._functorch.config")
        functorch.donated_buffer = False  # a recorded backward pass is run many times
    lines = listed(options, choice)[::3 if options.quick else 1]
    some = heaviest(lines) if options.compile == "some" else None
    rate = copy_rate(options.device)
    facts = environment(options, rate)
    print(json.dumps(facts), flush=True)
    stream = torch.cuda.Stream() if options.device == "cuda" else None
    rows, compiled = [], {}
    for suite, layer, count, line in lines:
        row = {"suite": suite, "layer": layer, "count": count, "case": line}
        try:
            s = Shape(line)
            wanted = options.compile == "all" or (some and s.key in some)
            wanted = wanted and time.monotonic() - started < options.budget
            with torch.cuda.stream(stream):
                row.update(time_case(s, options, stream, compiled if wanted else None))
        except (RuntimeError, ValueError, NotForPyTorch, TooSlow) as error:
            missing = isinstance(error, NotForPyTorch) or "status 2" in str(error)
            row.update(verdict="unsupported" if missing else "failed", message=str(error).splitlines()[0][:200])
        if stream:
            torch.cuda.empty_cache()  # the graphs' own pools
        rows.append(row)
        print_row(row, rate)
        if sys.stderr.isatty():
            left = (time.monotonic() - started) / len(rows) * (len(lines) - len(rows))
            print(f"\r{len(rows)} of {len(lines)}, {left:.0f} s left ", end="\r", file=sys.stderr)
        if options.json:  # after each row: what is done is kept, whatever happens
            with open(options.json, "w", encoding="utf-8") as out:
                out.write('{\n"environment": ' + json.dumps(facts) + ',\n"rows": [\n')
                out.write(",\n".join(json.dumps(r) for r in rows) + "\n]\n}\n")
    print_footer(rows)
    print(f"{len(rows)} rows in {time.monotonic() - started:.0f} s")
    return 1 if any(row["verdict"] in ("wrong", "failed") for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
