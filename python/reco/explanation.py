# SPDX-License-Identifier: Apache-2.0
"""Why reco answered as it did: what was looked up for a query, how much it counted, and what it changed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from reco.pages import render
from reco.pictures import data_uri, find_pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Explanation"]

Floats = npt.NDArray[np.float32]

CLASSES_SHOWN = 10


@dataclass(frozen=True, eq=False)
class Explanation:
    """A refined embedding and where it came from; made by Model.explain().

    It prints as a table, shows itself in Jupyter, draws itself with plot(), and goes into JSON and HTML files. It holds
    all that it shows but the neighbours' pictures, which are read where the memory's metadata says that they lie.

    Attributes
    ----------
    modality : {"image", "text"}
        What the query is.
    query : str
        The text, or the image's path where it came from a file.
    picture : bytes or None
        A thumbnail of the query, a WebP file.
    original, refined : float32 [dim]
        CLIP's embedding and the refined one, unit length.
    keys, captions : list of str [k]
        Of the neighbours, best first; fewer than k where the memory holds fewer.
    metadata : list of dict [k]
    scores : float32 [k]
        Cosine of each neighbour with the query.
    attention : float32 [k]
        Weight of each neighbour in the fusion.
    gate : float
        Weight of what was retrieved against the query's 1: 0 stays at CLIP. 1 for "transformer".
    confidence : float or None
        Probability that something true was retrieved; None for fusions that do not judge that (all but "gated").
    classnames : list of str
        The classes that were asked for.
    before, after : float32 [classes]
        Cosine of each class with the query, by CLIP alone and by reco.
    """

    modality: Literal["image", "text"]
    query: str
    picture: bytes | None
    original: Floats
    refined: Floats
    keys: list[str]
    captions: list[str]
    metadata: list[dict[str, Any]]
    scores: Floats
    attention: Floats
    gate: float
    confidence: float | None
    classnames: list[str] = field(default_factory=list)
    before: Floats = field(default_factory=lambda: np.zeros(0, np.float32))
    after: Floats = field(default_factory=lambda: np.zeros(0, np.float32))

    @property
    def moved(self) -> float:
        """Cosine of the refined and the original embedding: 1 where nothing changed."""
        return float(self.original @ self.refined)

    @property
    def answers(self) -> tuple[str, str] | None:
        """The best class by CLIP alone and by reco; None where no classes were asked for."""
        if not self.classnames:
            return None
        return self.classnames[int(np.argmax(self.before))], self.classnames[int(np.argmax(self.after))]

    def thumbnails(self) -> list[bytes | None]:
        """Small pictures of the neighbours, WebP files; None where the memory knows no file that is still there."""
        return find_pictures(self.metadata)

    def ranking(self) -> list[tuple[str, float, float]]:
        """Class, cosine by CLIP, cosine by reco: the best ten by either, reco's best first."""
        best = set(np.argsort(-self.before)[:CLASSES_SHOWN]) | set(np.argsort(-self.after)[:CLASSES_SHOWN])
        order = sorted(best, key=lambda i: -self.after[i])
        return [(self.classnames[i], float(self.before[i]), float(self.after[i])) for i in order]

    def to_dict(self, *, embeddings: bool = False) -> dict[str, Any]:
        """Plain numbers, strings and lists, as to_json() writes them.

        Parameters
        ----------
        embeddings : bool
            Put the original and the refined embedding in, too.
        """
        neighbors = [
            {"key": key, "caption": caption, "similarity": float(score), "attention": float(weight), "metadata": extra}
            for key, caption, score, weight, extra in zip(
                self.keys, self.captions, self.scores, self.attention, self.metadata, strict=True
            )
        ]
        classes = [
            {"name": name, "before": float(before), "after": float(after)}
            for name, before, after in zip(self.classnames, self.before, self.after, strict=True)
        ]
        out = {"modality": self.modality, "query": self.query, "gate": self.gate, "confidence": self.confidence}
        out |= {"moved": self.moved, "neighbors": neighbors, "classes": classes}
        if embeddings:
            out |= {"original": self.original.tolist(), "refined": self.refined.tolist()}
        return out

    def to_json(self, *, embeddings: bool = False) -> str:
        """to_dict() as JSON.

        Parameters
        ----------
        embeddings : bool
            Include the two vectors.
        """
        return json.dumps(self.to_dict(embeddings=embeddings), indent=1, ensure_ascii=False)

    def to_html(self) -> str:
        """A whole page that needs no other file and no network."""
        name = Path(self.query).name if self.modality == "image" else self.query
        title = f"What reco looked up for {name or 'an image'}"
        return render("page.html", title=title, heading=title, body=self._repr_html_())

    def save_html(self, path: str | Path) -> None:
        """Write to_html() to a file.

        Parameters
        ----------
        path : str or Path

        Raises
        ------
        OSError
            When the file cannot be written.
        """
        Path(path).write_text(self.to_html(), "utf-8")

    def plot(self) -> Figure:
        """Draw the query, its neighbours and the classes: a matplotlib Figure, which Jupyter shows."""
        from reco.plotting import explanation_figure

        return explanation_figure(self)

    def _repr_html_(self) -> str:
        neighbors = [
            item | {"picture": data_uri(picture)}
            for item, picture in zip(self.to_dict()["neighbors"], self.thumbnails(), strict=True)
        ]
        return render(
            "explanation.html", e=self, picture=data_uri(self.picture), neighbors=neighbors, classes=self._bars()
        )

    def _bars(self) -> list[dict[str, Any]]:
        """The classes as lines of the page: cosines, and how long their bars are."""
        ranking = self.ranking()
        values = [value for _, before, after in ranking for value in (before, after)]
        low, span = min(values, default=0.0), max(max(values, default=1.0) - min(values, default=0.0), 1e-6)
        best = self.answers[0] if self.answers else ""
        return [
            {
                "name": name,
                "before": before,
                "after": after,
                "before_width": 5 + 95 * (before - low) / span,
                "after_width": 5 + 95 * (after - low) / span,
                "clip_best": name == best,
                "reco_best": i == 0,
            }
            for i, (name, before, after) in enumerate(ranking)
        ]

    def __repr__(self) -> str:
        what = "an image" if self.modality == "image" else "a text"
        confidence = "" if self.confidence is None else f"confidence {self.confidence:.3f}, "
        lines = [
            f"Explanation of {what}: gate {self.gate:.3f}, {confidence}cosine of refined and original {self.moved:.3f}",
            " rank  similarity  attention  caption",
        ]
        for i, (key, caption, score, weight) in enumerate(
            zip(self.keys, self.captions, self.scores, self.attention, strict=True)
        ):
            lines.append(f"{i + 1:5}{score:12.3f}{weight:11.3f}  {caption}  [{key}]")
        if self.answers:
            lines.append("CLIP says {}, reco says {}".format(*self.answers))
            lines.append("         CLIP       reco  class")
        lines += [f"     {before:8.3f}{after:11.3f}  {name}" for name, before, after in self.ranking()]
        return "\n".join(lines)
