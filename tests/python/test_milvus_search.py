# SPDX-License-Identifier: Apache-2.0
"""A Milvus collection finds what a folder finds, to the bit, where pairs are nearly or exactly equally near."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reco
import reco.milvus_collection
import reco.milvus_search
from reco._core import _scores, _unit_rows
from reco.embedding import Embeddings
from reco.embedding_folder import write_shard
from reco.exchange import import_embeddings
from reco.milvus import MilvusMemory
from reco.milvus_search import effort_params, rounding

pytest.importorskip("milvus_lite")

DIM = 16
PAIRS = 400
SLACK = rounding(DIM, "float32")


class Rounding:
    """A client whose server's similarities are off by as much as sums in another order may be."""

    def __init__(self, client: Any, seed: int = 0) -> None:
        self.client, self.random = client, np.random.default_rng(seed)
        self.limits: list[int] = []  # of the searches that were asked for
        self.queries: list[int] = []
        self.fields: set[str] = set()
        self.gone: set[int] = set()  # rows that somebody removes after a search

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    def search(self, *names: Any, limit: int, **options: Any) -> Any:
        self.limits.append(limit)
        self.queries.append(len(options["data"]))
        self.fields |= set(options["output_fields"])
        answers = []
        for hits in self.client.search(*names, limit=PAIRS, **options):
            found = [{"id": hit["id"], "distance": hit["distance"], "entity": dict(hit["entity"])} for hit in hits]
            for hit in found:
                hit["distance"] += 0.9 * SLACK * self.random.choice([-1, 1])
            answers.append(sorted(found, key=lambda hit: -hit["distance"])[:limit])
        return answers

    def query(self, *names: Any, **options: Any) -> Any:
        return [row for row in self.client.query(*names, **options) if row.get("id") not in self.gone]


def near_ties(n: int, seed: int) -> np.ndarray:
    """Rows that differ where queries have next to nothing: similarities within a few times SLACK of each other."""
    random = np.random.default_rng(seed)
    rows = np.tile(np.random.default_rng(7).standard_normal(DIM), (n, 1))
    rows[:, DIM // 2 :] = 1e-3 * random.standard_normal((n, DIM // 2))
    return rows.astype(np.float32)


def duplicates(n: int, seed: int) -> np.ndarray:
    """One row many times among others."""
    random = np.random.default_rng(seed)
    rows = random.standard_normal((n, DIM))
    rows[random.permutation(n)[: n - 60]] = rows[0]
    return rows.astype(np.float32)


@pytest.fixture(params=[near_ties, duplicates], ids=lambda kind: kind.__name__)
def memories(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[reco.Memory, MilvusMemory]:
    images, texts = request.param(PAIRS, 1), request.param(PAIRS, 2)
    keys = [f"k{i}" for i in range(PAIRS)]
    both = reco.Memory.create(tmp_path / "local", DIM), MilvusMemory.create(str(tmp_path / "m.db"), "m", DIM)
    for memory in both:
        for rows in (slice(0, 150), slice(150, PAIRS)):
            memory.add(
                images[rows], texts[rows], keys[rows], metadata=[{"even": i % 2 == 0} for i in range(PAIRS)][rows]
            )
        memory.remove(["k3", "k200"])
    both[1]._store.client = Rounding(both[1]._store.client)
    return both


def queries_of(memory: reco.Memory, side: Any) -> np.ndarray:
    """Near ties and what is remembered itself."""
    return np.concatenate([near_ties(12, 3), memory.embeddings(side, np.arange(8, 16))])


def assert_same(a: reco.Neighbors, b: reco.Neighbors) -> None:
    assert a.keys == b.keys
    np.testing.assert_array_equal(a.scores, b.scores)
    if a.partners is not None:
        np.testing.assert_array_equal(a.partners, b.partners)


@pytest.mark.parametrize("side", ["image", "text"])
def test_the_same_neighbours(memories: tuple[reco.Memory, MilvusMemory], side: Any) -> None:
    local, remote = memories
    rows = queries_of(local, side)
    scores = np.unique(local.search(rows, 300, side).scores)
    searches: tuple[dict[str, Any], ...] = (
        {"k": 1}, {"k": 10}, {"k": 64}, {"k": PAIRS}, {"k": 10, "partners": False},
        {"k": 10, "exclude_keys": [f"k{i}" for i in range(0, 90, 2)]},
        {"k": 10, "exclude_keys": [[f"k{j}" for j in range(i)] for i in range(len(rows))]},
        {"k": 5, "only_keys": [f"k{i}" for i in range(0, PAIRS, 3)]},
        *({"k": 7, "max_similarity": float(scores[int(share * (len(scores) - 1))])} for share in (0.3, 0.6, 0.9)),
    )  # fmt: skip
    for options in searches:
        assert_same(local.search(rows, modality=side, **options), remote.search(rows, modality=side, **options))
    even = "json_extract(metadata, '$.even')", 'metadata["even"] == true'
    assert_same(*(m.search(rows, 9, side, where=where) for m, where in zip(memories, even, strict=True)))
    # More was asked for where that was needed, and the vectors of nothing else.
    limits = remote._store.client.limits
    assert min(limits) == 1 + 4 and any(limit == 4 * (10 + 4) for limit in limits)


@pytest.mark.parametrize("side", ["image", "text"])
def test_ids_first_finds_the_same(
    memories: tuple[reco.Memory, MilvusMemory], side: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is done where answers cannot bring the vectors along: those of half precision."""
    monkeypatch.setattr(reco.milvus_search, "_ALONG", ())
    local, remote = memories
    rows = queries_of(local, side)
    middle = float(np.median(local.search(rows, 300, side).scores))
    searches: tuple[dict[str, Any], ...] = (
        {}, {"partners": False}, {"k": PAIRS}, {"max_similarity": middle},
        {"exclude_keys": [[f"k{j}" for j in range(i)] for i in range(len(rows))]},
    )  # fmt: skip
    for options in searches:
        assert_same(local.search(rows, modality=side, **options), remote.search(rows, modality=side, **options))
    assert remote._store.client.fields == {"added"}


def test_a_request_is_bounded(memories: tuple[reco.Memory, MilvusMemory], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the bytes that may come back, and by its queries."""
    local, remote = memories
    rows, client = queries_of(local, "image"), remote._store.client
    for name, value, expected in (
        ("_QUERIES", 8, [8, 8, 4]),
        ("REQUEST_BYTES", 6 * (10 + 4) * (16 + 2 * 4 * DIM), [6, 6, 6, 2]),
        ("REQUEST_BYTES", 1, [1]),
    ):
        with monkeypatch.context() as bounded:
            bounded.setattr(reco.milvus_search, name, value)
            client.queries.clear()
            some = rows[: sum(expected)]
            assert_same(local.search(some, 10), remote.search(some, 10))
            assert client.queries[: len(expected)] == expected


def test_the_same_refined_embeddings(memories: tuple[reco.Memory, MilvusMemory]) -> None:
    mean = reco.Fusion.mean(DIM)
    for side in ("image", "text"):
        rows = _unit_rows(queries_of(memories[0], side), "test", "rows")
        a, b = (
            mean.fuse(side, rows, found.scores, found.partners)["embeddings"]
            for found in (memory.search(rows, 10, side) for memory in memories)
        )
        np.testing.assert_array_equal(a, b)


def test_what_is_removed_meanwhile_is_not_found(memories: tuple[reco.Memory, MilvusMemory]) -> None:
    local, remote = memories
    query = local.embeddings("image", [0])
    before = remote.search(query, 10)
    (keys,) = before.keys
    client = remote._store.client
    client.limits.clear()
    client.gone = {int(before.rows[0, 4])}
    after = remote.search(query, 10)
    assert client.limits[-1] > client.limits[0]  # it took more than one request, between which that happened
    assert after.keys[0][:9] == keys[:4] + keys[5:] and keys[4] not in after.keys[0]
    assert_same(local.search(query, 10, exclude_keys=[keys[4]]), after)


def test_the_search_for_the_oldest_has_an_end(
    memories: tuple[reco.Memory, MilvusMemory], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reco.milvus_search, "_TIES", 50)
    local, remote = memories
    query = local.embeddings("image", [0])
    a, b = (memory.search(query, 10) for memory in memories)
    assert max(remote._store.client.limits) == 56
    np.testing.assert_allclose(a.scores, b.scores, atol=2 * SLACK)
    assert len(set(b.keys[0])) == 10


@pytest.mark.parametrize("dim", [3, 16, 33, 512])
def test_scores_are_a_folders(tmp_path: Path, dim: int) -> None:
    random = np.random.default_rng(dim)
    rows, queries = (random.standard_normal((n, dim)).astype(np.float32) for n in (50, 9))
    memory = reco.Memory.create(tmp_path / "local", dim)
    memory.add(rows, rows, [str(i) for i in range(50)])
    halves = _unit_rows(rows, "test", "rows").astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(halves, memory.embeddings("image", np.arange(50)))
    unit = _unit_rows(queries, "test", "queries")
    for batch in (slice(0, 1), slice(0, 9)):
        found = memory.search(queries[batch], 50)
        for i in range(len(found)):
            np.testing.assert_array_equal(found.scores[i], _scores(unit[i], halves)[found.rows[i]])
    # Sums in other orders, and queries of half precision, are as near as is said.
    for other in (slice(None), slice(None, None, -1)):
        sums = np.cumsum(unit[0, other] * halves[:, other], axis=1, dtype=np.float32)[:, -1]
        assert np.abs(sums - _scores(unit[0], halves)).max() <= rounding(dim, "float32")
    rounded = halves @ unit[0].astype(np.float16).astype(np.float32)
    assert np.abs(rounded - _scores(unit[0], halves)).max() <= rounding(dim, "float16")


class Graph:
    """A client of a server that refuses to look at fewer rows of a graph than are to be found, as Milvus does."""

    def __init__(self, client: Any) -> None:
        self.client, self.asked = client, []  # type: ignore[var-annotated]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    def search(self, *names: Any, limit: int, search_params: Any, **options: Any) -> Any:
        from pymilvus.exceptions import MilvusException

        (effort,) = search_params["params"].values()
        self.asked.append((limit, search_params["params"]))
        if effort < limit:
            raise MilvusException(code=1100, message=f"ef({effort}) should be larger than k({limit})")
        return self.client.search(*names, limit=limit, search_params={"metric_type": "IP"}, **options)


@pytest.mark.parametrize(("index", "name"), [("HNSW", "ef"), ("DISKANN", "search_list")])
def test_effort_is_no_less_than_what_is_asked_for(
    memories: tuple[reco.Memory, MilvusMemory], index: str, name: str
) -> None:
    local, remote = memories
    query, store = local.embeddings("image", [0]), remote._store
    store.facts["index"], store.client = index, Graph(store.client)
    store._take = lambda facts: None  # type: ignore[method-assign]
    for effort in (12, 30):
        options: dict[str, Any] = {"k": 10, "exclude_keys": [f"k{i}" for i in range(20)]}
        assert_same(local.search(query, **options), remote.search(query, effort=effort, **options))
    assert store.client.asked[0] == (34, {name: 34}) and len({limit for limit, _ in store.client.asked}) > 1


@pytest.mark.parametrize(
    ("index", "params"),
    [
        ("FLAT", {}), ("AUTOINDEX", {}), ("HNSW", {"ef": 20}), ("HNSW_SQ", {"ef": 20}),
        ("IVF_FLAT", {"nprobe": 8}), ("IVF_SQ8", {"nprobe": 8}), ("SCANN", {"nprobe": 8}),
        ("DISKANN", {"search_list": 20}),
    ],
)  # fmt: skip
def test_what_an_index_calls_effort(index: str, params: dict[str, int]) -> None:
    assert effort_params(index, 8, 20) == params
    assert effort_params(index, 0, 20) == {}
    if params and "nprobe" not in params:
        assert list(effort_params(index, 64, 20).values()) == [64]


class Halves:
    """A client of a server with float16 vectors, over one without, whose searches cannot bring them along.

    So it is with the engine of Milvus 2.5. In requests they are arrays of float16, in answers their bytes.
    """

    def __init__(self, client: Any) -> None:
        self.client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    def create_collection(self, name: str, schema: Any, **options: Any) -> None:
        from pymilvus import DataType

        for field in schema.fields:
            if field.dtype == DataType.FLOAT16_VECTOR:
                field._dtype = DataType.FLOAT_VECTOR
        self.client.create_collection(name, schema=schema, **options)

    def upsert(self, name: str, data: list[dict[str, Any]], **options: Any) -> Any:
        return self.client.upsert(name, data=[self._wide(row) for row in data], **options)

    def _wide(self, row: dict[str, Any]) -> dict[str, Any]:
        sides = {side: row[side] for side in ("image", "text") if side in row}
        assert all(values.dtype == np.float16 for values in sides.values())
        return row | {side: values.astype(np.float32) for side, values in sides.items()}

    def search(self, *names: Any, data: list[Any], output_fields: list[str], **options: Any) -> Any:
        assert not {"image", "text"} & set(output_fields)
        assert all(row.dtype == np.float16 for row in data)
        wide = [row.astype(np.float32) for row in data]
        return self.client.search(*names, data=wide, output_fields=output_fields, **options)

    def query(self, *names: Any, **options: Any) -> Any:
        return [dict(row) | self._narrow(row) for row in self.client.query(*names, **options)]

    def _narrow(self, row: Any) -> dict[str, list[bytes]]:
        sides = [side for side in ("image", "text") if side in row]
        return {side: [np.asarray(row[side], np.float32).astype(np.float16).tobytes()] for side in sides}


def test_vectors_of_half_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stored, given back, searched, imported: as from a folder."""
    connect = reco.milvus_collection._connect
    monkeypatch.setattr("reco.milvus_collection._connect", lambda *where: Halves(connect(*where)))
    local = reco.Memory.create(tmp_path / "local", DIM)
    remote = MilvusMemory.create(str(tmp_path / "m.db"), "m", DIM, dtype="float16")
    images, texts = near_ties(PAIRS, 1), duplicates(PAIRS, 2)
    keys = [f"k{i}" for i in range(PAIRS)]
    for memory in (local, remote):
        memory.add(images[:150], texts[:150], keys[:150])
    rest = [_unit_rows(rows, "test", "rows") for rows in (images[150:], texts[150:])]  # rounded as they are written
    write_shard(tmp_path / "in", 0, Embeddings(rest[0], rest[1], keys[150:], [""] * 250, [{}] * 250))
    assert import_embeddings(local, tmp_path / "in", progress=False) == 250
    assert remote.import_embeddings(tmp_path / "in", progress=False) == 250
    for side in ("image", "text"):
        rows = queries_of(local, side)
        for options in ({}, {"partners": False}, {"exclude_keys": keys[:40]}, {"max_similarity": 0.9}):
            assert_same(local.search(rows, 7, side, **options), remote.search(rows, 7, side, **options))
        found = remote.search(rows, 7, side)
        np.testing.assert_array_equal(
            remote.embeddings(side, found.rows[0]), local.embeddings(side, local.search(rows, 7, side).rows[0])
        )
    again = MilvusMemory(str(tmp_path / "m.db"), "m")
    np.testing.assert_array_equal(again.get("k7").image_embedding, local.get("k7").image_embedding)
    assert "float16" in again._store.facts.values()


def test_what_does_not_fit() -> None:
    with pytest.raises(reco.Error, match="expected one query of 4 columns, got 1 of 3"):
        _scores(np.ones(3, np.float32), np.ones((2, 4), np.float32))
    with pytest.raises(reco.Error, match=r"\[somewhere\] pairs must be finite, row 1 is not"):
        _unit_rows(np.array([[1, 2], [np.inf, 1]], np.float32), "somewhere", "pairs")
