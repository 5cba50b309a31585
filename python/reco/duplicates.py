# SPDX-License-Identifier: Apache-2.0
"""Near-duplicates: pairs that a memory holds twice, and pairs of a test set that have leaked into it."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from reco._core import Clip, Error, Memory
from reco.datasets import read_samples
from reco.embedding import Embeddings, embed_batches
from reco.embedding_source import folder_shards
from reco.pages import render
from reco.pictures import data_uri, find_pictures
from reco.progress import Reporter

if TYPE_CHECKING:
    from reco.types import Progress

__all__ = ["Match", "contact_sheet", "find_duplicates", "write_csv"]


@dataclass(frozen=True)
class Match:
    """Two pairs that are nearly the same.

    Attributes
    ----------
    similarity : float
        Cosine of the side that was compared.
    key, caption, metadata
        Of the memory's pair.
    other_key, other_caption, other_metadata
        Of the other one.
    """

    similarity: float
    key: str
    caption: str
    other_key: str
    other_caption: str
    metadata: dict[str, Any] = field(default_factory=dict)
    other_metadata: dict[str, Any] = field(default_factory=dict)


def find_duplicates(
    memory: Memory,
    against: str | Path | None = None,
    *,
    clip: Clip | None = None,
    min_similarity: float = 0.96,
    modality: Literal["image", "text"] = "image",
    progress: Progress = True,
) -> list[Match]:
    """Compare every pair of a memory with every other one, or with those of another set.

    Parameters
    ----------
    memory : Memory
    against : path, optional
        Another memory, a folder that `reco embed` or clip-retrieval wrote, or pictures with or without captions
        (folders, tables, WebDataset shards).
    clip : Clip, optional
        The model that made the memory's embeddings; pictures need it.
    min_similarity : float
        Cosine from which on two pairs count as the same.
    modality : {"image", "text"}
        The side that is compared.
    progress : bool or callable, optional
        Show a progress bar on standard error; or called with (pairs done, pairs in all), returning False stops.

    Returns
    -------
    list of Match
        Best first.

    Raises
    ------
    Error
        When `against` is none of these, or of another width or encoder than the memory.
    """
    with Reporter(progress, "compare", " pairs") as bar:
        if against is None:
            return _of_memory(memory, memory, memory.duplicates(min_similarity, modality, bar))
        if (Path(against) / "memory.sqlite").is_file():
            with Memory.open(against, read_only=True) as other:
                found = memory.duplicates(min_similarity, modality, bar, other)
                return _of_memory(memory, other, found)
        matches: list[Match] = []
        for pairs in _embeddings(memory, Path(against), clip):
            rows = pairs.images if modality == "image" else pairs.texts
            places = memory.duplicates(min_similarity, modality, against=np.asarray(rows, np.float32))
            matches += [_match(memory, key, pairs, place, score) for key, place, score in places]
            bar.update(len(pairs))
    return sorted(matches, key=lambda match: -match.similarity)


def _of_memory(memory: Memory, other: Memory, found: list[tuple[str, str, float]]) -> list[Match]:
    matches = []
    for key, other_key, score in found:
        row, twin = memory.get(key), other.get(other_key)
        matches.append(Match(score, key, row.caption, other_key, twin.caption, row.metadata, twin.metadata))
    return matches


def _match(memory: Memory, key: str, pairs: Embeddings, place: int, score: float) -> Match:
    row = memory.get(key)
    extra = pairs.metadata[place]
    return Match(score, key, row.caption, pairs.keys[place], pairs.captions[place], row.metadata, extra)


def _embeddings(memory: Memory, source: Path, clip: Clip | None) -> Iterator[Embeddings]:
    if (source / "img_emb").is_dir():
        return folder_shards(source)
    if clip is None:
        raise Error(
            f"[duplicates.find_duplicates] expected a memory or embeddings in {source}, found neither: pictures need "
            "the model"
        )
    if memory.encoder and clip.fingerprint != memory.encoder:
        raise Error(
            f"[duplicates.find_duplicates] expected the model {memory.encoder}, which made the memory's embeddings, "
            f"found {clip.fingerprint}"
        )
    return embed_batches(clip, read_samples(source))


def write_csv(matches: list[Match], path: str | Path) -> None:
    """Write a table: similarity, key, caption, other_key, other_caption.

    Parameters
    ----------
    matches : list of Match
    path : str or Path

    Raises
    ------
    OSError
        When the file cannot be written.
    """
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["similarity", "key", "caption", "other_key", "other_caption"])
        for m in matches:
            table.writerow([f"{m.similarity:.6f}", m.key, m.caption, m.other_key, m.other_caption])


def contact_sheet(matches: list[Match], title: str, *, most: int = 500) -> str:
    """One HTML page with both pictures of each match side by side; it needs no other file and no network.

    Parameters
    ----------
    matches : list of Match
    title : str
    most : int
        Matches that are shown; the page says how many there are in all.

    Returns
    -------
    str
    """
    shown = matches[:most]
    left, right = (find_pictures([getattr(m, name) for m in shown]) for name in ("metadata", "other_metadata"))
    cards = [
        {"match": m, "picture": data_uri(a), "other": data_uri(b)} for m, a, b in zip(shown, left, right, strict=True)
    ]
    body = render("duplicates.html", title=title, cards=cards, total=len(matches))
    return render("page.html", title=title, body=body)
