// SPDX-License-Identifier: Apache-2.0
// Reading a model's configuration key by key, each checked.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "io/json.h"
#include "reco/error.h"

namespace reco {

/// A JSON object with the path to it, for messages such as "config.json: text_config.hidden_size must be ...".
class ClipSection {
 public:
  ClipSection(const nlohmann::json& object, std::string where) : object_(object), where_(std::move(where)) {
    check(object.is_object(), kTag, where_, " must be a JSON object, got ", object.type_name());
  }

  /// Reads keys that are there and not null; others keep what they hold.
  void integer(const char* key, std::int64_t& value, std::int64_t low, std::int64_t high) const {
    if (const auto* found = find(key)) {
      const bool fits = found->is_number_integer() && *found >= low && *found <= high;
      check(fits, kTag, where_, ".", key, " must be a whole number from ", low, " to ", high, ", got ",
            io::brief(*found));
      value = found->get<std::int64_t>();
    }
  }

  void text(const char* key, std::string& value) const {
    if (const auto* found = find(key)) {
      check(found->is_string(), kTag, where_, ".", key, " must be a string, got ", io::brief(*found));
      value = found->get<std::string>();
    }
  }

  void flag(const char* key, bool& value) const {
    if (const auto* found = find(key)) {
      check(found->is_boolean(), kTag, where_, ".", key, " must be true or false, got ", io::brief(*found));
      value = found->get<bool>();
    }
  }

  void number(const char* key, double& value, double low, double high) const {
    if (const auto* found = find(key)) {
      const bool fits = found->is_number() && *found >= low && *found <= high;
      check(fits, kTag, where_, ".", key, " must be a number from ", low, " to ", high, ", got ", io::brief(*found));
      value = found->get<double>();
    }
  }

  /// Nothing where the key is missing or null.
  const nlohmann::json* find(const char* key) const {
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }

  /// The object of this key; an empty one where it is missing.
  ClipSection section(const std::string& key) const {
    static const nlohmann::json empty = nlohmann::json::object();
    const auto* found = find(key.c_str());
    return {found == nullptr ? empty : *found, where_ + ": " + key};
  }

  const std::string& where() const { return where_; }

  static constexpr const char* kTag = "clip.load";

 private:
  const nlohmann::json& object_;
  std::string where_;
};

}  // namespace reco
