# SPDX-License-Identifier: Apache-2.0
"""The command `reco train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reco.cli.options import FILE, FOLDER, json_option, quiet_option, show

if TYPE_CHECKING:
    from reco.embedding import Embeddings


def concept_numbers(pairs: Embeddings) -> list[int]:
    """Number concepts by the metadata's `concept`, where there is one, else by the caption."""
    names = [str(m.get("concept", caption)) for m, caption in zip(pairs.metadata, pairs.captions, strict=True)]
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return [numbers[name] for name in names]


FUSION_OPTIONS = (
    click.option("--method", type=click.Choice(["gated", "transformer", "mean"])),
    click.option("--k", type=int, help="Neighbours a query."),
    click.option("--search", type=click.Choice(["uni-modal", "cross-modal"]), help="Side of the memory searched."),
    click.option("--fuse", type=click.Choice(["partner", "same", "both"]), help="Side of a neighbour that is fused."),
    click.option("--sides", type=click.Choice(["both", "image", "text"]), help="Queries that are refined."),
    click.option("--layers", type=int, help="Encoder layers, 0 to 4."),
    click.option("--heads", type=int, help="Attention heads; must divide the embeddings' width."),
    click.option("--mlp-ratio", type=float, help="Hidden width of a layer's MLP over that of the embeddings."),
    click.option("--positions/--no-positions", default=None, help="Learned rank positions ('transformer')."),
    click.option("--similarity/--no-similarity", default=None, help="Similarities go into the layers too."),
    click.option("--relevance/--no-relevance", default=None, help="A free logit for each neighbour ('gated')."),
    click.option("--metric/--no-metric", default=None, help="Compare images after a learned linear map ('gated')."),
    click.option("--residual/--no-residual", default=None, help="Add the result to the query ('transformer')."),
    click.option("--shared/--separate", default=None, help="Weights of the two sides."),
    click.option("--gate-width", type=int, help="Hidden units of the gate's networks ('gated')."),
)
TRAINING_OPTIONS = (
    click.option("--batch-size", type=int, help="Pairs a step."),
    click.option("--micro-batch", type=int, help="Pairs whose gradients are held at a time; 0: all."),
    click.option("--epochs", type=int),
    click.option("--learning-rate", type=float),
    click.option("--layer-rate", type=float, help="Of it, for the layers of 'gated'."),
    click.option("--gate-rate", type=float, help="Of it, for trust and confidence of 'gated'."),
    click.option("--wrong-captions", type=float, help="Share of pairs whose neighbours get wrong captions."),
    click.option("--random-rows", type=float, help="Share of pairs whose neighbours are replaced."),
    click.option("--dropped", type=float, help="Share of pairs that lose neighbours."),
    click.option("--random-k", type=float, help="Share of pairs cut to their first few neighbours."),
    click.option("--shrinkage", type=float, help="How far the metric stays with plain cosines."),
    click.option("--warmup", type=float, help="Share of the steps that warm up."),
    click.option("--weight-decay", type=float),
    click.option("--loss", nargs=3, type=float, help="Weights of NCE(v^, t^), NCE(v^, t) and NCE(v, t^)."),
    click.option("--logit-scale", type=float, help="Factor on cosines in the loss; CLIP's own by default."),
    click.option("--learn-scale/--fix-scale", default=None, help="Train that factor too."),
    click.option("--precision", type=click.Choice(["float32", "bfloat16"]), help="Of the encoder layers."),
    click.option("--device", help="Where steps are computed: cpu, cuda or cuda:N."),
    click.option("--max-similarity", type=float, help="Image neighbours above it are near-duplicates, left out."),
    click.option("--validation", type=float, help="Share of concepts held out."),
    click.option("--seed", type=int),
    click.option("--log", type=FILE, help="CSV learning curve."),
    click.option("--tensorboard", type=FOLDER, help="Folder for a TensorBoard event file."),
    click.option("--checkpoint", type=FILE, help="File to write to and to resume from."),
    click.option("--neighbors", type=FOLDER, help="Folder for the neighbours found, and to find them in again."),
)


def config_options(command: Any) -> Any:
    """Add every field of FusionConfig and TrainingConfig; what is not given is left to their defaults."""
    for option in reversed(FUSION_OPTIONS + TRAINING_OPTIONS):
        command = option(command)
    return command


@click.command(name="train")
@click.argument("sources", type=FOLDER, nargs=-1, required=True)
@click.option("--model", type=FOLDER, required=True, help="CLIP folder.")
@click.option("--memory", "memory_path", type=FOLDER, required=True, help="Memory to look up in while training.")
@click.option("--out", type=FILE, required=True, help="The .safetensors file to write.")
@config_options
@json_option
@quiet_option
def train_command(
    sources: tuple[Path, ...],
    model: Path,
    memory_path: Path,
    out: Path,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Train a fusion on the pairs of SOURCES: shards, folders of captioned images, or one memory, read in batches."""
    import reco
    from reco.datasets import read_samples
    from reco.embedding import embed as embed_samples
    from reco.embedding import train_on

    clip = reco.Clip.load(model)
    given = {name: value for name, value in options.items() if value is not None}
    shape = {name: given.pop(name) for name in list(given) if hasattr(reco.FusionConfig, name)}
    given.setdefault("logit_scale", clip.logit_scale)
    config = reco.TrainingConfig(fusion=reco.FusionConfig(dim=clip.dim, **shape), **given)
    with reco.Memory.open(memory_path, read_only=True, encoder=clip.fingerprint) as store:
        if len(sources) == 1 and (sources[0] / "memory.sqlite").exists():
            with reco.Memory.open(sources[0], read_only=True, encoder=clip.fingerprint) as remembered:
                fusion = train_on(remembered, store, config, progress=not quiet)
        else:
            pairs = embed_samples(clip, read_samples(*sources), progress=not quiet)
            fusion = train_on(pairs, store, config, concepts=concept_numbers(pairs), progress=not quiet)
    fusion.save(out)
    facts = fusion.provenance
    show({"out": str(out)} | {n: facts[n] for n in ("rows", "best_epoch", "validation_accuracy")}, as_json)
