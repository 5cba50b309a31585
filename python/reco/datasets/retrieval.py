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
    first = next(iter(found))
    place = next((p for p in places if (p / first).is_file()), places[0])
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
def load_coco(root: Path, options: Options) -> Retrieval:
    """MS-COCO captions: Karpathy's dataset_coco.json, or captions_val2014.json; images in val2014/ (and train2014/).

    The split `test` is Karpathy's 5,000 images with all their 25,010 captions; without his file only `val2014`, all of
    captions_val2014.json, can be had.
    """
    split = check_split("coco", options.split, ("test", "val", "train", "val2014"))
    advice = "unpack val2014.zip and put dataset_coco.json (Karpathy) there"
    places = ("", "annotations/", "karpathy/")
    marks = ["captions_val2014.json"] if split == "val2014" else ["dataset_coco.json"]
    folder = find_folder("coco", root, ("coco", "images"), [p + m for m in marks for p in places], advice)
    file = find_file("coco", folder, [p + m for m in marks for p in places], advice)
    images = [folder, folder / "images", folder / "val2014", folder / "images/val2014"]
    if split == "val2014":
        published = {"images": 40504, "captions": 202654}
        return _retrieval("coco", split, images[2:] + images[:2], _official(file), published, advice)
    published = {"test": {"images": 5000, "captions": 25010}, "val": {"images": 5000, "captions": 25010}}.get(split, {})
    return _retrieval("coco", split, images, _karpathy("coco", file, split), published, advice)


def _official(file: Path) -> Captions:
    """Captions of COCO's own file, by file name, in the order of the images."""
    content = read_json("coco", file)

    def take() -> Captions:
        captions: dict[Any, list[str]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            captions[annotation["image_id"]].append(str(annotation["caption"]))
        return {str(image["file_name"]): captions[image["id"]] for image in content["images"]}

    return dict(checked("coco", file, take))


# --- Flickr30k -------------------------------------------------------------------------------------------------------
def load_flickr30k(root: Path, options: Options) -> Retrieval:
    """Flickr30k: Karpathy's dataset_flickr30k.json, or results_20130124.token; images in flickr30k-images/.

    The token file has no splits: `test` then needs a test.txt with an image name or number a line, and `all` is every
    image in it.
    """
    split = check_split("flickr30k", options.split, ("test", "val", "train", "all"))
    advice = "put dataset_flickr30k.json (Karpathy) and the folder flickr30k-images there"
    marks = ("dataset_flickr30k.json", "results_20130124.token")
    folder = find_folder("flickr30k", root, ("flickr30k",), marks, advice)
    file = find_file("flickr30k", folder, marks[::-1] if split == "all" else marks, advice)
    if file.suffix == ".json":
        found = _karpathy("flickr30k", file, split)
    else:
        found = _tokens(file)
        if split != "all":
            listed = find_file("flickr30k", folder, (f"{split}.txt",), f"{file.name} has no splits; {advice}")
            wanted = [n if n.endswith(".jpg") else f"{n}.jpg" for n in read_lines("flickr30k", listed)]
            found = {name: found.get(name, []) for name in wanted}
    images = [folder / name for name in ("flickr30k-images", "flickr30k_images", "images", "Images", "")]
    published = {"test": {"images": 1000, "captions": 5000}, "all": {"images": 31783, "captions": 158915}}.get(
        split, {}
    )
    return _retrieval("flickr30k", split, images, found, published, advice)


def _tokens(file: Path) -> Captions:
    """Captions of lines such as `1000092795.jpg#0<tab>Two young guys ...`."""
    captions: Captions = {}
    for number, line in enumerate(read_text("flickr30k", file).split("\n"), 1):
        if not line.strip():
            continue
        name, tab, caption = line.partition("\t")
        image, hash_sign, _ = name.rpartition("#")
        if not (tab and hash_sign and image):
            raise Error(
                f"[datasets.flickr30k] expected NAME.jpg#0, a tab and a caption, found {line[:40]!r} as line "
                f"{number} of {file}"
            )
        captions.setdefault(image, []).append(caption.strip())
    return captions
