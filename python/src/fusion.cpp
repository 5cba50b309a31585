// SPDX-License-Identifier: Apache-2.0
#include "reco/fusion.h"

#include "helpers.h"

namespace reco::python {

namespace {

// Neighbours as arrays from anywhere: [n, k] scores, [n, k, dim] partners, optionally [n, k] rows (-1: none).
Neighbors neighbors_from(const FloatArray& scores, const FloatArray& partners, const std::optional<IndexArray>& rows) {
  const char* tag = "fusion.fuse";
  check(scores.ndim() == 2, tag, "scores must be [n, k], got ", scores.ndim(), " dimensions");
  check(partners.ndim() == 3 && partners.shape(0) == scores.shape(0) && partners.shape(1) == scores.shape(1), tag,
        "partners must be [n, k, dim] with n and k of the scores");
  const auto n = scores.shape(0), k = scores.shape(1), d = partners.shape(2);
  Neighbors out{k, IndexMatrix::Zero(n, k), Eigen::Map<const Matrix>(scores.data(), n, k),
                Eigen::Map<const Matrix>(partners.data(), n * k, d)};
  if (rows) {
    check(rows->ndim() == 2 && rows->shape(0) == n && rows->shape(1) == k, tag, "rows must be [n, k] as the scores");
    out.rows = Eigen::Map<const IndexMatrix>(rows->data(), n, k);
  }
  return out;
}

py::dict output(FusionOutput&& result) {
  py::dict out;
  out["embeddings"] = to_numpy(std::move(result.embeddings));
  out["attention"] = to_numpy(std::move(result.attention));
  out["gate"] = to_numpy(std::move(result.gate));
  out["confidence"] = to_numpy(std::move(result.confidence));
  return out;
}

std::string representation(const Fusion& fusion) {
  const auto& c = fusion.config();
  return "Fusion(method='" + c.method + "', dim=" + std::to_string(c.dim) + ", k=" + std::to_string(c.k) +
         ", layers=" + std::to_string(c.layers) + ", parameters=" + std::to_string(fusion.parameters()) + ")";
}

}  // namespace

void init_fusion(py::module_& m) {
  py::class_<FusionConfig> config(m, "FusionConfig", R"(The shape of a fusion, and what it looks up.

Parameters
----------
method : {"gated", "transformer", "mean"}
    "transformer" is the paper's layer (arXiv 2306.07196), "mean" is training-free, "gated" is ours; see Fusion.
dim : int
    Width of the embeddings.
k : int
    Neighbours it is made for; "gated" and "mean" take any number.
search : {"uni-modal", "cross-modal"}
    Search the query's own side of the memory, or the other one.
fuse : {"partner", "same", "both"}
    What of a neighbour is fused: the side that the query is not, the side that it is, or both.
sides : {"both", "image", "text"}
    Queries that are refined; others stay at CLIP.
layers : int
    Encoder layers, 0 to 4; "transformer" needs one.
heads : int
    Attention heads; must divide dim.
mlp_ratio : float
    Hidden width of the layer's MLP over dim.
positions : bool
    Learned rank positions ("transformer" only).
similarity : bool
    The layers' tokens also carry the similarity, along a learned direction.
residual : bool
    unit(q + result / sqrt(dim)) in place of unit(result) ("transformer" only).
shared : bool
    One set of weights for both sides.
gate_width : int
    Hidden units of the gate's networks ("gated" only).
)");
  Options(config)
      .field("method", &FusionConfig::method)
      .field("dim", &FusionConfig::dim)
      .field("k", &FusionConfig::k)
      .field("search", &FusionConfig::search)
      .field("fuse", &FusionConfig::fuse)
      .field("sides", &FusionConfig::sides)
      .field("layers", &FusionConfig::layers)
      .field("heads", &FusionConfig::heads)
      .field("mlp_ratio", &FusionConfig::mlp_ratio)
      .field("positions", &FusionConfig::positions)
      .field("similarity", &FusionConfig::similarity)
      .field("residual", &FusionConfig::residual)
      .field("shared", &FusionConfig::shared)
      .field("gate_width", &FusionConfig::gate_width)
      .init();

  py::class_<Fusion>(m, "Fusion", R"(Refines an embedding with what was retrieved for it. Immutable and thread safe.

With q the query, p_i the partners of its k neighbours and s_i their similarities:

- "transformer": [q, p_1 .. p_k] plus positions through a pre-norm encoder; the query token, unit length, is the result.
- "mean": unit(q + weight * sum_i softmax(sharpness * s)_i p_i); training-free.
- "gated": unit(q + confidence^4 * (weight * m + c)), m the mean under softmax(sharpness * s + log trust + relevance);
  trust, relevance and confidence come from small networks over similarities, c is what encoder layers change of the
  query. Untrained it is CLIP; training starts it at the best mean.
)")
      .def_static("create", &Fusion::create, py::arg("config"), py::arg("seed") = 0,
                  "An untrained fusion; 'gated' and 'mean' start at CLIP's own embedding.")
      .def_static(
          "mean",
          [](std::int64_t dim, float image_weight, float image_sharpness, float text_weight, float text_sharpness) {
            return Fusion::mean(dim, {image_weight, image_sharpness}, {text_weight, text_sharpness});
          },
          py::arg("dim"), py::arg("image_weight") = 1.0F, py::arg("image_sharpness") = 10.0F,
          py::arg("text_weight") = 1.0F, py::arg("text_sharpness") = 10.0F,
          "A training-free mean; weights and sharpnesses (inverse softmax temperatures) must not be negative.")
      .def_static("load", &Fusion::load, py::arg("path"), py::call_guard<py::gil_scoped_release>(),
                  "Open a safetensors file that save() wrote. Raises Error naming file, tensor and shapes.")
      .def("save", &Fusion::save, py::arg("path"), py::call_guard<py::gil_scoped_release>(),
           "Write one safetensors file, durably; its metadata holds config, encoder and provenance.")
      .def(
          "fuse",
          [](const Fusion& self, const std::string& side, const FloatArray& queries, const FloatArray& scores,
             const FloatArray& partners, const std::optional<IndexArray>& rows) {
            const auto view = matrix_view(queries, "fusion.fuse", "queries");
            const auto neighbors = neighbors_from(scores, partners, rows);
            const auto which = modality(side, "fusion.fuse");
            py::gil_scoped_release release;
            auto result = self.fuse(which, view, neighbors);
            py::gil_scoped_acquire acquire;
            return output(std::move(result));
          },
          py::arg("modality"), py::arg("queries"), py::arg("scores"), py::arg("partners"), py::arg("rows") = py::none(),
          R"(Refine queries with their neighbours.

Parameters
----------
modality : {"image", "text"}
    The side of the queries.
queries : array [n, dim]
    Unit rows.
scores : array [n, k]
    Similarities of the neighbours, best first.
partners : array [n, k, dim]
    The neighbours' other side.
rows : array [n, k], optional
    Row numbers; -1 where there is no neighbour.

Returns
-------
dict
    embeddings float32 [n, dim] unit rows, attention [n, k], gate [n, 1], confidence [n, 1].
)")
      .def_property_readonly("config", &Fusion::config)
      .def_property_readonly("parameters", &Fusion::parameters, "Number of weights of both sides.")
      .def_property_readonly("encoder", &Fusion::encoder, "Fingerprint of the encoder it was trained with, or ''.")
      .def_property_readonly(
          "provenance", [](const Fusion& self) { return py::module_::import("json").attr("loads")(self.provenance()); },
          "How it was trained (dict).")
      .def("__repr__", &representation);
}

}  // namespace reco::python
