# SPDX-License-Identifier: Apache-2.0
"""Zero-shot classification by any encoder, and records in CLIP_benchmark's shape."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from reco._core import Error, average_prompts, blend, classify, prompts, vote
from reco.model import Model

Floats = npt.NDArray[np.float32]


class Encoder(Protocol):
    """What is evaluated: a Clip, a Model, or anything that encodes images and texts to unit rows."""

    def encode_images(self, images: Any) -> Floats:
        """Float32 [n, dim], unit rows.

        Parameters
        ----------
        images : list
            As Clip.encode_images takes them.
        """
        ...

    def encode_texts(self, texts: Any) -> Floats:
        """Float32 [n, dim], unit rows.

        Parameters
        ----------
        texts : list
            As Clip.encode_texts takes them.
        """
        ...


@dataclass(frozen=True)
class Record:
    """One result, in CLIP_benchmark's shape.

    Attributes
    ----------
    dataset, model : str
        Names.
    metrics : dict of float
    task : str
        "zeroshot_classification" or "zeroshot_retrieval".
    seed : int, optional
    extra : dict
        Whatever else there is to say.
    """

    dataset: str
    model: str
    metrics: dict[str, float]
    task: str = "zeroshot_classification"
    seed: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As it stands in a report; what is in `extra` goes beside the other fields."""
        out = asdict(self)
        out |= out.pop("extra")
        return out


def encode_classes(encoder: Encoder, classnames: Sequence[str], templates: Sequence[str] = ("{}",)) -> Floats:
    """Embed classes by their prompts; a class is the average over the templates, taken after refinement.

    Parameters
    ----------
    encoder : Clip or Model
    classnames : list of str
    templates : list of str
        With {} where the class name goes.

    Returns
    -------
    float32 [classes, dim]
        Unit rows.
    """
    embeddings = encoder.encode_texts(prompts(list(classnames), list(templates)))
    return average_prompts(embeddings, len(templates))


@dataclass(frozen=True)
class Votes:
    """Training-free, for memories whose pairs are labelled: an image's neighbours vote for their classes.

    Needs no file; see vote() and blend() for what is computed (Khandelwal et al., arXiv 1911.00172).

    Attributes
    ----------
    field : str, optional
        Of a pair's metadata, holding its class's name; by default its caption is the name.
    k : int
        Neighbours an image.
    sharpness : float
        Inverse temperature of the softmax over their similarities.
    weight : float
        Of the votes against the probabilities that the encoder's cosines give: 1 for a plain vote, 0 for none.
    """

    field: str | None = None
    k: int = 10
    sharpness: float = 10.0
    weight: float = 0.5

    def scores(self, model: Model, images: Floats, classes: Floats, classnames: Sequence[str]) -> Floats:
        """Probability of each class: float32 [n, classes].

        Parameters
        ----------
        model : Model
            Whose memory is asked; its fusion refines the images.
        images : float32 array [n, dim]
            As CLIP embeds them, unit rows.
        classes : float32 array [classes, dim]
            Unit rows.
        classnames : list of str
        """
        found = model.memory.search(images, self.k, partners=False)
        told: Any = found.captions
        if self.field is not None:
            told = [[(metadata or {}).get(self.field) for metadata in row] for row in found.metadata]
        place = {name: i for i, name in enumerate(classnames)}
        labels = np.array([[place.get(name, -1) for name in row] for row in told]).reshape(found.scores.shape)
        votes = vote(found.scores, labels, len(classnames), self.sharpness)
        return blend(model.refine_images(images) @ classes.T, votes, model.clip.logit_scale, self.weight)


def zero_shot(
    encoder: Encoder, classnames: Sequence[str], templates: Sequence[str] = ("{}",), votes: Votes | None = None
) -> ZeroShot:
    """Make a classifier of images into named classes.

    Parameters
    ----------
    encoder : Clip or Model
        Or whatever else has encode_images and encode_texts.
    classnames : list of str
    templates : list of str
        Prompts of a class, with {} where its name goes; they are averaged after refinement.
    votes : Votes, optional
        The memory's pairs vote, too; needs a Model.

    Raises
    ------
    Error
        When votes are asked for, and there is no memory to give them.

    Examples
    --------
    >>> classifier = zero_shot(model, ["cat", "dog"], ["a photo of a {}"])  # doctest: +SKIP
    >>> classifier.predict(["rex.jpg"])  # doctest: +SKIP
    ['dog']
    """
    if votes is not None and not isinstance(encoder, Model):
        raise Error(f"[evaluation.zero_shot] votes need a Model, which has a memory, got {encoder!r}")
    return ZeroShot(encoder, list(classnames), encode_classes(encoder, classnames, templates), votes)


@dataclass(frozen=True)
class ZeroShot:
    """A zero-shot classifier; made by zero_shot().

    Attributes
    ----------
    encoder : Clip or Model
    classnames : list of str
    embeddings : float32 array [classes, dim]
        Unit rows.
    votes : Votes, optional
    """

    encoder: Encoder
    classnames: list[str]
    embeddings: Floats
    votes: Votes | None = None

    def scores(self, images: Any) -> Floats:
        """Cosine of each image with each class, or with votes its probability: float32 [n, classes].

        Parameters
        ----------
        images : list
            As the encoder takes them.
        """
        if self.votes is not None and isinstance(self.encoder, Model):
            plain = self.encoder.clip.encode_images(images)
            return self.votes.scores(self.encoder, plain, self.embeddings, self.classnames)
        scores: Floats = self.encoder.encode_images(images) @ self.embeddings.T
        return scores

    def predict(self, images: Any) -> list[str]:
        """The name of each image's best class.

        Parameters
        ----------
        images : list
            As the encoder takes them.
        """
        return [self.classnames[i] for i in self.scores(images).argmax(axis=1)]


def evaluate(
    encoder: Encoder,
    images: Any,
    labels: Sequence[int],
    classnames: Sequence[str],
    templates: Sequence[str] = ("{}",),
    *,
    dataset: str = "custom",
    model: str = "reco",
) -> Record:
    """Zero-shot classification of labelled images: acc1, acc5 and mean_per_class_recall.

    Parameters
    ----------
    encoder : Clip, Model or alike
    images : list
        Whatever the encoder takes.
    labels : sequence of int
        Right class of each image: its place in `classnames`.
    classnames, templates : sequence of str
        A template has {} where the name goes.
    dataset, model : str
        Names for the record.
    """
    classes = encode_classes(encoder, classnames, templates)
    metrics, _ = classify(encoder.encode_images(images), classes, list(labels))
    return Record(dataset, model, metrics)


def write_report(records: Sequence[Record], path: str | Path) -> None:
    """Write records as a JSON list.

    Parameters
    ----------
    records : list of Record
    path : str or Path
    """
    Path(path).write_text(json.dumps([record.as_dict() for record in records], indent=1) + "\n", "utf-8")
