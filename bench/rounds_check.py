"""Checks the statistics against values worked out by hand and against chance, what the guard says, and that bad files are
refused: python3 bench/rounds_check.py. Nothing is measured."""

import json
import random
import sys
import tempfile
from pathlib import Path

from guard import Baseline, verdict
from matrix import Matrix, Point, ratios_to_full
from rounds import ROOT, Cell, Fault, Measured, coverage_of, estimate, identity, ratio, run_cell


def close(got: float, wanted: float, within: float = 1e-12) -> None:
    assert abs(got - wanted) <= within, f"got {got}, wanted {wanted}"


def check_guard() -> None:
    entry = {"value": 2.0, "tolerance": 0.1, "better": "more"}
    cases = {
        "same": [1.9, 2.0, 2.1],
        "worse": [1.5, 1.6, 1.7],
        "better": [2.4, 2.5, 2.6],
        "unclear": [1.5, 1.6, 2.1],
    }
    for wanted, values in cases.items():
        assert verdict(entry, estimate(values))[0] == wanted, (wanted, verdict(entry, estimate(values)))
    assert verdict({**entry, "better": "less"}, estimate([1.5, 1.6, 1.7]))[0] == "better"
    assert verdict(entry, "cannot")[0] == "worse"
    assert verdict({**entry, "value": None}, estimate([1.0]))[0] == "new"


def refused(make, content: str, part: str) -> None:
    """`make` of a file with this content is a Fault whose one line holds `part`."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "file.json"
        file.write_text(content)
        try:
            make(file)
        except Fault as fault:
            assert part in str(fault) and "\n" not in str(fault), fault
            return
    raise AssertionError(f"not refused: {content}")


def check_refusals() -> None:
    baseline = json.loads((ROOT / "bench" / "baseline.json").read_text())
    name = next(iter(baseline["ratios"]))

    def changed(**changes: object) -> str:
        return json.dumps({**baseline, "ratios": {name: {**baseline["ratios"][name], **changes}}})

    refused(Baseline, '{"ratios": ', "damaged")
    refused(Baseline, "[]", "wanted an object")
    refused(Baseline, changed(tolerance=True), "/tolerance: got true")
    refused(Baseline, changed(value="fast"), '/value: got "fast"')
    refused(Baseline, changed(value=float("nan")), "/value: got NaN")
    refused(Baseline, changed(of=["no cell", "step_ms"]), "/of: got")
    here = identity(1)
    other = {**baseline, "machine": {**here, "threads": 99}, "ratios": {name: {**baseline["ratios"][name], "value": 1.0}}}
    refused(lambda file: Baseline(file).expect_machine(here), json.dumps(other), "another machine: threads: got 99, wanted 1")
    empty = json.dumps({**baseline, "ratios": {name: {**baseline["ratios"][name], "value": None}}})
    refused(lambda file: Baseline(file).expect_machine(here), empty, "holds no values")

    matrix = json.loads((ROOT / "bench" / "adapters.json").read_text())
    for plan in matrix["plans"]:
        assert Matrix(ROOT / "bench" / "adapters.json", plan).points

    def plan_of(cells: object) -> str:
        return json.dumps({**matrix, "plans": {"quick": {"cells": cells}}})

    def quick(file: Path) -> Matrix:
        return Matrix(file, "quick")

    group = {"adapters": ["full"], "backbones": "all", "batches": [1], "precisions": ["f32"]}
    refused(quick, json.dumps({**matrix, "adaptors": {}}), "did you mean 'adapters'?")
    refused(quick, json.dumps({**matrix, "adapters": {}}), "/adapters: got {}, wanted at least one")
    refused(quick, plan_of([]), "/cells: got []")
    refused(quick, plan_of([{**group, "adapters": ["Convpas"]}]), "did you mean 'Convpass'?")
    refused(quick, plan_of([{**group, "batches": [0]}]), "batches: got [0]")
    refused(quick, plan_of([{**group, "precisions": []}]), "precisions: got []")


def check_beside_full() -> None:
    """An adapter is set beside full fine-tuning in its own precision; int8, which nothing trains whole in, beside bf16."""
    matrix = Matrix(ROOT / "bench" / "adapters.json", "full")
    cells = {("full", "f32"): 10, ("full", "bf16"): 20, ("Convpass", "bf16"): 40, ("Convpass", "int8"): 60, ("LoRA", "f32"): 15}
    points = [Point("ViT-B/16 224", 16, precision, adapter) for adapter, precision in cells]
    speeds = dict(zip(points, cells.values()))
    results = {p.name: Measured([{"images_per_second": s, "peak_memory_bytes": 100 / s}] * 3) for p, s in speeds.items()}
    rows = {(of.adapter, of.precision): (to.precision, a.median, b.median) for of, to, a, b in ratios_to_full(points, results, matrix)}
    wanted = {("Convpass", "bf16"): ("bf16", 2, 0.5), ("Convpass", "int8"): ("bf16", 3, 1 / 3), ("LoRA", "f32"): ("f32", 1.5, 1 / 1.5)}
    assert rows.keys() == wanted.keys(), rows
    for key, (precision, speed, memory) in wanted.items():
        assert rows[key][0] == precision, rows
        close(rows[key][1], speed)
        close(rows[key][2], memory)


def main() -> None:
    check_guard()
    check_refusals()
    check_beside_full()
    # 1 - 2 * 2^-n for the extremes; of ten, the second values: 1 - 2 * 11 / 1024.
    close(coverage_of(5, 1), 0.9375)
    close(coverage_of(6, 1), 0.96875)
    close(coverage_of(10, 2), 1 - 22 / 1024)
    close(coverage_of(1, 1), 0)
    ten = estimate([float(i) for i in (7, 1, 9, 3, 5, 2, 8, 10, 4, 6)])
    assert (ten.median, ten.low, ten.high) == (5.5, 2, 9), ten
    three = estimate([3.0, 1.0, 2.0])
    assert (three.median, three.low, three.high, three.coverage) == (2, 1, 3, 0.75), three
    one = estimate([4.0])
    assert (one.median, one.low, one.high, one.text(1)) == (4, 4, 4, "4.0"), one
    assert ratio([2.0, 8.0], [1.0, 2.0]).values == (2.0, 4.0)
    # A skewed distribution whose median is known: the interval holds it as often as it says.
    generator = random.Random(0)
    for count in (6, 9, 15):
        held = 0
        for _ in range(4000):
            e = estimate([generator.expovariate(1) for _ in range(count)])
            held += e.low <= 0.6931471805599453 <= e.high
        close(held / 4000, coverage_of(count, 1) if count == 6 else e.coverage, 0.015)
    # What a process says decides what became of its cell.
    python = [sys.executable, "-c"]
    assert run_cell(Cell("a", [*python, "print('x'); print('{\"k\": 1}')"])).values("k") == [1.0]
    refusal = "import sys; print('convpass: no', file=sys.stderr); sys.exit(2)"
    assert run_cell(Cell("b", [*python, refusal])).not_applicable == "no"
    assert run_cell(Cell("c", [*python, "raise SystemExit(1)"])).failed.startswith("exit 1")
    assert run_cell(Cell("d", [*python, "print('?')"])).failed.startswith("got '?'")
    print("rounds_check: passed")


if __name__ == "__main__":
    main()
