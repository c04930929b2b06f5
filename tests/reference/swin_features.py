#!/usr/bin/env python3
"""Writes tests/data/swin: two tiny random Swin transformers as timm, Microsoft and transformers name their tensors,
and what timm computes with them.

    python tests/reference/swin_features.py [FOLDER]     (torch 2.13.0, timm 1.0.31, transformers 5)

Each model is a folder of half precision weights. `shifted` has windows of 4 on grids of 8x8 and 4x4 (32 pixels), where
the second block of the first stage is shifted and the second stage is one window; at 48x64 pixels its grids are 12x16
and 6x8, and windows reach beyond the second. `clipped` has windows of 7 on grids of 8x8, 4x4 and 2x2: beyond the
first, cut to the second and third. timm.safetensors has timm's names; microsoft.pth the authors' (and timm's
before 0.9) with their buffers and wrapper, from which timm's checkpoint_filter_fn makes the first again; hf.safetensors
those of transformers, whose SwinForImageClassification computes the same.

expected.safetensors: tokens, features and logits of two images (see `images`); at the other size features; of a step
in float64 the gradients of small tensors; and `shifted` with Convpass beside every attention and MLP (the formula
of JieShibo/PETL-ViT, convpass/vtab/convpass.py, without class token), its parameters, features and gradients.
"""
import copy
import re
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from timm.models.swin_transformer import SwinTransformer, checkpoint_filter_fn
from torch import nn

OUT = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1] / "data" / "swin")
CLASSES, LARGEST_GRADIENT, WIDTH, SCALE = 3, 520, 4, 0.5
MODELS = {"shifted": {"embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4},
          "clipped": {"embed_dim": 8, "depths": (1, 2, 1), "num_heads": (1, 2, 4), "window_size": 7}}


def images(count, height, width):
    """Numbers that the tests can make, too."""
    size = count * 3 * height * width
    return (torch.arange(size) ** 2 % 1009).float().div(1009).sub(0.5).reshape(count, 3, height, width)


def build(name, size=32):
    return SwinTransformer(img_size=size, patch_size=4, num_classes=CLASSES, drop_path_rate=0, **MODELS[name]).eval()


@torch.no_grad()
def randomize(model):
    generator = torch.Generator().manual_seed(1)
    for name, value in sorted(model.named_parameters()):
        noise = torch.randn(value.shape, generator=generator)
        if "bias_table" in name:
            value.copy_(noise)
        elif value.dim() > 1:
            value.copy_(noise * (1.5 / value[0].numel() ** 0.5))
        else:
            value.copy_((1 if name.endswith("weight") else 0) + 0.3 * noise)
        value.copy_(value.half())
    return model


def features(model, x):
    return model.forward_head(model.forward_features(x), pre_logits=True)


def microsoft_names(model):
    """As the authors' state has it: merging at the end of a stage, the buffers among the weights."""
    state = {re.sub(r"layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", k)
             .replace("head.fc.", "head."): v.half() for k, v in model.state_dict().items()}
    for i, layer in enumerate(model.layers):
        for j, block in enumerate(layer.blocks):
            start = f"layers.{i}.blocks.{j}."
            state[start + "attn.relative_position_index"] = block.attn.relative_position_index
            if block.attn_mask is not None:
                state[start + "attn_mask"] = block.attn_mask.half()
    return state


def huggingface_names(state):
    names = [(r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
             (r"^patch_embed\.norm\.", "embeddings.norm."), (r"^layers\.", "encoder.layers."), (r"^norm\.", "layernorm."),
             (r"\.norm1\.", ".layernorm_before."), (r"\.norm2\.", ".layernorm_after."),
             (r"\.attn\.proj\.", ".attention.output.dense."), (r"\.attn\.", ".attention.self."),
             (r"\.mlp\.fc1\.", ".intermediate.dense."), (r"\.mlp\.fc2\.", ".output.dense.")]
    found = {}
    for name, value in state.items():
        if name.endswith("attn_mask"):
            continue
        if name.startswith("head."):
            found["classifier." + name[5:]] = value
            continue
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        parts = zip(("query", "key", "value"), value.chunk(3)) if ".qkv." in name else [("qkv", value)]
        for part, rows in parts:
            found["swin." + name.replace(".qkv.", f".{part}.")] = rows.clone()
    return found


def check_huggingface(weights, x, logits):
    from transformers import SwinConfig, SwinForImageClassification
    a = MODELS["shifted"]
    model = SwinForImageClassification(SwinConfig(
        image_size=32, patch_size=4, embed_dim=a["embed_dim"], depths=list(a["depths"]), num_heads=list(a["num_heads"]),
        window_size=a["window_size"], num_labels=CLASSES)).eval()
    folder = OUT / "check"
    model.save_pretrained(folder)
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    model = SwinForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
    assert (model(x).logits - logits).abs().max() < 1e-4
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Convpass(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.adapter_conv = nn.Conv2d(WIDTH, WIDTH, 3, 1, 1)
        self.adapter_down = nn.Linear(dim, WIDTH)
        self.adapter_up = nn.Linear(WIDTH, dim)
        self.act = QuickGELU()

    def forward(self, x):
        x_down = self.act(self.adapter_down(x))
        x_patch = self.act(self.adapter_conv(x_down.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        return self.adapter_up(x_patch)


def with_convpass(model):
    model, bypasses = copy.deepcopy(model), nn.ModuleDict()
    blocks = [block for layer in model.layers for block in layer.blocks]
    for i, block in enumerate(blocks):
        for site in ("attn", "mlp"):
            bypasses[f"{i} {site}"] = Convpass(block.dim)

        def forward(x, block=block, i=i):
            x_norm = block.norm1(x)
            x = x + block._attn(x_norm) + bypasses[f"{i} attn"](x_norm) * SCALE
            x_norm = block.norm2(x)
            return x + block.mlp(x_norm) + bypasses[f"{i} mlp"](x_norm) * SCALE

        block.forward = forward
    generator = torch.Generator().manual_seed(5)
    for name, value in sorted(bypasses.named_parameters()):
        value.data.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    return model, bypasses


def pull(value, seed=3):
    return torch.randn(value.shape, generator=torch.Generator().manual_seed(seed))


def step(model, x):
    model = copy.deepcopy(model).double()
    found = features(model, x.double())
    (found * pull(found).double()).sum().backward()
    return {"pull": pull(found)} | {f"grad/{k}": v.grad for k, v in model.named_parameters()
                                    if v.grad is not None and v.numel() <= LARGEST_GRADIENT}


def convpass(model, x):
    model, bypasses = with_convpass(model)
    found = features(model, x)
    (found * pull(found)).sum().backward()
    out = {"convpass/features": found}
    for name, value in bypasses.named_parameters():
        place, rest = name.split(".", 1)
        index, site = place.split()
        ours = f"blocks.{index}.adapter_{site}.{rest}"
        out |= {"param/" + ours: value, "adapter_grad/" + ours: value.grad}
    return out


def main():
    for name in MODELS:
        path = OUT / name
        path.mkdir(parents=True, exist_ok=True)
        model, x = randomize(build(name)), images(2, 32, 32)
        old = microsoft_names(model)
        torch.save({"model": old, "epoch": 3}, path / "microsoft.pth")
        new = checkpoint_filter_fn({"model": old}, model)
        model.load_state_dict(new, strict=True)
        with torch.no_grad():
            expected = {"tokens": model.forward_features(x).flatten(1, 2), "features": features(model, x),
                        "logits": model(x)}
        expected |= step(model, x)
        if name == "shifted":
            save_file({k: v.half().contiguous() for k, v in new.items()}, path / "timm.safetensors")
            named = huggingface_names(old)
            save_file({k: v.contiguous() for k, v in named.items()}, path / "hf.safetensors")
            check_huggingface(named, x, expected["logits"])
            larger = build(name, (48, 64))
            larger.load_state_dict(model.state_dict(), strict=True)
            with torch.no_grad():
                expected["larger/features"] = features(larger, images(1, 48, 64))
            expected |= convpass(model, x)
        for value in expected.values():
            assert torch.isfinite(value).all()
        assert expected["features"].std() > 1e-2 and (expected["features"][0] - expected["features"][1]).std() > 1e-2
        save_file({k: v.detach().float().contiguous() for k, v in expected.items()}, path / "expected.safetensors")


if __name__ == "__main__":
    main()
