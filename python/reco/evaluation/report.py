# SPDX-License-Identifier: Apache-2.0
"""An HTML page of results that needs no other file: tables, bars of classes' gains, queries with neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reco._core import Error
from reco.datasets.benchmark import image_bytes, image_name
from reco.evaluation.results import Case, ClassScore, Evaluation, extremes, result_tables
from reco.pages import render
from reco.pictures import data_uri, find_pictures, thumbnail

_BARS = 25  # classes of each kind
_NEIGHBORS = 5  # of a case


@dataclass(frozen=True)
class _Neighbor:
    picture: str
    caption: str
    key: str
    similarity: float


@dataclass(frozen=True)
class _Shown:
    """A case with its pictures as addresses."""

    case: Case
    picture: str
    name: str
    neighbors: list[_Neighbor]


def write_html(evaluations: Sequence[Evaluation], path: str | Path) -> Path:
    """Write a report on evaluations as one HTML file, which opens in any browser without a network.

    Queries are shown as their files have them, made small; neighbours where the memory's metadata says in `image_path`
    where their pictures lie, and those still lie there.

    Parameters
    ----------
    evaluations : list of Evaluation
    path : str or Path

    Raises
    ------
    Error
        When it cannot be written.
    """
    title = "reco: " + ", ".join(evaluation.dataset for evaluation in evaluations)
    body = render(
        "evaluation.html",
        tables=result_tables(evaluations),
        sections=[_section(evaluation) for evaluation in evaluations],
    )
    page = render("page.html", title=title, body=body)
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".tmp")
        partial.write_text(page, "utf-8", "backslashreplace")
        partial.replace(path)
    except OSError as error:
        raise Error(f"[evaluation.write_html] cannot write {path}: {error.strerror}") from error
    return path


def _section(evaluation: Evaluation) -> dict[str, Any]:
    gained, lost = extremes(evaluation.per_class, _BARS)
    most = max((abs(s.reco - s.clip) for s in [*gained, *lost]), default=1.0)
    stayed = sum(score.reco == score.clip for score in evaluation.per_class)
    return {
        "e": evaluation,
        "metrics": [
            (
                name,
                _percent(value, evaluation.clip.intervals.get(name), ""),
                _percent(evaluation.reco.metrics[name], evaluation.reco.intervals.get(name), ""),
                _percent(evaluation.gain.metrics[name], evaluation.gain.intervals.get(name), "+"),
            )
            for name, value in evaluation.clip.metrics.items()
        ],
        "bars": [_bar(score, most) for score in [*gained, *reversed(lost)]],
        "counts": (
            sum(score.reco > score.clip for score in evaluation.per_class),
            sum(score.reco < score.clip for score in evaluation.per_class),
            stayed,
        ),
        "cases": {kind: [_shown(c) for c in evaluation.cases if c.kind == kind] for kind in ("helped", "hurt")},
    }


def _percent(value: float, interval: tuple[float, float] | None, sign: str) -> tuple[str, str]:
    shown = f"{100 * interval[0]:{sign}.1f} to {100 * interval[1]:{sign}.1f}" if interval else ""
    return f"{100 * value:{sign}.1f}", shown


def _bar(score: ClassScore, most: float) -> dict[str, Any]:
    gain = score.reco - score.clip
    return {"score": score, "gain": f"{100 * gain:+.0f}", "width": 50 * abs(gain) / most, "up": gain > 0}


def _shown(case: Case) -> _Shown:
    near = case.neighbors[:_NEIGHBORS]
    pictures = find_pictures([{"image_path": path} for *_, path in near])
    return _Shown(
        case,
        _query(case),
        image_name(case.image),
        [
            _Neighbor(data_uri(picture), caption, key, similarity)
            for picture, (key, caption, similarity, _) in zip(pictures, near, strict=True)
        ],
    )


def _query(case: Case) -> str:
    try:
        return data_uri(thumbnail(image_bytes(case.image)))
    except (OSError, Error):
        return ""
