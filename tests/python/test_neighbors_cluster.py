# SPDX-License-Identifier: Apache-2.0
"""Training's neighbour search as tasks of a Dask cluster, one of whose workers is killed half way."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reco
from reco.embedding import train_on
from reco.neighbors_cluster import find_neighbors_on_dask

distributed = pytest.importorskip("distributed")

DIM, PAIRS, K = 16, 240, 4
NAMES = ("image_rows", "image_scores", "text_rows", "text_scores")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "host": "127.0.0.1"}
    with distributed.LocalCluster(**options) as cluster:
        yield cluster


def unit(n: int, seed: int) -> np.ndarray:
    rows: np.ndarray = np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


@pytest.fixture
def pairs(tmp_path: Path) -> reco.Memory:
    """Some of them are removed: the rows of the rest have gaps."""
    pairs = reco.Memory.create(tmp_path / "pairs", DIM, "e")
    pairs.add(unit(PAIRS + 20, 0), unit(PAIRS + 20, 1), [f"k{i}" for i in range(PAIRS + 20)])
    pairs.remove([f"k{i}" for i in range(50, 70)])
    return pairs


def fill(memory: reco.MemoryBase) -> reco.MemoryBase:
    """With some of the pairs that are trained on, others, and one caption many times."""
    images, texts = (
        np.concatenate([unit(PAIRS, 0)[:90], unit(200, 2)]),
        np.concatenate([unit(PAIRS, 1)[:90], unit(200, 3)]),
    )
    texts[120:200] = texts[0]
    memory.add(images, texts, [f"k{i}" for i in range(290)])
    return memory


@pytest.fixture
def memory(tmp_path: Path) -> reco.MemoryBase:
    return fill(reco.Memory.create(tmp_path / "memory", DIM, "e"))


def config(neighbors: Path, k: int = K, search: Any = "uni-modal", **options: Any) -> reco.TrainingConfig:
    shape = reco.FusionConfig(method="transformer", dim=DIM, k=k, heads=2, search=search)
    return reco.TrainingConfig(fusion=shape, batch_size=64, epochs=1, neighbors=neighbors, **options)


def arrays(folder: Path) -> dict[str, np.ndarray]:
    return {name: np.load(folder / f"{name}.npy") for name in NAMES}


def run(cluster: Any, *arguments: Any, **options: Any) -> int:
    options.setdefault("progress", False)
    return find_neighbors_on_dask(cluster.scheduler_address, *arguments, threads=1, **options)


@pytest.mark.parametrize(
    "options", [{}, {"max_similarity": 0.8}, {"search": "cross-modal", "max_similarity": 0.8}], ids=str
)
def test_is_what_training_finds(cluster: Any, pairs: Any, memory: Any, tmp_path: Path, options: Any) -> None:
    here, there = config(tmp_path / "here", **options), config(tmp_path / "there", **options)
    fusion = train_on(pairs, memory, here, progress=False)
    assert run(cluster, pairs, memory, there, shard_size=70) == PAIRS
    for name in (*(f"{name}.npy" for name in NAMES), "neighbors.json"):
        ours, expected = ((tmp_path / place / name).read_bytes() for place in ("there", "here"))
        assert (json.loads(ours) == json.loads(expected)) if name.endswith("json") else ours == expected, name
    assert not (tmp_path / "there.parts").exists()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "there").glob("*.npy")}
    again = train_on(pairs, memory, there, progress=False)
    assert run(cluster, pairs, memory, there) == PAIRS  # nothing to do
    assert {path: path.stat().st_mtime_ns for path in before} == before  # nor for training
    for which in (fusion, again):
        which.save(tmp_path / "fusion.safetensors")
    found = memory.search(unit(5, 9), K)
    a, b = (f.fuse("image", unit(5, 9), found.scores, found.partners)["embeddings"] for f in (fusion, again))
    np.testing.assert_array_equal(a, b)


def test_a_killed_worker_is_made_up_for(cluster: Any, pairs: Any, memory: Any, tmp_path: Path) -> None:
    wanted, finished = config(tmp_path / "out"), {}
    with distributed.Client(cluster) as client:
        workers = client.run(os.getpid)

        def kill(done: int, total: int) -> None:
            if done == 3:
                finished.update({path: path.stat().st_mtime_ns for path in (tmp_path / "out.parts").glob("*.npz")})
                assert len(finished) < total == PAIRS
                os.kill(next(iter(workers.values())), signal.SIGKILL)
            if done == total:  # what was finished is as it was
                assert {path: path.stat().st_mtime_ns for path in finished} == finished

        assert run(cluster, pairs, memory, wanted, shard_size=1, progress=kill) == PAIRS
        assert len(finished) >= 3 and set(workers.values()) != set(client.run(os.getpid).values())
    run(cluster, pairs, memory, config(tmp_path / "whole"))
    for name, values in arrays(tmp_path / "whole").items():
        np.testing.assert_array_equal(values, arrays(tmp_path / "out")[name])


def test_an_interrupted_call_is_gone_on_with(cluster: Any, pairs: Any, memory: Any, tmp_path: Path) -> None:
    wanted, told = config(tmp_path / "out"), []
    with pytest.raises(reco.Error, match=r"\[interrupted\] stopped after 2 of 12"):
        run(cluster, pairs, memory, wanted, shard_size=20, progress=lambda done, total: done < 2)
    assert not list((tmp_path / "out").glob("*.npy"))
    with pytest.raises(reco.Error, match="begun for something else: expected shard_size 10, found 20"):
        run(cluster, pairs, memory, wanted, shard_size=10)
    with pytest.raises(reco.Error, match="expected k 3, found 4"):
        run(cluster, pairs, memory, config(tmp_path / "out", k=3))
    (tmp_path / "out.parts" / "000000000000.npz.killed").write_bytes(b"half of it")  # what a killed worker leaves
    run(cluster, pairs, memory, wanted, shard_size=20, progress=lambda *numbers: told.append(numbers))
    # What was at work when the call was stopped may have come to its end since.
    assert 2 <= told[0][0] <= 12 and told[-1] == (12, 12)
    run(cluster, pairs, memory, config(tmp_path / "whole"))
    for name, values in arrays(tmp_path / "whole").items():
        np.testing.assert_array_equal(values, arrays(tmp_path / "out")[name])
    assert not (tmp_path / "out.parts").exists()


def test_against_a_milvus_server(cluster: Any, pairs: Any, memory: Any, tmp_path: Path) -> None:
    pytest.importorskip("milvus_lite")
    from test_milvus_server import Server

    server = Server(tmp_path / "server")
    try:
        remote = reco.MilvusMemory.create(server.uri, "pairs", DIM, "e", timeout=60)
        fill(remote)
        tables = {}
        for name, store in (("local", memory), ("remote", remote)):
            run(cluster, pairs, store, config(tmp_path / name), shard_size=50)
            tables[name] = arrays(tmp_path / name)
        for side in ("image", "text"):
            ours, theirs = (tables[name] for name in ("local", "remote"))
            np.testing.assert_array_equal(ours[f"{side}_scores"], theirs[f"{side}_scores"])
            rows = (table[f"{side}_rows"].ravel() for table in (ours, theirs))
            keys = [store.keys(some) for store, some in zip((memory, remote), rows, strict=True)]
            assert keys[0] == keys[1]
        fusions = [
            train_on(pairs, store, config(tmp_path / name), progress=False)
            for name, store in (("local", memory), ("remote", remote))
        ]
    finally:
        server.kill()
    found = memory.search(unit(5, 9), K)
    a, b = (f.fuse("image", unit(5, 9), found.scores, found.partners)["embeddings"] for f in fusions)
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_what_does_not_fit(cluster: Any, pairs: Any, memory: Any, tmp_path: Path) -> None:
    shape = reco.FusionConfig(dim=DIM, k=K)
    with pytest.raises(reco.Error, match="must name a folder"):
        run(cluster, pairs, memory, reco.TrainingConfig(fusion=shape))
    with pytest.raises(reco.Error, match="shard_size must be at least 1"):
        run(cluster, pairs, memory, config(tmp_path / "out"), shard_size=0)
    with pytest.raises(reco.Error, match="no Dask scheduler"):
        find_neighbors_on_dask("nonsense://x", pairs, memory, config(tmp_path / "out"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(reco.Error, match="holds other files"):
        run(cluster, pairs, memory, config(tmp_path / "mine"))
