# SPDX-License-Identifier: Apache-2.0
"""What is measured while and after training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from recipe.config import EOS, TEMPLATES
from recipe.data import Drawings, normalise
from recipe.text import Tokenizer
from recipe.towers import TinyClip
from recipe.trainer import Trainer


@torch.inference_mode()
def embed_images(model: TinyClip, images: Tensor, batch: int = 256) -> Tensor:
    """Unit rows, in bfloat16 for speed."""
    half = {name: p.bfloat16() for name, p in model.named_parameters() if "token_embedding" not in name}
    parts = (normalise(part.float() / 255).bfloat16() for part in torch.split(images, batch))
    return torch.cat([functional_call(model, half, ("image", part)) for part in parts])


@torch.inference_mode()
def embed_texts(model: TinyClip, tokenizer: Tokenizer, texts: Sequence[str], context: int) -> Tensor:
    """Unit rows, in float32."""
    table = model.text_model.embeddings.token_embedding.weight
    rows = []
    for start in range(0, len(texts), 512):
        ids = tokenizer.batch(texts[start : start + 512], context)
        rows.append(model("text", table[ids], (ids == EOS).int().argmax(1)))
    return torch.cat(rows)


def class_embeddings(model: TinyClip, tokenizer: Tokenizer, names: Sequence[str], context: int) -> Tensor:
    """The mean over the templates, of unit length."""
    parts = [embed_texts(model, tokenizer, [t.format(name) for name in names], context) for t in TEMPLATES[:3]]
    return functional.normalize(torch.stack(parts).mean(0), dim=-1)


def by_group(right: Tensor, records: list[dict[str, Any]], prefix: str) -> dict[str, float]:
    """Percent right: all, by role, by domain and by both."""
    result = {f"{prefix}": 100 * right.float().mean().item()}
    groups: dict[str, list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        for name in (record["role"], record["domain"], f"{record['role']}/{record['domain']}"):
            groups[f"{prefix}_{name}"].append(index)
    return result | {name: 100 * right[rows].float().mean().item() for name, rows in sorted(groups.items())}


def recalls(scores: Tensor, prefix: str) -> dict[str, float]:
    """R@1, R@5 and R@10 where row i's partner is column i."""
    rank = (scores > scores.diagonal().unsqueeze(1)).sum(1)
    return {f"{prefix}_r{k}": 100 * (rank < k).float().mean().item() for k in (1, 5, 10)}


def evaluate(trainer: Trainer, queries: Drawings, memory: Drawings) -> dict[str, float]:
    """Nearest other drawing, zero-shot with every class a candidate, retrieval among the queries, text neighbours."""
    trainer.model.eval()
    names, context = queries.concepts, trainer.config.context
    image, known = embed_images(trainer.model, queries.images), embed_images(trainer.model, memory.images)
    classes = class_embeddings(trainer.model, trainer.tokenizer, names, context)
    nearest = [memory.concepts[index] for index in (image @ known.T).argmax(1).tolist()]
    same = torch.tensor([found == name for found, name in zip(nearest, names, strict=True)])
    scores, truth = image @ classes.T, torch.arange(len(names)).unsqueeze(1)
    top = scores.topk(5, dim=1).indices == truth
    plain = embed_texts(trainer.model, trainer.tokenizer, names, context)
    framed = embed_texts(trainer.model, trainer.tokenizer, [f"a drawing of {name}" for name in names], context)
    figures = by_group(same, queries.records, "nn1") | by_group(top[:, 0], queries.records, "acc1")
    figures |= by_group(top.any(1), queries.records, "acc5")
    figures["harmonic"] = 2 / (1 / max(figures["acc1_known"], 1e-9) + 1 / max(figures["acc1_unseen"], 1e-9))
    figures |= recalls(scores, "image_to_text") | recalls(scores.T, "text_to_image")
    figures |= by_group((plain @ framed.T).argmax(1) == truth[:, 0], queries.records, "text1")
    trainer.model.train()
    return figures
