// SPDX-License-Identifier: Apache-2.0
#include "reco/model.h"

#include "helpers.h"

namespace reco::python {

namespace {

// The C++ overload for one modality, without the GIL.
py::array_t<float> refine(const Model& model, Modality side, const FloatArray& embeddings, const py::object& exclude) {
  const auto view = matrix_view(embeddings, "model.refine", "embeddings");
  const auto keys = exclude_keys(exclude);
  Matrix out;
  {
    const LongCall unlocked;
    out = side == Modality::image ? model.refine_images(view, keys) : model.refine_texts(view, keys);
  }
  return to_numpy(std::move(out));
}

// What Clip's own method of that name makes of `items`, whatever kinds of items it takes.
FloatArray encoded(const Model& model, const char* method, const py::object& items, const py::object& progress) {
  return float_array(py::cast(model.clip()).attr(method)(items, progress));
}

template <typename Value>
py::array_t<float> floats(const Value& values) {
  return py::array_t<float>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::list dicts(const std::vector<std::string>& metadata) {
  py::list out;
  for (const auto& item : metadata) out.append(item.empty() ? py::object(py::dict()) : loads(item));
  return out;
}

// The fields of reco.Explanation that C++ knows, as keyword arguments.
py::dict explain(const Model& model, const std::string& side, const FloatArray& embedding) {
  const auto view = matrix_view(embedding, "model.explain", "embedding");
  const auto which = modality(side, "model.explain");
  Explanation e;
  {
    const LongCall unlocked;
    e = model.explain(which, view);
  }
  return py::dict(py::arg("modality") = side, py::arg("original") = floats(e.original),
                  py::arg("refined") = floats(e.refined), py::arg("keys") = e.keys, py::arg("captions") = e.captions,
                  py::arg("metadata") = dicts(e.metadata), py::arg("scores") = floats(e.scores),
                  py::arg("attention") = floats(e.attention), py::arg("gate") = e.gate,
                  py::arg("confidence") = e.confidence);
}

}  // namespace

void init_model(py::module_& m) {
  Class<Model>(m, "Model", R"(Model(clip, memory, fusion, k=None, max_similarity=None)
--

A CLIP model that looks things up (RECO, arXiv 2306.07196). Sees every change of the memory at once; thread safe.

Parameters
----------
clip : Clip
    The frozen encoder.
memory : MemoryBase
    A Memory, or any other kind.
fusion : Fusion
    What refines.
k : int, optional
    Neighbours a query, 1 or more; at most the fusion's k for "transformer", and as many without it.
max_similarity : float, optional
    Image neighbours more similar than this are left out as near-duplicates.

Raises
------
Error
    When dimensions or encoder fingerprints of the three do not fit.

Examples
--------
>>> model = reco.Model(clip, memory, reco.Fusion.mean(clip.dim))  # doctest: +SKIP
>>> reco.zero_shot(model, ["a quokka", "a wombat"]).predict(["query.webp"])  # doctest: +SKIP
)")
      .def_init(py::init([](const Clip& clip, std::shared_ptr<const MemoryBase> memory, const Fusion& fusion,
                            std::optional<std::int64_t> k, std::optional<float> max_similarity) {
                  return Model(clip, std::move(memory), fusion, {k, max_similarity});
                }),
                py::arg("clip"), py::arg("memory"), py::arg("fusion"), py::arg("k") = py::none(),
                py::arg("max_similarity") = py::none())
      .def(
          "encode_images",
          [](const Model& self, const py::object& images, const py::object& progress) {
            return refine(self, Modality::image, encoded(self, "encode_images", images, progress), py::none());
          },
          py::arg("images"), py::arg("progress") = py::none(), R"(Encode and refine images.

Parameters
----------
images : list, or one, of str, Path, bytes, PIL image, uint8 array [height, width, 3]
    As Clip.encode_images takes them.
progress : bool or callable, optional
    As Clip.encode_images takes it.

Returns
-------
float32 array [n, dim]
    Unit rows, in the order given.

Raises
------
Error
    As Clip.encode_images() and refine_images().
)")
      .def(
          "encode_texts",
          [](const Model& self, const py::object& texts, const py::object& progress) {
            return refine(self, Modality::text, encoded(self, "encode_texts", texts, progress), py::none());
          },
          py::arg("texts"), py::arg("progress") = py::none(), R"(Encode and refine texts.

Parameters
----------
texts : list of str, or one str
progress : bool or callable, optional
    As Clip.encode_texts takes it.

Returns
-------
float32 array [n, dim]
    Unit rows, in the order given.

Raises
------
Error
    As Clip.encode_texts() and refine_texts().
)")
      .def(
          "refine_images",
          [](const Model& self, const FloatArray& embeddings, const py::object& exclude) {
            return refine(self, Modality::image, embeddings, exclude);
          },
          py::arg("embeddings"), py::kw_only(), py::arg("exclude_keys") = py::none(),
          R"(Refine image embeddings of the encoder.

Parameters
----------
embeddings : array [n, dim]
    Unit rows.
exclude_keys : list of str, or n lists of str, optional
    Keys that must not be found, as MemoryBase.search takes them.

Returns
-------
float32 array [n, dim]
    Unit rows.

Raises
------
Error
    For another number of columns, and as MemoryBase.search().
)")
      .def(
          "refine_texts",
          [](const Model& self, const FloatArray& embeddings, const py::object& exclude) {
            return refine(self, Modality::text, embeddings, exclude);
          },
          py::arg("embeddings"), py::kw_only(), py::arg("exclude_keys") = py::none(),
          R"(Refine text embeddings of the encoder.

Parameters
----------
embeddings : array [n, dim]
    Unit rows.
exclude_keys : list of str, or n lists of str, optional
    Keys that must not be found, as MemoryBase.search takes them.

Returns
-------
float32 array [n, dim]
    Unit rows.

Raises
------
Error
    For another number of columns, and as MemoryBase.search().
)")
      .def("_explain", &explain, py::arg("modality"), py::arg("embedding"),
           "What reco.Model.explain() makes an Explanation of, for an embedding float32 [1, dim].")
      .def_property_readonly("clip", &Model::clip, "The frozen Clip.")
      .def_property_readonly("memory", &Model::memory, "What is looked up: a Memory, or another MemoryBase.")
      .def_property_readonly("fusion", &Model::fusion, "The Fusion that refines.")
      .def_property_readonly(
          "k", [](const Model& self) { return *self.options().k; }, "Neighbours a query.")
      .def_property_readonly(
          "max_similarity", [](const Model& self) { return self.options().max_similarity; },
          "Image neighbours above this are left out; None: none are.")
      .copies_share()
      .def(
          "__repr__",
          [](const Model& self) {
            std::ostringstream text;
            text << "Model(dim=" << self.clip().dim() << ", memory=" << self.memory()->size() << " pairs, fusion='"
                 << self.fusion().config().method << "', k=" << *self.options().k;
            if (self.options().max_similarity) text << ", max_similarity=" << *self.options().max_similarity;
            text << ", encoder " << self.clip().fingerprint().substr(0, 12) << ")";
            return text.str();
          },
          "Width, pairs, method, k and the encoder's fingerprint.");
}

}  // namespace reco::python
