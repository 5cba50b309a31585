# SPDX-License-Identifier: Apache-2.0
"""The corpus through the tokenizers of Hugging Face, and of open_clip and OpenAI as written here from their rules."""

from __future__ import annotations

import gzip
import html
import importlib.util
import json
import random
import shutil
import string
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import pytest
import regex

import reco
from text_corpus import EMOJI, corpus

ICONS = Path(__file__).parents[2] / "examples" / "icons" / "clip"
MAX = 1_000_000


class SimpleTokenizer:
    """Text is cleaned, split by a pattern that ignores case, and each word's bytes are merged, best pair first."""

    def __init__(self, start: str, end: str, clean: str = "lower") -> None:
        vocabulary = json.loads((ICONS / "vocab.json").read_text(encoding="utf-8"))
        self.ids = vocabulary | {start: 49406, end: 49407}
        lines = (ICONS / "merges.txt").read_text(encoding="utf-8").split("\n")[1:]
        self.ranks = {tuple(line.split()): i for i, line in enumerate(lines) if line}
        self.special, self.clean_up = (start, end), clean
        names = f"{regex.escape(start)}|{regex.escape(end)}"
        self.pattern = regex.compile(
            names + r"|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", regex.IGNORECASE
        )
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [byte for byte in range(256) if byte not in printable]
        self.symbols = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
        self.merged = cache(self.merge)

    def clean(self, text: str) -> str:
        text = ftfy.fix_text(text)
        text = html.unescape(html.unescape(text)).strip()
        if self.clean_up == "canonicalize":
            text = text.replace("_", " ").translate(str.maketrans("", "", string.punctuation)).lower()
            return " ".join(text.split())
        text = " ".join(text.split())
        return text.lower() if self.clean_up == "lower" else text

    def merge(self, word: str) -> list[int]:
        if word in self.special:
            return [self.ids[word]]
        tokens = [self.symbols[byte] for byte in word.encode()]
        tokens[-1] += "</w>"
        while len(tokens) > 1:
            best = min(zip(tokens, tokens[1:], strict=False), key=lambda pair: self.ranks.get(pair, MAX))
            if best not in self.ranks:
                break
            merged, i = [], 0
            while i < len(tokens):
                joined = tuple(tokens[i : i + 2]) == best
                merged.append("".join(best) if joined else tokens[i])
                i += 2 if joined else 1
            tokens = merged
        return [self.ids[token] for token in tokens]

    def __call__(self, text: str) -> list[int]:
        words = self.pattern.findall(self.clean(text))
        return [49406, *(token for word in words for token in self.merged(word)), 49407]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    made = corpus(22_000)
    assert len(made) >= 20_000 and "" in made and max(map(len, made)) > 1000
    return made


def test_hugging_face(texts: list[str]) -> None:
    transformers = pytest.importorskip("transformers", minversion="5")
    reference, tokenizer = transformers.CLIPTokenizer.from_pretrained(ICONS), reco.Tokenizer.load(ICONS)
    assert tokenizer.cleaning == "hugging face"
    for text, ids in zip(texts, reference(texts)["input_ids"], strict=True):
        assert tokenizer.encode(text, MAX) == ids, repr(text)
    cut = reference(texts, padding="max_length", truncation=True, max_length=77)["input_ids"]
    np.testing.assert_array_equal(tokenizer(texts), np.array(cut))


def open_clip_folder(folder: Path, text_cfg: dict[str, Any]) -> Path:
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(ICONS / name, folder)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"text_cfg": text_cfg}}))
    return folder


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_open_clip(texts: list[str], clean: str, tmp_path: Path) -> None:
    chosen = texts if clean == "lower" else texts[::7]
    options = {} if clean == "lower" else {"tokenizer_kwargs": {"clean": clean}}
    tokenizer = reco.Tokenizer.load(open_clip_folder(tmp_path, options))
    assert tokenizer.cleaning == f"open_clip {clean}"
    reference = SimpleTokenizer("<start_of_text>", "<end_of_text>", clean)
    expected = [reference(text) for text in chosen]
    for text, ids in zip(chosen, expected, strict=True):
        assert tokenizer.encode(text, MAX) == ids, repr(text)
    for row, ids in zip(tokenizer(chosen, 16).tolist(), expected, strict=True):
        cut = ids if len(ids) <= 16 else [*ids[:15], 49407]
        assert row == cut + [0] * (16 - len(cut))


def test_random_strings(tmp_path: Path) -> None:
    """Any code points, in any order."""
    rng = random.Random(11)
    tokenizer = reco.Tokenizer.load(open_clip_folder(tmp_path, {}))
    reference = SimpleTokenizer("<start_of_text>", "<end_of_text>")
    known = [c for c in map(chr, range(0x30000)) if c.isprintable() or c in "\t\n\r\x1b\x85\u2028"]
    for _ in range(3000):
        alphabet = rng.choices(known, k=8) + list("&#x;<'\" s1A\u0301\u03a3")
        text = "".join(rng.choices(alphabet, k=rng.randint(0, 40)))
        assert tokenizer.encode(text, MAX) == reference(text), repr(text)


def test_every_reference_of_html(tmp_path: Path) -> None:
    from html.entities import html5

    tokenizer = reco.Tokenizer.load(open_clip_folder(tmp_path, {}))
    reference = SimpleTokenizer("<start_of_text>", "<end_of_text>")
    for name in html5:
        for text in (f"a&{name}b", f"<&{name}x;", f"&{name.upper()} {name}"):
            assert tokenizer.encode(text, MAX) == reference(text), text


# What ftfy looks for: Python's names of encodings of one byte a character.
ENCODINGS = ["latin-1", "cp1252", "cp1251", "cp1250", "cp1253", "cp1254", "cp1257", "iso-8859-2", "mac-roman", "cp437"]
WRITTEN = ["Café Zürich, naïve coöperation — “quotes” & ‘apostrophes’… ½ price: 5 €", "Привет, мир", "東京タワー",
           "à quele às voilà déjà à", "Ελληνικά Άλφα", "عربى مرحبا", "Łódź žluťoučký kůň", "Ā š ģ ķ", "हिन्दी தமிழ்",
           "¿Qué? ¡Sí! ©®™", "a\xa0b\xa0c Š Π Р ٠", "👍🏽 한국어", "\x00 x"]  # fmt: skip


def misread(text: str, rng: random.Random) -> str:
    """Write it as UTF-8, or as old Java and Oracle do, and read that in another encoding, as browsers have it."""
    encoding = rng.choice(ENCODINGS)
    data = text.encode()
    if rng.random() < 0.2:
        halves = map(chr, np.frombuffer(text.encode("utf-16-le"), "<u2").tolist())
        data = "".join(halves).encode("utf-8", "surrogatepass").replace(b"\0", b"\xc0\x80")
    return "".join(bytes([b]).decode(encoding, "ignore") or chr(b) for b in data)


def mangled(rng: random.Random) -> str:
    """Misread once to three times; then some of it is lost, and other text stands around it."""
    text = " ".join(rng.sample(WRITTEN, rng.randint(1, 3)))
    text = text[rng.randint(0, 9) :][: rng.randint(1, 40)] if rng.random() < 0.5 else text
    for _ in range(rng.randint(1, 3)):
        text = misread(text, rng)
    points = list(text)
    for _ in range(rng.randint(0, 4) if points and rng.random() < 0.5 else 0):
        points[rng.randrange(len(points))] = rng.choice(["\ufffd", "?", " ", "\x1a", "a", "é", "\x9d", "Ф", "°", "├"])
    text = "".join(points)
    text = text.replace("\xa0", " ") if rng.random() < 0.3 else text
    return rng.choice(["", "x ", "東 ", "Ж", "\n", "Ã "]) + text + rng.choice(["", " y", "東", "\n", " &amp;"])


def is_assigned(text: str) -> bool:
    """Whether what ftfy makes of it are characters whose class does not depend on the version of Unicode."""
    return "Cn" not in map(unicodedata.category, ftfy.fix_text(text))


def test_what_was_read_in_a_wrong_encoding(tmp_path: Path) -> None:
    """Ids are those of the text that was meant, where ftfy finds it, and of what it makes of it where it does not."""
    tokenizer, rng = reco.Tokenizer.load(open_clip_folder(tmp_path, {})), random.Random(5)
    assert tokenizer.encode("cafÃ©") == tokenizer.encode("caf&Atilde;&copy;") == tokenizer.encode("café")
    reference = SimpleTokenizer("<start_of_text>", "<end_of_text>")
    texts = [mangled(rng) for _ in range(6000)]
    alphabet = [chr(c) for c in range(0x80, 0x2600) if any(chr(c).encode(e, "ignore") for e in ENCODINGS)]
    texts += ["".join(rng.choices(alphabet + list("ab Z1.,\n?\x1a_"), k=rng.randint(1, 12))) for _ in range(9000)]
    assert sum(ftfy.fix_encoding(text) != text for text in texts) > 4000
    for text in filter(is_assigned, texts):
        assert tokenizer.encode(text, MAX) == reference(text), ascii(text)


def test_usual_text_is_not_taken_for_misread(tmp_path: Path) -> None:
    tokenizer = reco.Tokenizer.load(open_clip_folder(tmp_path, {}))
    reference = SimpleTokenizer("<start_of_text>", "<end_of_text>")
    for text in [*WRITTEN, *EMOJI]:
        assert ftfy.fix_encoding(text) == text
        assert tokenizer.encode(text) == reference(text)


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_open_clips_own_tokenizer(texts: list[str], clean: str, tmp_path: Path) -> None:
    """The class itself, with the vocabulary that comes with it; its package would ask for torchvision."""
    package = importlib.util.find_spec("open_clip")
    if package is None or not package.submodule_search_locations:
        pytest.skip("open_clip is not installed")
    folder = Path(package.submodule_search_locations[0])
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", folder / "tokenizer.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    reference = module.SimpleTokenizer(clean=clean)
    shutil.copy(folder / "bpe_simple_vocab_16e6.txt.gz", tmp_path)
    model = {"text_cfg": {"tokenizer_kwargs": {"clean": clean}}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    tokenizer = reco.Tokenizer.load(tmp_path)
    assert (len(tokenizer), tokenizer.start_id, tokenizer.end_id) == (
        reference.vocab_size,
        reference.sot_token_id,
        reference.eot_token_id,
    )
    rng = random.Random(8)
    chosen = [*(texts if clean == "lower" else texts[::9]), *filter(is_assigned, (mangled(rng) for _ in range(1000)))]
    found = [tokenizer.encode(text, MAX)[1:-1] for text in chosen]
    for text, ids in zip(chosen, found, strict=True):
        assert ids == reference.encode(text), ascii(text)
    np.testing.assert_array_equal(tokenizer(chosen[-3000:]), reference(chosen[-3000:]).numpy())


def test_openai(texts: list[str], tmp_path: Path) -> None:
    """The vocabulary as it comes with OpenAI's package: beside the archive, compressed or not."""
    lines = (ICONS / "merges.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")[1:]
    content = "\n".join(['"bpe_simple_vocab_16e6.txt#version: 0.2', *lines, *(f"x{i} y" for i in range(50))]).encode()
    reference = SimpleTokenizer("<|startoftext|>", "<|endoftext|>")
    (tmp_path / "RN50.pt").touch()
    (tmp_path / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress(content))
    tokenizer = reco.Tokenizer.load(tmp_path / "RN50.pt")
    assert (len(tokenizer), tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id) == (49408, 49406, 49407, 0)
    for text in texts[::11]:
        assert tokenizer.encode(text, MAX) == reference(text), repr(text)
    (tmp_path / "bpe_simple_vocab_16e6.txt.gz").unlink()
    (tmp_path / "bpe_simple_vocab_16e6.txt").write_bytes(content)
    assert reco.Tokenizer.load(tmp_path / "RN50.pt").encode(texts[7]) == tokenizer.encode(texts[7])
    (tmp_path / "bpe_simple_vocab_16e6.txt").write_bytes(content[:1000])
    with pytest.raises(reco.Error, match="bpe_simple_vocab_16e6.txt"):
        reco.Tokenizer.load(tmp_path / "RN50.pt")


def test_what_the_library_carries(texts: list[str], tmp_path: Path) -> None:
    """CLIP's vocabulary, for folders that have none: every word that a merge makes, and the corpus."""
    (tmp_path / "open_clip_config.json").write_text("{}")
    own = reco.Tokenizer.load(tmp_path)
    assert (len(own), own.start_id, own.end_id, own.pad_id) == (49408, 49406, 49407, 0)
    (tmp_path / "given").mkdir()
    given = reco.Tokenizer.load(open_clip_folder(tmp_path / "given", {}))
    words = [word.removesuffix("</w>") for word in json.loads((ICONS / "vocab.json").read_text(encoding="utf-8"))]
    for text in words + texts[::5]:
        assert own.encode(text, MAX) == given.encode(text, MAX), repr(text)
    text_cfg = {"text_cfg": {"hf_tokenizer_name": "xlm-roberta-base"}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": text_cfg}))
    with pytest.raises(reco.Error, match="must have tokenizer.json, or vocab.json and merges.txt.*xlm-roberta-base"):
        reco.Tokenizer.load(tmp_path)


def test_messages_quote_what_is_no_utf8(tmp_path: Path) -> None:
    shutil.copy(ICONS / "vocab.json", tmp_path)
    (tmp_path / "merges.txt").write_bytes(b"#version: 0.2\n\xff\xfe\n")
    with pytest.raises(reco.Error, match="merge 1 must be two tokens and a space, got '\ufffd\ufffd'"):
        reco.Tokenizer.load(tmp_path)


def test_open_clip_with_a_hugging_face_tokenizer(tmp_path: Path) -> None:
    """Cleaned by open_clip, then split as Hugging Face does, whose special tokens and pad hold."""
    folder = open_clip_folder(tmp_path, {"hf_tokenizer_name": "openai/clip-vit-large-patch14"})
    tokenizer, plain = reco.Tokenizer.load(folder), reco.Tokenizer.load(ICONS)
    assert tokenizer.cleaning == "open_clip whitespace" and tokenizer.pad_id == 49407
    assert tokenizer.encode("A &amp;amp; “B” ﬁx") == plain.encode('A & "B" fix') != plain.encode("A &amp;amp; “B” ﬁx")
