# SPDX-License-Identifier: Apache-2.0
"""The quickstart's evaluation over two memories that hold the same pairs: its folder and a Milvus collection.

python examples/icons/two_memories.py quickstart                               # a Milvus Lite file
python examples/icons/two_memories.py quickstart --uri http://localhost:19530  # a server
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np

import reco
from quickstart import K, cell
from reco.evaluation import Record
from reco.exchange import export_memory
from tasks import CLIP, DATA, Floats, Queries, load, measure, system

TASKS = (
    ("unseen, acc@1", "icons/unseen", "acc1"),
    ("known, acc@1", "icons/known", "acc1"),
    ("harmonic mean", "icons/harmonic-mean", "acc1"),
    ("text to image, R@1", "icons/retrieval", "image_retrieval_recall@1"),
    ("generic, acc@1", "icons/generic", "acc1"),
)


def copied(memory: reco.Memory, uri: str, collection: str) -> reco.MilvusMemory:
    """The same pairs in a new collection."""
    with tempfile.TemporaryDirectory() as folder:
        export_memory(memory, Path(folder) / "embeddings", progress=False)
        other = reco.MilvusMemory.create(uri, collection, memory.dim, memory.encoder, timeout=600)
        other.import_embeddings(Path(folder) / "embeddings", progress=False)
    return other


def compare(
    clip: reco.Clip, memories: dict[str, reco.MemoryBase], fusion: reco.Fusion, queries: Queries, k: int
) -> tuple[list[Record], Floats]:
    """All tasks over each memory, and by how much each refined embedding differs between the first and the others."""
    rows = [system(name, clip, memory, fusion, k) for name, memory in memories.items()]
    records = [record for row in rows for record in measure(row, queries)]
    refined = [np.concatenate([row.images(queries.pairs.images), row.texts(queries.prompts)]) for row in rows]
    return records, np.max([np.abs(other - refined[0]).max(axis=1) for other in refined[1:]], axis=0)


@click.command()
@click.argument("out", type=click.Path(path_type=Path, exists=True), default=Path("quickstart"))
@click.option("--uri", default="", help="Milvus server; a Lite file that is removed again if not given.")
@click.option("--collection", default="quickstart", show_default=True, help="Its name; it must not be there yet.")
@click.option("--model", type=click.Path(path_type=Path), default=CLIP, help="CLIP folder.")
@click.option("--data", type=click.Path(path_type=Path), default=DATA, help="Folder of the shards.")
def main(out: Path, uri: str, collection: str, model: Path, data: Path) -> None:
    """Compare the memory and the fusion that the quickstart left in OUT with a collection of the same pairs."""
    clip, fusion = reco.Clip.load(model), reco.Fusion.load(out / "fusion-reco-0.safetensors")
    with tempfile.TemporaryDirectory() as place, reco.Memory.open(out / "memory", read_only=True) as memory:
        started = time.perf_counter()
        other = copied(memory, uri or str(Path(place) / "pairs.db"), collection)
        click.echo(f"{len(other)} pairs copied in {time.perf_counter() - started:.0f} s")
        queries = Queries.load(clip, load(clip, "queries", data))
        records, differences = compare(clip, {"folder": memory, "milvus": other}, fusion, queries, K)
    click.echo(f"\n| in % | {' | '.join(title for title, _, _ in TASKS)} |\n|---|{'---|' * len(TASKS)}")
    for name in ("folder", "milvus"):
        click.echo(f"| {name} | {' | '.join(cell(records, name, *task) for _, *task in TASKS)} |")
    apart = int((differences > 1e-6).sum())
    most = differences.max()
    click.echo(f"\n{apart} of {len(differences):,} refined embeddings differ by more than 1e-6; at most by {most:.1e}.")
    metrics = [[r.metrics for r in records if r.model == name] for name in ("folder", "milvus")]
    sys.exit(apart > 0 or metrics[0] != metrics[1])


if __name__ == "__main__":
    main()
