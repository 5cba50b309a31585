# SPDX-License-Identifier: Apache-2.0
"""How much memory training takes as pairs grow: they are streamed from a memory folder, never held.

    python benchmarks/streaming.py 100000 300000 1000000

Each number of pairs is trained on in a process of its own, one epoch; its anonymous resident memory (what is not a page
of a file that can be dropped) is sampled every 10 ms, and its peak is set against that before training. The neighbours
are kept in a folder (--held: in memory). The last column is what one pair more takes, from the row above to this one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

import reco

REMEMBERED = 2000
AT_ONCE = 20_000


def resident() -> int:
    """Bytes of anonymous resident memory."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def fill(memory: reco.Memory, rows: int, seed: int) -> reco.Memory:
    """Random pairs, a block at a time."""
    random = np.random.default_rng(seed)
    for first in range(0, rows, AT_ONCE):
        count = min(AT_ONCE, rows - first)
        images, texts = (random.standard_normal((count, memory.dim), np.float32) for _ in range(2))
        memory.add(images, texts, [f"{seed}-{first + i}" for i in range(count)])
    return memory


def train(folder: Path, pairs: int, dim: int, hold: bool) -> dict[str, float]:
    """One epoch over so many pairs, in this process."""
    held = fill(reco.Memory.create(folder / "pairs", dim=dim), pairs, 1)
    memory = fill(reco.Memory.create(folder / "memory", dim=dim), REMEMBERED, 2)
    shape = reco.FusionConfig(dim=dim, layers=0, k=10)
    files = None if hold else folder / "neighbors"
    config = reco.TrainingConfig(
        fusion=shape, epochs=1, batch_size=1024, micro_batch=256, validation=0.0, neighbors=files
    )
    before = resident()
    peak, done = [before], threading.Event()

    def sample() -> None:
        while not done.wait(0.01):
            peak.append(max(peak.pop(), resident()))

    sampler = threading.Thread(target=sample)
    sampler.start()
    started = time.perf_counter()
    reco.train(held, None, memory, config)
    seconds = time.perf_counter() - started
    done.set()
    sampler.join()
    found = sum(file.stat().st_size for file in (folder / "neighbors").glob("*"))
    rows = {"grown": peak[0] - before, "held": 2 * 4.0 * dim * pairs, "files": found}
    return {"pairs": pairs, "seconds": seconds} | rows


def main() -> None:
    """Print a row for each number of pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=int, nargs="+")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--held", action="store_true", help="neighbours in memory")
    parser.add_argument("--inside", type=Path, help="train here and now, in this folder")
    given = parser.parse_args()
    if given.inside:
        print(json.dumps(train(given.inside, given.pairs[0], given.dim, given.held)))
        return
    columns = ["pairs", "peak, beyond what was there before, MB", "their embeddings in float32, MB"]
    columns += ["neighbours' files, MB", "seconds", "bytes a pair more"]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    before = None
    for pairs in given.pairs:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, str(pairs), "--dim", str(given.dim), "--inside", folder]
            command += ["--held"] if given.held else []
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        row = [f"{pairs:,}", *(f"{found[name] / 1e6:.0f}" for name in ("grown", "held", "files"))]
        row.append(f"{found['seconds']:.0f}")
        row.append(f"{(found['grown'] - before['grown']) / (pairs - before['pairs']):.0f}" if before else "")
        print("| " + " | ".join(row) + " |", flush=True)
        before = found


if __name__ == "__main__":
    main()
