// SPDX-License-Identifier: Apache-2.0
#include "reco/memory.h"

#include <algorithm>
#include <cmath>

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

}  // namespace

Memory Memory::create(const std::filesystem::path& folder, std::int64_t dim, const std::string& encoder) {
  MemoryStore::create(folder, dim, encoder);
  return open(folder, false, encoder);
}

Memory Memory::open(const std::filesystem::path& folder, bool read_only, const std::string& encoder) {
  return Memory(std::shared_ptr<Impl>(new Impl{{folder, read_only, encoder}}));
}

void Memory::add(const MatrixView& image_embeddings, const MatrixView& text_embeddings, const RowInfo& info) {
  use_threads();
  impl_->store.add(image_embeddings, text_embeddings, info);
}

void Memory::remove(std::span<const std::string> keys) { impl_->store.remove(keys); }

Neighbors Memory::search(const MatrixView& queries, const SearchOptions& options) const {
  constexpr const char* tag = "memory.search";
  use_threads();
  check_options(options, queries.rows(), tag);
  check(queries.cols() == dim(), tag, "queries must have ", dim(), " columns, got ", queries.cols());
  const Matrix unit = unit_rows(queries, inverse_norms(queries, tag, "queries"));
  // Rows that come later than the snapshot cannot be found; the database knows the keys of all that can.
  const auto snapshot = impl_->store.snapshot(tag);
  ExactSearch search{
      .k = options.k, .modality = options.modality, .excluded = {}, .max_similarity = options.max_similarity};
  for (const auto& keys : options.exclude_keys) search.excluded.push_back(impl_->store.find_all(keys));
  Neighbors found;
  found.k = options.k;
  exact_search(*snapshot, unit, search, found.rows, found.scores);
  if (!options.partners) return found;
  const Modality other = options.modality == Modality::image ? Modality::text : Modality::image;
  found.partners = snapshot->gather({found.rows.data(), static_cast<std::size_t>(found.rows.size())}, other);
  return found;
}

MemoryRow Memory::get(const std::string& key) const {
  const auto snapshot = impl_->store.snapshot("memory.get");
  const std::array row{impl_->store.find(*snapshot, key)};
  check(row[0] >= 0, "memory.get", "the key '", key, "' is not in '", impl_->store.folder().string(), "'");
  MemoryText text = impl_->store.texts(row)[0];
  return {std::move(text.key), std::move(text.caption), std::move(text.metadata),
          snapshot->gather(row, Modality::image).row(0), snapshot->gather(row, Modality::text).row(0)};
}

bool Memory::contains(const std::string& key) const {
  return impl_->store.find(*impl_->store.snapshot("memory.contains"), key) >= 0;
}

std::int64_t Memory::size() const {
  const auto snapshot = impl_->store.snapshot("memory.size");
  return snapshot->rows - snapshot->removed;
}

std::int64_t Memory::dim() const { return impl_->store.dim(); }

std::string Memory::encoder() const { return impl_->store.encoder(); }

MemoryInfo Memory::info() const {
  const auto snapshot = impl_->store.snapshot("memory.info");
  MemoryInfo info;
  info.path = impl_->store.folder().string();
  info.rows = snapshot->rows - snapshot->removed;
  info.removed = snapshot->removed;
  info.dim = dim();
  info.encoder = encoder();
  info.bytes = impl_->store.bytes();
  info.shards = impl_->store.shards();
  info.format = MemoryDatabase::format;
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
