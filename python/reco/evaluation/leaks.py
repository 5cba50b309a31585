# SPDX-License-Identifier: Apache-2.0
"""Test images that the memory has seen: found by similarity, kept out, counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from reco._core import MemoryBase
from reco.datasets.benchmark import Image, image_name

_ROWS = 4096  # queries at a time
_DEPTH = 64  # neighbours of a query that has a near-duplicate, at first
_MOST = 4096  # neighbours that one search can give
_SAME = 0.999  # half-precision rows of one and the same picture are nearer than this
_SHOWN = 20


@dataclass(frozen=True)
class Leaks:
    """Pairs of the memory whose image is, or nearly is, an image of the test set.

    Attributes
    ----------
    max_similarity : float, or None
        Pairs above it are left out on both sides; None: nothing was looked for.
    images : int
        Test images with such a pair.
    same : int
        Those among them that the memory has as they are (similarity above 0.999).
    pairs : int
        Pairs that were left out.
    examples : list of (image, key, similarity)
        The most similar ones, at most 20.
    keys : list of str
        All that were left out.
    """

    max_similarity: float | None = None
    images: int = 0
    same: int = 0
    pairs: int = 0
    examples: list[tuple[str, str, float]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list, repr=False)


def find_leaks(
    memory: MemoryBase, embeddings: npt.NDArray[np.float32], images: Sequence[Image], max_similarity: float | None
) -> Leaks:
    """Look every test image up in the memory.

    Parameters
    ----------
    memory : MemoryBase
    embeddings : float32 [n, dim]
        CLIP's, of the test images.
    images : sequence of Image
        The same images, for their names.
    max_similarity : float, optional
    """
    if max_similarity is None or not len(memory):
        return Leaks(max_similarity)
    found: dict[str, tuple[float, int]] = {}  # by key: similarity, image
    best: dict[int, float] = {}
    for first in range(0, len(embeddings), _ROWS):
        block = embeddings[first : first + _ROWS]
        top = memory.search(block, k=1, partners=False).scores[:, 0]
        near = np.flatnonzero(top > max_similarity)
        best |= {first + int(i): float(top[i]) for i in near}
        for i, key, score in _above(memory, block, near, max_similarity):
            if score > found.get(key, (-1.0, 0))[0]:
                found[key] = (score, first + i)
    shown = sorted(found.items(), key=lambda item: -item[1][0])[:_SHOWN]
    examples = [(image_name(images[i]) or f"image {i + 1}", key, round(score, 4)) for key, (score, i) in shown]
    same = sum(score > _SAME for score in best.values())
    return Leaks(max_similarity, len(best), same, len(found), examples, sorted(found))


def _above(
    memory: MemoryBase, block: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], max_similarity: float
) -> list[tuple[int, str, float]]:
    """All neighbours above the limit of the given rows: row, key, similarity."""
    out: list[tuple[int, str, float]] = []
    if not len(rows):
        return out
    found = memory.search(block[rows], k=min(_DEPTH, len(memory)), partners=False)
    for n, row in enumerate(rows):
        near = _near(found.keys[n], found.scores[n], max_similarity)
        if len(near) == _DEPTH:
            near = _all_near(memory, block[row], max_similarity)
        out += [(int(row), key, score) for key, score in near.items()]
    return out


def _near(keys: Sequence[str], scores: npt.NDArray[np.float32], max_similarity: float) -> dict[str, float]:
    return {key: float(score) for key, score in zip(keys, scores, strict=True) if key and score > max_similarity}


def _all_near(memory: MemoryBase, query: npt.NDArray[np.float32], max_similarity: float) -> dict[str, float]:
    """Of a picture that the memory holds very often, such as a blank one: as many as there are, piece by piece."""
    out: dict[str, float] = {}
    while True:
        k = min(_MOST, len(memory))
        found = memory.search(query[None], k=k, exclude_keys=[list(out)], partners=False)
        fresh = _near(found.keys[0], found.scores[0], max_similarity)
        out |= fresh
        if len(fresh) < k or len(out) == len(memory):
            return out
