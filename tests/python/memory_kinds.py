# SPDX-License-Identifier: Apache-2.0
"""The smallest memory that can be written in Python, for tests that run over every kind of memory."""

from __future__ import annotations

from typing import Any

import numpy as np

import reco


def unit(rows: Any) -> np.ndarray:
    """Rows of unit length."""
    rows = np.asarray(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class ListMemory(reco.MemoryBase):
    """As little as a memory can be: rows are places in lists."""

    def __init__(self, dim: int, encoder: str = "") -> None:
        super().__init__(dim, encoder)
        self.sides = {"image": np.zeros((0, dim), np.float32), "text": np.zeros((0, dim), np.float32)}
        self.words: list[tuple[str, str, dict[str, Any]]] = []
        self.gone: set[int] = set()

    def __len__(self) -> int:
        return len(self.words) - len(self.gone)

    def live(self) -> dict[str, int]:
        return {words[0]: row for row, words in enumerate(self.words) if row not in self.gone}

    def checked(self, rows: Any, n: int) -> np.ndarray:
        rows = np.asarray(rows, np.float32)
        if rows.shape != (n, self.dim) or not np.isfinite(rows).all() or not rows.any(axis=1).all():
            raise reco.Error(f"[memory] expected {n} finite rows of {self.dim} numbers, none zero, got {rows.shape}")
        return unit(rows)

    def add(self, image_embeddings, text_embeddings, keys, captions=None, metadata=None):  # type: ignore[no-untyped-def]
        n = len(keys)
        sides = {"image": self.checked(image_embeddings, n), "text": self.checked(text_embeddings, n)}
        if len(set(keys)) < n or not all(keys) or any(words and len(words) != n for words in (captions, metadata)):
            raise reco.Error(f"[memory.add] expected {n} keys that differ, and as many captions and metadata or none")
        if there := set(keys) & set(self.live()):
            raise reco.Error(f"[memory.add] '{there.pop()}' is there already")
        for side, rows in sides.items():
            self.sides[side] = np.concatenate([self.sides[side], rows.astype(np.float16).astype(np.float32)])
        self.words += zip(keys, captions or [""] * n, metadata or [{}] * n, strict=True)

    def remove(self, keys):  # type: ignore[no-untyped-def]
        live = self.live()
        for key in keys:
            if key not in live:
                raise reco.Error(f"[memory.remove] no pair has the key '{key}'")
        self.gone |= {live[key] for key in keys}

    def search(self, queries: Any, k: int = 10, modality: Any = "image", exclude_keys: Any = None,
               only_keys: Any = None, where: str = "", max_similarity: float | None = None, partners: bool = True,
               exact: bool = False, effort: int = 0) -> reco.Neighbors:  # fmt: skip
        if where or only_keys is not None:
            raise reco.Error("[memory.search] a ListMemory has no filters")
        if k < 1 or modality not in self.sides:
            raise reco.Error(f"[memory.search] expected a k of at least 1 and a side, got {k} and '{modality}'")
        scores = self.checked(queries, len(queries)) @ self.sides[modality].T
        scores[:, sorted(self.gone)] = -2
        if max_similarity is not None:
            scores[scores > max_similarity] = -2
        lists = exclude_keys if exclude_keys and not isinstance(exclude_keys[0], str) else [exclude_keys or []]
        if len(lists) not in (1, len(queries)):
            raise reco.Error(f"[memory.search] expected one list of keys or one a query, got {len(lists)}")
        for i in range(len(queries)):
            for key in lists[i if len(lists) > 1 else 0]:
                if key in self.live():
                    scores[i, self.live()[key]] = -2
        rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        rows = np.pad(rows, ((0, 0), (0, k - rows.shape[1])), constant_values=-1)
        found = np.where(rows < 0, -2, np.take_along_axis(np.pad(scores, ((0, 0), (0, 1))), rows, axis=1))
        rows[found < -1.5] = -1
        found[found < -1.5] = 0
        other = self.embeddings("text" if modality == "image" else "image", rows.ravel())
        return reco.Neighbors(self, rows, found, other.reshape(*rows.shape, -1) if partners else None)

    def embeddings(self, modality, rows):  # type: ignore[no-untyped-def]
        values = np.concatenate([self.sides[modality], np.zeros((1, self.dim), np.float32)])
        return values[rows]

    def keys(self, rows):  # type: ignore[no-untyped-def]
        return [self.words[row][0] if row >= 0 else "" for row in rows]

    def captions(self, rows):  # type: ignore[no-untyped-def]
        return [self.words[row][1] if row >= 0 else "" for row in rows]

    def metadata(self, rows):  # type: ignore[no-untyped-def]
        return [self.words[row][2] if row >= 0 else None for row in rows]

    def get(self, key):  # type: ignore[no-untyped-def]
        if key not in self.live():
            raise reco.Error(f"[memory.get] no pair has the key '{key}'")
        row = self.live()[key]
        return reco.MemoryRow(*self.words[row], self.sides["image"][row], self.sides["text"][row])
