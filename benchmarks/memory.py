# SPDX-License-Identifier: Apache-2.0
"""What a memory costs and how fast it is, beside faiss-cpu, usearch and hnswlib, in one run on the same threads.

    pip install faiss-cpu usearch hnswlib
    python benchmarks/memory.py --rows 1000000 --threads 2 --out benchmarks/memory.json
    python benchmarks/memory.py --rows 100000 --storages     # what each storage costs instead

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


class Report:
    """Collects rows and prints each at once."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def add(self, engine: str, index: str, setting: str, build: float, size: float, result: dict[str, float]) -> None:
        """One row."""
        record = {"engine": engine, "index": index, "setting": setting, "build_seconds": build, "bytes_per_row": size}
        self.records.append(record | result)
        print(
            f"| {engine:<9} | {index:<12} | {setting:<9} | {build:8.1f} | {size:7.0f} | {result['recall']:.3f} "
            f"| {result['qps_1']:8.0f} | {result['qps_256']:8.0f} |",
            flush=True,
        )


def bench_reco(
    memory: reco.Memory, queries: Array, truth: npt.NDArray[Any], report: Report, lists: int, pq: bool
) -> None:
    """Exact search, the graph, the lists, and FAISS's product quantisation with full rows behind it."""
    rows = len(memory)

    def search(effort: int, exact: bool = False) -> Search:
        return lambda q: memory.search(q, K, partners=False, exact=exact, effort=effort).rows

    report.add("reco", "exact", "", 0.0, 0.0, measure(search(0, True), queries, truth))
    for index, efforts in (("HNSW32", (16, 32, 64, 128, 256)), (f"IVF{lists},Flat", (2, 4, 8, 16, 32, 64))):
        built = memory.optimize(index=index)[0]
        size = built["bytes"] / rows
        for effort in efforts:
            report.add(
                "reco", index, str(effort), built["build_seconds"], size, measure(search(effort), queries, truth)
            )
    for recall in (0.9, 0.95) if pq else ():
        built = memory.optimize(index=f"IVF{lists},PQ64", recall=recall)[0]
        setting = f"{built['effort']}/x{built['refine']}"
        size = built["bytes"] / rows
        index = f"IVF{lists},PQ64"
        report.add("reco", index, setting, built["build_seconds"], size, measure(search(0), queries, truth))


def faiss_rows(index: Any, queries: Array) -> npt.NDArray[Any]:
    """What an index of FAISS finds."""
    return np.asarray(index.search(queries, K)[1])


def bench_faiss(
    images: Array, queries: Array, truth: npt.NDArray[Any], report: Report, lists: int, threads: int, pq: bool
) -> None:
    """Flat, HNSW, IVF-Flat and IVF-PQ of PyPI's faiss-cpu."""
    import faiss

    faiss.omp_set_num_threads(threads)
    faiss.cvar.distance_compute_blas_threshold = 20
    dim = images.shape[1]
    for name, efforts in (
        ("Flat", (0,)),
        ("HNSW32", (16, 32, 64, 128, 256)),
        (f"IVF{lists},Flat", (2, 4, 8, 16, 32, 64)),
        (f"IVF{lists},PQ64np", (16, 64)),
    ):
        if "PQ" in name and not pq:
            continue
        index: Any = faiss.index_factory(dim, name, faiss.METRIC_INNER_PRODUCT)
        if name.startswith("HNSW"):
            index.hnsw.efConstruction = 80

        def build(index: Any = index) -> None:
            if not index.is_trained:
                index.train(images[np.random.default_rng(0).permutation(len(images))[: 64 * lists]])
            index.add(images)

        seconds, _ = timed(build)
        size = len(faiss.serialize_index(index)) / len(images)
        for effort in efforts:
            if name.startswith("HNSW"):
                index.hnsw.efSearch = effort
            elif effort:
                index.nprobe = effort
            result = measure(partial(faiss_rows, index), queries, truth)
            report.add("faiss-cpu", name, str(effort or ""), seconds, size, result)


def bench_usearch(images: Array, queries: Array, truth: npt.NDArray[Any], report: Report, threads: int) -> None:
    """The graph of usearch over half-precision rows."""
    from usearch.index import Index

    index: Any = Index(ndim=images.shape[1], metric="ip", dtype="f16", connectivity=32, expansion_add=80)
    seconds, _ = timed(lambda: index.add(np.arange(len(images)), images, threads=threads))
    for effort in (16, 32, 64, 128, 256):
        index.expansion_search = effort
        result = measure(
            lambda q: np.atleast_2d(index.search(q, K, threads=threads).keys).astype(np.int64), queries, truth
        )
        report.add("usearch", "HNSW32 f16", str(effort), seconds, index.memory_usage / len(images), result)


def bench_hnswlib(images: Array, queries: Array, truth: npt.NDArray[Any], report: Report, threads: int) -> None:
    """The graph of hnswlib."""
    import hnswlib

    index = hnswlib.Index(space="ip", dim=images.shape[1])
    index.init_index(max_elements=len(images), ef_construction=80, M=32)
    index.set_num_threads(threads)
    seconds, _ = timed(lambda: index.add_items(images, num_threads=threads))
    size = images.shape[1] * 4 + 2 * 32 * 4 + 16
    for effort in (16, 32, 64, 128, 256):
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


def bench_folder(folder: Path, source: Embeddings, rows: int, batch: int) -> tuple[reco.Memory, dict[str, float]]:
    """Adding, in durable batches, and opening, in a process of its own."""
    memory = reco.Memory.create(folder, source.dim)
    adding = 0.0
    for first in range(0, rows, batch):
        count = min(batch, rows - first)
        images, texts = source.draw(count, 1_000 + first)
        keys = [f"key-{i}" for i in range(first, first + count)]
        captions = [f"a photo of thing {i}" for i in range(first, first + count)]
        adding += timed(lambda: memory.add(images, texts, keys, captions))[0]  # noqa: B023
    memory.close()
    answers = [
        subprocess.run([sys.executable, "-c", _OPEN, str(folder)], capture_output=True, text=True, check=True).stdout
        for _ in range(3)
    ]
    opened = [tuple(map(float, answer.split())) for answer in answers]
    memory = reco.Memory.open(folder)
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
        memory, figures = bench_folder(Path(folder) / "memory", source, options.rows, 10_000)
        queries = source.draw(512, 7)[0]
        truth = memory.search(queries, K, partners=False, exact=True).rows
        images = memory.embeddings("image")
        cosines = images[:2000] @ images[2000:4000].T
        nearest = memory.search(queries, 1, partners=False, exact=True).scores
        figures |= {
            "random_cosine": float(cosines.mean()),
            "nearest_cosine": float(nearest.mean()),
            "load": os.getloadavg()[0],
        }
        print(f"{options.rows:,} pairs of {options.dim}, {options.threads} threads, {processor()}")
        print(json.dumps(figures, indent=1))
        print("| engine | index | setting | build s | bytes a row | recall@10 | queries/s, one by one | by 256 |")
        print("|---|---|---|---|---|---|---|---|")
        if "reco" in options.only:
            bench_reco(memory, queries, truth, report, lists, not options.no_pq)
            figures |= search_while_adding(memory, source, queries)
        if "faiss-cpu" in options.only:
            bench_faiss(images, queries, truth, report, lists, options.threads, not options.no_pq)
        if "usearch" in options.only:
            bench_usearch(images, queries, truth, report, options.threads)
        if "hnswlib" in options.only:
            bench_hnswlib(images, queries, truth, report, options.threads)
    figures["peak_resident_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(figures, indent=1))
    if options.out:
        head = {"rows": options.rows, "dim": options.dim, "threads": options.threads, "processor": processor()}
        options.out.write_text(json.dumps(head | figures | {"engines": report.records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
