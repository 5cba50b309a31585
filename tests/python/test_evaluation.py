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


def test_ranks_equal_numpy() -> None:
    random = np.random.default_rng(2)
    queries, candidates = unit(random.normal(size=(50, 8))), unit(random.normal(size=(300, 8)))
    query_of = random.integers(0, 49, 300)  # the last query has no candidate
    order = np.argsort(-(queries @ candidates.T), axis=1)
    place = np.argsort(order, axis=1)
    want = [place[i][query_of == i].min() if (query_of == i).any() else 300 for i in range(50)]
    assert reco.ranks(queries, candidates, np.arange(300), query_of).tolist() == want
    targets = random.integers(0, 300, 50)
    assert np.array_equal(reco.ranks(queries, candidates, targets), place[np.arange(50), targets])
    with pytest.raises(reco.Error, match="expected 50 targets, got 3"):
        reco.ranks(queries, candidates, [1, 2, 3])
    with pytest.raises(reco.Error, match="targets must be from 0 to 299, got 300"):
        reco.ranks(queries, candidates, [300] * 50)


def test_bootstrap_equals_numpys() -> None:
    """The percentiles that NumPy finds with draws of its own, for plain means, whole units and means of groups."""
    random = np.random.default_rng(3)
    n = 300
    values = (random.random(n) < 0.7).astype(float)
    units, groups = np.arange(n) // 3, random.integers(0, 4, n)
    options = {"resamples": 4000, "seed": 1}

    def numpy(of_unit: Any, of_group: Any) -> Any:
        means = []
        for _ in range(4000):
            drawn = random.integers(0, of_unit.max() + 1, of_unit.max() + 1)
            weights = np.bincount(drawn, minlength=of_unit.max() + 1)[of_unit]
            sums, counts = (np.bincount(of_group, weights=w) for w in (weights * values, weights))
            means.append((sums / counts).mean())
        return np.quantile(means, [0.025, 0.975])

    one = np.zeros(n, int)
    own = np.arange(n)
    np.testing.assert_allclose(reco.bootstrap(values, **options), numpy(own, one), atol=0.01)
    np.testing.assert_allclose(reco.bootstrap(values, units, **options), numpy(units, one), atol=0.01)
    np.testing.assert_allclose(reco.bootstrap(values, None, groups, **options), numpy(own, groups), atol=0.01)
    assert reco.bootstrap(values, **options) == reco.bootstrap(values, **options)
    assert reco.bootstrap(values, resamples=50, seed=2) != reco.bootstrap(values, resamples=50, seed=3)
    narrow = reco.bootstrap(values, confidence=0.5, **options)
    wide = reco.bootstrap(values, confidence=0.99, **options)
    assert wide[0] < narrow[0] <= values.mean() <= narrow[1] < wide[1]
    for wrong, message in (({"resamples": 0}, "resamples of at least 1"), ({"confidence": 1}, "between 0 and 1")):
        with pytest.raises(reco.Error, match=message):
            reco.bootstrap(values, **wrong)
    with pytest.raises(reco.Error, match="expected 300 units, got 2"):
        reco.bootstrap(values, [0, 1])
    with pytest.raises(reco.Error, match="expected one finite value or more"):
        reco.bootstrap([float("nan")])


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


def test_vote_and_blend_equal_numpy() -> None:
    random = np.random.default_rng(4)
    scores = -np.sort(-random.random((6, 4)).astype(np.float32), axis=1)
    labels = random.integers(-1, 3, (6, 4))
    weights = np.exp(9 * scores) / np.exp(9 * scores).sum(1, keepdims=True)
    want = np.stack([(weights * (labels == c)).sum(1) for c in range(3)], 1)
    votes = reco.vote(scores, labels, 3, sharpness=9)
    np.testing.assert_allclose(votes, want, atol=1e-6)
    cosines = random.normal(size=(6, 3)).astype(np.float32)
    odds = np.exp(5 * cosines)
    np.testing.assert_allclose(
        reco.blend(cosines, votes, 5, 0.3), 0.7 * odds / odds.sum(1, keepdims=True) + 0.3 * want, atol=1e-5
    )
    with pytest.raises(reco.Error, match="expected 24 labels of one class or more, got 6"):
        reco.vote(scores, labels[:, 0], 3)
    with pytest.raises(reco.Error, match="labels must be from -1 to 1, got 2"):
        reco.vote(scores, labels, 2)
    with pytest.raises(reco.Error, match="one shape"):
        reco.blend(cosines, votes[:3], 5)
