"""Compares distilled students: distill_report.py PICTURE.svg RUN...

Prints a table of top-1 and of the distance to the teacher, and draws agreement with the teacher's best
class over steps. Standard library only.
"""

import json
import sys
from html import escape
from pathlib import Path

COLORS = ["#1b6ca8", "#d1495b", "#3c8d53", "#8a5fbf", "#b8860b", "#444444", "#0f9d9d", "#c2557a"]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 420, 64, 150, 28, 48

Points = list[tuple[int, float]]


def table(runs: list[Path]) -> None:
    rows = [["view", "steps", "agreement", "KL", "top-1", "images/s", "seconds"]]
    for run in runs:
        result = json.loads((run / "result.json").read_text())
        steps = json.loads((run / "log.jsonl").read_text().splitlines()[-1])["step"]
        teacher = result["teacher"]
        rows.append(
            [
                run.name.removeprefix("distill-"),
                str(steps),
                f"{100 * teacher['agree1']['mean']:.2f} %",
                f"{teacher['kl']['mean']:.3f}",
                f"{100 * result['last']['top1']:.2f} %",
                f"{result['images_per_second']:.1f}",
                f"{result['wall_seconds']:.0f}",
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for first, *rest in rows:
        cells = [text.rjust(width) for text, width in zip(rest, widths[1:])]
        print("  ".join([first.ljust(widths[0]), *cells]))


def agreement(run: Path) -> Points:
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [(line["step"], line["teacher"]["agree1"]["mean"]) for line in lines if "teacher" in line]


def ticks(low: float, high: float) -> list[float]:
    """A handful of round numbers between the two."""
    step = 10.0 ** len(str(int(max(high - low, 1) / 10)))
    while (high - low) / step < 4:
        step /= 2
    first = int(low / step) * step
    return [first + i * step for i in range(20) if low <= first + i * step <= high]


def picture(runs: list[Path]) -> str:
    curves = {run.name.removeprefix("distill-"): agreement(run) for run in runs}
    last = max(step for points in curves.values() for step, _ in points)
    values = [100 * value for points in curves.values() for _, value in points]
    low, high = 5 * int(min(values) / 5), min(100, 5 * int(max(values) / 5 + 1))

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last

    def y(percent: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - percent) / (high - low)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="13" fill="#222">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for percent in range(low, high + 1, 5):
        out.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(percent):.1f}" y2="{y(percent):.1f}" '
            f'stroke="#ddd"/><text x="{LEFT - 8}" y="{y(percent) + 4:.1f}" '
            f'text-anchor="end">{percent} %</text>'
        )
    for step in ticks(0, last):
        out.append(
            f'<text x="{x(step):.1f}" y="{HEIGHT - BOTTOM + 20}" '
            f'text-anchor="middle">{step:g}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    out.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">steps</text>')
    out.append(f'<text x="{LEFT}" y="16">agreement with the teacher (best class)</text>')
    # Names at the ends of the curves, moved apart where they would overlap.
    taken: list[float] = []
    for color, (name, points) in sorted(
        zip(COLORS, curves.items()), key=lambda item: -item[1][1][-1][1]
    ):
        path = " ".join(f"{x(step):.1f},{y(100 * value):.1f}" for step, value in points)
        at = y(100 * points[-1][1]) + 4
        if taken and at < taken[-1] + 16:
            at = taken[-1] + 16
        taken.append(at)
        out.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        out.append(
            f'<text x="{WIDTH - RIGHT + 8}" y="{at:.1f}" fill="{color}">{escape(name)}</text>'
        )
    return "\n".join([*out, "</svg>"]) + "\n"


def main() -> None:
    drawing, *names = map(Path, sys.argv[1:])
    table(names)
    drawing.write_text(picture(names))
    print(f"agreement over steps: {drawing}")


if __name__ == "__main__":
    main()
