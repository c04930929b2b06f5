#!/usr/bin/env python3
"""study_table.py OUT: the runs of study_distill.sh as a table, mean and range over the seeds.

Reads OUT/STUDENT-VIEW-xFACTOR-seedSEED/result.json of every finished run.
"""

import collections
import json
import pathlib
import re
import sys

NAME = re.compile(r"(\w+?)-(\w+)-x(\d+)-seed(\d+)")


def cell(values):
    """Mean and range of fractions, in percent."""
    percent = [100 * value for value in values]
    mean = sum(percent) / len(percent)
    return f"{mean:.2f} ({min(percent):.2f} to {max(percent):.2f})"


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: study_table.py OUT")
    runs = collections.defaultdict(dict)
    for file in pathlib.Path(sys.argv[1]).glob("*/result.json"):
        name = NAME.fullmatch(file.parent.name)
        if name:
            student, view, factor, seed = name.groups()
            runs[student, view, int(factor)][int(seed)] = json.loads(file.read_text())
    if not runs:
        sys.exit(f"study_table: no finished run in {sys.argv[1]}")
    print("| student | view | steps | seeds | agreement with the teacher, % | KL | top-1, % |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for (student, view, factor), by_seed in runs.items():
        results = [by_seed[seed] for seed in sorted(by_seed)]
        kl = [result["teacher"]["kl"]["mean"] for result in results]
        rows.append((student, factor, -sum(r["teacher"]["agree1"]["mean"] for r in results) / len(results),
                     f"| {student} | `{view}` | x{factor} | {len(results)} "
                     f"| {cell([r['teacher']['agree1']['mean'] for r in results])} "
                     f"| {sum(kl) / len(kl):.3f} ({min(kl):.3f} to {max(kl):.3f}) "
                     f"| {cell([r['last']['top1'] for r in results])} |"))
    for row in sorted(rows):
        print(row[3])


if __name__ == "__main__":
    main()
