# SPDX-License-Identifier: Apache-2.0
"""Test images that the memory holds: found, left out and counted, whatever kind of memory it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import benchmark_folders as folders
import reco
from benchmark_folders import Made
from memory_kinds import ListMemory
from reco.datasets import Classification, load_dataset
from reco.datasets.benchmark import image_bytes
from reco.evaluation import Protocol, evaluate_dataset, find_leaks
from reco.evaluation.setup import describe
from reco.milvus import MilvusMemory

pytest_plugins = ("icon_fixtures",)


@pytest.fixture(params=["folder", "list", "milvus"])
def memory(request: pytest.FixtureRequest, tmp_path: Path, clip: reco.Clip) -> reco.MemoryBase:
    if request.param == "milvus":
        pytest.importorskip("milvus_lite")
        return MilvusMemory.create(str(tmp_path / "pairs.db"), "pairs", clip.dim, clip.fingerprint)
    if request.param == "list":
        return ListMemory(clip.dim, clip.fingerprint)
    return reco.Memory.create(tmp_path / "leaky.reco", clip.dim, clip.fingerprint)


def test_leaks_are_found_left_out_and_counted(
    tmp_path: Path, clip: reco.Clip, memory: reco.MemoryBase, made: Made
) -> None:
    """A memory with three of the test images, one of them twice: with them nothing else would be found."""
    folders.class_folders(tmp_path / "data", *made)
    data = load_dataset("folder", tmp_path / "data")
    assert isinstance(data, Classification)
    embeddings = clip.encode_images([image_bytes(image) for image in data.images])
    others = clip.encode_texts(["x", "y", "z", "w"])
    memory.add(embeddings[[3, 7, 11, 3]], others, ["a", "b", "c", "again"], ["wrong"] * 4)
    far = [f"far {i}" for i in range(5)]
    memory.add(-embeddings[:5], others[[0] * 5], far)
    leaks = find_leaks(memory, embeddings, data.images, 0.9999)
    assert leaks.keys == ["a", "again", "b", "c"]
    assert (leaks.same, leaks.pairs) == (leaks.images, 4)
    assert {key for _, key, _ in leaks.examples} == set(leaks.keys)
    assert dict((key, image) for image, key, _ in leaks.examples)["b"] == str(data.images[7])
    assert find_leaks(memory, embeddings, data.images, None).keys == []
    leaky = reco.Model(clip, memory, reco.Fusion.mean(clip.dim), k=3)
    result = evaluate_dataset(leaky, data, Protocol(max_similarity=0.9999), progress=False)
    want = leaky.refine_images(embeddings, exclude_keys=leaks.keys)
    prompts = clip.encode_texts(reco.prompts(data.classnames, ["a photo of a {}"]))
    texts = leaky.refine_texts(prompts, exclude_keys=leaks.keys)
    assert result.reco.metrics == pytest.approx(reco.classify(want, texts, data.labels)[0], abs=1e-12)
    assert all(key in far for case in result.cases for key, *_ in case.neighbors)
    assert result.leaks.keys == leaks.keys
    record = result.record("reco")["reco"]
    assert (record["leaks"]["pairs"], record["setup"]["memory"]["rows"]) == (4, 9)


def test_a_store_is_known_by_what_it_answers(clip: reco.Clip, memory: reco.MemoryBase) -> None:
    """Names that were refined over a memory must not be taken for those of another one."""
    rows = clip.encode_texts([f"thing {i}" for i in range(12)])
    model = reco.Model(clip, memory, reco.Fusion.mean(clip.dim))
    memory.add(rows[:6], rows[6:], [f"k{i}" for i in range(6)])
    first, again = (describe(model, Protocol())["memory"] for _ in range(2))
    assert first == again
    memory.remove(["k0"])
    memory.add(rows[:1], rows[3:4], ["k0"])
    assert describe(model, Protocol())["memory"]["state"] != first["state"]


@pytest.mark.parametrize("copies", [64, 300, 5000])
def test_more_duplicates_than_one_search_finds(clip: reco.Clip, tmp_path: Path, copies: int) -> None:
    """A search gives at most 4,096."""
    row, other = clip.encode_texts(["a"]), -clip.encode_texts(["a"])
    with reco.Memory.create(tmp_path / "m", clip.dim) as memory:
        memory.add(np.repeat(row, copies, 0), np.repeat(row, copies, 0), [str(i) for i in range(copies)])
        memory.add(np.repeat(other, 100, 0), np.repeat(row, 100, 0), [f"far {i}" for i in range(100)])
        leaks = find_leaks(memory, row, [b""], 0.96)
    assert (leaks.pairs, leaks.images, leaks.same) == (copies, 1, 1)
