// SPDX-License-Identifier: Apache-2.0
#include "unicode.h"

#include <unicode/uchar.h>
#include <unicode/unorm2.h>
#include <unicode/utf16.h>
#include <unicode/utf8.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "reco/error.h"

namespace reco::unicode {

namespace {

struct Range {
  char32_t first;
  char32_t last;
};

// What versions 15 to 17 of Unicode added to version 14 of ICU 70, the oldest that we meet.
constexpr Range new_letters[]{
    {0x1C89, 0x1C8A},   {0xA7CB, 0xA7CD},   {0xA7DA, 0xA7DC},   {0x105C0, 0x105F3}, {0x10D4A, 0x10D65},
    {0x10D6F, 0x10D85}, {0x10EC2, 0x10EC4}, {0x1123F, 0x11240}, {0x11380, 0x11389}, {0x1138B, 0x1138B},
    {0x1138E, 0x1138E}, {0x11390, 0x113B5}, {0x113B7, 0x113B7}, {0x113D1, 0x113D1}, {0x113D3, 0x113D3},
    {0x11BC0, 0x11BE0}, {0x11F02, 0x11F02}, {0x11F04, 0x11F10}, {0x11F12, 0x11F33}, {0x1342F, 0x1342F},
    {0x13441, 0x13446}, {0x13460, 0x143FA}, {0x16100, 0x1611D}, {0x16D40, 0x16D6C}, {0x18CFF, 0x18CFF},
    {0x1B132, 0x1B132}, {0x1B155, 0x1B155}, {0x1DF25, 0x1DF2A}, {0x1E030, 0x1E06D}, {0x1E4D0, 0x1E4EB},
    {0x1E5D0, 0x1E5ED}, {0x1E5F0, 0x1E5F0}, {0x2B739, 0x2B739}, {0x2EBF0, 0x2EE5D}, {0x31350, 0x323AF},
};
constexpr Range new_numbers[]{
    {0x10D40, 0x10D49}, {0x116D0, 0x116E3}, {0x11BF0, 0x11BF9}, {0x11F50, 0x11F59}, {0x16130, 0x16139},
    {0x16D70, 0x16D79}, {0x1CCF0, 0x1CCF9}, {0x1E4F0, 0x1E4F9}, {0x1E5F1, 0x1E5FA}, {0x1D2C0, 0x1D2D3},
};

struct Lowering {
  Range upper;
  char32_t lower;  // of the first; the others follow
};
constexpr Lowering new_cases[]{
    {{0x1C89, 0x1C89}, 0x1C8A},    {{0xA7CB, 0xA7CB}, 0x264},  {{0xA7CC, 0xA7CC}, 0xA7CD},
    {{0xA7CE, 0xA7CE}, 0xA7CF},    {{0xA7D2, 0xA7D2}, 0xA7D3}, {{0xA7D4, 0xA7D4}, 0xA7D5},
    {{0xA7DA, 0xA7DA}, 0xA7DB},    {{0xA7DC, 0xA7DC}, 0x19B},  {{0x10D50, 0x10D65}, 0x10D70},
    {{0x16EA0, 0x16EB8}, 0x16EBB},
};

bool within(const Range& range, char32_t point) { return point >= range.first && point <= range.last; }

template <std::size_t count>
bool contains(const Range (&ranges)[count], char32_t point) {
  return std::any_of(std::begin(ranges), std::end(ranges), [&](const Range& range) { return within(range, point); });
}

UChar32 icu(char32_t point) { return static_cast<UChar32>(point); }

/// The version of Unicode that added this code point; 0 if ICU does not know it.
int age(char32_t point) {
  UVersionInfo version;
  u_charAge(icu(point), version);
  return version[0];
}

bool in_class(char32_t point, std::uint32_t mask) {
  return (U_MASK(u_charType(icu(point))) & mask) != 0 && age(point) <= 16;
}

// ---- normalisation

const UNormalizer2* normalizer() {
  static const UNormalizer2* const instance = [] {
    UErrorCode status = U_ZERO_ERROR;
    const UNormalizer2* found = unorm2_getNFCInstance(&status);
    check(U_SUCCESS(status), "unicode.nfc", "ICU has no data for normalisation: ", u_errorName(status));
    return found;
  }();
  return instance;
}

/// Whether normalisation form C may change or move it, by Unicode 9.
bool is_active(char32_t point) { return point >= 0xC0 && age(point) <= 9; }

std::uint8_t combining_class(char32_t point) { return is_active(point) ? u_getCombiningClass(icu(point)) : 0; }

bool is_settled(char32_t point) {
  if (point < 0x300 || !is_active(point)) return true;
  return u_getCombiningClass(icu(point)) == 0 && u_getIntPropertyValue(icu(point), UCHAR_NFC_QUICK_CHECK) == UNORM_YES;
}

struct Mark {
  char32_t point;
  std::uint8_t order;  // combining class
};

void decompose(char32_t point, std::vector<Mark>& out) {
  std::array<UChar, 64> units{};
  UErrorCode status = U_ZERO_ERROR;
  const int length = is_active(point) ? unorm2_getDecomposition(normalizer(), icu(point), units.data(),
                                                                static_cast<int>(units.size()), &status)
                                      : -1;
  if (length < 0 || U_FAILURE(status)) {
    out.push_back({point, combining_class(point)});
    return;
  }
  for (int i = 0; i < length;) {
    UChar32 part = 0;
    U16_NEXT(units.data(), i, length, part);
    out.push_back({static_cast<char32_t>(part), combining_class(static_cast<char32_t>(part))});
  }
}

/// Puts every run of combining marks into canonical order.
void reorder(std::vector<Mark>& marks) {
  const auto is_starter = [](const Mark& mark) { return mark.order == 0; };
  for (auto at = marks.begin(); at != marks.end();) {
    const auto first = std::find_if_not(at, marks.end(), is_starter);
    at = std::find_if(first, marks.end(), is_starter);
    std::stable_sort(first, at, [](const Mark& a, const Mark& b) { return a.order < b.order; });
  }
}

/// Joins each starter with the marks after it that nothing blocks.
std::u32string compose(const std::vector<Mark>& marks) {
  std::u32string out;
  std::size_t starter = std::u32string::npos;
  std::uint8_t last = 0;  // combining class of the last mark kept after the starter
  for (const auto& [point, order] : marks) {
    const bool adjacent = starter + 1 == out.size();
    if (starter != std::u32string::npos && (adjacent || last < order) && is_active(point)) {
      const UChar32 joined = unorm2_composePair(normalizer(), icu(out[starter]), icu(point));
      if (joined >= 0) {
        out[starter] = static_cast<char32_t>(joined);
        continue;
      }
    }
    if (order == 0) starter = out.size();
    last = order;
    out.push_back(point);
  }
  return out;
}

std::u32string by_icu(const UNormalizer2* normalizer, const std::u32string& text) {
  std::u16string units;
  for (const char32_t point : text) {
    if (point > 0xFFFF) units += static_cast<char16_t>(U16_LEAD(icu(point)));
    units += point > 0xFFFF ? static_cast<char16_t>(U16_TRAIL(icu(point))) : static_cast<char16_t>(point);
  }
  check(units.size() < (std::size_t{1} << 26), "unicode.normalize", "the text is too long: ", units.size());
  std::u16string out(units.size() * 3 + 18, u'\0');  // the most that NFC grows by, and NFKC of one code point
  UErrorCode status = U_ZERO_ERROR;
  const std::int32_t length = unorm2_normalize(normalizer, units.data(), static_cast<std::int32_t>(units.size()),
                                               out.data(), static_cast<std::int32_t>(out.size()), &status);
  check(U_SUCCESS(status), "unicode.normalize", "ICU: ", u_errorName(status));
  std::u32string points;
  for (std::int32_t i = 0; i < length;) {
    UChar32 point = 0;
    U16_NEXT(out.data(), i, length, point);
    points += static_cast<char32_t>(point);
  }
  return points;
}

/// Whether the nearest letter with case, before or after others that case ignores, comes before this place only.
bool ends_word(const std::u32string& text, std::size_t at) {
  const auto ignored = [](char32_t point) { return u_hasBinaryProperty(icu(point), UCHAR_CASE_IGNORABLE) != 0; };
  const auto cased = [](char32_t point) { return u_hasBinaryProperty(icu(point), UCHAR_CASED) != 0; };
  const auto before = std::find_if_not(text.rend() - static_cast<std::ptrdiff_t>(at), text.rend(), ignored);
  const auto after = std::find_if_not(text.begin() + static_cast<std::ptrdiff_t>(at) + 1, text.end(), ignored);
  return before != text.rend() && cased(*before) && (after == text.end() || !cased(*after));
}

}  // namespace

std::u32string decode(std::string_view utf8) {
  std::u32string text;
  text.reserve(utf8.size());
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(utf8.data());
  for (std::size_t i = 0; i < utf8.size();) {
    UChar32 point = 0;
    U8_NEXT_OR_FFFD(bytes, i, utf8.size(), point);
    text.push_back(static_cast<char32_t>(point));
  }
  return text;
}

bool is_valid(std::string_view utf8) {
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(utf8.data());
  UChar32 point = 0;
  for (std::size_t i = 0; i < utf8.size() && point >= 0;) U8_NEXT(bytes, i, utf8.size(), point);
  return point >= 0;
}

void append(char32_t point, std::string& utf8) {
  std::array<std::uint8_t, U8_MAX_LENGTH> bytes{};
  std::size_t length = 0;
  U8_APPEND_UNSAFE(bytes.data(), length, point);
  utf8.append(reinterpret_cast<const char*>(bytes.data()), length);
}

std::u32string nfc(std::u32string text, Version version) {
  if (version == Version::newest) return by_icu(normalizer(), text);
  if (std::all_of(text.begin(), text.end(), is_settled)) return text;
  std::vector<Mark> marks;
  marks.reserve(text.size());
  for (const char32_t point : text) decompose(point, marks);
  reorder(marks);
  return compose(marks);
}

std::u32string nfkc(char32_t point) {
  UErrorCode status = U_ZERO_ERROR;
  const UNormalizer2* normalizer = unorm2_getNFKCInstance(&status);
  check(U_SUCCESS(status), "unicode.nfkc", "ICU has no data for normalisation: ", u_errorName(status));
  return by_icu(normalizer, std::u32string(1, point));
}

std::u32string lower_in_context(const std::u32string& text) {
  constexpr char32_t sigma = 0x3A3, final_sigma = 0x3C2;
  if (text.find(sigma) == text.npos) return lower(text);
  std::u32string marked = text;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == sigma && ends_word(text, i)) marked[i] = final_sigma;
  }
  return lower(std::move(marked));
}

std::u32string lower(std::u32string text) {
  constexpr char32_t dotted_i = 0x130;  // the one letter whose lower case is two code points
  if (text.find(dotted_i) != std::u32string::npos) {
    std::u32string longer;
    for (const char32_t point : text) longer += point == dotted_i ? U"i\u0307" : std::u32string(1, point);
    text = std::move(longer);
  }
  for (char32_t& point : text) {
    if (point < 0x80) {
      if (point >= 'A' && point <= 'Z') point += 'a' - 'A';
      continue;
    }
    const auto found = std::find_if(std::begin(new_cases), std::end(new_cases),
                                    [&](const Lowering& x) { return within(x.upper, point); });
    if (found != std::end(new_cases)) {
      point = found->lower + (point - found->upper.first);
    } else if (age(point) <= 17) {
      point = static_cast<char32_t>(u_tolower(icu(point)));
    }
  }
  return text;
}

bool is_letter(char32_t point) {
  if (point < 0x80) return (point | 0x20) >= 'a' && (point | 0x20) <= 'z';
  return in_class(point, U_GC_L_MASK) || contains(new_letters, point);
}

bool is_number(char32_t point) {
  if (point < 0x80) return point >= '0' && point <= '9';
  return in_class(point, U_GC_N_MASK) || contains(new_numbers, point);
}

bool is_digit(char32_t point) { return u_isdigit(icu(point)) != 0; }

bool is_space(char32_t point) {
  if (point < 0x80) return point == ' ' || (point >= '\t' && point <= '\r');
  return u_isUWhiteSpace(icu(point)) != 0;
}

}  // namespace reco::unicode
