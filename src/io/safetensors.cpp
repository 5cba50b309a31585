// SPDX-License-Identifier: Apache-2.0
#include "io/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>
#include <utility>

#include "reco/error.h"

namespace reco::io {

static_assert(std::endian::native == std::endian::little, "safetensors are read without swapping bytes");

namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr const char* kOpen = "safetensors.open";
constexpr std::size_t kMaxHeader = 100'000'000;  // the format's own limit
constexpr int kMaxDepth = 3;                     // {name: {"shape": [...]}}

/// Parses the header, refusing what JSON allows but no honest file has: repeated names and deep nesting (a small file
/// of brackets would grow to gigabytes).
json parse_header(std::string_view text, const fs::path& path) {
  std::set<std::string> names;
  const auto visit = [&](int depth, json::parse_event_t event, json& parsed) {
    check(depth <= kMaxDepth, kOpen, path.string(), ": the header is nested deeper than ", kMaxDepth, " levels");
    if (event == json::parse_event_t::key && depth == 1) {
      const auto& name = parsed.get_ref<const std::string&>();
      check(names.insert(name).second, kOpen, path.string(), ": the header has '", name, "' twice");
    }
    return true;
  };
  try {
    json header = json::parse(text, visit);
    check(header.is_object(), kOpen, path.string(), ": the header is no JSON object");
    return header;
  } catch (const json::exception& error) {
    fail(kOpen, path.string(), ": the header is no valid JSON: ", error.what());
  }
}

/// What one tensor's entry says, with the file and the name for messages.
class Entry {
 public:
  Entry(const json& entry, const std::string& name, const fs::path& path) : entry_(entry), name_(name), path_(path) {
    require(entry.is_object(), "is no JSON object");
  }

  std::string dtype() const {
    const json& value = member("dtype");
    require(value.is_string(), "has a dtype that is no string");
    return value.get<std::string>();
  }

  std::vector<std::int64_t> shape() const {
    std::vector<std::int64_t> dims;
    for (const std::uint64_t dim : numbers("shape")) {
      require(dim <= std::numeric_limits<std::int64_t>::max(), "has a dimension that does not fit 64 bits");
      dims.push_back(static_cast<std::int64_t>(dim));
    }
    return dims;
  }

  /// The tensor's bytes within the data section.
  std::span<const std::byte> bytes(std::span<const std::byte> data) const {
    const std::vector<std::uint64_t> offsets = numbers("data_offsets");
    require(offsets.size() == 2, "needs two data_offsets, got ", offsets.size());
    require(offsets[0] <= offsets[1] && offsets[1] <= data.size(), "lies at bytes ", offsets[0], " to ", offsets[1],
            " of ", data.size());
    return data.subspan(offsets[0], offsets[1] - offsets[0]);
  }

  template <typename... Parts>
  void require(bool condition, const Parts&... parts) const {
    if (!condition) fail(kOpen, path_.string(), ": tensor '", name_, "' ", parts...);
  }

 private:
  const json& member(const char* key) const {
    const auto found = entry_.find(key);
    require(found != entry_.end(), "has no ", key);
    return *found;
  }

  std::vector<std::uint64_t> numbers(const char* key) const {
    const json& list = member(key);
    require(list.is_array(), "has ", key, " that are no list");
    std::vector<std::uint64_t> values;
    for (const json& value : list) {
      require(value.is_number_unsigned(), "has ", key, " that are no whole numbers from 0 on");
      values.push_back(value.get<std::uint64_t>());
    }
    return values;
  }

  const json& entry_;
  const std::string& name_;
  const fs::path& path_;
};

/// The product of the dimensions and the element size; false when it does not fit.
bool byte_count(const std::vector<std::int64_t>& shape, std::size_t element, std::uint64_t& bytes) {
  const bool empty = std::find(shape.begin(), shape.end(), 0) != shape.end();
  bytes = empty ? 0 : element;
  if (empty) return true;
  for (const std::int64_t dim : shape) {
    if (__builtin_mul_overflow(bytes, static_cast<std::uint64_t>(dim), &bytes)) return false;
  }
  return true;
}

TensorView read_entry(const Entry& entry, std::span<const std::byte> data) {
  TensorView view{entry.dtype(), entry.shape(), entry.bytes(data)};
  const std::size_t element = element_size(view.dtype);
  entry.require(element > 0, "has the unknown dtype '", view.dtype, "'");
  std::uint64_t bytes = 0;
  entry.require(byte_count(view.shape, element, bytes), "has a size that does not fit 64 bits");
  entry.require(bytes == view.data.size(), "needs ", bytes, " bytes for its dtype and shape, got ", view.data.size());
  return view;
}

/// The tensors must fill the data section without holes or overlaps, as the format demands.
void check_layout(const std::map<std::string, TensorView>& tensors, std::span<const std::byte> data,
                  const fs::path& path) {
  std::vector<std::pair<std::span<const std::byte>, const std::string*>> spans;
  for (const auto& [name, view] : tensors) spans.emplace_back(view.data, &name);
  std::sort(spans.begin(), spans.end(), [](const auto& a, const auto& b) {
    return std::pair(a.first.data(), a.first.size()) < std::pair(b.first.data(), b.first.size());
  });
  const std::byte* expected = data.data();
  for (const auto& [span, name] : spans) {
    check(span.data() == expected, kOpen, path.string(), ": tensor '", *name, "' ",
          span.data() < expected ? "overlaps the one before it" : "leaves a hole before it", ": begins at byte ",
          span.data() - data.data(), ", expected ", expected - data.data());
    expected += span.size();
  }
  check(expected == data.data() + data.size(), kOpen, path.string(), ": the tensors end at byte ",
        expected - data.data(), " of ", data.size());
}

std::map<std::string, std::string> read_metadata(const json& entry, const fs::path& path) {
  check(entry.is_object(), kOpen, path.string(), ": __metadata__ is no JSON object");
  std::map<std::string, std::string> metadata;
  for (const auto& [key, value] : entry.items()) {
    check(value.is_string(), kOpen, path.string(), ": __metadata__ '", key, "' is no string");
    metadata.emplace(key, value.get<std::string>());
  }
  return metadata;
}

/// The header's text, after checking that the file holds it.
std::string_view header_text(std::span<const std::byte> file, const fs::path& path) {
  check(file.size() >= 8, kOpen, path.string(), " is no safetensors file: ", file.size(), " bytes");
  std::uint64_t size = 0;
  std::memcpy(&size, file.data(), 8);
  check(size <= kMaxHeader, kOpen, path.string(), " is no safetensors file: a header of ", size, " bytes, at most ",
        kMaxHeader, " are allowed");
  check(size <= file.size() - 8, kOpen, path.string(), " is truncated: the header needs ", size, " bytes, ",
        file.size() - 8, " are there");
  return {reinterpret_cast<const char*>(file.data()) + 8, size};
}

float widen_half(std::uint16_t half) {
  const std::uint32_t magnitude = (half & 0x7fffU) << 13;
  // A product moves the exponent's bias, and makes subnormal halves normal; infinities and NaNs keep the top exponent.
  std::uint32_t bits = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112F);
  if (magnitude >= 0x7c00U << 13) bits |= 0x7f800000U;
  return std::bit_cast<float>(bits | (half & 0x8000U) << 16);
}

template <typename Stored, typename Widen>
void widen(std::span<const std::byte> data, std::span<float> out, Widen convert) {
  for (std::size_t i = 0; i < out.size(); ++i) {
    Stored value;  // tensors may lie at odd addresses
    std::memcpy(&value, data.data() + i * sizeof(Stored), sizeof(Stored));
    out[i] = convert(value);
  }
}

using Named = std::pair<const std::string, TensorView>;

/// Large elements first, as the format's own writer has it, so that every tensor is aligned.
std::vector<const Named*> file_order(const std::map<std::string, TensorView>& tensors) {
  std::vector<const Named*> order;
  for (const Named& tensor : tensors) order.push_back(&tensor);
  std::stable_sort(order.begin(), order.end(), [](const Named* a, const Named* b) {
    return element_size(a->second.dtype) > element_size(b->second.dtype);
  });
  return order;
}

json describe(const std::vector<const Named*>& tensors, const std::map<std::string, std::string>& metadata) {
  json header = json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::uint64_t offset = 0;
  for (const Named* tensor : tensors) {
    const auto& [name, view] = *tensor;
    check(name != "__metadata__", "safetensors.write", "no tensor may be called __metadata__");
    std::uint64_t bytes = 0;
    const std::size_t element = element_size(view.dtype);
    check(element > 0 && byte_count(view.shape, element, bytes) && bytes == view.data.size(), "safetensors.write",
          "tensor '", name, "': ", view.data.size(), " bytes do not fit its dtype ", view.dtype, " and shape");
    header[name] = {{"dtype", view.dtype}, {"shape", view.shape}, {"data_offsets", {offset, offset + bytes}}};
    offset += bytes;
  }
  return header;
}

}  // namespace

std::size_t element_size(std::string_view dtype) {
  const auto any = [&](std::initializer_list<std::string_view> names) {
    return std::find(names.begin(), names.end(), dtype) != names.end();
  };
  if (any({"F32", "I32", "U32"})) return 4;
  if (any({"F16", "BF16", "I16", "U16"})) return 2;
  if (any({"F64", "I64", "U64"})) return 8;
  if (any({"BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"})) return 1;
  return 0;
}

std::int64_t TensorView::count() const {
  const std::size_t element = element_size(dtype);
  return element == 0 ? 0 : static_cast<std::int64_t>(data.size() / element);
}

Safetensors::Safetensors(const fs::path& path) : path_(path), file_(path) {
  const std::string_view text = header_text(file_.bytes(), path_);
  const std::span<const std::byte> data = file_.bytes().subspan(8 + text.size());
  const json header = parse_header(text, path_);
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      metadata_ = read_metadata(entry, path_);
    } else {
      tensors_.emplace(name, read_entry(Entry(entry, name, path_), data));
    }
  }
  check_layout(tensors_, data, path_);
}

void to_float32(const TensorView& tensor, std::span<float> out, const std::string& name) {
  check(static_cast<std::size_t>(tensor.count()) == out.size(), "safetensors.to_float32", "tensor '", name, "' has ",
        tensor.count(), " elements, expected ", out.size());
  if (tensor.dtype == "F32") {
    if (!out.empty()) std::memcpy(out.data(), tensor.data.data(), out.size_bytes());
  } else if (tensor.dtype == "F16") {
    widen<std::uint16_t>(tensor.data, out, widen_half);
  } else if (tensor.dtype == "BF16") {
    widen<std::uint16_t>(tensor.data, out,
                         [](std::uint16_t x) { return std::bit_cast<float>(std::uint32_t{x} << 16); });
  } else if (tensor.dtype == "F64") {
    widen<double>(tensor.data, out, [](double x) { return static_cast<float>(x); });
  } else {
    fail("safetensors.to_float32", "tensor '", name, "' has dtype ", tensor.dtype, ", expected F32, F16, BF16 or F64");
  }
}

void write_safetensors(const fs::path& path, const std::map<std::string, TensorView>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  const auto order = file_order(tensors);
  std::string header;
  try {
    header = describe(order, metadata).dump();
  } catch (const json::exception& error) {
    fail("safetensors.write", path.string(), ": names and metadata must be UTF-8: ", error.what());
  }
  header.append((8 - header.size() % 8) % 8, ' ');
  check(header.size() <= kMaxHeader, "safetensors.write", path.string(), ": the header would need ", header.size(),
        " bytes, at most ", kMaxHeader, " are allowed");
  const std::uint64_t size = header.size();
  std::vector<std::span<const std::byte>> parts{std::as_bytes(std::span(&size, 1)), std::as_bytes(std::span(header))};
  for (const Named* tensor : order) parts.push_back(tensor->second.data);
  write_file_durably(path, parts);
}

}  // namespace reco::io
