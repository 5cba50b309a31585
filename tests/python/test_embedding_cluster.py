# SPDX-License-Identifier: Apache-2.0
"""`reco embed --dask`: a cluster of processes here, one of which is killed half way."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import reco
from reco.cli import main
from reco.datasets import read_samples
from reco.embedding_cluster import embed_on_dask, embed_part, worker_threads
from reco.embedding_folder import Summary, embed_to_folder
from reco.embedding_source import read_folder

distributed = pytest.importorskip("distributed")

ROOT = Path(__file__).parents[2]
CLIP = ROOT / "examples/icons/clip"
SHARD = sorted((ROOT / "examples/icons/data").glob("queries-*"))[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i, sample in enumerate(list(read_samples(SHARD))[:120]):
        (folder / f"{i:03}.webp").write_bytes(sample.image)
        (folder / f"{i:03}.txt").write_text(sample.caption)
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        yield cluster


def files(out: Path) -> dict[str, bytes]:
    found = sorted(p for p in out.rglob("*") if p.is_file() and p.suffix != ".lock")
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in found}


def differing(out: Path, expected: dict[str, bytes]) -> list[str]:
    """The names of the files that are not as expected."""
    found = files(out)
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


def one_by_one(folder: Path, out: Path, parts: int, shard_size: int) -> dict[str, bytes]:
    """What n calls of this process write."""
    reco.set_threads(1)
    clip = reco.Clip.load(CLIP)
    for i in range(1, parts + 1):
        embed_to_folder(clip, folder, out, shard=(i, parts), shard_size=shard_size, progress=False)
    return files(out)


def finished(out: Path, parts: int) -> list[Path]:
    """The files of the shards that count."""
    numbers = []
    for i in range(1, parts + 1):
        state = out / f"state/{i}-of-{parts}.json"
        done = json.loads(state.read_bytes())["summary"]["shards"] if state.exists() else 0
        numbers += [k * parts + i - 1 for k in range(done)]
    return [out / f"img_emb/img_emb_{number:05}.npy" for number in numbers]


def run(cluster: Any, folder: Path, out: Path, **options: Any) -> Summary:
    options.setdefault("progress", False)
    return embed_on_dask(cluster.scheduler_address, CLIP, folder, out, threads=1, **options)


def test_equals_one_process(cluster: Any, folder: Path, tmp_path: Path) -> None:
    assert run(cluster, folder, tmp_path / "out", parts=5, shard_size=7) == Summary(20, 120, 120, 0, True)
    assert differing(tmp_path / "out", one_by_one(folder, tmp_path / "expected", 5, 7)) == []
    pairs = read_folder(tmp_path / "out")
    assert sorted(pairs.keys) == [f"{i:03}" for i in range(120)]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.npy")}
    assert run(cluster, folder, tmp_path / "out", shard_size=7).rows == 120  # five parts again, and nothing to do
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.npy")} == before


def test_a_killed_worker_is_made_up_for(cluster: Any, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary: list[Summary] = []
    work = threading.Thread(target=lambda: summary.append(run(cluster, folder, out, parts=2, shard_size=2)))
    with distributed.Client(cluster) as client:
        workers = client.run(os.getpid)
        work.start()
        written: list[Path] = []
        for _ in range(6000):
            written = finished(out, 2)
            if len(written) >= 4:
                break
            time.sleep(0.01)
        assert 4 <= len(written) < 60, "the worker was to be killed half way"
        whole = {path: path.stat().st_mtime_ns for path in written}
        os.kill(next(iter(workers.values())), signal.SIGKILL)
        work.join(timeout=120)
        assert summary == [Summary(60, 120, 120, 0, True)]
        assert set(workers.values()) != set(client.run(os.getpid).values())
    # What was finished is as it was: no shard was written twice.
    assert {path: path.stat().st_mtime_ns for path in written} == whole
    assert differing(out, one_by_one(folder, tmp_path / "expected", 2, 2)) == []


def test_interrupted_and_called_again_at_once(cluster: Any, folder: Path, tmp_path: Path) -> None:
    """Tasks of the first call are at work while those of the second begin."""
    out = tmp_path / "out"
    run(cluster, folder, tmp_path / "warm", parts=2)  # the workers have the model by now

    def stop(done: int, total: int) -> bool:
        while not finished(out, 2):
            time.sleep(0.01)
        return False

    for _ in range(2):
        with pytest.raises(reco.Error, match="stopped after 0 of 2"):
            run(cluster, folder, out, parts=2, shard_size=1, progress=stop)
    assert not all(json.loads(p.read_bytes())["summary"]["finished"] for p in (out / "state").glob("*.json"))
    assert run(cluster, folder, out, parts=2, shard_size=1) == Summary(120, 120, 120, 0, True)
    assert differing(out, one_by_one(folder, tmp_path / "expected", 2, 1)) == []


def test_a_task_that_nobody_wants_stops(cluster: Any, folder: Path, tmp_path: Path) -> None:
    """Within a batch or two, not at the end of its part, which another worker goes on with."""
    out = tmp_path / "out"
    arguments: tuple[Any, ...] = (str(CLIP), {}, [str(folder)], str(out), (1, 1), 1, {"shard_size": 1})
    with distributed.Client(cluster) as client:
        first, second = client.scheduler_info()["workers"]
        future = client.submit(embed_part, *arguments, pure=False, workers=[first])
        while not finished(out, 1):
            time.sleep(0.01)
        client.cancel([future])
        again = client.submit(embed_part, *arguments, pure=False, workers=[second])
        marks: list[int] = []
        while not again.done():
            marks.append(len(finished(out, 1)))
            with (out / "state/1-of-1.lock").open() as part, contextlib.suppress(OSError):
                fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody has it: the first stopped, the second waits
                break
        assert 0 < marks[-1] < 120
        assert again.result() == Summary(120, 120, 120, 0, True)
    assert differing(out, one_by_one(folder, tmp_path / "expected", 1, 1)) == []


@pytest.mark.parametrize("released", [True, False])
def test_a_part_that_another_process_does(folder: Path, tmp_path: Path, released: bool, monkeypatch: Any) -> None:
    """It is waited for, not for ever."""
    monkeypatch.setattr("reco.embedding_cluster._PATIENCE", 60.0 if released else 1.0)
    (tmp_path / "out/state").mkdir(parents=True)
    held = (tmp_path / "out/state/2-of-2.lock").open("w")
    fcntl.flock(held, fcntl.LOCK_EX)
    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None, "host": "127.0.0.1"}
    with distributed.LocalCluster(processes=False, protocol="tcp", **options) as here:
        if released:
            threading.Timer(1.5, held.close).start()
            assert run(here, folder, tmp_path / "out", parts=2) == Summary(2, 120, 120, 0, True)
        else:
            with pytest.raises(reco.Error, match="another process writes part 2 of 2"):
                run(here, folder, tmp_path / "out", parts=2)
            held.close()


def test_bytes_depend_on_the_threads_that_were_set_last_alone() -> None:
    """OpenMP and MKL each keep a number of threads, and a fusion or LibTorch itself may have set MKL's."""
    clip = reco.Clip.load(CLIP)
    captions = [sample.caption for sample in list(read_samples(SHARD))[:60]]

    def encoded() -> Any:
        return np.concatenate([clip.encode_texts(captions[i : i + 2]) for i in range(0, 60, 2)])

    reco.set_threads(1)
    expected = encoded()
    reco.set_threads(2)
    rows, none = np.ones((1, clip.dim), np.float32), np.zeros((1, 10), np.float32)
    reco.Fusion.mean(clip.dim).fuse("image", rows, none, np.zeros((1, 10, clip.dim), np.float32))
    two = encoded()
    reco.set_threads(1)
    np.testing.assert_array_equal(encoded(), expected)
    reco.set_threads(2)
    np.testing.assert_array_equal(encoded(), two)


def test_a_worker_computes_with_the_threads_that_it_was_given(cluster: Any) -> None:
    with distributed.Client(cluster) as client:
        assert client.submit(worker_threads, None).result() == 2  # as the cluster of these tests was made
        assert client.submit(worker_threads, 5).result() == 5


def test_command(cluster: Any, folder: Path, tmp_path: Path) -> None:
    where = ["embed", str(folder), "--model", str(CLIP), "--out", str(tmp_path / "out"), "--quiet", "--json"]
    dask = ["--dask", cluster.scheduler_address]
    result = CliRunner().invoke(main, [*where, *dask])
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert shown["rows"] == 120 and shown["finished"] and len(list((tmp_path / "out/state").glob("*.json"))) == 8
    clip = reco.Clip.load(CLIP)
    pairs = read_folder(tmp_path / "out")
    expected = clip.encode_texts(pairs.captions)
    assert np.abs(pairs.texts.astype(np.float32) - expected).max() < 1e-3
    result = CliRunner().invoke(main, [*where, *dask, "--shard", "1/2"])
    assert result.exit_code == 2 and "--shard" in result.output


def test_errors(cluster: Any, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(reco.Error, match="missing"):
        run(cluster, tmp_path / "missing", tmp_path / "out", parts=2)
    run(cluster, folder, tmp_path / "out", parts=2, shard_size=50)
    with pytest.raises(reco.Error, match="shard_size 50"):
        run(cluster, folder, tmp_path / "out", shard_size=60)
    with pytest.raises(reco.Error, match="no Dask scheduler"):
        embed_on_dask("nonsense://x", CLIP, folder, tmp_path / "other")
