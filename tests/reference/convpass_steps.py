#!/usr/bin/env python3
"""Reference values for bypasses, training steps, optimisers and schedules: tests/data/convpass/.

    module_*.safetensors     the bypass alone: input, parameters, output, gradients
    vit_tiny.safetensors     random ViT in timm's naming: width 32, depth 2, 2 heads, patch 4, 16 px
    steps_*.safetensors      that ViT with bypasses and head: logits, losses, gradients, AdamW steps
    official_adapter.pt      a plain dictionary as the authors' code saves it
    optimizers.safetensors   AdamW, Adam, SGD on fixed gradients; gradient clipping
    schedules.json           learning rates of the official loop and of timm's schedulers

The bypass is written from its formula (Jie & Deng 2022, and what the authors' code does), the
ViT is timm's, optimisers are torch's. Everything is computed in float32 on one thread; the script
prints how far float64 lands from it, which is what a tolerance has to allow for. Needs torch, timm,
safetensors:

    python tests/reference/convpass_steps.py
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from timm.models.vision_transformer import VisionTransformer
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.nn import functional

WIDTH, DEPTH, HEADS, PATCH, IMAGE, CLASSES = 32, 2, 2, 4, 16, 5
Tensors = dict[str, Tensor]


def randn(generator: torch.Generator, *shape: int, std: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=generator) * std


# --- The bypass ---------------------------------------------------------------------------------


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def bypass(p: Tensors, x: Tensor, prefix: int, grid: tuple[int, int], scale: float) -> Tensor:
    """scale * up(gelu(conv(gelu(down x)))) for tokens x [B, prefix + H*W, D], without dropout.

    The convolution sees the patches as one H x W image and every prefix token as a 1x1 image.
    """
    low = quick_gelu(functional.linear(x, p["adapter_down.weight"], p["adapter_down.bias"]))

    def conv(image: Tensor) -> Tensor:
        return functional.conv2d(image, p["adapter_conv.weight"], p["adapter_conv.bias"], padding=1)

    images = [low[:, i, :, None, None] for i in range(prefix)]  # [B, h, 1, 1]
    images.append(low[:, prefix:].mT.unflatten(2, grid))  # [B, h, H, W]
    low = torch.cat([conv(image).flatten(2).mT for image in images], dim=1)  # [B, N, h]
    return scale * functional.linear(quick_gelu(low), p["adapter_up.weight"], p["adapter_up.bias"])


def bypass_parameters(
    generator: torch.Generator, h: int, conv_init: str, at_start: bool
) -> Tensors:
    """Values as they are initialised, or (not at_start) with every bias and `up` non-zero."""

    def xavier(fan_in: int, fan_out: int, *shape: int) -> Tensor:
        bound = math.sqrt(6 / (fan_in + fan_out))
        return (2 * torch.rand(*shape, generator=generator) - 1) * bound

    if conv_init == "identity":
        conv = torch.zeros(h, h, 3, 3)
        conv[:, :, 1, 1] = torch.eye(h)
    else:
        conv = xavier(9 * h, 9 * h, h, h, 3, 3)
    bias_std = 0.0 if at_start else 0.1
    return {
        "adapter_down.weight": xavier(WIDTH, h, h, WIDTH),
        "adapter_down.bias": randn(generator, h, std=bias_std),
        "adapter_conv.weight": conv,
        "adapter_conv.bias": randn(generator, h, std=bias_std),
        "adapter_up.weight": randn(generator, WIDTH, h, std=0.0 if at_start else 0.2),
        "adapter_up.bias": randn(generator, WIDTH, std=bias_std),
    }


@dataclass(frozen=True)
class ModuleCase:
    name: str
    prefix: int
    grid: tuple[int, int]
    scale: float
    conv_init: str
    h: int = 8


MODULE_CASES = (
    ModuleCase("square", 1, (4, 4), 0.1, "xavier"),
    ModuleCase("square_identity", 1, (4, 4), 10.0, "identity"),
    ModuleCase("oblong", 1, (3, 5), 10.0, "xavier"),
    ModuleCase("three_prefix", 3, (4, 4), 0.1, "xavier"),
    ModuleCase("three_prefix_oblong", 3, (3, 5), 10.0, "identity"),
    ModuleCase("no_prefix_h4", 0, (3, 5), 1.0, "xavier", h=4),
)


def module_values(case: ModuleCase, inputs: Tensors, dtype: torch.dtype) -> Tensors:
    """Output and gradients; `inputs` holds input, output_gradient and param/..."""
    leaves = {name: value.clone().to(dtype).requires_grad_() for name, value in inputs.items()}
    parameters = {
        name.removeprefix("param/"): leaf
        for name, leaf in leaves.items()
        if name.startswith("param/")
    }
    output = bypass(parameters, leaves["input"], case.prefix, case.grid, case.scale)
    output.backward(inputs["output_gradient"].to(dtype))
    values = {"output": output.detach(), "input_gradient": leaves["input"].grad}
    values |= {f"grad/{name}": parameter.grad for name, parameter in parameters.items()}
    return values


def write_modules(out: Path) -> None:
    for seed, case in enumerate(MODULE_CASES):
        generator = torch.Generator().manual_seed(100 + seed)
        tokens = case.prefix + case.grid[0] * case.grid[1]
        inputs = {
            "input": randn(generator, 2, tokens, WIDTH),
            "output_gradient": randn(generator, 2, tokens, WIDTH),
        }
        values = bypass_parameters(generator, case.h, case.conv_init, at_start=False)
        inputs |= {f"param/{name}": value for name, value in values.items()}
        results = module_values(case, inputs, torch.float32)
        report(f"module_{case.name}", results, module_values(case, inputs, torch.float64))
        about = {
            "prefix": case.prefix,
            "grid_height": case.grid[0],
            "grid_width": case.grid[1],
            "scale": case.scale,
            "conv_init": case.conv_init,
            "width": case.h,
        }
        store(out / f"module_{case.name}.safetensors", inputs | results, about)


# --- A tiny ViT with bypasses --------------------------------------------------------------------


class TunedVit(nn.Module):
    """timm's ViT, its blocks written out with bypasses beside them, and a linear head."""

    def __init__(self, vit: VisionTransformer, trainable: Tensors, scale: float) -> None:
        super().__init__()
        self.vit = vit.requires_grad_(False).eval()
        self.scale = scale
        self.names = list(trainable)
        self.values = nn.ParameterList(nn.Parameter(value.clone()) for value in trainable.values())

    def named(self) -> Tensors:
        return dict(zip(self.names, self.values, strict=True))

    def beside(self, start: str, x: Tensor) -> Tensor | float:
        """The bypass whose names begin with `start`, or nothing."""
        own = {n.removeprefix(start): p for n, p in self.named().items() if n.startswith(start)}
        grid = (IMAGE // PATCH, IMAGE // PATCH)
        return bypass(own, x, 1, grid, self.scale) if own else 0.0

    def forward(self, images: Tensor) -> Tensor:
        x = self.vit.patch_embed(images)
        x = torch.cat([self.vit.cls_token.expand(len(x), -1, -1), x], dim=1) + self.vit.pos_embed
        for i, block in enumerate(self.vit.blocks):
            n = block.norm1(x)
            x = x + block.attn(n) + self.beside(f"blocks.{i}.adapter_attn.", n)
            n = block.norm2(x)
            x = x + block.mlp(n) + self.beside(f"blocks.{i}.adapter_mlp.", n)
        named = self.named()
        return functional.linear(self.vit.norm(x)[:, 0], named["head.weight"], named["head.bias"])


def tiny_vit() -> VisionTransformer:
    """Every weight random, norms and biases too, so that a swapped pair shows."""
    vit = VisionTransformer(
        img_size=IMAGE,
        patch_size=PATCH,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        num_classes=0,
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            std = 0.1 if parameter.dim() == 1 else 1 / math.sqrt(parameter[0].numel())
            if name in {"cls_token", "pos_embed"}:
                std = 0.5
            parameter.copy_(randn(generator, *parameter.shape, std=std))
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return vit.eval()


@dataclass(frozen=True)
class StepCase:
    name: str
    sites: tuple[str, ...]
    h: int
    scale: float
    conv_init: str
    at_start: bool  # values as initialised: `up` is zero, so only `up` and head get gradients


STEP_CASES = (
    StepCase("convpass", ("attn", "mlp"), 8, 0.5, "xavier", at_start=False),
    StepCase("convpass_attn", ("attn",), 8, 1.0, "identity", at_start=True),
    StepCase("convpass_h4", ("attn", "mlp"), 4, 10.0, "xavier", at_start=False),
)


def step_parameters(case: StepCase, seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    named: Tensors = {}
    for i in range(DEPTH):
        for site in case.sites:
            values = bypass_parameters(generator, case.h, case.conv_init, case.at_start)
            named |= {f"blocks.{i}.adapter_{site}.{name}": v for name, v in values.items()}
    bound = 1 / math.sqrt(WIDTH)
    named["head.weight"] = (2 * torch.rand(CLASSES, WIDTH, generator=generator) - 1) * bound
    named["head.bias"] = (2 * torch.rand(CLASSES, generator=generator) - 1) * bound
    return named


def step_values(
    case: StepCase, trainable: Tensors, images: Tensor, labels: Tensor, dtype: torch.dtype
) -> Tensors:
    """Ten AdamW steps on one batch; first logits and gradients, parameters after steps 1 and 10."""
    model = TunedVit(tiny_vit(), trainable, case.scale).to(dtype)
    optimiser = torch.optim.AdamW(model.values, lr=1e-3, weight_decay=1e-4)
    losses, values = [], {}
    for step in range(1, 11):
        logits = model(images.to(dtype))
        loss = functional.cross_entropy(logits, labels)
        optimiser.zero_grad()
        loss.backward()
        losses.append(loss.detach())
        if step == 1:
            values["logits"] = logits.detach()
            values |= {f"grad/{name}": p.grad.clone() for name, p in model.named().items()}
        optimiser.step()
        if step in {1, 10}:
            values |= {f"after{step}/{n}": p.detach().clone() for n, p in model.named().items()}
    return values | {"losses": torch.stack(losses)}


def write_steps(out: Path) -> None:
    store(out / "vit_tiny.safetensors", dict(tiny_vit().state_dict()), {"heads": HEADS})
    generator = torch.Generator().manual_seed(2)
    images = randn(generator, 4, 3, IMAGE, IMAGE)
    labels = torch.tensor([3, 0, 4, 1])
    for seed, case in enumerate(STEP_CASES):
        trainable = step_parameters(case, 200 + seed)
        results = step_values(case, trainable, images, labels, torch.float32)
        exact = step_values(case, trainable, images, labels, torch.float64)
        report(f"steps_{case.name}", results, exact)
        inputs = {f"initial/{name}": value for name, value in trainable.items()}
        about = {
            "scale": case.scale,
            "width": case.h,
            "conv_init": case.conv_init,
            "optimizer": "adamw, lr 1e-3, weight decay 1e-4",
        }
        content = inputs | results | {"images": images, "labels": labels}
        store(out / f"steps_{case.name}.safetensors", content, about)
        if case.name == "convpass":
            trained = {name: results[f"after10/{name}"] for name in trainable}
            torch.save(trained, out / "official_adapter.pt")


# --- Optimisers and clipping ---------------------------------------------------------------------

OPTIMISERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "adamw_betas": lambda p: torch.optim.AdamW(
        p, lr=1e-2, betas=(0.8, 0.95), eps=1e-4, weight_decay=0.0
    ),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "adam_decay": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2),
    "sgd_momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "sgd_momentum_decay": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, weight_decay=0.1),
}
SHAPES = {"matrix": (3, 4), "vector": (5,)}


def write_optimisers(out: Path) -> None:
    """initial/NAME, gradients/NAME [10, ...], OPTIMISER/NAME [10, ...] = value after each step."""
    generator = torch.Generator().manual_seed(3)
    content: Tensors = {}
    for name, shape in SHAPES.items():
        content[f"initial/{name}"] = randn(generator, *shape)
        content[f"gradients/{name}"] = randn(generator, 10, *shape)
    content["gradients/vector"][:, 0] = 0  # a parameter that never gets a gradient

    for kind, make in OPTIMISERS.items():
        parameters = {name: nn.Parameter(content[f"initial/{name}"].clone()) for name in SHAPES}
        optimiser = make(list(parameters.values()))
        history: dict[str, list[Tensor]] = {name: [] for name in SHAPES}
        for step in range(10):
            for name, parameter in parameters.items():
                parameter.grad = content[f"gradients/{name}"][step].clone()
            optimiser.step()
            for name, parameter in parameters.items():
                history[name].append(parameter.detach().clone())
        content |= {f"{kind}/{name}": torch.stack(values) for name, values in history.items()}

    for kind, limit in (("clip_above", 1.0), ("clip_below", 100.0)):
        parameters = {name: nn.Parameter(content[f"initial/{name}"].clone()) for name in SHAPES}
        for name, parameter in parameters.items():
            parameter.grad = content[f"gradients/{name}"][0].clone()
        norm = nn.utils.clip_grad_norm_(list(parameters.values()), limit)
        content[f"{kind}/max_norm"] = torch.tensor(limit)
        content[f"{kind}/norm"] = norm.detach().clone()
        content |= {f"{kind}/{name}": p.grad.clone() for name, p in parameters.items()}

    about = {
        "adamw": "lr 0.01, weight decay 0.1",
        "adamw_betas": "lr 0.01, betas 0.8 0.95, eps 1e-4, no decay",
        "adam": "lr 0.01",
        "adam_decay": "lr 0.01, weight decay 0.1 added to the gradient",
        "sgd": "lr 0.01",
        "sgd_momentum": "lr 0.01, momentum 0.9",
        "sgd_momentum_decay": "lr 0.01, momentum 0.9, weight decay 0.1",
        "clip": "clip_*/NAME = gradients/NAME of step 0 after clip_grad_norm_ over both",
    }
    store(out / "optimizers.safetensors", content, about)


# --- Schedules -----------------------------------------------------------------------------------


def scheduler(config: dict[str, float | int | bool]) -> tuple[CosineLRScheduler, Callable]:
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config["lr"])
    made = CosineLRScheduler(
        optimiser,
        t_initial=config["t_initial"],
        lr_min=config["lr_min"],
        warmup_t=config["warmup_t"],
        warmup_lr_init=config["warmup_lr_init"],
        warmup_prefix=config["warmup_prefix"],
    )
    return made, lambda: optimiser.param_groups[0]["lr"]


def official_rates() -> list[float]:
    """The rate each of the 100 VTAB epochs runs at: `scheduler.step(epoch)` after the epoch."""
    config = dict(lr=1e-3, t_initial=100, lr_min=1e-5, warmup_t=10, warmup_lr_init=1e-6)
    made, rate = scheduler(config | {"warmup_prefix": False})
    rates = []
    for epoch in range(100):
        rates.append(rate())
        made.step(epoch)

    def f(t: int) -> float:  # the formula in words of the specification
        if t < 10:
            return 1e-6 + t * (1e-3 - 1e-6) / 10
        return 1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + math.cos(math.pi * t / 100))

    formula = [f(max(epoch - 1, 0)) for epoch in range(100)]
    assert all(math.isclose(a, b, rel_tol=1e-12) for a, b in zip(rates, formula, strict=True))
    assert max(rates) == rates[11]
    return rates


def timm_case(
    lr: float, total: int, *, lr_min: float, warmup: int, warmup_lr: float, prefix: bool, upto: int
) -> dict[str, object]:
    config = dict(lr=lr, t_initial=total, lr_min=lr_min, warmup_t=warmup)
    config |= dict(warmup_lr_init=warmup_lr, warmup_prefix=prefix)
    made, _ = scheduler(config)
    return config | {"values": [made._get_lr(t)[0] for t in range(upto)]}


def multi_step_case(lr: float, milestones: list[int], decay: float, upto: int) -> dict[str, object]:
    """torch's MultiStepLR: unit t = milestone is the first one at the lower rate."""
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    made = torch.optim.lr_scheduler.MultiStepLR(optimiser, milestones, decay)
    values = []
    for _ in range(upto):
        values.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        made.step()
    return {"lr": lr, "milestones": milestones, "decay": decay, "values": values}


def write_schedules(out: Path) -> None:
    """`values[t]` is the rate at unit t; past its end a cosine stays at lr_min.

    t_initial is the length of the cosine: with warmup_prefix the run is warmup_t longer.
    """
    plain = dict(lr_min=0.0, warmup=0, warmup_lr=0.0, prefix=False)
    warm = dict(lr_min=1e-5, warmup=10, warmup_lr=1e-6)
    content = {
        "official_vtab": {
            "meaning": "rate that epoch e (from 0) of the authors' loop runs at",
            "values": official_rates(),
        },
        "timm_cosine": [
            timm_case(1e-3, 20, upto=24, **plain),
            timm_case(5e-3, 30, upto=34, **plain | {"lr_min": 1e-5}),
            timm_case(1e-3, 50, upto=52, prefix=False, **warm),
            timm_case(1e-3, 40, upto=52, prefix=True, **warm),
            timm_case(1e-3, 12, lr_min=0.0, warmup=5, warmup_lr=0.0, prefix=False, upto=14),
            timm_case(1e-3, 12, lr_min=0.0, warmup=5, warmup_lr=0.0, prefix=True, upto=20),
        ],
        "torch_multi_step": [
            multi_step_case(0.1, [3, 6], 0.1, upto=9),
            multi_step_case(3e-3, [2, 4, 8], 0.5, upto=12),
        ],
    }
    (out / "schedules.json").write_text(json.dumps(content, indent=1) + "\n")


# --- Files ---------------------------------------------------------------------------------------


def report(name: str, single: Tensors, double: Tensors) -> None:
    """Prints the largest difference that float32 rounding makes, by kind of value."""
    worst: dict[str, float] = {}
    for key, value in single.items():
        kind = key.split("/")[0]
        distance = (value.double() - double[key]).abs().max().item()
        worst[kind] = max(worst.get(kind, 0.0), distance)
    print(name, ", ".join(f"{kind} {distance:.1e}" for kind, distance in worst.items()))


def store(path: Path, content: Tensors, about: dict[str, object]) -> None:
    """A safetensors file whose metadata has a fixed order, so that the same values give the same
    bytes (the library writes it in the order of a hash table)."""
    metadata = {key: str(value) for key, value in about.items()}
    metadata.setdefault("made_by", "tests/reference/convpass_steps.py")
    raw = save({name: value.contiguous() for name, value in content.items()}, metadata)
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    data = Path(__file__).resolve().parents[1] / "data" / "convpass"
    parser.add_argument("--out", type=Path, default=data)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    write_modules(out)
    write_steps(out)
    write_optimisers(out)
    write_schedules(out)
    print(f"{out}: {sum(path.stat().st_size for path in out.iterdir())} bytes")


if __name__ == "__main__":
    main()
