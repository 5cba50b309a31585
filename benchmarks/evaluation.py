# SPDX-License-Identifier: Apache-2.0
"""What an evaluation costs beside encoding the images, and what a second run costs.

    python benchmarks/evaluation.py --images 400 --classes 14 --rows 100000

By default CUB at a fourteenth of its size: as many images a class, three prompts. Photographs of 640 x 480 pixels in
JPEG, made of smooth noise; CLIP with random weights at ViT-B/32's shape, and the tiny CLIP of examples/icons, which is
the worst case: it encodes an image in a few milliseconds. Encoding alone is one call of Clip.encode_images over the
files' paths; the evaluation is evaluate_dataset() with an empty cache, from files to results: hashing, cache, encoding
of images and prompts, leak search, refinement of both sides, metrics with bootstrap intervals, JSON and HTML. Both take
turns; times are medians, wall clock and CPU (user and system) of the process.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from encoder import ICONS, save_model
from PIL import Image

import reco
from reco.datasets import load_dataset
from reco.evaluation import EmbeddingCache, Protocol, evaluate_dataset, write_html, write_results

Seconds = tuple[float, float]  # wall clock, CPU


def photograph(seed: int) -> bytes:
    """A JPEG file with about as many details as a photograph."""
    random = np.random.default_rng(seed)
    picture = Image.fromarray(random.integers(0, 256, (60, 80, 3), np.uint8)).resize(
        (640, 480), Image.Resampling.BICUBIC
    )
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=90)
    return out.getvalue()


def make_folder(folder: Path, images: int, classes: int) -> Path:
    """A folder a class."""
    for i in range(images):
        place = folder / f"class_{i % classes}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i}.jpg").write_bytes(photograph(i))
    return folder


def make_memory(path: Path, clip: reco.Clip, rows: int) -> reco.Memory:
    """Random unit rows."""
    random = np.random.default_rng(0)
    memory = reco.Memory.create(path, clip.dim, clip.fingerprint)
    for first in range(0, rows, 10_000):
        both = random.standard_normal((2, min(10_000, rows - first), clip.dim), np.float32)
        both /= np.linalg.norm(both, axis=2, keepdims=True)
        memory.add(both[0], both[1], [str(first + i) for i in range(both.shape[1])])
    return memory


def timed(work: Callable[[], Any]) -> Seconds:
    """One call."""
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    work()
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def median(times: list[Seconds]) -> Seconds:
    """Of each."""
    return statistics.median(t[0] for t in times), statistics.median(t[1] for t in times)


def measure(name: str, folder: Path, data: Path, arguments: argparse.Namespace, scratch: Path) -> None:
    """Print a row."""
    clip = reco.Clip.load(folder)
    memory = make_memory(scratch / f"{name}.reco", clip, arguments.rows)
    model = reco.Model(clip, memory, reco.Fusion.mean(clip.dim))
    dataset = load_dataset("folder", data)
    files = [image for image in dataset.images if isinstance(image, Path)]
    protocol = Protocol(prompts="cub")

    def run(cache_folder: Path) -> None:
        with EmbeddingCache(clip, cache_folder, progress=False) as cache:
            result = evaluate_dataset(model, dataset, protocol, cache=cache, progress=False)
        write_results([result], scratch / "out")
        write_html([result], scratch / "out/report.html")

    clip.encode_images(files[:64])
    encoding, whole, again = [], [], []
    for repeat in range(arguments.repeats):
        encoding.append(timed(lambda: clip.encode_images(files)))
        place = scratch / f"cache-{name}-{repeat}"
        whole.append(timed(lambda place=place: run(place)))  # type: ignore[misc]
        again.append(timed(lambda place=place: run(place)))  # type: ignore[misc]
    alone, total, second = median(encoding), median(whole), median(again)
    cells = [
        name,
        f"{alone[0]:.2f} ({alone[1]:.2f})",
        f"{total[0]:.2f} ({total[1]:.2f})",
        f"{100 * (total[0] / alone[0] - 1):+.1f} % ({100 * (total[1] / alone[1] - 1):+.1f} %)",
        f"{second[0]:.2f} ({second[1]:.2f})",
    ]
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--classes", type=int, default=14)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny-only", action="store_true")
    arguments = parser.parse_args()
    print(
        f"{arguments.images} images, {arguments.classes} classes with 3 prompts each, {arguments.rows} pairs, "
        f"{reco.threads()} threads, load {os.getloadavg()[0]:.1f}\n"
    )
    print("| CLIP | encoding alone, s (CPU s) | whole evaluation | more | second run |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        data = make_folder(scratch / "photographs", arguments.images, arguments.classes)
        measure("tiny", ICONS, data, arguments, scratch)
        if not arguments.tiny_only:
            measure("ViT-B-32", save_model("B/32", scratch / "B-32"), data, arguments, scratch)


if __name__ == "__main__":
    main()
