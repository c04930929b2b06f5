"""TensorFlow's resizes and random crops, as big_vision uses them, in numpy.

TensorFlow itself is not needed. Transcribed, in float32 and in the order of the kernels' sums:
  tensorflow/core/util/image_resizer_state.h      CalculateResizeScale, HalfPixelScaler
  tensorflow/core/kernels/image/resize_bilinear_op.cc   (half_pixel_centers, no antialias)
  tensorflow/core/kernels/image/resize_area_op.cc       ComputePatchSumOf3Channels
  tensorflow/core/kernels/image/sample_distorted_bounding_box_op.cc   GenerateRandomCrop
  big_vision/pp/ops_image.py    resize_small, central_crop; clip, then cast: truncated to 8 bits
Two further checks run here: the bilinear against torch's interpolate, the area against exact
fractions. The random numbers of the crops are ours (include/convpass/core/rng.h), transcribed too.

Writes tests/data/tensorflow/. Run from the repository root with numpy and torch:
  python tests/reference/tensorflow_views.py
"""

import math
import pathlib
import zlib
from fractions import Fraction

import numpy as np
import torch

OUT = pathlib.Path("tests/data/tensorflow")
IMAGES = pathlib.Path("tests/data/images")
F = np.float32
SIZES = ((24, 24), (61, 40), (17, 97), (70, 110), (7, 150), (150, 7), (1, 1))


def read_ppm(path):
    magic, width, height, top, pixels = path.read_bytes().split(maxsplit=4)
    assert magic == b"P6" and top == b"255"
    # split() may eat pixels that look like blanks: take them from the end.
    size = int(width) * int(height) * 3
    return np.frombuffer(path.read_bytes()[-size:], np.uint8).reshape(int(height), int(width), 3)


def write_ppm(path, rgb):
    height, width, _ = rgb.shape
    path.write_bytes(b"P6\n%d %d\n255\n" % (width, height) + rgb.tobytes())


def to_bytes(values):
    return np.clip(values, F(0), F(255)).astype(np.uint8)  # the cast truncates


def lerps(size_in, size_out):
    scale = F(F(size_in) / F(size_out))
    at = (np.arange(size_out, dtype=F) + F(0.5)) * scale - F(0.5)
    floor = np.floor(at)
    lower = np.maximum(floor.astype(np.int64), 0)
    upper = np.minimum(np.ceil(at).astype(np.int64), size_in - 1)
    return lower, upper, (at - floor).astype(F)


def bilinear(image, height, width):
    if image.shape[:2] == (height, width):
        return image.astype(F)
    pixels = image.astype(F)
    y0, y1, fy = lerps(image.shape[0], height)
    x0, x1, fx = lerps(image.shape[1], width)
    fx, fy = fx[None, :, None], fy[:, None, None]
    rows0, rows1 = pixels[y0], pixels[y1]
    top = rows0[:, x0] + (rows0[:, x1] - rows0[:, x0]) * fx
    bottom = rows1[:, x0] + (rows1[:, x1] - rows1[:, x0]) * fx
    result = top + (bottom - top) * fy
    assert result.dtype == F
    return result


def cells(size_in, size_out):
    """For each output: first input and the weights from it on."""
    scale = F(F(size_in) / F(size_out))
    found = []
    for i in range(size_out):
        start, stop = F(F(i) * scale), F(F(i + 1) * scale)
        weights = []
        for v in range(math.floor(start), math.ceil(stop)):
            if F(v) < start:
                weights.append(scale if F(v + 1) > stop else F(F(v + 1) - start))
            else:
                weights.append(F(stop - F(v)) if F(v + 1) > stop else F(1))
        found.append((math.floor(start), weights))
    return scale, found


def area(image, height, width):
    if image.shape[:2] == (height, width):
        return image.astype(F)
    pixels = image.astype(F)
    scale_y, rows = cells(image.shape[0], height)
    scale_x, columns = cells(image.shape[1], width)
    share = F(1.0 / float(F(scale_y * scale_x)))
    wide = np.zeros((image.shape[0], width, 3), F)
    for x, (first, weights) in enumerate(columns):
        for k, weight in enumerate(weights):
            wide[:, x] += pixels[:, min(first + k, image.shape[1] - 1)] * weight
    result = np.zeros((height, width, 3), F)
    for y, (first, weights) in enumerate(rows):
        for k, weight in enumerate(weights):
            result[y] += wide[min(first + k, image.shape[0] - 1)] * weight
    result *= share
    assert result.dtype == F
    return result


def exact_area(image, height, width):
    def matrix(size_in, size_out):
        weights = np.zeros((size_out, size_in))
        for i in range(size_out):
            start, stop = Fraction(i * size_in, size_out), Fraction((i + 1) * size_in, size_out)
            for v in range(math.floor(start), math.ceil(stop)):
                weights[i, v] = float((min(stop, v + 1) - max(start, v)) / (stop - start))
        return weights
    down, across = matrix(image.shape[0], height), matrix(image.shape[1], width)
    return np.einsum("yh,hwc,xw->yxc", down, image.astype(np.float64), across)


def torch_bilinear(image, height, width):
    pixels = torch.from_numpy(image.astype(F)).permute(2, 0, 1)[None]
    result = torch.nn.functional.interpolate(pixels, (height, width), mode="bilinear",
                                             align_corners=False, antialias=False)
    return result[0].permute(1, 2, 0).numpy()


def small_and_central(image, side, crop):
    """resize_small(side)|central_crop(crop)."""
    factor = F(F(side) / F(min(image.shape[:2])))
    height, width = (int(np.round(F(F(s) * factor))) for s in image.shape[:2])
    resized = to_bytes(area(image, height, width))
    top, left = (height - crop) // 2, (width - crop) // 2
    return resized[top:top + crop, left:left + crop]


MASK = (1 << 64) - 1


def mix64(x):
    x = (x + 0x9e3779b97f4a7c15) & MASK
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9 & MASK
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb & MASK
    return x ^ (x >> 31)


class Rng:
    def __init__(self, state):
        self.state = state

    def next(self):
        word = mix64(self.state)
        self.state = (self.state + 0x9e3779b97f4a7c15) & MASK
        return word

    def uniform(self):
        return (self.next() >> 11) * 2.0 ** -53

    def below(self, n):
        return self.next() * n >> 64


def lrintf(x):
    return int(np.rint(F(x)))


def random_crop(height, width, area_range, ratio, rng):
    """GenerateRandomCrop: (y, x, height, width) or None."""
    least = F(F(area_range[0]) * F(width)) * F(height)
    most = F(F(area_range[1]) * F(width)) * F(height)
    h = lrintf(np.sqrt(F(least / ratio)))
    highest = lrintf(np.sqrt(F(most / ratio)))
    if lrintf(F(highest) * ratio) > width:
        highest = int((width + 0.5 - float(F(0.0000001))) / float(ratio))
        if lrintf(F(highest) * ratio) > width:
            highest -= 1
    highest = min(highest, height)
    h = min(h, highest)
    if h < highest:
        h += rng.below(highest - h + 1)
    w = lrintf(F(h) * ratio)
    if F(w * h) < least:
        h += 1
        w = lrintf(F(h) * ratio)
    if F(w * h) > most:
        h -= 1
        w = lrintf(F(h) * ratio)
    if F(w * h) < least or F(w * h) > most or w > width or h > height or w <= 0 or h <= 0:
        return None
    y = rng.below(height - h) if h < height else 0
    x = rng.below(width - w) if w < width else 0
    return y, x, h, w


def inception_box(height, width, area_range, ratios, rng):
    low, high = F(ratios[0]), F(ratios[1])
    for _ in range(100):
        ratio = F(F(rng.uniform()) * F(high - low)) + low
        box = random_crop(height, width, area_range, ratio, rng)
        if box:
            return box
    return 0, 0, height, width


def make_resizes():
    image = read_ppm(IMAGES / "resize_noise.ppm")
    for height, width in SIZES:
        ours = bilinear(image, height, width)
        assert np.abs(ours - torch_bilinear(image, height, width)).max() < 2e-3
        write_ppm(OUT / ("bilinear_%dx%d.ppm" % (height, width)), to_bytes(ours))
        ours = area(image, height, width)
        assert np.abs(ours - exact_area(image, height, width)).max() < 5e-3
        write_ppm(OUT / ("area_%dx%d.ppm" % (height, width)), to_bytes(ours))


def make_evaluation_views():
    """Checksums of resize_small|central_crop, from a smooth and a noisy source."""
    lines = []
    for name in ("noise", "smooth"):
        image = read_ppm(IMAGES / ("resize_%s.ppm" % name))
        for side, crop in ((32, 28), (20, 15), (80, 70), (61, 61)):
            for turned in (False, True):
                source = image.transpose(1, 0, 2) if turned else image
                view = small_and_central(source, side, crop)
                lines.append("%s %d %d %d %d\n" % (name, turned, side, crop,
                                                   zlib.crc32(view.tobytes())))
    (OUT / "evaluation_views.txt").write_text("".join(lines))


def make_boxes():
    """height width area_min ratio_max key -> top left height width. The last sizes rarely fit."""
    lines = []
    for height, width, area_min, ratio_max in (
            (375, 500, 0.05, 1.33), (500, 333, 0.05, 1.33), (32, 32, 0.05, 1.33),
            (224, 224, 0.08, 1.5), (40, 700, 0.05, 1.33), (1, 1, 0.05, 1.33), (3, 2, 0.9, 1.33),
            (20, 200, 0.9, 1.33)):
        for key in range(60):
            box = inception_box(height, width, (area_min, 1.0), (0.75, ratio_max), Rng(key))
            lines.append("%d %d %g %g %d %d %d %d %d\n" % (height, width, area_min, ratio_max, key,
                                                          *box))
    (OUT / "inception_boxes.txt").write_text("".join(lines))


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    make_resizes()
    make_evaluation_views()
    make_boxes()
