# SPDX-License-Identifier: Apache-2.0
"""What only a Milvus collection has: a server that fails, filters, facts. The rest is in test_memory_base."""

from __future__ import annotations

import pickle
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reco
import reco.milvus
import reco.milvus_search
from reco.embedding import Embeddings
from reco.embedding_folder import write_shard
from reco.exchange import import_embeddings
from reco.milvus import MilvusMemory
from reco.milvus_import import Import

pytest.importorskip("milvus_lite")

DIM = 16


def pairs(n: int, seed: int = 0) -> Embeddings:
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((2 * n, DIM)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows.astype(np.float16)
    keys = [f"{seed}-{i}" for i in range(n)]
    return Embeddings(rows[:n], rows[n:], keys, [f"caption {k}" for k in keys], [{"number": i} for i in range(n)])


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "pairs.db")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        write_shard(tmp_path / "embeddings", number, pairs(40, number))
    return tmp_path / "embeddings"


class Flaky:
    """A client whose calls fail now and then."""

    def __init__(self, client: Any, fails: list[BaseException | None]) -> None:
        self.client, self.fails, self.calls = client, fails, 0

    def __getattr__(self, name: str) -> Any:
        def call(*positional: Any, **arguments: Any) -> Any:
            self.calls += 1
            error = self.fails.pop(0) if self.fails else None
            if error:
                raise error
            return getattr(self.client, name)(*positional, **arguments)

        return call


def test_equals_a_folder_after_an_import(uri: str, folder: Path, tmp_path: Path) -> None:
    local = reco.Memory.create(tmp_path / "local", DIM)
    import_embeddings(local, folder, progress=False)
    remote = MilvusMemory.create(uri, "icons", DIM, "e")
    assert remote.import_embeddings(folder, progress=False) == 120 == len(remote)
    assert remote.import_embeddings(folder, progress=False) == 0 and len(remote) == 120
    queries = pairs(30, 9).images.astype(np.float32)
    for side in ("image", "text"):
        for options in ({}, {"max_similarity": 0.4}, {"exclude_keys": [["0-1", "2-3"]] * 30}):
            a, b = (memory.search(queries, 7, side, **options) for memory in (local, remote))
            assert a.keys == b.keys and a.captions == b.captions and a.metadata == b.metadata
            np.testing.assert_allclose(a.scores, b.scores, atol=1e-6)
            np.testing.assert_array_equal(a.partners, b.partners)
        fusion = reco.Fusion.create(reco.FusionConfig(method="transformer", dim=DIM, k=7, heads=2), seed=1)
        first, second = (
            fusion.fuse(side, queries, found.scores, found.partners, found.rows)["embeddings"]
            for found in (memory.search(queries, 7, side) for memory in (local, remote))
        )
        np.testing.assert_allclose(first, second, atol=1e-6)
    again = reco.MilvusMemory(uri, "icons", encoder="e")
    assert len(again) == 120 and again.get("1-3").metadata["number"] == 3 and "1-3" in again and "x" not in again
    assert again.search(queries, 1).keys == remote.search(queries, 1).keys


def test_filters_are_milvus_own(uri: str, folder: Path) -> None:
    memory = MilvusMemory.create(uri, "icons", DIM)
    memory.import_embeddings(folder, progress=False)
    queries = pairs(5, 9).images
    found = memory.search(queries, 10, where='metadata["number"] < 3')
    assert {entry["number"] for row in found.metadata for entry in row if entry} == {0, 1, 2}
    assert found.keys[0].count("") == 1  # nine pairs in all
    assert memory.search(queries, 2, only_keys=["0-5", "missing"]).keys == [["0-5", ""]] * 5
    with pytest.raises(reco.Error, match="search at"):
        memory.search(queries, 2, where="this is no expression")


def test_a_server_that_stumbles_is_asked_again(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pymilvus.exceptions import MilvusException

    # No second has gone by since the facts were read, however slow the machine: a search is one request.
    monkeypatch.setattr("reco.milvus_collection._FRESH", 600.0)
    some = pairs(20)
    memory = MilvusMemory.create(uri, "icons", DIM)
    down = MilvusException(code=2, message="server unavailable")
    client = memory._store.client
    memory._store.client = Flaky(client, [down, down])
    memory.add(some.images, some.texts, some.keys)  # type: ignore[arg-type]
    memory._store.client = Flaky(client, [None, down])
    memory.remove(["0-3"])
    assert len(memory) == 19
    memory._store.timeout = 1.0
    memory._store.client = flaky = Flaky(client, [down] * 100)
    start = time.monotonic()
    with pytest.raises(reco.Error, match=r"search at MilvusMemory\(.*server unavailable"):
        memory.search(some.images, 1)
    assert 2 <= flaky.calls <= 4 and time.monotonic() - start < 5  # after 0.1, 0.2, 0.4 seconds, no more
    memory._store.client = flaky = Flaky(client, [MilvusException(code=1100, message="wrong")] * 3)
    with pytest.raises(reco.Error, match="wrong"):
        memory.search(some.images, 1)
    assert flaky.calls == 1  # the server said no: it is not asked again
    memory._store.timeout = 60.0
    starting = MilvusException(code=1, message="service not ready[proxy=1]: Initializing")
    flagged = MilvusException(code=1, message="wait")
    flagged._retriable = True  # as newer ones are that come from such a server
    for error in (starting, flagged):
        memory._store.client = flaky = Flaky(client, [error, error])
        assert memory.search(some.images[:1], 1).keys == [["0-0"]] and flaky.calls > 3
    memory._store.client = flaky = Flaky(client, [MilvusException(code=1, message="no such field")] * 3)
    with pytest.raises(reco.Error, match="no such field"):
        memory.search(some.images, 1)
    assert flaky.calls == 1
    memory._store.client = client
    assert memory.search(some.images[:1], 1).keys == [["0-0"]]


def test_others_change_the_collection(uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory that was opened before notices."""
    monkeypatch.setattr("reco.milvus_collection._FRESH", 0.0)
    memory = MilvusMemory.create(uri, "icons", DIM, "one")
    memory.import_embeddings(folder, progress=False)
    other = MilvusMemory(uri, "icons")
    query = pairs(1).images
    assert other.search(query, 1).keys == [["0-0"]]
    write_shard(folder, 3, pairs(40, 3))
    with monkeypatch.context() as broken:
        broken.setattr(Import, "_verify", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            memory.import_embeddings(folder, progress=False)
    with pytest.raises(reco.Error, match="has not ended"):
        other.search(query, 1)
    memory.import_embeddings(folder, progress=False)
    assert other.search(query, 1).keys == [["0-0"]]
    for name in ("icons", "icons_reco"):
        memory._store.client.drop_collection(name)
    MilvusMemory.create(uri, "icons", DIM, "two")
    with pytest.raises(reco.Error, match="another collection by now: expected encoder one, found two"):
        other.search(query, 1)


def test_one_that_was_made_anew(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name, encoder, width, type and index it is the same."""
    monkeypatch.setattr("reco.milvus_collection._FRESH", 0.0)
    memory, query = MilvusMemory.create(uri, "icons", DIM, "one"), pairs(1).images
    packed = pickle.dumps(memory)
    assert pickle.loads(packed).search(query, 1).keys == [[""]]
    for name in ("icons", "icons_reco"):
        memory._store.client.drop_collection(name)
    MilvusMemory.create(uri, "icons", DIM, "one")
    with pytest.raises(reco.Error, match="another collection by now: expected id .*, found .*"):
        memory.search(query, 1)
    with pytest.raises(reco.Error, match="another collection by now: expected id"):
        pickle.loads(packed)


def test_one_that_has_no_id(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they were made before."""
    monkeypatch.setattr("reco.milvus_collection._FRESH", 0.0)
    made = MilvusMemory.create(uri, "icons", DIM, "one")
    facts = {name: value for name, value in made._store.facts.items() if name != "id"}
    made._store.write_note(0, facts)
    some, memory = pairs(3), MilvusMemory(uri, "icons")
    memory.add(some.images, some.texts, some.keys)
    assert pickle.loads(pickle.dumps(memory)).search(some.images, 1).keys == [["0-0"], ["0-1"], ["0-2"]]
    with pytest.raises(reco.Error, match="another collection by now: expected id"):
        made.search(some.images, 1)


@pytest.mark.parametrize("copies", [7, 40])
def test_equally_near_pairs_are_those_of_a_folder(uri: str, tmp_path: Path, copies: int) -> None:
    """One caption for many pictures: which of them are found is a matter of order."""
    some, memories = pairs(120), [reco.Memory.create(tmp_path / "local", DIM), MilvusMemory.create(uri, "icons", DIM)]
    texts = np.repeat(pairs(120 // copies + 1, 5).texts, copies, axis=0)[:120]
    for memory in memories:
        for rows in (slice(0, 50), slice(50, 120)):
            memory.add(some.images[rows], texts[rows], some.keys[rows])
    a, b = (memory.search(texts[::copies], 10, "text") for memory in memories)
    assert a.keys == b.keys and len(a.keys) > 2
    np.testing.assert_array_equal(a.partners, b.partners)


def test_more_is_left_out_than_milvus_finds(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = MilvusMemory.create(uri, "icons", DIM)
    some = pairs(40)
    memory.add(some.images, some.texts, some.keys)  # type: ignore[arg-type]
    monkeypatch.setattr(reco.milvus_search, "MOST_RESULTS", 16)
    assert memory.search(some.images[:1], 3, exclude_keys=some.keys[:5]).keys[0][0] not in some.keys[:5]
    with pytest.raises(reco.Error, match="of the 16 pairs that Milvus finds for a query, fewer than 3 may stay"):
        memory.search(some.images[:1], 3, max_similarity=-1.0)


def test_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(reco.Error, match=f"no Milvus at http://127.0.0.1:{port}"):
        MilvusMemory(f"http://127.0.0.1:{port}", "icons", timeout=1)
    assert time.monotonic() - start < 30
    monkeypatch.setitem(__import__("sys").modules, "pymilvus", None)
    with pytest.raises(reco.Error, match=r"pip install reco-clip\[milvus\]"):
        MilvusMemory("x.db", "icons")


def test_a_server_that_is_starting_is_waited_for(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import pymilvus
    from pymilvus.exceptions import MilvusException

    MilvusMemory.create(uri, "icons", DIM)
    client, asked = pymilvus.MilvusClient, []

    def starting(*where: Any, **options: Any) -> Any:
        asked.append(options["timeout"])
        if len(asked) < 3:
            raise MilvusException(code=1, message="service not ready[proxy=1]: Initializing")
        return client(*where, **options)

    monkeypatch.setattr("reco.milvus_collection._LONGEST_PAUSE", 0.05)
    monkeypatch.setattr(pymilvus, "MilvusClient", starting)
    assert len(MilvusMemory(uri, "icons")) == 0 and len(asked) == 3
    asked.clear()
    monkeypatch.setattr("reco.milvus_collection._LONGEST_PAUSE", 5.0)
    with pytest.raises(reco.Error, match="no Milvus at .*: service not ready"):
        MilvusMemory(uri, "icons", timeout=1)
    assert len(asked) == 1


def test_what_does_not_fit(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(reco.Error, match="is not there"):
        MilvusMemory(uri, "icons")
    memory = MilvusMemory.create(uri, "icons", DIM, "encoder one")
    with pytest.raises(reco.Error, match="there already"):
        MilvusMemory.create(uri, "icons", DIM)
    with pytest.raises(reco.Error, match="expected dtype 'float32' or 'float16', got 'half'"):
        MilvusMemory.create(uri, "other", DIM, dtype="half")  # type: ignore[arg-type]
    with pytest.raises(reco.Error, match="expected a dim of at least 1, got 0"):
        MilvusMemory.create(uri, "other", 0)
    assert not memory._store.client.has_collection("other")
    with pytest.raises(reco.Error, match="made with encoder encoder one, expected two"):
        MilvusMemory(uri, "icons", encoder="two")
    with pytest.raises(reco.Error, match="lacks facts"):
        MilvusMemory(uri, "icons_reco")
    some = pairs(3)
    for arguments, message in (
        ((some.images[:2], some.texts, some.keys), "one row a key, 3 in all, got 2"),
        ((some.images[:, :4], some.texts, some.keys), "must have 16 columns, got 4"),
        ((0 * some.images, some.texts, some.keys), "image embeddings must not be zero"),
        ((some.images, some.texts, ["a", "a", "b"]), "differ"),
        ((some.images, some.texts, ["a", "", "b"]), "empty"),
        ((some.images, some.texts, ["a", "b", "c"], ["one"]), "one entry a row"),
        ((some.images, some.texts, ["a", "b", "c" * 70_000]), "at most"),
    ):
        with pytest.raises(reco.Error, match=message):
            memory.add(*arguments)  # type: ignore[arg-type]
    assert len(memory) == 0
    memory.add(some.images, some.texts, some.keys)  # type: ignore[arg-type]
    for options in ({"k": 0}, {"k": 20_000}, {"modality": "sound"}, {"exclude_keys": [["a"]] * 2}):
        with pytest.raises(reco.Error):
            memory.search(some.images, **options)
    with pytest.raises(reco.Error, match="no row 7"):
        memory.captions([7])
    monkeypatch.setattr(reco.milvus, "row_of", lambda key: 5)
    memory.upsert(some.images[:1], some.texts[:1], ["one"])
    with pytest.raises(reco.Error, match="have one hash"):
        memory.add(some.images[:1], some.texts[:1], ["two"])
