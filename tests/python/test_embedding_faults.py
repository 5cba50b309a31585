# SPDX-License-Identifier: Apache-2.0
"""Images in a collection that are not what they seem."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import reco
from reco.embedding_folder import Summary, embed_to_folder
from reco.embedding_source import read_folder


@pytest.fixture(scope="module")
def clip() -> reco.Clip:
    return reco.Clip.load(Path(__file__).parents[2] / "examples/icons/clip")


def png_of(width: int, height: int) -> bytes:
    """A PNG of zeros whose pixels would take a thousand times the file's bytes; only its header is ever read."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1 << 20), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["folder", "tar", "table"])
def test_bombs_and_wrong_suffixes(clip: reco.Clip, kind: str, tmp_path: Path) -> None:
    """A bomb is left out and told of, not unpacked; an image is read by its content, whatever its name says."""
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)).quantize(64)
    contents = {"bomb.png": png_of(60_000, 60_000), "bomb.jpg": png_of(20_000, 20_000)}
    for name, format in (("gif.jpg", "GIF"), ("bmp.webp", "BMP"), ("png.jpg", "PNG"), ("jpeg.gif", "PNG")):
        buffer = io.BytesIO()
        pixels.save(buffer, format)
        contents[name] = buffer.getvalue()
    source = tmp_path / "source"
    source.mkdir()
    for name, content in contents.items():
        (source / f"{kind}-{name}").write_bytes(content)
    if kind == "tar":
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for path in sorted(source.iterdir()):
                tar.add(path, path.name.replace(".", f"-{path.suffix[1:]}.", 1))
        source = tmp_path / "a.tar"
    elif kind == "table":
        table = pa.table({"path": [str(path) for path in sorted(source.iterdir())]})
        source = tmp_path / "a.parquet"
        pq.write_table(table, source)
    out = tmp_path / "out"
    assert embed_to_folder(clip, source, out, progress=False) == Summary(1, 6, 4, 2, True)
    found = read_folder(out).images
    np.testing.assert_array_equal(found, found[[0] * 4])
    errors = [json.loads(line) for line in (out / "errors/errors_00000.jsonl").read_text().splitlines()]
    assert len(errors) == 2 and all("bomb" in error["path"] and "pixels" in error["error"] for error in errors)
