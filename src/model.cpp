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
    : clip_(std::move(clip)), memory_(std::move(memory)), fusion_(std::move(fusion)), options_(options) {
  const auto& config = fusion_.config();
  check(memory_.dim() == clip_.dim() && config.dim == clip_.dim(), "model.create", "CLIP has dim ", clip_.dim(),
        ", the memory ", memory_.dim(), ", the fusion ", config.dim);
  check(options.k >= 1 && (config.method != "transformer" || options.k <= config.k), "model.create",
        "k must be at least 1 and, for this fusion, at most ", config.k, ", got ", options.k);
  check_encoder("memory", memory_.encoder(), clip_.fingerprint());
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
  Explanation out{.modality = modality, .original = first_row(embedding)};
  out.neighbors = find(modality, embedding, {});
  const auto fused = fusion_.fuse(modality, embedding, out.neighbors);
  out.refined = fused.embeddings;
  out.gate = fused.gate(0, 0);
  out.attention.assign(fused.attention.data(), fused.attention.data() + fused.attention.size());
  const std::span rows(out.neighbors.rows.data(), static_cast<std::size_t>(out.neighbors.rows.size()));
  out.keys = memory_.keys(rows);
  out.captions = memory_.captions(rows);
  return out;
}

Neighbors Model::find(Modality modality, const MatrixView& embeddings,
                      const std::vector<std::vector<std::string>>& exclude_keys) const {
  SearchOptions search{.k = options_.k, .modality = modality, .exclude_keys = exclude_keys};
  // An identical caption is what the text side looks for; only near-identical pictures are suspect.
  if (modality == Modality::image) search.max_similarity = options_.max_similarity;
  return memory_.search(embeddings, search);
}

}  // namespace reco
