# SPDX-License-Identifier: Apache-2.0
"""What people have on disk: image-text pairs in folders, tables and WebDataset shards; benchmarks as published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from reco._core import Error
from reco.datasets import fine_grained, generic, large_scale, oven, retrieval
from reco.datasets.benchmark import Classification, Dataset, EntityQuestions, Options, Retrieval
from reco.datasets.collection import Collection, Fault, Sample, read_samples

__all__ = [
    "DATASETS",
    "OWN",
    "Classification",
    "Collection",
    "Dataset",
    "EntityQuestions",
    "Fault",
    "Retrieval",
    "Sample",
    "load_dataset",
    "read_samples",
]

#: Every data set that can be evaluated on, by the name it is asked for.
DATASETS: dict[str, Callable[[Path, Options], Dataset]] = {
    "cars": fine_grained.load_cars,
    "cub": fine_grained.load_cub,
    "flowers": fine_grained.load_flowers,
    "dogs": fine_grained.load_dogs,
    "imagenet": large_scale.load_imagenet,
    "places365": large_scale.load_places365,
    "coco": retrieval.load_coco,
    "flickr30k": retrieval.load_flickr30k,
    "oven": oven.load_oven,
    "folder": generic.load_folder,
    "labelled": generic.load_labelled,
    "captioned": generic.load_captioned,
    "webdataset": generic.load_webdataset,
}

#: Those among them that are one's own, and are called what their folder or file is called.
OWN = ("folder", "labelled", "captioned", "webdataset")


def load_dataset(
    name: str,
    root: str | Path,
    *,
    split: str | None = None,
    label: str | None = None,
    image_column: str | None = None,
) -> Dataset:
    """A data set in the layout that people have on disk; nothing is downloaded, and no image is decoded yet.

    Parameters
    ----------
    name : str
        A key of DATASETS. The published ones: cars, cub, flowers, dogs, imagenet, places365 (classification), coco,
        flickr30k (retrieval), oven (entities). One's own: folder (of class folders), labelled (a table, shards or a
        folder of images with a class each), captioned (the same for retrieval), webdataset (CLIP_benchmark's folders).
    root : path
        Where it lies; the loaders' documentation says which files are looked for.
    split : str, optional
        The one that results are published for by default.
    label, image_column : str, optional
        Columns of a table.

    Raises
    ------
    Error
        When something is missing or not as published: says what, and where to put it.
    """
    if name not in DATASETS:
        raise Error(f"[datasets.load_dataset] expected one of {', '.join(DATASETS)}, got {name}")
    try:
        return DATASETS[name](Path(root), Options(split, label, image_column))
    except OSError as error:
        raise Error(f"[datasets.{name}] cannot read {error.filename}: {error.strerror}") from error
