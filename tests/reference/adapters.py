#!/usr/bin/env python3
"""Reference values for the adapters that Convpass is compared with: tests/data/adapters/.

    NAME.safetensors    param/* and, for the tiny ViT of convpass_steps.py: features `[B, D]` of the
                        class token and tokens `[B, N, D]` after the last norm; gradients of the
                        parameters, grad_features/* for sum(features * features_gradient) and
                        grad_tokens/* for sum(tokens * tokens_gradient). The metadata `adapter` is
                        the part of a recipe that it belongs to.

Each adapter is written from its paper and what its authors' code does (named beside it), as hooks
of timm's ViT; LoRA on whole layers is PEFT itself. Values that start at zero are random here, so
that nothing is hidden. Everything is float32 on one thread, without dropout; the script prints how
far float64 lands from it. Needs torch, timm, peft, safetensors:

    python tests/reference/adapters.py
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from convpass_steps import DEPTH, IMAGE, WIDTH, randn, report, store, tiny_vit
from peft import LoraConfig, get_peft_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

Tensors = dict[str, Tensor]
Linear = functional.linear
HIDDEN = 4 * WIDTH
BATCH = 3


class Parameters:
    """Random parameters by name, made at their first use, in float64 or float32."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = dtype
        self.named: Tensors = {}

    def get(self, name: str, *shape: int, mean: float = 0.0, std: float = 0.2) -> Tensor:
        if name not in self.named:
            value = randn(self.generator, *shape, std=std) + mean
            self.named[name] = value.to(self.dtype).requires_grad_()
        return self.named[name]


def tokens_of(vit: VisionTransformer, images: Tensor) -> Tensor:
    """All tokens after the last norm."""
    return vit.forward_features(images)


Attach = Callable[[VisionTransformer, Parameters], Callable[[VisionTransformer, Tensor], Tensor]]


def change_output(module: nn.Module, change: Callable[[Tensor, Tensor], Tensor]) -> None:
    module.register_forward_hook(lambda _, inputs, output: change(inputs[0], output))


# --- LoRA: binary_adapter/lora.py of JieShibo/PETL-ViT (q, v apart), PEFT (whole layers) ---------


def lora_parts(rank: int, scale: float, parts: str) -> Attach:
    def attach(vit: VisionTransformer, p: Parameters):
        for i, block in enumerate(vit.blocks):
            pairs = {}
            for part in parts:
                name = f"blocks.{i}.attn.{part}"
                pairs[part] = (
                    p.get(f"{name}.lora_A.weight", rank, WIDTH),
                    p.get(f"{name}.lora_B.weight", WIDTH, rank),
                )

            def change(x: Tensor, out: Tensor, pairs=pairs) -> Tensor:
                thirds = list(out.chunk(3, dim=-1))
                for part, (a, b) in pairs.items():
                    thirds["qkv".index(part)] = thirds["qkv".index(part)] + scale * Linear(
                        Linear(x, a), b
                    )
                return torch.cat(thirds, dim=-1)

            change_output(block.attn.qkv, change)
        return tokens_of

    return attach


def lora_peft(rank: int, alpha: float, rslora: bool) -> Attach:
    def attach(vit: VisionTransformer, p: Parameters):
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            use_rslora=rslora,
            target_modules=["attn.qkv", "attn.proj", "fc1", "fc2"],
        )
        model = get_peft_model(vit, config)
        for full, value in model.named_parameters():
            if "lora_" not in full:
                continue
            name = full.removeprefix("base_model.model.").replace(".default.", ".")
            random = p.get(name, *value.shape)
            owner = model.get_submodule(full.rpartition(".")[0])
            owner.weight = nn.Parameter(random.detach().clone())
            p.named[name] = owner.weight
        return lambda _, images: tokens_of(model.base_model.model, images)

    return attach


# --- AdaptFormer: models/custom_modules.py and models/adapter.py of ShoufaChen/AdaptFormer --------


def bottleneck(p: Parameters, name: str, width: int, act: Callable[[Tensor], Tensor]):
    down = p.get(f"{name}.down_proj.weight", width, WIDTH), p.get(f"{name}.down_proj.bias", width)
    up = p.get(f"{name}.up_proj.weight", WIDTH, width), p.get(f"{name}.up_proj.bias", WIDTH)
    return lambda x: Linear(act(Linear(x, *down)), *up)


def adaptformer(width: int, scale: float, blocks: tuple[int, ...]) -> Attach:
    def attach(vit: VisionTransformer, p: Parameters):
        for i in blocks:
            block = vit.blocks[i]
            adapter = bottleneck(p, f"blocks.{i}.adaptmlp", width, torch.relu)

            def forward(x: Tensor, attn_mask=None, is_causal=False, block=block, adapter=adapter):
                x = x + block.attn(block.norm1(x))
                beside = scale * adapter(x)  # of the stream before norm2
                return x + (block.mlp(block.norm2(x)) + beside)

            block.forward = forward
        return tokens_of

    return attach


# --- Houlsby (google-research/adapter-bert, modeling.py) and Pfeiffer ----------------------------


def sequential(width: int, sites: tuple[str, ...], act: Callable[[Tensor], Tensor]) -> Attach:
    def attach(vit: VisionTransformer, p: Parameters):
        for i, block in enumerate(vit.blocks):
            for site in sites:
                adapter = bottleneck(p, f"blocks.{i}.adapter_{site}", width, act)
                change_output(
                    getattr(block, site), lambda _, out, adapter=adapter: out + adapter(out)
                )
        return tokens_of

    return attach


# --- RepAdapter: repadapter.py of luogen1996/RepAdapter ------------------------------------------


def repadapter(width: int, groups: int, scale: float, sites: tuple[str, ...]) -> Attach:
    def attach(vit: VisionTransformer, p: Parameters):
        for i, block in enumerate(vit.blocks):
            for site in sites:
                name = f"blocks.{i}.adapter_{site}.conv_"
                a = p.get(name + "A.weight", width, WIDTH, 1), p.get(name + "A.bias", width)
                b = (
                    p.get(name + "B.weight", WIDTH, width // groups, 1),
                    p.get(name + "B.bias", WIDTH),
                )

                def change(_: Tensor, out: Tensor, a=a, b=b) -> Tensor:
                    x = out.mT  # [B, D, N]
                    low = functional.conv1d(x, *a)
                    return (functional.conv1d(low, *b, groups=groups) * scale + x).mT

                change_output(block.norm1 if site == "attn" else block.norm2, change)
        return tokens_of

    return attach


# --- SSF: models/vision_transformer.py of dongzelian/SSF ----------------------------------------


def ssf(vit: VisionTransformer, p: Parameters):
    def add(module: nn.Module, start: str, number: int, size: int) -> None:
        scale = p.get(f"{start}ssf_scale_{number}", size, mean=1.0)
        shift = p.get(f"{start}ssf_shift_{number}", size)
        change_output(module, lambda _, out: out * scale + shift)

    add(vit.patch_embed, "patch_embed.", 1, WIDTH)
    for i, block in enumerate(vit.blocks):
        start = f"blocks.{i}."
        add(block.norm1, start, 1, WIDTH)
        add(block.attn.qkv, start + "attn.", 1, 3 * WIDTH)
        add(block.attn.proj, start + "attn.", 2, WIDTH)
        add(block.norm2, start, 2, WIDTH)
        add(block.mlp.fc1, start + "mlp.", 1, HIDDEN)
        add(block.mlp.fc2, start + "mlp.", 2, WIDTH)
    add(vit.norm, "", 1, WIDTH)
    return tokens_of


# --- BitFit: every bias trains -------------------------------------------------------------------


def bitfit(vit: VisionTransformer, p: Parameters):
    for name, value in list(vit.named_parameters()):
        if name.endswith(".bias"):
            with torch.no_grad():
                value.copy_(p.get(name, *value.shape).detach())
            value.requires_grad_()
            p.named[name] = value
    return tokens_of


# --- VPT: src/models/vit_prompt/vit.py of kmnp/vpt -----------------------------------------------


def vpt(count: int, deep: bool) -> Attach:
    def attach(vit: VisionTransformer, p: Parameters):
        first = p.get("prompt_embeddings", 1, count, WIDTH, std=0.5)
        if deep:
            others = p.get("deep_prompt_embeddings", DEPTH - 1, count, WIDTH, std=0.5)

        def forward(vit: VisionTransformer, images: Tensor) -> Tensor:
            x = vit.patch_embed(images)
            x = torch.cat([vit.cls_token.expand(len(x), -1, -1), x], dim=1) + vit.pos_embed
            x = torch.cat([x[:, :1], first.expand(len(x), -1, -1), x[:, 1:]], dim=1)
            for i, block in enumerate(vit.blocks):
                if deep and i > 0:
                    prompt = others[i - 1].expand(len(x), -1, -1)
                    x = torch.cat([x[:, :1], prompt, x[:, 1 + count :]], dim=1)
                x = block(x)
            x = vit.norm(x)
            return torch.cat([x[:, :1], x[:, 1 + count :]], dim=1)

        return forward

    return attach


# --- FacT-TT: FacT/fact_tt.py of JieShibo/PETL-ViT ------------------------------------------------


def fact(rank: int, scale: float) -> Attach:
    ratio = HIDDEN // WIDTH

    def attach(vit: VisionTransformer, p: Parameters):
        u, v = p.get("FacTu.weight", rank, WIDTH), p.get("FacTv.weight", WIDTH, rank)
        for i, block in enumerate(vit.blocks):
            start = f"blocks.{i}."
            core = {s: p.get(f"{start}attn.{s}_FacTs.weight", rank, rank) for s in "qkv"}
            core["proj"] = p.get(f"{start}attn.proj_FacTs.weight", rank, rank)
            core["fc1"] = p.get(f"{start}mlp.fc1_FacTs.weight", ratio * rank, rank)
            core["fc2"] = p.get(f"{start}mlp.fc2_FacTs.weight", rank, ratio * rank)

            def qkv(x: Tensor, out: Tensor, core=core) -> Tensor:
                parts = [Linear(Linear(Linear(x, u), core[s]), v) for s in "qkv"]
                return out + torch.cat(parts, dim=2) * scale

            def proj(x: Tensor, out: Tensor, core=core) -> Tensor:
                return out + Linear(Linear(Linear(x, u), core["proj"]), v) * scale

            def fc1(x: Tensor, out: Tensor, core=core) -> Tensor:
                low = Linear(Linear(x, u), core["fc1"]).reshape(*x.shape[:2], ratio, rank)
                return out + Linear(low, v).reshape(*x.shape[:2], ratio * WIDTH) * scale

            def fc2(x: Tensor, out: Tensor, core=core) -> Tensor:
                low = Linear(x.reshape(*x.shape[:2], ratio, WIDTH), u)
                low = low.reshape(*x.shape[:2], ratio * rank)
                return out + Linear(Linear(low, core["fc2"]), v) * scale

            change_output(block.attn.qkv, qkv)
            change_output(block.attn.proj, proj)
            change_output(block.mlp.fc1, fc1)
            change_output(block.mlp.fc2, fc2)
        return tokens_of

    return attach


def gelu_tanh(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


WHOLE = ["qkv", "proj", "fc1", "fc2"]
CASES: dict[str, tuple[dict[str, object], Attach]] = {
    "lora": ({"type": "lora", "rank": 4, "alpha": 6}, lora_parts(4, 6 / 4, "qv")),
    "lora_k": ({"type": "lora", "rank": 2, "alpha": 2, "layers": ["k"]}, lora_parts(2, 1, "k")),
    "lora_peft": (
        {"type": "lora", "rank": 4, "alpha": 16, "layers": WHOLE},
        lora_peft(4, 16, rslora=False),
    ),
    "lora_rs": (
        {"type": "lora", "rank": 4, "alpha": 3, "layers": WHOLE, "rank_stabilized": True},
        lora_peft(4, 3, rslora=True),
    ),
    "adaptformer": ({"type": "adaptformer", "width": 6}, adaptformer(6, 0.1, (0, 1))),
    "adaptformer_top": (
        {"type": "adaptformer", "width": 6, "scale": 2, "blocks": [1]},
        adaptformer(6, 2.0, (1,)),
    ),
    "houlsby": ({"type": "bottleneck", "width": 6}, sequential(6, ("attn", "mlp"), gelu_tanh)),
    "pfeiffer": (
        {"type": "bottleneck", "width": 6, "sites": ["mlp"], "activation": "relu"},
        sequential(6, ("mlp",), torch.relu),
    ),
    "repadapter": (
        {"type": "repadapter", "scale": 0.5},
        repadapter(8, 2, 0.5, ("attn", "mlp")),
    ),
    "repattn": (
        {"type": "repadapter", "width": 4, "groups": 1, "sites": ["attn"]},
        repadapter(4, 1, 1.0, ("attn",)),
    ),
    "ssf": ({"type": "ssf"}, ssf),
    "bitfit": ({"type": "bitfit"}, bitfit),
    "vpt_shallow": ({"type": "vpt", "tokens": 5, "deep": False}, vpt(5, deep=False)),
    "vpt_deep": ({"type": "vpt", "tokens": 3}, vpt(3, deep=True)),
    "fact": ({"type": "fact", "rank": 3, "scale": 0.5}, fact(3, 0.5)),
}


def values(attach: Attach, inputs: Tensors, seed: int, dtype: torch.dtype) -> Tensors:
    vit = tiny_vit().requires_grad_(False).to(dtype)
    parameters = Parameters(seed, dtype)
    forward = attach(vit, parameters)
    images, on_features, on_tokens = (inputs[name].to(dtype) for name in inputs)
    tokens = forward(vit, images)
    features = tokens[:, 0]
    result = {"tokens": tokens.detach(), "features": features.detach()}
    named = parameters.named
    result |= {f"param/{name}": value.detach() for name, value in named.items()}
    for kind, loss in (
        ("features", (features * on_features).sum()),
        ("tokens", (tokens * on_tokens).sum()),
    ):
        grads = torch.autograd.grad(loss, list(named.values()), retain_graph=True)
        result |= {f"grad_{kind}/{name}": g for name, g in zip(named, grads, strict=True)}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    data = Path(__file__).resolve().parents[1] / "data" / "adapters"
    parser.add_argument("--out", type=Path, default=data)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(5)
    count = 1 + (IMAGE // 4) ** 2
    inputs = {
        "images": randn(generator, BATCH, 3, IMAGE, IMAGE),
        "features_gradient": randn(generator, BATCH, WIDTH),
        "tokens_gradient": randn(generator, BATCH, count, WIDTH) / math.sqrt(count),
    }
    for seed, (name, (config, attach)) in enumerate(CASES.items(), start=300):
        single = values(attach, inputs, seed, torch.float32)
        report(name, single, values(attach, inputs, seed, torch.float64))
        about = {"adapter": json.dumps(config), "made_by": "tests/reference/adapters.py"}
        store(out / f"{name}.safetensors", inputs | single, about)


if __name__ == "__main__":
    main()
