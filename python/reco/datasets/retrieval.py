# SPDX-License-Identifier: Apache-2.0
"""Image-text retrieval as it is published: MS-COCO captions and Flickr30k."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reco._core import Error
from reco.datasets.benchmark import (
    Options,
    Retrieval,
    check_counts,
    check_images,
    check_split,
    checked,
    find_file,
    find_folder,
    find_place,
    read_json,
    read_lines,
    read_text,
)

Captions = dict[str, list[str]]  # of a file


def _retrieval(
    name: str, split: str, places: list[Path], found: Captions, published: dict[str, int], advice: str
) -> Retrieval:
    """Images may lie in any of `places`."""
    if not found:
        raise Error(f"[datasets.{name}] expected images of the split {split}, found none; {advice}")
    place = find_place(places, found)
    images = [place / file for file in found]
    check_images(name, images, advice)
    empty = next((file for file, captions in found.items() if not captions), None)
    if empty:
        raise Error(f"[datasets.{name}] expected captions of every image, found none of {empty}")
    texts = [caption for captions in found.values() for caption in captions]
    rows = [i for i, captions in enumerate(found.values()) for _ in captions]
    notes = check_counts({"images": len(images), "captions": len(texts)}, published)
    return Retrieval(name, split, images, texts, rows, notes)


def _karpathy(name: str, file: Path, split: str) -> Captions:
    """Captions of a split of Karpathy's files, by path; what he calls restval is training data."""
    content = read_json(name, file)

    def take() -> Captions:
        return {
            f"{image.get('filepath', '')}/{image['filename']}".lstrip("/"): [str(s["raw"]) for s in image["sentences"]]
            for image in content["images"]
            if (image["split"] if image["split"] != "restval" else "train") == split
        }

    return dict(checked(name, file, take))


# --- MS-COCO ---------------------------------------------------------------------------------------------------------
_COCO = {
    "test": {"images": 5000, "captions": 25010},
    "val": {"images": 5000, "captions": 25010},
    "train": {"images": 113287, "captions": 566747},
    "val2014": {"images": 40504, "captions": 202654},
}


def load_coco(root: Path, options: Options) -> Retrieval:
    """MS-COCO captions: Karpathy's dataset_coco.json, or a file of COCO's own form; images in val2014/, train2014/.

    The split `test` is Karpathy's 5,000 images with all their 25,010 captions, from his file or from CLIP_benchmark's
    coco_test_karpathy.json. captions_val2014.json has no splits: `val2014` is all of it.
    """
    split = check_split("coco", options.split, ("test", "val", "train", "val2014"))
    advice = "unpack val2014.zip and put dataset_coco.json (Karpathy) or coco_test_karpathy.json (CLIP_benchmark) there"
    files = ["captions_val2014.json"] if split == "val2014" else ["dataset_coco.json", f"coco_{split}_karpathy.json"]
    marks = [place + file for file in files for place in ("", "annotations/", "karpathy/")]
    folder = find_folder("coco", root, ("coco", "images"), marks, advice)
    file = find_file("coco", folder, marks, advice)
    inner = ["train2014" if split == "train" else "val2014", "", "images", "images/val2014", "images/train2014"]
    if file.name == "dataset_coco.json":  # its paths have the inner folder
        found, inner = _karpathy("coco", file, split), ["", "images", *inner]
    else:
        found = _official(file)
    return _retrieval("coco", split, [folder / place for place in inner], found, _COCO[split], advice)


def _official(file: Path) -> Captions:
    """Captions of a file in COCO's own form, by file name, in the order of the images."""
    content = read_json("coco", file)

    def take() -> Captions:
        captions: dict[Any, list[str]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            captions[annotation["image_id"]].append(str(annotation["caption"]))
        return {str(image["file_name"]): captions[image["id"]] for image in content["images"]}

    return dict(checked("coco", file, take))


# --- Flickr30k -------------------------------------------------------------------------------------------------------
_FLICKR30K = {
    "test": {"images": 1000, "captions": 5000},
    "val": {"images": 1014, "captions": 5070},
    "train": {"images": 29000, "captions": 145000},
    "all": {"images": 31783, "captions": 158915},
}


def load_flickr30k(root: Path, options: Options) -> Retrieval:
    """Flickr30k: Karpathy's dataset_flickr30k.json, or results_20130124.token; images in flickr30k-images/.

    CLIP_benchmark's flickr30k_test_karpathy.txt will do as well. The token file has no splits: `test` then needs a
    test.txt with an image name or number a line, and `all` is every image in it.
    """
    split = check_split("flickr30k", options.split, ("test", "val", "train", "all"))
    advice = "put dataset_flickr30k.json (Karpathy) and the folder flickr30k-images there"
    json, listed, token = "dataset_flickr30k.json", f"flickr30k_{split}_karpathy.txt", "results_20130124.token"
    marks = (token,) if split == "all" else (json, listed, token)
    folder = find_folder("flickr30k", root, ("flickr30k",), marks, advice)
    file = find_file("flickr30k", folder, marks, advice)
    readers = {json: lambda: _karpathy("flickr30k", file, split), listed: lambda: _lines_of(file)}
    found = readers.get(file.name, lambda: _tokens_of(folder, file, split, advice))()
    images = [folder / name for name in ("flickr30k-images", "flickr30k_images", "images", "Images", "")]
    return _retrieval("flickr30k", split, images, found, _FLICKR30K[split], advice)


def _lines_of(file: Path) -> Captions:
    """Captions of lines such as `1000092795.jpg,Two young guys ...` below a header."""
    captions: Captions = {}
    for number, line in enumerate(read_text("flickr30k", file).split("\n")[1:], 2):
        if not line.strip():
            continue
        name, found, caption = line.partition(".jpg,")
        if not found:
            raise _malformed(file, number, line, "NAME.jpg, a comma and a caption")
        captions.setdefault(f"{name}.jpg", []).append(caption.strip())
    return captions


def _tokens_of(folder: Path, file: Path, split: str, advice: str) -> Captions:
    """All of the token file, or the images that test.txt and the like name."""
    found = _tokens(file)
    if split == "all":
        return found
    listed = find_file("flickr30k", folder, (f"{split}.txt",), f"{file.name} has no splits; {advice}")
    wanted = [name if name.endswith(".jpg") else f"{name}.jpg" for name in read_lines("flickr30k", listed)]
    return {name: found.get(name, []) for name in wanted}


def _tokens(file: Path) -> Captions:
    """Captions of lines such as `1000092795.jpg#0<tab>Two young guys ...`."""
    captions: Captions = {}
    for number, line in enumerate(read_text("flickr30k", file).split("\n"), 1):
        if not line.strip():
            continue
        name, tab, caption = line.partition("\t")
        image, hash_sign, _ = name.rpartition("#")
        if not (tab and hash_sign and image):
            raise _malformed(file, number, line, "NAME.jpg#0, a tab and a caption")
        captions.setdefault(image, []).append(caption.strip())
    return captions


def _malformed(file: Path, number: int, line: str, expected: str) -> Error:
    return Error(f"[datasets.flickr30k] expected {expected}, found {line[:40]!r} as line {number} of {file}")
