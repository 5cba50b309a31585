# SPDX-License-Identifier: Apache-2.0
"""Texts that tokenizers get wrong: every script, marks, emoji sequences, references, controls, quotes, lengths."""

from __future__ import annotations

import random
import unicodedata
from functools import cache

EMOJI = ["😀", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇫🇷", "❤️", "1️⃣", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "👩🏿‍🚒", "☠︎", "🫱🏻‍🫲🏿"]
REFERENCES = ["&amp;", "&amp;amp;", "&amp;amp;amp;", "&lt;b&gt;", "&copy", "&notit;", "&notin;", "&EACUTE;", "&SZLIG;",
              "&nTILDE;", "&#65;", "&#x41;", "&#X3b1", "&#59;", "&#38;lt;", "&#0;", "&#128;", "&#x9d;", "&#xD800;",
              "&#1114112;", "&#11;", "&#xFFFE;", "&#;", "&#x;", "&", "&&amp", "&unknown;", "&a;", "& b;", "&hellip;",
              "&CounterClockwiseContourIntegral;", "&NotEqualTilde;", "&fjlig;", "&bne;", "&quot;", "&apos;",
              "&nbsp;", "&ThickSpace;", "&#99999999999999999999;", "&#xfffffffffffff;", "&#x110000"]  # fmt: skip
CONTRACTIONS = ["it's", "we'll", "they've", "I'm", "you're", "he'd", "can't", "'s", "''s", "'S", "'LL", "’s", "‘tis",
                "rock'n'roll", "'\u017f", "ʼn", "'ſt", "O'Neil", "x'", "'re've"]  # fmt: skip
SPACES = [" ", "  ", "\t", "\n", "\r\n", "\r", "\x0b", "\x0c", "\x1c", "\x1f", "\x85", "\xa0", "\u1680", "\u2003",
          "\u2028", "\u2029", "\u202f", "\u3000", "\u200b", "\u180e", "\ufeff"]  # fmt: skip
CONTROLS = ["\x00", "\x01", "\x08", "\x1b[31m", "\x1b[0;1;4m", "\x1b[", "\x1b[\u0663m", "\x7f", "\x80", "\x91", "\x9d",
            "\xad", "\u200d", "\u200e", "\u202e", "\u206a", "\ufff9", "\ufffc", "\ufffd", "\uffff"]  # fmt: skip
FORMS = ["ﬁ", "ﬂ", "ﬃ", "ﬅ", "Ĳ", "ǅ", "ŉ", "ＬＯＵＤ", "ﾊﾝｶｸ", "ﾡ", "￠", "“q”", "‟q„", "…", "—", "Å", "Ω", "e\u0301",
         "a\u0316\u0301", "a\u0301\u0316", "\u1100\u1161\u11a8", "q\u0323\u0307", "ΣΊΣΥΦΟΣ", "ΣΑΣ ΑΣ. ΑΣ'Α Σ", "İI",
         "ẞ", "<start_of_text>", "<END_OF_TEXT>", "<ſtart_of_text>",
         "<|endoftext|>", "<|STARTOFTEXT|>", "1,000.5", "½²Ⅷ٣四"]  # fmt: skip
SPECIAL = [EMOJI, REFERENCES, CONTRACTIONS, SPACES, CONTROLS, FORMS, ["<", "!", "_", "#", "a photo of", "The", "CAT"]]


@cache
def blocks() -> list[list[str]]:
    """All characters that Python's Unicode knows, in runs of up to 64 neighbours: each script has its own."""
    known = [chr(p) for p in range(0x20, 0x110000) if unicodedata.category(chr(p)) not in ("Cn", "Cs", "Co")]
    large = {"CJK UNIFIED", "HANGUL SYLL", "CJK COMPATI", "TANGUT IDEO", "TANGUT COMP", "KHITAN SMAL"}
    kept = [c for i, c in enumerate(known) if i % 41 == 0 or unicodedata.name(c, "")[:11] not in large]
    return [kept[i : i + 64] for i in range(0, len(kept), 64)]


def corpus(count: int, seed: int = 0) -> list[str]:
    """`count` texts: all blocks in turn, alone and mixed with what is special; some empty, some long."""
    rng = random.Random(seed)
    texts = ["", " ", "\n"]
    while len(texts) < count:
        block = blocks()[len(texts) % len(blocks())]
        parts = []
        for _ in range(rng.randint(1, 7)):
            kind = rng.random()
            if kind < 0.55:
                parts.append("".join(rng.choices(block, k=rng.randint(1, 6))))
            elif kind < 0.9:
                parts.append(rng.choice(rng.choice(SPECIAL)))
            else:
                parts.append(rng.choice(rng.choice(blocks())))
            if rng.random() < 0.4:
                parts.append(" ")
        texts.append("".join(parts) * (rng.randint(20, 60) if len(texts) % 997 == 0 else 1))
    return texts
