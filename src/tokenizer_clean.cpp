// SPDX-License-Identifier: Apache-2.0
#include "tokenizer_clean.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "tokenizer_encoding.h"
#include "unicode.h"

namespace reco {

namespace {

using View = std::u32string_view;

// ---- HTML

struct Entity {
  const char* name;              // "amp;", and "amp" where HTML allows it without
  char32_t text[4], capital[4];  // zeros behind them
};
constexpr Entity entities[]{
#include "html_entities.inc"
};

std::u32string widen(const char* text) { return {text, text + std::char_traits<char>::length(text)}; }

using Table = std::unordered_map<std::u32string, std::u32string>;

const Table& html_names() {
  static const Table table = [] {
    Table made;
    for (const Entity& entity : entities) made.emplace(widen(entity.name), entity.text);
    return made;
  }();
  return table;
}

/// ftfy's: only names with a semicolon, and some in capitals.
const Table& ftfy_names() {
  static const Table table = [] {
    Table made;
    for (const Entity& entity : entities) {
      std::u32string name = widen(entity.name);
      if (name.back() != U';') continue;
      made.emplace(name, entity.text);
      for (char32_t& c : name) c = c >= 'a' && c <= 'z' ? c - 32 : c;
      if (entity.capital[0] != 0) made.emplace(name, entity.capital);
    }
    return made;
  }();
  return table;
}

/// No character by HTML's rules.
bool is_refused(std::uint32_t c) {
  return (c >= 1 && c <= 8) || c == 0xB || (c >= 0xE && c <= 0x1F) || (c >= 0x7F && c <= 0x9F) ||
         (c >= 0xFDD0 && c <= 0xFDEF) || (c & 0xFFFE) == 0xFFFE;
}

std::u32string from_number(std::uint32_t number) {
  if (number == 0) return U"\uFFFD";
  if (number >= 0x80 && number <= 0x9F) return {from_windows(number)};
  if ((number >= 0xD800 && number <= 0xDFFF) || number > 0x10FFFF) return U"\uFFFD";
  return is_refused(number) ? U"" : std::u32string(1, number);
}

int digit_of(char32_t c, int base) {
  const int value = c >= '0' && c <= '9'   ? static_cast<int>(c - '0')
                    : c >= 'a' && c <= 'f' ? static_cast<int>(c - 'a') + 10
                    : c >= 'A' && c <= 'F' ? static_cast<int>(c - 'A') + 10
                                           : 99;
  return value < base ? value : -1;
}

/// A text that stands for `length` code points.
struct Found {
  std::size_t length;
  std::u32string text;
};

/// "#65", "#x41", with or without a semicolon, behind an ampersand.
std::optional<Found> numeric(View text) {
  const bool hex = text.size() > 2 && (text[1] == 'x' || text[1] == 'X') && digit_of(text[2], 16) >= 0;
  const int base = hex ? 16 : 10;
  std::size_t at = hex ? 2 : 1;
  const std::size_t first = at;
  std::uint32_t number = 0;
  for (; at < text.size() && digit_of(text[at], base) >= 0; ++at) {
    number = std::min<std::uint32_t>(
        number * static_cast<std::uint32_t>(base) + static_cast<std::uint32_t>(digit_of(text[at], base)), 0x110000);
  }
  if (at == first) return std::nullopt;
  if (at < text.size() && text[at] == ';') ++at;
  return Found{at, from_number(number)};
}

/// The longest name behind an ampersand, at least two code points; what is left of the word stays.
std::optional<Found> named(View text) {
  constexpr View stops = U"\t\n\f <&#;";
  std::size_t length = std::min<std::size_t>(std::min(text.find_first_of(stops), text.size()), 32);
  if (length == 0) return std::nullopt;
  if (length < text.size() && text[length] == ';') ++length;
  for (std::size_t n = length; n >= std::min<std::size_t>(length, 2); --n) {
    const auto found = html_names().find(std::u32string(text.substr(0, n)));
    if (found != html_names().end()) return Found{n, found->second};
  }
  return std::nullopt;
}

/// Replaces what `find` makes of the text behind each ampersand.
template <typename Find>
std::u32string replace_references(const std::u32string& text, const Find& find) {
  std::u32string out;
  std::size_t at = 0;
  for (std::size_t next = text.find(U'&'); next != text.npos; next = text.find(U'&', at)) {
    out.append(text, at, next - at);
    at = next + 1;
    if (const std::optional<Found> found = find(View(text).substr(at))) {
      out += found->text;
      at += found->length;
    } else {
      out += U'&';
    }
  }
  return out.append(text, at, text.npos);
}

bool is_alnum(char32_t c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

/// ftfy resolves only what cannot be meant otherwise: with a semicolon, all of it.
std::optional<Found> unambiguous(View text) {
  const std::size_t first = text.starts_with(U'#') ? 1 : 0;
  std::size_t at = first;
  while (at < text.size() && at < first + 25 && is_alnum(text[at])) ++at;
  if (at == first || at == first + 25 || at == text.size() || text[at] != ';') return std::nullopt;
  if (first == 0) {
    const auto found = ftfy_names().find(std::u32string(text.substr(0, at + 1)));
    return found == ftfy_names().end() ? std::nullopt : std::optional(Found{at + 1, found->second});
  }
  std::optional<Found> found = numeric(text);
  const bool whole = found && found->length == at + 1 && found->text.find(U';') == std::u32string::npos;
  return whole ? found : std::nullopt;
}

// ---- ftfy's other repairs

struct Ligature {
  char32_t from;
  View to;
};
constexpr Ligature ligatures[]{
    {0x132, U"IJ"},      {0x133, U"ij"},      {0x149, U"\u02BCn"},  {0x1F1, U"DZ"},  {0x1F2, U"Dz"},  {0x1F3, U"dz"},
    {0x1C4, U"D\u017D"}, {0x1C5, U"D\u017E"}, {0x1C6, U"d\u017E"},  {0x1C7, U"LJ"},  {0x1C8, U"Lj"},  {0x1C9, U"lj"},
    {0x1CA, U"NJ"},      {0x1CB, U"Nj"},      {0x1CC, U"nj"},       {0xFB00, U"ff"}, {0xFB01, U"fi"}, {0xFB02, U"fl"},
    {0xFB03, U"ffi"},    {0xFB04, U"ffl"},    {0xFB05, U"\u017Ft"}, {0xFB06, U"st"}};

std::u32string split_ligatures(const std::u32string& text) {
  std::u32string out;
  for (const char32_t c : text) {
    const auto found = c < 0x132 ? std::end(ligatures)
                                 : std::find_if(std::begin(ligatures), std::end(ligatures),
                                                [&](const Ligature& ligature) { return ligature.from == c; });
    found == std::end(ligatures) ? out.push_back(c) : static_cast<void>(out += found->to);
  }
  return out;
}

std::u32string usual_width(const std::u32string& text) {
  std::u32string out;
  for (const char32_t c : text) {
    if (c == 0x3000) {
      out += U' ';
    } else if (c > 0xFF00 && c < 0xFFF0) {
      out += unicode::nfkc(c);
    } else {
      out += c;
    }
  }
  return out;
}

char32_t straight_quote(char32_t c) {
  if (c >= 0x201C && c <= 0x201F) return U'"';
  return c == 0x2BC || (c >= 0x2018 && c <= 0x201B) ? U'\'' : c;
}

std::u32string unix_lines(const std::u32string& text) {
  std::u32string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char32_t c = text[i];
    if (c == '\r' && i + 1 < text.size() && text[i + 1] == '\n') continue;
    out += c == '\r' || c == 0x2028 || c == 0x2029 || c == 0x85 ? U'\n' : c;
  }
  return out;
}

/// The length of a colour or cursor command of a terminal at the start of the text, 0 if there is none.
std::size_t escape_length(View text) {
  if (!text.starts_with(U"\x1B[")) return 0;
  std::size_t at = 2;
  while (at < text.size() && (text[at] == ';' || unicode::is_digit(text[at]))) ++at;
  const char32_t last = at < text.size() ? text[at] | 0x20 : 0;
  return last >= 'a' && last <= 'z' && text[at] < 0x80 ? at + 1 : 0;
}

bool is_control(char32_t c) {
  return c < 9 || c == 0xB || (c >= 0xE && c < 0x20) || c == 0x7F || (c >= 0x206A && c < 0x2070) || c == 0xFEFF ||
         (c >= 0xFFF9 && c < 0xFFFD);
}

std::u32string without_controls(View text) {
  std::u32string plain, out;
  while (!text.empty()) {
    const std::size_t escape = escape_length(text);
    if (escape == 0) plain += text[0];
    text.remove_prefix(std::max<std::size_t>(escape, 1));
  }
  std::copy_if(plain.begin(), plain.end(), std::back_inserter(out), [](char32_t c) { return !is_control(c); });
  return out;
}

/// One line of text, again and again until nothing changes, as "&amp;amp;lt;" needs it. ftfy knows no end; texts made
/// to take a pass for every few characters would take hours.
std::u32string fix_line(std::u32string text, bool html) {
  constexpr int most = 32;
  for (int pass = 0; pass < most; ++pass) {
    const std::u32string before = text;
    if (html) text = replace_references(text, unambiguous);
    text = fix_encoding(std::move(text));
    for (char32_t& c : text) c = from_windows(c);
    text = usual_width(split_ligatures(text));
    for (char32_t& c : text) c = straight_quote(c);
    text = unicode::nfc(without_controls(unix_lines(text)), unicode::Version::newest);
    if (text == before) break;
  }
  return text;
}

// ---- white space

bool is_space(char32_t c) { return unicode::is_space(c) || (c >= 0x1C && c <= 0x1F); }  // Python's str.isspace()

std::u32string strip(const std::u32string& text) {
  const auto first = std::find_if_not(text.begin(), text.end(), is_space);
  const auto last = std::find_if_not(text.rbegin(), std::make_reverse_iterator(first), is_space).base();
  return {first, last};
}

std::u32string collapse(const std::u32string& text) {
  std::u32string out;
  for (const char32_t c : text) {
    if (!is_space(c)) {
      out += c;
    } else if (!out.empty() && out.back() != U' ') {
      out += U' ';
    }
  }
  if (out.ends_with(U' ')) out.pop_back();
  return out;
}

}  // namespace

std::u32string canonicalize(const std::u32string& text) {
  std::u32string out;
  const auto kept = [](char32_t c) { return c <= 0x20 || c >= 0x7F || is_alnum(c); };
  std::copy_if(text.begin(), text.end(), std::back_inserter(out), kept);
  return collapse(out);
}

std::u32string unescape_html(const std::u32string& text) {
  return replace_references(text, [](View rest) { return rest.starts_with(U'#') ? numeric(rest) : named(rest); });
}

std::u32string fix_text(const std::u32string& text) {
  constexpr std::size_t longest = 1'000'000;  // what has no line breaks is cut here
  std::u32string out;
  bool html = true;  // until a tag is seen: then references are meant
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t line = text.find(U'\n', at);
    const std::size_t end = std::min(line == text.npos ? text.size() : line + 1, at + longest);
    std::u32string part = text.substr(at, end - at);
    html = html && part.find(U'<') == part.npos;
    out += fix_line(std::move(part), html);
    at = end;
  }
  return out;
}

std::u32string clean(std::u32string text, Cleaning cleaning) {
  if (cleaning == Cleaning::none) return text;
  text = strip(unescape_html(unescape_html(fix_text(text))));
  if (cleaning == Cleaning::canonicalize) {
    std::replace(text.begin(), text.end(), U'_', U' ');
    return unicode::lower_in_context(canonicalize(text));
  }
  text = collapse(text);
  return cleaning == Cleaning::lower ? unicode::lower_in_context(text) : text;
}

}  // namespace reco
