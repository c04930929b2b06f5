"""Trains every adapter of bench/adapters.json on the demo's task: demo_adapters.py CONVPASS OUT

For each cell of the plan "demo" and each of SEEDS (default "0") one run OUT/NAME-seedN of recipes/demo/base.json with the
cell's recipe keys. Finished runs are kept and others resumed, so that it can be stopped at any time. What convpass refuses
is named and passed over. `scripts/adapter_plot.py` draws the result. Standard library only.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bench"))

from matrix import Matrix, Point  # noqa: E402
from rounds import Fault, bench_command, find_binary, guarded, last_line, say  # noqa: E402


def run_name(point: Point) -> str:
    """As in Convpass-bf16."""
    return f"{point.adapter}-{point.precision}".replace(" ", "_").replace("/", "_")


def seeds() -> list[int]:
    words = os.environ.get("SEEDS", "0").split()
    if not words or not all(word.isdigit() for word in words):
        raise Fault(f"SEEDS: got {' '.join(words)!r}, wanted whole numbers such as \"0 1 2\"")
    return [int(word) for word in words]


def train(convpass: Path, out: Path, matrix: Matrix, point: Point, seed: int) -> str:
    """Why there is no run, or nothing."""
    run = out / f"{run_name(point)}-seed{seed}"
    if (run / "result.json").exists():
        say(f"{run} is finished (delete it to train again)")
        return ""
    keys = {**matrix.common, **matrix.adapters[point.adapter], "train.precision": point.precision}
    keys |= {"train.batch_size": point.batch, "train.seed": seed}
    sets = bench_command(convpass, keys, [])[2:]
    command = [str(convpass), "train", str(ROOT / "recipes/demo/base.json"), "--out", str(run), "--resume", *sets]
    say(" ".join(command))
    done = subprocess.run(command, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return f"exit {done.returncode}: {last_line(done.stderr)}" if done.returncode else ""


def main() -> int:
    if len(sys.argv) != 3:
        raise Fault("wanted: demo_adapters.py CONVPASS OUT")
    convpass, out = find_binary(Path(sys.argv[1])), Path(sys.argv[2])
    matrix = Matrix(ROOT / "bench" / "adapters.json", "demo")
    out.mkdir(parents=True, exist_ok=True)
    reasons = []
    for seed in seeds():
        for point in matrix.points:
            if why := train(convpass, out, matrix, point, seed):
                say(f"  {why}")
                reasons.append(f"{point.adapter}, {point.precision}, seed {seed}: {why}")
    for reason in reasons:
        print(reason)
    return 1 if any(": exit 2:" not in reason for reason in reasons) else 0


if __name__ == "__main__":
    sys.exit(guarded("demo_adapters", main))
