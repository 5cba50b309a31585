// SPDX-License-Identifier: Apache-2.0
// What open_clip and OpenAI do to a text before they split it: ftfy's repairs, HTML's character references resolved,
// white space collapsed.
#pragma once

#include <string>

namespace reco {

/// `none` is Hugging Face's CLIPTokenizer, which normalises by itself. `lower` makes letters small, `canonicalize` also
/// takes ASCII punctuation away.
enum class Cleaning { none, lower, whitespace, canonicalize };

/// open_clip's cleaning (its tokenizer.py, 3.3) with the repairs of ftfy 6.3's fix_text().
std::u32string clean(std::u32string text, Cleaning cleaning);

/// Without ASCII punctuation, white space collapsed.
std::u32string canonicalize(const std::u32string& text);

/// ftfy's fix_text().
std::u32string fix_text(const std::u32string& text);

/// Python's html.unescape().
std::u32string unescape_html(const std::u32string& text);

}  // namespace reco
