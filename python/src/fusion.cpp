// SPDX-License-Identifier: Apache-2.0
#include "reco/fusion.h"

#include "helpers.h"
#include "options.h"

namespace reco::python {

namespace {

// Neighbours as arrays from anywhere: [n, k] scores, [n, k, dim] partners, optionally [n, k] rows (-1: none) and
// [n, k, dim] same sides.
Neighbors neighbors_from(const FloatArray& scores, const FloatArray& partners, const std::optional<IndexArray>& rows,
                         const std::optional<FloatArray>& same) {
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
  if (same) {
    check(same->ndim() == 3 && same->shape(0) == n && same->shape(1) == k && same->shape(2) == d, tag,
          "same must be [n, k, dim] as the partners");
    out.same = Eigen::Map<const Matrix>(same->data(), n * k, d);
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

py::dict fuse(const Fusion& self, const std::string& side, const FloatArray& queries, const FloatArray& scores,
              const FloatArray& partners, const std::optional<IndexArray>& rows,
              const std::optional<FloatArray>& same) {
  const auto view = matrix_view(queries, "fusion.fuse", "queries");
  const auto neighbors = neighbors_from(scores, partners, rows, same);
  const auto which = modality(side, "fusion.fuse");
  FusionOutput result;
  {
    const LongCall unlocked;
    result = self.fuse(which, view, neighbors);
  }
  return output(std::move(result));
}

std::string representation(const Fusion& fusion) {
  const auto& c = fusion.config();
  std::ostringstream out;
  out << "Fusion(method='" << c.method << "', dim=" << c.dim << ", k=" << c.k << ", layers=" << c.layers
      << ", parameters=" << fusion.parameters();
  if (!fusion.encoder().empty()) out << ", encoder " << fusion.encoder().substr(0, 12);
  out << ")";
  return out.str();
}

/// A temporary file that pickles go through: a fusion's state is what save() writes.
class TemporaryFile {
 public:
  TemporaryFile() : folder_(py::module_::import("tempfile").attr("TemporaryDirectory")()) {}
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() { folder_.attr("cleanup")(); }
  std::filesystem::path path() const {
    return std::filesystem::path(folder_.attr("name").cast<std::string>()) / "fusion.safetensors";
  }
  py::object as_path() const { return py::module_::import("pathlib").attr("Path")(path()); }

 private:
  py::object folder_;
};

py::bytes state(const Fusion& fusion) {
  const TemporaryFile file;
  fusion.save(file.path());
  return file.as_path().attr("read_bytes")();
}

Fusion from_state(const py::bytes& bytes) {
  const TemporaryFile file;
  file.as_path().attr("write_bytes")(bytes);
  return Fusion::load(file.path());
}

void init_config(py::module_& m) {
  Options<FusionConfig> options("FusionConfig", R"(The shape of a fusion, and what it looks up. Immutable.

Parameters
----------
method : {"gated", "transformer", "mean"}
    "transformer" is the paper's layer (arXiv 2306.07196, section 3), "mean" is training-free, "gated" is ours; see
    Fusion.
dim : int
    Width of the embeddings, 1 to 65,536.
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
relevance : bool
    A free logit for each neighbour beside its trust, learned from the contrastive loss ("gated" only). On a few thousand
    pairs it learns the training concepts by heart.
metric : bool
    Images are compared after a linear map, learned from how pictures of one concept differ ("gated" only, with search
    "uni-modal", fuse "partner" or "same", not shared).
gate_width : int
    Hidden units of the gate's networks ("gated" only).

Raises
------
Error
    For a value out of range; names it.
)");
  options.field("method", &FusionConfig::method, "'gated', 'transformer' or 'mean'.")
      .field("dim", &FusionConfig::dim, "Width of the embeddings.")
      .field("k", &FusionConfig::k, "Neighbours it is made for.")
      .field("search", &FusionConfig::search, "Side of the memory that is searched: 'uni-modal' or 'cross-modal'.")
      .field("fuse", &FusionConfig::fuse, "What of a neighbour is fused: 'partner', 'same' or 'both'.")
      .field("sides", &FusionConfig::sides, "Queries that are refined: 'both', 'image' or 'text'.")
      .field("layers", &FusionConfig::layers, "Encoder layers.")
      .field("heads", &FusionConfig::heads, "Attention heads.")
      .field("mlp_ratio", &FusionConfig::mlp_ratio, "Hidden width of the layer's MLP over dim.")
      .field("positions", &FusionConfig::positions, "Whether there are learned rank positions.")
      .field("similarity", &FusionConfig::similarity, "Whether the layers' tokens carry the similarity.")
      .field("residual", &FusionConfig::residual, "Whether the result is added to the query.")
      .field("shared", &FusionConfig::shared, "Whether both sides have one set of weights.")
      .field("relevance", &FusionConfig::relevance, "Whether neighbours have a free logit that learns from the loss.")
      .field("metric", &FusionConfig::metric, "Whether images are compared after a learned linear map.")
      .field("gate_width", &FusionConfig::gate_width, "Hidden units of the gate's networks.");
  options.define(m, [](const FusionConfig& config) { validate(config); });
}

}  // namespace

void init_fusion(py::module_& m) {
  init_config(m);
  Class<Fusion>(m, "Fusion", R"(Refines an embedding with what was retrieved for it. Immutable and thread safe.

With q the query, p_i the partners of its k neighbours and s_i their similarities:

- "transformer" (RECO, arXiv 2306.07196, section 3): [q, p_1 .. p_k] plus positions through a pre-norm encoder; the query
  token, unit length, is the result.
- "mean": unit(q + weight * sum_i softmax(sharpness * s)_i p_i); training-free.
- "gated": unit(q + confidence^4 * (weight * m + c)), m the mean under softmax(sharpness * s + log trust + relevance);
  trust, relevance and confidence come from small networks over similarities, c is what encoder layers change of the
  query. Untrained it is CLIP; training starts it at the best mean.

Made with create(), mean(), load() or train(). A pickle holds all of it.
)")
      .def_static("create", &Fusion::create, py::arg("config"), py::arg("seed") = 0,
                  R"(An untrained fusion; 'gated' and 'mean' start at CLIP's own embedding.

Parameters
----------
config : FusionConfig
seed : int
    The weights are drawn from it.

Returns
-------
Fusion
)")
      .def_static(
          "mean",
          [](std::int64_t dim, float image_weight, float image_sharpness, float text_weight, float text_sharpness) {
            return Fusion::mean(dim, {image_weight, image_sharpness}, {text_weight, text_sharpness});
          },
          py::arg("dim"), py::arg("image_weight") = 1.0, py::arg("image_sharpness") = 10.0,
          py::arg("text_weight") = 1.0, py::arg("text_sharpness") = 10.0,
          R"(A training-free mean.

Parameters
----------
dim : int
    Width of the embeddings.
image_weight, text_weight : float
    Of the retrieved mean against 1 for the query, for queries of that side; not negative.
image_sharpness, text_sharpness : float
    Inverse temperature of the softmax over similarities; 0 is a plain mean.

Returns
-------
Fusion

Raises
------
Error
    For negative or infinite numbers.

Examples
--------
>>> import reco
>>> reco.Fusion.mean(512)
Fusion(method='mean', dim=512, k=10, layers=0, parameters=4)
)")
      .def_static("load", &Fusion::load, py::arg("path"), py::call_guard<LongCall>(),
                  R"(Open a file that save() wrote.

Parameters
----------
path : str or Path
    A safetensors file.

Returns
-------
Fusion

Raises
------
Error
    For a file that is none or does not fit its config; names file, tensor and shapes.
)")
      .def("save", &Fusion::save, py::arg("path"), py::call_guard<LongCall>(),
           R"(Write one safetensors file, durably; its metadata holds config, encoder and provenance.

Parameters
----------
path : str or Path

Raises
------
Error
    When it cannot be written; what was there before stays.
)")
      .def("fuse", &fuse, py::arg("modality"), py::arg("queries"), py::arg("scores"), py::arg("partners"),
           py::arg("rows") = py::none(), py::arg("same") = py::none(),
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
rows : array of int [n, k], optional
    Row numbers; -1 where there is no neighbour.
same : array [n, k, dim], optional
    The neighbours' images; needed, and used, for image queries with config.metric alone.

Returns
-------
dict
    embeddings float32 [n, dim] unit rows; attention float32 [n, k], weight of each neighbour; gate float32 [n, 1],
    weight of what was retrieved against the query's 1; confidence float32 [n, 1], probability that any of it is true.

Raises
------
Error
    When shapes do not fit, or there are more neighbours than "transformer" has positions for.
)")
      .def_property_readonly("config", &Fusion::config, "Its FusionConfig.")
      .def_property_readonly("parameters", &Fusion::parameters, "Number of weights of both sides.")
      .def_property_readonly("encoder", &Fusion::encoder, "Fingerprint of the encoder it was trained with, or ''.")
      .def_property_readonly(
          "provenance", [](const Fusion& self) { return loads(self.provenance()); }, "How it was trained (dict).")
      .copies_share()
      .def_pickle(&state, &from_state)
      .def("__repr__", &representation, "Method, sizes, number of weights and the encoder's fingerprint.");
}

}  // namespace reco::python
