# SPDX-License-Identifier: Apache-2.0
"""Figures (matplotlib): accuracy by task, and what was found for a query."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from reco.explanation import Explanation

__all__ = ["accuracy_bars", "explanation_figure", "gallery_row"]

COLORS = ("#9aa5b1", "#e0a458", "#7b6bb2", "#1f7a8c", "#d1495b", "#4b8f5a", "#333333")


def accuracy_bars(
    axes: Axes,
    values: Mapping[str, Sequence[Sequence[float]]],
    tasks: Sequence[str],
    colors: Sequence[str] = COLORS,
) -> None:
    """Grouped bars: one group a task, one bar a system, with the deviation over seeds as a whisker.

    Parameters
    ----------
    axes : matplotlib Axes
    values : {system: [[percent a seed] a task]}
    tasks : names of the groups
    colors : one a system
    """
    width = 0.8 / len(values)
    for i, (name, groups) in enumerate(values.items()):
        means = [float(np.mean(g)) if len(g) else 0.0 for g in groups]
        spread = [float(np.std(g, ddof=1)) if len(g) > 1 else 0.0 for g in groups]
        places = np.arange(len(tasks)) + (i - (len(values) - 1) / 2) * width
        bars = axes.bar(
            places, means, width * 0.92, yerr=spread, label=name, color=colors[i % len(colors)], ecolor="#555"
        )
        axes.bar_label(bars, [f"{m:.0f}" for m in means], fontsize=7, padding=2)
    axes.set_xticks(np.arange(len(tasks)), tasks)
    axes.set_ylabel("accuracy, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=len(values), loc="upper left", bbox_to_anchor=(0, 1.12), fontsize=9)


def show_image(axes: Axes, image: bytes | None, title: str, color: str = "#333333") -> None:
    """An encoded image with a line of text above it, or an empty frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    if image is not None:
        axes.imshow(np.asarray(Image.open(io.BytesIO(image)).convert("RGB")))
    for spine in axes.spines.values():
        spine.set_color("#dddddd")
    axes.set_title(title, fontsize=7.5, color=color)


def gallery_row(
    axes: Sequence[Any], query: bytes, title: str, right: bool, found: Sequence[tuple[bytes | None, str]]
) -> None:
    """One query and its neighbours with their captions.

    Parameters
    ----------
    axes : list of matplotlib axes
        One for the query, then one a neighbour.
    query : bytes
        An image file.
    title : str
        Over the query.
    right : bool
        Whether the answer was right: the colour of the title.
    found : list of (bytes or None, str)
        Image files and captions of the neighbours.
    """
    show_image(axes[0], query, title, "#2b7a3d" if right else "#b3261e")
    for place, (image, caption) in zip(axes[1:], found, strict=False):
        show_image(place, image, caption)


def shorten(text: str, length: int) -> str:
    """As much of a text as fits, on one line; textwrap.shorten leaves nothing of a word that is too long."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def explanation_figure(found: Explanation, columns: int = 5) -> Figure:
    """The query, the classes before and after, and the neighbours with their attention.

    Parameters
    ----------
    found : Explanation
    columns : int
        Pictures in a row.
    """
    import matplotlib.pyplot as plt

    pictures = found.thumbnails()
    rows = max(-(-len(pictures) // columns), 1)
    ranking = found.ranking()
    heights = [max(2.4, 0.7 + 0.15 * len(ranking)), 2.55 * rows]
    figure = plt.figure(figsize=(1.8 * columns, sum(heights)), layout="constrained")
    plt.close(figure)  # so that a notebook shows what is returned once, not twice
    parts: Any = figure.subfigures(2, 1, height_ratios=heights)
    top, below = parts
    places = top.subplots(1, 2, width_ratios=[1, 2])
    _show_query(places[0], found)
    if found.classnames:
        class_bars(places[1], ranking)
    else:
        places[1].set_axis_off()
    for i, place in enumerate(below.subplots(rows, columns, squeeze=False).flat):
        if i < len(pictures):
            _show_neighbor(place, pictures[i], found, i)
        else:
            place.set_axis_off()
    return figure


def _show_query(axes: Axes, found: Explanation) -> None:
    title = "\n".join(
        f"{who}: {shorten(name, 32)}" for who, name in zip(("CLIP", "reco"), found.answers or (), strict=False)
    )
    show_image(axes, found.picture, title)
    confidence = "" if found.confidence is None else f", confidence {found.confidence:.2f}"
    axes.set_xlabel(f"gate {found.gate:.2f}{confidence}", fontsize=7.5)
    if found.picture is None:
        axes.set_aspect(1)
        axes.text(
            0.5, 0.5, "\n".join(textwrap.wrap(shorten(found.query, 160), 24)), ha="center", va="center", fontsize=8
        )


def _show_neighbor(axes: Axes, picture: bytes | None, found: Explanation, i: int) -> None:
    caption = shorten(found.captions[i] or found.keys[i], 24)
    show_image(axes, picture, f"{caption}\nsimilarity {found.scores[i]:.2f}")
    axes.set_xlabel(f"attention {found.attention[i]:.2f}", fontsize=7.5)
    if picture is None:
        axes.set_aspect(1)
        axes.text(0.5, 0.5, "no picture\nat hand", ha="center", va="center", fontsize=7, color="#888888")


def class_bars(axes: Axes, ranking: Sequence[tuple[str, float, float]]) -> None:
    """Cosines of classes by CLIP and by reco: (name, before, after), best first."""
    places = np.arange(len(ranking))
    for offset, side, name, color in ((-0.2, 1, "CLIP", COLORS[0]), (0.2, 2, "reco", COLORS[3])):
        axes.barh(places + offset, [line[side] for line in ranking], 0.36, color=color, label=name)
    axes.set_yticks(places, [shorten(line[0], 30) for line in ranking], fontsize=7.5)
    axes.invert_yaxis()
    axes.tick_params(axis="x", labelsize=7.5)
    axes.set_xlabel("cosine", fontsize=7.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=7.5)
