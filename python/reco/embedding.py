# SPDX-License-Identifier: Apache-2.0
"""From collections of pairs to embeddings and memories."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from reco._core import Clip, Error, Fusion, Memory, MemoryBase, TrainingConfig, train
from reco.datasets import Fault, Sample
from reco.progress import Reporter

if TYPE_CHECKING:
    from reco.types import Progress

__all__ = [
    "Embeddings",
    "add_samples",
    "concatenate",
    "embed",
    "embed_batch",
    "embed_batches",
    "prefetch",
    "train_on",
]

T = TypeVar("T")

_BATCH = 1024  # samples, or as many as hold
BATCH_BYTES = 1 << 26  # of images: two batches are in memory, the one that is encoded and the next


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
        """Some of the rows, in the order given.

        Parameters
        ----------
        rows : array of int, or of bool [n]
            Indices, or a mask.

        Returns
        -------
        Embeddings
        """
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
    """Several sets of pairs, at least one, as one.

    Parameters
    ----------
    parts : list of Embeddings

    Returns
    -------
    Embeddings
    """
    return Embeddings(
        np.concatenate([p.images for p in parts]),
        np.concatenate([p.texts for p in parts]),
        [key for p in parts for key in p.keys],
        [caption for p in parts for caption in p.captions],
        [metadata for p in parts for metadata in p.metadata],
    )


def prefetch(items: Iterable[T]) -> Generator[T]:
    """The same items, each read by another thread while the one before is worked on.

    Parameters
    ----------
    items : iterable
    """
    stream, end = iter(items), object()
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(next, stream, end)
        while (item := ahead.result()) is not end:
            ahead = pool.submit(next, stream, end)
            yield item  # type: ignore[misc]


def image_bytes(image: Any) -> int:
    """What an image takes in memory: a file's bytes, an array's, or a PIL image's pixels; nothing while it is a path.

    Parameters
    ----------
    image : path, bytes, PIL image or array

    Returns
    -------
    int
    """
    if isinstance(image, bytes | bytearray):
        return len(image)
    if hasattr(image, "getbands"):
        return int(image.width) * int(image.height) * len(image.getbands())
    return int(getattr(image, "nbytes", 0))


def _in_batches(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    batch, size = list[Sample](), 0
    for sample in samples:
        batch.append(sample)
        size += image_bytes(sample.image)
        if len(batch) == _BATCH or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _batches(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    return prefetch(_in_batches(samples))


def embed_batch(
    clip: Clip, batch: Sequence[Sample], report: Callable[[int], object] = lambda done: None
) -> tuple[Embeddings, list[Fault]]:
    """The embeddings of the pairs that can be read, in their order, and the others.

    Parameters
    ----------
    clip : Clip
    batch : list of Sample
    report : callable, optional
        Called with the number of images done since it was called last.

    Returns
    -------
    (Embeddings, list of Fault)
    """
    captions = [sample.caption for sample in batch]
    distinct = list(dict.fromkeys(captions))
    place = {caption: i for i, caption in enumerate(distinct)}
    texts = clip.encode_texts(distinct)[[place[caption] for caption in captions]]
    errors: dict[int, str] = {}
    before = 0

    def progress(done: int, total: int) -> None:
        nonlocal before
        report(done - before)
        before = done

    images = clip.encode_images([sample.image for sample in batch], progress, errors.__setitem__)
    pairs = Embeddings(images, texts, [s.key for s in batch], captions, [s.metadata for s in batch])
    faults = [Fault(batch[i].key, str(batch[i].metadata.get("image_path", "")), error) for i, error in errors.items()]
    return pairs.select([i for i in range(len(batch)) if i not in errors]) if errors else pairs, faults


def _embed_all(clip: Clip, batch: Sequence[Sample], bar: Reporter) -> Embeddings:
    pairs, faults = embed_batch(clip, batch, bar.update)
    if faults:
        raise Error(f"[embedding.embed] {faults[0].key} cannot be read: {faults[0].error}")
    return pairs


def embed(clip: Clip, samples: Iterable[Sample], *, progress: Progress = True, total: int | None = None) -> Embeddings:
    """Encode both sides of all pairs, in memory.

    Parameters
    ----------
    clip : Clip
    samples : iterable of Sample
    progress : bool or callable, optional
        Show a progress bar on standard error; or called with (pairs done, pairs in all), returning False stops.
    total : int, optional
        Number of samples, for the bar.

    Returns
    -------
    Embeddings

    Raises
    ------
    Error
        When there is no sample, or an image cannot be read.
    """
    with Reporter(progress, "embed", " pairs", total) as bar:
        parts = [_embed_all(clip, batch, bar) for batch in _batches(samples)]
    if not parts:
        raise Error("[embedding.embed] expected image-text pairs, found none")
    return concatenate(parts)


def embed_batches(clip: Clip, samples: Iterable[Sample]) -> Iterator[Embeddings]:
    """Encode both sides of all pairs, batch by batch, for sets of any size.

    Parameters
    ----------
    clip : Clip
    samples : iterable of Sample

    Returns
    -------
    iterator of Embeddings

    Raises
    ------
    Error
        When an image cannot be read.
    """
    for batch in _batches(samples):
        pairs, faults = embed_batch(clip, batch)
        if faults:
            raise Error(f"[embedding.embed_batches] {faults[0].key} cannot be read: {faults[0].error}")
        yield pairs


def add_samples(memory: Memory, clip: Clip, samples: Iterable[Sample], *, progress: Progress = True) -> int:
    """Encode pairs and add them to a memory, batch by batch; each batch is durable when the next begins.

    Parameters
    ----------
    memory : Memory
    clip : Clip
    samples : iterable of Sample
    progress : bool or callable, optional
        Show a progress bar on standard error; or called with (pairs done, pairs in all), returning False stops.

    Returns
    -------
    int
        How many pairs were added.

    Raises
    ------
    Error
        When an image cannot be read, or a key is there already; the batches before stay.
    """
    added = 0
    with Reporter(progress, "add", " pairs") as bar:
        for batch in _batches(samples):
            pairs = _embed_all(clip, batch, bar)
            memory.add(pairs.images, pairs.texts, pairs.keys, pairs.captions, pairs.metadata)
            added += len(pairs)
    return added


def train_on(
    pairs: Embeddings | Memory,
    memory: MemoryBase,
    config: TrainingConfig,
    *,
    concepts: Sequence[int] = (),
    held_out: Sequence[int] = (),
    progress: Progress = True,
) -> Fusion:
    """train() with a progress bar, on embeddings, or on a memory of pairs that is read batch by batch.

    A pair that is remembered too is left out of its own neighbours.

    Parameters
    ----------
    pairs : Embeddings or Memory
        What to learn from.
    memory : MemoryBase
        Where neighbours are looked up.
    config : TrainingConfig
    concepts : list of int [n], optional
        Pairs of one concept never meet in a batch.
    held_out : list of int [m], optional
        Row numbers of pairs that are never learned from: what is chosen is chosen by them.
    progress : bool or callable, optional
        Show a progress bar on standard error; or called with (epochs done, epochs), returning False stops.

    Returns
    -------
    Fusion

    Raises
    ------
    Error
        As train().
    """
    options: dict[str, Any] = {"concepts": list(concepts) or None, "held_out": list(held_out) or None}
    if isinstance(pairs, Memory):
        return train(pairs, None, memory, config, **options, progress=progress)
    return train(pairs.images, pairs.texts, memory, config, keys=pairs.keys, **options, progress=progress)
