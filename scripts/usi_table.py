#!/usr/bin/env python3
"""usi_table.py RUN...: top-1 of the weights and of their average at the end, as a table.

On data.val, from the last line of each RUN/log.jsonl; without data.val the one result on data.test.
Runs whose names differ in a trailing "-seedN" alone are one row: mean and range.
"""

import collections
import json
import re
import sys
from pathlib import Path


def cell(values):
    """Mean and range of fractions, in percent."""
    percent = [100 * value for value in values if value is not None]
    if not percent:
        return "-"
    text = f"{sum(percent) / len(percent):.2f} %"
    return text if len(percent) == 1 else f"{text} ({min(percent):.2f} to {max(percent):.2f})"


def main():
    if len(sys.argv) < 2:
        sys.exit("usage: usi_table.py RUN...")
    runs = collections.defaultdict(list)
    for name in sys.argv[1:]:
        run = Path(name)
        line = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
        result = json.loads((run / "result.json").read_text())
        runs[re.sub(r"-seed\d+$", "", run.name)].append(
            {
                "plain": line["val"]["top1"] if "val" in line else result["last"]["top1"],
                "average": line.get("val_average", {}).get("top1"),
                "agreement": result.get("teacher", {}).get("agree1", {}).get("mean"),
                "seconds": result["wall_seconds"],
            }
        )
    rows = [["run", "seeds", "top-1", "top-1 of the average", "agreement", "seconds"]]
    for name, results in runs.items():
        seconds = sum(result["seconds"] for result in results) / len(results)
        cells = [cell([result[key] for result in results]) for key in ("plain", "average", "agreement")]
        rows.append([name, str(len(results)), *cells, f"{seconds:.0f}"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for first, *rest in rows:
        print("  ".join([first.ljust(widths[0]), *(text.rjust(w) for text, w in zip(rest, widths[1:]))]))


if __name__ == "__main__":
    main()
