# SPDX-License-Identifier: Apache-2.0
"""A Milvus server of its own process, which is killed, frozen and started anew while it is used."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reco
from reco.embedding_folder import write_shard
from reco.exchange import import_embeddings
from reco.milvus import MilvusMemory
from test_milvus import DIM, pairs

pytest.importorskip("milvus_lite")


class Server:
    """Milvus Lite, listening on 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        where = ["--data-dir", str(self.folder), "--port", str(self.port)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "milvus_lite", "server", *where],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(1200):
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert self.process.poll() is None, "the server does not start"
                time.sleep(0.05)
        raise AssertionError("the server does not listen")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def start_later(self, seconds: float) -> threading.Thread:
        def work() -> None:
            time.sleep(seconds)
            self.start()

        thread = threading.Thread(target=work)
        thread.start()
        return thread


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "server")
    yield server
    server.kill()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        write_shard(tmp_path / "embeddings", number, pairs(40, number))
    return tmp_path / "embeddings"


def assert_holds(memory: MilvusMemory, folder: Path, tmp_path: Path) -> None:
    """The same neighbours and partners as a folder of the same embeddings."""
    local = reco.Memory.create(tmp_path / "local", DIM)
    import_embeddings(local, folder, progress=False)
    queries = pairs(30, 9).images
    a, b = (store.search(queries, 5) for store in (local, memory))
    assert a.keys == b.keys and len(memory) == len(local)
    np.testing.assert_array_equal(a.partners, b.partners)


def test_a_server_that_is_started_anew(server: Server) -> None:
    memory = MilvusMemory.create(server.uri, "icons", DIM, "e", timeout=60)
    some = pairs(60)
    memory.add(some.images[:40], some.texts[:40], some.keys[:40], some.captions[:40])
    before = memory.search(some.images, 3)
    server.kill()
    later = server.start_later(1.0)
    after = memory.search(some.images, 3)  # waits for it
    later.join()
    assert after.keys == before.keys and after.captions == before.captions
    np.testing.assert_array_equal(after.partners, before.partners)
    server.kill()
    later = server.start_later(0.5)
    memory.add(some.images[40:], some.texts[40:], some.keys[40:])
    later.join()
    assert len(memory) == 60 and memory.search(some.images, 1).keys == [[key] for key in some.keys]


def fails_in_time(call: Callable[[], object]) -> None:
    """With a clear error, after two seconds and what a busy machine adds."""
    start = time.monotonic()
    with pytest.raises(reco.Error, match=r"at MilvusMemory\(.*failed: "):
        call()
    assert time.monotonic() - start < 10


def test_a_server_that_is_down_or_hangs(server: Server) -> None:
    memory = MilvusMemory.create(server.uri, "icons", DIM)
    some = pairs(20)
    memory.add(some.images, some.texts, some.keys)
    memory._store.timeout = 2.0
    calls: list[Callable[[], object]] = [
        lambda: memory.search(some.images, 3),
        lambda: len(memory),
        lambda: memory.get("0-0"),
        lambda: memory.add(some.texts, some.images, [f"new {key}" for key in some.keys]),
        lambda: memory.remove(["0-0"]),
    ]
    server.kill()
    for call in calls:
        fails_in_time(call)
    server.start()
    assert len(memory) == 20 and memory.search(some.images[:1], 1).keys == [["0-0"]]
    server.process.send_signal(signal.SIGSTOP)
    os.waitpid(server.process.pid, os.WUNTRACED)  # until all its threads stand still
    for call in calls[:2]:
        fails_in_time(call)
    server.process.send_signal(signal.SIGCONT)
    assert len(memory) == 20 and memory.search(some.images[:1], 1).keys == [["0-0"]]


def test_one_that_accepts_and_never_answers() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        start = time.monotonic()
        with pytest.raises(reco.Error, match="no Milvus at"):
            MilvusMemory(f"http://127.0.0.1:{silent.getsockname()[1]}", "icons", timeout=1)
        assert time.monotonic() - start < 10


@pytest.mark.parametrize("comes_back", [True, False])
def test_an_import_in_whose_middle_the_server_dies(
    server: Server, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comes_back: bool
) -> None:
    memory = MilvusMemory.create(server.uri, "icons", DIM, timeout=60 if comes_back else 3)
    write = MilvusMemory._write
    begun: list[Any] = []

    def dies_in_the_second(self: MilvusMemory, *arguments: Any) -> None:
        begun.append(arguments)
        if len(begun) == 2:
            write(self, *(rows[:15] for rows in arguments))
            server.kill()
            if comes_back:
                begun.append(server.start_later(0.5))
        write(self, *arguments)

    monkeypatch.setattr(MilvusMemory, "_write", dies_in_the_second)
    if comes_back:
        assert memory.import_embeddings(folder, progress=False) == 120
        begun[2].join()
        return assert_holds(memory, folder, tmp_path)
    with pytest.raises(reco.Error, match="upsert at .* failed"):
        memory.import_embeddings(folder, progress=False)
    monkeypatch.undo()
    server.start()
    memory = MilvusMemory(server.uri, "icons")
    with pytest.raises(reco.Error, match="has not ended"):
        memory.search(pairs(1).images, 1)
    assert memory.import_embeddings(folder, progress=False) == 65  # not the 40 and 15 that are there
    return assert_holds(memory, folder, tmp_path)


def test_one_that_comes_back_with_anothers_pairs(server: Server, tmp_path: Path) -> None:
    memory = MilvusMemory.create(server.uri, "icons", DIM, "one", timeout=60)
    some = pairs(20)
    memory.add(some.images, some.texts, some.keys)
    server.kill()
    server.folder = tmp_path / "another"
    server.start()
    MilvusMemory.create(server.uri, "icons", DIM, "two").add(some.texts, some.images, some.keys)
    with pytest.raises(reco.Error, match="expected encoder one, found two"):
        memory.search(some.images, 1)
    with pytest.raises(reco.Error, match="made with encoder two, expected one"):
        MilvusMemory(server.uri, "icons", encoder="one")
