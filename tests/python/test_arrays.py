# SPDX-License-Identifier: Apache-2.0
"""Arrays in and out: NumPy's, PyTorch's tensors and what else speaks DLPack, without copies where that is possible."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import reco

ROOT = Path(__file__).parents[2]
DIM = 16


class OnlyDlpack:
    """A tensor of a library that NumPy knows nothing of."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.dtype = values.dtype
        self.ndim = values.ndim

    def __dlpack__(self, **options: Any) -> Any:
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.values.__dlpack_device__()


@pytest.fixture(scope="module")
def clip() -> reco.Clip:
    return reco.Clip.load(ROOT / "examples/icons/clip")


@pytest.fixture
def rows() -> np.ndarray:
    rows = np.random.default_rng(0).standard_normal((6, DIM)).astype(np.float16).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def memory(tmp_path: Path, rows: np.ndarray) -> reco.Memory:
    memory = reco.Memory.create(tmp_path / "memory.reco", DIM)
    memory.add(rows, rows[::-1], keys=list("abcdef"))
    return memory


def kinds(rows: np.ndarray) -> dict[str, Any]:
    """The same numbers in many forms."""
    wide = np.zeros((6, 2 * DIM), np.float32)
    wide[:, ::2] = rows
    tensor = torch.from_numpy(rows)
    return {
        "float64": rows.astype(np.float64),
        "strided": wide[:, ::2],
        "Fortran order": np.asfortranarray(rows),
        "list": rows.tolist(),
        "read-only": np.frombuffer(rows.tobytes(), np.float32).reshape(rows.shape),
        "tensor": tensor,
        "float64 tensor": tensor.double(),
        "tensor with a gradient": tensor.clone().requires_grad_(True),
        "tensor in a graph": 1.0 * tensor.clone().requires_grad_(True),
        "strided tensor": torch.from_numpy(wide)[:, ::2],
        "transposed tensor": tensor.T.contiguous().T,
        "DLPack alone": OnlyDlpack(rows),
    }


@pytest.mark.parametrize("kind", kinds(np.zeros((6, DIM), np.float32)))
def test_any_array_gives_the_same(memory: reco.Memory, rows: np.ndarray, kind: str) -> None:
    given, expected = kinds(rows)[kind], memory.search(rows, k=3)
    found = memory.search(given, k=3)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.scores, expected.scores)
    fusion = reco.Fusion.mean(DIM)
    fused = fusion.fuse("image", given, torch.from_numpy(found.scores), torch.from_numpy(found.partners))
    plain = fusion.fuse("image", rows, expected.scores, expected.partners)
    np.testing.assert_array_equal(fused["embeddings"], plain["embeddings"])
    np.testing.assert_array_equal(reco.ranks(given, given, range(6)), np.zeros(6))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(memory: reco.Memory, rows: np.ndarray, dtype: torch.dtype) -> None:
    tensor = torch.from_numpy(rows).to(dtype)
    expected = memory.search(tensor.float().numpy(), k=3)
    for given in (tensor, tensor.clone().requires_grad_(True), tensor[::1].T.contiguous().T):
        np.testing.assert_array_equal(memory.search(given, k=3).scores, expected.scores)
    memory.upsert(tensor, tensor, keys=list("abcdef"))
    assert memory.search(tensor, k=1).keys == [[key] for key in "abcdef"]


def test_whole_numbers(rows: np.ndarray) -> None:
    labels = [0, 1, 2, 3, 4, 5]
    expected = reco.classify(rows, rows, labels)[0]
    for given in (np.array(labels, np.int32), torch.tensor(labels), np.array(labels, np.uint8), tuple(labels)):
        assert reco.classify(torch.from_numpy(rows), rows, given)[0] == expected
    with pytest.raises(TypeError, match="expected an array of whole numbers, got one of float64"):
        reco.classify(rows, rows, [0.5] * 6)


def test_pictures(clip: reco.Clip) -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (3, 40, 50, 3), np.uint8)
    expected = clip.encode_images(pictures)
    tensor = torch.from_numpy(pictures)
    np.testing.assert_array_equal(clip.encode_images(tensor), expected)
    np.testing.assert_array_equal(clip.encode_images(list(tensor)), expected)
    np.testing.assert_array_equal(
        clip.encode_images(tensor.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)), expected
    )
    np.testing.assert_allclose(clip.encode_images(tensor[0]), expected[:1], atol=1e-6)  # another batch
    np.testing.assert_array_equal(clip.preprocess(tensor[0]), clip.preprocess(pictures[0]))
    with pytest.raises(reco.Error, match="must be a uint8 array, got float32"):
        clip.encode_images(tensor.float())


def peak(call: Any) -> int:
    """Bytes that NumPy takes during a call."""
    tracemalloc.start()
    call()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def test_float32_comes_in_without_a_copy() -> None:
    rows = np.zeros((2_000_000, 4), np.float32)  # 32 MB
    tensor = torch.from_numpy(rows)
    for given in (rows, tensor, tensor.clone().requires_grad_(True), OnlyDlpack(rows)):
        with pytest.raises(reco.Error):  # after its shape was looked at
            assert peak(lambda given=given: reco.average_prompts(given, 7)) < 1 << 20
        tracemalloc.stop()
        most = peak(lambda given=given: reco.average_prompts(given, 2_000_000))
        assert most < 1 << 20, (type(given), most)
    assert peak(lambda: reco.average_prompts(rows.astype(np.float64), 2_000_000)) > 32 << 20


def test_results_are_shared_with_torch(clip: reco.Clip, memory: reco.Memory, rows: np.ndarray) -> None:
    found = memory.search(rows, k=2)
    fused = reco.Fusion.mean(DIM).fuse("text", rows, found.scores, found.partners)
    results: list[Any] = [
        clip.encode_texts(["a", "b"]), clip.encode_images(np.zeros((2, 9, 9, 3), np.uint8)), found.rows, found.scores,
        found.partners, memory.embeddings("image"), memory.get("a").image_embedding, *fused.values(),
        reco.ranks(rows, rows, range(6)), reco.classify(rows, rows, range(6))[1], clip.tokenizer(["a"]),
        clip.preprocess(np.zeros((9, 9, 3), np.uint8)), reco.vote(found.scores, found.rows, 6),
    ]  # fmt: skip
    for array in results:
        tensor = torch.from_dlpack(array)  # type: ignore[attr-defined]
        assert tensor.data_ptr() == array.ctypes.data and tuple(tensor.shape) == array.shape
        assert array.flags.writeable
        tensor.fill_(3)
        assert (array == 3).all()


def test_what_is_no_array(memory: reco.Memory) -> None:
    for wrong, found in ((["a"], "<U1"), (np.array([1j]), "complex128"), (object(), "object"), ({"a": 1}, "object")):
        with pytest.raises(TypeError, match=f"expected an array of numbers, got one of {found}"):
            memory.search(wrong)
    with pytest.raises(ValueError, match="inhomogeneous"):
        memory.search([[1.0], [1.0, 2.0]])
