# SPDX-License-Identifier: Apache-2.0
"""Checks that the exported folder is what Hugging Face's own CLIP reads, to the last digits.

Needs `transformers`, which nothing else here needs. Compares image and text embeddings, token ids and pixel values of
the recipe's own model with transformers' on the same float16 weights.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from recipe.config import EOS, TEMPLATES, Config
from recipe.data import normalise, read_shards
from recipe.text import Tokenizer
from recipe.towers import TinyClip

HERE = Path(__file__).parent


def own_model(folder: Path) -> TinyClip:
    """The recipe's model with the exported weights, in float32."""
    weights = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    config = json.loads((folder / "config.json").read_text())
    vision, text = config["vision_config"], config["text_config"]
    model = TinyClip(
        Config(
            width=vision["hidden_size"],
            layers=vision["num_hidden_layers"],
            heads=vision["num_attention_heads"],
            text_width=text["hidden_size"],
            text_layers=text["num_hidden_layers"],
            text_heads=text["num_attention_heads"],
            context=text["max_position_embeddings"],
            dim=config["projection_dim"],
        )
    )
    model.load_state_dict(weights)
    return model.eval()


def cosine(left: Tensor, right: Tensor) -> float:
    """The least cosine between rows that ought to be equal."""
    return torch.cosine_similarity(left, right).min().item()


def unit(output: object) -> Tensor:
    """Embeddings of `get_*_features`, which newer releases wrap."""
    return torch.nn.functional.normalize(getattr(output, "pooler_output", output), dim=-1)  # type: ignore[arg-type]


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), default=HERE / "clip")
@click.option("--data", type=click.Path(path_type=Path), default=HERE / "data")
@torch.inference_mode()
def main(folder: Path, data: Path) -> None:
    """Prints the differences and fails where there are any."""
    model, theirs = own_model(folder), CLIPModel.from_pretrained(folder, dtype=torch.float32)
    theirs.train(False)
    queries = read_shards(data, "queries-*.tar.gz")
    images = queries.images[:64]
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    pixels = CLIPImageProcessor.from_pretrained(folder)(pictures, return_tensors="pt")["pixel_values"]
    mine = normalise(images.float() / 255)
    pixel_error = (pixels - mine).abs().max().item()
    image_cosine = cosine(model("image", mine), unit(theirs.get_image_features(pixel_values=pixels)))
    merges = (folder / "merges.txt").read_text().splitlines()[1:]
    texts = [template.format(name) for name in queries.concepts for template in TEMPLATES]
    ids = Tokenizer(merges).batch(texts, model.text_model.embeddings.position_embedding.num_embeddings)
    encoded = CLIPTokenizer.from_pretrained(folder)(texts, padding=True, truncation=True, return_tensors="pt")
    wrong_ids = int((encoded["input_ids"] != ids).any(1).sum()) if encoded["input_ids"].shape == ids.shape else len(ids)
    table = model.text_model.embeddings.token_embedding.weight
    text = model("text", table[ids[:512]], (ids[:512] == EOS).int().argmax(1))
    part = {name: tensor[:512] for name, tensor in encoded.items()}
    text_cosine = cosine(text, unit(theirs.get_text_features(**part)))
    click.echo(f"pixels {pixel_error:.2e}, image cosine {image_cosine:.7f}, text cosine {text_cosine:.7f}")
    click.echo(f"texts with other token ids: {wrong_ids} of {len(texts)}")
    if pixel_error > 1e-5 or min(image_cosine, text_cosine) < 0.99999 or wrong_ids:
        raise click.ClickException("the folder does not give transformers' numbers")


if __name__ == "__main__":
    main()
