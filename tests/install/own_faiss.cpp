// SPDX-License-Identifier: Apache-2.0
// own_faiss FOLDER: one process searches the same rows with a FAISS of its own and with a memory that FAISS, inside
// reco, has indexed. Says how many of the queries have the same nearest row by both.
#include <faiss/IndexFlat.h>
#include <faiss/IndexHNSW.h>
#include <reco/reco.h>

#include <cstdint>
#include <iostream>
#include <string>
#include <vector>

namespace {

constexpr std::int64_t kRows = 3'000, kQueries = 200, kDim = 32;

reco::Matrix unit_rows(std::int64_t rows) {
  reco::Matrix out = reco::Matrix::Random(rows, kDim);
  out.rowwise().normalize();
  return out;
}

std::vector<std::int64_t> nearest(faiss::Index& index, const reco::Matrix& rows, const reco::Matrix& queries) {
  index.add(rows.rows(), rows.data());
  std::vector<float> scores(static_cast<std::size_t>(queries.rows()));
  std::vector<std::int64_t> found(scores.size());
  index.search(queries.rows(), queries.data(), 1, scores.data(), found.data());
  return found;
}

std::int64_t equal(const std::vector<std::int64_t>& own, const reco::Memory& memory, const reco::Matrix& queries) {
  const auto found = memory.search(queries, {.k = 1, .partners = false});
  std::int64_t same = 0;
  for (std::size_t i = 0; i < own.size(); ++i) same += own[i] == found.rows(static_cast<Eigen::Index>(i), 0);
  return same;
}

}  // namespace

int main(int, char** argv) try {
  const reco::Matrix rows = unit_rows(kRows), queries = unit_rows(kQueries);
  auto memory = reco::Memory::create(argv[1], kDim);
  reco::RowInfo info;
  for (std::int64_t i = 0; i < kRows; ++i) info.keys.push_back(std::to_string(i));
  memory.add(rows, rows, info);

  faiss::IndexFlatIP flat(kDim);
  const auto exact = nearest(flat, rows, queries);
  std::cout << "exact " << equal(exact, memory, queries) << '\n';
  for (const char* index : {"HNSW16", "IVF32,Flat", "IVF32,PQ16"}) {
    memory.optimize({.index = index});
    std::cout << index << ' ' << equal(exact, memory, queries) << '\n';
  }
  faiss::IndexHNSWFlat graph(kDim, 16, faiss::METRIC_INNER_PRODUCT);
  graph.hnsw.efSearch = 64;
  const auto own = nearest(graph, rows, queries);
  std::int64_t same = 0;
  for (std::size_t i = 0; i < own.size(); ++i) same += own[i] == exact[i];
  std::cout << "own graph " << same << '\n';
  return 0;
} catch (const std::exception& error) {
  std::cout << "Error: " << error.what() << '\n';
  return 1;
}
