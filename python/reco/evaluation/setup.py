# SPDX-License-Identifier: Apache-2.0
"""What was evaluated: model, memory, fusion and protocol with hashes, as results name them."""

from __future__ import annotations

import hashlib
import platform
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from reco._core import Memory, MemoryBase, Model
from reco.evaluation.results import file_hash

if TYPE_CHECKING:
    from reco.evaluation.protocol import Protocol

_BLOCK = 1 << 16  # bytes of a file's head and tail
_PROBES = 64  # queries that tell stores apart
_SIDES: tuple[Literal["image", "text"], ...] = ("image", "text")


def describe(model: Model, protocol: Protocol) -> dict[str, Any]:
    """As it stands under `setup` in the results."""
    import reco

    fusion = model.fusion
    return {
        "pretrained": model.clip.fingerprint[:12],
        "dtype": model.clip.dtype,
        "memory": _memory(model.memory),
        "fusion": {"method": fusion.config.method, "parameters": fusion.parameters, "hash": _fusion_hash(model)},
        "k": model.k,
        "average": protocol.average,
        "bootstrap": {"resamples": protocol.resamples, "confidence": protocol.confidence, "seed": protocol.seed},
        "versions": {"reco": reco.__version__, "numpy": np.__version__, "python": platform.python_version()},
    }


def _memory(memory: MemoryBase) -> dict[str, Any]:
    if not isinstance(memory, Memory):
        return {"path": type(memory).__name__, "rows": len(memory), "state": _store_state(memory)}
    return {"path": str(memory.info()["path"]), "rows": len(memory), "state": _folder_state(memory)}


def _fusion_hash(model: Model) -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "fusion.safetensors"
        model.fusion.save(file)
        return file_hash(file)


def _folder_state(memory: Memory) -> str:
    """Tells contents of a memory apart: over its counts and the names, sizes, first and last 64 KiB of its files."""
    info = memory.info()
    folder = Path(str(info["path"]))
    digest = hashlib.sha256(" ".join(str(info[name]) for name in ("rows", "removed", "shards")).encode())
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in (".sqlite", ".npy")):
        with path.open("rb") as file:
            size = path.stat().st_size
            head = file.read(_BLOCK)
            file.seek(max(size - _BLOCK, 0))
            digest.update(f"{path.relative_to(folder)} {size} ".encode() + head + file.read())
    return digest.hexdigest()[:12]


def _store_state(memory: MemoryBase) -> str:
    """Tells contents of any other store apart, as far as its size and its answers to some random queries do."""
    digest = hashlib.sha256(f"{len(memory)} {memory.dim} {memory.encoder}".encode())
    queries = np.random.default_rng(0).standard_normal((_PROBES, memory.dim), np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    for side in _SIDES if len(memory) else ():
        found = memory.search(queries, k=min(10, len(memory)), modality=side)
        digest.update("\0".join(key for keys in found.keys for key in keys).encode())
        digest.update(np.round(found.partners, 3).tobytes())
    return digest.hexdigest()[:12]
