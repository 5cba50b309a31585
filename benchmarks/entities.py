# SPDX-License-Identifier: Apache-2.0
"""What OVEN costs: time, disk and resident memory of an evaluation among very many names.

    python benchmarks/entities.py --names 1000000

The candidates are made-up titles of two to four words, the questions drawn icons in OVEN's layout, the model is the
tiny CLIP of examples/icons (dim 256), the memory its 10,507 drawings. The parts of one evaluation are timed: encoding,
refining and storing the names; their index; the search by CLIP and by reco. Resident memory is sampled ten times a
second: anonymous pages, which must stay, and pages of mapped files, which the system may drop at any time.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import reco
from reco.datasets import EntityQuestions, Sample, load_dataset, read_samples
from reco.embedding import embed
from reco.evaluation import EmbeddingCache, entities, evaluate_dataset

ICONS = Path(__file__).parents[1] / "examples/icons"
SYLLABLES = ("ka", "lo", "mi", "ren", "sta", "vor", "el", "bu", "tha", "quin", "dor", "pe", "sil", "na", "gro", "hem")


def title(random: np.random.Generator) -> str:
    """A made-up name."""
    words = ["".join(random.choice(SYLLABLES, random.integers(2, 4))) for _ in range(random.integers(2, 5))]
    return " ".join(words).title()


def make_oven(root: Path, drawn: list[Sample], names: int) -> Path:
    """Questions about drawn icons, their concepts among made-up titles."""
    concepts = list(dict.fromkeys(str(s.metadata["concept"]) for s in drawn))
    ids = {concept: f"Q{i}" for i, concept in enumerate(concepts)}
    with (root / "oven_entity_val.jsonl").open("w") as file:
        for i, sample in enumerate(drawn):
            place = root / f"oven_images/00/oven_{i:08}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(sample.image)
            concept = str(sample.metadata["concept"])
            split = "entity_val_seen" if len(concept) % 2 else "entity_val_unseen"
            row = {"data_id": f"oven_entity_val_{i:08}", "image_id": place.stem, "question": "what is this?"}
            row |= {"entity_id": ids[concept], "entity_text": concept, "data_split": split}
            file.write(json.dumps(row) + "\n")
    random = np.random.default_rng(0)
    with (root / "Wiki6M_ver_1_0_title_only.jsonl").open("w") as file:
        for i in range(names):
            text = concepts[i] if i < len(concepts) else title(random)
            file.write(json.dumps({"wikidata_id": f"Q{i}", "wikipedia_title": text}) + "\n")
    return root


def resident() -> tuple[float, float]:
    """Anonymous and file-backed megabytes of this process."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    anonymous, mapped = (int(lines[name].split()[0]) / 1000 for name in ("RssAnon", "RssFile"))
    return anonymous, mapped


@contextmanager
def measured(what: str) -> Iterator[None]:
    """Print a row: time, CPU time, peaks of resident memory."""
    peaks, done = [0.0, 0.0], threading.Event()

    def sample() -> None:
        while not done.wait(0.1):
            peaks[:] = map(max, peaks, resident())

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    start, cpu = time.perf_counter(), time.process_time()
    yield
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    done.set()
    sampler.join()
    print(f"| {what} | {wall:,.0f} | {cpu:,.0f} | {peaks[0]:,.0f} | {peaks[1]:,.0f} |", flush=True)


def announced(name: str, what: str) -> Callable[..., Any]:
    """A step of evaluate_entities() that prints its row."""
    step: Callable[..., Any] = getattr(entities, name)

    def run(*arguments: Any) -> Any:
        with measured(what):
            return step(*arguments)

    return run


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", type=int, default=1_000_000)
    parser.add_argument("--questions", type=int, default=2_000)
    parser.add_argument("--scratch", type=Path, help="Folder for the files; a temporary one without it.")
    arguments = parser.parse_args()
    for name, what in (("_add_names", "names"), ("_optimize", "index"), ("_search", "search, each system")):
        setattr(entities, name, announced(name, what))
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as place:
        scratch = Path(place)
        shards = sorted((ICONS / "data").glob("*.tar.gz"))
        memories = [shard for shard in shards if shard.name.startswith("memory")]
        questions = [shard for shard in shards if shard.name.startswith("queries")]
        root = make_oven(scratch, list(islice(read_samples(*questions), arguments.questions)), arguments.names)
        clip = reco.Clip.load(ICONS / "clip")
        pairs = embed(clip, read_samples(*memories), progress=False)
        with reco.Memory.create(scratch / "icons.reco", clip.dim, clip.fingerprint) as memory:
            memory.add(pairs.images, pairs.texts, pairs.keys, pairs.captions, pairs.metadata)
            model = reco.Model(clip, memory, reco.Fusion.mean(clip.dim))
            data = load_dataset("oven", root)
            assert isinstance(data, EntityQuestions)
            threads, load = reco.threads(), os.getloadavg()[0]
            print(f"{arguments.names:,} names, {len(data.images):,} images, {len(memory):,} pairs, dim {clip.dim}")
            print(f"{threads} threads, load {load:.1f}\n\n| part | s | CPU s | anonymous MB | mapped MB |")
            print("|---|---|---|---|---|", flush=True)
            with EmbeddingCache(clip, progress=False) as cache:
                result = evaluate_dataset(model, data, cache=cache, work=scratch / "work", progress=False)
        [index] = (scratch / "work").glob("names-*.reco")
        size = sum(file.stat().st_size for file in index.rglob("*") if file.is_file())
        print(f"\n{size / 1e9:.2f} GB on disk; {result.setup['candidates']}; {result.reco.metrics}")


if __name__ == "__main__":
    main()
