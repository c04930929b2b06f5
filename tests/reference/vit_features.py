#!/usr/bin/env python3
"""Writes tests/data/vit: a tiny random model of every ViT family in its own file format, and what the
family's own library (timm, transformers) computes with it.

    python tests/reference/vit_features.py [FOLDER]     (torch 2.14.1, timm 1.0.31, transformers 5.24.0)

images.safetensors has the inputs of all: images [2, 3, 16, 16] (4 x 4 patches, as stored) and
images_resized [2, 3, 24, 16] (6 x 4 patches, positions resized). Each family is a folder: the checkpoint,
its config.json where such repositories have one, and expected.safetensors with features, tokens,
features_resized and tokens_resized.
Features are the final-normed class token, the pooled and normed feature where the model pools by mean,
and the mean of the two normed tokens for distilled DeiT. Official files whose code is not installed
are read by timm's own converters; the position resize of their loader is written out here.
"""
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
import transformers as hf
from safetensors.torch import load_file, save_file
from timm.models._hub import save_for_hf
from timm.models.vision_transformer import checkpoint_filter_fn

SIZES = {"": (16, 16), "_resized": (24, 16)}
TINY = dict(patch_size=4, embed_dim=32, depth=2, num_heads=2, mlp_ratio=2.0, num_classes=3)
OUT = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1] / "data" / "vit")


# ---------------------------------------------------------------- models and expected values
@torch.no_grad()
def randomize(model, seed):
    """Nothing degenerate: every bias, norm, LayerScale, token and position matters to the result."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in sorted(model.named_parameters()):
        noise = torch.randn(value.shape, generator=generator)
        is_scale = "norm" in name and name.endswith("weight") or "gamma" in name or "lambda1" in name
        if is_scale or "layrnorm.weight" in name:
            value.copy_(1 + 0.3 * noise)
        elif "token" in name or "pos" in name or "class_embedding" in name:
            value.copy_(0.6 * noise)
        else:
            value.copy_(0.25 * noise)
    return model.eval()


def images():
    generator = torch.Generator().manual_seed(7)
    return {k: torch.randn(2, 3, *size, generator=generator) for k, size in SIZES.items()}


def build(architecture, size=(16, 16), **options):
    return timm.create_model(architecture, img_size=size, **{**TINY, **options}).eval()


def resize(pos, prefix, method):
    """pos_embed of a 4 x 4 grid brought to 6 x 4."""
    grid = pos[:, prefix:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2).float()
    if method == "dinov2_scale_offset":
        scale = ((6 + 0.1) / 4, (4 + 0.1) / 4)
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
    elif method == "spline_order1":
        grid = F.interpolate(grid, size=(6, 4), mode="bilinear", align_corners=True)
    assert grid.shape[2:] == (6, 4)
    return torch.cat([pos[:, :prefix], grid.permute(0, 2, 3, 1).reshape(1, 24, -1)], 1)


@torch.no_grad()
def expect_timm(load, position_resize=None):
    """`load(size)` gives a model at that size whose weights timm itself has read."""
    expected = {}
    for key, image in images().items():
        model = load(SIZES[key])
        if position_resize and key:
            stored = load(SIZES[""])
            rows = stored.pos_embed.shape[1] - 16
            model.pos_embed.copy_(resize(stored.pos_embed, rows, position_resize))
        tokens = model.forward_features(image)
        expected |= {"tokens" + key: tokens,
                     "features" + key: model.forward_head(tokens, pre_logits=True)}
    return expected


@torch.no_grad()
def expect_hf(model, features):
    expected = {}
    for key, image in images().items():
        tokens, feature = features(model(pixel_values=image, **resizing(model)), model)
        expected |= {"tokens" + key: tokens, "features" + key: feature}
    return expected


def resizing(model):
    """DINOv2 always interpolates; the others have to be asked."""
    return {} if "Dinov2" in type(model).__name__ else {"interpolate_pos_encoding": True}


# ---------------------------------------------------------------- writing
def folder(family):
    path = OUT / family
    path.mkdir(parents=True, exist_ok=True)
    return path


def save_expected(family, expected):
    for value in expected.values():
        assert torch.isfinite(value).all() and value.std() > 1e-3
    save_file({k: v.float().contiguous() for k, v in expected.items()},
              folder(family) / "expected.safetensors")


def heads_json(family):
    """Official files come without a configuration; ours says that heads are not 64 wide."""
    (folder(family) / "config.json").write_text(json.dumps({"model_args": {"num_heads": 2}}) + "\n")


def from_state(architecture, state, **options):
    """A loader that gives timm a fresh copy of an official state dict."""
    def load(size):
        model = build(architecture, size, **options)
        copy = {k: v.clone().float() for k, v in state.items()}
        model.load_state_dict(checkpoint_filter_fn(copy, model, adapt_layer_scale=True))
        return model
    return load


# ---------------------------------------------------------------- timm
def write_timm():
    families = {
        "timm_vit": ("vit_base_patch16_224", {}),
        "timm_vit_fc_norm": ("vit_base_patch16_224", dict(global_pool="avg")),
        "timm_vit_gap": ("vit_base_patch16_siglip_gap_224", {}),
        "timm_deit_distilled": ("deit_base_distilled_patch16_224", {}),
        "timm_deit3": ("deit3_base_patch16_224", {}),
        "timm_dinov2": ("vit_base_patch14_dinov2", {}),
        "timm_dinov2_reg4": ("vit_base_patch14_reg4_dinov2", {}),
        "timm_swiglu": ("vit_giant_patch14_dinov2", dict(mlp_ratio=3.0)),
        "timm_clip_quickgelu": ("vit_base_patch16_clip_quickgelu_224", {}),
        "timm_clip": ("vit_base_patch16_clip_224", {}),
        "timm_reg1_gap": ("vit_medium_patch16_reg1_gap_256", {}),
    }
    for seed, (family, (architecture, options)) in enumerate(families.items()):
        model = randomize(build(architecture, **options), seed)
        save_for_hf(model, folder(family), safe_serialization=True)
        state = load_file(folder(family) / "model.safetensors")
        save_expected(family, expect_timm(from_state(architecture, state, **options)))


# ---------------------------------------------------------------- Google
def to_flax(state, heads):
    """timm state dict -> the names and layouts of the original ViT .npz files."""
    out = {}
    width = state["cls_token"].shape[-1] if "cls_token" in state else state["norm.weight"].shape[0]
    for name, value in state.items():
        v = value.numpy()
        if name == "patch_embed.proj.weight":
            out["embedding/kernel"] = v.transpose(2, 3, 1, 0)
        elif name == "patch_embed.proj.bias":
            out["embedding/bias"] = v
        elif name == "cls_token":
            out["cls"] = v
        elif name == "pos_embed":
            out["Transformer/posembed_input/pos_embedding"] = v
        elif name.startswith("norm."):
            out["Transformer/encoder_norm/" + ("scale" if name.endswith("weight") else "bias")] = v
        elif name.startswith("head."):
            out["head/" + ("kernel" if name.endswith("weight") else "bias")] = v.T
        else:
            _, i, module, *rest = name.split(".")
            block = f"Transformer/encoderblock_{i}/"
            leaf = rest[-1]
            if module in ("norm1", "norm2"):
                norm = "LayerNorm_0/" if module == "norm1" else "LayerNorm_2/"
                out[block + norm + ("scale" if leaf == "weight" else "bias")] = v
            elif module == "mlp":
                dense = "MlpBlock_3/Dense_" + ("0/" if rest[0] == "fc1" else "1/")
                out[block + dense + ("kernel" if leaf == "weight" else "bias")] = v.T
            elif rest[0] == "proj":
                at = block + "MultiHeadDotProductAttention_1/out/"
                if leaf == "weight":
                    out[at + "kernel"] = v.T.reshape(heads, width // heads, width)
                else:
                    out[at + "bias"] = v
            else:
                for part, third in zip(("query", "key", "value"), np.split(v, 3)):
                    at = block + f"MultiHeadDotProductAttention_1/{part}/"
                    if leaf == "weight":
                        out[at + "kernel"] = third.T.reshape(width, heads, width // heads)
                    else:
                        out[at + "bias"] = third.reshape(heads, width // heads)
    return {k: np.ascontiguousarray(v) for k, v in out.items()}


def to_big_vision(flax):
    renames = (("MultiHeadDotProductAttention_1", "MultiHeadDotProductAttention_0"),
               ("MlpBlock_3", "MlpBlock_0"), ("LayerNorm_2", "LayerNorm_1"),
               ("Transformer/posembed_input/pos_embedding", "pos_embedding"))
    out = {}
    for name, value in flax.items():
        for old, new in renames:
            name = name.replace(old, new)
        out[name] = value
    return out


def to_scan(names):
    """One `encoderblock` whose tensors have a leading depth axis."""
    out = {k: v for k, v in names.items() if "encoderblock_" not in k}
    for name in names:
        if "encoderblock_0/" in name:
            out[name.replace("encoderblock_0", "encoderblock")] = np.stack(
                [names[name.replace("encoderblock_0", f"encoderblock_{i}")] for i in range(2)])
    return out


def timm_reads_npz(file, **options):
    """timm's own npz reader (bilinear positions, no antialias)."""
    def load(size):
        model = build("vit_base_patch16_224", size, **options)
        model.load_pretrained(str(file))
        return model
    return load


def write_google():
    model = randomize(build("vit_base_patch16_224"), 20)
    flax = to_flax(model.state_dict(), 2)
    noise = np.random.default_rng(1)
    flax["pre_logits/kernel"] = noise.normal(size=(32, 32)).astype("f4")
    flax["pre_logits/bias"] = noise.normal(size=32).astype("f4")
    for family, prefix in (("google_original", ""), ("google_opt_target", "opt/target/")):
        file = folder(family) / "ViT-B_16.npz"
        np.savez(file, **{prefix + k: v for k, v in flax.items()})
        save_expected(family, expect_timm(timm_reads_npz(file)))

    # big_vision: class token without a position, tanh GELU, positions by an order-1 spline.
    options = dict(no_embed_class=True, act_layer="gelu_tanh")
    model = randomize(build("vit_base_patch16_224", **options), 21)
    file = folder("google_big_vision") / "checkpoint.npz"
    np.savez(file, **{"params/" + k: v for k, v in to_big_vision(to_flax(model.state_dict(), 2)).items()})
    save_expected("google_big_vision", expect_timm(timm_reads_npz(file, **options), "spline_order1"))

    # big_vision trained with scan, pooling by mean, no class token; timm reads the unrolled form.
    options = dict(class_token=False, global_pool="avg", fc_norm=False, act_layer="gelu_tanh")
    model = randomize(build("vit_base_patch16_224", **options), 22)
    names = to_big_vision(to_flax(model.state_dict(), 2))
    np.savez(folder("google_scan") / "checkpoint.npz",
             **{"params/" + k: v for k, v in to_scan(names).items()})
    load = from_state("vit_base_patch16_224", model.state_dict(), **options)
    save_expected("google_scan", expect_timm(load, "spline_order1"))


# ---------------------------------------------------------------- Hugging Face
HF_TINY = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4,
               num_labels=3)


def class_token(output, model):
    tokens = output.last_hidden_state
    return tokens, tokens[:, 0]


def both_tokens(output, model):
    tokens = output.last_hidden_state
    return tokens, tokens[:, :2].mean(1)


def clip_feature(output, model):
    tower = getattr(model, "vision_model", model)
    return tower.post_layernorm(output.last_hidden_state), output.pooler_output


def write_hf_model(family, model, backbone, features, seed, names="4.x"):
    randomize(model, seed)
    if names == "4.x":  # what save_pretrained writes, in transformers 4 and 5
        model.save_pretrained(folder(family))
    else:  # the module names of transformers 5, as third-party code that saves state_dict() writes them
        model.config.save_pretrained(folder(family))
        save_file(model.state_dict(), folder(family) / "model.safetensors")
    save_expected(family, expect_hf(backbone(model), features))


def write_hf():
    vit = hf.ViTConfig(**HF_TINY, intermediate_size=64)
    write_hf_model("hf_vit", hf.ViTModel(vit), lambda m: m, class_token, 30)
    write_hf_model("hf_vit_classifier", hf.ViTForImageClassification(vit), lambda m: m.vit, class_token, 31)
    write_hf_model("hf_vit_v5", hf.ViTForImageClassification(vit), lambda m: m.vit, class_token, 32, "5.x")
    deit = hf.DeiTConfig(**HF_TINY, intermediate_size=64)
    write_hf_model("hf_deit_bare", hf.DeiTModel(deit), lambda m: m, both_tokens, 33)
    write_hf_model("hf_deit_classifier", hf.DeiTForImageClassification(deit), lambda m: m.deit,
                   both_tokens, 34)
    write_hf_model("hf_deit_distilled", hf.DeiTForImageClassificationWithTeacher(deit),
                   lambda m: m.deit, both_tokens, 35)
    dino = hf.Dinov2Config(**HF_TINY, mlp_ratio=2)
    write_hf_model("hf_dinov2", hf.Dinov2Model(dino), lambda m: m, class_token, 36)
    write_hf_model("hf_dinov2_classifier", hf.Dinov2ForImageClassification(dino), lambda m: m.dinov2,
                   class_token, 37)
    write_hf_model("hf_dinov2_v5", hf.Dinov2Model(dino), lambda m: m, class_token, 42, "5.x")
    registers = hf.Dinov2WithRegistersConfig(**HF_TINY, mlp_ratio=2, num_register_tokens=4)
    write_hf_model("hf_dinov2_registers", hf.Dinov2WithRegistersModel(registers), lambda m: m,
                   class_token, 38)
    swiglu = hf.Dinov2Config(**HF_TINY, mlp_ratio=2, use_swiglu_ffn=True)
    write_hf_model("hf_dinov2_swiglu", hf.Dinov2Model(swiglu), lambda m: m, class_token, 39)
    tower = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    vision = dict(**tower, image_size=16, patch_size=4)
    write_hf_model("hf_clip_vision", hf.CLIPVisionModel(hf.CLIPVisionConfig(**vision)), lambda m: m,
                   clip_feature, 40)
    both = hf.CLIPConfig(vision_config=vision, text_config=dict(**tower, vocab_size=16, max_position_embeddings=8),
                         projection_dim=8)
    write_hf_model("hf_clip", hf.CLIPModel(both), lambda m: m.vision_model, clip_feature, 41)


# ---------------------------------------------------------------- OpenAI CLIP and open_clip
def to_clip(state):
    renames = (("patch_embed.proj", "conv1"), ("norm_pre", "ln_pre"), ("blocks.", "transformer.resblocks."),
               ("norm1", "ln_1"), ("norm2", "ln_2"), ("attn.qkv.", "attn.in_proj_"),
               ("attn.proj", "attn.out_proj"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"))
    out = {}
    for name, value in state.items():
        if name == "cls_token":
            out["class_embedding"] = value.flatten()
        elif name == "pos_embed":
            out["positional_embedding"] = value[0]
        elif name == "head.weight":
            out["proj"] = value.T
        elif name.startswith("norm."):
            out["ln_post." + name[5:]] = value
        elif name != "head.bias":
            for old, new in renames:
                name = name.replace(old, new)
            out[name] = value
    return {"visual." + k: v.clone() for k, v in out.items()}


def text_tower(width=8):
    generator = torch.Generator().manual_seed(9)
    shapes = {"positional_embedding": (4, width), "text_projection": (width, 3),
              "token_embedding.weight": (6, width), "ln_final.weight": (width,), "ln_final.bias": (width,),
              "transformer.resblocks.0.attn.in_proj_weight": (3 * width, width),
              "transformer.resblocks.0.attn.in_proj_bias": (3 * width,),
              "transformer.resblocks.0.ln_1.weight": (width,), "logit_scale": ()}
    return {k: torch.randn(v, generator=generator) for k, v in shapes.items()}


def as_module(state):
    """A module tree whose state dict is `state`, for a TorchScript archive as OpenAI's files are."""
    class Node(torch.nn.Module):
        def forward(self, x):
            return x
    root = Node()
    for name, value in state.items():
        node = root
        *path, leaf = name.split(".")
        for part in path:
            if part not in node._modules:
                node.add_module(part, Node())
            node = node._modules[part]
        if value.is_floating_point():
            node.register_parameter(leaf, torch.nn.Parameter(value, requires_grad=False))
        else:
            node.register_buffer(leaf, value)
    return root


def write_clip():
    architecture = "vit_base_patch16_clip_quickgelu_224"
    options = dict(embed_dim=64, num_heads=1)  # OpenAI's heads are 64 wide
    model = randomize(build(architecture, **options), 50)
    state = to_clip({k: v.half() for k, v in model.state_dict().items()})
    extra = {"input_resolution": 16, "context_length": 4, "vocab_size": 6}
    file = {**state, **{k: v.half() for k, v in text_tower().items()},
            **{k: torch.tensor(v) for k, v in extra.items()}}
    script = torch.jit.trace(as_module(file), torch.zeros(1))
    torch.jit.save(script, str(folder("openai_clip") / "ViT-B-16.pt"))
    load = from_state(architecture, state, **options)
    save_expected("openai_clip", expect_timm(load))

    architecture = "vit_base_patch16_clip_224"
    model = randomize(build(architecture), 51)
    state = to_clip(model.state_dict())
    torch.save({**state, **text_tower()}, folder("open_clip") / "open_clip_pytorch_model.bin")
    config = {"model_cfg": {"embed_dim": 3, "vision_cfg": {
        "image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 4}},
        "preprocess_cfg": {"mean": [0.48145466, 0.4578275, 0.40821073],
                           "std": [0.26862954, 0.26130258, 0.27577711]}}
    (folder("open_clip") / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_expected("open_clip", expect_timm(from_state(architecture, state)))


# ---------------------------------------------------------------- official DeiT and DINOv2
def write_deit():
    architecture = "deit_base_distilled_patch16_224"
    model = randomize(build(architecture), 60)
    torch.save({"model": model.state_dict()}, folder("deit_distilled") / "deit_base_distilled.pth")
    heads_json("deit_distilled")
    save_expected("deit_distilled", expect_timm(from_state(architecture, model.state_dict())))

    architecture = "deit3_base_patch16_224"
    model = randomize(build(architecture), 61)
    state = {k.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): v
             for k, v in model.state_dict().items()}
    torch.save({"model": state}, folder("deit3") / "deit_3_base_224_1k.pth")
    heads_json("deit3")
    save_expected("deit3", expect_timm(from_state(architecture, state)))


def to_dinov2(model, registers, swiglu):
    generator = torch.Generator().manual_seed(3)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("head.")}
    state["mask_token"] = torch.randn(1, 32, generator=generator)
    if registers:
        state["register_tokens"] = state.pop("reg_token")
        row = 0.6 * torch.randn(1, 1, 32, generator=generator)
        state["pos_embed"] = torch.cat([row, state["pos_embed"]], 1)
    if swiglu:
        state = {k.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): v for k, v in state.items()}
    return state


def write_dinov2():
    plain = dict(num_classes=0)
    families = {
        "dinov2": ("vit_base_patch14_dinov2", plain, "dinov2_scale_offset"),
        "dinov2_registers": ("vit_base_patch14_reg4_dinov2", plain, None),
        "dinov2_swiglu": ("vit_giant_patch14_dinov2", dict(num_classes=0, mlp_ratio=3.0),
                          "dinov2_scale_offset"),
        "dinov2_teacher": ("vit_base_patch14_dinov2", plain, "dinov2_scale_offset"),
    }
    for seed, (family, (architecture, options, position_resize)) in enumerate(families.items(), 70):
        model = randomize(build(architecture, **options), seed)
        state = to_dinov2(model, family == "dinov2_registers", family == "dinov2_swiglu")
        save_expected(family, expect_timm(from_state(architecture, state, **options), position_resize))
        if family == "dinov2_registers":  # training states chunk the blocks: blocks.c.i
            state = {k.replace("blocks.", f"blocks.{k.split('.')[1]}.", 1) if "blocks." in k else k: v
                     for k, v in state.items()}
        if family == "dinov2_teacher":
            head = {"dino_head.mlp.0.weight": torch.randn(8, 32), "dino_head.last_layer.weight_v": torch.randn(4, 8)}
            state = {"teacher": {**{"backbone." + k: v for k, v in state.items()}, **head}}
        torch.save(state, folder(family) / "dinov2_vitb14_pretrain.pth")
        heads_json(family)


if __name__ == "__main__":
    torch.manual_seed(0)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    save_file({"images" + k: v for k, v in images().items()}, OUT / "images.safetensors")
    for write in (write_timm, write_google, write_hf, write_clip, write_deit, write_dinov2):
        write()
    print(sum(f.stat().st_size for f in OUT.rglob("*") if f.is_file()) / 1e6, "MB in", OUT)
