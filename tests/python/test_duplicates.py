# SPDX-License-Identifier: Apache-2.0
"""Near-duplicates within a memory and between it and other sets: table, CSV, contact sheet."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import reco
from reco.cli import main
from reco.datasets import read_samples
from reco.duplicates import contact_sheet, find_duplicates, write_csv
from reco.embedding import add_samples
from reco.embedding_folder import embed_to_folder

ROOT = Path(__file__).parents[2]
CLIP = ROOT / "examples/icons/clip"
DATA = ROOT / "examples/icons/data"


@pytest.fixture(scope="module")
def clip() -> reco.Clip:
    return reco.Clip.load(CLIP)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Twenty drawings, and a test set: two of them drawn smaller, and ten others."""
    ours, test = tmp_path_factory.mktemp("ours"), tmp_path_factory.mktemp("test")
    drawn = list(read_samples(sorted(DATA.glob("memory-*"))[0]))
    concepts = list(dict.fromkeys(s.metadata["concept"] for s in drawn))
    first = {c: next(s for s in drawn if s.metadata["concept"] == c) for c in concepts[:30]}
    for i, concept in enumerate(concepts[:30]):
        folder = ours if i < 20 else test
        (folder / f"{i}.webp").write_bytes(first[concept].image)
        (folder / f"{i}.txt").write_text(f"<{concept}>")
    for i in (3, 17):
        with Image.open(ours / f"{i}.webp") as picture:
            picture.resize((60, 60)).save(test / f"leaked-{i}.png")
    return ours, test


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory, clip: reco.Clip, folders: tuple[Path, Path]) -> reco.Memory:
    path = tmp_path_factory.mktemp("m") / "icons.reco"
    with reco.Memory.create(path, dim=clip.dim, encoder=clip.fingerprint) as memory:
        add_samples(memory, clip, read_samples(folders[0]), progress=False)
    return reco.Memory.open(path, read_only=True)


class Pictures(HTMLParser):
    """Checks that nothing is fetched and counts pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe")
        for name, value in attrs:
            if name == "src":
                assert (value or "").startswith("data:image/webp;base64,")
                self.count += 1


def test_leaks_are_found_whatever_the_set_is(
    clip: reco.Clip, memory: reco.Memory, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    pictures = find_duplicates(memory, folders[1], clip=clip, min_similarity=0.93, progress=False)
    leaked = {("3", "leaked-3"), ("17", "leaked-17")}
    assert leaked <= {(m.key, m.other_key) for m in pictures}
    assert [m.similarity for m in pictures] == sorted((m.similarity for m in pictures), reverse=True)
    best = next(m for m in pictures if m.key == "3")
    assert best.caption.startswith("<") and best.other_caption == "" and "image_path" in best.other_metadata
    embed_to_folder(clip, folders[1], tmp_path / "embeddings", progress=False)
    with reco.Memory.create(tmp_path / "other.reco", dim=clip.dim, encoder=clip.fingerprint) as other:
        add_samples(other, clip, read_samples(folders[1]), progress=False)
    for source in (tmp_path / "embeddings", tmp_path / "other.reco"):
        found = find_duplicates(memory, source, min_similarity=0.93, progress=False)
        assert {(m.key, m.other_key) for m in found} == {(m.key, m.other_key) for m in pictures}
        np.testing.assert_allclose([m.similarity for m in found], [m.similarity for m in pictures], atol=2e-3)
    twins = find_duplicates(memory, memory.info()["path"], min_similarity=0.999, progress=False)
    assert {(m.key, m.other_key) for m in twins} >= {(str(i), str(i)) for i in range(20)}
    for match in find_duplicates(memory, min_similarity=0.5, progress=False):
        assert match.key != match.other_key


def test_what_cannot_be_compared_is_one_error(clip: reco.Clip, memory: reco.Memory, tmp_path: Path) -> None:
    with pytest.raises(reco.Error, match="pictures need the model"):
        find_duplicates(memory, tmp_path, progress=False)
    with reco.Memory.create(tmp_path / "wide", dim=3) as wide:
        wide.add(np.ones((1, 3)), np.ones((1, 3)), ["a"])
    with pytest.raises(reco.Error, match="must have dim"):
        find_duplicates(memory, tmp_path / "wide", progress=False)
    reco.Memory.create(tmp_path / "stranger", dim=clip.dim, encoder="f" * 64).close()
    with pytest.raises(reco.Error, match="of one encoder"):
        find_duplicates(memory, tmp_path / "stranger", progress=False)


def test_sheet_and_table(clip: reco.Clip, memory: reco.Memory, folders: tuple[Path, Path], tmp_path: Path) -> None:
    found = find_duplicates(memory, folders[1], clip=clip, min_similarity=0.93, progress=False)
    sheet = contact_sheet(found, "icons <& more>")
    reader = Pictures()
    reader.feed(sheet)
    assert reader.count == 2 * len(found)
    assert "icons &lt;&amp; more&gt;" in sheet and not re.search(r"https?://|<[a-z]+-?[a-z]*:", sheet)
    assert "&lt;" + found[0].caption[1:-1] + "&gt;" in sheet
    assert f"{len(found)} found" in sheet and "the 1 most similar shown" in contact_sheet(found, "t", most=1)
    assert "None was found" in contact_sheet([], "t")
    write_csv(found, tmp_path / "found.csv")
    with (tmp_path / "found.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["key"], r["other_key"]) for r in rows] == [(m.key, m.other_key) for m in found]


def test_command(memory: reco.Memory, folders: tuple[Path, Path], tmp_path: Path) -> None:
    run = CliRunner().invoke
    path = memory.info()["path"]
    arguments = ["memory", "duplicates", path, "--against", str(folders[1]), "--model", str(CLIP)]
    arguments += ["--min-similarity", "0.93", "--quiet"]
    result = run(main, [*arguments, "--html", str(tmp_path / "s.html"), "--csv", str(tmp_path / "s.csv"), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["duplicates"]
    assert len((tmp_path / "s.csv").read_text().splitlines()) == len(found) + 1
    assert "data:image/webp" in (tmp_path / "s.html").read_text()
    lines = run(main, arguments).stdout.splitlines()
    assert len(lines) == len(found) and "leaked-" in "".join(lines)
    assert run(main, ["memory", "duplicates", path, "--against", str(tmp_path)]).exit_code == 1
