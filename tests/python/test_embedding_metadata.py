# SPDX-License-Identifier: Apache-2.0
"""The metadata that `reco embed` writes: one table, whatever is in which shard, and read back as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import reco
from reco.datasets import Sample
from reco.embedding_folder import embed_to_folder
from reco.embedding_source import read_folder

PICTURE = np.zeros((8, 8, 3), np.uint8)


@pytest.fixture(scope="module")
def clip() -> reco.Clip:
    return reco.Clip.load(Path(__file__).parents[2] / "examples/icons/clip")


ANYTHING: list[Any] = [None, 1, 2.5, "s", True, {"a": [1]}, 2**70, "\ud800", [None], float("inf"), "7", "null", "[", ""]


def test_values_of_any_kind(clip: reco.Clip, tmp_path: Path) -> None:
    mixed = [
        Sample(str(i), PICTURE, "", {"any": v, "int": np.int64(i), "text": str(i), "key": "lost", "\ud801": i})
        for i, v in enumerate(ANYTHING)
    ]
    embed_to_folder(clip, mixed, tmp_path / "out", progress=False)
    table = pq.read_table(tmp_path / "out/metadata/metadata_00000.parquet")
    assert {str(kind) for kind in table.schema.types} == {"string"}
    assert table["any"].to_pylist() == [
        None, "1", "2.5", "s", "true", '{"a": [1]}', str(2**70), "\ufffd", "[null]", "Infinity", '"7"', '"null"',
        "[", "",
    ]  # fmt: skip
    assert table["key"].to_pylist() == table["text"].to_pylist() == [str(i) for i in range(len(ANYTHING))]
    found = read_folder(tmp_path / "out").metadata
    expected = [None if v is None else "\ufffd" if v == "\ud800" else v for v in ANYTHING]
    assert [entry.get("any") for entry in found] == expected
    assert [(entry["int"], entry["text"], entry["\ufffd"]) for entry in found] == [
        (i, str(i), i) for i in range(len(ANYTHING))
    ]


def test_one_schema_in_all_shards(clip: reco.Clip, tmp_path: Path) -> None:
    """Whatever is in which: the folder is one table for who reads it as one."""
    out = tmp_path / "out"
    kinds: list[list[Any]] = [[1, 2], [1.5, 2], [None, None], [True, False], [{"a": 1}, [2]], ["x", None], ["3", 3]]
    mixed = [Sample(f"{i}", PICTURE, "", {"any": v}) for i, v in enumerate(v for pair in kinds for v in pair)]
    embed_to_folder(clip, mixed, out, shard_size=2, progress=False)
    table = pq.read_table(out / "metadata")
    assert table.num_rows == 14 and {str(kind) for kind in table.schema.types} == {"string"}
    assert table["any"].to_pylist() == [
        "1", "2", "1.5", "2", None, None, "true", "false", '{"a": 1}', "[2]", "x", None, '"3"', "3",
    ]  # fmt: skip
    assert [entry.get("any") for entry in read_folder(out).metadata] == [v for pair in kinds for v in pair]
    reader = pytest.importorskip("embedding_reader").EmbeddingReader
    opened = reader(str(out / "img_emb"), file_format="parquet_npy", metadata_folder=str(out / "metadata"),
                    meta_columns=["key", "any"])  # fmt: skip
    [(_, read)] = opened(batch_size=14, start=0, end=14, show_progress=False)
    assert [v if isinstance(v, str) else None for v in read["any"]] == table["any"].to_pylist()
