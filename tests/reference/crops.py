"""Means of 200000 random crops of timm, for pipeline_test.cpp: python tests/reference/crops.py"""

import math
import random

import numpy as np
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation

random.seed(0)
HEIGHT, WIDTH = 200, 250
image = Image.new("RGB", (WIDTH, HEIGHT))
areas, log_ratios, centres = [], [], []
for _ in range(200000):
    _, left, height, width = RandomResizedCropAndInterpolation.get_params(
        image, (0.08, 1.0), (3 / 4, 4 / 3))
    areas.append(height * width / (HEIGHT * WIDTH))
    log_ratios.append(math.log(width / height))
    centres.append(left + (width - 1) / 2)
print("area %.4f log ratio %.4f centre %.2f" %
      (np.mean(areas), np.mean(log_ratios), np.mean(centres)))
