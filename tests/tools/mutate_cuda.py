#!/usr/bin/env python3
"""Breaks the CUDA kernels on purpose and asks whether a test on the emulator notices: first every synchronization statement
is deleted in turn, then small mechanical mistakes are made in what runs on the device.

    mutate_cuda.py [--count 60] [--seed 1] [--sync] [--work build/mutate-cuda] [--minutes 0]

Kernels are built for two pairs of dtypes (WF_FEW_DTYPES), and the tests are those of the operations whose kernels became
others: every variant in several schedules, the operations' suites, the meter, the failing calls, ASan and UBSan, TSan (first
where a synchronization was deleted). Resumable: what is known of a file as it is is kept in --work/results.json; the table
goes to tests/mutation-cuda.md. Which mistakes are made is drawn by a hash of each, so that a change elsewhere leaves them the
same. --sync stops behind the synchronization; --minutes is when to stop before the next mutant.
"""

import argparse
import glob
import hashlib
import os
import re
import shutil
import time

import mutate

TABLE = os.path.join(mutate.ROOT, "tests/mutation-cuda.md")
HEAD = ("`make mutate-sync`: every synchronization statement of src/cuda deleted in turn, then mechanical mistakes in what runs "
        "on the device (seed {seed}), one at a time; the tests run on the emulator. {done} tried, {killed} noticed, {missed} "
        "not. A mistake that does not compile, or compiles to the same kernels, is drawn anew.")
SYNC = (r"\b(?:dev::)?(?:__syncthreads|__syncwarp|cluster_sync|cp_async_commit|cp_async_wait<[^;>]*>)"
        r"\s*\([^;]*\);")
OPERATIONS = {"layernorm": ["layernorm", "rmsnorm"], "channelnorm": ["groupnorm", "instancenorm", "batchnorm"],
              "dropout": ["dropout"], "fold": ["fold"]}
DIRECTIONS = {"forward": ["forward", "train", "infer"], "backward": ["backward"], "of": ["batchnorm", "layernorm"]}
CPU_SECONDS, LIMIT = 40, 900  # of a process; of a command on the clock. A mutant that loops for ever is noticed, too
BUILD = "build-few"
FLAGS = "$(EMU_BASE) -Wno-error -g0 -O1 -DWF_FEW_DTYPES"
SANITIZED = f"{FLAGS} -fno-omit-frame-pointer -fsanitize="
MAKE = ["make", "-s", "-j2", "ISAS=baseline", f"BUILD={BUILD}", f"EMU_FLAGS_plain={FLAGS}",
        f"EMU_FLAGS_tsan={SANITIZED}thread -O0 -DEMU_TSAN",
        f"EMU_FLAGS_asan={SANITIZED}address,undefined -fno-sanitize-recover=all -DEMU_ASAN"]
ENVIRONMENT = {"WELFORD_TEST_FEW_DTYPES": "1", "WELFORD_TEST_BACKEND": "cuda", "WELFORD_TEST_QUICK": "1",
               "OMP_WAIT_POLICY": "passive"}


# ---- the mistakes ----


def sources():
    """The kernels and what they share; device.cuh holds nothing but the two machines' own primitives."""
    files = glob.glob("src/cuda/*_cuda.cu") + glob.glob("src/cuda/*.cuh") + glob.glob("src/cuda/prim/*.cuh")
    for path in sorted(f for f in files if not f.endswith("device.cuh")):
        with open(path, encoding="utf-8") as stream:
            text = stream.read()
        yield path, text, mutate.code_only(text)


def deletions():
    for path, text, code in sources():
        for m in re.finditer(SYNC, code):
            yield mutate.mutant_of("deleted_synchronization", path, text, m.start(), m.end(), ";")


def device_code(code):
    """The code with all but the bodies of device functions blanked, at the same offsets."""
    spans, end = [], 0
    for m in re.finditer(r"\b(?:WF_ON_DEVICE|WF_HOST_DEVICE|__global__)\b[^;{]*", code):
        if m.start() < end or m.end() == len(code) or code[m.end()] == ";":
            continue
        depth, end = 1, m.end() + 1
        while depth:
            depth += {"{": 1, "}": -1}.get(code[end], 0)
            end += 1
        spans.append((m.end(), end))
    blank = re.sub(r"[^\n]", " ", code)
    parts, at = [], 0
    for begin, end in spans:
        parts += [blank[at:begin], code[begin:end]]
        at = end
    return "".join(parts) + blank[at:]


def mechanical(seed):
    """One of each operator in turn, in the order of their hashes."""
    lists = {}
    for path, text, code in sources():
        for operator in mutate.OPERATORS:
            for start, end, new in operator(device_code(code)):
                mutant = mutate.mutant_of(operator.__name__, path, text, start, end, new)
                words = (str(seed), operator.__name__, path, mutant["text"], mutant["old"], new)
                if text[start:end] == code[start:end] and not re.fullmatch(SYNC, text[start:end]):
                    lists.setdefault(operator, []).append((hashlib.sha256("|".join(words).encode()).hexdigest(), start, mutant))
    for operator in lists:
        lists[operator].sort(key=lambda entry: entry[:2])
    for turn in range(max(map(len, lists.values()))):
        for operator in mutate.OPERATORS:
            if turn < len(lists[operator]):
                yield lists[operator][turn][2]


# ---- trying one ----


# By mode, the tests in turn: a name, the program, its arguments (none: the operations' suites), more of the environment.
TESTS = {
    "tsan": [("TSan", "check_cuda", ["cuda_sanitized"], {"CK_FORK": "no", "TSAN_OPTIONS": "halt_on_error=1"})],
    "plain": [("schedules", "check_cuda", ["cuda_schedules"], {}), ("suites", "check", [], {}),
              ("meter", "check_cuda", ["cuda_meter"], {}), ("bits", "check", ["bits"], {}),
              ("faults", "check_cuda", ["cuda_faults"], {})],
    "asan": [("ASan and UBSan", "check_cuda", ["cuda_sanitized"], {})],
}


def make(tree, mode):
    targets = {f"{BUILD}/emu/{mode}/{program}" for _, program, _, _ in TESTS[mode]}
    return mutate.run([*MAKE, *sorted(targets)], LIMIT, tree)[0] == 0


def objects(tree, mode):
    """What the kernels have been compiled to: bytes by path."""
    contents = {}
    for path in sorted(glob.glob(os.path.join(tree, BUILD, f"emu/{mode}/src/cuda/*.o"))):
        with open(path, "rb") as stream:
            contents[path] = stream.read()
    return contents


def operations_of(paths):
    """The operations whose kernels are in these objects: layernorm_forward_cuda.o, dropout_cuda.o, cuda.o."""
    names = []
    for path in paths:
        problem, _, direction = os.path.basename(path).replace("_cuda.o", "").partition("_")
        for norm in OPERATIONS.get(problem, sum(OPERATIONS.values(), [])):
            names += [f"{norm}_{d}" for d in DIRECTIONS.get(direction, sum(DIRECTIONS.values(), []))]
    return sorted(set(names))


def run_test(tree, mode, test, operations):
    """None if it passes, or (name of the test, what failed, what the emulator or the sanitizer called it)."""
    name, program, arguments, environment = test
    norms = [norm for group in OPERATIONS.values() for norm in group if any(norm in o for o in operations)]
    environment = {**environment, "WELFORD_TEST_OPS": " ".join(operations)}
    os.environ.update(environment)
    status, output = mutate.run(["prlimit", f"--cpu={CPU_SECONDS}", f"{BUILD}/emu/{mode}/{program}", *(arguments or norms)],
                                LIMIT, tree)
    for variable in environment:
        del os.environ[variable]
    if status == 0:
        return None
    found = re.search(r"EMULATOR ([\w.-]+)|(data race|AddressSanitizer|runtime error)", output)
    return (name, "time limit" if status is None else mutate.failing_test(output),
            found[1] or found[2] if found else "results")


class Tree:
    """A copy of the sources. What is built of it without a mistake is kept, and every test that fails must pass there. What
    is built of it with one, by a run that was ended then, is thrown away: it may be newer than the source."""

    def __init__(self, work):
        self.path = os.path.join(work, "tree")
        self.mistaken = os.path.join(work, "mistaken")
        self.originals, self.trusted = {}, set()
        mutate.copy_sources(self.path)
        if os.path.exists(self.mistaken):
            shutil.rmtree(os.path.join(self.path, BUILD, "emu"), ignore_errors=True)
            os.remove(self.mistaken)

    def build(self, mode):
        if mode not in self.originals:
            if not make(self.path, mode):
                raise SystemExit(f"{mode}: does not compile without a mistake")
            self.originals[mode] = objects(self.path, mode)

    def first_failure(self, mutant, mode):
        """None, a result's name, or what run_test() says of the first test that fails."""
        self.build(mode)
        path = os.path.join(self.path, mutant["path"])
        times, failure, test = os.stat(path), None, None
        open(self.mistaken, "w", encoding="utf-8").close()
        with mutate.mistake(mutant, self.path):
            compiled = make(self.path, mode)
            changed = [o for o, content in objects(self.path, mode).items() if content != self.originals[mode][o]]
            for test in TESTS[mode] if compiled and changed else []:
                failure = run_test(self.path, mode, test, operations_of(changed))
                if failure:
                    break
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        for name, content in objects(self.path, mode).items():
            if content != self.originals[mode][name]:
                with open(name, "wb") as stream:
                    stream.write(self.originals[mode][name])
        os.remove(self.mistaken)
        if not compiled or not changed:
            return "same code" if compiled else "did not compile"
        if failure and test[0] not in self.trusted:
            self.trusted.add(test[0])
            if not make(self.path, mode) or run_test(self.path, mode, test, operations_of(["cuda.o"])):
                raise SystemExit(f"{test[0]} fails without a mistake")
        return failure


def attempt(mutant, tree):
    sync, began = mutant["operator"] == "deleted_synchronization", time.time()
    for mode in ["tsan", "plain", "asan"] if sync else ["plain", "asan", "tsan"]:
        failure = tree.first_failure(mutant, mode)
        if isinstance(failure, str):
            return {"result": failure}
        if failure:
            return {"result": "killed", "by": f"{failure[0]}: {failure[1]}", "effort": failure[2],
                    "seconds": round(time.time() - began)}
    return {"result": "survived", "seconds": round(time.time() - began)}


def key(mutant, digests):
    """By the file's text: what is known of another is not known of this."""
    if mutant["path"] not in digests:
        with open(mutant["path"], "rb") as stream:
            digests[mutant["path"]] = hashlib.sha256(stream.read()).hexdigest()[:16]
    return f"{digests[mutant['path']]}|{mutate.key(mutant)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sync", action="store_true")
    parser.add_argument("--work", default="build/mutate-cuda")
    parser.add_argument("--minutes", type=float, default=0)
    options = parser.parse_args()
    os.chdir(mutate.ROOT)
    os.environ.update(ENVIRONMENT)
    mutate.TABLE = TABLE
    work, began = os.path.abspath(options.work), time.time()
    os.makedirs(work, exist_ok=True)
    record = os.path.join(work, "results.json")
    known = mutate.read_results(record)
    tree = Tree(work)

    tried, results, digests, wanted = [], {}, {}, 0 if options.sync else options.count
    for mutant in [*deletions(), *mechanical(options.seed)]:
        sync = mutant["operator"] == "deleted_synchronization"
        if not sync and wanted == 0:
            break
        name = key(mutant, digests)
        new = name not in known
        if new:
            if options.minutes and time.time() - began > 60 * options.minutes:
                break
            known[name] = attempt(mutant, tree)
            mutate.write_results(record, known)
        r = results[mutate.key(mutant)] = known[name]
        print(f"{mutant['path']}:{mutant['line']}: {mutant['operator']}: {mutant['old']!r} -> {mutant['new']!r}: "
              f"{r['result']}{' by ' + r['by'] if 'by' in r else ''}{'' if new else ' (known)'}", flush=True)
        if r["result"] in ("did not compile", "same code"):
            continue
        tried.append(mutant)
        wanted -= not sync
        mutate.write_table(tried, results, options.seed, HEAD)


if __name__ == "__main__":
    main()
