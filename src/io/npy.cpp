// SPDX-License-Identifier: Apache-2.0
#include "io/npy.h"

#include <cctype>
#include <cstring>
#include <string_view>

#include "reco/error.h"

namespace reco::io {

namespace {

constexpr const char* kTag = "npy.read";
constexpr std::string_view kMagic = "\x93NUMPY";

/// Reads the Python dict of the header, which NumPy writes with exactly these three keys, in any order.
class HeaderParser {
 public:
  HeaderParser(std::string_view text, std::size_t offset, const std::string& name)
      : text_(text), offset_(offset), name_(name) {}

  NpyView parse() {
    expect('{');
    while (!accept('}')) {
      entry();
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    skip_space();
    demand(position_ == text_.size(), "nothing after the header's dict");
    demand(seen_ == 7, "the keys 'descr', 'fortran_order' and 'shape'");
    return std::move(view_);
  }

 private:
  void entry() {
    const std::string key = quoted();
    expect(':');
    if (key == "descr") {
      once(1);
      view_.dtype = quoted();
    } else if (key == "fortran_order") {
      once(2);
      demand(word() == "False", "'fortran_order': False");
    } else {
      demand(key == "shape", "one of the keys 'descr', 'fortran_order' and 'shape'");
      once(4);
      shape();
    }
  }

  void shape() {
    expect('(');
    while (!accept(')')) {
      demand(view_.shape.size() < 32, "at most 32 dimensions");
      view_.shape.push_back(number());
      if (!accept(',')) {
        expect(')');
        break;
      }
    }
  }

  std::int64_t number() {
    skip_space();
    const std::size_t start = position_;
    std::int64_t value = 0;
    while (position_ < text_.size() && std::isdigit(static_cast<unsigned char>(text_[position_])) != 0) {
      demand(value < std::int64_t{1} << 56, "dimensions below 2^56");
      value = 10 * value + (text_[position_++] - '0');
    }
    demand(position_ > start, "a number");
    return value;
  }

  std::string quoted() {
    skip_space();
    demand(position_ < text_.size() && (text_[position_] == '\'' || text_[position_] == '"'), "a quoted string");
    const std::size_t start = position_ + 1;
    const std::size_t end = text_.find(text_[position_], start);
    demand(end != std::string_view::npos, "the end of a quoted string");
    position_ = end + 1;
    return std::string(text_.substr(start, end - start));
  }

  std::string_view word() {
    skip_space();
    const std::size_t start = position_;
    while (position_ < text_.size() && std::isalpha(static_cast<unsigned char>(text_[position_])) != 0) ++position_;
    return text_.substr(start, position_ - start);
  }

  void once(unsigned bit) {
    demand((seen_ & bit) == 0, "every key once");
    seen_ |= bit;
  }

  void skip_space() {
    while (position_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[position_])) != 0) ++position_;
  }

  bool accept(char c) {
    skip_space();
    if (position_ == text_.size() || text_[position_] != c) return false;
    ++position_;
    return true;
  }

  void expect(char c) {
    if (!accept(c)) demand(false, std::string("'") + c + "'");
  }

  template <typename What>
  void demand(bool condition, const What& expected) const {
    check(condition, kTag, "'", name_, "': expected ", expected, " at byte ", offset_ + position_);
  }

  std::string_view text_;
  std::size_t offset_;
  const std::string& name_;
  std::size_t position_ = 0;
  unsigned seen_ = 0;
  NpyView view_;
};

/// Bytes an element, by the digits of a dtype such as "<f2".
std::size_t element_size(const std::string& dtype, const std::string& name) {
  const bool known = dtype.size() == 3 && (dtype[0] == '<' || dtype[0] == '|') &&
                     std::string_view("fiub").find(dtype[1]) != std::string_view::npos &&
                     std::string_view("1248").find(dtype[2]) != std::string_view::npos;
  check(known, kTag, "'", name, "': expected little-endian numbers such as '<f2', got '", dtype, "'");
  return static_cast<std::size_t>(dtype[2] - '0');
}

/// Where the dict starts and how long it is, by the version.
std::string_view header_text(std::span<const std::byte> file, const std::string& name, std::size_t& start) {
  const auto byte = [&](std::size_t i) { return std::to_integer<std::size_t>(file[i]); };
  check(file.size() >= 12 && std::memcmp(file.data(), kMagic.data(), kMagic.size()) == 0, kTag, "'", name,
        "': expected a .npy file, which starts with \\x93NUMPY");
  check(byte(6) == 1 || byte(6) == 2, kTag, "'", name, "': expected version 1 or 2 of the format, got ", byte(6));
  start = byte(6) == 1 ? 10 : 12;
  std::size_t size = byte(8) | byte(9) << 8;
  if (byte(6) == 2) size |= byte(10) << 16 | byte(11) << 24;
  check(size <= file.size() - start, kTag, "'", name, "': expected a header of ", size, " bytes, the file ends after ",
        file.size() - start);
  return {reinterpret_cast<const char*>(file.data()) + start, size};
}

}  // namespace

NpyView read_npy(std::span<const std::byte> file, const std::string& name) {
  std::size_t start = 0;
  const std::string_view text = header_text(file, name, start);
  NpyView view = HeaderParser(text, start, name).parse();
  view.data = file.subspan(start + text.size());
  std::size_t bytes = element_size(view.dtype, name);
  for (const std::int64_t size : view.shape) {
    const bool overflow = __builtin_mul_overflow(bytes, static_cast<std::size_t>(size), &bytes);
    check(!overflow, kTag, "'", name, "': the shape is larger than any memory");
  }
  check(bytes == view.data.size(), kTag, "'", name, "': expected ", bytes, " bytes of data by shape and dtype, found ",
        view.data.size());
  return view;
}

std::string npy_header(const std::string& dtype, const std::vector<std::int64_t>& shape) {
  std::string dict = "{'descr': '" + dtype + "', 'fortran_order': False, 'shape': (";
  for (std::size_t i = 0; i < shape.size(); ++i) dict += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  dict += shape.size() == 1 ? ",), }" : "), }";
  const std::size_t size = (10 + dict.size() + 1 + 63) / 64 * 64 - 10;
  dict.resize(size - 1, ' ');
  std::string header(kMagic);
  header += {'\1', '\0', static_cast<char>(size & 255), static_cast<char>(size >> 8)};
  return header + dict + '\n';
}

}  // namespace reco::io
