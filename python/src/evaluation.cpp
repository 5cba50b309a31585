// SPDX-License-Identifier: Apache-2.0
#include "reco/evaluation.h"

#include "helpers.h"

namespace reco::python {

namespace {

using DoubleArray = py::array_t<double, py::array::c_style | py::array::forcecast>;

std::span<const std::int64_t> numbers(const IndexArray& array) {
  return {array.data(), static_cast<std::size_t>(array.size())};
}

}  // namespace

void init_evaluation(py::module_& m) {
  m.def(
      "classify",
      [](const FloatArray& images, const FloatArray& classes, const std::vector<std::int64_t>& labels) {
        const auto a = matrix_view(images, "evaluation.classify", "images");
        const auto b = matrix_view(classes, "evaluation.classify", "classes");
        py::gil_scoped_release release;
        const auto r = classify(a, b, labels);
        py::gil_scoped_acquire acquire;
        return py::make_tuple(
            py::dict(py::arg("acc1") = r.acc1, py::arg("acc5") = r.acc5,
                     py::arg("mean_per_class_recall") = r.mean_per_class_recall),
            py::array_t<std::int64_t>(static_cast<py::ssize_t>(r.predictions.size()), r.predictions.data()));
      },
      py::arg("images"), py::arg("classes"), py::arg("labels"),
      R"(Classify images [n, dim] among classes [c, dim] by cosine.

Parameters
----------
images, classes : array
labels : list of int
    Right class of each image, 0 .. c - 1.

Returns
-------
(dict, array)
    acc1, acc5 and mean_per_class_recall, as CLIP_benchmark defines them; predicted class of each image, int64 [n].
)");
  m.def(
      "retrieve",
      [](const FloatArray& images, const FloatArray& texts, const std::vector<std::int64_t>& image_of_text) {
        const auto a = matrix_view(images, "evaluation.retrieve", "images");
        const auto b = matrix_view(texts, "evaluation.retrieve", "texts");
        py::gil_scoped_release release;
        const auto r = retrieve(a, b, image_of_text);
        py::gil_scoped_acquire acquire;
        py::dict out;
        out["image_retrieval_recall@1"] = r.image_recall_at_1;
        out["image_retrieval_recall@5"] = r.image_recall_at_5;
        out["image_retrieval_recall@10"] = r.image_recall_at_10;
        out["text_retrieval_recall@1"] = r.text_recall_at_1;
        out["text_retrieval_recall@5"] = r.text_recall_at_5;
        out["text_retrieval_recall@10"] = r.text_recall_at_10;
        return out;
      },
      py::arg("images"), py::arg("texts"), py::arg("image_of_text"),
      R"(Retrieval between images [n, dim] and texts [m, dim], by cosine.

Parameters
----------
images, texts : array
image_of_text : list of int
    Row of each text's image; an image counts as found when any of its texts is among the first k.

Returns
-------
dict
    image_retrieval_recall@k (text to image) and text_retrieval_recall@k (image to text) for k = 1, 5, 10.
)");
  m.def(
      "ranks",
      [](const FloatArray& queries, const FloatArray& candidates, const IndexArray& targets,
         const std::optional<IndexArray>& target_queries) {
        const auto a = matrix_view(queries, "evaluation.ranks", "queries");
        const auto b = matrix_view(candidates, "evaluation.ranks", "candidates");
        const auto right = numbers(targets);
        const auto of = target_queries ? numbers(*target_queries) : std::span<const std::int64_t>();
        py::gil_scoped_release release;
        const auto r = ranks(a, b, right, of);
        py::gil_scoped_acquire acquire;
        return py::array_t<std::int64_t>(static_cast<py::ssize_t>(r.size()), r.data());
      },
      py::arg("queries"), py::arg("candidates"), py::arg("targets"), py::arg("target_queries") = py::none(),
      R"(Place of each query's best right candidate by cosine, 0 for the best; of equal scores the lower row is the better.

Parameters
----------
queries, candidates : array
    [n, dim] and [m, dim].
targets : array of int
    A right candidate of query i, or of query target_queries[i].
target_queries : array of int, optional
    For queries with several right candidates.

Returns
-------
int64 [n]
    m for a query without a target.
)");
  m.def(
      "bootstrap",
      [](const DoubleArray& values, const std::optional<IndexArray>& units, const std::optional<IndexArray>& groups,
         std::int64_t resamples, double confidence, std::uint64_t seed) {
        const std::span all(values.data(), static_cast<std::size_t>(values.size()));
        const auto u = units ? numbers(*units) : std::span<const std::int64_t>();
        const auto g = groups ? numbers(*groups) : std::span<const std::int64_t>();
        py::gil_scoped_release release;
        const auto interval = bootstrap(all, u, g, {resamples, confidence, seed});
        py::gil_scoped_acquire acquire;
        return py::make_tuple(interval.low, interval.high);
      },
      py::arg("values"), py::arg("units") = py::none(), py::arg("groups") = py::none(), py::kw_only(),
      py::arg("resamples") = 1000, py::arg("confidence") = 0.95, py::arg("seed") = 0,
      R"(Percentile interval (bootstrap) of the mean of values, such as 1 for a right answer and 0 for a wrong one.

Parameters
----------
values : array [n]
units : array of int [n], optional
    What is drawn with replacement: the unit of each value (an image with all its captions); each value is its own.
groups : array of int [n], optional
    The mean is that of the groups' means (mean_per_class_recall).
resamples, confidence, seed
    The same seed draws the same units whatever the values.

Returns
-------
(float, float)
)");
  m.def(
      "vote",
      [](const FloatArray& scores, const IndexArray& labels, std::int64_t classes, float sharpness) {
        const auto seen = matrix_view(scores, "evaluation.vote", "scores");
        const Neighbors neighbors{seen.cols(), IndexMatrix::Zero(seen.rows(), seen.cols()), seen, {}};
        const std::span all(labels.data(), static_cast<std::size_t>(labels.size()));
        return to_numpy(vote(neighbors, all, classes, sharpness));
      },
      py::arg("scores"), py::arg("labels"), py::arg("classes"), py::arg("sharpness") = 10.0F,
      R"(Training-free: how the neighbours of n images vote on their labels.

Parameters
----------
scores : array [n, k]
    Similarities of the neighbours, as Memory.search gives them.
labels : array [n, k]
    Class of each neighbour; -1 for one that is none of the classes.
classes : int
sharpness : float
    Inverse temperature of the softmax over similarities.

Returns
-------
float32 [n, classes]
)");
  m.def(
      "blend",
      [](const FloatArray& cosines, const FloatArray& votes, float logit_scale, float weight) {
        return to_numpy(blend(matrix_view(cosines, "evaluation.blend", "cosines"),
                              matrix_view(votes, "evaluation.blend", "votes"), logit_scale, weight));
      },
      py::arg("cosines"), py::arg("votes"), py::arg("logit_scale"), py::arg("weight") = 0.5F,
      "Training-free: (1 - weight) * softmax(logit_scale * cosines) + weight * votes, all [n, classes].");
  m.def("harmonic_mean", &harmonic_mean, py::arg("a"), py::arg("b"), "2ab / (a + b); 0 when both are 0.");
  m.def(
      "prompts",
      [](const std::vector<std::string>& classnames, const std::vector<std::string>& templates) {
        return prompts(classnames, templates);
      },
      py::arg("classnames"), py::arg("templates"),
      "The prompts of all classes, class by class: each template with {} (or {c}) replaced by the class name.");
  m.def(
      "average_prompts",
      [](const FloatArray& embeddings, std::int64_t templates) {
        return to_numpy(
            average_prompts(matrix_view(embeddings, "evaluation.average_prompts", "embeddings"), templates));
      },
      py::arg("embeddings"), py::arg("templates"),
      "Average the embeddings [classes * templates, dim] of prompts() over the templates: [classes, dim] unit rows.");
}

}  // namespace reco::python
