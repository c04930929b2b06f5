#!/usr/bin/env python3
"""Writes tests/data/clip: a tiny random CLIP and what transformers answers with it, zero-shot.

    python tests/reference/clip_zero_shot.py [FOLDER]     (torch 2.14.1, transformers 5.24.0)

model.safetensors and config.json are the whole CLIPModel as save_pretrained writes it: width 32 and 16,
two layers, images of 16 pixels, a joint space of 8, scale 100. text.safetensors and text_two.safetensors
are what scripts/clip_text_head.py makes of it for three classes a, b, c, with the usual prompt and with
two. expected.safetensors has images [4, 3, 16, 16], logits [4, 3] = CLIPModel's logits_per_image for the
usual prompts, and logits_two [4, 3], for the mean of two prompts, by the formula of OpenAI's notebook.
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers as hf
from safetensors.torch import save_file

ROOT = Path(__file__).parents[2]
OUT = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "tests" / "data" / "clip")
TEXTS = {"a": "red square", "b": "green lawn", "c": "blue sky"}
TEMPLATES = ["a photo of a {}.", "a bad drawing of the {}."]


def tokenizer(folder):
    """CLIP's byte-level tokenizer without merges: a token a letter, another where a word ends."""
    letters = "abcdefghijklmnopqrstuvwxyz."
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {word: number for number, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return hf.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"),
                            model_max_length=40), vocab


@torch.no_grad()
def tiny_clip(vocab):
    tower = dict(num_hidden_layers=2, num_attention_heads=2)
    vision = dict(**tower, hidden_size=32, intermediate_size=64, image_size=16, patch_size=4)
    text = dict(**tower, hidden_size=16, intermediate_size=32, vocab_size=len(vocab), max_position_embeddings=40,
                bos_token_id=vocab["<|startoftext|>"], eos_token_id=vocab["<|endoftext|>"],
                pad_token_id=vocab["<|endoftext|>"])
    model = hf.CLIPModel(hf.CLIPConfig(vision_config=vision, text_config=text, projection_dim=8)).eval()
    generator = torch.Generator().manual_seed(54)
    for name, value in sorted(model.named_parameters()):
        noise = torch.randn(value.shape, generator=generator)
        norm = name.endswith("norm.weight") or name.endswith(("norm1.weight", "norm2.weight"))
        spread = 1.5 if "token_embedding" in name else 0.3  # so that prompts differ
        value.copy_(1 + 0.3 * noise if norm else spread * noise)
    model.logit_scale.fill_(torch.tensor(100.0).log())
    return model


@torch.no_grad()
def main():
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "tiny_clip"
        folder.mkdir()
        tokens, vocab = tokenizer(folder)
        model = tiny_clip(vocab)
        model.save_pretrained(folder)
        tokens.save_pretrained(folder)
        classes = folder / "classes.txt"
        classes.write_text("".join(f"{name}\t{text}\n" for name, text in TEXTS.items()))
        script = [sys.executable, ROOT / "scripts" / "clip_text_head.py", folder]
        subprocess.run([*script, OUT / "text.safetensors", "--classes", classes], check=True)
        two = [option for template in TEMPLATES for option in ("--template", template)]
        subprocess.run([*script, OUT / "text_two.safetensors", "--classes", classes, *two], check=True)
        model = hf.CLIPModel.from_pretrained(folder).eval()
        for file in ("model.safetensors", "config.json"):
            (OUT / file).write_bytes((folder / file).read_bytes())

    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(51))
    outputs = []
    for template in TEMPLATES:
        prompts = tokens([template.format(t) for t in TEXTS.values()], padding=True, return_tensors="pt")
        outputs.append(model(pixel_values=images, **prompts))
    weights = torch.stack([output.text_embeds for output in outputs]).mean(0)
    weights = weights / weights.norm(dim=-1, keepdim=True)
    expected = {"images": images, "logits": outputs[0].logits_per_image,
                "logits_two": 100 * outputs[0].image_embeds @ weights.T}
    for key in ("logits", "logits_two"):
        assert expected[key].std() > 1, expected[key]
        assert len(expected[key].argmax(1).unique()) > 1, expected[key]
    save_file({k: v.contiguous().clone() for k, v in expected.items()}, OUT / "expected.safetensors")


if __name__ == "__main__":
    main()
