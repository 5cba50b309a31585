# SPDX-License-Identifier: Apache-2.0
"""Writes HTML's named character references, which Python knows, as C++ initialisers, sorted by name.

Behind the name and its text stands what ftfy takes the name in capitals for; nothing where it does not.
"""

import html
import sys
from html.entities import html5
from pathlib import Path


def points(text: str) -> str:
    """Write a text as a list of code points."""
    return "{" + ", ".join(hex(ord(character)) for character in text) + "}"


def capital(name: str, text: str) -> str:
    """Give the text of the name in capitals, if ftfy accepts it and HTML has no such name."""
    shouted = "&" + name.upper()
    usable = name.endswith(";") and name == name.lower() and html.unescape(shouted) == shouted
    return text.upper() if usable else ""


lines = [f'{{"{name}", {points(text)}, {points(capital(name, text))}}},' for name, text in sorted(html5.items())]
Path(sys.argv[1]).write_text("\n".join(lines) + "\n", encoding="ascii")
