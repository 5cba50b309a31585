// SPDX-License-Identifier: Apache-2.0
#include "fusion_search.h"

#include <algorithm>
#include <span>

namespace reco {

namespace {

Modality other(Modality modality) { return modality == Modality::image ? Modality::text : Modality::image; }

// [a | b] along k, for arrays of n rows a query or k rows a query.
template <typename M>
M beside(const M& a, const M& b, Eigen::Index n, M out) {
  const auto width = a.size() / std::max<Eigen::Index>(n, 1);
  Eigen::Map<M> flat(out.data(), n, 2 * width);
  flat.leftCols(width) = Eigen::Map<const M>(a.data(), n, width);
  flat.rightCols(width) = Eigen::Map<const M>(b.data(), n, width);
  return out;
}

Modality searched_side(const FusionConfig& config, Modality query) {
  return config.search == "cross-modal" ? other(query) : query;
}

Modality fused_side(const FusionConfig& config, Modality query) { return config.fuse == "same" ? query : other(query); }

// An identical caption is what a text looks for; only pictures can be suspiciously similar.
bool compares_images(Modality query, Modality searched) {
  return query == Modality::image && searched == Modality::image;
}

}  // namespace

Neighbors fusion::search(const MemoryBase& memory, const FusionConfig& config, const MatrixView& queries,
                         SearchOptions options) {
  const auto query = options.modality;
  options.modality = searched_side(config, query);
  if (!compares_images(query, options.modality)) options.max_similarity.reset();
  return memory.search(queries, options);
}

void fusion::fetch(const MemoryBase& memory, const FusionConfig& config, Modality query, Neighbors& found) {
  const std::span rows(found.rows.data(), static_cast<std::size_t>(found.rows.size()));
  found.partners = memory.embeddings(rows, fused_side(config, query));
  if (config.fuse != "both") return;
  const auto n = found.rows.rows();
  const auto same = memory.embeddings(rows, query);
  found.partners = beside(found.partners, same, n, Matrix(2 * same.rows(), same.cols()));
  found.rows = beside(found.rows, IndexMatrix(found.rows), n, IndexMatrix(n, 2 * found.k));
  found.scores = beside(found.scores, Matrix(found.scores), n, Matrix(n, 2 * found.k));
  found.k *= 2;
}

Neighbors find_neighbors(const MemoryBase& memory, const FusionConfig& config, const MatrixView& queries,
                         SearchOptions options) {
  // What a search calls partners is what most fusions want: then one request brings all.
  const auto query = options.modality;
  options.partners = config.fuse != "both" && fused_side(config, query) == other(searched_side(config, query));
  auto found = fusion::search(memory, config, queries, options);
  if (!options.partners) fusion::fetch(memory, config, query, found);
  if (config.metric && query == Modality::image && config.sides != "text") {
    found.same = memory.embeddings({found.rows.data(), static_cast<std::size_t>(found.rows.size())}, query);
  }
  return found;
}

}  // namespace reco
