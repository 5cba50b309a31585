# SPDX-License-Identifier: Apache-2.0
"""One data set, two systems: CLIP as it is and reco, on the same images under the same prompts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from reco._core import Error, Model, average_prompts, bootstrap, classify, prompts, ranks
from reco.datasets.benchmark import Classification, Dataset, EntityQuestions, Retrieval
from reco.evaluation.cache import EmbeddingCache
from reco.evaluation.entities import evaluate_entities
from reco.evaluation.leaks import Leaks, find_leaks
from reco.evaluation.results import Case, ClassScore, Evaluation, Scores
from reco.evaluation.setup import describe
from reco.evaluation.texts import choose_classnames, choose_templates

if TYPE_CHECKING:
    from reco.types import Progress

Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[Any]
T = TypeVar("T")

_ROWS = 4096  # queries refined at a time: their neighbours take k times as much memory
_CASES = 12  # of each kind
_RECALLS = (1, 5, 10)


@dataclass(frozen=True)
class Protocol:
    """How an evaluation is done.

    Attributes
    ----------
    prompts : str, optional
        Templates: a shipped file's name, a path, `open_clip` or `clip_benchmark`; see choose_templates().
    classnames : str, optional
        The data set's own by default; see choose_classnames().
    average : "after" or "before"
        Whether templates are averaged after each prompt was refined, or before one refinement a class.
    max_similarity : float, optional
        Pairs of the memory whose image is more similar than this to any test image are left out on both sides; None
        leaves all in.
    resamples, confidence, seed
        Of the bootstrap; the seed also draws the cases shown.
    """

    prompts: str | None = None
    classnames: str | None = None
    average: Literal["after", "before"] = "after"
    max_similarity: float | None = 0.96
    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0


def evaluate_dataset(
    model: Model,
    dataset: Dataset,
    protocol: Protocol | None = None,
    *,
    cache: EmbeddingCache | None = None,
    name: str = "",
    work: str | Path | None = None,
    progress: Progress = True,
) -> Evaluation:
    """Evaluate CLIP and reco on a data set.

    Parameters
    ----------
    model : Model
        Its Clip is the baseline.
    dataset : Classification, Retrieval or EntityQuestions
        From load_dataset().
    protocol : Protocol, optional
    cache : EmbeddingCache, optional
        Of the same Clip; without one nothing is kept.
    name : str
        What the model is called in the results.
    work : path, optional
        For entities: a folder for the index over the candidates' names, which a second run finds again, and for the
        predictions. A memory that is no folder is told apart by its size and its answers to 64 random queries only:
        after small changes of one, delete the index.
    progress : bool or callable, optional
        Show progress bars; or called with (items done, items in all) of each part in turn, returning False stops.

    Raises
    ------
    Error
        When images cannot be read, a choice of the protocol does not fit, or the bootstrap's options are wrong.
    """
    protocol = protocol or Protocol()
    if protocol.average not in ("after", "before"):
        raise Error(f"[evaluation.evaluate_dataset] average must be 'after' or 'before', got {protocol.average!r}")
    start = time.perf_counter()
    own = cache or EmbeddingCache(model.clip, progress=progress)
    run = Run(model, protocol, own, {"model": name} | describe(model, protocol), start)
    try:
        if isinstance(dataset, EntityQuestions):
            return evaluate_entities(run, dataset, work, progress)
        return run.retrieval(dataset) if isinstance(dataset, Retrieval) else run.classification(dataset)
    finally:
        if cache is None:
            own.close()


@dataclass(frozen=True)
class Hits:
    """What each query got right (1 or 0, or a difference of two), for bootstrap(): units and groups as there."""

    values: Numbers
    units: Numbers | None = None
    groups: Numbers | None = None


def refined(refine: Callable[..., Floats], embeddings: Floats, exclude: Sequence[str], rows: int = _ROWS) -> Floats:
    """Refine in pieces, so that neighbours of a few thousand queries are in memory at a time."""
    keys = list(exclude) or None
    pieces = [refine(embeddings[i : i + rows], exclude_keys=keys) for i in range(0, len(embeddings), rows)]
    return np.concatenate(pieces) if pieces else embeddings


class Run:
    """One evaluation: what its steps share."""

    def __init__(
        self, model: Model, protocol: Protocol, cache: EmbeddingCache, setup: dict[str, Any], start: float
    ) -> None:
        self.model, self.protocol, self.cache, self.setup = model, protocol, cache, setup
        self._start = start
        self.encoding = 0.0

    def timed(self, encode: Callable[[], T]) -> T:
        """Encode, and count the time."""
        start = time.perf_counter()
        out = encode()
        self.encoding += time.perf_counter() - start
        return out

    def seconds(self) -> dict[str, float]:
        """So far."""
        total = time.perf_counter() - self._start
        return {"encoding": round(self.encoding, 3), "other": round(total - self.encoding, 3)}

    # --- classification ----------------------------------------------------------------------------------------------
    def classification(self, data: Classification) -> Evaluation:
        """Images among classes."""
        images = self.timed(lambda: self.cache.images(data.images))
        names = choose_classnames(self.protocol.classnames, data)
        templates = choose_templates(self.protocol.prompts, data.name, data.templates)
        self.setup |= {"prompts": asdict(templates), "classnames": {"name": names.name, "hash": names.hash}}
        texts = self.timed(lambda: self.cache.texts(prompts(names.lines, templates.lines)))
        leaks = find_leaks(self.model.memory, images, data.images, self.protocol.max_similarity)
        labels = np.asarray(data.labels, np.int64)
        guesses: dict[str, Numbers] = {}
        hits: dict[str, dict[str, Hits]] = {}
        for system, (queries, classes) in {
            "clip": (images, average_prompts(texts, len(templates.lines))),
            "reco": (self.refine_images(images, leaks), self.refine_classes(texts, len(templates.lines), leaks)),
        }.items():
            _, guesses[system] = classify(queries, classes, data.labels)
            place = ranks(queries, classes, labels)
            hits[system] = {
                "acc1": Hits(place < 1),
                "acc5": Hits(place < 5),
                "mean_per_class_recall": Hits(guesses[system] == labels, groups=labels),
            }
        per_class = _per_class(names.lines, labels, guesses)
        cases = self._cases(data, images, labels, guesses, names.lines, leaks)
        counts = {"images": len(labels), "classes": len(names.lines)}
        return self.result(data, "zeroshot_classification", hits, counts, leaks, per_class, cases)

    def refine_images(self, images: Floats, leaks: Leaks) -> Floats:
        return refined(self.model.refine_images, images, leaks.keys)

    def refine_classes(self, texts: Floats, templates: int, leaks: Leaks) -> Floats:
        """A class's embedding: the average over its templates, refined."""
        if self.protocol.average == "before":
            return refined(self.model.refine_texts, average_prompts(texts, templates), leaks.keys)
        return average_prompts(refined(self.model.refine_texts, texts, leaks.keys), templates)

    # --- retrieval ---------------------------------------------------------------------------------------------------
    def retrieval(self, data: Retrieval) -> Evaluation:
        """Images among captions and captions among images."""
        images = self.timed(lambda: self.cache.images(data.images))
        texts = self.timed(lambda: self.cache.texts(data.captions))
        leaks = find_leaks(self.model.memory, images, data.images, self.protocol.max_similarity)
        image_of = np.asarray(data.image_of_text, np.int64)
        hits: dict[str, dict[str, Hits]] = {}
        found = {}
        for system, (queries, candidates) in {
            "clip": (images, texts),
            "reco": (self.refine_images(images, leaks), refined(self.model.refine_texts, texts, leaks.keys)),
        }.items():
            image_rank = ranks(candidates, queries, image_of)
            text_rank = ranks(queries, candidates, np.arange(len(image_of)), image_of)
            hits[system] = {f"image_retrieval_recall@{k}": Hits(image_rank < k, image_of) for k in _RECALLS} | {
                f"text_retrieval_recall@{k}": Hits(text_rank < k) for k in _RECALLS
            }
            found[system] = (text_rank < 1, queries, candidates)
        cases = self._retrieval_cases(data, images, found, leaks)
        counts = {"images": len(images), "captions": len(texts)}
        return self.result(data, "zeroshot_retrieval", hits, counts, leaks, [], cases)

    # --- what both share ---------------------------------------------------------------------------------------------
    def result(
        self,
        data: Dataset,
        task: str,
        hits: dict[str, dict[str, Hits]],
        counts: dict[str, int],
        leaks: Leaks,
        per_class: list[ClassScore],
        cases: list[Case],
    ) -> Evaluation:
        """Scores with intervals, from what each query got right, by system and metric."""
        scores = {system: self.scores(by_metric) for system, by_metric in hits.items()}
        differences = {
            metric: replace(hits["reco"][metric], values=hits["reco"][metric].values.astype(float) - before.values)
            for metric, before in hits["clip"].items()
        }
        gain = self.scores(differences)
        return Evaluation(
            data.name,
            data.split,
            task,
            scores["clip"],
            scores["reco"],
            gain,
            counts,
            leaks,
            self.setup,
            self.seconds(),
            per_class,
            cases,
            list(data.notes),
        )

    def scores(self, hits: dict[str, Hits]) -> Scores:
        """Means with their intervals."""
        p = self.protocol
        metrics = {metric: _mean(h.values, h.groups) for metric, h in hits.items()}
        intervals = {
            metric: bootstrap(h.values, h.units, h.groups, resamples=p.resamples, confidence=p.confidence, seed=p.seed)
            for metric, h in hits.items()
        }
        return Scores(metrics, intervals)

    def draw(self, right: dict[str, Numbers]) -> list[tuple[str, int]]:
        """A few of the queries that were helped and of those that were hurt."""
        random = np.random.default_rng(self.protocol.seed)
        out = []
        for kind, rows in (
            ("helped", np.flatnonzero(right["reco"] & ~right["clip"])),
            ("hurt", np.flatnonzero(right["clip"] & ~right["reco"])),
        ):
            chosen = random.choice(rows, min(_CASES, len(rows)), replace=False) if len(rows) else rows
            out += [(kind, int(row)) for row in np.sort(chosen)]
        return out

    def neighbors(self, queries: Floats, leaks: Leaks) -> list[list[tuple[str, str, float, str]]]:
        """What reco looks up for images."""
        memory = self.model.memory
        if not len(memory) or not len(queries):
            return [[] for _ in range(len(queries))]
        side: Literal["image", "text"] = "image" if self.model.fusion.config.search == "uni-modal" else "text"
        k = min(self.model.k, len(memory))
        found = memory.search(queries, k=k, modality=side, exclude_keys=leaks.keys or None, partners=False)
        return [
            [
                (key, caption, round(float(score), 4), str((metadata or {}).get("image_path", "")))
                for key, caption, score, metadata in zip(keys, captions, scores, entries, strict=True)
                if key
            ]
            for keys, captions, scores, entries in zip(
                found.keys, found.captions, found.scores, found.metadata, strict=True
            )
        ]

    def _cases(
        self,
        data: Classification,
        images: Floats,
        labels: Numbers,
        guesses: dict[str, Numbers],
        names: Sequence[str],
        leaks: Leaks,
    ) -> list[Case]:
        drawn = self.draw({system: guess == labels for system, guess in guesses.items()})
        found = self.neighbors(images[[i for _, i in drawn]], leaks)
        return [
            Case(
                kind,
                data.images[i],
                names[labels[i]],
                names[guesses["clip"][i]],
                names[guesses["reco"][i]],
                near,
            )
            for (kind, i), near in zip(drawn, found, strict=True)
        ]

    def _retrieval_cases(
        self, data: Retrieval, images: Floats, found: dict[str, tuple[Numbers, Floats, Floats]], leaks: Leaks
    ) -> list[Case]:
        drawn = self.draw({system: right for system, (right, _, _) in found.items()})
        near = self.neighbors(images[[i for _, i in drawn]], leaks)
        best = {
            system: [data.captions[int((queries[i] @ candidates.T).argmax())] for _, i in drawn]
            for system, (_, queries, candidates) in found.items()
        }
        own: dict[int, str] = {}
        for caption, image in zip(data.captions, data.image_of_text, strict=True):
            own.setdefault(image, caption)
        return [
            Case(kind, data.images[i], own[i], best["clip"][n], best["reco"][n], near[n])
            for n, (kind, i) in enumerate(drawn)
        ]


def _mean(values: Numbers, groups: Numbers | None) -> float:
    if groups is None:
        return float(np.mean(values))
    counts = np.bincount(groups)
    sums = np.bincount(groups, weights=values)
    used = counts > 0
    return float(np.mean(sums[used] / counts[used]))


def _per_class(names: Sequence[str], labels: Numbers, guesses: dict[str, Numbers]) -> list[ClassScore]:
    counts = np.bincount(labels, minlength=len(names))
    right = {s: np.bincount(labels, weights=guess == labels, minlength=len(names)) for s, guess in guesses.items()}
    return [
        ClassScore(name, int(n), float(right["clip"][i] / n), float(right["reco"][i] / n))
        for i, (name, n) in enumerate(zip(names, counts, strict=True))
        if n
    ]
