// SPDX-License-Identifier: Apache-2.0
// A search's result in Python.
#pragma once

#include <memory>

#include "helpers.h"
#include "reco/memory_base.h"

namespace reco::python {

/// What was found, with the memory that it came from, which is asked for words when they are wanted. One that was
/// pickled has no memory, but all its words.
struct FoundNeighbors {
  std::shared_ptr<const MemoryBase> memory;
  py::array_t<std::int64_t> rows;
  py::array_t<float> scores;
  py::object partners;
  py::object keys = py::none();
  py::object captions = py::none();
  py::object metadata = py::none();

  std::span<const std::int64_t> row_span() const { return {rows.data(), static_cast<std::size_t>(rows.size())}; }
  py::ssize_t queries() const { return rows.shape(0); }
  py::ssize_t k() const { return rows.shape(1); }
};

/// Binds Neighbors and MemoryRow.
void init_neighbors(py::module_& m);

/// What describes the pairs of one add().
RowInfo row_info(std::vector<std::string> keys, std::optional<std::vector<std::string>> captions,
                 const std::optional<py::list>& metadata);

/// Pairs as Python gives them to add() or upsert(); the arrays must outlive them. `tag` is for the Error of wrong
/// shapes.
struct GivenPairs {
  GivenPairs(const char* tag, const FloatArray& image_rows, const FloatArray& text_rows, std::vector<std::string> keys,
             std::optional<std::vector<std::string>> captions, const std::optional<py::list>& metadata)
      : images(matrix_view(image_rows, tag, "image_embeddings")),
        texts(matrix_view(text_rows, tag, "text_embeddings")),
        info(row_info(std::move(keys), std::move(captions), metadata)) {}

  Eigen::Map<const Matrix> images;
  Eigen::Map<const Matrix> texts;
  RowInfo info;
};

/// One side's embeddings of rows, looked up without the GIL.
py::array embeddings_of(const MemoryBase& memory, const std::string& side, std::span<const std::int64_t> rows);

}  // namespace reco::python
