# SPDX-License-Identifier: Apache-2.0
"""Runs notebooks from a clean kernel and writes them back with their outputs, free of times and of local paths."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
_ABSOLUTE = re.compile(r"(?<![\w.:/])/(?:home|Users|root|tmp|var|work|opt|mnt|usr)/[\w./-]+|\b[A-Z]:\\\\")


def notebooks() -> list[Path]:
    """All of them, in their order."""
    return sorted(HERE.glob("*.ipynb"))


def execute(notebook: Any, folder: Path = HERE, timeout: int = 600) -> Any:
    """A copy with fresh outputs.

    Parameters
    ----------
    notebook : NotebookNode
    folder : Path
        Where the kernel starts: anywhere inside the repository.
    timeout : int
        Seconds a cell may take.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        When a cell raises.
    """
    fresh = nbformat.from_dict(notebook)
    client = NotebookClient(
        fresh, timeout=timeout, kernel_name=KERNEL["name"], record_timing=False, coalesce_streams=True
    )
    client.execute(cwd=str(folder))
    return normalise(fresh)


def normalise(notebook: Any) -> Any:
    """The same cells and outputs without what changes from run to run: times, versions, random cell names."""
    cells = []
    for number, cell in enumerate(notebook.cells):
        plain = {"id": f"cell-{number:02}", "cell_type": cell.cell_type, "metadata": {}, "source": cell.source}
        if cell.cell_type == "code":
            plain |= {"execution_count": cell.execution_count, "outputs": [_plain(output) for output in cell.outputs]}
        cells.append(plain)
    metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}, "reco": {"sources": digest(notebook)}}
    return nbformat.from_dict({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5})


def _plain(output: Any) -> Any:
    return output | {"metadata": {}} if "metadata" in output else output


def digest(notebook: Any) -> str:
    """Of the sources: kept beside the outputs, it tells whether they are of these sources."""
    text = "\0".join(f"{cell.cell_type}\0{cell.source}" for cell in notebook.cells)
    return hashlib.sha256(text.encode()).hexdigest()


def texts(notebook: Any) -> Iterator[str]:
    """What the outputs say, but for pictures."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            yield from ([output["text"]] if "text" in output else [])
            yield from (str(value) for kind, value in output.get("data", {}).items() if not kind.startswith("image/"))


def local_paths(notebook: Any) -> list[str]:
    """Absolute paths that the outputs mention."""
    return [found for text in texts(notebook) for found in _ABSOLUTE.findall(text)]


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, exists=True))
def main(files: Sequence[Path]) -> None:
    """Run FILES, or all notebooks, and write them back."""
    for file in files or notebooks():
        started = time.perf_counter()
        notebook = execute(nbformat.read(file, as_version=4))
        if found := local_paths(notebook):
            raise click.ClickException(f"{file.name}: outputs mention paths of this machine: {', '.join(found)}")
        nbformat.write(notebook, file)
        click.echo(f"{file.name}: {time.perf_counter() - started:.0f} s, {file.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
