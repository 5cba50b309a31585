// SPDX-License-Identifier: Apache-2.0
#include "memory_input.h"

#include <unicode/utf8.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <unordered_set>

#include "reco/error.h"

namespace reco {

namespace {

constexpr std::size_t kLongestKey = 65'535;
constexpr std::size_t kLongestText = std::size_t{1} << 27;

bool is_utf8(std::string_view text) {
  const auto size = static_cast<std::int32_t>(text.size());
  for (std::int32_t i = 0; i < size;) {
    UChar32 c;
    U8_NEXT(text.data(), i, size, c);
    if (c < 0) return false;
  }
  return true;
}

bool is_text(const std::string& text) { return text.size() <= kLongestText && is_utf8(text); }

bool is_json_object(const std::string& text) {
  const auto start = text.find_first_not_of(" \t\r\n");
  return start != std::string::npos && text[start] == '{' && text.size() <= kLongestText &&
         nlohmann::json::accept(text);
}

void check_count(std::size_t found, std::int64_t rows, bool optional, const char* tag, const char* name) {
  const bool fits = found == static_cast<std::size_t>(rows) || (optional && found == 0);
  check(fits, tag, name, " must have one entry a row, ", rows, " in all, got ", found);
}

void check_keys(const std::vector<std::string>& keys, const char* tag, bool empty_keys) {
  std::unordered_set<std::string_view> seen;
  seen.reserve(keys.size());
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (keys[i].empty() && empty_keys) continue;
    check(!keys[i].empty() && keys[i].size() <= kLongestKey, tag, "keys must have 1 to ", kLongestKey, " bytes, key ",
          i, " has ", keys[i].size());
    check(is_utf8(keys[i]), tag, "keys must be UTF-8, key ", i, " is not");
    check(seen.insert(keys[i]).second, tag, "keys must differ, '", keys[i], "' is there twice");
  }
}

}  // namespace

void check_info(const RowInfo& info, std::int64_t rows, const char* tag, bool empty_keys) {
  check_count(info.keys.size(), rows, false, tag, "keys");
  check_count(info.captions.size(), rows, true, tag, "captions");
  check_count(info.metadata.size(), rows, true, tag, "metadata");
  check_keys(info.keys, tag, empty_keys);
  for (std::size_t i = 0; i < info.captions.size(); ++i) {
    if (!is_text(info.captions[i]))
      fail(tag, "captions must be UTF-8 of at most ", kLongestText, " bytes, caption ", i, " is not");
  }
  for (std::size_t i = 0; i < info.metadata.size(); ++i) {
    if (!is_json_object(info.metadata[i])) fail(tag, "metadata must be JSON objects, entry ", i, " is not");
  }
}

std::vector<double> inverse_norms(const MatrixView& rows, const char* tag, const char* name) {
  std::vector<double> inverse(static_cast<std::size_t>(rows.rows()));
#pragma omp parallel for schedule(static) if (rows.size() > 100'000)
  for (Eigen::Index i = 0; i < rows.rows(); ++i) inverse[i] = 1.0 / rows.row(i).cast<double>().norm();
  for (std::size_t i = 0; i < inverse.size(); ++i) {
    // A sum of squares of floats cannot overflow a double: the inverse is 0 or NaN only where an element is not finite.
    check(std::isfinite(inverse[i]), tag, name, " must not be zero or NaN, row ", i, " is");
    check(inverse[i] > 0, tag, name, " must be finite, row ", i, " is not");
  }
  return inverse;
}

Matrix unit_rows(const MatrixView& rows, const std::vector<double>& inverse_norms) {
  Matrix unit(rows.rows(), rows.cols());
#pragma omp parallel for schedule(static) if (rows.size() > 100'000)
  for (Eigen::Index i = 0; i < rows.rows(); ++i) {
    unit.row(i) = (rows.row(i).cast<double>() * inverse_norms[i]).cast<float>();
  }
  return unit;
}

std::vector<std::byte> encoded_rows(const RowFormat& format, const MatrixView& rows,
                                    const std::vector<double>& inverse_norms, std::int64_t first, std::int64_t count) {
  const std::int64_t dim = format.dim();
  std::vector<std::byte> encoded(static_cast<std::size_t>(count * format.bytes()));
#pragma omp parallel if (count * dim > 100'000)
  {
    std::vector<float> unit(static_cast<std::size_t>(dim));
#pragma omp for schedule(static)
    for (std::int64_t i = 0; i < count; ++i) {
      const double inverse = inverse_norms[first + i];
      const float* row = rows.row(first + i).data();
      for (std::int64_t d = 0; d < dim; ++d) unit[d] = static_cast<float>(row[d] * inverse);
      format.encode(unit.data(), encoded.data() + i * format.bytes());
    }
  }
  return encoded;
}

}  // namespace reco
