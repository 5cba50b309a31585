# SPDX-License-Identifier: Apache-2.0
"""The Hugging Face folder."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from recipe.config import BOS, EOS, MEAN, STD, Config
from recipe.trainer import Trainer


def hugging_face_config(config: Config) -> dict[str, Any]:
    """config.json of a CLIPModel."""
    common = {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "projection_dim": config.dim, "attention_dropout": 0.0}
    text = {
        "model_type": "clip_text_model",
        "vocab_size": EOS + 1,
        "hidden_size": config.text_width,
        "intermediate_size": 4 * config.text_width,
        "num_hidden_layers": config.text_layers,
        "num_attention_heads": config.text_heads,
        "max_position_embeddings": config.context,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": EOS,
    }
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": config.width,
        "intermediate_size": 4 * config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_channels": 3,
        "image_size": config.image_size,
        "patch_size": config.patch,
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.dim,
        "logit_scale_init_value": math.log(1 / 0.07),
        "text_config": text | common,
        "vision_config": vision | common,
        "torch_dtype": "float16",
    }


def preprocessor_config(config: Config) -> dict[str, Any]:
    """preprocessor_config.json: pictures are already square and small, the rest is CLIP's."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": config.image_size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": config.image_size, "width": config.image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
    }


def tokenizer_config(config: Config) -> dict[str, Any]:
    """tokenizer_config.json."""
    return {
        "tokenizer_class": "CLIPTokenizer",
        "do_lower_case": True,
        "model_max_length": config.context,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }


def export(trainer: Trainer, merges: list[str], folder: Path) -> None:
    """Writes the model as a Hugging Face folder, weights in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().half().contiguous() for name, tensor in trainer.model.state_dict().items()}
    save_file(weights, folder / "model.safetensors.part", metadata={"format": "pt"})
    (folder / "model.safetensors.part").replace(folder / "model.safetensors")
    files = {
        "config.json": hugging_face_config(trainer.config),
        "preprocessor_config.json": preprocessor_config(trainer.config),
        "tokenizer_config.json": tokenizer_config(trainer.config),
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    vocabulary = json.dumps(trainer.tokenizer.vocabulary, ensure_ascii=False, separators=(",", ":"))
    (folder / "vocab.json").write_text(vocabulary)
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
