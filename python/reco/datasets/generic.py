# SPDX-License-Identifier: Apache-2.0
"""Data sets of one's own: a folder of class folders, tables and captioned collections, CLIP_benchmark's WebDatasets."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reco._core import Error
from reco.datasets.benchmark import (
    Classification,
    Dataset,
    Image,
    Options,
    Retrieval,
    Slice,
    check_labels,
    distinct,
    find_file,
    read_lines,
    read_number,
)
from reco.datasets.collection import Collection
from reco.datasets.sources import IMAGE_SUFFIXES, Fault, Sample

_LABELS = ("label", "class", "classname", "class_name", "category", "concept")
_MAX_LABEL_FILE = 1 << 20  # bytes: a number, or some captions


# --- folders ---------------------------------------------------------------------------------------------------------
def load_folder(root: Path, options: Options) -> Classification:
    """A folder of class folders; `_` in a folder's name is a space. A split is a folder of `root`."""
    place = root / options.split if options.split else root
    if not place.is_dir():
        raise Error(f"[datasets.folder] expected a folder, found nothing at {place}")
    folders = sorted(p for p in place.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise Error(f"[datasets.folder] expected a folder a class in {place}, found none")
    images, labels = [], []
    for label, folder in enumerate(folders):
        found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        images += found
        labels += [label] * len(found)
    names = [folder.name.replace("_", " ") for folder in folders]
    check_labels("folder", labels, names, place)
    return Classification(_name(root), options.split or "all", images, labels, names, notes=distinct(names))


def _name(root: Path) -> str:
    path = root.resolve()
    return path.name.partition(".")[0] if path.is_file() else path.name


# --- tables and captioned collections --------------------------------------------------------------------------------
def _samples(name: str, root: Path, options: Options) -> list[Sample]:
    """All samples. Images inside shards and tables are held as encoded files."""
    samples = []
    for _, item in Collection([root], image_column=options.image_column).read():
        if isinstance(item, Fault):
            raise Error(f"[datasets.{name}] {item.key} in {item.path}: {item.error}")
        samples.append(item)
    if not samples:
        raise Error(f"[datasets.{name}] expected images, found none in {root}")
    return samples


def load_labelled(root: Path, options: Options) -> Classification:
    """What `reco embed` reads (a CSV, TSV or Parquet table, shards, a folder with JSON beside the images), each with a
    class: the column or field `label`, else one of the usual names (label, class, classname, class_name, category,
    concept), else the caption. Classes are the sorted distinct values.
    """
    samples = _samples("labelled", root, options)
    column = options.label or next((c for c in _LABELS if c in samples[0].metadata), None)
    values = [_label(root, s, column, options.label is not None) for s in samples]
    classnames = sorted(set(values))
    places = {value: i for i, value in enumerate(classnames)}
    images = [s.image for s in samples]
    name = _name(root)
    return Classification(name, options.split or "all", images, [places[v] for v in values], classnames)


def _label(root: Path, sample: Sample, column: str | None, asked: bool) -> str:
    value: Any = sample.metadata.get(column) if column else None
    value = sample.caption if value is None and (column in (None, "caption", "text") or not asked) else value
    if value is None or not str(value).strip():
        known = ", ".join(sorted(name for name in sample.metadata if name != "image_path"))
        raise Error(
            f"[datasets.labelled] expected a class in the column {column or 'caption'} for {sample.key} in {root}, "
            f"found none; it has {known or 'no other columns'}"
        )
    return str(value).strip()


def load_captioned(root: Path, options: Options) -> Retrieval:
    """What `reco embed` reads, for retrieval: samples with the same image path are captions of one image."""
    samples = _samples("captioned", root, options)
    rows: dict[str, int] = {}
    images: list[Image] = []
    captions, image_of_text = [], []
    for sample in samples:
        if not sample.caption:
            raise Error(f"[datasets.captioned] expected a caption for {sample.key} in {root}, found none")
        path = str(sample.metadata.get("image_path") or sample.key)
        if path not in rows:
            rows[path] = len(images)
            images.append(sample.image)
        captions.append(sample.caption)
        image_of_text.append(rows[path])
    return Retrieval(_name(root), options.split or "all", images, captions, image_of_text)


# --- CLIP_benchmark's WebDatasets ------------------------------------------------------------------------------------
@dataclass
class _Item:
    """The files of one sample: its image, and what it is of."""

    image: Slice | None = None
    files: dict[str, bytes] = field(default_factory=dict)


def load_webdataset(root: Path, options: Options) -> Dataset:
    """A folder that clip_benchmark_export_wds wrote, which is how CLIP_benchmark's data sets are shared.

    classnames.txt, zeroshot_classification_templates.txt, dataset_type.txt ("retrieval" or absent), and for the split
    (`test` by default) test/nshards.txt and test/0.tar, 1.tar, ... with .jpg, .png or .webp and .cls or .txt files.
    """
    advice = "the folder must be as clip_benchmark_export_wds writes it"
    split = options.split or "test"
    counts = find_file("webdataset", root / split, ("nshards.txt",), advice)
    lines = read_lines("webdataset", counts)
    shards = read_number("webdataset", lines[0] if lines else "", counts)
    items = [
        item for i in range(shards) for item in _items(find_file("webdataset", root / split, (f"{i}.tar",), advice))
    ]
    kind = root / "dataset_type.txt"
    task = (read_lines("webdataset", kind) or [""])[0].lower() if kind.is_file() else "classification"
    if task == "retrieval":
        return _wds_retrieval(root, split, items)
    if task != "classification":
        raise Error(f"[datasets.webdataset] expected the type classification or retrieval, found {task} in {kind}")
    return _wds_classification(root, split, items, advice)


def _wds_classification(root: Path, split: str, items: list[tuple[str, _Item]], advice: str) -> Classification:
    file = find_file("webdataset", root, ("classnames.txt",), advice)
    names = read_lines("webdataset", file)
    templates = root / "zeroshot_classification_templates.txt"
    labels = [read_number("webdataset", _part(key, item, "cls").strip(), root / split) for key, item in items]
    used = sorted(set(labels))
    if used and used[-1] >= len(names):
        raise Error(f"[datasets.webdataset] expected classes 0 to {len(names) - 1}, found {used[-1]} in {root / split}")
    # A set such as ImageNet-A has fewer classes than names: all the same, all are candidates.
    empty = len(names) - len(used)
    notes = [f"{empty} of {len(names)} classes have no images"] if empty else []
    return Classification(
        _name(root),
        split,
        [_image(key, item) for key, item in items],
        labels,
        names,
        read_lines("webdataset", templates) if templates.is_file() else [],
        notes + distinct(names),
    )


def _wds_retrieval(root: Path, split: str, items: list[tuple[str, _Item]]) -> Retrieval:
    captions = [[c for c in _part(key, item, "txt").splitlines() if c.strip()] for key, item in items]
    return Retrieval(
        _name(root),
        split,
        [_image(key, item) for key, item in items],
        [caption for each in captions for caption in each],
        [i for i, each in enumerate(captions) for _ in each],
    )


def _part(key: str, item: _Item, suffix: str) -> str:
    if suffix not in item.files:
        raise Error(f"[datasets.webdataset] expected the file {key}.{suffix}, found none")
    return item.files[suffix].decode("utf-8", "replace")


def _image(key: str, item: _Item) -> Slice:
    if item.image is None:
        raise Error(f"[datasets.webdataset] expected an image (jpg, png, webp) for {key}, found none")
    return item.image


_FOLDER = re.compile(r"^(?:\./)+")


def _items(tar: Path) -> Iterator[tuple[str, _Item]]:
    """The samples of a shard; of an image only where it lies."""
    key, item = "", _Item()
    try:
        with tarfile.open(tar, "r:") as shard:
            for member in shard:
                if not member.isfile():
                    continue
                name = _FOLDER.sub("", member.name)
                folder, _, base = name.rpartition("/")
                stem, _, suffix = base.partition(".")
                if f"{tar}/{folder}/{stem}" != key:
                    if key:
                        yield key, item
                    key, item = f"{tar}/{folder}/{stem}", _Item()
                if f".{suffix.lower()}" in IMAGE_SUFFIXES:
                    item.image = Slice(tar, member.offset_data, member.size, name)
                elif suffix in ("cls", "txt") and member.size <= _MAX_LABEL_FILE:
                    file = shard.extractfile(member)
                    item.files[suffix] = file.read() if file else b""
    except (tarfile.TarError, OSError, EOFError) as error:
        raise Error(f"[datasets.webdataset] the shard {tar} is damaged: {error}") from error
    if key:
        yield key, item
