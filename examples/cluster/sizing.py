# SPDX-License-Identifier: Apache-2.0
"""The README's tables: what 10 M, 100 M and a billion pairs need, computed from the measured figures below.

python examples/cluster/sizing.py
"""

from __future__ import annotations

import math
from collections.abc import Sequence

PAIRS = (10**7, 10**8, 10**9)
DIM = 512

# Measured; the README says where.
IMAGE_MS, TEXT_MS = 43.8, 7.39  # of CPU to encode one, ViT-B/32 in bfloat16
GRAPH_BYTES = 276  # a row and side, links of an HNSW graph with M = 32
WORDS_BYTES = 72  # a pair: key, caption of 25 bytes and metadata in a collection's files
GRAPH_MS = {100_000: 0.137, 300_000: 0.258}  # of CPU for a query with its partners through such a graph of so many rows
IMPORT_US = 110  # of CPU that the importing process takes a pair

# Chosen.
SEGMENT_BYTES = 1 << 30  # Milvus's default size of a sealed segment, each with a graph of its own
FILL = 0.75  # of a machine's memory
CORES, WORKERS = 16, 10  # of a machine; machines that embed
FOUND = 14  # pairs whose vectors come back, four more than are wanted
TRIP_MS, GIGABITS = 0.5, 10  # of a network
TRIPS = {2: 5, 4: 3}  # by the bytes a number: float16 vectors are fetched by a second request


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows))


def number(value: float) -> str:
    """Two digits, or all before the point."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def pair_bytes(width: int) -> int:
    """Both vectors of a pair, `width` bytes a number, and its words."""
    return 2 * DIM * width + WORDS_BYTES


def loaded_bytes(width: int) -> int:
    """What a query node keeps in memory of a pair: vectors and graphs of both sides, words."""
    return pair_bytes(width) + 2 * GRAPH_BYTES


def graph_ms(rows: float) -> float:
    """CPU time of a query in a graph of so many rows: a power law through the two measured ones."""
    (small, a), (large, b) = sorted(GRAPH_MS.items())
    return float(a * (rows / small) ** (math.log(b / a) / math.log(large / small)))


def nodes(pairs: int, width: int, gigabytes: int) -> int:
    """Machines whose memory holds what is loaded."""
    return math.ceil(pairs * loaded_bytes(width) / (FILL * gigabytes * 1e9))


def search_ms(pairs: int, width: int) -> float:
    """CPU time of a query: each segment's graph is walked."""
    rows = SEGMENT_BYTES / pair_bytes(width)
    return pairs / rows * graph_ms(rows)


def network_ms(width: int) -> float:
    """What a network adds to a query: round trips, the query, both vectors of what is found."""
    return TRIPS[width] * TRIP_MS + (1 + 2 * FOUND) * width * DIM * 8 / (GIGABITS * 1e6)


def embedding() -> str:
    """What embedding takes."""
    core_hours = [pairs * (IMAGE_MS + TEXT_MS) / 3.6e6 for pairs in PAIRS]
    rows = [
        (f"{pairs:,}", number(hours), number(hours / CORES / WORKERS), number(pairs * 4 * DIM / 1e9))
        for pairs, hours in zip(PAIRS, core_hours, strict=True)
    ]
    return table(("pairs", "core hours", f"hours on {WORKERS} machines of {CORES} cores", "embeddings, GB"), rows)


def storage() -> str:
    """What a collection takes."""
    head = ("pairs", "vectors", "object store, GB", "memory, GB", "machines of 64 GB", "of 256 GB", "import, hours")
    rows = [
        (f"{pairs:,}", name, number(pairs * (pair_bytes(width) + loaded_bytes(width)) / 1e9),
         number(pairs * loaded_bytes(width) / 1e9), str(nodes(pairs, width, 64)), str(nodes(pairs, width, 256)),
         number(pairs * IMPORT_US / 3.6e9))
        for pairs in PAIRS for name, width in (("float16", 2), ("float32", 4))
    ]  # fmt: skip
    return table(head, rows)


def latency() -> str:
    """What a query takes."""
    head = ("pairs", "vectors", "segments", "CPU ms a query", f"machines of 256 GB, {CORES} cores", "expected, ms",
            "queries a second at most")  # fmt: skip
    rows = []
    for pairs in PAIRS:
        for name, width in (("float16", 2), ("float32", 4)):
            machines, cpu = nodes(pairs, width, 256), search_ms(pairs, width)
            expected = cpu / (machines * CORES) + network_ms(width)
            rows.append(
                (f"{pairs:,}", name, f"{math.ceil(pairs * pair_bytes(width) / SEGMENT_BYTES):,}", number(cpu),
                 str(machines), number(expected), number(1000 * machines * CORES / cpu))
            )  # fmt: skip
    return table(head, rows)


if __name__ == "__main__":
    print(embedding(), storage(), latency(), sep="\n\n")
