# SPDX-License-Identifier: Apache-2.0
"""Writing embeddings in clip-retrieval's layout, for collections of any size; embedding_source reads them.

    img_emb/img_emb_00000.npy       float16 [rows, dim], unit rows
    text_emb/text_emb_00000.npy     the same rows' captions
    metadata/metadata_00000.parquet key, image_path, caption, and what else the collection says; all of it text, so that
                                    one schema fits all shards: numbers and what is nested as JSON
    errors/errors_00000.jsonl       the samples that could not be read, if any: key, path, error
    state/1-of-1.json               how far the process got that writes the part 1 of 1

Process i of n writes the shards i - 1, i - 1 + n, ...: together they fill one folder. Numbers have five digits so that
tools which sort file names, as clip-retrieval and autofaiss do, meet the shards in order. A shard without rows is not
written: those tools pair embeddings and metadata by order.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reco._core import Clip, Error
from reco.datasets import Collection, Fault, Sample
from reco.datasets.collection import Position
from reco.datasets.sources import clean
from reco.embedding import BATCH_BYTES, Embeddings, concatenate, embed_batch, image_bytes, prefetch
from reco.progress import Reporter

if TYPE_CHECKING:
    from reco.types import Progress

__all__ = ["PartInUseError", "Summary", "begun_parts", "begun_states", "embed_to_folder", "write_shard"]

_log = logging.getLogger("reco")

_TAG = "[embedding_folder.embed_to_folder]"
_BATCH = 1024  # samples
JSON_FIELD = {b"reco": b"json"}  # marks a field whose values are JSON


class PartInUseError(Error):
    """Another process does the same part at this moment."""


@dataclass(frozen=True)
class Identity:
    """What must be the same for work to be gone on with."""

    model: str  # fingerprint
    dtype: str
    source: str | None  # fingerprint
    shard_size: int
    processes: int
    format: int = 2  # 1: a metadata column's type was that of its values in the shard


@dataclass(frozen=True)
class Summary:
    """How far a process got.

    Attributes
    ----------
    shards, samples, rows, errors : int
        Shards finished; samples read, of which `rows` are embedded and `errors` could not be read.
    finished : bool
        The process's part of the collection is done.
    """

    shards: int = 0
    samples: int = 0
    rows: int = 0
    errors: int = 0
    finished: bool = False


@dataclass(frozen=True)
class _State:
    identity: Identity
    summary: Summary
    position: Position = (0, 0)
    last_key: str = ""


# --- files -----------------------------------------------------------------------------------------------------------
def _write(path: Path, content: bytes | memoryview) -> None:
    """All or nothing, and on disk when it returns."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".tmp")
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise Error(f"{_TAG} cannot write {path}: {error.strerror}") from error


def _array_file(rows: Any) -> memoryview:
    buffer = io.BytesIO()
    np.save(buffer, rows.astype(np.float16))
    return buffer.getbuffer()


def _column(name: str, values: list[Any]) -> tuple[Any, Any]:
    """Field and values. All are text: nobody knows what later shards hold, and a column has one type in all of them.

    Where some of the values are no text, they become JSON, and so does text that would be taken for JSON; the field is
    marked then, and what is read back is what was written.
    """
    import pyarrow as pa

    mixed = any(value is not None and not isinstance(value, str) for value in values)
    texts = [_as_text(value, mixed) for value in values]
    return pa.field(name, pa.string(), metadata=JSON_FIELD if mixed else None), pa.array(texts, pa.string())


def _as_python(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)


def _as_text(value: Any, mixed: bool) -> str | None:
    if value is None or (isinstance(value, str) and not (mixed and from_text(value) != value)):
        return None if value is None else clean(value)
    return clean(json.dumps(value, ensure_ascii=False, default=_as_python))


def from_text(text: str) -> Any:
    """What a text of a marked column stands for."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _metadata_file(pairs: Embeddings) -> memoryview:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {
        "key": pairs.keys,
        "image_path": [str(entry.get("image_path", "")) for entry in pairs.metadata],
        "caption": pairs.captions,
    }
    rest = dict.fromkeys(name for entry in pairs.metadata for name in entry if name not in columns)
    columns |= {name: [entry.get(name) for entry in pairs.metadata] for name in rest}
    fields, arrays = zip(*(_column(clean(name), values) for name, values in columns.items()), strict=True)
    buffer = io.BytesIO()
    pq.write_table(pa.table(list(arrays), pa.schema(fields)), buffer)
    return buffer.getbuffer()


def write_shard(folder: Path, number: int, pairs: Embeddings | None, faults: Sequence[Fault] = ()) -> None:
    """Write the files of one shard, durably.

    Parameters
    ----------
    folder : Path
    number : int
        Of the shard, in the names of its files.
    pairs : Embeddings, or None
    faults : list of Fault
        What could not be read.
    """
    if pairs:
        _write(folder / f"img_emb/img_emb_{number:05}.npy", _array_file(pairs.images))
        _write(folder / f"text_emb/text_emb_{number:05}.npy", _array_file(pairs.texts))
        _write(folder / f"metadata/metadata_{number:05}.parquet", _metadata_file(pairs))
    if faults:
        lines = "".join(json.dumps(asdict(fault), ensure_ascii=False) + "\n" for fault in faults)
        _write(folder / f"errors/errors_{number:05}.jsonl", lines.encode("utf-8", "backslashreplace"))


def _save(file: Path, state: _State) -> None:
    _write(file, json.dumps(asdict(state), indent=1).encode())


def _load(file: Path) -> _State:
    try:
        state = json.loads(file.read_bytes())
        identity, summary = Identity(**state["identity"]), Summary(**state["summary"])
        return _State(identity, summary, (int(state["position"][0]), int(state["position"][1])), str(state["last_key"]))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise Error(f"{_TAG} the state in {file} is damaged: {error}") from error


# --- work ------------------------------------------------------------------------------------------------------------
@dataclass
class _Batch:
    """Samples and faults that follow each other, within one shard."""

    items: list[tuple[Position, Sample | Fault]]
    ends_shard: bool


def _batches(items: Iterable[tuple[Position, Sample | Fault]], shard_size: int) -> Iterator[_Batch]:
    batch, size = _Batch([], False), 0
    for count, (position, item) in enumerate(items, 1):
        batch.items.append((position, item))
        size += image_bytes(item.image) if isinstance(item, Sample) else 0
        batch.ends_shard = count % shard_size == 0
        if batch.ends_shard or len(batch.items) == _BATCH or size >= BATCH_BYTES:
            yield batch
            batch, size = _Batch([], False), 0
    if batch.items:
        yield batch


class _Shard:
    """What is embedded but not written yet."""

    def __init__(self) -> None:
        self.parts: list[Embeddings] = []
        self.faults: list[Fault] = []
        self.samples = 0

    def add(self, clip: Clip, batch: _Batch, bar: Reporter) -> None:
        samples = [item for _, item in batch.items if isinstance(item, Sample)]
        pairs, faults = embed_batch(clip, samples, bar.update)
        self.parts += [replace(pairs, images=pairs.images.astype(np.float16), texts=pairs.texts.astype(np.float16))]
        unread = [item for _, item in batch.items if isinstance(item, Fault)]
        bar.update(len(unread))
        self.faults += unread + faults
        self.samples += len(batch.items)

    def pairs(self) -> Embeddings | None:
        parts = [part for part in self.parts if len(part)]
        return concatenate(parts) if parts else None


class _Job:
    """One process's part of the work in a folder."""

    def __init__(self, folder: Path, shard: tuple[int, int], identity: Identity) -> None:
        self.folder, self.shard = folder, shard
        self.file = folder / f"state/{shard[0]}-of-{shard[1]}.json"
        self.state = _State(identity, Summary())
        self._check(identity)
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._lock = self.file.with_suffix(".lock").open("w")
        except OSError as error:
            raise Error(f"{_TAG} cannot write to {folder}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise PartInUseError(f"{_TAG} another process writes part {shard[0]} of {shard[1]} of {folder}") from None
        if self.file.is_file():
            self.state = _load(self.file)
            _log.info("going on in %s behind %d samples", folder, self.state.summary.samples)
        else:
            _save(self.file, self.state)

    def _check(self, identity: Identity) -> None:
        """Refuse a folder that was begun with something else."""
        states = sorted(self.folder.glob("state/*.json"))
        if not states and self.folder.exists() and any(p.name != "state" for p in self.folder.iterdir()):
            raise Error(f"{_TAG} expected a new folder or one that was begun here, found other files in {self.folder}")
        for file in states:
            before, now = asdict(_load(file).identity), asdict(identity)
            for name, value in now.items():
                if before[name] != value:
                    raise Error(f"{_TAG} expected {name} {before[name]}, with which {file} was begun, found {value}")

    def check_key(self, key: str) -> None:
        """Refuse to go on in a collection that changed."""
        if key != self.state.last_key:
            raise Error(
                f"{_TAG} expected {self.state.last_key} to be the last sample before the next shard, found {key}: the "
                f"collection changed since {self.file} was written"
            )

    def commit(self, shard: _Shard, position: Position, last_key: str) -> None:
        """Write the shard; from here on it counts."""
        done, pairs = self.state.summary, shard.pairs()
        number = done.shards * self.shard[1] + self.shard[0] - 1
        write_shard(self.folder, number, pairs, shard.faults)
        if shard.faults:
            _log.warning("%d samples left out: %s", len(shard.faults), self.folder / f"errors/errors_{number:05}.jsonl")
        summary = Summary(
            done.shards + 1,
            done.samples + shard.samples,
            done.rows + (len(pairs) if pairs else 0),
            done.errors + len(shard.faults),
        )
        self.state = _State(self.state.identity, summary, position, last_key)
        _save(self.file, self.state)

    def finish(self) -> None:
        """Nothing is left to do."""
        self.state = replace(self.state, summary=replace(self.state.summary, finished=True))
        _save(self.file, self.state)

    def close(self) -> None:
        self._lock.close()


def _remaining(collection: Collection, job: _Job) -> Iterator[tuple[Position, Sample | Fault]]:
    """The items that no finished shard has. The one before them is read again, to see that it is still there."""
    if not job.state.summary.samples:
        return collection.read()
    source, number = job.state.position
    items = collection.read((source, number - 1))
    _, last = next(items, (None, None))
    job.check_key(last.key if last else "nothing")
    return items


def _run(clip: Clip, collection: Collection, job: _Job, bar: Reporter) -> None:
    shard = _Shard()
    position, key = job.state.position, job.state.last_key
    batches = prefetch(_batches(_remaining(collection, job), job.state.identity.shard_size))
    with contextlib.closing(batches):
        for batch in batches:
            shard.add(clip, batch, bar)
            bar.total = collection.total()
            position, key = batch.items[-1][0], batch.items[-1][1].key
            if batch.ends_shard:
                job.commit(shard, position, key)
                shard = _Shard()
    if shard.samples:
        job.commit(shard, position, key)
    job.finish()


def embed_to_folder(
    clip: Clip,
    sources: str | Path | Iterable[str | Path] | Iterable[Sample],
    out: str | Path,
    *,
    shard: tuple[int, int] = (1, 1),
    shard_size: int = 10_000,
    image_column: str | None = None,
    caption_column: str | None = None,
    progress: Progress = True,
) -> Summary:
    """Encode a collection of any size into a folder that clip-retrieval, autofaiss and Memory read.

    Interrupted at any moment, the same call goes on behind the last finished shard and ends with the same bytes, given
    the same batch size and number of threads. What cannot be read is left out and listed under errors/. While one
    batch is encoded the next is read; memory holds two batches and one shard's embeddings, however much there is.

    Parameters
    ----------
    clip : Clip
    sources : path, list of paths, or iterable of Sample
        See Collection. An iterable must give the same samples again where a call is to be gone on with.
    out : path
        A new folder, or one in which the same work was begun.
    shard : (i, n)
        Do the i-th of n parts, 1 <= i <= n; all n share the folder.
    shard_size : int
        Samples of an output shard.
    image_column, caption_column : str, optional
        Column names of tables; the usual ones are found.
    progress : bool or callable, optional
        Show a progress bar on standard error; or called with (pairs done, pairs in all), returning False stops.

    Returns
    -------
    Summary

    Raises
    ------
    Error
        When a source is missing or lacks a column, when `out` was begun with another model, source or size, or when
        another process does the same part.
    """
    if shard_size < 1:
        raise Error(f"{_TAG} shard_size must be at least 1, got {shard_size}")
    collection = Collection(sources, shard=shard, image_column=image_column, caption_column=caption_column)
    identity = Identity(clip.fingerprint, clip.dtype, collection.fingerprint, shard_size, shard[1])
    with contextlib.closing(_Job(Path(out), shard, identity)) as job:
        done = job.state.summary
        if not done.finished:
            with Reporter(progress, "embed", " pairs", collection.total(), done.samples) as bar:
                _run(clip, collection, job, bar)
        return job.state.summary


def begun_parts(folder: str | Path) -> int | None:
    """In how many parts the work in a folder was begun; None where there is none.

    Parameters
    ----------
    folder : str or Path
    """
    states = list(begun_states(folder).values())
    return states[0].identity.processes if states else None


def begun_states(folder: str | Path) -> dict[Path, _State]:
    """How far each process got that began its part of the work in a folder, by the file that says so.

    Parameters
    ----------
    folder : str or Path
    """
    return {file: _load(file) for file in sorted(Path(folder).glob("state/*.json"))}
