# SPDX-License-Identifier: Apache-2.0
"""The paper's recipe, every command of it, on miniature inputs."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

import benchmark_folders as folders
from reco.datasets import Sample, read_samples

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "examples/paper"


def write_shard(path: Path, samples: Sequence[Sample]) -> None:
    """As img2dataset writes it."""
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w") as tar:
        for i, sample in enumerate(samples):
            metadata = json.dumps({"key": f"{i:09}", "status": "success"})
            files = {"jpg": folders.to_jpeg(sample.image), "txt": sample.caption.encode(), "json": metadata.encode()}
            for suffix, content in files.items():
                member = tarfile.TarInfo(f"{path.parent.name}{i:09}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("paper")
    drawn = list(read_samples(sorted((ROOT / "examples/icons/data").glob("memory-*"))[0]))
    write_shard(place / "cc12m/00000.tar", drawn[:240:2])
    write_shard(place / "laion/00000.tar", drawn[1:240:2])
    names, items = folders.pictures(drawn, 6)
    makers = (folders.cars, folders.cub, folders.flowers, folders.dogs, folders.places365, folders.flickr30k)
    for make in (*makers, folders.coco, folders.oven):
        make(place / "data" / make.__name__, names, items)
    folders.imagenet_flat(place / "data/imagenet", names, items)
    return place


def recipe(place: Path, *steps: str) -> subprocess.CompletedProcess[str]:
    given = {
        "RECO": f"{sys.executable} -m reco.cli",
        "MODEL": str(ROOT / "examples/icons/clip"),
        **{name: str(place / folder) for name, folder in (("CC12M", "cc12m"), ("LAION", "laion"), ("DATA", "data"))},
        "WORK": str(place / "work"),
        "DTYPE": "float32",
        "BATCH": "64",
        "EPOCHS": "1",
    }
    command = ["bash", str(PAPER / "recipe.sh"), *steps]
    return subprocess.run(command, env=os.environ | given, capture_output=True, text=True, check=False)


def test_the_recipe_runs(inputs: Path) -> None:
    done = recipe(inputs)
    assert done.returncode == 0, done.stdout + done.stderr
    results = inputs / "work/results"
    for name in ("cars", "cub", "flowers", "dogs", "imagenet", "places365", "flickr30k", "coco", "oven"):
        assert len(list(results.glob(f"{name}-*-*.json"))) == (4 if name == "oven" else 2), name
    table = (results / "results.md").read_text()
    assert "OVEN over both splits (val), clip + reco:" in table
    assert table.count("paper: best row") == 3
    assert (results / "report.html").stat().st_size > 10_000
    record = json.loads((results / "cub-test-reco.json").read_text())
    assert record["reco"]["setup"]["memory"]["rows"] == 240
    assert record["reco"]["setup"]["fusion"]["method"] == "transformer"
    again = recipe(inputs, "evaluate")
    assert again.returncode == 0, again.stderr
    assert json.loads((results / "cub-test-reco.json").read_text())["metrics"] == record["metrics"]


def test_what_is_missing_is_said(inputs: Path) -> None:
    wrong = recipe(inputs, "bake")
    assert wrong.returncode == 2
    assert "expected embed, memory, train or evaluate, got bake" in wrong.stderr
    bare = {"PATH": os.environ["PATH"]}
    without = subprocess.run(["bash", PAPER / "recipe.sh"], env=bare, capture_output=True, text=True, check=False)
    assert "MODEL: a CLIP folder" in without.stderr


def test_the_readme_names_the_recipes_steps() -> None:
    text = (PAPER / "README.md").read_text()
    steps = re.findall(r"recipe.sh (\w+)", text)
    assert steps == ["embed", "memory", "train", "evaluate"]
