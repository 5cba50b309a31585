// SPDX-License-Identifier: Apache-2.0
#include "reco/memory.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "memory_duplicates.h"
#include "memory_input.h"
#include "memory_search.h"
#include "memory_store.h"
#include "reco/error.h"
#include "use_threads.h"

namespace reco {

struct Memory::Impl {
  MemoryStore store;
};

namespace {

void check_options(const SearchOptions& options, std::int64_t queries, const char* tag) {
  check(options.k >= 1 && options.k <= 4'096, tag, "k must be from 1 to 4,096, got ", options.k);
  const auto lists = static_cast<std::int64_t>(options.exclude_keys.size());
  check(lists <= 1 || lists == queries, tag, "exclude_keys must be one list or one a query, ", queries, " in all, got ",
        lists);
  check(options.effort >= 0, tag, "effort must not be negative, got ", options.effort);
  const bool number = !options.max_similarity || !std::isnan(*options.max_similarity);
  check(number, tag, "max_similarity must be a number, got NaN");
}

std::vector<std::string> one_field(MemoryStore& store, std::span<const std::int64_t> rows,
                                   std::string MemoryText::*field) {
  auto texts = store.texts(rows);
  std::vector<std::string> values(texts.size());
  for (std::size_t i = 0; i < texts.size(); ++i) values[i] = std::move(texts[i].*field);
  return values;
}

/// The last committed state, and what a search of it is asked. Rows that come later than the snapshot cannot be found;
/// the database knows the keys and the words of all that can.
std::pair<std::shared_ptr<const MemorySnapshot>, MemorySearch> read_options(MemoryStore& store,
                                                                            const SearchOptions& options) {
  constexpr const char* tag = "memory.search";
  MemorySearch search{.k = options.k,
                      .modality = options.modality,
                      .excluded = {},
                      .max_similarity = options.max_similarity,
                      .exact = options.exact,
                      .effort = options.effort};
  const bool some = options.only_keys || !options.where.empty();
  if (!some && options.exclude_keys.empty()) return {store.snapshot(tag), search};
  return store.consistently(tag, [&](const MemorySnapshot& snapshot) {
    MemorySearch filtered = search;
    if (some) filtered.only = std::make_shared<RowSet>(store.select(options.only_keys, options.where), snapshot);
    for (const auto& keys : options.exclude_keys) filtered.excluded.push_back(store.find_all(keys));
    return filtered;
  });
}

/// Runs work(first, count) page by page.
template <typename Work>
void in_pages(std::size_t total, float min_similarity, const Progress& progress, const Work& work) {
  constexpr std::size_t page = 512;
  check(min_similarity > -1 && min_similarity <= 1, "memory.duplicates",
        "min_similarity must be above -1 and at most 1, got ", min_similarity);
  use_threads();
  for (std::size_t first = 0; first < total; first += page) {
    const std::size_t count = std::min(page, total - first);
    work(first, count);
    const auto done = static_cast<std::int64_t>(first + count);
    if (progress && !progress(done, static_cast<std::int64_t>(total))) {
      fail("interrupted", "duplicates stopped after ", done, " of ", total);
    }
  }
}

}  // namespace

Memory Memory::create(const std::filesystem::path& folder, std::int64_t dim, const std::string& encoder,
                      Storage storage) {
  MemoryStore::create(folder, dim, storage, encoder);
  return open(folder, false, encoder);
}

Memory Memory::open(const std::filesystem::path& folder, bool read_only, const std::string& encoder) {
  return Memory(std::shared_ptr<Impl>(new Impl{{folder, read_only, encoder}}));
}

std::vector<std::string> Memory::repair(const std::filesystem::path& folder) { return MemoryStore::repair(folder); }

void Memory::add(const MatrixView& image_embeddings, const MatrixView& text_embeddings, const RowInfo& info) {
  use_threads();
  impl_->store.add(image_embeddings, text_embeddings, info, false);
}

void Memory::upsert(const MatrixView& image_embeddings, const MatrixView& text_embeddings, const RowInfo& info) {
  use_threads();
  impl_->store.add(image_embeddings, text_embeddings, info, true);
}

void Memory::attach(const std::filesystem::path& image_file, const std::filesystem::path& text_file,
                    const RowInfo& info) {
  use_threads();
  impl_->store.attach({image_file, text_file}, info);
}

void Memory::compact() { impl_->store.compact(); }

void Memory::remove(std::span<const std::string> keys) { impl_->store.remove(keys); }

Neighbors Memory::search(const MatrixView& queries, const SearchOptions& options) const {
  constexpr const char* tag = "memory.search";
  use_threads();
  check_options(options, queries.rows(), tag);
  check(queries.cols() == dim(), tag, "queries must have ", dim(), " columns, got ", queries.cols());
  const Matrix unit = unit_rows(queries, inverse_norms(queries, tag, "queries"));
  const auto [snapshot, search] = read_options(impl_->store, options);
  Neighbors found;
  found.k = options.k;
  const Modality other = options.modality == Modality::image ? Modality::text : Modality::image;
  // The system reads a group's partners while the next one searches. One query has few, which are soon read.
  std::function<void(std::span<const std::int64_t>)> prefetch;
  if (options.partners && unit.rows() > 1) {
    prefetch = [&, &shown = *snapshot](std::span<const std::int64_t> rows) { shown.prefetch(rows, other); };
  }
  search_rows(*snapshot, unit, search, found.rows, found.scores, prefetch);
  if (!options.partners) return found;
  found.partners = snapshot->gather({found.rows.data(), static_cast<std::size_t>(found.rows.size())}, other);
  return found;
}

std::vector<IndexInfo> Memory::optimize(const OptimizeOptions& options, const Progress& progress) {
  use_threads();
  return impl_->store.optimize(options, progress);
}

IndexInfo Memory::adopt_index(const std::filesystem::path& file, Modality modality, const OptimizeOptions& options) {
  use_threads();
  return impl_->store.adopt_index(file, side_index(modality), options);
}

std::vector<Duplicate> Memory::duplicates(float min_similarity, Modality modality, const Progress& progress) const {
  constexpr const char* tag = "memory.duplicates";
  const auto snapshot = impl_->store.snapshot(tag);
  const auto rows = snapshot->live_rows();
  Duplicates found;
  in_pages(rows.size(), min_similarity, progress, [&](std::size_t first, std::size_t count) {
    const auto part = std::span(rows).subspan(first, count);
    MemorySearch search{.k = 16, .modality = modality};
    for (const std::int64_t row : part) search.excluded.push_back({row});
    find_similar(*snapshot, snapshot->gather(part, modality), search, min_similarity,
                 [&](auto i, const auto& other, bool more) {
                   found.add({std::min(part[i], other.row), std::max(part[i], other.row), other.score, more});
                 });
  });
  return std::move(found).best_first();
}

std::vector<Duplicate> Memory::duplicates(const Memory& against, float min_similarity, Modality modality,
                                          const Progress& progress) const {
  constexpr const char* tag = "memory.duplicates";
  const auto snapshot = impl_->store.snapshot(tag), others = against.impl_->store.snapshot(tag);
  check(against.dim() == dim(), tag, "both memories must have dim ", dim(), ", the other has ", against.dim());
  check(encoder().empty() || against.encoder().empty() || encoder() == against.encoder(), tag,
        "both memories must be of one encoder, this is of '", encoder(), "', the other of '", against.encoder(), "'");
  const auto rows = others->live_rows();
  Duplicates found;
  in_pages(rows.size(), min_similarity, progress, [&](std::size_t first, std::size_t count) {
    const auto part = std::span(rows).subspan(first, count);
    find_similar(*snapshot, others->gather(part, modality), {.k = 16, .modality = modality}, min_similarity,
                 [&](auto i, const auto& row, bool more) {
                   found.add({row.row, part[i], row.score, more});
                 });
  });
  return std::move(found).best_first();
}

std::vector<Duplicate> Memory::duplicates(const MatrixView& against, float min_similarity, Modality modality,
                                          const Progress& progress) const {
  constexpr const char* tag = "memory.duplicates";
  const auto snapshot = impl_->store.snapshot(tag);
  check(against.rows() == 0 || against.cols() == dim(), tag, "against must have ", dim(), " columns, got ",
        against.cols());
  const Matrix unit = unit_rows(against, inverse_norms(against, tag, "against"));
  Duplicates found;
  const auto rows = static_cast<std::size_t>(unit.rows());
  in_pages(rows, min_similarity, progress, [&](std::size_t first, std::size_t count) {
    const auto begin = static_cast<std::int64_t>(first);
    const Matrix part = unit.middleRows(begin, static_cast<std::int64_t>(count));
    find_similar(*snapshot, part, {.k = 16, .modality = modality}, min_similarity,
                 [&](auto i, const auto& row, bool more) {
                   found.add({row.row, begin + i, row.score, more});
                 });
  });
  return std::move(found).best_first();
}

MemoryRow Memory::get(const std::string& key) const {
  auto [snapshot, found] = impl_->store.consistently("memory.get", [&](const MemorySnapshot& current) {
    const std::int64_t place = impl_->store.find(current, key);
    return std::pair(place, impl_->store.texts(std::array{place})[0]);
  });
  auto& [place, text] = found;
  const std::array row{place};
  check(place >= 0, "memory.get", "the key '", key, "' is not in '", impl_->store.folder().string(), "'");
  return {std::move(text.key), std::move(text.caption), std::move(text.metadata),
          snapshot->gather(row, Modality::image).row(0), snapshot->gather(row, Modality::text).row(0)};
}

bool Memory::contains(const std::string& key) const {
  const auto row = [&](const MemorySnapshot& current) { return impl_->store.find(current, key); };
  return impl_->store.consistently("memory.contains", row).second >= 0;
}

std::int64_t Memory::size() const {
  const auto snapshot = impl_->store.snapshot("memory.size");
  return snapshot->live_count();
}

std::int64_t Memory::dim() const { return impl_->store.dim(); }

std::string Memory::encoder() const { return impl_->store.encoder(); }

MemoryInfo Memory::info() const {
  const auto snapshot = impl_->store.snapshot("memory.info");
  MemoryInfo info;
  info.path = impl_->store.folder().string();
  info.rows = snapshot->live_count();
  info.removed = snapshot->removed;
  info.dim = dim();
  info.storage = impl_->store.format().storage();
  info.encoder = encoder();
  info.bytes = impl_->store.bytes();
  info.attached = impl_->store.attached_bytes();
  info.shards = impl_->store.shards();
  info.format = MemoryDatabase::format;
  for (const auto& slot : snapshot->indexes) {
    if (slot) info.indexes.push_back(index_info(slot->file()));
  }
  return info;
}

std::vector<std::string> Memory::keys(std::span<const std::int64_t> rows) const {
  return one_field(impl_->store, rows, &MemoryText::key);
}

std::vector<std::string> Memory::captions(std::span<const std::int64_t> rows) const {
  return one_field(impl_->store, rows, &MemoryText::caption);
}

std::vector<std::string> Memory::metadata(std::span<const std::int64_t> rows) const {
  return one_field(impl_->store, rows, &MemoryText::metadata);
}

std::vector<std::int64_t> Memory::rows() const { return impl_->store.snapshot("memory.rows")->live_rows(); }

Matrix Memory::embeddings(std::span<const std::int64_t> rows, Modality modality) const {
  constexpr const char* tag = "memory.embeddings";
  use_threads();
  const auto snapshot = impl_->store.snapshot(tag);
  for (const std::int64_t row : rows) {
    check(row >= -1 && row < snapshot->rows, tag, "rows must be from -1 to ", snapshot->rows - 1, ", got ", row);
  }
  return snapshot->gather(rows, modality);
}

std::vector<std::string> Memory::verify() const {
  impl_->store.snapshot("memory.verify");
  return impl_->store.verify();
}

void Memory::close() { impl_->store.close(); }

bool Memory::closed() const { return impl_->store.closed(); }

}  // namespace reco
