# SPDX-License-Identifier: Apache-2.0
"""The Python package as a whole: a quick start, and its names."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

import reco

ROOT = Path(__file__).parents[2]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_every_name_is_there() -> None:
    for name in reco.__all__:
        assert getattr(reco, name) is not None
    assert set(reco.__all__) <= set(dir(reco))
    assert reco.Memory.__module__ == reco.Clip.__module__ == "reco"
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = reco.absent


def processor_seconds(*arguments: str) -> float:
    """The least of five runs, since the machine may be busy."""
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert python(*arguments).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def test_start_is_quick() -> None:
    heavy = "{'numpy', 'torch', 'reco._core', 'matplotlib', 'PIL', 'pyarrow', 'pymilvus'}"
    code = f"import sys; import reco.cli; assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    result = python("-c", code)
    assert result.returncode == 0, result.stderr
    assert processor_seconds("-m", "reco.cli", "--help") < 0.3
    assert processor_seconds("-c", "import reco") < 0.5
