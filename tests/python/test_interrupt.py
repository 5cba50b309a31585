# SPDX-License-Identifier: Apache-2.0
"""Long calls: Ctrl-C ends them soon and leaves the last committed state, and other Python threads run beside them."""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

import reco

ROOT = Path(__file__).parents[2]

# Each call would take much longer than the test waits for it.
CALLS = {
    "search": "memory.search(wide, k=10, partners=False)",
    "refine_images": "model.refine_images(wide)",
    "duplicates": "memory.duplicates(0.9, against=wide)",
    "add": "memory.add(rows, rows, keys=[f'n{i}' for i in range(len(rows))])",
    "optimize": "memory.optimize('HNSW32', progress=lambda done, total: None)",
    "encode_images": "clip.encode_images([picture] * 200_000)",
    "encode_images of PIL": "clip.encode_images([PIL.Image.fromarray(picture)] * 50_000, on_error=lambda *e: None)",
    "encode_texts": "clip.encode_texts(['a picture of something that is hard to name'] * 400_000)",
    "Model.encode_images": "model.encode_images([picture] * 200_000)",
    "train": "reco.train(some, some, memory, config)",
    "ranks": "reco.ranks(wide, wide, np.arange(len(wide)))",
    "bootstrap": "reco.bootstrap(np.ones(1_000_000), resamples=20_000)",
}

SETUP = f"""
import signal, sys, tempfile, time
import numpy as np, PIL.Image, reco
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background ignores it
random = np.random.default_rng(0)
clip = reco.Clip.load({str(ROOT / "examples/icons/clip")!r})
folder = Path(tempfile.mkdtemp()) / "memory.reco"
some = random.standard_normal((20_000, clip.dim), np.float32)
memory = reco.Memory.create(folder, clip.dim, clip.fingerprint)
memory.add(some, some, keys=[f"k{{i}}" for i in range(len(some))])
model = reco.Model(clip, memory, reco.Fusion.mean(clip.dim))
wide = random.standard_normal((300_000, clip.dim), np.float32)
rows = np.tile(some, (40, 1))
picture = random.integers(0, 255, (64, 64, 3), np.uint8)
fusion = reco.FusionConfig(method="transformer", dim=clip.dim, heads=8)
config = reco.TrainingConfig(fusion=fusion, epochs=1000, batch_size=2048)
"""

LOOP = """
for line in sys.stdin:
    print("begins", flush=True)
    try:
        exec(line)
        print("went through", flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    except BaseException as error:
        print(repr(error), flush=True)
"""


class Child:
    """A Python process that runs one line of code after the other."""

    def __init__(self) -> None:
        code = SETUP + LOOP
        self.buffer = b""
        self.process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.do("pass")

    def tell(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def answer(self, seconds: float) -> str:
        """The next line that it prints."""
        assert self.process.stdout
        end = time.monotonic() + seconds
        while b"\n" not in self.buffer:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))
            if not ready:
                return "no answer"
            self.buffer += os.read(self.process.stdout.fileno(), 4096) or b"ended\n"
        line, self.buffer = self.buffer.split(b"\n", 1)
        return line.decode()

    def do(self, line: str) -> None:
        """Runs a line that must not fail."""
        self.tell(line)
        assert [self.answer(120), self.answer(120)] == ["begins", "went through"]


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    made = Child()
    yield made
    made.process.kill()
    made.process.wait()


@pytest.mark.parametrize("name", CALLS)
def test_ctrl_c_ends_it(child: Child, name: str) -> None:
    child.tell(CALLS[name])
    assert child.answer(120) == "begins"
    time.sleep(1.0)
    start = time.monotonic()
    child.process.send_signal(signal.SIGINT)
    assert child.answer(30) == "interrupted"
    # On an idle machine it takes a tenth of a second; training and encoding up to one.
    assert time.monotonic() - start < 10
    child.do("assert len(memory) == 20_000 and memory.search(some[:1], k=1).keys == [['k0']]")


def test_the_memory_is_as_it_was_committed(child: Child) -> None:
    child.do("memory.close(); memory = reco.Memory.open(folder); assert len(memory) == 20_000 and not memory.verify()")
    child.do("memory.add(rows[:100], rows[:100], keys=[f'later{i}' for i in range(100)])")


def test_another_handler_decides(child: Child) -> None:
    """Whatever a signal handler raises is what the call raises."""
    child.do("def handler(*_): raise ZeroDivisionError('mine')")
    child.do("signal.signal(signal.SIGUSR1, handler)")
    child.tell(CALLS["search"])
    assert child.answer(60) == "begins"
    time.sleep(0.5)
    child.process.send_signal(signal.SIGUSR1)
    assert child.answer(30) == "ZeroDivisionError('mine')"


def jpeg(side: int) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()


def long_calls(folder: Path) -> dict[str, Callable[[], object]]:
    """What takes a tenth of a second at least, ready to be called."""
    random = np.random.default_rng(0)
    clip = reco.Clip.load(ROOT / "examples/icons/clip")
    rows = random.standard_normal((20_000, clip.dim), np.float32)
    memory = reco.Memory.create(folder, clip.dim, clip.fingerprint)
    memory.add(rows, rows, keys=[str(i) for i in range(len(rows))])
    config = reco.TrainingConfig(fusion=reco.FusionConfig(dim=clip.dim, heads=8), epochs=1, batch_size=128)
    picture, file = random.integers(0, 255, (3000, 3000, 3), np.uint8), jpeg(3000)
    scores, labels = random.random((20_000, 100), np.float32), random.integers(0, 5, (20_000, 100))
    return {
        "search": lambda: memory.search(rows[:4000]),
        "duplicates": lambda: memory.duplicates(0.99, against=rows[:4000]),
        "verify": memory.verify,
        "upsert": lambda: memory.upsert(rows, rows, keys=[str(i) for i in range(len(rows))]),
        "embeddings": lambda: [memory.embeddings("image") for _ in range(5)],
        "encode_images": lambda: clip.encode_images(random.integers(0, 255, (128, 64, 64, 3), np.uint8)),
        "encode_texts": lambda: clip.encode_texts(["a picture of a thing"] * 500),
        "tokenizer": lambda: clip.tokenizer(["a picture of a thing"] * 50_000),
        "refine": lambda: reco.Model(clip, memory, reco.Fusion.mean(clip.dim)).refine_images(rows[:2000]),
        "fuse": lambda: reco.Fusion.create(config.fusion).fuse(
            "image", rows[:2000], scores[:2000, :10], np.zeros((2000, 10, clip.dim), np.float32)
        ),
        "train": lambda: reco.train(rows[:500], rows[:500], memory, config),
        "ranks": lambda: reco.ranks(rows[:4000], rows, np.arange(4000)),
        "classify": lambda: reco.classify(rows[:8000], rows[:5000], np.zeros(8000, np.int64)),
        "bootstrap": lambda: reco.bootstrap(np.ones(100_000), resamples=200),
        "vote": lambda: [reco.vote(scores, labels, 5) for _ in range(10)],
        "decode_image": lambda: reco.decode_image(file),
        "resize": lambda: reco.resize(picture, 1500, 1500),
        "preprocess": lambda: reco.Preprocess()(picture),
        "load": lambda: [reco.Clip.load(ROOT / "examples/icons/clip") for _ in range(3)],
    }


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Callable[[], object]]:
    return long_calls(tmp_path_factory.mktemp("long") / "memory.reco")


NAMES = [
    "search", "duplicates", "verify", "upsert", "embeddings", "encode_images", "encode_texts", "tokenizer", "refine",
    "fuse", "train", "ranks", "classify", "bootstrap", "vote", "decode_image", "resize", "preprocess", "load",
]  # fmt: skip


def ticks_beside(call: Callable[[], object]) -> tuple[int, float]:
    """How often another thread came to its turn during a call, and how many seconds that took."""
    ticks, stop = 0, threading.Event()

    def count() -> None:
        nonlocal ticks
        while not stop.is_set():
            ticks += 1
            time.sleep(0.001)

    thread = threading.Thread(target=count)
    thread.start()
    before, start = ticks, time.monotonic()
    call()
    found, seconds = ticks - before, time.monotonic() - start
    stop.set()
    thread.join()
    return found, seconds


@pytest.mark.parametrize("name", NAMES)
def test_other_threads_run_meanwhile(calls: dict[str, Any], name: str) -> None:
    assert list(calls) == NAMES
    ticks, seconds = ticks_beside(calls[name])
    assert ticks > 50 * seconds, (ticks, seconds)  # a thousand a second at best


def test_a_held_lock_would_be_noticed() -> None:
    ticks, seconds = ticks_beside(lambda: sum(range(50_000_000)))  # one long step of C
    assert ticks <= 50 * seconds, (ticks, seconds)
