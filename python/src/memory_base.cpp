// SPDX-License-Identifier: Apache-2.0
#include "reco/memory_base.h"

#include "neighbors.h"

namespace reco::python {

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

py::array embeddings_of(const MemoryBase& memory, const std::string& side, std::span<const std::int64_t> rows) {
  const Modality which = modality(side, "memory.embeddings");
  Matrix found;
  {
    const LongCall unlocked;
    found = memory.embeddings(rows, which);
  }
  return to_numpy(std::move(found));
}

namespace {

py::dict search_options(const SearchOptions& options) {
  py::dict given;
  given["k"] = options.k;
  given["modality"] = options.modality == Modality::image ? "image" : "text";
  given["exclude_keys"] = options.exclude_keys.empty() ? py::object(py::none()) : py::cast(options.exclude_keys);
  given["only_keys"] = py::cast(options.only_keys);
  given["where"] = options.where;
  given["max_similarity"] = py::cast(options.max_similarity);
  given["partners"] = options.partners;
  given["exact"] = options.exact;
  given["effort"] = options.effort;
  return given;
}

/// What a method returned, as the type it should have.
template <typename T>
T returned(const py::object& value, const char* name) {
  try {
    return value.cast<T>();
  } catch (const py::cast_error&) {
    const auto type = py::str(py::type::of(value).attr("__name__")).cast<std::string>();
    fail("memory", name, "() returned a value of type ", type, ", which it must not");
  }
}

/// A memory that a Python class implements. The class is asked with the GIL held.
class PythonMemory final : public MemoryBase, public py::trampoline_self_life_support {
 public:
  PythonMemory(std::int64_t dim, std::string encoder) : dim_(dim), encoder_(std::move(encoder)) {
    check(dim >= 1, "memory.create", "dim must be at least 1, got ", dim);
  }
  std::int64_t dim() const override { return dim_; }
  std::string encoder() const override { return encoder_; }

  std::int64_t size() const override {
    const py::gil_scoped_acquire gil;
    return returned<std::int64_t>(method("__len__")(), "__len__");
  }

  Neighbors search(const MatrixView& queries, const SearchOptions& options) const override {
    const py::gil_scoped_acquire gil;
    // A copy of its own: a class may keep what it was given.
    const py::object answer = method("search")(to_numpy(Matrix(queries)), **search_options(options));
    return neighbors(returned<FoundNeighbors>(answer, "search"), queries.rows(), options);
  }

  Matrix embeddings(std::span<const std::int64_t> rows, Modality side) const override {
    const py::gil_scoped_acquire gil;
    const char* name = side == Modality::image ? "image" : "text";
    const auto array = float_array(method("embeddings")(name, numbers(rows)));
    const auto view = matrix_view(array, "memory.embeddings", "the result");
    check(view.rows() == static_cast<Eigen::Index>(rows.size()) && view.cols() == dim_, "memory.embeddings",
          "expected ", rows.size(), " x ", dim_, " values, got ", view.rows(), " x ", view.cols());
    return view;
  }

  std::vector<std::string> keys(std::span<const std::int64_t> rows) const override { return words("keys", rows); }
  std::vector<std::string> captions(std::span<const std::int64_t> rows) const override {
    return words("captions", rows);
  }
  std::vector<std::string> metadata(std::span<const std::int64_t> rows) const override {
    const py::gil_scoped_acquire gil;
    std::vector<std::string> texts;
    for (const py::handle item : method("metadata")(numbers(rows))) {
      texts.push_back(item.is_none() ? "" : dumps(item));
    }
    return checked(std::move(texts), rows, "metadata");
  }
  MemoryRow get(const std::string& key) const override {
    const py::gil_scoped_acquire gil;
    return returned<MemoryRow>(method("get")(key), "get");
  }
  void add(const MatrixView& images, const MatrixView& texts, const RowInfo& info) override {
    const py::gil_scoped_acquire gil;
    py::list metadata;
    for (const std::string& text : info.metadata) metadata.append(loads(text));
    method("add")(to_numpy(Matrix(images)), to_numpy(Matrix(texts)), info.keys,
                  info.captions.empty() ? py::object(py::none()) : py::cast(info.captions),
                  info.metadata.empty() ? py::object(py::none()) : py::object(metadata));
  }
  void remove(std::span<const std::string> keys) override {
    const py::gil_scoped_acquire gil;
    method("remove")(std::vector<std::string>(keys.begin(), keys.end()));
  }

 private:
  py::function method(const char* name) const {
    py::function found = py::get_override(static_cast<const MemoryBase*>(this), name);
    check(static_cast<bool>(found), "memory", "this class of memories has no ", name, "()");
    return found;
  }
  static py::array_t<std::int64_t> numbers(std::span<const std::int64_t> rows) {
    return py::array_t<std::int64_t>(static_cast<py::ssize_t>(rows.size()), rows.data());
  }
  std::vector<std::string> words(const char* name, std::span<const std::int64_t> rows) const {
    const py::gil_scoped_acquire gil;
    return checked(returned<std::vector<std::string>>(method(name)(numbers(rows)), name), rows, name);
  }
  static std::vector<std::string> checked(std::vector<std::string> found, std::span<const std::int64_t> rows,
                                          const char* name) {
    check(found.size() == rows.size(), "memory", name, "() must return ", rows.size(), " entries, got ", found.size());
    return found;
  }
  Neighbors neighbors(const FoundNeighbors& found, Eigen::Index n, const SearchOptions& options) const {
    constexpr const char* tag = "memory.search";
    const std::int64_t k = options.k;
    check(found.queries() == n && found.k() == k, tag, "expected neighbours [", n, ", ", k, "], got [", found.queries(),
          ", ", found.k(), "]");
    Neighbors out{k,
                  Eigen::Map<const IndexMatrix>(found.rows.data(), n, k),
                  Eigen::Map<const Matrix>(found.scores.data(), n, k),
                  {}};
    if (!options.partners) return out;
    check(!found.partners.is_none(), tag, "the partners that were asked for are missing");
    const FloatArray partners = float_array(found.partners);
    check(partners.size() == n * k * dim_, tag, "expected ", n, " x ", k, " x ", dim_, " values of partners, got ",
          partners.size());
    out.partners = Eigen::Map<const Matrix>(partners.data(), n * k, dim_);
    return out;
  }

  std::int64_t dim_;
  std::string encoder_;
};

void add(MemoryBase& self, const FloatArray& images, const FloatArray& texts, std::vector<std::string> keys,
         std::optional<std::vector<std::string>> captions, const std::optional<py::list>& metadata) {
  const GivenPairs pairs("memory.add", images, texts, std::move(keys), std::move(captions), metadata);
  const LongCall unlocked;
  self.add(pairs.images, pairs.texts, pairs.info);
}

FoundNeighbors search(const std::shared_ptr<const MemoryBase>& self, const FloatArray& queries, std::int64_t k,
                      const std::string& side, const py::object& excluded, std::optional<std::vector<std::string>> only,
                      const std::string& where, std::optional<float> max_similarity, bool partners, bool exact,
                      std::int64_t effort) {
  constexpr const char* tag = "memory.search";
  const auto view = matrix_view(queries, tag, "queries");
  const SearchOptions options{
      k, modality(side, tag), exclude_keys(excluded), std::move(only), where, max_similarity, partners, exact, effort};
  Neighbors found;
  {
    const LongCall unlocked;
    found = self->search(view, options);
  }
  const py::ssize_t n = found.rows.rows();
  py::object partner_array = py::none();
  if (partners) partner_array = to_numpy(std::move(found.partners), {n, k, self->dim()});
  return {self, to_numpy(std::move(found.rows)), to_numpy(std::move(found.scores)), partner_array};
}

py::array embeddings(const MemoryBase& self, const std::string& side, const IndexArray& rows) {
  return embeddings_of(self, side, {rows.data(), static_cast<std::size_t>(rows.size())});
}

/// Words of rows.
template <std::vector<std::string> (MemoryBase::*field)(std::span<const std::int64_t>) const>
std::vector<std::string> words(const MemoryBase& self, const IndexArray& rows) {
  const std::span wanted(rows.data(), static_cast<std::size_t>(rows.size()));
  const LongCall unlocked;
  return (self.*field)(wanted);
}

py::list metadata(const MemoryBase& self, const IndexArray& rows) {
  py::list all;
  for (const std::string& text : words<&MemoryBase::metadata>(self, rows)) {
    all.append(text.empty() ? py::object(py::none()) : loads(text));
  }
  return all;
}

}  // namespace

void init_memory_base(py::module_& m) {
  Class<MemoryBase, py::smart_holder, PythonMemory> base(m, "MemoryBase", R"(MemoryBase(dim, encoder="")
--

What a model looks pairs up in.

Memory, a folder, is one. Whoever keeps pairs elsewhere derives a class from this and implements ``__len__``, search,
embeddings, keys, captions, metadata, get, add and remove as they are described here; Model, train and evaluation take it
then. They may be called from several threads at once.

Parameters
----------
dim : int
    Width of the embeddings.
encoder : str
    Fingerprint of the encoder that made them; "" fits any.

Raises
------
Error
    For a dim below 1.
)");
  init_neighbors(m);
  base.def_init(py::init_alias<std::int64_t, std::string>(), py::arg("dim"), py::arg("encoder") = "")
      .def("add", &add, py::arg("image_embeddings"), py::arg("text_embeddings"), py::arg("keys"),
           py::arg("captions") = py::none(), py::arg("metadata") = py::none(),
           R"(Append n pairs, all or none; they are safe when this returns.

Parameters
----------
image_embeddings, text_embeddings : array [n, dim]
    Any float dtype and strides, tensors of other libraries; rows are scaled to unit length and kept in the memory's
    storage.
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
          "remove", [](MemoryBase& self, const std::vector<std::string>& keys) { self.remove(keys); }, py::arg("keys"),
          py::call_guard<LongCall>(), R"(Remove pairs, all or none: they are never found again.

Parameters
----------
keys : list of str

Raises
------
Error
    If a key is not there. Nothing is removed then.
)")
      .def("search", &search, py::arg("queries"), py::arg("k") = 10, py::arg("modality") = "image",
           py::arg("exclude_keys") = py::none(), py::arg("only_keys") = py::none(), py::arg("where") = "",
           py::arg("max_similarity") = py::none(), py::arg("partners") = true, py::arg("exact") = false,
           py::arg("effort") = 0,
           R"(Find the k most similar pairs of each query: exactly, unless optimize() made an index.

Parameters
----------
queries : array [n, dim]
    Any float dtype and strides, tensors of other libraries; scaled to unit length.
k : int
    Neighbours a query, 1 to 4,096.
modality : {"image", "text"}
    The side that the queries are compared with.
exclude_keys : list of str, or n lists of str, optional
    Keys that must not be found, by any query or query by query. Unknown keys are ignored.
only_keys : list of str, optional
    Keys that alone may be found. Unknown keys are ignored.
where : str
    An SQL condition of SQLite's on key, caption and metadata that pairs must fulfil, such as
    ``"json_extract(metadata, '$.domain') = 'flags'"``.
max_similarity : float, optional
    Leave out near-duplicates: pairs whose similarity to the query is above this.
partners : bool
    Fetch the other side's embeddings of what is found.
exact : bool
    Compare with every pair, whatever indexes there are.
effort : int
    HNSW's efSearch or IVF's nprobe for this search; 0: what optimize() found. Indexes that have neither ignore it.

Returns
-------
Neighbors
    keys and captions (n lists of k), scores float32 [n, k], partners float32 [n, k, dim]. Of equal scores, what was
    added first comes first.

Raises
------
Error
    For another number of columns, queries that are zero or not finite, k out of range, a condition that SQLite refuses,
    a damaged index.
)")
      .def("get", &MemoryBase::get, py::arg("key"), py::call_guard<py::gil_scoped_release>(), R"(The pair of a key.

Parameters
----------
key : str

Returns
-------
MemoryRow

Raises
------
Error
    If it is not there.
)")
      .def("embeddings", &embeddings, py::arg("modality"), py::arg("rows"),
           R"(One side's embeddings of rows as a search gives them.

Parameters
----------
modality : {"image", "text"}
rows : array of int [n]
    Row numbers; -1 gives zeros.

Returns
-------
float32 array [n, dim]

Raises
------
Error
    For row numbers that were never given out.
)")
      .def("keys", &words<&MemoryBase::keys>, py::arg("rows"), R"(The keys of rows as a search gives them.

Parameters
----------
rows : array of int [n]
    Row numbers; -1 gives ''.

Returns
-------
list of str
)")
      .def("captions", &words<&MemoryBase::captions>, py::arg("rows"), R"(The captions of rows as a search gives them.

Parameters
----------
rows : array of int [n]
    Row numbers; -1 gives ''.

Returns
-------
list of str
)")
      .def("metadata", &metadata, py::arg("rows"), R"(The metadata of rows as a search gives them.

Parameters
----------
rows : array of int [n]
    Row numbers; -1 gives None.

Returns
-------
list of dict
)")
      .def_property_readonly("dim", &MemoryBase::dim, "Width of the embeddings.")
      .def_property_readonly("encoder", &MemoryBase::encoder, "Fingerprint of the encoder, or '' for any.")
      .def("__len__", &MemoryBase::size, "Number of pairs.");
}

}  // namespace reco::python
