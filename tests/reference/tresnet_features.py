#!/usr/bin/env python3
"""Writes tests/data/tresnet: two tiny random TResNets as their authors and as timm name their tensors, and what
timm computes with them.

    python tests/reference/tresnet_features.py [FOLDER]     (torch 2.14.1, timm 1.0.31)

images.safetensors has images [3, 3, 52, 44]: maps of 13 x 11, 7 x 6, 4 x 3 and 2 x 2, odd and even. Each model is
a folder: tresnet.pth, as the authors (and timm before 0.9) wrote it, in a wrapper and with the signed weights of
in-place activated norms; v1/model.safetensors, what timm makes of it with its checkpoint_filter_fn; and
expected.safetensors: features and logits, and of a step in training mode, in float64, the gradients of a loss
(those of small tensors) and the running statistics after it. The weights of v2 are float16, to be small.
"""
import copy
import re
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from timm.models.tresnet import TResNet, checkpoint_filter_fn

OUT = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1] / "data" / "tresnet")
CLASSES, LARGEST_GRADIENT = 3, 2400
MODELS = {"v1": {"layers": [2, 1, 2, 1], "width_factor": 4 / 64},
          "v2": {"layers": [2, 1, 1, 1], "width_factor": 8 / 64, "v2": True}}


def images():
    return torch.rand(3, 3, 52, 44, generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def randomize(model):
    """Every norm and bias off its start, and running statistics that are near those of the data."""
    generator = torch.Generator().manual_seed(1)

    def noise(value):
        return torch.randn(value.shape, generator=generator)
    for name, value in sorted(model.named_parameters()):
        if value.dim() == 4:
            value.copy_(noise(value) * (2 / value[0].numel()) ** 0.5)
        elif name.endswith("bn.weight"):  # an in-place activated norm takes the magnitude
            value.copy_((1 + 0.3 * noise(value)) * torch.sign(noise(value)))
        else:
            value.copy_(0.3 * noise(value))
    statistics = copy.deepcopy(model).train()
    for name, value in statistics.named_parameters():
        if name.endswith("bn.weight"):
            value.abs_()
    for _ in range(30):
        statistics(torch.rand(8, 3, 52, 44, generator=generator))
    for name, value in sorted(model.named_buffers()):
        found = dict(statistics.named_buffers())[name]
        if name.endswith("running_mean"):
            value.copy_(found + 0.1 * noise(value))
        elif name.endswith("running_var"):
            value.copy_(found * torch.exp(0.3 * noise(value)))
    return model


def authors_name(name, names):
    """timm's name as the authors' code spells it: sequences of a convolution and a norm, in another sequence
    where a blur comes behind them."""
    inner = ""
    if strided := re.match(r"body\.layer([2-4])\.0\.(conv\d)\.", name):
        bottleneck = f"body.layer{strided[1]}.0.conv3.conv.weight" in names
        inner = "0." if strided[2] == ("conv2" if bottleneck else "conv1") else ""
    for module, leaf in (("conv", 0), ("bn", 1)):
        name = re.sub(rf"(conv\d)\.{module}\.", rf"\1.{inner}{leaf}.", name)
        name = re.sub(rf"(downsample\.\d)\.{module}\.", rf"\1.{leaf}.", name)
    return name


def training_step(model, x):
    """Gradients of sum(features * fixed numbers), and the running statistics, of one step."""
    model, x = copy.deepcopy(model).double().train(), x.double()
    features = model.forward_head(model.forward_features(x), pre_logits=True)
    pull = torch.randn(features.shape, generator=torch.Generator().manual_seed(3)).double()
    (features * pull).sum().backward()
    found = {"pull": pull, "train/features": features}
    found |= {f"grad/{k}": v.grad for k, v in model.named_parameters()
              if v.grad is not None and v.numel() <= LARGEST_GRADIENT}
    return found | {f"buffer/{k}": v for k, v in model.named_buffers() if "running" in k}


def main():
    x = images()
    OUT.mkdir(parents=True, exist_ok=True)
    save_file({"images": x}, OUT / "images.safetensors")
    for name, arguments in MODELS.items():
        path = OUT / name
        path.mkdir(exist_ok=True)
        model = randomize(TResNet(num_classes=CLASSES, **arguments)).eval()
        weights = {k: v.half() if name == "v2" else v for k, v in model.state_dict().items()
                   if v.is_floating_point()}  # an in-place activated norm counts no batches
        old = {authors_name(k, weights.keys()): v for k, v in weights.items()}
        wrapped = {"model": old} if name == "v1" else {"state_dict": old, "epoch": 3}
        torch.save(wrapped, path / "tresnet.pth")

        new = checkpoint_filter_fn(wrapped, model)
        assert new.keys() == weights.keys()
        model.load_state_dict(new, strict=True)
        if name == "v1":
            save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path / "model.safetensors")
        with torch.no_grad():
            expected = {"features": model.forward_head(model.forward_features(x), pre_logits=True), "logits": model(x)}
        for value in expected.values():
            assert torch.isfinite(value).all() and value.std() > 1e-2
        expected |= training_step(model, x)
        save_file({k: v.detach().float().contiguous() for k, v in expected.items()}, path / "expected.safetensors")


if __name__ == "__main__":
    main()
