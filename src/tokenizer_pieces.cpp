// SPDX-License-Identifier: Apache-2.0
#include "tokenizer_pieces.h"

#include <sentencepiece_processor.h>

#include <algorithm>

#include "io/json.h"
#include "reco/error.h"
#include "tokenizer_clean.h"
#include "unicode.h"

namespace reco {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* tag = "tokenizer.load";
constexpr std::size_t max_bytes = std::size_t{1} << 28;
constexpr char32_t underline = 0x2581;  // SentencePiece's sign for a space

std::string to_utf8(std::u32string_view text) {
  std::string out;
  for (const char32_t point : text) unicode::append(point, out);
  return out;
}

/// A token of tokenizer_config.json, a string or an object with `content`; what is missing or null keeps its default.
std::string token_of(const json& config, const char* name, const std::string& missing, const fs::path& file) {
  const auto found = config.find(name);
  if (found == config.end() || found->is_null()) return missing;
  const json* content = &*found;
  if (content->is_object() && content->contains("content")) content = &content->at("content");
  check(content->is_string(), tag, "'", name, "' must be a string or an object with \"content\", got ",
        io::brief(*content), " in '", file.string(), "'");
  return content->get<std::string>();
}

bool flag_of(const json& config, const char* name, bool missing, const fs::path& file) {
  const auto found = config.find(name);
  if (found == config.end() || found->is_null()) return missing;
  check(found->is_boolean(), tag, "'", name, "' must be true or false, got ", io::brief(*found), " in '", file.string(),
        "'");
  return found->get<bool>();
}

}  // namespace

bool PieceTokenizer::is_in(const fs::path& folder) { return fs::exists(folder / "spiece.model"); }

PieceTokenizer::PieceTokenizer(const fs::path& folder) {
  const fs::path file = folder / "spiece.model";
  std::string bytes = io::read_file(file, max_bytes);
  const fs::path config = folder / "tokenizer_config.json";
  const json settings = fs::exists(config) ? io::read_json_object(config, tag, max_bytes) : json::object();
  // In a serialised message the last value of a field counts: this sets normalizer_spec.add_dummy_prefix to false.
  if (!flag_of(settings, "legacy", true, config)) bytes += std::string("\x1a\x02\x18\x00", 4);
  auto model = std::make_shared<sentencepiece::SentencePieceProcessor>();
  const auto status = model->LoadFromSerializedProto(bytes);
  check(status.ok(), tag, "'", file.string(), "' is no SentencePiece model: ", status.ToString());
  model_ = std::move(model);
  lower_case_ = flag_of(settings, "do_lower_case", true, config);
  unknown_ = token_of(settings, "unk_token", "<unk>", config);
  const std::string end = token_of(settings, "eos_token", "</s>", config);
  const std::string pad = token_of(settings, "pad_token", "</s>", config);
  for (const std::string& token : {unknown_, end, pad}) add_special(token, file);
  const auto added = settings.find("added_tokens_decoder");
  if (added != settings.end() && added->is_object()) {
    for (const auto& [id, token] : added->items()) add_special(token_of(*added, id.c_str(), "", config), file);
  }
  end_ = model_->PieceToId(end), pad_ = model_->PieceToId(pad), space_ = model_->PieceToId("\u2581");
  unknown_pieces_ = pieces(unknown_).size();
}

void PieceTokenizer::add_special(const std::string& content, const fs::path& file) {
  const int id = model_->PieceToId(content);
  check(model_->IdToPiece(id) == content, tag, "'", file.string(), "' must have the token '", content.substr(0, 80),
        "', which tokenizer_config.json names");
  special_.add(unicode::decode(content), id);
}

std::vector<int> PieceTokenizer::pieces(const std::string& text) const {
  std::vector<int> ids;
  const auto status = model_->Encode(text, &ids);
  check(status.ok(), "tokenizer.encode", "SentencePiece: ", status.ToString());
  return ids;
}

/// Text between special tokens. transformers puts the unknown token before it, so that SentencePiece keeps a space at
/// the start, and takes away what that became.
void PieceTokenizer::encode_part(std::u32string_view part, std::vector<std::int64_t>& ids) const {
  std::u32string text(part);
  if (lower_case_) text = unicode::lower_in_context(text);
  const std::vector<int> found = pieces(unknown_ + to_utf8(canonicalize(text)));
  const std::size_t skipped = found.size() >= unknown_pieces_ ? unknown_pieces_ : 0;
  ids.insert(ids.end(), found.begin() + static_cast<std::ptrdiff_t>(skipped), found.end());
}

std::vector<std::int64_t> PieceTokenizer::encode(std::string_view text, std::int64_t max_length) const {
  std::u32string all = unicode::decode(text);
  std::replace(all.begin(), all.end(), underline, U' ');
  all.insert(all.begin(), underline);
  std::vector<std::int64_t> ids;
  const auto between = [&](std::u32string_view part) {
    encode_part(part, ids);
    return true;
  };
  const auto token = [&](std::int64_t id) {
    if (ids.size() == 1 && ids[0] == space_) ids.clear();  // the space that was put before a text that starts with it
    ids.push_back(id);
    return true;
  };
  special_.split(all, between, token);
  ids.resize(std::min(ids.size(), static_cast<std::size_t>(max_length) - 1));
  if (ids.empty() || ids.back() != end_) ids.push_back(end_);
  return ids;
}

std::int64_t PieceTokenizer::size() const { return model_->GetPieceSize(); }

}  // namespace reco
