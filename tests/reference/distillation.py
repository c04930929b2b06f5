#!/usr/bin/env python3
"""Reference values for distillation: tests/data/distillation.safetensors.

    losses     KL with temperature, soft cross-entropy, distances, on random logits
    funmatch   ten steps of big_vision's optimiser on fixed gradients

Transcribed in numpy from the formulas of Beyer et al. 2021 and of google-research/big_vision
(trainers/proj/distill/distance.py; optax: clip_by_global_norm, scale_by_adam with mu_dtype
bfloat16, decoupled decay on kernels), in float64 but for the rounding of the first moment. Needs
numpy, torch (for bfloat16 alone) and safetensors:

    python tests/reference/distillation.py
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

OUT = Path(__file__).resolve().parents[1] / "data" / "distillation.safetensors"
BATCH, CLASSES = 6, 9


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def kl(student: np.ndarray, teacher: np.ndarray, t: float) -> np.ndarray:
    """One value an image: KL(teacher || student), the teacher's logarithm of max(p, 1e-8)."""
    p = softmax(teacher / t)
    return (p * (np.log(np.maximum(p, 1e-8)) - np.log(softmax(student / t)))).sum(axis=1)


def agree(student: np.ndarray, teacher: np.ndarray, k: int) -> np.ndarray:
    best = np.argsort(-student, axis=1)[:, :k]
    return (best == teacher.argmax(axis=1)[:, None]).any(axis=1).astype(np.float64)


def losses(random: np.random.Generator) -> dict[str, np.ndarray]:
    student = random.normal(0, 2, (BATCH, CLASSES))
    teacher = random.normal(0, 6, (BATCH, CLASSES))  # some probabilities below 1e-8
    out = {"student": student, "teacher": teacher}
    for t in (1.0, 2.0, 10.0):
        p = softmax(teacher / t)
        out[f"kl_{t:g}"] = t * t * kl(student, teacher, t).mean()
        cross_entropy = -(p * np.log(softmax(student / t))).sum(axis=1).mean()
        out[f"soft_cross_entropy_{t:g}"] = t * t * cross_entropy
    hard = np.log(softmax(student))[np.arange(BATCH), teacher.argmax(axis=1)]
    norms = np.linalg.norm(student, axis=1) * np.linalg.norm(teacher, axis=1)
    out |= {
        "mse": ((student - teacher) ** 2).mean(),
        "hard": -hard.mean(),
        "cosine": 1 - ((student * teacher).sum(axis=1) / norms).mean(),
        "distance/kl": kl(student, teacher, 1.0),
        "distance/euclidean": np.sqrt(((student - teacher) ** 2).sum(axis=1) + 1e-12),
        "distance/agree1": agree(student, teacher, 1),
        "distance/agree5": agree(student, teacher, 5),
    }
    return {f"losses/{name}": np.asarray(value, np.float32) for name, value in out.items()}


def bfloat16(x: np.ndarray) -> np.ndarray:
    return torch.tensor(x, dtype=torch.float32).bfloat16().double().numpy()


def funmatch(random: np.random.Generator) -> dict[str, np.ndarray]:
    """w -= f(t) (lr adam + wd w), gradients clipped to norm 1 together, wd on the kernel alone."""
    lr, wd, warmup, total, limit = 0.03, 3e-2, 3, 10, 1.0
    weights = {"kernel": random.normal(0, 1, (4, 3)), "bias": random.normal(0, 1, 4)}
    out = {f"initial/{name}": value.copy() for name, value in weights.items()}
    first = {name: np.zeros_like(value) for name, value in weights.items()}
    second = {name: np.zeros_like(value) for name, value in weights.items()}
    for t in range(total):
        scale = 3.0 if t % 2 else 0.05  # above and below the limit
        gradients = {name: random.normal(0, scale, w.shape) for name, w in weights.items()}
        out |= {f"gradient{t}/{name}": value.copy() for name, value in gradients.items()}
        norm = math.sqrt(sum((g**2).sum() for g in gradients.values()))
        if norm >= limit:
            gradients = {name: g * limit / norm for name, g in gradients.items()}
        progress = min(max((t - warmup) / (total - warmup), 0), 1)
        f = min(1, t / warmup) * 0.5 * (1 + math.cos(math.pi * progress))
        for name, g in gradients.items():
            mu = 0.9 * first[name] + 0.1 * g
            second[name] = 0.999 * second[name] + 0.001 * g**2
            first[name] = bfloat16(mu)
            adam = (mu / (1 - 0.9 ** (t + 1))) / (
                np.sqrt(second[name] / (1 - 0.999 ** (t + 1))) + 1e-8
            )
            decay = wd * weights[name] if name == "kernel" else 0
            weights[name] = weights[name] - f * (lr * adam + decay)
            out[f"after{t}/{name}"] = weights[name].copy()
    return {f"funmatch/{name}": np.asarray(value, np.float32) for name, value in out.items()}


def main() -> None:
    random = np.random.default_rng(0)
    save_file(losses(random) | funmatch(random), OUT)
    print(f"wrote {OUT}: {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
