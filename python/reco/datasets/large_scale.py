# SPDX-License-Identifier: Apache-2.0
"""ImageNet's and Places365's validation sets as they are published."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from reco._core import Error
from reco.datasets.benchmark import (
    Classification,
    Options,
    check_counts,
    check_images,
    check_labels,
    check_split,
    checked,
    distinct,
    find_file,
    find_folder,
    read_json,
    read_lines,
    read_mat,
    read_number,
    read_pairs,
)
from reco.datasets.sources import IMAGE_SUFFIXES

_WNID = re.compile(r"n\d{8}$")
_FLAT = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG$")
_DEVKIT = ("ILSVRC2012_devkit_t12/data", "data", "devkit/data", "../ILSVRC2012_devkit_t12/data", "../data")
_PLACES = ("val", "ILSVRC2012_img_val", "ILSVRC/Data/CLS-LOC/val")
_SOLUTION = "LOC_val_solution.csv"
_NAME_FILES = ("LOC_synset_mapping.txt", "synset_words.txt", "imagenet_class_index.json")


def load_imagenet(root: Path, options: Options) -> Classification:
    """ImageNet's validation set (ILSVRC 2012): 1000 folders named after synsets, or 50000 files in one folder.

    The images lie at `root`, in val/ or in ILSVRC2012_img_val/. Classes are the sorted synsets, as everybody's models
    have them. Names come from the devkit (ILSVRC2012_devkit_t12/data/meta.mat), LOC_synset_mapping.txt (Kaggle),
    synset_words.txt (Caffe) or imagenet_class_index.json (Keras); the first synonym is the name. Files in one folder
    need the devkit, whose ILSVRC2012_IDs are not the sorted synsets' numbers, or Kaggle's LOC_val_solution.csv.
    """
    split = check_split("imagenet", options.split, ("val",))
    if not root.is_dir():
        raise Error(
            f"[datasets.imagenet] expected a folder, found {'a file' if root.exists() else 'nothing'} at {root}"
        )
    for place in (root, *(root / inner for inner in _PLACES)):
        names = sorted(p.name for p in place.iterdir()) if place.is_dir() else []
        wnids = [name for name in names if _WNID.match(name)]
        flat = [name for name in names if _FLAT.match(name)]
        if wnids or flat:
            return _folders(root, place, wnids, split) if wnids else _flat(root, place, flat, split)
    raise Error(
        f"[datasets.imagenet] expected folders named as n01440764 or files as ILSVRC2012_val_00000001.JPEG in {root}, "
        f"or in {' or '.join(_PLACES)} there, found none; unpack ILSVRC2012_img_val.tar there"
    )


def _folders(root: Path, place: Path, wnids: list[str], split: str) -> Classification:
    images, labels = [], []
    for label, wnid in enumerate(wnids):
        found = sorted(p for p in (place / wnid).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        images += found
        labels += [label] * len(found)
    check_labels("imagenet", labels, wnids, place)
    return _imagenet(root, split, images, labels, wnids)


def _flat(root: Path, place: Path, files: list[str], split: str) -> Classification:
    """The synset of each file is what the devkit or Kaggle's table says."""
    solution = next((d / _SOLUTION for d in (root, root.parent, place) if (d / _SOLUTION).is_file()), None)
    table, known, wnids = _kaggle(solution) if solution else _devkit(root, place)
    images = [place / f"{name}.JPEG" for name in known]
    check_images("imagenet", images, f"unpack ILSVRC2012_img_val.tar in {place}")
    if len(files) > len(known):
        raise Error(
            f"[datasets.imagenet] expected a line for every image in {table}, found {len(known)} lines and "
            f"{len(files)} images in {place}"
        )
    number_of = {wnid: i for i, wnid in enumerate(wnids)}
    labels = [number_of.get(wnid, -1) for wnid in known.values()]
    check_labels("imagenet", labels, wnids, table)
    return _imagenet(root, split, images, labels, wnids)


def _devkit(root: Path, place: Path) -> tuple[Path, dict[str, str], list[str]]:
    """The table of answers, synsets by file, all synsets in order; an unknown ILSVRC2012_ID gives ''."""
    advice = f"files in one folder need ILSVRC2012_devkit_t12.tar.gz unpacked in {root}, or {_SOLUTION} (Kaggle)"
    folder = find_folder("imagenet", root, _DEVKIT, ("meta.mat",), advice)
    synsets = _synsets(folder / "meta.mat")
    truth = find_file("imagenet", folder, ("ILSVRC2012_validation_ground_truth.txt",), advice)
    ids = [read_number("imagenet", line, truth) for line in read_lines("imagenet", truth)]
    known = {f"ILSVRC2012_val_{i:08}": synsets.get(number, ("", ""))[0] for i, number in enumerate(ids, 1)}
    return truth, known, sorted(wnid for wnid, _ in synsets.values())


def _kaggle(table: Path) -> tuple[Path, dict[str, str], list[str]]:
    """The same from lines such as `ILSVRC2012_val_00048981,n03995372 85 1 499 272` below a header."""
    known = {}
    for line in read_lines("imagenet", table)[1:]:
        name, _, boxes = line.partition(",")
        if not (_FLAT.match(f"{name}.JPEG") and _WNID.match(boxes.partition(" ")[0])):
            raise Error(
                f"[datasets.imagenet] expected ILSVRC2012_val_00000001,n01440764 1 2 3 4, found {line!r} in {table}"
            )
        known[name] = boxes.partition(" ")[0]
    return table, dict(sorted(known.items())), sorted(set(known.values()))


def _imagenet(root: Path, split: str, images: list[Path], labels: list[int], wnids: list[str]) -> Classification:
    names = _imagenet_names(root, wnids)
    notes = check_counts({"images": len(images), "classes": len(wnids)}, {"images": 50000, "classes": 1000})
    return Classification("imagenet", split, images, labels, names, notes=notes + distinct(names))


def _synsets(meta: Path) -> dict[int, tuple[str, str]]:
    """Synset and words of the devkit's leaves, by ILSVRC2012_ID."""
    rows: Any = np.atleast_1d(read_mat("imagenet", meta, "synsets"))
    return dict(
        checked(
            "imagenet",
            meta,
            lambda: {
                int(r["ILSVRC2012_ID"]): (str(r["WNID"]), str(r["words"])) for r in rows if int(r["num_children"]) == 0
            },
        )
    )


def _imagenet_names(root: Path, wnids: list[str]) -> list[str]:
    """Names in the order of `wnids`; none where no file has them."""
    words: dict[str, str] = {}
    devkit = next((root / f / "meta.mat" for f in _DEVKIT if (root / f / "meta.mat").is_file()), None)
    listed = next((d / f for d in (root, root.parent) for f in _NAME_FILES if (d / f).is_file()), None)
    if devkit:
        words, source = dict(_synsets(devkit).values()), devkit
    elif listed and listed.suffix == ".json":
        content = read_json("imagenet", listed)
        words = checked("imagenet", listed, lambda: {str(w): str(n).replace("_", " ") for w, n in content.values()})
        source = listed
    elif listed:
        words, source = dict(read_pairs("imagenet", listed)), listed
    else:
        return []
    missing = [wnid for wnid in wnids if wnid not in words]
    if missing:
        raise Error(f"[datasets.imagenet] expected names of all classes in {source}, found none of {missing[0]}")
    return [words[wnid].split(",")[0].strip() for wnid in wnids]


def load_places365(root: Path, options: Options) -> Classification:
    """Places365's validation set (Zhou et al. 2017): places365_val.txt, categories_places365.txt, val_256/ or
    val_large/.

    /a/apartment_building/outdoor is named apartment building outdoor.
    """
    split = check_split("places365", options.split, ("val",))
    advice = "unpack filelist_places365-standard.tar and val_256.tar or val_large.tar there"
    folder = find_folder("places365", root, ("places365", "places365_standard"), ("places365_val.txt",), advice)
    categories = find_file("places365", folder, ("categories_places365.txt",), advice)
    rows = [(name, read_number("places365", i, categories)) for name, i in read_pairs("places365", categories)]
    if sorted(number for _, number in rows) != list(range(len(rows))):
        raise Error(f"[datasets.places365] expected the numbers 0 to {len(rows) - 1}, each once, in {categories}")
    names = [_scene(name) for name, _ in sorted(rows, key=lambda row: row[1])]
    table = folder / "places365_val.txt"
    listed = read_pairs("places365", table)
    place = find_file("places365", folder, ("val_256", "val_large"), advice)
    images = [place / name for name, _ in listed]
    check_images("places365", images, f"unpack {place.name}.tar in {folder}")
    labels = [read_number("places365", label, table) for _, label in listed]
    check_labels("places365", labels, names, table)
    counts = {"images": len(images), "classes": len(names)}
    notes = check_counts(counts, {"images": 36500, "classes": 365})
    return Classification("places365", split, images, labels, names, notes=notes + distinct(names))


def _scene(category: str) -> str:
    return (
        category[3:].replace("/", " ").replace("_", " ") if category[:1] == "/" and category[2:3] == "/" else category
    )
