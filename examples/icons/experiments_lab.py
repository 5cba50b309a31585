# SPDX-License-Identifier: Apache-2.0
"""What the experiments share: results kept on disk, and embeddings, memories and fusions that are made once."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

import reco
import tasks
from experiments_report import Row
from quickstart import KNOWN_SHARE, K, configs
from reco.embedding import Embeddings, concatenate
from reco.evaluation import Record
from tasks import HERE, Queries, System, load, measure, moved_captions, remember, train_fusion, training_pairs

Floats = npt.NDArray[np.float32]


@cache
def commit() -> str:
    """The commit of the sources when the run began, marked when what is measured differs from it."""

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", str(HERE), *arguments], capture_output=True, text=True, check=False)

    found = git("rev-parse", "--short=12", "HEAD").stdout.strip()
    changed = git("diff", "--quiet", "HEAD", "--", ":/src", ":/include", ":/python", ":/examples/icons/*.py").returncode
    return (found or "unknown") + ("-changed" if changed else "")


@dataclass
class Store:
    """Results so far, on disk after every row."""

    path: Path
    commit: str = field(default_factory=commit)
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.path.exists():
            self.rows = [Row(**row) for row in json.loads(self.path.read_text("utf-8"))]

    def has(self, experiment: str, variant: str, seed: int, x: float | None) -> bool:
        """Whether this row is there already."""
        return any((r.experiment, r.variant, r.seed, r.x) == (experiment, variant, seed, x) for r in self.rows)

    def add(
        self, experiment: str, variant: str, seed: int, measured: Callable[[], dict[str, Any]], x: float | None = None
    ) -> None:
        """Measure a row unless it is there, and keep it."""
        if self.has(experiment, variant, seed, x):
            return
        started = time.perf_counter()
        metrics = measured()
        self.rows.append(Row(experiment, variant, seed, x, metrics, self.commit))
        scratch = self.path.with_suffix(".tmp")
        scratch.write_text(json.dumps([row.as_dict() for row in self.rows], indent=1) + "\n", "utf-8")
        scratch.replace(self.path)
        shown = {name: value for name, value in metrics.items() if isinstance(value, float)}
        facts = "  ".join(f"{name} {value:.1f}" for name, value in list(shown.items())[:5])
        click.echo(f"{experiment:<12} {variant:<28} {'' if x is None else x!s:<6} seed {seed}: {facts}", nl=False)
        click.echo(f"  ({time.perf_counter() - started:.0f} s)")


def percent(records: Sequence[Record]) -> dict[str, float]:
    """The main figures among a system's records, in percent."""
    found = {r.dataset: r.metrics for r in records}
    return {
        "unseen": 100 * found["icons/unseen"]["acc1"],
        "known": 100 * found["icons/known"]["acc1"],
        "harmonic": 100 * found["icons/harmonic-mean"]["acc1"],
        "generic": 100 * found["icons/generic"]["acc1"],
        "text_to_image": 100 * found["icons/retrieval"]["image_retrieval_recall@1"],
    }


def summary(row: System, queries: Queries) -> dict[str, float]:
    """The main figures of a system, in percent."""
    return percent(measure(row, queries))


@dataclass
class Lab:
    """What was embedded once, and the memories and fusions made of it, each made once."""

    work: Path
    clip: reco.Clip
    pairs: Embeddings
    queries: Queries

    @classmethod
    def load(cls, work: Path, clip: reco.Clip, data: Path) -> Lab:
        """Embed the shards, or read what an earlier run embedded; each model and folder of shards has its own place."""
        files = [(file.name, file.stat().st_size) for file in sorted(data.glob("*.tar*"))]
        work = (
            work / hashlib.sha256(json.dumps([clip.fingerprint, str(data.resolve()), files]).encode()).hexdigest()[:8]
        )
        cache = work / "embeddings"
        sets = {name: cached(cache / name, partial(load, clip, name, data)) for name in ("memory", "fusion")}
        queries = Queries.load(clip, cached(cache / "queries", partial(load, clip, "queries", data)))
        return cls(work, clip, concatenate(list(sets.values())), queries)

    def memory(
        self,
        name: str,
        pairs: Embeddings,
        order: npt.NDArray[Any] | None = None,
        storage: reco.types.Storage = "float16",
    ) -> reco.Memory:
        """A memory of these pairs, made on first use."""
        path = self.work / "memories" / name
        if not (path / "done").exists():
            subprocess.run(["rm", "-rf", str(path)], check=True)
            remember(path / "memory", self.clip, [pairs], order, storage).close()
            (path / "done").touch()
        return reco.Memory.open(path / "memory", read_only=True)

    def full(self) -> reco.Memory:
        """All pairs."""
        return self.memory("full", self.pairs)

    def without_unseen(self) -> reco.Memory:
        """All that training may look up."""
        return self.memory("train", self.pairs.select(self.seen))

    def rows(self, name: str, rows: npt.NDArray[Any]) -> reco.Memory:
        """Some of the pairs."""
        return self.memory(name, self.pairs.select(rows))

    @property
    def seen(self) -> npt.NDArray[Any]:
        """Pairs of concepts that training may look up: all but the unseen ones."""
        seen: npt.NDArray[Any] = tasks.field(self.pairs, "role") != "unseen"
        return seen

    def wrong(self, share: float, seed: int) -> reco.Memory:
        """All pairs, a share of their captions moved."""
        return self.memory(f"wrong-{share}-{seed}", self.pairs, moved_captions(len(self.pairs), share, seed))

    def train(
        self,
        name: str,
        seed: int,
        config: reco.TrainingConfig,
        keep: npt.NDArray[Any] | None = None,
        held_out: bool | None = None,
    ) -> reco.Fusion:
        """A fusion trained once: on pairs and a memory without unseen concepts, and of `keep` alone if given."""
        chosen = self.seen if keep is None else self.seen & keep
        store = self.memory("train" if keep is None else f"train-{name}-{seed}", self.pairs.select(chosen))
        pairs = training_pairs(self.pairs if keep is None else self.pairs.select(keep), KNOWN_SHARE, seed)
        return self.train_on(f"{name}-{seed}", pairs, store, config, held_out)

    def train_on(
        self,
        name: str,
        pairs: Embeddings,
        memory: reco.Memory,
        config: reco.TrainingConfig,
        held_out: bool | None = None,
    ) -> reco.Fusion:
        """A fusion trained on these pairs, kept in a file of these, the memory, the config and the commit."""
        facts = [commit(), repr(config), held_out, len(memory), pairs.keys, digest(pairs), digest(self.queries.pairs)]
        short = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
        path = self.work / "fusions" / f"{name}-{short}.safetensors"
        if path.exists():
            return reco.Fusion.load(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        fusion = train_fusion(pairs, self.queries, memory, config, progress=False, held_out=held_out)
        fusion.save(path)
        return fusion

    def trained(self, name: str, seed: int) -> reco.Fusion:
        """One of the quickstart's fusions."""
        return self.train(name, seed, configs(self.clip, seed)[name])

    def measure(
        self, fusion: reco.Fusion, memory: reco.Memory, k: int | None, exclude: Callable[[int], list[str]] | None = None
    ) -> dict[str, float]:
        """The main figures of a fusion; `exclude` gives keys that entity i's queries must not find."""
        model = reco.Model(self.clip, memory, fusion, k=k)

        def refine(refine_side: Any, repeats: int) -> Callable[[Floats], Floats]:
            def run(queries: Floats) -> Floats:
                keys = None
                if exclude is not None and len(queries) == len(self.queries.pairs) * repeats:
                    keys = [exclude(i // repeats) for i in range(len(queries))]
                refined: Floats = refine_side(queries, exclude_keys=keys)
                return refined

            return run

        row = System("", refine(model.refine_images, 1), refine(model.refine_texts, len(tasks.TEMPLATES)))
        return summary(row, self.queries)


def digest(pairs: Embeddings) -> str:
    """Of the embeddings, which another encoder or other drawings would change."""
    return hashlib.sha256(pairs.images.tobytes() + pairs.texts.tobytes()).hexdigest()


def cached(folder: Path, make: Callable[[], Embeddings]) -> Embeddings:
    """Embeddings in a folder, made when they are not there."""
    arrays, words = folder / "arrays.npz", folder / "words.json"
    if not words.exists():
        made = make()
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(arrays, images=made.images, texts=made.texts)
        words.write_text(json.dumps([made.keys, made.captions, made.metadata]), "utf-8")
    keys, captions, metadata = json.loads(words.read_text("utf-8"))
    with np.load(arrays) as found:
        return Embeddings(found["images"], found["texts"], keys, captions, metadata)


def numbers(pairs: Embeddings) -> list[int]:
    """Concepts as numbers."""
    found: list[int] = np.unique(tasks.field(pairs, "concept"), return_inverse=True)[1].tolist()
    return found


def neighbors_of(name: str) -> int | None:
    """How many neighbours a fusion of the quickstart gets; None: as many as it was trained or tuned for."""
    return K if name == "reco" else None
