# SPDX-License-Identifier: Apache-2.0
"""What reco's objects say of themselves, and what becomes of them when they are copied, pickled or sent elsewhere."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reco

ROOT = Path(__file__).parents[2]
DIM = 256


@pytest.fixture(scope="module")
def clip() -> reco.Clip:
    return reco.Clip.load(ROOT / "examples/icons/clip", batch_size=7)


@pytest.fixture
def memory(tmp_path: Path, clip: reco.Clip) -> reco.Memory:
    memory = reco.Memory.create(tmp_path / "memory.reco", DIM, clip.fingerprint)
    rows = np.eye(3, DIM, dtype=np.float32)
    memory.add(rows, rows[::-1], keys=list("abc"), captions=["A", "B", "C"], metadata=[{"n": i} for i in range(3)])
    return memory


def again(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


def test_representations(clip: reco.Clip, memory: reco.Memory, tmp_path: Path) -> None:
    found = memory.search(np.eye(2, DIM), k=3)
    model = reco.Model(clip, memory, reco.Fusion.mean(DIM), k=3, max_similarity=0.9)
    short = clip.fingerprint[:12]
    assert repr(memory) == f"Memory('{tmp_path / 'memory.reco'}', 3 pairs, dim 256, encoder {short})"
    assert repr(found) == "Neighbors(2 queries, k=3, best score 1)"
    assert (
        repr(memory.search(np.eye(1, DIM), k=1, partners=False)) == "Neighbors(1 query, k=1, no partners, best score 1)"
    )
    assert repr(memory.get("b")) == "MemoryRow(key='b', caption='B', metadata={'n': 1}, dim 256)"
    assert repr(model) == f"Model(dim=256, memory=3 pairs, fusion='mean', k=3, max_similarity=0.9, encoder {short})"
    assert repr(model.fusion) == "Fusion(method='mean', dim=256, k=10, layers=0, parameters=4)"
    assert repr(clip.tokenizer).startswith("Tokenizer(49408 tokens, start 49406, end 49407, pad 49407, cleaning '")
    assert repr(clip).startswith("Clip(dim 256, images 64 px through ViT") and clip.fingerprint[:8] in repr(clip)
    assert "a" in repr(model.explain(text="a thing"))
    memory.remove(["a"])
    assert ", 1 removed" in repr(memory)
    memory.optimize("HNSW8")
    assert ", images by HNSW8, texts by HNSW8" in repr(memory)
    memory.close()
    assert repr(memory) == "Memory(closed)"


@pytest.mark.parametrize(
    "made",
    [
        reco.FusionConfig(),
        reco.FusionConfig(dim=64, k=3, method="transformer", positions=False),
        reco.TrainingConfig(),
        reco.TrainingConfig(
            fusion=reco.FusionConfig(dim=64), epochs=3, loss=(1, 0, 0), log="curve.csv", max_similarity=1
        ),
        reco.Preprocess(),
        reco.Preprocess(resample="bilinear", shortest_edge=0, resize_width=7, resize_height=9, mean=(0.5, 0.25, 1)),
    ],
)
def test_options_are_the_call_that_makes_them(made: Any) -> None:
    names = {name: getattr(reco, name) for name in ("FusionConfig", "TrainingConfig", "Preprocess")}
    assert eval(repr(made), names | {"PosixPath": Path}) == made
    assert made == again(made) == copy.copy(made) == copy.deepcopy(made)
    assert repr(again(made)) == repr(made) and made is not copy.copy(made)
    assert made != "something else" and (made == type(made)()) == (repr(made).endswith("()"))


def test_options_that_differ() -> None:
    assert repr(reco.FusionConfig()) == "FusionConfig()"
    assert repr(reco.FusionConfig(dim=64, k=3)) == "FusionConfig(dim=64, k=3)"
    assert reco.FusionConfig(dim=64) != reco.FusionConfig(dim=32)
    preprocess = reco.Preprocess()
    preprocess.fill = 9
    assert preprocess == reco.Preprocess(fill=9) != reco.Preprocess()
    config = reco.TrainingConfig(log=None)
    assert config.log is None and config.checkpoint is None and config.loss == (1.0, 1.0, 1.0)
    with pytest.raises(
        reco.Error, match="resample must be nearest, lanczos, bilinear, bicubic, box or hamming, got 'x'"
    ):
        preprocess.resample = "x"  # type: ignore[assignment]
    with pytest.raises(TypeError, match="wrong type for 'fill'"):
        reco.Preprocess(fill="x")


def test_neighbors_travel_without_their_memory(memory: reco.Memory) -> None:
    found = memory.search(np.eye(2, DIM), k=4)
    sent = pickle.dumps(found)
    memory.close()
    there = pickle.loads(sent)
    assert there.keys == [["a", "b", "c", ""], ["b", "a", "c", ""]] and there.captions[0] == ["A", "B", "C", ""]
    assert there.metadata[1] == [{"n": 1}, {"n": 0}, {"n": 2}, None]
    for name in ("rows", "scores", "partners"):
        np.testing.assert_array_equal(getattr(there, name), getattr(found, name))
    with pytest.raises(reco.Error, match="closed"):
        pickle.dumps(memory.search) and found.captions


def test_rows_and_fusions(memory: reco.Memory) -> None:
    row = again(memory.get("c"))
    assert (row.key, row.caption, row.metadata) == ("c", "C", {"n": 2}) and row.image_embedding[2] == 1
    fusion = reco.Fusion.create(reco.FusionConfig(dim=32, heads=4, k=3), seed=5)
    there, random = again(fusion), np.random.default_rng(0)
    assert there.config == fusion.config and there.parameters == fusion.parameters
    inputs = [random.standard_normal(shape).astype(np.float32) for shape in ((2, 32), (2, 3), (2, 3, 32))]
    np.testing.assert_array_equal(
        there.fuse("image", *inputs)["embeddings"], fusion.fuse("image", *inputs)["embeddings"]
    )


def test_what_never_changes_is_its_own_copy(clip: reco.Clip, memory: reco.Memory) -> None:
    model = reco.Model(clip, memory, reco.Fusion.mean(DIM))
    for thing in (clip, clip.tokenizer, memory, model.fusion, model):
        assert copy.copy(thing) is thing and copy.deepcopy(thing) is thing
    assert copy.deepcopy({"memory": memory})["memory"] is memory


def test_a_clip_is_opened_again(clip: reco.Clip, tmp_path: Path) -> None:
    there = again(clip)
    assert there.fingerprint == clip.fingerprint and there.dtype == clip.dtype
    folder = tmp_path / "clip"
    folder.mkdir()
    for file in (ROOT / "examples/icons/clip").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    sent = pickle.dumps(reco.Clip.load(folder))
    (folder / "preprocessor_config.json").write_text('{"size": 64, "crop_size": 64, "do_center_crop": false}')
    with pytest.raises(reco.Error, match="held the model .* when it was pickled, now it holds"):
        pickle.loads(sent)


def test_a_memory_is_opened_for_reading(memory: reco.Memory) -> None:
    there = again(memory)
    assert there.search(np.eye(1, DIM), k=1).keys == [["a"]]
    with pytest.raises(reco.Error, match="open for reading only"):
        there.remove(["a"])
    memory.remove(["a"])
    assert list(there) == ["b", "c"]


def refine(model: reco.Model, rows: np.ndarray) -> np.ndarray:
    return model.refine_images(rows)


def test_a_model_works_in_another_process(clip: reco.Clip, memory: reco.Memory) -> None:
    model = reco.Model(clip, memory, reco.Fusion.mean(DIM), k=2)
    rows = np.eye(2, DIM, dtype=np.float32)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(refine, (model, rows)), model.refine_images(rows))


def test_what_cannot_be_pickled_says_so(clip: reco.Clip) -> None:
    class Own(reco.MemoryBase):
        pass

    for thing in (clip.tokenizer, Own(4)):
        with pytest.raises((TypeError, AttributeError), match="cannot pickle|Can't pickle"):
            pickle.dumps(thing)
