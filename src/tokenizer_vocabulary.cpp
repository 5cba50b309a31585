// SPDX-License-Identifier: Apache-2.0
#include "tokenizer_vocabulary.h"

#include <zlib.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <string_view>

#include "io/json.h"
#include "unicode.h"

namespace reco {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* tag = "tokenizer.load";
constexpr std::size_t max_bytes = std::size_t{1} << 28;
constexpr char own_merges[] =
#include "clip_merges.inc"
    ;

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

/// A text file, compressed or not.
std::string read_gzip(const fs::path& path) {
  constexpr std::size_t most = std::size_t{1} << 26;
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> file(gzopen(path.c_str(), "rb"), gzclose);
  check(file != nullptr, tag, "cannot open '", path.string(), "'");
  std::string text(most + 1, '\0');
  const int count = gzread(file.get(), text.data(), static_cast<unsigned>(text.size()));
  int code = Z_OK;
  const std::string why = gzerror(file.get(), &code);
  check(count >= 0 && (code == Z_OK || code == Z_STREAM_END), tag, "cannot read '", path.string(), "': ", why);
  check(static_cast<std::size_t>(count) <= most, tag, "'", path.string(), "' has more than ", most, " bytes");
  text.resize(static_cast<std::size_t>(count));
  return text;
}

/// What stands for a byte in the vocabulary, in the order in which OpenAI numbers them: the printable ones, the others.
std::vector<std::string> byte_symbols() {
  std::vector<std::string> symbols;
  for (const bool printable : {true, false}) {
    char32_t other = 0x100;
    for (char32_t byte = 0; byte < 256; ++byte) {
      const bool shown = (byte > 0x20 && byte < 0x7F) || (byte > 0xA0 && byte != 0xAD);
      if (shown == printable) unicode::append(shown ? byte : other++, symbols.emplace_back());
    }
  }
  return symbols;
}

void parse_simple_vocabulary(std::string_view text, const fs::path& path, TokenizerFiles& files) {
  constexpr std::size_t merges = 49'152 - 256 - 2;
  const std::size_t first = std::min(text.find('\n'), text.size() - 1) + 1;
  std::size_t end = first;
  for (std::size_t i = 0; i < merges && end < text.size(); ++i) {
    end = std::min(text.find('\n', end), text.size() - 1) + 1;
  }
  files.merges = parse_merge_lines(text.substr(first, end - first), path);
  const auto add = [&](const std::string& token) {
    files.vocabulary.emplace(token, static_cast<std::int64_t>(files.vocabulary.size()));
  };
  const auto symbols = byte_symbols();
  for (const char* ending : {"", "</w>"}) {
    for (const std::string& symbol : symbols) add(symbol + ending);
  }
  for (const auto& [left, right] : files.merges) add(left + right);
  add("<|startoftext|>");
  add("<|endoftext|>");
  check_merges(files, path);
}

}  // namespace

std::int64_t token_id(const json& value, const fs::path& file, const std::string& token) {
  constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
  check(value.is_number_integer() && value >= 0 && value <= most, tag, "the id of '", token.substr(0, 80),
        "' must be an integer from 0 to ", most, ", got ", io::brief(value), " in '", file.string(), "'");
  return value.get<std::int64_t>();
}

void read_vocabulary(const fs::path& folder, const std::optional<json>& tokenizer, TokenizerFiles& files) {
  fs::path vocabulary = folder / "tokenizer.json";
  fs::path merges = vocabulary;
  if (tokenizer) {
    const auto model = tokenizer->find("model");
    check(model != tokenizer->end() && model->is_object() && (!model->contains("type") || model->at("type") == "BPE") &&
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

void read_simple_vocabulary(const fs::path& path, TokenizerFiles& files) {
  parse_simple_vocabulary(read_gzip(path), path, files);
}

void read_own_vocabulary(TokenizerFiles& files) {
  parse_simple_vocabulary({own_merges, sizeof own_merges - 1}, "the vocabulary of the library", files);
}

}  // namespace reco
