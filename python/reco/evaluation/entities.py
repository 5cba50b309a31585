# SPDX-License-Identifier: Apache-2.0
"""OVEN: which of six million names is in the picture, searched in an index rather than in memory.

The candidates' names are encoded and refined in pieces and put into a memory of their own, which is a file: a second
run finds it again, interrupted work goes on where it was, and what is resident is a piece and the index. A row's text
side is CLIP's embedding of the name and its image side the refined one, so that one memory serves both systems.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from reco._core import Error, Memory, average_prompts, harmonic_mean, prompts
from reco.datasets.benchmark import EntityQuestions, read_jsonl
from reco.datasets.oven import entity_names
from reco.embedding import report_to
from reco.evaluation.leaks import Leaks, find_leaks
from reco.evaluation.results import Case, Evaluation, Scores
from reco.evaluation.texts import Texts, choose_templates

if TYPE_CHECKING:
    from reco.evaluation.protocol import Run

Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]

_TAG = "[evaluation.entities]"
_TASK = "entity_recognition"
_NAMES = 8192  # candidates at a time
_QUESTIONS = 8192  # images at a time
_INDEXED = 200_000  # candidates from which on an index is built
_INDEX = "auto"
_SAMPLE = 512  # images by which the effort of searching it is chosen
_EFFORTS = (64, 256, 1024, 4096)
_RECALL = 0.99
_SIDES: dict[str, Literal["image", "text"]] = {"clip": "text", "reco": "image"}


def evaluate_entities(run: Run, data: EntityQuestions, work: str | Path | None, *, progress: bool = True) -> Evaluation:
    """Find each image's entity among all names; see evaluate_dataset().

    Metrics are OVEN's: exact matches among entities that were seen in training, among those that were not, and the
    harmonic mean of both. Questions are not read: image and name decide.
    """
    if work is None:
        raise Error(f"{_TAG} expected a folder for the index over the candidates' names (work), got none")
    folder, quiet = Path(work), None if progress else True
    templates = choose_templates(run.protocol.prompts, data.name, [])
    run.setup["prompts"] = {"name": templates.name, "lines": templates.lines, "hash": templates.hash}
    images = run.timed(lambda: run.cache.images(data.images))
    leaks = find_leaks(run.model.memory, images, data.images, run.protocol.max_similarity)
    with _open_index(folder, run, templates, leaks, data.names) as index:
        run.timed(lambda: _add_names(index, run, templates, leaks, data.names, quiet))
        _optimize(index, quiet)
        found = {system: _search(run, index, system, images, leaks, quiet) for system in _SIDES}
        for system, entities in found.items():
            write_predictions(folder / f"{data.name}-{data.split}-{system}.predictions.jsonl", data.data_ids, entities)
        return _score(run, data, found, index, images, leaks)


# --- the candidates --------------------------------------------------------------------------------------------------
def _open_index(folder: Path, run: Run, templates: Texts, leaks: Leaks, names: Path) -> Memory:
    """The memory of names for this model, memory, fusion, k, prompts, exclusions and file; made if it is not there."""
    parts = [run.setup[name] for name in ("pretrained", "dtype", "fusion", "k", "average")]
    file = [str(names.resolve()), names.stat().st_size, names.stat().st_mtime_ns]
    identity = json.dumps([parts, run.setup["memory"]["state"], templates.hash, leaks.keys, file])
    path = folder / f"names-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.reco"
    encoder = run.model.clip.fingerprint
    if path.exists():
        return Memory.open(path, encoder=encoder)
    folder.mkdir(parents=True, exist_ok=True)
    return Memory.create(path, run.model.clip.dim, encoder)


def _add_names(index: Memory, run: Run, templates: Texts, leaks: Leaks, names: Path, quiet: bool | None) -> None:
    """Encode, refine and add what the index lacks; each piece is durable when the next begins. An id counts once."""
    done, total = len(index), _count(names)
    if done == total:
        return
    candidates = islice(entity_names(names), done, None)  # rows are added in the file's order
    with tqdm(initial=done, total=total, unit=" names", desc="names", disable=quiet, leave=False) as bar:
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


def _optimize(index: Memory, quiet: bool | None) -> None:
    """Build an index where exact search would take long, unless it has one."""
    if len(index) < _INDEXED or index.info()["indexes"]:
        return
    with tqdm(unit=" rows", desc="index", disable=quiet, leave=False) as bar:
        index.optimize(_INDEX, recall=0.99, k=1, progress=report_to(bar))


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
    sample = queries[np.linspace(0, len(queries) - 1, min(_SAMPLE, len(queries)), dtype=int)]
    best = index.search(sample, k=1, modality=side, partners=False, exact=True).scores[:, 0]
    for effort in _EFFORTS:
        found = index.search(sample, k=1, modality=side, partners=False, effort=effort).scores[:, 0]
        recall = float(np.mean(found >= best - 1e-5))
        if recall >= _RECALL:
            return Effort(False, effort, recall)
    return Effort()


def _search(run: Run, index: Memory, system: str, images: Floats, leaks: Leaks, quiet: bool | None) -> list[str]:
    """The best entity of each image."""
    out: list[str] = []
    first_block = run.refine_images(images[:_QUESTIONS], leaks) if system == "reco" else images[:_QUESTIONS]
    chosen = _choose_effort(index, first_block, _SIDES[system])
    run.setup.setdefault("candidates", {})[system] = asdict(chosen)
    with tqdm(total=len(images), unit=" images", desc=f"search {system}", disable=quiet, leave=False) as bar:
        for first in range(0, len(images), _QUESTIONS):
            block = images[first : first + _QUESTIONS]
            queries = run.refine_images(block, leaks) if system == "reco" else block
            found = index.search(
                queries, k=1, modality=_SIDES[system], partners=False, exact=chosen.exact, effort=chosen.effort
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
        _TASK,
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
    groups = {name: rows for name, rows in {"seen": seen, "unseen": ~seen}.items() if rows.any()}
    random = np.random.default_rng(p.seed)
    metrics: dict[str, dict[str, float]] = {"clip": {}, "reco": {}, "gain": {}}
    draws: dict[str, dict[str, npt.NDArray[np.float64]]] = {"clip": {}, "reco": {}, "gain": {}}
    for name, rows in groups.items():
        # Of two kinds of answers a resample's counts are multinomial: this is the bootstrap, in one draw.
        kinds = np.bincount(2 * right["clip"][rows] + right["reco"][rows], minlength=4) / rows.sum()
        drawn = random.multinomial(rows.sum(), kinds, p.resamples) / rows.sum()
        draws["clip"][name], draws["reco"][name] = drawn[:, 2] + drawn[:, 3], drawn[:, 1] + drawn[:, 3]
        for system in ("clip", "reco"):
            metrics[system][name] = float(right[system][rows].mean())
    if len(groups) == 2:
        for system in ("clip", "reco"):
            metrics[system]["harmonic_mean"] = harmonic_mean(metrics[system]["seen"], metrics[system]["unseen"])
            a, b = draws[system]["seen"], draws[system]["unseen"]
            draws[system]["harmonic_mean"] = np.divide(2 * a * b, a + b, out=np.zeros_like(a), where=a + b > 0)
    for name in metrics["clip"]:
        metrics["gain"][name] = metrics["reco"][name] - metrics["clip"][name]
        draws["gain"][name] = draws["reco"][name] - draws["clip"][name]
    tails = [(1 - p.confidence) / 2, (1 + p.confidence) / 2]
    return {
        system: Scores(
            metrics[system],
            {
                name: (float(low), float(high))
                for name, d in draws[system].items()
                for low, high in [np.quantile(d, tails)]
            },
        )
        for system in metrics
    }


def _interval(drawn: npt.NDArray[np.float64], tails: list[float]) -> tuple[float, float]:
    low, high = np.quantile(drawn, tails)
    return float(low), float(high)


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


# --- prediction files ------------------------------------------------------------------------------------------------
def write_predictions(path: str | Path, data_ids: list[str], entities: list[str]) -> None:
    """Write predictions in OVEN's form: an object with data_id and pred_entity_id a line."""
    path = Path(path)
    partial = path.with_name(path.name + ".tmp")
    try:
        with partial.open("w", encoding="utf-8") as file:
            for data_id, entity in zip(data_ids, entities, strict=True):
                file.write(json.dumps({"data_id": data_id, "pred_entity_id": entity}) + "\n")
        partial.replace(path)
    except OSError as error:
        raise Error(f"{_TAG} cannot write {path}: {error.strerror}") from error


def read_predictions(path: str | Path) -> dict[str, str]:
    """What write_predictions() wrote, or another system in that form: the entity by data_id."""
    out: dict[str, str] = {}
    for number, row in enumerate(read_jsonl("predictions", Path(path)), 1):
        data_id, entity = row.get("data_id"), row.get("pred_entity_id")
        if not (isinstance(data_id, str) and isinstance(entity, str)):
            raise Error(
                f"{_TAG} expected data_id and pred_entity_id, found {', '.join(row)} as object {number} of {path}"
            )
        out[data_id] = entity
    return out


def score_predictions(data: EntityQuestions, predictions: Mapping[str, str]) -> dict[str, float]:
    """OVEN's metrics of a prediction file: seen, unseen, harmonic_mean, as shares.

    Raises
    ------
    Error
        When the answers are not known, or a question has no prediction.
    """
    if data.entities is None:
        raise Error(f"{_TAG} {data.split} has no answers to count against")
    lacking = [data_id for data_id in data.data_ids if data_id not in predictions]
    if lacking:
        raise Error(f"{_TAG} expected predictions of all {len(data.data_ids)} questions, found none of {lacking[0]}")
    right = np.array([predictions[i] == e for i, e in zip(data.data_ids, data.entities, strict=True)])
    seen = np.array(data.seen)
    out = {name: float(right[rows].mean()) for name, rows in (("seen", seen), ("unseen", ~seen)) if rows.any()}
    return out | ({"harmonic_mean": harmonic_mean(out["seen"], out["unseen"])} if len(out) == 2 else {})
