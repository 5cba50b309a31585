# SPDX-License-Identifier: Apache-2.0
"""Names for what reco's functions take, to annotate one's own functions with.

Progress
    What every `progress` parameter takes: True for a bar, False or None for nothing, or a function of the items done
    and the items in all, which may return False to stop.
FloatArrayLike, IndexArrayLike
    Arrays of numbers: NumPy's, tensors of PyTorch's or of other libraries (DLPack), lists.
ByteImage, ImageLike
    Pixels uint8 [height, width, 3]; and all that can be read as an image.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import PIL.Image

__all__ = [
    "ByteImage",
    "ExcludeKeys",
    "Filter",
    "Fit",
    "FloatArrayLike",
    "Fuse",
    "ImageLike",
    "IndexArrayLike",
    "Method",
    "Modality",
    "PathLike",
    "Progress",
    "Search",
    "Sides",
    "Storage",
    "Tensor",
]


class Tensor(Protocol):
    """A tensor of PyTorch's or of another library that lends its memory by DLPack."""

    def __dlpack__(self, *, stream: Any = ...) -> Any:
        """Its memory, as the array API standard has it; `stream` is CUDA's."""


PathLike: TypeAlias = str | os.PathLike[str]
Progress: TypeAlias = bool | Callable[[int, int], object] | None
ByteImage: TypeAlias = npt.NDArray[np.uint8] | Tensor
ImageLike: TypeAlias = PathLike | bytes | bytearray | memoryview | ByteImage | PIL.Image.Image
FloatArrayLike: TypeAlias = npt.NDArray[Any] | Tensor | Sequence[float] | Sequence[Sequence[float]]
IndexArrayLike: TypeAlias = npt.NDArray[Any] | Tensor | Sequence[int] | Sequence[Sequence[int]]
ExcludeKeys: TypeAlias = list[str] | list[list[str]]
Modality: TypeAlias = Literal["image", "text"]
Method: TypeAlias = Literal["gated", "transformer", "mean"]
Search: TypeAlias = Literal["uni-modal", "cross-modal"]
Fuse: TypeAlias = Literal["partner", "same", "both"]
Sides: TypeAlias = Literal["both", "image", "text"]
Storage: TypeAlias = Literal["float16", "int8", "codes4", "codes2", "codes1"]
Fit: TypeAlias = Literal["stretch", "inside", "around"]
Filter: TypeAlias = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
