# SPDX-License-Identifier: Apache-2.0
"""The tokenizer against Hugging Face's CLIPTokenizer with the real vocabulary: every id is equal."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reco

CLIP = Path(__file__).parents[2] / "examples" / "icons" / "clip"
MAX = 1_000_000

TEXTS = [
    "",
    " ",
    "a",
    "a photo of a cat",
    "A Photo\tOf\n\r\x0b\x0c A   CAT  ",
    "it's I'LL we've they're I'm can't he'd 'tis rock'n'roll ''s '''s ' s '",
    "’s don’t ‘quoted’ “double”",
    "1234567890 3.14159 1,000,000 ½ ² Ⅷ ٣ 四 ४",
    "!?.,;:-_()[]{}<>|/\\@#$%^&*+=~`\"' !!! ... !'s -'t",
    "https://example.org/a_b?c=d&e=f#g user@example.org C++20 #hashtag 50% €5 £3 ¥7",
    "naïve café Zürich Straße ẞ İstanbul ı ŁÓDŹ Ærø Đặng ŉ ǅ",
    "e\u0301 u\u0308\u0304 a\u0316\u0301 a\u0301\u0316 \u0301 \u1100\u1161\u11a8 q\u0323\u0307 q\u0307\u0323",
    "ﬁ ﬂ Å Ω K ｆｕｌｌ ｗｉｄｔｈ ① ㎏",
    "Привет, мир! ЁЖИК",
    "Καλημέρα κόσμε ΣΊΣΥΦΟΣ ὈΔΥΣΣΕΎΣ",
    "שָׁלוֹם עולם",
    "مرحبا بالعالم ٱلْعَرَبِيَّة",
    "नमस्ते दुनिया क्षि",
    "বাংলা ગુજરાતી ਪੰਜਾਬੀ தமிழ் తెలుగు ಕನ್ನಡ മലയാളം සිංහල",
    "สวัสดีชาวโลก ລາວ မြန်မာ ខ្មែរ བོད་སྐད",
    "你好，世界。漢字仮名交じり文 こんにちは カタカナ ﾊﾝｶｸ",
    "안녕하세요 세계",
    "ქართული ᲥᲐᲠᲗᲣᲚᲘ հայերեն ՀԱՅԵՐԵՆ አማርኛ ᏣᎳᎩ ꮳꮃꭹ",
    "😀 👍🏽 👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 ❤️ 1️⃣ 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "\x00\x01\x1c\x1d\x1e\x1f\x7f\x80\x85\x9f\xa0\xad",
    "a\u200bb\u200cc\u200dd\u2060e\ufefff\u202eg\u2028h\u2029i\u3000j\u180ek",
    "\ufffd \ufffe \uffff \U0010ffff \ue000",
    "𝓗𝓮𝓵𝓵𝓸 𝔘𝔫𝔦 𐐀𐐨 𞤀𞤢",
    "<|startoftext|>",
    "<|endoftext|>",
    "a<|endoftext|>b <|startoftext|><|startoftext|> <|ENDOFTEXT|>!! <|StartOfText|>'s <|endoftext|",
    "<|ENDOFTEXT|><|STARTOFTEXT|><|ENDOFTEXT|>x !<|ENDOFTEXT|> <|endoftext|>\u0301",
    "antidisestablishmentarianism Donaudampfschifffahrtsgesellschaftskapitän",
    "the " * 500,
    "x" * 5000,
    "ab" * 3000 + "!" * 3000,
    "a\u0301" * 2000,
    "a" + "\u0301\u0316" * 300,
]

# Where random text comes from: blocks that combine, have cases or special classes, and everything else now and then.
BLOCKS = [(0x20, 0x7F), (0x41, 0x7B), (0x80, 0x250), (0x300, 0x370), (0x370, 0x530), (0x590, 0x700), (0x900, 0xE00),
          (0xE00, 0x1100), (0x1100, 0x1200), (0x1E00, 0x2070), (0x2070, 0x2C00), (0x3040, 0x3200), (0x4E00, 0x4F00),
          (0xAC00, 0xAD00), (0xFB00, 0xFE70), (0x1D400, 0x1D500), (0x1F300, 0x1FA00), (0, 0x110000)]  # fmt: skip
SPICE = [
    " ",
    "'s",
    "'ll",
    "'",
    "<|endoftext|>",
    "<|ENDOFTEXT|>",
    "<|startoftext|>",
    "<|",
    "\u0301",
    "\u0316",
    "\n",
    "the",
    "!",
]


def random_texts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        parts = []
        blocks = rng.sample(BLOCKS, rng.randint(1, 4))
        for _ in range(rng.randint(1, 30)):
            point = rng.randrange(*rng.choice(blocks))
            surrogate = 0xD800 <= point < 0xE000
            parts.append(rng.choice(SPICE) if surrogate or rng.random() < 0.2 else chr(point))
        texts.append("".join(parts))
    return texts


@pytest.fixture(scope="module")
def folder() -> Path:
    if not (CLIP / "vocab.json").exists():
        pytest.skip(f"{CLIP} has no vocabulary")
    return CLIP


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers", minversion="5")


def assert_same(folder: Path, transformers: Any, texts: list[str]) -> reco.Tokenizer:
    """Compares all ids, and padded rows at CLIP's length."""
    reference = transformers.CLIPTokenizer.from_pretrained(folder)
    tokenizer = reco.Tokenizer.load(folder)
    for text, ids in zip(texts, reference(texts)["input_ids"], strict=True):
        assert tokenizer.encode(text, MAX) == ids, repr(text)
    assert len(tokenizer) == len(reference)
    assert tokenizer.start_id == reference.bos_token_id
    assert tokenizer.end_id == reference.eos_token_id
    if reference.pad_token_id is not None:
        assert tokenizer.pad_id == reference.pad_token_id
        for length in (2, 3, 16, 77):
            padded = reference(texts, padding="max_length", truncation=True, max_length=length)["input_ids"]
            np.testing.assert_array_equal(tokenizer(texts, length), np.array(padded))
    return tokenizer


def test_texts(folder: Path, transformers: Any) -> None:
    assert_same(folder, transformers, TEXTS)


def test_random_texts(folder: Path, transformers: Any) -> None:
    assert_same(folder, transformers, random_texts(6000, 0))


def test_every_code_point(folder: Path, transformers: Any) -> None:
    """Alone, and between letters and marks that show how it normalises and splits."""
    points = [*range(0xD800), *range(0xE000, 0x32400), *range(0xE0000, 0xE0200), *range(0x10FFF0, 0x110000)]
    texts = []
    for start in range(0, len(points), 16):
        block = [chr(point) for point in points[start : start + 16]]
        texts.append(" ".join(f"{c} A{c}\u0316e\u0301{c}B" for c in block))
    reference = transformers.CLIPTokenizer.from_pretrained(folder)
    tokenizer = reco.Tokenizer.load(folder)
    for text, ids in zip(texts, reference(texts)["input_ids"], strict=True):
        assert tokenizer.encode(text, MAX) == ids, f"from U+{ord(text[0]):04X} on"


# ---- the folder's other files

NORMALIZED = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
SPECIAL_TEXTS = [
    *TEXTS,
    "hello! hi!!",
    "a <cat> and a <CAT> and <Dog><dog> <bird>",
    "<bird>!<|STARTOFTEXT|>x",
    "the <new one> <new  one>",
]


def copy_vocabulary(folder: Path, to: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(folder / name, to / name)


def save(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def test_folder_as_hugging_face_saves_it(folder: Path, transformers: Any, tmp_path: Path) -> None:
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<cat>", "<new one>"])
    tokenizer.add_special_tokens({"pad_token": "!", "extra_special_tokens": ["<Dog>"]})
    tokenizer.save_pretrained(tmp_path)
    assert not (tmp_path / "vocab.json").exists()
    assert_same(tmp_path, transformers, SPECIAL_TEXTS)


def test_tokenizer_json_with_merges_as_strings(folder: Path, transformers: Any, tmp_path: Path) -> None:
    transformers.CLIPTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]
    content["added_tokens"][0]["normalized"] = True  # as in the first CLIP repositories
    save(path, content)
    assert_same(tmp_path, transformers, SPECIAL_TEXTS)


@pytest.mark.parametrize("with_map", [False, True])
def test_first_clip_repositories(folder: Path, transformers: Any, tmp_path: Path, with_map: bool) -> None:
    """Their configs hold tokens as objects that are found in normalised text."""
    copy_vocabulary(folder, tmp_path)
    start: dict[str, Any] = {"content": "<|startoftext|>", **NORMALIZED}
    end: dict[str, Any] = {"content": "<|endoftext|>", **NORMALIZED}
    typed = {"__type": "AddedToken"}
    config: dict[str, Any] = {"bos_token": start | typed, "eos_token": end | typed, "unk_token": end | typed}
    config |= {"pad_token": "<|endoftext|>", "add_prefix_space": False, "do_lower_case": True, "model_max_length": 77}
    save(tmp_path / "tokenizer_config.json", config)
    if with_map:
        save(tmp_path / "special_tokens_map.json",
             {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": "<|endoftext|>"})  # fmt: skip
    assert_same(tmp_path, transformers, SPECIAL_TEXTS)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_pad_token(folder: Path, transformers: Any, tmp_path: Path, name: str) -> None:
    """Stable Diffusion's second encoder pads with '!', which then is a special token in texts, too."""
    copy_vocabulary(folder, tmp_path)
    save(tmp_path / name, {"pad_token": "!"})
    assert assert_same(tmp_path, transformers, SPECIAL_TEXTS).pad_id == 0


def test_added_tokens_decoder(folder: Path, transformers: Any, tmp_path: Path) -> None:
    copy_vocabulary(folder, tmp_path)
    token = {"lstrip": False, "rstrip": False, "single_word": False}
    added = {
        "49406": {"content": "<|startoftext|>", **token, "normalized": True, "special": True},
        "49407": {"content": "<|endoftext|>", **token, "normalized": False, "special": True},
        "49409": {"content": "<Dog>", **token, "normalized": False, "special": True},
        "49408": {"content": "<cat>", **token, "normalized": True, "special": False},
        "49410": {
            "content": "<New One>",
            **token,
            "normalized": True,
            "special": False,
            "lstrip": True,
            "rstrip": True,
        },
    }
    save(
        tmp_path / "tokenizer_config.json",
        {"added_tokens_decoder": added, "additional_special_tokens": ["<Dog>", "<bird>"]},
    )
    save(tmp_path / "special_tokens_map.json", {"pad_token": "!"})  # not looked at beside a decoder
    tokenizer = assert_same(tmp_path, transformers, SPECIAL_TEXTS)
    assert tokenizer.encode("<CAT><Dog><bird>") == [49406, 49408, 49409, 49411, 49407]
    assert len(tokenizer) == 49412


def test_added_tokens_file(folder: Path, transformers: Any, tmp_path: Path) -> None:
    copy_vocabulary(folder, tmp_path)
    save(tmp_path / "added_tokens.json", {"<cat>": 49409, "<bird>": 49408, "<|endoftext|>": 49407})
    assert_same(tmp_path, transformers, SPECIAL_TEXTS)


# ---- limits


def test_limits(folder: Path) -> None:
    tokenizer = reco.Tokenizer.load(folder)
    assert tokenizer.encode("a photo of a cat", 2) == [49406, 49407]
    assert tokenizer.encode("a photo of a cat", 4) == [49406, 320, 1125, 49407]
    assert tokenizer([], 77).shape == (0, 77)
    assert tokenizer(["", "cat"], 4).tolist() == [[49406, 49407, 49407, 49407], [49406, 2368, 49407, 49407]]
    for length in (1, 0, -5, 1 << 40):
        with pytest.raises(reco.Error, match="tokenizer.encode"):
            tokenizer.encode("x", length)
        with pytest.raises(reco.Error, match="tokenizer.encode"):
            tokenizer(["x"], length)


@pytest.mark.parametrize(
    "text",
    ["a" * MAX, "ab" * (MAX // 2), "!" * MAX, "'" * MAX, "<" * MAX, "<|" * (MAX // 2), " " * MAX, "\u0f73" * MAX,
     "a" + "\u0301\u0316" * (MAX // 2), "\u1100" * MAX, "\U0001f600" * MAX, "<|endoftext|" * (MAX // 12)],
    ids=lambda text: ascii(text[:12]),
)  # fmt: skip
def test_hostile_length_is_not_quadratic(folder: Path, text: str) -> None:
    tokenizer = reco.Tokenizer.load(folder)
    start = time.perf_counter()
    tokenizer.encode(text)
    assert time.perf_counter() - start < 10  # about a second; hours if it were quadratic


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("vocab.json", "", "must hold a JSON object"),
        ("vocab.json", "{}", "must have a vocabulary"),
        ("vocab.json", '{"a": -1}', "id of 'a' must be an integer from 0"),
        ("vocab.json", '{"a": 1e30}', "id of 'a'"),
        ("vocab.json", '{"a": [[[[]]]]}', "id of 'a' .* got array"),
        ("vocab.json", '{"a": 0}', "not in the vocabulary"),
        ("merges.txt", "a b\n", None),
        ("merges.txt", "#version: 0.2\na b\nabc\n", "merge 2 must be two tokens and a space, got 'abc'"),
        ("merges.txt", "a b c\n", "merge 1"),
        ("merges.txt", "qqqqqq zzzzzz\n", "'qqqqqq', which is not in the vocabulary"),
        ("tokenizer_config.json", "[]", "must hold a JSON object"),
        ("tokenizer_config.json", '{"bos_token": 5}', "'bos_token' must be a string or an object"),
        ("tokenizer_config.json", '{"bos_token": null}', "start and an end token"),
        ("tokenizer_config.json", '{"padding_side": "left"}', "'padding_side' must be \"right\""),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": "<a>"}}', "id of 'x'"),
        ("tokenizer_config.json", '{"pad_token": {"content": "!", "single_word": true}}', "single_word"),
        ("tokenizer.json", "{}", "must have a BPE model"),
        ("tokenizer.json", '{"model": {"type": "Unigram", "vocab": {}, "merges": []}}', "must have a BPE model"),
        ("tokenizer.json", '{"model": {"vocab": {"a": 0}, "merges": [["a"]]}}', "merge 1 must be two tokens"),
        ("tokenizer.json", '{"model": {"vocab": {"a": 0}, "merges": []}}', "a token for every byte"),
        ("added_tokens.json", '{"x": "y"}', "id of 'x'"),
    ],
)
def test_malformed_files_are_refused(folder: Path, tmp_path: Path, name: str, text: str, message: str | None) -> None:
    copy_vocabulary(folder, tmp_path)
    (tmp_path / name).write_text(text)
    if message is None:
        assert reco.Tokenizer.load(tmp_path).encode("ab")[0] == 49406
        return
    with pytest.raises(reco.Error, match=message):
        reco.Tokenizer.load(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(reco.Error, match="must have tokenizer.json, or vocab.json and merges.txt"):
        reco.Tokenizer.load(tmp_path)
    with pytest.raises(reco.Error, match="must be a folder"):
        reco.Tokenizer.load(tmp_path / "nowhere")
