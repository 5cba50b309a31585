# SPDX-License-Identifier: Apache-2.0
"""What the paper reports (RECO, arXiv 2306.07196), to stand beside one's own figures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """A column of a table: one metric of one data set's split."""

    title: str
    dataset: str
    split: str
    metric: str


COLUMNS: dict[str, tuple[Column, ...]] = {
    "Classification, accuracy": (
        Column("Cars", "cars", "test", "acc1"),
        Column("CUB", "cub", "test", "acc1"),
        Column("Flowers", "flowers", "test", "acc1"),
        Column("ImageNet", "imagenet", "val", "acc1"),
        Column("Places365", "places365", "val", "acc1"),
        Column("Dogs", "dogs", "test", "acc1"),
    ),
    "Retrieval, R@1": (
        Column("Flickr30k text → image", "flickr30k", "test", "image_retrieval_recall@1"),
        Column("Flickr30k image → text", "flickr30k", "test", "text_retrieval_recall@1"),
        Column("COCO text → image", "coco", "test", "image_retrieval_recall@1"),
        Column("COCO image → text", "coco", "test", "text_retrieval_recall@1"),
    ),
    "OVEN, entity split (validation)": (
        Column("seen", "oven", "entity_val", "seen"),
        Column("unseen", "oven", "entity_val", "unseen"),
        Column("harmonic mean", "oven", "entity_val", "harmonic_mean"),
    ),
}

PAPER: dict[str, dict[tuple[str, str], str]] = {
    "paper: CLIP-B/32": {
        ("cars", "acc1"): "57.2",
        ("cub", "acc1"): "52.8",
        ("flowers", "acc1"): "62.1",
        ("imagenet", "acc1"): "63.5",
        ("places365", "acc1"): "40.6",
    },
    "paper: CLIP-B/32 + RECO": {
        ("cars", "acc1"): "68.1",
        ("cub", "acc1"): "63.0",
        ("flowers", "acc1"): "67.9",
        ("imagenet", "acc1"): "64.6",
        ("places365", "acc1"): "42.2",
    },
    "paper: best row": {
        ("cub", "acc1"): "74.8",
        ("dogs", "acc1"): "81.3",
        ("flowers", "acc1"): "84.1",
        ("flickr30k", "image_retrieval_recall@1"): "72.6",
        ("flickr30k", "text_retrieval_recall@1"): "88.5",
        ("coco", "image_retrieval_recall@1"): "38.7",
        ("coco", "text_retrieval_recall@1"): "58.0",
        ("oven", "seen"): "11.5",
    },
}

FOOTNOTE = (
    "Intervals are of yours, by bootstrap. The paper's figures are quoted second-hand, save the gains on Cars and CUB, "
    "which its abstract states; its memory holds a billion pairs, and the best rows need not be of one model."
)
