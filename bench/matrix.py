#!/usr/bin/env python3
"""The adapter benchmark: adapters x backbones x batch x precision, measured by `convpass bench` in interleaved rounds.

    python3 bench/matrix.py [bench/adapters.json] [--plan quick] [--json FILE] [--rounds N] [--steps N] [--only TEXT]

Prints Markdown. What a cell is, and what each number means: docs/benchmark.md. Standard library only.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from rounds import (
    ROOT,
    Cell,
    Estimate,
    Fault,
    Measured,
    Parser,
    Result,
    about,
    about_text,
    bench_command,
    coverage_note,
    estimate,
    find_binary,
    guarded,
    markdown,
    ratio,
    read_json,
    run_rounds,
    threads_environment,
    whole_number,
    without_result,
)

AXES = {"adapters": str, "backbones": str, "batches": int, "precisions": str}
COLUMNS = (  # key of `convpass bench`, label, unit, digits
    ("images_per_second", "training, images/s", 1, 1),
    ("inference_images_per_second", "inference, images/s", 1, 1),
    ("latency_ms", "latency, ms", 1, 1),
    ("latency_p95_ms", "p95, ms", 1, 1),
    ("peak_memory_bytes", "peak memory, MB", 1e6, 0),
    ("adapter_share", "adapter's share, %", 0.01, 1),
)


@dataclass(frozen=True)
class Point:
    """One cell's place in the matrix."""

    backbone: str
    batch: int
    precision: str
    adapter: str

    @property
    def name(self) -> str:
        return f"{self.backbone}, batch {self.batch}, {self.precision}, {self.adapter}"


# --- The matrix file ----------------------------------------------------------------------------


def known_keys(where: str, value: object, known: tuple[str, ...]) -> dict[str, object]:
    """An object that has no other keys. Errors: Fault with the nearest one."""
    if not isinstance(value, dict):
        raise Fault(f"{where}: got {json.dumps(value)[:40]}, wanted an object")
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise Fault(f"{where}: unknown key {key!r}{hint}, wanted one of {', '.join(known)}")
    return value


def settings_of(where: str, value: object) -> dict[str, object]:
    """A set of recipe keys: {"adapter.type": "lora"}."""
    if not isinstance(value, dict) or any(isinstance(item, dict) for item in value.values()):
        raise Fault(f'{where}: got {json.dumps(value)[:60]}, wanted recipe keys such as {{"adapter.type": "none"}}')
    return value


def named_settings(where: str, matrix: dict[str, object], part: str) -> dict[str, dict[str, object]]:
    named = matrix.get(part)
    if not isinstance(named, dict) or not named:
        raise Fault(f"{where}: /{part}: got {json.dumps(named)[:40]}, wanted at least one name with its recipe keys")
    return {name: settings_of(f"{where}: /{part}/{name}", value) for name, value in named.items()}


def axis(where: str, value: object, kind: type, names: list[str] | None) -> list:
    """The values of one axis; "all" stands for every name there is."""
    if value == "all" and names is not None:
        return names
    fits = isinstance(value, list) and value and all(isinstance(item, kind) for item in value)
    if not fits or (kind is int and any(isinstance(item, bool) or item < 1 for item in value)):
        wanted = "positive whole numbers" if kind is int else "names"
        wanted += ' or "all"' if names else ""
        raise Fault(f"{where}: got {json.dumps(value)[:40]}, wanted a list of {wanted}")
    for item in value:
        if names is not None and item not in names:
            near = difflib.get_close_matches(item, names, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise Fault(f"{where}: got {item!r}{hint}, wanted one of {', '.join(names)}")
    return value


class Matrix:
    """What is measured: the cells of one plan of a matrix file, and their recipe keys. Errors: Fault."""

    def __init__(self, file: Path, plan: str) -> None:
        matrix = known_keys(str(file), read_json(file), ("about", "common", "adapters", "backbones", "plans"))
        self.common = settings_of(f"{file}: /common", matrix.get("common", {}))
        self.adapters = named_settings(str(file), matrix, "adapters")
        self.backbones = named_settings(str(file), matrix, "backbones")
        plans = matrix.get("plans")
        if not isinstance(plans, dict) or not plans:
            raise Fault(f"{file}: /plans: got {json.dumps(plans)[:40]}, wanted at least one plan")
        if plan not in plans:
            raise Fault(f"{file}: /plans: got --plan {plan!r}, wanted one of {', '.join(plans)}")
        where = f"{file}: /plans/{plan}"
        body = known_keys(where, plans[plan], ("rounds", "steps", "cells"))
        for key in ("rounds", "steps"):
            value = body.get(key, 1)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise Fault(f"{where}/{key}: got {json.dumps(value)[:40]}, wanted a whole number of at least 1")
        self.rounds, self.steps = body.get("rounds", 6), body.get("steps", 3)
        self.points = self._points(f"{where}/cells", body.get("cells"))

    def _points(self, where: str, groups: object) -> list[Point]:
        if not isinstance(groups, list) or not groups:
            raise Fault(f"{where}: got {json.dumps(groups)[:40]}, wanted a list of at least one group of cells")
        points: dict[Point, None] = {}
        for i, group in enumerate(groups):
            group = known_keys(f"{where}/{i}", group, tuple(AXES))
            names = {"adapters": list(self.adapters), "backbones": list(self.backbones)}
            values = [axis(f"{where}/{i}/{key}", group.get(key), kind, names.get(key)) for key, kind in AXES.items()]
            adapters, backbones, batches, precisions = values
            for backbone in backbones:
                for batch in batches:
                    for precision in precisions:
                        points.update({Point(backbone, batch, precision, adapter): None for adapter in adapters})
        order = list(self.backbones)
        return sorted(points, key=lambda p: (order.index(p.backbone), p.batch, p.precision))

    def settings(self, point: Point) -> dict[str, object]:
        """Later sets overlay earlier ones."""
        return {
            **self.common,
            **self.backbones[point.backbone],
            **self.adapters[point.adapter],
            "train.batch_size": point.batch,
            "train.precision": point.precision,
        }

    def cells(self, binary: Path, steps: int, threads: int) -> list[Cell]:
        options = ["--details", "--steps", str(steps)]
        environment = threads_environment(threads)
        return [Cell(p.name, bench_command(binary, self.settings(p), options), environment) for p in self.points]


# --- The report ---------------------------------------------------------------------------------


def cell_text(measured: Measured, key: str, unit: float, digits: int) -> str:
    values = measured.values(key)
    return estimate([value / unit for value in values]).text(digits) if values else "-"


def tables(points: list[Point], measured: dict[str, Measured]) -> list[str]:
    """One a backbone and batch."""
    parts = []
    header = ["adapter", "precision", *(label for _, label, _, _ in COLUMNS), "trainable", "file, bytes"]
    places = dict.fromkeys((point.backbone, point.batch) for point in points)
    for backbone, batch in places:
        rows = []
        for point in points:
            found = measured[point.name]
            if (point.backbone, point.batch) != (backbone, batch) or not found.results:
                continue
            numbers = [cell_text(found, key, unit, digits) for key, _, unit, digits in COLUMNS]
            counts = [f"{int(found.values(key)[0]):,}" for key in ("trainable_parameters", "adapter_file_bytes")]
            rows.append([point.adapter, point.precision, *numbers, *counts])
        if rows:
            parts += [f"\n### {backbone}, batch {batch}\n", markdown(header, rows, left=2)]
    return parts


def whole_of(points: list[Point], measured: dict[str, Measured], matrix: Matrix, of: Point) -> Point | None:
    """Full fine-tuning of the same backbone and batch: in the same precision, else in the nearest that it has (int8: bf16)."""
    nearest = {"int8": ("bf16", "f32")}.get(of.precision, (of.precision, "f32"))
    found = {
        point.precision: point
        for point in points
        if (point.backbone, point.batch) == (of.backbone, of.batch) and measured[point.name].results
        if matrix.settings(point).get("backbone.trainable") is True and matrix.settings(point).get("adapter.type") == "none"
    }
    return next((found[precision] for precision in nearest if precision in found), None)


def ratios_to_full(points: list[Point], measured: dict[str, Measured], matrix: Matrix) -> list[tuple[Point, Point, Estimate, Estimate]]:
    """Each cell beside full fine-tuning: training throughput and peak memory."""
    rows = []
    for point in points:
        whole = whole_of(points, measured, matrix, point)
        if whole in (None, point) or not measured[point.name].results:
            continue
        sides = [measured[point.name], measured[whole.name]]
        both = [ratio(*(side.values(key) for side in sides)) for key in ("images_per_second", "peak_memory_bytes")]
        rows.append((point, whole, *both))
    return rows


def ratio_table(rows: list[tuple[Point, Point, Estimate, Estimate]]) -> list[str]:
    if not rows:
        return []
    header = ["backbone", "batch", "adapter", "precision", "beside full in", "training, times", "memory, share"]
    lines = [
        [of.backbone, str(of.batch), of.adapter, of.precision, whole.precision, speed.text(), memory.text()]
        for of, whole, speed, memory in rows
    ]
    return ["\n### Beside full fine-tuning\n", markdown(header, lines, left=5)]


def as_json(facts: Result, points: list[Point], measured: dict[str, Measured], matrix: Matrix) -> str:
    cells = []
    for point in points:
        found = measured[point.name]
        cell: Result = {**vars(point), "settings": matrix.settings(point)}
        for key in ("not_applicable", "failed"):
            if getattr(found, key):
                cell[key] = getattr(found, key)
        if found.results:
            estimates: dict[str, Estimate] = {}
            for key in found.results[0]:
                numbers = [result[key] for result in found.results]
                if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in numbers):
                    estimates[key] = estimate(numbers)
            cell["measured"] = {key: value.json() for key, value in estimates.items()}
        cells.append(cell)
    beside = [
        {"cell": of.name, "full": whole.name, "images_per_second": speed.json(), "peak_memory_bytes": memory.json()}
        for of, whole, speed, memory in ratios_to_full(points, measured, matrix)
    ]
    return json.dumps({"about": facts, "cells": cells, "beside_full": beside}, indent=1) + "\n"


def main() -> int:
    parser = Parser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("matrix", type=Path, nargs="?", default=ROOT / "bench" / "adapters.json")
    parser.add_argument("--plan", default="quick", help="of the matrix file (quick)")
    parser.add_argument("--binary", type=Path, default=ROOT / "build" / "convpass")
    parser.add_argument("--rounds", type=whole_number(1), help="the plan's if absent")
    parser.add_argument("--steps", type=whole_number(1), help="timed steps a round; the plan's if absent")
    parser.add_argument("--threads", type=whole_number(1), default=os.cpu_count())
    parser.add_argument("--only", default="", metavar="TEXT", help="the cells whose name has this in it")
    parser.add_argument("--json", type=Path, help="every round, for scripts/adapter_plot.py and others")
    options = parser.parse_args()
    matrix = Matrix(options.matrix, options.plan)
    options.binary = find_binary(options.binary)
    matrix.points = [point for point in matrix.points if options.only in point.name]
    if not matrix.points:
        raise Fault(f"--only: got {options.only!r}, wanted a part of a cell's name")
    rounds, steps = options.rounds or matrix.rounds, options.steps or matrix.steps
    facts = {**about(options.binary, options.threads), "rounds": rounds, "steps": steps, "plan": options.plan}
    measured = run_rounds(matrix.cells(options.binary, steps, options.threads), rounds)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(as_json(facts, matrix.points, measured, matrix))
    print(about_text(facts))
    print(f"{coverage_note(rounds)}, {steps} steps each after a warm-up; synthetic images, random weights.")
    beside = ratio_table(ratios_to_full(matrix.points, measured, matrix))
    print("\n".join(tables(matrix.points, measured) + beside + without_result(measured)))
    if all(found.not_applicable for found in measured.values()):
        raise Fault(f"no cell applies; the first: {measured[matrix.points[0].name].not_applicable}")
    return 1 if any(found.failed for found in measured.values()) else 0


if __name__ == "__main__":
    sys.exit(guarded("matrix", main))
