// SPDX-License-Identifier: Apache-2.0
// Hierarchical navigable small worlds (Malkov and Yashunin, arXiv 1603.09320) over the rows of the shards: FAISS links
// the graph, the walk is ours. The file, in safetensors:
//
//     rows     I64 [n]      the row number of each node
//     offsets  I64 [n + 1]  where a node's links begin: 2 M for level 0, then M a level
//     links    I32 [...]    nodes, -1 where there are fewer
//     metadata              M, entry (the node where a walk begins), levels (of the entry)
#include <faiss/IndexHNSW.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <queue>

#include "io/safetensors.h"
#include "memory_budget.h"
#include "memory_index.h"
#include "parallel.h"

namespace reco {

namespace {

constexpr const char* kTag = "memory.index";
/// Candidates considered for the links of a new node: FAISS's 40 leaves recall behind, above 100 brings little.
constexpr int kConstructionEffort = 80;
constexpr std::int64_t kChunkRows = 2'048;  // linked before it can be stopped: about a second
constexpr std::int64_t kMostLinks = 256;

using Node = std::int32_t;

/// A set of nodes that stays small: a walk sees thousands of millions.
class Visited {
 public:
  Visited() : slots_(std::size_t{1} << 13, -1) {}
  /// False if it was there before.
  bool insert(Node node) {
    if (2 * size_ >= slots_.size()) grow();
    const bool added = put(node);
    size_ += added;
    return added;
  }

 private:
  bool put(Node node) {
    std::size_t place = static_cast<std::uint32_t>(node) * 0x9e3779b1U & (slots_.size() - 1);
    for (; slots_[place] >= 0; place = (place + 1) & (slots_.size() - 1)) {
      if (slots_[place] == node) return false;
    }
    slots_[place] = node;
    return true;
  }
  void grow() {
    std::vector<Node> old(4 * slots_.size(), -1);
    old.swap(slots_);
    for (const Node node : old) {
      if (node >= 0) put(node);
    }
  }
  std::vector<Node> slots_;
  std::size_t size_ = 0;
};

struct Scored {
  float score;
  Node node;
  bool operator<(const Scored& other) const { return score < other.score; }
  bool operator>(const Scored& other) const { return score > other.score; }
};

/// What the links of a node lead to.
constexpr std::size_t kMostFound = 2 * kMostLinks;
using Found = std::array<Scored, kMostFound>;

std::int64_t number(const io::Safetensors& file, const char* name) {
  const auto found = file.metadata().find(name);
  std::int64_t value = -1;
  if (found != file.metadata().end()) {
    const std::string& text = found->second;
    std::from_chars(text.data(), text.data() + text.size(), value);
  }
  return value;
}

class Graph final : public MemoryIndex {
 public:
  explicit Graph(const std::filesystem::path& path)
      : file_(path),
        rows_(index_tensor<std::int64_t>(file_, "rows", "I64", 1)),
        offsets_(index_tensor<std::int64_t>(file_, "offsets", "I64", 1)),
        links_(index_tensor<Node>(file_, "links", "I32", 1)),
        m_(number(file_, "M")),
        entry_(number(file_, "entry")),
        levels_(number(file_, "levels")) {
    const bool fits = m_ >= 1 && m_ <= kMostLinks && offsets_.size() == rows_.size() + 1 && levels_ >= 0 &&
                      levels_ < 64 && entry_ >= (rows_.empty() ? -1 : 0) &&
                      entry_ < static_cast<std::int64_t>(rows_.size());
    check(fits, kTag, "'", path.string(), "' is damaged: its tensors do not fit each other");
  }

  void set_effort(std::int64_t effort, std::int64_t) override { effort_ = effort; }

  void search(const QueryGroup& group, Candidates& best) const override {
    if (rows_.empty()) return;
    parallel_for(group.count, [&](std::int64_t i) { walk(group, i, best); });
  }

 private:
  /// Rows that are gone score lowest: a walk passes them by.
  const std::byte* row_data(const QueryGroup& group, Node node) const {
    const std::int64_t row = rows_[static_cast<std::size_t>(node)];
    const bool inside = row >= 0 && row < group.snapshot.rows;
    check(inside, kTag, "'", file_.path().string(), "' is damaged: node ", node, " has row ", row);
    return group.snapshot.row_data(row, group.side());
  }

  /// The links of a node at a level that lie in the file.
  std::span<const Node> links(Node node, std::int64_t level) const {
    const auto n = static_cast<std::size_t>(node);
    const std::int64_t begin = offsets_[n] + (level == 0 ? 0 : (level + 1) * m_);
    const std::int64_t count = level == 0 ? 2 * m_ : m_;
    const bool inside = offsets_[n] >= 0 && offsets_[n + 1] <= static_cast<std::int64_t>(links_.size()) && begin >= 0 &&
                        begin + count <= offsets_[n + 1];
    check(inside, kTag, "'", file_.path().string(), "' is damaged: the links of node ", node);
    return links_.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(count));
  }

  /// Scores the linked nodes that `wanted` lets through. Where a node's row is gone, its own links stand for it, so
  /// that a graph stays whole when removed rows are compacted (after Patel et al., ACORN, arXiv 2403.04871).
  template <typename Wanted>
  std::span<const Scored> score_links(const QueryGroup& group, std::int64_t i, Node node, std::int64_t level,
                                      const Wanted& wanted, Found& out) const {
    std::array<const std::byte*, kMostFound> data;
    std::array<Node, kMostFound> gone;
    gone[0] = node;
    std::size_t count = 0;
    std::size_t gone_count = 1;
    for (std::size_t passed = 0; passed < gone_count; ++passed) {
      const auto linked = links(gone[passed], level);
      // All at once, or each would be waited for in turn. One below zero ends the links.
      for (const Node next : linked) __builtin_prefetch(rows_.data() + std::max(next, 0));
      for (const Node next : linked) {
        if (next < 0 || count == kMostFound) break;
        check(static_cast<std::size_t>(next) < rows_.size(), kTag, "'", file_.path().string(),
              "' is damaged: a link to node ", next);
        if (!wanted(next)) continue;
        const std::byte* row = row_data(group, next);
        if (row == nullptr) {
          if (gone_count < kMostFound) gone[gone_count++] = next;
          continue;
        }
        // The first lines only: the processor fetches ahead itself from there on.
        __builtin_prefetch(row);
        __builtin_prefetch(row + 64);
        data[count] = row;
        out[count++].node = next;
      }
    }
    std::array<float, kMostFound + 4> scores;
    const auto found = static_cast<std::int64_t>(count);
    group.format().scores_of_one(group.prepared(i), data.data(), found, scores.data());
    for (std::size_t j = 0; j < count; ++j) out[j].score = scores[j];
    return {out.data(), count};
  }

  Scored score_node(const QueryGroup& group, std::int64_t i, Node node) const {
    const std::byte* data = row_data(group, node);
    std::array<float, 4> score{kNothing.score};
    if (data != nullptr) group.format().scores_of_one(group.prepared(i), &data, 1, score.data());
    return {score[0], node};
  }

  /// Down to level 1, each time to the nearest node.
  Scored descend(const QueryGroup& group, std::int64_t i) const {
    Found found;
    Scored nearest = score_node(group, i, static_cast<Node>(entry_));
    for (std::int64_t level = levels_; level > 0; --level) {
      for (bool moved = true; moved;) {
        moved = false;
        for (const Scored& next : score_links(
                 group, i, nearest.node, level, [](Node) { return true; }, found)) {
          if (next.score > nearest.score) nearest = next, moved = true;
        }
      }
    }
    return nearest;
  }

  /// Level 0: goes on from the best node that was seen until the `effort` best have all been looked at. Nodes that the
  /// query may not find lead on all the same.
  void walk(const QueryGroup& group, std::int64_t i, Candidates& best) const {
    Found found;
    Visited visited;
    std::priority_queue<Scored> open;
    std::priority_queue<Scored, std::vector<Scored>, std::greater<>> top;
    const auto size =
        static_cast<std::size_t>(std::max(group.search.effort > 0 ? group.search.effort : effort_, group.search.k));
    const auto see = [&](const Scored& seen) {
      if (top.size() == size && !(seen.score > top.top().score)) return;
      open.push(seen);
      const Candidate candidate{seen.score, rows_[static_cast<std::size_t>(seen.node)]};
      if (!group.admits(i, candidate)) return;
      best.offer(i, candidate);
      top.push(seen);
      if (top.size() > size) top.pop();
    };
    const Scored start = descend(group, i);
    visited.insert(start.node);
    see(start);
    while (!open.empty()) {
      const Scored next = open.top();
      if (top.size() == size && next.score < top.top().score) break;
      open.pop();
      const auto fresh = [&](Node node) { return visited.insert(node); };
      for (const Scored& seen : score_links(group, i, next.node, 0, fresh, found)) see(seen);
    }
  }

  io::Safetensors file_;
  std::span<const std::int64_t> rows_;
  std::span<const std::int64_t> offsets_;
  std::span<const Node> links_;
  std::int64_t m_;
  std::int64_t entry_;
  std::int64_t levels_;
  std::int64_t effort_ = 64;
};

/// What FAISS links: similarities between rows that lie in the shards.
class RowSimilarity final : public faiss::DistanceComputer {
 public:
  RowSimilarity(const IndexSource& source, const std::vector<std::int64_t>& rows)
      : source_(source), rows_(rows), format_(source.snapshot.format) {
    const auto width = static_cast<std::size_t>(format_.width());
    query_.resize(width);
    other_.resize(width);
    decoded_.resize(static_cast<std::size_t>(format_.dim()));
  }
  using Id = decltype(faiss::Index::ntotal);
  void set_query(const float* query) override { format_.prepare(query, query_.data()); }
  float operator()(Id i) override { return similarity(query_, i); }
  float symmetric_dis(Id i, Id j) override {
    if (j != prepared_) {
      format_.decode(data(j), decoded_.data());
      format_.prepare(decoded_.data(), other_.data());
    }
    prepared_ = j;
    return similarity(other_, i);
  }

 private:
  const std::byte* data(Id i) const {
    return source_.snapshot.row_data(rows_[static_cast<std::size_t>(i)], source_.side);
  }
  float similarity(const std::vector<float>& query, Id i) const {
    const std::byte* row = data(i);
    std::array<float, 4> score;
    format_.scores_of_one(query.data(), &row, 1, score.data());
    return score[0];
  }

  const IndexSource& source_;
  const std::vector<std::int64_t>& rows_;
  const RowFormat& format_;
  std::vector<float> query_;
  std::vector<float> other_;
  std::vector<float> decoded_;
  Id prepared_ = -1;
};

/// The rows of the shards as a storage of FAISS's.
class RowStorage final : public faiss::Index {
 public:
  RowStorage(const IndexSource& source, const std::vector<std::int64_t>& rows)
      : faiss::Index(static_cast<int>(source.snapshot.dim()), faiss::METRIC_INNER_PRODUCT),
        source_(source),
        rows_(rows) {}
  using Id = decltype(faiss::Index::ntotal);
  void add(Id n, const float*) override { ntotal += n; }
  void reset() override { ntotal = 0; }
  void search(Id, const float*, Id, float*, Id*, const faiss::SearchParameters* = nullptr) const override {
    fail(kTag, "the storage of a graph does not search");
  }
  faiss::DistanceComputer* get_distance_computer() const override { return new RowSimilarity(source_, rows_); }

 private:
  const IndexSource& source_;
  const std::vector<std::int64_t>& rows_;
};

class GraphBuilder final : public IndexBuilder {
 public:
  GraphBuilder(std::int64_t links, IndexSource source, IndexBuild build)
      : source_(std::move(source)),
        build_(std::move(build)),
        storage_(source_, rows_),
        index_(&storage_, static_cast<int>(links)) {
    check(links >= 2 && links <= kMostLinks, kTag, "HNSW must have 2 to ", kMostLinks, " links, got ", links);
    check(source_.rows < std::int64_t{1} << 31, kTag, "HNSW takes fewer than 2^31 rows, got ", source_.rows);
    // Beside the graph: the rows' numbers, and another list of them or of offsets where the graph is written or read.
    const std::int64_t bytes = graph_bytes(index_.hnsw, source_.rows) + 16 * source_.rows +
                               kChunkRows * source_.snapshot.dim() * std::int64_t{sizeof(float)};
    check_budget("HNSW" + std::to_string(links), source_, build_, bytes, "fewer links, or IVF, need less");
    reserve(index_.hnsw, source_.rows);
    index_.hnsw.efConstruction = kConstructionEffort;
    index_.hnsw.rng = faiss::RandomGenerator(static_cast<std::int64_t>(build_.seed));
    rows_.reserve(static_cast<std::size_t>(source_.rows));
  }

  void add(std::span<const std::int64_t> rows) override {
    const Modality modality = source_.side == 0 ? Modality::image : Modality::text;
    for (std::size_t first = 0; first < rows.size(); first += kChunkRows) {
      const auto chunk = rows.subspan(first, std::min<std::size_t>(kChunkRows, rows.size() - first));
      rows_.insert(rows_.end(), chunk.begin(), chunk.end());
      const Matrix data = source_.snapshot.gather(chunk, modality);
      with_faiss(kTag, [&] {
        const InterruptScope to_the_end({});  // or the graph would be left half linked
        index_.add(data.rows(), data.data());
      });
      build_.report(data.rows());
    }
  }

  void write(const std::filesystem::path& path) const override {
    const std::vector<std::int64_t> offsets(index_.hnsw.offsets.begin(), index_.hnsw.offsets.end());
    const std::span<const Node> links(index_.hnsw.neighbors.data(), index_.hnsw.neighbors.size());
    const auto count = static_cast<std::int64_t>(rows_.size());
    io::write_safetensors(path,
                          {{"links", {"I32", {static_cast<std::int64_t>(links.size())}, std::as_bytes(links)}},
                           {"offsets", {"I64", {count + 1}, std::as_bytes(std::span(offsets))}},
                           {"rows", {"I64", {count}, std::as_bytes(std::span(rows_))}}},
                          {{"M", std::to_string(index_.hnsw.nb_neighbors(1))},
                           {"entry", std::to_string(index_.hnsw.entry_point)},
                           {"levels", std::to_string(std::max(0, index_.hnsw.max_level))}});
  }

  std::vector<std::int64_t> resume(const std::filesystem::path& path) override {
    const io::Safetensors file(path);
    const auto rows = index_tensor<std::int64_t>(file, "rows", "I64", 1);
    const auto offsets = index_tensor<std::int64_t>(file, "offsets", "I64", 1);
    const auto links = index_tensor<Node>(file, "links", "I32", 1);
    faiss::HNSW& graph = index_.hnsw;
    rows_.assign(rows.begin(), rows.end());
    graph.offsets.assign(offsets.begin(), offsets.end());
    graph.neighbors.resize(links.size());
    std::copy(links.begin(), links.end(), graph.neighbors.data());
    graph.entry_point = static_cast<Node>(number(file, "entry"));
    graph.max_level = static_cast<int>(number(file, "levels"));
    const auto& sizes = graph.cum_nneighbor_per_level;
    for (std::size_t i = 0; i + 1 < offsets.size(); ++i) {
      const auto size = static_cast<int>(offsets[i + 1] - offsets[i]);
      graph.levels.push_back(static_cast<int>(std::lower_bound(sizes.begin(), sizes.end(), size) - sizes.begin()));
    }
    graph.rng = faiss::RandomGenerator(static_cast<std::int64_t>(build_.seed + rows_.size()));
    index_.ntotal = storage_.ntotal = static_cast<RowStorage::Id>(rows_.size());
    return rows_;
  }

 private:
  IndexSource source_;
  IndexBuild build_;
  std::vector<std::int64_t> rows_;
  RowStorage storage_;
  faiss::IndexHNSW index_;
};

}  // namespace

std::shared_ptr<MemoryIndex> load_graph(const std::filesystem::path& path) { return std::make_shared<Graph>(path); }

std::unique_ptr<IndexBuilder> make_graph_builder(std::int64_t links, const IndexSource& source,
                                                 const IndexBuild& build) {
  return std::make_unique<GraphBuilder>(links, source, build);
}

}  // namespace reco
