# SPDX-License-Identifier: Apache-2.0
"""Pictures, and files of every kind that PIL's writers do not make."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels: TypeAlias = npt.NDArray[np.uint8]


def picture(width: int, height: int, seed: int = 0, channels: int = 3) -> Pixels:
    """Smooth shapes with noise and hard edges: something for every coder to get wrong."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    planes = [128 + 100 * np.sin(x / (7 + 3 * c) + c) * np.cos(y / (5 + c)) for c in range(channels)]
    values = np.stack(planes, -1) + rng.normal(0, 8, (height, width, channels))
    values[height // 3 : height // 2, width // 4 : width // 2] = rng.integers(0, 256, channels)
    return values.clip(0, 255).astype(np.uint8)


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def rows(samples: npt.NDArray[Any], depth: int) -> bytes:
    """Unfiltered scan lines of [height, width, channels] samples."""
    if samples.size == 0:
        return b""
    if depth == 16:
        lines = samples.astype(">u2").reshape(len(samples), -1).view(np.uint8)
    else:
        bits = np.unpackbits(samples.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :]
        lines = np.packbits(bits.reshape(len(samples), -1), axis=-1)
    return b"".join(b"\0" + line.tobytes() for line in lines)


def png(samples: npt.NDArray[Any], color: int, depth: int, interlaced: bool = False, extra: bytes = b"") -> bytes:
    height, width = samples.shape[:2]
    passes = [samples[y::dy, x::dx] for x, y, dx, dy in PASSES] if interlaced else [samples]
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced)
    data = zlib.compress(b"".join(rows(part, depth) for part in passes))
    parts = [chunk(b"IHDR", header), extra, chunk(b"IDAT", data), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
