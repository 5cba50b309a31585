# SPDX-License-Identifier: Apache-2.0
"""Pictures to show: what a pair's metadata points to, made small."""

from __future__ import annotations

import base64
import io
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from reco._core import Error, decode_image, read_image

__all__ = ["data_uri", "find_pictures", "thumbnail"]

SIDE = 128
_MAX_FILE = 1 << 26  # bytes of a picture, or of a compressed shard, that is worth opening for a thumbnail


def thumbnail(image: Any, side: int = SIDE) -> bytes:
    """Make a picture small enough to show.

    Parameters
    ----------
    image : path, bytes, PIL image or uint8 array [height, width, 3]
        Whatever Clip.encode_images takes.
    side : int
        Longest side in pixels; smaller pictures stay as they are.

    Returns
    -------
    bytes
        A WebP file.

    Raises
    ------
    Error
        For a file that is no picture.
    """
    picture = _opened(image).convert("RGB")
    picture.thumbnail((side, side))
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=85)
    return out.getvalue()


def _opened(image: Any) -> Image.Image:
    """JPEG, PNG and WebP as Clip.encode_images reads them, other formats through PIL."""
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray):
        return Image.fromarray(image)
    content = bytes(image) if isinstance(image, bytes | bytearray | memoryview) else None
    try:
        return Image.fromarray(read_image(image) if content is None else decode_image(content))
    except Error as error:
        try:
            return Image.open(image if content is None else io.BytesIO(content))
        except (OSError, ValueError, Image.DecompressionBombError):
            raise error from None


def data_uri(picture: bytes | None) -> str:
    """A WebP file as the address of an HTML image that needs no other file; '' for None."""
    return f"data:image/webp;base64,{base64.b64encode(picture).decode()}" if picture else ""


def find_pictures(metadata: Sequence[Mapping[str, Any] | None], side: int = SIDE) -> list[bytes | None]:
    """Thumbnails of pairs whose metadata says in `image_path` where the picture lies.

    Parameters
    ----------
    metadata : list of dict or None
        A memory's; `image_path` is a file, or a name inside a WebDataset shard (``shard.tar/name.jpg``).
    side : int
        Longest side in pixels.

    Returns
    -------
    list of bytes or None
        WebP files; None where there is no such file any more, or none that can be read. Nothing is fetched from the
        network.
    """
    paths = [str(entry.get("image_path") or "") if entry else "" for entry in metadata]
    inside = _from_shards(path for path in paths if path and not _is_file(path))
    return [_small(inside.get(path) or _read(path), side) for path in paths]


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def _read(path: str) -> bytes | None:
    try:
        file = Path(path)
        return file.read_bytes() if path and file.is_file() and file.stat().st_size <= _MAX_FILE else None
    except (OSError, ValueError):
        return None


def _small(file: bytes | None, side: int) -> bytes | None:
    try:
        return thumbnail(file, side) if file else None
    except Error:
        return None


def _from_shards(paths: Iterable[str]) -> dict[str, bytes]:
    """Files inside shards by their path, each shard read once."""
    wanted: dict[Path, dict[str, str]] = defaultdict(dict)
    for path in paths:
        shard = next((p for p in Path(path).parents if p.name.endswith((".tar", ".tar.gz", ".tgz"))), None)
        if shard and _is_file(str(shard)):
            wanted[shard][Path(path).relative_to(shard).as_posix()] = path
    found: dict[str, bytes] = {}
    for shard, names in wanted.items():
        found |= {names[name]: content for name, content in _members(shard, set(names))}
    return found


def _members(shard: Path, names: set[str]) -> Iterable[tuple[str, bytes]]:
    out: list[tuple[str, bytes]] = []
    try:
        if shard.suffix != ".tar" and shard.stat().st_size > _MAX_FILE:
            return out
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name in names and member.isfile() and member.size <= _MAX_FILE:
                    out.append((member.name, tar.extractfile(member).read()))  # type: ignore[union-attr]
                if len(out) == len(names):
                    break
    except (tarfile.TarError, EOFError, OSError):
        pass  # what was found so far is shown
    return out
