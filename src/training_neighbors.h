// SPDX-License-Identifier: Apache-2.0
// The neighbours of all pairs that are trained on, found once; held in memory, or in a folder that others may write
// too:
//
//     neighbors.json     {"format": "reco.neighbors/1", "pairs": n, "k": k, "search": FusionConfig's, "max_similarity":
//                        number or null, "encoder": the memory's, "memory_rows": how many pairs the memory has}
//     image_rows.npy     '<i8' [n, k]: row numbers in the memory for each pair's image, best first; -1 for none
//     image_scores.npy   '<f4' [n, k]: their similarities; 0 for none
//     text_rows.npy, text_scores.npy     the same for each pair's text
//
// The json comes first; each array is written under another name and renamed when it is whole, so that a run that was
// killed goes on with the sides that are done.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "io/file.h"
#include "reco/training.h"

namespace reco::training {

/// An array [n, k] that is written block by block, then read: in memory, or in a .npy file if it has a path.
template <typename Number>
class NeighborArray {
 public:
  NeighborArray(std::filesystem::path path, std::int64_t n, std::int64_t k);

  /// Whether the file is there already; maps it. Throws Error when it holds something else.
  bool open();
  void append(const Number* data, std::int64_t count);
  /// From here on it can be read.
  void finish();
  const Number* row(std::int64_t i) const { return values_.data() + i * k_; }
  std::span<const Number> values() const { return values_; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path temporary() const { return path_.string() + ".partial"; }

  std::filesystem::path path_;
  std::int64_t n_, k_;
  std::vector<Number> held_;
  std::ofstream file_;
  io::MappedFile mapped_;
  std::span<const Number> values_;
};

/// Both sides' neighbours of n pairs.
class NeighborTable {
 public:
  /// Searches a block of pairs, from the first on, for so many neighbours.
  using Search = std::function<Neighbors(Modality side, std::int64_t first, std::int64_t count, std::int64_t k)>;

  /// Opens the table in config.neighbors, or else beside config.checkpoint, where there is one; makes one there, or in
  /// memory if neither is given. Throws Error for a table of other pairs, another memory or another search, for fewer
  /// neighbours than config.fusion.k, and for damaged files.
  NeighborTable(const TrainingConfig& config, std::int64_t pairs, const MemoryBase& memory);

  /// Searches for what is not there yet.
  void fill(const Search& search);

  /// The first k neighbours of each of these pairs, without partners.
  Neighbors of(Modality side, std::span<const std::int64_t> pairs, std::int64_t k) const;

  /// Whether files that were there before are used; the highest row number they name.
  bool reused() const { return reused_; }
  std::int64_t highest_row() const;

  /// What to call it in messages.
  const std::filesystem::path& folder() const { return folder_; }

  /// Removes the files unless config.neighbors asked for them.
  void discard();

 private:
  struct Side {
    NeighborArray<std::int64_t> rows;
    NeighborArray<float> scores;
  };

  void open_folder(const TrainingConfig& config, const MemoryBase& memory);
  Side side(const char* name) const;
  Side& of(Modality side) { return side == Modality::image ? sides_[0] : sides_[1]; }
  void fill(Modality side, const Search& search);

  std::filesystem::path folder_;  // empty: in memory
  std::int64_t pairs_, k_;
  bool scratch_, reused_ = false;
  std::vector<Side> sides_;  // image, text
};

/// Where the neighbours of a run are kept: empty for in memory.
std::filesystem::path neighbor_folder(const TrainingConfig& config);

}  // namespace reco::training
