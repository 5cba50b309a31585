# SPDX-License-Identifier: Apache-2.0
"""open_clip's SigLIP folders, whose image tower is timm's, against transformers' tower and a plain text tower."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import SiglipVisionConfig, SiglipVisionModel

import clip_reference
import reco

TEXTS = ["a photo of a cat", "", "Two dogs, a fox & the Eiffel tower (1889)!", "word " * 120]
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2, "no_causal_mask": True,
        "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6},
        "tokenizer_kwargs": {"clean": "canonicalize"}}  # fmt: skip
PREPROCESS = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}

# Our names of a layer's parts, and timm's.
PARTS = {"layer_norm1": "norm1", "layer_norm2": "norm2", "self_attn.out_proj": "attn.proj", "mlp.fc1": "mlp.fc1",
         "mlp.fc2": "mlp.fc2"}  # fmt: skip
OUTER = {"embeddings.patch_embedding": "patch_embed.proj", "post_layernorm": "norm", "head.layernorm": "attn_pool.norm",
         "head.attention.out_proj": "attn_pool.proj", "head.mlp.fc1": "attn_pool.mlp.fc1",
         "head.mlp.fc2": "attn_pool.mlp.fc2"}  # fmt: skip


def make_tower(size: int, patch: int, act: str) -> SiglipVisionModel:
    torch.manual_seed(3)
    config = SiglipVisionConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
                                image_size=size, patch_size=patch, hidden_act=act)  # fmt: skip
    model = SiglipVisionModel(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(0, 0.05)
            elif "norm" in name:
                weight.normal_(1, 0.1)
    return model


def in_timm(model: SiglipVisionModel) -> dict[str, torch.Tensor]:
    """The tower's tensors as timm has them: query, keys and values of a layer stacked, those of the pooling not."""
    ours = {name.removeprefix("vision_model."): tensor for name, tensor in model.state_dict().items()}
    width = model.config.hidden_size
    found = {"pos_embed": ours["embeddings.position_embedding.weight"][None], "attn_pool.latent": ours["head.probe"]}
    for kind in ("weight", "bias"):
        found |= {f"{timms}.{kind}": ours[f"{name}.{kind}"] for name, timms in OUTER.items()}
        stacked = ours[f"head.attention.in_proj_{kind}"]
        found |= {f"attn_pool.q.{kind}": stacked[:width], f"attn_pool.kv.{kind}": stacked[width:]}
        for i in range(model.config.num_hidden_layers):
            layer = f"encoder.layers.{i}."
            qkv = torch.cat([ours[f"{layer}self_attn.{part}_proj.{kind}"] for part in "qkv"])
            found[f"blocks.{i}.attn.qkv.{kind}"] = qkv
            found |= {f"blocks.{i}.{timms}.{kind}": ours[f"{layer}{name}.{kind}"] for name, timms in PARTS.items()}
    return {f"visual.trunk.{name}": tensor.contiguous() for name, tensor in found.items()}


def write_config(folder: Path, **vision: Any) -> None:
    tower = {"timm_model_pretrained": False, "timm_pool": "map", "timm_proj": "none"} | vision
    model = {"embed_dim": 768, "init_logit_bias": -10, "custom_text": True, "vision_cfg": tower, "text_cfg": TEXT}
    content = {"model_cfg": model, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(content))


def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(224, 224), (97, 301), (31, 30)]
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


@pytest.mark.parametrize(
    ("name", "size", "patch", "act"),
    [
        ("vit_base_patch16_siglip_224", 224, 16, "gelu"),
        ("vit_base_patch32_siglip_256", 256, 32, "gelu_pytorch_tanh"),
    ],
)
def test_equals_transformers(name: str, size: int, patch: int, act: str, tmp_path: Path) -> None:
    """The whole tower: its name stands for its depth. The vocabulary is CLIP's here."""
    tower = make_tower(size, patch, act)
    other = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 32}
    words = clip_reference.Clip({"embed_dim": 768, "init_logit_bias": -10, "vision_cfg": other, "text_cfg": TEXT})
    tensors = {name: tensor for name, tensor in words.tensors(True).items() if not name.startswith("visual.")}
    save_file(tensors | in_timm(tower), tmp_path / "open_clip_model.safetensors")
    write_config(tmp_path, timm_model_name=name, image_size=size)
    clip, rough = reco.Clip.load(tmp_path), reco.Clip.load(tmp_path, dtype="bfloat16")
    pixels = [clip_reference.torchvision_pixels(image, size, PREPROCESS) for image in images()]
    ids = torch.from_numpy(clip.tokenizer(TEXTS, clip.context_length))
    with torch.inference_mode():
        expected_images = torch.nn.functional.normalize(tower(torch.from_numpy(np.stack(pixels))).pooler_output)
        expected_texts = torch.nn.functional.normalize(words.text(ids))
    for found, about, expected in (
        (clip.encode_images(images()), rough.encode_images(images()), expected_images.numpy()),
        (clip.encode_texts(TEXTS), rough.encode_texts(TEXTS), expected_texts.numpy()),
    ):
        assert np.abs(found - expected).max() <= 1e-5
        assert (about * expected).sum(1).min() >= 0.999
    facts = clip.info()
    assert facts["vision_config"]["hidden_act"] == act and facts["vision_config"]["pooling"] == "attention"
    assert facts["tokenizer"]["cleaning"] == "open_clip canonicalize" and clip.logit_bias == -10
    assert clip.parameters == sum(t.numel() for t in [*tensors.values(), *tower.parameters()])


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    name = "vit_large_patch16_siglip_256"
    for vision, message in (
        ({"timm_model_name": "vit_base_patch16_224"}, "timm_model_name = .vit_base_patch16_224"),
        ({"timm_model_name": name, "timm_pool": "avg"}, "timm_pool must be 'map', got 'avg'"),
        ({"timm_model_name": name, "timm_proj": "linear"}, "timm_proj must be 'none', got 'linear'"),
        ({"timm_model_name": name}, "embed_dim must be the image tower's 1024, got 768"),
        ({"timm_model_name": name, "image_size": 8}, "image_size must be a whole number from 16"),
    ):
        write_config(tmp_path, **vision)
        with pytest.raises(reco.Error, match=message):
            reco.Clip.load(tmp_path)
    write_config(tmp_path, timm_model_name="vit_base_patch16_siglip_224")
    pool = {"q.weight": torch.zeros(768, 768), "kv.weight": torch.zeros(1536, 767)}
    tensors = {f"visual.trunk.attn_pool.{name}": tensor for name, tensor in pool.items()}
    save_file(tensors, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(reco.Error, match="attn_pool.q.weight' and 'visual.trunk.attn_pool.kv.weight' do not fit"):
        reco.Clip.load(tmp_path)
