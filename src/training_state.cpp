// SPDX-License-Identifier: Apache-2.0
#include "training_state.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "fusion_json.h"
#include "io/event_file.h"
#include "io/file.h"
#include "io/safetensors.h"
#include "io/sha256.h"
#include "reco/error.h"

namespace reco::training {

namespace {

using nlohmann::json;

constexpr const char* kFormat = "reco.training/2";

json curve_json(const std::vector<Record>& curve) {
  json out = json::array();
  for (const auto& r : curve) {
    out.push_back({r.epoch, r.learning_rate, r.loss, r.validation, r.data_seconds, r.step_seconds});
  }
  return out;
}

json running_json(const Running& r) { return {r.batches, r.loss, r.data_seconds, r.step_seconds}; }

// Views of tensors on the CPU.
void add(std::map<std::string, io::TensorView>& out, const std::string& group, const Parameters& parameters) {
  for (const auto& [name, value] : parameters) {
    const auto bytes = std::as_bytes(std::span(value.const_data_ptr<float>(), static_cast<std::size_t>(value.numel())));
    out[group + name] = {"F32", value.sizes().vec(), bytes};
  }
}

Parameters on_cpu(const Parameters& parameters) {
  Parameters out;
  for (const auto& [name, value] : parameters) out[name] = value.cpu();
  return out;
}

void read(const io::Safetensors& file, const std::string& group, Parameters& parameters) {
  for (auto& [name, value] : parameters) {
    const auto found = file.tensors().find(group + name);
    check(found != file.tensors().end() && found->second.shape == value.sizes().vec(), "training.resume", "tensor '",
          group + name, "' is missing or has another shape in ", file.path().string());
    auto read = at::empty(value.sizes(), at::kFloat);
    to_float32(found->second, {read.mutable_data_ptr<float>(), static_cast<std::size_t>(read.numel())}, name);
    value = read.to(value.device());
  }
}

void check_run(const io::Safetensors& file, const std::string& identity) {
  const auto& metadata = file.metadata();
  check(metadata.contains("format") && metadata.at("format") == kFormat && metadata.contains("run"), "training.resume",
        file.path().string(), " is no checkpoint of a training run");
  check(metadata.at("run") == identity, "training.resume", "the checkpoint ", file.path().string(),
        " belongs to another run: expected ", identity, ", found ", metadata.at("run"));
}

void read_progress(State& state, const json& progress) {
  state.epoch = progress.at("epoch");
  state.step = progress.at("step");
  state.best_epoch = progress.at("best_epoch");
  state.best_validation = progress.at("best_validation");
  state.curve.clear();
  for (const auto& r : progress.at("curve")) {
    state.curve.push_back({r.at(0), r.at(1), r.at(2), r.at(3), r.at(4), r.at(5)});
  }
  const auto& r = progress.at("running");
  state.running = {r.at(0), r.at(1), r.at(2), r.at(3)};
}

constexpr std::int64_t kSample = 4096;  // pairs whose embeddings and keys tell one data set from another

template <typename T>
void digest(io::Sha256& sha, std::span<const T> values) {
  sha.update(std::as_bytes(values));
}

void digest(io::Sha256& sha, std::span<const std::string> keys) {
  for (const auto& key : keys) digest(sha, std::span(key.c_str(), key.size() + 1));
}

void digest(io::Sha256& sha, const Matrix& rows) {
  digest(sha, std::span(rows.data(), static_cast<std::size_t>(rows.size())));
}

// Evenly spaced, all of them where there are few.
std::vector<std::int64_t> sample(std::int64_t size) {
  std::vector<std::int64_t> out(static_cast<std::size_t>(std::min(size, kSample)));
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i] =
        static_cast<std::int64_t>(static_cast<double>(i) * static_cast<double>(size) / static_cast<double>(out.size()));
  }
  return out;
}

// What tells these data from others of the same size: concepts, held-out rows, and a sample of embeddings and keys.
std::string digest(const TrainingData& data) {
  io::Sha256 sha;
  digest(sha, std::span(data.concepts));
  const std::set held_out(data.held_out.begin(), data.held_out.end());
  const std::vector ordered(held_out.begin(), held_out.end());
  digest(sha, std::span(ordered));
  auto rows = sample(data.pairs ? data.pairs->size() : data.images.rows());
  if (data.pairs) {
    const auto live = data.pairs->rows();
    for (auto& row : rows) row = live.at(static_cast<std::size_t>(row));
    digest(sha, std::span<const std::string>(data.pairs->keys(rows)));
    for (const auto side : {Modality::image, Modality::text}) digest(sha, data.pairs->embeddings(rows, side));
  } else {
    for (const auto row : rows) {
      if (!data.keys.empty()) digest(sha, std::span<const std::string>(&data.keys.at(row), 1));
    }
    for (const auto* side : {&data.images, &data.texts}) {
      for (const auto row : rows) digest(sha, std::span<const float>(side->row(row).data(), side->cols()));
    }
  }
  return sha.finish();
}

}  // namespace

bool learns(const FusionConfig& fusion, const std::string& name) {
  if (fusion.method != "gated") return true;
  const bool of_the_side = std::count(name.begin(), name.end(), '.') == 1;  // image.weight, not image.trust...weight
  const bool mean = of_the_side && (name.ends_with(".weight") || name.ends_with(".sharpness"));
  return !mean && !name.ends_with(".mean") && !name.ends_with(".std") && !name.ends_with(".metric");
}

std::string identity(const TrainingConfig& c, const TrainingData& data, const std::string& encoder) {
  const json out = {{"fusion", fusion_config_json(c.fusion)},
                    {"batch_size", c.batch_size},
                    {"micro_batch", c.micro_batch},
                    {"epochs", c.epochs},
                    {"learning_rate", c.learning_rate},
                    {"layer_rate", c.layer_rate},
                    {"gate_rate", c.gate_rate},
                    {"wrong_captions", c.wrong_captions},
                    {"random_rows", c.random_rows},
                    {"dropped", c.dropped},
                    {"random_k", c.random_k},
                    {"shrinkage", c.shrinkage},
                    {"warmup", c.warmup},
                    {"weight_decay", c.weight_decay},
                    {"loss", c.loss},
                    {"logit_scale", c.logit_scale},
                    {"learn_scale", c.learn_scale},
                    {"precision", c.precision},
                    {"max_similarity", c.max_similarity ? json(*c.max_similarity) : json()},
                    {"validation", c.validation},
                    {"seed", c.seed},
                    {"rows", data.pairs ? data.pairs->size() : data.images.rows()},
                    {"held_out", std::set(data.held_out.begin(), data.held_out.end()).size()},
                    {"data", digest(data)},
                    {"encoder", encoder}};
  return out.dump();
}

void save(const State& state, const std::filesystem::path& path, const std::string& identity) {
  const auto weights = on_cpu(state.parameters), first = on_cpu(state.first), second = on_cpu(state.second);
  std::map<std::string, io::TensorView> tensors;
  add(tensors, "weights.", weights);
  add(tensors, "first.", first);
  add(tensors, "second.", second);
  add(tensors, "best.", state.best);
  const json progress = {{"epoch", state.epoch},
                         {"step", state.step},
                         {"best_epoch", state.best_epoch},
                         {"best_validation", state.best_validation},
                         {"running", running_json(state.running)},
                         {"curve", curve_json(state.curve)}};
  io::write_safetensors(path, tensors, {{"format", kFormat}, {"run", identity}, {"progress", progress.dump()}});
}

void check_run(const std::filesystem::path& path, const std::string& identity) {
  check_run(io::Safetensors(path), identity);
}

void resume(State& state, const std::filesystem::path& path, const std::string& identity) {
  const io::Safetensors file(path);
  check_run(file, identity);
  read(file, "weights.", state.parameters);
  read(file, "first.", state.first);
  read(file, "second.", state.second);
  state.best = on_cpu(state.parameters);
  read(file, "best.", state.best);
  try {
    read_progress(state, json::parse(file.metadata().at("progress")));
  } catch (const std::exception& error) {
    fail("training.resume", "malformed progress in ", path.string(), ": ", error.what());
  }
}

void write_log(const State& state, const std::filesystem::path& path) {
  std::ostringstream out;
  out << "epoch,learning_rate,loss,validation_accuracy,data_seconds,step_seconds\n";
  for (const auto& r : state.curve) {
    out << r.epoch << ',' << r.learning_rate << ',' << r.loss << ',' << r.validation << ',' << r.data_seconds << ','
        << r.step_seconds << '\n';
  }
  const auto text = out.str();
  const std::span<const std::byte> bytes = std::as_bytes(std::span(text));
  io::write_file_durably(path, std::span(&bytes, 1));
}

void write_tensorboard(const State& state, const std::filesystem::path& folder) {
  std::vector<io::Scalar> scalars;
  for (const auto& r : state.curve) {
    if (r.epoch > 0) {
      scalars.push_back({r.epoch, "loss", static_cast<float>(r.loss)});
      scalars.push_back({r.epoch, "learning_rate", static_cast<float>(r.learning_rate)});
      scalars.push_back({r.epoch, "data_seconds", static_cast<float>(r.data_seconds)});
      scalars.push_back({r.epoch, "step_seconds", static_cast<float>(r.step_seconds)});
    }
    scalars.push_back({r.epoch, "validation_accuracy", static_cast<float>(r.validation)});
  }
  std::error_code failed;
  std::filesystem::create_directories(folder, failed);
  check(!failed, "training.train", "cannot make the folder ", folder.string(), ": ", failed.message());
  // One file, written anew: a resumed run goes on with the same curve.
  io::write_event_file(folder / "events.out.tfevents.0.reco", scalars);
}

}  // namespace reco::training
