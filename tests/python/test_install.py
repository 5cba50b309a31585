# SPDX-License-Identifier: Apache-2.0
"""An outside CMake project finds the installed library, builds and runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build/release"


def run(*command: str | Path) -> str:
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert result.returncode in (0, 2), result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.mark.skipif(not (BUILD / "CMakeCache.txt").exists(), reason="setup.sh has not built here")
def test_outside_project(tmp_path: Path) -> None:
    prefix = tmp_path / "prefix"
    run("cmake", "--install", BUILD, "--component", "cpp", "--prefix", prefix)
    assert (prefix / "include/reco/reco.h").exists()
    run("cmake", "-S", ROOT / "examples/cpp", "-B", tmp_path / "build", "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", tmp_path / "build")
    assert run(tmp_path / "build/zero_shot").startswith("usage: zero_shot")


def test_import_is_light_and_before_or_after_torch() -> None:
    """`import reco` loads no torch module; both import orders work in one process."""
    run(sys.executable, "-c", "import sys, reco; assert 'torch' not in sys.modules; assert reco.threads() > 0")
    for order in ("import reco, torch", "import torch, reco"):
        code = f"{order}; torch.ones(2) @ torch.ones(2); reco.Fusion.create(reco.FusionConfig(dim=16))"
        assert run(sys.executable, "-c", code) == ""
