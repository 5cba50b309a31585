// SPDX-License-Identifier: Apache-2.0
#include "clip_weights.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <sstream>
#include <utility>

#include "io/json.h"
#include "io/sha256.h"
#include "parallel.h"
#include "reco/error.h"

namespace reco {

namespace {

namespace fs = std::filesystem;

constexpr const char* kLoad = "clip.load";
constexpr std::size_t kMaxIndexBytes = std::size_t{1} << 24;

using Shape = std::vector<std::int64_t>;

/// Of the tensor in the file that holds one of this shape.
Shape stored_shape(Shape shape, const ClipTensorName& where) {
  if (where.parts > 1) shape[0] *= where.parts;
  if (where.transposed) std::swap(shape[0], shape[1]);
  return shape;
}

bool fits(const Shape& found, const Shape& expected) {
  Shape one = expected;
  one.insert(one.begin(), 1);
  return found == expected || (expected.size() != 1 && found == one);
}

std::string to_string(const Shape& shape) {
  std::ostringstream text;
  for (std::size_t i = 0; i < shape.size(); ++i) text << (i > 0 ? ", " : "") << shape[i];
  return '[' + text.str() + ']';
}

/// The first ten, one a line, and how many more.
std::string to_lines(const std::vector<std::string>& items) {
  constexpr std::size_t shown = 10;
  std::string text;
  for (std::size_t i = 0; i < std::min(items.size(), shown); ++i) text += "\n  " + items[i];
  if (items.size() > shown) text += "\n  and " + std::to_string(items.size() - shown) + " more";
  return text;
}

/// Which file holds which tensor, checked: hostile names must not lead out of the folder.
std::map<std::string, std::string> read_index(const fs::path& path) {
  const nlohmann::json index = io::read_json_object(path, kLoad, kMaxIndexBytes);
  const bool listed = index.contains("weight_map") && index["weight_map"].is_object();
  check(listed, kLoad, path.string(), " has no weight_map");
  std::map<std::string, std::string> files;
  for (const auto& [name, file] : index["weight_map"].items()) {
    check(file.is_string(), kLoad, path.string(), ": the file of '", name, "' must be a string, got ", io::brief(file));
    const auto& text = file.get_ref<const std::string&>();
    check(!text.empty() && text.find_first_of("/\\") == std::string::npos, kLoad, path.string(), ": the file of '",
          name, "' must lie in the same folder, got '", text, "'");
    files[name] = text;
  }
  return files;
}

}  // namespace

ClipFiles ClipFiles::open_archive(const fs::path& file) {
  ClipFiles all;
  all.path = file;
  all.tensors = all.archive.emplace(file).tensors();
  return all;
}

ClipFiles ClipFiles::open(const fs::path& folder, const std::string& stem, const std::string& archive) {
  ClipFiles all;
  all.path = folder / (stem + ".safetensors");
  if (fs::exists(all.path)) {
    all.tensors = all.files.emplace_back(all.path).tensors();
    return all;
  }
  const fs::path index = folder / (stem + ".safetensors.index.json");
  if (!fs::exists(index) && fs::exists(folder / archive)) return open_archive(folder / archive);
  check(fs::exists(index), kLoad, folder.string(), " has neither ", stem, ".safetensors nor ", stem,
        ".safetensors.index.json nor ", archive, "; other formats are not read");
  all.path = index;
  std::map<std::string, const io::Safetensors*> opened;
  for (const auto& [name, file] : read_index(index)) {
    const io::Safetensors*& shard = opened[file];
    if (shard == nullptr) shard = &all.files.emplace_back(folder / file);
    const auto found = shard->tensors().find(name);
    check(found != shard->tensors().end(), kLoad, index.string(), ": tensor '", name, "' is not in ", file);
    all.tensors.emplace(name, found->second);
  }
  return all;
}

ClipWeights::ClipWeights(ClipFiles files, const Shapes& shapes, const ClipNames& names) : files_(std::move(files)) {
  static const std::set<std::string> known{"F32", "F16", "BF16", "F64"};
  std::vector<std::string> missing, wrong;
  std::set<std::string> dtypes;
  for (const auto& [name, shape] : shapes) {
    const ClipTensorName where = names(name);
    join(where);
    const auto found = files_.tensors.find(where.name);
    if (found == files_.tensors.end()) {
      missing.push_back(where.name);
    } else if (const Shape expected = stored_shape(shape, where); !fits(found->second.shape, expected)) {
      wrong.push_back(where.name + ": expected " + to_string(expected) + ", got " + to_string(found->second.shape));
    } else if (known.count(found->second.dtype) == 0) {
      wrong.push_back(where.name + ": expected F32, F16 or BF16, got " + found->second.dtype);
    } else {
      tensors_.emplace(name, view(found->second, where, shape));
      dtypes.insert(found->second.dtype);
    }
  }
  check(missing.empty(), kLoad, files_.path.string(), " lacks ", missing.size(), " of ", shapes.size(),
        " tensors:", to_lines(missing));
  check(wrong.empty(), kLoad, files_.path.string(), " does not fit its configuration:", to_lines(wrong));
  for (const std::string& dtype : dtypes) dtype_ += (dtype_.empty() ? "" : ", ") + dtype;
}

void ClipWeights::join(const ClipTensorName& where) {
  const auto first = files_.tensors.find(where.name), last = files_.tensors.find(where.last);
  if (first == files_.tensors.end() || last == files_.tensors.end()) return;
  io::TensorView& whole = first->second;
  const io::TensorView& more = last->second;
  const bool alike = whole.dtype == more.dtype && !whole.shape.empty() && whole.shape.size() == more.shape.size() &&
                     std::equal(whole.shape.begin() + 1, whole.shape.end(), more.shape.begin() + 1);
  check(alike, kLoad, files_.path.string(), ": '", where.name, "' and '", where.last, "' do not fit each other");
  std::vector<std::byte>& copy = copies_.emplace_back(whole.data.begin(), whole.data.end());
  copy.insert(copy.end(), more.data.begin(), more.data.end());
  whole.shape[0] += more.shape[0], whole.data = copy;
  files_.tensors.erase(last);
}

io::TensorView ClipWeights::view(const io::TensorView& source, const ClipTensorName& where, const Shape& shape) {
  const std::size_t size = source.data.size() / static_cast<std::size_t>(where.parts);
  const auto data = source.data.subspan(size * static_cast<std::size_t>(where.part), size);
  if (!where.transposed) return {source.dtype, shape, data};
  const auto rows = static_cast<std::size_t>(shape[0]), columns = static_cast<std::size_t>(shape[1]);
  const std::size_t element = size / (rows * columns);
  std::vector<std::byte>& copy = copies_.emplace_back(size);
  for (std::size_t i = 0; i < rows * columns; ++i) {
    std::memcpy(&copy[i * element], &data[(i % columns * rows + i / columns) * element], element);
  }
  return {source.dtype, shape, copy};
}

std::int64_t ClipWeights::parameters() const {
  std::int64_t count = 0;
  for (const auto& [name, view] : tensors_) count += view.count();
  return count;
}

std::string ClipWeights::fingerprint(const std::string& config) const {
  std::vector<const std::pair<const std::string, io::TensorView>*> items;
  for (const auto& item : tensors_) items.push_back(&item);
  std::vector<std::string> digests(items.size());
  parallel_for(static_cast<std::int64_t>(items.size()),
               [&](std::int64_t i) { digests[i] = io::sha256(items[i]->second.data); });
  std::string text = config + '\n';
  for (std::size_t i = 0; i < items.size(); ++i) {
    const auto& [name, view] = *items[i];
    text += name + ' ' + view.dtype + ' ' + to_string(view.shape) + ' ' + digests[i] + '\n';
  }
  return io::sha256(std::as_bytes(std::span(text)));
}

}  // namespace reco
