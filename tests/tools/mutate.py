#!/usr/bin/env python3
"""Breaks the library on purpose, one small mechanical mistake at a time, and asks whether a test notices.

    mutate.py [--count 100] [--seed 1] [--quick] [--only N,N...] [--work build/mutate] [--jobs 1]

Mutants are drawn from src/ by a fixed seed, so the list is the same for everybody with the same sources. Each is built in
a copy of the tree with the baseline kernels only (with all, if it makes no difference to those); the quick tests run first,
then all of them. One that does not compile, or compiles to the same library, is no mistake and is drawn anew. What is known
is kept in --work/results.json and not done again; the table goes to tests/mutation.md. --quick leaves the mutants that the
quick tests miss, which take minutes each, for a run without it. A text written into the table's last column, the
explanation of a survivor, stays; where it begins with "equivalent" the full tests are not asked. Time limits are for a
machine that does little else: on a busy one look at those that were noticed by a time limit.
"""

import argparse
import concurrent.futures
import contextlib
import filecmp
import glob
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "../.."))
TABLE = os.path.join(ROOT, "tests/mutation.md")
MISSED = "missed by the quick tests"
QUICK_LIMIT, FULL_LIMIT = 180, 900  # seconds for one suite; a mutant that loops for ever is noticed, too

# ---- what is code ----


def blank(match):
    return re.sub(r"[^\n]", " ", match.group(0))


def code_only(text):
    """The text with comments, strings, preprocessor lines and asserts blanked, at the same offsets."""
    text = re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', blank, text, flags=re.S)
    text = re.sub(r"^[ \t]*#(?!\s*define)(?:\\\n|[^\n])*", blank, text, flags=re.M)
    text = re.sub(r"^[ \t]*#\s*define\s+\w+(?:\([^)]*\))?", blank, text, flags=re.M)
    text = re.sub(r"\b(?:_Static_)?assert\s*\([^;]*;", blank, text)
    return re.sub(r"\b\w*(?:verbose|detail|message|fail)\w*\s*\([^;]*;", blank, text)


# ---- the mistakes: each yields (start, end, replacement) ----

COMPARISONS = {"<": ["<=", ">="], "<=": ["<", ">"], ">": [">=", "<"], ">=": [">", "<="], "==": ["!="], "!=": ["=="]}


def changed_comparison(code):
    for m in re.finditer(r"(?<=\s)(<=|>=|==|!=|<|>)(?=\s)", code):
        for other in COMPARISONS[m[1]]:
            yield m.start(1), m.end(1), other


def constant_off_by_one(code):
    for m in re.finditer(r"(?<![\w.])(\d+)(?=[uU]?[lL]{0,2}\b)(?![\w.]*[.xXeEfp])", code):
        yield m.start(1), m.end(1), str(int(m[1]) + 1)
        if int(m[1]) > 0:
            yield m.start(1), m.end(1), str(int(m[1]) - 1)


OPERAND = r"[A-Za-z_][\w.]*(?:->\w+|\[[^\[\]\n]*\]|\([^()\n]*\))*|\d[\w.]*"


def dropped_term(code):
    for m in re.finditer(rf"(?<=[\w)\]])( [-+*|&^] (?:{OPERAND}))(?=\s*[-+*;,)\]|&^])", code):
        if not re.search(r"\b(?:const|void|char|float|double|int|size_t|u?int\d+_t|wf_\w+|struct \w+)$", code[:m.start()]):
            yield m.start(1), m.end(1), ""


def dropped_statement(code):
    for m in re.finditer(r"(?<=[;{}\n])([ \t]+)((?!return\b|const\b|static\b|typedef\b|struct\b|enum\b|int64_t\b|break\b|case\b)"
                         r"[A-Za-z_*(][^;{}]*(?:=|\()[^;{}]*;)", code):
        if m[2].startswith(("for ", "while ")) or m[2].count("(") != m[2].count(")"):
            continue
        before_equals = m[2].split("=")[0].split("(")[0].split()
        if len(before_equals) == 1 or m[2].split("=")[0].rstrip().endswith(("+", "-", "*", "|", "&", "^")):
            yield m.start(2), m.end(2), ";"


SWAP = {"+": "-", "-": "+", "*": "/", "/": "*"}


def swapped_operands(code):
    for m in re.finditer(rf"({OPERAND}) ([-/]) ({OPERAND})(?=\s*[;,)\]+])", code):
        yield m.start(1), m.end(3), f"{m[3]} {m[2]} {m[1]}"
    for m in re.finditer(r"(?<=[\w)\]]) ([-+*/]) (?=[\w(])", code):
        yield m.start(1), m.end(1), SWAP[m[1]]


def swapped_arguments(code):
    for m in re.finditer(rf"(?<=[(,])(\s*)({OPERAND}),(\s*)({OPERAND})(?=[,)])", code):
        if m[2] != m[4]:
            yield m.start(1), m.end(4), f"{m[1]}{m[4]},{m[3]}{m[2]}"


def negated_condition(code):
    for m in re.finditer(r"\b(?:if|while)\s*(\()", code):
        depth, end = 0, m.start(1)
        while end < len(code):
            depth += {"(": 1, ")": -1}.get(code[end], 0)
            if depth == 0:
                yield m.start(1), end + 1, f"(!{code[m.start(1):end + 1]})"
                break
            end += 1
    for m in re.finditer(r"(?<=[\w)]) (&&|\|\|) (?=[\w(!])", code):
        yield m.start(1), m.end(1), {"&&": "||", "||": "&&"}[m[1]]
    for m in re.finditer(r"= ([\w.>\-\[\]() !=<]+?) (\?)", code):
        yield m.start(1), m.end(1), f"!({m[1]})"


OPERATORS = [changed_comparison, constant_off_by_one, dropped_term, dropped_statement, swapped_operands, swapped_arguments,
             negated_condition]


def mutant_of(name, path, text, start, end, new):
    line = text.count("\n", 0, start) + 1
    return {"operator": name, "path": path, "line": line, "start": start, "end": end, "new": new, "old": text[start:end],
            "text": text.splitlines()[line - 1].strip()}


def draw(count, seed):
    """Endless (for our purposes) draw: first an operator, then one of its places, so that rare operators have their turn."""
    sources = sorted(glob.glob("src/*.c") + glob.glob("src/*.h") + glob.glob("src/common/*.h") + glob.glob("src/cpu/*.[ch]"))
    places = {operator: [] for operator in OPERATORS}
    texts = {}
    for path in sources:
        with open(path, encoding="utf-8") as stream:
            texts[path] = stream.read()
        code = code_only(texts[path])
        for operator in OPERATORS:
            places[operator] += [(path, start, end, new) for start, end, new in operator(code)
                                 if texts[path][start:end] == code[start:end]]
    generator, drawn = random.Random(seed), set()
    while len(drawn) < count:
        operator = generator.choice(OPERATORS)
        place = generator.choice(places[operator])
        if place in drawn:
            continue
        drawn.add(place)
        path, start, end, new = place
        yield mutant_of(operator.__name__, path, texts[path], start, end, new)


# ---- trying one ----


def run(command, limit, cwd, quick=False):
    """(exit status or None when it took too long, output). The whole process group goes when time is up."""
    environment = {**os.environ, "CK_TIMEOUT_MULTIPLIER": "5", **({"WELFORD_TEST_QUICK": "1"} if quick else {})}
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                               start_new_session=True, env=environment)
    try:
        output, _ = process.communicate(timeout=limit)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return None, ""


def failing_test(output):
    """The first failure that Check reports: file:line:F:case:test:n: ..."""
    m = re.search(r"^\S+?([\w.]+):\d+:[FE]:([^:]+):(\w+):\d+:(.*)", output, flags=re.M)
    return "the test program" if not m else m[3] + ", time limit" * bool(re.search("timeout expired|CPU time", m[4]))


# Unused variables and the like are no errors here: they are not how a mistake should be noticed. Wrong types are.
FLAGS = "CFLAGS=-Wno-error -Werror=int-conversion -Werror=incompatible-pointer-types"
SECONDS = {}  # what each suite takes, quick: the fastest go first
ORIGINAL = {}  # digests of the library without a mistake
OPTIMISE = "OPTIMISE=-O1"  # of the library: the same bits in a quarter of the time
ISAS = {"baseline": "ISAS=baseline", "all": "ISAS=baseline avx2 avx512"}


def make(tree, isas, *targets, limit=900):
    return run(["make", "-s", FLAGS, ISAS[isas], OPTIMISE, "CUDA=0", f"BUILD=build-{isas}", *targets], limit, tree)


def library(tree, isas):
    """A digest of the library as built from the tree, None if it does not compile."""
    if make(tree, isas, f"build-{isas}/libwelford.a")[0] != 0:
        return None
    with open(os.path.join(tree, f"build-{isas}/libwelford.a"), "rb") as stream:
        return hashlib.sha256(stream.read()).hexdigest()


@contextlib.contextmanager
def mistake(mutant, tree):
    """The tree has it for as long as this lasts."""
    path = os.path.join(tree, mutant["path"])
    with open(path, encoding="utf-8") as stream:
        text = stream.read()
    with open(path, "w", encoding="utf-8") as stream:
        stream.write(text[:mutant["start"]] + mutant["new"] + text[mutant["end"]:])
    try:
        yield
    finally:
        with open(path, "w", encoding="utf-8") as stream:
            stream.write(text)


def attempt(mutant, tree, quick, full):
    began = time.time()
    with mistake(mutant, tree):
        for isas in ISAS:
            mutated = library(tree, isas)
            if mutated is None:
                return {"result": "did not compile"}
            if mutated != ORIGINAL[isas]:
                break
        else:
            return {"result": "same code"}
        if make(tree, isas, f"build-{isas}/tests/check")[0] != 0:
            return {"result": "did not compile"}
        for is_quick, limit in [(True, QUICK_LIMIT)] * quick + [(False, FULL_LIMIT)] * full:
            for suite in sorted(SECONDS, key=SECONDS.get):
                status, output = run([f"build-{isas}/tests/check", suite], limit, tree, is_quick)
                if status != 0:
                    killer = "time limit" if status is None else failing_test(output)
                    return {"result": "killed", "by": f"{suite}: {killer}", "effort": "quick" if is_quick else "full",
                            "seconds": round(time.time() - began)}
        return {"result": "survived" if full else MISSED, "seconds": round(time.time() - began)}


def copy_sources(tree):
    """A copy of what git knows or would add; it keeps its build folders from one run to the next."""
    wanted = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], capture_output=True, text=True,
                            check=True).stdout.splitlines()
    for path in filter(os.path.isfile, wanted):
        copy = os.path.join(tree, path)
        os.makedirs(os.path.dirname(copy), exist_ok=True)
        if not os.path.exists(copy) or not filecmp.cmp(path, copy, shallow=False):
            shutil.copy(path, copy)


def prepare(tree):
    copy_sources(tree)
    for isas in ISAS:
        status, output = make(tree, isas, f"build-{isas}/tests/check")
        if status != 0:
            raise SystemExit(output[-3000:])
        ORIGINAL[isas] = library(tree, isas)
    suites = run([f"build-{isas}/tests/check", "--list"], 60, tree)[1].split()
    for suite in [] if SECONDS else suites:
        began = time.time()
        status, output = run([f"build-{isas}/tests/check", suite], QUICK_LIMIT, tree, quick=True)
        if "no test was run" in output:  # those that want a GPU
            continue
        if status != 0:
            raise SystemExit(f"{suite} fails without any mistake:\n{output[-3000:]}")
        SECONDS[suite] = time.time() - began


# ---- what is known, and the table ----


def read_results(record):
    if not os.path.exists(record):
        return {}
    with open(record, encoding="utf-8") as stream:
        return json.load(stream)


def write_results(record, results):
    with open(record + ".new", "w", encoding="utf-8") as out:
        json.dump(results, out, indent=1)
    os.replace(record + ".new", record)


def key(mutant):
    return f"{mutant['path']}|{mutant['start']}|{mutant['old']}|{mutant['new']}"


def shown(text):
    return "`" + (" ".join(text.split()) or " ").replace("|", "\\|") + "`"


def place_and_change(mutant):
    return f"{mutant['path']}:{mutant['line']}", f"{shown(mutant['old'])} -> {shown(mutant['new'])}"


def explanations():
    """The last column of the present table, by place and change."""
    if not os.path.exists(TABLE):
        return {}
    with open(TABLE, encoding="utf-8") as stream:
        rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in stream if re.match(r"\| \d+ ", line)]
    return {(row[1].strip(), row[3].strip()): row[-1].strip() for row in rows if len(row) == 6}


HEAD = ("`make mutate`, seed {seed}: {done} mistakes made in src/ one at a time, {killed} noticed by the tests, {missed} not. A "
        "mistake that does not compile, or compiles to the same library, is drawn anew. Of what is only missed by the quick "
        "tests, the full tests were not asked.")


def write_table(mutants, results, seed, head=HEAD):
    known = explanations()
    done = [m for m in mutants if key(m) in results]
    killed = sum(results[key(m)]["result"] == "killed" for m in done)
    lines = ["# Mutants", "", head.format(seed=seed, done=len(done), killed=killed, missed=len(done) - killed), "",
             "| # | where | mistake | change | result | explanation of a survivor |", "|---|---|---|---|---|---|"]
    for number, m in enumerate(done, 1):
        r = results[key(m)]
        where, change = place_and_change(m)
        result = f"killed by {r['by']} ({r['effort']})" if r["result"] == "killed" else f"**{r['result']}**"
        note = known.get((where, change), "") if r["result"] != "killed" else ""
        lines.append(f"| {number} | {where} | {m['operator'].replace('_', ' ')} | {change} | {result} | {note} |")
    with open(TABLE, "w", encoding="utf-8") as stream:
        stream.write("\n".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", help="numbers of the table to try again, whatever is known")
    parser.add_argument("--work", default="build/mutate")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    os.chdir(ROOT)
    work = os.path.abspath(options.work)
    os.makedirs(work, exist_ok=True)
    record = os.path.join(work, "results.json")
    results = read_results(record)

    stream = draw(20 * options.count, options.seed)
    trees = [os.path.join(work, f"tree{i}") for i in range(options.jobs)]
    for tree in trees:
        prepare(tree)
    free = list(trees)

    explained = explanations()

    def known_or_tried(mutant, again=False):
        quick = again or key(mutant) not in results
        missed = results.get(key(mutant), {}).get("result") == MISSED
        equivalent = explained.get(place_and_change(mutant), "").startswith("equivalent")
        full = not options.quick and (again or (missed or key(mutant) not in results) and not equivalent)
        if quick or full:
            tree = free.pop()
            try:
                results[key(mutant)] = attempt(mutant, tree, quick, full)
            finally:
                free.append(tree)
            write_results(record, results)
            r = results[key(mutant)]
            print(f"{mutant['path']}:{mutant['line']}: {mutant['operator']}: {mutant['old']!r} -> {mutant['new']!r}: "
                  f"{r['result']}{' by ' + r['by'] if 'by' in r else ''}", flush=True)
        return mutant if results[key(mutant)]["result"] not in ("did not compile", "same code") else None

    mutants = []
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        while len(mutants) < options.count:
            batch = [next(stream) for _ in range(min(8 * options.jobs, options.count - len(mutants)))]
            mutants += [m for m in pool.map(known_or_tried, batch) if m]
            write_table(mutants, results, options.seed)
        if options.only:
            for number in options.only.split(","):
                known_or_tried(mutants[int(number) - 1], again=True)
            write_table(mutants, results, options.seed)


if __name__ == "__main__":
    main()
