# SPDX-License-Identifier: Apache-2.0
"""Searching a Milvus collection as a folder is searched: what the server finds is compared with the query once more.

A server adds up products in another order than reco does, so that its similarities differ by rounding, and with them
the order of pairs that are nearly equally near, and what a fusion makes of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from reco._core import Error, _scores
from reco.milvus_collection import REQUEST_BYTES, MilvusCollection

__all__ = ["MOST_RESULTS", "SPARE", "Found", "Pair", "Ranking", "Search", "effort_params", "pieces", "rounding"]

Floats = npt.NDArray[np.float32]

MOST_RESULTS = 16_384  # Milvus's own limit of neighbours a query
SPARE = 4  # beyond k, asked for at once: so that few queries need a second request
_TIES = 4_096  # pairs that are looked at to find which of equally near ones are the oldest
_QUERIES = 256  # of one request: so that its time is bounded, not its answer's bytes alone
_ALONG = ("float32",)  # types of vectors that a search brings along: Milvus 2.5's engine fails with float16


def rounding(dim: int, dtype: str) -> float:
    """By how much a server's similarity may differ from ours.

    Two sums of dim products of unit vectors, in whatever orders, each differ from the true one by dim * 2^-24 at most
    (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). Where vectors are of half precision the
    server is given the query as such, too: 2^-11 of each of its numbers.
    """
    return 1.01 * (2 * dim * 2.0**-24 + (2.0**-11 if dtype == "float16" else 0.0))


def effort_params(index: str, effort: int, limit: int) -> dict[str, int]:
    """How hard an index is to look, as it calls that; none for one that looks at everything, and for 0.

    Milvus refuses to look at fewer rows of a graph than are to be found, and more are asked for than the caller wants.
    """
    if not effort:
        return {}
    if index.startswith(("IVF", "SCANN")):
        return {"nprobe": effort}
    name = "search_list" if index == "DISKANN" else "ef" if index.startswith("HNSW") else ""
    return {name: max(effort, limit)} if name else {}


def pieces(items: Any, size: int) -> Iterable[Any]:
    """One after the other, of `size` items but the last."""
    return (items[first : first + size] for first in range(0, len(items), size))


@dataclass(frozen=True)
class Pair:
    """A pair that the server found."""

    row: int
    added: int
    vectors: dict[str, Floats]  # the searched side's, and its partner's where that is wanted


@dataclass(frozen=True)
class Found:
    """Of one query: the nearest pairs and their similarities, best first; whether no other may be among them."""

    pairs: list[Pair]
    scores: Floats
    complete: bool


@dataclass(frozen=True)
class Ranking:
    """Which of the pairs that a server found are the k nearest."""

    k: int
    slack: float  # rounding()
    most: float  # max_similarity, or infinity

    def contenders(self, hits: list[Any], excluded: Collection[int]) -> list[Any]:
        """Those that may be among the k nearest, however the server rounded."""
        kept = [hit for hit in hits if hit["id"] not in excluded and hit["distance"] <= self.most + self.slack]
        sure = sorted((hit["distance"] for hit in kept if hit["distance"] <= self.most - self.slack), reverse=True)
        least = sure[self.k - 1] - 2 * self.slack if len(sure) >= self.k else -np.inf
        return [hit for hit in kept if hit["distance"] >= least]

    def rank(self, query: Floats, side: str, pairs: Sequence[Pair], last: float) -> Found:
        """The k nearest of some pairs; of equally near ones those that were added first, as in a folder.

        `last` is the server's least similarity: what it did not return is no nearer than that, but for rounding. It is
        minus infinity where there is no more.
        """
        if not pairs:
            return Found([], np.zeros(0, np.float32), last == -np.inf)
        scores = _scores(query, np.stack([pair.vectors[side] for pair in pairs]))
        allowed = [int(i) for i in np.flatnonzero(scores <= np.float32(self.most))]
        order = sorted(allowed, key=lambda i: (-scores[i], pairs[i].added, pairs[i].row))[: self.k]
        complete = last == -np.inf or (len(order) == self.k and bool(scores[order[-1]] > last + self.slack))
        return Found([pairs[i] for i in order], scores[order], complete)


@dataclass(frozen=True)
class Search:
    """The requests of one search.

    The first brings the vectors of both sides along. Where it cannot, where the last places stay contested, or where
    what was left out took the places of others, pairs are asked for without them, and then the vectors of those that
    may be nearest.
    """

    store: MilvusCollection
    ranking: Ranking
    sides: Sequence[str]  # the searched one; its partner
    request: dict[str, Any]
    effort: int = 0

    def run(self, queries: Floats, excluded: Sequence[Collection[int]]) -> Iterator[tuple[int, Found]]:
        """The number of each query, in some order, and what was found for it; unit queries."""
        limit = self.ranking.k + SPARE + max(map(len, excluded), default=0)
        todo, limit = list(range(len(queries))), min(MOST_RESULTS, limit)
        whole = self.store.facts["dtype"] in _ALONG and limit * self._vector_bytes <= REQUEST_BYTES
        while todo:
            short = []
            for i, pairs, last in self._answers(queries, todo, excluded, limit, whole):
                found = self.ranking.rank(queries[i], self.sides[0], pairs, last)
                if self._goes_on(found, limit):
                    short.append(i)
                else:
                    yield i, found
            todo, limit, whole = short, min(MOST_RESULTS, 4 * limit), False

    def _goes_on(self, found: Found, limit: int) -> bool:
        lacks = len(found.pairs) < self.ranking.k
        if found.complete or (not lacks and limit >= min(_TIES, MOST_RESULTS)):
            return False
        if limit == MOST_RESULTS:
            most = f"of the {limit} pairs that Milvus finds for a query"
            raise Error(f"[memory.search] {most}, fewer than {self.ranking.k} may stay")
        return True

    def _answers(
        self, queries: Floats, todo: list[int], excluded: Sequence[Collection[int]], limit: int, whole: bool
    ) -> Iterator[tuple[int, list[Pair], float]]:
        fields = ["added", *(self.sides if whole else ())]
        most = max(1, REQUEST_BYTES // (limit * (16 + self._vector_bytes)))
        for piece in pieces(todo, min(_QUERIES, most)):
            data = [self.store.stored_vector(queries[i]) for i in piece]
            params = effort_params(self.store.facts["index"], self.effort, limit)
            answers = self.store.call(
                "search", data=data, limit=limit, output_fields=fields,
                search_params={"metric_type": "IP", "params": params}, **self.request,
            )  # fmt: skip
            hits = [self.ranking.contenders(found, excluded[i]) for i, found in zip(piece, answers, strict=True)]
            entities = {hit["id"]: hit["entity"] for found in hits for hit in found}
            if not whole:
                entities = self._fetched(entities)
            known = {row: self._pair(row, entity) for row, entity in entities.items()}
            for i, all_found, found in zip(piece, answers, hits, strict=True):
                last = min(hit["distance"] for hit in all_found) if len(all_found) >= limit else -np.inf
                yield i, [known[hit["id"]] for hit in found if hit["id"] in known], last

    def _fetched(self, rows: Iterable[int]) -> dict[int, Any]:
        """What a query of its own brings of rows; not of those that somebody removed meanwhile."""
        fetched: dict[int, Any] = {}
        for piece in pieces(sorted(rows), max(1, REQUEST_BYTES // self._vector_bytes)):
            found = self.store.call("query", ids=piece, output_fields=["id", "added", *self.sides])
            fetched |= {row["id"]: row for row in found}
        return fetched

    def _pair(self, row: int, entity: dict[str, Any]) -> Pair:
        return Pair(row, entity["added"], {side: self.store.read_vector(entity[side]) for side in self.sides})

    @property
    def _vector_bytes(self) -> int:
        return 4 * len(self.sides) * int(self.store.facts["dim"])
