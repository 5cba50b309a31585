// SPDX-License-Identifier: Apache-2.0
#include "reco/training.h"

#include "helpers.h"

namespace reco::python {

namespace {

TrainingConfig make_config(FusionConfig fusion, std::int64_t batch_size, std::int64_t epochs, double learning_rate,
                           double layer_rate, double warmup, double weight_decay, std::array<double, 3> loss,
                           double logit_scale, bool learn_scale, std::optional<float> max_similarity, double validation,
                           std::uint64_t seed, const std::filesystem::path& log,
                           const std::filesystem::path& checkpoint) {
  TrainingConfig config{
      std::move(fusion), batch_size,  epochs,         learning_rate, layer_rate, warmup, weight_decay, loss,
      logit_scale,       learn_scale, max_similarity, validation,    seed,       log,    checkpoint};
  validate(config);
  return config;
}

Fusion train_arrays(const FloatArray& images, const FloatArray& texts, const Memory& memory,
                    const TrainingConfig& config, std::vector<std::string> keys, std::vector<std::int64_t> concepts,
                    std::optional<py::function> progress) {
  const TrainingData data{matrix_view(images, "training.train", "images"),
                          matrix_view(texts, "training.train", "texts"), std::move(keys), std::move(concepts)};
  const auto report = interruptible(std::move(progress));
  py::gil_scoped_release release;
  return train(data, memory, config, report);
}

}  // namespace

void init_training(py::module_& m) {
  const TrainingConfig d;
  py::class_<TrainingConfig>(m, "TrainingConfig", R"(How a fusion is trained (RECO, arXiv 2306.07196).

Parameters
----------
fusion : FusionConfig
batch_size : int
    Pairs a step; at most one a concept.
epochs : int
    One epoch shows each concept once, through one of its pairs.
learning_rate : float
    Peak of a linear warm-up and cosine decay.
layer_rate : float
    Share of it for the encoder layers of "gated", which memorise where the rest looks up.
warmup : float
    Share of the steps that warm up.
weight_decay : float
    AdamW's, on matrices only.
loss : (float, float, float)
    Weights of NCE(v^, t^), NCE(v^, t) and NCE(v, t^).
logit_scale : float
    Factor on cosines in the loss.
learn_scale : bool
    Train that factor too.
max_similarity : float, optional
    Image neighbours more similar than this are left out as near-duplicates.
validation : float
    Share of the concepts that is held out to choose the best epoch.
seed : int
log : path
    CSV learning curve; empty: none.
checkpoint : path
    Written while training, resumed from when it is there; empty: none.
)")
      .def(py::init(&make_config), py::kw_only(), py::arg("fusion") = d.fusion, py::arg("batch_size") = d.batch_size,
           py::arg("epochs") = d.epochs, py::arg("learning_rate") = d.learning_rate,
           py::arg("layer_rate") = d.layer_rate, py::arg("warmup") = d.warmup, py::arg("weight_decay") = d.weight_decay,
           py::arg("loss") = d.loss, py::arg("logit_scale") = d.logit_scale, py::arg("learn_scale") = d.learn_scale,
           py::arg("max_similarity") = py::none(), py::arg("validation") = d.validation, py::arg("seed") = d.seed,
           py::arg("log") = "", py::arg("checkpoint") = "")
      .def_readonly("fusion", &TrainingConfig::fusion)
      .def_readonly("batch_size", &TrainingConfig::batch_size)
      .def_readonly("epochs", &TrainingConfig::epochs)
      .def_readonly("learning_rate", &TrainingConfig::learning_rate)
      .def_readonly("layer_rate", &TrainingConfig::layer_rate)
      .def_readonly("warmup", &TrainingConfig::warmup)
      .def_readonly("weight_decay", &TrainingConfig::weight_decay)
      .def_readonly("loss", &TrainingConfig::loss)
      .def_readonly("logit_scale", &TrainingConfig::logit_scale)
      .def_readonly("learn_scale", &TrainingConfig::learn_scale)
      .def_readonly("max_similarity", &TrainingConfig::max_similarity)
      .def_readonly("validation", &TrainingConfig::validation)
      .def_readonly("seed", &TrainingConfig::seed);

  m.def("train", &train_arrays, py::arg("images"), py::arg("texts"), py::arg("memory"), py::arg("config"),
        py::kw_only(), py::arg("keys") = std::vector<std::string>{}, py::arg("concepts") = std::vector<std::int64_t>{},
        py::arg("progress") = py::none(),
        R"(Train a fusion; embeddings and memory stay as they are.

Parameters
----------
images, texts : array [n, dim]
    Unit rows, pair by pair.
memory : Memory
config : TrainingConfig
keys : list of str, optional
    A pair's own key in the memory is left out of its neighbours.
concepts : list of int, optional
    Pairs of one concept never meet in a batch.
progress : callable, optional
    Called with (epochs done, epochs); return False to stop.

Returns
-------
Fusion
    The epoch with the best held-out accuracy, the untrained start among them.

Raises
------
Error
    For data that does not fit, or a loss that is not finite.
)");
}

}  // namespace reco::python
