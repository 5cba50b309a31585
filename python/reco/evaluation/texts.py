# SPDX-License-Identifier: Apache-2.0
"""Prompt templates and class names: files, chosen by name, told apart by their hash."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from reco._core import Error
from reco.datasets.benchmark import Classification, shipped_classnames

# What clip_benchmark calls the data sets.
_THEIR_NAMES = {"imagenet": "imagenet1k", "cars": "cars", "flowers": "flowers"}


@dataclass(frozen=True)
class Texts:
    """Lines from a file.

    Attributes
    ----------
    name : str
        What was chosen: a shipped file, a path, `open_clip`, `clip_benchmark`, or the data set's own.
    lines : list of str
    hash : str
        First 12 hex digits of the SHA-256 of the lines.
    """

    name: str
    lines: list[str]
    hash: str = field(init=False)

    def __post_init__(self) -> None:
        content = "\n".join(self.lines).encode("utf-8", "surrogatepass")
        object.__setattr__(self, "hash", hashlib.sha256(content).hexdigest()[:12])


def shipped_templates() -> list[str]:
    """Names of the prompt files that come with reco."""
    folder = resources.files("reco.evaluation") / "prompts"
    return sorted(entry.name.removesuffix(".txt") for entry in folder.iterdir() if entry.name.endswith(".txt"))


def choose_templates(choice: str | None, dataset: str, own: list[str]) -> Texts:
    """The prompt templates for a data set.

    Parameters
    ----------
    choice : str, optional
        A shipped file's name (`photo`, `cub`, ...), a file with a template a line, `open_clip` or `clip_benchmark`
        (what is installed with those); by default what came with the data, else the file named as the
        data set, else `photo`.
    dataset : str
        Its name.
    own : list of str
        Templates that came with the data, if any.

    Raises
    ------
    Error
        When there is no such choice, or nothing in it.
    """
    shipped = shipped_templates()
    if choice is None and own:
        return Texts("the data set's own", own)
    choice = choice or (dataset if dataset in shipped else "photo")
    if choice in shipped:
        text = (resources.files("reco.evaluation") / f"prompts/{choice}.txt").read_text("utf-8")
        return _filled(Texts(choice, _lines(text)))
    if choice == "open_clip":
        return Texts(choice, [make("{}") for make in _open_clip().OPENAI_IMAGENET_TEMPLATES])
    if choice == "clip_benchmark":
        return Texts(choice, _clip_benchmark("zeroshot_classification_templates", dataset))
    return _from_file(choice, f"{', '.join(shipped)}, open_clip, clip_benchmark")


def choose_classnames(choice: str | None, dataset: Classification) -> Texts:
    """The class names of a data set: its own by default; a file with a name a line, one that comes with reco
    (`flowers`), `open_clip` or `clip_benchmark`.

    Parameters
    ----------
    choice : str, optional
    dataset : Classification
    """
    shipped = shipped_classnames()
    classes = len(dataset.classnames) or max(dataset.labels, default=0) + 1
    if choice is None:
        texts = Texts("the data set's own", dataset.classnames)
        if not texts.lines:
            raise Error(
                f"[evaluation.classnames] {dataset.name} has no class names where it lies: put the devkit or "
                f"LOC_synset_mapping.txt beside it, or choose class names (a file, open_clip or clip_benchmark)"
            )
    elif choice == "open_clip":
        texts = Texts(choice, list(_open_clip().IMAGENET_CLASSNAMES))
    elif choice == "clip_benchmark":
        texts = Texts(choice, _clip_benchmark("classnames", dataset.name))
    elif choice in shipped:
        texts = Texts(choice, shipped[choice])
    else:
        texts = _from_file(choice, ", ".join([*shipped, "open_clip", "clip_benchmark"]))
    if len(texts.lines) != classes:
        raise Error(
            f"[evaluation.classnames] expected {classes} class names for {dataset.name}, found {len(texts.lines)} in "
            f"{texts.name}"
        )
    return texts


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _filled(texts: Texts) -> Texts:
    if not texts.lines:
        raise Error(f"[evaluation.texts] expected a line or more in {texts.name}, found none")
    return texts


def _from_file(choice: str, others: str) -> Texts:
    path = Path(choice)
    if not path.is_file():
        raise Error(f"[evaluation.texts] expected a file or one of {others}, got {choice}")
    try:
        return _filled(Texts(str(path), _lines(path.read_text("utf-8-sig"))))
    except (OSError, UnicodeDecodeError) as error:
        raise Error(f"[evaluation.texts] cannot read {path}: {error}") from error


def _package(name: str) -> Path:
    """Where a package is installed, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise Error(f"[evaluation.texts] expected {name} to be installed, found no such package")
    return Path(list(spec.submodule_search_locations)[0])


def _open_clip() -> Any:
    """open_clip's zero_shot_metadata alone: importing the package would load its models too."""
    spec = importlib.util.spec_from_file_location(
        "open_clip_zero_shot_metadata", _package("open_clip") / "zero_shot_metadata.py"
    )
    if spec is None or spec.loader is None:
        raise Error("[evaluation.texts] expected zero_shot_metadata.py in open_clip, found none")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _clip_benchmark(kind: str, dataset: str) -> list[str]:
    path = _package("clip_benchmark") / f"datasets/en_{kind}.json"
    try:
        tables = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise Error(f"[evaluation.texts] cannot read {path}: {error}") from error
    name = _THEIR_NAMES.get(dataset, dataset)
    if name not in tables:
        raise Error(f"[evaluation.texts] clip_benchmark has no {kind.replace('_', ' ')} for {dataset}")
    return [str(line) for line in tables[name]]
