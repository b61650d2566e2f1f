#!/usr/bin/env python3
"""Counts the instructions of a suite's calls by callgrind: repeatable on a noisy machine, which times are not.

    bench/instructions.py build/bench/bench [--suite FILE] [--compare FILE] [--write FILE]

One thread; the instruction set is the best that valgrind knows (AVX2). With --compare, rows that need more than 1 % more
instructions than in FILE are named and the exit code is 2."""

import argparse
import glob
import os
import re
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
COUNTED = "bench_counted_call"


def elements(case):
    sizes = dict(re.findall(r"\b(rows|cols|n|c|hw)=(\d+)", case))
    product = 1
    for size in sizes.values():
        product *= int(size)
    return product


def count(bench, suite):
    """[(case, instructions)]"""
    command = [bench, "--threads", "1", "--suite", suite]
    listed = subprocess.run(command + ["--list"], capture_output=True, text=True, check=True).stdout.splitlines()
    cases = [line.split(None, 3)[3] for line in listed]
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "out")
        subprocess.run(["valgrind", "-q", "--tool=callgrind", f"--toggle-collect={COUNTED}", f"--dump-after={COUNTED}",
                        f"--callgrind-out-file={out}"] + command + ["--once"], check=True, stdout=subprocess.DEVNULL)
        totals = []
        for path in sorted(glob.glob(out + ".*"), key=lambda p: int(p.rsplit(".", 1)[1])):
            with open(path, encoding="utf-8", errors="replace") as dump:
                totals += [int(m[1]) for m in re.finditer(r"^(?:summary|totals): (\d+)", dump.read(), re.M)][:1]
    if len(totals) < len(cases):
        sys.exit(f"instructions: {len(cases)} rows, but {len(totals)} counts")
    return list(zip(cases, totals))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench")
    parser.add_argument("--suite", default=os.path.join(HERE, "suites/instructions.txt"))
    parser.add_argument("--compare", metavar="FILE")
    parser.add_argument("--write", metavar="FILE", help="the table, for a later --compare")
    options = parser.parse_args()
    base = {}
    if options.compare:
        with open(options.compare, encoding="utf-8") as table:
            base = {line.split(None, 2)[2].strip(): int(line.split()[0]) for line in table if line.strip()}
    more, lines = 0, []
    for case, instructions in count(options.bench, options.suite):
        line = f"{instructions:>12} {instructions / elements(case):>9.3f}  {case}"
        lines.append(line)
        old = base.get(case)
        if old:
            worse = instructions > 1.01 * old
            more += worse
            line += f"  {instructions / old:.3f}{' MORE' if worse else ''}"
        print(line)
    if options.write:
        with open(options.write, "w", encoding="utf-8") as table:
            table.write("\n".join(lines) + "\n")
    return 2 if more else 0


if __name__ == "__main__":
    sys.exit(main())
