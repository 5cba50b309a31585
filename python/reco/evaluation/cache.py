# SPDX-License-Identifier: Apache-2.0
"""Embeddings by the content of what was encoded: nothing is encoded twice by the same model."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from reco._core import Clip, Error
from reco.datasets.benchmark import Image, Slice, image_bytes, image_name
from reco.embedding import prefetch
from reco.progress import Reporter

if TYPE_CHECKING:
    from reco.types import Progress

__all__ = ["EmbeddingCache", "default_cache"]

Floats = npt.NDArray[np.float32]
T = TypeVar("T")
Pieces = list[tuple[int, Any]]  # places and what was read, or what is wrong

_TAG = "[evaluation.cache]"
_FORMAT = 1
_BATCH = 256  # images read at a time
_TEXTS = 4096  # texts encoded at a time
_ASKED = 500  # values of one SQL statement
_SHOWN = 3  # faults in a message

_SCHEMA = """
CREATE TABLE IF NOT EXISTS embeddings (digest BLOB PRIMARY KEY, embedding BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (
    place TEXT PRIMARY KEY, size INTEGER, mtime INTEGER, ctime INTEGER, digest BLOB NOT NULL
) WITHOUT ROWID;
"""


def default_cache() -> Path:
    """$XDG_CACHE_HOME/reco, or ~/.cache/reco."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reco"


def _pieces(items: Iterable[T], size: int) -> Iterator[list[T]]:
    stream = iter(items)
    return iter(lambda: list(islice(stream, size)), [])


class EmbeddingCache:
    """A model's embeddings, kept in an SQLite file by the SHA-256 of what was encoded.

    A file is known by its place, size and times, so that it is not read again as long as those stay; what was encoded
    is on disk every few hundred images, so that interrupted work goes on where it was. For one thread at a time;
    several processes may share a folder.

    Parameters
    ----------
    clip : Clip
    folder : path, optional
        Where the file lies; without it embeddings are kept in memory, for as long as the object lives.
    progress : bool or callable, optional
        Show progress bars on standard error; or called with (images done, images in all).
    """

    def __init__(self, clip: Clip, folder: str | Path | None = None, *, progress: Progress = True) -> None:
        self._clip = clip
        self._progress = progress
        self.path: Path | None = None
        #: Images and texts that were encoded, not found.
        self.encoded = 0
        if folder is not None:
            name = hashlib.sha256(f"{_FORMAT} {clip.fingerprint} {clip.dtype}".encode()).hexdigest()[:16]
            self.path = Path(folder) / f"embeddings-{name}.sqlite"
        self._database = self._open()

    def _open(self) -> sqlite3.Connection:
        try:
            if self.path:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(self.path or ":memory:", timeout=60)
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            database.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise self._fault(error) from error
        return database

    def _fault(self, error: Exception) -> Error:
        return Error(f"{_TAG} cannot use {self.path}: {error}; it may be deleted, embeddings are then made again")

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def __enter__(self) -> EmbeddingCache:
        return self

    def __exit__(self, *arguments: object) -> None:
        self.close()

    # --- images ------------------------------------------------------------------------------------------------------
    def images(self, images: Sequence[Image], desc: str = "images", out: Floats | None = None) -> Floats:
        """Embeddings of images: float32 [n, dim], unit rows.

        Parameters
        ----------
        images : sequence of Image
        desc : str
            What the progress bar calls them.
        out : float32 [n, dim], optional
            Where they are put; a memory map for more than memory holds.

        Raises
        ------
        Error
            When images cannot be read: how many, and the first of them. The others are kept.
        """
        out = np.empty((len(images), self._clip.dim), np.float32) if out is None else out
        digests = self._known(images)
        rest = self._fill(out, list(enumerate(digests)))
        faults: list[str] = []
        with Reporter(self._progress, desc, " images", len(images), len(images) - len(rest)) as bar:
            for piece in prefetch(_read(images, rows) for rows in _pieces(rest, _BATCH)):
                faults += self._encode_images(out, images, piece, bar)
        if faults:
            shown = "; ".join(faults[:_SHOWN])
            raise Error(f"{_TAG} {len(faults)} of {len(images)} images cannot be read: {shown}")
        return out

    def _known(self, images: Sequence[Image]) -> list[bytes | None]:
        """Digests of files that have been read before and look the same."""
        out: list[bytes | None] = [None] * len(images)
        for rows in _pieces((i for i, image in enumerate(images) if not isinstance(image, bytes)), _ASKED):
            places = {i: _place(images[i]) for i in rows}
            statement = "SELECT place, size, mtime, ctime, digest FROM files WHERE place IN"
            known = self._ask(statement, places.values())
            found = {row[0]: row[1:] for row in known}

            for i, place in places.items():
                if place in found and found[place][:3] == _times(images[i]):
                    out[i] = found[place][3]
        return out

    def _encode_images(
        self, out: Floats, images: Sequence[Image], piece: list[tuple[int, Any]], bar: Reporter
    ) -> list[str]:
        """Encode what was read, and keep it."""
        faults = [f"{_called(images, i)}: {content}" for i, content in piece if isinstance(content, str)]
        contents = {i: content for i, content in piece if not isinstance(content, str)}
        digests = {i: hashlib.sha256(content).digest() for i, content in contents.items()}
        fresh = self._fill(out, list(digests.items()))
        errors: dict[int, str] = {}
        encode = self._clip.encode_images
        rows: Any = encode([contents[i] for i in fresh], None, errors.__setitem__) if fresh else []
        good = [(i, row) for n, (i, row) in enumerate(zip(fresh, rows, strict=True)) if n not in errors]
        for i, row in good:
            out[i] = row
        failed = {fresh[n] for n in errors}
        faults += [f"{_called(images, fresh[n])}: {error.splitlines()[0]}" for n, error in errors.items()]
        files = [(_place(images[i]), *_times(images[i]), digests[i]) for i in contents if i not in failed]
        self._keep([(digests[i], row) for i, row in good], [file for file in files if file[0]])
        bar.update(len(piece))
        return faults

    # --- texts -------------------------------------------------------------------------------------------------------
    def texts(self, texts: Sequence[str], desc: str = "texts") -> Floats:
        """Embeddings of texts: float32 [n, dim], unit rows.

        Parameters
        ----------
        texts : list of str
        desc : str
            What the progress bar says.
        """
        out = np.empty((len(texts), self._clip.dim), np.float32)
        digests = [hashlib.sha256(b"text\0" + text.encode("utf-8", "surrogatepass")).digest() for text in texts]
        rest = self._fill(out, list(enumerate(digests)))
        first: dict[bytes, int] = {}
        for i in rest:
            first.setdefault(digests[i], i)
        with Reporter(self._progress, desc, " texts", len(first)) as bar:
            for rows in _pieces(first.values(), _TEXTS):
                embeddings = self._clip.encode_texts([texts[i] for i in rows])
                out[rows] = embeddings
                self._keep([(digests[i], row) for i, row in zip(rows, embeddings, strict=True)], [])
                bar.update(len(rows))
        for i in rest:
            out[i] = out[first[digests[i]]]
        return out

    # --- the file ----------------------------------------------------------------------------------------------------
    def _fill(self, out: Floats, digests: list[tuple[int, bytes | None]]) -> list[int]:
        """Put what is kept into its rows; the rows that are not."""
        rest = [i for i, digest in digests if digest is None]
        for piece in _pieces(((i, digest) for i, digest in digests if digest is not None), _ASKED):
            wanted = {digest for _, digest in piece}
            found = dict(self._ask("SELECT digest, embedding FROM embeddings WHERE digest IN", wanted))
            for i, digest in piece:
                if digest in found:
                    out[i] = self._row(found[digest])
                else:
                    rest.append(i)
        return sorted(rest)

    def _row(self, blob: bytes) -> Floats:
        if len(blob) != 4 * self._clip.dim:
            raise self._fault(ValueError(f"expected embeddings of {4 * self._clip.dim} bytes, found {len(blob)}"))
        return np.frombuffer(blob, np.dtype("<f4"))

    def _ask(self, statement: str, values: Iterable[Any]) -> list[tuple[Any, ...]]:
        given = list(values)
        try:
            return self._database.execute(f"{statement} ({', '.join('?' * len(given))})", given).fetchall()
        except sqlite3.Error as error:
            raise self._fault(error) from error

    def _keep(self, embeddings: list[tuple[bytes, Floats]], files: list[tuple[Any, ...]]) -> None:
        self.encoded += len(embeddings)
        blobs = [(digest, np.asarray(row, "<f4").tobytes()) for digest, row in embeddings]
        try:
            with self._database as database:
                database.executemany("INSERT OR REPLACE INTO embeddings VALUES (?, ?)", blobs)
                database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", files)
        except sqlite3.Error as error:
            raise self._fault(error) from error


def _read(images: Sequence[Image], rows: list[int]) -> Pieces:
    """The encoded files; what is wrong with one as a str."""
    return [(i, _content(images[i])) for i in rows]


def _content(image: Image) -> bytes | str:
    try:
        return image_bytes(image)
    except OSError as error:
        return str(error.strerror or error)


def _called(images: Sequence[Image], i: int) -> str:
    return image_name(images[i]) or f"image {i + 1}"


def _place(image: Image) -> str:
    if isinstance(image, bytes):
        return ""
    path = os.path.abspath(image.path if isinstance(image, Slice) else image)  # noqa: PTH100 - resolve() asks the disk
    return f"{path}:{image.offset}" if isinstance(image, Slice) else path


def _times(image: Image) -> tuple[int, int, int]:
    if isinstance(image, bytes):
        return (0, 0, 0)
    try:
        found = (image.path if isinstance(image, Slice) else image).stat()
    except OSError:
        return (-1, -1, -1)
    return (found.st_size, found.st_mtime_ns, found.st_ctime_ns)
