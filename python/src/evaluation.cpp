// SPDX-License-Identifier: Apache-2.0
#include "reco/evaluation.h"

#include "helpers.h"

namespace reco::python {

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
