# SPDX-License-Identifier: Apache-2.0
"""Figures (matplotlib): accuracy by task, and what was found for a query."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["accuracy_bars", "gallery_row"]

COLORS = ("#9aa5b1", "#e0a458", "#7b6bb2", "#1f7a8c", "#d1495b", "#4b8f5a", "#333333")


def accuracy_bars(axes: Axes, values: Mapping[str, Sequence[Sequence[float]]], tasks: Sequence[str]) -> None:
    """Grouped bars: one group a task, one bar a system, with the deviation over seeds as a whisker.

    Parameters
    ----------
    axes : matplotlib Axes
    values : {system: [[percent a seed] a task]}
    tasks : names of the groups
    """
    width = 0.8 / len(values)
    for i, (name, groups) in enumerate(values.items()):
        means = [float(np.mean(g)) if len(g) else 0.0 for g in groups]
        spread = [float(np.std(g, ddof=1)) if len(g) > 1 else 0.0 for g in groups]
        places = np.arange(len(tasks)) + (i - (len(values) - 1) / 2) * width
        bars = axes.bar(
            places, means, width * 0.92, yerr=spread, label=name, color=COLORS[i % len(COLORS)], ecolor="#555"
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
    """One query and its neighbours with their captions."""
    show_image(axes[0], query, title, "#2b7a3d" if right else "#b3261e")
    for place, (image, caption) in zip(axes[1:], found, strict=False):
        show_image(place, image, caption)
