// SPDX-License-Identifier: Apache-2.0
#include "tokenizer_encoding.h"

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "mojibake.h"
#include "unicode.h"

namespace reco {

namespace {

using Byte = unsigned char;
using Bytes = std::basic_string_view<Byte>;

constexpr char32_t kReplacement = 0xFFFD;
constexpr Byte kLost = 0x1A;    // stands for a character that could not be decoded
constexpr int kMostSteps = 32;  // ftfy knows no end
constexpr int kMaxDepth = 8;    // of misread parts in misread parts

// ---- encodings of one byte a character

struct CodePage {
  bool sloppy;  // bytes without a character stand for themselves, and U+FFFD for kLost
  bool mac;
  char16_t high[128];
};
constexpr CodePage code_pages[]{
#include "code_pages.inc"
};
constexpr const CodePage& windows_1252 = code_pages[1];

using Inverse = std::unordered_map<char32_t, Byte>;

/// The bytes from 0x80 on, by their characters.
const Inverse& inverse(const CodePage& page) {
  static const std::vector<Inverse> all = [] {
    std::vector<Inverse> made;
    for (const CodePage& one : code_pages) {
      Inverse& table = made.emplace_back();
      for (int i = 0; i < 128; ++i) table[one.high[i]] = static_cast<Byte>(0x80 + i);
    }
    return made;
  }();
  return all[static_cast<std::size_t>(&page - code_pages)];
}

/// Nothing where the encoding lacks a character.
std::optional<std::basic_string<Byte>> encode(const std::u32string& text, const CodePage& page) {
  std::basic_string<Byte> bytes;
  const Inverse& table = inverse(page);
  for (const char32_t c : text) {
    if (c < 0x80 && !(page.sloppy && c == kLost)) {
      bytes += static_cast<Byte>(c);
    } else if (page.sloppy && c == kReplacement) {
      bytes += kLost;
    } else if (const auto found = table.find(c); found != table.end()) {
      bytes += found->second;
    } else {
      return std::nullopt;
    }
  }
  return bytes;
}

// ---- damaged UTF-8

/// Which bytes a place of a sequence may hold.
struct Place {
  Byte first, last;
  bool lost = false, question = false, space = false;

  bool holds(Byte b) const {
    return (b >= first && b <= last) || (lost && b == kLost) || (question && b == '?') || (space && b == ' ');
  }
};
using Sequence = std::vector<Place>;

bool fits(const Sequence& sequence, Bytes bytes) {
  return bytes.size() >= sequence.size() &&
         std::equal(sequence.begin(), sequence.end(), bytes.begin(), [](const Place& p, Byte b) { return p.holds(b); });
}

constexpr Place kRest{0x80, 0xBF}, kSpace{' ', ' '};

/// UTF-8 in which a byte is lost.
const std::vector<Sequence>& lossy() {
  constexpr Place lost{kLost, kLost, false, true}, rest{0x80, 0xBF, true}, either{0x80, 0xBF, true, true};
  constexpr Place surrogate{0xED, 0xED}, high{0xA0, 0xAF}, low{0xB0, 0xBF};
  constexpr Place three{0xE0, 0xEF}, four{0xF0, 0xF4};
  static const std::vector<Sequence> all{{{0xC2, 0xDF}, {kLost, kLost}},
                                         {{0xC2, 0xC3}, {'?', '?'}},
                                         {surrogate, high, lost, surrogate, low, either},
                                         {surrogate, high, either, surrogate, low, lost},
                                         {three, lost, rest},
                                         {three, rest, lost},
                                         {four, lost, rest, rest},
                                         {four, rest, lost, rest},
                                         {four, rest, rest, lost},
                                         {{kLost, kLost}}};
  return all;
}

/// UTF-8 in which the byte of a no-break space became a space.
const std::vector<std::vector<Sequence>>& spaced() {
  const auto of_two = [](Byte first) { return Sequence{{first, first}, kSpace}; };
  static const std::vector<std::vector<Sequence>> all{
      {of_two(0xC2), of_two(0xC3), of_two(0xC5), of_two(0xCE), of_two(0xD0), of_two(0xD9)},
      {{{0xE2, 0xE3}, kSpace, kRest}},
      {{{0xE0, 0xE3}, kRest, kSpace}},
      {{{0xF0, 0xF0}, kSpace, kRest, kRest},
       {{0xF0, 0xF0}, kRest, kSpace, kRest},
       {{0xF0, 0xF0}, kRest, kRest, kSpace}}};
  return all;
}

/// The length of a sequence with a space at the start, 0 if there is none. In those of three bytes 0x85 and 0xA0 are no
/// letters' parts.
std::size_t spaced_length(Bytes bytes) {
  for (const std::vector<Sequence>& group : spaced()) {
    for (const Sequence& sequence : group) {
      if (!fits(sequence, bytes)) continue;
      const Byte rest = sequence.size() == 3 ? bytes[bytes[1] == ' ' ? 2 : 1] : Byte{0x80};
      if (rest != 0x85 && rest != 0xA0) return sequence.size();
    }
  }
  return 0;
}

/// "Ã " is an "à", but before the Portuguese words that begin with one it is part of them.
bool is_lone_grave(Bytes bytes) {
  if (bytes.size() < 2 || bytes[0] != 0xC3 || bytes[1] != ' ') return false;
  const std::string_view rest(reinterpret_cast<const char*>(bytes.data()) + 2, bytes.size() - 2);
  for (const std::string_view word : {" ", "quele", "quela", "quilo", "s "}) {
    if (rest.starts_with(word)) return false;
  }
  return true;
}

std::basic_string<Byte> restore_spaces(Bytes bytes) {
  std::basic_string<Byte> words, out;
  for (std::size_t at = 0; at < bytes.size(); ++at) {
    words += bytes[at];
    if (is_lone_grave(bytes.substr(at))) words += Byte{0xA0};
  }
  for (std::size_t at = 0; at < words.size();) {
    const std::size_t length = std::max<std::size_t>(spaced_length(Bytes(words).substr(at)), 1);
    for (const Byte b : Bytes(words).substr(at, length)) out += b == ' ' && length > 1 ? Byte{0xA0} : b;
    at += length;
  }
  return out;
}

bool has_spaces(Bytes bytes) {
  for (std::size_t at = 0; at < bytes.size(); ++at) {
    if (spaced_length(bytes.substr(at)) > 0) return true;
  }
  return false;
}

std::basic_string<Byte> replace_lossy(Bytes bytes) {
  std::basic_string<Byte> out;
  for (std::size_t at = 0; at < bytes.size();) {
    const auto found =
        std::find_if(lossy().begin(), lossy().end(), [&](const Sequence& s) { return fits(s, bytes.substr(at)); });
    if (found == lossy().end()) {
      out += bytes[at++];
    } else {
      out += {0xEF, 0xBF, 0xBD};  // U+FFFD
      at += found->size();
    }
  }
  return out;
}

/// A code point beyond U+FFFF written as two surrogates of three bytes each, as UTF-8.
std::string joined_surrogates(Bytes b) {
  const auto high = static_cast<char32_t>((b[1] & 0x0F) << 16 | (b[2] & 0x3F) << 10);
  std::string utf8;
  unicode::append(0x10000 + high + static_cast<char32_t>((b[4] & 0x0F) << 6 | (b[5] & 0x3F)), utf8);
  return utf8;
}

/// UTF-8, also that of old Java and Oracle; nothing where it is neither.
std::optional<std::u32string> decode(Bytes bytes) {
  static const Sequence surrogates{{0xED, 0xED}, {0xA0, 0xAF}, kRest, {0xED, 0xED}, {0xB0, 0xBF}, kRest};
  static const Sequence null{{0xC0, 0xC0}, {0x80, 0x80}};
  static const std::basic_string<Byte> ending{0xC0, '\n'};  // ftfy's pattern takes this for a null, too
  std::string utf8;
  for (std::size_t at = 0; at < bytes.size();) {
    const Bytes rest = bytes.substr(at);
    const bool pair = fits(surrogates, rest), zero = fits(null, rest) || rest == ending;
    utf8 += pair ? joined_surrogates(rest) : std::string(1, zero ? '\0' : static_cast<char>(rest[0]));
    at += pair ? 6 : zero ? 2 : 1;
  }
  if (!unicode::is_valid(utf8)) return std::nullopt;
  return unicode::decode(utf8);
}

// ---- steps

std::u32string fix_encoding(std::u32string text, int depth);

/// The whole text as UTF-8 that was read in one of the encodings.
std::optional<std::u32string> reread(const std::u32string& text) {
  for (const CodePage& page : code_pages) {
    auto bytes = encode(text, page);
    if (!bytes) continue;
    if (!page.mac && has_spaces(*bytes)) bytes = restore_spaces(*bytes);
    if (page.sloppy) bytes = replace_lossy(*bytes);
    if (auto found = decode(*bytes)) return found;
  }
  return std::nullopt;
}

/// Parts that look misread, each by itself.
std::u32string fix_parts(const std::u32string& text, int depth) {
  std::u32string out;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = misread_length(text, at);
    std::u32string part = text.substr(at, std::max<std::size_t>(length, 1));
    at += part.size();
    const bool fixed = length > 0 && length < text.size() && is_mojibake(part);
    out += fixed ? fix_encoding(std::move(part), depth + 1) : std::move(part);
  }
  return out;
}

std::u32string fix_step(const std::u32string& text, int depth) {
  if (auto found = reread(text)) return *std::move(found);
  if (depth < kMaxDepth) {
    std::u32string found = fix_parts(text, depth);
    if (found != text) return found;
  }
  std::u32string found = text;
  for (char32_t& c : found) c = from_windows(c);
  return found;
}

std::u32string fix_encoding(std::u32string text, int depth) {
  for (int step = 0; step < kMostSteps; ++step) {
    const bool ascii = std::all_of(text.begin(), text.end(), [](char32_t c) { return c < 0x80; });
    if (ascii || !is_mojibake(text)) break;
    std::u32string found = fix_step(text, depth);
    if (found == text) break;
    text = std::move(found);
  }
  return text;
}

}  // namespace

std::u32string fix_encoding(std::u32string text) { return fix_encoding(std::move(text), 0); }

char32_t from_windows(char32_t c) { return c >= 0x80 && c <= 0x9F ? windows_1252.high[c - 0x80] : c; }

}  // namespace reco
