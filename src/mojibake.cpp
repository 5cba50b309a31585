// SPDX-License-Identifier: Apache-2.0
#include "mojibake.h"

#include <array>
#include <cstdint>
#include <vector>

#include "unicode.h"

namespace reco {

namespace {

using View = std::u32string_view;

/// Kinds of characters, one bit each.
enum Kind : std::uint32_t {
  kCommon = 1U << 0,   // also outside of misread text
  kControl = 1U << 1,  // of ISO 8859's second set
  kBad = 1U << 2,      // hardly anywhere else
  kLaw = 1U << 3,
  kCurrency = 1U << 4,
  kStart = 1U << 5,  // punctuation that begins
  kEnd = 1U << 6,    // and that ends something
  kNumeric = 1U << 7,
  kFace = 1U << 8,   // letters of which people draw faces
  kUpper = 1U << 9,  // with marks
  kLower = 1U << 10,
  kUpperCommon = 1U << 11,  // Greek and Cyrillic
  kLowerCommon = 1U << 12,
  kBox = 1U << 13,
  kFirstOf2 = 1U << 14,  // what the first byte of two in UTF-8 is read as
  kFirstOf3 = 1U << 15,
  kFirstOf4 = 1U << 16,
  kContinuation = 1U << 17,
  kSpaces = 1U << 18,  // what such a byte may have been made into since
  kSmallLatin = 1U << 19,
  kCapitalLatin = 1U << 20,
  kWord = 1U << 21,     // as Python's \w,
  kWhite = 1U << 22,    // \s,
  kNoBreak = 1U << 23,  // and the dot have it
};
constexpr std::uint32_t kAccented = kUpper | kLower, kLatin = kSmallLatin | kCapitalLatin;

struct Ranges {
  Kind kind;
  View ends;  // first and last code point of each
};
constexpr Ranges kRanges[]{
    {kCommon, U"\u00A0\u00A0\u00AD\u00AD\u00B4\u00B4\u00B7\u00B7\u2013\u2015\u2019\u2019\u2026\u2026"},
    {kControl, U"\u0080\u009F"},
    {kBad,
     U"\u00A4\u00A4\u00A6\u00A6\u00A8\u00A8\u00AA\u00AA\u00AC\u00AC\u00AF\u00AF\u00B8\u00B8\u00BA\u00BA"
     U"\u0192\u0192\u02C6\u02C7\u02D8\u02D8\u02DB\u02DC\u2020\u2021\u2030\u2030\u2310\u2310\u25CA\u25CA"
     U"\uFFFD\uFFFD"},
    {kLaw, U"\u00A7\u00A7\u00B6\u00B6"},
    {kCurrency, U"\u00A2\u00A3\u00A5\u00A5\u20A7\u20A7\u20AC\u20AC"},
    {kStart,
     U"\u00A1\u00A1\u00A9\u00A9\u00AB\u00AB\u00BF\u00BF\u0384\u0385\u2018\u2018\u201A\u201A\u201C\u201C"
     U"\u201E\u201E\u2022\u2022\u2039\u2039\uF8FF\uF8FF"},
    {kEnd, U"\u00AE\u00AE\u00BB\u00BB\u02DD\u02DD\u201D\u201D\u203A\u203A\u2122\u2122"},
    {kNumeric,
     U"\u00B1\u00B3\u00B5\u00B5\u00B9\u00B9\u00BC\u00BE\u00D7\u00D7\u00F7\u00F7\u2044\u2044\u2116\u2116"
     U"\u2202\u2202\u2206\u2206\u220F\u220F\u2211\u2211\u221A\u221A\u221E\u221E\u2229\u2229\u222B\u222B"
     U"\u2248\u2248\u2260\u2261\u2264\u2265"},
    {kFace,
     U"\u00B0\u00B0\u00D2\u00D6\u00D9\u00DC\u00F2\u00F6\u00F8\u00FC\u014C\u014C\u0150\u0150\u016A\u016A"
     U"\u0172\u0172"},
    {kUpper,
     U"\u00C0\u00D1\u00D8\u00D8\u00DC\u00DD\u0100\u0100\u0102\u0102\u0104\u0104\u0106\u0106\u010C\u010C"
     U"\u010E\u010E\u0110\u0110\u0112\u0112\u0116\u0116\u0118\u0118\u011A\u011A\u011E\u011E\u0122\u0122"
     U"\u012A\u012A\u0130\u0130\u0136\u0136\u0139\u0139\u013B\u013B\u013D\u013D\u0141\u0141\u0143\u0143"
     U"\u0145\u0145\u0147\u0147\u0152\u0152\u0158\u0158\u015A\u015A\u015E\u015E\u0160\u0160\u0162\u0162"
     U"\u0164\u0164\u016E\u016E\u0170\u0170\u0178\u0179\u017B\u017B\u017D\u017D\u0490\u0490"},
    {kLower,
     U"\u00DF\u00F1\u00FC\u00FC\u0101\u0101\u0103\u0103\u0105\u0105\u0107\u0107\u010D\u010D\u010F\u010F"
     U"\u0111\u0111\u0113\u0113\u0117\u0117\u0119\u0119\u011B\u011B\u011F\u011F\u0123\u0123\u012B\u012B"
     U"\u012F\u012F\u0137\u0137\u013A\u013A\u013C\u013C\u013E\u013E\u0142\u0142\u0153\u0153\u0155\u0155"
     U"\u015B\u015B\u015F\u015F\u0161\u0161\u0165\u0165\u017A\u017A\u017C\u017C\u017E\u017E\u0491\u0491"
     U"\uFB01\uFB02"},
    {kUpperCommon, U"\u00DE\u00DE\u0386\u0386\u0388\u038A\u038C\u038C\u038E\u038F\u0391\u03AB\u0401\u042F"},
    {kLowerCommon, U"\u03AC\u03C9\u0430\u045F"},
    {kBox,
     U"\u2502\u2502\u250C\u250C\u2510\u2510\u2518\u2518\u251C\u251C\u2524\u2524\u252C\u252C\u253C\u253C"
     U"\u2550\u256C\u2580\u2580\u2584\u2584\u2588\u2588\u258C\u258C\u2590\u2593"},
    {kFirstOf2,
     U"\u00C2\u00DF\u0100\u0100\u0102\u0102\u0106\u0106\u010C\u010C\u010E\u010E\u0110\u0110\u0112\u0112"
     U"\u0116\u0116\u0118\u0118\u011A\u011A\u011E\u011E\u0122\u0122\u012A\u012A\u0130\u0130\u0136\u0136"
     U"\u0139\u0139\u013B\u013B\u0141\u0141\u0143\u0143\u0145\u0145\u0147\u0147\u014C\u014C\u0150\u0150"
     U"\u0158\u0158\u015A\u015A\u015E\u015E\u0160\u0160\u0162\u0162\u016A\u016A\u016E\u016E\u0170\u0170"
     U"\u0172\u0172\u0179\u0179\u017B\u017B\u017D\u017D\u0392\u03A1\u03A3\u03AF\u0412\u042F"},
    {kFirstOf3,
     U"\u00E0\u00EF\u0101\u0101\u0103\u0103\u0105\u0105\u0107\u0107\u010D\u010D\u010F\u010F\u0113\u0113"
     U"\u0117\u0117\u0119\u0119\u011B\u011B\u0123\u0123\u012B\u012B\u012F\u012F\u0137\u0137\u013A\u013A"
     U"\u013C\u013C\u0155\u0155\u017A\u017A\u03B0\u03BF\u0430\u043F"},
    {kFirstOf4,
     U"\u00F0\u00F0\u00F3\u00F3\u0111\u0111\u011F\u011F\u0161\u0161\u03C0\u03C0\u03C3\u03C3\u0440\u0440"
     U"\u0443\u0443"},
    {kContinuation,
     U"\u0080\u00BF\u00C6\u00C6\u00D8\u00D8\u00E6\u00E6\u00F8\u00F8\u0104\u0105\u013D\u013E\u0141\u0142"
     U"\u0152\u0153\u0156\u0157\u015A\u015B\u015E\u0161\u0164\u0165\u0178\u017E\u0192\u0192\u02C6\u02C7"
     U"\u02D8\u02D8\u02DB\u02DD\u0384\u0386\u0388\u038A\u038C\u038C\u038E\u038F\u0401\u040C\u040E\u040F"
     U"\u0451\u045C\u045E\u045F\u0490\u0491\u2020\u2021\u2030\u2030\u2039\u203A\u20AC\u20AC\u2116\u2116"
     U"\u2122\u2122"},
    {kSpaces, U"\u0020\u0020\u2013\u2015\u2018\u201A\u201C\u201E\u2022\u2022\u2026\u2026"},
};

/// The kinds of all code points below U+10000.
std::vector<std::uint32_t> make_kinds() {
  std::vector<std::uint32_t> kinds(0x10000);
  for (const auto& [kind, ends] : kRanges) {
    for (std::size_t i = 0; i < ends.size(); i += 2) {
      for (char32_t c = ends[i]; c <= ends[i + 1]; ++c) kinds[c] |= kind;
    }
  }
  for (char32_t c = 'a'; c <= 'z'; ++c) kinds[c] |= kSmallLatin, kinds[c - 32] |= kCapitalLatin;
  return kinds;
}

std::uint32_t kinds_of(char32_t c) {
  static const std::vector<std::uint32_t> all = make_kinds();
  return c < all.size() ? all[c] : 0;
}

bool is_word(char32_t c) { return c == '_' || unicode::is_letter(c) || unicode::is_number(c); }

bool is_white(char32_t c) { return unicode::is_space(c) || (c >= 0x1C && c <= 0x1F); }

/// One place of a pattern: of one of these kinds, or one of these characters; or, if `other`, neither.
struct Part {
  std::uint32_t kinds = 0;
  View characters = {};
  bool other = false;

  bool fits(char32_t c) const {
    const bool found = (kinds_of(c) & kinds) != 0 || characters.find(c) != View::npos ||
                       ((kinds & kWord) != 0 && is_word(c)) || ((kinds & kWhite) != 0 && is_white(c)) ||
                       ((kinds & kNoBreak) != 0 && c != '\n');
    return found != other;
  }
};
using Pattern = std::vector<Part>;

std::size_t fitting(const Pattern& pattern, View text, std::size_t at) {
  if (pattern.size() > text.size() - at) return 0;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    if (!pattern[i].fits(text[at + i])) return 0;
  }
  return pattern.size();
}

const std::vector<Pattern>& patterns() {
  constexpr std::uint32_t marked = kAccented | kBox | kStart | kEnd | kCurrency | kNumeric | kLaw;
  static const Part arabic{0, U"\u00D8\u00D9"}, cyrillic{0, U"\u0412\u0413\u0420\u0421"};
  static const Part greek{0, U"\u0392\u0393\u039E\u039F"}, hat{0, U"\u00C2\u00C3"}, space{0, U" "};
  static const Part arabic_tail{kCommon | kCurrency | kBad | kNumeric | kStart,
                                U"\u0178\u0160\u00AE\u00B0\u00B5\u00BB"};
  constexpr std::uint32_t inside = kControl | kBad | kStart | kEnd | kCurrency;
  static const std::vector<Pattern> all{
      {{kControl}},
      {{marked | kBad}, {kBad}},
      {{kLatin}, {kLowerCommon | kUpperCommon}, {kBad}},
      {{kBad}, {marked}},
      {{kLower | kLowerCommon | kBox | kEnd | kCurrency | kNumeric}, {kUpper}},
      {{kBox | kEnd | kCurrency | kNumeric}, {kLower}},
      {{kLower | kBox | kEnd}, {kCurrency}},
      {{kWhite}, {kUpper}, {kCurrency}},
      {{kUpper | kBox}, {kNumeric | kLaw}},
      {{kAccented | kBox | kCurrency | kEnd}, {kStart}, {kNumeric}},
      {{kAccented | kCurrency | kNumeric | kBox | kLaw}, {kEnd}, {kStart}},
      {{kCurrency | kNumeric | kBox}, {kStart}},
      {{kSmallLatin}, {kUpper}, {kStart | kCurrency}},
      {{kBox}, {kFace}},
      {{kAccented | kCurrency | kNumeric | kStart | kEnd | kLaw}, {kBox}},
      {{kBox}, {kEnd}},
      {{kAccented}, {kStart | kEnd}, {kWord}},
      {{0, U"\u0152\u0153"}, {kLatin, {}, true}},
      {{kUpper}, {0, U"\u00B0"}},
      {{0, U"\u00C2\u00C3\u00CE\u00D0"},
       {kStart | kEnd,
        U"\u20AC\u0153\u0160\u0161\u00A2\u00A3\u0178\u017E\u00A0\u00AD\u00AE\u00A9\u00B0\u00B7\u00BB\u2013"
        U"\u2014\u00B4"}},
      {{0, U"\u00D7"}, {0, U"\u00B2\u00B3"}},
      {arabic, arabic_tail, arabic, arabic_tail},
      {{0, U"\u00E0"}, {0, U"\u00B2\u00B5\u00B9\u00BC\u00BD\u00BE"}},
      // Mac OS Roman
      {{0, U"\u221A"}, {0, U"\u00B1\u2202\u2020\u2260\u00AE\u2122\u00B4\u2264\u2265\u00A5\u00B5\u00F8"}},
      {{0, U"\u2248"}, {0, U"\u00B0\u00A2"}},
      {{0, U"\u201A"},
       {0, U"\u00C4"},
       {0, U"\u00EC\u00EE\u00EF\u00F2\u00F4\u00FA\u00F9\u00FB\u2020\u00B0\u00A2\u03C0"}},
      {{0, U"\u201A"}, {0, U"\u00E2\u00F3"}, {0, U"\u00E0\u00E4\u00B0\u00EA"}},
      // Windows-1251
      {{0, U"\u0432"}, {0, U"\u0402"}},
      {cyrillic, {inside, U"\u00B0\u00B5"}, cyrillic},
      {{0, U"\u0413"}, {0, U"\u045E"}, {0, U"\u0412"}, {0, U"\u0402"}, {0, U"\u0412"}, {kNoBreak}, {kLatin, U" "}},
      // Windows-1252
      {{0, U"\u00C3"}, {0, U"\u00A0\u00A1"}},
      {{kSmallLatin}, hat, space},
      {{kSmallLatin}, {kWhite}, hat, space},
      {{kSmallLatin | kEnd, U".,?!"}, {0, U"\u00C2"}, {kStart | kEnd, U" "}},
      // Windows-1253
      {{0, U"\u03B2"}, {0, U"\u20AC"}, {0, U"\u2122\u00A0\u0386\u00AD\u00AE\u00B0"}},
      {greek, {inside, U"\u00B0"}, greek},
      // Windows-1257
      {{0, U"\u0101"}, {0, U"\u20AC"}},
  };
  return all;
}

}  // namespace

bool is_mojibake(View text) {
  static const Pattern beginning{{0, U"\u00C2\u00C3"}, {0, U" "}};
  if (fitting(beginning, text, 0) > 0) return true;
  for (std::size_t at = 0; at < text.size(); ++at) {
    for (const Pattern& pattern : patterns()) {
      if (fitting(pattern, text, at) > 0) return true;
    }
  }
  return false;
}

std::size_t misread_length(View text, std::size_t at) {
  static const Part strict{kContinuation}, loose{kContinuation | kSpaces, U" "};
  static const std::array<Pattern, 3> sequences{
      Pattern{{kFirstOf2}, loose}, {{kFirstOf3}, loose, loose}, {{kFirstOf4}, loose, loose, loose}};
  if (at > 0 && strict.fits(text[at - 1])) return 0;
  std::size_t length = 0;
  for (std::size_t more = 1; more > 0 && at + length < text.size(); length += more) {
    more = 0;
    for (const Pattern& sequence : sequences) {
      if (more == 0) more = fitting(sequence, text, at + length);
    }
  }
  return length;
}

}  // namespace reco
