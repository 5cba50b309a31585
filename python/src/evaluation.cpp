// SPDX-License-Identifier: Apache-2.0
#include "reco/evaluation.h"

#include "helpers.h"

namespace reco::python {

namespace {

using DoubleArray = py::array_t<double, py::array::c_style | py::array::forcecast>;

std::span<const std::int64_t> numbers(const IndexArray& array) {
  return {array.data(), static_cast<std::size_t>(array.size())};
}

std::span<const std::int64_t> numbers(const std::optional<IndexArray>& array) {
  return array ? numbers(*array) : std::span<const std::int64_t>();
}

/// Runs work without the GIL.
template <typename Work>
auto unlocked(const Work& work) {
  const LongCall guard;
  return work();
}

py::array_t<std::int64_t> to_array(const std::vector<std::int64_t>& values) {
  return py::array_t<std::int64_t>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::tuple classify_images(const FloatArray& images, const FloatArray& classes, const IndexArray& labels) {
  const auto a = matrix_view(images, "evaluation.classify", "images");
  const auto b = matrix_view(classes, "evaluation.classify", "classes");
  const auto r = unlocked([&] { return classify(a, b, numbers(labels)); });
  return py::make_tuple(py::dict(py::arg("acc1") = r.acc1, py::arg("acc5") = r.acc5,
                                 py::arg("mean_per_class_recall") = r.mean_per_class_recall),
                        to_array(r.predictions));
}

py::dict retrieve_pairs(const FloatArray& images, const FloatArray& texts, const IndexArray& image_of_text) {
  const auto a = matrix_view(images, "evaluation.retrieve", "images");
  const auto b = matrix_view(texts, "evaluation.retrieve", "texts");
  const auto r = unlocked([&] { return retrieve(a, b, numbers(image_of_text)); });
  py::dict out;
  out["image_retrieval_recall@1"] = r.image_recall_at_1;
  out["image_retrieval_recall@5"] = r.image_recall_at_5;
  out["image_retrieval_recall@10"] = r.image_recall_at_10;
  out["text_retrieval_recall@1"] = r.text_recall_at_1;
  out["text_retrieval_recall@5"] = r.text_recall_at_5;
  out["text_retrieval_recall@10"] = r.text_recall_at_10;
  return out;
}

py::array_t<std::int64_t> ranks_of(const FloatArray& queries, const FloatArray& candidates, const IndexArray& targets,
                                   const std::optional<IndexArray>& target_queries) {
  const auto a = matrix_view(queries, "evaluation.ranks", "queries");
  const auto b = matrix_view(candidates, "evaluation.ranks", "candidates");
  return to_array(unlocked([&] { return ranks(a, b, numbers(targets), numbers(target_queries)); }));
}

py::tuple bootstrap_mean(const DoubleArray& values, const std::optional<IndexArray>& units,
                         const std::optional<IndexArray>& groups, std::int64_t resamples, double confidence,
                         std::uint64_t seed) {
  const std::span all(values.data(), static_cast<std::size_t>(values.size()));
  const auto interval = unlocked([&] {
    return bootstrap(all, numbers(units), numbers(groups), {resamples, confidence, seed});
  });
  return py::make_tuple(interval.low, interval.high);
}

py::array_t<float> vote_on_labels(const FloatArray& scores, const IndexArray& labels, std::int64_t classes,
                                  float sharpness) {
  const auto seen = matrix_view(scores, "evaluation.vote", "scores");
  return to_numpy(unlocked([&] {
    const Neighbors neighbors{seen.cols(), IndexMatrix::Zero(seen.rows(), seen.cols()), seen, {}};
    return vote(neighbors, numbers(labels), classes, sharpness);
  }));
}

py::array_t<float> blend_votes(const FloatArray& cosines, const FloatArray& votes, float logit_scale, float weight) {
  const auto a = matrix_view(cosines, "evaluation.blend", "cosines");
  const auto b = matrix_view(votes, "evaluation.blend", "votes");
  return to_numpy(unlocked([&] { return blend(a, b, logit_scale, weight); }));
}

py::array_t<float> average(const FloatArray& embeddings, std::int64_t templates) {
  const auto all = matrix_view(embeddings, "evaluation.average_prompts", "embeddings");
  return to_numpy(unlocked([&] { return average_prompts(all, templates); }));
}

void init_metrics(py::module_& m) {
  define(m, "classify", &classify_images, py::arg("images"), py::arg("classes"), py::arg("labels"),
         R"(Classify images among classes by cosine, and count what is right.

Parameters
----------
images : array [n, dim]
    Embeddings; any float dtype, strides, tensors of other libraries.
classes : array [c, dim]
    One embedding a class.
labels : array of int [n]
    Right class of each image, 0 to c - 1.

Returns
-------
(dict, int64 array [n])
    acc1, acc5 and mean_per_class_recall from 0 to 1, as CLIP_benchmark defines them, and the predicted classes. Of
    equal scores the lower class wins.

Raises
------
Error
    For shapes or labels that do not fit.

Examples
--------
>>> import reco
>>> reco.classify([[1.0, 0.0], [0.6, 0.8]], [[1.0, 0.0], [0.0, 1.0]], [0, 0])[0]["acc1"]
0.5
)");
  define(m, "retrieve", &retrieve_pairs, py::arg("images"), py::arg("texts"), py::arg("image_of_text"),
         R"(Retrieval between images and texts, by cosine.

Parameters
----------
images : array [n, dim]
texts : array [m, dim]
image_of_text : array of int [m]
    Row of each text's image; an image counts as found when any of its texts is among the first k.

Returns
-------
dict
    image_retrieval_recall@k (text to image) and text_retrieval_recall@k (image to text) from 0 to 1, for k = 1, 5, 10,
    as CLIP_benchmark defines them.

Raises
------
Error
    For shapes or rows that do not fit.
)");
  define(m, "ranks", &ranks_of, py::arg("queries"), py::arg("candidates"), py::arg("targets"),
         py::arg("target_queries") = py::none(),
         R"(Place of each query's best right candidate by cosine; of equal scores the lower row is the better.

Parameters
----------
queries : array [n, dim]
candidates : array [m, dim]
targets : array of int [t]
    A right candidate of query i, or of query target_queries[i].
target_queries : array of int [t], optional
    For queries with several right candidates, or none.

Returns
-------
int64 array [n]
    0 for the best place, m for a query without a target.

Raises
------
Error
    For shapes or rows that do not fit.
)");
  define(m, "bootstrap", &bootstrap_mean, py::arg("values"), py::arg("units") = py::none(),
         py::arg("groups") = py::none(), py::kw_only(), py::arg("resamples") = 1000, py::arg("confidence") = 0.95,
         py::arg("seed") = 0,
         R"(Percentile interval of the mean of values (Efron's bootstrap).

Parameters
----------
values : array of float [n]
    Such as 1 for a right answer and 0 for a wrong one.
units : array of int [n], optional
    What is drawn with replacement: the unit of each value (an image with all its captions). Each value is its own
    if not given.
groups : array of int [n], optional
    The mean is that of the groups' means (mean_per_class_recall).
resamples : int
confidence : float
    Share of the resamples inside the interval, above 0 and below 1.
seed : int
    The same seed draws the same units whatever the values.

Returns
-------
(float, float)
    Low and high end.

Raises
------
Error
    For no values, values that are not finite, sizes that do not fit, options out of range.
)");
}

void init_training_free(py::module_& m) {
  define(m, "vote", &vote_on_labels, py::arg("scores"), py::arg("labels"), py::arg("classes"),
         py::arg("sharpness") = 10.0,
         R"(Training-free: how the neighbours of n images vote on their labels.

Parameters
----------
scores : array [n, k]
    Similarities of the neighbours, as Memory.search gives them.
labels : array of int [n, k]
    Class of each neighbour; -1 for one that is none of the classes.
classes : int
    How many there are.
sharpness : float
    Inverse temperature of the softmax over similarities.

Returns
-------
float32 array [n, classes]
    Sum of the weights of each class's neighbours; a row adds up to 1 at most.

Raises
------
Error
    For labels that do not fit.
)");
  define(m, "blend", &blend_votes, py::arg("cosines"), py::arg("votes"), py::arg("logit_scale"),
         py::arg("weight") = 0.5,
         R"(Training-free: (1 - weight) * softmax(logit_scale * cosines) + weight * votes.

Parameters
----------
cosines : array [n, classes]
    Of images and classes.
votes : array [n, classes]
    What vote() gave.
logit_scale : float
    CLIP's factor before the softmax.
weight : float
    Of the votes, 0 to 1.

Returns
-------
float32 array [n, classes]
    Probabilities.

Raises
------
Error
    For shapes that differ, or a weight out of range.
)");
}

}  // namespace

void init_evaluation(py::module_& m) {
  init_metrics(m);
  init_training_free(m);
  define(m, "harmonic_mean", &harmonic_mean, py::arg("a"), py::arg("b"),
         R"(2ab / (a + b); 0 when both are 0. OVEN's mean of seen and unseen accuracy (arXiv 2302.11154).

Parameters
----------
a, b : float

Returns
-------
float

Examples
--------
>>> import reco
>>> reco.harmonic_mean(0.5, 1.0)
0.6666666666666666
)");
  define(
      m, "prompts",
      [](const std::vector<std::string>& classnames, const std::vector<std::string>& templates) {
        return unlocked([&] { return prompts(classnames, templates); });
      },
      py::arg("classnames"), py::arg("templates"),
      R"(The prompts of all classes, class by class.

Parameters
----------
classnames : list of str
templates : list of str
    Each with {} (or {c}) where the class name goes.

Returns
-------
list of str
    len(classnames) * len(templates) prompts.

Raises
------
Error
    For a template without a place for the name.

Examples
--------
>>> import reco
>>> reco.prompts(["cat"], ["a photo of a {}.", "a drawing of a {}."])
['a photo of a cat.', 'a drawing of a cat.']
)");
  define(m, "average_prompts", &average, py::arg("embeddings"), py::arg("templates"),
         R"(Average the embeddings of prompts() over the templates.

Parameters
----------
embeddings : array [classes * templates, dim]
    In the order of prompts().
templates : int
    How many there are.

Returns
-------
float32 array [classes, dim]
    Unit rows.

Raises
------
Error
    For a number of rows that is no multiple of templates.
)");
}

}  // namespace reco::python
