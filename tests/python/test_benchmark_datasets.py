# SPDX-License-Identifier: Apache-2.0
"""Benchmarks in the published formats: what the loaders find, and what they say when something is missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

import benchmark_folders as folders
import reco
from benchmark_folders import Picture, put
from reco.datasets import Classification, EntityQuestions, Retrieval, load_dataset
from reco.datasets.benchmark import image_bytes
from reco.datasets.oven import entity_names

NAMES = ["red admiral", "blue tit", "great auk"]


def pixel(value: int) -> bytes:
    return folders.to_jpeg(folders.png(value))


ITEMS = [Picture(i % 3, pixel(20 * i)) for i in range(12)]


def check(data: Any, names: list[str] = NAMES, items: list[Picture] = ITEMS) -> None:
    """Every image has the class it was made with, whatever its number became."""
    assert isinstance(data, Classification)
    contents = {item.jpeg: names[item.concept] for item in items}
    found = [(image_bytes(image), data.classnames[i]) for image, i in zip(data.images, data.labels, strict=True)]
    assert dict(found) == contents
    assert len(found) == len(contents)


def test_cars(tmp_path: Path) -> None:
    folders.cars(tmp_path, NAMES, ITEMS)
    data = load_dataset("cars", tmp_path)
    check(data)
    assert data.classnames == NAMES
    assert data.notes == [
        "expected 8,041 images as published, found 12",
        "expected 196 classes as published, found 3",
    ]
    check(load_dataset("cars", tmp_path / "stanford_cars"))
    with pytest.raises(reco.Error, match=r"expected one of the splits test, train, got val"):
        load_dataset("cars", tmp_path, split="val")
    nested = tmp_path / "stanford_cars/cars_test/cars_test"
    (tmp_path / "stanford_cars/cars_test").rename(tmp_path / "away")
    nested.parent.mkdir()
    (tmp_path / "away").rename(nested)
    check(load_dataset("cars", tmp_path))
    (tmp_path / "stanford_cars/cars_test_annos_withlabels.mat").unlink()
    with pytest.raises(reco.Error, match=r"cars_test_annos_withlabels.mat .* cars_test_annos.mat has no labels"):
        load_dataset("cars", tmp_path)


@pytest.mark.parametrize("nested", [False, True])
def test_cub(tmp_path: Path, nested: bool) -> None:
    folders.cub(tmp_path, NAMES, ITEMS, nested)
    test, train = load_dataset("cub", tmp_path), load_dataset("cub", tmp_path, split="train")
    check(test, items=[p for i, p in enumerate(ITEMS) if i // 3 % 3 != 2])
    check(train, items=[p for i, p in enumerate(ITEMS) if i // 3 % 3 == 2])
    assert test.classnames == NAMES


def test_cub_numbers_are_not_in_order(tmp_path: Path) -> None:
    folder = folders.cub(tmp_path, NAMES, ITEMS) / "CUB_200_2011"
    for name in ("image_class_labels.txt", "train_test_split.txt"):
        lines = (folder / name).read_text().splitlines(keepends=True)
        put(folder / name, "".join(reversed(lines)))
    check(load_dataset("cub", tmp_path), items=[p for i, p in enumerate(ITEMS) if i // 3 % 3 != 2])


def test_flowers(tmp_path: Path) -> None:
    folders.flowers(tmp_path, NAMES, ITEMS)
    check(load_dataset("flowers", tmp_path), items=[p for i, p in enumerate(ITEMS) if i // 3 % 3 == 2])
    check(load_dataset("flowers", tmp_path, split="val"), items=[p for i, p in enumerate(ITEMS) if i // 3 % 3 == 1])
    (tmp_path / "flowers-102/cat_to_name.json").unlink()
    names = load_dataset("flowers", tmp_path).classnames
    assert len(names) == len(set(names)) == 102
    assert (names[0], names[20], names[101]) == ("pink primrose", "fire lily", "blackberry lily")


@pytest.mark.parametrize("inner", ["", "lists"])
def test_dogs(tmp_path: Path, inner: str) -> None:
    folders.dogs(tmp_path, ["Chihuahua", "soft-coated wheaten terrier", "pug"], ITEMS, inner)
    data = load_dataset("dogs", tmp_path)
    check(data, ["Chihuahua", "soft-coated wheaten terrier", "pug"])


@pytest.mark.parametrize("size", ["val_256", "val_large"])
def test_places365(tmp_path: Path, size: str) -> None:
    names = ["airfield", "apartment building outdoor", "zen garden"]
    folders.places365(tmp_path, names, ITEMS, size)
    lines = (tmp_path / "categories_places365.txt").read_text().splitlines(keepends=True)
    lines[1] = "/a/apartment_building/outdoor 1\n"
    put(tmp_path / "categories_places365.txt", "".join(reversed(lines)))
    check(load_dataset("places365", tmp_path), names)


@pytest.mark.parametrize("make", [folders.imagenet_folders, folders.imagenet_flat])
def test_imagenet(tmp_path: Path, make: Callable[..., Path]) -> None:
    make(tmp_path, NAMES, ITEMS)
    data = load_dataset("imagenet", tmp_path)
    check(data)
    order = np.argsort(folders.wnids(3))
    assert data.classnames == [NAMES[i] for i in order] != NAMES, "classes are the sorted synsets"


def test_imagenet_from_kaggle(tmp_path: Path) -> None:
    """ILSVRC/Data/CLS-LOC/val flat, the synsets in LOC_val_solution.csv, in an order of its own."""
    folders.imagenet_flat(tmp_path, NAMES, ITEMS)
    (tmp_path / "ILSVRC/Data/CLS-LOC").mkdir(parents=True)
    (tmp_path / "val").rename(tmp_path / "ILSVRC/Data/CLS-LOC/val")
    shutil.rmtree(tmp_path / "ILSVRC2012_devkit_t12")
    with pytest.raises(reco.Error, match=r"unpacked in .*, or LOC_val_solution.csv \(Kaggle\)$"):
        load_dataset("imagenet", tmp_path)
    ids = folders.wnids(3)
    lines = [f"ILSVRC2012_val_{i:08},{ids[p.concept]} 1 2 30 40 \n" for i, p in enumerate(ITEMS, 1)]
    put(tmp_path / "LOC_val_solution.csv", "ImageId,PredictionString\n" + "".join(reversed(lines)))
    put(tmp_path / "LOC_synset_mapping.txt", "".join(f"{i} {n}, other\n" for i, n in zip(ids, NAMES, strict=True)))
    check(load_dataset("imagenet", tmp_path))
    put(tmp_path / "LOC_val_solution.csv", "ImageId,PredictionString\nILSVRC2012_val_00000001,x\n")
    with pytest.raises(reco.Error, match="expected ILSVRC2012_val_00000001,n01440764 1 2 3 4, found 'ILSVRC"):
        load_dataset("imagenet", tmp_path)


def test_imagenet_names(tmp_path: Path) -> None:
    folders.imagenet_folders(tmp_path, NAMES, ITEMS)
    want = load_dataset("imagenet", tmp_path).classnames
    ids = sorted(folders.wnids(3))
    (tmp_path / "LOC_synset_mapping.txt").unlink()
    assert load_dataset("imagenet", tmp_path).classnames == []
    index = {str(i): [wnid, name.replace(" ", "_")] for i, (wnid, name) in enumerate(zip(ids, want, strict=True))}
    put(tmp_path / "imagenet_class_index.json", json.dumps(index))
    assert load_dataset("imagenet", tmp_path).classnames == want
    put(tmp_path / "synset_words.txt", "".join(f"{wnid} {name}\n" for wnid, name in zip(ids, want, strict=True)))
    assert load_dataset("imagenet", tmp_path / "val").classnames == want, "the names lie a folder above"
    put(tmp_path / "synset_words.txt", f"{ids[0]} {want[0]}\n")
    with pytest.raises(reco.Error, match=rf"expected names of all classes .* found none of {ids[1]}"):
        load_dataset("imagenet", tmp_path)


def test_coco(tmp_path: Path) -> None:
    folders.coco(tmp_path, NAMES, ITEMS)
    data = load_dataset("coco", tmp_path)
    assert [image_bytes(i) for i in data.images] == [p.jpeg for p in ITEMS[:8]]
    assert data.captions == [c for p in ITEMS[:8] for c in folders.captions_of(NAMES, p)]
    assert data.image_of_text == [i for i in range(8) for _ in range(3)]
    train = load_dataset("coco", tmp_path, split="train")
    assert len(train.images) == 4, "restval is training data"
    every = load_dataset("coco", tmp_path, split="val2014")
    assert len(every.images) == 12
    assert every.captions[every.image_of_text.index(5)] in folders.captions_of(NAMES, ITEMS[5])
    (tmp_path / "dataset_coco.json").unlink()
    with pytest.raises(reco.Error, match=r"expected dataset_coco.json .* put dataset_coco.json \(Karpathy\) or"):
        load_dataset("coco", tmp_path)
    (tmp_path / "annotations/captions_val2014.json").rename(tmp_path / "coco_test_karpathy.json")
    theirs = load_dataset("coco", tmp_path)
    assert isinstance(theirs, Retrieval)
    assert (theirs.split, len(theirs.images), len(theirs.captions)) == ("test", 12, 36)
    assert theirs.notes == [
        "expected 5,000 images as published, found 12",
        "expected 25,010 captions as published, found 36",
    ]
    (tmp_path / "val2014/COCO_val2014_000000001000.jpg").unlink()
    with pytest.raises(
        reco.Error, match="1 of 12 images are missing, the first is .*val2014/COCO_val2014_000000001000"
    ):
        load_dataset("coco", tmp_path)


def test_flickr30k(tmp_path: Path) -> None:
    folders.flickr30k(tmp_path / "json", NAMES, ITEMS)
    folders.flickr30k(tmp_path / "token", NAMES, ITEMS, karpathy=False)
    data = load_dataset("flickr30k", tmp_path / "json")
    assert len(data.images) == 8
    every = load_dataset("flickr30k", tmp_path / "token", split="all")
    assert every.captions == [c for p in ITEMS for c in folders.captions_of(NAMES, p)]
    with pytest.raises(reco.Error, match=r"expected test.txt .* results_20130124.token has no splits"):
        load_dataset("flickr30k", tmp_path / "token")
    put(tmp_path / "token/test.txt", "".join(f"{1000092795 + i}\n" for i in range(8)))
    listed = load_dataset("flickr30k", tmp_path / "token")
    assert (listed.captions, listed.image_of_text) == (data.captions, data.image_of_text)
    lines = [f"{1000092795 + i}.jpg,{c}" for i, p in enumerate(ITEMS[:8]) for c in folders.captions_of(NAMES, p)]
    put(tmp_path / "token/flickr30k_test_karpathy.txt", "\n".join(["image,caption", *lines, ""]))
    theirs = load_dataset("flickr30k", tmp_path / "token")
    assert isinstance(theirs, Retrieval)
    assert (theirs.captions, theirs.image_of_text, theirs.images) == (data.captions, data.image_of_text, listed.images)
    put(tmp_path / "token/flickr30k_test_karpathy.txt", "image,caption\nno comma\n")
    with pytest.raises(reco.Error, match="expected NAME.jpg, a comma and a caption, found 'no comma' as line 2 of"):
        load_dataset("flickr30k", tmp_path / "token")
    (tmp_path / "token/flickr30k_test_karpathy.txt").unlink()
    put(tmp_path / "token/results_20130124.token", "1.jpg no tab\n")
    with pytest.raises(reco.Error, match=r"expected NAME.jpg#0, a tab and a caption, found '1.jpg no tab' as line 1"):
        load_dataset("flickr30k", tmp_path / "token")


def oven(root: Path, split: str = "entity_val") -> EntityQuestions:
    data = load_dataset("oven", root, split=split)
    assert isinstance(data, EntityQuestions)
    return data


def test_oven(tmp_path: Path) -> None:
    folders.oven(tmp_path, NAMES, ITEMS, ["the moon"])
    data = oven(tmp_path)
    assert [image_bytes(i) for i in data.images] == [p.jpeg for p in ITEMS]
    assert data.entities == [f"Q{100 + p.concept}" for p in ITEMS]
    assert data.seen == [p.concept % 2 == 1 for p in ITEMS]
    assert list(entity_names(data.names)) == [
        ("Q100", NAMES[0]),
        ("Q101", NAMES[1]),
        ("Q102", NAMES[2]),
        ("Q5000", "the moon"),
    ]
    assert oven(tmp_path, "query_val").split == "query_val"
    test = oven(tmp_path, "entity_test")
    assert test.entities is None
    assert test.notes == ["oven_entity_test.jsonl has no answers (entity_id) to 12 questions: predictions only"]
    (tmp_path / "ovenid2impath.csv").unlink()
    assert oven(tmp_path).images == data.images, "the suffix is found without the list"


def test_oven_images_elsewhere(tmp_path: Path) -> None:
    """In another two-digit folder, under a suffix that only the list knows, or where the list says they came from."""
    folders.oven(tmp_path, NAMES, ITEMS)
    want = oven(tmp_path)
    places = [path for path in want.images if isinstance(path, Path)]
    other = tmp_path / "oven_images/09"
    other.mkdir()
    places[0].rename(other / places[0].name)
    places[1].rename(places[1].with_suffix(".Jpeg"))
    (tmp_path / "sources").mkdir()
    places[2].rename(tmp_path / "sources/a, b.jpg")
    table = tmp_path / "ovenid2impath.csv"
    lines = [line for line in table.read_text().splitlines() if not line.startswith((places[1].stem, places[2].stem))]
    put(table, "\n".join([*lines, f"{places[1].stem},x/y.Jpeg", f"{places[2].stem},sources/a, b.jpg", ""]))
    found = oven(tmp_path).images
    assert [image_bytes(image) for image in found] == [p.jpeg for p in ITEMS]
    assert found[2] == tmp_path / "sources/a, b.jpg"
    (tmp_path / "sources/a, b.jpg").unlink()
    with pytest.raises(
        reco.Error, match=rf"1 of 12 images are missing, the first is {places[2].with_suffix('.jpg')}; "
    ):
        oven(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"data_split": "query_val_seen"},
            "data_split to be entity_val_seen or entity_val_unseen, found query_val_seen",
        ),
        ({"data_split": "entity_val"}, "data_split to be entity_val_seen or entity_val_unseen, found entity_val in"),
        ({"data_id": "oven_entity_val_00000001"}, "expected every data_id once in .*oven_entity_val.jsonl"),
        ({"image_id": None}, "expected data_id, image_id, data_split as texts, found no image_id in object 1 of"),
    ],
)
def test_what_is_wrong_with_questions(tmp_path: Path, change: dict[str, str], message: str) -> None:
    folders.oven(tmp_path, NAMES, ITEMS)
    table = tmp_path / "oven_entity_val.jsonl"
    first, *rest = table.read_text().splitlines()
    put(table, "\n".join([json.dumps(json.loads(first) | change), *rest]))
    with pytest.raises(reco.Error, match=message):
        load_dataset("oven", tmp_path)


def test_oven_files_that_are_no_such_thing(tmp_path: Path) -> None:
    folders.oven(tmp_path, NAMES, ITEMS)
    put(tmp_path / "oven_entity_val.jsonl", "[1]\n")
    with pytest.raises(reco.Error, match="expected an object as line 1"):
        load_dataset("oven", tmp_path)
    put(tmp_path / "oven_entity_val.jsonl", "\n")
    with pytest.raises(reco.Error, match="expected questions in .*oven_entity_val.jsonl, found none"):
        load_dataset("oven", tmp_path)
    put(tmp_path / "Wiki6M_ver_1_0_title_only.jsonl", '{"id": 3}\n')
    with pytest.raises(reco.Error, match="expected wikidata_id and wikipedia_title, found id as object 1"):
        list(entity_names(tmp_path / "Wiki6M_ver_1_0_title_only.jsonl"))


def test_folder(tmp_path: Path) -> None:
    folders.class_folders(tmp_path / "mine/val", NAMES, ITEMS)
    data = load_dataset("folder", tmp_path / "mine", split="val")
    check(data)
    assert (data.name, data.split, data.classnames) == ("mine", "val", sorted(NAMES))
    (tmp_path / "mine/val/empty_one").mkdir()
    with pytest.raises(reco.Error, match="expected images of all 4 classes, found none of 1, such as empty one"):
        load_dataset("folder", tmp_path / "mine", split="val")


def test_labelled(tmp_path: Path) -> None:
    data = load_dataset("labelled", folders.table(tmp_path, NAMES, ITEMS))
    check(data)
    assert data.name == "list"
    check(load_dataset("labelled", tmp_path / "list.csv", label="label", image_column="filepath"))
    with pytest.raises(reco.Error, match="expected a class in the column kind .* it has label"):
        load_dataset("labelled", tmp_path / "list.csv", label="kind")


def test_captioned(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg", ITEMS[0].jpeg)
    put(tmp_path / "b.jpg", ITEMS[1].jpeg)
    put(tmp_path / "t.csv", "file,caption\na.jpg,one\nb.jpg,two\na.jpg,three\n")
    data = load_dataset("captioned", tmp_path / "t.csv")
    assert (data.captions, data.image_of_text, len(data.images)) == (["one", "two", "three"], [0, 1, 0], 2)
    put(tmp_path / "t.csv", "file,caption\na.jpg,\n")
    with pytest.raises(reco.Error, match="expected a caption for t-0"):
        load_dataset("captioned", tmp_path / "t.csv")


def test_webdataset(tmp_path: Path) -> None:
    data = load_dataset("webdataset", folders.webdataset(tmp_path / "birds", NAMES, ITEMS))
    check(data)
    assert (data.name, data.templates) == ("birds", ["{c}", "a picture of {c}"])
    other = load_dataset("webdataset", folders.webdataset(tmp_path / "pairs", NAMES, ITEMS, retrieval=True))
    order = [*ITEMS[::2], *ITEMS[1::2]]
    assert other.captions == [c for p in order for c in folders.captions_of(NAMES, p)]
    assert [image_bytes(i) for i in other.images] == [p.jpeg for p in order]
    put(tmp_path / "birds/dataset_type.txt", "multilabel")
    with pytest.raises(reco.Error, match="expected the type classification or retrieval, found multilabel"):
        load_dataset("webdataset", tmp_path / "birds")
    shard = tmp_path / "pairs/test/1.tar"
    put(shard, shard.read_bytes()[:700])
    with pytest.raises(reco.Error, match="1.tar is damaged"):
        load_dataset("webdataset", tmp_path / "pairs")


MAKERS = {
    "cars": folders.cars,
    "cub": folders.cub,
    "flowers": folders.flowers,
    "dogs": folders.dogs,
    "imagenet": folders.imagenet_flat,
    "places365": folders.places365,
    "coco": folders.coco,
    "flickr30k": folders.flickr30k,
    "oven": folders.oven,
}


@pytest.mark.parametrize("name", MAKERS)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, name: str) -> None:
    """A folder that is not there, one without anything in it, and every file in turn taken away or damaged."""
    with pytest.raises(reco.Error, match=rf"^\[datasets.{name}\] expected a folder, found nothing at") as caught:
        load_dataset(name, tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(reco.Error, match=rf"^\[datasets.{name}\] expected ") as caught:
        load_dataset(name, tmp_path / "empty")
    assert "\n" not in str(caught.value)
    root = tmp_path / "whole"
    MAKERS[name](root, NAMES, ITEMS)
    optional = {
        "ovenid2impath.csv",
        "cat_to_name.json",
        "captions_val2014.json",
        "oven_query_val.jsonl",
        "oven_entity_test.jsonl",
    }
    tables = [p for p in root.rglob("*") if p.suffix in (".mat", ".txt", ".json", ".jsonl") and p.name not in optional]
    assert tables
    for path in tables:
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(reco.Error) as caught:
            load_dataset(name, root)
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)
        if path.name != "Wiki6M_ver_1_0_title_only.jsonl":
            put(path, b"\xff\x00 no such table")
            with pytest.raises(reco.Error, match=path.name):
                load_dataset(name, root)
        put(path, content)
    data = load_dataset(name, root)
    Path(data.images[0]).unlink()
    with pytest.raises(reco.Error, match=r"1 of \d+ images are missing, the first is .*; (un)?p"):
        load_dataset(name, root)


def test_labels_must_fit(tmp_path: Path) -> None:
    folders.cars(tmp_path, NAMES, ITEMS)
    savemat(tmp_path / "stanford_cars/devkit/cars_meta.mat", {"class_names": folders.cell(NAMES[:2]).reshape(1, -1)})
    with pytest.raises(reco.Error, match="expected classes 1 to 2, found number 3 in .*cars_test_annos_withlabels.mat"):
        load_dataset("cars", tmp_path)
    more = folders.cell([*NAMES, "x"]).reshape(1, -1)
    savemat(tmp_path / "stanford_cars/devkit/cars_meta.mat", {"class_names": more})
    with pytest.raises(reco.Error, match="expected images of all 4 classes, found none of 1, such as x, in"):
        load_dataset("cars", tmp_path)
    savemat(tmp_path / "stanford_cars/devkit/cars_meta.mat", {"other": np.zeros(3)})
    with pytest.raises(reco.Error, match="expected the variable class_names, found other in .*cars_meta.mat"):
        load_dataset("cars", tmp_path)
    with pytest.raises(reco.Error, match="expected one of cars, cub, .*, got bicycles"):
        load_dataset("bicycles", tmp_path)
