#!/usr/bin/env python3
"""Three USI steps, augmentation aside, written out, and TorchScript networks that train: tests/data/usi/.

    python tests/reference/usi_step.py      (torch, numpy, safetensors)

    student.pt       a scripted network from images to 6 features: batch norm, and a dropout of rate 0
    classifier.pt    a scripted network with dropout from images to 3 logits
    traced.pt        batch norm, traced in evaluation mode
    constant.pt      frozen by torch.jit.freeze: no parameters
    steps.safetensors

Source of the step: Solving_ImageNet train.py and kd/, timm 0.5.4 (spec: recipes.md, USI). Four images are normalised
for the student and mixed with the batch reversed: mixup, CutMix, mixup. The teacher (tests/data/teacher/tiny.pt) sees
the same mixed batch, normalised anew exactly. Loss: soft-target cross-entropy + 5 KL. AdamW, weight decay on what has
two dimensions or more; ModelEmaV2 of weights and buffers. In float64, but for the files.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

DATA = Path(__file__).resolve().parents[1] / "data"
OUT = DATA / "usi"
MEAN, STD = [0.5, 0.45, 0.4], [0.25, 0.3, 0.2]
LABELS = [2, 0, 1, 1]
LAMBDAS = [0.7, 1 - 5 * 6 / 256, 0.4]  # of CutMix: one less its share of the image
BOX = (3, 8, 2, 8)  # top, bottom, left, right
LR, DECAY, ALPHA, AVERAGE = 2e-3, 2e-2, 5.0, 0.9


def network(classes: int | None, dropout: float) -> nn.Sequential:
    layers = [
        nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Conv2d(5, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
    ]
    return nn.Sequential(*layers, *([nn.Linear(6, classes)] if classes else []))


def mixed(x: torch.Tensor, step: int) -> torch.Tensor:
    if step == 1:
        top, bottom, left, right = BOX
        out = x.clone()
        out[:, :, top:bottom, left:right] = x.flip(0)[:, :, top:bottom, left:right]
        return out
    return LAMBDAS[step] * x + (1 - LAMBDAS[step]) * x.flip(0)


def column(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1)


def main() -> None:
    OUT.mkdir(exist_ok=True)
    torch.manual_seed(0)
    student = network(None, 0.0)
    torch.jit.script(student).save(OUT / "student.pt")
    torch.jit.script(network(3, 0.5)).save(OUT / "classifier.pt")
    traced = network(None, 0.0).eval()
    torch.jit.trace(traced, torch.randn(2, 3, 16, 16)).save(OUT / "traced.pt")
    torch.jit.freeze(torch.jit.script(traced)).save(OUT / "constant.pt")

    images = torch.tensor(np.random.default_rng(1).integers(0, 256, (4, 3, 16, 16), dtype=np.uint8))
    notes = json.loads((DATA / "teacher/tiny.json").read_text())["input"]
    teacher = torch.jit.load(DATA / "teacher/tiny.pt").eval().double()
    head = nn.Linear(6, 3)
    model = nn.Sequential(student, head).double().train()
    average = copy.deepcopy(model).eval()
    out = {"images": images, "head.weight": head.weight.detach().clone(), "head.bias": head.bias.detach().clone()}

    decays = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": others, "weight_decay": 0.0}, {"params": decays, "weight_decay": DECAY}], lr=LR
    )
    pixels = (images.double() / 255 - column(MEAN)) / column(STD)
    hot = torch.nn.functional.one_hot(torch.tensor(LABELS), 3).double()
    losses = []
    for step, share in enumerate(LAMBDAS):
        x = mixed(pixels, step)
        target = share * hot + (1 - share) * hot.flip(0)
        with torch.no_grad():
            answers = teacher((x * column(STD) + column(MEAN) - column(notes["mean"])) / column(notes["std"]))
        logits = model(x)
        log_q = torch.log_softmax(logits, 1)
        p = torch.softmax(answers, 1)
        loss = -(target * log_q).sum(1).mean() + ALPHA * (p * (p.log() - log_q)).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        state = model.state_dict()
        with torch.no_grad():
            for name, e in average.state_dict().items():
                e.copy_(AVERAGE * e + (1 - AVERAGE) * state[name])
    names = {name: name.replace("0.", "backbone.", 1) if name.startswith("0.") else name.replace("1.", "head.", 1)
             for name in model.state_dict()}
    out["losses"] = torch.tensor(losses)
    for what, module in (("after", model), ("average", average)):
        out |= {f"{what}/{names[name]}": value for name, value in module.state_dict().items()}
    out = {name: (v.float() if v.is_floating_point() else v).contiguous() for name, v in out.items()}
    save_file(out, OUT / "steps.safetensors")
    print({path.name: path.stat().st_size for path in OUT.iterdir()}, losses)


if __name__ == "__main__":
    main()
