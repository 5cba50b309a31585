// SPDX-License-Identifier: Apache-2.0
#include "reco/clip.h"

#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <array>
#include <functional>
#include <future>
#include <nlohmann/json.hpp>
#include <numeric>
#include <system_error>
#include <utility>

#include "clip_config.h"
#include "clip_model.h"
#include "clip_weights.h"
#include "io/sha256.h"
#include "parallel.h"
#include "reco/error.h"
#include "reco/threads.h"
#include "use_threads.h"

namespace reco {

namespace fs = std::filesystem;
using nlohmann::json;

/// What load() made; everything below works on it.
struct LoadedClip {
  ClipOptions options;
  ClipConfig config;
  Preprocess preprocess;
  Tokenizer tokenizer;
  ClipModel model;
  std::string weights_dtype, fingerprint;
  std::int64_t parameters = 0;
};

struct Clip::Impl : LoadedClip {};

namespace {

constexpr const char* kLoad = "clip.load";
constexpr const char* kImages = "clip.encode_images";
constexpr const char* kTexts = "clip.encode_texts";

/// Runs work in inference mode on threads() threads; what LibTorch and the system throw becomes an Error.
template <typename Work>
auto run(const char* tag, const Work& work) {
  try {
    use_threads();
    if (at::get_num_threads() != threads()) at::set_num_threads(threads());
    const c10::InferenceMode guard;
    return work();
  } catch (const c10::Error& error) {
    fail(tag, "LibTorch: ", error.what_without_backtrace());
  } catch (const std::system_error& error) {
    fail(tag, error.what());
  }
}

at::Device parse_device(const std::string& name) {
  if (name == "cpu") return at::Device(at::kCPU);
  const std::string number = name.size() > 5 ? name.substr(5) : "0";
  const bool cuda = name == "cuda" || (name.rfind("cuda:", 0) == 0 && number.size() <= 3 &&
                                       number.find_first_not_of("0123456789") == std::string::npos);
  check(cuda, kLoad, "device must be 'cpu', 'cuda' or 'cuda:N', got '", name, "'");
  check(at::hasCUDA(), kLoad, "device '", name, "' was asked for, but there is no GPU that this LibTorch can use");
  const auto gpus = static_cast<std::int64_t>(at::getNumGPUs());
  check(std::stoll(number) < gpus, kLoad, "device '", name, "' was asked for, but there are ", gpus, " GPUs");
  return at::Device(at::kCUDA, static_cast<at::DeviceIndex>(std::stoi(number)));
}

at::ScalarType parse_dtype(const std::string& name) {
  check(name == "float32" || name == "bfloat16", kLoad, "dtype must be 'float32' or 'bfloat16', got '", name, "'");
  return name == "float32" ? at::kFloat : at::kBFloat16;
}

void check_preprocess(const Preprocess& preprocess, const ClipConfig& config, const fs::path& file) {
  if (!preprocess.do_center_crop) return;
  const std::int64_t size = config.vision.image_size;
  check(preprocess.crop_width == size && preprocess.crop_height == size, kLoad, file.string(), ": crops to ",
        preprocess.crop_width, " x ", preprocess.crop_height, ", but config.json has image_size ", size);
}

void check_tokenizer(const Tokenizer& tokenizer, const ClipConfig& config, const fs::path& folder) {
  const std::int64_t end = tokenizer.end_id(), eos = config.text.eos_token_id;
  check(eos == 2 || eos == end, kLoad, folder.string(), ": config.json has eos_token_id ", eos,
        ", but the tokenizer's end token is ", end);
  check(std::max(end, tokenizer.start_id()) < config.text.vocab_size, kLoad, folder.string(),
        ": the tokenizer's start and end tokens are ", tokenizer.start_id(), " and ", end,
        ", but config.json has vocab_size ", config.text.vocab_size);
}

json preprocess_json(const Preprocess& p) {
  return {{"do_resize", p.do_resize},
          {"shortest_edge", p.shortest_edge},
          {"resize_width", p.resize_width},
          {"resize_height", p.resize_height},
          {"resample", static_cast<int>(p.resample)},
          {"do_center_crop", p.do_center_crop},
          {"crop_width", p.crop_width},
          {"crop_height", p.crop_height},
          {"do_rescale", p.do_rescale},
          {"rescale_factor", p.rescale_factor},
          {"do_normalize", p.do_normalize},
          {"mean", p.mean},
          {"std", p.std}};
}

/// Tells tokenizers apart by what they do, since one and the same comes in several file formats.
std::string probe_tokenizer(const Tokenizer& tokenizer) {
  const std::array<std::string, 4> texts{
      "A photo of a cat, 2 dogs & the Eiffel Tower (1889) in black-and-white!",
      "the quick brown fox jumps over the lazy dog; it's we'll they've I'm don't you're he'd",
      "caf\u00e9 na\u00efve \u041c\u043e\u0441\u043a\u0432\u0430 \u6771\u4eac \U0001f600 \u20ac5.00 #hashtag @user",
      "0123456789 !\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"};
  json ids = json::array();
  for (const std::string& text : texts) ids.push_back(tokenizer.encode(text, 256));
  const std::string dump = ids.dump();
  return io::sha256(std::as_bytes(std::span(dump)));
}

std::string make_fingerprint(const ClipConfig& config, const Preprocess& preprocess, const Tokenizer& tokenizer,
                             const ClipWeights& weights) {
  json description = config.json();
  description["format"] = "reco-clip-1";
  description["preprocess"] = preprocess_json(preprocess);
  description["tokenizer"] = probe_tokenizer(tokenizer);
  return weights.fingerprint(description.dump());
}

LoadedClip load_clip(const fs::path& folder, const ClipOptions& options) {
  const at::ScalarType dtype = parse_dtype(options.dtype);
  const at::Device device = parse_device(options.device);
  check(fs::is_directory(folder), kLoad, folder.string(), " is no folder");
  const ClipConfig config = ClipConfig::load(folder / "config.json");
  const fs::path preprocess_file = folder / "preprocessor_config.json";
  const Preprocess preprocess = Preprocess::load(preprocess_file);
  check_preprocess(preprocess, config, preprocess_file);
  const Tokenizer tokenizer = Tokenizer::load(folder);
  check_tokenizer(tokenizer, config, folder);
  const ClipWeights weights(folder, config.tensors());
  return {options,
          config,
          preprocess,
          tokenizer,
          ClipModel(config, weights, device, dtype),
          weights.dtype(),
          make_fingerprint(config, preprocess, tokenizer, weights),
          weights.parameters()};
}

void report(const Progress& progress, const char* what, std::int64_t done, std::int64_t total) {
  if (progress && !progress(done, total)) fail("interrupted", what, " stopped after ", done, " of ", total);
}

/// Writes the preprocessed pixels of one image; its errors name the image. Called from several threads at once.
using Fill = std::function<void(std::int64_t index, std::span<float> pixels)>;

void fill_image(const Image& image, const Preprocess& config, const std::string& name, std::span<float> out) {
  try {
    preprocess(image, config, out);
  } catch (const Error& error) {
    fail(kImages, name, ": ", error.what());
  }
}

/// Fills batches and sends them through the tower; the next one is read and filled meanwhile.
Matrix encode_batches(const LoadedClip& clip, std::int64_t count, const Fill& fill, const Progress& progress) {
  const std::int64_t size = clip.config.vision.image_size, batch = std::min(clip.options.batch_size, count);
  std::array<at::Tensor, 2> buffers;
  const auto prepare = [&](std::int64_t first, std::size_t which) {
    at::Tensor& pixels = buffers[which];
    if (!pixels.defined()) pixels = at::empty({batch, 3, size, size}, at::kFloat);
    const std::size_t each = static_cast<std::size_t>(3 * size * size);
    float* out = pixels.data_ptr<float>();
    parallel_for(std::min(batch, count - first), [&](std::int64_t i) { fill(first + i, {out + i * each, each}); });
  };
  prepare(0, 0);
  Matrix result(count, clip.config.projection_dim);
  ClipScratch scratch;
  for (std::int64_t first = 0, which = 0; first < count; first += batch, which = 1 - which) {
    const std::int64_t n = std::min(batch, count - first);
    std::future<void> next;
    if (first + n < count) next = std::async(std::launch::async, prepare, first + n, 1 - which);
    const at::Tensor rows = clip.model.encode_images(buffers[which].narrow(0, 0, n), scratch).contiguous();
    std::copy_n(rows.data_ptr<float>(), rows.numel(), result.row(first).data());
    report(progress, "encode_images", first + n, count);
    if (next.valid()) next.get();
  }
  return result;
}

Matrix encode(const LoadedClip& clip, std::size_t count, const Fill& fill, const Progress& progress) {
  if (count == 0) return Matrix(0, clip.config.projection_dim);
  return run(kImages, [&] { return encode_batches(clip, static_cast<std::int64_t>(count), fill, progress); });
}

/// The token ids of each text, cut behind the token that becomes its embedding: under the causal mask what follows
/// never matters.
std::vector<std::vector<std::int64_t>> tokenize(const LoadedClip& clip, std::span<const std::string> texts) {
  const ClipText& config = clip.config.text;
  std::vector<std::vector<std::int64_t>> ids(texts.size());
  parallel_for(static_cast<std::int64_t>(texts.size()), [&](std::int64_t i) {
    std::vector<std::int64_t>& text = ids[i];
    text = clip.tokenizer.encode(texts[i], config.max_position_embeddings);
    const auto highest = std::max_element(text.begin(), text.end());
    check(*highest < config.vocab_size, kTexts, "text ", i, ": token ", *highest, " is beyond the model's vocab_size ",
          config.vocab_size);
    const auto end = config.eos_token_id == 2 ? highest : std::find(text.begin(), text.end(), config.eos_token_id);
    if (end != text.end()) text.erase(end + 1, text.end());
  });
  return ids;
}

/// Sends texts through the tower, each batch as long as its longest text. `order` says which texts, shortest first.
void encode_sorted(const LoadedClip& clip, const std::vector<std::vector<std::int64_t>>& ids,
                   const std::vector<std::size_t>& order, const Progress& progress, Matrix& result) {
  ClipScratch scratch;
  const std::size_t batch = static_cast<std::size_t>(clip.options.batch_size);
  for (std::size_t first = 0; first < order.size(); first += batch) {
    const std::size_t n = std::min(batch, order.size() - first), length = ids[order[first + n - 1]].size();
    const auto rows = static_cast<std::int64_t>(n), columns = static_cast<std::int64_t>(length);
    const at::Tensor tokens = at::zeros({rows, columns}, at::kLong), ends = at::empty({rows}, at::kLong);
    for (std::size_t i = 0; i < n; ++i) {
      const auto& text = ids[order[first + i]];
      std::copy(text.begin(), text.end(), tokens.data_ptr<std::int64_t>() + i * length);
      ends.data_ptr<std::int64_t>()[i] = static_cast<std::int64_t>(text.size()) - 1;
    }
    const at::Tensor out = clip.model.encode_texts(tokens, ends, scratch).contiguous();
    for (std::size_t i = 0; i < n; ++i) {
      std::copy_n(out.data_ptr<float>() + i * out.size(1), out.size(1), result.row(order[first + i]).data());
    }
    report(progress, "encode_texts", static_cast<std::int64_t>(first + n), static_cast<std::int64_t>(order.size()));
  }
}

}  // namespace

Clip Clip::load(const fs::path& folder, const ClipOptions& options) {
  check(options.batch_size >= 1 && options.batch_size <= 1 << 16, kLoad, "batch_size must be from 1 to 65,536, got ",
        options.batch_size);
  return run(kLoad, [&] { return Clip(std::make_shared<const Impl>(Impl{load_clip(folder, options)})); });
}

Matrix Clip::encode_images(std::span<const fs::path> files, const Progress& progress) const {
  const auto fill = [&](std::int64_t i, std::span<float> out) {
    fill_image(read_image(files[i]), impl_->preprocess, files[i].string(), out);
  };
  return encode(*impl_, files.size(), fill, progress);
}

Matrix Clip::encode_images(std::span<const Image> images, const Progress& progress) const {
  const auto fill = [&](std::int64_t i, std::span<float> out) {
    fill_image(images[i], impl_->preprocess, "image " + std::to_string(i), out);
  };
  return encode(*impl_, images.size(), fill, progress);
}

Matrix Clip::encode_images(std::span<const std::span<const std::byte>> files, const Progress& progress) const {
  const auto fill = [&](std::int64_t i, std::span<float> out) {
    const std::string name = "image " + std::to_string(i);
    fill_image(decode_image(files[i], name), impl_->preprocess, name, out);
  };
  return encode(*impl_, files.size(), fill, progress);
}

Matrix Clip::encode_texts(std::span<const std::string> texts, const Progress& progress) const {
  Matrix result(static_cast<Eigen::Index>(texts.size()), dim());
  run(kTexts, [&] {
    const auto ids = tokenize(*impl_, texts);
    std::vector<std::size_t> order(texts.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return ids[a].size() < ids[b].size(); });
    encode_sorted(*impl_, ids, order, progress, result);
  });
  return result;
}

std::int64_t Clip::dim() const { return impl_->config.projection_dim; }
std::int64_t Clip::image_size() const { return impl_->config.vision.image_size; }
std::int64_t Clip::context_length() const { return impl_->config.text.max_position_embeddings; }
std::int64_t Clip::parameters() const { return impl_->parameters; }
float Clip::logit_scale() const { return impl_->model.logit_scale(); }
const std::string& Clip::dtype() const { return impl_->options.dtype; }
const std::string& Clip::device() const { return impl_->options.device; }
const std::string& Clip::fingerprint() const { return impl_->fingerprint; }
const Tokenizer& Clip::tokenizer() const { return impl_->tokenizer; }
const Preprocess& Clip::preprocess() const { return impl_->preprocess; }

std::string Clip::info() const {
  json info = impl_->config.json();
  info["model_type"] = "clip";
  info["preprocess"] = preprocess_json(impl_->preprocess);
  info["tokenizer"] = {{"size", impl_->tokenizer.size()},
                       {"start_id", impl_->tokenizer.start_id()},
                       {"end_id", impl_->tokenizer.end_id()},
                       {"pad_id", impl_->tokenizer.pad_id()}};
  info["dim"] = dim();
  info["image_size"] = image_size();
  info["context_length"] = context_length();
  info["logit_scale"] = logit_scale();
  info["parameters"] = parameters();
  info["weights_dtype"] = impl_->weights_dtype;
  info["dtype"] = dtype();
  info["device"] = device();
  info["fingerprint"] = fingerprint();
  return info.dump();
}

}  // namespace reco
