// SPDX-License-Identifier: Apache-2.0
#include "reco/model.h"

#include "helpers.h"

namespace reco::python {

namespace {

using Keys = std::vector<std::vector<std::string>>;

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

Explanation explain(const Model& model, const py::object& image, const py::object& text) {
  check(image.is_none() != text.is_none(), "model.explain", "expected an image or a text, and not both");
  const bool is_image = text.is_none();
  py::list items;
  items.append(is_image ? image : text);
  const auto embedding = encoded(model, is_image ? "encode_images" : "encode_texts", items);
  const auto view = matrix_view(embedding, "model.explain", "embedding");
  py::gil_scoped_release release;
  return model.explain(is_image ? Modality::image : Modality::text, view);
}

py::array_t<float> scores(const Explanation& e) {
  return py::array_t<float>(e.neighbors.scores.size(), e.neighbors.scores.data());
}

std::string table(const Explanation& e) {
  std::ostringstream out;
  out.precision(3);
  out << std::fixed << "Explanation of " << (e.modality == Modality::image ? "an image" : "a text") << ", gate "
      << e.gate << ", cosine of refined and original " << e.refined.row(0).dot(e.original.row(0))
      << "\n rank  similarity  attention  caption";
  for (std::size_t i = 0; i < e.keys.size(); ++i) {
    if (e.keys[i].empty()) continue;
    out << "\n"
        << std::setw(5) << i + 1 << std::setw(12) << e.neighbors.scores(0, static_cast<Eigen::Index>(i))
        << std::setw(11) << e.attention[i] << "  " << e.captions[i] << "  [" << e.keys[i] << "]";
  }
  return out.str();
}

void init_explanation(py::module_& m) {
  py::class_<Explanation>(m, "Explanation", "A refined embedding and where it came from; prints as a table.")
      .def_property_readonly("modality",
                             [](const Explanation& e) { return e.modality == Modality::image ? "image" : "text"; })
      .def_property_readonly(
          "original", [](const Explanation& e) { return to_numpy(Matrix(e.original)); },
          "CLIP's embedding, float32 [1, dim].")
      .def_property_readonly(
          "refined", [](const Explanation& e) { return to_numpy(Matrix(e.refined)); },
          "The refined embedding, float32 [1, dim].")
      .def_property_readonly("scores", &scores, "Similarities of the neighbours, float32 [k], best first.")
      .def_readonly("keys", &Explanation::keys, "Keys of the neighbours; '' where there is none.")
      .def_readonly("captions", &Explanation::captions, "Captions of the neighbours.")
      .def_readonly("attention", &Explanation::attention, "Weight of each neighbour in the fusion.")
      .def_readonly("gate", &Explanation::gate, "How far the result moved towards the retrieved; 0 stays at CLIP.")
      .def("__repr__", &table);
}

}  // namespace

void init_model(py::module_& m) {
  init_explanation(m);
  py::class_<Model>(m, "Model",
                    R"(A CLIP model that looks things up. Sees every change of the memory at once; thread safe.

Parameters
----------
clip : Clip
memory : Memory
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
      .def(py::init([](const Clip& clip, const Memory& memory, const Fusion& fusion, std::int64_t k,
                       std::optional<float> max_similarity) {
             return Model(clip, memory, fusion, {k, max_similarity});
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
      .def("explain", &explain, py::arg("image") = py::none(), py::kw_only(), py::arg("text") = py::none(),
           "Refine one image (as Clip.encode_images takes it) or one text and say what was found: an Explanation.")
      .def_property_readonly("clip", &Model::clip)
      .def_property_readonly("memory", &Model::memory)
      .def_property_readonly("fusion", &Model::fusion)
      .def_property_readonly("k", [](const Model& self) { return self.options().k; })
      .def("__repr__", [](const Model& self) {
        return "Model(dim=" + std::to_string(self.clip().dim()) + ", memory=" + std::to_string(self.memory().size()) +
               " pairs, fusion='" + self.fusion().config().method + "', k=" + std::to_string(self.options().k) + ")";
      });
}

}  // namespace reco::python
