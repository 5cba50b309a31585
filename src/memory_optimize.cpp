// SPDX-License-Identifier: Apache-2.0
// optimize(): choose an index, build it, tune it with rows that it does not hold yet, publish it.
#include <algorithm>
#include <array>
#include <chrono>
#include <numeric>
#include <random>
#include <sstream>

#include "io/file.h"
#include "io/sha256.h"
#include "memory_budget.h"
#include "memory_choice.h"
#include "memory_index.h"
#include "memory_store.h"
#include "memory_tuner.h"
#include "reco/error.h"
#include "reco/interrupt.h"

namespace reco {

/// How far optimize() is, for whoever asked to be told.
class BuildProgress {
 public:
  explicit BuildProgress(const Progress& progress) : progress_(progress) {}
  void begin(std::size_t side, std::int64_t rows) { total_ = side == 0 ? 2 * rows : done_ + rows; }
  void report(std::int64_t more) {
    done_ += more;
    stopped_ = true;  // which progress may also tell by throwing
    check_interrupt();
    if (progress_ && !progress_(done_, total_)) {
      fail("interrupted", "optimize stopped after ", done_, " of ", total_);
    }
    stopped_ = false;
  }
  /// Another kind is tried over as many rows.
  void again(std::int64_t rows) { total_ += rows; }
  bool stopped() const { return stopped_; }

 private:
  const Progress& progress_;
  std::int64_t done_ = 0;
  std::int64_t total_ = 0;
  bool stopped_ = false;
};

namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using Rows = std::vector<std::int64_t>;

constexpr const char* kTag = "memory.optimize";
constexpr std::int64_t kHeldOut = 256;
constexpr std::int64_t kTrainingRows = 1 << 20;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

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

fs::path checkpoint_file(const fs::path& folder, std::int64_t modality, const char* suffix) {
  return folder / (std::string("checkpoint_") + (modality == 0 ? "image" : "text") + suffix);
}

/// What builds of any kind left of one side: once it has an index, nobody goes on from it.
void remove_checkpoints(const fs::path& folder, std::size_t side) {
  for (const char* suffix : kIndexSuffixes) {
    const fs::path path = checkpoint_file(folder, static_cast<std::int64_t>(side), suffix);
    io::remove_file(path.string() + ".sha256");
    io::remove_file(path);
  }
}

/// What an interrupted build leaves beside the indexes: its own file as far as it came, and a text that says what it
/// belongs to.
class Checkpoint {
 public:
  Checkpoint(const fs::path& folder, const MemoryIndexFile& file, std::uint64_t seed, const Rows& rows)
      : path_(checkpoint_file(folder, file.modality, index_suffix(file.factory))), note_(path_.string() + ".sha256") {
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
void add_resumably(IndexBuilder& builder, const Rows& rows, const Checkpoint& checkpoint, BuildProgress& progress) {
  constexpr std::size_t chunk = 16'384;
  constexpr double interval = 60;
  std::size_t done = checkpoint.resume(builder, rows);
  const std::size_t before = done;
  if (done > 0) progress.report(static_cast<std::int64_t>(done));
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
    if ((progress.stopped() || interrupted()) && done > before) checkpoint.write(builder);
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
  BuildProgress told(progress);
  IndexInfo images = optimize_side(0, options, told);
  return {std::move(images), optimize_side(1, options, told)};
}

/// One side's rows, and how they are indexed.
struct MemoryStore::SideBuild {
  std::size_t side;
  std::shared_ptr<const MemorySnapshot> snapshot;
  const OptimizeOptions& options;
  Rows rows;      ///< all of them
  Rows held_out;  ///< some to ask for
  Rows others;
  BuildProgress& progress;

  std::int64_t count() const { return static_cast<std::int64_t>(rows.size()); }
};

/// An index that does not count yet; its file goes with it.
struct MemoryStore::BuiltIndex {
  MemoryIndexFile file;
  NewFiles files;
  double search_seconds = 0;
  bool reached = false;  ///< the recall that was asked for
};

IndexInfo MemoryStore::optimize_side(std::size_t side, const OptimizeOptions& options, BuildProgress& progress) {
  const auto start = Clock::now();
  const auto snapshot = this->snapshot(kTag);
  Rows rows = snapshot->live_rows();
  const auto count = static_cast<std::int64_t>(rows.size());
  const auto choices = count == 0 ? std::vector<std::string>{"exact"} : index_choices(count, snapshot->format, options);
  if (choices[0] == "exact") return drop_index(side);
  std::mt19937_64 generator(options.seed + side);
  Rows held_out = random_rows(rows, std::min(kHeldOut, count / 10), generator);
  Rows others = without(rows, held_out);
  SideBuild build{side, snapshot, options, std::move(rows), std::move(held_out), std::move(others), progress};
  progress.begin(side, count);
  progress.report(0);
  const auto built = build_best(build, choices, generator);
  publish(side, built->file, built->files);
  remove_checkpoints(folder_ / kIndexFolder, side);
  IndexInfo info = index_info(built->file);
  info.search_seconds = built->search_seconds;
  info.build_seconds = seconds_since(start);
  return info;
}

IndexInfo MemoryStore::drop_index(std::size_t side) {
  NewFiles none;
  publish(side, std::nullopt, none);
  remove_checkpoints(folder_ / kIndexFolder, side);
  MemoryIndexFile file;
  file.modality = static_cast<std::int64_t>(side);
  file.factory = "exact";
  file.recall_ppm = 1'000'000;
  return index_info(file);
}

std::unique_ptr<MemoryStore::BuiltIndex> MemoryStore::build_best(SideBuild& build,
                                                                 const std::vector<std::string>& choices,
                                                                 std::mt19937_64& generator) {
  std::unique_ptr<BuiltIndex> best;
  for (std::size_t i = 0; i < choices.size() && !(best && best->reached); ++i) {
    try {
      if (best) build.progress.again(build.count());
      auto built = build_index(build, choices[i], generator);
      if (!best || built->file.recall_ppm > best->file.recall_ppm) best = std::move(built);
    } catch (const BudgetError&) {  // the next one may need less
      if (!best && i + 1 == choices.size()) throw;
    }
  }
  return best;
}

std::unique_ptr<MemoryStore::BuiltIndex> MemoryStore::build_index(SideBuild& build, const std::string& factory,
                                                                  std::mt19937_64& generator) {
  const OptimizeOptions& options = build.options;
  auto built = std::make_unique<BuiltIndex>();
  MemoryIndexFile& file = built->file;
  file.modality = static_cast<std::int64_t>(build.side);
  file.factory = factory;
  Rows sample = random_rows(build.others, kTrainingRows, generator);
  std::shuffle(sample.begin(), sample.end(), generator);  // whoever takes fewer takes the first
  const IndexSource source{*build.snapshot, build.side, std::move(sample), build.count()};
  const auto builder = make_builder(factory, source,
                                    {options.max_build_bytes > 0 ? options.max_build_bytes : default_budget(),
                                     options.seed, [&](std::int64_t rows) { build.progress.report(rows); }});
  const Checkpoint checkpoint(folder_ / kIndexFolder, file, options.seed, build.rows);
  add_resumably(*builder, build.others, checkpoint, build.progress);
  file.number = next_index_number(build.side);
  const fs::path path = built->files.add(file.file(folder_));
  builder->write(path);
  {
    const auto index = load_index(path, file, dim());
    const Tuner tuner(*build.snapshot, build.held_out, build.side, options);
    built->search_seconds = tune_resumably(tuner, *index, file, *builder, checkpoint);
    built->reached = tuner.reached(file);
  }
  builder->add(build.held_out);
  builder->write(path);
  const io::MappedFile written(path);
  file.end_row = build.snapshot->rows;
  file.rows = build.count();
  file.bytes = static_cast<std::int64_t>(written.bytes().size());
  file.sha256 = io::sha256(written.bytes());
  return built;
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
  const auto found = tuner.identity(*index);
  // What is kept of a row tells it from all others, or from most.
  const double bytes = index->bytes_a_number();
  const bool close = bytes < 2 && found.among_ten >= (bytes < 1 ? 0.5 : 0.9) && found.first > found.elsewhere;
  check(found.first >= 0.9 || close, tag, "'", path.string(), "' takes ", 100 * found.first,
        " % of the rows for themselves and ", 100 * found.elsewhere, " % for the row ", found.shift,
        " further on, and finds ", 100 * found.among_ten,
        " % among their own nearest ten: it is no index over these rows in their order");
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
