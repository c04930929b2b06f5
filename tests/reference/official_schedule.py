#!/usr/bin/env python3
"""The learning rate of every epoch of the official Convpass loop: tests/data/convpass/official_rates.txt.

    python tests/reference/official_schedule.py            standard library
    python tests/reference/official_schedule.py --check    compares with timm 0.4.12 itself (torch, timm==0.4.12)

The loop (JieShibo/PETL-ViT, convpass/vtab, 026e4f1) makes timm 0.4.12's CosineLRScheduler with t_initial 100,
lr_min 1e-5, warmup_t 10, warmup_lr_init 1e-6 and decay_rate 0.1 over a base rate of 1e-3, trains epoch e, then
calls scheduler.step(e). So epoch e + 1 runs at the scheduler's value for e, and epoch 0 at that of its start.
Each operation stands in timm's order: the last bit depends on it.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import types
from pathlib import Path

OUT = Path(__file__).resolve().parents[1] / "data" / "convpass" / "official_rates.txt"
EPOCHS, BASE, LEAST, WARMUP, WARMUP_START = 100, 1e-3, 1e-5, 10, 1e-6


def value(t: int) -> float:
    """The scheduler's value for epoch t of its first cycle."""
    if t < WARMUP:
        return WARMUP_START + t * ((BASE - WARMUP_START) / WARMUP)
    return LEAST + 0.5 * (BASE - LEAST) * (1 + math.cos(math.pi * t / EPOCHS))


def transcribed() -> list[float]:
    return [WARMUP_START] + [value(epoch) for epoch in range(EPOCHS - 1)]


def of_timm() -> list[float]:
    # timm 0.4.12's package imports what later versions of torch no longer have; its scheduler does not.
    found = importlib.util.find_spec("timm")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("no timm, wanted timm==0.4.12")
    folder = Path(found.submodule_search_locations[0])
    version = (folder / "version.py").read_text().split("'")[1]
    if version != "0.4.12":
        raise SystemExit(f"got timm {version}, wanted timm==0.4.12")
    for name, path in (("timm", folder), ("timm.scheduler", folder / "scheduler")):
        package = types.ModuleType(name)
        package.__path__ = [str(path)]
        sys.modules[name] = package
    cosine = importlib.import_module("timm.scheduler.cosine_lr").CosineLRScheduler
    optimiser = types.SimpleNamespace(param_groups=[{"lr": BASE}])
    scheduler = cosine(
        optimiser,
        t_initial=EPOCHS,
        lr_min=LEAST,
        warmup_t=WARMUP,
        warmup_lr_init=WARMUP_START,
        decay_rate=0.1,
    )
    rates = []
    for epoch in range(EPOCHS):
        rates.append(optimiser.param_groups[0]["lr"])
        scheduler.step(epoch)
    return rates


def main() -> None:
    rates = transcribed()
    if "--check" in sys.argv[1:]:
        differ = [e for e, (a, b) in enumerate(zip(rates, of_timm(), strict=True)) if a != b]
        raise SystemExit(f"epochs that differ: {differ}" if differ else None)
    OUT.write_text("".join(f"{rate!r}\n" for rate in rates))


if __name__ == "__main__":
    main()
