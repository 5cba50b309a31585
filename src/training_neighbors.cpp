// SPDX-License-Identifier: Apache-2.0
#include "training_neighbors.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <numeric>

#include "io/json.h"
#include "io/lock.h"
#include "io/npy.h"
#include "parallel.h"
#include "reco/error.h"

namespace reco::training {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kTag = "training.neighbors";
constexpr const char* kFormat = "reco.neighbors/1";
constexpr const char* kIdentity = "neighbors.json";
constexpr const char* kLock = "neighbors.lock";
constexpr std::int64_t kPairsAtOnce = 4096;
constexpr std::int64_t kBlock = 512;  // pairs that a thread gathers at once
constexpr std::size_t kMaxIdentity = 1 << 16;

template <typename Number>
constexpr const char* dtype = sizeof(Number) == 8 ? "<i8" : "<f4";

json identity(const TrainingConfig& config, std::int64_t pairs, const MemoryBase& memory) {
  return {{"format", kFormat},
          {"pairs", pairs},
          {"k", config.fusion.k},
          {"search", config.fusion.search},
          {"max_similarity", config.max_similarity ? json(*config.max_similarity) : json()},
          {"encoder", memory.encoder()},
          {"memory_rows", memory.size()}};
}

// Numbers compare as the floats that a search gets.
bool same(const json& a, const json& b) {
  const bool real = a.is_number() && b.is_number() && (a.is_number_float() || b.is_number_float());
  return real ? a.get<float>() == b.get<float>() : a == b;
}

// Checks a table's identity and returns its k.
std::int64_t read_identity(const fs::path& file, const json& expected) {
  const auto found = io::read_json_object(file, kTag, kMaxIdentity);
  for (const auto& [name, value] : expected.items()) {
    if (name == "k") continue;
    const auto& other = io::member(found, name.c_str());
    check(!other.is_structured() && same(other, value), kTag, "the neighbours in ", file.parent_path().string(),
          " belong to something else: expected ", name, " ", value.dump(), ", found ", io::brief(other),
          "; remove the folder to search again");
  }
  const auto& k = io::member(found, "k");
  const auto least = expected.at("k").get<std::int64_t>();
  check(k.is_number_integer() && k.get<std::int64_t>() >= least && k.get<std::int64_t>() <= 4096, kTag,
        "expected k from ", least, " to 4,096 in ", file.string(), ", found ", io::brief(k));
  return k.get<std::int64_t>();
}

void write_identity(const fs::path& file, const json& value) {
  const auto text = value.dump();
  const auto bytes = std::as_bytes(std::span(text));
  io::write_file_durably(file, std::span(&bytes, 1));
}

void check_values(std::span<const std::int64_t> rows, std::span<const float> scores, const fs::path& file) {
  const bool numbers = std::all_of(rows.begin(), rows.end(), [](auto row) { return row >= -1; });
  check(numbers, kTag, "row numbers must be -1 or more in ", file.string());
  // A NaN fails too.
  const bool cosines = std::all_of(scores.begin(), scores.end(), [](auto s) { return std::abs(s) <= 1.01F; });
  check(cosines, kTag, "similarities must be from -1 to 1 beside ", file.string());
}

}  // namespace

template <typename Number>
NeighborArray<Number>::NeighborArray(fs::path path, std::int64_t n, std::int64_t k)
    : path_(std::move(path)), n_(n), k_(k) {}

template <typename Number>
bool NeighborArray<Number>::open() {
  if (path_.empty() || !fs::exists(path_)) return false;
  mapped_ = io::MappedFile(path_);
  const auto view = io::read_npy(mapped_.bytes(), path_.string());
  check(view.dtype == dtype<Number> && view.shape == std::vector{n_, k_}, kTag, "expected ", dtype<Number>, " [", n_,
        ", ", k_, "] in ", path_.string(), ", found ", view.dtype, " of another shape or kind");
  check(reinterpret_cast<std::uintptr_t>(view.data.data()) % alignof(Number) == 0, kTag, "the numbers in ",
        path_.string(), " must begin at a multiple of ", alignof(Number), " bytes, as NumPy writes them");
  values_ = {reinterpret_cast<const Number*>(view.data.data()), static_cast<std::size_t>(n_ * k_)};
  return true;
}

template <typename Number>
void NeighborArray<Number>::append(const Number* data, std::int64_t count) {
  if (path_.empty()) {
    held_.reserve(static_cast<std::size_t>(n_ * k_));
    held_.insert(held_.end(), data, data + count);
    return;
  }
  if (!file_.is_open()) {
    file_.open(temporary(), std::ios::binary | std::ios::trunc);
    file_ << io::npy_header(dtype<Number>, {n_, k_});
  }
  file_.write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(sizeof(Number)) * count);
  check(file_.good(), kTag, "cannot write ", temporary().string(), ": ", std::strerror(errno));
}

template <typename Number>
void NeighborArray<Number>::finish() {
  if (path_.empty()) {
    values_ = held_;
    return;
  }
  file_.close();
  check(!file_.fail(), kTag, "cannot write ", temporary().string(), ": ", std::strerror(errno));
  io::rename_durably(temporary(), path_);
  open();
}

fs::path neighbor_folder(const TrainingConfig& config) {
  if (!config.neighbors.empty() || config.checkpoint.empty()) return config.neighbors;
  return config.checkpoint.string() + ".neighbors";
}

NeighborTable::NeighborTable(const TrainingConfig& config, std::int64_t pairs, const MemoryBase& memory)
    : folder_(neighbor_folder(config)), pairs_(pairs), k_(config.fusion.k), scratch_(config.neighbors.empty()) {
  if (!folder_.empty()) open_folder(config, memory);
  for (const char* name : {"image", "text"}) sides_.push_back(side(name));
}

void NeighborTable::open_folder(const TrainingConfig& config, const MemoryBase& memory) {
  std::error_code failed;
  fs::create_directories(folder_, failed);
  check(!failed, kTag, "cannot make the folder ", folder_.string(), ": ", failed.message());
  const auto expected = identity(config, pairs_, memory);
  if (fs::exists(folder_ / kIdentity)) {
    k_ = read_identity(folder_ / kIdentity, expected);
  } else {
    check(fs::is_empty(folder_), kTag, folder_.string(), " holds other files, and no ", kIdentity);
    write_identity(folder_ / kIdentity, expected);
  }
}

NeighborTable::Side NeighborTable::side(const char* name) const {
  const auto path = [&](const char* what) {
    return folder_.empty() ? fs::path() : folder_ / (name + std::string(what));
  };
  return {{path("_rows.npy"), pairs_, k_}, {path("_scores.npy"), pairs_, k_}};
}

void NeighborTable::fill(const Search& search) {
  for (const auto which : {Modality::image, Modality::text}) {
    auto& side = of(which);
    const bool rows = side.rows.open(), scores = side.scores.open();
    if (!rows || !scores) {
      const auto lock = folder_.empty() ? io::FileLock() : io::FileLock(folder_ / kLock, "another training run");
      fill(which, search);
      continue;
    }
    check_values(side.rows.values(), side.scores.values(), side.rows.path());
    reused_ = true;
  }
}

void NeighborTable::fill(Modality which, const Search& search) {
  auto& side = of(which);
  for (std::int64_t first = 0; first < pairs_; first += kPairsAtOnce) {
    const auto part = search(which, first, std::min(kPairsAtOnce, pairs_ - first), k_);
    side.rows.append(part.rows.data(), part.rows.size());
    side.scores.append(part.scores.data(), part.scores.size());
  }
  side.scores.finish();
  side.rows.finish();
}

Neighbors NeighborTable::of(Modality which, std::span<const std::int64_t> pairs, std::int64_t k) const {
  const auto& side = which == Modality::image ? sides_[0] : sides_[1];
  const auto n = static_cast<std::int64_t>(pairs.size());
  Neighbors out{k, IndexMatrix(n, k), Matrix(n, k), {}};
  // In the order of the file, so that what is not in the page cache is read forwards.
  std::vector<std::int64_t> order(pairs.size());
  std::iota(order.begin(), order.end(), std::int64_t{0});
  std::sort(order.begin(), order.end(), [&](auto a, auto b) { return pairs[a] < pairs[b]; });
  parallel_for((n + kBlock - 1) / kBlock, [&](std::int64_t block) {
    for (std::int64_t i = block * kBlock; i < std::min(n, (block + 1) * kBlock); ++i) {
      std::copy_n(side.rows.row(pairs[order[i]]), k, out.rows.row(order[i]).data());
      std::copy_n(side.scores.row(pairs[order[i]]), k, out.scores.row(order[i]).data());
    }
  });
  return out;
}

std::int64_t NeighborTable::highest_row() const {
  std::int64_t highest = -1;
  for (const auto& side : sides_) {
    for (const auto row : side.rows.values()) highest = std::max(highest, row);
  }
  return highest;
}

void NeighborTable::discard() {
  if (!scratch_ || folder_.empty()) return;
  for (const auto& side : sides_) {
    io::remove_file(side.rows.path());
    io::remove_file(side.scores.path());
  }
  io::remove_file(folder_ / kLock);
  io::remove_file(folder_ / kIdentity);
  std::error_code ignored;  // somebody else's files in it stay
  fs::remove(folder_, ignored);
}

}  // namespace reco::training
