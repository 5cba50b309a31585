# SPDX-License-Identifier: Apache-2.0
"""The tiny CLIP, drawn icons, a memory of them and a model over both, for tests that name this module a plugin."""

from __future__ import annotations

from pathlib import Path

import pytest

import benchmark_folders as folders
import reco
from benchmark_folders import CLASSES, CLIP, Made
from reco.datasets import Sample, read_samples
from reco.embedding import embed

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def clip() -> reco.Clip:
    return reco.Clip.load(CLIP)


@pytest.fixture(scope="module")
def drawn() -> list[Sample]:
    samples = list(read_samples(sorted((ROOT / "examples/icons/data").glob("memory-*"))[0]))
    concepts = list(dict.fromkeys(s.metadata["concept"] for s in samples))[:60]
    return [s for s in samples if s.metadata["concept"] in concepts]


@pytest.fixture(scope="module")
def made(drawn: list[Sample]) -> Made:
    return folders.pictures(drawn, CLASSES)


@pytest.fixture(scope="module")
def memory_path(tmp_path_factory: pytest.TempPathFactory, clip: reco.Clip, drawn: list[Sample]) -> Path:
    path = tmp_path_factory.mktemp("memory") / "icons.reco"
    pairs = embed(clip, drawn, progress=False)
    with reco.Memory.create(path, dim=clip.dim, encoder=clip.fingerprint) as memory:
        memory.add(pairs.images, pairs.texts, pairs.keys, pairs.captions, pairs.metadata)
    return path


@pytest.fixture
def model(clip: reco.Clip, memory_path: Path) -> reco.Model:
    return reco.Model(clip, reco.Memory.open(memory_path, read_only=True), reco.Fusion.mean(clip.dim))
