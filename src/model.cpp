// SPDX-License-Identifier: Apache-2.0
#include "reco/model.h"

#include "reco/error.h"

namespace reco {

namespace {

void check_encoder(const std::string& what, const std::string& found, const std::string& clip) {
  check(found.empty() || found == clip, "model.create", "the ", what, " was made with encoder ", found,
        ", the CLIP model is ", clip);
}

Matrix first_row(const MatrixView& embedding) { return embedding.topRows(1); }

}  // namespace

Model::Model(Clip clip, Memory memory, Fusion fusion, const ModelOptions& options)
    : Model(std::move(clip), std::make_shared<const Memory>(std::move(memory)), std::move(fusion), options) {}

Model::Model(Clip clip, std::shared_ptr<const MemoryBase> memory, Fusion fusion, const ModelOptions& options)
    : clip_(std::move(clip)), memory_(std::move(memory)), fusion_(std::move(fusion)), options_(options) {
  const auto& config = fusion_.config();
  check(memory_ != nullptr, "model.create", "there is no memory");
  check(memory_->dim() == clip_.dim() && config.dim == clip_.dim(), "model.create", "CLIP has dim ", clip_.dim(),
        ", the memory ", memory_->dim(), ", the fusion ", config.dim);
  const auto k = options_.k.value_or(config.k);
  check(k >= 1 && (config.method != "transformer" || k <= config.k), "model.create",
        "k must be at least 1 and, for this fusion, at most ", config.k, ", got ", k);
  options_.k = k;
  check_encoder("memory", memory_->encoder(), clip_.fingerprint());
  check_encoder("fusion", fusion_.encoder(), clip_.fingerprint());
}

Matrix Model::encode_images(std::span<const std::filesystem::path> files, const Progress& progress) const {
  return refine_images(clip_.encode_images(files, progress));
}

Matrix Model::encode_images(std::span<const Image> images, const Progress& progress) const {
  return refine_images(clip_.encode_images(images, progress));
}

Matrix Model::encode_texts(std::span<const std::string> texts, const Progress& progress) const {
  return refine_texts(clip_.encode_texts(texts, progress));
}

Matrix Model::refine_images(const MatrixView& embeddings,
                            const std::vector<std::vector<std::string>>& exclude_keys) const {
  return fusion_.fuse(Modality::image, embeddings, find(Modality::image, embeddings, exclude_keys)).embeddings;
}

Matrix Model::refine_texts(const MatrixView& embeddings,
                           const std::vector<std::vector<std::string>>& exclude_keys) const {
  return fusion_.fuse(Modality::text, embeddings, find(Modality::text, embeddings, exclude_keys)).embeddings;
}

Explanation Model::explain(Modality modality, const MatrixView& embedding) const {
  check(embedding.rows() == 1, "model.explain", "expected one embedding, got ", embedding.rows());
  const auto found = find(modality, embedding, {});
  const auto fused = fusion_.fuse(modality, embedding, found);
  Explanation out{.modality = modality, .original = first_row(embedding), .refined = fused.embeddings};
  out.gate = fused.gate(0, 0);
  out.confidence = fused.confidence(0, 0);
  const bool both = fusion_.config().fuse == "both";
  const auto k = both ? found.k / 2 : found.k;
  std::vector<std::int64_t> rows;
  for (Eigen::Index i = 0; i < k && found.rows(0, i) >= 0; ++i) {
    rows.push_back(found.rows(0, i));
    out.scores.push_back(found.scores(0, i));
    out.attention.push_back(fused.attention(0, i) + (both ? fused.attention(0, k + i) : 0.0F));
  }
  out.keys = memory_->keys(rows);
  out.captions = memory_->captions(rows);
  out.metadata = memory_->metadata(rows);
  return out;
}

Neighbors Model::find(Modality modality, const MatrixView& embeddings,
                      const std::vector<std::vector<std::string>>& exclude_keys) const {
  const SearchOptions search{
      .k = *options_.k, .modality = modality, .exclude_keys = exclude_keys, .max_similarity = options_.max_similarity};
  return find_neighbors(*memory_, fusion_.config(), embeddings, search);
}

}  // namespace reco
