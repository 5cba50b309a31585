# SPDX-License-Identifier: Apache-2.0
"""The metrics against clip_benchmark's own functions, run whole on the same embeddings; its table from our files."""

from __future__ import annotations

import argparse
import ast
import csv
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import benchmark_folders as folders
import reco
from benchmark_folders import Made
from reco.datasets import Classification, load_dataset
from reco.evaluation import choose_classnames, choose_templates, evaluate_dataset, write_results

pytest_plugins = ("icon_fixtures",)

classification = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
retrieval = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")


def unit(x: Any) -> Any:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


class Given:
    """A model whose embeddings are given: what is encoded are rows of a table."""

    def __init__(self, texts: Any) -> None:
        self.texts = torch.from_numpy(texts)

    def encode_image(self, images: Any) -> Any:
        return images

    def encode_text(self, rows: Any) -> Any:
        return self.texts[rows]


class Batches(list[Any]):
    """What clip_benchmark takes for a DataLoader: it asks for the data set's classes."""

    dataset: Any = None


@pytest.fixture(autouse=True)
def float_of_one_element(monkeypatch: pytest.MonkeyPatch) -> None:
    """clip_benchmark 1.6.2 calls float() on arrays of one element, which NumPy 2.4 no longer allows."""
    monkeypatch.setattr(classification, "float", lambda x: float(np.asarray(x).item()), raising=False)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("n", "classes", "templates"), [(1500, 37, 1), (700, 102, 4), (64, 5, 2), (3000, 397, 1), (9000, 1000, 1)]
)
def test_classification(seed: int, n: int, classes: int, templates: int) -> None:
    random = np.random.default_rng(seed)
    prompts = unit(random.normal(size=(classes * templates, 48)))
    labels = random.integers(0, classes, n)
    images = unit(random.normal(size=(n, 48)) + 2.5 * prompts[labels * templates])
    batches = Batches(
        (torch.from_numpy(images[i : i + 100]), torch.from_numpy(labels[i : i + 100])) for i in range(0, n, 100)
    )
    batches.dataset = type("Data", (), {"classes": list(range(classes))})
    rows = iter(range(classes))

    def tokenizer(texts: list[str]) -> Any:
        first = next(rows) * templates
        return torch.arange(first, first + len(texts))

    names, prompts_of = [str(i) for i in range(classes)], ["{c}"] * templates
    want = classification.evaluate(Given(prompts), batches, tokenizer, names, prompts_of, "cpu", amp=False)
    got, _ = reco.classify(images, reco.average_prompts(prompts, templates), labels.tolist())
    assert 0.05 < got["acc1"] < 1
    assert got["acc1"] == want["acc1"]
    assert got["acc5"] == want["acc5"]
    assert got["mean_per_class_recall"] == want["mean_per_class_recall"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("captions", [1, 5])
def test_retrieval(seed: int, captions: int) -> None:
    random = np.random.default_rng(seed)
    images = unit(random.normal(size=(240, 32)))
    texts = unit(np.repeat(images, captions, 0) + 0.3 * random.normal(size=(240 * captions, 32)))
    first = 0

    def tokenizer(rows: list[int]) -> Any:
        return torch.tensor(rows)

    batches = []
    for first in range(0, 240, 60):
        rows = range(first, first + 60)
        batches.append((torch.from_numpy(images[rows]), [range(i * captions, (i + 1) * captions) for i in rows]))
    want = retrieval.evaluate(Given(texts), batches, tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10])
    got = reco.retrieve(images, texts, [i for i in range(240) for _ in range(captions)])
    assert 0.1 < got["image_retrieval_recall@1"] < 1
    assert set(got) == set(want)
    for name, value in got.items():
        assert np.float32(value) == np.float32(want[name]), name  # theirs are means in float32


def clip_benchmark_build(files: list[str], output: Path) -> None:
    """What `clip_benchmark build FILES --output OUTPUT` runs: that function alone, as its module wants torchvision."""
    source = Path(classification.__file__).parents[1] / "cli.py"
    [build] = [
        n for n in ast.parse(source.read_text()).body if isinstance(n, ast.FunctionDef) and n.name == "main_build"
    ]
    names: dict[str, Any] = {"json": json, "os": os, "csv": csv}
    exec(compile(ast.Module([build], []), str(source), "exec"), names)
    names["main_build"](argparse.Namespace(files=files, output=str(output)))


@pytest.mark.parametrize("whole_folder", [True, False])
def test_build_reads_our_files(tmp_path: Path, model: reco.Model, made: Made, whole_folder: bool) -> None:
    makers = {"cub": folders.cub, "coco": folders.coco, "oven": folders.oven}
    results = [
        evaluate_dataset(model, load_dataset(name, make(tmp_path / name, *made)), name="tiny", work=tmp_path / "out",
                         progress=False)
        for name, make in makers.items()
    ]  # fmt: skip
    written = [str(path) for path in write_results(results, tmp_path / "out") if path.suffix == ".json"]
    clip_benchmark_build([str(tmp_path / "out")] if whole_folder else written, tmp_path / "benchmark.csv")
    with (tmp_path / "benchmark.csv").open(newline="") as file:
        rows = {(row["dataset"], row["pretrained"].endswith("+reco")): row for row in csv.DictReader(file)}
    assert len(rows) == 6
    for result in results:
        for system in ("clip", "reco"):
            row = rows[result.dataset, system == "reco"]
            assert (row["task"], row["language"], row["model"]) == (result.task, "en", "tiny")
            assert row["model_fullname"] == f"tiny {row['pretrained']}"
            metrics = getattr(result, system).metrics
            assert metrics
            assert {name: float(row[name]) for name in metrics} == metrics


def test_their_prompts_and_names() -> None:
    folder = Path(classification.__file__).parents[1] / "datasets"
    names = json.loads((folder / "en_classnames.json").read_text())
    templates = json.loads((folder / "en_zeroshot_classification_templates.json").read_text())
    imagenet = Classification("imagenet", "val", [], [999], [])
    assert choose_classnames("clip_benchmark", imagenet).lines == names["imagenet1k"]
    assert choose_templates("clip_benchmark", "imagenet", []).lines == templates["imagenet1k"]
    assert choose_templates("clip_benchmark", "cars", []).lines == templates["cars"]
    with pytest.raises(reco.Error, match="clip_benchmark has no classnames for cub"):
        choose_classnames("clip_benchmark", Classification("cub", "test", [], [0], ["a"]))


def test_open_clips_prompts_and_names() -> None:
    if importlib.util.find_spec("open_clip") is None:
        pytest.skip("open_clip is not installed")
    imagenet = Classification("imagenet", "val", [], [999], [])
    assert choose_classnames("open_clip", imagenet).lines[:2] == ["tench", "goldfish"]
    lines = choose_templates("open_clip", "imagenet", []).lines
    assert len(lines) == 80
    assert all("{}" in line for line in lines)
