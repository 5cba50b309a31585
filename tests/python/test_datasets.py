# SPDX-License-Identifier: Apache-2.0
"""Collections: every kind of source, what is wrong in them, and how they are dealt out and gone on with."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import reco
from reco.datasets import Collection, Fault, Sample, read_samples


def picture(seed: int, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (20 + seed % 7, 24, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def shard(path: Path, numbers: range) -> Path:
    files = {}
    for i in numbers:
        files[f"s/{i:03}.jpg"] = picture(i, "JPEG")
        files[f"s/{i:03}.txt"] = f" caption {i}\n".encode()
        files[f"s/{i:03}.json"] = json.dumps({"n": i}).encode()
    return write_tar(path, files)


def items(collection: Collection, *start: Any) -> list[Any]:
    return [item for _, item in collection.read(*start)]


def content(sample: Sample) -> bytes:
    return sample.image if isinstance(sample.image, bytes) else sample.image.read_bytes()


def test_folder(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "a.png").write_bytes(picture(0))
    (tmp_path / "a.txt").write_text("first\n")
    (tmp_path / "b/c.JPEG").write_bytes(picture(1, "JPEG"))
    (tmp_path / "b/c.json").write_text('{"caption": "from JSON", "year": 1999}')
    (tmp_path / "b/d.webp").write_bytes(picture(2, "WEBP"))
    (tmp_path / "b/.hidden.png").write_bytes(b"")
    (tmp_path / "b/notes.md").write_text("no image")
    found = list(read_samples(tmp_path))
    assert [s.key for s in found] == ["a", "b/c", "b/d"]
    assert [s.caption for s in found] == ["first", "from JSON", ""]
    assert found[1].metadata == {"caption": "from JSON", "year": 1999, "image_path": str(tmp_path / "b/c.JPEG")}
    assert [content(s) for s in found] == [picture(0), picture(1, "JPEG"), picture(2, "WEBP")]


def test_folder_with_captions_csv(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/one.png").write_bytes(picture(0))
    (tmp_path / "captions.csv").write_text('file,caption\na/one.png,"a ""quoted"", name"\n')
    [sample] = read_samples(tmp_path)
    assert (sample.key, sample.caption) == ("a/one", 'a "quoted", name')
    (tmp_path / "captions.csv").write_text("name,caption\n")
    with pytest.raises(reco.Error, match=r"columns file and caption, found \['name', 'caption'\]"):
        list(read_samples(tmp_path))


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_table(tmp_path: Path, suffix: str) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(picture(i))
    rows = [{"filepath": f"{i}.png", "title": f"a, b\t{i}", "year": 2000 + i} for i in range(3)]
    table = tmp_path / f"t.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), table)
    else:
        between = "," if suffix == "csv" else "\t"
        lines = [between.join(rows[0])] + [
            between.join([r["filepath"], f'"{r["title"]}"', str(r["year"])]) for r in rows
        ]
        table.write_text("\n".join(lines))
    found = list(read_samples(table))
    assert [s.key for s in found] == ["t-0", "t-1", "t-2"]
    assert [s.caption for s in found] == [r["title"] for r in rows]
    assert [content(s) for s in found] == [picture(i) for i in range(3)]
    year = 2001 if suffix == "parquet" else "2001"
    assert found[1].metadata == {"year": year, "image_path": str(tmp_path / "1.png")}
    assert Collection(table).total() == 3


def test_table_columns(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("key,where,said\nk1,a.png,hello\n,,\nk3,a\0.png,x\n")
    sample, fault, nul = items(Collection(table, image_column="where", caption_column="said"))
    assert isinstance(nul, Fault) and "NUL" in nul.error
    assert isinstance(sample, Sample) and (sample.key, sample.caption) == ("k1", "hello")
    assert isinstance(fault, Fault) and fault.error == "the column where is empty"
    for options, part in [({}, "image_path or path"), ({"image_column": "x"}, "column x, found key, where, said")]:
        with pytest.raises(reco.Error, match=part):
            Collection(table, **options)
    with pytest.raises(reco.Error, match="column y, found"):
        Collection(table, image_column="where", caption_column="y")


def test_parquet_that_holds_images(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": picture(0), "path": "zero.png"}, "text": "zero", "when": {"year": 1}}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": [picture(1)], "text": ["one"]}), tmp_path / "b.parquet")
    found = list(read_samples(tmp_path))  # a folder of tables
    assert [(content(s), s.caption) for s in found] == [(picture(0), "zero"), (picture(1), "one")]
    assert found[0].metadata == {"when": {"year": 1}, "image_path": str(tmp_path / "zero.png")}


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_tar(tmp_path: Path, name: str) -> None:
    path = shard(tmp_path / name, range(5))
    found = list(read_samples(path))
    assert [s.key for s in found] == [f"s/{i:03}" for i in range(5)]
    assert [s.caption for s in found] == [f"caption {i}" for i in range(5)]
    assert [content(s) for s in found] == [picture(i, "JPEG") for i in range(5)]
    assert found[3].metadata == {"n": 3, "image_path": f"{path}/s/003.jpg"}


def test_what_is_wrong_is_told_and_reading_goes_on(tmp_path: Path) -> None:
    good = picture(0)
    write_tar(
        tmp_path / "a.tar",
        {
            "1.png": good, "1.json": b"{",
            "2.png": good, "2.txt": b"\xff\xfe",
            "3.txt": b"no image",
            "4.png": good, "4.json": b"[" * 100_000,
            "5.png": good, "5.json": b'{"caption": "\\ud800x"}',
            "k\udce9y.png": good,
        },
    )  # fmt: skip
    whole = shard(tmp_path / "whole.tar", range(9)).read_bytes()
    (tmp_path / "whole.tar").unlink()
    (tmp_path / "b.tar").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.tar").write_bytes(b"no tar")
    shard(tmp_path / "d.tar.gz", range(100, 102))
    found = items(Collection(tmp_path))
    faults = [item for item in found if isinstance(item, Fault)]
    assert [fault.key for fault in faults] == ["1", "2", "3", "4", "b.tar", "c.tar"]
    assert ["malformed" in faults[i].error for i in (0, 1, 3)] == [True] * 3
    assert faults[2].error == "expected an image (jpg, png, webp, ...), found txt"
    assert ["damaged" in f.error for f in faults[4:]] == [True] * 2
    keys = [item.key for item in found if isinstance(item, Sample)]
    assert keys[:3] == ["5", "k\ufffdy", "s/000"] and keys[-2:] == ["s/100", "s/101"]
    assert found[4].caption == "\ufffdx"
    with pytest.raises(reco.Error, match="malformed caption or JSON"):
        list(read_samples(tmp_path))


def test_nothing_in_a_tar_is_passed_over(tmp_path: Path) -> None:
    """What WebDataset takes for no sample is none here: hidden files, and files without a dot."""
    good = picture(0, "JPEG")
    files = {"README": b"", ".hidden.jpg": good, "1.jfif": good, "2.heic": b"?", "3.raw": good, "3.json": b"{}"}
    files |= {"d/._4.jpg": b"?", "4.left.jpg": good, "5.jpg": good}
    first, second, *faults, last = items(Collection(write_tar(tmp_path / "a.tar", files)))
    assert [content(sample) for sample in (first, second, last)] == [good, b"?", good]
    assert [item.key for item in (first, second, last)] == ["1", "2", "5"]
    assert [(f.key, f.error.split("found ")[1]) for f in faults] == [("3", "json, raw"), ("4", "left.jpg")]
    for name, files in (("none.tar", {"README": b""}), ("b.tar", {})):
        [fault] = items(Collection(write_tar(tmp_path / name, files)))
        assert fault == Fault(name, str(tmp_path / name), "the shard has no samples")
    for part, count in ((1, 1), (2, 0)):  # one of the processes says it
        assert len(items(Collection([tmp_path / "b.tar"], shard=(part, 2)))) == count
    (tmp_path / "t.csv").write_text("path,caption\n")
    pq.write_table(pa.table({"path": pa.array([], pa.string())}), tmp_path / "t.parquet")
    for suffix in ("csv", "parquet"):
        [fault] = items(Collection(tmp_path / f"t.{suffix}"))
        assert fault == Fault("t", str(tmp_path / f"t.{suffix}"), "the table has no rows")


def test_only_what_a_sample_needs_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other files may be larger than what memory is to hold, and do no harm."""
    monkeypatch.setattr("reco.datasets.sources._MAX_FILE", 10_000)
    read: list[str] = []
    extract = tarfile.TarFile.extractfile

    def watched(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Any:
        read.append(member.name)
        return extract(tar, member)

    monkeypatch.setattr(tarfile.TarFile, "extractfile", watched)
    large, good = bytes(10_001), picture(0)
    files = {
        "1.npy": large,
        "1.png": good,
        "1.mp4": large,
        "1.txt": b"one",
        "2.png": large,
        "3.png": good,
        "3.tif": large,
    }
    first, second, third = items(Collection(write_tar(tmp_path / "a.tar", files)))
    assert (first.key, first.caption, content(first)) == ("1", "one", good) and content(third) == good
    assert isinstance(second, Fault) and second.key == "2" and "10001 bytes, more than 10000" in second.error
    assert read == ["1.png", "1.txt", "3.png"]


@pytest.mark.parametrize("name", ["whole.tar", "whole.tar.gz"])
def test_a_cut_shard_is_never_taken_for_a_short_one(tmp_path: Path, name: str) -> None:
    whole = shard(tmp_path / name, range(3)).read_bytes()
    end = len(whole.rstrip(b"\0")) if name.endswith("tar") else len(whole) - 1
    for size in range(1, end, 97):
        (tmp_path / name).write_bytes(whole[:size])
        *_, last = items(Collection(tmp_path / name))
        assert isinstance(last, Fault) and "damaged" in last.error, size


def test_only_what_is_needed_of_a_parquet_table_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows at a time where they are large; no row group of others; no bytes but the images'."""
    image = np.random.default_rng(0)
    rows = [
        {"key": b"k%d" % i, "jpg": image.bytes(100_000), "text": b"%d" % i, "size": i, "sound": {"bytes": b"s"}}
        for i in range(40)
    ]
    path = tmp_path / "t.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=10)
    monkeypatch.setattr("reco.datasets.sources._ROWS_BYTES", 300_000)
    read: list[tuple[int, int, list[str]]] = []
    iterate = pq.ParquetFile.iter_batches

    def watched(table: Any, size: int, groups: list[int], columns: list[str]) -> Any:
        for batch in iterate(table, size, groups, columns):
            read.append((groups[0], len(batch), columns))
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)

    def collection(*shard: int) -> Collection:
        return Collection(path, image_column="jpg", caption_column="text", shard=shard or (1, 1))  # type: ignore[arg-type]

    found = items(collection())
    assert [content(s) for s in found] == [row["jpg"] for row in rows]
    assert [(s.key, s.caption) for s in found] == [(f"k{i}", str(i)) for i in range(40)]
    assert found[7].metadata == {"size": 7, "image_path": f"{path}:7"}
    assert {columns for *_, c in read for columns in c} == {"key", "jpg", "text", "size"}
    assert max(count for _, count, _ in read) <= 3 and sum(count for _, count, _ in read) == 40
    read.clear()
    assert items(collection(), (0, 25)) == found[25:] and {group for group, *_ in read} == {2, 3}
    assert items(collection(2, 3)) == found[1::3]


def test_parquet_tables_are_dealt_whole(tmp_path: Path) -> None:
    for i in range(4):
        pq.write_table(pa.table({"image": [picture(i), picture(9)]}), tmp_path / f"{i}.parquet")
    parts = [[s.key for s in items(Collection(tmp_path, shard=(i, 3)))] for i in (1, 2, 3)]
    assert parts == [["0-0", "0-1", "3-0", "3-1"], ["1-0", "1-1"], ["2-0", "2-1"]]


def test_fingerprint_of_a_parquet_table(tmp_path: Path) -> None:
    """Of its ends, however large it is; another row in the middle is noticed by the footer."""
    path = tmp_path / "t.parquet"

    def fingerprint(change: int = -1) -> str | None:
        images = [bytes([i % 251]) * 999 for i in range(400)]
        if change >= 0:
            images[change] = b"x" + images[change][1:]
        pq.write_table(pa.table({"image": images}), path, row_group_size=5, compression="none", use_dictionary=False)
        return Collection(path).fingerprint

    before = fingerprint()
    assert before == fingerprint() and path.stat().st_size > 300_000
    assert len({before, *(fingerprint(i) for i in (0, 100, 203, 399))}) == 5


def test_missing_sources(tmp_path: Path) -> None:
    for path, part in [(tmp_path / "x", "found nothing at"), (tmp_path, "expected shards, tables or images")]:
        with pytest.raises(reco.Error, match=part):
            Collection(path)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(reco.Error, match="cannot read the table"):
        Collection(tmp_path / "t.parquet")


@pytest.fixture
def mixed(tmp_path: Path) -> list[Path]:
    """Two tars, a folder and a table."""
    (tmp_path / "f").mkdir()
    for i in range(7):
        (tmp_path / f"f/{i}.png").write_bytes(picture(i))
    (tmp_path / "t.csv").write_text("path\n" + "".join(f"f/{i}.png\n" for i in range(5)))
    tars = [shard(tmp_path / "a.tar", range(6)), shard(tmp_path / "b.tar.gz", range(6, 9))]
    return [tars[0], tmp_path / "f", tmp_path / "t.csv", tars[1]]


def test_reading_goes_on_from_every_position(mixed: list[Path]) -> None:
    read = list(Collection(mixed).read())
    assert len(read) == 21
    for i, (position, _) in enumerate(read):
        assert items(Collection(mixed), position) == [item for _, item in read[i + 1 :]]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 30])
def test_parts_are_the_whole(mixed: list[Path], n: int) -> None:
    whole = sorted(item.metadata["image_path"] + item.key for item in items(Collection(mixed)))
    parts = [items(Collection(mixed, shard=(i, n))) for i in range(1, n + 1)]
    assert sorted(item.metadata["image_path"] + item.key for part in parts for item in part) == whole
    if n == 2:  # as many tars as parts: each is read by one
        assert [{s.metadata["image_path"].split("/s/")[0] for s in part if "n" in s.metadata} for part in parts] == [
            {str(mixed[0])},
            {str(mixed[3])},
        ]
    with pytest.raises(reco.Error, match="shard must be"):
        Collection(mixed, shard=(0, n))


def test_total(mixed: list[Path]) -> None:
    assert Collection(mixed[1:3]).total() == 12
    assert Collection(mixed[0]).total() is None
    collection = Collection(mixed)
    items(collection)
    assert collection.total() == 21
    assert Collection([Sample("a", b""), Sample("b", b"")]).total() == 2
    assert Collection(Sample(str(i), b"") for i in range(2)).total() is None


def test_fingerprint_is_of_what_is_there(mixed: list[Path], tmp_path: Path) -> None:
    before = Collection(mixed).fingerprint
    assert before == Collection(mixed).fingerprint
    assert before != Collection(mixed[::-1]).fingerprint
    for change in (
        lambda: (tmp_path / "f/7.png").write_bytes(b""),
        lambda: shard(mixed[0], range(5)),
        lambda: mixed[2].write_text("path\nf/1.png\n"),
    ):
        change()
        after = Collection(mixed).fingerprint
        assert after != before
        before = after
    assert Collection([Sample("a", b"")]).fingerprint is None
