// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <set>

#include "io/file.h"
#include "io/sha256.h"
#include "memory_store.h"
#include "reco/error.h"
#include "reco/interrupt.h"

namespace reco {

namespace {

/// Rounding to half precision moves a unit row's length by at most 2^-11, and by a little more through subnormals.
constexpr float kLengthTolerance = 2e-3F;

}  // namespace

void verify_lengths(const std::byte* rows, std::int64_t count, const RowFormat& format, const std::string& name,
                    MemoryFaults& faults) {
  Eigen::VectorXf row(format.dim());
  for (std::int64_t i = 0; i < count; ++i) {
    check_interrupt();
    format.decode(rows + i * format.bytes(), row.data());
    const float length = row.norm();
    if (std::abs(length - 1.0F) <= kLengthTolerance) continue;
    faults.add("'", name, "': row ", i, " must have length 1, it has ", length);
  }
}

namespace {

/// Goes on after an Error, which becomes a fault.
template <typename Work>
void guarded(MemoryFaults& faults, const Work& work) {
  try {
    work();
  } catch (const Interrupted&) {
    throw;
  } catch (const Error& error) {
    faults.add(error.what());
  }
}

void verify_file(const MemoryShard& shard, const std::filesystem::path& path, std::size_t side, const RowFormat& format,
                 MemoryFaults& faults) {
  const io::MappedFile file(path);
  const std::string found = io::sha256(file.bytes());
  const bool intact = found == shard.sha256[side];
  if (!intact) faults.add("'", path.string(), "' must have SHA-256 ", shard.sha256[side], ", it has ", found);
  const std::byte* rows = shard_rows(file.bytes(), path.string(), format, shard.rows, shard.bytes);
  verify_lengths(rows, shard.rows, format, path.string(), faults);
}

/// The number of the i-th row of all shards. Of a shard whose own list cannot be read, what there would be without
/// gaps.
class RowNumbers {
 public:
  RowNumbers(const std::filesystem::path& folder, const std::vector<MemoryShard>& shards, MemoryFaults& faults)
      : shards_(shards), files_(shards.size()), numbers_(shards.size()) {
    std::int64_t count = 0;
    for (std::size_t i = 0; i < shards.size(); ++i) {
      ends_.push_back(count += shards[i].rows);
      if (shards[i].gaps()) guarded(faults, [&] { read(i, shards[i].numbers_file(folder), faults); });
    }
  }
  std::int64_t operator()(std::int64_t i) const {
    const auto place = static_cast<std::size_t>(std::upper_bound(ends_.begin(), ends_.end(), i) - ends_.begin());
    const std::int64_t index = i - (ends_[place] - shards_[place].rows);
    return numbers_[place] != nullptr ? numbers_[place][index] : shards_[place].first_row + index;
  }

 private:
  void read(std::size_t i, const std::filesystem::path& path, MemoryFaults& faults) {
    files_[i] = io::MappedFile(path);
    const std::string found = io::sha256(files_[i].bytes());
    if (found != shards_[i].numbers_sha256) {
      faults.add("'", path.string(), "' must have SHA-256 ", shards_[i].numbers_sha256, ", it has ", found);
    }
    numbers_[i] = shard_numbers(files_[i].bytes(), path.string(), shards_[i]);
  }

  const std::vector<MemoryShard>& shards_;
  std::vector<io::MappedFile> files_;
  std::vector<const std::int64_t*> numbers_;
  std::vector<std::int64_t> ends_;
};

void verify_index(const MemoryIndexFile& index, const std::filesystem::path& path, MemoryFaults& faults) {
  const io::MappedFile file(path);
  const std::string found = io::sha256(file.bytes());
  if (found != index.sha256) faults.add("'", path.string(), "' must have SHA-256 ", index.sha256, ", it has ", found);
}

/// Checks a memory as its database has it at one moment; what is intact need not be looked at again.
class Verification {
 public:
  Verification(const std::filesystem::path& folder, const RowFormat& format) : folder_(folder), format_(format) {}

  void run(MemoryDatabase& database, MemoryFaults& faults) {
    MemoryLists lists;
    {
      const io::Transaction transaction(database.connection(), io::Transaction::Kind::read);
      lists = database.lists({}, -1);
      const RowNumbers numbers(folder_, lists.shards, faults);
      database.verify([&](std::int64_t i) { return numbers(i); }, faults);
    }
    for (const MemoryShard& shard : lists.shards) {
      for (std::size_t side = 0; side < 2; ++side) {
        const auto path = shard.file(folder_, side);
        check_once(path.string() + shard.sha256[side], faults,
                   [&](MemoryFaults& found) { verify_file(shard, path, side, format_, found); });
      }
    }
    for (const MemoryIndexFile& index : lists.indexes) {
      const auto path = index.file(folder_);
      check_once(path.string() + index.sha256, faults, [&](MemoryFaults& found) { verify_index(index, path, found); });
    }
  }

 private:
  template <typename Work>
  void check_once(const std::string& name, MemoryFaults& faults, const Work& work) {
    if (intact_.contains(name)) return;
    MemoryFaults found;
    guarded(found, [&] { work(found); });
    if (found.lines.empty()) intact_.insert(name);
    faults.lines.insert(faults.lines.end(), found.lines.begin(), found.lines.end());
  }

  const std::filesystem::path& folder_;
  const RowFormat& format_;
  std::set<std::string> intact_;
};

}  // namespace

std::vector<std::string> MemoryStore::verify() {
  constexpr int most_rounds = 20;
  Verification verification(folder_, format_);
  for (int round = 1;; ++round) {
    MemoryFaults faults;
    bool changed = false;
    guarded(faults, [&] {
      MemoryDatabase database = another_reader("memory.verify");
      const std::int64_t version = database.data_version();
      guarded(faults, [&] { verification.run(database, faults); });
      changed = database.data_version() != version;
    });
    // Files that compact() or optimize() replaced meanwhile are gone without a fault.
    if (faults.lines.empty() || !changed || round == most_rounds) return std::move(faults.lines);
  }
}

}  // namespace reco
