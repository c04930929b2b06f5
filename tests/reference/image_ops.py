"""Checksums of what Pillow makes of images with the operations of timm's RandAugment and of torchvision's hue.

The images are those of tests/data/images and what `images` below makes of them. Geometric operations fill with FILL.

Writes tests/data/image_ops.txt, lines of `image operation argument bilinear crc32`. Run from the repository root with
timm 1.0, torchvision and Pillow 13: python tests/reference/image_ops.py
"""

import pathlib
import zlib

import numpy as np
from PIL import Image
from timm.data import auto_augment
from torchvision.transforms import functional

DATA = pathlib.Path("tests/data")
FILL = (124, 116, 104)
FACTORS = [0.0, 0.1, 0.37, 0.55, 0.9137, 1.0, 1.08, 1.63, 1.9]
SHEARS = [-0.3, -0.2113, -0.03, 0.0, 0.21, 0.3]
SHIFTS = [-0.45, -0.3151, -0.25, 0.0, 0.0137, 0.315, 0.5]
# Ours: timm's function, arguments.
OPERATIONS = {
    "autocontrast": (auto_augment.auto_contrast, [None]),
    "equalize": (auto_augment.equalize, [None]),
    "invert": (auto_augment.invert, [None]),
    "rotate": (auto_augment.rotate, [-30.0, -21.0, -7.3, 0.0, 0.5, 13.37, 21.0, 30.0, 90.0, 180.0]),
    "posterize": (auto_augment.posterize, [1, 2, 3, 4, 7, 8]),
    "solarize": (auto_augment.solarize, [0, 1, 77, 128, 255, 256]),
    "solarize_add": (auto_augment.solarize_add, [0, 1, 77, 110, 128]),
    "color": (auto_augment.color, FACTORS),
    "contrast": (auto_augment.contrast, FACTORS),
    "brightness": (auto_augment.brightness, FACTORS),
    "sharpness": (auto_augment.sharpness, FACTORS),
    "shear_x": (auto_augment.shear_x, SHEARS),
    "shear_y": (auto_augment.shear_y, SHEARS),
    "translate_x": (auto_augment.translate_x_rel, SHIFTS),
    "translate_y": (auto_augment.translate_y_rel, SHIFTS),
    "shift_hue": (None, [-0.5, -0.31, -0.1, 0.0, 0.004, 0.1, 0.25, 0.5]),
}
GEOMETRIC = {"rotate", "shear_x", "shear_y", "translate_x", "translate_y"}


def images():
    """By name: a photo of the input size of most networks, small ones, few levels, one colour, hardly any pixels;
    a quarter of all colours, for what looks at one pixel at a time."""
    noise = np.asarray(Image.open(DATA / "images/resize_noise.ppm"))
    smooth = np.asarray(Image.open(DATA / "images/resize_smooth.ppm"))
    photo = np.asarray(Image.open(DATA / "images/resize_photo_bicubic_224x224.ppm"))
    cube = np.stack(np.meshgrid(np.arange(1, 256, 4), np.arange(256), np.arange(256), indexing="ij"), 3)
    return {"cube": cube.reshape(1024, 4096, 3).astype(np.uint8), "photo": photo, "noise": noise, "smooth": smooth, "dim": smooth // 9 + 30,
            "plain": np.full_like(noise, 77), "tiny": noise[:2, :3]}


def changed(image, operation, argument, bilinear):
    if operation == "shift_hue":
        return functional.adjust_hue(image, argument)
    resample = Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC
    arguments = [] if argument is None else [argument]
    return OPERATIONS[operation][0](image, *arguments, fillcolor=FILL, resample=resample)


if __name__ == "__main__":
    lines = []
    for name, pixels in images().items():
        for operation, (_, arguments) in OPERATIONS.items():
            if name == "cube" and operation not in ("color", "shift_hue"):
                continue
            for argument in arguments:
                for bilinear in (0, 1) if operation in GEOMETRIC else (0,):
                    after = changed(Image.fromarray(pixels), operation, argument, bilinear)
                    crc = zlib.crc32(np.asarray(after).tobytes())
                    lines.append(f"{name} {operation} {argument or 0} {bilinear} {crc}\n")
    (DATA / "image_ops.txt").write_text("".join(lines))
