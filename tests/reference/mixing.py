"""Mixed batches of timm's Mixup, of big_vision's mixup and of Big Transfer's, for given draws.

timm 1.0 rounds the lower half of a CutMix box up; timm 0.5.4, which Solving_ImageNet (USI) runs on
and we follow, takes whole halves on both sides. rand_bbox below is 0.5.4's, with a given centre.
Everything else is timm's own code with its draws replaced. big_vision/utils.py `mixup` and
bit_pytorch/train.py `mixup_data`, `mixup_criterion` are transcribed.

Writes tests/data/mixing.safetensors. Run from the repository root with timm and safetensors:
  python tests/reference/mixing.py
"""

import numpy as np
import timm.data.mixup as timm_mixup
import torch
from safetensors.torch import save_file

BATCH, HEIGHT, WIDTH, CLASSES, SMOOTHING = 6, 9, 12, 5, 0.1
generator = torch.Generator().manual_seed(3)
images = torch.randn(BATCH, 3, HEIGHT, WIDTH, generator=generator)
labels = torch.randint(0, CLASSES, (BATCH,), generator=generator)
out = {"images": images, "labels": labels}

# What each row draws: lambda, whether CutMix, and the centre of the box.
LAMBDAS = np.array([0.3, 0.85, 1.0, 0.6, 0.05, 0.5], np.float64)
CUTMIX = np.array([False, True, False, False, True, True])
CENTRES = [(4, 5), (0, 11), (3, 3), (8, 0), (5, 6), (2, 9)]


class Mixup(timm_mixup.Mixup):
    """With given draws; keeps the boxes and the corrected lambdas in the order they come up."""

    def __init__(self, mode, rows):
        super().__init__(mixup_alpha=1.0, cutmix_alpha=1.0, mode=mode, label_smoothing=SMOOTHING,
                         num_classes=CLASSES)
        self.rows = rows

    def _params_per_batch(self):
        return float(LAMBDAS[self.rows[0]]), bool(CUTMIX[self.rows[0]])

    def _params_per_elem(self, batch_size):
        return LAMBDAS[self.rows].copy(), CUTMIX[self.rows]


def run(name, mode, rows):
    """`rows` names for each drawn thing (batch, pair or row) the draw that it takes."""
    boxes, centres = [], iter([CENTRES[r] for r in rows if CUTMIX[r]])

    def rand_bbox(shape, lam, margin=0., count=None):
        height, width = shape[-2:]
        ratio = np.sqrt(1 - lam)
        cut_h, cut_w = int(height * ratio), int(width * ratio)
        cy, cx = next(centres)
        box = (np.clip(cy - cut_h // 2, 0, height), np.clip(cy + cut_h // 2, 0, height),
               np.clip(cx - cut_w // 2, 0, width), np.clip(cx + cut_w // 2, 0, width))
        boxes.append([int(box[0]), int(box[2]), int(box[1]), int(box[3])])
        return box

    timm_mixup.rand_bbox = rand_bbox
    mixed, target = Mixup(mode, rows)(images.clone(), labels)
    out[name + ".mixed"], out[name + ".target"] = mixed, target.float()
    out[name + ".draws"] = torch.tensor(rows)
    if boxes:
        out[name + ".boxes"] = torch.tensor(boxes)


out["lambdas"] = torch.from_numpy(LAMBDAS)
out["cutmix"] = torch.from_numpy(CUTMIX).long()
out["centres"] = torch.tensor(CENTRES)
run("batch_mixup", "batch", [0])
run("batch_cutmix", "batch", [1])
run("pair", "pair", [4, 0, 1])
run("elem", "elem", [3, 1, 2, 0, 5, 4])

# big_vision: lambda = max(lambda, 1 - lambda); every array a becomes lambda a + (1-lambda) roll(a, 1).
lam = np.float32(max(0.3, 1 - 0.3))
array = images.numpy()
out["funmatch.mixed"] = torch.from_numpy(lam * array + (np.float32(1) - lam) * np.roll(array, 1, 0))

# Big Transfer: a random permutation, two cross-entropies.
lam, order = 0.15, torch.tensor([2, 0, 5, 3, 1, 4])
logits = torch.randn(BATCH, CLASSES, generator=generator)
out["bit.order"], out["bit.logits"] = order, logits
out["bit.mixed"] = lam * images + (1 - lam) * images[order]
cross_entropy = torch.nn.functional.cross_entropy
out["bit.loss"] = (lam * cross_entropy(logits, labels) +
                   (1 - lam) * cross_entropy(logits, labels[order])).reshape(1)

save_file({name: tensor.contiguous() for name, tensor in out.items()},
          "tests/data/mixing.safetensors")
