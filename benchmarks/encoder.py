# SPDX-License-Identifier: Apache-2.0
"""What reco's encoder reaches, and its peers beside it, in one run on the same threads.

    python benchmarks/encoder.py [--quick] [--threads N] [--models B/32 B/16 L/14] [--repeats N]

Weights are random, at the true shapes. Peers take turns, so that what else the machine does hits all of them; the table
gives the median, the range, and the CPU time (user and system) an item takes; where cores are shared with others, the
CPU time is what to compare. The share of the GEMM peak is one of operations per CPU second too. ONNX Runtime and
OpenVINO are measured where they are installed (pip install onnxruntime openvino onnx onnxscript).
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import io
import logging
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ICONS = ROOT / "examples/icons/clip"

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads would be charged to whoever comes next

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel  # noqa: E402
from transformers.utils.logging import disable_progress_bar  # noqa: E402

import reco  # noqa: E402

# (width, layers, heads) of the vision and the text tower, patch size, width of the shared space, images a batch.
SHAPES = {
    "B/32": ((768, 12, 12), (512, 12, 8), 32, 512, 32),
    "B/16": ((768, 12, 12), (512, 12, 8), 16, 512, 16),
    "L/14": ((1024, 24, 16), (768, 12, 12), 14, 768, 4),
}
TEXTS = 128
TEXT_BATCH = 64


@dataclass
class Times:
    """Seconds a repeat took, by the clock and by the processor."""

    wall: list[float]
    cpu: list[float]

    def rate(self, items: int) -> str:
        """Items a second: median (slowest to fastest)."""
        rates = sorted(items / t for t in self.wall)
        return f"{number(statistics.median(rates))} ({number(rates[0])}–{number(rates[-1])})"

    def cpu_each(self, items: int) -> str:
        """Milliseconds of processor time an item, median."""
        return number(1000 * statistics.median(self.cpu) / items)

    def against(self, other: Times) -> list[str]:
        """Its speed as a share of another's: by the clock, and by CPU time."""
        return [
            f"{statistics.median(getattr(other, k)) / statistics.median(getattr(self, k)):.2f}" for k in ("wall", "cpu")
        ]


def number(value: float) -> str:
    """Three significant digits."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def take_turns(peers: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Times]:
    """`repeats` rounds of all peers, which have run before."""
    times = {name: Times([], []) for name in peers}
    for _ in range(repeats):
        for name, peer in peers.items():
            wall, cpu = time.perf_counter(), time.process_time()
            peer()
            times[name].wall.append(time.perf_counter() - wall)
            times[name].cpu.append(time.process_time() - cpu)
    return times


def table(columns: list[str], rows: list[list[str]]) -> None:
    """Print as Markdown."""
    print("\n| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(row + [""] * (len(columns) - len(row))) + " |")
    print(flush=True)


# --- what is measured ------------------------------------------------------------------------------------------------
def save_model(name: str, folder: Path) -> Path:
    """A Hugging Face folder with random weights of this shape."""
    (width, layers, heads), (text_width, text_layers, text_heads), patch, dim, _ = SHAPES[name]
    vision = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    text = {"hidden_size": text_width, "intermediate_size": 4 * text_width, "num_hidden_layers": text_layers}
    config = CLIPConfig(
        vision_config=vision | {"num_attention_heads": heads, "patch_size": patch, "projection_dim": dim},
        text_config=text | {"num_attention_heads": text_heads, "projection_dim": dim},
        projection_dim=dim,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)
    for file in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(ICONS / file, folder)
    return folder


def pictures(count: int, width: int, height: int) -> list[Image.Image]:
    """Smooth shapes with some noise, which JPEG files of photographs resemble in size."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width]
    found = []
    for _ in range(count):
        waves = [np.sin(x / rng.uniform(9, 90)) * np.cos(y / rng.uniform(9, 90)) for _ in range(3)]
        noise = rng.normal(0, 6, (height, width, 1))
        found.append(Image.fromarray((128 + 90 * np.stack(waves, -1) + noise).clip(0, 255).astype(np.uint8)))
    return found


def captions(count: int) -> list[str]:
    """Captions of 4 to 20 words."""
    sentence = "a photo of the small red house beside two people riding old bicycles near some trees in front"
    words = sentence.split()
    rng = np.random.default_rng(1)
    return [" ".join(rng.choice(words, rng.integers(4, 21))) for _ in range(count)]


def vision_flops(name: str, whole_last_layer: bool) -> float:
    """Multiplications and additions of an image; reco computes one token of the last layer only, behind its keys."""
    (width, layers, _), _, patch, dim, _ = SHAPES[name]
    tokens = (224 // patch) ** 2 + 1

    def layer(queries: int) -> float:
        return 2 * (
            tokens * 2 * width**2 + queries * 2 * width**2 + queries * 8 * width**2 + 2 * queries * tokens * width
        )

    last = layer(tokens if whole_last_layer else 1)
    return 2 * (tokens - 1) * 3 * patch**2 * width + (layers - 1) * layer(tokens) + last + 2 * width * dim


def gemm_peak(dtype: torch.dtype, repeats: int) -> float:
    """The best rate of a matrix product, in operations a CPU second: square or a transformer's, packed or not."""
    best = 0.0
    for rows, inner, columns in ((2048, 2048, 2048), (3152, 768, 3072), (3152, 3072, 768)):
        a, b = torch.randn(rows, inner, dtype=dtype), torch.randn(columns, inner, dtype=dtype)
        ways: list[Callable[[], Any]] = [lambda a=a, b=b: a @ b.t()]  # type: ignore[misc]
        with contextlib.suppress(AttributeError, RuntimeError):
            packed = torch.ops.mkldnn._reorder_linear_weight(b, rows)
            ways.append(lambda a=a, p=packed: torch.ops.mkldnn._linear_pointwise(a, p, None, "none", [], ""))  # type: ignore[misc]
        for way in ways:
            way()
            for _ in range(3 * repeats):
                start = time.process_time()
                way()
                best = max(best, 2 * rows * inner * columns / (time.process_time() - start))
    return best


# --- peers -----------------------------------------------------------------------------------------------------------
class Tower(torch.nn.Module):
    """One side of a CLIPModel: pixels or token ids in, unit rows out."""

    def __init__(self, model: Any, images: bool) -> None:
        super().__init__()
        self.model, self.images = model, images

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Embed."""
        found = self.model.get_image_features(inputs) if self.images else self.model.get_text_features(inputs)
        rows: Any = found if isinstance(found, torch.Tensor) else found.pooler_output
        return rows / rows.norm(dim=-1, keepdim=True)  # type: ignore[no-any-return]


def in_torch(model: Any, attention: str, inputs: list[torch.Tensor], images: bool) -> Callable[[], Any]:
    """A transformers peer: batches one after the other."""
    tower = Tower(model, images).eval()

    def run() -> Any:
        model.set_attn_implementation(attention)
        with torch.inference_mode():
            return np.concatenate([tower(batch).float().numpy() for batch in inputs])

    return run


def export(model: Any, example: torch.Tensor, images: bool, file: Path) -> Path:
    """The tower as ONNX, of fixed shape."""
    model.set_attn_implementation("sdpa")
    with contextlib.redirect_stdout(io.StringIO()), torch.inference_mode():
        torch.onnx.export(Tower(model, images).eval(), (example,), str(file), dynamo=True, external_data=True)
    return file


def in_onnxruntime(file: Path, inputs: list[torch.Tensor], threads: int) -> Callable[[], Any]:
    """A peer that runs an exported tower."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    arrays = [batch.numpy() for batch in inputs]
    return lambda: np.concatenate([session.run(None, {name: batch})[0] for batch in arrays])


def in_openvino(file: Path, inputs: list[torch.Tensor], threads: int, precision: str) -> Callable[[], Any]:
    """A peer that runs an exported tower."""
    import openvino

    config = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(str(file), "CPU", config)
    arrays = [batch.numpy() for batch in inputs]
    return lambda: np.concatenate([compiled(batch)[0].copy() for batch in arrays])


def installed(*names: str) -> bool:
    """Whether all of these can be imported."""
    return all(importlib.util.find_spec(name) for name in names)


@dataclass
class Side:
    """What one tower gets: for reco as people have it, for the others as tensors."""

    images: bool
    items: Any
    inputs: list[torch.Tensor]

    @property
    def count(self) -> int:
        """Items in all."""
        return sum(len(batch) for batch in self.inputs)


def sides(folder: Path, batch: int) -> list[Side]:
    """Images of the model's size, so that nothing is resized, and captions padded to the longest."""
    images = np.stack([np.asarray(picture) for picture in pictures(batch, 224, 224)])
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(list(images), return_tensors="pt")["pixel_values"]
    texts = captions(TEXTS)
    ids = AutoTokenizer.from_pretrained(folder)(texts, padding=True, truncation=True, return_tensors="pt")["input_ids"]
    return [Side(True, images, [pixels]), Side(False, texts, list(ids.split(TEXT_BATCH)))]


def peers(folder: Path, side: Side, precision: str, threads: int, scratch: Path) -> Iterator[tuple[str, Any]]:
    """All that run at this precision."""
    clip = reco.Clip.load(folder, dtype=precision, batch_size=len(side.inputs[0]))
    yield "reco", (lambda: clip.encode_images(side.items)) if side.images else (lambda: clip.encode_texts(side.items))
    model: Any = CLIPModel.from_pretrained(folder, dtype=getattr(torch, precision)).requires_grad_(False)
    inputs = [batch.to(model.dtype) for batch in side.inputs] if side.images else side.inputs
    for attention in ("eager", "sdpa"):
        yield f"transformers, {attention}", in_torch(model, attention, inputs, side.images)
    if not installed("onnx", "onnxscript"):
        return
    file = scratch / f"{folder.name}-{side.images}.onnx"
    if not file.exists():
        export(CLIPModel.from_pretrained(folder), side.inputs[0], side.images, file)
    if installed("onnxruntime") and precision == "float32":
        yield "ONNX Runtime", in_onnxruntime(file, side.inputs, threads)
    if installed("openvino"):
        yield "OpenVINO", in_openvino(file, side.inputs, threads, "f32" if precision == "float32" else "bf16")


def check_same(found: dict[str, Callable[[], Any]], precision: str) -> None:
    """Who computes something else is no peer. Also each one's first run, which is not measured."""
    rows = {name: peer() for name, peer in found.items()}
    for name in found:
        cosines = (rows["reco"] * rows[name]).sum(-1)
        if cosines.min() < (0.9999 if precision == "float32" else 0.99):
            raise SystemExit(f"{name} at {precision} differs from reco: cosine {cosines.min():.5f}")


def measure_encoders(name: str, folder: Path, threads: int, repeats: int, peak: dict[str, float]) -> list[list[str]]:
    """Rows of the table. B/16 has the text tower of B/32, which is measured once."""
    rows = []
    for side in sides(folder, SHAPES[name][-1]):
        if name == "B/16" and not side.images:
            continue
        for precision in ("float32", "bfloat16"):
            found = dict(peers(folder, side, precision, threads, folder))
            check_same(found, precision)
            times = take_turns(found, repeats)
            for peer, spent in times.items():
                row = [name, "images" if side.images else "texts", precision, peer, spent.rate(side.count)]
                row += [spent.cpu_each(side.count), *spent.against(times["reco"])]
                if side.images:
                    rate = vision_flops(name, peer != "reco") * side.count / statistics.median(spent.cpu)
                    row.append(f"{100 * rate / peak[precision]:.0f} %")
                print(" ".join(row), file=sys.stderr, flush=True)
                rows.append(row)
            del found
            gc.collect()
    return rows


# --- around the towers -----------------------------------------------------------------------------------------------
def image_peers(size: tuple[int, int]) -> dict[str, dict[str, Callable[[bytes], Any]]]:
    """What is done to a file, and by whom."""
    preprocess, processor = reco.Preprocess(), CLIPImageProcessorPil()

    def by_reco(file: bytes) -> Any:
        return reco.resize(reco.decode_image(file), *size, "bicubic")

    def by_pil(file: bytes) -> Any:
        return np.asarray(Image.open(io.BytesIO(file)).convert("RGB").resize(size, Image.Resampling.BICUBIC))

    def tensor_by_reco(file: bytes) -> Any:
        return preprocess(reco.decode_image(file))

    def tensor_by_processor(file: bytes) -> Any:
        return processor(Image.open(io.BytesIO(file)).convert("RGB"), return_tensors="np")["pixel_values"]

    return {
        "decode, resize": {"reco": by_reco, "PIL": by_pil},
        "decode to input": {"reco": tensor_by_reco, "PIL, CLIPImageProcessor": tensor_by_processor},
    }


def measure_images(threads: int, repeats: int, quick: bool) -> list[list[str]]:
    """From the file to 224 pixels, in a pool of threads: both libraries let go of Python's lock."""
    rows = []
    for width, height, count in ((640, 480, 64), (4000, 3000, 4)):
        for format in ("JPEG", "PNG", "WEBP") if width < 1000 and not quick else ("JPEG",):
            files = []
            for picture in pictures(count, width, height):
                buffer = io.BytesIO()
                picture.save(buffer, format, quality=90)
                files.append(buffer.getvalue())
            for what, found in image_peers((round(width * 224 / height), 224)).items():
                with ThreadPoolExecutor(threads) as pool:
                    runs = {peer: partial(_map, pool, work, files) for peer, work in found.items()}
                    for run in runs.values():
                        run()
                    times = take_turns(runs, repeats)
                for peer, spent in times.items():
                    row = [f"{what}, {format} {width} x {height}", peer, spent.rate(count), spent.cpu_each(count)]
                    rows.append([*row, *spent.against(times["reco"])])
    return rows


def _map(pool: ThreadPoolExecutor, work: Callable[[bytes], Any], files: list[bytes]) -> None:
    for _ in pool.map(work, files):
        pass


def measure_tokenizers(folder: Path, repeats: int) -> list[list[str]]:
    """Token ids of captions, padded."""
    texts = captions(20_000)
    ours, theirs = reco.Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    found = take_turns(
        {
            "reco": lambda: ours(texts),
            "transformers, fast": lambda: theirs(texts, padding="max_length")["input_ids"],
        },
        repeats,
    )
    return [
        [peer, times.rate(len(texts)), times.cpu_each(len(texts)), *times.against(found["reco"])]
        for peer, times in found.items()
    ]


RECO_SCRIPT = "import reco, sys; reco.Clip.load(sys.argv[1]).encode_images([sys.argv[2]])"
TRANSFORMERS_SCRIPT = """
import sys, torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPModel
with torch.inference_mode():
    pixels = CLIPImageProcessorPil.from_pretrained(sys.argv[1])(Image.open(sys.argv[2]), return_tensors="pt")
    CLIPModel.from_pretrained(sys.argv[1]).get_image_features(**pixels)
"""


def measure_start(folder: Path, threads: int, repeats: int) -> list[list[str]]:
    """Seconds from the start of a process to the first embedding, files in the page cache."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}  # of which both libraries take as many
    image = folder / "image.jpg"
    pictures(1, 640, 480)[0].save(image)
    rows = []
    for peer, script in (("reco", RECO_SCRIPT), ("transformers", TRANSFORMERS_SCRIPT)):
        walls, cpus = [], []
        for i in range(repeats + 1):
            before, start = os.times(), time.perf_counter()
            command = [sys.executable, "-c", script, str(folder), str(image)]
            subprocess.run(command, check=True, capture_output=True, env=environment)
            after = os.times()
            if i:
                walls.append(time.perf_counter() - start)
                cpus.append(after[2] + after[3] - before[2] - before[3])
        low, high = min(walls), max(walls)
        rows.append([peer, f"{statistics.median(walls):.2f} ({low:.2f}–{high:.2f})", f"{statistics.median(cpus):.2f}"])
    return rows


def processor() -> str:
    """Its name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def versions() -> str:
    """Of all that take part."""
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for name in ("torch", "transformers", "tokenizers", "pillow", "onnxruntime", "openvino"):
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return ", ".join(found)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="B/32 only, one repeat")
    parser.add_argument("--threads", type=int, default=reco.threads())
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=("encoders", "images", "tokenizers", "start"), nargs="+")
    options = parser.parse_args()
    models, repeats = (["B/32"], 1) if options.quick else (options.models, options.repeats)
    shared = ["CPU ms an item", "speed against reco", "by CPU time"]
    parts = options.only or ["encoders", "images", "tokenizers", "start"]
    reco.set_threads(options.threads)
    torch.set_num_threads(options.threads)
    os.environ["RAYON_NUM_THREADS"] = str(options.threads)  # of transformers' tokenizer, which reads it when it begins
    logging.disable(logging.WARNING)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    print(f"{processor()}, {options.threads} threads; {versions()}; load at the start {os.getloadavg()[0]:.1f}")

    with tempfile.TemporaryDirectory() as scratch:
        if "encoders" in parts:
            peak = {name: gemm_peak(getattr(torch, name), repeats) for name in ("float32", "bfloat16")}
            print("\nGEMM peak: " + ", ".join(f"{number(rate / 1e9)} GFLOP/s in {name}" for name, rate in peak.items()))
            rows = []
            for name in models:
                folder = save_model(name, Path(scratch) / name.replace("/", "-"))
                rows += measure_encoders(name, folder, options.threads, repeats, peak)
                shutil.rmtree(folder)
            table(["model", "items", "precision", "by", "items/s", *shared, "of GEMM peak"], rows)
        if "images" in parts:
            rows = measure_images(options.threads, repeats, options.quick)
            table(["images", "by", "images/s", *shared], rows)
        if "tokenizers" in parts:
            table(["tokenizer", "texts/s", *shared], measure_tokenizers(ICONS, repeats))
        if "start" in parts:
            folder = save_model("B/32", Path(scratch) / "start")
            rows = measure_start(folder, options.threads, repeats)
            table(["start to first embedding, B/32", "seconds", "CPU seconds"], rows)
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
