# SPDX-License-Identifier: Apache-2.0
"""Training on a synthetic world whose answers only the memory knows."""

from __future__ import annotations

import csv
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


def config(method: Any = "gated", **kwargs: Any) -> reco.TrainingConfig:
    fusion = reco.FusionConfig(method=method, dim=DIM, k=5, heads=4, layers=0 if method == "gated" else 1)
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


def test_resume_after_kill_equals_unbroken(tmp_path: Path) -> None:
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
        "c = t.config('transformer', epochs=200, **files)\n"
        "reco.train(images, texts, memory, c).save(folder / 'fusion.safetensors')\n"
    )
    results = []
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
    assert results[0] == results[1]
    with (tmp_path / "killed" / "log.csv").open() as lines:
        curve = list(csv.DictReader(lines))
    assert [int(row["epoch"]) for row in curve] == list(range(201))
    assert float(curve[-1]["loss"]) < float(curve[1]["loss"])


def test_checkpoint_of_another_run(task: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    reco.train(task["images"], task["texts"], task["memory"], config(epochs=2, checkpoint=path))
    with pytest.raises(reco.Error, match="belongs to another run"):
        reco.train(task["images"], task["texts"], task["memory"], config(epochs=3, checkpoint=path))


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
