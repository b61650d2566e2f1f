#!/usr/bin/env python3
"""Markdown of the JSON that bench and torch_peer.py write, of any number of runs on one machine.

    bench/table.py FILE.json ... [--rows] [--svg FILE]

Rows of the same case belong together whoever wrote them. First a line per operation, layout and dtype, worst first: rates
against a copy, and the time of the best peer over the library's, each as the geometric mean and the worst row, for every
number of threads; then networks' totals; then the rows in which a peer is faster. --rows: a line per row instead, worst first,
with shares of what is attainable, too, and of that where what shares statistics is read twice.
--svg: a picture of the first table, too."""

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
        if "add" in self.field or "drop" in self.field:
            self.op += " of a sum"
        self.shape = " ".join(word for word in words if word.split("=")[0] not in ("threads", "backend"))
        self.layout = self.field.get("layout", "nchw") if "c" in self.field else "rows"
        self.percent, self.exact, self.times, self.ratio = None, False, {}, {}
        self.attainable = ["", ""]  # percent; twice: with what is read again

    def add(self, row, facts):
        ours = row["times"][0]
        if self.percent is None or ("percent_copy" in row and not self.exact):  # else of a large copy
            self.exact = "percent_copy" in row
            self.percent = row["percent_copy"] if self.exact else 100 * ours["gbs"] / facts["copy_gbs"]
            self.times[LIBRARY] = ours
            if row.get("attainable_us"):
                self.attainable = [f"{100 * row[of] / ours['median_us']:.0f}" for of in ("attainable_us", "attainable_twice_us")]
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


class Group:
    """Rows of one operation, layout, dtype and number of threads."""

    def __init__(self, rows):
        self.percents, self.best = [row.percent for row in rows], [row.best() for row in rows if row.best()]
        self.share = geometric(self.percents)
        self.ratio = geometric([ratio for ratio, _ in self.best]) if self.best else None

    def cells(self):
        peers = [f"{self.ratio:.2f}x", "{:.2f}x {}".format(*min(self.best)),
                 f"{sum(ratio < 1 for ratio, _ in self.best)} of {len(self.best)}"] if self.best else [""] * 3
        return [f"{self.share:.0f}", f"{min(self.percents):.0f}", *peers]


def groups_of(rows):
    """{(operation, layout, dtype): {threads: Group}}, worst first."""
    found = {}
    for (*_, count), row in rows.items():
        found.setdefault((row.op, row.layout, row.dtype()), {}).setdefault(count, []).append(row)
    groups = {name: {count: Group(of) for count, of in by_count.items()} for name, by_count in found.items()}
    return dict(sorted(groups.items(), key=lambda item: min(group.share for group in item[1].values())))


def print_groups(groups, threads):
    line("operation", "layout", "dtype", "rows", *[cell for n in threads for cell in (
        f"% of copy{of_threads(n)}", "worst", "best peer's time", "least", "peer faster")])
    line(*["---"] * (4 + 5 * len(threads)))
    for (op, layout, dtype), found in groups.items():
        line(op, layout, dtype, max(len(group.percents) for group in found.values()),
             *[cell for n in threads for cell in (found[n].cells() if n in found else [""] * 5)])


COLORS = {"layernorm": "#2563ae", "rmsnorm": "#7a3fa0", "groupnorm": "#1f8a70", "instancenorm": "#c2571a",
          "batchnorm": "#b0324b", "dropout": "#6b6f76"}


def picture(groups, threads, caption):
    """A bar for each group: its share of a copy with the most threads, beside the best peer's and that of one thread."""
    left, width, step, most = 250, 620, 22, 100
    most = max([most] + [g.share / min(g.ratio or 1, 1) for found in groups.values() for g in found.values()])
    height, scale = 92 + step * len(groups), (width - 20) / most

    def text(x, y, what, anchor="start", color="#222", more=""):
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}"{more}>{what}</text>'

    def dot(x, y):
        return f'<circle cx="{x:.1f}" cy="{y}" r="4.5" fill="#e3a008" stroke="#fff"/>'

    def tick(x, y):
        return f'<path d="M{x:.1f} {y}v12" stroke="#111" stroke-width="2"/>'
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 70} {height}" width="{left + width + 70}" '
           f'height="{height}" font-family="system-ui, sans-serif" font-size="11">',
           '<rect width="100%" height="100%" fill="#fff"/>',
           text(16, 24, "Share of what a copy of as many bytes reaches, geometric mean of all networks' layers",
                more=' font-size="15" font-weight="600"'),
           dot(left, 40), text(left + 8, 44, "the best peer of each row; x: its time over welford's")]
    if len(threads) > 1:
        out += [tick(left + 330, 34), text(left + 336, 44, f"{threads[0]} thread; bar: {threads[-1]} threads")]
    for percent in range(0, int(most) + 1, 20):
        x = left + percent * scale
        out += [f'<path d="M{x:.1f} 54V{height - 34}" stroke="#e3e5e8"/>',
                text(x, height - 22, f"{percent} %", "middle", "#666")]
    for at, ((op, layout, dtype), found) in enumerate(sorted(groups.items())):
        y, group = 58 + step * at, found[max(found)]
        out += [text(left - 8, y + 13, f"{op.replace('_', ' ')} {dtype}{' nhwc' if layout == 'nhwc' else ''}", "end"),
                f'<rect x="{left}" y="{y}" width="{group.share * scale:.1f}" height="18" rx="2" '
                f'fill="{COLORS[op.split("_")[0]]}"/>']
        if len(found) > 1:
            out.append(tick(left + found[min(found)].share * scale, y + 3))
        if group.ratio:
            out.append(dot(left + group.share / group.ratio * scale, y + 9))
        beside = f"{group.share:.0f} %" + (f", {group.ratio:.2f}x" if group.ratio else "")
        reach = max(group.share / min(group.ratio or 1, 1), found[min(found)].share)
        out.append(text(left + reach * scale + 8, y + 13, beside, color="#444"))
    out += [text(left + width + 54, height - 6, caption, "end", "#888"), "</svg>"]
    return "\n".join(out) + "\n"


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
    line("network", "layer", "case", "us", "GB/s", "% of copy", "of attainable", "read twice", *names)
    line(*["---"] * (8 + len(names)))
    for row in sorted(rows.values(), key=lambda row: row.percent):
        ours = row.times[LIBRARY]
        line(row.network, row.layer, row.case, f"{ours['median_us']:.1f}", f"{ours['gbs']:.1f}", f"{row.percent:.0f}",
             *row.attainable, *[f"{row.ratio[name]:.2f}x" if name in row.ratio else "" for name in names])


def peers_of(facts):
    peers = {"torch": facts["torch"]} if "torch" in facts else {}
    peers.update(facts.get("peers") or {})
    return peers


def where(facts):
    return (f"{facts.get('gpu') or facts.get('processor', '')}, welford {facts['library']} ({facts['commit']}), "
            f"{'cold' if facts['cold'] else 'warm'}, {facts['date'][:10]}")


def print_environment(path, facts):
    threads = of_threads(facts["threads"]) if "gpu" not in facts else ""
    peers = "".join(f"; {name} {version}" for name, version in peers_of(facts).items())
    print(f"- {path.rsplit('/', 1)[-1]}: {where(facts)}{threads}{peers}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--rows", action="store_true")
    parser.add_argument("--svg", metavar="FILE")
    options = parser.parse_args()
    rows, untimed, runs = read(options.files)
    for path, facts in runs:
        print_environment(path, facts)
    print()
    groups, threads = groups_of(rows), sorted({threads for *_, threads in rows})
    if options.svg:
        peers = {name: version for _, facts in runs for name, version in peers_of(facts).items()}
        caption = where(runs[0][1]) + "; " + ", ".join(f"{name} {version}" for name, version in peers.items())
        with open(options.svg, "w", encoding="utf-8") as out:
            out.write(picture(groups, threads, caption))
    if options.rows:
        print_rows(rows)
    else:
        print_groups(groups, threads)
        print_totals(rows)
        print_slower(rows)
    for path, row in untimed:
        if (row["suite"], row["layer"], row["case"]) not in {key[:3] for key in rows} or row["verdict"] == "wrong":
            print(f"- {row['verdict']}, {path.rsplit('/', 1)[-1]}: {row['case']}: {row.get('message', '')}")


if __name__ == "__main__":
    sys.exit(main())
