# SPDX-License-Identifier: Apache-2.0
"""OVEN: which of six million names is in the picture, searched in an index rather than in memory.

The candidates' names are encoded and refined in pieces and put into a memory of their own, which is a file: a second
run finds it again, interrupted work goes on where it was, and what is resident is a piece and the index. A row's text
side is CLIP's embedding of the name and its image side the refined one, so that one memory serves both systems. The
images' embeddings lie in a file too.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from reco._core import Error, Memory, average_prompts, harmonic_mean, prompts
from reco.datasets.benchmark import EntityQuestions
from reco.datasets.oven import entity_names
from reco.evaluation.leaks import Leaks, find_leaks
from reco.evaluation.predictions import write_predictions
from reco.evaluation.results import ENTITIES, Case, Evaluation, Scores
from reco.evaluation.texts import Texts, choose_templates
from reco.progress import Reporter

if TYPE_CHECKING:
    from reco.evaluation.protocol import Run
    from reco.types import Progress

Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]
Draws = npt.NDArray[np.float64]

_TAG = "[evaluation.entities]"
_NAMES = 8192  # candidates at a time
_QUESTIONS = 8192  # images at a time
_INDEXED = 200_000  # candidates from which on an index is built
_INDEX = "auto"
_SAMPLE = 512  # images by which the effort of searching it is chosen
_EFFORTS = (64, 256, 1024, 4096)
_RECALL = 0.99
_SIDES: dict[str, Literal["image", "text"]] = {"clip": "text", "reco": "image"}


def evaluate_entities(run: Run, data: EntityQuestions, work: str | Path | None, progress: Progress) -> Evaluation:
    """Find each image's entity among all names; see evaluate_dataset().

    Metrics are OVEN's: exact matches among entities that were seen in training, among those that were not, and the
    harmonic mean of both. Questions are not read: image and name decide.
    """
    if work is None:
        raise Error(f"{_TAG} expected a folder for the index over the candidates' names (work), got none")
    folder = Path(work)
    templates = choose_templates(run.protocol.prompts, data.name, [])
    run.setup["prompts"] = asdict(templates)
    place = _rows_on_disk(folder, len(data.images), run.model.clip.dim)
    images = run.timed(lambda: run.cache.images(data.images, out=place))
    leaks = find_leaks(run.model.memory, images, data.images, run.protocol.max_similarity)
    with _open_index(folder, run, templates, leaks, data.names) as index:
        run.timed(lambda: _add_names(index, run, templates, leaks, data.names, progress))
        _optimize(index, progress)
        found = {system: _search(run, index, system, images, leaks, progress) for system in _SIDES}
        for system, entities in found.items():
            write_predictions(folder / f"{data.name}-{data.split}-{system}.predictions.jsonl", data.data_ids, entities)
        return _score(run, data, found, index, images, leaks)


def _rows_on_disk(folder: Path, rows: int, dim: int) -> Floats:
    """Rows in a file without a name, which goes when nobody uses it any more."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, max(4 * rows * dim, 1))  # a full disk would end the process later
            return np.memmap(file, np.float32, "r+", shape=(rows, dim))
    except OSError as error:
        raise Error(f"{_TAG} cannot keep {rows:,} embeddings in {folder}: {error.strerror}") from error


# --- the candidates --------------------------------------------------------------------------------------------------
def _open_index(folder: Path, run: Run, templates: Texts, leaks: Leaks, names: Path) -> Memory:
    """The memory of names for this model, memory, fusion, k, prompts, exclusions and file; made if it is not there."""
    parts = [run.setup[name] for name in ("pretrained", "dtype", "fusion", "k", "average")]
    file = [str(names.resolve()), names.stat().st_size, names.stat().st_mtime_ns]
    identity = json.dumps([parts, run.setup["memory"]["state"], templates.hash, leaks.keys, file])
    path = folder / f"names-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.reco"
    encoder = run.model.clip.fingerprint
    return Memory.open(path, encoder=encoder) if path.exists() else Memory.create(path, run.model.clip.dim, encoder)


def _add_names(index: Memory, run: Run, templates: Texts, leaks: Leaks, names: Path, progress: Progress) -> None:
    """Encode, refine and add what the index lacks; each piece is durable when the next begins. An id counts once."""
    done, total = len(index), _count(names)
    if done == total:
        return
    candidates = islice(entity_names(names), done, None)  # rows are added in the file's order
    with Reporter(progress, "names", " names", total, done) as bar:
        while lines := list(islice(candidates, _NAMES)):
            fresh = {entity: title for entity, title in lines if entity not in index}
            if fresh:
                plain, refined = _encode(run, templates, leaks, list(fresh.values()))
                index.add(refined, plain, list(fresh), list(fresh.values()))
            bar.update(len(lines))
    if not len(index):
        raise Error(f"{_TAG} expected candidates in {names}, found none")


def _count(names: Path) -> int:
    with names.open("rb") as lines:
        return sum(1 for line in lines if line.strip())


def _encode(run: Run, templates: Texts, leaks: Leaks, titles: list[str]) -> tuple[Floats, Floats]:
    """CLIP's embeddings of names, and the refined ones. Not cached: the index keeps them."""
    count = len(templates.lines)
    texts = run.model.clip.encode_texts(prompts(titles, templates.lines))
    return average_prompts(texts, count), run.refine_classes(texts, count, leaks)


def _optimize(index: Memory, progress: Progress) -> None:
    """Build an index where exact search would take long, unless it has one."""
    if len(index) < _INDEXED or index.info()["indexes"]:
        return
    with Reporter(progress, "index", " rows") as bar:
        index.optimize(_INDEX, recall=0.99, k=1, progress=bar)


# --- the questions ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Effort:
    """How the candidates are searched, and the share of a sample of images for which exact search finds no better."""

    exact: bool = True
    effort: int = 0
    recall: float = 1.0


def _choose_effort(index: Memory, queries: Floats, side: Literal["image", "text"]) -> Effort:
    """The least effort that is good enough for these queries.

    An index is tuned for queries that are like its rows; images among names are not, and what is enough for the former
    can miss half of the best names for the latter.
    """
    if not index.info()["indexes"]:
        return Effort()
    best = index.search(queries, k=1, modality=side, partners=False, exact=True).scores[:, 0]
    for effort in _EFFORTS:
        found = index.search(queries, k=1, modality=side, partners=False, effort=effort).scores[:, 0]
        recall = float(np.mean(found >= best - 1e-5))
        if recall >= _RECALL:
            return Effort(False, effort, recall)
    return Effort()


def _search(run: Run, index: Memory, system: str, images: Floats, leaks: Leaks, progress: Progress) -> list[str]:
    """The best entity of each image."""

    def queries(rows: Floats) -> Floats:
        return run.refine_images(rows, leaks) if system == "reco" else rows

    out: list[str] = []
    sample = images[np.linspace(0, len(images) - 1, min(_SAMPLE, len(images)), dtype=int)]
    chosen = _choose_effort(index, queries(sample), _SIDES[system])
    run.setup.setdefault("candidates", {})[system] = asdict(chosen)
    with Reporter(progress, f"search {system}", " images", len(images)) as bar:
        for first in range(0, len(images), _QUESTIONS):
            block = queries(images[first : first + _QUESTIONS])
            found = index.search(
                block, k=1, modality=_SIDES[system], partners=False, exact=chosen.exact, effort=chosen.effort
            )
            out += [keys[0] for keys in found.keys]
            bar.update(len(block))
    return out


def _score(
    run: Run, data: EntityQuestions, found: dict[str, list[str]], index: Memory, images: Floats, leaks: Leaks
) -> Evaluation:
    """Without answers there are predictions only."""
    counts = {"images": len(data.images), "candidates": len(index)}
    notes = list(data.notes)
    scores = {name: Scores({}) for name in ("clip", "reco", "gain")}
    cases: list[Case] = []
    if data.entities is not None:
        lacking = sum(entity not in index for entity in set(data.entities))
        notes += [f"{lacking} of the right entities are not among the candidates"] if lacking else []
        right = {s: np.array([a == b for a, b in zip(e, data.entities, strict=True)]) for s, e in found.items()}
        scores = _scores(run, right, np.array(data.seen))
        cases = _cases(run, data, right, found, index, images, leaks)
    return Evaluation(
        data.name,
        data.split,
        ENTITIES,
        scores["clip"],
        scores["reco"],
        scores["gain"],
        counts,
        leaks,
        run.setup,
        run.seconds(),
        cases=cases,
        notes=notes,
    )


def _scores(run: Run, right: dict[str, Flags], seen: Flags) -> dict[str, Scores]:
    """Seen, unseen and harmonic mean, for each system and their difference."""
    p = run.protocol
    random = np.random.default_rng(p.seed)
    metrics: dict[str, dict[str, float]] = {system: {} for system in _SIDES}
    draws: dict[str, dict[str, Draws]] = {system: {} for system in _SIDES}
    for name, rows in (("seen", seen), ("unseen", ~seen)):
        if rows.any():
            both = _draws(random, right["clip"][rows], right["reco"][rows], p.resamples)
            for system, drawn in zip(_SIDES, both, strict=True):
                metrics[system][name], draws[system][name] = float(right[system][rows].mean()), drawn
    for system in _SIDES:
        if len(metrics[system]) == 2:
            metrics[system]["harmonic_mean"] = harmonic_mean(*metrics[system].values())
            draws[system]["harmonic_mean"] = _harmonic_means(*draws[system].values())
    metrics["gain"] = {name: metrics["reco"][name] - value for name, value in metrics["clip"].items()}
    draws["gain"] = {name: draws["reco"][name] - drawn for name, drawn in draws["clip"].items()}
    return {system: Scores(metrics[system], _intervals(draws[system], p.confidence)) for system in metrics}


def _draws(random: np.random.Generator, clip: Flags, reco: Flags, resamples: int) -> tuple[Draws, Draws]:
    """The means of resamples. Of two kinds of answers their counts are multinomial: the bootstrap, in one draw."""
    kinds = np.bincount(2 * clip + reco, minlength=4) / len(clip)
    drawn = random.multinomial(len(clip), kinds, resamples) / len(clip)
    return drawn[:, 2] + drawn[:, 3], drawn[:, 1] + drawn[:, 3]


def _harmonic_means(a: Draws, b: Draws) -> Draws:
    return np.divide(2 * a * b, a + b, out=np.zeros_like(a), where=a + b > 0)


def _intervals(draws: dict[str, Draws], confidence: float) -> dict[str, tuple[float, float]]:
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    pairs = {name: np.quantile(drawn, tails) for name, drawn in draws.items()}
    return {name: (float(low), float(high)) for name, (low, high) in pairs.items()}


def _cases(
    run: Run,
    data: EntityQuestions,
    right: dict[str, Flags],
    found: dict[str, list[str]],
    index: Memory,
    images: Floats,
    leaks: Leaks,
) -> list[Case]:
    drawn = run.draw(right)
    near = run.neighbors(images[[i for _, i in drawn]], leaks)
    answers = data.entities or []

    def called(entity: str) -> str:
        return index.get(entity).caption if entity in index else entity

    return [
        Case(kind, data.images[i], called(answers[i]), called(found["clip"][i]), called(found["reco"][i]), near[n])
        for n, (kind, i) in enumerate(drawn)
    ]
