#!/usr/bin/env python3
"""LoRA as PEFT writes it, and what it computes: tests/data/peft/.

    NAME/adapter_model.safetensors, adapter_config.json   as PEFT saves them
    NAME/expected.safetensors    images `[B, 3, 16, 16]`, logits `[B, 5]` of PEFT's model

The backbone is the tiny ViT of convpass_steps.py (tests/data/convpass/vit_tiny.safetensors), as
timm's model and as Hugging Face's ViTForImageClassification. Names and bytes depend on the version
of transformers: "hf5" is written by transformers 5, "hf" by transformers 4, in an environment of
its own. Needs torch, timm, transformers, peft, safetensors:

    python tests/reference/peft_lora.py                        (transformers 5: timm, hf5)
    python tests/reference/peft_lora.py                        (transformers 4: hf)

`--check FOLDER NAME` loads a folder that `convpass convert` wrote into the same model and says how
far its logits are from NAME's.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

WIDTH, DEPTH, HEADS, PATCH, IMAGE, CLASSES = 32, 2, 2, 4, 16, 5
DATA = Path(__file__).resolve().parents[1] / "data"
TRANSFORMERS_5 = transformers.__version__.startswith("5.")


def timm_model() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    vit = VisionTransformer(
        img_size=IMAGE,
        patch_size=PATCH,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        num_classes=CLASSES,
    )
    state = load_file(DATA / "convpass" / "vit_tiny.safetensors")
    vit.load_state_dict(state | {"head.weight": zeros(CLASSES, WIDTH), "head.bias": zeros(CLASSES)})
    return vit.eval()


def zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape)


def huggingface_model() -> nn.Module:
    config = ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        image_size=IMAGE,
        patch_size=PATCH,
        num_labels=CLASSES,
        layer_norm_eps=1e-6,
        attn_implementation="eager",
    )
    model = ViTForImageClassification(config)
    timm = load_file(DATA / "convpass" / "vit_tiny.safetensors")
    names = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "norm": "layernorm",
    }
    parts = {"norm1": "layernorm_before", "norm2": "layernorm_after"}
    parts |= (
        {"attn.proj": "attention.o_proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
        if TRANSFORMERS_5
        else {
            "attn.proj": "attention.output.dense",
            "mlp.fc1": "intermediate.dense",
            "mlp.fc2": "output.dense",
        }
    )
    thirds = (
        ["attention.q_proj", "attention.k_proj", "attention.v_proj"]
        if TRANSFORMERS_5
        else [f"attention.attention.{n}" for n in ("query", "key", "value")]
    )
    blocks = "layers" if TRANSFORMERS_5 else "encoder.layer"
    state = {}
    for name, value in timm.items():
        module, _, kind = name.rpartition(".")
        if name.startswith("blocks."):
            _, block, part = module.split(".", 2)
            start = f"{blocks}.{block}."
            if part == "attn.qkv":
                for third, piece in zip(thirds, value.chunk(3), strict=True):
                    state[f"{start}{third}.{kind}"] = piece
            else:
                state[f"{start}{parts[part]}.{kind}"] = value
        else:
            state[names.get(name) or f"{names[module]}.{kind}"] = value
    model.vit.load_state_dict(state)
    return model.eval()


CASES = {
    "timm": (timm_model, {"target_modules": ["attn.qkv", "attn.proj", "fc1", "fc2"]}, "head"),
    "timm_rslora": (
        timm_model,
        {"target_modules": r"blocks\.1\.attn\.qkv", "use_rslora": True},
        "head",
    ),
    "hf": (huggingface_model, {"target_modules": ["query", "value"]}, "classifier"),
    "hf_all": (
        huggingface_model,
        {"target_modules": ["query", "key", "value", "output.dense", "intermediate.dense"]},
        "classifier",
    ),
    "hf5": (
        huggingface_model,
        {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]},
        "classifier",
    ),
}


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    out = model(images)
    return out if isinstance(out, Tensor) else out.logits


def write(name: str, out: Path) -> None:
    make, options, head = CASES[name]
    torch.manual_seed(7)
    config = LoraConfig(r=4, lora_alpha=6, modules_to_save=[head], **options)
    model = get_peft_model(make(), config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
        images = torch.randn(3, 3, IMAGE, IMAGE)
        logits = logits_of(model, images)
    shutil.rmtree(out / name, ignore_errors=True)
    model.save_pretrained(out / name)
    (out / name / "README.md").unlink(missing_ok=True)
    file = out / name / "adapter_config.json"
    content = json.loads(file.read_text())
    if isinstance(content["target_modules"], list):  # in the order of a hash
        content["target_modules"].sort()
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    save_file({"images": images, "logits": logits}, out / name / "expected.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=DATA / "peft")
    parser.add_argument("--check", nargs=2, metavar=("FOLDER", "NAME"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.check:
        folder, name = arguments.check
        expected = load_file(DATA / "peft" / name / "expected.safetensors")
        # A model of its own: the names that the folder has need not be NAME's.
        make = timm_model if "timm" in Path(folder).name else huggingface_model
        model = PeftModel.from_pretrained(make(), folder).eval()
        with torch.no_grad():
            got = logits_of(model, expected["images"])
        print(f"{folder} against {name}: {(got - expected['logits']).abs().max():.1e}")
        return
    for name in CASES:
        if "timm" in name or name.startswith("hf5") == TRANSFORMERS_5:
            if "timm" not in name or TRANSFORMERS_5:
                write(name, arguments.out)


if __name__ == "__main__":
    main()
