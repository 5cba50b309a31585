# SPDX-License-Identifier: Apache-2.0
"""OVEN's prediction files, and its scores as its authors' script counts and rounds them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from reco._core import Error, harmonic_mean
from reco.datasets.benchmark import EntityQuestions, read_jsonl

_TAG = "[evaluation.predictions]"
_NEARLY_ZERO = 1e-12  # what stands for an accuracy of zero


def write_predictions(path: str | Path, data_ids: list[str], entities: list[str]) -> None:
    """Write predictions in OVEN's form: an object with data_id and pred_entity_id a line.

    Parameters
    ----------
    path : str or Path
    data_ids, entities : list of str
        One a question.
    """
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
    """What write_predictions() wrote, or another system in that form: the entity by data_id.

    Parameters
    ----------
    path : str or Path
    """
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
    """OVEN's metrics of a prediction file: seen, unseen, harmonic_mean, as shares; published_scores() rounds them.

    Parameters
    ----------
    data : EntityQuestions
    predictions : dict
        Of entities by data_id.

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


def published_scores(shares: Mapping[str, float]) -> dict[str, float]:
    """What OVEN's script prints: accuracies in percent with two places, and the harmonic mean of these.

    Parameters
    ----------
    shares : dict
        seen and unseen between 0 and 1, as score_predictions() gives them.
    """
    percent = {name: round(shares[name] * 100, 2) for name in ("seen", "unseen") if name in shares}
    return percent | ({"harmonic_mean": round(_split_score(shares), 2)} if len(percent) == 2 else {})


def published_final_score(entity: Mapping[str, float], query: Mapping[str, float]) -> float:
    """What OVEN ranks by: the harmonic mean of the entity and the query split's harmonic means, in percent."""
    return round(_harmonic(_split_score(entity), _split_score(query)), 2)


def _split_score(shares: Mapping[str, float]) -> float:
    """Of the rounded accuracies, itself not rounded."""
    return _harmonic(round(shares["seen"] * 100, 2), round(shares["unseen"] * 100, 2))


def _harmonic(a: float, b: float) -> float:
    return 2 / (1 / (a or _NEARLY_ZERO) + 1 / (b or _NEARLY_ZERO))
