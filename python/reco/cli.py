# SPDX-License-Identifier: Apache-2.0
"""The command `reco`. Heavy imports wait until a command needs them, so that `reco --help` is quick."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import reco
    from reco.embedding import Embeddings

FOLDER = click.Path(path_type=Path)
FILE = click.Path(path_type=Path)
json_option = click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
quiet_option = click.option("--quiet", is_flag=True, help="No progress bar.")


class Group(click.Group):
    """Turns a reco.Error into one line and exit code 1; Ctrl-C into exit code 130."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except RuntimeError as error:
            from reco import Error

            if not isinstance(error, Error):
                raise
            raise click.ClickException(str(error)) from None
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(130)


def show(result: dict[str, Any], as_json: bool) -> None:
    """Print a result as JSON or as aligned lines."""
    if as_json:
        click.echo(json.dumps(result, indent=1))
        return
    width = max(map(len, result), default=0)
    for name, value in result.items():
        click.echo(f"{name:<{width}}  {json.dumps(value) if isinstance(value, dict | list) else value}")


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads to use; all cores by default.")
@click.version_option(package_name="reco-clip")
def main(threads: int | None) -> None:
    """Make a frozen CLIP model better by letting it look things up."""
    if threads:
        import reco

        reco.set_threads(threads)


@main.command()
@click.argument("path", type=FOLDER)
@json_option
def info(path: Path, as_json: bool) -> None:
    """Say what PATH is: a CLIP folder, a memory or a fusion."""
    import reco

    if (path / "memory.sqlite").exists():
        with reco.Memory.open(path, read_only=True) as memory:
            show({"kind": "memory"} | memory.info(), as_json)
    elif path.suffix == ".safetensors" and path.is_file():
        fusion = reco.Fusion.load(path)
        facts = {"method": fusion.config.method, "dim": fusion.config.dim, "k": fusion.config.k}
        size = {"parameters": fusion.parameters, "encoder": fusion.encoder}
        show({"kind": "fusion"} | facts | size | {"provenance": fusion.provenance}, as_json)
    else:
        show({"kind": "clip"} | reco.Clip.load(path).info(), as_json)


# --- memory ----------------------------------------------------------------------------------------------------------
@main.group()
def memory() -> None:
    """Make, fill and check memories."""


@memory.command()
@click.argument("path", type=FOLDER)
@click.option("--model", type=FOLDER, required=True, help="CLIP folder whose embeddings it will hold.")
def create(path: Path, model: Path) -> None:
    """Make an empty memory at PATH."""
    import reco

    clip = reco.Clip.load(model)
    reco.Memory.create(path, dim=clip.dim, encoder=clip.fingerprint)


@memory.command()
@click.argument("path", type=FOLDER)
@click.argument("sources", type=FOLDER, nargs=-1, required=True)
@click.option("--model", type=FOLDER, required=True, help="CLIP folder that made the memory's embeddings.")
@json_option
@quiet_option
def add(path: Path, sources: tuple[Path, ...], model: Path, as_json: bool, quiet: bool) -> None:
    """Encode the pairs of SOURCES (WebDataset shards, folders of captioned images) into the memory at PATH."""
    import reco
    from reco.datasets import read_samples
    from reco.embedding import add_samples

    clip = reco.Clip.load(model)
    with reco.Memory.open(path, encoder=clip.fingerprint) as store:
        added = add_samples(store, clip, read_samples(*sources), progress=not quiet)
        show({"added": added, "rows": len(store)}, as_json)


@memory.command()
@click.argument("path", type=FOLDER)
@click.argument("keys", nargs=-1, required=True)
@json_option
def remove(path: Path, keys: tuple[str, ...], as_json: bool) -> None:
    """Remove the pairs KEYS from the memory at PATH."""
    import reco

    with reco.Memory.open(path) as store:
        store.remove(list(keys))
        show({"removed": len(keys), "rows": len(store)}, as_json)


@memory.command(name="info")
@click.argument("path", type=FOLDER)
@json_option
def memory_info(path: Path, as_json: bool) -> None:
    """Say what the memory at PATH holds."""
    import reco

    with reco.Memory.open(path, read_only=True) as store:
        show(store.info(), as_json)


@memory.command()
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


# --- work ------------------------------------------------------------------------------------------------------------
@main.command()
@click.argument("sources", type=FOLDER, nargs=-1, required=True)
@click.option("--model", type=FOLDER, required=True, help="CLIP folder.")
@click.option("--out", type=FILE, required=True, help="The .npz file to write.")
@json_option
@quiet_option
def embed(sources: tuple[Path, ...], model: Path, out: Path, as_json: bool, quiet: bool) -> None:
    """Encode the pairs of SOURCES into one .npz file: images, texts, keys, captions, metadata (JSON)."""
    import numpy as np

    import reco
    from reco.datasets import read_samples
    from reco.embedding import embed as embed_samples

    pairs = embed_samples(reco.Clip.load(model), read_samples(*sources), progress=not quiet)
    metadata = [json.dumps(entry) for entry in pairs.metadata]
    np.savez(out, images=pairs.images, texts=pairs.texts, keys=pairs.keys, captions=pairs.captions, metadata=metadata)
    show({"pairs": len(pairs), "dim": pairs.images.shape[1], "out": str(out)}, as_json)


def concept_numbers(pairs: Embeddings) -> list[int]:
    """Number concepts by the metadata's `concept`, where there is one, else by the caption."""
    names = [str(m.get("concept", caption)) for m, caption in zip(pairs.metadata, pairs.captions, strict=True)]
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return [numbers[name] for name in names]


@main.command()
@click.argument("sources", type=FOLDER, nargs=-1, required=True)
@click.option("--model", type=FOLDER, required=True, help="CLIP folder.")
@click.option("--memory", "memory_path", type=FOLDER, required=True, help="Memory to look up in while training.")
@click.option("--out", type=FILE, required=True, help="The .safetensors file to write.")
@click.option("--method", type=click.Choice(["gated", "transformer", "mean"]), default="gated", show_default=True)
@click.option("--k", default=10, show_default=True, help="Neighbours a query.")
@click.option("--layers", default=1, show_default=True)
@click.option("--heads", default=8, show_default=True)
@click.option("--epochs", default=10, show_default=True)
@click.option("--batch-size", default=4096, show_default=True)
@click.option("--learning-rate", default=1e-3, show_default=True)
@click.option("--layer-rate", default=0.1, show_default=True, help="Of it, for the layers of 'gated'.")
@click.option("--weight-decay", default=0.01, show_default=True)
@click.option("--loss", nargs=3, default=(1.0, 1.0, 1.0), show_default=True, type=float, help="NCE weights.")
@click.option("--learn-scale", is_flag=True, help="Train the loss's logit scale too.")
@click.option("--max-similarity", type=float, help="Image neighbours above it are near-duplicates, left out.")
@click.option("--validation", default=0.1, show_default=True, help="Share of concepts held out.")
@click.option("--seed", default=0, show_default=True)
@click.option("--log", type=FILE, help="CSV learning curve.")
@click.option("--checkpoint", type=FILE, help="File to write to and to resume from.")
@json_option
@quiet_option
def train(
    sources: tuple[Path, ...],
    model: Path,
    memory_path: Path,
    out: Path,
    as_json: bool,
    quiet: bool,
    method: Any,
    k: int,
    layers: int,
    heads: int,
    **options: Any,
) -> None:
    """Train a fusion on the pairs of SOURCES."""
    import reco
    from reco.datasets import read_samples
    from reco.embedding import embed as embed_samples
    from reco.embedding import train_on

    clip = reco.Clip.load(model)
    shape = reco.FusionConfig(method=method, dim=clip.dim, k=k, layers=layers, heads=heads)
    given = {name: value for name, value in options.items() if value is not None}
    config = reco.TrainingConfig(fusion=shape, logit_scale=clip.logit_scale, **given)
    pairs = embed_samples(clip, read_samples(*sources), progress=not quiet)
    with reco.Memory.open(memory_path, read_only=True, encoder=clip.fingerprint) as store:
        fusion = train_on(pairs, store, config, concepts=concept_numbers(pairs), progress=not quiet)
    fusion.save(out)
    facts = fusion.provenance
    show({"out": str(out)} | {n: facts[n] for n in ("rows", "best_epoch", "validation_accuracy")}, as_json)


def open_model(model: Path, memory_path: Path, fusion: Path | None, k: int) -> reco.Model:
    """A model with its fusion; without one, a training-free mean."""
    import reco

    clip = reco.Clip.load(model)
    store = reco.Memory.open(memory_path, read_only=True)
    return reco.Model(clip, store, reco.Fusion.load(fusion) if fusion else reco.Fusion.mean(clip.dim), k=k)


def model_options(command: Any) -> Any:
    """Add --model, --memory, --fusion and --k to a command."""
    for option in (
        click.option("--k", default=10, show_default=True, help="Neighbours a query."),
        click.option("--fusion", type=FILE, help="Trained fusion; a training-free mean without it."),
        click.option("--memory", "memory_path", type=FOLDER, required=True),
        click.option("--model", type=FOLDER, required=True, help="CLIP folder."),
    ):
        command = option(command)
    return command


@main.command(name="eval")
@click.argument("sources", type=FOLDER, nargs=-1, required=True)
@model_options
@click.option("--label", default="concept", show_default=True, help="Field of the metadata that holds the class name.")
@click.option("--template", "templates", multiple=True, default=["{}"], show_default=True)
@click.option("--dataset", default="custom", show_default=True)
@click.option("--out", type=FILE, help="Write the records to this JSON file.")
@json_option
@quiet_option
def evaluate(
    sources: tuple[Path, ...],
    model: Path,
    memory_path: Path,
    fusion: Path | None,
    k: int,
    label: str,
    templates: tuple[str, ...],
    dataset: str,
    out: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Zero-shot classification of SOURCES by CLIP and by reco, under the same prompts."""
    import reco
    from reco.datasets import read_samples
    from reco.embedding import embed as embed_samples
    from reco.evaluation import Record, encode_classes, write_report

    refined = open_model(model, memory_path, fusion, k)
    pairs = embed_samples(refined.clip, read_samples(*sources), progress=not quiet)
    names = [str(entry.get(label, caption)) for entry, caption in zip(pairs.metadata, pairs.captions, strict=True)]
    classes = sorted(set(names))
    labels = [classes.index(name) for name in names]
    records = []
    for name, encoder, images in (
        ("clip", refined.clip, pairs.images),
        ("reco", refined, refined.refine_images(pairs.images)),
    ):
        metrics, _ = reco.classify(images, encode_classes(encoder, classes, templates), labels)
        records.append(Record(dataset, name, metrics))
    if out:
        write_report(records, out)
    if as_json:
        click.echo(json.dumps([record.as_dict() for record in records], indent=1))
        return
    click.echo(f"{len(labels)} images, {len(classes)} classes")
    for record in records:
        click.echo(record.model.ljust(6) + "".join(f"  {n} {100 * v:6.2f} %" for n, v in record.metrics.items()))


@main.command()
@click.argument("query")
@click.option("--model", type=FOLDER, required=True, help="CLIP folder.")
@click.option("--memory", "memory_path", type=FOLDER, required=True)
@click.option("--k", default=10, show_default=True)
@json_option
def search(query: str, model: Path, memory_path: Path, k: int, as_json: bool) -> None:
    """The memory's pairs nearest to QUERY: an image file, or else a text."""
    import reco

    clip = reco.Clip.load(model)
    is_image = Path(query).is_file()
    embedding = clip.encode_images([query]) if is_image else clip.encode_texts([query])
    with reco.Memory.open(memory_path, read_only=True, encoder=clip.fingerprint) as store:
        found = store.search(embedding, k=k, modality="image" if is_image else "text", partners=False)
        rows = [
            {"key": key, "similarity": round(float(score), 4), "caption": caption}
            for key, score, caption in zip(found.keys[0], found.scores[0], found.captions[0], strict=True)
            if key
        ]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    else:
        for row in rows:
            click.echo(f"{row['similarity']:.4f}  {row['key']}  {row['caption']}")


@main.command()
@click.argument("query")
@model_options
@json_option
def explain(query: str, model: Path, memory_path: Path, fusion: Path | None, k: int, as_json: bool) -> None:
    """Say what reco looked up for QUERY (an image file, or else a text) and how much it counted."""
    refined = open_model(model, memory_path, fusion, k)
    found = refined.explain(query) if Path(query).is_file() else refined.explain(text=query)
    if not as_json:
        click.echo(repr(found))
        return
    neighbors = [
        {"key": key, "caption": caption, "similarity": float(score), "attention": attention}
        for key, caption, score, attention in zip(
            found.keys, found.captions, found.scores, found.attention, strict=True
        )
        if key
    ]
    click.echo(json.dumps({"modality": found.modality, "gate": found.gate, "neighbors": neighbors}, indent=1))


if __name__ == "__main__":
    main()
