// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "io/file.h"
#include "io/sha256.h"
#include "memory_store.h"
#include "reco/error.h"

namespace reco {

namespace {

/// Rounding to half precision moves a unit row's length by at most 2^-11, and by a little more through subnormals.
constexpr float kLengthTolerance = 2e-3F;

/// Goes on after an Error, which becomes a fault.
template <typename Work>
void guarded(MemoryFaults& faults, const Work& work) {
  try {
    work();
  } catch (const Error& error) {
    faults.add(error.what());
  }
}

void verify_lengths(const Half* rows, const MemoryShard& shard, std::int64_t dim, const std::string& name,
                    MemoryFaults& faults) {
  Eigen::VectorXf row(dim);
  for (std::int64_t i = 0; i < shard.rows; ++i) {
    memory_kernel().widen(rows + i * dim, dim, row.data());
    const float length = row.norm();
    if (std::abs(length - 1.0F) <= kLengthTolerance) continue;
    faults.add("'", name, "': row ", i, " must have length 1, it has ", length);
  }
}

void verify_file(const MemoryShard& shard, const std::filesystem::path& path, std::size_t side, std::int64_t dim,
                 MemoryFaults& faults) {
  const io::MappedFile file(path);
  const std::string found = io::sha256(file.bytes());
  const bool intact = found == shard.sha256[side];
  if (!intact) faults.add("'", path.string(), "' must have SHA-256 ", shard.sha256[side], ", it has ", found);
  const Half* rows = shard_rows(file.bytes(), path.string(), shard.rows, dim, shard.bytes);
  verify_lengths(rows, shard, dim, path.string(), faults);
}

}  // namespace

std::vector<std::string> MemoryStore::verify() {
  MemoryFaults faults;
  const auto mode = [&] {
    const std::lock_guard lock(read_mutex_);
    return immutable_ ? io::DatabaseMode::immutable : io::DatabaseMode::read_only;
  }();
  guarded(faults, [&] {
    // A connection of its own: a long check holds up nobody.
    MemoryDatabase database(folder_ / "memory.sqlite", mode);
    MemoryLists lists;
    {
      const io::Transaction transaction(database.connection(), io::Transaction::Kind::read);
      lists = database.lists({}, -1);
      database.verify(faults);
    }
    for (const MemoryShard& shard : lists.shards) {
      for (std::size_t side = 0; side < 2; ++side) {
        guarded(faults, [&] { verify_file(shard, shard.file(folder_, side), side, lists.state.dim, faults); });
      }
    }
  });
  return std::move(faults.lines);
}

}  // namespace reco
