# SPDX-License-Identifier: Apache-2.0
"""The command `reco explain`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from reco.cli.options import FILE, json_option, model_options, open_model


@click.command(name="explain")
@click.argument("query")
@model_options
@click.option("--class", "classes", multiple=True, metavar="NAME", help="A class to score before and after; repeat it.")
@click.option("--classes", "class_file", type=FILE, help="File with a class name a line.")
@click.option("--template", "templates", multiple=True, default=["{}"], show_default=True, help="Prompt of a class.")
@click.option("--html", type=FILE, help="Write a page to this file; it needs no network.")
@click.option("--plot", type=FILE, help="Write a figure to this file (.png, .svg, .pdf).")
@json_option
def explain_command(
    query: str,
    model: Path,
    memory_path: Path,
    fusion: Path | None,
    k: int | None,
    classes: tuple[str, ...],
    class_file: Path | None,
    templates: tuple[str, ...],
    html: Path | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Say what reco looked up for QUERY (an image file, or else a text), how much it counted and what it changed."""
    names = [*classes, *(read_lines(class_file) if class_file else [])]
    refined = open_model(model, memory_path, fusion, k)
    is_image = looks_like_file(query)
    found = refined.explain(
        query if is_image else None, text=None if is_image else query, classes=names, templates=templates
    )
    click.echo(found.to_json() if as_json else repr(found))
    for file, write in ((html, found.save_html), (plot, lambda path: found.plot().savefig(path, dpi=150))):
        if file:
            write_file(file, write)


def write_file(file: Path, write: Callable[[Path], None]) -> None:
    """Write it and say so, or say why not."""
    try:
        write(file)
    except (OSError, ValueError) as error:
        raise click.ClickException(f"[explain] cannot write {file}: {error}") from None
    click.echo(f"written: {file}", err=True)


def looks_like_file(query: str) -> bool:
    """Whether a file is meant: one that is there, or a name that ends as image files do, to be missed by its reader."""
    return Path(query).is_file() or query.lower().endswith((".jpg", ".jpeg", ".png", ".webp"))


def read_lines(file: Path) -> list[str]:
    """The lines that are not empty."""
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"[explain] cannot read class names from {file}: {error}") from None
    return [line.strip() for line in lines if line.strip()]
