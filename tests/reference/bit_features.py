#!/usr/bin/env python3
"""Writes tests/data/bit: one tiny random BiT ResNet as every port names and lays out its tensors, and what
the port computes with it.

    python tests/reference/bit_features.py [FOLDER]     (torch 2.14.1, timm 1.0.31, transformers 5.24.0)

images.safetensors has images [2, 3, 37, 50]: odd and even sides, so that the root's pooling meets the border
in both ways. Each port is a folder: the checkpoint, a config.json that tells the 8 groups, and
expected.safetensors with its features and logits. timm and Hugging Face compute their own; big_transfer
(google-research/big_transfer, bit_pytorch/models.py) and big_vision (google-research/big_vision,
models/bit_paper.py) are written out here: they differ in the eps of the standardisation and in what pads the
pool. Some of the root's filters have a small variance, so that eps shows in the features; that it does, and the
padding too, is asserted. timm/expected.safetensors also has the gradients of a loss.
"""
import copy
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers as hf
from safetensors.torch import save_file
from timm.layers import GroupNormAct, StdConv2d
from timm.models.resnetv2 import ResNetV2

OUT = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1] / "data" / "bit")
UNITS, WIDTHS, ROOT, GROUPS, CLASSES = [2, 1], [32, 64], 16, 8, 3


def images():
    return torch.randn(2, 3, 37, 50, generator=torch.Generator().manual_seed(7)) - 0.3


def timm_model():
    """resnetv2_*_bit (timm's _create_resnetv2_bit) with fewer and narrower units."""
    return ResNetV2(layers=UNITS, channels=WIDTHS, stem_chs=ROOT, num_classes=CLASSES, stem_type="fixed",
                    conv_layer=partial(StdConv2d, eps=1e-8),
                    norm_layer=partial(GroupNormAct, num_groups=GROUPS)).eval()


def hf_model():
    return hf.BitForImageClassification(hf.BitConfig(
        depths=UNITS, hidden_sizes=WIDTHS, embedding_size=ROOT, num_groups=GROUPS,
        num_labels=CLASSES)).eval()


@torch.no_grad()
def randomize(model):
    generator = torch.Generator().manual_seed(1)
    for name, value in sorted(model.named_parameters()):
        noise = torch.randn(value.shape, generator=generator)
        value.copy_(1 + 0.3 * noise if "norm" in name and name.endswith("weight") else 0.3 * noise)
    # Standard deviations from 1e-4 up, two filters a group: 1e-8 beside the variance shows, 1e-10 hardly.
    model.stem.conv.weight.mul_(torch.logspace(-3.5, 0, ROOT).view(-1, 1, 1, 1))
    return model


# ---------------------------------------------------------------- the formula, written out
def standardize(kernel, eps):
    mean = kernel.mean((1, 2, 3), keepdim=True)
    variance = ((kernel - mean) ** 2).mean((1, 2, 3), keepdim=True)
    return (kernel - mean) / torch.sqrt(variance + eps)


def group_norm_relu(x, weight, bias):
    grouped = x.reshape(x.shape[0], GROUPS, -1)
    grouped = grouped - grouped.mean(-1, keepdim=True)
    grouped = grouped / torch.sqrt((grouped**2).mean(-1, keepdim=True) + 1e-5)
    x = grouped.reshape(x.shape) * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)
    return x.clamp_min(0)


def formula(weights, x, eps, padding):
    """Features [B, C] from timm's names."""
    def conv(x, name, stride=1, pad=0):
        return F.conv2d(x, standardize(weights[name + ".weight"], eps), None, stride, pad)

    def norm(x, name):
        return group_norm_relu(x, weights[name + ".weight"], weights[name + ".bias"])

    x = F.pad(conv(x, "stem.conv", 2, 3), (1, 1, 1, 1), value=padding)
    x = F.max_pool2d(x, 3, 2)
    for stage, units in enumerate(UNITS):
        for unit in range(units):
            name = f"stages.{stage}.blocks.{unit}."
            stride = 2 if stage > 0 and unit == 0 else 1
            normed = norm(x, name + "norm1")
            shortcut = conv(normed, name + "downsample.conv", stride) if unit == 0 else x
            y = conv(normed, name + "conv1")
            y = conv(norm(y, name + "norm2"), name + "conv2", stride, 1)
            x = shortcut + conv(norm(y, name + "norm3"), name + "conv3")
    return norm(x, "norm").mean((2, 3))


# ---------------------------------------------------------------- names
def hwio(kernel):
    return kernel.permute(2, 3, 1, 0).contiguous().numpy()


def units():
    for stage, count in enumerate(UNITS):
        for unit in range(count):
            yield f"stages.{stage}.blocks.{unit}.", f"block{stage + 1}", f"unit{unit + 1:02d}", unit == 0


def big_transfer_npz(w):
    """As bit_pytorch's load_from reads it; the numbers after standardized_conv2d stand in some files."""
    out = {"resnet/root_block/standardized_conv2d/kernel": hwio(w["stem.conv.weight"]),
           "resnet/group_norm/gamma": w["norm.weight"].numpy(), "resnet/group_norm/beta": w["norm.bias"].numpy(),
           "resnet/head/conv2d/kernel": hwio(w["head.fc.weight"]), "resnet/head/conv2d/bias": w["head.fc.bias"].numpy()}
    number = 0
    for name, block, unit, first in units():
        at = f"resnet/{block}/{unit}/"
        for i, part in enumerate("abc", 1):
            number += 1
            conv = "standardized_conv2d" if block == "block1" else f"standardized_conv2d_{number}"
            out[at + part + "/group_norm/gamma"] = w[f"{name}norm{i}.weight"].numpy()
            out[at + part + "/group_norm/beta"] = w[f"{name}norm{i}.bias"].numpy()
            out[at + f"{part}/{conv}/kernel"] = hwio(w[f"{name}conv{i}.weight"])
        if first:
            out[at + "a/proj/standardized_conv2d/kernel"] = hwio(w[name + "downsample.conv.weight"])
    return out


def big_vision_npz(w):
    """As big_vision's maybe_convert_big_transfer_format makes it, in the params of a training state."""
    def vector(v):
        return v.view(1, 1, 1, -1).numpy()
    out = {"root_block/conv_root/kernel": hwio(w["stem.conv.weight"]),
           "norm-pre-head/scale": vector(w["norm.weight"]), "norm-pre-head/bias": vector(w["norm.bias"]),
           "head/kernel": w["head.fc.weight"][:, :, 0, 0].t().contiguous().numpy(), "head/bias": w["head.fc.bias"].numpy()}
    for name, block, unit, first in units():
        at = f"{block}/{unit}/"
        for i in (1, 2, 3):
            out[at + f"gn{i}/scale"] = vector(w[f"{name}norm{i}.weight"])
            out[at + f"gn{i}/bias"] = vector(w[f"{name}norm{i}.bias"])
            out[at + f"conv{i}/kernel"] = hwio(w[f"{name}conv{i}.weight"])
        if first:
            out[at + "conv_proj/kernel"] = hwio(w[name + "downsample.conv.weight"])
    return {"params/" + k: v for k, v in out.items()} | {"opt/0/count": np.zeros(1, np.int32)}


def big_transfer_pytorch(w):
    """The state_dict of bit_pytorch.models.ResNetV2."""
    out = {"root.conv.weight": w["stem.conv.weight"], "head.conv.weight": w["head.fc.weight"],
           "head.conv.bias": w["head.fc.bias"]}
    out |= {f"head.gn.{leaf}": w[f"norm.{leaf}"] for leaf in ("weight", "bias")}
    for name, block, unit, first in units():
        at = f"body.{block}.{unit}."
        for i in (1, 2, 3):
            out |= {f"{at}gn{i}.{leaf}": w[f"{name}norm{i}.{leaf}"] for leaf in ("weight", "bias")}
            out[f"{at}conv{i}.weight"] = w[f"{name}conv{i}.weight"]
        if first:
            out[at + "downsample.weight"] = w[name + "downsample.conv.weight"]
    return out


def hugging_face(w):
    """timm's weights in transformers' model, by its own names."""
    def rename(name):
        if name.startswith("stages."):
            return "bit.encoder." + name.replace(".blocks.", ".layers.")
        if name.startswith("head.fc."):
            return name.replace("head.fc", "classifier.1")
        return "bit." + name.replace("stem.conv", "embedder.convolution")
    model = hf_model()
    state = {rename(k): v[:, :, 0, 0] if k == "head.fc.weight" else v for k, v in w.items()}
    model.load_state_dict(state, strict=True)
    return model


# ---------------------------------------------------------------- writing
def folder(port, config):
    path = OUT / port
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config) + "\n")
    return path


def save_expected(path, features, logits, **more):
    for value in (features, logits):
        assert torch.isfinite(value).all() and value.std() > 1e-3
    tensors = {"features": features, "logits": logits} | more
    save_file({k: v.detach().float().contiguous() for k, v in tensors.items()}, path / "expected.safetensors")


def gradients(model, x):
    """Of sum(features * fixed numbers), the head aside, in float64."""
    model, x = copy.deepcopy(model).double(), x.double()
    features = model.forward_head(model.forward_features(x), pre_logits=True)
    pull = torch.randn(features.shape, generator=torch.Generator().manual_seed(3)).double()
    (features * pull).sum().backward()
    found = {f"grad/{k}": v.grad for k, v in model.named_parameters() if v.grad is not None}
    return {"pull": pull} | found


def main():
    x = images()
    OUT.mkdir(parents=True, exist_ok=True)
    save_file({"images": x}, OUT / "images.safetensors")
    model = randomize(timm_model())
    w = {k: v.detach().clone() for k, v in model.state_dict().items()}
    args = {"model_args": {"num_groups": GROUPS}}

    def head(features):
        return F.linear(features, w["head.fc.weight"][:, :, 0, 0], w["head.fc.bias"])

    with torch.no_grad():
        ours = {(e, p): formula({k: v.double() for k, v in w.items()}, x.double(), e, p).float()
                for e in (1e-10, 1e-8) for p in (0.0, -torch.inf)}
        timm_features = model.forward_head(model.forward_features(x), pre_logits=True)
        assert torch.allclose(timm_features, ours[1e-8, 0.0], 1e-5, 1e-5)
        # What the ports differ in shows.
        for key in ((1e-10, 0.0), (1e-8, -torch.inf)):
            assert (ours[key] - timm_features).abs().max() > 1e-3, key

    path = folder("timm", args)
    save_file(w, path / "model.safetensors")
    save_expected(path, timm_features, model(x), **gradients(model, x))

    bit = hugging_face(w)
    path = folder("hf_bit", bit.config.to_dict())
    save_file({k: v.contiguous() for k, v in bit.state_dict().items()}, path / "model.safetensors")
    with torch.no_grad():
        save_expected(path, bit.bit(x).pooler_output.flatten(1), bit(x).logits)

    big_transfer = ours[1e-10, 0.0]
    path = folder("big_transfer_npz", args)
    np.savez_compressed(path / "BiT-M-R50x1.npz", **big_transfer_npz(w))
    save_expected(path, big_transfer, head(big_transfer))
    path = folder("big_transfer", args)
    torch.save({"step": 3, "model": {"module." + k: v for k, v in big_transfer_pytorch(w).items()}},
               path / "bit.pth.tar")
    save_expected(path, big_transfer, head(big_transfer))

    path = folder("big_vision_npz", args)
    np.savez_compressed(path / "checkpoint.npz", **big_vision_npz(w))
    save_expected(path, ours[1e-10, -torch.inf], head(ours[1e-10, -torch.inf]))


if __name__ == "__main__":
    main()
