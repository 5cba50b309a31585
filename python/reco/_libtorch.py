# SPDX-License-Identifier: Apache-2.0
"""Loads LibTorch before the compiled core, where torch is not installed in the folder in which reco is.

The core looks for it there alone; a virtual environment that sees the system's packages has it elsewhere.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path


def load() -> None:
    """Load torch's libraries from wherever Python finds torch, without importing it."""
    import ctypes

    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("reco needs torch 2.13.0, found none: pip install torch==2.13.0")
    ctypes.CDLL(str(Path(spec.submodule_search_locations[0]) / "lib/libtorch_cpu.so"))


class BeforeCore:
    """Finds no module itself: loads LibTorch when the core is looked for, not before, since it takes half a second."""

    @staticmethod
    def find_spec(name: str, path: object, target: object = None) -> ModuleSpec | None:
        """Called by Python for every module that it has not loaded yet."""
        if name == "reco._core":
            load()
        return None


def prepare() -> None:
    """See to it that the core finds LibTorch when it is imported."""
    if not (Path(__file__).parents[1] / "torch/lib").is_dir():
        sys.meta_path.insert(0, BeforeCore)
