# SPDX-License-Identifier: Apache-2.0
"""The README's tables: what 10 M, 100 M and a billion pairs need, computed from the measured figures below.

python examples/cluster/sizing.py
"""

from __future__ import annotations

import math
from collections.abc import Sequence

PAIRS = (10**7, 10**8, 10**9)
DIM = 512

# Measured; the README says where, and tests compare them with the tables there.
IMAGE_MS, TEXT_MS = 42.9, 7.14  # of CPU to encode one, ViT-B/32 in bfloat16
INDEX_BYTES = {"HNSW": 276, "IVF_FLAT": 16}  # a row and side: links of a graph with M = 32; lists
WORDS_BYTES = 72  # a pair: key, caption of 25 bytes and metadata in a collection's files
QUERY_MS = {  # of CPU for a query with its partners through such an index of so many rows
    "HNSW": {100_000: 0.137, 300_000: 0.258},
    "IVF_FLAT": {100_000: 0.195, 300_000: 0.412},
}
INDEX_US = {"HNSW": 953, "IVF_FLAT": 323}  # of CPU a pair to build both sides' indexes over 300,000 rows
INGEST_US = 980  # of CPU a pair, of client and server, until 100,000 are stored
IMPORT_US = 137  # of CPU a pair, of the process that imports

# Chosen.
SEGMENT_BYTES = 1 << 30  # Milvus's default size of a sealed segment, each with an index of its own
FILL = 0.75  # of a machine's memory
CORES, WORKERS = 16, 10  # of a machine; machines that embed
REBUILD_HOURS = 8  # in which all indexes are to be built anew
FOUND = 14  # pairs whose vectors come back, four more than are wanted
TRIP_MS, GIGABITS = 0.5, 10  # of a network
TRIPS = {2: 5, 4: 3}  # by the bytes a number: float16 vectors are fetched by a second request
WIDTHS = {"float16": 2, "float32": 4}


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows))


def number(value: float) -> str:
    """Two digits, or all before the point."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def pair_bytes(width: int) -> int:
    """Both vectors of a pair, `width` bytes a number, and its words."""
    return 2 * DIM * width + WORDS_BYTES


def loaded_bytes(width: int, index: str) -> int:
    """What a query node keeps in memory of a pair: vectors and indexes of both sides, words."""
    return pair_bytes(width) + 2 * INDEX_BYTES[index]


def query_ms(rows: float, index: str) -> float:
    """CPU time of a query in an index of so many rows: a power law through the two measured ones."""
    (small, a), (large, b) = sorted(QUERY_MS[index].items())
    return float(a * (rows / small) ** (math.log(b / a) / math.log(large / small)))


def nodes(pairs: int, width: int, index: str, gigabytes: int) -> int:
    """Machines whose memory holds what is loaded."""
    return math.ceil(pairs * loaded_bytes(width, index) / (FILL * gigabytes * 1e9))


def search_ms(pairs: int, width: int, index: str) -> float:
    """CPU time of a query: each segment's index is asked."""
    rows = SEGMENT_BYTES / pair_bytes(width)
    return pairs / rows * query_ms(rows, index)


def stored_bytes(width: int, index: str) -> int:
    """What an object store keeps of a pair: as it was sent, and once more as indexes."""
    return pair_bytes(width) + loaded_bytes(width, index)


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


def kinds() -> list[tuple[int, str, str, int]]:
    """The rows of tables: pairs, vectors, index, and the bytes of a number."""
    return [(pairs, name, index, width) for pairs in PAIRS for name, width in WIDTHS.items() for index in INDEX_BYTES]


def storage() -> str:
    """What a collection takes."""
    head = ("pairs", "vectors", "index", "object store, GB", "memory, GB", "machines of 64 GB", "of 256 GB")
    rows = [
        (f"{pairs:,}", name, index, number(pairs * stored_bytes(width, index) / 1e9),
         number(pairs * loaded_bytes(width, index) / 1e9), *(str(nodes(pairs, width, index, gb)) for gb in (64, 256)))
        for pairs, name, index, width in kinds()
    ]  # fmt: skip
    return table(head, rows)


def filling() -> str:
    """What it takes until a collection is full and indexed."""
    head = ("pairs", "index", "import, hours", "ingest, core hours", "index, core hours", "data machines to keep up",
            f"to build the index anew in {REBUILD_HOURS} hours")  # fmt: skip
    rows = []
    for pairs in PAIRS:
        for index, index_us in INDEX_US.items():
            imported, ingest, built = (pairs * us / 3.6e9 for us in (IMPORT_US, INGEST_US, index_us))
            keep_up = math.ceil((ingest + built) / CORES / imported)
            again = math.ceil(built / CORES / REBUILD_HOURS)
            hours = map(number, (imported, ingest, built))
            rows.append((f"{pairs:,}", index, *hours, str(keep_up), str(again)))
    return table(head, rows)


def disk() -> str:
    """What lies on the machines themselves, with the index HNSW."""
    head = ("pairs", "vectors", "control, GB", "each query machine of 256 GB, GB", "each data machine, GB")
    rows = []
    for pairs, name, index, width in kinds():
        if index == "HNSW":
            mapped = pairs * loaded_bytes(width, index) / nodes(pairs, width, index, 256)
            sizes = (pairs * stored_bytes(width, index), mapped, 2 * CORES * SEGMENT_BYTES)
            rows.append((f"{pairs:,}", name, *(number(size / 1e9) for size in sizes)))
    return table(head, rows)


def latency() -> str:
    """What a query takes."""
    head = ("pairs", "vectors", "index", "segments", "CPU ms a query", f"machines of 256 GB, {CORES} cores",
            "expected, ms", "queries a second at most")  # fmt: skip
    rows = []
    for pairs, name, index, width in kinds():
        machines, cpu = nodes(pairs, width, index, 256), search_ms(pairs, width, index)
        expected = cpu / (machines * CORES) + network_ms(width)
        rows.append(
            (f"{pairs:,}", name, index, f"{math.ceil(pairs * pair_bytes(width) / SEGMENT_BYTES):,}", number(cpu),
             str(machines), number(expected), number(1000 * machines * CORES / cpu))
        )  # fmt: skip
    return table(head, rows)


if __name__ == "__main__":
    print(embedding(), storage(), filling(), disk(), latency(), sep="\n\n")
