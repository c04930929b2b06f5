"""Checks rounds.py against values worked out by hand and against chance: python3 bench/rounds_check.py."""

import random
import sys

from rounds import Cell, coverage_of, estimate, ratio, run_cell


def close(got: float, wanted: float, within: float = 1e-12) -> None:
    assert abs(got - wanted) <= within, f"got {got}, wanted {wanted}"


def main() -> None:
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
    refused = "import sys; print('convpass: no', file=sys.stderr); sys.exit(2)"
    assert run_cell(Cell("b", [*python, refused])).not_applicable == "no"
    assert run_cell(Cell("c", [*python, "raise SystemExit(1)"])).failed.startswith("exit 1")
    assert run_cell(Cell("d", [*python, "print('?')"])).failed.startswith("got '?'")
    print("rounds_check: passed")


if __name__ == "__main__":
    main()
