# SPDX-License-Identifier: Apache-2.0
"""`reco embed`: what it writes, and that neither kill -9, bad samples nor several processes change it."""

from __future__ import annotations

import io
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

import reco
from reco.cli import main
from reco.datasets import Sample, read_samples
from reco.embedding import embed_batches
from reco.embedding_folder import Summary, embed_to_folder
from reco.embedding_source import read_folder

ROOT = Path(__file__).parents[2]
CLIP = ROOT / "examples/icons/clip"
SHARD = sorted((ROOT / "examples/icons/data").glob("queries-*"))[0]


@pytest.fixture(scope="module")
def clip() -> reco.Clip:
    return reco.Clip.load(CLIP)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return list(read_samples(SHARD))[:60]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, samples: list[Sample]) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i, sample in enumerate(samples):
        (folder / f"{i:03}.webp").write_bytes(sample.image)
        (folder / f"{i:03}.txt").write_text(sample.caption)
        (folder / f"{i:03}.json").write_text(json.dumps({"number": i, "tags": ["a", i], "concept": sample.caption}))
    return folder


def files(out: Path) -> dict[str, bytes]:
    """All that was written; not the locks."""
    found = sorted(p for p in out.rglob("*") if p.is_file() and p.suffix != ".lock")
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in found}


def quiet(clip: reco.Clip, sources: Any, out: Path, **options: Any) -> Summary:
    return embed_to_folder(clip, sources, out, progress=False, **options)


def test_layout(clip: reco.Clip, folder: Path, samples: list[Sample], tmp_path: Path) -> None:
    assert quiet(clip, folder, tmp_path / "out", shard_size=25) == Summary(3, 60, 60, 0, True)
    assert [name for name in files(tmp_path / "out") if "state" not in name] == [
        f"{kind}_{i:05}.{suffix}"
        for kind, suffix in [("img_emb/img_emb", "npy"), ("metadata/metadata", "parquet"), ("text_emb/text_emb", "npy")]
        for i in range(3)
    ]
    images, texts = (
        [np.load(tmp_path / f"out/{kind}/{kind}_{i:05}.npy") for i in range(3)] for kind in ("img_emb", "text_emb")
    )
    for rows, expected in [
        (images, clip.encode_images([s.image for s in samples])),
        (texts, clip.encode_texts([s.caption for s in samples])),
    ]:
        assert [r.shape for r in rows] == [(25, clip.dim), (25, clip.dim), (10, clip.dim)]
        assert rows[0].dtype == np.float16 and rows[0].flags.c_contiguous
        joined = np.concatenate(rows).astype(np.float32)
        np.testing.assert_allclose(joined, expected, atol=1e-3)  # half a unit in the last place of a float16 near 1
        np.testing.assert_allclose(np.linalg.norm(joined, axis=1), 1, atol=1e-3)
    table = pq.read_table(tmp_path / "out/metadata/metadata_00001.parquet")
    assert table.schema.names == ["key", "image_path", "caption", "number", "tags", "concept"]
    assert table.to_pylist()[0] == {
        "key": "025", "image_path": str(folder / "025.webp"), "caption": samples[25].caption,
        "number": "25", "tags": '["a", 25]', "concept": samples[25].caption,
    }  # fmt: skip
    assert read_folder(tmp_path / "out").metadata[25] == {  # as the collection has it
        "image_path": str(folder / "025.webp"), "number": 25, "tags": ["a", 25], "concept": samples[25].caption,
    }  # fmt: skip


@pytest.mark.parametrize("format", ["npy", "parquet_npy"])
def test_the_reader_of_autofaiss_and_clip_retrieval(clip: reco.Clip, folder: Path, tmp_path: Path, format: str) -> None:
    """embedding_reader pairs arrays and tables by the order of their names."""
    reader = pytest.importorskip("embedding_reader").EmbeddingReader
    out = tmp_path / "out"
    quiet(clip, folder, out, shard_size=7)
    expected = read_folder(out)
    columns = ["key", "image_path", "caption"]
    options = {} if format == "npy" else {"metadata_folder": str(out / "metadata"), "meta_columns": columns}
    opened = reader(str(out / "img_emb"), file_format=format, **options)
    assert (opened.count, opened.dimension) == expected.images.shape
    parts = list(opened(batch_size=11, start=0, end=opened.count, show_progress=False))
    np.testing.assert_array_equal(np.concatenate([rows for rows, _ in parts]).astype(np.float32), expected.images)
    if format == "parquet_npy":
        assert [key for _, table in parts for key in table["key"]] == expected.keys
        assert [caption for _, table in parts for caption in table["caption"]] == expected.captions


def test_rows_are_those_of_the_encoder(clip: reco.Clip, samples: list[Sample], tmp_path: Path) -> None:
    quiet(clip, samples, tmp_path / "out")
    read = read_folder(tmp_path / "out")
    assert (read.keys, read.captions) == ([s.key for s in samples], [s.caption for s in samples])
    want = clip.encode_images([s.image for s in samples])
    np.testing.assert_array_equal(read.images, want.astype(np.float16).astype(np.float32))


def test_every_kind_of_source_gives_the_same(
    clip: reco.Clip, folder: Path, samples: list[Sample], tmp_path: Path
) -> None:
    table = folder / "table.csv"
    rows = [f'"{i:03}.webp","{sample.caption}"' for i, sample in enumerate(samples)]
    table.write_text("path,caption\n" + "\n".join(rows))
    arrays = [Sample(f"{i:03}", reco.decode_image(s.image), s.caption) for i, s in enumerate(samples)]
    kinds = {"folder": folder, "table": [str(table)], "list": samples, "generator": iter(samples), "arrays": arrays}
    for name, source in kinds.items():
        quiet(clip, source, tmp_path / name)
    table.unlink()
    expected = read_folder(tmp_path / "folder")
    for name in kinds:
        found = read_folder(tmp_path / name)
        np.testing.assert_array_equal(found.images, expected.images)
        np.testing.assert_array_equal(found.texts, expected.texts)
        assert found.captions == expected.captions


def test_the_next_samples_are_read_while_a_batch_is_encoded(
    clip: reco.Clip, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An encoder that waits for them goes on; C++'s test shows the same of decoding."""
    monkeypatch.setattr("reco.embedding_folder._BATCH", 20)
    given = [threading.Event() for _ in samples]
    arrived: list[bool] = []

    class Patient:
        fingerprint, dtype, encode_texts = clip.fingerprint, clip.dtype, staticmethod(clip.encode_texts)

        def encode_images(self, *arguments: Any) -> Any:
            batches = len(arrived) + 1
            arrived.append(all(event.wait(60) for event in given[20 * batches : 20 * batches + 20]))
            return clip.encode_images(*arguments)

    def source() -> Iterator[Sample]:
        for sample, event in zip(samples, given, strict=True):
            event.set()
            yield sample

    quiet(Patient(), source(), tmp_path / "patient")  # type: ignore[arg-type]
    assert arrived == [True, True, True]
    quiet(clip, samples, tmp_path / "plain")
    expected = read_folder(tmp_path / "plain").images
    np.testing.assert_allclose(read_folder(tmp_path / "patient").images, expected, atol=1e-3)


def test_bad_samples_are_listed(clip: reco.Clip, folder: Path, samples: list[Sample], tmp_path: Path) -> None:
    for i in range(0, 20, 3):
        (tmp_path / f"{i:03}.webp").write_bytes(samples[i].image)
    bad = {
        "001.png": b"\x89PNG\r\n\x1a\n nothing follows",
        "002.jpg": b"",
        "004.webp": samples[4].image[:100],
        "005.png": b"text",
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "006.txt").write_bytes(b"\xff")
    table = tmp_path / "in/table.csv"
    table.parent.mkdir()
    table.write_text("path\nabsent.jpg\n")

    out = tmp_path / "out"
    assert quiet(clip, [tmp_path, table], out, shard_size=4) == Summary(3, 12, 6, 6, True)
    lines = [line for file in sorted(out.glob("errors/*.jsonl")) for line in file.read_text().splitlines()]
    errors = {error["key"]: error for error in map(json.loads, lines)}
    assert sorted(errors) == ["001", "002", "004", "005", "006", "table-0"]
    assert all(error["path"].startswith(str(tmp_path)) and len(error["error"]) > 10 for error in errors.values())
    found = read_folder(out)
    assert found.keys == ["000", "003", "009", "012", "015", "018"]
    expected = clip.encode_images([samples[int(key)].image for key in found.keys])
    np.testing.assert_allclose(found.images, expected, atol=1e-3)
    assert len(list(out.glob("img_emb/*"))) == len(list(out.glob("metadata/*"))) == 3


def test_formats_that_pil_reads(clip: reco.Clip, samples: list[Sample], tmp_path: Path) -> None:
    """In a folder and in a tar; animations give their first frame; a broken file is listed, not passed over."""
    image = Image.fromarray(reco.decode_image(samples[0].image)).quantize(64)
    other = Image.fromarray(reco.decode_image(samples[1].image)).quantize(64)
    source, shard = tmp_path / "source", tmp_path / "shard.tar"
    source.mkdir()
    for suffix in ("png", "bmp", "tiff", "TIF"):
        image.save(source / f"{suffix}.{suffix}")
    image.save(source / "gif.gif", save_all=True, append_images=[other])
    (source / "zero.gif").write_bytes((source / "gif.gif").read_bytes()[:40])
    with tarfile.open(shard, "w") as tar:
        for path in sorted(source.iterdir()):
            tar.add(path, path.name)
    for name, path in (("folder", source), ("tar", shard)):
        assert quiet(clip, path, tmp_path / name) == Summary(1, 6, 5, 1, True)
        found = read_folder(tmp_path / name)
        assert found.keys == ["TIF", "bmp", "gif", "png", "tiff"]
        np.testing.assert_array_equal(found.images, found.images[[3] * 5])
        assert json.loads((tmp_path / name / "errors/errors_00000.jsonl").read_text())["key"] == "zero"


def test_a_shard_without_rows_has_no_files(
    clip: reco.Clip, samples: list[Sample], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mixed = [Sample(str(i), b"bad" if 2 <= i < 4 else s.image) for i, s in enumerate(samples[:6])]
    assert quiet(clip, mixed, tmp_path / "out", shard_size=2) == Summary(3, 6, 4, 2, True)
    names = list(files(tmp_path / "out"))
    assert "img_emb/img_emb_00001.npy" not in names and "metadata/metadata_00001.parquet" not in names
    assert "img_emb/img_emb_00002.npy" in names and "errors/errors_00001.jsonl" in names
    left_out = tmp_path / "out/errors/errors_00001.jsonl"
    assert caplog.record_tuples == [("reco", logging.WARNING, f"2 samples left out: {left_out}")]
    assert quiet(clip, [], tmp_path / "empty") == Summary(0, 0, 0, 0, True)


def test_batches_are_bounded_by_bytes(clip: reco.Clip, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever an image is given as; a path holds nothing yet."""
    monkeypatch.setattr("reco.embedding_folder.BATCH_BYTES", 40_000)
    monkeypatch.setattr("reco.embedding.BATCH_BYTES", 40_000)
    pixels = np.zeros((70, 90, 3), np.uint8)  # 18,900 bytes
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "BMP")
    (tmp_path / "a.bmp").write_bytes(buffer.getvalue())
    sizes: list[int] = []

    class Watched:
        fingerprint, dtype, encode_texts = clip.fingerprint, clip.dtype, staticmethod(clip.encode_texts)

        def encode_images(self, images: Any, *arguments: Any) -> Any:
            sizes.append(len(images))
            return clip.encode_images(images, *arguments)

    kinds = {"array": pixels, "PIL": Image.fromarray(pixels), "bytes": buffer.getvalue(), "path": tmp_path / "a.bmp"}
    for kind, image in kinds.items():
        given = [Sample(str(i), image) for i in range(7)]
        sizes.clear()
        quiet(Watched(), given, tmp_path / kind)  # type: ignore[arg-type]
        list(embed_batches(Watched(), given))  # type: ignore[arg-type]
        assert sizes == ([7, 7] if kind == "path" else [3, 3, 1] * 2), kind


def big_collection(path: Path, samples: list[Sample]) -> Path:
    """Enough work to be killed in, with bad samples in between: a folder of 1,200 images of 500 pixels a side."""
    path.mkdir()
    for i in range(1200):
        image = reco.resize(reco.decode_image(samples[i % len(samples)].image), 500, 500)
        if i < 60:
            Image.fromarray(image).save(path / f"{i:04}.jpg")
        else:
            (path / f"{i:04}.jpg").hardlink_to(path / f"{i % 60:04}.jpg")
        (path / f"{i:04}.txt").write_text(f"{samples[i % len(samples)].caption} {i}")
    for i in range(0, 1200, 97):
        (path / f"{i:04}.jpg").unlink()
        (path / f"{i:04}.jpg").write_bytes(b"\xff\xd8\xff broken")
    return path


def command(source: Path, out: Path, *options: object) -> list[str]:
    program = [sys.executable, "-m", "reco.cli", "--threads", "1", "embed", source, "--model", CLIP, "--out", out]
    return [str(a) for a in (*program, "--quiet", "--shard-size", 100, *options)]


@pytest.fixture(scope="module")
def uninterrupted(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """The big collection, and what comes of it when nothing stops the work."""
    folder = tmp_path_factory.mktemp("big")
    source = big_collection(folder / "source", samples)
    subprocess.run(command(source, folder / "whole"), check=True, stdout=subprocess.DEVNULL)
    whole = files(folder / "whole")
    assert len([name for name in whole if name.startswith("img_emb")]) == 12
    return source, whole


def stop(source: Path, out: Path, sent: signal.Signals, shards: int, wait: float) -> tuple[int, str]:
    """Start the work, send a signal some time after so many shards are finished; exit status and standard error."""
    state = out / "state/1-of-1.json"
    process = subprocess.Popen(command(source, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and (
        not state.exists() or json.loads(state.read_text())["summary"]["shards"] < shards
    ):
        time.sleep(0.001)
    time.sleep(wait)
    process.send_signal(sent)
    _, said = process.communicate()
    return process.returncode, said


def test_killed_anywhere_the_result_is_the_same(uninterrupted: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    (source, whole), out, chance = uninterrupted, tmp_path / "killed", random.Random(7)
    for shards in (1, 3, 6):
        assert stop(source, out, signal.SIGKILL, shards, chance.uniform(0, 0.1))[0] == -signal.SIGKILL
        assert files(out) != whole
    done = json.loads((out / "state/1-of-1.json").read_text())["summary"]["shards"]
    assert 0 < done < 12
    before = {name: (out / name).stat().st_mtime_ns for name in files(out) if name.endswith(f"{done - 1:05}.npy")}
    finished = subprocess.run(command(source, out, "--json"), check=True, capture_output=True, text=True)
    assert json.loads(finished.stdout)["rows"] == 1187 and json.loads(finished.stdout)["errors"] == 13
    assert files(out) == whole
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before  # finished shards are left alone


def test_ctrl_c_the_result_is_the_same(uninterrupted: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    """In the middle of a shard, three times: the command says so, ends with 130, and goes on when given again."""
    (source, whole), out = uninterrupted, tmp_path / "out"
    for shards in (1, 4, 8):
        status, said = stop(source, out, signal.SIGINT, shards, 0.03)
        assert status == 130 and said.splitlines()[-1] == "interrupted", said
        summary = json.loads((out / "state/1-of-1.json").read_text())["summary"]
        assert shards <= summary["shards"] < 12 and not summary["finished"]
    assert not list(out.rglob("*.tmp"))
    subprocess.run(command(source, out), check=True, stdout=subprocess.DEVNULL)
    assert files(out) == whole


def test_interrupted_it_goes_on(clip: reco.Clip, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between shards, and an iterable that fails on the way."""
    quiet(clip, folder, tmp_path / "whole", shard_size=7)
    samples = list(read_samples(folder))

    def interrupted() -> Any:
        yield from samples[:30]
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            quiet(clip, interrupted(), tmp_path / "out", shard_size=7)
    assert quiet(clip, samples, tmp_path / "out", shard_size=7) == Summary(9, 60, 60, 0, True)
    assert quiet(clip, samples, tmp_path / "out", shard_size=7) == Summary(9, 60, 60, 0, True)  # nothing left to do
    whole, found = files(tmp_path / "whole"), files(tmp_path / "out")
    del whole["state/1-of-1.json"], found["state/1-of-1.json"]  # an iterable has no fingerprint
    assert found == whole


def test_ctrl_c_in_the_encoder(clip: reco.Clip, samples: list[Sample], tmp_path: Path) -> None:
    timer = threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        quiet(clip, samples * 5000, tmp_path / "out", shard_size=500)
    timer.join()
    assert not json.loads((tmp_path / "out/state/1-of-1.json").read_text())["summary"]["finished"]


def test_memory_stays_bounded(tmp_path: Path) -> None:
    """Four times the images, 1.9 MB each, and the process is no larger."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (800, 800, 3), np.uint8)).save(buffer, "PNG")
    script = (
        "import resource, sys; from reco.cli import main; main(sys.argv[1:], standalone_mode=False); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    sizes = []
    for count in (80, 320):
        with tarfile.open(tmp_path / "big.tar", "w") as tar:
            for i in range(count):
                member = tarfile.TarInfo(f"{i:04}.png")
                member.size = buffer.getbuffer().nbytes
                tar.addfile(member, io.BytesIO(buffer.getvalue()))
        arguments = ["embed", tmp_path / "big.tar", "--model", CLIP, "--out", tmp_path / str(count), "--quiet"]
        done = subprocess.run([sys.executable, "-c", script, *arguments], check=True, capture_output=True, text=True)
        sizes.append(int(done.stdout.split()[-1]) / 1024)
        assert len(read_folder(tmp_path / str(count))) == count
    assert sizes[1] < sizes[0] + 100, sizes  # MB; all of the images are 460 MB more


@pytest.mark.parametrize("n", [2, 5])
def test_parts_are_the_whole(clip: reco.Clip, folder: Path, tmp_path: Path, n: int) -> None:
    quiet(clip, folder, tmp_path / "whole")
    out = tmp_path / "parts"
    done = [quiet(clip, folder, out, shard=(i, n), shard_size=11) for i in range(n, 0, -1)]
    assert sum(summary.rows for summary in done) == 60
    whole, found = read_folder(tmp_path / "whole"), read_folder(out)
    order = np.argsort(found.keys)
    assert [found.keys[i] for i in order] == whole.keys and [found.captions[i] for i in order] == whole.captions
    np.testing.assert_allclose(found.images[order], whole.images, atol=1e-3)
    np.testing.assert_allclose(found.texts[order], whole.texts, atol=1e-3)


def test_refuses_what_does_not_fit(clip: reco.Clip, folder: Path, samples: list[Sample], tmp_path: Path) -> None:
    out = tmp_path / "out"
    quiet(clip, folder, out, shard_size=20)
    other = reco.Clip.load(CLIP, dtype="bfloat16")
    for arguments, options, part in [
        ((clip, folder), {"shard_size": 21}, "expected shard_size 20, .* found 21"),
        ((clip, SHARD), {"shard_size": 20}, "expected source [0-9a-f]{64}, .* found"),
        ((clip, samples), {"shard_size": 20}, "found None"),
        ((other, folder), {"shard_size": 20}, "expected dtype float32"),
        ((clip, folder), {"shard_size": 20, "shard": (1, 2)}, "expected processes 1, .* found 2"),
        ((clip, folder), {"shard_size": 0}, "shard_size must be at least 1"),
        ((clip, folder), {"shard": (3, 2)}, "shard must be"),
    ]:
        with pytest.raises(reco.Error, match=part):
            quiet(*arguments, out, **options)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("")
    with pytest.raises(reco.Error, match="found other files"):
        quiet(clip, folder, tmp_path / "mine")
    (tmp_path / "file").write_text("")
    with pytest.raises(reco.Error, match="cannot write to .*: Not a directory"):
        quiet(clip, folder, tmp_path / "file/out")
    (out / "state/1-of-1.json").write_text('{"identity": {}}')
    with pytest.raises(reco.Error, match="state .* is damaged"):
        quiet(clip, folder, out, shard_size=20)


def test_refuses_a_collection_that_changed(clip: reco.Clip, samples: list[Sample], tmp_path: Path) -> None:
    def cut() -> Any:
        yield from samples[:30]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quiet(clip, cut(), tmp_path / "out", shard_size=20)
    with pytest.raises(reco.Error, match="the collection changed"):
        quiet(clip, samples[1:], tmp_path / "out", shard_size=20)
    with pytest.raises(reco.Error, match="found nothing: the collection changed"):
        quiet(clip, samples[:5], tmp_path / "out", shard_size=20)


def test_one_process_a_part(clip: reco.Clip, samples: list[Sample], tmp_path: Path) -> None:
    def nested() -> Any:
        yield samples[0]
        with pytest.raises(reco.Error, match="another process writes part 1 of 1"):
            quiet(clip, samples, tmp_path / "out")
        yield samples[1]

    assert quiet(clip, nested(), tmp_path / "out").rows == 2


def test_command_line(folder: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> Any:
        return CliRunner().invoke(main, ["embed", *[str(a) for a in arguments], "--model", str(CLIP), "--quiet"])

    out = tmp_path / "out"
    for i in (1, 2):
        result = run(folder, "--out", out, "--shard", f"{i}/2", "--shard-size", 8, "--json")
        assert result.exit_code == 0
        assert json.loads(result.output) == {
            "out": str(out), "dim": 256, "shards": 4, "samples": 30, "rows": 30, "errors": 0, "finished": True,
        }  # fmt: skip
    assert len(read_folder(out)) == 60
    for text in ("0/2", "3/2", "x", "1/"):
        assert "expected i/n" in run(folder, "--out", out, "--shard", text).output
    assert "found nothing at" in run(tmp_path / "absent", "--out", tmp_path / "x").output


def test_read_folder_checks(tmp_path: Path) -> None:
    with pytest.raises(reco.Error, match="found none"):
        read_folder(tmp_path)
