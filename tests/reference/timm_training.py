#!/usr/bin/env python3
"""What timm 1.0 does around a training step: tests/data/timm_training.json.

    python tests/reference/timm_training.py      (torch, timm)

    repeats    RepeatAugSampler in one process, without shuffling, of several sizes: which image stands where
    average    ModelEmaV2 and ModelEmaV3 of a weight, a running mean and a count of batches over six steps
    decay      ModelEmaV3.get_decay with and without warm-up
    schedule   CosineLRScheduler as USI sets it: the rate of each of its 310 epochs
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from timm.data.distributed_sampler import RepeatAugSampler
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import nn

OUT = Path(__file__).resolve().parents[1] / "data" / "timm_training.json"


def repeats() -> list[dict[str, object]]:
    cases = []
    for size, count in [(10, 3), (255, 3), (256, 3), (700, 3), (700, 1), (700, 2)]:
        sampler = RepeatAugSampler(range(size), 1, 0, shuffle=False, num_repeats=count)
        cases.append({"size": size, "repeats": count, "images": list(sampler)})
    return cases


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0]))
        self.register_buffer("mean", torch.tensor([0.5]))
        self.register_buffer("batches", torch.tensor(0))


def averages() -> list[dict[str, object]]:
    forms = {
        "v2": ({}, lambda m: ModelEmaV2(m, decay=0.9)),
        "v3": ({}, lambda m: ModelEmaV3(m, decay=0.9)),
        "v3 late": ({"start": 2}, lambda m: ModelEmaV3(m, decay=0.9, update_after_step=2)),
        "v3 warm": ({"warmup": True}, lambda m: ModelEmaV3(m, decay=0.9, use_warmup=True)),
        "v3 copy": ({"copy_buffers": True}, lambda m: ModelEmaV3(m, decay=0.9, exclude_buffers=True)),
    }
    cases = []
    for name, (settings, make) in forms.items():
        model = Tiny()
        average = make(model)
        steps = []
        for step in range(1, 7):
            with torch.no_grad():
                model.weight.copy_(torch.tensor([1.0 + step, step * -0.5]))
                model.mean.copy_(torch.tensor([step * 0.25]))
                model.batches.add_(7)
            if name == "v2":
                average.update(model)
            else:
                average.update(model, step=step)
            state = average.module.state_dict()
            steps.append({key: state[key].tolist() for key in ("weight", "mean", "batches")})
        cases.append({"form": name[:2], **settings, "steps": steps})
    return cases


def decays() -> dict[str, list[float]]:
    make = lambda **settings: ModelEmaV3(Tiny(), decay=0.9999, **settings)  # noqa: E731
    return {
        "late": [make(update_after_step=3).get_decay(step) for step in range(1, 9)],
        "warm": [make(use_warmup=True).get_decay(step) for step in (1, 2, 3, 10, 1000, 10**6, 10**7)],
    }


def schedule() -> list[float]:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=2e-3)
    rate = CosineLRScheduler(
        optimizer, t_initial=300, lr_min=1e-6, warmup_t=5, warmup_lr_init=1e-4, cycle_limit=1
    )
    rates = [optimizer.param_groups[0]["lr"]]
    for epoch in range(1, 310):
        rate.step(epoch)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def main() -> None:
    data = {"repeats": repeats(), "average": averages(), "decay": decays(), "schedule": schedule()}
    OUT.write_text(json.dumps(data) + "\n")
    print({"bytes": OUT.stat().st_size, "last rates": data["schedule"][-12:]})


if __name__ == "__main__":
    main()
