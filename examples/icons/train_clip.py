# SPDX-License-Identifier: Apache-2.0
"""Trains the tiny CLIP on known concepts and writes it as a Hugging Face folder.

Two drawings of a concept by different hands meet in every batch: an image-image term beside the image-text ones makes
the tower match across hands. The hands of the query sets, and every name that contains a fusion or unseen concept,
take no part; `--oracle` lets all concepts in (still never the query sets), for comparison only.

Chosen for two cores: bfloat16 with float32 master weights, smaller pictures until the last steps, images as
one uint8 tensor, augmentation on the batch, and updates of those token rows only that a batch has touched.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from tqdm import tqdm

from recipe.config import Config
from recipe.data import Drawings, Sampler, read_shards
from recipe.export import export
from recipe.figures import evaluate
from recipe.text import Tokenizer, read_bpe
from recipe.trainer import Trainer

HERE = Path(__file__).parent


def append_row(path: Path, row: dict[str, float]) -> None:
    """One row of the curve; the header comes with the first."""
    fresh = not path.exists()
    with path.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, list(row))
        if fresh:
            writer.writeheader()
        writer.writerow({name: round(value, 5) for name, value in row.items()})


CURVE = ("nn1", "nn1_known", "nn1_fusion", "nn1_unseen", "acc1_known", "acc1_fusion", "acc1_unseen", "text1")


def write_record(path: Path, trainer: Trainer, sampler: Sampler, drawings: int, figures: dict[str, float]) -> None:
    """How the model was made and what it can do."""
    parameters = sum(p.numel() for n, p in trainer.model.named_parameters() if "token_embedding" not in n)
    record = {
        "command": "python examples/icons/train_clip.py" + (" --oracle" if trainer.config.oracle else ""),
        "recipe": asdict(trainer.config),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "training_seconds": round(trainer.seconds),
        "training_drawings": drawings,
        "training_concepts": len(sampler.names),
        "parameters_without_token_table": parameters,
        "figures": {name: round(value, 2) for name, value in figures.items()},
    }
    path.write_text(json.dumps(record, indent=2) + "\n")


@dataclass
class Run:
    """One training from data to folder."""

    trainer: Trainer
    train: Drawings
    queries: Drawings
    memory: Drawings
    merges: list[str]
    work: Path
    eval_every: int
    export_every: int
    pilot: Path | None

    def loop(self) -> dict[str, float]:
        """Trains to the last step, logging, saving and exporting on the way."""
        sampler, trainer = Sampler(self.train, self.trainer.config), self.trainer
        bar = tqdm(total=trainer.config.steps, initial=trainer.step, mininterval=10)
        figures: dict[str, float] = {}
        smooth = np.zeros(3)
        while trainer.step < trainer.config.steps:
            parts = np.array(trainer.train_step(self.train, sampler))
            smooth = parts if not smooth.any() else 0.98 * smooth + 0.02 * parts
            bar.update()
            bar.set_postfix_str(" ".join(f"{part:.3f}" for part in smooth), refresh=False)
            if trainer.step % self.eval_every == 0 or trainer.step == trainer.config.steps:
                figures = self.checkpoint(smooth)
            if self.pilot and trainer.step % self.export_every == 0:
                export(trainer, self.merges, self.pilot)
        write_record(self.work / "training.json", trainer, sampler, len(self.train.captions), figures)
        return figures

    def checkpoint(self, losses: np.ndarray) -> dict[str, float]:
        """Evaluates, adds to the curve, saves."""
        figures = evaluate(self.trainer, self.queries, self.memory)
        row = {"step": self.trainer.step, "seconds": self.trainer.seconds}
        row |= dict(zip(("image_text", "image_image", "text_text"), losses.tolist(), strict=True))
        row |= {name: figures[name] for name in CURVE}
        append_row(self.work / "curve.csv", row)
        tqdm.write(" ".join(f"{name}={value:.2f}" for name, value in row.items()))
        self.trainer.save(self.work / "checkpoint.pt")
        return figures


@click.command()
@click.option("--world", type=click.Path(path_type=Path), required=True, help="Shards of build.py --world.")
@click.option("--bpe", type=click.Path(path_type=Path), required=True, help="open_clip_torch wheel or its BPE file.")
@click.option("--data", type=click.Path(path_type=Path), default=HERE / "data", help="Query and memory shards.")
@click.option("--out", type=click.Path(path_type=Path), default=HERE / "clip", help="The finished model's folder.")
@click.option("--work", type=click.Path(path_type=Path), default=Path(".cache/clip"), help="Checkpoint and curve.")
@click.option("--pilot", type=click.Path(path_type=Path), help="Folder for models on the way.")
@click.option("--export-every", default=500, help="Steps between models on the way.")
@click.option("--eval-every", default=500, help="Steps between evaluations and checkpoints.")
@click.option("--oracle", is_flag=True, help="Train on all concepts: what retrieval is compared with.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in --work.")
@click.option("--threads", default=2, help="Threads.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Another value for a recipe's field.")
def main(
    world: Path,
    bpe: Path,
    data: Path,
    out: Path,
    work: Path,
    pilot: Path | None,
    export_every: int,
    eval_every: int,
    oracle: bool,
    resume: bool,
    threads: int,
    settings: tuple[str, ...],
) -> None:
    """Trains the tiny CLIP, or with --oracle the one that has seen everything."""
    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    config = Config(oracle=oracle, **parse_settings(settings))
    merges = read_bpe(bpe)
    trainer = Trainer(config, Tokenizer(merges))
    if resume and (work / "checkpoint.pt").exists():
        trainer.load(work / "checkpoint.pt")
    else:
        (work / "curve.csv").unlink(missing_ok=True)
    train = read_shards(world, "world-*.tar.gz", {"clip", "fusion", "none"} if oracle else {"clip"})
    queries, memory = read_shards(data, "queries-*.tar.gz"), read_shards(data, "memory-*.tar.gz")
    click.echo(f"{len(train.captions)} drawings, {len(set(train.concepts))} concepts")
    run = Run(trainer, train, queries, memory, merges, work, eval_every, export_every, pilot)
    figures = run.loop()
    export(trainer, merges, out)
    for name in ("training.json", "curve.csv"):
        (out / name).write_bytes((work / name).read_bytes())
    click.echo(json.dumps({name: round(value, 2) for name, value in figures.items()}, indent=1))


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """`lr=0.001` and the like, in the field's own type."""
    result: dict[str, Any] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in Config.__dataclass_fields__ or name == "oracle":
            raise click.BadParameter(f"no field {name!r} in the recipe")
        result[name] = type(getattr(Config, name))(value)
    return result


if __name__ == "__main__":
    main()
