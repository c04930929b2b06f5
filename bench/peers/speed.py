#!/usr/bin/env python3
"""Times one PyTorch method on a timm ViT: inference, a training step, latency with one image, peak memory.

    speed.py --method convpass|convpass_attn|linear|lora|full --precision f32|bf16 [--compile]

Random weights, synthetic images, one JSON line on stdout. `convpass` is the official formula (official_convpass.py), `lora`
PEFT's LoRA on the four dense layers of every block, `full` trains every weight. bf16 is autocast, PyTorch's usual way.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable

import timm
import torch
from official_convpass import attach, autocast
from torch import nn
from torch.nn import functional

MODELS = {  # our variant: timm's name, keywords
    "vit_tiny_patch16": ("vit_tiny_patch16_224", {}),
    "vit_small_patch16": ("vit_small_patch16_224", {}),
    "vit_small_patch14": ("vit_small_patch16_224", {"patch_size": 14}),
    "vit_base_patch16": ("vit_base_patch16_224", {}),
    "vit_large_patch16": ("vit_large_patch16_224", {}),
}
METHODS = ("convpass", "convpass_attn", "linear", "lora", "full")
SINGLES = 20  # images of which the latency is taken


def peak_memory() -> int:
    """Peak resident bytes of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def timed(work: Callable[[], object], warmup: int, steps: int) -> list[float]:
    """Seconds of each call after a warm-up."""
    times = []
    for step in range(warmup + steps):
        started = time.perf_counter()
        work()
        if step >= warmup:
            times.append(time.perf_counter() - started)
    return times


def with_lora(vit: nn.Module, rank: int) -> nn.Module:
    """PEFT's LoRA (alpha 2 r, no dropout) on qkv, proj, fc1 and fc2 of every block, and the head trained."""
    import peft

    config = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])",
        modules_to_save=["head"],
    )
    return peft.get_peft_model(vit, config)


def build(options: argparse.Namespace) -> tuple[nn.Module, list[nn.Parameter]]:
    """The network and what of it trains."""
    name, keywords = MODELS[options.variant]
    vit = timm.create_model(
        name, pretrained=False, img_size=options.image_size, drop_path_rate=options.drop_path, **keywords
    )
    vit.head = nn.Linear(vit.embed_dim, options.classes)
    if options.method == "lora":
        vit = with_lora(vit, options.rank)
    elif options.method != "full":
        attach(vit, options.method)
    return vit, [parameter for parameter in vit.parameters() if parameter.requires_grad]


def fold(vit: nn.Module, folded: bool) -> None:
    """PEFT's LoRA into the weights or out of them; the other methods have nothing to fold."""
    if change := getattr(vit, "merge_adapter" if folded else "unmerge_adapter", None):
        change()


def measure(options: argparse.Namespace) -> dict[str, object]:
    startup = peak_memory()
    torch.manual_seed(0)
    vit, trainable = build(options)
    network = torch.compile(vit, dynamic=False) if options.compile else vit
    optimiser = torch.optim.AdamW(trainable, lr=1e-3, weight_decay=1e-4)
    images = torch.randn(options.batch, 3, options.image_size, options.image_size)
    labels = torch.arange(options.batch) % options.classes

    def train_step() -> float:
        with autocast(options.precision):
            loss = functional.cross_entropy(network(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.item()

    def infer(batch: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(), autocast(options.precision):
            return network(batch)

    # The lighter work first: peak memory only ever grows.
    vit.eval()
    fold(vit, True)
    inference = statistics.median(timed(lambda: infer(images), options.warmup, options.steps))
    inference_memory = peak_memory()
    vit.train()
    fold(vit, False)
    step = statistics.median(timed(train_step, options.warmup, options.steps))
    memory = peak_memory()
    vit.eval()
    fold(vit, True)
    singles = sorted(timed(lambda: infer(images[:1]), options.warmup, max(SINGLES, options.steps)))
    return {
        "method": options.method,
        "image_size": options.image_size,
        "batch": options.batch,
        "precision": options.precision,
        "compiled": options.compile,
        "threads": torch.get_num_threads(),
        "images_per_second": options.batch / step,
        "step_ms": 1000 * step,
        "inference_images_per_second": options.batch / inference,
        "latency_ms": 1000 * statistics.median(singles),
        "latency_p95_ms": 1000 * singles[-(-95 * len(singles) // 100) - 1],  # nearest rank
        "peak_memory_bytes": memory,
        "inference_peak_memory_bytes": inference_memory,
        "startup_memory_bytes": startup,
        "trainable_parameters": sum(parameter.numel() for parameter in trainable),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--method", choices=METHODS, default="convpass")
    parser.add_argument("--variant", choices=sorted(MODELS), default="vit_base_patch16")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--rank", type=int, default=8, help="of LoRA")
    parser.add_argument("--drop-path", type=float, default=0.1)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, help="torch's default if absent")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(json.dumps(measure(options)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
