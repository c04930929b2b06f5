"""What every comparison here shares: measured processes in interleaved rounds, medians with intervals, the machine.

A cell is a command that prints one JSON object and runs in a process of its own, so that its peak memory is its own. All
cells run once a round (A B C A B C ...), so that what drifts on the machine touches all of them. A ratio is taken within
each round first. Standard library only; `python3 bench/rounds_check.py` checks the statistics.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIDENCE = 0.95
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8")

Result = dict[str, object]


class Fault(Exception):
    """The user's input is wrong: one line that says where, what, got, wanted. Exit status 2."""


# --- Statistics ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A median and an interval that holds the true one with probability `coverage`."""

    median: float
    low: float
    high: float
    coverage: float
    values: tuple[float, ...]

    def text(self, digits: int = 2) -> str:
        """As in 1.31 [1.28, 1.35]; without an interval where one round was all there was."""
        if len(self.values) < 2:
            return f"{self.median:.{digits}f}"
        return f"{self.median:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"

    def json(self) -> Result:
        return {"median": self.median, "interval": [self.low, self.high], "coverage": self.coverage, "rounds": list(self.values)}


def coverage_of(count: int, rank: int) -> float:
    """With which probability the `rank`-th smallest and largest of `count` values enclose the median, whatever their distribution."""
    tail = sum(math.comb(count, i) for i in range(rank)) / 2**count
    return max(0.0, 1 - 2 * tail)


def estimate(values: list[float]) -> Estimate:
    """The median with its order-statistics interval: the narrowest of at least 95 % coverage.

    It assumes nothing about the distribution. Fewer than six values cannot reach 95 %: then the interval is from the
    smallest to the largest and `coverage` says what that is worth (five: 94 %, four: 88 %, three: 75 %).
    """
    ordered = sorted(values)
    count = len(ordered)
    rank = 1
    while rank < (count + 1) // 2 and coverage_of(count, rank + 1) >= CONFIDENCE:
        rank += 1
    return Estimate(statistics.median(ordered), ordered[rank - 1], ordered[count - rank], coverage_of(count, rank), tuple(values))


def ratio(above: list[float], below: list[float]) -> Estimate:
    """Of two cells: the ratio within each round, then the estimate of those."""
    if len(above) != len(below):
        raise ValueError(f"{len(above)} rounds beside {len(below)}")
    return estimate([a / b for a, b in zip(above, below)])


def coverage_note(rounds: int) -> str:
    """What an interval of so many rounds is, for people."""
    if rounds < 2:
        return "one round: no intervals"
    covers = estimate([float(i) for i in range(rounds)]).coverage
    text = f"medians of {rounds} rounds, intervals of {100 * covers:.0f} % coverage"
    return text if covers >= CONFIDENCE else text + " (95 % takes six rounds)"


# --- Cells and rounds ---------------------------------------------------------------------------


@dataclass
class Cell:
    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Measured:
    """What became of a cell: its result in each round, or why there is none."""

    results: list[Result] = field(default_factory=list)
    not_applicable: str = ""  # refused as wrong input: the cell makes no sense
    failed: str = ""  # broke

    def values(self, key: str) -> list[float]:
        """Of every round; empty where the cell does not measure it."""
        found = [result.get(key) for result in self.results]
        return [] if any(value is None for value in found) else [float(value) for value in found]


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


def run_cell(cell: Cell) -> Measured:
    """One result, or the line that says why there is none: status 2 is a refusal, any other a failure."""
    try:
        done = subprocess.run(cell.command, env={**os.environ, **cell.environment}, text=True, capture_output=True)
    except OSError as error:
        raise Fault(f"{cell.command[0]}: {error.strerror}, wanted a program") from None
    if done.returncode == 2:
        return Measured(not_applicable=last_line(done.stderr).removeprefix("convpass: "))
    if done.returncode:
        return Measured(failed=f"exit {done.returncode}: {last_line(done.stderr)}")
    try:
        result = json.loads(last_line(done.stdout))
    except json.JSONDecodeError:
        return Measured(failed=f"got {last_line(done.stdout)[:60]!r}, wanted a JSON object")
    return Measured(results=[result])


def run_rounds(cells: list[Cell], rounds: int) -> dict[str, Measured]:
    """All cells in turn, `rounds` times. A cell that gave no result is left out of later rounds and has none."""
    measured: dict[str, Measured] = {}
    for round_ in range(rounds):
        for number, cell in enumerate(cells):
            known = measured.setdefault(cell.name, Measured())
            if known.not_applicable or known.failed:
                continue
            say(f"round {round_ + 1} of {rounds}, {number + 1} of {len(cells)}: {cell.name}")
            new = run_cell(cell)
            if not new.results:
                known.results, known.not_applicable, known.failed = [], new.not_applicable, new.failed
                say(f"  {new.not_applicable or new.failed}")
            known.results += new.results
    return measured


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# --- The machine --------------------------------------------------------------------------------


def cpu_info() -> dict[str, str]:
    """The first processor of /proc/cpuinfo."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().split("\n\n")[0].splitlines() if path.exists() else []
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def identity(threads: int) -> Result:
    """What makes two machines the same to a ratio of times: processor, its instructions, cores, threads."""
    info = cpu_info()
    flags = set(info.get("flags", "").split())
    return {
        "cpu": info.get("model name", platform.processor() or platform.machine()),
        "flags": [flag for flag in FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "threads": threads,
    }


def commit() -> str:
    """Short hash of the checkout, with a plus when it has local changes."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(command, text=True, capture_output=True).stdout.strip() or "unknown"


def about(binary: Path, threads: int) -> Result:
    """All that a measured number depends on, taken before anything is measured."""
    try:
        version = subprocess.run([str(binary), "--version"], text=True, capture_output=True).stdout
    except OSError as error:
        raise Fault(f"{binary}: {error.strerror}") from None
    lines = dict(line.split(" ", 1) for line in version.splitlines() if " " in line)
    return {
        **identity(threads),
        "load_at_start": round(os.getloadavg()[0], 2),
        "libtorch": lines.get("LibTorch", "unknown"),
        "commit": commit(),
        "date": datetime.datetime.now().isoformat(timespec="minutes"),
    }


def about_text(facts: Result) -> str:
    busy = " (the machine is not quiet)" if float(facts["load_at_start"]) > 0.5 else ""  # type: ignore[arg-type]
    return (
        f"{facts['cpu']}, {facts['threads']} of {facts['cores']} threads, {' '.join(facts['flags'])}; load "  # type: ignore[arg-type]
        f"{facts['load_at_start']} at the start{busy}; LibTorch {facts['libtorch']}; commit {facts['commit']}, {facts['date']}"
    )


def threads_environment(threads: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def find_binary(path: Path) -> Path:
    if not path.is_file() or not os.access(path, os.X_OK):
        raise Fault(f"{path}: no such program, wanted the built convpass (make build, or --binary)")
    return path.resolve()


def bench_command(binary: Path, settings: dict[str, object], options: list[str]) -> list[str]:
    """`convpass bench` with these keys of a recipe."""
    command = [str(binary), "bench", *options]
    for key, value in settings.items():
        command += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return command


# --- Output and input ---------------------------------------------------------------------------


def markdown(header: list[str], rows: list[list[str]], left: int = 1) -> str:
    """A table whose first `left` columns are text and the others numbers."""
    marks = ["---"] * left + ["---:"] * (len(header) - left)
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, marks, *rows])


def without_result(measured: dict[str, Measured]) -> list[str]:
    """The cells that have none, each with the line that says why."""
    lines = []
    for title, reason_of in (("Does not apply", "not_applicable"), ("Failed", "failed")):
        reasons = {name: getattr(found, reason_of) for name, found in measured.items()}
        listed = [f"- {name}: {reason}" for name, reason in reasons.items() if reason]
        if listed:
            lines += [f"\n### {title}\n", *listed]
    return lines


def read_json(path: Path) -> object:
    """Errors: Fault for a file that is not there or is damaged."""
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise Fault(f"{path}: {error.strerror}") from None
    except ValueError as error:  # also bytes that are no text
        raise Fault(f"{path}: damaged: {error}") from None


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str):
        raise Fault(message)


def whole_number(least: int):
    """For argparse: a whole number of at least `least`."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or int(text) < least:
            raise argparse.ArgumentTypeError(f"got {text!r}, wanted a whole number of at least {least}")
        return int(text)

    return parse


def guarded(program: str, main) -> int:
    """Runs main(); a Fault is one line on stderr and status 2."""
    try:
        return main()
    except Fault as fault:
        print(f"{program}: {fault}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
