#!/usr/bin/env python3
"""BiT beside timm: full fine-tuning and frozen inference, ours and timm's in turn, medians compared.

Run it with the peers' Python (README.md):

    ~/peers/bin/python bench/peers/bit.py --threads 2 --json bit.json

Each side of each round is a process of its own. Both train every weight of the same network with SGD (momentum 0.9)
in float32 on synthetic images; frozen inference is in float32, and in bfloat16 where timm runs under autocast.
`bit.py timm` is timm's side alone and prints one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rounds import ROOT, Cell, Fault, Result, about, find_binary, guarded, run_cell, threads_environment  # noqa: E402

KEYS = (  # of the JSON of both programs, what it is, whether more is better
    ("images_per_second", "images/s", True),
    ("peak_memory_bytes", "peak memory, MB", False),
)
CASES = {  # trainable, precision
    "training step, f32": (True, "f32"),
    "inference, f32": (False, "f32"),
    "inference, bf16": (False, "bf16"),
}


def timm_side(options: argparse.Namespace) -> Result:
    import timm
    import torch

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = timm.create_model(options.model, num_classes=100)
    images = torch.randn(options.batch, 3, options.image_size, options.image_size)
    labels = torch.randint(100, (options.batch,))
    if options.channels_last:
        model = model.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    bf16 = torch.autocast("cpu", dtype=torch.bfloat16)
    autocast = bf16 if options.precision == "bf16" else contextlib.nullcontext()

    def train() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    def infer() -> None:
        with torch.inference_mode(), autocast:
            model(images)

    work = train if options.trainable else infer
    model.train(options.trainable)
    times = []
    for step in range(2 + options.steps):
        start = time.perf_counter()
        work()
        if step >= 2:
            times.append(time.perf_counter() - start)
    return {
        "images_per_second": options.batch / statistics.median(times),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "trainable_parameters": sum(weight.numel() for weight in model.parameters()),
    }


def our_command(options: argparse.Namespace, trainable: bool, precision: str) -> list[str]:
    settings = {
        "backbone.variant": options.model,
        "backbone.image_size": options.image_size,
        "backbone.trainable": "true" if trainable else "false",
        "adapter.type": "none",
        "optimizer.type": "sgd",
        "optimizer.momentum": 0.9,
        "optimizer.lr": 1e-3,
        "optimizer.weight_decay": 0,
        "train.batch_size": options.batch,
        "train.precision": precision,
        "train.device": "cpu",
    }
    command = [str(options.binary), "bench", "--steps", str(options.steps)]
    for name, value in settings.items():
        command += ["--set", f"{name}={value}"]
    return command


def timm_command(options: argparse.Namespace, trainable: bool, precision: str) -> list[str]:
    command = [sys.executable, __file__, "timm", "--precision", precision]
    for name in ("model", "image_size", "batch", "steps", "threads"):
        command += ["--" + name.replace("_", "-"), str(getattr(options, name))]
    if trainable:
        command.append("--trainable")
    return command + (["--channels-last"] if options.channels_last else [])


def run_json(command: list[str], environment: dict[str, str]) -> Result:
    """Of one run. Errors: Fault when it gave nothing."""
    run = run_cell(Cell(command[0], command, environment))
    if not run.results:
        raise Fault(run.not_applicable or run.failed)
    return run.results[0]


def ours(options: argparse.Namespace, trainable: bool, precision: str, environment) -> Result:
    result = run_json(our_command(options, trainable, precision), environment)
    if not trainable:  # where nothing but the head trains, a step is a forward pass and little more
        result["images_per_second"] = result["inference_images_per_second"]
    return result


def compare(options: argparse.Namespace) -> dict[str, object]:
    environment = threads_environment(options.threads)
    runs = {case: {"convpass": [], "timm": []} for case in CASES}
    for round_ in range(options.rounds):
        for case, (trainable, precision) in CASES.items():
            print(f"round {round_ + 1} of {options.rounds}: {case}", file=sys.stderr)
            pair = runs[case]
            pair["convpass"].append(ours(options, trainable, precision, environment))
            pair["timm"].append(run_json(timm_command(options, trainable, precision), environment))
            counts = [pair[side][-1]["trainable_parameters"] for side in ("convpass", "timm")]
            if trainable and counts[0] != counts[1]:
                raise SystemExit(f"not the same work: {counts[0]} and {counts[1]} parameters train")
    return runs


def table(runs: dict[str, dict[str, list[Result]]]) -> str:
    lines = ["| what | | convpass | timm | ratio | ratio of each round |", "|---|---|---:|---:|---:|---|"]
    for case, pair in runs.items():
        for key, label, _ in KEYS:
            unit = 1e6 if key.endswith("_bytes") else 1
            mine, theirs = ([result[key] / unit for result in pair[side]] for side in ("convpass", "timm"))
            each = " ".join(f"{a / b:.2f}" for a, b in zip(mine, theirs))
            a, b = statistics.median(mine), statistics.median(theirs)
            lines.append(f"| {case} | {label} | {a:.1f} | {b:.1f} | {a / b:.2f} | {each} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("side", nargs="?", choices=("both", "timm"), default="both")
    parser.add_argument("--binary", type=Path, default=ROOT / "build" / "convpass")
    parser.add_argument("--model", default="resnetv2_50x1_bit", help="a name of timm's")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--channels-last", action="store_true", help="timm's side in this layout")
    parser.add_argument("--json", type=Path, help="write everything measured to this file too")
    parser.add_argument("--trainable", action="store_true", help="timm alone: a training step")
    parser.add_argument("--precision", choices=("f32", "bf16"), default="f32", help="timm alone")
    options = parser.parse_args()
    if options.side == "timm":
        print(json.dumps(timm_side(options)), flush=True)
        return 0
    options.binary = find_binary(options.binary)
    facts = {**about(options.binary, options.threads), "batch": options.batch}
    runs = compare(options)
    if options.json:
        options.json.write_text(json.dumps({"about": facts, "runs": runs}, indent=2) + "\n")
    print(f"{options.model}, {options.image_size} px, {facts}\n\n{table(runs)}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded("bit", main))
