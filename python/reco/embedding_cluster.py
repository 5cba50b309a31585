# SPDX-License-Identifier: Apache-2.0
"""Embedding a collection on the workers of a Dask cluster. Needs `pip install reco-clip[dask]`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from reco._core import Clip, Error, set_threads
from reco.embedding_folder import PartInUseError, Summary, begun_parts, embed_to_folder
from reco.progress import Reporter

if TYPE_CHECKING:
    from reco.types import Progress

__all__ = ["embed_on_dask"]

_TAG = "embedding_cluster.embed_on_dask"
_PATIENCE = 300.0  # seconds for which a part may be another's: a task that was cancelled stops after a batch of images
_LONGEST_PAUSE = 2.0
_PARTS_A_WORKER = 4  # few enough to read a collection's index seldom, enough for all workers to end together

T = TypeVar("T")

# Of a worker process: one task at a time, one model.
worker = threading.Lock()
_models: dict[Any, Clip] = {}


def _model(path: str, options: dict[str, Any]) -> Clip:
    key = (path, *sorted(options.items()))
    if key not in _models:
        _models.clear()
        _models[key] = Clip.load(path, **options)
    return _models[key]


def worker_threads(wanted: int | None) -> int:
    """Those that were asked for, else those that Dask gave the worker: its processes are told to compute with one."""
    from distributed import get_worker

    return wanted or int(get_worker().state.nthreads)


def wanted_still() -> Callable[..., bool]:
    """What tells, within a task, whether it is wanted still: Dask cannot end one that runs, only forget it."""
    from distributed import get_worker

    here = get_worker()
    key = here.get_current_task()

    def answer(*_: object) -> bool:
        task = here.state.tasks.get(key)
        return task is not None and task.state != "cancelled"

    return answer


def patiently(work: Callable[[], T], wanted: Callable[..., bool]) -> T:
    """Do something as soon as no other process does the same part: a task of a call that was stopped, most likely."""
    end, pause = time.monotonic() + _PATIENCE, 0.1
    while True:
        try:
            return work()
        except PartInUseError:
            if time.monotonic() + pause >= end or not wanted():
                raise
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def embed_part(
    model: str,
    model_options: dict[str, Any],
    sources: list[str],
    out: str,
    part: tuple[int, int],
    threads: int | None,
    options: dict[str, Any],
) -> Summary:
    """What a worker does: one part of the collection, gone on with where a lost worker left it."""
    wanted = wanted_still()
    with worker:
        if not wanted():
            raise Error(f"[{_TAG}] part {part[0]} of {part[1]} was cancelled before it was begun")
        set_threads(worker_threads(threads))
        clip = _model(model, model_options)
        return patiently(lambda: embed_to_folder(clip, sources, out, shard=part, progress=wanted, **options), wanted)


def embed_on_dask(
    scheduler: Any,
    model: str | Path,
    sources: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    parts: int | None = None,
    threads: int | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    batch_size: int = 64,
    shard_size: int = 10_000,
    image_column: str | None = None,
    caption_column: str | None = None,
    progress: Progress = True,
) -> Summary:
    """embed_to_folder() on a cluster: each part of the collection is a task of a worker.

    Model, sources and `out` must have the same paths on every worker: a shared file system. A worker holds one model
    and does one part at a time. When a worker is lost, another goes on with its part behind the last finished shard;
    what is finished is never done again. Interrupted, the same call goes on, at once: tasks that are still at work then
    stop after a batch of images, and the new ones wait for that, five minutes at most.

    Parameters
    ----------
    scheduler : str or distributed.Client
        Address of the scheduler, such as "tcp://10.0.0.1:8786".
    model : path
    sources : path or list of paths
    out : path
        As in embed_to_folder; the same folder that `reco embed --shard i/n` processes would fill.
    parts : int, optional
        Tasks to make. As many as were begun with where `out` is there, else four a worker.
    threads : int, optional
        Of a worker; by default as many as Dask gave it (`dask worker --nthreads`).
    device, dtype, batch_size
        As in Clip.load.
    shard_size, image_column, caption_column
        As in embed_to_folder.
    progress : bool or callable, optional
        Show a progress bar on standard error; or called with (parts done, parts in all), returning False stops.

    Returns
    -------
    Summary
        Of all parts together.

    Raises
    ------
    Error
        When no scheduler answers, it has no workers, or a part fails as embed_to_folder would.
    """
    paths = [sources] if isinstance(sources, str | Path) else list(sources)
    fixed = (
        str(Path(model).resolve()),
        {"device": device, "dtype": dtype, "batch_size": batch_size},
        [str(Path(path).resolve()) for path in paths],
        str(Path(out).resolve()),
    )
    options = {"shard_size": shard_size, "image_column": image_column, "caption_column": caption_column}
    with connected(scheduler, _TAG) as client:
        count = parts or begun_parts(out) or _PARTS_A_WORKER * _workers(client, _TAG)
        tasks = ((*fixed, (i, count), threads, options) for i in range(1, count + 1))
        done: list[Summary] = list(on_workers(client, embed_part, tasks, count, "embed", " parts", progress, _TAG))
    return Summary(
        sum(part.shards for part in done),
        sum(part.samples for part in done),
        sum(part.rows for part in done),
        sum(part.errors for part in done),
        all(part.finished for part in done),
    )


def on_workers(
    client: Any,
    work: Callable[..., Any],
    tasks: Iterable[tuple[Any, ...]],
    total: int,
    description: str,
    unit: str,
    progress: Progress,
    tag: str,
) -> Iterator[Any]:
    """What `work` returns for each task's arguments, in the order in which they end; tasks that are left are cancelled.

    `total` counts those too that an earlier call did.
    """
    from distributed import as_completed

    _workers(client, tag)
    futures = [client.submit(work, *task, pure=False, retries=2) for task in tasks]
    try:
        with Reporter(progress, description, unit, total, total - len(futures)) as bar:
            bar.update(0)  # where it starts, which may be the end
            for _, result in as_completed(futures, with_results=True):  # type: ignore[no-untyped-call]
                yield result
                bar.update(1)
    finally:
        client.cancel(futures)


def connected(scheduler: Any, tag: str) -> Any:
    """A client, closed in the end if it is ours."""
    import contextlib

    try:
        from distributed import Client
    except ImportError:
        raise Error(f"[{tag}] distributed is not installed: pip install reco-clip[dask]") from None
    if isinstance(scheduler, Client):
        return contextlib.nullcontext(scheduler)
    try:
        return Client(scheduler, timeout=20)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise Error(f"[{tag}] no Dask scheduler answers at {scheduler}: {error}") from None


def _workers(client: Any, tag: str) -> int:
    workers = len(client.scheduler_info(n_workers=-1)["workers"])
    if not workers:
        raise Error(f"[{tag}] the scheduler has no workers")
    return workers
