# SPDX-License-Identifier: Apache-2.0
"""Drawings in memory, the batches drawn of them, and their augmentation."""

from __future__ import annotations

import io
import json
import math
import tarfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from recipe.config import MEAN, QUERY_SETS, STD, Config


@dataclass
class Drawings:
    """Shards in memory: all pictures as one uint8 tensor [n, 3, 64, 64]."""

    images: Tensor
    captions: list[str]
    records: list[dict[str, Any]]

    @property
    def concepts(self) -> list[str]:
        return [str(record["concept"]) for record in self.records]


def read_shards(folder: Path, pattern: str, keep: Iterable[str] = ()) -> Drawings:
    """Reads WebDataset shards; `keep` names the values of `train` to keep, all where it is empty."""
    allowed, images, captions, records = set(keep), [], [], []
    for path in sorted(folder.glob(pattern)):
        for record, caption, webp in read_samples(path):
            if not allowed or (record["train"] in allowed and record["set"] not in QUERY_SETS):
                images.append(np.asarray(Image.open(io.BytesIO(webp)).convert("RGB")))
                captions.append(caption)
                records.append(record)
    if not images:
        raise click.ClickException(f"no samples in {folder}/{pattern}: run build.py first")
    return Drawings(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), captions, records)


def read_samples(path: Path) -> list[tuple[dict[str, Any], str, bytes]]:
    """Record, caption and WebP of every sample of one shard."""
    samples: dict[str, dict[str, bytes]] = defaultdict(dict)
    with tarfile.open(path) as archive:
        for member in archive:
            key, _, extension = member.name.partition(".")
            stream = archive.extractfile(member)
            samples[key][extension] = stream.read() if stream else b""
    return [(json.loads(parts["json"]), parts["txt"].decode(), parts["webp"]) for parts in samples.values()]


class Sampler:
    """Draws distinct concepts, each with two drawings, by two hands where there are two."""

    def __init__(self, drawings: Drawings, config: Config) -> None:
        members: dict[str, list[int]] = defaultdict(list)
        for index, concept in enumerate(drawings.concepts):
            members[concept].append(index)
        self.names = sorted(members)
        self.members = [members[name] for name in self.names]
        self.hands = [str(record["set"]) for record in drawings.records]
        self.captions = drawings.captions
        counts = [len({self.hands[index] for index in group}) for group in self.members]
        self.weights = torch.tensor(counts, dtype=torch.float64) ** config.hand_power
        self.duels = self._duels()
        self.duel_weights = torch.tensor([len(duel) for duel in self.duels], dtype=torch.float64).sqrt()

    def _duels(self) -> list[list[tuple[int, int, int]]]:
        """For each two hands that share many concepts: (concept, drawing by one, drawing by the other)."""
        shared: dict[tuple[str, str], list[tuple[int, int, int]]] = defaultdict(list)
        for concept, group in enumerate(self.members):
            for i, j in combinations(group, 2):
                first, second = sorted((i, j), key=lambda index: self.hands[index])
                if self.hands[first] != self.hands[second]:
                    shared[self.hands[first], self.hands[second]].append((concept, first, second))
        return [entries for _, entries in sorted(shared.items()) if len(entries) >= 40]

    def draw(self, count: int, duel_share: float, generator: torch.Generator) -> tuple[list[int], list[int], list[str]]:
        """Two image indices and one caption for each of `count` concepts."""
        duel = self.duels and torch.rand((), generator=generator) < duel_share
        triples = self._duel(count, generator) if duel else self._mixture(count, generator)
        own = (torch.rand(count, generator=generator) < 0.5).tolist()
        texts = [
            self.captions[first] if mine else self.names[concept]
            for (concept, first, _), mine in zip(triples, own, strict=True)
        ]
        return [first for _, first, _ in triples], [second for _, _, second in triples], texts

    def _mixture(self, count: int, generator: torch.Generator) -> list[tuple[int, int, int]]:
        """Any concepts, any hands."""
        chosen = torch.multinomial(self.weights, count, generator=generator).tolist()
        return [(concept, *self._pair(self.members[concept], generator)) for concept in chosen]

    def _duel(self, count: int, generator: torch.Generator) -> list[tuple[int, int, int]]:
        """One hand against another: all candidates share a style, so that style tells nothing and content must."""
        taken: dict[int, tuple[int, int, int]] = {}
        for duel in torch.multinomial(self.duel_weights, len(self.duels), generator=generator).tolist():
            for i in torch.randperm(len(self.duels[duel]), generator=generator).tolist():
                taken.setdefault(self.duels[duel][i][0], self.duels[duel][i])
                if len(taken) == count:
                    return list(taken.values())
        return list(taken.values()) + self._mixture(count - len(taken), generator)

    def _pair(self, group: list[int], generator: torch.Generator) -> tuple[int, int]:
        order = [group[i] for i in torch.randperm(len(group), generator=generator)]
        others = [index for index in order[1:] if self.hands[index] != self.hands[order[0]]]
        return order[0], (others or order[1:] or order)[0]


def augment(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Turns, scales, shifts and recolours a uint8 batch; returns floats around zero."""
    count = images.shape[0]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator) * (high - low) + low

    angle, scale, ratio = uniform(-0.3, 0.3), torch.exp(uniform(-0.12, 0.35)), torch.exp(uniform(-0.15, 0.15))
    cos, sin, shift = torch.cos(angle) * scale, torch.sin(angle) * scale, uniform(-0.12, 0.12, 2)
    theta = torch.stack([cos * ratio, -sin, shift[:, 0], sin, cos / ratio, shift[:, 1]], 1).view(-1, 2, 3)
    x = 1 - images.float().div_(255)  # white becomes 0, so what comes in at the borders is white
    grid = functional.affine_grid(theta, [count, 3, size, size], align_corners=False)
    x = functional.grid_sample(x, grid, align_corners=False)
    x = torch.einsum("nij,njhw->nihw", colour_matrix(count, generator), 1 - x)
    invert = (uniform(0, 1) < 0.06).float().view(-1, 1, 1, 1)
    x = (x + invert * (1 - 2 * x)) * paper(count, generator)
    return normalise(x.clamp_(0, 1))


def colour_matrix(count: int, generator: torch.Generator) -> Tensor:
    """Hue turned a little, often; saturation and contrast changed; grey sometimes. White stays white."""
    grey = torch.full((3, 3), 1 / 3)
    hue = torch.randn(count, generator=generator) * 0.1
    wild = torch.rand(count, generator=generator) < 0.03
    hue = torch.where(wild, hue * 8, hue)
    axis = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    cos, sin = torch.cos(hue).view(-1, 1, 1), torch.sin(hue).view(-1, 1, 1)
    turn = cos * torch.eye(3) + sin * axis + (1 - cos) * grey
    saturation = torch.rand(count, generator=generator) * 1.0 + 0.4
    saturation = torch.where(torch.rand(count, generator=generator) < 0.1, torch.zeros(()), saturation).view(-1, 1, 1)
    return saturation * turn + (1 - saturation) * grey


def paper(count: int, generator: torch.Generator) -> Tensor:
    """White paper mostly, tinted sometimes."""
    tint = torch.rand(count, 3, 1, 1, generator=generator) * 0.5 + 0.5
    tinted = torch.rand(count, 1, 1, 1, generator=generator) < 0.15
    return torch.where(tinted, tint, torch.ones(()))


def normalise(x: Tensor) -> Tensor:
    """The preprocessor's mean and deviation, as preprocessor_config.json says."""
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
