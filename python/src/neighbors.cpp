// SPDX-License-Identifier: Apache-2.0
#include "neighbors.h"

#include "../../src/memory_exact.h"
#include "reco/memory.h"

namespace reco::python {

namespace {

/// One value a neighbour, as a list a query.
template <typename Value>
py::list nested(const FoundNeighbors& found, const Value& value) {
  py::list all;
  for (py::ssize_t i = 0; i < found.queries(); ++i) {
    py::list one;
    for (py::ssize_t j = 0; j < found.k(); ++j) one.append(value(static_cast<std::size_t>(i * found.k() + j)));
    all.append(one);
  }
  return all;
}

using Fetch = std::vector<std::string> (MemoryBase::*)(std::span<const std::int64_t>) const;

std::vector<std::string> fetch(const FoundNeighbors& found, Fetch field) {
  const auto rows = found.row_span();
  const LongCall unlocked;
  return (found.memory.get()->*field)(rows);
}

/// Fetched once, and kept.
template <Fetch field>
py::object neighbor_words(const FoundNeighbors& found, py::object& kept) {
  if (kept.is_none()) {
    const auto words = fetch(found, field);
    kept = nested(found, [&](std::size_t i) { return py::str(words[i]); });
  }
  return kept;
}

py::object neighbor_keys(FoundNeighbors& found) { return neighbor_words<&MemoryBase::keys>(found, found.keys); }

py::object neighbor_captions(FoundNeighbors& found) {
  return neighbor_words<&MemoryBase::captions>(found, found.captions);
}

py::object neighbor_metadata(FoundNeighbors& found) {
  if (found.metadata.is_none()) {
    const auto metadata = fetch(found, &MemoryBase::metadata);
    found.metadata =
        nested(found, [&](std::size_t i) { return metadata[i].empty() ? py::object(py::none()) : loads(metadata[i]); });
  }
  return found.metadata;
}

py::tuple neighbor_state(FoundNeighbors& found) {
  return py::make_tuple(found.rows, found.scores, found.partners, neighbor_keys(found), neighbor_captions(found),
                        neighbor_metadata(found));
}

FoundNeighbors neighbors_of_state(const py::tuple& state) {
  return {nullptr, index_array(state[0]), float_array(state[1]), state[2], state[3], state[4], state[5]};
}

std::string describe(const FoundNeighbors& found) {
  std::ostringstream text;
  text << "Neighbors(" << found.queries() << (found.queries() == 1 ? " query" : " queries") << ", k=" << found.k();
  if (found.partners.is_none()) text << ", no partners";
  if (found.rows.size() > 0 && found.rows.at(0, 0) >= 0) text << ", best score " << found.scores.at(0, 0);
  text << ")";
  return text.str();
}

FoundNeighbors make_neighbors(std::shared_ptr<const MemoryBase> memory, const IndexArray& rows,
                              const FloatArray& scores, const std::optional<FloatArray>& partners) {
  constexpr const char* tag = "memory.search";
  check(memory != nullptr && rows.ndim() == 2, tag, "expected a memory and rows [n, k]");
  check(scores.ndim() == 2 && scores.shape(0) == rows.shape(0) && scores.shape(1) == rows.shape(1), tag,
        "expected as many scores as rows: [", rows.shape(0), ", ", rows.shape(1), "]");
  check(!partners || (partners->ndim() == 3 && partners->shape(0) == rows.shape(0) &&
                      partners->shape(1) == rows.shape(1) && partners->shape(2) == memory->dim()),
        tag, "expected partners [", rows.shape(0), ", ", rows.shape(1), ", ", memory->dim(), "]");
  return {std::move(memory), rows, scores, partners ? py::object(*partners) : py::object(py::none())};
}

py::array vector(const Eigen::VectorXf& values) { return to_numpy(Eigen::VectorXf(values), {values.size()}); }

MemoryRow make_row(std::string key, std::string caption, const py::dict& metadata, const FloatArray& image,
                   const FloatArray& text) {
  const auto vector_of = [](const FloatArray& values) {
    return Eigen::VectorXf(Eigen::Map<const Eigen::VectorXf>(values.data(), values.size()));
  };
  return {std::move(key), std::move(caption), dumps(metadata), vector_of(image), vector_of(text)};
}

std::string describe(const MemoryRow& row) {
  std::ostringstream text;
  text << "MemoryRow(key=" << py::repr(py::str(row.key)).cast<std::string>()
       << ", caption=" << py::repr(py::str(row.caption)).cast<std::string>()
       << ", metadata=" << py::repr(loads(row.metadata)).cast<std::string>() << ", dim " << row.image_embedding.size()
       << ")";
  return text.str();
}

py::array unit_rows(const FloatArray& values, const char* tag, const char* name) {
  return to_numpy(exact_unit_rows(matrix_view(values, tag, name), tag, name));
}

py::array scores_of(const FloatArray& query, const FloatArray& rows) {
  constexpr const char* tag = "memory.search";
  auto scores = exact_scores(matrix_view(query, tag, "query"), matrix_view(rows, tag, "rows"));
  const auto count = scores.size();
  return to_numpy(std::move(scores), {count});
}

py::array live_rows(const Memory& memory) {
  const auto rows = memory.rows();
  return py::array_t<std::int64_t>(static_cast<py::ssize_t>(rows.size()), rows.data());
}

/// For memories and searches that are written in Python.
void init_exact(py::module_& m) {
  define(m, "_unit_rows", &unit_rows, py::arg("values"), py::arg("tag"), py::arg("name"),
         R"(Rows scaled to unit length as a Memory scales what it is given, bit for bit.

Parameters
----------
values : array [n, dim]
tag, name : str
    For the Error.

Returns
-------
float32 array [n, dim]

Raises
------
Error
    For rows that are zero or not finite.
)");
  define(m, "_scores", &scores_of, py::arg("query"), py::arg("rows"),
         R"(The similarities that a Memory of float16 finds between a query and rows, bit for bit.

Parameters
----------
query : array [dim]
    Of unit length.
rows : array [m, dim]
    Numbers that half precision holds.

Returns
-------
float32 array [m]

Raises
------
Error
    For widths that differ.
)");
  define(m, "_live_rows", &live_rows, py::arg("memory"), R"(The row numbers of all pairs, in the order of adding.

Parameters
----------
memory : Memory

Returns
-------
int64 array [n]
)");
}

}  // namespace

void init_neighbors(py::module_& m) {
  init_exact(m);
  Class<FoundNeighbors>(m, "Neighbors", R"(Neighbors(memory, rows, scores, partners=None)
--

What a search found for n queries, best first.

Where fewer than k pairs are left, the key is '', the row -1, the score 0 and the partner all zeros. Keys, captions and
metadata are fetched from the memory when they are first asked for; it must be open then. A pickle holds them.
``len(neighbors)`` is the number of queries.

Parameters
----------
memory : MemoryBase
    Where it was found.
rows : array of int [n, k]
scores : array [n, k]
partners : array [n, k, dim], optional

Raises
------
Error
    For shapes that do not fit each other.
)")
      .def_init(py::init(&make_neighbors), py::arg("memory"), py::arg("rows"), py::arg("scores"),
                py::arg("partners") = py::none())
      .def_readonly("rows", &FoundNeighbors::rows, "int64 array [n, k]: row numbers in the memory.")
      .def_readonly("scores", &FoundNeighbors::scores, "float32 array [n, k]: cosine similarities.")
      .def_readonly("partners", &FoundNeighbors::partners,
                    "float32 array [n, k, dim]: the other side's embeddings, or None if they were not wanted.")
      .def_property_readonly("keys", &neighbor_keys, "n lists of k keys.")
      .def_property_readonly("captions", &neighbor_captions, "n lists of k captions.")
      .def_property_readonly("metadata", &neighbor_metadata, "n lists of k dicts, None where there is no neighbour.")
      .def("__len__", &FoundNeighbors::queries, "Number of queries.")
      .def_pickle(&neighbor_state, &neighbors_of_state)
      .def(
          "__repr__", [](const FoundNeighbors& self) { return describe(self); }, "Sizes and the best score.");

  Class<MemoryRow>(m, "MemoryRow", R"(MemoryRow(key, caption, metadata, image_embedding, text_embedding)
--

One remembered pair.

Parameters
----------
key : str
caption : str
metadata : dict
    Anything that JSON can hold.
image_embedding, text_embedding : array [dim]
    Of unit length.
)")
      .def_init(py::init(&make_row), py::arg("key"), py::arg("caption"), py::arg("metadata"),
                py::arg("image_embedding"), py::arg("text_embedding"))
      .def_readonly("key", &MemoryRow::key, "str, unlike any other pair's.")
      .def_readonly("caption", &MemoryRow::caption, "str, empty if there is none.")
      .def_property_readonly(
          "metadata", [](const MemoryRow& self) { return loads(self.metadata); }, "dict, empty if there is none.")
      .def_property_readonly(
          "image_embedding", [](const MemoryRow& self) { return vector(self.image_embedding); }, "float32 array [dim].")
      .def_property_readonly(
          "text_embedding", [](const MemoryRow& self) { return vector(self.text_embedding); }, "float32 array [dim].")
      .def_pickle(
          [](const MemoryRow& self) {
            return py::make_tuple(self.key, self.caption, loads(self.metadata), vector(self.image_embedding),
                                  vector(self.text_embedding));
          },
          [](const py::tuple& state) {
            return make_row(state[0].cast<std::string>(), state[1].cast<std::string>(), state[2].cast<py::dict>(),
                            float_array(state[3]), float_array(state[4]));
          })
      .def(
          "__repr__", [](const MemoryRow& self) { return describe(self); }, "Its words and its dim.");
}

}  // namespace reco::python
