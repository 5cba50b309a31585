# SPDX-License-Identifier: Apache-2.0
"""OVEN: entities among all names, an index that is made once, scores as OVEN's own script counts them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import benchmark_folders as folders
import reco
from benchmark_folders import CLASSES, CLIP, Made, put
from reco.datasets import EntityQuestions, load_dataset
from reco.datasets.benchmark import image_bytes
from reco.evaluation import (
    EmbeddingCache,
    evaluate_dataset,
    markdown_table,
    published_final_score,
    published_scores,
    read_predictions,
    score_predictions,
)

pytest_plugins = ("icon_fixtures",)


def oven(root: Path, split: str = "entity_val") -> EntityQuestions:
    data = load_dataset("oven", root, split=split)
    assert isinstance(data, EntityQuestions)
    return data


def accuracies(reference: Path, predictions: Path) -> dict[str, float]:
    """As OVEN publishes them: matches of each split in percent, rounded to two places."""
    answers = {r["data_id"]: r for r in map(json.loads, reference.read_text().splitlines())}
    matches: dict[str, list[int]] = {}
    for line in predictions.read_text().splitlines():
        row = json.loads(line)
        answer = answers[row["data_id"]]
        matches.setdefault(answer["data_split"], []).append(int(answer["entity_id"] == row["pred_entity_id"]))
    return {split.rpartition("_")[2]: round(sum(m) / len(m) * 100, 2) for split, m in matches.items()}


def harmonic(*values: float) -> float:
    """OVEN's: of percentages, with a very small number in place of zero."""
    return len(values) / sum(1.0 / (value if value != 0 else 1e-12) for value in values)


def test_oven(tmp_path: Path, model: reco.Model, made: Made) -> None:
    names, items = made
    root = folders.oven(tmp_path, names, items, [f"thing {i}" for i in range(60)] + [names[0]])
    data = oven(root)
    result = evaluate_dataset(model, data, work=tmp_path / "work", progress=False)
    assert result.counts == {"images": 48, "candidates": CLASSES + 61}
    for system in ("clip", "reco"):
        file = tmp_path / f"work/oven-entity_val-{system}.predictions.jsonl"
        metrics = getattr(result, system).metrics
        want = accuracies(root / "oven_entity_val.jsonl", file)
        want["harmonic_mean"] = round(harmonic(want["seen"], want["unseen"]), 2)
        assert published_scores(metrics) == result.record(system)["reco"]["published"] == want
        assert score_predictions(data, read_predictions(file)) == metrics
    assert 0.2 < result.clip.metrics["seen"] < 1
    # Against a plain product with all candidates.
    titles = [json.loads(line) for line in data.names.read_text().splitlines()]
    prompts = [f"a photo of {row['wikipedia_title']}" for row in titles]
    keys = result.leaks.keys
    queries = model.refine_images(
        model.clip.encode_images([image_bytes(image) for image in data.images]), exclude_keys=keys
    )
    candidates = model.refine_texts(model.clip.encode_texts(prompts), exclude_keys=keys)
    best = (queries @ candidates.T).argmax(1)
    found = read_predictions(tmp_path / "work/oven-entity_val-reco.predictions.jsonl")
    by_title = {row["wikidata_id"]: row["wikipedia_title"] for row in titles}
    same = [titles[b]["wikipedia_title"] == by_title[found[i]] for b, i in zip(best, data.data_ids, strict=True)]
    assert np.mean(same) > 0.95, "the index holds rows in half precision"


@pytest.mark.parametrize("seed", range(20))
def test_scores_are_oven_s_to_the_last_digit(seed: int) -> None:
    """Random counts of matches, some of them zero, against the published definition."""
    random = np.random.default_rng(seed)
    shares, means = [], []
    for _ in range(2):
        counts = random.integers(1, 60_000, 2)
        matches = random.integers(0, counts + 1) * (random.random(2) < 0.8)
        seen, unseen = (round(int(m) / int(n) * 100, 2) for m, n in zip(matches, counts, strict=True))
        means.append(harmonic(seen, unseen))
        shares.append({"seen": matches[0] / counts[0], "unseen": matches[1] / counts[1]})
        want = {"seen": seen, "unseen": unseen, "harmonic_mean": round(means[-1], 2)}
        assert published_scores(shares[-1]) == want
    assert published_final_score(*shares) == round(harmonic(*means), 2)


def test_over_both_splits(tmp_path: Path, model: reco.Model, made: Made) -> None:
    root = folders.oven(tmp_path, *made)
    both = [
        evaluate_dataset(model, oven(root, split), work=tmp_path / "w", progress=False)
        for split in ("entity_val", "query_val")
    ]
    splits = [published_scores(e.reco.metrics) for e in both]
    means = [harmonic(scores["seen"], scores["unseen"]) for scores in splits]
    table = markdown_table(both)
    assert f"- OVEN over both splits (val), CLIP + reco: {harmonic(*means):.2f}\n" in table
    assert f"- OVEN's own rounding, query_val, CLIP + reco: seen {splits[1]['seen']:.2f}, unseen " in table


def test_goes_on_where_it_was(tmp_path: Path, model: reco.Model, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    from reco.evaluation import entities

    names, items = made
    root = folders.oven(tmp_path, names, items, [f"thing {i}" for i in range(60)])
    data = oven(root)
    whole = evaluate_dataset(model, data, work=tmp_path / "whole", progress=False)
    monkeypatch.setattr(entities, "_NAMES", 16)
    encoded: list[int] = []
    encode = entities._encode

    def interrupted(run: Any, templates: Any, leaks: Any, titles: list[str]) -> Any:
        if len(encoded) == 2:
            raise KeyboardInterrupt
        encoded.append(len(titles))
        return encode(run, templates, leaks, titles)

    monkeypatch.setattr(entities, "_encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_dataset(model, data, work=tmp_path / "work", progress=False)
    encoded[:] = [0]

    def counted(run: Any, templates: Any, leaks: Any, titles: list[str]) -> Any:
        encoded.append(len(titles))
        return encode(run, templates, leaks, titles)

    monkeypatch.setattr(entities, "_encode", counted)
    result = evaluate_dataset(model, data, work=tmp_path / "work", progress=False)
    assert sum(encoded) == CLASSES + 60 - 32
    assert (result.clip, result.reco) == (whole.clip, whole.reco)
    encoded.clear()
    evaluate_dataset(model, data, work=tmp_path / "work", progress=False)
    assert not encoded, "a second run finds the index"


KILLED = """
import os, signal, sys
from pathlib import Path
import reco
from reco.datasets import load_dataset
from reco.datasets.benchmark import image_bytes
from reco.evaluation import entities, evaluate_dataset, write_results

root, memory, clip, out, pieces = sys.argv[1:]
entities._NAMES = 16
encode, done = entities._encode, []

def counted(*arguments):
    if len(done) == int(pieces):
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(len(arguments[-1]))
    return encode(*arguments)

entities._encode = counted
clip = reco.Clip.load(clip)
model = reco.Model(clip, reco.Memory.open(memory, read_only=True), reco.Fusion.mean(clip.dim))
write_results([evaluate_dataset(model, load_dataset("oven", root), work=out, progress=False)], out)
print(sum(done))
"""


def test_goes_on_after_kill_9(tmp_path: Path, memory_path: Path, made: Made) -> None:
    """Killed at every piece of names, each run encodes what the ones before did not, and the end is the same."""
    root = folders.oven(tmp_path / "data", *made, [f"thing {i}" for i in range(40)])
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"

    def run(out: Path, most: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", KILLED, *map(str, (root, memory_path, CLIP, out, most))]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert run(whole, 99).returncode == 0
    for _ in range(2):
        assert run(pieces, 1).returncode == -signal.SIGKILL
    last = run(pieces, 99)
    assert last.returncode == 0, last.stderr
    assert int(last.stdout) == CLASSES + 40 - 2 * 16
    for file in whole.glob("*.predictions.jsonl"):
        assert (pieces / file.name).read_bytes() == file.read_bytes()
    for system in ("clip", "reco"):
        first, second = (json.loads((out / f"oven-entity_val-{system}.json").read_text()) for out in (whole, pieces))
        assert first["metrics"] == second["metrics"]


def test_embeddings_of_images_lie_in_a_file(tmp_path: Path, clip: reco.Clip, made: Made) -> None:
    """Which has no name, so that nothing stays behind."""
    from reco.evaluation.entities import _rows_on_disk

    images = [picture.jpeg for picture in made[1][:5]]
    with EmbeddingCache(clip, progress=False) as cache:
        rows = cache.images(images, out=_rows_on_disk(tmp_path / "new", 5, clip.dim))
        assert isinstance(rows, np.memmap)
        assert np.array_equal(rows, cache.images(images))
    assert list((tmp_path / "new").iterdir()) == []
    put(tmp_path / "file", "")
    with pytest.raises(reco.Error, match="cannot keep 5 embeddings in .*file: File exists"):
        _rows_on_disk(tmp_path / "file", 5, clip.dim)


def test_with_an_index_and_doubled_names(
    tmp_path: Path, model: reco.Model, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reco.evaluation import entities

    monkeypatch.setattr(entities, "_INDEXED", 50)
    monkeypatch.setattr(entities, "_INDEX", "HNSW16")
    root = folders.oven(tmp_path, *made, [f"thing {i}" for i in range(2000)])
    names = root / "Wiki6M_ver_1_0_title_only.jsonl"
    put(names, names.read_text() + names.read_text()[:200].rpartition("\n")[0] + "\n")
    result = evaluate_dataset(model, oven(root), work=tmp_path / "work", progress=False)
    assert result.counts["candidates"] == CLASSES + 2000, "an id counts once"
    [index] = (tmp_path / "work").glob("names-*.reco")
    with reco.Memory.open(index, read_only=True) as memory:
        assert memory.info()["indexes"]
    monkeypatch.setattr(entities, "_INDEXED", 1 << 30)
    exact = evaluate_dataset(model, oven(root), work=tmp_path / "exact", progress=False)
    assert exact.counts == result.counts
    a, b = (read_predictions(tmp_path / f"{d}/oven-entity_val-reco.predictions.jsonl") for d in ("work", "exact"))
    chosen = result.setup["candidates"]
    assert all(chosen[system]["recall"] >= 0.99 for system in chosen)
    assert np.mean([a[i] == b[i] for i in a]) > 0.95


def test_without_answers(tmp_path: Path, model: reco.Model, made: Made) -> None:
    root = folders.oven(tmp_path, *made)
    data = oven(root, "entity_test")
    result = evaluate_dataset(model, data, work=tmp_path / "work", progress=False)
    assert result.reco.metrics == {}
    assert len(read_predictions(tmp_path / "work/oven-entity_test-reco.predictions.jsonl")) == len(data.images)
    with pytest.raises(reco.Error, match="entity_test has no answers"):
        score_predictions(data, {})
    with pytest.raises(reco.Error, match="expected predictions of all 48 questions, found none of oven_entity_val_0"):
        score_predictions(oven(root), {})
