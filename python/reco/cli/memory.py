# SPDX-License-Identifier: Apache-2.0
"""The commands `reco memory`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from reco.cli.options import FILE, FOLDER, json_option, quiet_option, show


@click.group(name="memory")
def memory_group() -> None:
    """Make, fill and check memories."""


@memory_group.command()
@click.argument("path", type=FOLDER)
@click.option("--model", type=FOLDER, required=True, help="CLIP folder whose embeddings it will hold.")
@click.option(
    "--storage",
    type=click.Choice(["float16", "int8", "codes4", "codes2", "codes1"]),
    default="float16",
    show_default=True,
    help="How embeddings are kept: 16, 8, 4, 2 or 1 bits a number.",
)
def create(path: Path, model: Path, storage: Any) -> None:
    """Make an empty memory at PATH."""
    import reco

    clip = reco.Clip.load(model)
    reco.Memory.create(path, dim=clip.dim, encoder=clip.fingerprint, storage=storage)


@memory_group.command()
@click.argument("path", type=FOLDER)
@click.argument("sources", type=FOLDER, nargs=-1, required=True)
@click.option("--model", type=FOLDER, required=True, help="CLIP folder that made the memory's embeddings.")
@json_option
@quiet_option
def add(path: Path, sources: tuple[Path, ...], model: Path, as_json: bool, quiet: bool) -> None:
    """Encode the pairs of SOURCES (folders of captioned images, tables, WebDataset shards) into the memory at PATH."""
    import reco
    from reco.datasets import read_samples
    from reco.embedding import add_samples

    clip = reco.Clip.load(model)
    with reco.Memory.open(path, encoder=clip.fingerprint) as store:
        added = add_samples(store, clip, read_samples(*sources), progress=not quiet)
        show({"added": added, "rows": len(store)}, as_json)


@memory_group.command()
@click.argument("path", type=FOLDER)
@click.argument("keys", nargs=-1, required=True)
@json_option
def remove(path: Path, keys: tuple[str, ...], as_json: bool) -> None:
    """Remove the pairs KEYS from the memory at PATH."""
    import reco

    with reco.Memory.open(path) as store:
        store.remove(list(keys))
        show({"removed": len(keys), "rows": len(store)}, as_json)


@memory_group.command()
@click.argument("path", type=FOLDER)
@click.option("--index", default="auto", show_default=True, help="'auto', 'exact' or a factory string of FAISS.")
@click.option("--recall", type=float, default=0.95, show_default=True, help="Share of the nearest pairs to find.")
@click.option("--k", type=int, default=10, show_default=True, help="Neighbours that recall counts.")
@click.option("--max-bytes", type=int, help="Bytes that searching one side may keep in memory.")
@click.option("--max-build-bytes", type=int, help="Bytes that building may take.")
@click.option("--seed", type=int, default=0, show_default=True)
@json_option
@quiet_option
def optimize(path: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Build an index over the memory at PATH, so that searches are fast."""
    import reco

    with reco.Memory.open(path) as store:
        indexes = store.optimize(progress=not quiet, **options)
    if as_json:
        show({"indexes": indexes}, as_json)
        return
    for index in indexes:
        click.echo(
            f"{index['modality']:<6} {index['index']:<16} {index['rows']:>12,} rows  {index['bytes'] / 1e6:>9.1f} MB  "
            f"recall@{options['k']} {index['recall']:.3f}  {1e3 * index['search_seconds']:.2f} ms a query  "
            f"built in {index['build_seconds']:.1f} s"
        )


@memory_group.command(name="info")
@click.argument("path", type=FOLDER)
@json_option
def memory_info(path: Path, as_json: bool) -> None:
    """Say what the memory at PATH holds."""
    import reco

    with reco.Memory.open(path, read_only=True) as store:
        show(store.info(), as_json)


@memory_group.command()
@click.argument("path", type=FOLDER)
@json_option
def verify(path: Path, as_json: bool) -> None:
    """Check every file of the memory at PATH; exit code 1 when something is wrong."""
    import reco

    with reco.Memory.open(path, read_only=True) as store:
        faults = store.verify()
    if as_json:
        click.echo(json.dumps({"faults": faults}, indent=1))
    else:
        click.echo("\n".join(faults) or "ok")
    sys.exit(1 if faults else 0)


@memory_group.command(name="import")
@click.argument("path", type=FOLDER)
@click.argument("folders", type=FOLDER, nargs=-1, required=True)
@click.option("--in-place", is_flag=True, help="Leave the embeddings where they are; they must stay there unchanged.")
@json_option
@quiet_option
def import_(path: Path, folders: tuple[Path, ...], in_place: bool, as_json: bool, quiet: bool) -> None:
    """Add the embeddings in FOLDERS, which `reco embed` or clip-retrieval wrote, to the memory at PATH.

    The memory must be there: `reco memory create` with the same model. Pairs whose keys are there are skipped.
    """
    import reco
    from reco.exchange import import_embeddings

    with reco.Memory.open(path) as store:
        added = import_embeddings(store, *folders, in_place=in_place, progress=not quiet)
        show({"added": added, "rows": len(store)}, as_json)


@memory_group.command()
@click.argument("path", type=FOLDER)
@click.argument("folder", type=FOLDER)
@json_option
@quiet_option
def export(path: Path, folder: Path, as_json: bool, quiet: bool) -> None:
    """Write the pairs of the memory at PATH to FOLDER in clip-retrieval's layout."""
    import reco
    from reco.exchange import export_memory

    with reco.Memory.open(path, read_only=True) as store:
        show({"written": export_memory(store, folder, progress=not quiet)}, as_json)


@memory_group.command()
@click.argument("path", type=FOLDER)
@click.argument("file", type=FILE)
@click.option("--modality", type=click.Choice(["image", "text"]), required=True, help="The side that it is over.")
@click.option("--recall", type=float, default=0.95, show_default=True, help="Share of the nearest pairs to find.")
@json_option
def adopt_index(path: Path, file: Path, modality: Any, recall: float, as_json: bool) -> None:
    """Take over FILE, an index that FAISS wrote over the pairs of the memory at PATH, in their order.

    Such as clip-retrieval's image.index and text.index, after `reco memory import` into an empty memory. The file is
    copied, and checked in a process of its own first.
    """
    import reco

    with reco.Memory.open(path) as store:
        show(store.adopt_index(file, modality, recall), as_json)


@memory_group.command()
@click.argument("path", type=FOLDER)
@click.option("--against", type=FOLDER, help="Another memory, a folder of embeddings, or pictures (with --model).")
@click.option("--model", type=FOLDER, help="CLIP folder that made the memory's embeddings, for pictures.")
@click.option("--min-similarity", type=float, default=0.96, show_default=True)
@click.option("--modality", type=click.Choice(["image", "text"]), default="image", show_default=True)
@click.option("--csv", "csv_path", type=FILE, help="Write the table to this file.")
@click.option("--html", "html_path", type=FILE, help="Write a contact sheet to this file: one page, with pictures.")
@json_option
@quiet_option
def duplicates(
    path: Path,
    against: Path | None,
    model: Path | None,
    min_similarity: float,
    modality: Any,
    csv_path: Path | None,
    html_path: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """List the pairs of the memory at PATH that are nearly the same, or that another set has too.

    With --against a test set, this is a leak check.
    """
    from dataclasses import asdict

    import reco
    from reco.duplicates import contact_sheet, find_duplicates, write_csv

    clip = reco.Clip.load(model) if model else None
    with reco.Memory.open(path, read_only=True) as store:
        found = find_duplicates(
            store, against, clip=clip, min_similarity=min_similarity, modality=modality, progress=not quiet
        )
    if csv_path:
        write_csv(found, csv_path)
    if html_path:
        title = f"Near-duplicates in {path.name}" + (f" and {against.name}" if against else "")
        html_path.write_text(contact_sheet(found, title), "utf-8")
    if as_json:
        click.echo(json.dumps({"duplicates": [asdict(match) for match in found]}, indent=1, ensure_ascii=False))
    elif not (csv_path or html_path):
        for match in found:
            click.echo(
                f"{match.similarity:.4f}  {match.key}  {match.other_key}  {match.caption!r}  {match.other_caption!r}"
            )
    click.echo(f"{len(found):,} near-duplicates", err=True)


@memory_group.command()
@click.argument("path", type=FOLDER)
def compact(path: Path) -> None:
    """Give back the space of removed pairs of the memory at PATH."""
    import reco

    with reco.Memory.open(path) as store:
        store.compact()


@memory_group.command()
@click.argument("path", type=FOLDER)
@json_option
def repair(path: Path, as_json: bool) -> None:
    """Keep what is intact of a damaged memory at PATH, and say what is lost."""
    import reco

    lost = reco.Memory.repair(path)
    if as_json:
        click.echo(json.dumps({"lost": lost}, indent=1))
    else:
        click.echo("\n".join(lost) or "nothing is lost")
