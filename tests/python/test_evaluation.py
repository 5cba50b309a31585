# SPDX-License-Identifier: Apache-2.0
"""The metrics against NumPy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reco
from reco.evaluation import Record, write_report


def unit(x: Any) -> Any:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def test_classify_equals_numpy() -> None:
    random = np.random.default_rng(0)
    images, classes = unit(random.normal(size=(2500, 16))), unit(random.normal(size=(40, 16)))
    labels = random.integers(0, 30, 2500)  # ten classes without an image
    metrics, predictions = reco.classify(images, classes, labels.tolist())
    order = np.argsort(-(images @ classes.T), axis=1)
    assert np.array_equal(predictions, order[:, 0])
    assert metrics["acc1"] == pytest.approx((order[:, 0] == labels).mean(), abs=1e-12)
    assert metrics["acc5"] == pytest.approx((order[:, :5] == labels[:, None]).any(1).mean(), abs=1e-12)
    recalls = [(order[:, 0] == labels)[labels == c].mean() for c in range(30)]
    assert metrics["mean_per_class_recall"] == pytest.approx(np.mean(recalls), abs=1e-12)


def test_retrieve_equals_numpy() -> None:
    random = np.random.default_rng(1)
    images, texts = unit(random.normal(size=(60, 8))), unit(random.normal(size=(300, 8)))
    image_of_text = random.permutation(np.repeat(np.arange(60), 5))
    got = reco.retrieve(images, texts, image_of_text.tolist())
    scores = texts @ images.T
    for k in (1, 5, 10):
        top_images = np.argsort(-scores, axis=1)[:, :k]
        want = (top_images == image_of_text[:, None]).any(1).mean()
        assert got[f"image_retrieval_recall@{k}"] == pytest.approx(want, abs=1e-12)
        top_texts = np.argsort(-scores.T, axis=1)[:, :k]
        want = (image_of_text[top_texts] == np.arange(60)[:, None]).any(1).mean()
        assert got[f"text_retrieval_recall@{k}"] == pytest.approx(want, abs=1e-12)


def test_ties_and_few_classes() -> None:
    same = np.ones((3, 4), np.float32) / 2
    metrics, predictions = reco.classify(same, same[:2], [0, 1, 1])
    assert predictions.tolist() == [0, 0, 0]
    assert metrics["acc1"] == pytest.approx(1 / 3)
    assert metrics["acc5"] == 1


def test_prompts() -> None:
    assert reco.prompts(["a", "{}"], ["x {} y", "{c}!"]) == ["x a y", "a!", "x {} y", "{}!"]
    with pytest.raises(reco.Error, match="needs {}"):
        reco.prompts(["a"], ["no place"])
    rows = np.array([[1, 0], [0, 1], [1, 0], [1, 0]], np.float32)
    np.testing.assert_allclose(reco.average_prompts(rows, 2), [[0.5**0.5, 0.5**0.5], [1, 0]], atol=1e-6)


def test_harmonic_mean() -> None:
    assert reco.harmonic_mean(0.5, 0.25) == pytest.approx(1 / 3)
    assert reco.harmonic_mean(0, 0) == 0


def test_errors() -> None:
    x = np.eye(4, dtype=np.float32)
    with pytest.raises(reco.Error, match="labels must be from 0 to 3, got 4"):
        reco.classify(x, x, [0, 1, 2, 4])
    with pytest.raises(reco.Error, match="expected 4 labels, got 1"):
        reco.classify(x, x, [0])
    with pytest.raises(reco.Error, match="equally many columns"):
        reco.retrieve(x, x[:, :3], [0, 1, 2, 3])


def test_report(tmp_path: Path) -> None:
    record = Record("icons/unseen", "reco", {"acc1": 0.5}, seed=1, extra={"memory": "m"})
    write_report([record], tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == [
        {
            "dataset": "icons/unseen",
            "model": "reco",
            "metrics": {"acc1": 0.5},
            "task": "zeroshot_classification",
            "seed": 1,
            "memory": "m",
        }
    ]
