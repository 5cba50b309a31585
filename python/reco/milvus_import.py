# SPDX-License-Identifier: Apache-2.0
"""Importing folders of embeddings into a Milvus collection: shard by shard, gone on with, counted, or taken back.

What an import wrote is told by when it was "added": its pairs have numbers of their own there, counted on from the
nanosecond in which it was begun, a range for each shard. Beside the collection's facts lies a note on each shard that
was begun: its range, what its files were, how many pairs came of it. So a shard that was written anew since is taken
out and imported again, one that appeared between others is not taken for them, and losses are counted exactly.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reco._core import Error
from reco.embedding import Embeddings
from reco.embedding_source import check_source, first_of_each, read_shard, shard_numbers, shard_stamp
from reco.milvus_collection import row_of
from reco.milvus_search import pieces

if TYPE_CHECKING:
    from reco.milvus import MilvusMemory
    from reco.progress import Reporter

__all__ = ["Import", "drop_import"]

_PIECE = 10_000  # pairs that are read at a time
_SAMPLE = 64  # pairs of a shard that are read back whole
_DROPPED = 1_000_000  # numbers whose pairs one request removes
_TAG = "milvus_import"


@dataclass(frozen=True)
class _Note:
    """On a shard that was begun."""

    stamp: str  # of its files
    first: int  # number, of its range
    rows: int
    pairs: int = -1  # that came of it: those whose keys were not there; -1 as long as they are not all written


class Import:
    """One import, begun now or gone on with.

    Parameters
    ----------
    memory : MilvusMemory
    folders : sequence of str or Path

    Raises
    ------
    Error
        When a folder is not fit to be imported, or the import of other folders has not ended.
    """

    def __init__(self, memory: MilvusMemory, folders: Sequence[str | Path]) -> None:
        self.memory, self.store = memory, memory._store
        self.shards: list[tuple[Path, str]] = []
        for folder in dict.fromkeys(Path(folder).resolve() for folder in folders):
            check_source(folder, memory.encoder)
            self.shards += [(folder, number) for number in shard_numbers(folder)]
        self.notes: dict[int, _Note] = {}
        self.state = self._begin(", ".join(dict.fromkeys(str(folder) for folder, _ in self.shards)))

    def _begin(self, source: str) -> dict[str, int]:
        facts = self.store.fresh_facts(0.0)
        pending, state = facts["importing"], facts.get("import", {})
        if pending not in ("", source):
            raise Error(
                f"[{_TAG}] expected the import of {pending} into {self.memory} to go on, got {source}: call "
                f"import_embeddings() with the former, or drop_import() first"
            )
        if not pending or "begun" not in state:
            self.store.clear_notes()
            state = {"begun": time.time_ns(), "used": 0, "doubted": 0}
            self.store.write_facts(importing=source, **{"import": state})
        return dict(state)

    def run(self, bar: Reporter) -> int:
        """Import what is not there yet.

        Parameters
        ----------
        bar : Reporter

        Returns
        -------
        int
            How many pairs were added now.
        """
        self._read_notes()
        added = wanted = 0
        for folder, number in self.shards:
            note, new = self._shard(folder, number)
            added, wanted = added + new, wanted + note.pairs
            bar.update(note.rows)
        self._check_count(wanted)
        self.memory.flush()
        self._check_own()
        self.store.write_facts(importing="", **{"import": {}})
        self.store.clear_notes()
        return added

    def _read_notes(self) -> None:
        """What is there of an import that goes on, without what is another by now."""
        shards = {_place(*shard): shard for shard in self.shards}
        self.notes = {place: _Note(**note) for place, note in self.store.read_notes(list(shards)).items()}
        if gone := self.store.count_notes() - len(self.notes):
            raise Error(f"[{_TAG}] {gone} shards that were imported are gone: put them back, or call drop_import()")
        changed = [place for place, note in self.notes.items() if note.stamp != shard_stamp(*shards[place])]
        if changed:  # what they held may be wanted of others, where it was left out
            self._remember(doubted=1)
        for place in changed:
            note = self.notes.pop(place)
            _remove(self.memory, note.first, note.first + note.rows)

    def _shard(self, folder: Path, number: str) -> tuple[_Note, int]:
        """Import one; the note on it, and how many pairs were added now."""
        place = _place(folder, number)
        note = self.notes.get(place)
        if note and note.pairs >= 0 and not self.state["doubted"]:
            return note, 0
        stamp = shard_stamp(folder, number)
        shard = read_shard(folder, number)
        if note is None:
            note = self._reserve(stamp, len(shard))
            self.store.write_note(place, asdict(note))
        added = self._write(shard, note)
        self._check_own()
        note = replace(note, pairs=self._verify(shard, note))
        self.store.write_note(place, asdict(note))
        return note, added

    def _reserve(self, stamp: str, rows: int) -> _Note:
        """Numbers for a shard, which no other will have, whatever happens next."""
        note = _Note(stamp, self.state["begun"] + self.state["used"], rows)
        self._remember(used=self.state["used"] + rows)
        return note

    def _remember(self, **changes: int) -> None:
        self._check_own()
        self.state |= changes
        self.store.write_facts(**{"import": self.state})

    def _check_own(self) -> None:
        """Nobody ended this import, or took it back: what was written since is then nobody's."""
        facts, begun = self.store.fresh_facts(0.0), self.state["begun"]
        if facts.get("dropped") == begun:
            _remove(self.memory, begun, begun + self.state["used"])
        if facts.get("import", {}).get("begun") != begun:
            raise Error(
                f"[{_TAG}] expected this import into {self.memory} to be under way, got that another call ended it"
            )

    def _write(self, shard: Embeddings, note: _Note) -> int:
        """Those pairs whose keys are not there, not even from before an interruption; how many."""
        added = 0
        for piece in pieces(range(len(shard)), _PIECE):
            keys = [shard.keys[i] for i in piece]
            fresh = [i for i, new in zip(piece, first_of_each(keys, self.memory._added(keys)), strict=True) if new]
            rows, numbers = shard.select(fresh), [note.first + i for i in fresh]
            self.memory._write(rows.images, rows.texts, rows.keys, rows.captions, rows.metadata, numbers)
            added += len(fresh)
        return added

    def _verify(self, shard: Embeddings, note: _Note) -> int:
        """Look up each key, and read some of the import's own pairs back; how many are its own."""
        found = self.memory._added(shard.keys)
        for key in shard.keys:
            if key not in found:
                raise Error(f"[{_TAG}] {self.memory} lost the pair '{key}', which was imported: import once more")
        own = [i for i, key in enumerate(shard.keys) if found[key] == note.first + i]
        chosen = np.random.default_rng(len(own)).permutation(len(own))[:_SAMPLE]
        self._compare(shard.select([own[i] for i in chosen]))
        return len(own)

    def _compare(self, pairs: Embeddings) -> None:
        """With what the server gives back."""
        memory, sides = self.memory, {"image": pairs.images, "text": pairs.texts}
        wanted = {side: memory._halves(rows, f"{side} embeddings", len(pairs)) for side, rows in sides.items()}
        rows = {row["key"]: row for row in memory._query([row_of(key) for key in pairs.keys], ["key", *sides])}
        for i, key in enumerate(pairs.keys):
            for side in sides:
                got = self.store.read_vector(rows[key][side]) if key in rows else np.inf
                if np.abs(got - wanted[side][i]).max() > 1e-3:
                    what = f"does not give back the pair '{key}' as it was imported"
                    raise Error(f"[{_TAG}] {memory} {what}; drop_import() takes back what was")

    def _check_count(self, wanted: int) -> None:
        """All of the import's pairs are there: counted, after all is written, by the server."""
        begun = self.state["begun"]
        counted = self.store.count(_numbered(begun, begun + self.state["used"]))
        if counted != wanted:
            self._remember(doubted=1)
            raise Error(
                f"[{_TAG}] expected {wanted} imported pairs in {self.memory}, got {counted}: import once more, which "
                f"looks all of them up"
            )


def drop_import(memory: MilvusMemory) -> int:
    """Take back what an import wrote that has not ended.

    Parameters
    ----------
    memory : MilvusMemory

    Returns
    -------
    int
        How many pairs it had written.

    Raises
    ------
    Error
        When it was begun by a version of reco that left nothing to tell its pairs by.
    """
    facts = memory._store.fresh_facts(0.0)
    if not facts["importing"]:
        return 0
    if "begun" not in facts.get("import", {}):
        raise Error(f"[{_TAG}] expected an import whose pairs are numbered, got an older one: make {memory} anew")
    begun = facts["import"]["begun"]
    end = begun + facts["import"]["used"]
    written = memory._store.count(_numbered(begun, end))
    memory._store.write_facts(dropped=begun)  # for a call that is still at it
    for first in range(begun, end, _DROPPED):
        _remove(memory, first, min(first + _DROPPED, end))
    memory.flush()
    memory._store.write_facts(importing="", **{"import": {}})
    memory._store.clear_notes()
    return written


def _place(folder: Path, number: str) -> int:
    """Where the note on a shard is."""
    return row_of(f"{folder}\n{number}")


def _numbered(first: int, end: int) -> str:
    """A filter."""
    return f"added >= {first} and added < {end}"


def _remove(memory: MilvusMemory, first: int, end: int) -> None:
    memory._store.call("delete", filter=_numbered(first, end))
