# SPDX-License-Identifier: Apache-2.0
"""Reading embeddings in clip-retrieval's layout, and what an import asks of a folder of them before it takes them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from reco._core import Error
from reco.embedding import Embeddings, concatenate
from reco.embedding_folder import JSON_FIELD, begun_states, from_text

__all__ = [
    "check_source",
    "first_of_each",
    "folder_shards",
    "numbered_shards",
    "read_folder",
    "read_shard",
    "shard_numbers",
    "shard_stamp",
]


def folder_shards(folder: str | Path) -> Iterator[Embeddings]:
    """The embeddings that embed_to_folder (or clip-retrieval) wrote, shard after shard; arrays are float16 maps.

    Parameters
    ----------
    folder : str or Path

    Returns
    -------
    iterator of Embeddings

    Raises
    ------
    Error
        When there are none, or the files of a shard do not fit each other.
    """
    return (shard for _, shard in numbered_shards(folder))


def numbered_shards(folder: str | Path) -> Iterator[tuple[str, Embeddings]]:
    """folder_shards(), each with the digits that its files' names have.

    Parameters
    ----------
    folder : str or Path

    Returns
    -------
    iterator of (str, Embeddings)

    Raises
    ------
    Error
        As folder_shards().
    """
    return ((number, read_shard(Path(folder), number)) for number in shard_numbers(folder))


def shard_numbers(folder: str | Path) -> list[str]:
    """The digits that the names of a folder's shards have, in their order.

    Parameters
    ----------
    folder : str or Path

    Returns
    -------
    list of str

    Raises
    ------
    Error
        When there are none.
    """
    numbers = [file.stem.removeprefix("img_emb_") for file in Path(folder).glob("img_emb/img_emb_*.npy")]
    if not numbers:
        raise Error(f"[embedding_source.folder_shards] expected img_emb/img_emb_*.npy in {folder}, found none")
    return sorted(numbers, key=lambda text: (len(text), text))


def _files(folder: Path, number: str) -> tuple[Path, Path, Path]:
    """Where a shard's images, texts and words are."""
    images, texts = (folder / f"{side}/{side}_{number}.npy" for side in ("img_emb", "text_emb"))
    return images, texts, folder / f"metadata/metadata_{number}.parquet"


def _read_metadata(file: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    marked = [field.name for field in table.schema if (field.metadata or {}).items() >= JSON_FIELD.items()]
    rows: list[dict[str, Any]] = table.to_pylist()
    for row in rows:
        row.update({name: from_text(row[name]) for name in marked if row[name] is not None})
    return rows


def read_shard(folder: Path, number: str) -> Embeddings:
    """One of folder_shards().

    Parameters
    ----------
    folder : Path
    number : str
        The digits of its files' names.

    Returns
    -------
    Embeddings

    Raises
    ------
    Error
        When its files cannot be read, or do not fit each other.
    """
    import pyarrow as pa

    *arrays, words = _files(folder, number)
    try:
        images, texts = (np.load(file, mmap_mode="r") for file in arrays)
        table = _read_metadata(words)
    except (OSError, ValueError, EOFError, pa.ArrowException) as error:
        raise Error(f"[embedding_source.folder_shards] cannot read shard {number} of {folder}: {error}") from error
    if not (images.ndim == texts.ndim == 2 and len(images) == len(texts) == len(table)):
        raise Error(
            f"[embedding_source.folder_shards] expected embeddings and metadata of the same rows in shard {number} of "
            f"{folder}, found {images.shape}, {texts.shape} and {len(table)} rows"
        )
    keys = [str(row.pop("key", None) or row.get("image_path") or f"{number}-{i}") for i, row in enumerate(table)]
    captions = [str(row.pop("caption", "") or "") for row in table]
    metadata = [{name: value for name, value in row.items() if value is not None} for row in table]
    return Embeddings(images, texts, keys, captions, metadata)


def read_folder(folder: str | Path) -> Embeddings:
    """All of folder_shards(), in memory.

    Parameters
    ----------
    folder : str or Path

    Returns
    -------
    Embeddings
        float32.

    Raises
    ------
    Error
        As folder_shards().
    """
    pairs = concatenate(list(folder_shards(folder)))
    return replace(pairs, images=pairs.images.astype(np.float32), texts=pairs.texts.astype(np.float32))


def check_source(folder: str | Path, encoder: str) -> None:
    """Refuse what `reco embed` has not finished, or made with another encoder; others leave nothing that would tell.

    Parameters
    ----------
    folder : str or Path
    encoder : str
        Fingerprint of the memory's; "" fits any.

    Raises
    ------
    Error
    """
    tag, states = "embedding_source.check_source", begun_states(folder)
    for file, state in states.items():
        if encoder and state.identity.model != encoder:
            found = f"those of {state.identity.model} in {file}"
            raise Error(f"[{tag}] expected embeddings of the memory's encoder {encoder}, got {found}")
    parts = max((state.identity.processes for state in states.values()), default=0)
    finished = sum(state.summary.finished for state in states.values())
    if finished < parts:
        raise Error(
            f"[{tag}] expected all {parts} parts of {folder} to be embedded, got {finished}: let reco embed end"
        )


def shard_stamp(folder: Path, number: str) -> str:
    """What is another when a shard was written anew: whose it is, and its files' sizes and times.

    Parameters
    ----------
    folder : Path
    number : str
        The digits of its files' names.

    Returns
    -------
    str

    Raises
    ------
    Error
        When a file of it is not there.
    """
    try:
        files = [(stat.st_size, stat.st_mtime_ns) for stat in (file.stat() for file in _files(folder, number))]
    except OSError as error:
        raise Error(f"[embedding_source.shard_stamp] cannot read shard {number} of {folder}: {error}") from error
    return hashlib.blake2b(f"{_made_by(folder)} {files}".encode(), digest_size=16).hexdigest()


def _made_by(folder: Path) -> dict[str, object]:
    states = list(begun_states(folder).values())
    return asdict(states[0].identity) if states else {}


def first_of_each(keys: list[str], there: Collection[str]) -> list[bool]:
    """Which rows an import adds: not those whose keys are there, of equal keys the first.

    Parameters
    ----------
    keys : list of str
    there : collection of str

    Returns
    -------
    list of bool
    """
    seen: set[str] = set()
    fresh = []
    for key in keys:
        fresh.append(key not in seen and key not in there)
        seen.add(key)
    return fresh
