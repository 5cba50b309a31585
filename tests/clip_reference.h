// SPDX-License-Identifier: Apache-2.0
// A CLIP model in plain double precision, one token after the other: what the towers on LibTorch are compared with.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "reco/image.h"

namespace reco::testing {

using nlohmann::json;
using Weights = std::map<std::string, std::vector<float>>;
using Vec = std::vector<double>;
using Tokens = std::vector<Vec>;

inline double activate(const std::string& name, double x) {
  if (name == "quick_gelu") return x / (1 + std::exp(-1.702 * x));
  if (name == "gelu") return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
  if (name == "silu") return x / (1 + std::exp(-x));
  if (name == "relu") return std::max(x, 0.0);
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

/// Takes config.json and the weights by name; the results have unit length.
class Reference {
 public:
  Reference(const json& config, const Weights& weights) : config_(config), weights_(weights) {}

  Vec image(const Image& image, const Preprocess& preprocess) const {
    const json& c = config_["vision_config"];
    const int size = c["image_size"], side = c["patch_size"], width = c["hidden_size"], grid = size / side;
    std::vector<float> pixels(static_cast<std::size_t>(3 * size * size));
    reco::preprocess(image, preprocess, pixels);
    const auto& kernel = weights_.at("vision_model.embeddings.patch_embedding.weight");
    Tokens x{row("vision_model.embeddings.class_embedding", 0, width)};
    for (int patch = 0; patch < grid * grid; ++patch) {
      Vec token(static_cast<std::size_t>(width));
      for (int out = 0, k = 0; out < width; ++out) {
        for (int at = 0; at < 3 * side * side; ++at, ++k) {
          const int channel = at / (side * side), y = at / side % side, column = at % side;
          const int source = (channel * size + patch / grid * side + y) * size + patch % grid * side + column;
          token[out] += double{kernel[k]} * pixels[source];
        }
      }
      x.push_back(token);
    }
    for (std::size_t i = 0; i < x.size(); ++i) {
      add(x[i], row("vision_model.embeddings.position_embedding.weight", i, width));
      x[i] = norm(x[i], "vision_model.pre_layrnorm");
    }
    encode(x, "vision_model", c, false);
    return project(norm(x[0], "vision_model.post_layernorm"), "visual_projection.weight");
  }

  Vec text(const std::vector<std::int64_t>& ids, std::size_t end) const {
    const int width = config_["text_config"]["hidden_size"];
    Tokens x;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      x.push_back(row("text_model.embeddings.token_embedding.weight", ids[i], width));
      add(x[i], row("text_model.embeddings.position_embedding.weight", i, width));
    }
    encode(x, "text_model", config_["text_config"], true);
    return project(norm(x[end], "text_model.final_layer_norm"), "text_projection.weight");
  }

 private:
  static void add(Vec& x, const Vec& y) {
    for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }

  Vec row(const std::string& name, std::size_t index, std::size_t width) const {
    const auto begin = weights_.at(name).begin() + static_cast<std::ptrdiff_t>(index * width);
    return {begin, begin + static_cast<std::ptrdiff_t>(width)};
  }

  Vec norm(const Vec& x, const std::string& name) const {
    double mean = 0, variance = 0;
    for (const double v : x) mean += v / static_cast<double>(x.size());
    for (const double v : x) variance += (v - mean) * (v - mean) / static_cast<double>(x.size());
    Vec out(x.size());
    for (std::size_t i = 0; i < x.size(); ++i) {
      out[i] = (x[i] - mean) / std::sqrt(variance + 1e-5) * weights_.at(name + ".weight")[i] +
               weights_.at(name + ".bias")[i];
    }
    return out;
  }

  Vec product(const Vec& x, const std::string& name) const {
    const auto& matrix = weights_.at(name);
    Vec out(matrix.size() / x.size());
    for (std::size_t i = 0; i < matrix.size(); ++i) out[i / x.size()] += double{matrix[i]} * x[i % x.size()];
    return out;
  }

  Vec linear(const Vec& x, const std::string& name) const {
    Vec out = product(x, name + ".weight");
    add(out, row(name + ".bias", 0, out.size()));
    return out;
  }

  Vec project(const Vec& x, const std::string& name) const {
    Vec out = product(x, name);
    double square = 0;
    for (const double v : out) square += v * v;
    for (double& v : out) v /= std::sqrt(square);
    return out;
  }

  Tokens attention(const Tokens& x, const std::string& name, int heads, bool causal) const {
    Tokens q, k, v, out(x.size(), Vec(x[0].size()));
    for (const Vec& token : x) {
      q.push_back(linear(token, name + "q_proj"));
      k.push_back(linear(token, name + "k_proj"));
      v.push_back(linear(token, name + "v_proj"));
    }
    const std::size_t width = x[0].size() / static_cast<std::size_t>(heads);
    for (std::size_t i = 0; i < x.size(); ++i) {
      for (std::size_t first = 0; first < x[0].size(); first += width) {
        Vec weight;
        double sum = 0;
        for (std::size_t j = 0; j < (causal ? i + 1 : x.size()); ++j) {
          double score = 0;
          for (std::size_t d = first; d < first + width; ++d) score += q[i][d] * k[j][d];
          weight.push_back(std::exp(score / std::sqrt(static_cast<double>(width))));
          sum += weight.back();
        }
        for (std::size_t j = 0; j < weight.size(); ++j) {
          for (std::size_t d = first; d < first + width; ++d) out[i][d] += weight[j] / sum * v[j][d];
        }
      }
    }
    return out;
  }

  void encode(Tokens& x, const std::string& model, const json& c, bool causal) const {
    for (int layer = 0; layer < c["num_hidden_layers"]; ++layer) {
      const std::string name = model + ".encoder.layers." + std::to_string(layer) + '.';
      Tokens in;
      for (const Vec& token : x) in.push_back(norm(token, name + "layer_norm1"));
      const Tokens seen = attention(in, name + "self_attn.", c["num_attention_heads"], causal);
      for (std::size_t i = 0; i < x.size(); ++i) {
        add(x[i], linear(seen[i], name + "self_attn.out_proj"));
        Vec hidden = linear(norm(x[i], name + "layer_norm2"), name + "mlp.fc1");
        for (double& v : hidden) v = activate(c["hidden_act"], v);
        add(x[i], linear(hidden, name + "mlp.fc2"));
      }
    }
  }

  const json& config_;
  const Weights& weights_;
};

}  // namespace reco::testing
