# SPDX-License-Identifier: Apache-2.0
"""What an evaluation is run on, and the checks that all loaders of benchmark data sets share."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from reco._core import Error

_SHOWN = 5  # names in a message
_TRIED = 20  # files that tell where the others lie


@dataclass(frozen=True)
class Slice:
    """A file inside an uncompressed tar."""

    path: Path
    offset: int
    size: int
    name: str


Image: TypeAlias = Path | Slice | bytes


def image_name(image: Image) -> str:
    """What to call an image in a message or report."""
    return f"{image.path}/{image.name}" if isinstance(image, Slice) else str(image) if isinstance(image, Path) else ""


def image_bytes(image: Image) -> bytes:
    """The encoded file; OSError when it cannot be read."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, Path):
        return image.read_bytes()
    with image.path.open("rb") as file:
        file.seek(image.offset)
        return file.read(image.size)


@dataclass(frozen=True)
class Classification:
    """Images with one class each.

    Attributes
    ----------
    name, split : str
    images : sequence of Image
    labels : list of int
        Class of each image: its place in `classnames`.
    classnames : list of str
        The data set's own names.
    templates : list of str
        Prompts that came with the data, if any.
    notes : list of str
        What differs from the published data set.
    """

    name: str
    split: str
    images: Sequence[Image]
    labels: list[int]
    classnames: list[str]
    templates: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Retrieval:
    """Images with one caption or more each.

    Attributes
    ----------
    name, split : str
    images : sequence of Image
    captions : list of str
    image_of_text : list of int
        Row of each caption's image.
    notes : list of str
        What differs from the published data set.
    """

    name: str
    split: str
    images: Sequence[Image]
    captions: list[str]
    image_of_text: list[int]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class EntityQuestions:
    """One file of OVEN's: images of entities among the millions that Wikipedia names.

    Attributes
    ----------
    name, split : str
        `split` is entity_val, entity_test, query_val or query_test.
    data_ids : list of str
    images : sequence of Image
    entities : list of str, or None
        Right entity of each; None where the answers are not published, as for the test splits.
    seen : list of bool
        Whether the entity was among the training data's.
    names : path
        Wiki6M_ver_1_0_title_only.jsonl: a wikidata_id and a wikipedia_title a line.
    notes : list of str
    """

    name: str
    split: str
    data_ids: list[str]
    images: Sequence[Image]
    entities: list[str] | None
    seen: list[bool]
    names: Path
    notes: list[str] = field(default_factory=list)


Dataset: TypeAlias = "Classification | Retrieval | EntityQuestions"


@dataclass(frozen=True)
class Options:
    """How a data set is to be read: its split (the first by default), and which columns of a table count."""

    split: str | None = None
    label: str | None = None
    image_column: str | None = None


# --- checks ----------------------------------------------------------------------------------------------------------
def find_folder(name: str, root: Path, inner: Sequence[str], marks: Sequence[str], advice: str) -> Path:
    """`root`, or the first folder `inner` of it, that holds any of the files `marks`."""
    for place in (root, *(root / folder for folder in inner)):
        if any((place / mark).exists() for mark in marks):
            return place
    if not root.is_dir():
        raise Error(f"[datasets.{name}] expected a folder, found {'a file' if root.exists() else 'nothing'} at {root}")
    found = sorted(p.name for p in root.iterdir())
    listed = ", ".join(found[:_SHOWN]) + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
    files = dict.fromkeys(mark.rpartition("/")[2] for mark in marks)
    raise Error(
        f"[datasets.{name}] expected {' or '.join(files)} in {root}, or in {' or '.join(inner)} there, found "
        f"{listed or 'an empty folder'}; {advice}"
    )


def find_file(name: str, folder: Path, choices: Sequence[str], advice: str) -> Path:
    """The first of the files or folders `choices` that is there."""
    found = next((folder / choice for choice in choices if (folder / choice).exists()), None)
    if found is None:
        raise Error(f"[datasets.{name}] expected {' or '.join(choices)} in {folder}, found none; {advice}")
    return found


def find_place(places: Sequence[Path], files: Iterable[str]) -> Path:
    """The first of the folders that has most of the first few files."""
    some = list(islice(files, _TRIED))
    return max(places, key=lambda place: sum((place / file).is_file() for file in some))


def check_split(name: str, given: str | None, splits: Sequence[str]) -> str:
    """The split, the first one by default."""
    split = given or splits[0]
    if split not in splits:
        raise Error(f"[datasets.{name}] expected one of the splits {', '.join(splits)}, got {split}")
    return split


def check_images(name: str, images: Sequence[Path], advice: str) -> None:
    """All images are there."""
    missing = [path for path in images if not path.is_file()]
    if missing:
        raise Error(
            f"[datasets.{name}] {len(missing)} of {len(images)} images are missing, the first is {missing[0]}; {advice}"
        )
    if not images:
        raise Error(f"[datasets.{name}] expected images, found none; {advice}")


def check_labels(name: str, labels: Sequence[int], classnames: Sequence[str], where: Path) -> None:
    """Labels fit the classes, and no class is without images."""
    wrong = [label for label in labels if not 0 <= label < len(classnames)]
    if wrong:
        raise Error(
            f"[datasets.{name}] expected classes 1 to {len(classnames)}, found number {wrong[0] + 1} in {where}"
        )
    used = set(labels)
    empty = [c for i, c in enumerate(classnames) if i not in used]
    if empty:
        raise Error(
            f"[datasets.{name}] expected images of all {len(classnames)} classes, found none of {len(empty)}, such as "
            f"{empty[0]}, in {where}"
        )


def check_counts(found: dict[str, int], expected: dict[str, int]) -> list[str]:
    """A note for every count that is not the published one."""
    return [
        f"expected {number:,} {what} as published, found {found[what]:,}"
        for what, number in expected.items()
        if found[what] != number
    ]


def distinct(classnames: Sequence[str]) -> list[str]:
    """A note where classes share a name: a prompt cannot tell them apart."""
    shared = [name for name, count in Counter(classnames).items() if count > 1]
    return [f"{len(shared)} class names stand for several classes, such as {shared[0]}"] if shared else []


def shipped_classnames() -> dict[str, list[str]]:
    """The files of class names that come with reco, by name: a class a line."""
    folder = resources.files("reco.datasets") / "classnames"
    return {file.name.removesuffix(".txt"): file.read_text("utf-8").splitlines() for file in folder.iterdir()}


# --- files -----------------------------------------------------------------------------------------------------------
def read_text(name: str, path: Path) -> str:
    """A UTF-8 file."""
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise Error(f"[datasets.{name}] cannot read {path}: {error}") from error


def read_lines(name: str, path: Path) -> list[str]:
    """The lines of a UTF-8 file that are not blank."""
    return [line.strip() for line in read_text(name, path).splitlines() if line.strip()]


def read_pairs(name: str, path: Path) -> list[tuple[str, str]]:
    """Lines of two words, such as `1 001.Black_footed_Albatross`."""
    pairs = []
    for number, line in enumerate(read_lines(name, path), 1):
        first, _, second = line.partition(" ")
        if not second:
            raise Error(f"[datasets.{name}] expected two words a line, found {line!r} as line {number} of {path}")
        pairs.append((first, second.strip()))
    return pairs


def read_number(name: str, text: str, path: Path) -> int:
    """A whole number."""
    if not text.isdecimal():
        raise Error(f"[datasets.{name}] expected a whole number, found {text!r} in {path}")
    return int(text)


def read_json(name: str, path: Path) -> Any:
    """A JSON file."""
    try:
        return json.loads(read_text(name, path))
    except (ValueError, RecursionError) as error:
        raise Error(f"[datasets.{name}] {path} is not JSON: {error}") from error


def read_jsonl(name: str, path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file with one a line, as they are read."""
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                item = json.loads(line)
                if not isinstance(item, dict):
                    raise Error(f"[datasets.{name}] expected an object as line {number} of {path}")
                yield item
    except (OSError, ValueError, RecursionError) as error:
        raise Error(f"[datasets.{name}] cannot read {path}: {error}") from error


def read_mat(name: str, path: Path, field: str) -> Any:
    """A variable of a MATLAB file (level 5), as SciPy gives it with squeezed dimensions."""
    from scipy.io import loadmat

    try:
        content = loadmat(str(path), squeeze_me=True)
    except Exception as error:  # SciPy's reader raises whatever a damaged file leads it to
        raise Error(f"[datasets.{name}] cannot read {path}: {error}") from error
    if field not in content:
        names = ", ".join(key for key in content if not key.startswith("__"))
        raise Error(f"[datasets.{name}] expected the variable {field}, found {names or 'none'} in {path}")
    return content[field]


def checked(name: str, path: Path, take: Callable[[], Any]) -> Any:
    """What `take` finds in something that was read from `path`; one Error when it is not of the expected form."""
    try:
        return take()
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise Error(f"[datasets.{name}] {path} is not of the published form: {error!r}") from error
