// SPDX-License-Identifier: Apache-2.0
#include "memory_budget.h"

#include <faiss/IndexFlatCodes.h>
#include <faiss/IndexHNSW.h>
#include <faiss/IndexIDMap.h>
#include <faiss/IndexIVF.h>
#include <faiss/IndexIVFPQ.h>
#include <faiss/IndexPQ.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexRefine.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <limits>

#include "reco/threads.h"

namespace reco {

namespace {

namespace fs = std::filesystem;
constexpr std::int64_t kNoLimit = std::numeric_limits<std::int64_t>::max();

/// The number in a file of the system; no limit where it is not there or says "max".
std::int64_t limit_in(const fs::path& file) {
  std::string text;
  std::ifstream(file) >> text;
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc{} && end == text.data() + text.size() && value > 0 ? value : kNoLimit;
}

/// The least limit of a group and of all that hold it. Inside a container the groups that it sees begin at `top`.
std::int64_t group_limit(const fs::path& top, const std::string& group, const char* file) {
  std::int64_t least = limit_in(top / file);
  for (fs::path path = fs::path(group).relative_path(); !path.empty(); path = path.parent_path()) {
    least = std::min(least, limit_in(top / path / file));
  }
  return least;
}

/// Lines such as `0::/user.slice/a.scope` (version 2) and `9:cpu,memory:/a` (version 1).
std::int64_t control_group_limit(const fs::path& root) {
  const fs::path top = root / "sys/fs/cgroup";
  std::int64_t least = std::min(limit_in(top / "memory.max"), limit_in(top / "memory/memory.limit_in_bytes"));
  std::ifstream groups(root / "proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const auto first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = ',' + line.substr(first + 1, second - first - 1) + ',';
    const std::string group = line.substr(second + 1);
    if (controllers == ",,") least = std::min(least, group_limit(top, group, "memory.max"));
    if (controllers.find(",memory,") == std::string::npos) continue;
    least = std::min(least, group_limit(top / "memory", group, "memory.limit_in_bytes"));
  }
  return least;
}

std::int64_t floats(std::int64_t rows, std::int64_t dim) { return rows * dim * std::int64_t{sizeof(float)}; }

/// Room for so many elements of a vector of FAISS's: newer versions have one of their own.
template <typename Vector>
void reserve_elements(Vector& vector, std::size_t count) {
  if constexpr (requires { vector.reserve(count); }) {
    vector.reserve(count);
  } else {
    vector.owned_data.reserve(count);
  }
}

/// Links of a graph over so many rows: a row has M more with probability 1 / M, and so on. Two in a hundred more are
/// beyond what chance brings.
std::int64_t link_count(const faiss::HNSW& graph, std::int64_t rows) {
  const double m = std::max(2, graph.nb_neighbors(1));
  const double links = graph.nb_neighbors(0) + m / (m - 1);
  return static_cast<std::int64_t>(1.02 * links * static_cast<double>(rows)) + static_cast<std::int64_t>(1'024 * m);
}

const faiss::ProductQuantizer* product_quantizer(const faiss::Index& index) {
  if (const auto* codes = dynamic_cast<const faiss::IndexPQ*>(&index)) return &codes->pq;
  if (const auto* lists = dynamic_cast<const faiss::IndexIVFPQ*>(&index)) return &lists->pq;
  return nullptr;
}

std::int64_t list_bytes(const faiss::IndexIVF& lists, std::int64_t rows) {
  constexpr std::int64_t a_list = 128;  // two vectors and what the allocator adds
  const auto count = static_cast<std::int64_t>(lists.nlist);
  return 2 * rows * (static_cast<std::int64_t>(lists.code_size) + 8) + count * a_list +
         index_bytes(*lists.quantizer, count);
}

}  // namespace

std::int64_t available_memory(const fs::path& root) {
  const std::int64_t machine = std::int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
  return std::min(machine, control_group_limit(root));
}

std::int64_t held_beside(const IndexSource& source) {
  return 8 * (2 * source.rows + static_cast<std::int64_t>(source.sample.size()));
}

void check_budget(const std::string& factory, const IndexSource& source, const IndexBuild& build, std::int64_t bytes,
                  const char* hint) {
  const std::int64_t needed = bytes + held_beside(source);
  if (needed <= build.max_memory) return;
  std::ostringstream text;
  text << "[memory.index] " << factory << " over " << source.rows << " rows needs " << needed
       << " bytes to build, allowed are " << build.max_memory << ": " << hint;
  throw BudgetError(text.str());
}

std::int64_t graph_bytes(const faiss::HNSW& graph, std::int64_t rows) {
  // A level, an offset and a lock each; every thread has a table of the rows that it has seen.
  const std::int64_t a_row = 4 + 8 + 4 + threads();
  return link_count(graph, rows) * std::int64_t{sizeof(faiss::HNSW::storage_idx_t)} + rows * a_row;
}

void reserve(faiss::HNSW& graph, std::int64_t rows) {
  reserve_elements(graph.neighbors, static_cast<std::size_t>(link_count(graph, rows)));
  graph.offsets.reserve(static_cast<std::size_t>(rows) + 1);
  graph.levels.reserve(static_cast<std::size_t>(rows));
}

std::int64_t index_bytes(const faiss::Index& index, std::int64_t rows) {
  if (const auto* map = dynamic_cast<const faiss::IndexIDMap*>(&index))
    return 8 * rows + index_bytes(*map->index, rows);
  if (const auto* transform = dynamic_cast<const faiss::IndexPreTransform*>(&index)) {
    return index_bytes(*transform->index, rows) + 4 * floats(index.d, index.d);
  }
  if (const auto* refine = dynamic_cast<const faiss::IndexRefine*>(&index)) {
    return index_bytes(*refine->base_index, rows) + index_bytes(*refine->refine_index, rows);
  }
  if (const auto* graph = dynamic_cast<const faiss::IndexHNSW*>(&index)) {
    return graph_bytes(graph->hnsw, rows) + index_bytes(*graph->storage, rows);
  }
  if (const auto* lists = dynamic_cast<const faiss::IndexIVF*>(&index)) return list_bytes(*lists, rows);
  if (const auto* codes = dynamic_cast<const faiss::IndexFlatCodes*>(&index)) {
    return rows * static_cast<std::int64_t>(codes->code_size);
  }
  return 2 * floats(rows, index.d);  // of a kind that is not known here
}

void reserve(faiss::Index& index, std::int64_t rows) {
  if (auto* map = dynamic_cast<faiss::IndexIDMap*>(&index)) {
    map->id_map.reserve(static_cast<std::size_t>(rows));
    reserve(*map->index, rows);
  } else if (auto* transform = dynamic_cast<faiss::IndexPreTransform*>(&index)) {
    reserve(*transform->index, rows);
  } else if (auto* refine = dynamic_cast<faiss::IndexRefine*>(&index)) {
    reserve(*refine->base_index, rows);
    reserve(*refine->refine_index, rows);
  } else if (auto* graph = dynamic_cast<faiss::IndexHNSW*>(&index)) {
    reserve(graph->hnsw, rows);
    reserve(*graph->storage, rows);
  } else if (auto* codes = dynamic_cast<faiss::IndexFlatCodes*>(&index)) {
    reserve_elements(codes->codes, static_cast<std::size_t>(rows) * codes->code_size);
  }
}

TrainingBytes training_bytes(const faiss::Index& index) {
  TrainingBytes bytes{.row = floats(3, index.d), .fixed = 0};
  const faiss::Index* inner = &index;
  if (const auto* transform = dynamic_cast<const faiss::IndexPreTransform*>(inner)) {
    bytes.row = floats(6, index.d);  // rotations are found between copies of what they turn
    inner = transform->index;
  }
  if (const auto* lists = dynamic_cast<const faiss::IndexIVF*>(inner)) {
    const auto count = static_cast<std::int64_t>(lists->nlist);
    bytes.row += 16;
    bytes.fixed += floats(3 * count, lists->d) + floats(4'096, std::min<std::int64_t>(1'024, count));
  }
  if (const auto* pq = product_quantizer(*inner)) {
    bytes.fixed += 3 * floats(static_cast<std::int64_t>(pq->ksub), inner->d) + floats(4'096, 1'024);
  }
  return bytes;
}

std::int64_t adding_bytes(const faiss::Index& index, std::int64_t rows) {
  const auto* transform = dynamic_cast<const faiss::IndexPreTransform*>(&index);
  const faiss::Index& inner = transform != nullptr ? *transform->index : index;
  std::int64_t bytes = floats(4 * rows, index.d);
  if (const auto* pq = product_quantizer(inner)) {  // tables of distances
    bytes += floats(rows, static_cast<std::int64_t>(pq->M * pq->ksub));
  }
  if (const auto* lists = dynamic_cast<const faiss::IndexIVF*>(&inner)) {
    bytes += floats(std::min<std::int64_t>(rows, 4'096), std::min<std::int64_t>(1'024, lists->nlist));
  }
  return bytes;
}

}  // namespace reco
