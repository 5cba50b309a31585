// SPDX-License-Identifier: Apache-2.0
#include "tokenizer_files.h"

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <set>
#include <string_view>

#include "io/json.h"
#include "model_format.h"
#include "tokenizer_vocabulary.h"

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

// ---- merging characters: all that counts stands in tokenizer.json

/// Lower case, and "\u2581" for a space; anything else is refused.
void read_normalizer(const json& step, const fs::path& file, CharacterFiles& characters, int depth = 0) {
  const json& name = io::member(step, "type");
  const std::string type = name.is_string() ? name.get<std::string>() : "none";
  if (type == "Lowercase") {
    characters.lower_case = true;
  } else if (type == "Sequence" && depth == 0 && step.contains("normalizers") && step["normalizers"].is_array()) {
    for (const json& inner : step["normalizers"]) read_normalizer(inner, file, characters, 1);
  } else {
    const bool spaces = type == "Replace" && io::member(step, "content") == "\u2581" &&
                        io::member(io::member(step, "pattern"), "String") == " ";
    check(spaces, tag, "the normalizer '", type.substr(0, 80), "' is not supported, in '", file.string(), "'");
  }
}

std::int64_t id_of(const TokenizerFiles& files, const std::string& token, const fs::path& file) {
  const auto found = files.vocabulary.find(token);
  check(found != files.vocabulary.end(), tag, "'", file.string(), "' must have the token '", token.substr(0, 80), "'");
  return found->second;
}

/// The tokens before and after the text in a TemplateProcessing.
void read_template(const json& processor, const fs::path& file, const TokenizerFiles& files,
                   CharacterFiles& characters) {
  const json& single = io::member(processor, "single");
  const bool found = io::member(processor, "type") == "TemplateProcessing" && single.is_array();
  check(found, tag, "'", file.string(), "' must have a post_processor of the type TemplateProcessing");
  std::vector<std::int64_t>* side = &characters.before;
  for (const json& part : single) {
    const bool text = part.is_object() && part.contains("Sequence");
    const json& token = io::member(io::member(part, "SpecialToken"), "id");
    check(text || token.is_string(), tag, "the post_processor of '", file.string(),
          "' has a part that is neither text nor token");
    if (text) {
      side = &characters.after;
    } else {
      side->push_back(id_of(files, token.get<std::string>(), file));
    }
  }
}

void read_character_tokens(const json& tokenizer, const fs::path& file, TokenizerFiles& files) {
  Configuration config;
  read_tokenizer_added(tokenizer, file, config);
  for (const auto& [id, token] : config.added) {
    check(!token.normalized, tag, "the token '", token.content.substr(0, 80),
          "' is found in normalised text, which is not supported, in '", file.string(), "'");
    files.size += files.vocabulary.emplace(token.content, id).second ? 1 : 0;
    files.added.push_back({token.content, files.vocabulary[token.content], false});
  }
}

void read_characters(const fs::path& folder, const json& tokenizer, TokenizerFiles& files) {
  const fs::path file = folder / "tokenizer.json", main = folder / "tokenizer_config.json";
  CharacterFiles characters;
  read_normalizer(io::member(tokenizer, "normalizer"), file, characters);
  const json& split = io::member(tokenizer, "pre_tokenizer");  // at spaces, of which the normalizer leaves none
  const bool none = split.is_null() || io::member(io::member(split, "pattern"), "String") == " ";
  check(none, tag, "the pre_tokenizer is not supported, in '", file.string(), "'");
  read_character_tokens(tokenizer, file, files);
  read_template(io::member(tokenizer, "post_processor"), file, files, characters);
  const json config = read_optional(main).value_or(json::object());
  read_side(config, "padding_side", main);
  read_side(config, "truncation_side", main);
  if (io::member(config, "tokenizer_class") == "Siglip2Tokenizer") {
    characters.lower_case = true;
    check(config.contains("padding_side"), tag,
          "'padding_side' must be \"right\", Siglip2Tokenizer's is \"left\", in '", main.string(), "'");
  }
  Configuration roles;
  read_named(config, false, main, roles);
  const auto pad = roles.named.find("pad_token");
  files.pad = id_of(files, pad != roles.named.end() && pad->second ? pad->second->content : "<pad>", file);
  files.start = characters.before.empty() ? -1 : characters.before.front();
  files.end = characters.after.empty() ? -1 : characters.after.back();
  files.characters = std::move(characters);
}

TokenizerFiles read_hugging_face(const fs::path& folder) {
  check(fs::is_directory(folder), tag, "'", folder.string(), "' must be a folder");
  TokenizerFiles files;
  const auto tokenizer = read_optional(folder / "tokenizer.json");
  read_vocabulary(folder, tokenizer, files);
  if (tokenizer && io::member(tokenizer->at("model"), "byte_fallback") == true) {
    files.size = static_cast<std::int64_t>(files.vocabulary.size());
    read_characters(folder, *tokenizer, files);
    return files;
  }
  files.size = static_cast<std::int64_t>(files.vocabulary.size());
  resolve(read_configuration(folder, tokenizer), files);
  check(files.start >= 0 && files.end >= 0, tag, "'", folder.string(), "' must have a start and an end token");
  return files;
}

// ---- open_clip and OpenAI

/// The folder's vocabulary, or else CLIP's own: those projects have it in their packages, not beside their models.
void read_any_vocabulary(const fs::path& folder, TokenizerFiles& files) {
  for (const char* name : {"bpe_simple_vocab_16e6.txt.gz", "bpe_simple_vocab_16e6.txt"}) {
    if (fs::exists(folder / name)) return read_simple_vocabulary(folder / name, files);
  }
  constexpr std::array others{"tokenizer.json", "vocab.json", "merges.txt"};
  const bool brings = std::any_of(others.begin(), others.end(), [&](auto name) { return fs::exists(folder / name); });
  if (!brings) return read_own_vocabulary(files);
  read_vocabulary(folder, read_optional(folder / "tokenizer.json"), files);
}

TokenizerFiles read_simple(const fs::path& folder, Cleaning cleaning, std::vector<std::u32string> names) {
  TokenizerFiles files;
  read_any_vocabulary(folder, files);
  files.start = id_of(files, "<|startoftext|>", folder), files.end = id_of(files, "<|endoftext|>", folder);
  files.pad = 0;
  files.size = static_cast<std::int64_t>(files.vocabulary.size());
  files.cleaning = cleaning;
  files.simple = std::move(names);
  return files;
}

Cleaning read_cleaning(const json& options, Cleaning missing, const fs::path& file) {
  const auto clean = options.find("clean");
  if (clean == options.end() || clean->is_null()) return missing;
  if (*clean == "lower") return Cleaning::lower;
  if (*clean == "whitespace") return Cleaning::whitespace;
  if (*clean == "canonicalize") return Cleaning::canonicalize;
  fail(tag, "'clean' must be \"lower\", \"whitespace\" or \"canonicalize\", got ", io::brief(*clean), " in '",
       file.string(), "'");
}

/// An object of open_clip_config.json; empty if it is missing.
const json& read_part(const json& object, const char* name, const fs::path& file) {
  static const json empty = json::object();
  const json& part = io::member(object, name);
  if (part.is_null()) return empty;
  check(part.is_object(), tag, "'", name, "' must be an object, got ", io::brief(part), " in '", file.string(), "'");
  return part;
}

/// With the name of a Hugging Face tokenizer, that one after the cleaning; the folder holds its files.
TokenizerFiles read_open_clip(const fs::path& folder) {
  const fs::path file = folder / open_clip_file;
  const json config = io::read_json_object(file, tag, max_bytes);
  const json& text = read_part(read_part(config, "model_cfg", file), "text_cfg", file);
  const json& options = read_part(text, "tokenizer_kwargs", file);
  for (const auto& [name, value] : options.items()) {
    check(name == "clean" || value.is_null() || value == false, tag, "the setting '", name,
          "' of the tokenizer is not supported, in '", file.string(), "'");
  }
  const auto name = text.find("hf_tokenizer_name");
  const bool plain = name == text.end() || name->is_null() || *name == "";
  if (plain) {
    return read_simple(folder, read_cleaning(options, Cleaning::lower, file), {U"<start_of_text>", U"<end_of_text>"});
  }
  check(!text.contains("tokenizer_mode") || text["tokenizer_mode"].is_null(), tag,
        "'tokenizer_mode' is not supported, in '", file.string(), "'");
  check(fs::exists(folder / "tokenizer.json") || fs::exists(folder / "vocab.json"), tag, "'", folder.string(),
        "' must have tokenizer.json, or vocab.json and merges.txt, of the tokenizer ", io::brief(*name));
  TokenizerFiles files = read_hugging_face(folder);
  files.cleaning = read_cleaning(options, Cleaning::whitespace, file);
  return files;
}

}  // namespace

TokenizerFiles read_tokenizer_files(const fs::path& path) {
  switch (model_format(path)) {
    case ModelFormat::open_clip:
      return read_open_clip(model_folder(path));
    case ModelFormat::openai:
      check(fs::exists(path), tag, "'", path.string(), "' does not exist");
      return read_simple(model_folder(path), Cleaning::lower, {U"<|startoftext|>", U"<|endoftext|>"});
    default:
      return read_hugging_face(path);
  }
}

}  // namespace reco
