# SPDX-License-Identifier: Apache-2.0
"""Image-text pairs as people have them on disk: WebDataset shards and folders of images."""

from __future__ import annotations

import csv
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reco._core import Error

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})

__all__ = ["IMAGE_SUFFIXES", "Sample", "read_samples"]


@dataclass(frozen=True)
class Sample:
    """One image-text pair, the image still encoded.

    Attributes
    ----------
    key : str
        Unique in its collection.
    image : bytes
        The file: JPEG, PNG or WebP.
    caption : str
    metadata : dict
        What else the collection says of it.
    """

    key: str
    image: bytes
    caption: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)


def read_samples(*sources: str | Path) -> Iterator[Sample]:
    """Read pairs from WebDataset shards (.tar, .tar.gz) and folders, in a fixed order.

    A folder holds shards, or images with their caption in a .txt file of the same name or in a captions.csv with the
    columns ``file`` and ``caption``; the key is the path inside the folder without its suffix.

    Raises
    ------
    Error
        When a source is missing, holds no images, or is damaged; names file and place.
    """
    for source in map(Path, sources):
        if source.is_dir():
            yield from _read_folder(source)
        elif source.is_file():
            yield from _read_shard(source)
        else:
            raise Error(f"[datasets.read_samples] expected a folder or a WebDataset shard, found nothing at {source}")


def _read_folder(folder: Path) -> Iterator[Sample]:
    shards = sorted(p for p in folder.iterdir() if p.name.endswith((".tar", ".tar.gz")))
    if shards:
        for shard in shards:
            yield from _read_shard(shard)
        return
    images = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise Error(
            f"[datasets.read_samples] expected shards (.tar) or images (jpg, png, webp) in {folder}, found none"
        )
    captions = _captions(folder / "captions.csv")
    for path in images:
        name = path.relative_to(folder)
        beside = path.with_suffix(".txt")
        caption = captions.get(name.as_posix()) or (beside.read_text("utf-8").strip() if beside.is_file() else "")
        yield Sample(name.with_suffix("").as_posix(), path.read_bytes(), caption, {"file": str(path)})


def _captions(table: Path) -> dict[str, str]:
    if not table.is_file():
        return {}
    with table.open(newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        if not {"file", "caption"} <= set(reader.fieldnames or ()):
            raise Error(
                f"[datasets.read_samples] expected the columns file and caption, found {reader.fieldnames} in {table}"
            )
        return {row["file"]: row["caption"] or "" for row in reader}


def _read_shard(shard: Path) -> Iterator[Sample]:
    """Stream a tar; the files of a sample follow each other, as WebDataset has them."""
    try:
        with tarfile.open(shard) as tar:
            key, parts = "", dict[str, bytes]()
            for member in tar:
                if not member.isfile():
                    continue
                stem, _, suffix = member.name.rpartition("/")[2].partition(".")
                name = f"{member.name.rpartition('/')[0]}/{stem}".lstrip("/")
                if name != key:
                    yield from _sample(key, parts, shard)
                    key, parts = name, {}
                content = tar.extractfile(member)
                parts[suffix.lower()] = content.read() if content else b""
            yield from _sample(key, parts, shard)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise Error(f"[datasets.read_samples] the shard {shard} is damaged: {error}") from error


def _sample(key: str, parts: dict[str, bytes], shard: Path) -> Iterator[Sample]:
    image = next((parts[s[1:]] for s in sorted(IMAGE_SUFFIXES) if s[1:] in parts), None)
    if image is None:
        return
    try:
        metadata = json.loads(parts.get("json", b"{}"))
        caption = parts.get("txt", b"").decode("utf-8").strip()
    except ValueError as error:
        raise Error(f"[datasets.read_samples] malformed caption or JSON of {key} in {shard}: {error}") from error
    yield Sample(key, image, caption, metadata if isinstance(metadata, dict) else {"json": metadata})
