#!/usr/bin/env python3
"""Convpass as its authors' PyTorch code computes it, on timm: the peer that `convpass` is held to.

    accuracy   trains on a small data set and prints top-1 and images per second

speed.py times a training step and inference of the same network.
The formula is that of the official repository (JieShibo/PETL-ViT, folder convpass/vtab), in our own
words: a bypass that runs its convolution twice, a block that computes each LayerNorm twice, timm's
stochastic depth on each of the four branches. One JSON line on stdout.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import sys
import time
import types
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DEMO = Path(__file__).resolve().parents[2] / "demo"


# --- The method ---------------------------------------------------------------------------------


class QuickGelu(nn.Module):
    """x * sigmoid(1.702 x)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class Convpass(nn.Module):
    """down -> QuickGELU -> 3x3 convolution on patch grid and on class token -> QuickGELU -> up."""

    def __init__(self, width: int, bottleneck: int, xavier_conv: bool, dropout: float) -> None:
        super().__init__()
        self.bottleneck = bottleneck
        self.adapter_down = nn.Linear(width, bottleneck)
        self.adapter_conv = nn.Conv2d(bottleneck, bottleneck, 3, padding=1)
        self.adapter_up = nn.Linear(bottleneck, width)
        self.act = QuickGelu()
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.adapter_down.weight)
        nn.init.zeros_(self.adapter_down.bias)
        if xavier_conv:
            nn.init.xavier_uniform_(self.adapter_conv.weight)
        else:
            nn.init.zeros_(self.adapter_conv.weight)
            with torch.no_grad():
                self.adapter_conv.weight[:, :, 1, 1] += torch.eye(bottleneck)
        nn.init.zeros_(self.adapter_conv.bias)
        nn.init.zeros_(self.adapter_up.weight)
        nn.init.zeros_(self.adapter_up.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        side = math.isqrt(tokens - 1)
        low = self.act(self.adapter_down(x))  # [B, 1+N, h]
        grid = low[:, 1:].reshape(batch, side, side, self.bottleneck).permute(0, 3, 1, 2)
        grid = self.adapter_conv(grid).permute(0, 2, 3, 1)  # [B, H, W, h]
        first = low[:, :1].reshape(batch, 1, 1, self.bottleneck).permute(0, 3, 1, 2)
        first = self.adapter_conv(first).permute(0, 2, 3, 1)  # [B, 1, 1, h]
        low = torch.cat([first.flatten(1, 2), grid.flatten(1, 2)], dim=1)
        return self.adapter_up(self.dropout(self.act(low)))


def forward_both(
    self: nn.Module, x: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False
) -> torch.Tensor:
    """timm's block with a bypass beside MHSA and beside the MLP."""
    attended = self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal))
    bypass = self.drop_path1(self.adapter_attn(self.norm1(x))) * self.bypass_scale
    x = x + self.drop_path1(attended) + bypass
    bypass = self.drop_path2(self.adapter_mlp(self.norm2(x))) * self.bypass_scale
    return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x)))) + bypass


def forward_attn(
    self: nn.Module, x: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False
) -> torch.Tensor:
    """timm's block with a bypass beside MHSA only."""
    attended = self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal))
    bypass = self.drop_path1(self.adapter_attn(self.norm1(x))) * self.bypass_scale
    x = x + self.drop_path1(attended) + bypass
    return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


def attach(
    vit: nn.Module,
    method: str,
    *,
    bottleneck: int = 8,
    scale: float = 1.0,
    xavier_conv: bool = True,
    dropout: float = 0.1,
) -> list[nn.Parameter]:
    """Adds bypasses to every block, freezes all but bypasses and head; returns the trainable."""
    if method != "linear":
        for block in vit.blocks:
            width = block.norm1.weight.shape[0]
            block.adapter_attn = Convpass(width, bottleneck, xavier_conv, dropout)
            block.bypass_scale = scale
            if method == "convpass":
                block.adapter_mlp = Convpass(width, bottleneck, xavier_conv, dropout)
            forward = forward_both if method == "convpass" else forward_attn
            block.forward = types.MethodType(forward, block)
    trainable = []
    for name, parameter in vit.named_parameters():
        parameter.requires_grad_("adapter" in name or name.startswith("head."))
        if parameter.requires_grad:
            trainable.append(parameter)
    return trainable


# --- The backbone -------------------------------------------------------------------------------


def hugging_face_positions(positions: torch.Tensor, side: int) -> torch.Tensor:
    """[1, 1+n*n, D] to [1, 1+side*side, D] as Hugging Face's DINOv2 does it: bicubic, a = -0.75,
    no antialias, corners not aligned. timm would antialias, so it never gets to resize them."""
    old = math.isqrt(positions.shape[1] - 1)
    grid = positions[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def dinov2_to_timm(source: dict[str, torch.Tensor], side: int) -> dict[str, torch.Tensor]:
    """Hugging Face `Dinov2Model` names to timm's."""
    start = "embeddings.patch_embeddings.projection."
    out = {
        "cls_token": source["embeddings.cls_token"],
        "pos_embed": hugging_face_positions(source["embeddings.position_embeddings"], side),
        "patch_embed.proj.weight": source[start + "weight"],
        "patch_embed.proj.bias": source[start + "bias"],
        "norm.weight": source["layernorm.weight"],
        "norm.bias": source["layernorm.bias"],
    }
    depth = sum(name.endswith(".norm1.weight") for name in source)
    for i in range(depth):
        old, new = f"encoder.layer.{i}.", f"blocks.{i}."
        for part in ("weight", "bias"):
            qkv = [
                source[f"{old}attention.attention.{n}.{part}"] for n in ("query", "key", "value")
            ]
            out[f"{new}attn.qkv.{part}"] = torch.cat(qkv)
            out[f"{new}attn.proj.{part}"] = source[f"{old}attention.output.dense.{part}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                out[f"{new}{name}.{part}"] = source[f"{old}{name}.{part}"]
        out[f"{new}ls1.gamma"] = source[f"{old}layer_scale1.lambda1"]
        out[f"{new}ls2.gamma"] = source[f"{old}layer_scale2.lambda1"]
    return out


def demo_backbone(weights: Path, image_size: int, classes: int, drop_path: float) -> nn.Module:
    """ViT-S/14 (DINOv2) with the demo weights and a fresh head (torch's default initial values)."""
    vit = timm.create_model(
        "vit_small_patch14_dinov2",
        pretrained=False,
        img_size=image_size,
        num_classes=0,
        drop_path_rate=drop_path,
        global_pool="token",
    )
    vit.load_state_dict(dinov2_to_timm(load_file(weights), image_size // 14))
    vit.head = nn.Linear(vit.embed_dim, classes)
    return vit


# --- The data -----------------------------------------------------------------------------------

SUBSET = 2  # Purpose::subset of include/convpass/core/rng.h


def mix64(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 on uint64 words (wrapping)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def random_key(seed: int, epoch: int, index: np.ndarray, purpose: int) -> np.ndarray:
    """random_key of include/convpass/core/rng.h for many indices at once."""
    word = mix64(np.asarray([seed], dtype=np.uint64))
    word = mix64(word ^ np.uint64(epoch))
    return mix64(mix64(word ^ index.astype(np.uint64)) ^ np.uint64(purpose))


def per_class_subset(labels: np.ndarray, keep: int, seed: int) -> np.ndarray:
    """The `keep` indices of each class with the smallest keys, ascending."""
    kept = []
    for label in np.unique(labels):
        indices = np.flatnonzero(labels == label)
        order = np.argsort(random_key(seed, 0, indices, SUBSET), kind="stable")
        kept.append(indices[order[:keep]])
    return np.sort(np.concatenate(kept))


def read_idx(path: Path) -> np.ndarray:
    """An idx file of unsigned bytes, gzipped or not."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as stream:
        content = stream.read()
    if content[:3] != b"\0\0\x08":
        raise SystemExit(f"{path}: not an idx file of unsigned bytes")
    shape = np.frombuffer(content, ">u4", count=content[3], offset=4).astype(np.int64)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)


def resized(image: Image.Image, size: int) -> torch.Tensor:
    """[3, size, size] bytes: RGB, aspect ratio not kept, PIL's bicubic (antialiased)."""
    image = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


Examples = tuple[torch.Tensor, torch.Tensor]  # [N, 3, size, size] bytes, [N] labels


def idx_examples(folder: Path, split: str, keep: int, seed: int, size: int) -> Examples:
    """`keep` images a class of an idx pair such as Fashion-MNIST."""
    stem = {"train": "train", "test": "t10k"}[split]

    def find(pattern: str) -> Path:
        files = sorted(folder.glob(pattern))
        if not files:
            raise SystemExit(f"{folder}: no {pattern}; run scripts/demo_data.sh")
        return files[0]

    images = read_idx(find(f"{stem}-images-idx3-ubyte*"))
    labels = read_idx(find(f"{stem}-labels-idx1-ubyte*"))
    kept = per_class_subset(labels, keep, seed)
    pixels = torch.stack([resized(Image.fromarray(images[i]), size) for i in kept])
    return pixels, torch.from_numpy(labels[kept].astype(np.int64))


def folder_examples(folder: Path, size: int) -> Examples:
    """DIR/CLASS/*.jpg|jpeg|png, classes and files in the order of their names."""
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    pixels, labels = [], []
    for label, name in enumerate(classes):
        for path in sorted((folder / name).iterdir()):
            if path.suffix.lower() in {".jpg", ".jpeg", ".png"}:
                with Image.open(path) as image:
                    pixels.append(resized(image, size))
                labels.append(label)
    if not pixels:
        raise SystemExit(f"{folder}: no CLASS/*.jpg or *.png")
    return torch.stack(pixels), torch.tensor(labels)


def list_examples(file: Path, size: int) -> Examples:
    """Lines `path label`, paths relative to the list's folder: the layout of VTAB-1k."""
    pixels, labels = [], []
    for line in file.read_text().splitlines():
        path, label = line.rsplit(maxsplit=1)
        with Image.open(file.parent / path) as image:
            pixels.append(resized(image, size))
        labels.append(int(label))
    if not pixels:
        raise SystemExit(f"{file}: no lines `path label`")
    return torch.stack(pixels), torch.tensor(labels)


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    mean = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
    return (pixels.float() / 255 - mean) / std


# --- Accuracy -----------------------------------------------------------------------------------


def step_rates(options: argparse.Namespace, steps_per_epoch: int) -> Iterator[float]:
    """The learning rate of each step.

    cosine: per step, linear warm-up, then a cosine over what is left of the run, as
    recipes/demo/base.json has it. official: per epoch, the cosine spans the warm-up too and starts
    hidden under it, and every epoch runs at the rate of the one before, as in the authors' loop.
    """
    by_step = options.schedule == "cosine"
    unit = steps_per_epoch if by_step else 1
    warmup, total = options.warmup * unit, options.epochs * unit
    start = warmup if by_step else 0
    for step in range(options.epochs * steps_per_epoch):
        t = step if by_step else max(step // steps_per_epoch - 1, 0)
        if t < warmup:
            yield options.warmup_lr + t * ((options.lr - options.warmup_lr) / warmup)
        else:  # the operations in timm's order, for the last bit
            angle = math.pi * (t - start) / (total - start)
            half = 0.5 * (options.lr - options.min_lr)
            yield options.min_lr + half * (1 + math.cos(angle))


def autocast(precision: str) -> AbstractContextManager:
    return nullcontext() if precision == "f32" else torch.autocast("cpu", dtype=torch.bfloat16)


def evaluate(vit: nn.Module, examples: Examples, precision: str, batch: int = 100) -> float:
    """Top-1 as a fraction."""
    vit.eval()
    correct = 0
    with torch.inference_mode(), autocast(precision):
        for pixels, labels in zip(*(part.split(batch) for part in examples), strict=True):
            correct += int((vit(normalised(pixels)).argmax(dim=1) == labels).sum())
    return correct / len(examples[1])


def accuracy(options: argparse.Namespace) -> dict[str, object]:
    """Trains and tests; the number is the last epoch's. `best_on_test` is what the authors' loop
    reports: the best of the tests every --test-every epochs, chosen on the test split."""
    if options.task:
        train = list_examples(options.task / "train800val200.txt", options.size)
        test = list_examples(options.task / "test.txt", options.size)
    elif options.train:
        train = folder_examples(options.train, options.size)
        test = folder_examples(options.test, options.size)
    else:
        keep = (options.data, options.data_seed, options.size)
        train = idx_examples(keep[0], "train", options.per_class, *keep[1:])
        test = idx_examples(keep[0], "test", options.test_per_class, *keep[1:])

    torch.manual_seed(options.seed)
    classes = int(train[1].max()) + 1
    vit = demo_backbone(options.weights, options.size, classes, options.drop_path)
    trainable = attach(
        vit,
        options.method,
        bottleneck=options.width,
        scale=options.scale,
        xavier_conv=options.conv_init == "xavier",
        dropout=options.dropout,
    )
    # After the bypasses, as the authors do it.
    vit.head.reset_parameters()
    optimiser = torch.optim.AdamW(trainable, lr=options.lr, weight_decay=options.weight_decay)
    steps_per_epoch = len(train[1]) // options.batch
    rates = step_rates(options, steps_per_epoch)

    losses, epoch_rates, tests = [], [], {}
    seconds = 0.0
    for epoch in range(options.epochs):
        started = time.perf_counter()
        vit.train()
        order = torch.randperm(len(train[1]))[: steps_per_epoch * options.batch]
        loss_sum = 0.0
        rate = 0.0
        for kept in order.split(options.batch):
            rate = next(rates)
            optimiser.param_groups[0]["lr"] = rate
            with autocast(options.precision):
                logits = vit(normalised(train[0][kept]))
                loss = functional.cross_entropy(logits, train[1][kept])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            loss_sum += loss.item()
        seconds += time.perf_counter() - started
        losses.append(loss_sum / steps_per_epoch)
        epoch_rates.append(rate)
        if options.test_every and (epoch + 1) % options.test_every == 0:
            tests[epoch + 1] = evaluate(vit, test, options.precision)
        print(f"epoch {epoch + 1}: loss {losses[-1]:.4f}, {seconds:.0f} s", file=sys.stderr)

    top1 = tests.get(options.epochs)
    if top1 is None:
        top1 = evaluate(vit, test, options.precision)
    best = max(tests, key=tests.__getitem__, default=None)  # the first of equals, as the authors
    return {
        "method": options.method,
        "seed": options.seed,
        "top1": top1,
        "best_on_test": None if best is None else {"top1": tests[best], "epoch": best},
        "images_per_second": options.epochs * steps_per_epoch * options.batch / seconds,
        "seconds": seconds,
        "trainable_parameters": sum(parameter.numel() for parameter in trainable),
        "train_images": len(train[1]),
        "test_images": len(test[1]),
        "train_loss": losses[-1],
        "precision": options.precision,
        "schedule": options.schedule,
        "epoch_rates": epoch_rates,
        "scale": options.scale,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }


# --- Command line -------------------------------------------------------------------------------


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    modes = parser.add_subparsers(dest="mode", required=True)
    methods = ("convpass", "convpass_attn", "linear")

    mode = modes.add_parser("accuracy", help="train on a small data set")
    mode.add_argument("--method", choices=methods, default="convpass")
    mode.add_argument("--weights", type=Path, default=DEMO / "vit_s14.safetensors")
    mode.add_argument("--data", type=Path, default=DEMO / "fashion-mnist", help="folder of idx")
    mode.add_argument("--train", type=Path, help="CLASS/*.jpg|png instead of --data")
    mode.add_argument("--test", type=Path, help="CLASS/*.jpg|png, with --train")
    mode.add_argument("--task", type=Path, help="a task's folder in VTAB's layout, not --data")
    mode.add_argument("--test-every", type=int, default=0, help="epochs; the authors' is 10")
    mode.add_argument("--per-class", type=int, default=100)
    mode.add_argument("--test-per-class", type=int, default=200)
    mode.add_argument("--data-seed", type=int, default=0)
    mode.add_argument("--size", type=int, default=98, help="image side, a multiple of 14")
    mode.add_argument("--seed", type=int, default=0)
    mode.add_argument("--epochs", type=int, default=20)
    mode.add_argument("--batch", type=int, default=64)
    mode.add_argument("--lr", type=float, default=1e-3)
    mode.add_argument("--weight-decay", type=float, default=1e-4)
    mode.add_argument("--schedule", choices=("cosine", "official"), default="cosine")
    mode.add_argument("--warmup", type=int, help="epochs; 2 for cosine, 10 for official")
    mode.add_argument("--warmup-lr", type=float, help="0 for cosine, 1e-6 for official")
    mode.add_argument("--min-lr", type=float, help="0 for cosine, 1e-5 for official")
    mode.add_argument("--drop-path", type=float, default=0.1)
    mode.add_argument("--dropout", type=float, default=0.1)
    mode.add_argument("--width", type=int, default=8)
    mode.add_argument("--scale", type=float, default=1.0)
    mode.add_argument("--conv-init", choices=("xavier", "identity"), default="xavier")
    mode.add_argument("--precision", choices=("f32", "bf16"), default="f32")
    mode.add_argument("--threads", type=int, help="torch's default if absent")

    options = parser.parse_args(arguments)
    if bool(options.train) != bool(options.test):
        parser.error("--train and --test go together")
    if options.task and options.train:
        parser.error("--task and --train name the same images twice")
    usual = {
        "cosine": {"warmup": 2, "warmup_lr": 0.0, "min_lr": 0.0},
        "official": {"warmup": 10, "warmup_lr": 1e-6, "min_lr": 1e-5},
    }
    for name, value in usual[options.schedule].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    print(json.dumps(accuracy(options)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
