"""Writes tests/data/tensors: one small checkpoint of each kind that convpass reads.

    python tests/reference/tensor_files.py [FOLDER]

Made with torch 2.14.1, numpy 2.4.6, ml_dtypes 0.6.0, safetensors 0.8.0. Values are whole numbers:
element i of tensor `seed` is (i * 7 + seed) % 100 (for bool: % 2), so the tests need no expected files.
"""

import argparse
import collections
import json
import pathlib
import sys
import zipfile

import ml_dtypes
import numpy as np
import safetensors.torch
import torch
from torch import nn

TYPES = {
    "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "f64": torch.float64,
    "i64": torch.int64, "i32": torch.int32, "i16": torch.int16, "i8": torch.int8,
    "u8": torch.uint8, "bool": torch.bool,
    "u64": torch.uint64, "u32": torch.uint32, "u16": torch.uint16,
}  # fmt: skip


def values(seed, *shape, dtype=torch.float32):
    count = int(np.prod(shape))
    whole = (torch.arange(count) * 7 + seed) % (2 if dtype == torch.bool else 100)
    return whole.to(dtype).reshape(shape)


def all_types():
    return {name: values(i, 2, 3, dtype=dtype) for i, (name, dtype) in enumerate(TYPES.items())}


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(values(3, 4, 2))
        self.register_buffer("mean", values(4, 2))

    def forward(self, x):
        return x @ self.weight + self.mean


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(Inner(), nn.ReLU())
        self.scale = nn.Parameter(values(5, 1).half(), requires_grad=False)
        self.size = 224

    def forward(self, x):
        return self.layers(x) * self.scale


def write_safetensors(folder):
    safetensors.torch.save_file(
        {**all_types(), "scalar": torch.tensor(5.0), "empty": torch.zeros(0, 4)},
        folder / "types.safetensors", metadata={"format": "pt", "note": "two\nlines"},
    )  # fmt: skip
    shards = {"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"}
    safetensors.torch.save_file({"a": values(0, 2, 2), "b": values(1, 3)}, folder / shards["a"])
    safetensors.torch.save_file({"c": values(2, 5)}, folder / shards["c"])
    index = {"metadata": {"total_size": 48}, "weight_map": shards}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def write_npz(folder):
    arrays = {n: v.numpy() for n, v in all_types().items() if n != "bf16"}
    arrays["bf16"] = all_types()["bf16"].float().numpy().astype(ml_dtypes.bfloat16)
    arrays["void"] = arrays["bf16"].view("V2")
    arrays["scalar"] = np.float32(5)
    arrays["empty"] = np.zeros((0, 4), np.float32)
    arrays["fortran"] = np.asfortranarray(values(20, 2, 3, 4).numpy())
    arrays["big"] = values(21, 2, 3).numpy().astype(">f4")
    arrays["Transformer/encoderblock_0/bias"] = values(22, 3).numpy()
    np.savez(folder / "stored.npz", **arrays)
    np.savez_compressed(folder / "deflated.npz", **arrays)
    with zipfile.ZipFile(folder / "versions.npz", "w") as archive:
        for version in (1, 2, 3):
            with archive.open(f"v{version}.npy", "w") as out:
                np.lib.format.write_array(out, values(version, 2, 2).numpy(), (version, 0))
    np.savez(folder / "objects.npz", a=np.array([None, "x"], dtype=object))
    np.savez(folder / "strings.npz", a=np.array(["x", "yy"]))
    np.save(folder / "single.npy", values(0, 3).numpy())


def write_pytorch(folder):
    torch.save(all_types(), folder / "types.pt")
    module = Tower()
    torch.save(module.state_dict(), folder / "state_dict.pt")
    torch.save(
        {
            "model": module.state_dict(), "epoch": 3, "args": argparse.Namespace(lr=0.1, name="x"),
            "optimizer": torch.optim.AdamW(module.parameters()).state_dict(),
            "best": np.float64(0.5), "history": [1.5, None, {"a": (1, 2 ** 70, -5)}, {1, 2}],
        },
        folder / "wrapped.pt",
    )  # fmt: skip
    prefixed = {"module.backbone." + k: v for k, v in module.state_dict().items()}
    torch.save({"student": {}, "teacher": prefixed}, folder / "teacher.pt")
    torch.save({"state_dict": {"model": dict(prefixed)}}, folder / "nested.pt", pickle_protocol=5)
    torch.save({"epoch": 3, "student": {"a": values(0, 2)}}, folder / "no_tensors.pt")
    whole = values(6, 4, 6)
    torch.save(
        {
            "whole": whole, "row": whole[1], "transposed": whole.t(), "corner": whole[1:3, 2:5],
            "expanded": values(7, 1, 3).expand(4, 3), "empty": torch.zeros(0, 3),
            "parameter": nn.Parameter(values(8, 2, 2)), "last": values(9, 2, 3, 2, 2)
            .to(memory_format=torch.channels_last),
        },
        folder / "views.pt",
    )  # fmt: skip
    attributed = nn.Parameter(values(10, 3))
    attributed.note = "kept by _rebuild_parameter_with_state"
    plain = values(11, 3)
    plain.note = "kept by _rebuild_from_type_v2"
    torch.save(collections.OrderedDict(a=attributed, b=plain), folder / "attributes.pt")
    torch.save(module, folder / "module.pt")
    torch.jit.save(torch.jit.script(module), folder / "script.pt")
    torch.save({"a": torch.eye(2).to_sparse()}, folder / "sparse.pt")
    torch.save({"a": torch.zeros(2, dtype=torch.complex64)}, folder / "complex.pt")
    torch.save({"a": values(0, 2)}, folder / "legacy.pt", _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    default = pathlib.Path(__file__).resolve().parent.parent / "data" / "tensors"
    target = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default
    target.mkdir(parents=True, exist_ok=True)
    write_safetensors(target)
    write_npz(target)
    write_pytorch(target)
