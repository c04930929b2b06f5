#!/usr/bin/env python3
"""A tiny TorchScript classifier and what it answers: tests/data/teacher/.

    tiny.pt, tiny.json    8x8 images, 3 classes; batch norm, so that evaluation mode shows
    tiny.safetensors      four images and their logits in evaluation mode

Needs torch and safetensors:  python tests/reference/torchscript.py
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

OUT = Path(__file__).resolve().parents[1] / "data" / "teacher"


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(4, 3),
    )
    for _ in range(10):
        model(torch.randn(16, 3, 8, 8) * 2 + 1)  # moves the running mean and variance
    images = torch.randn(4, 3, 8, 8)
    model.train()
    scripted = torch.jit.script(model)  # saved in training mode: the reader has to change it
    scripted.save(OUT / "tiny.pt")
    model.eval()
    with torch.no_grad():
        save_file({"images": images, "logits": model(images)}, OUT / "tiny.safetensors")
    notes = {
        "classes": ["a", "b", "c"],
        "input": {"size": [8, 8], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]},
    }
    (OUT / "tiny.json").write_text(json.dumps(notes) + "\n")
    print({path.name: path.stat().st_size for path in OUT.iterdir()})


if __name__ == "__main__":
    main()
