# SPDX-License-Identifier: Apache-2.0
"""OVEN (Hu et al., ICCV 2023): images of entities among the six million that Wikipedia names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from reco._core import Error
from reco.datasets.benchmark import (
    EntityQuestions,
    Options,
    check_images,
    check_split,
    find_file,
    find_folder,
    read_jsonl,
)

SPLITS = ("entity_val", "query_val", "entity_test", "query_test")
_NAMES = "Wiki6M_ver_1_0_title_only.jsonl"
_PATHS = "ovenid2impath.csv"
_SUFFIXES = (".jpg", ".JPEG", ".jpeg", ".png", ".JPG", ".PNG")
_FIELDS = ("data_id", "image_id", "data_split")
_PREFIX = re.compile(r"\d\d$")
_ADVICE = (
    "put OVEN's .jsonl files and Wiki6M_ver_1_0_title_only.jsonl there, and the images under "
    "oven_images/00/oven_00000000.jpg"
)


def load_oven(root: Path, options: Options) -> EntityQuestions:
    """One file of OVEN: oven_entity_val.jsonl and its like, with images under their two-digit folders.

    Image oven_04925718 lies at oven_images/04/oven_04925718.jpg (or .JPEG or .png). One that does not is looked for
    where ovenid2impath.csv says it came from, and in the other two-digit folders. The test splits have no answers:
    predictions are written for them, but nothing can be counted.
    """
    split = check_split("oven", options.split, SPLITS)
    mark = f"oven_{split}.jsonl"
    folder = find_folder("oven", root, ("oven", "annotations", "oven_data"), (mark,), _ADVICE)
    questions = folder / mark
    ids, image_ids, splits, answers = _questions(questions)
    notes = []
    if not all(answers):
        notes.append(f"{mark} has no answers (entity_id) to {answers.count('')} questions: predictions only")
    _check_splits(splits, split, questions, answered=not notes)
    images = _images(root, folder, image_ids)
    check_images("oven", images, _ADVICE)
    names = next((d / _NAMES for d in (root, folder, root / "wiki") if (d / _NAMES).is_file()), None)
    if names is None:
        raise Error(f"[datasets.oven] expected {_NAMES} in {root} or {folder}, found none; {_ADVICE}")
    seen = [s.endswith("_seen") for s in splits]
    return EntityQuestions("oven", split, ids, images, None if notes else answers, seen, names, notes)


def _questions(path: Path) -> tuple[list[str], list[str], list[str], list[str]]:
    """Ids, image ids, splits and right entities ("" where there is none), an object in memory at a time."""
    rows: list[tuple[str, str, str, str]] = []
    for number, row in enumerate(read_jsonl("oven", path), 1):
        lacking = [name for name in _FIELDS if not isinstance(row.get(name), str)]
        if lacking:
            raise Error(
                f"[datasets.oven] expected {', '.join(_FIELDS)} as texts, found no {lacking[0]} in object {number} of "
                f"{path}"
            )
        rows.append((row["data_id"], row["image_id"], row["data_split"], str(row.get("entity_id") or "")))
    if not rows:
        raise Error(f"[datasets.oven] expected questions in {path}, found none")
    ids, image_ids, splits, answers = (list(column) for column in zip(*rows, strict=True))
    if len(set(ids)) < len(ids):
        raise Error(f"[datasets.oven] expected every data_id once in {path}")
    return ids, image_ids, splits, answers


def _check_splits(splits: list[str], split: str, path: Path, answered: bool) -> None:
    """Answers are counted by seen and unseen; without them a bare split will do."""
    known = [f"{split}_seen", f"{split}_unseen", *([] if answered else [split])]
    wrong = next((s for s in splits if s not in known), None)
    if wrong is not None:
        raise Error(f"[datasets.oven] expected data_split to be {' or '.join(known)}, found {wrong} in {path}")


def _images(root: Path, folder: Path, image_ids: list[str]) -> list[Path]:
    """Where the images lie."""
    base = root if (root / "oven_images").exists() else folder
    place = find_file("oven", base, ("oven_images", "images"), _ADVICE)
    usual = {image_id: _usual(place, image_id) for image_id in image_ids}
    lost = {image_id for image_id, path in usual.items() if not path.is_file()}
    table = next((d / _PATHS for d in (root, folder) if (d / _PATHS).is_file()), None)
    if lost and table:
        usual |= _listed(table, place, lost)
    lost = {image_id for image_id in lost if not usual[image_id].is_file()}
    if lost:
        usual |= _in_other_folders(place, lost)
    return [usual[image_id] for image_id in image_ids]


def _usual(place: Path, image_id: str) -> Path:
    """Under the first two digits of its number, with the first suffix that is there."""
    folder = place / image_id.rpartition("_")[2][:2]
    tries = [folder / f"{image_id}{suffix}" for suffix in _SUFFIXES]
    return next((path for path in tries if path.is_file()), tries[0])


def _listed(table: Path, place: Path, lost: set[str]) -> dict[str, Path]:
    """What ovenid2impath.csv (half a gigabyte of `id,path of the source`) tells of some images."""
    out: dict[str, Path] = {}
    try:
        with table.open(encoding="utf-8-sig") as lines:
            for line in lines:
                image_id, _, source = line.strip().partition(",")
                if image_id in lost:
                    merged = place / image_id.rpartition("_")[2][:2] / f"{image_id}{Path(source).suffix}"
                    found = [path for path in (merged, table.parent / source) if path.is_file()]
                    out |= {image_id: found[0]} if found else {}
    except (OSError, UnicodeDecodeError) as error:
        raise Error(f"[datasets.oven] cannot read {table}: {error}") from error
    return out


def _in_other_folders(place: Path, lost: set[str]) -> dict[str, Path]:
    """Snapshots of the images are not cut at the two digits everywhere."""
    out = {}
    for folder in sorted(p for p in place.iterdir() if p.is_dir() and _PREFIX.match(p.name)):
        with os.scandir(folder) as entries:
            for entry in entries:
                if (image_id := entry.name.rpartition(".")[0]) in lost:
                    out[image_id] = Path(entry.path)
    return out


def entity_names(path: Path) -> Iterator[tuple[str, str]]:
    """Id and title of every candidate, in the file's order, one line in memory at a time."""
    for number, row in enumerate(read_jsonl("oven", path), 1):
        entity, title = row.get("wikidata_id"), row.get("wikipedia_title")
        if not (isinstance(entity, str) and entity and isinstance(title, str)):
            raise Error(
                f"[datasets.oven] expected wikidata_id and wikipedia_title, found {', '.join(row)} as object "
                f"{number} of {path}"
            )
        yield entity, title
