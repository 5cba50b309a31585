// SPDX-License-Identifier: Apache-2.0
#include "memory_index.h"

#include <charconv>

#include "io/file.h"
#include "io/sha256.h"

namespace reco {

namespace {

constexpr const char* kTag = "memory.index";

/// The number after `prefix`, with nothing but ",Flat" behind it; 0 if the text is another.
std::int64_t number_after(std::string_view text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return 0;
  text.remove_prefix(prefix.size());
  if (text.ends_with(",Flat")) text.remove_suffix(5);
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc{} && end == text.data() + text.size() ? value : 0;
}

}  // namespace

IndexKind index_kind(std::string_view factory) {
  if (const auto links = number_after(factory, "HNSW"); links > 0 && links <= 256) {
    return {IndexKind::Type::graph, links};
  }
  if (const auto lists = number_after(factory, "IVF"); lists > 0) return {IndexKind::Type::lists, lists};
  return {IndexKind::Type::faiss, 0};
}

const char* index_suffix(const std::string& factory) {
  return index_kind(factory).type == IndexKind::Type::faiss ? kIndexSuffixes[1] : kIndexSuffixes[0];
}

std::filesystem::path MemoryIndexFile::file(const std::filesystem::path& folder) const {
  return folder / "index" / ((modality == 0 ? "image_" : "text_") + std::to_string(number) + index_suffix(factory));
}

IndexSlot::IndexSlot(std::filesystem::path folder, MemoryIndexFile file, std::int64_t dim)
    : folder_(std::move(folder)), file_(std::move(file)), dim_(dim) {}

std::shared_ptr<const MemoryIndex> IndexSlot::get() const {
  const std::lock_guard lock(mutex_);
  if (index_) return index_;
  const auto path = file_.file(folder_);
  try {
    const io::MappedFile bytes(path);
    const bool intact =
        static_cast<std::int64_t>(bytes.bytes().size()) == file_.bytes && io::sha256(bytes.bytes()) == file_.sha256;
    check(intact, kTag, "'", path.string(), "' is damaged: it does not fit its checksum; optimize() makes a new one, ",
          "exact search does without");
    index_ = load_index(path, file_, dim_);
  } catch (const Interrupted&) {
    throw;
  } catch (const Error&) {
    // It may have gone at any moment of these.
    std::error_code error;
    if (std::filesystem::exists(path, error)) throw;
  }
  return index_;
}

std::shared_ptr<MemoryIndex> load_index(const std::filesystem::path& path, const MemoryIndexFile& file,
                                        std::int64_t dim) {
  const IndexKind kind = index_kind(file.factory);
  auto index = kind.type == IndexKind::Type::graph   ? load_graph(path)
               : kind.type == IndexKind::Type::lists ? load_lists(path, dim)
                                                     : load_faiss(path, dim);
  index->set_effort(file.effort, file.refine);
  return index;
}

std::unique_ptr<IndexBuilder> make_builder(const std::string& factory, const IndexSource& source,
                                           const IndexBuild& build) {
  const IndexKind kind = index_kind(factory);
  if (kind.type == IndexKind::Type::graph) return make_graph_builder(kind.parameter, source, build);
  if (kind.type == IndexKind::Type::lists) return make_lists_builder(kind.parameter, source, build);
  return make_faiss_builder(factory, source, build);
}

}  // namespace reco
