# SPDX-License-Identifier: Apache-2.0
"""What every kind of memory must do: a folder, a class written in Python, a Milvus collection."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reco
from memory_kinds import ListMemory, unit
from reco.milvus import MilvusMemory
from test_fusion import randomised

DIM = 16
Make = Callable[[str], reco.MemoryBase]


@pytest.fixture(params=["folder", "list", "milvus"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    def folder(encoder: str) -> reco.MemoryBase:
        return reco.Memory.create(tmp_path / f"memory{encoder}", DIM, encoder)

    def milvus(encoder: str) -> reco.MemoryBase:
        return MilvusMemory.create(str(tmp_path / "pairs.db"), f"memory{encoder}", DIM, encoder)

    if request.param == "milvus":
        pytest.importorskip("milvus_lite")
    return {"folder": folder, "list": lambda encoder: ListMemory(DIM, encoder), "milvus": milvus}[request.param]


def pairs(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    rows = unit(generator.standard_normal((2 * n, DIM))).astype(np.float16).astype(np.float32)
    return rows[:n], rows[n:]


def filled(make: Make, n: int = 60) -> tuple[reco.MemoryBase, np.ndarray, np.ndarray]:
    memory = make("")
    images, texts = pairs(n, 0)
    names = [f"k{i}" for i in range(n)]
    memory.add(images, texts, names, [f"caption {i}" for i in range(n)], [{"number": i} for i in range(n)])
    return memory, images, texts


def test_holds_what_was_added(make: Make) -> None:
    memory, images, texts = filled(make)
    assert len(memory) == 60 and memory.dim == DIM and memory.encoder == "" and make("e").encoder == "e"
    row = memory.get("k7")
    assert (row.key, row.caption, row.metadata) == ("k7", "caption 7", {"number": 7})
    np.testing.assert_allclose(row.image_embedding, images[7], atol=1e-3)
    np.testing.assert_allclose(row.text_embedding, texts[7], atol=1e-3)
    with pytest.raises(reco.Error, match="k7"):
        memory.add(images[:1], texts[:1], ["k7"])
    with pytest.raises(reco.Error, match="missing"):
        memory.get("missing")


def test_search_equals_numpy_and_brings_partners(make: Make) -> None:
    memory, images, texts = filled(make)
    queries, _ = pairs(9, 1)
    for side, own, other in (("image", images, texts), ("text", texts, images)):
        found = memory.search(queries, 5, side)
        expected = np.argsort(-(queries @ own.T), axis=1)[:, :5]
        assert found.keys == [[f"k{i}" for i in row] for row in expected]
        assert found.captions[2][1] == f"caption {expected[2, 1]}"
        assert found.metadata[0][4] == {"number": expected[0, 4]}
        np.testing.assert_allclose(found.scores, np.take_along_axis(queries @ own.T, expected, 1), atol=2e-3)
        np.testing.assert_allclose(found.partners, other[expected], atol=1e-3)
        rows = found.rows[3]
        assert memory.keys(rows) == found.keys[3] and memory.captions(rows) == found.captions[3]
        assert memory.metadata([*rows, -1]) == [*found.metadata[3], None]
        np.testing.assert_allclose(memory.embeddings("text", rows), texts[expected[3]], atol=1e-3)
        assert not memory.embeddings("image", [-1]).any() and memory.keys([-1]) == [""]
        assert memory.search(queries, 5, side, partners=False).partners is None


def test_search_leaves_out(make: Make) -> None:
    memory, images, _ = filled(make)
    assert memory.search(images[:2], 1, exclude_keys=["k0"]).keys[1] == ["k1"]
    assert all(key != "k0" for key in memory.search(images[:2], 5, exclude_keys=["k0"]).keys[0])
    assert memory.search(images[:2], 1, exclude_keys=[["k1"], ["k1"]]).keys[0] == ["k0"]
    assert memory.search(images[:3], 1, max_similarity=0.99).scores.max() <= 0.99


def test_removed_pairs_are_never_found(make: Make) -> None:
    memory, images, texts = filled(make)
    memory.remove(["k0", "k5"])
    assert len(memory) == 58
    found = memory.search(images, 60)
    assert not {"k0", "k5"} & {key for keys in found.keys for key in keys}
    assert (found.rows[:, 58:] == -1).all() and not found.scores[:, 58:].any() and not found.partners[:, 58:].any()
    memory.add(texts[:1], images[:1], ["k0"], ["new"])
    assert memory.get("k0").caption == "new" and memory.search(texts[:1], 1).keys == [["k0"]]
    with pytest.raises(reco.Error, match="k5"):
        memory.remove(["k5"])


ROWS = np.ones((3, DIM), np.float32)
HOLED = np.concatenate([ROWS[:2], np.zeros((1, DIM), np.float32)])
BROKEN = np.concatenate([ROWS[:2], np.full((1, DIM), np.nan, np.float32)])
NAMES = ["a", "b", "c"]


@pytest.mark.parametrize(
    "arguments",
    [
        (ROWS[:2], ROWS, NAMES), (ROWS, ROWS[:2], NAMES), (ROWS[:, :5], ROWS, NAMES), (ROWS, ROWS[:, :5], NAMES),
        (HOLED, ROWS, NAMES), (ROWS, HOLED, NAMES), (BROKEN, ROWS, NAMES), (ROWS, BROKEN, NAMES),
        (ROWS, ROWS, ["a", "b", "a"]), (ROWS, ROWS, ["a", "", "c"]), (ROWS, ROWS, ["a", "b", "k7"]),
        (ROWS, ROWS, NAMES, ["one"]), (ROWS, ROWS, NAMES, None, [{}]),
    ],
)  # fmt: skip
def test_an_add_that_does_not_fit_adds_nothing(make: Make, arguments: Any) -> None:
    memory, images, _ = filled(make)
    with pytest.raises(reco.Error):
        memory.add(*arguments)
    assert len(memory) == 60 and memory.search(images, 1).keys == [[f"k{i}"] for i in range(60)]
    for key in NAMES:
        with pytest.raises(reco.Error, match=key):
            memory.get(key)
    memory.add(ROWS, ROWS, NAMES)  # none of the keys was taken
    assert len(memory) == 63


def test_a_remove_that_does_not_fit_removes_nothing(make: Make) -> None:
    memory, images, _ = filled(make)
    for keys in (["k0", "missing"], ["missing", "k0"]):
        with pytest.raises(reco.Error, match="missing"):
            memory.remove(keys)
    assert len(memory) == 60 and memory.search(images[:1], 1).keys == [["k0"]]


@pytest.mark.parametrize(
    ("queries", "options"),
    [
        (ROWS, {"k": 0}), (ROWS, {"k": -1}), (ROWS[:, :5], {}), (HOLED, {}), (BROKEN, {}),
        (ROWS, {"modality": "sound"}), (ROWS, {"exclude_keys": [["k1"]] * 2}),
        (ROWS, {"where": "this ( is no condition"}),
    ],
)  # fmt: skip
def test_a_search_that_does_not_fit(make: Make, queries: Any, options: Any) -> None:
    memory, images, _ = filled(make)
    with pytest.raises((reco.Error, ValueError) if "modality" in options else reco.Error):
        memory.search(queries, **options)
    assert memory.search(images[:1], 1).keys == [["k0"]]


def test_an_option_works_or_is_refused(make: Make) -> None:
    """Never ignored: what an implementation lacks is an Error."""
    memory, images, _ = filled(make)
    where = {reco.Memory: "json_extract(metadata, '$.number') < 3", MilvusMemory: 'metadata["number"] < 3'}
    wanted: dict[str, tuple[dict[str, Any], set[str]]] = {
        "only_keys": ({"only_keys": ["k1", "k2", "unknown"]}, {"k1", "k2"}),
        "none of the keys": ({"only_keys": []}, set()),
        "where": ({"where": where.get(type(memory), "anything")}, {"k0", "k1", "k2"}),
        "exclude_keys": ({"exclude_keys": ["unknown", *(f"k{i}" for i in range(58))]}, {"k58", "k59"}),
        "max_similarity": ({"max_similarity": -1.0}, set()),
        "exact": ({"exact": True}, {f"k{i}" for i in range(60)}),
        "effort": ({"effort": 100}, {f"k{i}" for i in range(60)}),
    }
    refused = set()
    for name, (options, keys) in wanted.items():
        try:
            found = memory.search(images[:1], 60, **options)
        except reco.Error:
            refused.add(name)
            continue
        assert {key for key in found.keys[0] if key} == keys, name
    lacks = {"only_keys", "none of the keys", "where"} if isinstance(memory, ListMemory) else set()
    assert refused == lacks


def test_exact_is_refused_where_an_index_rounds(tmp_path: Path) -> None:
    pytest.importorskip("milvus_lite")
    memory = MilvusMemory.create(str(tmp_path / "m.db"), "m", DIM, index="HNSW", index_params={"M": 8})
    memory.add(ROWS, ROWS, NAMES)
    with pytest.raises(reco.Error, match="has the index HNSW: exact search needs FLAT"):
        memory.search(ROWS, 1, exact=True)
    assert memory.search(ROWS[:1], 1, effort=4).keys[0][0] in NAMES


def test_an_empty_memory_finds_nothing(make: Make) -> None:
    found = make("").search(pairs(2, 0)[0], 3)
    assert found.keys == [["", "", ""]] * 2 and (found.rows == -1).all() and not found.partners.any()


@pytest.mark.parametrize("fuse", ["partner", "same", "both"])
@pytest.mark.parametrize("search", ["uni-modal", "cross-modal"])
def test_training_works_with_any(make: Make, tmp_path: Path, search: Any, fuse: Any) -> None:
    memory, images, texts = filled(make)
    local = reco.Memory.create(tmp_path / "local", DIM)
    local.add(images, texts, [f"k{i}" for i in range(60)])
    shape = reco.FusionConfig(method="transformer", dim=DIM, k=4, heads=2, search=search, fuse=fuse)
    config = reco.TrainingConfig(fusion=shape, batch_size=32, epochs=2)
    keys = [f"k{i}" for i in range(60)]
    fusions = [reco.train(images, texts, store, config, keys=keys) for store in (memory, local)]
    found = local.search(images, 8 if fuse == "both" else 4)
    a, b = (f.fuse("image", images, found.scores, found.partners, found.rows)["embeddings"] for f in fusions)
    np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("kind", ["list", "milvus"])
def test_model_works_with_any(tmp_path: Path, kind: str) -> None:
    clip = reco.Clip.load(Path(__file__).parents[2] / "examples/icons/clip")
    generator = np.random.default_rng(0)
    rows = unit(generator.standard_normal((40, clip.dim))).astype(np.float16).astype(np.float32)
    if kind == "milvus":
        pytest.importorskip("milvus_lite")
        other: reco.MemoryBase = MilvusMemory.create(str(tmp_path / "m.db"), "m", clip.dim, clip.fingerprint)
    else:
        other = ListMemory(clip.dim, clip.fingerprint)
    stores = [other, reco.Memory.create(tmp_path / "m", clip.dim, clip.fingerprint)]
    for store in stores:
        store.add(rows[:20], rows[20:], [f"k{i}" for i in range(20)], [f"caption {i}" for i in range(20)])
    for config in (
        reco.FusionConfig(method="mean", dim=clip.dim, k=4),
        reco.FusionConfig(method="gated", dim=clip.dim, k=4, fuse="both"),
    ):
        fusion = reco.Fusion.create(config, seed=1)
        a, b = (reco.Model(clip, store, fusion, k=4) for store in stores)
        np.testing.assert_allclose(a.refine_images(rows), b.refine_images(rows), atol=1e-6)
        np.testing.assert_allclose(a.refine_texts(rows), b.refine_texts(rows), atol=1e-6)
        first, second = (model.explain(text="a red flag") for model in (a, b))
        assert first.keys == second.keys and first.captions == second.captions
        np.testing.assert_allclose(first.attention, second.attention, atol=1e-6)
    del stores, store, other  # the model keeps its memory alive
    assert a.memory.get("k0").caption == "caption 0" and len(a.memory) == 20
    with pytest.raises(reco.Error, match="another"):
        reco.Model(clip, ListMemory(clip.dim, "another"), fusion)


@pytest.mark.parametrize("fuse", ["partner", "same"])
@pytest.mark.parametrize("kind", ["folder", "list", "milvus"])
def test_a_model_fetches_what_a_metric_compares(tmp_path: Path, kind: str, fuse: Any) -> None:
    """The neighbours' own images, from any memory, as if they were given by hand; less than k neighbours too."""
    clip = reco.Clip.load(Path(__file__).parents[2] / "examples/icons/clip")
    generator = np.random.default_rng(0)
    rows = unit(generator.standard_normal((60, clip.dim))).astype(np.float16).astype(np.float32)
    image = generator.integers(256, size=(64, 64, 3), dtype=np.uint8)
    rows[:1] = clip.encode_images([image])
    memory: reco.MemoryBase
    if kind == "milvus":
        pytest.importorskip("milvus_lite")
        memory = MilvusMemory.create(str(tmp_path / "m.db"), "m", clip.dim)
    else:
        memory = ListMemory(clip.dim) if kind == "list" else reco.Memory.create(tmp_path / "m", clip.dim)
    memory.add(rows[:30], rows[30:], [f"k{i}" for i in range(30)])
    shape = reco.FusionConfig(dim=clip.dim, k=5, layers=0, metric=True, fuse=fuse)
    fusion = randomised(shape, tmp_path / "f.safetensors")[0]
    for k in (None, 40):  # more than there are
        model = reco.Model(clip, memory, fusion, k=k)
        found = memory.search(rows, model.k)
        assert (found.rows == -1).any() == (k == 40)
        same = memory.embeddings("image", found.rows.ravel()).reshape(*found.rows.shape, -1)
        fused = found.partners if fuse == "partner" else same
        want = fusion.fuse("image", rows, found.scores, fused, found.rows, same=same)
        np.testing.assert_allclose(model.refine_images(rows), want["embeddings"], atol=1e-6)
        other = fusion.fuse("image", rows, found.scores, fused, found.rows, same=np.roll(same, 1, 0))
        assert np.abs(other["attention"] - want["attention"]).max() > 0.01
        shown, there = model.explain(image), found.rows[0] >= 0
        assert shown.keys == [key for key in found.keys[0] if key]
        np.testing.assert_allclose(shown.scores, found.scores[0][there], atol=1e-6)  # cosines, as everywhere
        np.testing.assert_allclose(shown.attention, want["attention"][0][there], atol=1e-6)
        texts = memory.search(rows, model.k, modality="text")
        own = texts.partners if fuse == "partner" else memory.embeddings("text", texts.rows.ravel())
        want = fusion.fuse("text", rows, texts.scores, own.reshape(same.shape), texts.rows)
        np.testing.assert_allclose(model.refine_texts(rows), want["embeddings"], atol=1e-6)


def test_searches_from_many_threads(make: Make) -> None:
    memory, images, _ = filled(make)
    wrong: list[Any] = []

    def work() -> None:
        for _ in range(20):
            if memory.search(images, 1).keys != [[f"k{i}"] for i in range(60)]:
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_class_may_keep_what_it_was_given() -> None:
    class Keeping(ListMemory):
        def search(self, queries: Any, *more: Any, **options: Any) -> Any:
            kept.append(queries)
            return super().search(queries, *more, **options)

    kept: list[Any] = []
    clip = reco.Clip.load(Path(__file__).parents[2] / "examples/icons/clip")
    rows = unit(np.random.default_rng(0).standard_normal((8, clip.dim)))
    memory = Keeping(clip.dim)
    memory.add(rows, rows, [str(i) for i in range(8)])
    model = reco.Model(clip, memory, reco.Fusion.mean(clip.dim), k=3)
    for row in rows:
        model.refine_images(row[None])
    np.testing.assert_allclose(np.concatenate(kept), rows, atol=1e-6)


def test_a_class_that_does_not_keep_its_word() -> None:
    class Broken(ListMemory):
        answer: Any = None

        def search(self, queries: Any, k: int = 10, *more: Any, **options: Any) -> Any:
            return self.answer(queries, k)

        def keys(self, rows):  # type: ignore[no-untyped-def]
            return ["one"]

    clip = reco.Clip.load(Path(__file__).parents[2] / "examples/icons/clip")
    memory = Broken(clip.dim)
    model = reco.Model(clip, memory, reco.Fusion.mean(clip.dim), k=3)
    row = np.ones((1, clip.dim), np.float32)

    def neighbors(k: int, partners: bool) -> Callable[[Any, int], reco.Neighbors]:
        found = np.zeros((1, k, clip.dim), np.float32) if partners else None
        return lambda queries, _: reco.Neighbors(memory, np.zeros((1, k), np.int64), np.zeros((1, k)), found)

    memory.answer = neighbors(2, True)
    with pytest.raises(reco.Error, match=r"\[1, 3\]"):
        model.refine_images(row)
    memory.answer = neighbors(3, False)
    with pytest.raises(reco.Error, match="partners"):
        model.refine_images(row)
    memory.answer = lambda queries, k: 7
    with pytest.raises(reco.Error, match=r"search\(\) returned a value of type int"):
        model.refine_images(row)
    memory.answer = lambda queries, k: 1 / 0
    with pytest.raises(ZeroDivisionError):
        model.refine_images(row)
    memory.answer = neighbors(3, True)
    with pytest.raises(reco.Error, match="3 entries, got 1"):
        model.explain(text="x")
    for rows, scores, partners in (
        (np.zeros(3, np.int64), np.zeros((1, 3)), None),
        (np.zeros((1, 3), np.int64), np.zeros((1, 2)), None),
        (np.zeros((1, 3), np.int64), np.zeros((1, 3)), np.zeros((1, 3, 2))),
    ):
        with pytest.raises(reco.Error, match="expected"):
            reco.Neighbors(memory, rows, scores, partners)
    with pytest.raises(reco.Error, match="no search"):
        reco.Model(clip, reco.MemoryBase(clip.dim), reco.Fusion.mean(clip.dim)).refine_images(row)
    with pytest.raises(reco.Error, match="dim"):
        reco.MemoryBase(0)
