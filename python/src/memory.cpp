// SPDX-License-Identifier: Apache-2.0
#include "reco/memory.h"

#include "neighbors.h"

namespace reco::python {

namespace {

void upsert(Memory& self, const FloatArray& images, const FloatArray& texts, std::vector<std::string> keys,
            std::optional<std::vector<std::string>> captions, const std::optional<py::list>& metadata) {
  const GivenPairs pairs("memory.upsert", images, texts, std::move(keys), std::move(captions), metadata);
  const LongCall unlocked;
  self.upsert(pairs.images, pairs.texts, pairs.info);
}

/// The keys of a memory as it was when the iteration began, a page at a time.
struct KeyIterator {
  Memory memory;
  std::vector<std::int64_t> rows;
  std::size_t next = 0;
  std::vector<std::string> page;
  std::size_t place = 0;

  std::string step() {
    while (place == page.size()) turn();
    return std::move(page[place++]);
  }
  void turn() {
    constexpr std::size_t size = 4096;
    if (next == rows.size()) throw py::stop_iteration();
    const auto wanted = std::span<const std::int64_t>(rows).subspan(next, std::min(size, rows.size() - next));
    const LongCall unlocked;
    page = memory.keys(wanted);
    std::erase(page, std::string());  // of pairs that were removed and compacted away since
    next += wanted.size();
    place = 0;
  }
};

py::array embeddings(const Memory& self, const std::string& side, const std::optional<IndexArray>& rows) {
  if (rows) return embeddings_of(self, side, {rows->data(), static_cast<std::size_t>(rows->size())});
  std::vector<std::int64_t> all;
  {
    const LongCall unlocked;
    all = self.rows();
  }
  return embeddings_of(self, side, all);
}

py::list index_list(const std::vector<IndexInfo>& indexes) {
  py::list list;
  for (const IndexInfo& index : indexes) {
    list.append(py::dict(py::arg("modality") = index.modality == Modality::image ? "image" : "text",
                         py::arg("index") = index.index, py::arg("rows") = index.rows, py::arg("bytes") = index.bytes,
                         py::arg("effort") = index.effort, py::arg("refine") = index.refine,
                         py::arg("recall") = index.recall, py::arg("build_seconds") = index.build_seconds,
                         py::arg("search_seconds") = index.search_seconds));
  }
  return list;
}

py::list optimize(Memory& self, const std::string& index, double recall, std::int64_t k,
                  std::optional<std::int64_t> max_bytes, std::optional<std::int64_t> max_build_bytes,
                  std::uint64_t seed, const py::object& progress) {
  const OptimizeOptions options{index, recall, k, max_bytes.value_or(0), max_build_bytes.value_or(0), seed};
  const ProgressArgument reporter(progress, "optimize", " pairs");
  std::vector<IndexInfo> built;
  {
    const LongCall unlocked;
    built = self.optimize(options, reporter.function());
  }
  return index_list(built);
}

py::dict adopt_index(Memory& self, const std::filesystem::path& path, const std::string& side, double recall,
                     std::int64_t k) {
  const Modality which = modality(side, "memory.adopt_index");
  OptimizeOptions options;
  options.recall = recall;
  options.k = k;
  IndexInfo adopted;
  {
    const LongCall unlocked;
    adopted = self.adopt_index(path, which, options);
  }
  return index_list({adopted})[0];
}

void attach(Memory& self, const std::filesystem::path& images, const std::filesystem::path& texts,
            std::vector<std::string> keys, std::optional<std::vector<std::string>> captions,
            const std::optional<py::list>& metadata) {
  const RowInfo info = row_info(std::move(keys), std::move(captions), metadata);
  const LongCall unlocked;
  self.attach(images, texts, info);
}

py::list duplicate_list(const std::vector<Duplicate>& found, const std::vector<std::string>& keys,
                        const std::function<py::object(std::size_t)>& other) {
  py::list list;
  for (std::size_t i = 0; i < found.size(); ++i) list.append(py::make_tuple(keys[i], other(i), found[i].score));
  return list;
}

std::vector<std::string> keys_of(const Memory& memory, const std::vector<Duplicate>& found,
                                 std::int64_t Duplicate::*field) {
  std::vector<std::int64_t> rows;
  for (const Duplicate& duplicate : found) rows.push_back(duplicate.*field);
  return memory.keys(rows);
}

void warn_of_more(const std::vector<Duplicate>& found) {
  if (std::none_of(found.begin(), found.end(), [](const Duplicate& pair) { return pair.more; })) return;
  const char* text =
      "[memory.duplicates] some pairs were left out: of a pair that has more than 4,096 near-duplicates, or beyond the "
      "best 4,194,304; a greater min_similarity finds fewer";
  if (PyErr_WarnEx(PyExc_RuntimeWarning, text, 1) != 0) throw py::error_already_set();
}

/// Within the memory, against another one, or against embeddings.
py::list duplicates(const Memory& self, float min_similarity, const std::string& side, const py::object& callback,
                    const py::object& against) {
  const Modality which = modality(side, "memory.duplicates");
  const ProgressArgument reporter(callback, "compare", " pairs");
  const Progress progress = reporter.function();
  std::vector<Duplicate> found;
  std::vector<std::string> keys, others;
  if (against.is_none() || py::isinstance<Memory>(against)) {
    const Memory other = against.is_none() ? self : against.cast<Memory>();
    {
      const LongCall unlocked;
      found = against.is_none() ? self.duplicates(min_similarity, which, progress)
                                : self.duplicates(other, min_similarity, which, progress);
      keys = keys_of(self, found, &Duplicate::row);
      others = keys_of(other, found, &Duplicate::other);
    }
    warn_of_more(found);
    return duplicate_list(found, keys, [&](std::size_t i) { return py::str(others[i]); });
  }
  const FloatArray array = float_array(against);
  const auto view = matrix_view(array, "memory.duplicates", "against");
  {
    const LongCall unlocked;
    found = self.duplicates(view, min_similarity, which, progress);
    keys = keys_of(self, found, &Duplicate::row);
  }
  warn_of_more(found);
  return duplicate_list(found, keys, [&](std::size_t i) { return py::int_(found[i].other); });
}

py::dict info(const Memory& self) {
  MemoryInfo found;
  {
    const LongCall unlocked;
    found = self.info();
  }
  return py::dict(py::arg("path") = found.path, py::arg("rows") = found.rows, py::arg("removed") = found.removed,
                  py::arg("dim") = found.dim, py::arg("storage") = storage_name(found.storage),
                  py::arg("encoder") = found.encoder, py::arg("bytes") = found.bytes,
                  py::arg("attached") = found.attached, py::arg("shards") = found.shards,
                  py::arg("format") = found.format, py::arg("indexes") = index_list(found.indexes));
}

std::string representation(const Memory& self) {
  if (self.closed()) return "Memory(closed)";
  const MemoryInfo info = self.info();
  std::ostringstream out;
  out << "Memory('" << info.path << "', " << info.rows << (info.rows == 1 ? " pair" : " pairs") << ", dim " << info.dim;
  if (info.storage != Storage::float16) out << ", " << storage_name(info.storage);
  if (info.removed > 0) out << ", " << info.removed << " removed";
  for (const IndexInfo& index : info.indexes) {
    out << ", " << (index.modality == Modality::image ? "images" : "texts") << " by " << index.index;
  }
  if (!info.encoder.empty()) out << ", encoder " << info.encoder.substr(0, 12);
  out << ")";
  return out.str();
}

Memory create(const std::filesystem::path& path, std::int64_t dim, const std::string& encoder,
              const std::string& storage) {
  const LongCall unlocked;
  return Memory::create(path, dim, encoder, parse_storage(storage));
}

Memory open(const std::filesystem::path& path, bool read_only, const std::string& encoder) {
  const LongCall unlocked;
  return Memory::open(path, read_only, encoder);
}

/// A pickle leads to the same folder, for reading only: one process may write.
py::tuple reduce(const Memory& self) {
  const auto reopen = py::module_::import("reco._core").attr("_reopen_memory");
  return py::make_tuple(reopen, py::make_tuple(self.info().path, self.encoder()));
}

}  // namespace

void init_memory(py::module_& m) {
  m.def(
      "_reopen_memory",
      [](const std::filesystem::path& path, const std::string& encoder) { return open(path, true, encoder); },
      "What a pickled Memory is made of again.");
  py::class_<KeyIterator>(m, "_KeyIterator", "Goes through the keys of a memory.")
      .def("__iter__", [](py::object self) { return self; })
      .def("__next__", &KeyIterator::step);
  Class<Memory, py::smart_holder, MemoryBase> memory(m, "Memory", R"(Memory(*args, **kwargs)
--

A folder of image-text pairs: embeddings of both sides, keys, captions and metadata.

Made with create(), opened with open(). A call that returned is on disk; a crash at any moment, and Ctrl-C, leave the
last committed state. One process at a time may write, others may read and see its changes. Searches run in any number of
threads, beside a change. Use it as a context manager, or close() it, to let another writer in. A pickle holds the path:
where it is unpickled, the folder is opened for reading.

``len(memory)``, ``key in memory`` and ``for key in memory`` (in the order of adding) work as for a dict.

Examples
--------
>>> import reco, tempfile
>>> folder = tempfile.mkdtemp()
>>> with reco.Memory.create(folder, dim=2) as memory:
...     memory.add([[1.0, 0.0]], [[0.0, 1.0]], keys=["a"], captions=["first"])
...     memory.search([[0.6, 0.8]], k=1).captions
[['first']]
)");
  memory
      .def_static("create", &create, py::arg("path"), py::arg("dim"), py::arg("encoder") = "",
                  py::arg("storage") = "float16",
                  R"(Make a new, empty memory and open it for writing.

Parameters
----------
path : str or Path
    A folder that is empty or not there yet.
dim : int
    Width of the embeddings, 1 to 65,536.
encoder : str
    Fingerprint of the encoder whose embeddings it will hold, such as ``clip.fingerprint``.
storage : {"float16", "int8", "codes4", "codes2", "codes1"}
    How embeddings are kept, and so searched and fused: 2 bytes a number, 1, or codes of 4, 2 or 1 bits, which need a dim
    that is a multiple of 8.

Returns
-------
Memory

Raises
------
Error
    If the folder is not empty, or for a dim that is out of range or does not fit the storage.
)")
      .def_static("open", &open, py::arg("path"), py::arg("read_only") = false, py::arg("encoder") = "",
                  R"(Open a memory.

Parameters
----------
path : str or Path
    Its folder.
read_only : bool
    Refuse changes; any number of processes may read beside one writer.
encoder : str
    If given, a memory made with another encoder raises Error.

Returns
-------
Memory

Raises
------
Error
    If the folder is no memory, of a newer format, damaged, of another encoder, or open for writing elsewhere.
)")
      .def_static("repair", &Memory::repair, py::arg("path"), py::call_guard<LongCall>(),
                  R"(Make a damaged memory whole again.

Keeps every pair whose words and embeddings fit their checksums, forgets the others and every damaged index. No process
may have the memory open.

Parameters
----------
path : str or Path
    Its folder.

Returns
-------
list of str
    A line for each thing that was lost.

Raises
------
Error
    Where SQLite cannot read the database; nothing is changed then.
)")
      .def("upsert", &upsert, py::arg("image_embeddings"), py::arg("text_embeddings"), py::arg("keys"),
           py::arg("captions") = py::none(), py::arg("metadata") = py::none(),
           R"(Like add(), but pairs whose keys are there already are replaced.

Parameters
----------
image_embeddings, text_embeddings : array [n, dim]
keys : list of str
    Not empty, all different.
captions : list of str, optional
metadata : list of dict, optional

Raises
------
Error
    For wrong shapes and rows that are zero or not finite. Nothing is written then.
)")
      .def("attach", &attach, py::arg("image_file"), py::arg("text_file"), py::arg("keys"),
           py::arg("captions") = py::none(), py::arg("metadata") = py::none(),
           R"(Append the pairs of two .npy files where they lie: they are not copied and must stay there unchanged.

Parameters
----------
image_file, text_file : str or Path
    [n, dim] each, rows of unit length, in the memory's storage: '<f2' for float16.
keys : list of str
    One a row; an empty one leaves its row out.
captions : list of str, optional
metadata : list of dict, optional

Raises
------
Error
    For files that do not fit, and as add() does; nothing is written then. A file that is moved later makes open() raise
    Error.
)")
      .def("compact", &Memory::compact, py::call_guard<LongCall>(),
           R"(Reclaim the space of removed pairs and join small files. Searches go on meanwhile, changes wait.

Raises
------
Error
    For a memory that is open for reading only, or a disk that is full; nothing is changed then.
)");
  memory
      .def("optimize", &optimize, py::arg("index") = "auto", py::arg("recall") = 0.95, py::arg("k") = 10,
           py::arg("max_bytes") = py::none(), py::arg("max_build_bytes") = py::none(), py::arg("seed") = 0,
           py::arg("progress") = py::none(),
           R"(Build an index for both sides, so that searches compare a query with few pairs instead of all.

The settings that reach the recall are found with pairs that are held out until then. Searches and changes go on
meanwhile. Building that was stopped or killed goes on where it was when the same call is made on the same pairs. Pairs
that are added later are found at once, compared one by one; removed ones are never found.

Parameters
----------
index : str
    "auto", "exact" (drops the indexes) or a factory string of FAISS: "HNSW32", "IVF4096,Flat", "IVF4096,PQ64", ...
    "HNSW<links>" (arXiv 1603.09320) and "IVF<lists>,Flat" keep no second copy of the embeddings: 9 bytes a link and
    pair, or 8 bytes a pair. "auto" takes exact search below 50,000 pairs, else HNSW32 up to 4 million, else IVF, and IVF
    with product quantisation where the embeddings do not fit into max_bytes.
recall : float
    Share of the k nearest pairs that searches shall find, above 0 and at most 1.
k : int
    Neighbours that recall counts, 1 to 1,000.
max_bytes : int, optional
    Bytes that searching one side may keep in memory; "auto" obeys. Half of what the machine has, or the process's
    control group allows, if not given.
max_build_bytes : int, optional
    Bytes that building may take. Half of what there is if not given.
seed : int
    Of the pairs that are held out or trained on.
progress : bool or callable, optional
    True for a progress bar on standard error; or called with (pairs done, pairs in all), returning False stops with an
    Error.

Returns
-------
list of dict
    One a side: modality, index, rows, bytes, effort (efSearch or nprobe), refine, recall, build_seconds and
    search_seconds (median of one query).

Raises
------
Error
    For an unknown index, one that needs more than max_build_bytes, and when progress stops it.
)")
      .def(
          "adopt_index", &adopt_index, py::arg("path"), py::arg("modality"), py::arg("recall") = 0.95,
          py::arg("k") = 10,
          R"(Take over an index that FAISS wrote over one side of the pairs, in the order of their row numbers from 0 on.

The file is copied. It is read in a process of its own first, and its lists and links are checked.

Parameters
----------
path : str or Path
    What faiss.write_index() wrote.
modality : {"image", "text"}
    The side.
recall : float
    Share of the k nearest pairs that searches shall find, above 0 and at most 1.
k : int
    Neighbours that recall counts, 1 to 1,000.

Returns
-------
dict
    As optimize() gives for one side.

Raises
------
Error
    For a file that is no such index, or does not find the pairs under their own numbers.
)")
      .def("duplicates", &duplicates, py::arg("min_similarity") = 0.96, py::arg("modality") = "image",
           py::arg("progress") = py::none(), py::arg("against") = py::none(),
           R"(Find pairs that are nearly the same, within the memory or between it and another set.

Parameters
----------
min_similarity : float
    Cosine similarity from which on two pairs count as the same, above -1 and at most 1.
modality : {"image", "text"}
    The side that is compared.
progress : bool or callable, optional
    True for a progress bar on standard error; or called with (pairs done, pairs in all), returning False stops with an
    Error.
against : Memory or array [n, dim], optional
    Another set, such as a test set that must not have leaked into this memory.

Returns
-------
list of (str, str, float), or of (str, int, float) where `against` is an array
    Two keys and their similarity, best first. Within a memory the one added first comes before the other; else this
    memory's comes before the other's, or before the row of `against`. With an index some may be missed. Each row is
    compared with the 4,096 nearest to it, and the best 4,194,304 pairs are kept; a RuntimeWarning says where that left
    pairs out.

Raises
------
Error
    For a similarity out of range, another dim or encoder, and when progress stops it.
)");
  memory
      .def("embeddings", &embeddings, py::arg("modality"), py::arg("rows") = py::none(),
           R"(One side's embeddings of rows as a search gives them, or of all pairs.

Parameters
----------
modality : {"image", "text"}
rows : array of int [n], optional
    Row numbers; -1 gives zeros. All pairs in the order of iteration if not given.

Returns
-------
float32 array [n, dim]

Raises
------
Error
    For row numbers that were never given out.
)")
      .def("info", &info, R"(What the memory is and holds.

Returns
-------
dict
    path, rows (pairs), removed (whose space is not reclaimed), dim, storage, encoder, bytes (in its folder), attached
    (bytes of files elsewhere), shards, format, indexes (as optimize() gives them).
)")
      .def("verify", &Memory::verify, py::call_guard<LongCall>(),
           R"(Check every file against its checksum and the database against the files.

Returns
-------
list of str
    A line for each fault, empty when all is well.

Raises
------
Error
    When the check itself cannot run.
)")
      .def("close", &Memory::close, py::call_guard<py::gil_scoped_release>(),
           R"(Let another writer in.

Whatever is called later, on this object or one that was made with it, raises Error.
)")
      .def("__contains__", &Memory::contains, py::arg("key"), py::call_guard<py::gil_scoped_release>(),
           "Whether a pair has this key.")
      .def(
          "__iter__",
          [](const Memory& self) {
            return KeyIterator{self, self.rows(), 0, {}, 0};
          },
          "The keys, in the order of adding.")
      .def(
          "__enter__", [](py::object self) { return self; }, "Itself.")
      .def(
          "__exit__",
          [](Memory& self, const py::object&, const py::object&, const py::object&) {
            const py::gil_scoped_release release;
            self.close();
          },
          py::arg("type"), py::arg("value"), py::arg("traceback"), "Closes it.")
      .def("__reduce__", &reduce, "Its path, to be opened for reading.")
      .copies_share()
      .def("__repr__", &representation, "Path, sizes, storage, indexes and the encoder's fingerprint.");
}

}  // namespace reco::python
