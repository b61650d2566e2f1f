#!/usr/bin/env python3
"""Markdown of the JSON that bench and torch_peer.py write.

    bench/table.py FILE.json ... [--rows]

A line per operation, layout and dtype: rates against a copy, and times of the best peer over the library's, each as the
geometric mean and the worst row; then the rows in which a peer is faster. --rows: a line per row instead."""

import argparse
import json
import math
import statistics
import sys


def group_of(case):
    op, *words = case.split()
    field = dict(word.split("=", 1) for word in words)
    return op, field.get("layout", "nchw") if "c" in field else "rows", field["x"]


def share(row, environment):
    """Per cent of a copy: of as many bytes where bench measured that, else of a large one."""
    if "percent_copy" in row:
        return row["percent_copy"]
    return 100 * row["times"][0]["gbs"] / environment["copy_gbs"]


def best_peer(row):
    peers = [t for t in row["times"][1:] if t["name"] != "naive"] or row["times"][1:]
    return min(peers, key=lambda t: t["ratio"], default=None)


def geometric(values):
    return math.exp(statistics.fmean(math.log(v) for v in values))


def line(*cells):
    print("| " + " | ".join(str(cell) for cell in cells) + " |")


def print_groups(rows):
    groups = {}
    for row, percent in rows:
        groups.setdefault(group_of(row["case"]), []).append((row, percent, best_peer(row)))
    line("operation", "layout", "dtype", "rows", "% of copy", "worst", "best peer's time", "worst")
    line(*["---"] * 8)
    for (op, layout, dtype), found in sorted(groups.items()):
        percents = [percent for _, percent, _ in found]
        ratios = [peer["ratio"] for _, _, peer in found if peer]
        peers = (f"{geometric(ratios):.2f}x", f"{min(ratios):.2f}x") if ratios else ("", "")
        line(op, layout, dtype, len(found), f"{geometric(percents):.0f}", f"{min(percents):.0f}", *peers)
    slower = sorted(((peer["ratio"], peer["name"], row) for found in groups.values() for row, _, peer in found
                     if peer and peer["ratio"] < 1), key=lambda item: item[0])
    print(f"\nA peer is faster in {len(slower)} of {len(rows)} rows:\n" if slower else "\nNo peer is faster in any row.")
    for ratio, name, row in slower:
        print(f"- {ratio:.2f}x {name}: {row['layer']}, {row['case']}")


def print_rows(rows):
    names = list(dict.fromkeys(t["name"] for row, _ in rows for t in row["times"][1:]))
    line("layer", "case", "us", "GB/s", "% of copy", *names)
    line(*["---"] * (5 + len(names)))
    for row, percent in rows:
        ours, ratio = row["times"][0], {t["name"]: f"{t['ratio']:.2f}x" for t in row["times"][1:]}
        line(row["layer"], row["case"], f"{ours['median_us']:.1f}", f"{ours['gbs']:.0f}", f"{percent:.0f}",
             *[ratio.get(name, "") for name in names])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--rows", action="store_true")
    options = parser.parse_args()
    for path in options.files:
        with open(path, encoding="utf-8") as text:
            run = json.load(text)
        facts = run["environment"]
        print(f"\n{path}: {facts.get('gpu') or facts.get('processor', '')}, commit {facts['commit']}, {facts['date'][:10]}, "
              f"{'cold' if facts['cold'] else 'warm'}\n")
        rows = [(row, share(row, facts)) for row in run["rows"] if row["verdict"] == "timed"]
        (print_rows if options.rows else print_groups)(rows)
        for row in run["rows"]:
            if row["verdict"] != "timed":
                print(f"- {row['verdict']}: {row['case']}: {row.get('message', '')}")


if __name__ == "__main__":
    sys.exit(main())
