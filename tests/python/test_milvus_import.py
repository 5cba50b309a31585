# SPDX-License-Identifier: Apache-2.0
"""Imports into a Milvus collection: interrupted, gone on with, taken back, counted; no half that looks whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reco
from reco.embedding_folder import write_shard
from reco.exchange import import_embeddings
from reco.milvus import MilvusMemory
from reco.milvus_collection import row_of
from reco.milvus_import import Import
from test_milvus import DIM, pairs

pytest.importorskip("milvus_lite")


@pytest.fixture
def memory(tmp_path: Path) -> MilvusMemory:
    return MilvusMemory.create(str(tmp_path / "pairs.db"), "icons", DIM, "e")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of three shards, the one in the middle missing."""
    for number in (0, 1, 3):
        write_shard(tmp_path / "embeddings", number, pairs(40, number))
    return tmp_path / "embeddings"


def stopped(memory: MilvusMemory, folder: Path, shards: int, rows: int) -> None:
    """An import that is interrupted after some whole shards and some rows of the next."""
    write = MilvusMemory._write
    written: list[Any] = []

    def stop(self: MilvusMemory, *arguments: Any) -> None:
        if len(written) == shards:
            write(self, *(values[:rows] for values in arguments))
            raise KeyboardInterrupt
        written.append(arguments)
        write(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MilvusMemory, "_write", stop)
        with pytest.raises(KeyboardInterrupt):
            memory.import_embeddings(folder, progress=False)


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many pairs each call writes."""
    write, found = MilvusMemory._write, []

    def count(self: MilvusMemory, *arguments: Any) -> None:
        found.append(len(arguments[2]))
        write(self, *arguments)

    monkeypatch.setattr(MilvusMemory, "_write", count)
    return found


def assert_equals_a_folder(memory: MilvusMemory, folder: Path, place: Path) -> None:
    local = reco.Memory.create(place, DIM)
    import_embeddings(local, folder, progress=False)
    queries = pairs(20, 9).images
    a, b = (store.search(queries, 6) for store in (local, memory))
    assert a.keys == b.keys and len(local) == len(memory)
    np.testing.assert_array_equal(a.partners, b.partners)
    assert memory._store.count_notes() == 0 and memory._store.fresh_facts(0.0)["import"] == {}


def test_an_interrupted_import_never_looks_whole(
    memory: MilvusMemory, folder: Path, tmp_path: Path, sizes: list[int]
) -> None:
    stopped(memory, folder, 1, 5)
    for half in (memory, MilvusMemory(memory._store.uri, "icons")):
        with pytest.raises(reco.Error, match="has not ended"):
            half.search(pairs(1).images, 1)
    sizes.clear()
    assert half.import_embeddings(folder, progress=False) == 75
    assert sizes == [35, 40]  # what was there stays as it is
    assert_equals_a_folder(half, folder, tmp_path / "local")


def test_one_import_at_a_time(memory: MilvusMemory, folder: Path, tmp_path: Path) -> None:
    """The half of one folder does not become searchable when another was imported."""
    other = tmp_path / "other"
    write_shard(other, 0, pairs(10, 7))
    opened_before = MilvusMemory(memory._store.uri, "icons")
    stopped(memory, folder, 1, 5)
    for any_memory in (memory, opened_before, MilvusMemory(memory._store.uri, "icons")):
        with pytest.raises(reco.Error, match=rf"expected the import of {folder} into .* got {other}.*drop_import\(\)"):
            any_memory.import_embeddings(other, progress=False)
        with pytest.raises(reco.Error, match="has not ended"):
            any_memory.search(pairs(1).images, 1)
    assert opened_before.import_embeddings(folder, progress=False) == 75
    assert memory.import_embeddings(other, progress=False) == 10 and len(memory) == 130


def test_an_import_is_taken_back(memory: MilvusMemory, folder: Path, tmp_path: Path) -> None:
    own = pairs(6, 0)  # of which five are in the folder, too, but for their captions
    memory.add(own.images, own.texts, [*own.keys[:5], "mine"], ["mine"] * 6)
    assert memory.drop_import() == 0 and len(memory) == 6
    stopped(memory, folder, 1, 5)
    assert len(memory) == 6 + 35 + 5
    assert memory.drop_import() == 40 and len(memory) == 6
    assert memory.search(own.images[:1], 1).captions == [["mine"]] and memory._store.count_notes() == 0
    assert memory.import_embeddings(folder, progress=False) == 115 and memory.get("0-0").caption == "mine"


@pytest.mark.parametrize("shards", [0, 1])
def test_taken_back_while_it_is_under_way(memory: MilvusMemory, folder: Path, shards: int) -> None:
    """By somebody else, who searches then: what was being written is not there."""
    other, write, begun = MilvusMemory(memory._store.uri, "icons"), MilvusMemory._write, []

    def drop(self: MilvusMemory, *arguments: Any) -> None:
        begun.append(arguments)
        if len(begun) == shards + 1:
            write(self, *(values[:10] for values in arguments))
            assert other.drop_import() == 40 * shards + 10
        write(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MilvusMemory, "_write", drop)
        with pytest.raises(reco.Error, match="expected this import into .* to be under way"):
            memory.import_embeddings(folder, progress=False)
    assert len(other) == 0 and other.search(pairs(1).images, 1).keys == [[""]]
    assert other.import_embeddings(folder, progress=False) == 120


def test_ended_by_another_call(memory: MilvusMemory, folder: Path) -> None:
    """Two calls for one folder: what the other ended stays."""
    other = MilvusMemory(memory._store.uri, "icons")

    def end(done: int, total: int) -> None:
        if done == 40:
            assert other.import_embeddings(folder, progress=False) == 80

    with pytest.raises(reco.Error, match="got that another call ended it"):
        memory.import_embeddings(folder, progress=end)
    assert len(other) == 120 and other.search(pairs(1).images, 1).keys == [["0-0"]]


def test_shards_that_appear_change_and_go(memory: MilvusMemory, folder: Path, tmp_path: Path, sizes: list[int]) -> None:
    stopped(memory, folder, 2, 3)
    write_shard(folder, 2, pairs(25, 2))  # between those that are there
    changed = pairs(30, 4)  # other pairs, but for one that shard 3 has, too
    changed.keys[0] = "3-7"
    write_shard(folder, 1, changed)
    sizes.clear()
    assert memory.import_embeddings(folder, progress=False) == 25 + 30 + 36
    assert sorted(sizes) == [0, 25, 30, 36]
    assert_equals_a_folder(memory, folder, tmp_path / "local")
    stopped_again = pairs(40, 5)
    write_shard(folder, 5, stopped_again)
    stopped(memory, folder, 4, 5)
    (folder / "img_emb/img_emb_00000.npy").rename(tmp_path / "away.npy")
    with pytest.raises(reco.Error, match="1 shards that were imported are gone"):
        memory.import_embeddings(folder, progress=False)
    (tmp_path / "away.npy").rename(folder / "img_emb/img_emb_00000.npy")
    assert memory.import_embeddings(folder, progress=False) == 35


def test_equal_keys(memory: MilvusMemory, tmp_path: Path) -> None:
    """Within a piece, between pieces and shards, and of pairs that are there: as a local import."""
    first, second = pairs(30, 0), pairs(30, 1)
    first.keys[3], first.keys[29], second.keys[7] = "0-1", "0-2", "0-4"
    for number, shard in enumerate((first, second)):
        write_shard(tmp_path / "in", number, shard)
    local = reco.Memory.create(tmp_path / "local", DIM)
    for store, load in ((local, import_embeddings), (memory, MilvusMemory.import_embeddings)):
        store.add(first.images[9:10], first.texts[9:10], ["0-9"], ["mine"])
        with pytest.MonkeyPatch.context() as patch:
            for module in ("milvus_import._PIECE", "exchange._ROWS"):
                patch.setattr(f"reco.{module}", 10)
            assert load(store, tmp_path / "in", progress=False) == 56
        assert load(store, tmp_path / "in", progress=False) == 0
    for key in local:
        a, b = (store.get(key) for store in (local, memory))
        assert (a.caption, a.metadata) == (b.caption, b.metadata)
        np.testing.assert_array_equal(a.image_embedding, b.image_embedding)
    assert len(memory) == len(local) == 57 and memory.get("0-9").caption == "mine"


def test_what_was_written_is_read_back(memory: MilvusMemory, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = MilvusMemory._write
    monkeypatch.setattr(MilvusMemory, "_write", lambda self, images, *more: write(self, -images, *more))
    with pytest.raises(reco.Error, match=r"does not give back the pair '0-\d+'.*drop_import\(\)"):
        memory.import_embeddings(folder, progress=False)
    monkeypatch.undo()
    assert memory.drop_import() == 40
    assert memory.import_embeddings(folder, progress=False) == 120


def test_losses_are_noticed(memory: MilvusMemory, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a memory that held more pairs than are imported: a count of all would not tell."""
    some = pairs(300, 8)
    memory.add(some.images, some.texts, some.keys)
    write = MilvusMemory._write
    monkeypatch.setattr(MilvusMemory, "_write", lambda self, *rows: write(self, *(values[:-1] for values in rows)))
    with pytest.raises(reco.Error, match="lost the pair '0-39'"):
        memory.import_embeddings(folder, progress=False)
    monkeypatch.undo()

    check = Import._check_count  # after its shard was looked at, before the end

    def lose(self: Import, wanted: int) -> None:
        self.store.call("delete", ids=[row_of("0-3")])
        check(self, wanted)

    monkeypatch.setattr(Import, "_check_count", lose)
    with pytest.raises(reco.Error, match="expected 120 imported pairs in .* got 119: import once more"):
        memory.import_embeddings(folder, progress=False)
    monkeypatch.undo()
    with pytest.raises(reco.Error, match="has not ended"):
        memory.search(some.images, 1)
    assert memory.import_embeddings(folder, progress=False) == 1 and len(memory) == 420


def test_whose_embeddings_they_are(memory: MilvusMemory, folder: Path, tmp_path: Path) -> None:
    """Another encoder's, or not all that were to be made: by both kinds of memory."""
    local = reco.Memory.create(tmp_path / "local", DIM, "e")
    identity = {"model": "e", "dtype": "float32", "source": "s", "shard_size": 40, "processes": 2, "format": 1}
    state = {"identity": identity, "summary": {"finished": True}, "position": [0, 0], "last_key": ""}
    (folder / "state").mkdir()
    first, second = folder / "state/1-of-2.json", folder / "state/2-of-2.json"

    def refused(match: str) -> None:
        for store, load in ((local, import_embeddings), (memory, MilvusMemory.import_embeddings)):
            with pytest.raises(reco.Error, match=match):
                load(store, folder, progress=False)
            assert len(store) == 0 and store.search(pairs(1).images, 1).keys == [[""]]

    first.write_text(json.dumps(state))
    refused("expected all 2 parts of .* to be embedded, got 1")
    second.write_text(json.dumps(state | {"summary": {"finished": False}}))
    refused("expected all 2 parts of .* to be embedded, got 1")
    second.write_text(json.dumps(state | {"identity": identity | {"model": "another"}}))
    refused("expected embeddings of the memory's encoder e, got those of another in .*2-of-2.json")
    second.write_text(json.dumps(state))
    with pytest.raises(reco.Error, match="found none"):
        memory.import_embeddings(folder, tmp_path / "local", progress=False)
    assert import_embeddings(local, folder, progress=False) == 120
    assert memory.import_embeddings(folder, progress=False) == 120


def test_what_an_older_version_began(memory: MilvusMemory, folder: Path) -> None:
    """Its state told the folder and a number of shards."""
    some = pairs(40, 0)
    memory.add(some.images, some.texts, some.keys)
    memory._store.write_facts(importing=str(folder), **{"import": {"source": str(folder), "shards": 1}})
    with pytest.raises(reco.Error, match="got an older one"):
        memory.drop_import()
    assert memory.import_embeddings(folder, progress=False) == 80
    assert memory.search(some.images[:1], 1).keys == [["0-0"]]
