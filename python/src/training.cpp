// SPDX-License-Identifier: Apache-2.0
#include "reco/training.h"

#include "helpers.h"
#include "options.h"

namespace reco::python {

namespace {

// Arrays of images and texts, or a memory of pairs.
TrainingData training_data(const py::object& images, const py::object& texts, std::vector<std::string> keys,
                           std::vector<std::int64_t> concepts, std::vector<std::int64_t> held_out) {
  TrainingData data{{}, {}, {}, std::move(keys), std::move(concepts), std::move(held_out)};
  if (py::isinstance<Memory>(images)) {
    check(texts.is_none(), "training.train", "a memory of pairs holds the texts too: texts must be None");
    data.pairs = images.cast<Memory>();
    return data;
  }
  check(!texts.is_none(), "training.train", "texts are missing");
  data.images = matrix_view(float_array(images), "training.train", "images");
  data.texts = matrix_view(float_array(texts), "training.train", "texts");
  return data;
}

std::vector<std::int64_t> numbers(const std::optional<IndexArray>& array) {
  if (!array) return {};
  return {array->data(), array->data() + array->size()};
}

Fusion train_pairs(const py::object& images, const py::object& texts, const MemoryBase& memory,
                   const TrainingConfig& config, std::optional<std::vector<std::string>> keys,
                   const std::optional<IndexArray>& concepts, const std::optional<IndexArray>& held_out,
                   const py::object& progress) {
  const auto data = training_data(images, texts, std::move(keys).value_or(std::vector<std::string>{}),
                                  numbers(concepts), numbers(held_out));
  const ProgressArgument reporter(progress, "train", " epochs");
  const LongCall unlocked;
  return train(data, memory, config, reporter.function());
}

/// An empty path is None in Python.
void add_path(Options<TrainingConfig>& options, const char* name, std::filesystem::path TrainingConfig::*member,
              const char* doc) {
  options.field(
      name,
      [member](const TrainingConfig& config) -> py::object {
        return (config.*member).empty() ? py::object(py::none()) : py::cast(config.*member);
      },
      [member](TrainingConfig& config, const py::handle& value) {
        config.*member = value.is_none() ? std::filesystem::path() : py::cast<std::filesystem::path>(value);
      },
      doc);
}

void add_loss(Options<TrainingConfig>& options) {
  options.field(
      "loss", [](const TrainingConfig& config) { return py::tuple(py::cast(config.loss)); },
      [](TrainingConfig& config, const py::handle& value) { config.loss = py::cast<std::array<double, 3>>(value); },
      "Weights of NCE(v^, t^), NCE(v^, t) and NCE(v, t^): tuple of 3 float.");
}

void init_config(py::module_& m) {
  Options<TrainingConfig> options("TrainingConfig",
                                  R"(How a fusion is trained (RECO, arXiv 2306.07196, section 3). Immutable.

Parameters
----------
fusion : FusionConfig
    What to train.
batch_size : int
    Pairs a step; at most one a concept.
micro_batch : int
    Pairs whose gradients are held at a time, 0 for all; the result is the same (GradCache, arXiv 2101.06983).
epochs : int
    One epoch shows each concept once, through one of its pairs.
learning_rate : float
    Peak of a linear warm-up and cosine decay (arXiv 1608.03983).
layer_rate : float
    Share of it for the encoder layers of "gated", which memorise where the rest looks up.
gate_rate : float
    Share of it for trust and confidence of "gated", which learn from labels.
wrong_captions, random_rows, dropped, random_k : float
    Shares of a step's pairs whose neighbours get the partner of another pair's neighbour, are replaced by other pairs,
    go (up to half of them), or are cut to the first few: what the gate learns from. 0 for all four: clean training.
shrinkage : float
    Of fusion.metric, a share of the mean eigenvalue of the scatter: more stays closer to plain cosines.
warmup : float
    Share of the steps that warm up.
weight_decay : float
    AdamW's (arXiv 1711.05101), on matrices only.
loss : (float, float, float)
    Weights of NCE(v^, t^), NCE(v^, t) and NCE(v, t^): v and t are CLIP's embeddings, v^ and t^ the refined ones, NCE is
    InfoNCE in both directions (arXiv 1807.03748).
logit_scale : float
    Factor on cosines in the loss.
learn_scale : bool
    Train that factor too.
precision : str
    "float32", or "bfloat16" for the matrices of the encoder layers and what is multiplied with them; weights, their
    updates, the gate, the refined embeddings and the loss stay in float32.
device : str
    "cpu", "cuda" or "cuda:N": where steps and validation are computed; data stay on the CPU.
max_similarity : float, optional
    Image neighbours more similar than this are left out as near-duplicates.
validation : float
    Share of the concepts that is held out to choose the best epoch.
seed : int
    Of weights, batches and spoiled neighbours.
log : str or Path, optional
    CSV file for the learning curve.
tensorboard : str or Path, optional
    Folder for the same curve as a TensorBoard event file.
checkpoint : str or Path, optional
    Written while training (after up to twenty of the epochs, within one every 256 steps), resumed from when it is
    there.
neighbors : str or Path, optional
    Folder for the neighbours found, and to find them in again: a later run on the same pairs and memory, with this k or
    a smaller one, does not search. Without it they are held in memory, 24 k bytes a pair, or, until training is done, in
    a folder beside the checkpoint.

Raises
------
Error
    For a value out of range; names it.
)");
  options.field("fusion", &TrainingConfig::fusion, "What to train: FusionConfig.")
      .field("batch_size", &TrainingConfig::batch_size, "Pairs a step.")
      .field("micro_batch", &TrainingConfig::micro_batch, "Pairs whose gradients are held at a time; 0: all.")
      .field("epochs", &TrainingConfig::epochs, "Times that each concept is shown.")
      .field("learning_rate", &TrainingConfig::learning_rate, "Its peak.")
      .field("layer_rate", &TrainingConfig::layer_rate, "Share of the learning rate for encoder layers.")
      .field("gate_rate", &TrainingConfig::gate_rate, "Share of the learning rate for trust and confidence.")
      .field("wrong_captions", &TrainingConfig::wrong_captions, "Share of pairs whose neighbours get wrong partners.")
      .field("random_rows", &TrainingConfig::random_rows, "Share of pairs whose neighbours are replaced.")
      .field("dropped", &TrainingConfig::dropped, "Share of pairs that lose up to half of their neighbours.")
      .field("random_k", &TrainingConfig::random_k, "Share of pairs that keep only the first few neighbours.")
      .field("shrinkage", &TrainingConfig::shrinkage, "How far the metric stays with plain cosines.")
      .field("warmup", &TrainingConfig::warmup, "Share of the steps that warm up.")
      .field("weight_decay", &TrainingConfig::weight_decay, "AdamW's, on matrices only.");
  add_loss(options);
  options.field("logit_scale", &TrainingConfig::logit_scale, "Factor on cosines in the loss.")
      .field("learn_scale", &TrainingConfig::learn_scale, "Whether that factor is trained.")
      .field("precision", &TrainingConfig::precision, "Of the encoder layers: float32 or bfloat16.")
      .field("device", &TrainingConfig::device, "Where steps are computed: cpu, cuda or cuda:N.")
      .field("max_similarity", &TrainingConfig::max_similarity, "Image neighbours above this are left out; None: none.")
      .field("validation", &TrainingConfig::validation, "Share of the concepts that is held out.")
      .field("seed", &TrainingConfig::seed, "Of weights, batches and spoiled neighbours.");
  add_path(options, "log", &TrainingConfig::log, "CSV file for the learning curve, or None.");
  add_path(options, "tensorboard", &TrainingConfig::tensorboard, "Folder for TensorBoard, or None.");
  add_path(options, "checkpoint", &TrainingConfig::checkpoint, "File to resume from, or None.");
  add_path(options, "neighbors", &TrainingConfig::neighbors, "Folder for the neighbours found, or None.");
  options.define(m, [](const TrainingConfig& config) { validate(config); });
}

}  // namespace

void init_training(py::module_& m) {
  init_config(m);
  define(m, "train", &train_pairs, py::arg("images"), py::arg("texts"), py::arg("memory"), py::arg("config"),
         py::kw_only(), py::arg("keys") = py::none(), py::arg("concepts") = py::none(),
         py::arg("held_out") = py::none(), py::arg("progress") = py::none(),
         R"(Train a fusion (RECO, arXiv 2306.07196, section 3); embeddings and memory stay as they are.

Parameters
----------
images : array [n, dim], or Memory
    Unit rows. Or a memory of pairs, whose rows are read batch by batch.
texts : array [n, dim], or None
    Unit rows, pair by pair; None with a memory of pairs.
memory : MemoryBase
    Where neighbours are looked up.
config : TrainingConfig
keys : list of str, optional
    A pair's own key in the memory is left out of its neighbours.
concepts : array of int [n], optional
    Pairs of one concept never meet in a batch.
held_out : array of int [m], optional
    Row numbers of pairs that are never learned from, 4,096 concepts at most: the mean that training starts from, and the
    best epoch, are chosen by the accuracy on them. Best are queries like those to come. Without it, config.validation.
progress : bool or callable, optional
    True for a progress bar on standard error; or called with (epochs done, epochs), returning False stops with an Error.
    Ctrl-C stops too; a checkpoint of the config's goes on from its last epoch.

Returns
-------
Fusion
    The epoch with the best held-out accuracy, the untrained start among them.

Raises
------
Error
    For data, neighbours or a checkpoint that do not fit, more memory than there is, a device that is not there, or a
    loss that diverges.
)");
}

}  // namespace reco::python
