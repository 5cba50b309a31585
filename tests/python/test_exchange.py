# SPDX-License-Identifier: Apache-2.0
"""Memories from folders of embeddings, and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import reco
from reco.exchange import export_memory, import_embeddings


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write_folder(folder: Path, shards: int, keys: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """As clip-retrieval does: numbers without zeros before them."""
    generator = np.random.default_rng(0)
    images, texts = unit(generator.standard_normal((shards * 20, 8))), unit(generator.standard_normal((shards * 20, 8)))
    for name in ("img_emb", "text_emb", "metadata"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i in range(shards):
        part = slice(20 * i, 20 * i + 20)
        np.save(folder / f"img_emb/img_emb_{i}.npy", images[part].astype(np.float16))
        np.save(folder / f"text_emb/text_emb_{i}.npy", texts[part].astype(np.float16))
        columns = {
            "image_path": [f"p/{j}.jpg" for j in range(part.start, part.stop)],
            "caption": [f"caption {j}" if j % 2 else None for j in range(part.start, part.stop)],
            "width": list(range(part.start, part.stop)),
        }
        if keys:
            columns["key"] = [f"key-{j}" for j in range(part.start, part.stop)]
        pq.write_table(pa.table(columns), folder / f"metadata/metadata_{i}.parquet")
    return images, texts


def test_import_goes_on_where_it_was_and_export_gives_it_back(tmp_path: Path) -> None:
    images, texts = write_folder(tmp_path / "in", 12)
    with reco.Memory.create(tmp_path / "m", 8) as memory:
        memory.add(images[30:32], texts[30:32], ["key-30", "key-31"])
        assert import_embeddings(memory, tmp_path / "in", progress=False) == 238
        assert import_embeddings(memory, tmp_path / "in", progress=False) == 0
        assert list(memory)[:4] == ["key-30", "key-31", "key-0", "key-1"] and list(memory)[-1] == "key-239"
        row = memory.get("key-101")
        assert row.caption == "caption 101" and row.metadata == {"image_path": "p/101.jpg", "width": 101}
        assert memory.get("key-100").caption == ""
        np.testing.assert_allclose(row.image_embedding, images[101], atol=1e-3)
        np.testing.assert_allclose(row.text_embedding, texts[101], atol=1e-3)
        memory.remove(["key-7"])
        assert export_memory(memory, tmp_path / "out", shard_size=100, progress=False) == 239
        with pytest.raises(reco.Error, match="must be empty"):
            export_memory(memory, tmp_path / "out")
        with reco.Memory.create(tmp_path / "n", 8) as again:
            assert import_embeddings(again, tmp_path / "out", progress=False) == 239
            assert list(again) == list(memory)
            np.testing.assert_allclose(again.embeddings("image"), memory.embeddings("image"), atol=1e-3)
            assert again.get("key-239").metadata["width"] == 239


def test_in_place_import_copies_no_embeddings(tmp_path: Path) -> None:
    images, texts = write_folder(tmp_path / "in", 12)
    with reco.Memory.create(tmp_path / "m", 8) as memory:
        assert import_embeddings(memory, tmp_path / "in", in_place=True, progress=False) == 240
        assert import_embeddings(memory, tmp_path / "in", in_place=True, progress=False) == 0
        assert memory.info()["attached"] > 0 and not list((tmp_path / "m/img_emb").iterdir())
        assert list(memory) == [f"key-{i}" for i in range(240)] and memory.get("key-101").metadata["width"] == 101
        np.testing.assert_allclose(memory.embeddings("image"), images, atol=1e-3)
        np.testing.assert_allclose(memory.embeddings("text"), texts, atol=1e-3)
        assert (memory.search(images, 1).rows[:, 0] == np.arange(240)).all()
        memory.remove(["key-7"])
        memory.compact()
        assert memory.verify() == [] and len(memory) == 239
        # What was there before keeps its pair, also where only a part of a shard is new.
        with reco.Memory.create(tmp_path / "n", 8) as other:
            other.add(images[30:32], texts[30:32], ["key-30", "key-31"], ["mine", "mine"])
            assert import_embeddings(other, tmp_path / "in", in_place=True, progress=False) == 238
            assert other.get("key-30").caption == "mine" and len(other) == 240
            assert other.search(images[30], 2).keys[0].count("key-30") == 1 and other.verify() == []
    (tmp_path / "in/img_emb/img_emb_3.npy").rename(tmp_path / "moved.npy")
    with pytest.raises(reco.Error, match=r"img_emb_3.npy' is gone: it holds rows of"):
        reco.Memory.open(tmp_path / "m")
    (tmp_path / "moved.npy").rename(tmp_path / "in/img_emb/img_emb_3.npy")
    with reco.Memory.open(tmp_path / "m") as memory:
        assert len(memory) == 239
    np.save(tmp_path / "in/img_emb/img_emb_0.npy", images[:20].astype(np.float32))
    with reco.Memory.create(tmp_path / "o", 8) as memory, pytest.raises(reco.Error, match="must hold '<f2'"):
        import_embeddings(memory, tmp_path / "in", in_place=True, progress=False)


def test_adopts_an_index_over_imported_rows(tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss")
    images, _ = write_folder(tmp_path / "in", 20)
    index = faiss.index_factory(8, "HNSW16", faiss.METRIC_INNER_PRODUCT)
    index.add(images.astype(np.float32))
    faiss.write_index(index, str(tmp_path / "image.index"))
    with reco.Memory.create(tmp_path / "m", 8) as memory:
        import_embeddings(memory, tmp_path / "in", in_place=True, progress=False)
        adopted = memory.adopt_index(tmp_path / "image.index", "image")
        assert adopted["index"] == "adopted" and adopted["recall"] > 0.9 and adopted["rows"] == 400
        assert (memory.search(images, 1).rows[:, 0] == np.arange(400)).mean() > 0.99
        (tmp_path / "image.index").write_bytes(b"IHNf nothing")
        with pytest.raises(reco.Error, match=r"image.index"):
            memory.adopt_index(tmp_path / "image.index", "image")
        assert memory.info()["indexes"][0]["index"] == "adopted"


def test_keys_fall_back_on_paths(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", 1, keys=False)
    with reco.Memory.create(tmp_path / "m", 8) as memory:
        import_embeddings(memory, tmp_path / "in", progress=False)
        assert next(iter(memory)) == "p/0.jpg"


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", 2)
    with reco.Memory.create(tmp_path / "m", 9) as memory, pytest.raises(reco.Error, match="9 columns, got 8"):
        import_embeddings(memory, tmp_path / "in")
    with reco.Memory.create(tmp_path / "n", 8) as memory:
        (tmp_path / "none").mkdir()
        with pytest.raises(reco.Error, match="found none"):
            import_embeddings(memory, tmp_path / "none")
        np.save(tmp_path / "in/text_emb/text_emb_1.npy", np.zeros((3, 8), np.float16))
        with pytest.raises(reco.Error, match="shard 1 of .*(3, 8)"):
            import_embeddings(memory, tmp_path / "in")
        assert len(memory) == 20
        (tmp_path / "in/metadata/metadata_0.parquet").write_bytes(b"nothing")
        with pytest.raises(reco.Error, match="cannot read shard 0"):
            import_embeddings(memory, tmp_path / "in")
