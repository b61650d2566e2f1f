#!/usr/bin/env python3
"""Breaks the CUDA kernels on purpose and asks whether a test on the emulator notices: first every synchronization statement
is deleted in turn, then small mechanical mistakes are made.

    mutate_cuda.py [--count 60] [--seed 1] [--sync] [--work build/mutate-cuda] [--minutes 0]

Kernels are built for two pairs of dtypes (WF_FEW_DTYPES). The suites of the operations that have kernels run first, then every
variant in several schedules, then the meter and the failing calls; a deleted synchronization that all of them miss is run
under TSan. Resumable: what is known is kept in --work/results.json; the table goes to tests/mutation-cuda.md. --sync stops
behind the synchronization; --minutes is when to stop before the next mutant.
"""

import argparse
import glob
import hashlib
import os
import re
import time

import mutate

TABLE = os.path.join(mutate.ROOT, "tests/mutation-cuda.md")
HEAD = ("`make mutate-sync`: every synchronization statement of src/cuda deleted in turn, then mechanical mistakes in the "
        "kernels (seed {seed}), one at a time; the tests run on the emulator. {done} tried, {killed} noticed, {missed} not. A "
        "mistake that does not compile, or compiles to the same kernels, is drawn anew.")
SYNC = (r"\b(?:dev::)?(?:__syncthreads|__syncwarp|cluster_sync|cp_async_commit|cp_async_wait<[^;>]*>|__threadfence)"
        r"\s*\([^;]*\);")
SUITES = ["layernorm", "rmsnorm", "groupnorm", "instancenorm", "batchnorm", "dropout"]
LIMIT = 900  # seconds; a mutant that loops for ever is noticed, too
BUILD = "build-few"
FLAGS = "$(EMU_BASE) -Wno-error -DWF_FEW_DTYPES"
MAKE = ["make", "-s", "ISAS=baseline", f"BUILD={BUILD}", f"EMU_FLAGS_plain={FLAGS} -O1 -g0",
        f"EMU_FLAGS_tsan={FLAGS} -O1 -fno-omit-frame-pointer -fsanitize=thread -DEMU_TSAN"]
ENVIRONMENT = {"WELFORD_TEST_FEW_DTYPES": "1", "WELFORD_TEST_BACKEND": "cuda", "WELFORD_TEST_QUICK": "1",
               "OMP_WAIT_POLICY": "passive"}


def sources():
    """The kernels and what they share; device.cuh holds nothing but the two machines' own primitives."""
    files = glob.glob("src/cuda/*_cuda.cu") + glob.glob("src/cuda/*.cuh") + glob.glob("src/cuda/prim/*.cuh")
    return sorted(f for f in files if not f.endswith("device.cuh"))


def deletions():
    for path in sources():
        with open(path, encoding="utf-8") as stream:
            text = stream.read()
        for m in re.finditer(SYNC, mutate.code_only(text)):
            line = text.count("\n", 0, m.start()) + 1
            yield {"operator": "deleted_synchronization", "path": path, "line": line, "start": m.start(), "end": m.end(),
                   "new": ";", "old": m[0], "text": text.splitlines()[line - 1].strip()}


def kernels(tree):
    """A digest of the kernels as built from the tree, None if they do not compile."""
    if mutate.run([*MAKE, f"{BUILD}/emu/plain/check_cuda", f"{BUILD}/emu/plain/check"], LIMIT, tree)[0] != 0:
        return None
    digest = hashlib.sha256()
    for path in sorted(glob.glob(os.path.join(tree, BUILD, "emu/plain/src/cuda/*.o"))):
        with open(path, "rb") as stream:
            digest.update(stream.read())
    return digest.hexdigest()


def tests(suites, sync):
    """What is run in turn: a name, the target to build, the command, its environment."""
    plain = f"{BUILD}/emu/plain/"
    yield "suites", None, [plain + "check", *suites], {}
    for suite in ("cuda_schedules", "cuda_meter", "cuda_faults"):
        yield suite, None, [plain + "check_cuda", suite], {}
    yield "bits", None, [plain + "check", "bits"], {}
    if sync:
        tsan = f"{BUILD}/emu/tsan/check_cuda"
        yield "TSan", tsan, [tsan, "cuda_sanitized"], {"CK_FORK": "no", "TSAN_OPTIONS": "halt_on_error=1"}


def suites_of(path):
    name = os.path.basename(path)
    if name.startswith("layernorm"):
        return SUITES[:2]
    if name.startswith("dropout"):
        return SUITES[5:]
    if name.startswith("channel"):
        return SUITES[2:5]
    return SUITES


def first_failure(tree, suites, sync):
    """(name of the test, what failed, what the emulator called it) of the first that fails, or None."""
    for name, target, command, environment in tests(suites, sync):
        if target and mutate.run([*MAKE, target], LIMIT, tree)[0] != 0:
            continue
        os.environ.update(environment)
        status, output = mutate.run(command, LIMIT, tree)
        for variable in environment:
            del os.environ[variable]
        if status != 0:
            found = re.search(r"EMULATOR ([\w.-]+)|(data race)", output)
            return (name, "time limit" if status is None else mutate.failing_test(output),
                    found[1] or found[2] if found else "results")
    return None


def attempt(mutant, tree, original, has_kernels):
    sync = mutant["operator"] == "deleted_synchronization"
    began = time.time()
    with mutate.mistake(mutant, tree):
        mutated = kernels(tree)
        if mutated is None or (mutated == original and not sync):
            return {"result": "did not compile" if mutated is None else "same code"}
        failure = first_failure(tree, [s for s in suites_of(mutant["path"]) if s in has_kernels], sync)
        if failure:
            return {"result": "killed", "by": f"{failure[0]}: {failure[1]}", "effort": failure[2],
                    "seconds": round(time.time() - began)}
        return {"result": "survived", "seconds": round(time.time() - began)}


def prepare(work, has_kernels):
    tree = os.path.join(work, "tree")
    mutate.copy_sources(tree)
    original = kernels(tree)
    if original is None:
        raise SystemExit("the kernels do not compile without a mistake")
    failure = first_failure(tree, has_kernels, True)
    if failure:
        raise SystemExit(f"{failure[0]} fails without a mistake: {failure[1]}")
    return tree, original


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
    results = mutate.read_results(record)
    with open("Makefile", encoding="utf-8") as stream:
        has_kernels = re.search(r"^CUDA_SUITES \?= (.*)$", stream.read(), flags=re.M)[1].split()
    tree, original = prepare(work, [s for s in SUITES if s in has_kernels])

    mechanical = [] if options.sync else mutate.draw(20 * options.count, options.seed, sources())
    tried, wanted = [], options.count
    for mutant in [*deletions(), *mechanical]:
        sync = mutant["operator"] == "deleted_synchronization"
        if not sync and wanted == 0:
            break
        known = mutate.key(mutant) in results
        if not known:
            if options.minutes and time.time() - began > 60 * options.minutes:
                break
            results[mutate.key(mutant)] = attempt(mutant, tree, original, has_kernels)
            mutate.write_results(record, results)
        r = results[mutate.key(mutant)]
        print(f"{mutant['path']}:{mutant['line']}: {mutant['operator']}: {mutant['old']!r} -> {mutant['new']!r}: "
              f"{r['result']}{' by ' + r['by'] if 'by' in r else ''}{' (known)' if known else ''}", flush=True)
        if r["result"] in ("did not compile", "same code"):
            continue
        tried.append(mutant)
        wanted -= not sync
        mutate.write_table(tried, results, options.seed, HEAD)


if __name__ == "__main__":
    main()
