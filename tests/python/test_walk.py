# SPDX-License-Identifier: Apache-2.0
"""A stranger's walk: a folder of pictures, captions in a CSV, and the README's commands as they stand."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from reco.cli import main
from reco.datasets import Sample, read_samples

ROOT = Path(__file__).parents[2]
DATA = ROOT / "examples/icons/data"


def commands() -> list[list[str]]:
    """What the README tells a newcomer to type."""
    block = re.search(r"## Your own pictures.*?```bash\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    assert block
    return [shlex.split(line)[1:] for line in block[1].splitlines()]


@pytest.fixture(scope="module")
def quokkas() -> dict[str, list[Sample]]:
    """Two concepts that the CLIP was never shown play the animals."""
    found: dict[str, list[Sample]] = {}
    for sample in read_samples(sorted(DATA.glob("memory-*"))[0]):
        if sample.metadata["role"] == "unseen" and sample.metadata["domain"] == "emoji":
            found.setdefault(sample.metadata["concept"], []).append(sample)
    first, second = [pictures for pictures in found.values() if len(pictures) >= 3][:2]
    return {"a quokka": first, "a wombat": second}


@pytest.fixture
def home(tmp_path: Path, quokkas: dict[str, list[Sample]], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the stranger works: pictures/ with a table of captions, a model, a photograph."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "clip").symlink_to(ROOT / "examples/icons/clip")
    rows = []
    for name, pictures in quokkas.items():
        for i, sample in enumerate(pictures[1:]):
            file = f"{name.split()[1]}-{i}.webp"
            (tmp_path / "pictures" / file).write_bytes(sample.image)
            rows.append({"file": file, "caption": name})
    with (tmp_path / "pictures/captions.csv").open("w", newline="") as table:
        writer = csv.DictWriter(table, ["file", "caption"])
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "photo.webp").write_bytes(quokkas["a quokka"][0].image)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(arguments: list[str]) -> Result:
    return CliRunner().invoke(main, arguments)


def test_the_readme_is_enough(home: Path) -> None:
    for command in commands():
        result = run(command)
        assert result.exit_code == 0, (command, result.output)
    page = (home / "why.html").read_text("utf-8")
    pictures = len(list((home / "pictures").glob("*.webp")))
    assert page.count("data:image/webp;base64,") == 1 + min(pictures, 10)  # the photograph and its neighbours
    assert not re.search(r'(src|href)="(?!data:)', page)
    facts = json.loads(run([*commands()[-1], "--json"]).stdout)
    scores = {c["name"]: c for c in facts["classes"]}
    assert scores["a quokka"]["after"] > scores["a wombat"]["after"]
    margin = {when: scores["a quokka"][when] - scores["a wombat"][when] for when in ("before", "after")}
    assert margin["after"] > margin["before"]


def test_errors_on_the_way_say_what_to_do(home: Path) -> None:
    create, add, explain = commands()
    assert run(add).output.startswith("Error: [memory.open]")  # before it was made
    run(create)
    table = home / "pictures/captions.csv"
    right = table.read_text()
    table.write_text(right.replace("file,caption", "picture,words"))
    assert "expected the columns file and caption" in run(add).output
    table.write_text(right)
    assert run(add).exit_code == 0
    again = run(add)
    assert again.exit_code == 1 and "quokka-0" in again.output  # the key that is there already
    (home / "photo.webp").unlink()
    assert "photo.webp" in run(explain).output
