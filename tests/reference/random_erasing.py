"""Means over many draws of timm's RandomErasing, which tests/data/random_erasing_test.cpp quotes.

Run with timm 1.0: python tests/reference/random_erasing.py
"""

import math
import random

import numpy as np
from timm.data import random_erasing


class Recorder:
    """Stands for an image [3, H, W] and keeps the boxes that are written."""

    def __init__(self):
        self.boxes = []

    def __setitem__(self, index, value):
        _, rows, columns = index
        self.boxes.append((rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start))


random_erasing._get_pixels = lambda *arguments, **options: None
random.seed(0)
for height, width, count in ((224, 224, 1), (16, 40, 3)):
    erasing = random_erasing.RandomErasing(probability=1, max_count=count, device="cpu")
    numbers, boxes = [], []
    for _ in range(300000):
        recorder = Recorder()
        erasing._erase(recorder, 3, height, width, None)
        numbers.append(len(recorder.boxes))
        boxes += recorder.boxes
    top, left, h, w = np.array(boxes).T
    print("%dx%d count %d: boxes %.4f area %.5f log ratio %.4f middle %.4f %.4f" %
          (height, width, count, np.mean(numbers), np.mean(h * w) / (height * width), np.mean(np.log(h / w)),
           np.mean(top + h / 2) / height, np.mean(left + w / 2) / width))
