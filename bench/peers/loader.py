#!/usr/bin/env python3
"""Decoding and USI's augmentation, ours and timm's loader in turn, from the same JPEG files.

    python bench/peers/loader.py --workers 2 --json loader.json      (torch, torchvision, timm, Pillow)

Makes `--images` JPEG files of about ImageNet's size (500 x 375 and the like, quality 90) once, by cutting random parts
out of tests/data/images/photo.jpg and enlarging them. Both sides crop at random, flip, draw RandAugment
"rand-m7-mstd0.5-inc1" with bicubic interpolation and hand out normalised float batches of 224 pixels; both have the
same number of workers (processes there, threads here) and batch size; mixing is left out on both sides. Prints images/s
of each round and the ratio of the medians. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
AUGMENT = "rand-m7-mstd0.5-inc1"


def make_images(folder: Path, count: int) -> None:
    from PIL import Image

    photo = Image.open(ROOT / "tests/data/images/photo.jpg").convert("RGB")
    draw = random.Random(0)
    for i in range(count):
        file = folder / str(i % 10) / f"{i}.jpg"
        if file.exists():
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        width, height = draw.choice([(500, 375), (500, 333), (375, 500), (500, 500), (640, 480)])
        share = draw.uniform(0.5, 1)
        w = int(share * min(photo.width, photo.height * width / height))
        h = int(w * height / width)
        left, top = draw.randint(0, photo.width - w), draw.randint(0, photo.height - h)
        part = photo.resize((width, height), Image.Resampling.BICUBIC, (left, top, left + w, top + h))
        part.save(file, quality=90)


def timm_loader(options: argparse.Namespace) -> float:
    """Images per second; in a process of its own."""
    import torch
    from timm.data import create_dataset, create_loader

    torch.set_num_threads(1)
    loader = create_loader(
        create_dataset("", root=str(options.folder)),
        input_size=(3, 224, 224),
        batch_size=options.batch,
        is_training=True,
        use_prefetcher=False,
        auto_augment=AUGMENT,
        interpolation="bicubic",
        num_workers=options.workers,
        persistent_workers=True,
        device=torch.device("cpu"),
    )
    batches = iter(loader)
    for _ in range(options.workers):
        next(batches)
    start = time.perf_counter()
    images = sum(len(next(batches)[0]) for _ in range(options.steps))
    return images / (time.perf_counter() - start)


def our_loader(options: argparse.Namespace) -> float:
    sets = {
        "backbone.variant": "vit_base_patch16",
        "data.train.path": options.folder.resolve(),
        "data.cache_mb": 0,
        "augment.crop": "random_resized",
        "augment.flip": 0.5,
        "augment.rand_augment": AUGMENT,
        "train.batch_size": options.batch,
        "train.workers": options.workers,
    }
    command = [str(options.convpass), "bench", "--loader", "--steps", str(options.steps)]
    for key, value in sets.items():
        command += ["--set", f"{key}={value}"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)["loader_images_per_second"]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("/tmp/convpass_loader_images"))
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--convpass", type=Path, default=ROOT / "build/convpass")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--timm", action="store_true", help="timm's side alone, one number")
    options = parser.parse_args()
    if options.timm:
        print(timm_loader(options))
        return 0
    make_images(options.folder, options.images)
    print(f"load at the start: {os.getloadavg()[0]:.2f}")
    rounds = []
    for i in range(options.rounds):
        peer = subprocess.run([sys.executable, *sys.argv, "--timm"], capture_output=True, text=True, check=True)
        rounds.append({"convpass": our_loader(options), "timm": float(peer.stdout.split()[-1])})
        print(f"round {i + 1}: convpass {rounds[-1]['convpass']:.1f} images/s, timm {rounds[-1]['timm']:.1f}")
    medians = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
    print(f"median: convpass {medians['convpass']:.1f}, timm {medians['timm']:.1f} images/s; "
          f"{medians['convpass'] / medians['timm']:.2f} times as fast")
    if options.json:
        options.json.write_text(json.dumps({"rounds": rounds, "medians": medians}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
