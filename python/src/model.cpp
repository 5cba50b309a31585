// SPDX-License-Identifier: Apache-2.0
#include "reco/model.h"

#include "helpers.h"

namespace reco::python {

namespace {

// The C++ overload for one modality, without the GIL.
py::array_t<float> refine(const Model& model, Modality side, const FloatArray& embeddings, const py::object& exclude) {
  const auto view = matrix_view(embeddings, "model.refine", "embeddings");
  const auto keys = exclude_keys(exclude);
  py::gil_scoped_release release;
  auto out = side == Modality::image ? model.refine_images(view, keys) : model.refine_texts(view, keys);
  py::gil_scoped_acquire acquire;
  return to_numpy(std::move(out));
}

// What Clip's own method of that name makes of `items`, whatever kinds of items it takes.
FloatArray encoded(const Model& model, const char* method, const py::object& items) {
  return py::cast(model.clip()).attr(method)(items).cast<FloatArray>();
}

template <typename Value>
py::array_t<float> floats(const Value& values) {
  return py::array_t<float>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::list dicts(const std::vector<std::string>& metadata) {
  const auto loads = py::module_::import("json").attr("loads");
  py::list out;
  for (const auto& item : metadata) out.append(item.empty() ? py::dict() : loads(item));
  return out;
}

// The fields of reco.Explanation that C++ knows, as keyword arguments.
py::dict explain(const Model& model, const std::string& side, const FloatArray& embedding) {
  const auto view = matrix_view(embedding, "model.explain", "embedding");
  const auto which = modality(side, "model.explain");
  Explanation e;
  {
    const py::gil_scoped_release release;
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
  py::class_<Model>(m, "Model",
                    R"(A CLIP model that looks things up. Sees every change of the memory at once; thread safe.

Parameters
----------
clip : Clip
memory : MemoryBase
    A Memory, or any other kind.
fusion : Fusion
k : int
    Neighbours a query.
max_similarity : float, optional
    Image neighbours more similar than this are left out as near-duplicates.

Raises
------
Error
    When dimensions or encoder fingerprints of the three do not fit.
)")
      .def(py::init([](const Clip& clip, std::shared_ptr<const MemoryBase> memory, const Fusion& fusion, std::int64_t k,
                       std::optional<float> max_similarity) {
             return Model(clip, std::move(memory), fusion, {k, max_similarity});
           }),
           py::arg("clip"), py::arg("memory"), py::arg("fusion"), py::arg("k") = 10,
           py::arg("max_similarity") = py::none())
      .def(
          "encode_images",
          [](const Model& self, const py::object& images) {
            return refine(self, Modality::image, encoded(self, "encode_images", images), py::none());
          },
          py::arg("images"), "Encode and refine what Clip.encode_images takes: float32 [n, dim], unit rows.")
      .def(
          "encode_texts",
          [](const Model& self, const py::object& texts) {
            return refine(self, Modality::text, encoded(self, "encode_texts", texts), py::none());
          },
          py::arg("texts"), "Encode and refine texts: float32 [n, dim], unit rows.")
      .def(
          "refine_images",
          [](const Model& self, const FloatArray& embeddings, const py::object& exclude) {
            return refine(self, Modality::image, embeddings, exclude);
          },
          py::arg("embeddings"), py::kw_only(), py::arg("exclude_keys") = py::none(),
          "Refine image embeddings [n, dim]: float32 [n, dim], unit rows. exclude_keys as in Memory.search.")
      .def(
          "refine_texts",
          [](const Model& self, const FloatArray& embeddings, const py::object& exclude) {
            return refine(self, Modality::text, embeddings, exclude);
          },
          py::arg("embeddings"), py::kw_only(), py::arg("exclude_keys") = py::none(),
          "Refine text embeddings [n, dim]: float32 [n, dim], unit rows. exclude_keys as in Memory.search.")
      .def("_explain", &explain, py::arg("modality"), py::arg("embedding"),
           "What reco.Model.explain() makes an Explanation of, for an embedding float32 [1, dim].")
      .def_property_readonly("clip", &Model::clip)
      .def_property_readonly("memory", &Model::memory)
      .def_property_readonly("fusion", &Model::fusion)
      .def_property_readonly("k", [](const Model& self) { return self.options().k; })
      .def("__repr__", [](const Model& self) {
        return "Model(dim=" + std::to_string(self.clip().dim()) + ", memory=" + std::to_string(self.memory()->size()) +
               " pairs, fusion='" + self.fusion().config().method + "', k=" + std::to_string(self.options().k) + ")";
      });
}

}  // namespace reco::python
