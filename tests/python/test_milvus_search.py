# SPDX-License-Identifier: Apache-2.0
"""A Milvus collection finds what a folder finds, to the bit, where pairs are nearly or exactly equally near."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reco
import reco.milvus_search
from reco._core import _scores, _unit_rows
from reco.milvus import MilvusMemory
from reco.milvus_search import rounding

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


def test_what_does_not_fit() -> None:
    with pytest.raises(reco.Error, match="expected one query of 4 columns, got 1 of 3"):
        _scores(np.ones(3, np.float32), np.ones((2, 4), np.float32))
    with pytest.raises(reco.Error, match=r"\[somewhere\] pairs must be finite, row 1 is not"):
        _unit_rows(np.array([[1, 2], [np.inf, 1]], np.float32), "somewhere", "pairs")
