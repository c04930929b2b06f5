"""Decode and resize times of Pillow beside `convpass_bench --benchmark_filter='decode|resize'`.

Least CPU time of 40 rounds, in milliseconds: python bench/peers/pillow_images.py
"""

import io
import pathlib
import time

import PIL
from PIL import Image

PHOTO = pathlib.Path(__file__).parents[2] / "tests/data/images/photo.jpg"


def least_ms(work, repeats=10):
    times = []
    for _ in range(40):
        start = time.process_time()
        for _ in range(repeats):
            work()
        times.append((time.process_time() - start) / repeats)
    return 1e3 * min(times)


data = PHOTO.read_bytes()
image = Image.open(io.BytesIO(data)).convert("RGB")
print("Pillow", PIL.__version__)
print("decode_jpeg    %.3f" % least_ms(lambda: Image.open(io.BytesIO(data)).convert("RGB")))
print("resize bicubic  %.3f" % least_ms(lambda: image.resize((224, 224), Image.Resampling.BICUBIC)))
print("resize bilinear %.3f" % least_ms(lambda: image.resize((224, 224), Image.Resampling.BILINEAR)))
