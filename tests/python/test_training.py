# SPDX-License-Identifier: Apache-2.0
"""Training on a synthetic world whose answers only the memory knows."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import reco

DIM, CONCEPTS = 32, 120
CLEAN = {"wrong_captions": 0, "random_rows": 0, "dropped": 0, "random_k": 0}
Floats = npt.NDArray[np.float32]


def unit(x: npt.NDArray[Any]) -> Floats:
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), np.float32)


def world(seed: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Concepts whose images and texts are unrelated directions: CLIP cannot match them, a memory can."""
    random = np.random.default_rng(seed)
    image, text = unit(random.normal(size=(CONCEPTS, DIM))), unit(random.normal(size=(CONCEPTS, DIM)))

    def near(x: Floats) -> Floats:
        return unit(x + 0.12 * random.normal(size=x.shape))

    return near(image), near(text), near(image), near(text)


@pytest.fixture
def task(tmp_path: Path) -> dict[str, Any]:
    images, texts, memory_images, memory_texts = world(1)
    memory = reco.Memory.create(tmp_path / "memory", dim=DIM, encoder="test-encoder")
    memory.add(memory_images, memory_texts, [f"m{i}" for i in range(CONCEPTS)])
    return {"images": images, "texts": texts, "memory": memory}


def accuracy(fusion: reco.Fusion, task: dict[str, Any]) -> float:
    refined = []
    for side in ("image", "text"):
        queries = task[side + "s"]
        found = task["memory"].search(queries, k=5, modality=side)
        refined.append(fusion.fuse(side, queries, found.scores, found.partners, found.rows)["embeddings"])
    return float((np.argmax(refined[0] @ refined[1].T, 1) == np.arange(CONCEPTS)).mean())


def config(method: Any = "gated", layers: int = 1, **kwargs: Any) -> reco.TrainingConfig:
    fusion = reco.FusionConfig(method=method, dim=DIM, k=5, heads=4, layers=0 if method == "gated" else layers)
    options: dict[str, Any] = {"epochs": 30, "batch_size": 64, "learning_rate": 3e-3, "logit_scale": 20.0}
    return reco.TrainingConfig(fusion=fusion, **(options | kwargs))


@pytest.mark.parametrize("method", ["gated", "mean"])
def test_memory_repairs_what_clip_cannot_know(task: dict[str, Any], method: Any) -> None:
    clip = reco.Fusion.mean(DIM, image_weight=0, text_weight=0)
    fusion = reco.train(task["images"], task["texts"], task["memory"], config(method))
    assert accuracy(clip, task) < 0.1
    assert accuracy(fusion, task) > 0.9
    assert fusion.encoder == "test-encoder"
    assert fusion.provenance["memory_rows"] == CONCEPTS


def test_paper_layer_learns(task: dict[str, Any]) -> None:
    """The paper's layer fits its training pairs (from scratch, without a start at the mean)."""
    fusion = reco.train(
        task["images"], task["texts"], task["memory"], config("transformer", epochs=150, validation=0.0)
    )
    assert accuracy(fusion, task) > 0.5


def noisy_world(folder: Path, wrong: float) -> tuple[Floats, Floats, reco.Memory]:
    """CLIP knows half of the concepts (image and text alike); three pairs of each remembered, some captions wrong."""
    random = np.random.default_rng(2)
    image, text = unit(random.normal(size=(CONCEPTS, DIM))), unit(random.normal(size=(CONCEPTS, DIM)))
    image[::2] = text[::2]

    def near(x: Floats) -> Floats:
        return unit(x + 0.12 * random.normal(size=x.shape))

    concept = np.repeat(np.arange(CONCEPTS), 3)
    memory = reco.Memory.create(folder, dim=DIM)
    images, texts = near(image[concept]), near(text[concept])
    chosen = np.flatnonzero(random.random(len(concept)) < wrong)
    texts[chosen] = texts[random.permutation(chosen)]
    memory.add(images, texts, [f"m{i}" for i in range(len(concept))])
    return near(image), near(text), memory


def test_gate_shuts_where_captions_are_wrong(tmp_path: Path) -> None:
    """Trained on a clean memory, the fusion helps there and stays at CLIP where no caption is true."""
    images, texts, clean = noisy_world(tmp_path / "clean", 0.0)
    wrong = noisy_world(tmp_path / "wrong", 1.0)[2]
    fusion = reco.train(images, texts, clean, config(epochs=60, validation=0.0))
    found = {}
    for name, memory in (("clean", clean), ("wrong", wrong)):
        found[name] = {"images": images, "texts": texts, "memory": memory}
    assert accuracy(reco.Fusion.mean(DIM, image_weight=0, text_weight=0), found["clean"]) < 0.6
    assert accuracy(fusion, found["clean"]) > 0.9
    known = accuracy(reco.Fusion.mean(DIM, image_weight=0, text_weight=0), found["wrong"])
    assert accuracy(reco.Fusion.mean(DIM, image_weight=2, text_weight=2), found["wrong"]) < known - 0.1
    assert accuracy(fusion, found["wrong"]) > known - 0.03
    confidence = []
    for memory in (clean, wrong):
        near = memory.search(images, k=5)
        confidence.append(float(fusion.fuse("image", images, near.scores, near.partners)["confidence"].mean()))
    assert confidence[0] > 0.9 and confidence[1] < 0.4


def styled_world(folder: Path, seed: int) -> tuple[Floats, Floats, reco.Memory, Any]:
    """200 concepts drawn in 40 styles, which are the same for every seed: neighbours share a style more than a concept.

    Half of all directions are style and nothing else. Four pairs of each concept are remembered, two are queries.
    """
    style = np.random.default_rng(0).normal(size=(40, DIM)) * (np.arange(DIM) < DIM // 2)
    random = np.random.default_rng(seed)
    image, text = random.normal(size=(2, 200, DIM))
    image[:, : DIM // 2] = 0

    def draw(each: int) -> tuple[Floats, Floats, Any]:
        concept = np.repeat(np.arange(200), each)
        look = style[random.integers(40, size=len(concept))]
        return unit(0.8 * image[concept] + look), unit(text[concept] + 0.1 * random.normal(size=look.shape)), concept

    memory = reco.Memory.create(folder, dim=DIM)
    images, texts, _ = draw(4)
    memory.add(images, texts, [f"m{i}" for i in range(len(images))])
    return *draw(2)[:2], memory, np.repeat(np.arange(200), 2)


def test_metric_learns_what_does_not_matter(tmp_path: Path) -> None:
    """What differs within concepts is learned from some and left out for others; a seed always gives the same file."""
    images, texts, memory, concepts = styled_world(tmp_path / "known", 1)
    found = []
    for metric in (False, True, True):
        shape = reco.FusionConfig(dim=DIM, k=40, layers=0, metric=metric)
        run = reco.TrainingConfig(fusion=shape, epochs=5, batch_size=64, loss=(1, 0, 0), logit_scale=20)
        found.append(reco.train(images, texts, memory, run, concepts=concepts))
        assert found[-1].config.metric == metric
    assert weights(found[1], tmp_path / "a.safetensors") == weights(found[2], tmp_path / "b.safetensors")
    images, texts, memory, concepts = styled_world(tmp_path / "other", 2)
    near = {side: memory.search(rows, k=40, modality=side) for side, rows in (("image", images), ("text", texts[::2]))}
    rows = near["image"].rows
    same = memory.embeddings("image", rows.ravel()).reshape(*rows.shape, DIM)
    attention, right = [], []
    for fusion in found[:2]:
        beside = {"image": {"same": same} if fusion.config.metric else {}, "text": {}}
        fused = {
            side: fusion.fuse(side, queries, near[side].scores, near[side].partners, near[side].rows, **beside[side])
            for side, queries in (("image", images), ("text", texts[::2]))
        }
        attention.append(float((fused["image"]["attention"] * (rows // 4 == concepts[:, None])).sum(1).mean()))
        scores = fused["image"]["embeddings"] @ fused["text"]["embeddings"].T
        right.append(float((np.argmax(scores, 1) == concepts).mean()))
    assert attention[0] < 0.3 and attention[1] > 0.8, attention
    assert right[1] > right[0] + 0.15, right


def layered_world(folder: Path, right: int) -> tuple[Floats, Floats, reco.Memory]:
    """The `right` nearest neighbours of an image are true but blurred; those just behind show other concepts' texts."""
    random = np.random.default_rng(3)
    image, text = (unit(random.normal(size=(CONCEPTS, DIM))) for _ in range(2))
    memory = reco.Memory.create(folder, dim=DIM)
    for i in range(8):
        near = unit(image + (0.1 if i < right else 0.14) * unit(random.normal(size=image.shape)))
        blurred = text + 2.0 * unit(random.normal(size=text.shape))
        shown = unit(blurred if i < right else text[(np.arange(CONCEPTS) + 1) % CONCEPTS])
        memory.add(near, shown, [f"m{i}.{j}" for j in range(CONCEPTS)])
    return image, text, memory


@pytest.mark.parametrize("right", [1, 3])
def test_a_mean_finds_how_many_neighbours_are_right(tmp_path: Path, right: int) -> None:
    images, texts, memory = layered_world(tmp_path / "memory", right)
    shape = reco.FusionConfig(method="mean", dim=DIM, k=8, sides="image")
    fusion = reco.train(images, texts, memory, reco.TrainingConfig(fusion=shape))
    assert (fusion.config.k, fusion.provenance["fusion"]["k"]) == (right, 8)
    fusion.save(tmp_path / "f.safetensors")
    assert reco.Fusion.load(tmp_path / "f.safetensors").config.k == right
    found = memory.search(images, k=8)

    def accuracy_of(k: int) -> float:
        fused = fusion.fuse("image", images, found.scores[:, :k], found.partners[:, :k])["embeddings"]
        return float((np.argmax(fused @ texts.T, 1) == np.arange(CONCEPTS)).mean())

    assert accuracy_of(right) > accuracy_of(8) + 0.2


# --- pairs that are held out by name ----------------------------------------------------------------------------------
def held_out_accuracy(fusion: reco.Fusion, images: Floats, texts: Floats, memory: reco.Memory, rows: Any) -> float:
    """Among the texts of these rows alone."""
    task = {"images": images[rows], "texts": texts[rows], "memory": memory}
    refined = []
    for side in ("image", "text"):
        found = memory.search(task[side + "s"], k=5, modality=side)
        refined.append(fusion.fuse(side, task[side + "s"], found.scores, found.partners, found.rows)["embeddings"])
    return float((np.argmax(refined[0] @ refined[1].T, 1) == np.arange(len(rows))).mean())


@pytest.mark.parametrize("wrong", [False, True])
def test_what_is_held_out_chooses_the_epoch(task: dict[str, Any], tmp_path: Path, wrong: bool) -> None:
    """Start and epoch are what is best on those rows: where their own texts are swapped, to look little up."""
    images, texts, memory, held = task["images"], task["texts"].copy(), task["memory"], np.arange(0, CONCEPTS, 3)
    if wrong:
        texts[held] = np.roll(texts[held], 1, axis=0)
    run = config(epochs=40, validation=0.5, log=tmp_path / "log.csv", **CLEAN)
    fusion = reco.train(images, texts, memory, run, held_out=held)
    with (tmp_path / "log.csv").open() as lines:
        curve = [float(row["validation_accuracy"]) for row in csv.DictReader(lines)]
    chosen, most = 0, np.maximum.accumulate(curve)
    for epoch, (found, best) in enumerate(zip(curve, most, strict=True)):
        chosen = epoch if found >= best - (best * (1 - best) / len(held)) ** 0.5 else chosen
    facts = fusion.provenance
    assert facts["best_epoch"] == chosen and facts["held_out"] == len(held)
    assert facts["validation_accuracy"] == pytest.approx(curve[chosen], rel=1e-4)
    assert held_out_accuracy(fusion, images, texts, memory, held) == pytest.approx(curve[chosen], abs=1.5 / len(held))
    others = np.setdiff1d(np.arange(CONCEPTS), held)
    learned = held_out_accuracy(fusion, images, texts, memory, others)
    assert (learned < 0.6 and curve[-1] < max(curve)) if wrong else (learned > 0.9 and curve[0] < max(curve))


def test_concepts_may_be_held_out_in_part(task: dict[str, Any], tmp_path: Path) -> None:
    """A drawing of each concept is learned from, another chooses; order, dtype and repetition of rows do not matter."""
    images, texts = (np.repeat(task[side], 2, axis=0) for side in ("images", "texts"))
    concepts, held = np.repeat(np.arange(CONCEPTS), 2), np.arange(1, 2 * CONCEPTS, 2)
    files, run = [], config(epochs=5, **CLEAN)
    for i, rows in enumerate((held, np.concatenate([held, held])[::-1].astype(np.int32), held.tolist())):
        fusion = reco.train(images, texts, task["memory"], run, concepts=concepts, held_out=rows)
        files.append(weights(fusion, tmp_path / str(i)))
        assert fusion.provenance["validation_accuracy"] > 0.9
    assert files[0] == files[1] == files[2]
    half = reco.train(images, texts, task["memory"], run, concepts=concepts, held_out=held[::2])
    assert weights(half, tmp_path / "half") != files[0]


def test_what_cannot_be_held_out(task: dict[str, Any], tmp_path: Path) -> None:
    images, texts, memory = task["images"], task["texts"], task["memory"]
    for rows in ([-1], [0, CONCEPTS]):
        with pytest.raises(reco.Error, match="held_out must be rows from 0 to 119"):
            reco.train(images, texts, memory, config(), held_out=rows)
    with pytest.raises(reco.Error, match="two concepts or more, got 1"):
        reco.train(images, texts, memory, config(), held_out=range(1, CONCEPTS))
    path = tmp_path / "checkpoint.safetensors"
    reco.train(images, texts, memory, config(epochs=2, checkpoint=path), held_out=[1, 2])
    with pytest.raises(reco.Error, match="belongs to another run"):
        reco.train(images, texts, memory, config(epochs=2, checkpoint=path), held_out=[1, 2, 3])


@pytest.mark.parametrize("method", ["gated", "transformer"])
def test_micro_batches_give_the_same_gradients(task: dict[str, Any], tmp_path: Path, method: Any) -> None:
    runs = []
    for micro in (0, 7):
        options = {"epochs": 3, "validation": 0.0, "log": tmp_path / "log.csv"}
        fusion = reco.train(task["images"], task["texts"], task["memory"], config(method, micro_batch=micro, **options))
        found = task["memory"].search(task["images"], k=5)
        refined = fusion.fuse("image", task["images"], found.scores, found.partners)
        losses = [row["loss"] for row in csv.DictReader((tmp_path / "log.csv").open())]
        runs.append((np.array(losses, float), refined["embeddings"], refined["confidence"]))
    for once, in_parts in zip(*runs, strict=True):
        np.testing.assert_allclose(in_parts, once, atol=1e-3)


def test_pairs_streamed_from_a_memory(task: dict[str, Any], tmp_path: Path) -> None:
    pairs = reco.Memory.create(tmp_path / "pairs", dim=DIM, encoder="test-encoder")
    pairs.add(task["images"], task["texts"], [f"q{i}" for i in range(CONCEPTS)])
    held = [pairs.embeddings(side) for side in ("image", "text")]
    a = reco.train(pairs, None, task["memory"], config(epochs=3))
    b = reco.train(held[0], held[1], task["memory"], config(epochs=3), keys=list(pairs))
    assert weights(a, tmp_path / "a.safetensors") == weights(b, tmp_path / "b.safetensors")
    with pytest.raises(reco.Error, match="made with encoder test-encoder, the memory with other"):
        reco.train(pairs, None, reco.Memory.create(tmp_path / "other", dim=DIM, encoder="other"), config())


def test_streamed_pairs_are_not_held(tmp_path: Path) -> None:
    """Twenty thousand pairs more cost less than a fifth of what their embeddings would take."""
    script = Path(__file__).parents[2] / "benchmarks" / "streaming.py"
    given_back = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "65536"
    }  # at once: or else what glibc keeps varies by megabytes
    grown = []
    for pairs in (4000, 24000):
        (tmp_path / str(pairs)).mkdir()
        command = [sys.executable, str(script), str(pairs), "--inside", str(tmp_path / str(pairs))]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=given_back).stdout)
        grown.append(found["grown"])
    assert grown[1] - grown[0] < 20_000 * 2 * 4 * 256 / 5


@pytest.mark.parametrize("options", [{"search": "cross-modal"}, {"fuse": "both"}, {"fuse": "same"}, {"shared": True}])
@pytest.mark.parametrize("method", ["gated", "transformer", "mean"])
def test_every_mode_trains(task: dict[str, Any], method: Any, options: Any) -> None:
    fusion = reco.FusionConfig(method=method, dim=DIM, k=3, heads=4, similarity=True, **options)
    run = reco.TrainingConfig(fusion=fusion, epochs=2, batch_size=64)
    trained = reco.train(task["images"], task["texts"], task["memory"], run)
    assert trained.config.search == fusion.search and trained.config.fuse == fusion.fuse


def test_one_side_alone(task: dict[str, Any]) -> None:
    fusion = reco.FusionConfig(dim=DIM, k=3, heads=4, sides="image")
    trained = reco.train(task["images"], task["texts"], task["memory"], reco.TrainingConfig(fusion=fusion, epochs=2))
    found = task["memory"].search(task["texts"], k=3, modality="text")
    same = trained.fuse("text", task["texts"], found.scores, found.partners)["embeddings"]
    np.testing.assert_array_equal(same, task["texts"])


def test_without_relevance_labels_alone_teach(task: dict[str, Any]) -> None:
    """No weight that is left learns from the contrastive loss."""
    found = task["memory"].search(task["images"], k=5)

    def gates(relevance: bool, loss: Any) -> dict[str, Floats]:
        shape = reco.FusionConfig(dim=DIM, k=5, layers=0, relevance=relevance)
        run = reco.TrainingConfig(fusion=shape, epochs=5, batch_size=64, logit_scale=20.0, validation=0.0, loss=loss)
        fusion = reco.train(task["images"], task["texts"], task["memory"], run)
        assert accuracy(fusion, task) > 0.9
        return fusion.fuse("image", task["images"], found.scores, found.partners)

    for relevance in (True, False):
        one, other = (gates(relevance, loss) for loss in ((1, 0, 0), (0, 2, 1)))
        np.testing.assert_array_equal(one["confidence"], other["confidence"])
        assert np.array_equal(one["attention"], other["attention"]) is not relevance


def test_nothing_to_look_up(task: dict[str, Any], tmp_path: Path) -> None:
    """A memory that holds one pair, left out for being the query's own: still a fusion with finite weights."""
    memory = reco.Memory.create(tmp_path / "one", dim=DIM)
    memory.add(task["images"][:1], task["texts"][:1], ["q"])
    fusion = reco.train(task["images"], task["texts"], memory, config(epochs=2), keys=["q"] * CONCEPTS)
    fusion.save(tmp_path / "f.safetensors")
    assert reco.Fusion.load(tmp_path / "f.safetensors").config.method == "gated"


def test_divergence_stops(task: dict[str, Any]) -> None:
    """From the mean, which is good here, to layers that a thousandfold rate blows up."""
    shape = reco.FusionConfig(dim=DIM, k=5, heads=4)
    run = reco.TrainingConfig(
        fusion=shape,
        epochs=100,
        learning_rate=1.0,
        layer_rate=10.0,
        warmup=0.5,
        loss=(1, 0, 0),
        logit_scale=100.0,
        **CLEAN,
    )
    with pytest.raises(reco.Error, match=r"the loss diverges: .* at step \d+; lower learning_rate"):
        reco.train(task["images"], task["texts"], task["memory"], run)


def test_limits_are_checked_before_the_first_step(task: dict[str, Any]) -> None:
    fusion = reco.FusionConfig(method="transformer", dim=DIM, k=4096, heads=32, layers=4)
    with pytest.raises(reco.Error, match="training would need about"):
        reco.train(task["images"], task["texts"], task["memory"], reco.TrainingConfig(fusion=fusion))
    with pytest.raises(reco.Error, match="wrong_captions must be from 0 to 1, got 2"):
        config(wrong_captions=2.0)


def test_own_pair_is_left_out(task: dict[str, Any], tmp_path: Path) -> None:
    """With its own pair among the neighbours the task would be trivial; without, nothing is left to find."""
    memory = reco.Memory.create(tmp_path / "own", dim=DIM)
    keys = [f"q{i}" for i in range(CONCEPTS)]
    memory.add(task["images"], task["texts"], keys)
    open_book = reco.train(task["images"], task["texts"], memory, config("mean", validation=0.3))
    closed = reco.train(task["images"], task["texts"], memory, config("mean", validation=0.3), keys=keys)
    assert open_book.provenance["validation_accuracy"] > 0.9
    assert closed.provenance["validation_accuracy"] < 0.2


def weights(fusion: reco.Fusion, path: Path) -> bytes:
    fusion.save(path)
    return path.read_bytes()


def test_same_seed_same_weights(task: dict[str, Any], tmp_path: Path) -> None:
    runs = [reco.train(task["images"], task["texts"], task["memory"], config(seed=s)) for s in (4, 4, 5)]
    a, b, c = (weights(f, tmp_path / f"{i}.safetensors") for i, f in enumerate(runs))
    assert a == b
    assert a != c


@pytest.mark.parametrize(
    ("method", "precision"), [("gated", "float32"), ("transformer", "float32"), ("transformer", "bfloat16")]
)
def test_resume_after_kill_equals_unbroken(tmp_path: Path, method: Any, precision: str) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        "import sys, pathlib\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import reco, test_training as t\n"
        "images, texts, mi, mt = t.world(1)\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "reco.set_threads(1)\n"
        "if (folder / 'memory').exists():\n"
        "    memory = reco.Memory.open(folder / 'memory')\n"
        "else:\n"
        "    memory = reco.Memory.create(folder / 'memory', dim=t.DIM)\n"
        "    memory.add(mi, mt, [f'm{i}' for i in range(t.CONCEPTS)])\n"
        "files = {'checkpoint': folder / 'checkpoint.safetensors', 'log': folder / 'log.csv'}\n"
        f"c = t.config({method!r}, epochs=200, precision={precision!r}, **files)\n"
        "reco.train(images, texts, memory, c).save(folder / 'fusion.safetensors')\n"
    )
    results, curves = [], []
    for name, kills in (("unbroken", 0), ("killed", 2)):
        folder = tmp_path / name
        folder.mkdir()
        command = [sys.executable, str(script), str(folder)]
        for _ in range(kills):
            before = (folder / "log.csv").read_bytes() if (folder / "log.csv").exists() else b""
            process = subprocess.Popen(command)
            while process.poll() is None:
                if (folder / "log.csv").exists() and (folder / "log.csv").read_bytes() != before:
                    process.kill()
                time.sleep(0.005)
            process.wait()
        subprocess.run(command, check=True)
        results.append((folder / "fusion.safetensors").read_bytes())
        with (folder / "log.csv").open() as lines:
            curves.append([(int(r["epoch"]), r["loss"], r["validation_accuracy"]) for r in csv.DictReader(lines)])
    assert results[0] == results[1]
    assert curves[0] == curves[1]
    assert [epoch for epoch, *_ in curves[1]] == list(range(201))


def test_tensorboard_reads_the_curve(task: dict[str, Any], tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    files = {"log": tmp_path / "log.csv", "tensorboard": tmp_path / "board"}
    reco.train(task["images"], task["texts"], task["memory"], config(epochs=4, **files))
    events = accumulator.EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    with (tmp_path / "log.csv").open() as lines:
        curve = list(csv.DictReader(lines))
    for tag in ("loss", "learning_rate", "validation_accuracy"):
        got = {event.step: event.value for event in events.Scalars(tag)}
        want = {int(row["epoch"]): float(row[tag]) for row in curve if int(row["epoch"]) > 0}
        assert {step: got[step] for step in want} == pytest.approx(want, rel=1e-4)


def test_checkpoint_of_another_run(task: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    reco.train(task["images"], task["texts"], task["memory"], config(epochs=2, checkpoint=path))
    with pytest.raises(reco.Error, match="belongs to another run"):
        reco.train(task["images"], task["texts"], task["memory"], config(epochs=3, checkpoint=path))
    with pytest.raises(reco.Error, match="belongs to another run"):
        reco.train(task["texts"], task["images"], task["memory"], config(epochs=2, checkpoint=path))
    with pytest.raises(reco.Error, match="belongs to another run"):
        given = {"concepts": np.arange(CONCEPTS) // 2}
        reco.train(task["images"], task["texts"], task["memory"], config(epochs=2, checkpoint=path), **given)


def test_progress_can_stop(task: dict[str, Any]) -> None:
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> bool:
        seen.append((done, total))
        return done < 3

    with pytest.raises(reco.Error, match="interrupted"):
        reco.train(task["images"], task["texts"], task["memory"], config(), progress=progress)
    assert seen == [(1, 30), (2, 30), (3, 30)]


def test_errors(task: dict[str, Any], tmp_path: Path) -> None:
    images, texts, memory = task["images"], task["texts"], task["memory"]
    with pytest.raises(reco.Error, match="same number of rows"):
        reco.train(images, texts[:5], memory, config())
    with pytest.raises(reco.Error, match="16 columns"):
        reco.train(images[:, :16], texts[:, :16], memory, config())
    with pytest.raises(reco.Error, match="the memory is empty"):
        reco.train(images, texts, reco.Memory.create(tmp_path / "empty", dim=DIM), config())
    with pytest.raises(reco.Error, match="learning_rate must be"):
        config(learning_rate=-1.0)
    with pytest.raises(reco.Error, match="two concepts"):
        reco.train(images, texts, memory, config(), concepts=[1] * CONCEPTS)
