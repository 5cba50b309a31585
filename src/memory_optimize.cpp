// SPDX-License-Identifier: Apache-2.0
// optimize(): choose an index, build it, tune it with rows that it does not hold yet, publish it.
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <numeric>
#include <random>
#include <set>
#include <sstream>

#include "io/file.h"
#include "io/sha256.h"
#include "memory_index.h"
#include "memory_search.h"
#include "memory_store.h"
#include "reco/error.h"
#include "reco/interrupt.h"

namespace reco {

namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using Rows = std::vector<std::int64_t>;

constexpr const char* kTag = "memory.optimize";
/// Below this exact search takes a few milliseconds.
constexpr std::int64_t kExactRows = 50'000;
/// Above this linking a graph takes hours.
constexpr std::int64_t kGraphRows = 4'000'000;
constexpr std::int64_t kHeldOut = 256;
constexpr std::int64_t kTrainingRows = 1 << 20;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

std::int64_t half_of_memory() { return std::int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE) / 2; }

/// Lists so that a search looks at about as many centroids as rows.
std::int64_t list_count(std::int64_t rows) {
  const auto root = static_cast<std::int64_t>(4 * std::sqrt(static_cast<double>(rows)));
  return std::clamp<std::int64_t>(root, 1, std::max<std::int64_t>(1, rows / 39));
}

/// Codes that divide the dimensions and fit the bytes; 8 bytes a row are its number.
std::int64_t code_bytes(std::int64_t rows, std::int64_t dim, std::int64_t bytes) {
  for (const std::int64_t size : {64, 56, 48, 32, 28, 24, 16, 8}) {
    if (dim % size == 0 && rows * (size + 16) <= bytes) return size;
  }
  return 0;
}

std::string choose(std::int64_t rows, const RowFormat& format, const OptimizeOptions& options) {
  if (options.index != "auto") return options.index;
  if (rows < kExactRows) return "exact";
  const std::int64_t bytes = options.max_bytes > 0 ? options.max_bytes : half_of_memory();
  const std::int64_t row_bytes = format.bytes();
  if (rows <= kGraphRows && rows * (row_bytes + 32 * 9) <= bytes) return "HNSW32";
  const std::string lists = "IVF" + std::to_string(list_count(rows));
  if (rows * (row_bytes + 8) <= bytes) return lists + ",Flat";
  const std::int64_t code = code_bytes(rows, format.dim(), bytes);
  check(code > 0, kTag, "no index over ", rows, " rows of dim ", format.dim(), " fits into ", bytes,
        " bytes: allow more");
  return lists + ",PQ" + std::to_string(code);
}

void check_options(const OptimizeOptions& options) {
  check(options.recall > 0 && options.recall <= 1, kTag, "recall must be above 0 and at most 1, got ", options.recall);
  check(options.k >= 1 && options.k <= 1'000, kTag, "k must be from 1 to 1,000, got ", options.k);
  check(options.max_bytes >= 0 && options.max_build_bytes >= 0, kTag, "bytes must not be negative");
  check(!options.index.empty() && options.index.size() <= 256, kTag,
        "index must be 'auto', 'exact' or a factory string");
}

/// Some of the rows, ascending.
Rows random_rows(const Rows& rows, std::int64_t count, std::mt19937_64& generator) {
  Rows chosen;
  std::sample(rows.begin(), rows.end(), std::back_inserter(chosen), count, generator);
  return chosen;
}

Rows without(const Rows& rows, const Rows& left_out) {
  Rows rest;
  rest.reserve(rows.size());
  std::set_difference(rows.begin(), rows.end(), left_out.begin(), left_out.end(), std::back_inserter(rest));
  return rest;
}

/// Finds the settings that reach a recall, with queries whose neighbours are known.
class Tuner {
 public:
  /// `held`: whether the index holds the rows that are asked for.
  Tuner(const MemorySnapshot& snapshot, const Rows& held_out, std::size_t side, const OptimizeOptions& options,
        bool held = false)
      : snapshot_(snapshot), options_(options) {
    search_ = {.k = options.k,
               .modality = side == 0 ? Modality::image : Modality::text,
               .excluded = {held_out},
               .max_similarity = {},
               .exact = true};
    queries_ = snapshot.gather(held_out, search_.modality);
    if (held) {  // each finds the others, but not itself
      search_.excluded.clear();
      for (const std::int64_t row : held_out) search_.excluded.push_back({row});
    }
    search_rows(snapshot_, queries_, search_, truth_, scores_);
    if (!held) search_.excluded.clear();
  }

  /// The share of the rows asked for that an index finds as one of the nearest ten of their own, without refinement.
  double finds_itself(MemoryIndex& index, const Rows& asked) const {
    constexpr std::int64_t all = 4'096;
    index.set_effort(all, 1);
    MemorySearch search{.k = 10, .modality = search_.modality};
    const QueryGroup group(snapshot_, search, queries_, 0, queries_.rows());
    Candidates best(group);
    index.search(group, best);
    std::int64_t found = 0;
    for (std::int64_t i = 0; i < queries_.rows(); ++i) {
      const auto candidates = best.of(i);
      const auto itself = [&](const Candidate& candidate) {
        return candidate.row == asked[static_cast<std::size_t>(i)];
      };
      found += std::any_of(candidates.begin(), candidates.end(), itself);
    }
    return asked.empty() ? 1 : static_cast<double>(found) / static_cast<double>(asked.size());
  }

  /// Sets effort, refine and recall of the file and returns the median seconds of one query.
  double tune(MemoryIndex& index, MemoryIndexFile& file) const {
    const IndexKind kind = index_kind(file.factory);
    std::vector<std::int64_t> refinements{1};
    if (kind.type == IndexKind::Type::faiss) refinements = {1, 2, 4, 8, 16, 32, 64};
    double best_time = 0;
    for (const std::int64_t refine : refinements) {
      MemoryIndexFile tried = file;
      tried.refine = refine;
      const double time = tune_effort(index, tried, kind.type == IndexKind::Type::lists ? kind.parameter : 4'096);
      const bool first = refine == 1, reaches = reached(tried), reached_before = reached(file);
      const bool takes_less = reaches == reached_before && reaches && time < best_time;
      if (first || (reaches && !reached_before) || takes_less || (!reaches && tried.recall_ppm > file.recall_ppm)) {
        file = tried;
        best_time = time;
      } else if (reached_before) {
        break;
      }
    }
    index.set_effort(file.effort, file.refine);
    return best_time;
  }

 private:
  bool reached(const MemoryIndexFile& file) const {
    return static_cast<double>(file.recall_ppm) >= 1e6 * options_.recall;
  }

  /// The least of the efforts that reaches the recall, else the greatest.
  double tune_effort(MemoryIndex& index, MemoryIndexFile& file, std::int64_t most) const {
    std::vector<std::int64_t> efforts;
    for (std::int64_t effort = 1; effort < most; effort += std::max<std::int64_t>(1, effort / 4))
      efforts.push_back(effort);
    efforts.push_back(most);
    const auto least = std::partition_point(efforts.begin(), efforts.end(), [&](std::int64_t effort) {
      return static_cast<double>(recall_ppm(index, effort, file.refine)) < 1e6 * options_.recall;
    });
    file.effort = least == efforts.end() ? most : *least;
    file.recall_ppm = recall_ppm(index, file.effort, file.refine);
    return time_one(index);
  }

  std::int64_t recall_ppm(MemoryIndex& index, std::int64_t effort, std::int64_t refine) const {
    index.set_effort(effort, refine);
    const QueryGroup group(snapshot_, search_, queries_, 0, queries_.rows());
    Candidates best(group);
    index.search(group, best);
    std::int64_t found = 0, all = 0;
    for (std::int64_t i = 0; i < queries_.rows(); ++i) {
      std::set<std::int64_t> rows;
      for (const Candidate& candidate : best.of(i)) rows.insert(candidate.row);
      for (std::int64_t j = 0; j < options_.k && truth_(i, j) >= 0; ++j) all += 1, found += rows.contains(truth_(i, j));
    }
    return all == 0 ? 1'000'000 : found * 1'000'000 / all;
  }

  double time_one(const MemoryIndex& index) const {
    std::vector<double> times;
    for (std::int64_t i = 0; i < std::min<std::int64_t>(queries_.rows(), 64); ++i) {
      const auto start = Clock::now();
      const QueryGroup group(snapshot_, search_, queries_, i, 1);
      Candidates best(group);
      index.search(group, best);
      times.push_back(seconds_since(start));
    }
    if (times.empty()) return 0;
    std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
    return times[times.size() / 2];
  }

  const MemorySnapshot& snapshot_;
  const OptimizeOptions& options_;
  MemorySearch search_;
  Matrix queries_;
  IndexMatrix truth_;
  Matrix scores_;
};

/// What an interrupted build leaves beside the indexes: its own file as far as it came, and a text that says what it
/// belongs to.
class Checkpoint {
 public:
  Checkpoint(const fs::path& folder, const MemoryIndexFile& file, std::uint64_t seed, const Rows& rows)
      : path_(folder /
              (std::string("checkpoint_") + (file.modality == 0 ? "image" : "text") + index_suffix(file.factory))),
        note_(path_.string() + ".sha256") {
    std::ostringstream text;
    text << file.factory << ' ' << seed << ' ' << io::sha256(std::as_bytes(std::span(rows))) << ' ';
    identity_ = text.str();
  }

  void write(const IndexBuilder& builder) const {
    const InterruptScope to_the_end({});
    builder.write(path_);
    const std::string note = identity_ + sha256_of_file();
    const std::array parts{std::as_bytes(std::span(note))};
    io::write_file_durably(note_, parts);
  }

  /// Gives a builder what an earlier one wrote; how many of the rows it has.
  std::size_t resume(IndexBuilder& builder, const Rows& rows) const {
    std::error_code error;
    if (!fs::exists(path_, error) || !fs::exists(note_, error)) return 0;
    if (io::read_file(note_, 1 << 16) != identity_ + sha256_of_file()) {
      remove();
      return 0;
    }
    const Rows there = builder.resume(path_);
    const bool fits = there.size() <= rows.size() && std::equal(there.begin(), there.end(), rows.begin());
    check(fits, kTag, "'", path_.string(), "' holds other rows than it says: remove it");
    return there.size();
  }

  void remove() const {
    io::remove_file(note_);
    io::remove_file(path_);
  }

 private:
  std::string sha256_of_file() const { return io::sha256(io::MappedFile(path_).bytes()); }

  fs::path path_;
  fs::path note_;
  std::string identity_;
};

/// Trains the builder and adds the rows, or goes on with what a checkpoint has of them; leaves one when it is stopped,
/// and every minute for the case that it is killed.
void add_resumably(IndexBuilder& builder, const Rows& rows, const Checkpoint& checkpoint, const bool& stopped,
                   const std::function<void(std::int64_t)>& report) {
  constexpr std::size_t chunk = 16'384;
  constexpr double interval = 60;
  std::size_t done = checkpoint.resume(builder, rows);
  const std::size_t before = done;
  if (done > 0) report(static_cast<std::int64_t>(done));
  if (done == 0) builder.train();
  try {
    for (auto last = Clock::now(); done < rows.size();) {
      const std::size_t size = std::min(chunk, rows.size() - done);
      done += size;
      builder.add(std::span(rows).subspan(done - size, size));
      if (seconds_since(last) < interval || done == rows.size()) continue;
      checkpoint.write(builder);
      last = Clock::now();
    }
  } catch (...) {
    if ((stopped || interrupted()) && done > before) checkpoint.write(builder);
    throw;
  }
}

/// Tunes an index that a builder wrote; leaves a checkpoint when that is stopped.
double tune_resumably(const Tuner& tuner, MemoryIndex& index, MemoryIndexFile& file, const IndexBuilder& builder,
                      const Checkpoint& checkpoint) {
  try {
    return tuner.tune(index, file);
  } catch (const Interrupted&) {
    checkpoint.write(builder);
    throw;
  }
}

}  // namespace

IndexInfo index_info(const MemoryIndexFile& file) {
  IndexInfo info;
  info.modality = file.modality == 0 ? Modality::image : Modality::text;
  info.index = file.factory;
  info.rows = file.rows;
  info.bytes = file.bytes;
  info.effort = file.effort;
  info.refine = file.refine;
  info.recall = static_cast<double>(file.recall_ppm) / 1e6;
  return info;
}

std::vector<IndexInfo> MemoryStore::optimize(const OptimizeOptions& options, const Progress& progress) {
  check_options(options);
  const std::lock_guard lock(optimize_mutex_);
  return {optimize_side(0, options, progress), optimize_side(1, options, progress)};
}

IndexInfo MemoryStore::optimize_side(std::size_t side, const OptimizeOptions& options, const Progress& progress) {
  const auto start = Clock::now();
  const auto snapshot = this->snapshot(kTag);
  const Rows rows = snapshot->live_rows();
  const auto count = static_cast<std::int64_t>(rows.size());
  MemoryIndexFile file;
  file.modality = static_cast<std::int64_t>(side);
  file.factory = choose(count, format_, options);
  if (file.factory == "exact" || count == 0) {
    NewFiles none;
    publish(side, std::nullopt, none);
    file.factory = "exact";
    file.recall_ppm = 1'000'000;
    return index_info(file);
  }
  std::mt19937_64 generator(options.seed + side);
  const Rows held_out = random_rows(rows, std::min(kHeldOut, count / 10), generator);
  const Rows others = without(rows, held_out);
  std::int64_t done = side == 0 ? 0 : count;
  bool stopped = false;
  const auto report = [&](std::int64_t more) {
    done += more;
    stopped = true;  // which progress may also tell by throwing
    check_interrupt();
    if (progress && !progress(done, 2 * count)) fail("interrupted", "optimize stopped after ", done, " of ", 2 * count);
    stopped = false;
  };
  report(0);
  Rows sample = random_rows(others, kTrainingRows, generator);
  std::shuffle(sample.begin(), sample.end(), generator);  // whoever takes fewer takes the first
  const IndexSource source{*snapshot, side, std::move(sample), count};
  const IndexBuild build{options.max_build_bytes > 0 ? options.max_build_bytes : half_of_memory(), options.seed,
                         report};
  const auto builder = make_builder(file.factory, source, build);
  Checkpoint checkpoint(folder_ / kIndexFolder, file, options.seed, rows);
  add_resumably(*builder, others, checkpoint, stopped, report);
  file.number = next_index_number(side);
  NewFiles files;
  const fs::path path = files.add(file.file(folder_));
  builder->write(path);
  IndexInfo info;
  {
    const auto index = load_index(path, file, dim());
    const Tuner tuner(*snapshot, held_out, side, options);
    info.search_seconds = tune_resumably(tuner, *index, file, *builder, checkpoint);
  }
  builder->add(held_out);
  builder->write(path);
  const io::MappedFile written(path);
  file.end_row = snapshot->rows;
  file.rows = count;
  file.bytes = static_cast<std::int64_t>(written.bytes().size());
  file.sha256 = io::sha256(written.bytes());
  publish(side, file, files);
  checkpoint.remove();
  const double search_seconds = info.search_seconds;
  info = index_info(file);
  info.search_seconds = search_seconds;
  info.build_seconds = seconds_since(start);
  return info;
}

IndexInfo MemoryStore::adopt_index(const fs::path& path, std::size_t side, const OptimizeOptions& options) {
  constexpr const char* tag = "memory.adopt_index";
  check_options(options);
  const std::lock_guard lock(optimize_mutex_);
  const auto start = Clock::now();
  const auto snapshot = this->snapshot(tag);
  MemoryIndexFile file;
  file.modality = static_cast<std::int64_t>(side);
  file.factory = "adopted";
  file.number = next_index_number(side);
  NewFiles files;
  const fs::path copy = files.add(file.file(folder_));
  {
    const io::MappedFile source(path);
    const std::array parts{source.bytes()};
    io::write_file_durably(copy, parts);
  }
  // The copy, which nobody changes from here on.
  file.rows = file.end_row = check_faiss_file(copy, path.string(), dim(), snapshot->rows);
  const io::MappedFile written(copy);
  file.bytes = static_cast<std::int64_t>(written.bytes().size());
  file.sha256 = io::sha256(written.bytes());
  std::mt19937_64 generator(options.seed + side);
  Rows rows = snapshot->live_rows();
  std::erase_if(rows, [&](std::int64_t row) { return row >= file.end_row; });
  const auto index = load_index(copy, file, dim());
  const Rows asked = random_rows(rows, kHeldOut, generator);
  const Tuner tuner(*snapshot, asked, side, options, true);
  const double found = tuner.finds_itself(*index, asked);
  check(found >= 0.5, tag, "'", path.string(), "' finds ", 100 * found,
        " % of the rows among their own nearest ten: it is no index over these rows in their order");
  const double seconds = tuner.tune(*index, file);
  publish(side, file, files);
  IndexInfo info = index_info(file);
  info.search_seconds = seconds;
  info.build_seconds = seconds_since(start);
  return info;
}

std::int64_t MemoryStore::next_index_number(std::size_t side) {
  const std::lock_guard lock(read_mutex_);
  reader(kTag);
  const auto& slot = snapshot_->indexes[side];
  if (slot) last_index_[side] = std::max(last_index_[side], slot->file().number);
  return ++last_index_[side];
}

void MemoryStore::publish(std::size_t side, const std::optional<MemoryIndexFile>& file, NewFiles& new_files) {
  const std::lock_guard lock(write_mutex_);
  MemoryDatabase& database = writer(kTag);
  Change change = begin_change();
  const auto old = change.snapshot->indexes[side];
  if (!old && !file) return;
  change.snapshot->indexes[side] = file ? std::make_shared<const IndexSlot>(folder_, *file, dim()) : nullptr;
  std::vector<MemoryIndexFile> files;
  for (const auto& slot : change.snapshot->indexes) {
    if (slot) files.push_back(slot->file());
  }
  change.state.set(files);
  io::Transaction transaction(database.connection(), io::Transaction::Kind::write);
  database.write_indexes(files);
  database.write_state(change.state);
  new_files.keep();
  commit(transaction, std::move(change));
  if (old) io::remove_file(old->file().file(folder_));
}

}  // namespace reco
