# SPDX-License-Identifier: Apache-2.0
"""Writes the merges of CLIP's vocabulary as C++ string literals, a line each.

The library carries them for models that bring no vocabulary. They lie in the repository once, with the model of the
examples; examples/icons/clip/LICENSE-vocabulary.txt says whose they are.
"""

import sys
from pathlib import Path

MERGES = Path(__file__).parents[1] / "examples/icons/clip/merges.txt"


def literal(line: bytes) -> str:
    """Quote bytes; what is not plain ASCII, or may begin a trigraph, as three octal digits."""
    plain = {byte: chr(byte) for byte in range(0x20, 0x7F) if chr(byte) not in '"\\?'}
    return '"' + "".join(plain.get(byte, f"\\{byte:03o}") for byte in line) + '"'


lines = [literal(line) for line in MERGES.read_bytes().splitlines(keepends=True)]
Path(sys.argv[1]).write_text("\n".join(lines) + "\n", encoding="ascii")
