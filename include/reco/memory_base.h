// SPDX-License-Identifier: Apache-2.0
/// @file
/// What a model looks pairs up in. Memory, a folder, is one; whoever keeps pairs elsewhere, in a vector database say,
/// implements this.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "reco/export.h"
#include "reco/types.h"

namespace reco {

/// One remembered pair.
struct MemoryRow {
  std::string key;                  ///< its name, one of its own within the memory
  std::string caption;              ///< "" where there is none
  std::string metadata;             ///< a JSON object
  Eigen::VectorXf image_embedding;  ///< [dim], unit length
  Eigen::VectorXf text_embedding;   ///< [dim], unit length
};

/// What describes the pairs of one add(), one entry a row. Captions and metadata may be empty: none.
struct RowInfo {
  std::vector<std::string> keys;      ///< UTF-8, 1 to 65,535 bytes each, all different
  std::vector<std::string> captions;  ///< UTF-8
  std::vector<std::string> metadata;  ///< JSON objects
};

/// What to find, and what not.
struct SearchOptions {
  std::int64_t k = 10;                  ///< neighbours a query, 1 <= k <= 4,096
  Modality modality = Modality::image;  ///< the side that the queries are compared with
  /// Keys that must not be found: empty, one list for all queries, or one list a query. Unknown keys are ignored.
  std::vector<std::vector<std::string>> exclude_keys{};
  /// Keys that alone may be found; none given: all may. Unknown keys are ignored.
  std::optional<std::vector<std::string>> only_keys{};
  /// An SQL condition of SQLite's on key, caption and metadata that pairs must fulfil, such as
  /// `json_extract(metadata, '$.domain') = 'flags' AND caption LIKE '%sea%'`; empty: all do.
  std::string where{};
  /// Leaves out near-duplicates: rows whose similarity to the query is above this.
  std::optional<float> max_similarity{};
  bool partners = true;  ///< fetch the partner embeddings too
  bool exact = false;    ///< compare with every row, whatever indexes there are
  /// HNSW's efSearch or IVF's nprobe for this search; 0: what optimize() found. Indexes that have neither ignore
  /// it.
  std::int64_t effort = 0;
};

/// The result of a search over n queries; best first. Where fewer than k rows are left, row is -1, score 0 and the
/// partner all zeros.
struct Neighbors {
  std::int64_t k = 0;  ///< neighbours a query, as asked for
  IndexMatrix rows{};  ///< [n, k] row numbers, for Memory::keys() and captions()
  Matrix scores{};     ///< [n, k] cosine similarities
  Matrix partners{};   ///< [n * k, dim]: the other side's embedding of neighbour j of query i in row i * k + j
  Matrix same{};       ///< [n * k, dim]: the side of the query's own modality, where find_neighbors() needs it
};

/// Image-text pairs that are searched by either side. Rows are numbers that a pair keeps as long as it is there. All
/// functions may be called from several threads at once; what fails throws Error, never gives another pair's values.
class RECO_API MemoryBase {
 public:
  virtual ~MemoryBase() = default;

  virtual std::int64_t dim() const = 0;     ///< width of the embeddings
  virtual std::string encoder() const = 0;  ///< fingerprint of the encoder that made them; "" fits any
  virtual std::int64_t size() const = 0;    ///< pairs that can be found

  /// The most similar pairs of each query ([n, dim], of any length but zero) by cosine, with their partners where
  /// options.partners asks for them. An option that an implementation does not have is an Error, not ignored.
  virtual Neighbors search(const MatrixView& queries, const SearchOptions& options = {}) const = 0;

  /// One side's embeddings of rows, unit length: [n, dim]; -1 gives zeros.
  virtual Matrix embeddings(std::span<const std::int64_t> rows, Modality modality) const = 0;
  virtual std::vector<std::string> keys(std::span<const std::int64_t> rows) const = 0;      ///< -1 gives ""
  virtual std::vector<std::string> captions(std::span<const std::int64_t> rows) const = 0;  ///< -1 gives ""
  virtual std::vector<std::string> metadata(std::span<const std::int64_t> rows) const = 0;  ///< JSON; -1 gives ""
  virtual MemoryRow get(const std::string& key) const = 0;  ///< throws Error if the key is not there

  /// Appends pairs, [n, dim] each, whose keys are not there yet; what is added is found by the next search. Throws
  /// Error for shapes or words that do not fit, and keys that are there already, with nothing added. All or nothing,
  /// whatever happens; but reco's MilvusMemory sends many pairs in several requests: when the server fails between
  /// them, some are there, each whole, and its upsert() of all ends what was begun. The same holds for remove().
  virtual void add(const MatrixView& image_embeddings, const MatrixView& text_embeddings, const RowInfo& info) = 0;
  /// Throws Error, with nothing removed, if a key is not there.
  virtual void remove(std::span<const std::string> keys) = 0;

 protected:
  MemoryBase() = default;                              ///< for implementations
  MemoryBase(const MemoryBase&) = default;             ///< for implementations
  MemoryBase& operator=(const MemoryBase&) = default;  ///< for implementations
};

}  // namespace reco
