# SPDX-License-Identifier: Apache-2.0
"""Captioned pictures of another kind: the stamps of Tux Paint, most of them photographs, from Debian's package."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from reco.datasets import Sample

PACKAGE = "tuxpaint-stamps-default"


def _unpack(folder: Path) -> bool:
    """Fetch and unpack the package with Debian's own tools, without installing it."""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    fetched = subprocess.run(["apt-get", "download", PACKAGE], cwd=folder, capture_output=True, check=False)
    found = sorted(folder.glob(f"{PACKAGE}_*.deb"))
    if fetched.returncode or not found:
        return False
    subprocess.run(["dpkg-deb", "-x", str(found[0]), str(folder / "unpacked")], check=True)
    return True


def photographs(folder: Path) -> list[Sample] | None:
    """Every stamp that has an English caption; None when the package cannot be fetched."""
    if not (folder / "unpacked").exists() and not _unpack(folder):
        return None
    samples = []
    for image in sorted((folder / "unpacked").rglob("*.png")):
        words = image.with_suffix(".txt")
        if not words.exists():
            continue
        caption = words.read_text("utf-8", "replace").partition("\n")[0].strip()
        if caption:
            samples.append(Sample(image.stem, image.read_bytes(), caption, {"concept": image.stem}))
    # Two stamps of one name in different folders are one too many: keys are unique.
    return list({sample.key: sample for sample in samples}.values())
