# SPDX-License-Identifier: Apache-2.0
"""Collections: sources one after the other; processes may share them, and reading may go on in the middle."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from reco._core import Error
from reco.datasets.sources import Fault, Iterated, Sample, Source, Table, Tar, open_sources

__all__ = ["Collection", "Fault", "Position", "Sample", "read_samples"]

Position = tuple[int, int]  # source, number of a sample in it


class Collection:
    """Pairs of one or many sources, in a fixed order.

    Parameters
    ----------
    sources : path, list of paths, or iterable of Sample
        Folders of images with captions beside them (name.txt, name.json, or captions.csv with the columns `file` and
        `caption`); tables (.csv, .tsv, .parquet) with a column of image paths and one of captions; WebDataset shards
        (.tar, .tar.gz); folders of shards or Parquet tables. A sample without an image is a Fault, and so is a table
        or shard without samples.
    shard : (i, n)
        Read the i-th of n equal parts, 1 <= i <= n. Tars and Parquet tables are dealt out whole where there are at
        least n of them; otherwise samples are, one after the other.
    image_column, caption_column : str, optional
        Column names of the tables; the usual ones are found.

    Raises
    ------
    Error
        When a source is missing, holds no images, or lacks a column.
    """

    def __init__(
        self,
        sources: str | Path | Iterable[str | Path] | Iterable[Sample],
        *,
        shard: tuple[int, int] = (1, 1),
        image_column: str | None = None,
        caption_column: str | None = None,
    ) -> None:
        i, self._n = shard
        self._i = i - 1
        if not 1 <= i <= self._n:
            raise Error(f"[datasets.Collection] shard must be (i, n) with 1 <= i <= n, got {shard}")
        every = _open(sources, image_column, caption_column)
        prints = [source.fingerprint() for source in every]
        known = all(prints)
        #: 64 hex digits that tell collections apart; None for an iterable.
        self.fingerprint = hashlib.sha256("".join(map(str, prints)).encode()).hexdigest() if known else None
        shards = [source for source in every if _is_shard(source)]
        self._whole = len(shards) >= self._n
        mine = shards[self._i :: self._n]
        self._sources = [s for s in every if not (self._whole and _is_shard(s)) or s in mine]

    def read(self, start: Position = (0, 0)) -> Iterator[tuple[Position, Sample | Fault]]:
        """Samples and what cannot be read, each with the position behind it, where a later read() may go on.

        Parameters
        ----------
        start : (int, int)
            A position that an earlier read() gave; the beginning if not given.
        """
        for number in range(start[0], len(self._sources)):
            source = self._sources[number]
            first = start[1] if number == start[0] else 0
            dealt = self._n > 1 and not (self._whole and _is_shard(source))

            def wanted(i: int, first: int = first, dealt: bool = dealt) -> bool:
                return i >= first and (not dealt or i % self._n == self._i)

            for i, item in source.read(wanted):
                yield (number, i + 1), item

    def total(self) -> int | None:
        """About how many samples this part has, as far as is known: tars are judged by those read so far."""
        totals = [source.total() for source in self._sources]
        known = [total for total in totals if total is not None]
        if not known:
            return None
        mean = sum(known) / len(known)
        dealt = [
            (mean if total is None else total) / (1 if self._whole and _is_shard(source) else self._n)
            for source, total in zip(self._sources, totals, strict=True)
        ]
        return round(sum(dealt))


def _is_shard(source: Source) -> bool:
    """One of many files that hold the images themselves, of which nobody wants to read all for a part."""
    return isinstance(source, Tar) or (isinstance(source, Table) and source.parquet)


def _open(
    sources: str | Path | Iterable[str | Path] | Iterable[Sample], image: str | None, caption: str | None
) -> list[Source]:
    if isinstance(sources, str | Path):
        return open_sources([sources], image, caption)
    if isinstance(sources, list | tuple) and all(isinstance(source, str | Path) for source in sources):
        return open_sources(sources, image, caption)
    return [Iterated(sources)]  # type: ignore[arg-type]


def read_samples(*sources: str | Path) -> Iterator[Sample]:
    """Read pairs from folders, tables and WebDataset shards (see Collection), in a fixed order.

    Parameters
    ----------
    *sources : str or Path

    Raises
    ------
    Error
        When a source is missing, holds no images, or is damaged; names file and place.
    """
    for _, item in Collection(sources).read():
        if isinstance(item, Fault):
            raise Error(f"[datasets.read_samples] {item.key} in {item.path}: {item.error}")
        yield item
