// SPDX-License-Identifier: Apache-2.0
#include "tokenizer_files.h"

#include <algorithm>
#include <array>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <string_view>

#include "io/json.h"

namespace reco {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* tag = "tokenizer.load";
constexpr std::size_t max_bytes = std::size_t{1} << 28;

/// Names of the tokens that a config may set, in Hugging Face's order, which decides when two of them share a content.
constexpr std::array named_tokens{"bos_token", "eos_token", "unk_token", "sep_token",
                                  "pad_token", "cls_token", "mask_token"};

/// A token as a config describes it.
struct Description {
  std::string content;
  bool normalized = false;
  bool special = true;
};

/// The folder's tokens with a role, and the others to be found in texts.
struct Configuration {
  std::map<std::string, std::optional<Description>> named;  // nothing: switched off by null
  std::map<std::int64_t, Description> added;  // by the id that the file gives, which decides their order only
  std::vector<Description> extra;
  bool split_special = false;  // special tokens in a text are text
};

std::optional<json> read_optional(const fs::path& file) {
  if (!fs::exists(file)) return std::nullopt;
  return io::read_json_object(file, tag, max_bytes);
}

std::int64_t token_id(const json& value, const fs::path& file, const std::string& token) {
  constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
  check(value.is_number_integer() && value >= 0 && value <= most, tag, "the id of '", token.substr(0, 80),
        "' must be an integer from 0 to ", most, ", got ", io::brief(value), " in '", file.string(), "'");
  return value.get<std::int64_t>();
}

// ---- vocabulary and merges

std::unordered_map<std::string, std::int64_t> parse_vocabulary(const json& object, const fs::path& file) {
  check(object.is_object() && !object.empty(), tag, "'", file.string(), "' must have a vocabulary {token: id, ...}");
  std::unordered_map<std::string, std::int64_t> vocabulary;
  vocabulary.reserve(object.size());
  for (const auto& [token, id] : object.items()) vocabulary.emplace(token, token_id(id, file, token));
  return vocabulary;
}

/// Splits "left right" at its only space.
std::pair<std::string, std::string> split_merge(std::string_view line, std::size_t number, const fs::path& file) {
  const std::size_t space = line.find(' ');
  check(space != std::string_view::npos && line.find(' ', space + 1) == std::string_view::npos, tag, "merge ", number,
        " must be two tokens and a space, got '", line.substr(0, 80), "' in '", file.string(), "'");
  return {std::string(line.substr(0, space)), std::string(line.substr(space + 1))};
}

std::vector<std::pair<std::string, std::string>> parse_merge_lines(std::string_view text, const fs::path& file) {
  std::vector<std::pair<std::string, std::string>> merges;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (!line.starts_with("#version")) merges.push_back(split_merge(line, merges.size() + 1, file));
  }
  return merges;
}

/// Merges of tokenizer.json: "left right" in older files, ["left", "right"] in newer ones.
std::vector<std::pair<std::string, std::string>> parse_merge_list(const json& list, const fs::path& file) {
  check(list.is_array(), tag, "'", file.string(), "' must have a list of merges");
  std::vector<std::pair<std::string, std::string>> merges;
  for (const json& merge : list) {
    const bool pair = merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string();
    check(pair || merge.is_string(), tag, "merge ", merges.size() + 1, " must be two tokens, got ", io::brief(merge),
          " in '", file.string(), "'");
    merges.push_back(pair ? std::pair{merge[0].get<std::string>(), merge[1].get<std::string>()}
                          : split_merge(merge.get_ref<const std::string&>(), merges.size() + 1, file));
  }
  return merges;
}

void check_merges(const TokenizerFiles& files, const fs::path& file) {
  for (std::size_t i = 0; i < files.merges.size(); ++i) {
    const auto& [left, right] = files.merges[i];
    for (const std::string& token : {left, right, left + right}) {
      check(files.vocabulary.contains(token), tag, "merge ", i + 1, " of '", file.string(), "' has '",
            token.substr(0, 80), "', which is not in the vocabulary");
    }
  }
}

void read_model(const fs::path& folder, const std::optional<json>& tokenizer, TokenizerFiles& files) {
  fs::path vocabulary = folder / "tokenizer.json";
  fs::path merges = vocabulary;
  if (tokenizer) {
    const auto model = tokenizer->find("model");
    check(model != tokenizer->end() && model->is_object() && model->value("type", json("BPE")) == "BPE" &&
              model->contains("vocab") && model->contains("merges"),
          tag, "'", vocabulary.string(), "' must have a BPE model with vocab and merges");
    files.vocabulary = parse_vocabulary(model->at("vocab"), vocabulary);
    files.merges = parse_merge_list(model->at("merges"), merges);
  } else {
    vocabulary = folder / "vocab.json";
    merges = folder / "merges.txt";
    check(fs::exists(vocabulary) && fs::exists(merges), tag, "'", folder.string(),
          "' must have tokenizer.json, or vocab.json and merges.txt");
    files.vocabulary = parse_vocabulary(io::read_json_object(vocabulary, tag, max_bytes), vocabulary);
    files.merges = parse_merge_lines(io::read_file(merges, max_bytes), merges);
  }
  check_merges(files, merges);
}

// ---- tokens with a role

bool flag(const json& object, const char* name, bool missing, const fs::path& file) {
  const auto value = object.find(name);
  if (value == object.end()) return missing;
  check(value->is_boolean(), tag, "'", name, "' must be true or false, got ", io::brief(*value), " in '", file.string(),
        "'");
  return value->get<bool>();
}

/// A string, or an object with "content" and flags. `special` is what it is when the object does not say.
Description describe(const json& value, bool special, const std::string& name, const fs::path& file) {
  if (value.is_string()) return {value.get<std::string>(), !special, special};
  check(value.is_object() && value.contains("content") && value["content"].is_string(), tag, "'", name,
        "' must be a string or an object with \"content\", got ", io::brief(value), " in '", file.string(), "'");
  check(!flag(value, "single_word", false, file), tag, "'", name, "' has single_word, which is not supported, in '",
        file.string(), "'");
  special = flag(value, "special", special, file);
  return {value["content"].get<std::string>(), flag(value, "normalized", !special, file), special};
}

/// Lists of further special tokens: [token, ...] or {name: token, ...}.
void read_extra(const json& object, const fs::path& file, Configuration& config) {
  for (const char* name : {"additional_special_tokens", "extra_special_tokens"}) {
    const auto list = object.find(name);
    if (list == object.end() || list->is_null()) continue;
    check(list->is_structured(), tag, "'", name, "' must be a list of tokens, got ", io::brief(*list), " in '",
          file.string(), "'");
    for (const json& token : *list) config.extra.push_back(describe(token, true, name, file));
  }
}

/// `special`: what an object is that does not say; strings always are.
void read_named(const json& object, bool special, const fs::path& file, Configuration& config) {
  for (const char* name : named_tokens) {
    const auto value = object.find(name);
    if (value == object.end()) continue;
    config.named[name].reset();
    if (value->is_null()) continue;
    config.named[name] = describe(*value, special || value->is_string(), name, file);
    config.named[name]->special = true;
  }
  read_extra(object, file, config);
}

void read_side(const json& object, const char* name, const fs::path& file) {
  const auto side = object.find(name);
  check(side == object.end() || side->is_null() || *side == "right", tag, "'", name, "' must be \"right\", got ",
        io::brief(side == object.end() ? json() : *side), " in '", file.string(), "'");
}

/// {id: token, ...} of tokenizer_config.json; true if it is there.
bool read_decoder(const json& object, const fs::path& file, Configuration& config) {
  const auto decoder = object.find("added_tokens_decoder");
  if (decoder == object.end()) return false;
  check(decoder->is_object(), tag, "'added_tokens_decoder' must be an object in '", file.string(), "'");
  for (const auto& [key, token] : decoder->items()) {
    const json id = json::parse(key, nullptr, false);
    config.added[token_id(id, file, key)] = describe(token, false, key, file);
  }
  return true;
}

/// added_tokens.json: {token: id, ...}. Special are those that the other files name.
void read_added(const json& object, const fs::path& file, Configuration& config) {
  std::set<std::string> named;
  for (const auto& [name, token] : config.named) {
    if (token) named.insert(token->content);
  }
  for (const Description& token : config.extra) named.insert(token.content);
  for (const auto& [token, id] : object.items()) {
    const bool special = named.contains(token);
    config.added[token_id(id, file, token)] = {token, !special, special};
  }
}

/// [{"id", "content", ...}, ...] of tokenizer.json.
void read_tokenizer_added(const json& object, const fs::path& file, Configuration& config) {
  const auto list = object.find("added_tokens");
  if (list == object.end() || list->is_null()) return;
  check(list->is_array(), tag, "'added_tokens' must be a list in '", file.string(), "'");
  for (const json& token : *list) {
    check(token.is_object() && token.contains("id"), tag, "'added_tokens' must be objects with \"id\" in '",
          file.string(), "'");
    config.added[token_id(token["id"], file, "added_tokens")] = describe(token, false, "added_tokens", file);
  }
}

Configuration read_files(const fs::path& folder, const std::optional<json>& tokenizer) {
  Configuration config;
  const fs::path main = folder / "tokenizer_config.json";
  if (const auto object = read_optional(main)) {
    read_named(*object, false, main, config);
    read_side(*object, "padding_side", main);
    read_side(*object, "truncation_side", main);
    config.split_special = flag(*object, "split_special_tokens", false, main);
    if (read_decoder(*object, main, config)) return config;  // then the older files are not looked at
  }
  const fs::path map = folder / "special_tokens_map.json";
  if (const auto special = read_optional(map)) read_named(*special, true, map, config);
  const fs::path added = folder / "added_tokens.json";
  if (const auto tokens = read_optional(added)) read_added(*tokens, added, config);
  if (tokenizer) read_tokenizer_added(*tokenizer, folder / "tokenizer.json", config);
  return config;
}

Configuration read_configuration(const fs::path& folder, const std::optional<json>& tokenizer) {
  Configuration config = read_files(folder, tokenizer);
  config.named.try_emplace("bos_token", Description{"<|startoftext|>"});
  for (const char* name : {"eos_token", "unk_token", "pad_token"}) {
    config.named.try_emplace(name, Description{"<|endoftext|>"});
  }
  return config;
}

/// All descriptions in the order in which Hugging Face adds them. A named token that is among the added ones takes over
/// how those are described.
std::vector<Description> in_order(const Configuration& config) {
  std::vector<Description> all;
  for (const auto& [id, token] : config.added) all.push_back(token);
  const auto known = all;
  const auto add = [&](const Description& token) {
    const auto same = [&](const Description& other) { return other.content == token.content; };
    if (std::none_of(known.begin(), known.end(), same)) all.push_back(token);
  };
  for (const char* name : named_tokens) {
    if (const auto token = config.named.find(name); token != config.named.end() && token->second) add(*token->second);
  }
  for (const Description& token : config.extra) add(token);
  return all;
}

/// Gives every token its id: the vocabulary's, or the next free one.
void resolve(const Configuration& config, TokenizerFiles& files) {
  std::map<std::string, std::int64_t> ids;
  std::int64_t next = static_cast<std::int64_t>(files.vocabulary.size());
  for (const Description& token : in_order(config)) {
    if (token.content.empty()) continue;
    if (!ids.contains(token.content)) {
      const auto known = files.vocabulary.find(token.content);
      const std::int64_t id = known != files.vocabulary.end() ? known->second : next;
      next = std::max(next, id + 1);
      ids[token.content] = id;
      if (known == files.vocabulary.end()) ++files.size;
    }
    // What comes later decides how the token is found.
    std::erase_if(files.added, [&](const AddedToken& other) { return other.content == token.content; });
    if (!(config.split_special && token.special)) {
      files.added.push_back({token.content, ids[token.content], token.normalized});
    }
  }
  const auto id_of = [&](const char* name, std::int64_t missing) {
    const auto& token = config.named.at(name);
    return token && ids.contains(token->content) ? ids[token->content] : missing;
  };
  files.start = id_of("bos_token", -1);
  files.end = id_of("eos_token", -1);
  files.pad = id_of("pad_token", files.end);
  const auto& unknown = config.named.at("unk_token");
  if (unknown && files.vocabulary.contains(unknown->content)) files.unknown = files.vocabulary[unknown->content];
}

}  // namespace

TokenizerFiles read_tokenizer_files(const fs::path& folder) {
  check(fs::is_directory(folder), tag, "'", folder.string(), "' must be a folder");
  TokenizerFiles files;
  const auto tokenizer = read_optional(folder / "tokenizer.json");
  read_model(folder, tokenizer, files);
  files.size = static_cast<std::int64_t>(files.vocabulary.size());
  resolve(read_configuration(folder, tokenizer), files);
  check(files.start >= 0 && files.end >= 0, tag, "'", folder.string(), "' must have a start and an end token");
  return files;
}

}  // namespace reco
