// SPDX-License-Identifier: Apache-2.0
#include "reco/memory.h"

#include "helpers.h"

namespace reco::python {

namespace {

/// A search's result with the memory that it came from, which is asked for words when they are wanted.
struct FoundNeighbors {
  Memory memory;
  py::array_t<std::int64_t> rows;
  py::array_t<float> scores;
  py::object partners;
  py::object keys = py::none();

  std::span<const std::int64_t> row_span() const { return {rows.data(), static_cast<std::size_t>(rows.size())}; }
  py::ssize_t queries() const { return rows.shape(0); }
  py::ssize_t k() const { return rows.shape(1); }
};

std::string dumps(const py::handle& metadata) {
  const auto json = py::module_::import("json");
  return json.attr("dumps")(metadata, py::arg("ensure_ascii") = false, py::arg("allow_nan") = false)
      .cast<std::string>();
}

py::object loads(const std::string& metadata) { return py::module_::import("json").attr("loads")(metadata); }

RowInfo row_info(std::vector<std::string> keys, std::optional<std::vector<std::string>> captions,
                 const std::optional<py::list>& metadata) {
  RowInfo info;
  info.keys = std::move(keys);
  info.captions = std::move(captions).value_or(std::vector<std::string>{});
  // "None at all" and "one a row" are the same for no rows only.
  check(info.keys.empty() || !metadata || !metadata->empty(), "memory.add", "metadata must have one entry a row");
  if (!metadata) return info;
  for (const py::handle item : *metadata) info.metadata.push_back(item.is_none() ? "{}" : dumps(item));
  return info;
}

void add(Memory& self, const FloatArray& images, const FloatArray& texts, std::vector<std::string> keys,
         std::optional<std::vector<std::string>> captions, const std::optional<py::list>& metadata) {
  const auto image_rows = matrix_view(images, "memory.add", "image_embeddings");
  const auto text_rows = matrix_view(texts, "memory.add", "text_embeddings");
  const RowInfo info = row_info(std::move(keys), std::move(captions), metadata);
  const py::gil_scoped_release release;
  self.add(image_rows, text_rows, info);
}

FoundNeighbors search(const Memory& self, const FloatArray& queries, std::int64_t k, const std::string& side,
                      const py::object& excluded, std::optional<float> max_similarity, bool partners) {
  constexpr const char* tag = "memory.search";
  const auto view = matrix_view(queries, tag, "queries");
  const SearchOptions options{k, modality(side, tag), exclude_keys(excluded), max_similarity, partners};
  Neighbors found;
  {
    const py::gil_scoped_release release;
    found = self.search(view, options);
  }
  const py::ssize_t n = found.rows.rows();
  py::object partner_array = py::none();
  if (partners) partner_array = to_numpy(std::move(found.partners), {n, k, self.dim()});
  return {self, to_numpy(std::move(found.rows)), to_numpy(std::move(found.scores)), partner_array};
}

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

using Fetch = std::vector<std::string> (Memory::*)(std::span<const std::int64_t>) const;

std::vector<std::string> fetch(const FoundNeighbors& found, Fetch field) {
  const auto rows = found.row_span();
  const py::gil_scoped_release release;
  return (found.memory.*field)(rows);
}

py::object neighbor_keys(FoundNeighbors& found) {
  if (!found.keys.is_none()) return found.keys;
  const auto keys = fetch(found, &Memory::keys);
  found.keys = nested(found, [&](std::size_t i) { return py::str(keys[i]); });
  return found.keys;
}

py::list neighbor_captions(const FoundNeighbors& found) {
  const auto captions = fetch(found, &Memory::captions);
  return nested(found, [&](std::size_t i) { return py::str(captions[i]); });
}

py::list neighbor_metadata(const FoundNeighbors& found) {
  const auto metadata = fetch(found, &Memory::metadata);
  return nested(found,
                [&](std::size_t i) { return metadata[i].empty() ? py::object(py::none()) : loads(metadata[i]); });
}

/// The keys of a memory as it was when the iteration began, a page at a time.
struct KeyIterator {
  Memory memory;
  std::vector<std::int64_t> rows;
  std::size_t next = 0;
  std::vector<std::string> page;
  std::size_t place = 0;

  std::string step() {
    if (place == page.size()) turn();
    return std::move(page[place++]);
  }
  void turn() {
    constexpr std::size_t size = 4096;
    if (next == rows.size()) throw py::stop_iteration();
    const auto wanted = std::span<const std::int64_t>(rows).subspan(next, std::min(size, rows.size() - next));
    const py::gil_scoped_release release;
    page = memory.keys(wanted);
    next += wanted.size();
    place = 0;
  }
};

py::array embeddings(const Memory& self, const std::string& side) {
  const Modality which = modality(side, "memory.embeddings");
  Matrix all;
  {
    const py::gil_scoped_release release;
    all = self.embeddings(self.rows(), which);
  }
  return to_numpy(std::move(all));
}

py::dict info(const Memory& self) {
  MemoryInfo found;
  {
    const py::gil_scoped_release release;
    found = self.info();
  }
  return py::dict(py::arg("path") = found.path, py::arg("rows") = found.rows, py::arg("removed") = found.removed,
                  py::arg("dim") = found.dim, py::arg("encoder") = found.encoder, py::arg("bytes") = found.bytes,
                  py::arg("shards") = found.shards, py::arg("format") = found.format);
}

std::string representation(const Memory& self) {
  if (self.closed()) return "Memory(closed)";
  const MemoryInfo info = self.info();
  std::ostringstream out;
  out << "Memory('" << info.path << "', " << info.rows << (info.rows == 1 ? " pair" : " pairs") << ", dim " << info.dim;
  if (info.removed > 0) out << ", " << info.removed << " removed";
  if (!info.encoder.empty()) out << ", encoder " << info.encoder.substr(0, 12);
  out << ")";
  return out.str();
}

py::array vector(const Eigen::VectorXf& values) { return to_numpy(Eigen::VectorXf(values), {values.size()}); }

void bind_results(py::module_& m) {
  py::class_<FoundNeighbors>(m, "Neighbors", R"(What a search found for n queries, best first.

Where fewer than k pairs are left, the key is '', the row -1, the score 0 and the partner all zeros.
Keys, captions and metadata are fetched from the memory when they are asked for; it must be open then.
)")
      .def_readonly("rows", &FoundNeighbors::rows, "int64 [n, k]: row numbers in the memory.")
      .def_readonly("scores", &FoundNeighbors::scores, "float32 [n, k]: cosine similarities.")
      .def_readonly("partners", &FoundNeighbors::partners,
                    "float32 [n, k, dim]: the other side's embeddings, or None if they were not wanted.")
      .def_property_readonly("keys", &neighbor_keys, "n lists of k keys.")
      .def_property_readonly("captions", &neighbor_captions, "n lists of k captions.")
      .def_property_readonly("metadata", &neighbor_metadata, "n lists of k dicts, None where there is no neighbour.")
      .def("__len__", &FoundNeighbors::queries)
      .def("__repr__", [](const FoundNeighbors& self) {
        return "Neighbors(" + std::to_string(self.queries()) + " queries, k=" + std::to_string(self.k()) + ")";
      });

  py::class_<MemoryRow>(m, "MemoryRow", "One remembered pair.")
      .def_readonly("key", &MemoryRow::key)
      .def_readonly("caption", &MemoryRow::caption)
      .def_property_readonly(
          "metadata", [](const MemoryRow& self) { return loads(self.metadata); }, "dict")
      .def_property_readonly(
          "image_embedding", [](const MemoryRow& self) { return vector(self.image_embedding); }, "float32 [dim]")
      .def_property_readonly(
          "text_embedding", [](const MemoryRow& self) { return vector(self.text_embedding); }, "float32 [dim]")
      .def("__repr__", [](const MemoryRow& self) {
        return py::str("MemoryRow(key={!r}, caption={!r})").format(self.key, self.caption);
      });

  py::class_<KeyIterator>(m, "_KeyIterator")
      .def("__iter__", [](py::object self) { return self; })
      .def("__next__", &KeyIterator::step);
}

}  // namespace

void init_memory(py::module_& m) {
  bind_results(m);
  py::class_<Memory>(m, "Memory",
                     R"(A folder of image-text pairs: embeddings of both sides, keys, captions and metadata.

A call that returned is on disk; a crash at any moment leaves the last committed state. One process at a time may
write, others may read and see its changes. Searches run in any number of threads, beside a change.
Use it as a context manager, or close() it, to let another writer in.

``len(memory)``, ``key in memory`` and ``for key in memory`` (in the order of adding) work as for a dict.
)")
      .def_static(
          "create",
          [](const std::filesystem::path& path, std::int64_t dim, const std::string& encoder) {
            const py::gil_scoped_release release;
            return Memory::create(path, dim, encoder);
          },
          py::arg("path"), py::arg("dim"), py::arg("encoder") = "",
          R"(Make a new, empty memory and open it for writing.

Parameters
----------
path : path
    A folder that is empty or not there yet.
dim : int
    Width of the embeddings, 1 to 65,536.
encoder : str
    Fingerprint of the encoder whose embeddings it will hold, such as ``clip.fingerprint``.
)")
      .def_static(
          "open",
          [](const std::filesystem::path& path, bool read_only, const std::string& encoder) {
            const py::gil_scoped_release release;
            return Memory::open(path, read_only, encoder);
          },
          py::arg("path"), py::arg("read_only") = false, py::arg("encoder") = "",
          R"(Open a memory.

Parameters
----------
path : path
    Its folder.
read_only : bool
    Refuse changes; any number of processes may read beside one writer.
encoder : str
    If given, a memory made with another encoder raises Error.
)")
      .def("add", &add, py::arg("image_embeddings"), py::arg("text_embeddings"), py::arg("keys"),
           py::arg("captions") = py::none(), py::arg("metadata") = py::none(),
           R"(Append n pairs, all or none; they are on disk when this returns.

Parameters
----------
image_embeddings, text_embeddings : array [n, dim]
    Any float dtype and strides; rows are scaled to unit length and kept in half precision.
keys : list of str
    Not empty, all different, none in the memory yet.
captions : list of str, optional
metadata : list of dict, optional
    Anything that JSON can hold.

Raises
------
Error
    For wrong shapes, rows that are zero or not finite, and keys that are there already. Nothing is written then.
)")
      .def(
          "remove", [](Memory& self, const std::vector<std::string>& keys) { self.remove(keys); }, py::arg("keys"),
          py::call_guard<py::gil_scoped_release>(),
          "Remove pairs, all or none: they are never found again. Raises Error if a key is not there.")
      .def("search", &search, py::arg("queries"), py::arg("k") = 10, py::arg("modality") = "image",
           py::arg("exclude_keys") = py::none(), py::arg("max_similarity") = py::none(), py::arg("partners") = true,
           R"(Find the k most similar pairs of each query, exactly.

Parameters
----------
queries : array [n, dim]
    Any float dtype and strides; scaled to unit length.
k : int
    Neighbours a query, 1 to 4,096.
modality : {"image", "text"}
    The side that the queries are compared with.
exclude_keys : list of str, or n lists of str, optional
    Keys that must not be found, by any query or query by query. Unknown keys are ignored.
max_similarity : float, optional
    Leave out near-duplicates: pairs whose similarity to the query is above this.
partners : bool
    Fetch the other side's embeddings of what is found.

Returns
-------
Neighbors
    keys and captions (n lists of k), scores float32 [n, k], partners float32 [n, k, dim]. Of equal scores, what was
    added first comes first.
)")
      .def("get", &Memory::get, py::arg("key"), py::call_guard<py::gil_scoped_release>(),
           "The pair of a key, as MemoryRow. Raises Error if it is not there.")
      .def("embeddings", &embeddings, py::arg("modality"),
           "One side's embeddings of all pairs, in the order of iteration: float32 [len, dim].")
      .def("info", &info, "What the memory is and holds: path, rows, removed, dim, encoder, bytes, shards, format.")
      .def("verify", &Memory::verify, py::call_guard<py::gil_scoped_release>(),
           "Check every file against its checksum and the database against the files: a list with a line for each "
           "fault, empty when all is well.")
      .def(
          "close", &Memory::close, py::call_guard<py::gil_scoped_release>(),
          "Let another writer in. Whatever is called later, on this object or one that was made with it, raises Error.")
      .def_property_readonly("dim", &Memory::dim)
      .def_property_readonly("encoder", &Memory::encoder)
      .def("__len__", &Memory::size)
      .def("__contains__", &Memory::contains, py::arg("key"))
      .def("__iter__",
           [](const Memory& self) {
             return KeyIterator{self, self.rows(), 0, {}, 0};
           })
      .def("__enter__", [](py::object self) { return self; })
      .def("__exit__",
           [](Memory& self, const py::args&) {
             const py::gil_scoped_release release;
             self.close();
           })
      .def("__repr__", &representation);
}

}  // namespace reco::python
