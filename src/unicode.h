// SPDX-License-Identifier: Apache-2.0
// Text as Hugging Face's tokenizers sees it. That library mixes three versions of Unicode: normalisation knows version
// 9, the classes of its regular expressions 16, lower case 17. Whatever version ICU has here (14 or later), these
// functions answer by those versions, so that token ids do not depend on the machine.
#pragma once

#include <string>
#include <string_view>

namespace reco::unicode {

/// Code points of UTF-8 text; each maximal part that is invalid becomes U+FFFD.
std::u32string decode(std::string_view utf8);

bool is_valid(std::string_view utf8);

/// Appends one code point as UTF-8.
void append(char32_t point, std::string& utf8);

/// Whose normalisation: that of Hugging Face's tokenizers, or of the newest Unicode that ICU knows, as Python's.
enum class Version { nine, newest };

/// Normalisation form C. Linear but for sorting runs of combining marks.
std::u32string nfc(std::u32string text, Version version = Version::nine);

/// Normalisation form KC of one code point.
std::u32string nfkc(char32_t point);

/// Lower case, code point by code point (no final sigma).
std::u32string lower(std::u32string text);

/// Lower case as Python's str.lower(): a capital sigma that ends a word becomes a final one.
std::u32string lower_in_context(const std::u32string& text);

bool is_letter(char32_t point);  ///< \p{L}
bool is_number(char32_t point);  ///< \p{N}
bool is_digit(char32_t point);   ///< \d
bool is_space(char32_t point);   ///< \s

}  // namespace reco::unicode
