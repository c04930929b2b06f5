#!/usr/bin/env python3
"""One FunMatch step, written out: tests/data/funmatch_step.safetensors.

    python tests/reference/funmatch_step.py      (torch, numpy, safetensors; timm and transformers for imports)

Four images are cut at given boxes and resized as TensorFlow does it, for the student at 16 pixels and for the
teacher at 8, some flipped; each is scaled as its network wants it, mixed with the row before by max(lambda, 1 -
lambda); the teacher (tests/data/teacher/tiny.pt) answers on the mixed images; the student (the tiny BiT of
tests/data/bit/timm, with a head) learns T^2 KL; the gradient is clipped to norm 1 and big_vision's Adam
makes its first step at the full rate (later steps hang on the rounding of the first moment to bfloat16, in which two
float32 programs differ; distillation.py has ten steps on given gradients, with warm-up).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from bit_features import formula
from safetensors.torch import load_file, save_file
from tensorflow_views import bilinear, to_bytes

DATA = Path(__file__).resolve().parents[1] / "data"
SIZES = {"student": 16, "teacher": 8}
BOXES = [(0, 0, 20, 28), (3, 5, 11, 12), (9, 1, 7, 20), (2, 8, 17, 9)]  # top, left, height, width
FLIPS = [False, True, True, False]
LAMBDA, T = 0.3, 2.0
LR, DECAY, LIMIT = 0.03, 3e-2, 1.0
# big_vision's is 1e-8 (distillation.py checks that): then the sign of a gradient near zero, which no two float32
# programs agree on, would decide a whole step.
EPS = 1e-3


def views(images: np.ndarray, size: int) -> np.ndarray:
    """[B, size, size, 3] bytes."""
    cut = [
        to_bytes(bilinear(image[y : y + h, x : x + w], size, size))
        for image, (y, x, h, w) in zip(images, BOXES)
    ]
    return np.stack([view[:, ::-1] if flip else view for view, flip in zip(cut, FLIPS)])


def network_input(images: np.ndarray, size: int, mean: list[float], std: list[float]) -> torch.Tensor:
    """[B, 3, size, size], mixed."""
    pixels = torch.tensor(views(images, size).copy()).permute(0, 3, 1, 2) / 255
    x = (pixels - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    share = max(LAMBDA, 1 - LAMBDA)
    return share * x + (1 - share) * torch.roll(x, 1, dims=0)


def main() -> None:
    random = np.random.default_rng(3)
    images = random.integers(0, 256, (4, 20, 28, 3), dtype=np.uint8)
    notes = json.loads((DATA / "teacher/tiny.json").read_text())["input"]
    teacher = torch.jit.load(DATA / "teacher/tiny.pt").eval()
    with torch.no_grad():
        answers = teacher(network_input(images, SIZES["teacher"], notes["mean"], notes["std"]))

    weights = load_file(DATA / "bit/timm/model.safetensors")
    weights = {name: w for name, w in weights.items() if not name.startswith("head.")}
    # Its root has filters of nearly no variance, whose huge gradients would drown all others.
    stem = weights["stem.conv.weight"]
    weights["stem.conv.weight"] = 0.3 * stem / stem.std((1, 2, 3), keepdim=True)
    head = {
        "head.weight": torch.tensor(random.normal(0, 1, (3, 64)), dtype=torch.float32),
        "head.bias": torch.zeros(3),
    }
    out = {"images": torch.tensor(images), "teacher": answers}
    out |= {name: (weights | head)[name] for name in ("stem.conv.weight", "head.weight")}
    trainable = {name: w.double().requires_grad_() for name, w in (weights | head).items()}
    x = network_input(images, SIZES["student"], [0.5] * 3, [0.5] * 3).double()
    answers = answers.double()
    features = formula(trainable, x, 1e-8, 0.0)
    logits = features @ trainable["head.weight"].T + trainable["head.bias"]
    p = torch.softmax(answers / T, 1)
    log_p = torch.log(torch.clamp(p, min=1e-8))
    loss = T * T * (p * (log_p - torch.log_softmax(logits / T, 1))).sum(1).mean()
    gradients = dict(zip(trainable, torch.autograd.grad(loss, list(trainable.values()))))
    norm = torch.sqrt(sum((g**2).sum() for g in gradients.values()))
    out |= {"logits": logits.detach(), "loss": loss.detach(), "norm": norm}
    with torch.no_grad():
        for name, w in trainable.items():
            g = gradients[name] * (LIMIT / norm if norm >= LIMIT else 1.0)
            adam = g / (torch.sqrt(g**2) + EPS)  # the bias corrections cancel (1 - b)
            w -= LR * adam + (DECAY * w if w.dim() > 1 else 0)
    out |= {f"after/{name}": w.detach() for name, w in trainable.items()}
    out = {name: (v if v.dtype == torch.uint8 else v.float()).contiguous() for name, v in out.items()}
    save_file(out, DATA / "funmatch_step.safetensors")
    print(f"loss {out['loss'].item():.4f}, gradient norm {out['norm'].item():.1f}")


if __name__ == "__main__":
    main()
