// SPDX-License-Identifier: Apache-2.0
// Approximate search: one index a side over the rows of a snapshot. Three kinds, told apart by FAISS's factory string:
//
//     HNSW32[,Flat]     the graph of Malkov and Yashunin (arXiv 1603.09320), built by FAISS over the half-precision
//     rows of
//                       the shards and searched by a loop of our own: no second copy of the rows
//     IVF1024[,Flat]    inverted lists that hold row numbers only, centroids from FAISS's k-means: 8 bytes a row
//     anything else     an index of FAISS in its own file; what it finds is scored again with the rows themselves
//
// All of them score with the kernel of exact search, so a row that is found has the same score as there.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/safetensors.h"
#include "memory_candidates.h"
#include "reco/error.h"
#include "reco/interrupt.h"
#include "reco/types.h"

namespace reco {

/// One row of the database's table of indexes.
struct MemoryIndexFile {
  std::int64_t modality = 0;  ///< as side_index()
  std::int64_t number = 0;
  std::string factory;
  std::int64_t end_row = 0;  ///< holds rows below this only
  std::int64_t rows = 0;     ///< as many of them
  std::int64_t bytes = 0;
  std::string sha256;
  std::int64_t effort = 0;      ///< HNSW's efSearch, IVF's nprobe; 0 where the kind has neither
  std::int64_t refine = 1;      ///< candidates a wanted neighbour that are scored again
  std::int64_t recall_ppm = 0;  ///< millionths, as measured when it was built

  std::filesystem::path file(const std::filesystem::path& folder) const;
};

/// What a factory string asks for.
struct IndexKind {
  enum class Type { graph, lists, faiss } type = Type::faiss;
  std::int64_t parameter = 0;  ///< links a node, or lists
};
IndexKind index_kind(std::string_view factory);

/// Immutable and thread safe once it is shared.
class MemoryIndex {
 public:
  virtual ~MemoryIndex() = default;
  /// Offers what it finds; a row is offered once a query. Runs on threads(). Throws Error when the index is damaged.
  virtual void search(const QueryGroup& group, Candidates& best) const = 0;
  /// How hard to look: before it is shared.
  virtual void set_effort(std::int64_t effort, std::int64_t refine) = 0;
  /// The row that it takes for the nearest of each unit query by scores of its own, -1 where it finds none; nothing for
  /// a kind that has only the rows' scores.
  virtual std::vector<std::int64_t> nearest(const Matrix&) const { return {}; }
  /// What its own scores come from: bytes that it keeps of each number of a row.
  virtual double bytes_a_number() const { return 2; }
};

/// An index that is read when it is first used, so that opening a memory does not wait for it.
class IndexSlot {
 public:
  IndexSlot(std::filesystem::path folder, MemoryIndexFile file, std::int64_t dim);
  const MemoryIndexFile& file() const { return file_; }
  /// Null when the file is gone, since a newer index took its place. Throws Error, each time, when it is damaged.
  std::shared_ptr<const MemoryIndex> get() const;

 private:
  std::filesystem::path folder_;
  MemoryIndexFile file_;
  std::int64_t dim_;
  mutable std::mutex mutex_;
  mutable std::shared_ptr<const MemoryIndex> index_;
};

/// Reads an index file of a kind and sets its effort. Does not look at checksums.
std::shared_ptr<MemoryIndex> load_index(const std::filesystem::path& path, const MemoryIndexFile& file,
                                        std::int64_t dim);

/// What building may take and whom it tells.
struct IndexBuild {
  std::int64_t max_memory = 0;  ///< bytes beside the shards
  std::uint64_t seed = 0;
  std::function<void(std::int64_t rows)> report;  ///< called with rows newly done; may throw to stop
};

/// An index in the making, over rows of one side of a snapshot.
class IndexBuilder {
 public:
  virtual ~IndexBuilder() = default;
  /// Before rows are added, unless resume() was called.
  virtual void train() {}
  virtual void add(std::span<const std::int64_t> rows) = 0;
  /// What load_index() reads; more rows may be added afterwards.
  virtual void write(const std::filesystem::path& path) const = 0;
  /// Goes on from what write() wrote, which must be intact; returns the rows in it, ascending.
  virtual std::vector<std::int64_t> resume(const std::filesystem::path& path) = 0;
};

/// What every kind builds from. The snapshot must outlive the builder.
struct IndexSource {
  const MemorySnapshot& snapshot;
  std::size_t side;
  std::vector<std::int64_t> sample;  ///< rows to train on, in random order
  std::int64_t rows;                 ///< that will be added
};

/// Starts an index. Throws Error for a factory string that FAISS does not know, and when more than
/// build.max_memory is needed.
std::unique_ptr<IndexBuilder> make_builder(const std::string& factory, const IndexSource& source,
                                           const IndexBuild& build);

/// How the names of index files end: FAISS's own have their own format.
inline constexpr std::array<const char*, 2> kIndexSuffixes{".safetensors", ".index"};
const char* index_suffix(const std::string& factory);

// The kinds, each in a source of its own.
std::shared_ptr<MemoryIndex> load_graph(const std::filesystem::path& path);
std::unique_ptr<IndexBuilder> make_graph_builder(std::int64_t links, const IndexSource& source,
                                                 const IndexBuild& build);
std::shared_ptr<MemoryIndex> load_lists(const std::filesystem::path& path, std::int64_t dim);
std::unique_ptr<IndexBuilder> make_lists_builder(std::int64_t lists, const IndexSource& source,
                                                 const IndexBuild& build);
std::shared_ptr<MemoryIndex> load_faiss(const std::filesystem::path& path, std::int64_t dim);
std::unique_ptr<IndexBuilder> make_faiss_builder(const std::string& factory, const IndexSource& source,
                                                 const IndexBuild& build);

/// A tensor of an index file. Throws Error unless it is there with the dtype, dimensions and alignment.
template <typename T>
std::span<const T> index_tensor(const io::Safetensors& file, const char* name, const char* dtype,
                                std::size_t dimensions) {
  const auto found = file.tensors().find(name);
  const bool fits = found != file.tensors().end() && found->second.dtype == dtype &&
                    found->second.shape.size() == dimensions &&
                    reinterpret_cast<std::uintptr_t>(found->second.data.data()) % alignof(T) == 0;
  check(fits, "memory.index", "'", file.path().string(), "' must have a tensor '", name, "' of ", dtype);
  return {reinterpret_cast<const T*>(found->second.data.data()), found->second.data.size() / sizeof(T)};
}

/// Throws Error unless a file is an index of FAISS's over `dim` numbers whose lists and links stay inside it and lead
/// to fewer than `rows` rows. Reads it in a process of its own, so that a hostile file cannot do harm here. Returns how
/// many rows it holds. `name` is what an Error calls it.
std::int64_t check_faiss_file(const std::filesystem::path& path, const std::string& name, std::int64_t dim,
                              std::int64_t rows);

/// From the first call on, FAISS's training and searches end early where the calling thread shall stop.
void make_faiss_interruptible();

/// Runs work that calls FAISS: its exceptions become Errors.
template <typename Work>
auto with_faiss(const char* tag, const Work& work) {
  make_faiss_interruptible();
  try {
    return work();
  } catch (const Error&) {
    throw;
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& error) {
    check_interrupt();
    fail(tag, "FAISS: ", error.what());
  }
}

}  // namespace reco
