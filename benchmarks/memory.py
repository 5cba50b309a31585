# SPDX-License-Identifier: Apache-2.0
"""What a memory costs and how fast it is, beside faiss-cpu, usearch and hnswlib, in one run on the same threads.

    pip install faiss-cpu usearch hnswlib
    python benchmarks/memory.py --rows 1000000 --threads 2 --out benchmarks/memory.json
    python benchmarks/memory.py --rows 100000 --storages     # what each storage costs instead
    python benchmarks/memory.py --keep indexes --build-only   # builds now, in as many runs as it takes;
    python benchmarks/memory.py --keep indexes                # searches, all in one run, when the machine is quiet

The embeddings are synthetic, with what makes CLIP's easy and hard to search: a common direction (two random images of
CLIP's have a cosine of about 0.5), a spectrum that falls as a power of the rank, and clusters of Zipfian sizes (a few
things are pictured very often, most rarely). Queries are new draws, in no index. Texts are the images plus noise and
another common direction. Every engine gets unit rows in float32 and is asked for 10 neighbours; recall counts against
exact search. Engines run one after the other; times are medians of repeated runs, load and processor are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import reco

Array = npt.NDArray[np.float32]
Search = Callable[[Array], npt.NDArray[Any]]
K = 10


def unit(rows: Array) -> Array:
    """Rows of unit length."""
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


class Embeddings:
    """A source of rows that look like CLIP's; see above."""

    def __init__(self, dim: int, clusters: int, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self.spectrum = ((1.0 + np.arange(dim)) ** -0.5).astype(np.float32)
        self.spectrum /= np.linalg.norm(self.spectrum)
        self.common = unit(generator.standard_normal((2, dim), np.float32))
        self.centres = generator.standard_normal((clusters, dim), np.float32) * self.spectrum
        weights = 1.0 / (1.0 + np.arange(clusters)) ** 0.8
        self.weights = weights / weights.sum()
        self.dim = dim

    def draw(self, rows: int, seed: int) -> tuple[Array, Array]:
        """Images and texts, [rows, dim] each."""
        generator = np.random.default_rng(seed)
        which = generator.choice(len(self.centres), rows, p=self.weights)
        images = self.centres[which] + 0.6 * self.spectrum * generator.standard_normal((rows, self.dim), np.float32)
        texts = images + 0.6 * self.spectrum * generator.standard_normal((rows, self.dim), np.float32)
        return unit(images + self.common[0]), unit(texts + self.common[1])


def median_time(work: Callable[[], object], at_least: int, seconds: float) -> float:
    """The median time of a call, after one that does not count."""
    work()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < at_least or (time.perf_counter() < end and len(times) < 1000):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def measure(search: Search, queries: Array, truth: npt.NDArray[Any]) -> dict[str, float]:
    """Recall, and queries a second at batch 1 and 256."""
    found = search(queries)
    hits = [len(set(a) & set(b)) for a, b in zip(truth.tolist(), found.tolist(), strict=True)]
    place = iter(range(10**9))
    one = median_time(lambda: search(queries[next(place) % len(queries)][None]), 64, 1.0)
    batch = median_time(lambda: search(queries[:256]), 3, 1.0)
    return {"recall": float(np.mean(hits)) / K, "qps_1": 1 / one, "qps_256": len(queries[:256]) / batch}


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and the result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


class Shelf:
    """Built indexes, in a folder that outlives the run where one is given: building at a million rows takes an hour."""

    def __init__(self, folder: Path, build_only: bool) -> None:
        self.folder, self.build_only = folder, build_only
        folder.mkdir(parents=True, exist_ok=True)

    def get(
        self, name: str, build: Callable[[Path], Any], save: Callable[[Any, Path], object], load: Callable[[Path], Any]
    ) -> tuple[Any, dict[str, float]]:
        """An index, built or loaded, and the seconds that building took, by the clock and of CPU."""
        path, facts = self.folder / name, self.folder / f"{name}.json"
        if facts.exists():
            return (None if self.build_only else load(path)), json.loads(facts.read_text())
        print(f"building {name}", file=sys.stderr, flush=True)
        cpu = time.process_time()
        seconds, index = timed(lambda: build(path))
        found = {"build_seconds": seconds, "build_cpu_seconds": time.process_time() - cpu}
        save(index, path)
        facts.write_text(json.dumps(found))
        return index, found


class Report:
    """Collects rows and prints each at once."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def add(
        self, engine: str, index: str, setting: str, built: dict[str, float], size: float, result: dict[str, float]
    ) -> None:
        """One row."""
        record = {"engine": engine, "index": index, "setting": setting, "bytes_per_row": size}
        self.records.append(record | built | result)
        build, cpu = built.get("build_seconds", 0.0), built.get("build_cpu_seconds", 0.0)
        print(
            f"| {engine:<9} | {index:<12} | {setting:<9} | {build:8.1f} | {cpu:8.1f} | {size:7.0f} "
            f"| {result['recall']:.3f} "
            f"| {result['qps_1']:8.0f} | {result['qps_256']:8.0f} |",
            flush=True,
        )


def bench_reco(folder: Path, shelf: Shelf, queries: Array, truth: npt.NDArray[Any], report: Report, pq: bool) -> None:
    """Exact search, the graph, the lists, and FAISS's product quantisation with full rows behind it.

    Indexes of both sides are built; the seconds are half of that.
    """

    def measured(memory: reco.Memory, effort: int, exact: bool = False) -> dict[str, float]:
        return measure(lambda q: memory.search(q, K, partners=False, exact=exact, effort=effort).rows, queries, truth)

    def build(index: str, recall: float) -> Callable[[Path], reco.Memory]:
        def run(path: Path) -> reco.Memory:
            shutil.rmtree(path, ignore_errors=True)
            shutil.copytree(folder, path)
            memory = reco.Memory.open(path)
            memory.optimize(index=index, recall=recall)
            return memory

        return run

    with reco.Memory.open(folder, read_only=True) as memory:
        rows = len(memory)
        if not shelf.build_only:
            report.add("reco", "exact", "", {}, 0.0, measured(memory, 0, True))
    lists = int(4 * rows**0.5)
    kinds: list[tuple[str, float, tuple[int, ...]]] = [
        ("HNSW32", 0.95, (16, 32, 64, 128, 256)),
        (f"IVF{lists},Flat", 0.95, (2, 4, 8, 16, 32, 64)),
    ]
    kinds += [(f"IVF{lists},PQ64", recall, (0,)) for recall in (0.9, 0.95) if pq]
    for index, recall, efforts in kinds:
        memory, seconds = shelf.get(
            f"reco-{index}-{recall}", build(index, recall), lambda memory, path: None, reco.Memory.open
        )
        if memory is None:
            continue
        built = {name: value / 2 for name, value in seconds.items()}
        facts = memory.info()["indexes"][0]
        for effort in () if shelf.build_only else efforts:
            setting = str(effort or f"{facts['effort']}/x{facts['refine']}")
            report.add("reco", index, setting, built, facts["bytes"] / rows, measured(memory, effort))
        memory.close()


def faiss_rows(index: Any, queries: Array) -> npt.NDArray[Any]:
    """What an index of FAISS finds."""
    return np.asarray(index.search(queries, K)[1])


def bench_faiss(
    images: Array, shelf: Shelf, queries: Array, truth: npt.NDArray[Any], report: Report, threads: int, pq: bool
) -> None:
    """Flat, HNSW, IVF-Flat and IVF-PQ of PyPI's faiss-cpu."""
    import faiss

    faiss.omp_set_num_threads(threads)
    faiss.cvar.distance_compute_blas_threshold = 20
    lists = int(4 * len(images) ** 0.5)

    def build(name: str) -> Any:
        index: Any = faiss.index_factory(images.shape[1], name, faiss.METRIC_INNER_PRODUCT)
        if name.startswith("HNSW"):
            index.hnsw.efConstruction = 80
        if not index.is_trained:
            index.train(images[np.random.default_rng(0).permutation(len(images))[: 64 * lists]])
        index.add(images)
        return index

    kinds: list[tuple[str, tuple[int, ...]]] = [
        ("Flat", (0,)),
        ("HNSW32", (16, 32, 64, 128, 256)),
        (f"IVF{lists},Flat", (2, 4, 8, 16, 32, 64)),
    ]
    for name, efforts in kinds + ([(f"IVF{lists},PQ64np", (16, 64))] if pq else []):
        index, seconds = shelf.get(
            f"faiss-{name}",
            lambda path: build(name),  # noqa: B023
            lambda index, path: faiss.write_index(index, str(path)),
            lambda path: faiss.read_index(str(path)),
        )
        if index is None or shelf.build_only:
            continue
        size = len(faiss.serialize_index(index)) / len(images)
        for effort in efforts:
            if name.startswith("HNSW"):
                index.hnsw.efSearch = effort
            elif effort:
                index.nprobe = effort
            report.add(
                "faiss-cpu", name, str(effort or ""), seconds, size, measure(partial(faiss_rows, index), queries, truth)
            )


def bench_usearch(
    images: Array, shelf: Shelf, queries: Array, truth: npt.NDArray[Any], report: Report, threads: int
) -> None:
    """The graph of usearch over half-precision rows."""
    from usearch.index import Index

    def build(path: Path) -> Any:
        index: Any = Index(ndim=images.shape[1], metric="ip", dtype="f16", connectivity=32, expansion_add=80)
        index.add(np.arange(len(images)), images, threads=threads)
        return index

    index, seconds = shelf.get(
        "usearch", build, lambda index, path: index.save(str(path)), lambda p: Index.restore(str(p))
    )
    for effort in () if shelf.build_only else (16, 32, 64, 128, 256):
        index.expansion_search = effort
        result = measure(
            lambda q: np.atleast_2d(index.search(q, K, threads=threads).keys).astype(np.int64), queries, truth
        )
        report.add("usearch", "HNSW32 f16", str(effort), seconds, index.memory_usage / len(images), result)


def bench_hnswlib(
    images: Array, shelf: Shelf, queries: Array, truth: npt.NDArray[Any], report: Report, threads: int
) -> None:
    """The graph of hnswlib."""
    import hnswlib

    def build(path: Path) -> Any:
        index = hnswlib.Index(space="ip", dim=images.shape[1])
        index.init_index(max_elements=len(images), ef_construction=80, M=32)
        index.add_items(images, num_threads=threads)
        return index

    def load(path: Path) -> Any:
        index = hnswlib.Index(space="ip", dim=images.shape[1])
        index.load_index(str(path), max_elements=len(images))
        return index

    index, seconds = shelf.get("hnswlib", build, lambda index, path: index.save_index(str(path)), load)
    size = images.shape[1] * 4 + 2 * 32 * 4 + 16
    for effort in () if shelf.build_only else (16, 32, 64, 128, 256):
        index.set_num_threads(threads)
        index.set_ef(effort)
        result = measure(lambda q: index.knn_query(q, K, num_threads=threads)[0], queries, truth)
        report.add("hnswlib", "HNSW32", str(effort), seconds, size, result)


_OPEN = """
import time, sys, resource
import numpy, reco
def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) * 1024
reco.Memory  # the core is loaded when it is first asked for
before = resident()
start = time.perf_counter()
memory = reco.Memory.open(sys.argv[1], read_only=True)
print(time.perf_counter() - start, resident() - before)
"""


def fill(folder: Path, source: Embeddings, rows: int, batch: int) -> float:
    """Makes the memory in durable batches; the seconds of adding alone."""
    shutil.rmtree(folder, ignore_errors=True)
    memory = reco.Memory.create(folder, source.dim)
    adding = 0.0
    for first in range(0, rows, batch):
        count = min(batch, rows - first)
        images, texts = source.draw(count, 1_000 + first)
        keys = [f"key-{i}" for i in range(first, first + count)]
        captions = [f"a photo of thing {i}" for i in range(first, first + count)]
        adding += timed(lambda: memory.add(images, texts, keys, captions))[0]  # noqa: B023
    memory.close()
    return adding


def bench_folder(folder: Path, source: Embeddings, rows: int, batch: int) -> tuple[reco.Memory, dict[str, float]]:
    """Adding, in durable batches, unless an earlier run did, and opening, in a process of its own."""
    facts = folder.with_suffix(".json")
    if not facts.exists():
        facts.write_text(json.dumps(fill(folder, source, rows, batch)))
    adding = float(json.loads(facts.read_text()))
    answers = [
        subprocess.run([sys.executable, "-c", _OPEN, str(folder)], capture_output=True, text=True, check=True).stdout
        for _ in range(3)
    ]
    opened = [tuple(map(float, answer.split())) for answer in answers]
    memory = reco.Memory.open(folder, read_only=True)
    return memory, {
        "add_per_second": rows / adding,
        "bytes_per_pair": memory.info()["bytes"] / rows,
        "open_seconds": float(np.median([x[0] for x in opened])),
        "open_resident_bytes": float(np.median([x[1] for x in opened])),
    }


def search_while_adding(memory: reco.Memory, source: Embeddings, queries: Array) -> dict[str, float]:
    """The latency of single queries alone and beside a thread that adds 1,000 pairs at a time."""

    def latency() -> float:
        place = iter(range(10**9))
        return median_time(lambda: memory.search(queries[next(place) % len(queries)], K), 64, 2.0)

    alone = latency()
    stop = threading.Event()
    images, texts = source.draw(1_000, 5)

    def add_on() -> None:
        i = 0
        while not stop.is_set():
            memory.add(images, texts, [f"more-{i}-{j}" for j in range(1_000)])
            i += 1

    thread = threading.Thread(target=add_on)
    thread.start()
    beside = latency()
    stop.set()
    thread.join()
    return {"search_alone_seconds": alone, "search_while_adding_seconds": beside}


def bench_storages(folder: Path, source: Embeddings, rows: int) -> list[dict[str, Any]]:
    """What each storage costs: bytes, recall against float32 rows, cosine of what is kept, speed."""
    images, texts = source.draw(rows, 1_000)
    queries = source.draw(512, 7)[0]
    truth = np.concatenate([np.argsort(-(q @ images.T), axis=1)[:, :K] for q in np.array_split(queries, 16)])
    keys = [f"key-{i}" for i in range(rows)]
    names: tuple[Any, ...] = ("float16", "int8", "codes4", "codes2", "codes1")
    print("| storage | bytes a row | pairs added a second | recall@10 | cosine kept | queries/s, one by one | by 256 |")
    print("|---|---|---|---|---|---|---|")
    records = []
    for name in names:
        with reco.Memory.create(folder / name, source.dim, storage=name) as memory:
            seconds, _ = timed(lambda: memory.add(images, texts, keys))  # noqa: B023
            size = sum(file.stat().st_size for file in (folder / name / "img_emb").iterdir()) / rows
            result = measure(lambda q: memory.search(q, K, partners=False).rows, queries, truth)  # noqa: B023
            partners = memory.search(queries, 1, exact=True)
            kept = float((partners.partners[:, 0] * texts[partners.rows[:, 0]]).sum(axis=1).mean())
        records.append(
            {"storage": name, "bytes_per_row": size, "add_per_second": rows / seconds, "cosine": kept} | result
        )
        print(
            f"| {name} | {size:.0f} | {rows / seconds:,.0f} | {result['recall']:.3f} | {kept:.4f} "
            f"| {result['qps_1']:.0f} | {result['qps_256']:.0f} |",
            flush=True,
        )
    return records


def processor() -> str:
    """Its name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Run it all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", nargs="*", default=["reco", "faiss-cpu", "usearch", "hnswlib"])
    parser.add_argument("--no-pq", action="store_true", help="leave product quantisation out, whose training is slow")
    parser.add_argument("--folder", type=Path, help="where the memory is made; a temporary folder by default")
    parser.add_argument("--keep", type=Path, help="folder that keeps memory and indexes for later runs")
    parser.add_argument("--build-only", action="store_true", help="build what is missing in --keep, measure no search")
    parser.add_argument("--storages", action="store_true", help="compare the storages instead of the engines")
    options = parser.parse_args()
    reco.set_threads(options.threads)
    lists = int(4 * options.rows**0.5)
    source = Embeddings(options.dim, max(10, options.rows // 50), 0)
    report = Report()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.storages:
            print(f"{options.rows:,} pairs of {options.dim}, {options.threads} threads, {processor()}")
            records = bench_storages(Path(folder), source, options.rows)
            if options.out:
                options.out.write_text(json.dumps(records, indent=1) + "\n")
            return
        shelf = Shelf(options.keep or Path(folder), options.build_only)
        memory, figures = bench_folder(shelf.folder / "memory", source, options.rows, 10_000)
        queries = source.draw(512, 7)[0]
        truth = memory.search(queries, K, partners=False, exact=True).rows
        images = memory.embeddings("image")
        cosines = images[:2000] @ images[2000:4000].T
        nearest = memory.search(queries, 1, partners=False, exact=True).scores
        memory.close()
        figures |= {
            "random_cosine": float(cosines.mean()),
            "nearest_cosine": float(nearest.mean()),
            "load": os.getloadavg()[0],
        }
        print(f"{options.rows:,} pairs of {options.dim}, {options.threads} threads, {processor()}")
        print(json.dumps(figures, indent=1))
        print(
            "| engine | index | setting | build s | of CPU | bytes a row | recall@10 | queries/s, one by one | by 256 |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        given = (shelf, queries, truth, report)
        if "reco" in options.only:
            bench_reco(shelf.folder / "memory", *given, not options.no_pq)
            if not options.build_only:
                with reco.Memory.open(shelf.folder / f"reco-IVF{lists},Flat-0.95") as memory:
                    figures |= search_while_adding(memory, source, queries)
        if "faiss-cpu" in options.only:
            bench_faiss(images, *given, options.threads, not options.no_pq)
        if "usearch" in options.only:
            bench_usearch(images, *given, options.threads)
        if "hnswlib" in options.only:
            bench_hnswlib(images, *given, options.threads)
    figures["peak_resident_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(figures, indent=1))
    if options.out:
        head = {"rows": options.rows, "dim": options.dim, "threads": options.threads, "processor": processor()}
        options.out.write_text(json.dumps(head | figures | {"engines": report.records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
