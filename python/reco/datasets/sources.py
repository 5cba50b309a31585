# SPDX-License-Identifier: Apache-2.0
"""The kinds of sources that a collection may have: each reads its samples in a fixed order, one at a time."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from reco._core import Error

# JPEG, PNG and WebP are read by the library, the others by PIL, which needs a plugin for some: without it a file is
# listed as one that cannot be read, never passed over.
IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".jpe", ".jfif", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".heic",
                  ".heif", ".jp2", ".jxl", ".ppm")  # fmt: skip
TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")

# Column names that other tools write, in the order in which they are looked for.
IMAGE_COLUMNS = ("image_path", "path", "filepath", "file_path", "file_name", "filename", "file", "image")
CAPTION_COLUMNS = ("caption", "text", "title")

_MAX_FILE = 1 << 28  # bytes of a file in a tar: far above any image that is accepted
_ROWS = 1024  # of a Parquet table at a time, or as many as hold
_ROWS_BYTES = 1 << 25
_ENDS = 1 << 16  # bytes at both ends of a large file that tell it from others
_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Sample:
    """One image-text pair.

    Attributes
    ----------
    key : str
        Unique in its collection.
    image : path, bytes, PIL image or uint8 array [height, width, 3]
        Whatever Clip.encode_images takes; the sources here give the encoded file, or its path.
    caption : str
    metadata : dict
        What else the collection says of it; `image_path` is where the image lies.
    """

    key: str
    image: Any
    caption: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """A sample, or a source's rest, that cannot be read.

    Attributes
    ----------
    key : str
        Of the sample.
    path : str
        The file, where it is known.
    error : str
        What is wrong with it.
    """

    key: str
    path: str
    error: str


Wanted = Callable[[int], bool]


class Source(Protocol):
    """Numbers its samples from 0 in a fixed order."""

    def read(self, wanted: Wanted) -> Iterator[tuple[int, Sample | Fault]]:
        """The samples whose number is wanted; of the others as little as possible is read."""

    def total(self) -> float | None:
        """How many samples there are; an estimate while a tar is read, None before."""

    def fingerprint(self) -> str | None:
        """Tells sources apart by what they hold; None where that cannot be known before they are read."""


def _digest(*parts: str | bytes) -> str:
    return hashlib.sha256(
        b"\0".join(p.encode("utf-8", "replace") if isinstance(p, str) else p for p in parts)
    ).hexdigest()


def clean(text: str) -> str:
    """Without lone surrogates, which stand for bytes that are no UTF-8 and which UTF-8 cannot hold."""
    return _SURROGATES.sub("\ufffd", text)


def make_sample(key: str, path: str, image: Any, text: bytes | None, extra: bytes | None) -> Sample | Fault:
    """A sample from its files: the caption is the text, or else the JSON's field `caption`."""
    key, path = clean(key), clean(path)
    try:
        metadata = json.loads(extra) if extra else {}
        metadata = metadata if isinstance(metadata, dict) else {"json": metadata}
        caption = str(metadata.get("caption") or "") if text is None else text.decode("utf-8")
    except (ValueError, RecursionError) as error:
        return Fault(key, path, f"malformed caption or JSON: {error}")
    return Sample(key, image, clean(caption).strip(), {**metadata, "image_path": path})


# --- folders ---------------------------------------------------------------------------------------------------------
class Folder:
    """Images anywhere in a folder, with name.txt and name.json beside name.jpg, or captions.csv at the top.

    Holds one directory's names at a time. Hidden files and linked directories are left out.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._captions = _read_captions(folder / "captions.csv")
        names = hashlib.sha256()
        self._count = 0
        for path in _walk(folder):
            names.update(os.fsencode(path.relative_to(folder)) + b"\0")
            self._count += 1
        self._fingerprint = _digest("folder", names.hexdigest())
        if not self._count:
            raise Error(f"[datasets.read_samples] expected shards, tables or images (jpg, png, webp, ...) in {folder}")

    def read(self, wanted: Wanted) -> Iterator[tuple[int, Sample | Fault]]:
        """The samples whose number is wanted."""
        for i, path in enumerate(_walk(self._folder)):
            if wanted(i):
                yield i, self._sample(path)

    def _sample(self, path: Path) -> Sample | Fault:
        name = path.relative_to(self._folder)
        key = name.with_suffix("").as_posix()
        try:
            listed = self._captions.get(name.as_posix())
            text = listed.encode() if listed else _beside(path, ".txt")
            return make_sample(key, str(path), path, text, _beside(path, ".json"))
        except OSError as error:
            return Fault(key, str(path), str(error))

    def total(self) -> float:
        """How many samples there are."""
        return self._count

    def fingerprint(self) -> str:
        """Over the images' names."""
        return self._fingerprint


def _walk(folder: Path | str) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        names = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    for name, is_folder in names:
        if name.startswith("."):
            continue
        path = Path(folder, name)
        if is_folder:
            yield from _walk(path)
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            yield path


def _beside(path: Path, suffix: str) -> bytes | None:
    file = path.with_suffix(suffix)
    return file.read_bytes() if file.is_file() else None


def _read_captions(table: Path) -> dict[str, str]:
    if not table.is_file():
        return {}
    with table.open(newline="", encoding="utf-8-sig", errors="replace") as lines:
        reader = csv.DictReader(lines)
        if not {"file", "caption"} <= set(reader.fieldnames or ()):
            raise Error(
                f"[datasets.read_samples] expected the columns file and caption, found {reader.fieldnames} in {table}"
            )
        return {row["file"]: row["caption"] or "" for row in reader}


# --- tables ----------------------------------------------------------------------------------------------------------
class Table:
    """A CSV, TSV or Parquet file with a row a pair: a column of image paths, one of captions, the rest is metadata.

    Paths are relative to the table's folder. In Parquet the image column may hold the files themselves, as bytes or
    as a struct of bytes and path; other columns of bytes are not read. The key is the column `key` where there is one,
    else the table's name and the row.
    """

    def __init__(self, path: Path, image_column: str | None, caption_column: str | None) -> None:
        self._path = path
        self.parquet = path.suffix.lower() == ".parquet"
        self._bytes = set[str]()  # columns that hold bytes
        names, self._count = self._parquet_shape() if self.parquet else self._text_shape()
        self._image = self._column(names, image_column, IMAGE_COLUMNS)
        self._caption = self._column(names, caption_column, CAPTION_COLUMNS, optional=True)

    def _column(self, names: Sequence[str], asked: str | None, usual: Sequence[str], optional: bool = False) -> str:
        found = next((name for name in ([asked] if asked else usual) if name in names), "")
        if found or (optional and not asked):
            return found
        raise Error(
            f"[datasets.read_samples] expected a column {asked or ' or '.join(usual)}, found {', '.join(names)} in "
            f"{self._path}"
        )

    def _parquet_shape(self) -> tuple[list[str], int]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self._path) as table:
                schema = table.schema_arrow
                self._bytes = {field.name for field in schema if _holds_bytes(field.type)}
                return schema.names, table.metadata.num_rows
        except (pa.ArrowException, OSError) as error:
            raise Error(f"[datasets.read_samples] cannot read the table {self._path}: {error}") from error

    def _text_shape(self) -> tuple[list[str], int]:
        count = sum(1 for _ in self._text_rows())
        with self._open() as lines:
            return list(self._reader(lines).fieldnames or ()), count

    def _open(self) -> IO[str]:
        return self._path.open(newline="", encoding="utf-8-sig", errors="replace")

    def _reader(self, lines: IO[str]) -> csv.DictReader[str]:
        return csv.DictReader(lines, delimiter="\t" if self._path.suffix.lower() == ".tsv" else ",")

    def _text_rows(self) -> Iterator[dict[str, Any] | str]:
        """Rows, or what is wrong with one."""
        with self._open() as lines:
            reader = self._reader(lines)
            while True:
                try:
                    yield next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield f"line {reader.line_num}: {error}"

    def _parquet_rows(self, wanted: Wanted) -> Iterator[tuple[int, dict[str, Any] | str]]:
        """Wanted rows. Row groups without one are not read, and of the others no more than a few rows are held."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        at = 0
        try:
            with pq.ParquetFile(self._path, buffer_size=1 << 20) as table:
                left_out = self._bytes - {self._image, self._caption, "key"}
                columns = [name for name in table.schema_arrow.names if name not in left_out]
                for number in range(table.num_row_groups):
                    group = table.metadata.row_group(number)
                    if not any(map(wanted, range(at, at + group.num_rows))):
                        at += group.num_rows
                        continue
                    for batch in table.iter_batches(_rows_at_once(group), [number], columns):
                        rows = [i for i in range(len(batch)) if wanted(at + i)]
                        chosen = batch.take(pa.array(rows, pa.int64())).to_pylist()
                        yield from zip([at + i for i in rows], chosen, strict=True)
                        at += len(batch)
        except (pa.ArrowException, OSError) as error:
            yield at, f"the rest cannot be read: {error}"

    def read(self, wanted: Wanted) -> Iterator[tuple[int, Sample | Fault]]:
        """The samples whose number is wanted; a table without rows has a fault for one."""
        for i, row in self._parquet_rows(wanted) if self.parquet else enumerate(self._text_rows()):
            if wanted(i):
                yield i, self._sample(i, row)
        if not self._count and wanted(0):
            yield 0, Fault(self._path.stem, str(self._path), "the table has no rows")

    def _sample(self, i: int, row: dict[str, Any] | str) -> Sample | Fault:
        key = f"{self._path.stem}-{i}"
        if isinstance(row, str):
            return Fault(key, str(self._path), row)
        key = _text(row.get("key")) or key
        image = row[self._image]
        path = image.get("path") if isinstance(image, dict) else None if isinstance(image, bytes) else image
        content = image.get("bytes") if isinstance(image, dict) else image if isinstance(image, bytes) else None
        place = str(self._path.parent / path) if isinstance(path, str) and path else f"{self._path}:{i}"
        if not content and not path:
            return Fault(key, place, f"the column {self._image} is empty")
        if "\0" in place:
            return Fault(key, clean(place), f"the column {self._image} has a path with a NUL")
        left_out = {self._image, self._caption, "key", None}
        metadata = {name: _plain(value) for name, value in row.items() if name not in left_out}
        caption = clean(_text(row.get(self._caption))).strip()
        return Sample(clean(key), content or Path(place), caption, {**metadata, "image_path": clean(place)})

    def total(self) -> float:
        """How many samples there are."""
        return self._count

    def fingerprint(self) -> str:
        """Over the whole file. Of a Parquet table, which may hold all images, over the size and both ends.

        At its end lies the footer, with every column chunk's place and size, and of short values the least and the
        greatest: a table that was written anew with other rows has another one, unless images were exchanged for
        others of the very same sizes. Where work is gone on with, the last sample's key is compared besides.
        """
        if self.parquet:
            return _digest("table", *_ends(self._path), self._image, self._caption)
        digest = hashlib.sha256()
        with self._path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return _digest("table", digest.hexdigest(), self._image, self._caption)


def _holds_bytes(kind: Any) -> bool:
    """Whether a column's values are bytes, or structs of them, as datasets have images and sounds."""
    import pyarrow.types as is_type

    if is_type.is_struct(kind):
        return any(_holds_bytes(field.type) for field in kind)
    return bool(is_type.is_binary(kind) or is_type.is_large_binary(kind) or is_type.is_fixed_size_binary(kind))


def _rows_at_once(group: Any) -> int:
    fitting = int(_ROWS_BYTES * group.num_rows // max(group.total_byte_size, 1))
    return max(1, min(_ROWS, fitting))


def _ends(path: Path) -> tuple[str, bytes, bytes]:
    """A file's size, its beginning and its end: of a Parquet file as much as its footer, if that is long."""
    with path.open("rb") as file:
        head = file.read(_ENDS)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 8, 0))
        footer = int.from_bytes(file.read(4), "little") + 8 if path.suffix.lower() == ".parquet" else 0
        file.seek(max(size - max(footer, _ENDS), 0))
        return str(size), head, file.read()


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")


def _plain(value: Any) -> Any:
    """As JSON has it."""
    return value if isinstance(value, str | int | float | None) else json.loads(json.dumps(value, default=str))


# --- WebDataset ------------------------------------------------------------------------------------------------------
class _Header(tarfile.TarInfo):
    """tarfile takes damaged headers, and a shard that was cut off between two files, for the end of the shard."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None


class Tar:
    """A WebDataset shard, read as a stream: the files of a sample follow each other and share their name up to the
    first dot, which is the key. Files without a dot, and hidden ones, belong to no sample, as WebDataset has it.

    A sample without an image, or a shard without a sample, is a fault: nothing is passed over in silence.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = max(path.stat().st_size, 1)
        self._total: float | None = None

    def read(self, wanted: Wanted) -> Iterator[tuple[int, Sample | Fault]]:
        """The samples whose number is wanted; damage ends the shard."""
        index, key, parts = -1, "", dict[str, bytes | Fault | None]()
        try:
            for tar, member, done in self._members():
                name, suffix = _split(member.name)
                if name != key or index < 0:
                    yield from self._finish(index, key, parts)
                    index, key, parts = index + 1, name, {}
                if wanted(index):
                    parts[suffix] = self._content(tar, member, key) if suffix in _READ else None
                self._total = (index + 1) / done
            yield from self._finish(index, key, parts)
            self._total = index + 1
            if index < 0 and wanted(0):
                yield 0, Fault(self._path.name, str(self._path), "the shard has no samples")
        except (tarfile.TarError, EOFError, OSError) as error:
            if wanted(index + 1):
                yield index + 1, Fault(self._path.name, str(self._path), f"the shard is damaged: {error}")

    def _members(self) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo, float]]:
        """Files and how far into the shard they lie, in (0, 1]."""
        with (
            self._path.open("rb") as raw,
            tarfile.open(fileobj=raw, mode="r|*", bufsize=1 << 18, tarinfo=_Header) as tar,
        ):
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would remember them all
                if member.isfile() and all(_split(member.name)):
                    yield tar, member, max(raw.tell(), 1) / self._size

    def _content(self, tar: tarfile.TarFile, member: tarfile.TarInfo, key: str) -> bytes | Fault:
        if member.size > _MAX_FILE:
            path = f"{self._path}/{member.name}"
            return Fault(clean(key), clean(path), f"the file has {member.size} bytes, more than {_MAX_FILE}")
        file = tar.extractfile(member)
        return file.read() if file else b""

    def _finish(
        self, index: int, key: str, parts: dict[str, bytes | Fault | None]
    ) -> Iterator[tuple[int, Sample | Fault]]:
        """The sample whose files have been read, if it was wanted; of other files only the names are known."""
        suffix = next((suffix for suffix in IMAGE_SUFFIXES if suffix[1:] in parts), "")
        path = f"{self._path}/{key}{suffix}"
        image, text, extra = (parts.get(name) for name in (suffix[1:], "txt", "json"))
        if suffix:
            fault = next((part for part in (image, text, extra) if isinstance(part, Fault)), None)
            yield index, fault or make_sample(key, path, image, text, extra)  # type: ignore[arg-type]
        elif parts:
            found = clean(", ".join(sorted(parts)))
            yield index, Fault(clean(key), clean(path), f"expected an image (jpg, png, webp, ...), found {found}")

    def total(self) -> float | None:
        """How many samples there are, as far as is known."""
        return self._total

    def fingerprint(self) -> str:
        """Over the size, the first and the last 64 KiB."""
        return _digest("tar", *_ends(self._path))


_READ = {suffix[1:] for suffix in IMAGE_SUFFIXES} | {"txt", "json"}  # what a sample is made of


def _split(name: str) -> tuple[str, str]:
    """Key and suffix of a file; of one that belongs to no sample one of them is empty."""
    folder, _, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return f"{folder}/{stem}".lstrip("/") if stem else "", suffix.lower()


# --- anything else ---------------------------------------------------------------------------------------------------
class Iterated:
    """Samples that Python code makes."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._samples = samples

    def read(self, wanted: Wanted) -> Iterator[tuple[int, Sample | Fault]]:
        """The samples whose number is wanted; it can be read once only if it is an iterator."""
        return ((i, sample) for i, sample in enumerate(self._samples) if wanted(i))

    def total(self) -> float | None:
        """Its length, if it has one."""
        return len(self._samples) if isinstance(self._samples, Sized) else None

    def fingerprint(self) -> None:
        """Unknown."""
        return


def open_sources(
    paths: Iterable[str | Path], image_column: str | None = None, caption_column: str | None = None
) -> list[Source]:
    """What lies at the paths; a folder of shards or tables counts as those."""
    try:
        return [source for path in map(Path, paths) for source in _open_path(path, image_column, caption_column)]
    except OSError as error:
        raise Error(f"[datasets.read_samples] cannot read {error.filename}: {error.strerror}") from error


def _open_path(path: Path, image_column: str | None, caption_column: str | None) -> Iterator[Source]:
    files = _inside(path) if path.is_dir() else [path]
    if not files:
        yield Folder(path)
    for file in files:
        if not file.is_file():
            raise Error(
                f"[datasets.read_samples] expected a folder, a table or a WebDataset shard, found nothing at {file}"
            )
        is_table = file.suffix.lower() in TABLE_SUFFIXES
        yield Table(file, image_column, caption_column) if is_table else Tar(file)


def _inside(folder: Path) -> list[Path]:
    """A folder's shards, or else its Parquet tables."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [f for f in files if f.name.endswith(TAR_SUFFIXES)] or [f for f in files if f.suffix == ".parquet"]
