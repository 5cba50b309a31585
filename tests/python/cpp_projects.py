# SPDX-License-Identifier: Apache-2.0
"""What the tests of the C++ library share: commands, outside projects, drawings as files."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from reco.datasets import Sample, read_samples

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build/release"
CLIP = ROOT / "examples/icons/clip"
DATA = ROOT / "examples/icons/data"


def run(*command: str | Path, status: int = 0, environment: Mapping[str, str] | None = None) -> str:
    """What a command prints, errors included; it must end with this status."""
    result = subprocess.run(
        list(map(str, command)),
        env=os.environ | dict(environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == status, f"{command} ended with {result.returncode}:\n{result.stdout}"
    return result.stdout


def build(source: Path, folder: Path, *options: str) -> Path:
    """Build somebody's CMake project, warnings as errors; the folder with its programs."""
    flags = ("-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror")
    run("cmake", "-S", source, "-B", folder, "-G", "Ninja", *flags, *options)
    run("cmake", "--build", folder)
    return folder


def cached(name: str) -> str:
    """The value of a variable in the cache of the build folder, "" where it is not there."""
    for line in (BUILD / "CMakeCache.txt").read_text("utf-8").splitlines():
        if line.startswith(name + ":"):
            return line.partition("=")[2]
    return ""


def drawings(shard: str, role: str) -> dict[str, list[Sample]]:
    """The emoji of a shard by concept; `role` is "known" where the CLIP was trained on them, else "unseen"."""
    found: dict[str, list[Sample]] = {}
    for sample in read_samples(DATA / shard):
        if sample.metadata["domain"] == "emoji" and sample.metadata["role"] == role:
            found.setdefault(sample.metadata["concept"], []).append(sample)
    return dict(sorted(found.items()))


def write(folder: Path, samples: list[Sample]) -> list[Path]:
    """Drawings as picture files, each with its concept in a text file beside it."""
    folder.mkdir(exist_ok=True)
    files = [folder / f"{sample.key}.webp" for sample in samples]
    for file, sample in zip(files, samples, strict=True):
        file.write_bytes(sample.image)
        file.with_suffix(".txt").write_text(sample.metadata["concept"] + "\n", "utf-8")
    return files
