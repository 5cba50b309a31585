// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "reco/error.h"
#include "reco/fusion.h"

namespace reco {

inline nlohmann::json fusion_config_json(const FusionConfig& c) {
  return {{"method", c.method},
          {"dim", c.dim},
          {"k", c.k},
          {"search", c.search},
          {"fuse", c.fuse},
          {"sides", c.sides},
          {"layers", c.layers},
          {"heads", c.heads},
          {"mlp_ratio", c.mlp_ratio},
          {"positions", c.positions},
          {"similarity", c.similarity},
          {"residual", c.residual},
          {"shared", c.shared},
          {"relevance", c.relevance},
          {"metric", c.metric},
          {"gate_width", c.gate_width}};
}

/// Reads what fusion_config_json() wrote. Throws Error naming `where`.
inline FusionConfig parse_fusion_config(const std::string& text, const std::string& where) {
  FusionConfig c;
  try {
    const auto json = nlohmann::json::parse(text);
    json.at("method").get_to(c.method);
    json.at("dim").get_to(c.dim);
    json.at("k").get_to(c.k);
    json.at("search").get_to(c.search);
    json.at("fuse").get_to(c.fuse);
    json.at("sides").get_to(c.sides);
    json.at("layers").get_to(c.layers);
    json.at("heads").get_to(c.heads);
    json.at("mlp_ratio").get_to(c.mlp_ratio);
    json.at("positions").get_to(c.positions);
    json.at("similarity").get_to(c.similarity);
    json.at("residual").get_to(c.residual);
    json.at("shared").get_to(c.shared);
    c.relevance = json.value("relevance", true);  // files of earlier versions say nothing of these
    c.metric = json.value("metric", false);
    json.at("gate_width").get_to(c.gate_width);
  } catch (const nlohmann::json::exception& error) {
    fail("fusion.load", "malformed config in ", where, ": ", error.what());
  }
  validate(c);
  return c;
}

}  // namespace reco
