# SPDX-License-Identifier: Apache-2.0
"""What an evaluation found: typed, as JSON in CLIP_benchmark's shape, and as tables beside the paper's figures."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from reco._core import Error
from reco.datasets.benchmark import Image
from reco.evaluation.leaks import Leaks
from reco.evaluation.paper import COLUMNS, FOOTNOTE, PAPER, Column
from reco.evaluation.predictions import published_final_score, published_scores

SYSTEMS = ("clip", "reco")
ENTITIES = "entity_recognition"


@dataclass(frozen=True)
class Scores:
    """One system's figures.

    Attributes
    ----------
    metrics : dict
        Shares between 0 and 1, by CLIP_benchmark's names: acc1, acc5, mean_per_class_recall,
        image_retrieval_recall@k, text_retrieval_recall@k; for entities seen, unseen, harmonic_mean.
    intervals : dict
        (low, high) of each by bootstrap.
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class ClassScore:
    """Share of a class's images that are right.

    Attributes
    ----------
    name : str
        Of the class.
    images : int
        How many images it has.
    clip, reco : float
        Share that is right, 0 to 1, without and with what is looked up.
    """

    name: str
    images: int
    clip: float
    reco: float


@dataclass(frozen=True)
class Case:
    """A query that one system got right and the other wrong, and what reco looked up for it.

    Attributes
    ----------
    kind : str
        "helped" or "hurt".
    image : Image
    right, clip, reco : str
        The right answer and the two given.
    neighbors : list of (key, caption, similarity, path)
        Best first; `path` is where the memory says its image lies, or empty.
    """

    kind: str
    image: Image
    right: str
    clip: str
    reco: str
    neighbors: list[tuple[str, str, float, str]]


@dataclass(frozen=True)
class Evaluation:
    """CLIP and reco on one data set under the same prompts.

    Attributes
    ----------
    dataset, split, task : str
        `task` is zeroshot_classification, zeroshot_retrieval or entity_recognition.
    clip, reco : Scores
    gain : Scores
        reco minus CLIP, image by image, with intervals of their own.
    counts : dict
        images, classes, captions, candidates: as many as there are.
    per_class : list of ClassScore
        Of classes with images, in the data set's order.
    cases : list of Case
        Drawn at random from the queries that were helped, and from those that were hurt.
    leaks : Leaks
    setup : dict
        model, pretrained (its fingerprint), memory, fusion, k, prompts, class names, hashes, seeds, versions.
    seconds : dict
        encoding and everything else.
    notes : list of str
        What differs from the published data set.
    """

    dataset: str
    split: str
    task: str
    clip: Scores
    reco: Scores
    gain: Scores
    counts: dict[str, int]
    leaks: Leaks
    setup: dict[str, Any]
    seconds: dict[str, float] = field(default_factory=dict)
    per_class: list[ClassScore] = field(default_factory=list, repr=False)
    cases: list[Case] = field(default_factory=list, repr=False)
    notes: list[str] = field(default_factory=list)

    def record(self, system: str) -> dict[str, Any]:
        """The record of "clip" or "reco" in CLIP_benchmark's shape; what is ours is under `reco`.

        Parameters
        ----------
        system : {"clip", "reco"}
        """
        if system not in SYSTEMS:
            raise Error(f"[evaluation.record] expected one of {', '.join(SYSTEMS)}, got {system}")
        scores: Scores = getattr(self, system)
        print_ = str(self.setup.get("pretrained", ""))
        leaks = {name: value for name, value in asdict(self.leaks).items() if name != "keys"}
        published = {"published": published_scores(scores.metrics)} if self.task == ENTITIES else {}
        return {
            "dataset": self.dataset,
            "model": str(self.setup.get("model", "")),
            "pretrained": print_ + ("+reco" if system == "reco" else ""),
            "task": self.task,
            "metrics": scores.metrics,
            "language": "en",
            "reco": {
                "split": self.split,
                "intervals": scores.intervals,
                "gain": asdict(self.gain),
                "counts": self.counts,
                "leaks": leaks,
                "setup": self.setup,
                "seconds": self.seconds,
                "per_class": [asdict(score) for score in self.per_class],
                "notes": self.notes,
                **published,
            },
        }


def extremes(per_class: Sequence[ClassScore], count: int = 10) -> tuple[list[ClassScore], list[ClassScore]]:
    """The classes that gained most, and those that lost most; those that stayed are in neither."""
    ordered = sorted(per_class, key=lambda score: score.clip - score.reco)
    gained = [score for score in ordered if score.reco > score.clip][:count]
    lost = [score for score in reversed(ordered) if score.reco < score.clip][:count]
    return gained, lost


# --- files -----------------------------------------------------------------------------------------------------------
def safe_name(name: str) -> str:
    """A data set's name as part of a file's."""
    return re.sub(r"[^\w.-]+", "-", name) or "dataset"


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(text, "utf-8")
    partial.replace(path)


def write_results(evaluations: Sequence[Evaluation], folder: str | Path) -> list[Path]:
    """Write DATASET-SPLIT-clip.json and -reco.json for each, and results.md over all such files in the folder.

    The JSON files are what CLIP_benchmark writes, one result a file, so that `clip_benchmark build` reads them.

    Parameters
    ----------
    evaluations : list of Evaluation
    folder : str or Path

    Returns
    -------
    list of path
        What was written.
    """
    folder = Path(folder)
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for evaluation in evaluations:
            for system in SYSTEMS:
                path = folder / f"{safe_name(evaluation.dataset)}-{safe_name(evaluation.split)}-{system}.json"
                _write(path, json.dumps(evaluation.record(system), indent=1, ensure_ascii=False) + "\n")
                written.append(path)
        table = folder / "results.md"
        _write(table, markdown_table(read_results(folder)))
        written.append(table)
    except OSError as error:
        raise Error(f"[evaluation.write_results] cannot write to {folder}: {error.strerror}") from error
    return written


def read_results(folder: str | Path) -> list[dict[str, Any]]:
    """The records that write_results() put into a folder."""
    records = []
    for path in sorted(Path(folder).glob("*-*.json")):
        try:
            record = json.loads(path.read_text("utf-8"))
            if isinstance(record, dict) and isinstance(record.get("reco"), dict) and "metrics" in record:
                records.append(record)
        except (OSError, ValueError) as error:
            raise Error(f"[evaluation.read_results] cannot read {path}: {error}") from error
    return records


# --- tables ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Table:
    """Rows of cells, the first of which is the header."""

    title: str
    rows: list[list[str]]
    footnote: str = ""

    def markdown(self) -> str:
        """As Markdown."""
        lines = [_row(self.rows[0]), _row(["---"] * len(self.rows[0])), *map(_row, self.rows[1:])]
        return "\n".join([f"### {self.title}", "", *lines, *(["", self.footnote] if self.footnote else [])])


def result_tables(results: Iterable[Evaluation | dict[str, Any]]) -> list[Table]:
    """Tables in the paper's layout, a column a data set, with the paper's own figures below yours; others beneath.

    Parameters
    ----------
    results : iterable of Evaluation, or of the records that read_results() gives
    """
    records = [r for e in results for r in ([e.record(s) for s in SYSTEMS] if isinstance(e, Evaluation) else [e])]
    known = {title: c for title, c in COLUMNS.items() if any(_fits(column, r) for column in c for r in records)}
    last = list(known)[-1:]
    tables = [
        Table(title, _paper_rows(list(columns), records), FOOTNOTE if title in last else "")
        for title, columns in known.items()
    ]
    rest = [r for r in records if not any(_fits(c, r) for columns in COLUMNS.values() for c in columns)]
    for task in dict.fromkeys(r["task"] for r in rest):
        rows = _plain_rows([r for r in rest if r["task"] == task])
        tables.append(Table(f"Other data sets and splits: {task.removeprefix('zeroshot_').replace('_', ' ')}", rows))
    return tables


def markdown_table(results: Iterable[Evaluation | dict[str, Any]]) -> str:
    """result_tables() as Markdown, with the notes on the data sets, and OVEN's score over both splits.

    Parameters
    ----------
    results : iterable of Evaluation, or of dict
    """
    records = [r for e in results for r in ([e.record(s) for s in SYSTEMS] if isinstance(e, Evaluation) else [e])]
    notes = list(dict.fromkeys(f"- {r['dataset']}: {note}" for r in records for note in r["reco"]["notes"]))
    parts = [table.markdown() for table in result_tables(records)] + _oven_scores(records)
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])]) + "\n"


def _oven_scores(records: list[dict[str, Any]]) -> list[str]:
    """OVEN's scores as its own script rounds them, and the one over both splits that it ranks by."""
    known: dict[str, dict[str, dict[str, float]]] = {}
    for r in records:
        if r["dataset"] == "oven" and "harmonic_mean" in r["metrics"]:
            known.setdefault(_system(r), {})[r["reco"]["split"]] = r["metrics"]
    lines = [
        f"- OVEN's own rounding, {split}, {system}: "
        + ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in published_scores(metrics).items())
        for system, splits in known.items()
        for split, metrics in splits.items()
    ]
    for kind in ("val", "test"):
        lines += [
            f"- OVEN over both splits ({kind}), {system}: "
            f"{published_final_score(m[f'entity_{kind}'], m[f'query_{kind}']):.2f}"
            for system, m in known.items()
            if {f"entity_{kind}", f"query_{kind}"} <= set(m)
        ]
    return ["\n".join(lines)] if lines else []


def _fits(column: Column, record: dict[str, Any]) -> bool:
    return bool(
        record["dataset"] == column.dataset
        and record["reco"]["split"] == column.split
        and column.metric in record["metrics"]
    )


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _percent(record: dict[str, Any], metric: str) -> str:
    """A figure with its interval."""
    interval = record["reco"]["intervals"].get(metric)
    shown = f" ({100 * interval[0]:.1f}–{100 * interval[1]:.1f})" if interval else ""
    return f"{100 * record['metrics'][metric]:.1f}{shown}"


def _gain(record: dict[str, Any], metric: str) -> str:
    gain = record["reco"]["gain"]
    if metric not in gain["metrics"]:
        return ""
    interval = gain["intervals"].get(metric)
    shown = f" ({100 * interval[0]:+.1f} to {100 * interval[1]:+.1f})" if interval else ""
    return f"{100 * gain['metrics'][metric]:+.1f}{shown}"


def _paper_rows(columns: list[Column], records: list[dict[str, Any]]) -> list[list[str]]:
    rows = [["%", *(c.title for c in columns)]]
    for name in dict.fromkeys((r["model"], r["pretrained"]) for r in records):
        mine = [r for r in records if (r["model"], r["pretrained"]) == name]
        for title, show in ((_system(mine[0]), _percent), ("gain", _gain)):
            cells = [next((show(r, c.metric) for r in mine if _fits(c, r)), "") for c in columns]
            if any(cells) and (title != "gain" or name[1].endswith("+reco")):
                rows.append([title, *cells])
    for title, figures in PAPER.items():
        cells = [figures.get((c.dataset, c.metric), "") for c in columns]
        rows += [[title, *cells]] if any(cells) else []
    return rows


def _system(record: dict[str, Any]) -> str:
    name = record["model"] or "CLIP"
    return f"{name} + reco" if record["pretrained"].endswith("+reco") else name


def _plain_rows(records: list[dict[str, Any]]) -> list[list[str]]:
    metrics = list(dict.fromkeys(metric for r in records for metric in r["metrics"]))
    rows = [["data set", "split", "system", *metrics]]
    for record in records:
        where = [record["dataset"], record["reco"]["split"]]
        rows.append(
            [*where, _system(record), *(_percent(record, m) if m in record["metrics"] else "" for m in metrics)]
        )
        if record["pretrained"].endswith("+reco"):
            rows.append([*where, "gain", *(_gain(record, m) for m in metrics)])
    return rows


def file_hash(path: str | os.PathLike[str]) -> str:
    """First 12 hex digits of a file's SHA-256."""
    import hashlib

    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:12]
