// SPDX-License-Identifier: Apache-2.0
// How much memory there is, and how much of it building an index takes: predicted before it begins, and kept.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "memory_index.h"
#include "reco/error.h"

namespace faiss {
struct HNSW;
struct Index;
}  // namespace faiss

namespace reco {

/// Bytes that this process may use: the machine's, or what its control group (of version 1 or 2) allows where that is
/// less. `root` is where the system's files lie.
std::int64_t available_memory(const std::filesystem::path& root = "/");

/// What max_bytes and max_build_bytes are where they are not given.
inline std::int64_t default_budget() { return available_memory() / 2; }

/// An index needs more than building it may take.
class BudgetError final : public Error {
 public:
  using Error::Error;
};

/// Throws BudgetError when building an index takes more than is allowed. `bytes` is what its builder takes; what
/// optimize() holds beside comes to it.
void check_budget(const std::string& factory, const IndexSource& source, const IndexBuild& build, std::int64_t bytes,
                  const char* hint);
/// What optimize() holds while it builds: two lists of rows and the sample.
std::int64_t held_beside(const IndexSource& source);

/// Bytes of FAISS's graph over so many rows, while they are linked, and room for them: vectors that grow would take
/// three times as much for a moment.
std::int64_t graph_bytes(const faiss::HNSW& graph, std::int64_t rows);
void reserve(faiss::HNSW& graph, std::int64_t rows);

/// The same for any index of FAISS: lists, whose lengths nobody knows, may take twice what they hold.
std::int64_t index_bytes(const faiss::Index& index, std::int64_t rows);
void reserve(faiss::Index& index, std::int64_t rows);

/// Bytes that FAISS takes to train on a row, its copy included, and beside.
struct TrainingBytes {
  std::int64_t row = 0;
  std::int64_t fixed = 0;
};
TrainingBytes training_bytes(const faiss::Index& index);

/// Bytes that FAISS takes to add so many rows at once, their copy included.
std::int64_t adding_bytes(const faiss::Index& index, std::int64_t rows);

}  // namespace reco
