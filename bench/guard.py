#!/usr/bin/env python3
"""The regression guard: measures the ratios of bench/baseline.json again and says which has worsened.

    python3 bench/guard.py [bench/baseline.json]            one line a ratio; exit 1 when one has worsened
    python3 bench/guard.py [bench/baseline.json] --write    measures here and stores the values and the machine

Ratios of cells in interleaved rounds, not times: they hold on a machine whose clock or neighbours vary, but not on another
machine, which is refused (exit 2). A ratio has worsened when its median is beyond the tolerance and its interval does not
hold the stored value. Beyond the tolerance but with the stored value in its interval, it is unclear: more rounds would
tell. Standard library only.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from matrix import known_keys, named_settings, settings_of
from rounds import (
    ROOT,
    Cell,
    Estimate,
    Fault,
    Measured,
    Parser,
    about,
    about_text,
    bench_command,
    coverage_note,
    find_binary,
    guarded,
    identity,
    ratio,
    read_json,
    run_rounds,
    say,
    threads_environment,
    whole_number,
)

RATIO_KEYS = ("what", "of", "to", "better", "tolerance", "value", "interval")


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def a_line_each(content: dict[str, object]) -> str:
    """JSON text with a line for each cell and each ratio, so that a change of one shows as one."""
    parts = []
    for key, value in content.items():
        text = json.dumps(value)
        if key in ("cells", "ratios"):
            lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in value.items())
            text = "{\n" + lines + "\n }"
        parts.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


class Baseline:
    """bench/baseline.json. Errors: Fault with the place of what is wrong."""

    def __init__(self, file: Path) -> None:
        self.file = file
        known = ("about", "machine", "measured", "common", "cells", "ratios")
        self.content = known_keys(str(file), read_json(file), known)
        self.common = settings_of(f"{file}: /common", self.content.get("common", {}))
        self.cells = named_settings(str(file), self.content, "cells")
        self.machine = self.content.get("machine")
        ratios = self.content.get("ratios")
        if not isinstance(ratios, dict) or not ratios:
            raise Fault(f"{file}: /ratios: got {json.dumps(ratios)[:40]}, wanted at least one ratio")
        self.ratios: dict[str, dict] = ratios
        for name, entry in ratios.items():
            self._check(f"{file}: /ratios/{name}", entry)

    def _check(self, where: str, entry: object) -> None:
        entry = known_keys(where, entry, RATIO_KEYS)
        for side in ("of", "to"):
            pair = entry.get(side)
            names = isinstance(pair, list) and len(pair) == 2 and all(isinstance(name, str) for name in pair)
            if not names or pair[0] not in self.cells:
                raise Fault(f"{where}/{side}: got {json.dumps(pair)[:60]}, wanted [cell, key of convpass bench]")
        if entry.get("better") not in ("more", "less"):
            raise Fault(f"{where}/better: got {json.dumps(entry.get('better'))[:40]}, wanted \"more\" or \"less\"")
        tolerance = entry.get("tolerance")
        if not is_number(tolerance) or not 0 < tolerance < 1:
            raise Fault(f"{where}/tolerance: got {json.dumps(tolerance)[:40]}, wanted a number between 0 and 1")
        value = entry.get("value")
        if value is not None and (not is_number(value) or not 0 < value < float("inf")):
            raise Fault(f"{where}/value: got {json.dumps(value)[:40]}, wanted a positive number, or null before --write")

    def expect_machine(self, here: dict[str, object]) -> None:
        """Refuses a baseline without values and one of another machine."""
        again = "python3 bench/guard.py --write measures one here"
        if self.machine is None or all(entry.get("value") is None for entry in self.ratios.values()):
            raise Fault(f"{self.file}: holds no values; {again}")
        machine = self.machine
        if not isinstance(machine, dict):
            raise Fault(f"{self.file}: /machine: got {json.dumps(machine)[:40]}, wanted an object")
        for key, got in here.items():
            if machine.get(key) != got:
                text = [" ".join(map(str, v)) if isinstance(v, list) else str(v) for v in (machine.get(key), got)]
                raise Fault(f"{self.file}: of another machine: {key}: got {text[0]}, wanted {text[1]} (this one); {again}")

    def measure(self, binary: Path, rounds: int, steps: int, threads: int) -> dict[str, Measured]:
        environment = threads_environment(threads)
        options = ["--details", "--steps", str(steps)]
        cells = [
            Cell(name, bench_command(binary, {**self.common, **settings}, options), environment)
            for name, settings in self.cells.items()
        ]
        return run_rounds(cells, rounds)

    def estimate_of(self, name: str, measured: dict[str, Measured]) -> Estimate | str:
        """The ratio, or why there is none."""
        sides = []
        for cell, key in (self.ratios[name]["of"], self.ratios[name]["to"]):
            found = measured[cell]
            if found.not_applicable or found.failed:
                return f"{cell}: {found.not_applicable or found.failed}"
            try:
                values = found.values(key)
            except ValueError:
                return f"{cell}: {key} is no number"
            if not values or min(values) <= 0:
                return f"{cell}: convpass bench gave no {key}"
            sides.append(values)
        return ratio(*sides)

    def write(self, facts: dict[str, object], here: dict[str, object], found: dict[str, Estimate | str]) -> None:
        self.content["machine"] = here
        self.content["measured"] = {key: value for key, value in facts.items() if key not in here}
        for name, value in found.items():
            measured = isinstance(value, Estimate)
            self.ratios[name]["value"] = round(value.median, 4) if measured else None
            self.ratios[name]["interval"] = [round(value.low, 4), round(value.high, 4)] if measured else None
        aside = self.file.with_suffix(".new")
        aside.write_text(a_line_each(self.content))
        aside.replace(self.file)


def verdict(entry: dict, found: Estimate | str) -> tuple[str, str]:
    """One of worse, better, same, unclear and new, and what to say about it."""
    value, tolerance = entry.get("value"), entry["tolerance"]
    if value is None:
        now = found if isinstance(found, str) else found.text()
        return "new", f"not in the baseline, now {now}"
    if isinstance(found, str):
        return "worse", f"was {value:.2f}, cannot be measured any more: {found}"
    change = found.median / value - 1
    text = f"was {value:.2f}, is {found.text()}: {100 * change:+.0f} %, tolerance {100 * tolerance:.0f} %, {entry['better']} is better"
    if abs(change) <= tolerance:
        return "same", text
    if found.low <= value <= found.high:
        return "unclear", text + "; the interval holds the old value, more rounds would tell"
    return ("better" if (change > 0) == (entry["better"] == "more") else "worse"), text


def main() -> int:
    parser = Parser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("baseline", type=Path, nargs="?", default=ROOT / "bench" / "baseline.json")
    parser.add_argument("--write", action="store_true", help="store what is measured here")
    parser.add_argument("--binary", type=Path, default=ROOT / "build" / "convpass")
    parser.add_argument("--rounds", type=whole_number(3), default=6)
    parser.add_argument("--steps", type=whole_number(1), default=5, help="timed steps a round")
    parser.add_argument("--threads", type=whole_number(1), default=os.cpu_count())
    options = parser.parse_args()
    baseline = Baseline(options.baseline)
    here = identity(options.threads)
    if not options.write:
        baseline.expect_machine(here)
    options.binary = find_binary(options.binary)
    facts = {**about(options.binary, options.threads), "rounds": options.rounds, "steps": options.steps}
    say(about_text(facts))
    measured = baseline.measure(options.binary, options.rounds, options.steps, options.threads)
    found = {name: baseline.estimate_of(name, measured) for name in baseline.ratios}
    say(coverage_note(options.rounds))
    if options.write:
        broken = [f"{name}: {cell.failed}" for name, cell in measured.items() if cell.failed]
        if broken or not any(isinstance(value, Estimate) for value in found.values()):
            why = broken[0] if broken else next(iter(found.values()))
            raise Fault(f"not everything could be measured, {options.baseline} is left as it was: {why}")
        baseline.write(facts, here, found)
        for name, value in found.items():
            print(f"{name}: {value if isinstance(value, str) else value.text()}")
        return 0
    verdicts = [(name, *verdict(baseline.ratios[name], value)) for name, value in found.items()]
    for name, kind, text in verdicts:
        print(f"{kind:<8} {name}: {text}")
    return 1 if any(kind == "worse" for _, kind, _ in verdicts) else 0


if __name__ == "__main__":
    sys.exit(guarded("guard", main))
