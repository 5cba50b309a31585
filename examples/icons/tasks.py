# SPDX-License-Identifier: Apache-2.0
"""The icons world as an experiment: what is remembered, what is trained on, what is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import reco
from reco.datasets import read_samples
from reco.embedding import Embeddings, concatenate, embed, train_on
from reco.evaluation import Record

HERE = Path(__file__).parent
DATA = HERE / "data"
CLIP = HERE / "clip"
DOMAINS = ("emoji", "flags", "logos", "tokens")
TEMPLATES = ("{}", "an icon of {}", "a drawing of {}")
# The generic task: coarse classes, each by a few everyday words. CLIP knows these; a memory must not spoil them.
GROUPS = {
    "Smileys & Emotion": ("smiling face", "sad face", "heart"),
    "People & Body": ("woman", "man", "hand"),
    "Animals & Nature": ("dog", "bird", "tree"),
    "Food & Drink": ("apple", "bread", "cup"),
    "Travel & Places": ("car", "house", "train"),
    "Activities": ("ball", "medal", "game"),
    "Objects": ("phone", "book", "tool"),
    "Symbols": ("arrow", "button", "sign"),
}
GROUP_WORDS = [word for words in GROUPS.values() for word in words]
WORDS_PER_GROUP = 3

Floats = npt.NDArray[np.float32]
Refine = Callable[[Floats], Floats]


@dataclass(frozen=True)
class System:
    """One row of the table: how it refines image and text embeddings."""

    name: str
    images: Refine
    texts: Refine


def same(x: Floats) -> Floats:
    """CLIP itself: nothing is refined."""
    return x


def system(name: str, clip: reco.Clip, memory: reco.MemoryBase, fusion: reco.Fusion, k: int | None = None) -> System:
    """A reco model as a row."""
    model = reco.Model(clip, memory, fusion, k=k)
    return System(name, model.refine_images, model.refine_texts)


def shards(split: str, data: Path = DATA) -> list[Path]:
    """The shards of a split: queries, memory or fusion."""
    found = sorted(data.glob(f"{split}-*.tar*"))
    if not found:
        raise SystemExit(f"no {split} shards in {data}: python examples/icons/build.py makes them")
    return found


def load(clip: reco.Clip, split: str, data: Path = DATA) -> Embeddings:
    """Embed a split."""
    return embed(clip, read_samples(*shards(split, data)))


def field(pairs: Embeddings, name: str) -> npt.NDArray[Any]:
    """One field of the metadata as an array."""
    return np.array([entry.get(name, "") for entry in pairs.metadata])


def remember(
    path: Path,
    clip: reco.Clip,
    parts: Iterable[Embeddings],
    caption_order: npt.NDArray[Any] | None = None,
    storage: reco.types.Storage = "float16",
) -> reco.Memory:
    """Make a memory of embedded pairs; `caption_order` permutes the text side of a single part."""
    memory = reco.Memory.create(path, dim=clip.dim, encoder=clip.fingerprint, storage=storage)
    for pairs in parts:
        order = np.arange(len(pairs)) if caption_order is None else caption_order
        captions = [pairs.captions[i] for i in order]
        memory.add(pairs.images, pairs.texts[order], pairs.keys, captions, pairs.metadata)
    return memory


def moved_captions(count: int, share: float, seed: int) -> npt.NDArray[Any]:
    """An order of captions in which a share of them, drawn at random, changed places among themselves."""
    random = np.random.default_rng(seed)
    order = np.arange(count)
    moved = np.flatnonzero(random.random(count) < share)
    order[moved] = random.permutation(moved)
    return order


def training_pairs(pairs: Embeddings, known_share: float, seed: int) -> Embeddings:
    """What the fusion learns from: fusion concepts and a share of known ones, each with a second drawing to look up.

    A concept drawn once only teaches memorising: with its own pair left out there is nothing about it to find. Known
    concepts are among them so that the fusion learns when to trust CLIP.
    """
    concepts, roles, usable = field(pairs, "concept"), field(pairs, "role"), field(pairs, "train") != "none"
    names, counts = np.unique(concepts, return_counts=True)
    twice = np.isin(concepts, names[counts >= 2])
    fusion = usable & twice & (roles == "fusion")
    known = np.unique(concepts[usable & twice & (roles == "known")])
    wanted = int(known_share / (1 - known_share) * len(np.unique(concepts[fusion])))
    chosen = np.random.default_rng(seed).permutation(known)[:wanted]
    return pairs.select(fusion | (usable & twice & np.isin(concepts, chosen)))


@dataclass(frozen=True)
class Queries:
    """The query drawings and the embedded prompts of all entities; entity i is the right class of query i."""

    pairs: Embeddings
    prompts: Floats
    group_prompts: Floats
    roles: npt.NDArray[Any]
    domains: npt.NDArray[Any]
    groups: npt.NDArray[Any]

    @classmethod
    def load(cls, clip: reco.Clip, pairs: Embeddings) -> Queries:
        """Embed the prompts; the candidates are the queries' own concepts."""
        names = [str(entry["concept"]) for entry in pairs.metadata]
        if len(set(names)) != len(names):
            raise SystemExit("expected one query an entity")
        prompts = clip.encode_texts(reco.prompts(names, list(TEMPLATES)))
        groups = clip.encode_texts(reco.prompts(GROUP_WORDS, list(TEMPLATES)))
        return cls(pairs, prompts, groups, field(pairs, "role"), field(pairs, "domain"), field(pairs, "group"))


def train_fusion(
    pairs: Embeddings,
    queries: Queries,
    memory: reco.MemoryBase,
    config: reco.TrainingConfig,
    progress: bool = True,
    held_out: bool | None = None,
) -> reco.Fusion:
    """Train on pairs. What is chosen is chosen by the query drawings of fusion concepts (held_out), or by the pairs.

    Those drawings are by hands that the memory does not hold, as all queries are. By default what learns is chosen by
    them, the mean by the pairs: it does worse when chosen as the others are (experiments.py has both).
    """
    chosen = queries.pairs.select(queries.roles == "fusion")
    by_queries = config.fusion.method != "mean" if held_out is None else held_out
    both = concatenate([pairs, chosen]) if by_queries else pairs
    numbers = np.unique(field(both, "concept"), return_inverse=True)[1].tolist()
    return train_on(both, memory, config, concepts=numbers, held_out=range(len(pairs), len(both)), progress=progress)


def measure(row: System, queries: Queries, seed: int | None = None) -> list[Record]:
    """All tasks for one system."""
    images = row.images(queries.pairs.images)
    texts = reco.average_prompts(row.texts(queries.prompts), len(TEMPLATES))
    out: list[Record] = []

    def add(dataset: str, metrics: dict[str, float], task: str = "zeroshot_classification") -> None:
        out.append(Record(f"icons/{dataset}", row.name, metrics, task, seed))

    for role in ("known", "fusion", "unseen"):
        add(role, _classify(images, texts, queries.roles == role, np.arange(len(texts))))
    seen, unseen = out[0].metrics["acc1"], out[2].metrics["acc1"]
    add("harmonic-mean", {"acc1": reco.harmonic_mean(seen, unseen)})
    for role in ("known", "unseen"):
        for domain in DOMAINS:
            inside = queries.domains == domain
            add(
                f"{role}/{domain}",
                _classify(images, texts, inside & (queries.roles == role), np.flatnonzero(inside)),
            )
    add("retrieval", reco.retrieve(images, texts, list(range(len(texts)))), "zeroshot_retrieval")
    add("generic", _generic_metrics(row, images, queries))
    return out


def _classify(images: Floats, texts: Floats, rows: npt.NDArray[Any], candidates: npt.NDArray[Any]) -> dict[str, float]:
    """Queries `rows` among the entities `candidates`."""
    place = {int(c): i for i, c in enumerate(candidates)}
    labels = [place[int(i)] for i in np.flatnonzero(rows)]
    metrics, _ = reco.classify(images[rows], texts[candidates], labels)
    return metrics


def _generic_metrics(row: System, images: Floats, queries: Queries) -> dict[str, float]:
    """Of which group is the emoji: an animal, food, a place, ...?"""
    texts = reco.average_prompts(row.texts(queries.group_prompts), len(TEMPLATES) * WORDS_PER_GROUP)
    names = list(GROUPS)
    rows = np.isin(queries.groups, names)
    metrics, _ = reco.classify(images[rows], texts, [names.index(group) for group in queries.groups[rows]])
    return metrics
