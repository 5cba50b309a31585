# SPDX-License-Identifier: Apache-2.0
"""The quickstart's picture: accuracy by task, and a gallery of queries with what was looked up for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure, SubFigure

import reco
from reco.datasets import read_samples
from reco.evaluation import Record
from reco.plotting import accuracy_bars, gallery_row
from tasks import TEMPLATES, Queries, shards, system

TASKS = {
    "all entities,\nunseen": "icons/unseen",
    "all entities,\nknown": "icons/known",
    "harmonic\nmean": "icons/harmonic-mean",
    "unseen\nemoji": "icons/unseen/emoji",
    "unseen\nflags": "icons/unseen/flags",
    "unseen\nlogos": "icons/unseen/logos",
    "unseen\ntokens": "icons/unseen/tokens",
    "generic:\nemoji group": "icons/generic",
}
SHOWN = ("clip", "mean", "reco-paper", "reco", "reco-without-unseen", "oracle")
GALLERY_ROWS, NEIGHBORS = 6, 6


def short(text: str, length: int = 24) -> str:
    """As much of a caption as fits above a thumbnail."""
    return text if len(text) <= length else text[: length - 1] + "…"


def _pick(queries: Queries, clip_right: npt.NDArray[Any], reco_right: npt.NDArray[Any]) -> list[int]:
    """Unseen queries across the domains: mostly helped, the last one still wrong; drawn with a fixed seed."""
    unseen = queries.roles == "unseen"
    helped, missed = unseen & reco_right & ~clip_right, unseen & ~reco_right
    picks: list[int] = []
    for domain in ("emoji", "flags", "logos", "tokens", "emoji"):
        choices = [i for i in np.flatnonzero(helped & (queries.domains == domain)) if i not in picks]
        picks += [int(np.random.default_rng(1).choice(choices))] if choices else []
    wrong = np.flatnonzero(missed)
    return (picks + ([int(np.random.default_rng(1).choice(wrong))] if len(wrong) else []))[:GALLERY_ROWS]


def draw(
    records: Sequence[Record],
    queries: Queries,
    memory: reco.Memory,
    fusion: reco.Fusion,
    clip: reco.Clip,
    data: Path,
    path: Path,
    k: int = 10,
) -> None:
    """Write the picture as a PNG."""
    mpl.rcParams["font.size"] = 9
    figure = Figure(figsize=(11, 12), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[1, 1.75])
    top: SubFigure = parts[0]
    bottom: SubFigure = parts[1]
    values = {
        model: [
            [100 * r.metrics["acc1"] for r in records if r.model == model and r.dataset == dataset]
            for dataset in TASKS.values()
        ]
        for model in SHOWN
        if any(r.model == model for r in records)
    }
    accuracy_bars(top.subplots(), values, list(TASKS))
    row = system("reco", clip, memory, fusion, k)
    texts = reco.average_prompts(row.texts(queries.prompts), len(TEMPLATES))
    plain = reco.average_prompts(queries.prompts, len(TEMPLATES))
    names = [str(entry["concept"]) for entry in queries.pairs.metadata]
    before = (queries.pairs.images @ plain.T).argmax(1)
    after = (row.images(queries.pairs.images) @ texts.T).argmax(1)
    picks = _pick(queries, before == np.arange(len(names)), after == np.arange(len(names)))
    found = memory.search(queries.pairs.images[picks], k=NEIGHBORS, partners=False)
    wanted = {queries.pairs.keys[i] for i in picks} | {key for keys in found.keys for key in keys}
    splits = [shard for split in ("queries", "memory", "fusion") for shard in shards(split, data)]
    images = {sample.key: sample.image for sample in read_samples(*splits) if sample.key in wanted}
    bottom.suptitle("Unseen entities, CLIP's answer → reco's answer, and the memory's nearest drawings", fontsize=10)
    axes = bottom.subplots(len(picks), NEIGHBORS + 1, squeeze=False)
    for line, pick, keys, captions in zip(axes, picks, found.keys, found.captions, strict=True):
        title = f"CLIP: {short(names[before[pick]], 20)}\nreco: {short(names[after[pick]], 20)}"
        neighbors = [(images.get(key), short(caption)) for key, caption in zip(keys, captions, strict=True)]
        gallery_row(line, images[queries.pairs.keys[pick]], title, bool(after[pick] == pick), neighbors)
    figure.savefig(path, dpi=110)
