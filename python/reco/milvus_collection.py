# SPDX-License-Identifier: Apache-2.0
"""The Milvus side of a MilvusMemory: a collection, facts about it, requests that are sent again when they fail."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import uuid
from typing import Any

import numpy as np

from reco._core import Error

__all__ = ["LONGEST_TEXT", "REQUEST_BYTES", "ROWS", "MilvusCollection", "row_of"]

LONGEST_TEXT = 65_535  # bytes, Milvus's own limit
ROWS = 1_000  # ids of one query
REQUEST_BYTES = 16 << 20  # of vectors in one request or answer; a server takes 64 MB

_log = logging.getLogger("reco")

_FORMAT = 2
_TAG = "memory.milvus"
_KNOWN = {"format": int, "dim": int, "encoder": str, "index": str, "dtype": str, "importing": str}
# What never changes while a collection is there. Ones that were made before they had an id lack it.
_IDENTITY = ("format", "dim", "encoder", "index", "dtype", "id")
_FACTS_ROW: dict[str, Any] = {"ids": [0], "output_fields": ["facts"]}
_FRESH = 1.0  # seconds for which facts that were read are believed
_LONGEST_PAUSE = 2.0
# Of a connection: gRPC itself waits longer and longer before it tries again, up to two minutes, and lets connections
# share that patience. Its servers hang up on who asks more often than each five minutes whether they are still there,
# as pymilvus does while a request takes long; that has a timeout of its own.
_CHANNEL = {
    "grpc.max_reconnect_backoff_ms": 1000,
    "grpc.use_local_subchannel_pool": 1,
    "grpc.keepalive_time_ms": 300_000,
}


def row_of(key: str) -> int:
    """The row number of a key: 63 bits of its hash, so that writing a pair twice is writing it once."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") >> 1


class MilvusCollection:
    """A collection of pairs, and beside it `<name>_reco` with one row of facts, in JSON: the encoder's fingerprint, the
    width and type of the vectors, the index, an import that has not ended; and notes of that import in further rows.
    """

    def __init__(self, uri: str, name: str, token: str, timeout: float) -> None:
        self.uri, self.name, self.token, self.timeout = str(uri), name, token, timeout
        self.client = _connect(self.uri, token, timeout)
        self.facts: dict[str, Any] = {}
        self._read_at = -_FRESH

    def __str__(self) -> str:
        return f"MilvusMemory('{self.uri}', '{self.name}')"

    def create(self, dim: int, encoder: str, index: str, index_params: dict[str, Any], dtype: str) -> None:
        """Make it; the facts last, so that a collection whose making was interrupted is not taken for one."""
        from pymilvus import DataType

        kinds = {"float32": DataType.FLOAT_VECTOR, "float16": DataType.FLOAT16_VECTOR}
        if dtype not in kinds:
            raise Error(f"[memory.create] expected dtype 'float32' or 'float16', got '{dtype}'")
        if dim < 1:
            raise Error(f"[memory.create] expected a dim of at least 1, got {dim}")
        if any(self.call("has_collection", name=name) for name in (self.name, self._facts_name)):
            raise Error(f"[{_TAG}] {self} is there already")
        fields = [
            {"field_name": "image", "datatype": kinds[dtype], "dim": dim},
            {"field_name": "text", "datatype": kinds[dtype], "dim": dim},
            {"field_name": "key", "datatype": DataType.VARCHAR, "max_length": LONGEST_TEXT},
            {"field_name": "caption", "datatype": DataType.VARCHAR, "max_length": LONGEST_TEXT},
            {"field_name": "metadata", "datatype": DataType.JSON},
            {"field_name": "added", "datatype": DataType.INT64},  # nanoseconds: what was added later has more
        ]
        self._make(self.name, fields, {"image": (index, index_params), "text": (index, index_params)})
        fields = [
            {"field_name": "facts", "datatype": DataType.VARCHAR, "max_length": LONGEST_TEXT},
            {"field_name": "vector", "datatype": DataType.FLOAT_VECTOR, "dim": 2},  # no collection without one
        ]
        self._make(self._facts_name, fields, {"vector": ("FLAT", {})})
        own = uuid.uuid4().hex  # of another collection of this name there will be another
        self.write_facts(format=_FORMAT, dim=dim, encoder=encoder, index=index, dtype=dtype, importing="", id=own)

    def open(self, encoder: str) -> None:
        """Read the facts and check them; make it ready to be searched."""
        if not self.call("has_collection"):
            raise Error(f"[{_TAG}] {self} is not there; MilvusMemory.create() makes one")
        facts: dict[str, Any] = {}
        if self.call("has_collection", name=self._facts_name):
            self.call("load_collection", name=self._facts_name)
            facts = _facts_in(self.call("query", name=self._facts_name, **_FACTS_ROW))
        if not all(isinstance(facts.get(name), kind) for name, kind in _KNOWN.items()):
            raise Error(f"[{_TAG}] {self} is no collection of reco's: {self._facts_name} lacks facts")
        self.facts = facts
        if self.facts["format"] != _FORMAT:
            raise Error(f"[{_TAG}] {self} has format {self.facts['format']}, this version of reco reads {_FORMAT}")
        if encoder and self.facts["encoder"] != encoder:
            raise Error(f"[{_TAG}] {self} was made with encoder {self.facts['encoder']}, expected {encoder}")
        self.call("load_collection")

    def check_id(self, own: str) -> None:
        """Refuse a collection that was made after the one meant, under its name; those without an id all fit ''."""
        if self.facts.get("id", "") != own:
            found = self.facts.get("id")
            raise Error(f"[{_TAG}] {self} is another collection by now: expected id {own}, found {found}")

    def write_facts(self, **changes: Any) -> None:
        """Change some of the facts, durably; the others as they are on the server."""
        facts = (self.fresh_facts(0.0) if self.facts else {}) | changes
        self.write_note(0, facts)
        self.facts = facts

    def write_note(self, row: int, note: dict[str, Any]) -> None:
        """Keep something beside the facts, durably, in a row of its own."""
        data = [{"id": row, "facts": json.dumps(note), "vector": [1.0, 0.0]}]
        self.call("upsert", name=self._facts_name, data=data)

    def read_notes(self, rows: list[int]) -> dict[int, dict[str, Any]]:
        """Those of some rows that are there."""
        notes: dict[int, dict[str, Any]] = {}
        for first in range(0, len(rows), ROWS):
            some = {"ids": rows[first : first + ROWS], "output_fields": ["id", "facts"]}
            notes |= {row["id"]: json.loads(row["facts"]) for row in self.call("query", name=self._facts_name, **some)}
        return notes

    def count_notes(self) -> int:
        """How many there are, the facts left out."""
        return self.count("id > 0", name=self._facts_name)

    def clear_notes(self) -> None:
        """Remove all of them, not the facts."""
        self.call("delete", name=self._facts_name, filter="id > 0")

    def count(self, where: str = "", *, name: str | None = None) -> int:
        """How many rows there are that fulfil a condition."""
        return int(self.call("query", name=name, filter=where, output_fields=["count(*)"])[0]["count(*)"])

    def fresh_facts(self, age: float | None = None) -> dict[str, Any]:
        """The facts as they were on the server a second ago (or `age`) or later: others change them too."""
        if time.monotonic() - self._read_at >= (_FRESH if age is None else age):
            self._take(_facts_in(self.call("query", name=self._facts_name, **_FACTS_ROW)))
        return self.facts

    def stored_vector(self, row: Any) -> Any:
        """A float32 row as requests hold it."""
        return row if self.facts["dtype"] == "float32" else row.astype(np.float16)

    def read_vector(self, value: Any) -> Any:
        """A float32 row from an answer."""
        if self.facts["dtype"] == "float32":
            return np.asarray(value, np.float32)
        data = value[0] if isinstance(value, list) else value
        return np.frombuffer(data, np.float16).astype(np.float32)

    def call(self, method: str, *, name: str | None = None, **arguments: Any) -> Any:
        """Send a request, and again when it fails, until the timeout: every one of ours may be sent twice."""
        import grpc
        from pymilvus.exceptions import MilvusException

        end, pause, failed = time.monotonic() + self.timeout, 0.1, False
        while True:
            try:
                if failed and self.facts:
                    self._meet_again(end)
                return getattr(self.client, method)(name or self.name, timeout=_left(end), **arguments)
            except (MilvusException, grpc.RpcError) as error:
                if _is_final(error) or time.monotonic() + pause >= end:
                    raise Error(f"[{_TAG}] {method} at {self} failed: {_text(error)}") from None
                _log.warning("%s at %s failed, again in %.1f s: %s", method, self, pause, _text(error))
            time.sleep(pause)
            pause, failed = min(2 * pause, _LONGEST_PAUSE), True

    def _meet_again(self, end: float) -> None:
        """After a failure: a server that was started anew may have loaded nothing, or hold other pairs."""
        for name in (self._facts_name, self.name):
            self.client.load_collection(name, timeout=_left(end))
        self._take(_facts_in(self.client.query(self._facts_name, timeout=_left(end), **_FACTS_ROW)))

    def _take(self, facts: dict[str, Any]) -> None:
        for name in _IDENTITY:
            if facts.get(name) != self.facts.get(name):
                raise Error(
                    f"[{_TAG}] {self} is another collection by now: expected {name} {self.facts.get(name)}, "
                    f"found {facts.get(name)}"
                )
        self.facts, self._read_at = facts, time.monotonic()

    @property
    def _facts_name(self) -> str:
        return f"{self.name}_reco"

    def _make(self, name: str, fields: list[dict[str, Any]], indexes: dict[str, tuple[str, dict[str, Any]]]) -> None:
        from pymilvus import DataType

        schema = self.client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        for field in fields:
            schema.add_field(**field)
        params = self.client.prepare_index_params()
        for field_name, (index, options) in indexes.items():
            params.add_index(field_name, index_type=index, metric_type="IP", params=options)
        self.call("create_collection", name=name, schema=schema, index_params=params, consistency_level="Strong")


def _facts_in(rows: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(rows[0]["facts"]) if rows else {}
    return found


def _left(end: float) -> float:
    """Seconds until then, and a little where none are left."""
    return max(0.1, end - time.monotonic())


def _is_final(error: Any) -> bool:
    """Whether the server understood and refused: asking again changes nothing (Milvus's codes for bad requests).

    Code 1 is that of a server which is not ready yet, and what pymilvus gives to mistakes that it finds itself.
    """
    if _is_starting(error):
        return False
    code = error.code() if callable(getattr(error, "code", None)) else getattr(error, "code", None)
    if isinstance(code, int):
        return code in (1, 6) or 1100 <= code < 1200 or 1400 <= code < 1500
    return getattr(code, "name", "") in ("UNAUTHENTICATED", "PERMISSION_DENIED", "INVALID_ARGUMENT", "UNIMPLEMENTED")


def _is_starting(error: Any) -> bool:
    """Whether the server says that asking again may help: as one does that was started a moment ago."""
    return bool(getattr(error, "retriable", False)) or "not ready" in _text(error)


def _text(error: Any) -> str:
    if callable(getattr(error, "details", None)):  # gRPC's own
        return f"{error.code().name}, {error.details()}"
    return str(getattr(error, "message", "") or error).splitlines()[0]


def _connect(uri: str, token: str, timeout: float) -> Any:
    if "://" not in uri:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # Milvus Lite is no calm server, and nobody's concern
    try:
        from pymilvus import MilvusClient
        from pymilvus.exceptions import MilvusException
    except ImportError:
        raise Error(f"[{_TAG}] pymilvus is not installed: pip install reco-clip[milvus]") from None
    for name in ("pymilvus", "grpc._server"):  # they print a traceback beside each exception
        logging.getLogger(name).setLevel(logging.CRITICAL)
    end = time.monotonic() + timeout
    while True:
        try:
            return MilvusClient(uri, token=token, timeout=_left(end), grpc_options=_CHANNEL)
        except (MilvusException, OSError, ValueError) as error:
            if not _is_starting(error) or time.monotonic() + _LONGEST_PAUSE >= end:
                raise Error(f"[{_TAG}] no Milvus at {uri}: {_text(error)}") from None
        time.sleep(_LONGEST_PAUSE)
