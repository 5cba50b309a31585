# SPDX-License-Identifier: Apache-2.0
"""A memory in a Milvus collection, for more pairs than one machine holds. Needs `pip install reco-clip[milvus]`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from reco._core import Error, MemoryBase, MemoryRow, Neighbors, _unit_rows
from reco.milvus_collection import LONGEST_TEXT, REQUEST_BYTES, ROWS, MilvusCollection, row_of
from reco.milvus_import import Import, drop_import
from reco.milvus_search import MOST_RESULTS, Ranking, Search, pieces, rounding
from reco.progress import Reporter

if TYPE_CHECKING:
    from reco.types import Progress

__all__ = ["MilvusMemory"]

Floats = npt.NDArray[np.float32]
Side = Literal["image", "text"]

_TAG = "memory.milvus"


def _other(side: Side) -> Side:
    return "text" if side == "image" else "image"


class MilvusMemory(MemoryBase):
    """Image-text pairs in a collection of a Milvus server or of a Milvus Lite file; takes a Memory's place anywhere.

    Embeddings are unit rows, rounded to half precision as a Memory's are, and what the server finds is compared with
    the query once more as a Memory compares: both give the same neighbours with the same similarities, of equally near
    pairs the older ones (any of them, where there are more than 4,096). Indexes that see a part of the pairs, or keep
    them rounded, miss some, as they do for others. A pair is written whole or not at all, but many pairs batch by
    batch: when add() fails half way, some are there, and upsert() of all of them ends what was begun. Thread safe. A
    pickle connects anew where it is unpickled; it holds the token.

    Parameters
    ----------
    uri : str
        Of the server ("http://localhost:19530"), or a file ("pairs.db") for Milvus Lite.
    collection : str
        Its name. Facts about it, the encoder's fingerprint among them, lie in the collection `<name>_reco`.
    encoder : str
        If given, a collection made with another encoder raises Error.
    token : str
        "user:password" or an API key.
    timeout : float
        Seconds that a request may take. One that fails is sent again within them, after 0.1, 0.2, 0.4, ... 2 seconds,
        so that a server may be started anew meanwhile; then it is an Error.

    Raises
    ------
    Error
        When the server does not answer, there is no such collection, or it is not one of reco's. Searching one whose
        import was begun raises Error until import_embeddings() has ended; that, and that the collection is still the
        one that was opened, is asked anew once a second and after every request that failed.
    """

    def __init__(
        self,
        uri: str,
        collection: str,
        *,
        encoder: str = "",
        token: str = "",
        timeout: float = 30.0,
    ) -> None:
        self._store = MilvusCollection(uri, collection, token, timeout)
        self._store.open(encoder)
        super().__init__(self._store.facts["dim"], self._store.facts["encoder"])

    @classmethod
    def create(
        cls,
        uri: str,
        collection: str,
        dim: int,
        encoder: str = "",
        *,
        index: str = "FLAT",
        index_params: dict[str, Any] | None = None,
        dtype: Literal["float32", "float16"] = "float32",
        token: str = "",
        timeout: float = 30.0,
    ) -> MilvusMemory:
        """Make an empty collection and open it.

        Parameters
        ----------
        uri, collection, token, timeout
            As in MilvusMemory.
        dim : int
            Width of the embeddings.
        encoder : str
            Fingerprint of the encoder whose embeddings it will hold.
        index : str
            Milvus's index for both sides: "FLAT" (exact), "HNSW", "IVF_FLAT", "DISKANN", ...
        index_params : dict, optional
            The index's own, such as {"M": 32, "efConstruction": 200}.
        dtype : {"float32", "float16"}
            Of the vectors on the server; Milvus Lite has float32 only. A search fetches float16 by a second request.

        Raises
        ------
        Error
            When the collection is there already, or the server refuses what was asked for.
        """
        store = MilvusCollection(uri, collection, token, timeout)
        store.create(dim, encoder, index, index_params or {}, dtype)
        return cls(uri, collection, encoder=encoder, token=token, timeout=timeout)

    def __repr__(self) -> str:
        return str(self._store)

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickle connects anew where it is unpickled; it holds the token."""
        store = self._store
        where = (store.uri, store.name, self.encoder, store.token, store.timeout)
        return _connect_again, (*where, store.facts.get("id", ""))

    def __len__(self) -> int:
        return self._store.count()

    def __contains__(self, key: str) -> bool:
        return bool(self._stored([key]))

    # --- changes -----------------------------------------------------------------------------------------------------
    def add(
        self,
        image_embeddings: Any,
        text_embeddings: Any,
        keys: list[str],
        captions: list[str] | None = None,
        metadata: list[dict[str, Any]] | None = None,
    ) -> None:
        """Append n pairs, as Memory.add; keys that are there already raise Error before anything is written.

        Parameters
        ----------
        image_embeddings, text_embeddings : array [n, dim]
        keys : list of str
        captions : list of str, optional
        metadata : list of dict, optional
        """
        if there := self._stored(keys):
            raise Error(f"[memory.add] key '{there[0]}' is there already")
        self.upsert(image_embeddings, text_embeddings, keys, captions, metadata)

    def upsert(
        self,
        image_embeddings: Any,
        text_embeddings: Any,
        keys: list[str],
        captions: list[str] | None = None,
        metadata: list[dict[str, Any]] | None = None,
    ) -> None:
        """Like add(), but pairs whose keys are there already are replaced.

        Parameters
        ----------
        image_embeddings, text_embeddings : array [n, dim]
        keys : list of str
        captions : list of str, optional
        metadata : list of dict, optional
        """
        n, now = len(keys), time.time_ns()
        self._write(
            image_embeddings, text_embeddings, keys, captions or [""] * n, metadata or [{}] * n, range(now, now + n)
        )

    def _write(
        self,
        images: Any,
        texts: Any,
        keys: list[str],
        captions: list[str],
        metadata: list[dict[str, Any]],
        added: Sequence[int],
    ) -> None:
        """Pairs and when they were added, whatever was there of their keys."""
        n = len(keys)
        sides = {
            "image": self._halves(images, "image embeddings", n),
            "text": self._halves(texts, "text embeddings", n),
        }
        self._check_words(keys, captions, metadata)
        step = max(1, REQUEST_BYTES // (8 * self.dim + 1024))
        for first in range(0, n, step):
            self._store.call("upsert", data=[
                {
                    "id": row_of(keys[i]), "key": keys[i], "caption": captions[i],
                    "metadata": metadata[i] or {}, "added": added[i],
                    "image": self._store.stored_vector(sides["image"][i]),
                    "text": self._store.stored_vector(sides["text"][i]),
                }
                for i in range(first, min(first + step, n))
            ])  # fmt: skip

    def _check_words(self, keys: list[str], captions: list[str], metadata: list[dict[str, Any]]) -> None:
        for name, values in (("captions", captions), ("metadata", metadata)):
            if len(values) != len(keys):
                raise Error(f"[memory.add] {name} must have one entry a row, {len(keys)} in all, got {len(values)}")
        if len(set(keys)) < len(keys) or not all(keys):
            raise Error("[memory.add] keys must differ and not be empty")
        for text in (*keys, *captions):
            if len(text.encode()) > LONGEST_TEXT:
                raise Error(f"[memory.add] keys and captions must have at most {LONGEST_TEXT} bytes: '{text[:40]}...'")

    def remove(self, keys: list[str]) -> None:
        """Remove pairs; Error, with nothing removed, if a key is not there.

        Parameters
        ----------
        keys : list of str
        """
        there = set(self._stored(keys))
        for key in keys:
            if key not in there:
                raise Error(f"[memory.remove] no pair has the key '{key}'")
        for piece in pieces([row_of(key) for key in keys], ROWS):
            self._store.call("delete", ids=piece)

    def flush(self) -> None:
        """Have the server seal and index what was added so far, so that it is found faster. Imports end with it."""
        self._store.call("flush")

    def import_embeddings(self, *folders: str | Path, progress: Progress = True) -> int:
        """Add what `reco embed` or clip-retrieval wrote, shard by shard; pairs whose keys are there are skipped.

        Of pairs of one key the first is taken. Interrupted, the same call goes on where it was; until it has ended,
        searches raise Error and nothing else can be imported. Of each shard all keys are looked up and some pairs read
        back and compared; at the end the server counts what was imported. Shards that changed since an interruption are
        imported anew.

        Parameters
        ----------
        *folders : str or Path
        progress : bool or callable, optional
            Show a progress bar on standard error; or called with (pairs done, pairs in all), returning False stops.

        Returns
        -------
        int
            How many pairs were added, by this call.

        Raises
        ------
        Error
            When a folder holds no embeddings, those of another encoder or a part of what `reco embed` was to write,
            when its files do not fit each other, when the import of other folders has not ended, or the server does not
            hold what was imported.
        """
        work = Import(self, folders)
        with Reporter(progress, "import", " pairs") as bar:
            return work.run(bar)

    def drop_import(self) -> int:
        """Take back what an import wrote that has not ended, so that the memory is as before it.

        A call that is still at it, here or elsewhere, ends with an Error.

        Returns
        -------
        int
            How many pairs it had written; 0 where all imports have ended.
        """
        return drop_import(self)

    # --- search ------------------------------------------------------------------------------------------------------
    def search(
        self,
        queries: Any,
        k: int = 10,
        modality: Side = "image",
        exclude_keys: Any = None,
        only_keys: list[str] | None = None,
        where: str = "",
        max_similarity: float | None = None,
        partners: bool = True,
        exact: bool = False,
        effort: int = 0,
    ) -> Neighbors:
        """Find the k most similar pairs of each query, as Memory.search.

        Parameters
        ----------
        queries : array [n, dim]
        k : int
        modality : {"image", "text"}
        exclude_keys : list of str, or n lists of str, optional
        only_keys : list of str, optional
        where : str
            An expression of Milvus's on key, caption and metadata, such as ``metadata["domain"] == "flags"``.
        max_similarity : float, optional
        partners : bool
        exact : bool
            Raises Error unless the index is FLAT.
        effort : int
            HNSW's ef or DISKANN's search_list, raised to what a request asks for, or IVF's nprobe; 0: the index's own.

        Returns
        -------
        Neighbors
        """
        rows = self._unit(queries, "memory.search", "queries")
        self._check_search(k, modality, exact)
        excluded, partner = _excluded(exclude_keys, len(rows)), _other(modality)
        found_rows = np.full((len(rows), k), -1, np.int64)
        scores = np.zeros((len(rows), k), np.float32)
        vectors = np.zeros((len(rows), k, self.dim), np.float32) if partners else None
        most = np.inf if max_similarity is None else max_similarity
        search = Search(
            self._store,
            Ranking(k, rounding(self.dim, self._store.facts["dtype"]), most),
            (modality, partner) if partners else (modality,),
            {"anns_field": modality, "filter": self._filter(where, only_keys)},
            effort,
        )
        for i, found in search.run(rows, excluded):
            n = len(found.pairs)
            scores[i, :n] = found.scores
            for j, pair in enumerate(found.pairs):
                found_rows[i, j] = pair.row
                if vectors is not None:
                    vectors[i, j] = pair.vectors[partner]
        return Neighbors(self, found_rows, scores, vectors)

    def _check_search(self, k: int, modality: str, exact: bool) -> None:
        if not 1 <= k <= MOST_RESULTS:
            raise Error(f"[memory.search] k must be from 1 to {MOST_RESULTS}, got {k}")
        if modality not in ("image", "text"):
            raise Error(f"[memory.search] modality must be 'image' or 'text', got '{modality}'")
        if exact and self._store.facts["index"] != "FLAT":
            raise Error(f"[memory.search] {self} has the index {self._store.facts['index']}: exact search needs FLAT")
        if importing := self._store.fresh_facts()["importing"]:
            raise Error(f"[memory.search] the import of {importing} into {self} has not ended")

    def _filter(self, where: str, only_keys: list[str] | None) -> str:
        parts = [f"({where})"] if where else []
        if only_keys is not None:
            parts.append(f"id in {[row_of(key) for key in only_keys]}")
        return " and ".join(parts)

    # --- rows --------------------------------------------------------------------------------------------------------
    def embeddings(self, modality: Side, rows: Any) -> Floats:
        """One side's embeddings of rows: float32 [n, dim], zeros for -1.

        Parameters
        ----------
        modality : {"image", "text"}
        rows : array of int [n]
        """
        found = self._fields(rows, modality)
        none = np.zeros(self.dim, np.float32)
        out: Floats = np.stack([none if one is None else self._store.read_vector(one) for one in found]) if found else (
            np.zeros((0, self.dim), np.float32)
        )  # fmt: skip
        return out

    def keys(self, rows: Any) -> list[str]:
        """The keys of rows; '' for -1."""
        return [one or "" for one in self._fields(rows, "key")]

    def captions(self, rows: Any) -> list[str]:
        """The captions of rows; '' for -1."""
        return [one or "" for one in self._fields(rows, "caption")]

    def metadata(self, rows: Any) -> list[dict[str, Any] | None]:
        """The metadata of rows; None for -1."""
        return self._fields(rows, "metadata")

    def get(self, key: str) -> MemoryRow:
        """The pair of a key; Error if it is not there."""
        found = self._query([row_of(key)], ["key", "caption", "metadata", "image", "text"])
        if not found:
            raise Error(f"[memory.get] no pair has the key '{key}'")
        row = found[0]
        image, text = (self._store.read_vector(row[side]) for side in ("image", "text"))
        return MemoryRow(row["key"], row["caption"], row["metadata"], image, text)

    def _fields(self, rows: Any, name: str) -> list[Any]:
        wanted = [int(row) for row in np.asarray(rows).ravel()]
        known: dict[int, Any] = {-1: None}
        for piece in pieces(sorted(set(wanted) - {-1}), ROWS):
            known |= {row["id"]: row[name] for row in self._query(piece, [name])}
        for row in wanted:
            if row not in known:
                raise Error(f"[{_TAG}] {self} has no row {row} any more")
        return [known[row] for row in wanted]

    def _query(self, rows: Sequence[int], fields: list[str]) -> list[dict[str, Any]]:
        return list(self._store.call("query", ids=list(rows), output_fields=["id", *fields]))

    def _stored(self, keys: list[str]) -> list[str]:
        """Those of the keys that are there."""
        return list(self._added(keys))

    def _added(self, keys: list[str]) -> dict[str, int]:
        """When those of the keys were added that are there; two keys of one hash are an Error."""
        added: dict[str, int] = {}
        for piece in pieces(keys, ROWS):
            wanted = {row_of(key): key for key in piece}
            for row in self._query(list(wanted), ["key", "added"]):
                if wanted[row["id"]] != row["key"]:
                    raise Error(f"[{_TAG}] the keys '{wanted[row['id']]}' and '{row['key']}' have one hash: rename one")
                added[row["key"]] = row["added"]
        return added

    # --- vectors -----------------------------------------------------------------------------------------------------
    def _unit(self, values: Any, tag: str, name: str) -> Floats:
        """Scaled as a Memory scales them, so that both compare the same values."""
        unit = _unit_rows(values, tag, name)
        if unit.shape[1] != self.dim:
            raise Error(f"[{tag}] {name} must have {self.dim} columns, got {unit.shape[1]}")
        return unit

    def _halves(self, values: Any, name: str, n: int) -> Floats:
        """Rounded as a Memory rounds them."""
        unit = self._unit(values, "memory.add", name)
        if len(unit) != n:
            raise Error(f"[memory.add] {name} must have one row a key, {n} in all, got {len(unit)}")
        return unit.astype(np.float16).astype(np.float32)


def _connect_again(uri: str, collection: str, encoder: str, token: str, timeout: float, own: str) -> MilvusMemory:
    memory = MilvusMemory(uri, collection, encoder=encoder, token=token, timeout=timeout)
    memory._store.check_id(own)
    return memory


def _excluded(keys: Any, n: int) -> list[set[int]]:
    """Rows that each query must not find."""
    if not keys:
        return [set()] * n
    lists = [keys] * n if isinstance(keys[0], str) else list(keys) * (n if len(keys) == 1 else 1)
    if len(lists) != n:
        raise Error(f"[memory.search] exclude_keys must be one list, or one a query, {n} in all, got {len(lists)}")
    return [{row_of(key) for key in one} for one in lists]
