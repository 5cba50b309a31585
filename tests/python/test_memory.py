# SPDX-License-Identifier: Apache-2.0
"""The memory against NumPy, other processes, and kill -9."""

import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reco

Array = np.ndarray[Any, Any]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["numpy", "reco"])


def rows_of(n: int, dim: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def unit(rows: Array) -> Array:
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def stored(rows: Array, storage: str = "float16") -> Array:
    """What a memory keeps of rows."""
    if storage.startswith("codes"):
        return decoded(rows, storage)
    if storage == "int8":
        whole = unit(rows).astype(np.float32)
        return unit(np.rint(whole * (np.float32(127) / np.abs(whole).max(axis=1, keepdims=True))))
    return unit(rows).astype(np.float32).astype(np.float16).astype(np.float32)


def decoded(rows: Array, storage: Any) -> Array:
    """Rows alone in a memory: what others do to it must not change them; memory_rows_test.cpp: how near they stay."""
    dim = rows.shape[1]
    with tempfile.TemporaryDirectory() as folder, reco.Memory.create(folder, dim, storage=storage) as memory:
        memory.add(rows, rows, keys_of(0, len(rows)))
        return memory.embeddings("image")


def keys_of(first: int, count: int) -> list[str]:
    return [f"k{i}" for i in range(first, first + count)]


def fill(memory: reco.Memory, first: int, count: int) -> None:
    memory.add(rows_of(count, memory.dim, first), rows_of(count, memory.dim, first + 10**6), keys_of(first, count))


def shard_files(path: Path) -> list[Path]:
    return sorted(path.glob("*_emb/*"))


# --- against NumPy ----------------------------------------------------------------------------------------------------
class Model:
    """A memory in plain Python: the reference."""

    def __init__(self) -> None:
        self.pairs: dict[str, dict[str, Array]] = {}

    def search(
        self, query: Array, k: int, modality: str, excluded: Collection[str], max_similarity: float | None
    ) -> tuple[list[str], Array]:
        keys = [key for key in self.pairs if key not in excluded]
        if not keys:
            return [], np.zeros(0)
        scores = np.stack([self.pairs[key][modality] for key in keys]) @ unit(query[None])[0]
        order = [i for i in np.argsort(-scores, kind="stable") if max_similarity is None or scores[i] <= max_similarity]
        return [keys[i] for i in order[:k]], scores[order[:k]]


def random_batch(generator: np.random.Generator, model: Model, dim: int, count: int) -> tuple[Array, Array]:
    """Clustered rows, some nearly equal to what is there already."""
    images, texts = generator.standard_normal((2, count, dim)).astype(np.float32)
    known = list(model.pairs.values())
    for i in range(count):
        if known and generator.random() < 0.3:
            near = known[generator.integers(len(known))]
            images[i] = near["image"] + generator.choice([0, 1e-3, 0.1]) * images[i]
    return images, texts


def check_search(memory: reco.Memory, model: Model, generator: np.random.Generator) -> None:
    n, k = int(generator.integers(1, 9)), int(generator.choice([1, 3, 10, 200]))
    modality = str(generator.choice(["image", "text"]))
    other = "text" if modality == "image" else "image"
    queries = generator.standard_normal((n, memory.dim))
    names = list(model.pairs)
    for i in range(n):
        if names and generator.random() < 0.6:
            queries[i] = model.pairs[names[generator.integers(len(names))]][modality]
    lists = [[str(x) for x in generator.choice([*names, "?"], 5)] for _ in range(n)]
    excluded = [None, lists[0], lists][generator.integers(3)]
    # In a gap between scores, where rounding decides nothing.
    limit = [None, 0.99995, 0.4321][generator.integers(3)]
    # All, one in ten by a condition, or some by their keys: through the rows, through a filtered scan or an index.
    only = [str(x) for x in generator.choice([*names, "?"], 7)] if generator.random() < 0.3 else None
    digit = str(generator.integers(10)) if generator.random() < 0.3 else None
    found = memory.search(
        queries,
        k,
        modality,
        exclude_keys=excluded,
        only_keys=only,
        where=f"key LIKE '%{digit}'" if digit else "",
        max_similarity=limit,
    )
    assert found.scores.shape == (n, k) and found.partners.shape == (n, k, memory.dim)
    for i in range(n):
        out = set() if excluded is None else set(lists[i] if excluded is lists else lists[0])
        out |= {key for key in names if (digit and not key.endswith(digit)) or (only is not None and key not in only)}
        keys, scores = model.search(queries[i], k, modality, out, limit)
        if limit == 0.99995 and np.any(np.abs(found.scores[i] - limit) < 1e-5):
            continue
        size = len(keys)
        np.testing.assert_allclose(found.scores[i, :size], scores, atol=1e-6)
        assert found.keys[i][size:] == [""] * (k - size)
        assert np.all(found.rows[i, size:] == -1) and np.all(found.scores[i, size:] == 0)
        assert np.all(found.partners[i, size:] == 0)
        # Where scores are nearer than rounding, the order may differ, the sets above the last score may not.
        sure = {key for key, score in zip(keys, scores, strict=True) if score > scores[-1] + 1e-6} if size else set()
        assert sure <= set(found.keys[i][:size])
        assert len(set(found.keys[i][:size])) == size and not out & set(found.keys[i])
        for j in range(size):
            np.testing.assert_allclose(found.partners[i, j], model.pairs[found.keys[i][j]][other], rtol=0, atol=2e-7)


@pytest.mark.parametrize("storage", ["float16", "int8", "codes4", "codes1"])
@pytest.mark.parametrize("seed", range(12))
def test_equals_a_model_through_random_changes(tmp_path: Path, seed: int, storage: Any) -> None:
    generator = np.random.default_rng(seed)
    dim = int(generator.choice([8, 16, 64, 512] if storage.startswith("codes") else [1, 2, 7, 16, 33, 64, 512]))
    model, added = Model(), 0
    memory = reco.Memory.create(tmp_path / "m", dim, storage=storage)
    for _ in range(8):
        count = int(generator.choice([1, 2, 40, 150]))
        images, texts = random_batch(generator, model, dim, count)
        keys = keys_of(added, count)
        memory.add(images, texts, keys)
        for key, image, text in zip(keys, stored(images, storage), stored(texts, storage), strict=True):
            model.pairs[key] = {"image": image, "text": text}
        added += count
        if names := list(model.pairs):
            replaced = list({str(x) for x in generator.choice(names, 3)}) + keys_of(added, 1)
            images, texts = random_batch(generator, model, dim, len(replaced))
            memory.upsert(images, texts, replaced)
            for key, image, text in zip(replaced, stored(images, storage), stored(texts, storage), strict=True):
                model.pairs.pop(key, None)
                model.pairs[key] = {"image": image, "text": text}
            added += 1
        gone = [key for key in model.pairs if generator.random() < 0.2]
        memory.remove(gone)
        for key in gone:
            del model.pairs[key]
        if generator.random() < 0.3 and model.pairs:
            # Every list is looked into: the same results as exact search.
            memory.optimize(index="IVF1", seed=seed)
        if generator.random() < 0.3:
            memory.compact()
            assert memory.info()["removed"] == 0 and memory.info()["shards"] <= 1
        if generator.random() < 0.3:
            memory.close()
            memory = reco.Memory.open(tmp_path / "m")
        assert list(memory) == list(model.pairs) and len(memory) == len(model.pairs)
        for _ in range(6):
            check_search(memory, model, generator)
    for side in ("image", "text"):
        if model.pairs:
            expected = np.stack([p[side] for p in model.pairs.values()])
            np.testing.assert_allclose(memory.embeddings(side), expected, rtol=0, atol=2e-7)
    assert memory.verify() == []


def test_a_large_memory_equals_numpy(tmp_path: Path) -> None:
    images, texts = rows_of(20_000, 128, 1), rows_of(20_000, 128, 2)
    with reco.Memory.create(tmp_path / "m", 128) as memory:
        memory.add(images, texts, keys_of(0, 20_000))
        queries = rows_of(300, 128, 3)
        found = memory.search(queries, 10)
        scores = unit(queries) @ stored(images).T.astype(np.float64)
        best = -np.sort(-scores, axis=1)[:, :10]
        np.testing.assert_allclose(found.scores, best, atol=1e-6)
        np.testing.assert_allclose(np.take_along_axis(scores, found.rows, 1), found.scores, atol=1e-6)
        one_by_one = [memory.search(query, 10) for query in queries[:20]]
        np.testing.assert_array_equal(np.concatenate([x.rows for x in one_by_one]), found.rows[:20])
        np.testing.assert_array_equal(np.concatenate([x.scores for x in one_by_one]), found.scores[:20])


def test_conditions_on_metadata(tmp_path: Path) -> None:
    with reco.Memory.create(tmp_path / "m", 8) as memory:
        metadata = [{"domain": "flags" if i % 3 else "logos", "size": i} for i in range(60)]
        captions = [f"caption {i}" for i in range(60)]
        memory.add(rows_of(60, 8, 1), rows_of(60, 8, 2), keys_of(0, 60), captions, metadata)
        flags = "json_extract(metadata, '$.domain') = 'flags'"
        found = memory.search(rows_of(4, 8, 3), 60, where=f"{flags} AND json_extract(metadata, '$.size') < 30")
        for rows in found.rows:
            assert sorted(rows[rows >= 0]) == [i for i in range(30) if i % 3]
        assert found.captions[0][0].startswith("caption")
        assert memory.search(rows_of(1, 8, 3), 1, where="caption = 'caption 7'", only_keys=["k7", "k8"]).keys == [
            ["k7"]
        ]
        assert memory.search(rows_of(1, 8, 3), 1, only_keys=[]).keys == [[""]]
        assert memory.search(rows_of(1, 8, 3), 1, where="0 -- nothing").keys == [[""]]
        for bad in (
            "nonsense(",
            "no_such_column = 1",
            "1) UNION SELECT value FROM meta --",
            "1); DROP TABLE rows; --",
            "row IN (SELECT shard FROM shards)",
            "load_extension('x')",
            "key = '\0'",
        ):
            with pytest.raises(reco.Error, match=r"\[memory.search\] the condition"):
                memory.search(rows_of(1, 8, 3), 1, where=bad)
        assert len(memory) == 60 and memory.verify() == []


def test_duplicates_are_found_once(tmp_path: Path) -> None:
    images, texts = rows_of(1500, 16, 1), rows_of(1500, 16, 2)
    images[700] = images[3] + 0.01 * images[5]
    images[40:140] = images[20] + 0.001 * images[40:140]
    with reco.Memory.create(tmp_path / "m", 16) as memory:
        memory.add(images, texts, keys_of(0, 1500))
        memory.remove(["k50"])
        found = memory.duplicates(0.97)
        rows = stored(images)
        scores = rows @ rows.T
        scores[50] = scores[:, 50] = 0
        i, j = np.nonzero(np.triu(scores >= 0.97, 1))
        assert {(a, b) for a, b, _ in found} == {(f"k{a}", f"k{b}") for a, b in zip(i, j, strict=True)}
        assert len(found) == len(i) > 4900 and ("k3", "k700") in {(a, b) for a, b, _ in found}
        assert [score for *_, score in found] == sorted((score for *_, score in found), reverse=True)
        assert memory.duplicates(0.9999, "text") == []
        with pytest.raises(reco.Error, match="min_similarity"):
            memory.duplicates(2.0)


def test_compact_keeps_row_numbers_and_gives_space_back(tmp_path: Path) -> None:
    path = tmp_path / "m"
    with reco.Memory.create(path, 256) as memory:
        for i in range(10):
            fill(memory, 100 * i, 100)
        queries = rows_of(5, 256, 3)
        memory.optimize(index="HNSW8", recall=1.0)
        reader = reco.Memory.open(path, read_only=True)
        gone = [key for i, key in enumerate(memory) if i % 4 == 1]
        before = sum(file.stat().st_size for file in shard_files(path))
        memory.remove(gone)
        expected = memory.search(queries, 20, exact=True)
        recall = np.intersect1d(memory.search(queries, 20).rows, expected.rows).size
        memory.compact()
        found = memory.search(queries, 20, exact=True)
        np.testing.assert_array_equal(found.rows, expected.rows)
        np.testing.assert_array_equal(found.partners, expected.partners)
        assert found.keys == expected.keys
        # The index goes on with the same row numbers, and loses nothing to speak of with the rows that are gone.
        assert np.intersect1d(memory.search(queries, 20).rows, expected.rows).size >= 0.95 * recall > 80
        info = memory.info()
        assert info["rows"] == 750 and info["removed"] == 0 and info["shards"] == 1
        assert sum(file.stat().st_size for file in shard_files(path)) < before - 2 * 2 * 240 * 256
        assert len(list(path.glob("*/*.npy"))) == 3
        np.testing.assert_array_equal(reader.search(queries, 20, exact=True).rows, expected.rows)
        memory.compact()
        assert memory.info()["shards"] == 1
        fill(memory, 5000, 3)
        assert max(memory.search(rows_of(3, 256, 5000), 1).rows[:, 0]) == 1002
        assert memory.verify() == []
        memory.remove(list(memory))
        memory.compact()
        assert len(memory) == 0 and memory.info()["shards"] == 0 and memory.search(queries, 2).keys[0] == ["", ""]
        fill(memory, 6000, 1)
        assert memory.search(queries, 1).rows[0, 0] == 1003
    with reco.Memory.open(path) as memory:
        assert list(memory) == ["k6000"] and memory.verify() == []


def test_an_index_finds_what_numpy_finds(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((200, 64))
    images, texts, queries = (
        (centres[generator.integers(200, size=n)] + 0.5 * generator.standard_normal((n, 64))).astype(np.float32)
        for n in (6000, 6000, 200)
    )
    with reco.Memory.create(tmp_path / "m", 64) as memory:
        memory.add(images, texts, keys_of(0, 6000))
        for index in ("HNSW16", "IVF64,Flat", "IVF16,PQ16"):
            seen: list[tuple[int, int]] = []
            report = memory.optimize(index=index, recall=0.97, progress=lambda *now, seen=seen: seen.append(now))
            assert seen[-1] == (12000, 12000)
            for side, rows, found in zip(("image", "text"), (images, texts), report, strict=True):
                assert (found["modality"], found["index"], found["rows"]) == (side, index, 6000)
                assert found["recall"] >= 0.97 and found["bytes"] > 0 and found["search_seconds"] > 0
                result = memory.search(queries, 10, side)
                scores = unit(queries) @ stored(rows).T.astype(np.float64)
                best = np.argsort(-scores, axis=1)[:, :10]
                hits = [len(set(a) & set(b)) for a, b in zip(best.tolist(), result.rows.tolist(), strict=True)]
                assert np.mean(hits) >= 9.5
                np.testing.assert_allclose(np.take_along_axis(scores, result.rows, 1), result.scores, atol=1e-6)
        assert [x["index"] for x in memory.info()["indexes"]] == ["IVF16,PQ16"] * 2
        with pytest.raises(reco.Error, match="could not parse"):
            memory.optimize(index="no such index")
        with pytest.raises(ZeroDivisionError):
            memory.optimize(index="HNSW16", progress=lambda done, total: bool(1 / 0))
        assert memory.optimize()[0]["index"] == "exact" and memory.info()["indexes"] == []


# --- the Python side --------------------------------------------------------------------------------------------------
def test_words_and_results(tmp_path: Path) -> None:
    with reco.Memory.create(tmp_path / "m", dim=4, encoder="f" * 64) as memory:
        metadata = [{"n": 1, "tags": ["ä", None]}, {}, None]
        memory.add(np.eye(3, 4), np.eye(3, 4)[::-1], ["a", "ß", "c"], ["one", "zwei", ""], metadata)
        row = memory.get("ß")
        assert (row.key, row.caption, row.metadata) == ("ß", "zwei", {})
        np.testing.assert_array_equal(row.image_embedding, [0, 1, 0, 0])
        assert memory.get("a").metadata == metadata[0]
        assert "a" in memory and "b" not in memory and list(memory) == ["a", "ß", "c"]
        found = memory.search(np.eye(4)[:2], k=5)
        assert found.keys[1][0] == "ß" and found.keys[0][3:] == ["", ""]
        assert found.captions[1][0] == "zwei" and found.captions[0][3:] == ["", ""]
        assert found.metadata[0][0] == metadata[0] and found.metadata[0][4] is None
        assert found.rows.dtype == np.int64 and found.scores.dtype == np.float32 and len(found) == 2
        assert memory.search(np.eye(4), partners=False).partners is None
        assert memory.info()["rows"] == 3 and memory.info()["encoder"] == "f" * 64
        assert "3 pairs, dim 4" in repr(memory) and "k=5" in repr(found)
    assert repr(memory) == "Memory(closed)"
    with pytest.raises(reco.Error, match="closed"):
        len(memory)


def test_any_dtype_and_strides(tmp_path: Path) -> None:
    rows = rows_of(6, 5, 1)
    forms = [rows, rows.astype(np.float64), np.asfortranarray(rows), np.repeat(rows, 3, axis=1)[:, ::3], rows.tolist()]
    with reco.Memory.create(tmp_path / "m", 5) as memory:
        for i, form in enumerate(forms):
            memory.add(form, form[::-1], keys_of(6 * i, 6))
        memory.add(rows.astype(np.float16), rows, keys_of(100, 6))
        memory.add(rows[0], rows[0], ["single"])
        images = memory.embeddings("image")
        for i in range(len(forms)):
            np.testing.assert_array_equal(images[6 * i : 6 * i + 6], stored(rows))
        np.testing.assert_array_equal(images[30:36], stored(rows.astype(np.float16)))
        np.testing.assert_array_equal(images[36], stored(rows)[0])
        best = memory.search(np.asfortranarray(rows.astype(np.float64)), k=1)
        assert (best.rows[:, 0] % 6).tolist() == [0, 1, 2, 3, 4, 5]


def test_shards_are_plain_numpy_files(tmp_path: Path) -> None:
    rows = rows_of(50, 9, 1)
    with reco.Memory.create(tmp_path / "m", 9) as memory:
        memory.add(rows, -rows, keys_of(0, 50))
    for name, expected in {"img_emb": rows, "text_emb": -rows}.items():
        array = np.load(tmp_path / "m" / name / f"{name}_00000.npy")
        assert array.dtype == np.float16 and array.shape == (50, 9)
        np.testing.assert_array_equal(array.astype(np.float32), stored(expected))


def test_errors_say_what_is_wrong_and_write_nothing(tmp_path: Path) -> None:
    with reco.Memory.create(tmp_path / "m", 4) as memory:
        fill(memory, 0, 2)
        one = np.ones((1, 4))
        with pytest.raises(reco.Error, match=r"\[memory.add\] image embeddings must have 4 columns, got 5"):
            memory.add(np.ones((1, 5)), one, ["a"])
        with pytest.raises(reco.Error, match="dimensions"):
            memory.add(np.ones((1, 1, 4)), one, ["a"])
        with pytest.raises(reco.Error, match="'k1' is already"):
            memory.add(one, one, ["k1"])
        with pytest.raises(reco.Error, match="one entry a row"):
            memory.add(one, one, ["a"], metadata=[{}, {}])
        with pytest.raises(reco.Error, match="finite"):
            memory.add(one * np.inf, one, ["a"])
        with pytest.raises(reco.Error, match="JSON object"):
            memory.add(one, one, ["a"], metadata=[[1]])
        with pytest.raises(ValueError, match="JSON compliant"):
            memory.add(one, one, ["a"], metadata=[{"x": float("nan")}])
        with pytest.raises(reco.Error, match="modality"):
            memory.search(one, modality="sound")
        with pytest.raises(reco.Error, match="must have 4 columns, got 3"):
            memory.search(np.ones((1, 3)))
        assert len(memory) == 2 and len(shard_files(tmp_path / "m")) == 2
    with pytest.raises(reco.Error, match="must be of the encoder 'x', it is of"):
        reco.Memory.create(tmp_path / "n", 4, "y").close()
        reco.Memory.open(tmp_path / "n", encoder="x")


# --- other processes --------------------------------------------------------------------------------------------------
def _try_to_write(path: Path, answer: Any) -> None:
    try:
        reco.Memory.open(path)
    except reco.Error as error:
        answer.put(str(error))


def test_a_second_writer_gets_an_error(tmp_path: Path) -> None:
    with reco.Memory.create(tmp_path / "m", 4):
        answer = CONTEXT.Queue()
        process = CONTEXT.Process(target=_try_to_write, args=(tmp_path / "m", answer))
        process.start()
        assert "another writer" in answer.get(timeout=60)
        process.join()


def _watch(path: Path, connection: Connection) -> None:
    with reco.Memory.open(path, read_only=True) as memory:
        while (wanted := connection.recv()) is not None:
            found = memory.search(rows_of(1, memory.dim, wanted), k=1)
            connection.send((len(memory), found.keys[0][0], f"k{wanted}" in memory))


def test_readers_in_other_processes_see_every_change(tmp_path: Path) -> None:
    with reco.Memory.create(tmp_path / "m", 8) as memory:
        fill(memory, 0, 1)
        here, there = CONTEXT.Pipe()
        process = CONTEXT.Process(target=_watch, args=(tmp_path / "m", there))
        process.start()
        for i in range(1, 20):
            fill(memory, i, 1)
            here.send(i)
            assert here.recv() == (i + 1, f"k{i}", True)
        memory.remove(["k19"])
        here.send(19)
        count, key, there_still = here.recv()
        assert count == 19 and key != "k19" and not there_still
        here.send(None)
        process.join()


def _read_as_nobody(path: Path, answer: Any) -> None:
    os.setgid(65534)
    os.setuid(65534)
    try:
        with reco.Memory.open(path, read_only=True) as memory:
            answer.put((len(memory), memory.search(np.ones(4), 1).keys[0], memory.verify()))
    except reco.Error as error:
        answer.put(str(error))


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="needs to become another user")
@pytest.mark.parametrize("writer", [False, True])
def test_a_folder_that_cannot_be_written_is_read(tmp_path: Path, writer: bool) -> None:
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(0o755)
    memory = reco.Memory.create(tmp_path / "m", 4)
    fill(memory, 0, 3)
    if not writer:
        memory.close()
    answer = CONTEXT.Queue()
    process = CONTEXT.Process(target=_read_as_nobody, args=(tmp_path / "m", answer))
    process.start()
    assert answer.get(timeout=60) == (3, memory_best(tmp_path / "m"), [])
    process.join()


def memory_best(path: Path) -> list[str]:
    with reco.Memory.open(path, read_only=True) as memory:
        return memory.search(np.ones(4), 1).keys[0]


# --- kill -9 ----------------------------------------------------------------------------------------------------------
def _add_for_ever(path: Path, seed: int, connection: Connection) -> None:
    generator = random.Random(seed)
    with reco.Memory.open(path) as memory:
        while True:
            count = generator.choice([1, 1, 10, 500, 3000])
            first = len(memory)
            connection.send((first, count))
            fill(memory, first, count)
            connection.send((first + count, 0))
            generator.choice([memory.compact, lambda: memory.optimize(index="IVF2", recall=0.5), lambda: None])()


def last_message(connection: Connection) -> tuple[int, int]:
    message = (0, 0)
    try:
        while connection.poll():
            message = connection.recv()
    except EOFError:
        pass
    return message


def check_after_kill(path: Path, rows: int, coming: int) -> None:
    with reco.Memory.open(path) as memory:
        assert len(memory) in (rows, rows + coming)
        assert len(shard_files(path)) == 2 * memory.info()["shards"]
        assert len(list((path / "index").iterdir())) == len(memory.info()["indexes"])
        assert memory.verify() == []
        assert list(memory) == keys_of(0, len(memory))
        # Adding goes on where the last commit was.
        fill(memory, len(memory), 2)


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_kill_9_leaves_the_last_committed_state(tmp_path: Path, first: int) -> None:
    path = tmp_path / "m"
    reco.Memory.create(path, 32).close()
    for seed in range(first, first + 10):
        here, there = CONTEXT.Pipe()
        process = CONTEXT.Process(target=_add_for_ever, args=(path, seed, there))
        process.start()
        there.close()
        assert here.poll(60)
        time.sleep(random.Random(seed).uniform(0, 0.25))
        process.kill()
        process.join()
        check_after_kill(path, *last_message(here))


# --- threads ----------------------------------------------------------------------------------------------------------
def test_threads_search_beside_changes(tmp_path: Path) -> None:
    memory = reco.Memory.create(tmp_path / "m", 32)
    fill(memory, 0, 500)
    queries = rows_of(16, 32, 5)
    done = False

    def search_on() -> int:
        count = 0
        while not done:
            found = memory.search(queries, k=20, exclude_keys=["k1"])
            assert all(len(set(keys)) == 20 and "k1" not in keys and "" not in keys for keys in found.keys)
            count += 1
        return count

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(search_on) for _ in range(8)]
        for i in range(40):
            fill(memory, 500 + 5 * i, 5)
            memory.remove([f"k{2 + 3 * i}"])
        done = True
        assert all(future.result() > 0 for future in futures)
    assert len(memory) == 660 and memory.verify() == []
    memory.close()
    assert len(reco.Memory.open(tmp_path / "m")) == 660
