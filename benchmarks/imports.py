# SPDX-License-Identifier: Apache-2.0
"""What it costs to import embeddings into a Milvus collection: of CPU, in the process that imports and in the server.

    pip install pymilvus milvus-lite
    python benchmarks/imports.py --rows 10000 30000

A folder of synthetic pairs (see memory.py; 512 wide, 10,000 a shard), as `reco embed` writes it, goes through
MilvusMemory.import_embeddings() to Milvus Lite as a process of its own on 127.0.0.1: keys looked up, pairs sent, keys
looked up again, a sample read back, all counted. The server is Python and tells little of others; the process that
imports does the same work whatever the server is. CPU time is what a quiet core needs.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from memory import Embeddings as Source
from scale import DIM, PIECE, Stopwatch, number

import reco
from reco.embedding import Embeddings
from reco.embedding_folder import write_shard
from reco.milvus import MilvusMemory


def write(folder: Path, rows: int) -> None:
    """Pairs with captions of 25 bytes and the metadata that a file's path is."""
    source = Source(DIM, 1000, 0)
    for first in range(0, rows, PIECE):
        images, texts = source.draw(min(PIECE, rows - first), first + 1)
        names = [f"{first + i:09}" for i in range(len(images))]
        metadata = [{"image_path": f"{name}.jpg"} for name in names]
        write_shard(
            folder, first // PIECE, Embeddings(images, texts, names, [f"a caption with {n}." for n in names], metadata)
        )


@contextmanager
def server(folder: Path) -> Iterator[tuple[str, int]]:
    """Its address and process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(folder), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.kill()
        process.wait()


def measure(rows: int) -> str:
    """A row of the table."""
    with tempfile.TemporaryDirectory() as place:
        write(Path(place) / "embeddings", rows)
        with server(Path(place) / "server") as (uri, pid):
            memory = MilvusMemory.create(uri, "imports", DIM, timeout=600)
            here, there = Stopwatch(), Stopwatch(pid)
            before, clock = there.cpu() - here.cpu(), time.perf_counter()
            _, ours = here.once(lambda: memory.import_embeddings(Path(place) / "embeddings", progress=False))
            seconds = time.perf_counter() - clock
            theirs = there.cpu() - here.cpu() - before
    cells = (f"{rows:,}", *(number(1e6 * value / rows) for value in (ours, theirs, seconds)))
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 30_000])
    rows = parser.parse_args().rows
    reco.set_threads(1)
    print("| pairs | the importing process, CPU µs a pair | the server, CPU µs a pair | µs a pair by the clock |")
    print("|---|---|---|---|")
    for count in rows:
        print(measure(count), flush=True)


if __name__ == "__main__":
    main()
