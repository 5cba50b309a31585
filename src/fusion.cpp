// SPDX-License-Identifier: Apache-2.0
#include "reco/fusion.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "fusion_json.h"
#include "fusion_layer.h"
#include "fusion_metric.h"
#include "io/safetensors.h"
#include "reco/error.h"
#include "reco/interrupt.h"
#include "reco/threads.h"

namespace reco {

namespace {

constexpr const char* kFormat = "reco.fusion/2";
constexpr std::int64_t kRowsAtOnce = 2048;  // bounds the memory of a large fuse()

void check_range(bool condition, const char* field, const char* expected, double found) {
  check(condition, "fusion.validate", field, " must be ", expected, ", got ", found);
}

const std::string& entry(const io::Safetensors& file, const std::string& key) {
  const auto found = file.metadata().find(key);
  check(found != file.metadata().end(), "fusion.load", file.path().string(), " is no fusion: its metadata lacks '", key,
        "'");
  return found->second;
}

std::string text(const std::vector<std::int64_t>& shape) {
  std::string out;
  for (const auto size : shape) {
    out += out.empty() ? "" : ", ";
    out += std::to_string(size);
  }
  return "[" + out + "]";
}

at::Tensor read_tensor(const io::Safetensors& file, const std::string& name, const std::vector<std::int64_t>& shape) {
  const auto found = file.tensors().find(name);
  check(found != file.tensors().end(), "fusion.load", file.path().string(), " lacks the tensor '", name, "'");
  check(found->second.shape == shape, "fusion.load", "tensor '", name, "' must have shape ", text(shape), ", got ",
        text(found->second.shape), " in ", file.path().string());
  auto tensor = at::empty(shape, at::kFloat);
  to_float32(found->second, {tensor.mutable_data_ptr<float>(), static_cast<std::size_t>(tensor.numel())}, name);
  check(tensor.isfinite().all().item<bool>(), "fusion.load", "tensor '", name, "' has values that are not finite in ",
        file.path().string());
  return tensor;
}

// The rows [first, first + count) of a batch, as views.
fusion::Batch rows_of(const fusion::Batch& batch, std::int64_t first, std::int64_t count) {
  return {batch.queries.narrow(0, first, count), batch.partners.narrow(0, first, count),
          batch.scores.narrow(0, first, count), batch.mask.narrow(0, first, count)};
}

void store(const at::Tensor& tensor, Matrix& out, std::int64_t first) {
  fusion::view(out, {out.rows(), out.cols()}).narrow(0, first, tensor.size(0)).copy_(tensor);
}

bool measures(const FusionConfig& config, Modality modality) {
  return config.metric && modality == Modality::image && fusion::refines(config, "image");
}

void check_shapes(const FusionConfig& config, Modality modality, const MatrixView& queries,
                  const Neighbors& neighbors) {
  const char* tag = "fusion.fuse";
  check(queries.cols() == config.dim, tag, "queries must have ", config.dim, " columns, got ", queries.cols());
  const auto n = queries.rows();
  const auto k = neighbors.scores.cols();
  check(neighbors.scores.rows() == n && neighbors.rows.rows() == n && neighbors.rows.cols() == k, tag,
        "neighbours must be those of ", n, " queries, got ", neighbors.scores.rows());
  check(neighbors.partners.rows() == n * k && (n == 0 || neighbors.partners.cols() == config.dim), tag,
        "partners must be [", n * k, ", ", config.dim, "], got [", neighbors.partners.rows(), ", ",
        neighbors.partners.cols(), "]");
  check(k >= 1 && (config.method != "transformer" || k <= config.slots()), tag, "made for at most ", config.slots(),
        " neighbours, got ", k);
  check(!measures(config, modality) ||
            (neighbors.same.rows() == n * k && (n == 0 || neighbors.same.cols() == config.dim)),
        tag, "this fusion has a metric of its own: expected the neighbours' same sides too, [", n * k, ", ", config.dim,
        "], got [", neighbors.same.rows(), ", ", neighbors.same.cols(), "]");
}

// The similarities that this fusion measures itself.
at::Tensor measured(const Fusion::Impl& impl, const fusion::Batch& part, const MatrixView& same, std::int64_t first) {
  const auto rows = same.middleRows(first * part.scores.size(1), part.scores.numel());
  return fusion::compare(impl.parameters.at("image.metric"), part.queries,
                         fusion::view(rows, part.partners.sizes().vec()));
}

void check_choice(const char* field, const std::string& found, std::initializer_list<const char*> choices) {
  std::string expected;
  for (const char* choice : choices) {
    if (found == choice) return;
    expected += std::string(expected.empty() ? "" : ", ") + "'" + choice + "'";
  }
  fail("fusion.validate", field, " must be one of ", expected, ", got '", found, "'");
}

}  // namespace

void validate(const FusionConfig& config) {
  check_choice("method", config.method, {"gated", "transformer", "mean"});
  check_choice("search", config.search, {"uni-modal", "cross-modal"});
  check_choice("fuse", config.fuse, {"partner", "same", "both"});
  check_choice("sides", config.sides, {"both", "image", "text"});
  check_range(config.dim >= 1 && config.dim <= 65'536, "dim", "from 1 to 65,536", static_cast<double>(config.dim));
  check_range(config.k >= 1 && config.k <= 4'096, "k", "from 1 to 4,096", static_cast<double>(config.k));
  check_range(config.layers >= (config.method == "transformer" ? 1 : 0) && config.layers <= 4, "layers",
              "from 0 to 4 (a transformer needs one)", static_cast<double>(config.layers));
  check_range(config.heads >= 1 && config.dim % config.heads == 0, "heads", "a divisor of dim",
              static_cast<double>(config.heads));
  check_range(config.mlp_ratio * static_cast<double>(config.dim) >= 1 && config.mlp_ratio <= 64, "mlp_ratio",
              "above 0 and at most 64", config.mlp_ratio);
  check(!config.metric ||
            (config.method == "gated" && config.search == "uni-modal" && config.fuse != "both" && !config.shared),
        "fusion.validate", "metric needs method 'gated', search 'uni-modal', fuse 'partner' or 'same', and not shared");
  check_range(config.gate_width >= 1 && config.gate_width <= 1'024, "gate_width", "from 1 to 1,024",
              static_cast<double>(config.gate_width));
}

Fusion Fusion::create(const FusionConfig& config, std::uint64_t seed) {
  validate(config);
  return Fusion(std::make_shared<Impl>(Impl{config, fusion::initialise(config, seed), "", "{}"}));
}

Fusion Fusion::mean(std::int64_t dim, const MeanWeights& image, const MeanWeights& text) {
  FusionConfig config{.method = "mean", .dim = dim, .layers = 0, .heads = 1};
  validate(config);
  auto parameters = fusion::initialise(config, 0);
  for (const auto& [side, weights] : {std::pair{"image", image}, std::pair{"text", text}}) {
    const bool good =
        weights.weight >= 0 && weights.sharpness >= 0 && std::isfinite(weights.weight + weights.sharpness);
    check(good, "fusion.mean", "weight and sharpness must be finite and not negative, got ", weights.weight, " and ",
          weights.sharpness, " for ", side);
    parameters[std::string(side) + ".weight"].fill_(weights.weight);
    parameters[std::string(side) + ".sharpness"].fill_(weights.sharpness);
  }
  return Fusion(std::make_shared<Impl>(Impl{config, std::move(parameters), "", "{}"}));
}

Fusion Fusion::load(const std::filesystem::path& path) {
  const io::Safetensors file(path);
  check(entry(file, "format") == kFormat, "fusion.load", "expected format ", kFormat, ", found ", entry(file, "format"),
        " in ", path.string());
  Impl impl{
      parse_fusion_config(entry(file, "config"), path.string()), {}, entry(file, "encoder"), entry(file, "provenance")};
  const auto expected = fusion::shapes(impl.config);
  for (const auto& [name, shape] : expected) impl.parameters[name] = read_tensor(file, name, shape);
  check(file.tensors().size() == expected.size(), "fusion.load", "expected ", expected.size(), " tensors, found ",
        file.tensors().size(), " in ", path.string());
  return Fusion(std::make_shared<Impl>(std::move(impl)));
}

void Fusion::save(const std::filesystem::path& path) const {
  std::map<std::string, io::TensorView> tensors;
  std::vector<at::Tensor> alive;
  for (const auto& [name, value] : impl_->parameters) {
    alive.push_back(value.contiguous());
    const auto bytes = std::as_bytes(std::span(alive.back().const_data_ptr<float>(), alive.back().numel()));
    tensors[name] = {"F32", alive.back().sizes().vec(), bytes};
  }
  io::write_safetensors(path, tensors,
                        {{"format", kFormat},
                         {"config", fusion_config_json(impl_->config).dump()},
                         {"encoder", impl_->encoder},
                         {"provenance", impl_->provenance}});
}

FusionOutput Fusion::fuse(Modality modality, const MatrixView& queries, const Neighbors& neighbors) const {
  check_shapes(impl_->config, modality, queries, neighbors);
  const auto n = queries.rows();
  FusionOutput out{Matrix(n, queries.cols()), Matrix(n, neighbors.scores.cols()), Matrix(n, 1), Matrix(n, 1)};
  if (n == 0) return out;
  at::set_num_threads(threads());
  const c10::NoGradGuard no_grad;
  const auto all = fusion::batch(queries, neighbors);
  const std::string side = fusion::side_name(modality);
  for (std::int64_t first = 0; first < n; first += kRowsAtOnce) {
    check_interrupt();
    auto part = rows_of(all, first, std::min<std::int64_t>(kRowsAtOnce, n - first));
    if (measures(impl_->config, modality)) part.scores = measured(*impl_, part, neighbors.same, first);
    const auto fused = fusion::fuse(impl_->config, impl_->parameters, side, part);
    store(fused.embeddings, out.embeddings, first);
    store(fused.attention, out.attention, first);
    store(fused.gate, out.gate, first);
    store(fused.confidence, out.confidence, first);
  }
  return out;
}

const FusionConfig& Fusion::config() const { return impl_->config; }
const std::string& Fusion::encoder() const { return impl_->encoder; }
const std::string& Fusion::provenance() const { return impl_->provenance; }

std::int64_t Fusion::parameters() const {
  std::int64_t count = 0;
  for (const auto& [name, value] : impl_->parameters) count += value.numel();
  return count;
}

}  // namespace reco
