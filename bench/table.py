#!/usr/bin/env python3
"""Markdown of the JSON that bench and torch_peer.py write, of any number of runs on one machine.

    bench/table.py FILE.json ... [--rows]

Rows of the same case belong together whoever wrote them. First a line per operation, layout and dtype, worst first: rates
against a copy, and the time of the best peer over the library's, each as the geometric mean and the worst row, for every
number of threads; then networks' totals; then the rows in which a peer is faster. --rows: a line per row instead."""

import argparse
import json
import math
import statistics
import sys

LIBRARY = "welford"


class Row:
    """A case with everybody's times from all files."""

    def __init__(self, row):
        self.network, self.layer, self.count, self.case = row["suite"], row["layer"], row["count"], row["case"]
        self.op, *words = self.case.split()
        self.field = dict(word.split("=", 1) for word in words)
        self.shape = " ".join(word for word in words if word.split("=")[0] not in ("threads", "backend"))
        self.layout = self.field.get("layout", "nchw") if "c" in self.field else "rows"
        self.percent, self.exact, self.times, self.ratio = None, False, {}, {}

    def add(self, row, facts):
        ours = row["times"][0]
        if self.percent is None or ("percent_copy" in row and not self.exact):  # of a copy of as many bytes, or of a large one
            self.exact = "percent_copy" in row
            self.percent = row["percent_copy"] if self.exact else 100 * ours["gbs"] / facts["copy_gbs"]
            self.times[LIBRARY] = ours
        for time in row["times"][1:]:
            self.times[time["name"]], self.ratio[time["name"]] = time, time["ratio"]

    def best(self):
        """The fastest peer's (ratio, name), plain loops aside unless there is no other; None: nobody took part."""
        able = [(ratio, name) for name, ratio in self.ratio.items() if name != "naive"]
        return min(able or [(ratio, name) for name, ratio in self.ratio.items()], default=None)

    def dtype(self):
        return self.field["x"] + ("/" + self.field["w"] if self.field.get("w", self.field["x"]) != self.field["x"] else "")


def read(paths):
    """Rows by (case, threads), those that have no times, and the runs' environments."""
    rows, untimed, facts = {}, [], []
    for path in paths:
        with open(path, encoding="utf-8") as text:
            run = json.load(text)
        facts.append((path, run["environment"]))
        on_gpu = "gpu" in run["environment"]
        for row in run["rows"]:
            if row["verdict"] != "timed":
                untimed.append((path, row))
                continue
            threads = 0 if on_gpu else run["environment"]["threads"]
            key = row["suite"], row["layer"], row["case"], threads
            rows.setdefault(key, Row(row)).add(row, run["environment"])
    return rows, untimed, facts


def geometric(values):
    return math.exp(statistics.fmean(math.log(v) for v in values))


def line(*cells):
    print("| " + " | ".join(str(cell) for cell in cells) + " |")


def of_threads(threads):
    return f", {threads} thread{'s' if threads > 1 else ''}" if threads else ""


def cells_of(rows):
    if not rows:
        return [""] * 5
    percents, best = [row.percent for row in rows], [row.best() for row in rows if row.best()]
    peers = [f"{geometric([ratio for ratio, _ in best]):.2f}x", "{:.2f}x {}".format(*min(best)),
             f"{sum(ratio < 1 for ratio, _ in best)} of {len(best)}"] if best else [""] * 3
    return [f"{geometric(percents):.0f}", f"{min(percents):.0f}", *peers]


def print_groups(rows, threads):
    groups = {}
    for (*_, count), row in rows.items():
        groups.setdefault((row.op, row.layout, row.dtype()), {}).setdefault(count, []).append(row)
    line("operation", "layout", "dtype", "rows", *[cell for n in threads for cell in (
        f"% of copy{of_threads(n)}", "worst", "best peer's time", "least", "peer faster")])
    line(*["---"] * (4 + 5 * len(threads)))
    for (op, layout, dtype), found in sorted(groups.items(), key=lambda item: min(
            geometric([row.percent for row in of]) for of in item[1].values())):
        line(op, layout, dtype, max(len(of) for of in found.values()),
             *[cell for n in threads for cell in cells_of(found.get(n, []))])


def print_totals(rows):
    """Of all layers of a network, each as often as it has it; a peer that lacks one has no total."""
    networks = {}
    for (*_, threads), row in rows.items():
        name = (row.network, row.dtype(), "channels last" if row.layout == "nhwc" else "", threads)
        networks.setdefault(name, []).append(row)
    networks = {name: found for name, found in networks.items() if sum(row.count for row in found) > len(found)}
    names = list(dict.fromkeys(name for found in networks.values() for row in found for name in row.ratio if all(
        name in other.ratio for other in found)))
    print("\nAll layers of a network, each as often as it has it, in milliseconds (a peer that lacks one has no total):\n")
    line("network", "dtype", "threads", "calls", LIBRARY, *names)
    line(*["---"] * (5 + len(names)))
    order = {name[0]: at for at, name in reversed(list(enumerate(networks)))}
    for (network, dtype, layout, threads), found in sorted(networks.items(), key=lambda item: (order[item[0][0]], item[0])):
        def total(name, found=found):
            if not all(name in row.times for row in found):
                return ""
            return f"{sum(row.count * row.times[name]['median_us'] for row in found) * 1e-3:.2f}"
        line(" ".join((network, layout)).strip(), dtype, threads or "", sum(row.count for row in found), total(LIBRARY),
             *[total(name) for name in names])


def print_slower(rows):
    slower = sorted((*row.best(), threads, layer, row) for (_, layer, _, threads), row in rows.items()
                    if row.best() and row.best()[0] < 1)
    print(f"\nA peer is faster in {len(slower)} of {len(rows)} rows:\n" if slower else "\nNo peer is faster in any row.")
    for ratio, name, threads, layer, row in slower:
        print(f"- {ratio:.2f}x {name}: {row.network} {layer}, {row.op} {row.shape}{of_threads(threads)}; "
              f"{row.percent:.0f} % of the copy")


def print_rows(rows):
    names = list(dict.fromkeys(name for row in rows.values() for name in row.ratio))
    line("network", "layer", "case", "us", "GB/s", "% of copy", *names)
    line(*["---"] * (6 + len(names)))
    for row in rows.values():
        ours = row.times[LIBRARY]
        line(row.network, row.layer, row.case, f"{ours['median_us']:.1f}", f"{ours['gbs']:.1f}", f"{row.percent:.0f}",
             *[f"{row.ratio[name]:.2f}x" if name in row.ratio else "" for name in names])


def print_environment(path, facts):
    peers = {"torch": facts["torch"]} if "torch" in facts else {}
    peers.update(facts.get("peers") or {})
    threads = of_threads(facts["threads"]) if "gpu" not in facts else ""
    print(f"- {path.rsplit('/', 1)[-1]}: {facts.get('gpu') or facts.get('processor', '')}{threads}, commit {facts['commit']}, "
          f"{facts['date'][:10]}, {'cold' if facts['cold'] else 'warm'}; "
          f"{', '.join(f'{name} {version}' for name, version in peers.items())}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--rows", action="store_true")
    options = parser.parse_args()
    rows, untimed, runs = read(options.files)
    for path, facts in runs:
        print_environment(path, facts)
    print()
    if options.rows:
        print_rows(rows)
    else:
        print_groups(rows, sorted({threads for *_, threads in rows}))
        print_totals(rows)
        print_slower(rows)
    for path, row in untimed:
        if (row["suite"], row["layer"], row["case"]) not in {key[:3] for key in rows} or row["verdict"] == "wrong":
            print(f"- {row['verdict']}, {path.rsplit('/', 1)[-1]}: {row['case']}: {row.get('message', '')}")


if __name__ == "__main__":
    sys.exit(main())
