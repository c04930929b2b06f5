#!/usr/bin/env python3
"""Writes what a head of the type "cosine" starts from: CLIP's embeddings of class texts.

    python scripts/clip_text_head.py openai/clip-vit-base-patch16 pets.safetensors --classes images/train
    python scripts/clip_text_head.py weights/clip imagenet.safetensors --classes imagenet.txt \
        --template "a photo of a {}." --template "a drawing of a {}."

The model is a name on Hugging Face or a folder with its files. --classes is a folder with one folder a
class, or a text file with a class a line: its name as in the data set and, after a tab, what the prompt
calls it ("n01440764<tab>tench"). Without a tab the prompt takes the name, "_" as a blank. The file holds
`embeddings` [K, P] (of each prompt brought to length one, averaged, brought to length one again),
`projection` [P, D] of the image features, `scale` (the temperature, 100 in released models), and the
class names. Needs torch and transformers.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file

Classes = list[tuple[str, str]]  # name in the data set, text for the prompt


def read_classes(source: Path) -> Classes:
    if not source.exists():
        raise SystemExit(f"{source}: no such file, wanted a folder or a class a line")
    if source.is_dir():
        folders = [p.name for p in source.iterdir() if p.is_dir() and not p.name.startswith(".")]
        lines = sorted(folders, key=os.fsencode)  # the order in which convpass numbers them
    else:
        lines = [line for line in source.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise SystemExit(f"{source}: got no classes, wanted a line or a folder for each")
    classes = []
    for line in lines:
        name, tab, text = line.partition("\t")
        if not name or any(name == other for other, _ in classes):
            raise SystemExit(f"{source}: got the class {name!r} twice, wanted another name for each: "
                             "NAME<tab>TEXT gives two classes the same text")
        classes.append((name, text.strip() if tab else name.replace("_", " ")))
    return classes


def read_templates(options: argparse.Namespace) -> list[str]:
    templates = list(options.template)
    if options.templates:
        lines = options.templates.read_text(encoding="utf-8").splitlines()
        templates += [line for line in lines if line.strip()]
    for template in templates:
        if template.count("{}") != 1:
            raise SystemExit(f"template {template!r}: wanted {{}} once, where the class stands")
    return templates or ["a photo of a {}."]


@torch.no_grad()
def embed(model, tokenizer, prompts: list[str]) -> torch.Tensor:
    """[N, P], rows of length one."""
    rows = []
    for start in range(0, len(prompts), 256):
        batch = prompts[start : start + 256]
        tokens = tokenizer(batch, padding=True, truncation=True, return_tensors="pt")
        pooled = model.text_model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).pooler_output
        rows.append(F.normalize(model.text_projection(pooled), dim=-1))
    return torch.cat(rows)


def write_text_head(options: argparse.Namespace) -> None:
    classes, templates = read_classes(options.classes), read_templates(options)
    if not options.out.absolute().parent.is_dir():
        raise SystemExit(f"{options.out}: no such folder to write into")
    model = transformers.CLIPModel.from_pretrained(options.model).eval().float()
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    length = model.config.text_config.max_position_embeddings
    tokenizer.model_max_length = min(tokenizer.model_max_length, length)
    of_template = [
        embed(model, tokenizer, [template.format(text) for _, text in classes])
        for template in templates
    ]
    embeddings = F.normalize(torch.stack(of_template).mean(0), dim=-1)  # [K, P]
    tensors = {
        "embeddings": embeddings,
        "projection": model.visual_projection.weight.detach(),  # [P, D]
        "scale": model.logit_scale.detach().exp(),
    }
    metadata = {
        "format": "convpass-text-embeddings",
        "classes": json.dumps([name for name, _ in classes]),
        "texts": json.dumps([text for _, text in classes]),
        "templates": json.dumps(templates),
        "model": Path(options.model).name if Path(options.model).is_dir() else options.model,
    }
    aside = options.out.with_name(options.out.name + ".part")
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, aside, metadata)
    os.replace(aside, options.out)
    count, width = embeddings.shape
    print(f"wrote {options.out}: {count} classes, width {width}, {len(templates)} template(s)")


def one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", help="name on Hugging Face, or a folder with model and tokenizer")
    parser.add_argument("out", type=Path, help="the .safetensors file to write")
    parser.add_argument("--classes", type=Path, required=True, help="folder, or a class a line")
    parser.add_argument("--template", action="append", default=[], help='"a photo of a {}."')
    parser.add_argument("--templates", type=Path, help="a template a line")
    options = parser.parse_args()
    try:
        write_text_head(options)
    except (ImportError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise SystemExit(f"{options.model}: {one_line(error)}") from None
    return 0


if __name__ == "__main__":
    sys.exit(main())
