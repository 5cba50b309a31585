// SPDX-License-Identifier: Apache-2.0
#include "clip_weights.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "clip_config.h"
#include "io/sha256.h"
#include "parallel.h"
#include "reco/error.h"

namespace reco {

namespace {

namespace fs = std::filesystem;

constexpr const char* kLoad = "clip.load";

std::string to_string(const std::vector<std::int64_t>& shape) {
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
  const nlohmann::json index = read_json(path, kLoad);
  const bool listed = index.is_object() && index.contains("weight_map") && index["weight_map"].is_object();
  check(listed, kLoad, path.string(), " has no weight_map");
  std::map<std::string, std::string> files;
  for (const auto& [name, file] : index["weight_map"].items()) {
    check(file.is_string(), kLoad, path.string(), ": the file of '", name, "' must be a string, got ", file.dump());
    const auto& text = file.get_ref<const std::string&>();
    check(!text.empty() && text.find_first_of("/\\") == std::string::npos, kLoad, path.string(), ": the file of '",
          name, "' must lie in the same folder, got '", text, "'");
    files[name] = text;
  }
  return files;
}

}  // namespace

ClipWeights::ClipWeights(const fs::path& folder, const Shapes& shapes) : path_(folder / "model.safetensors") {
  const fs::path index = folder / "model.safetensors.index.json";
  if (fs::exists(path_)) {
    const io::Safetensors& file = files_.emplace_back(path_);
    for (const auto& [name, view] : file.tensors()) {
      if (shapes.count(name) > 0) tensors_.emplace(name, view);
    }
  } else {
    check(fs::exists(index), kLoad, folder.string(),
          " has neither model.safetensors nor model.safetensors.index.json; other formats are not read");
    open_shards(index, shapes);
  }
  check_shapes(shapes);
  std::set<std::string> dtypes;
  for (const auto& [name, view] : tensors_) dtypes.insert(view.dtype);
  for (const std::string& dtype : dtypes) dtype_ += (dtype_.empty() ? "" : ", ") + dtype;
}

void ClipWeights::open_shards(const fs::path& index, const Shapes& shapes) {
  path_ = index;
  std::map<std::string, const io::Safetensors*> opened;
  for (const auto& [name, file] : read_index(index)) {
    if (shapes.count(name) == 0) continue;
    const io::Safetensors*& shard = opened[file];
    if (shard == nullptr) shard = &files_.emplace_back(index.parent_path() / file);
    const auto found = shard->tensors().find(name);
    check(found != shard->tensors().end(), kLoad, index.string(), ": tensor '", name, "' is not in ", file);
    tensors_.emplace(name, found->second);
  }
}

void ClipWeights::check_shapes(const Shapes& shapes) const {
  std::vector<std::string> missing, wrong;
  for (const auto& [name, shape] : shapes) {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) {
      missing.push_back(name);
    } else if (found->second.shape != shape) {
      wrong.push_back(name + ": expected " + to_string(shape) + ", got " + to_string(found->second.shape));
    } else if (static const std::set<std::string> known{"F32", "F16", "BF16", "F64"};
               known.count(found->second.dtype) == 0) {
      wrong.push_back(name + ": expected F32, F16 or BF16, got " + found->second.dtype);
    }
  }
  check(missing.empty(), kLoad, path_.string(), " lacks ", missing.size(), " of ", shapes.size(),
        " tensors:", to_lines(missing));
  check(wrong.empty(), kLoad, path_.string(), " does not fit config.json:", to_lines(wrong));
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
