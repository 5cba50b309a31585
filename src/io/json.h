// SPDX-License-Identifier: Apache-2.0
// JSON from files that nobody vouches for.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "io/file.h"
#include "reco/error.h"

namespace reco::io {

/// Reads a file that must hold a JSON object. Throws Error with `tag`, naming the file.
inline nlohmann::json read_json_object(const std::filesystem::path& file, const char* tag, std::size_t max_bytes) {
  nlohmann::json object = nlohmann::json::parse(read_file(file, max_bytes), nullptr, false);
  check(object.is_object(), tag, "'", file.string(), "' must hold a JSON object",
        object.is_discarded() ? ", found no valid JSON" : "");
  return object;
}

/// A member of an object; null if it is missing or `object` is none. Unlike json::value(), it copies nothing: copies
/// and comparisons of nested values take a call a level, and a file may have a million levels.
inline const nlohmann::json& member(const nlohmann::json& object, const char* name) {
  static const nlohmann::json null;
  if (!object.is_object()) return null;
  const auto found = object.find(name);
  return found == object.end() ? null : *found;
}

/// A value for a message: short, and without the recursion that dump() needs for nested ones.
inline std::string brief(const nlohmann::json& value) {
  if (value.is_structured()) return value.type_name();
  return value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).substr(0, 80);
}

}  // namespace reco::io
