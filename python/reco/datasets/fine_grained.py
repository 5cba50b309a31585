# SPDX-License-Identifier: Apache-2.0
"""Fine-grained classification as it is published: Stanford Cars, CUB-200-2011, Oxford Flowers-102, Stanford Dogs."""

from __future__ import annotations

from pathlib import Path

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
    find_place,
    read_json,
    read_mat,
    read_pairs,
    shipped_classnames,
)


def load_cars(root: Path, options: Options) -> Classification:
    """Stanford Cars (Krause et al. 2013): the layout of torchvision, or its folder stanford_cars itself.

    Needs devkit/cars_meta.mat and cars_test_annos_withlabels.mat with cars_test/, or for the split `train`
    devkit/cars_train_annos.mat with cars_train/. Class numbers are 1-based.
    """
    split = check_split("cars", options.split, ("test", "train"))
    advice = "put the devkit's files under devkit/, cars_test_annos_withlabels.mat beside it"
    folder = find_folder("cars", root, ("stanford_cars",), ("devkit",), advice)
    meta = find_file("cars", folder, ("devkit/cars_meta.mat",), advice)
    names = checked("cars", meta, lambda: [str(n) for n in np.atleast_1d(read_mat("cars", meta, "class_names"))])
    listed = (
        ("cars_test_annos_withlabels.mat", "devkit/cars_test_annos_withlabels.mat")
        if split == "test"
        else ("devkit/cars_train_annos.mat",)
    )
    file = find_file("cars", folder, listed, f"{advice}; cars_test_annos.mat has no labels")
    rows = np.atleast_1d(read_mat("cars", file, "annotations"))
    files, labels = checked(
        "cars", file, lambda: ([str(r["fname"]) for r in rows], [int(r["class"]) - 1 for r in rows])
    )
    place = find_place([folder / f"cars_{split}", folder / f"cars_{split}/cars_{split}"], files)  # the latter: Kaggle
    images = [place / name for name in files]
    check_images("cars", images, f"unpack cars_{split}.tgz in {folder}")
    check_labels("cars", labels, names, file)
    counts = {"images": len(images), "classes": len(names)}
    notes = check_counts(counts, {"images": 8041 if split == "test" else 8144, "classes": 196})
    return Classification("cars", split, images, labels, names, notes=notes)


def load_cub(root: Path, options: Options) -> Classification:
    """CUB-200-2011 (Wah et al. 2011): images.txt, image_class_labels.txt, train_test_split.txt, classes.txt, images/.

    At `root`, in CUB_200_2011/ or in CUB_200_2011/CUB_200_2011/, as unpacking in a folder of its own makes it.
    """
    split = check_split("cub", options.split, ("test", "train"))
    advice = "unpack CUB_200_2011.tgz there"
    inner = ("CUB_200_2011", "CUB_200_2011/CUB_200_2011")
    folder = find_folder("cub", root, inner, ("images.txt",), advice)
    paths, numbers, training, classes = (
        dict(read_pairs("cub", find_file("cub", folder, (f"{name}.txt",), advice)))
        for name in ("images", "image_class_labels", "train_test_split", "classes")
    )
    order = {number: i for i, number in enumerate(classes)}
    names = [name.partition(".")[2].replace("_", " ") or name for name in classes.values()]
    wanted = "0" if split == "test" else "1"
    chosen = [i for i in paths if _of(training, i, folder / "train_test_split.txt") == wanted]
    images = [folder / "images" / paths[i] for i in chosen]
    check_images("cub", images, f"{advice}: it holds images/")
    table = folder / "image_class_labels.txt"
    labels = [order.get(_of(numbers, i, table), -1) for i in chosen]
    check_labels("cub", labels, names, table)
    counts = {"images": len(images), "classes": len(names)}
    notes = check_counts(counts, {"images": 5794 if split == "test" else 5994, "classes": 200})
    return Classification("cub", split, images, labels, names, notes=notes)


def _of(table: dict[str, str], number: str, path: Path) -> str:
    if number not in table:
        raise Error(f"[datasets.cub] expected a line for image {number} in {path}, found none")
    return table[number]


_FLOWER_SPLITS = {"test": "tstid", "val": "valid", "train": "trnid"}


def load_flowers(root: Path, options: Options) -> Classification:
    """Oxford Flowers-102 (Nilsback and Zisserman 2008): imagelabels.mat, setid.mat, jpg/; the test split is `tstid`.

    At `root` or in flowers-102/ (torchvision's name). The data has no names: cat_to_name.json beside it counts where it
    is there, else the names on the data set's page, which come with reco (classnames/flowers.txt).
    """
    split = check_split("flowers", options.split, tuple(_FLOWER_SPLITS))
    advice = "put imagelabels.mat and setid.mat there and unpack 102flowers.tgz beside them"
    folder = find_folder("flowers", root, ("flowers-102", "102flowers"), ("imagelabels.mat",), advice)
    table = folder / "imagelabels.mat"
    every = np.atleast_1d(read_mat("flowers", table, "labels"))
    ids = folder / "setid.mat"
    find_file("flowers", folder, ("setid.mat",), advice)
    chosen = checked(
        "flowers", ids, lambda: [int(i) for i in np.atleast_1d(read_mat("flowers", ids, _FLOWER_SPLITS[split]))]
    )
    images = [folder / f"jpg/image_{i:05}.jpg" for i in chosen]
    check_images("flowers", images, f"unpack 102flowers.tgz in {folder}")
    labels = checked("flowers", table, lambda: [int(every[i - 1]) - 1 for i in chosen])
    names = _flower_names(folder)
    notes = check_counts({"images": len(images)}, {"images": 6149 if split == "test" else 1020})
    _check_flowers(labels, names, table, len(images))
    return Classification("flowers", split, images, labels, names, notes=notes)


def _check_flowers(labels: list[int], names: list[str], table: Path, images: int) -> None:
    """A cut-down copy need not have all 102 classes; a whole one must."""
    whole = images >= 1020
    used = names if whole else [names[i] for i in sorted(set(labels)) if 0 <= i < len(names)]
    places = {name: i for i, name in enumerate(used)}
    known = [places[names[label]] if 0 <= label < len(names) else -1 for label in labels]
    check_labels("flowers", known, used, table)


def _flower_names(folder: Path) -> list[str]:
    file = folder / "cat_to_name.json"
    if not file.is_file():
        return shipped_classnames()["flowers"]
    content = read_json("flowers", file)
    return list(checked("flowers", file, lambda: [str(content[str(i)]) for i in range(1, len(content) + 1)]))


def load_dogs(root: Path, options: Options) -> Classification:
    """Stanford Dogs (Khosla et al. 2011): test_list.mat (or train_list.mat) at `root` or in lists/, and Images/.

    Classes are named after their folders: n02085620-Chihuahua is Chihuahua.
    """
    split = check_split("dogs", options.split, ("test", "train"))
    advice = "unpack lists.tar and images.tar there"
    marks = (f"{split}_list.mat", f"lists/{split}_list.mat")
    folder = find_folder("dogs", root, ("stanford_dogs", "StanfordDogs"), marks, advice)
    file = find_file("dogs", folder, marks, advice)
    files = [str(name) for name in np.atleast_1d(read_mat("dogs", file, "file_list"))]
    numbers: list[int] = checked(
        "dogs", file, lambda: [int(label) - 1 for label in np.atleast_1d(read_mat("dogs", file, "labels"))]
    )
    if len(files) != len(numbers):
        raise Error(
            f"[datasets.dogs] expected as many labels as files, found {len(numbers)} and {len(files)} in {file}"
        )
    images = [folder / "Images" / name for name in files]
    check_images("dogs", images, f"unpack images.tar in {folder}")
    names = _breeds(files, numbers, file)
    check_labels("dogs", numbers, names, file)
    counts = {"images": len(images), "classes": len(names)}
    notes = check_counts(counts, {"images": 8580 if split == "test" else 12000, "classes": 120})
    return Classification("dogs", split, images, numbers, names, notes=notes + distinct(names))


def _breeds(files: list[str], labels: list[int], file: Path) -> list[str]:
    folder_of: dict[int, str] = {}
    for name, label in zip(files, labels, strict=True):
        folder = name.partition("/")[0]
        if folder_of.setdefault(label, folder) != folder:
            raise Error(
                f"[datasets.dogs] expected one folder a class, found {folder_of[label]} and {folder} for class "
                f"{label + 1} in {file}"
            )
    names = [f"class {i}" for i in range(1, max(labels, default=-1) + 2)]
    for label, folder in folder_of.items():
        names[label] = folder.partition("-")[2].replace("_", " ") or folder
    return names
