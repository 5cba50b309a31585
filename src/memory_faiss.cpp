// SPDX-License-Identifier: Apache-2.0
// Any other index of FAISS, in FAISS's own format, inside an IndexIDMap whose ids are row numbers. FAISS's reader
// trusts what it reads; the file's checksum is what protects it from damage.
#include <faiss/AutoTune.h>
#include <faiss/IndexFlat.h>
#include <faiss/IndexHNSW.h>
#include <faiss/IndexIDMap.h>
#include <faiss/IndexIVF.h>
#include <faiss/IndexIVFPQ.h>
#include <faiss/IndexPQ.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexRefine.h>
#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/io.h>
#include <faiss/index_factory.h>
#include <faiss/index_io.h>

#include <algorithm>

#include "io/file.h"
#include "memory_index.h"
#include "parallel.h"

namespace reco {

namespace {

constexpr const char* kTag = "memory.index";
constexpr std::int64_t kChunkRows = 2'048;  // added before it can be stopped: a graph takes a second for them
constexpr std::int64_t kTrainingRows = 262'144;
using Id = decltype(faiss::Index::ntotal);

/// Where FAISS writes an index: a file that is not there unless all of it is, since a full disk is an Error. FAISS asks
/// for a few bytes at a time.
class IndexWriter final : public faiss::IOWriter {
 public:
  explicit IndexWriter(const std::filesystem::path& path) : file_(path) { name = path.string(); }
  std::size_t operator()(const void* data, std::size_t size, std::size_t count) override {
    const auto bytes = std::span(static_cast<const std::byte*>(data), size * count);
    if (buffer_.size() + bytes.size() > kMost) flush();
    if (bytes.size() > kMost) {
      file_.write(bytes);
    } else {
      buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
    }
    return count;
  }
  void publish() {
    flush();
    file_.publish();
  }

 private:
  static constexpr std::size_t kMost = 1 << 20;
  void flush() {
    file_.write(buffer_);
    buffer_.clear();
  }
  io::NewFile file_;
  std::vector<std::byte> buffer_;
};

/// The index inside wrappers that pass searches on.
faiss::Index* innermost(faiss::Index* index) {
  if (auto* map = dynamic_cast<faiss::IndexIDMap*>(index)) return innermost(map->index);
  if (auto* transform = dynamic_cast<faiss::IndexPreTransform*>(index)) return innermost(transform->index);
  if (auto* refine = dynamic_cast<faiss::IndexRefine*>(index)) return innermost(refine->base_index);
  return index;
}

/// What one search asks of an IVF inside wrappers; FAISS 1.7.3 has nothing like it for its own HNSW.
class SearchEffort {
 public:
  SearchEffort(const faiss::Index& index, std::int64_t effort) {
    if (effort <= 0) return;
    ivf_.nprobe = static_cast<std::size_t>(effort);
    parameters_ = find(&index);
  }
  const faiss::SearchParameters* parameters() const { return parameters_; }

 private:
  const faiss::SearchParameters* find(const faiss::Index* index) {
    if (const auto* transform = dynamic_cast<const faiss::IndexPreTransform*>(index)) {
      transform_.index_params = const_cast<faiss::SearchParameters*>(find(transform->index));
      return transform_.index_params != nullptr ? &transform_ : nullptr;
    }
    return dynamic_cast<const faiss::IndexIVF*>(index) != nullptr ? &ivf_ : nullptr;
  }
  faiss::SearchParametersIVF ivf_;
  faiss::SearchParametersPreTransform transform_;
  const faiss::SearchParameters* parameters_ = nullptr;
};

class FaissIndex final : public MemoryIndex {
 public:
  FaissIndex(const std::filesystem::path& path, std::int64_t dim) : path_(path) {
    with_faiss(kTag, [&] { index_ = read(path); });
    // Of unit rows the nearest are those with the greatest inner product.
    const bool fits = index_->d == dim &&
                      (index_->metric_type == faiss::METRIC_INNER_PRODUCT || index_->metric_type == faiss::METRIC_L2);
    check(fits, kTag, "'", path.string(), "' must be an index of dim ", dim,
          " by inner product or distance, found dim ", index_->d);
  }

  void set_effort(std::int64_t effort, std::int64_t refine) override {
    refine_ = std::max<std::int64_t>(1, refine);
    faiss::Index* inner = innermost(index_.get());
    if (auto* ivf = dynamic_cast<faiss::IndexIVF*>(inner))
      ivf->nprobe = static_cast<std::size_t>(std::max<std::int64_t>(1, effort));
    if (auto* graph = dynamic_cast<faiss::IndexHNSW*>(inner))
      graph->hnsw.efSearch = static_cast<int>(std::clamp<std::int64_t>(effort, 1, 1 << 20));
  }

  void search(const QueryGroup& group, Candidates& best) const override {
    const std::int64_t wanted = wanted_candidates(group);
    if (wanted == 0) return;
    const std::int64_t dim = group.snapshot.dim();
    Matrix queries(group.count, dim);
    for (std::int64_t i = 0; i < group.count; ++i) std::copy_n(group.query(i), dim, queries.row(i).data());
    Matrix scores(group.count, wanted);
    std::vector<Id> rows(static_cast<std::size_t>(group.count * wanted), -1);
    // FAISS 1.7.3 passes no parameters through the map from places to row numbers: it is applied here.
    const auto* map = dynamic_cast<const faiss::IndexIDMap*>(index_.get());
    const faiss::Index& searched = map != nullptr ? *map->index : *index_;
    SearchEffort effort(searched, group.search.effort);
    with_faiss(kTag, [&] {
      searched.search(group.count, queries.data(), wanted, scores.data(), rows.data(), effort.parameters());
    });
    for (Id& row : rows) row = map != nullptr && row >= 0 ? map->id_map.at(static_cast<std::size_t>(row)) : row;
    parallel_for(group.count, [&](std::int64_t i) {
      offer(group, i, std::span(rows).subspan(static_cast<std::size_t>(i * wanted), static_cast<std::size_t>(wanted)),
            best);
    });
  }

 private:
  static std::unique_ptr<faiss::Index> read(const std::filesystem::path& path) {
    try {
      return std::unique_ptr<faiss::Index>(faiss::read_index(path.c_str(), faiss::IO_FLAG_MMAP));
    } catch (const std::exception&) {  // not every kind can be mapped
      return std::unique_ptr<faiss::Index>(faiss::read_index(path.c_str()));
    }
  }

  /// Enough that the removed and the excluded ones among them leave k.
  std::int64_t wanted_candidates(const QueryGroup& group) const {
    std::int64_t excluded = 0;
    for (const auto& rows : group.search.excluded)
      excluded = std::max(excluded, static_cast<std::int64_t>(rows.size()));
    const double live = static_cast<double>(group.snapshot.live_count()) /
                        static_cast<double>(std::max<std::int64_t>(1, group.snapshot.rows));
    const double wanted =
        static_cast<double>((group.search.k + std::min<std::int64_t>(excluded, 1'000)) * refine_) / std::max(live, 0.1);
    return std::min<std::int64_t>(index_->ntotal, static_cast<std::int64_t>(wanted) + 1);
  }

  void offer(const QueryGroup& group, std::int64_t i, std::span<const Id> rows, Candidates& best) const {
    std::vector<const std::byte*> data;
    std::vector<std::int64_t> numbers;
    for (const Id row : rows) {
      if (row < 0) continue;
      check(row < group.snapshot.rows, kTag, "'", path_.string(), "' is damaged: it has row ", row);
      const std::byte* there = group.snapshot.row_data(row, group.side());
      if (there != nullptr) data.push_back(there), numbers.push_back(row);
    }
    std::vector<float> scores(data.size() + 4);
    group.format().scores_of_one(group.prepared(i), data.data(), static_cast<std::int64_t>(data.size()), scores.data());
    for (std::size_t j = 0; j < data.size(); ++j) best.offer(i, {scores[j], numbers[j]});
  }

  std::filesystem::path path_;
  std::unique_ptr<faiss::Index> index_;
  std::int64_t refine_ = 1;
};

class FaissBuilder final : public IndexBuilder {
 public:
  FaissBuilder(const std::string& factory, const IndexSource& source, const IndexBuild& build)
      : source_(source), build_(build) {
    const auto dim = static_cast<int>(source.snapshot.dim());
    with_faiss(kTag, [&] { index_.reset(faiss::index_factory(dim, factory.c_str(), faiss::METRIC_INNER_PRODUCT)); });
    // Sorting codes for Hamming distances takes minutes and is of no use here.
    faiss::Index* inner = innermost(index_.get());
    if (auto* codes = dynamic_cast<faiss::IndexPQ*>(inner)) {
      codes->do_polysemous_training = false;
      codes->pq.cp.min_points_per_centroid = 1;  // or FAISS prints warnings
    }
    if (auto* lists = dynamic_cast<faiss::IndexIVF*>(inner)) lists->cp.min_points_per_centroid = 1;
    if (auto* codes = dynamic_cast<faiss::IndexIVFPQ*>(inner)) {
      codes->do_polysemous_training = false;
      codes->pq.cp.min_points_per_centroid = 1;
    }
    map_ = std::make_unique<faiss::IndexIDMap>(index_.get());
  }

  void train() override {
    if (index_->is_trained) return;
    const std::int64_t fits = build_.max_memory / (3 * source_.snapshot.dim() * 4);
    const auto count =
        static_cast<std::size_t>(std::min({fits, kTrainingRows, static_cast<std::int64_t>(source_.sample.size())}));
    check(count > 0, kTag, "training needs more than the ", build_.max_memory, " bytes that are allowed");
    const Matrix data = source_.snapshot.gather(std::span(source_.sample).first(count), modality());
    with_faiss(kTag, [&] { map_->train(data.rows(), data.data()); });
  }

  void add(std::span<const std::int64_t> rows) override {
    for (std::size_t first = 0; first < rows.size(); first += kChunkRows) {
      const auto chunk = rows.subspan(first, std::min<std::size_t>(kChunkRows, rows.size() - first));
      const Matrix data = source_.snapshot.gather(chunk, modality());
      const std::vector<Id> ids(chunk.begin(), chunk.end());
      with_faiss(kTag, [&] {
        const InterruptScope to_the_end({});  // or the index would be left half filled
        map_->add_with_ids(data.rows(), data.data(), ids.data());
      });
      build_.report(data.rows());
    }
  }

  void write(const std::filesystem::path& path) const override {
    with_faiss(kTag, [&] {
      IndexWriter writer(path);
      faiss::write_index(map_.get(), &writer);
      writer.publish();
    });
  }

  std::vector<std::int64_t> resume(const std::filesystem::path& path) override {
    with_faiss(kTag, [&] {
      std::unique_ptr<faiss::Index> read(faiss::read_index(path.c_str()));
      auto* map = dynamic_cast<faiss::IndexIDMap*>(read.get());
      check(map != nullptr, kTag, "'", path.string(), "' must hold an IndexIDMap");
      read.release();
      map_.reset(map);
      map_->own_fields = false;
      index_.reset(map_->index);
    });
    return {map_->id_map.begin(), map_->id_map.end()};
  }

 private:
  Modality modality() const { return source_.side == 0 ? Modality::image : Modality::text; }

  IndexSource source_;
  IndexBuild build_;
  std::unique_ptr<faiss::Index> index_;
  std::unique_ptr<faiss::IndexIDMap> map_;
};

/// Asks what InterruptScope asks. FAISS calls it from any thread; only the one with a scope may be stopped.
struct FaissInterrupt final : faiss::InterruptCallback {
  bool want_interrupt() override { return interrupted(); }
};

}  // namespace

void make_faiss_interruptible() {
  static const bool done = [] {
    const std::lock_guard lock(faiss::InterruptCallback::lock);
    auto& instance = faiss::InterruptCallback::instance;
    if (!instance) instance = std::make_unique<FaissInterrupt>();  // a host that shares FAISS may have its own
    return true;
  }();
  static_cast<void>(done);
}

std::shared_ptr<MemoryIndex> load_faiss(const std::filesystem::path& path, std::int64_t dim) {
  return std::make_shared<FaissIndex>(path, dim);
}

std::unique_ptr<IndexBuilder> make_faiss_builder(const std::string& factory, const IndexSource& source,
                                                 const IndexBuild& build) {
  return std::make_unique<FaissBuilder>(factory, source, build);
}

}  // namespace reco
