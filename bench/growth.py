#!/usr/bin/env python3
"""How cost grows: time and memory of a training step with Convpass against its flops, one size at a time.

    python3 bench/growth.py [--only batch|tokens|width|h] [--json FILE] > growth.md
    python3 bench/growth.py --into docs/benchmark.md      replaces the tables between that page's markers

From a base (ViT-S, 197 tokens, batch 8, h 8) each of batch, tokens, width and h is varied alone. `time / flops` is the growth
of the time since the row before over that of the flops: above 1 the time grows faster. Memory is what the process holds
beyond the peak of the sweep's smallest size. Standard library only.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

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
    estimate,
    find_binary,
    guarded,
    markdown,
    ratio,
    run_rounds,
    threads_environment,
    whole_number,
    without_result,
)

NAMES = {192: "tiny", 384: "small", 512: "medium", 768: "base", 1024: "large"}  # by width
PATCH = 16
BEGIN, END = "<!-- growth: begin -->", "<!-- growth: end -->"


@dataclass(frozen=True)
class Size:
    batch: int = 8
    side: int = 14  # patches; 1 + side^2 tokens
    width: int = 384
    h: int = 8
    blocks: int = 12

    @property
    def tokens(self) -> int:
        return 1 + self.side**2

    @property
    def name(self) -> str:
        return f"batch {self.batch}, {self.tokens} tokens, width {self.width}, h {self.h}"

    def gflops(self) -> float:
        """Of a training step: a multiplication and an addition are two.

        Of every block: the dense layers' forward and gradient to the input, the attention's two products forward and four
        backward, the bypasses' forward, gradient to the input and to the weights. LayerNorm, GELU, additions and the head
        are left out, and so is that the lowest attention needs no backward.
        """
        n, d, h = self.tokens, self.width, self.h
        dense = 2 * 24 * n * d * d
        attention = 3 * 4 * n * n * d
        bypass = 3 * 2 * (2 * 2 * n * d * h + 2 * 9 * n * h * h)
        patches = 2 * (n - 1) * 3 * PATCH * PATCH * d
        return self.batch * (self.blocks * (dense + attention + bypass) + patches) / 1e9

    def settings(self, precision: str) -> dict[str, object]:
        return {
            "backbone.variant": f"vit_{NAMES[self.width]}_patch{PATCH}",
            "backbone.image_size": PATCH * self.side,
            "backbone.blocks": self.blocks,
            "backbone.pool": "mean",  # the last block computes every token, as the flops assume
            "adapter.type": "convpass",
            "adapter.width": self.h,
            "train.batch_size": self.batch,
            "train.precision": precision,
        }


BASE = Size()
SWEEPS = {
    "batch": ("batch", [replace(BASE, batch=batch) for batch in (1, 2, 4, 8, 16, 32, 64)]),
    "tokens": ("tokens", [replace(BASE, side=side) for side in (7, 10, 14, 20, 28, 32)]),
    "width": ("width", [replace(BASE, width=width) for width in NAMES]),
    "h": ("h", [replace(BASE, h=h) for h in (1, 2, 4, 8, 16, 32, 64)]),
}


def growth_row(before: tuple[Size, Measured] | None, size: Size, found: Measured, first: Measured, axis: str) -> list[str]:
    step = estimate(found.values("step_ms"))
    memory = [(a - b) / 1e6 for a, b in zip(found.values("peak_memory_bytes"), first.values("peak_memory_bytes"))]
    rate = estimate([size.gflops() / (value / 1e3) for value in found.values("step_ms")])
    grows = "-"
    if before:
        flops = size.gflops() / before[0].gflops()
        times: Estimate = ratio(found.values("step_ms"), before[1].values("step_ms"))
        grows = Estimate(*(v / flops for v in (times.median, times.low, times.high)), times.coverage, times.values).text()
    peak = estimate([value / 1e6 for value in found.values("peak_memory_bytes")])
    more = f"{estimate(memory).median:+.0f}" if before else "-"
    return [str(getattr(size, axis)), f"{size.gflops():.1f}", step.text(1), rate.text(0), grows, peak.text(0), more]


def table(axis: str, sizes: list[Size], measured: dict[str, Measured]) -> str:
    header = [axis, "GFLOP a step", "step, ms", "GFLOP/s", "time / flops", "peak memory, MB", "since the first"]
    rows: list[list[str]] = []
    before, first = None, None
    for size in sizes:
        found = measured[size.name]
        if not found.results:
            continue
        first = first or found
        rows.append(growth_row(before, size, found, first, axis))
        before = (size, found)
    return markdown(header, rows, left=0)


def page_parts(page: Path) -> tuple[str, str]:
    """What stands before and after the page's tables. Errors: Fault where the markers are not."""
    try:
        content = page.read_text()
    except OSError as error:
        raise Fault(f"{page}: {error.strerror}") from None
    if content.count(BEGIN) != 1 or content.count(END) != 1 or content.index(BEGIN) > content.index(END):
        raise Fault(f"{page}: wanted {BEGIN} and {END}, once each and in this order")
    return content.split(BEGIN)[0], content.split(END)[1]


def put_into(page: Path, text: str) -> None:
    before, after = page_parts(page)
    aside = page.with_name(page.name + ".new")
    aside.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
    aside.replace(page)


def main() -> int:
    parser = Parser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", choices=sorted(SWEEPS), action="append", help="one sweep (may be repeated)")
    parser.add_argument("--binary", type=Path, default=ROOT / "build" / "convpass")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--blocks", type=whole_number(1), default=BASE.blocks)
    parser.add_argument("--largest", type=whole_number(1), default=0, metavar="GFLOP", help="leave larger steps out")
    parser.add_argument("--rounds", type=whole_number(1), default=6)
    parser.add_argument("--steps", type=whole_number(1), default=3)
    parser.add_argument("--threads", type=whole_number(1), default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    parser.add_argument("--into", type=Path, metavar="PAGE", help="replace the tables of this page")
    options = parser.parse_args()
    options.binary = find_binary(options.binary)
    sweeps = {}
    for name in options.only or SWEEPS:
        axis, sizes = SWEEPS[name]
        sizes = [replace(size, blocks=options.blocks) for size in sizes]
        sweeps[axis] = [s for s in sizes if not options.largest or s.gflops() <= options.largest]
    if not any(sweeps.values()):
        raise Fault(f"--largest: got {options.largest}, which leaves no size")
    if options.into:
        page_parts(options.into)  # a page without markers is said before hours are spent
    facts = {**about(options.binary, options.threads), "rounds": options.rounds, "steps": options.steps}
    cells: dict[str, Cell] = {}
    for size in (size for sizes in sweeps.values() for size in sizes):
        command = bench_command(options.binary, size.settings(options.precision), ["--steps", str(options.steps)])
        cells[size.name] = Cell(size.name, command, threads_environment(options.threads))
    measured = run_rounds(list(cells.values()), options.rounds)
    parts = [f"{about_text(facts)}; {coverage_note(options.rounds)}; {options.precision}."]
    for axis, sizes in sweeps.items():
        parts += [f"\n{axis}, from {replace(BASE, blocks=options.blocks).name}:\n", table(axis, sizes, measured)]
    text = "\n".join(parts + without_result(measured))
    print(text)
    if all(found.not_applicable or found.failed for found in measured.values()):
        first = next(iter(measured.values()))
        raise Fault("nothing could be measured; the first: " + (first.not_applicable or first.failed))
    if options.into:
        put_into(options.into, text)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        content = {"about": facts, "cells": {name: vars(found) for name, found in measured.items()}}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    return 1 if any(found.failed for found in measured.values()) else 0


if __name__ == "__main__":
    sys.exit(guarded("growth", main))
