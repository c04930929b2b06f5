"""Accuracy against throughput: adapter_plot.py PICTURE.svg BENCH.json RUNS [--inference]

BENCH.json is what `bench/matrix.py --plan demo --json` wrote, RUNS the folder of `demo_adapters.py`. Each point is an
adapter in a precision: across, training (or, asked for, inference) images a second, median and interval over the rounds; up,
top-1 on the test images, mean of the seeds, from the worst to the best. Prints the table too. Standard library only.
"""

import statistics
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bench"))
sys.path.insert(0, str(ROOT / "scripts"))

from demo_adapters import run_name  # noqa: E402
from matrix import Point  # noqa: E402
from rounds import Fault, guarded, markdown, read_json  # noqa: E402

COLORS = ["#1b6ca8", "#d1495b", "#3c8d53", "#8a5fbf", "#b8860b", "#444444", "#0f9d9d", "#c2557a", "#5a7d2a", "#9c4a1a"]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 460, 64, 150, 34, 52
LINE = 15  # between two names


@dataclass(frozen=True)
class Spot:
    name: str
    speed: float
    speed_low: float
    speed_high: float
    top1: list[float]  # of each seed, percent
    trainable: int

    @property
    def mean(self) -> float:
        return statistics.mean(self.top1)


def spot_of(cell: dict, runs: Path, key: str) -> Spot | None:
    """None where the cell has no measurement or no finished run."""
    point = Point(cell["backbone"], cell["batch"], cell["precision"], cell["adapter"])
    found = sorted(runs.glob(f"{run_name(point)}-seed*/result.json"))
    if "measured" not in cell or not found:
        return None
    results = [read_json(file) for file in found]
    speed = cell["measured"][key]
    top1 = [100 * result["last"]["top1"] for result in results]
    name = f"{point.adapter}, {point.precision}"
    return Spot(name, speed["median"], *speed["interval"], top1, results[0]["trainable_parameters"])


def spots(bench: Path, runs: Path, key: str) -> list[Spot]:
    try:
        cells = read_json(bench)["cells"]
        all_spots = [spot_of(cell, runs, key) for cell in cells]
    except (KeyError, TypeError) as error:
        raise Fault(f"{bench} or a result.json under {runs}: not what matrix.py and train write: {error}") from None
    kept = [spot for spot in all_spots if spot]
    if not kept:
        raise Fault(f"no cell of {bench} has both a measurement and a finished run under {runs}")
    return sorted(kept, key=lambda spot: -spot.mean)


def table(kept: list[Spot], label: str) -> str:
    rows = []
    for spot in kept:
        spread = f" ({min(spot.top1):.2f} to {max(spot.top1):.2f}, {len(spot.top1)} seeds)" if len(spot.top1) > 1 else ""
        speed = f"{spot.speed:.1f} [{spot.speed_low:.1f}, {spot.speed_high:.1f}]"
        rows.append([spot.name, f"{spot.mean:.2f} %{spread}", speed, f"{spot.trainable:,}"])
    return markdown(["adapter", "top-1", f"{label}, images/s", "trainable"], rows)


def round_step(span: float, parts: int) -> float:
    """1, 2 or 5 times a power of ten: the least that cuts the span into at most so many parts."""
    step = 1e-3
    while True:
        for factor in (1, 2, 5):
            if span / (step * factor) <= parts:
                return step * factor
        step *= 10


def axis(low: float, high: float, parts: int) -> list[float]:
    """Round numbers that enclose the two."""
    step = round_step(max(high - low, 1e-2), parts)
    first = step * (low // step)
    ticks = [first]
    while ticks[-1] < high:
        ticks.append(ticks[-1] + step)
    return ticks


def picture(kept: list[Spot], label: str) -> str:
    across = axis(0, max(spot.speed_high for spot in kept), 8)
    up = axis(min(min(spot.top1) for spot in kept), max(max(spot.top1) for spot in kept), 6)

    def x(speed: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (speed - across[0]) / (across[-1] - across[0])

    def y(percent: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (up[-1] - percent) / (up[-1] - up[0])

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="13" fill="#222">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for percent in up:
        out.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(percent):.1f}" y2="{y(percent):.1f}" stroke="#ddd"/>'
            f'<text x="{LEFT - 8}" y="{y(percent) + 4:.1f}" text-anchor="end">{percent:g} %</text>'
        )
    for speed in across:
        out.append(
            f'<line x1="{x(speed):.1f}" x2="{x(speed):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#eee"/>'
            f'<text x="{x(speed):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{speed:g}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    out.append(f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">{label}, images a second</text>')
    out.append(f'<text x="{LEFT}" y="18">top-1 on the demo\'s test images</text>')
    taken: list[tuple[float, float]] = []  # where names stand
    for i, spot in enumerate(kept):
        color = COLORS[i % len(COLORS)]
        at_x, at_y = x(spot.speed), y(spot.mean)
        out.append(
            f'<path d="M{x(spot.speed_low):.1f} {at_y:.1f}H{x(spot.speed_high):.1f}M{at_x:.1f} {y(min(spot.top1)):.1f}'
            f'V{y(max(spot.top1)):.1f}" stroke="{color}" stroke-width="1.5"/>'
            f'<circle cx="{at_x:.1f}" cy="{at_y:.1f}" r="4.5" fill="{color}"/>'
        )
        text_y = at_y - 7  # above the interval
        while any(abs(text_y - other_y) < LINE and abs(at_x - other_x) < 140 for other_x, other_y in taken):
            text_y += 2
        taken.append((at_x, text_y))
        out.append(f'<text x="{at_x + 9:.1f}" y="{text_y:.1f}" fill="{color}">{escape(spot.name)}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def main() -> int:
    words = [word for word in sys.argv[1:] if word != "--inference"]
    if len(words) != 3:
        raise Fault("wanted: adapter_plot.py PICTURE.svg BENCH.json RUNS [--inference]")
    inference = "--inference" in sys.argv
    drawing, bench, runs = map(Path, words)
    label = "inference" if inference else "training"
    kept = spots(bench, runs, "inference_images_per_second" if inference else "images_per_second")
    print(table(kept, label))
    drawing.write_text(picture(kept, label))
    print(f"\naccuracy against {label}: {drawing}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded("adapter_plot", main))
