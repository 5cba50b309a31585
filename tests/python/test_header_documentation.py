# SPDX-License-Identifier: Apache-2.0
"""The public headers as a manual: Doxygen renders them without a warning, and what is undocumented is one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from cpp_projects import BUILD, ROOT

pytestmark = pytest.mark.skipif(
    shutil.which("doxygen") is None or not (BUILD / "Doxyfile").exists(), reason="doxygen is not installed"
)


def render(folder: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    """Run Doxygen as the build target `docs` does, but into another folder, with settings that replace its own."""
    text = "\n".join([(BUILD / "Doxyfile").read_text("utf-8"), f"OUTPUT_DIRECTORY = {folder}", *settings])
    return subprocess.run(["doxygen", "-"], input=text, capture_output=True, text=True, check=False)


def test_headers_render_without_a_warning(tmp_path: Path) -> None:
    result = render(tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    pages = "\n".join(page.read_text("utf-8") for page in (tmp_path / "cpp").glob("*.html"))
    assert (tmp_path / "cpp/index.html").is_file()
    for header in (ROOT / "include/reco").iterdir():
        assert f"reco/{header.name}" in pages
    for name in ("classreco_1_1Memory", "structreco_1_1SearchOptions", "namespacereco"):
        assert (tmp_path / f"cpp/{name}.html").is_file()
    assert "live_memory MODEL MEMORY FOLDER" in pages  # the examples are part of the manual


def test_undocumented_name_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "new.h").write_text("/// @file\n/// New.\nnamespace reco {\nint forgotten(int value);\n}\n", "utf-8")
    result = render(tmp_path, f"INPUT = {tmp_path}")
    assert result.returncode != 0
    assert "forgotten" in result.stderr and "not documented" in result.stderr
