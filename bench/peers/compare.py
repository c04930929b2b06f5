#!/usr/bin/env python3
"""Runs `convpass bench` and the official Convpass in turn (A B A B ...) and compares medians.

Same architecture, batch, image size, precision and threads, random weights, synthetic images.
Prints a Markdown table, or JSON with --json FILE. Run it with the peers' Python (README.md).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MODELS = {  # our variant: timm's name
    "vit_tiny_patch16": "vit_tiny_patch16_224",
    "vit_small_patch16": "vit_small_patch16_224",
    "vit_base_patch16": "vit_base_patch16_224",
}
# What is compared: JSON key of both programs, label, whether more is better.
METRICS = (
    ("images_per_second", "training, images/s", True),
    ("inference_images_per_second", "inference, images/s", True),
    ("peak_memory_bytes", "peak memory, MB", False),
)

Result = dict[str, float]


def run_json(command: list[str], environment: dict[str, str]) -> Result:
    """The JSON object on the last line of a program's stdout."""
    done = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise SystemExit(f"exit {done.returncode}: {' '.join(command)}")
    return json.loads(lines[-1])


def our_command(options: argparse.Namespace, precision: str) -> list[str]:
    settings = {
        "backbone.variant": options.variant,
        "backbone.image_size": options.image_size,
        "backbone.drop_path": 0.1,
        "adapter.type": "convpass",
        "adapter.conv_init": "xavier",
        "adapter.dropout": 0.1,
        "train.batch_size": options.batch,
        "train.precision": precision,
    }
    command = [str(options.binary), "bench"]
    for name, value in settings.items():
        command += ["--set", f"{name}={value}"]
    for setting in options.set:
        command += ["--set", setting]
    return command


def official_command(options: argparse.Namespace, precision: str) -> list[str]:
    command = [sys.executable, str(HERE / "official_convpass.py"), "speed"]
    command += ["--model", MODELS[options.variant], "--image-size", str(options.image_size)]
    command += ["--batch", str(options.batch), "--precision", precision]
    command += ["--steps", str(options.steps)]
    if options.threads:
        command += ["--threads", str(options.threads)]
    return command


def medians(results: list[Result]) -> Result:
    return {key: statistics.median(result[key] for result in results) for key, _, _ in METRICS}


def measure(options: argparse.Namespace, precision: str) -> dict[str, object]:
    """Rounds of ours, then theirs, each in a process of its own."""
    environment = dict(os.environ)
    if options.threads:
        environment["OMP_NUM_THREADS"] = environment["MKL_NUM_THREADS"] = str(options.threads)
    ours: list[Result] = []
    theirs: list[Result] = []
    for round_ in range(options.rounds):
        print(f"{precision}, round {round_ + 1} of {options.rounds}", file=sys.stderr)
        ours.append(run_json(our_command(options, precision), environment))
        theirs.append(run_json(official_command(options, precision), environment))
        counts = [side[-1]["trainable_parameters"] for side in (ours, theirs)]
        if counts[0] != counts[1]:
            raise SystemExit(f"not the same work: {counts[0]} and {counts[1]} trainable parameters")
    our_medians, their_medians = medians(ours), medians(theirs)
    return {
        "precision": precision,
        "convpass": our_medians,
        "official": their_medians,
        "official_startup_memory_bytes": theirs[-1]["startup_memory_bytes"],
        "ratio": {key: our_medians[key] / their_medians[key] for key, _, _ in METRICS},
        "runs": {"convpass": ours, "official": theirs},
    }


def table(comparisons: list[dict[str, object]]) -> str:
    lines = [
        "| precision | what | convpass | official | ratio | better |",
        "|---|---|---:|---:|---:|---|",
    ]
    for comparison in comparisons:
        for key, label, more_is_better in METRICS:
            unit = 1e6 if key.endswith("_bytes") else 1
            ours = comparison["convpass"][key] / unit
            theirs = comparison["official"][key] / unit
            better = "convpass" if (ours > theirs) == more_is_better else "official"
            lines.append(
                f"| {comparison['precision']} | {label} | {ours:.1f} | {theirs:.1f} "
                f"| {ours / theirs:.2f} | {better} |"
            )
    return "\n".join(lines)


def machine() -> dict[str, object]:
    model = platform.processor() or platform.machine()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        names = [x for x in cpu_info.read_text().splitlines() if x.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return {"cpu": model, "cores": os.cpu_count(), "load_at_start": os.getloadavg()[0]}


def commit() -> str:
    """Short hash of the checkout, with a plus when it has local changes."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+"]
    return subprocess.run(command, text=True, capture_output=True).stdout.strip() or "unknown"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--binary", type=Path, default=ROOT / "build" / "convpass")
    parser.add_argument("--variant", choices=sorted(MODELS), default="vit_base_patch16")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", nargs="+", choices=("f32", "bf16"), default=["f32", "bf16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of the official side")
    parser.add_argument("--threads", type=int, help="both sides; absent: each one's default")
    parser.add_argument(
        "--set", action="append", default=[], metavar="K=V", help="more for `convpass bench`"
    )
    parser.add_argument("--json", type=Path, help="write everything measured to this file too")
    options = parser.parse_args()
    if not options.binary.exists():
        print(f"compare: no {options.binary}: build it first", file=sys.stderr)
        return 2
    about = {
        **machine(),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "variant": options.variant,
        "image_size": options.image_size,
        "batch": options.batch,
        "threads": options.threads,
        "rounds": options.rounds,
        "command": " ".join(our_command(options, options.precision[0])),
    }
    comparisons = [measure(options, precision) for precision in options.precision]
    if options.json:
        content = json.dumps({"about": about, "comparisons": comparisons}, indent=2) + "\n"
        options.json.write_text(content)
    print(
        f"{options.variant}, {options.image_size} px, batch {options.batch}, medians of "
        f"{options.rounds} alternating runs; {about['cpu']}, {options.threads or about['cores']} "
        f"threads, load {about['load_at_start']:.1f} at start; commit {about['commit']}, "
        f"{about['date']}\n"
    )
    print(table(comparisons))
    startup = comparisons[0]["official_startup_memory_bytes"] / 1e6
    print(
        f"\nPeak memory is a process's resident peak. Python, PyTorch and timm alone, before any "
        f"model, took {startup:.0f} MB of the official one's."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
