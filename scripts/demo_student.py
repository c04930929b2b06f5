#!/usr/bin/env python3
"""demo_student.py OUT.pt [SEED]: a small ResNet with random weights as a TorchScript backbone.

Writes OUT.pt, from images [B, 3, 32, 32] to 128 features, and OUT.json with the size, mean and std that
it expects. 0.7 million parameters, six basic blocks (He et al. 2015, arXiv 1512.03385) on 16 x 16 positions at most.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")

import torch  # noqa: E402
from torch import nn  # noqa: E402


def convolution(inputs: int, outputs: int, size: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(outputs),
    ]


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *convolution(inputs, outputs, 3, stride), nn.ReLU(), *convolution(outputs, outputs, 3, 1)
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(*convolution(inputs, outputs, 1, stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def network() -> nn.Module:
    layers = [*convolution(3, 32, 3, 2), nn.ReLU()]
    width = 32
    for outputs, stride in [(32, 1), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1)]:
        layers.append(Block(width, outputs, stride))
        width = outputs
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def main() -> int:
    if len(sys.argv) not in (2, 3):
        raise SystemExit("usage: demo_student.py OUT.pt [SEED]")
    out = Path(sys.argv[1])
    torch.manual_seed(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    model = network()
    unfinished = out.with_suffix(".tmp")
    torch.jit.script(model).save(str(unfinished))
    notes = {"input": {"size": [32, 32], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}
    out.with_suffix(".json").write_text(json.dumps(notes) + "\n")
    unfinished.rename(out)
    print(f"wrote {out}: {sum(p.numel() for p in model.parameters()):,} parameters", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
