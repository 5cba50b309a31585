# SPDX-License-Identifier: Apache-2.0
"""Capacity controls: heads on CLIP's embeddings with as many weights as the paper's fusion, but nothing to look up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Floats = npt.NDArray[np.float32]


class TokenLayer(nn.Module):
    """The paper's encoder layer over the query alone."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(dim, 8, 4 * dim, 0.0, "gelu", batch_first=True, norm_first=True)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """[n, dim] to [n, dim]."""
        result: Tensor = self.norm(self.layer(x[:, None])[:, 0])
        return result


class Mlp(nn.Module):
    """x + MLP(x), its last layer zero at first, so that it starts at CLIP; six hidden widths match the layer's size."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(dim, 6 * dim), nn.Linear(6 * dim, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[n, dim] to [n, dim]."""
        result: Tensor = x + self.out(nn.functional.gelu(self.hidden(x)))
        return result


HEADS: dict[str, Callable[[int], nn.Module]] = {"layer without memory": TokenLayer, "MLP head": Mlp}


def _contrast(a: Tensor, b: Tensor, scale: float) -> Tensor:
    logits, own = scale * a @ b.T, torch.arange(len(a))
    return (nn.functional.cross_entropy(logits, own) + nn.functional.cross_entropy(logits.T, own)) / 2


def _unit(x: Tensor) -> Tensor:
    return nn.functional.normalize(x, dim=-1)


def train_head(
    name: str, images: Floats, texts: Floats, concepts: Sequence[int], scale: float, seed: int, epochs: int = 24
) -> tuple[Callable[[Floats], Floats], Callable[[Floats], Floats]]:
    """Train one head a side with the paper's losses and settings (AdamW, 1e-3, cosine; batches of 1,024 concepts)."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    heads = [HEADS[name](images.shape[1]) for _ in range(2)]
    sides = [torch.from_numpy(x) for x in (images, texts)]
    rows = [np.flatnonzero(np.asarray(concepts) == c) for c in np.unique(concepts)]
    batches = -(-len(rows) // 1024)
    optimizer = torch.optim.AdamW([p for h in heads for p in h.parameters()], lr=1e-3, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=epochs * batches, pct_start=0.05)
    for _ in range(epochs):
        order = np.array([random.choice(r) for r in rows])
        random.shuffle(order)
        for part in np.array_split(order, batches):
            v, t = (side[torch.from_numpy(part)] for side in sides)
            a, b = _unit(heads[0](v)), _unit(heads[1](t))
            loss = _contrast(a, b, scale) + _contrast(a, t, scale) + _contrast(v, b, scale)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()

    def refine(head: Any) -> Callable[[Floats], Floats]:
        def run(x: Floats) -> Floats:
            with torch.no_grad():
                result: Floats = _unit(head(torch.from_numpy(np.ascontiguousarray(x)))).numpy()
            return result

        return run

    return refine(heads[0]), refine(heads[1])
