# SPDX-License-Identifier: Apache-2.0
"""One machine or a cluster: how a folder and a Milvus collection grow, measured, fitted and carried on.

    pip install pymilvus milvus-lite
    python benchmarks/scale.py --rows 10000 100000 1000000 --out benchmarks/scale.json

For each number of pairs (synthetic, see memory.py; 512 wide), in a folder with an index of optimize() and in a Milvus
Lite file with its FLAT index: seconds to add and to index a pair, bytes of files a pair, milliseconds of a query with
its partners, one at a time and in batches of 256. A power law a * n^b is fitted to each by least squares in logarithms;
what it says of more pairs comes with the 95 % interval of a new measurement, which is wide, since three points say
little.

What a network adds is computed, not measured: a round trip, and the bytes of k partners at the bandwidth given. With
that, each row says up to how many pairs a folder on a local disk answers faster than a collection of `--nodes` nodes
that share the work.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

sys.path.insert(0, str(Path(__file__).parent))
from memory import Embeddings, median_time

import reco
from reco.milvus import MilvusMemory

DIM, K, BATCH = 512, 10, 256
PIECE = 10_000
MEASURES = ("add_us", "index_us", "bytes", "one_ms", "batch_ms")
LABELS = ("add, µs a pair", "index, µs a pair", "bytes a pair", "one query, ms", "a query of 256, ms")


def folder_bytes(path: Path) -> int:
    """Of all files below a path."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def fill(memory: reco.MemoryBase, source: Embeddings, rows: int) -> float:
    """Add pairs; the seconds that adding took."""
    seconds = 0.0
    for first in range(0, rows, PIECE):
        images, texts = source.draw(min(PIECE, rows - first), first + 1)
        keys = [str(first + i) for i in range(len(images))]
        start = time.perf_counter()
        memory.add(images, texts, keys)
        seconds += time.perf_counter() - start
    return seconds


def measure(kind: str, rows: int, folder: Path) -> dict[str, Any]:
    """All measures of one memory."""
    source = Embeddings(DIM, 1000, 0)
    queries = source.draw(BATCH, 10**9)[0]
    memory: reco.MemoryBase
    if kind == "folder":
        memory = reco.Memory.create(folder / "memory", DIM)
    else:
        memory = MilvusMemory.create(str(folder / "pairs.db"), "pairs", DIM, timeout=600)
    add = fill(memory, source, rows)
    start = time.perf_counter()
    if isinstance(memory, reco.Memory):
        memory.optimize("HNSW32", recall=0.95)
    index = time.perf_counter() - start
    one = median_time(lambda: memory.search(queries[:1], K), 5, 2)
    batch = median_time(lambda: memory.search(queries, K), 3, 2) / BATCH
    values = (1e6 * add / rows, 1e6 * index / rows, folder_bytes(folder) / rows, 1e3 * one, 1e3 * batch)
    return {"kind": kind, "rows": rows} | dict(zip(MEASURES, values, strict=True))


def carry_on(rows: list[int], values: list[float], wanted: int) -> tuple[float, float, float]:
    """A power law's value at `wanted`, and the 95 % interval of a new measurement (needs three points)."""
    x, y = np.log(rows), np.log(np.maximum(values, 1e-12))
    slope, intercept = np.polyfit(x, y, 1)
    at = float(np.log(wanted))
    centre = slope * at + intercept
    if len(rows) < 3:
        return float(np.exp(centre)), float("nan"), float("nan")
    spread = np.sqrt(((y - slope * x - intercept) ** 2).sum() / (len(rows) - 2))
    error = spread * np.sqrt(1 + 1 / len(rows) + (at - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum())
    half = scipy.stats.t.ppf(0.975, len(rows) - 2) * error
    return float(np.exp(centre)), float(np.exp(centre - half)), float(np.exp(min(centre + half, 700)))


def network_ms(round_trip_ms: float, gigabits: float, queries: int = 1) -> float:
    """What a network adds to a search: one round trip, the queries there and k partners a query back, in float32."""
    return round_trip_ms + queries * (1 + K) * 4 * DIM * 8 / (gigabits * 1e6)


def number(value: float) -> str:
    """Three digits."""
    return "–" if not np.isfinite(value) else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(results: list[dict[str, Any]], wanted: list[int], arguments: argparse.Namespace) -> str:
    """Measured rows, then what the fits say, in Markdown."""
    lines = ["| memory | pairs | " + " | ".join(LABELS) + " |", "|---|---|" + "---|" * len(LABELS)]
    lines += [
        f"| {r['kind']} | {r['rows']:,} | " + " | ".join(number(r[name]) for name in MEASURES) + " |" for r in results
    ]
    one: dict[tuple[str, int], float] = {}
    for kind in dict.fromkeys(r["kind"] for r in results):
        mine = [r for r in results if r["kind"] == kind]
        sizes = [r["rows"] for r in mine]
        for pairs in wanted:
            cells = []
            for name in MEASURES:
                if not any(r[name] > 1 for r in mine) and name == "index_us":
                    cells.append("–")
                    continue
                value, low, high = carry_on(sizes, [r[name] for r in mine], pairs)
                cells.append(f"{number(value)} ({number(low)} to {number(high)})")
                if name == "one_ms":
                    one[kind, pairs] = value
            lines.append(f"| {kind}, carried on | {pairs:,} | " + " | ".join(cells) + " |")
    delay, speed, nodes = arguments.round_trip_ms, arguments.gigabits, arguments.nodes
    extra, batch = network_ms(delay, speed), network_ms(delay, speed, BATCH)
    lines += [
        "",
        f"A network of {delay} ms a round trip and {speed:g} Gbit/s adds {extra:.2f} ms to a query with its {K} "
        f"partners, {batch:.1f} ms to {BATCH} of them.",
        "",
        f"| pairs | folder, ms a query | {nodes} nodes, each a folder of its part, ms |",
        "|---|---|---|",
    ]
    local = [r for r in results if r["kind"] == "folder"]
    sizes, times = [r["rows"] for r in local], [r["one_ms"] for r in local]
    for pairs in wanted:
        part = carry_on(sizes, times, max(1, pairs // nodes))[0]
        lines.append(f"| {pairs:,} | {number(one['folder', pairs])} | {number(part + extra)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--milvus-rows", type=int, nargs="+", help="fewer for Milvus Lite; as --rows if not given")
    parser.add_argument("--wanted", type=int, nargs="+", default=[10_000_000, 100_000_000, 1_000_000_000])
    parser.add_argument("--round-trip-ms", type=float, default=0.5)
    parser.add_argument("--gigabits", type=float, default=10.0)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the memories are made; the temporary folder if not given")
    parser.add_argument("--out", type=Path, help="JSON file for the measured rows")
    arguments = parser.parse_args()
    reco.set_threads(arguments.threads)
    results = []
    for kind, sizes in (("folder", arguments.rows), ("milvus", arguments.milvus_rows or arguments.rows)):
        for rows in sizes:
            with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                results.append(measure(kind, rows, Path(folder)))
            print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    print(table(results, arguments.wanted, arguments))
    if arguments.out:
        facts = {"processor": platform.processor() or platform.machine(), "threads": arguments.threads}
        arguments.out.write_text(json.dumps(facts | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
