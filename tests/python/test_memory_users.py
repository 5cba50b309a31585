# SPDX-License-Identifier: Apache-2.0
"""Evaluation, explanation, training and the quickstart's tables give the same over every kind of memory."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import benchmark_folders as folders
import reco
from benchmark_folders import Made
from memory_kinds import ListMemory, unit
from reco.datasets import Sample, load_dataset, read_samples
from reco.embedding import Embeddings, embed, train_on
from reco.embedding_folder import write_shard
from reco.evaluation import Protocol, evaluate_dataset
from reco.exchange import import_embeddings
from reco.milvus import MilvusMemory

pytest_plugins = ("icon_fixtures",)
pytest.importorskip("milvus_lite")

ICONS = Path(__file__).parents[2] / "examples/icons"


@pytest.fixture(scope="module")
def embeddings(clip: reco.Clip, drawn: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embeddings")
    write_shard(folder, 0, embed(clip, drawn, progress=False))
    return folder


@pytest.fixture(scope="module")
def memories(clip: reco.Clip, embeddings: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, reco.MemoryBase]:
    """The same pairs in each kind."""
    place = tmp_path_factory.mktemp("memories")
    folder = reco.Memory.create(place / "folder", clip.dim, clip.fingerprint)
    import_embeddings(folder, embeddings, progress=False)
    milvus = MilvusMemory.create(str(place / "pairs.db"), "pairs", clip.dim, clip.fingerprint)
    milvus.import_embeddings(embeddings, progress=False)
    rows, one = [folder.get(key) for key in folder], ListMemory(clip.dim, clip.fingerprint)
    one.add(
        np.stack([row.image_embedding for row in rows]),
        np.stack([row.text_embedding for row in rows]),
        [row.key for row in rows],
        [row.caption for row in rows],
        [row.metadata for row in rows],
    )
    return {"folder": folder, "list": one, "milvus": milvus}


def metric_fusion(memory: reco.MemoryBase) -> reco.Fusion:
    """One that compares images its own way, learned from the memory's drawings of each caption."""
    assert isinstance(memory, reco.Memory)
    concepts = np.unique([memory.get(key).caption for key in memory], return_inverse=True)[1]
    shape = reco.FusionConfig(dim=memory.dim, layers=0, metric=True)
    run = reco.TrainingConfig(fusion=shape, epochs=2, batch_size=64)
    return train_on(memory, memory, run, concepts=concepts.tolist(), progress=False)


@pytest.mark.parametrize(("name", "metric"), [("folder", False), ("folder", True), ("coco", False)])
def test_evaluation(
    memories: dict[str, reco.MemoryBase], clip: reco.Clip, made: Made, tmp_path: Path, name: str, metric: bool
) -> None:
    """Metrics, what was looked up, and the report of test images that the memory has seen."""
    {"folder": folders.class_folders, "coco": folders.coco}[name](tmp_path, *made)
    data = load_dataset(name, tmp_path)
    fusion = metric_fusion(memories["folder"]) if metric else reco.Fusion.mean(clip.dim)
    results = {
        kind: evaluate_dataset(reco.Model(clip, memory, fusion), data, Protocol(max_similarity=0.9), progress=False)
        for kind, memory in memories.items()
    }
    want = results.pop("folder")
    assert want.leaks.images > 0 and want.reco.metrics != want.clip.metrics
    for kind, result in results.items():
        assert result.clip == want.clip and result.reco.metrics == want.reco.metrics, kind
        assert (result.leaks.images, result.leaks.pairs, result.leaks.keys) == (
            want.leaks.images,
            want.leaks.pairs,
            want.leaks.keys,
        )
        assert [e[:2] for e in result.leaks.examples] == [e[:2] for e in want.leaks.examples]
        assert [case.neighbors for case in result.cases] == [case.neighbors for case in want.cases]
        assert result.setup["memory"]["rows"] == want.setup["memory"]["rows"]


def test_explanation(memories: dict[str, reco.MemoryBase], clip: reco.Clip, drawn: list[Sample]) -> None:
    model = {kind: reco.Model(clip, memory, reco.Fusion.mean(clip.dim)) for kind, memory in memories.items()}
    shown = {kind: one.explain(drawn[3].image, classes=["a cat", "a dog"]).to_dict() for kind, one in model.items()}
    for kind in ("list", "milvus"):
        assert [n["key"] for n in shown[kind]["neighbors"]] == [n["key"] for n in shown["folder"]["neighbors"]]
        assert [n["caption"] for n in shown[kind]["neighbors"]] == [n["caption"] for n in shown["folder"]["neighbors"]]
        assert len(shown[kind]["neighbors"]) == 10


class Counted:
    """How many queries each search of a memory had."""

    def __init__(self, memory: reco.MemoryBase, monkeypatch: pytest.MonkeyPatch) -> None:
        self.queries: list[int] = []
        search = type(memory).search

        def counted(one: Any, queries: Any, *arguments: Any, **options: Any) -> Any:
            self.queries.append(len(queries))
            return search(one, queries, *arguments, **options)

        monkeypatch.setattr(type(memory), "search", counted)


def make_list(dim: int, place: Path) -> reco.MemoryBase:
    return ListMemory(dim)


def make_milvus(dim: int, place: Path) -> reco.MemoryBase:
    return MilvusMemory.create(str(place / "pairs.db"), "pairs", dim)


@pytest.mark.parametrize("make", [make_list, make_milvus])
def test_training_from_shards_on_disk(
    make: Callable[[int, Path], reco.MemoryBase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pairs stay in their shards, the memory is asked batch by batch, and the fusion is that of a local memory."""
    dim, n = 8, 4300  # more than the 4,096 that are searched at a time
    generator = np.random.default_rng(0)
    images = unit(generator.standard_normal((n, dim)))
    texts = unit(images + 0.3 * generator.standard_normal((n, dim)))
    keys = [str(i) for i in range(n)]
    for i, rows in enumerate(np.array_split(np.arange(n), 3)):
        some = Embeddings(images[rows], texts[rows], [keys[r] for r in rows], [""] * len(rows), [{}] * len(rows))
        write_shard(tmp_path / "embeddings", i, some)
    pairs = reco.Memory.create(tmp_path / "pairs", dim)
    import_embeddings(pairs, tmp_path / "embeddings", in_place=True, progress=False)
    local, other = reco.Memory.create(tmp_path / "local", dim), make(dim, tmp_path)
    for memory in (local, other):
        memory.add(images[:300], texts[:300], keys[:300])
    shape = reco.FusionConfig(method="gated", dim=dim, k=4, layers=0)
    config = reco.TrainingConfig(fusion=shape, batch_size=1024, epochs=1)
    fusions = [train_on(pairs, local, config, progress=False)]
    counted = Counted(other, monkeypatch)
    fusions.append(train_on(pairs, other, config, progress=False))
    assert counted.queries[:4] == [4096, 204, 4096, 204]  # both sides, and never all at once
    found = local.search(images[:50], 4)
    a, b = (f.fuse("image", images[:50], found.scores, found.partners, found.rows)["embeddings"] for f in fusions)
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_the_quickstarts_evaluation(
    clip: reco.Clip, memories: dict[str, reco.MemoryBase], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tasks on a part of its queries; `python examples/icons/two_memories.py` does all of it."""
    monkeypatch.syspath_prepend(ICONS)
    two, tasks = importlib.import_module("two_memories"), importlib.import_module("tasks")
    samples = list(read_samples(*tasks.shards("queries")))[::12]
    queries = tasks.Queries.load(clip, embed(clip, samples, progress=False))
    fusion = reco.Fusion.create(reco.FusionConfig(method="gated", dim=clip.dim, layers=0, k=20), seed=1)
    records, differences = two.compare(clip, memories, fusion, queries, 20)
    assert len(differences) > 500 and differences.max() <= 1e-6
    want = [replace(r, model="") for r in records if r.model == "folder"]
    assert len(want) > 10 and any(r.metrics["acc1"] > 0.05 for r in want if "acc1" in r.metrics)
    for kind in ("list", "milvus"):
        assert [replace(r, model="") for r in records if r.model == kind] == want


def test_the_quickstarts_pairs_are_copied(
    clip: reco.Clip, memories: dict[str, reco.MemoryBase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ICONS)
    two = importlib.import_module("two_memories")
    other = two.copied(memories["folder"], str(tmp_path / "pairs.db"), "quickstart")
    queries = unit(np.random.default_rng(0).standard_normal((40, clip.dim)))
    a, b = (memory.search(queries, 10) for memory in (memories["folder"], other))
    assert a.keys == b.keys and a.captions == b.captions and a.metadata == b.metadata
    np.testing.assert_array_equal(a.partners, b.partners)
