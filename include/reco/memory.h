// SPDX-License-Identifier: Apache-2.0
// The memory: image-text pairs as embeddings, kept in a folder and searched by either side.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "reco/export.h"
#include "reco/types.h"

namespace reco {

/// One remembered pair.
struct MemoryRow {
  std::string key;
  std::string caption;
  std::string metadata;  ///< a JSON object
  Eigen::VectorXf image_embedding;
  Eigen::VectorXf text_embedding;
};

/// What describes the pairs of one add(), one entry a row. Captions and metadata may be empty: none.
struct RowInfo {
  std::vector<std::string> keys;
  std::vector<std::string> captions;
  std::vector<std::string> metadata;  ///< JSON objects
};

struct SearchOptions {
  std::int64_t k = 10;                  ///< neighbours a query, 1 <= k <= 4,096
  Modality modality = Modality::image;  ///< the side that the queries are compared with
  /// Keys that must not be found: empty, one list for all queries, or one list a query. Unknown keys are ignored.
  std::vector<std::vector<std::string>> exclude_keys{};
  /// Leaves out near-duplicates: rows whose similarity to the query is above this.
  std::optional<float> max_similarity{};
  bool partners = true;  ///< fetch the partner embeddings too
};

/// The result of a search over n queries; best first. Where fewer than k rows are left, row is -1, score 0 and the
/// partner all zeros.
struct Neighbors {
  std::int64_t k = 0;
  IndexMatrix rows{};  ///< [n, k] row numbers, for Memory::keys() and captions()
  Matrix scores{};     ///< [n, k] cosine similarities
  Matrix partners{};   ///< [n * k, dim]: the other side's embedding of neighbour j of query i in row i * k + j
};

struct MemoryInfo {
  std::string path{};
  std::int64_t rows = 0;     ///< live pairs
  std::int64_t removed = 0;  ///< removed pairs whose space is not reclaimed
  std::int64_t dim = 0;
  std::string encoder{};   ///< fingerprint of the encoder that made the embeddings
  std::int64_t bytes = 0;  ///< on disk
  std::int64_t shards = 0;
  std::int64_t format = 0;  ///< version of the format
};

/// A folder of image-text pairs (format: design of the README, "On disk"): `memory.sqlite` is the single source of
/// truth, `img_emb/*.npy` and `text_emb/*.npy` are immutable float16 shards.
///
/// Durable: a call that returned is on disk; a crash at any moment leaves the last committed state. Thread safe: any
/// number of searches run beside one change at a time. One process writes: a second writer gets an Error. Copies are
/// cheap and share the open folder.
class RECO_API Memory {
 public:
  /// Makes a new, empty memory. Throws Error if the folder exists and is not empty, or if dim is not in [1, 65,536].
  static Memory create(const std::filesystem::path& folder, std::int64_t dim, const std::string& encoder = "");

  /// Opens an existing one; shards are memory-mapped. A read-only memory refuses changes. Throws Error if the folder is
  /// no memory, of a newer format, damaged, or, with `encoder` given, made by another encoder.
  static Memory open(const std::filesystem::path& folder, bool read_only = false, const std::string& encoder = "");

  /// Appends n pairs, [n, dim] each; rows are scaled to unit length. All or nothing. Throws Error, with nothing
  /// written, for wrong shapes, non-finite or zero rows, empty or repeated keys, and keys that are already there.
  void add(const MatrixView& image_embeddings, const MatrixView& text_embeddings, const RowInfo& info);

  /// Removes pairs; they are never found again, and their keys are free. What they hold stays in the files. Throws
  /// Error, with nothing removed, if a key is not there.
  void remove(std::span<const std::string> keys);

  /// The k most similar live pairs of each query ([n, dim], scaled to unit length), exactly. Throws Error for another
  /// number of columns, non-finite queries, k out of range.
  Neighbors search(const MatrixView& queries, const SearchOptions& options = {}) const;

  MemoryRow get(const std::string& key) const;  ///< throws Error if the key is not there
  bool contains(const std::string& key) const;
  std::int64_t size() const;  ///< live pairs
  std::int64_t dim() const;
  std::string encoder() const;
  MemoryInfo info() const;

  /// Keys and captions of rows as Neighbors gives them; -1 gives "". Rows removed since still give theirs.
  std::vector<std::string> keys(std::span<const std::int64_t> rows) const;
  std::vector<std::string> captions(std::span<const std::int64_t> rows) const;
  std::vector<std::string> metadata(std::span<const std::int64_t> rows) const;

  /// The row numbers of all live pairs, in the order they were added.
  std::vector<std::int64_t> rows() const;

  /// One side's embeddings of rows as rows() gives them: [n, dim].
  Matrix embeddings(std::span<const std::int64_t> rows, Modality modality) const;

  /// Checks every file against its checksum and the database against the files: one line for each fault, naming file
  /// and place; empty when all is well. Throws Error only when the check itself cannot run.
  std::vector<std::string> verify() const;

  /// Closes the folder for this object and all copies, after the change that is being written: another writer may open
  /// it then. Whatever is called later throws Error.
  void close();
  bool closed() const;

 private:
  struct Impl;
  explicit Memory(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<Impl> impl_;
};

}  // namespace reco
