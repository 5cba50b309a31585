# SPDX-License-Identifier: Apache-2.0
"""Tables (Markdown, CSV) and figures of the experiments' results."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from reco.plotting import COLORS

FIGURES = ("unseen", "known", "harmonic", "generic", "text_to_image")
TITLES = {
    "main": "Main table: all entities are candidates",
    "modes": "What is searched and what is fused",
    "k": "Neighbours a query, at inference",
    "ablation": "One thing changed: ours with half its epochs, k = 10 and no layer, unless said otherwise",
    "layers": "Encoder layers of ours, and what the paper leaves open of its own",
    "size": "Share of the memory that is there",
    "amount": "Concepts that training has",
    "storage": "How the memory keeps its rows",
    "capacity": "As many weights as the paper's layer, and no memory",
    "wrong": "Share of captions that are wrong",
    "missing": "Share of a query's own concept that is missing from the memory",
    "swap": "Memories that training did not see",
    "cost": "Cost, by memory size and k (two threads, exact search)",
}
CURVES = {
    "wrong": "share of captions that are wrong",
    "missing": "share of relevant pairs missing",
    "k": "neighbours",
    "size": "share of memory",
    "amount": "training concepts",
}


@dataclass(frozen=True)
class Row:
    """One measurement: figures in percent, or times."""

    experiment: str
    variant: str
    seed: int
    x: float | None
    metrics: dict[str, Any]
    commit: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


Key = tuple[str, float | None]


def grouped(rows: Sequence[Row], experiment: str) -> dict[Key, list[Row]]:
    """Rows of one experiment by variant and x, seeds together, in order of appearance."""
    out: dict[Key, list[Row]] = {}
    for row in rows:
        if row.experiment == experiment:
            out.setdefault((row.variant, row.x), []).append(row)
    return dict(sorted(out.items(), key=lambda item: -1.0 if item[0][1] is None else item[0][1]))


def cell(rows: Sequence[Row], metric: str) -> str:
    """Mean ± standard deviation over the seeds."""
    values = [row.metrics[metric] for row in rows if metric in row.metrics]
    if not values:
        return "–"
    text = f"{np.mean(values):.1f}" if np.mean(values) >= 1 or not np.mean(values) else f"{np.mean(values):.3f}"
    return f"{text} ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else text


def table(rows: Sequence[Row], experiment: str) -> list[str]:
    """One experiment as a Markdown table."""
    groups = grouped(rows, experiment)
    metrics = [m for m in next(iter(groups.values()))[0].metrics] if experiment == "cost" else list(FIGURES)
    with_x = any(x is not None for _, x in groups)
    head = ["", *(["at"] if with_x else []), *(m.replace("_", " ") for m in metrics), "seeds"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for (variant, x), group in groups.items():
        cells = [variant, *([f"{x:g}" if x is not None else ""] if with_x else [])]
        cells += [cell(group, m) for m in metrics] + [str(len(group))]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def calibration_table(rows: Sequence[Row]) -> list[str]:
    """Confidence against truth, the seeds' mean of each bin."""
    bins: dict[int, list[list[float]]] = {}
    for row in rows:
        for entry in row.metrics["bins"]:
            bins.setdefault(min(int(10 * entry[0]), 9), []).append(entry)
    lines = ["| confidence | a partner is true | CLIP right | reco right | queries |", "|---|---|---|---|---|"]
    for place in sorted(bins):
        count = np.array([e[4] for e in bins[place]])
        mean = (np.array([e[:4] for e in bins[place]]) * count[:, None]).sum(0) / count.sum()
        lines.append(
            "| " + " | ".join([f"{mean[0]:.2f}", *(f"{100 * v:.1f}" for v in mean[1:]), f"{count.mean():.0f}"]) + " |"
        )
    error = np.mean([row.metrics["expected_calibration_error"] for row in rows])
    return [*lines, "", f"Expected calibration error {error:.1f} %."]


def kept(rows: Sequence[Row]) -> list[str]:
    """How much of its gain over CLIP each fusion keeps at 30 % wrong captions, in the harmonic mean."""
    clip = [row.metrics["harmonic"] for row in rows if row.experiment == "main" and row.variant == "clip"]
    lines = []
    for name in ("mean", "reco-paper", "reco"):
        at = {x: group for (v, x), group in grouped(rows, "wrong").items() if v == name}
        if clip and 0.0 in at and 0.3 in at:
            clean, wrong = (np.mean([r.metrics["harmonic"] for r in at[x]]) for x in (0.0, 0.3))
            lines.append(f"- {name}: {100 * (wrong - clip[0]) / (clean - clip[0]):.0f} %")
    return ["Kept of the gain in the harmonic mean at 0.3:", "", *lines, ""] if lines else []


def mean_of(rows: Sequence[Row], experiment: str, variant: str, metric: str, x: float | None = None) -> float:
    """Over the seeds; nan where nothing was measured."""
    found = [r.metrics.get(metric) for r in rows if (r.experiment, r.variant, r.x) == (experiment, variant, x)]
    return float(np.mean([v for v in found if v is not None])) if found else float("nan")


def aims(rows: Sequence[Row]) -> list[str]:
    """What was hoped for beside what was measured."""
    main = partial(mean_of, rows, "main")
    noisy = partial(mean_of, rows, "wrong", "reco", x=1.0)
    clip = {metric: main("clip", metric) for metric in FIGURES}
    lines = ["| aim | measured | met |", "|---|---|---|"]

    def aim(text: str, measured: dict[str, float], met: bool) -> None:
        figures = ", ".join(f"{name} {value:+.1f}" for name, value in measured.items())
        lines.append(f"| {text} | {figures} | {'yes' if met else '**no**'} |")

    ahead = {m: main("reco", m) - main("reco-paper", m) for m in FIGURES}
    aim("at least the paper's layer on a clean memory, points", ahead, min(ahead.values()) >= 0)
    lost = {m: noisy(m) - clip[m] for m in ("unseen", "known", "generic")}
    aim("within 1 point of CLIP with every caption wrong", lost, min(lost.values()) >= -1)
    generic = main("reco", "generic") - clip["generic"]
    aim("within 1 point of CLIP on the generic task", {"generic": generic}, generic >= -1)
    gain = {m: main("reco", m) - clip[m] for m in ("harmonic", "unseen")}
    share = {m: 100 * (mean_of(rows, "wrong", "reco", m, 0.3) - clip[m]) / g for m, g in gain.items()}
    aim("80 % of the gain kept at 30 % wrong captions, %", share, share["harmonic"] >= 80)
    way = {m: 100 * g / (main("oracle", m) - clip[m]) for m, g in gain.items()}
    aim("80 % of the way from CLIP to the oracle, %", way, min(way.values()) >= 80)
    for name in ("mean", "mean, chosen as ours", "vote", "logit blend"):
        beaten = {m: main("reco", m) - main(name, m) for m in ("harmonic", "unseen", "known")}
        aim(f"ahead of the training-free {name}, points", beaten, beaten["harmonic"] > 0)
    return lines


def commits(rows: Sequence[Row], experiment: str) -> str:
    """The commits that an experiment was measured with."""
    found = ", ".join(dict.fromkeys(row.commit for row in rows if row.experiment == experiment))
    return f"Measured with commit {found}."


def markdown(rows: Sequence[Row]) -> str:
    """All tables."""
    lines = [
        "# Experiments on the icons world",
        "",
        "`python examples/icons/experiments.py` makes this file. Accuracy in",
    ]
    lines[-1] += " %, mean ± standard deviation over the seeds."
    for name, title in TITLES.items():
        if any(row.experiment == name for row in rows):
            lines += ["", f"## {title}", "", commits(rows, name), "", *table(rows, name)]
            lines += ["", *kept(rows)] if name == "wrong" else []
            lines += ["", f"![{title}]({name}.png)"] if name in CURVES else []
    calibrated = [row for row in rows if row.experiment == "calibration"]
    if calibrated:
        lines += ["", "## Does the confidence know when the memory is wrong?", "", commits(rows, "calibration"), ""]
        lines += calibration_table(calibrated)
    if {"main", "wrong"} <= {row.experiment for row in rows}:
        lines += ["", "## What was hoped for", "", *aims(rows)]
    return "\n".join(lines) + "\n"


def curve(rows: Sequence[Row], experiment: str, label: str, path: Path) -> None:
    """Unseen, known and harmonic mean against x, one line a fusion."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    axes: Any = figure.subplots(1, 3)
    groups = grouped(rows, experiment)
    clip = [row for row in rows if row.experiment == "main" and row.variant == "clip"]
    for place, metric in zip(axes, ("unseen", "known", "harmonic"), strict=True):
        for i, name in enumerate(dict.fromkeys(variant for variant, _ in groups)):
            points = [
                (x, [r.metrics[metric] for r in g]) for (v, x), g in groups.items() if v == name and x is not None
            ]
            spread = [np.std(v, ddof=1) if len(v) > 1 else 0.0 for _, v in points]
            color = COLORS[(i + 1) % len(COLORS)]
            place.errorbar(
                [x for x, _ in points],
                [np.mean(v) for _, v in points],
                spread,
                label=name,
                color=color,
                marker="o",
                ms=3,
            )
        if clip:
            place.axhline(clip[0].metrics[metric], color=COLORS[0], ls="--", label="clip")
        place.set_xlabel(label)
        place.set_title(metric)
        place.spines[["top", "right"]].set_visible(False)
        if experiment in ("size", "amount"):
            place.set_xscale("log")
    axes[0].set_ylabel("accuracy, %")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=100)


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Every number on a line of its own."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["experiment", "variant", "x", "seed", "metric", "value", "commit"])
        for row in rows:
            for metric, value in row.metrics.items():
                if isinstance(value, int | float):
                    writer.writerow([row.experiment, row.variant, row.x, row.seed, metric, round(value, 4), row.commit])


def write_all(rows: Sequence[Row], out: Path) -> None:
    """results.md, results.csv and the figures."""
    mpl.rcParams["font.size"] = 9
    (out / "results.md").write_text(markdown(rows), "utf-8")
    write_csv(rows, out / "results.csv")

    for name, label in CURVES.items():
        if any(row.experiment == name for row in rows):
            curve(rows, name, label, out / f"{name}.png")
