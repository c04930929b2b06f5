"""Images a second that timm's RandAugment makes with Pillow, beside `convpass_bench`'s rand_augment_224.

Draws "rand-m7-mstd0.5-inc1" for a 224x224 image, and with -p1 both operations always; one thread, CPU time:
  OMP_NUM_THREADS=1 python bench/peers/rand_augment.py build/bench/convpass_bench
"""

import json
import pathlib
import random
import subprocess
import sys
import time

import numpy as np
import PIL
import timm
from PIL import Image
from timm.data.auto_augment import rand_augment_transform

PHOTO = pathlib.Path(__file__).parents[2] / "tests/data/images/photo.jpg"
DRAWS = 3000


def peer(text, image):
    """Best of three rounds."""
    augment = rand_augment_transform(text, {"img_mean": (128, 128, 128), "interpolation": Image.Resampling.BICUBIC})
    best = 0
    for seed in range(3):
        random.seed(seed)
        np.random.seed(seed)
        start = time.process_time()
        for _ in range(DRAWS):
            augment(image)
        best = max(best, DRAWS / (time.process_time() - start))
    return best


def ours(program):
    """By the benchmark's argument; best of three rounds."""
    run = subprocess.run([program, "--benchmark_filter=rand_augment_224", "--benchmark_format=json",
                          "--benchmark_repetitions=3"], capture_output=True, check=True, text=True)
    best = {}
    for entry in json.loads(run.stdout)["benchmarks"]:
        if entry["run_type"] == "iteration":
            always = entry["name"].split("always:")[1][0] == "1"
            best[always] = max(best.get(always, 0), 1e3 / entry["cpu_time"])
    return best


image = Image.open(PHOTO).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
mine = ours(sys.argv[1])
print("timm %s, Pillow %s" % (timm.__version__, PIL.__version__))
for always in (False, True):
    text = "rand-m7-mstd0.5-inc1" + ("-p1" if always else "")
    theirs = peer(text, image)
    print("%-24s ours %6.0f images/s  timm %6.0f  %.1f times" % (text, mine[always], theirs, mine[always] / theirs))
