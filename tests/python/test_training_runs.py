# SPDX-License-Identifier: Apache-2.0
"""How a training run is computed, kept and gone on with: precision, device, neighbours in files, checkpoints."""

from __future__ import annotations

import csv
import inspect
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reco
from memory_kinds import ListMemory
from reco.cli.train import train_command
from test_training import CONCEPTS, DIM, config, weights, world


class CountingMemory(ListMemory):
    """Counts searches; fails once as many requests for embeddings were answered as it is told."""

    def __init__(self, answers: int = 1 << 60) -> None:
        super().__init__(DIM)
        self.searches, self.answers = 0, answers

    def search(self, *args: Any, **options: Any) -> reco.Neighbors:
        self.searches += 1
        return super().search(*args, **options)

    def embeddings(self, *args: Any) -> Any:
        self.answers -= 1
        if self.answers < 0:
            raise reco.Error("[test] killed")
        return super().embeddings(*args)  # type: ignore[no-untyped-call]


IMAGES, TEXTS, MEMORY_IMAGES, MEMORY_TEXTS = world(1)


def remembered(answers: int = 1 << 60) -> CountingMemory:
    memory = CountingMemory(answers)
    fill(memory, MEMORY_IMAGES, MEMORY_TEXTS, [f"m{i}" for i in range(CONCEPTS)])
    return memory


def fill(memory: reco.MemoryBase, *pairs: Any) -> None:
    memory.add(*pairs)


def train(memory: reco.MemoryBase | None = None, method: Any = "transformer", **options: Any) -> reco.Fusion:
    return reco.train(IMAGES, TEXTS, memory or remembered(), config(method, **({"epochs": 3} | options)))


def losses(file: Path) -> list[float]:
    with file.open() as lines:
        return [float(row["loss"]) for row in csv.DictReader(lines)][1:]


def refined(fusion: reco.Fusion) -> Any:
    found = remembered().search(IMAGES, k=5)
    return fusion.fuse("image", IMAGES, found.scores, found.partners)["embeddings"]


# --- options ----------------------------------------------------------------------------------------------------------
def test_command_has_every_option() -> None:
    """Whatever C++ and Python can set, `reco train` can; dim is the model's."""
    offered = {option.name for option in train_command.params}
    for kind in (reco.FusionConfig, reco.TrainingConfig):
        fields = {name for name, value in vars(kind).items() if isinstance(value, property)} - {"fusion", "dim"}
        assert len(fields) > 10 and fields <= offered
        assert fields | {"fusion", "dim"} >= set(inspect.signature(kind).parameters) - {"self"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "float16"}, "precision must be one of 'float32', 'bfloat16', got 'float16'"),
        ({"device": "tpu"}, "device must be 'cpu', 'cuda' or 'cuda:N', got 'tpu'"),
        ({"device": "cuda:"}, "device must be"),
        ({"device": "cuda:x"}, "device must be"),
    ],
)
def test_what_is_not_known(options: Any, message: str) -> None:
    with pytest.raises(reco.Error, match=message):
        config(**options)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("method", ["transformer", "gated"])
def test_bfloat16_agrees_with_float32(tmp_path: Path, method: Any, layers: int) -> None:
    shape = reco.FusionConfig(method=method, dim=DIM, k=5, heads=4, layers=layers)
    found = []
    for precision in ("float32", "bfloat16"):
        options: Any = {"epochs": 5, "learning_rate": 1e-3, "logit_scale": 20.0, "validation": 0.0, "batch_size": 64}
        run = reco.TrainingConfig(fusion=shape, **options, log=tmp_path / "log.csv", precision=precision)
        fusion = reco.train(IMAGES, TEXTS, remembered(), run)
        found.append((losses(tmp_path / "log.csv"), refined(fusion), fusion.provenance["precision"]))
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=0.02)
    assert (found[0][1] * found[1][1]).sum(1).min() > 0.99
    assert (found[0][1] != found[1][1]).any()
    assert [precision for *_, precision in found] == ["float32", "bfloat16"]


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    """Said before anything is searched or written."""
    memory = remembered()
    with pytest.raises(reco.Error, match=r"device 'cuda:999' was asked for, but there (is no GPU|are \d+ GPUs)"):
        train(memory, device="cuda:999", neighbors=tmp_path / "neighbors")
    assert memory.searches == 0 and not (tmp_path / "neighbors").exists()


def test_cpu_is_the_default(tmp_path: Path) -> None:
    assert weights(train(device="cpu"), tmp_path / "a") == weights(train(), tmp_path / "b")


# --- neighbours in files ----------------------------------------------------------------------------------------------
TABLE = ["image_rows.npy", "image_scores.npy", "neighbors.json", "text_rows.npy", "text_scores.npy"]


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.name != "neighbors.lock")


@pytest.mark.parametrize("options", [{}, {"search": "cross-modal"}, {"fuse": "both"}])
def test_found_neighbours_are_used_again(tmp_path: Path, options: Any) -> None:
    shape = reco.FusionConfig(method="transformer", dim=DIM, k=5, heads=4, **options)
    keys = [f"m{i}" for i in range(CONCEPTS)]

    def run(memory: reco.MemoryBase, folder: Path | None, k: int) -> bytes:
        asked = reco.FusionConfig(
            **{n: getattr(shape, n) for n in inspect.signature(type(shape)).parameters} | {"k": k}
        )
        given = reco.TrainingConfig(fusion=asked, epochs=2, batch_size=64, neighbors=folder)
        return weights(reco.train(IMAGES, TEXTS, memory, given, keys=keys), tmp_path / "f.safetensors")

    first, second = remembered(), remembered()
    held, written = run(remembered(), None, 5), run(first, tmp_path / "table", 5)
    assert held == written and first.searches > 0 and names(tmp_path / "table") == TABLE
    assert run(second, tmp_path / "table", 5) == held and second.searches == 0
    assert run(second, tmp_path / "table", 3) == run(remembered(), None, 3) and second.searches == 0
    (tmp_path / "table/text_rows.npy").unlink()  # as if killed before it was whole
    assert run(second, tmp_path / "table", 5) == held and second.searches == first.searches / 2


def test_another_program_may_write_them(tmp_path: Path) -> None:
    """NumPy, here: what a cluster's workers would do."""
    memory, folder = remembered(), tmp_path / "table"
    folder.mkdir()
    for side, queries in (("image", IMAGES), ("text", TEXTS)):
        found = memory.search(queries, k=7, modality=side)
        np.save(folder / f"{side}_rows.npy", found.rows)
        np.save(folder / f"{side}_scores.npy", found.scores)
    facts = {"format": "reco.neighbors/1", "pairs": CONCEPTS, "k": 7, "search": "uni-modal", "max_similarity": None}
    (folder / "neighbors.json").write_text(json.dumps(facts | {"encoder": "", "memory_rows": CONCEPTS}))
    before = memory.searches
    fusion = train(memory, neighbors=folder)
    assert memory.searches == before
    assert weights(fusion, tmp_path / "a") == weights(train(), tmp_path / "b")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("neighbors") / "table"
    train(neighbors=folder)
    return folder


def test_neighbours_of_something_else(table: Path, tmp_path: Path) -> None:
    more = remembered()
    fill(more, MEMORY_IMAGES[:1], MEMORY_TEXTS[:1], ["new"])
    with pytest.raises(reco.Error, match="belong to something else: expected memory_rows 121, found 120; remove"):
        train(more, neighbors=table)
    with pytest.raises(reco.Error, match=r"expected max_similarity 0\.5, found null"):
        train(neighbors=table, max_similarity=0.5)
    with pytest.raises(reco.Error, match="expected pairs 100, found 120"):
        reco.train(IMAGES[:100], TEXTS[:100], remembered(), config(neighbors=table))
    with pytest.raises(reco.Error, match='expected search "cross-modal", found "uni-modal"'):
        shape = reco.FusionConfig(dim=DIM, k=5, search="cross-modal")
        reco.train(IMAGES, TEXTS, remembered(), reco.TrainingConfig(fusion=shape, neighbors=table))
    with pytest.raises(reco.Error, match=r"expected k from 6 to 4,096 in .*neighbors.json, found 5"):
        shape = reco.FusionConfig(dim=DIM, k=6)
        reco.train(IMAGES, TEXTS, remembered(), reco.TrainingConfig(fusion=shape, neighbors=table))
    with pytest.raises(
        reco.Error, match=r"not of these pairs in this memory: image 0 and row \d+ have a similarity of"
    ):
        reco.train(IMAGES[::-1], TEXTS[::-1], remembered(), config(neighbors=table))
    # A pair whose own key is its neighbour's.
    own = [f"m{remembered().search(IMAGES[:1], k=1).rows[0, 0]}"] + [""] * (CONCEPTS - 1)
    with pytest.raises(reco.Error, match="not of these pairs in this memory: image 0"):
        reco.train(IMAGES, TEXTS, remembered(), config(neighbors=table), keys=own)
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(reco.Error, match=r"holds other files, and no neighbors\.json"):
        train(neighbors=tmp_path)


def edited(file: Path, change: Callable[[np.ndarray], object]) -> None:
    values = np.load(file)
    change(values)
    np.save(file, values)


def set_first(value: float) -> Callable[[np.ndarray], object]:
    return lambda values: values.__setitem__((0, 0), value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: edited(f / "image_rows.npy", set_first(-2)), "row numbers must be -1 or more in"),
        (lambda f: edited(f / "text_rows.npy", set_first(1 << 40)), "are not of this memory"),
        (lambda f: edited(f / "image_scores.npy", set_first(np.nan)), "similarities must be from -1 to 1"),
        (lambda f: edited(f / "text_scores.npy", set_first(0.5)), "not of these pairs in this memory: text 0"),
        (lambda f: np.save(f / "image_rows.npy", np.load(f / "image_rows.npy")[:, :4]), r"expected <i8 \[120, 5\]"),
        (lambda f: np.save(f / "text_scores.npy", np.zeros((CONCEPTS, 5))), r"expected <f4 \[120, 5\]"),
        (lambda f: (f / "image_rows.npy").write_bytes(b"no array"), "expected a .npy file"),
        (lambda f: (f / "image_rows.npy").write_bytes((f / "image_rows.npy").read_bytes()[:-8]), "bytes of data"),
        (lambda f: (f / "neighbors.json").write_text("[]"), "must hold a JSON object"),
        (lambda f: (f / "neighbors.json").write_text("{}"), "expected encoder"),
    ],
)
def test_damaged_neighbours(table: Path, tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    shutil.copytree(table, tmp_path / "table")
    damage(tmp_path / "table")
    memory = reco.Memory.create(tmp_path / "memory", DIM)
    memory.add(MEMORY_IMAGES, MEMORY_TEXTS, [f"m{i}" for i in range(CONCEPTS)])
    with pytest.raises(reco.Error, match=message):
        train(memory, neighbors=tmp_path / "table")


def test_scratch_lies_beside_the_checkpoint_until_the_end(tmp_path: Path) -> None:
    memory = remembered()
    run: dict[str, Any] = {"checkpoint": tmp_path / "run.safetensors", "epochs": 4}
    with pytest.raises(reco.Error, match="interrupted"):
        reco.train(IMAGES, TEXTS, memory, config("transformer", **run), progress=lambda done, _: done < 2)
    scratch = tmp_path / "run.safetensors.neighbors"
    assert names(scratch) == TABLE
    before = memory.searches
    fusion = reco.train(IMAGES, TEXTS, memory, config("transformer", **run))
    assert memory.searches == before and not scratch.exists()
    assert weights(fusion, tmp_path / "a") == weights(train(epochs=4), tmp_path / "b")


def test_tuning_a_mean_leaves_no_scratch(tmp_path: Path) -> None:
    train(method="mean", checkpoint=tmp_path / "run.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_another_checkpoint_is_noticed_before_searching(tmp_path: Path) -> None:
    train(checkpoint=tmp_path / "run.safetensors")
    memory = remembered()
    with pytest.raises(reco.Error, match="belongs to another run"):
        train(memory, checkpoint=tmp_path / "run.safetensors", precision="bfloat16")
    assert memory.searches == 0


# --- a run that was stopped -------------------------------------------------------------------------------------------
def test_resumes_within_an_epoch(tmp_path: Path) -> None:
    """300 steps an epoch, saved after 256, cut off at step 280."""
    images, texts = (np.repeat(rows, 5, 0) for rows in (IMAGES, TEXTS))
    curves = []

    def run(name: str, answers: int = 1 << 60) -> bytes:
        options: Any = {"epochs": 1, "batch_size": 2, "validation": 0.0, "warmup": 0.3}
        given = config("transformer", **options, checkpoint=tmp_path / name, log=tmp_path / "log.csv")
        fusion = reco.train(images, texts, remembered(answers), given)
        curves.append(losses(tmp_path / "log.csv"))
        return weights(fusion, tmp_path / "f.safetensors")

    unbroken = run("unbroken")
    with pytest.raises(reco.Error, match="killed"):
        run("broken", 2 * 280)  # two requests a step
    assert run("broken", 2 * 280) == unbroken  # not enough to begin again
    assert curves[0] == curves[1]


def test_the_curve_says_where_time_went(tmp_path: Path) -> None:
    train(log=tmp_path / "log.csv")
    with (tmp_path / "log.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert all(float(row["data_seconds"]) > 0 and float(row["step_seconds"]) > 0 for row in rows[1:])


def test_benchmark_agrees_with_pytorch() -> None:
    """The peers compute what reco computes: the script ends with an error otherwise."""
    script = Path(__file__).parents[2] / "benchmarks/training.py"
    small = ["--batch=64", "--dim=32", "--k=4", "--rows=500", "--rounds=1", "--steps=1", "--threads=1", "--eager"]
    done = subprocess.run([sys.executable, str(script), *small], check=True, capture_output=True, text=True)
    assert done.stdout.count("PyTorch, same arithmetic, eager") == 2
    assert done.stdout.count("PyTorch, TransformerEncoderLayer, eager") == 1
