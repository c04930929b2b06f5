#!/usr/bin/env python3
"""What it saves to compute once what the frozen part makes of an image: images a second with and without the cache.

    scripts/study_cache.py [--binary build/convpass] [--rounds 3] [--out runs/study-cache] probe|depth ...

probe: the demo's linear probe, features computed in each epoch against features kept. depth: bypasses in the last 4 of 12
blocks with kept tokens against all 12 blocks and against the same without the cache, whose adapter file must be the same.
Rates are of the training steps after the first epoch. One JSON line a round. Standard library only; wants `make demo`'s data.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BATCH = 64  # of recipes/demo/base.json


def trained(binary: Path, recipe: str, out: Path, sets: list[str]) -> list[tuple[float, float]]:
    """Images and seconds up to the end of each epoch."""
    shutil.rmtree(out, ignore_errors=True)
    command = [str(binary), "train", str(ROOT / "recipes" / "demo" / recipe), "--out", str(out), "--set", "data.test=null"]
    for setting in sets:
        command += ["--set", setting]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip().splitlines()[-1]}")
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [(line["step"] * BATCH, line["step"] * BATCH / line["images_per_second"]) for line in log]


def rate(epochs: list[tuple[float, float]]) -> float:
    """Images a second after the first epoch."""
    (first, begun), (last, ended) = epochs[0], epochs[-1]
    return (last - first) / (ended - begun)


def probe(binary: Path, out: Path) -> dict[str, object]:
    plain = trained(binary, "linear_probe.json", out / "plain", ["data.cache_mb=0", "train.epochs=2", "schedule.warmup=3"])
    kept = trained(binary, "linear_probe.json", out / "kept", ["train.epochs=400"])
    whole = kept[-1][0] / kept[-1][1]
    return {"study": "probe", "plain": rate(plain), "kept": rate(kept), "kept_with_first_epoch": whole, "ratio": rate(kept) / rate(plain)}


def depth(binary: Path, out: Path) -> dict[str, object]:
    short = ["train.epochs=3", "schedule.warmup=3"]
    full = trained(binary, "convpass.json", out / "all", ["train.epochs=2", "schedule.warmup=3"])
    kept = trained(binary, "depth_4.json", out / "kept", short)
    plain = trained(binary, "depth_4.json", out / "plain", [*short, "data.cache_mb=0"])
    files = [(out / name / "adapter.safetensors").read_bytes() for name in ("kept", "plain")]
    rates = {"all_12": rate(full), "last_4_kept": rate(kept), "last_4": rate(plain)}
    return {"study": "depth", **rates, "ratio": rates["last_4_kept"] / rates["all_12"], "same_bytes": files[0] == files[1]}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("studies", nargs="+", choices=["probe", "depth"])
    parser.add_argument("--binary", type=Path, default=ROOT / "build" / "convpass")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "study-cache")
    options = parser.parse_args()
    for _ in range(options.rounds):
        for study in options.studies:
            print(json.dumps({"probe": probe, "depth": depth}[study](options.binary, options.out / study)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
