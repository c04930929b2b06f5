#!/usr/bin/env python3
"""What timm's distilled DeiT answers with its two heads: tests/data/vit/timm_deit_distilled/logits.safetensors.

    python tests/reference/deit_heads.py      (torch, timm, safetensors; after vit_features.py)

    labels, teacher   of head and head_dist, which learn from the labels and from the teacher
    logits            what it answers in evaluation
    loss              DeiT's hard distillation of these: half of each cross-entropy, labels 1, 0, and the teacher's
                      classes 2, 2
"""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from safetensors.torch import load_file, save_file

FOLDER = Path(__file__).resolve().parents[1] / "data" / "vit" / "timm_deit_distilled"
TINY = dict(patch_size=4, embed_dim=32, depth=2, num_heads=2, mlp_ratio=2.0, num_classes=3, img_size=16)


@torch.no_grad()
def main() -> None:
    model = timm.create_model("deit_base_distilled_patch16_224", **TINY)
    model.load_state_dict(load_file(FOLDER / "model.safetensors"))
    model.eval()
    images = load_file(FOLDER.parent / "images.safetensors")["images"]
    model.set_distilled_training(True)
    model.training = True  # of the model alone: nothing within drops
    labels, teacher = model(images)
    model.training = False
    entropy = torch.nn.functional.cross_entropy
    loss = 0.5 * entropy(labels, torch.tensor([1, 0])) + 0.5 * entropy(teacher, torch.tensor([2, 2]))
    save_file({"labels": labels, "teacher": teacher, "logits": model(images), "loss": loss}, FOLDER / "logits.safetensors")
    print(loss.item(), labels, teacher)


if __name__ == "__main__":
    main()
