// SPDX-License-Identifier: Apache-2.0
/// @file
/// The memory: image-text pairs as embeddings, kept in a folder and searched by either side.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "reco/export.h"
#include "reco/memory_base.h"
#include "reco/types.h"

namespace reco {

/// How a memory keeps its embeddings: what the files hold is what is searched and what is fused. In bytes a row of 512
/// numbers, 1,024 as float16, 512 as int8, 256, 128 or 64 as codes of 4, 2 or 1 bits a number; benchmarks/README.md has
/// what each costs in accuracy. Codes need a dim that is a multiple of 8; they are made as TurboQuant (arXiv
/// 2504.19874) makes them: a rotation, then the nearest of a few levels.
enum class Storage { float16, int8, codes4, codes2, codes1 };

/// "float16", "int8", "codes4", "codes2", "codes1".
RECO_API const char* storage_name(Storage storage);

/// The storage of a name, as storage_name() gives it. Throws Error for an unknown one.
RECO_API Storage parse_storage(const std::string& name);

/// How to make searches fast: see Memory::optimize().
struct OptimizeOptions {
  /// "auto", "exact" (drops the indexes) or a factory string of FAISS: "HNSW32", "IVF4096,Flat", "IVF4096,PQ64", ...
  std::string index = "auto";
  double recall = 0.95;  ///< share of the k nearest rows that searches shall find, above 0 and at most 1
  std::int64_t k = 10;   ///< neighbours that recall counts, 1 to 1,000
  /// Bytes that searching one side may keep in memory, index and rows; "auto" obeys. 0: half of what there is, the
  /// machine's or, where that is less, what the process's control group allows.
  std::int64_t max_bytes = 0;
  std::int64_t max_build_bytes = 0;  ///< bytes that building may take beside the shards; 0: half of what there is
  std::uint64_t seed = 0;            ///< of the rows that are drawn to train and to measure with
};

/// One side's index.
struct IndexInfo {
  Modality modality = Modality::image;  ///< the side
  std::string index{};                  ///< factory string; "exact" where there is none
  std::int64_t rows = 0;                ///< rows that it holds; newer ones are compared one by one
  std::int64_t bytes = 0;               ///< of its file
  std::int64_t effort = 0;              ///< what optimize() chose: HNSW's efSearch, IVF's nprobe
  std::int64_t refine = 0;              ///< candidates a wanted neighbour that are compared with their full rows
  double recall = 0;                    ///< measured on rows that were held out of the index until then
  double build_seconds = 0;             ///< as optimize() measured it, else 0
  double search_seconds = 0;            ///< median time of one query, as optimize() measured it, else 0
};

/// Two pairs that are nearly the same.
struct Duplicate {
  std::int64_t row = 0;    ///< of this memory
  std::int64_t other = 0;  ///< above `row` within one memory, else of the other set
  float score = 0;         ///< cosine similarity
  bool more = false;       ///< other pairs, less similar than this one, were left out: see Memory::duplicates()
};

/// What a memory is and takes.
struct MemoryInfo {
  std::string path{};                  ///< its folder
  std::int64_t rows = 0;               ///< live pairs
  std::int64_t removed = 0;            ///< removed pairs whose space is not reclaimed
  std::int64_t dim = 0;                ///< width of the embeddings
  Storage storage = Storage::float16;  ///< how the files keep a number
  std::string encoder{};               ///< fingerprint of the encoder that made the embeddings
  std::int64_t bytes = 0;              ///< on disk, in its folder
  std::int64_t attached = 0;           ///< bytes of attached files, which lie elsewhere
  std::int64_t shards = 0;             ///< files a side
  std::int64_t format = 0;             ///< version of the format
  std::vector<IndexInfo> indexes{};    ///< of the image side, then of the text side
};

/// A folder of image-text pairs (python/README.md, "On disk"): `memory.sqlite` is the single source of truth,
/// `img_emb/*.npy` and `text_emb/*.npy` are immutable shards.
///
/// Durable: a call that returned is on disk; a crash at any moment leaves the last committed state. What is read is
/// checked: words and indexes against checksums, files for size and shape. Embeddings are not, or every search would
/// read them all: a bit that flips in a shard changes what is found until verify() notices and repair() helps. A log
/// that is damaged before the next writer opens the memory ends there for SQLite: an earlier committed state is left.
/// Thread safe: any number of searches run beside one change at a time; a search sees the pairs of the moment when it
/// began. One process writes: a second writer gets an Error. Copies are cheap and share the open folder. One call uses
/// threads() threads.
class RECO_API Memory final : public MemoryBase {
 public:
  /// Makes a new, empty memory. Throws Error if the folder exists and is not empty, if dim is not in [1, 65,536], or if
  /// the storage does not take it.
  static Memory create(const std::filesystem::path& folder, std::int64_t dim, const std::string& encoder = "",
                       Storage storage = Storage::float16);

  /// Opens an existing one; shards are memory-mapped. A read-only memory refuses changes. Throws Error if the folder is
  /// no memory, of a newer format, damaged, or, with `encoder` given, made by another encoder.
  static Memory open(const std::filesystem::path& folder, bool read_only = false, const std::string& encoder = "");

  /// Makes a damaged memory whole again: keeps every pair whose words and embeddings fit their checksums, forgets the
  /// others and every damaged index. Returns a line for each thing that was lost; empty if nothing was. No process may
  /// have the memory open. Throws Error where SQLite cannot read the database: then nothing is changed.
  static std::vector<std::string> repair(const std::filesystem::path& folder);

  /// Appends n pairs, [n, dim] each; rows are scaled to unit length. All or nothing. Throws Error, with nothing
  /// written, for wrong shapes, non-finite or zero rows, empty or repeated keys, and keys that are already there.
  void add(const MatrixView& image_embeddings, const MatrixView& text_embeddings, const RowInfo& info) override;

  /// The same, but pairs whose keys are there already are replaced.
  void upsert(const MatrixView& image_embeddings, const MatrixView& text_embeddings, const RowInfo& info);

  /// Appends the pairs of two .npy files where they lie, [n, dim] each, rows of unit length in the memory's storage:
  /// the files are not copied, and must stay there unchanged. An empty key leaves its row out. All or nothing.
  /// compact() leaves such files alone. Throws Error, with nothing written, for files that do not fit, and as add()
  /// does. Where a file has moved or changed size since, open() throws Error naming it; verify() compares its checksum.
  void attach(const std::filesystem::path& image_file, const std::filesystem::path& text_file, const RowInfo& info);

  /// Removes pairs; they are never found again, and their keys are free. What they hold stays in the files until
  /// compact(). Throws Error, with nothing removed, if a key is not there.
  void remove(std::span<const std::string> keys) override;

  /// Reclaims the space of removed pairs and joins small files. The other pairs keep their row numbers; removed ones
  /// lose their words and embeddings. Searches go on meanwhile, changes wait. Where much was removed, a new optimize()
  /// makes searches faster.
  void compact();

  /// The k most similar live pairs of each query ([n, dim], scaled to unit length): exactly, unless optimize() made an
  /// index. Throws Error for another number of columns, non-finite queries, k out of range, a condition that SQLite
  /// refuses, a damaged index.
  Neighbors search(const MatrixView& queries, const SearchOptions& options = {}) const override;

  /// Builds an index for both sides, so that searches compare a query with few rows instead of all. The settings that
  /// reach `recall` are found with rows that are held out until then. Searches and changes go on meanwhile; rows that
  /// are added later are found at once, compared one by one; removed rows are never found.
  ///
  /// "HNSW<links>" (Malkov and Yashunin, arXiv 1603.09320) and "IVF<lists>,Flat" (Jegou et al., "Product Quantization
  /// for Nearest Neighbor Search", 2011) keep no second copy of the rows: 9 bytes a link and row, or 8 bytes a row. All
  /// other indexes are FAISS's own (Douze et al., arXiv 2401.08281); what they find is compared again with the full
  /// rows. "auto" takes exact search below 50,000 rows, else HNSW32 up to 4 million rows, else IVF, and IVF with
  /// product quantisation where the rows do not fit into `max_bytes`. Where that misses `recall`, or needs too much to
  /// build, it tries what else fits: IVF after HNSW, a byte or half a byte a number after product quantisation. Where
  /// all miss it, the one with the best recall is kept: see IndexInfo::recall.
  ///
  /// What building takes is predicted before it begins, and kept. Throws Error for an unknown index, with the numbers
  /// for one that needs more than `max_build_bytes`, and when `progress` stops it;
  /// then the sides that are done keep their new index. Building that was stopped or killed goes on where it was, or a
  /// minute before, when the same call is made on the same pairs.
  std::vector<IndexInfo> optimize(const OptimizeOptions& options = {}, const Progress& progress = {});

  /// Takes over an index that FAISS wrote over one side of this memory's rows, in the order of their numbers from 0 on,
  /// by inner product or by distance; the file is copied. The file is read in a process of its own first, and its lists
  /// and links are checked. Settings that reach options.recall are found as optimize() finds them. Throws Error for a
  /// file that is no such index, or does not find the rows under their own numbers: it must take nine in ten of them
  /// for themselves or, where it keeps a byte a number, find as many among the nearest ten (half of them where it keeps
  /// less), and take none that lies a fixed distance away more often.
  IndexInfo adopt_index(const std::filesystem::path& file, Modality modality, const OptimizeOptions& options = {});

  /// The live pairs whose embeddings of one side have at least this similarity, best first. Goes through the index
  /// where there is one, and then may miss some. Bounded, since a picture that is there ten thousand times makes fifty
  /// million pairs: each row is compared with the 4,096 nearest to it, and the best 4,194,304 pairs are kept. Where
  /// that left pairs out, Duplicate::more is true for those of the rows, or for the last one of all. Throws Error when
  /// `progress`, which is told of rows, stops it.
  std::vector<Duplicate> duplicates(float min_similarity, Modality modality = Modality::image,
                                    const Progress& progress = {}) const;

  /// The same between this memory and another set, such as a test set that must not have leaked into it: `row` is this
  /// memory's, `other` the other's. Throws Error, too, when dimensions or encoders differ.
  std::vector<Duplicate> duplicates(const Memory& against, float min_similarity, Modality modality = Modality::image,
                                    const Progress& progress = {}) const;
  /// The same for a set of embeddings [n, dim], scaled to unit length: `other` is the place in it.
  std::vector<Duplicate> duplicates(const MatrixView& against, float min_similarity,
                                    Modality modality = Modality::image, const Progress& progress = {}) const;

  MemoryRow get(const std::string& key) const override;  ///< throws Error if the key is not there
  bool contains(const std::string& key) const;           ///< whether a live pair has this key
  std::int64_t size() const override;                    ///< live pairs
  std::int64_t dim() const override;                     ///< width of the embeddings
  std::string encoder() const override;                  ///< fingerprint of the encoder that made them; "" fits any
  MemoryInfo info() const;                               ///< what it is and takes

  /// Keys of rows as Neighbors gives them; -1 gives "". Rows removed since still give theirs until compact(). Throws
  /// Error for row numbers that were never given out.
  std::vector<std::string> keys(std::span<const std::int64_t> rows) const override;
  /// Captions of rows, as keys() gives their keys.
  std::vector<std::string> captions(std::span<const std::int64_t> rows) const override;
  /// Metadata of rows, JSON objects, as keys() gives their keys.
  std::vector<std::string> metadata(std::span<const std::int64_t> rows) const override;

  /// The row numbers of all live pairs, in the order they were added.
  std::vector<std::int64_t> rows() const;

  /// One side's embeddings of rows as rows() gives them: [n, dim] unit rows; -1 gives zeros. Throws Error as keys().
  Matrix embeddings(std::span<const std::int64_t> rows, Modality modality) const override;

  /// Checks every file against its checksum and the database against the files: one line for each fault, naming file
  /// and place; empty when all is well. Throws Error only when the check itself cannot run.
  std::vector<std::string> verify() const;

  /// Closes the folder for this object and all copies, after the change that is being written: another writer may open
  /// it then. Whatever is called later throws Error.
  void close();
  bool closed() const;  ///< whether close() was called, here or on a copy

 private:
  struct Impl;
  explicit Memory(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<Impl> impl_;
};

}  // namespace reco
