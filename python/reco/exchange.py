# SPDX-License-Identifier: Apache-2.0
"""Memories from embeddings that are there already, and back: clip-retrieval's layout, see embedding_folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reco._core import Error, Memory
from reco.embedding import Embeddings
from reco.embedding_folder import write_shard
from reco.embedding_source import check_source, first_of_each, folder_shards, numbered_shards
from reco.progress import Reporter

if TYPE_CHECKING:
    from reco.types import Progress

__all__ = ["export_memory", "import_embeddings"]

_ROWS = 10_000


def import_embeddings(memory: Memory, *folders: str | Path, in_place: bool = False, progress: Progress = True) -> int:
    """Add what `reco embed` or clip-retrieval wrote, piece by piece; pairs whose keys are there already are skipped.

    Of pairs of one key the first is taken. Interrupted, the same call goes on where it was: each piece is durable
    before the next begins.

    Parameters
    ----------
    memory : Memory
    *folders : path
    in_place : bool
        Leave the embeddings where they are instead of copying them: they must be float16 in rows of unit length, and
        stay there unchanged. Words go into the memory. A memory that was empty gives the rows the numbers that they
        have in the folders, so that an index over these can be adopted.
    progress : bool or callable, optional
        Show a progress bar on standard error; or called with (pairs done, pairs in all), returning False stops.

    Returns
    -------
    int
        How many pairs were added.

    Raises
    ------
    Error
        When a folder holds no embeddings, those of another encoder or a part of what `reco embed` was to write, when
        its files do not fit each other, or the width is not the memory's.
    """
    for folder in folders:
        check_source(folder, memory.encoder)
    added = 0
    with Reporter(progress, "import", " pairs") as bar:
        for folder in folders:
            if in_place:
                added += _attach_folder(memory, Path(folder), bar)
                continue
            for shard in folder_shards(folder):
                for first in range(0, len(shard), _ROWS):
                    piece = shard.select(list(range(first, min(first + _ROWS, len(shard)))))
                    there = {key for key in piece.keys if key in memory}
                    fresh = piece.select(np.array(first_of_each(piece.keys, there), bool))
                    if len(fresh):
                        memory.add(fresh.images, fresh.texts, fresh.keys, fresh.captions, fresh.metadata)
                    added += len(fresh)
                    bar.update(len(piece))
    return added


def _attach_folder(memory: Memory, folder: Path, bar: Reporter) -> int:
    """All shards of a folder where they lie; how many pairs are new."""
    added = 0
    for number, shard in numbered_shards(folder):
        fresh = first_of_each(shard.keys, {key for key in shard.keys if key in memory})
        keys = [
            key if new else "" for key, new in zip(shard.keys, fresh, strict=True)
        ]  # an empty one leaves its row out
        if any(keys):
            images, texts = (folder / f"{side}/{side}_{number}.npy" for side in ("img_emb", "text_emb"))
            memory.attach(images, texts, keys, shard.captions, shard.metadata)
        added += sum(map(bool, keys))
        bar.update(len(shard))
    return added


def export_memory(memory: Memory, folder: str | Path, *, shard_size: int = 100_000, progress: Progress = True) -> int:
    """Write the pairs of a memory as `reco embed` does, for clip-retrieval, autofaiss and the like.

    Parameters
    ----------
    memory : Memory
    folder : str or Path
        Empty, or not there yet.
    shard_size : int
        Pairs a file.
    progress : bool or callable, optional
        Show a progress bar on standard error; or called with (pairs done, pairs in all), returning False stops.

    Returns
    -------
    int
        How many pairs were written.

    Raises
    ------
    Error
        When the folder is there and not empty.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise Error(f"[exchange.export_memory] the folder {folder} must be empty or not there yet")
    written = 0
    with Reporter(progress, "export", " pairs", len(memory)) as bar:
        for number, keys in enumerate(_pieces(memory, shard_size)):
            rows = [memory.get(key) for key in keys]
            pairs = Embeddings(
                np.stack([row.image_embedding for row in rows]),
                np.stack([row.text_embedding for row in rows]),
                keys,
                [row.caption for row in rows],
                [row.metadata for row in rows],
            )
            write_shard(folder, number, pairs)
            written += len(keys)
            bar.update(len(keys))
    return written


def _pieces(items: Iterable[str], size: int) -> Iterator[list[str]]:
    stream = iter(items)
    return iter(lambda: list(islice(stream, size)), [])
