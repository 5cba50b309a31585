# SPDX-License-Identifier: Apache-2.0
"""One machine or a cluster: how a folder and a Milvus collection grow, measured, fitted and carried on.

    pip install pymilvus milvus-lite
    python benchmarks/scale.py --rows 10000 100000 1000000 --out benchmarks/scale.json
    python benchmarks/scale.py --milvus http://127.0.0.1:19530 --milvus-process 4242 ...   # a server instead of Lite

For each number of pairs (synthetic, see memory.py; 512 wide): a folder searched exactly, through lists (IVF, 4 sqrt(n)
of them) and through a graph (HNSW32), both tuned to a recall of 0.95, and a Milvus collection with its FLAT index.
Measured are the time to add and to index a pair, the bytes of files a pair, the time of a query with its 10 partners,
one at a time and in batches of 256. All times are taken by the clock (medians) and of CPU (means); with one thread, the
default, the CPU time is what a quiet core needs, and it is what is fitted: a power law a * n^b by least squares in
logarithms. What it says of more pairs comes with the 95 % interval of a new measurement, where that spans less than a
factor of 1,000. Rows that `--out` holds already are not measured again.

What a network adds is computed, not measured: round trips, and the bytes of queries and what is found at the bandwidth
given: of a few pairs more than are wanted, both vectors, since they are compared with the query once more. A query at a
cluster makes three round trips: to the proxy, from there to the nodes that search, and again to those that hold the
partners. A node is taken to search its part as a folder would.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

sys.path.insert(0, str(Path(__file__).parent))
from memory import Array, Embeddings

import reco
from reco.milvus import MilvusMemory
from reco.milvus_search import SPARE

DIM, K, BATCH = 512, 10, 256
PIECE = 10_000
ROUND_TRIPS = 3
FILL = 0.75  # of a machine's memory
MEASURES = {
    "add_us": "add, µs a pair",
    "index_us": "index, µs a pair",
    "bytes": "bytes a pair",
    "one_ms": "one query, ms",
    "batch_ms": "a query of 256, ms",
}
Record = dict[str, Any]  # system, rows, and for each measure its CPU time; "<measure>_clock" beside it


@dataclass
class Stopwatch:
    """Seconds by the clock and of CPU, of this process and, where one is named, of a server's."""

    server: int | None = None

    def cpu(self) -> float:
        """Seconds of CPU so far."""
        return time.process_time() + (self._server() if self.server else 0.0)

    def _server(self) -> float:
        fields = Path(f"/proc/{self.server}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def once(self, work: Callable[[], object]) -> tuple[float, float]:
        """Of one call: clock, CPU."""
        clock, cpu = time.perf_counter(), self.cpu()
        work()
        return time.perf_counter() - clock, self.cpu() - cpu

    def often(self, work: Callable[[], object], seconds: float = 3.0) -> tuple[float, float]:
        """Of a call, after one that does not count: the median by the clock, the mean of CPU."""
        work()
        clocks: list[float] = []
        cpu, end = self.cpu(), time.perf_counter() + seconds
        while len(clocks) < 3 or time.perf_counter() < end:
            clocks.append(self.once(work)[0])
        return float(np.median(clocks)), (self.cpu() - cpu) / len(clocks)


def folder_bytes(path: Path) -> int:
    """Of all files below a path."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def fill(memory: reco.MemoryBase, source: Embeddings, rows: int, watch: Stopwatch) -> tuple[float, float]:
    """Add pairs; the seconds that adding took."""
    clock = cpu = 0.0
    for first in range(0, rows, PIECE):
        images, texts = source.draw(min(PIECE, rows - first), first + 1)
        keys = [str(first + i) for i in range(len(images))]
        took = watch.once(lambda images=images, texts=texts, keys=keys: memory.add(images, texts, keys))  # type: ignore[misc]
        clock, cpu = clock + took[0], cpu + took[1]
    return clock, cpu


def record(system: str, rows: int, size: int, times: dict[str, tuple[float, float]]) -> Record:
    """One measured row; times are seconds by the clock and of CPU in all (add, index) or a query (one, batch)."""
    out: Record = {"system": system, "rows": rows, "bytes": size / rows}
    for name, scale in (("add_us", 1e6 / rows), ("index_us", 1e6 / rows), ("one_ms", 1e3), ("batch_ms", 1e3)):
        out[f"{name}_clock"], out[name] = (scale * seconds for seconds in times.get(name[:-3], (0.0, 0.0)))
    return out


def searched(memory: reco.MemoryBase, queries: Array, watch: Stopwatch) -> dict[str, tuple[float, float]]:
    """The times of a query, alone and among others."""
    turn = iter(range(10**9))

    def one() -> None:
        i = next(turn) % BATCH
        memory.search(queries[i : i + 1], K)

    batch = watch.often(lambda: memory.search(queries, K))
    return {"one": watch.often(one), "batch": (batch[0] / BATCH, batch[1] / BATCH)}


def measure_folder(rows: int, indexes: list[str], place: Path, keep: Callable[[Record], None]) -> None:
    """A folder: exact search, then through each index."""
    source, watch = Embeddings(DIM, 1000, 0), Stopwatch()
    queries = source.draw(BATCH, 10**9)[0]
    memory = reco.Memory.create(place / "memory", DIM)
    add = fill(memory, source, rows, watch)
    keep(record("folder, exact", rows, folder_bytes(place), {"add": add, **searched(memory, queries, watch)}))
    for index in indexes:
        wanted = f"IVF{round(4 * math.sqrt(rows))},Flat" if index == "IVF" else index
        took = watch.once(lambda wanted=wanted: memory.optimize(wanted, recall=0.95))  # type: ignore[misc]
        times = {"add": add, "index": took, **searched(memory, queries, watch)}
        keep(record(f"folder, {index}", rows, folder_bytes(place), times))


def measure_milvus(rows: int, uri: str, server: int | None, place: Path, keep: Callable[[Record], None]) -> None:
    """A collection, in a Milvus Lite file of its own or on a server, where its bytes are not known."""
    source, watch = Embeddings(DIM, 1000, 0), Stopwatch(server)
    queries = source.draw(BATCH, 10**9)[0]
    name = f"scale_{rows}_{os.getpid()}"
    memory = MilvusMemory.create(uri or str(place / "pairs.db"), name, DIM, timeout=600)
    add = fill(memory, source, rows, watch)
    seal = watch.once(memory.flush)  # with indexing; a server may have begun with both before
    times = {"add": (add[0] + seal[0], add[1] + seal[1]), **searched(memory, queries, watch)}
    keep(record("Milvus server" if uri else "Milvus Lite", rows, 0 if uri else folder_bytes(place), times))


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
    """What a network adds to a search: round trips, the queries, both vectors of what is found, in float32."""
    return ROUND_TRIPS * round_trip_ms + queries * (1 + 2 * (K + SPARE)) * 4 * DIM * 8 / (gigabits * 1e6)


def number(value: float) -> str:
    """Three digits."""
    return "–" if not np.isfinite(value) or value == 0 else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def of(results: list[Record], system: str) -> list[Record]:
    """The rows of a system, small to large."""
    return sorted((r for r in results if r["system"] == system), key=lambda r: int(r["rows"]))


def systems(results: list[Record]) -> list[str]:
    """Those that were measured, in their order."""
    return list(dict.fromkeys(r["system"] for r in results))


def measured_table(results: list[Record]) -> list[str]:
    """What was measured: CPU time, and by the clock in brackets."""
    lines = ["| system | pairs | " + " | ".join(MEASURES.values()) + " |", "|---|---|" + "---|" * len(MEASURES)]
    for r in (r for system in systems(results) for r in of(results, system)):
        cells = [number(r[name]) + (f" ({number(r[f'{name}_clock'])})" if r.get(f"{name}_clock") else "")
                 for name in MEASURES]  # fmt: skip
        lines.append(f"| {r['system']} | {r['rows']:,} | " + " | ".join(cells) + " |")
    return lines


def fitted(results: list[Record], system: str, name: str, wanted: int) -> tuple[float, float, float]:
    """What a system's power law says, not a number where it was measured less than twice."""
    rows = [r for r in of(results, system) if r[name]]
    if len(rows) < 2:
        return (float("nan"),) * 3
    return carry_on([r["rows"] for r in rows], [r[name] for r in rows], wanted)


def interval(fit: tuple[float, float, float]) -> str:
    """A value with its interval, or that there is no saying."""
    value, low, high = fit
    if not np.isfinite(low):
        return number(value)
    return f"{number(value)} ({number(low)} to {number(high)})" if high < 1000 * low else f"{number(value)} (unbounded)"


def fit_table(results: list[Record], wanted: list[int]) -> list[str]:
    """What the power laws say of more pairs."""
    lines = ["| system | pairs | " + " | ".join(MEASURES.values()) + " |", "|---|---|" + "---|" * len(MEASURES)]
    for system in systems(results):
        for pairs in wanted:
            fits = [fitted(results, system, name, pairs) for name in MEASURES]
            lines.append(f"| {system} | {pairs:,} | " + " | ".join(map(interval, fits)) + " |")
    return lines


def measured_milvus(results: list[Record], pairs: int) -> str:
    """A query's milliseconds in a collection of so many pairs that compares with all of them, on one core."""
    rows = [r for name in ("server", "Lite") for r in of(results, f"Milvus {name}") if r["rows"] == pairs]
    return f"{number(rows[0]['one_ms'])} ({rows[0]['system'].removeprefix('Milvus ')})" if rows else "–"


def beyond(fit: tuple[float, float, float], added: float) -> tuple[float, float, float]:
    """A value and its interval with something added."""
    value, low, high = (part + added for part in fit)
    return value, low, high


def choice_table(results: list[Record], wanted: list[int], a: argparse.Namespace) -> list[str]:
    """One machine or several: what must fit in memory, and milliseconds a query on one core of each."""
    head = ("pairs", "both sides, GB", "one machine: exact, ms", f"by {a.index}, ms", f"machines of {a.gigabytes} GB",
            "cluster, ms", "Milvus, measured, ms", "what to take")  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for pairs in wanted:
        size = pairs * 4 * DIM  # two sides in float16
        nodes = max(1, math.ceil(size / (FILL * 1e9 * a.gigabytes)))
        exact, listed, part = (
            fitted(results, f"folder, {name}", "one_ms", rows)
            for name, rows in (("exact", pairs), (a.index, pairs), (a.index, pairs // nodes))
        )
        cluster = beyond(part, network_ms(a.round_trip_ms, a.gigabits))
        one = f"a folder on {number(size / FILL / 1e9)} GB"
        several = f"{one}, or a cluster" if listed[0] <= cluster[0] else f"a cluster, or {one}"
        cells = (f"{pairs:,}", number(size / 1e9), interval(exact), interval(listed), str(nodes), interval(cluster),
                 measured_milvus(results, pairs), "a folder" if nodes == 1 else several)  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def network_table(a: argparse.Namespace) -> list[str]:
    """What networks add to a query."""
    lines = ["| round trip, ms | Gbit/s | one query, ms | a batch of 256, ms a query |", "|---|---|---|---|"]
    for trip, speed in sorted({(0.1, 25.0), (a.round_trip_ms, a.gigabits), (2.0, 1.0), (20.0, 1.0)}):
        batch = network_ms(trip, speed, BATCH) / BATCH
        lines.append(f"| {trip:g} | {speed:g} | {number(network_ms(trip, speed))} | {number(batch)} |")
    return lines


def report(results: list[Record], a: argparse.Namespace) -> str:
    """All tables, in Markdown."""
    parts = (
        ("Measured: CPU time (by the clock)", measured_table(results)),
        ("Carried on by power laws (95 % interval of a new measurement)", fit_table(results, a.wanted)),
        (f"What a network adds: {ROUND_TRIPS} round trips, {K + SPARE} pairs a query", network_table(a)),
        (
            f"One machine or a cluster, at {a.round_trip_ms:g} ms and {a.gigabits:g} Gbit/s (95 % interval)",
            choice_table(results, [r for r in (10**5, 10**6) if r not in a.wanted] + a.wanted, a),
        ),
    )
    return "\n\n".join(f"**{title}**\n\n" + "\n".join(lines) for title, lines in parts)


def measure(a: argparse.Namespace, results: list[Record]) -> None:
    """Measure what is not among the results yet."""

    def keep(row: Record) -> None:
        same = (row["system"], row["rows"])
        results[:] = [r for r in results if (r["system"], r["rows"]) != same] + [row]
        print(json.dumps(row), file=sys.stderr, flush=True)
        if a.out:
            a.out.write_text(json.dumps({"threads": a.threads, "results": results}, indent=1) + "\n")

    there = {(r["system"], r["rows"]) for r in results}
    for rows in a.rows:
        indexes = [i for i in a.indexes if (f"folder, {i}", rows) not in there]
        if indexes or ("folder, exact", rows) not in there:
            with tempfile.TemporaryDirectory(dir=a.folder) as place:
                measure_folder(rows, indexes, Path(place), keep)
    for rows in a.rows if a.milvus_rows is None else a.milvus_rows:
        if ("Milvus server" if a.milvus else "Milvus Lite", rows) not in there:
            with tempfile.TemporaryDirectory(dir=a.folder) as place:
                measure_milvus(rows, a.milvus, a.milvus_process, Path(place), keep)


def main() -> None:
    """Measure, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--indexes", nargs="*", default=["IVF", "HNSW32"], help="of the folder")
    parser.add_argument("--milvus-rows", type=int, nargs="*", help="as --rows if not given")
    parser.add_argument("--milvus", default="", help="address of a server; a Milvus Lite file if not given")
    parser.add_argument("--milvus-process", type=int, help="the server's process here, whose CPU time counts")
    parser.add_argument("--wanted", type=int, nargs="+", default=[10_000_000, 100_000_000, 1_000_000_000])
    parser.add_argument(
        "--index", default="IVF", help="the folder's index in the choice between one machine and several"
    )
    parser.add_argument("--round-trip-ms", type=float, default=0.5)
    parser.add_argument("--gigabits", type=float, default=10.0)
    parser.add_argument("--gigabytes", type=int, default=64, help="memory of a cluster's machine")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the memories are made; the temporary folder if not given")
    parser.add_argument("--out", type=Path, help="JSON file of the measured rows, gone on with where it is there")
    arguments = parser.parse_args()
    reco.set_threads(arguments.threads)
    there = arguments.out is not None and arguments.out.exists()
    results: list[Record] = json.loads(arguments.out.read_text())["results"] if there else []
    measure(arguments, results)
    print(report(results, arguments))


if __name__ == "__main__":
    main()
