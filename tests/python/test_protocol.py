# SPDX-License-Identifier: Apache-2.0
"""Whole evaluations, from published formats on disk to result files, on the tiny CLIP and drawn icons."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import benchmark_folders as folders
import reco
from benchmark_folders import CLASSES, CLIP, Made, put
from reco.datasets import Classification, load_dataset
from reco.evaluation import (
    EmbeddingCache,
    Evaluation,
    Protocol,
    Texts,
    choose_classnames,
    choose_templates,
    evaluate_dataset,
    markdown_table,
    write_html,
    write_results,
)
from reco.evaluation.plan import read_plan, run_plan
from reco.evaluation.texts import shipped_templates

pytest_plugins = ("icon_fixtures",)


def command(*arguments: object, ok: bool = True) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "reco.cli", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert (result.returncode == 0) == ok, result.stdout + result.stderr
    return result.stdout if ok else result.stderr


MAKERS: dict[str, Callable[..., Path]] = {
    "cars": folders.cars,
    "cub": folders.cub,
    "flowers": folders.flowers,
    "dogs": folders.dogs,
    "imagenet": folders.imagenet_flat,
    "places365": folders.places365,
    "coco": folders.coco,
    "flickr30k": folders.flickr30k,
    "oven": folders.oven,
    "folder": folders.class_folders,
    "labelled": folders.table,
    "webdataset": folders.webdataset,
}


@pytest.mark.parametrize("name", MAKERS)
def test_command_line(tmp_path: Path, made: Made, memory_path: Path, name: str) -> None:
    root = MAKERS[name](tmp_path / "data", *made)
    base = ("eval", "--dataset", name, "--root", root, "--model", CLIP, "--memory", memory_path, "--quiet")
    out = tmp_path / "out"
    text = command(*base, "--cache", tmp_path / "cache", "--out", out)
    records = json.loads(command(*base, "--cache", tmp_path / "cache", "--json"))
    assert [r["pretrained"].endswith("+reco") for r in records] == [False, True]
    for record in records:
        assert list(record)[:6] == ["dataset", "model", "pretrained", "task", "metrics", "language"]
        assert record["metrics"]
        for metric, value in record["metrics"].items():
            low, high = record["reco"]["intervals"][metric]
            assert 0 <= low <= high <= 1
            assert metric in text
            assert f"{100 * value:.2f}" in text
        stem = f"{record['dataset']}-{record['reco']['split']}"
        system = "reco" if record["pretrained"].endswith("+reco") else "clip"
        written = json.loads((out / f"{stem}-{system}.json").read_text())
        assert written["metrics"] == record["metrics"], "a second run, from cached embeddings, gives the same"
    assert "reco" in (out / "results.md").read_text()


def test_metrics_are_those_of_the_embeddings(tmp_path: Path, clip: reco.Clip, model: reco.Model, made: Made) -> None:
    """Step by step with the library's own pieces, nothing left out of the memory."""
    folders.imagenet_flat(tmp_path, *made)
    data = load_dataset("imagenet", tmp_path)
    result = evaluate_dataset(model, data, Protocol(prompts="imagenet", max_similarity=None), progress=False)
    templates = choose_templates("imagenet", "imagenet", []).lines
    assert len(templates) == 5
    for system, encoder in (("clip", clip), ("reco", model)):
        classes = reco.average_prompts(encoder.encode_texts(reco.prompts(data.classnames, templates)), len(templates))
        want, guesses = reco.classify(encoder.encode_images(data.images), classes, data.labels)
        assert getattr(result, system).metrics == pytest.approx(want, abs=1e-12)
        right = guesses == np.array(data.labels)
        for i, score in enumerate(result.per_class):
            assert getattr(score, system) == right[np.array(data.labels) == i].mean()
    difference = {name: result.reco.metrics[name] - value for name, value in result.clip.metrics.items()}
    assert result.gain.metrics == pytest.approx(difference, abs=1e-12)
    assert result.clip.metrics["acc1"] > 1 / CLASSES, "the tiny CLIP knows some of these"


def test_averages_before_and_after_refinement(tmp_path: Path, clip: reco.Clip, model: reco.Model, made: Made) -> None:
    folders.class_folders(tmp_path, *made)
    data = load_dataset("folder", tmp_path)
    put(tmp_path / "p.txt", "{}\na drawing of {}\n\nthis is {}\n")
    prompts = str(tmp_path / "p.txt")
    after, before = (
        evaluate_dataset(model, data, Protocol(prompts, average=when, max_similarity=None), progress=False)
        for when in ("after", "before")
    )
    assert after.clip == before.clip
    texts = clip.encode_texts(reco.prompts(data.classnames, ["{}", "a drawing of {}", "this is {}"]))
    classes = model.refine_texts(reco.average_prompts(texts, 3))
    want, _ = reco.classify(model.encode_images(data.images), classes, data.labels)
    assert before.reco.metrics == pytest.approx(want, abs=1e-12)
    with pytest.raises(reco.Error, match="average must be 'after' or 'before', got 'never'"):
        evaluate_dataset(model, data, Protocol(average="never"), progress=False)


def test_retrieval_is_that_of_the_embeddings(tmp_path: Path, clip: reco.Clip, model: reco.Model, made: Made) -> None:
    folders.coco(tmp_path, *made)
    data = load_dataset("coco", tmp_path)
    result = evaluate_dataset(model, data, Protocol(max_similarity=None), progress=False)
    for system, encoder in (("clip", clip), ("reco", model)):
        images, texts = encoder.encode_images(data.images), encoder.encode_texts(data.captions)
        want = reco.retrieve(images, texts, data.image_of_text)
        assert getattr(result, system).metrics == pytest.approx(want, abs=1e-12)
    assert result.counts == {"images": 32, "captions": 96}


# --- prompts and names -----------------------------------------------------------------------------------------------
def test_prompts_are_files_with_a_hash(tmp_path: Path) -> None:
    assert {"photo", "plain", "cub", "cars", "flowers", "dogs", "imagenet", "places365"} <= set(shipped_templates())
    for name in shipped_templates():
        assert all(line.count("{}") == 1 for line in choose_templates(name, "x", []).lines)
    assert choose_templates(None, "cub", []).name == "cub"
    assert choose_templates(None, "unheard of", []).name == "photo"
    assert choose_templates(None, "cub", ["my {}"]).lines == ["my {}"]
    put(tmp_path / "mine.txt", "a {}\n")
    mine = choose_templates(str(tmp_path / "mine.txt"), "cub", [])
    assert (mine.lines, mine.hash) == (["a {}"], Texts("elsewhere", ["a {}"]).hash)
    put(tmp_path / "mine.txt", "the {}\n")
    assert choose_templates(str(tmp_path / "mine.txt"), "cub", []).hash != mine.hash
    put(tmp_path / "mine.txt", "\n")
    with pytest.raises(reco.Error, match="expected a line or more in .*mine.txt, found none"):
        choose_templates(str(tmp_path / "mine.txt"), "cub", [])
    with pytest.raises(reco.Error, match="expected a file or one of cars, .*, open_clip, clip_benchmark, got nothing"):
        choose_templates("nothing", "cub", [])


def test_shipped_class_names() -> None:
    flowers = choose_classnames("flowers", Classification("flowers", "test", [], [101], []))
    assert len(set(flowers.lines)) == 102
    assert (flowers.name, flowers.lines[20], len(flowers.hash)) == ("flowers", "fire lily", 12)
    with pytest.raises(reco.Error, match="expected a file or one of flowers, open_clip, clip_benchmark, got weeds"):
        choose_classnames("weeds", Classification("flowers", "test", [], [101], []))


def test_class_names(tmp_path: Path, made: Made) -> None:
    folders.imagenet_folders(tmp_path, *made)
    (tmp_path / "LOC_synset_mapping.txt").unlink()
    data = load_dataset("imagenet", tmp_path)
    with pytest.raises(reco.Error, match="imagenet has no class names where it lies"):
        choose_classnames(None, data)
    put(tmp_path / "names.txt", "\n".join(f"name {i}" for i in range(CLASSES)))
    assert choose_classnames(str(tmp_path / "names.txt"), data).lines[7] == "name 7"
    put(tmp_path / "names.txt", "one")
    with pytest.raises(reco.Error, match=f"expected {CLASSES} class names for imagenet, found 1 in .*names.txt"):
        choose_classnames(str(tmp_path / "names.txt"), data)


# --- cache -----------------------------------------------------------------------------------------------------------
def test_nothing_is_encoded_twice(tmp_path: Path, clip: reco.Clip, made: Made) -> None:
    root = folders.class_folders(tmp_path / "data", *made)
    images = sorted(root.rglob("*.jpg"))
    want = clip.encode_images(images)
    with EmbeddingCache(clip, tmp_path / "cache", progress=False) as cache:
        np.testing.assert_allclose(cache.images(images), want, atol=1e-6)
        first = cache.encoded
        texts = cache.texts(["a", "b", "a"])
        assert cache.encoded == first + 2
        np.testing.assert_allclose(texts, clip.encode_texts(["a", "b", "a"]), atol=1e-6)
    with EmbeddingCache(clip, tmp_path / "cache", progress=False) as again:
        assert np.array_equal(again.images(images[::-1]), cache_rows := again.images(images)[::-1])
        assert np.array_equal(again.texts(["b", "a"]), texts[[1, 0]])
        assert again.encoded == 0
        moved = images[0].rename(images[0].with_name("moved.jpg"))
        assert np.array_equal(again.images([moved])[0], cache_rows[-1]), "known by what it holds"
        assert again.encoded == 0
        changed = put(images[1], images[2].read_bytes()[:-2] + b"\xff\xd9")
        os.utime(changed, ns=(1, 1))
        again.images([changed])
        put(images[1], images[3].read_bytes())
        assert np.array_equal(again.images([images[1]])[0], again.images([images[3]])[0]), "read again once it changed"


def test_unreadable_images_are_named_and_the_others_kept(tmp_path: Path, clip: reco.Clip, made: Made) -> None:
    root = folders.class_folders(tmp_path / "data", *made)
    images = sorted(root.rglob("*.jpg"))
    content = images[4].read_bytes()
    put(images[4], content[:200])
    put(images[9], b"no image")
    with EmbeddingCache(clip, tmp_path / "cache", progress=False) as cache:
        with pytest.raises(reco.Error, match=rf"2 of {len(images)} images cannot be read: {images[4]}: ") as caught:
            cache.images(images)
        assert "\n" not in str(caught.value)
        assert cache.encoded == len(images) - 2 - _twins(images)
        put(images[4], content)
        put(images[9], content)
        cache.images(images)
        images[4].unlink()
        with pytest.raises(reco.Error, match=rf"1 of {len(images)} images cannot be read: {images[4]}: No such file"):
            cache.images(images)


def _twins(images: list[Path]) -> int:
    return (
        0
        if len({p.read_bytes() for p in images}) == len(images)
        else len(images) - len({p.read_bytes() for p in images})
    )


def test_a_damaged_cache_is_said(tmp_path: Path, clip: reco.Clip) -> None:
    with EmbeddingCache(clip, tmp_path, progress=False) as cache:
        cache.texts(["a"])
        path = cache.path
    assert path is not None
    put(path, b"not a database, but long enough to look like one" * 100)
    with pytest.raises(reco.Error, match="cannot use .*embeddings-.*sqlite.*it may be deleted"):
        EmbeddingCache(clip, tmp_path, progress=False)


# --- results ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def evaluation(tmp_path: Path, model: reco.Model, made: Made) -> Evaluation:
    folders.cub(tmp_path / "cub", *made)
    return evaluate_dataset(model, load_dataset("cub", tmp_path / "cub"), name="tiny", progress=False)


def test_tables_stand_beside_the_papers(evaluation: Evaluation) -> None:
    table = markdown_table([evaluation])
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")]
    assert rows[0][:3] == ["| %", "Cars", "CUB"]
    by_name = {row[0].removeprefix("| "): row[2] for row in rows[2:]}
    assert by_name["tiny"].startswith(f"{100 * evaluation.clip.metrics['acc1']:.1f} (")
    assert by_name["tiny + reco"].startswith(f"{100 * evaluation.reco.metrics['acc1']:.1f} (")
    assert by_name["gain"].startswith(f"{100 * evaluation.gain.metrics['acc1']:+.1f} (")
    assert by_name["paper: CLIP-B/32"] == "52.8"
    assert by_name["paper: CLIP-B/32 + RECO"] == "63.0"
    assert "- cub: expected 200 classes as published, found 8" in table


def test_clip_benchmark_builds_its_table_from_the_files(tmp_path: Path, evaluation: Evaluation) -> None:
    """The fields and their types that `clip_benchmark build` reads."""
    paths = write_results([evaluation], tmp_path / "out")
    assert [p.name for p in paths] == ["cub-test-clip.json", "cub-test-reco.json", "results.md"]
    for path in paths[:2]:
        record = json.loads(path.read_text())
        assert all(isinstance(record[name], str) for name in ("dataset", "model", "pretrained", "task", "language"))
        assert all(isinstance(value, float) for value in record["metrics"].values())
        assert record["task"] == "zeroshot_classification"
        assert set(record["metrics"]) == {"acc1", "acc5", "mean_per_class_recall"}
        setup = record["reco"]["setup"]
        assert setup["prompts"]["hash"] == choose_templates("cub", "cub", []).hash
        assert setup["memory"]["rows"] > 0
        assert {"fusion", "k", "bootstrap", "versions", "classnames"} <= set(setup)
    put(tmp_path / "out/other-x-clip.json", "{")
    with pytest.raises(reco.Error, match="cannot read .*other-x-clip.json"):
        write_results([evaluation], tmp_path / "out")


def test_the_page_needs_no_other_file(tmp_path: Path, model: reco.Model, made: Made, evaluation: Evaluation) -> None:
    folders.class_folders(tmp_path / "<b>mine", *made)
    mine = evaluate_dataset(model, load_dataset("folder", tmp_path / "<b>mine"), progress=False)
    folders.coco(tmp_path / "coco", *made)
    coco = evaluate_dataset(model, load_dataset("coco", tmp_path / "coco"), progress=False)
    page = write_html([evaluation, mine, coco], tmp_path / "r/report.html").read_text()
    assert "&lt;b&gt;mine" in page
    assert "<b>mine" not in page
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources
    assert all(source.startswith("data:image/webp;base64,") for source in sources)
    assert "http" not in page
    shown = [case for e in (evaluation, mine, coco) for case in e.cases]
    assert shown
    assert page.count('<div class="case">') == len(shown)
    assert len(sources) >= len(shown), "every query has its picture"
    for e in (evaluation, mine, coco):
        for name, value in e.reco.metrics.items():
            assert f"{100 * value:.1f}" in page
            assert name in page
    gained = [s for s in evaluation.per_class if s.reco > s.clip]
    assert page.count('<div class="up"') >= len(gained)


# --- plans -----------------------------------------------------------------------------------------------------------
def test_all_of_a_plan(tmp_path: Path, made: Made, memory_path: Path) -> None:
    folders.cub(tmp_path / "birds", *made)
    folders.class_folders(tmp_path / "mine", *made)
    put(tmp_path / "p.txt", "{}, drawn\n")
    plan = f"""
    model = "{CLIP}"
    memory = "{memory_path}"
    out = "results"
    cache = "cache"
    k = 5
    resamples = 200
    max_similarity = "none"
    [datasets.cub]
    root = "birds"
    prompts = "p.txt"
    [datasets.icons]
    dataset = "folder"
    root = "mine"
    """
    put(tmp_path / "plan.toml", plan)
    text = command("eval", "--all", tmp_path / "plan.toml", "--quiet")
    assert "cub (test)" in text
    assert "icons (all)" in text
    assert "'{}, drawn'" in text
    table = (tmp_path / "results/results.md").read_text()
    assert "| icons | all |" in table
    assert "### Classification" in table
    given = ("--root", tmp_path, "--out", tmp_path / "elsewhere", "--k", 3, "--average", "before", "--confidence", 0.9)
    (tmp_path / "sub").mkdir()
    put(tmp_path / "sub/p.txt", "{}, drawn\n")
    (tmp_path / "plan.toml").rename(tmp_path / "sub/plan.toml")
    records = json.loads(
        command("eval", "--all", tmp_path / "sub/plan.toml", *given, "--json", "--cache", tmp_path / "cache")
    )
    assert [r["reco"]["setup"]["k"] for r in records] == [3] * 4
    assert records[0]["reco"]["setup"]["average"] == "before"
    assert records[0]["reco"]["setup"]["bootstrap"] == {"resamples": 200, "confidence": 0.9, "seed": 0}
    assert (tmp_path / "elsewhere/report.html").exists()
    assert "--split belongs into a section" in command("eval", "--all", "x.toml", "--split", "a", ok=False)
    (tmp_path / "sub/plan.toml").rename(tmp_path / "plan.toml")
    read = read_plan(tmp_path / "plan.toml")
    assert (read.k, read.jobs[0].protocol.resamples, read.jobs[1].protocol.prompts) == (5, 200, None)
    assert read.jobs[0].protocol.max_similarity is None


def test_a_plan_without_k_takes_the_fusions(tmp_path: Path, clip: reco.Clip, made: Made, memory_path: Path) -> None:
    folders.class_folders(tmp_path / "mine", *made)
    shape = reco.FusionConfig(method="mean", dim=clip.dim, k=4)
    reco.Fusion.create(shape).save(tmp_path / "f.safetensors")
    head = f"model = '{CLIP}'\nmemory = '{memory_path}'\nfusion = 'f.safetensors'\ncache = 'cache'\nresamples = 10\n"
    for line, k in (("", 4), ("k = 7\n", 7)):
        put(tmp_path / "plan.toml", f"{head}{line}[datasets.folder]\nroot = 'mine'\n")
        [evaluation] = run_plan(read_plan(tmp_path / "plan.toml"), progress=False)
        assert evaluation.setup["k"] == k


def test_nothing_is_written_over(tmp_path: Path, made: Made, memory_path: Path) -> None:
    folders.cub(tmp_path / "cub", *made)
    sections = "[datasets.cub]\nroot = 'cub'\n[datasets.again]\ndataset = 'cub'\nroot = 'cub'\nprompts = 'photo'\n"
    put(tmp_path / "plan.toml", f"model = '{CLIP}'\nmemory = '{memory_path}'\n{sections}")
    with pytest.raises(reco.Error, match="expected each data set and split once, found cub, test twice"):
        run_plan(read_plan(tmp_path / "plan.toml"), progress=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model = 3", "expected a section"),
        ("[datasets.cub]\nroot = 'x'", "expected model and memory in"),
        ("model = 3\nmemory = 'm'\n[datasets.cub]\nroot = 'x'", "model in .* has the wrong type: 3"),
        ("model = 'a'\nmemory = 'm'\nbeer = 1\n[datasets.cub]\nroot = 'x'", "expected model, .*, found beer in"),
        ("model = 'a'\nmemory = 'm'\n[datasets.cub]\nsplit = 'x'", "expected root in"),
        ("model = 'a'\nmemory = 'm'\n[datasets.cub]\nroot = 'x'\nmax_similarity = 'much'", "must be a number or"),
        ("model = 'a'\nmemory = 'm'\nk = 'ten'\n[datasets.cub]\nroot = 'x'", "k in .* has the wrong type: 'ten'"),
        ("model = ", "cannot read .*plan.toml"),
    ],
)
def test_what_is_wrong_in_a_plan(tmp_path: Path, content: str, message: str) -> None:
    put(tmp_path / "plan.toml", content)
    with pytest.raises(reco.Error, match=message):
        read_plan(tmp_path / "plan.toml")


def test_all_that_is_missing_is_said_before_anything_is_encoded(tmp_path: Path, memory_path: Path) -> None:
    put(
        tmp_path / "plan.toml",
        f"model = '{CLIP}'\nmemory = '{memory_path}'\n[datasets.cub]\nroot = 'a'\n[datasets.cars]\nroot = 'b'\n",
    )
    with pytest.raises(reco.Error, match=r"\[datasets.cub\] expected .*\n\[datasets.cars\] expected "):
        run_plan(read_plan(tmp_path / "plan.toml"), progress=False)
    usage = command("eval", "--dataset", "cub", ok=False)
    assert "expected --root, --model, --memory, or --all" in usage
    options = ("--model", CLIP, "--memory", memory_path)
    wrong = command("eval", "--dataset", "cub", "--root", tmp_path / "a", *options, ok=False)
    assert wrong.startswith("Error: [datasets.cub] expected a folder, found nothing at")
    assert len(wrong.splitlines()) == 1
