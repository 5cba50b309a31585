# SPDX-License-Identifier: Apache-2.0
"""Model, command line and README snippets on the tiny CLIP and a few real icons."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import reco
from reco.cli import main
from reco.datasets import Sample, read_samples
from reco.embedding import Embeddings, embed

ROOT = Path(__file__).parents[2]
CLIP = ROOT / "examples/icons/clip"
DATA = ROOT / "examples/icons/data"


@pytest.fixture(scope="module")
def clip() -> reco.Clip:
    return reco.Clip.load(CLIP)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """Drawings by several hands of the first concepts of the first memory shard, and their queries."""
    drawn = list(read_samples(sorted(DATA.glob("memory-*"))[0]))
    concepts = list(dict.fromkeys(s.metadata["concept"] for s in drawn))[:20]
    return [s for s in drawn if s.metadata["concept"] in concepts]


@pytest.fixture(scope="module")
def pairs(clip: reco.Clip, samples: list[Sample]) -> Embeddings:
    return embed(clip, samples, progress=False)


@pytest.fixture
def memory(tmp_path: Path, clip: reco.Clip, pairs: Embeddings) -> reco.Memory:
    memory = reco.Memory.create(tmp_path / "icons.reco", dim=clip.dim, encoder=clip.fingerprint)
    memory.add(pairs.images, pairs.texts, pairs.keys, pairs.captions, pairs.metadata)
    return memory


@pytest.mark.parametrize("field", ["concept", None])
def test_votes_of_neighbours_join_in(
    clip: reco.Clip, memory: reco.Memory, pairs: Embeddings, samples: list[Sample], field: str | None
) -> None:
    names = list(dict.fromkeys(pairs.captions if field is None else (m[field] for m in pairs.metadata)))[:8]
    model = reco.Model(clip, memory, reco.Fusion.mean(clip.dim))
    images = [sample.image for sample in samples[:12]]
    found = memory.search(pairs.images[:12], k=5)
    said = found.captions if field is None else [[(m or {})[field] for m in row] for row in found.metadata]
    odds = np.exp(7 * found.scores)
    odds /= odds.sum(1, keepdims=True)
    shares = np.stack([(odds * (np.array(said) == name)).sum(1) for name in names], 1)
    plain = reco.zero_shot(model, names, ["{}", "an icon of {}"])
    logits = np.exp(clip.logit_scale * plain.scores(images))
    logits /= logits.sum(1, keepdims=True)
    for weight in (0.0, 0.3, 1.0):
        votes = reco.Votes(field, k=5, sharpness=7, weight=weight)
        voted = reco.zero_shot(model, names, ["{}", "an icon of {}"], votes)
        np.testing.assert_allclose(voted.scores(images), (1 - weight) * logits + weight * shares, atol=1e-4)
        assert voted.predict(images)[0] in names
    with pytest.raises(reco.Error, match="votes need a Model"):
        reco.zero_shot(clip, names, votes=votes)


def test_model_is_search_and_fusion(clip: reco.Clip, memory: reco.Memory, pairs: Embeddings) -> None:
    fusion = reco.Fusion.create(reco.FusionConfig(method="transformer", dim=clip.dim, k=4), seed=2)
    model = reco.Model(clip, memory, fusion, k=4)
    for side, queries, refine in (
        ("image", pairs.images, model.refine_images),
        ("text", pairs.texts, model.refine_texts),
    ):
        found = memory.search(queries, k=4, modality=side)
        want = fusion.fuse(side, queries, found.scores, found.partners, found.rows)["embeddings"]
        np.testing.assert_allclose(refine(queries), want, atol=1e-6)
    assert "pairs" in repr(model)


@pytest.mark.parametrize("method", ["gated", "transformer", "mean"])
def test_a_model_looks_up_as_many_as_its_fusion_is_for(
    clip: reco.Clip, memory: reco.Memory, pairs: Embeddings, method: Any
) -> None:
    fusion = reco.Fusion.create(reco.FusionConfig(method=method, dim=clip.dim, k=3), seed=2)
    model, same, fewer = (reco.Model(clip, memory, fusion, **k) for k in ({}, {"k": 3}, {"k": 2}))
    assert (model.k, same.k, fewer.k) == (3, 3, 2) and "k=3" in repr(model)
    np.testing.assert_array_equal(model.refine_images(pairs.images), same.refine_images(pairs.images))
    assert [len(one.explain(text="a red flag").keys) for one in (model, fewer)] == [3, 2]
    assert reco.Model(clip, memory, fusion, None).k == 3
    if method == "transformer":
        with pytest.raises(reco.Error, match="for this fusion, at most 3, got 4"):
            reco.Model(clip, memory, fusion, k=4)
    else:
        assert len(reco.Model(clip, memory, fusion, k=7).explain(text="a red flag").keys) == 7
    with pytest.raises(reco.Error, match="k must be at least 1"):
        reco.Model(clip, memory, fusion, k=0)


@pytest.mark.parametrize("search", ["uni-modal", "cross-modal"])
@pytest.mark.parametrize("fuse", ["partner", "same", "both"])
def test_search_and_fusion_modes(tmp_path: Path, clip: reco.Clip, search: Any, fuse: Any) -> None:
    """What is searched and what is fused, against NumPy over the memory's own embeddings."""
    random = np.random.default_rng(1)
    memory = reco.Memory.create(tmp_path / "m", dim=clip.dim)
    images, texts = random.normal(size=(2, 40, clip.dim))
    memory.add(images, texts, [str(i) for i in range(40)])
    held = {side: memory.embeddings(side) for side in ("image", "text")}
    queries = random.normal(size=(7, clip.dim)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    config = reco.FusionConfig(method="transformer", dim=clip.dim, k=3, search=search, fuse=fuse)
    fusion = reco.Fusion.create(config, seed=2)
    model = reco.Model(clip, memory, fusion, k=3)
    for own, other, refine in (("image", "text", model.refine_images), ("text", "image", model.refine_texts)):
        scores = queries @ held[own if search == "uni-modal" else other].T
        rows = np.argsort(-scores, axis=1)[:, :3]
        sides = {"partner": [other], "same": [own], "both": [other, own]}[fuse]
        partners = np.concatenate([held[side][rows] for side in sides], 1)
        found = np.concatenate([np.take_along_axis(scores, rows, 1)] * len(sides), 1)
        want = fusion.fuse(own, queries, found, partners)["embeddings"]
        np.testing.assert_allclose(refine(queries), want, atol=1e-4)


def test_exclude_own_keys(clip: reco.Clip, memory: reco.Memory, pairs: Embeddings) -> None:
    model = reco.Model(clip, memory, reco.Fusion.mean(clip.dim), k=3)
    own = model.refine_images(pairs.images)
    without = model.refine_images(pairs.images, exclude_keys=[[key] for key in pairs.keys])
    assert np.abs(own - without).max() > 1e-3


def test_fingerprints_must_fit(tmp_path: Path, clip: reco.Clip) -> None:
    other = reco.Memory.create(tmp_path / "other", dim=clip.dim, encoder="f00")
    with pytest.raises(reco.Error, match="the memory was made with encoder f00"):
        reco.Model(clip, other, reco.Fusion.mean(clip.dim))
    with pytest.raises(reco.Error, match=f"CLIP has dim {clip.dim}, the memory {clip.dim}, the fusion 8"):
        reco.Model(clip, reco.Memory.create(tmp_path / "m", dim=clip.dim), reco.Fusion.mean(8))


@pytest.fixture
def folder(tmp_path: Path, samples: list[Sample]) -> Path:
    """A user's folder: images with captions beside them, and a corrupt file for whoever asks."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for sample in samples[:30]:
        (folder / f"{sample.key}.webp").write_bytes(sample.image)
        (folder / f"{sample.key}.txt").write_text(sample.caption)
    return folder


def run(*arguments: Any) -> str:
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_command_line(tmp_path: Path, folder: Path, samples: list[Sample]) -> None:
    memory, fusion = tmp_path / "m.reco", tmp_path / "f.safetensors"
    run("memory", "create", memory, "--model", CLIP)
    added = json.loads(run("memory", "add", memory, folder, "--model", CLIP, "--json", "--quiet"))
    assert added == {"added": 30, "rows": 30}
    assert run("memory", "verify", memory).strip() == "ok"
    assert json.loads(run("memory", "info", memory, "--json"))["rows"] == 30
    trained = run(
        "train",
        folder,
        "--model",
        CLIP,
        "--memory",
        memory,
        "--out",
        fusion,
        "--epochs",
        2,
        "--validation",
        0,
        "--quiet",
    )
    assert "best_epoch" in trained
    assert json.loads(run("info", fusion, "--json"))["method"] == "gated"
    assert json.loads(run("info", CLIP, "--json"))["kind"] == "clip"
    image = folder / f"{samples[0].key}.webp"
    assert samples[0].key in run("search", image, "--model", CLIP, "--memory", memory)
    assert samples[0].caption in run("search", samples[0].caption, "--model", CLIP, "--memory", memory)
    explained = run("explain", image, "--model", CLIP, "--memory", memory, "--fusion", fusion, "--json")
    assert json.loads(explained)["neighbors"][0]["key"] == samples[0].key
    given = ("eval", "--dataset", "labelled", "--root", folder, "--prompts", "plain", "--max-similarity", "none")
    where = ("--model", CLIP, "--memory", memory, "--cache", tmp_path / "cache")
    records = json.loads(run(*given, *where, "--json", "--quiet"))
    assert [r["pretrained"].partition("+")[2] for r in records] == ["", "reco"]
    assert records[1]["metrics"]["acc1"] >= records[0]["metrics"]["acc1"]
    embedded = json.loads(run("embed", folder, "--model", CLIP, "--out", tmp_path / "e", "--quiet", "--json"))
    assert (embedded["rows"], embedded["errors"], embedded["finished"]) == (30, 0, True)
    shape = "--method transformer --search cross-modal --fuse both --sides image --k 2 --layers 2 --heads 4"
    flags = (
        "--mlp-ratio 2 --no-positions --similarity --residual --shared --learn-scale --micro-batch 4 --wrong-captions 0"
    )
    options = f"{shape} {flags} --loss 1 0 1 --logit-scale 30".split()
    command = ["train", folder, "--model", CLIP, "--memory", memory, "--out", fusion, "--epochs", 1, "--quiet"]
    run(*command, *options)
    made = reco.Fusion.load(fusion)
    run("train", memory, "--model", CLIP, "--memory", memory, "--out", tmp_path / "g.safetensors", "--epochs", 1)
    assert reco.Fusion.load(tmp_path / "g.safetensors").provenance["rows"] == 30
    assert (made.config.search, made.config.fuse, made.config.sides) == ("cross-modal", "both", "image")
    assert made.config.shared and made.config.residual and made.config.similarity and not made.config.positions
    assert (made.provenance["loss"], made.provenance["logit_scale"]) == ([1, 0, 1], 30)
    assert made.provenance["learn_scale"] and made.config.k == 2
    explain = ("explain", image, "--model", CLIP, "--memory", memory, "--fusion", fusion, "--json")
    shown = [len(json.loads(run(*explain, *k))["neighbors"]) for k in ((), ("--k", 1))]
    assert shown == [2, 1]  # without --k as many as the fusion was made for
    run("memory", "remove", memory, samples[0].key)
    assert json.loads(run("memory", "info", memory, "--json"))["rows"] == 29


def test_command_line_errors_are_one_line(tmp_path: Path, folder: Path) -> None:
    memory = tmp_path / "m.reco"
    run("memory", "create", memory, "--model", CLIP)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing follows")
    for arguments in (
        ("memory", "add", memory, folder, "--model", CLIP, "--quiet"),
        ("memory", "add", memory, tmp_path / "absent", "--model", CLIP, "--quiet"),
        ("info", tmp_path / "absent"),
        ("search", "cat", "--model", tmp_path, "--memory", memory),
    ):
        result = CliRunner().invoke(main, [str(a) for a in arguments])
        assert result.exit_code == 1
        assert re.fullmatch(r"Error: \[[a-z_.]+\] .+\n", result.output), result.output
    assert json.loads(run("memory", "info", memory, "--json"))["rows"] == 0  # nothing was written


def test_damaged_shard_names_itself(tmp_path: Path) -> None:
    shard = tmp_path / "x.tar"
    whole = sorted(DATA.glob("queries-*"))[0].read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(reco.Error, match="x.tar: the shard is damaged"):
        list(read_samples(shard))


def test_captions_csv(tmp_path: Path, samples: list[Sample]) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/one.webp").write_bytes(samples[0].image)
    (tmp_path / "captions.csv").write_text('file,caption\na/one.webp,"a ""quoted"", name"\n')
    [sample] = read_samples(tmp_path)
    assert (sample.key, sample.caption) == ("a/one", 'a "quoted", name')


def test_readme_snippet(tmp_path: Path, memory: reco.Memory, samples: list[Sample]) -> None:
    """The README's Python snippet runs as it stands, in a folder that has what it names."""
    snippet = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    assert snippet
    (tmp_path / "clip").symlink_to(CLIP)
    (tmp_path / "known.webp").write_bytes(samples[0].image)
    (tmp_path / "query.webp").write_bytes(samples[1].image)
    result = subprocess.run(
        [sys.executable, "-c", snippet[1]], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_readme_cpp_snippet_is_the_example() -> None:
    """What the README shows is what is compiled and run in test_install.py."""
    snippet = re.search(r"```cpp\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    assert snippet
    example = (ROOT / "examples/cpp/zero_shot.cpp").read_text("utf-8")
    lines = [line.strip() for line in snippet[1].splitlines() if line.strip()]
    assert len(lines) >= 6
    assert [line for line in lines if line not in example] == []
