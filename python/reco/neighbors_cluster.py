# SPDX-License-Identifier: Apache-2.0
"""Training's neighbour search on the workers of a Dask cluster. Needs `pip install reco-clip[dask]`."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from reco._core import Error, Memory, MemoryBase, TrainingConfig, _live_rows, set_threads
from reco.embedding_cluster import connected, on_workers, wanted_still, worker, worker_threads

if TYPE_CHECKING:
    from reco.types import Modality, Progress

__all__ = ["find_neighbors_on_dask"]

_TAG = "neighbors_cluster.find_neighbors_on_dask"
_FORMAT = "reco.neighbors/1"  # src/training_neighbors.h describes it
_BLOCK = 4_096  # queries of one search
_SIDES: tuple[Modality, Modality] = ("image", "text")
_KINDS = {f"{side}_{what}": kind for side in _SIDES for what, kind in (("rows", "<i8"), ("scores", "<f4"))}

Arrays = dict[str, npt.NDArray[Any]]

# Of a worker process: the pairs, their row numbers and the memory that it searched last.
_stores: dict[bytes, tuple[Memory, npt.NDArray[np.int64], MemoryBase]] = {}


def find_neighbors_on_dask(
    scheduler: Any,
    pairs: Memory,
    memory: MemoryBase,
    config: TrainingConfig,
    *,
    shard_size: int = 65_536,
    threads: int | None = None,
    progress: Progress = True,
) -> int:
    """Look up, on a cluster, what train_on(pairs, memory, config) would look up before its first step.

    The neighbours come into the folder `config.neighbors`, where training finds them. Shards of the pairs are tasks;
    each leaves a file in a folder beside (its name and ".parts"), so that a lost worker's shards are done again,
    finished ones never twice. Interrupted, the same call goes on.

    Parameters
    ----------
    scheduler : str or distributed.Client
        Address of the scheduler, such as "tcp://10.0.0.1:8786".
    pairs : Memory
        What is trained on. All workers read it, and write beside `config.neighbors`, under the same paths: a shared
        file system.
    memory : MemoryBase
        What is searched: a Memory under the same path on all workers, a MilvusMemory on a server, or any other that can
        be pickled.
    config : TrainingConfig
        Its `neighbors`, `max_similarity`, and of its `fusion` k and search.
    shard_size : int
        Pairs a task.
    threads : int, optional
        Of a worker; by default as many as Dask gave it (`dask worker --nthreads`).
    progress : bool or callable, optional
        Show a progress bar on standard error; or called with (shards done, shards in all), returning False stops.

    Returns
    -------
    int
        How many pairs were looked up, now or earlier.

    Raises
    ------
    Error
        When no scheduler answers, it has no workers, a search fails, or the folder holds other neighbours.
    """
    if config.neighbors is None:
        raise Error(f"[{_TAG}] config.neighbors must name a folder")
    if shard_size < 1:
        raise Error(f"[{_TAG}] shard_size must be at least 1, got {shard_size}")
    out, total = config.neighbors.resolve(), len(pairs)
    parts = out.with_name(out.name + ".parts")
    facts = _identity(config, total, memory)
    if _begin(out, facts) and all((out / f"{name}.npy").exists() for name in _KINDS):
        return total
    _begin(parts, facts | {"shard_size": shard_size})
    stores = pickle.dumps((pairs, memory))
    firsts = range(0, total, shard_size)
    todo = [first for first in firsts if not _part(parts, first).exists()]
    with connected(scheduler, _TAG) as client:
        tasks = ((stores, str(parts), first, min(shard_size, total - first), facts, threads) for first in todo)
        for _ in on_workers(client, find_part, tasks, len(firsts), "neighbors", " shards", progress, _TAG):
            pass
    for name, kind in _KINDS.items():
        _join(out / f"{name}.npy", kind, (total, config.fusion.k), (_part(parts, first) for first in firsts))
    shutil.rmtree(parts, ignore_errors=True)  # a task of a call that was stopped may still be at work in there
    return total


def find_part(stores: bytes, parts: str, first: int, count: int, facts: dict[str, Any], threads: int | None) -> int:
    """What a worker does: the neighbours of both sides of some pairs."""
    path, wanted = _part(Path(parts), first), wanted_still()
    with worker:
        if path.exists():
            return count
        set_threads(worker_threads(threads))
        pairs, numbers, memory = _opened(stores)
        if len(numbers) != facts["pairs"] or len(memory) != facts["memory_rows"]:
            raise Error(f"[{_TAG}] the worker finds {len(numbers)} pairs and {memory} with {len(memory)}, not {facts}")
        found: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in _KINDS}
        for begin in range(first, first + count, _BLOCK):
            if not wanted():
                raise Error(f"[{_TAG}] the search for the pairs from {first} on was cancelled")
            rows = numbers[begin : min(begin + _BLOCK, first + count)]
            for name, values in _searched(pairs, rows, memory, facts).items():
                found[name].append(values)
        _write(path, {name: np.concatenate(values) for name, values in found.items()})
    return count


def _opened(stores: bytes) -> tuple[Memory, npt.NDArray[np.int64], MemoryBase]:
    if stores not in _stores:
        _stores.clear()
        pairs, memory = pickle.loads(stores)
        _stores[stores] = pairs, _live_rows(pairs), memory
    return _stores[stores]


def _searched(pairs: Memory, rows: npt.NDArray[np.int64], memory: MemoryBase, facts: dict[str, Any]) -> Arrays:
    """Both sides of a block, each pair's own key left out: as training searches."""
    own = [[key] for key in pairs.keys(rows)]
    arrays: Arrays = {}
    for side in _SIDES:
        across = facts["search"] == "cross-modal"
        # An identical caption is what a text looks for; only pictures can be suspiciously similar.
        most = facts["max_similarity"] if side == "image" and not across else None
        found = memory.search(
            pairs.embeddings(side, rows), facts["k"], _other(side) if across else side, own,
            max_similarity=most, partners=False,
        )  # fmt: skip
        arrays |= {f"{side}_rows": found.rows, f"{side}_scores": found.scores}
    return arrays


def _other(side: Modality) -> Modality:
    return "text" if side == "image" else "image"


def _identity(config: TrainingConfig, pairs: int, memory: MemoryBase) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "pairs": pairs,
        "k": config.fusion.k,
        "search": config.fusion.search,
        "max_similarity": config.max_similarity,
        "encoder": memory.encoder,
        "memory_rows": len(memory),
    }


def _begin(folder: Path, facts: dict[str, Any]) -> bool:
    """Make a folder, or check that the one that is there was begun for the same; whether it was."""
    path = folder / "neighbors.json"
    if path.exists():
        found = json.loads(path.read_bytes())
        for name, value in facts.items():
            if found.get(name) != value:
                raise Error(
                    f"[{_TAG}] {folder} was begun for something else: expected {name} {value}, "
                    f"found {found.get(name)}; remove it to search again"
                )
        return True
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise Error(f"[{_TAG}] {folder} holds other files, and no neighbors.json")
    _replace(path, json.dumps(facts).encode())
    return False


def _part(parts: Path, first: int) -> Path:
    return parts / f"{first:012}.npz"


def _write(path: Path, arrays: dict[str, Any]) -> None:
    """A part, whole or not at all: two workers may do the same one."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    with temporary.open("wb") as file:
        np.savez(file, **arrays)
        _settle(file)
    temporary.replace(path)


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f"{path.name}.partial")
    with temporary.open("wb") as file:
        file.write(data)
        _settle(file)
    temporary.replace(path)


def _settle(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _join(path: Path, kind: str, shape: tuple[int, int], parts: Iterator[Path]) -> None:
    """One side's rows or scores of all parts as one array."""
    temporary, written = path.with_name(f"{path.name}.partial"), 0
    with temporary.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
        for part in parts:
            with np.load(part) as arrays:
                values = np.ascontiguousarray(arrays[path.stem], kind)
            if values.shape[1:] != shape[1:]:
                raise Error(
                    f"[{_TAG}] {part} holds an array {values.shape} of {path.stem}, expected {shape[1]} columns"
                )
            file.write(values.tobytes())
            written += len(values)
        _settle(file)
    if written != shape[0]:
        raise Error(f"[{_TAG}] the parts hold {written} pairs, expected {shape[0]}")
    temporary.replace(path)
