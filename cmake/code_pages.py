# SPDX-License-Identifier: Apache-2.0
"""Writes what ten one-byte encodings have from byte 0x80 on, which Python knows, as C++ initialisers.

Text that was meant to be UTF-8 is looked for in them in this order. Where a Windows encoding has nothing, the byte
stands for itself, as browsers have it; these also keep what could not be decoded.
"""

import sys
from pathlib import Path

WINDOWS = ("cp1252", "cp1251", "cp1250", "cp1253", "cp1254", "cp1257")
ORDER = ("latin-1", *WINDOWS, "iso-8859-2", "mac-roman", "cp437")


def character(byte: int, encoding: str) -> int:
    """The code point of a byte."""
    text = bytes([byte]).decode(encoding, errors="replace")
    return byte if text == "\ufffd" else ord(text)


lines = []
for name in ORDER:
    points = ", ".join(hex(character(byte, name)) for byte in range(0x80, 0x100))
    lines.append(f"{{{str(name in WINDOWS).lower()}, {str(name == 'mac-roman').lower()}, {{{points}}}}},")
Path(sys.argv[1]).write_text("\n".join(lines) + "\n", encoding="ascii")
