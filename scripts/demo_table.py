"""Prints the results of finished runs as a table: demo_table.py RUN... Standard library only."""

import json
import sys
from pathlib import Path

COLUMNS = ["method", "trainable", "file", "top-1", "images/s", "seconds"]


def row(run: Path) -> list[str]:
    """The cells of one run."""
    result = json.loads((run / "result.json").read_text())
    last = result["last"]
    return [
        run.name.removeprefix("demo-"),
        f"{result['trainable_parameters']:,}",
        f"{result['adapter_bytes'] / 1e6:.2f} MB",
        f"{100 * last['top1']:.2f} %",
        f"{result['images_per_second']:.1f}",
        f"{result['wall_seconds']:.0f}",
    ]


def main() -> None:
    rows = [COLUMNS] + [row(Path(run)) for run in sys.argv[1:]]
    widths = [max(len(cells[i]) for cells in rows) for i in range(len(COLUMNS))]
    for cells in rows:
        left, *right = cells
        padded = [text.rjust(width) for text, width in zip(right, widths[1:])]
        print("  ".join([left.ljust(widths[0]), *padded]))


if __name__ == "__main__":
    main()
