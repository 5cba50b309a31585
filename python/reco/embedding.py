# SPDX-License-Identifier: Apache-2.0
"""From collections of pairs to embeddings and memories."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from reco._core import Clip, Error, Fusion, Memory, TrainingConfig, train
from reco.datasets import Sample

__all__ = ["Embeddings", "add_samples", "concatenate", "embed", "train_on"]

_BATCH = 1024


@dataclass(frozen=True)
class Embeddings:
    """The embeddings of n pairs, row by row.

    Attributes
    ----------
    images, texts : float32 [n, dim]
        Unit rows.
    keys, captions : list of str
    metadata : list of dict
    """

    images: npt.NDArray[np.float32]
    texts: npt.NDArray[np.float32]
    keys: list[str]
    captions: list[str]
    metadata: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.keys)

    def select(self, rows: npt.NDArray[Any] | list[int]) -> Embeddings:
        """The given rows (indices, or a boolean mask), in that order."""
        index = np.asarray(rows)
        index = np.flatnonzero(index) if index.dtype == bool else index.astype(np.int64)
        return Embeddings(
            self.images[index],
            self.texts[index],
            [self.keys[i] for i in index],
            [self.captions[i] for i in index],
            [self.metadata[i] for i in index],
        )


def concatenate(parts: Sequence[Embeddings]) -> Embeddings:
    """Several sets of pairs, at least one, as one."""
    return Embeddings(
        np.concatenate([p.images for p in parts]),
        np.concatenate([p.texts for p in parts]),
        [key for p in parts for key in p.keys],
        [caption for p in parts for caption in p.captions],
        [metadata for p in parts for metadata in p.metadata],
    )


def _batches(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    stream = iter(samples)
    while batch := list(islice(stream, _BATCH)):
        yield batch


def _embed_batch(clip: Clip, batch: list[Sample]) -> Embeddings:
    captions = [sample.caption for sample in batch]
    distinct = list(dict.fromkeys(captions))
    place = {caption: i for i, caption in enumerate(distinct)}
    texts = clip.encode_texts(distinct)[[place[caption] for caption in captions]]
    images = clip.encode_images([sample.image for sample in batch])
    return Embeddings(images, texts, [s.key for s in batch], captions, [s.metadata for s in batch])


def embed(clip: Clip, samples: Iterable[Sample], *, progress: bool = True, total: int | None = None) -> Embeddings:
    """Encode both sides of all pairs, in memory.

    Parameters
    ----------
    clip : Clip
    samples : iterable of Sample
    progress : bool
        Show a progress bar on standard error.
    total : int, optional
        Number of samples, for the bar.

    Raises
    ------
    Error
        When there is no sample, or an image cannot be read.
    """
    parts = []
    with tqdm(total=total, unit=" pairs", desc="embed", disable=None if progress else True, leave=False) as bar:
        for batch in _batches(samples):
            parts.append(_embed_batch(clip, batch))
            bar.update(len(batch))
    if not parts:
        raise Error("[embedding.embed] expected image-text pairs, found none")
    return concatenate(parts)


def add_samples(memory: Memory, clip: Clip, samples: Iterable[Sample], *, progress: bool = True) -> int:
    """Encode pairs and add them to a memory, batch by batch; each batch is durable when the next begins.

    Returns
    -------
    int
        How many pairs were added.
    """
    added = 0
    with tqdm(unit=" pairs", desc="add", disable=None if progress else True, leave=False) as bar:
        for batch in _batches(samples):
            pairs = _embed_batch(clip, batch)
            memory.add(pairs.images, pairs.texts, pairs.keys, pairs.captions, pairs.metadata)
            added += len(pairs)
            bar.update(len(pairs))
    return added


def train_on(
    pairs: Embeddings,
    memory: Memory,
    config: TrainingConfig,
    *,
    concepts: Sequence[int] = (),
    progress: bool = True,
) -> Fusion:
    """train() on embeddings, with a progress bar; a pair that is remembered too is left out of its own neighbours."""
    with tqdm(
        total=config.epochs, unit=" epochs", desc="train", disable=None if progress else True, leave=False
    ) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return train(
            pairs.images, pairs.texts, memory, config, keys=pairs.keys, concepts=list(concepts), progress=report
        )
