# SPDX-License-Identifier: Apache-2.0
"""CLIP's tokenizer, enough of it for captions."""

from __future__ import annotations

import gzip
import html
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from recipe.config import BOS, EOS


def read_bpe(path: Path) -> list[str]:
    """The merges of CLIP's vocabulary, from the list itself or from the open_clip wheel that carries it."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            packed = wheel.read("open_clip/bpe_simple_vocab_16e6.txt.gz")
    else:
        packed = path.read_bytes()
    lines = gzip.decompress(packed).decode().split("\n")
    return lines[1 : 49152 - 256 - 2 + 1]


def byte_characters() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {**{b: chr(b) for b in plain}, **{b: chr(256 + i) for i, b in enumerate(rest)}}


class Tokenizer:
    """CLIP's byte-pair encoding (Sennrich et al. 2016; GPT-2's byte alphabet), enough of it for captions."""

    def __init__(self, merges: list[str]) -> None:
        self.bytes = byte_characters()
        letters = list(self.bytes.values())
        words = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge.split()) for merge in merges)]
        self.vocabulary = {word: index for index, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
        self.ranks = {tuple(merge.split()): rank for rank, merge in enumerate(merges)}
        self.cache: dict[str, list[int]] = {}
        self.pattern = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|[^\s\w]+|_", re.IGNORECASE)

    def encode(self, text: str) -> list[int]:
        """Token ids between begin and end."""
        words = self.pattern.findall(html.unescape(text).lower().strip())
        return [BOS, *(token for word in words for token in self._word(word)), EOS]

    def _word(self, word: str) -> list[int]:
        if word not in self.cache:
            self.cache[word] = [self.vocabulary[part] for part in self._merge(word)]
        return self.cache[word]

    def _merge(self, word: str) -> list[str]:
        parts = [self.bytes[byte] for byte in word.encode()]
        parts[-1] += "</w>"
        while len(parts) > 1:
            pairs = [self.ranks.get(pair, len(self.ranks)) for pair in zip(parts, parts[1:], strict=False)]
            best = min(range(len(pairs)), key=pairs.__getitem__)
            if pairs[best] == len(self.ranks):
                break
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        return parts

    def batch(self, texts: Sequence[str], context: int) -> Tensor:
        """Ids [n, longest], ended and padded with the end token as CLIP does."""
        return pad([self.encode(text) for text in texts], context)


def pad(rows: list[list[int]], context: int) -> Tensor:
    """A rectangle of ids; a row that is too long keeps its end token."""
    rows = [row if len(row) <= context else [*row[: context - 1], EOS] for row in rows]
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [EOS] * (longest - len(row)) for row in rows])


def babble(count: int, generator: torch.Generator) -> list[list[int]]:
    """Random token rows without ends: names nobody has, so that the text tower keeps names it never saw apart."""
    lengths = torch.randint(1, 5, (count,), generator=generator).tolist()
    return [torch.randint(256, BOS, (length,), generator=generator).tolist() for length in lengths]
