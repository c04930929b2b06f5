#!/usr/bin/env python3
"""convpass beside PyTorch in interleaved rounds: the official Convpass formula, PEFT's LoRA and full fine-tuning on timm.

Both sides have the same architecture, batch, image size, threads and number of trained parameters, random weights and
synthetic images; each cell of each round is a process of its own. Prints Markdown; --json FILE keeps every round. Run it
with the peers' Python (README.md).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from rounds import (  # noqa: E402
    ROOT,
    Cell,
    Estimate,
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

METHODS = {"convpass": "Convpass", "lora": "LoRA", "full": "full"}  # of speed.py: of adapters.json
PRECISIONS = ("f32", "bf16", "int8")
WORKLOADS = ("vit_base_patch16:224:16", "vit_small_patch14:98:64")


@dataclass(frozen=True)
class Metric:
    key: str
    label: str
    unit: float = 1
    more_is_better: bool = True


METRICS = (
    Metric("images_per_second", "training, images/s"),
    Metric("inference_images_per_second", "inference, images/s"),
    Metric("latency_ms", "latency, ms", 1, False),
    Metric("latency_p95_ms", "p95, ms", 1, False),
    Metric("peak_memory_bytes", "peak memory, MB", 1e6, False),
)
LESS_START = "peak_memory_bytes less start"  # theirs without what the process held before it built a model


@dataclass(frozen=True)
class Side:
    """One cell: a method on one side in one setting."""

    workload: str
    method: str
    precision: str
    peer: bool
    compiled: bool = False

    @property
    def name(self) -> str:
        program = "PyTorch" if self.peer else "ours"
        return f"{program}: {METHODS[self.method]} {self.precision}{' compiled' if self.compiled else ''}"

    @property
    def key(self) -> str:
        return f"{self.workload}, {self.name}"


def our_command(options: argparse.Namespace, side: Side, adapters: Result) -> list[str]:
    variant, size, batch = side.workload.split(":")
    settings = {
        "backbone.variant": variant,
        "backbone.image_size": int(size),
        "backbone.drop_path": 0.1,
        **adapters[METHODS[side.method]],
        "train.batch_size": int(batch),
        "train.precision": side.precision,
        "train.device": "cpu",
    }
    extra = [word for setting in options.set for word in ("--set", setting)]
    return bench_command(options.binary, settings, ["--steps", str(options.steps), "--details"]) + extra


def peer_command(options: argparse.Namespace, side: Side) -> list[str]:
    variant, size, batch = side.workload.split(":")
    command = [sys.executable, str(HERE / "speed.py"), "--method", side.method, "--variant", variant]
    command += ["--image-size", size, "--batch", batch, "--precision", side.precision]
    command += ["--steps", str(options.steps), "--threads", str(options.threads)]
    return command + (["--compile"] if side.compiled else [])


def sides_of(options: argparse.Namespace) -> list[Side]:
    """In the order in which a round runs them: ours of each method, then its peers."""
    sides = []
    for workload in options.workload:
        for method in options.methods:
            ours = [p for p in options.precision if p != "int8" or method != "full"]  # only frozen weights are quantised
            sides += [Side(workload, method, precision, peer=False) for precision in ours]
            for compiled in (False, True)[: 1 if options.no_compile else 2]:
                for precision in ("f32", "bf16"):
                    sides.append(Side(workload, method, precision, True, compiled))
    return sides


def best_peer(peers: list[Side], measured: dict[str, Measured], metric: Metric) -> Side | None:
    """The setting of PyTorch with the best median: chosen on the same rounds, which favours PyTorch."""
    medians = {p: estimate(measured[p.key].values(metric.key)).median for p in peers if measured[p.key].results}
    choose = max if metric.more_is_better else min
    return choose(medians, key=lambda peer: medians[peer]) if medians else None


def better_by(ours: Measured, theirs: Measured, metric: Metric) -> Estimate:
    """How many times better we are; of memory, our share of theirs."""
    above, below = ours.values(metric.key), theirs.values(metric.key)
    if metric.key.startswith("latency"):
        above, below = below, above
    return ratio(above, below)


def all_ratios(ours: Measured, chosen: dict[str, Measured]) -> dict[str, Estimate]:
    """By each metric, to the peer chosen for it."""
    found = {metric.key: better_by(ours, chosen[metric.key], metric) for metric in METRICS}
    peer = chosen["peak_memory_bytes"]
    start = peer.values("startup_memory_bytes")
    rest = [peak - before for peak, before in zip(peer.values("peak_memory_bytes"), start)]
    return {**found, LESS_START: ratio(ours.values("peak_memory_bytes"), rest)}


def not_the_same(ours: Measured, theirs: Measured) -> str:
    counts = [int(side.values("trainable_parameters")[0]) for side in (ours, theirs)]
    return "" if counts[0] == counts[1] else f"not the same work: {counts[0]} and {counts[1]} parameters train"


def ratios(sides: list[Side], measured: dict[str, Measured]) -> list[Result]:
    """Ours beside each peer of the same method, and beside the best of them by each metric."""
    rows: list[Result] = []
    for ours in (side for side in sides if not side.peer and measured[side.key].results):
        peers = [p for p in sides if p.peer and (p.workload, p.method) == (ours.workload, ours.method)]
        mine = measured[ours.key]
        for peer in (p for p in peers if measured[p.key].results):
            row: Result = {"workload": ours.workload, "ours": ours.name, "against": peer.name}
            row["differs"] = not_the_same(mine, measured[peer.key])
            row["ratios"] = all_ratios(mine, {metric.key: measured[peer.key] for metric in METRICS})
            rows.append(row)
        best = {metric.key: best_peer(peers, measured, metric) for metric in METRICS}
        if all(best.values()):
            row = {"workload": ours.workload, "ours": ours.name, "against": "the best of PyTorch", "differs": ""}
            row["chosen"] = {key: peer.name for key, peer in best.items()}
            row["differs"] = not_the_same(mine, measured[best[METRICS[0].key].key])
            row["ratios"] = all_ratios(mine, {key: measured[peer.key] for key, peer in best.items()})
            rows.append(row)
    return rows


def value_table(sides: list[Side], measured: dict[str, Measured]) -> str:
    rows = []
    for side in sides:
        found = measured[side.key]
        if not found.results:
            continue
        cells = []
        for metric in METRICS:
            digits = 0 if metric.unit > 1 else 1
            cells.append(estimate([v / metric.unit for v in found.values(metric.key)]).text(digits))
        rows.append([side.name, *cells, f"{int(found.values('trainable_parameters')[0]):,}"])
    return markdown(["", *(metric.label for metric in METRICS), "trainable"], rows)


def ratio_table(rows: list[Result]) -> str:
    header = ["ours", "against", "training", "inference", "latency", "p95", "memory", "memory less start"]
    lines = []
    for row in rows:
        cells = [row["differs"]] + [""] * len(METRICS) if row["differs"] else [e.text() for e in row["ratios"].values()]
        lines.append([row["ours"], row["against"], *cells])
    return markdown(header, lines, left=2)


def report(options: argparse.Namespace, facts: Result, sides: list[Side], measured: dict[str, Measured]) -> str:
    startup = [m.values("startup_memory_bytes")[0] / 1e6 for m in measured.values() if m.values("startup_memory_bytes")]
    parts = [about_text(facts), f"{coverage_note(options.rounds)}, {options.steps} steps each after a warm-up."]
    if startup:
        parts.append(f"Of PyTorch's memory {max(startup):.0f} MB are there before a model is built.")
    rows = ratios(sides, measured)
    for workload in options.workload:
        variant, size, batch = workload.split(":")
        mine = [side for side in sides if side.workload == workload]
        parts += ["", f"### {variant}, {size} px, batch {batch}", "", value_table(mine, measured), ""]
        parts.append("How many times better than PyTorch; of memory the share of PyTorch's:\n")
        parts.append(ratio_table([row for row in rows if row["workload"] == workload]))
    return "\n".join(parts + without_result(measured))


def workload(text: str) -> str:
    parts = text.split(":")
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts[1:]):
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted VARIANT:IMAGE_SIZE:BATCH, such as {WORKLOADS[0]}")
    return text


def parse() -> argparse.Namespace:
    parser = Parser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--binary", type=Path, default=ROOT / "build" / "convpass")
    parser.add_argument("--workload", nargs="+", type=workload, default=list(WORKLOADS), metavar="VARIANT:SIZE:BATCH")
    parser.add_argument("--methods", nargs="+", choices=sorted(METHODS), default=list(METHODS))
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), help="of ours")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--rounds", type=whole_number(1), default=6)
    parser.add_argument("--steps", type=whole_number(1), default=3, help="timed steps of both sides")
    parser.add_argument("--threads", type=whole_number(1), default=os.cpu_count())
    parser.add_argument("--set", action="append", default=[], metavar="K=V", help="more for `convpass bench`")
    parser.add_argument("--json", type=Path, help="write everything measured to this file too")
    return parser.parse_args()


def main() -> int:
    options = parse()
    options.binary = find_binary(options.binary)
    adapters = read_json(HERE.parent / "adapters.json")["adapters"]
    facts = about(options.binary, options.threads)
    sides = sides_of(options)
    environment = threads_environment(options.threads)
    cells = []
    for side in sides:
        command = peer_command(options, side) if side.peer else our_command(options, side, adapters)
        cells.append(Cell(side.key, command, environment))
    measured = run_rounds(cells, options.rounds)
    print(report(options, facts, sides, measured))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        rows = [{**row, "ratios": {k: e.json() for k, e in row["ratios"].items()}} for row in ratios(sides, measured)]
        everything = {name: vars(found) for name, found in measured.items()}
        content = {"about": {**facts, "rounds": options.rounds, "steps": options.steps}, "ratios": rows, "cells": everything}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    return 1 if any(found.failed for found in measured.values()) else 0


if __name__ == "__main__":
    sys.exit(guarded("compare", main))
