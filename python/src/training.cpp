// SPDX-License-Identifier: Apache-2.0
#include "reco/training.h"

#include "helpers.h"

namespace reco::python {

namespace {

// Arrays of images and texts, or a memory of pairs.
TrainingData training_data(const py::object& images, const py::object& texts, std::vector<std::string> keys,
                           std::vector<std::int64_t> concepts) {
  TrainingData data{{}, {}, {}, std::move(keys), std::move(concepts)};
  if (py::isinstance<Memory>(images)) {
    check(texts.is_none(), "training.train", "a memory of pairs holds the texts too: texts must be None");
    data.pairs = images.cast<Memory>();
    return data;
  }
  check(!texts.is_none(), "training.train", "texts are missing");
  data.images = matrix_view(images.cast<FloatArray>(), "training.train", "images");
  data.texts = matrix_view(texts.cast<FloatArray>(), "training.train", "texts");
  return data;
}

Fusion train_pairs(const py::object& images, const py::object& texts, const MemoryBase& memory,
                   const TrainingConfig& config, std::vector<std::string> keys, std::vector<std::int64_t> concepts,
                   std::optional<py::function> progress) {
  const auto data = training_data(images, texts, std::move(keys), std::move(concepts));
  const auto report = interruptible(std::move(progress));
  py::gil_scoped_release release;
  return train(data, memory, config, report);
}

}  // namespace

void init_training(py::module_& m) {
  py::class_<TrainingConfig> config(m, "TrainingConfig", R"(How a fusion is trained (RECO, arXiv 2306.07196).

Parameters
----------
fusion : FusionConfig
batch_size : int
    Pairs a step; at most one a concept.
micro_batch : int
    Pairs whose gradients are held at a time, 0 for all; the result is the same (GradCache, arXiv 2101.06983).
epochs : int
    One epoch shows each concept once, through one of its pairs.
learning_rate : float
    Peak of a linear warm-up and cosine decay.
layer_rate : float
    Share of it for the encoder layers of "gated", which memorise where the rest looks up.
gate_rate : float
    Share of it for trust and confidence of "gated", which learn from labels.
wrong_captions, random_rows, dropped, random_k : float
    Shares of a step's pairs whose neighbours get the partner of another pair's neighbour, are replaced by other pairs,
    go (up to half of them), or are cut to the first few: what the gate learns from. 0 for all four: clean training.
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
tensorboard : path
    Folder for the same curve as a TensorBoard event file; empty: none.
checkpoint : path
    Written while training, resumed from when it is there; empty: none.
)");
  Options(config)
      .field("fusion", &TrainingConfig::fusion)
      .field("batch_size", &TrainingConfig::batch_size)
      .field("micro_batch", &TrainingConfig::micro_batch)
      .field("epochs", &TrainingConfig::epochs)
      .field("learning_rate", &TrainingConfig::learning_rate)
      .field("layer_rate", &TrainingConfig::layer_rate)
      .field("gate_rate", &TrainingConfig::gate_rate)
      .field("wrong_captions", &TrainingConfig::wrong_captions)
      .field("random_rows", &TrainingConfig::random_rows)
      .field("dropped", &TrainingConfig::dropped)
      .field("random_k", &TrainingConfig::random_k)
      .field("warmup", &TrainingConfig::warmup)
      .field("weight_decay", &TrainingConfig::weight_decay)
      .field("loss", &TrainingConfig::loss)
      .field("logit_scale", &TrainingConfig::logit_scale)
      .field("learn_scale", &TrainingConfig::learn_scale)
      .field("max_similarity", &TrainingConfig::max_similarity)
      .field("validation", &TrainingConfig::validation)
      .field("seed", &TrainingConfig::seed)
      .field("log", &TrainingConfig::log)
      .field("tensorboard", &TrainingConfig::tensorboard)
      .field("checkpoint", &TrainingConfig::checkpoint)
      .init();

  m.def("train", &train_pairs, py::arg("images"), py::arg("texts"), py::arg("memory"), py::arg("config"), py::kw_only(),
        py::arg("keys") = std::vector<std::string>{}, py::arg("concepts") = std::vector<std::int64_t>{},
        py::arg("progress") = py::none(),
        R"(Train a fusion; embeddings and memory stay as they are.

Parameters
----------
images, texts : array [n, dim]
    Unit rows, pair by pair. Or a Memory of pairs and None: its float16 shards are read batch by batch.
memory : MemoryBase
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
