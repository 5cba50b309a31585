# SPDX-License-Identifier: Apache-2.0
"""Every `progress` parameter: a bar where somebody watches, a function, or nothing."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import reco
from reco.embedding import Embeddings, train_on
from reco.embedding_cluster import embed_on_dask
from reco.embedding_folder import write_shard
from reco.exchange import export_memory, import_embeddings
from reco.milvus import MilvusMemory
from reco.progress import Reporter

ROOT = Path(__file__).parents[2]
ROWS = np.random.default_rng(0).standard_normal((300, 256)).astype(np.float32)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def clip() -> reco.Clip:
    return reco.Clip.load(ROOT / "examples/icons/clip")


@pytest.fixture
def memory(tmp_path: Path) -> reco.Memory:
    memory = reco.Memory.create(tmp_path / "memory.reco", 256)
    memory.add(ROWS, ROWS, keys=[str(i) for i in range(len(ROWS))])
    return memory


def train(memory: reco.Memory, progress: Any) -> None:
    pairs = Embeddings(ROWS, ROWS, [str(i) for i in range(300)], [""] * 300, [{}] * 300)
    config = reco.TrainingConfig(fusion=reco.FusionConfig(dim=256, layers=0, k=2), epochs=2, batch_size=64)
    train_on(pairs, memory, config, progress=progress)


def calls(clip: reco.Clip, memory: reco.Memory, folder: Path) -> dict[str, Any]:
    picture = np.zeros((9, 9, 3), np.uint8)
    model = reco.Model(clip, memory, reco.Fusion.mean(256))
    again = reco.Memory.create(folder / "again.reco", 256)
    return {
        "encode": lambda progress: clip.encode_images([picture] * 100, progress),
        "encode texts": lambda progress: clip.encode_texts(["a"] * 100, progress=progress),
        "encode model": lambda progress: model.encode_texts(["a"] * 100, progress=progress),
        "optimize": lambda progress: memory.optimize("HNSW4", progress=progress),
        "compare": lambda progress: memory.duplicates(0.9, progress=progress),
        "train": lambda progress: train(memory, progress),
        "export": lambda progress: export_memory(memory, folder / "out", progress=progress),
        "import": lambda progress: import_embeddings(again, folder / "out", progress=progress),
    }


def test_a_bar_where_somebody_watches(clip: Any, memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, call in calls(clip, memory, tmp_path).items():
        monkeypatch.setattr(sys, "stderr", Terminal())
        call(True)
        text = sys.stderr.getvalue()  # type: ignore[attr-defined]
        assert text.startswith("\r" + name.split()[0] + ":"), (name, text)
        assert text.endswith(" \r"), (name, text)  # the bar is gone


@pytest.mark.parametrize("progress", [False, None])
def test_nothing_else(clip: Any, memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, progress: Any) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    for call in calls(clip, memory, tmp_path).values():
        call(progress)
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]


def test_no_bar_in_a_log_file(clip: Any, memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    for call in calls(clip, memory, tmp_path).values():
        call(True)
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]


def test_a_bar_in_a_notebook(clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the process of a kernel, not where somebody has merely imported its packages."""
    for shell, watched in ((None, False), (SimpleNamespace(), False), (SimpleNamespace(kernel="one"), True)):
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda shell=shell: shell))
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        clip.encode_texts(["a"] * 100, progress=True)
        assert bool(sys.stderr.getvalue()) == watched  # type: ignore[attr-defined]


def test_a_function_is_told_and_may_stop(clip: Any, memory: Any, tmp_path: Path) -> None:
    for name, call in calls(clip, memory, tmp_path).items():
        told: list[tuple[int, int]] = []
        call(lambda done, total, told=told: told.append((done, total)))
        assert told and told[-1][0] == told[-1][1] > 0, (name, told)
        assert [done for done, _ in told] == sorted(done for done, _ in told), (name, told)
    with pytest.raises(reco.Error, match=r"\[interrupted\] encode_texts stopped after 64 of 100"):
        clip.encode_texts(["a"] * 100, progress=lambda done, total: False)
    with pytest.raises(reco.Error, match=r"\[interrupted\] stopped after"):
        export_memory(memory, tmp_path / "stopped", progress=lambda done, total: False)
    with pytest.raises(ZeroDivisionError):
        clip.encode_texts(["a"], progress=lambda done, total: 1 / 0)


@pytest.fixture
def milvus_import(tmp_path: Path) -> Any:
    """Three shards of ten pairs into a collection."""
    pytest.importorskip("milvus_lite")
    for number in range(3):
        keys = [f"{number}-{i}" for i in range(10)]
        write_shard(tmp_path / "embeddings", number, Embeddings(ROWS[:10], ROWS[10:20], keys, [""] * 10, [{}] * 10))
    memory = MilvusMemory.create(str(tmp_path / "pairs.db"), "pairs", 256, timeout=60)
    return lambda progress: memory.import_embeddings(tmp_path / "embeddings", progress=progress)


@pytest.fixture
def dask_embed(tmp_path: Path) -> Iterator[Any]:
    """Six pictures in three parts, on a cluster in this process."""
    distributed = pytest.importorskip("distributed")
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    for i in range(6):
        Image.new("RGB", (9, 9), (40 * i, 0, 0)).save(tmp_path / f"pictures/{i}.png")
        (tmp_path / f"pictures/{i}.txt").write_text(f"red {i}")
    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None, "host": "127.0.0.1"}
    with distributed.LocalCluster(processes=False, protocol="tcp", **options) as cluster:
        yield lambda progress: embed_on_dask(
            cluster.scheduler_address, ROOT / "examples/icons/clip", tmp_path / "pictures", tmp_path / "out",
            parts=3, threads=1, progress=progress,
        ).rows  # fmt: skip


@pytest.mark.parametrize(
    ("name", "description", "counts", "result", "again"),
    [("milvus_import", "import", [10, 20, 30], 20, 0), ("dask_embed", "embed", [0, 1, 2, 3], 6, 6)],
)
def test_what_goes_on_elsewhere(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, name: str, description: str, counts: list[int],
    result: int, again: int,
) -> None:  # fmt: skip
    """Stopped after its first shard or part, told of, shown, and quiet."""
    call = request.getfixturevalue(name)
    with pytest.raises(reco.Error, match=rf"\[interrupted\] stopped after {counts[0]} of "):
        call(lambda done, total: False)
    told: list[tuple[int, int]] = []
    assert call(lambda done, total: told.append((done, total))) == result  # goes on
    assert [done for done, _ in told] == counts and told[-1] == (counts[-1], counts[-1])
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert call(False) == call(None) == again
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]
    assert call(True) == again
    text = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert text.startswith(f"\r{description}:") and text.endswith(" \r")


def test_what_is_neither() -> None:
    with pytest.raises(TypeError, match="progress must be True, False, None or a function of .* got 'yes'"):
        Reporter("yes", "work", " items")  # type: ignore[arg-type]
