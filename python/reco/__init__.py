# SPDX-License-Identifier: Apache-2.0
"""reco makes a frozen CLIP model better by letting it look things up (RECO, arXiv 2306.07196).

>>> import reco
>>> clip = reco.Clip.load("clip-vit-base-patch32")  # doctest: +SKIP
>>> memory = reco.Memory.open("birds.reco")  # doctest: +SKIP
>>> model = reco.Model(clip, memory, reco.Fusion.load("fusion.safetensors"))  # doctest: +SKIP
>>> model.encode_images(["photo.jpg"])  # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import importlib
import logging
from typing import TYPE_CHECKING, Any

from reco import _libtorch

if TYPE_CHECKING:
    from reco._core import (
        Clip,
        Error,
        Fusion,
        FusionConfig,
        Memory,
        MemoryBase,
        MemoryRow,
        Neighbors,
        Preprocess,
        Tokenizer,
        TrainingConfig,
        average_prompts,
        blend,
        bootstrap,
        classify,
        decode_image,
        harmonic_mean,
        prompts,
        ranks,
        read_image,
        resize,
        retrieve,
        set_threads,
        threads,
        train,
        vote,
    )
    from reco.evaluation.zero_shot import Votes, evaluate, zero_shot
    from reco.explanation import Explanation
    from reco.milvus import MilvusMemory as MilvusMemory
    from reco.model import Model

_libtorch.prepare()
logging.getLogger(__name__).addHandler(logging.NullHandler())  # who wants to read it says so

__version__ = "0.1.0"

__all__ = [
    "Clip",
    "Error",
    "Explanation",
    "Fusion",
    "FusionConfig",
    "Memory",
    "MemoryBase",
    "MemoryRow",
    "Model",
    "Neighbors",
    "Preprocess",
    "Tokenizer",
    "TrainingConfig",
    "Votes",
    "average_prompts",
    "blend",
    "bootstrap",
    "classify",
    "decode_image",
    "evaluate",
    "harmonic_mean",
    "prompts",
    "ranks",
    "read_image",
    "resize",
    "retrieve",
    "set_threads",
    "threads",
    "train",
    "vote",
    "zero_shot",
]

# Names that do not come from the compiled core.
_PYTHON = {
    "Explanation": "explanation",
    "MilvusMemory": "milvus",
    "Model": "model",
    "Votes": "evaluation",
    "evaluate": "evaluation",
    "zero_shot": "evaluation",
}
_MODULES = ("datasets", "embedding", "evaluation", "exchange", "plotting")


def __getattr__(name: str) -> Any:
    """Load what is asked for when it is asked for: the core links LibTorch, which `reco --help` can do without."""
    if name in _MODULES:
        return importlib.import_module(f"reco.{name}")
    if name not in __all__ and name not in _PYTHON:
        raise AttributeError(f"module 'reco' has no attribute '{name}'")
    value = globals()[name] = getattr(importlib.import_module(f"reco.{_PYTHON.get(name, '_core')}"), name)
    if name not in _PYTHON:
        with contextlib.suppress(AttributeError, TypeError):
            value.__module__ = "reco"  # what users see in errors and help, not where it was compiled
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, *_MODULES])
