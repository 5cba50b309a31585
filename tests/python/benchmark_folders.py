# SPDX-License-Identifier: Apache-2.0
"""Small data sets in the published formats, written by the programs that write such files: SciPy, json, tarfile."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

from reco.datasets import Sample

CLIP = Path(__file__).parents[2] / "examples/icons/clip"
CLASSES = 8  # of the data sets that are made of icons


@dataclass(frozen=True)
class Picture:
    """A JPEG file of a concept."""

    concept: int
    jpeg: bytes


Made = tuple[list[str], list[Picture]]  # names of concepts, and pictures of them


def to_jpeg(image: Any, turn: int = 0) -> bytes:
    """Any encoded image as JPEG on white, turned by some degrees."""
    content = image if isinstance(image, bytes) else Path(image).read_bytes()
    drawn = Image.open(io.BytesIO(content)).convert("RGBA").rotate(turn)
    page = Image.new("RGB", drawn.size, "white")
    page.paste(drawn, mask=drawn.getchannel("A"))
    out = io.BytesIO()
    page.save(out, "JPEG", quality=95)
    return out.getvalue()


def png(value: int) -> bytes:
    """An image of one grey."""
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(out, "PNG")
    return out.getvalue()


def pictures(samples: Sequence[Sample], classes: int, each: int = 6) -> tuple[list[str], list[Picture]]:
    """Names of the first concepts, and pictures of them, some a little turned, in an order that mixes the concepts."""
    names = list(dict.fromkeys(s.metadata["concept"] for s in samples))[:classes]
    drawn = [[s.image for s in samples if s.metadata["concept"] == name] for name in names]
    return names, [
        Picture(concept, to_jpeg(images[i % len(images)], 4 * (i // len(images))))
        for i in range(each)
        for concept, images in enumerate(drawn)
    ]


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def cell(values: Sequence[Any]) -> Any:
    """A MATLAB cell array."""
    out = np.empty(len(values), object)
    out[:] = list(values)
    return out


def structs(rows: Sequence[dict[str, Any]]) -> Any:
    """A MATLAB struct array, 1 x n."""
    out = np.empty((1, len(rows)), [(name, object) for name in rows[0]])
    for i, row in enumerate(rows):
        out[0, i] = tuple(row.values())
    return out


def cars(root: Path, names: Sequence[str], items: Sequence[Picture]) -> Path:
    """devkit/cars_meta.mat, cars_test_annos_withlabels.mat, cars_test/00001.jpg."""
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    savemat(folder / "devkit/cars_meta.mat", {"class_names": cell(names).reshape(1, -1)})
    rows = [
        {
            "bbox_x1": np.uint8(1),
            "bbox_y1": np.uint8(1),
            "bbox_x2": np.uint8(9),
            "bbox_y2": np.uint8(9),
            "class": np.uint8(p.concept + 1),
            "fname": f"{i:05}.jpg",
        }
        for i, p in enumerate(items, 1)
    ]
    savemat(folder / "cars_test_annos_withlabels.mat", {"annotations": structs(rows)})
    for i, p in enumerate(items, 1):
        put(folder / f"cars_test/{i:05}.jpg", p.jpeg)
    return root


def _round(number: Any, names: Sequence[str]) -> Any:
    """How many pictures of its concept came before a picture, by its number from 1 on."""
    return (number - 1) // len(names)


def cub(root: Path, names: Sequence[str], items: Sequence[Picture], nested: bool = False) -> Path:
    """images.txt, image_class_labels.txt, train_test_split.txt, classes.txt, images/; a third is for training."""
    folder = root / ("CUB_200_2011/CUB_200_2011" if nested else "CUB_200_2011")
    classes = [f"{i:03}.{name.replace(' ', '_')}" for i, name in enumerate(names, 1)]
    paths = [f"{classes[p.concept]}/{i:04}.jpg" for i, p in enumerate(items, 1)]
    put(folder / "classes.txt", "".join(f"{i} {c}\n" for i, c in enumerate(classes, 1)))
    put(folder / "images.txt", "".join(f"{i} {path}\n" for i, path in enumerate(paths, 1)))
    put(folder / "image_class_labels.txt", "".join(f"{i} {p.concept + 1}\n" for i, p in enumerate(items, 1)))
    put(
        folder / "train_test_split.txt",
        "".join(f"{i} {int(_round(i, names) % 3 == 2)}\n" for i in range(1, len(items) + 1)),
    )
    for path, p in zip(paths, items, strict=True):
        put(folder / "images" / path, p.jpeg)
    return root


def flowers(root: Path, names: Sequence[str], items: Sequence[Picture]) -> Path:
    """imagelabels.mat, setid.mat (a third of the images each for trnid, valid and tstid), jpg/image_00001.jpg."""
    folder = root / "flowers-102"
    folder.mkdir(parents=True)
    ids = np.arange(1, len(items) + 1, dtype=np.uint16)
    savemat(folder / "imagelabels.mat", {"labels": np.array([[p.concept + 1 for p in items]], np.uint8)})
    savemat(
        folder / "setid.mat",
        {name: ids[None, _round(ids, names) % 3 == i] for i, name in enumerate(("trnid", "valid", "tstid"))},
    )
    put(folder / "cat_to_name.json", json.dumps({str(i): name for i, name in enumerate(names, 1)}))
    for i, p in enumerate(items, 1):
        put(folder / f"jpg/image_{i:05}.jpg", p.jpeg)
    return root


def dogs(root: Path, names: Sequence[str], items: Sequence[Picture], inner: str = "") -> Path:
    """test_list.mat with cell arrays, at the root or in lists/; Images/n02085620-Chihuahua/n02085620_1.jpg."""
    folders = [f"n{2085620 + i:08}-{name.replace(' ', '_')}" for i, name in enumerate(names)]
    files = [f"{folders[p.concept]}/{folders[p.concept][:9]}_{i}.jpg" for i, p in enumerate(items)]
    (root / inner).mkdir(parents=True, exist_ok=True)
    savemat(
        root / inner / "test_list.mat",
        {
            "file_list": cell(files).reshape(-1, 1),
            "annotation_list": cell([f[:-4] for f in files]).reshape(-1, 1),
            "labels": np.array([[p.concept + 1] for p in items], np.uint8),
        },
    )
    for file, p in zip(files, items, strict=True):
        put(root / "Images" / file, p.jpeg)
    return root


def places365(root: Path, names: Sequence[str], items: Sequence[Picture], size: str = "val_256") -> Path:
    """categories_places365.txt with /a/airfield 0, places365_val.txt, val_256/ or val_large/."""
    put(
        root / "categories_places365.txt",
        "".join(f"/{name[0]}/{name.replace(' ', '_')} {i}\n" for i, name in enumerate(names)),
    )
    files = [f"Places365_val_{i:08}.jpg" for i in range(1, len(items) + 1)]
    put(root / "places365_val.txt", "".join(f"{f} {p.concept}\n" for f, p in zip(files, items, strict=True)))
    for file, p in zip(files, items, strict=True):
        put(root / size / file, p.jpeg)
    return root


def wnids(count: int) -> list[str]:
    """Synsets whose sorted order is not that of the concepts."""
    return [f"n{9000000 - 7 * i if i % 2 else 1440764 + i:08}" for i in range(count)]


def imagenet_folders(root: Path, names: Sequence[str], items: Sequence[Picture]) -> Path:
    """val/n01440764/ILSVRC2012_val_00000001.JPEG with LOC_synset_mapping.txt."""
    ids = wnids(len(names))
    put(
        root / "LOC_synset_mapping.txt",
        "".join(f"{wnid} {name}, a second name\n" for wnid, name in sorted(zip(ids, names, strict=True))),
    )
    for i, p in enumerate(items, 1):
        put(root / f"val/{ids[p.concept]}/ILSVRC2012_val_{i:08}.JPEG", p.jpeg)
    return root


def imagenet_flat(root: Path, names: Sequence[str], items: Sequence[Picture]) -> Path:
    """val/ILSVRC2012_val_00000001.JPEG with the devkit, whose ids are the concepts' own order, and inner synsets."""
    ids = wnids(len(names))
    rows = [
        {
            "ILSVRC2012_ID": np.array([[float(i)]]),
            "WNID": wnid,
            "words": f"{name}, a second name",
            "gloss": "a thing",
            "num_children": np.array([[0.0]]),
            "children": np.zeros((1, 0)),
            "wordnet_height": np.array([[0.0]]),
            "num_train_images": np.array([[1300.0]]),
        }
        for i, (wnid, name) in enumerate(zip(ids, names, strict=True), 1)
    ]
    inner = {**rows[0], "ILSVRC2012_ID": np.array([[1001.0]]), "WNID": "n00001740", "num_children": np.array([[2.0]])}
    data = root / "ILSVRC2012_devkit_t12/data"
    data.mkdir(parents=True)
    savemat(data / "meta.mat", {"synsets": structs([*rows, inner]).T})
    put(data / "ILSVRC2012_validation_ground_truth.txt", "".join(f"{p.concept + 1}\n" for p in items))
    for i, p in enumerate(items, 1):
        put(root / f"val/ILSVRC2012_val_{i:08}.JPEG", p.jpeg)
    return root


def captions_of(names: Sequence[str], p: Picture) -> list[str]:
    """Several captions a picture."""
    return [f"{names[p.concept]}", f"a drawing of {names[p.concept]}", f"this is {names[p.concept]}, drawn"]


def _karpathy(names: Sequence[str], items: Sequence[Picture], files: Sequence[str], folder: str, name: str) -> str:
    """What Karpathy's files look like: the first two thirds are `test`, then `restval`."""
    images = []
    sentence = 0
    for i, (p, file) in enumerate(zip(items, files, strict=True)):
        sentences = []
        for caption in captions_of(names, p):
            sentences.append({"tokens": caption.split(), "raw": caption, "imgid": i, "sentid": sentence})
            sentence += 1
        image = {"sentids": [s["sentid"] for s in sentences], "imgid": i, "sentences": sentences, "filename": file}
        image["split"] = "test" if i < 2 * len(items) // 3 else "restval"
        images.append(image | ({"filepath": folder, "cocoid": 1000 + i} if folder else {}))
    return json.dumps({"images": images, "dataset": name})


def coco(root: Path, names: Sequence[str], items: Sequence[Picture]) -> Path:
    """dataset_coco.json, annotations/captions_val2014.json, val2014/COCO_val2014_000000000001.jpg."""
    files = [f"COCO_val2014_{1000 + i:012}.jpg" for i in range(len(items))]
    put(root / "dataset_coco.json", _karpathy(names, items, files, "val2014", "coco"))
    images = [{"id": 1000 + i, "file_name": f, "width": 9, "height": 9} for i, f in enumerate(files)]
    texts = [(1000 + i, caption) for i, p in enumerate(items) for caption in captions_of(names, p)]
    annotations = [{"image_id": i, "id": n, "caption": caption} for n, (i, caption) in enumerate(texts)]
    official = {"info": {}, "images": images, "licenses": [], "annotations": annotations[::-1]}
    put(root / "annotations/captions_val2014.json", json.dumps(official))
    for file, p in zip(files, items, strict=True):
        put(root / "val2014" / file, p.jpeg)
    return root


def flickr30k(root: Path, names: Sequence[str], items: Sequence[Picture], karpathy: bool = True) -> Path:
    """dataset_flickr30k.json or results_20130124.token, flickr30k-images/1000092795.jpg."""
    files = [f"{1000092795 + i}.jpg" for i in range(len(items))]
    if karpathy:
        put(root / "dataset_flickr30k.json", _karpathy(names, items, files, "", "flickr30k"))
    else:
        lines = [
            f"{file}#{n}\t{caption}\n"
            for file, p in zip(files, items, strict=True)
            for n, caption in enumerate(captions_of(names, p))
        ]
        put(root / "results_20130124.token", "".join(lines))
    for file, p in zip(files, items, strict=True):
        put(root / "flickr30k-images" / file, p.jpeg)
    return root


def oven(root: Path, names: Sequence[str], items: Sequence[Picture], more: Sequence[str] = ()) -> Path:
    """oven_entity_val.jsonl and the like, ovenid2impath.csv, oven_images/04/oven_04000001.jpg, the names."""
    suffixes = [".jpg", ".JPEG", ".png"]
    ids = [f"oven_{i % 7:02}{i:06}" for i in range(len(items))]
    paths = [f"oven_images/{i[5:7]}/{i}{suffixes[n % 3]}" for n, i in enumerate(ids)]
    for path, p in zip(paths, items, strict=True):
        put(root / path, p.jpeg)
    listed = [f"{i},any/where{Path(path).suffix}\n" for i, path in zip(ids, paths, strict=True)]
    put(root / "ovenid2impath.csv", "".join(listed))
    for split in ("entity_val", "query_val", "entity_test"):
        lines = []
        for n, (image_id, p) in enumerate(zip(ids, items, strict=True)):
            row = {
                "data_id": f"oven_{split}_{n:08}",
                "image_id": image_id,
                "question": "what is this?",
                "entity_id": f"Q{100 + p.concept}",
                "entity_text": names[p.concept],
                "data_split": f"{split}_{'seen' if p.concept % 2 else 'unseen'}",
            }
            if split.endswith("test"):
                del row["entity_id"], row["entity_text"]
            lines.append(json.dumps(row) + "\n")
        put(root / f"oven_{split}.jsonl", "".join(lines))
    titles = [(f"Q{100 + i}", name) for i, name in enumerate(names)]
    titles += [(f"Q{5000 + i}", name) for i, name in enumerate(more)]
    put(
        root / "Wiki6M_ver_1_0_title_only.jsonl",
        "".join(json.dumps({"wikidata_id": q, "wikipedia_title": t}) + "\n" for q, t in titles),
    )
    return root


def class_folders(root: Path, names: Sequence[str], items: Sequence[Picture]) -> Path:
    """A folder a class."""
    for i, p in enumerate(items):
        put(root / names[p.concept].replace(" ", "_") / f"{i}.jpg", p.jpeg)
    return root


def table(root: Path, names: Sequence[str], items: Sequence[Picture]) -> Path:
    """A CSV with the columns filepath and label."""
    for i, p in enumerate(items):
        put(root / f"pictures/{i}.jpg", p.jpeg)
    with (root / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filepath", "label"])
        writer.writerows([f"pictures/{i}.jpg", names[p.concept]] for i, p in enumerate(items))
    return root / "list.csv"


def webdataset(root: Path, names: Sequence[str], items: Sequence[Picture], retrieval: bool = False) -> Path:
    """What clip_benchmark_export_wds writes, in two shards."""
    put(root / "test/nshards.txt", "2")
    if retrieval:
        put(root / "dataset_type.txt", "retrieval")
    else:
        put(root / "classnames.txt", "\n".join(names))
        put(root / "zeroshot_classification_templates.txt", "{c}\na picture of {c}")
    for shard, part in enumerate((items[::2], items[1::2])):
        with tarfile.open(root / f"test/{shard}.tar", "w") as tar:
            for i, p in enumerate(part):
                label = "\n".join(captions_of(names, p)) if retrieval else str(p.concept)
                for suffix, content in (("jpg", p.jpeg), ("txt" if retrieval else "cls", label.encode())):
                    member = tarfile.TarInfo(f"s{shard}_{i:07}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return root
