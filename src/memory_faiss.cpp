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
#include <numeric>

#include "io/file.h"
#include "memory_budget.h"
#include "memory_index.h"
#include "parallel.h"

namespace reco {

namespace {

constexpr const char* kTag = "memory.index";
constexpr std::int64_t kChunkRows = 2'048;  // added before it can be stopped: a graph takes a second for them
constexpr std::int64_t kTrainingRows = 262'144;
constexpr std::int64_t kLeastSample = 8'192;
constexpr std::int64_t kMostWanted = 8'192;  // candidates of a query, where few of them may be found
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

  /// Asks again, for more, where too many of what was found may not be: newer rows would take their places.
  void search(const QueryGroup& group, Candidates& best) const override {
    std::vector<std::int64_t> queries(static_cast<std::size_t>(group.count));
    std::iota(queries.begin(), queries.end(), std::int64_t{0});
    std::int64_t wanted = wanted_candidates(group);
    const std::int64_t most = std::max(wanted, std::min<std::int64_t>(index_->ntotal, kMostWanted));
    while (wanted > 0 && !queries.empty()) {
      const bool all = wanted == most;
      const std::vector<Id> rows = find(group, queries, wanted);
      std::vector<char> lacking(queries.size());
      parallel_for(static_cast<std::int64_t>(queries.size()), [&](std::int64_t i) {
        const auto found =
            std::span(rows).subspan(static_cast<std::size_t>(i * wanted), static_cast<std::size_t>(wanted));
        lacking[i] = !offer(group, queries[i], found, all || found.back() < 0, best);
      });
      std::size_t left = 0;
      for (std::size_t i = 0; i < queries.size(); ++i) {
        if (lacking[i] != 0) queries[left++] = queries[i];
      }
      queries.resize(left);
      wanted = std::min(4 * wanted, most);
    }
  }

  std::vector<std::int64_t> nearest(const Matrix& queries) const override {
    Matrix scores(queries.rows(), 1);
    std::vector<Id> rows(static_cast<std::size_t>(queries.rows()), -1);
    with_faiss(kTag, [&] { index_->search(queries.rows(), queries.data(), 1, scores.data(), rows.data()); });
    return {rows.begin(), rows.end()};
  }

  double bytes_a_number() const override {
    const faiss::Index* inner = innermost(index_.get());
    if (const auto* graph = dynamic_cast<const faiss::IndexHNSW*>(inner)) inner = graph->storage;
    const auto* lists = dynamic_cast<const faiss::IndexIVF*>(inner);
    const auto* codes = dynamic_cast<const faiss::IndexFlatCodes*>(inner);
    const std::size_t bytes = lists != nullptr ? lists->code_size : codes != nullptr ? codes->code_size : 0;
    return static_cast<double>(bytes) / static_cast<double>(index_->d);
  }

 private:
  static std::unique_ptr<faiss::Index> read(const std::filesystem::path& path) {
    try {
      return std::unique_ptr<faiss::Index>(faiss::read_index(path.c_str(), faiss::IO_FLAG_MMAP));
    } catch (const std::exception&) {  // not every kind can be mapped
      return std::unique_ptr<faiss::Index>(faiss::read_index(path.c_str()));
    }
  }

  /// Enough that the removed and the excluded ones among them, and those that a filter leaves out, leave k.
  std::int64_t wanted_candidates(const QueryGroup& group) const {
    std::int64_t excluded = 0;
    for (const auto& rows : group.search.excluded)
      excluded = std::max(excluded, static_cast<std::int64_t>(rows.size()));
    const RowSet* only = group.search.only.get();
    const auto may_be_found =
        only != nullptr ? static_cast<std::int64_t>(only->rows().size()) : group.snapshot.live_count();
    const double share =
        static_cast<double>(may_be_found) / static_cast<double>(std::max<std::int64_t>(1, group.snapshot.rows));
    const double wanted = static_cast<double>((group.search.k + std::min<std::int64_t>(excluded, 1'000)) * refine_) /
                          std::max(share, 0.1);
    return std::min<std::int64_t>(index_->ntotal, static_cast<std::int64_t>(wanted) + 1);
  }

  /// What the index has for some queries of a group, `wanted` row numbers each; -1 where it has no more.
  std::vector<Id> find(const QueryGroup& group, const std::vector<std::int64_t>& numbers, std::int64_t wanted) const {
    const auto count = static_cast<std::int64_t>(numbers.size());
    const std::int64_t dim = group.snapshot.dim();
    Matrix queries(count, dim);
    for (std::int64_t i = 0; i < count; ++i) std::copy_n(group.query(numbers[i]), dim, queries.row(i).data());
    Matrix scores(count, wanted);
    std::vector<Id> rows(static_cast<std::size_t>(count * wanted), -1);
    // FAISS 1.7.3 passes no parameters through the map from places to row numbers: it is applied here.
    const auto* map = dynamic_cast<const faiss::IndexIDMap*>(index_.get());
    const faiss::Index& searched = map != nullptr ? *map->index : *index_;
    SearchEffort effort(searched, group.search.effort);
    with_faiss(
        kTag, [&] { searched.search(count, queries.data(), wanted, scores.data(), rows.data(), effort.parameters()); });
    for (Id& row : rows) row = map != nullptr && row >= 0 ? map->id_map.at(static_cast<std::size_t>(row)) : row;
    return rows;
  }

  /// Offers the rows that may be found, scored anew; false, with none offered, where they are fewer than k though the
  /// index has more than these.
  bool offer(const QueryGroup& group, std::int64_t i, std::span<const Id> rows, bool all, Candidates& best) const {
    std::vector<const std::byte*> data;
    std::vector<std::int64_t> numbers;
    for (const Id row : rows) {
      if (row < 0) continue;
      check(row < group.snapshot.rows, kTag, "'", path_.string(), "' is damaged: it has row ", row);
      const auto place = group.snapshot.place(row);
      const bool live = place.segment != nullptr && !place.segment->removed(place.index);
      if (!live || (group.search.only && !group.search.only->contains(row))) continue;
      data.push_back(place.segment->sides[group.side()] + place.index * group.format().bytes());
      numbers.push_back(row);
    }
    std::vector<float> scores(data.size() + 4);
    group.format().scores_of_one(group.prepared(i), data.data(), static_cast<std::int64_t>(data.size()), scores.data());
    auto admitted = static_cast<std::int64_t>(data.size());
    if (!all && (!group.search.excluded.empty() || group.search.max_similarity)) {
      admitted = 0;
      for (std::size_t j = 0; j < data.size(); ++j) admitted += group.admits(i, {scores[j], numbers[j]});
    }
    if (!all && admitted < group.search.k) return false;
    for (std::size_t j = 0; j < data.size(); ++j) best.offer(i, {scores[j], numbers[j]});
    return true;
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
    held_ = held_bytes();
    const std::int64_t needed = std::max(training(least_sample()), adding_bytes(*index_, kChunkRows));
    check_budget(factory, source_, build_, held_ + needed, "an index with shorter codes needs less");
    reserve(*map_, source_.rows);
  }

  void train() override {
    if (index_->is_trained) return;
    const std::int64_t left = build_.max_memory - held_beside(source_) - held_;
    const TrainingBytes bytes = training_bytes(*index_);
    const auto count = static_cast<std::size_t>(
        std::clamp((left - bytes.fixed) / bytes.row, least_sample(), std::min(kTrainingRows, sample_size())));
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
      reserve(*map_, source_.rows);
    });
    return {map_->id_map.begin(), map_->id_map.end()};
  }

 private:
  Modality modality() const { return source_.side == 0 ? Modality::image : Modality::text; }
  std::int64_t sample_size() const { return static_cast<std::int64_t>(source_.sample.size()); }

  /// Rows that training takes where memory is short.
  std::int64_t least_sample() const {
    const auto* lists = dynamic_cast<const faiss::IndexIVF*>(innermost(index_.get()));
    const std::int64_t centroids = lists != nullptr ? static_cast<std::int64_t>(lists->nlist) : 0;
    return std::min({std::max(kLeastSample, 39 * centroids), sample_size(), kTrainingRows});
  }
  std::int64_t training(std::int64_t rows) const {
    if (index_->is_trained) return 0;
    const TrainingBytes bytes = training_bytes(*index_);
    return rows * bytes.row + bytes.fixed;
  }
  /// Of the index, and of what is read back to tune it where that is not mapped.
  std::int64_t held_bytes() const {
    const bool mapped = dynamic_cast<const faiss::IndexIVF*>(innermost(index_.get())) != nullptr;
    return (mapped ? 1 : 2) * index_bytes(*map_, source_.rows);
  }

  IndexSource source_;
  IndexBuild build_;
  std::int64_t held_ = 0;
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
