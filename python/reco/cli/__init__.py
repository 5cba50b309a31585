# SPDX-License-Identifier: Apache-2.0
"""The command `reco`. Heavy imports wait until a command needs them, so that `reco --help` is quick."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from reco.cli.evaluate import eval_command
from reco.cli.explain import explain_command
from reco.cli.memory import memory_group
from reco.cli.options import (
    FOLDER,
    Group,
    flat,
    json_option,
    quiet_option,
    show,
)
from reco.cli.train import train_command


def print_cmake_dir(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    """Print the folder of recoConfig.cmake, which pip installs beside this package."""
    if not wanted:
        return
    folder = Path(__file__).parents[1] / "lib/cmake/reco"
    if not (folder / "recoConfig.cmake").is_file():
        raise click.ClickException(
            f"no C++ library in {folder}: pip install puts it there, and "
            "cmake --install BUILD --component cpp --prefix PREFIX anywhere else"
        )
    click.echo(folder)
    ctx.exit()


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads to use; all cores by default.")
@click.option(
    "--cmake-dir",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=print_cmake_dir,
    help="Print the folder for -Dreco_DIR of C++ projects and exit.",
)
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
    """Say what PATH is: a model (folder, open_clip_config.json or OpenAI's archive), a memory or a fusion."""
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
        facts = {"kind": "clip"} | reco.Clip.load(path).info()
        show(facts if as_json else flat(facts), as_json)


def parse_shard(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, int]:
    """i/n as numbers."""
    i, _, n = value.partition("/")
    if not (i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        raise click.BadParameter(f"expected i/n with 1 <= i <= n, got {value}", ctx, param)
    return int(i), int(n)


@main.command()
@click.argument("sources", type=FOLDER, nargs=-1, required=True)
@click.option("--model", type=FOLDER, required=True, help="CLIP folder.")
@click.option("--out", type=FOLDER, required=True, help="Folder for the embeddings.")
@click.option("--shard", callback=parse_shard, default="1/1", show_default=True, help="Do the i-th of n parts of it.")
@click.option("--dask", "scheduler", help="Do it on the workers of this scheduler, such as tcp://host:8786.")
@click.option("--parts", type=click.IntRange(1), help="With --dask: tasks to make; four a worker by default.")
@click.option("--shard-size", default=10_000, show_default=True, help="Samples of an output file.")
@click.option("--image-column", help="Column of a table that holds the images' paths; the usual names are found.")
@click.option("--caption-column", help="Column of a table that holds the captions; the usual names are found.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--batch-size", default=64, show_default=True, help="Items that go through the model at once.")
@json_option
@quiet_option
def embed(
    sources: tuple[Path, ...],
    model: Path,
    out: Path,
    dtype: Any,
    device: str,
    batch_size: int,
    shard: tuple[int, int],
    scheduler: str | None,
    parts: int | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Encode the pairs of SOURCES into a folder in clip-retrieval's layout.

    SOURCES are folders of captioned images, tables (.csv, .tsv, .parquet) and WebDataset shards (.tar, .tar.gz).
    Interrupted, the same command goes on where it was. Samples that cannot be read are listed in OUT/errors.
    """
    from dataclasses import asdict

    import reco
    from reco.embedding_folder import embed_to_folder

    facts: dict[str, Any] = {"out": str(out)}
    run_options: dict[str, Any] = {"device": device, "dtype": dtype, "batch_size": batch_size}
    if scheduler:
        if shard != (1, 1):
            raise click.UsageError("--dask makes the parts itself: leave --shard out")
        from reco.embedding_cluster import embed_on_dask

        summary = embed_on_dask(
            scheduler, model, sources, out, parts=parts, progress=not quiet, **run_options, **options
        )
    else:
        clip = reco.Clip.load(model, **run_options)
        facts["dim"] = clip.dim
        summary = embed_to_folder(clip, list(sources), out, shard=shard, progress=not quiet, **options)
    show(facts | asdict(summary), as_json)


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


for command in (memory_group, train_command, eval_command, explain_command):
    main.add_command(command)
