# SPDX-License-Identifier: Apache-2.0
"""OVEN (Hu et al., ICCV 2023): images of entities among the six million that Wikipedia names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from reco._core import Error
from reco.datasets.benchmark import (
    EntityQuestions,
    Options,
    check_images,
    check_split,
    checked,
    find_file,
    find_folder,
    read_jsonl,
    read_lines,
)

SPLITS = ("entity_val", "query_val", "entity_test", "query_test")
_NAMES = "Wiki6M_ver_1_0_title_only.jsonl"
_SUFFIXES = (".jpg", ".JPEG", ".jpeg", ".png", ".JPG")
_ADVICE = (
    "put OVEN's .jsonl files and Wiki6M_ver_1_0_title_only.jsonl there, and the images under "
    "oven_images/00/oven_00000000.jpg"
)


def load_oven(root: Path, options: Options) -> EntityQuestions:
    """One file of OVEN: oven_entity_val.jsonl and its like, with images under their two-digit folders.

    Image oven_04925718 lies at oven_images/04/oven_04925718.jpg (or .JPEG or .png: ovenid2impath.csv knows where it is
    there). The test splits have no answers: predictions are written for them, but nothing can be counted.
    """
    split = check_split("oven", options.split, SPLITS)
    mark = f"oven_{split}.jsonl"
    folder = find_folder("oven", root, ("oven", "annotations", "oven_data"), (mark,), _ADVICE)
    questions = folder / mark
    rows = list(read_jsonl("oven", questions))
    ids, image_ids, splits = checked(
        "oven",
        questions,
        lambda: (
            [str(r["data_id"]) for r in rows],
            [str(r["image_id"]) for r in rows],
            [str(r["data_split"]) for r in rows],
        ),
    )
    wrong = next((s for s in splits if not s.startswith(split)), None)
    if wrong:
        raise Error(
            f"[datasets.oven] expected data_split to be {split}_seen or {split}_unseen, found {wrong} in {questions}"
        )
    if len(set(ids)) < len(ids):
        raise Error(f"[datasets.oven] expected every data_id once in {questions}")
    answered = [bool(r.get("entity_id")) for r in rows]
    entities = [str(r["entity_id"]) for r in rows] if rows and all(answered) else None
    notes = []
    if entities is None:
        notes.append(f"{questions.name} has no answers (entity_id): predictions only")
    images = _images(root, folder, image_ids)
    check_images("oven", images, _ADVICE)
    names = next((d / _NAMES for d in (root, folder, root / "wiki") if (d / _NAMES).is_file()), None)
    if names is None:
        raise Error(f"[datasets.oven] expected {_NAMES} in {root} or {folder}, found none; {_ADVICE}")
    return EntityQuestions("oven", split, ids, images, entities, [s.endswith("_seen") for s in splits], names, notes)


def _images(root: Path, folder: Path, image_ids: list[str]) -> list[Path]:
    """Where the images lie: the suffix comes from ovenid2impath.csv, or else from what is there."""
    place = find_file("oven", root if (root / "oven_images").exists() else folder, ("oven_images", "images"), _ADVICE)
    table = next((d / "ovenid2impath.csv" for d in (root, folder) if (d / "ovenid2impath.csv").is_file()), None)
    suffixes: dict[str, str] = {}
    if table:
        wanted = set(image_ids)
        for line in read_lines("oven", table):
            image_id, _, path = line.partition(",")
            if image_id in wanted:
                suffixes[image_id] = Path(path).suffix
    out = []
    for image_id in image_ids:
        stem = place / image_id.rpartition("_")[2][:2] / image_id
        known = [suffixes[image_id]] if image_id in suffixes else []
        tries = [stem.with_name(stem.name + suffix) for suffix in (*known, *_SUFFIXES)]
        out.append(next((path for path in tries if path.is_file()), tries[0]))
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
