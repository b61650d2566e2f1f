"""Suites of cases, as suite.c reads them: `name count case`, with {a,b} for one row per alternative, '#' for comments."""

import os


def expand(line):
    start = line.find("{")
    if start < 0:
        return [line]
    end = line.index("}", start)
    return [row for word in line[start + 1:end].split(",") for row in expand(line[:start] + word + line[end + 1:])]


def read_suite(path):
    """(suite, layer, count, case) of every row."""
    suite, rows = os.path.basename(path).split(".")[0], []
    with open(path, encoding="utf-8") as text:
        for line in text:
            words = line.split("#")[0].split(None, 2)
            if words:
                rows += [(suite, words[0], int(words[1]), case) for case in expand(words[2].strip())]
    return rows
