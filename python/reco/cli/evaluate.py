# SPDX-License-Identifier: Apache-2.0
"""The command `reco eval`."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reco.cli.options import FILE, FOLDER, json_option, quiet_option

if TYPE_CHECKING:
    from reco.evaluation import Evaluation
    from reco.evaluation.plan import Plan

NAMES = (
    "cars, cub, flowers, dogs, imagenet, places365, coco, flickr30k, oven; or of one's own: folder, labelled, "
    "captioned, webdataset."
)


def parse_similarity(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """A number, or `none`."""
    if value is None or value == "none":
        return None
    try:
        return float(value)
    except ValueError:
        raise click.BadParameter(f"expected a number or none, got {value}", ctx, param) from None


@click.command(name="eval")
@click.option("--dataset", help=f"One of {NAMES}")
@click.option("--root", type=FOLDER, help="Where the data set lies; with --all, where the file's roots begin.")
@click.option("--all", "plan_file", type=FILE, help="A TOML file that names model, memory, fusion and data sets.")
@click.option("--model", type=FOLDER, help="CLIP folder.")
@click.option("--memory", "memory_path", type=FOLDER)
@click.option("--fusion", type=FILE, help="Trained fusion; a training-free mean without it.")
@click.option("--k", type=int, help="Neighbours a query; as many as the fusion was made for without it.")
@click.option("--split", help="The one that results are published for by default.")
@click.option("--label", help="Column of a table that holds the classes ('labelled').")
@click.option("--image-column", help="Column of a table that holds the images' paths.")
@click.option("--prompts", help="Templates: a shipped file's name, a path, open_clip or clip_benchmark.")
@click.option("--classnames", help="A file, flowers, open_clip or clip_benchmark; the data set's own without it.")
@click.option(
    "--average",
    type=click.Choice(["after", "before"]),
    default="after",
    show_default=True,
    help="Average a class's prompts after or before refinement.",
)
@click.option(
    "--max-similarity",
    callback=parse_similarity,
    default="0.96",
    show_default=True,
    help="Leave out pairs of the memory whose image is nearer than this to a test image; none: leave all in.",
)
@click.option("--resamples", default=1000, show_default=True, help="Of the bootstrap.")
@click.option("--confidence", default=0.95, show_default=True, help="Of the intervals: above 0 and below 1.")
@click.option("--seed", default=0, show_default=True, help="Of the bootstrap and of the cases shown.")
@click.option("--cache", type=FOLDER, help="Folder for embeddings; ~/.cache/reco by default.")
@click.option("--out", type=FOLDER, help="Folder for JSON files, results.md and an HTML report.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--batch-size", default=64, show_default=True, help="Items that go through the model at once.")
@json_option
@quiet_option
@click.pass_context
def eval_command(context: click.Context, /, plan_file: Path | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Evaluate CLIP and reco on a data set under the same prompts, or on all that a TOML file names (--all).

    Data sets are read in the layout in which they are published; nothing is downloaded. Embeddings are cached, so that
    a second run, another k or another fusion takes seconds.
    """
    from reco.evaluation.plan import run_plan

    plan = plan_from_file(context, plan_file, options) if plan_file else plan_of(options)
    evaluations = run_plan(plan, progress=not quiet)
    if as_json:
        records = [evaluation.record(system) for evaluation in evaluations for system in ("clip", "reco")]
        click.echo(json.dumps(records, indent=1, ensure_ascii=False))
        return
    click.echo("\n\n".join(summary(evaluation) for evaluation in evaluations))


OF_ONE = ("dataset", "split", "label", "image_column")


def plan_from_file(context: click.Context, file: Path, options: dict[str, Any]) -> Plan:
    """The plan of a file; what is given on the command line takes the place of what stands there."""
    from reco.evaluation.plan import read_plan

    source = click.core.ParameterSource.COMMANDLINE
    given = {name: value for name, value in options.items() if context.get_parameter_source(name) is source}
    wrong = [f"--{name.replace('_', '-')}" for name in OF_ONE if name in given]
    if wrong:
        raise click.UsageError(f"{', '.join(wrong)} belongs into a section of {file}")
    root = given.pop("root", None)
    if "memory_path" in given:
        given["memory"] = given.pop("memory_path")
    return read_plan(file, given, root)


def plan_of(options: dict[str, Any]) -> Plan:
    """The plan that the command line names."""
    from reco.evaluation import Protocol
    from reco.evaluation.plan import Job, Plan

    needed = ("dataset", "root", "model", "memory_path")
    missing = [f"--{name.removesuffix('_path')}" for name in needed if not options[name]]

    if missing:
        raise click.UsageError(f"expected {', '.join(missing)}, or --all with a file that names them")
    protocol = Protocol(**{field.name: options[field.name] for field in fields(Protocol)})
    given = {name: options[name] for name in ("root", *OF_ONE)}
    job = Job(**given, protocol=protocol)

    shared = {name: options[name] for name in ("model", "fusion", "k", "cache", "out", "dtype", "device", "batch_size")}
    return Plan(memory=options["memory_path"], jobs=[job], **shared)


def summary(evaluation: Evaluation) -> str:
    """What a person wants to see of it."""
    from reco.evaluation.results import extremes

    counts = ", ".join(f"{n:,} {name}" for name, n in evaluation.counts.items())
    lines = [f"{evaluation.dataset} ({evaluation.split}): {counts}"]
    lines += [f"  note: {note}" for note in evaluation.notes]
    lines += setup_lines(evaluation)
    lines.append(leak_line(evaluation))
    width = max(map(len, evaluation.clip.metrics), default=0)
    lines.append(f"  {'':<{width}}  {'CLIP':>20}  {'reco':>20}  {'gain':>22}")
    for name in evaluation.clip.metrics:
        cells = [percent(s.metrics[name], s.intervals.get(name)) for s in (evaluation.clip, evaluation.reco)]

        gain = percent(evaluation.gain.metrics[name], evaluation.gain.intervals.get(name), "+")
        lines.append(f"  {name:<{width}}  {cells[0]:>20}  {cells[1]:>20}  {gain:>22}")
    gained, lost = extremes(evaluation.per_class, 5)
    for title, scores in (("gained most", gained), ("lost most", lost)):
        if scores:
            shown = ", ".join(f"{s.name} {100 * s.clip:.0f} → {100 * s.reco:.0f}" for s in scores)
            lines.append(f"  {title}: {shown}")
    seconds = evaluation.seconds
    lines.append(f"  {seconds['encoding']:.1f} s encoding, {seconds['other']:.1f} s for everything else")
    return "\n".join(lines)


def setup_lines(evaluation: Evaluation) -> list[str]:
    """Prompts and class names with their hashes."""
    lines = []
    prompts, names = evaluation.setup.get("prompts"), evaluation.setup.get("classnames")
    if prompts:
        more = f" and {len(prompts['lines']) - 1} more" if len(prompts["lines"]) > 1 else ""
        average = f"averaged {evaluation.setup['average']} refinement"
        lines.append(f"  prompts: {prompts['name']} ({prompts['hash']}): {prompts['lines'][0]!r}{more}, {average}")
    if names:
        lines.append(f"  class names: {names['name']} ({names['hash']})")
    return lines


def leak_line(evaluation: Evaluation) -> str:
    """The leak report in one line."""
    leaks = evaluation.leaks
    if leaks.max_similarity is None:
        return "  leaks: not looked for, the memory may hold test images"
    return (
        f"  leaks: {leaks.images:,} test images have near-duplicates in the memory (similarity above "
        f"{leaks.max_similarity:g}), {leaks.same:,} are in it as they are; {leaks.pairs:,} pairs left out"
    )


def percent(value: float, interval: tuple[float, float] | None, sign: str = "") -> str:
    """12.3 (11.0–13.6)."""
    shown = f"{100 * value:{sign}.2f}"
    return f"{shown} ({100 * interval[0]:{sign}.1f} to {100 * interval[1]:{sign}.1f})" if interval else shown
